"""Bugs to plant: each breaks one promise, and the simulation has to notice.

Each is a context manager that replaces one function of the engine or of the
memory storage while it is open.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from math import inf
from typing import Any

from dispatch import lifecycle
from dispatch.actors import QueueActors
from dispatch.cron import stored
from dispatch.cron.dispatcher import CronTaskDispatcher
from dispatch.lifecycle import SettleAnswer
from dispatch.records import AttemptOutcome, TransitionKind
from dispatch.storage.memory import MemoryStorage
from dispatch.storage.protocol import RenewAnswer, Rescued, SettleResult
from dispatch.storage.ready import ReadyQueue
from dispatch.tasks import TaskStatus

Plant = Callable[[], AbstractContextManager[None]]


@contextmanager
def replaced(where: Any, name: str, make: Callable[[Any], Any]) -> Generator[None]:
    real = getattr(where, name)
    setattr(where, name, make(real))
    try:
        yield
    finally:
        setattr(where, name, real)


def no_fence() -> AbstractContextManager[None]:
    """A late worker may end another's run."""

    def make(real: Any) -> Any:
        def fence(record: Any, epoch: int) -> SettleAnswer:
            if record is not None and record.status is TaskStatus.RUNNING:
                return SettleAnswer.APPLIED
            answer: SettleAnswer = real(record, epoch)
            return answer

        return fence

    return replaced(lifecycle, "fence", make)


def claims_do_not_raise_the_epoch() -> AbstractContextManager[None]:
    """Two runs of a task share one fence."""

    def make(real: Any) -> Any:
        def claim(record: Any, now: float, **given: Any) -> None:
            epoch = record.epoch
            real(record, now, **given)
            record.epoch = max(epoch, 1)

        return claim

    return replaced(lifecycle, "claim", make)


def attempts_are_not_counted() -> AbstractContextManager[None]:
    """A task that kills its process does so for ever."""

    def make(real: Any) -> Any:
        def rescue(record: Any, now: float) -> Any:
            run = real(record, now)
            if record.status is TaskStatus.PENDING:
                record.attempt -= 1
            return run

        return rescue

    return replaced(lifecycle, "rescue", make)


def nobody_rescues() -> AbstractContextManager[None]:
    """What a dead worker held stays running."""

    def make(real: Any) -> Any:
        async def rescue(self: Any, limit: int = 1_000) -> Rescued:
            return Rescued([], None)

        return rescue

    return replaced(MemoryStorage, "rescue", make)


def renewing_does_nothing() -> AbstractContextManager[None]:
    """Living workers are told that they hold what they are about to lose."""

    def make(real: Any) -> Any:
        async def renew(
            self: Any, claims: Sequence[tuple[str, int]], *, lease: float | None
        ) -> list[RenewAnswer]:
            return [RenewAnswer(id_, epoch, True) for id_, epoch in claims]

        return renew

    return replaced(MemoryStorage, "renew", make)


def one_retry_too_many() -> AbstractContextManager[None]:
    """The bound on runs is off by one."""
    return replaced(lifecycle, "_limit", lambda real: lambda record: real(record) + 1)


def keys_do_not_wait() -> AbstractContextManager[None]:
    """The next of a key starts while the one before still runs."""

    def make(real: Any) -> Any:
        def start(self: Any, row: Any) -> None:
            real(self, row)
            if self.record.keyed and row.record.key is not None:
                self._lines[row.record.key].running -= 1
                self._promote(row.record.key, 0.0)

        return start

    def undo(real: Any) -> Any:
        def ended(self: Any, row: Any, now: float) -> Any:
            if self.record.keyed and row.record.key is not None:
                self._line(row.record.key).running += 1
            return real(self, row, now)

        return ended

    @contextmanager
    def both() -> Generator[None]:
        with replaced(ReadyQueue, "_start", make), replaced(ReadyQueue, "ended", undo):
            yield

    return both()


def retries_come_at_once() -> AbstractContextManager[None]:
    """A retry does not wait for its delay."""

    def make(real: Any) -> Any:
        def settle(record: Any, transition: Any, now: float) -> Any:
            run = real(record, transition, now)
            if run.outcome is AttemptOutcome.RETRIED:
                record.available_at = now
            return run

        return settle

    return replaced(lifecycle, "settle", make)


def what_is_not_due_is_claimed() -> AbstractContextManager[None]:
    """Whoever looks claims what falls due within the next five seconds, too."""
    return replaced(ReadyQueue, "mature", lambda real: lambda self, now: real(self, now + 5.0))


def a_settle_is_lost_in_a_batch() -> AbstractContextManager[None]:
    """The last of several ends is answered, and not written."""

    def make(real: Any) -> Any:
        def settle(self: Any, transitions: Any, now: float) -> Any:
            if len(transitions) < 2:
                return real(self, transitions, now)
            results = real(self, transitions[:-1], now)
            last = transitions[-1]
            row = self._rows.get(last.id)
            if row is None or row.record.status is not TaskStatus.RUNNING:
                return [*results, *real(self, transitions[-1:], now)]
            row.record.lease_until = None
            return [*results, lost(last)]

        return settle

    def lost(transition: Any) -> Any:
        status = TaskStatus.SUCCEEDED if transition.kind is TransitionKind.DONE else TaskStatus.FAILED
        return SettleResult(transition.id, transition.epoch, SettleAnswer.APPLIED, status)

    return replaced(MemoryStorage, "_settle", make)


