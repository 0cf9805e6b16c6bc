"""Storing and settling tasks inside the user's own transaction on PostgreSQL.

The steps are those of the storage, written once, as coroutines. On a synchronous
connection they are given one whose awaits never wait (`_Blocking`), and so run to
their end in one go.

Nothing is remembered of what such a transaction made, since it may be rolled
back; and its notifications are part of it, so that workers wake when it commits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Final, TypeVar, cast
from weakref import WeakSet

from psycopg.rows import tuple_row

from dispatch.errors import InvalidConfigError, StorageError
from dispatch.records import NewTask, Transition
from dispatch.storage.postgres_bell import payloads
from dispatch.storage.postgres_rows import Address, Lanes, Sql, address_of
from dispatch.storage.postgres_schema import IDENTITY
from dispatch.storage.postgres_step import Again, Outcome
from dispatch.storage.postgres_tasks import PostgresTasks
from dispatch.storage.protocol import EnqueueResult, SettleResult, Topic, TopicKind
from dispatch.storage.psycopg_conninfo import connected, redacted
from dispatch.storage.psycopg_trio import (
    HINTS,
    OwnAsyncCursor,
    OwnAsyncRawCursor,
    OwnCursor,
    OwnRawCursor,
    TrioConnection,
    psycopg,
    storage_errors,
)

__all__ = ["Joined"]

T = TypeVar("T")

Aside = Callable[[Sequence[Address]], Awaitable[None]]
"""Makes lanes in a transaction of its own."""

TRIES: Final = 5
EVERYBODY: Final = "-"
"""Sent as the sender's name: also this process hears it, when it is committed."""
TELL: Final = b"SELECT pg_notify(%s, %s), current_setting('transaction_isolation')"
STILL_THERE: Final = "SELECT 1 FROM @.queues WHERE name = ANY (%s) FOR KEY SHARE"
"""Fails in a transaction that sees what was there when it began, if one of these was removed since.

After the tasks were stored, not before: from then on who removes a queue is kept from the table
of tasks, and it has that before it takes the queue's row.
"""
NUMBERS: Final = "SELECT name, id FROM @.queues WHERE name = ANY (%s)"


class _Results:
    """A synchronous cursor with the methods of an asynchronous one."""

    def __init__(self, cursor: psycopg.Cursor[Any]) -> None:
        self._cursor = cursor

    async def fetchall(self) -> list[Any]:
        return self._cursor.fetchall()

    async def fetchone(self) -> Any:
        return self._cursor.fetchone()


class _Blocking:
    """A synchronous connection with the methods of an asynchronous one, as far as steps use them."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self.pgconn = connection.pgconn

    async def execute(self, query: bytes, values: Any = None, *, binary: bool = False) -> _Results:
        # Not the connection's own cursor: that may make rows of another kind.
        cursor = OwnCursor(self._connection, row_factory=tuple_row)
        return _Results(cursor.execute(query, values, binary=binary))

    async def execute_raw(self, query: bytes, values: Sequence[Any]) -> _Results:
        cursor = OwnRawCursor(self._connection, row_factory=tuple_row)
        return _Results(cursor.execute(query, values, binary=True))


class _Waiting:
    """The user's `TrioConnection`, whose own cursors may make rows of another kind."""

    def __init__(self, connection: TrioConnection[Any]) -> None:
        self._connection = connection
        self.pgconn = connection.pgconn

    async def execute(self, query: bytes, values: Any = None, *, binary: bool = False) -> psycopg.AsyncCursor[Any]:
        cursor = OwnAsyncCursor(self._connection, row_factory=tuple_row)
        return await cursor.execute(query, values, binary=binary)

    async def execute_raw(self, query: bytes, values: Sequence[Any]) -> psycopg.AsyncCursor[Any]:
        cursor = OwnAsyncRawCursor(self._connection, row_factory=tuple_row)
        return await cursor.execute(query, values, binary=True)


