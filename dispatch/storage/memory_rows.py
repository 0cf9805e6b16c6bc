"""The rows of the storage in memory: their order, their copies, and their places in an index."""

from __future__ import annotations

from collections import OrderedDict
from operator import attrgetter
from typing import Final

import attrs

from dispatch.records import NewTask, TaskRecord
from dispatch.storage.protocol import EnqueueAnswer, EnqueueResult
from dispatch.storage.ready import Row
from dispatch.tasks import TaskStatus

__all__ = ["Index", "by_end", "by_seq", "copied", "in_order_of_end", "is_leased", "known", "move"]

Index = dict[str, dict[str, Row]]
"""Rows by unique key and id."""
FIELDS: Final = tuple(field.name for field in attrs.fields(TaskRecord))
_fields = attrgetter(*FIELDS)


def copied(record: TaskRecord) -> TaskRecord:
    """A record of the same values: as `copy.copy` gives it, in a quarter of the time."""
    return TaskRecord(**dict(zip(FIELDS, _fields(record), strict=True)))


def by_seq(row: Row) -> int:
    """Orders rows as they were stored."""
    return row.record.seq


def by_end(row: Row) -> float:
    """Orders rows as they ended."""
    return row.record.finished_at or 0.0


def in_order_of_end(rows: OrderedDict[str, Row]) -> OrderedDict[str, Row]:
    """The same rows, oldest end first."""
    return OrderedDict((row.record.id, row) for row in sorted(rows.values(), key=by_end))


def is_leased(entry: tuple[float, int, int, Row]) -> bool:
    """Whether the run of an entry among the leases still goes on."""
    record = entry[3].record
    return record.status is TaskStatus.RUNNING and record.epoch == entry[2]


def known(answer: EnqueueAnswer, new: NewTask, row: Row) -> EnqueueResult:
    """The answer to a new task for which a stored one stands."""
    record = copied(row.record)
    return EnqueueResult(answer, new.id, record.created_at, record.available_at, record)


def move(row: Row, key: str, source: Index, target: Index | None) -> None:
    """Move a row from one index by unique key to another, or out of it."""
    record = row.record
    del source[key][record.id]
    if not source[key]:
        del source[key]
    if target is not None:
        target.setdefault(key, {})[record.id] = row
