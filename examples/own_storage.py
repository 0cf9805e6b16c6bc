"""A storage of your own, whole: every task in one JSON file that is replaced at each step.

    python examples/own_storage.py                  # uses it
    python -m pytest examples/own_storage.py        # holds it to the conformance kit

Both need `pip install 'trio-dispatch[testing]'`; in a clone, the README's command for the tests has installed it.

Not one to use: each step reads and writes everything. It is here to be read by
whoever writes a storage for another database. What a row becomes is decided by
`dispatch.lifecycle` and `dispatch.storage.changes`, so what is left is finding
the rows, writing them in one atomic step, and waking who waits.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
import trio
from cattrs.preconf.json import make_converter

from dispatch import (
    Clock,
    QueueTask,
    Storage,
    StorageError,
    TaskStatus,
    TaskType,
    lifecycle,
    open_dispatcher,
)
from dispatch.bell import Bell
from dispatch.lifecycle import SettleAnswer
from dispatch.records import AttemptRecord, Claim, NewTask, TaskRecord, Transition
from dispatch.storage import changes
from dispatch.storage.bells import Bells
from dispatch.storage.limits import allowance
from dispatch.storage.protocol import (
    KEEP,
    AdvanceAnswer,
    Change,
    Claimed,
    CronRecord,
    EnqueueAnswer,
    EnqueueResult,
    Keep,
    Page,
    PutAnswer,
    QueueRecord,
    RemoveAnswer,
    RenewAnswer,
    Rescued,
    SettleResult,
    Topic,
    Want,
    WorkerRecord,
)
from dispatch.storage.query import Order, PruneSpec, Where, check_groups, matches, place_of
from dispatch.tasks import OnClash
from dispatch.testing.conformance import StorageConformance
from dispatch.testing.machine import StorageMachine, check_against_model

PENDING, RUNNING = TaskStatus.PENDING, TaskStatus.RUNNING
WORKER_S = 60.0
"""A worker not seen for so long is not listed."""
LOOK_S = 0.05
"""How often to look whether another process has written."""

# -- what is stored, and in what -------------------------------------------------


@attrs.define
class Tables:
    """Everything, as it is written to the file."""

    seq: int = 0
    tasks: dict[str, TaskRecord] = attrs.field(factory=dict[str, TaskRecord])
    runs: dict[str, list[AttemptRecord]] = attrs.field(factory=dict[str, list[AttemptRecord]])
    queues: dict[str, QueueRecord] = attrs.field(factory=dict[str, QueueRecord])
    tokens: dict[str, tuple[float, float]] = attrs.field(factory=dict[str, tuple[float, float]])
    workers: dict[str, WorkerRecord] = attrs.field(factory=dict[str, WorkerRecord])
    crons: dict[str, CronRecord] = attrs.field(factory=dict[str, CronRecord])


class JsonFile:
    """The toy database: one text, replaced as a whole, shared by processes under a lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._converter = make_converter()
        self._text = ""

    @contextmanager
    def locked(self) -> Generator[None]:
        """Keep every other process, and every other opening here, out."""
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def version(self) -> tuple[int, int] | None:
        """Changes whenever the text is replaced."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns

    def read(self) -> Tables:
        """What is written; empty tables if nothing is."""
        self._text = self.path.read_text(encoding="utf-8") if self.version() is not None else ""
        return self._converter.loads(self._text, Tables) if self._text else Tables()

    def write(self, tables: Tables) -> bool:
        """Replace the text, all of it or none; False if it says the same already."""
        text = self._converter.dumps(tables)
        if text == self._text:
            return False
        fresh = self.path.with_suffix(".new")
        fresh.write_text(text, encoding="utf-8")
        self.replace(fresh)
        self._text = text
        return True

    def replace(self, fresh: Path) -> None:
        """The commit. A real one would `os.fsync` before, to survive a power cut, too."""
        os.replace(fresh, self.path)


# -- the storage -------------------------------------------------------------------


class FileStorage(Storage):
    """Tasks in a JSON file, open while its block is. It blocks the loop while it reads and writes."""

    durable = True

    def __init__(self, path: Path, *, clock: Clock | None = None) -> None:
        self.file = JsonFile(path)
        self._clock = clock if clock is not None else Clock()
        self._bells = Bells()
        self._tables = Tables()
        self._version: tuple[int, int] | None = (0, 0)

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[FileStorage]:
        """Open it, and look out for what other processes write."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_file, self.file.version())
            yield self
            nursery.cancel_scope.cancel()

    async def _watch_file(self, told: tuple[int, int] | None) -> None:
        """Ring for each version of the file, also for one that a look here has read already."""
        while True:
            await trio.sleep(LOOK_S)
            version = self.file.version()
            if version != told:
                told = version
                self._bells.ring_all()  # spurious rings are allowed, missed ones are not

    @contextmanager
    def _look(self) -> Generator[tuple[Tables, float]]:
        """The tables as they are now, and the moment."""
        with self.file.locked():
            if self.file.version() != self._version:
                self._tables = self.file.read()
                self._version = self.file.version()
            yield self._tables, self._clock.now()

    @contextmanager
    def _step(self) -> Generator[tuple[Tables, float]]:
        """One atomic step: what was done to the tables is written, or forgotten."""
        with self._look() as (tables, now):
            try:
                yield tables, now
                changed = self.file.write(tables)
                self._version = self.file.version()
            except BaseException as exc:
                self._version = (0, 0)  # half a step may be in memory: read the file again
                if isinstance(exc, OSError):
                    raise StorageError(f"{self.file.path}: {exc}") from exc
                raise
        # Whoever finds nothing to do must wake nobody, or idle workers would wake each other.
        if changed:
            self._bells.ring_all()

    # Every method honours a cancellation first, and then acts without yielding:
    # so it is atomic among the trio tasks here as the lock makes it among processes.

    # ---- publishing

    async def enqueue(
        self, tasks: Sequence[NewTask], *, bounded: bool = False, by: tuple[str, int] | None = None
    ) -> list[EnqueueResult]:
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._step() as (tables, now):
            if by is not None and not holds(tables, *by):
                return [EnqueueResult(EnqueueAnswer.CLAIM_LOST, new.id) for new in tasks]
            return [store(tables, new, now, bounded) for new in tasks]

    # ---- runs

    async def claim(self, wants: Sequence[Want], *, worker: str, lease: float | None) -> Claimed:
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._step() as (tables, now):
            claims: list[Claim] = []
            dues: list[float] = []
            for want in wants:
                queue = tables.queues.get(want.queue)
                if queue is None or queue.paused:
                    continue
                room, bucket, more_at = room_for(tables, queue, want.limit, now)
                waiting = [row for row in of_queue(tables, queue.name) if row.status is PENDING]
                if want.ids is not None:
                    waiting = [row for row in waiting if row.id in want.ids]
                dues += [row.available_at for row in waiting if row.available_at > now]
                due = [row for row in waiting if row.available_at <= now and wanted(row, want)]
                started = 0
                for row in sorted(due, key=lambda row: claim_order(row, want.ageing, now)):
                    if started < room and not behind_its_key(tables, queue, row, now):
                        claims.append(start(tables, row, want, now, worker, lease))
                        started += 1
                since = tables.tokens.get(queue.name, (0.0, now))[1]
                if queue.rate is not None and (started or since > now):  # or the clock was set back
                    tables.tokens[queue.name] = (bucket - started, now)
                if more_at is not None and started == room:
                    dues.append(more_at)
            return Claimed(claims, min(dues, default=None))

    async def renew(
        self, claims: Sequence[tuple[str, int]], *, lease: float | None
    ) -> list[RenewAnswer]:
        await trio.lowlevel.checkpoint_if_cancelled()
        answers: list[RenewAnswer] = []
        with self._step() as (tables, now):
            for id_, epoch in claims:
                if not holds(tables, id_, epoch):
                    answers.append(RenewAnswer(id_, epoch, held=False))
                    continue
                row = tables.tasks[id_]
                if lease is not None and row.lease_until is not None:
                    row.lease_until = max(row.lease_until, now + lease)
                answers.append(RenewAnswer(id_, epoch, held=True, cancel_reason=row.cancel_reason))
        return answers

    async def settle(self, transitions: Sequence[Transition]) -> list[SettleResult]:
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._step() as (tables, now):
            return [settled(tables, transition, now) for transition in transitions]

    async def rescue(self, limit: int = 1_000) -> Rescued:
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._step() as (tables, now):
            leased = [
                (row.lease_until, row.seq, row)
                for row in tables.tasks.values()
                if row.lease_until is not None and row.lease_until < now
            ]
            rescued = [row for _, _, row in sorted(leased, key=lambda found: found[:2])][:limit]
            for row in rescued:
                tables.runs[row.id].append(lifecycle.rescue(row, now))
            return Rescued([copy(row) for row in rescued])

    async def progress(self, claim: tuple[str, int], data: bytes) -> bool:
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._step() as (tables, _):
            if not holds(tables, *claim):
                return False
            tables.tasks[claim[0]].progress = data
            return True

    async def history(self, task_id: str) -> list[AttemptRecord]:
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._look() as (tables, _):
            if task_id not in tables.tasks:
                return []
            running = lifecycle.current_run(tables.tasks[task_id])
            return [*tables.runs[task_id], *([running] if running is not None else [])]

    # ---- looking, and changing by hand

    async def find(
        self,
        where: Where,
        *,
        order: Order = Order.OLDEST,
        limit: int = 100,
        after: str | None = None,
    ) -> Page:
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._look() as (tables, now):
            found = meant(tables, where, now)
            if order is Order.NEWEST:
                found.reverse()
            if after is not None:
                seq, newest = place_of(after), order is Order.NEWEST
                found = [row for row in found if (row.seq < seq if newest else row.seq > seq)]
            page = [copy(row) for row in found[:limit]]
            return Page(page, str(page[-1].seq) if page and len(found) > limit else None)

    async def count(
        self,
        where: Where,
        *,
        by: Sequence[Literal["queue", "type", "status"]] = (),
        bound: int | None = None,
    ) -> dict[tuple[str, ...], int]:
        await trio.lowlevel.checkpoint_if_cancelled()
        names = check_groups(by)
        counts: dict[tuple[str, ...], int] = {}
        with self._look() as (tables, now):
            for row in meant(tables, where, now):
                group = tuple(changes.group_value(row, name, now) for name in names)
                counts[group] = counts.get(group, 0) + 1
        return counts

    async def alter(
        self, where: Where, change: Change, *, limit: int | None = None, dry_run: bool = False
    ) -> list[str]:
        await trio.lowlevel.checkpoint_if_cancelled()
        changed: list[str] = []
        with self._step() as (tables, now):
            for row in meant(tables, where, now):
                if limit is not None and len(changed) >= limit:
                    break
                if changes.would_change(change, copy(row), now):
                    changed.append(row.id)
                    if not dry_run:
                        apply(change, row, now)
        return changed

    async def prune(self, spec: PruneSpec, *, dry_run: bool = False) -> int:
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._step() as (tables, now):
            ended = [
                row
                for row in meant(tables, spec.where, now)
                if row.status.is_terminal and (spec.dead_letters or row.status is not TaskStatus.FAILED)
            ]
            ended.sort(key=lambda row: (row.finished_at or 0.0, row.seq), reverse=True)
            kept: dict[str, int] = {}
            doomed: list[str] = []
            for row in ended:
                group = "" if spec.per == "total" else changes.group_value(row, spec.per, now)
                kept[group] = kept.get(group, 0) + 1
                beyond = spec.keep is not None and kept[group] > spec.keep
                if beyond or (spec.age_s is not None and now - (row.finished_at or now) > spec.age_s):
                    doomed.append(row.id)
            doomed = doomed[::-1][: spec.limit]
            for id_ in () if dry_run else doomed:
                del tables.tasks[id_], tables.runs[id_]
            return len(doomed)

    # ---- queues and workers

    async def declare(self, queues: Sequence[QueueRecord], *, new_only: bool = False) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._step() as (tables, _):
            for given in queues:
                known = tables.queues.get(given.name)
                if new_only:  # with what was set on it by hand, where it comes from
                    tables.queues.setdefault(given.name, given)
                else:
                    paused, concurrency = (known.paused, known.concurrency) if known else (False, None)
                    tables.queues[given.name] = attrs.evolve(given, paused=paused, concurrency=concurrency)

    async def queues(self) -> list[QueueRecord]:
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._look() as (tables, _):
            return [tables.queues[name] for name in sorted(tables.queues)]

    async def alter_queue(
        self, name: str, *, paused: bool | None = None, concurrency: int | Keep | None = KEEP
    ) -> bool:
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._step() as (tables, _):
            queue = tables.queues.get(name)
            if queue is None:
                return False
            if paused is not None:
                queue = attrs.evolve(queue, paused=paused)
            if not isinstance(concurrency, Keep):
                queue = attrs.evolve(queue, concurrency=concurrency)
            tables.queues[name] = queue
            return True

    async def remove_queue(self, name: str) -> RemoveAnswer:
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._step() as (tables, _):
            if name not in tables.queues:
                return RemoveAnswer.UNKNOWN
            if any(row.queue == name for row in tables.tasks.values()):
                return RemoveAnswer.STORED
            del tables.queues[name]
            tables.tokens.pop(name, None)
            return RemoveAnswer.REMOVED

    async def beat(self, worker: WorkerRecord) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._step() as (tables, now):
            tables.workers[worker.id] = attrs.evolve(worker, seen_at=now)

    async def workers(self) -> list[WorkerRecord]:
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._look() as (tables, now):
            seen = [one for one in tables.workers.values() if now - one.seen_at <= WORKER_S]
            return sorted(seen, key=lambda one: one.id)

    async def forget(self, worker: str) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._step() as (tables, _):
            tables.workers.pop(worker, None)

    # ---- cron entries

    async def put_cron(self, entry: CronRecord, *, replace: bool = False) -> PutAnswer:
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._step() as (tables, now):
            known = tables.crons.get(entry.name)
            if known is None:
                tables.crons[entry.name] = attrs.evolve(entry, created_at=entry.created_at or now, seen_at=now)
                return PutAnswer.CREATED
            if (known.definition, known.template) == (entry.definition, entry.template):
                tables.crons[entry.name] = attrs.evolve(known, seen_at=now)
                return PutAnswer.SAME
            if not replace:
                return PutAnswer.CONFLICT
            tables.crons[entry.name] = attrs.evolve(
                entry,
                last_slot=later(known.last_slot, entry.last_slot),
                paused_reason=known.paused_reason,
                total=known.total,
                created_at=known.created_at,
                seen_at=now,
            )
            return PutAnswer.REPLACED

    async def crons(self, name: str | None = None) -> list[CronRecord]:
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._look() as (tables, _):
            return [tables.crons[one] for one in sorted(tables.crons) if name in (None, one)]

    async def alter_cron(
        self,
        name: str,
        *,
        paused_reason: str | None,
        last_slot: float | None = None,
        next_slot: float | None = None,
    ) -> bool:
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._step() as (tables, _):
            known = tables.crons.get(name)
            if known is None:
                return False
            if last_slot is not None:
                last_slot = later(known.last_slot, last_slot)
                known = attrs.evolve(known, last_slot=last_slot, next_slot=next_slot)
            tables.crons[name] = attrs.evolve(known, paused_reason=paused_reason)
            return True

    async def remove_cron(self, name: str) -> bool:
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._step() as (tables, _):
            return tables.crons.pop(name, None) is not None

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
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._step() as (tables, now):
            entry = tables.crons.get(name)
            if entry is None:
                return AdvanceAnswer.GONE
            if entry.paused_reason is not None:
                return AdvanceAnswer.PAUSED
            if entry.last_slot != expected or definition not in (None, entry.definition):
                return AdvanceAnswer.MOVED
            answers = [store(tables, new, now).answer for new in tasks]
            stored = answers.count(EnqueueAnswer.CREATED)
            tables.crons[name] = attrs.evolve(
                entry, last_slot=last_slot, next_slot=next_slot, total=entry.total + stored
            )
            return AdvanceAnswer.ADVANCED if stored == len(tasks) else AdvanceAnswer.REFUSED

    # ---- clock and bells

    def now(self) -> float:
        return self._clock.now()

    @property
    def slice_s(self) -> float:
        """As the clock's."""
        return self._clock.slice_s

    def watch(self, bell: Bell, *topics: Topic) -> AbstractContextManager[None]:
        return self._bells.watch(bell, *topics)


