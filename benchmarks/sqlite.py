"""The dispatcher on SQLite beside raw `sqlite3` with the same schema and statements, in one run.

    python benchmarks/sqlite.py [--tasks 10000] [--rounds 5] [--synchronous full|normal] [--folder .]

"Raw" is a loop and nothing else: it stores prepared rows, claims and succeeds
them with our own statements, 100 to a transaction. It is the limit of the
schema. The dispatcher does the rest as well: typed payloads checked, encoded and
decoded, handlers run in scopes of their own, leases, bells, graceful end. It claims
no more than its free slots, or with a `prefetch` as much as raw does.

Rounds alternate; printed are medians of jobs per second and of the ratio, then
the time from `publish` having returned to the handler's start on an idle queue,
beside one raw claim with its commit.
"""

from __future__ import annotations

import argparse
import json
import platform
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter

import trio
from memory import ORDER, Order, order

from dispatch import QueueTask, TaskQueueConfig, open_dispatcher
from dispatch.records import NewTask
from dispatch.storage.protocol import QueueRecord
from dispatch.storage.sqlite_registry import SqliteRegistry
from dispatch.storage.sqlite_schema import connect, create_or_migrate
from dispatch.storage.sqlite_tasks import CLAIM_MANY, HEADS, INSERT, SUCCEED, SqliteTasks

BATCH = 100
PREFETCH = 90
LATENCY_SAMPLES = 200
PAYLOAD = (
    b'{"id":7,"customer":"ada@example.org","total":12.5,"express":true,"lines":["book","pen"],"note":null}'
)


class Raw:
    """Our tables and statements, and a loop."""

    def __init__(self, path: Path, synchronous: str) -> None:
        self.db = connect(path, synchronous="normal" if synchronous == "normal" else "full")
        create_or_migrate(self.db, path)
        tasks = SqliteTasks(self.db)
        self.db.execute("BEGIN IMMEDIATE")
        tasks.begin()
        SqliteRegistry(tasks).declare([QueueRecord(name="orders")], time.time())
        first = tasks.store(NewTask(id="first", queue="orders", type="ship", payload=PAYLOAD), time.time())
        self.db.execute("COMMIT")
        self.settle(self.claim(1))
        assert first.id == "first"

    def enqueue(self, ids: list[str]) -> None:
        now = time.time()
        rest = (1, None, None, None, None, 1, None, None, None, None, None, now, now, 1, 1)
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany(INSERT, [(id_, "orders", "ship", PAYLOAD, *rest) for id_ in ids])
        self.db.execute("COMMIT")

    def claim(self, limit: int, ended: list[tuple[str, int]] | None = None) -> list[tuple[str, int]]:
        """Settle what has ended and claim more, in one transaction, as a worker's turn does."""
        now = time.time()
        self.db.execute("BEGIN IMMEDIATE")
        self._succeed(ended or [], now)
        heads: list[tuple[float, int]] = []
        for priority in (3, 2, 1, 0):
            heads += self.db.execute(HEADS, (1, priority, limit)).fetchall()
        claimed = self.db.execute(
            CLAIM_MANY, ("raw", now, now + 30, 0, '["fixed", 1.0, 2.0, 3600.0, 0.0]', "retry", json.dumps([seq for _, seq in heads]))
        ).fetchall()
        self.db.execute("COMMIT")
        return [(row[1], row[2]) for row in claimed]

    def settle(self, claims: list[tuple[str, int]]) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        self._succeed(claims, time.time())
        self.db.execute("COMMIT")

    def _succeed(self, claims: list[tuple[str, int]], now: float) -> None:
        for id_, epoch in claims:
            self.db.execute(SUCCEED, (now, None, id_, epoch)).fetchone()


def raw_throughput(folder: Path, synchronous: str, tasks: int) -> float:
    """Tasks per second, stored, claimed and succeeded by a loop."""
    raw = Raw(folder / "raw.db", synchronous)
    ids = [f"task-{number}" for number in range(tasks)]
    began = perf_counter()
    for start in range(0, tasks, BATCH):
        raw.enqueue(ids[start : start + BATCH])
    claims = raw.claim(BATCH)
    done = 0
    while claims:
        done += len(claims)
        claims = raw.claim(BATCH, claims)
    elapsed = perf_counter() - began
    assert done == tasks
    raw.db.close()
    return tasks / elapsed


