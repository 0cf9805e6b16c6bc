"""Cron tasks in a running service: added, fired, paused, replaced and cancelled by name.

Theory of operation. Two kinds of entry share one loop. A *function* entry lives
in this process and runs here. A *stored* entry publishes a queue task; it lives
in the storage, every process on that storage sees it, and a tick is decided by
whoever moves its `last_slot` on first (`CronStore.advance_cron`), in the same
step that enqueues the task: at most one task per tick, without a leader.

The loop keeps one heap of (next moment, name) and sleeps towards its top, at
most 5 s at a time, because the wall clock may jump. Whatever woke it, it looks
at the time again and decides from each entry's last slot (`cron.policy`), so a
jump, a suspended machine and a long downtime are one and the same case.
"""

from __future__ import annotations

import functools
import heapq
import inspect
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from math import inf
from typing import Any, Final, Unpack, cast

import attrs
import trio

from dispatch.bell import Bell
from dispatch.clock import Clock
from dispatch.cron.policy import (
    CronOptions,
    CronPolicy,
    Decision,
    decide,
    delay_s,
    read_definition,
    write_definition,
)
from dispatch.cron.spec import CronSpec
from dispatch.errors import (
    ClosedError,
    CronNameConflictError,
    CronTaskNotFoundError,
    DispatchError,
    InvalidConfigError,
    InvalidTaskHandlerError,
    StorageError,
)
from dispatch.failures import describe, parted, traceback_text
from dispatch.publisher import TaskQueuePublisher, new_id
from dispatch.records import NewTask, from_seconds, to_seconds
from dispatch.storage.protocol import (
    AdvanceAnswer,
    Change,
    CronRecord,
    PutAnswer,
    Storage,
    Topic,
    TopicKind,
)
from dispatch.storage.query import All, Crons, Ids, Statuses
from dispatch.tasks import QueueTask, check_name

__all__ = ["CronTask", "CronTaskDispatcher", "What"]

log: Final = logging.getLogger("dispatch.cron")

What = Callable[[], Awaitable[object]] | Callable[[], object] | QueueTask[Any, Any]
"""What a cron task does: an async function, a sync one (in a thread), or a task to publish."""

YIELD_EVERY: Final = 20
"""Entries fired between two checkpoints, so that 10,000 due at once do not block the loop."""


@attrs.define(eq=False)
class CronTask:
    """A named cron task, live: `func` may be replaced, and its next run uses the new one.

    `total` counts the runs begun (for a stored entry: tasks published), here or
    anywhere; `err_count` the runs that raised. `last` is the last tick decided,
    `next` the next one, both aware; `next` is None when none is left.
    """

    name: str = ""
    func: Callable[[], Any] | None = None
    description: str = ""
    task: QueueTask[Any, Any] | None = None
    spec: CronSpec | None = attrs.field(default=None, kw_only=True)
    policy: CronPolicy = attrs.field(factory=CronPolicy, kw_only=True)
    total: int = attrs.field(default=0, init=False)
    err_count: int = attrs.field(default=0, init=False)
    last_error: str | None = attrs.field(default=None, init=False)
    paused_reason: str | None = attrs.field(default=None, init=False)
    last: datetime | None = attrs.field(default=None, init=False)
    next: datetime | None = attrs.field(default=None, init=False)
    _running: set[trio.CancelScope] = attrs.field(factory=set[trio.CancelScope], init=False)
    _queued: bool = attrs.field(default=False, init=False)
    _last_slot: float = attrs.field(default=0.0, init=False)

    @property
    def paused(self) -> bool:
        """Whether it is paused; why is in `paused_reason`."""
        return self.paused_reason is not None

    @property
    def running(self) -> int:
        """How many runs of a function are going on here."""
        return len(self._running)

    def __repr__(self) -> str:
        text = self.spec.text if self.spec is not None else "not added"
        state = " paused" if self.paused else ""
        return f"<CronTask {self.name!r} {text!r}{state} total={self.total} errors={self.err_count}>"


class _CronBell(Bell):
    """The loop's bell: the storage rings it when entries changed, the loop's own parts `wake` it."""

    __slots__ = ("stale",)

    def __init__(self) -> None:
        super().__init__()
        self.stale = True

    def ring(self) -> None:
        self.stale = True
        super().ring()

    def wake(self) -> None:
        super().ring()


