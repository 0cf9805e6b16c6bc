"""`TaskDispatcher`: a bounded pool for functions, run now and forgotten or awaited.

Go's `TaskDispatcher` with its holes closed: it can be drained, resized and
waited for, survives every exception, and costs nothing while idle. It is for
fire and forget inside this process; what must survive is published instead.
"""

from __future__ import annotations

import contextvars
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from enum import StrEnum
from threading import get_ident
from typing import Any, Final, Generic, TypeVarTuple, cast, overload

import attrs
import trio
from typing_extensions import TypeVar

from dispatch.callables import is_async, is_generator, unwrapped
from dispatch.checks import check_within, shown
from dispatch.errors import ClosedError, InvalidConfigError, InvalidTaskHandlerError, QueueFullError
from dispatch.failures import (
    LEFT_OPEN,
    describe,
    enclosed,
    is_cancelled,
    parted,
    printable,
    surroundings,
)
from dispatch.threads import check_thread

__all__ = ["PoolStatistics", "PoolStatus", "Task", "TaskDispatcher"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True, default=Any)
Ts = TypeVarTuple("Ts")

log: Final = logging.getLogger("dispatch.pool")

POOL_SIZE: Final = 1_024
"""Go's pool size: how many run at once."""


class PoolStatus(StrEnum):
    """Where a pool task stands, in Go's words."""

    QUEUE = "queue"
    RUNNING = "running"
    FINISH = "finish"


@attrs.define(eq=False, init=False)
class Task(Generic[T_co]):
    """One function given to the pool.

    `func` is an async function, or a sync one for a thread; what that returns is
    awaited if it can be, as of `lambda: send(mail)`. `args` are its arguments. Once `status` is `finish`, `error` is what it raised, or None,
    and `value` what it returned.
    """

    func: Callable[..., Any]
    args: tuple[Any, ...]
    name: str
    status: PoolStatus = attrs.field(init=False)
    error: BaseException | None = attrs.field(init=False)
    value: T_co | None = attrs.field(init=False)
    _finished: trio.Event = attrs.field(init=False)
    _pool: TaskDispatcher | None = attrs.field(init=False)
    _waiters: list[int] = attrs.field(init=False)
    """The threads of those who wait for it."""

    # By hand, for its overloads: the first line that fits an async function says what it comes to.

    @overload
    def __init__(
        self: Task[T], func: Callable[[*Ts], Awaitable[T]], args: tuple[*Ts], name: str = ""
    ) -> None: ...

    @overload
    def __init__(self: Task[T], func: Callable[[*Ts], T], args: tuple[*Ts], name: str = "") -> None: ...

    @overload
    def __init__(
        self: Task[T], func: Callable[[], Awaitable[T]], args: tuple[()] = (), name: str = ""
    ) -> None: ...

    @overload
    def __init__(self: Task[T], func: Callable[[], T], args: tuple[()] = (), name: str = "") -> None: ...

    def __init__(self, func: Callable[..., Any], args: tuple[Any, ...] = (), name: str = "") -> None:
        self.func = func
        self.args = args
        self.name = name
        self.status = PoolStatus.QUEUE
        self.error = None
        self.value = None
        self._finished = trio.Event()
        self._pool = None
        self._waiters = []
        if not callable(func):
            raise InvalidTaskHandlerError(f"pool: func must be callable, got {func!r}")
        if not name:
            inner = unwrapped(func)
            self.name = getattr(inner, "__qualname__", type(inner).__qualname__)
        if not isinstance(cast("object", args), tuple):
            raise InvalidTaskHandlerError(
                f"pool: args of {self.name} must be a tuple of what it is called with, got {shown(args)}"
            )
        if is_generator(func):
            raise InvalidTaskHandlerError(f"pool: {self.name} is a generator, of which nothing would run")

    async def wait(self) -> None:
        """Wait until it has finished, however it ended; look at `error` then. A checkpoint.

        Raises InvalidConfigError (1012) in another trio run than the pool's.
        """
        if self._pool is not None and not self._finished.is_set():
            where = self._pool._thread  # pyright: ignore[reportPrivateUsage] - the two classes are one unit
            check_thread(self, where, "run(task.wait, trio_token=token)")
        self._waiters.append(get_ident())
        try:
            await self._finished.wait()
        finally:
            self._waiters.remove(get_ident())

    async def result(self) -> T_co:
        """Wait as `wait` does; what it returned, or raises what it raised. A checkpoint."""
        await self.wait()
        if self.error is not None:
            raise self.error
        return cast("T_co", self.value)

    def __repr__(self) -> str:
        failed = f" error={describe(self.error)}" if self.error is not None else ""
        return f"<Task {self.name} {self.status.value}{failed}>"


