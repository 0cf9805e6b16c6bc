"""What keeps a worker honest: renewed leases, rescued tasks, obeyed controls.

One trio task per worker, asleep while there is nothing to keep. While anything
is held it renews every lease at a third of its length, learns from the answer
which runs are lost or asked to stop, and names in the log those that ignore it.
It sweeps for expired leases of dead workers, applies what was set on queues by
hand, and writes the worker's record.

A sweep that comes late judges the living: what kept it (a handler that blocks
the loop, a stopped process, a storage that was away) may have kept others from
renewing, too. Such a sweep is put off by one lease, as it is after a jump of
the clock, in which every living worker renews.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf
from typing import Final

import attrs
import trio

from dispatch.actors import QueueActors
from dispatch.bell import Bell
from dispatch.errors import StorageError
from dispatch.events import EventKind, Observers, TaskEvent
from dispatch.execution import Slot, Stop
from dispatch.failures import printable
from dispatch.records import TaskRecord
from dispatch.storage.protocol import QueueRecord, Storage, Topic, TopicKind, WorkerRecord
from dispatch.tasks import TaskStatus

__all__ = ["Upkeep"]

log: Final = logging.getLogger("dispatch.upkeep")

SWEEP_S: Final = 5.0
"""How often to sweep where the storage cannot say when the next sweep is worth it."""
ROUND_DEADLINE_S: Final = 10.0
"""A storage that does not answer must not stop renewals and sweeps for good."""
RENEWED_AT_ONCE: Final = 4
"""Queues whose leases are renewed side by side: a database has few connections for all steps."""
LOOK_S: Final = 1.0
"""A look at the controls ends after a third of the lease, when renewing is due again, or this if it is longer."""
PUT_OFF: Final = 3
"""How often in a row a late sweep is put off: a loop that is always late must not leave tasks to the dead."""
NAMED: Final = 3
"""So many of what a dead worker held are named in the log; the events tell of each."""
NAME_OVERDUE_S: Final = 5.0
"""How often an attempt that ignores its cancellation is named in the log."""


_ENDS: Final = {TaskStatus.FAILED: EventKind.FAILED, TaskStatus.CANCELLED: EventKind.CANCELLED}


class _KeeperBell(Bell):
    """Rung by the storage for something to look at; `arm` only ends a nap that is too long."""

    __slots__ = ("called_at",)

    def __init__(self) -> None:
        super().__init__()
        self.called_at: float | None = None
        """When it was rung first since the last nap, in trio's time."""

    def ring(self) -> None:
        if self.called_at is None:
            self.called_at = trio.current_time()
        super().ring()

    def arm(self) -> None:
        super().ring()


class _AskedBell(Bell):
    """Rung when a control changed or a run was asked to stop; hands that on, and notes when."""

    __slots__ = ("_then", "at")

    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__()
        self._then = then
        self.at: float = -inf
        """When it was rung last, in trio's time."""

    def ring(self) -> None:
        self.at = trio.current_time()
        self._then()


