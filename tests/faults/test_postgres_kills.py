"""Workers of one PostgreSQL database killed and stopped (A2, A4, A5, D7), each also against bugs planted for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conclusive import noticed

from .conftest import Tell
from .launch import figures_of
from .test_cron_processes import every_tick_once
from .test_kills import nothing_ran_twice, survived_the_kills, the_zombie_was_refused

# ---- A2: killed at random -------------------------------------------------------


@pytest.mark.parametrize(
    ("tasks", "kills", "seed"),
    [
        pytest.param(10_000, 40, 1, id="battery", marks=pytest.mark.battery),
        *(pytest.param(20_000, 40, seed, id=f"soak{seed}", marks=pytest.mark.soak) for seed in (2, 3)),
        pytest.param(100_000, 400, 4, id="soak, longer", marks=pytest.mark.soak),
    ],
)
def test_killed_workers_of_a_fleet_lose_nothing_and_settle_nothing_twice(
    tasks: int, kills: int, seed: int, store: str, tmp_path: Path, tell: Tell
) -> None:
    limit_s = 120 + tasks / 50
    figures = figures_of(
        "killed_workers",
        tmp_path,
        limit_s,
        store=store,
        tasks=tasks,
        kills=kills,
        seed=seed,
        patience=limit_s / 2,
        sleep=0.16,  # so that the kills are over before the tasks, on quick machines, too
        prefetch=50,
    )
    tell(figures)
    survived_the_kills(figures, kills)
    assert figures["tasks"] == tasks


@pytest.mark.battery
@pytest.mark.parametrize(
    ("plant", "sign", "patience"),
    [("no_fence", "an invariant of the history", 30.0), ("no_rescue", "lost", 3.0), ("forgotten_commits", "lost", 10.0)],
)
def test_the_killing_of_a_fleet_notices_a_planted_bug(
    plant: str, sign: str, patience: float, store: str, tmp_path: Path, tell: Tell
) -> None:
    figures = figures_of(
        "killed_workers",
        tmp_path,
        120,
        store=store,
        tasks=2_000,
        kills=8,
        patience=patience,
        sleep=0.1,
        every=40,
        plant=plant,
    )
    tell(figures)
    with noticed(sign):
        survived_the_kills(figures, 10)


# ---- A4: stopped for a while ----------------------------------------------------


@pytest.mark.battery
def test_a_worker_of_a_fleet_stopped_for_three_leases_settles_nothing_and_says_so(
    store: str, tmp_path: Path, tell: Tell
) -> None:
    figures = figures_of("stopped_worker", tmp_path, 60, store=store)
    tell(figures)
    the_zombie_was_refused(figures)


@pytest.mark.battery
def test_the_stopping_on_postgres_notices_a_planted_bug(store: str, tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("stopped_worker", tmp_path, 60, store=store, plant="no_fence")
    tell(figures)
    with noticed("settled twice"):
        the_zombie_was_refused(figures)


# ---- A5: at most once -----------------------------------------------------------


@pytest.mark.battery
def test_what_may_run_once_at_most_is_dead_after_a_kill_in_a_fleet(
    store: str, tmp_path: Path, tell: Tell
) -> None:
    figures = figures_of("at_most_once", tmp_path, 100, store=store)
    tell(figures)
    nothing_ran_twice(figures)


@pytest.mark.battery
def test_the_once_at_most_on_postgres_notices_a_planted_bug(store: str, tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("at_most_once", tmp_path, 100, store=store, plant="interrupted_runs_again")
    tell(figures)
    with noticed("ran twice"):
        nothing_ran_twice(figures)


# ---- D7: cron over several processes --------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "every", "seed"),
    [
        pytest.param(12, 1.0, 1, id="battery", marks=pytest.mark.battery),
        pytest.param(60, 3.0, 2, id="soak", marks=pytest.mark.soak),
    ],
)
def test_every_tick_of_a_fleet_happens_once_whichever_processes_are_killed(
    seconds: int, every: float, seed: int, store: str, tmp_path: Path, tell: Tell
) -> None:
    figures = figures_of(
        "cron_processes", tmp_path, seconds + 60, store=store, seconds=seconds, every=every, seed=seed
    )
    tell(figures)
    every_tick_once(figures)


@pytest.mark.battery
@pytest.mark.parametrize(
    ("plant", "sign"), [("ticks_for_all", "doubled"), ("ticks_nowhere", "missing")]
)
def test_the_killing_of_cron_processes_on_postgres_notices_a_planted_bug(
    plant: str, sign: str, store: str, tmp_path: Path, tell: Tell
) -> None:
    figures = figures_of("cron_processes", tmp_path, 60, store=store, seconds=4, every=1.0, plant=plant)
    tell(figures)
    with noticed(sign):
        every_tick_once(figures)
