"""Traces and metrics through the real SDK: what a person would find in their backend."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import frozen
from opentelemetry import baggage, context, trace
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from dispatch import (
    Cancel,
    Clock,
    Dispatcher,
    InvalidConfigError,
    Limits,
    MemoryStorage,
    PermanentError,
    QueueFullError,
    QueueTask,
    Run,
    Snooze,
    StorageError,
    TaskQueueConfig,
    TaskQueueConsumer,
    TaskQueuePublisher,
    TaskStatus,
    TaskType,
    open_dispatcher,
)
from dispatch.codec import Codec
from dispatch.events import Observers
from dispatch.observe.otel import OpenTelemetryObserver
from dispatch.storage.protocol import Change, Want
from dispatch.storage.query import Ids
from tests.engine.work import JOB, Job, Script, nothing, working

from .conftest import Away, Telemetry

NEXT = TaskType("q", "next", Job)


def ids(context: Any) -> tuple[int, int]:
    """A span's identity; what came through headers is also marked as remote."""
    return context.trace_id, context.span_id


def attributes(span: ReadableSpan) -> Mapping[str, Any]:
    assert span.attributes is not None
    return span.attributes


async def test_observed_before_it_runs_it_wraps_attempts_and_later_it_is_refused(
    autojump_clock: object, telemetry: Telemetry
) -> None:
    dispatcher = Dispatcher(observers=())
    dispatcher.observe(telemetry.observer())
    dispatcher.consumer.register_queue("q")
    dispatcher.consumer.register_handler(JOB, nothing)
    async with trio.open_nursery() as nursery:
        await nursery.start(dispatcher.serve)
        await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
        with pytest.raises(InvalidConfigError, match="has a middleware for attempts, and this dispatcher runs already"):
            dispatcher.observe(telemetry.observer())
        dispatcher.close()
    assert [span.name for span in telemetry.spans()] == ["send q", "process q"]


async def test_a_publish_and_its_attempt_are_linked_and_named_by_the_conventions(
    autojump_clock: object, telemetry: Telemetry
) -> None:
    async with working(nothing, observers=[telemetry.observer()]) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job(), delay=3.0))
        await dispatcher.drain()
    send, process = telemetry.spans()
    assert (send.name, send.kind) == ("send q", SpanKind.PRODUCER)
    assert attributes(send) == {
        "messaging.system": "dispatch",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "q",
        "messaging.message.id": task.id,
        "dispatch.task.type": "job",
    }
    assert (process.name, process.kind) == ("process q", SpanKind.CONSUMER)
    assert attributes(process) == {
        "messaging.system": "dispatch",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "q",
        "messaging.message.id": task.id,
        "dispatch.task.type": "job",
        "dispatch.attempt": 1,
        "dispatch.queue_time": pytest.approx(0.0, abs=0.01),
    }
    assert [ids(link.context) for link in process.links] == [ids(send.context)]
    assert process.parent is None
    assert process.context.trace_id != send.context.trace_id
    assert process.status.status_code is StatusCode.UNSET


async def test_each_attempt_has_a_span_linked_to_the_one_publish(
    autojump_clock: object, telemetry: Telemetry
) -> None:
    handler = Script(ValueError("first"), None)
    async with working(handler, TaskQueueConfig(max_retry=1), observers=[telemetry.observer()]) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
    [send] = telemetry.spans("send q")
    first, second = telemetry.spans("process q")
    assert [attributes(each)["dispatch.attempt"] for each in (first, second)] == [1, 2]
    assert [ids(each.links[0].context) for each in (first, second)] == [ids(send.context)] * 2
    assert first.context.trace_id != second.context.trace_id
    assert first.status.status_code is StatusCode.ERROR
    assert first.status.description == "ValueError: first"
    assert attributes(first)["error.type"] == "ValueError"
    [event] = first.events
    assert event.name == "exception"
    assert second.status.status_code is StatusCode.UNSET


async def test_a_handlers_own_spans_are_children_of_its_attempts(
    autojump_clock: object, telemetry: Telemetry
) -> None:
    tracer = telemetry.tracers.get_tracer("user")

    async def handler(task: QueueTask[Job]) -> None:
        with tracer.start_as_current_span("work"):
            await trio.sleep(1)

    async with working(handler, TaskQueueConfig(concurrency=3), observers=[telemetry.observer()]) as dispatcher:
        await dispatcher.publisher.publish_many([JOB(Job(n)) for n in range(3)])
        await dispatcher.drain()
    attempts = {each.context.span_id for each in telemetry.spans("process q")}
    assert len(attempts) == 3
    assert {each.parent.span_id for each in telemetry.spans("work") if each.parent} == attempts


