"""Our own SQLite schema and statements, driven by nothing but a loop: the limit on SQLite.

Rows are prepared, nothing is encoded or decoded, nobody is told of anything.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from benchmarks.peers.drive import Peer, Threads
from benchmarks.workload import Fields, fields
from dispatch.records import NewTask
from dispatch.storage.protocol import QueueRecord
from dispatch.storage.sqlite_registry import SqliteRegistry
from dispatch.storage.sqlite_schema import connect, create_or_migrate
from dispatch.storage.sqlite_tasks import CLAIM_MANY, HEADS, INSERT, SUCCEED, SqliteTasks

PAYLOAD = json.dumps(fields(7), separators=(",", ":")).encode()
LEASE_S = 30.0


class RawSqlite(Peer):
    flavour = Threads()
    packages = ("trio-dispatch",)
    batch: ClassVar[int] = 100
    bulk = 100

    async def open(self) -> None:
        path = Path(self.spec.store)
        self.db: sqlite3.Connection = connect(path, synchronous="full")
        create_or_migrate(self.db, path)
        self.lock = threading.Lock()
        self.ids = (f"{number:036}" for number in itertools.count())
        self.ended: list[tuple[str, int]] = []
        tasks = SqliteTasks(self.db)
        self.db.execute("BEGIN IMMEDIATE")
        tasks.begin()
        SqliteRegistry(tasks).declare([QueueRecord(name="orders")], time.time())
        # The first task makes the lane that the prepared rows name.
        tasks.store(NewTask(id="first", queue="orders", type="ship", payload=PAYLOAD), time.time())
        self.db.execute("COMMIT")
        [(self.lane,)] = self.db.execute("SELECT lane FROM dispatch_lanes")
        self._turn(1)
        self._turn(0)
        self.meter.starts.clear()

    async def publish(self, orders: Sequence[Fields]) -> None:
        now = time.time()
        rest = (1, None, None, None, None, 1, None, None, None, None, None, now, now, self.lane, 1)
        with self.lock:  # a connection has one transaction at a time, however many produce
            rows = [(next(self.ids), "orders", "ship", PAYLOAD, *rest) for _ in orders]
            self.db.execute("BEGIN IMMEDIATE")
            self.db.executemany(INSERT, rows)
            self.db.execute("COMMIT")

    async def work(self) -> None:
        """Nothing to start: who waits for the tasks works."""

    async def reached(self) -> None:
        while self.meter.missing:
            self._turn(self.batch)
        self._turn(0)

    def _turn(self, limit: int) -> None:
        """Settle what has ended and claim more, in one transaction, as a worker does."""
        now = time.time()
        self.db.execute("BEGIN IMMEDIATE")
        for id_, epoch in self.ended:
            self.db.execute(SUCCEED, (now, None, id_, epoch)).fetchone()
        heads: list[int] = []
        for priority in (3, 2, 1, 0) if limit else ():
            found = self.db.execute(HEADS, (self.lane, priority, limit - len(heads)))
            heads += [seq for _, seq in found]
        values = ("raw", now, now + LEASE_S, 0, '["fixed", 1.0, 2.0, 3600.0, 0.0]', "retry", json.dumps(heads))
        claims = self.db.execute(CLAIM_MANY, values).fetchall() if heads else []
        self.db.execute("COMMIT")
        self.ended = [(row[1], row[2]) for row in claims]
        for _ in claims:
            self.meter()


class RawSqliteSingle(RawSqlite):
    """One task to a transaction."""

    batch = 1
    bulk = 1
