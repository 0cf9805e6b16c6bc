"""What commands print: tables for people, tab-separated lines for pipes, JSON for programs.

Whatever came out of a store is text that somebody else chose. It is printed with
every character escaped that is not printable, so that it can neither steer a
terminal nor forge a line, and never as markup.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TextIO

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from dispatch.failures import printable
from dispatch.records import from_seconds

__all__ = [
    "STYLES",
    "ago",
    "console",
    "document",
    "duration",
    "iso",
    "line",
    "plural",
    "progress",
    "safe",
    "shortened",
    "table",
    "text_table",
]

STYLES: Final = {
    "pending": "cyan",
    "later": "cyan",
    "retrying": "yellow",
    "running": "blue",
    "held": "magenta",
    "succeeded": "green",
    "failed": "bold red",
    "cancelled": "bright_black",
    "paused": "yellow",
    "ok": "green",
}
"""Colours of words, wherever one is the whole content of a cell."""


def safe(value: object) -> str:
    """The text with everything unprintable escaped as Python would write it."""
    return printable(value if isinstance(value, str) else str(value))


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters, the end cut off visibly."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def iso(seconds: float | None) -> str | None:
    """A moment of the storage as ISO 8601 in UTC; None stays None."""
    return None if seconds is None else from_seconds(seconds).isoformat()


def duration(seconds: float) -> str:
    """Seconds for people, in one or two units: `5 ms`, `1.3 s`, `12 s`, `3 min`, `2 h 5 min`."""
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 0.9995:
        return f"{seconds * 1_000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    for unit, size, smaller, part in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60)):
        if seconds >= size:
            whole, rest = divmod(int(seconds), size)
            return f"{whole} {unit}" + (f" {rest // part} {smaller}" if rest >= part else "")
    return f"{seconds // 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def ago(moment: float | None, now: float) -> str:
    """A moment relative to `now`: `3 min ago`, `in 2 h`; empty for None."""
    if moment is None:
        return ""
    return f"in {duration(moment - now)}" if moment > now else f"{duration(now - moment)} ago"


def plural(count: int, noun: str) -> str:
    """`1 task`, `12,345 tasks`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def console(stream: TextIO) -> Console:
    """A console that takes nothing it prints for markup; colours only on a terminal."""
    return Console(file=stream, markup=False, highlight=False, emoji=False)


def line(stream: TextIO, text: str) -> None:
    """One line, made safe."""
    stream.write(f"{safe(text)}\n")
    stream.flush()


def document(stream: TextIO, data: Any) -> None:
    """One JSON document. Beyond ASCII everything is escaped: some of it steers terminals."""
    json.dump(data, stream, indent=2)
    stream.write("\n")
    stream.flush()


def table(stream: TextIO, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on a terminal; anywhere else one tab-separated line per row, without a head."""
    if stream.isatty():
        out = console(stream)
        out.print(text_table(columns, rows, width=out.width))
        return
    for row in rows:
        stream.write("\t".join("" if cell is None else safe(cell) for cell in row) + "\n")
    stream.flush()


def text_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "", *, width: int = 0
) -> Table:
    """The table as rich draws it; a column of numbers is flush right.

    What is typed again, the id or name in front, stays in one piece where half of
    `width` has room for it; the other columns give way.
    """
    whole = width > 0 and max((len(str(row[0])) for row in rows), default=0) <= width // 2
    made = Table(
        box=box.SIMPLE_HEAD,
        title=title or None,
        title_justify="left",
        pad_edge=False,
        collapse_padding=whole,
    )
    for index, name in enumerate(columns):
        numbers = bool(rows) and all(isinstance(row[index], int | float | None) for row in rows)
        made.add_column(
            Text(name),
            justify="right" if numbers else "left",
            overflow="fold",
            no_wrap=whole and (index == 0 or name == "status"),
        )
    for row in rows:
        made.add_row(*(_cell(cell) for cell in row))
    return made


def _cell(value: object) -> Text:
    if value is None:
        return Text("")
    if isinstance(value, Text):
        return value
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else safe(value)
    return Text(text, style=STYLES.get(text, "bright_black" if text == "0" else ""))


@contextmanager
def progress(stream: TextIO, what: str, total: int | None) -> Generator[Callable[[int], None]]:
    """A progress bar on a terminal; call what the block is given with the size of each step."""
    if not stream.isatty():
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(stream), transient=True) as bars:
        bar = bars.add_task(what, total=total)
        yield lambda count: bars.advance(bar, count)
