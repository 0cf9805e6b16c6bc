"""What changes by hand and clashes do to a row: decided here alike for every storage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, Literal

from dispatch import lifecycle
from dispatch.records import NewTask, TaskRecord
from dispatch.storage.protocol import KEEP, Change
from dispatch.tasks import TaskStatus

__all__ = ["NO_HEADERS", "frozen_headers", "group_value", "later_slot", "patched", "replacement", "would_change"]

NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


def frozen_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """A private copy: what the caller does to its mapping later must not reach the row."""
    return MappingProxyType(dict(headers)) if headers else NO_HEADERS


def replacement(new: NewTask, names: Iterable[str], available_at: float) -> dict[str, object]:
    """The named fields of a new task. A payload goes with its version."""
    fields: dict[str, object] = {name: getattr(new, name) for name in names}
    if "payload" in fields:
        fields["version"] = new.version
    if "headers" in fields:
        fields["headers"] = frozen_headers(new.headers)
    if "available_at" in fields:
        fields["available_at"] = available_at
    return fields


def patched(record: TaskRecord, change: Change) -> dict[str, object]:
    """The fields that a patch would really change; of the ended tasks only dead letters take one."""
    if record.status.is_terminal and record.status is not TaskStatus.FAILED:
        return {}
    given: dict[str, object] = {
        name: value
        for name in ("payload", "version", "headers", "tags", "priority")
        if (value := getattr(change, name)) is not None
    }
    given |= {
        name: value
        for name in ("timeout", "max_retry")
        if (value := getattr(change, name)) is not KEEP
    }
    if change.available_at is not None and record.status in (TaskStatus.PENDING, TaskStatus.HELD):
        given["available_at"] = change.available_at
    if "headers" in given and change.headers is not None:
        given["headers"] = frozen_headers(change.headers)
    return {name: value for name, value in given.items() if getattr(record, name) != value}


def would_change(change: Change, record: TaskRecord, now: float) -> bool:
    """Whether a change would change this copy of a row."""
    match change.action:
        case "patch":
            return bool(patched(record, change))
        case "cancel":
            return lifecycle.cancel(record, now, change.reason)
        case "hold":
            return lifecycle.hold(record)
        case "resume":
            return lifecycle.resume(record)
        case "rerun":
            return lifecycle.rerun(record, now)


def group_value(record: TaskRecord, name: Literal["queue", "type", "status"], now: float) -> str:
    """A record's value for grouping; a pending task that is not due counts as `later`."""
    if name == "queue":
        return record.queue
    if name == "type":
        return record.type
    if record.status is TaskStatus.PENDING and record.available_at > now:
        return "later"
    return record.status.value


def later_slot(one: float | None, other: float | None) -> float | None:
    """The later of two slots of a cron entry; None is before all others."""
    return one if other is None else other if one is None else max(one, other)
