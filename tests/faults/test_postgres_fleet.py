"""A fleet on one database: what reaches all of its processes; also against planted bugs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conclusive import in_time, noticed, was_tested

from .conftest import Tell
from .launch import figures_of

pytestmark = pytest.mark.battery


def woken_at_once(figures: dict[str, Any]) -> None:
    assert figures["woken"] == 60
    in_time(figures, "woken late", p50_ms=50.0)
    in_time(figures, "a publisher that leaves wakes nobody", slowest_after_leaving_ms=500.0)


def test_an_idle_worker_is_woken_by_publishers_of_other_processes(
    store: str, tmp_path: Path, tell: Tell
) -> None:
    figures = figures_of("fleet", tmp_path, 90, store=store, what="wake")
    tell(figures)
    woken_at_once(figures)


def the_operator_is_heard(figures: dict[str, Any]) -> None:
    assert figures["known"], "the registry knows who works, on what, and where"
    assert figures["claimed_while_paused"] == 0, "a pause is not obeyed"
    assert figures["narrowed"] == 2
    assert figures["fastest_when_narrowed"] <= 44, "a lower concurrency is not obeyed"
    was_tested(figures["claimed_before"] > 20, figures["fastest_when_narrowed"] > 10)
    in_time(figures, back_after_s=1.0)


def test_pause_resume_and_concurrency_reach_every_process(store: str, tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("fleet", tmp_path, 90, store=store, what="control")
    tell(figures)
    the_operator_is_heard(figures)


def all_were_cancelled(figures: dict[str, Any]) -> None:
    assert figures["asked"] == 20
    assert figures["cancelled"] == 20, "not cancelled"
    assert figures["by"] == 2
    in_time(figures, "cancelled late", last_after_s=1.0)


def test_a_cancel_reaches_running_tasks_in_every_process(store: str, tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("fleet", tmp_path, 90, store=store, what="cancel")
    tell(figures)
    all_were_cancelled(figures)


def never_more_than_seven(figures: dict[str, Any]) -> None:
    assert figures["workers"] == 3
    assert figures["most_at_once"] == 7, "too many at once"
    assert figures["lost"] == figures["settled_twice"] == figures["redelivered"] == 0


def test_a_limit_over_all_processes_is_exact(store: str, tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("fleet", tmp_path, 90, store=store, what="limit")
    tell(figures)
    never_more_than_seven(figures)
    was_tested(figures["of_what_is_allowed"] >= 0.25)


def never_faster_than_allowed(figures: dict[str, Any]) -> None:
    assert figures["workers"] == 3
    assert figures["most_in_a_second"] <= 2 * 40, "too many in a second"
    assert figures["of_what_is_allowed"] <= 1.01, "too fast"
    assert figures["lost"] == figures["settled_twice"] == figures["redelivered"] == 0


def test_a_rate_over_all_processes_is_kept(store: str, tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("fleet", tmp_path, 90, store=store, what="rate")
    tell(figures)
    never_faster_than_allowed(figures)
    was_tested(figures["of_what_is_allowed"] >= 0.8)


@pytest.mark.parametrize(
    ("what", "plant", "sign", "check"),
    [
        ("wake", "tells_nobody", "woken late", woken_at_once),
        ("control", "deaf_to_controls", "a lower concurrency is not obeyed", the_operator_is_heard),
        ("cancel", "deaf_to_controls", "not cancelled", all_were_cancelled),
        ("limit", "unlimited", "too many at once", never_more_than_seven),
        ("rate", "unlimited", "too (fast|many in a second)", never_faster_than_allowed),
    ],
)
def test_the_fleet_notices_a_planted_bug(
    what: str, plant: str, sign: str, check: Any, store: str, tmp_path: Path, tell: Tell
) -> None:
    figures = figures_of("fleet", tmp_path, 90, store=store, what=what, plant=plant)
    tell(figures)
    with noticed(sign):
        check(figures)


# ---- making the schema ----------------------------------------------------------


def made_once(figures: dict[str, Any]) -> None:
    assert figures["failed"] == 0, "one failed"
    assert figures["made"] == figures["whole"] == figures["rounds"]
    assert figures["found_made"] == 5 * figures["rounds"]


def test_processes_that_migrate_at_once_make_one_schema(store: str, tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("migrating", tmp_path, 60, store=store)
    tell(figures)
    made_once(figures)


def test_the_migrating_notices_a_planted_bug(store: str, tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("migrating", tmp_path, 60, store=store, plant="migrates_unlocked")
    tell(figures)
    with noticed("one failed"):
        made_once(figures)
