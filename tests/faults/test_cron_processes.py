"""Cron over several processes, killed at random (D7), also against bugs planted for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conclusive import in_time, noticed, was_tested

from .conftest import Tell
from .launch import figures_of

LATE_S = 5.0
"""A tick is decided within a second where a processor is free; what is only made up by luck is later."""


def every_tick_once(figures: dict[str, Any]) -> None:
    """What is promised for every entry and second in which a process lived."""
    assert figures["doubled"] == 0, "doubled"
    assert figures["missing"] == 0, "missing"
    assert figures["miscounted"] == 0, "miscounted"
    assert figures["integrity"] == "ok"
    was_tested(figures["kills"] >= figures["seconds"] / 5, figures["ran"] >= figures["ticks"] / 2)
    in_time(figures, "late", latest_s=LATE_S)


@pytest.mark.parametrize(
    ("seconds", "every", "seed"),
    [
        pytest.param(15, 1.0, 1, id="battery", marks=pytest.mark.battery),
        pytest.param(60, 3.0, 2, id="soak", marks=pytest.mark.soak),
        pytest.param(60, 0.7, 3, id="soak, killed faster", marks=pytest.mark.soak),
    ],
)
def test_every_tick_happens_once_whichever_processes_are_killed(
    seconds: int, every: float, seed: int, tmp_path: Path, tell: Tell
) -> None:
    figures = figures_of("cron_processes", tmp_path, seconds + 60, seconds=seconds, every=every, seed=seed)
    tell(figures)
    every_tick_once(figures)


@pytest.mark.battery
@pytest.mark.parametrize(
    ("plant", "sign"), [("ticks_for_all", "doubled"), ("ticks_nowhere", "missing")]
)
def test_the_killing_of_cron_processes_notices_a_planted_bug(
    plant: str, sign: str, tmp_path: Path, tell: Tell
) -> None:
    figures = figures_of("cron_processes", tmp_path, 60, seconds=4, every=1.0, plant=plant)
    tell(figures)
    with noticed(sign):
        every_tick_once(figures)
