"""The dispatcher on PostgreSQL beside raw psycopg with the same schema and statements, in one run.

    python benchmarks/postgres.py [--tasks 10000] [--rounds 5] [--waiting 100000] [--dsn postgresql://...]

Without `--dsn` a server is started for it, with fsync and synchronous_commit on. On a
given one it makes databases, and drops them.

"Raw" is a loop over one connection and nothing else: it stores prepared rows, and
settles and claims by our own statement, 100 tasks to a transaction, or one. It is the
limit of the schema. The dispatcher does the rest as well: typed payloads checked,
encoded and decoded, handlers run in scopes of their own, leases, bells, graceful end;
in one process, or with two worker processes beside the one that publishes. It claims
no more than its free slots, or with a `prefetch` as much at once as raw does.

Rounds alternate, each side in a database of its own; printed are medians of tasks per
second and of the ratios. Then bulk publishing beside COPY of the same rows; the time
from `publish` having returned to the handler's start on an idle queue, beside one raw
claim; and what a claim costs with few and with many waiting, and a publish into a queue
that counts them for its `max_waiting`. `--markdown` prints the
tables of docs/postgres.md; `--only publishing` (or throughput, latency, claims) one of them.
"""

from __future__ import annotations

import argparse
import platform
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any, cast

import psycopg
import trio
from memory import ORDER, Order, order
from workload import machine

from dispatch import (
    QueueTask,
    TaskQueueConfig,
    TaskQueuePublisher,
    open_dispatcher,
)
from dispatch.codec import Codec
from dispatch.records import NewTask, Transition, TransitionKind
from dispatch.storage.postgres import PostgresStorage
from dispatch.storage.postgres_claim import REACH, _ends, _values
from dispatch.storage.postgres_rows import Lanes, Sql
from dispatch.storage.postgres_schema import migrate
from dispatch.storage.postgres_tasks import PostgresTasks
from dispatch.storage.protocol import EnqueueAnswer, QueueRecord, Want
from dispatch.storage.psycopg_trio import TrioConnection, send_lists_in_binary
from dispatch.testing.postgres import PostgresServer, postgres_server

BATCH = 100
AHEAD = 2 * BATCH
"""Slots and prefetch together: half is claimed at a time, while the other half is run."""
COPIED = 1_000
"""Rows of one COPY, and of one publish_many beside it."""
LATENCY_SAMPLES = 200
CLAIMS = 300
FEW = 1_000
LOOK_S = 0.25
"""Between two looks at what has ended, in other processes."""
PATIENCE_S = 600.0
"""For all that was published to end there."""
PAYLOAD = Codec().encode(order(7), Order, "order")[0]
QUEUE = "INSERT INTO dispatch.queues (name, keyed, on_retry, overflow) VALUES ('orders', false, 'hold', 'wait') RETURNING id"
LANE = "INSERT INTO dispatch.lanes (queue, type, version, tagged) VALUES (%s, 'ship', 1, false) RETURNING id"
COPY = "COPY dispatch.tasks (created_at, available_at, queue, lane, priority, state, id, payload) FROM STDIN (FORMAT BINARY)"
ENDED = b"SELECT count(*), count(*) FILTER (WHERE state = 5), max(finished_at) FROM dispatch.tasks WHERE state >= 5"
"""How many have ended, how many of them succeeded, and when the last did."""
COPY_TYPES = ("float8", "float8", "int4", "int4", "int2", "int2", "text", "bytea")
FILL = (
    "INSERT INTO dispatch.tasks (created_at, available_at, queue, lane, priority, state, id, payload)"
    " SELECT n.now, n.now, q.id, l.id, 1, 0, %s || g, %s FROM generate_series(1, %s) AS g,"
    " (SELECT dispatch.now_s() AS now) AS n, dispatch.queues q JOIN dispatch.lanes l ON l.queue = q.id"
)


# ---- raw -----------------------------------------------------------------------


