"""What a conformance case works with: a storage, its time, and short words for common steps."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from types import MappingProxyType
from typing import Any, Final

import attrs
import trio

from dispatch.lifecycle import SettleAnswer
from dispatch.records import Claim, NewTask, TaskRecord, Transition, TransitionKind, UniqueKey
from dispatch.storage.protocol import (
    Change,
    EnqueueResult,
    QueueRecord,
    Rescued,
    SettleResult,
    Storage,
    Want,
)
from dispatch.storage.query import All, Ids, Order, Where
from dispatch.tasks import OnClash, TaskStatus

__all__ = ["LEASE_S", "OPEN", "Hooks", "Workbench", "cancelled_at", "unique"]

LEASE_S: Final = 30.0
OPEN: Final = frozenset({TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.HELD})


@attrs.frozen
class Hooks:
    """The optional parts of a kit: see `StorageConformance`."""

    reopen: Callable[[Storage], AbstractAsyncContextManager[Storage]]
    break_at: Callable[[Storage, int], AbstractContextManager[None]]
    disconnect: Callable[[Storage], Awaitable[None]]


class CancelAt(trio.abc.Instrument):
    """Cancels a scope when a trio task has taken so many steps; 0 before the first."""

    def __init__(self, task: trio.lowlevel.Task, steps: int, scope: trio.CancelScope) -> None:
        self._task = task
        self._left = steps
        self._scope = scope
        if not steps:
            scope.cancel()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count one step of the task meant."""
        if task is self._task:
            self._left -= 1
            if not self._left:
                self._scope.cancel()


async def cancelled_at(steps: int, call: Callable[[], Awaitable[object]]) -> trio.CancelScope:
    """Make a call and cancel it at its caller's step number `steps`, if it takes so many.

    The scope says what came of it: `cancel_called`, and whether it was `cancelled_caught`.
    """
    with trio.CancelScope() as scope:
        instrument = CancelAt(trio.lowlevel.current_task(), steps, scope)
        trio.lowlevel.add_instrument(instrument)
        try:
            await call()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return scope


