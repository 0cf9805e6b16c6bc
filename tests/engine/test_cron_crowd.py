"""Ten thousand entries (E3): soon there, fired together, and never in the way of others."""

from __future__ import annotations

import gc
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from itertools import count, pairwise
from statistics import mean

import pytest
import trio

from dispatch import Clock, CronEntry, MemoryStorage, open_dispatcher
from dispatch.cron.stored import AT_ONCE
from dispatch.storage.query import All
from tests.conclusive import in_time

from .work import JOB, Job

ENTRIES = 10_000
FAIL_AFTER_S = 240.0
HOUR = datetime(2026, 3, 20, 12, tzinfo=UTC).timestamp()

TEXTS = [
    *("* * * * *" for _ in range(100)),
    *(f"0-{minute} * * * *" for minute in range(1, 60)),
    *(f"0,{1 + n % 59} 0-23 {1 + n // 59}-31 * *" for n in range(841)),
]
"""A thousand, all of them due at a full hour of the later days of a month."""


class Machine:
    """What steps cost, in seconds of an idle processor, by a yardstick laid on all along them.

    A trio task wants to run every millisecond meanwhile, and notes how long it had to
    wait. Garbage is not collected: that is the interpreter's own pause. All by the
    thread's own clock: what other processes take is not ours. What they do to the
    caches and the clock rate is, and changes from second to second.
    """

    IDLE_S = 0.0005
    """What the yardstick takes on an idle machine, amid other work: with caches that hold that."""
    EVERY = 16

    def __init__(self) -> None:
        self.used_s: dict[str, float] = {}
        self.blocked_s: dict[str, float] = {}
        self.slow: dict[str, float] = {}
        self._longest_s = 0.0
        self._samples_s: list[float] = []

    @asynccontextmanager
    async def measuring(self) -> AsyncIterator[None]:
        gc.collect()
        gc.disable()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                yield
                nursery.cancel_scope.cancel()
        finally:
            gc.enable()

    @asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[None]:
        self._longest_s = 0.0
        self._samples_s = [self._yardstick()]
        began = time.thread_time()
        yield
        used_s = time.thread_time() - began - sum(self._samples_s[1:])
        self.slow[name] = max(1.0, mean(self._samples_s) / self.IDLE_S)
        self.used_s[name] = used_s / self.slow[name]
        self.blocked_s[name] = self._longest_s / self.slow[name]

    async def _watch(self) -> None:
        for number in count(1):
            before = time.thread_time()
            await trio.sleep(0.001)
            self._longest_s = max(self._longest_s, time.thread_time() - before)
            if number % self.EVERY == 0:
                self._samples_s.append(self._yardstick())

    def _yardstick(self) -> float:
        """As much of the interpreter and of memory as the steps touch."""
        began = time.thread_time()
        rows = {f"c{number}": [number, float(number), str(number)] for number in range(1_500)}
        for name, row in sorted(rows.items()):
            row.append(name)
        return time.thread_time() - began

    def check(self, **most_s: float) -> None:
        """Each step has taken at most so long, and never blocked the loop for 50 ms."""
        shown = f"{self.used_s}, {self.blocked_s}, {self.slow} times as slow as an idle machine"
        for name, limit_s in most_s.items():
            in_time(self.used_s, shown, **{name: limit_s})
            in_time(self.blocked_s, shown, **{name: 0.05})


class Wall:
    def __init__(self) -> None:
        self.at = HOUR - 600.0
        self.since = trio.current_time()

    def __call__(self) -> float:
        return self.at + trio.current_time() - self.since


async def published(storage: MemoryStorage, wanted: int) -> None:
    with trio.fail_after(60):
        while storage.statistics().tasks < wanted:  # noqa: ASYNC110 - it has no event for this
            await trio.sleep(0.005)


def test_the_texts_are_a_thousand_distinct_ones() -> None:
    assert len(TEXTS) == 1_000
    assert len(set(TEXTS)) == 901  # of which one is written a hundred times


@pytest.mark.battery
async def test_ten_thousand_entries_are_soon_there_and_fired() -> None:
    wall = Wall()
    clock = Clock(wall=wall)
    storage = MemoryStorage(clock)
    machine = Machine()
    async with machine.measuring(), open_dispatcher(storage, clock=clock, observers=()) as dispatcher:
        dispatcher.consumer.register_queue("q")
        async with machine.step("add"):
            for n in range(ENTRIES):
                zone = "Europe/Berlin" if n % 3 else "UTC"
                await dispatcher.cron.add_with_name(TEXTS[n % 1_000], f"c{n}", JOB(Job(n)), zone=zone)
        async with machine.step("fire"):
            wall.at += 600.0
            await published(storage, ENTRIES)
        assert all(task.total == 1 for task in await dispatcher.cron.tasks())
    machine.check(add=3.0, fire=2.0)


@pytest.mark.battery
async def test_ten_thousand_entries_are_loaded_by_a_second_process_and_fired_once() -> None:
    wall = Wall()
    clock = Clock(wall=wall)
    storage = MemoryStorage(clock)
    declared = [CronEntry(TEXTS[n % 1_000], f"c{n}", JOB(Job(n))) for n in range(ENTRIES)]
    machine = Machine()
    async with machine.measuring(), AsyncExitStack() as stack:
        async with machine.step("declare"):
            one = await stack.enter_async_context(
                open_dispatcher(storage, clock=clock, observers=(), cron=declared)
            )
        one.consumer.register_queue("q")
        await one.publisher.declare()
        async with machine.step("load"):
            other = await stack.enter_async_context(
                open_dispatcher(storage, clock=clock, observers=())
            )
        async with machine.step("fire"):
            wall.at += 600.0
            await published(storage, ENTRIES)
            await trio.sleep(6.0)
        assert storage.statistics().tasks == ENTRIES
        assert len(await other.cron.tasks()) == ENTRIES
    machine.check(declare=3.0, load=3.0, fire=4.0)  # fired by two


@pytest.mark.battery
async def test_ten_thousand_entries_that_wait_cost_next_to_nothing() -> None:
    clock = Clock(wall=Wall())
    declared = [CronEntry(TEXTS[200 + n % 800], f"c{n}", JOB(Job(n))) for n in range(ENTRIES)]
    async with open_dispatcher(MemoryStorage(clock), clock=clock, observers=(), cron=declared):
        await trio.sleep(1.0)
        began = time.process_time()
        await trio.sleep(20.0)
        used_s = time.process_time() - began
    in_time({"used_s": used_s}, used_s=0.01 * 20.0)


async def test_a_crowd_due_at_once_lets_other_trio_tasks_run_in_between(autojump_clock: object) -> None:
    storage = MemoryStorage(Clock(datetime(2026, 3, 2, 12, 0, 30, tzinfo=UTC)))
    stored: list[int] = []
    async with open_dispatcher(storage, observers=()) as dispatcher:
        dispatcher.consumer.register_queue("q")
        for n in range(500):
            await dispatcher.cron.add_with_name("* * * * *", f"c{n}", JOB(Job(n)))
        await trio.sleep(29.9999)
        while not stored or stored[-1] < 500:
            await trio.sleep(0.0)  # a turn of the loop, in which every trio task that can run does
            if not stored:
                await trio.sleep(0.0001)
            stored.append(storage.statistics().tasks)
    steps = sorted({each for each in stored if each})
    assert steps[-1] == 500
    # Twice as many, as trio goes through a turn in random order.
    assert max(after - before for before, after in pairwise([0, *steps])) <= 2 * AT_ONCE
    assert len(steps) >= 500 / (2 * AT_ONCE)
    assert sum((await storage.count(All())).values()) == 500
