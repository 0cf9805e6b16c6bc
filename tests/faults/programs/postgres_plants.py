"""Bugs to plant in the PostgreSQL storage, beside those of the engine. Each patches the running process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Final

from dispatch import StorageError, lifecycle
from dispatch.storage import (
    postgres,
    postgres_claim,
    postgres_registry,
    postgres_schema,
    postgres_tasks,
)
from dispatch.storage.postgres_step import Outcome, Step
from dispatch.storage.protocol import EnqueueAnswer, EnqueueResult, RenewAnswer, Rescued
from faults.programs.plants import dropped_outcomes, interrupted_runs_again

__all__ = ["PLANTS"]

WALL: Final = time.time
"""The machine's clock, whatever a program makes of `time.time`."""


def _replace(module: Any, name: str, old: str, new: str) -> None:
    """Change a statement; it must be as it is thought to be."""
    text = getattr(module, name)
    assert old in text, f"{module.__name__}.{name} reads otherwise by now"
    setattr(module, name, text.replace(old, new))


def no_fence() -> None:
    """An outcome is written whoever holds the task by now; a success even onto an ended one."""
    for name in ("ENDING", "SUCCEED"):
        _replace(postgres_claim, name, " AND t.epoch = given.epoch AND t.state + 0 = 3 AND NOT t.lined", "")
    real = lifecycle.fence
    lifecycle.fence = lambda record, epoch: real(record, 0 if record is None else record.epoch)


def no_rescue() -> None:
    """What a dead worker held stays with it."""

    async def rescue(self: Any, limit: int = 1_000) -> Rescued:
        return Rescued([])

    postgres.PostgresStorage.rescue = rescue


def forgotten_commits() -> None:
    """Every tenth step is answered, and undone."""
    real, steps = postgres.PostgresStorage._tried, count(1)

    async def tried(self: Any, connection: Any, action: Any, atomic: bool) -> Any:
        if next(steps) % 10:
            return await real(self, connection, action, atomic)
        outcome = Outcome()
        async with connection.transaction(force_rollback=True):
            result = await action(connection, outcome)
        self._follow(outcome)
        return result

    postgres.PostgresStorage._tried = tried


def believed_publishes() -> None:
    """A publish whose storing failed, or is in doubt, is taken for done."""
    real = postgres.PostgresStorage.enqueue

    async def enqueue(self: Any, tasks: Sequence[Any], **how: Any) -> list[EnqueueResult]:
        try:
            return await real(self, tasks, **how)
        except StorageError:
            return [EnqueueResult(EnqueueAnswer.CREATED, new.id) for new in tasks]

    postgres.PostgresStorage.enqueue = enqueue


def deaf_for_good() -> None:
    """Who has lost the connection that listens hears nothing by the next one."""
    real = postgres.listen

    async def listen(*args: Any, on_notify: Any, on_reconnect: Any, **how: Any) -> Any:
        deaf = False

        def reconnected() -> None:
            nonlocal deaf
            deaf = True

        def heard(channel: str, payload: str) -> None:
            if not deaf:
                on_notify(channel, payload)

        await real(*args, on_notify=heard, on_reconnect=reconnected, **how)

    postgres.listen = listen


def tells_nobody() -> None:
    """What was published is told to no other process."""

    async def notify(self: Any, payloads: Sequence[str]) -> None:
        pass

    postgres.PostgresStorage._notify = notify


def deaf_to_controls() -> None:
    """A worker asks neither what was set on queues, nor whether to stop what it runs."""
    from dispatch.upkeep import Upkeep

    async def nothing(self: Any) -> None:
        pass

    Upkeep._apply_controls = nothing
    real = postgres_tasks.PostgresTasks.renew

    async def renew(self: Any, *args: Any) -> Any:
        return [RenewAnswer(each.id, each.epoch, each.held) for each in await real(self, *args)]

    postgres_tasks.PostgresTasks.renew = renew


