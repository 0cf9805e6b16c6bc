"""A wall clock that jumps, stands still and talks nonsense, in virtual time."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest
import trio

from dispatch import Clock, CronEntry, Dispatcher, MemoryStorage, QueueTask, open_dispatcher
from dispatch.cron.policy import CronOptions
from dispatch.cron.spec import jitter_s
from dispatch.records import TaskRecord, from_seconds
from dispatch.storage.protocol import CronRecord, PutAnswer
from dispatch.storage.query import All, Crons
from dispatch.testing.faults import FaultyStorage

from .work import JOB, Job, nothing, working

FAIL_AFTER_S = 1_000_000.0
NOON = datetime(2026, 3, 2, 12, 0, 0, 250_000, tzinfo=UTC).timestamp()
HOUR_S = 3_600.0
YEARS_5_S = 5 * 366 * 86_400.0


class Wall:
    """A wall clock that goes with trio's, and can be set."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self.instead: float | None = None
        self.clock = Clock(wall=self)

    def __call__(self) -> float:
        return self.right() + self.ahead_s if self.instead is None else self.instead

    def right(self) -> float:
        return NOON + trio.current_time()


class Watched:
    """A dispatcher with one stored entry and one function, both of one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.wall = Wall()
        self.storage = MemoryStorage(self.wall.clock, keep_finished=100_000)
        self.ran: list[float] = []
        """The wall time at each run of the function."""

    async def function(self) -> None:
        self.ran.append(self.wall())

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Dispatcher]:
        options = {"storage": self.storage, "clock": self.wall.clock}
        async with working(nothing, **options) as dispatcher:
            await dispatcher.cron.add_with_name(self.text, "stored", JOB(Job()))
            await dispatcher.cron.add_with_name(self.text, "function", self.function)
            yield dispatcher

    async def slots(self) -> list[float]:
        return [record.slot for record in await self.records() if record.slot is not None]

    async def records(self) -> list[TaskRecord]:
        return (await self.storage.find(All(), limit=10_000)).records

    async def fired_within(self, seconds: float) -> tuple[list[float], list[float]]:
        """The slots published, and the function's runs, of the next so many seconds."""
        slots, ran = len(await self.slots()), len(self.ran)
        await trio.sleep(seconds)
        return (await self.slots())[slots:], self.ran[ran:]


def rising(moments: list[float]) -> bool:
    return all(one < two for one, two in pairwise(moments))


async def test_a_clock_set_back_and_forth_fires_every_slot_at_most_once_and_in_order(
    autojump_clock: object,
) -> None:
    watched = Watched("* * * * * *")
    wall = watched.wall
    async with watched.serving():
        slots, ran = await watched.fired_within(10)
        assert (len(slots), len(ran)) == (10, 10)
        for _ in range(20):
            wall.ahead_s -= 3.0
            await trio.sleep(1.5)
        # Behind what was decided already: silent until the clock has caught up.
        slots, ran = await watched.fired_within(60)
        assert 28 <= len(slots) <= 31
        assert len(ran) == len(slots)

        wall.ahead_s -= 2 * HOUR_S
        assert await watched.fired_within(2 * HOUR_S - 5) == ([], [])
        slots, ran = await watched.fired_within(10)
        assert 4 <= len(slots) == len(ran) <= 6

        for jump_s in (HOUR_S, 8 * HOUR_S):
            wall.ahead_s += jump_s
            slots, ran = await watched.fired_within(5)
            skipped = [two - one for one, two in pairwise(slots)]
            assert len(slots) == len(ran) == 5
            assert slots[0] > wall() - 6  # one coalesced tick for all that were leapt over
            assert set(skipped) == {1.0}
        assert rising(await watched.slots())
        assert rising(watched.ran)


