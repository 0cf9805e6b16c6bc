"""Numbers to the shapes of the drawings; templates write them down as SVG. Pure.

Coordinates are those of the drawing's view box, rounded so that equal data
gives equal text: a page that did not change keeps its ETag.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor, log10
from typing import Any, Final

import attrs

__all__ = ["Bars", "Range", "Spans", "bars", "ranges", "spans", "sparkline"]

WIDTH: Final = 600
HEIGHT: Final = 120
GAP: Final = 2
STACK: Final = ("succeeded", "cancelled", "retried", "failed")


@attrs.frozen
class Bars:
    """Stacked bars: (x, y, width, height, kind) each, and the value at the top of the drawing."""

    bars: tuple[tuple[float, float, float, float, str], ...]
    top: int
    summary: str


def bars(minutes: Sequence[Mapping[str, Any]]) -> Bars:
    """The ends of each minute, stacked by how they ended."""
    sums = [sum(minute[kind] for kind in STACK) for minute in minutes]
    top = _nice(max(sums, default=0))
    step = WIDTH / max(len(minutes), 1)
    found: list[tuple[float, float, float, float, str]] = []
    for at, minute in enumerate(minutes):
        base = float(HEIGHT)
        for kind in STACK:
            if minute[kind]:
                # What is there at all can be seen, however small its share.
                height = max(minute[kind] / top * (HEIGHT - 4), 1.5)
                base -= height
                found.append(
                    (round(at * step, 1), round(base, 1), round(step - GAP, 1), round(height, 1), kind)
                )
    total = {kind: sum(minute[kind] for minute in minutes) for kind in STACK}
    said = ", ".join(f"{count:,} {kind}" for kind, count in total.items() if count) or "nothing ended"
    peak = f"; at most {max(sums):,} in one minute" if any(sums) else ""
    return Bars(tuple(found), top, f"Ended per minute in the last hour: {said}{peak}")


@attrs.frozen
class Range:
    """A band from the median to the 95th percentile, on a logarithmic scale of seconds.

    `band` and `line` are path data; `grid` is (y, seconds) of each power of ten.
    """

    band: str
    line: str
    grid: tuple[tuple[float, float], ...]
    summary: str


def ranges(minutes: Sequence[Mapping[str, Any]], name: str) -> Range:
    """How long tasks took to do what `name` says, `wait` or `run`, minute by minute."""
    low = [minute[f"{name}_p50"] for minute in minutes]
    high = [minute[f"{name}_p95"] for minute in minutes]
    known = [each for each in (*low, *high) if each is not None]
    verb = {"wait": "Waiting", "run": "Running"}[name]
    if not known:
        return Range("", "", (), f"{verb} time: nothing ran in the last hour")
    bottom = floor(log10(min(known)))
    ceiling = max(ceil(log10(max(known))), bottom + 1)
    step = WIDTH / max(len(minutes), 1)

    def y(value: float) -> float:
        share = (log10(value) - bottom) / (ceiling - bottom)
        return round(HEIGHT - min(max(share, 0.0), 1.0) * HEIGHT, 1)

    band: list[str] = []
    line: list[str] = []
    for stretch in _stretches(low):
        # A minute is as wide as its bar, so that a single one can be seen, too.
        first, last = round(stretch[0] * step, 1), round((stretch[-1] + 1) * step - GAP, 1)
        there = [(round((at + 0.5) * step, 1), y(low[at]), y(high[at])) for at in stretch]
        middle = [(first, there[0][1]), *((x, p50) for x, p50, _ in there), (last, there[-1][1])]
        upper = [(first, there[0][2]), *((x, p95) for x, _, p95 in there), (last, there[-1][2])]
        line.append("M" + "L".join(f"{x} {at}" for x, at in middle))
        band.append("M" + "L".join(f"{x} {at}" for x, at in (*upper, *reversed(middle))) + "Z")
    grid = tuple((y(10.0**power), 10.0**power) for power in range(bottom, ceiling + 1))
    newest = next(at for at in reversed(range(len(low))) if low[at] is not None)
    return Range(
        "".join(band),
        "".join(line),
        grid,
        f"{verb} time: in the newest minute with any, median {low[newest]:g} s, "
        f"95 of 100 within {high[newest]:g} s",
    )


def _stretches(values: Sequence[float | None]) -> list[list[int]]:
    """The indexes of neighbouring known values, stretch by stretch."""
    found: list[list[int]] = []
    for at, value in enumerate(values):
        if value is None:
            continue
        if found and found[-1][-1] == at - 1:
            found[-1].append(at)
        else:
            found.append([at])
    return found


def sparkline(ended: Sequence[int]) -> str:
    """A filled line of how many ended per minute, as path data in a box of 120 by 24; "" for none."""
    top = max(ended, default=0)
    if not top:
        return ""
    step = 120 / max(len(ended) - 1, 1)
    points = [f"{round(at * step, 1)} {round(23 - each / top * 21, 1)}" for at, each in enumerate(ended)]
    return f"M0 24L{'L'.join(points)}L120 24Z"


@attrs.frozen
class Spans:
    """Attempts over time, a row each: (index, x, width, kind) and the wait before it (x, width)."""

    rows: tuple[tuple[int, float, float, str, float, float], ...]
    height: int
    start: float
    end: float


ROW: Final = 16


def spans(attempts: Sequence[Mapping[str, Any]], since: float, until: float) -> Spans:
    """A task's attempts between two moments in UTC seconds; a running one reaches to `until`."""
    start: float = min([since, *(each["started"] for each in attempts)])
    end: float = max([until, *(each["ended"] or 0.0 for each in attempts)])
    length = max(end - start, 1e-3)

    def x(at: float) -> float:
        return min(max((at - start) / length, 0.0), 1.0) * WIDTH

    rows: list[tuple[int, float, float, str, float, float]] = []
    free_since = since
    for index, each in enumerate(attempts):
        left = x(each["started"])
        width = max(x(each["ended"] or end) - left, 3.0)
        left = min(left, WIDTH - width)
        waited = x(free_since)
        rows.append(
            (
                index,
                round(left, 1),
                round(width, 1),
                str(each["outcome"]),
                round(waited, 1),
                round(max(left - waited, 0.0), 1),
            )
        )
        free_since = each["ended"] or end
    return Spans(tuple(rows), max(len(rows), 1) * ROW, start, end)


def _nice(value: float) -> int:
    """The next of 1, 2, 3, 4, 5, 6, 8, 10, 20, 30, ... at or above."""
    if value <= 1:
        return 1
    size = 10 ** floor(log10(value))
    return int(next(each * size for each in (1, 2, 3, 4, 5, 6, 8, 10) if each * size >= value))
