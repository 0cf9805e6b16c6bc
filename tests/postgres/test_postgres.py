"""PostgreSQL alone: schema and migrations, other processes, the user's transactions, plans."""

# pyright: reportPrivateUsage=false
# Plans are asked for on the storage's own connections, which are set up for it.

from __future__ import annotations

import random
import re
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from itertools import count
from typing import Any

import attrs
import pytest
import sqlalchemy
import trio
import trio.testing
from psycopg.rows import dict_row
from sqlalchemy.orm import Session

from dispatch.bell import Bell
from dispatch.clock import Clock
from dispatch.errors import ClosedError, InvalidConfigError, StorageError
from dispatch.lifecycle import SettleAnswer
from dispatch.records import Claim, NewTask, TaskRecord, Transition, TransitionKind
from dispatch.storage import postgres, postgres_schema
from dispatch.storage.memory import MemoryStorage
from dispatch.storage.postgres import PostgresStorage
from dispatch.storage.postgres_claim import REACH, _values
from dispatch.storage.postgres_schema import LOCK_MS, SCHEMA_VERSION, migrate, migration_sql
from dispatch.storage.postgres_step import Again, Step
from dispatch.storage.protocol import (
    Change,
    CronRecord,
    EnqueueAnswer,
    QueueRecord,
    RemoveAnswer,
    Storage,
    Topic,
    TopicKind,
    Want,
)
from dispatch.storage.psycopg_conninfo import with_options
from dispatch.storage.psycopg_trio import TrioConnection, TrioPool, psycopg
from dispatch.storage.query import All, Ids, Order, PruneSpec, Queues, Statuses, Types, Where
from dispatch.tasks import TaskStatus
from dispatch.testing.postgres import PostgresServer
from dispatch.testing.workbench import LEASE_S, Workbench, unique
from tests.conclusive import was_tested
from tests.engine.waits import check_every_reason
from tests.postgres.stage import START, Stage

SECRET = "hunter2"  # noqa: S105 - of nobody
QUEUE = Topic(TopicKind.QUEUE, "q")


def new(id: str, **fields: Any) -> NewTask:  # noqa: A002
    return NewTask(id=id, **{"queue": "q", "type": "t", "payload": b"{}", **fields})


async def woken(storage: PostgresStorage, change: Callable[[], Any], within_s: float) -> bool:
    bell = Bell()
    with storage.watch(bell, QUEUE):
        await trio.sleep(0.02)  # what was rung before is heard before
        await bell.wait(0.0)
        result = change()
        if result is not None:
            await result
        with trio.move_on_after(within_s) as scope:
            await bell.wait()
    return not scope.cancelled_caught


# ---- schema ------------------------------------------------------------------


async def refusal(dsn: str, **settings: Any) -> str:
    with pytest.raises(StorageError) as caught:
        async with PostgresStorage(dsn, **settings):
            raise AssertionError("it opened")
    return caught.value.detail


def place(dsn: str) -> str:
    given = psycopg.conninfo.conninfo_to_dict(dsn)
    return f"database {given['dbname']!r} on {given['host']}:{given.get('port', 5432)}"


async def test_a_database_without_the_schema_is_refused_with_the_remedy(database: str) -> None:
    assert await refusal(database) == (
        f"{place(database)}: schema 'dispatch' is missing and this trio-dispatch needs version 2: run `dispatch migrate` "
        "with this database's URL (`dispatch migrate --sql` prints it)"
    )


async def test_the_password_is_no_part_of_where_the_schema_is_missing(database: str) -> None:
    told = await refusal(psycopg.conninfo.make_conninfo(database, password=SECRET))
    assert told.startswith(place(database))
    assert SECRET not in told


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("ALTER TABLE dispatch.tasks RENAME COLUMN worker TO workers", "42703"),
        ("ALTER TABLE dispatch.tasks RENAME TO task", "42P01"),
        ("ALTER SCHEMA dispatch RENAME TO dispatched", "3F000"),
        ("ALTER FUNCTION dispatch.now_s() RENAME TO then_s", "42883"),
    ],
)
async def test_a_schema_changed_under_a_running_worker_is_told_so(database: str, change: str, code: str) -> None:
    async def work(storage: PostgresStorage) -> None:
        await storage.find(All())
        await storage.enqueue([new("a")])

    migrate(database)
    async with PostgresStorage(database) as storage:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(change.encode())
        with pytest.raises(StorageError) as caught:
            await work(storage)
        assert f"({code}" in caught.value.detail
        assert caught.value.detail.endswith(
            "; the schema was changed while this process ran: restart the process, and if a newer trio-dispatch "
            "migrated the schema, upgrade the package in it"
        )


async def test_a_missing_table_of_ones_own_is_no_change_of_the_schema(database: str) -> None:
    pool = TrioPool(database)
    with pytest.raises(StorageError) as caught:
        async with pool.connection() as connection:
            await connection.execute(b"SELECT * FROM mine")
    await pool.aclose()
    assert caught.value.detail.endswith('relation "mine" does not exist (42P01)')


async def test_migrating_makes_it_and_once_more_changes_nothing(database: str) -> None:
    assert migrate(database) == (0, SCHEMA_VERSION)
    assert migrate(database) == (SCHEMA_VERSION, SCHEMA_VERSION)
    async with PostgresStorage(database) as storage:
        assert await storage.queues() == []


