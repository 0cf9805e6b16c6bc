"""Cron tasks as their users make and see them: `CronTask`, live, and `CronEntry`, declared."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Unpack, cast

import attrs

from dispatch.callables import is_generator, unwrapped
from dispatch.checks import shown
from dispatch.cron.fields import refuse
from dispatch.cron.policy import CronOptions, CronPolicy, shared
from dispatch.cron.spec import CronSpec
from dispatch.errors import CronNameConflictError, InvalidConfigError, InvalidTaskHandlerError
from dispatch.handlers import parameters_of
from dispatch.tasks import QueueTask, TaskType, check_name

__all__ = [
    "CronEntry",
    "CronTask",
    "What",
    "check_cron_name",
    "check_function",
    "check_made",
    "check_not_over",
    "check_template",
    "made_spec",
    "made_task",
    "taken",
]

What = Callable[[], Awaitable[object]] | Callable[[], object] | QueueTask[Any, Any]
"""What a cron task does: an async function, a sync one (in a thread), or a task to publish."""


@attrs.define(eq=False)
class CronTask:
    """A named cron task, live: `func` may be replaced, and its next run uses the new one.

    It has either a function, `func`, or what each tick publishes, `task`; of an entry
    that was read from the storage that is a copy without `unique`, of which only a
    hash is kept, and changing it changes nothing. Live is the one that `add`,
    `add_task`, `get_task` and `tasks` answer, until another definition takes its place.

    `total` counts the runs begun here, for a stored entry the tasks published
    anywhere. `err_count` counts the runs that raised, for a stored entry the
    ticks that could not be published from here; `last_error` is the latest of
    these. How the published tasks ended is asked of the control:
    `control.count(Crons(name), by=("status",))`. `running` is how many runs of
    a function are going on here. `last` is the last tick decided, `next` the
    next one, both aware; `next` is None when none is left.
    """

    name: str = ""
    func: Callable[[], Any] | None = None
    description: str = ""
    task: QueueTask[Any, Any] | None = None
    spec: CronSpec | None = attrs.field(default=None, kw_only=True)
    policy: CronPolicy = attrs.field(factory=CronPolicy, kw_only=True)
    declared: bool = attrs.field(default=False, kw_only=True)
    """Declared in code, for `open_dispatcher(cron=[...])`, and stored."""
    total: int = attrs.field(default=0, init=False)
    err_count: int = attrs.field(default=0, init=False)
    last_error: str | None = attrs.field(default=None, init=False)
    paused_reason: str | None = attrs.field(default=None, init=False)
    last: datetime | None = attrs.field(default=None, init=False)
    next: datetime | None = attrs.field(default=None, init=False)
    running: int = attrs.field(default=0, init=False)

    @property
    def paused(self) -> bool:
        """Whether it is paused; why is in `paused_reason`."""
        return self.paused_reason is not None

    def __repr__(self) -> str:
        text = self.spec.text if self.spec is not None else "not added"
        state = " paused" if self.paused else ""
        return f"<CronTask {self.name!r} {text!r}{state} total={self.total} errors={self.err_count}>"


class CronEntry:
    """A cron task declared in code, for `open_dispatcher(cron=[...])`.

        CronEntry("30 2 * * *", "nightly", NIGHTLY(Report("sales")), zone="Europe/Berlin")

    It takes what `add_with_name` takes, with the same options. Its plan, its
    policies, its function and whether its task may be one of many are checked at
    once; the task itself, as `publish` checks one, when the dispatcher is opened.
    Immutable. A function is added to each process that declares it. A
    queue task becomes a stored entry that belongs to the code: a new
    definition replaces the stored one when a process with it starts, living
    processes renew it, and one that none has declared for an hour is paused.
    One whose `end` has passed is kept, and does not fire: no deploy fails for it.

    Raises InvalidCronSpecError (1014), InvalidTaskHandlerError (1009) and
    InvalidConfigError (1012); opening raises InvalidQueueTaskError (1003),
    InvalidQueueNameError (1006), InvalidTaskTypeError (1008), InvalidQueuePayloadError
    (1010), and CronNameConflictError (1015) for a name that is taken.
    """

    __slots__ = ("description", "name", "policy", "spec", "what")

    spec: CronSpec
    name: str
    what: What
    policy: CronPolicy
    description: str

    def __init__(
        self, spec: str | CronSpec, name: str, what: What, **options: Unpack[CronOptions]
    ) -> None:
        made = made_task(spec, name, what, options)
        assert made.spec is not None
        write = object.__setattr__
        write(self, "spec", made.spec)
        write(self, "name", name)
        write(self, "what", what)
        write(self, "policy", made.policy)
        write(self, "description", made.description)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a CronEntry is immutable; make another one with its {name} changed")

    def __setstate__(self, state: tuple[object, dict[str, object]]) -> None:
        # For copies and pickles, which would set the slots one by one.
        for name, value in state[1].items():
            object.__setattr__(self, name, value)

    def task(self) -> CronTask:
        """A `CronTask` of this entry, yet to be added."""
        func, task = _parted(self.what)
        return CronTask(
            self.name,
            func,
            self.description,
            task,
            spec=self.spec,
            policy=self.policy,
            declared=task is not None,
        )

    def __repr__(self) -> str:
        return f"CronEntry({self.spec.text!r}, {self.name!r}, {self.what!r}, zone={self.spec.zone!r})"


def made_task(
    spec: str | CronSpec, name: str, what: What, options: CronOptions, *, generated: bool = False
) -> CronTask:
    """A `CronTask` to be added, checked as far as it can be without a storage; refusals keep a `generated` name to themselves."""
    check_cron_name(name)
    who = _who("" if generated else name)
    given: dict[str, Any] = dict(options)
    known = set(CronOptions.__annotations__)
    unknown = given.keys() - known
    if unknown:
        raise InvalidConfigError(
            f"cron: unknown option {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}"
        )
    policies = {field.name for field in attrs.fields(CronPolicy)}
    policy = shared(CronPolicy(**{key: given.pop(key) for key in list(given) if key in policies}))
    description = given.pop("description", "")
    if not isinstance(description, str):
        raise InvalidConfigError(f"{who}: description must be a str, got {shown(description)}")
    func, task = _parted(what)
    if task is None:
        check_function(who, func)
    else:
        check_template(who, task)
    return CronTask(name, func, description, task, spec=made_spec(spec, name, given, who), policy=policy)


def _who(name: str) -> str:
    return f"cron task {name!r}" if name else "a cron task without a name"


def made_spec(spec: str | CronSpec, name: str, options: dict[str, Any], who: str = "cron") -> CronSpec:
    """The spec given, or that of a text and its options."""
    if not isinstance(spec, CronSpec):
        zone, dst = options.pop("zone", "UTC"), options.pop("dst", "vixie")
        return CronSpec(spec, zone, dst, name=name, **options)
    if options:
        raise InvalidConfigError(
            f"{who}: {', '.join(sorted(options))} belongs to the CronSpec given; set it there"
        )
    return spec


def _parted(what: What) -> tuple[Callable[[], Any] | None, QueueTask[Any, Any] | None]:
    if isinstance(what, QueueTask):
        return None, cast("QueueTask[Any, Any]", what)
    return what, None


def taken(name: str) -> CronNameConflictError:
    """The error of a name that another cron task has."""
    return CronNameConflictError(
        f"a different cron task is named {name!r}; pass replace=True to replace it, or cancel it first"
    )


def check_cron_name(name: object) -> None:
    """Raise InvalidConfigError for what cannot be the name of a cron task."""
    check_name(name, "cron task name", cast("Any", InvalidConfigError))


def check_made(task: object) -> None:
    """Raise unless it is a `CronTask`, not added yet, with a function or a task to publish that will do."""
    if not isinstance(task, CronTask):
        raise InvalidTaskHandlerError(
            f"cron: add_task takes a CronTask, got {shown(task)}; add and add_with_name take a function or a task itself"
        )
    if task.spec is not None:
        raise InvalidConfigError(f"cron: {task!r} was added already; make another CronTask")
    if task.name:
        check_cron_name(task.name)
    who = _who(task.name)
    if task.func is not None and task.task is not None:
        raise InvalidTaskHandlerError(
            f"{who}: has both a function and a task to publish; make a CronTask of each"
        )
    if not isinstance(task.description, str):
        raise InvalidConfigError(f"{who}: description must be a str, got {shown(task.description)}")
    given = cast("object", task.task)
    if isinstance(given, QueueTask):
        check_template(who, cast("QueueTask[Any, Any]", given))
    else:
        check_function(who, task.func if given is None else given)


def check_function(who: str, function: object) -> None:
    """Raise InvalidTaskHandlerError for what cannot be called without arguments."""
    if not callable(function):
        raise InvalidTaskHandlerError(
            f"{who}: needs a function of no arguments or a QueueTask, got {function!r}"
        )
    if isinstance(unwrapped(function), TaskType):
        inner = cast("TaskType[Any, Any]", unwrapped(function))
        raise InvalidTaskHandlerError(
            f"{who}: got the task type {inner.queue}/{inner.type} itself; call it with its payload, "
            f"as in WELCOME({inner.payload.__name__}(...)), for a task to publish"
        )
    if is_generator(function):
        raise InvalidTaskHandlerError(f"{who}: its function is a generator, of which nothing would run")
    try:
        parameters = parameters_of(function)
    except (TypeError, ValueError):
        return
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in variable]
    if needed:
        decorated = ""
        if hasattr(function, "__wrapped__"):  # which shows what it wraps, and may give that what it needs
            decorated = ", or, if its decorator gives them, call it in a function of its own: async def job(): await decorated()"
        raise InvalidTaskHandlerError(
            f"{who}: its function must need no arguments, but needs ({', '.join(needed)}); "
            f"bind them with functools.partial{decorated}"
        )


def check_template(who: str, task: QueueTask[Any, Any]) -> None:
    """Raise InvalidConfigError for a task with options that cannot hold for every tick's."""
    if task.id:
        raise InvalidConfigError(
            f"{who}: its task has the id {task.id!r}, but each tick publishes one with an id "
            "of its own; leave the id out"
        )
    if task.available_at is not None:
        raise InvalidConfigError(
            f"{who}: its task has available_at={task.available_at.isoformat()}, but each tick "
            "has its own moment; leave it out, or give a delay after the tick"
        )


def check_not_over(spec: CronSpec, now: datetime) -> None:
    """Raise InvalidCronSpecError for a spec that has no moment after `now`."""
    if spec.next(now) is None:
        field = None if spec.end is None else "end"
        refuse(spec.text, field, f"it never fires any more: no moment of it lies after {now.isoformat(sep=' ')}")
