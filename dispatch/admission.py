"""What a task must satisfy to be published: its limits, its options, its untouched history."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from math import isfinite
from typing import Final, NoReturn, cast

import attrs

from dispatch.checks import MAX_COUNT, MAX_DELAY_S, shown
from dispatch.errors import (
    InvalidConfigError,
    InvalidQueueNameError,
    InvalidQueueTaskError,
    InvalidTaskTypeError,
)
from dispatch.tasks import (
    EARLIEST,
    LATEST,
    NAME,
    NO_HEADERS,
    Priority,
    QueueTask,
    TaskStatus,
    Unique,
    check_name,
)

__all__ = ["Admission", "Limits"]

KEY_CHARACTERS: Final = 512
TAG_BYTES: Final = 128
"""What a database's integer column holds."""
CACHED_NAMES: Final = 4_096
# On 3.11 an Enum takes 0.1 us to give a member, and these are asked for with each task.
PENDING: Final = TaskStatus.PENDING
NORMAL: Final = Priority.NORMAL


@attrs.frozen(kw_only=True)
class Limits:
    """Bounds on what is stored, checked when publishing and again when decoding.

    `depth` is that of lists and dicts in each other in a payload and `containers`
    their number: decoding costs some microseconds for each, and the loop must
    not stand still for it. `batch` is the number of tasks in one publish; sizes
    are of UTF-8 bytes.
    """

    payload_bytes: int = 256 * 1024
    depth: int = 32
    containers: int = 10_000
    headers: int = 32
    header_name_bytes: int = 64
    header_value_bytes: int = 1024
    result_bytes: int = 256 * 1024
    batch: int = 1_000
    tags: int = 32

    def __attrs_post_init__(self) -> None:
        for field in attrs.fields(type(self)):
            value: object = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidConfigError(
                    f"Limits: {field.name} must be a whole number from 1, got {shown(value)}"
                )


class Admission:
    """Checks tasks before they are published. Remembers the addresses it has found legal."""

    __slots__ = ("_addresses", "_limits")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._addresses: set[tuple[str, str]] = set()

    def check(self, task: QueueTask) -> None:
        """Raise unless `task` may be published; the payload is not looked at.

        Raises InvalidQueueNameError, InvalidTaskTypeError, InvalidQueueTaskError.
        """
        # One expression per group: a task with every option at its default is
        # told in under a microsecond, and only another one is looked at closely.
        try:
            known = (task.queue, task.type) in self._addresses
        except TypeError:  # a name that is not even hashable
            known = False
        if not known:
            self._check_address(task)
        if (
            task.attempt
            or task.status is not PENDING
            or task.created_at is not None
            or task.started_at is not None
            or task.finished_at is not None
            or task.last_error is not None
            or task.failure_reason is not None
            or task.result is not None
            or task.worker is not None
            or task.cron is not None
            or task.progress is not None
        ):
            _refuse_history(task)
        if (  # what is merely falsy, such as tags=None, is no default and has to be looked at
            task.id != ""
            or task.key is not None
            or task.headers is not NO_HEADERS
            or task.tags != ()
            or task.unique is not None
        ):
            self._check_texts(task)
        if (
            task.delay != 0.0
            or task.available_at is not None
            or task.timeout is not None
            or task.max_retry is not None
            or task.priority is not NORMAL
        ):
            _check_numbers(task)

    def _check_address(self, task: QueueTask) -> None:
        queue = check_name(task.queue, "queue name", InvalidQueueNameError)
        name = check_name(task.type, f"queue {queue!r}: task type", InvalidTaskTypeError)
        if (
            len(self._addresses) >= CACHED_NAMES
        ):  # names made up without end must not fill the memory
            self._addresses.clear()
        self._addresses.add((queue, name))

    def _check_texts(self, task: QueueTask) -> None:
        limits = self._limits
        given = cast("object", task.id)
        if given != "" and not (isinstance(given, str) and NAME.fullmatch(given)):
            _refuse(
                task, f"id must be 1 to 128 characters of A-Z a-z 0-9 _ . : -, got {shown(given)}"
            )
        if task.key is not None:
            _check_text(task, "key", task.key)
            if len(task.key) > KEY_CHARACTERS:
                _refuse(
                    task, f"key must be at most {KEY_CHARACTERS} characters, got {len(task.key)}"
                )
        headers = cast("object", task.headers)
        if not isinstance(headers, Mapping):
            _refuse(task, f"headers must be a mapping of str to str, got {shown(headers)}")
        if len(task.headers) > limits.headers:
            _refuse(task, f"at most {limits.headers} headers, got {len(task.headers)}")
        for name, value in task.headers.items():
            size = _check_text(task, "a header's name", name)
            if not 0 < size <= limits.header_name_bytes:
                _refuse(
                    task,
                    f"a header's name must be 1 to {limits.header_name_bytes} bytes, got {size}",
                )
            size = _check_text(task, f"header {name!r}", value)
            if size > limits.header_value_bytes:
                _refuse(
                    task,
                    f"header {name!r} must be at most {limits.header_value_bytes} bytes, "
                    f"got {size}",
                )
        tags = cast("object", task.tags)
        if not isinstance(tags, tuple):
            _refuse(task, f"tags must be a tuple of str, got {shown(tags)}")
        if len(task.tags) > limits.tags:
            _refuse(task, f"at most {limits.tags} tags, got {len(task.tags)}")
        for tag in task.tags:
            size = _check_text(task, "a tag", tag)
            if not 0 < size <= TAG_BYTES:
                _refuse(task, f"a tag must be 1 to {TAG_BYTES} bytes, got {size}")
        unique = cast("object", task.unique)
        if unique is not None and not isinstance(unique, Unique):
            _refuse(task, f"unique must be a Unique, got {shown(unique)}")