class Workbench:
    """One storage under test. Queues are declared when a task is first published to them."""

    def __init__(
        self,
        storage: Storage,
        advance: Callable[[float], Awaitable[None]],
        hooks: Hooks | None = None,
    ) -> None:
        self.storage = storage
        self.advance = advance
        """Moves the storage's clock on by so many seconds."""
        self._hooks = hooks
        self._declared: set[str] = set()

    @property
    def hooks(self) -> Hooks:
        """What only this storage's own test module can do."""
        assert self._hooks is not None, "this workbench was made without hooks"
        return self._hooks

    @asynccontextmanager
    async def beside(self) -> AsyncGenerator[Workbench]:
        """A workbench on the same data, as another process has it."""
        async with self.hooks.reopen(self.storage) as storage:
            other = Workbench(storage, self.advance, self._hooks)
            other._declared |= self._declared
            yield other

    def now(self) -> float:
        """The storage's time."""
        return self.storage.now()

    async def declare(self, name: str = "q", **settings: Any) -> None:
        """Declare one queue."""
        await self.storage.declare([QueueRecord(name=name, **settings)])
        self._declared.add(name)

    def task(self, id: str, **fields: Any) -> NewTask:  # noqa: A002
        """A task as the codec would make it, of queue `q` and type `t` unless told."""
        given: dict[str, Any] = {"queue": "q", "type": "t", "payload": b"{}", **fields}
        given["headers"] = MappingProxyType(given.get("headers", {}))
        return NewTask(id=id, **given)

    async def publish(self, *ids: str, **fields: Any) -> list[EnqueueResult]:
        """Store tasks of these ids, all with the same fields."""
        queue = fields.get("queue", "q")
        if queue not in self._declared:
            await self.declare(queue)
        return await self.storage.enqueue([self.task(id_, **fields) for id_ in ids])

    async def claim(
        self,
        limit: int = 1,
        *,
        queue: str = "q",
        worker: str = "w",
        lease: float | None = LEASE_S,
        **want: Any,
    ) -> list[Claim]:
        """Claim from one queue, every type unless told."""
        wanted = Want(queue=queue, limit=limit, **want)
        return (await self.storage.claim([wanted], worker=worker, lease=lease)).claims

    async def taken(self, limit: int = 1, **want: Any) -> list[str]:
        """The ids claimed, in claim order."""
        return [claim.id for claim in await self.claim(limit, **want)]

    async def started(self, id: str = "a", **fields: Any) -> Claim:  # noqa: A002
        """Publish one task and claim it."""
        want = {name: fields.pop(name) for name in tuple(fields) if name in _WANT}
        await self.publish(id, **fields)
        [claim] = await self.claim(queue=fields.get("queue", "q"), ids=frozenset({id}), **want)
        return claim

    async def settle(
        self,
        claim: Claim | tuple[str, int],
        kind: TransitionKind = TransitionKind.DONE,
        **fields: Any,
    ) -> SettleResult:
        """End one run."""
        fence = claim if isinstance(claim, tuple) else (claim.id, claim.epoch)
        [result] = await self.storage.settle([Transition(*fence, kind, **fields)])
        return result

    async def fail(
        self, claim: Claim | tuple[str, int], retry_in: float | None = 0.0, **fields: Any
    ) -> SettleResult:
        """Fail one run."""
        return await self.settle(
            claim, TransitionKind.FAILED, error="ValueError: no", retry_in=retry_in, **fields
        )

    async def holds(self, claim: Claim) -> bool:
        """Whether the claim still holds; renews nothing."""
        [answer] = await self.storage.renew([(claim.id, claim.epoch)], lease=None)
        return answer.held

    async def ended(
        self, *ids: str, how: TransitionKind = TransitionKind.DONE, **fields: Any
    ) -> None:
        """Publish tasks and run each to its end, in this order."""
        for id_ in ids:
            result = await self.settle(await self.started(id_, **fields), how)
            assert result.answer is SettleAnswer.APPLIED

    async def row(self, id: str) -> TaskRecord:  # noqa: A002
        """The stored task."""
        [record] = (await self.storage.find(Ids(id))).records
        return record

    async def status(self, id: str) -> str:  # noqa: A002
        """The stored task's status, or `gone`."""
        records = (await self.storage.find(Ids(id))).records
        return records[0].status.value if records else "gone"

    async def ids(self, where: Where | None = None, order: Order = Order.OLDEST) -> list[str]:
        """The ids of all tasks that match."""
        page = await self.storage.find(All() if where is None else where, order=order, limit=1_000)
        return [record.id for record in page.records]

    async def alter(self, where: Where | str, action: Any, **fields: Any) -> list[str]:
        """One change by hand, to a task or to those that match."""
        meant = Ids(where) if isinstance(where, str) else where
        limits = {name: fields.pop(name) for name in ("limit", "dry_run") if name in fields}
        return await self.storage.alter(meant, Change(action=action, **fields), **limits)

    async def everything(self) -> list[Any]:
        """All that is stored: equal before and after a step that did nothing."""
        rows = (await self.storage.find(All(), limit=10_000)).records
        runs = [await self.storage.history(row.id) for row in rows]
        return [rows, runs, await self.storage.queues(), await self.storage.crons()]

    async def rescue_all(self) -> Rescued:
        """Let every lease run out, and sweep."""
        await self.advance(LEASE_S + 1)
        return await self.storage.rescue()


_WANT: Final = frozenset({"worker", "lease", "on_interrupt", "retry", "ageing"})


def unique(key: str = "u", on_clash: str = "keep", **fields: Any) -> UniqueKey:
    """A uniqueness as the codec would make it, among open tasks unless told."""
    given: dict[str, Any] = {
        "statuses": OPEN,
        "within": None,
        "replace": frozenset({"payload"}),
        "replace_in": frozenset({TaskStatus.PENDING, TaskStatus.HELD}),
        **fields,
    }
    return UniqueKey(key=key, on_clash=OnClash(on_clash), **given)