@attrs.define(eq=False)
class Upkeep:
    """The one timer of a worker."""

    storage: Storage
    worker: str
    lease_s: float
    queues: Callable[[], Iterable[QueueActors]]
    observers: Observers
    _bell: _KeeperBell = attrs.field(factory=_KeeperBell)
    _asked: _AskedBell = attrs.field(init=False)
    _asleep: bool = False
    _napping_long: bool = False
    _started_at: float = 0.0
    _renewed_at: float = 0.0
    _cut_short: float = inf
    """When the renewing began that is not at its end yet."""
    _beat_due: float = -inf
    _next_sweep: float = -inf
    """In trio's time, like every moment here but `_seen_wall`."""
    _put_off: int = 0
    """How many late sweeps were put off since the last one that was made."""
    _seen_wall: float | None = None
    _seen_trio: float = 0.0

    def __attrs_post_init__(self) -> None:
        self._asked = _AskedBell(self._bell.ring)

    def claimed(self, since: float) -> None:
        """Something was claimed by a step begun at `since`: if the nap is longer than its lease allows, shorten it."""
        if self._asked.at >= since:  # to stop what was claimed, perhaps, which nobody here knew of yet
            self._bell.ring()
        if self._asleep:
            self._asleep = False
            self._bell.arm()

    def doubt(self) -> None:
        """A claim may have taken effect unknown to us: sweep when its lease is over, at the latest."""
        self._next_sweep = min(self._next_sweep, trio.current_time() + self.lease_s + 0.001)
        self._bell.ring()

    def attend(self) -> None:
        """A queue was added, or its first handler: read its controls soon, and say so in the worker's record."""
        self._beat_due = -inf
        self._bell.ring()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep until cancelled. Started once orphans were looked after and controls applied."""
        self._started_at = self.storage.now()
        leases, control = Topic(TopicKind.LEASES, self.worker), Topic(TopicKind.CONTROL)
        started = False
        failures = 0
        with self.storage.watch(self._bell, leases), self.storage.watch(self._asked, control):
            while True:
                try:
                    # Cancelled halfway, every step of a round has happened or not, and comes again.
                    with trio.move_on_after(ROUND_DEADLINE_S) as scope:
                        await self._round()
                    if scope.cancelled_caught:
                        raise StorageError(f"no answer within {ROUND_DEADLINE_S:g} s")
                except StorageError as exc:
                    self.observers.tell("storage_failed", "upkeep", exc)
                    if not started:
                        raise
                    failures += 1
                    # The 1st, 2nd, 4th, 8th and so on: an outage of hours must not fill the log.
                    level = logging.DEBUG if failures & (failures - 1) else logging.WARNING
                    log.log(level, "upkeep: the storage failed, trying again: %s", exc)
                    await trio.sleep(min(1.0, self.lease_s / 6))
                    continue
                if failures:
                    log.info("upkeep: the storage works again after %d failures", failures)
                    failures = 0
                if not started:
                    started = True
                    task_status.started()
                await self._nap()

    async def name_lingering(self, while_it_lasts: trio.CancelScope) -> None:
        """Name what goes on when `run` was cancelled, as everything was, from outside; in a shielded scope.

        It ends by itself as well: were its scope never cancelled, since a Ctrl-C
        struck just before, it would hold the process for ever.
        """
        with while_it_lasts:
            while any(actors.attempts() for actors in self.queues()):
                await trio.sleep(NAME_OVERDUE_S)
                for actors in self.queues():
                    for slot in actors.attempts():
                        self._name(slot, "shutdown")

    async def _nap(self) -> None:
        """Sleep until something is due or the storage rings.

        A first claim arms the timer instead of causing a round at once: most
        runs are over long before their lease needs renewing.
        """
        await self._bell.wait(self._nap_s())
        if not self._asleep and self._bell.called_at is None and self._napping_long:
            self._napping_long = False
            await self._bell.wait(min(self.lease_s / 3, NAME_OVERDUE_S))
        if self._next_sweep == inf:  # nothing was leased: whatever rang may be the first
            self._next_sweep = trio.current_time() if self._bell.called_at is None else self._bell.called_at
        self._bell.called_at = None

    def _nap_s(self) -> float:
        """Seconds until something is due; infinity, and marked asleep, if nothing is."""
        now = trio.current_time()
        due = min(self._next_sweep, self._beat_due)
        if any(actors.busy for actors in self.queues()):
            due = min(due, self._renewed_at + self.lease_s / 3)
        if self._overdue():
            due = min(due, now + NAME_OVERDUE_S)
        # A claim made during a longer nap would not be renewed in time: it must wake us.
        self._asleep = self._napping_long = due - now > self.lease_s / 3
        return due - now

    async def _round(self) -> None:
        jumped = self._clock_jumped()
        if jumped:
            # Leases were measured by a clock that lied: give every living worker one
            # lease's time to renew before anything is called dead.
            self._next_sweep = trio.current_time() + self.lease_s
            self._cut_short = inf
            log.warning("the storage's clock jumped; no sweep for %g s", self.lease_s)
        await self._renew()
        await self._apply_controls()
        # Judged after renewing: what was late may have been the renewal itself.
        if trio.current_time() >= self._next_sweep and not self._puts_off():
            await self._sweep()
            self._put_off = 0
        if trio.current_time() >= self._beat_due:
            await self._beat()
        self._name_overdue()

    def _puts_off(self) -> bool:
        """Whether the sweep that is due comes too late to be trusted; it is then due one lease from now."""
        now = trio.current_time()
        late_s = now - self._next_sweep
        # The first sweep of all is due since ever, and late for nobody.
        if late_s <= self.lease_s / 3 or late_s == inf or self._put_off >= PUT_OFF:
            return False
        self._put_off += 1
        self._next_sweep = now + self.lease_s
        log.warning(
            "the sweep for expired leases comes %.1f s late: this process stood still, or the storage was away; "
            "no sweep for %g s, so that every living worker renews first",
            late_s,
            self.lease_s,
        )
        return True

    def _clock_jumped(self) -> bool:
        wall, mono = self.storage.now(), trio.current_time()
        before, self._seen_wall = self._seen_wall, wall
        elapsed = mono - self._seen_trio
        self._seen_trio = mono
        return before is not None and abs((wall - before) - elapsed) > self.lease_s / 2

    async def _renew(self) -> None:
        """Renew everything held; stop what is lost, or asked to stop. Raises what failed at its end."""
        failures: list[Exception] = []
        # What the deadline of a round cut short is gone on with, from the oldest renewal on: begun
        # anew each time, it would never come to the last queues, nor a round to what follows.
        began = trio.current_time()
        since = self._cut_short = min(began, self._cut_short)
        holding = [each for each in self.queues() if each.held() and (since == began or each.renewed_at < since)]
        holding.sort(key=lambda each: each.renewed_at)
        if len(holding) <= 1:  # as it mostly is
            await self._renew_queues(iter(holding), failures)
        else:
            # One after the other, many queues of a slow storage would take longer than a lease; all
            # at once, every other step would wait behind them.
            queues = iter(holding)
            async with trio.open_nursery() as nursery:
                for _ in range(min(len(holding), RENEWED_AT_ONCE)):
                    nursery.start_soon(self._renew_queues, queues, failures)
        self._cut_short = inf
        if failures:
            raise failures[0]
        self._renewed_at = trio.current_time() if since == began else since

    async def _renew_queues(self, queues: Iterator[QueueActors], failures: list[Exception]) -> None:
        for actors in queues:
            if held := actors.held():  # it may have ended meanwhile
                await self._renew_queue(actors, held, failures)

    async def _renew_queue(
        self, actors: QueueActors, held: Sequence[tuple[str, int]], failures: list[Exception]
    ) -> None:
        began = trio.current_time()
        try:
            answers = await self.storage.renew(held, lease=self.lease_s)
        except Exception as exc:  # noqa: BLE001 - of one queue: the others must not lose their leases by it
            failures.append(exc)
            return
        for answer in answers:
            if not answer.held:
                actors.stop_run(answer.id, answer.epoch, Stop.LOST, "its lease ran out")
            elif answer.cancel_reason is not None:
                actors.stop_run(answer.id, answer.epoch, Stop.CANCEL, answer.cancel_reason)
        actors.renewed_at = began

    async def _apply_controls(self) -> None:
        by_name = {actors.name: actors for actors in self.queues()}
        look_s = max(self.lease_s / 3, LOOK_S)
        records: list[QueueRecord] | None = None
        with trio.move_on_after(look_s):
            records = await self.storage.queues()
        if records is None:
            raise StorageError(f"no answer within {look_s:g} s")
        for record in records:
            actors = by_name.get(record.name)
            if actors is not None:
                paused, target = actors.paused, actors.target
                actors.control(record)
                told = ["is paused" if actors.paused else "goes on"] if actors.paused != paused else []
                if actors.target != target:
                    told.append(f"runs {actors.target} at once instead of {target}")
                if told:
                    extra = {"event": "controlled", "queue": record.name}
                    log.info("queue %s: %s, by hand", record.name, " and ".join(told), extra=extra)

    async def _sweep(self) -> None:
        rescued = await self.storage.rescue()
        now = self.storage.now()
        _warn_of_rescued(rescued.records)
        for record in rescued.records:
            self.observers.emit(
                TaskEvent(
                    # One record per transition: of what ended by this, its end.
                    kind=_ENDS.get(record.status, EventKind.RESCUED),
                    at=now,
                    task_id=record.id,
                    queue=record.queue,
                    task_type=record.type,
                    attempt=record.attempt,
                    worker=record.worker,
                    run_s=_run_s(record),
                    error=record.last_error,
                    failure_reason=record.failure_reason,
                    rescued=True,
                    cron=record.cron,
                    headers=record.headers,
                )
            )
        mono = trio.current_time()
        if rescued.next_sweep is None:
            self._next_sweep = mono + SWEEP_S
        else:
            # An expiry is strict, so a sweep at the very instant would find nothing.
            self._next_sweep = mono + max(rescued.next_sweep - now, 0.0) + 0.001

    async def _beat(self) -> None:
        actors = list(self.queues())
        # Before the write: what is added meanwhile is said in the next one, at once.
        self._beat_due = trio.current_time() + self.storage.beat_s
        try:
            await self._write_beat(actors)
        except BaseException:
            self._beat_due = -inf
            raise

    async def _write_beat(self, actors: Sequence[QueueActors]) -> None:
        await self.storage.beat(
            WorkerRecord(
                id=self.worker,
                host=socket.gethostname(),
                pid=os.getpid(),
                started_at=self._started_at,
                seen_at=0.0,
                queues=tuple(sorted(each.name for each in actors if each.consumes)),
                running=tuple(sorted(task for each in actors for task in each.running_ids())),
            )
        )

    def _name_overdue(self) -> None:
        now = trio.current_time()
        for slot in self._overdue():
            if slot.named_at is not None and now - slot.named_at < NAME_OVERDUE_S:
                continue
            if slot.named_at is not None:
                self._name(slot, slot.stop.value if slot.stop is not None else "timeout")
            slot.named_at = now

    def _overdue(self) -> list[Slot]:
        """The attempts that were cancelled and still go on."""
        return [slot for actors in self.queues() for slot in actors.attempts() if slot.scope.cancel_called]

    def _name(self, slot: Slot, why: str) -> None:
        claim = slot.claim
        assert claim is not None
        log.warning(
            "%s was cancelled (%s) and still runs task %s (attempt %d); %s",
            slot.handler,
            why,
            claim.id,
            claim.attempt,
            "its thread is asked and waited for"
            if slot.thread is not None
            else "its lease is no longer renewed, and it keeps its block open",
            extra={"event": "overdue", "task_id": claim.id, "handler": slot.handler},
        )


def _warn_of_rescued(records: Sequence[TaskRecord]) -> None:
    """One line for what a dead worker held of a queue, be it one task or a thousand claimed ahead."""
    held: dict[tuple[str | None, str], list[TaskRecord]] = {}
    for record in records:
        held.setdefault((record.worker, record.queue), []).append(record)
    for (worker, queue), tasks in held.items():
        first, extra = tasks[0], {"event": "rescued", "queue": queue, "worker": worker, "tasks": len(tasks)}
        if len(tasks) == 1:
            log.warning(
                "task %s (%s/%s) rescued from worker %s, which stopped renewing attempt %d: now %s",
                *(first.id, queue, first.type, printable(str(worker)), first.attempt, first.status.value),
                extra={**extra, "task_id": first.id},
            )
            continue
        became = Counter(record.status.value for record in tasks)
        log.warning(
            "queue %s: %d tasks rescued from worker %s, which stopped renewing them: now %s; among them %s",
            *(queue, len(tasks), printable(str(worker))),
            ", ".join(f"{count} {status}" for status, count in became.most_common()),
            ", ".join(record.id for record in tasks[:NAMED]),
            extra=extra,
        )


def _run_s(record: TaskRecord) -> float | None:
    """How long the last run of an ended task took, as its history says: up to the rescue."""
    if not record.status.is_terminal or record.started_at is None or record.finished_at is None:
        return None
    return max(record.finished_at - record.started_at, 0.0)