# -- the parts of a step: plain functions on the tables ------------------------------


def store(tables: Tables, new: NewTask, now: float, bounded: bool = False) -> EnqueueResult:
    """Store one task, or find what stands in its way."""
    known = tables.tasks.get(new.id)
    if known is not None:
        return existing(EnqueueAnswer.EXISTING, new, known)
    queue = tables.queues.get(new.queue)
    if queue is None:
        return EnqueueResult(EnqueueAnswer.UNKNOWN_QUEUE, new.id)
    due = new.available_at if new.available_at is not None else round(now + new.delay, 6)
    clashes = clashing(tables, new, due)
    if clashes and new.unique is not None and new.unique.on_clash is not OnClash.SUPERSEDE:
        answer, at = changes.clash_answer(new, clashes)
        if answer is EnqueueAnswer.REPLACED:
            write(clashes[at], changes.replacement(new, new.unique.replace, due))
        return existing(answer, new, clashes[at])
    if bounded and due <= now and queue.max_waiting is not None:
        waiting = [row for row in of_queue(tables, queue.name) if row.status is PENDING and row.available_at <= now]
        if sum(row not in clashes for row in waiting) >= queue.max_waiting:
            return EnqueueResult(EnqueueAnswer.FULL, new.id)
    for row in clashes:
        lifecycle.cancel(row, now, f"superseded by task {new.id}")
    tables.seq += 1
    shared = {field.name for field in attrs.fields(NewTask)} & {field.name for field in attrs.fields(TaskRecord)}
    given: dict[str, Any] = {name: getattr(new, name) for name in shared}
    given |= {"headers": dict(new.headers), "available_at": due, "created_at": now, "seq": tables.seq}
    tables.tasks[new.id] = TaskRecord(**given)
    tables.runs[new.id] = []
    return EnqueueResult(EnqueueAnswer.CREATED, new.id, now, due)


