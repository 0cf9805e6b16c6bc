"""A row of `tasks` in PostgreSQL and the `TaskRecord` it stands for.

A row carries the number of its lane; which queue, type and version that means
never changes, and `Lanes` remembers it. The columns of `WRITTEN` are what may
change after a task was stored: `Stored` notes what they were, so that only those
that did change are written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final

import attrs

from dispatch.lifecycle import current_run
from dispatch.records import AttemptOutcome, AttemptRecord, NewTask, TaskRecord
from dispatch.storage.changes import NO_HEADERS
from dispatch.storage.postgres_schema import State
from dispatch.storage.psycopg_trio import TrioConnection
from dispatch.storage.texts import unique_from_text, unreadable
from dispatch.tasks import FailureReason, TaskStatus

__all__ = [
    "COLUMNS",
    "LANE_AT",
    "PENDING",
    "STATUS",
    "TYPES",
    "WRITTEN",
    "Address",
    "Lane",
    "Lanes",
    "Sql",
    "Statement",
    "Stored",
    "address_of",
    "as_json",
    "attempt_of",
    "new_record",
    "numbered",
    "runs_of",
    "stored_of",
]

PENDING: Final = (State.READY, State.BEHIND, State.ASIDE)
STATUS: Final = {
    **dict.fromkeys(map(int, PENDING), TaskStatus.PENDING),
    int(State.RUNNING): TaskStatus.RUNNING,
    int(State.HELD): TaskStatus.HELD,
    int(State.SUCCEEDED): TaskStatus.SUCCEEDED,
    int(State.FAILED): TaskStatus.FAILED,
    int(State.CANCELLED): TaskStatus.CANCELLED,
}
STATES: Final = {status: State(state) for state, status in STATUS.items() if state not in PENDING}

TYPES: Final = {
    "seq": "int8",
    "created_at": "float8",
    "available_at": "float8",
    "started_at": "float8",
    "finished_at": "float8",
    "lease_until": "float8",
    "timeout": "float8",
    "slot": "float8",
    "max_retry": "int8",
    "retry_limit": "int8",
    "epoch": "int8",
    "attempt": "int8",
    "queue": "int4",
    "lane": "int4",
    "priority": "int2",
    "state": "int2",
    "lined": "bool",
    "id": "text",
    "key": "text",
    "worker": "text",
    "retry": "text",
    "on_interrupt": "text",
    "cancel_reason": "text",
    "last_error": "text",
    "failure_reason": "text",
    "unique_key": "text",
    "unique_rule": "text",
    "cron": "text",
    "headers": "jsonb",
    "tags": "jsonb",
    "payload": "bytea",
    "result": "bytea",
    "progress": "bytea",
}
"""The columns of `tasks`, in their order, and their types."""
COLUMNS: Final = ", ".join(f"t.{name}" for name in TYPES)
"""What `stored_of` reads, of a table named t."""
IN_STATE: Final = "t.state + 0 = {}"
"""A task's state, of a row that is looked up by `id` or `seq`.

Compared plainly, the server might look it up in the index of all tasks in that state: few when it
last counted, and as quick then as an index of ids; with many it reads them all for each row.
"""
FEW: Final = "g.epoch BETWEEN 0 AND 9223372036854775807"
"""Always true. It has the server expect next to nothing of the arrays given, and so go from them to the table."""
LANE_AT: Final = list(TYPES).index("lane")
WRITTEN: Final = (
    "available_at",
    "started_at",
    "finished_at",
    "lease_until",
    "timeout",
    "max_retry",
    "retry_limit",
    "epoch",
    "attempt",
    "lane",
    "priority",
    "state",
    "lined",
    "worker",
    "retry",
    "on_interrupt",
    "cancel_reason",
    "last_error",
    "failure_reason",
    "headers",
    "tags",
    "payload",
    "result",
    "progress",
    "unique_key",
)


class Sql:
    """Statements of one schema: `@.` stands for it, and each is made once."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self._made: dict[str, bytes] = {}

    def __call__(self, text: str) -> bytes:
        made = self._made.get(text)
        if made is None:
            if len(self._made) > 500:  # pages of many different queries
                self._made.clear()
            made = self._made[text] = text.replace("@.", f"{self.schema}.").encode()
        return made


@attrs.frozen
class Statement:
    """A statement as the server takes it, and the names of its parameters in their order."""

    text: bytes
    names: tuple[str, ...]

    def values(self, given: Mapping[str, Any]) -> list[Any]:
        """Its parameters, of those given by name."""
        return [given[name] for name in self.names]


def numbered(text: bytes) -> Statement:
    """A statement with `$1` and so on in place of its `%(name)s`, for `execute_raw`."""
    names: list[str] = []

    def number(found: re.Match[bytes]) -> bytes:
        name = found[1].decode()
        if name not in names:
            names.append(name)
        return b"$%d" % (names.index(name) + 1)

    return Statement(re.sub(rb"%\((\w+)\)s", number, text), tuple(names))


