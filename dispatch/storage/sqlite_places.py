"""Single rows in SQLite: written back, put where claims see them or not, and what they belong to.

`touched` gathers what bells are to be rung for. Lanes and queues are remembered
as long as `PRAGMA data_version` says that no other connection has written.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Final, NamedTuple

from dispatch import lifecycle
from dispatch.records import AttemptRecord, TaskRecord
from dispatch.storage.protocol import TopicKind
from dispatch.storage.sqlite_query import records
from dispatch.storage.sqlite_rows import headers_text, tags_text
from dispatch.storage.sqlite_schema import Place
from dispatch.tasks import TaskStatus

__all__ = ["Lane", "Queue", "SqlitePlaces"]

HISTORY_LIMIT: Final = 1_000
"""Runs kept per task; of a longer history the oldest go."""
NONE, READY, BEHIND, ASIDE, RUNNING = (int(place) for place in Place)

SAVE: Final = (
    "UPDATE dispatch_tasks SET type = ?, payload = ?, version = ?, headers = ?, timeout = ?, max_retry = ?,"
    " priority = ?, tags = ?, status = ?, attempt = ?, epoch = ?, available_at = ?, started_at = ?,"
    " finished_at = ?, worker = ?, lease_until = ?, retry_limit = ?, retry = ?, on_interrupt = ?,"
    " cancel_reason = ?, last_error = ?, failure_reason = ?, result = ?, progress = ?, key = ?,"
    " lane = ?, place = ? WHERE seq = ?"
)


class Queue(NamedTuple):
    """What steps need to know of a declared queue."""

    name: str
    keyed: bool
    on_retry: str
    max_waiting: int | None
    max_running: int | None
    rate: tuple[int, float] | None
    paused: bool


class Lane(NamedTuple):
    """One kind of tasks of a queue."""

    number: int
    type: str
    version: int
    tagged: bool


class SqlitePlaces:
    """The rows on one connection; the caller holds the write transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.db = connection
        self.touched: set[tuple[TopicKind, str]] = set()
        self.ended: list[str] = []
        """The ids of the tasks that became terminal."""
        self._queues: dict[str, Queue | None] = {}
        self._lanes: dict[str, list[Lane]] = {}
        self._version = -1

    def begin(self) -> None:
        """A transaction has begun: forget what another connection may have changed."""
        self.touched.clear()
        self.ended.clear()
        (version,) = self.db.execute("PRAGMA data_version").fetchone()
        if version != self._version:
            self.forget()
            self._version = version

    def forget(self) -> None:
        """Forget what is remembered of queues and lanes: after a rollback, or a declaration."""
        self._queues.clear()
        self._lanes.clear()

    # ---- single rows -----------------------------------------------------

    def load(self, task_id: str) -> TaskRecord | None:
        """A task, whole."""
        found = records(self.db, "WHERE id = ?", (task_id,))
        return found[0] if found else None

    def save(self, record: TaskRecord, place: int) -> None:
        """Write a task back, all that can change of it."""
        self.db.execute(
            SAVE,
            (
                record.type,
                record.payload,
                record.version,
                headers_text(record.headers),
                record.timeout,
                record.max_retry,
                int(record.priority),
                tags_text(record.tags),
                record.status.value,
                record.attempt,
                record.epoch,
                record.available_at,
                record.started_at,
                record.finished_at,
                record.worker,
                record.lease_until,
                record.limit,
                record.retry,
                record.on_interrupt,
                record.cancel_reason,
                record.last_error,
                None if record.failure_reason is None else record.failure_reason.value,
                record.result,
                record.progress,
                record.key,
                self.lane(record.queue, record.type, record.version, bool(record.tags)),
                place,
                record.seq,
            ),
        )

    def rewrite(self, record: TaskRecord, fields: Mapping[str, object], now: float) -> None:
        """Write fields that are not state, and find a pending row's place anew."""
        for name, value in fields.items():
            setattr(record, name, value)
        if "unique" in fields:  # which is not written otherwise, and can only end
            self.db.execute("UPDATE dispatch_tasks SET unique_key = NULL, unique_rule = NULL WHERE seq = ?", (record.seq,))
        if record.status is TaskStatus.PENDING:
            self.replace(record, now)
        else:
            self.save(record, RUNNING if record.status is TaskStatus.RUNNING else NONE)

    def replace(self, record: TaskRecord, now: float) -> None:
        """Write back a row that is pending (again), and find its place."""
        queue = self.queue(record.queue)
        if queue is None or not queue.keyed or record.key is None:
            self.save(record, READY)
        else:
            yields = queue.on_retry == "yield" and record.epoch > 0 and record.available_at > now
            self.save(record, ASIDE if yields else BEHIND)
            self._promote(record.queue, record.key)
        self.touched.add((TopicKind.QUEUE, record.queue))
        if queue is not None and queue.max_waiting is not None:
            self.touched.add((TopicKind.ROOM, record.queue))

    def cancel(self, record: TaskRecord, now: float, reason: str) -> bool:
        """Cancel a waiting or held task, ask a running one to stop; whether anything changed."""
        if not lifecycle.cancel(record, now, reason):
            return False
        if record.status is TaskStatus.RUNNING:
            self.save(record, RUNNING)
            self.touched.add((TopicKind.CONTROL, record.queue))
            return True
        self.save(record, NONE)
        self.left(record, now)
        self.ended.append(record.id)
        self.touched.add((TopicKind.DONE, record.queue))
        return True

    def left(self, record: TaskRecord, now: float) -> None:
        """A waiting task waits no more: there is room, and the next of its key steps forward."""
        self.step(record.queue, record.key, now)
        self.touched.add((TopicKind.QUEUE, record.queue))
        queue = self.queue(record.queue)
        if queue is not None and queue.max_waiting is not None:
            self.touched.add((TopicKind.ROOM, record.queue))

    def write_attempt(self, seq: int, run: AttemptRecord) -> None:
        """Keep an ended run in the history."""
        self.db.execute(
            "INSERT OR REPLACE INTO dispatch_attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                seq,
                run.epoch,
                run.attempt,
                run.worker,
                run.started_at,
                run.finished_at,
                run.outcome.value,
                run.error,
            ),
        )
        if run.epoch > HISTORY_LIMIT:  # a task that snoozes for ever
            self.db.execute(
                "DELETE FROM dispatch_attempts WHERE task = ? AND epoch NOT IN"
                " (SELECT epoch FROM dispatch_attempts WHERE task = ? ORDER BY epoch DESC LIMIT ?)",
                (seq, seq, HISTORY_LIMIT),
            )

    # ---- keys ------------------------------------------------------------

    def step(self, name: str, key: str | None, now: float) -> None:
        """Let the next of a key step forward, if it is a keyed queue's."""
        if key is None:
            return
        queue = self.queue(name)
        if queue is not None and queue.keyed:
            self._promote(name, key)
            self.touched.add((TopicKind.QUEUE, name))

    def taken(self, queue: str, key: str) -> bool:
        """Whether a task of this key runs, or waits in line."""
        return (
            self.db.execute(
                "SELECT 1 FROM dispatch_tasks INDEXED BY dispatch_keys"
                " WHERE queue = ? AND key = ? AND place IN (1, 2, 4) AND place > 0 LIMIT 1",
                (queue, key),
            ).fetchone()
            is not None
        )

    def _promote(self, queue: str, key: str) -> None:
        """Make the first in line READY and nobody else, unless one of the key runs."""
        first = (
            "SELECT min(seq) FROM dispatch_tasks INDEXED BY dispatch_keys"
            " WHERE queue = ? AND key = ? AND place = ? AND place > 0"
        )
        (running,) = self.db.execute(first, (queue, key, RUNNING)).fetchone()
        (ready,) = self.db.execute(first, (queue, key, READY)).fetchone()
        head = None
        if running is None:
            (behind,) = self.db.execute(first, (queue, key, BEHIND)).fetchone()
            head = min((seq for seq in (ready, behind) if seq is not None), default=None)
        if ready is not None and ready != head:
            self._put(ready, BEHIND)
        if head is not None and head != ready:
            self._put(head, READY)

    def _put(self, seq: int, place: int) -> None:
        self.db.execute("UPDATE dispatch_tasks SET place = ? WHERE seq = ?", (place, seq))

    def mature(self, queue: Queue, now: float) -> None:
        """Retries that stepped aside and are due take their place in line again."""
        due = self.db.execute(
            "SELECT seq, key FROM dispatch_tasks INDEXED BY dispatch_aside"
            " WHERE queue = ? AND place = 3 AND available_at <= ?",
            (queue.name, now),
        ).fetchall()
        for seq, key in due:
            self._put(seq, BEHIND)
            self._promote(queue.name, key)

    def rebuild(self, name: str, now: float) -> None:
        """Find every place of a queue anew: it was declared keyed, or not so any more."""
        self.forget()
        queue = self.queue(name)
        assert queue is not None
        yields = queue.keyed and queue.on_retry == "yield"
        self.db.execute(
            "UPDATE dispatch_tasks SET place = CASE WHEN NOT :keyed OR key IS NULL THEN 1"
            " WHEN :yields AND epoch > 0 AND available_at > :now THEN 3 ELSE 2 END"
            " WHERE queue = :queue AND status = 'pending'",
            {"keyed": queue.keyed, "yields": yields, "now": now, "queue": name},
        )
        if queue.keyed:
            keys = self.db.execute(
                "SELECT DISTINCT key FROM dispatch_tasks INDEXED BY dispatch_keys"
                " WHERE queue = ? AND place > 0 AND key IS NOT NULL",
                (name,),
            ).fetchall()
            for (key,) in keys:
                self._promote(name, key)
        self.touched.add((TopicKind.QUEUE, name))

    # ---- queues and lanes ------------------------------------------------

    def queue(self, name: str) -> Queue | None:
        """What is declared of a queue; None if nothing is."""
        if name not in self._queues:
            row = self.db.execute(
                "SELECT keyed, on_retry, max_waiting, max_running, rate, paused"
                " FROM dispatch_queues WHERE name = ?",
                (name,),
            ).fetchone()
            if row is None:
                return None
            keyed, on_retry, max_waiting, max_running, rate, paused = row
            self._queues[name] = Queue(
                name,
                bool(keyed),
                on_retry,
                max_waiting,
                max_running,
                None if rate is None else tuple(json.loads(rate)),
                bool(paused),
            )
        return self._queues[name]

    def lanes_of(self, queue: str) -> list[Lane]:
        lanes = self._lanes.get(queue)
        if lanes is None:
            lanes = self._lanes[queue] = [
                Lane(number, type_, version, bool(tagged))
                for number, type_, version, tagged in self.db.execute(
                    "SELECT lane, type, version, tagged FROM dispatch_lanes WHERE queue = ?", (queue,)
                )
            ]
        return lanes

    def lane(self, queue: str, type_: str, version: int, tagged: bool) -> int:
        for lane in self.lanes_of(queue):
            if lane.type == type_ and lane.version == version and lane.tagged == tagged:
                return lane.number
        (number,) = self.db.execute(
            "INSERT INTO dispatch_lanes (queue, type, version, tagged) VALUES (?, ?, ?, ?) RETURNING lane",
            (queue, type_, version, tagged),
        ).fetchone()
        self._lanes[queue].append(Lane(number, type_, version, tagged))
        return int(number)
