"""litequeue: a queue in a SQLite file. It has no handlers; a loop per worker takes and finishes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence

from litequeue import LiteQueue

from benchmarks.peers.drive import Peer, Threads
from benchmarks.workload import Fields

LOOK_S = 0.001


class Litequeue(Peer):
    flavour = Threads()
    packages = ("litequeue",)

    async def open(self) -> None:
        self.queue = self._connected()

    def _connected(self) -> LiteQueue:
        queue = LiteQueue(self.spec.store, timeout=60)
        # Its own setting is NORMAL, which may lose the last moments in a power cut.
        queue.conn.execute("PRAGMA synchronous = FULL")
        return queue

    async def publish(self, orders: Sequence[Fields]) -> None:
        for order in orders:
            self.queue.put(json.dumps(order))

    async def work(self) -> None:
        for _ in range(self.spec.concurrency):
            threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        queue = self._connected()
        while True:
            message = queue.pop()
            if message is None:
                time.sleep(LOOK_S)
                continue
            json.loads(message.data)
            self.meter()
            queue.done(message.message_id)
