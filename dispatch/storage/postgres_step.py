"""One step on tasks in PostgreSQL that is no hot path: read, decide in Python, write what changed.

Theory of operation. A step runs in one transaction, in this order, which is the
same for all of them and so keeps them from waiting for each other in a circle:

1. LOCK TABLE in the mode that every write takes anyway: from here on no queue is
   declared keyed, or not keyed, under us (`declare` takes a mode that excludes it).
2. The queues as they are.
3. Advisory locks, sorted: first for unique keys to be looked up, behind which no
   further task can take them, then for the lines (keys of keyed queues) of all tasks
   that will be touched. Both go by a few hundred stripes, so that a large batch does
   not fill the server's lock table. A line that is met only later is not waited for:
   if it is taken, the step is made again.
4. The clock, and numbers for what will be stored: drawn behind the locks, so that
   within a key the order of storing is the order of committing.
5. The rows, FOR UPDATE, by `seq`.
6. `dispatch.lifecycle` decides, on records.
7. What differs is written: one statement for all changed rows, one for the new
   ones, one for attempts; then the lines that were touched find their heads.

Claims and the settling of plain successes do not come here. They touch no line's
order: a claim takes a READY row, of which a key has one, and skips locked ones.

Whoever does deadlock (rows of one batch locked by claims, say) is rolled back by
the server; the whole step is then done again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from operator import attrgetter
from typing import Any, Final
from zlib import crc32

import attrs

from dispatch import lifecycle
from dispatch.lifecycle import SettleAnswer
from dispatch.records import AttemptRecord, NewTask, TaskRecord, Transition, UniqueKey
from dispatch.storage.changes import clash_answer, patched, replacement, would_change
from dispatch.storage.postgres_rows import (
    COLUMNS,
    IN_STATE,
    LANE_AT,
    STATUS,
    TYPES,
    WRITTEN,
    Lane,
    Lanes,
    Sql,
    Stored,
    as_json,
    new_record,
    runs_of,
    stored_of,
)
from dispatch.storage.postgres_schema import State
from dispatch.storage.protocol import (
    Change,
    EnqueueAnswer,
    EnqueueResult,
    SettleResult,
    Topic,
    TopicKind,
)
from dispatch.storage.psycopg_trio import TrioConnection, psycopg
from dispatch.storage.texts import unique_to_text
from dispatch.tasks import OnClash, TaskStatus

__all__ = [
    "INSERTED",
    "QUEUES",
    "Again",
    "Given",
    "Outcome",
    "Queue",
    "Step",
    "column",
    "promote",
    "taken",
    "transaction",
]

HISTORY_LIMIT: Final = 1_000
"""Runs kept per task; of a longer history the oldest go."""
UNIQUE_STRIPES: Final = 1_024
LINE_STRIPES: Final = 256

LOCK_STRIPES: Final = "SELECT pg_advisory_xact_lock(hashtext('dispatch @.'), stripe) FROM unnest(%s::int4[]) AS stripe"
TAKEN: Final = (
    "SELECT stripe FROM unnest(%s::int4[]) AS stripe"
    " WHERE NOT pg_try_advisory_xact_lock(hashtext('dispatch @.'), stripe)"
)
"""Locks those that are free and answers with the others."""
LOAD: Final = f"SELECT {COLUMNS} FROM @.tasks t WHERE {{}} ORDER BY t.seq FOR UPDATE"
WAITING: Final = (
    "SELECT count(*) FROM ("
    " (SELECT 1 FROM @.lanes l CROSS JOIN generate_series(0, 3) AS p (priority) CROSS JOIN LATERAL"
    "   (SELECT 1 FROM @.tasks t WHERE t.lane = l.id AND t.priority = p.priority AND t.state = 0"
    "     AND t.available_at <= %(now)s LIMIT %(bound)s) AS due WHERE l.queue = %(queue)s LIMIT %(bound)s)"
    " UNION ALL (SELECT 1 FROM @.tasks t WHERE t.queue = %(queue)s AND t.lined AND t.state <= 2"
    "   AND t.state <> 0 AND t.available_at <= %(now)s LIMIT %(bound)s)) AS waiting"
)
LINES_GIVEN: Final = "unnest(%(queues)s::int4[], %(keys)s::text[]) AS g (queue, key)"
FRONT: Final = (
    "t.queue = g.queue AND t.key = g.key AND t.lined AND (t.state = 0 OR t.state = 3)"
    f" AND {IN_STATE}"
)
"""Who of a line may run (0) or runs (3), by the index of those two."""
LOCK_HEADS: Final = (
    f"WITH head AS MATERIALIZED (SELECT t.seq FROM {LINES_GIVEN} CROSS JOIN LATERAL"
    f"  (SELECT t.seq FROM @.tasks t WHERE {FRONT.format(0)} OFFSET 0) AS t ORDER BY t.seq)"
    " SELECT t.seq FROM head CROSS JOIN LATERAL (SELECT t.seq FROM @.tasks t"
    f"  WHERE t.seq = head.seq AND t.lined AND {IN_STATE.format(0)} FOR UPDATE) AS t"
)
"""Waits for who is just claiming one of these heads: afterwards it is seen to run."""
PROMOTE: Final = (
    "WITH line AS MATERIALIZED (SELECT g.queue, g.key,"
    f"  (SELECT TRUE FROM @.tasks t WHERE {FRONT.format(3)} LIMIT 1) AS busy,"
    "  (SELECT h.seq FROM @.tasks h WHERE h.queue = g.queue AND h.key = g.key AND h.lined"
    "   AND h.state <= 2 AND (h.state <> 2 OR h.available_at <= %(now)s) ORDER BY h.seq LIMIT 1) AS head"
    f"  FROM {LINES_GIVEN}),"
    " target AS (SELECT head AS seq, CASE WHEN busy THEN 1 ELSE 0 END AS state FROM line"
    "  WHERE head IS NOT NULL"
    "  UNION ALL SELECT t.seq, 1 FROM line g CROSS JOIN LATERAL"
    f"   (SELECT t.seq FROM @.tasks t WHERE {FRONT.format(0)} OFFSET 0) AS t WHERE t.seq <> g.head"
    "  UNION ALL SELECT t.seq, 1 FROM line g CROSS JOIN LATERAL"
    "   (SELECT t.seq FROM @.tasks t WHERE t.queue = g.queue AND t.key = g.key AND t.lined AND t.state <= 2"
    f"    AND {IN_STATE.format(2)} AND t.available_at <= %(now)s OFFSET 0) AS t WHERE t.seq <> g.head)"
    " UPDATE @.tasks t SET state = target.state FROM target"
    " WHERE t.seq = target.seq AND t.state <> target.state"
)
IN_WINDOWS: Final = (
    "t.seq IN (SELECT w.seq FROM"
    " (SELECT n.key, coalesce(n.at, @.now_s() + n.delay) AS at, n.within + 60 AS within"
    "  FROM unnest(%s::text[], %s::float8[], %s::float8[], %s::float8[]) AS n (key, at, delay, within)) AS n"
    " JOIN @.tasks w ON w.unique_key = n.key AND w.state = ANY (%s)"
    "  AND w.available_at BETWEEN n.at - n.within AND n.at + n.within)"
)
"""A minute wider than need be: the step reads its own clock later. Whoever clashes is decided on records."""
OWN: Final = ("seq", "id", "payload")
"""Columns that are each task's own."""
INSERTED: Final = (
    "id",
    "lane",
    "priority",
    "payload",
    "key",
    "headers",
    "tags",
    "timeout",
    "max_retry",
    "unique_key",
    "unique_rule",
    "cron",
    "slot",
)
ATTEMPTS: Final = (
    "INSERT INTO @.attempts (task, epoch, attempt, worker, started_at, finished_at, outcome, error)"
    " SELECT * FROM unnest(%s::int8[], %s::int8[], %s::int8[], %s::text[], %s::float8[], %s::float8[],"
    " %s::text[], %s::text[]) ON CONFLICT DO NOTHING"
)
TRIM: Final = (
    "DELETE FROM @.attempts a USING unnest(%s::int8[], %s::int8[]) AS g (task, epoch)"
    " WHERE a.task = g.task AND a.epoch <= g.epoch"
)
QUEUES: Final = (
    "SELECT id, name, keyed, on_retry, max_waiting, overflow, max_running, rate_count, rate_s, paused,"
    " concurrency FROM @.queues ORDER BY name"
)


