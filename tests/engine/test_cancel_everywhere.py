"""Fault B3: cancelled at the k-th checkpoint, whatever k, nothing is lost and nothing done twice."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from dispatch import Clock, Dispatcher, MemoryStorage, QueueTask, Run, Snooze, TaskQueueConfig
from dispatch.lifecycle import SettleAnswer
from dispatch.records import TransitionKind
from dispatch.storage.query import All

from .work import JOB, Job

CONFIG = TaskQueueConfig(concurrency=2, max_retry=2, retry_delay=0.5, buffer_size=3)
TASKS = 8
LEASE_S = 6.0


@pytest.fixture
def seeded() -> Iterator[Callable[[int], None]]:
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


class Recording(MemoryStorage):
    """Notes every settle that was applied."""

    def __init__(self) -> None:
        super().__init__(Clock(datetime(2026, 1, 1, tzinfo=UTC)))  # the machine's time would not repeat
        self.applied: list[tuple[str, int]] = []
        self.done: list[str] = []

    async def turn(self, transitions: Any, wants: Any, **options: Any) -> Any:
        results, claimed = await super().turn(transitions, wants, **options)
        for transition, result in zip(transitions, results, strict=True):
            if result.answer is SettleAnswer.APPLIED:
                self.applied.append((result.id, result.epoch))
                if transition.kind is TransitionKind.DONE:
                    self.done.append(result.id)
        return results, claimed


class World:
    """One storage, one script for every handler, and who was published for sure."""

    def __init__(self, victim: str) -> None:
        self.victim, self.storage = victim, Recording()
        self.published: list[str] = []
        self.instrument: CancelAt | None = None

    def dispatcher(self) -> Dispatcher:
        made = Dispatcher(self.storage, lease=LEASE_S, grace=1.0, observers=())
        made.consumer.register_queue("q", CONFIG)
        made.consumer.register_handler(JOB, self.handler)
        return made

    async def handler(self, task: QueueTask[Job], run: Run) -> None:
        n = task.payload.n
        if self.instrument is not None and self.victim == "handler" and n == 1:
            with trio.CancelScope() as self.instrument.scope:
                await self.work(task, run)
            return
        await self.work(task, run)

    async def work(self, task: QueueTask[Job], run: Run) -> None:
        n = task.payload.n
        await trio.sleep(0.1 * n)
        if n % 3 == 1 and task.attempt == 1:
            raise ValueError("first time")
        if n == 2 and task.last_error is None and len(self.storage.applied) < 4:
            raise Snooze(0.2)
        if n == 3:
            await run.publish(JOB(Job(100), id="child"))

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
                        await dispatcher.publisher.publish(JOB(Job(n), id=f"t{n}"))
                        self.published.append(f"t{n}")
                self.instrument.scope = whole if self.victim == "dispatcher" else self.instrument.scope
                await dispatcher.drain()
                dispatcher.close()
        trio.lowlevel.remove_instrument(self.instrument)
        steps, self.instrument = self.instrument.steps, None
        return steps

    async def check(self) -> None:
        """A fresh dispatcher over the same storage drains: lost 0, double 0, nothing left leased."""
        dispatcher = self.dispatcher()
        async with trio.open_nursery() as nursery:
            await nursery.start(dispatcher.serve)
            await dispatcher.drain()
            dispatcher.close()
        stored = {record.id: record for record in (await self.storage.find(All())).records}
        assert set(self.published) <= set(stored), "lost"
        assert {record.status.value for record in stored.values()} <= {"succeeded"}
        assert len(self.storage.applied) == len(set(self.storage.applied)), "a run was settled twice"
        assert len(self.storage.done) == len(set(self.storage.done)), "a task was done twice"
        assert all(record.lease_until is None for record in stored.values())
        assert self.storage.statistics().leases == 0
        if "t3" in stored:
            assert "child" in stored
        assert all(record.attempt <= 3 for record in stored.values())


def one_run(seed: Callable[[int], None], victim: str, number: int, k: float) -> int:
    """One whole life under one seed; names seed and step in whatever goes wrong."""

    async def main() -> int:
        with trio.fail_after(10_000):
            world = World(victim)
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


VICTIMS = ("dispatcher", "handler", "publish")


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_cancellation_at_any_sampled_step_loses_nothing(
    victim: str, seeded: Callable[[int], None], collected: None
) -> None:
    last = one_run(seeded, victim, 1, float("inf"))
    assert one_run(seeded, victim, 1, float("inf")) == last, "the schedule is not repeatable"
    assert last > 60
    for k in range(1, last + 1, max(1, last // 40)):
        one_run(seeded, victim, 1, k)
    gc.collect()


@pytest.mark.battery
@pytest.mark.parametrize("number", range(20))
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_cancellation_at_every_step_loses_nothing(
    victim: str, number: int, seeded: Callable[[int], None], collected: None
) -> None:
    last = one_run(seeded, victim, number, float("inf"))
    for k in range(1, last + 1):
        one_run(seeded, victim, number, k)


def test_the_battery_notices_a_planted_bug(
    seeded: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the fence, the end of a run that was handed back already is written a second time."""
    real = Recording.turn

    async def twice(self: Recording, transitions: Any, wants: Any, **options: Any) -> Any:
        answer = await real(self, transitions, wants, **options)
        for transition in transitions:
            self.applied.append((transition.id, transition.epoch))
        return answer

    monkeypatch.setattr(Recording, "turn", twice)
    with pytest.raises(AssertionError, match="a run was settled twice"):
        one_run(seeded, "dispatcher", 1, float("inf"))
