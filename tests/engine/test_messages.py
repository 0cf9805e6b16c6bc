"""What errors say: what was got, what was wanted, which one it was, and what to do; and what a repr shows."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import trio

from dispatch import (
    Clock,
    ClosedError,
    Codec,
    Limits,
    MemoryStorage,
    QueueFullError,
    QueueNotRegisteredError,
    QueueTask,
    TaskQueueConfig,
    TaskQueueConsumer,
    TaskQueueControl,
    TaskQueuePublisher,
    TaskType,
    open_dispatcher,
)
from dispatch.storage.protocol import QueueRecord
from dispatch.storage.query import All
from dispatch.storage.sqlite import SqliteStorage

from .work import JOB, Job, nothing, working

# ---- closed -----------------------------------------------------------------------


async def test_a_closed_consumer_says_what_it_did_not_register() -> None:
    consumer = TaskQueueConsumer(MemoryStorage())
    consumer.register_queue("q")
    consumer.close()
    closed = "was not registered: this consumer is closed; make another one"
    with pytest.raises(ClosedError) as caught:
        consumer.register_queue("late")
    assert caught.value.detail == f"register_queue: queue 'late' {closed}"
    with pytest.raises(ClosedError) as caught:
        consumer.register_handler(JOB, nothing)
    assert caught.value.detail == f"register_handler: the handler of q/job {closed}"
    with pytest.raises(ClosedError) as caught:
        consumer.register_handler("q", "other", nothing)
    assert caught.value.detail == f"register_handler: the handler of q/other {closed}"
    with pytest.raises(ClosedError) as caught:
        consumer.register_handler(nothing)  # type: ignore[call-overload]
    assert caught.value.detail == f"register_handler: the handler {closed}"


async def test_a_closed_publisher_says_what_it_did_not_publish() -> None:
    async with working() as dispatcher:
        pass
    with pytest.raises(ClosedError) as caught:
        await dispatcher.publisher.publish(JOB(Job(), id="a"))
    assert caught.value.detail == (
        "publish: task a (q/job) was not stored: the publisher is closed, its dispatcher's block was left; "
        "publish inside it, or with a TaskQueuePublisher of its own"
    )
    alone = TaskQueuePublisher(MemoryStorage())
    alone.close()
    with pytest.raises(ClosedError) as caught:
        await alone.publish_many([JOB(Job())])
    assert caught.value.detail == (
        "publish: task q/job was not stored: the publisher is closed; publish it with a TaskQueuePublisher of its own"
    )


# ---- a queue that nobody knows ------------------------------------------------------


def task_for(queue: str) -> QueueTask[Job]:
    return TaskType(queue, "job", Job)(Job())


async def test_who_only_publishes_is_told_of_the_queues_in_the_storage() -> None:
    storage = MemoryStorage()
    await storage.declare([QueueRecord(name="mails"), QueueRecord(name="full")])
    publisher = TaskQueuePublisher(storage)
    near = (
        "queue 'fulll' is not registered; registered here: none; in the storage: full, mails; did you mean 'full'? "
        "If not, let a worker on this storage call consumer.register_queue('fulll') first"
    )
    with pytest.raises(QueueNotRegisteredError) as caught:
        await publisher.publish(task_for("fulll"))
    assert caught.value.detail == near
    known, unknown = await publisher.publish_many([task_for("full"), task_for("fulll")])
    assert known.error is None
    assert isinstance(unknown.error, QueueNotRegisteredError)
    assert unknown.error.detail == near
    with pytest.raises(QueueNotRegisteredError) as caught:
        await publisher.prepare(task_for("fulll"))
    assert caught.value.detail == near
    with pytest.raises(QueueNotRegisteredError) as caught:
        await publisher.publish(task_for("billing"))
    assert caught.value.detail == (
        "queue 'billing' is not registered; registered here: none; in the storage: full, mails. "
        "Let a worker on this storage call consumer.register_queue('billing') first"
    )


async def test_of_many_queues_some_are_named() -> None:
    storage = MemoryStorage()
    await storage.declare([QueueRecord(name=f"n{number:02}") for number in range(12)])
    with pytest.raises(QueueNotRegisteredError, match=r"in the storage: n00, .*, n09 and 2 more\. Let a worker"):
        await TaskQueuePublisher(storage).publish(task_for("elsewhere"))


async def test_a_storage_that_cannot_be_asked_hides_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = MemoryStorage()

    async def closed() -> list[QueueRecord]:
        await trio.lowlevel.checkpoint()
        raise ClosedError("this storage is closed")

    monkeypatch.setattr(storage, "queues", closed)
    with pytest.raises(QueueNotRegisteredError) as caught:
        await TaskQueuePublisher(storage).publish(task_for("mails"))
    assert caught.value.detail == (
        "queue 'mails' is not registered; registered here: none. "
        "Let a worker on this storage call consumer.register_queue('mails') first"
    )


async def test_a_publish_that_is_cancelled_while_it_asks_has_stored_the_rest(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = MemoryStorage()

    async def slow() -> list[QueueRecord]:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(storage, "queues", slow)
    await storage.declare([QueueRecord(name="full")])
    publisher = TaskQueuePublisher(storage)
    with trio.move_on_after(1) as scope:
        await publisher.publish_many([task_for("full"), task_for("fulll")])
    assert scope.cancelled_caught
    assert await storage.count(All()) == {(): 1}


async def test_publish_in_says_how_a_queue_registered_here_gets_into_the_storage(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    with sqlite3.connect(path) as connection:
        async with SqliteStorage(path) as storage, open_dispatcher(storage) as dispatcher:
            dispatcher.consumer.register_queue("q")
            connection.execute("BEGIN IMMEDIATE")
            with pytest.raises(QueueNotRegisteredError) as caught:
                dispatcher.publisher.publish_in(connection, JOB(Job()))
            connection.rollback()
            assert caught.value.detail == (
                "queue 'q' is registered here but not stored yet; "
                "await publisher.declare() first, as publish does by itself"
            )
            await dispatcher.publisher.declare()
            connection.execute("BEGIN IMMEDIATE")
            dispatcher.publisher.publish_in(connection, JOB(Job()))
            connection.commit()
            assert await dispatcher.control.count() == {(): 1}
    connection.close()


async def test_a_full_queue_of_another_process_tells_its_bound(tmp_path: Path) -> None:
    async with SqliteStorage(tmp_path / "jobs.db") as storage:
        async with working(config=TaskQueueConfig(max_waiting=1, overflow="raise"), storage=storage) as dispatcher:  # type: ignore[arg-type]
            await dispatcher.publisher.publish(JOB(Job()))
        publisher = TaskQueuePublisher(storage)
        with pytest.raises(QueueFullError) as caught:
            await publisher.publish(JOB(Job()))
        assert caught.value.detail == (
            "queue 'q' is full, its max_waiting is 1; raise that, add workers, "
            'or let publishing wait with overflow="wait"'
        )


# ---- reprs --------------------------------------------------------------------------


async def test_what_a_control_and_a_codec_are_shows() -> None:
    assert repr(TaskQueueControl(MemoryStorage())) == "<TaskQueueControl over <MemoryStorage tasks=0 queues=0>>"
    assert repr(Codec()) == "<Codec classes=0>"
    codec = Codec(Limits(payload_bytes=100, tags=3))
    codec.check(Job, "here")
    assert repr(codec) == "<Codec payload_bytes=100 tags=3 classes=1>"


START = datetime(2026, 1, 1, tzinfo=UTC)


async def test_a_clock_shows_whose_time_it_tells(autojump_clock: object) -> None:
    clock = Clock(START)
    assert repr(clock) == "<Clock not asked yet, start=2026-01-01T00:00:00+00:00>"
    await trio.sleep(1)  # it was not tied to trio's by being looked at
    clock.now()
    await trio.sleep(2)
    assert repr(clock) == "<Clock virtual 2026-01-01T00:00:02+00:00>"
    assert await trio.to_thread.run_sync(repr, clock) == "<Clock virtual, start=2026-01-01T00:00:00+00:00>"


async def test_a_clock_of_the_machine_shows_its_time_and_one_given_its_name() -> None:
    clock = Clock()
    assert repr(clock) == "<Clock not asked yet>"
    before = clock.utc()
    kind, told = repr(clock).strip("<>").rsplit(" ", 1)
    assert kind == "Clock machine"
    assert before <= datetime.fromisoformat(told) <= clock.utc()

    def skewed() -> float:
        raise AssertionError("a repr asks nobody")

    assert repr(Clock(wall=skewed)).endswith(".skewed>")
    assert repr(Clock(wall=partial(skewed))) == "<Clock wall=partial>"