def clashing(tables: Tables, new: NewTask, due: float) -> list[TaskRecord]:
    """The stored tasks that a unique one clashes with, oldest first."""
    unique = new.unique
    if unique is None:
        return []
    return [
        row
        for row in tables.tasks.values()
        if row.unique is not None
        and row.unique.key == unique.key
        and row.status in unique.statuses
        and (unique.within is None or abs(row.available_at - due) <= unique.within)
    ]


def wanted(row: TaskRecord, want: Want) -> bool:
    """Whether a worker takes tasks of this type, version and tags."""
    knows = want.types is None or want.types.get(row.type, 0) >= row.version
    return knows and (want.tags is None or want.tags.issuperset(row.tags))


def claim_order(row: TaskRecord, ageing: float | None, now: float) -> tuple[int, float, int]:
    """The highest level first, then who fell due first."""
    risen = 0.0 if ageing is None else min((now - row.available_at) / ageing, 3.0)
    return -min(row.priority + int(risen), 3), row.available_at, row.seq


def behind_its_key(tables: Tables, queue: QueueRecord, row: TaskRecord, now: float) -> bool:
    """Whether another task of its key runs, or comes first."""
    if not queue.keyed or row.key is None:
        return False
    for other in of_queue(tables, queue.name):
        if other.key == row.key and other is not row:
            # One that waits for its retry may let the others pass meanwhile.
            aside = queue.on_retry == "yield" and other.epoch > 0 and other.available_at > now
            if other.status is RUNNING or (
                other.status is PENDING and other.seq < row.seq and not aside
            ):
                return True
    return False


