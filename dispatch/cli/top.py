"""`dispatch top`: the store, live, on a terminal."""

from __future__ import annotations

import os
import sys
import termios
import tty
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Final

import attrs
import trio
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from dispatch.cli import values
from dispatch.cli.output import STYLES, console, duration, plural, safe, shortened, text_table
from dispatch.cli.shell import CommandError, Opened, Shell, ShellArgument, StoreOption, masked
from dispatch.cli.state import QueueState, StoreState, store_state
from dispatch.cli.stats import print_state
from dispatch.errors import StorageError

__all__ = ["top"]

SHORTEST_S: Final = 0.2
SPARKS: Final = " ▁▂▃▄▅▆▇█"
SPARK_WIDTH: Final = 30
UNBOUNDED: Final = 10_000


async def top(*, every: str = "1s", store: StoreOption = None, shell: ShellArgument) -> None:
    """Watch the store live: queues, running tasks and workers. q ends it, space pauses it.

    Anywhere but on a terminal it prints what `dispatch stats` prints.

    Parameters
    ----------
    every
        How often to look.
    """
    every_s = values.seconds(every, "--every")
    if every_s < SHORTEST_S:
        raise CommandError(f"--every must be at least {SHORTEST_S} s, got {every}", 2)
    async with shell.open(store) as opened:
        if not shell.stdout.isatty() or console(shell.stdout).is_dumb_terminal:
            print_state(shell, await store_state(opened.storage))
            return
        await _live(shell, opened, every_s)


