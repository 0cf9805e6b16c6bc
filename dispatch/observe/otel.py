"""OpenTelemetry spans and metrics, by the API alone: your SDK decides where they go.

    telemetry = OpenTelemetryObserver()
    async with open_dispatcher(observers=[LogObserver(), telemetry]) as dispatcher:
        ...

Theory of operation. Publishing makes a span `send {queue}` (`create {queue}` for
`run.publish`), whose context is written into the task's headers as the
propagator says, `traceparent` by default. Each attempt makes a span
`process {queue}` of a trace of its own, *linked* to that context: a task may run
days later, or five times, which no parent span waits for. `parent=True` makes it
a child as well, for those who want one trace. The handler runs with the span
current and with the publisher's baggage, in its thread, too.

Names are those of the messaging conventions (there are none for jobs); what they
lack is `dispatch.*`. A span tells of the attempt as its handler saw it; what the
storage then made of the task is the outcome in the metrics, which follow the
events. Nothing here can fail a task: what a propagator or an exporter raises is
logged, and the work goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter
from typing import Any, Final

import attrs
import trio

from dispatch.codec import Limits
from dispatch.errors import Cancel, MissingExtraError, Snooze, StorageError
from dispatch.events import EventKind, Operation, TaskEvent
from dispatch.failures import describe, parted
from dispatch.handlers import Next
from dispatch.observe.survey import QueueSurvey, Surveyor
from dispatch.run import Run
from dispatch.tasks import FailureReason, QueueTask

try:
    from opentelemetry import context as contexts
    from opentelemetry import metrics, propagate, trace
    from opentelemetry.context import Context
    from opentelemetry.metrics import CallbackOptions, Observation
    from opentelemetry.propagators.textmap import TextMapPropagator  # noqa: TC002 - beside its package
    from opentelemetry.trace import Link, Span, SpanKind, StatusCode
except ImportError as _missing:
    raise MissingExtraError(
        "OpenTelemetry needs its API package: pip install 'trio-dispatch[otel]'"
    ) from _missing

__all__ = ["OpenTelemetryObserver"]

log: Final = logging.getLogger("dispatch.observe")

SCOPE: Final = "dispatch"
LIMITS: Final = Limits()
"""A header beyond the codec's limits would have the task refused."""

