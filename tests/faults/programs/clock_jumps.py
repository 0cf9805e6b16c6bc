"""C4: the machine's clock jumps an hour, there and back, while 50 handlers run in two processes.

The clock that jumps is the storage's; the witness and the handlers note the real time.
"""

from __future__ import annotations

import mmap
import struct
import time
from typing import Any

import trio

from dispatch import Clock, QueueTask, TaskQueueConfig, open_dispatcher
from dispatch.storage.sqlite import SqliteStorage
from faults.programs.scenario import (
    JOB,
    Crew,
    Job,
    arguments,
    asked,
    call_witness,
    note,
    notes,
    tell,
    until,
    witnessed,
)

TASKS = 50
LEASE_S = 1.0
RUN_S = 6.0
HOUR_S = 3_600.0
CONFIG = TaskQueueConfig(concurrency=40, max_retry=20, retry_delay=0.0)
"""Neither process can run all 50, and each has slots to spare for what it might claim again."""


class World:
    def __init__(self, given: Any) -> None:
        self.path = given.folder / "jobs.db"
        self.runs = given.folder / "runs"
        self.offset = mmap.mmap(-1, 8)
        """Shared by all processes forked from here: by how much the clock is wrong, in seconds."""

    def wall(self) -> float:
        return time.time() + struct.unpack("d", self.offset[:])[0]

    def jump(self, offset_s: float) -> None:
        self.offset[:] = struct.pack("d", offset_s)

    async def work(self, name: str, *, publish: bool = False) -> None:
        async def handler(task: QueueTask[Job]) -> None:
            began = time.time()
            note(self.runs, f"{name} {task.id} {began} inf")
            try:
                await trio.sleep(RUN_S)
            finally:
                note(self.runs, f"{name} {task.id} {began} {time.time()}")

        async with SqliteStorage(self.path, clock=Clock(wall=self.wall)) as storage:
            if publish:
                call_witness(self.path)
            async with open_dispatcher(storage, worker=name, lease=LEASE_S) as dispatcher:
                dispatcher.consumer.register_queue("q", CONFIG)
                dispatcher.consumer.register_handler(JOB, handler)
                if publish:
                    await dispatcher.publisher.publish_many([JOB(Job(n), id=f"t{n}") for n in range(TASKS)])
                await dispatcher.drain()

    async def one(self) -> None:
        await self.work("one", publish=True)

    async def two(self) -> None:
        await self.work("two")

    def self_claimed(self) -> int:
        """Claims by a worker while it was running the very task."""
        runs: dict[tuple[str, str, float], float] = {}
        for line in notes(self.runs):
            worker, task, began, ended = line.split()
            runs[worker, task, float(began)] = float(ended)  # the later line is the end
        claims = asked(self.path, "SELECT worker, id, at FROM witness WHERE became = 'running' AND was LIKE 'pending %'")
        return sum(
            any(
                (worker, task) == (who, which) and began < at < ended
                for (who, which, began), ended in runs.items()
            )
            for worker, task, at in claims
        )


def main() -> None:
    given = arguments()
    world = World(given)
    with Crew(given.folder / "log") as crew:
        crew.start("one", world.one)
        until(lambda: notes(world.runs), 20.0, "a handler runs")
        crew.start("two", world.two)
        until(lambda: len(notes(world.runs)) >= TASKS, 20.0, "every handler runs")
        for offset_s in (HOUR_S, 0.0, HOUR_S):
            time.sleep(1.3)
            world.jump(offset_s)
        for name in ("one", "two"):
            assert crew.ended(name, 60.0) == 0, crew.said()
        said = crew.said()
    tell(
        jumps=3,
        noticed=said.count("the storage's clock jumped"),
        processes=len(asked(world.path, "SELECT DISTINCT worker FROM witness WHERE became = 'running'")),
        self_claimed=world.self_claimed(),
        **witnessed(world.path, [f"t{n}" for n in range(TASKS)]),
    )


if __name__ == "__main__":
    main()
