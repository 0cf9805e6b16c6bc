"""A sync handler in a thread that can be asked to stop, waited for, and abandoned.

A thread cannot be cancelled. `trio.to_thread.run_sync` either waits for it come
what may or abandons it at the first cancellation; a sync handler needs both, in
turn: asked when its attempt is cancelled (`trio.from_thread.check_cancelled`
raises in it), waited for while its lease is renewed, abandoned if it has not
ended a moment after the grace. So the wait here is abandonable, and the end of
the thread is reported through the trio token instead.

The other way round, a thread that calls what belongs to a trio run is told so by
`check_thread`, before anything changes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from threading import get_ident
from typing import Any, Final

import trio

from dispatch.errors import InvalidConfigError

__all__ = ["ASKED_S", "ThreadRun", "check_thread"]

ASKED_S: Final = 1.0
"""How long a sync function has to end once it was asked to at a shutdown, before its thread is abandoned."""


class _Nothing:
    pass


NOTHING: Final = _Nothing()


class ThreadRun:
    """One call in a thread: `await run()` once; `abandon()` stops waiting for it."""

    def __init__(self, function: Callable[[], Any], context: Context) -> None:
        self._function = function
        self._context = context
        self._ticket = [None]
        self._done = trio.Event()
        self._value: Any = NOTHING
        self._error: BaseException | None = None
        self._waiting = trio.CancelScope(shield=True)
        self.abandoned: bool = False

    async def run(self, limiter: trio.CapacityLimiter) -> Any:
        """The function's value, or its exception; a thread of `limiter`'s own.

        When cancelled, asks the thread and still waits for its end, then
        raises Cancelled if the thread ended by being asked, and otherwise
        gives its value or exception as usual: the caller's scope knows that it
        was cancelled. If abandoned meanwhile, raises Cancelled at once.
        """
        token = trio.lowlevel.current_trio_token()

        def work() -> None:
            try:
                self._ticket.pop()
            except IndexError:
                return  # cancelled before the thread began: nobody waits, so do nothing
            try:
                self._value = self._context.run(self._function)
            except BaseException as exc:  # noqa: BLE001 - carried to the trio thread, whatever it is
                self._error = exc
            finally:
                # RunFinishedError: abandoned, and the whole trio run has ended since.
                with suppress(trio.RunFinishedError):
                    token.run_sync_soon(self._done.set)

        try:
            await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter)
        except trio.Cancelled:
            try:
                self._ticket.pop()
            except IndexError:
                pass  # the thread has begun
            else:
                self._done.set()
                raise
            with self._waiting:
                await self._done.wait()
            if not self._done.is_set():
                self.abandoned = True
                raise
            if isinstance(self._error, trio.Cancelled):
                raise
        if self._error is not None:
            raise self._error
        return self._value

    async def ended(self) -> None:
        """Wait until the thread has ended, or will never begin. A checkpoint; cancellation leaves nothing."""
        await self._done.wait()

    def abandon(self) -> bool:
        """Stop waiting for the thread; it runs on, and only its lease decides about its task.

        False, and nothing is changed, if it has ended.
        """
        if self._done.is_set():
            return False
        self._waiting.cancel()
        return True


def check_thread(
    what: object,
    thread: int | None,
    way: str = "run(publisher.publish, task, trio_token=token)",
) -> None:
    """Raise InvalidConfigError in another thread than this one, None for any; `way` is the call that goes.

    A trio run wakes none of another's trio tasks: trying to would fail in mid-step,
    with a flag set that says that all were woken.
    """
    if thread is not None and thread != get_ident():
        raise InvalidConfigError(
            f"{what!r}: called from outside the trio run that it is open in; "
            f"from another thread use trio.from_thread.{way}"
        )
