"""Our own PostgreSQL schema and statements, driven by nothing but a loop over psycopg.

The limit on PostgreSQL, with one connection and one statement at a time. Rows are
prepared, nothing is encoded or decoded, nobody is told of anything.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import psycopg

from benchmarks.peers.drive import Peer, Threads
from benchmarks.workload import Fields, fields
from dispatch.records import NewTask, Transition, TransitionKind
from dispatch.storage.postgres_claim import REACH, _ends, _values
from dispatch.storage.postgres_rows import Lanes, Sql
from dispatch.storage.postgres_schema import migrate
from dispatch.storage.postgres_tasks import PostgresTasks
from dispatch.storage.protocol import Want
from dispatch.storage.psycopg_trio import send_lists_in_binary

PAYLOAD = json.dumps(fields(7), separators=(",", ":")).encode()
QUEUE = "INSERT INTO dispatch.queues (name, keyed, on_retry, overflow) VALUES ('orders', false, 'hold', 'wait') RETURNING id"
LANE = "INSERT INTO dispatch.lanes (queue, type, version, tagged) VALUES (%s, 'ship', 1, false) RETURNING id"


class RawPostgres(Peer):
    flavour = Threads()
    packages = ("trio-dispatch", "psycopg")
    batch: ClassVar[int] = 100
    bulk = 100
    distributes = False  # as a limit it is one loop

    async def open(self) -> None:
        migrate(self.spec.store)
        self.db: psycopg.Connection[Any] = psycopg.connect(self.spec.store, autocommit=True)
        send_lists_in_binary(self.db)
        self.lock = threading.Lock()
        self.ids = (f"{number:036}" for number in itertools.count())
        self.ended: list[Transition] = []
        [queue] = self.db.execute(QUEUE).fetchone() or ()
        [self.lane] = self.db.execute(LANE, (queue,)).fetchone() or ()
        # Of the storage's own code only what makes the text of its statements.
        self.tasks = PostgresTasks(Sql("dispatch"), cast("Lanes", None))
        self.want = Want(queue="orders", limit=self.batch, types={"ship": 1})
        self.turn = self.tasks.claims._claiming(self.want, ending=True)

    async def publish(self, orders: Sequence[Fields]) -> None:
        with self.lock:  # a connection has one statement at a time, however many produce
            tasks = [NewTask(id=next(self.ids), queue="orders", type="ship", payload=PAYLOAD) for _ in orders]
            statement, values = self.tasks._insert(tasks, [self.lane] * len(tasks), bounded=False)
            psycopg.RawCursor(self.db).execute(statement, values, binary=True).fetchall()

    async def work(self) -> None:
        """Nothing to start: who waits for the tasks works."""

    async def reached(self) -> None:
        while self.meter.missing:
            self._turn(self.batch)
        self._turn(0)

    def _turn(self, limit: int) -> None:
        """Settle what has ended and claim more, in one statement, as a worker does."""
        values = _values(self.want, "raw", 30.0) | _ends(self.ended)
        values |= {"limit": limit, "reach": limit + REACH, "within": False}
        cursor = psycopg.RawCursor(self.db)
        cursor.execute(self.turn.text, [values[name] for name in self.turn.names], binary=True)
        claims = [row for row in cursor.fetchall() if row[0] is not None and row[0] >= 0]
        self.ended = [Transition(row[2], row[3], TransitionKind.DONE) for row in claims]
        for _ in claims:
            self.meter()


class RawPostgresSingle(RawPostgres):
    """One task to a statement."""

    batch = 1
    bulk = 1