class CronTaskDispatcher:
    """Fires cron tasks. Alone over a storage: `await nursery.start(cron.run)`.

    Adding is possible before and while it runs. A name belongs to one cron
    task, function or stored; adding the same again is a no-op, another under a
    taken name is CronNameConflictError (1015) unless `replace=True`.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        publisher: TaskQueuePublisher | None = None,
        clock: Clock | None = None,
        grace: float = 10.0,
    ) -> None:
        self._storage = storage
        self._publisher = publisher if publisher is not None else TaskQueuePublisher(storage)
        self._clock = clock if clock is not None else Clock()
        self._grace = grace
        self._functions: dict[str, CronTask] = {}
        self._stored: dict[str, tuple[CronRecord, CronTask]] = {}
        self._heap: list[tuple[float, str]] = []
        self._due: dict[str, float] = {}
        self._deferred: set[str] = set()
        self._bell = _CronBell()
        self._active = 0
        self._nursery: trio.Nursery | None = None
        self._closing = trio.Event()
        self._limiter = trio.CapacityLimiter(40)

    # -- adding ---------------------------------------------------------------

    async def add(self, spec: str | CronSpec, what: What, **options: Unpack[CronOptions]) -> CronTask:
        """Add under a generated UUID name; see `add_with_name`."""
        return await self.add_with_name(spec, str(uuid.uuid4()), what, **options)

    async def add_with_name(
        self,
        spec: str | CronSpec,
        name: str,
        what: What,
        *,
        replace: bool = False,
        **options: Unpack[CronOptions],
    ) -> CronTask:
        """Add a cron task under a name; `what` is a function, run here, or a task, published.

        `spec` is a cron text (see `CronSpec` for its fields) or a `CronSpec`;
        the options are `zone`, `dst`, `start`, `end`, `description`, and those
        of `CronPolicy`. The first tick is the next one from now.

        Raises InvalidCronSpecError (1014), CronNameConflictError (1015),
        InvalidTaskHandlerError (1009), ClosedError (1013), and what `publish`
        raises for a bad task. A checkpoint; cancelled, it has added all or nothing.
        """
        policy, description, rest = _split(options)
        made = _spec(spec, name, rest)
        if isinstance(what, QueueTask):
            task = cast("QueueTask[Any, Any]", what)
            entry = CronTask(name, None, description, task, spec=made, policy=policy)
        else:
            entry = CronTask(name, what, description, spec=made, policy=policy)
        return await self._add(entry, replace=replace)

    async def add_task(self, spec: str | CronSpec, task: CronTask, *, replace: bool = False) -> CronTask:
        """Add a `CronTask` made by hand, with its `func` or `task`; without a name it gets a UUID."""
        if task.spec is not None:
            raise InvalidConfigError(f"cron: {task!r} was added already; make another CronTask")
        if not task.name:
            task.name = str(uuid.uuid4())
        made = _spec(spec, task.name, {})
        task.spec = made
        try:
            return await self._add(task, replace=replace)
        except BaseException:
            task.spec = None
            raise

    async def _add(self, entry: CronTask, *, replace: bool) -> CronTask:
        self._check_open()
        check_name(entry.name, "cron task name", cast("Any", InvalidConfigError))
        if entry.task is not None:
            return await self._add_stored(entry, replace=replace)
        _check_function(entry)
        if await self._storage.crons(entry.name):
            raise CronNameConflictError(
                f"cron task {entry.name!r} is a stored entry that publishes a task; cancel it first"
            )
        known = self._functions.get(entry.name)
        if known is not None and not replace:
            if _same(known, entry):
                return known
            raise self._conflict(entry.name)
        if known is not None:
            entry.total, entry.err_count = known.total, known.err_count
        now = self._clock.now()
        self._functions[entry.name] = entry
        entry.spec = _anchored(entry.spec, now)
        entry._last_slot = now  # pyright: ignore[reportPrivateUsage] - one unit with its dispatcher
        self._schedule_function(entry)
        self._bell.wake()
        return entry

    async def _add_stored(self, entry: CronTask, *, replace: bool) -> CronTask:
        assert entry.task is not None
        assert entry.spec is not None
        if entry.name in self._functions:
            raise self._conflict(entry.name)
        template = await self._publisher.prepare(entry.task)
        template.id = ""
        now = self._storage.now()
        anchored = _anchored(entry.spec, now)
        following = anchored.next(from_seconds(now))
        answer = await self._storage.put_cron(
            CronRecord(
                name=entry.name,
                definition=write_definition(entry.spec, entry.policy, entry.description),
                template=template,
                last_slot=now,
                next_slot=None if following is None else to_seconds(following),
                created_at=now,
            ),
            replace=replace,
        )
        if answer is PutAnswer.CONFLICT:
            raise self._conflict(entry.name)
        await self._reload()
        self._bell.wake()
        return await self.get_task(entry.name)

    def _conflict(self, name: str) -> CronNameConflictError:
        return CronNameConflictError(
            f"a different cron task is named {name!r}; pass replace=True to replace it, or cancel it first"
        )

    # -- looking --------------------------------------------------------------

    async def get_task(self, name: str) -> CronTask:
        """The cron task of this name. Raises CronTaskNotFoundError (1017). A checkpoint."""
        entry = self._functions.get(name)
        if entry is None:
            await self._reload()
            found = self._stored.get(name)
            if found is None:
                known = ", ".join(sorted([*self._functions, *self._stored])[:20]) or "none"
                raise CronTaskNotFoundError(f"no cron task is named {name!r}; there are: {known}")
            entry = found[1]
        await trio.lowlevel.checkpoint()
        return entry

    async def tasks(self) -> list[CronTask]:
        """Every cron task, by name: this process's functions and the storage's entries."""
        await self._reload()
        await trio.lowlevel.checkpoint()
        return sorted(
            [*self._functions.values(), *(entry for _, entry in self._stored.values())],
            key=lambda entry: entry.name,
        )

    async def preview(self, name: str, n: int = 10, *, after: datetime | None = None) -> list[datetime]:
        """The next `n` moments of a cron task, in its zone, jitter aside."""
        entry = await self.get_task(name)
        assert entry.spec is not None
        return entry.spec.preview(n, after=after if after is not None else self._clock.utc())

    def __repr__(self) -> str:
        return f"<CronTaskDispatcher functions={len(self._functions)} stored={len(self._stored)}>"

    # -- changing -------------------------------------------------------------

    async def cancel(self, name: str, *, running: bool = False) -> bool:
        """Remove a cron task, with `running` also cancel its runs; False if there is none. A checkpoint."""
        entry = self._functions.pop(name, None)
        if entry is not None:
            self._due.pop(name, None)
            if running:
                for scope in list(entry._running):  # pyright: ignore[reportPrivateUsage]
                    scope.cancel()
            await trio.lowlevel.checkpoint()
            return True
        removed = await self._storage.remove_cron(name)
        if removed:
            self._stored.pop(name, None)
            self._due.pop(name, None)
            if running:
                await self._storage.alter(_unended(name), Change(action="cancel", reason=f"cron task {name} was cancelled"))
        return removed

    async def pause(self, name: str, reason: str = "paused by hand") -> None:
        """Fire it no more until it is resumed; its runs go on. Raises CronTaskNotFoundError (1017)."""
        await self._set_paused(name, reason)

    async def resume(self, name: str) -> None:
        """Fire it again, from the next tick on: ticks passed while paused are not made up."""
        await self._set_paused(name, None)

    async def _set_paused(self, name: str, reason: str | None) -> None:
        entry = await self.get_task(name)
        if name in self._functions:
            if reason is None and entry.paused:
                entry._last_slot = max(entry._last_slot, self._clock.now())  # pyright: ignore[reportPrivateUsage]
            entry.paused_reason = reason
            self._schedule_function(entry)
        else:
            record = self._stored[name][0]
            if reason is None and record.paused_reason is not None:
                await self._skip_to_now(record, entry)
            await self._storage.alter_cron(name, paused_reason=reason)
            await self._reload()
        self._bell.wake()

    async def _skip_to_now(self, record: CronRecord, entry: CronTask) -> None:
        assert entry.spec is not None
        now = self._storage.now()
        following = entry.spec.next(from_seconds(now))
        await self._storage.alter_cron(record.name, paused_reason=None)
        await self._storage.advance_cron(
            record.name,
            expected=record.last_slot,
            last_slot=max(record.last_slot or 0.0, now),
            next_slot=None if following is None else to_seconds(following),
            tasks=[],
        )

    async def trigger(self, name: str) -> QueueTask[Any, Any] | None:
        """Run it now, beside its plan: the task published, or None for a function. A checkpoint.

        Overlap is not looked at, and a paused cron task runs, too: somebody asked.
        """
        entry = await self.get_task(name)
        if name in self._functions:
            if self._nursery is None:
                raise ClosedError(f"cron task {name!r}: the cron dispatcher does not run")
            self._launch(entry, 0.0)
            return None
        record = self._stored[name][0]
        new = self._publication(record, None, 0.0)
        await self._storage.enqueue([new])
        page = await self._storage.find(Ids(new.id), limit=1)
        return self._publisher.snapshot(page.records[0]) if page.records else None

    async def backfill(self, name: str, since: datetime, until: datetime, *, limit: int = 1_000) -> list[str]:
        """Publish a stored entry's tasks for the ticks in (since, until]; their ids. A checkpoint.

        One step; the entry's own place in time is not touched. More than
        `limit` ticks is an error, and nothing is published.
        """
        entry = await self.get_task(name)
        if name in self._functions or entry.spec is None:
            raise InvalidConfigError(f"cron task {name!r} is a function; only stored entries can be backfilled")
        record = self._stored[name][0]
        slots: list[datetime] = []
        for slot in entry.spec.between(since, until):
            slots.append(slot)
            if len(slots) > limit:
                raise InvalidConfigError(
                    f"cron task {name!r}: more than {limit} ticks between {since} and {until}; raise limit"
                )
        batch = [self._publication(record, to_seconds(slot), 0.0) for slot in slots]
        await self._storage.enqueue(batch)
        return [new.id for new in batch]

    # -- the loop -------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fire until `close()`, then wait for running functions for at most the grace.

        Started once the stored entries are loaded. Cancelled: running functions
        are cancelled with it. A broken entry is logged and never stops the others.
        """
        if self._nursery is not None:
            raise ClosedError("this cron dispatcher runs already")
        self._check_open()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                with self._storage.watch(self._bell, Topic(TopicKind.CRON)):
                    await self._reload()
                    task_status.started()
                    while not self._closing.is_set():
                        await self._fire_due()
                        await self._bell.wait(self._nap_s())
                with trio.move_on_after(self._grace):
                    await self._functions_idle()
                nursery.cancel_scope.cancel()
        finally:
            self._closing.set()
            self._nursery = None

    def close(self) -> None:
        """Fire no more; `run()` returns when running functions have ended. Harmless to repeat."""
        self._closing.set()
        self._bell.wake()

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise ClosedError("this cron dispatcher is closed; nothing was added")

    async def _functions_idle(self) -> None:
        while self._active:
            await self._bell.wait()

    def _nap_s(self) -> float:
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)  # cancelled or rescheduled since
        if not self._heap:
            return inf
        return min(max(self._heap[0][0] - self._clock.now(), 0.0), self._clock.slice_s)

    def _schedule(self, name: str, moment: float | None) -> None:
        if moment is None:
            self._due.pop(name, None)
        elif self._due.get(name) != moment:
            self._due[name] = moment
            heapq.heappush(self._heap, (moment, name))

    def _schedule_function(self, entry: CronTask) -> None:
        assert entry.spec is not None
        last = entry._last_slot  # pyright: ignore[reportPrivateUsage]
        entry.next = None if entry.paused else entry.spec.next(from_seconds(last))
        self._schedule(entry.name, None if entry.next is None else to_seconds(entry.next))

    async def _fire_due(self) -> None:
        """Decide every entry whose moment has come, by the time there is now."""
        if self._bell.stale:
            await self._reload()
        now = self._clock.now()
        fired = 0
        while self._heap and self._heap[0][0] <= now and not self._closing.is_set():
            moment, name = heapq.heappop(self._heap)
            if self._due.get(name) != moment:
                continue
            del self._due[name]
            try:
                if name in self._functions:
                    self._fire_function(self._functions[name], now)
                elif name in self._stored:
                    await self._fire_stored(name, now)
            except StorageError as exc:
                log.warning("cron task %s: the storage failed, trying again: %s", name, exc)
                self._schedule(name, now + 1.0)
            except DispatchError as exc:
                log.error("cron task %s could not be fired: %s", name, exc)  # noqa: TRY400
                self._schedule(name, now + 60.0)
            fired += 1
            if fired % YIELD_EVERY == 0:
                await trio.lowlevel.checkpoint()
                now = self._clock.now()

    def _decided(self, name: str, decision: Decision) -> None:
        if decision.clock_was_wrong:
            log.warning("cron task %s: its last tick lies in the future; the clock was wrong. Starting from now", name)
        elif decision.missed:
            log.warning("cron task %s: ticks were missed; running %d", name, len(decision.run))

    # -- functions ------------------------------------------------------------

    def _fire_function(self, entry: CronTask, now: float) -> None:
        assert entry.spec is not None
        decision = decide(entry.spec, entry.policy, entry._last_slot, now)  # pyright: ignore[reportPrivateUsage]
        self._decided(entry.name, decision)
        entry._last_slot = decision.last_slot  # pyright: ignore[reportPrivateUsage]
        entry.last = from_seconds(decision.last_slot)
        self._schedule_function(entry)
        for slot in decision.run:
            if entry.running and entry.policy.overlap != "allow":
                if entry.policy.overlap == "skip":
                    log.info("cron task %s: the previous run goes on; tick skipped", entry.name)
                    continue
                entry._queued = True  # pyright: ignore[reportPrivateUsage]
                if entry.policy.overlap == "cancel_running":
                    for scope in list(entry._running):  # pyright: ignore[reportPrivateUsage]
                        scope.cancel()
                continue
            self._launch(entry, delay_s(entry.policy, entry.name, slot, decision.next_slot))

    def _launch(self, entry: CronTask, wait_s: float) -> None:
        assert self._nursery is not None
        scope = trio.CancelScope()
        self._active += 1
        entry._running.add(scope)  # pyright: ignore[reportPrivateUsage]
        self._nursery.start_soon(self._run_function, entry, scope, wait_s, name=f"cron task {entry.name}")

    async def _run_function(self, entry: CronTask, scope: trio.CancelScope, wait_s: float) -> None:
        """One run. Counts are changed here and nowhere else, on the trio thread."""
        try:
            with scope:
                if wait_s:
                    await trio.sleep(wait_s)
                entry.total += 1
                function = entry.func
                assert function is not None
                try:
                    if _is_async(function):
                        await function()
                    else:
                        await trio.to_thread.run_sync(function, abandon_on_cancel=True, limiter=self._limiter)
                except (trio.Cancelled, KeyboardInterrupt):
                    raise
                except BaseException as exc:  # noqa: BLE001 - a function cannot take the loop down
                    passing = parted(exc)[0]
                    entry.err_count += 1
                    entry.last_error = describe(exc)
                    log.error(  # noqa: TRY400 - its own bounded traceback
                        "cron task %s failed: %s\n%s",
                        entry.name,
                        entry.last_error,
                        traceback_text(exc),
                        extra={"event": "cron_failed", "cron": entry.name},
                    )
                    if passing is not None:
                        raise passing from None
        finally:
            self._active -= 1
            entry._running.discard(scope)  # pyright: ignore[reportPrivateUsage]
            self._bell.wake()
            again = entry._queued and not entry._running  # pyright: ignore[reportPrivateUsage]
            if again:
                entry._queued = False  # pyright: ignore[reportPrivateUsage]
                known = self._functions.get(entry.name) is entry
                if known and self._nursery is not None and not self._closing.is_set():
                    self._launch(entry, 0.0)

    # -- stored entries -------------------------------------------------------

    async def _reload(self) -> None:
        """Read the stored entries; those unchanged keep their live `CronTask`."""
        self._bell.stale = False
        found: dict[str, tuple[CronRecord, CronTask]] = {}
        for record in await self._storage.crons():
            before = self._stored.get(record.name)
            entry = before[1] if before is not None and _same_definition(before[0], record) else None
            if entry is None:
                try:
                    spec, policy, description = read_definition(record.name, record.definition, record.created_at)
                except (DispatchError, ValueError, TypeError, KeyError) as exc:
                    log.error("cron task %s cannot be read and is left alone: %s", record.name, exc)  # noqa: TRY400
                    continue
                entry = CronTask(record.name, None, description, spec=spec, policy=policy)
            entry.total = record.total
            entry.paused_reason = record.paused_reason
            entry.last = None if record.last_slot is None else from_seconds(record.last_slot)
            entry.next = None if record.next_slot is None else from_seconds(record.next_slot)
            found[record.name] = (record, entry)
            self._schedule(record.name, None if entry.paused else record.next_slot)
        for name in self._stored.keys() - found.keys():
            if name not in self._functions:
                self._due.pop(name, None)
        self._stored = found

    async def _fire_stored(self, name: str, now: float) -> None:
        """Decide one tick of a stored entry, and try to be the one who writes it."""
        record, entry = self._stored[name]
        assert entry.spec is not None
        last = record.last_slot if record.last_slot is not None else record.created_at
        decision = decide(entry.spec, entry.policy, last, now, late=name in self._deferred)
        run: Sequence[float] = decision.run
        if run and entry.policy.overlap != "allow":
            count = await self._storage.count(_unended(name), bound=1)
            if count.get((), 0):
                if entry.policy.overlap != "skip":
                    await self._defer(name, entry.policy, now)
                    return
                log.info("cron task %s: the previous task has not ended; tick skipped", name)
                run = ()
        self._deferred.discard(name)
        tasks = [
            self._publication(record, slot, delay_s(entry.policy, name, slot, decision.next_slot) - (now - slot))
            for slot in run
        ]
        answer = await self._storage.advance_cron(
            name,
            expected=record.last_slot,
            last_slot=decision.last_slot,
            next_slot=decision.next_slot,
            tasks=tasks,
        )
        if answer is AdvanceAnswer.ADVANCED:
            self._decided(name, decision)
            moved = attrs.evolve(
                record,
                last_slot=decision.last_slot,
                next_slot=decision.next_slot,
                total=record.total + len(tasks),
            )
            entry.total = moved.total
            entry.last = from_seconds(decision.last_slot)
            entry.next = None if decision.next_slot is None else from_seconds(decision.next_slot)
            self._stored[name] = (moved, entry)
            self._schedule(name, decision.next_slot)
        else:  # somebody else decided it, or changed it: look again
            self._bell.ring()

    async def _defer(self, name: str, policy: CronPolicy, now: float) -> None:
        """Leave the tick undecided until the previous task has ended."""
        self._deferred.add(name)
        if policy.overlap == "cancel_running":
            await self._storage.alter(_unended(name), Change(action="cancel", reason="its cron task's next tick came"))
        page = await self._storage.find(_unended(name), limit=1)
        if not page.records or self._nursery is None:
            self._schedule(name, now)
            return
        self._nursery.start_soon(self._retry_when_ended, name, page.records[0].id)

    async def _retry_when_ended(self, name: str, task_id: str) -> None:
        with suppress(DispatchError):  # pruned meanwhile, so it has ended
            await self._publisher.wait(task_id)
        if not self._closing.is_set():
            self._schedule(name, self._clock.now())
            self._bell.wake()

    def _publication(self, record: CronRecord, slot: float | None, delay: float) -> NewTask:
        return attrs.evolve(
            record.template,
            id=new_id(self._storage.now()),
            cron=record.name,
            slot=slot,
            delay=record.template.delay + max(delay, 0.0),
        )


