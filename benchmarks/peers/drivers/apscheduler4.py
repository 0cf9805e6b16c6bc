"""APScheduler 4 (its alpha) on trio, in memory: the only scheduler that knows trio."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from apscheduler import AsyncScheduler, task

from benchmarks.peers.drive import Meter, Peer, Trio
from benchmarks.workload import Fields

meters: list[Meter] = []
"""A job is stored by the path of its function, which must not be a method."""


@task(id="ship", max_running_jobs=None)
async def ship(order: Fields) -> None:
    meters[0]()


class APScheduler4(Peer):
    flavour = Trio()
    packages = ("APScheduler", "trio")

    async def open(self) -> None:
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        meters.append(self.meter)
        self.scheduler = await self.stack.enter_async_context(
            AsyncScheduler(max_concurrent_jobs=self.spec.concurrency)
        )

    async def publish(self, orders: Sequence[Fields]) -> None:
        for order in orders:
            await self.scheduler.add_job(ship, args=(order,))

    async def work(self) -> None:
        await self.scheduler.start_in_background()
