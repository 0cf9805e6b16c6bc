"""For tests of your own handlers: the real engine, on virtual time, that can crash and come back.

    def register(dispatcher):
        dispatcher.consumer.register_queue("email", TaskQueueConfig(max_retry=3))
        dispatcher.consumer.register_handler(WELCOME, send_welcome)

    async def test_a_crash_loses_nothing(autojump_clock):
        async with Harness(register) as harness:
            await harness.publisher.publish(WELCOME(Welcome("ada")))
            await harness.crash()
            await harness.restart()
            await harness.advance(60)
            await harness.assert_published(WELCOME, Welcome("ada"), status="succeeded")

It needs trio's `MockClock`: with pytest-trio the fixture `autojump_clock` (or
`mock_clock`, where time moves by `advance`, and while a dispatcher is being
ended). Sync handlers run in real threads, which virtual time does not wait for;
test those through `perform`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import datetime
from math import inf
from types import TracebackType
from typing import Any, Final, Generic, Protocol, Unpack, cast, overload
from weakref import WeakKeyDictionary

import attrs
import trio
import trio.testing
from typing_extensions import TypeVar

from dispatch.checks import check_count, check_kind, shown
from dispatch.clock import Clock
from dispatch.codec import Codec
from dispatch.dispatcher import Dispatcher, DispatcherOptions
from dispatch.errors import InvalidConfigError
from dispatch.events import TaskEvent
from dispatch.execution import task_for_handler
from dispatch.handlers import bind, check_no_result
from dispatch.publisher import TaskQueuePublisher
from dispatch.records import Claim, NewTask, TaskRecord, from_seconds, to_seconds
from dispatch.run import Run
from dispatch.storage.memory import MemoryStorage
from dispatch.storage.protocol import Storage, check_storage
from dispatch.storage.query import All, Queues, Statuses, Types, matches
from dispatch.tasks import QueueTask, TaskType
from dispatch.testing.faults import FaultyStorage

__all__ = ["Harness", "Performed", "Scripted", "perform"]

P = TypeVar("P", default=Any)
R = TypeVar("R", default=Any)

QUIET_S: Final = 0.02
"""Seconds of real time without an event after which an end that waits lets virtual time jump."""
CLOCKS_APART_S: Final = 1.0
"""What two clocks that begin at the same moment may differ by."""
THREAD_S: Final = 1.0
"""Real seconds for which a sync handler may keep silent in its thread before virtual time jumps on."""

Setup = Callable[[Dispatcher], Awaitable[None] | None]


class Harness:
    """A dispatcher over a storage that outlives it, under virtual time.

    - `setup`: registers queues, handlers and cron on each new dispatcher; sync
      or async. It is called again after every restart, as a service's start is.
    - `storage`: the storage, by default a fresh one in memory. Time is then the storage's, cron's included.
    - `start`: the moment at which virtual time begins, an aware datetime; a storage
      of your own must begin there as well, by a `Clock(start)`.
    - `options`: those of `Dispatcher`, but that nothing is logged unless its `observers` do.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        storage: Storage | None = None,
        start: datetime | None = None,
        **options: Unpack[DispatcherOptions],
    ) -> None:
        self._setup = setup
        self._options = options
        if not callable(setup):
            raise InvalidConfigError(f"Harness: setup must be a function of the dispatcher, got {shown(setup)}")
        if storage is not None:
            check_storage(storage, " or None for an in-memory one")
        given = options.get("clock")
        check_kind("clock", given, Clock)
        if start is not None and given is not None:
            raise InvalidConfigError("Harness: give either start or clock, got both")
        self._clock: Clock | None = given if given is not None else None if start is None else Clock(start)
        """The one asked for, beside what a storage given goes by."""
        self.clock: Final = self._clock or (Clock() if storage is None else Clock(wall=storage.now))
        """Wall time, from the start given."""
        self.storage: Final[Storage] = (
            storage if storage is not None else MemoryStorage(self.clock, keep_finished=1_000_000)
        )
        """What survives a crash."""
        self.events: Final[list[TaskEvent]] = []
        """Every event of every dispatcher so far, but for what a crashed one did while dying."""
        self._life: _Life | None = None
        self._nursery: trio.Nursery | None = None
        self._around: Any = None

    async def __aenter__(self) -> Harness:
        """Start the first dispatcher. Raises InvalidConfigError unless time is virtual."""
        if not isinstance(trio.lowlevel.current_clock(), trio.testing.MockClock):
            raise InvalidConfigError(
                "a Harness needs virtual time: run under trio.testing.MockClock; "
                "with pytest-trio, the test itself has to take the fixture autojump_clock"
            )
        if abs(self.clock.now() - self.storage.now()) > CLOCKS_APART_S:
            raise InvalidConfigError(
                f"Harness: time begins at {self.clock.utc().isoformat()}, but the clock of {self.storage!r} shows "
                f"{from_seconds(self.storage.now()).isoformat()}; give that one the same Clock, or leave start and clock out"
            )
        self._around = trio.open_nursery()
        self._nursery = await self._around.__aenter__()
        try:
            await self.restart()
        except BaseException as exc:
            await self._leave(exc)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """End the dispatcher gracefully, if one runs; virtual time passes as its handlers need it."""
        if self._life is not None:
            if exc is None:
                self._life.dispatcher.close()
            else:
                self._life.scope.cancel()
        with _time_passing():
            return await self._leave(exc)

    async def _leave(self, exc: BaseException | None) -> bool:
        """Leave the nursery. An error of the block goes on bare, and not in the nursery's group."""
        if isinstance(exc, Exception):
            assert self._nursery is not None
            self._nursery.cancel_scope.cancel()
            await self._around.__aexit__(None, None, None)
            return False
        told = (None, None, None) if exc is None else (type(exc), exc, exc.__traceback__)
        return bool(await self._around.__aexit__(*told))

    # ---- life and death --------------------------------------------------

    @property
    def dispatcher(self) -> Dispatcher:
        """The dispatcher that runs now."""
        return self._alive.dispatcher

    @property
    def publisher(self) -> TaskQueuePublisher:
        """Its publisher."""
        return self.dispatcher.publisher

    @property
    def faults(self) -> FaultyStorage:
        """The storage as the running dispatcher sees it: tell it to fail, to wait, to be down."""
        return self._alive.view

    @property
    def _alive(self) -> _Life:
        if self._life is None:
            raise InvalidConfigError("no dispatcher runs; call restart() first")
        return self._life

    async def restart(self) -> Dispatcher:
        """Start a dispatcher over the storage; a running one is ended by `stop()` first. A checkpoint."""
        assert self._nursery is not None
        if self._life is not None:
            await self.stop()
        self._life = await self._nursery.start(self._live)
        return self.dispatcher

    async def stop(self) -> None:
        """End the running dispatcher gracefully, as SIGTERM would. A checkpoint.

        Virtual time passes as running handlers need it, up to the grace, under
        `mock_clock` too.
        """
        life = self._alive
        life.dispatcher.close()
        with _time_passing():
            await life.over.wait()

    async def crash(self) -> None:
        """End the running dispatcher as `kill -9` would, and wait until nothing of it is left.

        Nothing it does from now on reaches the storage, so what it had claimed
        stays claimed until the leases run out. Unlike in a dead process, the
        handlers' `finally` blocks do run. A checkpoint; time passes only as far as
        something that they shield waits for it.
        """
        life = self._alive
        life.view.kill()
        life.scope.cancel()
        with _time_passing():
            await life.over.wait()

    async def _live(self, task_status: trio.TaskStatus[_Life]) -> None:
        view = FaultyStorage(self.storage)
        over = trio.Event()
        try:
            with trio.CancelScope() as scope:

                def observe(event: TaskEvent) -> None:
                    if not view.dead:
                        self.events.append(event)

                options = self._options.copy()
                if options.get("observers") is None:
                    options["observers"] = ()
                # Without one, the storage's: two that both begin now are a moment apart.
                options["clock"] = self._clock
                dispatcher = Dispatcher(view, **options)
                dispatcher.observe(observe)
                made = self._setup(dispatcher)
                if inspect.isawaitable(made):
                    await made
                async with trio.open_nursery() as nursery:
                    await nursery.start(dispatcher.serve)
                    task_status.started(_Life(dispatcher, view, scope, over))
        finally:
            self._life = None
            over.set()

    # ---- time ------------------------------------------------------------

    async def advance(self, seconds: float) -> None:
        """Let virtual time pass, stopping at every moment something was waiting for. A checkpoint."""
        given = cast("object", seconds)
        if not isinstance(given, int | float) or not 0 <= given < inf:
            raise InvalidConfigError(f"advance: seconds must be at least 0 and finite, got {shown(given)}")
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        if clock.autojump_threshold < inf:
            await trio.sleep(seconds)
            await trio.testing.wait_all_tasks_blocked()
            return
        until = trio.current_time() + seconds
        while True:
            await trio.testing.wait_all_tasks_blocked()
            left = until - trio.current_time()
            if left <= 0:
                return
            clock.jump(min(left, max(trio.lowlevel.current_statistics().seconds_to_next_deadline, 0.0)))

    async def run_until_idle(self) -> None:
        """Run everything that is due, without letting time pass. A checkpoint."""
        await trio.testing.wait_all_tasks_blocked()

    # ---- looking ---------------------------------------------------------

    async def published(self, task_type: TaskType[P, R]) -> list[QueueTask[P, R]]:
        """Every stored task of a type, oldest first, as it stands."""
        return [task for _, task in await self._stored(task_type)]

    async def _stored(self, task_type: TaskType[P, R]) -> list[tuple[TaskRecord, QueueTask[P, R]]]:
        given = cast("object", task_type)
        if not isinstance(given, TaskType):
            raise InvalidConfigError(f"published: expected a TaskType, got {shown(given)}")
        publisher = TaskQueuePublisher(self.storage)
        found: list[tuple[TaskRecord, QueueTask[P, R]]] = []
        after: str | None = None
        where = Queues(task_type.queue) & Types(task_type.type)
        while True:
            page = await self.storage.find(where, limit=1_000, after=after)
            found += [
                (record, cast("QueueTask[P, R]", publisher.snapshot(record, _like(task_type))))
                for record in page.records
            ]
            after = page.cursor
            if after is None:
                return found

    async def assert_published(
        self,
        task_type: TaskType[P, R],
        payload: P | None = None,
        *,
        times: int | None = None,
        status: str | None = None,
    ) -> list[QueueTask[P, R]]:
        """The stored tasks of a type with this payload (None: any) and status (None: any).

        `status` is a word of `Statuses`, its aliases included: a retrying task
        is `retrying`, `pending`, and `later` or `due` at this moment. Raises
        AssertionError, which lists what there is, unless there are `times` of
        them, or, without `times`, at least one.
        """
        if times is not None:
            check_count("assert_published: times", times, 0)
        standing = All() if status is None else Statuses(status)  # which refuses a wrong one
        there = await self._stored(task_type)
        now = self.storage.now()
        found = [
            task
            for record, task in there
            if (payload is None or task.payload == payload) and matches(standing, record, now)
        ]
        if len(found) != times if times is not None else not found:
            wanted = f"{task_type.queue}/{task_type.type}" + ("" if payload is None else f" {payload!r}")
            wanted += "" if status is None else f", {status}"
            stored = "".join(f"\n  {task!r} {task.payload!r}{_error_of(task)}" for _, task in there) or " nothing"
            raise AssertionError(
                f"expected {'at least one' if times is None else times} of {wanted}, found {len(found)}; "
                f"stored of this type:{stored}"
            )
        return found