class Again(Exception):  # noqa: N818 - a signal of this package's own, never seen outside
    """Another transaction stepped in between: do the step once more."""


@attrs.frozen
class Queue:
    """A declared queue as stored."""

    id: int
    name: str
    keyed: bool
    on_retry: str
    max_waiting: int | None
    overflow: str
    max_running: int | None
    rate_count: int | None
    rate_s: float | None
    paused: bool
    concurrency: int | None


def due_at(new: NewTask, now: float) -> float:
    """When a task published now is due."""
    if new.available_at is not None:
        return new.available_at
    return round(now + new.delay, 6) if new.delay else now


class Given:
    """Tasks as the parameters of a statement: what differs as arrays, what is alike as one value.

    So a thousand tasks cost the server half of what they would with an array for every
    column. `given[name]` is the SQL of a column, in a statement that reads from `given.table`.
    Without `fold` all are arrays: where what is alike changes from batch to batch, each
    time with another statement to be planned.
    """

    def __init__(self, columns: Mapping[str, list[Any]], *, fold: bool = True) -> None:
        self.values: dict[str, Any] = {}
        """By name, for the statement."""
        self.arrays: list[str] = []
        """What differs from task to task: the rest is one value each."""
        for name, values in columns.items():
            if _type(name) == "float8":  # psycopg refuses an int among floats
                values = [None if value is None else float(value) for value in values]
            if not fold or name in OWN or values.count(values[0]) < len(values):
                self.arrays.append(name)
                self.values[name] = values
            else:
                self.values[name] = values[0]

    @property
    def table(self) -> str:
        """Their rows, as a table g with their number in `ord`."""
        arrays = ", ".join(f"%({name})s::{_type(name)}[]" for name in self.arrays)
        return f"unnest({arrays}) WITH ORDINALITY AS g ({', '.join(self.arrays)}, ord)"

    def __getitem__(self, name: str) -> str:
        value = f"g.{name}" if name in self.arrays else f"%({name})s::{_type(name)}"
        return f"{value}::jsonb" if TYPES.get(name) == "jsonb" else value


