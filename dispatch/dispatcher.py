"""The composition root: publisher, consumer, cron, pool and control over one storage.

The only file that knows everyone. Order of shutdown: cron fires no more, the
consumer claims no more, running work gets one grace between them, the publisher
closes last, so that handlers may publish to their end.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from threading import get_ident
from typing import Final, TypedDict, Unpack

import attrs
import trio

from dispatch.actors import QueueStatistics
from dispatch.bell import Bell
from dispatch.checks import check_kind, shown
from dispatch.clock import Clock
from dispatch.codec import Codec
from dispatch.consumer import ShutdownReport, TaskQueueConsumer
from dispatch.control import TaskQueueControl
from dispatch.cron.dispatcher import CronTaskDispatcher
from dispatch.cron.entries import CronEntry
from dispatch.errors import ClosedError, DispatchError, InvalidConfigError
from dispatch.events import Observer, Observers, TaskEvent
from dispatch.failures import interrupt_in
from dispatch.handlers import Middleware
from dispatch.observe.logging import LogObserver
from dispatch.pool import PoolStatistics, TaskDispatcher
from dispatch.publisher import TaskQueuePublisher
from dispatch.registry import Registry
from dispatch.storage.memory import MemoryStorage
from dispatch.storage.opening import IN_MEMORY, open_storage
from dispatch.storage.protocol import Storage, Topic, TopicKind, check_storage
from dispatch.storage.query import All, AnyOf, Order, PruneSpec, Queues, Statuses, Types, Where
from dispatch.tasks import TaskStatus
from dispatch.threads import check_thread

__all__ = ["Dispatcher", "DispatcherOptions", "DispatcherStatistics", "EventStream", "open_dispatcher"]

log: Final = logging.getLogger("dispatch.dispatcher")

STREAM_BUFFER: Final = 1_024
REST: Final = 4
"""A drain rests this many times as long as it looked, and at most `REST_S` seconds."""
REST_S: Final = 0.5
LOST_SHOWN: Final = 20
"""Of so many queues and statuses, the fullest, it is said what is lost of each."""


@attrs.frozen(kw_only=True)
class DispatcherStatistics:
    """A dispatcher at one instant: its queues by name, and its pool."""

    worker: str
    running: int
    queues: Mapping[str, QueueStatistics]
    pool: PoolStatistics


class EventStream:
    """The events from the moment of subscribing on; `async for event in stream`.

    A reader that falls behind by more than 1,024 events loses the oldest, and
    `lost` counts them: the dispatcher never waits for a reader. The iteration
    ends when the dispatcher has ended and the last event was read. One reader at a
    time: for a second one, subscribe again.
    """

    def __init__(self, size: int = STREAM_BUFFER) -> None:
        self._events: deque[TaskEvent] = deque(maxlen=size)
        self._bell = Bell()
        self._ended = False
        self.lost: int = 0

    def __call__(self, event: TaskEvent) -> None:
        if len(self._events) == self._events.maxlen:
            self.lost += 1
        self._events.append(event)
        self._bell.ring()

    def end(self) -> None:
        """Say that no event will follow. Harmless to repeat."""
        self._ended = True
        self._bell.ring()

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> TaskEvent:
        """The next event, waiting for one. A checkpoint; a cancelled wait loses none."""
        while not self._events and not self._ended:
            await self._bell.wait()
        await trio.lowlevel.checkpoint()
        if not self._events:
            raise StopAsyncIteration
        return self._events.popleft()

    def __repr__(self) -> str:
        return f"<EventStream waiting={len(self._events)} lost={self.lost}>"


class Dispatcher:
    """Publisher, consumer, cron and pool over one storage, as one thing to run.

    `async with open_dispatcher(...)` is the usual way in. Where a framework
    owns the nursery, make one at once, register, and start it there::

        dispatcher = Dispatcher()
        dispatcher.consumer.register_queue("email")
        await nursery.start(dispatcher.serve)
        ...
        dispatcher.close()          # serve() returns after the graceful end

    - `storage`: None for a fresh in-memory one, or any `Storage`.
    - `worker`, `queues`, `tags`, `lease`, `grace`, `middleware`, `prune`,
      `prune_every`: see `TaskQueueConsumer`; the one grace is the pool's and cron's, too.
    - `observers`: functions called with every `TaskEvent`; by default one that
      writes log lines. Pass your own to replace it, `()` for none.
    - `cron`: the cron tasks that belong to the code, as `CronEntry` values.
    - `clock`: wall time for cron and for the in-memory storage.
    """

    publisher: TaskQueuePublisher
    consumer: TaskQueueConsumer
    cron: CronTaskDispatcher
    pool: TaskDispatcher
    control: TaskQueueControl
    storage: Storage

    def __init__(
        self,
        storage: Storage | None = None,
        *,
        worker: str | None = None,
        queues: Sequence[str] | None = None,
        tags: Sequence[str] | None = None,
        lease: float = 30.0,
        grace: float = 10.0,
        middleware: Sequence[Middleware] = (),
        observers: Sequence[Observer] | None = None,
        codec: Codec | None = None,
        cron: Sequence[CronEntry] = (),
        clock: Clock | None = None,
        pool_size: int = 1_024,
        prune: Sequence[PruneSpec] = (),
        prune_every: float = 600.0,
    ) -> None:
        if storage is not None:
            check_storage(storage, " or None for an in-memory one", "is for open_dispatcher")
        check_kind("codec", codec, Codec)
        check_kind("clock", clock, Clock)
        self._owns_storage = storage is None
        self.storage = storage if storage is not None else MemoryStorage(clock or Clock())
        self._registry = Registry()
        self._observers = Observers((LogObserver(),) if observers is None else observers)
        codec = codec if codec is not None else Codec()
        self.publisher = TaskQueuePublisher(
            self.storage, codec=codec, registry=self._registry, observers=self._observers
        )
        self.consumer = TaskQueueConsumer(
            self.storage,
            worker=worker,
            queues=queues,
            tags=tags,
            lease=lease,
            grace=grace,
            middleware=middleware,
            codec=codec,
            registry=self._registry,
            observers=self._observers,
            publisher=self.publisher,
            prune=prune,
            prune_every=prune_every,
        )
        self.cron = CronTaskDispatcher(
            self.storage, publisher=self.publisher, clock=clock, grace=grace, declared=cron
        )
        self.pool = TaskDispatcher(pool_size, grace=grace)
        self.control = TaskQueueControl(self.storage, publisher=self.publisher)
        self._closing = trio.Event()
        self._thread: int | None = None
        """Where it is served, while it is."""
        self._served = False
        self._ended = False
        self._at_end: set[Callable[[], None]] = set()

    # -- running --------------------------------------------------------------

    async def serve(self, *, task_status: trio.TaskStatus[Dispatcher] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until `close()`, then end gracefully; for `nursery.start`.

        Started once orphans are looked after and cron is loaded. Cancelled from
        outside, it ends at once: running handlers are cancelled and handed
        back. Raises what the machinery fails with, never a handler's error.
        """
        if self._served:
            raise ClosedError("this dispatcher was run already; make another")
        self._served = True
        self._thread = get_ident()
        refused: DispatchError | None = None
        try:
            async with trio.open_nursery() as nursery:
                try:
                    await nursery.start(self.consumer.run)
                    await nursery.start(self.cron.run)
                    await nursery.start(self.pool.run_pool)
                except DispatchError as exc:  # raised on below, bare rather than in the nursery's group
                    refused = exc
                    nursery.cancel_scope.cancel()
                else:
                    task_status.started(self)
                    await self._closing.wait()
                    self.cron.close()
                    self.pool.close()
                    self.consumer.close()
            if refused is not None:
                raise refused
        finally:
            self._closing.set()
            self._thread = None
            self._ended = True
            self.publisher.end()
            for wake in self._at_end:
                wake()
            if self._owns_storage and not self.storage.durable:
                with trio.CancelScope(shield=True):
                    await self._say_what_is_lost()

    def close(self) -> None:
        """Begin the graceful end; `serve()` returns when it is done. Harmless to repeat.

        Another thread than that of the trio run, as a sync handler's, goes through
        `trio.from_thread.run_sync(dispatcher.close)`; else InvalidConfigError (1012).
        """
        check_thread(self, self._thread, "run_sync(dispatcher.close)")
        self._closing.set()

    async def _say_what_is_lost(self) -> None:
        counts = await self.storage.count(
            All(Statuses("pending", "running", "held")), by=("queue", "status")
        )
        if counts:
            most = sorted(sorted(counts, key=lambda group: counts[group], reverse=True)[:LOST_SHOWN])
            named = [f"{counts[queue, status]} {queue}/{status}" for queue, status in most]
            rest = sum(counts.values()) - sum(counts[group] for group in most)
            what = ", ".join(named + [f"{rest} in other queues"] * (rest > 0))
            log.warning(
                "the in-memory storage ends with %d unfinished tasks: %s. "
                "A durable storage would have kept them",
                sum(counts.values()),
                what,
            )

    async def drain(self) -> None:
        """Wait until the queues registered here hold no task that can still run.

        Delayed, retrying and elsewhere running tasks are waited for; held ones,
        those of paused queues, of types nobody here handles, of a newer payload
        version or with tags that are not among this worker's, and cron's future
        ticks are not. It stops nothing; bound it with a cancel scope. From inside
        a handler it would wait for itself. A checkpoint. Raises ClosedError (1013)
        if there are such tasks when this dispatcher has ended.
        """
        bell = Bell()
        end = trio.Event()
        watched: set[str] = set()
        with self._woken_at_end(bell.ring), self._woken_at_end(end.set), ExitStack() as watching:
            watching.enter_context(self.storage.watch(bell, Topic(TopicKind.CONTROL)))
            # Only what is stored counts: a run here that lost its task holds nobody up,
            # and its end, which changes nothing, rings no bell.
            while True:
                new = {*self.consumer.queue_names} - watched  # one may be registered while this waits
                if new:
                    watched |= new
                    kinds = (TopicKind.QUEUE, TopicKind.DONE)
                    watching.enter_context(
                        self.storage.watch(bell, *(Topic(kind, name) for kind in kinds for name in new))
                    )
                last = self._ended  # read before the look, which may take until after the end
                began = trio.current_time()
                if not await self._unfinished(bell):
                    break
                if last:
                    raise ClosedError("drain: this dispatcher has ended, and left tasks that can still run")
                # Every end rings; looks that took most of the time would slow down what is waited for.
                with trio.move_on_after(min(REST * (trio.current_time() - began), REST_S)):
                    await end.wait()  # after which the storage may be closed before long
                await bell.wait()
        await trio.lowlevel.checkpoint()

    @contextmanager
    def _woken_at_end(self, wake: Callable[[], None]) -> Generator[None]:
        """Call `wake` once this dispatcher has ended, if the block is still open then."""
        self._at_end.add(wake)
        try:
            yield
        finally:
            self._at_end.discard(wake)

    async def _unfinished(self, bell: Bell) -> bool:
        """Whether a task is stored that can still run here, or may have come while looking."""
        await self._registry.declare(self.storage)
        paused = {record.name for record in await self.storage.queues() if record.paused}
        unpaused = {*self.consumer.queue_names} - paused
        here = [address for address in self._registry.handlers if address[0] in unpaused]
        # Three conditions, however many queues there are: a tree of databases has a bound.
        waiting = All(
            Queues(*(queue for queue, _ in here)), Types(*(name for _, name in here)), Statuses("pending")
        )
        running = All(Queues(*self.consumer.queue_names), Statuses("running"))
        left = AnyOf(waiting, running)
        if not sum((await self.storage.count(left, bound=1)).values()):
            return False
        # Whether this worker may take it is asked of each task, page after page; what comes meanwhile rings.
        return await self._any_running_or_takeable(left) or bell.is_rung

    async def _any_running_or_takeable(self, left: Where) -> bool:
        # In one walk, which meets each task once, whatever it is by then: between a look at those
        # that wait and one at those that run, a claim and a failed attempt hide a task from both.
        after, limit = None, 1  # mostly the first one looked at decides
        while True:
            page = await self.storage.find(left, order=Order.NEWEST, limit=limit, after=after)
            if any(each.status is TaskStatus.RUNNING or self.consumer.takes(each) for each in page.records):
                return True
            if page.cursor is None:
                return False
            after, limit = page.cursor, 100

    # -- looking --------------------------------------------------------------

    @asynccontextmanager
    async def subscribe(self) -> AsyncGenerator[EventStream]:
        """The stream of events while the block is open: `async with d.subscribe() as events`.

        It ends with the dispatcher, after the last of its events. Read it in the
        dispatcher's trio run; in another, InvalidConfigError (1012).
        """
        check_thread(self, self._thread, "run(read_events, trio_token=token)")
        stream = EventStream()
        if self._ended:
            stream.end()
        self._observers.add(stream)
        try:
            with self._woken_at_end(stream.end):
                yield stream
        finally:
            self._observers.remove(stream)
            stream.end()

    def observe(self, observer: Observer) -> None:
        """Call `observer` with every event from now on.

        One with a `middleware`, such as OpenTelemetryObserver, is to be there before
        this runs, since attempts are wrapped from their queue's start on: later it is
        refused with InvalidConfigError (1012).
        """
        if self._served and getattr(observer, "middleware", None) is not None:
            raise InvalidConfigError(
                f"{shown(observer)} has a middleware for attempts, and this dispatcher runs already: observe it before, "
                "or pass it as observers=[...]"
            )
        self._observers.add(observer)

    @property
    def report(self) -> ShutdownReport:
        """What the shutdown met: who was interrupted."""
        return self.consumer.report

    def statistics(self) -> DispatcherStatistics:
        """This dispatcher at this instant; what is stored is counted by `control.count`."""
        queues = self.consumer.statistics()
        return DispatcherStatistics(
            worker=self.consumer.worker,
            running=sum(each.running for each in queues.values()),
            queues=queues,
            pool=self.pool.statistics(),
        )

    def __repr__(self) -> str:
        state = "closed" if self._closing.is_set() else "serving" if self._served else "not serving"
        return f"<Dispatcher {self.consumer.worker} {state} over {self.storage!r}>"


