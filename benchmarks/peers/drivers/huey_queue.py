"""huey, with threads: in memory, or on SQLite with fsync."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from huey import MemoryHuey, SqliteHuey

from benchmarks.peers.drive import Peer, Threads
from benchmarks.workload import Fields

LOOK_S = 0.001
"""How often an idle worker looks: its default, 0.1 s and growing, is for saving power."""


class Huey(Peer):
    flavour = Threads()
    packages = ("huey",)

    async def open(self) -> None:
        logging.getLogger("huey").setLevel(logging.ERROR)
        if self.spec.store:
            self.huey = SqliteHuey(
                filename=self.spec.store, fsync=True, results=False, journal_mode="wal", timeout=60
            )
        else:
            self.huey = MemoryHuey(results=False)
        meter = self.meter

        @self.huey.task()
        def ship(order: Fields) -> None:
            meter()

        self.ship = ship

    async def publish(self, orders: Sequence[Fields]) -> None:
        for order in orders:
            self.ship(order)

    async def work(self) -> None:
        consumer = self.huey.create_consumer(
            workers=self.spec.concurrency,
            worker_type="thread",
            periodic=False,
            initial_delay=LOOK_S,
            backoff=1.0,
            max_delay=LOOK_S,
            check_worker_health=False,
        )
        consumer.start()
