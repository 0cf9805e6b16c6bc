"""E2: what a claim costs with a large backlog, half of which cannot run, beside one with a thousand.

Time is the processor's, of the claiming thread; work is what SQLite counts, which no other load disturbs.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import trio
from attrs import define, field

from dispatch import QueueTask, TaskQueueConfig, open_dispatcher
from dispatch.records import NewTask
from dispatch.storage.protocol import Change, QueueRecord, Want
from dispatch.storage.query import All, Ids, Keys, Types
from dispatch.storage.sqlite import SqliteStorage
from faults.programs.scenario import JOB, Job, arguments, asked, tell

SMALL = 1_000
CLAIMS = 300
ROUNDS = 3
STUCK = ("key", "later", "held", "unhandled")
WANT = Want(queue="q", limit=1, types={"job": 1}, max_retry=5)


@define(eq=False)
class Measured:
    """One storage, and what each claim from it cost."""

    storage: SqliteStorage
    seconds: list[float] = field(factory=list)
    steps: list[int] = field(factory=list)
    _count: int = 0

    async def claim(self) -> None:
        began = time.thread_time()
        found = await self.storage.claim([WANT], worker="w", lease=None)
        self.seconds.append(time.thread_time() - began)
        assert len(found.claims) == 1

    async def count(self) -> None:
        db: sqlite3.Connection = self.storage._ledger.db
        self._count = 0
        db.set_progress_handler(self._step, 10)
        await self.storage.claim([WANT], worker="w", lease=None)
        db.set_progress_handler(None, 0)
        self.steps.append(self._count * 10)

    def _step(self) -> int:
        self._count += 1
        return 0


def p99(values: list[Any]) -> Any:
    return sorted(values)[int(len(values) * 0.99)]


async def fill(storage: SqliteStorage, runnable: int, stuck: int) -> None:
    """Tasks that can run, with as many that cannot stored before and among them."""
    await storage.declare([QueueRecord(name="q", keyed=True)])
    each = stuck // len(STUCK)
    share = 1_000
    made = dict.fromkeys((*STUCK, "runnable"), 0)
    while sum(made.values()) < runnable + each * len(STUCK):
        for kind in (*STUCK, "runnable"):
            count = min(share, (runnable if kind == "runnable" else each) - made[kind])
            batch = [new(kind, made[kind] + n) for n in range(count)]
            made[kind] += count
            if batch:
                await storage.enqueue(batch)
            if kind == "held" and batch:
                await storage.alter(Ids(*(task.id for task in batch)), Change(action="hold"))


def new(kind: str, number: int) -> NewTask:
    return NewTask(
        id=f"{kind}{number}",
        queue="q",
        type="unhandled" if kind == "unhandled" else "job",
        payload=b'{"n":0}',
        key="one" if kind == "key" else None,
        delay=36_000.0 if kind == "later" else 0.0,
    )


async def polled(path: Path) -> list[str]:
    """What a worker says to the file while it works, waits and drains."""
    said: list[str] = []
    done = 0

    async def handler(task: QueueTask[Job]) -> None:
        nonlocal done
        done += 1

    async with SqliteStorage(path, inline=True, synchronous="normal") as storage:
        for db in (storage._ledger.db, storage._searcher.db, storage._glancer.db, storage._eye):
            db.set_trace_callback(said.append)
        async with open_dispatcher(storage, lease=0.2, observers=()) as dispatcher:
            dispatcher.consumer.register_queue("q", TaskQueueConfig(keyed=True, concurrency=10))
            dispatcher.consumer.register_handler(JOB, handler)
            with trio.move_on_after(1.0):
                await dispatcher.drain()
    assert done > 20
    return said


async def run(given: Any) -> None:
    folder: Path = given.folder
    small_path, large_path = folder / "small.db", folder / "large.db"
    async with (
        SqliteStorage(small_path, inline=True, synchronous="normal") as one,
        SqliteStorage(large_path, inline=True, synchronous="normal") as other,
    ):
        await fill(one, SMALL, 0)
        await fill(other, given.tasks, given.stuck)
        # A task of the one key runs, so that the others of it stand behind.
        [first] = (await other.claim([Want(queue="q", limit=1, ids=frozenset({"key0"}))], worker="w", lease=None)).claims
        assert first.key == "one"
        stuck = sum((await other.count(All(Keys("one")))).values()) - 1
        stuck += sum((await other.count(All(Types("unhandled")))).values())
        rounds: list[tuple[float, float]] = []
        for number in range(ROUNDS + 1):
            small, large = Measured(one), Measured(other)
            for _ in range(CLAIMS // (1 if number else 3)):
                for measured in (small, large):
                    await (measured.claim() if number else measured.count())
            if number:
                rounds.append((p99(small.seconds), p99(large.seconds)))
            else:
                steps = p99(small.steps), p99(large.steps)
    best = min(rounds, key=lambda pair: pair[1] / pair[0])
    said = await polled(large_path)
    scans = sorted({text for text in said if "count(" in text.lower() and "limit" not in text.lower()})
    tell(
        waiting=asked(large_path, "SELECT count(*) FROM dispatch_tasks WHERE status = 'pending'")[0][0],
        behind_or_unhandled=stuck,
        p99_us_small=round(best[0] * 1e6),
        p99_us_large=round(best[1] * 1e6),
        time_ratio=round(best[1] / best[0], 2),
        p99_steps_small=steps[0],
        p99_steps_large=steps[1],
        statements=len(said),
        whole_counts=scans,
    )


def main() -> None:
    given = arguments(tasks=100_000, stuck=100_000)
    trio.run(run, given)


if __name__ == "__main__":
    main()
