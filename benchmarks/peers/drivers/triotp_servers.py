"""triotp: a pool of generic servers on trio, cast to in turn."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import trio
from triotp import gen_server, mailbox

from benchmarks.peers.drive import Peer, Trio
from benchmarks.workload import Fields


class Servers(Peer):
    flavour = Trio()
    packages = ("triotp", "trio")

    async def open(self) -> None:
        self.nursery = await self.stack.enter_async_context(trio.open_nursery())
        mailbox._init()
        self.names = [f"worker{number}" for number in range(self.spec.concurrency)]
        self.turn = 0

    async def publish(self, orders: Sequence[Fields]) -> None:
        for order in orders:
            await gen_server.cast(self.names[self.turn], order)
            self.turn = (self.turn + 1) % len(self.names)

    async def work(self) -> None:
        server: Any = ModuleType("server")

        async def init(argument: object) -> None:
            return None

        async def handle_cast(message: Fields, state: object) -> tuple[Any, object]:
            self.meter()
            return gen_server.NoReply(), state

        server.init, server.handle_cast = init, handle_cast
        for name in self.names:
            self.nursery.start_soon(gen_server.start, server, None, name)
        await trio.sleep(0.1)
