"""One queue at work: feeder, mailbox, actors, settler.

Theory of operation. Four roles share one nursery. The *feeder* claims as many
tasks as there are free slots, never more, and puts them into the *mailbox*. The
*actors*, up to `concurrency` trio tasks that live on, take one claim each, make
the attempt, and put its end into the outbox. The *settler* writes the outbox in
batches: while one batch is being written the next one gathers. An actor does
not wait for its settle; its slot is free the moment the attempt ended.

Everything a role decides, it decides between two awaits, so the counters below
need no lock. Storage trouble is waited out with a back-off that doubles to 5 s;
any other exception is a bug of ours and goes to the caller's nursery.

What is held (claimed, running, or waiting to be settled) is listed by
`held()`, whose leases `upkeep` renews.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Final

import attrs
import trio

from dispatch.bell import Bell
from dispatch.errors import InternalError, StorageError
from dispatch.events import EventKind, Observers, TaskEvent
from dispatch.execution import Executor, Slot, Stop
from dispatch.handlers import HandlerEntry
from dispatch.lifecycle import SettleAnswer
from dispatch.records import Claim, Transition, TransitionKind
from dispatch.registry import Registry
from dispatch.storage.protocol import QueueRecord, SettleResult, Storage, Topic, TopicKind, Want
from dispatch.tasks import TaskQueueConfig, TaskStatus

__all__ = ["QueueActors", "QueueStatistics"]

log: Final = logging.getLogger("dispatch.actors")

SETTLE_BATCH: Final = 1_000
SETTLE_DEADLINE_S: Final = 5.0
"""How long one settle may take before it counts as failed and is repeated."""
BACKOFF_S: Final = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0)


@attrs.frozen(kw_only=True)
class QueueStatistics:
    """One queue in this process, at one instant."""

    name: str
    concurrency: int
    running: int
    paused: bool
    started: int
    succeeded: int
    retried: int
    failed: int
    cancelled: int
    handed_back: int
    lost: int
    unsettled: int


@attrs.define
class _Ending:
    """An attempt's end on its way to the storage."""

    transition: Transition
    claim: Claim
    run_s: float


