"""A storage step that must not be cut in two: shielded, with a deadline, free if it never waits."""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

import trio

from dispatch.errors import StorageError

__all__ = ["shielded"]

T = TypeVar("T")


@types.coroutine
def shielded(step: Coroutine[Any, Any, T], deadline_s: float) -> Generator[Any, Any, T]:
    """Await `step` shielded from cancellation, for at most `deadline_s` seconds.

    Raises StorageError at the deadline: whether the step took effect is then
    in doubt. A cancel scope costs about 10 us, more than a whole step in
    memory, and a step that never waits needs none; so the step is begun
    first, and only what it yields to trio is yielded from inside a scope.
    (trio looks for cancellations when it gets the yielded trap, not before.)
    """
    try:
        trap = step.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    with trio.CancelScope(shield=True, deadline=trio.current_time() + deadline_s):
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
                return stop.value  # type: ignore[no-any-return]
    raise StorageError(f"no answer within {deadline_s:g} s")
