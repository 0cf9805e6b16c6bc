"""Tasks in this process's memory: the default storage, and the one for tests.

Theory of operation. Rows are `TaskRecord`s in one dict; `dispatch.lifecycle`
alone changes their state. Every method first honours a pending cancellation,
then reads the clock once and acts without yielding, so it is atomic and a
cancelled call has done nothing. Who publishes yields in `breathe`, once the observers
have been told (before, a quick worker's events would come first): the first time and
then every eighth, so that a loop which only publishes lets others run, and they find
more than one task at a time: a turn that claims eight costs little more than one that
claims one, and singly published tasks came through at half the speed.

Beside the rows there are indexes, each changed in the step that changes a row:

- `ReadyQueue`, one per declared queue: what may run (see `ready`).
- `_order`, and each queue's `rows`: the rows by `seq`, for pages; a pruned one stays until half are.
- `_finished` and `_dead`: the ended rows in the order of their end. Beyond the
  newest `keep_finished` succeeded and cancelled ones, the oldest is forgotten
  together with its history. Failed ones, the dead letters, stay until pruned.
  After the clock went back, moments of the end are out of that order, and
  pruning, which goes by them, sorts them again.
- `_awaited`: of the oldest, those whose end somebody watches and was told of, but
  may not have looked at yet. They are forgotten when nobody watches them any more.
- `_open_by_unique` and `_ended_by_unique`: by unique key, so that a look-up
  sees neither other keys nor, usually, what is over.
- `_leases`: a heap of at most one entry per leased run. A renewal leaves its
  entry alone: reaching the top too early, it is put back where it belongs.

History costs a task that succeeds at once nothing but the one record that
`lifecycle.settle` returned; the list is made when a second run starts.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush, merge
from itertools import islice
from math import inf
from typing import Final, Literal

import attrs
import trio

from dispatch import lifecycle
from dispatch.checks import check_count, check_kind
from dispatch.clock import Clock
from dispatch.lifecycle import SettleAnswer
from dispatch.records import AttemptRecord, Claim, NewTask, TaskRecord, Transition, UniqueKey
from dispatch.storage.changes import (
    changeable,
    clash_answer,
    frozen_headers,
    group_value,
    patched,
    replacement,
    would_change,
)
from dispatch.storage.memory_registry import MemoryRegistry
from dispatch.storage.memory_rows import (
    Index,
    by_end,
    by_seq,
    copied,
    in_order_of_end,
    is_leased,
    known,
    move,
)
from dispatch.storage.protocol import (
    Change,
    Claimed,
    EnqueueAnswer,
    EnqueueResult,
    Page,
    RenewAnswer,
    Rescued,
    SettleResult,
    TopicKind,
    Want,
)
from dispatch.storage.query import (
    ENDED,
    All,
    Ids,
    Order,
    PruneSpec,
    Queues,
    Statuses,
    Where,
    check_groups,
    matches,
    only_open,
    place_of,
)
from dispatch.storage.ready import LATER, ReadyQueue, Row
from dispatch.tasks import OnClash, TaskStatus

__all__ = ["MemoryStatistics", "MemoryStorage"]

# As globals: looking them up in their classes costs the hot path a microsecond.
PENDING: Final = TaskStatus.PENDING
RUNNING: Final = TaskStatus.RUNNING
FAILED: Final = TaskStatus.FAILED
APPLIED: Final = SettleAnswer.APPLIED
CREATED: Final = EnqueueAnswer.CREATED
TASK: Final = TopicKind.TASK
DONE: Final = TopicKind.DONE
HISTORY_LIMIT: Final = 1_000
"""Runs kept per task; of a longer history the oldest go."""
STREAK: Final = 7
"""Steps of publishing between two that let others run."""
SLACK: Final = 1_024
"""Stale entries that an index may hold beyond one per valid entry before it is swept."""


@attrs.frozen(kw_only=True)
class MemoryStatistics:
    """Sizes, for debugging; `waiting` counts due tasks, as the queues' bounds do."""

    tasks: int
    waiting: int
    leases: int
    finished: int
    dead_letters: int
    queues: int
    workers: int
    crons: int


