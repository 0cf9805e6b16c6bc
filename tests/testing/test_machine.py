"""The storage machine: it finds planted bugs, and says when it tested nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import Phase, settings

from dispatch import lifecycle
from dispatch.clock import Clock
from dispatch.lifecycle import Event, SettleAnswer
from dispatch.records import TaskRecord
from dispatch.storage.memory import MemoryStorage
from dispatch.storage.protocol import Storage
from dispatch.testing.machine import StorageMachine, check_against_model


class Machine(StorageMachine):
    @asynccontextmanager
    async def open_storage(
        self,
    ) -> AsyncGenerator[tuple[Storage, Callable[[float], Awaitable[None]]]]:
        time = 1_000_000.0

        async def advance(seconds: float) -> None:
            nonlocal time
            time += seconds

        yield MemoryStorage(Clock(wall=lambda: time), keep_finished=10**9), advance


class Unopenable(Machine):
    @asynccontextmanager
    async def open_storage(
        self,
    ) -> AsyncGenerator[tuple[Storage, Callable[[float], Awaitable[None]]]]:
        raise OSError("no such disk")
        yield


@pytest.fixture
def at_first_sight() -> Iterator[None]:
    """Report the first failure found: the shortest way to it is not wanted here."""
    settings.register_profile("at first sight", phases=[Phase.generate], database=None)
    settings.load_profile("at first sight")
    yield
    settings.load_profile("default")


def test_a_machine_that_gets_nowhere_says_so() -> None:
    with pytest.raises(AssertionError, match=r"^never met, so not tested: .*; give it more examples$"):
        check_against_model(Machine, examples=1, steps=1)


def test_a_storage_that_cannot_be_opened_says_why(at_first_sight: None) -> None:
    with pytest.raises(OSError, match="no such disk"):
        check_against_model(Unopenable, examples=1, steps=1)


def no_fence(record: TaskRecord | None, epoch: int) -> SettleAnswer:
    if record is None:
        return SettleAnswer.GONE
    running = record.status.value == "running"
    return SettleAnswer.APPLIED if running else SettleAnswer.REPEATED


@pytest.mark.battery
def test_it_finds_that_the_fence_is_gone(
    monkeypatch: pytest.MonkeyPatch, at_first_sight: None
) -> None:
    monkeypatch.setattr(lifecycle, "fence", no_fence)
    with pytest.raises(AssertionError):
        check_against_model(Machine, require_all=False)


@pytest.mark.battery
@pytest.mark.parametrize(
    ("event", "counter", "value"),
    [
        (Event.HAND_BACK, "attempt", 0),
        (Event.SNOOZE, "attempt", 0),
        (Event.EXPIRE_RETRY, "epoch", 0),
        (Event.EXPIRE_RETRY, "attempt", -1),
        (Event.CLAIM, "epoch", 2),
    ],
)
def test_it_finds_a_counter_that_is_wrong(
    event: Event,
    counter: str,
    value: int,
    monkeypatch: pytest.MonkeyPatch,
    at_first_sight: None,
) -> None:
    row = lifecycle.TABLE[event]
    given = {name: getattr(row, name) for name in ("attempt", "epoch", "ends_run")}
    wrong = lifecycle.Change(row.source, row.target, **{**given, counter: value})
    monkeypatch.setitem(lifecycle.TABLE, event, wrong)
    with pytest.raises(AssertionError):
        check_against_model(Machine, require_all=False)
