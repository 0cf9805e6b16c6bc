"""A row of `dispatch_tasks` and the `TaskRecord` it stands for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from dispatch.records import AttemptOutcome, AttemptRecord, TaskRecord
from dispatch.storage.changes import NO_HEADERS
from dispatch.storage.texts import unique_from_text, unreadable
from dispatch.tasks import FailureReason, TaskStatus

__all__ = [
    "COLUMNS",
    "attempt_of",
    "headers_of",
    "headers_text",
    "record_of",
    "success_of",
    "tags_of",
    "tags_text",
]

COLUMNS: Final = (
    "id, queue, type, payload, version, key, headers, timeout, max_retry, priority, tags, unique_rule,"
    " cron, slot, seq, status, attempt, epoch, created_at, available_at, started_at, finished_at,"
    " worker, lease_until, retry_limit, retry, on_interrupt, cancel_reason, last_error,"
    " failure_reason, result, progress"
)
"""What `record_of` reads, in the order of a `TaskRecord`'s fields."""


def record_of(row: tuple[Any, ...]) -> TaskRecord:
    """The record that a row of `COLUMNS` stands for. Raises StorageError for one that cannot be read."""
    try:
        return _record_of(row)
    except Exception as exc:
        raise unreadable(row[0], exc) from exc


def _record_of(row: tuple[Any, ...]) -> TaskRecord:
    (id_, queue, type_, payload, version, key, headers, timeout, max_retry, priority, tags) = row[:11]
    (unique, cron, slot, seq, status, attempt, epoch, created_at, available_at) = row[11:20]
    (started_at, finished_at, worker, lease_until, limit, retry, on_interrupt) = row[20:27]
    (cancel_reason, last_error, failure_reason, result, progress) = row[27:]
    return TaskRecord(
        id=id_,
        queue=queue,
        type=type_,
        payload=payload,
        version=version,
        key=key,
        headers=headers_of(headers),
        timeout=timeout,
        max_retry=max_retry,
        priority=priority,
        tags=tags_of(tags),
        unique=unique_from_text(unique),
        cron=cron,
        slot=slot,
        seq=seq,
        status=TaskStatus(status),
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


def headers_text(headers: Mapping[str, str]) -> str | None:
    """Headers as stored: None where there are none, which is nearly always."""
    return json.dumps(dict(headers), ensure_ascii=False) if headers else None


def headers_of(text: str | None) -> Mapping[str, str]:
    """The reverse of `headers_text`."""
    return json.loads(text) if text else NO_HEADERS


def tags_text(tags: tuple[str, ...]) -> str | None:
    """Tags as stored, in the order given."""
    return json.dumps(tags, ensure_ascii=False) if tags else None


@lru_cache(maxsize=1_024)
def tags_of(text: str | None) -> tuple[str, ...]:
    """The reverse of `tags_text`."""
    return tuple(json.loads(text)) if text else ()


def attempt_of(task_id: str, row: tuple[Any, ...]) -> AttemptRecord:
    """A row of `dispatch_attempts`, without its task, as a record."""
    epoch, attempt, worker, started_at, finished_at, outcome, error = row
    return AttemptRecord(
        task_id, epoch, attempt, worker, started_at, finished_at, AttemptOutcome(outcome), error
    )


def success_of(record: TaskRecord) -> AttemptRecord | None:
    """The run that a succeeded task's row tells of; None for any other task."""
    if record.status is not TaskStatus.SUCCEEDED:
        return None
    return AttemptRecord(
        record.id,
        record.epoch,
        record.attempt,
        record.worker,
        record.created_at if record.started_at is None else record.started_at,
        record.finished_at,
        AttemptOutcome.SUCCEEDED,
    )
