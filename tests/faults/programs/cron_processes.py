"""D7: four processes fire twenty cron tasks every second, and one of them is killed again and again.

Every process declares the same entries. A tick that nobody came to in its second is made
up, so there is one task for each entry and second, whoever was killed, and it is not late.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any

import trio

from dispatch import CronEntry, QueueTask, open_dispatcher
from faults.programs.scenario import (
    JOB,
    Crew,
    Job,
    arguments,
    asked,
    damage,
    note,
    notes,
    opened,
    tell,
    until,
)

PROCESSES = 4
ENTRIES = 20
DECLARED = [CronEntry("* * * * * *", f"c{n}", JOB(Job(n)), misfire="all") for n in range(ENTRIES)]


class World:
    def __init__(self, given: Any) -> None:
        self.where = given.where
        self.ready = given.folder / "ready"
        self.runs = given.folder / "runs"

    async def serve(self) -> None:
        """Fire and run until killed."""

        async def handler(task: QueueTask[Job]) -> None:
            note(self.runs, f"{task.cron} {task.id}")

        async with (
            opened(self.where) as storage,
            open_dispatcher(storage, cron=DECLARED, observers=()) as dispatcher,
        ):
            dispatcher.consumer.register_queue("q")
            dispatcher.consumer.register_handler(JOB, handler)
            note(self.ready, "ready")
            await trio.sleep_forever()


def main() -> None:
    given = arguments(seconds=15, every=1.0)
    world, rng = World(given), random.Random(given.seed)
    names = [f"process{n}" for n in range(PROCESSES)]
    with Crew(given.folder / "log") as crew:
        for name in names:
            crew.start(name, world.serve)
        until(lambda: len(notes(world.ready)) == PROCESSES, 30.0, "all processes serve")
        first = int(time.time()) + 2
        last = first + given.seconds - 1
        kills = 0
        time.sleep(first - time.time())
        while time.time() < last:
            time.sleep(rng.uniform(0.5, 1.5) * given.every)
            for name in names:
                if crew.ended(name) is not None:
                    raise RuntimeError(f"{name} ended by itself: {crew.said()}")
            victim = rng.choice(names)
            crew.kill(victim)
            crew.start(victim, world.serve)
            kills += 1
        time.sleep(3.0)  # for the last second's to be made up, were they late
    rows = asked(world.where, "SELECT cron, slot, created_at - slot FROM dispatch_tasks WHERE cron IS NOT NULL")
    counted = Counter((name, slot) for name, slot, _ in rows)
    wanted = {(f"c{n}", float(second)) for n in range(ENTRIES) for second in range(first, last + 1)}
    totals = dict(asked(world.where, "SELECT name, total FROM dispatch_crons"))
    tell(
        seconds=given.seconds,
        kills=kills,
        ticks=len(wanted),
        missing=len(wanted - counted.keys()),
        doubled=sum(count > 1 for count in counted.values()),
        miscounted=sum(totals[name] != count for name, count in Counter(name for name, *_ in rows).items()),
        latest_s=round(max(late for _, slot, late in rows if first <= slot <= last), 2),
        ran=len(notes(world.runs)),
        integrity=damage(world.where),
    )


if __name__ == "__main__":
    main()
