"""What a storage with one queue holds, as a plain sequential model: a list, looked through each time.

It shares no code with a storage but the values, and knows no cleverness that it
could share a mistake about. `dispatch.testing.machine` holds storages to it.
"""

from __future__ import annotations

from math import floor
from typing import Final

import attrs

from dispatch.records import TransitionKind
from dispatch.storage.protocol import Want

__all__ = ["ENDED", "Model", "Task"]

ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})


@attrs.define
class Task:
    """A stored task, as far as the model goes."""

    id: str
    seq: int
    type: str
    version: int
    tags: frozenset[str]
    key: str | None
    priority: int
    unique: str | None
    due: float
    status: str = "pending"
    attempt: int = 0
    epoch: int = 0
    limit: int = 1
    stop: bool = False
    lease: float | None = None
    worker: str | None = None
    result: bytes | None = None
    finished: float | None = None
    end: int = 0
    """Its place in the order of ends."""
    runs: list[tuple[int, str]] = attrs.field(factory=list[tuple[int, str]])
    """Epoch and outcome of each run."""


class Model:
    """The queue `q`, its tasks in order of storing, and what should become of them."""

    def __init__(self, keep_finished: float) -> None:
        self.tasks: list[Task] = []
        self.keyed = True
        self.on_retry = "hold"
        self.paused = False
        self.seq = 0
        self.ends: int = 0
        self.keep_finished = keep_finished

    def task(self, task_id: str) -> Task | None:
        """The stored task of this id."""
        return next((task for task in self.tasks if task.id == task_id), None)

    def running(self) -> list[Task]:
        """The tasks that run."""
        return [task for task in self.tasks if task.status == "running"]

    def end(self, task: Task, status: str, now: float) -> None:
        """A task becomes terminal; a storage that keeps few finished ones forgets the first."""
        self.ends += 1
        task.status, task.end, task.lease, task.finished = status, self.ends, None, now
        finished = [one for one in self.tasks if one.status in ("succeeded", "cancelled")]
        if len(finished) > self.keep_finished:
            self.tasks.remove(min(finished, key=lambda one: one.end))

    def waiting(self, now: float) -> int:
        """What counts against the queue's bound."""
        return sum(task.status == "pending" and task.due <= now for task in self.tasks)

    def blocked(self, task: Task, now: float) -> bool:
        """Whether another task of its key goes first."""
        if not self.keyed or task.key is None:
            return False
        for other in self.tasks:
            if other is task or other.key != task.key:
                continue
            if other.status == "running":
                return True
            steps_aside = self.on_retry == "yield" and other.epoch > 0 and other.due > now
            if other.status == "pending" and other.seq < task.seq and not steps_aside:
                return True
        return False

    def claim(self, want: Want, now: float, worker: str, lease: float | None) -> list[Task]:
        """Start what a claim should start, in order."""
        taken: list[Task] = []
        while not self.paused and len(taken) < want.limit:
            fit = [
                task
                for task in self.tasks
                if task.status == "pending"
                and task.due <= now
                and (want.types is None or want.types.get(task.type, 0) >= task.version)
                and (want.tags is None or task.tags <= want.tags)
                and (want.ids is None or task.id in want.ids)
                and not self.blocked(task, now)
            ]
            if not fit:
                break
            best = min(fit, key=lambda task: (-self.level(task, want, now), task.due, task.seq))
            best.status, best.worker = "running", worker
            best.attempt += 1
            best.epoch += 1
            best.lease = None if lease is None else round(now + lease, 6)
            best.finished = None
            best.runs.append((best.epoch, "running"))
            taken.append(best)
        return taken

    def level(self, task: Task, want: Want, now: float) -> int:
        """The effective priority."""
        if want.ageing is None:
            return task.priority
        return min(3, task.priority + floor((now - task.due) / want.ageing))

    def settle(self, task: Task, kind: TransitionKind, wait: float | None, now: float) -> None:
        """End a run that holds its task."""
        failed = kind is TransitionKind.FAILED
        if kind is TransitionKind.DONE:
            outcome = "succeeded"
        elif kind is TransitionKind.CANCELLED or (task.stop and not (failed and wait is None)):
            outcome = "cancelled"
        elif failed and (wait is None or task.attempt > task.limit):
            outcome = "failed"
        else:
            outcome = "retried" if failed else kind.value
        self.finish(task, outcome, now)
        if task.status == "pending":
            task.attempt -= not failed
            if kind is not TransitionKind.HANDED_BACK:
                task.due = round(now + (wait or 0.0), 6)

    def rescue(self, task: Task, now: float) -> None:
        """End a run whose lease ran out. The default policy waits a second."""
        ran = task.epoch
        task.epoch += 1
        if task.stop:
            self.finish(task, "cancelled", now)
        elif task.attempt > task.limit:
            self.finish(task, "failed", now)
        else:
            self.finish(task, "retried", now)
            task.due = round(now + 1.0, 6)
        task.runs[-1] = (ran, "expired")

    def finish(self, task: Task, outcome: str, now: float) -> None:
        """Write a run's outcome, and the status it leaves."""
        task.runs[-1] = (task.epoch, outcome)
        task.lease = None
        if outcome in ENDED:
            self.end(task, outcome, now)
        else:
            task.status = "pending"

    def alter(self, task: Task, action: str, due: float, now: float) -> bool:
        """One change by hand; whether it changed anything."""
        match action, task.status:
            case "cancel", "running" if not task.stop:
                task.stop = True
            case "cancel", "pending" | "held":
                self.end(task, "cancelled", now)
            case "hold", "pending":
                task.status = "held"
            case "resume", "held":
                task.status = "pending"
            case "rerun", "succeeded" | "failed" | "cancelled":
                if task.runs or task.limit != 1:  # one that never ran still takes its queue's
                    task.limit = max(task.limit + 1, task.attempt)
                task.status, task.due, task.stop = "pending", now, False
                task.result = task.finished = None
            case "patch", "pending" | "held" if task.due != due:
                task.due = due
            case _:
                return False
        return True
