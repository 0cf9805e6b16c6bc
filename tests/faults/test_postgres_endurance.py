"""A long run on PostgreSQL (E5): nothing leaks, the tables stay small; also against a planted bug."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conclusive import noticed

from .conftest import Tell
from .launch import figures_of

PACE = 2_000
"""Tasks a second: on a quick machine, too, there are rounds of pruning and vacuum in each half of a battery."""


@pytest.fixture
def often_vacuumed(server: Any) -> Iterator[None]:
    """A run of seconds sees what one of hours sees at the usual minute between rounds."""
    server.execute("ALTER SYSTEM SET autovacuum_naptime = '1s'")
    server.execute("SELECT pg_reload_conf()")
    yield
    server.execute("ALTER SYSTEM RESET autovacuum_naptime")
    server.execute("SELECT pg_reload_conf()")


def nothing_leaks(figures: dict[str, Any]) -> None:
    assert figures["left"] == 0
    assert figures["ended"] == figures["tasks"]
    assert figures["failures"] >= figures["tasks"] / 20
    assert figures["timeouts"] == figures["tasks"] / 200
    assert figures["leaked"] == {}
    assert figures["integrity"] == "ok"
    assert figures["grown"] <= 1.4, "the tables grow"


@pytest.mark.battery
@pytest.mark.usefixtures("often_vacuumed")
def test_a_run_with_failures_and_openings_leaks_nothing(store: str, tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("endurance", tmp_path, 120, store=store, tasks=20_000, openings=10, pace=PACE)
    tell(figures)
    nothing_leaks(figures)


@pytest.mark.battery
@pytest.mark.usefixtures("often_vacuumed")
def test_the_long_run_notices_a_planted_bug(store: str, tmp_path: Path, tell: Tell) -> None:
    figures = figures_of(
        "endurance", tmp_path, 120, store=store, tasks=20_000, openings=1, pace=PACE, plant="keeps_the_ended"
    )
    tell(figures)
    with noticed("the tables grow"):
        nothing_leaks(figures)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("tasks", "pace"),
    [
        pytest.param(200_000, 1_500, id="two minutes"),
        pytest.param(1_000_000, 1_650, id="ten minutes"),
        pytest.param(1_000_000, 100_000, id="as fast as it goes"),
    ],
)
def test_a_long_run_keeps_its_memory_its_tables_and_its_speed(
    tasks: int, pace: int, store: str, tmp_path: Path, tell: Tell
) -> None:
    figures = figures_of("endurance", tmp_path, 3_600, store=store, tasks=tasks, openings=100, pace=pace)
    tell(figures)
    nothing_leaks(figures)
    assert figures["slope_mb"] <= 1.0
    assert figures["speed_kept"] >= 0.9
