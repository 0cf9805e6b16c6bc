"""What a function is that somebody hands in, told without calling it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any, Final

__all__ = ["is_async", "is_generator", "is_middleware", "takes", "unwrapped"]

YIELDS: Final = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a `functools.partial` calls in the end; anything else is itself."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives an awaitable, as far as can be told without calling it."""
    inner = unwrapped(function)
    if isinstance(inner, type):  # whose `__call__` is its instances'
        return False
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(
        getattr(inner, "__call__", None)  # noqa: B004 - not a test of callability: its kind is asked
    )


def is_generator(function: Callable[..., Any]) -> bool:
    """Whether calling it runs nothing of it, since it yields."""
    inner = unwrapped(function)
    code = getattr(inner, "__code__", None)
    if code is None:  # no plain function: an object with such a method
        called = inner if isinstance(inner, type) else getattr(inner, "__call__", None)  # noqa: B004 - its kind is asked
        code = getattr(called, "__code__", None)
    return isinstance(code, CodeType) and bool(code.co_flags & YIELDS)


def takes(function: Callable[..., Any], count: int) -> bool:
    """Whether it can be called with so many arguments by position; True where nothing tells."""
    try:
        own = inspect.signature(function, follow_wrapped=False)  # a wrapper is called by its own
    except (TypeError, ValueError):
        return True
    try:
        own.bind(*range(count))
    except TypeError:
        return False
    return True


def is_middleware(given: object) -> bool:
    """Whether it can be awaited with `(task, run, call_next)`."""
    return callable(given) and is_async(given) and takes(given, 3)
