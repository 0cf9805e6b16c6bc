"""Handlers that misbehave (faults G1, G2, G4, G5): recorded, and no harm to anybody else."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
import trio

from dispatch import MemoryStorage, QueueTask, TaskQueueConfig, TaskStatus, execution
from dispatch.records import NewTask
from dispatch.storage.query import Ids
from dispatch.tasks import EARLIEST, LATEST

from .work import JOB, Job, Script, nothing, working


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class Custom(BaseException):
    pass


BAD = [
    Exception("plain"), Custom("base"), asyncio.CancelledError("async"), GeneratorExit("gen"),
    StopIteration("stop"), StopAsyncIteration("stop"), RecursionError("deep"), MemoryError("full"),
    ExceptionGroup("group", [ValueError("a"), OSError("b")]),
    BaseExceptionGroup("base group", [Custom("c"), ValueError("d")]),
    Unprintable(), ValueError("x" * 10_000_000), ValueError("a\x00b\ud800c"), SystemExit(3),
]


@pytest.mark.parametrize("error", BAD, ids=lambda error: type(error).__name__)
async def test_whatever_a_handler_raises_is_a_recorded_failure(error: BaseException, autojump_clock: object) -> None:
    async def handler(task: QueueTask[Job]) -> None:
        await trio.sleep(0.1)
        if task.payload.n:
            raise error

    async with working(handler) as dispatcher:
        bad = await dispatcher.publisher.publish(JOB(Job(1)))
        good = await dispatcher.publisher.publish(JOB(Job(0)))
        ended = await dispatcher.publisher.wait(bad)
        assert ended.status is TaskStatus.FAILED
        assert ended.last_error is not None
        assert len(ended.last_error.encode()) <= 4_096
        kind = "RuntimeError" if isinstance(error, StopIteration) else type(error).__name__
        assert ended.last_error.startswith(kind)
        [run] = await dispatcher.control.history(bad)
        assert run.error is not None
        assert len(run.error.encode()) <= 4_096
        assert (await dispatcher.publisher.wait(good)).status is TaskStatus.SUCCEEDED


async def test_a_keyboard_interrupt_is_handed_back_and_propagates(autojump_clock: object) -> None:
    async def handler(task: QueueTask[Job]) -> None:
        await trio.lowlevel.checkpoint()
        raise KeyboardInterrupt

    storage = MemoryStorage()
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the block is what is tested
        async with working(handler, storage=storage) as dispatcher:
            task = await dispatcher.publisher.publish(JOB(Job()))
            await trio.sleep_forever()
    [record] = (await storage.find(Ids(task.id))).records
    assert (record.status, record.attempt) == (TaskStatus.PENDING, 0)


async def test_a_handler_that_blocks_the_loop_is_named(
    autojump_clock: object, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "BLOCKING_S", 0.02)

    async def blocker(task: QueueTask[Job]) -> None:
        time.sleep(0.03)  # noqa: ASYNC251 - what is under test

    async with working(blocker) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
    [record] = [each for each in caplog.records if getattr(each, "event", "") == "blocked"]
    assert "blocker held the trio thread for 0.0 s; nothing else ran meanwhile" in record.getMessage()


async def test_forty_sync_handlers_publish_at_once() -> None:
    seen: list[int] = []

    def handler(task: QueueTask[Job]) -> None:
        if task.payload.n < 100:
            trio.from_thread.run(dispatcher.publisher.publish, JOB(Job(100 + task.payload.n)))
        seen.append(task.payload.n)

    async with working(handler, TaskQueueConfig(concurrency=40, buffer_size=10)) as dispatcher:
        for n in range(40):
            await dispatcher.publisher.publish(JOB(Job(n)))
        await dispatcher.drain()
    assert sorted(seen) == [*range(40), *range(100, 140)]


@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_a_sync_handler_is_asked_to_end_and_waited_for(how: str) -> None:
    ended: list[str] = []

    def handler(task: QueueTask[Job]) -> None:
        try:
            while True:
                time.sleep(0.01)
                trio.from_thread.check_cancelled()
        finally:
            ended.append("asked")

    async with working(handler, TaskQueueConfig(timeout=0.1 if how == "timeout" else None)) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        if how == "cancel":
            await trio.sleep(0.05)
            await dispatcher.control.cancel(task)
        status = (await dispatcher.publisher.wait(task)).status
    assert (status, ended) == (TaskStatus.FAILED if how == "timeout" else TaskStatus.CANCELLED, ["asked"])


@pytest.mark.parametrize("how", ["grace", "cancelled", "raised"])
async def test_a_sync_handler_that_ends_when_asked_is_handed_back_at_a_shutdown(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With no retry to lose: abandoned, it would be a dead letter."""
    storage, running, ended = MemoryStorage(), threading.Event(), []

    def handler(task: QueueTask[Job]) -> None:
        running.set()
        try:
            while True:
                time.sleep(0.05)
                trio.from_thread.check_cancelled()
        finally:
            ended.append(task.id)

    with suppress(ZeroDivisionError), trio.CancelScope() as scope:
        async with working(handler, storage=storage, grace=0.1) as dispatcher:
            task = await dispatcher.publisher.publish(JOB(Job()))
            await trio.to_thread.run_sync(running.wait)
            if how == "raised":
                raise ZeroDivisionError
            if how == "cancelled":
                scope.cancel()
    assert ended == [task.id]
    assert dispatcher.report.abandoned == ()
    if how == "grace":
        assert dispatcher.report.interrupted == (task.id,)
        assert f"handed back: {task.id}" in caplog.text
    [record] = (await storage.find(Ids(task.id))).records
    assert (record.status, record.attempt, record.lease_until) == (TaskStatus.PENDING, 0, None)


