"""The conformance kit on SQLite, in a thread and inline."""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from dispatch.clock import Clock
from dispatch.storage.protocol import Storage
from dispatch.storage.sqlite import SqliteStorage
from dispatch.testing.conformance import StorageConformance


class HandTime:
    """A wall clock that only moves when told."""

    def __init__(self) -> None:
        self.moment = time.time()

    def __call__(self) -> float:
        return self.moment

    async def advance(self, seconds: float) -> None:
        self.moment += seconds


class TestSqlite(StorageConformance):
    inline = False

    @asynccontextmanager
    async def open_storage(
        self,
    ) -> AsyncGenerator[tuple[Storage, Callable[[float], Awaitable[None]]]]:
        wall = HandTime()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "jobs.db"
            clock = Clock(wall=wall)
            async with SqliteStorage(path, clock=clock, inline=self.inline) as storage:
                yield storage, wall.advance


class TestSqliteInline(TestSqlite):
    inline = True
