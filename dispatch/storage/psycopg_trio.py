"""PostgreSQL on trio: psycopg 3's connection driven by trio's own waiting, a pool, a listener.

Who needs other names of psycopg's takes `psycopg` from here. Theory of operation:

psycopg writes each exchange with the server as a generator that yields when it
would block ("wait until the socket is readable"). `TrioConnection.wait` drives
it, and is all that has to be known of the event loop. A cancellation can only
come while the generator is suspended, the statement running on the server. It
is then stopped *there*: the server is asked to cancel it, and what it still
answers is read, shielded, for at most `grace_s`. From that answer we know:

- it was stopped: `Cancelled` goes on, and the statement had no effect;
- it had ended before: its result is returned as if nothing had happened, and
  the next checkpoint is cancelled instead;
- no answer, or cut in the middle of a COPY: the connection is closed. Only then
  is the effect unknown, and whoever looks at the connection sees that.

BEGIN, SAVEPOINT, COMMIT and ROLLBACK are not stopped but waited for, as long:
a COMMIT is never cut in two, and a cancelled block is rolled back.
"""

from __future__ import annotations

import json
import logging
import random as random_module
import select
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    aclosing,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from contextvars import ContextVar
from math import inf
from types import TracebackType
from typing import Any, Final, NoReturn, Self, TypeVar

import attrs
import trio

from dispatch.errors import ClosedError, InvalidConfigError, StorageError
from dispatch.storage.psycopg_conninfo import (
    CONNECT_S,
    completed,
    connected,
    hosts,
    psycopg,
    redacted,
)

# isort: split
# Behind the file above, which says what extra is missing.
from psycopg.abc import AdaptContext, ConnParam, PQGen  # noqa: TC002 - so that none of them stands before
from psycopg.adapt import AdaptersMap, PyFormat
from psycopg.postgres import register_default_adapters
from psycopg.postgres import types as standard_types
from psycopg.pq import PipelineStatus, PollingStatus, TransactionStatus
from psycopg.rows import AsyncRowFactory, Row, tuple_row
from psycopg.sql import SQL, Identifier
from psycopg.types.array import register_all_arrays
from psycopg.types.json import set_json_loads
from psycopg.waiting import Ready, Wait

__all__ = [
    "HINTS",
    "UNTOUCHED",
    "OwnAsyncCursor",
    "OwnAsyncRawCursor",
    "OwnCursor",
    "OwnRawCursor",
    "PoolStatistics",
    "TrioConnection",
    "TrioPool",
    "backoff_s",
    "listen",
    "psycopg",
    "send_lists_in_binary",
    "storage_errors",
]

RV = TypeVar("RV")

log: Final = logging.getLogger("dispatch.storage.postgres")

AGAIN_S: Final = 0.1
"""A request to cancel that hit nothing, between two statements of one step, is sent again."""

TURN: Final = 64
"""Steps in a row that needed no waiting, before other trio tasks get their turn."""

HOPELESS: Final = (
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    '" does not exist',
    "permission denied for database",
)


def _untouched() -> AdaptersMap:
    """psycopg's adapters as they come."""
    adapters = AdaptersMap(types=standard_types)
    register_default_adapters(adapters)
    register_all_arrays(adapters)
    set_json_loads(json.loads, adapters)
    return adapters


UNTOUCHED: Final = _untouched()
"""For statements of our own: what the program registers, globally or on its connection, is for its own."""


class _Untouched:
    """Makes a cursor use `UNTOUCHED`, whatever its connection does."""

    @property
    def adapters(self) -> AdaptersMap:
        return UNTOUCHED


class OwnCursor(_Untouched, psycopg.Cursor[Row]):
    """For our statements on a connection that is not ours."""


class OwnRawCursor(_Untouched, psycopg.RawCursor[Row]):
    """The same, with `$1` for the first value."""


class OwnAsyncCursor(_Untouched, psycopg.AsyncCursor[Row]):
    """`OwnCursor` on a `TrioConnection`."""


