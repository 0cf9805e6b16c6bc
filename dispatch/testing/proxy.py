"""A storage around a storage: every call passes one place, where a test can get in its way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final, Literal, TypeVar

from dispatch.bell import Bell
from dispatch.records import AttemptRecord, NewTask, Transition
from dispatch.storage.protocol import (
    KEEP,
    AdvanceAnswer,
    Change,
    Claimed,
    CronRecord,
    EnqueueResult,
    Keep,
    Page,
    PutAnswer,
    QueueRecord,
    RemoveAnswer,
    RenewAnswer,
    Rescued,
    SettleResult,
    Storage,
    Topic,
    Want,
    WorkerRecord,
)
from dispatch.storage.query import Order, PruneSpec, Where

__all__ = ["StorageProxy"]

T = TypeVar("T")


class StorageProxy(Storage):
    """Hands every call on to `inner`; a subclass overrides `around` to interfere.

    `clock` and bells are the inner storage's, and are not interfered with.
    """

    def __init__(self, inner: Storage) -> None:
        self.inner: Final = inner
        self.durable: bool = inner.durable
        self.remote: bool = inner.remote
        self.beat_s: float = inner.beat_s

    async def around(self, method: str, call: Callable[[], Awaitable[T]]) -> T:
        """Carry out one call of `method`."""
        return await call()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} around {self.inner!r}>"

    async def enqueue(
        self, tasks: Sequence[NewTask], *, bounded: bool = False, by: tuple[str, int] | None = None
    ) -> list[EnqueueResult]:
        return await self.around("enqueue", lambda: self.inner.enqueue(tasks, bounded=bounded, by=by))

    async def rest(self) -> None:
        await self.inner.rest()

    async def breathe(self) -> None:
        await self.inner.breathe()

    def enqueue_in(self, connection: object, tasks: Sequence[NewTask]) -> list[EnqueueResult]:
        return self.inner.enqueue_in(connection, tasks)

    async def enqueue_in_async(self, connection: object, tasks: Sequence[NewTask]) -> list[EnqueueResult]:
        return await self.around(
            "enqueue_in_async", lambda: self.inner.enqueue_in_async(connection, tasks)
        )

    def settle_in(self, connection: object, transition: Transition) -> SettleResult:
        return self.inner.settle_in(connection, transition)

    async def settle_in_async(self, connection: object, transition: Transition) -> SettleResult:
        return await self.around(
            "settle_in_async", lambda: self.inner.settle_in_async(connection, transition)
        )

    async def claim(self, wants: Sequence[Want], *, worker: str, lease: float | None) -> Claimed:
        return await self.around("claim", lambda: self.inner.claim(wants, worker=worker, lease=lease))

    async def turn(
        self,
        transitions: Sequence[Transition],
        wants: Sequence[Want],
        *,
        worker: str,
        lease: float | None,
    ) -> tuple[list[SettleResult], Claimed]:
        return await self.around(
            "turn", lambda: self.inner.turn(transitions, wants, worker=worker, lease=lease)
        )

    async def renew(
        self, claims: Sequence[tuple[str, int]], *, lease: float | None
    ) -> list[RenewAnswer]:
        return await self.around("renew", lambda: self.inner.renew(claims, lease=lease))

    async def settle(self, transitions: Sequence[Transition]) -> list[SettleResult]:
        return await self.around("settle", lambda: self.inner.settle(transitions))

    async def rescue(self, limit: int = 1_000) -> Rescued:
        return await self.around("rescue", lambda: self.inner.rescue(limit))

    async def find(
        self,
        where: Where,
        *,
        order: Order = Order.OLDEST,
        limit: int = 100,
        after: str | None = None,
    ) -> Page:
        return await self.around(
            "find", lambda: self.inner.find(where, order=order, limit=limit, after=after)
        )

    async def count(
        self,
        where: Where,
        *,
        by: Sequence[Literal["queue", "type", "status"]] = (),
        bound: int | None = None,
    ) -> dict[tuple[str, ...], int]:
        return await self.around("count", lambda: self.inner.count(where, by=by, bound=bound))

    async def alter(
        self, where: Where, change: Change, *, limit: int | None = None, dry_run: bool = False
    ) -> list[str]:
        return await self.around(
            "alter", lambda: self.inner.alter(where, change, limit=limit, dry_run=dry_run)
        )

    async def prune(self, spec: PruneSpec, *, dry_run: bool = False) -> int:
        return await self.around("prune", lambda: self.inner.prune(spec, dry_run=dry_run))

    async def history(self, task_id: str) -> list[AttemptRecord]:
        return await self.around("history", lambda: self.inner.history(task_id))

    async def progress(self, claim: tuple[str, int], data: bytes) -> bool:
        return await self.around("progress", lambda: self.inner.progress(claim, data))

    async def declare(self, queues: Sequence[QueueRecord], *, new_only: bool = False) -> None:
        await self.around("declare", lambda: self.inner.declare(queues, new_only=new_only))

    async def queues(self) -> list[QueueRecord]:
        return await self.around("queues", self.inner.queues)

    async def alter_queue(
        self, name: str, *, paused: bool | None = None, concurrency: int | Keep | None = KEEP
    ) -> bool:
        return await self.around(
            "alter_queue", lambda: self.inner.alter_queue(name, paused=paused, concurrency=concurrency)
        )

    async def remove_queue(self, name: str) -> RemoveAnswer:
        return await self.around("remove_queue", lambda: self.inner.remove_queue(name))

    async def beat(self, worker: WorkerRecord) -> None:
        await self.around("beat", lambda: self.inner.beat(worker))

    async def workers(self) -> list[WorkerRecord]:
        return await self.around("workers", self.inner.workers)

    async def forget(self, worker: str) -> None:
        await self.around("forget", lambda: self.inner.forget(worker))

    async def put_cron(self, entry: CronRecord, *, replace: bool = False) -> PutAnswer:
        return await self.around("put_cron", lambda: self.inner.put_cron(entry, replace=replace))

    async def crons(self, name: str | None = None) -> list[CronRecord]:
        return await self.around("crons", lambda: self.inner.crons(name))

    async def alter_cron(
        self,
        name: str,
        *,
        paused_reason: str | None,
        last_slot: float | None = None,
        next_slot: float | None = None,
    ) -> bool:
        return await self.around(
            "alter_cron",
            lambda: self.inner.alter_cron(
                name, paused_reason=paused_reason, last_slot=last_slot, next_slot=next_slot
            ),
        )

    async def remove_cron(self, name: str) -> bool:
        return await self.around("remove_cron", lambda: self.inner.remove_cron(name))

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
        return await self.around(
            "advance_cron",
            lambda: self.inner.advance_cron(
                name,
                expected=expected,
                last_slot=last_slot,
                next_slot=next_slot,
                tasks=tasks,
                definition=definition,
            ),
        )

    def now(self) -> float:
        return self.inner.now()

    @property
    def clock_error_s(self) -> float:
        return self.inner.clock_error_s

    @property
    def slice_s(self) -> float:
        """As the inner storage's."""
        return self.inner.slice_s

    def watch(self, bell: Bell, *topics: Topic) -> AbstractContextManager[None]:
        return self.inner.watch(bell, *topics)
