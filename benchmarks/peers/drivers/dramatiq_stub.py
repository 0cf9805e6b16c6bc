"""dramatiq with its stub broker, in threads."""

from __future__ import annotations

from collections.abc import Sequence

import dramatiq
from dramatiq.brokers.stub import StubBroker

from benchmarks.peers.drive import Peer, Threads
from benchmarks.workload import Fields


class Dramatiq(Peer):
    flavour = Threads()
    packages = ("dramatiq",)

    async def open(self) -> None:
        self.broker = StubBroker()
        dramatiq.set_broker(self.broker)
        meter = self.meter

        def ship(order: Fields) -> None:
            meter()

        self.ship = dramatiq.actor(ship)

    async def publish(self, orders: Sequence[Fields]) -> None:
        for order in orders:
            self.ship.send(order)

    async def work(self) -> None:
        dramatiq.Worker(
            self.broker, worker_threads=self.spec.concurrency, worker_timeout=100
        ).start()
