"""What each call reads on PostgreSQL, whatever the server last counted and however many tasks there are.

A statement's plan is made once, from statistics of another moment. Most tasks have ended, so
the indexes of those that wait or run look empty to the server when it counts, and as
quick for looking a task up by its id as the index of ids. A crowd comes later.
"""

# pyright: reportPrivateUsage=false
# What was read is told on the storage's own connections.

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import Any

import pytest

from dispatch.lifecycle import SettleAnswer
from dispatch.records import Claim, Transition, TransitionKind
from dispatch.storage.postgres import PostgresStorage
from dispatch.storage.protocol import QueueRecord, Want
from dispatch.storage.query import Ids, Order, PruneSpec, Queues, Statuses
from dispatch.testing.postgres import PostgresServer
from dispatch.testing.workbench import LEASE_S, Workbench, unique
from tests.postgres.stage import Stage

DONE = TransitionKind.DONE
FEW, MANY = 20, 4_000
"""Of each kind of task in a crowd."""
QUEUES = ("q", "k", "y", "u")
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


@pytest.fixture
def stage(server: PostgresServer) -> Iterator[Stage]:
    opened = Stage(server.fresh_database())
    yield opened
    opened.close()


class Calls:
    """Every call of the hook that is about a few tasks, each of them with tasks of its own."""

    def __init__(self, bench: Workbench, mark: str) -> None:
        self.bench = bench
        self.storage = bench.storage
        self.mark = mark
        self.numbers = count()

    def ids(self, number: int = 5) -> list[str]:
        return [f"{self.mark}{next(self.numbers)}" for _ in range(number)]

    async def runs(self, number: int = 5, **fields: Any) -> list[Claim]:
        """So many tasks, at work."""
        ids = self.ids(number)
        await self.bench.publish(*ids, **fields)
        claims = await self.bench.claim(number, ids=frozenset(ids), queue=fields.get("queue", "q"))
        assert len(claims) == number
        return claims

    async def keyed(self, queue: str) -> list[Claim]:
        """Some tasks at work, each with another behind it."""
        ids = self.ids()
        for id_ in ids:
            await self.bench.publish(id_, f"{id_}-next", queue=queue, key=id_)
        claims = await self.bench.claim(5, ids=frozenset(ids), queue=queue)
        assert len(claims) == 5
        return claims

    def measured(self) -> dict[str, Callable[[], Awaitable[Callable[[], Awaitable[object]]]]]:
        """By name: what prepares a call, and answers with it."""
        found = {name: getattr(self, name) for name in vars(Calls) if name.startswith(("one_", "some_"))}
        return {name.partition("_")[2]: each for name, each in found.items()}

    async def one_enqueue(self) -> Callable[[], Awaitable[object]]:
        ids = self.ids()
        return lambda: self.bench.publish(*ids)

    async def one_enqueue_keyed(self) -> Callable[[], Awaitable[object]]:
        ids = self.ids()
        return lambda: self.bench.publish(*ids, queue="k", key=ids[0])

    async def one_enqueue_unique(self) -> Callable[[], Awaitable[object]]:
        [one, other] = self.ids(2)
        await self.bench.publish(one, queue="u", unique=unique(one))
        return lambda: self.bench.publish(other, queue="u", unique=unique(one, "replace"))

    async def some_claim(self) -> Callable[[], Awaitable[object]]:
        await self.bench.publish(*self.ids())
        return self.claiming("q")

    async def some_claim_of_keyed(self) -> Callable[[], Awaitable[object]]:
        for id_ in self.ids():
            await self.bench.publish(id_, queue="k", key=id_)
        return self.claiming("k")

    async def some_claim_of_yielding(self) -> Callable[[], Awaitable[object]]:
        for id_ in self.ids():
            await self.bench.publish(id_, queue="y", key=id_)
        return self.claiming("y")

    def claiming(self, queue: str) -> Callable[[], Awaitable[object]]:
        async def claim() -> None:
            assert len(await self.bench.claim(5, queue=queue, types={"t": 1})) == 5

        return claim

    def turning(self, queue: str, claims: list[Claim], kind: TransitionKind = DONE) -> Callable[[], Awaitable[object]]:
        async def turn() -> None:
            ends = [Transition(each.id, each.epoch, kind, retry_in=None if kind is DONE else 60.0) for each in claims]
            want = Want(queue=queue, limit=5, types={"t": 1})
            results, claimed = await self.storage.turn(ends, [want], worker="w", lease=LEASE_S)
            assert {each.answer for each in results} == {SettleAnswer.APPLIED}
            assert len(claimed.claims) == 5

        return turn

    async def some_turn(self) -> Callable[[], Awaitable[object]]:
        claims = await self.runs()
        await self.bench.publish(*self.ids())
        return self.turning("q", claims)

    async def some_turn_of_keyed(self) -> Callable[[], Awaitable[object]]:
        return self.turning("k", await self.keyed("k"))

    async def some_turn_that_fails(self) -> Callable[[], Awaitable[object]]:
        claims = await self.runs()
        await self.bench.publish(*self.ids())
        return self.turning("q", claims, TransitionKind.FAILED)

    async def some_turn_that_yields(self) -> Callable[[], Awaitable[object]]:
        return self.turning("y", await self.keyed("y"), TransitionKind.FAILED)

    async def some_settle(self) -> Callable[[], Awaitable[object]]:
        claims = await self.runs()
        return lambda: self.storage.settle([Transition(each.id, each.epoch, DONE) for each in claims])

    async def some_settle_cancelled(self) -> Callable[[], Awaitable[object]]:
        claims = await self.runs()
        return lambda: self.storage.settle(
            [Transition(each.id, each.epoch, TransitionKind.CANCELLED) for each in claims]
        )

    async def some_renew(self) -> Callable[[], Awaitable[object]]:
        fences = [(each.id, each.epoch) for each in await self.runs()]
        return lambda: self.storage.renew(fences, lease=2 * LEASE_S)

    async def some_hold_no_lease(self) -> Callable[[], Awaitable[object]]:
        fences = [(each.id, each.epoch) for each in await self.runs()]
        return lambda: self.storage.renew(fences, lease=None)

    async def one_progress(self) -> Callable[[], Awaitable[object]]:
        [claim] = await self.runs(1)
        return lambda: self.storage.progress((claim.id, claim.epoch), b"{}")

    async def one_find(self) -> Callable[[], Awaitable[object]]:
        ids = self.ids()
        await self.bench.publish(*ids)
        return lambda: self.storage.find(Ids(*ids))

    async def one_count(self) -> Callable[[], Awaitable[object]]:
        ids = self.ids()
        await self.bench.publish(*ids)
        return lambda: self.storage.count(Ids(*ids))

    async def one_history(self) -> Callable[[], Awaitable[object]]:
        [claim] = await self.runs(1)
        return lambda: self.storage.history(claim.id)

    async def one_page_of_a_queue(self) -> Callable[[], Awaitable[object]]:
        return lambda: self.storage.find(Queues("u"), order=Order.NEWEST, limit=5)

    async def one_count_with_a_bound(self) -> Callable[[], Awaitable[object]]:
        return lambda: self.storage.count(Queues("q") & Statuses("pending", "running"), bound=1)

    async def some_cancel(self) -> Callable[[], Awaitable[object]]:
        ids = self.ids()
        await self.bench.publish(*ids)
        return lambda: self.bench.alter(Ids(*ids), "cancel")

    async def some_cancel_of_keyed(self) -> Callable[[], Awaitable[object]]:
        [one, other] = self.ids(2)
        await self.bench.publish(one, other, queue="k", key=one)
        return lambda: self.bench.alter(one, "cancel")

    async def some_hold(self) -> Callable[[], Awaitable[object]]:
        ids = self.ids()
        await self.bench.publish(*ids)
        return lambda: self.bench.alter(Ids(*ids), "hold")

    async def some_rerun(self) -> Callable[[], Awaitable[object]]:
        ids = self.ids()
        await self.bench.ended(*ids, how=TransitionKind.CANCELLED)
        return lambda: self.bench.alter(Ids(*ids), "rerun")

    async def some_prune(self) -> Callable[[], Awaitable[object]]:
        await self.bench.ended(*self.ids())
        return lambda: self.storage.prune(PruneSpec(keep=0, limit=5))