@pytest.mark.parametrize(
    ("text", "period_s"), [("* * * * * *", 1), ("* * * * *", 60), ("*/30 * * * *", 1_800)]
)
async def test_five_years_ahead_for_ten_seconds_and_back(
    autojump_clock: object, text: str, period_s: int, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(text)
    wall = watched.wall
    async with watched.serving() as dispatcher:
        await trio.sleep(63)  # the loops look every 5 s: not just now, so that each jump is met within them
        before = await watched.slots()
        wall.ahead_s = YEARS_5_S
        slots, ran = await watched.fired_within(10)
        assert len(slots) == len(ran) >= 1
        assert all(slot > NOON + YEARS_5_S - 86_400 for slot in slots)
        wall.ahead_s = 0.0
        await trio.sleep(5)  # one slice
        assert caplog.text.count("lies in the future; the clock was wrong. Starting from now") == 2
        for name in ("stored", "function"):
            task = await dispatcher.cron.get_task(name)
            assert task.next is not None
            assert task.next.timestamp() - wall() <= period_s
        slots, ran = await watched.fired_within(period_s + 100)
        assert len(slots) == len(ran) >= 1
        assert rising(before + slots)
        assert all(slot <= wall() for slot in slots)


@pytest.mark.parametrize("nonsense", [0.0, 86_400.0, -1.0, -1e12, 1e12, 1e300, math.inf])
async def test_a_moment_of_nonsense_repeats_and_loses_nothing(
    autojump_clock: object, nonsense: float
) -> None:
    watched = Watched("* * * * * *")
    wall = watched.wall
    async with watched.serving():
        await trio.sleep(30)
        wall.instead = nonsense
        await trio.sleep(12)
        assert not [slot for slot in await watched.slots() if slot > NOON + 42]
        wall.instead = None
        await trio.sleep(5)
        slots, ran = await watched.fired_within(10)
        assert (len(slots), len(ran)) == (10, 10)
        real = [slot for slot in await watched.slots() if slot > NOON]
        assert rising(real)
        runs = [moment for moment in watched.ran if moment > NOON]
        assert rising(runs)
        assert len(real) == len(runs) >= 40


async def test_a_suspended_machine_wakes_to_one_coalesced_run(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched("* * * * *")
    async with watched.serving():
        await trio.sleep(90)
        watched.wall.ahead_s += 9 * HOUR_S  # trio's clock stood still meanwhile
        slots, ran = await watched.fired_within(5)
        assert (len(slots), len(ran)) == (1, 1)
        assert "cron task stored: ticks were missed; running 1" in caplog.text
        assert "cron: the wall clock jumped by +32400.0 s" in caplog.text
        slots, _ = await watched.fired_within(60)
        assert len(slots) == 1


async def test_a_clock_that_stands_still_fires_nothing_twice(autojump_clock: object) -> None:
    watched = Watched("* * * * * *")
    async with watched.serving():
        await trio.sleep(10)
        watched.wall.instead = watched.wall()
        slots, ran = await watched.fired_within(600)
        assert slots == ran == []
        watched.wall.instead = None
        slots, ran = await watched.fired_within(6)
        assert len(slots) == len(ran) == 6 or len(slots) == len(ran) == 7
        assert rising(await watched.slots())


async def test_a_jump_over_a_change_of_clocks_is_made_up_once(autojump_clock: object) -> None:
    watched = Watched("CRON_TZ=Europe/Berlin 30 2 * * *")
    watched.wall.ahead_s = datetime(2026, 3, 29, 0, 30, tzinfo=UTC).timestamp() - NOON
    async with watched.serving():
        watched.wall.ahead_s += HOUR_S  # 02:30 is skipped that night, and so were its minutes
        slots, ran = await watched.fired_within(5)
        assert slots == [datetime(2026, 3, 29, 1, 0, tzinfo=UTC).timestamp()]
        assert len(ran) == 1
        assert await watched.fired_within(3 * HOUR_S) == ([], [])


async def test_a_process_started_after_the_clock_was_put_right_fires_again(autojump_clock: object) -> None:
    watched = Watched("* * * * *")
    watched.wall.ahead_s = YEARS_5_S
    async with watched.serving() as dispatcher:
        await trio.sleep(90)
        assert (await dispatcher.cron.get_task("stored")).total == 1
    watched.wall.ahead_s = 0.0
    async with working(nothing, storage=watched.storage, clock=watched.wall.clock) as dispatcher:
        await trio.sleep(65)
        task = await dispatcher.cron.get_task("stored")
        assert task.total == 2
        assert task.last is not None
        assert task.last.timestamp() <= watched.wall()


async def test_an_every_that_was_added_while_the_clock_was_ahead_goes_on_from_now(autojump_clock: object) -> None:
    wall = Wall()
    storage = MemoryStorage(wall.clock)
    ran: list[float] = []

    async def function() -> None:
        ran.append(wall())

    async def fired_within(seconds: float) -> list[int]:
        before = [(await dispatcher.cron.get_task(name)).total for name in ("declared", "stored", "function")]
        await trio.sleep(seconds)
        after = [(await dispatcher.cron.get_task(name)).total for name in ("declared", "stored", "function")]
        return [total - known for total, known in zip(after, before, strict=True)]

    declared = [CronEntry("@every 10m", "declared", JOB(Job()))]
    wall.ahead_s = 10 * HOUR_S
    async with working(nothing, storage=storage, clock=wall.clock, cron=declared) as dispatcher:
        await dispatcher.cron.add_with_name("@every 10m", "stored", JOB(Job()))
        await dispatcher.cron.add_with_name("@every 10m", "function", function)
        assert await fired_within(1_000) == [1, 1, 1]
        wall.ahead_s = 0.0
        await trio.sleep(10)
        assert await fired_within(6_000) == [10, 10, 10]
        await dispatcher.cron.add_with_name("@every 10m", "stored", JOB(Job(1)), replace=True)
        await dispatcher.cron.add_with_name("@every 10m", "function", function, replace=True)
        assert await fired_within(6_000) == [10, 10, 10]
    assert rising(ran[1:])
    assert {round((later - ran[0]) % 600, 3) for later in ran} == {0.0}, "nothing has shifted"
    async with working(nothing, storage=storage, clock=wall.clock, cron=declared) as dispatcher:
        await dispatcher.cron.add_with_name("@every 10m", "function", function)
        await trio.sleep(10)
        assert await fired_within(6_000) == [10, 10, 10]


async def test_a_run_starts_at_its_tick_and_its_jitter_even_if_it_is_decided_late(autojump_clock: object) -> None:
    wall = Wall()
    storage = MemoryStorage(wall.clock)
    ran: dict[str, list[float]] = {"stored": [], "function": []}

    async def function() -> None:
        ran["function"].append(wall())

    async def handler(task: QueueTask[Job]) -> None:
        ran["stored"].append(wall())

    async with working(handler, storage=storage, clock=wall.clock) as dispatcher:
        add = dispatcher.cron.add_with_name
        await add("* * * * *", "stored", JOB(Job()), jitter=50.0)
        await add("* * * * *", "function", function, jitter=50.0)
        await trio.sleep(118)
        wall.ahead_s = 4.0  # over a tick, which is decided two seconds or more after its moment
        await trio.sleep(110)
    for name, moments in ran.items():
        assert len(moments) == 3
        for moment in moments:
            slot = moment // 60 * 60  # a jitter of 50 s stays in its minute
            assert moment - slot == pytest.approx(jitter_s(name, from_seconds(slot), 50.0), abs=0.01)


async def test_an_entry_without_any_grace_fires(autojump_clock: object) -> None:
    ran: list[str] = []

    async def run(name: str) -> None:
        ran.append(name)

    # A wall clock that is a little faster than trio's: each tick is decided after its moment.
    clock = Clock(wall=lambda: NOON + 1.001 * trio.current_time())
    storage = MemoryStorage(clock, keep_finished=100)
    async with working(nothing, storage=storage, clock=clock) as dispatcher:
        for name, options in {
            "skip": CronOptions(misfire="skip", misfire_grace=0.0),
            "all": CronOptions(misfire="all", misfire_window=0.0),
        }.items():
            await dispatcher.cron.add_with_name("* * * * * *", name, partial(run, name), **options)
            await dispatcher.cron.add_with_name("* * * * * *", f"stored-{name}", JOB(Job()), **options)
        await trio.sleep(4)
        ran += [record.cron or "" for record in (await storage.find(All())).records]
        assert {name: ran.count(name) for name in ran} == dict.fromkeys(("skip", "all", "stored-skip", "stored-all"), 4)


async def test_a_clock_set_back_for_a_while_decides_nothing_again_when_it_is_put_right(
    autojump_clock: object,
) -> None:
    watched = Watched("*/10 * * * *")
    async with watched.serving():
        await trio.sleep(3 * HOUR_S)
        watched.wall.ahead_s = -4 * HOUR_S
        await trio.sleep(90 * 60)
        before = len(watched.ran)
        watched.wall.ahead_s = 0.0
        await trio.sleep(12 * 60)
        # One for what was missed meanwhile, by the right clock, and those since.
        assert len(watched.ran) - before <= 3
        assert min(watched.ran[before:]) > NOON + 4 * HOUR_S
    slots = await watched.slots()
    assert len(slots) == len(set(slots))


@pytest.mark.parametrize(
    "ahead_h", [2, *(pytest.param(hours, marks=pytest.mark.battery) for hours in (5, 30))]
)
async def test_a_clock_that_was_ahead_and_is_put_right_silences_nothing_later(
    ahead_h: int, autojump_clock: object
) -> None:
    watched = Watched("*/10 * * * *")
    watched.wall.ahead_s = ahead_h * HOUR_S
    async with watched.serving():
        await trio.sleep(20 * 60)
        watched.wall.ahead_s = 0.0
        if ahead_h <= 3:  # as after a change of clocks: what was decided is not decided again
            await trio.sleep(ahead_h * HOUR_S)
        else:
            await trio.sleep(10 * 60)
        for _ in range(40):
            ran = len(watched.ran)
            await trio.sleep(HOUR_S)
            assert len(watched.ran) - ran in (5, 6)
    slots = await watched.slots()
    assert len(slots) == len(set(slots))


@pytest.mark.parametrize("why", ["the storage was away", "its queue was not known"])
async def test_what_could_not_be_fired_while_the_clock_was_ahead_goes_on_once_it_is_put_right(
    why: str, autojump_clock: object
) -> None:
    wall = Wall()
    storage = FaultyStorage(MemoryStorage(wall.clock))
    declared = [CronEntry("0 * * * *", "a", JOB(Job()))]
    async with open_dispatcher(storage, clock=wall.clock, cron=declared) as dispatcher:
        if why == "the storage was away":
            dispatcher.consumer.register_queue("q")
        await trio.sleep(10)
        wall.ahead_s = 48 * HOUR_S
        storage.down = why == "the storage was away"
        await trio.sleep(20)
        wall.ahead_s = 0.0
        await trio.sleep(20)
        storage.down = False
        if why != "the storage was away":
            dispatcher.consumer.register_queue("q")
        await trio.sleep(3 * HOUR_S)
        slots = [record.slot for record in (await storage.find(Crons("a"))).records]
    noon = NOON - 0.25
    assert slots == [noon + HOUR_S, noon + 2 * HOUR_S, noon + 3 * HOUR_S]


class Slow(MemoryStorage):
    """It stores an entry some milliseconds after it was asked to, as a database does."""

    async def put_cron(self, entry: CronRecord, *, replace: bool = False) -> PutAnswer:
        await trio.sleep(0.003)
        return await super().put_cron(entry, replace=replace)


@pytest.mark.parametrize("misfire", ["latest", "all", "skip"])
async def test_what_a_storage_needs_to_add_an_entry_is_no_tick(
    misfire: Literal["latest", "all", "skip"], autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Slow()
    async with working(nothing, storage=storage) as dispatcher:
        added = await dispatcher.cron.add_with_name("@every 2s", "c", JOB(Job()), misfire=misfire)
        assert added.spec is not None
        planned = added.spec.preview(3, after=from_seconds(storage.now()))
        await trio.sleep(7)
        records = (await storage.find(All())).records
    assert [from_seconds(record.slot or 0.0) for record in records] == planned
    assert [record for record in caplog.records if record.name == "dispatch.cron"] == []


async def test_ticks_are_counted_from_the_moment_an_entry_was_added_by_the_real_clock(tmp_path: Path) -> None:
    async with open_dispatcher(f"sqlite:///{tmp_path / 'jobs.db'}") as dispatcher:
        dispatcher.consumer.register_queue("q")
        dispatcher.consumer.register_handler(JOB, nothing)
        names = [f"c{n}" for n in range(8)]
        for name in names:
            await dispatcher.cron.add_with_name("@every 1s", name, JOB(Job()), misfire="all")
        await trio.sleep(1.5)
        counted = [(await dispatcher.storage.count(Crons(name))).get((), 0) for name in names]
    assert counted == [1] * 8
