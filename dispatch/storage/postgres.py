"""Tasks in PostgreSQL: durable, for any number of processes on any number of machines.

Theory of operation. Every method is one transaction, most are one statement (see
`postgres_tasks`); what needs deciding goes through `postgres_step`; what is
published goes through `postgres_publishing`, which gathers it.

Statements of the ordinary flow are short. They run shielded from cancellation,
with a deadline, so that what a cancelled caller did is done or not, never in
doubt; reads and changes in bulk may be cancelled, and are then rolled back.

The database's clock decides everything. `now()` is the machine's counter plus the
offset last seen between the two: not trio's clock, which only its own thread may ask
while `publish_in` is called on any.

Reads that may take long (`find`, `count`, `history`, what is to be pruned) have
connections of their own, with the planner as it is: however many wait there, work
goes on, and others are told of it. Those of the flow tell it to use indexes
whatever it believes about the size of tables: statistics of a queue table are
always out of date, and one bad plan would stop the work.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from math import inf
from threading import get_ident
from typing import Any, Final, Literal, TypeVar

import trio

from dispatch.bell import Bell
from dispatch.errors import ClosedError, InvalidConfigError, StorageError
from dispatch.records import AttemptRecord, NewTask, Transition, to_microsecond
from dispatch.storage import postgres_query
from dispatch.storage.postgres_bell import BellRope
from dispatch.storage.postgres_claim import Ended
from dispatch.storage.postgres_joined import Joined
from dispatch.storage.postgres_publishing import LateError, PostgresPublishing
from dispatch.storage.postgres_registry import PostgresRegistry
from dispatch.storage.postgres_rows import Address, Lanes, Sql
from dispatch.storage.postgres_schema import (
    CHANGED,
    DEFAULT_SCHEMA,
    check_schema_name,
    check_version,
)
from dispatch.storage.postgres_step import Again, Outcome
from dispatch.storage.postgres_tasks import PostgresTasks, all_plain, settled
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
from dispatch.storage.psycopg_conninfo import redacted, with_options
from dispatch.storage.psycopg_trio import UNTOUCHED, TrioConnection, TrioPool, listen, psycopg
from dispatch.storage.query import Order, PruneSpec, Where
from dispatch.threads import check_thread

__all__ = ["PostgresStorage"]

log: Final = logging.getLogger("dispatch.storage.postgres")

T = TypeVar("T")

DEADLINE_S: Final = 4.0
"""A step of the ordinary flow that takes longer has failed: less than the engine waits for it."""
CONFLICTS: Final = (Again, psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
TRIES: Final = 5
"""How often a step that the server rolled back for the sake of others is made."""
TABLE_TRIES: Final = 8
"""How often what needs the table of tasks for itself waits for that, LOCK_MS each time."""
TABLE_PAUSE_S: Final = 0.25
NOT_FREE: Final = (
    f"{TABLE_TRIES} times the table of tasks was not free for that. Nothing was {{0}}d. A transaction that "
    "has published or ended tasks is still open: end it, then {0} again"
)
KEPT_FROM_PLACING: Final = (
    "a queue is to be declared that changes `keyed` or `on_retry`, so its tasks must be placed anew; "
    + NOT_FREE.format("declare")
)
KEPT_FROM_REMOVING: Final = (
    "a queue is to be removed, so nothing may be stored meanwhile; " + NOT_FREE.format("remove")
)
POLL_S: Final = 30.0
POLL_DEAF_S: Final = 1.0
CLOCK_S: Final = 5.0
"""Between two looks at the database's clock: so soon cron notices that it jumped."""
JUMP_S: Final = 1.0
ISOLATION: Final = "-c default_transaction_isolation=read\\ committed"
"""Whatever the database's default: what others have committed must be seen behind their locks."""
FLOW_OPTIONS: Final = (
    f"{ISOLATION} -c enable_seqscan=off -c enable_bitmapscan=off -c enable_hashjoin=off"
    " -c enable_mergejoin=off -c jit=off -c plan_cache_mode=force_generic_plan"
)
ENDED: Final = (
    "SELECT g.id FROM unnest(%s::text[]) AS g (id) LEFT JOIN @.tasks t ON t.id = g.id"
    " WHERE t.id IS NULL OR t.state >= 5"
)