@asynccontextmanager
async def opened(stage: Stage) -> AsyncGenerator[tuple[PostgresStorage, Workbench]]:
    async with stage.storage(connections=1) as storage:
        bench = Workbench(storage, stage.advance)
        for name in QUEUES:
            record = QueueRecord(name=name, keyed=name in "ky", on_retry="yield" if name == "y" else "hold")
            await storage.declare([record])
            bench._declared.add(name)
        yield storage, bench


def crowd(stage: Stage, number: int) -> None:
    """So many tasks of each kind in each queue, all of a type that nobody here asks for but those that cannot run."""
    for queue in QUEUES:
        for kind, (state, key) in KINDS.items():
            lined = kind in ("behind", "aside", "busy")
            if lined and queue not in "ky":
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


async def pages(stage: Stage, storage: PostgresStorage, call: Callable[[], Awaitable[object]]) -> int:
    """The pages that a call has the server look at."""
    await told(stage, storage)
    [(before,)] = stage.execute(READ)
    await call()
    await told(stage, storage)
    [(after,)] = stage.execute(READ)
    return int(after - before)


async def told(stage: Stage, storage: PostgresStorage) -> None:
    """Have the server's processes tell what they have counted."""
    stage.execute("SELECT pg_stat_force_next_flush()")
    for pool in (storage._flow, storage._reads):
        async with AsyncExitStack() as stack:
            for _ in range(len(pool._rest)):
                connection = await stack.enter_async_context(pool.connection())
                await connection.execute("SELECT pg_stat_force_next_flush()")