class OwnAsyncRawCursor(_Untouched, psycopg.AsyncRawCursor[Row]):
    """`OwnRawCursor` on a `TrioConnection`."""


_to_its_end: ContextVar[bool] = ContextVar("_to_its_end", default=False)
"""True where a cancellation waits for the exchange instead of stopping it."""


class _Lock:
    """trio's lock, except that taking it while it is free is no checkpoint.

    psycopg takes it to roll back a block that is being cancelled.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = trio.Lock()

    async def __aenter__(self) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


class _Uncut:
    """Enters and leaves another context manager with cancellations waiting for the exchange."""

    __slots__ = ("_inner",)

    def __init__(self, inner: AbstractAsyncContextManager[Any, bool | None]) -> None:
        self._inner = inner

    async def __aenter__(self) -> None:
        with _cancelled_at_its_end():
            await self._inner.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        with _cancelled_at_its_end():
            return await self._inner.__aexit__(kind, error, trace)


def _close(gen: PQGen[Any]) -> None:
    """End a generator where it waits, with what it does at its end; one that then waits again, too."""
    for _ in range(3):
        with suppress(psycopg.Error):
            try:
                gen.close()
            except RuntimeError:  # it ignored it, to read what the server still says
                continue
        return


@contextmanager
def _cancelled_at_its_end() -> Generator[None]:
    token = _to_its_end.set(True)
    try:
        yield
    finally:
        _to_its_end.reset(token)


class TrioConnection(psycopg.AsyncConnection[Row]):
    """psycopg's `AsyncConnection` for trio: the same methods, cursors, pipelines, COPY, notifies.

    Differences: deadlines are cancel scopes, so `notifies` takes no `timeout`;
    whatever talks to the server is a checkpoint; BEGIN, COMMIT and ROLLBACK are
    one only in that other trio tasks run. What a cancellation leaves is said at
    the top of this module. In a pipeline outside a transaction, statements
    sent before the cancelled one may have taken effect. Usable from one trio
    task at a time; a second waits for the first.
    """

    grace_s: float = 0.5
    """Seconds that the server has to answer after a cancellation, before the connection is closed."""
    silence_s: float = inf
    """Seconds that one exchange waits for the server before the connection is taken for broken, and closed."""

    def __init__(self, pgconn: psycopg.pq.abc.PGconn, *args: Any, **kwargs: Any) -> None:
        super().__init__(pgconn, *args, **kwargs)
        # psycopg uses it as an asynchronous context manager, and in no other way.
        self.lock: Any = _Lock()  # pyright: ignore[reportIncompatibleVariableOverride]
        self._turns = 0
        self._gone = False
        """Closed from here: libpq has freed what it was."""
        self._given: AdaptersMap | None = None

    @property
    def adapters(self) -> AdaptersMap:
        """Its own: of the `context` it was opened with, or as psycopg's global ones were."""
        return super().adapters if self._given is None else self._given

    async def execute_raw(self, query: bytes, values: Sequence[Any]) -> psycopg.AsyncCursor[Any]:
        """`execute` of a statement with `$1` for its first value, and so on; binary. A checkpoint."""
        cursor = psycopg.AsyncRawCursor(self, row_factory=tuple_row)
        return await cursor.execute(query, values, binary=True)

    @classmethod
    async def connect(
        cls,
        conninfo: str = "",
        *,
        autocommit: bool = False,
        prepare_threshold: int | None = 5,
        context: AdaptContext | None = None,
        row_factory: AsyncRowFactory[Row] | None = None,
        cursor_factory: type[psycopg.AsyncCursor[Row]] | None = None,
        **kwargs: ConnParam,
    ) -> Self:
        """Open a connection; `conninfo` and `kwargs` are libpq's, `DEFAULTS` fill in.

        Raises psycopg's errors, none with a password in its message. Cancelled,
        it leaves no connection behind: one that a thread is still opening is
        closed as soon as it is open.
        """
        pgconn = await _opened(conninfo, kwargs)
        self = cls(pgconn)
        if context is not None:
            self._given = AdaptersMap(context.adapters)
        try:
            await self.set_autocommit(autocommit)
        except BaseException:
            await self.close()
            raise
        if row_factory is not None:
            self.row_factory = row_factory
        if cursor_factory is not None:
            self.cursor_factory = cursor_factory
        self.prepare_threshold = prepare_threshold
        return self

    async def wait(
        self, gen: PQGen[RV], interval: float = 0.0, timeout: float | None = None  # noqa: ASYNC109 - psycopg's
    ) -> RV:
        """Drive one exchange with the server to its end; psycopg calls this for every one.

        `interval` is psycopg's, for loops that look for interrupts; trio needs
        none. See the top of this module for cancellation.
        """
        if timeout is not None:
            raise psycopg.NotSupportedError("TrioConnection: take a cancel scope for a timeout")
        if self.closed or (self._at_rest() and not _to_its_end.get()):
            # Nothing was sent yet: cheaper than asking the server to forget it. Amid a
            # COPY or a pipeline the exchange may be what cleans up, and must be begun.
            await trio.lowlevel.checkpoint_if_cancelled()
        waited = False
        try:
            want = next(gen)
            waited = True
            while True:
                try:
                    ready = await self._ready(want, self.silence_s)
                except trio.Cancelled:
                    ended = await self._stop(gen, want)
                    if ended is None:
                        raise
                    return ended[0]
                if not ready:
                    self._break_off(gen)
                    raise psycopg.OperationalError(f"no answer within {self.silence_s:g} s")
                want = self._go_on(gen, ready)
        except StopIteration as end:
            result: RV = end.value
            if not waited:
                await self._give_way()
            return result
        except KeyboardInterrupt:
            self._break_off(gen)  # raised at any place: what was done is unknown
            raise

    async def _give_way(self) -> None:
        """Let others run, and a cancellation in, amid a COPY whose rows all fit into buffers.

        It also keeps the buffer small where the server takes rows more slowly.
        """
        self._turns += 1
        if self._turns % TURN == 0 and not self._at_rest() and not self._pipelined():
            with suppress(psycopg.Error, OSError, trio.ClosedResourceError):
                await trio.lowlevel.wait_writable(self.pgconn.socket)

    async def _stop(self, gen: PQGen[RV], want: int) -> tuple[RV] | None:
        """End an exchange that was cancelled; its result, if it had ended before it was stopped."""
        asking = not _to_its_end.get()
        if asking and self._at_rest():
            gen.close()  # it only listened
            return None
        try:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + self.grace_s):
                while True:
                    if asking:
                        with suppress(psycopg.Error):
                            await self.cancel_safe(timeout=self.grace_s)
                    with trio.move_on_after(AGAIN_S):
                        while True:  # interrupted only in waiting: `want` stays the last wish
                            want = self._go_on(gen, await self._ready(want))
        except StopIteration as end:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE and not self._pipelined():
                self._drop()  # one step of a COPY or a stream, the rest of which nobody will read
                return None
            return (end.value,)
        except psycopg.Error:
            return None  # stopped, as asked; or failed, which is no more effect than that
        self._break_off(gen)
        return None

    async def _ready(self, want: int, silence_s: float = inf) -> int:
        """Wait until the socket is what a generator wants; for both wishes, either will do.

        0 if the server has said nothing for so long.
        """
        try:
            fd = self.pgconn.socket
            if want == Wait.R:
                with trio.move_on_after(silence_s):
                    await trio.lowlevel.wait_readable(fd)
                    return Ready.R
                return 0
            # A socket is nearly always writable: looking costs a tenth of waiting.
            self._turns += 1
            if self._turns % TURN == 0:
                await trio.lowlevel.checkpoint()
            while not (ready := self._possible(want)):
                # Its buffer is full. Wanting both, look for input every 5 ms: the server may
                # wait for us to read. A nursery would cost more and raise groups.
                with trio.CancelScope() as scope:
                    if want & Wait.R:
                        scope.deadline = trio.current_time() + 0.005
                    await trio.lowlevel.wait_writable(fd)
            return ready
        except (psycopg.OperationalError, OSError, trio.ClosedResourceError):
            # The socket is gone. libpq says so, and why, when the generator goes on; left
            # as it is, its `finally` would say so to nobody when it is collected.
            await trio.lowlevel.checkpoint()
            return want

    def _possible(self, want: int) -> int:
        """Which of the wishes the socket grants now; an error grants both, to be met there."""
        look = select.poll()
        look.register(
            self.pgconn.socket,
            (select.POLLIN if want & Wait.R else 0) | (select.POLLOUT if want & Wait.W else 0),
        )
        ready = 0
        for _, events in look.poll(0):
            if events & ~select.POLLOUT:
                ready |= Ready.R
            if events & ~select.POLLIN:
                ready |= Ready.W
        return ready & want

    def _pipelined(self) -> bool:
        return self.pgconn.pipeline_status != PipelineStatus.OFF

    def _at_rest(self) -> bool:
        return (
            self.pgconn.transaction_status != TransactionStatus.ACTIVE and not self._pipelined()
        )

    @property
    def reusable(self) -> bool:
        """Open, outside any transaction, COPY or pipeline, and with nothing unread."""
        return (
            not self.closed
            and self.pgconn.transaction_status == TransactionStatus.IDLE
            and not self._pipelined()
            and not self._possible(Wait.R)
        )

    def _break_off(self, gen: PQGen[Any]) -> None:
        """Give up an exchange, and close the connection: in this order, see `_go_on`."""
        _close(gen)
        self._drop()

    def _go_on(self, gen: PQGen[Any], ready: int) -> Wait:
        """The generator's next step, and what it then waits for.

        Not on a connection that was closed meanwhile: psycopg's generators in C
        would read memory that libpq has freed, and take the process with them.
        """
        if self._gone:
            _close(gen)
            raise psycopg.OperationalError("the connection is closed")
        return gen.send(ready)

    def _drop(self) -> None:
        if not self.closed:
            trio.lowlevel.notify_closing(self.pgconn.socket)
            self.pgconn.finish()
            self._gone = True

    async def close(self) -> None:
        """Close the connection; a statement of another trio task on it fails. No checkpoint."""
        if not self.closed:
            # epoll forgets a closed descriptor silently: whoever waits for it is woken first.
            trio.lowlevel.notify_closing(self.pgconn.socket)
            self._gone = True
            await super().close()

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:  # noqa: ASYNC109 - psycopg's
        """Ask the server to cancel what this connection runs; nothing, if it is closed.

        Not cancellable: it ends after at most `timeout` seconds, then raising
        `psycopg.errors.CancellationTimeout`. The answer to what ran tells
        whether it was cancelled.
        """
        if self.closed:
            return
        with trio.CancelScope(shield=True, deadline=trio.current_time() + timeout):
            if psycopg.capabilities.has_cancel_safe():
                await self._request_cancel()
            else:
                # libpq before 17 can only block: in a thread, by a copy of what it needs.
                await trio.to_thread.run_sync(
                    self.pgconn.get_cancel().cancel,
                    abandon_on_cancel=True,
                    limiter=trio.CapacityLimiter(1),
                )
            return
        raise psycopg.errors.CancellationTimeout(f"no answer within {timeout:g} s")

    async def _request_cancel(self) -> None:
        """Over a connection of its own, encrypted as this one; answered when the server has acted."""
        request = self.pgconn.cancel_conn()
        try:
            # Not `request.blocking()` in a thread: psycopg's C parts hold the GIL throughout.
            request.start()
            while (status := request.poll()) != PollingStatus.OK:
                if status == PollingStatus.READING:
                    await trio.lowlevel.wait_readable(request.socket)
                elif status == PollingStatus.WRITING:
                    await trio.lowlevel.wait_writable(request.socket)
                else:
                    raise psycopg.OperationalError(
                        f"cancellation failed: {request.get_error_message()}"
                    )
        finally:
            request.finish()

    async def commit(self) -> None:
        """Commit the open transaction, if any. Cancelled, it waits for the answer, `grace_s` long."""
        with _cancelled_at_its_end():
            await super().commit()

    async def rollback(self) -> None:
        """Roll the open transaction back, if any. Works in a cancelled scope, for `grace_s`."""
        with _cancelled_at_its_end():
            await super().rollback()

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncGenerator[psycopg.AsyncTransaction]:
        """A block that commits at its end, or rolls back if it is left by an exception.

        Inside another it is a savepoint. Left by `Cancelled`, it is rolled back.
        """
        block = psycopg.AsyncTransaction(self, savepoint_name, force_rollback)
        if self._pipelined():
            # The inner one sends and awaits what the block queued, and can be stopped;
            # the outer one sends COMMIT or ROLLBACK.
            async with _Uncut(self.pipeline()), _Uncut(block), self.pipeline():
                yield block
        else:
            async with _Uncut(block):
                yield block

    def notifies(
        self, *, timeout: float | None = None, stop_after: int | None = None
    ) -> AsyncGenerator[psycopg.Notify]:
        """Notifications as they come, as psycopg's; with no `timeout`, which is a cancel scope's.

        Waiting costs nothing. Close the generator (`contextlib.aclosing`): it
        holds the connection.
        """
        if timeout is not None:
            raise psycopg.NotSupportedError("TrioConnection: take a cancel scope for a timeout")
        return super().notifies(stop_after=stop_after)


