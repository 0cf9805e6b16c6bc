"""An exception as bounded text: what is stored and logged of a failed attempt.

Errors are kept as text and never rebuilt. Nothing an exception does while it is
being described (a `__str__` that raises, a message of megabytes, a group nested
a thousand deep) may disturb the worker.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from math import inf
from typing import Any, Final, cast

import trio

from dispatch.errors import leaves

__all__ = ["LEFT_OPEN", "describe", "enclosed", "interrupt_in", "is_cancelled", "parted", "printable", "surroundings", "traceback_text"]

LEFT_OPEN: Final = (
    "%s left a cancel scope or a nursery open when %s ended, and it is closed now; is there a yield inside one? "
    "Close such a generator with: async with aclosing(...)"
)
MESSAGE_LIMIT: Final = 1_000
LEAVES: Final = 5
TRACEBACK_LIMIT: Final = 3_000
_PACKAGE: Final = f"{os.path.dirname(os.path.abspath(__file__))}{os.sep}"


def describe(error: BaseException) -> str:
    """Type and message, bounded, control characters escaped; it keeps its lines, which a log must not.

    Of a group, such as a nursery's, then those of the first few exceptions in it.
    """
    text = _told(error, MESSAGE_LIMIT)
    if not isinstance(error, BaseExceptionGroup):
        return text
    inner = list(leaves(cast("BaseExceptionGroup[Any]", error)))
    told = [_told(each, MESSAGE_LIMIT // LEAVES) if len(inner) > 1 else _told(each, MESSAGE_LIMIT) for each in inner[:LEAVES]]
    more = f"; and {len(inner) - LEAVES} more" if len(inner) > LEAVES else ""
    return f"{text}: {'; '.join(told)}{more}"


def _told(error: BaseException, limit: int) -> str:
    kind = type(error).__qualname__
    try:
        message = str(error)
    except BaseException as broken:  # noqa: BLE001 - a __str__ may raise anything at all
        message = f"<its message cannot be read: {type(broken).__qualname__}>"
    if not message:
        return kind
    told = printable(message[:limit], keep="\n")
    return f"{kind}: {told}{' ...' if len(message) > limit else ''}"


def printable(text: str, keep: str = "") -> str:
    """The text with everything unprintable but `keep` escaped as Python would write it.

    Control characters, a newline among them, would forge log lines; lone surrogates
    cannot be stored.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode()
        for char in text
    )


def traceback_text(error: BaseException) -> str:
    """The traceback with causes, bounded; its end, which names the line at fault, is kept."""
    try:
        told = traceback.TracebackException.from_exception(
            error, limit=-12, max_group_width=5, max_group_depth=5, compact=True
        )
        _drop_our_frames(told)
        lines = told.format()
        text = "".join(line[:MESSAGE_LIMIT] for line in lines)
    except BaseException as broken:  # noqa: BLE001 - formatting runs the exception's own code
        return f"<its traceback cannot be formatted: {type(broken).__qualname__}>"
    if len(text) > TRACEBACK_LIMIT:
        text = f"... {text[-TRACEBACK_LIMIT:]}"
    return text.encode("utf-8", "backslashreplace").decode()


def _drop_our_frames(told: traceback.TracebackException) -> None:
    """Leave out the frames of this package that lead to the handler's own."""
    told.stack = traceback.StackSummary.from_list(
        [frame for frame in told.stack if not frame.filename.startswith(_PACKAGE)] or told.stack
    )


def parted(
    error: BaseException, around: object = None
) -> tuple[BaseException | None, BaseException | None]:
    """What must go on propagating (Cancelled, KeyboardInterrupt), and what is a failure.

    A handler's child may fail *while* being cancelled, which gives a group of
    an error and a Cancelled; both halves count.

    Given what was `around` the function that failed, a Cancelled is a failure as well
    if nothing there is cancelled. Kept and raised again, or of a cancel scope left open,
    it is no scope's: let on, it would quietly end the nursery that it reaches.
    """
    passing, failed = _split(error, (trio.Cancelled, KeyboardInterrupt))
    if passing is None or around is None or is_cancelled(around):
        return passing, failed
    interrupts, stray = _split(passing, (KeyboardInterrupt,))
    if failed is None and stray is not None:
        text = "Cancelled was raised, but nothing around it was cancelled; was it kept, or a scope left open by `yield`?"
        failed = RuntimeError(text).with_traceback(stray.__traceback__)
    return interrupts, failed


def _split(
    error: BaseException, kinds: tuple[type[BaseException], ...]
) -> tuple[BaseException | None, BaseException | None]:
    """The part of these kinds, and the rest."""
    if isinstance(error, kinds):
        return error, None
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[Any]", error)
        try:
            found, rest = group.split(kinds)
            return (None, group) if found is None else (found, rest)
        except RecursionError:
            pass  # nested absurdly deep: a failure like any other
    return None, cast("BaseException", error)


def interrupt_in(group: BaseExceptionGroup[BaseException]) -> KeyboardInterrupt | None:
    """The Ctrl-C that a group is made of, if nothing else is in it."""
    found, rest = _split(group, (KeyboardInterrupt,))
    if rest is not None:
        return None
    while isinstance(found, BaseExceptionGroup):
        found = cast("BaseExceptionGroup[BaseException]", found).exceptions[0]
    return found if isinstance(found, KeyboardInterrupt) else None


def surroundings() -> object:
    """What is open around this trio task: the same object later, if nothing was left open since.

    trio's own record of its innermost cancel scope, the only one that tells. It is
    private; should it be gone one day, this is None, and nothing is noticed any more.
    """
    return getattr(trio.lowlevel.current_task(), "_cancel_status", None)


def is_cancelled(around: object) -> bool:
    """Whether a scope of these surroundings, or further out, is cancelled."""
    known = getattr(around, "effectively_cancelled", None)
    return bool(trio.current_effective_deadline() == -inf if known is None else known)


def _abandon_nurseries() -> None:
    """Cancel what is left open in this trio task, which would be an error at its end; none of ours is there."""
    task = trio.lowlevel.current_task()
    for nursery in task.child_nurseries:
        nursery.cancel_scope.cancel()
    getattr(task, "_child_nurseries", []).clear()


@contextmanager
def enclosed(scope: trio.CancelScope) -> Generator[object]:
    """Enter `scope`, and answer with the surroundings in it; scopes left open in there end with it.

    trio closes them then, whose nurseries are cancelled before, and objects by a
    RuntimeError, which goes no further: of the task alone that it stands in, it
    says nothing that matters to others.
    """
    left_open = False
    try:
        with scope:
            around = surroundings()
            try:
                yield around
            finally:
                left_open = surroundings() is not around
                if left_open:
                    _abandon_nurseries()
    except RuntimeError as exc:
        if not left_open:
            raise
        passing = exc.__context__  # what was on its way through
        if passing is not None and scope.cancel_called and not is_cancelled(surroundings()):
            passing = _split(passing, (trio.Cancelled,))[1]  # which the scope would have kept
        if passing is not None:
            raise passing from None
