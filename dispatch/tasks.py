"""The values a user handles: tasks, their types, queue settings, uniqueness.

Nothing here does I/O, knows a clock or imports trio. A `QueueTask` is what is
published and what comes back; a `TaskType` is the typed address both sides
declare once; a `TaskQueueConfig` is how one queue behaves.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from functools import partial
from types import MappingProxyType, UnionType
from typing import (
    Any,
    Final,
    Generic,
    Literal,
    NewType,
    TypedDict,
    Unpack,
    cast,
    get_origin,
    overload,
)

import attrs
from typing_extensions import TypeVar

from dispatch.callables import is_async, is_generator
from dispatch.checks import (
    MAX_COUNT,
    Alias,
    check_choice,
    check_count,
    check_duration,
    check_flag,
    check_names,
    is_alias,
    shown,
)
from dispatch.errors import (
    InvalidConfigError,
    InvalidQueueNameError,
    InvalidQueueTaskError,
    InvalidTaskTypeError,
)
from dispatch.retry import RetryPolicy

__all__ = [
    "FailureReason",
    "OnClash",
    "Priority",
    "QueueTask",
    "RateLimit",
    "TaskOptions",
    "TaskQueueConfig",
    "TaskStatus",
    "TaskType",
    "Unique",
    "check_name",
    "id_of",
    "plain",
    "task_of",
]

P = TypeVar("P", default=Any)
P0 = TypeVar("P0")
R = TypeVar("R", default=None)
P_co = TypeVar("P_co", covariant=True, default=Any)
R_co = TypeVar("R_co", covariant=True, default=object)

NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}", re.ASCII)
EARLIEST: Final = datetime(1, 1, 1, tzinfo=UTC)
LATEST: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""The bounds of a moment. A float of seconds rounds the microseconds after LATEST to the year 10000."""


class TaskStatus(StrEnum):
    """Where a task stands.

    `RETRYING` is how a pending task with attempts behind it is shown (Go's
    word); stored it is `PENDING`. The last three are terminal.
    """

    PENDING = "pending"
    RETRYING = "retrying"
    RUNNING = "running"
    HELD = "held"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether a task in this status is at its end (unless it is rerun)."""
        return self in _TERMINAL


_TERMINAL = frozenset({TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.CANCELLED})


class FailureReason(StrEnum):
    """Why a task is among the dead letters."""

    EXHAUSTED = "exhausted"
    """Its last allowed attempt failed."""
    PERMANENT = "permanent"
    """An error that its policy or its handler called permanent."""
    INVALID_PAYLOAD = "invalid_payload"
    """Its stored payload cannot be decoded as the declared class."""
    INTERRUPTED = "interrupted"
    """Its run was interrupted and its queue says `on_interrupt="fail"`."""


class Priority(IntEnum):
    """Four levels; a waiting task rises one level per ageing interval of its queue."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


class OnClash(StrEnum):
    """What publishing does when a matching task is stored already."""

    KEEP = "keep"
    """Leave the stored one as it is and answer with it."""
    REJECT = "reject"
    """Raise `DuplicateTaskError`."""
    REPLACE = "replace"
    """Write the named fields of the new task into the stored one."""
    SUPERSEDE = "supersede"
    """Cancel the stored one (ask it to stop, if running) and store the new one."""


def check_name(value: object, what: str, error: type[InvalidQueueNameError | InvalidTaskTypeError]) -> str:
    """Return `value` as a plain str if it is a legal name, else raise `error` saying what is wrong with it."""
    if not isinstance(value, str):
        raise error(f"{what} must be a str, got {value!r}")
    if not NAME.fullmatch(value):
        hint = "it is empty" if not value else f"got {shown(value)}"
        raise error(f"{what} must be 1 to 128 characters of A-Z a-z 0-9 _ . : - ({hint})")
    return plain(value)


def plain(text: str) -> str:
    """The text itself where it is of a subclass, as a member of a StrEnum is: databases give no other back.

    Not by `str()`, which may say something else.
    """
    return str.__str__(text)


def _statuses(given: Iterable[str]) -> frozenset[TaskStatus]:
    try:
        found = {TaskStatus(status) for status in given}
    except (TypeError, ValueError):
        names = ", ".join(TaskStatus)
        raise InvalidConfigError(f"Unique: statuses must be of {names}, got {shown(given)}") from None
    if TaskStatus.RETRYING in found:  # an alias: stored, a retrying task is pending
        found = (found - {TaskStatus.RETRYING}) | {TaskStatus.PENDING}
    return frozenset(found)


