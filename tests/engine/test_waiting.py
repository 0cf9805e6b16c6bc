"""Why a task waits: said by the API, in the order in which the causes must go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from dispatch import (
    MemoryStorage,
    RateLimit,
    RetryPolicy,
    TaskNotFoundError,
    TaskQueueConfig,
    TaskQueueControl,
    TaskStatus,
    TaskType,
    WaitReason,
    control,
)
from dispatch.records import NewTask, TaskRecord, Transition, TransitionKind
from dispatch.storage.protocol import QueueRecord, Want, WorkerRecord
from dispatch.storage.query import Queues
from dispatch.storage.sqlite import SqliteStorage
from dispatch.waiting import Facts, explain

from .waits import check_every_reason
from .work import JOB, Job, Script, nothing, working

NOW = 1_790_000_000.0
QUEUE = QueueRecord(name="q")
TASK = TaskRecord(id="t", queue="q", type="job", payload=b"{}", created_at=NOW, available_at=NOW, seq=5)


async def test_every_reason_is_told_in_memory() -> None:
    await check_every_reason(MemoryStorage())


async def test_every_reason_is_told_on_sqlite(tmp_path: Path) -> None:
    async with SqliteStorage(tmp_path / "jobs.db") as storage:
        await check_every_reason(storage)


async def test_of_an_unknown_task_nothing_is_said() -> None:
    with pytest.raises(TaskNotFoundError) as caught:
        await TaskQueueControl(MemoryStorage()).why("gone")
    assert str(caught.value).startswith("[1002] no task has the id 'gone'; it may have been pruned")


async def test_a_dispatcher_tells_it_of_its_own_tasks(autojump_clock: object) -> None:
    handler = Script(60.0)
    async with working(handler, TaskQueueConfig(concurrency=1)) as dispatcher:
        first, second = [await dispatcher.publisher.publish(JOB(Job(n))) for n in range(2)]
        await trio.sleep(30)
        assert (await dispatcher.control.why(first)).reason is WaitReason.RUNNING
        waiting = await dispatcher.control.why(second)
        assert [cause.reason for cause in waiting.causes] == [WaitReason.TURN]
        assert str(waiting).endswith("; 1 of its queue run, on 1 live worker")
        await dispatcher.drain()


async def test_what_waits_for_the_only_slot_is_told_so_first(autojump_clock: object) -> None:
    other: TaskType[Job, None] = TaskType("q", "other", Job)
    async with working(Script(60.0, 60.0), TaskQueueConfig(concurrency=1)) as dispatcher:
        dispatcher.consumer.register_handler(other, nothing)
        await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(1)
        task = await dispatcher.publisher.publish(other(Job()))
        strange = await dispatcher.publisher.publish(TaskType("q", "strange", Job)(Job()))
        await trio.sleep(30)
        for waiting in (task, strange):  # none of them has been passed over yet
            causes = (await dispatcher.control.why(waiting)).causes
            assert [cause.reason for cause in causes] == [WaitReason.TURN, WaitReason.NOT_SEEN]
        await dispatcher.publisher.wait(task)
        await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(30)
        assert (await dispatcher.control.why(strange)).reason is WaitReason.NOT_SEEN
        await dispatcher.control.cancel(strange)
        await dispatcher.drain()


async def test_what_a_run_that_began_since_has_passed_over_is_not_told_to_wait_for_it(autojump_clock: object) -> None:
    async with working(Script(600.0), TaskQueueConfig(concurrency=1)) as dispatcher:
        strange = await dispatcher.publisher.publish(TaskType("q", "strange", Job)(Job()))
        await trio.sleep(1)
        await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(30)
        causes = (await dispatcher.control.why(strange)).causes
        assert [cause.reason for cause in causes] == [WaitReason.NOT_SEEN]
        await dispatcher.control.cancel(strange)


async def test_what_no_handler_takes_ends_in_a_question(autojump_clock: object) -> None:
    newer: TaskType[Job, None] = TaskType("q", "job", Job, version=2, upcasters={1: lambda old: old})
    async with working(nothing) as dispatcher:
        task = await dispatcher.publisher.publish(newer(Job()))
        await dispatcher.publisher.wait(await dispatcher.publisher.publish(JOB(Job())))
        assert (await dispatcher.control.why(task)).reason is WaitReason.TURN  # it may be a matter of a moment
        await trio.sleep(10)
        assert "version 1 at most" in str(await dispatcher.control.why(task))
        other: TaskType[Job, None] = TaskType("q", "other", Job)
        dispatcher.consumer.register_handler(other, nothing)
        for _ in range(25):  # beyond them no run of the type is seen
            await dispatcher.publisher.wait(await dispatcher.publisher.publish(other(Job())))
        assert (await dispatcher.control.why(task)).reason is WaitReason.NOT_SEEN
        await dispatcher.control.cancel(task)


@pytest.mark.parametrize("version", [1, 2])
async def test_a_run_since_it_fell_due_is_seen_among_many_others(version: int, autojump_clock: object) -> None:
    """Of its type where many others ended after it, and of its version where many ended before it."""
    storage = MemoryStorage()
    await storage.declare([QUEUE])
    await storage.beat(WorkerRecord(id="w", host="h", pid=1, started_at=0.0, seen_at=0.0, queues=("q",)))

    async def run(type_: str, version: int = 1) -> None:
        id_ = f"r{trio.current_time()}"
        await storage.enqueue([NewTask(id=id_, queue="q", type=type_, payload=b"{}", version=version)])
        [claim] = (await storage.claim([Want(queue="q", limit=1, ids=frozenset({id_}))], worker="w", lease=60.0)).claims
        await storage.settle([Transition(id_, claim.epoch, TransitionKind.DONE)])
        await trio.sleep(1)

    for _ in range(25 if version == 2 else 0):
        await run("job")
    await storage.enqueue([NewTask(id="t", queue="q", type="job", payload=b"{}", version=version)])
    await trio.sleep(1)
    await run("job", version)
    for _ in range(25 if version == 1 else 10):
        await run("other")
    assert (await TaskQueueControl(storage).why("t")).reason is WaitReason.TURN


async def test_the_line_of_a_key_is_not_looked_through_where_a_crowd_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "LOOKED_AT", 10)
    storage = MemoryStorage()
    await storage.declare([QueueRecord(name="q", keyed=True)])
    await storage.beat(WorkerRecord(id="w", host="h", pid=1, started_at=0.0, seen_at=0.0, queues=("q",)))
    new = [NewTask(id=f"t{n}", queue="q", type="job", payload=b"{}", key="k") for n in range(11)]
    await storage.enqueue(new)
    waiting = await TaskQueueControl(storage).why("t7")
    assert [(cause.reason, cause.behind) for cause in waiting.causes] == [
        (WaitReason.KEY, None),
        (WaitReason.TURN, None),
    ]
    assert "over 10 wait in queue 'q', too many to look through" in str(waiting)


async def test_a_run_that_is_to_be_repeated_is_a_sign_of_a_handler(autojump_clock: object) -> None:
    config = TaskQueueConfig(concurrency=1, max_retry=9, retry=RetryPolicy.fixed(3_600.0), rate_limit=RateLimit(1, per=600.0))
    async with working(Script(ValueError("no")), config) as dispatcher:
        first, second = [await dispatcher.publisher.publish(JOB(Job(n))) for n in range(2)]
        await trio.sleep(60)
        assert (await dispatcher.control.why(first)).reason is WaitReason.NOT_DUE
        assert [cause.reason for cause in (await dispatcher.control.why(second)).causes] == [WaitReason.RATE_LIMIT]
        await dispatcher.control.cancel(Queues("q"))


async def test_no_read_is_without_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: list[int | None] = []

    class Watched(MemoryStorage):
        async def find(self, where: Any, **options: Any) -> Any:
            bounds.append(options["limit"])
            return await super().find(where, **options)

        async def count(self, where: Any, **options: Any) -> Any:
            bounds.append(options["bound"])
            return await super().count(where, **options)

    await check_every_reason(Watched())
    assert all(bound is not None and bound <= control.LOOKED_AT for bound in bounds)


def said(task: TaskRecord = TASK, **facts: Any) -> list[str]:
    """The causes as texts, an hour after the task fell due unless `now` is given."""
    given = {"now": NOW + 3_600, "queue": QUEUE, "workers": 2, **facts}
    return [cause.text for cause in explain(task, Facts(**given)).causes]


def test_the_sentences() -> None:
    queue = attrs.evolve(QUEUE, keyed=True, max_running=3, rate=(10, 60.0))
    keyed = attrs.evolve(TASK, key="ann")
    head = attrs.evolve(keyed, id="h", seq=1)
    due = "2026-09-21T14:13:20+00:00"
    assert said(attrs.evolve(TASK, status=TaskStatus.HELD), queue=attrs.evolve(QUEUE, paused=True)) == [
        "being resumed: it is held; control.resume, `dispatch task resume` and the dashboard let it wait for its turn again",
        "queue 'q' being resumed: it is paused; control.resume_queue and `dispatch queue resume q` end that",
    ]
    assert said(now=NOW - 12) == [f"its time: not due until {due}, in 12.0 s"]
    assert said(attrs.evolve(TASK, attempt=2), now=NOW - 7_200, workers=0) == [
        f"its retry after attempt 2: not due until {due}, in 2:00:00",
        "a live worker of queue 'q', which nobody consumes",
    ]
    assert said(attrs.evolve(TASK, epoch=2), now=NOW - 1) == [
        f"its next run, having run before: not due until {due}, in 1.0 s"
    ]
    running = attrs.evolve(head, status=TaskStatus.RUNNING, worker="w", started_at=NOW)
    assert said(keyed, queue=queue, head=running) == [
        f"task h, the head of its key 'ann', which runs on worker w since {due}"
    ]
    assert said(keyed, queue=queue, head=head, running=3, started=10) == [
        f"task h, the head of its key 'ann', which is pending itself, due since {due}",
        "the end of one that runs: max_running of queue 'q' is reached, 3 of 3",
        "the rate limit of queue 'q', 10 per 60 s, if it is used up: at least 10 were started within the last 60 s; the "
        "next one may be within 6.0 s",
    ]
    assert said(keyed, queue=queue, head=attrs.evolve(head, attempt=1, available_at=NOW + 3_660)) == [
        "task h, the head of its key 'ann', which is pending, after attempt 1, not due until "
        "2026-09-21T15:14:20+00:00, in 0:01:00"
    ]
    assert said(taken=True, before=12, running=4) == [
        f"its turn: due since {due}, it may start at any moment, behind up to 12 of higher place; 4 of its queue run, on 2 "
        "live workers"
    ]
    assert said(taken=True, crowd=5_000, workers=1) == [
        f"its turn: due since {due}, it may start at any moment, with over 5,000 others that wait in its queue; 0 of its "
        "queue run, on 1 live worker"
    ]
    assert said(attrs.evolve(TASK, tags=("gpu", "eu"))) == [
        "nothing in the store says why: is there a handler for q/job version 1 on a live worker? No run of this type with "
        f"its tags was seen since it fell due, at {due}. A worker with tags must have all of these: 'gpu', 'eu'."
    ]


def test_behind_others_both_are_said() -> None:
    reasons = [cause.reason for cause in explain(TASK, Facts(now=NOW + 60, queue=QUEUE, workers=1, before=3, running=1)).causes]
    assert reasons == [WaitReason.TURN, WaitReason.NOT_SEEN]


def test_a_limit_does_not_hide_that_nobody_takes_it() -> None:
    queue = attrs.evolve(QUEUE, max_running=1)
    reasons = [cause.reason for cause in explain(TASK, Facts(now=NOW + 60, queue=queue, workers=1, running=1)).causes]
    assert reasons == [WaitReason.MAX_RUNNING, WaitReason.NOT_SEEN]


def test_runs_of_an_older_version_are_no_sign_of_a_handler() -> None:
    old = attrs.evolve(TASK, id="o", started_at=NOW + 30, status=TaskStatus.SUCCEEDED)
    facts = Facts(now=NOW + 60, queue=QUEUE, workers=1, runs=[old], taken=True)
    [cause] = explain(attrs.evolve(TASK, version=7), facts).causes
    assert cause.reason is WaitReason.NOT_SEEN
    assert cause.text.endswith("version 7 on a live worker? The runs of this type that were seen are of version 1 at most.")
    assert explain(TASK, facts).reason is WaitReason.TURN


def test_runs_without_its_tags_are_no_sign_of_a_worker_that_has_them() -> None:
    task, run = attrs.evolve(TASK, tags=("gpu",)), attrs.evolve(TASK, id="o", started_at=NOW + 30, status=TaskStatus.RUNNING)
    facts = Facts(now=NOW + 60, queue=QUEUE, workers=2, runs=[run], taken=True)
    assert [explain(each, facts).reason for each in (TASK, task)] == [WaitReason.TURN, WaitReason.NOT_SEEN]
    tagged = attrs.evolve(facts, runs=[attrs.evolve(run, tags=("eu", "gpu"))])
    assert explain(task, tagged).reason is WaitReason.TURN


def test_a_run_of_long_ago_is_no_sign_of_a_handler_either() -> None:
    old = attrs.evolve(TASK, id="o", started_at=NOW - 30, status=TaskStatus.SUCCEEDED)
    assert explain(TASK, Facts(now=NOW + 60, queue=QUEUE, workers=1, runs=[old])).reason is WaitReason.NOT_SEEN
    assert explain(TASK, Facts(now=NOW + 60, queue=QUEUE, workers=1, runs=[attrs.evolve(old, status=TaskStatus.RUNNING)])).reason is WaitReason.TURN
