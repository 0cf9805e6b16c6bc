"""Queues, workers and cron entries in SQLite: each step, synchronous, inside a transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import attrs

from dispatch.records import NewTask
from dispatch.storage.changes import later_slot
from dispatch.storage.protocol import (
    AdvanceAnswer,
    CronRecord,
    EnqueueAnswer,
    Keep,
    PutAnswer,
    QueueRecord,
    RemoveAnswer,
    TopicKind,
    WorkerRecord,
)
from dispatch.storage.sqlite_tasks import SqliteTasks
from dispatch.storage.texts import CronRecords, cron_record, storable, template_to_text

__all__ = ["SqliteRegistry"]

LATELY_S: Final = 60.0
"""A worker not seen for so long is not listed."""
FORGOTTEN_S: Final = 3_600.0
"""A worker not seen for so long is deleted."""


class SqliteRegistry:
    """The records beside the tasks, on the connection of `tasks`."""

    def __init__(self, tasks: SqliteTasks) -> None:
        self._tasks = tasks
        self._db = tasks.db
        self._crons = CronRecords()

    # ---- queues ----------------------------------------------------------

    def declare(self, given: Sequence[QueueRecord], now: float, *, new_only: bool = False) -> None:
        """See `ControlStore.declare`."""
        known = {record.name: record for record in self.queues()}
        for queue in given:
            kept = known.get(queue.name)
            if kept is None:
                record = queue if new_only else attrs.evolve(queue, paused=False, concurrency=None)
            elif new_only:
                continue
            else:
                record = attrs.evolve(queue, paused=kept.paused, concurrency=kept.concurrency)
                if record == kept:
                    continue
            self._db.execute(
                "INSERT INTO dispatch_queues"
                " (name, keyed, on_retry, max_waiting, overflow, max_running, rate, paused, concurrency)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE SET keyed = excluded.keyed, on_retry = excluded.on_retry,"
                " max_waiting = excluded.max_waiting, overflow = excluded.overflow,"
                " max_running = excluded.max_running, rate = excluded.rate",
                (
                    record.name,
                    record.keyed,
                    record.on_retry,
                    record.max_waiting,
                    record.overflow,
                    record.max_running,
                    None if record.rate is None else json.dumps(record.rate),
                    record.paused,
                    record.concurrency,
                ),
            )
            known[queue.name] = record
            self._tasks.forget()
            if kept is not None:
                if (kept.keyed, kept.on_retry) != (record.keyed, record.on_retry):
                    self._tasks.rebuild(record.name, now)
                self._tasks.touched.add((TopicKind.CONTROL, record.name))
                self._tasks.touched.add((TopicKind.ROOM, record.name))
            self._tasks.touched.add((TopicKind.QUEUE, record.name))

    def queues(self) -> list[QueueRecord]:
        """See `ControlStore.queues`."""
        rows = self._db.execute(
            "SELECT name, keyed, on_retry, max_waiting, overflow, max_running, rate, paused, concurrency"
            " FROM dispatch_queues ORDER BY name"
        )
        return [
            QueueRecord(
                name=name,
                keyed=bool(keyed),
                on_retry=on_retry,
                max_waiting=max_waiting,
                overflow=overflow,
                max_running=max_running,
                rate=None if rate is None else tuple(json.loads(rate)),
                paused=bool(paused),
                concurrency=concurrency,
            )
            for name, keyed, on_retry, max_waiting, overflow, max_running, rate, paused, concurrency in rows
        ]

    def alter_queue(self, name: str, paused: bool | None, concurrency: int | Keep | None) -> bool:
        """See `ControlStore.alter_queue`."""
        if not storable(name):
            return False
        changes: dict[str, Any] = {}
        if paused is not None:
            changes["paused"] = paused
        if not isinstance(concurrency, Keep):
            changes["concurrency"] = concurrency
        if changes:
            columns = ", ".join(f"{column} = ?" for column in changes)
            self._db.execute(
                f"UPDATE dispatch_queues SET {columns} WHERE name = ?",
                (*changes.values(), name),
            )
            self._tasks.forget()
        if self._tasks.queue(name) is None:
            return False
        self._tasks.touched |= {(TopicKind.CONTROL, name), (TopicKind.QUEUE, name)}
        return True

    def remove_queue(self, name: str) -> RemoveAnswer:
        """See `ControlStore.remove_queue`."""
        if not storable(name) or self._tasks.queue(name) is None:
            return RemoveAnswer.UNKNOWN
        if self._db.execute("SELECT 1 FROM dispatch_tasks WHERE queue = ? LIMIT 1", (name,)).fetchone():
            return RemoveAnswer.STORED
        self._db.execute("DELETE FROM dispatch_queues WHERE name = ?", (name,))
        self._db.execute("DELETE FROM dispatch_lanes WHERE queue = ?", (name,))
        self._tasks.forget()
        self._tasks.touched |= {(TopicKind.CONTROL, name), (TopicKind.ROOM, name)}
        return RemoveAnswer.REMOVED

    # ---- workers ---------------------------------------------------------

    def beat(self, worker: WorkerRecord, now: float) -> None:
        """See `ControlStore.beat`."""
        self._db.execute("DELETE FROM dispatch_workers WHERE seen_at < ?", (now - FORGOTTEN_S,))
        self._db.execute(
            "INSERT OR REPLACE INTO dispatch_workers VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                worker.id,
                worker.host,
                worker.pid,
                worker.started_at,
                now,
                json.dumps(worker.queues),
                json.dumps(worker.running),
            ),
        )

    def workers(self, now: float) -> list[WorkerRecord]:
        """See `ControlStore.workers`: those seen within a minute."""
        rows = self._db.execute(
            "SELECT id, host, pid, started_at, seen_at, queues, running FROM dispatch_workers"
            " WHERE seen_at >= ? ORDER BY id",
            (now - LATELY_S,),
        )
        return [
            WorkerRecord(
                id=id_,
                host=host,
                pid=pid,
                started_at=started_at,
                seen_at=seen_at,
                queues=tuple(json.loads(queues)),
                running=tuple(json.loads(running)),
            )
            for id_, host, pid, started_at, seen_at, queues, running in rows
        ]

    def forget(self, worker: str) -> None:
        """See `ControlStore.forget`."""
        if not storable(worker):
            return
        self._db.execute("DELETE FROM dispatch_workers WHERE id = ?", (worker,))

    # ---- cron entries ----------------------------------------------------

    def put_cron(self, entry: CronRecord, now: float, *, replace: bool) -> PutAnswer:
        """See `CronStore.put_cron`."""
        found = self.crons(entry.name)
        if not found:
            self._write(attrs.evolve(entry, created_at=entry.created_at or now, seen_at=now))
            return PutAnswer.CREATED
        (known,) = found
        if known.definition == entry.definition and known.template == entry.template:
            self._db.execute("UPDATE dispatch_crons SET seen_at = ? WHERE name = ?", (now, entry.name))
            return PutAnswer.SAME
        if not replace:
            return PutAnswer.CONFLICT
        self._write(
            attrs.evolve(
                entry,
                last_slot=later_slot(known.last_slot, entry.last_slot),
                paused_reason=known.paused_reason,
                total=known.total,
                created_at=known.created_at,
                seen_at=now,
            )
        )
        return PutAnswer.REPLACED

    def _write(self, entry: CronRecord) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO dispatch_crons"
            " (name, definition, template, declared, paused_reason, last_slot, next_slot, total,"
            " created_at, seen_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                entry.name,
                entry.definition,
                template_to_text(entry.template),
                entry.declared,
                entry.paused_reason,
                entry.last_slot,
                entry.next_slot,
                entry.total,
                entry.created_at,
                entry.seen_at,
            ),
        )
        self._tasks.touched.add((TopicKind.CRON, ""))

    def crons(self, name: str | None = None) -> list[CronRecord]:
        """See `CronStore.crons`."""
        if name is not None and not storable(name):
            return []
        # Not `? IS NULL OR name = ?`, which looks at every entry to find one.
        where, values = ("ORDER BY name", ()) if name is None else ("WHERE name = ?", (name,))
        rows = self._db.execute(
            "SELECT name, definition, template, declared, paused_reason, last_slot, next_slot, total,"
            f" created_at, seen_at FROM dispatch_crons {where}",
            values,
        )
        if name is not None:
            # Not remembered: who asks by name may never ask for all, which forgets.
            return [cron_record(*row) for row in rows]
        records = [self._crons.record(row) for row in rows]
        self._crons.only(records)
        return records

    def alter_cron(
        self, name: str, paused_reason: str | None, last_slot: float | None, next_slot: float | None
    ) -> bool:
        """See `CronStore.alter_cron`."""
        if not storable(name):
            return False
        if last_slot is not None:
            # A scalar max() with a NULL is NULL.
            self._db.execute(
                "UPDATE dispatch_crons SET last_slot = max(coalesce(last_slot, ?), ?), next_slot = ?"
                " WHERE name = ?",
                (last_slot, last_slot, next_slot, name),
            )
        return self._changed(
            "UPDATE dispatch_crons SET paused_reason = ? WHERE name = ?", (paused_reason, name)
        )

    def remove_cron(self, name: str) -> bool:
        """See `CronStore.remove_cron`."""
        if not storable(name):
            return False
        return self._changed("DELETE FROM dispatch_crons WHERE name = ?", (name,))

    def _changed(self, sql: str, values: tuple[Any, ...]) -> bool:
        if not self._db.execute(sql, values).rowcount:
            return False
        self._tasks.touched.add((TopicKind.CRON, ""))
        return True

    def advance_cron(
        self,
        name: str,
        now: float,
        *,
        expected: float | None,
        last_slot: float,
        next_slot: float | None,
        tasks: Sequence[NewTask],
        definition: str | None,
    ) -> AdvanceAnswer:
        """See `CronStore.advance_cron`."""
        found = self.crons(name)
        if not found:
            return AdvanceAnswer.GONE
        (entry,) = found
        if entry.paused_reason is not None:
            return AdvanceAnswer.PAUSED
        if entry.last_slot != expected or definition not in (None, entry.definition):
            return AdvanceAnswer.MOVED
        answers = [self._tasks.store(new, now).answer for new in tasks]
        stored = answers.count(EnqueueAnswer.CREATED)
        self._db.execute(
            "UPDATE dispatch_crons SET last_slot = ?, next_slot = ?, total = total + ? WHERE name = ?",
            (last_slot, next_slot, stored, name),
        )
        return AdvanceAnswer.ADVANCED if stored == len(answers) else AdvanceAnswer.REFUSED
