"""The stored cron entries: read, added, declared, and fired tick by tick.

Theory of operation. Any number of processes fire the same entries. A tick belongs
to whoever moves the entry's `last_slot` on first (`CronStore.advance_cron`), in
the step that also stores the task; the others are told MOVED and look again.
That step names the definition it was decided by, so an entry that is replaced
meanwhile is not fired by its old one; and a tick's task has an id made of its
name and moment, so that even a tick decided twice is stored once.

An entry that is *declared* belongs to code. Its definition replaces the stored
one when a process with it starts (`declare`); from then on every living process
with that very definition renews it (`renew`), and whoever finds one that nobody
has renewed for an hour pauses it (`pause_abandoned`). Declaring resumes it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from math import inf
from typing import Any, Final, TypeVar

import attrs
import trio

from dispatch.bell import Bell
from dispatch.cron.entries import CronTask, check_not_over, taken
from dispatch.cron.policy import (
    CronPolicy,
    Decision,
    Slots,
    delay_s,
    one_at_a_time,
    read_definition,
    tick_id,
    write_definition,
)
from dispatch.cron.spec import CronSpec
from dispatch.errors import (
    CronNameConflictError,
    CronTaskNotFoundError,
    DispatchError,
    InvalidConfigError,
    QueueNotRegisteredError,
    StorageError,
)
from dispatch.failures import describe, printable
from dispatch.ids import new_id
from dispatch.publisher import TaskQueuePublisher
from dispatch.records import NewTask, from_seconds, to_seconds
from dispatch.storage.protocol import (
    AdvanceAnswer,
    Change,
    CronRecord,
    EnqueueAnswer,
    PutAnswer,
    Storage,
)
from dispatch.storage.query import All, Crons, Ids, Statuses
from dispatch.tasks import QueueTask

__all__ = ["ABANDONED", "ABANDONED_S", "AT_ONCE", "READ_AT_ONCE", "RENEW_S", "StoredEntries", "StoredEntry"]

log: Final = logging.getLogger("dispatch.cron")

T = TypeVar("T")

ABANDONED: Final = "no running process has declared it for an hour"
"""Why a declared entry was paused by the dispatcher itself."""
ABANDONED_S: Final = 3_600.0
RENEW_S: Final = 600.0
"""How often a process renews the entries that it declares."""

AT_ONCE: Final = 50
"""Entries put, renewed or fired between two turns of the loop, so that others are not kept waiting."""
IN_FLIGHT: Final = 500
"""Of which so many may wait for the storage: a database writes them as one batch."""
READ_AT_ONCE: Final = 100
"""Entries looked at between two checkpoints: a new one costs up to 0.1 ms."""
UUID_TEXT: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
RETRY_S: Final = 5.0
MAX_RETRY_S: Final = 60.0


@attrs.define(eq=False)
class StoredEntry:
    """One stored entry: the row as last read, its live `CronTask`, and where it stands by now."""

    record: CronRecord
    task: CronTask
    slots: Slots
    last_slot: float | None = attrs.field(default=None, init=False)
    """What the row's is expected to be when a tick is decided."""
    next_slot: float | None = attrs.field(default=None, init=False)
    late: bool = attrs.field(default=False, init=False)
    """Its tick waits, or waited, for the previous task to end."""
    awaited: bool = attrs.field(default=False, init=False)
    """A trio task waits for that end, and schedules it then."""
    failures: int = attrs.field(default=0, init=False)
    retry_at: float = attrs.field(default=0.0, init=False)

    def due(self, now: float) -> float | None:
        """When to decide it next; None for never, as things stand."""
        if self.record.paused_reason is not None:
            return None
        if self.slots.in_the_future(now):
            return now
        if self.failures and self.next_slot is not None:
            return max(self.next_slot, min(self.retry_at, now + MAX_RETRY_S))
        return self.next_slot

    def stands_as(self, record: CronRecord) -> bool:
        """Whether it stands where the record says."""
        stands = (self.last_slot, self.next_slot, self.task.total)
        return stands == (record.last_slot, record.next_slot, record.total)

    def stands_at(self, last_slot: float | None, next_slot: float | None, total: int) -> None:
        """Note how far its ticks are decided."""
        self.last_slot, self.next_slot = last_slot, next_slot
        if last_slot is not None:
            self.slots.move_to(last_slot)
        self.task.total = total
        self.task.last = None if last_slot is None else from_seconds(last_slot)
        self.task.next = None if next_slot is None else from_seconds(next_slot)