@attrs.define(eq=False)
class Board:
    """What is on the screen: the last look, and what the looks before it found."""

    url: str
    every_s: float
    paused: bool = False
    trouble: str = ""
    state: StoreState | None = None
    ended: deque[int] = attrs.field(factory=lambda: deque[int](maxlen=SPARK_WIDTH))

    def take(self, state: StoreState) -> None:
        """Keep a look for drawing."""
        self.state = state
        self.trouble = ""
        self.ended.append(state.total("succeeded_lately") + state.total("failed_lately"))

    def draw(self, screen: Console) -> RenderableType:
        """The board, no larger than the screen: the running tasks give way first, then columns."""
        parts: list[RenderableType] = [self._head(screen)]
        if self.state is None:
            return Group(*parts)
        queues, workers = self.state.queues, self.state.workers
        room = max(screen.size.height - 7, 6)
        shown = queues[: max(room // 2, 3)]
        parts.append(_queue_table(screen, shown))
        if len(queues) > len(shown):
            parts.append(
                Text(f"and {plural(len(queues) - len(shown), 'queue')} more", "bright_black")
            )
        room -= len(shown) + 3
        if self.state.runs and room > 4:
            most = room - 3
            below = min(len(workers), 3) + 3  # a few workers with their head, where there is room
            if workers and most > below:
                most -= below
            parts.append(_run_table(screen, self.state, most))
            room -= min(len(self.state.runs), most) + 3
        if workers and room > 3:
            parts.append(_worker_table(screen, self.state, max(room - 3, 1)))
        return Group(*parts)

    def _head(self, screen: Console) -> Text:
        head = Text()
        head.append("dispatch top", "bold")
        head.append(f"  {safe(masked(self.url))}  ")
        state = self.state
        if state is not None:
            totals = (
                f"{plural(len(state.workers), 'worker')}, {state.total('running'):,} running, "
                f"{state.total('due'):,} due, {state.total('failed'):,} dead letters"
            )
            fits = head.cell_len + cell_len(totals) <= screen.size.width
            head.append(f"{totals}\n" if fits else f"\n{totals}\n")
            ended = self.ended[-1] if self.ended else 0
            head.append(f"{ended:,} ended in the last minute  ")
            head.append(sparkline(list(self.ended)), "green")
        if self.paused:
            head.append("  paused, space goes on", STYLES["paused"])
        if self.trouble:
            head.append(f"\n{safe(self.trouble)}", STYLES["failed"])
        return head


def sparkline(values: list[int]) -> str:
    """Numbers as bars of eight heights, the highest being full."""
    most = max(values, default=0)
    if not most:
        return ""
    return "".join(SPARKS[-(-each * (len(SPARKS) - 1) // most)] for each in values)


def _fitting(
    screen: Console, columns: Sequence[str], rows: Sequence[Sequence[object]], dispensable: Sequence[str]
) -> RenderableType:
    """The table, without as many of the dispensable columns as a narrow screen asks for."""
    table = text_table(columns, rows)
    for name in dispensable:
        if screen.measure(table, options=screen.options.update(width=UNBOUNDED)).maximum <= screen.size.width:
            break
        at = columns.index(name)
        columns = [*columns[:at], *columns[at + 1 :]]
        rows = [[*row[:at], *row[at + 1 :]] for row in rows]
        table = text_table(columns, rows)
    return table


def _queue_table(screen: Console, queues: list[QueueState]) -> RenderableType:
    columns = (
        "queue",
        "state",
        "limit",
        "due",
        "later",
        "running",
        "held",
        "failed",
        "oldest",
        "done/min",
        "failed/min",
        "workers",
    )
    rows = [
        (
            shortened(safe(each.name), 40),
            "paused" if each.paused else "ok",
            each.concurrency,
            each.due,
            each.later,
            each.running,
            each.held,
            each.failed,
            duration(each.oldest_s) if each.due else "",
            each.succeeded_lately,
            each.failed_lately,
            each.workers,
        )
        for each in queues
    ]
    dispensable = ("failed/min", "workers", "held", "later", "limit", "done/min", "state", "oldest")
    return _fitting(screen, columns, rows, dispensable)


def _run_table(screen: Console, state: StoreState, most: int) -> RenderableType:
    rows = [
        (
            each.id,
            shortened(safe(f"{each.queue}/{each.type}"), 50),
            each.attempt,
            duration(max(state.now - (each.started_at or state.now), 0.0)),
            shortened(safe(each.worker or ""), 40),
        )
        for each in state.runs[: max(most, 1)]
    ]
    return _fitting(screen, ("running", "task", "attempt", "for", "worker"), rows, ("attempt", "worker"))


def _worker_table(screen: Console, state: StoreState, most: int) -> RenderableType:
    # By the listed runs, and by the workers' own records, which are written every few seconds only,
    # just where not all runs are listed.
    running = Counter(each.worker for each in state.runs)
    all_listed = state.total("running") <= len(state.runs)
    rows = [
        (
            shortened(safe(each.id), 60),
            running[each.id] if all_listed else max(running[each.id], len(each.running)),
            shortened(safe(", ".join(each.queues)), 60),
            duration(max(state.now - each.started_at, 0.0)),
        )
        for each in state.workers[:most]
    ]
    return _fitting(screen, ("worker", "running", "queues", "up"), rows, ("queues", "up"))


async def _live(shell: Shell, opened: Opened, every_s: float) -> None:
    board = Board(opened.url, every_s)
    screen = console(shell.stdout)
    with Live(console=screen, screen=True, auto_refresh=False) as live, _keys(shell) as keyboard:

        def show() -> None:
            live.update(board.draw(screen), refresh=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey_keys, keyboard, board, show, nursery.cancel_scope)
            while True:
                if not board.paused:
                    try:
                        board.take(await store_state(opened.storage))
                    except StorageError as exc:
                        board.trouble = exc.detail
                show()
                await trio.sleep(every_s)


@contextmanager
def _keys(shell: Shell) -> Generator[int | None]:
    """The keyboard, giving each key at once; None where standard input is none."""
    if shell.stdin is not sys.stdin or not sys.stdin.isatty():
        yield None
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    try:
        tty.setcbreak(keyboard)
        yield keyboard
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


async def _obey_keys(
    keyboard: int | None, board: Board, show: Callable[[], None], scope: trio.CancelScope
) -> None:
    """q ends it, space pauses it and goes on."""
    if keyboard is None:
        return
    while True:
        await trio.lowlevel.wait_readable(keyboard)
        pressed = os.read(keyboard, 64)
        if not pressed or b"q" in pressed or b"\x04" in pressed:
            scope.cancel()
            return
        if b" " in pressed:
            board.paused = not board.paused
            show()
