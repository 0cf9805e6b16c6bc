"""The persistence hook: what a storage promises, method by method.

Three small contracts, by who uses them: `TaskStore` (a task's life),
`ControlStore` (queues and workers as records that any process may change) and
`CronStore` (stored cron entries). `Storage` is all three with a clock, a bell
and a base class that derives what can be derived.

Rules for every method:

- It is one atomic step, and takes a batch. Expected outcomes come back as
  values, one per item in the order given; a bad item never spoils the batch.
- Exceptions are for the storage itself: `StorageError` when the step could not
  be done, or when it is in doubt whether it was. Callers then repeat it; each
  method says what a repeat does.
- Cancellation is honoured before the step takes effect, never after it was
  applied: a call that raises Cancelled has done nothing, and one that was
  cancelled too late has done all of it, and returns.
- `now()` is the storage's clock. It alone decides leases and due times; a
  caller sends durations, and a datetime only for a user's own moment.
- A storage sees strings and bytes. It never decodes a payload, except to
  answer a `Payload` predicate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Literal

import attrs
import trio

from dispatch.bell import Bell
from dispatch.checks import shown
from dispatch.errors import InvalidConfigError
from dispatch.lifecycle import SettleAnswer
from dispatch.records import AttemptRecord, Claim, NewTask, TaskRecord, Transition
from dispatch.storage.query import Order, PruneSpec, Where
from dispatch.tasks import FailureReason, TaskStatus

__all__ = [
    "KEEP",
    "AdvanceAnswer",
    "Change",
    "Claimed",
    "ControlStore",
    "CronRecord",
    "CronStore",
    "EnqueueAnswer",
    "EnqueueResult",
    "Keep",
    "Page",
    "PutAnswer",
    "QueueRecord",
    "RemoveAnswer",
    "RenewAnswer",
    "Rescued",
    "SettleResult",
    "Storage",
    "TaskStore",
    "Topic",
    "TopicKind",
    "Want",
    "WorkerRecord",
    "stored_for",
]


class EnqueueAnswer(StrEnum):
    """What became of one task of an `enqueue`."""

    CREATED = "created"
    EXISTING = "existing"
    """Its id is stored already, or a KEEP clash found a match: nothing was changed."""
    REPLACED = "replaced"
    """A REPLACE clash wrote the named fields into the match."""
    REJECTED = "rejected"
    """A REJECT clash found a match; nothing was stored."""
    FULL = "full"
    """The queue's bound is reached; nothing was stored."""
    UNKNOWN_QUEUE = "unknown_queue"
    """The queue is not declared here; nothing was stored."""
    CLAIM_LOST = "claim_lost"
    """The claim named by `by` no longer holds; nothing was stored."""


@attrs.define
class EnqueueResult:
    """`id` is the item's own; `record` the task in question for EXISTING, REPLACED and REJECTED.

    For CREATED it is None and the two moments tell what the storage filled in.
    """

    answer: EnqueueAnswer
    id: str
    created_at: float = 0.0
    available_at: float = 0.0
    record: TaskRecord | None = None


def stored_for(result: EnqueueResult, new: NewTask) -> TaskRecord | None:
    """The stored task that answers for `new`, which was not created; None if it was refused.

    Not one of another queue or type that was first to take the same id: who
    published would wait for the result of another's work.
    """
    record = result.record
    if record is None or result.answer is EnqueueAnswer.REPLACED:
        return record
    if result.answer is not EnqueueAnswer.EXISTING:
        return None
    taken = record.id == new.id and (record.queue, record.type) != (new.queue, new.type)
    return None if taken else record


@attrs.frozen(kw_only=True)
class Want:
    """One queue's wish in a `claim`.

    `types` maps each task type to the highest payload version understood; None
    takes every type, an empty mapping none. `ids` restricts it to named tasks.
    `tags`: a task is taken if its tags are all among these; None takes every
    task, an empty set only untagged ones. The rest are the queue's settings,
    which apply where the task left them open; what a rescue needs of them
    (limit, delays, `on_interrupt`) is written to the row.
    """

    queue: str
    limit: int
    types: Mapping[str, int] | None = None
    ids: frozenset[str] | None = None
    tags: frozenset[str] | None = None
    max_retry: int = 0
    retry: str = '["fixed", 1.0, 2.0, 3600.0, 0.0]'
    timeout: float | None = None
    on_interrupt: str = "retry"
    ageing: float | None = 60.0