_standing: Final = WeakKeyDictionary[trio.testing.MockClock, tuple[int, float]]()
"""How many threads a clock waits for, and the threshold that it had before the first."""


@contextmanager
def _time_standing() -> Generator[None]:
    """Let virtual time wait for a thread, which it does not see, but not for one that waits itself."""
    clock = trio.lowlevel.current_clock()
    if not isinstance(clock, trio.testing.MockClock):
        yield
        return
    count, threshold = _standing.get(clock, (0, clock.autojump_threshold))
    _standing[clock] = count + 1, threshold
    clock.autojump_threshold = max(threshold, THREAD_S)
    try:
        yield
    finally:
        count, threshold = _standing.pop(clock)
        if count > 1:
            _standing[clock] = count - 1, threshold
        else:
            clock.autojump_threshold = threshold


@contextmanager
def _time_passing() -> Generator[None]:
    """Let virtual time jump on while nothing happens: who waits inside has nobody to advance it."""
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock)
    threshold = clock.autojump_threshold
    if threshold == inf:
        # Not at once: a handler or the storage may work in a thread, which the clock does not see.
        clock.autojump_threshold = QUIET_S
    try:
        yield
    finally:
        clock.autojump_threshold = threshold


@attrs.frozen
class _Life:
    """One dispatcher from its start to its end."""

    dispatcher: Dispatcher
    view: FaultyStorage
    scope: trio.CancelScope
    over: trio.Event


