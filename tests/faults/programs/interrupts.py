"""A Ctrl-C at any line of our own bookkeeping: the program ends by it, soon, and what was claimed is given back.

The lines of one ordinary run are counted; then, in a fork for each of some of them, SIGINT
comes right there. FOLDER, `--at` the end of a module's path, `--only` a function in it; `--protected=no` plants a bug.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sqlite3
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import trio

if "--protected=no" in sys.argv:  # before our modules are imported, which are then unprotected

    def unprotected(function: Any) -> Any:
        return function

    trio.lowlevel.enable_ki_protection = unprotected

from dispatch import QueueTask, TaskQueueConfig, open_dispatcher
from faults.programs.scenario import JOB, Job, arguments, tell

PUBLISHERS, TASKS = 6, 24
IN_TIME_S = 10.0


async def handler(task: QueueTask[Job]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.lowlevel.checkpoint)
    await trio.sleep(0.001)


async def life(path: Path) -> None:
    async with open_dispatcher(f"sqlite:///{path}", observers=()) as dispatcher:
        dispatcher.consumer.register_queue("q", TaskQueueConfig(concurrency=4, max_retry=1, prefetch=6))
        dispatcher.consumer.register_handler(JOB, handler)

        async def publish(mine: range) -> None:
            for n in mine:
                await dispatcher.publisher.publish(JOB(Job(n)))

        async with trio.open_nursery() as nursery:
            for first in range(PUBLISHERS):
                nursery.start_soon(publish, range(first, TASKS, PUBLISHERS))
        await dispatcher.drain()


class Strike:
    """Counts the lines that run in one module, and raises SIGINT at one of them."""

    def __init__(self, module: str, function: str, at: int) -> None:
        self.module, self.function, self.at = module, function, at
        self.lines = 0

    def enters(self, frame: FrameType, event: str, arg: object) -> Any:
        code = frame.f_code
        ours = code.co_filename.endswith(self.module) and self.function in ("", code.co_name)
        return self.goes_on if ours else None

    def goes_on(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
        return self.goes_on


def leaves(error: BaseException) -> set[str]:
    if isinstance(error, BaseExceptionGroup):
        return {name for each in error.exceptions for name in leaves(each)}
    return {type(error).__name__}


def lived(path: Path, strike: Strike) -> tuple[str, int]:
    """How a life in a fork ended, and how many lines of the module ran in it."""
    heard, said = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.settrace(strike.enters)
        try:
            trio.run(life, path)
            how = "finished"
        except BaseException as exc:  # noqa: BLE001 - whatever it is, it is told
            how = "+".join(sorted(leaves(exc)))
        sys.settrace(None)
        os.write(said, f"{how} {strike.lines}".encode())
        os._exit(0)
    os.close(said)
    deadline = time.monotonic() + IN_TIME_S
    while not os.waitpid(pid, os.WNOHANG)[0]:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            break
        time.sleep(0.005)
    with os.fdopen(heard) as told:
        how, _, lines = (told.read() or "hung 0").partition(" ")
    return how, int(lines)


def left_running(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'dispatch_tasks'").fetchall():
            return 0
        [(count,)] = db.execute("SELECT count(*) FROM dispatch_tasks WHERE status = 'running'").fetchall()
    return int(count)


def main() -> None:
    given = arguments(at="", only="", lives=25, protected="yes")
    logging.disable(logging.CRITICAL)
    how, lines = lived(given.folder / "whole.db", Strike(given.at, given.only, 0))
    assert how == "finished", how
    ends: Counter[str] = Counter()
    orphans = 0
    for at in random.Random(given.seed).sample(range(1, lines + 1), given.lives):
        path = given.folder / f"{at}.db"
        ends[lived(path, Strike(given.at, given.only, at))[0]] += 1
        orphans += left_running(path)
    tell(lives=given.lives, lines=lines, ends=ends, orphans=orphans)


if __name__ == "__main__":
    main()
