"""procrastinate over psycopg, woken by LISTEN."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from procrastinate import App, PsycopgConnector

from benchmarks.peers.drive import Asyncio, Peer
from benchmarks.workload import Fields


class Procrastinate(Peer):
    flavour = Asyncio()
    packages = ("procrastinate", "psycopg")
    bulk = 100

    async def open(self) -> None:
        logging.getLogger("procrastinate").setLevel(logging.ERROR)
        connector = PsycopgConnector(conninfo=self.spec.store, min_size=4, max_size=20)
        self.app = App(connector=connector)

        @self.app.task(name="ship", queue="orders")
        async def ship(order: Fields) -> None:
            self.meter()

        self.ship = ship
        await self.stack.enter_async_context(self.app.open_async())
        if not self.spec.tally:
            await self.app.schema_manager.apply_schema_async()

    async def publish(self, orders: Sequence[Fields]) -> None:
        if len(orders) == 1:
            await self.ship.defer_async(order=orders[0])
        else:
            await self.ship.batch_defer_async(*({"order": order} for order in orders))

    async def work(self) -> None:
        self.running = asyncio.create_task(
            self.app.run_worker_async(
                queues=["orders"],
                concurrency=self.spec.concurrency,
                install_signal_handlers=False,
                listen_notify=True,
            )
        )
