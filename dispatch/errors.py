"""Every exception, as one tree.

    DispatchError                      .code, .detail
    ├── UsageError                     fix the code
    │   ├── QueueConfigConflictError   1005  a queue registered twice, differently
    │   ├── InvalidQueueNameError      1006
    │   ├── QueueNotRegisteredError    1007  absent from the stored registry
    │   ├── InvalidTaskTypeError       1008
    │   ├── InvalidTaskHandlerError    1009
    │   ├── InvalidConfigError         1012
    │   ├── ClosedError                1013  you closed it, then used it
    │   ├── InvalidCronSpecError       1014  (also a ValueError)
    │   ├── CronNameConflictError      1015
    │   └── MissingExtraError          1016  an optional dependency is not installed
    ├── DataError                      fix the data
    │   ├── InvalidQueueTaskError      1003
    │   ├── InvalidQueuePayloadError   1010
    │   └── DuplicateTaskError         1011
    ├── LookupFailedError              what was asked for is not there
    │   ├── TaskNotFoundError          1002
    │   ├── TaskHandlerNotFoundError   1004  Go's, reserved: raised nowhere
    │   └── CronTaskNotFoundError      1017
    ├── OutcomeError                   the awaited task ended, but not with a result
    │   ├── TaskFailedError            1018
    │   └── TaskCancelledError         1019
    ├── WorldError                     fix the world, or wait
    │   ├── QueueFullError             1020
    │   ├── StorageError               1021
    │   ├── ClaimLostError             1022
    │   └── QueueInUseError            1023  to be removed, but something needs it
    └── InternalError                  1001  report our bug

The ten numbers 1001-1010 are those of the Go package `asynctask`; ours go on
from 1011. Beside the tree stand the four *signals* that a handler may raise to
end its own attempt: `Snooze`, `Cancel`, `RetryAfter` and `PermanentError`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, cast

__all__ = [
    "Cancel",
    "ClaimLostError",
    "ClosedError",
    "CronNameConflictError",
    "CronTaskNotFoundError",
    "DataError",
    "DispatchError",
    "DuplicateTaskError",
    "HandlerSignal",
    "InternalError",
    "InvalidConfigError",
    "InvalidCronSpecError",
    "InvalidQueueNameError",
    "InvalidQueuePayloadError",
    "InvalidQueueTaskError",
    "InvalidTaskHandlerError",
    "InvalidTaskTypeError",
    "LookupFailedError",
    "MissingExtraError",
    "OutcomeError",
    "PermanentError",
    "QueueConfigConflictError",
    "QueueFullError",
    "QueueInUseError",
    "QueueNotRegisteredError",
    "RetryAfter",
    "Snooze",
    "StorageError",
    "TaskCancelledError",
    "TaskFailedError",
    "TaskHandlerNotFoundError",
    "TaskNotFoundError",
    "UsageError",
    "WorldError",
]


LONGEST_S: Final = 10 * 365 * 86_400.0
"""Ten years. A longer delay, timeout or retention is a mistake of units."""


class DispatchError(Exception):
    """The root: everything this package raises on its own account.

    `code` is the number of the class, `detail` the message. Catching a class
    matches whatever the detail, as comparing by code does in Go.
    """

    code: ClassVar[int] = 1001

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return f"[{self.code}] {self.detail}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Not by calling the class again: some take more than the detail.
        return _made_again, (type(self), self.args, self.__dict__.copy())


def _made_again(kind: type[DispatchError], args: tuple[Any, ...], state: dict[str, Any]) -> DispatchError:
    """A copy, or what was pickled."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class UsageError(DispatchError):
    """The calling code is wrong; running it again will not help."""


class DataError(DispatchError):
    """The data handed in is wrong; the code may be right."""


class LookupFailedError(DispatchError):
    """What was asked for by name is not there."""


class OutcomeError(DispatchError):
    """The awaited task ended without a result."""


class WorldError(DispatchError):
    """Something outside failed or is full; trying again later may help."""


class InternalError(DispatchError):
    """A promise of this package was broken by this package: please report it."""

    code = 1001


class TaskNotFoundError(LookupFailedError):
    """No stored task has this id (it may have been pruned)."""

    code = 1002


class InvalidQueueTaskError(DataError):
    """A task that cannot be published: a bad field, or a field the storage owns."""

    code = 1003


class TaskHandlerNotFoundError(LookupFailedError):
    """Nothing here handles this queue and type. Raised nowhere: the number is Go's, and reserved.

    Here such a task waits for its handler, and the log names it (`dispatch.unhandled`).
    """

    code = 1004


class QueueConfigConflictError(UsageError):
    """The queue is registered with another configuration, which stays in force."""

    code = 1005


class InvalidQueueNameError(UsageError):
    """A queue name is empty or has characters outside `[A-Za-z0-9_.:-]{1,128}`."""

    code = 1006


class QueueNotRegisteredError(UsageError):
    """The queue is absent from the stored registry: no consumer ever registered it."""

    code = 1007


class InvalidTaskTypeError(UsageError):
    """A task type is badly named or its payload class cannot be stored."""

    code = 1008


class InvalidTaskHandlerError(UsageError):
    """A handler is missing, not callable, of the wrong arity, or registered twice."""

    code = 1009


class InvalidQueuePayloadError(DataError):
    """A payload that is not of its declared class or does not survive storage.

    `path` says where: `$` is the payload itself, `$.lines[2].qty` a field in it.
    """

    code = 1010

    def __init__(self, detail: str, path: str = "$") -> None:
        super().__init__(detail)
        self.path = path


