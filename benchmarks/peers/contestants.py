"""Who takes part, with which settings, and in what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["CONTESTANTS", "FAMILIES", "Contestant", "Family", "Role"]

ROOT = Path(__file__).parents[2]
OURSELVES = f"{ROOT}[postgres]"

Family = Literal["memory", "sqlite", "postgres"]
FAMILIES: tuple[Family, ...] = ("memory", "sqlite", "postgres")
Role = Literal["ours", "limit", "peer"]

PREFETCHING = "as above, with a prefetch that makes batches of 100, or as large as the concurrency"
ALL = ("throughput", "latency", "publishing", "growth")
FLEET = (*ALL, "fleet")


@dataclass(frozen=True)
class Contestant:
    """One row of the tables.

    `role`: the limit is what nothing on this runtime or store can beat.
    `bulk`: it has a way to publish many at once. `share` of the tasks are enough
    for one that would need minutes; `needs` is the oldest Python it installs on.
    """

    name: str
    title: str
    family: Family
    driver: str
    requirements: tuple[str, ...]
    settings: str
    role: Role = "peer"
    measures: tuple[str, ...] = ALL
    bulk: bool = False
    retries: bool = True
    share: float = 1.0
    needs: tuple[int, int] = (3, 11)


CONTESTANTS: tuple[Contestant, ...] = (
    # -- in memory
    Contestant(
        "trio-channel", "bare trio channel", "memory", "trio_channel:Channel", (OURSELVES,),
        "a memory channel of 128, worker tasks", "limit", (*ALL, "memory"), retries=False,
    ),
    Contestant(
        "trio-task", "bare trio task per job", "memory", "trio_task_per_job:TaskPerJob", (OURSELVES,),
        "start_soon behind a semaphore", measures=("throughput", "latency"), retries=False,
    ),
    Contestant(
        "dispatch-memory", "dispatch, in memory", "memory", "dispatch_queue:Dispatch", (OURSELVES,),
        "buffer_size=128, publish_many of 100, no observers", "ours", (*ALL, "memory", "idle"), bulk=True,
    ),
    Contestant(
        "dispatch-orjson", "dispatch, in memory, orjson", "memory", "dispatch_queue:Dispatch",
        (OURSELVES, "orjson==3.13.0"), "as above, with orjson", "ours", ("throughput", "latency"), bulk=True,
    ),
    Contestant(
        "dispatch-memory-prefetch", "dispatch, in memory, prefetch", "memory", "dispatch_queue:Prefetching", (OURSELVES,),
        PREFETCHING, "ours", ("throughput",), bulk=True,
    ),
    Contestant(
        "dispatch-loaded", "dispatch, all switched on", "memory", "dispatch_queue:Loaded", (OURSELVES,),
        "without orjson, with two observers, 1,000 keys, four priorities, timeouts and retries",
        "ours", ("throughput", "latency"), bulk=True,
    ),
    Contestant(
        "huey-memory", "huey, in memory", "memory", "huey_queue:Huey", ("huey==3.5.4",),
        "threads, looking every 1 ms, results off", measures=(*ALL, "memory"),
    ),
    Contestant(
        "dramatiq-stub", "dramatiq, stub broker", "memory", "dramatiq_stub:Dramatiq", ("dramatiq==2.2.1",),
        "threads", measures=(*ALL, "memory"),
    ),
    Contestant(
        "taskiq-memory", "taskiq, in memory", "memory", "taskiq_memory:Taskiq", ("taskiq==0.13.0",),
        "max_async_tasks as the concurrency", measures=("throughput", "latency"),
    ),
    Contestant(
        "apscheduler3", "APScheduler 3", "memory", "apscheduler3:APScheduler3", ("APScheduler==3.11.3",),
        "asyncio executor, a job for at once per task", measures=(*ALL, "memory"), retries=False,
    ),
    Contestant(
        "apscheduler4", "APScheduler 4, trio", "memory", "apscheduler4:APScheduler4",
        ("APScheduler==4.0.0a6", "trio"),
        "max_concurrent_jobs as the concurrency", measures=(*ALL, "memory"), retries=False,
    ),
    Contestant(
        "triotp", "triotp", "memory", "triotp_servers:Servers", ("triotp==0.2.1",),
        "a generic server per worker, cast to in turn", measures=("throughput", "latency"), retries=False,
    ),
    # -- on SQLite
    Contestant(
        "raw-sqlite-100", "raw sqlite3, batches of 100", "sqlite", "raw_sqlite:RawSqlite", (OURSELVES,),
        "our schema and statements, WAL, synchronous=FULL, a loop", "limit", bulk=True, retries=False,
    ),
    Contestant(
        "raw-sqlite-1", "raw sqlite3, one at a time", "sqlite", "raw_sqlite:RawSqliteSingle", (OURSELVES,),
        "our schema and statements, WAL, synchronous=FULL, a loop", "limit", retries=False,
    ),
    Contestant(
        "dispatch-sqlite", "dispatch, SQLite", "sqlite", "dispatch_queue:Dispatch", (OURSELVES,),
        "synchronous=full, publish_many of 100, no observers", "ours", (*ALL, "idle"), bulk=True,
    ),
    Contestant(
        "dispatch-sqlite-prefetch", "dispatch, SQLite, prefetch", "sqlite", "dispatch_queue:Prefetching", (OURSELVES,),
        PREFETCHING, "ours", ("throughput",), bulk=True,
    ),
    Contestant(
        "huey-sqlite", "huey, SQLite", "sqlite", "huey_queue:Huey", ("huey==3.5.4",),
        "fsync=True, WAL, threads, looking every 1 ms, results off",
    ),
    Contestant(
        "litequeue", "litequeue", "sqlite", "litequeue_file:Litequeue", ("litequeue==0.9",),
        "synchronous=FULL set by hand, a thread per worker, looking every 1 ms", retries=False,
    ),
    Contestant(
        "persist-queue", "persist-queue", "sqlite", "persist_queue_file:PersistQueue", ("persist-queue==1.1.0",),
        "SQLiteAckQueue, WAL, synchronous=FULL, a thread per worker", retries=False,
    ),
    Contestant(
        "dbos-sqlite", "dbos, SQLite", "sqlite", "dbos_queue:Dbos", ("dbos==3.4.0", "pysqlite3-binary"),
        "pysqlite3, polling every 10 ms", measures=("throughput", "latency", "publishing"), share=0.1,
    ),
    # -- on PostgreSQL
    Contestant(
        "raw-psycopg-100", "raw psycopg, batches of 100", "postgres", "raw_postgres:RawPostgres", (OURSELVES,),
        "our schema and statements, one connection, a loop", "limit", FLEET, bulk=True, retries=False,
    ),
    Contestant(
        "raw-psycopg-1", "raw psycopg, one at a time", "postgres", "raw_postgres:RawPostgresSingle", (OURSELVES,),
        "our schema and statements, one connection, a loop", "limit", retries=False,
    ),
    Contestant(
        "dispatch-postgres", "dispatch, PostgreSQL", "postgres", "dispatch_queue:Dispatch", (OURSELVES,),
        "publish_many of 100, no observers", "ours", (*FLEET, "idle"), bulk=True,
    ),
    Contestant(
        "dispatch-postgres-prefetch", "dispatch, PostgreSQL, prefetch", "postgres", "dispatch_queue:Prefetching",
        (OURSELVES,), PREFETCHING, "ours", ("throughput", "fleet"), bulk=True,
    ),
    Contestant(
        "pgqueuer", "pgqueuer", "postgres", "pgqueuer_postgres:Pgqueuer", ("pgqueuer==1.6.0", "asyncpg==0.32.0"),
        "asyncpg pool, batches as large as the concurrency and two of them at work, bulk enqueue of 100",
        measures=FLEET, bulk=True,
    ),
    Contestant(
        "oban", "oban", "postgres", "oban_postgres:ObanPeer", ("oban==0.7.0",),
        "pool of 20, enqueue_many of 100", measures=FLEET, bulk=True, needs=(3, 12),
    ),
    Contestant(
        "procrastinate", "procrastinate", "postgres", "procrastinate_postgres:Procrastinate",
        ("procrastinate==3.10.0", "psycopg[binary]"),
        "pool of 20, LISTEN, batch_defer of 100", measures=FLEET, bulk=True, share=0.5,
    ),
    Contestant(
        "chancy", "chancy", "postgres", "chancy_postgres:ChancyPeer", ("chancy==0.26.0", "psycopg[binary]"),
        "asyncio executor, eager polling, pool of 20, push_many of 100", bulk=True, share=0.5,
    ),
)