def _type(name: str) -> str:
    """In which a value of this column is sent."""
    return TYPES.get(name, "float8").replace("jsonb", "text")


def column(
    name: str, tasks: Sequence[NewTask] | Sequence[TaskRecord], lanes: Iterable[int]
) -> list[Any]:
    """One column of these tasks, whose lanes have these numbers."""
    match name:
        case "lane":
            return list(lanes)
        case "priority":
            return [int(new.priority) for new in tasks]
        case "headers":
            return [as_json(new.headers) for new in tasks]
        case "tags":
            return [as_json(new.tags) for new in tasks]
        case "unique_key":
            return [None if new.unique is None else new.unique.key for new in tasks]
        case "unique_rule":
            return [unique_to_text(new.unique) for new in tasks]
        case _:
            return list(map(attrgetter(name), tasks))


@attrs.define
class Outcome:
    """What a transaction leads to once it is committed: bells to ring, lanes to remember."""

    rings: set[Topic] = attrs.field(factory=set[Topic])
    ended: list[str] = attrs.field(factory=list[str])
    """Tasks that a plain success has ended, besides: as a topic each they would cost more."""
    lanes: list[Lane] = attrs.field(factory=list[Lane])
    leases: list[tuple[str, float]] = attrs.field(factory=list[tuple[str, float]])
    """Workers that took a lease, and until when."""

    def add(self, step: Step) -> None:
        """Note what a step led to."""
        self.rings |= step.rings
        self.lanes += step.made


