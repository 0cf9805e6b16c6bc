"""Limits of a queue over all processes: the arithmetic, alike for every storage.

A rate of `count` per `seconds` is a token bucket: it holds `count` tokens, a
claim takes one, and they come back evenly. So any stretch of `seconds` sees at
most twice `count` claims (a full bucket, and what came back meanwhile), and a
long one `count` per `seconds`.
"""

from __future__ import annotations

import attrs

__all__ = ["Allowance", "allowance"]


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