def _replace(given: Iterable[str]) -> frozenset[str]:
    if isinstance(given, frozenset) and given <= REPLACEABLE:  # such as the default, with every task
        return given
    return check_names("Unique: replace", given)


def _on_clash(given: OnClash | Literal["keep", "reject", "replace", "supersede"]) -> OnClash:
    check_choice("Unique: on_clash", given, tuple(OnClash))
    return OnClash(given)


@attrs.frozen(kw_only=True)
class Unique:
    """At most one such task at a time: looked up and applied in the publishing step.

    `key` names the thing that must be unique; without one the address alone
    counts, among tasks that were also published without one. `by_payload` adds
    the payload's bytes to the identity. `scope` says within what: the task's
    queue and type, its queue, or the whole storage.

    A stored task clashes if its status is in `statuses` (default: it is not
    over yet) and, with `within`, if its `available_at` lies at most that many
    seconds from the new one's, inclusive. `replace` names the fields that
    REPLACE writes (`payload`, `available_at`, `priority`, `headers`, `tags`,
    `timeout`, `max_retry`), and only into a task whose status is in
    `replace_in`. With a wider `scope` than the type, KEEP may answer with a task
    of another type, and REPLACE does not write a `payload` into one: that is
    refused as with REJECT. `rerun` by hand looks for no twin. A debounce is `Unique(key=..., on_clash="replace",
    replace={"payload", "available_at"}, statuses={"pending", "held"})` with a `delay`: a running
    task has its payload already, and would be answered with while the new payload is lost.
    """

    key: str | None = None
    by_payload: bool = False
    scope: Literal["type", "queue", "storage"] = "type"
    statuses: frozenset[TaskStatus] = attrs.field(
        default=frozenset({TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.HELD}),
        converter=_statuses,
    )
    within: float | None = None
    on_clash: OnClash = attrs.field(default=OnClash.KEEP, converter=_on_clash)
    replace: frozenset[str] = attrs.field(default=frozenset({"payload"}), converter=_replace)
    replace_in: frozenset[TaskStatus] = attrs.field(
        default=frozenset({TaskStatus.PENDING, TaskStatus.HELD}), converter=_statuses
    )

    def __attrs_post_init__(self) -> None:
        if self.key is not None and not (isinstance(self.key, str) and 0 < len(self.key) <= 1_000):
            raise InvalidConfigError(f"Unique: key must be 1 to 1000 characters, got {shown(self.key)}")
        check_flag("Unique: by_payload", self.by_payload)
        check_choice("Unique: scope", self.scope, ("type", "queue", "storage"))
        if self.within is not None:
            check_duration("Unique: within", self.within)
        unknown = self.replace - REPLACEABLE
        if unknown:
            raise InvalidConfigError(
                f"Unique: replace may name {', '.join(sorted(REPLACEABLE))}; got {', '.join(sorted(unknown))}"
            )


REPLACEABLE: Final = frozenset(
    {"payload", "available_at", "priority", "headers", "tags", "timeout", "max_retry"}
)


@attrs.frozen
class RateLimit:
    """At most `count` tasks started per `per` seconds, over all processes on the storage.

    A token bucket: it holds `count`, which come back evenly. A burst of `count`
    after a quiet time is allowed, so that any stretch of `per` seconds sees less
    than twice `count` starts, and the long run `count` per `per` seconds.
    """

    count: int
    per: float = 1.0

    def __attrs_post_init__(self) -> None:
        check_count("RateLimit: count", self.count, 1)
        check_duration("RateLimit: per", self.per, above=True)


