"""Every call of the persistence hook that is about a few tasks, to be measured among few others and among many."""

# pyright: reportPrivateUsage=false
# The workbench is told what it need not declare again.

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

from dispatch.lifecycle import SettleAnswer
from dispatch.records import Claim, Transition, TransitionKind
from dispatch.storage.protocol import CronRecord, QueueRecord, Storage, Want
from dispatch.storage.query import Ids, Order, PruneSpec, Queues, Statuses
from dispatch.testing.workbench import LEASE_S, Workbench, unique

DONE = TransitionKind.DONE
QUEUES: dict[str, dict[str, Any]] = {
    "q": {},
    "k": {"keyed": True, "on_retry": "hold"},
    "y": {"keyed": True, "on_retry": "yield"},
    "u": {},
    "l": {"max_running": 100},
    "r": {"rate": (100_000, 3_600.0)},
    "b": {"max_waiting": 100},
}
"""How they are declared."""
UNCROWDED = {"l": {"running"}, "r": {"running"}, "b": {"ready"}}
"""What a bounded queue counts is within its bound: there is no crowd of that."""

Call = Callable[[], Awaitable[object]]


class Calls:
    """The calls, each of them with tasks of its own."""

    def __init__(self, bench: Workbench, mark: str) -> None:
        self.bench = bench
        self.storage = bench.storage
        self.mark = mark
        self.numbers = count()

    def ids(self, number: int = 5) -> list[str]:
        return [f"{self.mark}{next(self.numbers)}" for _ in range(number)]

    async def runs(self, number: int = 5, **fields: Any) -> list[Claim]:
        """So many tasks, at work."""
        ids = self.ids(number)
        await self.bench.publish(*ids, **fields)
        claims = await self.bench.claim(number, ids=frozenset(ids), queue=fields.get("queue", "q"))
        assert len(claims) == number
        return claims

    async def keyed(self, queue: str) -> list[Claim]:
        """Some tasks at work, each with another behind it."""
        ids = self.ids()
        for id_ in ids:
            await self.bench.publish(id_, f"{id_}-next", queue=queue, key=id_)
        claims = await self.bench.claim(5, ids=frozenset(ids), queue=queue)
        assert len(claims) == 5
        return claims

    def measured(self) -> dict[str, Callable[[], Awaitable[Call]]]:
        """By name: what prepares a call, and answers with it."""
        found = {name: getattr(self, name) for name in vars(Calls) if name.startswith(("one_", "some_"))}
        return {name.partition("_")[2]: each for name, each in found.items()}

    async def one_enqueue(self) -> Call:
        ids = self.ids()
        return lambda: self.bench.publish(*ids)

    async def one_enqueue_keyed(self) -> Call:
        ids = self.ids()
        return lambda: self.bench.publish(*ids, queue="k", key=ids[0])

    async def one_enqueue_unique(self) -> Call:
        [one, other] = self.ids(2)
        await self.bench.publish(one, queue="u", unique=unique(one))
        return lambda: self.bench.publish(other, queue="u", unique=unique(one, "replace"))

    async def some_claim(self) -> Call:
        await self.bench.publish(*self.ids())
        return self.claiming("q")

    async def some_claim_of_keyed(self) -> Call:
        for id_ in self.ids():
            await self.bench.publish(id_, queue="k", key=id_)
        return self.claiming("k")

    async def some_claim_of_yielding(self) -> Call:
        for id_ in self.ids():
            await self.bench.publish(id_, queue="y", key=id_)
        return self.claiming("y")

    def claiming(self, queue: str) -> Call:
        async def claim() -> None:
            assert len(await self.bench.claim(5, queue=queue, types={"t": 1})) == 5

        return claim

    async def one_enqueue_bounded(self) -> Call:
        tasks = [self.bench.task(id_, queue="b") for id_ in self.ids(1)]
        return lambda: self.storage.enqueue(tasks, bounded=True)

    async def one_enqueue_tagged(self) -> Call:
        ids = self.ids()
        return lambda: self.bench.publish(*ids, tags=("a", "b"))

    async def some_claim_of_limited(self) -> Call:
        await self.bench.publish(*self.ids(), queue="l")
        return self.claiming("l")

    async def some_claim_at_a_rate(self) -> Call:
        await self.bench.publish(*self.ids(), queue="r")
        return self.claiming("r")

    async def some_claim_of_tagged(self) -> Call:
        await self.bench.publish(*self.ids(), tags=("a", "b"))
        return self.claiming("q")

    def turning(self, queue: str, claims: list[Claim], kind: TransitionKind = DONE) -> Call:
        async def turn() -> None:
            ends = [Transition(each.id, each.epoch, kind, retry_in=None if kind is DONE else 60.0) for each in claims]
            want = Want(queue=queue, limit=5, types={"t": 1})
            results, claimed = await self.storage.turn(ends, [want], worker="w", lease=LEASE_S)
            assert {each.answer for each in results} == {SettleAnswer.APPLIED}
            assert len(claimed.claims) == 5

        return turn

    async def some_turn(self) -> Call:
        claims = await self.runs()
        await self.bench.publish(*self.ids())
        return self.turning("q", claims)

    async def some_turn_of_keyed(self) -> Call:
        return self.turning("k", await self.keyed("k"))

    async def some_turn_of_limited(self) -> Call:
        claims = await self.runs(queue="l")
        await self.bench.publish(*self.ids(), queue="l")
        return self.turning("l", claims)

    async def some_turn_at_a_rate(self) -> Call:
        claims = await self.runs(queue="r")
        await self.bench.publish(*self.ids(), queue="r")
        return self.turning("r", claims)

    async def some_turn_that_fails(self) -> Call:
        claims = await self.runs()
        await self.bench.publish(*self.ids())
        return self.turning("q", claims, TransitionKind.FAILED)

    async def some_turn_that_yields(self) -> Call:
        return self.turning("y", await self.keyed("y"), TransitionKind.FAILED)

    async def some_settle(self) -> Call:
        claims = await self.runs()
        return lambda: self.storage.settle([Transition(each.id, each.epoch, DONE) for each in claims])

    async def some_settle_cancelled(self) -> Call:
        claims = await self.runs()
        return lambda: self.storage.settle(
            [Transition(each.id, each.epoch, TransitionKind.CANCELLED) for each in claims]
        )

    async def some_renew(self) -> Call:
        fences = [(each.id, each.epoch) for each in await self.runs()]
        return lambda: self.storage.renew(fences, lease=2 * LEASE_S)

    async def some_hold_no_lease(self) -> Call:
        fences = [(each.id, each.epoch) for each in await self.runs()]
        return lambda: self.storage.renew(fences, lease=None)

    async def one_progress(self) -> Call:
        [claim] = await self.runs(1)
        return lambda: self.storage.progress((claim.id, claim.epoch), b"{}")

    async def one_find(self) -> Call:
        ids = self.ids()
        await self.bench.publish(*ids)
        return lambda: self.storage.find(Ids(*ids))

    async def one_count(self) -> Call:
        ids = self.ids()
        await self.bench.publish(*ids)
        return lambda: self.storage.count(Ids(*ids))

    async def one_history(self) -> Call:
        [claim] = await self.runs(1)
        return lambda: self.storage.history(claim.id)

    async def one_page_of_a_queue(self) -> Call:
        return lambda: self.storage.find(Queues("u"), order=Order.NEWEST, limit=5)

    async def one_count_with_a_bound(self) -> Call:
        return lambda: self.storage.count(Queues("q") & Statuses("pending", "running"), bound=1)

    async def some_cancel(self) -> Call:
        ids = self.ids()
        await self.bench.publish(*ids)
        return lambda: self.bench.alter(Ids(*ids), "cancel")

    async def some_cancel_of_keyed(self) -> Call:
        [one, other] = self.ids(2)
        await self.bench.publish(one, other, queue="k", key=one)
        return lambda: self.bench.alter(one, "cancel")

    async def some_hold(self) -> Call:
        ids = self.ids()
        await self.bench.publish(*ids)
        return lambda: self.bench.alter(Ids(*ids), "hold")

    async def some_rerun(self) -> Call:
        ids = self.ids()
        await self.bench.ended(*ids, how=TransitionKind.CANCELLED)
        return lambda: self.bench.alter(Ids(*ids), "rerun")

    async def some_prune(self) -> Call:
        await self.bench.ended(*self.ids())
        return lambda: self.storage.prune(PruneSpec(keep=0, limit=5))

    async def entry(self) -> str:
        """A cron entry, stored."""
        [name] = self.ids(1)
        await self.storage.put_cron(CronRecord(name=name, definition="d", template=self.bench.task("")))
        return name

    async def one_put_cron(self) -> Call:
        return self.entry

    async def one_cron(self) -> Call:
        name = await self.entry()
        return lambda: self.storage.crons(name)

    async def one_alter_cron(self) -> Call:
        name = await self.entry()
        return lambda: self.storage.alter_cron(name, paused_reason="holidays")

    async def one_advance_cron(self) -> Call:
        name = await self.entry()
        task = self.bench.task(f"{name}-100", cron=name)
        return lambda: self.storage.advance_cron(
            name, expected=None, last_slot=100.0, next_slot=200.0, tasks=[task]
        )

    async def one_remove_cron(self) -> Call:
        name = await self.entry()
        return lambda: self.storage.remove_cron(name)

    async def one_remove_queue(self) -> Call:
        [name] = self.ids(1)
        await self.storage.declare([QueueRecord(name=name)])
        return lambda: self.storage.remove_queue(name)

    async def one_remove_queue_in_use(self) -> Call:
        return lambda: self.storage.remove_queue("q")

    async def compared(self, cost: Callable[[Call], Awaitable[int]]) -> dict[str, int]:
        """What each of them costs, by name: the least of three, as something may go on beside them."""
        for prepare in self.measured().values():  # the first visit clears up what others left
            await (await prepare())()
        found: dict[str, list[int]] = {name: [] for name in self.measured()}
        for _ in range(3):
            for name, prepare in self.measured().items():
                found[name].append(await cost(await prepare()))
        return {name: min(filter(None, each)) for name, each in found.items()}


async def declare(storage: Storage, bench: Workbench) -> None:
    """Declare the queues they use."""
    for name, settings in QUEUES.items():
        await storage.declare([QueueRecord(name=name, **settings)])
        bench._declared.add(name)


def told(few: dict[str, int], many: dict[str, int]) -> str:
    """Each call with its two costs."""
    return "\n".join(f"{name}: {few[name]} and {many[name]}" for name in few)
