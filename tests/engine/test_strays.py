"""A Cancelled that is no scope's, and scopes that a handler leaves open: one attempt's trouble alone."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any

import pytest
import trio

from dispatch import (
    CronTask,
    MemoryStorage,
    QueueTask,
    TaskQueueConfig,
    TaskStatus,
    open_dispatcher,
)
from dispatch.failures import is_cancelled, surroundings

from .work import JOB, Job, working

TWICE = TaskQueueConfig(concurrency=1, max_retry=1, retry_delay=1.0)
NOBODYS = (
    "RuntimeError: Cancelled was raised, but nothing around it was cancelled; "
    "was it kept, or a scope left open by `yield`?"
)


def test_trio_still_tells_what_is_open_around_a_task() -> None:
    async def main() -> None:
        around = surroundings()
        assert around is not None
        assert surroundings() is around
        with trio.CancelScope() as scope:  # noqa: ASYNC100 - it is looked at
            inside = surroundings()
            assert inside is not around
            assert not is_cancelled(inside)
            scope.cancel()
            assert is_cancelled(inside)
        assert surroundings() is around

    trio.run(main)


async def kept_cancelled() -> trio.Cancelled:
    """One whose scope is gone, as a cache would keep it that raises again what it caught."""
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.sleep(1)
        except trio.Cancelled as exc:
            return exc
    raise AssertionError


async def every_second(function: Callable[[], Awaitable[None]]) -> tuple[CronTask, int]:
    """A cron task's record after three seconds of it, and how often another one ran beside it."""
    others = 0

    async def other() -> None:
        nonlocal others
        others += 1

    async with open_dispatcher() as dispatcher:
        await dispatcher.cron.add_with_name("@every 1s", "watched", function)
        await dispatcher.cron.add_with_name("@every 1s", "other", other)
        await trio.sleep(3.5)
        return await dispatcher.cron.get_task("watched"), others


# ---- a Cancelled that was kept --------------------------------------------------


@pytest.mark.parametrize("how", ["async", "sync", "grouped"])
async def test_a_cancelled_that_was_kept_is_a_failed_attempt(how: str) -> None:
    kept = await kept_cancelled()

    async def stray(task: QueueTask[Job]) -> None:
        if task.payload.n == 0:
            raise kept if how == "async" else BaseExceptionGroup("both", [ValueError("no"), kept])

    def stray_in_a_thread(task: QueueTask[Job]) -> None:
        if task.payload.n == 0:
            raise kept

    config = TaskQueueConfig(concurrency=1, max_retry=1, retry_delay=0.0)
    async with working(stray_in_a_thread if how == "sync" else stray, config) as dispatcher:
        bad = await dispatcher.publisher.publish(JOB(Job(0)))
        good = await dispatcher.publisher.publish(JOB(Job(1)))
        await dispatcher.drain()
        found = await dispatcher.control.get(bad)
        assert (found.status, found.attempt) == (TaskStatus.FAILED, 2)
        assert found.last_error == ("ExceptionGroup: both (1 sub-exception): ValueError: no" if how == "grouped" else NOBODYS)
        assert (await dispatcher.control.get(good)).status is TaskStatus.SUCCEEDED


async def test_it_fails_a_pool_task_and_the_pool_goes_on(autojump_clock: object) -> None:
    kept = await kept_cancelled()

    async def stray() -> None:
        raise kept

    async with open_dispatcher() as dispatcher:
        with pytest.raises(RuntimeError) as caught:
            await dispatcher.pool.run(stray).result()
        assert f"RuntimeError: {caught.value}" == NOBODYS
        assert await dispatcher.pool.run(trio.sleep, 1).result() is None


async def test_it_fails_a_run_of_a_cron_task_and_cron_goes_on(autojump_clock: object) -> None:
    kept = await kept_cancelled()

    async def stray() -> None:
        raise kept

    task, others = await every_second(stray)
    assert (task.total, task.err_count, task.last_error) == (3, 3, NOBODYS)
    assert others == 3


# ---- scopes that are left open --------------------------------------------------


async def ticks(opened: Callable[[], Any]) -> AsyncGenerator[int]:
    """The well-known mistake: a yield inside a scope that whoever iterates does not know of."""
    with opened():
        while True:
            yield 1


async def children(stopped: trio.Event) -> AsyncGenerator[int]:
    """The same with a nursery, whose child notes that it was cancelled."""

    async def child() -> None:
        try:
            await trio.sleep_forever()
        finally:
            stopped.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(child)
        await trio.lowlevel.checkpoint()
        while True:
            yield 1


class Open:
    """Generators kept from the garbage collector, which would talk about them; closed at the end."""

    def __init__(self) -> None:
        self.kept: list[AsyncGenerator[int]] = []

    def __call__(self, generator: AsyncGenerator[int]) -> AsyncGenerator[int]:
        self.kept.append(generator)
        return generator


@pytest.fixture
async def kept_open() -> AsyncIterator[Open]:
    generators = Open()
    yield generators
    for each in generators.kept:
        with suppress(RuntimeError, IndexError):  # trio objects: they are closed elsewhere than opened
            await each.aclose()