async def _opened(conninfo: str, kwargs: dict[str, ConnParam]) -> psycopg.pq.abc.PGconn:
    """Connect by the synchronous driver in a thread, and take its connection over.

    Names, several hosts, TLS and time limits stay psycopg's business.
    """
    lock = threading.Lock()
    opened: list[psycopg.Connection] = []
    given_up = False

    def attempt() -> None:
        connection = connected(conninfo, **kwargs)
        with lock:
            if not given_up:
                opened.append(connection)
                return
        connection.close()

    try:
        await trio.to_thread.run_sync(
            attempt, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
        )
    except BaseException:
        with lock:
            given_up = True
            for connection in opened:
                connection.close()
        raise
    pgconn = opened[0].pgconn
    del opened[0].pgconn  # else its destructor warns that it was left open
    return pgconn


POOLED: Final = (
    "; is a pooler between that gives each transaction another connection? Then add listen=0&prepare=0 to the URL, "
    "or open PostgresStorage(dsn, listen=False, prepare=False)"
)
REPLICA: Final = (
    "; it is a replica, or takes no changes for another reason: name the primary, and with several hosts in the URL "
    "add target_session_attrs=read-write"
)
RESTED: Final = "; connections rest between tasks: ALTER ROLE ... SET idle_session_timeout = 0 for this role"
HINTS: Final[Mapping[str, str]] = {"42P05": POOLED, "26000": POOLED, "25006": REPLICA, "57P05": RESTED}
"""What to do, by SQLSTATE: a prepared statement is there already, or is not; the server is read-only, or impatient."""


