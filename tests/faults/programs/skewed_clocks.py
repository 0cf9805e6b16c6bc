"""C5: two workers whose machines' clocks are an hour off, one ahead and one behind, on one database.

Each publishes tasks with delays, and for some moments, and declares a cron entry. One is
killed amid long runs. The machine's own clock is the database's and the witness's.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import trio

from dispatch import CronEntry, QueueTask, TaskQueueConfig, TaskType, open_dispatcher
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

HOUR_S = 3_600.0
LEASE_S = 1.0
LONG_S = 3.5
DELAYED = 30
LONG = 10
HELD = TaskType("held", "job", Job)
TICK = TaskType("q", "tick", Job)
CONFIG = TaskQueueConfig(concurrency=10, max_retry=5, retry_delay=0.0)
CRON = CronEntry("* * * * * *", "secondly", TICK(Job(0)))


class World:
    def __init__(self, given: Any) -> None:
        self.where = given.where
        self.folder = given.folder

    async def ahead(self) -> None:
        await self.work("ahead", HOUR_S)

    async def behind(self) -> None:
        await self.work("behind", -HOUR_S)

    async def doomed(self) -> None:
        """Takes long runs, and is killed amid them."""
        await self.work("doomed", HOUR_S)

    async def work(self, name: str, off_s: float) -> None:
        machine = time.time
        time.time = lambda: machine() + off_s

        async def handler(task: QueueTask[Job]) -> None:
            note(self.folder / "runs", f"{name} {task.queue} {task.id}")
            if task.queue == "held" and task.attempt == 1:
                await trio.sleep(60.0 if name == "doomed" else LONG_S)

        async with (
            opened(self.where) as storage,
            open_dispatcher(
                storage, worker=name, lease=LEASE_S, grace=0.0, observers=(), cron=() if name == "doomed" else [CRON]
            ) as dispatcher,
        ):
            consumer = dispatcher.consumer
            kinds = [HELD] if name == "doomed" else [HELD, JOB, TICK]
            for queue in {kind.queue for kind in kinds}:
                consumer.register_queue(queue, CONFIG)
            for kind in kinds:
                consumer.register_handler(kind, handler)
            await dispatcher.control.queues()
            note(self.folder / "ready", name)
            if name != "doomed":
                publisher = dispatcher.publisher
                for n in range(DELAYED):
                    await publisher.publish(JOB(Job(n), id=f"{name}{n}", delay=0.05 * n))
                # A moment that is meant by everybody's clock, whoever says it.
                at = datetime.fromtimestamp(machine() + 1.5, UTC)
                await publisher.publish(JOB(Job(0), id=f"{name}-at", available_at=at))
            await trio.sleep_forever()


def main() -> None:
    given = arguments()
    world = World(given)
    call_witness(given.where)
    with Crew(given.folder / "log") as crew:
        crew.start("doomed", world.doomed)
        until(lambda: len(notes(given.folder / "ready")) == 1, 20.0, "the queue is declared")

        async def publish() -> None:
            async with opened(given.where) as storage, open_dispatcher(storage, observers=()) as dispatcher:
                await dispatcher.publisher.publish_many([HELD(Job(n), id=f"long{n}") for n in range(LONG)])
                await trio.sleep(0.1)

        crew.start("publisher", publish)
        until(lambda: len(notes(given.folder / "runs")) == LONG, 20.0, "the long ones run")
        killed_at = time.time()
        crew.kill("doomed")
        for name, role in (("ahead", world.ahead), ("behind", world.behind)):
            crew.start(name, role)
        began = time.time()
        publish_more = [f"more{n}" for n in range(4)]

        async def publish_again() -> None:
            async with opened(given.where) as storage, open_dispatcher(storage, observers=()) as dispatcher:
                await dispatcher.publisher.publish_many([HELD(Job(0), id=id_) for id_ in publish_more])
                await trio.sleep(0.1)

        until(lambda: len(notes(given.folder / "ready")) == 3, 20.0, "both work")
        crew.start("again", publish_again)
        ids = [f"{name}{n}" for name in ("ahead", "behind") for n in range(DELAYED)]
        ids += ["ahead-at", "behind-at", *publish_more, *(f"long{n}" for n in range(LONG))]
        ended = "SELECT count(*) FROM dispatch_tasks WHERE status = 'succeeded' AND cron IS NULL"
        try:
            until(lambda: asked(given.where, ended)[0][0] == len(ids), 15.0, "all have ended")
        except TimeoutError as exc:
            print(exc)
        time.sleep(max(0.0, began + 6.0 - time.time()))
        lived_s = time.time() - began
    late = asked(
        given.where,
        "SELECT coalesce(started_at, ?) - available_at FROM dispatch_tasks"
        " WHERE queue = 'q' AND cron IS NULL AND attempt < 2",
        time.time(),
    )
    lateness = [float(each) for (each,) in late]
    due = asked(given.where, "SELECT available_at - created_at, id FROM dispatch_tasks WHERE id LIKE 'ahead%' OR id LIKE 'behind%'")
    wrongly_due = sum(not -0.01 <= float(seconds) <= 2.0 for seconds, _ in due)
    rescues = asked(
        given.where,
        "SELECT id, worker, at FROM witness WHERE was LIKE 'running %' AND became = 'pending'",
    )
    dead = [at for _, worker, at in rescues if worker == "doomed"]
    ticks = asked(given.where, "SELECT slot, created_at FROM dispatch_tasks WHERE cron IS NOT NULL")
    tell(
        seconds=round(lived_s, 1),
        early=sum(each < -0.01 for each in lateness) + wrongly_due,
        latest_s=round(max(lateness), 2),
        held_by_the_dead=LONG,
        rescued_dead=len(dead),
        rescued_after_s=round(max(dead, default=killed_at + 99) - killed_at - LEASE_S, 2),
        rescued_alive=len(rescues) - len(dead),
        ticks=len(ticks),
        ticks_off=sum(not -0.1 <= made - slot <= 2.0 for slot, made in ticks),
        **witnessed(given.where, ids),
    )


if __name__ == "__main__":
    main()
