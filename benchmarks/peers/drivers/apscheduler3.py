"""APScheduler 3 on asyncio: a job for at once per task, in memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from benchmarks.peers.drive import Asyncio, Peer
from benchmarks.workload import Fields


class APScheduler3(Peer):
    flavour = Asyncio()
    packages = ("APScheduler",)

    async def open(self) -> None:
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        self.scheduler = AsyncIOScheduler(
            executors={"default": AsyncIOExecutor()}, job_defaults={"misfire_grace_time": None}
        )
        # It stores jobs only once started; paused, it runs none.
        self.scheduler.start(paused=True)

    async def publish(self, orders: Sequence[Fields]) -> None:
        for order in orders:
            self.scheduler.add_job(self._ship, args=(order,))
        await self.flavour.sleep(0)

    async def _ship(self, order: Fields) -> None:
        self.meter()

    async def work(self) -> None:
        self.scheduler.resume()
