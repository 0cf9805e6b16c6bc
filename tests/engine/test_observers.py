"""Event records, log lines, streams, statistics and reprs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, NoReturn

import pytest
import trio
import trio.testing

from dispatch import (
    Cancel,
    EventKind,
    MemoryStorage,
    QueueTask,
    Run,
    Snooze,
    StorageError,
    TaskEvent,
    TaskQueueConfig,
    TaskStatus,
)
from dispatch.dispatcher import EventStream
from dispatch.events import Observers
from dispatch.observe.logging import LogObserver
from dispatch.storage.protocol import Want
from dispatch.storage.query import Ids

from .work import JOB, Job, Script, nothing, working


async def test_there_is_one_record_per_transition(autojump_clock: object) -> None:
    events: list[TaskEvent] = []
    steps = (Snooze(1.0), ValueError("x"), Cancel("c"))
    async with working(Script(*steps), TaskQueueConfig(max_retry=2), observers=(events.append,)) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
    assert [event.kind.value for event in events] == [
        "published", "started", "snoozed", "started", "retrying", "started", "cancelled",
    ]
    assert {event.task_id for event in events} == {task.id}
    retrying = events[4]
    assert (retrying.attempt, retrying.retry_in, retrying.error) == (1, 1.0, "ValueError: x")
    assert events[1].wait_s == pytest.approx(0.0, abs=0.01)
    assert (events[1].run_s, events[2].wait_s) == (None, None)


@pytest.mark.parametrize(
    ("max_retry", "on_interrupt", "asked", "kind", "reason", "status"),
    [
        (1, "retry", False, "rescued", None, "pending"),
        (0, "retry", False, "failed", "exhausted", "failed"),
        (1, "fail", False, "failed", "interrupted", "failed"),
        (1, "retry", True, "cancelled", None, "cancelled"),
    ],
)
async def test_a_rescue_is_one_record_named_after_what_became_of_the_task(
    max_retry: int,
    on_interrupt: str,
    asked: bool,
    kind: str,
    reason: str | None,
    status: str,
    autojump_clock: object,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its worker died: whoever counts the dead letters must be told of this one, too."""
    caplog.set_level(logging.DEBUG, "dispatch.tasks")
    events: list[TaskEvent] = []
    storage = MemoryStorage()
    async with working(storage=storage, observers=(events.append, LogObserver())) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        slow = '["fixed", 60.0, 2.0, 60.0, 0.0]'
        want = Want(queue="q", limit=1, max_retry=max_retry, on_interrupt=on_interrupt, retry=slow)
        await storage.claim([want], worker="dead", lease=2.0)
        if asked:
            await dispatcher.control.cancel(task)
        await trio.sleep(10)
        [stored] = (await storage.find(Ids(task.id))).records
    assert stored.status == status
    published, rescue = events
    assert published.kind is EventKind.PUBLISHED
    assert (rescue.kind.value, rescue.rescued, rescue.failure_reason) == (kind, True, reason)
    assert (rescue.attempt, rescue.worker) == (1, "dead")
    assert rescue.error == "LeaseExpired: worker dead stopped renewing attempt 1; its process may have died"
    assert rescue.run_s == (None if kind == "rescued" else pytest.approx(2.0, abs=0.1))
    _, line = (record for record in caplog.records if record.name == "dispatch.tasks")
    levels = {"rescued": logging.DEBUG, "failed": logging.ERROR, "cancelled": logging.INFO}
    assert (line.levelno, line.__dict__["failure_reason"]) == (levels[kind], reason)
    assert any("rescued from worker dead" in message for message in caplog.messages)


async def test_what_becomes_of_a_tick_says_whose_it_is(autojump_clock: object) -> None:
    events: list[TaskEvent] = []
    async with working(Script(ValueError("x"), None), TaskQueueConfig(max_retry=1), observers=[events.append]) as dispatcher:
        await dispatcher.cron.add_with_name("@every 1h", "hourly", JOB(Job(), headers={"tenant": "a"}))
        await trio.sleep(3_700)
    assert [event.kind.value for event in events] == ["published", "started", "retrying", "started", "succeeded"]
    assert {(event.cron, *event.headers.items()) for event in events} == {("hourly", ("tenant", "a"))}


