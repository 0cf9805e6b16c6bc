"""oban for Python over psycopg."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from oban import Oban, worker
from oban.job import Job  # noqa: TC002 - read from the annotation at run time
from oban.schema import install

from benchmarks.peers.drive import Asyncio, Meter, Peer
from benchmarks.workload import Fields

meters: list[Meter] = []
"""A worker is found by the name of its class."""


@worker(queue="orders")
class Ship:
    """The no-op."""

    async def process(self, job: Job) -> None:
        meters[0]()


class ObanPeer(Peer):
    flavour = Asyncio()
    packages = ("oban", "psycopg")
    bulk = 100

    async def open(self) -> None:
        logging.getLogger("oban").setLevel(logging.ERROR)
        meters.append(self.meter)
        self.pool = await Oban.create_pool(self.spec.store, min_size=4, max_size=20)
        if not self.spec.tally:
            await install(self.pool)
        self.oban = Oban(pool=self.pool)
        await self.oban.start()

    async def publish(self, orders: Sequence[Fields]) -> None:
        if len(orders) == 1:
            await self.oban.enqueue(Ship.new(orders[0]))
        else:
            await self.oban.enqueue_many([Ship.new(order) for order in orders])

    async def work(self) -> None:
        self.oban = Oban(pool=self.pool, queues={"orders": self.spec.concurrency})
        await self.oban.start()