@attrs.frozen
class Lane:
    """What a lane's number stands for."""

    id: int
    queue_id: int
    queue: str
    type: str
    version: int
    tagged: bool


Address = tuple[str, str, int, bool]
"""Queue, type, version, whether tagged."""


def address_of(task: NewTask | TaskRecord) -> Address:
    """Of the lane it belongs to."""
    return task.queue, task.type, task.version, bool(task.tags)


class Lanes:
    """The lanes known to this process. They never change, so knowing one is for ever.

    But a queue may be removed, and its lanes with it: declared again, it has another number,
    and its tasks others of the lanes. No number is given twice, so an old one never misleads:
    no task is stored in it, since whoever does joins it with its queue, or compares the two.
    """

    def __init__(self, sql: Sql) -> None:
        self._sql = sql
        self._by_address: dict[Address, Lane] = {}
        self._by_id: dict[int, Lane] = {}

    def copy(self) -> Lanes:
        """What is known so far, to which may be added what is not committed yet."""
        other = Lanes(self._sql)
        other._by_address = self._by_address.copy()
        other._by_id = self._by_id.copy()
        return other

    @property
    def addresses(self) -> AbstractSet[Address]:
        """Of those that are known."""
        return self._by_address.keys()

    def known(self, address: Address) -> Lane | None:
        """The lane, if this process has met it."""
        return self._by_address.get(address)

    def of(self, number: int) -> Lane:
        """What a number stands for; `meet` has been awaited for it."""
        return self._by_id[number]

    def met(self, number: int) -> bool:
        """Whether it is known; after `meet` only that of a queue which was removed since is not."""
        return number in self._by_id

    def forget(self, addresses: Iterable[Address]) -> None:
        """Have these looked up again when they are needed next."""
        for address in addresses:
            self._by_address.pop(address, None)

    def note(self, lanes: Iterable[Lane]) -> None:
        """Remember lanes that are committed."""
        for lane in lanes:
            self._by_id[lane.id] = lane
            self._by_address[lane.queue, lane.type, lane.version, lane.tagged] = lane

    async def meet(self, connection: TrioConnection[Any], numbers: Iterable[int]) -> None:
        """Learn the lanes that these rows are in. Rows are only seen committed, and so are lanes."""
        if all(number in self._by_id for number in numbers):
            return
        cursor = await connection.execute(
            self._sql(f"{LANES} WHERE NOT l.id = ANY (%s)"), (list(self._by_id),)
        )
        self.note([Lane(*row) for row in await cursor.fetchall()])

    async def make(
        self, connection: TrioConnection[Any], addresses: Iterable[Address]
    ) -> dict[Address, Lane]:
        """The lanes of these addresses, made where missing; none for an undeclared queue.

        Not remembered: the transaction that made them may yet be rolled back.
        """
        wanted = sorted(set(addresses))
        columns = [list(column) for column in zip(*wanted, strict=True)]
        found = await self._find(connection, columns)
        if len(found) < len(wanted):  # only then: each attempt uses up a number, also in vain
            await connection.execute(self._sql(MAKE_LANES), columns)
            found = await self._find(connection, columns)
        return {(lane.queue, lane.type, lane.version, lane.tagged): lane for lane in found}

    async def _find(
        self, connection: TrioConnection[Any], columns: Sequence[Sequence[Any]]
    ) -> list[Lane]:
        cursor = await connection.execute(self._sql(FIND_LANES), columns)
        return [Lane(*row) for row in await cursor.fetchall()]


LANES: Final = (
    "SELECT l.id, q.id, q.name, l.type, l.version, l.tagged"
    " FROM @.lanes l JOIN @.queues q ON q.id = l.queue"
)
GIVEN_LANES: Final = (
    "unnest(%s::text[], %s::text[], %s::int8[], %s::bool[]) AS g (queue, type, version, tagged)"
)
MAKE_LANES: Final = (
    "INSERT INTO @.lanes (queue, type, version, tagged)"
    f" SELECT q.id, g.type, g.version, g.tagged FROM {GIVEN_LANES} JOIN @.queues q ON q.name = g.queue"
    " ORDER BY 1, 2, 3, 4 ON CONFLICT DO NOTHING"
)
FIND_LANES: Final = (
    f"{LANES} JOIN {GIVEN_LANES} ON q.name = g.queue AND l.type = g.type"
    " AND l.version = g.version AND l.tagged = g.tagged"
)


def as_json(value: Mapping[str, str] | tuple[str, ...]) -> str | None:
    """Headers or tags as stored: None where there are none, which is nearly always."""
    if not value:
        return None
    return json.dumps(value if isinstance(value, tuple) else dict(value), ensure_ascii=False)


