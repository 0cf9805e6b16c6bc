"""Tasks and their runs as JSON objects: the shapes that docs/cli.md documents."""

from __future__ import annotations

from typing import Any

import attrs

from dispatch.cli.output import iso
from dispatch.codec import Codec, Undecodable
from dispatch.records import AttemptRecord, TaskRecord
from dispatch.tasks import Priority, TaskStatus

__all__ = ["run_object", "shown_status", "task_line", "task_object"]


def shown_status(record: TaskRecord) -> str:
    """The status, a pending task with attempts behind it being `retrying`."""
    if record.status is TaskStatus.PENDING and record.attempt:
        return TaskStatus.RETRYING.value
    return record.status.value


def _priority(level: int) -> str | int:
    """The level's name; of one that this version does not know, the number."""
    return Priority(level).name.lower() if level in set(Priority) else level


def task_line(record: TaskRecord) -> dict[str, Any]:
    """What every listing says of a task."""
    return {
        "id": record.id,
        "queue": record.queue,
        "type": record.type,
        "status": shown_status(record),
        "attempt": record.attempt,
        "max_retry": record.max_retry if record.max_retry is not None else record.limit,
        "priority": _priority(record.priority),
        "key": record.key,
        "tags": list(record.tags),
        "cron": record.cron,
        "created_at": iso(record.created_at),
        "available_at": iso(record.available_at),
        "started_at": iso(record.started_at),
        "finished_at": iso(record.finished_at),
        "worker": record.worker,
        "last_error": record.last_error,
        "failure_reason": None if record.failure_reason is None else record.failure_reason.value,
    }


def task_object(record: TaskRecord, codec: Codec) -> dict[str, Any]:
    """All of a task, its payload, result and progress as plain data."""
    return task_line(record) | {
        "version": record.version,
        "headers": dict(record.headers),
        "timeout": record.timeout,
        "cancel_reason": record.cancel_reason,
        "payload": _plain(record.payload, codec),
        "result": None if record.result is None else _plain(record.result, codec),
        "progress": None if record.progress is None else _plain(record.progress, codec),
    }


def _plain(data: bytes, codec: Codec) -> object:
    found = codec.decode_plain(data)
    if isinstance(found, Undecodable):
        return {"undecodable": attrs.asdict(found)}
    return found


def run_object(run: AttemptRecord) -> dict[str, Any]:
    """One run of a task's history."""
    return {
        "attempt": run.attempt,
        "epoch": run.epoch,
        "outcome": run.outcome.value,
        "worker": run.worker,
        "started_at": iso(run.started_at),
        "finished_at": iso(run.finished_at),
        "run_s": None if run.finished_at is None else round(run.finished_at - run.started_at, 6),
        "error": run.error,
    }