class MemoryStorage(MemoryRegistry):
    """A storage in memory, for any number of dispatchers in one trio run.

    What it holds is gone with the process. It keeps every open task and every
    dead letter, but only the newest `keep_finished` (10,000) tasks that succeeded
    or were cancelled, with their histories, and older ones that somebody still
    waits for. No method blocks. `clock` may be shared; under
    `trio.testing.MockClock` the default one runs on virtual time.
    """

    durable = False
    immediate = True

    def __init__(self, clock: Clock | None = None, *, keep_finished: int = 10_000) -> None:
        check_kind("MemoryStorage: clock", clock, Clock)
        check_count("MemoryStorage: keep_finished", keep_finished, 0)
        super().__init__(clock if clock is not None else Clock())
        self._keep_finished = keep_finished
        self._seq = 0
        self._rows: dict[str, Row] = {}
        self._order: list[Row] = []
        self._finished: OrderedDict[str, Row] = OrderedDict()
        self._awaited: OrderedDict[str, Row] = OrderedDict()
        self._watched = self._bells.names(TASK)
        self._latest_end = -inf
        self._in_order = True
        """Whether the ended rows stand by the moment of their end, too."""
        self._dead: OrderedDict[str, Row] = OrderedDict()
        self._open_by_unique: Index = {}
        self._ended_by_unique: Index = {}
        self._leases: list[tuple[float, int, int, Row]] = []
        self._leased = 0
        self._streak = 0

    def __repr__(self) -> str:
        return f"<MemoryStorage tasks={len(self._rows)} queues={len(self._queues)}>"

    def statistics(self) -> MemoryStatistics:
        """What it holds, as of now."""
        now = self._clock.now()
        for queue in self._queues.values():
            queue.mature(now)
        return MemoryStatistics(
            tasks=len(self._rows),
            waiting=sum(queue.waiting for queue in self._queues.values()),
            leases=self._leased,
            finished=len(self._finished) + len(self._awaited),
            dead_letters=len(self._dead),
            queues=len(self._queues),
            workers=len(self._workers),
            crons=len(self._crons),
        )

    # ---- publishing ------------------------------------------------------

    async def enqueue(
        self, tasks: Sequence[NewTask], *, bounded: bool = False, by: tuple[str, int] | None = None
    ) -> list[EnqueueResult]:
        await self._entered()
        if by is not None and not self._holds(*by):
            return [EnqueueResult(EnqueueAnswer.CLAIM_LOST, new.id) for new in tasks]
        now = self._clock.now()
        results = [self._store(new, now, bounded) for new in tasks]
        self._ring_queues()
        return results

    async def breathe(self) -> None:
        """Let others run, every eighth time."""
        self._streak -= 1
        if self._streak < 0:
            self._streak = STREAK
            await trio.lowlevel.cancel_shielded_checkpoint()

    def _store(self, new: NewTask, now: float, bounded: bool = False) -> EnqueueResult:
        stored = self._rows.get(new.id)
        if stored is not None:
            return known(EnqueueAnswer.EXISTING, new, stored)
        queue = self._queues.get(new.queue)
        if queue is None:
            return EnqueueResult(EnqueueAnswer.UNKNOWN_QUEUE, new.id)
        available_at = new.available_at
        if available_at is None:
            available_at = round(now + new.delay, 6) if new.delay else now
        unique = new.unique
        clashes: list[Row] = []
        if unique is not None:
            clashes = self._clashes(unique, available_at)
            if clashes and unique.on_clash is not OnClash.SUPERSEDE:
                return self._clash(new, unique, clashes, available_at, now)
        if bounded and available_at <= now and self._full(queue, clashes, now):
            return EnqueueResult(EnqueueAnswer.FULL, new.id)
        for clash in clashes:
            self._cancel(clash, now, f"superseded by task {new.id}")
        record = self._record(new, now, available_at)
        row = self._rows[new.id] = Row(record)
        self._order.append(row)
        queue.rows.append(row)
        if unique is not None:
            self._open_by_unique.setdefault(unique.key, {})[new.id] = row
        queue.add(row, now)
        self._touched[new.queue] = None
        return EnqueueResult(CREATED, new.id, now, available_at)

    def _record(self, new: NewTask, now: float, available_at: float) -> TaskRecord:
        self._seq += 1
        return TaskRecord(
            id=new.id,
            queue=new.queue,
            type=new.type,
            payload=new.payload,
            version=new.version,
            key=new.key,
            headers=frozen_headers(new.headers),
            timeout=new.timeout,
            max_retry=new.max_retry,
            priority=new.priority,
            tags=new.tags,
            unique=new.unique,
            cron=new.cron,
            slot=new.slot,
            seq=self._seq,
            created_at=now,
            available_at=available_at,
        )

    def _full(self, queue: ReadyQueue, superseded: list[Row], now: float) -> bool:
        """Whether one more due task would put the queue over its bound."""
        queue.mature(now)
        if not queue.full:
            return False
        name, bound = queue.record.name, queue.record.max_waiting
        leaving = sum(row.due and row.record.queue == name for row in superseded)
        return bound is not None and queue.waiting - leaving >= bound

    def _clashes(self, unique: UniqueKey, available_at: float) -> list[Row]:
        """The stored tasks that clash, oldest first."""
        found: list[Row] = []
        for index in (self._open_by_unique, self._ended_by_unique):
            if index is self._ended_by_unique and unique.statuses.isdisjoint(ENDED):
                break
            for row in index.get(unique.key, {}).values():
                record = row.record
                apart = abs(record.available_at - available_at)
                if record.status in unique.statuses and (
                    unique.within is None or apart <= unique.within
                ):
                    found.append(row)
        found.sort(key=by_seq)
        return found

    def _clash(
        self, new: NewTask, unique: UniqueKey, clashes: list[Row], available_at: float, now: float
    ) -> EnqueueResult:
        answer, at = clash_answer(new, [row.record for row in clashes])
        if answer is EnqueueAnswer.REPLACED:
            self._rewrite(clashes[at], replacement(new, unique.replace, available_at), now)
        return known(answer, new, clashes[at])

    def _rewrite(self, row: Row, fields: Mapping[str, object], now: float) -> None:
        """Write fields that are not state, and find the row's place anew."""
        pending = row.record.status is PENDING
        queue = self._queues[row.record.queue]
        if pending:
            queue.remove(row)
        if "unique" in fields and row.record.unique is not None:
            ended = row.record.status in ENDED
            move(row, row.record.unique.key, self._ended_by_unique if ended else self._open_by_unique, None)
        for name, value in fields.items():
            setattr(row.record, name, value)
        if pending:
            queue.add(row, now)
            self._touched[row.record.queue] = None

    # ---- runs ------------------------------------------------------------

    async def claim(self, wants: Sequence[Want], *, worker: str, lease: float | None) -> Claimed:
        """Start up to `limit` due tasks per want. Does not yield.

        `next_due` may be early: the next task of a wanted queue, whatever its type.
        """
        await self._entered()
        return self._claim(wants, worker, lease, self._clock.now())

    async def turn(
        self,
        transitions: Sequence[Transition],
        wants: Sequence[Want],
        *,
        worker: str,
        lease: float | None,
    ) -> tuple[list[SettleResult], Claimed]:
        """`settle`, then `claim`, at one instant. No checkpoint at all."""
        now = self._clock.now()
        settled = self._settle(transitions, now) if transitions else []
        return settled, self._claim(wants, worker, lease, now) if wants else Claimed([])

    def _claim(
        self, wants: Sequence[Want], worker: str, lease: float | None, now: float
    ) -> Claimed:
        claims: list[Claim] = []
        next_due: float | None = None
        for want in wants:
            queue = self._queues.get(want.queue)
            if queue is None or queue.record.paused:
                continue
            queue.mature(now)
            more_at: float | None = None
            if queue.limited:
                want, more_at = queue.within_limits(want, now)
            if want.ids is None:
                rows = queue.take(want, now)
                due = queue.next_due()
            else:
                named = [self._rows[id_] for id_ in want.ids if id_ in self._rows]
                named = [row for row in named if row.record.queue == want.queue]
                rows = queue.take_named(want, named, now)
                later = (row.record.available_at for row in named if row.place == LATER)
                due = min(later, default=None)
            claims += [self._start(row, want, now, worker, lease) for row in rows]
            queue.running += len(rows)
            if queue.limited:
                queue.spend(len(rows))
                if more_at is not None and len(rows) == want.limit and (due is None or more_at < due):
                    due = more_at
            if due is not None and (next_due is None or due < next_due):
                next_due = due
            if queue.room:
                self._ring_room(queue)
        if claims and lease is not None:
            self._leased += len(claims)
            if self._sweeps:
                self._ring_leases(worker, now + lease)
            if len(self._leases) > 2 * self._leased + SLACK:
                self._leases = [entry for entry in self._leases if is_leased(entry)]
                heapify(self._leases)
        return Claimed(claims, next_due)

    def _start(self, row: Row, want: Want, now: float, worker: str, lease: float | None) -> Claim:
        record = row.record
        if row.last is not None:
            if row.past is None:
                row.past = []
            row.past.append(row.last)
            if len(row.past) > HISTORY_LIMIT:  # a task that snoozes for ever
                del row.past[0]
            row.last = None
        lifecycle.claim(
            record,
            now,
            worker=worker,
            lease_s=lease,
            max_retry=want.max_retry,
            retry=want.retry,
            on_interrupt=want.on_interrupt,
        )
        if record.lease_until is not None:
            heappush(self._leases, (record.lease_until, record.seq, record.epoch, row))
        limit = record.limit
        return Claim(
            record.id,
            record.epoch,
            record.queue,
            record.type,
            record.version,
            record.payload,
            record.key,
            record.headers,
            record.priority,
            record.tags,
            record.timeout if record.timeout is not None else want.timeout,
            record.max_retry,
            record.attempt,
            limit if limit is not None else 0,
            record.created_at,
            record.available_at,
            now,
            record.last_error,
            record.cron,
        )

    async def renew(
        self, claims: Sequence[tuple[str, int]], *, lease: float | None
    ) -> list[RenewAnswer]:
        await self._entered()
        until = None if lease is None else self._clock.now() + lease
        answers: list[RenewAnswer] = []
        for id_, epoch in claims:
            row = self._rows.get(id_)
            if row is None or not self._holds(id_, epoch):
                answers.append(RenewAnswer(id_, epoch, False))
                continue
            record = row.record
            if until is not None and record.lease_until is not None and record.lease_until < until:
                record.lease_until = until
            answers.append(RenewAnswer(id_, epoch, True, record.cancel_reason))
        return answers

    def _holds(self, task_id: str, epoch: int) -> bool:
        row = self._rows.get(task_id)
        return lifecycle.fence(None if row is None else row.record, epoch) is APPLIED

    async def settle(self, transitions: Sequence[Transition]) -> list[SettleResult]:
        """End runs where their fence holds. Does not yield."""
        await self._entered()
        return self._settle(transitions, self._clock.now())

    def _settle(self, transitions: Sequence[Transition], now: float) -> list[SettleResult]:
        results: list[SettleResult] = []
        for transition in transitions:
            row = self._rows.get(transition.id)
            record = None if row is None else row.record
            answer = lifecycle.fence(record, transition.epoch)
            if row is None or record is None or answer is not APPLIED:
                results.append(SettleResult.refused(transition, answer, record))
                continue
            if record.lease_until is not None:
                self._leased -= 1
            row.last = lifecycle.settle(record, transition, now)
            self._run_ended(row, now)
            result = SettleResult.applied(record)
            if transition.spawn:
                result.spawned = [self._store(new, now) for new in transition.spawn]
            results.append(result)
        if self._touched:
            self._ring_queues()
        return results

    def _run_ended(self, row: Row, now: float) -> None:
        """After a run's end was written: what follows for the queue and the indexes."""
        record = row.record
        waits = record.status is PENDING
        queue = self._queues[record.queue]
        queue.running -= 1
        if ((waits or queue.record.keyed) and queue.ended(row, now)) or queue.limited:
            self._touched[record.queue] = None
        if not waits:
            self._ended(row)

    async def rescue(self, limit: int = 1_000) -> Rescued:
        await self._entered()
        now = self._clock.now()
        leases = self._leases
        rescued: list[TaskRecord] = []
        while leases:
            until, _, _, row = leases[0]
            record = row.record
            if not is_leased(leases[0]):
                heappop(leases)
            elif record.lease_until is not None and until < record.lease_until:
                heappop(leases)  # renewed since: put it back where it belongs
                heappush(leases, (record.lease_until, record.seq, record.epoch, row))
            elif until < now and len(rescued) < limit:
                heappop(leases)
                self._leased -= 1
                row.last = lifecycle.rescue(record, now)
                self._run_ended(row, now)
                rescued.append(copied(record))
            else:
                break
        self._ring_queues()
        next_sweep = leases[0][0] if leases else inf
        for name, relied_on in self._sweeps.items():
            self._sweeps[name] = max(relied_on, next_sweep)
        return Rescued(rescued, next_sweep)

    async def progress(self, claim: tuple[str, int], data: bytes) -> bool:
        await self._entered()
        if not self._holds(*claim):
            return False
        self._rows[claim[0]].record.progress = data
        return True

    async def history(self, task_id: str) -> list[AttemptRecord]:
        await self._entered()
        row = self._rows.get(task_id)
        if row is None:
            return []
        running = lifecycle.current_run(row.record)
        return [*(row.past or ()), *(run for run in (row.last, running) if run is not None)]

    def _ended(self, row: Row) -> None:
        """A row has become terminal."""
        record = row.record
        if record.unique is not None:
            move(row, record.unique.key, self._open_by_unique, self._ended_by_unique)
        id_ = record.id
        self._ring(TASK, id_)
        self._ring(DONE, record.queue)
        if record.status is FAILED:
            self._dead[id_] = row
        else:
            self._finished[id_] = row
        ended_at = record.finished_at or 0.0
        if ended_at < self._latest_end:
            self._in_order = False
        else:
            self._latest_end = ended_at
        if len(self._finished) > self._keep_finished:
            id_, oldest = self._finished.popitem(last=False)
            if id_ in self._watched:
                self._awaited[id_] = oldest
            else:
                self._drop(oldest)

    def _unwatched(self, task_id: str) -> None:
        if (row := self._awaited.pop(task_id, None)) is not None:
            self._drop(row)

    def _among(self, record: TaskRecord) -> OrderedDict[str, Row]:
        """The index that an ended row is in."""
        ended = self._awaited if record.id in self._awaited else self._finished
        return self._dead if record.status is FAILED else ended

    def _forget(self, row: Row) -> None:
        """Delete an ended row and its history."""
        del self._among(row.record)[row.record.id]
        self._drop(row)

    def _drop(self, row: Row) -> None:
        record = row.record
        del self._rows[record.id]
        if record.unique is not None:
            move(row, record.unique.key, self._ended_by_unique, None)
        if len(self._order) > 2 * len(self._rows) + SLACK:
            self._order = self._still_stored(self._order)
        queue = self._queues[record.queue]
        queue.dropped += 1
        if 2 * queue.dropped > len(queue.rows) + SLACK:
            queue.rows, queue.dropped = self._still_stored(queue.rows), 0

    # ---- looking ---------------------------------------------------------

    async def find(
        self,
        where: Where,
        *,
        order: Order = Order.OLDEST,
        limit: int = 100,
        after: str | None = None,
    ) -> Page:
        await self._entered()
        now = self._clock.now()
        found: list[TaskRecord] = []
        if limit <= 0:
            return Page(found, after)
        for row in self._candidates(where, order, None if after is None else place_of(after)):
            if matches(where, row.record, now):
                if len(found) == limit:
                    return Page(found, str(found[-1].seq))
                found.append(copied(row.record))
        return Page(found)

    async def count(
        self,
        where: Where,
        *,
        by: Sequence[Literal["queue", "type", "status"]] = (),
        bound: int | None = None,
    ) -> dict[tuple[str, ...], int]:
        await self._entered()
        names = check_groups(by)
        now = self._clock.now()
        counts: dict[tuple[str, ...], int] = {}
        left = inf if bound is None else bound
        # A bound asks whether there is any. What is open lies mostly at the newest end.
        order = Order.OLDEST if bound is None else Order.NEWEST
        for row in self._candidates(where, order):
            if left <= 0:
                break
            if matches(where, row.record, now):
                group = tuple(group_value(row.record, name, now) for name in names)
                counts[group] = counts.get(group, 0) + 1
                left -= 1
        return counts

    def _candidates(
        self, where: Where, order: Order = Order.OLDEST, after: int | None = None
    ) -> Iterator[Row]:
        """Rows among which all matches are, by order of storing, beyond `after`."""
        rows = self._narrowed(where)
        if order is Order.OLDEST:
            start = 0 if after is None else bisect_right(rows, after, key=by_seq)
            picked = iter(rows[start:] if start else rows)
        else:
            end = len(rows) if after is None else bisect_left(rows, after, key=by_seq)
            picked = (rows[at] for at in range(end - 1, -1, -1))
        stored = (row for row in picked if self._is_stored(row))
        if not only_open(where):
            return stored
        # However many have ended: none of those can match, and the count says when to stop.
        ended = len(self._finished) + len(self._awaited) + len(self._dead)
        return islice((row for row in stored if row.record.status not in ENDED), len(self._rows) - ended)

    def _narrowed(self, where: Where) -> list[Row]:
        """The rows that a condition on ids, statuses or one queue leaves, by seq; all if there is none."""
        parts = where.parts if isinstance(where, All) else (where,)
        rows, at_work = self._order, -1
        for part in parts:
            if isinstance(part, Queues) and len(part.values) == 1:
                [name] = part.values
                queue = self._queues.get(name)
                rows, at_work = ([], 0) if queue is None else (queue.rows, queue.running)
        for part in parts:
            if isinstance(part, Ids):
                named = (self._rows[id_] for id_ in part.values if id_ in self._rows)
                return sorted(named, key=by_seq)
            if isinstance(part, Statuses) and part.values <= {"running"}:
                # Most that run were stored first, and their number says when to stop.
                if at_work < 0:
                    at_work = sum(queue.running for queue in self._queues.values())
                running = (row for row in rows if row.record.status is RUNNING and self._is_stored(row))
                return [*islice(running, at_work)]
            if isinstance(part, Statuses) and part.values <= ENDED:
                ended = [*self._dead.values()] if FAILED in part.values else []
                if not part.values <= {FAILED}:
                    ended += [*self._finished.values(), *self._awaited.values()]
                return sorted(ended, key=by_seq)
        return rows

    def _is_stored(self, row: Row) -> bool:
        """Whether it was not pruned: its successor under the same id is not the same row."""
        return self._rows.get(row.record.id) is row

    def _still_stored(self, rows: Iterable[Row]) -> list[Row]:
        return [row for row in rows if self._rows.get(row.record.id) is row]

    def _rows_of(self, queue: str) -> Iterable[Row]:
        return self._candidates(Queues(queue))

    # ---- by hand ---------------------------------------------------------

    async def alter(
        self, where: Where, change: Change, *, limit: int | None = None, dry_run: bool = False
    ) -> list[str]:
        await self._entered()
        now = self._clock.now()
        for queue in self._queues.values():
            queue.mature(now)
        where = changeable(where, change)
        changed: list[str] = []
        for row in list(self._candidates(where)):
            if limit is not None and len(changed) >= limit:
                break
            if not matches(where, row.record, now):
                continue
            if would_change(change, copied(row.record), now) if dry_run else self._alter(row, change, now):
                changed.append(row.record.id)
        self._ring_queues()
        return changed

    def _alter(self, row: Row, change: Change, now: float) -> bool:
        record = row.record
        if change.action == "patch":
            fields = patched(record, change)
            if fields:
                self._rewrite(row, fields, now)
            return bool(fields)
        if change.action == "cancel":
            return self._cancel(row, now, change.reason)
        queue = self._queues[record.queue]
        if change.action == "hold":
            if record.status is not PENDING:
                return False
            queue.remove(row)
            lifecycle.hold(record)
            queue.step(record.key, now)
            self._ring(DONE, record.queue)
        elif change.action == "resume":
            if not lifecycle.resume(record):
                return False
            queue.add(row, now)
        else:
            ended = self._among(record)
            if not lifecycle.rerun(record, now):
                return False
            del ended[record.id]
            if record.unique is not None:
                move(row, record.unique.key, self._ended_by_unique, self._open_by_unique)
            queue.add(row, now)
        self._touched[record.queue] = None
        return True

    def _cancel(self, row: Row, now: float, reason: str) -> bool:
        """Cancel a waiting or held task, ask a running one to stop; whether anything changed."""
        record = row.record
        queue = self._queues[record.queue]
        if record.status is PENDING:
            queue.remove(row)
        if not lifecycle.cancel(record, now, reason):
            return False
        if record.status is RUNNING:
            self._ring(TopicKind.CONTROL, record.queue)
            return True
        queue.step(record.key, now)
        self._touched[record.queue] = None
        self._ended(row)
        return True

    async def prune(self, spec: PruneSpec, *, dry_run: bool = False) -> int:
        await self._entered()
        now = self._clock.now()
        doomed: list[Row] = []
        for row, beyond in self._prunable(spec, now):
            if len(doomed) >= spec.limit:
                break
            if beyond or (spec.age_s is not None and now - by_end(row) > spec.age_s):
                doomed.append(row)
            elif spec.keep is None:
                break  # by age alone, and the rest is younger
        if not dry_run:
            for row in doomed:
                self._forget(row)
        return len(doomed)

    def _prunable(self, spec: PruneSpec, now: float) -> Iterator[tuple[Row, bool]]:
        """The rows considered, oldest end first, and whether each is beyond the newest to keep."""
        if not self._in_order:
            ended = (self._finished, self._awaited, self._dead)
            self._finished, self._awaited, self._dead = map(in_order_of_end, ended)
            self._in_order = True
        dead = self._dead.values() if spec.dead_letters else ()
        considered = (
            row
            for row in merge(self._awaited.values(), self._finished.values(), dead, key=by_end)
            if matches(spec.where, row.record, now)
        )
        if spec.keep is None:
            return ((row, False) for row in considered)
        rows = list(considered)
        kept: dict[str, int] = {}
        beyond: list[bool] = []
        for row in reversed(rows):
            group = "" if spec.per == "total" else group_value(row.record, spec.per, now)
            kept[group] = kept.get(group, 0) + 1
            beyond.append(kept[group] > spec.keep)
        return zip(rows, reversed(beyond), strict=True)