def ticks_are_not_compared() -> AbstractContextManager[None]:
    """Every process that decides a tick publishes its task; and two such tasks have two ids.

    One without the other is no bug that shows: each alone stores a tick once.
    """

    def compare(real: Any) -> Any:
        async def advance(self: Any, name: str, *, expected: Any, **given: Any) -> Any:
            entry = self._crons.get(name)
            return await real(self, name, expected=None if entry is None else entry.last_slot, **given)

        return advance

    @contextmanager
    def both() -> Generator[None]:
        numbers = count()
        with (
            replaced(MemoryStorage, "advance_cron", compare),
            replaced(stored, "tick_id", lambda real: lambda *tick: f"{real(*tick)}-{next(numbers)}"),
        ):
            yield

    return both()


def a_failure_is_called_a_success() -> AbstractContextManager[None]:
    """From the second attempt on, a run that failed is stored as one that succeeded."""

    def make(real: Any) -> Any:
        def settle(record: Any, transition: Any, now: float) -> Any:
            if transition.kind is TransitionKind.FAILED and record.attempt >= 2:
                transition.kind = TransitionKind.DONE
            return real(record, transition, now)

        return settle

    return replaced(lifecycle, "settle", make)


def what_is_handed_back_is_called_a_success() -> AbstractContextManager[None]:
    """A run that was interrupted is stored as one that succeeded."""

    def make(real: Any) -> Any:
        def settle(record: Any, transition: Any, now: float) -> Any:
            if transition.kind is TransitionKind.HANDED_BACK:
                transition.kind = TransitionKind.DONE
            return real(record, transition, now)

        return settle

    return replaced(lifecycle, "settle", make)


def a_refused_run_still_spawns() -> AbstractContextManager[None]:
    """What a run published is stored although its end came too late."""

    def make(real: Any) -> Any:
        def settle(self: Any, transitions: Any, now: float) -> Any:
            results = real(self, transitions, now)
            for transition, result in zip(transitions, results, strict=True):
                if result.answer is SettleAnswer.LOST:
                    for new in transition.spawn:
                        self._store(new, now)
            return results

        return settle

    return replaced(MemoryStorage, "_settle", make)


def a_rescue_forgets_the_cancel() -> AbstractContextManager[None]:
    """A task that was to stop runs again when its worker dies."""

    def make(real: Any) -> Any:
        def rescue(record: Any, now: float) -> Any:
            record.cancel_reason = None
            return real(record, now)

        return rescue

    return replaced(lifecycle, "rescue", make)


def a_cancelled_attempt_costs_an_actor() -> AbstractContextManager[None]:
    """An actor whose attempt was cancelled is counted twice from then on."""

    def make(real: Any) -> Any:
        async def attempt(self: Any, slot: Any, claim: Any) -> bool:
            try:
                usable: bool = await real(self, slot, claim)
            finally:
                self._live += slot.scope.cancel_called
            return usable

        return attempt

    return replaced(QueueActors, "_attempt", make)


def cron_does_not_come_back() -> AbstractContextManager[None]:
    """After its first trouble with the storage, a process fires no more cron tasks."""

    def make(real: Any) -> Any:
        def calm_down(self: Any, exc: Any) -> None:
            real(self, exc)
            self._calm_until = inf

        return calm_down

    return replaced(CronTaskDispatcher, "_calm_down", make)


def a_published_task_is_forgotten() -> AbstractContextManager[None]:
    """Of a batch, the last is answered and not stored."""

    def make(real: Any) -> Any:
        async def enqueue(self: Any, tasks: Any, **given: Any) -> Any:
            results = await real(self, tasks, **given)
            if len(results) > 2 and results[-1].answer == "created":
                row = self._rows.pop(results[-1].id)
                self._queues[row.record.queue].remove(row)
            return results

        return enqueue

    return replaced(MemoryStorage, "enqueue", make)


BUGS: tuple[Plant, ...] = (
    no_fence,
    claims_do_not_raise_the_epoch,
    attempts_are_not_counted,
    nobody_rescues,
    renewing_does_nothing,
    one_retry_too_many,
    keys_do_not_wait,
    retries_come_at_once,
    what_is_not_due_is_claimed,
    a_settle_is_lost_in_a_batch,
    ticks_are_not_compared,
    a_failure_is_called_a_success,
    what_is_handed_back_is_called_a_success,
    a_refused_run_still_spawns,
    a_rescue_forgets_the_cancel,
    a_cancelled_attempt_costs_an_actor,
    cron_does_not_come_back,
    a_published_task_is_forgotten,
)
