"""What each call reads on PostgreSQL, whatever the server last counted and however many tasks there are.

A statement's plan is made once, from statistics of another moment. Most tasks have ended, so
the indexes of those that wait or run look empty to the server when it counts, and as
quick for looking a task up by its id as the index of ids. A crowd comes later.
"""

# pyright: reportPrivateUsage=false
# What was read is told on the storage's own connections.

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from dispatch.records import NewTask
from dispatch.storage import postgres_registry, texts
from dispatch.storage.postgres import PostgresStorage
from dispatch.storage.protocol import CronRecord
from dispatch.storage.query import All, Statuses, Time
from dispatch.testing.workbench import Workbench
from tests.crowd import QUEUES, UNCROWDED, Call, Calls, declare, told
from tests.postgres.stage import Stage

FEW, MANY = 20, 4_000
"""Of each kind of task in a crowd."""
TRIES = 100
KINDS: dict[str, tuple[str, str]] = {
    "ready": ("0", "NULL"),
    "later": ("0", "NULL"),
    "behind": ("1", "'line' || n %% 3"),
    "aside": ("2", "'far' || n"),
    "running": ("3", "NULL"),
    "busy": ("3", "'busy' || n"),
    "held": ("4", "NULL"),
}
"""A crowd: each kind's state and key."""
READ = (
    "SELECT sum(heap_blks_read + heap_blks_hit + coalesce(idx_blks_read + idx_blks_hit, 0))::int8"
    " FROM pg_statio_all_tables WHERE schemaname = 'dispatch'"
)


@asynccontextmanager
async def opened(stage: Stage) -> AsyncGenerator[tuple[PostgresStorage, Workbench]]:
    # On one connection, so that it is clear who tells what was read.
    async with stage.storage(connections=1) as storage:
        bench = Workbench(storage, stage.advance)
        await declare(storage, bench)
        yield storage, bench


def crowd(stage: Stage, number: int) -> None:
    """So many tasks of each kind in each queue, all of a type that nobody here asks for but those that cannot run."""
    for queue in QUEUES:
        for kind, (state, key) in KINDS.items():
            lined = kind in ("behind", "aside", "busy")
            if (lined and not QUEUES[queue].get("keyed")) or kind in UNCROWDED.get(queue, ()):
                continue
            type_ = "alien" if kind in ("ready", "running") else "t"
            stage.execute(
                "INSERT INTO @.lanes (queue, type, version, tagged) SELECT id, %s, 1, FALSE FROM @.queues"
                " WHERE name = %s ON CONFLICT DO NOTHING",
                (type_, queue),
            )
            stage.execute(
                # S608: texts of our own.
                "INSERT INTO @.tasks (id, queue, lane, priority, state, lined, key, payload, created_at, available_at,"  # noqa: S608
                " worker, started_at, lease_until, attempt, epoch)"
                f" SELECT 'crowd-{queue}-{kind}-{number}-' || n, q.id, l.id, 1, {state}, {lined}, {key}, 'x', c.now,"
                f" c.now + {0 if kind in ('ready', 'running', 'behind', 'busy') else 9_000},"
                " 'other', c.now, c.now + 9000, 1, 1 FROM @.queues q JOIN @.lanes l ON l.queue = q.id AND l.type = %s"
                " AND NOT l.tagged, @.test_clock c, generate_series(1, %s) AS n WHERE q.name = %s",
                (type_, number, queue),
            )
    stage.execute(
        "INSERT INTO @.crons (name, definition, template, declared, total, created_at, seen_at)"
        " SELECT 'crowd-' || %s || '-' || n, 'd', '{}', FALSE, 0, c.now, c.now"
        " FROM @.test_clock c, generate_series(1, %s) AS n",
        (number, number),
    )


async def pages(stage: Stage, storage: PostgresStorage, call: Call) -> int:
    """The pages that a call has the server look at."""
    await counted(stage, storage)
    [(before,)] = stage.execute(READ)
    await call()
    for _ in range(TRIES):  # a server that is busy may put off telling, and no call reads nothing
        await counted(stage, storage)
        [(after,)] = stage.execute(READ)
        if after > before:
            return int(after - before)
        await trio.sleep(0.02)
    raise AssertionError("the server tells of no page that was read")