async def test_a_scope_left_open_fails_the_attempt_it_cancels_and_no_other(
    autojump_clock: object, kept_open: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(task: QueueTask[Job]) -> None:
        if task.payload.n == 0:
            async for _ in kept_open(ticks(lambda: trio.move_on_after(0.1))):
                await trio.sleep(1)
        await trio.sleep(5)

    async with working(handler, TWICE) as dispatcher:
        bad = await dispatcher.publisher.publish(JOB(Job(0)))
        others = [await dispatcher.publisher.publish(JOB(Job(n))) for n in (1, 2, 3)]
        await dispatcher.drain()
        found = await dispatcher.control.get(bad)
        assert (found.status, found.attempt, found.last_error) == (TaskStatus.FAILED, 2, NOBODYS)
        for each in others:
            done = await dispatcher.control.get(each)
            assert (done.status, done.attempt) == (TaskStatus.SUCCEEDED, 1)
    told = [each.getMessage() for each in caplog.records if each.name == "dispatch.execution"]
    assert len(told) == 2
    assert f"left a cancel scope or a nursery open when attempt 1 of task {bad.id} ended" in told[0]


async def test_a_success_stays_one_and_its_scope_reaches_nobody_else(
    autojump_clock: object, kept_open: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(task: QueueTask[Job]) -> None:
        if task.payload.n == 0:
            async for _ in kept_open(ticks(lambda: trio.move_on_after(1.0))):
                return
        await trio.sleep(5)

    async with working(handler, TWICE) as dispatcher:
        tasks = [await dispatcher.publisher.publish(JOB(Job(n))) for n in range(4)]
        await dispatcher.drain()
        for each in tasks:
            done = await dispatcher.control.get(each)
            assert (done.status, done.attempt) == (TaskStatus.SUCCEEDED, 1)
    assert [each.levelno for each in caplog.records if each.name == "dispatch.execution"] == [logging.WARNING]


async def test_a_nursery_left_open_is_cancelled(autojump_clock: object, kept_open: Open) -> None:
    stopped = trio.Event()

    async def handler(task: QueueTask[Job]) -> None:
        if task.payload.n == 0:
            async for _ in kept_open(children(stopped)):
                return

    async with working(handler, TWICE) as dispatcher:
        tasks = [await dispatcher.publisher.publish(JOB(Job(n))) for n in range(3)]
        await dispatcher.drain()
        assert {(await dispatcher.control.get(each)).status for each in tasks} == {TaskStatus.SUCCEEDED}
        await stopped.wait()


async def test_a_timeout_with_a_scope_left_open_is_a_timeout(autojump_clock: object, kept_open: Open) -> None:
    async def handler(task: QueueTask[Job]) -> None:
        async for _ in kept_open(ticks(trio.CancelScope)):
            await trio.sleep(60)

    async with working(handler, TaskQueueConfig(concurrency=1, timeout=2.0)) as dispatcher:
        tasks = [await dispatcher.publisher.publish(JOB(Job(n))) for n in range(2)]
        await dispatcher.drain()
        for each in tasks:
            found = await dispatcher.control.get(each)
            assert (found.status, found.last_error) == (
                TaskStatus.FAILED,
                "TimeoutError: attempt 1 exceeded its timeout of 2 s",
            )


async def test_who_is_cancelled_from_outside_amid_a_generator_is_handed_back(
    autojump_clock: object, kept_open: Open
) -> None:
    async def handler(task: QueueTask[Job]) -> None:
        async for _ in kept_open(ticks(trio.CancelScope)):
            await trio.sleep(60)

    storage = MemoryStorage()
    with trio.move_on_after(5):
        async with working(handler, TWICE, storage=storage) as dispatcher:
            task = await dispatcher.publisher.publish(JOB(Job(0)))
            await trio.sleep_forever()
    async with open_dispatcher(storage) as dispatcher:
        found = await dispatcher.control.get(task)
        assert (found.status, found.attempt) == (TaskStatus.PENDING, 0)


async def test_a_ctrl_c_amid_a_generator_goes_on(autojump_clock: object, kept_open: Open) -> None:
    async def handler(task: QueueTask[Job]) -> None:
        async for _ in kept_open(ticks(trio.CancelScope)):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the block is what is tested
        async with working(handler, TWICE) as dispatcher:
            await dispatcher.publisher.publish(JOB(Job(0)))
            await trio.sleep_forever()


async def test_a_generator_that_is_closed_leaves_nothing_open(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(task: QueueTask[Job]) -> None:
        async with aclosing(ticks(lambda: trio.move_on_after(0.1))) as each:
            async for _ in each:
                return

    async with working(handler, TWICE) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(0)))
        await dispatcher.drain()
    assert [each for each in caplog.records if each.name == "dispatch.execution"] == []


async def test_a_cron_task_that_leaves_a_scope_open_stops_nobody(
    autojump_clock: object, kept_open: Open, caplog: pytest.LogCaptureFixture
) -> None:

    async def careless() -> None:
        async for _ in kept_open(ticks(lambda: trio.move_on_after(0.1))):
            await trio.sleep(1)

    task, others = await every_second(careless)
    assert (task.total, task.err_count, others) == (3, 3, 3)
    warned = [each for each in caplog.records if each.levelno == logging.WARNING and each.name == "dispatch.cron"]
    assert len(warned) == 3


async def test_a_pool_task_that_leaves_a_scope_open_stops_nobody(autojump_clock: object, kept_open: Open) -> None:
    async def careless() -> None:
        async for _ in kept_open(ticks(lambda: trio.move_on_after(0.1))):
            await trio.sleep(1)

    async with open_dispatcher(pool_size=1) as dispatcher:
        first, second = dispatcher.pool.run(careless), dispatcher.pool.run(trio.sleep, 1)
        with pytest.raises(RuntimeError):
            await first.result()
        assert await second.result() is None


async def test_a_pool_task_that_leaves_a_nursery_open_stops_nobody(
    autojump_clock: object, kept_open: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async def careless() -> None:
        await anext(kept_open(children(trio.Event())))

    async with open_dispatcher(pool_size=1) as dispatcher:
        first, second = dispatcher.pool.run(careless), dispatcher.pool.run(trio.sleep, 1)
        await first.wait()
        assert await second.result() is None
    assert len([each for each in caplog.records if each.name == "dispatch.pool" and "left a cancel scope" in each.message]) == 1
