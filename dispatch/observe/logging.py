"""The default observer: one log line per transition, payloads never.

Lines go to the standard library's `dispatch.tasks` logger: a start is DEBUG, an
end INFO, a retry or a rescue WARNING, a dead letter ERROR. The record's fields
stand flat in `extra` (event, task_id, queue, task_type, attempt, wait_s, run_s,
...), where structlog's ExtraAdder and JSON formatters pick them up.
"""

from __future__ import annotations

import logging
from typing import Final

from dispatch.events import EventKind, TaskEvent
from dispatch.failures import printable

__all__ = ["LogObserver"]

LEVELS: Final = {
    EventKind.PUBLISHED: logging.DEBUG,
    EventKind.STARTED: logging.DEBUG,
    EventKind.SUCCEEDED: logging.INFO,
    EventKind.SNOOZED: logging.INFO,
    EventKind.CANCELLED: logging.INFO,
    EventKind.HANDED_BACK: logging.INFO,
    EventKind.RETRYING: logging.WARNING,
    # The upkeep and the actors say more about these two, in warnings of their own.
    EventKind.RESCUED: logging.DEBUG,
    EventKind.LOST: logging.DEBUG,
    EventKind.FAILED: logging.ERROR,
}


class LogObserver:
    """Writes each event to a logger, `dispatch.tasks` by default."""

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger if logger is not None else logging.getLogger("dispatch.tasks")

    def interested_in(self, kind: EventKind) -> bool:
        """Whether the logger would write such a line at all."""
        return self._logger.isEnabledFor(LEVELS[kind])

    def __call__(self, event: TaskEvent) -> None:
        level = LEVELS[event.kind]
        if not self._logger.isEnabledFor(level):
            return
        error = event.error and printable(event.error)
        self._logger.log(
            level,
            "%s/%s %s %s%s",
            event.queue,
            event.task_type,
            event.task_id,
            event.kind.value,
            _details(event, error),
            extra={
                "event": event.kind.value,
                "task_id": event.task_id,
                "queue": event.queue,
                "task_type": event.task_type,
                "attempt": event.attempt,
                "worker": event.worker,
                "wait_s": event.wait_s,
                "run_s": event.run_s,
                "retry_in": event.retry_in,
                "error": error,
                "failure_reason": event.failure_reason.value if event.failure_reason else None,
            },
        )

    def __repr__(self) -> str:
        return f"<LogObserver {self._logger.name}>"


def _details(event: TaskEvent, error: str | None) -> str:
    parts: list[str] = []
    if event.attempt:
        parts.append(f" attempt={event.attempt}")
    if event.run_s is not None:
        parts.append(f" run_s={event.run_s:.3f}")
    if event.retry_in is not None:
        parts.append(f" retry_in={event.retry_in:.3g}")
    if event.failure_reason is not None:
        parts.append(f" reason={event.failure_reason.value}")
    if error:
        parts.append(f": {error}")
    return "".join(parts)