@attrs.frozen
class TaskQueueConfig:
    """How one queue behaves. Equal settings make a re-registration a no-op.

    On a database `keyed`, `on_retry`, `max_waiting`, `overflow`, `max_running` and
    `rate_limit` hold for every process, and the last one to start with a config decides;
    where that changes them, its log says so. A queue registered without one keeps them.

    The first four and their defaults are Go's:

    - `concurrency`: how many tasks of the queue run at once in this process.
    - `max_retry`: retries after the first run; total runs are `1 + max_retry`.
    - `retry_delay`: seconds between a failure and the next attempt.
    - `buffer_size`: how many due tasks may wait in memory before publishing
      waits or raises (`overflow`). On a database the store is the buffer;
      `max_waiting` bounds it there, None being no bound; on PostgreSQL each of
      several who publish at once may exceed it by one batch or 100 tasks, and with
      room for thousands what falls due by itself is seen a second later. Where a queue is
      nearly full each publish counts what waits: let it be thousands, not millions.

    The rest is ours:

    - `retry`: a whole `RetryPolicy` in place of the fixed `retry_delay`.
    - `timeout`: seconds one attempt may take unless its task says otherwise.
    - `overflow`: what publishing does at the bound, `"wait"` or `"raise"`.
      Publishing from inside a handler never waits and is never refused.
    - `keyed`: tasks of one `key` run one at a time, in order of publishing;
      `on_retry` says whether a retrying one holds its key or yields it.
    - `ageing`: seconds after which a waiting task rises one priority level;
      None switches that off.
    - `max_running`: how many tasks of the queue run at once over all processes
      on the storage; `rate_limit`: how many are started. None: no limit.
    - `on_interrupt`: what a run that was interrupted by a crash, a shutdown or
      a lost lease becomes: `"retry"`, or `"fail"` for at most once.
    - `prefetch`: how many tasks more than `concurrency` are claimed, to wait in
      this process for a free slot; 0 claims what can run at once. For many short
      tasks at a low concurrency, where most of the time is asking for the next.
      What waits here counts as running, waits for this process though another
      be idle, and goes before a later one of higher priority; a shutdown or a
      pause hands it back untouched, but a process that is killed costs each of
      them an attempt. So it needs a `max_retry`, and does not go with
      `on_interrupt="fail"`, `max_running` and `rate_limit`; a task whose own
      `max_retry` is 0 may end as a dead letter that never ran.
    """

    concurrency: int = 1
    max_retry: int = 0
    retry_delay: float = 1.0
    buffer_size: int = 128
    retry: RetryPolicy | None = attrs.field(default=None, kw_only=True)
    timeout: float | None = attrs.field(default=None, kw_only=True)
    overflow: Literal["wait", "raise"] = attrs.field(default="wait", kw_only=True)
    max_waiting: int | None = attrs.field(default=None, kw_only=True)
    keyed: bool = attrs.field(default=False, kw_only=True)
    on_retry: Literal["hold", "yield"] = attrs.field(default="hold", kw_only=True)
    ageing: float | None = attrs.field(default=60.0, kw_only=True)
    max_running: int | None = attrs.field(default=None, kw_only=True)
    rate_limit: RateLimit | None = attrs.field(default=None, kw_only=True)
    on_interrupt: Literal["retry", "fail"] = attrs.field(default="retry", kw_only=True)
    prefetch: int = attrs.field(default=0, kw_only=True)

    def __attrs_post_init__(self) -> None:
        where = "TaskQueueConfig:"
        check_count(f"{where} concurrency", self.concurrency, 1)
        check_count(f"{where} max_retry", self.max_retry, 0)
        check_count(f"{where} buffer_size", self.buffer_size, 1)
        check_duration(f"{where} retry_delay", self.retry_delay)
        if self.retry is not None and not isinstance(self.retry, RetryPolicy):
            raise InvalidConfigError(
                f"{where} retry must be a RetryPolicy or None, got {shown(self.retry)}; "
                "how often is said by max_retry, a fixed wait by retry_delay"
            )
        if self.retry is not None and self.retry_delay != 1.0:
            raise InvalidConfigError(
                f"{where} give either retry_delay or retry, got both ({self.retry_delay!r} and {self.retry!r})"
            )
        if self.timeout is not None:
            check_duration(f"{where} timeout", self.timeout, above=True)
        if self.max_waiting is not None:
            check_count(f"{where} max_waiting", self.max_waiting, 1)
        if self.ageing is not None:
            check_duration(f"{where} ageing", self.ageing, above=True)
        if self.max_running is not None:
            check_count(f"{where} max_running", self.max_running, 1)
        if self.rate_limit is not None and not isinstance(self.rate_limit, RateLimit):
            raise InvalidConfigError(f"{where} rate_limit must be a RateLimit or None, got {self.rate_limit!r}")
        check_flag(f"{where} keyed", self.keyed)
        check_choice(f"{where} overflow", self.overflow, ("wait", "raise"))
        check_choice(f"{where} on_retry", self.on_retry, ("hold", "yield"))
        check_choice(f"{where} on_interrupt", self.on_interrupt, ("retry", "fail"))
        check_count(f"{where} prefetch", self.prefetch, 0)
        if self.prefetch:
            self._check_prefetch(f"{where} prefetch={self.prefetch}")

    def _check_prefetch(self, where: str) -> None:
        killed = "a process that is killed costs each task that it had prefetched an attempt"
        if self.on_interrupt == "fail":
            raise InvalidConfigError(
                f'{where} does not go with on_interrupt="fail": {killed}, and they would fail without having run'
            )
        if self.max_retry == 0:
            raise InvalidConfigError(
                f"{where} needs a max_retry of at least 1, got 0: {killed}, "
                "and they would be dead letters without having run"
            )
        for name, given in (("max_running", self.max_running), ("rate_limit", self.rate_limit)):
            if given is not None:
                raise InvalidConfigError(
                    f"{where} does not go with {name}={given!r}: a task counts for it when it is claimed, "
                    "and a prefetched one does not run yet; leave out either"
                )

    @property
    def policy(self) -> RetryPolicy:
        """The retry policy in force: `retry`, or a fixed delay of `retry_delay`."""
        return self.retry if self.retry is not None else RetryPolicy.fixed(self.retry_delay)