async def test_a_sync_handler_sees_the_span_in_its_thread(telemetry: Telemetry) -> None:
    seen: list[int] = []

    def handler(task: QueueTask[Job]) -> None:
        seen.append(trace.get_current_span().get_span_context().span_id)

    async with working(handler, observers=[telemetry.observer()]) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
    assert seen == [each.context.span_id for each in telemetry.spans("process q")]


async def test_the_publishers_baggage_reaches_the_handler_and_goes_no_further(
    autojump_clock: object, telemetry: Telemetry
) -> None:
    seen: list[Mapping[str, object]] = []

    async def handler(task: QueueTask[Job]) -> None:
        seen.append(baggage.get_all())

    async with working(handler, observers=[telemetry.observer()]) as dispatcher:
        token = context.attach(baggage.set_baggage("tenant", "ada"))
        try:
            await dispatcher.publisher.publish(JOB(Job()))
        finally:
            context.detach(token)
        await dispatcher.drain()
        await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
    assert [dict(each) for each in seen] == [{"tenant": "ada"}, {}]


async def test_the_span_around_serving_is_nobodys_parent(autojump_clock: object, telemetry: Telemetry) -> None:
    with telemetry.tracers.get_tracer("user").start_as_current_span("start-up"):
        async with working(nothing, observers=[telemetry.observer()]) as dispatcher:
            await dispatcher.publisher.publish(JOB(Job()))
            await dispatcher.drain()
    [process] = telemetry.spans("process q")
    [send] = telemetry.spans("send q")
    [startup] = telemetry.spans("start-up")
    assert process.parent is None
    assert send.parent is not None
    assert send.parent.span_id == startup.context.span_id


async def test_by_option_the_publishers_span_is_the_parent_too(
    autojump_clock: object, telemetry: Telemetry
) -> None:
    async with working(nothing, observers=[telemetry.observer(parent=True)]) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
    send, process = telemetry.spans()
    assert process.parent is not None
    assert process.parent.span_id == send.context.span_id
    assert [link.context.span_id for link in process.links] == [send.context.span_id]


async def test_a_task_published_by_its_handler_is_linked_to_that_attempt(
    autojump_clock: object, telemetry: Telemetry
) -> None:
    async def handler(task: QueueTask[Job], run: Run) -> None:
        await run.publish(NEXT(Job()))

    async with working(handler, observers=[telemetry.observer()]) as dispatcher:
        dispatcher.consumer.register_handler(NEXT, nothing)
        await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
    [create] = telemetry.spans("create q")
    first, second = telemetry.spans("process q")
    assert create.parent is not None
    assert create.parent.span_id == first.context.span_id
    assert attributes(create)["messaging.operation.type"] == "create"
    assert [ids(link.context) for link in second.links] == [ids(create.context)]


async def test_a_batch_has_one_span_and_every_task_its_context(
    autojump_clock: object, telemetry: Telemetry
) -> None:
    async with working(nothing, observers=[telemetry.observer()]) as dispatcher:
        dispatcher.consumer.register_queue("other")
        batch = [JOB(Job(1)), JOB(Job(2)), QueueTask(queue="other", type="job", payload=Job())]
        await dispatcher.publisher.publish_many(batch[:2])
        await dispatcher.publisher.publish_many(batch)
        await dispatcher.drain()
    [alike] = telemetry.spans("send q")
    [mixed] = telemetry.spans("send")
    assert attributes(alike)["messaging.batch.message_count"] == 2
    assert attributes(mixed)["messaging.batch.message_count"] == 3
    assert "messaging.destination.name" not in attributes(mixed)
    assert "messaging.message.id" not in attributes(alike)
    origins = [each.links[0].context.span_id for each in telemetry.spans("process q")]
    assert sorted(origins) == sorted([alike.context.span_id, mixed.context.span_id] * 2)


