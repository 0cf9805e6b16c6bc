"""Cron tasks that are added, previewed, paused, replaced and cancelled while the service runs.

Virtual time, so that five days pass in a moment: pass no clock to `trio.run`
and it is an ordinary service.
"""

from __future__ import annotations

from datetime import UTC, datetime

import trio
from attrs import frozen
from trio.testing import MockClock

from dispatch import (
    Clock,
    CronNameConflictError,
    CronSpec,
    QueueTask,
    TaskQueueConfig,
    TaskType,
    open_dispatcher,
)

DAY_S = 86_400.0
START = datetime(2026, 3, 27, 12, 30, tzinfo=UTC)  # the Friday before clocks go forward


@frozen
class Report:
    name: str


REPORT = TaskType("reports", "send", Report)


async def main() -> None:
    clock = Clock(START)

    async def send(task: QueueTask[Report]) -> None:
        print(f"  {clock.utc():%a %d %b %H:%M} UTC  {task.payload.name}, from cron task {task.cron!r}")

    async def heartbeat() -> None:
        print(f"  {clock.utc():%a %d %b %H:%M} UTC  heartbeat")

    async with open_dispatcher(clock=clock) as dispatcher:
        dispatcher.consumer.register_queue("reports", TaskQueueConfig(concurrency=2))
        dispatcher.consumer.register_handler(REPORT, send)
        cron = dispatcher.cron

        # A queue task is published at each tick, with its queue's retries. The time
        # 02:30 does not exist in Berlin on 29 March: preview shows what happens then.
        await cron.add_with_name("30 2 * * *", "nightly", REPORT(Report("sales")), zone="Europe/Berlin")
        print("preview of nightly:")
        for moment in await cron.preview("nightly", 3):
            print(f"  {moment:%a %d %b %H:%M %Z}")
        spec = CronSpec("30 2 * * *", "Europe/Berlin")
        print(spec.describe())

        # A function runs in this process.
        await cron.add_with_name("0 */12 * * *", "heartbeat", heartbeat)

        print("two days:")
        await trio.sleep(2 * DAY_S)

        print("a different one under a taken name is refused:")
        try:
            await cron.add_with_name("0 6 * * *", "nightly", REPORT(Report("sales")))
        except CronNameConflictError as exc:
            print(f"  {exc}")

        await cron.pause("heartbeat", "too chatty")
        await cron.add_with_name("0 6 * * *", "nightly", REPORT(Report("stock")), replace=True)
        print("heartbeat paused, nightly replaced; two more days:")
        await trio.sleep(2 * DAY_S)

        await cron.resume("heartbeat")
        print(f"nightly cancelled: {await cron.cancel('nightly')}; one more day:")
        await trio.sleep(DAY_S)

        for entry in await cron.tasks():
            print(f"left: {entry.name}, {entry.total} runs, {entry.err_count} errors, next {entry.next}")


if __name__ == "__main__":
    trio.run(main, clock=MockClock(autojump_threshold=0))
