"""How a store stands at this instant: its queues, workers and what ended lately."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import attrs

from dispatch.cli.output import iso
from dispatch.records import TaskRecord
from dispatch.storage.oldest import oldest_due
from dispatch.storage.protocol import Storage, WorkerRecord
from dispatch.storage.query import All, Order, Statuses, Time

__all__ = [
    "QueueState",
    "StoreState",
    "queue_object",
    "queue_states",
    "store_state",
    "worker_object",
]

BOUND: Final = 1_000_000
"""Counting stops at so many, in all: a look at a large store must not keep it busy."""
LATELY_S: Final = 60.0
RUNS_SHOWN: Final = 200


@attrs.frozen(kw_only=True)
class QueueState:
    """One queue: counts of tasks, and how long the oldest due one has been due, in seconds.

    `workers` is how many live ones consume it. `succeeded_lately` and
    `failed_lately` are what ended within the last minute.
    """

    name: str
    paused: bool
    concurrency: int | None
    due: int
    later: int
    running: int
    held: int
    failed: int
    oldest_s: float
    workers: int
    succeeded_lately: int = 0
    failed_lately: int = 0


@attrs.frozen(kw_only=True)
class StoreState:
    """A whole store at `now`, in UTC seconds; `runs` are up to 200 running tasks, the longest first."""

    now: float
    queues: list[QueueState]
    workers: list[WorkerRecord]
    runs: list[TaskRecord]
    crons: int

    def total(self, field: str) -> int:
        """One count over all queues."""
        return sum(getattr(each, field) for each in self.queues)


async def queue_states(storage: Storage, *, lately: bool = False) -> list[QueueState]:
    """Every declared queue, by name. A few bounded counts; with `lately`, one more."""
    open_ones = Statuses("pending", "running", "held")
    counts = await storage.count(open_ones, by=("queue", "status"), bound=BOUND)
    counts |= await storage.count(Statuses("failed"), by=("queue", "status"), bound=BOUND)
    now = storage.now()
    ended: dict[tuple[str, ...], int] = {}
    if lately:
        where = All(Statuses("succeeded", "failed"), Time("finished_at", since=now - LATELY_S))
        ended = await storage.count(where, by=("queue", "status"), bound=BOUND)
    consumed = Counter(name for worker in await storage.workers() for name in worker.queues)
    states: list[QueueState] = []
    for record in await storage.queues():
        name = record.name
        due = counts.get((name, "pending"), 0)
        states.append(
            QueueState(
                name=name,
                paused=record.paused,
                concurrency=record.concurrency,
                due=due,
                later=counts.get((name, "later"), 0),
                running=counts.get((name, "running"), 0),
                held=counts.get((name, "held"), 0),
                failed=counts.get((name, "failed"), 0),
                oldest_s=await _oldest_s(storage, name) if due else 0.0,
                workers=consumed[name],
                succeeded_lately=ended.get((name, "succeeded"), 0),
                failed_lately=ended.get((name, "failed"), 0),
            )
        )
    return states


async def _oldest_s(storage: Storage, name: str) -> float:
    since = await oldest_due(storage, name)
    return 0.0 if since is None else max(storage.now() - since, 0.0)


async def store_state(storage: Storage) -> StoreState:
    """Everything that `stats` and `top` show."""
    page = await storage.find(Statuses("running"), order=Order.OLDEST, limit=RUNS_SHOWN)
    now = storage.now()
    return StoreState(
        now=now,
        queues=await queue_states(storage, lately=True),
        workers=await storage.workers(),
        runs=sorted(page.records, key=lambda each: each.started_at or now),
        crons=len(await storage.crons()),
    )


def queue_object(state: QueueState) -> dict[str, Any]:
    """One queue as JSON."""
    return {
        "name": state.name,
        "paused": state.paused,
        "concurrency": state.concurrency,
        "tasks": {
            name: getattr(state, name) for name in ("due", "later", "running", "held", "failed")
        },
        "oldest_due_s": round(state.oldest_s, 3),
        "workers": state.workers,
    }


def worker_object(worker: WorkerRecord) -> dict[str, Any]:
    """One worker as JSON."""
    return {
        "id": worker.id,
        "host": worker.host,
        "pid": worker.pid,
        "started_at": iso(worker.started_at),
        "seen_at": iso(worker.seen_at),
        "queues": list(worker.queues),
        "running": list(worker.running),
    }
