"""`copy`: from one store to another, over real files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from dispatch import Storage
from dispatch.cli.app import main
from dispatch.cli.shell import Shell
from dispatch.records import NewTask, Transition, TransitionKind, UniqueKey
from dispatch.storage.opening import open_storage
from dispatch.storage.protocol import Change, CronRecord, QueueRecord, Want, WorkerRecord
from dispatch.storage.query import All, Ids
from dispatch.tasks import OnClash, TaskStatus
from tests.cli.terminal import Stream

NOW = 1_800_000_000.0  # far ahead: nothing of it is due


@pytest.fixture
def stores(tmp_path: Path) -> tuple[str, str]:
    return f"sqlite:///{tmp_path}/old.db", f"sqlite:///{tmp_path}/new.db"


def copied(stores: tuple[str, str], *options: str) -> tuple[int, str, str]:
    out, err = Stream(), Stream()
    old, new = stores
    status = main(["copy", "--store", old, "--to", new, *options], Shell(stdin=Stream(), stdout=out, stderr=err))
    return status, out.getvalue().replace(old, "OLD").replace(new, "NEW"), err.getvalue().replace(old, "OLD")


def over(url: str, act: Any) -> Any:
    async def run() -> Any:
        async with open_storage(url) as storage:
            return await act(storage)

    return trio.run(run)


def rows(url: str) -> dict[str, Any]:
    async def read(storage: Storage) -> dict[str, Any]:
        return {record.id: record for record in (await storage.find(All(), limit=10_000)).records}

    return over(url, read)


def unique(on_clash: OnClash) -> UniqueKey:
    open_ones = frozenset({TaskStatus.PENDING, TaskStatus.RUNNING})
    replaced = frozenset({"priority"})
    return UniqueKey(
        key="u", statuses=open_ones, within=None, on_clash=on_clash, replace=replaced, replace_in=frozenset({TaskStatus.PENDING})
    )


WHOLE = NewTask(
    id="whole", queue="email", type="welcome", payload='{"to":"adä"}'.encode(), version=3, key="k", headers={"a": "b"},
    available_at=NOW, timeout=1.5, max_retry=7, priority=3, tags=("x", "y"), unique=unique(OnClash.KEEP), cron="nightly",
    slot=NOW,
)  # fmt: skip


def plain(*ids: str, **fields: Any) -> list[NewTask]:
    return [NewTask(id=id_, queue="email", type="welcome", payload=b"{}", **fields) for id_ in ids]


async def furnish(storage: Storage) -> None:
    await storage.declare([QueueRecord(name="email", keyed=True, max_running=4), QueueRecord(name="idle")])
    await storage.alter_queue("email", paused=True, concurrency=2)
    await storage.enqueue([WHOLE, *plain(*(f"n{n}" for n in range(1_200)))])
    await storage.put_cron(
        CronRecord(
            name="nightly", definition="{}", template=WHOLE, paused_reason="for now", last_slot=NOW - 60, next_slot=NOW,
            total=5, created_at=NOW - 300,
        )
    )


def test_what_waits_is_carried_over_whole_and_a_repeat_changes_nothing(stores: tuple[str, str]) -> None:
    old, new = stores
    over(old, furnish)
    assert copied(stores, "--dry-run") == (0, "would copy 1,201 tasks and 1 cron task to NEW\n", "")
    assert rows(new) == {}
    assert copied(stores) == (0, "copied 1,201 tasks and 1 cron task to NEW\n", "")
    before, after = rows(old), rows(new)
    assert list(before) == list(after)  # in the order in which they were stored
    for name in ("payload", "version", "key", "headers", "available_at", "timeout", "max_retry", "priority", "tags",
                 "unique", "cron", "slot", "queue", "type", "status"):  # fmt: skip
        assert {id_: getattr(row, name) for id_, row in before.items()} == {
            id_: getattr(row, name) for id_, row in after.items()
        }, name

    async def records(storage: Storage) -> Any:
        crons = [(each.name, each.paused_reason, each.last_slot, each.next_slot, each.total, each.created_at, each.template)
                 for each in await storage.crons()]  # fmt: skip
        return await storage.queues(), crons

    assert over(old, records) == over(new, records)
    assert copied(stores) == (0, "copied 0 tasks and 0 cron tasks to NEW; 1,201 tasks stood there already\n", "")
    assert rows(new) == after


def test_what_was_set_there_already_stays(stores: tuple[str, str]) -> None:
    old, new = stores
    over(old, furnish)

    async def set_up(storage: Storage) -> None:
        await storage.declare([QueueRecord(name="email")])
        await storage.alter_queue("email", concurrency=9)

    over(new, set_up)
    assert copied(stores)[0] == 0
    queues = {queue.name: queue for queue in over(new, lambda storage: storage.queues())}
    assert (queues["email"].paused, queues["email"].concurrency, queues["email"].keyed) == (False, 9, False)
    assert "idle" in queues


def test_what_runs_is_held_or_has_ended_stays_behind_and_is_told(stores: tuple[str, str]) -> None:
    old, new = stores

    async def set_up(storage: Storage) -> None:
        await storage.declare([QueueRecord(name="email")])
        await storage.enqueue(plain("runs", "held", "done", "waits"))
        await storage.alter(Ids("held"), Change(action="hold"))
        want = Want(queue="email", limit=1, ids=frozenset({"done"}))
        [claim] = (await storage.claim([want], worker="w", lease=30.0)).claims
        await storage.settle([Transition("done", claim.epoch, TransitionKind.DONE)])
        await storage.claim([Want(queue="email", limit=1, ids=frozenset({"runs"}))], worker="w", lease=30.0)

    over(old, set_up)
    assert copied(stores) == (
        1,
        "copied 1 task and 0 cron tasks to NEW\n",
        "1 task of OLD stayed behind, held: dispatch task resume, and copy again\n"
        "1 task of OLD stayed behind, running: wait for the end of its lease, and copy again\n",
    )
    assert set(rows(new)) == {"waits"}


@pytest.mark.parametrize("on_clash", list(OnClash))
def test_nothing_there_is_replaced_by_what_is_copied(stores: tuple[str, str], on_clash: OnClash) -> None:
    old, new = stores

    async def declare(storage: Storage) -> None:
        await storage.declare([QueueRecord(name="email")])

    async def publish(storage: Storage) -> None:
        await storage.enqueue(plain("older", unique=unique(on_clash), priority=0))

    async def publish_there(storage: Storage) -> None:
        await storage.enqueue(plain("newer", unique=unique(on_clash), priority=3))

    over(old, declare), over(new, declare), over(old, publish), over(new, publish_there)
    before = rows(new)
    assert copied(stores) == (
        1,
        "copied 0 tasks and 0 cron tasks to NEW\n",
        "task older (email/welcome) was not copied: task newer is in its way, as it is unique\n",
    )
    assert rows(new) == before


def test_an_id_that_another_task_has_there_is_told(stores: tuple[str, str]) -> None:
    old, new = stores

    async def publish(storage: Storage, kind: str) -> None:
        await storage.declare([QueueRecord(name="email")])
        await storage.enqueue([NewTask(id="a", queue="email", type=kind, payload=b"{}")])

    over(old, lambda storage: publish(storage, "welcome")), over(new, lambda storage: publish(storage, "bye"))
    assert copied(stores) == (
        1,
        "copied 0 tasks and 0 cron tasks to NEW\n",
        "task a (email/welcome) was not copied: its id is that of a email/bye there\n",
    )


def test_while_somebody_works_there_nothing_is_copied(stores: tuple[str, str]) -> None:
    old, new = stores
    over(old, furnish)
    worker = WorkerRecord(id="box-1", host="box", pid=1, started_at=0.0, seen_at=0.0)
    over(old, lambda storage: storage.beat(worker))
    status, out, err = copied(stores)
    assert (status, out) == (1, "")
    assert err == (
        "dispatch: 1 worker of OLD still live: box-1; stop them first, or tasks would run in both stores "
        "(one that was killed counts for a minute)\n"
    )
    assert rows(new) == {}


def test_a_store_is_not_copied_to_itself_and_must_be_there(stores: tuple[str, str]) -> None:
    old, _ = stores
    assert copied((old, old))[0] == 2
    status, out, err = copied(stores)
    assert (status, out) == (1, "")
    assert "there is no file" in err