class Raw:
    """Our tables and statements, and a loop."""

    def __init__(self, url: str) -> None:
        self.db: psycopg.Connection[Any] = psycopg.connect(url, autocommit=True)
        send_lists_in_binary(self.db)
        [self.queue] = self.db.execute(QUEUE).fetchone() or ()
        [self.lane] = self.db.execute(LANE, (self.queue,)).fetchone() or ()
        # Of the storage's own code only what makes the text of its statements.
        self.tasks = PostgresTasks(Sql("dispatch"), cast("Lanes", None))
        self.want = Want(queue="orders", limit=BATCH, types={"ship": 1})
        self.statement = self.tasks.claims._claiming(self.want, ending=True)

    def enqueue(self, ids: list[str]) -> None:
        tasks = [NewTask(id=id_, queue="orders", type="ship", payload=PAYLOAD) for id_ in ids]
        statement, values = self.tasks._insert(tasks, [self.lane] * len(tasks), bounded=False)
        psycopg.RawCursor(self.db).execute(statement, values, binary=True).fetchall()

    def turn(self, ended: list[Transition], limit: int) -> list[Transition]:
        """Settle what has ended and claim more, in one statement, as a worker's turn does."""
        values = _values(self.want, "raw", 30.0) | _ends(ended)
        values |= {"limit": limit, "reach": limit + REACH}
        cursor = psycopg.RawCursor(self.db)
        cursor.execute(
            self.statement.text, [values[name] for name in self.statement.names], binary=True
        )
        rows = cursor.fetchall()
        return [
            Transition(row[2], row[3], TransitionKind.DONE)
            for row in rows
            if row[0] is not None and row[0] >= 0
        ]

    def copy(self, ids: list[str]) -> None:
        [(now,)] = self.db.execute("SELECT dispatch.now_s()").fetchall()
        with self.db.cursor() as cursor, cursor.copy(COPY) as copy:
            copy.set_types(COPY_TYPES)
            for id_ in ids:
                copy.write_row((now, now, self.queue, self.lane, 1, 0, id_, PAYLOAD))


def raw_throughput(url: str, tasks: int, batch: int) -> float:
    """Tasks per second, stored, claimed and succeeded by a loop."""
    raw = Raw(url)
    ids = [f"task-{number}" for number in range(tasks)]
    began = perf_counter()
    for start in range(0, tasks, batch):
        raw.enqueue(ids[start : start + batch])
    ended = raw.turn([], batch)
    done = 0
    while ended:
        done += len(ended)
        ended = raw.turn(ended, batch)
    elapsed = perf_counter() - began
    assert done == tasks
    raw.db.close()
    return tasks / elapsed


def raw_copy(url: str, tasks: int) -> float:
    """Tasks per second stored by COPY."""
    raw = Raw(url)
    ids = [f"task-{number}" for number in range(tasks)]
    began = perf_counter()
    for start in range(0, tasks, COPIED):
        raw.copy(ids[start : start + COPIED])
    elapsed = perf_counter() - began
    raw.db.close()
    return tasks / elapsed


def raw_claim_latency(url: str) -> list[float]:
    """Seconds that one claim and its commit take, with one task waiting."""
    raw = Raw(url)
    found: list[float] = []
    for number in range(LATENCY_SAMPLES):
        raw.enqueue([f"task-{number}"])
        began = perf_counter()
        ended = raw.turn([], 1)
        found.append(perf_counter() - began)
        raw.turn(ended, 0)
    raw.db.close()
    return found


# ---- the dispatcher ------------------------------------------------------------


async def produce(publisher: TaskQueuePublisher, tasks: int, producers: int, bulk: int) -> None:
    """Publish so many, `bulk` at a time, by so many producers at once."""
    starts = iter(range(0, tasks, bulk))

    async def some() -> None:
        for start in starts:
            if bulk == 1:
                await publisher.publish(ORDER(order(start)))
            else:
                numbers = range(start, min(start + bulk, tasks))
                for published in await publisher.publish_many([ORDER(order(n)) for n in numbers]):
                    assert published.error is None

    async with trio.open_nursery() as nursery:
        for _ in range(producers):
            nursery.start_soon(some)


def config(concurrency: int, prefetch: int) -> TaskQueueConfig:
    """The queue's."""
    return TaskQueueConfig(concurrency=concurrency, max_retry=1, prefetch=prefetch)


async def one_process(url: str, tasks: int, concurrency: int, bulk: int, prefetch: int) -> float:
    """Tasks per second from the first publish to the last settle, in this process."""
    done = 0

    async def ship(task: QueueTask[Order]) -> None:
        nonlocal done
        done += 1

    async with open_dispatcher(url, observers=()) as dispatcher:
        dispatcher.consumer.register_queue("orders", config(concurrency, prefetch))
        dispatcher.consumer.register_handler(ORDER, ship)
        await dispatcher.control.queues()
        began = perf_counter()
        await produce(dispatcher.publisher, tasks, concurrency if bulk == 1 else 4, bulk)
        await dispatcher.drain()
        elapsed = perf_counter() - began
    assert done == tasks
    return tasks / elapsed


