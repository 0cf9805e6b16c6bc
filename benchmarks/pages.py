"""How long the dashboard's pages take over many tasks, in milliseconds of server time.

    python benchmarks/pages.py [--tasks 1000000] [--rounds 5] [--postgres] [--folder .]

Stores the tasks in an SQLite file, or with `--postgres` in a server of its own
(some minutes for a million): five queues, one of which has 20 tasks; half are
waiting, a tenth are dead letters, the rest has succeeded. Then asks the app
for its pages, without a network. *First* is a page of a freshly made app, which
remembers nothing; *again* the same page asked once more. Medians of the rounds.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import trio

from dispatch.records import NewTask, Transition, TransitionKind
from dispatch.storage.protocol import QueueRecord, Storage, Want
from dispatch.storage.sqlite import SqliteStorage
from dispatch.tasks import FailureReason
from dispatch.web import create_app

QUEUES = ("billing", "email", "reports", "thumbnails")
FEW = 20
PAGES = (
    "/",
    "/queues",
    "/tasks",
    "/tasks?queue=email",
    "/tasks?queue=rare",
    "/tasks?queue=rare&status=succeeded",
    "/tasks?status=pending&order=oldest",
    "/tasks?status=succeeded",
    "/tasks?status=failed",
    "/tasks?type=none",
    "/tasks?text=payload.n:7",
    "/cron",
    "/workers",
)


async def fill(storage: Storage, tasks: int) -> None:
    """So many tasks, of which half has ended; and a queue with few."""
    await storage.declare([QueueRecord(name=name) for name in (*QUEUES, "rare")])
    await storage.enqueue([NewTask(id=f"rare-{n}", queue="rare", type="job", payload=b'{"n":0}') for n in range(FEW)])
    for start in range(0, tasks, 5_000):
        await storage.enqueue(
            [
                NewTask(id=f"task-{n}", queue=QUEUES[n % 4], type="job", payload=b'{"n":%d}' % n)
                for n in range(start, min(start + 5_000, tasks))
            ]
        )
    ended, ends = 0, list[Transition]()
    while ended < tasks // 2:
        wants = [Want(queue=name, limit=250) for name in QUEUES]
        _, claimed = await storage.turn(ends, wants, worker="worker", lease=3_600.0)
        ends = [_end(each.id, each.epoch, dead=n % 5 == 0) for n, each in enumerate(claimed.claims)]
        ended += len(ends)
    await storage.settle(ends)


def _end(id_: str, epoch: int, *, dead: bool) -> Transition:
    if dead:
        return Transition(
            id_, epoch, TransitionKind.FAILED, error="ValueError: no", reason=FailureReason.PERMANENT
        )
    return Transition(id_, epoch, TransitionKind.DONE, result=b"null")


async def seconds_of(app: Any, page: str) -> float:
    """How long one GET takes."""
    path, _, query = page.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1:8787")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8787),
    }
    said: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    began = perf_counter()
    await app(scope, receive, send)
    took = perf_counter() - began
    assert said[0]["status"] == 200, (page, said[0])
    return took


async def measure(storage: Storage, rounds: int) -> None:
    await seconds_of(create_app(storage), "/")  # what is imported once is imported
    print(f"{'page':<40} {'first':>8} {'again':>8}   ms")
    for page in PAGES:
        first, again = list[float](), list[float]()
        for _ in range(rounds):
            app = create_app(storage)
            first.append(await seconds_of(app, page))
            again.append(await seconds_of(app, page))
        print(f"{page:<40} {median(first) * 1e3:>8.1f} {median(again) * 1e3:>8.1f}")


@asynccontextmanager
async def opened(options: argparse.Namespace) -> AsyncGenerator[Storage]:
    if not options.postgres:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            async with SqliteStorage(Path(folder, "jobs.db"), synchronous="normal") as storage:
                yield storage
        return
    from dispatch.storage.postgres import PostgresStorage
    from dispatch.storage.postgres_schema import migrate
    from dispatch.testing.postgres import postgres_server

    with postgres_server() as server:
        dsn = server.fresh_database()
        migrate(dsn)
        async with PostgresStorage(dsn) as storage:
            yield storage


async def run(options: argparse.Namespace) -> None:
    where = "PostgreSQL" if options.postgres else "SQLite"
    print(f"Python {platform.python_version()}, {where}, {options.tasks:,} tasks, median of {options.rounds} rounds")
    async with opened(options) as storage:
        await fill(storage, options.tasks)
        await measure(storage, options.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--postgres", action="store_true", help="instead of SQLite")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the SQLite file is made")
    trio.run(run, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
