"""`dispatch copy`: carry over to another store what still has to be done."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence, Set
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import attrs

from dispatch.cli.output import plural, progress
from dispatch.cli.selection import BATCH
from dispatch.cli.shell import (
    CommandError,
    Complaints,
    Opened,
    Shell,
    ShellArgument,
    StoreOption,
    masked,
)
from dispatch.cli.task_change import DryRunOption
from dispatch.records import NewTask, TaskRecord
from dispatch.storage.protocol import EnqueueAnswer, EnqueueResult, PutAnswer
from dispatch.storage.query import All, Ids, Order, Queues, Statuses
from dispatch.storage.texts import unreadable_cron
from dispatch.tasks import OnClash, TaskStatus

__all__ = ["copy"]

_LEFT: Final = (TaskStatus.HELD, TaskStatus.RUNNING)
"""A copy could not be held from the beginning, and what runs may end yet."""
_BYTES: Final = 4 * 2**20
"""Payloads that are stored by one step at most, if it is not for a single one: a database gives each step some seconds."""


@attrs.define
class _Tally:
    """How it went."""

    refused: Complaints
    copied: int = 0
    known: int = 0
    behind: int = 0
    crons: int = 0
    uniques: set[str] = attrs.field(factory=set[str])
    """Unique keys of what is over there by now and open, from here."""


async def copy(
    *,
    to: str,
    dry_run: DryRunOption = False,
    store: StoreOption = None,
    shell: ShellArgument,
) -> int:
    """Copy the waiting tasks, the queues and the cron tasks of a store to another one.

    Whatever is there under the same id or name is left as it is, so it can be
    repeated. The store itself is not changed, but for what a worker that is gone
    was running: once its lease is over it is taken back, as by any other worker.
    The workers have to be stopped first: each task would run here and there.

    Parameters
    ----------
    to
        The other store, such as postgresql://user@host/name.
    """
    if to == store:
        raise CommandError("--to is the store itself; name another one", 2)
    tally = _Tally(Complaints(shell.say))
    async with shell.open(store) as source:
        await _check_stopped(source)
        async with _target(shell, to, dry_run=dry_run) as target:
            if target is None or dry_run:
                await _each_portion(shell, source, partial(_compare, target), tally)
                known = set[str]() if target is None else {entry.name for entry in await target.storage.crons()}
                tally.crons = sum(entry.name not in known for entry in await source.storage.crons())
            else:
                await _take_back(source)
                await _copy_queues(source, target)
                await _each_portion(shell, source, partial(_copy_tasks, target), tally, await _busy_keys(source))
                await _copy_crons(source, target, tally)
        left = await source.storage.count(Statuses(*_LEFT), by=("status",))
    tally.refused.end("refused ones")
    for (status,), count in sorted(left.items()):
        how = "dispatch task resume" if status == TaskStatus.HELD else "wait for the end of its lease"
        shell.say(f"{plural(count, 'task')} of {masked(source.url)} stayed behind, {status}: {how}, and copy again")
    if tally.behind:
        shell.say(f"{plural(tally.behind, 'task')} of {masked(source.url)} stayed behind one of their key that runs, in its order")
    done = "would copy" if dry_run else "copied"
    there = f"; {plural(tally.known, 'task')} stood there already" if tally.known else ""
    shell.print(f"{done} {plural(tally.copied, 'task')} and {plural(tally.crons, 'cron task')} to {masked(to)}{there}")
    return 1 if left or tally.refused.count else 0


_WAITING: Final = Statuses(TaskStatus.PENDING)


@asynccontextmanager
async def _target(shell: Shell, to: str, *, dry_run: bool) -> AsyncGenerator[Opened | None]:
    """The other store; None if it would have to be made, and nothing is to be."""
    if dry_run and not shell.is_made(to):
        yield None
    else:
        async with shell.open(to, create=True) as target:
            yield target


async def _each_portion(
    shell: Shell,
    source: Opened,
    step: Callable[[Sequence[TaskRecord], _Tally], Awaitable[None]],
    tally: _Tally,
    busy: Set[tuple[str, str | None]] = frozenset(),
) -> None:
    """Take the step with all that waits, in its order, but for what must stay behind its key."""
    total = sum((await source.storage.count(_WAITING)).values())
    with progress(shell.stderr, "copy", total) as advance:
        after: str | None = None
        while True:
            page = await source.storage.find(_WAITING, order=Order.OLDEST, limit=BATCH, after=after)
            ready = [record for record in page.records if (record.queue, record.key) not in busy]
            tally.behind += len(page.records) - len(ready)
            for records in _portions(ready):
                await step(records, tally)
            advance(len(page.records))
            if (after := page.cursor) is None:
                break


async def _compare(target: Opened | None, records: Sequence[TaskRecord], tally: _Tally) -> None:
    """Count what is not there, by id: what else may be in a task's way shows when it is stored."""
    page = None if target is None else await target.storage.find(Ids(*(each.id for each in records)), limit=len(records))
    known = 0 if page is None else len(page.records)
    tally.known += known
    tally.copied += len(records) - known


