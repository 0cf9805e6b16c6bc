"""E5: a long run at a steady load, with failures, timeouts, pruning, and many openings before it.

What is watched: this process's memory, descriptors, threads and trio tasks; the size of
the tables; and whether the run ends as fast as it began.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from statistics import linear_regression
from typing import Any

import trio

from dispatch import PermanentError, QueueTask, TaskQueueConfig, open_dispatcher
from dispatch.bell import Bell
from dispatch.storage.query import PruneSpec, Statuses
from faults.programs.scenario import JOB, Job, arguments, asked, damage, opened, tell

KEPT = 2_000
AHEAD = 1_000
"""How many may wait: the load is steady, not a flood. `--pace` is how many may come in a second."""
FAILS_EVERY = 20
LATE_EVERY = 200
LOOKS = 40
SIZE = "SELECT pg_total_relation_size('dispatch.tasks') + pg_total_relation_size('dispatch.attempts')"
CONFIG = TaskQueueConfig(concurrency=50, max_retry=1, retry_delay=0.01, timeout=20.0)


def memory_mb() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def held() -> dict[str, int]:
    """What must be given back: descriptors, threads and trio tasks."""
    gc.collect()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        # Those that wait for work end by themselves.
        "threads": sum(not thread.name.startswith("Trio") for thread in threading.enumerate()),
        "trio_tasks": trio.lowlevel.current_statistics().tasks_living,
    }


class Run:
    def __init__(self, given: Any) -> None:
        self.given = given
        self.ended = self.failed = self.late = 0
        self.moved = Bell()
        self.looks: list[tuple[float, int, float, int]] = []
        """Moment, tasks ended, memory in MB, bytes of the tables."""

    async def handler(self, task: QueueTask[Job]) -> None:
        n = task.payload.n
        if n % LATE_EVERY == 1:
            self.late += 1
            await trio.sleep_forever()
        if n % FAILS_EVERY == 0 and (task.attempt == 1 or n % (5 * FAILS_EVERY) == 0):
            self.failed += 1
            raise PermanentError("never") if task.attempt > 1 else ValueError("not yet")

    def observe(self, event: Any) -> None:
        if event.kind in ("succeeded", "failed"):
            self.ended += 1
            self.moved.ring()

    async def open_and_close(self) -> None:
        async with opened(self.given.where) as storage, open_dispatcher(storage, observers=()) as dispatcher:
            dispatcher.consumer.register_queue("q", CONFIG)
            dispatcher.consumer.register_handler(JOB, self.handler)
            await dispatcher.publisher.publish(JOB(Job(7)))
            await dispatcher.drain()

    async def steady(self) -> None:
        tasks = self.given.tasks
        async with (
            opened(self.given.where) as storage,
            open_dispatcher(
                storage, observers=(self.observe,), prune=[PruneSpec(keep=KEPT, dead_letters=True)], prune_every=1.0
            ) as dispatcher,
        ):
            dispatcher.consumer.register_queue("q", CONFIG)
            dispatcher.consumer.register_handler(JOB, self.handler)
            began = trio.current_time()
            for start in range(0, tasks, 100):
                await trio.sleep_until(began + start / self.given.pace)
                while start - self.ended > AHEAD:
                    await self.moved.wait()
                batch = [
                    JOB(Job(n), timeout=0.05, max_retry=0) if n % LATE_EVERY == 1 else JOB(Job(n))
                    for n in range(start, start + 100)
                ]
                await dispatcher.publisher.publish_many(batch)
                if start % (tasks // LOOKS) < 100:
                    size = (await trio.to_thread.run_sync(asked, self.given.where, SIZE))[0][0]
                    self.looks.append((time.monotonic(), self.ended, memory_mb(), size))
            with trio.fail_after(120.0):
                await dispatcher.drain()
            self.counts = await dispatcher.control.count(Statuses("pending", "running"))

    async def main(self) -> None:
        await self.open_and_close()
        before = held()
        for _ in range(self.given.openings):
            await self.open_and_close()
        await self.steady()
        after = held()
        looks = self.looks
        half = looks[len(looks) // 2 :]
        slope = linear_regression([each[1] / 100_000 for each in half], [each[2] for each in half]).slope
        quarter = len(looks) // 4

        def rate(part: list[tuple[float, int, float, int]]) -> float:
            return (part[-1][1] - part[0][1]) / (part[-1][0] - part[0][0])

        tell(
            tasks=self.given.tasks,
            openings=self.given.openings,
            ended=self.ended,
            failures=self.failed,
            timeouts=self.late,
            left=sum(self.counts.values()),
            seconds=round(looks[-1][0] - looks[0][0], 1),
            memory_mb=round(looks[-1][2], 1),
            slope_mb=round(slope, 2),
            leaked={name: after[name] - count for name, count in before.items() if after[name] > count},
            size_mb=round(looks[-1][3] / 2**20, 1),
            grown=round(looks[-1][3] / looks[len(looks) // 2][3], 2),
            speed_kept=round(rate(looks[-quarter:]) / rate(looks[quarter : 2 * quarter]), 2),
            integrity=damage(self.given.where),
        )


def main() -> None:
    given = arguments(tasks=200_000, openings=100, pace=100_000)
    trio.run(Run(given).main)


if __name__ == "__main__":
    main()
