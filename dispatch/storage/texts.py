"""How values that databases keep as text are written and read, and what is said of a row that cannot be.

Unique keys, and cron entries with their templates.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable
from typing import Any, cast

import attrs

from dispatch.errors import StorageError
from dispatch.records import NewTask, UniqueKey
from dispatch.storage.protocol import CronRecord
from dispatch.tasks import OnClash, TaskStatus

__all__ = [
    "CronRecords",
    "cron_record",
    "storable",
    "template_from_text",
    "template_to_text",
    "unique_from_text",
    "unique_to_text",
    "unreadable",
    "unreadable_cron",
]


def unreadable(task_id: object, exc: Exception) -> StorageError:
    """The error of a task's row that holds what this version does not know."""
    return StorageError(
        f"the row of task {task_id} cannot be read ({type(exc).__name__}: {exc}): another program wrote it, or a "
        "later version of this one; upgrade, or mend the row"
    )


def storable(text: str) -> bool:
    """Whether a database can hold the text at all: if not, no row has it, and asking would fail or err."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def unique_to_text(unique: UniqueKey | None) -> str | None:
    """A task's uniqueness as JSON; the same value always gives the same text."""
    return None if unique is None else _dumps(_unique(unique))


def unique_from_text(text: str | None) -> UniqueKey | None:
    """The reverse of `unique_to_text`."""
    return None if text is None else _unique_of(json.loads(text))


def template_to_text(template: NewTask) -> str:
    """A task to be published by a cron entry as JSON; the same value gives the same text."""
    fields = {field.name: getattr(template, field.name) for field in attrs.fields(NewTask)}
    fields["payload"] = b64encode(template.payload).decode()
    fields["headers"] = dict(template.headers)
    fields["unique"] = None if template.unique is None else _unique(template.unique)
    return _dumps(fields)


def template_from_text(text: str) -> NewTask:
    """The reverse of `template_to_text`; fields of a later version are left out."""
    known = {field.name for field in attrs.fields(NewTask)}
    given: dict[str, Any] = {name: value for name, value in json.loads(text).items() if name in known}
    given["payload"] = b64decode(given["payload"])
    given["tags"] = tuple(given["tags"])
    given["unique"] = None if given["unique"] is None else _unique_of(given["unique"])
    return NewTask(**given)


def cron_record(
    name: str,
    definition: str,
    template: str,
    declared: object,
    paused_reason: str | None,
    last_slot: float | None,
    next_slot: float | None,
    total: int,
    created_at: float,
    seen_at: float,
) -> CronRecord:
    """The record of a stored entry's row.

    A row that another hand has made unreadable must not hide the others: its definition
    then says why, and nothing else of it means anything.
    """
    try:
        return CronRecord(  # a sum fails where a text stands for a number, which SQLite allows
            name=name,
            definition=definition,
            template=template_from_text(template),
            declared=bool(declared),
            paused_reason=paused_reason,
            last_slot=None if last_slot is None else last_slot + 0.0,
            next_slot=None if next_slot is None else next_slot + 0.0,
            total=total + 0,
            created_at=created_at + 0.0,
            seen_at=seen_at + 0.0,
        )
    except Exception as exc:  # noqa: BLE001 - whatever was written there
        why = f"its row is broken: {type(exc).__name__}: {exc}"
        return CronRecord(
            name=name, definition=_dumps({"unreadable": why}), template=NewTask(id="", queue="", type="", payload=b"")
        )


def unreadable_cron(entry: CronRecord) -> str | None:
    """Why the row of this entry could not be read; None if it was."""
    try:
        found: Any = json.loads(entry.definition)
    except (ValueError, RecursionError):  # the text is the row's own, and somebody else may know what it means
        return None
    return str(cast("dict[str, object]", found)["unreadable"]) if isinstance(found, dict) and "unreadable" in found else None


class CronRecords:
    """The records of stored entries' rows, as last read: of a row that is as it was, the same object again.

    Entries rarely change and are all read again every half a minute. To make ten thousand of their
    texts takes a tenth of a second, and who holds them would look at each of them again.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[Any, ...], CronRecord]] = {}

    def record(self, row: tuple[Any, ...]) -> CronRecord:
        """The record of a row, whose first field is the entry's name."""
        known = self._known.get(row[0])
        if known is not None and known[0] == row:
            return known[1]
        record = cron_record(*row)
        self._known[row[0]] = row, record
        return record

    def only(self, records: Iterable[CronRecord]) -> None:
        """Forget every entry but these, which is all there are."""
        there = {record.name for record in records}
        self._known = {name: known for name, known in self._known.items() if name in there}


def _unique(unique: UniqueKey) -> dict[str, object]:
    given: dict[str, object] = {
        "key": unique.key,
        "statuses": sorted(unique.statuses),
        "within": unique.within,
        "on_clash": unique.on_clash,
        "replace": sorted(unique.replace),
        "replace_in": sorted(unique.replace_in),
    }
    if unique.by_payload:  # only then, so that what was stored before it was known has the same text
        given["by_payload"] = True
    return given


def _unique_of(given: dict[str, Any]) -> UniqueKey:
    return UniqueKey(
        key=given["key"],
        statuses=frozenset(map(TaskStatus, given["statuses"])),
        within=given["within"],
        on_clash=OnClash(given["on_clash"]),
        replace=frozenset(given["replace"]),
        replace_in=frozenset(map(TaskStatus, given["replace_in"])),
        by_payload=bool(given.get("by_payload", False)),
    )


def _dumps(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
