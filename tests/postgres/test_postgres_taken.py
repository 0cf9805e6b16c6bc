"""What a claim on PostgreSQL makes of rows that somebody else has just taken, or seems to have."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager

import pytest
import trio

from dispatch.records import Claim, Transition, TransitionKind
from dispatch.storage.postgres import PostgresStorage
from dispatch.storage.postgres_claim import BUSY_S, HELD_S, QUICK, UNTAKEN
from dispatch.storage.protocol import Claimed, EnqueueAnswer, Want
from dispatch.storage.psycopg_trio import psycopg
from dispatch.testing.postgres import postgres_server
from dispatch.testing.workbench import LEASE_S, Workbench, unique
from tests.postgres.stage import Stage

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
LOCKED = "SELECT xmax::text FROM @.tasks WHERE id = 'a'"
ERA = 1 << 32


@asynccontextmanager
async def turning(stage: Stage, storage: PostgresStorage, run: Claim) -> AsyncGenerator[list[Claimed]]:
    """Amid a turn that has seen who waits, and is kept at `run`, which it ends; what it claimed is there after it."""
    claimed: list[Claimed] = []

    async def turn() -> None:
        ended = [Transition(run.id, run.epoch, TransitionKind.DONE)]
        _, found = await storage.turn(ended, [Want(queue="q", limit=2)], worker="w", lease=LEASE_S)
        claimed.append(found)

    with psycopg.connect(stage.dsn) as user:
        user.execute("SELECT 1 FROM dispatch.tasks WHERE id = 'run' FOR UPDATE")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(turn)
            with trio.fail_after(10):
                while stage.execute(WAITING) == [(0,)]:  # noqa: ASYNC110 - no event
                    await trio.sleep(0.01)
            yield claimed
            user.rollback()


async def test_what_another_worker_claimed_meanwhile_is_not_touched(stage: Stage) -> None:
    async with stage.open() as (one, _), stage.storage() as other:
        bench = Workbench(one, stage.advance)
        run = await bench.started("run")
        await bench.publish("a", "b")

        async with turning(stage, one, run) as claimed:
            [taken] = (await other.claim([Want(queue="q", limit=1)], worker="o", lease=LEASE_S)).claims
            assert taken.id == "a"
            locked = stage.execute(LOCKED)
        assert [claim.id for claim in claimed[0].claims] == ["b"]
        # Who locks another's run, to see what has become of it, would keep that from being settled.
        assert stage.execute(LOCKED) == locked
        [result] = await other.settle([Transition(taken.id, taken.epoch, TransitionKind.DONE)])
        assert result.status is not None


async def test_what_was_put_off_meanwhile_is_not_taken_even_by_a_claim_that_looks_closely(stage: Stage) -> None:
    async with stage.open() as (storage, _):
        bench = Workbench(storage, stage.advance)
        run = await bench.started("run")
        await bench.publish("a", "b")
        storage._tasks.claims._quick["q"] = QUICK

        async with turning(stage, storage, run) as claimed:
            stage.execute("UPDATE @.tasks SET available_at = available_at + 3600 WHERE id = 'a'")
        assert [claim.id for claim in claimed[0].claims] == ["b"]


async def test_what_was_let_go_again_keeps_its_place(stage: Stage) -> None:
    async with stage.open() as (storage, _):
        bench = Workbench(storage, stage.advance)
        await bench.publish("rolled back", "locked", "shared", "untouched")
        with (
            psycopg.connect(stage.dsn) as old,
            psycopg.connect(stage.dsn) as one,
            psycopg.connect(stage.dsn) as two,
        ):
            old.execute("SELECT pg_current_xact_id()")  # as long as it is open, others cannot be taken for over by age
            one.execute("UPDATE dispatch.tasks SET state = 3 WHERE id = 'rolled back'")
            one.rollback()
            one.execute("SELECT 1 FROM dispatch.tasks WHERE id = 'locked' FOR UPDATE")
            one.commit()
            for user in (one, two):
                user.execute("SELECT 1 FROM dispatch.tasks WHERE id = 'shared' FOR KEY SHARE")
            one.commit()
            two.commit()
            assert stage.execute("SELECT count(*) FROM @.tasks WHERE xmax <> 0") == [(3,)]
            assert await bench.taken(4) == ["rolled back", "locked", "shared", "untouched"]


async def test_what_a_user_holds_is_looked_at_again_soon(stage: Stage) -> None:
    async with stage.open() as (storage, _):
        bench = Workbench(storage, stage.advance)
        await bench.publish("held", unique=unique("u"))
        want = Want(queue="q", limit=2)
        with psycopg.connect(stage.dsn) as user:
            user.execute("SELECT 1 FROM dispatch.tasks WHERE id = 'held' FOR NO KEY UPDATE")
            due = [(await storage.claim([want], worker="w", lease=LEASE_S)).next_due for _ in range(2)]
        now = storage.now()
        assert [each is not None and now < each + 0.5 and each <= now + HELD_S for each in due] == [True, True]
        assert await bench.taken(2) == ["held"]


async def test_what_is_still_held_is_passed_by(stage: Stage) -> None:
    async with stage.open() as (storage, _):
        bench = Workbench(storage, stage.advance)
        await bench.publish("changed", "shared", "free")
        with psycopg.connect(stage.dsn) as one, psycopg.connect(stage.dsn) as two:
            one.execute("UPDATE dispatch.tasks SET priority = 3 WHERE id = 'changed'")
            for user in (one, two):
                user.execute("SELECT 1 FROM dispatch.tasks WHERE id = 'shared' FOR KEY SHARE")
            assert await bench.taken(3) == ["free"]
            one.rollback()
            two.rollback()
        assert await bench.taken(3) == ["changed", "shared"]


async def test_what_somebody_only_looked_at_meanwhile_is_claimed_a_moment_later(stage: Stage) -> None:
    async with stage.open() as (storage, _), stage.storage() as other:
        bench = Workbench(storage, stage.advance)
        run = await bench.started("run")
        await bench.publish("free", unique=unique("u"))

        async with turning(stage, storage, run) as turned:
            again = bench.task("again", unique=unique("u"))  # locks what is there, and lets it go
            assert [each.answer for each in await other.enqueue([again])] == [EnqueueAnswer.EXISTING]
        [claimed] = turned
        assert claimed.claims == []  # it may have been taken, and nobody rings
        assert claimed.next_due == pytest.approx(stage.now + BUSY_S)
        found = await storage.claim([Want(queue="q", limit=2)], worker="w", lease=LEASE_S)
        assert [claim.id for claim in found.claims] == ["free"]


@pytest.mark.battery
async def test_what_a_set_of_transactions_shared_waits_for_no_number() -> None:
    with postgres_server() as server, ExitStack() as stack:
        stage = Stage(server.fresh_database())
        stack.callback(stage.close)
        async with stage.open() as (storage, _):
            bench = Workbench(storage, stage.advance)
            await bench.publish("alone", *(f"other{n}" for n in range(100)))
            users = [stack.enter_context(psycopg.connect(stage.dsn)) for _ in range(12)]
            stage.execute("CREATE TABLE parent AS SELECT n AS id FROM generate_series(0, 4095) AS n")
            for number, user in enumerate(users):  # each of 4,096 sets of users is given a number
                user.execute("SELECT 1 FROM parent WHERE id & %s <> 0 FOR KEY SHARE", (1 << number,))
            for user in users:
                user.rollback()
            for user in users[:2]:
                user.execute("SELECT 1 FROM dispatch.tasks WHERE id = 'alone' FOR KEY SHARE")
            for user in users[:2]:
                user.rollback()
            # As if the transaction that took it were still to come.
            assert stage.execute(
                "SELECT xmax::text::int8 > pg_snapshot_xmax(pg_current_snapshot())::text::int8"
                " FROM @.tasks WHERE id = 'alone'"
            ) == [(True,)]
            # Where others fill all slots, it waits for some claims and no more.
            taken = [(await bench.taken())[0] for _ in range(70)]
            assert "alone" in taken
            assert taken.index("alone") > 50
            stage.execute("UPDATE @.tasks SET state = 0 WHERE id = 'alone'")
            for user in users[:2]:
                user.execute("SELECT 1 FROM dispatch.tasks WHERE id = 'alone' FOR KEY SHARE")
            for user in users[:2]:
                user.rollback()
            # Where slots are left, for a moment.
            found = await storage.claim([Want(queue="q", limit=90)], worker="w", lease=LEASE_S)
            assert "alone" not in {claim.id for claim in found.claims}
            assert found.next_due == pytest.approx(stage.now + BUSY_S)
            found = await storage.claim([Want(queue="q", limit=90)], worker="w", lease=LEASE_S)
            assert [claim.id for claim in found.claims] == ["alone"]
            assert found.next_due is None


async def test_what_the_same_turn_has_looked_at_is_claimed(stage: Stage) -> None:
    async with stage.open() as (storage, _):
        bench = Workbench(storage, stage.advance)
        run = await bench.started("run")
        await bench.publish("first", unique=unique("u"))
        spawned = bench.task("second", unique=unique("u"))  # kept away by the first, which is locked for that
        ended = [Transition(run.id, run.epoch, TransitionKind.DONE, spawn=(spawned,))]
        _, claimed = await storage.turn(ended, [Want(queue="q", limit=2)], worker="w", lease=LEASE_S)
        assert [claim.id for claim in claimed.claims] == ["first"]


@pytest.mark.parametrize(
    ("xmax", "snapshot", "untaken"),
    [
        (0, "100:110:103,105", True),
        (99, "100:110:103,105", True),
        (103, "100:110:103,105", False),
        (104, "100:110:103,105", True),
        (105, "100:110:103,105", True),  # its own
        (109, "100:110:103", True),
        (110, "100:110:103", False),
        (5_000, "100:110:103", False),
        (200_000, "100:110:103", True),  # of no transaction, but of a set of them
        (3_000_000_000, "100:110:103", True),
        (4, f"{3 * ERA + 5}:{3 * ERA + 12}:{3 * ERA + 7}", True),
        (7, f"{3 * ERA + 5}:{3 * ERA + 12}:{3 * ERA + 7}", False),
        (8, f"{3 * ERA + 5}:{3 * ERA + 12}:{3 * ERA + 7}", True),
        (12, f"{3 * ERA + 5}:{3 * ERA + 12}:{3 * ERA + 7}", False),
        (ERA - 5, f"{3 * ERA + 5}:{3 * ERA + 12}:{3 * ERA + 7}", True),
        (ERA - 3, f"{3 * ERA - 9}:{3 * ERA + 12}:{3 * ERA - 3}", False),
        (ERA - 4, f"{3 * ERA - 9}:{3 * ERA + 12}:{3 * ERA - 3}", True),
        (3, f"{3 * ERA - 9}:{3 * ERA - 2}:{3 * ERA - 3}", False),
    ],
)
def test_who_changed_a_row_last_is_told_by_32_bits(stage: Stage, xmax: int, snapshot: str, untaken: bool) -> None:
    found = stage.execute(
        # S608: a text of our own.
        "WITH sight AS (SELECT s AS seen, pg_snapshot_xmax(s)::text::int8 AS top, '105'::xid AS own"  # noqa: S608
        f" FROM (VALUES (%s::pg_snapshot)) AS v (s)) SELECT {UNTAKEN} FROM (SELECT %s::text::xid AS xmax) AS t",
        (snapshot, str(xmax)),
    )
    assert found == [(untaken,)]