@attrs.define(eq=False)
class Stored:
    """A task in a step: its record, what is not in that, and the row as it was read."""

    record: TaskRecord
    queue_id: int
    lined: bool
    state: int
    """Its state if it is pending, else derived from the record's status."""
    before: tuple[Any, ...] | None = None
    """`WRITTEN` as stored; None for a task that is not stored yet."""

    @property
    def line(self) -> tuple[int, str] | None:
        """The queue and key it waits in line for, if it does."""
        key = self.record.key
        return (self.queue_id, key) if self.lined and key is not None else None

    def address(self) -> Address:
        """Of the lane it belongs to."""
        return address_of(self.record)

    def place(self, on_retry: str, now: float) -> None:
        """Find the state of a task that changed. Of its key's tasks the first is READY later on."""
        record = self.record
        if record.status is not TaskStatus.PENDING:
            self.state = STATES[record.status]
        elif not self.lined:
            self.state = State.READY
        elif on_retry == "yield" and record.epoch > 0 and record.available_at > now:
            self.state = State.ASIDE
        else:
            self.state = State.BEHIND

    def written(self, lane: int) -> tuple[Any, ...]:
        """`WRITTEN`, from the record as it is."""
        record = self.record
        reason = record.failure_reason
        return (
            record.available_at,
            record.started_at,
            record.finished_at,
            record.lease_until,
            record.timeout,
            record.max_retry,
            record.limit,
            record.epoch,
            record.attempt,
            lane,
            int(record.priority),
            int(self.state),
            self.lined,
            record.worker,
            record.retry,
            record.on_interrupt,
            record.cancel_reason,
            record.last_error,
            None if reason is None else reason.value,
            as_json(record.headers),
            as_json(record.tags),
            record.payload,
            record.result,
            record.progress,
            None if record.unique is None else record.unique.key,
        )


def stored_of(row: tuple[Any, ...], lanes: Lanes) -> Stored:
    """The task that a row of `COLUMNS` stands for; its lane is known.

    Raises StorageError for one that cannot be read.
    """
    try:
        return _stored_of(row, lanes)
    except Exception as exc:
        raise unreadable(row[17], exc) from exc


def _stored_of(row: tuple[Any, ...], lanes: Lanes) -> Stored:
    (seq, created_at, available_at, started_at, finished_at, lease_until, timeout, slot) = row[:8]
    (max_retry, limit, epoch, attempt, queue_id, lane_id, priority, state, lined) = row[8:17]
    (id_, key, worker, retry, on_interrupt, cancel_reason, last_error, failure_reason) = row[17:25]
    (unique_key, unique_rule, cron, headers, tags, payload, result, progress) = row[25:]
    lane = lanes.of(lane_id)
    record = TaskRecord(
        id=id_,
        queue=lane.queue,
        type=lane.type,
        payload=payload,
        version=lane.version,
        key=key,
        headers=NO_HEADERS if headers is None else headers,
        timeout=timeout,
        max_retry=max_retry,
        priority=priority,
        tags=() if tags is None else tuple(tags),
        unique=None if unique_key is None else unique_from_text(unique_rule),  # the rule stays when the key goes
        cron=cron,
        slot=slot,
        seq=seq,
        status=STATUS[state],
        attempt=attempt,
        epoch=epoch,
        created_at=created_at,
        available_at=available_at,
        started_at=started_at,
        finished_at=finished_at,
        worker=worker,
        lease_until=lease_until,
        limit=limit,
        retry=retry,
        on_interrupt=on_interrupt,
        cancel_reason=cancel_reason,
        last_error=last_error,
        failure_reason=None if failure_reason is None else FailureReason(failure_reason),
        result=result,
        progress=progress,
    )
    stored = Stored(record, queue_id, lined, state)
    stored.before = stored.written(lane_id)
    return stored


def new_record(new: NewTask, seq: int, now: float, available_at: float) -> TaskRecord:
    """The record of a task about to be stored."""
    return TaskRecord(
        id=new.id,
        queue=new.queue,
        type=new.type,
        payload=new.payload,
        version=new.version,
        key=new.key,
        headers=dict(new.headers) if new.headers else NO_HEADERS,
        timeout=new.timeout,
        max_retry=new.max_retry,
        priority=int(new.priority),
        tags=new.tags,
        unique=new.unique,
        cron=new.cron,
        slot=new.slot,
        seq=seq,
        created_at=now,
        available_at=available_at,
    )


def attempt_of(task_id: str, row: tuple[Any, ...]) -> AttemptRecord:
    """A row of `attempts`, without its task, as a record."""
    epoch, attempt, worker, started_at, finished_at, outcome, error = row
    return AttemptRecord(
        task_id, epoch, attempt, worker, started_at, finished_at, AttemptOutcome(outcome), error
    )


def runs_of(record: TaskRecord) -> list[AttemptRecord]:
    """The run that the task's own row tells of: the one that goes on, or a success."""
    running = current_run(record)
    if running is not None:
        return [running]
    if record.status is not TaskStatus.SUCCEEDED:
        return []
    return [
        AttemptRecord(
            record.id,
            record.epoch,
            record.attempt,
            record.worker,
            record.created_at if record.started_at is None else record.started_at,
            record.finished_at,
            AttemptOutcome.SUCCEEDED,
        )
    ]
