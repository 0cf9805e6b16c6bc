"""psycopg on trio: what a cancellation leaves, what the pool takes back, what errors show."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from psycopg.adapt import AdaptersMap
from psycopg.types.string import TextLoader
from psycopg.waiting import Wait

from dispatch.errors import ClosedError, MissingExtraError, StorageError
from dispatch.storage.psycopg_conninfo import connected, redacted, with_options
from dispatch.storage.psycopg_trio import TrioConnection, TrioPool, backoff_s, listen, psycopg
from dispatch.testing.postgres import PostgresServer
from tests.conclusive import AGAIN, in_time, was_tested

from .proxy import proxy


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[TrioConnection]:
    """A connection in autocommit, with an empty table `noted`."""
    async with await TrioConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS noted (id int)")
        await connection.execute("TRUNCATE noted")
        yield connection


async def noted(dsn: str) -> list[int]:
    """The ids in `noted`, as another connection sees them."""
    async with await TrioConnection.connect(dsn) as other:
        rows = await (await other.execute("SELECT id FROM noted ORDER BY id")).fetchall()
    return [row[0] for row in rows]


async def works(connection: TrioConnection) -> bool:
    with trio.fail_after(5):
        row = await (await connection.execute("SELECT 42")).fetchone()
    return row == (42,) and connection.reusable


async def usable_or_closed(connection: TrioConnection) -> bool:
    return connection.closed or await works(connection)


# --- What psycopg does elsewhere, it does on trio ---------------------------------------------


async def test_statements_batches_copies_and_pipelines_work(
    connection: TrioConnection, dsn: str
) -> None:
    await connection.execute("INSERT INTO noted VALUES (%s)", [1])
    async with connection.cursor() as cursor:
        await cursor.executemany("INSERT INTO noted VALUES (%s)", [(2,), (3,)])
        async with cursor.copy("COPY noted FROM STDIN") as copy:
            for number in range(4, 20_000):
                await copy.write_row((number,))
    async with connection.pipeline():
        cursors = [await connection.execute("SELECT %s::int", [n]) for n in range(100)]
        assert [(await cursor.fetchone()) for cursor in cursors] == [(n,) for n in range(100)]
    copied = []
    async with connection.cursor() as cursor, cursor.copy("COPY noted TO STDOUT") as copy:
        async for row in copy.rows():
            copied.append(int(row[0]))
    assert copied == list(range(1, 20_000)) == await noted(dsn)
    assert await works(connection)


async def test_a_server_side_cursor_and_a_stream_read_in_pieces(connection: TrioConnection) -> None:
    async with connection.transaction(), connection.cursor("pieces") as cursor:
        await cursor.execute("SELECT generate_series(1, 250)")
        assert len(await cursor.fetchmany(100)) == 100
        assert len(await cursor.fetchall()) == 150
    async with connection.cursor() as plain:
        streamed = [row[0] async for row in plain.stream("SELECT generate_series(1, 250)")]
    assert streamed == list(range(1, 251))
    assert await works(connection)


async def test_a_transaction_commits_at_its_end_and_rolls_back_on_an_error(
    connection: TrioConnection, dsn: str
) -> None:
    async with connection.transaction():
        await connection.execute("INSERT INTO noted VALUES (1)")
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - what leaves the block matters
            async with connection.transaction():
                await connection.execute("INSERT INTO noted VALUES (2)")
                raise ZeroDivisionError
    async with connection.pipeline(), connection.transaction():
        await connection.execute("INSERT INTO noted VALUES (3)")
    with pytest.raises(psycopg.errors.DivisionByZero):  # noqa: PT012 - what leaves the block matters
        async with connection.pipeline(), connection.transaction():
            await connection.execute("INSERT INTO noted VALUES (4)")
            await connection.execute("SELECT 1 / 0")
    assert await noted(dsn) == [1, 3]
    assert await works(connection)


async def test_a_second_trio_task_waits_for_the_first(connection: TrioConnection) -> None:
    ended: list[str] = []

    async def note(name: str, statement: str) -> None:
        await connection.execute(statement.encode())
        ended.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(note, "first", "SELECT pg_sleep(0.05)")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(note, "second", "SELECT 1")
    assert ended == ["first", "second"]


async def test_a_long_copy_lets_other_trio_tasks_run(connection: TrioConnection) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        async with connection.cursor() as cursor, cursor.copy("COPY noted FROM STDIN") as copy:
            for _ in range(400):
                await copy.write(b"1\n" * 2_000)
        nursery.cancel_scope.cancel()
    assert turns > 3


async def test_rows_and_cursors_are_of_the_kinds_it_is_opened_with(dsn: str) -> None:
    async with await TrioConnection.connect(
        dsn, row_factory=psycopg.rows.dict_row, cursor_factory=psycopg.AsyncRawCursor[Any]
    ) as connection:
        cursor = await connection.execute("SELECT $1::int AS n", [7])
        assert await cursor.fetchall() == [{"n": 7}]


async def test_timeouts_are_cancel_scopes(connection: TrioConnection) -> None:
    with pytest.raises(psycopg.NotSupportedError, match="take a cancel scope"):
        connection.notifies(timeout=1)


# --- Cancellation -----------------------------------------------------------------------------


async def test_a_cancelled_statement_is_stopped_on_the_server(
    connection: TrioConnection, dsn: str
) -> None:
    with trio.fail_after(5), trio.move_on_after(0.05) as scope:
        await connection.execute("INSERT INTO noted SELECT 1 FROM pg_sleep(9)")
    assert scope.cancelled_caught
    assert await works(connection)
    assert await noted(dsn) == []


async def test_a_request_to_stop_is_answered_once_the_server_has_it(connection: TrioConnection) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stopped, connection)
        await trio.sleep(0.05)
        with trio.fail_after(5):
            await connection.cancel_safe(timeout=5)  # which raises if it could not be made
    assert await works(connection)


async def stopped(connection: TrioConnection) -> None:
    with pytest.raises(psycopg.errors.QueryCanceled):
        await connection.execute("SELECT pg_sleep(9)")


async def test_a_statement_cancelled_beforehand_is_never_sent(
    connection: TrioConnection, dsn: str
) -> None:
    asked: list[float] = []
    connection.cancel_safe = partial(never_asked, asked)  # type: ignore[method-assign]
    with trio.CancelScope() as scope:
        scope.cancel()
        await connection.execute("INSERT INTO noted VALUES (1)")
    assert scope.cancelled_caught
    assert await noted(dsn) == asked == []
    assert await works(connection)


async def never_asked(asked: list[float], *, timeout: float) -> None:  # noqa: ASYNC109 - psycopg's
    asked.append(timeout)


async def test_a_statement_that_ended_before_it_could_be_stopped_gives_its_result(
    connection: TrioConnection, dsn: str
) -> None:
    connection.cancel_safe = partial(never_asked, [])  # type: ignore[method-assign]
    seen: list[Any] = []
    with trio.move_on_after(0.02) as scope:
        cursor = await connection.execute(
            "INSERT INTO noted SELECT 1 FROM pg_sleep(0.1) RETURNING id"
        )
        seen.append(await cursor.fetchone())
        await trio.lowlevel.checkpoint()
        seen.append("never")
    assert scope.cancelled_caught
    assert seen == [(1,)]
    assert await noted(dsn) == [1]
    assert await works(connection)


async def test_a_server_that_does_not_stop_in_time_costs_the_connection(
    connection: TrioConnection,
) -> None:
    connection.cancel_safe = partial(never_asked, [])  # type: ignore[method-assign]
    connection.grace_s = 0.05
    with trio.fail_after(1), trio.move_on_after(0.02) as scope:
        await connection.execute("SELECT pg_sleep(1.5)")
    assert scope.cancelled_caught
    assert connection.closed
    assert connection.broken
    with pytest.raises(psycopg.OperationalError, match="the connection is closed"):
        await connection.execute("SELECT 1")


async def test_a_statement_timeout_is_an_error_and_no_cancellation(dsn: str) -> None:
    async with await TrioConnection.connect(
        dsn, autocommit=True, options="-c statement_timeout=50"
    ) as connection:
        with pytest.raises(psycopg.errors.QueryCanceled, match="statement timeout"):
            await connection.execute("SELECT pg_sleep(5)")
        assert await works(connection)


@pytest.mark.parametrize("where", ["write", "between"])
async def test_a_copy_to_the_server_that_is_cancelled_writes_nothing(
    connection: TrioConnection, dsn: str, where: str
) -> None:
    with trio.fail_after(5), trio.move_on_after(0.05) as scope:
        async with connection.cursor() as cursor, cursor.copy("COPY noted FROM STDIN") as copy:
            await copy.write_row((1,))
            if where == "between":
                await trio.sleep_forever()
            while True:
                await copy.write(b"1\n" * 100_000)
    assert scope.cancelled_caught
    assert await usable_or_closed(connection)
    assert await noted(dsn) == []


@pytest.mark.parametrize("where", ["read", "between"])
@pytest.mark.parametrize("how", ["copy", "stream"])
async def test_a_read_in_pieces_that_is_cancelled_leaves_no_doubt(
    connection: TrioConnection, where: str, how: str
) -> None:
    slowly = "SELECT pg_sleep(0.001) FROM generate_series(1, 100000)"
    with trio.fail_after(5), trio.move_on_after(0.05) as scope:
        async with connection.cursor() as cursor:
            if how == "copy":
                async with cursor.copy(f"COPY ({slowly}) TO STDOUT".encode()) as copy:
                    async for _ in copy:
                        if where == "between":
                            await trio.sleep_forever()
            else:
                async with aclosing(cursor.stream(slowly.encode())) as rows:
                    async for _ in rows:
                        if where == "between":
                            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert await usable_or_closed(connection)


@pytest.mark.parametrize("pipelined", [False, True])
async def test_a_cancelled_block_is_rolled_back_and_its_connection_usable(
    connection: TrioConnection, dsn: str, pipelined: bool
) -> None:
    @asynccontextmanager
    async def block() -> AsyncIterator[None]:
        if pipelined:
            async with connection.pipeline(), connection.transaction():
                yield
        else:
            async with connection.transaction():
                yield

    for statement in ("SELECT pg_sleep(9)", None):
        with trio.fail_after(5), trio.move_on_after(0.05) as scope:
            async with block():
                await connection.execute("INSERT INTO noted VALUES (1)")
                if statement is None:
                    await trio.sleep_forever()
                else:
                    await connection.execute(statement.encode())
        assert scope.cancelled_caught
        assert await works(connection)
    assert await noted(dsn) == []


async def test_leaving_a_cancelled_connection_rolls_back(dsn: str, connection: TrioConnection) -> None:
    with trio.move_on_after(0.05):
        async with await TrioConnection.connect(dsn) as other:
            await other.execute("INSERT INTO noted VALUES (1)")
            await trio.sleep_forever()
    assert other.closed
    assert not other.broken
    # The lock that its rollback would have left behind stops this one for ever.
    with trio.fail_after(2):
        await connection.execute("TRUNCATE noted")


SLOW_COMMIT = """
    CREATE TABLE {name} (id int);
    CREATE OR REPLACE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER lingers AFTER INSERT ON {name}
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION linger();
"""


@pytest.mark.parametrize("pipelined", [False, True])
async def test_a_commit_is_not_cut_in_two(database: str, pipelined: bool) -> None:
    async with await TrioConnection.connect(database, autocommit=True) as connection:
        await connection.execute(SLOW_COMMIT.format(name="slow", seconds=0.2).encode())
        with trio.CancelScope() as scope:
            if pipelined:
                async with connection.pipeline(), connection.transaction():
                    await connection.execute("INSERT INTO slow VALUES (1)")
                    scope.deadline = trio.current_time() + 0.1
            else:
                async with connection.transaction():
                    await connection.execute("INSERT INTO slow VALUES (1)")
                    scope.deadline = trio.current_time() + 0.1
            assert scope.cancel_called
            await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert await works(connection)
        row = await (await connection.execute("SELECT count(*) FROM slow")).fetchone()
        assert row == (1,)


async def test_a_commit_without_an_answer_costs_the_connection(database: str) -> None:
    async with await TrioConnection.connect(database, autocommit=True) as connection:
        connection.grace_s = 0.05
        await connection.execute(SLOW_COMMIT.format(name="slow", seconds=1).encode())
        with trio.fail_after(0.9), trio.CancelScope() as scope:
            async with connection.transaction():
                await connection.execute("INSERT INTO slow VALUES (1)")
                scope.deadline = trio.current_time() + 0.05
        assert scope.cancelled_caught
        assert connection.closed


class Exchange:
    """An exchange that never ends, and what it was made to do on a connection that is gone."""

    def __init__(self, connection: TrioConnection[Any]) -> None:
        self.connection = connection
        self.stepped_when_gone = 0
        self.ended: list[bool] = []

    def steps(self) -> Generator[Wait, int, None]:
        self.connection.pgconn.send_query(b"SELECT pg_sleep(30)")
        try:
            while True:
                yield Wait.R
                self.stepped_when_gone += self.connection.closed
        finally:
            self.ended.append(self.connection.closed)


@pytest.mark.parametrize("how", ["cancelled", "closed"])
async def test_no_exchange_goes_on_on_memory_that_was_freed(how: str, dsn: str) -> None:
    """psycopg's generators in C would: a segmentation fault, now and then."""
    async with await TrioConnection.connect(dsn, autocommit=True) as connection:
        connection.grace_s = 0.1
        exchange = Exchange(connection)
        if how == "cancelled":
            with trio.move_on_after(0.05) as scope:
                await connection.wait(exchange.steps())
            assert scope.cancelled_caught
        else:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(refused, connection, exchange)
                await trio.testing.wait_all_tasks_blocked()
                await connection.close()
        assert connection.closed
    assert exchange.stepped_when_gone == 0
    assert exchange.ended == [how == "closed"], "given up before it was freed, where it was for us to say"