@attrs.define
class Claimed:
    """The claims made, want by want in claim order, and when the next task falls due.

    `next_due` is the earliest future `available_at` among the tasks wanted but
    not yet due; None if there is none. It may be earlier, never later: a storage
    need not tell the wanted types apart for it.
    """

    claims: list[Claim]
    next_due: float | None = None


@attrs.frozen
class RenewAnswer:
    """One renewed claim: `held` False means it is lost; `cancel_reason` is a request to stop."""

    id: str
    epoch: int
    held: bool
    cancel_reason: str | None = None


@attrs.define
class SettleResult:
    """One settled run: the answer, and where APPLIED, the status it left; where REPEATED, the task's now.

    `spawned` says, where APPLIED, what became of each of the transition's spawned
    tasks, in order: a run has no one to raise to once it has ended.
    """

    id: str
    epoch: int
    answer: SettleAnswer
    status: TaskStatus | None = None
    available_at: float | None = None
    failure_reason: FailureReason | None = None
    spawned: Sequence[EnqueueResult] = ()

    @classmethod
    def refused(cls, transition: Transition, answer: SettleAnswer, record: TaskRecord | None) -> SettleResult:
        """The answer to an end that was not written, of a task that stands as the record says."""
        status = record.status if record is not None and answer is SettleAnswer.REPEATED else None
        return cls(transition.id, transition.epoch, answer, status)

    @classmethod
    def applied(cls, record: TaskRecord) -> SettleResult:
        """The answer to a run's end that was written to this record, before anything is spawned."""
        return cls(
            record.id,
            record.epoch,
            SettleAnswer.APPLIED,
            record.status,
            record.available_at,
            record.failure_reason,
        )


@attrs.define
class Rescued:
    """The tasks a sweep took from dead workers, as they stand now.

    `next_sweep` is the storage time before which another sweep finds nothing
    unless `LEASES` rings; a storage that cannot know answers None, and the
    caller sweeps at its own interval. Infinity: not before it rings.
    """

    records: list[TaskRecord]
    next_sweep: float | None = None


@attrs.define
class Page:
    """One page of a `find`; `cursor` fetches the next one, None ends it."""

    records: list[TaskRecord]
    cursor: str | None = None


class Keep:
    """The type of KEEP: a patch leaves this field as it is."""

    def __repr__(self) -> str:
        return "KEEP"


KEEP = Keep()


@attrs.frozen(kw_only=True)
class Change:
    """One change by hand, for `alter`.

    `patch` writes the fields given to an open task or a dead letter (which is
    edited before it is rerun; a running attempt goes on with what it has), but
    `available_at` only to pending and held ones; another payload takes the
    uniqueness with it that is `by_payload`. The others act as the table
    of `dispatch.lifecycle` says.
    """

    action: Literal["patch", "rerun", "cancel", "hold", "resume"]
    reason: str = "cancelled by hand"
    payload: bytes | None = None
    version: int | None = None
    headers: Mapping[str, str] | None = None
    tags: tuple[str, ...] | None = None
    priority: int | None = None
    timeout: float | Keep | None = KEEP
    max_retry: int | Keep | None = KEEP
    available_at: float | None = None

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.reason, str):  # it becomes a running handler's, and is written by its worker
            raise InvalidConfigError(f"{self.action}: reason must be a str, got {shown(self.reason)}")


class TopicKind(StrEnum):
    """What a bell can be rung for."""

    QUEUE = "queue"
    """Something in this queue may be claimable, or its control changed."""
    ROOM = "room"
    """A bounded queue has room again."""
    TASK = "task"
    """This task became terminal."""
    DONE = "done"
    """A task of this queue ended, was held, or was deleted: a drain may be over."""
    CONTROL = "control"
    """A queue's control changed, or a running task was asked to stop."""
    LEASES = "leases"
    """Another worker than the named one took a lease."""
    CRON = "cron"
    """A stored cron entry was added, changed or removed."""


@attrs.frozen
class Topic:
    """A subscription: the kind, and the queue, task id or worker where one is meant."""

    kind: TopicKind
    name: str = ""


