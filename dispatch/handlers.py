"""What a handler is, and the check of one when it is registered."""

from __future__ import annotations

import inspect
import typing
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import AsyncContextDecorator, ContextDecorator
from typing import Any, Final, TypeVar

import attrs

from dispatch.callables import is_async, is_generator, is_middleware, unwrapped
from dispatch.checks import shown
from dispatch.errors import InvalidConfigError, InvalidQueuePayloadError, InvalidTaskHandlerError
from dispatch.run import Run
from dispatch.tasks import QueueTask, TaskType

__all__ = [
    "Handler",
    "HandlerEntry",
    "Middleware",
    "Next",
    "bind",
    "check_middleware",
    "check_no_result",
    "parameters_of",
    "payload_class",
]

P = TypeVar("P")
R = TypeVar("R")

Handler = (
    Callable[[QueueTask[P, R]], Awaitable[R]]
    | Callable[[QueueTask[P, R], Run], Awaitable[R]]
)
"""An async handler of `(task)` or `(task, run)`. A sync one returns R itself."""

Next = Callable[[QueueTask[Any, Any], Run], Awaitable[Any]]
"""What a middleware calls to go on, `await call_next(task, run)`: the next one, or the handler; answers its result."""
Middleware = Callable[[QueueTask[Any, Any], Run, Next], Awaitable[Any]]
"""`async (task, run, call_next) -> result`, around every attempt, inside its scope."""


@attrs.frozen
class HandlerEntry:
    """A checked handler: the function, and how it wants to be called."""

    task_type: TaskType[Any, Any]
    function: Callable[..., Any]
    is_async: bool
    wants_run: bool
    name: str


def bind(task_type: TaskType[Any, Any], function: object) -> HandlerEntry:
    """Check a handler's arity and kind, and that it is not annotated for another payload.

    Raises InvalidTaskHandlerError (1009) that says what it takes and should take.
    """
    where = f"handler of {task_type.queue}/{task_type.type}"
    if not callable(function):
        raise InvalidTaskHandlerError(f"{where}: must be a function of (task) or (task, run), got {function!r}")
    name = _name(function)
    inner = unwrapped(function)
    if is_generator(function):
        raise InvalidTaskHandlerError(f"{where}: {name} is a generator; a handler must not yield")
    if isinstance(inner, type) and task_type.result is None and not issubclass(inner, Awaitable):
        raise InvalidTaskHandlerError(f"{where}: {name} is a class, of which only an instance would be made; register one")
    entry = HandlerEntry(task_type, function, is_async(function), _wants_run(function, where, name), name)
    _check_annotation(entry, where)
    return entry


def check_no_result(value: object, where: str) -> None:
    """Refuse what a handler without a result cannot have meant to return; other values mean nothing.

    Raises InvalidQueuePayloadError (1010) for an exception, and for what was made and
    never run; such a coroutine is closed. `where` opens the message.
    """
    kind = type(value).__name__
    if inspect.iscoroutine(value) and inspect.getcoroutinestate(value) == inspect.CORO_CREATED:
        value.close()
    if isinstance(value, BaseException):
        problem = f"got {kind} as a value; raise it"
    elif isinstance(value, Generator | AsyncGenerator | ContextDecorator | AsyncContextDecorator):
        problem = f"got {kind}, which was never run; a handler must not yield"
    elif isinstance(value, Awaitable):
        problem = f"got {kind}, which was never run; await it"
    else:
        return
    raise InvalidQueuePayloadError(f"{where}: $: {problem}", "$")


def check_middleware(middleware: Iterable[Middleware]) -> tuple[Middleware, ...]:
    """The middleware, outermost first. Raises InvalidConfigError for what is no async function."""
    if not isinstance(middleware, Iterable):
        raise InvalidConfigError(
            f"middleware must be a collection of async functions, got {shown(middleware)}; write [{shown(middleware)}]"
        )
    several = tuple(middleware)
    for each in several:
        if not is_middleware(each):
            raise InvalidConfigError(f"middleware must be async functions of (task, run, call_next), got {shown(each)}")
    return several


def _name(function: Callable[..., Any]) -> str:
    inner = unwrapped(function)
    return str(getattr(inner, "__qualname__", None) or type(inner).__qualname__)


def _check_annotation(entry: HandlerEntry, where: str) -> None:
    """Refuse a first argument that says it is no task, or one of another payload; every task would fail.

    Where nothing certain is said, as by a type variable or around a decorator, nothing is asked.
    """
    if hasattr(unwrapped(entry.function), "__wrapped__"):
        return
    first, second = (*_annotations(entry.function), None, None)[:2]
    annotation: Any = first
    payload: Any = typing.get_args(annotation)[0] if typing.get_origin(annotation) is QueueTask else None
    wanted = entry.task_type.payload
    if _is_none_of(payload, wanted):
        raise InvalidTaskHandlerError(
            f"{where}: {entry.name} takes QueueTask[{payload.__qualname__}], but the payload of the task type is "
            f"{wanted.__qualname__}; use one class on both sides"
        )
    if _is_none_of(annotation, QueueTask):
        raise InvalidTaskHandlerError(
            f"{where}: {entry.name} takes {annotation.__qualname__}, but a handler is given the task: annotate it as "
            f"QueueTask[{wanted.__qualname__}], and find the payload in task.payload"
        )
    if entry.wants_run and (typing.get_origin(second) is QueueTask or _is_none_of(second, Run)):
        raise InvalidTaskHandlerError(
            f"{where}: the second argument of {entry.name} is a {shown(second)}, but a handler is given (task, run) with a Run; "
            "register a method of an object, and bind others with functools.partial"
        )