async def test_a_trace_crosses_from_a_publishing_process_to_a_working_one(
    autojump_clock: object, telemetry: Telemetry
) -> None:
    storage = MemoryStorage(Clock())
    publisher = TaskQueuePublisher(storage, observers=Observers((telemetry.observer(),)))
    consumer = TaskQueueConsumer(storage, observers=Observers((telemetry.observer(),)))
    consumer.register_queue("q")
    consumer.register_handler(JOB, nothing)
    async with trio.open_nursery() as nursery:
        await nursery.start(consumer.run)
        task = await publisher.publish(JOB(Job()))
        await publisher.wait(task)
        consumer.close()
    send, process = telemetry.spans()
    assert process.links[0].context.span_id == send.context.span_id
    assert process.links[0].context.is_remote


@pytest.mark.parametrize(
    ("error", "outcome"), [(Snooze(1.0), "snoozed"), (Cancel("enough"), "cancelled")]
)
async def test_what_a_handler_asks_for_is_no_error(
    autojump_clock: object, telemetry: Telemetry, error: Exception, outcome: str
) -> None:
    async with working(Script(error, None), observers=[telemetry.observer()]) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
    span = telemetry.spans("process q")[0]
    assert span.status.status_code is StatusCode.UNSET
    assert "error.type" not in attributes(span)
    outcomes = {point.attributes["dispatch.outcome"] for point in telemetry.points("messaging.process.duration")}
    assert outcome in outcomes


async def test_a_timeout_is_an_error_even_if_the_handler_swallowed_it(
    autojump_clock: object, telemetry: Telemetry
) -> None:
    async def handler(task: QueueTask[Job]) -> None:
        with trio.CancelScope(), trio.move_on_after(100):
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                if task.attempt == 2:
                    raise

    async def swallower(task: QueueTask[Job]) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            pass

    for each in (handler, swallower):
        async with working(each, TaskQueueConfig(timeout=2.0), observers=[telemetry.observer()]) as dispatcher:
            task = await dispatcher.publisher.publish(JOB(Job()))
            await dispatcher.drain()
            assert (await dispatcher.control.get(task)).status is TaskStatus.FAILED
    for span in telemetry.spans("process q"):
        assert span.status.status_code is StatusCode.ERROR
        assert attributes(span)["error.type"] == "timeout"
    assert len(telemetry.spans("process q")) == 2


async def test_a_run_cancelled_by_the_shutdown_ends_its_span_without_an_error(
    autojump_clock: object, telemetry: Telemetry
) -> None:
    async with working(Script(1_000.0), grace=1.0, observers=[telemetry.observer()]) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(1)
    [span] = telemetry.spans("process q")
    assert span.status.status_code is StatusCode.UNSET
    assert trace.get_current_span() is trace.INVALID_SPAN
    [point] = telemetry.points("messaging.process.duration")
    assert point.attributes["dispatch.outcome"] == "handed_back"


async def test_a_cancelled_publish_ends_its_span_and_leaves_no_context_behind(
    autojump_clock: object, telemetry: Telemetry
) -> None:
    async with working(Script(1_000.0), TaskQueueConfig(buffer_size=1), grace=0, observers=[telemetry.observer()]) as d:
        await d.publisher.publish(JOB(Job()))
        await trio.sleep(1)
        await d.publisher.publish(JOB(Job()))
        with trio.move_on_after(5) as scope:
            await d.publisher.publish(JOB(Job()))
        assert scope.cancelled_caught
        assert trace.get_current_span() is trace.INVALID_SPAN
    sent = telemetry.spans("send q")
    assert len(sent) == 3
    assert "messaging.message.id" not in attributes(sent[-1])
    assert sent[-1].status.status_code is StatusCode.UNSET
    assert sum(point.value for point in telemetry.points("messaging.client.sent.messages")) == 2


async def test_a_refused_publish_says_why(autojump_clock: object, telemetry: Telemetry) -> None:
    config = TaskQueueConfig(buffer_size=1, overflow="raise")
    async with working(config=config, observers=[telemetry.observer()]) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job()))
        with pytest.raises(QueueFullError):
            await dispatcher.publisher.publish(JOB(Job()))
    _, refused = telemetry.spans("send q")
    assert attributes(refused)["error.type"] == "QueueFullError"
    durations = telemetry.points("messaging.client.operation.duration")
    assert sorted(point.attributes.get("error.type", "") for point in durations) == ["", "QueueFullError"]


