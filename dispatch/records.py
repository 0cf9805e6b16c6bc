"""What a storage keeps: rows of strings, bytes and seconds.

Everything here is plain data that crosses the persistence hook. Payloads and
results are bytes that the codec made; moments are UTC seconds since 1970 as
floats rounded to the microsecond, by the storage's own clock; durations are
seconds, and of a moment or duration an int will do. Only `dispatch.lifecycle`
changes a `TaskRecord`'s state.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from math import floor

import attrs

from dispatch.tasks import EARLIEST, LATEST, FailureReason, OnClash, TaskStatus

__all__ = [
    "AttemptOutcome",
    "AttemptRecord",
    "Claim",
    "NewTask",
    "TaskRecord",
    "Transition",
    "TransitionKind",
    "UniqueKey",
    "from_seconds",
    "to_microsecond",
    "to_seconds",
]


@attrs.frozen(kw_only=True)
class UniqueKey:
    """A `Unique` as the storage sees it: the identity is hashed to `key` by the codec."""

    key: str
    statuses: frozenset[TaskStatus]
    within: float | None
    on_clash: OnClash
    replace: frozenset[str]
    replace_in: frozenset[TaskStatus]
    by_payload: bool = False
    """Whether the payload is part of `key`: another one then ends the uniqueness of a stored task."""


@attrs.define(kw_only=True)
class NewTask:
    """A task to store. Its due time is `available_at` if given, else now plus `delay`."""

    id: str
    queue: str
    type: str
    payload: bytes
    version: int = 1
    key: str | None = None
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str])
    delay: float = 0.0
    available_at: float | None = None
    timeout: float | None = None
    max_retry: int | None = None
    priority: int = 1
    tags: tuple[str, ...] = ()
    unique: UniqueKey | None = None
    cron: str | None = None
    """The cron task this came from."""
    slot: float | None = None
    """The moment of that cron task's tick: with `cron` its identity."""


@attrs.define(kw_only=True)
class TaskRecord:
    """One stored task, whole. Handed out as a copy; change it through the storage only."""

    id: str
    queue: str
    type: str
    payload: bytes
    version: int = 1
    key: str | None = None
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str])
    timeout: float | None = None
    max_retry: int | None = None
    """As asked for by the task; None inherits the queue's."""
    priority: int = 1
    tags: tuple[str, ...] = ()
    unique: UniqueKey | None = None
    cron: str | None = None
    slot: float | None = None

    seq: int = 0
    """The order of storing, increasing; breaks ties of `available_at`."""
    status: TaskStatus = TaskStatus.PENDING
    attempt: int = 0
    epoch: int = 0
    """Raised by every claim and every rescue: with the id, the fence of a run."""
    created_at: float = 0.0
    available_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    worker: str | None = None
    lease_until: float | None = None
    """When the running claim expires; None while running never does."""
    limit: int | None = None
    """The retries in force, written by the claim so that a rescue decides alike."""
    retry: str | None = None
    """The delays in force, as `RetryPolicy.to_text` wrote them; by the claim, too."""
    on_interrupt: str = "retry"
    cancel_reason: str | None = None
    """Set while a running task is asked to stop, and kept when it was cancelled."""
    last_error: str | None = None
    failure_reason: FailureReason | None = None
    result: bytes | None = None
    progress: bytes | None = None


@attrs.define
class Claim:
    """One run, handed to one worker: the fence `(id, epoch)` and what running needs."""

    id: str
    epoch: int
    queue: str
    type: str
    version: int
    payload: bytes
    key: str | None
    headers: Mapping[str, str]
    priority: int
    tags: tuple[str, ...]
    timeout: float | None
    max_retry: int | None
    attempt: int
    limit: int
    created_at: float
    available_at: float
    started_at: float
    last_error: str | None
    cron: str | None


class TransitionKind(StrEnum):
    """How a run ended."""

    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SNOOZED = "snoozed"
    HANDED_BACK = "handed_back"


@attrs.define
class Transition:
    """The end of one run, to be written where `(id, epoch)` still holds.

    DONE carries the `result` bytes (None: the handler's type has no result)
    and the tasks to `spawn`. FAILED carries `error` (type and message),
    `traceback`, and either `retry_in` seconds or a `reason` why no retry can
    help; the stored limit decides whether one is left. CANCELLED carries its
    reason in `error`. SNOOZED runs again in `retry_in` seconds and, like
    HANDED_BACK, gives the attempt back; both may carry the `error` on the way.
    """

    id: str
    epoch: int
    kind: TransitionKind
    result: bytes | None = None
    spawn: tuple[NewTask, ...] = ()
    error: str | None = None
    traceback: str | None = None
    retry_in: float | None = None
    reason: FailureReason | None = None
    begun: bool = True
    """False for a claim handed back before its handler was called: nothing was interrupted."""


class AttemptOutcome(StrEnum):
    """How one recorded run ended; RUNNING while it has not."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    RETRIED = "retried"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SNOOZED = "snoozed"
    HANDED_BACK = "handed_back"
    EXPIRED = "expired"
    """Its lease ran out; somebody rescued the task."""


@attrs.frozen
class AttemptRecord:
    """One run in a task's history, keyed by (task id, epoch)."""

    task_id: str
    epoch: int
    attempt: int
    """The attempt's number while it ran, also where it was given back afterwards."""
    worker: str | None
    started_at: float
    finished_at: float | None
    outcome: AttemptOutcome
    error: str | None = None
    """Type and message, then the traceback's text; at most 4 kB."""


@lru_cache(maxsize=1_024)
def from_seconds(seconds: float) -> datetime:
    """UTC seconds since 1970 as an aware datetime, exact to the microsecond.

    Beyond the calendar its nearest end: one row that somebody wrote by other
    means must not make every listing it is part of fail.
    """
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return LATEST if seconds > 0 else EARLIEST


def to_microsecond(seconds: float) -> float:
    """The nearest whole microsecond; of two alike either. `round` would take three times as long."""
    try:
        return floor(seconds * 1_000_000 + 0.5) / 1_000_000
    except (ValueError, OverflowError):  # a clock out of its mind
        return seconds


def to_seconds(moment: datetime) -> float:
    """An aware datetime as UTC seconds since 1970, rounded to the microsecond."""
    return round(moment.timestamp(), 6)