class TaskStore(ABC):
    """A task's life, from enqueue to prune."""

    @abstractmethod
    async def enqueue(
        self, tasks: Sequence[NewTask], *, bounded: bool = False, by: tuple[str, int] | None = None
    ) -> list[EnqueueResult]:
        """Store tasks; later items see earlier ones.

        An id already stored answers EXISTING, which makes a repeat harmless.
        Uniqueness is looked up and applied in the same step. With `bounded`,
        an item that would put its queue over the bound answers FULL. With
        `by`, the fence of a running claim, everything answers CLAIM_LOST
        unless it still holds. A queue nobody declared answers UNKNOWN_QUEUE.
        Rings QUEUE.
        """

    @abstractmethod
    async def claim(self, wants: Sequence[Want], *, worker: str, lease: float | None) -> Claimed:
        """Start up to `limit` due tasks per want: running, attempt + 1, epoch + 1, leased.

        Claim order: effective level (priority, plus one per ageing interval
        waited, at most the highest), then `available_at`, then order of
        storing. A paused queue gives nothing. Tasks that cannot run (not due,
        held, behind their key, of an unwanted type, tag or newer version) cost
        nothing. Never waits. `lease` None never expires. A repeat claims more:
        after a StorageError, what was claimed in doubt comes back by rescue.
        """

    @abstractmethod
    async def renew(
        self, claims: Sequence[tuple[str, int]], *, lease: float | None
    ) -> list[RenewAnswer]:
        """Extend leases to now + `lease`, never shorten; None leaves them. Harmless to repeat.

        Where a row can be locked by somebody else's transaction, it is not waited
        for: it answers as held, its lease stays as it is, and `rescue` passes it.
        """

    @abstractmethod
    async def settle(self, transitions: Sequence[Transition]) -> list[SettleResult]:
        """End runs where their fence holds: outcome, attempt record and spawned tasks in one step.

        Spawned tasks are stored exactly if their run's answer is APPLIED, which
        then says what became of each; they are never bounded. A repeat answers
        REPEATED, and the first outcome stays. What fails may have settled some
        runs of the batch, each of them whole. Rings TASK for what ended, QUEUE
        for what may run again.
        """

    @abstractmethod
    async def rescue(self, limit: int = 1_000) -> Rescued:
        """End runs whose lease lies strictly before now, oldest lease first. Harmless to repeat."""

    @abstractmethod
    async def find(
        self,
        where: Where,
        *,
        order: Order = Order.OLDEST,
        limit: int = 100,
        after: str | None = None,
    ) -> Page:
        """A page of the tasks that match, by order of storing; stable while tasks are added.

        Raises InvalidConfigError where `after` is no page's cursor.
        """

    @abstractmethod
    async def count(
        self,
        where: Where,
        *,
        by: Sequence[Literal["queue", "type", "status"]] = (),
        bound: int | None = None,
    ) -> dict[tuple[str, ...], int]:
        """Counts of the tasks that match, by the values of `by` in that order.

        In `status`, a pending task counts as `pending` if it is due and as
        `later` if not. With `bound`, counting may stop at that many in all.
        Raises InvalidConfigError for a `by` of other names.
        """

    @abstractmethod
    async def alter(
        self, where: Where, change: Change, *, limit: int | None = None, dry_run: bool = False
    ) -> list[str]:
        """Make one change to the tasks that match; answer the ids really changed, oldest first.

        `limit` bounds the changed. A dry run answers the same and changes nothing.
        """

    @abstractmethod
    async def prune(self, spec: PruneSpec, *, dry_run: bool = False) -> int:
        """Delete ended tasks and their history; answers how many. Repeat until 0."""

    @abstractmethod
    async def history(self, task_id: str) -> list[AttemptRecord]:
        """One record per run, oldest first, the running one last; empty if unknown.

        A storage may keep only the newest 1,000 of a task that runs for ever.
        """

    @abstractmethod
    async def progress(self, claim: tuple[str, int], data: bytes) -> bool:
        """Keep a running task's latest progress; False if the claim is lost."""


@attrs.frozen(kw_only=True)
class QueueRecord:
    """A declared queue, and what was changed on it by hand.

    The declaration (`keyed` to `rate`) is the registering code's; `paused` and
    `concurrency` (None: as registered) are whatever was last set through
    `alter_queue`, by any process, and survive a declaration.
    `max_running` and `rate` bound the queue over all processes: running tasks,
    and claims per so many seconds.
    """

    name: str
    keyed: bool = False
    on_retry: str = "hold"
    max_waiting: int | None = None
    overflow: str = "wait"
    max_running: int | None = None
    rate: tuple[int, float] | None = None
    paused: bool = False
    concurrency: int | None = None


@attrs.frozen(kw_only=True)
class WorkerRecord:
    """A live worker: who it is, since when, which queues it consumes, having handlers for them, and what it runs."""

    id: str
    host: str
    pid: int
    started_at: float
    seen_at: float
    queues: tuple[str, ...] = ()
    running: tuple[str, ...] = ()


class RemoveAnswer(StrEnum):
    """What became of a `remove_queue`."""

    REMOVED = "removed"
    STORED = "stored"
    """Tasks of it are stored, open or ended; nothing was changed."""
    UNKNOWN = "unknown"


