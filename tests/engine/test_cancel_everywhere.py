"""Fault B3: cancelled at the k-th step, whatever k, nothing is lost and nothing done twice."""

from __future__ import annotations

import gc
import tempfile
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from dispatch import Clock, Dispatcher, MemoryStorage, QueueTask, Run, Snooze, TaskQueueConfig
from dispatch.errors import ClosedError
from dispatch.lifecycle import SettleAnswer
from dispatch.records import TransitionKind
from dispatch.storage.protocol import Storage
from dispatch.storage.query import All
from dispatch.storage.sqlite import SqliteStorage
from dispatch.testing.history import HistoryEvent, Step, verify
from dispatch.testing.recording import RecordingStorage
from tests.simulation.bugs import what_is_handed_back_is_called_a_success

from .work import JOB, Job

CONFIG = TaskQueueConfig(concurrency=2, max_retry=2, retry_delay=0.5, buffer_size=3)
TASKS = 8
LEASE_S = 6.0
VICTIMS = ("dispatcher", "handler", "publish")
NEVER = float("inf")

Seed = Callable[[int], None]
Open = Callable[[], AbstractAsyncContextManager[Storage]]


@pytest.fixture
def seeded() -> Iterator[Seed]:
    """Make trio's scheduling repeatable. Both attributes are private, so look that they are there."""
    import trio._core._run as internals

    assert hasattr(internals, "_ALLOW_DETERMINISTIC_SCHEDULING")
    assert hasattr(internals, "_r")
    before = internals._ALLOW_DETERMINISTIC_SCHEDULING
    internals._ALLOW_DETERMINISTIC_SCHEDULING = True
    yield internals._r.seed
    internals._ALLOW_DETERMINISTIC_SCHEDULING = before


class CancelAt(trio.abc.Instrument):
    """Counts task steps and cancels a scope right after the k-th."""

    def __init__(self, k: float) -> None:
        self.k, self.steps = k, 0
        self.scope: trio.CancelScope | None = None

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        if self.steps == self.k and self.scope is not None:
            self.scope.cancel()


class World:
    """One storage, one script for every handler, and who was published for sure."""

    def __init__(self, victim: str, storage: Storage, pace: float) -> None:
        self.victim, self.inside, self.pace = victim, storage, pace
        self.history: list[HistoryEvent] = []
        self.storage = RecordingStorage(storage, self.history.append)
        self.published: list[str] = []
        self.ended: set[str] = set()
        self.instrument: CancelAt | None = None

    def dispatcher(self) -> Dispatcher:
        return self.dispatcher_over(self.storage)

    def dispatcher_over(self, storage: Storage) -> Dispatcher:
        made = Dispatcher(storage, lease=LEASE_S, grace=1.0, observers=())
        made.consumer.register_queue("q", CONFIG)
        made.consumer.register_handler(JOB, self.handler)
        return made

    async def handler(self, task: QueueTask[Job], run: Run) -> None:
        n = task.payload.n
        if self.instrument is not None and self.victim == "handler" and n == 1:
            with trio.CancelScope() as self.instrument.scope:
                await self.work(task, run)
        else:
            await self.work(task, run)
        self.ended.add(task.id)

    async def work(self, task: QueueTask[Job], run: Run) -> None:
        n = task.payload.n
        await trio.sleep(0.1 * n * self.pace)
        if n % 3 == 1 and task.attempt == 1:
            raise ValueError("first time")
        if n == 2 and task.last_error is None and len(self.applied()) < 4:
            raise Snooze(0.2)
        if n == 3:
            await run.publish(JOB(Job(100), id="child"))

    def applied(self, how: TransitionKind | None = None) -> list[str]:
        """The tasks whose runs were ended (so), once for each time."""
        return [
            event.task
            for event in self.history
            if event.step is Step.ENDED
            and event.answer == SettleAnswer.APPLIED
            and how in (None, event.how)
        ]

    async def act(self, k: float) -> int:
        """Publish and run until cancelled at step k; how many steps there were."""
        self.instrument = CancelAt(k)
        dispatcher = self.dispatcher()
        with trio.CancelScope() as whole:
            if self.victim == "dispatcher":
                self.instrument.scope = whole
            trio.lowlevel.add_instrument(self.instrument)
            async with trio.open_nursery() as nursery:
                await nursery.start(dispatcher.serve)
                for n in range(TASKS):
                    with trio.CancelScope() as one:
                        if self.victim == "publish":
                            self.instrument.scope = one
                        await self.publish(dispatcher, n)
                self.instrument.scope = whole if self.victim == "dispatcher" else self.instrument.scope
                await dispatcher.drain()
                dispatcher.close()
        trio.lowlevel.remove_instrument(self.instrument)
        steps, self.instrument = self.instrument.steps, None
        return steps

    async def publish(self, dispatcher: Dispatcher, n: int) -> None:
        try:
            await dispatcher.publisher.publish(JOB(Job(n), id=f"t{n}"))
        except ClosedError:
            # The dispatcher, cancelled with us, has ended first: now it is our turn.
            await trio.lowlevel.checkpoint()
            raise
        self.published.append(f"t{n}")

    async def check(self) -> None:
        """A fresh dispatcher over the same storage drains: lost 0, double 0, nothing left leased."""
        dispatcher = self.dispatcher()
        async with trio.open_nursery() as nursery:
            await nursery.start(dispatcher.serve)
            await dispatcher.drain()
            dispatcher.close()
        await self.storage.drained()
        verify(self.history)
        stored = {record.id: record for record in (await self.inside.find(All())).records}
        assert set(self.published) <= set(stored), "lost"
        assert {record.status.value for record in stored.values()} <= {"succeeded"}
        assert set(stored) <= self.ended, "succeeded, but no run of its handler came to its end"
        done = self.applied(TransitionKind.DONE)
        assert len(done) == len(set(done)), "a task was done twice"
        assert all(record.lease_until is None for record in stored.values())
        if isinstance(self.inside, MemoryStorage):
            assert self.inside.statistics().leases == 0
        if "t3" in stored:
            assert "child" in stored
        assert all(record.attempt <= 3 for record in stored.values())


