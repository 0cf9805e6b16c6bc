"""Cron tasks in a running service: added, fired, paused, replaced and cancelled by name.

Theory of operation. Two kinds of entry have a loop each. A *function* entry lives
in this process and runs here (`cron.functions`). A *stored* entry publishes a
queue task; it lives in the storage, and every process on that storage fires it,
at most once a tick (`cron.stored`). So a storage that is slow holds up no function.

A loop keeps one heap of moments and sleeps towards the earliest, at most 5 s at
a time, because the wall clock may jump. Whatever woke it, it looks at the time
again and decides from each entry's last slot (`cron.policy`), so a jump forward,
a suspended machine and a long downtime are one and the same case. A clock that
went back leaves entries waiting for moments far ahead: the loop that sees that it
did looks at all of them.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from contextvars import Context, copy_context
from datetime import datetime
from math import inf
from threading import get_ident
from typing import Any, Final, Unpack, cast

import trio

from dispatch.bell import Bell
from dispatch.checks import check_count, check_flag, check_kind, check_within, shown
from dispatch.clock import Clock
from dispatch.cron.entries import (
    CronEntry,
    CronTask,
    What,
    check_made,
    check_not_over,
    made_spec,
    made_task,
    taken,
)
from dispatch.cron.functions import FunctionEntry, Functions
from dispatch.cron.policy import CronOptions, CronPolicy, write_definition
from dispatch.cron.spec import CronSpec
from dispatch.cron.stored import (
    AT_ONCE,
    READ_AT_ONCE,
    RENEW_S,
    StoredEntries,
    StoredEntry,
    say_decided,
)
from dispatch.cron.timetable import Timetable
from dispatch.errors import (
    ClosedError,
    CronNameConflictError,
    CronTaskNotFoundError,
    InvalidConfigError,
    StorageError,
)
from dispatch.failures import describe
from dispatch.publisher import TaskQueuePublisher
from dispatch.records import NewTask, from_seconds
from dispatch.storage.protocol import Storage, Topic, TopicKind, check_storage
from dispatch.storage.texts import storable
from dispatch.tasks import QueueTask
from dispatch.threads import ASKED_S, check_thread

__all__ = ["CronTask", "CronTaskDispatcher"]

log: Final = logging.getLogger("dispatch.cron")

RELOAD_GAP_S: Final = 0.5
RELOAD_REST: Final = 5.0
"""Between two readings of all entries lie so many seconds, and so many times what one takes:
ten thousand that are added one by one ring as often."""
MAX_RELOAD_REST_S: Final = 10.0
"""And never more: one answer that took a minute must not hide new entries for five."""
CROWD: Final = 1_000
"""Stored entries taken from the heap before the clock is looked at again."""
JUMP_S: Final = 1.0
"""Wall and monotonic clock parting by more than this since the last look is a jump."""
PATIENCE_S: Final = 60.0
"""After a start or a jump, before declared entries of others are judged: they renew theirs first."""
MAX_CALM_S: Final = 5.0
LAST_STEP_S: Final = 5.0
"""How long the end waits for a step of the storage that is under way."""
LEAST_CALM_S: Final = 0.001
"""Below the clock's microsecond a postponed entry would be due again at once."""
LATEST_S: Final = 253_000_000_000.0
"""In the year 9987, shortly before datetimes end: a clock beyond it is not believed."""


class _CronBell(Bell):
    """The bell of the stored entries' loop: the storage rings it when entries changed, its own parts `wake` it.

    While the loop knows already that entries changed, and waits a moment before it
    reads them, further rings would only wake it for nothing, ten thousand times.
    """

    __slots__ = ("stale",)

    def __init__(self) -> None:
        super().__init__()
        self.stale = False

    def ring(self) -> None:
        if not self.stale:
            self.stale = True
            super().ring()

    def wake(self) -> None:
        super().ring()


