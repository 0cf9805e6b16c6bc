"""D3, D4: the server of a fleet crashes and recovers, or ends one of our connections, again and again.

One process publishes and two work, all the while. A publish that raises is made
again with the same id until it returns. A second queue is idle but for a task
every now and then: when it starts tells how well workers are woken.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import trio

from dispatch import (
    QueueTask,
    StorageError,
    TaskQueueConfig,
    TaskQueuePublisher,
    TaskType,
    open_dispatcher,
)
from dispatch.testing.postgres import postgres_server
from faults.programs.on_postgres import execute, prepare
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

PROBE = TaskType("probe", "job", Job)
WORKERS = ("one", "two")
LEASE_S = 2.0
CONFIG = TaskQueueConfig(concurrency=10, max_retry=1_000, retry_delay=0.01)
END_ONE = """
CREATE FUNCTION end_one(wanted text) RETURNS bool LANGUAGE plpgsql AS $$
DECLARE
    victim int;
BEGIN
    FOR look IN 1 .. 300 LOOP
        PERFORM pg_stat_clear_snapshot();
        SELECT pid INTO victim FROM pg_stat_activity WHERE application_name LIKE 'dispatch %' AND CASE wanted
            WHEN 'listening' THEN query LIKE 'LISTEN %'
            WHEN 'publishing' THEN state = 'active' AND query LIKE '%INSERT INTO%'
            WHEN 'busy' THEN state = 'active'
            ELSE TRUE END ORDER BY random() LIMIT 1;
        IF FOUND THEN
            RETURN pg_terminate_backend(victim);
        END IF;
        PERFORM pg_sleep(0.001);
    END LOOP;
    RETURN FALSE;
END $$
"""
PER_CUT = 21
"""So many tasks are published for each cut, however slow the machine."""
WANTED = ("listening", "publishing", "busy", "any")
"""The connections to end, in turn."""


class World:
    def __init__(self, given: Any, where: str) -> None:
        self.folder: Path = given.folder
        self.where = where
        self.enough = given.folder / "enough"
        """There when no more is to be published."""
        self.done = given.folder / "done"
        """There when no more will be."""

    # ---- in processes of their own -----------------------------------------

    async def one(self) -> None:
        await self.work("one")

    async def two(self) -> None:
        await self.work("two")

    async def work(self, name: str) -> None:
        async def handler(task: QueueTask[Job]) -> None:
            # Slower than they are published, until it is time to come to an end.
            await trio.sleep(0.0 if self.done.exists() else 0.05)

        async with (
            opened(self.where) as storage,
            open_dispatcher(storage, worker=name, lease=LEASE_S) as dispatcher,
        ):
            for kind, config in ((JOB, CONFIG), (PROBE, TaskQueueConfig(max_retry=1_000))):
                dispatcher.consumer.register_queue(kind.queue, config)
                dispatcher.consumer.register_handler(kind, handler)
            await dispatcher.control.queues()  # declares them
            note(self.folder / "ready", name)
            while True:
                done = self.done.exists()  # looked at before the drain
                try:
                    await dispatcher.drain()
                except StorageError:
                    done = False
                if done:
                    break
                await trio.sleep(0.1)

    async def publish(self) -> None:
        async with opened(self.where) as storage, trio.open_nursery() as nursery:
            publisher = TaskQueuePublisher(storage)
            numbers = count()
            for _ in range(8):
                nursery.start_soon(self.publish_some, publisher, JOB, "t", numbers, 0.01)
            nursery.start_soon(self.publish_some, publisher, PROBE, "p", count(), 0.2)
        self.done.touch()

    async def publish_some(
        self, publisher: TaskQueuePublisher, kind: TaskType[Job], letter: str, numbers: count[int], pause_s: float
    ) -> None:
        """Publish, each task until it is published for sure."""
        while not self.enough.exists():
            n = next(numbers)
            raised = 0
            while True:
                try:
                    [published] = await publisher.publish_many([kind(Job(n), id=f"{letter}{n}")])
                except StorageError:
                    raised += 1
                    await trio.sleep(0.05)
                    continue
                assert published.error is None, published.error
                break
            assert published.answer is not None
            note(self.folder / "acknowledged", f"{letter}{n} {raised} {published.answer.value}")
            await trio.sleep(pause_s)

    # ---- cutting -----------------------------------------------------------

    def back(self, since: float) -> float:
        """Seconds until each worker has claimed again; waits for it, for a while."""
        claims = "SELECT worker, min(at) FROM witness WHERE became = 'running' AND at > ? GROUP BY worker"
        first: dict[str, float] = {}

        def all_are() -> bool:
            first.update(asked(self.where, claims, since))
            return set(first) == set(WORKERS)

        until(all_are, 20.0, f"the workers are back, of whom {sorted(first)} are")
        return max(first.values()) - since

    def restart(self, server: Any) -> float:
        server.restart()
        return self.back(time.time())

    def terminate(self, wanted: str) -> bool:
        """Have the server end one of our connections; whether one was found."""
        [(ended,)] = asked(self.where, "SELECT end_one(?)", wanted)
        time.sleep(0.08)
        return bool(ended)

    def figures(self) -> dict[str, Any]:
        answers = [line.split() for line in notes(self.folder / "acknowledged")]
        wakes = asked(
            self.where,
            "SELECT coalesce(started_at, extract(epoch FROM clock_timestamp())) - available_at"
            # A claim in doubt is found by its lease, and not by waking.
            " FROM dispatch_tasks WHERE queue = 'probe' AND attempt < 2",
        )
        return {
            "raised": sum(int(raised) for _, raised, _ in answers),
            "were_there": sum(answer == "existing" for _, _, answer in answers),
            "unasked_there": sum(raised == "0" and answer != "created" for _, raised, answer in answers),
            "woken": len(wakes),
            "slowest_wake_s": round(max(float(each) for (each,) in wakes), 2),
            **witnessed(self.where, [id_ for id_, _, _ in answers]),
        }


def main() -> None:
    given = arguments(cuts=20, patience=30.0)
    own = given.store == "own"  # which may be crashed; else connections are ended
    with postgres_server() if own else nullcontext() as server, Crew(given.folder / "log") as crew:
        where = given.where
        if server is not None:
            where = server.fresh_database()
            prepare(where)
        call_witness(where)
        execute(where, END_ONE)
        world = World(given, where)
        crew.start("one", world.one)
        until(lambda: len(notes(given.folder / "ready")) == 1, 20.0, "the queues are declared")
        crew.start("two", world.two)
        crew.start("publisher", world.publish)
        world.back(time.time())
        acknowledged = given.folder / "acknowledged"
        began = time.monotonic()
        ended: Counter[str] = Counter()
        slowest = 0.0
        for number in range(given.cuts):
            if server is not None:
                slowest = max(slowest, world.restart(server))
            else:
                wanted = WANTED[number % len(WANTED)]
                ended[wanted] += world.terminate(wanted)
            wanted_by_now = PER_CUT * (number + 1)
            until(lambda: len(notes(acknowledged)) > wanted_by_now, 20.0, "enough is published between the cuts")  # noqa: B023
        cutting_s = time.monotonic() - began
        world.enough.touch()
        ends = {name: crew.ended(name, given.patience) for name in list(crew.pids)}
        assert not any(ends.values()), crew.said()
        tell(
            cuts=given.cuts,
            listeners_cut=ended["listening"],
            publishes_cut=ended["publishing"],
            unfinished=sum(status is None for status in ends.values()),
            slowest_back_s=round(slowest, 2),
            cutting_s=round(cutting_s, 1),
            **world.figures(),
        )


if __name__ == "__main__":
    main()
