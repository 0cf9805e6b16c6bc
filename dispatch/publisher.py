"""Publishing: typed tasks into registered queues, and waiting for what became of them."""

from __future__ import annotations

import logging
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
    InvalidQueuePayloadError,
    InvalidQueueTaskError,
    StorageError,
    TaskCancelledError,
    TaskFailedError,
    TaskNotFoundError,
)
from dispatch.events import Observers
from dispatch.ids import new_id
from dispatch.records import NewTask, TaskRecord, from_seconds, to_seconds
from dispatch.registry import Registry
from dispatch.run import progress_of
from dispatch.storage.protocol import (
    EnqueueAnswer,
    EnqueueResult,
    QueueRecord,
    Storage,
    Topic,
    TopicKind,
    check_storage,
    stored_for,
)
from dispatch.storage.query import Ids
from dispatch.tasks import Priority, QueueTask, TaskStatus, TaskType, id_of, plain, task_of
from dispatch.threads import check_thread
from dispatch.unstored import after_close, not_registered, unstored, why_gone, why_no_room

__all__ = ["Published", "TaskQueuePublisher"]

P = TypeVar("P")
R = TypeVar("R")

log: Final = logging.getLogger("dispatch.publisher")

inside_handler: Final[ContextVar[bool]] = ContextVar("dispatch_inside_handler", default=False)
"""Set in the context of every attempt: publishing from there never waits for room."""


CREATED: Final = EnqueueAnswer.CREATED
"""On 3.11 an Enum takes 0.1 us to give a member, and this one is asked for with each task."""
STORED: Final = frozenset({EnqueueAnswer.CREATED, EnqueueAnswer.EXISTING, EnqueueAnswer.REPLACED})

ASKED_ABOUT: Final = frozenset({EnqueueAnswer.UNKNOWN_QUEUE, EnqueueAnswer.FULL})
"""What was refused so is told of with what the storage says of its queues."""

BREATH_BYTES: Final = 64 * 1024
"""So much is encoded of a batch, which takes some milliseconds, before others run."""
TASK_BYTES: Final = 400
"""What a task without payload costs to prepare, as so many bytes of it."""

PATIENCE_S: Final = 5.0
"""So long a publish waits for room before it is looked whether anything of the queue runs."""

MET_TYPES: Final = 4_096
"""Types made up without end must not fill the memory."""



@attrs.frozen
class Published:
    """One answer of `publish_many`: the stored task, or the error of this one item.

    `answer` says how it was stored: created, existing, replaced or rejected.
    """

    task: QueueTask[Any, Any] | None
    answer: EnqueueAnswer | None
    error: DispatchError | None = None