@contextmanager
def storage_errors(doing: str, hints: Mapping[str, str] = HINTS) -> Generator[None]:
    """Turn psycopg's errors into StorageError (1021), whose message begins with `doing`."""
    try:
        yield
    except psycopg.Error as exc:
        raise StorageError(f"{doing}: {brief(exc, hints)}") from exc


def brief(error: psycopg.Error, hints: Mapping[str, str] = HINTS) -> str:
    """An error in one line, with its SQLSTATE: without the detail, which may quote stored rows."""
    text = error.diag.message_primary or " ".join(str(error).split()) or type(error).__name__
    return f"{text} ({error.sqlstate}){hints.get(error.sqlstate, '')}" if error.sqlstate else text


def backoff_s(failures: int, random: Callable[[], float]) -> float:
    """Seconds before the next attempt to connect, after so many failed in a row.

    wait = min(1, 0.05 * 2 ** (failures - 1)) * (0.5 + 0.5 * random()): with
    random() drawn from [0, 1) that is 25-50 ms, 50-100 ms, ... 0.5-1 s.
    """
    return float(min(1.0, 0.05 * 2 ** min(failures - 1, 10)) * (0.5 + 0.5 * random()))


@attrs.frozen
class PoolStatistics:
    """How many connections a pool may have, has open, and has lent."""

    size: int
    open: int
    lent: int