def _refuse(task: QueueTask, problem: str) -> NoReturn:
    raise InvalidQueueTaskError(f"task {task.queue}/{task.type}: {problem}")


def _refuse_history(task: QueueTask) -> None:
    if task.status == TaskStatus.PENDING and task.attempt.__class__ is int and task.attempt == 0:
        fields = (
            "created_at",
            "started_at",
            "finished_at",
            "last_error",
            "failure_reason",
            "result",
            "worker",
            "cron",
            "progress",
        )
        found = [name for name in fields if getattr(task, name) is not None]
    else:
        found = ["attempt" if task.status == TaskStatus.PENDING else "status"]
    if found:
        _refuse(
            task,
            f"{', '.join(found)} {'is' if len(found) == 1 else 'are'} set by the storage, "
            "not by you; "
            "to publish a stored task once more, publish task.again()",
        )


def _check_numbers(task: QueueTask) -> None:
    _check_seconds(task, "delay", task.delay, above=False)
    moment = cast("object", task.available_at)
    if moment is not None:
        if task.delay:
            _refuse(
                task, f"give either delay or available_at, got both ({task.delay!r} and {moment!s})"
            )
        if not isinstance(moment, datetime):
            _refuse(task, f"available_at must be a datetime with a time zone, got {shown(moment)}")
        if moment.utcoffset() is None:
            _refuse(
                task,
                f"available_at must have a time zone, got {moment.isoformat()}; "
                "for a moment in UTC add tzinfo=UTC",
            )
        if not EARLIEST <= moment <= LATEST:
            _refuse(
                task,
                f"available_at must be within {EARLIEST.isoformat()} and {LATEST.isoformat()}, "
                f"got {moment.isoformat()}; "
                "for a task that waits until you say so, name a nearer moment and hold it",
            )
    if task.timeout is not None:
        _check_seconds(task, "timeout", task.timeout, above=True)
    retries = cast("object", task.max_retry)
    if retries is not None and (
        isinstance(retries, bool) or not isinstance(retries, int) or not 0 <= retries <= MAX_COUNT
    ):
        _refuse(task, f"max_retry must be a whole number from 0 to {MAX_COUNT}, got {shown(retries)}")
    priority = cast("object", task.priority)
    if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority <= 3:
        _refuse(
            task,
            f"priority must be a Priority (LOW, NORMAL, HIGH, CRITICAL), got {shown(priority)}",
        )


def _check_seconds(task: QueueTask, what: str, value: object, *, above: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(task, f"{what} must be a number of seconds, got {shown(value)}")
    if isinstance(value, float) and not isfinite(value):
        _refuse(task, f"{what} must be a finite number of seconds, got {value!r}")
    if value < 0 or (above and value == 0):
        _refuse(task, f"{what} must be {'above' if above else 'at least'} 0 seconds, got {value!r}")
    if value > MAX_DELAY_S:
        _refuse(
            task,
            f"{what} must be at most {MAX_DELAY_S:g} seconds (ten years), got {shown(value)}; "
            "durations are seconds, not milliseconds",
        )


def _check_text(task: QueueTask, what: str, value: object) -> int:
    """The size in bytes of a text that every storage can hold."""
    if not isinstance(value, str):
        _refuse(task, f"{what} must be a str, got {shown(value)}")
    if "\0" in value:
        _refuse(task, f"{what} must have no NUL character, got {shown(value)}")
    try:
        return len(value.encode())
    except UnicodeEncodeError:
        _refuse(task, f"{what} must have no lone surrogate, got {shown(value)}")
