"""Tasks in a SQLite file: durable in one process, shared by several on one machine.

Theory of operation. Writes go through one connection, one transaction at a time,
in a thread; what many trio tasks ask for meanwhile shares the next one (see
`sqlite_writer`). With the write-ahead log and `synchronous=FULL`, an answer
means that it survives `kill -9` and a power cut. Reads have two connections of
their own and see what was committed: one for searches, which may take seconds
over a million rows, and one for what the engine looks at between two renewals
of its leases, which must not wait for a search.

Other processes on the same file are told through `dispatch_bells`, a counter per
topic raised in the transaction that touches it. As long as anything is watched
here, a look at `PRAGMA data_version` (some microseconds, no lock) every 10 to
100 ms tells whether anybody else wrote; only then the counters are read, and
only what changed is rung.

The clock is the machine's, read after the write lock was got, so that a wait for
it makes no lease shorter.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from math import inf
from pathlib import Path
from threading import get_ident
from types import TracebackType
from typing import Any, Final, Literal, TypeVar, cast, get_args

import trio

from dispatch.bell import Bell
from dispatch.checks import check_flag, check_kind, shown
from dispatch.clock import Clock
from dispatch.errors import ClosedError, InvalidConfigError, StorageError
from dispatch.records import AttemptRecord, NewTask, TaskRecord, Transition
from dispatch.storage import sqlite_query, sqlite_repair
from dispatch.storage.bells import Bells
from dispatch.storage.protocol import (
    KEEP,
    AdvanceAnswer,
    Change,
    Claimed,
    CronRecord,
    EnqueueResult,
    Keep,
    Page,
    PutAnswer,
    QueueRecord,
    RemoveAnswer,
    RenewAnswer,
    Rescued,
    SettleResult,
    Storage,
    Topic,
    TopicKind,
    Want,
    WorkerRecord,
)
from dispatch.storage.query import Order, PruneSpec, Where
from dispatch.storage.sqlite_registry import SqliteRegistry
from dispatch.storage.sqlite_schema import Synchronous, connect, create_or_migrate, remedy
from dispatch.storage.sqlite_tasks import SqliteTasks
from dispatch.storage.sqlite_writer import Writer, no_thread
from dispatch.threads import check_thread

__all__ = ["SqliteStorage"]

log: Final = logging.getLogger("dispatch.sqlite")

T = TypeVar("T")

TAKE_LOCK: Final = "DELETE FROM dispatch_tasks WHERE FALSE"
QUICK_S: Final = 0.01
SLOW_S: Final = 0.1
"""The shortest and the longest pause between two looks for what other processes wrote."""
LONG_WAIT_S: Final = 1.0
"""A sweep that waited so long for the write lock lets the living go first, PUT_OFF times in a row."""
PUT_OFF: Final = 3
KINDS: Final = frozenset(TopicKind)
MISTAKEN_S: Final = 5.0
"""The pause after a look that failed by a mistake of its own."""
RING: Final = (
    "INSERT INTO dispatch_bells VALUES (?, ?, 1)"
    " ON CONFLICT (kind, name) DO UPDATE SET count = count + 1 RETURNING count"
)


class _Ledger:
    """The writing connection, as a `Writer` sees it: used in one thread at a time."""

    def __init__(self, connection: sqlite3.Connection, clock: Clock, path: Path) -> None:
        self.db = connection
        real = os.path.realpath(path)
        self._opened = {name: os.stat(name) for name in (real, f"{real}-wal")}
        """The file and its log, of which another process may think that nobody needs them any more."""
        self.tasks = SqliteTasks(connection)
        self.registry = SqliteRegistry(self.tasks)
        self.now: float = 0.0
        """The instant of the transaction; where time is virtual, set before it."""
        self.rung: dict[tuple[TopicKind, str], int] = {}
        self.ended: list[str] = []
        self._clock = clock
        self._real = clock.slice_s < inf

    def begin(self) -> None:
        self._check_there()
        self.db.execute("BEGIN IMMEDIATE")
        if self._real:
            self.now = self._clock.now()
        self.rung = {}
        self.ended = []
        self.tasks.begin()

    def _check_there(self) -> None:
        """Refuse to write to a file that nobody else can see any more: SQLite itself would not notice."""
        for name, opened in self._opened.items():
            try:
                there = os.path.samestat(os.stat(name), opened)
            except OSError:
                there = False
            if not there:
                raise StorageError(
                    f"{name}: the file was deleted, moved or replaced while it is open here, and what is written to "
                    "it would be lost. Stop every process that has it open, put the file in place, and start them "
                    "again. A process that has it open must not copy it either, but for sqlite3's own backup: closing "
                    "the copy's source drops the locks that keep others from deleting the log"
                )

    def commit(self) -> None:
        rung = ring(self.tasks)
        # Should the answer be lost, it may have been done: then a ring too many is harmless, one
        # too few is not. The counts are only known once it is.
        self.rung, self.ended = dict.fromkeys(rung, 0), list(self.tasks.ended)
        self.db.execute("COMMIT")
        self.rung = rung

    def rollback(self) -> None:
        self.tasks.forget()
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")

    def savepoint(self, word: str) -> None:
        if word == "ROLLBACK TO":
            self.tasks.forget()
        self.db.execute(f"{word} step")


def ring(tasks: SqliteTasks) -> dict[tuple[TopicKind, str], int]:
    """Raise the counters of what a transaction touched; part of it."""
    rung: dict[tuple[TopicKind, str], int] = {}
    for kind, name in sorted(tasks.touched):  # in the same order in every process
        (rung[kind, name],) = tasks.db.execute(RING, (kind.value, name)).fetchone()
    return rung


class _Reader:
    """A connection that only reads, for one look at a time."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.turn = trio.CapacityLimiter(1)
        self.looking: object | None = None
        """Which look it is busy with."""


