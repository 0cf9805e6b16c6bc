"""A storage step that must not be cut in two: shielded, with a deadline, free if it never waits."""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator
from math import inf
from math import inf
from typing import Any, TypeVar

import trio

from dispatch.errors import StorageError

__all__ = ["shielded"]

T = TypeVar("T")


async def shielded(step: Coroutine[Any, Any, T], deadline_s: float) -> T:
    """Await `step` shielded from cancellation, for at most `deadline_s` seconds.

    Raises StorageError at the deadline: whether the step took effect is then
    in doubt. A cancel scope costs about 10 us, more than a whole step in
    memory, and a step that never waits needs none. So, unless a cancellation
    is pending already, the step is begun outside, and only what it yields to
    trio is yielded from inside a scope: trio looks for cancellations when it
    gets the yielded trap, not before.
    """
    if trio.current_effective_deadline() == -inf:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + deadline_s):
            return await step
    else:
        try:
            trap = step.send(None)
        except StopIteration as stop:
            result: T = stop.value
            return result
        with trio.CancelScope(shield=True, deadline=trio.current_time() + deadline_s):
            rest: T = await _continued(step, trap)
            return rest
    raise StorageError(f"no answer within {deadline_s:g} s")


@types.coroutine
def _continued(step: Coroutine[Any, Any, Any], trap: Any) -> Generator[Any, Any, Any]:
    """Go on awaiting a coroutine that has yielded `trap`."""
    while True:
        resume: Callable[[Any], Any]
        try:
            value: Any = yield trap
            resume = step.send
        except BaseException as exc:  # noqa: BLE001 - thrown into the step, which decides
            value = exc
            resume = step.throw
        try:
            trap = resume(value)
        except StopIteration as stop:
            return stop.value