async def test_what_is_no_task_is_refused_as_ever(autojump_clock: object, telemetry: Telemetry) -> None:
    async with working(nothing, observers=[telemetry.observer()]) as dispatcher:
        publisher: Any = dispatcher.publisher
        with pytest.raises(Exception, match="expected a QueueTask"):
            await publisher.publish("garbage")
        bad, good = await publisher.publish_many([None, JOB(Job())])
        with pytest.raises(Exception, match="headers must be a mapping"):
            await publisher.publish(JOB(Job(), headers=7))  # type: ignore[arg-type]
        await dispatcher.drain()
    assert bad.error is not None
    assert good.task is not None
    assert len(telemetry.spans("process q")) == 1


async def test_a_context_the_caller_chose_is_kept(autojump_clock: object, telemetry: Telemetry) -> None:
    chosen = f"00-{7:032x}-{9:016x}-01"
    async with working(nothing, observers=[telemetry.observer()]) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job(), headers={"traceparent": chosen, "mine": "1"}))
        await dispatcher.drain()
    assert task.headers == {"traceparent": chosen, "mine": "1"}
    [process] = telemetry.spans("process q")
    assert (process.links[0].context.trace_id, process.links[0].context.span_id) == (7, 9)


async def test_tracing_never_takes_the_last_room_for_headers(
    autojump_clock: object, telemetry: Telemetry
) -> None:
    full = {f"h{n}": "x" for n in range(32)}
    token = context.attach(baggage.set_baggage("big", "x" * 2_000))
    try:
        async with working(nothing, observers=[telemetry.observer()]) as dispatcher:
            crowded = await dispatcher.publisher.publish(JOB(Job(), headers=full))
            roomy = await dispatcher.publisher.publish(JOB(Job()))
            await dispatcher.drain()
    finally:
        context.detach(token)
    assert dict(crowded.headers) == full
    assert set(roomy.headers) == {"traceparent"}
    assert [len(each.links) for each in telemetry.spans("process q")] == [0, 1]


@pytest.mark.parametrize("value", ["", "00-zz", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "\udcff", "x" * 1_000])
async def test_a_forged_context_is_ignored(
    autojump_clock: object, telemetry: Telemetry, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    # Older versions quote it in a warning, and no report can hold half a surrogate pair.
    caplog.set_level(logging.ERROR, logger="opentelemetry")
    handler = Script(None)
    storage = MemoryStorage()
    async with working(handler, storage=storage, observers=[telemetry.observer()]) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job(), delay=1.0))
        forged = {"traceparent": value, "baggage": value, "tracestate": value}
        await storage.alter(Ids(task.id), Change(action="patch", headers=forged))
        await dispatcher.drain()
    [process] = telemetry.spans("process q")
    assert process.links == ()
    assert len(handler.seen) == 1


async def test_an_undecodable_payload_has_a_span_that_leads_to_its_publisher(
    autojump_clock: object, telemetry: Telemetry
) -> None:
    @frozen
    class Other:
        text: str

    storage, observer = MemoryStorage(), telemetry.observer()
    async with working(nothing, storage=storage, observers=[observer]) as dispatcher:
        await dispatcher.publisher.declare()
        elsewhere = TaskQueuePublisher(storage, observers=Observers([observer]))  # knows nothing of the handler
        await elsewhere.publish(TaskType("q", "job", Other)(Other("x")))
        await dispatcher.drain()
    [process] = telemetry.spans("process q")
    [send] = telemetry.spans("send q")
    assert process.status.status_code is StatusCode.ERROR
    assert attributes(process)["error.type"] == "InvalidQueuePayloadError"
    assert process.links[0].context.span_id == send.context.span_id


