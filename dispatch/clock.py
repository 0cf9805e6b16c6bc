"""The one clock: UTC wall time, virtual when trio's clock is.

Nothing else in the package reads the wall clock. Under `trio.testing.MockClock`
wall time is derived from trio's, so that days pass in milliseconds; otherwise
it is the machine's, read afresh each time, so that a jump is seen at once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import datetime
from math import inf
from typing import Final, cast

import trio

from dispatch.checks import shown
from dispatch.errors import InvalidConfigError
from dispatch.records import from_seconds, to_microsecond

__all__ = ["Clock"]

SLICE_S: Final = 5.0
"""The longest sleep towards a wall-clock moment before looking at the clock again."""


class Clock:
    """Wall time in UTC seconds since 1970, rounded to the microsecond.

    `start` is the moment at which virtual time begins, the machine's time by
    default. `wall` replaces the machine's clock; tests make it jump.
    """

    def __init__(
        self, start: datetime | None = None, *, wall: Callable[[], float] | None = None
    ) -> None:
        if start is not None and wall is not None:
            raise InvalidConfigError("Clock: give either start or wall, got both")
        given = cast("object", start)
        if given is not None and (not isinstance(given, datetime) or given.tzinfo is None):
            raise InvalidConfigError(f"Clock: start must be an aware datetime, got {shown(given)}")
        if wall is not None and not callable(wall):
            raise InvalidConfigError(f"Clock: wall must be a function of no arguments, such as time.time, got {shown(wall)}")
        self._start = start.timestamp() if start is not None else None
        self._injected = wall is not None
        self._wall: Callable[[], float] = wall if wall is not None else time.time
        self._offset: float | None = None
        self._anchored = False

    def now(self) -> float:
        """The wall time in UTC seconds. Needs a running trio loop where time is virtual."""
        if not self._anchored:
            self._anchor()
        if self._offset is None:
            return to_microsecond(self._wall())
        return to_microsecond(self._offset + trio.current_time())

    def _anchor(self) -> None:
        """Tie virtual wall time to trio's clock, once, where time is virtual."""
        self._anchored = True
        if self._injected:
            return
        if self._start is not None or _trio_time_is_virtual():
            start = self._start if self._start is not None else time.time()
            self._offset = start - trio.current_time()

    def utc(self) -> datetime:
        """The wall time as an aware datetime in UTC."""
        return from_seconds(self.now())

    def __repr__(self) -> str:
        # Neither asks a clock of the user's nor ties virtual time to trio's, which the first to need it does.
        if self._injected:
            return f"<Clock wall={getattr(self._wall, '__qualname__', None) or type(self._wall).__qualname__}>"
        start = "" if self._start is None else f", start={from_seconds(self._start).isoformat()}"
        if not self._anchored:
            return f"<Clock not asked yet{start}>"
        if self._offset is None:
            return f"<Clock machine {self.utc().isoformat()}>"
        try:
            return f"<Clock virtual {self.utc().isoformat()}>"
        except RuntimeError:  # its trio run is over, or another thread's
            return f"<Clock virtual{start}>"

    @property
    def slice_s(self) -> float:
        """The longest sleep before looking again: 5 s, or unbounded where time cannot jump."""
        if not self._anchored:
            self._anchor()
        return SLICE_S if self._offset is None else inf


def _trio_time_is_virtual() -> bool:
    # A MockClock can only exist where its module was imported; looking it up
    # there keeps trio.testing out of a production process.
    testing = sys.modules.get("trio.testing")
    return testing is not None and isinstance(trio.lowlevel.current_clock(), testing.MockClock)
