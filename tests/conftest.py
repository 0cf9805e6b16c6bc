"""Shared by every test: nothing may leave work behind in trio or in garbage."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator, Iterator

import pytest

from dispatch import jsontext
from tests.conclusive import AGAIN, InconclusiveError

# As after an install without extras. The two are compared in test_jsontext.py; with orjson
# the tests of the codec are a battery, and so are processes that have it installed.
ORJSON, jsontext.fast = jsontext.fast, None


@pytest.fixture(scope="session")
def orjson() -> jsontext.Fast:
    """To be put into `jsontext.fast`, and taken out again."""
    assert ORJSON is not None, "orjson is missing; it is in the group `test`"
    return ORJSON


@pytest.fixture(scope="module", params=["json", pytest.param("orjson", marks=pytest.mark.battery)])
def each_json(request: pytest.FixtureRequest, orjson: jsontext.Fast) -> Iterator[None]:
    """By the standard library, and as a battery by orjson."""
    jsontext.fast = orjson if request.param == "orjson" else None
    yield
    jsontext.fast = None


@pytest.fixture
def collected() -> Iterator[None]:
    """Collect garbage before and after, so that a coroutine never awaited warns inside the test."""
    gc.collect()
    yield
    gc.collect()


@pytest.fixture(scope="session", autouse=True)
def heeded_signals() -> Iterator[None]:
    """Under nohup, or in the background of a script, signals are ignored, by what tests start as well."""
    wanted = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    ignored = {number for number in wanted if signal.getsignal(number) is signal.SIG_IGN}
    for number in ignored:
        signal.signal(number, wanted[number])
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """One process more than there are processors: a third of the quick tests' time is waiting."""
    if "not battery" in config.getoption("markexpr"):
        return (os.cpu_count() or 1) + 1
    return None


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