def _error_of(task: QueueTask[Any, Any]) -> str:
    """Its last error in full, which says what is wrong; the task's repr cuts it short."""
    return "" if task.last_error is None else f"\n    last_error: {task.last_error}"


def _like(task_type: TaskType[P, R]) -> QueueTask[Any, Any]:
    declared = cast("TaskType[Any, Any]", task_type)
    return QueueTask(queue=task_type.queue, type=task_type.type, payload=None, declared=declared)


# ---- one attempt, inline ---------------------------------------------------------

PERFORMED: Final = "performed"
"""The worker that `perform` is, and the id of a task that has none."""


@attrs.frozen
class Performed(Generic[R]):
    """One attempt made by `perform`: what the handler returned, and what it did through `run`."""

    result: R
    """As it would be stored: None for a type without a result class, whatever the handler returned."""
    published: Sequence[QueueTask[Any, Any]] = ()
    """What `run.publish` was given; it would have been stored with the success."""
    progress: Sequence[dict[str, Any]] = ()
    """Every `run.progress` that would have been kept: `fraction` and `message`."""


class MadeOf(Protocol[P, R]):
    """A task of exactly these classes, to a type checker, as `TaskOf` of the control is."""

    @property
    def declared(self) -> TaskType[P, R] | None:
        """Its task type."""
        ...


