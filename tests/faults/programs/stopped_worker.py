"""A4: a worker is stopped for three leases while its handlers run, and goes on when others are done."""

from __future__ import annotations

import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import trio

from dispatch import QueueTask, TaskQueueConfig, open_dispatcher
from faults.programs.scenario import (
    JOB,
    Crew,
    Job,
    Where,
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

TASKS = 20
LEASE_S = 0.5
EVERYTHING = "SELECT * FROM dispatch_tasks"  # in any order: a database may choose another one
CONFIG = TaskQueueConfig(concurrency=TASKS, max_retry=5, retry_delay=0.0)


class World:
    def __init__(self, given: Any) -> None:
        self.where = given.where
        self.runs = given.folder / "runs"

    async def work(self, name: str, *, publish: bool = False) -> None:
        async def handler(task: QueueTask[Job]) -> None:
            note(self.runs, f"{name} {task.id}")
            await trio.sleep(0.4)

        async with opened(self.where) as storage:
            if publish:
                call_witness(self.where)
            async with open_dispatcher(storage, worker=name, lease=LEASE_S) as dispatcher:
                dispatcher.consumer.register_queue("q", CONFIG)
                dispatcher.consumer.register_handler(JOB, handler)
                if publish:
                    await dispatcher.publisher.publish_many([JOB(Job(n), id=f"t{n}") for n in range(TASKS)])
                await dispatcher.drain()

    async def stopped(self) -> None:
        await self.work("stopped", publish=True)

    async def other(self) -> None:
        await self.work("other")


def stop_between_transactions(crew: Crew, where: Where) -> None:
    """Stop the worker where it keeps nobody out: amid a transaction it holds SQLite's one write lock."""
    while True:
        crew.send("stopped", signal.SIGSTOP)
        if not isinstance(where, Path):
            return
        with closing(sqlite3.connect(where, timeout=0.1, isolation_level=None)) as db:
            try:
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                crew.send("stopped", signal.SIGCONT)
                time.sleep(0.01)
            else:
                db.execute("ROLLBACK")
                return


def main() -> None:
    given = arguments()
    world = World(given)
    with Crew(given.folder / "log") as crew:
        crew.start("stopped", world.stopped)
        until(lambda: len(notes(world.runs)) == TASKS, 20.0, "every handler runs")
        stop_between_transactions(crew, world.where)
        stopped_at = time.monotonic()
        crew.start("other", world.other)
        assert crew.ended("other", 30.0) == 0, crew.said()
        time.sleep(max(0.0, 3 * LEASE_S - (time.monotonic() - stopped_at)))
        before = asked(world.where, EVERYTHING)
        crew.send("stopped", signal.SIGCONT)
        assert crew.ended("stopped", 30.0) == 0, crew.said()
        said = crew.said()
    tell(
        stops=1,
        said_refused=said.count("the outcome of attempt 1 was refused (lost)"),
        changed=[str(row) for row in {*asked(world.where, EVERYTHING)} ^ {*before}],
        by_the_other=len(asked(world.where, "SELECT 1 FROM dispatch_tasks WHERE worker = 'other'")),
        **witnessed(world.where, [f"t{n}" for n in range(TASKS)]),
    )


if __name__ == "__main__":
    main()