def raw_claim_latency(folder: Path, synchronous: str) -> list[float]:
    """Seconds that one claim and its commit take, with one task waiting."""
    raw = Raw(folder / "latency.db", synchronous)
    found: list[float] = []
    for number in range(LATENCY_SAMPLES):
        raw.enqueue([f"task-{number}"])
        time.sleep(0.002)
        began = perf_counter()
        claims = raw.claim(1)
        found.append(perf_counter() - began)
        raw.settle(claims)
    raw.db.close()
    return found


async def dispatcher_throughput(
    folder: Path, synchronous: str, tasks: int, *, concurrency: int, bulk: int, prefetch: int
) -> float:
    """Tasks per second from the first publish to the last settle; `concurrency` producers, or bulk."""
    done = 0

    async def ship(task: QueueTask[Order]) -> None:
        nonlocal done
        done += 1

    url = f"sqlite:///{folder}/dispatch.db?synchronous={synchronous}"
    async with open_dispatcher(url, observers=()) as dispatcher:
        config = TaskQueueConfig(concurrency=concurrency, max_retry=1, prefetch=prefetch)
        dispatcher.consumer.register_queue("orders", config)
        dispatcher.consumer.register_handler(ORDER, ship)
        publisher = dispatcher.publisher
        numbers = iter(range(tasks))

        async def produce() -> None:
            for number in numbers:
                await publisher.publish(ORDER(order(number)))

        began = perf_counter()
        if bulk > 1:
            for start in range(0, tasks, bulk):
                await publisher.publish_many([ORDER(order(n)) for n in range(start, start + bulk)])
        else:
            async with trio.open_nursery() as nursery:
                for _ in range(concurrency):
                    nursery.start_soon(produce)
        await dispatcher.drain()
        elapsed = perf_counter() - began
    assert done == tasks
    return tasks / elapsed


async def dispatcher_latency(folder: Path, synchronous: str) -> list[float]:
    """Seconds from `publish` having returned to the start of the handler, on an idle queue."""
    starts: list[float] = []

    async def ship(task: QueueTask[Order]) -> None:
        starts.append(perf_counter())

    sent: list[float] = []
    url = f"sqlite:///{folder}/latency-dispatch.db?synchronous={synchronous}"
    async with open_dispatcher(url, observers=()) as dispatcher:
        dispatcher.consumer.register_queue("orders", TaskQueueConfig(concurrency=10))
        dispatcher.consumer.register_handler(ORDER, ship)
        for number in range(LATENCY_SAMPLES):
            await dispatcher.publisher.publish(ORDER(order(number)))
            sent.append(perf_counter())
            await trio.sleep(0.02)
        await dispatcher.drain()
    return [start - at for start, at in zip(starts, sent, strict=True)]


def fresh(run: Callable[[Path], float], parent: str) -> float:
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        return run(Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--synchronous", choices=["full", "normal"], default="full")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the files are made")
    options = parser.parse_args()
    mode = options.synchronous
    print(
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, synchronous={mode}, "
        f"{platform.machine()}; {options.tasks} tasks, median of {options.rounds} rounds"
    )
    sides: dict[str, Callable[[Path], float]] = {
        "raw, batches of 100": lambda folder: raw_throughput(folder, mode, options.tasks)
    }
    for concurrency, bulk, prefetch in (
        (10, 1, 0), (10, 100, 0), (10, 100, PREFETCH), (100, 1, 0), (100, 100, 0), (100, 100, PREFETCH),
    ):
        name = f"concurrency {concurrency}, {'in bulk' if bulk > 1 else 'one by one'}"
        if prefetch:
            name += f", prefetch {prefetch}"
        run = partial(dispatcher_throughput, concurrency=concurrency, bulk=bulk, prefetch=prefetch)
        sides[name] = lambda folder, run=run: trio.run(run, folder, mode, options.tasks)  # type: ignore[misc]
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, side in sides.items():
            rates[name].append(fresh(side, options.folder))
    raw_rates = rates["raw, batches of 100"]
    for name, found in rates.items():
        ratio = median(ours / bare for ours, bare in zip(found, raw_rates, strict=True))
        print(f"{name:<37} {median(found):>8,.0f} tasks/s {ratio:>7.3f} of raw")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        bare = quantiles(raw_claim_latency(Path(name), mode), n=100)
        ours = quantiles(trio.run(dispatcher_latency, Path(name), mode), n=100)
    for label, cuts in (("raw claim", bare), ("published to start", ours)):
        print(f"{label:<37} idle: p50 {cuts[49] * 1e3:.3f} ms, p99 {cuts[98] * 1e3:.3f} ms")
    print(f"{'ratio of p50':<37} {ours[49] / bare[49]:>8.2f}")


if __name__ == "__main__":
    sys.exit(main())
