"""A bare trio memory channel into worker tasks: the limit in memory."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import trio

from benchmarks.peers.drive import Peer, Trio
from benchmarks.workload import Fields

BUFFER = 128


class Channel(Peer):
    flavour = Trio()
    packages = ("trio",)

    async def open(self) -> None:
        self.nursery = await self.stack.enter_async_context(trio.open_nursery())
        runs = self.spec.measure in ("throughput", "latency")
        self.send, self.receive = trio.open_memory_channel[Fields](BUFFER if runs else inf)

    async def publish(self, orders: Sequence[Fields]) -> None:
        for order in orders:
            await self.send.send(order)

    async def work(self) -> None:
        for _ in range(self.spec.concurrency):
            self.nursery.start_soon(self._work)

    async def _work(self) -> None:
        async for _ in self.receive:
            self.meter()