class ControlStore(ABC):
    """Queues and workers as records any process may read, and queues it may change."""

    @abstractmethod
    async def declare(self, queues: Sequence[QueueRecord], *, new_only: bool = False) -> None:
        """Register queues: creates, or updates the declaration and keeps what was set by hand.

        With `new_only`, a queue that is there already is left as it is, and one that is not
        comes with what its record says was set by hand: in the same step, so that a pause is never late.
        """

    @abstractmethod
    async def queues(self) -> list[QueueRecord]:
        """Every declared queue, by name."""

    @abstractmethod
    async def alter_queue(
        self, name: str, *, paused: bool | None = None, concurrency: int | Keep | None = KEEP
    ) -> bool:
        """Pause, resume or resize a queue for every process; False if unknown. Rings CONTROL."""

    @abstractmethod
    async def remove_queue(self, name: str) -> RemoveAnswer:
        """Take a queue back, with what was set on it by hand, unless a task of it is stored.

        A task in whatever status, for a dead letter without its queue could neither be
        found nor rerun. Whatever is stored at the same moment is stored before, and then
        in the way, or answers UNKNOWN_QUEUE, as all does afterwards, in every process;
        declared again, it is a new queue. A repeat answers UNKNOWN. Rings CONTROL and ROOM.
        """

    @abstractmethod
    async def beat(self, worker: WorkerRecord) -> None:
        """Write a worker's record, `seen_at` set to now."""

    @abstractmethod
    async def workers(self) -> list[WorkerRecord]:
        """The workers seen lately, by id."""

    @abstractmethod
    async def forget(self, worker: str) -> None:
        """Remove a worker's record; harmless if unknown."""


@attrs.frozen(kw_only=True)
class CronRecord:
    """A stored cron entry: its text and policies, the task it publishes, where it stands.

    `definition` is an opaque text of the cron dispatcher (spec and policies),
    `template` the task to publish. `last_slot` is the last tick decided;
    `next_slot` the next, None when none is left.
    """

    name: str
    definition: str
    template: NewTask
    declared: bool = False
    """Declared in code: to be seen by living processes, paused when they are all gone."""
    paused_reason: str | None = None
    last_slot: float | None = None
    next_slot: float | None = None
    total: int = 0
    created_at: float = 0.0
    """0 in one to be put: the moment of that."""
    seen_at: float = 0.0


class PutAnswer(StrEnum):
    """What became of a `put_cron`."""

    CREATED = "created"
    SAME = "same"
    REPLACED = "replaced"
    CONFLICT = "conflict"


class AdvanceAnswer(StrEnum):
    """What became of an `advance_cron`."""

    ADVANCED = "advanced"
    REFUSED = "refused"
    """Advanced, but not every task was stored: its queue is not declared, its id is stored
    already, or a unique one stood in its way."""
    MOVED = "moved"
    """Somebody else advanced it, or it was changed: look again."""
    PAUSED = "paused"
    GONE = "gone"


class CronStore(ABC):
    """Stored cron entries; a tick is one step however many processes run it."""

    @abstractmethod
    async def put_cron(self, entry: CronRecord, *, replace: bool = False) -> PutAnswer:
        """Add an entry; the same definition and template is SAME, another CONFLICT unless replacing.

        CREATED keeps its `created_at`, from which ticks may be counted, and which has to
        fit its slots. SAME renews `seen_at`; REPLACED keeps the counters, a pause, and the
        later of the two last slots, so that no tick is decided twice: the
        stored one where the entry brings none. `next_slot` is the entry's.
        Rings CRON.
        """

    @abstractmethod
    async def crons(self, name: str | None = None) -> list[CronRecord]:
        """Every stored entry, or the one of this name, by name; records that others may hold, not to be changed."""

    @abstractmethod
    async def alter_cron(
        self,
        name: str,
        *,
        paused_reason: str | None,
        last_slot: float | None = None,
        next_slot: float | None = None,
    ) -> bool:
        """Pause with a reason, or resume with None; False if unknown. Rings CRON.

        With `last_slot`, in the same step: all ticks up to it count as decided,
        and `next_slot` is the next. `last_slot` never moves back.
        """

    @abstractmethod
    async def remove_cron(self, name: str) -> bool:
        """Remove an entry; False if unknown. Rings CRON."""

    @abstractmethod
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
        """Decide a tick: if `last_slot` is still `expected`, move it on and enqueue, in one step.

        Which makes a tick happen at most once per storage. With `definition`,
        an entry that was replaced by another one meanwhile answers MOVED, too.
        `tasks` may be empty (a skipped tick); `total` grows by those stored. A
        repeat answers MOVED. Rings QUEUE.
        """


