"""The conformance kit on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from types import FunctionType
from typing import Any, ClassVar

import pytest

from dispatch.storage.postgres import PostgresStorage
from dispatch.storage.protocol import Storage
from dispatch.testing.conformance import StorageConformance
from tests.postgres.stage import Stage


def in_battery(test: Any) -> Any:
    """The same case in the other tier: where every exchange is cut once, there are hundreds."""
    copy = FunctionType(test.__code__, test.__globals__, test.__name__, test.__defaults__)
    copy.pytestmark = list(test.pytestmark)
    return pytest.mark.battery(copy)


class TestPostgresStorage(StorageConformance):
    test_a_call_that_fails_anywhere_did_all_or_nothing = in_battery(
        StorageConformance.test_a_call_that_fails_anywhere_did_all_or_nothing
    )
    test_a_call_cancelled_anywhere_did_all_or_nothing = in_battery(
        StorageConformance.test_a_call_cancelled_anywhere_did_all_or_nothing
    )

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
