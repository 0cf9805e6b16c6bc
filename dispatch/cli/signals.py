"""Signals: the first asks for a graceful end, the second for an immediate one, a third takes it."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

import trio

__all__ = ["FORCE_S", "signals"]

LATE: Final = b"something swallows its cancellation or holds the thread"
THIRD: Final = b"a third signal"
LEFT: Final = (
    b"dispatch: %b: the process is left as it is; "
    b"what runs is run again when its lease is over, or is a dead letter if no retry is left\n"
)
FORCE_S: Final = 2.0
"""How long the immediate end may take before the process is left as it is."""
SAY_S: Final = 0.2
"""And how long saying so: standard error may be a pipe that nobody reads."""


@contextmanager
def signals(
    gracefully: Callable[[], None], at_once: Callable[[], None], *, hangup: bool = False
) -> Generator[None]:
    """Call `gracefully` on the first SIGINT or SIGTERM, `at_once` on the second.

    Both are called on the trio thread. If the block is not left within
    `FORCE_S` after the second, or on a third, the process exits with status 1:
    a handler that swallows its cancellation, or blocks the loop, keeps neither.
    With `hangup`, SIGHUP is a first signal, too, unless it is ignored, as by
    nohup; never a second one, for a terminal that is closed may send several.
    """
    token = trio.lowlevel.current_trio_token()
    count = 0
    timer = threading.Timer(FORCE_S, _leave, (LATE,))
    timer.daemon = True

    # A plain handler and no `open_signal_receiver`, whose loop a handler may block.
    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal count
        if number == signal.SIGHUP and count:
            return
        count += 1
        if count == 1:
            token.run_sync_soon(gracefully)
        elif count == 2:
            timer.start()
            token.run_sync_soon(at_once)
        else:
            _leave(THIRD)

    caught = [signal.SIGINT, signal.SIGTERM]
    if hangup and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        caught.append(signal.SIGHUP)
    before = [signal.signal(each, handle) for each in caught]
    try:
        yield
    finally:
        for each, handler in zip(caught, before, strict=True):
            signal.signal(each, handler)
        timer.cancel()


def _leave(why: bytes) -> None:
    with suppress(OSError, ValueError):
        # No stream and no logging, whose locks the main thread may hold; and only if there was
        # a standard error, else 2 is a file of the program's.
        if sys.__stderr__ is not None:
            there = sys.__stderr__.fileno()
            if select.select((), (there,), (), SAY_S)[1]:
                os.write(there, LEFT % why)
    os._exit(1)
