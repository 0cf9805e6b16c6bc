"""SQLite against a plain sequential model, by random operations of two processes on one file."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from dispatch.clock import Clock
from dispatch.storage.protocol import Storage
from dispatch.storage.sqlite import SqliteStorage
from dispatch.testing.machine import StorageMachine, check_against_model

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where there is one: the disk's pace proves nothing here
FOLDER = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None


class SqliteMachine(StorageMachine):
    inline = True

    def open(self) -> SqliteStorage:
        clock = Clock(wall=lambda: self.moment)
        return SqliteStorage(self.path, clock=clock, inline=self.inline, synchronous="normal")

    @asynccontextmanager
    async def open_storage(
        self,
    ) -> AsyncGenerator[tuple[Storage, Callable[[float], Awaitable[None]]]]:
        self.moment = 1_000_000.0

        async def advance(seconds: float) -> None:
            self.moment += seconds

        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            self.path = Path(folder) / "jobs.db"
            async with self.open() as storage:
                yield storage, advance

    def reopen(self, storage: Storage) -> AbstractAsyncContextManager[Storage]:
        return self.open()


class ThreadedMachine(SqliteMachine):
    inline = False


def test_sqlite_agrees_with_the_model() -> None:
    check_against_model(SqliteMachine, examples=10, steps=40, require_all=False)


@pytest.mark.battery
@pytest.mark.parametrize("machine", [SqliteMachine, ThreadedMachine])
def test_sqlite_agrees_with_the_model_whatever_happens(machine: type[StorageMachine]) -> None:
    check_against_model(machine, examples=150)
