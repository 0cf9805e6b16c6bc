"""The alarm of one queue: rings when the earliest waiting task falls due, by the storage's clock."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final

import attrs
import trio

from dispatch.bell import Bell
from dispatch.storage.protocol import Storage

__all__ = ["Alarm"]

EARLY_S: Final = (0.005, 1.0)
"""How long an alarm that rang too early waits before it rings again: the first time, doubling, and at most."""


@attrs.define(eq=False)
class Alarm:
    """Rings `ring` when the earliest moment it was set to has come.

    A clock that was set back, or is not quite ours, may say otherwise: then it
    rings again and again, ever more slowly, until something is claimed.
    """

    storage: Storage
    ring: Callable[[], None]
    _earlier: Bell = attrs.field(factory=Bell)
    _next_due: float = inf
    _rung_for: float = -inf
    """The due time that it rang for last; like `_next_due`, in the storage's time."""
    _early_s: float = 0.0
    _not_before: float = -inf
    """Until then, in trio's time, it is silent, for it was early; `_early_s` is how long it was made to wait."""

    def heard(self, due: float | None, *, claimed: bool) -> None:
        """What a claim found: the earliest moment, in the storage's time, at which another task falls due."""
        if due is not None:
            if due <= self._rung_for and not claimed:
                # Past by the clock we read, still to come by the one that decides.
                self._early_s = min(max(2 * self._early_s, EARLY_S[0]), EARLY_S[1])
                self._not_before = trio.current_time() + self._early_s
            if due < self._next_due:
                self._next_due = due
                self._earlier.ring()
        if claimed:
            self._early_s, self._not_before = 0.0, -inf

    async def run(self) -> None:
        """Ring in time until cancelled."""
        while True:
            wait_s = inf
            if self._next_due < inf:
                wait_s = max(
                    min(self._next_due - self.storage.now(), self.storage.slice_s),
                    self._not_before - trio.current_time(),
                )
                if wait_s <= 0:
                    self._rung_for, self._next_due = self._next_due, inf
                    self.ring()
                    continue
            await self._earlier.wait(wait_s)
