"""The queues and handlers this process knows, shared by publisher and consumer."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import attrs
import trio

from dispatch.bell import Bell
from dispatch.errors import QueueConfigConflictError, StorageError
from dispatch.handlers import HandlerEntry
from dispatch.records import NewTask
from dispatch.storage.protocol import QueueRecord, Storage
from dispatch.tasks import TaskQueueConfig, TaskType

__all__ = ["Registry"]

log: Final = logging.getLogger("dispatch.registry")

DECLARED: Final = ("keyed", "on_retry", "max_waiting", "overflow", "max_running", "rate")
"""What a declaration says of a queue to all processes."""

SUSPECTS: Final = 1_000
"""Types without handler that are remembered: names made up without end must not fill the memory."""
SAMPLES: Final = 5
"""Of each, so many tasks: the first ones may be delayed for days."""


@attrs.define(eq=False)
class Registry:
    """Configurations by queue, handlers by address, and which queues the storage was told of."""

    configs: dict[str, TaskQueueConfig] = attrs.field(factory=dict[str, TaskQueueConfig])
    handlers: dict[tuple[str, str], HandlerEntry] = attrs.field(
        factory=dict[tuple[str, str], HandlerEntry]
    )
    types: dict[tuple[str, str], TaskType[Any, Any]] = attrs.field(
        factory=dict[tuple[str, str], TaskType[Any, Any]]
    )
    """Every task type handled here: what a stored payload is decoded as."""
    defaulted: set[str] = attrs.field(factory=set[str])
    """Queues that were registered without a configuration: what is stored of them for all processes stays."""
    undeclared: dict[str, TaskQueueConfig] = attrs.field(factory=dict[str, TaskQueueConfig])
    """Registered, but not yet written to the storage."""
    consumed: frozenset[str] | None = None
    """The queues that are worked on here, None for all that are registered."""
    tags: frozenset[str] | None = None
    """What the tags of a task must be among to be taken here; None takes all."""
    unhandled: dict[tuple[str, str, int], list[str]] = attrs.field(factory=dict[tuple[str, str, int], list[str]])
    """Of each type and version that was published here and has no handler here, the ids of some tasks."""
    _watching: list[Bell] = attrs.field(factory=list[Bell])
    _declaring: trio.Lock = attrs.field(factory=trio.Lock)
    _attempts: int = 0
    """How often it was tried to declare."""
    _refused: str | None = None
    """What the last time came to, if it failed."""

    def add_queue(self, name: str, config: TaskQueueConfig | None) -> bool:
        """Add a queue, with Go's defaults for None; False if it stands there identically. A different one raises 1005."""
        given = config
        config = TaskQueueConfig() if config is None else config
        known = self.configs.get(name)
        if known is not None:
            if given is None:
                return False  # nothing is said of it
            if known == config:
                if name in self.defaulted:  # it is said now that these are meant
                    self.defaulted.discard(name)
                    self.undeclared[name] = known
                return False
            changed = [
                f"{field.name}={getattr(config, field.name)!r} (registered: {getattr(known, field.name)!r})"
                for field in attrs.fields(TaskQueueConfig)
                if getattr(config, field.name) != getattr(known, field.name)
            ]
            raise QueueConfigConflictError(
                f"queue {name!r} is registered with another configuration, which stays: {', '.join(changed)}; "
                "register it once, or with the same config"
            )
        if given is None:
            self.defaulted.add(name)
        self.configs[name] = config
        self.undeclared[name] = config
        return True

    def handle(self, entry: HandlerEntry) -> None:
        """Add a handler of a type that has none; what waited for it is nobody's concern any more."""
        task_type = entry.task_type
        self.handlers[task_type.address] = entry
        self.types[task_type.address] = task_type
        for kind in [each for each in self.unhandled if each[:2] == task_type.address]:
            if kind[2] <= task_type.version:
                del self.unhandled[kind]

    def known(self, queue: str, type_name: str) -> int | None:
        """The newest payload version that the handler here takes; None without a handler."""
        entry = self.handlers.get((queue, type_name))
        return None if entry is None else entry.task_type.version

    def stored(self, new: NewTask) -> None:
        """Note a task that was stored from here, if there is no handler for it here; perhaps rightly."""
        known = self.known(new.queue, new.type)
        if known is not None and new.version <= known:
            return
        kind = (new.queue, new.type, new.version)
        ids = self.unhandled.get(kind)
        if ids is None and len(self.unhandled) < SUSPECTS:
            ids = self.unhandled[kind] = []
        if ids is not None and len(ids) < SAMPLES:
            ids.append(new.id)
            for bell in self._watching:
                bell.ring()

    @contextmanager
    def watched(self, bell: Bell) -> Generator[None]:
        """Ring `bell` for every new task in `unhandled` while the context is open."""
        self._watching.append(bell)
        try:
            yield
        finally:
            self._watching.remove(bell)

    async def declare(self, storage: Storage) -> None:
        """Tell the storage of the queues it has not been told of. A checkpoint if there are any."""
        if not self.undeclared:
            return
        asked = self._attempts
        async with self._declaring:  # what several want told is told once
            if self._attempts > asked and self._refused is not None:
                raise StorageError(self._refused)  # who waited for an attempt shares its answer
            self._refused = None
            try:
                await self._declare(storage)
            except StorageError as exc:
                self._refused = exc.detail
                raise
            finally:
                self._attempts += 1

    async def _declare(self, storage: Storage) -> None:
        batch = dict(self.undeclared)
        fresh = [name for name in batch if name in self.defaulted]
        if fresh:
            await self._declare_new(storage, fresh)
        records = [_record(name, config, durable=storage.durable) for name, config in batch.items() if name not in fresh]
        if records:
            await self._declare_all(storage, records)
        for name, config in batch.items():
            if self.undeclared.get(name) is config and (name in fresh) == (name in self.defaulted):
                del self.undeclared[name]

    async def _declare_new(self, storage: Storage, names: Sequence[str]) -> None:
        """Make those queues that are not there; what others have said of a queue is not taken back by saying nothing."""
        records = {name: _record(name, self.configs[name], durable=storage.durable) for name in names}
        await storage.declare(list(records.values()), new_only=True)
        for stored in await storage.queues():
            mine = records.get(stored.name)
            kept = [
                f"{name}={getattr(stored, name)!r}"
                for name in DECLARED
                if mine is not None and getattr(mine, name) != getattr(stored, name)
            ]
            if kept:
                log.info(
                    "queue %s: registered here without a config, so what is stored of it holds: %s",
                    stored.name,
                    ", ".join(kept),
                    extra={"event": "declared", "queue": stored.name},
                )

    async def _declare_all(self, storage: Storage, records: Sequence[QueueRecord]) -> None:
        # Where others declare, too, the last one decides, for all: that must not happen in silence.
        before = {record.name: record for record in await storage.queues()} if storage.durable else {}
        await storage.declare(records)
        for record in records:
            changed = _changed(before.get(record.name, record), record)
            if changed:
                log.warning(
                    "queue %s: changed for all processes, as it is registered here: %s",
                    record.name,
                    changed,
                    extra={"event": "redeclared", "queue": record.name},
                )


def _changed(before: QueueRecord, record: QueueRecord) -> str:
    """What declaring this record in place of the other changes, for people."""
    return ", ".join(
        f"{name} from {getattr(before, name)!r} to {getattr(record, name)!r}"
        for name in DECLARED
        if getattr(before, name) != getattr(record, name)
    )


def _record(name: str, config: TaskQueueConfig, *, durable: bool) -> QueueRecord:
    return QueueRecord(
        name=name,
        keyed=config.keyed,
        on_retry=config.on_retry,
        max_waiting=config.max_waiting if durable else (config.max_waiting or config.buffer_size),
        overflow=config.overflow,
        max_running=config.max_running,
        rate=None if config.rate_limit is None else (config.rate_limit.count, config.rate_limit.per),
    )
