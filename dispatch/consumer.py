"""Consuming: queues and handlers registered, and a nursery of actors per queue."""

from __future__ import annotations

import contextvars
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from threading import get_ident
from typing import Any, Final, TypeVar, cast, overload

import attrs
import trio

from dispatch.actors import SETTLE_DEADLINE_S, QueueActors, QueueStatistics
from dispatch.checks import check_kind, check_names, check_within, shown
from dispatch.codec import Codec
from dispatch.errors import (
    ClosedError,
    InvalidConfigError,
    InvalidQueueNameError,
    InvalidTaskHandlerError,
    InvalidTaskTypeError,
    QueueNotRegisteredError,
    StorageError,
)
from dispatch.events import Observers
from dispatch.execution import Executor, Stop
from dispatch.handlers import Middleware, bind, check_middleware, payload_class
from dispatch.pruning import Pruning
from dispatch.publisher import TaskQueuePublisher, inside_handler
from dispatch.records import TaskRecord
from dispatch.registry import Registry
from dispatch.run import Run
from dispatch.storage.protocol import Storage, check_storage
from dispatch.storage.query import PruneSpec
from dispatch.storage.texts import storable
from dispatch.tasks import QueueTask, TaskQueueConfig, TaskType, check_name
from dispatch.threads import ASKED_S, check_thread
from dispatch.unhandled import Unhandled
from dispatch.upkeep import Upkeep

__all__ = ["ShutdownReport", "TaskQueueConsumer"]

P = TypeVar("P")
R = TypeVar("R")

log: Final = logging.getLogger("dispatch.consumer")


@attrs.frozen(kw_only=True)
class ShutdownReport:
    """What a shutdown met: the ids of tasks that were still running when the grace ended.

    `interrupted` were cancelled and handed back, with their attempt;
    `too_late` were cancelled, too, and ended when their lease was over: that is a
    failed attempt;
    `abandoned` are sync handlers that did not end within a second of being
    asked: their threads run on. When its lease ends, such a run counts as a
    failed attempt; without a retry left (the default) it is a dead letter.
    `unwritten` are tasks whose run has ended, or was handed back, and the storage
    was not there to be told: their leases decide in the same way.
    """

    interrupted: tuple[str, ...] = ()
    too_late: tuple[str, ...] = ()
    abandoned: tuple[str, ...] = ()
    unwritten: tuple[str, ...] = ()


