"""Did you mean: what a mistyped name was probably meant to be."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from typing import Final

__all__ = ["known", "nearest"]

_MOST: Final = 10


def nearest(name: str, candidates: Collection[str], prefix: str = "") -> str:
    """`; did you mean 'email'?`, or nothing where nothing is near; `prefix` is told before what is found."""
    found = get_close_matches(name, candidates, 1, 0.6)
    return f"; did you mean {prefix + found[0]!r}?" if found else ""


def known(name: str, candidates: Collection[str], prefix: str = "") -> str:
    """The nearest, or else what there is: `; there are 'billing' and 2 more`."""
    if hint := nearest(name, candidates, prefix):
        return hint
    if not candidates:
        return "; there are none"
    shown = [prefix + each for each in sorted(candidates)[:_MOST]]
    rest = len(candidates) - len(shown)
    return f"; there are: {', '.join(shown)}{f' and {rest} more' if rest else ''}"