def room_for(
    tables: Tables, queue: QueueRecord, limit: int, now: float
) -> tuple[int, float, float | None]:
    """How many may start under the queue's limits, its rate's bucket, and when that allows more."""
    bucket, more_at = 0.0, None
    if queue.max_running is not None:
        running = sum(row.status is RUNNING for row in of_queue(tables, queue.name))
        limit = max(min(limit, queue.max_running - running), 0)
    if queue.rate is not None:
        tokens, since = tables.tokens.get(queue.name, (None, None))
        allowed = allowance(queue.rate, tokens, since, now)
        bucket = allowed.tokens
        if allowed.claims < limit:
            limit, more_at = allowed.claims, allowed.more_at
    return limit, bucket, more_at


def start(
    tables: Tables, row: TaskRecord, want: Want, now: float, worker: str, lease: float | None
) -> Claim:
    """Start one run; what a rescue must know of the queue is written to the row."""
    lifecycle.claim(
        row,
        now,
        worker=worker,
        lease_s=lease,
        max_retry=want.max_retry,
        retry=want.retry,
        on_interrupt=want.on_interrupt,
    )
    shared = {field.name for field in attrs.fields(Claim)}
    given: dict[str, Any] = {name: getattr(row, name) for name in shared}
    given["timeout"] = row.timeout if row.timeout is not None else want.timeout
    return Claim(**given)


