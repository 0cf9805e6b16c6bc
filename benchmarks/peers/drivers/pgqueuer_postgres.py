"""pgqueuer over an asyncpg pool, on its default, durable tables."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from datetime import timedelta

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.adapters.drivers.asyncpg import AsyncpgPoolDriver
from pgqueuer.models import Job  # noqa: TC002 - read from the annotation at run time
from pgqueuer.queries import Queries

from benchmarks.peers.drive import Asyncio, Peer
from benchmarks.workload import Fields

BATCH = 100


class Pgqueuer(Peer):
    flavour = Asyncio()
    packages = ("pgqueuer", "asyncpg")
    bulk = 100

    async def open(self) -> None:
        logging.getLogger("pgqueuer").setLevel(logging.ERROR)
        pool = await asyncpg.create_pool(self.spec.store, min_size=4, max_size=8)
        self.queries = Queries(AsyncpgPoolDriver(pool))
        if not self.spec.tally:
            await self.queries.install()
        self.pgq = PgQueuer.from_asyncpg_pool(pool)

        @self.pgq.entrypoint("ship")
        async def ship(job: Job) -> None:
            json.loads(job.payload or b"null")
            self.meter()

    async def publish(self, orders: Sequence[Fields]) -> None:
        if len(orders) == 1:
            await self.queries.enqueue("ship", json.dumps(orders[0]).encode())
            return
        payloads = [json.dumps(order).encode() for order in orders]
        await self.queries.enqueue(["ship"] * len(payloads), payloads, [0] * len(payloads))

    async def work(self) -> None:
        # A batch is what it takes and what it acknowledges at once; its bound on
        # running tasks must be at least twice as much.
        batch = max(1, min(BATCH, self.spec.concurrency))
        self.running = asyncio.create_task(
            self.pgq.run(
                batch_size=batch,
                max_concurrent_tasks=2 * batch,
                dequeue_timeout=timedelta(seconds=1),
            )
        )