class TaskQueueConsumer:
    """Runs the tasks of registered queues with registered handlers. Enough for a worker process.

    Both `register_` calls are synchronous and possible before and while it
    runs; while it does, they and `close` raise InvalidConfigError (1012) in any
    thread but that of its trio run. Alone over a storage::

        consumer = TaskQueueConsumer(storage)
        consumer.register_queue("email", TaskQueueConfig(concurrency=4))
        consumer.register_handler(WELCOME, send_welcome)
        async with trio.open_nursery() as nursery:
            await nursery.start(consumer.run)

    - `worker`: this consumer's id, unique by default.
    - `queues`: consume only these of the queues registered here; None is all.
      One that was never registered is named in the log at the shutdown.
    - `tags`: take only tasks whose tags are all among these; None takes all.
    - `lease`: seconds a claim lasts unless renewed, which happens at a third of it.
    - `grace`: seconds that running handlers get at a shutdown.
    - `middleware`: async `(task, run, call_next)` functions around every attempt.
    - `prune`: which ended tasks to delete, at the start and every `prune_every` seconds.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        worker: str | None = None,
        queues: Sequence[str] | None = None,
        tags: Sequence[str] | None = None,
        lease: float = 30.0,
        grace: float = 10.0,
        middleware: Sequence[Middleware] = (),
        codec: Codec | None = None,
        registry: Registry | None = None,
        observers: Observers | None = None,
        publisher: TaskQueuePublisher | None = None,
        prune: Sequence[PruneSpec] = (),
        prune_every: float = 600.0,
    ) -> None:
        check_storage(storage)
        check_kind("codec", codec, Codec)
        check_kind("registry", registry, Registry)
        check_kind("observers", observers, Observers)
        check_kind("publisher", publisher, TaskQueuePublisher)
        check_within("lease", lease, 0.05, 86_400)
        check_within("grace", grace, 0, 86_400)
        if worker is not None and not (isinstance(worker, str) and worker):
            raise InvalidConfigError(f"worker must be a name, or None for one made up, got {shown(worker)}")
        if worker is not None and not storable(worker):
            raise InvalidConfigError(f"worker must have no NUL and no lone surrogate, got {shown(worker)}")
        self._storage = storage
        self.worker: str = worker if worker is not None else _worker_id()
        self._queues = None if queues is None else check_names("queues", queues)
        self._tags = None if tags is None else check_names("tags", tags)
        self._lease = lease
        self._grace = grace
        self._codec = codec if codec is not None else Codec()
        self._registry = registry if registry is not None else Registry()
        self._registry.consumed, self._registry.tags = self._queues, self._tags
        self._observers = observers if observers is not None else Observers()
        self._middleware = check_middleware(middleware)
        self._publisher = (
            publisher
            if publisher is not None
            else TaskQueuePublisher(
                storage, codec=self._codec, registry=self._registry, observers=self._observers
            )
        )
        self._actors: dict[str, QueueActors] = {}
        self._upkeep = Upkeep(
            storage, self.worker, lease, self._actors.values, self._observers
        )
        self._pruning = Pruning(storage, prune, prune_every)
        self._unhandled = Unhandled(storage, self._registry, self._actors.values)
        self._nursery: trio.Nursery | None = None
        self._thread: int | None = None
        """Where it runs, while it does."""
        self._closing = trio.Event()
        self._base: contextvars.Context | None = None
        self.report: ShutdownReport = ShutdownReport()
        """What the last shutdown met."""

    # -- registering ----------------------------------------------------------

    def register_queue(self, name: str, config: TaskQueueConfig | None = None) -> None:
        """Register a queue with its settings.

        What they say for all processes (`keyed`, `on_retry`, `max_waiting`, `overflow`,
        `max_running`, `rate_limit`) is stored, and the last process to say it decides.
        Without them, None, Go's defaults are those of this process alone: a queue that
        is stored keeps what others have said of it, as where tasks are only published.

        The identical registration is a no-op; a different one raises
        QueueConfigConflictError (1005) and the old stays. Raises also
        InvalidQueueNameError (1006) and ClosedError (1013).
        """
        check_thread(self, self._thread, "run_sync(consumer.register_queue, name, config)")
        self._check_open(lambda: f"register_queue: queue {shown(name)} was not registered: ")
        check_name(name, "queue name", InvalidQueueNameError)
        if not isinstance(config, TaskQueueConfig | None):
            raise InvalidConfigError(
                f"queue {name!r}: config must be a TaskQueueConfig, got {type(config).__name__}"
            )
        if self._registry.add_queue(name, config):
            self._start(name, self._registry.configs[name])

    @overload
    def register_handler(
        self,
        task_type: TaskType[P, R],
        handler: Callable[[QueueTask[P, R]], Awaitable[R]]
        | Callable[[QueueTask[P, R], Run], Awaitable[R]],
        /,
    ) -> None: ...

    @overload
    def register_handler(
        self,
        task_type: TaskType[P, R],
        handler: Callable[[QueueTask[P, R]], R] | Callable[[QueueTask[P, R], Run], R],
        /,
    ) -> None: ...

    @overload
    def register_handler(
        self, queue: str, task_type: str, handler: Callable[..., Any], /
    ) -> None: ...

    def register_handler(self, *arguments: Any) -> None:
        """Register the one handler of a task type.

        `register_handler(task_type, handler)`, or Go's `register_handler(queue,
        type, handler)`, whose payload class is then read from the handler's
        annotation `QueueTask[Welcome]`, and the result's from what it returns.

        An async handler of `(task)` or `(task, run)` runs in an actor; a sync
        one in a thread of its queue's own. What a sync one returns is awaited
        in the actor if it can be: so a plain function around an async handler
        does what it seems to, for the price of a thread.

        Checked in Go's order: queue name (1006), type (1008), handler (1009),
        whether the queue is registered here (1007). A second handler of a type
        is error 1009.
        """
        check_thread(self, self._thread, "run_sync(consumer.register_handler, task_type, handler)")
        self._check_open(lambda: f"register_handler: {_which(arguments)} was not registered: ")
        task_type, handler = self._declared(arguments)
        entry = bind(task_type, handler)
        if task_type.queue not in self._registry.configs:
            known = ", ".join(sorted(self._registry.configs)) or "none"
            raise QueueNotRegisteredError(
                f"queue {task_type.queue!r} is not registered here; registered: {known}. "
                f"Call register_queue({task_type.queue!r}) first"
            )
        earlier = self._registry.handlers.get(task_type.address)
        if earlier is not None:
            raise InvalidTaskHandlerError(
                f"handler of {task_type.queue}/{task_type.type}: {earlier.name} is registered already; "
                "a task type has one handler"
            )
        where = f"task type {task_type.queue}/{task_type.type}"
        self._codec.check(task_type.payload, f"{where}: payload", InvalidTaskTypeError)
        if task_type.result is not None:
            self._codec.check(task_type.result, f"{where}: result", InvalidTaskTypeError)
        self._registry.handle(entry)
        actors = self._actors.get(task_type.queue)
        if actors is not None:
            if not actors.consumes:
                self._upkeep.attend()
            actors.handle(entry)

    def _declared(self, arguments: tuple[Any, ...]) -> tuple[TaskType[Any, Any], object]:
        match arguments:
            case (TaskType(), handler):
                return cast("TaskType[Any, Any]", arguments[0]), handler
            case (queue, type_name, handler):
                check_name(queue, "queue name", InvalidQueueNameError)
                check_name(type_name, f"queue {queue!r}: task type", InvalidTaskTypeError)
                payload, result = payload_class(queue, type_name, handler)
                if result is None:
                    return TaskType(queue, type_name, payload), handler
                return TaskType(queue, type_name, payload, result), handler
            case _:
                kinds = [*map(_kind, arguments)]
                turned = "; turn them round" if kinds == ["a function", "a TaskType"] else ""
                raise InvalidTaskHandlerError(
                    "register_handler takes (task_type, handler) or (queue, type, handler), "
                    f"got ({', '.join(kinds)}){turned}"
                )

    def prune_on_schedule(self, *specs: PruneSpec, every: float = 600.0) -> None:
        """Delete ended tasks as `specs` say, at the start and every so many seconds: as the option `prune` does.

        In place of what was given there, before it runs; so a setup for
        `dispatch run` can say so. Raises InvalidConfigError (1012), ClosedError
        (1013) once it runs.
        """
        pruning = Pruning(self._storage, specs, every)
        if self._base is not None:
            raise ClosedError("consumer.prune_on_schedule: it runs already; control.prune prunes now")
        self._pruning = pruning

    # -- running --------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until `close()` and then the end of its grace; started once orphans were looked after.

        After `close()`, claiming stops everywhere at once, unstarted claims are
        handed back, running handlers may finish until the grace ends; then they
        are cancelled and handed back with their attempt. A sync handler is asked
        to end (`trio.from_thread.check_cancelled()` raises in it) and has one
        second for it; then its thread is abandoned, and its lease decides.
        `report` says which.
        Cancelled from outside: the same with no grace. A handler that swallows
        its cancellation for ever keeps this from returning, and is named in
        the log every 5 s.

        Raises what the machinery itself fails with, a handler's error never, and
        ClosedError (1013) a second time, while it runs or afterwards.
        """
        if self._thread is not None:  # and not the nursery, which comes after the first await
            raise ClosedError("this consumer runs already")
        self._check_open(lambda: "run: ")
        self._thread = get_ident()
        base = contextvars.copy_context()
        base.run(inside_handler.set, True)
        self._base = base
        refused: StorageError | ClosedError | None = None
        wound_down = False
        lingering = trio.CancelScope(shield=True)
        async with trio.open_nursery() as keepers:
            try:
                try:
                    await self._registry.declare(self._storage)
                    await keepers.start(self._keep, keepers, lingering)
                except (StorageError, ClosedError) as exc:  # raised on below, bare rather than in the nursery's group
                    refused = exc
                else:
                    keepers.start_soon(self._unhandled.run)
                    if self._pruning.specs:
                        keepers.start_soon(self._pruning.run)
                    async with trio.open_nursery() as nursery:
                        self._nursery = nursery
                        for name, config in self._registry.configs.items():
                            self._start(name, config)
                        task_status.started()
                        await self._closing.wait()
                        await self._wind_down()
                        wound_down = True
            finally:
                self._closing.set()
                self._nursery = self._thread = None
                lingering.cancel()  # first: it is shielded, and what follows may raise
                self._report(in_time=wound_down)
                keepers.cancel_scope.cancel()
                with trio.move_on_after(1, shield=True):
                    try:
                        await self._storage.forget(self.worker)
                    except (StorageError, ClosedError) as exc:
                        log.info("worker %s stays listed until its record is old: %s", self.worker, exc)
        if refused is not None:
            raise refused

    async def _keep(
        self, keepers: trio.Nursery, lingering: trio.CancelScope, task_status: trio.TaskStatus[None]
    ) -> None:
        try:
            await self._upkeep.run(task_status)
        finally:
            if self._nursery is not None:  # cancelled from outside, as the handlers are: one may swallow it
                keepers.start_soon(self._upkeep.name_lingering, lingering)

    def close(self) -> None:
        """Begin the shutdown; `run()` returns when it is done. Harmless to repeat."""
        check_thread(self, self._thread, "run_sync(consumer.close)")
        self._closing.set()

    def _start(self, name: str, config: TaskQueueConfig) -> None:
        """Start a queue's actors, if running and not started."""
        if self._nursery is None or self._base is None or name in self._actors:
            return
        if self._queues is not None and name not in self._queues:
            return
        executor = Executor(
            codec=self._codec,
            policy=config.policy,
            limiter=trio.CapacityLimiter(config.concurrency),
            prepare=self._publisher.prepare_spawned,
            report=self._storage.progress,
            settle_in=self._storage.settle_in,
            settle_in_async=self._storage.settle_in_async,
            worker=self.worker,
            middleware=(*self._observers.offered("middleware"), *self._middleware),
            base=self._base,
        )
        actors = QueueActors(
            name,
            config,
            self._storage,
            self._registry,
            executor,
            self._observers,
            self.worker,
            self._lease,
            self._tags,
            self._upkeep.claimed,
            self._upkeep.doubt,
        )
        for (queue, _), entry in self._registry.handlers.items():
            if queue == name:
                actors.handle(entry)
        self._actors[name] = actors
        self._upkeep.attend()
        self._nursery.start_soon(actors.run, name=f"dispatch queue {name}")

    async def _wind_down(self) -> None:
        """Stop claiming, give running handlers their grace, cancel what is left."""
        for actors in self._actors.values():
            actors.stop()
        assert self._nursery is not None
        deadline = trio.current_time() + self._grace
        with trio.move_on_at(deadline):
            for actors in self._actors.values():
                await actors.finished()
        deadline = trio.current_time() + SETTLE_DEADLINE_S
        for actors in self._actors.values():
            actors.interrupt(Stop.GRACE)
        try:
            with trio.move_on_after(ASKED_S):
                for actors in self._actors.values():
                    await actors.threads_ended()
        finally:
            for actors in self._actors.values():
                actors.abandon()
            self._name_unregistered()
        # A storage that is away must not keep the block open: its leases will decide.
        with trio.move_on_at(deadline):
            for actors in self._actors.values():
                await actors.finished()
        for actors in self._actors.values():
            actors.give_up()

    def _report(self, *, in_time: bool) -> None:
        every = self._actors.values()
        unwritten = tuple(id_ for actors in every for id_ in actors.unwritten)
        interrupted = tuple(id_ for actors in every for id_ in actors.interrupted if id_ not in unwritten)
        abandoned = tuple(id_ for actors in every for id_ in actors.abandoned)
        too_late = tuple(id_ for actors in every for id_ in actors.too_late)
        self.report = ShutdownReport(
            interrupted=interrupted, too_late=too_late, abandoned=abandoned, unwritten=unwritten
        )
        if interrupted:
            log.warning(
                "shutdown: %s with %d tasks running; handed back: %s",
                f"the grace of {self._grace:g} s ended" if in_time else "this was cancelled",
                len(interrupted),
                ", ".join(interrupted[:20]),
            )
        if too_late:
            log.warning(
                "shutdown: %d tasks were cancelled and did not end before their leases did; "
                "that counts as a failed attempt: %s",
                len(too_late),
                ", ".join(too_late[:20]),
            )
        if abandoned:
            log.warning(
                "shutdown: %d sync handlers still run in threads %g s after they were asked to end, "
                "and are abandoned. When their leases end that counts as a failed attempt: "
                "their tasks are run again if a retry is left, and are dead letters if not: %s",
                len(abandoned),
                ASKED_S,
                ", ".join(abandoned[:20]),
            )

    def _name_unregistered(self) -> None:
        # At the end, because until then a queue may still be registered.
        unknown = sorted((self._queues or frozenset()) - self._registry.configs.keys())
        if unknown:
            log.warning(
                "queues: %s never registered here, so nothing of that was consumed; registered: %s",
                f"{', '.join(map(repr, unknown))} {'was' if len(unknown) == 1 else 'were'}",
                ", ".join(sorted(self._registry.configs)) or "none",
            )

    def _check_open(self, what: Callable[[], str]) -> None:
        if self._closing.is_set():
            raise ClosedError(f"{what()}this consumer is closed; make another one")

    # -- looking --------------------------------------------------------------

    def statistics(self) -> dict[str, QueueStatistics]:
        """The queues run here, by name, at this instant."""
        return {name: actors.statistics() for name, actors in self._actors.items()}

    @property
    def queue_names(self) -> tuple[str, ...]:
        """The queues registered here that are consumed here."""
        chosen = self._queues
        return tuple(name for name in self._registry.configs if chosen is None or name in chosen)

    @property
    def addresses(self) -> tuple[tuple[str, str], ...]:
        """The queue and the type of every handler registered here whose queue is consumed here."""
        chosen = self._queues
        return tuple(each for each in self._registry.handlers if chosen is None or each[0] in chosen)

    def takes(self, task: TaskRecord) -> bool:
        """Whether its handler is here, its payload version is known, and its tags are this worker's."""
        entry = self._registry.handlers.get((task.queue, task.type))
        return (
            entry is not None
            and task.version <= entry.task_type.version
            and (self._tags is None or self._tags.issuperset(task.tags))
        )

    @property
    def busy(self) -> bool:
        """Whether anything is claimed, running or unsettled here."""
        return any(actors.busy for actors in self._actors.values())

    def __repr__(self) -> str:
        running = sum(actors.running for actors in self._actors.values())
        state = "closed" if self._closing.is_set() else "running" if self._nursery else "not running"
        return f"<TaskQueueConsumer {self.worker} {state} queues={len(self._registry.configs)} tasks={running}>"


def _which(arguments: tuple[Any, ...]) -> str:
    """Whose handler the arguments of `register_handler` are, in a message."""
    match arguments:
        case (TaskType(queue=queue, type=type_name), *_):
            return f"the handler of {queue}/{type_name}"
        case (str() as queue, str() as type_name, *_):
            return f"the handler of {queue}/{type_name}"
        case _:
            return "the handler"


def _kind(argument: object) -> str:
    """What an argument of `register_handler` is, in a message."""
    if isinstance(argument, TaskType):
        return "a TaskType"
    return "a function" if callable(argument) else shown(argument)


def _worker_id() -> str:
    """Host and process for people, and random digits, because pids repeat and hosts are cloned."""
    host = "".join(char for char in socket.gethostname() if char.isalnum() or char in "-.")[:64]
    return f"{host}:{os.getpid()}:{secrets.token_hex(4)}"
