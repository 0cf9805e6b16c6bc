"""Prometheus metrics of what a dispatcher does, in base units and without ids.

    metrics = PrometheusObserver()
    async with open_dispatcher(observers=[LogObserver(), metrics]) as dispatcher:
        ...
        body = await metrics.exposition(dispatcher)     # for GET /metrics

Counters and histograms follow the events. The gauges show the storage as it was
when somebody last looked: `exposition` looks each time, `run` at an interval. A
look that fails takes them away: an alert must not rest on what was true once.

What an alert waits for is there at 0 before it happens. Prometheus takes a
series that begins at 1 for one that did not increase: the first dead letter of
each process would be nobody's business.

Labels are queue, task type, status and outcome, whose number a service decides
by what it registers; never an id, a key or a payload.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from dispatch.dispatcher import Dispatcher
from dispatch.errors import MissingExtraError, StorageError
from dispatch.events import EventKind, TaskEvent
from dispatch.observe.survey import BOUND, QueueSurvey, Surveyor

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from prometheus_client.exposition import CONTENT_TYPE_LATEST
except ImportError as _missing:
    raise MissingExtraError(
        "Prometheus metrics need prometheus-client: pip install 'trio-dispatch[prometheus]'"
    ) from _missing

__all__ = ["CONTENT_TYPE", "PrometheusObserver"]

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
"""The media type of what `exposition` gives."""

RUN_BUCKETS_S: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3_600)
WAIT_BUCKETS_S: Final = (0.001, 0.01, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3_600, 14_400, 86_400)
OPERATIONS: Final = ("publish", "turn", "upkeep", "cron", "survey")
"""What a failure of the storage is counted by."""
LAG_BUCKETS_S: Final = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 600, 3_600, 86_400)


class PrometheusObserver(Surveyor):
    """Counts every `TaskEvent` into a registry of its own, or the one given.

    One observer may serve several dispatchers of a process; of a queue that they
    share the gauges then show what was seen last, and a look that fails takes away
    those of all until each is looked at again. Two on one registry raise prometheus_client's
    ValueError, for their names are taken.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry: CollectorRegistry = registry if registry is not None else CollectorRegistry()
        address = ("queue", "type")

        def counter(name: str, what: str, labels: Sequence[str]) -> Counter:
            return Counter(name, what, labels, registry=self.registry)

        def gauge(name: str, what: str, labels: Sequence[str]) -> Gauge:
            return Gauge(name, what, labels, registry=self.registry)

        def histogram(
            name: str, what: str, buckets: Sequence[float], labels: Sequence[str] = address
        ) -> Histogram:
            return Histogram(name, what, labels, buckets=buckets, registry=self.registry)

        self._published = counter("dispatch_tasks_published_total", "Tasks stored.", address)
        self._ended = counter(
            "dispatch_tasks_total", "Attempts ended, by what became of their task.", (*address, "outcome")
        )
        self._wait = histogram(
            "dispatch_task_wait_seconds", "From falling due to the start of an attempt.", WAIT_BUCKETS_S
        )
        self._run = histogram(
            "dispatch_task_run_seconds", "From the start to the end of an attempt.", RUN_BUCKETS_S
        )
        self._lag = histogram(
            "dispatch_cron_lag_seconds", "From a cron task's moment to its run or publication.", LAG_BUCKETS_S, ()
        )
        self._errors = counter(
            "dispatch_storage_errors_total", "Failures of the storage met, by what was being done.", ("operation",)
        )
        for operation in OPERATIONS:
            self._errors.labels(operation)
        self._tasks = gauge(
            "dispatch_queue_tasks", "Stored tasks that have not ended, and dead letters.", ("queue", "status")
        )
        self._oldest = gauge(
            "dispatch_queue_oldest_task_age_seconds", "How long the longest due task has been due.", ("queue",)
        )
        self._paused = gauge("dispatch_queue_paused", "1 while the queue is paused, else 0.", ("queue",))
        self._concurrency = gauge(
            "dispatch_queue_concurrency", "Attempts this process may make at once.", ("queue",)
        )
        self._running = gauge("dispatch_tasks_running", "Attempts this process is making.", ("queue",))
        self._gauges = (self._tasks, self._oldest, self._paused, self._concurrency, self._running)
        self._shown: set[str] = set()
        """The queues that the gauges are of."""
        # Finding a child by its labels takes a lock and builds a tuple of strings: done once each.
        self._stores: dict[tuple[str, str], Counter] = {}
        self._starts: dict[tuple[str, str], Histogram] = {}
        self._ends: dict[tuple[str, str, EventKind], tuple[Counter, Histogram]] = {}

    def __call__(self, event: TaskEvent) -> None:
        queue, task_type, kind = event.queue, event.task_type, event.kind
        if kind is EventKind.PUBLISHED:
            stored = self._stores.get((queue, task_type))
            if stored is None:
                stored = self._stores[queue, task_type] = self._published.labels(queue, task_type)
                self._expect(queue, task_type)
            stored.inc()
            return
        if kind is EventKind.STARTED:
            start = self._starts.get((queue, task_type))
            if start is None:
                start = self._starts[queue, task_type] = self._wait.labels(queue, task_type)
                self._expect(queue, task_type)
            start.observe(max(event.wait_s or 0.0, 0.0))
            return
        end = self._ends.get((queue, task_type, kind))
        if end is None:
            end = self._ends[queue, task_type, kind] = (
                self._ended.labels(queue, task_type, kind.value),
                self._run.labels(queue, task_type),
            )
            self._expect(queue, task_type)
        end[0].inc()
        if event.run_s is not None:
            end[1].observe(event.run_s)

    def _expect(self, queue: str, task_type: str) -> None:
        """Have the counter of its dead letters begin at 0."""
        self._ended.labels(queue, task_type, EventKind.FAILED.value)

    def storage_failed(self, operation: str, error: StorageError) -> None:
        """Count a failure of the storage; the dispatcher calls this."""
        self._errors.labels(operation).inc()

    def cron_fired(self, name: str, lag_s: float) -> None:
        """Note how late a tick was; the dispatcher calls this."""
        self._lag.observe(max(lag_s, 0.0))

    def show(self, queues: Sequence[QueueSurvey]) -> None:
        """Set the gauges; those of a queue that was removed go."""
        names = {each.queue for each in queues}
        if not self._shown <= names:  # seldom: all go, rather than look for its own in each
            self.forget()
        self._shown = names
        for each in queues:
            for status, count in each.tasks.items():
                self._tasks.labels(each.queue, status).set(count)
            self._oldest.labels(each.queue).set(each.oldest_age_s)
            self._paused.labels(each.queue).set(each.paused)
            if each.concurrency is not None:
                self._concurrency.labels(each.queue).set(each.concurrency)
            if each.running is not None:
                self._running.labels(each.queue).set(each.running)

    def forget(self) -> None:
        """Take the gauges away, which Prometheus then holds for stale."""
        for gauge in self._gauges:
            gauge.clear()

    async def look(self, dispatcher: Dispatcher, *, bound: int = BOUND) -> None:
        """As `Surveyor.look`; the dead letters of each handler registered begin at 0."""
        for queue, task_type in dispatcher.consumer.addresses:
            self._expect(queue, task_type)
        await super().look(dispatcher, bound=bound)

    async def exposition(self, dispatcher: Dispatcher) -> bytes:
        """Survey the queues and give every metric as text, to be served as `CONTENT_TYPE`.

        A storage that is away costs the gauges only, and is counted. A checkpoint.
        """
        with suppress(StorageError):
            await self.look(dispatcher)
        return generate_latest(self.registry)

    def __repr__(self) -> str:
        return "<PrometheusObserver>"