class Storage(TaskStore, ControlStore, CronStore):
    """The whole hook. Usable by any number of dispatchers at once."""

    durable: bool = False
    """Whether what is stored survives the end of the process."""
    immediate: bool = False
    """Whether `turn` never waits for anything, and so needs neither a shield nor a deadline."""
    remote: bool = False
    """Whether another process does the work of a step, as a server does, so that handlers can run meanwhile."""
    beat_s: float = 10.0
    """How often a worker writes its record; infinity where only this process could read it."""

    @property
    def clock_error_s(self) -> float:
        """How far `now` may be from the clock that the storage writes by: 0 unless that is a server's."""
        return 0.0

    @property
    def slice_s(self) -> float:
        """The longest sleep towards a moment of its clock before looking again: clocks may jump."""
        return 5.0

    async def breathe(self) -> None:
        """Called once a publisher has told of what it stored: where `enqueue` lets nobody run, here somebody may.

        Not cancellable, since what was stored must not be reported as cancelled. Nothing by default.
        """

    async def rest(self) -> None:
        """Called before what people ask and change: where steps let nobody run, here others may.

        Who asks in a loop until something is so would hold them up otherwise. Nothing by default.
        """

    async def turn(
        self,
        transitions: Sequence[Transition],
        wants: Sequence[Want],
        *,
        worker: str,
        lease: float | None,
    ) -> tuple[list[SettleResult], Claimed]:
        """`settle`, then `claim`: what a worker does between two attempts.

        A database storage overrides it to do both in one transaction, or as
        few as it can; where that fails, some of the runs may be settled, as
        with `settle`. Each part may be empty.
        """
        settled = await self.settle(transitions) if transitions else []
        if not wants:
            return settled, Claimed([])
        return settled, await self.claim(wants, worker=worker, lease=lease)

    def enqueue_in(self, connection: object, tasks: Sequence[NewTask]) -> list[EnqueueResult]:
        """`enqueue`, unbounded, inside the user's own transaction on the same database.

        Synchronous, on the caller's thread, never waiting: the tasks exist
        exactly if that transaction commits, and workers wake then. Raises
        InvalidConfigError where the storage has no such thing, the connection
        is of another database, or no transaction is open.
        """
        raise InvalidConfigError(
            f"{self!r} has no transactions to publish in; SQLite and PostgreSQL storages do"
        )

    async def enqueue_in_async(self, connection: object, tasks: Sequence[NewTask]) -> list[EnqueueResult]:
        """`enqueue_in` on a connection of the storage's own, asynchronous kind. A checkpoint.

        Raises InvalidConfigError where the storage has no such connections.
        """
        await trio.lowlevel.checkpoint()
        raise InvalidConfigError(
            f"{self!r} has no asynchronous connections; PostgreSQL's has, and SQLite's joins by publish_in"
        )

    def settle_in(self, connection: object, transition: Transition) -> SettleResult:
        """End a run inside the handler's own transaction: its effect and this commit together.

        As `settle` for one run; a later `settle` of it answers REPEATED if the
        transaction was committed, and applies if it was rolled back. The task's
        row stays locked until then. Raises InvalidConfigError where the storage
        has no such thing, and as `enqueue_in`.
        """
        raise InvalidConfigError(
            f"{self!r} cannot end a run inside a transaction of yours; PostgreSQL's storage can"
        )

    async def settle_in_async(self, connection: object, transition: Transition) -> SettleResult:
        """`settle_in` on a connection of the storage's own, asynchronous kind. A checkpoint."""
        await trio.lowlevel.checkpoint()
        return self.settle_in(connection, transition)

    @abstractmethod
    def now(self) -> float:
        """The storage's clock, as last known, in UTC seconds: leases and due times go by it."""

    @abstractmethod
    def watch(self, bell: Bell, *topics: Topic) -> AbstractContextManager[None]:
        """Ring `bell` for these topics while the context is open.

        Subscribed on entering, so: enter, look, then wait. Spurious rings are
        allowed, missed ones are not. May only be entered on the trio thread.
        """


def check_storage(
    given: object, or_none: str = "", url: str = "is opened by dispatch.storage.opening.open_storage"
) -> None:
    """Raise InvalidConfigError for what is no `Storage`; its class is shown alone, for a URL may hold a password."""
    if not isinstance(given, Storage):
        raise InvalidConfigError(
            f"storage must be a Storage{or_none}, got {type(given).__name__}; a URL such as 'sqlite:///jobs.db' {url}"
        )
