"""The dispatcher itself, through its public names only: in memory, on SQLite, on PostgreSQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import trio
from attrs import frozen

from benchmarks.peers.drive import Peer, Trio
from benchmarks.workload import Fields
from dispatch import (
    EventKind,
    Observer,
    Priority,
    QueueTask,
    TaskEvent,
    TaskQueueConfig,
    TaskType,
    open_dispatcher,
)
from dispatch.observe.logging import LogObserver

PRIORITIES = tuple(Priority)
BATCH = 100
"""What the raw loops claim at once."""
QUEUES = 100
CRONS = 10_000
ADDERS = 50
"""How many add at once, so that their commits are shared."""


@frozen
class Order:
    """The six fields, typed."""

    id: int
    customer: str
    total: float
    express: bool
    lines: list[str]
    note: str | None


ORDER = TaskType("orders", "ship", Order)


class Dispatch(Peer):
    flavour = Trio()
    packages = ("trio-dispatch", "trio")
    bulk = 100

    def settings(self) -> dict[str, Any]:
        """Of the queue, beside its concurrency."""
        return {}

    def observers(self) -> Sequence[Observer]:
        """None: a line in the log for each task is not what is measured."""
        return ()

    async def open(self) -> None:
        store = self.spec.store
        if store.startswith("postgresql"):
            from dispatch.storage.postgres_schema import migrate

            await trio.to_thread.run_sync(migrate, store)
        elif store:
            store = f"sqlite:///{store}"
        self.dispatcher = await self.stack.enter_async_context(
            open_dispatcher(store or None, observers=self.observers())
        )
        runs = self.spec.measure not in ("publishing", "growth", "memory")
        self.dispatcher.consumer.register_queue(
            "orders",
            TaskQueueConfig(
                concurrency=self.spec.concurrency,
                # In memory it bounds who waits; where nobody works, all of them do.
                buffer_size=128 if runs else max(self.spec.tasks, 1) + 2_000,
                **self.settings(),
            ),
        )

    def task(self, order: Fields) -> QueueTask[Order]:
        """The task of one order."""
        return ORDER(Order(**order))

    async def publish(self, orders: Sequence[Fields]) -> None:
        if len(orders) == 1:
            await self.dispatcher.publisher.publish(self.task(orders[0]))
        else:
            await self.dispatcher.publisher.publish_many([self.task(each) for each in orders])

    async def work(self) -> None:
        self.dispatcher.consumer.register_handler(ORDER, self._ship)

    async def _ship(self, task: QueueTask[Order]) -> None:
        self.meter()

    async def idle(self) -> None:
        for number in range(QUEUES):
            task_type = TaskType(f"queue-{number}", "ship", Order)
            self.dispatcher.consumer.register_queue(task_type.queue)
            self.dispatcher.consumer.register_handler(task_type, self._ship)
        numbers = iter(range(CRONS))
        async with trio.open_nursery() as nursery:
            for _ in range(ADDERS):
                nursery.start_soon(self._add_crons, numbers)

    async def _add_crons(self, numbers: Iterator[int]) -> None:
        order = ORDER(Order(1, "ada@example.org", 12.5, True, [], None))
        for number in numbers:
            minute, hour, day = number % 60, number // 60 % 24, 1 + number // 1440
            await self.dispatcher.cron.add_with_name(f"{minute} {hour} {day} 1 *", f"entry-{number}", order)


class Prefetching(Dispatch):
    """Claiming as much at once as the raw loops do, or twice its slots."""

    def settings(self) -> dict[str, Any]:
        slots = self.spec.concurrency
        # A server is asked for half of it at a time, while the other half is run.
        whole = 2 * BATCH if self.spec.store.startswith("postgresql") else BATCH
        return {"max_retry": 3, "prefetch": max(whole - slots, slots)}


class Loaded(Dispatch):
    """With what a service would switch on: observers, keys, priorities and timeouts."""

    def settings(self) -> dict[str, Any]:
        return {"keyed": True, "timeout": 30.0, "max_retry": 3}

    def observers(self) -> Sequence[Observer]:
        self.seen: Counter[EventKind] = Counter()
        return LogObserver(), self._observe

    def _observe(self, event: TaskEvent) -> None:
        self.seen[event.kind] += 1

    def task(self, order: Fields) -> QueueTask[Order]:
        number = order["id"]
        return ORDER(Order(**order), key=f"customer-{number % 1_000}", priority=PRIORITIES[number % 4])