async def test_metrics_are_in_base_units_and_of_low_cardinality(
    autojump_clock: object, telemetry: Telemetry
) -> None:
    observer = telemetry.observer()
    handler = Script(2.0, ValueError("x"), PermanentError("y"))
    async with working(handler, TaskQueueConfig(max_retry=3), observers=[observer]) as dispatcher:
        for _ in range(2):
            await dispatcher.publisher.publish(JOB(Job()))
            await dispatcher.drain()
        await dispatcher.publisher.publish(JOB(Job(), delay=60.0))
        await observer.look(dispatcher)
        units = telemetry.names()
        await observer.look(dispatcher)  # up to some version of the SDK a gauge is read once per setting
        depth = {point.attributes["dispatch.task.status"]: point.value for point in telemetry.points("dispatch.queue.depth")}
    assert units == {
        "messaging.client.sent.messages": "{message}",
        "messaging.client.consumed.messages": "{message}",
        "messaging.client.operation.duration": "s",
        "messaging.process.duration": "s",
        "dispatch.task.wait": "s",
        "dispatch.queue.depth": "{task}",
        "dispatch.queue.oldest_age": "s",
        "dispatch.queue.paused": "1",
    }
    assert depth == {"pending": 0, "later": 1, "running": 0, "held": 0, "failed": 1}
    ran = {
        (point.attributes["dispatch.outcome"], point.attributes.get("error.type")): (point.count, point.sum)
        for point in telemetry.points("messaging.process.duration")
    }
    assert ran == {
        ("succeeded", None): (1, pytest.approx(2.0)),
        ("retrying", "ValueError"): (1, pytest.approx(0.0)),
        ("failed", "PermanentError"): (1, pytest.approx(0.0)),
    }
    for name in units:
        for point in telemetry.points(name):
            assert not any("id" in key.split(".") for key in point.attributes)


async def test_while_the_storage_is_away_the_gauges_say_nothing(
    autojump_clock: object, telemetry: Telemetry
) -> None:
    storage, observer = Away(), telemetry.observer()
    gauges = {"dispatch.queue.depth", "dispatch.queue.oldest_age", "dispatch.queue.paused"}
    async with working(nothing, storage=storage, observers=[observer]) as dispatcher:
        await observer.look(dispatcher)
        assert gauges <= set(telemetry.names())
        assert gauges <= set(telemetry.names()), "read twice between two looks, they say the same"
        storage.away = True
        with pytest.raises(StorageError, match="away"):
            await observer.look(dispatcher)
        storage.away = False
    assert gauges.isdisjoint(telemetry.names())
    [errors] = telemetry.points("dispatch.storage.errors")
    assert (errors.value, errors.attributes["dispatch.storage.operation"]) == (1, "survey")


async def test_cron_lag_is_metered_for_functions_and_for_tasks(
    autojump_clock: object, telemetry: Telemetry
) -> None:
    async def tick() -> None:
        await trio.lowlevel.checkpoint()

    async with working(nothing, observers=[telemetry.observer()]) as dispatcher:
        await dispatcher.cron.add_with_name("@every 1m", "function", tick)
        await dispatcher.cron.add_with_name("@every 1m", "stored", JOB(Job()))
        await trio.sleep(130)
        await dispatcher.drain()
    [lag] = telemetry.points("dispatch.cron.lag")
    assert lag.count == 4
    assert lag.max < 0.01
    process = telemetry.spans("process q")
    assert [attributes(each)["dispatch.cron.name"] for each in process] == ["stored", "stored"]
    assert all(each.links == () and each.parent is None for each in process)
    assert sum(point.value for point in telemetry.points("messaging.client.sent.messages")) == 2


async def test_storage_errors_are_counted_by_what_was_being_done(
    autojump_clock: object, telemetry: Telemetry
) -> None:
    class Flaky(MemoryStorage):
        away = False

        async def enqueue(self, *args: Any, **kwargs: Any) -> Any:
            if self.away:
                raise StorageError("away")
            return await super().enqueue(*args, **kwargs)

        async def turn(self, *args: Any, **kwargs: Any) -> Any:
            if self.away:
                raise StorageError("away")
            return await super().turn(*args, **kwargs)

    storage = Flaky()
    async with working(nothing, storage=storage, observers=[telemetry.observer()]) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(), delay=1.0))
        await trio.sleep(0.5)  # it has looked, and waits for the task to fall due
        storage.away = True
        with pytest.raises(StorageError):
            await dispatcher.publisher.publish(JOB(Job()))
        with pytest.raises(StorageError):
            await dispatcher.publisher.publish_many([JOB(Job())])
        await trio.sleep(0.55)
        storage.away = False
        await dispatcher.drain()
    counted = {
        point.attributes["dispatch.storage.operation"]: point.value for point in telemetry.points("dispatch.storage.errors")
    }
    assert counted == {"publish": 2, "turn": 1}


