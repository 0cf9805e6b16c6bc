"""One typed record per transition, handed to any number of observers.

Log lines, metrics, spans, the event stream and the dashboard are all readers of
the same `TaskEvent`. An observer is a plain function, called at once and in
order on the trio thread: it must be quick, must not block, and what it raises is
logged and goes no further.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final

import attrs

from dispatch.tasks import FailureReason

__all__ = ["EventKind", "Observer", "Observers", "TaskEvent"]

log: Final = logging.getLogger("dispatch.events")


class EventKind(StrEnum):
    """What happened to a task."""

    PUBLISHED = "published"
    STARTED = "started"
    SUCCEEDED = "succeeded"
    RETRYING = "retrying"
    FAILED = "failed"
    """Now among the dead letters."""
    CANCELLED = "cancelled"
    SNOOZED = "snoozed"
    HANDED_BACK = "handed_back"
    """Interrupted, and waiting to be run again with its attempt given back."""
    RESCUED = "rescued"
    """Taken from a worker that stopped renewing its lease."""
    LOST = "lost"
    """This run was no longer ours when it ended; its outcome was refused."""


@attrs.frozen(kw_only=True)
class TaskEvent:
    """One transition of one task. Payloads and results are never part of it.

    `at` is UTC seconds by the storage's clock. `wait_s` is from falling due to
    the start, `run_s` from the start to the end, both None where they do not
    apply. `retry_in` is seconds until the next run, `error` type and message.
    """

    kind: EventKind
    at: float
    task_id: str
    queue: str
    task_type: str
    attempt: int = 0
    worker: str | None = None
    wait_s: float | None = None
    run_s: float | None = None
    retry_in: float | None = None
    error: str | None = None
    failure_reason: FailureReason | None = None
    cron: str | None = None


Observer = Callable[[TaskEvent], None]


class Observers:
    """The observers of one dispatcher, in the order they were added."""

    __slots__ = ("_interests", "_observers")

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._set(tuple(observers))

    def add(self, observer: Observer) -> None:
        """Call `observer` for every event from now on."""
        self._set((*self._observers, observer))

    def remove(self, observer: Observer) -> None:
        """Stop calling it; harmless if it was not added."""
        self._set(tuple(each for each in self._observers if each is not observer))

    def _set(self, observers: tuple[Observer, ...]) -> None:
        self._observers: tuple[Observer, ...] = observers
        self._interests: tuple[Callable[[EventKind], bool] | None, ...] = tuple(
            getattr(each, "interested_in", None) for each in observers
        )

    def wants(self, kind: EventKind) -> bool:
        """Whether any observer would look at this kind: saves building an event nobody reads."""
        for interested in self._interests:  # noqa: SIM110 - any() costs a generator, three times a task
            if interested is None or interested(kind):
                return True
        return False

    def emit(self, event: TaskEvent) -> None:
        """Hand one event to every observer; what one raises is logged, and the others still see it."""
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                log.exception("observer %r failed on %s of task %s", observer, event.kind, event.task_id)
