"""Which of one queue's tasks may run next: the memory storage's index.

Theory of operation. Every pending task is in at most one place. Not due, it is
in `later`, a heap by due time, from which `mature` moves it on. Due and free to
run, it is READY: in the heaps that claims look at. Due but behind its key, it
is nowhere, only counted in `waiting`. Held, running and ended tasks are in no
place at all. So a claim looks at tasks that can run and at nothing else.

READY tasks are kept once per view. A view is what one kind of worker may take:
its tags, None being all. In it, by type and version, there are four heaps, one
per priority, ordered by (available_at, seq). Within one of these the head is
always the best, aged or not, because who waited longer has aged more; a claim
merges the heads.

A heap entry is never searched for: it carries the row's `ticket` and is stale
as soon as the row has drawn another. Stale entries are dropped when they reach
the top, or in a sweep when a heap has doubled since the last one or is mostly
stale, which costs a push a constant on average.

Keys. On a keyed queue each key has a `_Line`: its pending tasks in order of
storing, and how many of it run. Its head, if none runs, is the one that may be
READY. A delayed head holds its key. A held task steps aside until resumed, and
then takes its old place. With `on_retry="yield"` so does a task that has run
before while it waits for its next run; due again, it is next in line.

A task once due stays due, also if the wall clock jumps back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final, Literal

import attrs

from dispatch.records import AttemptRecord, TaskRecord
from dispatch.storage.limits import allowance
from dispatch.storage.protocol import QueueRecord, Want
from dispatch.tasks import TaskStatus

__all__ = ["ReadyQueue", "Row", "level"]

PENDING: Final = TaskStatus.PENDING
NOWHERE: Final = 0
LATER: Final = 1
READY: Final = 2
Place = Literal[0, 1, 2]

SMALL: Final = 64
"""A heap of fewer entries is not worth a sweep."""
MOST_VIEWS: Final = 16
"""Kinds of workers, by tags, indexed at a time; the one made first goes first."""
HIGHEST: Final = 3


class Row:
    """A stored task, its place in the index, and its history."""

    __slots__ = ("due", "last", "lined", "past", "place", "record", "ticket")

    def __init__(self, record: TaskRecord) -> None:
        self.record: TaskRecord = record
        self.ticket: int = 0
        """The only ticket under which an entry of this row is valid."""
        self.place: Place = NOWHERE
        self.due: bool = False
        """Counted in its queue's `waiting`."""
        self.lined: bool = False
        """Has an entry in its key's line, perhaps a stale one."""
        self.last: AttemptRecord | None = None
        self.past: list[AttemptRecord] | None = None
        """The runs before the last: made at the second one."""


Entry = tuple[float, int, int, Row]
"""(available_at, seq, ticket, row): no two agree in the first three."""
Levels = tuple[list[Entry], list[Entry], list[Entry], list[Entry]]


def sweep(heap: list[Entry]) -> int:
    """Drop the stale entries; answers the size at which to sweep again."""
    heap[:] = [entry for entry in heap if entry[2] == entry[3].ticket]
    heapify(heap)
    return 2 * len(heap) + SMALL


