"""A store with one task for every reason to wait, and what is said of each."""

from __future__ import annotations

from typing import Any

import trio

from dispatch import Storage, TaskQueueControl, WaitReason
from dispatch.records import NewTask, Transition, TransitionKind
from dispatch.storage.protocol import Change, QueueRecord, Want, WorkerRecord
from dispatch.storage.query import Ids

QUEUES = (
    QueueRecord(name="plain"),
    QueueRecord(name="paused"),
    QueueRecord(name="empty"),
    QueueRecord(name="keyed", keyed=True),
    QueueRecord(name="yields", keyed=True, on_retry="yield"),
    QueueRecord(name="one", max_running=1),
    QueueRecord(name="rated", rate=(2, 3_600.0)),
    QueueRecord(name="versions"),
)
LONG_S = 100.0
"""So long some tasks have been due."""

SAID: dict[str, list[tuple[WaitReason, str | None]]] = {
    "held": [(WaitReason.HELD, None)],
    "paused": [(WaitReason.PAUSED, None)],
    "all": [(WaitReason.HELD, None), (WaitReason.PAUSED, None), (WaitReason.NOT_DUE, None)],
    "delayed": [(WaitReason.NOT_DUE, None)],
    "retried": [(WaitReason.NOT_DUE, None)],
    "nobody": [(WaitReason.NO_WORKER, None)],
    "behind-run": [(WaitReason.KEY, "key-run")],
    "behind-late": [(WaitReason.KEY, "key-late")],
    "key-late": [(WaitReason.NOT_DUE, None)],
    "other-key": [(WaitReason.TURN, None)],
    "behind-aside": [(WaitReason.TURN, None)],
    "behind-many": [(WaitReason.KEY, "ahead")],
    "one-more": [(WaitReason.MAX_RUNNING, None)],
    "rated-3": [(WaitReason.RATE_LIMIT, None)],
    "fresh": [(WaitReason.TURN, None)],
    "typo": [(WaitReason.NOT_SEEN, None)],
    "v1": [(WaitReason.TURN, None)],
    "v7": [(WaitReason.NOT_SEEN, None)],
    "run": [(WaitReason.RUNNING, None)],
    "over": [(WaitReason.ENDED, None)],
}


async def furnish(storage: Storage) -> None:
    """Declare the queues, and bring every task into its state."""
    await storage.declare(QUEUES)
    await storage.alter_queue("paused", paused=True)
    names = tuple(queue.name for queue in QUEUES if queue.name != "empty")
    await storage.beat(WorkerRecord(id="w", host="h", pid=1, started_at=0.0, seen_at=0.0, queues=names))

    async def store(id_: str, queue: str = "plain", type_: str = "job", **fields: Any) -> None:
        await storage.enqueue([NewTask(id=id_, queue=queue, type=type_, payload=b"{}", **fields)])

    async def run(id_: str, queue: str, kind: TransitionKind | None = None, **fields: Any) -> None:
        want = Want(queue=queue, limit=1, ids=frozenset({id_}), max_retry=9)
        [claim] = (await storage.claim([want], worker="w", lease=600.0)).claims
        if kind is not None:
            await storage.settle([Transition(id_, claim.epoch, kind, **fields)])

    long_ago = storage.now() - LONG_S
    await store("held")
    await storage.alter(Ids("held"), Change(action="hold"))
    await store("paused", "paused")
    await store("all", "paused", delay=60)
    await storage.alter(Ids("all"), Change(action="hold"))
    await store("delayed", delay=60)
    await store("retried", type_="failing")
    await run("retried", "plain", TransitionKind.FAILED, error="E: no", retry_in=60.0)
    await store("nobody", "empty")
    await store("key-run", "keyed", key="a")
    await run("key-run", "keyed")
    await store("behind-run", "keyed", key="a")
    await store("key-late", "keyed", key="b", delay=60)
    await store("behind-late", "keyed", key="b")
    await store("other-key", "keyed", key="c")
    await store("aside", "yields", key="a")
    await run("aside", "yields", TransitionKind.FAILED, error="E: no", retry_in=60.0)
    await store("behind-aside", "yields", key="a")
    for n in range(25):
        await store(f"aside-{n}", "yields", key="b")
        await run(f"aside-{n}", "yields", TransitionKind.FAILED, error="E: no", retry_in=60.0)
    await store("ahead", "yields", key="b")
    await store("behind-many", "yields", key="b")
    await store("one", "one")
    await run("one", "one")
    await store("one-more", "one")
    for n in (1, 2, 3):
        await store(f"rated-{n}", "rated")
    await run("rated-1", "rated", TransitionKind.DONE)
    await run("rated-2", "rated")
    await store("fresh")
    await store("typo", type_="jbo", available_at=long_ago)
    for id_, version in (("v1", 1), ("v7", 7)):
        await store(id_, "versions", version=version, available_at=long_ago)
    await store("v2", "versions", version=2)
    await run("v2", "versions", TransitionKind.DONE)
    await store("run")
    await run("run", "plain")
    await store("over")
    await run("over", "plain", TransitionKind.DONE)


async def check_every_reason(storage: Storage) -> None:
    """Furnish it, and ask of every task."""
    await furnish(storage)
    control = TaskQueueControl(storage)
    found = {id_: await control.why(id_) for id_ in SAID}
    said = {id_: [(cause.reason, cause.behind) for cause in why.causes] for id_, why in found.items()}
    assert said == SAID
    assert all(why.waits == (why.reason not in (WaitReason.RUNNING, WaitReason.ENDED)) for why in found.values())
    await trio.lowlevel.checkpoint()