@attrs.frozen
class Added:
    """What an entry was just added from, which saves reading it out of its own text again."""

    definition: str
    spec: CronSpec
    policy: CronPolicy
    description: str


class StoredEntries:
    """The stored entries by name, as last read. `schedule` is told when each is due, None for never."""

    def __init__(
        self,
        storage: Storage,
        publisher: TaskQueuePublisher,
        now: Callable[[], float],
        schedule: Callable[[StoredEntry, float | None], None],
        wake: Callable[[], None],
    ) -> None:
        self.entries: dict[str, StoredEntry] = {}
        self.moved: set[str] = set()
        """Entries that somebody else decided or changed: to be read again."""
        self.abandoned_at: float = inf
        """A moment before which no entry that others declared can have been abandoned."""
        self.nursery: trio.Nursery | None = None
        self._storage = storage
        self._publisher = publisher
        self._now = now
        self._schedule = schedule
        self._wake = wake
        self._reading = trio.Lock()
        # Answers overtake each other. Of two, the one that was asked for later counts: whatever
        # changes after that rings, or makes a tick answer MOVED, and is asked for again.
        self._asked = 0
        self._known: dict[str, int] = {}
        """By name, the number of the question by whose answer it stands, if that is later than `_all_known`."""
        self._all_known = 0
        """The number of the last full reading."""
        self._earlier: dict[str, str] | None = None
        """What entries under generated names do, and one of them for each; see `twin`."""
        self._unreadable: dict[str, str] = {}
        self._declared: dict[str, CronRecord] = {}
        self._queues: set[str] = set()
        """Queues that the storage knew when it was asked, on behalf of entries that are still there."""

    # -- reading --------------------------------------------------------------

    async def reload(self) -> None:
        """Read every entry; those unchanged keep their live `CronTask`. A checkpoint."""
        async with self._reading:
            asked = self._ask()
            records = await self._storage.crons()
            now = self._now()
            for number, record in enumerate(records, 1):
                if self._learns(record.name, asked):
                    self._take_in(record, now)
                if number % READ_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
            there = {record.name for record in records}
            for name in self.entries.keys() - there:
                if self._learns(name, asked):
                    self._forget(name)
            self._all_known = asked
            self._known = {name: number for name, number in self._known.items() if number > asked}
            self.abandoned_at = min(map(_abandoned_at, self._of_others()), default=inf)
        for name in self._declared:
            entry = self.entries.get(name)
            if entry is not None and entry.record.paused_reason == ABANDONED and self._is_ours(entry):
                await self._renew(self._declared[name])  # else who paused it would do so again at once
                await self.set_paused(entry, None)
                log.warning("cron task %s is declared again, and resumed", name)

    async def read(self, name: str, like: Added | None = None) -> StoredEntry | None:
        """Read one entry; None if there is none, or it cannot be understood. A checkpoint."""
        asked = self._ask()
        found = await self._storage.crons(name)
        if not self._learns(name, asked):
            return self.entries.get(name)
        if not found:
            self._forget(name)
            return None
        return self._take_in(found[0], self._now(), like)

    def _ask(self) -> int:
        """The number of a question that is about to be asked."""
        self._asked += 1
        return self._asked

    def _learns(self, name: str, asked: int) -> bool:
        """Note that this question is answered; False if the name stands by the answer to a later one."""
        if asked < max(self._known.get(name, 0), self._all_known):
            return False
        self._known[name] = asked
        return True

    async def read_moved(self) -> None:
        """Read again what somebody else decided; a crowd of them all at once."""
        if len(self.moved) > AT_ONCE:
            await self.reload()
            self.moved.clear()
        for name in sorted(self.moved):  # as every run of the same seed does
            await self.read(name)
            self.moved.discard(name)

    def _take_in(
        self, record: CronRecord, now: float, like: Added | None = None
    ) -> StoredEntry | None:
        entry = self.entries.get(record.name)
        if entry is None or (entry.record is not record and not _same_definition(entry.record, record)):
            made = self._made(record, like)
            if made is None:
                self._forget(record.name)
                return None
            if entry is not None:
                self._schedule(entry, None)
            self._queues.discard(record.template.queue)
            entry = self.entries[record.name] = made
        entry.record = record
        # The entry may stand elsewhere even if its row is as it was: a database may have lost the last commits.
        if not entry.stands_as(record):
            entry.stands_at(record.last_slot, record.next_slot, record.total)
        entry.task.paused_reason = record.paused_reason
        if record.paused_reason is not None:
            entry.late = False  # a tick that waits has passed, and is not made up
        if record.declared:
            self.abandoned_at = min(self.abandoned_at, _abandoned_at(entry))
        if not entry.awaited:
            self._schedule(entry, entry.due(now))
        return entry

    def _made(self, record: CronRecord, like: Added | None) -> StoredEntry | None:
        """An entry of its row. One that cannot be understood is named in the log, once."""
        try:
            if like is not None and like.definition == record.definition and like.spec.every_s is None:
                spec, policy, description = like.spec, like.policy, like.description
            else:
                spec, policy, description = read_definition(record.definition, record.created_at)
        except Exception as exc:  # noqa: BLE001 - a broken row must not stop the others
            if self._unreadable.get(record.name) != record.definition:
                self._unreadable[record.name] = record.definition
                log.error("cron task %s cannot be read and is left alone: %s", record.name, printable(describe(exc)))  # noqa: TRY400
            return None
        task = CronTask(
            record.name, None, description, spec=spec, policy=policy, declared=record.declared
        )
        last = record.last_slot if record.last_slot is not None else record.created_at
        return StoredEntry(record, task, Slots(last))

    def live(self, entry: StoredEntry) -> CronTask:
        """Its `CronTask`, with the task it publishes: read when asked for, by the type known here by then."""
        shown, template = entry.task.task, entry.record.template
        if shown is None or shown.declared is not self._publisher.known((template.queue, template.type)):
            entry.task.task = self._publisher.template(template)
        return entry.task

    def _forget(self, name: str) -> None:
        entry = self.entries.pop(name, None)
        if entry is not None:
            self._schedule(entry, None)

    # -- changing -------------------------------------------------------------

    async def add(self, task: CronTask, *, replace: bool) -> CronTask:
        """Store an entry of the run time, and answer with its live `CronTask`. A checkpoint."""
        record = await self._row(task, known=True)
        assert task.spec is not None
        like = Added(record.definition, task.spec, task.policy, task.description)
        return await self._put(record, like, replace=replace)

    def twin(self, name: str, *, before: float) -> str | None:
        """An entry that is the same but for its generated name, of those that the first call found older than `before`."""
        if self._earlier is None:
            self._earlier = {
                _nameless(each.record): each.record.name
                for each in self.entries.values()
                if each.record.created_at < before and UUID_TEXT.fullmatch(each.record.name)
            }
        entry = self.entries.get(name)
        there = None if entry is None else self.entries.get(self._earlier.get(_nameless(entry.record), ""))
        # A clock that was set back would have it older than itself.
        if there is None or there is entry or there.record.paused_reason is not None:
            return None
        return there.record.name

    async def change(
        self, name: str, spec: CronSpec, policy: CronPolicy, description: str, template: NewTask
    ) -> CronTask:
        """Store these in place of an entry's own, and answer with its live `CronTask`. A checkpoint."""
        known = await self._storage.crons(name)
        if not known:
            raise CronTaskNotFoundError(f"no stored cron task is named {name!r}")
        created_at = known[0].created_at
        since = from_seconds(created_at)
        if spec.anchor == since:  # as `read_definition` gives it to an `@every` without one of its own
            spec = attrs.evolve(spec, anchor=None)
        now = self._now()
        record = CronRecord(
            name=name,
            definition=write_definition(name, spec, policy, description, template),
            template=template,
            last_slot=now,
            next_slot=_next(_anchored(spec, created_at), now),
            created_at=created_at,
        )
        return await self._put(record, Added(record.definition, spec, policy, description), replace=True)

    async def _put(self, record: CronRecord, like: Added, *, replace: bool) -> CronTask:
        name = record.name
        if record.next_slot is None:
            there = await self._storage.crons(name)
            if not there or there[0].definition != record.definition:  # the same again stays a no-op
                check_not_over(like.spec, from_seconds(self._now()))
        if await self._storage.put_cron(record) is PutAnswer.CONFLICT:
            known = await self._storage.crons(name)
            if known and known[0].declared:
                raise CronNameConflictError(
                    f"a different cron task named {name!r} is declared in code, "
                    "for open_dispatcher(cron=[...]); change it there"
                )
            if not replace:
                raise taken(name)
            if known:
                record = _in_place_of(known[0], record, like.spec)
            await self._storage.put_cron(record, replace=True)
        entry = await self.read(name, like)
        if entry is None:
            raise CronTaskNotFoundError(f"cron task {name!r} was cancelled as soon as it was added")
        return self.live(entry)

    async def _row(self, task: CronTask, *, known: bool) -> CronRecord:
        """The row of a cron task, whose queue has to be `known`."""
        assert task.task is not None
        assert task.spec is not None
        template = await self._publisher.prepare(task.task, known=known)
        template.id = ""
        now = self._now()
        return CronRecord(
            name=task.name,
            definition=write_definition(task.name, task.spec, task.policy, task.description, template),
            template=template,
            declared=task.declared,
            last_slot=now,
            next_slot=_next(_anchored(task.spec, now), now),
            created_at=now,
        )

    async def set_paused(self, entry: StoredEntry, reason: str | None) -> None:
        """Pause with a reason, or resume from now on with None. A checkpoint."""
        name = entry.record.name
        if reason is not None:
            await self._storage.alter_cron(name, paused_reason=reason)
        elif entry.record.paused_reason is not None:
            assert entry.task.spec is not None
            now = self._now()
            await self._storage.alter_cron(
                name, paused_reason=None, last_slot=now, next_slot=_next(entry.task.spec, now)
            )
        await self.read(name)

    async def remove(self, name: str, *, running: bool) -> bool:
        """Remove an entry; with `running`, cancel its tasks. False if there is none. A checkpoint."""
        asked = self._ask()
        removed = await self._storage.remove_cron(name)
        if self._learns(name, asked):
            self._forget(name)
        if removed and running:
            reason = f"cron task {name} was cancelled"
            await self._storage.alter(_unended(name), Change(action="cancel", reason=reason))
        return removed

    async def trigger(self, entry: StoredEntry) -> QueueTask[Any, Any] | None:
        """Publish its task now, beside its plan. Raises what `publish` raises. A checkpoint."""
        new = _publication(entry.record, new_id(self._storage.now()), None)
        [result] = await self._publisher.store([new])
        if result.answer not in (EnqueueAnswer.CREATED, EnqueueAnswer.EXISTING, EnqueueAnswer.REPLACED):
            raise await self._publisher.refusal(new, result)
        task_id = new.id if result.record is None else result.record.id
        page = await self._storage.find(Ids(task_id), limit=1)
        return self._publisher.snapshot(page.records[0]) if page.records else None

    async def backfill(self, entry: StoredEntry, since: datetime, until: datetime, limit: int) -> list[str]:
        """Publish the ticks in (since, until] that have no task; the ids of theirs. A checkpoint."""
        assert entry.task.spec is not None
        name = entry.record.name
        batch: list[NewTask] = []
        for moment in entry.task.spec.between(since, until):
            if len(batch) == limit:
                raise InvalidConfigError(
                    f"cron task {name!r}: more than {limit} ticks between {since} and {until}; raise limit"
                )
            slot = to_seconds(moment)
            batch.append(_publication(entry.record, tick_id(name, slot), slot))
        results = await self._publisher.store(batch)
        for new, result in zip(batch, results, strict=True):
            if result.answer is EnqueueAnswer.UNKNOWN_QUEUE:
                raise await self._publisher.refusal(new, result)
        return [result.id for result in results if result.answer is EnqueueAnswer.CREATED]

    # -- declared in code -----------------------------------------------------

    async def declare(self, tasks: Iterable[CronTask]) -> None:
        """Store what this process declares, in place of what stands there. A checkpoint.

        Raises CronNameConflictError (1015) where a different entry of the run
        time has the name; the same one stays what it is.
        """
        # The queue may be registered later, by the block that is about to begin.
        rows = [(task, await self._row(task, known=False)) for task in tasks]
        if not rows:
            return
        there = {record.name: record for record in await self._storage.crons()}
        for task, row in rows:
            known = there.get(row.name)
            if known is None:
                self._declared[row.name] = row
            elif known.declared:
                assert task.spec is not None
                self._declared[row.name] = _in_place_of(known, row, task.spec)
            elif known.definition != row.definition:
                raise CronNameConflictError(
                    f"cron task {row.name!r} is declared in code, and a different one was added at run time; "
                    "cancel that one first, or declare this one under another name"
                )

        async def put(row: CronRecord) -> None:
            if await self._storage.put_cron(row, replace=True) is PutAnswer.REPLACED:
                log.info("cron task %s: its declaration replaced the stored one", row.name)

        await _side_by_side(put, list(self._declared.values()))

    async def renew(self) -> None:
        """Say that what this process declares is still declared. A checkpoint.

        An entry that was cancelled by hand, or replaced by another process's newer
        declaration, is let be: until this process starts again.
        """
        ours = [
            row
            for row in self._declared.values()
            if (entry := self.entries.get(row.name)) is not None and self._is_ours(entry)
        ]
        await _side_by_side(self._renew, ours)

    async def _renew(self, row: CronRecord) -> None:
        if await self._storage.put_cron(row) is PutAnswer.CREATED:  # cancelled this very moment
            await self._storage.remove_cron(row.name)

    async def pause_abandoned(self) -> None:
        """Pause what others declared and nobody has renewed for an hour. A checkpoint."""
        await self.reload()  # renewing rings no bell
        now = self._now()
        for entry in self._of_others():
            if now >= _abandoned_at(entry):
                log.warning("cron task %s is paused: %s", entry.record.name, ABANDONED)
                await self.set_paused(entry, ABANDONED)

    def _of_others(self) -> list[StoredEntry]:
        return [
            entry
            for entry in self.entries.values()
            if entry.record.declared and entry.record.paused_reason is None and not self._is_ours(entry)
        ]

    def _is_ours(self, entry: StoredEntry) -> bool:
        row = self._declared.get(entry.record.name)
        return row is not None and entry.record.declared and entry.record.definition == row.definition

    @property
    def declares(self) -> bool:
        """Whether this process declares any."""
        return bool(self._declared)

    # -- firing ---------------------------------------------------------------

    async def fire(self, entries: Sequence[StoredEntry], now: float) -> StorageError | None:
        """Decide these entries. What is wrong with one of them is its own; a failing
        storage leaves them due, and is answered. A checkpoint.
        """
        outages: list[StorageError] = []

        async def one(entry: StoredEntry) -> None:
            try:
                await self._decide(entry, now)
            except StorageError as exc:
                outages.append(exc)
                self._schedule_live(entry, entry.due(now))
            except Exception as exc:  # noqa: BLE001 - a broken entry must not stop the others
                self._failed(entry, exc, now)
            else:
                entry.failures = 0

        await _side_by_side(one, entries)
        return outages[0] if outages else None

    def _failed(self, entry: StoredEntry, exc: Exception, now: float) -> None:
        entry.failures += 1
        wait = min(RETRY_S * 2.0 ** min(entry.failures - 1, 10), MAX_RETRY_S)
        entry.retry_at = now + wait
        entry.task.err_count += 1
        entry.task.last_error = describe(exc)
        log.error(
            "cron task %s could not be fired, trying again in %.0f s: %s",
            entry.record.name,
            wait,
            printable(entry.task.last_error),
            exc_info=None if isinstance(exc, DispatchError) else exc,
        )
        self._schedule_live(entry, entry.retry_at)

    def _schedule_live(self, entry: StoredEntry, at: float | None) -> None:
        """Schedule it, unless it was removed or made anew meanwhile."""
        if self.entries.get(entry.record.name) is entry:
            self._schedule(entry, at)

    async def _decide(self, entry: StoredEntry, now: float) -> None:
        """Decide one entry, and try to be the one who writes it."""
        record, task = entry.record, entry.task
        name = record.name
        assert task.spec is not None
        # What this decides by: others may read the entry again while this one waits.
        expected = entry.last_slot
        decision = entry.slots.decide(task.spec, task.policy, now, late=entry.late)
        run: Sequence[float] = decision.run
        if run and task.policy.overlap != "allow" and await self._goes_on(name):
            if task.policy.overlap != "skip":
                await self._wait_for_previous(entry, expected, now)
                return
            log.info("cron task %s: the previous task has not ended; tick skipped", name)
            run = ()
        else:
            decision = one_at_a_time(decision, task.policy)
            run = decision.run
        if run:
            await self._need_queue(record.template.queue)
        tasks = [
            _publication(
                record,
                tick_id(name, slot),
                slot,
                delay_s(task.policy, name, slot, decision.next_slot) - (now - slot),
            )
            for slot in run
        ]
        asked = self._ask()
        answer = await self._storage.advance_cron(
            name,
            expected=expected,
            last_slot=decision.last_slot,
            next_slot=decision.next_slot,
            tasks=tasks,
            definition=record.definition,
        )
        if answer not in (AdvanceAnswer.ADVANCED, AdvanceAnswer.REFUSED):
            entry.late = False
            self.moved.add(name)
            return
        self._learns(name, asked)
        entry.late = False
        if entry.last_slot == expected:  # else it was read meanwhile, with this tick in it
            entry.stands_at(decision.last_slot, decision.next_slot, task.total + len(tasks))
        self._schedule_live(entry, entry.next_slot)
        say_decided(name, decision)
        if answer is AdvanceAnswer.REFUSED:
            self._refused(entry)
            return
        for new in tasks:
            assert new.slot is not None
            self._publisher.observers.tell("cron_fired", name, now - new.slot)
            self._publisher.tell_published(new, now)

    def _refused(self, entry: StoredEntry) -> None:
        """The tick was decided, but its task not stored: say so, and read how many were."""
        name = entry.record.name
        self.moved.add(name)
        self._queues.clear()
        if entry.record.template.unique is not None:
            log.info("cron task %s: a unique task stands in the way of a tick's", name)
            return
        entry.task.err_count += 1
        entry.task.last_error = "a tick's task was not stored: it is stored already, or its queue is not known"
        log.warning("cron task %s: %s", name, entry.task.last_error)

    async def _need_queue(self, queue: str) -> None:
        """Raise QueueNotRegisteredError unless the storage knows the queue.

        Asked before the tick is decided, which then waits as if nothing ran:
        the service that registers the queue may be about to start. A known one is
        not asked for again until there is a new entry for it, or a tick was refused:
        a queue is removed only while no entry publishes into it.
        """
        if queue in self._queues:
            return
        await self._publisher.declare()
        self._queues = {record.name for record in await self._storage.queues()}
        if queue not in self._queues:
            raise QueueNotRegisteredError(
                f"queue {queue!r} is not registered by any process yet; its ticks wait"
            )

    async def _goes_on(self, name: str) -> bool:
        count = await self._storage.count(_unended(name), bound=1)
        return bool(sum(count.values()))

    async def _wait_for_previous(self, entry: StoredEntry, expected: float | None, now: float) -> None:
        """Leave the tick undecided until the previous task has ended."""
        record = entry.record
        found = [task.id for task in (await self._storage.find(_unended(record.name))).records]
        # Another process may have decided this very tick, and its task be among those
        # found: it is not to be waited for, let alone cancelled. If the entry still
        # stands where it stood after they were found, all are of earlier ticks.
        there = await self._storage.crons(record.name)
        if (
            not there
            or there[0].last_slot != expected
            or there[0].definition != record.definition
            or there[0].paused_reason is not None
        ):
            entry.late = False
            self.moved.add(record.name)
            return
        entry.late = True
        if entry.task.policy.overlap == "cancel_running":
            reason = "its cron task's next tick came"
            await self._storage.alter(Ids(*found), Change(action="cancel", reason=reason))
        if not found or self.nursery is None:
            self._schedule_live(entry, now)
            return
        entry.awaited = True
        self._schedule(entry, None)  # it may have been read again meanwhile
        self.nursery.start_soon(self._when_ended, entry, found[0])

    async def _when_ended(self, entry: StoredEntry, task_id: str) -> None:
        with suppress(DispatchError):  # pruned meanwhile, so it has ended; or the loop sees for itself
            await self._publisher.wait(task_id)
        entry.awaited = False
        if self.entries.get(entry.record.name) is entry and not entry.task.paused:
            self._schedule(entry, self._now())
            self._wake()


