"""The last hour, minute by minute: what ended how, how long it waited and ran.

Where the dashboard is mounted beside a dispatcher, it listens: two events a
task, each a few additions into the current minute. Over a storage alone it
reads the newest ended tasks and adds those up instead (`History.of`), which
is a sample where more than that ended within the hour.

Times are kept as counts per step of a logarithmic scale, eight steps to the
factor ten: a percentile is right within 15 %, and a minute is of bounded size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import floor, log10
from typing import Any, Final

import attrs

from dispatch.events import EventKind, TaskEvent
from dispatch.records import TaskRecord
from dispatch.tasks import TaskStatus

__all__ = ["MINUTES", "History", "Minute"]

MINUTES: Final = 60
QUEUES: Final = 256
"""Queues with minutes of their own; further ones only count in the total."""
STEPS: Final = 8
LEAST_S: Final = 1e-4

KINDS: Final = {
    EventKind.SUCCEEDED: "succeeded",
    EventKind.RETRYING: "retried",
    EventKind.FAILED: "failed",
    EventKind.CANCELLED: "cancelled",
}
ENDINGS: Final = {
    TaskStatus.SUCCEEDED: EventKind.SUCCEEDED,
    TaskStatus.FAILED: EventKind.FAILED,
    TaskStatus.CANCELLED: EventKind.CANCELLED,
}


@attrs.define(eq=False)
class Minute:
    """What one minute saw; `number` is minutes since 1970. `wait` and `run` count by step."""

    number: int
    succeeded: int = 0
    retried: int = 0
    failed: int = 0
    cancelled: int = 0
    wait: dict[int, int] = attrs.field(factory=dict[int, int])
    run: dict[int, int] = attrs.field(factory=dict[int, int])

    def view(self) -> dict[str, Any]:
        """The minute as plain data; times in seconds, None where nothing was timed."""
        return {
            "at": self.number * 60,
            "succeeded": self.succeeded,
            "retried": self.retried,
            "failed": self.failed,
            "cancelled": self.cancelled,
            "wait_p50": _percentile(self.wait, 0.5),
            "wait_p95": _percentile(self.wait, 0.95),
            "run_p50": _percentile(self.run, 0.5),
            "run_p95": _percentile(self.run, 0.95),
        }


class History:
    """An observer that keeps the last hour, in all and by queue."""

    def __init__(self) -> None:
        self._all: deque[Minute] = deque(maxlen=MINUTES)
        self._by_queue: dict[str, deque[Minute]] = {}
        self.ended: int = 0
        """How many ends it was told of."""

    @classmethod
    def of(cls, records: Iterable[TaskRecord]) -> History:
        """The history that ended tasks tell of: their last attempt each."""
        history = cls()
        known = [each for each in records if each.finished_at is not None and each.status in ENDINGS]
        # Minutes are only ever added at the new end.
        for each in sorted(known, key=lambda record: record.finished_at or 0.0):
            assert each.finished_at is not None
            wait_s = run_s = None
            if each.started_at is not None:
                wait_s = max(each.started_at - each.available_at, 0.0)
                run_s = max(each.finished_at - each.started_at, 0.0)
            history.add(ENDINGS[each.status], each.finished_at, each.queue, wait_s, run_s)
        return history

    def interested_in(self, kind: EventKind) -> bool:
        """Starts, for how long tasks waited, and ends."""
        return kind is EventKind.STARTED or kind in KINDS

    def __call__(self, event: TaskEvent) -> None:
        if event.kind is EventKind.STARTED or event.kind in KINDS:
            self.add(event.kind, event.at, event.queue, event.wait_s, event.run_s)

    def add(
        self, kind: EventKind, at: float, queue: str, wait_s: float | None, run_s: float | None
    ) -> None:
        """Count one start or end at a moment in UTC seconds."""
        number = int(at // 60)
        own = self._by_queue.get(queue)
        if own is None and len(self._by_queue) < QUEUES:
            own = self._by_queue[queue] = deque(maxlen=MINUTES)
        name = KINDS.get(kind)
        if name is not None:
            self.ended += 1
        for minutes in (self._all,) if own is None else (self._all, own):
            # A clock that was set back counts into the newest minute there is.
            if not minutes or minutes[-1].number < number:
                minutes.append(Minute(number))
            minute = minutes[-1]
            if name is not None:
                setattr(minute, name, getattr(minute, name) + 1)
            if wait_s is not None:
                step = _step(wait_s)
                minute.wait[step] = minute.wait.get(step, 0) + 1
            if run_s is not None:
                step = _step(run_s)
                minute.run[step] = minute.run.get(step, 0) + 1

    def minutes(self, now: float) -> list[dict[str, Any]]:
        """The last 60 minutes as plain data, oldest first, the running one last."""
        known = {minute.number: minute for minute in self._all}
        last = int(now // 60)
        return [
            (known.get(number) or Minute(number)).view()
            for number in range(last - MINUTES + 1, last + 1)
        ]

    def ended_per_minute(self, now: float, queue: str) -> list[int]:
        """How many runs of a queue ended in each of the last 60 minutes, oldest first."""
        ended = dict.fromkeys(range(int(now // 60) - MINUTES + 1, int(now // 60) + 1), 0)
        for minute in self._by_queue.get(queue, ()):
            if minute.number in ended:
                ended[minute.number] = sum(getattr(minute, name) for name in KINDS.values())
        return list(ended.values())

    def totals(self, now: float, queue: str | None = None) -> dict[str, Any]:
        """The last 60 minutes as one."""
        kept = self._all if queue is None else self._by_queue.get(queue, ())
        first = int(now // 60) - MINUTES + 1
        total = Minute(first)
        for minute in kept:
            if minute.number >= first:
                for name in KINDS.values():
                    setattr(total, name, getattr(total, name) + getattr(minute, name))
                for into, steps in ((total.wait, minute.wait), (total.run, minute.run)):
                    for step, count in steps.items():
                        into[step] = into.get(step, 0) + count
        return total.view()

    def __repr__(self) -> str:
        return f"<History ended={self.ended} queues={len(self._by_queue)}>"


def _step(value_s: float) -> int:
    return floor(log10(max(value_s, LEAST_S)) * STEPS)


def _percentile(steps: dict[int, int], share: float) -> float | None:
    """The middle of the step in which the percentile lies, in seconds."""
    if not steps:
        return None
    wanted = share * sum(steps.values())
    seen = 0
    for step in sorted(steps):
        seen += steps[step]
        if seen >= wanted:
            break
    else:
        raise AssertionError("a share is at most 1")
    return float(f"{10 ** ((step + 0.5) / STEPS):.2g}")