class TaskOptions(TypedDict, total=False):
    """What `TaskType(...)` takes beside the payload; see the fields of `QueueTask`."""

    id: str
    key: str | None
    headers: Mapping[str, str]
    delay: float
    available_at: datetime
    timeout: float | None
    max_retry: int | None
    priority: Priority
    tags: tuple[str, ...]
    unique: Unique | None


NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


def _headers(given: Mapping[str, str]) -> Mapping[str, str]:
    """A private, read-only copy: a later change by the caller must not reach the task."""
    if given is NO_HEADERS or not isinstance(given, Mapping):
        return given
    return MappingProxyType(dict(given)) if given else NO_HEADERS


@attrs.frozen
class Progress:
    """How far an attempt says it has come: a fraction within 0 and 1, or None, and a message."""

    fraction: float | None = None
    message: str = ""


@attrs.frozen(kw_only=True, slots=False)
class QueueTask(Generic[P_co, R_co]):
    """One unit of background work: what is published, and what is stored.

    Build one by calling a `TaskType`, or by naming `queue`, `type` and
    `payload`. What you may set:

    - `id`: yours, or a time-ordered UUID made at publishing. Publishing the
      same id again is harmless: the stored task is the answer. Ids are unique
      over all queues; that of a task of another type is refused (1011).
    - `key`: orders tasks of one key on a keyed queue; free to use otherwise.
    - `headers`: up to 32 short strings carried along, for tracing and such.
    - `delay`: seconds until it may run, at most ten years; or `available_at`,
      an aware datetime within the years 1 to 9999 of UTC, their last second
      whole. For "not until I say so" publish it and `control.hold` it.
    - `timeout`: seconds per attempt; None inherits the queue's.
    - `max_retry`: retries after the first run; None inherits the queue's, 0
      means never.
    - `priority`, `tags`, `unique`; the last is None in a task that was read.

    What the storage owns, set in every task it hands out: `attempt` (runs
    started: 0 before, 1 in the first; Go counts from 0), `status`,
    `last_error` (type and message of the last failure), `failure_reason`,
    `created_at`, `started_at`, `finished_at` (aware, UTC), `result` (None until
    it succeeded), `worker` (who runs it, or ran it last), `cron` (the cron
    task it came from), `progress` (what its attempt said last of how far it has
    come; see `Run.progress`). Publishing a task with one of these set is error 1003:
    `again()` gives an unpublished copy.
    """

    queue: str
    type: str
    payload: P_co
    id: str = ""
    key: str | None = None
    headers: Mapping[str, str] = attrs.field(default=NO_HEADERS, converter=_headers)
    delay: float = 0.0
    timeout: float | None = None
    max_retry: int | None = None
    priority: Priority = Priority.NORMAL
    tags: tuple[str, ...] = ()
    unique: Unique | None = None
    attempt: int = 0
    status: TaskStatus = TaskStatus.PENDING
    last_error: str | None = None
    failure_reason: FailureReason | None = None
    created_at: datetime | None = None
    available_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    result: R_co | None = None
    worker: str | None = None
    cron: str | None = None
    progress: Progress | None = None
    declared: TaskType[P_co, R_co] | None = attrs.field(default=None, eq=False, repr=False)

    def again(self) -> QueueTask[P_co, R_co]:
        """An unpublished copy: same address, payload and options, no id and no history.

        It is due at once: `delay` and `available_at` are of the one publishing,
        and are not copied. For a later one, `attrs.evolve(task.again(), delay=60.0)`.
        Nor has it a `unique` if this task was read from the storage, which keeps only
        a hash of it: give it anew.
        """
        return QueueTask(
            queue=self.queue,
            type=self.type,
            payload=self.payload,
            key=self.key,
            headers=self.headers,
            timeout=self.timeout,
            max_retry=self.max_retry,
            priority=self.priority,
            tags=self.tags,
            unique=self.unique,
            declared=self.declared,
        )

    def __hash__(self) -> int:
        # Of what can always be hashed: payloads may be mutable, and headers are a mapping.
        return hash((self.queue, self.type, self.id))

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles go through here, and neither takes a read-only view.
        return {**self.__dict__, "headers": dict(self.headers)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, headers=_headers(state["headers"]))

    def __repr__(self) -> str:
        parts = [f"{self.queue}/{self.type}", f"{self.id or 'unpublished'}", f"{self.status}"]  # whatever they are
        if self.attempt:
            parts.append(f"attempt={self.attempt}")
        if self.key is not None:
            parts.append(f"key={self.key!r}")
        if self.last_error:
            parts.append(f"last_error={shown(self.last_error)}")
        return f"<QueueTask {' '.join(parts)}>"


