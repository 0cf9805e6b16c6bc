"""The memory storage: the conformance kit, and what is its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from dispatch.clock import Clock
from dispatch.storage.memory import MemoryStorage
from dispatch.storage.protocol import Storage
from dispatch.testing.conformance import StorageConformance


class Wall:
    """A wall clock that moves when told."""

    def __init__(self) -> None:
        self.seconds = 1_700_000_000.0

    def __call__(self) -> float:
        return self.seconds

    async def advance(self, seconds: float) -> None:
        self.seconds = round(self.seconds + seconds, 6)


class TestMemoryStorage(StorageConformance):
    @asynccontextmanager
    async def open_storage(
        self,
    ) -> AsyncGenerator[tuple[Storage, Callable[[float], Awaitable[None]]]]:
        wall = Wall()
        yield MemoryStorage(Clock(wall=wall)), wall.advance
