"""A latched bell: ringing while nobody listens is remembered, not lost."""

from __future__ import annotations

from math import inf

import trio

__all__ = ["Bell"]


class Bell:
    """Wakes one waiting trio task; subscribe it first, look afterwards, then wait.

    However often it rang since the last `wait`, the next one returns at once,
    once. So: look at the state, act, wait; a change between the look and the
    wait cannot be missed. Ring it from the trio thread only; another thread
    goes through `TrioToken.run_sync_soon(bell.ring)`.
    """

    __slots__ = ("_rung", "_sleeper")

    def __init__(self) -> None:
        self._rung = False
        self._sleeper: trio.lowlevel.Task | None = None

    def ring(self) -> None:
        """Wake the waiter, or let the next wait return at once. Never blocks."""
        if self._sleeper is not None:
            trio.lowlevel.reschedule(self._sleeper)
            self._sleeper = None
        else:
            self._rung = True

    @property
    def is_rung(self) -> bool:
        """Whether the next wait will return at once."""
        return self._rung

    async def wait(self, at_most_s: float = inf) -> None:
        """Return when it rang, or after `at_most_s` seconds of trio's clock.

        A checkpoint. A cancelled wait consumes nothing. One trio task at a
        time: a second raises `trio.BusyResourceError`.
        """
        if self._sleeper is not None:
            raise trio.BusyResourceError("another trio task waits for this bell")
        if self._rung:
            await trio.lowlevel.checkpoint()
            self._rung = False
        elif at_most_s == inf:
            await self._park()
        else:
            with trio.move_on_after(max(at_most_s, 0.0)):
                await self._park()

    async def _park(self) -> None:
        self._sleeper = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._sleeper = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def __repr__(self) -> str:
        state = "rung" if self._rung else "waited for" if self._sleeper else "quiet"
        return f"<Bell {state}>"
