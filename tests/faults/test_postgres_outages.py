"""The server crashes, connections are ended, the network stands still (D3, D4, D5); also against planted bugs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from dispatch import StorageError
from dispatch.lifecycle import SettleAnswer
from dispatch.records import NewTask, Transition, TransitionKind
from dispatch.storage import postgres
from dispatch.storage.postgres import DEADLINE_S, PostgresStorage
from dispatch.storage.protocol import QueueRecord, Want, WorkerRecord
from dispatch.storage.query import Queues
from dispatch.testing.postgres import DSN_VARIABLE
from tests.conclusive import in_time, noticed, was_tested
from tests.postgres.proxy import proxy

from .conftest import Tell
from .launch import figures_of

T = TypeVar("T")

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
    was_tested(figures["raised"] > 0, figures["tasks"] > 20 * figures["cuts"])


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
    in_time(figures, slowest_back_s=2.0)


@needs_own_server
@pytest.mark.battery
@pytest.mark.parametrize("plant", ["forgotten_commits", "believed_publishes"])
def test_the_crashing_notices_a_planted_bug(plant: str, tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("outages", tmp_path, 90, store="own", cuts=30, patience=6.0, plant=plant)
    tell(figures)
    with noticed("lost"):
        nothing_lost_or_settled_twice(figures)


# ---- D4: connections are ended --------------------------------------------------


def survived_the_cuts(figures: dict[str, Any]) -> None:
    everybody_was_woken(figures)
    nothing_lost_or_settled_twice(figures)


def everybody_was_woken(figures: dict[str, Any]) -> None:
    cuts = figures["cuts"]
    was_tested(figures["listeners_cut"] >= cuts / 5, figures["publishes_cut"] >= cuts / 10, figures["woken"] > 20)
    in_time(figures, "woken late", slowest_wake_s=1.0)


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
    ("plant", "sign"),
    [("believed_publishes", "lost"), ("deaf_for_good", "woken late")],
)
def test_the_ending_of_connections_notices_a_planted_bug(
    plant: str, sign: str, store: str, tmp_path: Path, tell: Tell
) -> None:
    figures = figures_of(
        "outages", tmp_path, 90, store=store, cuts=50, patience=4.0, plant=plant
    )
    tell(figures)
    with noticed(sign):
        survived_the_cuts(figures)


# ---- D5: the network stands still -----------------------------------------------


class Caller:
    """Makes calls on a storage behind a network that stands still now and then, and times them."""

    def __init__(self, storage: PostgresStorage) -> None:
        self.storage = storage
        self.longest: dict[str, float] = {}
        self.calls = 0
        self.failed = 0
        self.stored: set[str] = set()
        self.ended: Counter[str] = Counter()

    async def timed(self, name: str, call: Callable[[], Awaitable[T]]) -> T | None:
        """The answer of one call, None if it raised."""
        began = trio.current_time()
        try:
            return await call()
        except StorageError:
            self.failed += 1
            return None
        finally:
            self.calls += 1
            self.longest[name] = max(self.longest.get(name, 0.0), trio.current_time() - began)
            await trio.sleep(0.02)

    async def publish(self) -> None:
        for n in count():
            new = NewTask(id=f"t{n}", queue="q", type="t", payload=b"{}")
            while await self.timed("enqueue", partial(self.storage.enqueue, [new])) is None:
                pass  # again, with the same id
            self.stored.add(new.id)

    async def work(self, worker: str) -> None:
        want = Want(queue="q", limit=5, max_retry=1_000)
        ends: list[Transition] = []
        while True:
            turn = partial(self.storage.turn, ends, [want], worker=worker, lease=2.0)
            found = await self.timed("turn", turn)
            if found is None:
                continue
            settled, claimed = found
            self.ended.update(each.id for each in settled if each.answer is SettleAnswer.APPLIED)
            held = [(claim.id, claim.epoch) for claim in claimed.claims]
            if held:
                await self.timed("renew", partial(self.storage.renew, held, lease=2.0))
            ends = [Transition(*each, TransitionKind.DONE) for each in held]

    async def look(self, name: str, call: Callable[[], Awaitable[object]]) -> None:
        while True:
            await self.timed(name, call)

    async def look_patiently(self, name: str, call: Callable[[], Awaitable[object]]) -> None:
        """What is read for people may take long, and so has no deadline but its caller's."""

        async def bounded() -> object:
            with trio.move_on_after(DEADLINE_S):
                return await call()

        await self.look(name, bounded)

    async def run(self) -> None:
        storage = self.storage
        record = WorkerRecord(id="w", host="h", pid=1, started_at=0.0, seen_at=0.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.publish)
            for worker in ("one", "two"):
                nursery.start_soon(self.work, worker)
            for call in (
                storage.rescue,
                storage.queues,
                storage.workers,
                storage.crons,
                partial(storage.beat, record),
                partial(storage.alter_queue, "q", paused=False),
            ):
                nursery.start_soon(self.look, getattr(call, "func", call).__name__, call)
            for reading in (
                partial(storage.find, Queues("q"), limit=5),
                partial(storage.count, Queues("q"), bound=5),
                partial(storage.history, "t0"),
            ):
                nursery.start_soon(self.look_patiently, reading.func.__name__, reading)


async def still_network(url: str, stalls: int, stall_s: float) -> dict[str, Any]:
    """Stop forwarding for a while, so many times, while every kind of call is made."""
    async with proxy(url) as between, PostgresStorage(between.dsn) as storage:
        await storage.declare([QueueRecord(name="q")])
        caller = Caller(storage)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller.run)
            for _ in range(stalls):
                await trio.sleep(1.0)
                between.stall()
                await trio.sleep(stall_s)
                between.flow()
            await trio.sleep(1.0)
            nursery.cancel_scope.cancel()
    async with PostgresStorage(url) as storage:
        there = {record.id for record in (await storage.find(Queues("q"), limit=1_000_000)).records}
    return {
        "stalls": stalls,
        "calls": caller.calls,
        "failed": caller.failed,
        "lost": len(caller.stored - there),
        "settled_twice": sum(times > 1 for times in caller.ended.values()),
        "ended": len(caller.ended),
        **{f"{name}_s": round(seconds, 2) for name, seconds in sorted(caller.longest.items())},
    }


def every_call_came_back(figures: dict[str, Any]) -> None:
    assert figures["lost"] == 0
    assert figures["settled_twice"] == 0
    was_tested(figures["ended"] > 10 * figures["stalls"], figures["failed"] >= figures["stalls"])
    in_time(figures, "too late", **{name: DEADLINE_S + 1.0 for name in figures if name.endswith("_s")})


@pytest.mark.parametrize(
    ("stalls", "stall_s"),
    [
        # Longer than any deadline, or whoever has none would not be seen.
        pytest.param(2, 9.0, id="battery", marks=pytest.mark.battery),
        pytest.param(10, 5.0, id="soak", marks=pytest.mark.soak),
        pytest.param(5, 20.0, id="soak, longer", marks=pytest.mark.soak),
    ],
)
async def test_a_network_that_stands_still_holds_no_call_beyond_its_deadline(
    stalls: int, stall_s: float, store: str, tell: Tell
) -> None:
    figures = await still_network(store, stalls, stall_s)
    tell(figures)
    every_call_came_back(figures)


@pytest.mark.battery
async def test_the_standing_still_notices_a_planted_bug(
    store: str, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "DEADLINE_S", 3_600.0)
    figures = await still_network(store, 1, 9.0)
    tell(figures)
    with noticed("too late"):
        every_call_came_back(figures | {"failed": 1})
