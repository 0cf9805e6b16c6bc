"""A5: tasks that must not run twice, and a worker killed in the middle of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import trio

from dispatch import QueueTask, TaskQueueConfig, open_dispatcher
from faults.programs.scenario import (
    JOB,
    Crew,
    Job,
    arguments,
    asked,
    call_witness,
    note,
    notes,
    opened,
    tell,
    until,
    witnessed,
)

TASKS = 200
CONFIG = TaskQueueConfig(concurrency=20, max_retry=0, retry_delay=0.0, on_interrupt="fail")


class World:
    def __init__(self, given: Any) -> None:
        self.where = given.where
        self.runs = given.folder / "runs"

    async def work(self) -> None:
        async def handler(task: QueueTask[Job]) -> None:
            note(self.runs, task.id)
            await trio.sleep(0.1)

        async with (
            opened(self.where) as storage,
            open_dispatcher(storage, lease=0.3, observers=()) as dispatcher,
        ):
            dispatcher.consumer.register_queue("q", CONFIG)
            dispatcher.consumer.register_handler(JOB, handler)
            await dispatcher.drain()

    async def publish(self) -> None:
        async with opened(self.where) as storage:
            call_witness(self.where)
            async with open_dispatcher(storage, observers=()) as dispatcher:
                dispatcher.consumer.register_queue("q", CONFIG)
                await dispatcher.publisher.publish_many([JOB(Job(n), id=f"t{n}") for n in range(TASKS)])


def main() -> None:
    given = arguments(kills=3)
    world = World(given)
    with Crew(given.folder / "log") as crew:
        crew.start("publisher", world.publish)
        assert crew.ended("publisher", 30.0) == 0, crew.said()
        for number in range(1, given.kills + 1):
            crew.start("worker", world.work)
            until(lambda number=number: len(notes(world.runs)) >= number * 45, 20.0, "half of them run")
            crew.kill("worker")
        crew.start("worker", world.work)
        assert crew.ended("worker", 30.0) == 0, crew.said()
    runs = Counter(notes(world.runs))
    dead = asked(world.where, "SELECT failure_reason, last_error FROM dispatch_tasks WHERE status = 'failed'")
    tell(
        kills=given.kills,
        runs=len(runs),
        ran_twice=sum(count > 1 for count in runs.values()),
        interrupted=len(dead),
        say_so=sum(reason == "interrupted" and error.startswith("LeaseExpired: worker ") for reason, error in dead),
        **witnessed(world.where, [f"t{n}" for n in range(TASKS)]),
    )


if __name__ == "__main__":
    main()