_new: Final = object.__new__
_fill: Final = object.__setattr__


PLAIN: Final[dict[str, Any]] = {
    field.name: None if field.default is attrs.NOTHING else field.default
    for field in attrs.fields(QueueTask)
}
"""The fields of a task without options."""


def task_of(fields: dict[str, Any]) -> QueueTask[Any, Any]:
    """A task of all its fields, which the caller has checked and hands over.

    The frozen class assigns its fields one by one, each through a function call;
    three tasks are made on the way of each, and this takes a third of the time.
    """
    task = _new(QueueTask)
    _fill(task, "__dict__", fields)
    return task


def id_of(what: str, task: object) -> str:
    """The id of a task, or the id given. Raises InvalidQueueTaskError for anything else, and for none."""
    if not isinstance(task, str | QueueTask):
        raise InvalidQueueTaskError(f"{what}: expected a task or its id, got {shown(task)}")
    found = task if isinstance(task, str) else task.id
    if not found:
        raise InvalidQueueTaskError(f"{what}: this task was never published; give what publish() returned")
    return found


Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
"""A pure function from one version's JSON object to the next's."""


class TaskType(Generic[P, R]):
    """The typed address of a kind of work: queue, type, payload class, result class.

    Declare it once and use it on both sides::

        WELCOME = TaskType("email", "welcome", Welcome)

        consumer.register_handler(WELCOME, send_welcome)
        await publisher.publish(WELCOME(Welcome("ada@example.org"), delay=60))

    Types are meant to be few: a database keeps a place for each, for ever. What
    differs from task to task belongs in the payload, `tags` or `key`.

    `payload` is an attrs class (or a dataclass). `result` is the class of what
    the handler returns, or a type such as `Receipt | None` or `list[Receipt]`;
    without it a handler returns None. Type checkers take a union and an alias for Any,
    unless the declaration says what it is: `MAYBE: TaskType[Order, Receipt | None] =
    TaskType("orders", "maybe", Order, Receipt | None)`. `version` is that of
    the payload class; a task stored under an older one passes the `upcasters`,
    `{1: v1_to_v2, 2: v2_to_v3}`, each a pure function on the JSON object. A
    task of a newer version than this process knows is left for one that knows.

    Raises InvalidTaskTypeError (1008) or InvalidQueueNameError (1006).
    """

    __slots__ = ("payload", "queue", "result", "type", "upcasters", "version")

    queue: str
    type: str
    payload: builtins.type[P]
    result: builtins.type[R] | None
    version: int
    upcasters: Mapping[int, Upcaster]

    @overload
    def __init__(
        self: TaskType[P0, None],
        queue: str,
        type: str,
        payload: builtins.type[P0],
        result: None = None,
        *,
        version: int = 1,
        upcasters: Mapping[int, Upcaster] | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        queue: str,
        type: str,
        payload: builtins.type[P],
        result: builtins.type[R],
        *,
        version: int = 1,
        upcasters: Mapping[int, Upcaster] | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self: TaskType[P0, Any],
        queue: str,
        type: str,
        payload: builtins.type[P0],
        result: UnionType | Alias,
        *,
        version: int = 1,
        upcasters: Mapping[int, Upcaster] | None = None,
    ) -> None: ...

    def __init__(
        self,
        queue: str,
        type: str,  # noqa: A002 - the field's name, in Go and here
        payload: builtins.type[Any],
        result: builtins.type[Any] | UnionType | Alias | None = None,
        *,
        version: int = 1,
        upcasters: Mapping[int, Upcaster] | None = None,
    ) -> None:
        self.queue = check_name(queue, "queue name", InvalidQueueNameError)
        self.type = check_name(type, f"queue {queue!r}: task type", InvalidTaskTypeError)
        where = f"task type {queue}/{type}"
        if not isinstance(payload, builtins.type) and _is_type(payload):
            raise InvalidTaskTypeError(
                f"{where}: payload must be a class of its own, got {shown(payload)}; make one with a field of that type"
            )
        if not isinstance(payload, builtins.type):
            raise InvalidTaskTypeError(
                f"{where}: payload must be a class, such as an attrs class, got {shown(payload)}"
            )
        if not (result is None or _is_type(result)):
            raise InvalidTaskTypeError(
                f"{where}: result must be a class, a type such as list[Receipt], or None, got {shown(result)}"
            )
        if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= MAX_COUNT:
            raise InvalidTaskTypeError(
                f"{where}: version must be a whole number from 1 to {MAX_COUNT}, got {shown(version)}"
            )
        self.payload = payload
        self.result = cast("builtins.type[R] | None", result)
        self.version = version
        self.upcasters = MappingProxyType(_upcasters(where, version, {} if upcasters is None else upcasters))

    @property
    def address(self) -> tuple[str, str]:
        """The pair (queue, type)."""
        return self.queue, self.type

    def __call__(self, payload: P, **options: Unpack[TaskOptions]) -> QueueTask[P, R]:
        """A task of this type, not yet published; `options` are fields of `QueueTask`."""
        if options:
            return QueueTask(queue=self.queue, type=self.type, payload=payload, declared=self, **options)
        fields = PLAIN.copy()
        fields["queue"] = self.queue
        fields["type"] = self.type
        fields["payload"] = payload
        fields["declared"] = self
        return task_of(fields)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TaskType):
            return NotImplemented
        return self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self.address)

    def __reduce__(self) -> tuple[Any, ...]:
        # The upcasters are a read-only view, which can be neither copied nor pickled.
        make = partial(TaskType[Any, Any], version=self.version, upcasters=dict(self.upcasters))
        return make, (self.queue, self.type, self.payload, self.result)

    def _identity(self) -> tuple[object, ...]:
        return (self.queue, self.type, self.payload, self.result, self.version, self.upcasters)

    def __repr__(self) -> str:
        result = "" if self.result is None else f" -> {_type_name(self.result)}"
        return f"<TaskType {self.queue}/{self.type} {self.payload.__name__}{result}>"