def say_decided(name: str, decision: Decision) -> None:
    """Log what was not as usual."""
    if decision.clock_was_wrong:
        log.warning(
            "cron task %s: its last tick lies in the future; the clock was wrong. Starting from now", name
        )
    elif decision.missed:
        log.warning("cron task %s: ticks were missed; running %d", name, len(decision.run))


async def _side_by_side(act: Callable[[T], Awaitable[object]], items: Sequence[T]) -> None:
    """`await act(item)` for all of them, begun in portions; the first error is raised as it is."""
    errors: list[Exception] = []
    running = 0
    ended = Bell()

    async def one(item: T) -> None:
        nonlocal running
        try:
            await act(item)
        except Exception as exc:  # noqa: BLE001 - raised below, out of the nursery's group
            errors.append(exc)
        finally:
            running -= 1
            ended.ring()

    async with trio.open_nursery() as nursery:
        for start in range(0, len(items), AT_ONCE):
            while running > IN_FLIGHT:
                await ended.wait()
            portion = items[start : start + AT_ONCE]
            running += len(portion)
            for item in portion:
                nursery.start_soon(one, item)
            await trio.lowlevel.checkpoint()
    if errors:
        raise errors[0]


def _publication(
    record: CronRecord, task_id: str, slot: float | None, delay: float = 0.0
) -> NewTask:
    """The task of one tick, to be stored; without a slot that of a trigger."""
    template = record.template
    return attrs.evolve(
        template, id=task_id, cron=record.name, slot=slot, delay=template.delay + max(delay, 0.0)
    )


