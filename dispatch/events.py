"""One typed record per transition, handed to any number of observers.

Log lines, metrics, spans, the event stream and the dashboard are all readers of
the same `TaskEvent`. An observer is a plain function, called at once and in
order on the trio thread: it must be quick, must not block, and what it raises is
logged and goes no further.

It may offer more, under these names; what is not offered costs nothing:

- `interested_in(kind)`: whether it would look at such an event at all.
- `publishing(tasks, operation)`: a context manager around each publishing. It is
  given the tasks and yields as many, with what is to travel in their headers;
  `operation` is "send", or "create" for `run.publish`, which stores later.
- `middleware`: a `Middleware` around each attempt, outside the user's own. Taken
  up before the dispatcher runs.
- `storage_failed(operation, error)`: a `StorageError` that the dispatcher met.
- `cron_fired(name, lag_s)`: a tick was run, so many seconds after its moment.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum
from typing import Any, Final, Literal

import attrs
import trio

from dispatch.callables import is_async, is_middleware, takes
from dispatch.checks import shown
from dispatch.errors import InvalidConfigError
from dispatch.tasks import NO_HEADERS, FailureReason, QueueTask

__all__ = ["EventKind", "Observer", "Observers", "Operation", "TaskEvent"]

log: Final = logging.getLogger("dispatch.events")


class EventKind(StrEnum):
    """What happened to a task."""

    PUBLISHED = "published"
    """Stored. A worker that met it in the storage may have told of its start before its publisher was answered."""
    STARTED = "started"
    SUCCEEDED = "succeeded"
    RETRYING = "retrying"
    FAILED = "failed"
    """Now among the dead letters: its run failed, or a rescue found no run left."""
    CANCELLED = "cancelled"
    SNOOZED = "snoozed"
    HANDED_BACK = "handed_back"
    """Interrupted, and waiting to be run again with its attempt given back."""
    RESCUED = "rescued"
    """Taken from a worker that stopped renewing its lease, and waiting for its retry."""
    LOST = "lost"
    """This run was no longer ours when it ended; its outcome was refused."""


@attrs.frozen(kw_only=True, slots=False)  # made three times a task: with slots, that takes half as long again
class TaskEvent:
    """One transition of one task. Payloads and results are never part of it.

    `at` is UTC seconds by the storage's clock. `wait_s` is from falling due to
    the start, `run_s` from the start to the end, both None where they do not
    apply. `retry_in` is seconds until the next run, `error` type and message.
    `rescued`: its worker stopped renewing its lease. What became of the task is
    the kind, RESCUED only if it will run again, so that whoever counts FAILED
    counts every dead letter once.
    `headers` are the task's own: a trace's context is among them.
    """

    kind: EventKind
    at: float
    task_id: str
    queue: str
    task_type: str
    attempt: int = 0
    worker: str | None = None
    wait_s: float | None = None
    run_s: float | None = None
    retry_in: float | None = None
    error: str | None = None
    failure_reason: FailureReason | None = None
    rescued: bool = False
    cron: str | None = None
    headers: Mapping[str, str] = attrs.field(default=NO_HEADERS, repr=False)


Observer = Callable[[TaskEvent], None]
Operation = Literal["send", "create"]
Publishing = Callable[
    [Sequence[QueueTask[Any, Any]], Operation], AbstractContextManager[Sequence[QueueTask[Any, Any]]]
]


def _checked(observer: Observer) -> Observer:
    if not callable(observer):
        raise InvalidConfigError(f"an observer is a function of one TaskEvent, got {shown(observer)}")
    if is_async(observer):
        raise InvalidConfigError(
            f"an observer is called at once and cannot wait, got the async {shown(observer)}; "
            "for async code read the events of subscribe()"
        )
    if not takes(observer, 1):
        raise InvalidConfigError(f"an observer is called with one TaskEvent, which {shown(observer)} does not take")
    middleware = getattr(observer, "middleware", None)
    if middleware is not None and not is_middleware(middleware):  # a Mock offers any
        raise InvalidConfigError(
            f"the middleware of the observer {shown(observer)} must be an async function of (task, run, call_next), "
            f"got {shown(middleware)}; leave it out, or set it to None"
        )
    return observer


class Observers:
    """The observers of one dispatcher, in the order they were added."""

    __slots__ = ("_interests", "_observers", "_reads_all", "around_publishing")

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        if not isinstance(observers, Iterable):
            raise InvalidConfigError(f"observers must be a collection of functions, got {shown(observers)}")
        self._set(tuple(map(_checked, observers)))

    def add(self, observer: Observer) -> None:
        """Call `observer` for every event from now on. Raises InvalidConfigError for an async one."""
        _checked(observer)
        self._set((*self._observers, observer))

    def remove(self, observer: Observer) -> None:
        """Stop calling it; harmless if it was not added."""
        self._set(tuple(each for each in self._observers if each is not observer))

    def _set(self, observers: tuple[Observer, ...]) -> None:
        self._observers: tuple[Observer, ...] = observers
        asked = [getattr(each, "interested_in", None) for each in observers]
        self._reads_all: bool = None in asked
        self._interests: tuple[Callable[[EventKind], bool], ...] = tuple(filter(None, asked))
        self.around_publishing: tuple[Publishing, ...] = self.offered("publishing")

    def offered(self, name: str) -> tuple[Any, ...]:
        """What the observers offer under this name, in their order."""
        found = (getattr(each, name, None) for each in self._observers)
        return tuple(each for each in found if each is not None)

    def wants(self, kind: EventKind) -> bool:
        """Whether any observer would look at this kind: saves building an event nobody reads."""
        if self._reads_all:
            return True
        for interested in self._interests:
            try:
                if interested(kind):
                    return True
            except BaseException as exc:
                _raise_on(exc)
                log.exception("observer %r failed on %s", interested, kind)
                return True
        return False

    def emit(self, event: TaskEvent) -> None:
        """Hand one event to every observer; what one raises is logged, and the others still see it."""
        for observer in self._observers:
            try:
                observer(event)
            except BaseException as exc:
                _raise_on(exc)
                log.exception("observer %r failed on %s of task %s", observer, event.kind, event.task_id)

    def published(
        self,
        at: float,
        task_id: str,
        queue: str,
        task_type: str,
        cron: str | None,
        headers: Mapping[str, str],
    ) -> None:
        """Emit that a task was stored, by whichever way it came."""
        if self.wants(EventKind.PUBLISHED):
            self.emit(
                TaskEvent(
                    kind=EventKind.PUBLISHED,
                    at=at,
                    task_id=task_id,
                    queue=queue,
                    task_type=task_type,
                    cron=cron,
                    headers=headers,
                )
            )

    def tell(self, name: Literal["storage_failed", "cron_fired"], *what: object) -> None:
        """Call what the observers offer under this name; what one raises is logged."""
        for function in self.offered(name):
            try:
                function(*what)
            except BaseException as exc:
                _raise_on(exc)
                log.exception("observer %r failed", function)

    @contextmanager
    def publishing(
        self,
        tasks: Sequence[QueueTask[Any, Any]],
        operation: Operation,
        check: Callable[[QueueTask[Any, Any]], None],
    ) -> Generator[Sequence[QueueTask[Any, Any]]]:
        """Publish inside the block what is yielded, whatever observers do around it.

        One that cannot begin, or gives back more or fewer tasks, is passed over, as is
        what it makes of a task that does not pass `check` any more; what one raises at
        its end is logged, for what is stored is stored.
        """
        entered: list[AbstractContextManager[Sequence[QueueTask[Any, Any]]]] = []
        for around in self.around_publishing:
            try:
                manager = around(tasks, operation)
                given = manager.__enter__()
                entered.append(manager)
                if len(given) != len(tasks):
                    raise ValueError(f"it gave {len(given)} tasks in place of {len(tasks)}")
                tasks = [_allowed(each, before, check) for each, before in zip(given, tasks, strict=True)]
            except BaseException as exc:
                _raise_on(exc)
                log.exception("observer %r failed before publishing", around)
        error: BaseException | None = None
        try:
            yield tasks
        except BaseException as exc:
            error = exc
            raise
        finally:
            for manager in reversed(entered):
                _leave(manager, error)


def _allowed(
    task: QueueTask[Any, Any], before: QueueTask[Any, Any], check: Callable[[QueueTask[Any, Any]], None]
) -> QueueTask[Any, Any]:
    """What an observer made of a task, if it can be published so; what it was, else."""
    if task is before:
        return task
    try:
        check(task)
    except Exception:  # noqa: BLE001 - if it is not the observer's doing, publishing says so
        return before
    return task


def _leave(manager: AbstractContextManager[Any], error: BaseException | None) -> None:
    """End one observer's block, which may neither raise nor hide what was raised in it."""
    told = (None, None, None) if error is None else (type(error), error, error.__traceback__)
    try:
        manager.__exit__(*told)
    except BaseException as exc:
        if exc is not error:
            _raise_on(exc)
            log.exception("observer %r failed after publishing", manager)


def _raise_on(exc: BaseException) -> None:
    """Raise what is no failure of an observer's. SystemExit, pytest.fail: they are no reason to end the dispatcher."""
    if isinstance(exc, KeyboardInterrupt | trio.Cancelled):
        raise exc