async def two_workers(url: str, tasks: int, concurrency: int, bulk: int, prefetch: int) -> float:
    """Tasks per second from the first publish, here, to the last settle in one of two other processes."""
    async with workers(url, concurrency, prefetch, 2), PostgresStorage(url) as storage:
        await storage.declare([QueueRecord(name="orders")])
        publisher = TaskQueuePublisher(storage)
        began = storage.now()
        await produce(publisher, tasks, concurrency if bulk == 1 else 4, bulk)
        over = await last_end(url, tasks)
    return tasks / (over - began)


async def last_end(url: str, tasks: int) -> float:
    """When the last of so many tasks had succeeded, by the database's clock, which began it, too.

    Looking for what is left costs the server more than the work of a turn, so it looks rarely.
    """
    with trio.fail_after(PATIENCE_S):
        async with await TrioConnection.connect(url, autocommit=True) as connection:
            while True:
                await trio.sleep(LOOK_S)
                cursor = await connection.execute(ENDED)
                [(ended, succeeded, over)] = await cursor.fetchall()
                if ended == tasks:
                    assert succeeded == tasks
                    return float(over)


@asynccontextmanager
async def workers(url: str, concurrency: int, prefetch: int, count: int) -> AsyncGenerator[None]:
    """So many worker processes, at work."""
    given = ["--worker", url, "--concurrency", str(concurrency), "--prefetch", str(prefetch)]
    command = [sys.executable, __file__, *given]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(count)]  # noqa: S603, ASYNC220 - ourselves
    try:
        for process in started:
            assert process.stdout is not None
            assert await trio.to_thread.run_sync(process.stdout.readline) == b"ready\n"
        yield
    finally:
        for process in started:
            process.kill()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(process.wait)


async def worker(url: str, concurrency: int, prefetch: int) -> None:
    """A process that works until it is killed."""

    async def ship(task: QueueTask[Order]) -> None:
        pass

    async with open_dispatcher(url, observers=()) as dispatcher:
        dispatcher.consumer.register_queue("orders", config(concurrency, prefetch))
        dispatcher.consumer.register_handler(ORDER, ship)
        await dispatcher.control.queues()
        print("ready", flush=True)
        await trio.sleep_forever()


async def bulk_publishing(url: str, tasks: int, producers: int) -> float:
    """Tasks per second published, `COPIED` at a time: typed payloads, checked and encoded."""
    async with PostgresStorage(url) as storage:
        await storage.declare([QueueRecord(name="orders")])
        publisher = TaskQueuePublisher(storage)
        await publisher.publish(ORDER(order(0)))  # makes what is made once
        began = perf_counter()
        await produce(publisher, tasks, producers, COPIED)
        return tasks / (perf_counter() - began)


async def bulk_storing(url: str, tasks: int) -> float:
    """Tasks per second stored, `COPIED` at a time: rows as COPY is given them."""
    async with PostgresStorage(url) as storage:
        await storage.declare([QueueRecord(name="orders")])
        new = [NewTask(id=f"task-{n}", queue="orders", type="ship", payload=PAYLOAD) for n in range(tasks + 1)]
        await storage.enqueue(new[tasks:])
        began = perf_counter()
        for start in range(0, tasks, COPIED):
            await storage.enqueue(new[start : start + COPIED])
        return tasks / (perf_counter() - began)


async def idle_latency(url: str, *, across: bool) -> list[float]:
    """Seconds from `publish` having returned to the start of the handler, on an idle queue.

    `across`: the publisher has a storage of its own, so that the worker is woken by
    notification, as from another process.
    """
    starts: list[float] = []

    async def ship(task: QueueTask[Order]) -> None:
        starts.append(perf_counter())

    sent: list[float] = []
    async with (
        open_dispatcher(url, observers=()) as dispatcher,
        PostgresStorage(url) as other,
    ):
        dispatcher.consumer.register_queue("orders", TaskQueueConfig(concurrency=10))
        dispatcher.consumer.register_handler(ORDER, ship)
        await dispatcher.control.queues()
        publisher = TaskQueuePublisher(other) if across else dispatcher.publisher
        await trio.sleep(0.2)
        for number in range(LATENCY_SAMPLES):
            await publisher.publish(ORDER(order(number)))
            sent.append(perf_counter())
            await trio.sleep(0.02)
        with trio.fail_after(60.0):
            await dispatcher.drain()
    return [start - at for start, at in zip(starts, sent, strict=True)]