def _split(options: CronOptions) -> tuple[CronPolicy, str, dict[str, Any]]:
    """The policies, the description, and what is left for the spec."""
    given: dict[str, Any] = dict(options)
    known = set(CronOptions.__annotations__)
    unknown = given.keys() - known
    if unknown:
        raise InvalidConfigError(
            f"cron: unknown option {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}"
        )
    policies = {field.name for field in attrs.fields(CronPolicy)}
    policy = CronPolicy(**{key: given.pop(key) for key in list(given) if key in policies})
    return policy, given.pop("description", ""), given


def _spec(spec: str | CronSpec, name: str, rest: dict[str, Any]) -> CronSpec:
    if isinstance(spec, CronSpec):
        if rest:
            raise InvalidConfigError(
                f"cron task {name!r}: {', '.join(sorted(rest))} belongs to the CronSpec given; set it there"
            )
        return spec
    return CronSpec(spec, rest.pop("zone", "UTC"), rest.pop("dst", "vixie"), name=name, **rest)


def _anchored(spec: CronSpec | None, now: float) -> CronSpec:
    assert spec is not None
    return spec if spec.anchor is not None else spec.with_anchor(from_seconds(now))


def _same(known: CronTask, new: CronTask) -> bool:
    assert known.spec is not None
    assert new.spec is not None
    return (
        known.func == new.func
        and write_definition(known.spec, known.policy, known.description)
        == write_definition(new.spec, new.policy, new.description)
    )


def _same_definition(before: CronRecord, after: CronRecord) -> bool:
    return before.definition == after.definition and before.created_at == after.created_at


def _unended(name: str) -> All:
    return All(Crons(name), Statuses("pending", "running", "held"))


def _is_async(function: Callable[..., Any]) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - its kind is asked, not whether it exists
    )


def _check_function(entry: CronTask) -> None:
    function = entry.func
    if not callable(function):
        raise InvalidTaskHandlerError(
            f"cron task {entry.name!r}: needs a function of no arguments or a QueueTask, got {function!r}"
        )
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if needed:
        raise InvalidTaskHandlerError(
            f"cron task {entry.name!r}: its function must need no arguments, but needs ({', '.join(needed)}); "
            "bind them with functools.partial"
        )
