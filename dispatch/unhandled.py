"""Tasks that wait for a handler which nobody has: named in the log, where there would be silence.

A type with a typing error in its name, a handler that was never registered, or payloads
of a version that a rollback left behind, would otherwise show in nothing but tasks that
wait. Two looks find them. What was published here, of a type or version without a handler
here, is looked at some seconds later; and where other processes publish too, a worker
looks once a minute for what has been due as long. Of a queue that it finds busy each time
it looks every few minutes, and at the first tasks alone: that is cheap, and what nobody
takes is soon first there, when all that was stored before it has run. A task that somebody
takes meanwhile is nobody's concern, nor is a type that somebody works on, so in a fleet
each process may well handle types of its own; who is at other work of the queue has a
minute to come to it. Each type is named once, and of a type that
is handled here each version.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Final

import attrs
import trio

from dispatch.actors import QueueActors
from dispatch.bell import Bell
from dispatch.errors import StorageError
from dispatch.records import TaskRecord
from dispatch.registry import Registry
from dispatch.storage.protocol import QueueRecord, Storage
from dispatch.storage.query import All, Ids, Order, Queues, Statuses, Time, Types, Where
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
BUSY_EVERY_S: Final = 300.0
"""How often to look at a queue that is never found idle."""
FIRST: Final = 100
"""Of a busy queue, or of a type handled here, so many tasks are looked at; next time those behind them."""
AT_ONCE: Final = 20
"""Tasks fetched in one page, payloads included."""

WAITED: Final = "tasks of it have been due for over {:g} s"

_Kind = tuple[str, str, int]
"""Queue, type and version."""


@attrs.define(eq=False)
class Unhandled:
    """Looks for one consumer, whose `queues` these are."""

    storage: Storage
    registry: Registry
    queues: Callable[[], Iterable[QueueActors]]
    _bell: Bell = attrs.field(factory=Bell)
    _named: set[_Kind] = attrs.field(factory=set[_Kind])
    """Of a type without a handler here as version 0, which none has."""
    _looked: dict[str, float] = attrs.field(factory=dict[str, float])
    """When each queue was last looked at, in trio's time."""
    _after: dict[tuple[str, str], str | None] = attrs.field(factory=dict[tuple[str, str], str | None])
    """Where to go on, by queue, and type or the empty text."""

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
            kind: list(ids)
            for kind, ids in self.registry.unhandled.items()
            if ids and kind[0] in queues and not self._is_named(kind)
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
        for kind, ids in suspects.items():
            waiting = [
                record
                for id_ in ids
                if (record := found.get(id_)) is not None and record.status is TaskStatus.PENDING
            ]
            gone = {*ids} - {record.id for record in waiting}
            if kind in self.registry.unhandled:
                self.registry.unhandled[kind] = [id_ for id_ in self.registry.unhandled[kind] if id_ not in gone]
            if not waiting:
                continue
            first = min(waiting, key=lambda record: record.available_at)
            due_s = now - first.available_at
            if due_s < NEARLY * PATIENCE_S:
                again_s = min(again_s, max(-due_s, 0.0))
            elif (
                (actors := queues[kind[0]]).paused
                or await self._is_taken(kind, min(first.available_at, now - EVERY_S))
                or await self._is_full(actors)
                or (due_s < EVERY_S and await self._others_work(actors))
            ):
                again_s = min(again_s, EVERY_S)
            else:
                self._name(kind, f"task {first.id} has been due for {due_s:.0f} s")
        return again_s

    async def _look_at_waiting(self) -> None:
        now = trio.current_time()
        concerned = [actors for actors in self.queues() if self._concerned(actors) and not actors.paused]
        # Where something is being done, what waits may be waiting for that.
        idle = [actors.name for actors in concerned if not actors.busy and not await self._is_full(actors)]
        if idle:
            await self._look_at_idle(idle)
        self._looked.update(dict.fromkeys(idle, now))
        for actors in concerned:
            if now - self._looked.setdefault(actors.name, now) >= BUSY_EVERY_S:
                self._looked[actors.name] = now
                # In order of storing, whether due or not: no more is read than this, however many wait.
                await self._look_at_first((actors.name, ""), All(Queues(actors.name), Statuses("pending")))

    async def _look_at_idle(self, names: Sequence[str]) -> None:
        since = self.storage.now() - EVERY_S
        due = All(Statuses("due"), Time("available_at", until=since))
        counts = await self.storage.count(All(Queues(*names), due), by=("queue", "type"), bound=LOOKED_AT)
        for queue, type_name in sorted(counts):
            if self.registry.known(queue, type_name) is not None:
                await self._look_at_first((queue, type_name), All(Queues(queue), Types(type_name), due))
                continue
            kind = (queue, type_name, 0)
            if not self._is_named(kind) and not await self._is_taken(kind, since):
                self._name(kind, WAITED.format(EVERY_S))

    async def _look_at_first(self, place: tuple[str, str], where: Where) -> None:
        """Name what no handler here takes among the first tasks, or those behind the ones of the last look."""
        since = self.storage.now() - EVERY_S
        found: set[_Kind] = set()
        backlog = False
        for _ in range(0, FIRST, AT_ONCE):
            page = await self.storage.find(where, limit=AT_ONCE, after=self._after.get(place))
            due = [record for record in page.records if record.available_at < since]
            strange = {(each.queue, each.type, each.version) for each in due if self._is_strange(each)}
            backlog = backlog or len(strange) < len({(each.queue, each.type, each.version) for each in due})
            found |= strange
            self._after[place] = page.cursor
            if page.cursor is None:
                break
        queue, type_name = place
        if backlog and not type_name:
            self._after[(queue, "")] = None  # from here on it is work that waits for its turn
        for kind in sorted(found):
            if not self._is_named(kind) and not await self._is_taken(kind, since):
                self._name(kind, WAITED.format(EVERY_S))

    def _is_strange(self, record: TaskRecord) -> bool:
        """Whether no handler here takes it."""
        known = self.registry.known(record.queue, record.type)
        return known is None or record.version > known

    async def _is_taken(self, kind: _Kind, since: float) -> bool:
        """Whether somebody runs tasks of this kind, or has since then: it is his backlog, and no mistake.

        Looked for further back where the queue's rate lets only few start.
        """
        queue, type_name, version = kind
        rate = (await self._stored(queue)).rate
        if rate is not None:
            since = min(since, self.storage.now() - 2 * rate[1])
        tasks = (Queues(queue), Types(type_name))
        ended = (Statuses("succeeded", "failed", "cancelled"), Time("finished_at", since=since))
        for working in ((Statuses("running"),), ended):
            where = All(*tasks, *working)
            if self.registry.known(queue, type_name) is None:
                if await self.storage.count(where, bound=1):
                    return True
                continue
            after: str | None = None  # of the type many run, here: the version tells
            for _ in range(0, FIRST, AT_ONCE):
                page = await self.storage.find(where, order=Order.NEWEST, limit=AT_ONCE, after=after)
                if any(record.version >= version for record in page.records):
                    return True
                after = page.cursor
                if after is None:
                    break
        return False

    async def _is_full(self, actors: QueueActors) -> bool:
        """Whether as much of the queue runs as may, so that nobody can take more."""
        most = (await self._stored(actors.name)).max_running
        return most is not None and await self._running(actors.name, most) >= most

    async def _others_work(self, actors: QueueActors) -> bool:
        """Whether somebody else has tasks of the queue in hand; he may take others after them."""
        mine = len(actors.held())
        return await self._running(actors.name, mine + 1) > mine

    async def _stored(self, queue: str) -> QueueRecord:
        """The queue as it stands for all processes."""
        found = [each for each in await self.storage.queues() if each.name == queue]
        return found[0] if found else QueueRecord(name=queue)

    async def _running(self, queue: str, bound: int) -> int:
        return sum((await self.storage.count(All(Queues(queue), Statuses("running")), bound=bound)).values())

    def _is_named(self, kind: _Kind) -> bool:
        return kind in self._named or (
            self.registry.known(*kind[:2]) is None and (*kind[:2], 0) in self._named
        )

    def _concerned(self, actors: QueueActors) -> bool:
        """Whether a task of this queue is meant for here, as far as one can tell."""
        return not self.storage.durable or bool(self._handled(actors.name))

    def _handled(self, queue: str) -> list[str]:
        return sorted(type_name for name, type_name in self.registry.handlers if name == queue)

    def _name(self, kind: _Kind, what: str) -> None:
        queue, type_name, version = kind
        known = self.registry.known(queue, type_name)
        if self._is_named(kind) or (known is not None and version <= known):
            return
        if known is not None:
            self._named.add(kind)
            log.warning(
                "queue %s: tasks of the type %r wait that are of version %d; the handler here knows up to %d, and nobody else "
                "has taken them: %s. Run a release that declares version %d, or look after the worker that is to take them",
                queue,
                type_name,
                version,
                known,
                what,
                version,
                extra={"event": "unhandled", "queue": queue, "task_type": type_name, "version": version},
            )
            return
        self._named.add((queue, type_name, 0))
        here = self._handled(queue)
        log.warning(
            "queue %s: the task type %r has no handler here, and nobody else has taken it: %s; handled here: %s. "
            "Register its handler with consumer.register_handler, correct the type where it is published, or look after the "
            "worker that is to take it",
            queue,
            type_name,
            what,
            ", ".join(map(repr, here)) or "none",
            extra={"event": "unhandled", "queue": queue, "task_type": type_name},
        )
