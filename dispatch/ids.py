"""Ids of tasks that their publisher gave none."""

from __future__ import annotations

import os
import random
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
    moment, noise = int(now * 1_000) & 0xFFFF_FFFF_FFFF, _noise.getrandbits(74)
    version = 0x7000 | noise >> 62
    variant = 0x8000 | noise >> 48 & 0x3FFF
    return (
        f"{moment >> 16:08x}-{moment & 0xFFFF:04x}-{version:04x}-{variant:04x}"
        f"-{noise & 0xFFFF_FFFF_FFFF:012x}"
    )
