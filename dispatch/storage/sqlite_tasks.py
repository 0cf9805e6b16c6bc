"""Tasks in SQLite: each step of a task's life, synchronous, inside a transaction.

Theory of operation. The three steps that every task passes (store, claim,
succeed) are single statements. Everything rarer (failures, rescues, changes by
hand) reads the row, has `dispatch.lifecycle` decide, and writes it back; there
is one writer at a time, so nothing can come between.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from dispatch import lifecycle
from dispatch.lifecycle import SettleAnswer
from dispatch.records import Claim, NewTask, TaskRecord, Transition, TransitionKind
from dispatch.storage.changes import clash_answer, replacement
from dispatch.storage.limits import Rooms, allowance
from dispatch.storage.protocol import (
    Claimed,
    EnqueueAnswer,
    EnqueueResult,
    RenewAnswer,
    SettleResult,
    TopicKind,
    Want,
)
from dispatch.storage.ready import level
from dispatch.storage.sqlite_places import BEHIND, NONE, READY, Lane, Queue, SqlitePlaces
from dispatch.storage.sqlite_query import records
from dispatch.storage.sqlite_rows import headers_of, headers_text, tags_of, tags_text
from dispatch.storage.texts import storable, unique_to_text
from dispatch.tasks import OnClash, TaskStatus

__all__ = ["SqliteTasks"]

LEVELS: Final = (3, 2, 1, 0)

INSERT: Final = (
    "INSERT INTO dispatch_tasks (seq, id, queue, type, payload, version, key, headers, timeout, max_retry,"
    " priority, tags, unique_key, unique_rule, cron, slot, status, created_at, available_at, lane, place)"
    # NULL where the newest row is still there: SQLite then gives the next number.
    " VALUES ((SELECT deleted + 1 FROM dispatch_schema WHERE deleted >= (SELECT coalesce(max(seq), 0) FROM dispatch_tasks)),"
    " ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'pending', ?, ?, ?, ?)"
    " ON CONFLICT (id) DO NOTHING"
)
HEADS: Final = (
    "SELECT available_at, seq FROM dispatch_tasks INDEXED BY dispatch_ready"
    " WHERE lane = ? AND priority = ? AND place = 1 ORDER BY available_at, seq LIMIT ?"
)
TAGGED_HEADS: Final = (
    "SELECT available_at, seq FROM dispatch_tasks INDEXED BY dispatch_tagged"
    " WHERE lane = ? AND tags = ? AND priority = ? AND place = 1 AND tags IS NOT NULL"
    " ORDER BY available_at, seq LIMIT ?"
)
LATER: Final = (
    "SELECT available_at FROM dispatch_tasks INDEXED BY dispatch_ready"
    " WHERE lane = ? AND priority = ? AND place = 1 AND available_at > ? ORDER BY available_at LIMIT 1"
)
DUE: Final = (
    "SELECT count(*) FROM (SELECT 1 FROM dispatch_lanes l CROSS JOIN (VALUES (0), (1), (2), (3)) AS p"
    " CROSS JOIN dispatch_tasks t INDEXED BY dispatch_ready"
    " WHERE l.queue = ? AND t.lane = l.lane AND t.priority = p.column1 AND t.place = 1 AND t.available_at <= ? LIMIT ?)"
)
"""Along the index of claims, which has what is not due yet behind the end of each range."""
DUE_OUT_OF_LINE: Final = (
    "SELECT count(*) FROM (SELECT 1 FROM dispatch_tasks INDEXED BY dispatch_keys"
    " WHERE queue = ? AND key IS NOT NULL AND place > 0 AND place IN (2, 3) AND available_at <= ? LIMIT ?)"
)
TAGS_OF_LANE: Final = (
    "WITH RECURSIVE found (tags) AS ("
    " SELECT min(tags) FROM dispatch_tasks WHERE lane = :lane AND place = 1 AND tags IS NOT NULL"
    " UNION ALL SELECT (SELECT min(tags) FROM dispatch_tasks WHERE lane = :lane AND place = 1"
    " AND tags IS NOT NULL AND tags > found.tags) FROM found WHERE found.tags IS NOT NULL)"
    " SELECT tags FROM found WHERE tags IS NOT NULL"
)
CLAIM: Final = (
    "UPDATE dispatch_tasks SET status = 'running', place = 4, attempt = attempt + 1, epoch = epoch + 1,"
    " worker = ?, started_at = ?, finished_at = NULL, lease_until = ?,"
    " retry_limit = coalesce(max_retry, ?), retry = ?, on_interrupt = ?, progress = NULL WHERE {}"
    " RETURNING seq, id, epoch, queue, type, version, payload, key, headers, priority, tags, timeout,"
    " max_retry, attempt, retry_limit, created_at, available_at, last_error, cron"
)
CLAIM_ONE: Final = CLAIM.format("seq = ?")
CLAIM_MANY: Final = CLAIM.format("seq IN (SELECT value FROM json_each(?))")
SUCCEED: Final = (
    "UPDATE dispatch_tasks SET status = 'succeeded', place = 0, finished_at = ?, lease_until = NULL,"
    " result = ?, last_error = NULL, cancel_reason = NULL"
    " WHERE id = ? AND epoch = ? AND status = 'running' RETURNING queue, key, available_at"
)
EXPIRED: Final = (
    "queue IN (SELECT name FROM dispatch_queues) AND status = 'running' AND lease_until < ?"
)



class SqliteTasks(SqlitePlaces):
    """The steps of a task's life on one connection; the caller holds the write transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
        self._rooms = Rooms()
        self._waiting: dict[str, int] = {}
        """What was counted in the batch that is being stored, and is kept right meanwhile."""

    def forget(self) -> None:
        """Also what was counted: another process has written, or what was counted is undone."""
        super().forget()
        self._rooms = Rooms()
        self._waiting.clear()

    # ---- publishing ------------------------------------------------------

    def enqueue(
        self, tasks: Sequence[NewTask], now: float, *, bounded: bool, by: tuple[str, int] | None
    ) -> list[EnqueueResult]:
        """See `TaskStore.enqueue`."""
        if by is not None and self.fence(*by) is not SettleAnswer.APPLIED:
            return [EnqueueResult(EnqueueAnswer.CLAIM_LOST, new.id) for new in tasks]
        if len(tasks) > 1 and (plain := self._plain_queue(tasks, now, bounded)) is not None:
            return self._store_many(tasks, now, plain)
        self._waiting.clear()
        results = [self.store(new, now, bounded) for new in tasks]
        for name, waiting in self._waiting.items():
            queue = self.queue(name)
            assert queue is not None
            assert queue.max_waiting is not None
            self._rooms.found(name, queue.max_waiting, waiting, now)
        return results

    def _plain_queue(self, tasks: Sequence[NewTask], now: float, bounded: bool) -> Queue | None:
        """The queue of a batch in which no task depends on another stored one."""
        queue = self.queue(tasks[0].queue)
        if queue is None:
            return None
        for new in tasks:
            if new.queue != queue.name or new.unique is not None or (queue.keyed and new.key is not None):
                return None
        return None if bounded and not self._has_room(queue, len(tasks), now) else queue

    def _has_room(self, queue: Queue, count: int, now: float) -> bool:
        """Whether so many more fit by what was counted lately: they have taken their places then."""
        bound = queue.max_waiting
        return bound is None or self._rooms.take({queue.name: bound}, [queue.name] * count, now)

    def _store_many(self, tasks: Sequence[NewTask], now: float, queue: Queue) -> list[EnqueueResult]:
        (last,) = self.db.execute("SELECT max(seq) FROM dispatch_tasks").fetchone()
        due = [_due(new, now) for new in tasks]
        stored = self.db.executemany(
            INSERT, [self._values(new, now, at, READY) for new, at in zip(tasks, due, strict=True)]
        ).rowcount
        self.touched.add((TopicKind.QUEUE, queue.name))
        if stored == len(tasks):
            return [
                EnqueueResult(EnqueueAnswer.CREATED, new.id, now, at)
                for new, at in zip(tasks, due, strict=True)
            ]
        results: list[EnqueueResult] = []
        seen: set[str] = set()
        for new in tasks:
            record = self.load(new.id)
            assert record is not None
            fresh = record.seq > (last or 0) and new.id not in seen
            seen.add(new.id)
            results.append(_known(EnqueueAnswer.CREATED if fresh else EnqueueAnswer.EXISTING, new, record))
        return results

    def store(self, new: NewTask, now: float, bounded: bool = False) -> EnqueueResult:
        """Store one task, or not."""
        queue = self.queue(new.queue)
        if queue is None:
            stored = self.load(new.id)
            if stored is not None:
                return _known(EnqueueAnswer.EXISTING, new, stored)
            return EnqueueResult(EnqueueAnswer.UNKNOWN_QUEUE, new.id)
        available_at = _due(new, now)
        due = available_at <= now
        bounded = bounded and due and (queue.name in self._waiting or not self._has_room(queue, 1, now))
        clashes: list[TaskRecord] = []
        if new.unique is not None or bounded:
            stored = self.load(new.id)
            if stored is not None:
                return _known(EnqueueAnswer.EXISTING, new, stored)
            if new.unique is not None:
                clashes = self._clashes(new, available_at)
                if clashes:
                    self._waiting.clear()  # those that clash may be of other queues
                if clashes and new.unique.on_clash is not OnClash.SUPERSEDE:
                    return self._clash(new, clashes, available_at, now)
            if bounded and self._full(queue, clashes, now):
                return EnqueueResult(EnqueueAnswer.FULL, new.id)
        for clash in clashes:
            self.cancel(clash, now, f"superseded by task {new.id}")
        place = READY
        if queue.keyed and new.key is not None and self.taken(new.queue, new.key):
            place = BEHIND
        if not self.db.execute(INSERT, self._values(new, now, available_at, place)).rowcount:
            stored = self.load(new.id)
            assert stored is not None
            return _known(EnqueueAnswer.EXISTING, new, stored)
        self.touched.add((TopicKind.QUEUE, new.queue))
        if due and queue.name in self._waiting:
            self._waiting[queue.name] += 1
        return EnqueueResult(EnqueueAnswer.CREATED, new.id, now, available_at)

    def _values(self, new: NewTask, now: float, available_at: float, place: int) -> tuple[Any, ...]:
        unique = new.unique
        return (
            new.id,
            new.queue,
            new.type,
            new.payload,
            new.version,
            new.key,
            headers_text(new.headers),
            new.timeout,
            new.max_retry,
            int(new.priority),
            tags_text(new.tags),
            None if unique is None else unique.key,
            unique_to_text(unique),
            new.cron,
            new.slot,
            now,
            available_at,
            self.lane(new.queue, new.type, new.version, bool(new.tags)),
            place,
        )

    def _clashes(self, new: NewTask, available_at: float) -> list[TaskRecord]:
        """The stored tasks that clash, oldest first."""
        unique = new.unique
        assert unique is not None
        if not unique.statuses:  # an IN without members uses no index, which INDEXED BY makes an error
            return []
        statuses = sorted(unique.statuses)
        near, window = "", tuple[float, ...]()
        if unique.within is not None:  # a second wider, and then exactly: floats at its edges round
            near = " AND available_at BETWEEN ? AND ?"
            window = (available_at - unique.within - 1, available_at + unique.within + 1)
        found = records(
            self.db,
            f"INDEXED BY dispatch_unique WHERE unique_key = ? AND status IN ({', '.join('?' * len(statuses))}){near}"
            " ORDER BY seq",
            (unique.key, *statuses, *window),
        )
        return [
            record
            for record in found
            if unique.within is None or abs(record.available_at - available_at) <= unique.within
        ]

    def _clash(
        self, new: NewTask, clashes: list[TaskRecord], available_at: float, now: float
    ) -> EnqueueResult:
        unique = new.unique
        assert unique is not None
        answer, at = clash_answer(new, clashes)
        if answer is EnqueueAnswer.REPLACED:
            self.rewrite(clashes[at], replacement(new, unique.replace, available_at), now)
        return _known(answer, new, clashes[at])

    def _full(self, queue: Queue, superseded: Sequence[TaskRecord], now: float) -> bool:
        """Whether one more due task would put the queue over its bound: a bounded count, once a batch."""
        assert queue.max_waiting is not None
        if not superseded and queue.name in self._waiting:
            return self._waiting[queue.name] >= queue.max_waiting
        leaving = sum(
            record.status is TaskStatus.PENDING
            and record.available_at <= now
            and record.queue == queue.name
            for record in superseded
        )
        bound = queue.max_waiting + leaving
        (waiting,) = self.db.execute(DUE, (queue.name, now, bound)).fetchone()
        if queue.keyed and waiting < bound:
            (out_of_line,) = self.db.execute(DUE_OUT_OF_LINE, (queue.name, now, bound - waiting)).fetchone()
            waiting += out_of_line
        if not superseded:
            self._waiting[queue.name] = waiting
        return bool(waiting >= bound)

    # ---- runs ------------------------------------------------------------

    def claim(self, wants: Sequence[Want], *, worker: str, lease: float | None, now: float) -> Claimed:
        """See `TaskStore.claim`."""
        claims: list[Claim] = []
        next_due: float | None = None
        for want in wants:
            queue = self.queue(want.queue)
            if queue is None or queue.paused:
                continue
            if queue.keyed and queue.on_retry == "yield":
                self.mature(queue, now)
            free, open_at = self._free(queue, want.limit, now)
            chosen, due = self._choose(queue, want, free, now)
            if chosen:
                claims += self._start(chosen, want, worker, lease, now)
                if queue.rate is not None:
                    self._spend(queue, len(chosen), now)
                if queue.max_waiting is not None:
                    self.touched.add((TopicKind.ROOM, queue.name))
            if open_at is not None and len(chosen) == max(free, 0) and (due is None or open_at < due):
                due = open_at
            if due is not None and (next_due is None or due < next_due):
                next_due = due
        return Claimed(claims, next_due)

    def _free(self, queue: Queue, limit: int, now: float) -> tuple[int, float | None]:
        """How many the queue's fleet-wide limits leave of `limit`; and when the rate allows more."""
        if queue.max_running is not None:
            (running,) = self.db.execute(
                "SELECT count(*) FROM (SELECT 1 FROM dispatch_tasks INDEXED BY dispatch_status"
                " WHERE queue = ? AND status = 'running' LIMIT ?)",
                (queue.name, queue.max_running),
            ).fetchone()
            limit = min(limit, queue.max_running - running)
        if queue.rate is None:
            return limit, None
        tokens, since = self.db.execute(
            "SELECT tokens, tokens_at FROM dispatch_queues WHERE name = ?", (queue.name,)
        ).fetchone()
        allowed = allowance(queue.rate, tokens, since, now)
        # A clock that was set back would leave the moment ahead, and the bucket unfilled until then.
        if allowed.tokens != tokens or since > now:
            self.db.execute(
                "UPDATE dispatch_queues SET tokens = ?, tokens_at = ? WHERE name = ?",
                (allowed.tokens, now, queue.name),
            )
        if allowed.claims >= limit:
            return limit, None
        return allowed.claims, allowed.more_at

    def _spend(self, queue: Queue, count: int, now: float) -> None:
        # Also the moment: a bucket that stayed full still has that of its last change, and
        # would be filled once more for all the time since.
        self.db.execute(
            "UPDATE dispatch_queues SET tokens = tokens - ?, tokens_at = ? WHERE name = ?",
            (count, now, queue.name),
        )

    def _choose(
        self, queue: Queue, want: Want, limit: int, now: float
    ) -> tuple[list[int], float | None]:
        """The rows to start, in claim order, and when the next one falls due."""
        lanes = [
            lane
            for lane in self.lanes_of(want.queue)
            if (want.types is None or want.types.get(lane.type, 0) >= lane.version)
            and not (lane.tagged and want.tags is not None and not want.tags)
        ]
        if want.ids is not None:
            return self._choose_named(want, lanes, limit, now)
        found: list[tuple[int, float, int]] = []
        next_due: float | None = None
        rows: list[tuple[float, int]]
        for lane in lanes:
            for statement, prefix in self._ranges(lane, want):
                for priority in LEVELS:
                    rows = self.db.execute(statement, (*prefix, priority, limit + 1)).fetchall()
                    for at, (available_at, seq) in enumerate(rows):
                        if available_at > now:
                            if next_due is None or available_at < next_due:
                                next_due = available_at
                            break
                        if at == limit:
                            next_due = self._later(lane, priority, now, next_due)
                            break
                        found.append((-level(priority, available_at, now, want.ageing), available_at, seq))
        if queue.keyed and queue.on_retry == "yield":
            (aside,) = self.db.execute(
                "SELECT min(available_at) FROM dispatch_tasks INDEXED BY dispatch_aside"
                " WHERE queue = ? AND place = 3",
                (queue.name,),
            ).fetchone()
            if aside is not None and (next_due is None or aside < next_due):
                next_due = aside
        found.sort()
        return [seq for _, _, seq in found[: max(limit, 0)]], next_due

    def _ranges(self, lane: Lane, want: Want) -> list[tuple[str, tuple[Any, ...]]]:
        """The ranges of one lane that the want's tags allow: a statement and how its values begin."""
        if not lane.tagged or want.tags is None:
            return [(HEADS, (lane.number,))]
        texts = [text for (text,) in self.db.execute(TAGS_OF_LANE, {"lane": lane.number})]
        return [
            (TAGGED_HEADS, (lane.number, text)) for text in texts if want.tags.issuperset(tags_of(text))
        ]

    def _later(self, lane: Lane, priority: int, now: float, next_due: float | None) -> float | None:
        row = self.db.execute(LATER, (lane.number, priority, now)).fetchone()
        return next_due if row is None or (next_due is not None and next_due < row[0]) else row[0]

    def _choose_named(
        self, want: Want, lanes: list[Lane], limit: int, now: float
    ) -> tuple[list[int], float | None]:
        numbers = {lane.number for lane in lanes}
        found: list[tuple[int, float, int]] = []
        later: list[float] = []
        for seq, lane, tags, place, priority, available_at, status in self.db.execute(
            "SELECT seq, lane, tags, place, priority, available_at, status FROM dispatch_tasks"
            " WHERE id IN (SELECT value FROM json_each(?)) AND queue = ?",
            (json.dumps(sorted(filter(storable, want.ids or ()))), want.queue),
        ):
            if status == "pending" and available_at > now:
                later.append(available_at)
            elif (
                place == READY
                and lane in numbers
                and (want.tags is None or want.tags.issuperset(tags_of(tags)))
            ):
                found.append((-level(priority, available_at, now, want.ageing), available_at, seq))
        found.sort()
        return [seq for _, _, seq in found[: max(limit, 0)]], min(later, default=None)

    def _start(
        self, chosen: list[int], want: Want, worker: str, lease: float | None, now: float
    ) -> list[Claim]:
        until = None if lease is None else now + lease
        one = len(chosen) == 1
        rows = self.db.execute(
            CLAIM_ONE if one else CLAIM_MANY,
            (
                worker,
                now,
                until,
                want.max_retry,
                want.retry,
                want.on_interrupt,
                chosen[0] if one else json.dumps(chosen),
            ),
        ).fetchall()
        if not one:
            order = {seq: at for at, seq in enumerate(chosen)}
            rows.sort(key=lambda row: order[row[0]])  # RETURNING has no order
        return [_claim(row, want.timeout, now) for row in rows]

    def renew(self, claims: Sequence[tuple[str, int]], *, lease: float | None, now: float) -> list[RenewAnswer]:
        """See `TaskStore.renew`."""
        answers: list[RenewAnswer] = []
        for id_, epoch in claims:
            # max() of a NULL is NULL: a run without a lease stays without.
            row = self.db.execute(
                "UPDATE dispatch_tasks SET lease_until = max(lease_until, coalesce(?, lease_until))"
                " WHERE id = ? AND epoch = ? AND status = 'running' RETURNING cancel_reason",
                (None if lease is None else now + lease, id_, epoch),
            ).fetchone()
            answers.append(RenewAnswer(id_, epoch, row is not None, None if row is None else row[0]))
        return answers

    def fence(self, task_id: str, epoch: int) -> SettleAnswer:
        """Whether a run still holds its task."""
        return lifecycle.fence(self.load(task_id), epoch)

    def settle(self, transitions: Sequence[Transition], now: float) -> list[SettleResult]:
        """See `TaskStore.settle`."""
        return [self._settle(transition, now) for transition in transitions]

    def _settle(self, transition: Transition, now: float) -> SettleResult:
        if transition.kind is TransitionKind.DONE:
            row = self.db.execute(
                SUCCEED, (now, transition.result, transition.id, transition.epoch)
            ).fetchone()
            if row is not None:
                queue, key, available_at = row
                self._over(transition.id, queue, key, now)
                return SettleResult(
                    transition.id,
                    transition.epoch,
                    SettleAnswer.APPLIED,
                    TaskStatus.SUCCEEDED,
                    available_at,
                    spawned=[self.store(new, now) for new in transition.spawn],
                )
        record = self.load(transition.id)
        answer = lifecycle.fence(record, transition.epoch)
        if record is None or answer is not SettleAnswer.APPLIED:
            return SettleResult.refused(transition, answer, record)
        self.write_attempt(record.seq, lifecycle.settle(record, transition, now))
        self.run_ended(record, now)
        result = SettleResult.applied(record)
        result.spawned = [self.store(new, now) for new in transition.spawn]
        return result

    def run_ended(self, record: TaskRecord, now: float) -> None:
        """Write back a row whose run has ended, and let the next of its key step forward."""
        if record.status.is_terminal:
            self.save(record, NONE)
            self._over(record.id, record.queue, record.key, now)
        else:
            self.replace(record, now)
            self._freed(record.queue)

    def _over(self, task_id: str, queue: str, key: str | None, now: float) -> None:
        """A run ended for good."""
        self.ended.append(task_id)
        self.touched.add((TopicKind.DONE, queue))
        self.step(queue, key, now)
        self._freed(queue)

    def _freed(self, name: str) -> None:
        queue = self.queue(name)
        if queue is not None and queue.max_running is not None:
            self.touched.add((TopicKind.QUEUE, name))

    def expired(self, now: float) -> bool:
        """Whether there is anything to rescue."""
        return bool(records(self.db, f"WHERE {EXPIRED} LIMIT 1", (now,)))

    def rescue(self, limit: int, now: float) -> list[TaskRecord]:
        """See `TaskStore.rescue`."""
        rescued = records(
            self.db,
            f"WHERE {EXPIRED} ORDER BY lease_until, seq LIMIT ?",
            (now, limit),
        )
        for record in rescued:
            self.write_attempt(record.seq, lifecycle.rescue(record, now))
            self.run_ended(record, now)
        return rescued

    def progress(self, task_id: str, epoch: int, data: bytes) -> bool:
        """See `TaskStore.progress`."""
        return bool(
            self.db.execute(
                "UPDATE dispatch_tasks SET progress = ? WHERE id = ? AND epoch = ? AND status = 'running'",
                (data, task_id, epoch),
            ).rowcount
        )


def _due(new: NewTask, now: float) -> float:
    if new.available_at is not None:
        return new.available_at
    return round(now + new.delay, 6) if new.delay else now


def _known(answer: EnqueueAnswer, new: NewTask, record: TaskRecord) -> EnqueueResult:
    given = None if answer is EnqueueAnswer.CREATED else record
    return EnqueueResult(answer, new.id, record.created_at, record.available_at, given)


def _claim(row: tuple[Any, ...], timeout: float | None, now: float) -> Claim:
    (_, id_, epoch, queue, type_, version, payload, key, headers, priority, tags, own_timeout) = row[:12]
    (max_retry, attempt, limit, created_at, available_at, last_error, cron) = row[12:]
    return Claim(
        id_,
        epoch,
        queue,
        type_,
        version,
        payload,
        key,
        headers_of(headers),
        priority,
        tags_of(tags),
        timeout if own_timeout is None else own_timeout,
        max_retry,
        attempt,
        limit,
        created_at,
        available_at,
        now,
        last_error,
        cron,
    )