@overload
async def perform(
    handler: Callable[[QueueTask[P, R]], Awaitable[R]] | Callable[[QueueTask[P, R], Run], Awaitable[R]],
    task: MadeOf[P, R],
    *,
    attempt: int = 1,
    last_error: str | None = None,
    codec: Codec | None = None,
) -> Performed[R]: ...


@overload
async def perform(
    handler: Callable[[QueueTask[P, R]], R] | Callable[[QueueTask[P, R], Run], R],
    task: MadeOf[P, R],
    *,
    attempt: int = 1,
    last_error: str | None = None,
    codec: Codec | None = None,
) -> Performed[R]: ...


async def perform(
    handler: Callable[..., Any],
    task: Any,
    *,
    attempt: int = 1,
    last_error: str | None = None,
    codec: Codec | None = None,
) -> Performed[Any]:
    """Make one attempt of `task` here and now, and raise what the handler raises.

    The payload passes through its stored form and back, the result is checked
    as it would be; there is no queue, no retry and no timeout but the task's
    own, which raises trio.TooSlowError. It needs no virtual time. A sync
    handler runs in a thread, as it would. `attempt`, 1 for the first, and `last_error`
    are what the task is to carry; it was created and is started at this moment of the
    machine's. A checkpoint. Raises what publishing the task would raise for a
    bad one, and InvalidConfigError for an `attempt` that there cannot be.
    """
    declared: TaskType[Any, Any] | None = task.declared if isinstance(cast("object", task), QueueTask) else None
    if declared is None:
        raise InvalidConfigError("perform: make the task by calling its TaskType")
    check_count("perform: attempt", attempt, 1)
    check_kind("codec", codec, Codec)
    codec = codec if codec is not None else Codec()
    codec.check_task(task)
    where = f"task {task.queue}/{task.type}"
    data, _ = codec.encode(task.payload, declared.payload, where)
    entry = bind(declared, handler)
    now = Clock().now()
    claim = Claim(
        id=task.id or PERFORMED,
        epoch=attempt,
        queue=task.queue,
        type=task.type,
        version=declared.version,
        payload=data,
        key=task.key,
        headers=task.headers,
        priority=int(task.priority),
        tags=task.tags,
        timeout=task.timeout,
        max_retry=task.max_retry,
        attempt=attempt,
        limit=task.max_retry if task.max_retry is not None else 0,
        created_at=now,
        available_at=now if task.available_at is None else to_seconds(task.available_at),
        started_at=now,
        last_error=last_error,
        cron=None,
    )
    published: list[QueueTask[Any, Any]] = []
    progress: list[dict[str, Any]] = []

    async def prepare(spawned: QueueTask[Any, Any]) -> NewTask:
        await trio.lowlevel.checkpoint()
        new = _prepared(spawned, codec)
        published.append(spawned)
        return new

    async def report(_: tuple[str, int], kept: bytes) -> bool:
        await trio.lowlevel.checkpoint()
        progress.append(json.loads(kept))
        return True

    running = task_for_handler(claim, codec.decode(data, declared.payload), entry, PERFORMED)
    await trio.lowlevel.checkpoint()
    with trio.fail_after(task.timeout if task.timeout is not None else inf) as scope:
        run = Run(claim, scope, prepare, report)
        arguments = (running, run) if entry.wants_run else (running,)
        value: Any
        if entry.is_async:
            value = entry.function(*arguments)
        else:  # in a thread, from which it may call back
            with _time_standing():
                [value] = await trio.to_thread.run_sync(lambda: [entry.function(*arguments)])
        if inspect.isawaitable(value):
            value = await value
        late = scope.cancel_called
        run.end()
        with trio.CancelScope(shield=True):
            await run.report()
    if late:  # it took no notice, or could not
        raise trio.TooSlowError
    if declared.result is not None:
        _, value = codec.encode(
            value, declared.result, f"result of {where}", limit=codec.limits.result_bytes
        )
    elif value is not None:
        check_no_result(value, f"result of {where}")
        value = None  # as it is stored
    return Performed(value, published, progress)


