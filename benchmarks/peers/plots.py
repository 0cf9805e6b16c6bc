"""Plots as SVG: bars, and lines over two logarithmic axes. Readable on light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import cycle
from math import ceil, floor, log10

__all__ = ["bars", "lines"]

WIDTH = 760
LABEL = 210
ROW = 24
COLOURS = {"ours": "#c2410c", "limit": "#64748b", "peer": "#2563eb"}
PEERS = ("#2563eb", "#0f766e", "#7c3aed", "#a16207", "#be185d", "#4d7c0f", "#0369a1")
Line = tuple[str, str, Sequence[tuple[float, float]]]
"""A name, its role, and its points."""
STYLE = (
    "<style>text{font:12px system-ui,sans-serif;fill:#334155}.h{font-weight:600;font-size:14px}"
    ".g{stroke:#94a3b8;stroke-opacity:.35}"
    "@media (prefers-color-scheme:dark){text{fill:#cbd5e1}}</style>"
)


def bars(title: str, rows: Sequence[tuple[str, str, float]], *, unit: str) -> str:
    """One bar per (name, role, value), longest first, on a logarithmic scale."""
    ranked = sorted(rows, key=lambda row: -row[2])
    least = 10 ** floor(log10(min(row[2] for row in ranked)))
    most = max(row[2] for row in ranked)
    span = max(log10(most / least), 0.01)
    room = WIDTH - LABEL - 110
    height = 40 + ROW * len(ranked) + 10
    parts = [heading(f"{title} (logarithmic)", height)]
    for number, (name, role, value) in enumerate(ranked):
        y = 40 + ROW * number
        length = max(room * log10(value / least) / span, 2)
        parts += [
            f'<text x="{LABEL - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{LABEL}" y="{y + 3}" width="{length:.1f}" height="{ROW - 7}" rx="2" fill="{COLOURS[role]}"/>',
            f'<text x="{LABEL + length + 6:.1f}" y="{y + 15}">{value:,.0f} {escape(unit)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def lines(title: str, series: Sequence[Line], *, across: str, up: str) -> str:
    """A line per name through its points, of which each has at least one; both axes logarithmic."""
    points = [point for _, _, found in series for point in found]
    left, right = bounds([x for x, _ in points])
    low, high = bounds([y for _, y in points])
    height, top, bottom, start = 400, 50, 350, 70
    end = WIDTH - 190

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            start + (end - start) * (log10(x) - left) / (right - left),
            bottom - (bottom - top) * (log10(y) - low) / (high - low),
        )

    parts = [heading(title, height)]
    for power in range(left, right + 1):
        x, _ = place(10.0**power, 10.0**low)
        parts += [
            f'<line class="g" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"/>',
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{10**power:,}</text>',
        ]
    for power in range(low, high + 1):
        _, y = place(10.0**left, 10.0**power)
        parts += [
            f'<line class="g" x1="{start}" y1="{y:.1f}" x2="{end}" y2="{y:.1f}"/>',
            f'<text x="{start - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:,g}</text>',
        ]
    # Names stand at the lines' ends, kept apart where those meet.
    ends = sorted((place(*found[-1])[1], name) for name, _, found in series)
    spots: dict[str, float] = {}
    free = float(top)
    for y, name in ends:
        spots[name] = max(y, free)
        free = spots[name] + 15
    others = cycle(PEERS)
    for name, role, found in series:
        colour = next(others) if role == "peer" else COLOURS[role]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in found))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
            for x, y in (place(*point) for point in found)
        ]
        x, y = place(*found[-1])
        parts += [
            f'<line class="g" x1="{x + 4:.1f}" y1="{y:.1f}" x2="{end + 8}" y2="{spots[name]:.1f}"/>',
            f'<text x="{end + 12}" y="{spots[name] + 4:.1f}" style="fill:{colour}">{escape(name)}</text>',
        ]
    parts += [
        f'<text x="{(start + end) / 2}" y="{height - 12}" text-anchor="middle">{escape(across)}</text>',
        f'<text x="12" y="{top - 12}">{escape(up)}</text>',
    ]
    return "\n".join([*parts, "</svg>", ""])


def heading(title: str, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}">{STYLE}\n<text class="h" x="12" y="22">{escape(title)}</text>'
    )


def bounds(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten around the values; never the same one twice."""
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    return low, max(high, low + 1)
