"""A storage whose steps take time: asked a while before they take effect, answered a while after."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise
from typing import TypeVar

import pytest
import trio

from dispatch import (
    CronTaskNotFoundError,
    Dispatcher,
    MemoryStorage,
    Storage,
    TaskQueueConfig,
    TaskStatus,
    TaskType,
    open_dispatcher,
)
from dispatch.testing.proxy import StorageProxy

from .work import JOB, Job, Script, nothing, working

T = TypeVar("T")


class SlowStorage(StorageProxy):
    """Each step takes effect `before_s` after it was asked for, and is answered `after_s` later.

    What has taken effect is answered, as the hook promises, whether somebody cancels it or not.
    """

    def __init__(self, inner: Storage, *methods: str) -> None:
        super().__init__(inner)
        self.methods = methods
        """Only these take time, if any are named."""
        self.before_s = 0.0
        self.after_s = 0.0

    async def around(self, method: str, call: Callable[[], Awaitable[T]]) -> T:
        slow = not self.methods or method in self.methods
        await trio.sleep(self.before_s * slow)
        after_s = self.after_s * slow  # as it was when it was asked
        answer = await call()
        with trio.CancelScope(shield=True):
            await trio.sleep(after_s)
        return answer


async def test_many_queues_of_a_slow_storage_are_renewed_in_time(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """One after the other, ten queues would take as long as the lease."""
    storage, handler = SlowStorage(MemoryStorage()), Script(100.0)
    async with open_dispatcher(storage, lease=5.0, observers=()) as dispatcher:
        for n in range(10):
            dispatcher.consumer.register_queue(f"q{n}", TaskQueueConfig(max_retry=5))
            dispatcher.consumer.register_handler(TaskType(f"q{n}", "job", Job), handler)
            await dispatcher.publisher.publish(TaskType(f"q{n}", "job", Job)(Job()))
        await trio.sleep(1)
        storage.before_s = storage.after_s = 0.25
        await trio.sleep(110)
        storage.before_s = storage.after_s = 0.0
        await dispatcher.drain()
    assert len(handler.seen) == 10
    assert "rescued" not in caplog.text
    assert "trying again" not in caplog.text


async def test_a_task_cancelled_before_its_claim_is_answered_is_stopped_within_a_second(autojump_clock: object) -> None:
    storage, stopped = SlowStorage(MemoryStorage(), "turn"), []

    async def handler(task: object) -> None:
        try:
            await trio.sleep(100)
        finally:
            stopped.append(trio.current_time())

    async with working(handler, storage=storage) as dispatcher:
        await trio.sleep(5)
        storage.after_s = 0.5
        task = await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(0.1)
        assert (await dispatcher.control.get(task)).status is TaskStatus.RUNNING
        asked_at = trio.current_time()
        assert await dispatcher.control.cancel(task) == [task.id]
        assert (await dispatcher.publisher.wait(task)).status is TaskStatus.CANCELLED
    assert stopped[0] - asked_at < 1


async def test_a_look_answered_late_does_not_hide_an_entry_added_meanwhile(autojump_clock: object) -> None:
    storage = SlowStorage(MemoryStorage(), "crons")
    async with working(nothing, storage=storage) as dispatcher, trio.open_nursery() as nursery:
        await trio.sleep(10)
        storage.after_s = 3.0
        nursery.start_soon(asked_for, dispatcher, "minutely")
        await trio.sleep(0.5)
        storage.after_s = 0.1
        entry = await dispatcher.cron.add_with_name("@every 1m", "minutely", JOB(Job()))
        await trio.sleep(600)
        assert entry.total == 10


async def asked_for(dispatcher: Dispatcher, name: str) -> None:
    with suppress(CronTaskNotFoundError):
        await dispatcher.cron.get_task(name)


async def test_a_look_answered_late_does_not_pause_an_entry_resumed_meanwhile(autojump_clock: object) -> None:
    storage = SlowStorage(MemoryStorage(), "crons")
    async with working(nothing, storage=storage) as dispatcher, trio.open_nursery() as nursery:
        entry = await dispatcher.cron.add_with_name("@every 1m", "minutely", JOB(Job()))
        await dispatcher.cron.pause("minutely")
        await trio.sleep(10)
        storage.after_s = 3.0
        nursery.start_soon(asked_for, dispatcher, "minutely")
        await trio.sleep(0.5)
        storage.after_s = 0.1
        await dispatcher.cron.resume("minutely")
        await trio.sleep(600)
        assert entry.total == 10
        assert not entry.paused


async def test_a_tick_that_was_read_before_its_answer_came_is_counted_once(autojump_clock: object) -> None:
    storage = SlowStorage(MemoryStorage(), "advance_cron")
    async with working(nothing, storage=storage) as dispatcher:
        entry = await dispatcher.cron.add_with_name("@every 1m", "minutely", JOB(Job()))
        storage.after_s = 3.0
        await trio.sleep(61)
        await dispatcher.cron.get_task("minutely")
        await trio.sleep(9)
        assert entry.total == 1
        await trio.sleep(600)
        assert entry.total == 11


@pytest.mark.parametrize("method", ["crons", "count", "advance_cron"])
async def test_a_storage_that_never_answers_cron_keeps_no_block_open(
    method: str, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    storage = SlowStorage(MemoryStorage(), method)
    async with working(nothing, storage=storage) as dispatcher:
        await dispatcher.cron.add_with_name("@every 1s", "often", JOB(Job()), overlap="skip")
        await trio.sleep(1)
        storage.before_s = 9_000.0
        await storage.inner.alter_cron("often", paused_reason=None)  # to be read again
        await trio.sleep(3)
        left_at = trio.current_time()
    assert trio.current_time() - left_at <= 6
    assert "cron: the storage gave no answer within 5 s" in caplog.text


async def test_a_function_keeps_its_ticks_while_the_storage_is_slow(autojump_clock: object) -> None:
    storage, function_runs = SlowStorage(MemoryStorage()), list[float]()

    async def beat() -> None:
        function_runs.append(trio.current_time())

    async with working(nothing, storage=storage) as dispatcher:
        await dispatcher.cron.add_with_name("@every 1m", "stored", JOB(Job()))
        await dispatcher.cron.add_with_name("@every 1s", "beat", beat)
        await trio.sleep(50.5)
        storage.before_s = 8.0
        await trio.sleep(50)
        storage.before_s = 0.0
        assert len(function_runs) == 100
        assert [round(after - before, 3) for before, after in pairwise(function_runs)] == [1.0] * 99
