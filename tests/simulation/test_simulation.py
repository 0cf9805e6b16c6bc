"""The simulation: honest runs pass, planted bugs are found, a seed is one run exactly."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from dispatch.clock import Clock
from dispatch.storage.protocol import Storage
from dispatch.storage.sqlite import SqliteStorage
from dispatch.testing.simulation import Action, SimulationError, plan_of, play, shrink, simulate
from tests.simulation.bugs import BUGS, Plant, nobody_rescues

WITHIN = 1_000
"""Seeds within which each planted bug must be found."""


@pytest.mark.parametrize("seeds", [range(start, start + 10) for start in range(0, 50, 10)], ids=str)
def test_every_promise_is_kept(seeds: range) -> None:
    runs = [simulate(seed, length=25) for seed in seeds]
    assert all(run.runs >= run.published for run in runs)
    assert sum(run.redelivered for run in runs) > 10
    assert sum(run.rescued for run in runs) > 0


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
@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(plant: Plant) -> None:
    with plant():
        for seed in range(WITHIN):
            try:
                play(plan_of(seed), seed)
            except Exception:  # noqa: BLE001 - found, however it shows
                return
    pytest.fail(f"{WITHIN} seeds did not find: {plant.__doc__}")


def test_a_failing_seed_is_told_as_a_short_story() -> None:
    def search() -> None:
        for seed in range(WITHIN):
            simulate(seed, length=20)

    with nobody_rescues(), pytest.raises(SimulationError) as raised:
        search()
    assert len(raised.value.plan) <= 4
    assert re.search(r"crash|freeze|fault", str(raised.value))
    assert "still not ended" in str(raised.value)


def test_what_does_not_matter_is_left_out() -> None:
    plan = [
        Action(1.0, "publish", 0, [{"queue": "plain", "script": ("sleep 25",)}]),
        Action(2.0, "publish", 1, [{"queue": "plain", "script": ("ok",)}]),
        Action(3.0, "crash", 0, 1.0),
        Action(3.0, "crash", 1, 1.0),
        Action(3.0, "crash", 2, 1.0),
        Action(90.0, "rerun", 0),
    ]
    with nobody_rescues():
        shorter = shrink(plan, 1)
        assert len(shorter) < len(plan)
        with pytest.raises(AssertionError):
            play(shorter, 1)
    play(shorter, 1)