class SqliteStorage(Storage):
    """A storage in a SQLite file, open while its block is: `async with SqliteStorage(path) as storage`.

    - `path`: the file; made with mode 0600 if missing, its tables as well. It
      may be one of your own database's files: ours are named `dispatch_*`.
    - `synchronous`: "full", the default, survives a power cut; "normal" may
      lose the last moments in one (never in a crash of the process), and is
      faster where the disk is slow to flush.
    - `clock`: the wall clock, for tests.
    - `inline`: run statements on the trio thread instead of in another one, for
      simulations under virtual time. The loop waits for the disk.

    Several processes may open one file; on one machine, not over a network
    file system. Copy it with sqlite3's own backup alone while it is open
    anywhere (`sqlite3 jobs.db ".backup copy.db"`), and stop its processes before
    it is moved or replaced: otherwise every write raises StorageError. The wall
    clock decides what is due, so that one which is set back holds it up.

    Raises StorageError if the file cannot be opened or is newer than this code.
    """

    durable = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Synchronous = "full",
        clock: Clock | None = None,
        inline: bool = False,
    ) -> None:
        if synchronous not in get_args(Synchronous):
            raise InvalidConfigError(
                f"SqliteStorage: synchronous must be 'full' or 'normal', got {synchronous!r}"
            )
        given = cast("object", path)
        if not isinstance(given, str | os.PathLike):
            raise InvalidConfigError(f"SqliteStorage: path must be a str or a path, got {shown(given)}")
        check_kind("SqliteStorage: clock", clock, Clock)
        check_flag("SqliteStorage: inline", inline)
        if not os.fspath(path) or str(path) == ":memory:":
            raise InvalidConfigError(
                f"SqliteStorage: path must name a file, got {str(path)!r}; "
                "for a storage in memory use MemoryStorage"
            )
        self._path = Path(path)
        self._file = self._path.absolute()
        """The same, whatever becomes of the working directory."""
        self._synchronous: Synchronous = synchronous
        self._clock = clock if clock is not None else Clock()
        self._inline = inline
        self._bells = Bells()
        self._known: dict[tuple[str, str], int] = {}
        """The counters of `dispatch_bells` as far as they were rung here."""
        self._polling = False
        self._put_off = 0
        """How many sweeps in a row waited long for the write lock, and rescued nobody."""
        self._open = False
        self._used = False
        self._thread: int | None = None
        """That of the trio run it is open in."""

    def __repr__(self) -> str:
        return f"<SqliteStorage {str(self._path)!r}{'' if self._open else ' not open'}>"

    # ---- opening ---------------------------------------------------------

    async def __aenter__(self) -> SqliteStorage:
        """Open the file and bring its tables to this version. A checkpoint."""
        if self._used:
            raise ClosedError(f"{self!r} was open already; make another")
        self._used = True
        self._thread = get_ident()
        self._clock.now()  # ties virtual time to trio's clock, on trio's thread
        await self._hop(self._connect)
        self._writer = Writer(self._ledger, self._committed, inline=self._inline)
        self._open = True
        return self

    def _connect(self) -> None:
        path = self._file
        with ExitStack() as opened:
            connection = opened.enter_context(closing(connect(path, synchronous=self._synchronous)))
            create_or_migrate(connection, path)
            self._searcher = _Reader(opened.enter_context(closing(self._onlooker(path))))
            self._glancer = _Reader(opened.enter_context(closing(self._onlooker(path))))
            self._eye = opened.enter_context(closing(self._onlooker(path)))
            opened.pop_all()
        self._ledger = _Ledger(connection, self._clock, path)
        self._registry = SqliteRegistry(SqliteTasks(self._glancer.db))
        self._known = dict(self._counters())
        self._seen_version = self._data_version()

    def _onlooker(self, path: Path) -> sqlite3.Connection:
        connection = connect(path, synchronous=self._synchronous, create=False)
        connection.execute("PRAGMA query_only = ON")
        return connection

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish what is being written, and close the file. A checkpoint."""
        with trio.CancelScope(shield=True):
            await self._writer.close()
            self._open = False
            async with self._searcher.turn, self._glancer.turn:
                self._bells.ring_all()
                try:
                    await self._hop(self._disconnect)
                except StorageError:  # no thread: the loop waits for the disk, but nothing is left open
                    self._disconnect()

    def _disconnect(self) -> None:
        for connection in (self._eye, self._glancer.db, self._searcher.db, self._ledger.db):
            with suppress(sqlite3.Error):
                connection.close()

    async def _hop(self, action: Callable[[], T]) -> T:
        """Run `action` in a thread; to its end, even if cancelled meanwhile."""
        if self._inline:
            await trio.lowlevel.checkpoint()
            return action()
        return await _in_thread(action)

    # ---- steps -----------------------------------------------------------

    async def _write(self, action: Callable[[_Ledger], T]) -> T:
        """Carry `action` out in the next transaction."""
        self._check_here()
        ledger = self._ledger
        if self._inline:
            ledger.now = self._clock.now()
        try:
            return await self._writer.run(lambda: action(ledger))
        except (sqlite3.OperationalError, sqlite3.DatabaseError) as exc:
            raise self._failed(exc) from exc
        except (UnicodeEncodeError, OverflowError) as exc:
            raise _unfit(exc) from exc

    async def _search(self, action: Callable[[sqlite3.Connection, float], T]) -> T:
        """Look at one state of the file, however long it takes."""
        self._check_here()
        return await self._read(self._searcher, action)

    async def _glance(self, action: Callable[[sqlite3.Connection, float], T]) -> T:
        """Look at one state of the file, at what an index or a small table tells; waits for no search."""
        self._check_here()
        return await self._read(self._glancer, action)

    async def _read(self, reader: _Reader, action: Callable[[sqlite3.Connection, float], T]) -> T:
        now = self._clock.now()

        this = object()

        def look() -> T:
            reader.looking = this
            reader.db.execute("BEGIN")
            try:
                return action(reader.db, now)
            finally:
                reader.db.execute("COMMIT")
                reader.looking = None

        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            if self._inline:
                return look()
            return await _in_thread(look, limiter=reader.turn, abandon_on_cancel=True)
        except trio.Cancelled:
            if reader.looking is this:  # a search of a million rows must not hold up the next reader
                reader.db.interrupt()
            raise
        except (sqlite3.OperationalError, sqlite3.DatabaseError) as exc:
            raise self._failed(exc) from exc
        except (UnicodeEncodeError, OverflowError) as exc:
            raise _unfit(exc) from exc

    def _check_here(self) -> None:
        self._check_open()
        check_thread(self, self._thread)

    def _check_open(self) -> None:
        if not self._open:
            how = "it is closed" if self._used else "use it as: async with SqliteStorage(path) as storage"
            raise ClosedError(f"{self!r}: {how}")

    def _failed(self, exc: sqlite3.Error) -> StorageError:
        hint = remedy(exc, self._path)
        # What the module raises by itself, of a closed connection say, has no code.
        if getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY_SNAPSHOT:
            hint = (
                "; the transaction read before somebody else wrote, and so cannot write any more. Roll "
                "back and begin it with BEGIN IMMEDIATE"
            )
        elif "locked" in str(exc):
            hint = (
                "; somebody held the write lock for 5 s. A transaction of your own on this file, "
                "open in this process, must end before you await a write of the dispatcher"
            )
        return StorageError(f"{self._path}: {exc}{hint}")

    def _committed(self) -> None:
        """Ring for a transaction of this process. On the trio thread."""
        ledger = self._ledger
        for (kind, name), count in ledger.rung.items():
            if self._known.get((kind.value, name), 0) == count - 1:
                self._known[kind.value, name] = count  # else somebody else rang too: look outside
            self._bells.ring(kind, name)
        for id_ in ledger.ended:
            self._bells.ring(TopicKind.TASK, id_)
        ledger.rung, ledger.ended = {}, []

    # ---- tasks -----------------------------------------------------------

    async def enqueue(
        self, tasks: Sequence[NewTask], *, bounded: bool = False, by: tuple[str, int] | None = None
    ) -> list[EnqueueResult]:
        return await self._write(
            lambda ledger: ledger.tasks.enqueue(tasks, ledger.now, bounded=bounded, by=by)
        )

    def enqueue_in(self, connection: object, tasks: Sequence[NewTask]) -> list[EnqueueResult]:
        """As the contract says; `connection` is a `sqlite3.Connection` on the same file, on its thread.

        Waits for nothing but what your connection itself waits for: the first
        write of a deferred transaction takes the write lock.
        """
        if not isinstance(connection, sqlite3.Connection):
            raise InvalidConfigError(
                f"publish_in: expected a sqlite3.Connection, got {type(connection).__name__}"
            )
        plain = _plain(connection)
        try:
            names = [file for _, name, file in plain.execute("PRAGMA database_list") if name == "main"]
        except sqlite3.ProgrammingError as exc:  # it is closed, or another thread's
            raise InvalidConfigError(f"publish_in: the connection cannot be used here: {exc}") from exc
        if not connection.in_transaction:
            raise InvalidConfigError(
                "publish_in: no transaction is open on the connection; begin one first: "
                "connection.execute('BEGIN IMMEDIATE')"
            )
        self._check_open()
        if not names or not names[0] or not _same_file(names[0], self._file):
            raise InvalidConfigError(
                f"publish_in: the connection is of {names[0] if names else None!r}, "
                f"this storage of {str(self._path)!r}; the transaction must be on the same file"
            )
        steps = SqliteTasks(plain)
        try:
            # Before the first read: a deferred transaction that has read cannot write any more
            # once somebody else has, while for the lock it waits.
            plain.execute(TAKE_LOCK)
            steps.begin()
            results = steps.enqueue(tasks, self._clock.now(), bounded=False, by=None)
            ring(steps)
        except sqlite3.Error as exc:
            raise self._failed(exc) from exc
        return results

    async def claim(self, wants: Sequence[Want], *, worker: str, lease: float | None) -> Claimed:
        return (await self.turn((), wants, worker=worker, lease=lease))[1]

    async def turn(
        self,
        transitions: Sequence[Transition],
        wants: Sequence[Want],
        *,
        worker: str,
        lease: float | None,
    ) -> tuple[list[SettleResult], Claimed]:
        """`settle`, then `claim`, in one transaction."""

        def step(ledger: _Ledger) -> tuple[list[SettleResult], Claimed]:
            settled = ledger.tasks.settle(transitions, ledger.now)
            return settled, ledger.tasks.claim(wants, worker=worker, lease=lease, now=ledger.now)

        return await self._write(step)

    async def renew(
        self, claims: Sequence[tuple[str, int]], *, lease: float | None
    ) -> list[RenewAnswer]:
        return await self._write(lambda ledger: ledger.tasks.renew(claims, lease=lease, now=ledger.now))

    async def settle(self, transitions: Sequence[Transition]) -> list[SettleResult]:
        return await self._write(lambda ledger: ledger.tasks.settle(transitions, ledger.now))

    async def rescue(self, limit: int = 1_000) -> Rescued:
        """As the contract says; looks without the write lock first, since there is mostly nothing."""
        asked_at = self._clock.now()
        if not await self._glance(lambda db, now: SqliteTasks(db).expired(now)):
            return Rescued([])

        def step(ledger: _Ledger) -> list[TaskRecord]:
            # Whoever kept the write lock from this sweep kept it from the living, too: let them renew first.
            if ledger.now - asked_at > LONG_WAIT_S and self._put_off < PUT_OFF:
                self._put_off += 1
                return []
            self._put_off = 0
            return ledger.tasks.rescue(limit, ledger.now)

        return Rescued(await self._write(step))

    async def progress(self, claim: tuple[str, int], data: bytes) -> bool:
        return await self._write(lambda ledger: ledger.tasks.progress(*claim, data))

    async def find(
        self,
        where: Where,
        *,
        order: Order = Order.OLDEST,
        limit: int = 100,
        after: str | None = None,
    ) -> Page:
        return await self._search(
            lambda db, now: sqlite_query.find(db, where, now, order=order, limit=limit, after=after)
        )

    async def count(
        self,
        where: Where,
        *,
        by: Sequence[Literal["queue", "type", "status"]] = (),
        bound: int | None = None,
    ) -> dict[tuple[str, ...], int]:
        return await self._search(
            lambda db, now: sqlite_query.count(db, where, now, by=by, bound=bound)
        )

    async def history(self, task_id: str) -> list[AttemptRecord]:
        return await self._search(lambda db, _: sqlite_query.history(db, task_id))

    async def alter(
        self, where: Where, change: Change, *, limit: int | None = None, dry_run: bool = False
    ) -> list[str]:
        return await self._write(
            lambda ledger: sqlite_repair.alter(
                ledger.tasks, where, change, ledger.now, limit=limit, dry_run=dry_run
            )
        )

    async def prune(self, spec: PruneSpec, *, dry_run: bool = False) -> int:
        return await self._write(
            lambda ledger: sqlite_repair.prune(ledger.tasks, spec, ledger.now, dry_run=dry_run)
        )

    # ---- control ---------------------------------------------------------

    async def declare(self, queues: Sequence[QueueRecord], *, new_only: bool = False) -> None:
        await self._write(lambda ledger: ledger.registry.declare(queues, ledger.now, new_only=new_only))

    async def queues(self) -> list[QueueRecord]:
        return await self._glance(lambda _, __: self._registry.queues())

    async def alter_queue(
        self, name: str, *, paused: bool | None = None, concurrency: int | Keep | None = KEEP
    ) -> bool:
        return await self._write(lambda ledger: ledger.registry.alter_queue(name, paused, concurrency))

    async def remove_queue(self, name: str) -> RemoveAnswer:
        return await self._write(lambda ledger: ledger.registry.remove_queue(name))

    async def beat(self, worker: WorkerRecord) -> None:
        await self._write(lambda ledger: ledger.registry.beat(worker, ledger.now))

    async def workers(self) -> list[WorkerRecord]:
        return await self._glance(lambda _, now: self._registry.workers(now))

    async def forget(self, worker: str) -> None:
        await self._write(lambda ledger: ledger.registry.forget(worker))

    # ---- cron entries ----------------------------------------------------

    async def put_cron(self, entry: CronRecord, *, replace: bool = False) -> PutAnswer:
        return await self._write(
            lambda ledger: ledger.registry.put_cron(entry, ledger.now, replace=replace)
        )

    async def crons(self, name: str | None = None) -> list[CronRecord]:
        return await self._glance(lambda _, __: self._registry.crons(name))

    async def alter_cron(
        self,
        name: str,
        *,
        paused_reason: str | None,
        last_slot: float | None = None,
        next_slot: float | None = None,
    ) -> bool:
        return await self._write(
            lambda ledger: ledger.registry.alter_cron(name, paused_reason, last_slot, next_slot)
        )

    async def remove_cron(self, name: str) -> bool:
        return await self._write(lambda ledger: ledger.registry.remove_cron(name))

    async def advance_cron(
        self,
        name: str,
        *,
        expected: float | None,
        last_slot: float,
        next_slot: float | None,
        tasks: Sequence[NewTask],
        definition: str | None = None,
    ) -> AdvanceAnswer:
        return await self._write(
            lambda ledger: ledger.registry.advance_cron(
                name,
                ledger.now,
                expected=expected,
                last_slot=last_slot,
                next_slot=next_slot,
                tasks=tasks,
                definition=definition,
            )
        )

    # ---- clock and bells -------------------------------------------------

    def now(self) -> float:
        return self._clock.now()

    @property
    def slice_s(self) -> float:
        """As the clock's."""
        return self._clock.slice_s

    def watch(self, bell: Bell, *topics: Topic) -> AbstractContextManager[None]:
        self._check_here()
        watching = self._bells.watch(bell, *topics)
        if not self._polling and not self._inline:
            # A system task: it must outlive whoever happens to watch first, and it
            # looks at a file without ever waiting, so nothing in it can be cut short.
            self._polling = True
            trio.lowlevel.spawn_system_task(self._poll, name=f"dispatch poll of {self._path.name}")
        return watching

    async def _poll(self) -> None:
        """Look for what other processes wrote, as long as anybody watches."""
        pause_s = QUICK_S
        try:
            while True:
                await trio.sleep(pause_s)
                if not self._open or not self._bells:
                    return
                try:
                    pause_s = QUICK_S if self._look_outside() else min(pause_s * 1.5, SLOW_S)
                except Exception:
                    # A system task that raises would end the whole run without saying why.
                    log.exception("%r: a mistake of its own kept it from seeing what other processes wrote", self)
                    self._bells.ring_all()
                    pause_s = MISTAKEN_S
        finally:
            self._polling = False

    def _look_outside(self) -> bool:
        """Ring for what changed since the last look; whether anybody wrote."""
        try:
            version = self._data_version()
            if version == self._seen_version:
                return False
            self._seen_version = version
            changed = [(key, count) for key, count in self._counters() if self._known.get(key) != count]
            over = changed and any(kind == TopicKind.DONE for (kind, _), _ in changed)
            for key, count in changed:
                self._known[key] = count
                if key[0] in KINDS:  # else it is of a newer version than this
                    self._bells.ring(TopicKind(key[0]), key[1])
            if over:
                self._ring_ended()
        except sqlite3.Error as exc:
            log.warning("%s: could not look for what other processes wrote: %s", self._path, exc)
            self._bells.ring_all()
        return True

    def _ring_ended(self) -> None:
        """Tell those who wait for a task that somebody else ended."""
        names = list(self._bells.names(TopicKind.TASK))
        for at in range(0, len(names), 500):
            some = names[at : at + 500]
            marks = ", ".join("?" * len(some))
            running = {
                id_
                for (id_,) in self._eye.execute(
                    f"SELECT id FROM dispatch_tasks WHERE id IN ({marks}) AND finished_at IS NULL",  # noqa: S608 - marks only
                    some,
                )
            }
            for name in some:
                if name not in running:
                    self._bells.ring(TopicKind.TASK, name)

    def _data_version(self) -> int:
        return int(self._eye.execute("PRAGMA data_version").fetchone()[0])

    def _counters(self) -> list[tuple[tuple[str, str], int]]:
        rows = self._eye.execute("SELECT kind, name, count FROM dispatch_bells")
        return [((kind, name), count) for kind, name, count in rows]


