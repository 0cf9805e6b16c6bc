"""Zombies on PostgreSQL, and workers whose clocks are wrong (C1, C5), also against bugs planted for it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from dispatch import lifecycle
from dispatch.storage import postgres_claim
from dispatch.storage.protocol import QueueRecord
from tests.conclusive import in_time, noticed, was_tested
from tests.postgres.stage import Stage

from .conftest import Tell
from .launch import figures_of
from .programs.postgres_plants import PLANTS
from .test_clocks_and_sweeps import STATES, Two, the_zombie_wakes

# ---- C1: a zombie ---------------------------------------------------------------


@pytest.fixture(scope="module")
def stage(server: Any) -> Iterator[Stage]:
    opened = Stage(server.fresh_database())
    yield opened
    opened.close()


@attrs.define
class TwoOnPostgres(Two):
    """Two storages on one database, whose clock they share."""

    stage: Stage

    def rows(self) -> list[Any]:
        return [
            self.stage.execute("SELECT t::text FROM @.tasks t ORDER BY seq"),
            self.stage.execute("SELECT a::text FROM @.attempts a ORDER BY task, epoch"),
        ]


@asynccontextmanager
async def two(stage: Stage) -> AsyncGenerator[Two]:
    stage.clear()
    async with stage.storage() as zombie, stage.storage() as other:
        await zombie.declare([QueueRecord(name="q")])
        yield TwoOnPostgres(Path(), zombie, other, lambda seconds: stage.set(stage.now + seconds), stage)


@pytest.mark.parametrize("state", STATES)
async def test_a_zombie_on_postgres_is_refused_and_changes_no_byte(state: str, stage: Stage) -> None:
    await the_zombie_wakes(two(stage), state)


@pytest.mark.parametrize("state", ["runs", "run by a third"])
async def test_the_zombie_on_postgres_is_noticed_without_a_fence(
    state: str, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Set once, so that they are put back, and then planted over.
    for name in ("ENDING", "SUCCEED"):
        monkeypatch.setattr(postgres_claim, name, getattr(postgres_claim, name))
    monkeypatch.setattr(lifecycle, "fence", lifecycle.fence)
    PLANTS["no_fence"]()
    unfenced = Stage(server.fresh_database())  # its connections have the statements prepared
    try:
        with pytest.raises(AssertionError, match="a zombie was heard"):
            await the_zombie_wakes(two(unfenced), state)
    finally:
        unfenced.close()


# ---- C5: clocks that are wrong --------------------------------------------------


def nobody_minds_the_clocks(figures: dict[str, Any]) -> None:
    # First: what is rescued by a clock ahead gets its moment from there as well.
    assert figures["rescued_alive"] == 0, "a living run was rescued"
    assert figures["early"] == 0, "started before it was due"
    assert figures["rescued_dead"] == figures["held_by_the_dead"] > 0, "a dead run was left"
    assert figures["ticks_off"] == 0, "a tick at another time"
    assert figures["lost"] == 0
    assert figures["settled_twice"] == 0
    assert figures["integrity"] == "ok"
    was_tested(figures["ticks"] > 3)
    in_time(figures, "started late", latest_s=2.0)
    in_time(figures, rescued_after_s=3.0)


@pytest.mark.battery
def test_clocks_that_are_an_hour_off_change_nothing(store: str, tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("skewed_clocks", tmp_path, 60, store=store)
    tell(figures)
    nobody_minds_the_clocks(figures)


@pytest.mark.battery
@pytest.mark.parametrize(
    ("plant", "sign"), [("own_clock", "started"), ("own_clock_of_leases", "a living run was rescued")]
)
def test_the_wrong_clocks_notice_a_planted_bug(
    plant: str, sign: str, store: str, tmp_path: Path, tell: Tell
) -> None:
    figures = figures_of("skewed_clocks", tmp_path, 60, store=store, plant=plant)
    tell(figures)
    with noticed(sign):
        nobody_minds_the_clocks(figures)
