"""The conformance kit on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from typing import ClassVar

import pytest

from dispatch.storage.postgres import PostgresStorage
from dispatch.storage.protocol import Storage
from dispatch.testing.conformance import StorageConformance
from dispatch.testing.postgres import PostgresServer
from tests.postgres.stage import Stage


@pytest.fixture(scope="module")
def stage(server: PostgresServer) -> Iterator[Stage]:
    opened = Stage(server.fresh_database())
    yield opened
    opened.close()


class TestPostgresStorage(StorageConformance):
    stage: ClassVar[Stage]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def on_stage(cls, stage: Stage) -> None:
        cls.stage = stage

    @asynccontextmanager
    async def open_storage(
        self,
    ) -> AsyncGenerator[tuple[Storage, Callable[[float], Awaitable[None]]]]:
        async with self.stage.open() as opened:
            yield opened

    def reopen(self, storage: Storage) -> AbstractAsyncContextManager[Storage]:
        return self.stage.storage()

    def break_at(self, storage: Storage, step: int) -> AbstractContextManager[None]:
        assert isinstance(storage, PostgresStorage)
        return self.stage.break_at(storage, step)

    async def disconnect(self, storage: Storage) -> None:
        assert isinstance(storage, PostgresStorage)
        self.stage.disconnect(storage)