def _finished(step: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits."""
    try:
        step.send(None)
    except StopIteration as end:
        return cast("T", end.value)
    raise AssertionError("a step on a synchronous connection waited")


class Joined:
    """What can be done in the user's transaction, for the storage of this schema and `identity`."""

    def __init__(self, sql: Sql, lanes: Lanes, channel: str, dsn: str, aside: Aside) -> None:
        self._sql = sql
        self._lanes = lanes
        self._channel = channel
        self._dsn = dsn
        self._where = redacted(dsn)
        self._aside = aside
        self.identity = ""
        self.hints = HINTS
        """By SQLSTATE, what a StorageError says to do about it."""
        self._known: WeakSet[Any] = WeakSet()
        """Connections found to be of this database."""

    # ---- on a synchronous connection -------------------------------------

    def enqueue(self, given: object, tasks: Sequence[NewTask]) -> list[EnqueueResult]:
        """See `Storage.enqueue_in`."""
        connection = _plain(given, "publish_in")
        with storage_errors(self._where, self.hints):
            blocking = cast("TrioConnection[Any]", _Blocking(connection))
            return _finished(self._enqueue(blocking, connection, tasks, self._blocking_aside))

    def settle(self, given: object, transition: Transition) -> SettleResult:
        """End a run in the transaction."""
        connection = _plain(given, "settle_in")
        with storage_errors(self._where, self.hints):
            blocking = cast("TrioConnection[Any]", _Blocking(connection))
            return _finished(self._settle(blocking, connection, transition, self._blocking_aside))

    # ---- on a connection of ours -----------------------------------------

    async def enqueue_async(self, given: object, tasks: Sequence[NewTask]) -> list[EnqueueResult]:
        """`enqueue` on a `TrioConnection`."""
        connection = _ours(given, "publish_in")
        with storage_errors(self._where, self.hints):
            waiting = cast("TrioConnection[Any]", _Waiting(connection))
            return await self._enqueue(waiting, connection, tasks, self._aside)

    async def settle_async(self, given: object, transition: Transition) -> SettleResult:
        """`settle` on a `TrioConnection`."""
        connection = _ours(given, "settle_in")
        with storage_errors(self._where, self.hints):
            waiting = cast("TrioConnection[Any]", _Waiting(connection))
            return await self._settle(waiting, connection, transition, self._aside)

    # ---- on either -------------------------------------------------------

    async def _enqueue(
        self,
        connection: TrioConnection[Any],
        known_by: object,
        tasks: Sequence[NewTask],
        aside: Aside,
    ) -> list[EnqueueResult]:
        await self._check_database(connection, known_by)
        outcome = Outcome()
        results = await self._enqueue_plain(connection, tasks, outcome, aside)
        left = [new for new, result in zip(tasks, results, strict=True) if result is None]
        if left and await self._forget_removed(connection, left):
            anew = iter(await self._enqueue_plain(connection, left, outcome, aside))
            results = [next(anew) if result is None else result for result in results]
            left = [new for new, result in zip(tasks, results, strict=True) if result is None]
        if left:
            await self._check_isolation(connection)
            steps = PostgresTasks(self._sql, self._lanes.copy())
            decided = iter(
                await self._again(
                    connection, lambda: steps.enqueue(connection, left, outcome, bounded=False)
                )
            )
            results = [next(decided) if result is None else result for result in results]
        await self._tell(connection, outcome, {new.queue for new in tasks})
        return [result for result in results if result is not None]

    async def _enqueue_plain(
        self,
        connection: TrioConnection[Any],
        tasks: Sequence[NewTask],
        outcome: Outcome,
        aside: Aside,
    ) -> list[EnqueueResult | None]:
        """Store what depends on no stored task, if all do not; None for what was not stored."""
        await self._know_lanes(connection, tasks, aside)
        steps = PostgresTasks(self._sql, self._lanes.copy())
        if steps.are_plain(tasks, bounded=False):
            return await steps.enqueue_plain(connection, tasks, outcome, bounded=False)
        return [None] * len(tasks)

    async def _forget_removed(self, connection: TrioConnection[Any], tasks: Sequence[NewTask]) -> bool:
        """Forget the lanes of queues that were removed and declared anew; whether there were any of these tasks."""
        cursor = await connection.execute(self._sql(NUMBERS), (sorted({new.queue for new in tasks}),))
        numbers = dict(await cursor.fetchall())
        lanes = [self._lanes.known(address_of(new)) for new in tasks]
        old = [each for each in lanes if each is not None and numbers.get(each.queue, each.queue_id) != each.queue_id]
        self._lanes.forget((each.queue, each.type, each.version, each.tagged) for each in old)
        return bool(old)

    async def _settle(
        self,
        connection: TrioConnection[Any],
        known_by: object,
        transition: Transition,
        aside: Aside,
    ) -> SettleResult:
        await self._check_database(connection, known_by)
        await self._check_isolation(connection)
        await self._know_lanes(connection, transition.spawn, aside)
        steps, outcome = PostgresTasks(self._sql, self._lanes.copy()), Outcome()

        async def settle() -> list[SettleResult]:
            ended = await steps.succeed(connection, [transition], outcome)
            return await steps.settle(connection, [transition], outcome, ended=ended)

        [result] = await self._again(connection, settle)
        # Of limits on the queue, within which there is room now, these steps know nothing.
        over = [topic.name for topic in outcome.rings if topic.kind is TopicKind.DONE]
        outcome.rings.update(Topic(TopicKind.QUEUE, queue) for queue in over)
        await self._tell(connection, outcome, ())  # it is READ COMMITTED
        return result

    async def _again(
        self, connection: TrioConnection[Any], step: Callable[[], Awaitable[T]]
    ) -> T:
        """A step that is made again where another transaction stored the same id meanwhile."""
        for _ in range(TRIES):
            await connection.execute(b"SAVEPOINT dispatch_step")
            try:
                result = await step()
            except Again:
                await connection.execute(b"ROLLBACK TO SAVEPOINT dispatch_step")
                continue
            await connection.execute(b"RELEASE SAVEPOINT dispatch_step")
            return result
        raise StorageError(f"{self._where}: {TRIES} times in conflict with others")

    async def _know_lanes(
        self, connection: TrioConnection[Any], tasks: Iterable[NewTask], aside: Aside
    ) -> None:
        """Have their lanes made beside the transaction: as part of it they would be locked until its end.

        Then everybody who publishes such a task for the first time would wait for it. A
        transaction that does not see what was committed since it began makes them itself.
        """
        missing = sorted({address_of(new) for new in tasks} - self._lanes.addresses)
        if missing and await self._isolation(connection) == "read committed":
            await aside(missing)

    async def _blocking_aside(self, addresses: Sequence[Address]) -> None:
        with connected(self._dsn) as own:
            own.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
            blocking = cast("TrioConnection[Any]", _Blocking(own))
            self._lanes.note((await self._lanes.make(blocking, addresses)).values())

    async def _check_database(self, connection: TrioConnection[Any], known_by: object) -> None:
        if known_by in self._known:
            return
        encoding = connection.pgconn.parameter_status(b"client_encoding")
        if encoding != b"UTF8":
            raise InvalidConfigError(
                "publish_in: needs a connection whose client_encoding is UTF8, got "
                f"{'none' if encoding is None else encoding.decode()}; connect with client_encoding='UTF8'"
            )
        table = f"{self._sql.schema}.identity"
        cursor = await connection.execute(b"SELECT to_regclass(%s) IS NOT NULL", (table,))
        there = await cursor.fetchone()
        found = None
        if there is not None and there[0]:
            cursor = await connection.execute(self._sql(IDENTITY))
            found = await cursor.fetchone()
        if found is None or found[0] != self.identity:
            raise InvalidConfigError(
                "publish_in: the connection is of another database than this storage "
                f"({self._where}, schema {self._sql.schema!r}); the transaction must be on the same"
            )
        self._known.add(known_by)

    async def _check_isolation(self, connection: TrioConnection[Any]) -> None:
        isolation = await self._isolation(connection)
        if isolation != "read committed":
            # What another transaction has committed since must be seen behind its lock.
            raise InvalidConfigError(
                "publish_in: unique tasks, keyed queues and settling need a transaction that is "
                f"READ COMMITTED, this one is {isolation}"
            )

    async def _isolation(self, connection: TrioConnection[Any]) -> str:
        cursor = await connection.execute(b"SELECT current_setting('transaction_isolation')")
        row = await cursor.fetchone()
        assert row is not None
        return str(row[0])

    async def _tell(
        self, connection: TrioConnection[Any], outcome: Outcome, queues: Iterable[str]
    ) -> None:
        """Ring with the commit; nothing was stored in these queues without a bell to be rung."""
        isolation = "read committed"
        for payload in payloads(EVERYBODY, outcome.rings):
            cursor = await connection.execute(TELL, (self._channel, payload))
            row = await cursor.fetchone()
            assert row is not None
            isolation = row[1]
        if isolation != "read committed":
            await connection.execute(self._sql(STILL_THERE), (sorted(queues),))


def _plain(given: object, what: str) -> psycopg.Connection[Any]:
    """The psycopg connection that was given, perhaps as SQLAlchemy's, with a transaction to join."""
    driver = given
    if not isinstance(given, psycopg.Connection):
        driver = getattr(getattr(given, "connection", None), "driver_connection", None)
    if not isinstance(driver, psycopg.Connection):
        raise InvalidConfigError(
            f"{what}: expected a psycopg.Connection, or SQLAlchemy's Connection over psycopg, "
            f"got {_named(cast('object', given))}{_of_session(cast('object', given))}"
        )
    connection = cast("psycopg.Connection[Any]", driver)
    # SQLAlchemy would neither commit nor keep what it does not know to be begun.
    begun = driver is given or bool(getattr(cast("object", given), "in_transaction", bool)())
    if not begun or _outside(connection):
        raise InvalidConfigError(
            f"{what}: no transaction is open on the connection; begin one first: "
            "with connection.transaction(): ..., or with SQLAlchemy engine.begin()"
        )
    return connection


def _of_session(given: object) -> str:
    """What to pass in place of SQLAlchemy's Session, which is known by its name: nothing here imports it."""
    is_orm = any(each.__module__.startswith("sqlalchemy.orm.") for each in type(given).__mro__)
    return "; pass session.connection()" if is_orm and callable(getattr(given, "connection", None)) else ""


def _ours(given: object, what: str) -> TrioConnection[Any]:
    if not isinstance(given, TrioConnection):
        raise InvalidConfigError(f"{what}: expected a TrioConnection, got {_named(given)}")
    connection = cast("TrioConnection[Any]", given)
    if _outside(connection):
        raise InvalidConfigError(
            f"{what}: no transaction is open on the connection; begin one first: "
            "async with connection.transaction(): ..."
        )
    return connection


def _outside(connection: psycopg.Connection[Any] | TrioConnection[Any]) -> bool:
    """Whether a statement would be committed by itself: without autocommit, the first one begins."""
    status = connection.pgconn.transaction_status
    return connection.autocommit and status == psycopg.pq.TransactionStatus.IDLE


def _named(given: object) -> str:
    kind = type(given)
    return f"{kind.__module__}.{kind.__qualname__}"
