"""The cron tasks of this process that are functions: launched, counted, kept from overlapping."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from contextvars import Context, copy_context
from math import inf
from typing import Any, Final

import attrs
import trio

from dispatch.callables import is_async
from dispatch.cron.entries import CronTask
from dispatch.cron.policy import Decision, Slots, delay_s
from dispatch.errors import InvalidTaskHandlerError
from dispatch.events import Observers
from dispatch.failures import (
    LEFT_OPEN,
    describe,
    enclosed,
    parted,
    printable,
    surroundings,
    traceback_text,
)
from dispatch.publisher import inside_handler
from dispatch.records import from_seconds, to_seconds
from dispatch.tasks import QueueTask
from dispatch.threads import ThreadRun

__all__ = ["FunctionEntry", "Functions"]

log: Final = logging.getLogger("dispatch.cron")

THREADS: Final = 40
"""Sync functions that run at a time; not trio's default limiter, which is the application's."""


@attrs.define(eq=False)
class FunctionEntry:
    """The function of one name: its live `CronTask`, where it stands, and its runs."""

    task: CronTask
    definition: str
    slots: Slots
    begun: float
    """Since when there is one of that name: what an `@every` counts from."""
    scopes: set[trio.CancelScope] = attrs.field(factory=set[trio.CancelScope], init=False)
    queued: bool = attrs.field(default=False, init=False)
    """A tick waits for the run that goes on."""


class Functions:
    """The functions by name. `schedule` is told when each is due, None for never."""

    def __init__(
        self,
        observers: Observers,
        schedule: Callable[[FunctionEntry, float | None], None],
        wake: Callable[[], None],
    ) -> None:
        self.entries: dict[str, FunctionEntry] = {}
        self.nursery: trio.Nursery | None = None
        self.closing: bool = False
        self._observers = observers
        self._schedule = schedule
        self._wake = wake
        self._limiter = trio.CapacityLimiter(THREADS)
        self._running: set[trio.CancelScope] = set()
        """Those of runs that go on, of replaced and removed functions, too."""
        self._threads: set[ThreadRun] = set()
        self._base: Context = Context()

    def begin(self, nursery: trio.Nursery) -> None:
        """Launch into this nursery, each run in a copy of the context there is now."""
        self.nursery = nursery
        self._base = copy_context()
        self._base.run(inside_handler.set, True)  # publishing from cron never waits

    @property
    def active(self) -> bool:
        """Whether a run goes on, be it of a function that was replaced or removed."""
        return bool(self._running)

    def cancel(self) -> None:
        """Cancel whatever runs."""
        for scope in self._running:
            scope.cancel()

    async def end_threads(self, within_s: float) -> None:
        """Once all runs were cancelled: leave the threads to themselves that take longer than this to end."""
        try:
            with trio.move_on_after(within_s, shield=True):
                for thread in list(self._threads):
                    await thread.ended()
        finally:
            for thread in self._threads:
                thread.abandon()

    def put(self, task: CronTask, definition: str, now: float) -> None:
        """Add a function, or put it in place of the one of that name.

        That one's counters, pause and runs are then its own, and, if its plan
        is the same, its place in time, too.
        """
        assert task.spec is not None
        entry = self.entries.get(task.name)
        begun = now if entry is None else entry.begun
        task.spec = task.spec.counted_from(from_seconds(begun))
        if entry is None:
            entry = self.entries[task.name] = FunctionEntry(task, definition, Slots(now), begun)
        else:
            before, entry.task, entry.definition = entry.task, task, definition
            task.total, task.err_count = before.total, before.err_count
            task.paused_reason, task.last = before.paused_reason, before.last
            task.running, before.running = before.running, 0
            if before.spec != task.spec:
                entry.slots = Slots(now)
                entry.queued = False
        self._plan(entry)

    def remove(self, name: str, *, running: bool) -> bool:
        """Fire it no more; with `running`, cancel its runs. False if there is none."""
        entry = self.entries.pop(name, None)
        if entry is None:
            return False
        self._schedule(entry, None)
        entry.queued = False
        if running:
            for scope in entry.scopes:
                scope.cancel()
        return True

    def set_paused(self, entry: FunctionEntry, reason: str | None, now: float) -> None:
        """Pause with a reason, or resume from now on with None."""
        if reason is None and entry.task.paused:
            entry.slots.skip_to(now)
        if reason is not None:
            entry.queued = False  # a tick that waits has passed, and is not made up
        entry.task.paused_reason = reason
        self._plan(entry)

    def _plan(self, entry: FunctionEntry) -> None:
        """Work out when it is due next."""
        spec = entry.task.spec
        assert spec is not None
        following = None if entry.task.paused else spec.next(from_seconds(entry.slots.last))
        entry.task.next = following
        self._schedule(entry, None if following is None else to_seconds(following))

    def fire(self, entry: FunctionEntry, now: float) -> Decision:
        """Decide what is due, and launch it. Never waits."""
        task = entry.task
        assert task.spec is not None
        decision = entry.slots.decide(task.spec, task.policy, now)
        entry.slots.move_to(decision.last_slot)
        task.last = from_seconds(decision.last_slot)
        self._plan(entry)
        for slot in decision.run:
            if task.running and task.policy.overlap != "allow":
                self._overlapping(entry)
            else:
                self._observers.tell("cron_fired", task.name, now - slot)
                wait_s = delay_s(task.policy, task.name, slot, decision.next_slot) - (now - slot)
                self.launch(entry, max(wait_s, 0.0))
        return decision

    def _overlapping(self, entry: FunctionEntry) -> None:
        if entry.task.policy.overlap == "skip":
            log.info("cron task %s: the previous run goes on; tick skipped", entry.task.name)
            return
        entry.queued = True
        if entry.task.policy.overlap == "cancel_running":
            for scope in entry.scopes:
                scope.cancel()

    def launch(self, entry: FunctionEntry, wait_s: float = 0.0) -> None:
        """Begin a run in so many seconds."""
        assert self.nursery is not None
        scope = trio.CancelScope()
        self._running.add(scope)
        entry.task.running += 1
        entry.scopes.add(scope)
        begin, name = self.nursery.start_soon, f"cron task {entry.task.name}"
        # Not in the context of whoever asks, which may be the previous run.
        self._base.run(lambda: begin(self._run, entry, scope, wait_s, name=name))

    async def _run(self, entry: FunctionEntry, scope: trio.CancelScope, wait_s: float) -> None:
        """One run. Counts are changed here and nowhere else, on the trio thread.

        The entry's `CronTask` is asked for each time: another may be put in its place.
        """
        try:
            with enclosed(scope) as around:
                if wait_s:
                    await trio.sleep(wait_s)
                entry.task.total += 1
                try:
                    await self._call(entry.task.name, entry.task.func)
                except BaseException as exc:
                    passing, failed = parted(exc, around)
                    if failed is None:
                        raise
                    error = failed if passing is None else exc
                    task = entry.task
                    task.err_count += 1
                    task.last_error = describe(error)
                    log.error(  # noqa: TRY400 - its own bounded traceback
                        "cron task %s failed: %s\n%s",
                        task.name,
                        printable(task.last_error),
                        traceback_text(error),
                        extra={"event": "cron_failed", "cron": task.name},
                    )
                    if passing is not None:
                        raise passing from None
                finally:
                    if surroundings() is not around:
                        name = entry.task.name
                        log.warning(LEFT_OPEN, f"cron task {name}", "a run", extra={"event": "left_open", "cron": name})
        finally:
            self._running.discard(scope)
            entry.task.running -= 1
            entry.scopes.discard(scope)
            if self.closing:
                self._wake()
            if entry.queued and not entry.task.running:
                entry.queued = False
                ending = self.closing or trio.current_effective_deadline() == -inf
                if not ending and self.entries.get(entry.task.name) is entry:
                    self.launch(entry)

    async def _call(self, name: str, function: Callable[[], Any] | None) -> None:
        if function is None:  # a live CronTask's may be replaced, by anything
            raise InvalidTaskHandlerError(f"cron task {name!r}: its func is None; pause or cancel it instead")
        if is_async(function):
            value = await function()
        else:
            thread = ThreadRun(function, copy_context())
            self._threads.add(thread)
            try:
                value = await thread.run(self._limiter)
            finally:
                self._threads.discard(thread)
            if inspect.isawaitable(value):  # of a plain function around an async one, as a lambda is
                value = await value
        if isinstance(value, QueueTask) and value.created_at is None:
            raise InvalidTaskHandlerError(
                f"cron task {name!r}: its function returned a task instead of publishing it; "
                "give the task itself, or publish it"
            )
