"""A fleet on one database: woken, paused, resized, cancelled and limited across its processes.

Each worker is a process; this one is the operator. What happened when is told by the witness.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import groupby
from statistics import median
from typing import Any

import trio

from dispatch import (
    Dispatcher,
    QueueTask,
    RateLimit,
    TaskQueueConfig,
    TaskQueuePublisher,
    open_dispatcher,
)
from dispatch.storage.query import Statuses
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

WORKERS = ("one", "two", "three")
CLAIMS = "SELECT worker, at FROM witness WHERE became = 'running' AND at BETWEEN ? AND ? ORDER BY at"


class World:
    def __init__(self, given: Any) -> None:
        self.where: str = given.where
        self.folder = given.folder
        self.run_s = 0.0
        self.config = TaskQueueConfig(concurrency=10)

    def worker(self, name: str) -> Callable[[], Awaitable[None]]:
        """A process that works until it is killed."""

        async def handler(task: QueueTask[Job]) -> None:
            await trio.sleep(self.run_s)

        async def work() -> None:
            async with (
                opened(self.where) as storage,
                open_dispatcher(storage, worker=name, observers=()) as dispatcher,
            ):
                dispatcher.consumer.register_queue("q", self.config)
                dispatcher.consumer.register_handler(JOB, handler)
                await dispatcher.control.queues()  # declares it
                note(self.folder / "ready", name)
                await trio.sleep_forever()

        return work

    def start(self, crew: Crew, *names: str) -> None:
        """Start workers, and wait until all of them are at work."""
        for number, name in enumerate(names, 1):
            crew.start(name, self.worker(name))
            until(lambda number=number: len(notes(self.folder / "ready")) >= number, 20.0, "they work")
        time.sleep(0.3)

    def left(self) -> int:
        """Tasks that have not ended."""
        return int(asked(self.where, "SELECT count(*) FROM dispatch_tasks WHERE status IN ('pending', 'running')")[0][0])

    def as_operator(self, act: Callable[[Dispatcher], Awaitable[Any]]) -> Any:
        """What a dispatcher of this process, which is gone again before anybody forks, answers."""

        async def main() -> Any:
            async with opened(self.where) as storage, open_dispatcher(storage, observers=()) as dispatcher:
                return await act(dispatcher)

        return trio.run(main)

    def publish(self, count: int, first: int = 0) -> None:
        async def act(dispatcher: Dispatcher) -> None:
            tasks = [JOB(Job(n), id=f"t{first + n}") for n in range(count)]
            await dispatcher.publisher.publish_many(tasks)
            await trio.sleep(0.1)

        self.as_operator(act)


def wake(world: World, crew: Crew) -> dict[str, Any]:
    """Publishers on their own: one that stays, and some that leave as soon as they have published."""
    world.start(crew, "one")

    async def stays() -> None:
        async with opened(world.where) as storage:
            publisher = TaskQueuePublisher(storage)
            for n in range(60):
                await publisher.publish(JOB(Job(n), id=f"stay{n}"))
                await trio.sleep(0.05)

    async def leaves(n: int) -> None:
        async with opened(world.where) as storage:
            await TaskQueuePublisher(storage).publish(JOB(Job(n), id=f"leave{n}"))

    trio.run(stays)
    for n in range(5):
        trio.run(leaves, n)
        time.sleep(0.5)
    sql = "SELECT coalesce(started_at, extract(epoch FROM clock_timestamp())) - created_at FROM dispatch_tasks WHERE id LIKE ?"
    stayed, left = ([float(each) for (each,) in asked(world.where, sql, name)] for name in ("stay%", "leave%"))
    return {
        "woken": len(stayed),
        "p50_ms": round(median(stayed) * 1e3, 1),
        "slowest_ms": round(max(stayed) * 1e3, 1),
        "slowest_after_leaving_ms": round(max(left) * 1e3, 1),
    }


def control(world: World, crew: Crew) -> dict[str, Any]:
    """Pause, resume, concurrency and cancel, set by another process than those that work."""
    world.run_s = 0.05
    world.publish(6_000)
    world.start(crew, "one", "two")

    async def pause(dispatcher: Dispatcher) -> float:
        await dispatcher.control.pause_queue("q")
        return time.time()

    async def resume(dispatcher: Dispatcher) -> float:
        await dispatcher.control.resume_queue("q")
        return time.time()

    async def narrow(dispatcher: Dispatcher) -> float:
        await dispatcher.control.set_concurrency("q", 2)
        return time.time()

    async def registry(dispatcher: Dispatcher) -> list[tuple[str, tuple[str, ...], int]]:
        return [(each.id, each.queues, each.pid) for each in await dispatcher.control.workers()]

    known = world.as_operator(registry)
    time.sleep(0.5)
    paused_at = world.as_operator(pause)
    time.sleep(1.0)
    claimed_paused = asked(world.where, CLAIMS, paused_at + 0.05, time.time())
    resumed_at = world.as_operator(resume)
    time.sleep(1.0)
    claimed_resumed = asked(world.where, CLAIMS, resumed_at, time.time())
    back = [
        min((at for worker, at in claimed_resumed if worker == name), default=resumed_at + 9.0)
        for name in ("one", "two")
    ]
    narrowed_at = world.as_operator(narrow)
    time.sleep(2.0)
    began = {
        worker: len(list(each))
        for worker, each in groupby(sorted(asked(world.where, CLAIMS, narrowed_at + 1.0, narrowed_at + 2.0)), lambda row: row[0])
    }
    return {
        "known": {(name, ("q",), crew.pids[name]) for name in ("one", "two")} <= set(known),
        "claimed_before": len(asked(world.where, CLAIMS, paused_at - 0.4, paused_at)),
        "claimed_while_paused": len(claimed_paused),
        "back_after_s": round(max(back) - resumed_at, 2),
        # Each runs two at a time, so at most 2 / 0.05 s.
        "fastest_when_narrowed": max(began.values()),
        "narrowed": len(began),
    }


def cancel(world: World, crew: Crew) -> dict[str, Any]:
    """Cancel what runs, wherever it does."""
    world.run_s = 60.0
    world.publish(20)
    world.start(crew, "one", "two")
    until(lambda: len(asked(world.where, CLAIMS, 0.0, 1e12)) == 20, 10.0, "all run")

    async def act(dispatcher: Dispatcher) -> tuple[int, float]:
        asked_to = await dispatcher.control.cancel(Statuses("running"), reason="enough")
        return len(asked_to), time.time()

    count, at = world.as_operator(act)
    with suppress(TimeoutError):
        until(lambda: not world.left(), 5.0, "all are cancelled")
    ended = asked(world.where, "SELECT worker, at FROM witness WHERE became = 'cancelled'")
    return {
        "asked": count,
        "cancelled": len(ended),
        "by": len({worker for worker, _ in ended}),
        "last_after_s": round(max((at_ for _, at_ in ended), default=at + 5.0) - at, 2),
    }


def limit(world: World, crew: Crew) -> dict[str, Any]:
    """Seven at a time over three processes with nine slots."""
    world.run_s = 0.02
    world.config = TaskQueueConfig(concurrency=3, max_running=7)
    world.publish(1_500)
    world.start(crew, *WORKERS)
    until(lambda: not world.left(), 45.0, "all have ended")
    changes = asked(world.where, "SELECT CASE became WHEN 'running' THEN 1 ELSE -1 END FROM witness ORDER BY at, 1")
    running = most = 0
    for (change,) in changes:
        running += change
        most = max(most, running)
    claims = asked(world.where, CLAIMS, 0.0, 1e12)
    return {
        "most_at_once": most,
        "workers": len({worker for worker, _ in claims}),
        "of_what_is_allowed": round(len(claims) * world.run_s / 7 / (claims[-1][1] - claims[0][1]), 2),
        **witnessed(world.where, [f"t{n}" for n in range(1_500)]),
    }


def rate(world: World, crew: Crew) -> dict[str, Any]:
    """Forty a second over three processes."""
    world.config = TaskQueueConfig(concurrency=10, rate_limit=RateLimit(40, 1.0))
    world.publish(240)
    world.start(crew, *WORKERS)
    until(lambda: not world.left(), 45.0, "all have ended")
    claims = asked(world.where, CLAIMS, 0.0, 1e12)
    # When the witness heard of them is later, by as long as the machine looked elsewhere.
    moments = [at for (at,) in asked(world.where, "SELECT started_at FROM dispatch_tasks ORDER BY started_at")]
    return {
        "workers": len({worker for worker, _ in claims}),
        "most_in_a_second": max(sum(at <= other < at + 1.0 for other in moments) for at in moments),
        # A full bucket, and then what comes back.
        "of_what_is_allowed": round((len(moments) - 40) / (moments[-1] - moments[0]) / 40, 3),
        **witnessed(world.where, [f"t{n}" for n in range(240)]),
    }


SCENARIOS = {each.__name__: each for each in (wake, control, cancel, limit, rate)}


def main() -> None:
    given = arguments(what="wake")
    world = World(given)
    call_witness(given.where)

    async def declare(dispatcher: Dispatcher) -> None:
        dispatcher.consumer.register_queue("q", world.config)
        await dispatcher.control.queues()

    world.as_operator(declare)
    with Crew(given.folder / "log") as crew:
        figures = SCENARIOS[given.what](world, crew)
    tell(**figures)


if __name__ == "__main__":
    main()