class DuplicateTaskError(DataError):
    """A task of this id, or of this uniqueness key, is stored already.

    `existing_id` is the task in the way.
    """

    code = 1011

    def __init__(self, detail: str, existing_id: str) -> None:
        super().__init__(detail)
        self.existing_id = existing_id


class InvalidConfigError(UsageError, ValueError):
    """A setting has a value it cannot have."""

    code = 1012


class ClosedError(UsageError):
    """It was closed, by you, before this call."""

    code = 1013


class InvalidCronSpecError(UsageError, ValueError):
    """A cron text that is wrong or never fires.

    `field` names the field at fault (`minute`, `zone`, ...; None for the whole
    text) and `reason` says why, both without the text itself.
    """

    code = 1014

    def __init__(self, detail: str, field: str | None = None, reason: str = "") -> None:
        super().__init__(detail)
        self.field = field
        self.reason = reason


class CronNameConflictError(UsageError):
    """A different cron task stands under this name, and replacing was not asked for."""

    code = 1015


class MissingExtraError(UsageError, ImportError):
    """An optional dependency is missing; the message names the extra to install."""

    code = 1016


class CronTaskNotFoundError(LookupFailedError):
    """No cron task has this name."""

    code = 1017


class TaskFailedError(OutcomeError):
    """The awaited task is among the dead letters.

    `task_id`, `reason` (a `FailureReason` value) and `last_error` (text) say
    which and why. The original exception is never rebuilt from stored text.
    """

    code = 1018

    def __init__(self, detail: str, task_id: str, reason: str, last_error: str) -> None:
        super().__init__(detail)
        self.task_id = task_id
        self.reason = reason
        self.last_error = last_error


class TaskCancelledError(OutcomeError):
    """The awaited task was cancelled; `task_id` says which, `reason` why."""

    code = 1019

    def __init__(self, detail: str, task_id: str, reason: str) -> None:
        super().__init__(detail)
        self.task_id = task_id
        self.reason = reason


class QueueFullError(WorldError):
    """The queue holds as many due tasks as its bound allows; nothing was stored."""

    code = 1020


class StorageError(WorldError):
    """The storage could not do a step: it is away, full, or refused it."""

    code = 1021


class ClaimLostError(WorldError):
    """The run this was done for is no longer ours: its lease ran out or it ended."""

    code = 1022


class QueueInUseError(WorldError):
    """A queue to be removed still has tasks, a live worker, or a cron task that publishes into it.

    `tasks` has how many are stored by status, as `control.count` tells them, `workers` the ids
    of those that consume it, `crons` the names of the stored cron tasks.
    """

    code = 1023

    def __init__(
        self, detail: str, *, tasks: Mapping[str, int], workers: Sequence[str], crons: Sequence[str]
    ) -> None:
        super().__init__(detail)
        self.tasks = tasks
        self.workers = workers
        self.crons = crons


class HandlerSignal(Exception):  # noqa: N818 - a handler's verdict, not an error
    """Base of what a handler raises to decide its own attempt's outcome.

    Returned in place of raised it decides nothing: that is a permanent failure.
    Made with something that it cannot take, it raises InvalidConfigError in the
    handler, which is a failed attempt like any other.
    """


def check_wait(what: str, delay: object) -> float:
    """The seconds of a signal, as a float. Raises InvalidConfigError for what is no wait of at most ten years."""
    if isinstance(delay, bool) or not isinstance(delay, int | float) or not 0 <= delay <= LONGEST_S:
        raise InvalidConfigError(
            f"{what}: delay must be a number of seconds within 0 and {LONGEST_S:g} (ten years), got {shown(delay)}"
        )
    return float(delay)


class Snooze(HandlerSignal):
    """Run me again in `delay` seconds, at most ten years; this attempt is given back, not counted."""

    def __init__(self, delay: float) -> None:
        super().__init__(delay)
        self.delay: float = check_wait("Snooze", delay)


class Cancel(HandlerSignal):
    """End me as cancelled, for `reason`; I am not run again and am no dead letter.

    An exception may be the reason; it and whatever else is kept as text.
    """

    def __init__(self, reason: str | BaseException = "cancelled by its handler") -> None:
        super().__init__(reason)
        self.reason: str = f"{type(reason).__name__}: {reason}" if isinstance(reason, BaseException) else str(reason)


class RetryAfter(HandlerSignal):
    """This attempt failed; if one is left, make the next in `delay` seconds, at most ten years.

    Takes the place of the queue's back-off for this one failure. Raise it
    `from` the error that caused it, so that both are recorded.
    """

    def __init__(self, delay: float, reason: str = "the handler asked to be retried later") -> None:
        super().__init__(delay, reason)
        self.delay: float = check_wait("RetryAfter", delay)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason} (in {self.delay:g} s)"


class PermanentError(HandlerSignal):
    """This attempt failed and no retry can help: go to the dead letters at once."""


def shown(value: object, limit: int = 60) -> str:
    """The value in a message: its repr, bounded; its class alone where the repr fails."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a user's __repr__
        name = type(value).__qualname__
        return f"{'an' if name[0] in 'aeiouAEIO' else 'a'} {name}"
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions of a group that are no groups; iterative, for it may be nested absurdly deep."""
    stack = [error]
    while stack:
        top = stack.pop()
        if isinstance(top, BaseExceptionGroup):
            group = cast("BaseExceptionGroup[Any]", top)
            stack.extend(reversed(group.exceptions))
        else:
            yield top


def described(errors: Sequence[str]) -> str:
    """Join several findings into one message, the first few in full."""
    shown = list(errors[:5])
    if len(errors) > len(shown):
        shown.append(f"and {len(errors) - len(shown)} more")
    return "; ".join(shown)
