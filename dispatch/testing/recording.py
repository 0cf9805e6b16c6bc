"""A storage around a storage, which writes down what happens to tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from dispatch.lifecycle import SettleAnswer
from dispatch.records import NewTask, Transition
from dispatch.storage.protocol import (
    KEEP,
    AdvanceAnswer,
    Change,
    Claimed,
    EnqueueAnswer,
    EnqueueResult,
    Keep,
    RenewAnswer,
    Rescued,
    SettleResult,
    Storage,
    Want,
)
from dispatch.storage.query import All, Where
from dispatch.testing.history import HistoryEvent, Record, Step
from dispatch.testing.proxy import StorageProxy

__all__ = ["RecordingStorage"]


class RecordingStorage(StorageProxy):
    """A storage around a storage, which records what happens to tasks and changes nothing.

    What it writes is made for `dispatch.testing.history`. `inner` is the one
    inside; what that has beyond the hook is reached there, and not recorded.
    """

    def __init__(self, inner: Storage, record: Record) -> None:
        super().__init__(inner)
        self._record = record
        self.immediate: bool = inner.immediate
        self.remote: bool = inner.remote

    async def drained(self) -> None:
        """Record the state of every stored task, and that nothing was left to run."""
        after: str | None = None
        while True:
            page = await self.inner.find(All(), limit=1_000, after=after)
            for row in page.records:
                self._note(
                    Step.SEEN, row.id, epoch=row.epoch, status=row.status, cron=row.cron, slot=row.slot
                )
            after = page.cursor
            if after is None:
                break
        self._note(Step.DRAINED)

    def _note(self, step: Step, task: str = "", *, at: float | None = None, **facts: Any) -> None:
        moment = self.inner.now() if at is None else at
        self._record(HistoryEvent(at=moment, step=step, task=task, **facts))

    def _not_before(self) -> float:
        """The earliest that a call made now may be carried out, by the storage's clock."""
        return self.inner.now() - self.inner.clock_error_s

    def _offer(self, tasks: Iterable[NewTask]) -> None:
        for new in tasks:
            self._note(Step.OFFERED, new.id, at=self._not_before(), cron=new.cron, slot=new.slot)

    def _published(self, new: NewTask, result: EnqueueResult | None = None) -> None:
        due = None if result is None else result.available_at
        self._note(
            Step.PUBLISHED, new.id, due=due, max_retry=new.max_retry, cron=new.cron, slot=new.slot
        )

    async def enqueue(
        self, tasks: Sequence[NewTask], *, bounded: bool = False, by: tuple[str, int] | None = None
    ) -> list[EnqueueResult]:
        self._offer(tasks)
        results = await self.inner.enqueue(tasks, bounded=bounded, by=by)
        for new, result in zip(tasks, results, strict=True):
            if result.answer is EnqueueAnswer.CREATED:
                self._published(new, result)
            elif result.answer is EnqueueAnswer.REPLACED and result.record is not None:
                row = result.record
                self._note(
                    Step.ALTERED, row.id, how="replaced", due=row.available_at, max_retry=row.max_retry
                )
        return results

    def enqueue_in(self, connection: object, tasks: Sequence[NewTask]) -> list[EnqueueResult]:
        """As the storage's inside; recorded as offered, for the user may yet roll back."""
        self._offer(tasks)
        return self.inner.enqueue_in(connection, tasks)

    async def enqueue_in_async(self, connection: object, tasks: Sequence[NewTask]) -> list[EnqueueResult]:
        """As `enqueue_in`."""
        self._offer(tasks)
        return await self.inner.enqueue_in_async(connection, tasks)

    def settle_in(self, connection: object, transition: Transition) -> SettleResult:
        """As the storage's inside; recorded as asked for, for the user may yet roll back."""
        self._ending([transition])
        return self.inner.settle_in(connection, transition)

    async def settle_in_async(self, connection: object, transition: Transition) -> SettleResult:
        """As `settle_in`."""
        self._ending([transition])
        return await self.inner.settle_in_async(connection, transition)

    async def claim(self, wants: Sequence[Want], *, worker: str, lease: float | None) -> Claimed:
        return self._claimed(await self.inner.claim(wants, worker=worker, lease=lease), worker, lease)

    def _claimed(self, claimed: Claimed, worker: str, lease: float | None) -> Claimed:
        for claim in claimed.claims:
            self._note(
                Step.CLAIMED,
                claim.id,
                at=claim.started_at,
                epoch=claim.epoch,
                worker=worker,
                due=claim.available_at,
                lease_until=None if lease is None else claim.started_at + lease,
                max_retry=claim.limit,
            )
        return claimed

    async def renew(
        self, claims: Sequence[tuple[str, int]], *, lease: float | None
    ) -> list[RenewAnswer]:
        before = self._not_before()
        answers = await self.inner.renew(claims, lease=lease)
        for answer in answers:
            if answer.held and lease is not None:
                self._note(
                    Step.RENEWED, answer.id, at=before, epoch=answer.epoch, lease_until=before + lease
                )
        return answers

    async def settle(self, transitions: Sequence[Transition]) -> list[SettleResult]:
        self._ending(transitions)
        return self._settled(transitions, await self.inner.settle(transitions))

    def _ending(self, transitions: Sequence[Transition]) -> None:
        for transition in transitions:
            self._note(
                Step.ENDING,
                transition.id,
                at=self._not_before(),
                epoch=transition.epoch,
                how=transition.kind.value,
            )
            self._offer(transition.spawn)

    def _settled(
        self, transitions: Sequence[Transition], results: list[SettleResult]
    ) -> list[SettleResult]:
        for transition, result in zip(transitions, results, strict=True):
            self._note(
                Step.ENDED,
                transition.id,
                epoch=transition.epoch,
                how=transition.kind.value,
                answer=result.answer.value,
                status=None if result.status is None else result.status.value,
                due=result.available_at,
            )
            if result.answer is SettleAnswer.APPLIED:
                for new, stored in zip(transition.spawn, result.spawned, strict=True):
                    if stored.answer is EnqueueAnswer.CREATED:
                        self._published(new)
        return results

    async def turn(
        self,
        transitions: Sequence[Transition],
        wants: Sequence[Want],
        *,
        worker: str,
        lease: float | None,
    ) -> tuple[list[SettleResult], Claimed]:
        self._ending(transitions)
        settled, claimed = await self.inner.turn(transitions, wants, worker=worker, lease=lease)
        return self._settled(transitions, settled), self._claimed(claimed, worker, lease)

    async def rescue(self, limit: int = 1_000) -> Rescued:
        rescued = await self.inner.rescue(limit)
        for row in rescued.records:
            # The sweep has raised the epoch: the run it ended had the one before.
            self._note(
                Step.RESCUED,
                row.id,
                epoch=row.epoch - 1,
                worker=row.worker,
                status=row.status.value,
                due=row.available_at,
            )
        return rescued

    async def alter(
        self, where: Where, change: Change, *, limit: int | None = None, dry_run: bool = False
    ) -> list[str]:
        changed = await self.inner.alter(where, change, limit=limit, dry_run=dry_run)
        patched = change.max_retry if change.action == "patch" else KEEP
        for id_ in () if dry_run else changed:
            self._note(
                Step.ALTERED,
                id_,
                how=change.action,
                due=change.available_at,
                max_retry=None if isinstance(patched, Keep) else patched,
            )
        return changed

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
        self._offer(tasks)
        answer = await self.inner.advance_cron(
            name,
            expected=expected,
            last_slot=last_slot,
            next_slot=next_slot,
            tasks=tasks,
            definition=definition,
        )
        if answer is AdvanceAnswer.ADVANCED:
            for new in tasks:
                self._published(new)
        return answer