class _View:
    """The READY tasks that workers of certain tags may take."""

    __slots__ = ("entries", "groups", "sweep_at", "tags")

    def __init__(self, tags: frozenset[str] | None) -> None:
        self.tags = tags
        self.groups: dict[str, dict[int, Levels]] = {}
        self.entries = 0
        self.sweep_at = SMALL

    def push(self, entry: Entry) -> None:
        record = entry[3].record
        if self.tags is not None and record.tags and not self.tags.issuperset(record.tags):
            return
        versions = self.groups.get(record.type)
        if versions is None:
            versions = self.groups[record.type] = {}
        levels = versions.get(record.version)
        if levels is None:
            levels = versions[record.version] = ([], [], [], [])
        heappush(levels[record.priority], entry)
        self.entries += 1
        if self.entries > self.sweep_at:
            self.sweep()

    def sweep(self) -> None:
        """Drop the stale entries, and groups without any."""
        valid = list(self.valid())
        self.groups = {}
        self.entries = 0
        self.sweep_at = 2 * len(valid) + SMALL
        for entry in sorted(valid):
            self.push(entry)

    def valid(self) -> Iterator[Entry]:
        for versions in self.groups.values():
            for levels in versions.values():
                for heap in levels:
                    for entry in heap:
                        if entry[2] == entry[3].ticket:
                            yield entry

    def heaps(self, types: Mapping[str, int] | None) -> list[tuple[int, list[Entry]]]:
        """The heaps of the wanted types that have a valid head, with their priorities."""
        found: list[tuple[int, list[Entry]]] = []
        wanted: Iterable[str] = list(self.groups) if types is None else types
        for name in wanted:
            versions = self.groups.get(name)
            if versions is None:
                continue
            newest = None if types is None else types[name]
            empty = True
            for version, levels in versions.items():
                if newest is not None and version > newest:
                    empty = False
                    continue
                for priority, heap in enumerate(levels):
                    if heap and heap[0][2] != heap[0][3].ticket:
                        self._top(heap)
                    if heap:
                        found.append((priority, heap))
                        empty = False
            if empty and len(self.groups) > SMALL:
                del self.groups[name]  # else a flood of one-off types would be looked at for ever
        return found

    def pop(self, heap: list[Entry]) -> Row:
        """Take the head, which is valid, and make the next valid one the head."""
        row = heappop(heap)[3]
        self.entries -= 1
        row.ticket += 1  # its entries in other views are stale now
        if heap and heap[0][2] != heap[0][3].ticket:
            self._top(heap)
        return row

    def _top(self, heap: list[Entry]) -> None:
        while heap and heap[0][2] != heap[0][3].ticket:
            heappop(heap)
            self.entries -= 1


class _Line:
    """One key: its pending tasks in order of storing, and how many of it run."""

    __slots__ = ("head", "heap", "running", "sweep_at")

    def __init__(self) -> None:
        self.heap: list[tuple[int, Row]] = []
        """(seq, row); stale where the row is not pending any more, or yields."""
        self.head: Row | None = None
        self.running = 0
        self.sweep_at = SMALL

    def join(self, row: Row) -> None:
        row.lined = True
        heappush(self.heap, (row.record.seq, row))
        if len(self.heap) > self.sweep_at:
            for _, other in self.heap:
                other.lined = other.record.status is PENDING
            kept = self.heap = [pair for pair in self.heap if pair[1].lined]
            heapify(self.heap)
            self.sweep_at = 2 * len(kept) + SMALL


