"""Changes by hand, and pruning, in SQLite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    if spec.keep is not None and spec.per != "total":
        found, given = _beyond_of_each(spec, now, considered, values)
    else:
        found, given = _oldest(tasks, spec, now, considered, values)
    rows = tasks.db.execute(f"{found} ORDER BY finished_at, seq LIMIT ?", [*given, spec.limit]).fetchall()
    if rows and not dry_run:
        gone = [(seq,) for seq, _, _ in rows]
        tasks.db.executemany("DELETE FROM dispatch_attempts WHERE task = ?", gone)
        tasks.db.executemany("DELETE FROM dispatch_tasks WHERE seq = ?", gone)
        tasks.db.execute("UPDATE dispatch_schema SET deleted = max(deleted, ?)", max(gone))
        for _, id_, queue in rows:
            tasks.ended.append(id_)
            tasks.touched.add((TopicKind.DONE, queue))
    return len(rows)


def _oldest(
    tasks: SqliteTasks, spec: PruneSpec, now: float, considered: str, values: Sequence[Any]
) -> tuple[str, list[Any]]:
    """A query along the index of what has ended, as far as the last that is to go."""
    doomed: list[str] = []
    given: list[Any] = []
    until: list[float] = []
    if spec.age_s is not None:
        doomed.append("? - finished_at > ?")
        given += [now, spec.age_s]
        until.append(now - spec.age_s + 0.001)  # a little generous; the condition says exactly what is meant
    if spec.keep is not None:
        last = tasks.db.execute(
            f"SELECT finished_at, seq FROM dispatch_tasks WHERE {considered}"
            " ORDER BY finished_at DESC, seq DESC LIMIT 1 OFFSET ?",
            [*values, spec.keep],
        ).fetchone()
        if last is not None:
            doomed.append("(finished_at, seq) <= (?, ?)")
            given += last
            until.append(last[0])
    return (
        f"SELECT seq, id, queue FROM dispatch_tasks WHERE {considered} AND finished_at <= ?"
        f" AND ({' OR '.join(doomed) or 'FALSE'})",
        [*values, max(until, default=0.0), *given],
    )


def _beyond_of_each(
    spec: PruneSpec, now: float, considered: str, values: Sequence[Any]
) -> tuple[str, list[Any]]:
    """A query that numbers all that has ended, per queue or type."""
    assert spec.per in ("queue", "type")
    aged = "" if spec.age_s is None else " OR ? - finished_at > ?"
    return (
        "SELECT seq, id, queue FROM (SELECT seq, id, queue, finished_at,"
        f" row_number() OVER (PARTITION BY {spec.per} ORDER BY finished_at DESC, seq DESC) AS nth"
        f" FROM dispatch_tasks WHERE {considered}) WHERE (nth > ?{aged})",
        [*values, spec.keep, *(() if spec.age_s is None else (now, spec.age_s))],
    )
