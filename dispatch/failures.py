"""An exception as bounded text: what is stored and logged of a failed attempt.

Errors are kept as text and never rebuilt. Nothing an exception does while it is
being described (a `__str__` that raises, a message of megabytes, a group nested
a thousand deep) may disturb the worker.
"""

from __future__ import annotations

import os
import traceback
from typing import Any, Final, cast

import trio

__all__ = ["describe", "parted", "traceback_text"]

MESSAGE_LIMIT: Final = 1_000
TRACEBACK_LIMIT: Final = 3_000
_PACKAGE: Final = f"{os.path.dirname(os.path.abspath(__file__))}{os.sep}"


def describe(error: BaseException) -> str:
    """Type and message in one bounded line, control characters escaped."""
    kind = type(error).__qualname__
    try:
        message = str(error)
    except BaseException as broken:  # noqa: BLE001 - a __str__ may raise anything at all
        message = f"<its message cannot be read: {type(broken).__qualname__}>"
    if not message:
        return kind
    return f"{kind}: {_printable(message[:MESSAGE_LIMIT])}{' ...' if len(message) > MESSAGE_LIMIT else ''}"


def _printable(text: str) -> str:
    """Control characters would forge log lines; lone surrogates cannot be stored."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
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


def parted(error: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """What must go on propagating (Cancelled, KeyboardInterrupt), and what is a failure.

    A handler's child may fail *while* being cancelled, which gives a group of
    an error and a Cancelled; both halves count.
    """
    passing = (trio.Cancelled, KeyboardInterrupt)
    if isinstance(error, passing):
        return error, None
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[Any]", error)
        try:
            return group.split(passing)
        except RecursionError:
            pass  # nested absurdly deep: a failure like any other
    return None, cast("BaseException", error)
