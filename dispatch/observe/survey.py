"""How the queues stand: what the gauges of both metrics observers show.

A task event tells of one task; how many wait, and for how long, only the storage
knows, which every process may be writing to. Looking costs two bounded counts,
and mostly one row for each queue where something waits (`oldest_due` says when
it is more, and that it ends), so it is done at an interval and never per task.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Final

import attrs
import trio

from dispatch.dispatcher import Dispatcher
from dispatch.errors import StorageError
from dispatch.storage.oldest import oldest_due
from dispatch.storage.query import Statuses

__all__ = ["QueueSurvey", "Surveyor", "survey"]

log: Final = logging.getLogger("dispatch.observe")

BOUND: Final = 1_000_000
EVERY_S: Final = 15.0
LOOK_S: Final = 8.0
"""A look ends before a scrape does, for which Prometheus waits 10 s by default."""


@attrs.frozen(kw_only=True)
class QueueSurvey:
    """One queue at one instant.

    `tasks` counts the stored tasks by status, for all processes: `pending` are
    due, `later` not yet; `failed` are the dead letters. `oldest_age_s` is how
    long the longest due one has been due, 0 if there is none.
    `paused` is so for every process.
    `concurrency` and `running` are this process's, None where it does not
    serve the queue.
    """

    queue: str
    tasks: Mapping[str, int]
    oldest_age_s: float
    concurrency: int | None
    running: int | None
    paused: bool = False


STATUSES: Final = ("pending", "later", "running", "held", "failed")


async def survey(dispatcher: Dispatcher, *, bound: int = BOUND) -> list[QueueSurvey]:
    """Every queue declared in the dispatcher's storage, by name. A checkpoint.

    Counting stops at `bound` open tasks and at as many dead letters, all queues
    together: beyond it the counts are lower bounds. Raises StorageError (1021).
    """
    storage = dispatcher.storage
    counts: dict[tuple[str, ...], int] = {}
    for where in (Statuses("pending", "running", "held"), Statuses("failed")):
        counts |= await storage.count(where, by=("queue", "status"), bound=bound)
    served = dispatcher.statistics().queues
    found: list[QueueSurvey] = []
    for record in await dispatcher.control.queues():  # those registered here are declared by it
        name = record.name
        age_s = 0.0
        if counts.get((name, "pending"), 0):
            since = await oldest_due(storage, name)
            if since is not None:
                age_s = max(storage.now() - since, 0.0)
        here = served.get(name)
        found.append(
            QueueSurvey(
                queue=name,
                tasks={status: counts.get((name, status), 0) for status in STATUSES},
                oldest_age_s=age_s,
                concurrency=None if here is None else here.concurrency,
                running=None if here is None else here.running,
                paused=record.paused,
            )
        )
    return found


class Surveyor(ABC):
    """An observer whose gauges are set from a survey, now or at an interval.

    They show what is so, or nothing: while the storage is away nobody knows how
    the queues stand, and an age that stands still would be taken for one that
    does not grow.
    """

    @abstractmethod
    def show(self, queues: Sequence[QueueSurvey]) -> None:
        """Set the gauges."""

    @abstractmethod
    def forget(self) -> None:
        """Take back what the gauges show."""

    @abstractmethod
    def storage_failed(self, operation: str, error: StorageError) -> None:
        """Count a failure of the storage."""

    async def look(self, dispatcher: Dispatcher, *, bound: int = BOUND) -> None:
        """Survey the queues once and set the gauges. A checkpoint.

        Raises StorageError (1021), also for a storage that does not answer within
        8 s; it is counted as of `survey`, and the gauges show nothing.
        """
        try:
            found: list[QueueSurvey] | None = None
            with trio.move_on_after(LOOK_S):
                found = await survey(dispatcher, bound=bound)
            if found is None:
                raise StorageError(f"no answer within {LOOK_S:g} s")
        except StorageError as exc:
            self.forget()
            self.storage_failed("survey", exc)
            raise
        self.show(found)

    async def run(
        self,
        dispatcher: Dispatcher,
        *,
        every: float = EVERY_S,
        bound: int = BOUND,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Look every `every` seconds until cancelled; started after the first look.

        While the storage is away the gauges show nothing, and a warning is logged.
        """
        started = False
        while True:
            try:
                await self.look(dispatcher, bound=bound)
            except StorageError as exc:
                log.warning("the queues could not be surveyed: %s", exc)
            if not started:
                started = True
                task_status.started()
            await trio.sleep(every)