PROCESS_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""As the conventions advise for `messaging.process.duration`."""
WAIT_BUCKETS_S: Final = (0.001, 0.01, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3_600, 14_400, 86_400)

Attributes = dict[str, str | int | float]

sending: Final[ContextVar[Span | None]] = ContextVar("dispatch_sending", default=None)
"""The span of the publishing under way in this trio task, for the id that the storage step tells of."""


class OpenTelemetryObserver(Surveyor):
    """Traces publishing and attempts, and meters what becomes of them.

    - `tracer_provider`, `meter_provider`, `propagator`: the global ones if None.
    - `parent`: make the publisher's span the parent of each attempt's, beside
      the link.

    Give it when the dispatcher is made: by `observe()` later it would only meter.
    `await nursery.start(telemetry.run, dispatcher)` keeps the queue gauges fresh.
    """

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        propagator: TextMapPropagator | None = None,
        parent: bool = False,
    ) -> None:
        self._tracer = trace.get_tracer(SCOPE, tracer_provider=tracer_provider)
        self._propagator = propagator
        self._parent = parent
        meter = metrics.get_meter(SCOPE, meter_provider=meter_provider)
        self._sent = meter.create_counter("messaging.client.sent.messages", "{message}", "Tasks stored.")
        self._consumed = meter.create_counter(
            "messaging.client.consumed.messages", "{message}", "Attempts started."
        )
        self._sending_s = meter.create_histogram(
            "messaging.client.operation.duration",
            "s",
            "Publishing, waiting for room included.",
            explicit_bucket_boundaries_advisory=PROCESS_BUCKETS_S,
        )
        self._process_s = meter.create_histogram(
            "messaging.process.duration",
            "s",
            "From the start to the end of an attempt.",
            explicit_bucket_boundaries_advisory=PROCESS_BUCKETS_S,
        )
        self._wait_s = meter.create_histogram(
            "dispatch.task.wait",
            "s",
            "From falling due to the start of an attempt.",
            explicit_bucket_boundaries_advisory=WAIT_BUCKETS_S,
        )
        self._lag_s = meter.create_histogram(
            "dispatch.cron.lag",
            "s",
            "From a cron task's moment to its run or publication.",
            explicit_bucket_boundaries_advisory=WAIT_BUCKETS_S,
        )
        self._rescued = meter.create_counter(
            "dispatch.task.rescues", "{task}", "Tasks taken from workers that stopped renewing."
        )
        self._errors = meter.create_counter(
            "dispatch.storage.errors", "{error}", "Failures of the storage met."
        )
        # Asked for when they are read, and not set: one that was set is exported for ever.
        self._queues: Sequence[QueueSurvey] = ()
        meter.create_observable_gauge(
            "dispatch.queue.depth",
            [self._depths],
            "{task}",
            "Stored tasks that have not ended, and dead letters.",
        )
        meter.create_observable_gauge(
            "dispatch.queue.oldest_age",
            [self._oldest_ages],
            "s",
            "How long the longest due task has been due.",
        )
        meter.create_observable_gauge(
            "dispatch.queue.paused", [self._pauses], "1", "1 while the queue is paused, else 0."
        )

    # -- publishing -----------------------------------------------------------

    @contextmanager
    def publishing(
        self, tasks: Sequence[QueueTask[Any, Any]], operation: Operation
    ) -> Generator[Sequence[QueueTask[Any, Any]]]:
        """A span around one publishing, its context in each task's headers.

        A batch has one span; a task that carries a trace context already keeps it.
        """
        # Whatever is no task is passed on: publishing says better what is wrong with it.
        queues = {str(task.queue) for task in tasks if isinstance(task, QueueTask)}
        attributes: Attributes = _operation(operation, queues.pop() if len(queues) == 1 else None)
        if len(tasks) != 1:
            attributes["messaging.batch.message_count"] = len(tasks)
        elif isinstance(tasks[0], QueueTask):
            attributes["dispatch.task.type"] = str(tasks[0].type)
        span = self._started(attributes, None, SpanKind.PRODUCER)
        began = perf_counter()
        failure: BaseException | None = None
        attached = contexts.attach(trace.set_span_in_context(span))
        marked = sending.set(span if len(tasks) == 1 else None)
        try:
            yield self._stamped(tasks)
        except BaseException as exc:
            failure = exc
            raise
        finally:
            sending.reset(marked)
            contexts.detach(attached)
            kind = _conclude(span, failure)
            if operation == "send":
                measured = _operation(operation, str(attributes.get("messaging.destination.name", "")) or None)
                if kind is not None:
                    measured["error.type"] = kind
                self._sending_s.record(perf_counter() - began, measured)

    def _stamped(self, tasks: Sequence[QueueTask[Any, Any]]) -> list[QueueTask[Any, Any]]:
        """The tasks with the current context in their headers, where there is room for it."""
        carrier: dict[str, str] = {}
        try:
            self._propagators.inject(carrier)  # pyright: ignore[reportArgumentType] - its default setter is too narrow
        except Exception:
            log.exception("a propagator failed; tasks are published without a trace context")
        fitting = {
            name: value
            for name, value in carrier.items()
            if len(value.encode("utf-8", "replace")) <= LIMITS.header_value_bytes
        }
        if not fitting:
            return list(tasks)
        return [_with_headers(task, fitting) for task in tasks]

    # -- attempts -------------------------------------------------------------

    async def middleware(self, task: QueueTask[Any, Any], run: Run, call_next: Next) -> Any:
        """A span around one attempt, current for its handler."""
        remote = self._extracted(task.headers)
        span = self._attempt_span(task, remote)
        failure: BaseException | None = None
        attached = contexts.attach(trace.set_span_in_context(span, remote))
        try:
            return await call_next(task, run)
        except BaseException as exc:
            failure = exc
            raise
        finally:
            contexts.detach(attached)
            _conclude(span, failure, late=trio.current_time() >= run.deadline)

    def _attempt_span(self, task: QueueTask[Any, Any], remote: Context) -> Span:
        attributes = _operation("process", task.queue)
        attributes |= {
            "messaging.message.id": task.id,
            "dispatch.task.type": task.type,
            "dispatch.attempt": task.attempt,
        }
        if task.started_at is not None and task.available_at is not None:
            waited_s = (task.started_at - task.available_at).total_seconds()
            attributes["dispatch.queue_time"] = max(waited_s, 0.0)
        if task.cron is not None:
            attributes["dispatch.cron.name"] = task.cron
        return self._process_span(attributes, remote)

    def _process_span(self, attributes: Attributes, remote: Context) -> Span:
        creation = trace.get_current_span(remote).get_span_context()
        links = [Link(creation)] if creation.is_valid else []
        # An empty context and not None, which means the current one: that of serve time has no say.
        return self._started(attributes, remote if self._parent else Context(), SpanKind.CONSUMER, links)

    def _extracted(self, headers: Mapping[str, str]) -> Context:
        """The publisher's context, empty where its headers say nothing that makes sense."""
        try:
            return self._propagators.extract(headers, context=Context())
        except Exception:
            log.exception("a propagator failed; the attempt begins without a trace context")
            return Context()

    @property
    def _propagators(self) -> TextMapPropagator:
        # Asked each time: a service may set the global one after making this observer.
        return self._propagator if self._propagator is not None else propagate.get_global_textmap()

    def _started(
        self, attributes: Attributes, context: Context | None, kind: SpanKind, links: Sequence[Link] = ()
    ) -> Span:
        """A span begun; one that records nothing where a sampler or a processor failed."""
        operation, queue = attributes["messaging.operation.name"], attributes.get("messaging.destination.name")
        name = str(operation) if queue is None else f"{operation} {queue}"
        try:
            return self._tracer.start_span(name, context, kind, attributes, links)
        except Exception:
            log.exception("a span could not be started")
            return trace.INVALID_SPAN

    # -- events ---------------------------------------------------------------

    def __call__(self, event: TaskEvent) -> None:
        if event.kind is EventKind.PUBLISHED:
            span = sending.get()
            if span is not None:
                span.set_attribute("messaging.message.id", event.task_id)
            self._sent.add(1, _measured("send", event))
        elif event.kind is EventKind.STARTED:
            self._consumed.add(1, _measured("process", event))
            self._wait_s.record(max(event.wait_s or 0.0, 0.0), _measured("process", event))
        else:
            self._ended(event)

    def _ended(self, event: TaskEvent) -> None:
        if event.rescued:
            self._rescued.add(1, _measured("process", event))
        if event.kind is EventKind.RESCUED:
            return
        attributes = _measured("process", event)
        attributes["dispatch.outcome"] = event.kind.value
        if event.kind in (EventKind.RETRYING, EventKind.FAILED):
            attributes["error.type"] = _kind_of_error(event.error)
        self._process_s.record(event.run_s or 0.0, attributes)
        if event.failure_reason is FailureReason.INVALID_PAYLOAD:
            self._undecodable(event)

    def _undecodable(self, event: TaskEvent) -> None:
        """A span for the attempt that never reached a handler: its link says who published that."""
        attributes = _operation("process", event.queue)
        attributes |= {
            "messaging.message.id": event.task_id,
            "dispatch.task.type": event.task_type,
            "dispatch.attempt": event.attempt,
            "error.type": _kind_of_error(event.error),
        }
        span = self._process_span(attributes, self._extracted(event.headers))
        span.set_status(StatusCode.ERROR, event.error)
        span.end()

    def storage_failed(self, operation: str, error: StorageError) -> None:
        """Count a failure of the storage; the dispatcher calls this."""
        self._errors.add(1, {"dispatch.storage.operation": operation})

    def cron_fired(self, name: str, lag_s: float) -> None:
        """Note how late a tick was; the dispatcher calls this."""
        self._lag_s.record(max(lag_s, 0.0))

    def show(self, queues: Sequence[QueueSurvey]) -> None:
        """Set what the gauges say when they are next read, by whichever thread."""
        self._queues = tuple(queues)

    def forget(self) -> None:
        """Have the gauges say nothing."""
        self._queues = ()

    def _depths(self, _: CallbackOptions) -> list[Observation]:
        return [
            Observation(count, {**_of_queue(each), "dispatch.task.status": status})
            for each in self._queues
            for status, count in each.tasks.items()
        ]

    def _oldest_ages(self, _: CallbackOptions) -> list[Observation]:
        return [Observation(each.oldest_age_s, _of_queue(each)) for each in self._queues]

    def _pauses(self, _: CallbackOptions) -> list[Observation]:
        return [Observation(int(each.paused), _of_queue(each)) for each in self._queues]

    def __repr__(self) -> str:
        return f"<OpenTelemetryObserver{' parent' if self._parent else ''}>"