def own_clock() -> None:
    """A delay is counted from the publisher's own clock."""
    real = postgres_tasks.PostgresTasks._insert

    def insert(self: Any, tasks: Any, *args: Any, **how: Any) -> Any:
        for new in tasks:
            new.available_at, new.delay = time.time() + new.delay, 0.0
        return real(self, tasks, *args, **how)

    postgres_tasks.PostgresTasks._insert = insert


def own_clock_of_leases() -> None:
    """Whether a lease has run out is judged by the sweeper's own clock."""
    real = postgres_tasks.PostgresTasks.rescue
    expired = postgres_tasks.EXPIRED

    class Ahead(Step):
        async def begin(self, **what: Any) -> None:
            await super().begin(**what)
            self.now += time.time() - WALL()

    async def rescue(self: Any, *args: Any) -> Any:
        sweeper = postgres_tasks.PostgresTasks(self._sql, self._lanes)
        sweeper._new_step = lambda connection: Ahead(connection, self._sql, self._lanes)
        ahead = f"@.now_s() + {time.time() - WALL():.0f}"
        postgres_tasks.EXPIRED = expired.replace("@.now_s()", ahead)
        return await real(sweeper, *args)

    postgres_tasks.PostgresTasks.rescue = rescue


def ticks_for_all() -> None:
    """Whoever comes to a tick publishes it: no compare-and-set, and no id that tells."""
    from dispatch.cron import stored
    from dispatch.ids import new_id

    async def advance(self: Any, connection: Any, name: str, expected: Any, *step: Any) -> Any:
        for entry in await self.crons(connection, name):
            expected = entry.last_slot
        return await real(self, connection, name, expected, *step)

    registry = postgres_registry.PostgresRegistry
    real, registry.advance_cron = registry.advance_cron, advance
    stored.tick_id = lambda name, slot: new_id(slot)


def ticks_nowhere() -> None:
    """Every fifth tick is decided without its task."""
    ticks = count(1)

    async def advance(
        self: Any, connection: Any, name: str, expected: Any, slots: Any, tasks: Any, *rest: Any
    ) -> Any:
        kept = tasks if next(ticks) % 5 else []
        return await real(self, connection, name, expected, slots, kept, *rest)

    registry = postgres_registry.PostgresRegistry
    real, registry.advance_cron = registry.advance_cron, advance


def whole_scan() -> None:
    """A claim looks at every row that waits."""
    _replace(postgres_claim, "PLAIN_RANGES", "ORDER BY t.available_at, t.seq LIMIT", "ORDER BY t.available_at, t.seq + 0 LIMIT")


def migrates_unlocked() -> None:
    """Each process that migrates believes itself to be alone."""
    postgres_schema._lock_sql = lambda schema: "floor(random() * 1e9)::int8"


def unlimited() -> None:
    """A worker keeps to a queue's limits by itself, whatever the others do."""
    _replace(postgres_claim, "LIMITS", " FOR NO KEY UPDATE", "")
    _replace(postgres_claim, "RUNNING", "AND state = 3", "AND FALSE")


def keeps_the_ended() -> None:
    """Pruning deletes nothing."""
    real = postgres_tasks.PostgresTasks.prune

    async def prune(self: Any, connection: Any, spec: Any, *, dry_run: bool) -> int:
        await real(self, connection, spec, dry_run=True)
        return 0

    postgres_tasks.PostgresTasks.prune = prune


PLANTS: Final[dict[str, Callable[[], None]]] = {
    plant.__name__: plant
    for plant in (
        no_fence,
        no_rescue,
        forgotten_commits,
        interrupted_runs_again,
        dropped_outcomes,
        believed_publishes,
        deaf_for_good,
        tells_nobody,
        deaf_to_controls,
        own_clock,
        own_clock_of_leases,
        ticks_for_all,
        ticks_nowhere,
        whole_scan,
        migrates_unlocked,
        unlimited,
        keeps_the_ended,
    )
}
