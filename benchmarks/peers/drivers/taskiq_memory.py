"""taskiq's broker in memory, on asyncio: each kick starts a task."""

from __future__ import annotations

from collections.abc import Sequence

from taskiq import InMemoryBroker

from benchmarks.peers.drive import Asyncio, Peer
from benchmarks.workload import Fields


class Taskiq(Peer):
    flavour = Asyncio()
    packages = ("taskiq",)

    async def open(self) -> None:
        # Its parser of arguments is what its users get; the other switches are its fastest.
        broker = InMemoryBroker(max_async_tasks=self.spec.concurrency)
        meter = self.meter

        @broker.task
        async def ship(order: Fields) -> None:
            meter()

        await broker.startup()
        self.ship = ship

    async def publish(self, orders: Sequence[Fields]) -> None:
        for order in orders:
            await self.ship.kiq(order)

    async def work(self) -> None:
        """Nothing to start: publishing starts the task."""
