"""Every async test here runs under a deadline, so that a deadlock fails instead of hanging."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

import pytest
import trio

HERE = Path(__file__).parent
VIRTUAL_S = 10_000.0
REAL_S = 20.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not isinstance(item, pytest.Function) or HERE not in item.path.parents:
            continue
        if inspect.iscoroutinefunction(item.obj):
            default = VIRTUAL_S if "autojump_clock" in item.fixturenames else REAL_S
            item.obj = _bounded(item.obj, getattr(item.module, "FAIL_AFTER_S", default))


def _bounded(test: Any, deadline_s: float) -> Any:
    @functools.wraps(test)
    async def bounded(*args: Any, **kwargs: Any) -> None:
        with trio.fail_after(deadline_s):
            await test(*args, **kwargs)

    return bounded
