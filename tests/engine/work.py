"""Task types, and short words for steps that many tests take."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from attrs import frozen

from dispatch import Dispatcher, MemoryStorage, TaskQueueConfig, TaskType, open_dispatcher


@frozen
class Job:
    n: int = 0


@frozen
class Answer:
    n: int


JOB = TaskType("q", "job", Job)
ASK = TaskType("q", "ask", Job, Answer)
CONFIG = TaskQueueConfig()


@asynccontextmanager
async def working(
    handler: Callable[..., Any] | None = None,
    config: TaskQueueConfig = CONFIG,
    *,
    storage: MemoryStorage | None = None,
    task_type: TaskType[Any, Any] = JOB,
    **options: Any,
) -> AsyncIterator[Dispatcher]:
    """An open dispatcher with queue `q`, and a handler of `q/job` if one is given."""
    async with open_dispatcher(storage, **options) as dispatcher:
        dispatcher.consumer.register_queue("q", config)
        if handler is not None:
            dispatcher.consumer.register_handler(task_type, handler)
        yield dispatcher


async def nothing(task: object) -> None:
    """A handler that succeeds at once."""
    await trio.lowlevel.checkpoint()


class Script:
    """A handler that follows its script: each run takes the next step, the last one again and again.

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
        return [round(b - a, 6) for a, b in zip(self.times, self.times[1:], strict=False)]