def _of_queue(each: QueueSurvey) -> Attributes:
    return {"messaging.system": SCOPE, "messaging.destination.name": each.queue}


def _operation(operation: str, queue: str | None) -> Attributes:
    found: Attributes = {
        "messaging.system": SCOPE,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
    }
    if queue is not None:
        found["messaging.destination.name"] = queue
    return found


def _measured(operation: str, event: TaskEvent) -> Attributes:
    """A measurement's attributes, of low cardinality: no id, no attempt."""
    return {
        "messaging.system": SCOPE,
        "messaging.operation.name": operation,
        "messaging.destination.name": event.queue,
        "dispatch.task.type": event.task_type,
    }


def _with_headers(task: QueueTask[Any, Any], carrier: Mapping[str, str]) -> QueueTask[Any, Any]:
    if not isinstance(task, QueueTask) or not isinstance(task.headers, Mapping):
        return task
    if task.headers.keys() & carrier.keys():
        return task  # a context of the caller's own choice, or that of an earlier publishing
    if len(task.headers) + len(carrier) > LIMITS.headers:
        return task
    return attrs.evolve(task, headers={**task.headers, **carrier})


def _conclude(span: Span, failure: BaseException | None, *, late: bool = False) -> str | None:
    """End a span as its work ended; the `error.type` it was given, if any."""
    kind: str | None = None
    try:
        rest = parted(failure)[1] if failure is not None else None
        if late:
            kind = "timeout"
        elif rest is not None and not isinstance(rest, (Snooze, Cancel)):
            kind = type(rest).__qualname__
        if rest is not None and kind is not None:
            span.record_exception(rest)
        if kind is not None:
            span.set_attribute("error.type", kind)
            span.set_status(StatusCode.ERROR, "timeout" if rest is None else describe(rest))
        span.end()
    except Exception:
        log.exception("a span could not be ended")
    return kind


def _kind_of_error(error: str | None) -> str:
    """The class in front of an event's error text, `_OTHER` where it does not begin with one."""
    name = (error or "").partition(":")[0]
    return name if name.replace(".", "").isidentifier() else "_OTHER"
