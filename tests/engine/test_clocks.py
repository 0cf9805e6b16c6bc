"""A storage that tells another time than it claims by."""

from __future__ import annotations

from typing import Any

import trio

from dispatch import MemoryStorage

from .work import JOB, Job, Script, working


class Behind(MemoryStorage):
    """Its claims go by a clock that is `by_s` behind the one it tells, as a server's that was set back."""

    immediate = False
    by_s = 0.0
    asked = 0

    def now(self) -> float:
        return super().now() + self.by_s

    async def turn(self, *arguments: Any, **options: Any) -> Any:
        self.asked += 1
        assert self.asked < 1_000, "a busy loop"
        return await super().turn(*arguments, **options)


async def test_a_clock_that_was_set_back_is_asked_once_a_second(autojump_clock: object) -> None:
    storage, handler = Behind(), Script()
    async with working(handler, storage=storage) as dispatcher:
        storage.by_s = 60.0
        began = trio.current_time()
        await dispatcher.publisher.publish(JOB(Job(), delay=5.0))
        await dispatcher.drain()
        assert storage.asked <= 25
        [ran] = handler.times
        assert 5.0 <= ran - began <= 6.0
        storage.by_s, storage.asked = 0.0, 0
        began = trio.current_time()
        for n in range(3):
            await dispatcher.publisher.publish(JOB(Job(), delay=1.0 + n))
        await dispatcher.drain()
        assert [round(ran - began, 3) for ran in handler.times[1:]] == [1.0, 2.0, 3.0]


async def test_a_clock_that_is_a_little_behind_makes_a_task_little_late(autojump_clock: object) -> None:
    storage, handler = Behind(), Script()
    async with working(handler, storage=storage) as dispatcher:
        storage.by_s = 0.004
        began = trio.current_time()
        for n in range(20):
            await dispatcher.publisher.publish(JOB(Job(), delay=0.5 * n))
        await dispatcher.drain()
        late = [ran - began - 0.5 * n for n, ran in enumerate(handler.times)]
        assert -1e-6 <= min(late) <= max(late) <= 0.006