def _prepared(task: QueueTask[Any, Any], codec: Codec) -> NewTask:
    codec.check_task(task)
    if task.declared is None:
        raise InvalidConfigError("run.publish under perform: make the task by calling its TaskType")
    payload, _ = codec.encode(task.payload, task.declared.payload, f"task {task.queue}/{task.type}")
    return NewTask(id=task.id or PERFORMED, queue=task.queue, type=task.type, payload=payload)


class Scripted(Generic[P, R]):
    """A handler that follows a script: each attempt takes the next step, the last one for ever.

    A step is an exception or a class of one to raise, a function of the task to call (and await),
    or anything else, to return::

        handler = Scripted(ConnectionError("busy"), lambda task: trio.sleep(90), Receipt("done"))

    `seen` has the task of every attempt.
    """

    def __init__(self, *steps: Callable[[QueueTask[Any, Any]], object] | object) -> None:
        self._steps: list[Any] = list(steps) if steps else [None]
        self.seen: list[QueueTask[P, R]] = []

    async def __call__(self, task: QueueTask[P, R]) -> R:
        """Take the next step. A checkpoint."""
        self.seen.append(task)
        await trio.lowlevel.checkpoint()
        step = self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]
        if _is_raised(step):
            raise step.with_traceback(None) if isinstance(step, BaseException) else step
        if callable(step):
            step = step(task)
            if inspect.isawaitable(step):
                step = await step
        return cast("R", step)


def _is_raised(step: object) -> bool:
    return isinstance(step, BaseException) or (isinstance(step, type) and issubclass(step, BaseException))