async def refused(connection: TrioConnection[Any], exchange: Exchange) -> None:
    with pytest.raises(psycopg.OperationalError, match="the connection is closed"):
        await connection.wait(exchange.steps())


async def test_closing_a_connection_wakes_who_waits_on_it(dsn: str) -> None:
    connection = await TrioConnection.connect(dsn, autocommit=True)
    async with trio.open_nursery() as nursery:

        async def listener() -> None:
            await connection.execute("LISTEN somewhere")
            with pytest.raises(psycopg.OperationalError, match="connection"):  # noqa: PT012 - what leaves the block matters
                async with aclosing(connection.notifies()) as notifications:
                    async for _ in notifications:
                        pass

        nursery.start_soon(listener)
        await trio.sleep(0.02)
        with trio.fail_after(2):
            await connection.close()


# --- Opening ----------------------------------------------------------------------------------


@asynccontextmanager
async def impostor(answer: bytes) -> AsyncIterator[int]:
    """A server on loopback that says `answer` to whoever connects, and then nothing."""

    async def speak(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(answer)
            while await stream.receive_some():
                pass

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, speak, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def refusal(text: str) -> bytes:
    fields = b"SFATAL\0C28P01\0M" + text.encode() + b"\0\0"
    return b"E" + (len(fields) + 4).to_bytes(4, "big") + fields


async def test_a_password_is_in_no_message(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "dispatch")
    as_given = "postgresql://ada:s3cret@127.0.0.1:{port}/x?sslmode=disable&gssencmode=disable"
    shown: list[str] = []
    async with impostor(refusal("password authentication failed for ada, s3cret")) as port:
        dsn = as_given.format(port=port)
        with pytest.raises(psycopg.OperationalError) as refused:
            await TrioConnection.connect(dsn)
        pool = TrioPool(dsn)
        with pytest.raises(StorageError) as unavailable:
            async with pool.connection():
                pass
        with trio.move_on_after(0.1):
            await listen(dsn, ["x"], on_notify=lambda *_: None, on_reconnect=lambda: None)
        shown += [repr(pool), redacted(dsn), caplog.text]
    # Reserved characters that were not encoded: libpq takes pieces of it for host and port.
    for unreadable in (
        "postgresql://ada:s3c/ret@host/x",
        "postgresql://ada:12/s3cret@host/x",
        "postgresql://ada:x@s3cret@host/x",
        "ada:s3cret@host",
        "host=x password='s3cret",
    ):
        with pytest.raises(psycopg.ProgrammingError) as unread:
            await TrioConnection.connect(unreadable)
        with pytest.raises(psycopg.ProgrammingError):
            connected(unreadable)
        shown += [redacted(unreadable), *chain(unread.value)]
    shown += [*chain(refused.value), *chain(unavailable.value)]
    assert "***" in str(refused.value)
    assert "127.0.0.1" in str(unavailable.value)
    assert "user=ada" in shown[1]
    for text in shown:
        assert "s3c" not in text


def chain(error: BaseException | None) -> list[str]:
    texts: list[str] = []
    while error is not None:
        texts += [str(error), repr(error)]
        error = error.__cause__ or error.__context__
    return texts


async def test_a_wrong_password_is_refused_once_and_not_shown(server: PostgresServer) -> None:
    if not server.owned:
        pytest.skip("the given server's rules are its own")
    exists = server.execute("SELECT FROM pg_roles WHERE rolname = 'guarded'")
    if not exists:
        server.execute("CREATE ROLE guarded LOGIN PASSWORD 'right one'")
    guarded = partial(server.dsn_of, "postgres", user="guarded")
    pool = TrioPool(guarded(password="wr0ng"), patience_s=60)  # noqa: S106 - of this test alone
    with trio.fail_after(5), pytest.raises(StorageError, match="authentication failed") as refused:
        async with pool.connection():
            pass
    assert all("wr0ng" not in text for text in chain(refused.value))
    right = guarded(password="right one")  # noqa: S106 - of this test alone
    async with TrioPool(right) as pool, pool.connection() as connection:
        assert await works(connection)


async def test_opening_is_cancelled_at_once_and_leaves_nothing() -> None:
    async with impostor(b"") as port:
        with trio.fail_after(2), trio.move_on_after(0.05) as scope:
            await TrioConnection.connect(f"host=127.0.0.1 port={port} connect_timeout=2")
        assert scope.cancelled_caught


async def test_opening_cancelled_at_any_moment_leaves_no_connection(database: str) -> None:
    for step in range(20):
        with trio.move_on_after(step / 2_000):
            connection = await TrioConnection.connect(database)
            await connection.close()
    async with await TrioConnection.connect(database, autocommit=True) as watcher:
        with trio.fail_after(3):
            others = -1
            while others:
                row = await (
                    await watcher.execute(
                        "SELECT count(*) FROM pg_stat_activity "
                        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                ).fetchone()
                assert row is not None
                others = row[0]


async def test_limits_on_time_are_set_unless_the_caller_sets_them(dsn: str) -> None:
    async def told(dsn: str) -> dict[str, str]:
        async with await TrioConnection.connect(dsn) as connection:
            row = await (await connection.execute("SHOW statement_timeout")).fetchone()
            assert row is not None
            parameters = connection.info.get_parameters()
            return {"statement_timeout": row[0], **parameters}

    ordinary = await told(dsn)
    assert ordinary["statement_timeout"] == "30s"
    assert ordinary["connect_timeout"] == "10"
    assert ordinary["tcp_user_timeout"] == "10000"
    own = await told(f"{dsn}&options=-c%20statement_timeout%3D7s&connect_timeout=3")
    assert own["statement_timeout"] == "7s"
    assert own["connect_timeout"] == "3"


async def test_a_services_settings_are_the_callers(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "services.conf"
    file.write_text("# ours\n[jobs]\nconnect_timeout=3\noptions=-c lock_timeout=1234ms\n", encoding="utf-8")
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    async with await TrioConnection.connect(with_options(f"{dsn}&service=jobs", "-c jit=off")) as connection:
        rows = [
            await (await connection.execute(f"SHOW {name}".encode())).fetchone()
            for name in ("lock_timeout", "jit", "statement_timeout")
        ]
        assert rows == [("1234ms",), ("off",), ("30s",)]
        assert connection.info.get_parameters()["connect_timeout"] == "3"


@pytest.mark.battery
async def test_a_silent_first_host_is_passed_by(dsn: str) -> None:
    parts = psycopg.conninfo.conninfo_to_dict(dsn)
    async with impostor(b"") as port:
        both = psycopg.conninfo.make_conninfo(
            dsn, host=f"127.0.0.1,{parts['host']}", port=f"{port},{parts.get('port') or 5432}", gssencmode="disable"
        )
        async with TrioPool(both) as pool, pool.connection() as connection:
            assert await works(connection)
            assert connection.info.get_parameters()["connect_timeout"] == "2"


@pytest.mark.parametrize("given", ["postgresql://ada@host/x?nope=s3cret", "postgresql://host/x?sslmode=disable&nope=1"])
def test_an_option_that_libpq_does_not_know_is_named(given: str) -> None:
    with pytest.raises(psycopg.ProgrammingError, match=r"libpq has no option 'nope'$"):
        connected(given)


async def test_a_connection_has_the_adapters_it_is_opened_with(dsn: str) -> None:
    adapters = AdaptersMap(psycopg.adapters)
    adapters.register_loader("int4", TextLoader)
    async with await TrioConnection.connect(dsn, context=adapters) as connection:
        row = await (await connection.execute("SELECT 1::int4")).fetchone()
        assert row == ("1",)
    async with TrioPool(dsn, context=adapters) as pool, pool.connection() as lent:
        row = await (await lent.execute("SELECT 1::int4")).fetchone()
        assert row == ("1",)


def test_without_psycopg_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for name in ("psycopg_conninfo", "psycopg_trio"):
        monkeypatch.delitem(sys.modules, f"dispatch.storage.{name}")
    with pytest.raises(MissingExtraError, match=r"pip install 'trio-dispatch\[postgres\]'"):
        importlib.import_module("dispatch.storage.psycopg_trio")


# --- The pool ---------------------------------------------------------------------------------


async def test_a_pool_lends_no_more_than_its_size_and_keeps_what_is_fit(dsn: str) -> None:
    most = 0
    used: set[int] = set()
    async with TrioPool(dsn, size=2) as pool:

        async def use() -> None:
            nonlocal most
            async with pool.connection() as connection:
                most = max(most, pool.statistics().lent)
                used.add(connection.info.backend_pid)
                await connection.execute("SELECT pg_sleep(0.001)")

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(use)
        assert most == 2 == len(used)
        assert (pool.statistics().open, pool.statistics().lent) == (2, 0)
        assert repr(pool) == f"<TrioPool {redacted(dsn)!r} lent=0/2>"
    assert pool.statistics().open == 0
    with pytest.raises(ClosedError):
        async with pool.connection():
            pass


async def test_a_free_connection_is_lent_before_others_run(dsn: str) -> None:
    ran = False

    async def other() -> None:
        nonlocal ran
        ran = True

    async with TrioPool(dsn) as pool, trio.open_nursery() as nursery:
        async with pool.connection() as connection:
            await connection.execute("SELECT 1")
        nursery.start_soon(other)
        async with pool.connection() as connection:
            assert not ran, "else a statement waits for all that happens to be due"
            await connection.execute("SELECT pg_sleep(0.05)")  # a quicker answer may be there before anybody waits
        assert ran
        with trio.CancelScope() as scope:
            scope.cancel()
            async with pool.connection():
                pytest.fail("it is a checkpoint all the same")
        assert scope.cancelled_caught
        assert pool.statistics().lent == 0


async def left_in_a_transaction(connection: TrioConnection) -> None:
    await connection.execute("BEGIN")


async def left_in_a_failed_one(connection: TrioConnection) -> None:
    await connection.execute("BEGIN")
    with pytest.raises(psycopg.errors.DivisionByZero):
        await connection.execute("SELECT 1 / 0")


async def left_in_a_pipeline(connection: TrioConnection) -> None:
    connection.pgconn.enter_pipeline_mode()


async def left_out_of_autocommit(connection: TrioConnection) -> None:
    await connection.set_autocommit(False)


async def left_closed(connection: TrioConnection) -> None:
    await connection.close()


async def left_without_its_server(connection: TrioConnection) -> None:
    await end_backend(connection)


async def end_backend(connection: TrioConnection) -> None:
    """Have the server end this connection, as an administrator would; wait until it has."""
    parameters = connection.info.get_parameters()
    dsn = psycopg.conninfo.make_conninfo("", **parameters)
    async with await TrioConnection.connect(dsn, autocommit=True) as other:
        await other.execute("SELECT pg_terminate_backend(%s, 2000)", [connection.info.backend_pid])
    await trio.lowlevel.wait_readable(connection.fileno())


@pytest.mark.parametrize(
    "spoil",
    [
        left_in_a_transaction,
        left_in_a_failed_one,
        left_in_a_pipeline,
        left_out_of_autocommit,
        left_closed,
        left_without_its_server,
    ],
)
async def test_a_pool_takes_back_only_what_is_idle(dsn: str, spoil: Callable[..., Any]) -> None:
    async with TrioPool(dsn, size=1) as pool:
        async with pool.connection() as spoilt:
            await spoil(spoilt)
        assert spoilt.closed
        assert pool.statistics().open == 0
        async with pool.connection() as fresh:
            assert await works(fresh)


async def test_a_pool_replaces_a_connection_that_died_at_rest(dsn: str) -> None:
    async with TrioPool(dsn, size=1) as pool:
        async with pool.connection() as first:
            pass
        await end_backend(first)
        async with pool.connection() as second:
            assert second is not first
            assert await works(second)


async def test_an_error_in_the_block_is_the_storages_and_the_connection_is_kept(dsn: str) -> None:
    async with TrioPool(dsn, size=1) as pool:
        with pytest.raises(StorageError, match=r"division by zero \(22012\)") as caught:
            async with pool.connection() as connection:
                await connection.execute("SELECT 1 / 0")
        assert isinstance(caught.value.__cause__, psycopg.errors.DivisionByZero)
        assert pool.statistics().open == 1


async def refused_by(pool: TrioPool, connection: TrioConnection) -> None:
    """A change on the connection at rest, whose server takes none by now."""
    async with pool.connection() as lent:
        assert lent is connection
        await lent.execute("SET default_transaction_read_only = on")
        await lent.execute("CREATE TABLE refused (id int)")


async def test_a_pool_leaves_a_server_that_takes_no_changes_any_more_and_says_where_to_go(dsn: str) -> None:
    told = r"\(25006\); it is a replica.* add target_session_attrs=read-write"
    async with TrioPool(dsn, size=3) as pool:
        async with pool.connection() as lent, pool.connection() as first:
            async with pool.connection() as second:
                pass
            with pytest.raises(StorageError, match=told):
                await refused_by(pool, second)
            assert second.closed
            assert await works(lent)
        assert pool.statistics().open == 2
        with pytest.raises(StorageError, match=told):
            await refused_by(pool, lent)
        assert first.closed  # of those at rest the server is the same
        assert pool.statistics().open == 0
        async with pool.connection() as fresh:
            assert await works(fresh)


async def test_a_cancelled_borrower_gives_back_and_a_cancelled_waiter_holds_nothing(dsn: str) -> None:
    async with TrioPool(dsn, size=1) as pool:
        with trio.fail_after(5):
            for statement in (b"SELECT pg_sleep(9)", b"BEGIN; SELECT pg_sleep(60)"):
                with trio.move_on_after(0.05):
                    async with pool.connection() as connection:
                        await connection.execute(statement)
            async with pool.connection() as connection:
                with trio.move_on_after(0.01) as waited:
                    async with pool.connection():
                        pass
                assert waited.cancelled_caught
                assert await works(connection)
        assert (pool.statistics().open, pool.statistics().lent) == (1, 0)


@AGAIN
async def test_a_server_that_is_away_is_waited_for_so_long() -> None:
    pool = TrioPool("host=/nowhere user=ada", patience_s=0.2)
    began = trio.current_time()
    with pytest.raises(StorageError, match=r"no connection within 0\.2 s: connection is bad"):
        async with pool.connection():
            pass
    waited_s = trio.current_time() - began
    assert waited_s >= 0.2
    in_time({"waited_s": waited_s}, waited_s=1.0)


async def test_a_database_that_does_not_exist_is_not_waited_for(server: PostgresServer) -> None:
    pool = TrioPool(server.dsn_of("nowhere"), patience_s=60)
    with trio.fail_after(5), pytest.raises(StorageError, match='"nowhere" does not exist'):
        async with pool.connection():
            pass


def test_the_wait_between_attempts_grows_and_is_scattered() -> None:
    assert [backoff_s(n, lambda: 0.0) for n in (1, 2, 3, 6, 99)] == [0.025, 0.05, 0.1, 0.5, 0.5]
    assert backoff_s(99, lambda: 1.0) == 1.0


# --- Notifications ----------------------------------------------------------------------------


@asynccontextmanager
async def hearing(dsn: str, *channels: str) -> AsyncIterator[Callable[[], Any]]:
    """What is heard, one after the other; None for a new connection."""
    send, receive = trio.open_memory_channel[tuple[str, str] | None](100)
    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(
                listen,
                dsn,
                channels,
                on_notify=lambda channel, payload: send.send_nowait((channel, payload)),
                on_reconnect=lambda: send.send_nowait(None),
            )
        )

        async def heard() -> tuple[str, str] | None:
            with trio.fail_after(3):
                return await receive.receive()

        yield heard
        nursery.cancel_scope.cancel()


async def test_notifications_are_heard_after_the_commit_that_sends_them(
    connection: TrioConnection, dsn: str
) -> None:
    async with hearing(dsn, "one", "Two words") as heard:
        await connection.execute("SELECT pg_notify('one', 'a')")
        assert await heard() == ("one", "a")
        async with connection.transaction():
            await connection.execute("SELECT pg_notify('Two words', 'b')")
            await connection.execute("SELECT pg_notify('unheard', 'b')")
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - what leaves the block matters
            async with connection.transaction():
                await connection.execute("SELECT pg_notify('one', 'never')")
                raise ZeroDivisionError
        await connection.execute("SELECT pg_notify('one', 'c')")
        assert [await heard(), await heard()] == [("Two words", "b"), ("one", "c")]


async def test_a_listener_that_lost_its_connection_says_so_and_hears_again(
    connection: TrioConnection, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    listening = "FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"
    async with hearing(dsn, "one") as heard:
        for _ in range(3):
            await connection.execute(f"SELECT pg_terminate_backend(pid) {listening}".encode())
            assert await heard() is None
            await connection.execute("NOTIFY one, 'again'")
            assert await heard() == ("one", "again")
    assert "not listening to" in caplog.text
    with trio.fail_after(3):
        left: Any = True
        while left:
            left = await (await connection.execute(f"SELECT {listening}".encode())).fetchone()


# --- Losing the server ------------------------------------------------------------------------


async def test_a_restart_of_the_server_is_survived(server: PostgresServer, dsn: str) -> None:
    if not server.owned:
        pytest.skip("the given server is not ours to restart")
    async with TrioPool(dsn, size=3) as pool, hearing(dsn, "one") as heard:
        async with pool.connection() as connection:
            assert await works(connection)
            await trio.to_thread.run_sync(server.restart)
            with pytest.raises(psycopg.OperationalError):
                await connection.execute("SELECT 1")
        async with pool.connection() as connection:
            assert await works(connection)
            assert await heard() is None
            await connection.execute("NOTIFY one")
            assert await heard() == ("one", "")


@AGAIN
@pytest.mark.battery
async def test_a_network_that_stands_still_holds_no_call_beyond_its_deadline(dsn: str) -> None:
    waited_s: dict[str, float] = {}
    async with proxy(dsn) as between, TrioPool(between.dsn, size=1, patience_s=0.3) as pool:
        for statement in (b"SELECT 1", b"BEGIN"):
            async with pool.connection() as connection:
                pass
            between.stall()
            began = trio.current_time()
            with trio.move_on_after(0.1) as scope:
                async with pool.connection() as connection:
                    await connection.execute(statement)
            assert scope.cancelled_caught
            assert connection.closed  # whether it was done is unknown
            with pytest.raises(StorageError, match=r"no connection within 0\.3 s"):
                async with pool.connection():
                    pass
            waited_s[statement.decode()] = trio.current_time() - began
            between.flow()
            async with pool.connection() as connection:
                assert await works(connection)
    in_time(waited_s, **dict.fromkeys(waited_s, 0.1 + 0.3 + 1))


@AGAIN
async def test_who_waits_for_a_silent_server_longer_than_it_may_loses_the_connection(dsn: str) -> None:
    async with proxy(dsn) as between, TrioPool(between.dsn, size=1) as pool:
        pool.silence_s = 0.2
        async with pool.connection() as connection:
            assert await works(connection)
        between.mute()
        began = trio.current_time()
        with pytest.raises(StorageError, match=r"no answer within 0\.2 s"):
            async with pool.connection() as connection:
                await connection.execute("SELECT 1")
        waited_s = trio.current_time() - began
        assert connection.closed
        between.unmute()
        async with pool.connection() as another:
            assert await works(another)
    in_time({"waited_s": waited_s}, waited_s=1.2)


# --- Batteries --------------------------------------------------------------------------------

PARTS = 5
"""Each operation writes so many rows, all or none."""


async def by_statement(connection: TrioConnection, number: int) -> None:
    await connection.execute(
        "INSERT INTO noted SELECT %s, part FROM generate_series(1, %s) part, pg_sleep(0.001)",
        [number, PARTS],
    )


async def by_many(connection: TrioConnection, number: int) -> None:
    async with connection.cursor() as cursor:
        await cursor.executemany(
            "INSERT INTO noted SELECT %s, %s FROM pg_sleep(0.0005)",
            [(number, part) for part in range(PARTS)],
        )


async def by_transaction(connection: TrioConnection, number: int) -> None:
    async with connection.transaction():
        for part in range(PARTS):
            await connection.execute("INSERT INTO noted VALUES (%s, %s)", [number, part])


async def by_pipelined_transaction(connection: TrioConnection, number: int) -> None:
    async with connection.pipeline(), connection.transaction():
        for part in range(PARTS):
            await connection.execute("INSERT INTO noted VALUES (%s, %s)", [number, part])


async def by_copy(connection: TrioConnection, number: int) -> None:
    async with connection.cursor() as cursor, cursor.copy("COPY noted FROM STDIN") as copy:
        for part in range(PARTS):
            await copy.write_row((number, part))
            await trio.lowlevel.checkpoint()


async def by_begin_and_commit(connection: TrioConnection, number: int) -> None:
    await connection.set_autocommit(False)
    try:
        for part in range(PARTS):
            await connection.execute("INSERT INTO noted VALUES (%s, %s)", [number, part])
        await connection.commit()
    finally:
        if not connection.closed:
            await connection.rollback()
            with trio.CancelScope(shield=True):
                await connection.set_autocommit(True)


OPERATIONS = [
    by_statement,
    by_many,
    by_transaction,
    by_pipelined_transaction,
    by_copy,
    by_begin_and_commit,
]


async def parts_stored(dsn: str) -> dict[int, int]:
    async with await TrioConnection.connect(dsn) as connection:
        rows = await connection.execute("SELECT id, count(*) FROM noted GROUP BY id")
        return dict(await rows.fetchall())


@pytest.mark.battery
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_what_is_cancelled_at_random_is_done_or_not_done(database: str, seed: int) -> None:
    """1,000 operations a seed: who was told that it is done finds it, whole; who was cancelled
    finds nothing, unless its connection was broken, and then all or nothing.
    """
    rng = random.Random(seed)
    done: set[int] = set()
    undone: set[int] = set()
    doubtful: set[int] = set()
    async with await TrioConnection.connect(database, autocommit=True) as setup:
        await setup.execute("CREATE TABLE noted (id int, part int, UNIQUE (id, part))")

    async def attempt(pool: TrioPool, number: int) -> None:
        nonlocal usual_s
        async with pool.connection() as lent:
            with trio.move_on_after(rng.expovariate(1 / usual_s)):
                await OPERATIONS[number % len(OPERATIONS)](lent, number)
                done.add(number)
        # About half of them are to be cut, however fast the machine is just now.
        usual_s *= 1.1 if number not in done else 0.9
        if number not in done:
            (doubtful if lent.broken else undone).add(number)

    where = f"seed {seed}"
    usual_s = 0.01
    async with TrioPool(database, size=4) as pool:
        with trio.fail_after(120):
            numbers = iter(range(1_000))

            async def client() -> None:
                for number in numbers:
                    await attempt(pool, number)

            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(client)
            async with pool.connection() as connection:
                busy = await connection.execute(
                    "SELECT pid, query FROM pg_stat_activity WHERE state <> 'idle' "
                    "AND datname = current_database() AND pid <> pg_backend_pid()"
                )
                assert await busy.fetchall() == [], where
    found = await parts_stored(database)
    assert {number for number in done if found.get(number) != PARTS} == set(), where
    assert undone & found.keys() == set(), where
    assert set(found.values()) == {PARTS}, where
    was_tested(len(done) > 100, len(undone) > 100, len(doubtful) < 300)


@pytest.mark.battery
async def test_twenty_crashes_of_the_server_lose_nothing_that_was_acknowledged(
    server: PostgresServer, dsn: str
) -> None:
    if not server.owned:
        pytest.skip("the given server is not ours to crash")
    done: set[int] = set()
    failed = 0
    heard = 0
    back_s: list[float] = []
    stopping = False
    numbers = iter(range(1_000_000))
    async with await TrioConnection.connect(dsn, autocommit=True) as setup:
        await setup.execute("DROP TABLE IF EXISTS noted")
        await setup.execute("CREATE TABLE noted (id int, part int, UNIQUE (id, part))")

    async def client(pool: TrioPool) -> None:
        nonlocal failed
        while not stopping:
            number = next(numbers)
            try:
                async with pool.connection() as connection:
                    await OPERATIONS[number % len(OPERATIONS)](connection, number)
                    await connection.execute("NOTIFY one")
                done.add(number)
            except StorageError:
                failed += 1

    def count(*_: str) -> None:
        nonlocal heard
        heard += 1

    with trio.fail_after(120):
        async with TrioPool(dsn, size=4) as pool, trio.open_nursery() as nursery:
            await nursery.start(
                partial(listen, dsn, ["one"], on_notify=count, on_reconnect=lambda: None)
            )
            async with trio.open_nursery() as clients:
                for _ in range(4):
                    clients.start_soon(client, pool)
                for _ in range(20):
                    await trio.sleep(0.1)
                    await trio.to_thread.run_sync(server.kill)
                    await trio.to_thread.run_sync(server.restart)
                    before, began = len(done), trio.current_time()
                    heard = 0
                    while len(done) == before or not heard:  # noqa: ASYNC110 - time is measured
                        await trio.sleep(0.005)
                    back_s.append(trio.current_time() - began)  # at work again, the listener too
                stopping = True
            nursery.cancel_scope.cancel()
    found = await parts_stored(dsn)
    async with await TrioConnection.connect(dsn, autocommit=True) as setup:
        await setup.execute("DROP TABLE noted")
    assert {number for number in done if found.get(number) != PARTS} == set()
    assert set(found.values()) == {PARTS}
    was_tested(failed >= 20)
    in_time({"back_s": max(back_s)}, back_s=2.0)