async def test_a_task_that_died_with_its_worker_is_counted_among_the_dead_letters(
    autojump_clock: object, telemetry: Telemetry
) -> None:
    storage = MemoryStorage()
    async with working(None, storage=storage, observers=[telemetry.observer()]) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job()))
        await storage.claim([Want(queue="q", limit=1, max_retry=0)], worker="dead", lease=2.0)
        await trio.sleep(10)
    [rescues] = telemetry.points("dispatch.task.rescues")
    assert rescues.value == 1
    [ended] = telemetry.points("messaging.process.duration")
    assert ended.attributes["dispatch.outcome"] == "failed"
    assert ended.attributes["error.type"] == "LeaseExpired"
    assert ended.sum == pytest.approx(2.0, abs=0.1)


async def test_a_rescue_is_counted_and_the_next_attempt_is_linked_like_the_first(
    autojump_clock: object, telemetry: Telemetry
) -> None:
    storage = MemoryStorage()
    config = TaskQueueConfig(max_retry=1)
    async with working(None, config, storage=storage, observers=[telemetry.observer()]) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job()))
        await storage.claim([Want(queue="q", limit=1, max_retry=1)], worker="dead", lease=2.0)
        dispatcher.consumer.register_handler(JOB, nothing)
        await dispatcher.drain()
    [rescues] = telemetry.points("dispatch.task.rescues")
    assert rescues.value == 1
    [send] = telemetry.spans("send q")
    [process] = telemetry.spans("process q")
    assert attributes(process)["dispatch.attempt"] == 2
    assert ids(process.links[0].context) == ids(send.context)


class Broken(TextMapPropagator):
    """A propagator that fails at everything."""

    def inject(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("inject")

    def extract(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("extract")

    @property
    def fields(self) -> set[str]:
        return set()


class BrokenProcessor(SpanProcessor):
    """A processor that fails at everything."""

    def on_start(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("on_start")

    def on_end(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("on_end")


@pytest.mark.parametrize("broken", ["propagator", "processor"])
async def test_broken_telemetry_harms_no_task(
    autojump_clock: object, telemetry: Telemetry, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"propagator": Broken()} if broken == "propagator" else {}
    if broken == "processor":
        telemetry.tracers.add_span_processor(BrokenProcessor())
    handler = Script(None)
    async with working(handler, observers=[telemetry.observer(**options)]) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
        assert (await dispatcher.control.get(task)).status is TaskStatus.SUCCEEDED
    assert len(handler.seen) == 1
    assert {each.levelno for each in caplog.records if each.name == "dispatch.observe"} == {logging.ERROR}


async def test_without_an_sdk_nothing_is_added_to_the_headers(autojump_clock: object) -> None:
    observer = OpenTelemetryObserver(propagator=TraceContextTextMapPropagator())
    async with working(nothing, observers=[observer]) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
        assert (await dispatcher.control.get(task)).status is TaskStatus.SUCCEEDED
    assert dict(task.headers) == {}


async def test_a_publish_in_a_users_transaction_has_its_span_on_any_thread(tmp_path: Path, telemetry: Telemetry) -> None:
    file = tmp_path / "jobs.db"
    headers: list[Mapping[str, str]] = []

    async def handler(task: QueueTask[Job]) -> None:
        headers.append(task.headers)

    async with open_dispatcher(f"sqlite:///{file}", observers=[telemetry.observer()]) as dispatcher:
        dispatcher.consumer.register_queue("q")
        dispatcher.consumer.register_handler(JOB, handler)
        await dispatcher.control.queues()

        def work() -> None:
            with closing(sqlite3.connect(file)) as connection, connection:
                connection.execute("BEGIN IMMEDIATE")
                dispatcher.publisher.publish_in(connection, JOB(Job()))

        await dispatcher.publisher.declare()
        await trio.to_thread.run_sync(work)
        await dispatcher.drain()
    [send] = telemetry.spans("send q")
    assert f"{send.context.trace_id:032x}" in headers[0]["traceparent"]


async def test_no_task_is_refused_for_the_sake_of_its_trace(autojump_clock: object, telemetry: Telemetry) -> None:
    codec = Codec(Limits(header_value_bytes=32))
    async with working(nothing, observers=[telemetry.observer()], codec=codec) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        assert task.headers == {}
        assert [each.error for each in await dispatcher.publisher.publish_many([JOB(Job()), JOB(Job())])] == [None, None]
        await dispatcher.drain()
