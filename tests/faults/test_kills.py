"""Workers killed, stopped and asked to end (A1, A3, A4, A5), each also against bugs planted for it."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conclusive import in_time, noticed, was_tested

from .conftest import Tell
from .launch import figures_of, launched


def nothing_lost_or_done_twice(figures: dict[str, Any]) -> None:
    """What every scenario promises."""
    assert figures["lost"] == 0, "lost"
    assert figures["settled_twice"] == 0, "settled twice"
    assert figures["integrity"] == "ok"


# ---- A1: killed at random -------------------------------------------------------


def survived_the_kills(figures: dict[str, Any], kills: int) -> None:
    assert figures["lost"] == 0, "lost"
    # A run that was taken away and then believed is in the history even where nobody ran the task again.
    assert figures["broken"] == 0, "an invariant of the history is broken"
    nothing_lost_or_done_twice(figures)
    assert figures["unfinished"] == 0
    assert figures["succeeded"] == figures["tasks"]
    was_tested(figures["kills"] == kills, figures["redelivered"] > 0, figures["refused"] > 0)


@pytest.mark.parametrize(
    ("tasks", "kills", "seed"),
    [
        pytest.param(20_000, 40, 1, id="battery", marks=pytest.mark.battery),
        *(pytest.param(100_000, 200, seed, id=f"soak{seed}", marks=pytest.mark.soak) for seed in (2, 3)),
    ],
)
def test_killed_workers_lose_nothing_and_settle_nothing_twice(
    tasks: int, kills: int, seed: int, tmp_path: Path, tell: Tell
) -> None:
    limit_s = 120 + tasks / 100
    figures = figures_of(
        "killed_workers", tmp_path, limit_s, tasks=tasks, kills=kills, seed=seed, patience=limit_s / 2, prefetch=50
    )
    tell(figures)
    survived_the_kills(figures, kills)
    assert figures["tasks"] == tasks


@pytest.mark.battery
@pytest.mark.parametrize(
    ("plant", "sign", "patience"),
    [("no_fence", "an invariant of the history", 30.0), ("no_rescue", "lost", 3.0), ("forgotten_commits", "lost", 30.0)],
)
def test_the_killing_notices_a_planted_bug(
    plant: str, sign: str, patience: float, tmp_path: Path, tell: Tell
) -> None:
    figures = figures_of(
        "killed_workers",
        tmp_path,
        120,
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


# ---- A3: asked to end -----------------------------------------------------------


def ready(process: subprocess.Popen[str], runs: int) -> None:
    """Wait until it serves, and so many handlers have started."""
    assert process.stdout is not None
    with bounded(process, 20.0):
        assert process.stdout.readline() == "ready\n"
        for _ in range(runs):
            assert process.stdout.readline() == "started\n"


@contextmanager
def bounded(process: subprocess.Popen[str], limit_s: float) -> Iterator[None]:
    """Kill the process if the block takes longer, which ends a read from it."""
    timer = threading.Timer(limit_s, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def end(process: subprocess.Popen[str], limit_s: float) -> float:
    """Seconds until it has ended by itself, with status 0."""
    began = time.monotonic()
    _, err = process.communicate(timeout=limit_s)
    assert process.returncode == 0, err[-4_000:]
    return time.monotonic() - began


def left_behind(folder: Path) -> dict[str, Any]:
    """How the tasks stand in the file: by status, and those that could start at once."""
    with closing(sqlite3.connect(folder / "jobs.db")) as db:
        by_status = dict(db.execute("SELECT status, count(*) FROM dispatch_tasks GROUP BY status").fetchall())
        (given_back,) = db.execute(
            "SELECT count(*) FROM dispatch_tasks WHERE status = 'pending' AND attempt = 0 AND place = 1"
            " AND lease_until IS NULL AND available_at <= ?",
            (time.time(),),
        ).fetchone()
        return {"claimable": given_back, **by_status, "integrity": db.execute("PRAGMA integrity_check").fetchone()[0]}


def asked_to_end(folder: Path, numbers: list[signal.Signals], plant: str | None = None) -> dict[str, Any]:
    """Start a worker with 20 running handlers, send it signals, and look at what it left."""
    with launched("graceful", folder, plant=plant) as process:
        ready(process, 20)
        for number in numbers[:-1]:
            process.send_signal(number)
            time.sleep(0.3)  # two signals at one instant are one
        process.send_signal(numbers[-1])
        seconds = end(process, 20.0)
    return {"seconds": round(seconds, 2), "status": process.returncode, **left_behind(folder)}


def ended_gracefully(figures: dict[str, Any]) -> None:
    assert figures.get("running", 0) == 0, "left running"
    assert figures["succeeded"] == 10
    assert figures["pending"] == 10, "not handed back"
    assert figures["claimable"] == 10, "an attempt was not given back"
    assert figures["integrity"] == "ok"
    in_time(figures, seconds=3.0)


@pytest.mark.battery
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_asked_to_end_lets_finish_what_can_and_hands_back_the_rest(
    number: signal.Signals, tmp_path: Path, tell: Tell
) -> None:
    figures = asked_to_end(tmp_path, [number])
    tell(figures)
    ended_gracefully(figures)


@pytest.mark.battery
def test_a_second_signal_ends_a_worker_at_once(tmp_path: Path, tell: Tell) -> None:
    figures = asked_to_end(tmp_path, [signal.SIGTERM, signal.SIGTERM])
    tell(figures)
    assert figures["pending"] == figures["claimable"] == 20
    in_time(figures, seconds=1.0)


@pytest.mark.battery
@pytest.mark.parametrize(
    ("plant", "sign"),
    [("counted_hand_backs", "an attempt was not given back"), ("no_hand_backs", "left running")],
)
def test_the_asking_notices_a_planted_bug(plant: str, sign: str, tmp_path: Path, tell: Tell) -> None:
    figures = asked_to_end(tmp_path, [signal.SIGTERM], plant)
    tell(figures)
    with noticed(sign):
        ended_gracefully(figures)


@pytest.mark.battery
@pytest.mark.parametrize("after_s", [0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08])
def test_a_worker_asked_to_end_while_it_starts_leaves_every_task_to_the_next(
    after_s: float, tmp_path: Path, tell: Tell
) -> None:
    with launched("graceful", tmp_path) as process:  # the tasks, handed back
        ready(process, 20)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        end(process, 20.0)
    assert left_behind(tmp_path)["claimable"] == 20
    with launched("graceful", tmp_path, publish=0) as process:
        ready(process, 0)
        time.sleep(after_s)
        process.send_signal(signal.SIGTERM)
        seconds = end(process, 20.0)
    figures = {"seconds": round(seconds, 2), **left_behind(tmp_path)}
    tell(figures)
    assert figures.get("running", 0) == 0
    assert figures["pending"] == figures["claimable"]
    assert figures["pending"] + figures.get("succeeded", 0) == 20
    in_time(figures, seconds=3.0)


# ---- A4: stopped for a while ----------------------------------------------------


def the_zombie_was_refused(figures: dict[str, Any]) -> None:
    nothing_lost_or_done_twice(figures)
    assert figures["changed"] == []
    assert figures["by_the_other"] == figures["succeeded"] == figures["tasks"] == figures["redelivered"] == 20
    assert figures["said_refused"] == 20


@pytest.mark.battery
def test_a_worker_stopped_for_three_leases_settles_nothing_and_says_so(tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("stopped_worker", tmp_path, 60)
    tell(figures)
    the_zombie_was_refused(figures)


@pytest.mark.battery
def test_the_stopping_notices_a_planted_bug(tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("stopped_worker", tmp_path, 60, plant="no_fence")
    tell(figures)
    with noticed("settled twice"):
        the_zombie_was_refused(figures)


# ---- A5: at most once -----------------------------------------------------------


def nothing_ran_twice(figures: dict[str, Any]) -> None:
    nothing_lost_or_done_twice(figures)
    assert figures["ran_twice"] == 0, "ran twice"
    assert figures["interrupted"] == figures["say_so"] > 0, "a dead letter does not say why"
    assert figures["succeeded"] + figures["interrupted"] == figures["tasks"] == 200
    assert figures["redelivered"] == 0


@pytest.mark.battery
def test_what_may_run_once_at_most_is_dead_after_a_kill_and_says_why(tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("at_most_once", tmp_path, 100)
    tell(figures)
    nothing_ran_twice(figures)


@pytest.mark.battery
def test_the_once_at_most_notices_a_planted_bug(tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("at_most_once", tmp_path, 100, plant="interrupted_runs_again")
    tell(figures)
    with noticed("ran twice"):
        nothing_ran_twice(figures)
