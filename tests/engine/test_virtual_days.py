"""Three virtual days with cron, retries, crashes and a change to summer time, in a moment."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import trio

from dispatch import Clock, MemoryStorage, QueueTask, Snooze, TaskQueueConfig, TaskType

from .work import Job, working

FAIL_AFTER_S = 1_000_000.0
JOB = TaskType("q", "job", Job)
NIGHTLY = TaskType("q", "nightly", Job)
CONFIG = TaskQueueConfig(concurrency=4, max_retry=3, retry_delay=60.0)
START = datetime(2026, 3, 28, 0, 0, tzinfo=UTC)
"""Clocks in Berlin go from 02:00 to 03:00 on 29 March 2026, which is 01:00 UTC."""


async def test_three_days_two_crashes_and_a_change_of_clocks(autojump_clock: object) -> None:
    clock = Clock(START)
    storage = MemoryStorage(clock, keep_finished=100_000)
    nights: list[datetime] = []
    ran: list[tuple[int, int]] = []
    ticks = 0

    async def work(task: QueueTask[Job]) -> None:
        ran.append((task.payload.n, task.attempt))
        await trio.sleep(30)
        if task.payload.n % 5 == 0 and task.attempt == 1:
            raise ConnectionError("the first time")
        if task.payload.n % 7 == 0 and task.last_error is None and len(ran) % 2:
            raise Snooze(3_600.0)

    async def nightly(task: QueueTask[Job]) -> None:
        nights.append(clock.utc())

    async def tick() -> None:
        nonlocal ticks
        ticks += 1

    async def life(until_s: float, *, crash: bool) -> None:
        with trio.CancelScope() as scope:
            async with working(work, CONFIG, storage=storage, clock=clock, grace=5.0) as dispatcher:
                dispatcher.consumer.register_handler(NIGHTLY, nightly)
                await dispatcher.cron.add_with_name("30 2 * * *", "nightly", NIGHTLY(Job()), zone="Europe/Berlin")
                await dispatcher.cron.add_with_name("*/15 * * * *", "tick", tick)
                while trio.current_time() < until_s:
                    await dispatcher.publisher.publish(JOB(Job(len(published)), delay=120.0))
                    published.append(len(published))
                    await trio.sleep(600)
                if crash:
                    scope.cancel()
                    await trio.sleep_forever()
                await dispatcher.cron.cancel("nightly")
                await dispatcher.drain()

    published: list[int] = []
    day = 86_400.0
    await life(1.0 * day - 590, crash=True)
    await life(2.0 * day - 590, crash=True)
    await life(3.0 * day, crash=False)

    counts = await storage.count(everything(), by=("type", "status"))
    assert counts == {("job", "succeeded"): len(published), ("nightly", "succeeded"): 3}
    assert {n for n, _ in ran} == set(published)
    assert all(attempt <= 2 for _, attempt in ran)
    # 02:30 does not exist on the 29th: the run moves to the end of the gap, as Vixie's cron does.
    assert [(each.day, each.hour, each.minute) for each in nights] == [(28, 1, 30), (29, 1, 0), (30, 0, 30)]
    assert 3 * 96 - 2 <= ticks <= 3 * 96 + 8
    assert storage.statistics().leases == 0


def everything() -> Any:
    from dispatch.storage.query import All

    return All()
