"""Changes by hand, and pruning, in SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from dispatch import lifecycle
from dispatch.records import TaskRecord
from dispatch.storage.changes import changeable, patched, would_change
from dispatch.storage.protocol import Change, TopicKind
from dispatch.storage.query import PruneSpec, Where
from dispatch.storage.sqlite_query import condition, records, sequences
from dispatch.storage.sqlite_rows import success_of
from dispatch.storage.sqlite_schema import Place
from dispatch.storage.sqlite_tasks import SqliteTasks
from dispatch.tasks import TaskStatus

__all__ = ["alter", "prune"]

CHUNK: Final = 500
"""Rows held in memory at a time."""


def alter(
    tasks: SqliteTasks, where: Where, change: Change, now: float, *, limit: int | None, dry_run: bool
) -> list[str]:
    """See `TaskStore.alter`."""
    changed: list[str] = []
    for record in _matching(tasks, changeable(where, change), now):
        if limit is not None and len(changed) >= limit:
            break
        if would_change(change, record, now) if dry_run else _alter(tasks, record, change, now):
            changed.append(record.id)
    return changed


def _matching(tasks: SqliteTasks, where: Where, now: float) -> Iterator[TaskRecord]:
    """The matching rows, oldest first; what is done to one does not bring another in."""
    after: int | None = None
    while True:
        found = sequences(tasks.db, where, now, limit=CHUNK, after=after)
        for seq in found:
            yield from records(tasks.db, "WHERE seq = ?", (seq,))
        if len(found) < CHUNK:
            return
        after = found[-1]


def _alter(tasks: SqliteTasks, record: TaskRecord, change: Change, now: float) -> bool:
    if change.action == "patch":
        fields = patched(record, change)
        if fields:
            tasks.rewrite(record, fields, now)
        return bool(fields)
    if change.action == "cancel":
        return tasks.cancel(record, now, change.reason)
    if change.action == "hold":
        if not lifecycle.hold(record):
            return False
        tasks.save(record, Place.NONE)
        tasks.left(record, now)
        tasks.touched.add((TopicKind.DONE, record.queue))
        return True
    if change.action == "resume":
        if not lifecycle.resume(record):
            return False
    else:
        success = success_of(record)
        if not lifecycle.rerun(record, now):
            return False
        if success is not None:
            tasks.write_attempt(record.seq, success)
    tasks.replace(record, now)
    return True


def prune(tasks: SqliteTasks, spec: PruneSpec, now: float, *, dry_run: bool) -> int:
    """See `TaskStore.prune`."""
    sql, values = condition(spec.where, now)
    considered = f"finished_at IS NOT NULL AND {sql}"
    if not spec.dead_letters:
        considered += f" AND status <> '{TaskStatus.FAILED.value}'"
    doomed: list[str] = []
    given: list[Any] = []
    if spec.age_s is not None:
        # The first term is the index's, a little generous; the second says exactly what is meant.
        doomed.append("finished_at <= ? AND ? - finished_at > ?")
        given += [now - spec.age_s + 0.001, now, spec.age_s]
    source = "dispatch_tasks"
    if spec.keep is not None:
        group = "" if spec.per == "total" else f"PARTITION BY {spec.per} "
        source = (
            f"(SELECT *, row_number() OVER ({group}ORDER BY finished_at DESC, seq DESC) AS nth"
            f" FROM dispatch_tasks WHERE {considered})"
        )
        doomed.append("nth > ?")
        given.append(spec.keep)
        given = [*values, *given]
    else:
        doomed.append(considered)
        given += values
    wanted = f"({') OR ('.join(doomed)})" if spec.keep is not None else f"({') AND ('.join(doomed)})"
    rows = tasks.db.execute(
        f"SELECT seq, id, queue FROM {source} WHERE {wanted} ORDER BY finished_at, seq LIMIT ?",
        [*given, spec.limit],
    ).fetchall()
    if not dry_run:
        gone = [(seq,) for seq, _, _ in rows]
        tasks.db.executemany("DELETE FROM dispatch_attempts WHERE task = ?", gone)
        tasks.db.executemany("DELETE FROM dispatch_tasks WHERE seq = ?", gone)
        for _, id_, queue in rows:
            tasks.ended.append(id_)
            tasks.touched.add((TopicKind.DONE, queue))
    return len(rows)