async def counted(stage: Stage, storage: PostgresStorage) -> None:
    """Have the server's processes tell what they have counted."""
    stage.execute("SELECT pg_stat_force_next_flush()")
    for pool in (storage._flow, storage._reads):
        async with AsyncExitStack() as stack:
            for _ in range(len(pool._rest)):
                connection = await stack.enter_async_context(pool.connection())
                await connection.execute("SELECT pg_stat_force_next_flush()")


@pytest.mark.battery
async def test_a_crowd_costs_no_call_anything(stage_alone: Stage) -> None:
    stage_alone.execute("ALTER TABLE @.tasks SET (autovacuum_enabled = false)")
    async with opened(stage_alone) as (storage, bench):
        stage_alone.execute(
            "INSERT INTO @.lanes (queue, type, version, tagged) SELECT id, 't', 1, FALSE FROM @.queues"
            " ON CONFLICT DO NOTHING"
        )
        stage_alone.execute(
            "INSERT INTO @.tasks (id, queue, lane, priority, state, payload, created_at, available_at, finished_at)"
            " SELECT 'ended' || n || '-' || l.id, l.queue, l.id, 1, 5, 'x', c.now, c.now, c.now"
            " FROM @.lanes l, @.test_clock c, generate_series(1, 5000) AS n"
        )
        stage_alone.execute("VACUUM ANALYZE @.tasks")
        for mark in ("first", "again"):  # plans are made now
            for prepare in Calls(bench, mark).measured().values():
                await (await prepare())()
        found: list[dict[str, int]] = []
        for number in (FEW, MANY):
            crowd(stage_alone, number)
            found.append(await Calls(bench, f"with{number}-").compared(partial(pages, stage_alone, storage)))
    few, many = found
    assert all(many[name] <= 2 * few[name] + 60 for name in few), told(few, many)


@pytest.mark.battery
async def test_what_has_ended_since_a_moment_is_counted_by_that_moment(stage_alone: Stage) -> None:
    stage_alone.execute("ALTER TABLE @.tasks SET (autovacuum_enabled = false)")
    async with opened(stage_alone) as (storage, _):
        stage_alone.execute(
            "INSERT INTO @.lanes (queue, type, version, tagged) SELECT id, 't', 1, FALSE FROM @.queues"
        )
        stage_alone.execute(
            "INSERT INTO @.tasks (id, queue, lane, priority, state, payload, created_at, available_at, started_at,"
            " finished_at) SELECT 'ended' || n || '-' || l.id, l.queue, l.id, 1, 5, 'x', c.now, c.now, c.now - n, c.now - n"
            " FROM @.lanes l, @.test_clock c, generate_series(1, 30000) AS n"
        )
        stage_alone.execute("VACUUM ANALYZE @.tasks")
        [(now,)] = stage_alone.execute("SELECT now FROM @.test_clock")
        since = now - 10.5
        where = All(Statuses("succeeded", "failed", "cancelled"), Time("finished_at", since=since), Time("started_at", since=since))

        async def call() -> None:
            counts = await storage.count(where, by=("queue", "type"), bound=20 * len(QUEUES))
            assert set(counts.values()) == {10}

        for _ in range(12):  # the server makes a plan for whatever moment after some of them
            await call()
        assert await pages(stage_alone, storage, call) < 200


async def test_thousands_of_cron_entries_leave_others_their_turns(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = longest = held = last = 0
    real = texts.cron_record

    def read(*row: Any) -> CronRecord:
        nonlocal longest, held, last
        held = held + 1 if turns == last else 1
        longest, last = max(longest, held), turns
        return real(*row)

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with stage.open() as (storage, _):
        entry = CronRecord(name="entry", definition="d", template=NewTask(id="", queue="q", type="t", payload=b"{}"))
        await storage.put_cron(entry)
        stage.execute(
            "INSERT INTO @.crons SELECT name || n, definition, template, declared, paused_reason, last_slot, next_slot,"
            " total, created_at, seen_at FROM @.crons, generate_series(1, 2000) AS n"
        )
        monkeypatch.setattr(texts, "cron_record", read)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            assert len(await storage.crons()) == 2_001
            nursery.cancel_scope.cancel()
    assert 0 < longest <= 2 * postgres_registry.AT_ONCE  # trio may run one twice before the other
