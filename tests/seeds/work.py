"""Task types, and short words for steps that many tests take."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from dispatch import Dispatcher, Storage, TaskQueueConfig, TaskType, open_dispatcher

VIRTUAL_S = 100_000.0
"""So long in virtual time, and a test hangs."""


@attrs.frozen
class Job:
    n: int = 0


@attrs.frozen
class Answer:
    n: int


JOB = TaskType("q", "job", Job)
ASK = TaskType("q", "ask", Job, Answer)
CONFIG = TaskQueueConfig()


@asynccontextmanager
async def working(
    storage: Storage,
    handler: Callable[..., Any] | None = None,
    config: TaskQueueConfig = CONFIG,
    *,
    of: TaskType[Any, Any] = JOB,
    **options: Any,
) -> AsyncGenerator[Dispatcher]:
    """A dispatcher over `storage` with queue `q`, and a handler if one is given; bounded in time."""
    with trio.fail_after(VIRTUAL_S):
        async with open_dispatcher(storage, **{"observers": (), **options}) as dispatcher:
            dispatcher.consumer.register_queue("q", config)
            if handler is not None:
                dispatcher.consumer.register_handler(of, handler)
            yield dispatcher


class Script:
    """A handler whose runs take the next step each, the last one for ever.

    A step is an exception to raise, seconds to sleep, or a value to return.
    """

    def __init__(self, *steps: Any) -> None:
        self.steps = steps
        self.seen: list[Any] = []
        self.times: list[float] = []

    async def __call__(self, task: Any) -> Any:
        step = self.steps[min(len(self.seen), len(self.steps) - 1)] if self.steps else None
        self.seen.append(task)
        self.times.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if isinstance(step, BaseException):
            raise step
        if isinstance(step, float):
            await trio.sleep(step)
            return None
        return step

    @property
    def gaps(self) -> list[float]:
        """Seconds between one run's start and the next."""
        return [round(b - a, 2) for a, b in zip(self.times, self.times[1:], strict=False)]

    @property
    def numbers(self) -> list[int]:
        """The payloads, in the order of the runs."""
        return [task.payload.n for task in self.seen]
