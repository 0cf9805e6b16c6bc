"""Looking at what is stored, and changing it by hand. Usable alone over a storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, Literal, Protocol, TypedDict, TypeVar, Unpack, cast, overload

import attrs

from dispatch.checks import MAX_COUNT, check_choice, check_count, check_flag, check_kind, shown
from dispatch.errors import (
    InvalidConfigError,
    InvalidQueueNameError,
    QueueInUseError,
    QueueNotRegisteredError,
    TaskNotFoundError,
)
from dispatch.publisher import TaskQueuePublisher
from dispatch.records import AttemptRecord, TaskRecord, to_seconds
from dispatch.storage.protocol import (
    KEEP,
    Change,
    Keep,
    QueueRecord,
    RemoveAnswer,
    Storage,
    WorkerRecord,
    check_storage,
)
from dispatch.storage.query import (
    ENDED,
    All,
    AnyOf,
    Ids,
    Keys,
    Order,
    Priorities,
    PruneSpec,
    Queues,
    Statuses,
    Time,
    Types,
    Where,
    dead_letters,
)
from dispatch.tasks import Priority, QueueTask, TaskStatus, TaskType, id_of
from dispatch.unstored import why_gone
from dispatch.waiting import Facts, WaitCause, Waiting, explain, in_line

__all__ = ["TaskPage", "TaskQueueControl", "waiting_for"]

P = TypeVar("P")
R = TypeVar("R")

LOOKED_AT: Final = 5_000
"""To say why a task waits, no more than so many are counted, nor single ones looked for among more."""
FEW: Final = 20
"""Nor are more than so many read, payloads included."""
NAMED: Final = 5
"""Of what is in the way of a change, so many are named."""


@attrs.frozen
class TaskPage:
    """One page of tasks; `cursor` fetches the next, None ends the listing."""

    tasks: tuple[QueueTask[Any, Any], ...]
    cursor: str | None


class TaskOf(Protocol[P]):
    """A task of exactly this payload class, to a type checker.

    A `QueueTask[Order]` is a `QueueTask[object]`, too, and as such would be
    edited to any payload; what it is declared as is a `TaskType[Order]` alone.
    """

    @property
    def declared(self) -> TaskType[P, Any] | None:
        """Its task type, if that is known here."""
        ...


class TaskEdits(TypedDict, total=False):
    """What `edit` changes beside the payload, as it says there."""

    headers: Mapping[str, str] | None
    tags: tuple[str, ...] | None
    priority: Priority | None
    timeout: float | Keep | None
    max_retry: int | Keep | None
    available_at: datetime | None


class TaskQueueControl:
    """List, count and inspect tasks; cancel, hold, edit and rerun them; pause, resize and remove queues.

    Every method is one step on the storage, and a checkpoint; what it changes, it
    changes for every process on that storage. `where` takes a query tree of
    `dispatch.storage.query`; a task or its id stands for `Ids(id)`. Methods on
    many tasks answer the ids they really changed, of at most `limit` tasks; with
    `dry_run=True` they answer the same and change nothing. A `limit` or `dry_run` of
    another kind is InvalidConfigError (1012), a task that was never published
    InvalidQueueTaskError (1003), a query that is none InvalidConfigError.
    """

    def __init__(self, storage: Storage, *, publisher: TaskQueuePublisher | None = None) -> None:
        check_storage(storage)
        check_kind("publisher", publisher, TaskQueuePublisher)
        self._storage = storage
        self._publisher = publisher if publisher is not None else TaskQueuePublisher(storage)

    def __repr__(self) -> str:
        return f"<TaskQueueControl over {self._storage!r}>"

    # -- looking --------------------------------------------------------------

    @overload
    async def get(self, task: QueueTask[P, R]) -> QueueTask[P, R]: ...

    @overload
    async def get(self, task: str) -> QueueTask[Any, Any]: ...

    async def get(self, task: QueueTask[Any, Any] | str) -> QueueTask[Any, Any]:
        """The task as it stands now. Raises TaskNotFoundError (1002), InvalidQueueTaskError (1003: never published)."""
        return await self._get("get", task)

    async def _get(self, what: str, task: QueueTask[Any, Any] | str) -> QueueTask[Any, Any]:
        like = None if isinstance(task, str) else task
        return self._publisher.snapshot(await self._record(what, task), like)

    async def _record(self, what: str, task: QueueTask[Any, Any] | str) -> TaskRecord:
        task_id = id_of(what, task)
        await self._storage.rest()
        page = await self._storage.find(Ids(task_id), limit=1)
        if not page.records:
            raise TaskNotFoundError(f"no task has the id {task_id!r}; {why_gone(self._storage)}")
        return page.records[0]

    async def find(
        self,
        where: Where | None = None,
        *,
        order: Literal["oldest", "newest"] = "oldest",
        limit: int = 100,
        after: str | None = None,
    ) -> TaskPage:
        """A page of the tasks that match; pass its `cursor` as `after` for the next.

        Raises InvalidConfigError for an order, a limit or a cursor that is none.
        """
        check_choice("find: order", order, tuple(Order))
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= 10_000:
            raise InvalidConfigError(f"find: limit must be within 1 and 10000, got {shown(limit)}")
        await self._storage.rest()
        page = await self._storage.find(
            All() if where is None else where, order=Order(order), limit=limit, after=after
        )
        return TaskPage(tuple(self._publisher.snapshot(each) for each in page.records), page.cursor)

    async def count(
        self,
        where: Where | None = None,
        *,
        by: Sequence[Literal["queue", "type", "status"]] = (),
        bound: int | None = None,
    ) -> dict[tuple[str, ...], int]:
        """Counts by the values of `by`; `()` is the one key without it. Due pending tasks
        count as `pending`, the others as `later`. `bound` makes a large count cheap.
        Raises InvalidConfigError for a `by` of other names, and for a `bound` below 1.
        """
        if bound is not None:
            check_count("count: bound", bound, 1)
        await self._storage.rest()
        return await self._storage.count(All() if where is None else where, by=by, bound=bound)

    async def history(self, task: QueueTask[Any, Any] | str) -> list[AttemptRecord]:
        """One record per run, oldest first, the running one last; empty for an unknown task.

        Raises InvalidQueueTaskError (1003) for one that was never published.
        """
        task_id = id_of("history", task)
        await self._storage.rest()
        return await self._storage.history(task_id)

    async def why(self, task: QueueTask[Any, Any] | str) -> Waiting:
        """Why a pending or held task waits: the causes, in the order in which they must go.

        `str()` of the answer is a sentence. Of a task that runs or has ended it
        says that. A dozen bounded reads on any storage, one after the other: what
        changes between them may show. Handlers, tags and free slots of workers are
        not stored; where no run of its kind was seen, the answer asks after them. Of
        a rate it tells what was seen to start, which may be less than what did.
        Raises TaskNotFoundError (1002), InvalidQueueTaskError (1003: never published).
        """
        record = await self._record("why", task)
        if record.status not in (TaskStatus.PENDING, TaskStatus.HELD):
            return explain(record, Facts(now=self._storage.now(), queue=QueueRecord(name=record.queue)))
        return explain(record, await self._facts(record))

    async def _facts(self, record: TaskRecord) -> Facts:
        # Nothing is asked that a database could only answer by reading all of a million tasks. The memory's
        # searches do go through what is open, so others run between them.
        storage, now, here = self._storage, self._storage.now(), Queues(record.queue)
        running, ended = Statuses("running"), Statuses(*ENDED)
        named = [each for each in await storage.queues() if each.name == record.queue]
        queue = named[0] if named else QueueRecord(name=record.queue)
        pending = All(here, Statuses("pending"))
        crowded = await self._count(pending) >= LOOKED_AT
        began = Time("started_at", since=record.available_at)
        # Among all queues, and with the end's moment, as storages have an index of it.
        since = All(ended, Time("finished_at", since=record.available_at), began)
        await storage.rest()
        taken = await storage.count(since, by=("queue", "type"), bound=LOOKED_AT)
        await storage.rest()
        runs = (await storage.find(All(here, Types(record.type), running), limit=FEW)).records
        runs += (await storage.find(All(here, ended), order=Order.NEWEST, limit=FEW)).records
        if not crowded:
            await storage.rest()
            runs += (await storage.find(All(pending, Types(record.type), began), limit=FEW)).records
        sooner = All(Priorities(record.priority, record.priority), Time("available_at", until=record.available_at))
        higher = Priorities(record.priority + 1, MAX_COUNT)
        return Facts(
            now=now,
            queue=queue,
            workers=sum(record.queue in worker.queues for worker in await storage.workers()),
            crowd=LOOKED_AT if crowded else None,
            head=await self._head(record, queue, now, crowded=crowded),
            running=await self._count(All(here, running), queue.max_running or LOOKED_AT),
            started=await self._started(queue, now, crowded=crowded),
            before=0 if crowded else await self._count(All(here, Statuses("due"), AnyOf(higher, sooner))),
            runs=runs,
            begun=any(name == record.queue for name, _ in taken) or await self._count(All(here, running, began), 1) > 0,
            taken=(record.queue, record.type) in taken,
        )

    async def _count(self, where: Where, bound: int = LOOKED_AT) -> int:
        await self._storage.rest()
        return sum((await self._storage.count(where, bound=bound)).values())

    async def _head(
        self, record: TaskRecord, queue: QueueRecord, now: float, *, crowded: bool
    ) -> TaskRecord | None:
        """What runs of its key, or is first in line before it; None also where too many wait to look."""
        if not queue.keyed or record.key is None:
            return None
        of_key = All(Queues(queue.name), Keys(record.key))
        found = (await self._storage.find(All(of_key, Statuses("running")), limit=1)).records
        if found or crowded:
            return found[0] if found else None
        after: str | None = None
        for _ in range(0, LOOKED_AT, FEW):  # retries that step aside are passed over
            await self._storage.rest()
            line = await self._storage.find(All(of_key, Statuses("pending")), limit=FEW, after=after)
            for each in line.records:
                if each.seq >= record.seq:
                    return None
                if in_line(each, queue, now):
                    return each
            after = line.cursor
            if after is None:
                break
        return None

    async def _started(self, queue: QueueRecord, now: float, *, crowded: bool) -> int:
        """Starts within the seconds of the queue's rate, up to a bound, and one at most of each task.

        In a crowd, what waits to run again is left out.
        """
        if queue.rate is None:
            return 0
        since = now - queue.rate[1]
        began = Time("started_at", since=since)
        lately = All(Statuses(*ENDED), Time("finished_at", since=since), began)
        over = (await self._storage.count(lately, by=("queue",), bound=LOOKED_AT)).get((queue.name,), 0)
        others = Statuses("running") if crowded else Statuses("running", "pending")
        return over + await self._count(All(Queues(queue.name), others, began))

    async def dead_letters(
        self, queue: str | None = None, *, limit: int = 100, after: str | None = None
    ) -> TaskPage:
        """A page of the tasks that failed for good, of one queue or of all."""
        return await self.find(dead_letters(queue), limit=limit, after=after)

    async def queues(self) -> list[QueueRecord]:
        """Every queue declared in the storage, and what was set on it by hand."""
        await self._publisher.declare()
        await self._storage.rest()
        return await self._storage.queues()

    async def workers(self) -> list[WorkerRecord]:
        """The live workers: who they are, and what each runs."""
        await self._storage.rest()
        return await self._storage.workers()

    # -- changing tasks -------------------------------------------------------

    async def cancel(
        self,
        where: Where | QueueTask[Any, Any] | str,
        *,
        reason: str = "cancelled by hand",
        limit: int | None = None,
        dry_run: bool = False,
    ) -> list[str]:
        """Cancel waiting and held tasks, and ask running ones to stop.

        A running handler has its scope cancelled within a second, wherever it
        runs; if it succeeds before that, it succeeded. `reason` is a str, else
        InvalidConfigError is raised.
        """
        return await self._alter(where, Change(action="cancel", reason=reason), limit, dry_run)

    async def hold(
        self, where: Where | QueueTask[Any, Any] | str, *, limit: int | None = None, dry_run: bool = False
    ) -> list[str]:
        """Park waiting tasks until they are resumed; a running one is left alone."""
        return await self._alter(where, Change(action="hold"), limit, dry_run)

    async def resume(
        self, where: Where | QueueTask[Any, Any] | str, *, limit: int | None = None, dry_run: bool = False
    ) -> list[str]:
        """Let held tasks wait for their turn again."""
        return await self._alter(where, Change(action="resume"), limit, dry_run)

    async def rerun(
        self, where: Where | QueueTask[Any, Any] | str, *, limit: int | None = None, dry_run: bool = False
    ) -> list[str]:
        """Run ended tasks again, one attempt more than before; their history is kept.

        All dead letters of a queue: `rerun(dead_letters("email"))`.
        """
        return await self._alter(where, Change(action="rerun"), limit, dry_run)

    @overload
    async def edit(self, task: TaskOf[P], *, payload: P, **edits: Unpack[TaskEdits]) -> bool: ...

    @overload
    async def edit(self, task: str, *, payload: object, **edits: Unpack[TaskEdits]) -> bool: ...

    @overload
    async def edit(
        self, task: QueueTask[Any, Any] | str, *, payload: Keep = KEEP, **edits: Unpack[TaskEdits]
    ) -> bool: ...

    async def edit(
        self,
        task: QueueTask[Any, Any] | TaskOf[Any] | str,
        *,
        payload: object = KEEP,
        headers: Mapping[str, str] | None = None,
        tags: tuple[str, ...] | None = None,
        priority: Priority | None = None,
        timeout: float | Keep | None = KEEP,  # noqa: ASYNC109 - a field of the task, not of this call
        max_retry: int | Keep | None = KEEP,
        available_at: datetime | None = None,
    ) -> bool:
        """Change fields of one stored task; whether that changed anything.

        It is False for a task that succeeded or was cancelled, which stays as
        it is, and where the fields were so already. What is given is checked as
        `publish` checks it. A running attempt goes on with what it has, the next
        one sees the change; a dead letter is edited before it is rerun. Of these
        two `available_at` stays. A task that is unique `by_payload` is so no more
        with another payload: publishing either again stores another task. Raises
        TaskNotFoundError (1002) for an unknown task, InvalidQueueTaskError (1003) for
        one that was never published, and what `publish` raises for the fields.
        """
        current = await self._get("edit", cast("QueueTask[Any, Any] | str", task))
        changed = attrs.evolve(
            current.again(),
            payload=current.payload if payload is KEEP else payload,
            headers=current.headers if headers is None else headers,
            tags=current.tags if tags is None else tags,
            priority=current.priority if priority is None else priority,
            timeout=current.timeout if isinstance(timeout, Keep) else timeout,
            max_retry=current.max_retry if isinstance(max_retry, Keep) else max_retry,
            available_at=available_at,
        )
        data: bytes | None = None
        version: int | None = None
        if payload is KEEP:  # it stays as it is stored, also where nothing here can read it
            self._publisher.check(changed)
        else:
            new = await self._publisher.prepare(changed)
            data = new.payload
            # Of a type unknown here nobody says that the new payload is of another version.
            version = None if current.declared is None else new.version
        change = Change(
            action="patch",
            payload=data,
            version=version,
            headers=None if headers is None else changed.headers,
            tags=None if tags is None else changed.tags,
            priority=None if priority is None else int(changed.priority),
            timeout=float(timeout) if isinstance(timeout, int | float) else timeout,
            max_retry=max_retry,
            available_at=None if available_at is None else to_seconds(available_at),
        )
        return bool(await self._storage.alter(Ids(current.id), change))

    async def prune(self, spec: PruneSpec, *, dry_run: bool = False) -> int:
        """Delete ended tasks and their history as `spec` says, in batches; how many."""
        check_flag("prune: dry_run", dry_run)
        if not isinstance(spec, PruneSpec):
            raise InvalidConfigError(
                f"prune takes a PruneSpec, such as PruneSpec(age_s=86_400, where=Queues('email')); got {shown(spec)}"
            )
        await self._storage.rest()
        if dry_run:
            return await self._storage.prune(attrs.evolve(spec, limit=MAX_COUNT), dry_run=True)
        total = 0
        while gone := await self._storage.prune(spec):
            total += gone
        return total

    async def _alter(
        self, where: Where | QueueTask[Any, Any] | str, change: Change, limit: int | None, dry_run: bool
    ) -> list[str]:
        if isinstance(where, str | QueueTask):
            where = Ids(id_of(change.action, where))
        if limit is not None:
            check_count(f"{change.action}: limit", limit, 0)
        check_flag(f"{change.action}: dry_run", dry_run)
        await self._storage.rest()
        return await self._storage.alter(where, change, limit=limit, dry_run=dry_run)

    # -- changing queues ------------------------------------------------------

    async def pause_queue(self, name: str) -> None:
        """Start nothing more of this queue, in any process; running tasks go on. 1007 if unknown."""
        await self._alter_queue(name, paused=True)

    async def resume_queue(self, name: str) -> None:
        """End a pause. Harmless if not paused. 1007 if unknown."""
        await self._alter_queue(name, paused=False)

    async def set_concurrency(self, name: str, concurrency: int | None) -> None:
        """Run at most so many tasks of this queue per process; None is as registered. 1007 if unknown.

        A lower one lets running tasks finish. Raises InvalidConfigError for
        anything but a whole number from 1.
        """
        if concurrency is not None and (
            isinstance(concurrency, bool) or not isinstance(concurrency, int) or not 1 <= concurrency <= MAX_COUNT
        ):
            raise InvalidConfigError(
                f"queue {name!r}: concurrency must be a whole number within 1 and {MAX_COUNT}, "
                f"got {shown(concurrency)}; to stop it, pause it"
            )
        await self._alter_queue(name, concurrency=concurrency)

    async def remove_queue(self, name: str, *, dry_run: bool = False) -> None:
        """Take back a queue that is used no longer, with what was set on it by hand. 1007 if unknown.

        Publishing into it raises 1007 from then on, in every process; registered by a process
        that starts, it is there again, and new. Raises QueueInUseError (1023), and changes nothing,
        while a task of it is stored in whatever status, a live worker consumes it (one that was
        killed counts as live for a minute), or a stored cron task publishes into it. Of these the
        tasks alone are looked at in the same step: what else comes at this moment may find it gone.
        """
        check_flag("remove_queue: dry_run", dry_run)
        await self._look_at_queue(name)
        if name not in {record.name for record in await self._storage.queues()}:
            raise await self._not_registered(name)
        await self._check_unused(name)
        if dry_run:
            return
        answer = await self._storage.remove_queue(name)
        if answer is RemoveAnswer.UNKNOWN:
            raise await self._not_registered(name)
        if answer is RemoveAnswer.STORED:
            await self._check_unused(name)
            raise _in_use(name, ["a task of it was stored at this moment; try again"])

    async def _check_unused(self, name: str) -> None:
        """Raise QueueInUseError, with all that is in the way of removing the queue."""
        storage = self._storage
        workers = [worker.id for worker in await storage.workers() if name in worker.queues]
        crons = [entry.name for entry in await storage.crons() if entry.template.queue == name]
        counts = await storage.count(Queues(name), by=("status",))
        tasks = {status: count for (status,), count in sorted(counts.items())}
        why: list[str] = []
        if workers:
            why.append(f"stop what consumes it: {_some('worker', workers)}")
        if crons:
            why.append(f"cancel what publishes into it: {_some('cron task', crons)}")
        if tasks:
            each = ", ".join(f"{count} {status}" for status, count in tasks.items())
            why.append(f"cancel the tasks of it that are open, and delete all: {each}")
        if why:
            raise _in_use(name, why, tasks, workers, crons)

    async def _alter_queue(self, name: str, **change: Any) -> None:
        await self._look_at_queue(name)
        if not await self._storage.alter_queue(name, **change):
            raise await self._not_registered(name)

    async def _look_at_queue(self, name: str) -> None:
        """What comes before any change of a queue."""
        given = cast("object", name)
        if not isinstance(given, str):
            raise InvalidQueueNameError(f"queue name must be a str, got {shown(given)}")
        await self._publisher.declare()
        await self._storage.rest()

    async def _not_registered(self, name: str) -> QueueNotRegisteredError:
        known = ", ".join(record.name for record in await self._storage.queues()) or "none"
        return QueueNotRegisteredError(f"queue {name!r} is not registered; registered: {known}")


def _in_use(
    name: str,
    why: Sequence[str],
    tasks: Mapping[str, int] | None = None,
    workers: Sequence[str] = (),
    crons: Sequence[str] = (),
) -> QueueInUseError:
    return QueueInUseError(
        f"queue {name!r} is in use, and stays: {'; '.join(why)}", tasks=tasks or {}, workers=workers, crons=crons
    )


def _some(noun: str, names: Sequence[str]) -> str:
    """A few of the names, and how many there are besides."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{noun}{'' if len(names) == 1 else 's'} {', '.join(names[:NAMED])}{more}"


async def waiting_for(control: TaskQueueControl, record: TaskRecord) -> tuple[WaitCause, ...]:
    """Why a task that was just read waits; nothing unless it does, still does, and is still there."""
    if record.status in (TaskStatus.PENDING, TaskStatus.HELD):
        with suppress(TaskNotFoundError):
            why = await control.why(record.id)
            if why.waits:
                return why.causes
    return ()
