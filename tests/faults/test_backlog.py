"""A large backlog, half of which cannot run (E2), also against a bug planted for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conclusive import in_time, noticed

from .conftest import Tell
from .launch import figures_of


def a_claim_stays_cheap(figures: dict[str, Any]) -> None:
    assert figures["p99_steps_large"] <= 2 * figures["p99_steps_small"], "works through the backlog"
    assert figures["whole_counts"] == []
    in_time(figures, "takes longer", time_ratio=2.0)


@pytest.mark.parametrize(
    "tasks",
    [
        pytest.param(100_000, id="battery", marks=pytest.mark.battery),
        pytest.param(1_000_000, id="soak", marks=pytest.mark.soak),
    ],
)
def test_a_claim_costs_the_same_with_a_large_backlog(tasks: int, tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("backlog", tmp_path, 60 + tasks / 1_000, tasks=tasks)
    tell(figures)
    a_claim_stays_cheap(figures)
    assert figures["waiting"] > tasks
    assert figures["behind_or_unhandled"] == 49_999


@pytest.mark.battery
def test_the_backlog_notices_a_planted_bug(tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("backlog", tmp_path, 120, tasks=2_000, stuck=2_000, plant="whole_scan")
    tell(figures)
    with noticed("works through the backlog"):
        a_claim_stays_cheap(figures)
