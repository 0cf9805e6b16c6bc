"""Bugs to plant: what the batteries must notice. Each patches the running process, never a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs

from dispatch import lifecycle
from dispatch.lifecycle import Event
from dispatch.storage import sqlite, sqlite_schema, sqlite_tasks
from dispatch.storage.protocol import Rescued

__all__ = ["PLANTS"]


def no_fence() -> None:
    """An outcome is written whoever holds the task by now; a success even onto an ended one."""
    sqlite_tasks.SUCCEED = sqlite_tasks.SUCCEED.replace(
        "id = ? AND epoch = ? AND status = 'running'", "id = ? AND ? >= 0"
    )
    real = lifecycle.fence
    lifecycle.fence = lambda record, epoch: real(record, 0 if record is None else record.epoch)


def no_rescue() -> None:
    """What a dead worker held stays with it."""

    async def rescue(self: Any, limit: int = 1_000) -> Rescued:
        return Rescued([])

    sqlite.SqliteStorage.rescue = rescue


def forgotten_commits() -> None:
    """Every tenth transaction is answered, and undone."""
    real = sqlite._Ledger.commit
    count = 0

    def commit(self: Any) -> None:
        nonlocal count
        count += 1
        if count % 10:
            real(self)
        else:
            self.rollback()

    sqlite._Ledger.commit = commit


def counted_hand_backs() -> None:
    """A task that is handed back keeps the attempt counted."""
    lifecycle.TABLE[Event.HAND_BACK] = attrs.evolve(lifecycle.TABLE[Event.HAND_BACK], attempt=0)


def no_hand_backs() -> None:
    """A stopping worker says nothing of what it leaves."""
    from dispatch.actors import QueueActors

    def end(self: Any, transition: Any, claim: Any, run_s: float) -> None:
        if transition.kind != "handed_back":
            real(self, transition, claim, run_s)

    real, QueueActors._end = QueueActors._end, end


def interrupted_runs_again() -> None:
    """A rescue gives every task another run."""

    def rescue(record: Any, now: float) -> Any:
        record.on_interrupt, record.limit, record.max_retry = "retry", 99, None
        return real(record, now)

    real, lifecycle.rescue = lifecycle.rescue, rescue


def trusted_clock() -> None:
    """A clock that jumps is believed."""
    from dispatch.upkeep import Upkeep

    Upkeep._clock_jumped = lambda self: False


def dropped_outcomes() -> None:
    """What could not be written at the first try is forgotten."""
    from dispatch.actors import QueueActors

    async def turn(self: Any, began: float) -> None:
        await real(self, began)
        self._writing = []

    real, QueueActors._take_turn = QueueActors._take_turn, turn


def impatient() -> None:
    """A write does not wait for another's lock."""
    sqlite_schema.BUSY_TIMEOUT_S = 0.0


def deferred_begin() -> None:
    """A transaction reads first and asks for the write lock later."""

    def begin(self: Any) -> None:
        db = self.db
        self.db = _Deferred(db)
        try:
            real(self)
        finally:
            self.db = db

    real, sqlite._Ledger.begin = sqlite._Ledger.begin, begin


@attrs.define
class _Deferred:
    db: Any

    def execute(self, sql: str) -> Any:
        if sql != "BEGIN IMMEDIATE":
            return self.db.execute(sql)
        self.db.execute("BEGIN")
        return self.db.execute("SELECT count(*) FROM dispatch_schema").fetchone()


def whole_scan() -> None:
    """A claim looks at every row that waits."""
    sqlite_tasks.HEADS = (
        "SELECT available_at, seq FROM dispatch_tasks NOT INDEXED"
        " WHERE lane = ? AND priority = ? AND place = 1 ORDER BY available_at, seq LIMIT ?"
    )


def poison_is_retried() -> None:
    """A payload that cannot be read is tried again, like any failure."""
    from dispatch import execution

    def failed(claim: Any, error: Any, trace: Any, reason: Any, retry_in: float | None = None) -> Any:
        return real(claim, error, trace, None, 0.0)

    real, execution._failed = execution._failed, failed


def unchecked_payloads() -> None:
    """Publishing writes whatever it is given."""
    import json

    from dispatch.codec import Codec

    def encode(self: Any, value: Any, cls: Any, where: str, *, limit: Any = None) -> Any:
        return json.dumps(attrs.asdict(value), default=str).encode("utf-8", "replace"), value

    Codec.encode = encode


def ticks_for_all() -> None:
    """Whoever comes to a tick publishes it: no compare-and-set, and no id that tells."""
    from dispatch.cron import stored
    from dispatch.ids import new_id
    from dispatch.storage.sqlite_registry import SqliteRegistry

    def advance(self: Any, name: str, now: float, **step: Any) -> Any:
        for entry in self.crons(name):
            step["expected"] = entry.last_slot
        return real(self, name, now, **step)

    real, SqliteRegistry.advance_cron = SqliteRegistry.advance_cron, advance
    stored.tick_id = lambda name, slot: new_id(slot)


def ticks_nowhere() -> None:
    """Every twentieth tick is decided without its task."""
    from dispatch.storage.sqlite_registry import SqliteRegistry

    count = 0

    def advance(self: Any, name: str, now: float, *, tasks: Any, **step: Any) -> Any:
        nonlocal count
        count += 1
        return real(self, name, now, tasks=tasks if count % 20 else [], **step)

    real, SqliteRegistry.advance_cron = SqliteRegistry.advance_cron, advance


PLANTS: Final[dict[str, Callable[[], None]]] = {
    plant.__name__: plant
    for plant in (
        no_fence,
        no_rescue,
        forgotten_commits,
        counted_hand_backs,
        no_hand_backs,
        interrupted_runs_again,
        trusted_clock,
        dropped_outcomes,
        impatient,
        deferred_begin,
        whole_scan,
        poison_is_retried,
        unchecked_payloads,
        ticks_for_all,
        ticks_nowhere,
    )
}