async def test_only_the_threads_that_run_on_are_reported_as_abandoned(
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage, release = MemoryStorage(), threading.Event()

    def handler(task: QueueTask[Job]) -> None:
        while not release.wait(0.01):
            if task.payload.n:
                trio.from_thread.check_cancelled()

    config = TaskQueueConfig(concurrency=2)
    try:
        async with working(handler, config, storage=storage, grace=0.1, lease=0.3) as dispatcher:
            deaf = await dispatcher.publisher.publish(JOB(Job(0)))
            polite = await dispatcher.publisher.publish(JOB(Job(1)))
            await trio.sleep(0.1)
        assert dispatcher.report.abandoned == (deaf.id,)
        assert dispatcher.report.interrupted == (polite.id,)
        assert f"their tasks are run again if a retry is left, and are dead letters if not: {deaf.id}" in caplog.text
        async with working(nothing, config, storage=storage, lease=0.3) as second:
            dead = await second.publisher.wait(deaf)
            assert (dead.status, dead.attempt) == (TaskStatus.FAILED, 1)
            assert (await second.publisher.wait(polite)).status is TaskStatus.SUCCEEDED
    finally:
        release.set()


async def test_a_cancellation_while_threads_are_asked_abandons_them_at_once() -> None:
    storage, release = MemoryStorage(), threading.Event()

    def handler(task: QueueTask[Job]) -> None:
        release.wait()

    try:
        with trio.move_on_after(0.3):
            async with working(handler, storage=storage, grace=0.0) as dispatcher:
                task = await dispatcher.publisher.publish(JOB(Job()))
                await trio.sleep(0.1)
        assert dispatcher.report.abandoned == (task.id,)
        [record] = (await storage.find(Ids(task.id))).records
        assert (record.status, record.attempt) == (TaskStatus.RUNNING, 1)
    finally:
        release.set()


@pytest.mark.battery
async def test_a_sync_handler_that_outlives_the_grace_is_abandoned_and_its_lease_decides() -> None:
    storage, release = MemoryStorage(), []

    def handler(task: QueueTask[Job]) -> None:
        while not release:
            time.sleep(0.01)

    try:
        async with working(handler, storage=storage, grace=0.1, lease=0.3) as dispatcher:
            task = await dispatcher.publisher.publish(JOB(Job(), max_retry=1))
            await trio.sleep(0.5)  # renewed meanwhile
        assert dispatcher.report.abandoned == (task.id,)
        [record] = (await storage.find(Ids(task.id))).records
        assert (record.status, record.attempt) == (TaskStatus.RUNNING, 1)
        async with working(nothing, TaskQueueConfig(retry_delay=0.05), storage=storage, lease=0.3) as second:
            assert (await second.publisher.wait(task)).attempt == 2
    finally:
        release.append(True)


async def test_a_row_with_a_moment_beyond_the_calendar_is_listed_and_run(autojump_clock: object) -> None:
    """No publisher lets one in; a row that is there all the same must not stop the others."""
    handler = Script()
    async with working(handler) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(), id="first"))
        await dispatcher.storage.enqueue(
            [
                NewTask(id="past", queue="q", type="job", payload=b'{"n":0}', available_at=-1e14),
                NewTask(id="future", queue="q", type="job", payload=b'{"n":1}', available_at=1e14),
            ]
        )
        assert (await dispatcher.publisher.wait("past")).status is TaskStatus.SUCCEEDED
        assert [each.available_at for each in handler.seen if each.id != "first"] == [EARLIEST]
        found = (await dispatcher.control.find(Ids("past", "future"))).tasks
        assert [each.available_at for each in found] == [EARLIEST, LATEST]


async def test_a_row_of_which_no_task_can_be_made_is_a_failed_attempt(autojump_clock: object) -> None:
    class Odd(MemoryStorage):
        immediate = False

        async def turn(self, *arguments: Any, **options: Any) -> Any:
            answers, claimed = await super().turn(*arguments, **options)
            for claim in claimed.claims:
                if claim.id == "odd":
                    claim.priority = 99
            return answers, claimed

    async with working(nothing, storage=Odd()) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(), id="odd"))
        good = await dispatcher.publisher.publish(JOB(Job()))
        assert (await dispatcher.publisher.wait(good)).status is TaskStatus.SUCCEEDED
        dead = await dispatcher.publisher.wait("odd")
        assert (dead.status, dead.last_error) == (
            TaskStatus.FAILED,
            "IndexError: tuple index out of range",
        )


async def test_a_payload_that_cannot_be_decoded_blocks_nobody(autojump_clock: object) -> None:
    async with working(nothing, TaskQueueConfig(max_retry=5)) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(), id="first"))
        raw: list[Any] = [b"", b"{", b"[" * 100_000, b'{"n": "text"}', b"\xff", b'{"n": 1, "extra": 2}', b'{"n": NaN}']
        await dispatcher.storage.enqueue(
            [NewTask(id=f"raw{i}", queue="q", type="job", payload=data) for i, data in enumerate(raw)]
        )
        good = await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
        assert (await dispatcher.control.get(good)).status is TaskStatus.SUCCEEDED
        for i in range(len(raw)):
            dead = await dispatcher.control.get(f"raw{i}")
            assert (dead.status, dead.attempt, dead.failure_reason) == (TaskStatus.FAILED, 1, "invalid_payload")
