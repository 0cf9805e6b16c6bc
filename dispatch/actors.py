"""One queue at work: a mailbox, and actors who feed it themselves.

Theory of operation. The actors, up to `concurrency` trio tasks that live on, take
claims from the *mailbox*, make the attempts, and put their ends into the
*outbox*. There is no feeder and no settler beside them: an actor that finds the
mailbox empty takes a *turn*, one storage step that settles the whole outbox and
claims as many tasks as there are free slots, and `prefetch` more where the queue
asks for it. Only one turn is under way at a time; what ends meanwhile gathers for
the next one, which is all the batching a database needs, and a published task
wakes one actor who claims and runs it without another hop. (A trio task for
feeding and one for settling cost two more switches per task, half of the
in-memory throughput.)

A ring wakes an actor only if none is on its way already (`_coming` counts those
woken, started, or about to take their turn), so a hundred rings wake one.
`_look` remembers that there is something to look for; whoever goes on to other
work while it is set, or while an outcome waits, wakes the next.

With a prefetch there is one actor more than slots, so that one can be at a turn
while as many attempts are made as may be. Outcomes must not wait for the mailbox
to be empty: a turn is taken when no slot is free, too, and by an actor fresh from a
rest if the last one was over for longer than it took. Where a server makes it, one is
due once half of so many as are worth it has ended, too: the other half is run meanwhile.

Everything is decided between two awaits, so the counters below need no lock.
Storage trouble is waited out with a back-off that doubles to 5 s; any other
exception is a bug of ours and goes to the caller's nursery. Trouble that comes
back with the same outcomes may be theirs: after APART failures in a row they
are settled *alone*, one by one beside the turns, which go on without them. So an
outcome that the storage refuses for its own sake holds up nobody else's.

What is held (claimed, running, or waiting to be settled) is listed by `held()`,
whose leases `upkeep` renews.

A Ctrl-C that struck amid all this would lose what is claimed: an attempt counts for
each, though none was made. So actors are protected from it, but for what `drive` runs.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain, repeat
from math import inf
from typing import Final, cast

import attrs
import trio

from dispatch.alarm import Alarm
from dispatch.bell import Bell
from dispatch.errors import InternalError, StorageError
from dispatch.events import EventKind, Observers, TaskEvent
from dispatch.execution import Executor, Slot, Stop, tell_refused
from dispatch.failures import enclosed
from dispatch.handlers import HandlerEntry
from dispatch.outcomes import judged
from dispatch.records import Claim, Transition, TransitionKind
from dispatch.registry import Registry
from dispatch.storage.protocol import (
    Claimed,
    EnqueueAnswer,
    QueueRecord,
    SettleResult,
    Storage,
    Topic,
    TopicKind,
    Want,
)
from dispatch.tasks import TaskQueueConfig
from dispatch.threads import ASKED_S

__all__ = ["QueueActors", "QueueStatistics"]

log: Final = logging.getLogger("dispatch.actors")

# On 3.11 an Enum takes 0.1 us to give a member, and these are asked for with each attempt.
STARTED: Final = EventKind.STARTED
HANDED_BACK: Final = TransitionKind.HANDED_BACK
STREAK: Final = 16
"""Attempts an actor makes before it lets others run, where handlers never wait themselves."""
# Slots and prefetch together that make two turns worth their while; with ten in all, halves took twice the time.
HALVED: Final = 64
SETTLE_BATCH: Final = 1_000
SETTLE_DEADLINE_S: Final = 5.0
"""How long one settle may take before it counts as failed and is repeated."""
APART: Final = 3
"""So many failures in a row, and the outcomes that met them are settled one by one."""
ALONE: Final = 1_000
"""With so many outcomes refused nothing more is claimed: the next ones would be, too."""
BACKOFF_S: Final = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0)


@attrs.frozen(kw_only=True)
class QueueStatistics:
    """One queue in this process, at one instant."""

    name: str
    concurrency: int
    running: int
    prefetched: int
    """Claimed, and waiting here for a free slot."""
    paused: bool
    started: int
    succeeded: int
    retried: int
    failed: int
    cancelled: int
    handed_back: int
    lost: int
    unsettled: int


class _Ringer(Bell):
    """The queue's bell: a ring goes straight to the actors."""

    __slots__ = ("_then",)

    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__()
        self._then = then

    def ring(self) -> None:
        self._then()


