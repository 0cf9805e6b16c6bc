"""D2: another process holds the write lock for some seconds, while handlers run and somebody publishes."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from typing import Any

import trio

from dispatch import QueueTask, StorageError, TaskQueueConfig, open_dispatcher
from dispatch.storage.sqlite import SqliteStorage
from faults.programs.scenario import (
    JOB,
    Crew,
    Job,
    arguments,
    call_witness,
    note,
    notes,
    tell,
    until,
    witnessed,
)

TASKS = 200
CONFIG = TaskQueueConfig(concurrency=20, max_retry=0)


class World:
    def __init__(self, given: Any) -> None:
        self.path = given.folder / "jobs.db"
        self.said = given.folder / "said"
        self.ready = given.folder / "ready"
        self.held = given.folder / "held"
        self.hold_s: float = given.hold

    async def hold(self) -> None:
        with closing(sqlite3.connect(self.path, isolation_level=None, timeout=30.0)) as db:
            db.execute("BEGIN EXCLUSIVE")
            self.held.touch()
            time.sleep(self.hold_s)  # noqa: ASYNC251 - nothing else runs in this process
            db.execute("ROLLBACK")

    async def work(self) -> None:
        errors: list[BaseException] = []

        async def handler(task: QueueTask[Job]) -> None:
            try:
                await trio.sleep(0.05)
            except BaseException as exc:
                errors.append(exc)
                raise

        turns = 0

        class Counted(SqliteStorage):
            async def turn(self, *arguments: Any, **options: Any) -> Any:
                nonlocal turns
                turns += 1
                return await super().turn(*arguments, **options)

        async with Counted(self.path) as storage:
            call_witness(self.path)
            async with open_dispatcher(storage, lease=30.0) as dispatcher:
                dispatcher.consumer.register_queue("q", CONFIG)
                dispatcher.consumer.register_handler(JOB, handler)
                await dispatcher.publisher.publish_many([JOB(Job(n), id=f"t{n}") for n in range(TASKS)])
                self.ready.touch()
                while not self.held.exists():  # noqa: ASYNC110 - another process makes it
                    await trio.sleep(0.001)
                wall, cpu, before, error = time.monotonic(), time.process_time(), turns, ""
                try:
                    await dispatcher.publisher.publish(JOB(Job(0), id="during"))
                except StorageError as exc:
                    error = str(exc)
                waited = time.monotonic() - wall
                note(self.said, f"{waited} {time.process_time() - cpu} {turns - before} {len(errors)} {error}")
                await dispatcher.drain()
                await dispatcher.publisher.publish(JOB(Job(0), id="after"))
                await dispatcher.drain()


def main() -> None:
    given = arguments(hold=3.0)
    world = World(given)
    with Crew(given.folder / "log") as crew:
        crew.start("worker", world.work)
        until(world.ready.exists, 20.0, "the worker works")
        crew.start("holder", world.hold)
        assert crew.ended("holder", given.hold + 20.0) == 0, crew.said()
        assert crew.ended("worker", 30.0) == 0, crew.said()
    waited, cpu, turns, errors, error = notes(world.said)[0].split(" ", 4)
    published = [f"t{n}" for n in range(TASKS)] + ["after"] + ([] if error else ["during"])
    tell(
        hold_s=given.hold,
        publish_waited_s=round(float(waited), 2),
        publish_error=error,
        cpu_s=round(float(cpu), 3),
        turns_meanwhile=int(turns),
        handler_errors=int(errors),
        **witnessed(world.path, published),
    )


if __name__ == "__main__":
    main()