@pytest.mark.battery
async def test_a_crowd_costs_no_call_anything(stage: Stage) -> None:
    stage.execute("ALTER TABLE @.tasks SET (autovacuum_enabled = false)")
    async with opened(stage) as (storage, bench):
        stage.execute(
            "INSERT INTO @.lanes (queue, type, version, tagged) SELECT id, 't', 1, FALSE FROM @.queues"
            " ON CONFLICT DO NOTHING"
        )
        stage.execute(
            "INSERT INTO @.tasks (id, queue, lane, priority, state, payload, created_at, available_at, finished_at)"
            " SELECT 'ended' || n || '-' || l.id, l.queue, l.id, 1, 5, 'x', c.now, c.now, c.now"
            " FROM @.lanes l, @.test_clock c, generate_series(1, 5000) AS n"
        )
        stage.execute("VACUUM ANALYZE @.tasks")
        for mark in ("first", "again"):  # plans are made now
            for prepare in Calls(bench, mark).measured().values():
                await (await prepare())()
        found: list[dict[str, int]] = []
        for number in (FEW, MANY):
            crowd(stage, number)
            calls = Calls(bench, f"with{number}-")
            for prepare in calls.measured().values():  # the first visit clears up what others left
                await (await prepare())()
            # The least of three: what goes on beside the calls is counted now and then.
            rounds = [
                {name: await pages(stage, storage, await prepare()) for name, prepare in calls.measured().items()}
                for _ in range(3)
            ]
            found.append({name: min(filter(None, (each[name] for each in rounds))) for name in rounds[0]})
    few, many = found
    worse = {name: (few[name], many[name]) for name in few if many[name] > 2 * few[name] + 60}
    assert not worse, "\n".join(f"{name}: {few[name]} and {many[name]}" for name in many)