@asynccontextmanager
async def transaction(connection: TrioConnection[Any]) -> AsyncGenerator[None]:
    """A transaction for the block, which may be one that is open already."""
    if connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE:
        async with connection.transaction():
            yield
    else:
        yield


class Step:
    """A step in an open transaction. `begin`, decide by the methods without await, `write`."""

    def __init__(self, connection: TrioConnection[Any], sql: Sql, lanes: Lanes) -> None:
        self._connection = connection
        self._sql = sql
        self._lanes = lanes
        self.now: float = 0.0
        self.rings: set[Topic] = set()
        """To be rung once it is committed."""
        self.made: list[Lane] = []
        """To be remembered once it is committed."""
        self.queues: dict[str, Queue] = {}
        self._numbers: list[int] = []
        self._rows: dict[str, Stored] = {}
        self._by_unique: dict[str, list[Stored]] = {}
        self._changed: dict[int, Stored] = {}
        self._fresh: list[Stored] = []
        self._attempts: list[tuple[int, AttemptRecord]] = []
        self.waiting: dict[str, int] = {}
        self._lines: set[tuple[int, str]] = set()
        self._locked: set[int] = set()

    # ---- reading ---------------------------------------------------------

    async def begin(
        self,
        *,
        ids: Collection[str] = (),
        news: Sequence[NewTask] = (),
        bounded: bool = False,
        seqs: Collection[int] = (),
    ) -> None:
        """Lock and read what deciding on these tasks takes; see the top. Raises Again."""
        connection, sql = self._connection, self._sql
        await connection.execute(sql("LOCK TABLE @.tasks IN ROW EXCLUSIVE MODE"))
        cursor = await connection.execute(sql(QUEUES))
        self.queues = {row[1]: Queue(*row) for row in await cursor.fetchall()}
        keys = sorted({new.unique.key for new in news if new.unique is not None})
        windows = _windows(news)
        states = _states(new.unique for new in news)
        wanted = sorted({*ids, *(new.id for new in news)})
        lines = [
            (queue.id, new.key)
            for new in news
            if new.key is not None
            and (queue := self.queues.get(new.queue)) is not None
            and queue.keyed
        ]
        which, values = _which(wanted, keys, states, seqs, windows)
        await self._lock(map(_unique_stripe, keys))
        if any(queue.keyed for queue in self.queues.values()):
            cursor = await connection.execute(
                sql(f"SELECT t.queue, t.key FROM @.tasks t WHERE t.key IS NOT NULL AND ({which})"),
                values,
            )
            lines += self._keyed(await cursor.fetchall())
        await self._lock(map(_line_stripe, lines))
        cursor = await connection.execute(
            sql(
                "SELECT @.now_s(), ARRAY(SELECT nextval('@.tasks_seq_seq')"
                " FROM generate_series(1, %s))"
            ),
            (len(news),),
        )
        row = await cursor.fetchone()
        assert row is not None
        self.now, self._numbers = row[0], list(reversed(row[1]))
        for stored in await self._load(which, values):
            self._note(stored)
        await self._lock_late(row.line for row in self._rows.values() if row.line is not None)
        if bounded:
            await self._count_waiting(news)

    def _keyed(self, found: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
        keyed = {queue.id for queue in self.queues.values() if queue.keyed}
        return [(queue, key) for queue, key in found if queue in keyed]

    async def _lock(self, stripes: Iterable[int]) -> None:
        missing = sorted(set(stripes) - self._locked)
        if missing:
            await self._connection.execute(self._sql(LOCK_STRIPES), (missing,))
            self._locked.update(missing)

    async def _lock_late(self, lines: Iterable[tuple[int, str]]) -> None:
        """Lock lines of rows that came between the two looks: out of order, so without waiting."""
        missing = {line for line in lines if _line_stripe(line) not in self._locked}
        if await taken(self._connection, self._sql, missing):
            raise Again
        self._locked.update(map(_line_stripe, missing))

    async def _load(self, which: str, values: Sequence[Any]) -> list[Stored]:
        if which == "FALSE":
            return []
        cursor = await self._connection.execute(self._sql(LOAD.format(which)), values, binary=True)
        rows = await cursor.fetchall()
        await self._lanes.meet(self._connection, {row[LANE_AT] for row in rows})
        found = [stored_of(row, self._lanes) for row in rows]
        for stored in found:
            # Of an ended task the column may be out of date: `declare` leaves those alone.
            queue = self.queues[stored.record.queue]
            stored.lined = queue.keyed and stored.record.key is not None
        return found

    def _note(self, stored: Stored) -> None:
        self._rows[stored.record.id] = stored
        if stored.record.unique is not None:
            self._by_unique.setdefault(stored.record.unique.key, []).append(stored)

    async def _count_waiting(self, news: Sequence[NewTask]) -> None:
        for name in sorted({new.queue for new in news}):
            queue = self.queues.get(name)
            if queue is not None and queue.max_waiting is not None:
                # So many may leave in this step and must not have been left uncounted.
                bound = queue.max_waiting + len(self._rows)
                values = {"now": self.now, "queue": queue.id, "bound": bound}
                cursor = await self._connection.execute(self._sql(WAITING), values)
                row = await cursor.fetchone()
                assert row is not None
                self.waiting[name] = row[0]

    # ---- deciding --------------------------------------------------------

    def rows(self) -> list[Stored]:
        """What was read, by order of storing."""
        return sorted(self._rows.values(), key=lambda stored: stored.record.seq)

    def record(self, task_id: str) -> TaskRecord | None:
        """One task as it is now, in this step."""
        stored = self._rows.get(task_id)
        return None if stored is None else stored.record

    @contextmanager
    def _changing(self, stored: Stored) -> Generator[TaskRecord]:
        """A block in which the task changes: what follows from that is noted at its end."""
        record = stored.record
        was_due, had_ended = self._is_due(record), record.status.is_terminal
        yield record
        if stored.before is not None:
            self._changed[record.seq] = stored
        self._follow(stored, was_due=was_due, had_ended=had_ended)

    def _follow(self, stored: Stored, *, was_due: bool = False, had_ended: bool = False) -> None:
        """Place a task that changed, or is new, and note what that means for others."""
        record = stored.record
        queue = self.queues[record.queue]
        stored.place(queue.on_retry, self.now)
        if stored.line is not None:
            self._lines.add(stored.line)
        change = self._is_due(record) - was_due
        if change:
            if record.queue in self.waiting:
                self.waiting[record.queue] += change
            if change < 0 and queue.max_waiting is not None:
                self.rings.add(Topic(TopicKind.ROOM, record.queue))
        if record.status.is_terminal and not had_ended:
            self.rings.add(Topic(TopicKind.TASK, record.id))
            self.rings.add(Topic(TopicKind.DONE, record.queue))
        limited = queue.max_running is not None or queue.rate_count is not None
        if record.status is TaskStatus.PENDING or stored.line is not None or limited:
            self.rings.add(Topic(TopicKind.QUEUE, record.queue))

    def _is_due(self, record: TaskRecord) -> bool:
        return record.status is TaskStatus.PENDING and record.available_at <= self.now

    def store(self, new: NewTask, *, bounded: bool = False) -> EnqueueResult:
        """Store one of the `news`, or not, as `TaskStore.enqueue` says."""
        number = self._numbers.pop()
        stored = self._rows.get(new.id)
        if stored is not None:
            return _known(EnqueueAnswer.EXISTING, new, stored)
        queue = self.queues.get(new.queue)
        if queue is None:
            return EnqueueResult(EnqueueAnswer.UNKNOWN_QUEUE, new.id)
        available_at = due_at(new, self.now)
        clashes: list[Stored] = []
        if new.unique is not None:
            clashes = self._clashes(new.unique, available_at)
            if clashes and new.unique.on_clash is not OnClash.SUPERSEDE:
                return self._clash(new, new.unique, clashes, available_at)
        if bounded and available_at <= self.now and self._full(queue, clashes):
            return EnqueueResult(EnqueueAnswer.FULL, new.id)
        for clash in clashes:
            self.cancel(clash, f"superseded by task {new.id}")
        record = new_record(new, number, self.now, available_at)
        stored = Stored(record, queue.id, queue.keyed and new.key is not None, State.READY)
        self._follow(stored)
        self._fresh.append(stored)
        self._note(stored)
        return EnqueueResult(EnqueueAnswer.CREATED, new.id, self.now, available_at)

    def _clashes(self, unique: UniqueKey, available_at: float) -> list[Stored]:
        return [
            stored
            for stored in sorted(
                self._by_unique.get(unique.key, ()), key=lambda stored: stored.record.seq
            )
            if stored.record.status in unique.statuses
            and (
                unique.within is None
                or abs(stored.record.available_at - available_at) <= unique.within
            )
        ]

    def _clash(
        self, new: NewTask, unique: UniqueKey, clashes: list[Stored], available_at: float
    ) -> EnqueueResult:
        answer, at = clash_answer(new, [stored.record for stored in clashes])
        if answer is EnqueueAnswer.REPLACED:
            self._rewrite(clashes[at], replacement(new, unique.replace, available_at))
        return _known(answer, new, clashes[at])

    def _rewrite(self, stored: Stored, fields: dict[str, object]) -> None:
        with self._changing(stored) as record:
            for name, value in fields.items():
                setattr(record, name, value)

    def _full(self, queue: Queue, superseded: Iterable[Stored]) -> bool:
        if queue.max_waiting is None:
            return False
        leaving = sum(
            self._is_due(stored.record) and stored.record.queue == queue.name
            for stored in superseded
        )
        return self.waiting[queue.name] - leaving >= queue.max_waiting

    def cancel(self, stored: Stored, reason: str) -> bool:
        """Cancel a waiting or held task, ask a running one to stop; whether anything changed."""
        with self._changing(stored) as record:
            if not lifecycle.cancel(record, self.now, reason):
                return False
        if record.status is TaskStatus.RUNNING:
            self.rings.add(Topic(TopicKind.CONTROL, record.queue))
        return True

    def alter(self, stored: Stored, change: Change) -> bool:
        """Make one change by hand; whether anything changed."""
        record = stored.record
        if not would_change(change, attrs.evolve(record), self.now):
            return False
        if change.action == "patch":
            fields = patched(record, change)
            if fields:
                self._rewrite(stored, fields)
            return bool(fields)
        if change.action == "cancel":
            return self.cancel(stored, change.reason)
        if change.action == "rerun" and record.status is TaskStatus.SUCCEEDED:
            self._keep_success(stored)
        with self._changing(stored):
            if change.action == "hold":
                done = lifecycle.hold(record)
            elif change.action == "resume":
                done = lifecycle.resume(record)
            else:
                done = lifecycle.rerun(record, self.now)
        if done and change.action == "hold":
            self.rings.add(Topic(TopicKind.DONE, record.queue))
        return done

    def _keep_success(self, stored: Stored) -> None:
        """A success stands in its row alone, which is about to be written over."""
        [run] = runs_of(stored.record)
        self._attempts.append((stored.record.seq, run))

    def settle(self, transition: Transition) -> SettleResult:
        """End one run, and store what it spawned, if its fence holds."""
        stored = self._rows.get(transition.id)
        record = None if stored is None else stored.record
        answer = lifecycle.fence(record, transition.epoch)
        if stored is None or record is None or answer is not SettleAnswer.APPLIED:
            self._numbers = self._numbers[: len(self._numbers) - len(transition.spawn)]
            return SettleResult.refused(transition, answer, record)
        with self._changing(stored):
            self._ended(stored, lifecycle.settle(record, transition, self.now))
        result = SettleResult.applied(record)
        result.spawned = [self.store(new) for new in transition.spawn]
        return result

    def rescue(self, stored: Stored) -> TaskRecord:
        """End a run whose lease ran out."""
        with self._changing(stored) as record:
            self._ended(stored, lifecycle.rescue(record, self.now))
        return record

    def _ended(self, stored: Stored, run: AttemptRecord) -> None:
        if stored.record.status is not TaskStatus.SUCCEEDED or run.error is not None:
            self._attempts.append((stored.record.seq, run))

    # ---- writing ---------------------------------------------------------

    async def write(self) -> None:
        """Write what changed. Raises Again if a task's id was stored by another meanwhile."""
        lanes = await self._lanes_of([*self._changed.values(), *self._fresh])
        await self._update(lanes)
        await self._insert(lanes)
        if self._attempts:
            rows = [
                (
                    seq,
                    run.epoch,
                    run.attempt,
                    run.worker,
                    run.started_at,
                    run.finished_at,
                    run.outcome.value,
                    run.error,
                )
                for seq, run in self._attempts
            ]
            await self._connection.execute(self._sql(ATTEMPTS), _columns(rows))
            old = [(seq, run.epoch - HISTORY_LIMIT) for seq, run in self._attempts]
            if any(epoch > 0 for _, epoch in old):
                await self._connection.execute(self._sql(TRIM), _columns(old))
        await promote(self._connection, self._sql, self._lines, self.now)

    async def _lanes_of(self, rows: Sequence[Stored]) -> dict[tuple[str, str, int, bool], int]:
        wanted = {stored.address(): stored.queue_id for stored in rows}
        known = {address: self._lanes.known(address) for address in wanted}
        # One may be of a queue of that name which was removed before this one was declared.
        known = {each: lane if lane and lane.queue_id == wanted[each] else None for each, lane in known.items()}
        missing = [address for address, lane in known.items() if lane is None]
        made = await self._lanes.make(self._connection, missing) if missing else {}
        self.made += made.values()
        return {address: (lane or made[address]).id for address, lane in known.items()}

    async def _update(self, lanes: dict[tuple[str, str, int, bool], int]) -> None:
        changed = sorted(self._changed.values(), key=lambda stored: stored.record.seq)
        rows = [stored.written(lanes[stored.address()]) for stored in changed]
        names = [
            name
            for at, name in enumerate(WRITTEN)
            if any(
                stored.before is None or stored.before[at] != row[at]
                for stored, row in zip(changed, rows, strict=True)
            )
        ]
        if not names:
            return
        columns = _columns(rows)
        given = Given(
            {
                "seq": [stored.record.seq for stored in changed],
                **{name: columns[WRITTEN.index(name)] for name in names},
            },
            fold=False,
        )
        sets = ", ".join(f"{name} = {given[name]}" for name in names)
        await self._connection.execute(
            self._sql(f"UPDATE @.tasks t SET {sets} FROM {given.table} WHERE t.seq = g.seq"),
            given.values,
        )

    async def _insert(self, lanes: dict[tuple[str, str, int, bool], int]) -> None:
        if not self._fresh:
            return
        records = [stored.record for stored in self._fresh]
        numbers = [lanes[stored.address()] for stored in self._fresh]
        # One may have been superseded already, by a later one of the same step.
        names = ("seq", "created_at", "available_at", "finished_at", "cancel_reason", *INSERTED)
        given = Given(
            {
                "queue": [stored.queue_id for stored in self._fresh],
                "state": [int(stored.state) for stored in self._fresh],
                "lined": [stored.lined for stored in self._fresh],
                **{name: column(name, records, numbers) for name in names},
            }
        )
        columns = ", ".join(given.values)
        selected = ", ".join(map(given.__getitem__, given.values))
        cursor = await self._connection.execute(
            self._sql(
                f"INSERT INTO @.tasks ({columns}) SELECT {selected} FROM {given.table}"
                " ORDER BY ord ON CONFLICT (id) DO NOTHING RETURNING 1"
            ),
            given.values,
        )
        # Not `rowcount`: in a user's pipeline that is not known yet.
        if len(await cursor.fetchall()) != len(records):
            raise Again


async def taken(
    connection: TrioConnection[Any], sql: Sql, lines: Collection[tuple[int, str]]
) -> set[tuple[int, str]]:
    """Those of these lines that others have locked; all the rest is locked now, without waiting."""
    if not lines:
        return set()
    stripes = sorted(set(map(_line_stripe, lines)))
    cursor = await connection.execute(sql(TAKEN), (stripes,))
    others = {row[0] for row in await cursor.fetchall()}
    return {line for line in lines if _line_stripe(line) in others}


async def promote(
    connection: TrioConnection[Any], sql: Sql, lines: Collection[tuple[int, str]], now: float
) -> None:
    """Let each line's first task be READY if none of it runs, and no other one be."""
    if not lines:
        return
    given = sorted(lines)
    values = {
        "queues": [queue for queue, _ in given],
        "keys": [key for _, key in given],
        "now": now,
    }
    await connection.execute(sql(LOCK_HEADS), values)
    await connection.execute(sql(PROMOTE), values)


@attrs.frozen
class _Window:
    """The moments around which tasks of a unique key may clash with one that is to be stored."""

    key: str
    at: float | None
    """None for now and `delay`."""
    delay: float
    within: float


def _windows(news: Sequence[NewTask]) -> list[_Window]:
    """Those of the unique keys of which nothing further away can clash."""
    uniques = [(new, new.unique) for new in news if new.unique is not None]
    boundless = {unique.key for _, unique in uniques if unique.within is None}
    return [
        _Window(unique.key, new.available_at, float(new.delay), float(unique.within))
        for new, unique in uniques
        if unique.within is not None and unique.key not in boundless
    ]


def _which(
    ids: Sequence[str],
    keys: Sequence[str],
    states: Sequence[int],
    seqs: Collection[int],
    windows: Sequence[_Window],
) -> tuple[str, list[Any]]:
    """The condition that finds these tasks, each part by an index of its own."""
    arms: list[str] = []
    values: list[Any] = []
    if ids:
        arms.append("t.id = ANY (%s)")
        values.append(list(ids))
    if seqs:
        arms.append("t.seq = ANY (%s)")
        values.append(sorted(seqs))
    narrow = {window.key for window in windows}
    wide = [key for key in keys if key not in narrow]
    if wide:
        arms.append("t.unique_key = ANY (%s) AND t.state = ANY (%s)")
        values += [wide, list(states)]
    if windows:
        arms.append(IN_WINDOWS)
        values += [
            [window.key for window in windows],
            [window.at for window in windows],
            [window.delay for window in windows],
            [window.within for window in windows],
            list(states),
        ]
    if not arms:
        return "FALSE", values
    if len(arms) == 1:
        return arms[0], values
    found = " UNION ".join(f"SELECT t.seq FROM @.tasks t WHERE {arm}" for arm in arms)
    return f"t.seq IN ({found})", values


def _states(uniques: Iterable[UniqueKey | None]) -> list[int]:
    """The states in which a stored task could clash with one of these."""
    statuses = frozenset[TaskStatus]().union(
        *(each.statuses for each in uniques if each is not None)
    )
    return sorted(state for state, status in STATUS.items() if status in statuses)


def _unique_stripe(key: str) -> int:
    return crc32(key.encode()) % UNIQUE_STRIPES


def _line_stripe(line: tuple[int, str]) -> int:
    queue, key = line
    return UNIQUE_STRIPES + crc32(f"{queue} {key}".encode()) % LINE_STRIPES


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    """Rows as columns."""
    return [list(values) for values in zip(*rows, strict=True)]


def _known(answer: EnqueueAnswer, new: NewTask, stored: Stored) -> EnqueueResult:
    record = attrs.evolve(stored.record)
    return EnqueueResult(answer, new.id, record.created_at, record.available_at, record)
