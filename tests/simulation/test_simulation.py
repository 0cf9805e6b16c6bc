"""The simulation: honest runs pass, planted bugs are found, a seed is one run exactly."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from dispatch.clock import Clock
from dispatch.cron.dispatcher import CronTaskDispatcher
from dispatch.storage.protocol import Storage
from dispatch.storage.sqlite import SqliteStorage
from dispatch.testing import simulation
from dispatch.testing.history import HistoryFigures, figures
from dispatch.testing.simulation import Action, SimulationError, plan_of, play, shrink, simulate
from dispatch.upkeep import Upkeep
from tests.simulation.bugs import BUGS, Plant, nobody_rescues, replaced

WITHIN = 1_000
"""Seeds within which each planted bug must be found."""


@pytest.mark.parametrize(
    "seeds",
    [range(10), *(pytest.param(range(start, start + 10), marks=pytest.mark.battery) for start in range(10, 50, 10))],
    ids=str,
)
def test_every_promise_is_kept(seeds: range) -> None:
    runs = [simulate(seed, length=25) for seed in seeds]
    assert all(run.runs >= run.published for run in runs)
    assert sum(run.redelivered for run in runs) > 10
    assert sum(run.rescued for run in runs) > 0


def jumping(seed: int) -> HistoryFigures:
    """A play of long runs in which nothing is wrong but the clock."""
    dice = random.Random(seed)
    plan = [
        Action(dice.uniform(0, 200), "publish", number % 3, [task(str(number), "sleep 25")])
        for number in range(12)
    ]
    plan += [Action(dice.uniform(0, 200), "jump", None, dice.choice((3_600.0, -600.0))) for _ in range(12)]
    return figures(play(sorted(plan, key=lambda action: action.at), seed))


JUMPING = range(5, 9)


def test_a_clock_that_jumps_costs_no_living_worker_its_lease() -> None:
    runs = [jumping(seed) for seed in JUMPING]
    assert sum(run.redelivered + run.rescued for run in runs) == 0


def test_a_jump_that_nobody_notices_costs_leases() -> None:
    with replaced(Upkeep, "_clock_jumped", lambda real: lambda self: False):
        assert sum(jumping(seed).rescued for seed in JUMPING) > 0


@pytest.mark.battery
@pytest.mark.parametrize("seeds", [range(start, start + 50) for start in range(50, 550, 50)], ids=str)
def test_every_promise_is_kept_for_longer(seeds: range) -> None:
    for seed in seeds:
        simulate(seed)


@pytest.mark.soak
@pytest.mark.parametrize("start", range(1_000, 11_000, 100))
def test_every_promise_is_kept_for_long(start: int) -> None:
    for seed in range(start, start + 100):
        simulate(seed, length=60)


@asynccontextmanager
async def a_file(clock: Clock, folder: Path) -> AsyncGenerator[Storage]:
    path = folder / f"{uuid4()}.db"  # a failing seed is played again and again
    async with SqliteStorage(path, synchronous="normal", clock=clock, inline=True) as storage:
        yield storage


@pytest.mark.parametrize("seed", range(5))
def test_every_promise_is_kept_on_sqlite(seed: int, tmp_path: Path) -> None:
    simulate(seed, length=20, open_storage=lambda clock: a_file(clock, tmp_path))


@pytest.mark.battery
@pytest.mark.parametrize("start", range(5, 55, 10))
def test_every_promise_is_kept_on_sqlite_for_longer(start: int, tmp_path: Path) -> None:
    for seed in range(start, start + 10):
        simulate(seed, open_storage=lambda clock: a_file(clock, tmp_path))


def test_a_seed_is_one_run_exactly() -> None:
    first, second = (play(plan_of(7), 7) for _ in range(2))
    assert first == second
    assert play(plan_of(8), 8) != first


@pytest.mark.battery
def test_a_seed_is_the_same_run_in_another_process() -> None:
    told = [
        subprocess.run(  # noqa: S603 - our own lines
            [sys.executable, "-c", TOLD],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=60.0,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert told[0] == told[1]
    assert len(set(told[0].splitlines())) > 500


TOLD = """
from dispatch.testing.simulation import plan_of, play
for seed in (100, 101):
    for event in play(plan_of(seed), seed):
        print(seed, event.task, event)
"""


@pytest.mark.battery
@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(
    plant: Plant, record_property: Callable[[str, object], None]
) -> None:
    with plant():
        for seed in range(WITHIN):
            try:
                play(plan_of(seed), seed)
            except Exception:  # noqa: BLE001 - found, however it shows
                record_property("found at seed", seed)
                return
    pytest.fail(f"{WITHIN} seeds did not find: {plant.__doc__}")


def test_something_that_spins_is_told_from_something_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "STEPS_LIMIT", 3_000)

    async def spin(self: object) -> None:
        while True:
            await trio.lowlevel.checkpoint()

    monkeypatch.setattr(CronTaskDispatcher, "_round", spin)
    with pytest.raises(AssertionError, match="something spins"):
        play([], 1)


@pytest.mark.battery
def test_a_failing_seed_is_told_as_a_short_story(monkeypatch: pytest.MonkeyPatch) -> None:
    def search() -> None:
        for seed in range(WITHIN):
            simulate(seed, length=10)

    monkeypatch.setattr(simulation, "PATIENCE_S", 300.0)
    with nobody_rescues(), pytest.raises(SimulationError) as raised:
        search()
    first, *story, last = str(raised.value).splitlines()
    assert first == f"seed {raised.value.seed} fails with {len(story)} actions:"
    assert 2 <= len(story) <= 3
    assert all(re.match(r" +\d+\.\d{3} s  process \d", line) for line in story)
    assert "still not ended" in last


@pytest.mark.battery
def test_what_does_not_matter_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "PATIENCE_S", 300.0)
    plan = [
        Action(1.0, "publish", 0, [task("a", "sleep 25", delay=0.5), task("b", "fail", "ok")]),
        Action(2.0, "publish", 1, [task("c", "ok")]),
        Action(3.0, "crash", 0, 1.0),
        Action(3.0, "crash", 1, 1.0),
        Action(3.0, "crash", 2, 1.0),
        Action(90.0, "rerun"),
    ]
    ids: list[list[object]] = []
    for seed in range(1, 5):
        with nobody_rescues():
            shorter = shrink(plan, seed)
            with pytest.raises(AssertionError):
                play(shorter, seed)
        assert [action.what for action in shorter] == ["publish", "crash"]
        ids.append([each["id"] for each in shorter[0].how])
        play(shorter, seed)
    # Without "b" another process may claim "a", by the seed's scheduling, and survive the crash.
    assert min(ids) == ["a"]
    assert max(ids) in (["a"], ["a", "b"])


def task(id_: str, *script: str, **options: float) -> dict[str, object]:
    return {"id": id_, "queue": "plain", "script": script, **options}


def test_every_action_of_a_plan_can_be_told() -> None:
    told = [str(action) for seed in range(40) for action in plan_of(seed)]
    assert all(re.match(r" +\d+\.\d{3} s  \w", line) for line in told)
    assert any("the wall clock jumps by" in line for line in told)