# ---- where it is stored -------------------------------------------------------------

START = datetime(2026, 1, 1, tzinfo=UTC)
"""The machine's time would not repeat."""


@asynccontextmanager
async def in_memory() -> AsyncIterator[Storage]:
    yield MemoryStorage(Clock(START))


@asynccontextmanager
async def in_a_file() -> AsyncIterator[Storage]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "jobs.db")
        async with SqliteStorage(path, inline=True, synchronous="normal", clock=Clock(START)) as storage:
            yield storage


def one_run(seed: Seed, victim: str, number: int, k: float, opened: Open = in_memory) -> int:
    """One whole life under one seed, on virtual time; names seed and step in whatever goes wrong."""

    async def main() -> int:
        with trio.fail_after(10_000):
            async with opened() as storage:
                world = World(victim, storage, pace=1.0)
                steps = await world.act(k)
                await world.check()
                return steps

    seed(number)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return trio.run(main, clock=MockClock(autojump_threshold=0))
    except BaseException as exc:
        exc.add_note(f"victim={victim} seed={number} k={k}")
        raise


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_cancellation_at_any_sampled_step_loses_nothing(
    victim: str, seeded: Seed, collected: None
) -> None:
    last = one_run(seeded, victim, 1, NEVER)
    assert one_run(seeded, victim, 1, NEVER) == last, "the schedule is not repeatable"
    assert 60 < last <= 300
    for k in range(1, last + 1, max(1, last // 20)):
        one_run(seeded, victim, 1, k)
    gc.collect()


@pytest.mark.battery
@pytest.mark.parametrize("number", range(20))
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_cancellation_at_every_step_loses_nothing(
    victim: str, number: int, seeded: Seed, collected: None
) -> None:
    last = one_run(seeded, victim, number, NEVER)
    for k in range(1, last + 1):
        one_run(seeded, victim, number, k)


EVERY_TENTH_THEN_ALL = [
    pytest.param(10, id="battery", marks=pytest.mark.battery),
    pytest.param(1, id="soak", marks=pytest.mark.soak),
]


@pytest.mark.parametrize("step", EVERY_TENTH_THEN_ALL)
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_cancellation_at_any_step_loses_nothing_in_a_file(
    victim: str, step: int, seeded: Seed, collected: None
) -> None:
    last = one_run(seeded, victim, 1, NEVER, in_a_file)
    for k in range(1, last + 1, step):
        one_run(seeded, victim, 1, k, in_a_file)


def test_the_battery_notices_a_planted_bug(seeded: Seed) -> None:
    def search() -> None:
        for k in range(1, one_run(seeded, "dispatcher", 1, NEVER), 10):
            one_run(seeded, "dispatcher", 1, k)

    with (
        what_is_handed_back_is_called_a_success(),
        pytest.raises(AssertionError, match="no run of its handler came to its end"),
    ):
        search()