@attrs.define(eq=False)
class QueueActors:
    """The nursery of actors of one queue."""

    name: str
    config: TaskQueueConfig
    storage: Storage
    registry: Registry
    executor: Executor
    observers: Observers
    worker: str
    lease_s: float
    tags: frozenset[str] | None
    on_claim: Callable[[], None]
    """Called when claims were made: whoever renews leases may be asleep."""

    paused: bool = False
    target: int = 0
    """The concurrency in force: the registered one, or the one set by hand."""
    _handlers: dict[str, HandlerEntry] = attrs.field(factory=dict[str, HandlerEntry])
    _mailbox: deque[Claim] = attrs.field(factory=deque[Claim])
    _parked: list[trio.lowlevel.Task] = attrs.field(factory=list[trio.lowlevel.Task])
    _slots: dict[str, Slot] = attrs.field(factory=dict[str, Slot])
    _outbox: list[_Ending] = attrs.field(factory=list[_Ending])
    _writing: list[_Ending] = attrs.field(factory=list[_Ending])
    _bell: Bell = attrs.field(factory=Bell)
    _outbox_bell: Bell = attrs.field(factory=Bell)
    _live: int = 0
    _stopping: bool = False
    _fed: bool = False
    _finished: trio.Event = attrs.field(factory=trio.Event)
    _nursery: trio.Nursery | None = None
    _counts: dict[EventKind, int] = attrs.field(factory=lambda: dict.fromkeys(EventKind, 0))

    def __attrs_post_init__(self) -> None:
        self.target = self.config.concurrency

    # -- what others ask of it ------------------------------------------------

    async def run(self) -> None:
        """Work until stopped and everything running has ended and is settled.

        Cancelled from outside: running attempts are cancelled and handed back,
        which is written shielded, for at most the settle deadline.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._settle_loop)
                try:
                    await self._feed_loop()
                    self._fed = True
                    self._hand_back_unstarted()
                    self._wake_actors(len(self._parked))
                    self._outbox_bell.ring()
                    await self._finished.wait()
                except BaseException:
                    # Cancelled, or broken: no grace. A thread is only abandoned by being told.
                    self._stopping = True
                    self.interrupt(Stop.GRACE)
                    raise
        finally:
            self._nursery = None
            self._hand_back_unstarted()
            with trio.move_on_after(SETTLE_DEADLINE_S, shield=True):
                await self._settle_all()
            if self._unsettled:
                log.error(
                    "queue %s: %d outcomes could not be written; their leases decide: %s",
                    self.name,
                    self._unsettled,
                    ", ".join(each.claim.id for each in [*self._writing, *self._outbox][:20]),
                )

    def handle(self, entry: HandlerEntry) -> None:
        """Start claiming this handler's type."""
        self._handlers[entry.task_type.type] = entry
        self._bell.ring()

    def control(self, record: QueueRecord) -> None:
        """Apply what was set on the queue by hand; a lower concurrency lets running ones finish."""
        target = record.concurrency if record.concurrency is not None else self.config.concurrency
        if (record.paused, target) == (self.paused, self.target):
            return
        self.paused, self.target = record.paused, target
        self.executor.limiter.total_tokens = target
        self._wake_actors(max(0, self._live - target))
        self._bell.ring()

    def stop(self) -> None:
        """Claim no more; running attempts go on, unstarted claims are handed back at once."""
        self._stopping = True
        self._bell.ring()

    async def finished(self) -> None:
        """Wait until it was stopped and everything has ended and is settled."""
        await self._finished.wait()

    def interrupt(self, why: Stop, detail: str = "") -> list[Claim]:
        """Cancel every running attempt; abandons threads at the end of the grace. Who it was."""
        hit: list[Claim] = []
        for slot in list(self._slots.values()):
            if slot.claim is not None:
                hit.append(slot.claim)
                slot.cancel(why, detail)
                if why is Stop.GRACE and slot.thread is not None:
                    slot.thread.abandon()
        return hit

    def stop_run(self, task_id: str, epoch: int, why: Stop, detail: str = "") -> None:
        """Cancel one attempt, if it is still this one."""
        slot = self._slots.get(task_id)
        if slot is not None and slot.claim is not None and slot.claim.epoch == epoch:
            slot.cancel(why, detail)
            return
        for claim in self._mailbox:
            if claim.id == task_id and claim.epoch == epoch:
                self._mailbox.remove(claim)
                if why is Stop.CANCEL:
                    self._end(Transition(task_id, epoch, TransitionKind.CANCELLED, error=detail), claim, 0.0)
                self._bell.ring()
                return

    def held(self) -> list[tuple[str, int]]:
        """The fences of everything claimed and not settled, but for runs that ignore their end."""
        return [
            *((claim.id, claim.epoch) for claim in self._mailbox),
            *(
                (slot.claim.id, slot.claim.epoch)
                for slot in self._slots.values()
                if slot.claim is not None and (slot.thread is not None or not slot.scope.cancel_called)
            ),
            *((each.claim.id, each.claim.epoch) for each in self._writing),
            *((each.claim.id, each.claim.epoch) for each in self._outbox),
        ]

    def overdue(self) -> list[Slot]:
        """The attempts that were cancelled and still go on."""
        return [slot for slot in self._slots.values() if slot.claim is not None and slot.scope.cancel_called]

    @property
    def busy(self) -> bool:
        """Whether anything is claimed, running or unsettled."""
        return bool(self._mailbox or self._slots or self._unsettled)

    @property
    def running(self) -> int:
        """How many attempts are being made."""
        return len(self._slots)

    def thread_ids(self) -> set[str]:
        """The ids of the tasks whose sync handlers run in threads."""
        return {task_id for task_id, slot in self._slots.items() if slot.thread is not None}

    def running_ids(self) -> list[str]:
        """The ids of the tasks being attempted."""
        return list(self._slots)

    @property
    def _unsettled(self) -> int:
        return len(self._outbox) + len(self._writing)

    def statistics(self) -> QueueStatistics:
        """This queue in this process, at this instant."""
        counts = self._counts
        return QueueStatistics(
            name=self.name,
            concurrency=self.target,
            running=len(self._slots),
            paused=self.paused,
            started=counts[EventKind.STARTED],
            succeeded=counts[EventKind.SUCCEEDED],
            retried=counts[EventKind.RETRYING],
            failed=counts[EventKind.FAILED],
            cancelled=counts[EventKind.CANCELLED],
            handed_back=counts[EventKind.HANDED_BACK],
            lost=counts[EventKind.LOST],
            unsettled=self._unsettled,
        )

    def __repr__(self) -> str:
        state = " paused" if self.paused else " stopping" if self._stopping else ""
        return f"<Queue {self.name!r} running={len(self._slots)}/{self.target}{state}>"

    # -- feeder ---------------------------------------------------------------

    async def _feed_loop(self) -> None:
        failures = 0
        with self.storage.watch(self._bell, Topic(TopicKind.QUEUE, self.name)):
            while not self._stopping:
                free = self.target - len(self._slots) - len(self._mailbox)
                if free <= 0 or self.paused or not self._handlers:
                    await self._bell.wait()
                    continue
                try:
                    await self.registry.declare(self.storage)
                    answer = await self.storage.claim(
                        [self._want(free)], worker=self.worker, lease=self.lease_s
                    )
                except StorageError as exc:
                    failures = await self._back_off(failures, "claim", exc)
                    continue
                failures = self._recovered(failures, "claim")
                if answer.claims:
                    self._deliver(answer.claims)
                    if len(answer.claims) == free:
                        continue  # there may be more; the next round waits for a slot
                wait_s = inf
                if answer.next_due is not None:
                    wait_s = min(max(answer.next_due - self.storage.now(), 0.0), self._slice_s())
                await self._bell.wait(wait_s)

    def _slice_s(self) -> float:
        """A wait towards a wall-clock moment is cut up where the wall clock may jump."""
        return 5.0 if self.storage.durable else inf

    def _want(self, free: int) -> Want:
        config = self.config
        return Want(
            queue=self.name,
            limit=free,
            types={name: entry.task_type.version for name, entry in self._handlers.items()},
            tags=self.tags,
            max_retry=config.max_retry,
            retry=config.policy.to_text(),
            timeout=config.timeout,
            on_interrupt=config.on_interrupt,
            ageing=config.ageing,
        )

    def _deliver(self, claims: list[Claim]) -> None:
        """Put claims into the mailbox, wake or start actors for them."""
        self.on_claim()
        for claim in claims:
            if claim.id in self._slots:
                # Our own earlier run of it lost its lease and has not ended yet: two
                # runs of one task must not meet in one process, so this one waits.
                self._slots[claim.id].cancel(Stop.LOST, "its lease ran out")
                self._end(Transition(claim.id, claim.epoch, TransitionKind.SNOOZED, retry_in=1.0), claim, 0.0)
                continue
            self._mailbox.append(claim)
        wanted = len(self._mailbox)
        parked = len(self._parked)
        self._wake_actors(min(wanted, parked))
        assert self._nursery is not None
        for _ in range(min(wanted - parked, self.target - self._live)):
            self._live += 1
            self._nursery.start_soon(self._act, name=f"dispatch actor of {self.name}")

    def _hand_back_unstarted(self) -> None:
        while self._mailbox:
            claim = self._mailbox.popleft()
            self._end(Transition(claim.id, claim.epoch, TransitionKind.HANDED_BACK), claim, 0.0)

    # -- actors ---------------------------------------------------------------

    async def _act(self) -> None:
        """Attempt after attempt, parked in between; the scope is renewed once it was cancelled."""
        slot = Slot()
        try:
            while True:
                with trio.CancelScope() as slot.scope:
                    slot.stop = None
                    while True:
                        while not self._mailbox:
                            if self._stopping or self._live > self.target:
                                return
                            await self._park()
                        if not await self._attempt(slot, self._mailbox.popleft()):
                            break
        finally:
            self._live -= 1
            self._outbox_bell.ring()  # the settler may have waited for the last actor to leave

    async def _park(self) -> None:
        task = trio.lowlevel.current_task()
        self._parked.append(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._parked.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def _wake_actors(self, count: int) -> None:
        for _ in range(min(count, len(self._parked))):
            trio.lowlevel.reschedule(self._parked.pop())

    async def _attempt(self, slot: Slot, claim: Claim) -> bool:
        """Make one attempt; False if it used up the slot's scope."""
        began = trio.current_time()
        slot.claim = claim
        self._slots[claim.id] = slot
        entry = self._handlers[claim.type]
        slot.handler = entry.name
        self._counts[EventKind.STARTED] += 1
        if self.observers and self.observers.wants(EventKind.STARTED):
            self.observers.emit(
                TaskEvent(
                    kind=EventKind.STARTED,
                    at=claim.started_at,
                    task_id=claim.id,
                    queue=claim.queue,
                    task_type=claim.type,
                    attempt=claim.attempt,
                    worker=self.worker,
                    wait_s=claim.started_at - claim.available_at,
                    cron=claim.cron,
                )
            )
        try:
            ended = await self.executor.execute(slot, claim, entry)
        finally:
            slot.claim = None
            slot.named_at = None
            del self._slots[claim.id]
            self._bell.ring()
        if ended.transition is not None:
            self._end(ended.transition, claim, trio.current_time() - began)
        if ended.raising is not None:
            raise ended.raising
        return not slot.scope.cancel_called

    # -- settler --------------------------------------------------------------

    def _end(self, transition: Transition, claim: Claim, run_s: float) -> None:
        self._outbox.append(_Ending(transition, claim, run_s))
        self._outbox_bell.ring()

    async def _settle_loop(self) -> None:
        while True:
            await self._settle_all()
            if self._fed and not self._live:
                self._finished.set()
                return
            await self._outbox_bell.wait()

    async def _settle_all(self) -> None:
        """Write the outbox, batch by batch, until it is empty; waits out storage trouble."""
        failures = 0
        while self._outbox or self._writing:
            if not self._writing:
                self._writing = self._outbox[:SETTLE_BATCH]
                self._outbox = self._outbox[SETTLE_BATCH:]
            answers: list[SettleResult] | None = None
            try:
                with trio.move_on_after(SETTLE_DEADLINE_S, shield=True):
                    answers = await self.storage.settle([each.transition for each in self._writing])
                if answers is None:
                    raise StorageError(f"no answer within {SETTLE_DEADLINE_S:g} s")
            except StorageError as exc:
                failures = await self._back_off(failures, "settle", exc)
                continue
            failures = self._recovered(failures, "settle")
            written, self._writing = self._writing, []
            if len(answers) != len(written):
                raise InternalError(
                    f"{self.storage!r} answered {len(answers)} of {len(written)} settled runs"
                )
            for ending, answer in zip(written, answers, strict=True):
                self._settled(ending, answer)

    def _settled(self, ending: _Ending, answer: SettleResult) -> None:
        """Count one settled run, and tell the observers."""
        kind = _kind_of(ending.transition, answer)
        self._counts[kind] += 1
        if kind is EventKind.LOST:
            log.warning(
                "task %s (%s/%s): the outcome of attempt %d was refused (%s); another run decides",
                ending.claim.id,
                self.name,
                ending.claim.type,
                ending.claim.attempt,
                answer.answer.value,
            )
        if not self.observers or not self.observers.wants(kind):
            return
        claim, transition = ending.claim, ending.transition
        self.observers.emit(
            TaskEvent(
                kind=kind,
                at=self.storage.now(),
                task_id=claim.id,
                queue=claim.queue,
                task_type=claim.type,
                attempt=claim.attempt,
                worker=self.worker,
                run_s=ending.run_s,
                retry_in=transition.retry_in
                if kind in (EventKind.RETRYING, EventKind.SNOOZED)
                else None,
                error=transition.error,
                failure_reason=answer.failure_reason,
                cron=claim.cron,
            )
        )

    # -- trouble --------------------------------------------------------------

    async def _back_off(self, failures: int, step: str, exc: StorageError) -> int:
        level = logging.WARNING if failures == 0 else logging.DEBUG
        log.log(level, "queue %s: %s failed, trying again: %s", self.name, step, exc)
        await trio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
        return failures + 1

    def _recovered(self, failures: int, step: str) -> int:
        if failures:
            log.info("queue %s: %s works again after %d failures", self.name, step, failures)
        return 0


_KINDS: Final = {
    TransitionKind.DONE: EventKind.SUCCEEDED,
    TransitionKind.CANCELLED: EventKind.CANCELLED,
    TransitionKind.SNOOZED: EventKind.SNOOZED,
    TransitionKind.HANDED_BACK: EventKind.HANDED_BACK,
}


def _kind_of(transition: Transition, answer: SettleResult) -> EventKind:
    """What an end of a run became: the storage has the last word on retry or dead."""
    if answer.answer not in (SettleAnswer.APPLIED, SettleAnswer.REPEATED):
        return EventKind.LOST
    if answer.status is TaskStatus.FAILED:
        return EventKind.FAILED
    if answer.status is TaskStatus.CANCELLED:
        return EventKind.CANCELLED
    return _KINDS.get(transition.kind, EventKind.RETRYING)