async def claim_costs(urls: list[str], waiting: list[int]) -> list[list[float]]:
    """Seconds per claim of one task, with so many waiting; nothing is analysed in between."""
    found: list[list[float]] = [[] for _ in urls]
    want = Want(queue="orders", limit=1, types={"ship": 1})
    async with PostgresStorage(urls[0]) as one, PostgresStorage(urls[1]) as other:
        for storage, url, number in zip((one, other), urls, waiting, strict=True):
            await storage.declare([QueueRecord(name="orders")])
            await storage.enqueue([NewTask(id="first", queue="orders", type="ship", payload=PAYLOAD)])
            with psycopg.connect(url) as connection:
                connection.execute(FILL, ("task-", PAYLOAD, number))
        for _ in range(CLAIMS):
            for storage, costs in zip((one, other), found, strict=True):
                began = perf_counter()
                claimed = await storage.claim([want], worker="w", lease=30.0)
                costs.append(perf_counter() - began)
                assert len(claimed.claims) == 1
    return [costs[20:] for costs in found]  # the first ones prepare


async def bounded_costs(url: str, waiting: int) -> list[float]:
    """Seconds per publish of one task into a bounded queue in which so many wait, half its bound."""
    found: list[float] = []
    async with PostgresStorage(url) as storage:
        await storage.declare([QueueRecord(name="orders", max_waiting=2 * waiting)])
        await storage.enqueue([NewTask(id="first", queue="orders", type="ship", payload=PAYLOAD)])
        with psycopg.connect(url) as connection:
            connection.execute(FILL, ("task-", PAYLOAD, waiting))
        for number in range(CLAIMS):
            new = NewTask(id=f"more-{number}", queue="orders", type="ship", payload=PAYLOAD)
            began = perf_counter()
            [result] = await storage.enqueue([new], bounded=True)
            found.append(perf_counter() - began)
            assert result.answer is EnqueueAnswer.CREATED
    return found[20:]


# ---- the run -------------------------------------------------------------------


@contextmanager
def the_server(dsn: str | None) -> Iterator[PostgresServer]:
    if dsn is not None:
        given = PostgresServer(dsn)
        try:
            yield given
        finally:
            given.stop()
    else:
        with postgres_server(fsync=True, settings=["shared_buffers=256MB", "max_wal_size=4GB"]) as server:
            yield server


