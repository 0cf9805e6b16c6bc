"""A storage that fails when told to: outages, doubt, delays, and the death of a process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import attrs
import trio

from dispatch.checks import check_count
from dispatch.errors import InvalidConfigError, StorageError
from dispatch.lifecycle import SettleAnswer
from dispatch.records import NewTask, Transition
from dispatch.storage.protocol import (
    Claimed,
    EnqueueResult,
    RenewAnswer,
    Rescued,
    SettleResult,
    Storage,
    Want,
)
from dispatch.testing.proxy import StorageProxy

__all__ = ["FaultyStorage"]

T = TypeVar("T")

METHODS = frozenset(
    {
        *("enqueue", "claim", "turn", "renew", "settle", "rescue", "find", "count", "alter", "prune"),
        *("history", "progress", "declare", "queues", "alter_queue", "remove_queue"),
        *("beat", "workers", "forget"),
        *("put_cron", "crons", "alter_cron", "remove_cron", "advance_cron"),
    }
)


@attrs.define
class _Fault:
    method: str | None
    times: int
    after: bool
    error: Callable[[], Exception]


class FaultyStorage(StorageProxy):
    """A storage around any other that fails, waits, or dies when a test says so.

    `calls` counts the calls by method. Without a fault it changes nothing, but
    that every call is a checkpoint.
    """

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.calls: Counter[str] = Counter()
        self.down: bool = False
        """While true, every call raises StorageError and does nothing."""
        self.delay_s: float = 0.0
        """How long every call takes before it takes effect, in seconds of trio's clock."""
        self.dead: bool = False
        self._faults: list[_Fault] = []

    def fail(
        self,
        method: str | None = None,
        *,
        times: int = 1,
        after: bool = False,
        error: Callable[[], Exception] | None = None,
    ) -> None:
        """Make the next `times` calls of `method` (None: of any) raise `error`, a StorageError.

        With `after`, they raise when they have taken effect: the caller is in
        doubt, as when a connection breaks during a commit. A worker claims and
        settles by `turn`.
        """
        if method is not None and method not in METHODS:
            raise InvalidConfigError(
                f"fail: no method {method!r}; there are {', '.join(sorted(METHODS))}"
            )
        check_count("fail: times", times, 1)
        made = error if error is not None else lambda: StorageError("a fault was asked for")
        self._faults.append(_Fault(method, times, after, made))

    def mend(self) -> None:
        """Everything works again; what is dead stays dead."""
        self.down = False
        self.delay_s = 0.0
        self._faults.clear()

    def kill(self) -> None:
        """From now on nothing done through this reaches the storage, as if the process had died.

        What was claimed stays claimed until its lease runs out. Ends of runs
        are answered as if they had been written before, so that what is left
        of the dispatcher winds down in silence.
        """
        self.dead = True

    async def around(self, method: str, call: Callable[[], Awaitable[T]]) -> T:
        """Count the call, fail it or delay it if told to, else hand it on."""
        self.calls[method] += 1
        await trio.sleep(self.delay_s)
        if self.dead:
            raise StorageError("this process was killed by the test")
        if self.down:
            raise StorageError("the storage is down, as the test asked for")
        fault = self._fault(method)
        if fault is not None and not fault.after:
            raise fault.error()
        answer = await call()
        if fault is not None:
            raise fault.error()
        return answer

    def _fault(self, method: str) -> _Fault | None:
        for fault in self._faults:
            if fault.method in (None, method):
                fault.times -= 1
                if not fault.times:
                    self._faults.remove(fault)
                return fault
        return None

    # What a dead process still does on its way out is answered here.

    async def turn(
        self,
        transitions: Sequence[Transition],
        wants: Sequence[Want],
        *,
        worker: str,
        lease: float | None,
    ) -> tuple[list[SettleResult], Claimed]:
        if self.dead:
            return await self.settle(transitions), Claimed([])
        return await super().turn(transitions, wants, worker=worker, lease=lease)

    async def settle(self, transitions: Sequence[Transition]) -> list[SettleResult]:
        if self.dead:
            await trio.lowlevel.checkpoint()
            return [SettleResult(each.id, each.epoch, SettleAnswer.REPEATED) for each in transitions]
        return await super().settle(transitions)

    async def renew(
        self, claims: Sequence[tuple[str, int]], *, lease: float | None
    ) -> list[RenewAnswer]:
        if self.dead:
            await trio.lowlevel.checkpoint()
            return [RenewAnswer(id_, epoch, True) for id_, epoch in claims]
        return await super().renew(claims, lease=lease)

    async def rescue(self, limit: int = 1_000) -> Rescued:
        if self.dead:
            await trio.lowlevel.checkpoint()
            return Rescued([])
        return await super().rescue(limit)

    async def forget(self, worker: str) -> None:
        if self.dead:
            await trio.lowlevel.checkpoint()
            return
        await super().forget(worker)

    def enqueue_in(self, connection: object, tasks: Sequence[NewTask]) -> list[EnqueueResult]:
        if self.dead or self.down:
            raise StorageError("the storage is down, as the test asked for")
        return super().enqueue_in(connection, tasks)

    def settle_in(self, connection: object, transition: Transition) -> SettleResult:
        if self.dead or self.down:
            raise StorageError("the storage is down, as the test asked for")
        return super().settle_in(connection, transition)
