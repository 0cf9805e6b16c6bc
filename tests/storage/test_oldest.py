"""Since when the longest due task has been due: right whatever the order of storing, and bounded."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dispatch import MemoryStorage, Storage
from dispatch.records import NewTask
from dispatch.storage.oldest import oldest_due
from dispatch.storage.protocol import Page, QueueRecord
from dispatch.storage.sqlite import SqliteStorage

COUNT = 2_500


class Counted:
    """A storage's `find`, and what it gave."""

    def __init__(self, storage: Storage) -> None:
        self._find = storage.find
        self.looks = self.read = 0

    async def find(self, *args: Any, **kwargs: Any) -> Page:
        page = await self._find(*args, **kwargs)
        self.looks += 1
        self.read += len(page.records)
        return page


@asynccontextmanager
async def filled(kind: str, path: Path, due: list[float]) -> AsyncGenerator[Storage]:
    async with AsyncExitStack() as stack:
        storage: Storage = MemoryStorage()
        if kind == "sqlite":
            storage = await stack.enter_async_context(SqliteStorage(path / "jobs.db"))
        await storage.declare([QueueRecord(name="q"), QueueRecord(name="other")])
        new = [NewTask(id="elsewhere", queue="other", type="job", payload=b"{}", available_at=1.0)]
        new += [
            NewTask(id=f"t{number}", queue="q", type="job", payload=b"{}", available_at=moment)
            for number, moment in enumerate(due)
        ]
        await storage.enqueue([*new, NewTask(id="later", queue="q", type="job", payload=b"{}", delay=60.0)])
        yield storage


def stored(order: str) -> list[float]:
    due = [1_000.0 + number for number in range(COUNT)]
    if order == "backwards":
        due.reverse()
    elif order == "at random":
        random.Random(3).shuffle(due)
    elif order == "one early":
        due[COUNT // 2] = 500.5
    elif order == "the first has just fallen due":
        due[0] = 9_999.0
    elif order == "the earlier the nearer to the middle":
        due = [1_000.0 + abs(number - COUNT / 2) for number in range(COUNT)]
    return due


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize(
    ("order", "most_looks"),
    [("in order", 2), ("the first has just fallen due", 3), ("one early", 3), ("backwards", 4), ("at random", 15)],
)
async def test_the_longest_due_is_found_in_few_looks(
    kind: str, order: str, most_looks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    due = stored(order)
    async with filled(kind, tmp_path, due) as storage:
        counted = Counted(storage)
        monkeypatch.setattr(storage, "find", counted.find)
        assert await oldest_due(storage, "q") == min(due)
        assert await oldest_due(storage, "nowhere") is None
    assert counted.looks <= most_looks + 1
    assert counted.read < 200


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_at_the_bound_a_task_that_is_really_due_stands_for_the_longest(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    due = stored("the earlier the nearer to the middle")
    async with filled(kind, tmp_path, due) as storage:
        counted = Counted(storage)
        monkeypatch.setattr(storage, "find", counted.find)
        found = await oldest_due(storage, "q")
    assert found in due
    assert found < due[0] - 400
    assert counted.read == 1_000


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_what_is_only_delayed_is_not_due(kind: str, tmp_path: Path) -> None:
    async with filled(kind, tmp_path, []) as storage:
        assert await oldest_due(storage, "q") is None
