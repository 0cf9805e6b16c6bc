"""Tasks that wait for a handler which nobody has: named in the log, where there would be silence.

A type with a typing error in its name, or a handler that was never registered, would
otherwise show in nothing but tasks that wait. Two looks find them. What was published
here, of a type without a handler here, is looked at some seconds later; and where other
processes publish too, a worker with nothing else to do looks once a minute for what has
been due as long. A task that somebody takes meanwhile is nobody's concern, nor is a type
that somebody works on, so in a fleet each process may well handle types of its own. Each
type is named once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from math import inf
from typing import Final

import attrs
import trio

from dispatch.actors import QueueActors
from dispatch.bell import Bell
from dispatch.errors import StorageError
from dispatch.registry import Registry
from dispatch.storage.protocol import Storage
from dispatch.storage.query import All, Ids, Queues, Statuses, Time, Types
from dispatch.tasks import TaskStatus

__all__ = ["Unhandled"]

log: Final = logging.getLogger("dispatch.unhandled")

PATIENCE_S: Final = 5.0
"""So long a task that was published here may be due before it counts: a handler may still be registered."""
NEARLY: Final = 0.8
"""Of that: it is stored a little later than it is looked for from."""
EVERY_S: Final = 60.0
"""How often to look for what others published, and how long that must have been due."""
LOOKED_AT: Final = 1_000
"""Of so many waiting tasks the types are looked at, however many there are."""
AT_ONCE: Final = 20
"""Tasks fetched in one page, payloads included."""


@attrs.define(eq=False)
class Unhandled:
    """Looks for one consumer, whose `queues` these are."""

    storage: Storage
    registry: Registry
    queues: Callable[[], Iterable[QueueActors]]
    _bell: Bell = attrs.field(factory=Bell)
    _named: set[tuple[str, str]] = attrs.field(factory=set[tuple[str, str]])

    async def run(self) -> None:
        """Look until cancelled."""
        again_s = inf
        with self.registry.watched(self._bell):
            while True:
                await self._bell.wait(min(again_s, EVERY_S) if self.storage.durable else again_s)
                await trio.sleep(PATIENCE_S)
                again_s = EVERY_S
                try:
                    again_s = await self._look_at_published()
                    if self.storage.durable:
                        await self._look_at_waiting()
                except StorageError as exc:  # whoever works says so louder
                    log.debug("the storage failed, looking again: %s", exc)

    async def _look_at_published(self) -> float:
        """Answers with the seconds after which another look may tell more."""
        queues = {actors.name: actors for actors in self.queues() if self._concerned(actors)}
        suspects = {
            address: list(ids)
            for address, ids in self.registry.unhandled.items()
            if ids and address[0] in queues and address not in self._named
        }
        if not suspects:
            return inf
        wanted = [id_ for ids in suspects.values() for id_ in ids]
        found = {
            record.id: record
            for at in range(0, len(wanted), AT_ONCE)
            for record in (await self.storage.find(Ids(*wanted[at : at + AT_ONCE]), limit=AT_ONCE)).records
        }
        again_s, now = inf, self.storage.now()
        for address, ids in suspects.items():
            waiting = [
                record
                for id_ in ids
                if (record := found.get(id_)) is not None and record.status is TaskStatus.PENDING
            ]
            gone = {*ids} - {record.id for record in waiting}
            if address in self.registry.unhandled:
                self.registry.unhandled[address] = [
                    id_ for id_ in self.registry.unhandled[address] if id_ not in gone
                ]
            if not waiting:
                continue
            first = min(waiting, key=lambda record: record.available_at)
            due_s = now - first.available_at
            if due_s < NEARLY * PATIENCE_S:
                again_s = min(again_s, max(-due_s, 0.0))
            elif queues[address[0]].paused or await self._is_taken(address, first.available_at):
                again_s = min(again_s, EVERY_S)
            else:
                self._name(address, f"task {first.id} has been due for {due_s:.0f} s")
        return again_s

    async def _look_at_waiting(self) -> None:
        # Where something is being done, what waits may be waiting for that.
        idle = [
            actors.name
            for actors in self.queues()
            if self._concerned(actors) and not actors.busy and not actors.paused
        ]
        if not idle:
            return
        since = self.storage.now() - EVERY_S
        due = All(Queues(*idle), Statuses("due"), Time("available_at", until=since))
        counts = await self.storage.count(due, by=("queue", "type"), bound=LOOKED_AT)
        for queue, type_name in sorted(counts):
            address = (queue, type_name)
            known = address in self._named or address in self.registry.handlers
            if not known and not await self._is_taken(address, since):
                self._name(address, f"tasks of it have been due for over {EVERY_S:g} s")

    async def _is_taken(self, address: tuple[str, str], since: float) -> bool:
        """Whether somebody runs tasks of this type, or has since then: it is his backlog, and no mistake."""
        tasks = (Queues(address[0]), Types(address[1]))
        ended = (Statuses("succeeded", "failed", "cancelled"), Time("finished_at", since=since))
        for working in ((Statuses("running"),), ended):
            if await self.storage.count(All(*tasks, *working), bound=1):
                return True
        return False

    def _concerned(self, actors: QueueActors) -> bool:
        """Whether a task of this queue is meant for here, as far as one can tell."""
        return not self.storage.durable or bool(self._handled(actors.name))

    def _handled(self, queue: str) -> list[str]:
        return sorted(type_name for name, type_name in self.registry.handlers if name == queue)

    def _name(self, address: tuple[str, str], what: str) -> None:
        if address in self.registry.handlers:
            return
        self._named.add(address)
        queue, type_name = address
        here = self._handled(queue)
        log.warning(
            "queue %s: the task type %r has no handler here, and nobody else takes it: %s; handled here: %s. Register "
            "its handler with consumer.register_handler, correct the type where it is published, or look after the "
            "worker that is to take it",
            queue,
            type_name,
            what,
            ", ".join(map(repr, here)) or "none",
            extra={"event": "unhandled", "queue": queue, "task_type": type_name},
        )
