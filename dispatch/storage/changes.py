"""What changes by hand and clashes do to a row: decided here alike for every storage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Literal

from dispatch import lifecycle
from dispatch.lifecycle import TABLE, Event
from dispatch.records import NewTask, TaskRecord
from dispatch.storage.protocol import KEEP, Change, EnqueueAnswer
from dispatch.storage.query import All, Ids, Statuses, Where
from dispatch.tasks import OnClash, TaskStatus

__all__ = [
    "NO_HEADERS",
    "changeable",
    "clash_answer",
    "frozen_headers",
    "group_value",
    "later_slot",
    "patched",
    "replacement",
    "would_change",
]

NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
CHANGEABLE: Final = {
    "patch": frozenset({TaskStatus.PENDING, TaskStatus.HELD, TaskStatus.RUNNING, TaskStatus.FAILED}),
    "rerun": TABLE[Event.RERUN].source,
    "cancel": TABLE[Event.CANCEL].source | TABLE[Event.ASK_CANCEL].source,
    "hold": TABLE[Event.HOLD].source,
    "resume": TABLE[Event.RESUME].source,
}
"""The statuses in which an action may change anything at all."""


def frozen_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """A private copy: what the caller does to its mapping later must not reach the row."""
    return MappingProxyType(dict(headers)) if headers else NO_HEADERS


def clash_answer(new: NewTask, clashes: Sequence[TaskRecord]) -> tuple[EnqueueAnswer, int]:
    """What a task that clashes with these, oldest first, is answered with, and the place of the one it is about.

    SUPERSEDE aside, which stores it. A payload is only ever written into a task of its own type:
    under a uniqueness wider than the type, one handler would be given the other's work.
    """
    unique = new.unique
    assert unique is not None
    if unique.on_clash is OnClash.REJECT:
        return EnqueueAnswer.REJECTED, 0
    if unique.on_clash is OnClash.REPLACE:
        open_ones = [at for at, record in enumerate(clashes) if record.status in unique.replace_in]
        for at in open_ones:
            if "payload" not in unique.replace or (clashes[at].queue, clashes[at].type) == (new.queue, new.type):
                return EnqueueAnswer.REPLACED, at
        if open_ones:
            return EnqueueAnswer.REJECTED, open_ones[0]
    return EnqueueAnswer.EXISTING, 0


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


def changeable(where: Where, change: Change) -> Where:
    """The tree for a change by hand, without what that cannot change: most tasks have ended.

    A row that is only looked at is locked on PostgreSQL, and a run whose row is locked for
    long would lose its lease. Named ids stay as they are: they are few, and found by themselves.
    """
    parts = where.parts if isinstance(where, All) else (where,)
    if any(isinstance(part, Ids) for part in parts):
        return where
    return All(*parts, Statuses(*CHANGEABLE[change.action]))


def patched(record: TaskRecord, change: Change) -> dict[str, object]:
    """The fields that a patch would really change; of the ended tasks only dead letters take one.

    With its payload goes the uniqueness that is of that payload: kept, it would swallow
    the old one's next publishing. None stands for it, and the row's key goes with it.
    """
    if record.status not in CHANGEABLE["patch"]:
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
    changed = {name: value for name, value in given.items() if getattr(record, name) != value}
    if "payload" in changed and record.unique is not None and record.unique.by_payload:
        changed["unique"] = None
    return changed


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
