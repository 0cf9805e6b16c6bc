"""A full disk and a lock held by another process (D1, D2), each also against bugs planted for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conclusive import in_time, noticed, was_tested

from .conftest import Tell
from .launch import figures_of

pytestmark = pytest.mark.battery


# ---- D1: the disk is full -------------------------------------------------------

MESSAGES = {"limit": "jobs.db: disk I/O error", "pages": "jobs.db: database or disk is full"}


def nothing_was_lost_on_a_full_disk(figures: dict[str, Any]) -> None:
    assert figures["lost"] == 0, "lost"
    assert figures["settled_twice"] == 0
    assert figures["redelivered"] == 0, "run again"
    assert figures["integrity"] == "ok"
    assert figures["refused"] == 5
    assert figures["message"].startswith("[1021] ")
    assert MESSAGES[figures["how"]] in figures["message"]
    assert figures["stored_though_refused"] == 0
    assert figures["ran"] == figures["succeeded"] == figures["tasks"]
    assert figures["finished_while_full"] <= figures["settled_while_full"] + figures["held_while_full"], "dropped"
    assert figures["finished_while_full"] <= 10 + figures["claimed_while_full"], "begun without a claim"
    assert 1 < figures["turns_while_full"] < 20 + figures["settled_while_full"], "it spins"


@pytest.mark.parametrize("how", MESSAGES)
def test_a_full_disk_refuses_publishes_and_delays_outcomes(how: str, tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("disk_full", tmp_path, 60, how=how)
    tell(figures)
    nothing_was_lost_on_a_full_disk(figures)
    was_tested(figures["settled_while_full"] == 0)  # else there was room for an outcome, which needs less
    assert figures["finished_while_full"] == 10


def test_a_disk_with_room_for_outcomes_alone_lets_what_is_stored_run(tmp_path: Path, tell: Tell) -> None:
    # What is published needs pages of its own, an outcome the rest of one; where claims fit as well, turns
    # go on, and leave behind only what is set apart to be settled one by one.
    figures = figures_of("disk_full", tmp_path, 60, how="pages", room=40, headers=4)
    tell(figures)
    nothing_was_lost_on_a_full_disk(figures)
    was_tested(figures["settled_while_full"] > 0, figures["claimed_while_full"] > 0)
    assert figures["finished_while_full"] > 10


def test_the_full_disk_notices_a_planted_bug(tmp_path: Path) -> None:
    # Their tasks stay with a worker that believes them settled, so that the drain never ends.
    with noticed("TooSlowError"):
        figures_of("disk_full", tmp_path, 60, how="pages", plant="dropped_outcomes")


# ---- D2: the lock is held -------------------------------------------------------


def the_lock_was_waited_for(figures: dict[str, Any]) -> None:
    assert figures["handler_errors"] == 0
    assert figures["lost"] == 0
    assert figures["settled_twice"] == figures["redelivered"] == 0
    assert figures["integrity"] == "ok"
    assert figures["succeeded"] == figures["tasks"]
    assert figures["turns_meanwhile"] < 10, "it spins"
    in_time(figures, "it spins", cpu_s=1.0)


def test_a_lock_held_for_a_while_is_waited_for(tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("locked", tmp_path, 60, hold=3.0)
    tell(figures)
    assert figures["publish_error"] == "", "a publish did not wait"
    the_lock_was_waited_for(figures)
    was_tested(figures["publish_waited_s"] > 2.5)
    in_time(figures, publish_waited_s=4.0)


def test_a_lock_held_too_long_is_said_to_who_publishes_and_waited_for_by_workers(
    tmp_path: Path, tell: Tell
) -> None:
    figures = figures_of("locked", tmp_path, 60, hold=12.0)
    tell(figures)
    the_lock_was_waited_for(figures)
    assert "database is locked; somebody held the write lock for 5 s" in figures["publish_error"]
    in_time(figures, publish_waited_s=11.0)  # a transaction under way when it came, and its own


@pytest.mark.parametrize("plant", ["impatient", "deferred_begin"])
def test_the_holding_notices_a_planted_bug(plant: str, tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("locked", tmp_path, 60, hold=3.0, plant=plant)
    tell(figures)
    assert "database is locked" in figures["publish_error"]
    in_time(figures, publish_waited_s=1.0)
