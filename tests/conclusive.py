"""What a busy machine may spoil, said apart from what it may not.

A promise that is broken fails at once. A run that was merely too slow, that met
nothing of what it was to survive, or in which a planted bug had no occasion to show,
is *inconclusive*: noise only ever adds time, and takes occasions away. Such a run is
made again, twice at most, with everything else checked each time; a bound that no
run of three holds, or a bug that none of three notices, is a failure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest


class InconclusiveError(AssertionError):
    """The run says nothing against the promise, and not enough for it."""


AGAIN = pytest.mark.flaky(reruns=2, only_rerun=InconclusiveError.__name__)
"""Every battery has it, by `conftest`; it costs a test 20 ms, which is why not every test has."""


def in_time(figures: Mapping[str, float], why: str = "too late", **at_most: float) -> None:
    """These figures, which a busy machine makes larger, are at most so large. To be said last."""
    late = {name: figures[name] for name, bound in at_most.items() if not figures[name] <= bound}
    if late:
        raise InconclusiveError(f"{why}: {late}, where at most {at_most} are wanted")


def was_tested(*occasions: bool) -> None:
    """There were occasions for what is promised to be broken. To be said after the promises."""
    if not all(occasions):
        raise InconclusiveError(f"it was not tested: {occasions}")


@contextmanager
def noticed(match: str) -> Iterator[None]:
    """A bug was planted: the checks within must fail, saying so."""
    try:
        yield
    except AssertionError as exc:
        if not re.search(match, str(exc)):
            raise
    else:
        raise InconclusiveError(f"nothing failed with {match!r}")
