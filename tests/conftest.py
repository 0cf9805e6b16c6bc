"""Shared by every test: nothing may leave work behind in trio or in garbage."""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterator

import pytest

from tests.conclusive import AGAIN, InconclusiveError


@pytest.fixture
def collected() -> Iterator[None]:
    """Collect garbage before and after, so that a coroutine never awaited warns inside the test."""
    gc.collect()
    yield
    gc.collect()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("battery") or item.get_closest_marker("soak"):
            item.add_marker(AGAIN)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, object, object]:
    """What a nursery wrapped is said plainly, or the test would not be made again."""
    try:
        return (yield)
    except* InconclusiveError as group:
        leaf: BaseException = group
        while isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        raise leaf from None
