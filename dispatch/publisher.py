"""Publishing: typed tasks into registered queues, and waiting for what became of them."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from math import inf
from threading import get_ident
from typing import Any, Final, TypeVar, cast, overload

import attrs
import trio

from dispatch.bell import Bell
from dispatch.checks import check_kind
from dispatch.codec import Codec
from dispatch.errors import (
    ClosedError,
    DispatchError,
    DuplicateTaskError,
    InvalidQueuePayloadError,
    InvalidQueueTaskError,
    QueueFullError,
    QueueNotRegisteredError,
    StorageError,
    TaskCancelledError,
    TaskFailedError,
    TaskNotFoundError,
)
from dispatch.events import Observers
from dispatch.records import NewTask, TaskRecord, from_seconds, to_seconds
from dispatch.registry import Registry
from dispatch.storage.protocol import (
    EnqueueAnswer,
    EnqueueResult,
    Storage,
    Topic,
    TopicKind,
    check_storage,
    stored_for,
)
from dispatch.storage.query import Ids, Queues, Statuses
from dispatch.tasks import OnClash, Priority, QueueTask, TaskStatus, TaskType, id_of, plain, task_of
from dispatch.threads import check_thread

__all__ = ["Published", "TaskQueuePublisher"]

P = TypeVar("P")
R = TypeVar("R")

log: Final = logging.getLogger("dispatch.publisher")

inside_handler: Final[ContextVar[bool]] = ContextVar("dispatch_inside_handler", default=False)
"""Set in the context of every attempt: publishing from there never waits for room."""


STORED: Final = frozenset({EnqueueAnswer.CREATED, EnqueueAnswer.EXISTING, EnqueueAnswer.REPLACED})

BREATH_BYTES: Final = 64 * 1024
"""So much is encoded of a batch, which takes some milliseconds, before others run."""
TASK_BYTES: Final = 400
"""What a task without payload costs to prepare, as so many bytes of it."""

PATIENCE_S: Final = 5.0
"""So long a publish waits for room before it is looked whether anything of the queue runs."""

MET_TYPES: Final = 4_096
"""Types made up without end must not fill the memory."""

_noise: Final = random.Random()  # noqa: S311 - ids must differ, not be secret
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_noise.seed)


@attrs.frozen
class Published:
    """One answer of `publish_many`: the stored task, or the error of this one item.

    `answer` says how it was stored: created, existing, replaced or rejected.
    """

    task: QueueTask[Any, Any] | None
    answer: EnqueueAnswer | None
    error: DispatchError | None = None


class TaskQueuePublisher:
    """Publishes tasks, and waits for their results. Enough for a process that only publishes.

    `TaskQueuePublisher(storage)` is usable at once, alone, over an open storage that
    some consumer's queues were declared in; a dispatcher's is at
    `dispatcher.publisher`. Raises InvalidConfigError (1012).
    """

    def __init__(
        self,
        storage: Storage,
        *,
        codec: Codec | None = None,
        registry: Registry | None = None,
        observers: Observers | None = None,
    ) -> None:
        check_storage(storage)
        check_kind("codec", codec, Codec)
        check_kind("registry", registry, Registry)
        check_kind("observers", observers, Observers)
        self._storage = storage
        self._codec = codec if codec is not None else Codec()
        self._registry = registry if registry is not None else Registry()
        self._observers = observers if observers is not None else Observers()
        self._met: dict[tuple[str, str], TaskType[Any, Any]] = {}
        """Types published here that nothing is registered for."""
        self._turns: dict[str, trio.StrictFIFOLock] = {}
        self._waiting: set[Bell] = set()
        self._thread: int | None = None
        """Where those wait."""
        self._closed = False
        self._ended = False

    async def publish(self, task: QueueTask[P, R]) -> QueueTask[P, R]:
        """Store `task` and answer with its stored snapshot, id and moments filled in.

        On return the storage has it: with a database it survives the process.
        The payload is checked against its declared class (and that of the handler
        in this process, if it is another) and copied, so later changes to it
        never reach the handler. Publishing an id that is stored
        already is harmless and answers with the stored task, as does a KEEP
        clash of `unique`.

        If the queue holds its bound of due tasks, waits for room in order of
        arrival, or raises QueueFullError (1020) where the queue's `overflow`
        says so; from inside a handler neither. Where it has waited for 5 s, the
        queue being paused or nothing of it running, the log names that.

        A checkpoint. Cancelled, it has stored nothing, or all of it: it is
        never cut in two, and a publish that waits for room holds nothing. In
        memory, of a run of calls with nothing in between every eighth lets
        other trio tasks run.

        Raises InvalidQueueTaskError (1003), InvalidQueueNameError (1006),
        QueueNotRegisteredError (1007), InvalidTaskTypeError (1008),
        InvalidQueuePayloadError (1010), DuplicateTaskError (1011),
        InvalidConfigError (1012: another thread than the dispatcher's), ClosedError
        (1013), StorageError (1021: whether it was stored is then in doubt;
        publishing the same id again settles it).
        """
        try:
            if self._observers.around_publishing:
                with self._observers.publishing((task,), "send", self.check) as (marked,):
                    return await self._publish(cast("QueueTask[P, R]", marked))
            return await self._publish(task)
        except StorageError as exc:
            self._observers.tell("storage_failed", "publish", exc)
            raise

    async def _publish(self, task: QueueTask[P, R]) -> QueueTask[P, R]:
        new, payload = self._prepare(task)
        if self._turns or self._registry.undeclared:
            result = (await self._enqueue([new]))[0]
        else:  # the ordinary case, without the care that a crowd needs
            bounded = not inside_handler.get()
            result = (await self._storage.enqueue((new,), bounded=bounded))[0]
            if result.answer is EnqueueAnswer.FULL:
                results = [result]
                await self._make_room([new], results, crowded=False)
                result = results[0]
        if result.answer is EnqueueAnswer.CREATED:
            self.tell_published(new, result.created_at)
        await self._storage.breathe()
        answer, error = self._answer(task, new, payload, result)
        if answer is None:
            assert error is not None
            raise error
        return answer

    async def publish_many(self, tasks: Iterable[QueueTask[Any, Any]]) -> list[Published]:
        """Store many tasks in as few steps as there is room for; an answer per item, in order.

        A bad item has its error in its answer and does not spoil the others.
        Waits for room as `publish` does; where the queue raises instead, the
        items beyond the bound carry QueueFullError.
        A checkpoint (in memory as `publish`), and amid a large batch others run while it is prepared.
        It goes in steps of 1,000 (`Limits.batch`). Cancelled, or at a StorageError,
        the steps done stay stored, and so does what found room before the rest waited
        for it: publish again with the same ids to learn which.
        """
        if not isinstance(tasks, Iterable):
            raise InvalidQueueTaskError(f"publish_many takes several tasks, got {type(tasks).__name__}; publish takes one")
        given = tuple(tasks)  # the caller's own may change meanwhile
        try:
            if self._observers.around_publishing:
                with self._observers.publishing(given, "send", self.check) as marked:
                    return await self._publish_many(marked)
            return await self._publish_many(given)
        except StorageError as exc:
            self._observers.tell("storage_failed", "publish", exc)
            raise

    async def _publish_many(self, tasks: Sequence[QueueTask[Any, Any]]) -> list[Published]:
        limit = self._codec.limits.batch
        if len(tasks) > limit:
            answers: list[Published] = []
            for start in range(0, len(tasks), limit):
                answers += await self._publish_many(tasks[start : start + limit])
            return answers
        found: list[Published | None] = [None] * len(tasks)
        batch: list[tuple[int, NewTask, object]] = []
        prepared = 0  # bytes since others ran
        for index, task in enumerate(tasks):
            if prepared >= BREATH_BYTES:
                prepared = 0
                await trio.lowlevel.checkpoint()
            prepared += TASK_BYTES
            try:
                new, payload = self._prepare(task)
            except ClosedError:
                raise
            except DispatchError as exc:
                found[index] = Published(None, None, exc)
            else:
                batch.append((index, new, payload))
                prepared += len(new.payload)
        results = await self._enqueue([new for _, new, _ in batch])
        for (index, new, payload), result in zip(batch, results, strict=True):
            if result.answer is EnqueueAnswer.CREATED:
                self.tell_published(new, result.created_at)
            answer, error = self._answer(tasks[index], new, payload, result)
            found[index] = Published(answer, result.answer, error)
        await self._storage.breathe()
        return [each for each in found if each is not None]

    def publish_in(self, connection: object, task: QueueTask[P, R]) -> QueueTask[P, R]:
        """Store `task` inside your own transaction on the storage's database.

        The task exists exactly if that transaction commits, and workers wake
        then: no task without the rows it is about, no rows without their task.
        `connection` is a `sqlite3.Connection` on the storage's file, or on
        PostgreSQL a synchronous psycopg connection or SQLAlchemy's over one,
        with a transaction open; anything else is InvalidConfigError.

        Synchronous, on whichever thread the connection is used on; it never
        waits for room, and observers are not told, since nobody here knows how
        the transaction ends. Do not await a write of the dispatcher before it
        has ended: on SQLite that would wait for itself. Raises what `publish`
        raises; the queue must have been declared by a running dispatcher.
        """
        if self._observers.around_publishing:
            with self._observers.publishing((task,), "send", self.check) as (marked,):
                return self._publish_in(connection, cast("QueueTask[P, R]", marked))
        return self._publish_in(connection, task)

    async def publish_in_async(self, connection: object, task: QueueTask[P, R]) -> QueueTask[P, R]:
        """`publish_in` on a `TrioConnection` of `dispatch.storage.psycopg_trio`, with a transaction open.

        A checkpoint. Cancelled, it leaves the transaction to be rolled back.
        """
        if self._observers.around_publishing:
            with self._observers.publishing((task,), "send", self.check) as (marked,):
                return await self._publish_in_async(connection, cast("QueueTask[P, R]", marked))
        return await self._publish_in_async(connection, task)

    async def _publish_in_async(self, connection: object, task: QueueTask[P, R]) -> QueueTask[P, R]:
        new, payload = self._prepare(task)
        (result,) = await self._storage.enqueue_in_async(connection, [new])
        return self._joined(task, new, payload, result)

    def _publish_in(self, connection: object, task: QueueTask[P, R]) -> QueueTask[P, R]:
        new, payload = self._prepare(task)
        (result,) = self._storage.enqueue_in(connection, [new])
        return self._joined(task, new, payload, result)

    def _joined(self, task: QueueTask[P, R], new: NewTask, payload: object, result: EnqueueResult) -> QueueTask[P, R]:
        if result.answer is EnqueueAnswer.CREATED:
            return cast("QueueTask[P, R]", _stored(task, new, payload, result))
        stored = stored_for(result, new)
        if stored is not None:
            return cast("QueueTask[P, R]", self.snapshot(stored, task))
        raise self.refusal(new, result)

    @overload
    async def wait(self, task: QueueTask[P, R]) -> QueueTask[P, R]: ...

    @overload
    async def wait(self, task: str) -> QueueTask[Any, Any]: ...

    async def wait(self, task: QueueTask[Any, Any] | str) -> QueueTask[Any, Any]:
        """Wait until a published task has ended, and answer with it as it then stands.

        Takes the task or its id. Woken by the storage, not by polling. Raises
        TaskNotFoundError (1002) for an unknown (or meanwhile pruned) one,
        ClosedError (1013) if the task is still open when the dispatcher of this
        publisher has ended, and StorageError (1021) if the storage cannot be asked;
        then wait again. A checkpoint; cancelling it leaves the task alone.
        A rerun dead letter is waited for afresh.
        """
        _, ended = await self._end_of(task)
        return ended

    async def _end_of(self, task: QueueTask[Any, Any] | str) -> tuple[TaskRecord, QueueTask[Any, Any]]:
        task_id = id_of("wait", task)
        bell = Bell()
        self._thread = get_ident()
        self._waiting.add(bell)
        try:
            with self._storage.watch(bell, Topic(TopicKind.TASK, task_id)):
                while True:
                    last = self._ended  # read before the look, which may take until after the end
                    record = await self._record(task_id)
                    if record.status.is_terminal:
                        await trio.lowlevel.checkpoint()
                        return record, self.snapshot(record, None if isinstance(task, str) else task)
                    if last:
                        raise ClosedError(
                            f"wait: task {task_id} is still {record.status}, and the dispatcher of this publisher "
                            "has ended; over a storage that others work on, wait with a TaskQueuePublisher of its own"
                        )
                    await bell.wait()
        finally:
            self._waiting.discard(bell)

    async def result(self, task: QueueTask[P, R]) -> R:
        """Wait for a published task and answer with its typed result.

        Raises TaskFailedError (1018) if it became a dead letter,
        TaskCancelledError (1019) if it was cancelled, InvalidQueuePayloadError
        (1010) if what is stored does not fit the declared result class, say
        after a change of it (`wait` shows it as plain data), and what `wait`
        raises. A checkpoint; cancelling it leaves the task alone.
        """
        record, ended = await self._end_of(task)
        where = f"task {ended.id} ({ended.queue}/{ended.type})"
        if ended.status is TaskStatus.FAILED:
            reason = ended.failure_reason.value if ended.failure_reason else "unknown"
            raise TaskFailedError(
                f"{where} failed after {ended.attempt} attempts ({reason}): {ended.last_error}",
                ended.id,
                reason,
                ended.last_error or "",
            )
        if ended.status is TaskStatus.CANCELLED:
            raise TaskCancelledError(
                f"{where} was cancelled: {ended.last_error or 'no reason given'}", ended.id, ended.last_error or ""
            )
        declared = ended.declared
        if declared is None or declared.result is None:
            return cast("R", ended.result)
        # Of a task from before its type had a result nothing is stored.
        data = b"null" if record.result is None else record.result
        return cast("R", self._codec.decode(data, declared.result, limit=self._codec.limits.result_bytes))

    def close(self) -> None:
        """Refuse to publish from now on. Harmless to repeat.

        Waiting for results goes on working, until the dispatcher has ended if
        this publisher belongs to one. While somebody waits here, InvalidConfigError
        (1012) in another thread than theirs.
        """
        check_thread(self, self._thread if self._waiting else None, "run_sync(publisher.close)")
        self._closed = True
        for bell in self._waiting:
            bell.ring()

    def __repr__(self) -> str:
        return f"<TaskQueuePublisher over {self._storage!r}{' closed' if self._closed else ''}>"

    # -- for the other parts --------------------------------------------------

    def end(self) -> None:
        """`close()`, and let those who wait for a task look once more: nobody here will run it."""
        self._ended = True
        self.close()

    async def declare(self) -> None:
        """Tell the storage of the queues registered here since it was last told."""
        await self._registry.declare(self._storage)

    def check(self, task: QueueTask[Any, Any]) -> None:
        """Raise what publishing the task would raise for its fields, the payload aside."""
        self._codec.check_task(task)

    async def prepare(self, task: QueueTask[Any, Any], *, known: bool = True) -> NewTask:
        """Check and encode a task to be stored later; if `known`, its queue must be known by now.

        For `run.publish` and cron. Raises what `publish` raises for a bad task. A checkpoint.
        """
        new, _ = self._prepare(task)
        await trio.lowlevel.checkpoint()
        if known and new.queue not in self._registry.configs and new.queue not in {
            record.name for record in await self._storage.queues()
        }:
            raise self._not_registered(new.queue)
        return new

    async def prepare_spawned(self, task: QueueTask[Any, Any]) -> NewTask:
        """`prepare` for `run.publish`: what is to travel in headers is added now, not when it is stored."""
        if not self._observers.around_publishing:
            return await self.prepare(task)
        with self._observers.publishing((task,), "create", self.check) as (marked,):
            return await self.prepare(marked)

    async def store(self, batch: Sequence[NewTask]) -> list[EnqueueResult]:
        """Store prepared tasks beyond any bound, for cron: an answer per item. A checkpoint."""
        await self._registry.declare(self._storage)
        results = await self._storage.enqueue(batch)
        for new, result in zip(batch, results, strict=True):
            if result.answer is EnqueueAnswer.CREATED:
                self.tell_published(new, result.created_at)
        await self._storage.breathe()
        return results

    def tell_published(self, new: NewTask, at: float) -> None:
        """Tell the observers that this task was stored at `at`, and note if it has no handler here."""
        self._registry.stored(new)
        self._observers.published(at, new.id, new.queue, new.type, new.cron, new.headers)

    @property
    def observers(self) -> Observers:
        """Who is told of what happens."""
        return self._observers

    def snapshot(self, record: TaskRecord, like: QueueTask[Any, Any] | None = None) -> QueueTask[Any, Any]:
        """A stored row as the task the user sees, decoded by the type it was declared with.

        A payload or result that cannot be decoded here, or whose type this
        process does not know, is shown as plain data.
        """
        declared = like.declared if like is not None else None
        if declared is None or declared.queue != record.queue or declared.type != record.type:
            declared = self.known((record.queue, record.type))
        status = record.status
        if status is TaskStatus.PENDING and record.attempt:
            status = TaskStatus.RETRYING
        last_error = record.last_error
        if status is TaskStatus.CANCELLED:
            last_error = record.cancel_reason or last_error
        return QueueTask(
            queue=record.queue,
            type=record.type,
            payload=self._decoded(record.payload, declared.payload if declared else None, record.version, declared),
            id=record.id,
            key=record.key,
            headers=record.headers,
            timeout=record.timeout,
            max_retry=record.max_retry,
            priority=Priority(record.priority),
            tags=record.tags,
            attempt=record.attempt,
            status=status,
            last_error=last_error,
            failure_reason=record.failure_reason,
            created_at=from_seconds(record.created_at),
            available_at=from_seconds(record.available_at),
            started_at=None if record.started_at is None else from_seconds(record.started_at),
            finished_at=None if record.finished_at is None else from_seconds(record.finished_at),
            result=self._decoded_result(record.result, declared),
            worker=record.worker,
            cron=record.cron,
            declared=declared,
        )

    def template(self, new: NewTask) -> QueueTask[Any, Any]:
        """What a cron entry publishes at each tick, unpublished, and decoded as `snapshot` does."""
        declared = self.known((new.queue, new.type))
        return QueueTask(
            queue=new.queue,
            type=new.type,
            payload=self._decoded(new.payload, declared.payload if declared else None, new.version, declared),
            key=new.key,
            headers=new.headers,
            delay=new.delay,
            timeout=new.timeout,
            max_retry=new.max_retry,
            priority=Priority(new.priority),
            tags=new.tags,
            declared=declared,
        )

    def known(self, address: tuple[str, str]) -> TaskType[Any, Any] | None:
        """The task type of this address that is handled here, or else was published here."""
        return self._registry.types.get(address) or self._met.get(address)

    # -- inside ---------------------------------------------------------------

    def _decoded(
        self, data: bytes, cls: type[Any] | None, version: int, declared: TaskType[Any, Any] | None
    ) -> Any:
        if cls is None:
            return self._codec.decode_plain(data)
        try:
            return self._codec.decode(data, cls, version=version, task_type=declared)
        except DispatchError:
            return self._codec.decode_plain(data)

    def _decoded_result(self, data: bytes | None, declared: TaskType[Any, Any] | None) -> Any:
        if data is None:
            return None
        if declared is None or declared.result is None:
            return self._codec.decode_plain(data)
        try:
            return self._codec.decode(data, declared.result, limit=self._codec.limits.result_bytes)
        except DispatchError:
            return self._codec.decode_plain(data)

    def _prepare(self, task: QueueTask[Any, Any]) -> tuple[NewTask, object]:
        """Check and encode; the decoded copy of the payload comes back beside it."""
        if self._closed:
            raise ClosedError("publish: the publisher is closed; its dispatcher's block was left")
        if not isinstance(task, QueueTask):
            raise InvalidQueueTaskError(
                f"publish: expected a QueueTask, such as WELCOME(payload), got {type(task).__name__}"
            )
        self._codec.check_task(task)
        address = (task.queue, task.type)
        declared: TaskType[Any, Any] | None = task.declared
        if declared is None or declared.queue != task.queue or declared.type != task.type:
            declared = self.known(address)
        payload: Any = task.payload
        cls: Any = declared.payload if declared is not None else payload.__class__
        where = f"payload of {task.queue}/{task.type}"
        data, copy = self._codec.encode(payload, cls, where)
        if declared is not None:
            handled = self._registry.types.get(address)
            if handled is None:
                if len(self._met) >= MET_TYPES:
                    self._met.clear()
                self._met.setdefault(address, declared)
            elif handled.payload is not cls and declared.version <= handled.version:
                consumed = self._registry.consumed
                if consumed is None or task.queue in consumed:
                    self._check_handled(data, declared, handled)
        return (
            NewTask(
                id=plain(task.id) or new_id(self._storage.now()),
                queue=plain(task.queue),
                type=plain(task.type),
                payload=data,
                version=declared.version if declared is not None else 1,
                key=None if task.key is None else plain(task.key),
                headers=_plain(task.headers) if task.headers else task.headers,
                delay=float(task.delay) if task.delay else 0.0,
                available_at=None if task.available_at is None else to_seconds(task.available_at),
                timeout=None if task.timeout is None else float(task.timeout),
                max_retry=task.max_retry,
                priority=int(task.priority),
                tags=tuple(map(plain, task.tags)) if task.tags else (),
                unique=None if task.unique is None else self._codec.unique_key(task, data),
            ),
            copy,
        )

    def _check_handled(self, data: bytes, declared: TaskType[Any, Any], handled: TaskType[Any, Any]) -> None:
        """Refuse what the handler that runs it here, and is for another class, could not be given."""
        try:
            self._codec.decode(data, handled.payload, version=declared.version, task_type=handled)
        except InvalidQueuePayloadError as exc:
            raise InvalidQueuePayloadError(
                f"payload of {declared.queue}/{declared.type}: published as {declared.payload.__qualname__}, and the "
                f"handler registered here takes {handled.payload.__qualname__}, which it does not fit at {exc.path}; "
                "declare the TaskType once and use it on both sides, or give the changed class a version of its own",
                exc.path,
            ) from exc

    async def _enqueue(self, batch: list[NewTask]) -> list[EnqueueResult]:
        """Store a batch; items that found their queue full wait for their turn, or stay FULL."""
        await self._registry.declare(self._storage)
        free_pass = inside_handler.get()
        # Where others wait for room already, these queue up behind them.
        crowded = set[str]() if free_pass else {name for name, turn in self._turns.items() if turn.locked()}
        behind = any(new.queue in crowded for new in batch)
        ahead = [new for new in batch if new.queue not in crowded] if behind else batch
        if ahead:
            stored = await self._storage.enqueue(ahead, bounded=not free_pass)
        else:
            stored = []
            await trio.lowlevel.checkpoint()
        results = stored
        if behind:
            answered = iter(stored)
            results = [
                EnqueueResult(EnqueueAnswer.FULL, new.id) if new.queue in crowded else next(answered) for new in batch
            ]
        await self._make_room(batch, results, crowded=behind)
        return results

    async def _make_room(
        self, batch: list[NewTask], results: list[EnqueueResult], *, crowded: bool
    ) -> None:
        """Deal with the items that are FULL, as their queues' overflow policies say."""
        for queue in dict.fromkeys(
            new.queue
            for new, result in zip(batch, results, strict=True)
            if result.answer is EnqueueAnswer.FULL
        ):
            if await self._overflow(queue) == "wait":
                await self._wait_for_room(queue, batch, results)
            elif crowded:
                await self._try(queue, batch, results)

    async def _overflow(self, queue: str) -> str:
        config = self._registry.configs.get(queue)
        if config is not None:
            return config.overflow
        for record in await self._storage.queues():
            if record.name == queue:
                return record.overflow
        return "raise"

    async def _wait_for_room(
        self, queue: str, batch: list[NewTask], results: list[EnqueueResult]
    ) -> None:
        """Store what was refused as FULL, in turn: first come, first stored."""
        turn = self._turns.setdefault(queue, trio.StrictFIFOLock())
        bell = Bell()
        self._thread = get_ident()
        self._waiting.add(bell)
        try:
            async with turn:
                with self._storage.watch(bell, Topic(TopicKind.ROOM, queue)):
                    patience_until = trio.current_time() + PATIENCE_S
                    while await self._try(queue, batch, results):
                        await bell.wait(patience_until - trio.current_time())
                        if trio.current_time() >= patience_until:
                            patience_until = inf
                            await self._name_standstill(queue)
        finally:
            self._waiting.discard(bell)
            if not turn.locked() and self._turns.get(queue) is turn:
                del self._turns[queue]

    async def _name_standstill(self, queue: str) -> None:
        """Say so if what a publish waits for will not come by itself; workers at work are no trouble."""
        try:
            paused = any(each.name == queue and each.paused for each in await self._storage.queues())
            running = await self._storage.count(Queues(queue) & Statuses(TaskStatus.RUNNING), bound=1)
        except StorageError as exc:  # the next try tells the caller
            log.debug("queue %s: cannot look why there is no room: %s", queue, exc)
            return
        if paused:
            why = "the queue is paused; resume it"
        elif not any(running.values()):
            why = "nothing of it is running; is there a dispatcher that serves it, with handlers for its tasks?"
        else:
            return
        log.warning(
            "queue %s: full, a publish has waited %g s for room: %s",
            queue,
            PATIENCE_S,
            why,
            extra={"event": "standstill", "queue": queue},
        )

    async def _try(self, queue: str, batch: list[NewTask], results: list[EnqueueResult]) -> bool:
        """Enqueue what is still FULL for this queue; whether something still is."""
        if self._closed:
            stored = sum(result.answer in STORED for result in results)
            what = f"{stored} of {len(results)} tasks are stored" if stored else "nothing was stored"
            raise ClosedError(f"publish: the publisher was closed while it waited for room; {what}")
        open_items = [
            index
            for index, result in enumerate(results)
            if result.answer is EnqueueAnswer.FULL and batch[index].queue == queue
        ]
        answers = await self._storage.enqueue([batch[index] for index in open_items], bounded=True)
        for index, answer in zip(open_items, answers, strict=True):
            results[index] = answer
        return any(answer.answer is EnqueueAnswer.FULL for answer in answers)

    def _answer(
        self, task: QueueTask[Any, Any], new: NewTask, payload: object, result: EnqueueResult
    ) -> tuple[QueueTask[Any, Any] | None, DispatchError | None]:
        """The storage's answer as a snapshot or an error."""
        if result.answer is EnqueueAnswer.CREATED:
            return _stored(task, new, payload, result), None
        stored = stored_for(result, new)
        if stored is not None:
            return self.snapshot(stored, task), None
        return None, self.refusal(new, result)

    def refusal(self, new: NewTask, result: EnqueueResult) -> DispatchError:
        """The error of a task that was not stored."""
        if result.answer is EnqueueAnswer.UNKNOWN_QUEUE:
            return self._not_registered(new.queue)
        if result.answer is EnqueueAnswer.FULL:
            config = self._registry.configs.get(new.queue)
            by_hand = config is not None and config.max_waiting is not None
            bound = "max_waiting" if by_hand or self._storage.durable else "buffer_size"
            return QueueFullError(
                f"queue {new.queue!r} is full; raise its {bound}, add workers, "
                'or let publishing wait with overflow="wait"'
            )
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

    def _not_registered(self, queue: str) -> QueueNotRegisteredError:
        known = sorted(self._registry.configs)
        return QueueNotRegisteredError(
            f"queue {queue!r} is not registered; registered here: {', '.join(known) or 'none'}. "
            f"Call consumer.register_queue({queue!r}) first"
        )

    async def _record(self, task_id: str) -> TaskRecord:
        page = await self._storage.find(Ids(task_id), limit=1)
        if not page.records:
            raise TaskNotFoundError(f"no task has the id {task_id!r}; it may have been pruned")
        return page.records[0]


def _plain(headers: Mapping[str, str]) -> Mapping[str, str]:
    return {plain(name): plain(value) for name, value in headers.items()}


def _stored(
    task: QueueTask[Any, Any], new: NewTask, payload: object, result: EnqueueResult
) -> QueueTask[Any, Any]:
    """The snapshot of a task just created; its payload is the checked copy."""
    created = from_seconds(result.created_at)
    at_once = result.available_at == result.created_at
    fields = task.__dict__.copy()
    fields["payload"] = payload
    fields["id"] = new.id
    fields["created_at"] = created
    fields["available_at"] = created if at_once else from_seconds(result.available_at)
    fields["cron"] = new.cron
    return task_of(fields)


def new_id(now: float) -> str:
    """A time-ordered UUID, version 7 (RFC 9562): 48 bits of milliseconds, the rest random.

    From a generator of our own: one that an application seeds for its own ends would give
    two tasks one id. It is seeded anew after a fork; an id is no secret.
    """
    moment, noise = int(now * 1_000) & 0xFFFF_FFFF_FFFF, _noise.getrandbits(74)
    version = 0x7000 | noise >> 62
    variant = 0x8000 | noise >> 48 & 0x3FFF
    return (
        f"{moment >> 16:08x}-{moment & 0xFFFF:04x}-{version:04x}-{variant:04x}"
        f"-{noise & 0xFFFF_FFFF_FFFF:012x}"
    )