async def test_a_failing_observer_is_logged_and_harms_nobody(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[EventKind] = []

    def broken(event: TaskEvent) -> None:
        raise RuntimeError("observer")

    async with working(nothing, observers=(broken, lambda event: events.append(event.kind))) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
    assert events == [EventKind.PUBLISHED, EventKind.STARTED, EventKind.SUCCEEDED]
    assert sum("failed on" in message for message in caplog.messages) == 3


async def test_a_stream_gives_the_events_from_subscribing_on(autojump_clock: object) -> None:
    async with working(nothing) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
        async with dispatcher.subscribe() as events:
            with trio.move_on_after(1) as scope:
                await events.__anext__()
            assert scope.cancelled_caught
            await dispatcher.publisher.publish(JOB(Job()))
            kinds = [(await events.__anext__()).kind.value for _ in range(3)]
    assert sorted(kinds) == ["published", "started", "succeeded"]  # a start may be told of first


async def test_a_reader_that_falls_behind_loses_the_oldest_and_is_told(autojump_clock: object) -> None:
    async with working() as dispatcher, dispatcher.subscribe() as events:
        for start in range(0, 1_100, 100):
            await dispatcher.publisher.publish_many([JOB(Job(start + n), delay=9.0) for n in range(100)])
        assert events.lost == 1_100 - 1_024
        assert repr(events) == "<EventStream waiting=1024 lost=76>"


async def test_a_stream_ends_with_its_dispatcher_after_the_last_event(autojump_clock: object) -> None:
    read: list[str] = []

    async def reader(events: EventStream) -> None:
        read.extend([event.kind.value async for event in events])

    async with AsyncExitStack() as subscribed, trio.open_nursery() as nursery:
        async with working(Script(3.0), grace=5.0) as dispatcher:
            nursery.start_soon(reader, await subscribed.enter_async_context(dispatcher.subscribe()))
            unread = await subscribed.enter_async_context(dispatcher.subscribe())
            await dispatcher.publisher.publish(JOB(Job()))
            await trio.sleep(1)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(read) == ["published", "started", "succeeded"]  # the last one within the grace
        assert [event.kind.value async for event in unread] == read
        with pytest.raises(StopAsyncIteration):
            await unread.__anext__()
        async with dispatcher.subscribe() as late:
            assert [event async for event in late] == []


async def test_log_levels_and_fields_and_never_a_payload(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    handler = Script(ValueError("x"))
    async with working(handler, TaskQueueConfig(max_retry=1)) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job(31_415_926)))
        await dispatcher.drain()
    lines = [each for each in caplog.records if each.name == "dispatch.tasks"]
    assert [(each.levelname, each.__dict__["event"]) for each in lines] == [
        ("DEBUG", "published"), ("DEBUG", "started"), ("WARNING", "retrying"), ("DEBUG", "started"), ("ERROR", "failed"),
    ]
    fields = lines[-1].__dict__
    assert (fields["task_id"], fields["queue"], fields["task_type"], fields["attempt"]) == (task.id, "q", "job", 2)
    assert fields["failure_reason"] == "exhausted"
    assert "31415926" not in caplog.text


