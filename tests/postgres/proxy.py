"""A proxy on loopback before a PostgreSQL server, that can stop forwarding, and lose answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from dispatch.storage.psycopg_trio import psycopg


class Proxy:
    """A proxy that is running; `dsn` is the way through it."""

    def __init__(self, dsn: str) -> None:
        parts = psycopg.conninfo.conninfo_to_dict(dsn)
        self._host = str(parts.pop("host", "127.0.0.1"))
        self._port = int(parts.pop("port", None) or 5432)
        self._parts = parts
        self._flowing = trio.Event()
        self._flowing.set()
        self._mute = False
        self._cut_at: bytes | None = None
        self.port = 0

    @property
    def dsn(self) -> str:
        """The connection string of the database behind it."""
        return psycopg.conninfo.make_conninfo(
            "", **self._parts, host="127.0.0.1", port=self.port, gssencmode="disable"
        )

    def stall(self) -> None:
        """Hold back every byte from now on, of new connections too; none is closed."""
        self._flowing = trio.Event()

    def flow(self) -> None:
        """Let pass what was held back, and forward again."""
        self._flowing.set()

    def mute(self) -> None:
        """Lose whatever the server says from now on."""
        self._mute = True

    def unmute(self) -> None:
        """Pass on what it says again."""
        self._mute = False

    def cut_at(self, words: bytes) -> None:
        """Close the next connection that sends these words, in place of passing the answer on."""
        self._cut_at = words

    async def serve(self, client: trio.SocketStream) -> None:
        """Forward one connection, both ways, until either side closes it."""
        if self._host.startswith("/"):
            server = await trio.open_unix_socket(f"{self._host}/.s.PGSQL.{self._port}")
        else:
            server = await trio.open_tcp_stream(self._host, self._port)
        to_cut = trio.Event()
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(self._forward, client, server, nursery.cancel_scope, to_cut, None)
            nursery.start_soon(self._forward, server, client, nursery.cancel_scope, None, to_cut)

    async def _forward(
        self,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        scope: trio.CancelScope,
        asking: trio.Event | None,
        answering: trio.Event | None,
    ) -> None:
        try:
            async for data in source:
                await self._flowing.wait()
                if asking is not None and self._cut_at is not None and self._cut_at in data:
                    self._cut_at = None
                    asking.set()
                if answering is not None and answering.is_set():
                    break
                if answering is None or not self._mute:
                    await sink.send_all(data)
        except trio.BrokenResourceError:
            pass
        await self._flowing.wait()
        scope.cancel()


@asynccontextmanager
async def proxy(dsn: str) -> AsyncIterator[Proxy]:
    """A proxy before the server of `dsn`, for the length of the block."""
    between = Proxy(dsn)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            partial(trio.serve_tcp, between.serve, 0, host="127.0.0.1")
        )
        between.port = listeners[0].socket.getsockname()[1]
        yield between
        nursery.cancel_scope.cancel()