class CronTaskDispatcher:
    """Fires cron tasks. Alone over a storage: `await nursery.start(cron.run)`.

    Adding is possible before and while it runs. A name belongs to one cron
    task, function or stored; adding the same again is a no-op, another under a
    taken name is CronNameConflictError (1015) unless `replace=True`.
    `declared` are the entries that belong to the code, as are those given to
    `declare`: they are there once it runs, beside those added at run time.

    Time is the storage's, or that of `clock`, if one is given.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        publisher: TaskQueuePublisher | None = None,
        clock: Clock | None = None,
        grace: float = 10.0,
        declared: Sequence[CronEntry] = (),
    ) -> None:
        check_storage(storage)
        check_kind("publisher", publisher, TaskQueuePublisher)
        check_kind("clock", clock, Clock)
        check_within("grace", grace, 0, 86_400)
        self._storage = storage
        self._publisher = publisher if publisher is not None else TaskQueuePublisher(storage)
        self._source: Clock | Storage = storage if clock is None else clock
        self._now: Callable[[], float] = self._source.now
        self._grace = grace
        self._declared = _checked(declared)
        self._begun = False
        self._loaded_at: float | None = None
        """When it had read the stored entries, by the clock that they are stored with."""
        self._said_there_before = False
        self._bell = _CronBell()
        self._functions_bell = Bell()
        self._stored_due: Timetable[StoredEntry] = Timetable()
        self._functions_due: Timetable[FunctionEntry] = Timetable()
        self._functions = Functions(self._publisher.observers, self._functions_due.put, self._bell.wake)
        self._stored = StoredEntries(storage, self._publisher, self._now, self._stored_due.put, self._bell.wake)
        self._nursery: trio.Nursery | None = None
        self._thread: int | None = None
        """Where it runs, while it does."""
        self._closing = trio.Event()
        self._ends_at = inf
        """In trio's time, when the grace is over."""
        self._last_step = trio.CancelScope()
        """Around what is done for stored entries."""
        self._fires_functions = False
        self._context = Context()
        self._adding: dict[str, trio.Lock] = {}
        """Of a name, between the look whether it is free and the act."""
        # Moments of trio's clock, which does not jump.
        self._reload_at = -inf
        self._renew_at = inf
        self._judge_from = inf
        self._calm_until = -inf
        self._calm_s = 0.0
        self._ahead: float | None = None
        """By how much the wall clock is ahead of trio's."""
        self._sleeps_towards = inf
        """The moment that the loop of the stored entries knew to be the next."""
        self._functions_sleep_towards = inf

    # -- adding ---------------------------------------------------------------

    async def add(self, spec: str | CronSpec, what: What, **options: Unpack[CronOptions]) -> CronTask:
        """Add under a generated UUID name; see `add_with_name`.

        Each call adds one more, and with a storage that outlives the process each start of
        the program does: what every start adds needs a name. Where an earlier start has added
        the same, a warning says so, once.
        """
        added = await self._add(made_task(spec, str(uuid.uuid4()), what, options, generated=True), replace=False)
        self._say_if_there_before(added)
        return added

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
        the options are `zone` (a key, or a `ZoneInfo` that has one), `dst`, `start`,
        `end`, `description`, and those of `CronPolicy`. The first tick is the next one from now. A task's `id`
        and `available_at` cannot be given: each tick has its own.

        Raises InvalidCronSpecError (1014), also if no tick is left before its
        `end`, CronNameConflictError (1015), InvalidConfigError (1012),
        InvalidTaskHandlerError (1009), ClosedError (1013), and what `publish`
        raises for a bad task. A checkpoint; cancelled, it has added all or nothing.
        """
        return await self._add(made_task(spec, name, what, options), replace=replace)

    async def add_task(self, spec: str | CronSpec, task: CronTask, *, replace: bool = False) -> CronTask:
        """Add a `CronTask` made by hand, with its `func` or `task`; without a name it gets a UUID.

        Use what this answers, which is the live one. With a function that is the one
        given; with a task it is the stored entry's, and the one given stays as it is.
        Raises as `add_with_name` does.
        """
        check_made(task)
        named = bool(task.name)
        if not named:
            task.name = str(uuid.uuid4())
        task.spec = made_spec(spec, task.name, {})
        try:
            added = await self._add(task, replace=replace)
        except BaseException:
            task.spec = None
            raise
        if not named:
            self._say_if_there_before(added)
        return added

    def _say_if_there_before(self, added: CronTask) -> None:
        """Warn, once, where a cron task without a name of its own is there from an earlier start."""
        if self._said_there_before or self._loaded_at is None or added.task is None or not self._storage.durable:
            return
        twin = self._stored.twin(added.name, before=self._loaded_at)
        if twin is not None:
            self._said_there_before = True
            log.warning(
                "cron task %s (%s) is the same as %s, which was stored before this one started: both publish. "
                "What each start of a program adds needs a name, with which it is there once: add_with_name, or "
                "open_dispatcher(cron=[CronEntry(...)]). Remove the others with cron.cancel(name)",
                added.name,
                "" if added.spec is None else added.spec.text,
                twin,
                extra={"event": "added_again", "cron": added.name},
            )

    async def _add(self, task: CronTask, *, replace: bool) -> CronTask:
        check_flag(f"cron task {task.name!r}: replace", replace)
        async with self._alone_with(task.name):
            self._check_open(task.name)
            if task.task is None:
                return await self._add_function(task, replace=replace)
            self._check_no_function(task.name)
            added = await self._stored.add(task, replace=replace)
            self._wake_if_earlier()
            return added

    @asynccontextmanager
    async def _alone_with(self, *names: str) -> AsyncGenerator[None]:
        """Let nobody else add these names meanwhile. A checkpoint."""
        held: list[str] = []
        try:
            for name in sorted(names):  # in one order, so that two never wait for each other
                await self._adding.setdefault(name, trio.Lock()).acquire()
                held.append(name)
            yield
        finally:
            for name in held:
                self._adding[name].release()
            for name in names:  # one that was made here and never had, too
                if name in self._adding and not self._adding[name].locked():
                    del self._adding[name]

    def _check_open(self, name: str) -> None:
        if self._closing.is_set():
            raise ClosedError(
                f"cron task {name!r} was not added: this cron dispatcher is closed; add it to one that is not"
            )

    def _check_no_function(self, name: str) -> None:
        if name in self._functions.entries:
            raise CronNameConflictError(f"cron task {name!r} is a function; cancel it first")

    async def _add_function(self, task: CronTask, *, replace: bool, declared: bool = False) -> CronTask:
        if await self._storage.crons(task.name):
            raise CronNameConflictError(
                f"cron task {task.name!r} is a stored entry that publishes a task; cancel it first"
            )
        assert task.spec is not None
        definition = write_definition(task.name, task.spec, task.policy, task.description)
        known = self._functions.entries.get(task.name)
        if known is not None and not replace:
            if known.definition == definition and known.task.func == task.func:
                return known.task
            raise taken(task.name)
        now = self._now()
        if not declared:
            self._check_open(task.name)  # it may have been closed since
            check_not_over(task.spec, from_seconds(now))
        self._functions.put(task, definition, now)
        self._begin_functions()
        self._wake_if_earlier()
        return task

    # -- looking --------------------------------------------------------------

    async def get_task(self, name: str) -> CronTask:
        """The cron task of this name. Raises CronTaskNotFoundError (1017). A checkpoint."""
        entry = await self._entry(name)
        return entry.task if isinstance(entry, FunctionEntry) else self._stored.live(entry)

    async def _entry(self, name: str) -> FunctionEntry | StoredEntry:
        _check_named(name)
        await self._storage.rest()
        function = self._functions.entries.get(name)
        if function is not None:
            await trio.lowlevel.checkpoint()
            return function
        stored = await self._stored.read(name)
        if stored is None:
            await self._stored.reload()
            known = ", ".join(sorted({*self._functions.entries, *self._stored.entries})[:20]) or "none"
            raise CronTaskNotFoundError(f"no cron task is named {name!r}; there are: {known}")
        return stored

    async def tasks(self) -> list[CronTask]:
        """Every cron task, by name: this process's functions and the storage's entries. A checkpoint."""
        await self._stored.reload()
        await trio.lowlevel.checkpoint()
        found = [entry.task for entry in self._functions.entries.values()]
        for number, entry in enumerate(list(self._stored.entries.values()), 1):
            found.append(self._stored.live(entry))
            if number % READ_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        return sorted(found, key=lambda task: task.name)

    async def preview(self, name: str, n: int = 10, *, after: datetime | None = None) -> list[datetime]:
        """The next `n` moments of a cron task, in its zone, jitter aside. A checkpoint."""
        task = await self.get_task(name)
        assert task.spec is not None
        return task.spec.preview(n, after=after if after is not None else from_seconds(self._now()))

    def __repr__(self) -> str:
        functions, stored = len(self._functions.entries), len(self._stored.entries)
        return f"<CronTaskDispatcher functions={functions} stored={stored} due={len(self._functions_due) + len(self._stored_due)}>"

    # -- changing -------------------------------------------------------------

    async def cancel(self, name: str, *, running: bool = False) -> bool:
        """Remove a cron task, with `running` also cancel its runs; False if there is none. A checkpoint.

        One that is declared in code comes back when a process that declares it
        starts; to stop it for longer, pause it.
        """
        _check_named(name)
        check_flag("cancel: running", running)
        await self._storage.rest()
        if self._functions.remove(name, running=running):
            await trio.lowlevel.checkpoint()
            return True
        return await self._stored.remove(name, running=running)

    async def change(
        self, name: str, spec: CronSpec, policy: CronPolicy, description: str, template: NewTask
    ) -> CronTask:
        """Give a stored entry another plan, policies, description and task to publish. A checkpoint.

        For whoever edits one: evolved from the entry's own `CronTask` and
        `CronRecord.template`, they keep what was not edited. An `@every` goes
        on counting from where it did. Raises CronTaskNotFoundError (1017), and
        CronNameConflictError (1015) for one that is declared in code.
        """
        changed = await self._stored.change(name, spec, policy, description, template)
        self._wake_if_earlier()
        return changed

    async def pause(self, name: str, reason: str = "paused by hand") -> None:
        """Fire it no more until it is resumed; its runs go on. A checkpoint.

        Raises CronTaskNotFoundError (1017).
        """
        given = cast("object", reason)
        if not isinstance(given, str) or not given or not storable(given):
            raise InvalidConfigError(f"pause: the reason must be a str that can be stored, got {shown(given)}")
        await self._set_paused(name, reason)

    async def resume(self, name: str) -> None:
        """Fire it again, from the next tick on: ticks passed while paused are not made up.

        A checkpoint. Raises CronTaskNotFoundError (1017).
        """
        await self._set_paused(name, None)

    async def _set_paused(self, name: str, reason: str | None) -> None:
        entry = await self._entry(name)
        if isinstance(entry, FunctionEntry):
            self._functions.set_paused(entry, reason, self._now())
        else:
            await self._stored.set_paused(entry, reason)
        self._wake_if_earlier()

    async def trigger(self, name: str) -> QueueTask[Any, Any] | None:
        """Run it now, beside its plan: the task published, or None for a function. A checkpoint.

        Overlap is not looked at, and a paused cron task runs, too: somebody asked. Raises what
        `publish` raises, so ClosedError (1013) once the dispatcher's block was left.
        """
        entry = await self._entry(name)
        if isinstance(entry, StoredEntry):
            return await self._stored.trigger(entry)
        if self._nursery is None:
            raise ClosedError(f"cron task {name!r}: the cron dispatcher does not run")
        self._functions.launch(entry)
        return None

    async def backfill(self, name: str, since: datetime, until: datetime, *, limit: int = 1_000) -> list[str]:
        """Publish a stored entry's tasks for the ticks in (since, until]; the ids of those stored.

        A tick whose task is stored already is left alone, so a repeat is
        harmless. One step; the entry's own place in time is not touched. More
        than `limit` ticks is an error, and nothing is published. Ticks still to
        come are published now as well. A checkpoint.
        """
        check_count("backfill: limit", limit, 0)
        for what, moment in (("since", since), ("until", until)):
            given = cast("object", moment)
            if not isinstance(given, datetime) or given.tzinfo is None:
                raise InvalidConfigError(f"backfill: {what} must be an aware datetime, got {shown(given)}")
        entry = await self._entry(name)
        if isinstance(entry, FunctionEntry):
            raise InvalidConfigError(f"cron task {name!r} is a function; only stored entries can be backfilled")
        return await self._stored.backfill(entry, since, until, limit)

    def declare(self, *entries: CronEntry) -> None:
        """Add entries that belong to the code, as `declared` does, before it runs: in the setup of `dispatch run`, say.

        When it runs they are stored in place of what an earlier version of the
        code declared under their names. Raises CronNameConflictError (1015) for
        a name declared twice, ClosedError (1013) once it runs, from when on
        there is `add_with_name`.
        """
        if self._begun:
            raise ClosedError(
                "cron.declare: it runs already; add_with_name adds to one that runs,"
                " and open_dispatcher(cron=[...]) declares before it does"
            )
        self._declared = _checked((*self._declared, *entries))

    # -- the loop -------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fire until `close()`, then wait for running functions for at most the grace.

        Started once what is declared is stored and the stored entries are
        loaded. At the end a step of the storage that is under way gets 5 s, and is
        cancelled then. Cancelled: running functions are cancelled with it; a sync one is
        asked, and its thread left to itself if it takes over a second. A broken
        entry is logged and never stops the others; a storage that is away is
        waited for. Raises CronNameConflictError (1015) where a declared entry's
        name is taken, and ClosedError (1013) a second time, while it runs or afterwards.
        """
        if self._thread is not None:  # and not the nursery, which comes after the first await
            raise ClosedError("this cron dispatcher runs already")
        if self._closing.is_set():
            raise ClosedError("this cron dispatcher is closed; make another one")
        self._begun = True
        self._thread = get_ident()
        try:
            with self._storage.watch(self._bell, Topic(TopicKind.CRON)):
                await self._begin()
                self._loaded_at = self._now()
                async with trio.open_nursery() as nursery:
                    self._nursery = self._stored.nursery = nursery
                    self._functions.begin(nursery)
                    self._context = copy_context()
                    self._begin_functions()
                    task_status.started()
                    try:
                        with self._last_step:
                            while not self._closing.is_set():
                                await self._round()
                                await self._bell.wait(self._nap_s())
                        if self._last_step.cancelled_caught:
                            log.warning("cron: the storage gave no answer within %g s; this ends without it", LAST_STEP_S)
                        with trio.move_on_at(self._ends_at):
                            while self._functions.active:
                                await self._bell.wait()
                    finally:
                        self._end()
                        nursery.cancel_scope.cancel()
                        await self._functions.end_threads(ASKED_S)
        finally:
            self._end()
            self._thread = None

    def close(self) -> None:
        """Fire no more; `run()` returns when running functions have ended. Harmless to repeat.

        In another thread than that of its trio run, InvalidConfigError (1012).
        """
        check_thread(self, self._thread, "run_sync(cron.close)")
        if self._nursery is not None and not self._closing.is_set():
            self._ends_at = trio.current_time() + self._grace
            self._last_step.deadline = trio.current_time() + LAST_STEP_S
        self._closing.set()
        self._functions.closing = True
        self._bell.wake()
        self._functions_bell.ring()

    def _end(self) -> None:
        """Begin nothing more, be it asked for or due: before the nursery, which takes no more once its last one has ended."""
        self.close()
        self._nursery = self._functions.nursery = self._stored.nursery = None

    async def _begin(self) -> None:
        tasks = [entry.task() for entry in self._declared]
        async with self._alone_with(*(task.name for task in tasks)):
            for task in tasks:
                if task.task is None:
                    await self._add_function(task, replace=False, declared=True)
                else:
                    self._check_no_function(task.name)
            await self._stored.declare(task for task in tasks if task.task is not None)
        await self._reload()
        if self._stored.declares:
            self._renew_at = trio.current_time() + RENEW_S
        self._judge_from = trio.current_time() + PATIENCE_S

    def _begin_functions(self) -> None:
        """Start their loop, if this runs and there is something for it to do."""
        if self._nursery is not None and self._functions.entries and not self._fires_functions:
            self._fires_functions = True
            # Not in the context of whoever adds the first one.
            self._context.run(self._nursery.start_soon, self._keep_functions)

    async def _keep_functions(self) -> None:
        """Fire functions until this is closed; cancel those that run when the grace is over."""
        while not self._closing.is_set():
            if _believable(self._now()):  # else the other loop says so
                self._believed_now()
                await self._fire_functions()
            await self._functions_bell.wait(self._functions_nap_s())
        # Not by the other loop, which may wait for a last step of the storage.
        await trio.sleep_until(self._ends_at)
        self._functions.cancel()

    async def _round(self) -> None:
        """Look at the clock, at what changed, and fire the stored entries that are due."""
        now = self._believed_now()
        if now is None:
            return
        try:
            if trio.current_time() >= self._calm_until:
                await self._look_after_stored(now)
        except StorageError as exc:
            self._calm_down(exc)
        await self._fire_due()
        await trio.lowlevel.checkpoint()

    def _believed_now(self) -> float | None:
        """The time; None if the clock shows nonsense. Notices if it jumped."""
        now = self._now()
        if not _believable(now):
            log.error("cron: the clock shows %r s since 1970; nothing is fired until it is right", now)
            return None
        ahead = now - trio.current_time()
        if self._ahead is not None and abs(ahead - self._ahead) > JUMP_S:
            log.warning("cron: the wall clock jumped by %+.1f s", ahead - self._ahead)
            for function in self._functions.entries.values():
                if function.slots.in_the_future(now) and not function.task.paused:
                    self._functions_due.put(function, now)
            for stored in self._stored.entries.values():
                # All of them: an outage or an error may have put it off until a moment of a clock that was ahead.
                if not stored.awaited:
                    self._stored_due.put(stored, stored.due(now))
            if self._stored.declares:
                self._renew_at = trio.current_time()
            self._judge_from = trio.current_time() + PATIENCE_S
            self._bell.wake()  # whichever loop has seen it
            self._functions_bell.ring()
        self._ahead = ahead
        return now

    async def _look_after_stored(self, now: float) -> None:
        """Read what changed, renew what is declared here, judge what others declared."""
        if self._bell.stale and trio.current_time() >= self._reload_at:
            await self._reload()
        await self._stored.read_moved()
        if trio.current_time() >= self._renew_at:
            # Said before: a jump that the other loop sees meanwhile asks for one more.
            self._renew_at = trio.current_time() + RENEW_S
            try:
                await self._stored.renew()
            except BaseException:
                self._renew_at = -inf
                raise
        if now >= self._stored.abandoned_at and trio.current_time() >= self._judge_from:
            await self._stored.pause_abandoned()

    async def _reload(self) -> None:
        began = trio.current_time()
        self._bell.stale = False
        try:
            await self._stored.reload()
        except BaseException:
            self._bell.stale = True
            raise
        ended = trio.current_time()
        rest_s = min(RELOAD_REST * (ended - began), MAX_RELOAD_REST_S)
        self._reload_at = ended + max(RELOAD_GAP_S, rest_s)
        self._calm_s = 0.0

    def _calm_down(self, exc: StorageError) -> None:
        """Leave a failing storage alone for a while: 1 s, then 2, 4 and at most 5."""
        self._calm_s = min(max(1.0, 2 * self._calm_s), MAX_CALM_S)
        self._calm_until = trio.current_time() + self._calm_s
        self._publisher.observers.tell("storage_failed", "cron", exc)
        log.warning("cron: the storage failed, trying again in %.0f s: %s", self._calm_s, exc)

    async def _fire_functions(self) -> None:
        """Decide every function whose moment has come, by the time there is now."""
        while not self._closing.is_set():
            now = self._now()
            # No more than are fired before others run: these may cancel or pause what is due.
            if not _believable(now) or not (due := self._functions_due.take(now, AT_ONCE)):
                return
            for entry in due:
                self._fire_function(entry, now)
            await trio.lowlevel.checkpoint()

    async def _fire_due(self) -> None:
        """Decide every stored entry whose moment has come, by the time there is now."""
        while not self._closing.is_set():
            now = self._now()
            if not _believable(now) or not (due := self._stored_due.take(now, CROWD)):
                return
            calm_s = self._calm_until - trio.current_time()
            if calm_s > 0:
                for number, entry in enumerate(due, 1):
                    self._stored_due.put(entry, now + max(calm_s, LEAST_CALM_S))
                    if number % AT_ONCE == 0:
                        await trio.lowlevel.checkpoint()
            else:
                outage = await self._stored.fire(due, now)
                if outage is None:
                    self._calm_s = 0.0
                else:
                    self._calm_down(outage)
            await trio.lowlevel.checkpoint()

    def _fire_function(self, entry: FunctionEntry, now: float) -> None:
        try:
            say_decided(entry.task.name, self._functions.fire(entry, now))
        except Exception as exc:
            entry.task.err_count += 1
            entry.task.last_error = describe(exc)
            log.exception("cron task %s could not be decided, trying again in 60 s", entry.task.name)
            self._functions_due.put(entry, now + 60.0)

    def _wake_if_earlier(self) -> None:
        if self._stored_due.first() < self._sleeps_towards:
            self._bell.wake()
        if self._functions_due.first() < self._functions_sleep_towards:
            self._functions_bell.ring()

    def _functions_nap_s(self) -> float:
        """Seconds until a function is due, as far as is known now; the other loop looks at the clock, too."""
        now, first = self._now(), self._functions_due.first()
        self._functions_sleep_towards = first
        if first == inf:
            return inf
        return max(min(first - now, self._source.slice_s), 0.0) if _believable(now) else MAX_CALM_S

    def _nap_s(self) -> float:
        """Seconds until something is to be done for stored entries, as far as is known now."""
        now, monotonic = self._now(), trio.current_time()
        self._sleeps_towards = self._stored_due.first()
        if not _believable(now):
            return MAX_CALM_S
        judge_s = max(self._stored.abandoned_at - now, self._judge_from - monotonic)
        look_s = min(judge_s, self._renew_at - monotonic)
        if self._bell.stale:
            look_s = min(look_s, self._reload_at - monotonic)
        if self._stored.moved:
            look_s = 0.0
        look_s = max(look_s, self._calm_until - monotonic)
        return max(min(self._sleeps_towards - now, look_s, self._source.slice_s), 0.0)


def _check_named(name: object) -> None:
    """What is no name would mean every entry to the storage."""
    if not isinstance(name, str):
        raise InvalidConfigError(f"a cron task is named by a str, got {shown(name)}")


def _believable(now: float) -> bool:
    return 0.0 <= now <= LATEST_S


def _checked(declared: Sequence[CronEntry]) -> tuple[CronEntry, ...]:
    names: set[str] = set()
    given = cast("object", declared)
    if isinstance(given, CronEntry) or not isinstance(given, Iterable):
        hint = "; write it in brackets" if isinstance(given, CronEntry) else ""
        raise InvalidConfigError(f"cron must be a collection of CronEntry values, got {shown(given, 200)}{hint}")
    entries = tuple(declared)  # an iterator is read once
    for entry in entries:
        if not isinstance(entry, CronEntry):
            raise InvalidConfigError(
                f"cron: declared are CronEntry values, such as CronEntry('@daily', 'tidy', TIDY(...)); got {entry!r}"
            )
        if entry.name in names:
            raise CronNameConflictError(f"two entries named {entry.name!r} are declared")
        names.add(entry.name)
    return entries