@attrs.frozen(kw_only=True)
class PoolStatistics:
    """The pool at one instant."""

    size: int
    running: int
    queued: int
    finished: int
    failed: int


class TaskDispatcher:
    """Runs functions, at most `size` at once, the rest queued up to `buffer_size`.

    Alone: `async with trio.open_nursery() as nursery: await
    nursery.start(pool.run_pool)`; a dispatcher's is at `dispatcher.pool`.
    Work given before it runs waits in the queue. While it runs, another thread,
    as a sync handler's, goes through `trio.from_thread.run_sync(pool.run, function)`.
    """

    def __init__(self, size: int = POOL_SIZE, *, buffer_size: int = 65_536, grace: float = 10.0) -> None:
        self._size = _positive("size", size)
        self._buffer_size = _positive("buffer_size", buffer_size)
        check_within("grace", grace, 0, 86_400)
        self._grace = grace
        self._queue: deque[tuple[Task[Any], contextvars.Context]] = deque()
        self._running: set[Task[Any]] = set()
        self._nursery: trio.Nursery | None = None
        self._thread: int | None = None
        """Where it runs, while it does."""
        self._limiter: trio.CapacityLimiter | None = None
        self._closing = trio.Event()
        self._ended = False
        self._idle: list[trio.Event] = []
        self._finished = 0
        self._failed = 0

    @overload
    def run(self, func: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> Task[T]: ...

    @overload
    def run(self, func: Callable[[*Ts], T], *args: *Ts) -> Task[T]: ...

    def run(self, func: Callable[[*Ts], Any], *args: *Ts) -> Task[Any]:
        """Run `func(*args)` soon; never blocks.

        Raises QueueFullError (1020), ClosedError (1013), InvalidTaskHandlerError (1009: not
        a function) and InvalidConfigError (1012: another thread than the pool's).
        """
        check_thread(self, self._thread, "run_sync(pool.run, function)")
        return self.run_task(Task(func, args))

    def run_task(self, task: Task[T]) -> Task[T]:
        """Run a `Task` made by hand; each only once.

        Raises as `run` does, and InvalidConfigError (1012) for one that somebody waits for in another trio run.
        """
        check_thread(self, self._thread, "run_sync(pool.run_task, task)")
        given = cast("object", task)
        if not isinstance(given, Task):
            raise InvalidTaskHandlerError(f"pool: expected a Task, got {shown(given)}; a function is given to run()")
        if self._closing.is_set():
            raise ClosedError(f"pool: it is closed and takes no more work; {task.name} was not run")
        if task._pool is not None:  # pyright: ignore[reportPrivateUsage]
            raise InvalidTaskHandlerError(f"pool: {task!r} was given to a pool already; make another Task")
        if any(thread != get_ident() for thread in task._waiters):  # pyright: ignore[reportPrivateUsage]
            raise InvalidConfigError(
                f"pool: {task!r} is waited for in another trio run, which could not be woken; "
                "from another thread wait by trio.from_thread.run(task.wait, trio_token=token)"
            )
        if len(self._queue) >= self._buffer_size:
            raise QueueFullError(f"pool: {len(self._queue)} tasks are queued, its buffer_size; {task.name} was not run")
        task._pool = self  # pyright: ignore[reportPrivateUsage]
        # The context is that of who gave it, and not of who makes room for it.
        self._queue.append((task, contextvars.copy_context()))
        self._fill()
        return task

    def resize(self, size: int) -> None:
        """Run at most `size` at once from now on; those running beyond it finish."""
        check_thread(self, self._thread, "run_sync(pool.resize, size)")
        self._size = _positive("size", size)
        if self._limiter is not None:
            self._limiter.total_tokens = size
        self._fill()

    async def drain(self) -> None:
        """Wait until nothing is queued or running. Stops nothing. A checkpoint.

        Raises InvalidConfigError (1012) in another trio run than the pool's.
        """
        check_thread(self, self._thread, "run(pool.drain, trio_token=token)")
        while self._queue or self._running:
            event = trio.Event()
            self._idle.append(event)
            await event.wait()
        await trio.lowlevel.checkpoint()

    async def run_pool(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `close()`, then finish everything queued, for at most `grace` seconds.

        Cancelled, or at the end of the grace: running functions are cancelled,
        queued ones never run, and their `error` says so. Threads are abandoned.
        Runs once: a second time, while it does or afterwards, is ClosedError (1013).
        """
        if self._thread is not None:
            raise ClosedError("pool: it runs already")
        if self._ended:
            raise ClosedError("pool: it has ended; make another TaskDispatcher")
        self._thread = get_ident()
        self._limiter = trio.CapacityLimiter(self._size)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._fill()
                task_status.started()
                await self._closing.wait()
                with trio.move_on_after(self._grace):
                    await self.drain()
                nursery.cancel_scope.cancel()
        finally:
            self._closing.set()
            self._ended = True
            self._nursery = self._thread = None
            dropped = len(self._queue)
            while self._queue:
                self._finish(self._queue.popleft()[0], None, ClosedError("pool: it closed before this task ran"))
            if dropped:
                log.warning("pool: closed with %d queued tasks that never ran", dropped)

    def close(self) -> None:
        """Take no more work; `run_pool()` returns when it is done. Harmless to repeat."""
        check_thread(self, self._thread, "run_sync(pool.close)")
        self._closing.set()

    def statistics(self) -> PoolStatistics:
        """The pool at this instant."""
        return PoolStatistics(
            size=self._size,
            running=len(self._running),
            queued=len(self._queue),
            finished=self._finished,
            failed=self._failed,
        )

    def __repr__(self) -> str:
        return f"<TaskDispatcher running={len(self._running)}/{self._size} queued={len(self._queue)}>"

    def _fill(self) -> None:
        while self._nursery is not None and self._queue and len(self._running) < self._size:
            task, context = self._queue.popleft()
            task.status = PoolStatus.RUNNING
            self._running.add(task)
            context.run(self._begin, task)

    def _begin(self, task: Task[Any]) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self._run_one, task, name=f"pool task {task.name}")

    async def _run_one(self, task: Task[Any]) -> None:
        """A trio task per pool task, so that each has a nursery-like life of its own."""
        value: Any = None
        error: BaseException | None = None
        passing: BaseException | None = None
        with enclosed(trio.CancelScope()) as around:
            try:
                value = await self._call(task)
            except BaseException as exc:  # noqa: BLE001 - the pool survives every exception
                passing, failed = parted(exc, around)
                error = passing if failed is None else failed
                # Who asks for the result must never get a Cancelled whose scope is gone.
                if failed is None and _only_cancelled(exc):
                    error = ClosedError("pool: it closed while this task ran, which was cancelled")
            if surroundings() is not around:
                log.warning(LEFT_OPEN, f"pool task {task.name}", "it", extra={"event": "left_open"})
        self._running.discard(task)
        self._finish(task, value, error)
        if not is_cancelled(surroundings()):  # else the end has come: what is queued never runs
            self._fill()
        if passing is not None:
            raise passing

    async def _call(self, task: Task[Any]) -> Any:
        function: Callable[..., Any] = task.func
        if is_async(function):
            return await function(*task.args)
        [value] = await trio.to_thread.run_sync(  # in a list: trio refuses a bare coroutine
            lambda: [function(*task.args)], abandon_on_cancel=True, limiter=self._limiter
        )
        return await value if inspect.isawaitable(value) else value

    def _finish(self, task: Task[Any], value: Any, error: BaseException | None) -> None:
        task.value, task.error, task.status = value, error, PoolStatus.FINISH
        self._finished += 1
        if error is not None:
            self._failed += 1
            log.warning("pool task %s failed: %s", task.name, printable(describe(error)))
        task._finished.set()  # pyright: ignore[reportPrivateUsage]
        if not self._queue and not self._running:
            for event in self._idle:
                event.set()
            self._idle.clear()


def _only_cancelled(error: BaseException) -> bool:
    """Whether it is `Cancelled`, alone or as all that is in a group."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[Any]", error)
        return group.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)


def _positive(what: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidConfigError(f"pool: {what} must be a whole number of at least 1, got {value!r}")
    return value
