"""The storages that every seed's rows are run on: one more is one more line of `STORAGES`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio

from dispatch.storage.memory import MemoryStorage
from dispatch.storage.protocol import Storage
from dispatch.storage.sqlite import SqliteStorage
from dispatch.testing.workbench import Workbench


@asynccontextmanager
async def memory(folder: Path) -> AsyncGenerator[Storage]:
    yield MemoryStorage()


def sqlite(folder: Path) -> SqliteStorage:
    # Inline, because virtual time does not wait for threads.
    return SqliteStorage(folder / "jobs.db", inline=True, synchronous="normal")


STORAGES: dict[str, Callable[[Path], AbstractAsyncContextManager[Storage]]] = {
    "memory": memory,
    "sqlite": sqlite,
}


@pytest.fixture(params=STORAGES)
def opener(request: pytest.FixtureRequest) -> Callable[[Path], AbstractAsyncContextManager[Storage]]:
    return STORAGES[request.param]


@pytest.fixture
async def storage(
    opener: Callable[[Path], AbstractAsyncContextManager[Storage]],
    tmp_path: Path,
    autojump_clock: object,
) -> AsyncGenerator[Storage]:
    async with opener(tmp_path) as storage:
        yield storage


@pytest.fixture
async def bench(storage: Storage) -> Workbench:
    """The storage by itself, with the words of the conformance kit."""
    return Workbench(storage, trio.sleep)
