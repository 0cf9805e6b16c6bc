"""What each call costs in memory and on SQLite among few other tasks, and among many."""

# pyright: reportPrivateUsage=false
# SQLite counts its steps on the connections inside.

from __future__ import annotations

import sqlite3
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from pathlib import Path
from types import FrameType

import pytest
import trio

from dispatch.records import NewTask, Transition, TransitionKind
from dispatch.storage.memory import MemoryStorage
from dispatch.storage.protocol import Change, CronRecord, Storage, Want
from dispatch.storage.query import Ids
from dispatch.storage.sqlite import SqliteStorage
from dispatch.testing.workbench import Workbench
from tests.crowd import QUEUES, UNCROWDED, Call, Calls, declare, told

FEW, MANY = 20, 2_000
"""Of each kind of task in a crowd."""
FAR_S = 9_000.0

Counted = Callable[[Call], Awaitable[int]]


async def stay(seconds: float) -> None:
    raise AssertionError("nothing here waits for the clock")


async def crowd(storage: Storage, number: int) -> None:
    """So many others of each kind in each queue, none of which may be claimed as type `t` now."""
    numbers = count()

    def tasks(queue: str, type_: str, key: Callable[[int], str] | None = None, delay: float = 0.0) -> list[NewTask]:
        mark = f"crowd-{number}-{queue}-{next(numbers)}-"
        return [
            NewTask(
                id=f"{mark}{n}",
                queue=queue,
                type=type_,
                payload=b"{}",
                key=None if key is None else f"{mark}{key(n)}",
                delay=delay,
            )
            for n in range(number)
        ]

    async def running(queue: str, limit: int = number) -> list[tuple[str, int]]:
        claimed = await storage.claim([Want(queue=queue, limit=limit, types={"taken": 1})], worker="o", lease=FAR_S)
        assert len(claimed.claims) == limit
        return [(claim.id, claim.epoch) for claim in claimed.claims]

    for queue, settings in QUEUES.items():
        kept_out = UNCROWDED.get(queue, ())
        if "ready" not in kept_out:
            await storage.enqueue(tasks(queue, "alien"))
        await storage.enqueue(tasks(queue, "t", delay=FAR_S))
        held = tasks(queue, "t", delay=FAR_S)
        await storage.enqueue(held)
        await storage.alter(Ids(*(each.id for each in held)), Change(action="hold"))
        if "running" not in kept_out:
            await storage.enqueue(tasks(queue, "taken"))
            await running(queue)
        if settings.get("keyed"):
            await storage.enqueue(tasks(queue, "taken", str))
            ends = [
                Transition(id_, epoch, TransitionKind.FAILED, error="e", retry_in=FAR_S)
                for id_, epoch in await running(queue)
            ]
            await storage.settle(ends)
            await storage.enqueue(tasks(queue, "taken", lambda n: str(n % 3)))
            await running(queue, 3)
    for n in range(number):
        template = NewTask(id="", queue="q", type="t", payload=b"{}")
        await storage.put_cron(CronRecord(name=f"crowd-{number}-{n}", definition="d", template=template))


@asynccontextmanager
async def memory(_: Path) -> AsyncGenerator[tuple[Storage, Counted]]:
    async def cost(call: Call) -> int:
        called = 0

        def note(_: FrameType, event: str, __: object) -> None:
            nonlocal called
            called += event in ("call", "c_call")

        sys.setprofile(note)
        try:
            await call()
        finally:
            sys.setprofile(None)
        return called

    yield MemoryStorage(), cost


@asynccontextmanager
async def sqlite(folder: Path) -> AsyncGenerator[tuple[Storage, Counted]]:
    taken = 0

    def step() -> int:
        nonlocal taken
        taken += 10
        return 0

    async def cost(call: Call) -> int:
        before = taken
        await call()
        return taken - before

    async with SqliteStorage(folder / "jobs.db", inline=True) as storage:
        for connection in (storage._ledger.db, storage._glancer.db, storage._searcher.db):
            assert isinstance(connection, sqlite3.Connection)
            connection.set_progress_handler(step, 10)
        yield storage, cost


@pytest.mark.battery
@pytest.mark.parametrize("opened", [memory, sqlite])
async def test_a_crowd_costs_no_call_anything(
    tmp_path: Path, opened: Callable[[Path], AbstractAsyncContextManager[tuple[Storage, Counted]]]
) -> None:
    found: list[dict[str, int]] = []
    async with opened(tmp_path) as (storage, cost):
        bench = Workbench(storage, stay)
        await declare(storage, bench)
        for number in (FEW, MANY):
            await crowd(storage, number)
            await trio.lowlevel.checkpoint()
            found.append(await Calls(bench, f"with{number}-").compared(cost))
    few, many = found
    if isinstance(storage, MemoryStorage):
        del few["prune"]  # to keep the newest it goes through all that has ended, which is more now
        del few["page_of_a_queue"]  # a search goes through all there is
    assert all(many[name] <= 2 * few[name] + 60 for name in few), told(few, many)
