"""A storage that fails at any of its calls (B1 in memory, B2 on SQLite), on virtual time."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from dispatch import (
    Dispatcher,
    MemoryStorage,
    QueueTask,
    Run,
    StorageError,
    TaskQueueConfig,
    TaskQueuePublisher,
    TaskStatus,
    TaskType,
    lifecycle,
)
from dispatch.storage import sqlite, sqlite_tasks
from dispatch.storage.protocol import EnqueueAnswer, EnqueueResult, Storage
from dispatch.storage.query import All
from dispatch.storage.sqlite import SqliteStorage
from dispatch.testing.history import HistoryError, HistoryEvent, verify
from dispatch.testing.recording import RecordingStorage

from .conftest import Seed, Tell
from .failing import FailingConnection, FailingStorage, Fault
from .programs.plants import PLANTS


@attrs.frozen
class Job:
    n: int


JOB = TaskType("q", "job", Job)
LEASE_S = 6.0
CONFIG = TaskQueueConfig(concurrency=2, max_retry=3, retry_delay=0.5)
TASKS = 5
LONG = 40
"""Of a task that takes 12 s, two leases."""
NO_FAULT = 10**9
CALLS = (Fault.BEFORE, Fault.AFTER, Fault.HANG)
STATEMENTS = (Fault.BEFORE, Fault.AFTER, Fault.ROLLED_BACK)


class World:
    """One storage with its faults, what was acknowledged, and how often each task ran."""

    def __init__(self, inside: Storage, plan: dict[int, Fault]) -> None:
        self.history: list[HistoryEvent] = []
        self.recording = RecordingStorage(inside, self.history.append)
        self.storage = FailingStorage(self.recording, plan)
        self.acknowledged: list[str] = []
        self.refused = 0
        self.asked = 0
        self.repeated = 0
        self.seen: list[QueueTask[Job]] = []

    async def handler(self, task: QueueTask[Job], run: Run) -> None:
        self.seen.append(task)
        await trio.sleep(0.3 * task.payload.n)
        if task.payload.n == 1 and task.attempt == 1:
            raise ValueError("first time")
        if task.payload.n == 2:
            await run.publish(JOB(Job(0), id="child"))

    async def publish(self, dispatcher: Dispatcher, number: int, id_: str) -> None:
        """Publish as a careful caller does: the same id again until it is acknowledged."""
        while id_ not in self.acknowledged:
            with trio.move_on_after(5.0):
                try:
                    await dispatcher.publisher.publish(JOB(Job(number), id=id_))
                except StorageError:
                    self.refused += 1
                    await trio.sleep(0.2)
                else:
                    self.acknowledged.append(id_)

    async def live(self) -> None:
        """Start (again, if starting failed), publish, drain, and show that the worker is alive."""
        started = False
        while not started:
            dispatcher = Dispatcher(self.storage, lease=LEASE_S, grace=1.0, observers=())
            dispatcher.consumer.register_queue("q", CONFIG)
            dispatcher.consumer.register_handler(JOB, self.handler)
            try:
                async with trio.open_nursery() as nursery:
                    with trio.move_on_after(30.0):
                        await nursery.start(dispatcher.serve)
                        started = True
                    if not started:
                        nursery.cancel_scope.cancel()
                        continue
                    for n in range(TASKS):
                        await self.publish(dispatcher, n, f"t{n}")
                    await self.drained(dispatcher)
                    before = len(self.storage.calls)
                    await self.publish(dispatcher, LONG, "last")
                    with trio.fail_after(120.0):
                        await self.drained(dispatcher)
                    assert "renew" in self.storage.calls[before:], "it renews no leases any more"
                    dispatcher.close()
            except* StorageError:
                if started:
                    raise  # a storage that fails must not take a running dispatcher down

    async def drained(self, dispatcher: Dispatcher) -> None:
        while True:
            with trio.move_on_after(20.0):
                try:
                    await dispatcher.drain()
                except StorageError:
                    await trio.sleep(0.2)
                    continue
                return

    async def check(self) -> None:
        verify(self.history)
        stored = {record.id: record for record in (await self.recording.find(All())).records}
        assert set(self.acknowledged) == {*(f"t{n}" for n in range(TASKS)), "last"}
        assert set(self.acknowledged) <= set(stored), "lost"
        dead = {id_ for id_, record in stored.items() if record.status is TaskStatus.FAILED}
        assert all(stored[id_].attempt == 4 for id_ in dead), "dead, but not by policy"
        assert {stored[id_].status for id_ in stored if id_ not in dead} <= {TaskStatus.SUCCEEDED}
        self.repeated = sum(record.attempt - 1 for record in stored.values()) - 1  # one fails by itself
        assert stored["t2"].status is TaskStatus.FAILED or "child" in stored
        assert all(record.lease_until is None for record in stored.values())


@asynccontextmanager
async def in_memory(folder: Path) -> AsyncIterator[Storage]:
    yield MemoryStorage()


@asynccontextmanager
async def in_a_file(folder: Path) -> AsyncIterator[Storage]:
    path = Path(tempfile.mkdtemp(dir=folder), "jobs.db")
    async with SqliteStorage(path, inline=True, synchronous="normal") as storage:
        yield storage


STORAGES: dict[str, Callable[[Path], Any]] = {"memory": in_memory, "sqlite": in_a_file}


def one_life(
    seed: Seed,
    kind: str,
    folder: Path,
    plan: dict[int, Fault],
    statement: tuple[int, Fault] | None = None,
    made: Callable[[Storage, dict[int, Fault]], World] = World,
) -> tuple[World, FailingConnection | None]:
    """A whole life in which a call or a statement goes wrong; says which in whatever fails."""

    async def main() -> tuple[World, FailingConnection | None]:
        with trio.fail_after(10_000):
            async with STORAGES[kind](folder) as inside:
                connection = None
                if statement is not None:
                    connection = FailingConnection(inside, *statement)
                world = made(inside, plan)
                await world.live()
                world.storage.plan.clear()
                await world.recording.drained()
                await world.check()
                return world, connection

    logging.disable(logging.WARNING)
    seed(1)
    try:
        return trio.run(main, clock=MockClock(autojump_threshold=0))
    except BaseException as exc:
        exc.add_note(f"storage={kind} plan={plan} statement={statement}")
        raise
    finally:
        logging.disable(logging.NOTSET)


def every_call(seed: Seed, kind: str, folder: Path, fault: Fault, step: int) -> dict[str, Any]:
    calls = len(one_life(seed, kind, folder, {})[0].storage.calls)
    assert calls == len(one_life(seed, kind, folder, {})[0].storage.calls), "not repeatable"
    assert calls > 15
    return told(
        [one_life(seed, kind, folder, {n: fault})[0] for n in range(1, calls + 1, step)], calls=calls
    )


def told(worlds: list[World], **figures: int) -> dict[str, Any]:
    return {
        **figures,
        "lives": len(worlds),
        "tasks": (TASKS + 2) * len(worlds),
        "lost": 0,  # else the check had failed
        "settled_twice": 0,
        "redelivered": sum(world.repeated for world in worlds),
        "refused_publishes": sum(world.refused for world in worlds),
    }


@pytest.mark.parametrize("fault", CALLS)
@pytest.mark.parametrize("kind", STORAGES)
def test_a_storage_that_fails_at_a_sampled_call_loses_nothing(
    kind: str, fault: Fault, tmp_path: Path, seeded: Seed, tell: Tell
) -> None:
    tell(every_call(seeded, kind, tmp_path, fault, step=12))


@pytest.mark.battery
@pytest.mark.parametrize("fault", CALLS)
@pytest.mark.parametrize("kind", STORAGES)
def test_a_storage_that_fails_at_any_call_loses_nothing(
    kind: str, fault: Fault, tmp_path: Path, seeded: Seed, tell: Tell
) -> None:
    tell(every_call(seeded, kind, tmp_path, fault, step=1))


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(9, id="battery", marks=pytest.mark.battery),
        pytest.param(1, id="soak", marks=pytest.mark.soak),
    ],
)
@pytest.mark.parametrize("fault", STATEMENTS)
def test_a_disk_that_fails_at_any_statement_loses_nothing(
    fault: Fault, step: int, tmp_path: Path, seeded: Seed, tell: Tell
) -> None:
    """Every commit is among them, since there a failure is in doubt."""
    _, healthy = one_life(seeded, "sqlite", tmp_path, {}, (NO_FAULT, fault))
    assert healthy is not None
    chosen = sorted({*range(1, healthy.count + 1, step), *healthy.commits})
    worlds = [one_life(seeded, "sqlite", tmp_path, {}, (n, fault))[0] for n in chosen]
    tell(told(worlds, statements=healthy.count, commits=len(healthy.commits)))


@pytest.mark.parametrize("kind", STORAGES)
def test_a_storage_that_is_away_for_thirty_seconds_is_waited_for(
    kind: str, tmp_path: Path, seeded: Seed, tell: Tell
) -> None:
    async def main() -> World:
        with trio.fail_after(10_000):
            async with STORAGES[kind](tmp_path) as inside:
                world = World(inside, {})
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(world.live)
                    await trio.sleep(0.5)
                    world.storage.away = True
                    before = len(world.storage.calls)
                    with pytest.raises(StorageError):
                        await TaskQueuePublisher(world.storage).publish(JOB(Job(0), id="refused"))
                    await trio.sleep(30.0)
                    world.storage.away = False
                    world.asked = len(world.storage.calls) - before
                await world.recording.drained()
                await world.check()
                return world

    logging.disable(logging.WARNING)
    seeded(1)
    try:
        world = trio.run(main, clock=MockClock(autojump_threshold=0))
    finally:
        logging.disable(logging.NOTSET)
    tell(told([world], calls_while_away=world.asked))
    assert "refused" not in {event.task for event in world.history}
    assert 10 < world.asked < 200, "it spins, or sleeps"


# ---- planted bugs ---------------------------------------------------------------


class Credulous(FailingStorage):
    """Swallows its errors: what failed to be stored is answered for."""

    async def enqueue(self, tasks: Any, **options: Any) -> Any:
        try:
            return await super().enqueue(tasks, **options)
        except StorageError:
            return [EnqueueResult(EnqueueAnswer.CREATED, new.id, self.now(), self.now()) for new in tasks]


def test_the_failing_notices_a_swallowed_error(tmp_path: Path, seeded: Seed) -> None:
    def made(inside: Storage, plan: dict[int, Fault]) -> World:
        world = World(inside, plan)
        world.storage = Credulous(world.recording, plan)
        return world

    healthy, _ = one_life(seeded, "memory", tmp_path, {}, made=made)
    first = healthy.storage.calls.index("enqueue") + 1
    with pytest.raises(AssertionError, match="lost"):
        one_life(seeded, "memory", tmp_path, {first: Fault.BEFORE}, made=made)


def test_the_failing_notices_a_missing_fence(
    tmp_path: Path, seeded: Seed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_tasks, "SUCCEED", sqlite_tasks.SUCCEED)  # so that they are put back
    monkeypatch.setattr(lifecycle, "fence", lifecycle.fence)
    PLANTS["no_fence"]()
    healthy, _ = one_life(seeded, "sqlite", tmp_path, {})
    turns = [n for n, name in enumerate(healthy.storage.calls, 1) if name == "turn"]
    with pytest.raises(HistoryError, match="was ended 2 times"):
        [one_life(seeded, "sqlite", tmp_path, {n: Fault.AFTER}) for n in turns]


def test_the_failing_notices_a_commit_that_was_never_made(
    tmp_path: Path, seeded: Seed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite._Ledger, "commit", sqlite._Ledger.commit)
    PLANTS["forgotten_commits"]()
    with pytest.raises(HistoryError, match="broken invariants"):
        one_life(seeded, "sqlite", tmp_path, {})