class ReadyQueue:
    """One declared queue: its record, and its tasks as far as they may run.

    The caller changes the rows. It says `remove` before a pending row changes,
    `add` when a row is pending (again), `ended` when a run is over.
    """

    __slots__ = (
        "_last_free",
        "_later",
        "_later_sweep_at",
        "_lines",
        "_ready",
        "_views",
        "dropped",
        "limited",
        "record",
        "room",
        "rows",
        "running",
        "tokens",
        "tokens_at",
        "waiting",
    )

    def __init__(self, record: QueueRecord) -> None:
        self.record: QueueRecord = record
        self.rows: list[Row] = []
        """All that were stored in it, in this order, and `dropped` that are stored no more; the caller's."""
        self.dropped: int = 0
        self.waiting: int = 0
        """Tasks pending and due, also those behind their key or of a type nobody handles."""
        self.room: bool = False
        """Set when `waiting` sinks below the bound; the caller rings and clears it."""
        self.running: int = 0
        """Tasks running; the caller counts them."""
        self.limited: bool = record.max_running is not None or record.rate is not None
        self.tokens: float | None = None
        self.tokens_at: float | None = None
        self._last_free = -1 if record.max_waiting is None else record.max_waiting - 1
        self._ready = 0
        self._later: list[Entry] = []
        self._later_sweep_at = SMALL
        self._views: dict[frozenset[str] | None, _View] = {None: _View(None)}
        self._lines: dict[str, _Line] = {}

    @property
    def full(self) -> bool:
        """Whether its bound is reached; call `mature` first."""
        return self.record.max_waiting is not None and self.waiting >= self.record.max_waiting

    def rebuild(self, record: QueueRecord, rows: Iterable[Row], now: float) -> None:
        """Start again from the queue's rows, under another declaration."""
        self.record = record
        self.limited = record.max_running is not None or record.rate is not None
        self.waiting = 0
        self.room = True
        self._last_free = -1 if record.max_waiting is None else record.max_waiting - 1
        self._ready = 0
        self._later = []
        self._views = {None: _View(None)}
        self._lines = {}
        pending: list[Row] = []
        for row in rows:
            row.ticket += 1
            row.place = NOWHERE
            row.due = row.lined = False
            key = row.record.key
            if row.record.status is TaskStatus.RUNNING:
                if key is not None and record.keyed:
                    self._line(key).running += 1
            elif row.record.status is PENDING:
                pending.append(row)
        for row in pending:
            self.add(row, now)

    def add(self, row: Row, now: float) -> None:
        """Find the place of a row that is pending."""
        record = row.record
        if record.available_at <= now:
            row.due = True
            self.waiting += 1
            if record.key is None or not self.record.keyed:
                self._offer(row)
                return
        else:
            row.ticket += 1
            row.place = LATER
            heappush(self._later, (record.available_at, record.seq, row.ticket, row))
            if len(self._later) > self._later_sweep_at:
                self._later_sweep_at = sweep(self._later)
            if record.key is None or not self.record.keyed:
                return
        self._join(row, record.key, now)

    def remove(self, row: Row) -> None:
        """Take a pending row out of its place. Follow with `add` or `step`."""
        if row.place == READY:
            self._withdraw(row)
            for view in self._views.values():
                # Not left to the next claim, which must not pay for a mass cancel or hold.
                if view.entries > 2 * self._ready + SMALL:
                    view.sweep()
        else:
            row.ticket += 1
            row.place = NOWHERE
        if row.due:
            self._leave(row)

    def step(self, key: str | None, now: float) -> bool:
        """Let the next of a key step forward, if there is a key; whether one may be claimed now."""
        return key is not None and self.record.keyed and self._promote(key, now)

    def ended(self, row: Row, now: float) -> bool:
        """A run is over and its row written; whether something may be claimable now."""
        record = row.record
        keyed = record.key is not None and self.record.keyed
        if keyed and record.key is not None:
            self._lines[record.key].running -= 1
        if record.status is PENDING:
            self.add(row, now)
            return True
        return keyed and self.step(record.key, now)

    def mature(self, now: float) -> None:
        """Move on what has fallen due."""
        later = self._later
        while later and later[0][0] <= now:
            _, _, ticket, row = heappop(later)
            if ticket != row.ticket:
                continue
            row.place = NOWHERE
            row.due = True
            self.waiting += 1
            if row.record.key is not None and self.record.keyed:
                self._join(row, row.record.key, now)
            else:
                self._offer(row)

    def next_due(self) -> float | None:
        """When the next task of any kind falls due; call `mature` first."""
        later = self._later
        while later and later[0][2] != later[0][3].ticket:
            heappop(later)
        return later[0][0] if later else None

    def within_limits(self, want: Want, now: float) -> tuple[Want, float | None]:
        """The want as far as the queue's limits allow it; and when its rate allows more."""
        limit, more_at = want.limit, None
        if self.record.max_running is not None:
            limit = min(limit, self.record.max_running - self.running)
        if self.record.rate is not None:
            allowed = allowance(self.record.rate, self.tokens, self.tokens_at, now)
            self.tokens, self.tokens_at = allowed.tokens, now
            if allowed.claims < limit:
                limit, more_at = allowed.claims, allowed.more_at
        return attrs.evolve(want, limit=max(limit, 0)), more_at

    def spend(self, count: int) -> None:
        """So many claims were made under the rate."""
        if self.tokens is not None:
            self.tokens -= count

    def take(self, want: Want, now: float) -> list[Row]:
        """The rows a claim starts, in claim order, out of their places; the caller starts them."""
        view = self._view(want.tags)
        heaps = view.heaps(want.types)
        taken: list[Row] = []
        limit = want.limit
        if len(heaps) == 1:
            heap = heaps[0][1]
            while heap and len(taken) < limit:
                taken.append(view.pop(heap))
        elif heaps:
            heads = [_head(priority, heap, now, want.ageing) for priority, heap in heaps]
            heapify(heads)
            while heads and len(taken) < limit:
                _, _, _, priority, heap = heads[0]
                taken.append(view.pop(heap))
                if heap:
                    heapreplace(heads, _head(priority, heap, now, want.ageing))
                else:
                    heappop(heads)
        for row in taken:
            self._start(row)
        return taken

    def take_named(self, want: Want, rows: Iterable[Row], now: float) -> list[Row]:
        """As `take`, of these rows of the queue alone."""
        fit = [row for row in rows if row.place == READY and _wanted(want, row.record)]
        fit.sort(
            key=lambda row: (
                -level(row.record.priority, row.record.available_at, now, want.ageing),
                row.record.available_at,
                row.record.seq,
            )
        )
        taken = fit[: max(want.limit, 0)]
        for row in taken:
            row.ticket += 1
            self._start(row)
        return taken

    def _start(self, row: Row) -> None:
        row.place = NOWHERE
        self._ready -= 1
        self._leave(row)
        if self.record.keyed and row.record.key is not None:
            line = self._lines[row.record.key]
            line.running += 1
            line.head = None

    def _leave(self, row: Row) -> None:
        row.due = False
        self.waiting -= 1
        if self.waiting == self._last_free:
            self.room = True

    def _withdraw(self, row: Row) -> None:
        row.ticket += 1
        row.place = NOWHERE
        self._ready -= 1

    def _offer(self, row: Row) -> None:
        record = row.record
        row.ticket += 1
        row.place = READY
        self._ready += 1
        entry = (record.available_at, record.seq, row.ticket, row)
        for view in self._views.values():
            view.push(entry)

    def _view(self, tags: frozenset[str] | None) -> _View:
        view = self._views.get(tags)
        if view is None:
            if len(self._views) >= MOST_VIEWS:
                del self._views[next(known for known in self._views if known is not None)]
            view = self._views[tags] = _View(tags)
            for entry in sorted(self._views[None].valid()):
                view.push(entry)
        return view

    def _line(self, key: str) -> _Line:
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line()
        return line

    def _join(self, row: Row, key: str, now: float) -> None:
        """Take a pending row into its key's line."""
        line = self._line(key)
        if not row.lined:
            line.join(row)
        self._promote(key, now)

    def _promote(self, key: str, now: float) -> bool:
        """Make the first in line its head, and READY if it is due; whether it became so."""
        line = self._lines.get(key)
        if line is None:
            return False
        head: Row | None = None
        if not line.running:
            heap = line.heap
            while heap:
                first = heap[0][1]
                if first.record.status is PENDING and not self._yields(first.record, now):
                    head = first
                    break
                # A yielding row is in `later`, and joins again when it is due.
                heappop(heap)
                first.lined = False
        before = line.head
        line.head = head
        if before is not None and before is not head and before.place == READY:
            self._withdraw(before)
        if head is None:
            if not line.running and not line.heap:
                del self._lines[key]
        elif head.due and head.place != READY:
            self._offer(head)
            return True
        return False

    def _yields(self, record: TaskRecord, now: float) -> bool:
        return record.epoch > 0 and record.available_at > now and self.record.on_retry == "yield"


def _head(
    priority: int, heap: list[Entry], now: float, ageing: float | None
) -> tuple[int, float, int, int, list[Entry]]:
    """Where a heap's head stands in claim order; `seq` decides before the rest is compared."""
    available_at, seq, _, _ = heap[0]
    return -level(priority, available_at, now, ageing), available_at, seq, priority, heap


def level(priority: int, available_at: float, now: float, ageing: float | None) -> int:
    """The effective level: one more per ageing interval waited, at most the highest."""
    waited = now - available_at
    if ageing is None or waited <= 0:
        return priority
    if waited >= ageing * (HIGHEST - priority):
        return HIGHEST  # decided before dividing: a tiny interval would overflow
    return priority + int(waited / ageing)


def _wanted(want: Want, record: TaskRecord) -> bool:
    if want.types is not None and want.types.get(record.type, 0) < record.version:
        return False
    return want.tags is None or want.tags.issuperset(record.tags)