class PostgresStorage(Storage):
    """A storage in a PostgreSQL database, 14 or newer: `async with PostgresStorage(dsn) as storage`.

    - `dsn`: libpq's connection string or URL.
    - `schema`: where the tables lie. `dispatch migrate` makes and upgrades it;
      opening a storage never does.
    - `connections`: how many the flow of tasks may use at a time; two more serve
      reads, and one listens.
    - `listen`: False where LISTEN does not pass, as with PgBouncer in transaction
      mode; then other processes' doings are seen within a second, by polling.
    - `prepare`: False where prepared statements do not pass, as with PgBouncer
      before 1.21; every statement is then planned anew, which is slower.
    - `ticks`: what advances between two looks at the database's clock, for tests.

    Raises StorageError if the database cannot be reached, or its schema is
    missing, older or too new.
    """

    durable = True
    remote = True

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = DEFAULT_SCHEMA,
        connections: int = 5,
        listen: bool = True,
        prepare: bool = True,
        ticks: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._dsn = dsn
        self._where = redacted(dsn)
        self._schema = check_schema_name(schema)
        self._sql = Sql(self._schema)
        self._lanes = Lanes(self._sql)
        self._tasks = PostgresTasks(self._sql, self._lanes)
        self._registry = PostgresRegistry(self._sql, self._lanes)
        self._flow = TrioPool(
            with_options(dsn, FLOW_OPTIONS),
            connections,
            prepare_threshold=0 if prepare else None,
            isolation_level=psycopg.IsolationLevel.READ_COMMITTED,
            binary_lists=True,
            context=UNTOUCHED,
        )
        self._reads = TrioPool(
            with_options(dsn, ISOLATION), 2, prepare_threshold=5 if prepare else None, context=UNTOUCHED
        )
        # In messages: not with settings that the user did not give.
        self._flow.where = self._reads.where = self._where
        self._listens = listen
        self._ticks = ticks
        self._offset = self._clock_error_s = 0.0
        self._rope = BellRope(self._notify, self._ended_of)
        self._joined = Joined(self._sql, self._lanes, self._channel, dsn, self._make_lanes)
        self._relied_on: dict[str, float] = {}
        """Per worker watching LEASES: the earliest end of another's lease it was told of."""
        self._publishing = PostgresPublishing(self._tasks, self._step, self._where)
        self._open = False
        self._thread: int | None = None
        """That of the trio run it is open in."""
        self._background: trio.CancelScope | None = None
        self._ended = trio.Event()

    def __repr__(self) -> str:
        state = "open" if self._open else "closed"
        return f"<PostgresStorage {self._where!r} schema={self._schema!r} {state}>"

    # ---- opening and closing ---------------------------------------------

    async def __aenter__(self) -> PostgresStorage:
        """Look at the schema, and start listening. A checkpoint."""
        if self._background is not None:
            raise InvalidConfigError(f"{self!r}: opened once already; make a new one")
        self._thread = get_ident()
        try:
            async with self._flow.connection() as connection:
                self._joined.identity = await check_version(connection, self._schema)
                self._flow.silence_s = self._reads.silence_s = await _silence_s(connection)
                await self._look_at_clock(connection)
            self._flow.hints = self._reads.hints = self._joined.hints = CHANGED  # it was there just now
        except BaseException:
            await self._close_pools()
            raise
        # Not in a nursery of this block: it may be left in another trio task than it was
        # entered in, and a nursery may not.
        self._background = trio.CancelScope()
        trio.lowlevel.spawn_system_task(self._run, self._background)
        self._open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections. What waits for an answer gets a StorageError."""
        assert self._background is not None
        self._open = False
        self._background.cancel()
        with trio.CancelScope(shield=True) as scope:
            scope.deadline = trio.current_time() + 2 * DEADLINE_S
            await self._ended.wait()
            await self._rope.tell_rest()  # else who waits elsewhere would learn of it by the slow poll
            await self._close_pools()

    async def _close_pools(self) -> None:
        with trio.CancelScope(shield=True):
            await self._flow.aclose()
            await self._reads.aclose()

    async def _run(self, scope: trio.CancelScope) -> None:
        """What goes on beside the calls, until cancelled."""
        try:
            with scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._publishing.run_plain)
                    nursery.start_soon(self._publishing.run_others)
                    nursery.start_soon(self._rope.run_sender)
                    nursery.start_soon(self._rope.run_looker)
                    nursery.start_soon(self._run_poll)
                    if self._listens:
                        nursery.start_soon(self._run_listener)
        except Exception:
            # A system task that raises would end the whole run without saying why.
            log.exception("%r: broken by a mistake of its own; every call fails from now on", self)
        finally:
            self._open = False
            self._publishing.fail("the storage was closed")
            self._rope.bells.ring_all()
            self._ended.set()

    async def _run_listener(self) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(
                partial(
                    listen,
                    self._dsn,
                    [self._channel],
                    on_notify=lambda _, payload: self._rope.hear(payload),
                    on_reconnect=self._rope.ring_all,
                )
            )
            self._rope.ring_all()  # for what was told before it listened

    async def _run_poll(self) -> None:
        """Look at the database's clock, and let every watcher look, now and then and when it jumped."""
        rung_at = trio.current_time()
        while True:
            await trio.sleep(CLOCK_S if self._listens else POLL_DEAF_S)
            known = self._offset
            try:
                await self._briefly(self._look_at_clock)
            except StorageError:
                continue
            now = trio.current_time()
            if not self._listens or now - rung_at >= POLL_S or abs(self._offset - known) > JUMP_S:
                rung_at = now
                self._rope.ring_all()

    async def _look_at_clock(self, connection: TrioConnection[Any]) -> None:
        before = self._ticks()
        cursor = await connection.execute(self._sql("SELECT @.now_s()"))
        row = await cursor.fetchone()
        assert row is not None
        # It was read about in the middle between asking and hearing.
        after = self._ticks()
        self._offset = row[0] - (before + after) / 2
        self._clock_error_s = (after - before) / 2

    @property
    def _channel(self) -> str:
        return f"dispatch.{self._schema}"

    async def _notify(self, payloads: Sequence[str]) -> None:
        await self._briefly(
            lambda connection: connection.execute_raw(
                b"SELECT pg_notify($1::text, payload) FROM unnest($2::text[]) AS payload",
                (self._channel, list(payloads)),
            )
        )

    async def _ended_of(self, ids: Collection[str]) -> list[str]:
        async def look(connection: TrioConnection[Any]) -> list[str]:
            cursor = await connection.execute(self._sql(ENDED), (list(ids),))
            return [row[0] for row in await cursor.fetchall()]

        return await self._briefly(look)

    # ---- how steps are made ----------------------------------------------

    def _check_open(self) -> None:
        if not self._open:
            raise ClosedError(f"{self!r}: it is not open")

    def _check_here(self) -> None:
        self._check_open()
        check_thread(self, self._thread)

    async def _step(
        self,
        action: Callable[[TrioConnection[Any], Outcome], Awaitable[T]],
        *,
        atomic: bool = True,
        shielded: bool = True,
        deadline_s: float | None = None,
        until: float | None = None,
    ) -> T:
        """One step of the flow, then what follows from it; `atomic`: it takes several statements.

        `until` is when its deadline is, in trio's time, if another step came before it.
        """
        self._check_here()
        await trio.lowlevel.checkpoint_if_cancelled()
        # Getting a connection counts, too; what may take long (changes in bulk) has no deadline.
        deadline_s = DEADLINE_S if deadline_s is None else deadline_s
        if until is None:
            until = trio.current_time() + deadline_s if shielded else inf
        in_doubt = False
        with trio.CancelScope(deadline=until):
            async with self._flow.connection() as connection:
                with trio.CancelScope(deadline=until, shield=shielded):
                    return await self._tried(connection, action, atomic)
                in_doubt = connection.closed  # else the server has said that it stopped
        late = LateError(f"{self._where}: no answer within {deadline_s:g} s")
        late.in_doubt = in_doubt
        raise late

    async def _tried(
        self,
        connection: TrioConnection[Any],
        action: Callable[[TrioConnection[Any], Outcome], Awaitable[T]],
        atomic: bool,
    ) -> T:
        for left in reversed(range(TRIES)):
            outcome = Outcome()
            try:
                if atomic:
                    async with connection.transaction():
                        result = await action(connection, outcome)
                else:
                    result = await action(connection, outcome)
            except BaseException as exc:
                # Committed it may be all the same, and only the answer lost: a ring too many is harmless.
                self._rope.ring(outcome.rings, outcome.ended)
                if not isinstance(exc, CONFLICTS):
                    raise
                if not left:
                    raise StorageError(
                        f"{self._where}: {TRIES} times in conflict with others"
                    ) from exc
                continue
            self._follow(outcome)
            return result
        raise AssertionError("the last try returns or raises")

    def _follow(self, outcome: Outcome) -> None:
        """A step is committed: remember its lanes, ring its bells."""
        self._lanes.note(outcome.lanes)
        self._rope.ring(outcome.rings, outcome.ended)
        for worker, until in outcome.leases:
            for name, relied_on in self._relied_on.items():
                if until < relied_on and name != worker:
                    self._relied_on[name] = until
                    self._rope.bells.ring(TopicKind.LEASES, name)

    async def _read(self, action: Callable[[TrioConnection[Any]], Awaitable[T]]) -> T:
        self._check_here()
        async with self._reads.connection() as connection:
            return await action(connection)

    async def _glance(self, action: Callable[[TrioConnection[Any]], Awaitable[T]]) -> T:
        """A read that workers depend on, and that is short."""
        self._check_here()
        return await self._briefly(action)

    async def _briefly(self, action: Callable[[TrioConnection[Any]], Awaitable[T]]) -> T:
        """One statement on a connection of the flow, with the deadline of a step."""
        with trio.move_on_after(DEADLINE_S):
            async with self._flow.connection() as connection:
                return await action(connection)
        raise StorageError(f"{self._where}: no answer within {DEADLINE_S:g} s")

    # ---- publishing ------------------------------------------------------

    async def enqueue(
        self, tasks: Sequence[NewTask], *, bounded: bool = False, by: tuple[str, int] | None = None
    ) -> list[EnqueueResult]:
        if by is not None:
            return await self._step(
                lambda connection, outcome: self._tasks.enqueue(
                    connection, tasks, outcome, bounded=bounded, at=trio.current_time(), by=by
                )
            )
        self._check_here()
        await trio.lowlevel.checkpoint_if_cancelled()
        if not tasks:
            return []
        return await self._publishing.enqueue(tasks, bounded)

    def enqueue_in(self, connection: object, tasks: Sequence[NewTask]) -> list[EnqueueResult]:
        """As the contract says; `connection` is a `psycopg.Connection`, or SQLAlchemy's over one.

        It runs a few statements on your connection, in your thread. They may
        wait: for another transaction that publishes the same unique key, or to
        the same key of a keyed queue, and is not over yet. Those two need READ
        COMMITTED. Of a task type that this process meets for the first time, a
        connection of its own, opened for a moment, makes the place first. Raises
        StorageError, after which only a rollback helps.
        """
        self._check_open()
        return self._joined.enqueue(connection, tasks)

    async def enqueue_in_async(
        self, connection: object, tasks: Sequence[NewTask]
    ) -> list[EnqueueResult]:
        """`enqueue_in` on a `TrioConnection` with a transaction open."""
        self._check_here()
        return await self._joined.enqueue_async(connection, tasks)

    def settle_in(self, connection: object, transition: Transition) -> SettleResult:
        """As the contract says; the connection and errors are those of `enqueue_in`."""
        self._check_open()
        return self._joined.settle(connection, transition)

    async def settle_in_async(self, connection: object, transition: Transition) -> SettleResult:
        """`settle_in` on a `TrioConnection` with a transaction open."""
        self._check_here()
        return await self._joined.settle_async(connection, transition)

    async def _make_lanes(self, addresses: Sequence[Address]) -> None:
        await self._step(
            lambda connection, outcome: self._tasks.make_lanes(connection, addresses, outcome),
            atomic=False,
        )

    # ---- runs ------------------------------------------------------------

    async def claim(self, wants: Sequence[Want], *, worker: str, lease: float | None) -> Claimed:
        return await self._step(
            lambda connection, outcome: self._tasks.claims.claim(
                connection, wants, outcome, worker=worker, lease=lease
            ),
            atomic=len(wants) > 1,
        )

    async def settle(self, transitions: Sequence[Transition]) -> list[SettleResult]:
        if not transitions:
            return []
        until = trio.current_time() + DEADLINE_S
        ended = await self._succeed(transitions)
        if len(ended) == len(transitions):
            return settled(transitions, ended)
        rest = self._step(
            lambda connection, outcome: self._tasks.settle(
                connection, transitions, outcome, ended=ended
            ),
            until=until,
        )
        return await (_shielded(rest) if ended else rest)

    async def turn(
        self,
        transitions: Sequence[Transition],
        wants: Sequence[Want],
        *,
        worker: str,
        lease: float | None,
    ) -> tuple[list[SettleResult], Claimed]:
        """See `Storage.turn`. Ordinarily one statement; what that leaves, in one transaction.

        Should the second fail, a repeat finds settled what the first has settled.
        """
        if not transitions:
            return [], await self.claim(wants, worker=worker, lease=lease)
        if not wants:
            return await self.settle(transitions), Claimed([])
        until = trio.current_time() + DEADLINE_S
        ended: Ended | None = None
        if self._tasks.turns_at_once(transitions, wants):
            over, claimed = await self._step(
                lambda connection, outcome: self._tasks.claims.turn(
                    connection, transitions, wants[0], outcome, worker=worker, lease=lease
                ),
                atomic=False,
            )
            if len(over) == len(transitions):
                return settled(transitions, over), claimed
            ended = over
        elif self._tasks.keyed(wants):
            ended = await self._succeed(transitions)

        async def both(
            connection: TrioConnection[Any], outcome: Outcome
        ) -> tuple[list[SettleResult], Claimed]:
            over = ended
            if over is None:
                over = await self._tasks.succeed(connection, transitions, outcome)
            results = await self._tasks.settle(connection, transitions, outcome, ended=over)
            claimed = await self._tasks.claims.claim(
                connection, wants, outcome, worker=worker, lease=lease
            )
            return results, claimed

        rest = self._step(both, until=until)
        return await (_shielded(rest) if ended else rest)

    async def _succeed(self, transitions: Sequence[Transition]) -> Ended:
        if not all_plain(transitions):
            return {}
        return await self._step(
            lambda connection, outcome: self._tasks.succeed(connection, transitions, outcome),
            atomic=False,
        )

    async def renew(
        self, claims: Sequence[tuple[str, int]], *, lease: float | None
    ) -> list[RenewAnswer]:
        if not claims:
            return []
        return await self._step(
            lambda connection, _: self._tasks.renew(connection, claims, lease), atomic=False
        )

    async def rescue(self, limit: int = 1_000) -> Rescued:
        """End expired runs. `next_sweep` is None: other processes take leases, too."""
        records = await self._step(
            lambda connection, outcome: self._tasks.rescue(connection, limit, outcome), atomic=False
        )
        for name in self._relied_on:
            self._relied_on[name] = float("inf")
        return Rescued(records)

    async def progress(self, claim: tuple[str, int], data: bytes) -> bool:
        return await self._step(
            lambda connection, _: self._tasks.progress(connection, claim, data), atomic=False
        )

    # ---- looking ---------------------------------------------------------

    async def find(
        self,
        where: Where,
        *,
        order: Order = Order.OLDEST,
        limit: int = 100,
        after: str | None = None,
    ) -> Page:
        return await self._read(
            lambda connection: postgres_query.find(
                connection, self._sql, self._lanes, where, order=order, limit=limit, after=after
            )
        )

    async def count(
        self,
        where: Where,
        *,
        by: Sequence[Literal["queue", "type", "status"]] = (),
        bound: int | None = None,
    ) -> dict[tuple[str, ...], int]:
        return await self._read(
            lambda connection: postgres_query.count(
                connection, self._sql, self._lanes, where, by=by, bound=bound
            )
        )

    async def history(self, task_id: str) -> list[AttemptRecord]:
        return await self._read(
            lambda connection: postgres_query.history(connection, self._sql, self._lanes, task_id)
        )

    # ---- by hand ---------------------------------------------------------

    async def alter(
        self, where: Where, change: Change, *, limit: int | None = None, dry_run: bool = False
    ) -> list[str]:
        if dry_run:
            return await self._read(
                lambda connection: self._tasks.would_alter(connection, where, change, limit)
            )
        return await self._step(
            lambda connection, outcome: self._tasks.alter(
                connection, where, change, limit, outcome
            ),
            shielded=False,
        )

    async def prune(self, spec: PruneSpec, *, dry_run: bool = False) -> int:
        return await self._read(
            lambda connection: self._tasks.prune(connection, spec, dry_run=dry_run)
        )

    # ---- queues, workers, cron entries -----------------------------------

    async def declare(self, queues: Sequence[QueueRecord], *, new_only: bool = False) -> None:
        await self._alone(
            lambda connection, outcome: self._registry.declare(connection, queues, outcome, new_only=new_only),
            KEPT_FROM_PLACING,
        )
        if new_only:
            await self.queues()  # which are remembered as they are
        else:
            self._tasks.know(queues)

    async def _alone(
        self, action: Callable[[TrioConnection[Any], Outcome], Awaitable[T]], kept_from: str
    ) -> T:
        """A step that may need the table of tasks for itself, which it waits for in portions."""
        for left in reversed(range(TABLE_TRIES)):
            try:
                return await self._step(action, shielded=False)
            except StorageError as exc:
                if not isinstance(exc.__cause__, psycopg.errors.LockNotAvailable):
                    raise
                if not left:
                    raise StorageError(f"{self._where}: {kept_from}") from exc
            await trio.sleep(TABLE_PAUSE_S)  # for those who had to wait behind it
        raise AssertionError("the last try returns or raises")

    async def queues(self) -> list[QueueRecord]:
        records = await self._glance(self._registry.queues)
        self._tasks.know(records)
        return records

    async def alter_queue(
        self, name: str, *, paused: bool | None = None, concurrency: int | Keep | None = KEEP
    ) -> bool:
        return await self._step(
            lambda connection, outcome: self._registry.alter_queue(
                connection, name, paused, concurrency, outcome
            ),
            atomic=False,
        )

    async def remove_queue(self, name: str) -> RemoveAnswer:
        return await self._alone(
            lambda connection, outcome: self._registry.remove_queue(connection, name, outcome), KEPT_FROM_REMOVING
        )

    async def beat(self, worker: WorkerRecord) -> None:
        await self._step(lambda connection, _: self._registry.beat(connection, worker))

    async def workers(self) -> list[WorkerRecord]:
        return await self._glance(self._registry.workers)

    async def forget(self, worker: str) -> None:
        await self._step(
            lambda connection, _: self._registry.forget(connection, worker), atomic=False
        )

    async def put_cron(self, entry: CronRecord, *, replace: bool = False) -> PutAnswer:
        return await self._step(
            lambda connection, outcome: self._registry.put_cron(connection, entry, replace, outcome)
        )

    async def crons(self, name: str | None = None) -> list[CronRecord]:
        return await self._glance(lambda connection: self._registry.crons(connection, name))

    async def alter_cron(
        self,
        name: str,
        *,
        paused_reason: str | None,
        last_slot: float | None = None,
        next_slot: float | None = None,
    ) -> bool:
        return await self._step(
            lambda connection, outcome: self._registry.alter_cron(
                connection, name, paused_reason, last_slot, next_slot, outcome
            ),
            atomic=False,
        )

    async def remove_cron(self, name: str) -> bool:
        return await self._step(
            lambda connection, outcome: self._registry.remove_cron(connection, name, outcome),
            atomic=False,
        )

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
        return await self._step(
            lambda connection, outcome: self._registry.advance_cron(
                connection, name, expected, (last_slot, next_slot), tasks, definition, outcome
            )
        )

    # ---- clock and bells -------------------------------------------------

    @property
    def clock_error_s(self) -> float:
        return self._clock_error_s

    def now(self) -> float:
        return to_microsecond(self._ticks() + self._offset)

    def watch(self, bell: Bell, *topics: Topic) -> AbstractContextManager[None]:
        return self._watched(bell, topics)

    @contextmanager
    def _watched(self, bell: Bell, topics: tuple[Topic, ...]) -> Generator[None]:
        check_thread(self, self._thread)
        leases = [topic.name for topic in topics if topic.kind is TopicKind.LEASES]
        with self._rope.bells.watch(bell, *topics):
            for name in leases:
                self._relied_on[name] = float("inf")
            try:
                yield
            finally:
                for name in leases:
                    self._relied_on.pop(name, None)


async def _silence_s(connection: TrioConnection[Any]) -> float:
    """A little longer than the server lets a statement run: what is late after that was lost on the way."""
    cursor = await connection.execute(
        "SELECT extract(epoch FROM current_setting('statement_timeout')::interval)::float8"
    )
    row = await cursor.fetchone()
    assert row is not None
    return row[0] + 1.0 if row[0] else inf


async def _shielded(rest: Awaitable[T]) -> T:
    """The rest of what has begun: a cancelled call does all or nothing."""
    with trio.CancelScope(shield=True):
        return await rest
    raise AssertionError("nobody cancels this scope")
