"""Limits of a queue over all processes: the arithmetic, alike for every storage.

A rate of `count` per `seconds` is a token bucket: it holds `count` tokens, a
claim takes one, and they come back evenly. So any stretch of `seconds` sees at
most twice `count` claims (a full bucket, and what came back meanwhile), and a
long one `count` per `seconds`.

A bound on what waits is checked against a count of it, which may be long. `Rooms`
says when the last one will do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

import attrs

__all__ = ["Allowance", "Rooms", "allowance"]

SHARE: Final = 64
"""Of the room that a count found, one process takes this part before it counts again,"""
AT_MOST: Final = 100
"""and no more than so many."""
FRESH_S: Final = 1.0
"""For so long a count is good."""


@attrs.frozen
class Allowance:
    """What a rate allows now: so many claims, `tokens` being in the bucket; more from `more_at` on."""

    claims: int
    tokens: float
    more_at: float


def allowance(rate: tuple[int, float], tokens: float | None, since: float | None, now: float) -> Allowance:
    """Fill the bucket up from `tokens` at `since` (None: full) to `now`."""
    count, seconds = rate
    if tokens is None or since is None:
        tokens = count
    else:
        tokens = min(count, tokens + max(now - since, 0.0) * count / seconds)
    claims = int(tokens + 1e-6)  # sums of fractions fall short of a whole by some digits
    return Allowance(claims, tokens, now + (claims + 1 - tokens) * seconds / count)


class Rooms:
    """How much room bounded queues were found to have, for publishes that need not count again.

    One process takes a sixty-fourth of what it found within a second, and at most 100. What
    others publish meanwhile, or what falls due by itself, it does not see: by so much it may
    exceed the bound. Where little room is left, that part is nothing, and each publish counts.
    Moments are those of any one clock.
    """

    def __init__(self) -> None:
        self._left: dict[str, tuple[int, int, float]] = {}

    def found(self, queue: str, bound: int, waiting: int, at: float) -> None:
        """Note that at this moment so many wait in a queue of this bound."""
        self._left[queue] = bound, min((bound - waiting) // SHARE, AT_MOST), at

    def take(self, bounds: Mapping[str, int], queues: Iterable[str], at: float) -> bool:
        """Take a place in each of these queues, of one that is named twice two; False leaves all as it is.

        `bounds` says how each is bounded now. For one that is not among them the answer is False.
        """
        wanted = Counter(queues)
        for queue, count in wanted.items():
            bound, left, since = self._left.get(queue, (0, 0, at))
            if bound != bounds.get(queue) or left < count or not 0 <= at - since <= FRESH_S:
                return False
        for queue, count in wanted.items():
            bound, left, since = self._left[queue]
            self._left[queue] = bound, left - count, since
        return True