@attrs.define
class _Batch:
    """Tasks on their way into the storage in one step."""

    news: list[NewTask] = attrs.field(factory=list[NewTask])
    places: list[tuple[int, QueueTask[Any, Any], object]] = attrs.field(
        factory=list[tuple[int, QueueTask[Any, Any], object]]
    )
    """Of each of them the place in `found`, the task as it was given, and the decoded copy of its payload."""
    found: list[Published | None] = attrs.field(factory=list["Published | None"])
    """The answer of each task that was given, None where the storage gives it."""


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
        clash of `unique`; once it was pruned, or forgotten by memory, it is a new task.

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
        new, payload = self._prepare(task, self._storage.now())
        if self._turns or self._registry.undeclared:
            result = (await self._enqueue([new]))[0]
        else:  # the ordinary case, without the care that a crowd needs
            bounded = not inside_handler.get()
            result = (await self._storage.enqueue((new,), bounded=bounded))[0]
            if result.answer is EnqueueAnswer.FULL:
                results = [result]
                await self._make_room([new], results, crowded=False)
                result = results[0]
        if result.answer is CREATED:
            self.tell_published(new, result.created_at)
        await self._storage.breathe()
        answer = self._answer(task, new, payload, result)
        if answer is None:
            raise await self.refusal(new, result)
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
        given = _several("publish_many", tasks)
        try:
            if self._observers.around_publishing:
                with self._observers.publishing(given, "send", self.check) as marked:
                    return await self._publish_many(marked)
            return await self._publish_many(given)
        except StorageError as exc:
            self._observers.tell("storage_failed", "publish", exc)
            raise

    async def _publish_many(self, tasks: Sequence[QueueTask[Any, Any]]) -> list[Published]:
        answers: list[Published] = []
        for step in self._steps(tasks):
            batch = _Batch()
            now = self._storage.now()
            prepared = 0  # bytes since others ran
            for task in step:
                if prepared >= BREATH_BYTES:
                    prepared = 0
                    await trio.lowlevel.checkpoint()
                    now = self._storage.now()
                prepared += TASK_BYTES + self._prepare_into(batch, task, now)
            results = await self._enqueue(batch.news)
            for new, result in zip(batch.news, results, strict=True):
                if result.answer is CREATED:
                    self.tell_published(new, result.created_at)
            # Asked only now, once all that is stored has been told of.
            asked = any(result.answer in ASKED_ABOUT for result in results)
            answers += self._answers(batch, results, await self._stored_queues() if asked else None)
            await self._storage.breathe()
        return answers

    def _steps(self, tasks: Sequence[QueueTask[Any, Any]]) -> list[Sequence[QueueTask[Any, Any]]]:
        limit = self._codec.limits.batch
        return [tasks[start : start + limit] for start in range(0, len(tasks), limit)] or [()]

    def _prepare_into(self, batch: _Batch, task: QueueTask[Any, Any], now: float) -> int:
        """Add a task to the batch, or the error of a bad one; the bytes of its payload."""
        try:
            new, payload = self._prepare(task, now)
        except ClosedError:
            raise
        except DispatchError as exc:
            batch.found.append(Published(None, None, exc))
            return 0
        batch.places.append((len(batch.found), task, payload))
        batch.news.append(new)
        batch.found.append(None)
        return len(new.payload)

    def _answers(
        self, batch: _Batch, results: Sequence[EnqueueResult], queues: Sequence[QueueRecord] | None
    ) -> list[Published]:
        """An answer for each task of the batch; `queues` are those that the storage knows, if it was asked."""
        for (index, task, payload), new, result in zip(batch.places, batch.news, results, strict=True):
            stored = self._answer(task, new, payload, result)
            error = self._unstored(new, result, queues) if stored is None else None
            batch.found[index] = Published(stored, result.answer, error)
        return [each for each in batch.found if each is not None]

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
        raises; the queue must be stored, as it is once a dispatcher that registers it
        has run, or `declare` has.
        """
        with self._observers.publishing((task,), "send", self.check) as (marked,):
            return self._publish_in(connection, cast("QueueTask[P, R]", marked))

    async def publish_in_async(self, connection: object, task: QueueTask[P, R]) -> QueueTask[P, R]:
        """`publish_in` on a `TrioConnection` of `dispatch.storage.psycopg_trio`, with a transaction open.

        A checkpoint. Cancelled, it leaves the transaction to be rolled back.
        """
        with self._observers.publishing((task,), "send", self.check) as (marked,):
            return await self._publish_in_async(connection, cast("QueueTask[P, R]", marked))

    async def _publish_in_async(self, connection: object, task: QueueTask[P, R]) -> QueueTask[P, R]:
        new, payload = self._prepare(task, self._storage.now())
        (result,) = await self._storage.enqueue_in_async(connection, [new])
        stored = cast("QueueTask[P, R] | None", self._answer(task, new, payload, result))
        if stored is None:
            raise await self.refusal(new, result)
        return stored

    def _publish_in(self, connection: object, task: QueueTask[P, R]) -> QueueTask[P, R]:
        new, payload = self._prepare(task, self._storage.now())
        (result,) = self._storage.enqueue_in(connection, [new])
        stored = cast("QueueTask[P, R] | None", self._answer(task, new, payload, result))
        if stored is None:
            raise self._unstored(new, result)
        return stored

    def publish_many_in(self, connection: object, tasks: Iterable[QueueTask[Any, Any]]) -> list[Published]:
        """`publish_in` of many tasks; an answer per item, in order, as of `publish_many`.

        A bad item has its error in its answer, and the others are stored nevertheless,
        if the transaction commits: look at the answers before it does.
        """
        given = _several("publish_many_in", tasks)
        with self._observers.publishing(given, "send", self.check) as marked:
            return self._publish_many_in(connection, marked)

    async def publish_many_in_async(
        self, connection: object, tasks: Iterable[QueueTask[Any, Any]]
    ) -> list[Published]:
        """`publish_many_in` on a `TrioConnection` with a transaction open. A checkpoint.

        Cancelled, it leaves the transaction to be rolled back.
        """
        given = _several("publish_many_in_async", tasks)
        with self._observers.publishing(given, "send", self.check) as marked:
            return await self._publish_many_in_async(connection, marked)

    def _publish_many_in(self, connection: object, tasks: Sequence[QueueTask[Any, Any]]) -> list[Published]:
        answers: list[Published] = []
        for step in self._steps(tasks):
            batch = self._prepared(step)
            answers += self._answers(batch, self._storage.enqueue_in(connection, batch.news), None)
        return answers

    async def _publish_many_in_async(
        self, connection: object, tasks: Sequence[QueueTask[Any, Any]]
    ) -> list[Published]:
        answers: list[Published] = []
        for step in self._steps(tasks):
            batch = self._prepared(step)
            results = await self._storage.enqueue_in_async(connection, batch.news)
            answers += self._answers(batch, results, None)
        return answers

    def _prepared(self, tasks: Sequence[QueueTask[Any, Any]]) -> _Batch:
        batch = _Batch()
        now = self._storage.now()
        for task in tasks:
            self._prepare_into(batch, task, now)
        return batch

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

    @overload
    async def result(self, task: QueueTask[P, R]) -> R: ...

    @overload
    async def result(self, task: str) -> Any: ...

    async def result(self, task: QueueTask[Any, Any] | str) -> Any:
        """Wait for a published task and answer with its typed result; given an id, as far as its type is known here.

        Raises TaskFailedError (1018) if it became a dead letter,
        TaskCancelledError (1019) if it was cancelled, InvalidQueuePayloadError
        (1010) if what is stored does not fit the declared result class, say
        after a change of it (`wait` shows it as plain data; fields that the class
        does not know are left out), and what `wait` raises. A checkpoint; cancelling it leaves the task alone.
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
            return ended.result
        # Of a task from before its type had a result nothing is stored.
        data = b"null" if record.result is None else record.result
        try:
            return self._result(data, declared.result)
        except InvalidQueuePayloadError as exc:
            why = f"the result of {where}: {exc.detail}; a result has no version, so a new field of its class needs a default"
            raise InvalidQueuePayloadError(why, exc.path) from None

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
        new, _ = self._prepare(task, self._storage.now())
        await trio.lowlevel.checkpoint()
        if known and new.queue not in self._registry.configs:
            stored = await self._storage.queues()
            if not any(record.name == new.queue for record in stored):
                raise not_registered(new.queue, self._registry, stored)
        return new

    async def prepare_spawned(self, task: QueueTask[Any, Any]) -> NewTask:
        """`prepare` for `run.publish`: what is to travel in headers is added now, not when it is stored."""
        if not self._observers.around_publishing:
            return await self.prepare(task)
        with self._observers.publishing((task,), "create", self.check) as (marked,):
            return await self.prepare(marked)

    async def refusal(self, new: NewTask, result: EnqueueResult) -> DispatchError:
        """The error of a task that was not stored. A checkpoint."""
        stored = await self._stored_queues() if result.answer in ASKED_ABOUT else None
        return self._unstored(new, result, stored)

    async def store(self, batch: Sequence[NewTask]) -> list[EnqueueResult]:
        """Store prepared tasks beyond any bound, for cron: an answer per item. A checkpoint."""
        if self._closed and batch:
            raise ClosedError(after_close(batch[0], ended=self._ended))
        await self._registry.declare(self._storage)
        results = await self._storage.enqueue(batch)
        for new, result in zip(batch, results, strict=True):
            if result.answer is CREATED:
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
            progress=progress_of(record.progress),
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
            return self._result(data, declared.result)
        except DispatchError:
            return self._codec.decode_plain(data)

    def _result(self, data: bytes, cls: type[Any]) -> Any:
        # Results have no version: a newer release's worker may know fields more.
        return self._codec.decode(data, cls, limit=self._codec.limits.result_bytes, lenient=True)

    def _prepare(self, task: QueueTask[Any, Any], now: float) -> tuple[NewTask, object]:
        """Check and encode; the decoded copy of the payload comes back beside it."""
        if self._closed:
            raise ClosedError(after_close(task, ended=self._ended))
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
                consumed, tags = self._registry.consumed, self._registry.tags
                if (consumed is None or task.queue in consumed) and (tags is None or tags.issuperset(task.tags)):
                    self._check_handled(data, declared, handled)
        return (
            NewTask(
                id=plain(task.id) if task.id else new_id(now),
                queue=plain(task.queue) if declared is None else declared.queue,
                type=plain(task.type) if declared is None else declared.type,
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
                f"handler registered here takes {handled.payload.__qualname__}, which it does not fit at "
                f"{exc.detail.partition(': ')[2] if exc.path == '$' else exc.path}; declare the TaskType once and use it "
                "on both sides, or give the changed class a version of its own",
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
        if config is not None and queue not in self._registry.defaulted:
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
                            if why := await why_no_room(self._storage, queue):
                                log.warning(
                                    "queue %s: full, a publish has waited %g s for room: %s",
                                    queue,
                                    PATIENCE_S,
                                    why,
                                    extra={"event": "standstill", "queue": queue},
                                )
        finally:
            self._waiting.discard(bell)
            if not turn.locked() and self._turns.get(queue) is turn:
                del self._turns[queue]

    async def _try(self, queue: str, batch: list[NewTask], results: list[EnqueueResult]) -> bool:
        """Enqueue what is still FULL for this queue; whether something still is."""
        if self._closed:
            stored = sum(result.answer in STORED for result in results)
            what = f"{stored} of {len(results)} tasks are stored" if stored else "nothing was stored"
            raise ClosedError(f"publish: the publisher was closed while it waited for room; {what}")
        full = [index for index, result in enumerate(results) if result.answer is EnqueueAnswer.FULL]
        open_items = [index for index in full if batch[index].queue == queue]
        answers = await self._storage.enqueue([batch[index] for index in open_items], bounded=True)
        for index, answer in zip(open_items, answers, strict=True):
            results[index] = answer
        return any(answer.answer is EnqueueAnswer.FULL for answer in answers)

    def _answer(
        self, task: QueueTask[Any, Any], new: NewTask, payload: object, result: EnqueueResult
    ) -> QueueTask[Any, Any] | None:
        """The storage's answer as a snapshot; None where the task was not stored."""
        if result.answer is CREATED:
            return _stored(task, new, payload, result)
        stored = stored_for(result, new)
        return None if stored is None else self.snapshot(stored, task)

    def _unstored(
        self, new: NewTask, result: EnqueueResult, stored: Sequence[QueueRecord] | None = None
    ) -> DispatchError:
        return unstored(new, result, self._registry, durable=self._storage.durable, stored=stored)

    async def _stored_queues(self) -> Sequence[QueueRecord] | None:
        """The queues that the storage knows, for a message; None if it cannot be asked."""
        try:
            return await self._storage.queues()
        except (StorageError, ClosedError):
            return None

    async def _record(self, task_id: str) -> TaskRecord:
        page = await self._storage.find(Ids(task_id), limit=1)
        if not page.records:
            raise TaskNotFoundError(f"no task has the id {task_id!r}; {why_gone(self._storage)}")
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


def _several(name: str, tasks: Iterable[QueueTask[Any, Any]]) -> tuple[QueueTask[Any, Any], ...]:
    """The tasks given, which the caller's own list may change from meanwhile."""
    if not isinstance(tasks, Iterable):
        single = name.replace("_many", "")
        raise InvalidQueueTaskError(f"{name} takes several tasks, got {type(tasks).__name__}; {single} takes one")
    return tuple(tasks)
