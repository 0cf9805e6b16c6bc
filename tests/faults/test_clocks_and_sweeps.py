"""Zombies, sweeps and clocks (C1, C3, C4), each also against bugs planted for it."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest

from dispatch import Clock, FailureReason, TaskStatus
from dispatch.lifecycle import SettleAnswer
from dispatch.records import NewTask, Transition, TransitionKind
from dispatch.storage import sqlite_tasks
from dispatch.storage.protocol import Change, EnqueueAnswer, QueueRecord, Storage, Want
from dispatch.storage.query import Ids, PruneSpec
from dispatch.storage.sqlite import SqliteStorage
from tests.conclusive import noticed, was_tested

from .conftest import Tell
from .launch import figures_of
from .programs.plants import PLANTS

LEASE_S = 30.0


# ---- C1: a zombie ---------------------------------------------------------------


@attrs.define
class Two:
    """Two storages on one file with one clock, as two processes have them, and one task."""

    path: Path
    zombie: Storage
    other: Storage
    advance: Callable[[float], None]

    async def claim(self, storage: Storage, worker: str) -> int:
        want = Want(queue="q", limit=1, max_retry=5)
        [claim] = (await storage.claim([want], worker=worker, lease=LEASE_S)).claims
        return claim.epoch

    def rows(self) -> list[Any]:
        """Everything stored of tasks and runs, byte for byte."""
        with closing(sqlite3.connect(self.path)) as db:
            columns = [name for _, name, *_ in db.execute("PRAGMA table_info(dispatch_tasks)")]
            quoted = ", ".join(f"quote({name})" for name in columns)
            return [
                db.execute(f"SELECT {quoted} FROM dispatch_tasks ORDER BY seq").fetchall(),  # noqa: S608
                db.execute("SELECT * FROM dispatch_attempts ORDER BY task, epoch").fetchall(),
            ]


@asynccontextmanager
async def two(path: Path) -> AsyncIterator[Two]:
    moment = 1_000_000.0

    def advance(seconds: float) -> None:
        nonlocal moment
        moment += seconds

    clock = Clock(wall=lambda: moment)
    async with (
        SqliteStorage(path, clock=clock, inline=True) as zombie,
        SqliteStorage(path, clock=clock, inline=True) as other,
    ):
        await zombie.declare([QueueRecord(name="q")])
        yield Two(path, zombie, other, advance)


def end(kind: TransitionKind, **facts: Any) -> Callable[[Two, int], Awaitable[None]]:
    """The other worker ends its run so."""

    async def ending(world: Two, epoch: int) -> None:
        [result] = await world.other.settle([Transition("a", epoch, kind, **facts)])
        assert result.answer is SettleAnswer.APPLIED

    return ending


def alter(action: Any, then: Any = None) -> Callable[[Two, int], Awaitable[None]]:
    """The other worker fails for good, or hands back, and then somebody changes the task by hand."""

    async def altering(world: Two, epoch: int) -> None:
        await then(world, epoch)
        assert await world.other.alter(Ids("a"), Change(action=action)) == ["a"]

    return altering


async def runs(world: Two, epoch: int) -> None:
    """The other worker runs still."""


async def expired(world: Two, epoch: int) -> None:
    """The other worker has died, too, and was swept."""
    world.advance(LEASE_S + 1)
    [record] = (await world.other.rescue()).records
    assert record.status is TaskStatus.PENDING


async def third(world: Two, epoch: int) -> None:
    """The other worker died, and a third one runs it."""
    await expired(world, epoch)
    world.advance(10.0)
    await world.claim(world.other, "third")


async def pruned(world: Two, epoch: int) -> None:
    """The task has ended and is deleted."""
    await end(TransitionKind.DONE)(world, epoch)
    assert await world.other.prune(PruneSpec(keep=0)) == 1


HAND_BACK = end(TransitionKind.HANDED_BACK)
DEAD = end(TransitionKind.FAILED, error="e: b", reason=FailureReason.PERMANENT)
STATES = {
    "runs": runs,
    "succeeded": end(TransitionKind.DONE, result=b"1"),
    "retrying": end(TransitionKind.FAILED, error="e: b", retry_in=5.0),
    "dead": DEAD,
    "cancelled": end(TransitionKind.CANCELLED, error="enough"),
    "asked to cancel": alter("cancel", runs),
    "snoozed": end(TransitionKind.SNOOZED, retry_in=5.0),
    "handed back": HAND_BACK,
    "held": alter("hold", HAND_BACK),
    "rerun": alter("rerun", DEAD),
    "expired": expired,
    "run by a third": third,
    "pruned": pruned,
}
SPAWN = (NewTask(id="child", queue="q", type="t", payload=b"{}"),)
OUTCOMES = [
    Transition("a", 1, TransitionKind.DONE, result=b"2", spawn=SPAWN),
    Transition("a", 1, TransitionKind.FAILED, error="e: a", retry_in=1.0),
    Transition("a", 1, TransitionKind.FAILED, error="e: a", reason=FailureReason.PERMANENT),
    Transition("a", 1, TransitionKind.CANCELLED, error="a"),
    Transition("a", 1, TransitionKind.SNOOZED, retry_in=1.0),
    Transition("a", 1, TransitionKind.HANDED_BACK, error="a"),
]


async def the_zombie_wakes(opened: AbstractAsyncContextManager[Two], state: str) -> None:
    """A claims, is paused past its lease; B claims and goes on to `state`; then A goes on."""
    async with opened as world:
        await world.zombie.enqueue([NewTask(id="a", queue="q", type="t", payload=b"{}")])
        assert await world.claim(world.zombie, "zombie") == 1
        world.advance(LEASE_S + 1)
        assert len((await world.other.rescue()).records) == 1
        world.advance(10.0)
        await STATES[state](world, await world.claim(world.other, "other"))
        before = world.rows()
        [renewed] = await world.zombie.renew([("a", 1)], lease=1_000.0)
        assert not renewed.held
        assert not await world.zombie.progress(("a", 1), b"half")
        [refused] = await world.zombie.enqueue(SPAWN, by=("a", 1))
        assert refused.answer is EnqueueAnswer.CLAIM_LOST, "a zombie was heard"
        for outcome in OUTCOMES:
            turn = partial(world.zombie.turn, [outcome], [], worker="zombie", lease=LEASE_S)
            for settle in (partial(world.zombie.settle, [outcome]), turn):
                answered: Any = await settle()
                [result] = answered[0] if isinstance(answered, tuple) else answered
                assert result.answer is (SettleAnswer.GONE if state == "pruned" else SettleAnswer.LOST), "a zombie was heard"
        assert world.rows() == before


@pytest.mark.parametrize("state", STATES)
async def test_a_zombie_is_refused_and_changes_no_byte(state: str, tmp_path: Path) -> None:
    await the_zombie_wakes(two(tmp_path / "jobs.db"), state)


@pytest.mark.parametrize("state", ["runs", "run by a third"])
async def test_the_zombie_is_noticed_without_a_fence(
    state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dispatch import lifecycle

    # Set once, so that they are put back, and then planted over.
    monkeypatch.setattr(sqlite_tasks, "SUCCEED", sqlite_tasks.SUCCEED)
    monkeypatch.setattr(lifecycle, "fence", lifecycle.fence)
    PLANTS["no_fence"]()
    with pytest.raises(AssertionError, match="a zombie was heard"):
        await the_zombie_wakes(two(tmp_path / "jobs.db"), state)


# ---- C3: a sweep among many that may not be swept -------------------------------

UNSWEEPABLE = 10_000


async def swept_within_two(path: Path) -> int:
    """Ten thousand running rows sort before one expired one; how many sweeps until it is rescued."""
    async with two(path) as world:
        tasks = [NewTask(id=f"n{n}", queue="q", type="t", payload=b"{}") for n in range(UNSWEEPABLE)]
        for start in range(0, UNSWEEPABLE, 1_000):
            await world.other.enqueue(tasks[start : start + 1_000])
        claimed = await world.other.claim([Want(queue="q", limit=UNSWEEPABLE)], worker="alive", lease=None)
        assert len(claimed.claims) == UNSWEEPABLE
        with closing(sqlite3.connect(path)) as db:
            # A third never expires (NULL sorts first), a third is alive, a third of a queue nobody declared.
            db.execute("UPDATE dispatch_tasks SET lease_until = ? WHERE seq % 3 = 1", (world.other.now() + 90.0,))
            db.execute("UPDATE dispatch_tasks SET lease_until = 1, queue = 'unknown' WHERE seq % 3 = 2")
            db.commit()
        await world.other.enqueue([NewTask(id="a", queue="q", type="t", payload=b"{}")])
        await world.claim(world.zombie, "zombie")
        world.advance(LEASE_S + 1)
        before = world.rows()[0][:UNSWEEPABLE]
        for sweep in itertools.count(1):
            rescued = (await world.other.rescue()).records
            assert [record.id for record in rescued] in ([], ["a"]), "swept what may not be"
            if rescued or sweep == 5:
                assert world.rows()[0][:UNSWEEPABLE] == before
                return sweep
    raise AssertionError


@pytest.mark.battery
async def test_one_that_may_be_swept_is_found_among_ten_thousand_that_may_not(tmp_path: Path, tell: Tell) -> None:
    sweeps = await swept_within_two(tmp_path / "jobs.db")
    tell({"tasks": UNSWEEPABLE + 1, "sweeps": sweeps})
    assert sweeps <= 2


@pytest.mark.battery
async def test_the_sweeping_notices_a_planted_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that takes the first thousand running ones and looks at their leases afterwards."""

    def rescue(self: Any, limit: int, now: float) -> list[Any]:
        first = sqlite_tasks.records(self.db, "WHERE status = 'running' ORDER BY lease_until, seq LIMIT ?", (limit,))
        return [each for each in first if each.lease_until is not None and each.lease_until < now and each.queue == "q"]

    monkeypatch.setattr(sqlite_tasks.SqliteTasks, "rescue", rescue)
    assert await swept_within_two(tmp_path / "jobs.db") == 5


# ---- C4: the clock jumps --------------------------------------------------------


def nobody_took_its_own(figures: dict[str, Any]) -> None:
    assert figures["self_claimed"] == 0, "claimed what it was running itself"
    assert figures["settled_twice"] == 0
    assert figures["lost"] == 0
    assert figures["integrity"] == "ok"
    assert figures["succeeded"] == figures["tasks"] == 50
    assert figures["processes"] == 2


@pytest.mark.battery
def test_no_process_claims_what_it_runs_when_the_clock_jumps_an_hour(tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("clock_jumps", tmp_path, 90)
    tell(figures)
    nobody_took_its_own(figures)
    was_tested(figures["noticed"] >= 2)


@pytest.mark.battery
def test_the_jumping_notices_a_planted_bug(tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("clock_jumps", tmp_path, 90, plant="trusted_clock")
    tell(figures)
    with noticed("claimed what it was running itself"):
        nobody_took_its_own(figures)
