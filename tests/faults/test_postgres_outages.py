"""The server crashes, connections are ended, the network stands still (D3, D4, D5); also against planted bugs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from dispatch.testing.postgres import DSN_VARIABLE

from .conftest import Tell
from .launch import figures_of

needs_own_server = pytest.mark.skipif(
    bool(os.environ.get(DSN_VARIABLE)) and not os.environ.get("CI"),
    reason="the server was given, and is not ours to crash",
)


def nothing_lost_or_settled_twice(figures: dict[str, Any]) -> None:
    assert figures["lost"] == 0, "lost"
    assert figures["settled_twice"] == 0
    assert figures["integrity"] == "ok"
    assert figures["unfinished"] == 0
    assert figures["succeeded"] == figures["tasks"]
    # A publish in doubt is present or has raised, and making it again is harmless.
    assert figures["unasked_there"] == 0
    # Else nothing was tested.
    assert figures["raised"] > 0
    assert figures["tasks"] > 20 * figures["cuts"]


# ---- D3: the server crashes -----------------------------------------------------


@needs_own_server
@pytest.mark.parametrize(
    "cuts",
    [
        pytest.param(20, id="battery", marks=pytest.mark.battery),
        pytest.param(100, id="soak", marks=pytest.mark.soak),
    ],
)
def test_a_server_that_crashes_under_load_loses_nothing_and_everybody_comes_back(
    cuts: int, tmp_path: Path, tell: Tell
) -> None:
    figures = figures_of("outages", tmp_path, 60 + 5 * cuts, store="own", cuts=cuts)
    tell(figures)
    nothing_lost_or_settled_twice(figures)
    assert figures["slowest_back_s"] <= 2.0


@needs_own_server
@pytest.mark.battery
@pytest.mark.parametrize("plant", ["forgotten_commits", "believed_publishes"])
def test_the_crashing_notices_a_planted_bug(plant: str, tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("outages", tmp_path, 90, store="own", cuts=5, patience=6.0, plant=plant)
    tell(figures)
    with pytest.raises(AssertionError, match="lost"):
        nothing_lost_or_settled_twice(figures)


# ---- D4: connections are ended --------------------------------------------------


def survived_the_cuts(figures: dict[str, Any]) -> None:
    nothing_lost_or_settled_twice(figures)
    assert figures["listeners_cut"] >= figures["cuts"] / 5, "it was not tested"
    assert figures["woken"] > 20
    assert figures["slowest_wake_s"] <= 1.0, "woken late"


@pytest.mark.parametrize(
    "cuts",
    [
        pytest.param(100, id="battery", marks=pytest.mark.battery),
        pytest.param(1_000, id="soak", marks=pytest.mark.soak),
    ],
)
def test_ended_connections_lose_nothing_and_wake_ups_go_on(
    cuts: int, store: str, tmp_path: Path, tell: Tell
) -> None:
    figures = figures_of("outages", tmp_path, 60 + cuts, store=store, cuts=cuts)
    tell(figures)
    survived_the_cuts(figures)


@pytest.mark.battery
@pytest.mark.parametrize(
    ("plant", "noticed"),
    [("believed_publishes", "lost"), ("deaf_for_good", "woken late")],
)
def test_the_ending_of_connections_notices_a_planted_bug(
    plant: str, noticed: str, store: str, tmp_path: Path, tell: Tell
) -> None:
    figures = figures_of(
        "outages", tmp_path, 90, store=store, cuts=50, patience=20.0, plant=plant
    )
    tell(figures)
    with pytest.raises(AssertionError, match=noticed):
        survived_the_cuts(figures)
