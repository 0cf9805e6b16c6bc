"""`copy`: from one store to another, over real files."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from dispatch import Storage, StorageError
from dispatch.cli.app import main
from dispatch.cli.shell import Opener, Shell
from dispatch.records import NewTask, Transition, TransitionKind, UniqueKey
from dispatch.storage.opening import open_storage
from dispatch.storage.protocol import (
    Change,
    CronRecord,
    EnqueueResult,
    QueueRecord,
    Want,
    WorkerRecord,
)
from dispatch.storage.query import All, Ids
from dispatch.tasks import OnClash, TaskStatus
from dispatch.testing.faults import FaultyStorage
from tests.cli.terminal import Stream

NOW = 1_800_000_000.0  # far ahead: nothing of it is due


@pytest.fixture
def stores(tmp_path: Path) -> tuple[str, str]:
    return f"sqlite:///{tmp_path}/old.db", f"sqlite:///{tmp_path}/new.db"


def copied(stores: tuple[str, str], *options: str, opener: Opener = open_storage) -> tuple[int, str, str]:
    out, err = Stream(), Stream()
    old, new = stores
    shell = Shell(stdin=Stream(), stdout=out, stderr=err, opener=opener)
    status = main(["copy", "--store", old, "--to", new, *options], shell)
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
    assert not Path(new.removeprefix("sqlite:///")).exists()
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
    assert not Path(new.removeprefix("sqlite:///")).exists()


def test_a_dry_run_counts_what_stands_there_already(stores: tuple[str, str]) -> None:
    old, new = stores
    over(old, furnish)
    over(new, lambda storage: storage.declare([QueueRecord(name="email")]))
    assert copied(stores, "--dry-run")[1] == "would copy 1,201 tasks and 1 cron task to NEW\n"
    assert copied(stores)[0] == 0
    over(old, lambda storage: storage.enqueue(plain("one more")))
    assert copied(stores, "--dry-run")[1] == "would copy 1 task and 0 cron tasks to NEW; 1,201 tasks stood there already\n"
    assert len(rows(new)) == 1_201


def test_a_store_is_not_copied_to_itself_and_must_be_there(stores: tuple[str, str]) -> None:
    old, _ = stores
    assert copied((old, old))[0] == 2
    status, out, err = copied(stores)
    assert (status, out) == (1, "")
    assert "there is no file" in err


async def begin(storage: Storage, *ids: str, lease: float = 30.0) -> None:
    """Have somebody run these who will never end them."""
    want = Want(queue="email", limit=len(ids), ids=frozenset(ids), max_retry=1)
    await storage.claim([want], worker="killed", lease=lease)


def test_what_a_killed_worker_ran_is_taken_back_once_its_lease_is_over(stores: tuple[str, str]) -> None:
    old, new = stores

    async def set_up(storage: Storage) -> None:
        await storage.declare([QueueRecord(name="email")])
        await storage.enqueue([*plain("again", "waits"), *plain("never", max_retry=0)])
        await begin(storage, "again", "never", lease=0.001)

    over(old, set_up)
    assert copied(stores, "--dry-run")[0] == 1
    assert {row.status for row in rows(old).values()} == {TaskStatus.RUNNING, TaskStatus.PENDING}
    assert copied(stores) == (0, "copied 2 tasks and 0 cron tasks to NEW\n", "")
    assert set(rows(new)) == {"again", "waits"}
    assert rows(old)["never"].status is TaskStatus.FAILED


def test_behind_one_that_runs_its_key_stays_in_order(stores: tuple[str, str]) -> None:
    old, new = stores

    async def set_up(storage: Storage) -> None:
        await storage.declare([QueueRecord(name="email", keyed=True)])
        await storage.enqueue([*plain("a1", "a2", "a3", key="a"), *plain("b1", key="b"), *plain("free")])
        await begin(storage, "a1")

    over(old, set_up)
    status, _, err = copied(stores)
    assert (status, set(rows(new))) == (1, {"b1", "free"})
    assert "2 tasks of OLD stayed behind one of their key that runs" in err
    with closing(sqlite3.connect(old.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute("UPDATE dispatch_tasks SET lease_until = 1.0 WHERE lease_until IS NOT NULL")
    assert copied(stores)[0] == 0
    assert list(rows(new)) == ["b1", "free", "a1", "a2", "a3"]


@pytest.mark.parametrize("on_clash", list(OnClash))
def test_two_of_one_unique_key_that_both_wait_are_both_carried_over(stores: tuple[str, str], on_clash: OnClash) -> None:
    old, new = stores

    async def set_up(storage: Storage) -> None:
        await storage.declare([QueueRecord(name="email", keyed=True)])
        debounced = attrs.evolve(unique(on_clash), statuses=frozenset({TaskStatus.PENDING}))
        for id_ in ("older", "newer"):
            await storage.enqueue(plain(id_, unique=debounced, key="k"))
            if id_ == "older":
                await begin(storage, "older", lease=0.001)  # and is to be tried again
        await storage.enqueue(plain("last", key="k"))

    async def publish_there(storage: Storage) -> None:
        await storage.declare([QueueRecord(name="email", keyed=True)])
        await storage.enqueue(plain("native", unique=unique(OnClash.KEEP)))

    over(old, set_up)
    assert copied(stores)[:2] == (0, "copied 3 tasks and 0 cron tasks to NEW\n")
    assert list(rows(new)) == ["older", "newer", "last"]
    assert copied(stores)[:2] == (0, "copied 0 tasks and 0 cron tasks to NEW; 3 tasks stood there already\n")
    over(new, publish_there)
    assert list(rows(new)) == ["older", "newer", "last"]  # both are in its way

    elsewhere = new.replace("new.db", "third.db")
    over(elsewhere, publish_there)
    assert copied((old, elsewhere))[0] == 1
    assert list(rows(elsewhere)) == ["native", "last"]


class Weighing(FaultyStorage):
    """Takes no more at a time than a database stores within the seconds that it is given."""

    async def enqueue(self, tasks: Sequence[NewTask], *, bounded: bool = False, by: tuple[str, int] | None = None) -> list[EnqueueResult]:
        if sum(len(new.payload) for new in tasks) > 8 * 2**20:
            raise StorageError("no answer within 4 s")
        return await super().enqueue(tasks, bounded=bounded, by=by)


def test_large_payloads_are_carried_over_a_few_at_a_time(stores: tuple[str, str]) -> None:
    old, new = stores

    async def publish(storage: Storage) -> None:
        await storage.declare([QueueRecord(name="email")])
        large = b'"' + b"x" * (256 * 1024 - 2) + b'"'
        await storage.enqueue([NewTask(id=f"n{n}", queue="email", type="welcome", payload=large) for n in range(40)])

    @asynccontextmanager
    async def weighed(url: str) -> AsyncGenerator[Storage]:
        async with open_storage(url) as storage:
            yield Weighing(storage) if url == new else storage

    over(old, publish)
    assert copied(stores, opener=weighed) == (0, "copied 40 tasks and 0 cron tasks to NEW\n", "")
    assert list(rows(new)) == list(rows(old))


def test_a_pause_is_carried_over_though_the_first_try_broke_off_anywhere(stores: tuple[str, str]) -> None:
    old, new = stores
    over(old, furnish)

    @asynccontextmanager
    async def failing(url: str) -> AsyncGenerator[Storage]:
        async with open_storage(url) as storage:
            faulty = FaultyStorage(storage)
            if url == new:
                faulty.fail("declare", after=True)
                faulty.fail("alter_queue")
            yield faulty if url == new else storage

    assert copied(stores, opener=failing)[0] == 1
    assert copied(stores)[0] == 0
    assert over(new, lambda storage: storage.queues()) == over(old, lambda storage: storage.queues())


def test_a_cron_task_whose_row_is_broken_is_told_and_not_copied(stores: tuple[str, str]) -> None:
    old, new = stores
    over(old, furnish)
    with closing(sqlite3.connect(old.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute("UPDATE dispatch_crons SET template = 'garbage'")
    status, out, err = copied(stores)
    assert (status, out) == (1, "copied 1,201 tasks and 0 cron tasks to NEW\n")
    assert err.startswith("cron task nightly was not copied: its row is broken: JSONDecodeError")
    assert over(new, lambda storage: storage.crons()) == []
