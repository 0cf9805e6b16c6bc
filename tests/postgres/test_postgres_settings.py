"""Whatever the database, the role, the environment or the user's connection is set to."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, closing
from functools import partial
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
import trio
import trio.testing
from attrs import frozen
from psycopg.types.array import ListBinaryDumper, ListDumper
from psycopg.types.json import JsonbDumper, set_json_loads
from psycopg.types.numeric import FloatLoader
from psycopg.types.string import TextLoader as FloatAsText

from dispatch import (
    Dispatcher,
    InvalidConfigError,
    QueueTask,
    Run,
    StorageError,
    TaskQueueConfig,
    TaskStatus,
    TaskType,
    Unique,
    open_dispatcher,
)
from dispatch.records import NewTask
from dispatch.storage import postgres
from dispatch.storage.opening import open_storage, postgres_address
from dispatch.storage.postgres import PostgresStorage
from dispatch.storage.postgres_schema import (
    SCHEMA_VERSION,
    _foundation,
    _step,
    migrate,
    migration_sql,
)
from dispatch.storage.protocol import QueueRecord, Want
from dispatch.storage.psycopg_trio import TrioConnection, brief
from dispatch.storage.query import All
from dispatch.testing.postgres import PostgresServer, postgres_server

from .proxy import proxy
from .stage import Stage

PATIENCE_S = 20.0
QUERIES = "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
VACUUMING = "SELECT 1 FROM pg_stat_progress_vacuum WHERE relid = 'dispatch.tasks'::regclass"
SLOWLY_VACUUMED = (
    "ALTER TABLE dispatch.tasks SET (autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1,"
    " autovacuum_vacuum_threshold = 10, autovacuum_vacuum_scale_factor = 0)",
    "INSERT INTO dispatch.tasks (created_at, available_at, queue, lane, priority, state, id, payload)"
    " SELECT 0, 0, 9, 9, 1, 0, g, '{}' FROM generate_series(1, 20000) AS g",
)


@frozen
class Job:
    n: int = 0


JOB = TaskType("q", "job", Job)
OTHER = TaskType("q", "other", Job)


def set_default(dsn: str, isolation: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(
            f"ALTER DATABASE {admin.info.dbname} SET default_transaction_isolation = '{isolation}'".encode()
        )


@asynccontextmanager
async def publishing(dsn: str, **settings: Any) -> AsyncGenerator[Dispatcher]:
    async with PostgresStorage(dsn, **settings) as storage, open_dispatcher(storage, observers=()) as dispatcher:
        dispatcher.consumer.register_queue("q", TaskQueueConfig(max_retry=2, retry_delay=0))
        await dispatcher.publisher.declare()
        yield dispatcher


def stored(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM dispatch.tasks ORDER BY seq")]


@pytest.mark.parametrize(
    "isolation", ["repeatable read", pytest.param("serializable", marks=pytest.mark.battery)]
)
async def test_unique_tasks_stay_so_whatever_the_default_isolation(database: str, isolation: str) -> None:
    migrate(database)
    set_default(database, isolation)

    async def publish(dispatcher: Dispatcher, key: str) -> None:
        await dispatcher.publisher.publish(JOB(Job(), unique=Unique(key=key)))

    async with publishing(database) as first, publishing(database) as second, trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(publish, first, f"k{number}")
            nursery.start_soon(publish, second, f"k{number}")
    assert len(stored(database)) == 40


def test_two_that_migrate_at_once_make_it_once_whatever_the_default_isolation(database: str) -> None:
    set_default(database, "serializable")
    found: list[object] = []

    def make() -> None:
        try:
            found.append(migrate(database))
        except StorageError as exc:
            found.append(exc)

    threads = [threading.Thread(target=make) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found, key=str) == [(0, SCHEMA_VERSION), *[(SCHEMA_VERSION, SCHEMA_VERSION)] * 2]


def test_a_schema_made_for_the_role_is_enough(server: PostgresServer, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS plain")
        admin.execute("CREATE ROLE plain LOGIN")
        for name in ("dispatch", "scripted"):
            admin.execute(f"CREATE SCHEMA {name} AUTHORIZATION plain".encode())
    as_role = psycopg.conninfo.make_conninfo(database, user="plain")
    assert migrate(as_role) == (0, SCHEMA_VERSION)
    with psycopg.connect(as_role, autocommit=True) as connection:
        connection.execute(migration_sql("scripted").encode())
    assert migrate(as_role, schema="scripted") == (SCHEMA_VERSION, SCHEMA_VERSION)
    with pytest.raises(StorageError, match="permission denied"):
        migrate(as_role, schema="third")


async def test_the_environments_options_reach_every_connection(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate(database)
    monkeypatch.setenv("PGOPTIONS", "-c work_mem=7MB")
    shown: list[Any] = []
    async with PostgresStorage(database) as storage:
        for pool in (storage._flow, storage._reads):  # type: ignore[attr-defined]
            async with pool.connection() as connection:
                for name in ("work_mem", "default_transaction_isolation"):
                    cursor = await connection.execute(f"SHOW {name}".encode())
                    shown.append(await cursor.fetchone())
    assert shown == [("7MB",), ("read committed",)] * 2


@pytest.fixture
def odd_adapters() -> Iterator[None]:
    """What a program may tell psycopg about its own values, globally."""
    psycopg.adapters.register_dumper(list, JsonbDumper)
    psycopg.adapters.register_loader("float8", FloatAsText)
    set_json_loads(lambda text: SimpleNamespace(**json.loads(text)))
    yield
    for dumper in (ListDumper, ListBinaryDumper):
        psycopg.adapters.register_dumper(list, dumper)
    psycopg.adapters.register_loader("float8", FloatLoader)
    set_json_loads(json.loads)


@pytest.mark.usefixtures("odd_adapters")
async def test_adapters_that_the_program_registers_are_for_its_own_statements(database: str) -> None:
    migrate(database)
    async with publishing(database) as dispatcher:
        published = await dispatcher.publisher.publish(JOB(Job(1), headers={"a": "b"}))
        with psycopg.connect(database) as connection:
            joined = dispatcher.publisher.publish_in(connection, JOB(Job(2), unique=Unique(key="k")))
            assert connection.execute("SELECT 1::float8").fetchone() == ("1",)
        async with await TrioConnection.connect(database) as own, own.transaction():
            other = await dispatcher.publisher.publish_in_async(own, JOB(Job(3), headers={"a": "b"}))
        found = (await dispatcher.control.find()).tasks
        assert {task.id for task in found} == {published.id, joined.id, other.id}
        assert (await dispatcher.control.get(published.id)).headers == {"a": "b"}


async def test_a_connection_that_went_silent_amid_a_read_is_replaced(database: str) -> None:
    migrate(database)
    async with (
        proxy(f"{database}&options=-c%20statement_timeout%3D200ms") as between,
        PostgresStorage(between.dsn) as storage,
    ):
        assert (await storage.find(All())).records == []
        between.mute()
        with trio.fail_after(PATIENCE_S), pytest.raises(StorageError, match=r"no answer within 1\.2 s"):
            await storage.find(All())
        between.unmute()
        assert (await storage.find(All())).records == []


async def test_a_connection_of_a_copied_database_is_refused(server: PostgresServer, database: str) -> None:
    migrate(database)
    copy = server.fresh_database(str(psycopg.conninfo.conninfo_to_dict(database)["dbname"]))
    try:
        async with publishing(database) as dispatcher:
            with (
                psycopg.connect(copy) as connection,
                pytest.raises(InvalidConfigError, match="the connection is of another database"),
            ):
                dispatcher.publisher.publish_in(connection, JOB(Job()))
    finally:
        server.drop_database(copy)


async def test_publish_in_says_that_a_connection_is_of_sqlite(database: str) -> None:
    migrate(database)
    async with publishing(database) as dispatcher:
        with (
            closing(sqlite3.connect(":memory:")) as connection,
            pytest.raises(InvalidConfigError, match=r"expected a psycopg\.Connection.*got sqlite3\.Connection"),
        ):
            dispatcher.publisher.publish_in(connection, JOB(Job()))


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("postgresql://h/d?password=a+b&schema=s&application_name=x%20y", "postgresql://h/d?password=a+b&application_name=x%20y"),
        ("postgresql://?host=/run&schema=s", "postgresql://?host=/run"),
        ("postgresql://h/d?schema=s", "postgresql://h/d"),
    ],
)
def test_what_a_url_says_beside_the_schema_is_libpqs(url: str, address: str) -> None:
    assert postgres_address(url) == (address, {"schema": "s"})


async def test_a_url_may_say_what_a_pooler_needs(stage: Stage) -> None:
    url = f"{stage.dsn}{'&' if '?' in stage.dsn else '?'}listen=0&prepare=OFF&connections=1"
    async with open_storage(url) as storage:
        for _ in range(8):
            await storage.declare([QueueRecord(name="q")])
            await storage.enqueue([NewTask(id="", queue="q", type="t", payload=b"{}")])
            await storage.claim([Want(queue="q", limit=1)], worker="w", lease=9.0)
        assert isinstance(storage, PostgresStorage)
        assert not [query for (query,) in stage.execute(QUERIES) if query.startswith("LISTEN")]
        async with storage._flow.connection() as connection:
            cursor = await connection.execute("SELECT count(*) FROM pg_prepared_statements")
            assert await cursor.fetchone() == (0,)
        assert storage._flow.statistics().size == 1


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("listen=2", "listen is 1 or 0, got '2'"),
        ("prepare=", "prepare is 1 or 0, got ''"),
        ("connections=-1", "connections is a whole number from 1, got '-1'"),
    ],
)
def test_a_wrong_option_of_a_url_is_named(option: str, said: str) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        postgres_address(f"postgresql://u:secret@h/d?{option}")
    assert caught.value.detail == f"'postgresql://***@h/d?{option}': {said}"


@pytest.mark.parametrize("where", ["h/d?passwd=x", "[::1/d", "se@cret@h/d"])
async def test_a_url_that_cannot_be_read_is_wrong_input_and_no_storage_that_is_away(where: str) -> None:
    with pytest.raises(InvalidConfigError, match="the connection string cannot be read: ") as caught:
        async with open_storage(f"postgresql://u:secret@{where}"):
            pass
    assert "cret" not in caught.value.detail


def test_what_a_pooler_mixes_up_is_told(stage: Stage) -> None:
    with psycopg.connect(stage.dsn, autocommit=True) as connection:
        connection.execute("PREPARE one AS SELECT 1")
        with pytest.raises(psycopg.Error) as caught:
            connection.execute("PREPARE one AS SELECT 1")
    assert brief(caught.value) == (
        'prepared statement "one" already exists (42P05); is a pooler between that gives each transaction another '
        "connection? Then add listen=0&prepare=0 to the URL, or open PostgresStorage(dsn, listen=False, prepare=False)"
    )


def test_a_server_that_cuts_what_rests_is_told_how_not_to(stage: Stage) -> None:
    with psycopg.connect(stage.dsn, autocommit=True) as connection:
        connection.execute("SET idle_session_timeout = '50ms'")
        time.sleep(0.5)
        with pytest.raises(psycopg.Error) as caught:
            connection.execute("SELECT 1")
    assert brief(caught.value) == (
        "terminating connection due to idle-session timeout (57P05); connections rest between tasks: "
        "ALTER ROLE ... SET idle_session_timeout = 0 for this role"
    )


@pytest.mark.battery
async def test_an_autovacuum_keeps_neither_a_migration_nor_a_declaration_waiting_for_long() -> None:
    with postgres_server(settings=["autovacuum_naptime=1s"]) as server:
        if not server.owned:
            pytest.skip("the given server's settings are its own")
        database = server.fresh_database()

        def vacuum_begins() -> None:
            """One of the tasks that the server begins by itself, and that would take minutes."""
            deadline = time.monotonic() + PATIENCE_S
            with psycopg.connect(database, autocommit=True) as connection:
                connection.execute("UPDATE dispatch.tasks SET progress = 'x'")
                while not connection.execute(VACUUMING).fetchone():
                    assert time.monotonic() < deadline
                    time.sleep(0.05)

        with psycopg.connect(database, autocommit=True) as connection:
            for part in (_foundation("dispatch"), _step("dispatch", 1), *SLOWLY_VACUUMED):
                connection.execute(part.encode())
        vacuum_begins()
        assert await trio.to_thread.run_sync(migrate, database) == (1, SCHEMA_VERSION)
        async with PostgresStorage(database) as storage:
            await storage.declare([QueueRecord(name="q")])
            vacuum_begins()
            await storage.declare([QueueRecord(name="q", keyed=True)])
            assert [queue.keyed for queue in await storage.queues()] == [True]


async def test_another_trio_run_is_told_the_way_in_before_it_stores_anything(database: str) -> None:
    migrate(database)
    async with publishing(database) as dispatcher:
        publish = partial(dispatcher.publisher.publish, JOB(Job()))
        for call in (publish, dispatcher.control.count, dispatcher.drain):
            with pytest.raises(InvalidConfigError, match="called from outside the trio run that it is open in"):
                await trio.to_thread.run_sync(trio.run, call)
        assert stored(database) == []
        token = trio.lowlevel.current_trio_token()
        await trio.to_thread.run_sync(partial(trio.from_thread.run, publish, trio_token=token))
        assert len(stored(database)) == 1


async def test_publish_in_on_any_thread(database: str) -> None:
    migrate(database)
    ran: list[int] = []
    both = trio.Event()

    def work(task: QueueTask[Job], run: Run) -> None:
        with psycopg.connect(database) as connection:
            if task.payload.n == 1:
                dispatcher.publisher.publish_in(connection, JOB(Job(2)))
            run.complete_in(connection)
        ran.append(task.payload.n)
        if len(ran) == 2:
            trio.from_thread.run_sync(both.set)

    async with publishing(database) as dispatcher:
        dispatcher.consumer.register_handler(JOB, work)

        def publish() -> None:
            with psycopg.connect(database) as connection:
                dispatcher.publisher.publish_in(connection, JOB(Job(1)))

        with trio.fail_after(PATIENCE_S):
            await trio.to_thread.run_sync(publish)
            await both.wait()
            await dispatcher.drain()
    assert ran == [1, 2]


async def test_an_open_transaction_that_brings_a_new_type_keeps_nobody_waiting(database: str) -> None:
    migrate(database)
    async with publishing(database) as here, publishing(database) as there:
        with psycopg.connect(database) as one, psycopg.connect(database) as two, trio.fail_after(3):
            # In opposite order: neither waits for the other.
            here.publisher.publish_in(one, JOB(Job(), id="a"))
            there.publisher.publish_in(two, OTHER(Job(), id="b"))
            here.publisher.publish_in(one, OTHER(Job(), id="c"))
            there.publisher.publish_in(two, JOB(Job(), id="d"))
            for dispatcher in (here, there):
                await dispatcher.publisher.publish(JOB(Job()))
                await dispatcher.publisher.publish(OTHER(Job()))
            one.rollback()
            two.commit()
            async with await TrioConnection.connect(database) as ours:
                third = TaskType("q", "third", Job)
                await here.publisher.publish_in_async(ours, third(Job(), id="e"))
                await there.publisher.publish(third(Job()))
                await ours.rollback()
    assert len(stored(database)) == 7
    assert {"a", "c", "e"}.isdisjoint(stored(database))


async def test_an_old_snapshot_may_bring_a_new_type(database: str) -> None:
    migrate(database)
    async with publishing(database) as dispatcher:
        with psycopg.connect(database) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.execute("SELECT 1")
            dispatcher.publisher.publish_in(connection, JOB(Job(), id="a"))
    assert stored(database) == ["a"]


async def test_joined_publishing_uses_up_no_numbers(database: str) -> None:
    migrate(database)
    async with publishing(database) as dispatcher:
        with psycopg.connect(database) as connection:
            for _ in range(3):
                dispatcher.publisher.publish_in(connection, JOB(Job()))
                dispatcher.publisher.publish_in(connection, JOB(Job(), unique=Unique(key="k")))
            row = connection.execute("SELECT last_value FROM dispatch.lanes_id_seq").fetchone()
    assert row == (1,)


async def publish_into(
    answered: dict[str, str], dispatcher: Dispatcher, name: str, key: str | None = None
) -> None:
    unique = None if key is None else Unique(key=key)
    try:
        await dispatcher.publisher.publish(JOB(Job(), id=name, unique=unique))
        answered[name] = "stored"
    except StorageError as exc:
        answered[name] = str(exc)


async def test_a_key_that_a_transaction_holds_is_one_publishers_trouble(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(database)
    monkeypatch.setattr(postgres, "DEADLINE_S", 0.5)
    answered: dict[str, str] = {}

    async with publishing(database) as dispatcher:
        with psycopg.connect(database) as connection:
            dispatcher.publisher.publish_in(connection, JOB(Job(), unique=Unique(key="A")))
            async with trio.open_nursery() as nursery:
                # While the first is being stored, the others gather, and go together.
                for name, key in (("first", "F"), ("a", "A"), ("b", "B"), ("c", "C")):
                    nursery.start_soon(publish_into, answered, dispatcher, name, key)
                    await trio.testing.wait_all_tasks_blocked(0.0)
                await trio.sleep(0.2)
                await publish_into(answered, dispatcher, "plain")
                assert set(answered) == {"first", "plain"}, "plain ones wait for nobody"
            connection.rollback()
        await publish_into(answered, dispatcher, "again", "A")
    held = answered.pop("a")
    assert "no answer within 0.5 s; nothing was stored" in held
    assert "published the same unique key" in held
    assert set(answered.values()) == {"stored"}
    assert sorted(stored(database)) == ["again", "b", "c", "first", "plain"]


async def test_an_id_that_a_transaction_holds_is_one_publishers_trouble(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(database)
    monkeypatch.setattr(postgres, "DEADLINE_S", 0.5)
    answered: dict[str, str] = {}

    async with publishing(database) as dispatcher:
        with psycopg.connect(database) as connection:
            dispatcher.publisher.publish_in(connection, JOB(Job(), id="a"))
            async with trio.open_nursery() as nursery:
                for name in ("first", "a", "b", "c"):
                    nursery.start_soon(publish_into, answered, dispatcher, name)
                    await trio.testing.wait_all_tasks_blocked(0.0)
            connection.rollback()
        held = answered.pop("a")
        await publish_into(answered, dispatcher, "a")
    assert "published the same unique key or task id" in held
    assert set(answered.values()) == {"stored"}
    assert sorted(stored(database)) == ["a", "b", "c", "first"]


async def test_unique_publishing_within_a_pipeline(database: str) -> None:
    migrate(database)
    ran: list[str] = []

    def work(task: QueueTask[Job], run: Run) -> None:
        trio.from_thread.run(run.publish, OTHER(Job(), id="child", unique=Unique(key="child")))
        with psycopg.connect(database) as connection, connection.pipeline():
            run.complete_in(connection)
        ran.append(task.id)

    async with publishing(database) as dispatcher:
        dispatcher.consumer.register_handler(JOB, work)
        with psycopg.connect(database) as connection, connection.pipeline():
            for id_ in ("a", "b"):
                dispatcher.publisher.publish_in(connection, OTHER(Job(), id=id_, unique=Unique(key="k")))
        async with await TrioConnection.connect(database) as ours:
            async with ours.pipeline():
                await dispatcher.publisher.publish_in_async(ours, OTHER(Job(), id="c", unique=Unique(key="c")))
            await ours.commit()
        task = await dispatcher.publisher.publish(JOB(Job(), id="d"))
        with trio.fail_after(PATIENCE_S):
            ended = await dispatcher.publisher.wait(task)
    assert (ended.status, ended.attempt, ran) == (TaskStatus.SUCCEEDED, 1, ["d"])
    assert stored(database) == ["a", "c", "d", "child"]


@pytest.mark.parametrize("keys", [("x", "y"), (None, "y"), ("x", None)], ids=str)
async def test_one_id_in_two_transactions_is_stored_once(database: str, keys: tuple[str | None, str | None]) -> None:
    migrate(database)
    first, second = (JOB(Job(), id="a", unique=None if key is None else Unique(key=key)) for key in keys)

    def publish() -> None:
        with psycopg.connect(database) as connection:
            dispatcher.publisher.publish_in(connection, second)

    async with publishing(database) as dispatcher:
        with psycopg.connect(database) as connection:
            dispatcher.publisher.publish_in(connection, first)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, publish)
                await trio.sleep(0.2)  # it waits for the first one's row by now
                connection.commit()
    assert stored(database) == ["a"]


async def test_a_run_completed_in_a_transaction_makes_room_for_others(database: str) -> None:
    migrate(database)
    config = TaskQueueConfig(max_running=1)
    running, started = trio.Event(), trio.Event()
    go = threading.Event()

    def first(_: QueueTask[Job], run: Run) -> None:
        trio.from_thread.run_sync(running.set)
        go.wait(PATIENCE_S)
        with psycopg.connect(database) as connection:
            run.complete_in(connection)

    async def second(_: QueueTask[Job]) -> None:
        started.set()

    async with (
        PostgresStorage(database) as one,
        PostgresStorage(database) as two,
        open_dispatcher(one, observers=()) as here,
        open_dispatcher(two, observers=()) as there,
    ):
        here.consumer.register_queue("q", config)
        here.consumer.register_handler(JOB, first)
        there.consumer.register_queue("q", config)
        there.consumer.register_handler(OTHER, second)
        await here.publisher.publish(JOB(Job()))
        await running.wait()
        await there.publisher.publish(OTHER(Job()))
        await trio.sleep(0.3)
        assert not started.is_set()
        go.set()
        with trio.fail_after(5):  # the slow poll comes after 30 s
            await started.wait()


@pytest.mark.parametrize("encoding", ["SQL_ASCII", pytest.param("LATIN1", marks=pytest.mark.battery)])
async def test_a_connection_that_cannot_say_everything_is_refused(database: str, encoding: str) -> None:
    migrate(database)
    async with publishing(database) as dispatcher:
        with (
            psycopg.connect(database, client_encoding=encoding) as connection,
            pytest.raises(InvalidConfigError, match=f"UTF8, got {encoding}; connect with"),
        ):
            dispatcher.publisher.publish_in(connection, JOB(Job(), headers={"a": "\u2192"}))