def _next(spec: CronSpec, after: float) -> float | None:
    moment = spec.next(from_seconds(after))
    return None if moment is None else to_seconds(moment)


def _anchored(spec: CronSpec, moment: float) -> CronSpec:
    """As `read_definition` gives it."""
    return spec.counted_from(from_seconds(moment))


def _in_place_of(known: CronRecord, row: CronRecord, spec: CronSpec) -> CronRecord:
    """The row of a cron task that is to replace a known one.

    With the same plan it stands where that one stands: a tick that came while
    the service was being replaced is still to be decided, by the new
    definition. With another one its first tick is the next from now. Either
    way an `@every` counts from when the name was added, as it will when the
    row is read; counted from each change, one that is changed more often than
    its period would never fire.
    """
    assert row.last_slot is not None
    spec = _anchored(spec, known.created_at)
    if known.definition == row.definition or _plan(known) == spec:
        return attrs.evolve(row, last_slot=None, next_slot=known.next_slot)
    return attrs.evolve(row, next_slot=_next(spec, row.last_slot))


def _plan(record: CronRecord) -> CronSpec | None:
    try:
        return read_definition(record.definition, record.created_at)[0]
    except Exception:  # noqa: BLE001 - a broken row is replaced like any other
        return None


def _abandoned_at(entry: StoredEntry) -> float:
    return entry.record.seen_at + ABANDONED_S


def _same_definition(before: CronRecord, after: CronRecord) -> bool:
    return (
        before.definition == after.definition
        and before.created_at == after.created_at
        and before.declared == after.declared
    )


def _unended(name: str) -> All:
    return All(Crons(name), Statuses("pending", "running", "held"))


def _nameless(record: CronRecord) -> str:
    """What it does and when, without the name, which stands in its definition for `H`."""
    return record.definition.replace(record.name, "")
