"""A trio task for each job: what a service without a queue does."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from benchmarks.peers.drive import Peer, Trio
from benchmarks.workload import Fields


class TaskPerJob(Peer):
    flavour = Trio()
    packages = ("trio",)

    async def open(self) -> None:
        self.nursery = await self.stack.enter_async_context(trio.open_nursery())
        self.free = trio.Semaphore(self.spec.concurrency)

    async def publish(self, orders: Sequence[Fields]) -> None:
        for order in orders:
            await self.free.acquire()
            self.nursery.start_soon(self._run, order)

    async def _run(self, order: Fields) -> None:
        self.meter()
        self.free.release()

    async def work(self) -> None:
        """Nothing to start: publishing starts the task."""
