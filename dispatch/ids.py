"""Ids of tasks that their publisher gave none."""

from __future__ import annotations

import os
import random
from functools import lru_cache
from typing import Final

__all__ = ["new_id"]

_noise: Final = random.Random()  # noqa: S311 - ids must differ, not be secret
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_noise.seed)


def new_id(now: float) -> str:
    """A time-ordered UUID, version 7 (RFC 9562): 48 bits of milliseconds, the rest random.

    From a generator of our own: one that an application seeds for its own ends would give
    two tasks one id. It is seeded anew after a fork; an id is no secret.
    """
    noise = f"{_noise.getrandbits(76) & ~VARIANT_MASK | VARIANT:019x}"
    return f"{_beginning(int(now * 1_000))}{noise[:3]}-{noise[3:7]}-{noise[7:]}"


VARIANT: Final = 0b10 << 62
VARIANT_MASK: Final = 0b11 << 62


@lru_cache(maxsize=64)
def _beginning(milliseconds: int) -> str:
    """What the ids of one moment have in common, the version included."""
    moment = f"{milliseconds & 0xFFFF_FFFF_FFFF:012x}"
    return f"{moment[:8]}-{moment[8:]}-7"
