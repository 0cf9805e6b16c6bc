"""The conformance kit on SQLite, in a thread and inline."""

# pyright: reportPrivateUsage=false
# What breaks a call in the middle is set on the connection inside.

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from dispatch.clock import Clock
from dispatch.storage.protocol import Storage
from dispatch.storage.sqlite import SqliteStorage
from dispatch.testing.conformance import StorageConformance

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where there is one: the disk's pace proves nothing here
FOLDER = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None


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
        self.wall = HandTime()
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            self.path = Path(folder) / "jobs.db"
            async with self.opened() as storage:
                yield storage, self.wall.advance

    def opened(self) -> SqliteStorage:
        return SqliteStorage(self.path, clock=Clock(wall=self.wall), inline=self.inline)

    def reopen(self, storage: Storage) -> SqliteStorage:
        return self.opened()

    @contextmanager
    def break_at(self, storage: Storage, step: int) -> Generator[None]:
        """Interrupt SQLite after so many times 40 of its machine's instructions."""
        assert isinstance(storage, SqliteStorage)
        left = step

        def over() -> bool:
            nonlocal left
            left -= 1
            return left == -1

        storage._ledger.db.set_progress_handler(over, 40)
        try:
            yield
        finally:
            storage._ledger.db.set_progress_handler(None, 0)


@pytest.mark.battery
class TestSqliteInline(TestSqlite):
    inline = True

    def reopen(self, storage: Storage) -> SqliteStorage:
        pytest.skip("inline is for simulations in one process: it looks for no other")