async def test_a_control_character_in_an_error_forges_no_log_line(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dispatch")
    text = "a\x1b[31m\r\nCRITICAL b"

    async def fail() -> None:
        raise ValueError(text)

    async with working(Script(ValueError(text), Cancel(text), 60.0)) as dispatcher:
        tasks = [await dispatcher.publisher.publish(JOB(Job())) for _ in range(3)]
        await trio.sleep(1)
        await dispatcher.control.cancel(tasks[2], reason=text)
        with pytest.raises(ValueError, match="CRITICAL"):
            await dispatcher.pool.run(fail).result()
        await dispatcher.drain()
        errors = [(await dispatcher.control.get(task)).last_error for task in tasks]
    lines = [line for line in caplog.messages if "CRITICAL" in line]
    assert len(lines) == 4
    assert all(line.isprintable() for line in lines)
    fields: list[Any] = [each for each in caplog.records if "CRITICAL" in str(getattr(each, "error", ""))]
    assert [each.error.isprintable() for each in fields] == [True] * 3
    assert errors[0] == "ValueError: a\\x1b[31m\\r\nCRITICAL b"


async def test_the_runs_logger_carries_its_fields(autojump_clock: object, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(task: QueueTask[Job], run: Run) -> None:
        run.log.warning("here", extra={"mine": 1})

    async with working(handler) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
    [line] = [each for each in caplog.records if each.getMessage() == "here"]
    found: Any = line
    assert (found.task_id, found.queue, found.task_type, found.attempt, found.mine) == (task.id, "q", "job", 1, 1)


async def test_statistics_and_reprs_say_what_goes_on(autojump_clock: object) -> None:
    async with working(Script(ValueError("x"), 60.0), TaskQueueConfig(concurrency=4), worker="w1") as dispatcher:
        await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(1)
        await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(1)
        statistics = dispatcher.statistics()
        queue = statistics.queues["q"]
        assert (statistics.worker, statistics.running) == ("w1", 1)
        assert (queue.started, queue.failed, queue.running, queue.concurrency) == (2, 1, 1, 4)
        assert repr(dispatcher) == "<Dispatcher w1 serving over <MemoryStorage tasks=2 queues=1>>"
        assert repr(dispatcher.consumer) == "<TaskQueueConsumer w1 running queues=1 tasks=1>"
    assert repr(dispatcher) == "<Dispatcher w1 closed over <MemoryStorage tasks=2 queues=1>>"


async def test_whatever_an_observer_raises_ends_nothing(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    def leaves(event: TaskEvent) -> None:
        raise SystemExit

    async with working(nothing, observers=[leaves]) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
        assert (await dispatcher.control.get(task)).status is TaskStatus.SUCCEEDED
    assert sum("failed on" in message for message in caplog.messages) == 3


class AwayAtFirst(MemoryStorage):
    away = True

    async def turn(self, *what: Any, **options: Any) -> Any:
        if self.away:
            self.away = False
            raise StorageError("away")
        return await super().turn(*what, **options)


@pytest.mark.parametrize("name", ["interested_in", "cron_fired", "storage_failed", "publishing", "publishing, late"])
async def test_whatever_else_an_observer_raises_ends_nothing(
    name: str, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    left: list[str] = []

    def observer(event: TaskEvent) -> None:
        pass

    def leaves(*what: object) -> NoReturn:
        left.append(name)
        raise SystemExit

    @contextmanager
    def leaves_late(tasks: Any, operation: str) -> Iterator[Any]:
        yield tasks
        leaves()

    setattr(observer, name.removesuffix(", late"), leaves_late if name.endswith(", late") else leaves)
    async with working(nothing, storage=AwayAtFirst(), observers=[observer]) as dispatcher:
        await dispatcher.cron.add_with_name("@every 1s", "tick", trio.lowlevel.checkpoint)
        task = await dispatcher.publisher.publish(JOB(Job()))
        assert (await dispatcher.publisher.wait(task)).status is TaskStatus.SUCCEEDED
        await trio.sleep(1.5)
    assert left
    assert sum(message.startswith("observer ") for message in caplog.messages) == len(left)


def test_a_ctrl_c_in_an_observer_goes_on_to_whom_it_is_meant_for() -> None:
    def observer(event: TaskEvent) -> None:
        pass

    def interrupted(*what: object) -> NoReturn:
        raise KeyboardInterrupt

    observer.interested_in = observer.cron_fired = interrupted  # type: ignore[attr-defined]
    observers = Observers([observer])
    with pytest.raises(KeyboardInterrupt):
        observers.wants(EventKind.STARTED)
    with pytest.raises(KeyboardInterrupt):
        observers.tell("cron_fired", "tick", 0.0)


async def test_in_memory_a_task_is_said_to_be_published_before_it_is_said_to_start() -> None:
    told: dict[str, list[EventKind]] = {}

    def note(event: TaskEvent) -> None:
        told.setdefault(event.task_id, []).append(event.kind)

    async def at_once(task: QueueTask[Job]) -> None:
        pass

    async with working(at_once, TaskQueueConfig(concurrency=4, buffer_size=1_000), observers=[note]) as dispatcher:
        for n in range(120):
            await dispatcher.publisher.publish(JOB(Job(n)))
            if n % 40 == 0:
                await dispatcher.publisher.publish_many([JOB(Job(m)) for m in range(20)])
        await dispatcher.drain()
    assert len(told) == 180
    assert set(map(tuple, told.values())) == {(EventKind.PUBLISHED, EventKind.STARTED, EventKind.SUCCEEDED)}
