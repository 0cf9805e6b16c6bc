"""C4: the machine's clock jumps an hour, there and back, while 50 handlers run in two processes.

The clock that jumps is the storage's; the witness and the handlers note the real time.
"""

from __future__ import annotations

import math
import mmap
import struct
import time
from typing import Any

import trio

from dispatch import Clock, QueueTask, TaskQueueConfig, open_dispatcher
from dispatch.storage.sqlite import SqliteStorage
from dispatch.upkeep import Upkeep
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
LEASE_S = 3.0
"""Renewed each second: long enough for a worker to meet its own tasks before it hears that they are lost."""
RUN_S = 9.5
HOUR_S = 3_600.0
JUMPS_H = (1, 2, 3, 0, 1, 2)
"""Where the clock is then, in hours. Not in step with the renewals, so that each process is the first once."""
SLOTS = {"one": 20, "two": 100, "onlooker": 0}
"""Two are at work, one with slots to spare for what it might claim again; the third only sweeps."""
LOOK_S = 0.01
"""How soon after a jump the onlooker's sweep is due: before anybody renews, mostly."""


class World:
    def __init__(self, given: Any) -> None:
        self.path = given.folder / "jobs.db"
        self.runs = given.folder / "runs"
        self.offset = mmap.mmap(-1, 8)
        """Shared by all processes forked from here: by how much the clock is wrong, in seconds."""

    def off_by(self) -> float:
        [offset_s] = struct.unpack("d", self.offset[:])
        return offset_s

    def wall(self) -> float:
        return time.time() + self.off_by()

    def jump(self, offset_s: float) -> None:
        self.offset[:] = struct.pack("d", offset_s)

    async def work(self, name: str) -> None:
        async def handler(task: QueueTask[Job]) -> None:
            began = time.time()
            note(self.runs, f"{name} {task.id} {began} inf")
            try:
                await trio.sleep(RUN_S)
            finally:
                note(self.runs, f"{name} {task.id} {began} {time.time()}")

        async with SqliteStorage(self.path, clock=Clock(wall=self.wall)) as storage:
            if name == "one":
                call_witness(self.path)
            async with open_dispatcher(storage, worker=name, lease=LEASE_S) as dispatcher:
                if SLOTS[name]:
                    config = TaskQueueConfig(concurrency=SLOTS[name], max_retry=20, retry_delay=0.0)
                    dispatcher.consumer.register_queue("q", config)
                    dispatcher.consumer.register_handler(JOB, handler)
                if name == "one":
                    await dispatcher.publisher.publish_many([JOB(Job(n), id=f"t{n}") for n in range(TASKS)])
                if name == "onlooker":
                    await self.look_on(dispatcher.consumer._upkeep)
                await dispatcher.drain()

    async def look_on(self, upkeep: Upkeep) -> None:
        """The worst moment for a jump is right before a sweep: let each jump be there."""
        seen_s = self.off_by()
        while True:
            await trio.sleep(LOOK_S)
            if self.off_by() != seen_s:
                seen_s = self.off_by()
                upkeep._next_sweep = -math.inf
                upkeep._bell.ring()

    async def one(self) -> None:
        await self.work("one")

    async def two(self) -> None:
        await self.work("two")

    async def onlooker(self) -> None:
        await self.work("onlooker")

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
        crew.start("onlooker", world.onlooker)
        until(lambda: len(notes(world.runs)) >= TASKS, 20.0, "every handler runs")
        for hours in JUMPS_H:
            time.sleep(1.3)
            world.jump(hours * HOUR_S)
        for name in ("one", "two"):
            assert crew.ended(name, 60.0) == 0, crew.said()
        said = crew.said()
    tell(
        jumps=len(JUMPS_H),
        noticed=said.count("the storage's clock jumped"),
        processes=len(asked(world.path, "SELECT DISTINCT worker FROM witness WHERE became = 'running'")),
        self_claimed=world.self_claimed(),
        **witnessed(world.path, [f"t{n}" for n in range(TASKS)]),
    )


if __name__ == "__main__":
    main()