async def _check_stopped(source: Opened) -> None:
    """Raise CommandError while somebody works there."""
    workers = [worker.id for worker in await source.storage.workers()]
    if workers:
        raise CommandError(
            f"{plural(len(workers), 'worker')} of {masked(source.url)} still live: {', '.join(workers[:5])}; stop them first, "
            "or tasks would run in both stores (one that was killed counts for a minute)"
        )


async def _take_back(source: Opened) -> None:
    """End the runs whose lease is over: nobody works there, who would else, and they would run for ever."""
    if any((await source.storage.count(Statuses(TaskStatus.RUNNING), bound=1)).values()):  # who may only read, reads
        while (await source.storage.rescue()).records:
            pass


async def _copy_queues(source: Opened, target: Opened) -> None:
    """Declare what is not there, with what was set on it by hand.

    In one step: a queue that came without its pause, since this was interrupted, would stay without it.
    """
    await target.storage.declare(await source.storage.queues(), new_only=True)


async def _busy_keys(source: Opened) -> set[tuple[str, str | None]]:
    """The queues and keys whose next task must not be copied yet: it would run before the one that runs now."""
    keyed = [queue.name for queue in await source.storage.queues() if queue.keyed]
    found: set[tuple[str, str | None]] = set()
    after: str | None = None
    while keyed:
        page = await source.storage.find(All(Queues(*keyed), Statuses(TaskStatus.RUNNING)), limit=BATCH, after=after)
        found.update((record.queue, record.key) for record in page.records if record.key is not None)
        if (after := page.cursor) is None:
            break
    return found


def _portions(records: Sequence[TaskRecord]) -> Iterator[Sequence[TaskRecord]]:
    """These in their order, as many at a time as one step can store; of one unique key one at a time."""
    start, size, uniques = 0, 0, set[str]()
    for end, record in enumerate(records):
        size += len(record.payload)
        unique = set[str]() if record.unique is None else {record.unique.key}
        if end > start and (size > _BYTES or unique & uniques):
            yield records[start:end]
            start, size, uniques = end, len(record.payload), set[str]()
        uniques |= unique
    if records:
        yield records[start:]


async def _copy_tasks(target: Opened, records: Sequence[TaskRecord], tally: _Tally) -> None:
    results = await target.storage.enqueue([_anew(record, tally.uniques) for record in records])
    for record, result in zip(records, results, strict=True):
        if record.unique is not None and _is_open(record, result):
            tally.uniques.add(record.unique.key)
        if result.answer is EnqueueAnswer.CREATED:
            tally.copied += 1
        elif _is_the_same(record, result.record):
            tally.known += 1
        else:
            tally.refused.add(f"task {record.id} ({record.queue}/{record.type}) was not copied: {_why_not(result)}")


def _anew(record: TaskRecord, uniques: Set[str]) -> NewTask:
    """The task as it was published, but due when it is due; what is in its way there is not touched.

    One of the same unique key that comes from here, too, is not in its way: here both wait, as when
    one failed, or was rerun, after the other was published. Others stay out for both.
    """
    unique = record.unique
    if unique is not None and unique.on_clash is not OnClash.KEEP:
        unique = attrs.evolve(unique, on_clash=OnClash.REJECT)
    if unique is not None and unique.key in uniques:
        unique = attrs.evolve(unique, statuses=frozenset[TaskStatus]())
    return NewTask(
        id=record.id,
        queue=record.queue,
        type=record.type,
        payload=record.payload,
        version=record.version,
        key=record.key,
        headers=record.headers,
        available_at=record.available_at,
        timeout=record.timeout,
        max_retry=record.max_retry,
        priority=record.priority,
        tags=record.tags,
        unique=unique,
        cron=record.cron,
        slot=record.slot,
    )


def _is_open(record: TaskRecord, result: EnqueueResult) -> bool:
    """Whether the task stands there now, and is not over."""
    there = result.record
    if there is None:
        return result.answer is EnqueueAnswer.CREATED
    return _is_the_same(record, there) and not there.status.is_terminal


def _is_the_same(record: TaskRecord, there: TaskRecord | None) -> bool:
    return there is not None and (there.id, there.queue, there.type) == (record.id, record.queue, record.type)


def _why_not(result: EnqueueResult) -> str:
    there = result.record
    if there is not None and there.id == result.id:
        return f"its id is that of a {there.queue}/{there.type} there"
    if there is not None:
        return f"task {there.id} is in its way, as it is unique"
    return f"it was answered {result.answer.value}"


async def _copy_crons(source: Opened, target: Opened, tally: _Tally) -> None:
    known = {entry.name for entry in await target.storage.crons()}
    for entry in await source.storage.crons():
        if entry.name in known:
            continue
        if why := unreadable_cron(entry):  # what is read of it is not what it is
            tally.refused.add(f"cron task {entry.name} was not copied: {why}")
            continue
        if await target.storage.put_cron(entry) is PutAnswer.CREATED:
            tally.crons += 1