def _annotations(function: Callable[..., Any]) -> list[Any]:
    """What the arguments are annotated with; None for nothing, and for what cannot be read."""
    try:
        hints = typing.get_type_hints(_annotated(function))
        return [hints.get(each.name) for each in parameters_of(function)]
    except Exception:  # noqa: BLE001 - an annotation is code of anybody's
        return []


def _annotated(function: Callable[..., Any]) -> Any:
    inner = unwrapped(function)
    # Not whatever has annotations: those of an object are its class's fields.
    return inner if inspect.isroutine(inner) or hasattr(inner, "__code__") else type(inner).__call__


def _is_none_of(annotation: Any, given: type[Any]) -> bool:
    """Whether the annotation is a class, and certainly not one of what is given."""
    if annotation in (float, complex):  # which an int stands for, too, to type checkers
        return False
    try:
        return annotation is not Any and isinstance(annotation, type) and not issubclass(given, annotation)
    except TypeError:  # a protocol, for one, may not say
        return False


def parameters_of(function: Callable[..., Any]) -> Sequence[inspect.Parameter]:
    """What it can be called with. Raises TypeError or ValueError for builtins that do not say.

    `functools.wraps` gives a wrapper the signature of what it wraps. That one counts
    only where the wrapper hands on whatever it is given: one that adds an argument
    is called by its own.
    """
    return _parameters(function)[0]


def _parameters(function: Callable[..., Any]) -> tuple[Sequence[inspect.Parameter], bool]:
    """`parameters_of` it, and whether they are those of what it wraps."""
    own = tuple(inspect.signature(function, follow_wrapped=False).parameters.values())
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in own):
        return tuple(inspect.signature(function).parameters.values()), hasattr(_annotated(function), "__wrapped__")
    return own, False


POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _left_to_give(function: Callable[..., Any]) -> Sequence[inspect.Parameter]:
    """`parameters_of` a handler, but for what its decorator gives by itself, as a session before the task.

    A wrapper of `(*args)` shows that, too. The annotations tell: it stands before the task, or
    after it and is certainly no Run.
    """
    parameters, are_inner = _parameters(function)
    hints = _annotations(function) if are_inner else []
    at = next((at for at, each in enumerate(hints) if QueueTask in (each, typing.get_origin(each))), None)
    if at is None:
        return parameters
    rest = zip(parameters[at + 1 :], hints[at + 1 :], strict=True)
    return [parameters[at], *(each for each, hint in rest if each.kind not in POSITIONAL or not _is_none_of(hint, Run))]


def _wants_run(function: Callable[..., Any], where: str, name: str) -> bool:
    try:
        parameters = _left_to_give(function)
    except (TypeError, ValueError):
        return False  # some builtins have no signature; they are called with the task alone
    positional = [p for p in parameters if p.kind in POSITIONAL]
    required = [p for p in positional if p.default is p.empty]
    starred = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    stuck = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if stuck or len(required) > 2 or (not positional and not starred):
        bare = [p.replace(annotation=p.empty) for p in parameters]
        takes = inspect.Signature(bare) if bare else "nothing"
        raise InvalidTaskHandlerError(f"{where}: {name} must take (task) or (task, run), but takes {takes}")
    return len(required) == 2 or (len(positional) >= 2 and positional[1].name == "run")


NO_RESULT: Final = (None, type(None), typing.NoReturn, typing.Never)
"""Return annotations, a missing one included, of handlers that give no result."""


def payload_class(queue: str, type_name: str, function: object) -> tuple[type[Any], Any]:
    """The payload class, and the result's type or None, read from a handler's annotations.

    `async def send(task: QueueTask[Welcome]) -> Receipt | None` gives Welcome
    and `Receipt | None`; whether such a result can be stored is not asked here.
    Raises InvalidTaskHandlerError (1009) where they cannot be read.
    """
    where = f"handler of {queue}/{type_name}"
    if not callable(function):
        raise InvalidTaskHandlerError(f"{where}: must be a function of (task) or (task, run), got {function!r}")
    inner = unwrapped(function)
    how = "annotate its first argument, as in (task: QueueTask[Welcome]), or register a TaskType"
    try:
        hints = typing.get_type_hints(_annotated(function))
        names = [each.name for each in _left_to_give(function) if each.name != "self"]
    except Exception as exc:
        imported = "import what they name outside of TYPE_CHECKING, or register a TaskType"
        raise InvalidTaskHandlerError(f"{where}: its annotations cannot be read ({exc}); {imported}") from exc
    annotation = hints.get(names[0]) if names else None
    if typing.get_origin(annotation) is not QueueTask or not typing.get_args(annotation):
        got = "no annotation" if annotation is None else f"{annotation!r}"
        raise InvalidTaskHandlerError(f"{where}: {_name(inner)} has {got}; {how}")
    payload = typing.get_args(annotation)[0]
    result = hints.get("return")
    if not isinstance(payload, type) and typing.get_origin(payload) is not None:
        raise InvalidTaskHandlerError(
            f"{where}: its payload must be a class of its own, got {payload!r}; make one with a field of that type"
        )
    if not isinstance(payload, type):
        raise InvalidTaskHandlerError(f"{where}: {payload!r} is not a class; {how}")
    return payload, None if result in NO_RESULT else result
