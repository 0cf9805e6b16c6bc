"""The memory storage against a plain sequential model, by random operations."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis.stateful import invariant

from dispatch.clock import Clock
from dispatch.storage.memory import MemoryStorage
from dispatch.storage.protocol import Storage
from dispatch.testing.machine import StorageMachine, check_against_model


class MemoryMachine(StorageMachine):
    keep_finished = 3

    @asynccontextmanager
    async def open_storage(
        self,
    ) -> AsyncGenerator[tuple[Storage, Callable[[float], Awaitable[None]]]]:
        time = 1_000_000.0

        async def advance(seconds: float) -> None:
            nonlocal time
            time += seconds

        yield MemoryStorage(Clock(wall=lambda: time), keep_finished=self.keep_finished), advance

    @invariant()
    def as_many_wait(self) -> None:
        assert isinstance(self.storage, MemoryStorage)
        waiting = self.run.call(self.waiting)
        assert waiting == self.model.waiting(self.time)

    async def waiting(self) -> int:
        assert isinstance(self.storage, MemoryStorage)
        return self.storage.statistics().waiting


def test_the_memory_storage_agrees_with_its_model() -> None:
    check_against_model(MemoryMachine, examples=15, steps=40, require_all=False)


@pytest.mark.battery
def test_the_memory_storage_agrees_with_its_model_whatever_happens() -> None:
    check_against_model(MemoryMachine, examples=300)
