"""dbos: a durable workflow per task, from a queue, on SQLite or PostgreSQL.

With pysqlite3, whose SQLite is newer: dbos fails on the one that Debian 12 has.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

with contextlib.suppress(ImportError):
    import pysqlite3

    sys.modules["sqlite3"] = pysqlite3

from dbos import DBOS

from benchmarks.peers.drive import Asyncio, Peer
from benchmarks.workload import Fields

LOOK_S = 0.01
"""Its default is 1 s; looking more often than this slows it down."""


class Dbos(Peer):
    flavour = Asyncio()
    packages = ("dbos",)

    async def open(self) -> None:
        store = self.spec.store
        if not store.startswith("postgresql"):
            store = f"sqlite:///{store}"
        DBOS(
            config={
                "name": "benchmark",
                "system_database_url": store,
                "log_level": "ERROR",
                "console_log_level": "ERROR",
                "notification_listener_polling_interval_sec": LOOK_S,
            }
        )
        meter = self.meter

        @DBOS.workflow()
        async def ship(order: Fields) -> None:
            meter()

        self.ship: Any = ship
        if self.spec.measure in ("publishing", "growth"):
            DBOS.listen_queues([])
        DBOS.launch()
        await DBOS.register_queue_async(
            "orders", worker_concurrency=self.spec.concurrency, polling_interval_sec=LOOK_S
        )

    async def publish(self, orders: Sequence[Fields]) -> None:
        for order in orders:
            await DBOS.enqueue_workflow_async("orders", self.ship, order)

    async def work(self) -> None:
        """Nothing to start: a launched dbos takes from every queue."""