@attrs.define
class _Ending:
    """An attempt's end on its way to the storage."""

    transition: Transition
    claim: Claim
    run_s: float
    named: bool = False
    """Whether the log has said that it is refused alone, while others are not."""


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
    on_claim: Callable[[float], None]
    """Called when claims were made, with when they were asked for: whoever renews leases may be asleep."""
    on_doubt: Callable[[], None]
    """Called when claims may have been made that nobody here knows of: they need a sweep."""

    paused: bool = False
    target: int = 0
    """The concurrency in force: the registered one, or the one set by hand."""
    interrupted: list[str] = attrs.field(factory=list[str])
    """The tasks whose attempts the end of the grace, or a cancellation from outside, cut short."""
    too_late: list[str] = attrs.field(factory=list[str])
    """Those among them whose lease was over by then: what became of them others have decided."""
    abandoned: list[str] = attrs.field(factory=list[str])
    """Those whose threads were left to themselves."""
    renewed_at: float = -inf
    """When the last renewal of what is held here began, in trio's time."""
    _handlers: dict[str, HandlerEntry] = attrs.field(factory=dict[str, HandlerEntry])
    _mailbox: deque[Claim] = attrs.field(factory=deque[Claim])
    _parked: list[trio.lowlevel.Task] = attrs.field(factory=list[trio.lowlevel.Task])
    _slots: dict[str, Slot] = attrs.field(factory=dict[str, Slot])
    _outbox: list[_Ending] = attrs.field(factory=list[_Ending])
    _writing: list[_Ending] = attrs.field(factory=list[_Ending])
    _alone: deque[_Ending] = attrs.field(factory=deque[_Ending])
    """What is settled one by one, by one trio task of its own; the next one first."""
    _ringer: _Ringer = attrs.field(init=False)
    _alarm: Alarm = attrs.field(init=False)
    _look: bool = True
    _coming: int = 0
    """How many actors will look at the mailbox and the outbox in a moment."""
    _turning: bool = False
    _turned_at: float = -inf
    _turn_s: float = 0.0
    """When the last turn was over, in trio's time, and how long it took."""
    _live: int = 0
    _failures: int = 0
    _refused: str | None = None
    """The concurrency set by hand that was last found to be none, so that it is named once."""
    _wants: dict[int, Want] = attrs.field(factory=dict[int, Want])
    _stopping: bool = False
    _finished: trio.Event = attrs.field(factory=trio.Event)
    _nursery: trio.Nursery | None = None
    _counts: dict[EventKind, int] = attrs.field(factory=lambda: dict.fromkeys(EventKind, 0))

    def __attrs_post_init__(self) -> None:
        self.target = self.config.concurrency
        self._ringer = _Ringer(self.ring)
        self._alarm = Alarm(self.storage, self.ring)
        self.executor.later = self._begin

    # -- what others ask of it ------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Work until stopped and everything running has ended and is settled.

        Cancelled from outside: running attempts are cancelled and handed back,
        which is written shielded, for at most the settle deadline; threads get
        ASKED_S to end before.
        """
        topic = Topic(TopicKind.QUEUE, self.name)
        try:
            with self.storage.watch(self._ringer, topic):
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(self._alarm.run)
                    if not self._handlers:
                        nursery.start_soon(self._declare)
                    self.ring()
                    try:
                        await self._finished.wait()
                    except BaseException:
                        # Cancelled, or broken: no grace. A thread is only abandoned by being told.
                        self._stopping = True
                        self._nursery = None  # it takes no more actors; `finally` writes what is left
                        self._hand_back_unstarted()
                        self.interrupt(Stop.GRACE)
                        try:
                            with trio.move_on_after(ASKED_S, shield=True):
                                await self.threads_ended()
                        finally:
                            self.abandon()
                        raise
                    self._nursery = None
                    nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            self._hand_back_unstarted()
            with trio.move_on_after(SETTLE_DEADLINE_S, shield=True):
                while self._outbox or self._writing:
                    await self._turn()
                await self._settle_alone()
            if self.unwritten:
                log.error(
                    "queue %s: %d outcomes could not be written; their leases decide: %s",
                    self.name,
                    len(self.unwritten),
                    ", ".join(self.unwritten[:20]),
                )

    async def _declare(self) -> None:
        """See that the storage knows the queue, which nobody takes a turn for; others may publish into it."""
        for pause_s in chain(BACKOFF_S, repeat(BACKOFF_S[-1])):
            try:
                await self.registry.declare(self.storage)
            except StorageError as exc:
                log.debug("queue %s: cannot be declared, trying again: %s", self.name, exc)
                await trio.sleep(pause_s)
            else:
                return

    def _begin(self, function: Callable[[], Awaitable[None]]) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(function)

    @property
    def unwritten(self) -> list[str]:
        """The tasks whose runs have ended here, and the storage does not know."""
        return [each.claim.id for each in (*self._alone, *self._writing, *self._outbox)]

    def ring(self) -> None:
        """Something may be claimable, or have changed: let one actor look, if one is free."""
        self._look = True
        self._lead()

    def handle(self, entry: HandlerEntry) -> None:
        """Start claiming this handler's type."""
        self._handlers[entry.task_type.type] = entry
        self._wants.clear()
        self.ring()

    def control(self, record: QueueRecord) -> None:
        """Apply what was set on the queue by hand.

        A lower concurrency lets running ones finish; a pause hands unstarted claims back.
        """
        target = self._asked_of(record)
        if (record.paused, target) == (self.paused, self.target):
            return
        self.paused, self.target = record.paused, target
        self.executor.limiter.total_tokens = target
        if self.paused:
            self._hand_back_unstarted()
        self._wake(max(0, self._live - self._most))
        self.ring()

    def _asked_of(self, record: QueueRecord) -> int:
        """The concurrency that the record asks for; the registered one in place of nonsense.

        What another program wrote there must not keep every worker of the store from its work.
        """
        asked = cast("object", record.concurrency)
        if asked is None or (isinstance(asked, int) and not isinstance(asked, bool) and asked >= 1):
            self._refused = None
            return self.config.concurrency if asked is None else asked
        if repr(asked) != self._refused:
            log.warning(
                "queue %s: the storage asks for a concurrency of %r; it stays at the registered %d",
                *(self.name, asked, self.config.concurrency),
            )
        self._refused = repr(asked)
        return self.config.concurrency

    def stop(self) -> None:
        """Claim no more; running attempts go on, unstarted claims are handed back at once."""
        self._stopping = True
        self._hand_back_unstarted()
        self._wake(len(self._parked))
        self.ring()
        self._maybe_finished()

    def give_up(self) -> None:
        """Cancel whatever is left, outcomes that cannot be written included; `run` tries them once more."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    async def finished(self) -> None:
        """Wait until it was stopped and everything has ended and is settled."""
        await self._finished.wait()

    def interrupt(self, why: Stop) -> None:
        """Cancel every running attempt; a thread is asked to end."""
        for slot in list(self._slots.values()):
            slot.cancel(why)

    async def threads_ended(self) -> None:
        """Wait until the threads of sync handlers have ended, for as long as the caller's scope lets it."""
        for slot in list(self._slots.values()):
            if slot.thread is not None:
                await slot.thread.ended()

    def abandon(self) -> None:
        """Wait no longer for the threads that still run: their leases decide."""
        for slot in self._slots.values():
            if slot.claim is not None and slot.thread is not None and slot.thread.abandon():
                self.abandoned.append(slot.claim.id)

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
                self.ring()
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
            *((each.claim.id, each.claim.epoch) for each in self._alone),
            *((each.claim.id, each.claim.epoch) for each in self._writing),
            *((each.claim.id, each.claim.epoch) for each in self._outbox),
        ]

    def attempts(self) -> list[Slot]:
        """The attempts that are being made."""
        return [slot for slot in self._slots.values() if slot.claim is not None]

    @property
    def consumes(self) -> bool:
        """Whether it has a handler, without which it takes nothing."""
        return bool(self._handlers)

    @property
    def busy(self) -> bool:
        """Whether anything is claimed, running or unsettled."""
        return bool(self._mailbox or self._slots or self._outbox or self._writing or self._alone)

    @property
    def running(self) -> int:
        """How many attempts are being made."""
        return len(self._slots)

    def running_ids(self) -> list[str]:
        """The ids of the tasks being attempted."""
        return list(self._slots)

    def statistics(self) -> QueueStatistics:
        """This queue in this process, at this instant."""
        counts = self._counts
        return QueueStatistics(
            name=self.name,
            concurrency=self.target,
            running=len(self._slots),
            prefetched=len(self._mailbox),
            paused=self.paused,
            started=counts[EventKind.STARTED],
            succeeded=counts[EventKind.SUCCEEDED],
            retried=counts[EventKind.RETRYING],
            failed=counts[EventKind.FAILED],
            cancelled=counts[EventKind.CANCELLED],
            handed_back=counts[EventKind.HANDED_BACK],
            lost=counts[EventKind.LOST],
            unsettled=len(self.unwritten),
        )

    def __repr__(self) -> str:
        state = " paused" if self.paused else " stopping" if self._stopping else ""
        prefetched = f" prefetched={len(self._mailbox)}" if self.config.prefetch else ""
        return f"<Queue {self.name!r} running={len(self._slots)}/{self.target}{prefetched}{state}>"

    # -- actors ---------------------------------------------------------------

    def _lead(self) -> None:
        """Have one actor take a turn, unless one is on its way, or all are busy and will."""
        if self._coming or self._turning or self._nursery is None:
            return
        if self._parked:
            self._wake(1)
        elif self._live < self._most or (self._live == 0 and (self._outbox or self._writing)):
            self._start_actor()

    def _start_actor(self) -> None:
        assert self._nursery is not None
        self._live += 1
        self._coming += 1
        self._nursery.start_soon(self._act, name=f"dispatch actor of {self.name}")

    @trio.lowlevel.enable_ki_protection
    async def _act(self) -> None:
        """Attempt after attempt, parked in between; the scope is renewed once it was cancelled.

        Before a turn that follows an attempt it lets the others run once: who
        else ends, or publishes, in that moment shares the turn.
        """
        slot = Slot()
        streak = 0
        self._coming -= 1
        try:
            while True:
                slot.scope, slot.stop, slot.spent = trio.CancelScope(), None, False
                with enclosed(slot.scope) as slot.around:
                    while True:
                        if self._mailbox and streak < STREAK and (not self.config.prefetch or self._begins(streak)):
                            streak += 1
                            claim = self._mailbox.popleft()
                            if self._look or self._outbox:
                                self._lead()
                            if not await self._attempt(slot, claim):
                                break
                        elif streak:
                            streak = 0
                            self._coming += 1
                            try:
                                await trio.lowlevel.checkpoint()
                            finally:
                                self._coming -= 1
                        elif not self._turning and (
                            self._outbox or self._writing or (self._look and self._claimable())
                        ):
                            await self._turn()
                        elif self._stopping or self._live > self._most:
                            return
                        else:
                            await self._park()
        finally:
            self._live -= 1
            self._maybe_finished()

    def _begins(self, streak: int) -> bool:
        """Where there is a prefetch: whether an actor takes the next claim, and so starts it, or else a turn or a rest."""
        if len(self._slots) >= self.target:
            return False
        now = self._hand_back_expired()
        if not self._mailbox:
            return False
        if not self._turning and (self._outbox or self._writing):
            # In a thread of this process a turn would compete with the attempts: on SQLite that cost 7 to 17 %.
            half = self.storage.remote and 2 * len(self._outbox) >= max(HALVED, self.target + self.config.prefetch)
            # Turns one after another would leave little time for what they are for.
            if half or (streak == 0 and trio.current_time() - self._turned_at >= self._turn_s):
                return False
        self._mailbox[0].started_at = now
        return True

    async def _park(self) -> None:
        task = trio.lowlevel.current_task()
        self._parked.append(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._parked.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        self._coming -= 1

    def _wake(self, count: int) -> None:
        for _ in range(min(count, len(self._parked))):
            self._coming += 1
            trio.lowlevel.reschedule(self._parked.pop())

    def _maybe_finished(self) -> None:
        if self._stopping and not self._live and not self.busy:
            self._finished.set()

    async def _attempt(self, slot: Slot, claim: Claim) -> bool:
        """Make one attempt; False if it used up the slot's scope."""
        began = trio.current_time()
        slot.claim = claim
        self._slots[claim.id] = slot
        entry = self._handlers[claim.type]
        slot.handler = entry.name
        self._counts[STARTED] += 1
        if self.observers.wants(STARTED):
            self.observers.emit(
                TaskEvent(
                    kind=STARTED,
                    at=claim.started_at,
                    task_id=claim.id,
                    queue=claim.queue,
                    task_type=claim.type,
                    attempt=claim.attempt,
                    worker=self.worker,
                    wait_s=claim.started_at - claim.available_at,
                    cron=claim.cron,
                    headers=claim.headers,
                )
            )
        try:
            ended = await self.executor.execute(slot, claim, entry)
        finally:
            slot.claim = None
            slot.named_at = None
            del self._slots[claim.id]
        if ended.transition is not None:
            self._end(ended.transition, claim, trio.current_time() - began)
            if ended.transition.kind is HANDED_BACK and slot.stop is not Stop.LOST:
                self.interrupted.append(claim.id)
        if ended.raising is not None:
            raise ended.raising
        return not slot.spent

    # -- turns ----------------------------------------------------------------

    def _end(self, transition: Transition, claim: Claim, run_s: float) -> None:
        self._outbox.append(_Ending(transition, claim, run_s))

    def _claimable(self) -> int:
        """How many more may be claimed."""
        if self.paused or self._stopping or not self._handlers or len(self._alone) >= ALONE:
            return 0
        return max(0, self.target + self.config.prefetch - len(self._slots) - len(self._mailbox))

    @property
    def _most(self) -> int:
        """How many actors there may be: one per slot, and with a prefetch one to take turns meanwhile."""
        return self.target + (self.config.prefetch > 0)

    async def _turn(self) -> None:
        """Settle the outbox and claim up to the free slots, in one step of the storage.

        Shielded, with a deadline: an outcome is never left half written. After
        trouble it waits, and what it could not write stays for the next turn.
        """
        self._turning = True
        began = trio.current_time()
        if self.config.prefetch:
            self._call_up(len(self._mailbox) - self._coming)  # no slot is to be free for as long as this takes
        try:
            await self._take_turn(began)
        finally:
            self._turning = False
            if self.config.prefetch:
                self._turned_at = trio.current_time()
                self._turn_s = self._turned_at - began
        if self._look or self._outbox or self._writing:
            self._lead()

    async def _take_turn(self, began: float) -> None:
        if not self._writing:
            self._writing = self._outbox[:SETTLE_BATCH]
            del self._outbox[:SETTLE_BATCH]
        free = self._claimable()
        self._look = self._look and free <= 0
        try:
            answers, claimed = await self._step(self._writing, [self._want(free)] if free > 0 else ())
        except StorageError as exc:
            self._look = True
            if free > 0:
                self.on_doubt()
            self.observers.tell("storage_failed", "turn", exc)
            log.log(logging.DEBUG if self._failures else logging.WARNING, "queue %s: the storage failed, trying again: %s", self.name, exc)
            pause_s = BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)]
            self._failures += 1
            if self._failures >= APART:
                self._set_apart()
            await trio.sleep(pause_s)
            return
        if self._failures:
            log.info("queue %s: the storage works again after %d failures", self.name, self._failures)
            self._failures = 0
        written, self._writing = self._writing, []
        self._deliver(claimed, free, began)
        for ending, answer in zip(written, answers, strict=True):
            self._settled(ending, answer)
        if self._look and not written and not claimed.claims:
            await trio.lowlevel.checkpoint()  # a storage that rings for nothing lets others run all the same

    async def _step(
        self, endings: Sequence[_Ending], wants: Sequence[Want]
    ) -> tuple[list[SettleResult], Claimed]:
        """One step of the storage. Raises StorageError, also if it takes longer than the deadline."""
        if self.registry.undeclared:
            await self.registry.declare(self.storage)
        step = self.storage.turn(
            [each.transition for each in endings], wants, worker=self.worker, lease=self.lease_s
        )
        found: tuple[list[SettleResult], Claimed] | None = None
        if self.storage.immediate:
            found = await step
        else:
            with trio.CancelScope(shield=True) as scope:
                scope.deadline = trio.current_time() + SETTLE_DEADLINE_S
                found = await step
        if found is None:
            raise StorageError(f"no answer within {SETTLE_DEADLINE_S:g} s")
        if len(found[0]) != len(endings):
            raise InternalError(f"{self.storage!r} answered {len(found[0])} of {len(endings)} settled runs")
        return found

    def _set_apart(self) -> None:
        """Settle what is being written one by one from now on; turns go on without it."""
        begun = bool(self._alone)
        self._alone.extend(self._writing)
        self._writing = []
        if self._alone and not begun and self._nursery is not None:
            self._nursery.start_soon(self._settle_alone)

    async def _settle_alone(self) -> None:
        """Settle one outcome after another; one that is refused is tried again after the others.

        Cancelled, it leaves what is not settled in `_alone`.
        """
        refused = 0
        while self._alone:
            pause_s = BACKOFF_S[min(refused, len(BACKOFF_S) - 1)]
            if self._failures and self._nursery is not None and self._claimable():
                await trio.sleep(pause_s)  # a turn will tell whether the storage is back: one asks, not two
                continue
            ending = self._alone[0]
            try:
                [answer], _ = await self._step([ending], ())
            except StorageError as exc:
                self._alone.rotate(-1)
                self.observers.tell("storage_failed", "turn", exc)
                if not self._failures and not ending.named:
                    ending.named = True
                    log.warning(
                        "task %s (%s/%s): the storage refuses the outcome of attempt %d and works otherwise; "
                        "trying again, its lease is renewed: %s",
                        *(ending.claim.id, self.name, ending.claim.type, ending.claim.attempt, exc),
                        extra={"event": "refused", "task_id": ending.claim.id, "queue": self.name},
                    )
                refused += 1
                await trio.sleep(pause_s)
                continue
            refused = 0
            self._alone.popleft()
            self._settled(ending, answer)
            if len(self._alone) == ALONE - 1:
                self.ring()
        self._maybe_finished()

    def _want(self, free: int) -> Want:
        want = self._wants.get(free)
        if want is None:
            config = self.config
            want = self._wants[free] = Want(
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
        return want

    def _deliver(self, claimed: Claimed, free: int, began: float) -> None:
        """Put claims into the mailbox; wake or start actors for all but the first of them."""
        claims = claimed.claims
        self._alarm.heard(claimed.next_due, claimed=bool(claims))
        if not claims:
            return
        self.on_claim(began)
        if self.config.prefetch and self._mailbox:
            # What comes again has lost its lease while it waited here: by a clock that jumped, say.
            again = {claim.id for claim in claims}
            self._mailbox = deque(claim for claim in self._mailbox if claim.id not in again)
        for claim in claims:
            if claim.id in self._slots:
                # Our own earlier run of it lost its lease and has not ended yet: two
                # runs of one task must not meet in one process, so this one waits.
                self._slots[claim.id].cancel(Stop.LOST, "its lease ran out")
                self._end(Transition(claim.id, claim.epoch, TransitionKind.SNOOZED, retry_in=1.0), claim, 0.0)
            else:
                self._mailbox.append(claim)
        if len(claims) == free:
            self._look = True  # there may be more, once a slot is free
        if self._stopping or self.paused:
            self._hand_back_unstarted()
            return
        self._call_up(len(self._mailbox) - 1)

    def _call_up(self, count: int) -> None:
        """Wake or start so many actors, if the mailbox and the free slots have work for them."""
        count = min(count, len(self._mailbox), self.target - len(self._slots))
        parked = min(count, len(self._parked))
        self._wake(parked)
        for _ in range(min(count - parked, self._most - self._live)):
            self._start_actor()

    def _hand_back_unstarted(self) -> None:
        while self._mailbox:
            self._hand_back_next()

    def _hand_back_next(self) -> None:
        claim = self._mailbox.popleft()
        self._end(Transition(claim.id, claim.epoch, TransitionKind.HANDED_BACK, begun=False), claim, 0.0)

    def _hand_back_expired(self) -> float:
        """What waited here longer than its lease, because nothing was renewed, may be another's by now. Answers `now`."""
        now = self.storage.now()
        while self._mailbox:
            age_s = now - self._mailbox[0].started_at
            # What is as old as a lease was here when they were renewed, if that was within one.
            if age_s < self.lease_s or trio.current_time() - self.renewed_at < self.lease_s:
                break
            self._hand_back_next()
        return now

    def _settled(self, ending: _Ending, answer: SettleResult) -> None:
        """Count one settled run, and tell the observers."""
        claim, transition = ending.claim, ending.transition
        kind, error = judged(claim, transition, answer)
        self._counts[kind] += 1
        if claim.id in self.interrupted and kind in (EventKind.LOST, EventKind.SUCCEEDED):
            self.interrupted.remove(claim.id)
            if kind is EventKind.LOST:
                self.too_late.append(claim.id)
        if answer.spawned:
            tell_refused(claim, transition.spawn, answer)
            for new, stored in zip(transition.spawn, answer.spawned, strict=True):
                if stored.answer is EnqueueAnswer.CREATED:
                    self.registry.stored(new)
                    self.observers.published(stored.created_at, new.id, new.queue, new.type, new.cron, new.headers)
        if not self.observers.wants(kind):
            return
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
                retry_in=transition.retry_in if kind in (EventKind.RETRYING, EventKind.SNOOZED) else None,
                error=error,
                failure_reason=answer.failure_reason,
                cron=claim.cron,
                headers=claim.headers,
            )
        )