class _Plain:
    """A user's connection, whatever its row factory: rows are tuples."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, values: Any = ()) -> sqlite3.Cursor:
        return self._cursor().execute(sql, values)

    def executemany(self, sql: str, values: Any) -> sqlite3.Cursor:
        return self._cursor().executemany(sql, values)

    def _cursor(self) -> sqlite3.Cursor:
        cursor = self._connection.cursor()
        cursor.row_factory = None
        return cursor


async def _in_thread(
    action: Callable[[], T], *, limiter: trio.CapacityLimiter | None = None, abandon_on_cancel: bool = False
) -> T:
    """`trio.to_thread.run_sync`, but a StorageError if no thread could be started."""
    begun = False

    def begin() -> T:
        nonlocal begun
        begun = True
        return action()

    try:
        return await trio.to_thread.run_sync(begin, limiter=limiter, abandon_on_cancel=abandon_on_cancel)
    except RuntimeError as exc:
        if begun:
            raise
        raise no_thread(exc) from exc


def _same_file(one: str, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is gone
        return False


def _plain(connection: sqlite3.Connection) -> Any:
    return _Plain(connection)


def _unfit(exc: UnicodeEncodeError | OverflowError) -> InvalidConfigError:
    what = "text in the storage has a lone surrogate"
    if isinstance(exc, OverflowError):
        what = "number in the storage has more than 64 bits"
    return InvalidConfigError(f"no {what}: {exc}")
