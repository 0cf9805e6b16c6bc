"""A1: two workers and a publisher on one file, one of them killed at random again and again.

A few runs sleep past their lease, unrenewed, and then claim to be done. One worker
may have a prefetch.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from dispatch import QueueTask, TaskQueueConfig, TaskQueuePublisher, open_dispatcher
from dispatch.storage.protocol import RenewAnswer, Storage
from dispatch.testing.history import (
    HistoryError,
    HistoryFile,
    Record,
    figures,
    read_history,
    verify,
)
from dispatch.testing.recording import RecordingStorage
from faults.programs.scenario import (
    JOB,
    Crew,
    Job,
    arguments,
    call_witness,
    note,
    notes,
    opened,
    tell,
    witnessed,
)

LEASE_S = 0.4
CONFIG = TaskQueueConfig(concurrency=50, max_retry=1_000, retry_delay=0.01)
LATE = 10
"""Of how many tasks one is published by the process that may be killed."""


class Drowsy(RecordingStorage):
    """Renews no lease of the tasks that sleep, and says it did."""

    def __init__(self, storage: Storage, record: Record) -> None:
        super().__init__(storage, record)
        self.asleep: set[str] = set()

    async def renew(self, claims: Sequence[tuple[str, int]], *, lease: float | None) -> list[RenewAnswer]:
        awake = await super().renew([each for each in claims if each[0] not in self.asleep], lease=lease)
        return awake + [RenewAnswer(id_, epoch, True) for id_, epoch in claims if id_ in self.asleep]


class World:
    def __init__(self, given: Any) -> None:
        self.folder: Path = given.folder
        self.where = given.where
        self.tasks: int = given.tasks
        self.sleep_s: float = given.sleep
        """How long a handler takes: with 100 at work in all, enough to outlast the kills."""
        self.sleeper_every: int = given.every
        self.done = given.folder / "published"

    async def work(self, prefetch: int = 0) -> None:
        """Work until everything was published and has ended."""
        config = attrs.evolve(CONFIG, prefetch=prefetch)
        with HistoryFile(self.folder / "history") as record:
            async with opened(self.where) as inside:
                storage = Drowsy(inside, record)

                async def handler(task: QueueTask[Job]) -> None:
                    if task.payload.n % self.sleeper_every == 0 and task.attempt == 1:
                        storage.asleep.add(task.id)
                        with trio.CancelScope(shield=True):
                            await trio.sleep(LEASE_S * 2)
                    else:
                        await trio.sleep(self.sleep_s)

                async with open_dispatcher(storage, lease=LEASE_S, observers=()) as dispatcher:
                    dispatcher.consumer.register_queue("q", config)
                    dispatcher.consumer.register_handler(JOB, handler)
                    published = False
                    while not published:
                        published = self.done.exists()  # looked at before the drain
                        await dispatcher.drain()
                        await trio.sleep(0.05)

    async def publish_first(self) -> None:
        """Publish all but the late ones, in batches."""
        with HistoryFile(self.folder / "history") as record:
            async with opened(self.where) as storage:
                call_witness(self.where)
                async with open_dispatcher(RecordingStorage(storage, record), observers=()) as dispatcher:
                    dispatcher.consumer.register_queue("q", CONFIG)
                    first = [JOB(Job(n), id=f"t{n}") for n in range(self.tasks) if n % LATE]
                    for each in await dispatcher.publisher.publish_many(first):
                        assert each.error is None, each.error

    async def publish_late(self) -> None:
        """Publish the late ones, eight at a time; each is noted once its publish has returned."""
        known = set(notes(self.folder / "acknowledged"))
        left = [n for n in range(0, self.tasks, LATE) if f"t{n}" not in known]

        async def some(publisher: TaskQueuePublisher, numbers: list[int]) -> None:
            for n in numbers:
                await publisher.publish(JOB(Job(n), id=f"t{n}"))
                note(self.folder / "acknowledged", f"t{n}")

        with HistoryFile(self.folder / "history") as record:
            async with opened(self.where) as storage, trio.open_nursery() as nursery:
                publisher = TaskQueuePublisher(RecordingStorage(storage, record))
                for start in range(8):
                    nursery.start_soon(some, publisher, left[start::8])
        self.done.touch()

    async def look_back(self) -> None:
        """Record how everything stands after the drain."""
        with HistoryFile(self.folder / "history") as record:
            async with opened(self.where) as storage:
                await RecordingStorage(storage, record).drained()


def main() -> None:
    given = arguments(tasks=20_000, kills=40, patience=60.0, sleep=0.08, every=500, prefetch=0)
    world, rng = World(given), random.Random(given.seed)
    began = time.monotonic()
    with Crew(given.folder / "log") as crew:
        crew.start("first", world.publish_first)
        if crew.ended("first", 60.0) != 0:
            raise RuntimeError(crew.said())
        roles = {"one": world.work, "two": partial(world.work, given.prefetch), "late": world.publish_late}
        for name, role in roles.items():
            crew.start(name, role)
        killed = 0
        while killed < given.kills:
            time.sleep(rng.uniform(0.12, 0.45))
            for name in list(crew.pids):
                if (status := crew.ended(name)) is not None:
                    assert status == 0, crew.said()
            if not crew.pids:
                break  # all is done: the figures will say how few kills there were
            victim = rng.choice(sorted(crew.pids))
            crew.kill(victim)
            killed += 1
            crew.start(victim, roles[victim])
        ends = {name: crew.ended(name, given.patience) for name in list(crew.pids)}
        unfinished = [name for name, status in ends.items() if status is None]
        assert not any(ends.values()), crew.said()
        for name in unfinished:
            crew.kill(name)
        crew.start("last", world.look_back)
        if crew.ended("last", 60.0) != 0:
            raise RuntimeError(crew.said())
    acknowledged = [f"t{n}" for n in range(given.tasks) if n % LATE] + notes(given.folder / "acknowledged")
    history = read_history(given.folder / "history")
    broken = 0
    try:
        verify(history)
    except HistoryError as error:
        broken = len(error.violations)
        print(error)
    told = figures(history)
    tell(
        kills=killed,
        refused=told.refused,
        rescued=told.rescued,
        broken=broken,
        unfinished=len(unfinished),
        seconds=round(time.monotonic() - began, 1),
        **witnessed(world.where, acknowledged),
    )


if __name__ == "__main__":
    main()