class DispatcherOptions(TypedDict, total=False):
    """What `open_dispatcher` takes beside the storage; see `Dispatcher`."""

    worker: str | None
    queues: Sequence[str] | None
    tags: Sequence[str] | None
    lease: float
    grace: float
    middleware: Sequence[Middleware]
    observers: Sequence[Observer] | None
    codec: Codec | None
    cron: Sequence[CronEntry]
    clock: Clock | None
    pool_size: int
    prune: Sequence[PruneSpec]
    prune_every: float


@asynccontextmanager
async def open_dispatcher(
    storage: Storage | str | None = None, **options: Unpack[DispatcherOptions]
) -> AsyncGenerator[Dispatcher]:
    """Run a `Dispatcher` around a block; leaving the block ends it gracefully.

    Without arguments everything is kept in memory. `"sqlite:///jobs.db"` keeps
    it in a file, `"postgresql://..."` in a database (see
    `dispatch.storage.opening`); such a storage is opened and closed here, one
    that you pass as a `Storage` is yours to close. `options` are those of
    `Dispatcher`. Leaving normally stops claiming, lets running handlers finish
    until `grace`, hands back the rest with their attempts (but for sync handlers
    that do not end when asked: their leases decide), and says in
    `dispatcher.report` which. Leaving by an exception or a cancellation does
    the same with no grace.
    """
    if isinstance(storage, str) and storage.lower() != IN_MEMORY:
        async with (
            open_storage(storage, clock=options.get("clock")) as opened,
            open_dispatcher(opened, **options) as dispatcher,
        ):
            yield dispatcher
        return
    dispatcher = Dispatcher(None if isinstance(storage, str) else storage, **options)
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(dispatcher.serve)
                yield dispatcher
            # Bare: who wrote `except KeyboardInterrupt`, or `sys.exit(3)`, means that. Not Cancelled, which is the nursery's.
            except (Exception, KeyboardInterrupt, SystemExit) as exc:  # noqa: BLE001 - raised on below, in no group
                failure = exc
                nursery.cancel_scope.cancel()
            dispatcher.close()
    except BaseExceptionGroup as group:  # a Ctrl-C may strike in a handler, or during the end, too
        interrupt = interrupt_in(group)
        if interrupt is None:
            raise
        failure = interrupt
    if failure is not None:
        raise failure
