"""Why a task is not stored, or no longer: what whoever published it, or asks for it, is told."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from dispatch.errors import (
    DispatchError,
    DuplicateTaskError,
    QueueFullError,
    QueueNotRegisteredError,
    StorageError,
)
from dispatch.nearest import nearest
from dispatch.records import NewTask
from dispatch.registry import Registry
from dispatch.storage.protocol import EnqueueAnswer, EnqueueResult, QueueRecord, Storage
from dispatch.storage.query import Queues, Statuses
from dispatch.tasks import OnClash, QueueTask, TaskStatus

__all__ = ["after_close", "not_registered", "unstored", "why_gone", "why_no_room"]

log: Final = logging.getLogger("dispatch.publisher")

NAMED: Final = 10
"""Queues named in a message; of more it says how many."""


def unstored(
    new: NewTask,
    result: EnqueueResult,
    registry: Registry,
    *,
    durable: bool,
    stored: Sequence[QueueRecord] | None = None,
) -> DispatchError:
    """The error of a task that was not stored; `stored` are the storage's queues, None where it was not asked."""
    if result.answer is EnqueueAnswer.UNKNOWN_QUEUE:
        return not_registered(new.queue, registry, stored)
    if result.answer is EnqueueAnswer.FULL:
        return _full(new.queue, registry, stored, durable=durable)
    existing = result.record.id if result.record is not None else result.id
    if result.record is not None and result.answer is EnqueueAnswer.EXISTING:
        return DuplicateTaskError(
            f"task {new.queue}/{new.type}: its id {existing!r} is that of a task of "
            f"{result.record.queue}/{result.record.type}, and ids are unique over all queues; "
            f"put the type into it, as in '{new.type}-{existing}'",
            existing,
        )
    why = "unique says to reject"
    if new.unique is not None and new.unique.on_clash is OnClash.REPLACE and result.record is not None:
        why = (
            f"a payload is not written into a task of another type, {result.record.queue}/{result.record.type}; "
            'give unique scope="type", or on_clash="supersede"'
        )
    return DuplicateTaskError(f"task {new.queue}/{new.type}: task {existing} is in its way, and {why}", existing)


def not_registered(
    queue: str, registry: Registry, stored: Sequence[QueueRecord] | None
) -> QueueNotRegisteredError:
    """That the storage knows no such queue, which ones there are, and who is to register it."""
    if queue in registry.undeclared:
        return QueueNotRegisteredError(
            f"queue {queue!r} is registered here but not stored yet; await publisher.declare() first, "
            "as publish does by itself"
        )
    if queue in registry.configs:
        return QueueNotRegisteredError(
            f"queue {queue!r} was removed since it was registered here; "
            "start this program anew to register it again, or publish elsewhere"
        )
    here = sorted(registry.configs)
    there = [] if stored is None else [record.name for record in stored]
    known = f"registered here: {_listed(here)}"
    if stored is not None and not set(there) <= set(here):
        known += f"; in the storage: {_listed(sorted(there))}"
    near = nearest(queue, {*here, *there})
    # Who has registered no queue only publishes, and has perhaps no consumer to register one with.
    call = f"call consumer.register_queue({queue!r}) first"
    do = call if here else f"let a worker on this storage {call}"
    do = f" If not, {do}" if near else f". {do[0].upper()}{do[1:]}"
    return QueueNotRegisteredError(f"queue {queue!r} is not registered; {known}{near}{do}")


def _full(
    queue: str, registry: Registry, stored: Sequence[QueueRecord] | None, *, durable: bool
) -> QueueFullError:
    config = registry.configs.get(queue)
    by_hand = config is not None and config.max_waiting is not None
    bound = "max_waiting" if by_hand or durable else "buffer_size"
    # The stored one holds for every process, and may have been changed by another.
    limits = [record.max_waiting for record in stored or () if record.name == queue]
    known = bool(limits) and limits[0] is not None
    raised = f", its {bound} is {limits[0]}; raise that" if known else f"; raise its {bound}"
    return QueueFullError(
        f'queue {queue!r} is full{raised}, add workers, or let publishing wait with overflow="wait"'
    )


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - NAMED
    return (", ".join(names[:NAMED]) or "none") + (f" and {rest} more" if rest > 0 else "")


def after_close(task: object, *, ended: bool) -> str:
    """That a closed publisher stores nothing, and what does."""
    which = "the task"
    if isinstance(task, QueueTask | NewTask):
        address = f"{task.queue}/{task.type}"
        which = f"task {task.id} ({address})" if task.id else f"task {address}"
    where = "inside it, or" if ended else "it"
    why = "the publisher is closed" + (", its dispatcher's block was left" if ended else "")
    return f"publish: {which} was not stored: {why}; publish {where} with a TaskQueuePublisher of its own"


async def why_no_room(storage: Storage, queue: str) -> str | None:
    """Why what a publish waits for will not come by itself; None where workers are at work. A checkpoint."""
    try:
        [stored] = [each for each in await storage.queues() if each.name == queue] or [QueueRecord(name=queue)]
        running = await storage.count(Queues(queue) & Statuses(TaskStatus.RUNNING), bound=1)
        served = any(queue in worker.queues for worker in await storage.workers())
    except StorageError as exc:  # the next try tells the caller
        log.debug("queue %s: cannot look why there is no room: %s", queue, exc)
        return None
    if stored.paused:
        return "the queue is paused; resume it"
    if served and (stored.keyed or stored.rate is not None):
        return None  # a rate, or the head of a key that is not due yet, holds it up, as it is meant to
    if not any(running.values()):
        return "nothing of it is running; is there a dispatcher that serves it, with handlers for its tasks?"
    return None


def why_gone(storage: Storage) -> str:
    """What may have become of a task that was stored, for people."""
    if storage.durable:
        return "it may have been pruned"
    return "it may have been pruned, or be beyond what memory keeps, MemoryStorage(keep_finished=...)"