def _upcasters(where: str, version: int, given: object) -> dict[int, Upcaster]:
    """A copy, if there is a sync function from each older version to the next and from no other."""
    if not isinstance(given, Mapping):
        raise InvalidTaskTypeError(
            f"{where}: upcasters must be a mapping such as {{1: v1_to_v2}}, of versions to functions, got {shown(given)}"
        )
    upcasters = dict(cast("Mapping[Any, Any]", given))
    for old in upcasters:
        if isinstance(old, bool) or not isinstance(old, int) or old < 1:
            raise InvalidTaskTypeError(f"{where}: upcasters are from versions 1, 2, ..., got one from {shown(old)}")
    newest = max(upcasters, default=0)
    if newest >= version:  # it would never run: most likely version= was forgotten
        raise InvalidTaskTypeError(
            f"{where}: there is an upcaster from version {newest}, but version is {version}; raise it to {newest + 1}"
        )
    for old, upcaster in upcasters.items():
        if not callable(upcaster) or is_async(upcaster) or is_generator(upcaster):
            raise InvalidTaskTypeError(
                f"{where}: the upcaster from version {old} must be a sync function of a dict, got {shown(upcaster)}"
            )
    missing = set(range(1, version)) - set(upcasters)
    if upcasters and missing:
        raise InvalidTaskTypeError(
            f"{where}: version {version} needs an upcaster from each older version, "
            f"missing {', '.join(map(str, sorted(missing)))}"
        )
    return upcasters


def _is_type(given: object) -> bool:
    """Whether `given` is a class or a typing form; the codec, above, knows which of them can be stored."""
    return isinstance(given, type | NewType) or is_alias(given) or get_origin(given) is not None


def _type_name(given: object) -> str:
    return given.__name__ if isinstance(given, type) else str(given)
