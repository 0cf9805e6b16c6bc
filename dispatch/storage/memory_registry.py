"""The memory storage apart from its tasks: queues, workers, cron entries, bells."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Generator, Iterable, Sequence
from contextlib import contextmanager
from math import inf
from threading import get_ident

import attrs
import trio

from dispatch.bell import Bell
from dispatch.clock import Clock
from dispatch.records import NewTask
from dispatch.storage.bells import Bells
from dispatch.storage.changes import later_slot
from dispatch.storage.protocol import (
    KEEP,
    AdvanceAnswer,
    CronRecord,
    EnqueueAnswer,
    EnqueueResult,
    Keep,
    PutAnswer,
    QueueRecord,
    RemoveAnswer,
    Storage,
    Topic,
    TopicKind,
    WorkerRecord,
)
from dispatch.storage.ready import ReadyQueue, Row
from dispatch.threads import check_thread

__all__ = ["MemoryRegistry"]

class MemoryRegistry(Storage):
    """Every part of a memory storage that is not about single tasks."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._queues: dict[str, ReadyQueue] = {}
        self._workers: dict[str, WorkerRecord] = {}
        self._crons: dict[str, CronRecord] = {}
        self._bells = Bells()
        self._ring = self._bells.ring
        self._thread: int | None = None
        """That of the trio run of those who watch; None while nobody does."""
        self._sweeps: dict[str, float] = {}
        """Per worker watching LEASES: the latest `next_sweep` it may be relying on."""
        self._touched: dict[str, None] = {}
        """Queues in which something may be claimable that was not, in order: rung at the step's end."""

    @abstractmethod
    def _store(self, new: NewTask, now: float, bounded: bool = False) -> EnqueueResult:
        """Store one task, or not: a part of a step."""

    @abstractmethod
    def _rows_of(self, queue: str) -> Iterable[Row]:
        """The queue's rows, by order of storing."""

    @abstractmethod
    def _unwatched(self, task_id: str) -> None:
        """Nobody watches for this task's end any more."""

    def now(self) -> float:
        return self._clock.now()

    def _entered(self) -> Awaitable[None]:
        """Begin a step, which belongs into the run of those who watch: honour a pending cancellation."""
        check_thread(self, self._thread)
        return trio.lowlevel.checkpoint_if_cancelled()  # noqa: ASYNC105 - awaited by the caller

    async def rest(self) -> None:
        """Let others run."""
        check_thread(self, self._thread)
        await trio.lowlevel.checkpoint()

    # ---- bells -----------------------------------------------------------

    @contextmanager
    def watch(self, bell: Bell, *topics: Topic) -> Generator[None]:
        check_thread(self, self._thread)
        self._thread = get_ident()
        leases = [topic.name for topic in topics if topic.kind is TopicKind.LEASES]
        try:
            with self._bells.watch(bell, *topics):
                self._sweeps.update(dict.fromkeys(leases, inf))
                yield
        finally:
            for name in leases:
                if name not in self._bells.names(TopicKind.LEASES):
                    del self._sweeps[name]
            if not self._bells:
                self._thread = None
            for topic in topics:
                if topic.kind is TopicKind.TASK and topic.name not in self._bells.names(TopicKind.TASK):
                    self._unwatched(topic.name)

    def _ring_queues(self) -> None:
        """End a step: ring for the queues it touched."""
        for name in self._touched:
            self._ring(TopicKind.QUEUE, name)
            queue = self._queues[name]
            if queue.room:
                self._ring_room(queue)
        self._touched.clear()

    def _ring_room(self, queue: ReadyQueue) -> None:
        queue.room = False
        if not queue.full:
            self._ring(TopicKind.ROOM, queue.record.name)

    def _ring_leases(self, worker: str, until: float) -> None:
        """Tell every other worker that relies on sweeping later than this lease's end."""
        for name, relied_on in self._sweeps.items():
            if until < relied_on and name != worker:
                self._sweeps[name] = until
                self._ring(TopicKind.LEASES, name)

    # ---- queues ----------------------------------------------------------

    async def declare(self, queues: Sequence[QueueRecord], *, new_only: bool = False) -> None:
        await self._entered()
        now = self._clock.now()
        for given in queues:
            known = self._queues.get(given.name)
            if known is None:
                fresh = given if new_only else attrs.evolve(given, paused=False, concurrency=None)
                self._queues[given.name] = ReadyQueue(fresh)
                self._touched[given.name] = None
                continue
            if new_only:
                continue
            kept = known.record
            record = attrs.evolve(given, paused=kept.paused, concurrency=kept.concurrency)
            if record != kept:
                known.rebuild(record, self._rows_of(given.name), now)
                self._touched[given.name] = None
                self._ring(TopicKind.CONTROL, given.name)
        self._ring_queues()

    async def queues(self) -> list[QueueRecord]:
        await self._entered()
        return [self._queues[name].record for name in sorted(self._queues)]

    async def alter_queue(
        self, name: str, *, paused: bool | None = None, concurrency: int | Keep | None = KEEP
    ) -> bool:
        await self._entered()
        queue = self._queues.get(name)
        if queue is None:
            return False
        if paused is not None:
            queue.record = attrs.evolve(queue.record, paused=paused)
        if not isinstance(concurrency, Keep):
            queue.record = attrs.evolve(queue.record, concurrency=concurrency)
        self._ring(TopicKind.CONTROL, name)
        self._ring(TopicKind.QUEUE, name)
        return True

    async def remove_queue(self, name: str) -> RemoveAnswer:
        await self._entered()
        if name not in self._queues:
            return RemoveAnswer.UNKNOWN
        if any(True for _ in self._rows_of(name)):
            return RemoveAnswer.STORED
        del self._queues[name]
        self._ring(TopicKind.CONTROL, name)
        self._ring(TopicKind.ROOM, name)
        return RemoveAnswer.REMOVED

    beat_s = inf

    @property
    def slice_s(self) -> float:
        """As the clock's: unbounded where time is virtual and cannot jump."""
        return self._clock.slice_s

    # ---- workers ---------------------------------------------------------

    async def beat(self, worker: WorkerRecord) -> None:
        await self._entered()
        self._workers[worker.id] = attrs.evolve(worker, seen_at=self._clock.now())

    async def workers(self) -> list[WorkerRecord]:
        """Every worker not forgotten: in one process none can die unnoticed."""
        await self._entered()
        return sorted(self._workers.values(), key=lambda worker: worker.id)

    async def forget(self, worker: str) -> None:
        await self._entered()
        self._workers.pop(worker, None)

    # ---- cron entries ----------------------------------------------------

    async def put_cron(self, entry: CronRecord, *, replace: bool = False) -> PutAnswer:
        await self._entered()
        now = self._clock.now()
        known = self._crons.get(entry.name)
        if known is None:
            self._crons[entry.name] = attrs.evolve(entry, created_at=entry.created_at or now, seen_at=now)
            self._ring(TopicKind.CRON)
            return PutAnswer.CREATED
        if known.definition == entry.definition and known.template == entry.template:
            self._crons[entry.name] = attrs.evolve(known, seen_at=now)
            return PutAnswer.SAME
        if not replace:
            return PutAnswer.CONFLICT
        self._crons[entry.name] = attrs.evolve(
            entry,
            last_slot=later_slot(known.last_slot, entry.last_slot),
            paused_reason=known.paused_reason,
            total=known.total,
            created_at=known.created_at,
            seen_at=now,
        )
        self._ring(TopicKind.CRON)
        return PutAnswer.REPLACED

    async def crons(self, name: str | None = None) -> list[CronRecord]:
        await self._entered()
        if name is not None:
            return [self._crons[name]] if name in self._crons else []
        return [self._crons[known] for known in sorted(self._crons)]

    async def alter_cron(
        self,
        name: str,
        *,
        paused_reason: str | None,
        last_slot: float | None = None,
        next_slot: float | None = None,
    ) -> bool:
        await self._entered()
        known = self._crons.get(name)
        if known is None:
            return False
        if last_slot is not None:
            last_slot = later_slot(known.last_slot, last_slot)
            known = attrs.evolve(known, last_slot=last_slot, next_slot=next_slot)
        self._crons[name] = attrs.evolve(known, paused_reason=paused_reason)
        self._ring(TopicKind.CRON)
        return True

    async def remove_cron(self, name: str) -> bool:
        await self._entered()
        if self._crons.pop(name, None) is None:
            return False
        self._ring(TopicKind.CRON)
        return True

    async def advance_cron(
        self,
        name: str,
        *,
        expected: float | None,
        last_slot: float,
        next_slot: float | None,
        tasks: Sequence[NewTask],
        definition: str | None = None,
    ) -> AdvanceAnswer:
        await self._entered()
        entry = self._crons.get(name)
        if entry is None:
            return AdvanceAnswer.GONE
        if entry.paused_reason is not None:
            return AdvanceAnswer.PAUSED
        if entry.last_slot != expected or definition not in (None, entry.definition):
            return AdvanceAnswer.MOVED
        now = self._clock.now()
        answers = [self._store(new, now).answer for new in tasks]
        stored = answers.count(EnqueueAnswer.CREATED)
        self._crons[name] = attrs.evolve(
            entry,
            last_slot=last_slot,
            next_slot=next_slot,
            total=entry.total + stored,
        )
        self._ring_queues()
        return AdvanceAnswer.ADVANCED if stored == len(answers) else AdvanceAnswer.REFUSED
