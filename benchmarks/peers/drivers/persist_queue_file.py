"""persist-queue's acknowledged queue on SQLite. It has no handlers; a loop per worker."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from persistqueue import SQLiteAckQueue

from benchmarks.peers.drive import Peer, Threads
from benchmarks.workload import Fields


class PersistQueue(Peer):
    flavour = Threads()
    packages = ("persist-queue",)

    async def open(self) -> None:
        self.queue = SQLiteAckQueue(f"{self.spec.store}.d", multithreading=True, timeout=60)

    async def publish(self, orders: Sequence[Fields]) -> None:
        for order in orders:
            self.queue.put(order)

    async def work(self) -> None:
        for _ in range(self.spec.concurrency):
            threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            found = self.queue.get(raw=True)
            self.meter()
            self.queue.ack(id=found["pqid"])
