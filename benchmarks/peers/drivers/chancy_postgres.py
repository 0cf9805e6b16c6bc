"""chancy with its executor on asyncio, polling again as soon as a job has ended."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from chancy import Chancy, Job, Queue, Worker

from benchmarks.peers.drive import Asyncio, Meter, Peer
from benchmarks.workload import Fields

meters: list[Meter] = []
"""A job is stored by the path of its function, which must not be a method."""


async def ship(*, order: Fields) -> None:
    meters[0]()


class ChancyPeer(Peer):
    flavour = Asyncio()
    packages = ("chancy", "psycopg")
    bulk = 100

    async def open(self) -> None:
        meters.append(self.meter)
        quiet = logging.getLogger("chancy.benchmark")
        quiet.setLevel(logging.ERROR)
        self.chancy = await self.stack.enter_async_context(
            Chancy(self.spec.store, log=quiet, min_connection_pool_size=4, max_connection_pool_size=20)
        )
        await self.chancy.migrate()
        await self.chancy.declare(
            Queue(
                "orders",
                concurrency=self.spec.concurrency,
                executor=Chancy.Executor.Async,
                polling_interval=1,
                eager_polling=True,
            )
        )

    async def publish(self, orders: Sequence[Fields]) -> None:
        jobs = [Job.from_func(ship, queue="orders", kwargs={"order": order}) for order in orders]
        if len(jobs) == 1:
            await self.chancy.push(jobs[0])
            return
        async for _ in self.chancy.push_many(jobs):
            pass

    async def work(self) -> None:
        worker = Worker(self.chancy, register_signal_handlers=False)
        await self.stack.enter_async_context(worker)