class Bench:
    """One server, measured in databases that are made and dropped for each figure."""

    def __init__(self, server: PostgresServer, options: argparse.Namespace) -> None:
        self.server = server
        self.options = options

    def fresh(self, run: Callable[[str], Any]) -> Any:
        """What `run` answers on a database of its own."""
        url = self.server.fresh_database()
        try:
            migrate(url)
            return run(url)
        finally:
            self.server.drop_database(url)

    def throughput(self) -> dict[str, list[float]]:
        tasks = self.options.tasks
        sides: dict[str, Callable[[str], float]] = {
            "raw, batches of 100": lambda url: raw_throughput(url, tasks, BATCH),
            # A commit each: a tenth of them tells as much.
            "raw, one by one": lambda url: raw_throughput(url, tasks // 10, 1),
        }
        for layout, name in ((one_process, "one process"), (two_workers, "two workers")):
            for concurrency in (10, 100):
                for bulk, prefetch in ((BATCH, 0), (BATCH, AHEAD - concurrency), (1, 0)):
                    how = "in bulk" if bulk > 1 else "one by one"
                    if prefetch:
                        how += f", prefetch {prefetch}"
                    run = partial(layout, tasks=tasks, concurrency=concurrency, bulk=bulk, prefetch=prefetch)
                    sides[f"{name}, {concurrency}, {how}"] = partial(in_trio, run)
        return self.alternating(sides)

    def publishing(self) -> dict[str, list[float]]:
        tasks = self.options.tasks
        return self.alternating(
            {
                "COPY": lambda url: raw_copy(url, tasks),
                "the storage, same rows": partial(in_trio, partial(bulk_storing, tasks=tasks)),
                **{
                    f"publish_many, {producers} at once": partial(
                        in_trio, partial(bulk_publishing, tasks=tasks, producers=producers)
                    )
                    for producers in (1, 4)
                },
            }
        )

    def alternating(self, sides: dict[str, Callable[[str], float]]) -> dict[str, list[float]]:
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(self.options.rounds):
            for name, side in sides.items():
                rates[name].append(self.fresh(side))
        return rates

    def latency(self) -> dict[str, list[float]]:
        return {
            "raw claim": self.fresh(raw_claim_latency),
            "published to start": self.fresh(partial(in_trio, partial(idle_latency, across=False))),
            "from another process": self.fresh(partial(in_trio, partial(idle_latency, across=True))),
        }

    def claims(self) -> dict[str, list[float]]:
        waiting = [FEW, self.options.waiting]

        def both(few: str) -> list[list[float]]:
            def run(many: str) -> list[list[float]]:
                answer: list[list[float]] = trio.run(claim_costs, [few, many], waiting)
                return answer

            return cast("list[list[float]]", self.fresh(run))

        costs = self.fresh(both)
        found = {f"claim, {number:,} waiting": each for number, each in zip(waiting, costs, strict=True)}
        for number in (FEW, 10 * FEW, 100 * FEW):
            name = f"publish, bounded, {number:,} waiting"
            found[name] = self.fresh(partial(in_trio, partial(bounded_costs, waiting=number)))
        return found


def in_trio(run: Callable[..., Any], url: str) -> Any:
    return trio.run(run, url)


def print_rates(title: str, rates: dict[str, list[float]], *, markdown: bool) -> None:
    """A line per side: the median, and the median of the ratios to the first side, round by round."""
    first = next(iter(rates.values()))
    rows = [
        (name, f"{median(found):,.0f}", f"{median(a / b for a, b in zip(found, first, strict=True)):.3f}")
        for name, found in rates.items()
    ]
    print_table((title, "tasks/s", "ratio"), rows, markdown=markdown)


def print_times(title: str, times: dict[str, list[float]], *, markdown: bool) -> None:
    """A line per side: p50 and p99 in milliseconds, and p50 beside that of the first side."""
    cuts = {name: quantiles(found, n=100) for name, found in times.items()}
    first = next(iter(cuts.values()))
    rows = [
        (name, f"{each[49] * 1e3:.2f}", f"{each[98] * 1e3:.2f}", f"{each[49] / first[49]:.2f}")
        for name, each in cuts.items()
    ]
    print_table((title, "p50, ms", "p99, ms", "ratio"), rows, markdown=markdown)


def print_table(head: tuple[str, ...], rows: list[tuple[str, ...]], *, markdown: bool) -> None:
    if markdown:
        print(f"| {' | '.join(head)} |\n|---|{'---:|' * (len(head) - 1)}")
        for row in rows:
            print(f"| {' | '.join(row)} |")
    else:
        for row in (head, *rows):
            print(f"{row[0]:<40}", *(f"{cell:>10}" for cell in row[1:]))
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--waiting", type=int, default=100_000, help="for the cost of a claim")
    parser.add_argument("--dsn", help="of a server to use; else one is started")
    parser.add_argument("--only", choices=["throughput", "publishing", "latency", "claims"])
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--concurrency", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--prefetch", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent ends it
        trio.run(worker, options.worker, options.concurrency, options.prefetch)
        return
    with the_server(options.dsn) as server:
        settings = {
            name: server.execute(f"SHOW {name}")[0][0] for name in ("server_version", "fsync", "synchronous_commit")
        }
        print(
            f"Python {platform.python_version()}, psycopg {psycopg.__version__}, PostgreSQL "
            f"{settings['server_version']}, fsync {settings['fsync']}, synchronous_commit "
            f"{settings['synchronous_commit']}; {machine()}; {options.tasks:,} tasks, "
            f"median of {options.rounds} rounds\n",
            flush=True,
        )
        bench = Bench(server, options)
        for name, title, measure, show in (
            ("throughput", "published, claimed, settled", bench.throughput, print_rates),
            ("publishing", f"published only, {COPIED:,} at a time", bench.publishing, print_rates),
            ("latency", "idle", bench.latency, print_times),
            ("claims", "backlog", bench.claims, print_times),
        ):
            if options.only in (None, name):
                show(title, measure(), markdown=options.markdown)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