class TrioPool:
    """Up to `size` connections to one database, opened when they are first needed.

    Lent in the reverse order of their return, so that a burst's extra ones
    rest. Kept after use only if `reusable`, and still in the autocommit that
    they were lent in; all others are closed, and replaced when they are
    needed, as are those whose server has gone. `isolation_level` is that of
    their transactions, by default the server's. `binary_lists`: see
    `send_lists_in_binary`. `context`: whose adapters they have, by default
    psycopg's global ones. `patience_s`: for how long it tries to connect, by
    default 3 s, or long enough for the last of many hosts.
    """

    silence_s: float = inf
    """That of the connections it lends, see `TrioConnection`."""
    hints: Mapping[str, str] = HINTS
    """By SQLSTATE, what a StorageError says to do about it."""

    def __init__(
        self,
        conninfo: str,
        size: int = 4,
        *,
        autocommit: bool = True,
        prepare_threshold: int | None = 5,
        isolation_level: psycopg.IsolationLevel | None = None,
        binary_lists: bool = False,
        context: AdaptContext | None = None,
        patience_s: float | None = None,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        if size < 1:
            raise InvalidConfigError(f"TrioPool: size must be at least 1, got {size!r}")
        self._conninfo = conninfo
        self._autocommit = autocommit
        self._prepare_threshold = prepare_threshold
        self._isolation_level = isolation_level
        self._binary_lists = binary_lists
        self._context = context
        self._patience_s = _patience_s(conninfo) if patience_s is None else patience_s
        self._random = random
        self._size = size
        self._lent = 0
        self._slots = trio.Semaphore(size)
        self._rest: list[TrioConnection] = []
        self._closed = False
        self.where: str = redacted(conninfo)

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[TrioConnection]:
        """Lend a connection for the block; waits for one while all are lent.

        A checkpoint, except that where one is free no other trio task runs before it is lent:
        the statement is on its way while they run.

        Raises ClosedError (1013), and StorageError (1021) for whatever
        psycopg raises in the block, and if no connection can be opened: that
        is tried for `patience_s` seconds, each time after `backoff_s`, or once
        where waiting cannot help. Cancelled anywhere, nothing stays lent.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self._slots.acquire_nowait()
        except trio.WouldBlock:
            await self._slots.acquire()
        self._lent += 1
        try:
            connection = await self._take()
            connection.silence_s = self.silence_s
            try:
                with storage_errors(self.where, self.hints):
                    yield connection
            except StorageError as exc:
                # Those at rest are to the same server; new ones may be to the new primary.
                if isinstance(exc.__cause__, psycopg.errors.ReadOnlySqlTransaction):
                    for each in (connection, *self._rest):
                        await each.close()
                    self._rest.clear()
                raise
            finally:
                as_lent = connection.autocommit is self._autocommit
                if connection.reusable and as_lent and not self._closed:
                    self._rest.append(connection)
                else:
                    await connection.close()
        finally:
            self._lent -= 1
            self._slots.release()

    async def _take(self) -> TrioConnection:
        if self._closed:
            raise ClosedError(f"{self!r}: lends nothing any more")
        while self._rest:
            connection = self._rest.pop()
            # At rest the server has nothing to say but its farewell, so whatever can be
            # read means a restart, a kill, or settings that a new one starts with.
            if connection.reusable:
                return connection
            await connection.close()
        return await self._open()

    async def _open(self) -> TrioConnection:
        why = "no answer"
        with trio.move_on_after(self._patience_s):
            failures = 0
            while True:
                try:
                    connection = await TrioConnection.connect(
                        self._conninfo,
                        autocommit=self._autocommit,
                        prepare_threshold=self._prepare_threshold,
                        context=self._context,
                    )
                    if self._isolation_level is not None:
                        await connection.set_isolation_level(self._isolation_level)
                    if self._binary_lists:
                        send_lists_in_binary(connection)
                    return connection
                except psycopg.Error as exc:
                    why = brief(exc)
                    if _is_hopeless(exc):
                        raise StorageError(f"{self.where}: {why}") from exc
                failures += 1
                await trio.sleep(backoff_s(failures, self._random))
        raise StorageError(f"{self.where}: no connection within {self._patience_s:g} s: {why}")

    async def aclose(self) -> None:
        """Close the connections at rest, and each lent one on its return. Harmless to repeat."""
        self._closed = True
        for connection in self._rest:
            await connection.close()
        self._rest.clear()
        await trio.lowlevel.checkpoint()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def statistics(self) -> PoolStatistics:
        """What it holds at this moment."""
        return PoolStatistics(self._size, len(self._rest) + self._lent, self._lent)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"lent={self._lent}/{self._size}"
        return f"<TrioPool {self.where!r} {state}>"


def _patience_s(conninfo: str) -> float:
    with suppress(psycopg.Error):
        return max(3.0, CONNECT_S * hosts(completed(conninfo, {})) + 1.0)
    return 3.0  # connecting says what is wrong


def send_lists_in_binary(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Have a connection send lists in binary: several times as fast, for texts are quoted one by one, in Python.

    A list of strings is then text[] to the server, where it was of whatever type would do.
    """
    adapters = connection.adapters
    adapters.register_dumper(list, adapters.get_dumper(list, PyFormat.BINARY))


def _is_hopeless(error: psycopg.Error) -> bool:
    """Whether connecting again cannot help: a wrong string, or refused for who or what is asked for.

    A failed connect has no SQLSTATE, only the server's text, and that perhaps
    in its own language: then it is tried again, to the same end.
    """
    text = str(error)
    return isinstance(error, psycopg.ProgrammingError) or any(sign in text for sign in HOPELESS)


async def listen(
    conninfo: str,
    channels: Iterable[str],
    *,
    on_notify: Callable[[str, str], None],
    on_reconnect: Callable[[], None],
    random: Callable[[], float] = random_module.random,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Call `on_notify(channel, payload)` for each notification on `channels`, until cancelled.

    Runs on a connection of its own; waiting costs nothing. `started()` is
    called once it listens. When the connection is lost it opens another,
    after `backoff_s`, for as long as it takes, and then calls `on_reconnect()`,
    since what was notified meanwhile is lost. Neither may block or raise.
    """
    failures = 0
    started = False
    while True:
        try:
            connection = await TrioConnection.connect(conninfo, autocommit=True)
            try:
                for channel in channels:
                    await connection.execute(SQL("LISTEN {}").format(Identifier(channel)))
                if started:
                    log.info("listening again to %s", redacted(conninfo))
                    on_reconnect()
                else:
                    task_status.started()
                    started = True
                failures = 0
                async with aclosing(connection.notifies()) as notifications:
                    async for each in notifications:
                        on_notify(each.channel, each.payload)
            finally:
                await connection.close()
        except psycopg.Error as exc:
            failures += 1
            level = logging.WARNING if failures == 1 else logging.DEBUG
            log.log(level, "not listening to %s, trying again: %s", redacted(conninfo), brief(exc))
        await trio.sleep(backoff_s(failures, random))