def settled(tables: Tables, transition: Transition, now: float) -> SettleResult:
    """End one run where its fence holds, with its history and its spawned tasks."""
    row = tables.tasks.get(transition.id)
    answer = lifecycle.fence(row, transition.epoch)
    if row is None or answer is not SettleAnswer.APPLIED:
        return SettleResult.refused(transition, answer, row)
    tables.runs[row.id].append(lifecycle.settle(row, transition, now))
    result = SettleResult.applied(row)
    result.spawned = [store(tables, new, now) for new in transition.spawn]
    return result


def holds(tables: Tables, task_id: str, epoch: int) -> bool:
    """Whether a run goes on under this fence."""
    return lifecycle.fence(tables.tasks.get(task_id), epoch) is SettleAnswer.APPLIED


def apply(change: Change, row: TaskRecord, now: float) -> None:
    """Make one change by hand that has been found to change something."""
    if change.action == "patch":
        write(row, changes.patched(row, change))
    else:
        changes.would_change(change, row, now)  # on the row itself, and no copy


def write(row: TaskRecord, fields: dict[str, object]) -> None:
    """Write fields that are not state."""
    for name, value in fields.items():
        setattr(row, name, value)


def of_queue(tables: Tables, name: str) -> Iterable[TaskRecord]:
    """A queue's tasks, in order of storing."""
    return (row for row in tables.tasks.values() if row.queue == name)