def of_the_first_version(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for part in (postgres_schema._foundation("dispatch"), postgres_schema._step("dispatch", 1)):
            connection.execute(part.encode())


async def test_a_schema_of_the_first_version_is_refused_and_brought_up(database: str) -> None:
    of_the_first_version(database)
    assert (await refusal(database)).startswith(
        f"{place(database)}: schema 'dispatch' is at version 1 and this trio-dispatch needs version {SCHEMA_VERSION}: run"
    )
    assert migrate(database) == (1, SCHEMA_VERSION)
    async with PostgresStorage(database) as storage:
        await storage.declare([QueueRecord(name="q")])
        answers = [(await storage.enqueue([new(id_, unique=unique())]))[0].answer for id_ in ("a", "b")]
        assert answers == [EnqueueAnswer.CREATED, EnqueueAnswer.EXISTING]


async def test_migrating_keeps_nobody_waiting_for_a_long_read(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_the_first_version(database)
    monkeypatch.setattr(postgres_schema, "LOCK_MS", 50)
    monkeypatch.setattr(postgres_schema, "TRIES", 2)
    monkeypatch.setattr(postgres_schema, "PAUSE_S", 0.01)
    with psycopg.connect(database) as reader:
        reader.execute("SELECT count(*) FROM dispatch.tasks")
        with pytest.raises(StorageError, match="2 times the tables were not free for 50 ms, and nothing was changed"):
            migrate(database)
    assert migrate(database) == (1, SCHEMA_VERSION)


async def test_the_rest_of_the_script_is_for_the_version_that_it_says(database: str) -> None:
    of_the_first_version(database)
    with psycopg.connect(database, autocommit=True) as connection:
        with pytest.raises(psycopg.errors.RaiseException, match=r"at version 1: take the script .* --since 1 prints"):
            connection.execute(migration_sql().encode())
        connection.rollback()
        assert "`dispatch migrate --sql --since 1` prints it" in await refusal(database)
        connection.execute(migration_sql(since=1).encode())
    assert migrate(database) == (SCHEMA_VERSION, SCHEMA_VERSION)
    with pytest.raises(InvalidConfigError, match="since must be a schema version of 0 to 2, got 3"):
        migration_sql(since=3)


async def test_a_database_that_cannot_hold_every_text_is_refused(server: PostgresServer) -> None:
    server.execute("CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    try:
        latin = server.dsn_of("latin")
        with pytest.raises(StorageError, match="encoding is LATIN1, which cannot hold every text; wanted is UTF8"):
            migrate(latin)
        assert "encoding is LATIN1" in await refusal(latin)
    finally:
        server.execute("DROP DATABASE latin WITH (FORCE)")


@pytest.mark.parametrize("word", ["user", "order", "select"])
async def test_a_schema_named_by_a_word_of_sql_is_refused(database: str, word: str) -> None:
    with pytest.raises(InvalidConfigError, match=f"schema '{word}' is a word of SQL: take another name"):
        migrate(database, schema=word)
    with pytest.raises(InvalidConfigError, match="is a word of SQL"):
        async with PostgresStorage(database, schema=word):
            raise AssertionError("it opened")


def test_migrating_shows_no_password() -> None:
    for dsn in (f"postgresql://ada:{SECRET}%zz@host/x", f"postgresql://ada:{SECRET} w@host/x"):
        with pytest.raises(StorageError) as refused:
            migrate(dsn)
        assert SECRET not in refused.value.detail


async def test_two_that_migrate_at_once_make_it_once(database: str) -> None:
    found: list[tuple[int, int]] = []
    both = [threading.Thread(target=lambda: found.append(migrate(database))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert sorted(found) == [(0, SCHEMA_VERSION), (SCHEMA_VERSION, SCHEMA_VERSION)]


async def test_the_printed_script_makes_the_same_and_can_be_run_by_hand(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(migration_sql("jobs").encode())
    assert migrate(database, schema="jobs") == (SCHEMA_VERSION, SCHEMA_VERSION)
    async with PostgresStorage(database, schema="jobs") as storage:
        assert await storage.queues() == []


async def test_a_newer_schema_is_used_where_it_says_so_and_else_refused(database: str) -> None:
    migrate(database)
    add = "INSERT INTO dispatch.migrations (version, oldest_code) VALUES (%s, %s)"
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(add, (98, SCHEMA_VERSION))
        async with PostgresStorage(database) as storage:
            assert await storage.queues() == []
        connection.execute(add, (99, SCHEMA_VERSION + 1))
    newer = (
        "schema 'dispatch' was made by a newer trio-dispatch (version 99; this one knows 2): "
        "upgrade the package in this process"
    )
    assert await refusal(database) == f"{place(database)}: {newer}"
    with pytest.raises(StorageError) as caught:
        migrate(database)
    assert caught.value.detail == newer


async def test_two_schemas_in_one_database_do_not_meet(database: str) -> None:
    for schema in ("one", "two"):
        migrate(database, schema=schema)
    async with (
        PostgresStorage(database, schema="one") as one,
        PostgresStorage(database, schema="two") as two,
    ):
        await one.declare([QueueRecord(name="q")])
        assert await two.queues() == []
        # Once, it may be woken by its listener having connected.
        assert not all([await woken(two, partial(one.enqueue, [new(id_)]), 0.2) for id_ in "abc"])


@pytest.mark.parametrize("name", ["", "1a", "pg_own", "a b", 'a"b', "Ä", "A", "a" * 49])
def test_a_schemas_name_is_one_that_needs_no_quotes(name: str) -> None:
    with pytest.raises(InvalidConfigError, match="schema must be 1 to 48 characters of a-z 0-9 _"):
        PostgresStorage("", schema=name)


async def test_what_cannot_be_opened_is_told_without_the_password(server: PostgresServer) -> None:
    storage = PostgresStorage(server.dsn_of("nowhere", password=SECRET))
    assert SECRET not in repr(storage)
    with pytest.raises(StorageError, match='database "nowhere" does not exist') as caught:
        async with storage:
            raise AssertionError("it opened")
    assert SECRET not in caught.value.detail


# ---- open and closed -----------------------------------------------------------


async def test_a_closed_storage_says_so_and_is_not_opened_again(stage: Stage) -> None:
    async with stage.open() as (storage, _):
        await storage.declare([QueueRecord(name="q")])
    for call in (lambda: storage.enqueue([new("a")]), storage.queues, storage.rescue):
        with pytest.raises(ClosedError, match="it is not open"):
            await call()
    with pytest.raises(InvalidConfigError, match="opened once already; make a new one"):
        async with storage:
            raise AssertionError("it opened")


async def test_now_is_the_databases_clock(stage: Stage) -> None:
    stage.clear()
    stage.set(stage.now + 1_000.0)
    behind = stage.storage()
    behind._ticks = lambda: 5.0
    async with behind as storage:
        assert storage.now() == stage.now


async def test_many_publishers_share_a_statement(stage: Stage) -> None:
    async with stage.open() as (storage, _):
        await storage.declare([QueueRecord(name="q")])
        plain, statements = storage._tasks.enqueue_plain, 0

        async def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal statements
            statements += 1
            return await plain(*args, **kwargs)

        storage._tasks.enqueue_plain = counted  # type: ignore[method-assign]
        answers: list[EnqueueAnswer] = []

        async def publish(id_: str) -> None:
            answers.extend([one.answer for one in await storage.enqueue([new(id_)])])

        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(publish, f"t{number % 290}")
        assert sorted(answers) == [EnqueueAnswer.CREATED] * 290 + [EnqueueAnswer.EXISTING] * 10
        assert statements < 30


VARIETIES: dict[str, tuple[Any, Any]] = {
    "type": ("t", "u"),
    "payload": (b'"a"', b'"{\\"b\\": null}"'),
    "version": (1, 2),
    "headers": ({}, {"trace": 'NULL "{\\}" ü'}),
    "available_at": (None, START + 5.5),
    "delay": (0, 7.25),
    "timeout": (None, 3),
    "max_retry": (None, 0),
    "priority": (1, 3),
    "tags": ((), ("NULL", "a,b")),
    "cron": (None, "null"),
    "slot": (None, START),
    "key": (None, "ä {x}"),
}


@pytest.mark.parametrize("keyed", [False, True])
async def test_what_tasks_of_a_batch_share_and_what_they_do_not_is_stored(stage: Stage, keyed: bool) -> None:
    async def stored(storage: Storage) -> dict[str, TaskRecord]:
        await storage.declare([QueueRecord(name="q", keyed=keyed)])
        for field, (one, other) in VARIETIES.items():
            more = {"key": "k"} if keyed and field != "key" else {}
            batches = [[one, one], [one, other], [other, other, one], [other, other], [other]]
            for number, values in enumerate(batches):
                tasks = [
                    new(f"{field} {number} {at}", **{field: value}, **more)
                    for at, value in enumerate(values)
                ]
                answers = await storage.enqueue(tasks)
                assert {each.answer for each in answers} == {EnqueueAnswer.CREATED}
        page = await storage.find(All(), limit=1_000)
        return {each.id: attrs.evolve(each, seq=0) for each in page.records}

    async with stage.open() as (storage, _):
        found = await stored(storage)
    assert len(found) == 10 * len(VARIETIES)
    assert found == await stored(MemoryStorage(Clock(wall=lambda: START)))


async def test_one_callers_bad_task_is_not_the_others_trouble(stage: Stage) -> None:
    async with stage.open() as (storage, _):
        await storage.declare([QueueRecord(name="q")])
        failed: list[str] = []

        async def publish(task: NewTask) -> None:
            try:
                await storage.enqueue([task])
            except StorageError:
                failed.append(task.id)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, new("first"))
            for task in (
                new("good"),
                new("bad", key="\0"),
                new("worse", key="\ud800"),
                new("better"),
            ):
                nursery.start_soon(publish, task)
        assert sorted(failed) == ["bad", "worse"]
        found = await storage.find(All())
        assert sorted(record.id for record in found.records) == ["better", "first", "good"]


async def test_a_key_that_a_transaction_holds_is_not_the_others_trouble(
    stage: Stage, connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "DEADLINE_S", 1.0)
    async with stage.open() as (storage, advance):
        bench = Workbench(storage, advance)
        await bench.publish("first")  # of its type, which that transaction would else be making
        storage.enqueue_in(connection, [new("theirs", unique=unique())])
        began, answered = trio.current_time(), dict[str, float]()

        async def plain(id_: str) -> None:
            [result] = await storage.enqueue([new(id_)])
            assert result.answer is EnqueueAnswer.CREATED
            answered[id_] = trio.current_time() - began

        async def held() -> None:
            with pytest.raises(StorageError, match="no answer within 1 s"):
                await storage.enqueue([new("beside it"), new("ours", unique=unique())])
            answered["ours"] = trio.current_time() - began

        async with trio.open_nursery() as nursery:  # all before the first statement: one batch
            nursery.start_soon(plain, "a")
            nursery.start_soon(held)
            nursery.start_soon(plain, "b")
        assert max(answered["a"], answered["b"]) < 0.9 < answered["ours"]
        assert sorted(await bench.ids()) == ["a", "b", "first"]
        connection.rollback()
        results = await storage.enqueue([new("beside it"), new("ours", unique=unique()), new("a")])
        assert [result.answer for result in results] == [
            EnqueueAnswer.CREATED,
            EnqueueAnswer.CREATED,
            EnqueueAnswer.EXISTING,
        ]


@pytest.mark.battery
async def test_queues_are_placed_anew_once_no_transaction_writes(
    stage: Stage, connection: psycopg.Connection[Any]
) -> None:
    async with stage.open() as (storage, advance):
        bench = Workbench(storage, advance)
        await bench.publish("first")
        storage.enqueue_in(connection, [new("theirs")])
        declared = trio.Event()

        async def declare() -> None:
            await storage.declare([QueueRecord(name="q", keyed=True)])
            declared.set()

        slowest = 0.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(declare)
            for number in range(30):
                began = trio.current_time()
                await bench.publish(f"{number}")
                slowest = max(slowest, trio.current_time() - began)
                await trio.sleep(0.05)
            assert not declared.is_set()
            connection.commit()
            with trio.fail_after(20):
                await declared.wait()
        assert slowest < LOCK_MS / 1_000 + 1.0, "others go on between the tries"
        assert [queue.keyed for queue in await storage.queues()] == [True]


@pytest.mark.battery
async def test_a_transaction_without_end_keeps_queues_as_they_are(
    stage: Stage, connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "TABLE_TRIES", 1)
    async with stage.open() as (storage, advance):
        bench = Workbench(storage, advance)
        await bench.publish("first")
        before = await storage.queues()
        storage.enqueue_in(connection, [new("theirs")])
        with pytest.raises(StorageError, match=r"changes `keyed` or `on_retry`.*end it, then declare again"):
            await storage.declare([QueueRecord(name="q", keyed=True), QueueRecord(name="other")])
        assert await storage.queues() == before
        connection.rollback()
        await storage.declare([QueueRecord(name="q", keyed=True)])
        assert [queue.keyed for queue in await storage.queues()] == [True]


# ---- removing a queue --------------------------------------------------------

NOWHERE = (
    "SELECT t.id FROM @.tasks t LEFT JOIN @.queues q ON q.id = t.queue"
    " LEFT JOIN @.lanes l ON l.id = t.lane AND l.queue = t.queue WHERE q.id IS NULL OR l.id IS NULL"
)
"""Tasks without a queue, or in a lane that is not their queue's."""


async def unused(bench: Workbench) -> None:
    """A queue that has had tasks, so that this process knows its lanes."""
    await bench.publish("first")
    await bench.alter(All(), "cancel")
    await bench.storage.prune(PruneSpec(keep=0))


@pytest.mark.parametrize("isolation", ["REPEATABLE_READ", "SERIALIZABLE"])
async def test_a_transaction_that_still_sees_a_removed_queue_cannot_store_in_it(
    isolation: str, stage: Stage, connection: psycopg.Connection[Any]
) -> None:
    connection.isolation_level = psycopg.IsolationLevel[isolation]
    async with stage.open() as (storage, advance):
        bench = Workbench(storage, advance)
        for again in (False, True):  # the name alone is not what it saw
            await bench.declare()
            await unused(bench)
            connection.execute("SELECT 1")
            assert await storage.remove_queue("q") is RemoveAnswer.REMOVED
            if again:
                await bench.declare(keyed=True)
            with pytest.raises(StorageError, match="could not serialize access"):
                storage.enqueue_in(connection, [new("late")])
            connection.rollback()
        await bench.declare()
        assert [one.answer for one in storage.enqueue_in(connection, [new("a")])] == [EnqueueAnswer.CREATED]
        connection.commit()
        assert (await bench.ids(), await bench.taken(9)) == (["a"], ["a"])
        assert stage.execute(NOWHERE) == []


async def test_such_a_transaction_is_not_disturbed_by_claims_from_a_limited_queue(
    stage: Stage, connection: psycopg.Connection[Any]
) -> None:
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    async with stage.open() as (storage, advance):
        bench = Workbench(storage, advance)
        await bench.declare(rate=(5, 60.0))
        await bench.publish("first")
        connection.execute("SELECT 1")
        assert await bench.taken() == ["first"]  # which writes the queue's row
        await storage.alter_queue("q", concurrency=3)
        storage.enqueue_in(connection, [new("a")])
        assert await bench.storage.remove_queue("q") is RemoveAnswer.STORED
        connection.commit()
        assert await bench.taken() == ["a"]


@pytest.mark.parametrize("ends", ["commit", "rollback"])
async def test_a_queue_is_removed_once_no_transaction_writes(
    ends: str, stage: Stage, connection: psycopg.Connection[Any]
) -> None:
    async with stage.open() as (storage, advance):
        bench = Workbench(storage, advance)
        await bench.declare("other")
        await bench.declare()
        await unused(bench)
        storage.enqueue_in(connection, [new("theirs")])
        answers: list[RemoveAnswer] = []

        async def remove() -> None:
            answers.append(await storage.remove_queue("q"))

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(remove)
                await trio.sleep(0.3)
                assert answers == []
                getattr(connection, ends)()
        stays = ends == "commit"
        assert answers == [RemoveAnswer.STORED if stays else RemoveAnswer.REMOVED]
        assert [queue.name for queue in await storage.queues()] == (["other", "q"] if stays else ["other"])


@pytest.mark.battery
async def test_a_transaction_without_end_keeps_queues_from_being_removed(
    stage: Stage, connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "TABLE_TRIES", 1)
    async with stage.open() as (storage, advance):
        bench = Workbench(storage, advance)
        await unused(bench)
        await bench.publish("elsewhere", queue="other")
        storage.enqueue_in(connection, [new("theirs", queue="other")])
        with pytest.raises(StorageError, match=r"Nothing was removed.*end it, then remove again"):
            await storage.remove_queue("q")
        scope = trio.CancelScope()
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(storage.remove_queue, "q")
                await trio.sleep(0.2)
                scope.cancel()
        await bench.publish("b", queue="other")  # neither waits behind what was cancelled
        assert [queue.name for queue in await storage.queues()] == ["other", "q"]
        # What is refused anyway waits for nobody.
        assert await storage.remove_queue("other") is RemoveAnswer.STORED
        connection.rollback()
        assert await storage.remove_queue("q") is RemoveAnswer.REMOVED


@pytest.mark.battery
async def test_of_a_queue_that_comes_and_goes_every_task_has_its_lane(stage: Stage) -> None:
    said = Counter[str]()
    chance = random.Random(1)
    until = trio.current_time() + 1.5

    async def publish(storage: PostgresStorage, mark: str, **fields: Any) -> None:
        for number in count():
            if trio.current_time() > until:
                return
            name = f"{mark}{number}"
            key = {"unique": unique(name)} if "unique" in fields else {}
            [one] = await storage.enqueue([new(name, **{**fields, **key})])
            said[one.answer] += 1
            await trio.sleep(chance.uniform(0, 0.1))  # for now and then nothing is stored

    async def joined(storage: PostgresStorage, level: psycopg.IsolationLevel) -> None:
        with psycopg.connect(stage.dsn) as connection:
            connection.isolation_level = level
            for number in count():
                if trio.current_time() > until:
                    return
                try:
                    with connection.transaction():
                        connection.execute("SELECT 1")
                        await trio.sleep(chance.uniform(0, 0.1))
                        [one] = await trio.to_thread.run_sync(
                            storage.enqueue_in, connection, [new(f"{level.name}{number}")]
                        )
                    said[f"joined {one.answer}"] += 1
                except StorageError as exc:
                    said[type(exc.__cause__).__name__] += 1
                except InvalidConfigError:  # it is not there, which such a transaction cannot be told
                    said["not there"] += 1

    async def work(storage: PostgresStorage) -> None:
        bench = Workbench(storage, stage.advance)
        while trio.current_time() < until:
            for claim in await bench.claim(9):
                await bench.settle(claim)
            await trio.sleep(0.002)

    async def come_and_go(storage: PostgresStorage) -> None:
        while trio.current_time() < until:
            await storage.declare([QueueRecord(name="q", rate=(1_000_000, 1.0))])
            await trio.sleep(0.005)
            answer = None
            while answer is not RemoveAnswer.REMOVED and trio.current_time() < until:
                await storage.alter(Queues("q"), Change(action="cancel"))
                await storage.prune(PruneSpec(keep=0))
                said[answer := await storage.remove_queue("q")] += 1

    async with stage.open() as (one, _), stage.storage() as other:
        async with trio.open_nursery() as nursery:
            for mark, storage in (("a", one), ("b", other)):
                nursery.start_soon(publish, storage, mark)
                nursery.start_soon(partial(publish, storage, f"{mark}u", unique=True))
                nursery.start_soon(work, storage)
            nursery.start_soon(joined, one, psycopg.IsolationLevel.READ_COMMITTED)
            nursery.start_soon(joined, other, psycopg.IsolationLevel.REPEATABLE_READ)
            nursery.start_soon(come_and_go, one)
        assert stage.execute(NOWHERE) == []
        await one.declare([QueueRecord(name="q")])
        bench = Workbench(other, stage.advance)
        pending = await bench.ids(Statuses("pending"))
        assert sorted(await bench.taken(10_000)) == sorted(pending)
    assert said["DeadlockDetected"] == 0, said
    was_tested(*(said[each] > 0 for each in ("created", "unknown_queue", "removed", "stored", "joined created")))


def success(claim: Claim) -> Transition:
    return Transition(claim.id, claim.epoch, TransitionKind.DONE)


async def test_a_line_that_others_hold_keeps_nobody_else_from_being_rescued(
    stage: Stage, connection: psycopg.Connection[Any]
) -> None:
    async with stage.open() as (storage, advance):
        bench = Workbench(storage, advance)
        await bench.declare(keyed=True)
        await bench.publish("held", key="k")
        await bench.publish("a", "b")
        assert len(await bench.claim(9, lease=1.0)) == 3
        await advance(5.0)
        storage.enqueue_in(connection, [new("theirs", key="k")])  # and does not commit for a while
        with trio.fail_after(3):
            assert {record.id for record in (await storage.rescue(1)).records} <= {"a", "b"}
            rescued = {record.id for record in (await storage.rescue()).records}
            assert (await storage.rescue()).records == []
        assert len(rescued) == 1
        connection.rollback()
        assert [record.id for record in (await storage.rescue()).records] == ["held"]


async def test_a_row_that_others_hold_keeps_nothing_else_from_being_pruned(
    stage: Stage, connection: psycopg.Connection[Any]
) -> None:
    async with stage.open() as (storage, advance):
        bench = Workbench(storage, advance)
        for id_ in ("a", "held", "b"):
            await bench.ended(id_)
        connection.execute("SELECT 1 FROM dispatch.tasks WHERE id = 'held' FOR UPDATE")
        with trio.fail_after(3):
            assert await storage.prune(PruneSpec(keep=0)) == 2
            assert await storage.prune(PruneSpec(keep=0)) == 0
        connection.rollback()
        assert await storage.prune(PruneSpec(keep=0)) == 1


@pytest.mark.parametrize("setting", ["lock_timeout", "statement_timeout"])
async def test_a_servers_own_short_patience_fails_only_who_waited(
    setting: str, stage: Stage, connection: psycopg.Connection[Any]
) -> None:
    async with stage.open() as (storage, advance):
        bench = Workbench(storage, advance)
        await bench.publish("first")
        async with storage._flow.connection() as ours:
            await ours.execute(f"SET {setting} = '300ms'".encode())
        storage.enqueue_in(connection, [new("theirs", unique=unique("held"))])
        answers: dict[str, object] = {}

        async def publish(id_: str) -> None:
            try:
                [result] = await storage.enqueue([new(id_, unique=unique(id_))])
                answers[id_] = result.answer
            except StorageError as exc:
                answers[id_] = "nothing was stored" in exc.detail

        try:
            async with trio.open_nursery() as nursery:
                for id_ in ("v", "w", "held", "x", "y"):
                    nursery.start_soon(publish, id_)
        finally:
            await ours.close()  # the stage would lend it to the next test
        created = EnqueueAnswer.CREATED
        assert answers == {"v": created, "w": created, "held": True, "x": created, "y": created}


async def test_many_ended_tasks_of_a_unique_key_cost_a_publish_little(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage.open() as (storage, advance):
        bench = Workbench(storage, advance)
        every = frozenset(TaskStatus)
        await bench.ended("first", unique=unique(statuses=every, within=60.0))
        stage.execute(
            "INSERT INTO @.tasks (id, queue, lane, priority, state, payload, created_at, available_at, finished_at,"
            " unique_key, unique_rule) SELECT 'old' || n, t.queue, t.lane, 1, 5, 'x', n, n, n, t.unique_key,"
            " t.unique_rule FROM @.tasks t, generate_series(1, 3000) AS n WHERE t.id = 'first'",
            (),
        )
        await advance(3_600.0)
        read: list[int] = []
        load = Step._load

        async def counted(step: Step, which: str, values: Any) -> Any:
            found = await load(step, which, values)
            read.append(len(found))
            return found

        monkeypatch.setattr(Step, "_load", counted)
        for id_, answer in (("new", EnqueueAnswer.CREATED), ("soon", EnqueueAnswer.EXISTING)):
            [result] = await storage.enqueue([new(id_, unique=unique(statuses=every, within=60.0))])
            assert result.answer is answer
        await advance(61.0)
        [result] = await storage.enqueue([new("later", unique=unique(statuses=every, within=60.0))])
        assert result.answer is EnqueueAnswer.CREATED
        assert max(read) <= 2


@pytest.mark.parametrize("turn", [True, False])
async def test_a_line_that_others_hold_keeps_no_claim_waiting(
    stage: Stage, connection: psycopg.Connection[Any], turn: bool
) -> None:
    async with stage.open() as (storage, advance):
        bench = Workbench(storage, advance)
        await bench.declare(keyed=True, on_retry="yield")
        await bench.publish("ak", key="k", max_retry=1)
        await bench.publish("al", key="l", max_retry=1)
        claims = {claim.id: claim for claim in await bench.claim(limit=2)}
        await bench.settle(claims["ak"], TransitionKind.FAILED, retry_in=1.0, error="E")
        await bench.publish("free")
        await advance(2.0)
        storage.enqueue_in(connection, [new("theirs", key="k")])
        done = [success(claims["al"])] if turn else []
        with trio.fail_after(3):
            settled, claimed = await storage.turn(
                done, [Want(queue="q", limit=9)], worker="w", lease=LEASE_S
            )
        assert [answer.answer for answer in settled] == [SettleAnswer.APPLIED] * len(done)
        assert [claim.id for claim in claimed.claims] == ["free"]
        assert claimed.next_due is not None
        assert stage.now < claimed.next_due < stage.now + 1.0, "it looks again soon, not at once"
        connection.rollback()
        assert [claim.id for claim in await bench.claim(limit=9)] == ["ak"]


async def test_a_settle_that_is_cancelled_in_between_settles_all(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage.open() as (storage, advance):
        bench = Workbench(storage, advance)
        await bench.declare(keyed=True)
        await bench.publish("plain")
        await bench.publish("lined", key="k")
        claims = await bench.claim(limit=2)
        succeed = storage._tasks.claims.succeed

        async def cancelling(*given: Any) -> Any:
            try:
                return await succeed(*given)
            finally:
                scope.cancel()

        monkeypatch.setattr(storage._tasks.claims, "succeed", cancelling)
        with trio.CancelScope() as scope:
            await storage.settle([success(claim) for claim in claims])
        assert [await bench.status(claim.id) for claim in claims] == [TaskStatus.SUCCEEDED] * 2


async def test_what_a_turn_ended_is_told_though_it_has_to_be_made_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage.open() as (storage, advance):
        bench = Workbench(storage, advance)
        await bench.declare(keyed=True, on_retry="yield")
        await bench.publish("a")
        await bench.publish("late", key="k", max_retry=1)
        claims = {claim.id: claim for claim in await bench.claim(limit=2)}
        await bench.settle(claims["late"], TransitionKind.FAILED, retry_in=1.0, error="E")
        await advance(2.0)
        storage._tasks._keyed.clear()  # as in a process that has not heard of it yet
        begin, begun = Step.begin, count()

        async def interrupted(step: Step, **given: Any) -> None:
            await begin(step, **given)
            if next(begun) == 0:
                raise Again

        monkeypatch.setattr(Step, "begin", interrupted)
        bell = Bell()
        with storage.watch(bell, Topic(TopicKind.TASK, "a")):
            wants = [Want(queue="q", limit=3)]
            _, claimed = await storage.turn([success(claims["a"])], wants, worker="w", lease=LEASE_S)
            with trio.fail_after(3):
                await bell.wait()
        assert [claim.id for claim in claimed.claims] == ["late"]


async def test_claims_in_hand_are_not_lost_to_a_further_look(
    stage: Stage, connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage.open() as (storage, advance):
        bench = Workbench(storage, advance)
        ids = [f"t{number:02}" for number in range(60)]
        await bench.publish(*ids)
        connection.execute("SELECT 1 FROM dispatch.tasks WHERE id = ANY(%s) FOR UPDATE", (ids[:33],))
        run, runs = storage._tasks.claims._run, count()

        async def cut(*given: Any) -> Any:
            if next(runs) == 1:
                raise psycopg.OperationalError("cut")
            return await run(*given)

        monkeypatch.setattr(storage._tasks.claims, "_run", cut)
        claims = await bench.claim(limit=5)
        connection.rollback()
        running = stage.execute("SELECT id FROM @.tasks WHERE state = 3 ORDER BY id")
        assert [(claim.id,) for claim in claims] == running != []


async def test_two_declarations_at_once_leave_no_task_behind(
    stage: Stage, connection: psycopg.Connection[Any]
) -> None:
    async with stage.open() as (one, advance), stage.storage() as two:
        bench = Workbench(one, advance)
        await bench.publish("a", "b", "c", key="k")
        connection.execute(b"SELECT 1 FROM dispatch.queues FOR UPDATE")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.declare, [QueueRecord(name="q", keyed=True)])
            await trio.sleep(0.15)
            nursery.start_soon(two.declare, [QueueRecord(name="q", max_waiting=1_000)])
            await trio.sleep(0.15)
            connection.rollback()
        ran: list[str] = []
        while claims := await bench.claim(limit=5):
            ran += [claim.id for claim in claims]
            for claim in claims:
                await bench.settle(claim)
        assert sorted(ran) == ["a", "b", "c"]


@pytest.mark.battery
async def test_a_busy_queue_with_a_limit_can_be_declared_anew(stage: Stage) -> None:
    async with AsyncExitStack() as stack:
        one, _ = await stack.enter_async_context(stage.open())
        await one.declare([QueueRecord(name="q", max_running=50)])
        others = [await stack.enter_async_context(stage.storage()) for _ in range(8)]
        declared = trio.Event()
        deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        before = stage.execute(deadlocks)

        async def work(storage: PostgresStorage, worker: str) -> None:
            number = 0
            while not declared.is_set():
                number += 1
                await storage.enqueue([new(f"{worker}-{number}")])
                claimed = await storage.claim([Want(queue="q", limit=2)], worker=worker, lease=LEASE_S)
                await storage.settle([success(claim) for claim in claimed.claims])

        async with trio.open_nursery() as nursery:
            for number, storage in enumerate(others):
                await storage.queues()  # it knows of the limit
                nursery.start_soon(work, storage, f"w{number}")
            await trio.sleep(0.5)
            await one.declare([QueueRecord(name="q", max_running=50, keyed=True)])
            declared.set()
        assert stage.execute(deadlocks) == before


async def test_a_publisher_that_is_cancelled_while_it_waits_its_turn_stores_nothing(
    stage: Stage,
) -> None:
    async with stage.open() as (storage, _):
        await storage.declare([QueueRecord(name="q")])
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(storage.enqueue, [new("under way")])
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(storage.enqueue, [new("waiting")])
                await trio.testing.wait_all_tasks_blocked(0.0)
                scope.cancel()
        found = {record.id for record in (await storage.find(All())).records}
        assert found <= {"under way", "waiting"}
        # Whatever was decided, the storage goes on.
        assert (await storage.enqueue([new("next")]))[0].answer is EnqueueAnswer.CREATED


# ---- other processes -------------------------------------------------------------


async def test_publishing_wakes_another_process_at_once(stage: Stage) -> None:
    async with stage.open() as (storage, _), stage.storage() as other:
        await storage.declare([QueueRecord(name="q")])
        assert await woken(other, lambda: storage.enqueue([new("first")]), 2.0)
        assert await woken(other, lambda: storage.enqueue([new("second")]), 2.0)


async def test_where_listen_does_not_pass_the_poll_wakes(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage.open() as (storage, _):
        await storage.declare([QueueRecord(name="q")])
        async with stage.storage(listen=False) as deaf:
            assert not await woken(deaf, lambda: storage.enqueue([new("a")]), 0.3)
        monkeypatch.setattr(postgres, "POLL_DEAF_S", 0.05)
        async with stage.storage(listen=False) as polling:
            assert await woken(polling, lambda: None, 2.0)


async def test_a_jump_of_the_databases_clock_wakes_everybody_at_the_next_look(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "CLOCK_S", 0.05)
    async with stage.open() as (storage, _):
        monkeypatch.setattr(storage, "_ticks", lambda: 5.0)
        assert await woken(storage, lambda: None, 2.0), "what it went by has jumped"
        assert not await woken(storage, lambda: None, 0.3)
        assert await woken(storage, lambda: stage.set(stage.now + 3_600.0), 2.0)
        assert storage.now() == stage.now


async def test_slow_reads_hold_up_each_other_and_nothing_else(stage: Stage) -> None:
    async with stage.open() as (storage, advance), stage.storage() as other, trio.open_nursery() as nursery:
        bench, elsewhere = Workbench(storage, advance), Workbench(other, advance)
        claim = await bench.started()
        slow = [trio.CancelScope() for _ in range(2)]

        async def read(scope: trio.CancelScope) -> None:
            with scope:
                await storage._read(lambda connection: connection.execute("SELECT pg_sleep(60)"))

        for scope in slow:
            nursery.start_soon(read, scope)
        with trio.fail_after(4):
            while storage._reads._lent < 2:  # noqa: ASYNC110 - nothing rings for it
                await trio.sleep(0.01)
            assert [queue.name for queue in await storage.queues()] == ["q"]
            assert (await storage.workers(), await storage.crons()) == ([], [])
        assert await woken(other, lambda: bench.publish("b"), 3.0)
        bell = Bell()
        with storage.watch(bell, Topic(TopicKind.TASK, "a")), trio.fail_after(4):
            await elsewhere.settle(claim)
            await bell.wait()
        waiting = trio.Event()

        async def count() -> None:
            assert await storage.count(All()) == {(): 2}
            waiting.set()

        nursery.start_soon(count)
        await trio.sleep(0.1)
        assert not waiting.is_set()
        slow[0].cancel()
        with trio.fail_after(4):
            await waiting.wait()
        slow[1].cancel()


async def test_a_storm_of_publishing_is_told_in_few_notifications(stage: Stage) -> None:
    async with stage.open() as (storage, _):
        await storage.declare([QueueRecord(name="q")])
        async with await TrioConnection.connect(stage.dsn, autocommit=True) as listener:
            await listener.execute('LISTEN "dispatch.dispatch"')
            began = trio.current_time()
            for number in range(200):
                await storage.enqueue([new(f"t{number}")])
            took = trio.current_time() - began
            heard: list[str] = []
            with trio.move_on_after(0.2):
                async for notification in listener.notifies():
                    heard.append(notification.payload)
        assert all(payload.split(" ", 1)[1] == "queue:q" for payload in heard)
        assert 1 <= len(heard) <= 2 + took / 0.01


async def test_a_fleets_limit_holds_however_many_claim_at_once(stage: Stage) -> None:
    async with stage.open() as (storage, _), stage.storage() as other:
        bench = Workbench(storage, stage.advance)
        await bench.declare(max_running=3, rate=(100, 1.0))
        await bench.publish(*(f"t{number}" for number in range(10)))
        claims: list[Claim] = []

        async def claim(where: PostgresStorage, worker: str) -> None:
            want = [Want(queue="q", limit=2)]
            claims.extend((await where.claim(want, worker=worker, lease=30.0)).claims)

        for left in (7, 4, 1, 0):
            async with trio.open_nursery() as nursery:
                for number in range(6):
                    nursery.start_soon(claim, (storage, other)[number % 2], f"w{number}")
            assert len(claims) == (3 if left else 1)
            assert len(await bench.ids(Statuses("pending"))) == left
            await other.settle(
                [Transition(one.id, one.epoch, TransitionKind.DONE) for one in claims]
            )
            claims.clear()


async def test_a_slow_claim_spends_its_tokens_when_it_starts_its_tasks(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage.open() as (storage, advance):
        bench = Workbench(storage, advance)
        await bench.declare(rate=(4, 1.0))
        await bench.publish(*(f"t{number}" for number in range(12)))
        await bench.claim(limit=0)  # meets the limit
        run, pause = storage._tasks.claims._run, 0.5

        async def slowly(*given: Any) -> Any:
            await advance(pause)
            return await run(*given)

        monkeypatch.setattr(storage._tasks.claims, "_run", slowly)
        assert len(await bench.claim(limit=9)) == 4
        await advance(0.5)
        pause = 0.0
        assert len(await bench.claim(limit=9)) == 2, "half a second after the four began"


# ---- the user's own transaction -----------------------------------------------------


@pytest.fixture
def connection(stage: Stage) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(stage.dsn, row_factory=dict_row) as connection:
        yield connection


async def test_a_task_is_there_exactly_if_the_transaction_commits(
    stage: Stage, connection: psycopg.Connection[Any]
) -> None:
    async with stage.open() as (storage, _):
        bench = Workbench(storage, stage.advance)
        await bench.declare(keyed=True)
        tasks = [
            new("plain", type="new type"),
            new("keyed", key="k"),
            new("unique", unique=unique()),
        ]
        results = storage.enqueue_in(connection, tasks)
        assert [result.answer for result in results] == [EnqueueAnswer.CREATED] * 3
        assert await bench.ids() == []
        connection.rollback()
        assert await bench.ids() == []
        # Nothing of it is remembered either, such as the type.
        [result] = await storage.enqueue([new("after", type="new type")])
        assert result.answer is EnqueueAnswer.CREATED

        storage.enqueue_in(connection, tasks)
        again = storage.enqueue_in(connection, [new("other", unique=unique())])
        assert [result.answer for result in again] == [EnqueueAnswer.EXISTING]
        assert not await woken(storage, lambda: None, 0.1)
        assert await woken(storage, connection.commit, 2.0)
        assert sorted(await bench.taken(9)) == ["after", "keyed", "plain", "unique"]


async def test_it_is_refused_outside_a_transaction_and_on_another_database(
    stage: Stage, database: str
) -> None:
    async with stage.open() as (storage, _):
        with psycopg.connect(stage.dsn, autocommit=True) as connection:
            with pytest.raises(
                InvalidConfigError, match="no transaction is open on the connection"
            ):
                storage.enqueue_in(connection, [new("a")])
            with connection.transaction():
                storage.enqueue_in(connection, [new("a")])
        migrate(database)
        with (
            psycopg.connect(database) as elsewhere,
            pytest.raises(InvalidConfigError, match="the connection is of another database"),
        ):
            storage.enqueue_in(elsewhere, [new("a")])
        with pytest.raises(
            InvalidConfigError, match=r"expected a psycopg.Connection, .* got builtins.str"
        ):
            storage.enqueue_in("connection", [new("a")])


async def test_unique_tasks_need_to_see_what_others_committed(
    stage: Stage, connection: psycopg.Connection[Any]
) -> None:
    async with stage.open() as (storage, _):
        await storage.declare([QueueRecord(name="q")])
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        assert storage.enqueue_in(connection, [new("a")])[0].answer is EnqueueAnswer.CREATED
        with pytest.raises(InvalidConfigError, match="READ COMMITTED, this one is repeatable read"):
            storage.enqueue_in(connection, [new("b", unique=unique())])


async def test_sqlalchemys_connection_over_psycopg_will_do(stage: Stage) -> None:
    async with stage.open() as (storage, _):
        bench = Workbench(storage, stage.advance)
        await bench.declare()
        engine = sqlalchemy.create_engine(
            "postgresql+psycopg://", creator=lambda: psycopg.connect(stage.dsn)
        )
        try:
            with engine.begin() as joined:
                joined.execute(sqlalchemy.text("SELECT 1"))
                storage.enqueue_in(joined, [new("committed")])
            with Session(engine) as session, session.begin():
                with pytest.raises(InvalidConfigError) as caught:
                    storage.enqueue_in(session, [new("refused")])
                assert caught.value.detail == (
                    "publish_in: expected a psycopg.Connection, or SQLAlchemy's Connection over psycopg, "
                    "got sqlalchemy.orm.session.Session; pass session.connection()"
                )
                storage.enqueue_in(session.connection(), [new("by a session")])
            with engine.connect() as joined:
                with pytest.raises(InvalidConfigError, match="no transaction is open"):
                    storage.enqueue_in(joined, [new("never")])
                joined.begin()
                storage.enqueue_in(joined, [new("rolled back")])
                joined.rollback()
        finally:
            engine.dispose()
        assert sorted(await bench.ids()) == ["by a session", "committed"]


async def test_the_asynchronous_form_joins_a_transaction_on_our_connection(stage: Stage) -> None:
    async with stage.open() as (storage, _):
        bench = Workbench(storage, stage.advance)
        await bench.declare(keyed=True)
        async with await TrioConnection.connect(stage.dsn, autocommit=True) as connection:
            with pytest.raises(InvalidConfigError, match="no transaction is open"):
                await storage.enqueue_in_async(connection, [new("never")])
            async with connection.transaction():
                await storage.enqueue_in_async(connection, [new("a"), new("b", key="k")])
            with trio.CancelScope() as scope:
                async with connection.transaction():
                    await storage.enqueue_in_async(connection, [new("c")])
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
        assert await bench.ids() == ["a", "b"]


async def test_an_effect_and_the_end_of_its_run_commit_together(
    stage: Stage, connection: psycopg.Connection[Any]
) -> None:
    async with stage.open() as (storage, _):
        bench = Workbench(storage, stage.advance)
        await bench.declare(keyed=True)
        await bench.publish("a", "b", key="k")
        [claim] = await bench.claim()
        done = Transition(
            claim.id, claim.epoch, TransitionKind.DONE, result=b"1", spawn=(new("child"),)
        )
        assert storage.settle_in(connection, done).answer is SettleAnswer.APPLIED
        connection.rollback()
        assert await bench.holds(claim)
        assert await bench.ids() == ["a", "b"]
        connection.execute("CREATE TEMPORARY TABLE effect ON COMMIT DROP AS SELECT 1")
        assert storage.settle_in(connection, done).answer is SettleAnswer.APPLIED
        connection.commit()
        assert (await bench.row("a")).result == b"1"
        assert (await bench.settle(claim)).answer is SettleAnswer.REPEATED
        assert sorted(await bench.taken(9)) == ["b", "child"]


@pytest.mark.parametrize("keyed", [False, True])
async def test_a_row_locked_for_long_costs_no_other_run_its_lease(
    keyed: bool, stage: Stage, connection: psycopg.Connection[Any]
) -> None:
    async with stage.open() as (storage, advance):
        bench = Workbench(storage, advance)
        await bench.declare(keyed=keyed)
        ending, other = [await bench.started(id_, key=id_, max_retry=1) for id_ in ("ending", "other")]
        claims = [(claim.id, claim.epoch) for claim in (ending, other)]
        done = Transition(ending.id, ending.epoch, TransitionKind.DONE)
        assert storage.settle_in(connection, done).answer is SettleAnswer.APPLIED
        with trio.fail_after(3):  # less than the deadline of a step
            await advance(LEASE_S - 1)
            renewed = await storage.renew(claims, lease=LEASE_S)
            assert [answer.held for answer in renewed] == [True, True]
            await advance(2.0)
            assert (await bench.row("ending")).lease_until == pytest.approx(bench.now() - 1)
            assert (await bench.row("other")).lease_until == pytest.approx(bench.now() + LEASE_S - 2)
            assert (await storage.rescue()).records == []
            await advance(LEASE_S)
            assert [record.id for record in (await storage.rescue()).records] == ["other"]
        connection.rollback()
        assert await bench.holds(ending)
        assert [record.id for record in (await storage.rescue()).records] == ["ending"]
        assert [answer.held for answer in await storage.renew(claims, lease=LEASE_S)] == [False, False]


async def test_a_run_that_its_handlers_transaction_ended_is_not_renewed(
    stage: Stage, connection: psycopg.Connection[Any]
) -> None:
    async with stage.open() as (storage, advance):
        bench = Workbench(storage, advance)
        claim = await bench.started()
        storage.settle_in(connection, Transition(claim.id, claim.epoch, TransitionKind.DONE))
        connection.commit()
        [answer] = await storage.renew([(claim.id, claim.epoch)], lease=LEASE_S)
        assert not answer.held
        await advance(LEASE_S + 1)
        assert (await storage.rescue()).records == []
        assert await bench.status("a") == "succeeded"


@pytest.mark.parametrize("where", [Queues("q"), Types("t"), All()])
async def test_a_change_by_hand_leaves_alone_what_it_cannot_change(
    where: Where, stage: Stage, connection: psycopg.Connection[Any]
) -> None:
    async with stage.open() as (storage, _):
        bench = Workbench(storage, stage.advance)
        await bench.ended("succeeded")
        await bench.ended("dead", how=TransitionKind.FAILED, max_retry=0)
        claim = await bench.started("running")
        await bench.publish("waiting", "other")
        connection.execute("SELECT 1 FROM dispatch.tasks WHERE state IN (3, 5, 6, 7) FOR UPDATE")
        with trio.fail_after(3):  # less than the deadline of a step
            assert await bench.alter(where, "hold") == ["waiting", "other"]
            assert await bench.alter(where, "resume") == ["waiting", "other"]
        connection.rollback()
        connection.execute("SELECT 1 FROM dispatch.tasks WHERE state IN (0, 3) FOR UPDATE")
        with trio.fail_after(3):
            assert await bench.alter(where, "rerun") == ["succeeded", "dead"]
        connection.rollback()
        assert await bench.holds(claim)


# ---- plans and pages --------------------------------------------------------------


def plan(stage: Stage, storage: PostgresStorage, want: Want) -> tuple[str, int]:
    """How a claim is carried out in the long run, and how many pages it looked at."""
    statement = storage._tasks.claims._claiming(want, ending=False)
    values = _values(want, "w", 30.0) | {
        "limit": want.limit,
        "reach": want.limit + REACH,
    }
    given = psycopg.sql.SQL(", ").join(
        psycopg.sql.Literal(values[name]) for name in statement.names
    )
    explain = psycopg.sql.SQL(
        "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF) EXECUTE claiming ({})"
    ).format(given)
    settings = with_options(stage.dsn, postgres.FLOW_OPTIONS)
    with psycopg.connect(settings, autocommit=True, prepare_threshold=None) as connection:
        connection.execute(b"PREPARE claiming AS " + statement.text)
        lines: list[str] = []
        for _ in range(2):  # the first visit clears up what others left
            connection.execute("BEGIN")
            lines = [row[0] for row in connection.execute(explain).fetchall()]
            connection.execute("ROLLBACK")
    read = next(line for line in lines if "Buffers: shared" in line)
    return "\n".join(lines), sum(map(int, re.findall(r"(?:hit|read)=([0-9]+)", read)))


def fill(stage: Stage, number: int) -> None:
    """So many rows each that cannot run: of an unwanted type, later, held, behind a key, tagged."""
    stage.execute(
        "INSERT INTO @.lanes (queue, type, version, tagged) SELECT q.id, w.type, w.version, w.tagged"
        " FROM @.queues q, (VALUES ('t', 1, FALSE), ('alien', 1, FALSE), ('t', 2, FALSE), ('t', 1, TRUE))"
        " AS w (type, version, tagged) WHERE q.name = 'q' ON CONFLICT DO NOTHING"
    )
    for what, lane, state, later, key, tags in (
        ("alien", "l.type = 'alien'", 0, 0, "NULL", "NULL"),
        ("newer", "l.version = 2", 0, 0, "NULL", "NULL"),
        ("later", "l.type = 't' AND l.version = 1 AND NOT tagged", 0, 9_000, "NULL", "NULL"),
        ("held", "l.type = 't' AND l.version = 1 AND NOT tagged", 4, 0, "NULL", "NULL"),
        ("behind", "l.type = 't' AND l.version = 1 AND NOT tagged", 1, 0, "'k'", "NULL"),
        ("tagged", "l.tagged", 0, 0, "NULL", "'[\"gpu\"]'::jsonb"),
    ):
        stage.execute(
            # S608: texts of our own.
            "INSERT INTO @.tasks (id, queue, lane, priority, state, lined, key, tags, payload, created_at,"  # noqa: S608
            f" available_at) SELECT '{what}' || n, l.queue, l.id, n %% 4, {state}, {key} IS NOT NULL, {key},"
            f" {tags}, 'x', c.now, c.now + {later} FROM @.lanes l, @.test_clock c,"
            f" generate_series(1, %s) AS n WHERE {lane}",
            (number,),
        )


async def test_a_claim_never_scans_the_table(stage: Stage) -> None:
    async with stage.open() as (storage, _):
        bench = Workbench(storage, stage.advance)
        await bench.declare(keyed=True)
        await bench.publish("a", "b")
        for want in (
            Want(queue="q", limit=5, types={"t": 1}),
            Want(queue="q", limit=5, types={"t": 1}, tags=frozenset({"gpu", "eu"})),
            Want(queue="q", limit=5, ids=frozenset({"a"})),
        ):
            lines, _ = plan(stage, storage, want)
            assert ("tasks_ready" if want.ids is None else "tasks_id") in lines
            assert "Seq Scan on tasks" not in lines, lines


async def cost(stage: Stage, number: int) -> int:
    async with stage.open() as (storage, _):
        bench = Workbench(storage, stage.advance)
        await bench.declare(keyed=True)
        fill(stage, number)
        await bench.publish(*(f"t{n}" for n in range(20)))
        want = Want(queue="q", limit=10, types={"t": 1}, tags=frozenset({"eu"}))
        _, pages = plan(stage, storage, want)
        assert len(await bench.claim(10, types={"t": 1}, tags=frozenset({"eu"}))) == 10
        assert len(await bench.ids(Queues("q") & Ids(*(f"t{n}" for n in range(20))))) == 20
    return pages


@pytest.mark.battery
async def test_what_cannot_run_costs_a_claim_nothing(stage: Stage) -> None:
    few = await cost(stage, 200)
    many = await cost(
        stage, 20_000
    )  # of six kinds: 120,000 rows, and nobody has analyzed the table
    assert many <= 2 * few
    assert many < 500


async def touched(
    storage: PostgresStorage, stage: Stage, monkeypatch: pytest.MonkeyPatch, ask: Callable[[], Awaitable[object]]
) -> int:
    """The pages that a question has the server look at."""
    execute = TrioConnection.execute
    asked: list[tuple[bytes, Any]] = []

    async def noting(connection: TrioConnection, query: Any, params: Any = None, **how: Any) -> Any:
        asked.append((query if isinstance(query, bytes) else str(query).encode(), params))
        return await execute(connection, query, params, **how)

    with monkeypatch.context() as patch:
        patch.setattr(TrioConnection, "execute", noting)
        await ask()
    [(query, params)] = [(query, params) for query, params in asked if b".tasks t" in query]
    with psycopg.connect(stage.dsn, autocommit=True) as connection:
        lines = [row[0] for row in connection.execute(b"EXPLAIN (ANALYZE, BUFFERS) " + query, params).fetchall()]
    read = next(line for line in lines if "Buffers: shared" in line)
    return sum(map(int, re.findall(r"(?:hit|read)=([0-9]+)", read)))


async def test_what_is_elsewhere_costs_a_look_at_one_queue_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage.open() as (storage, _):
        bench = Workbench(storage, stage.advance)
        await bench.declare(keyed=True)
        fill(stage, 1_000)
        stage.execute(
            "INSERT INTO @.tasks (id, queue, lane, priority, state, payload, created_at, available_at, finished_at)"
            " SELECT 'ended' || n, l.queue, l.id, 1, 5 + n %% 3, 'x', c.now, c.now, c.now"
            " FROM @.lanes l, @.test_clock c, generate_series(1, 3000) AS n WHERE l.type = 'alien'",
            (),
        )
        await storage.declare([QueueRecord(name="rare")])
        await storage.enqueue([new(f"r{n}", queue="rare") for n in range(3)])
        [claimed] = (await storage.claim([Want(queue="rare", limit=1)], worker="w", lease=None)).claims
        await storage.settle([Transition(claimed.id, claimed.epoch, TransitionKind.DONE)])
        [(pages,)] = stage.execute("SELECT pg_relation_size('@.tasks') / 8192", ())
        assert pages > 150
        for status, wanted in {"": 3, "pending": 2, "held": 0, "succeeded": 1, "failed": 0, "cancelled": 0}.items():
            where = Queues("rare") & Statuses(status) if status else Queues("rare")
            count = partial(storage.count, where, by=("queue",), bound=10_000)
            assert sum((await count()).values()) == wanted
            assert await touched(storage, stage, monkeypatch, count) < 80, status
            for order in Order:
                find = partial(storage.find, where, order=order, limit=50)
                assert len((await find()).records) == wanted
                assert await touched(storage, stage, monkeypatch, find) < 80, (status, order)


async def test_a_renewal_stays_within_its_page(stage: Stage) -> None:
    async with stage.open() as (storage, _):
        bench = Workbench(storage, stage.advance)
        await bench.publish("a", "b", "c")
        claims = [(claim.id, claim.epoch) for claim in await bench.claim(3, lease=1.0)]
        counted = (
            "SELECT pg_stat_get_xact_tuples_updated(t), pg_stat_get_xact_tuples_hot_updated(t)"
            " FROM to_regclass('dispatch.tasks') AS t"
        )
        async with storage._flow.connection() as connection, connection.transaction():
            before = await (await connection.execute(counted)).fetchone()
            await storage._tasks.renew(connection, claims, 60.0)
            after = await (await connection.execute(counted)).fetchone()
        assert before is not None
        assert after == (before[0] + 3, before[1] + 3)


async def test_cron_entries_that_are_as_they_were_are_the_same_objects(stage: Stage) -> None:
    async with stage.open() as (storage, _), stage.storage() as other:
        for name in ("changed", "left"):
            await storage.put_cron(CronRecord(name=name, definition="d", template=new("")))
        before = await storage.crons()
        await other.alter_cron("changed", paused_reason="holidays")
        after = await storage.crons()
        assert [one is now for one, now in zip(before, after, strict=True)] == [False, True]
        assert after[0].paused_reason == "holidays"


async def test_what_waits_in_a_bounded_queue_is_not_counted_by_every_publish(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = 0
    count = Step._count_waiting

    async def see(step: Step, news: Any) -> None:
        nonlocal counted
        counted += 1
        await count(step, news)

    async def answers(first: int, number: int) -> Counter[EnqueueAnswer]:
        tasks = [new(f"t{n}") for n in range(first, first + number)]
        return Counter(result.answer for result in await storage.enqueue(tasks, bounded=True))

    monkeypatch.setattr(Step, "_count_waiting", see)
    async with stage.open() as (storage, _), stage.storage() as other:
        await storage.declare([QueueRecord(name="q", max_waiting=2_000)])
        assert await answers(0, 1_000) == {EnqueueAnswer.CREATED: 1_000}
        assert counted == 1
        for n in range(1_000, 1_015):  # a sixty-fourth of the room
            assert await answers(n, 1) == {EnqueueAnswer.CREATED: 1}
        assert counted == 1
        assert await answers(1_015, 1_000) == {EnqueueAnswer.CREATED: 985, EnqueueAnswer.FULL: 15}
        assert counted == 2
        # Another process, which knows nothing of this one nor of the bound.
        assert [r.answer for r in await other.enqueue([new("elsewhere")], bounded=True)] == [EnqueueAnswer.FULL]
        await storage.declare([QueueRecord(name="q", max_waiting=9_000)])
        assert await answers(3_000, 10) == {EnqueueAnswer.CREATED: 10}
        await other.declare([QueueRecord(name="q", max_waiting=100)])
        await trio.sleep(1.01)
        assert await answers(4_000, 10) == {EnqueueAnswer.FULL: 10}


async def test_every_reason_to_wait_is_told(database: str) -> None:
    migrate(database)
    async with PostgresStorage(database) as storage:
        await check_every_reason(storage)


@pytest.mark.parametrize("first", [True, False])
async def test_who_may_pass_a_bound_and_who_may_not_are_stored_apart(stage: Stage, first: bool) -> None:
    answers: dict[bool, EnqueueAnswer] = {}

    async def publish(storage: PostgresStorage, *, bounded: bool) -> None:
        fields = {} if bounded else {"unique": unique()}  # else it would not come the same way
        [result] = await storage.enqueue([new(f"bounded {bounded}", **fields)], bounded=bounded)
        answers[bounded] = result.answer

    async with stage.open() as (storage, _):
        await storage.declare([QueueRecord(name="q", max_waiting=1)])
        await storage.enqueue([new("full")], bounded=True)
        async with trio.open_nursery() as nursery:
            # The first is under way, and the others wait for it together.
            nursery.start_soon(storage.enqueue, [new("before", unique=unique("another"))])
            await trio.testing.wait_all_tasks_blocked()
            for bounded in (first, not first):
                nursery.start_soon(partial(publish, storage, bounded=bounded))
                await trio.testing.wait_all_tasks_blocked()
    assert answers == {True: EnqueueAnswer.FULL, False: EnqueueAnswer.CREATED}


async def test_a_task_with_tags_waits_for_its_time_like_any_other(stage: Stage) -> None:
    async with stage.open() as (storage, _):
        bench = Workbench(storage, stage.advance)
        await bench.publish("later", tags=("gpu",), available_at=stage.now + 60)
        await bench.publish("now", tags=("gpu",))
        assert await bench.taken(2, tags=frozenset({"gpu"})) == ["now"]
        await bench.advance(60)
        assert await bench.taken(2, tags=frozenset({"gpu"})) == ["later"]