def meant(tables: Tables, where: Where, now: float) -> list[TaskRecord]:
    """The tasks that match, in order of storing."""
    return [row for row in tables.tasks.values() if matches(where, row, now)]


def existing(answer: EnqueueAnswer, new: NewTask, row: TaskRecord) -> EnqueueResult:
    """An answer with the stored task in question."""
    return EnqueueResult(answer, new.id, row.created_at, row.available_at, copy(row))


def copy(row: TaskRecord) -> TaskRecord:
    """What is handed out: nobody reaches the row itself."""
    return attrs.evolve(row, headers=dict(row.headers))


def later(one: float | None, other: float | None) -> float | None:
    """The later of two ticks; None is before all others."""
    return one if other is None else other if one is None else max(one, other)


# -- held to the kit ---------------------------------------------------------------------


class HandTime:
    """A wall clock that moves when told."""

    def __init__(self) -> None:
        self.moment = 1_700_000_000.0

    def __call__(self) -> float:
        return self.moment

    async def advance(self, seconds: float) -> None:
        self.moment = round(self.moment + seconds, 6)


Opened = AsyncGenerator[tuple[Storage, Callable[[float], Awaitable[None]]]]


class TestFileStorage(StorageConformance):
    """Every case of the kit."""

    # All that is needed.
    @asynccontextmanager
    async def open_storage(self) -> Opened:
        self.time = HandTime()
        with tempfile.TemporaryDirectory() as folder:
            self.path = Path(folder) / "tasks.json"
            async with self.reopen(None) as storage:
                yield storage, self.time.advance

    # And what opens more cases: several processes, and a disk that fails.
    def reopen(self, storage: object) -> Any:
        return FileStorage(self.path, clock=Clock(wall=self.time)).opened()

    @contextmanager
    def break_at(self, storage: Any, step: int) -> Generator[None]:
        left = step

        def fails_at_its_turn(thing: Callable[..., Any]) -> Callable[..., Any]:
            def call(*given: object) -> Any:
                nonlocal left
                left -= 1
                if left == -1:
                    raise OSError(28, "No space left on device")
                return thing(*given)

            return call

        with pytest.MonkeyPatch.context() as patch:
            for name in ("write", "replace"):
                patch.setattr(storage.file, name, fails_at_its_turn(getattr(storage.file, name)))
            yield


class FileMachine(StorageMachine):
    """Random steps, compared with a plain model."""

    @asynccontextmanager
    async def open_storage(self) -> Opened:
        self.time_of_file = HandTime()
        with tempfile.TemporaryDirectory() as folder:
            self.path = Path(folder) / "tasks.json"
            async with self.reopen(None) as storage:
                yield storage, self.time_of_file.advance

    def reopen(self, storage: object) -> Any:
        return FileStorage(self.path, clock=Clock(wall=self.time_of_file)).opened()


def test_it_agrees_with_the_model() -> None:
    check_against_model(FileMachine, examples=5, steps=30, require_all=False)


# -- and used ------------------------------------------------------------------------------


@attrs.frozen
class Note:
    text: str


NOTE = TaskType("notes", "print", Note)


async def print_note(task: QueueTask[Note]) -> None:
    print(f"{task.payload.text}, attempt {task.attempt}")


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tasks.json"
        for handled in (False, True):  # two processes, one after the other
            async with FileStorage(path).opened() as storage, open_dispatcher(storage) as dispatcher:
                dispatcher.consumer.register_queue("notes")
                if handled:
                    dispatcher.consumer.register_handler(NOTE, print_note)
                    await dispatcher.drain()
                else:
                    await dispatcher.publisher.publish(NOTE(Note("written by the first process")))


if __name__ == "__main__":
    trio.run(main)
