"""`dispatch run --reload`: a worker that starts anew whenever its code changes. For development.

The worker is a process of its own, in a session of its own. So nothing ends it
together with the one that watches over it, and it has to notice: it inherits the
reading end of a pipe into which nobody writes, and which ends with its parent,
however that was killed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs
import trio

from dispatch.cli.shell import CommandError, Shell
from dispatch.cli.signals import FORCE_S, signals

__all__ = ["end_with_parent", "reloading", "snapshot"]

LOOK_EVERY_S: Final = 0.5
MOST_FILES: Final = 20_000
LIFELINE: Final = "DISPATCH_LIFELINE"
"""The variable that tells a worker the number of its end of the pipe."""
_SKIPPED: Final = {"__pycache__", "node_modules", "site-packages"}


def snapshot(root: Path) -> dict[str, int]:
    """The Python files below `root` with their times of change; hidden folders and venvs aside."""
    found: dict[str, int] = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [
            each
            for each in folders
            if not each.startswith(".")
            and each not in _SKIPPED
            and not os.path.exists(os.path.join(folder, each, "pyvenv.cfg"))
        ]
        for name in names:
            if name.endswith(".py"):
                path = os.path.join(folder, name)
                try:
                    found[path] = os.stat(path).st_mtime_ns
                except OSError:
                    continue  # gone meanwhile, or a dangling link
        if len(found) > MOST_FILES:
            raise CommandError(
                f"more than {MOST_FILES:,} Python files below {root}; start it further down"
            )
    return found


@attrs.define(eq=False)
class _Worker:
    """The process that works, and whether it was told to stop.

    `lifeline` is the end of the pipe that it inherits.
    """

    lifeline: int
    process: trio.Process | None = None
    stopping: bool = False

    def tell(self) -> None:
        """Pass a signal on: the worker itself counts first and second."""
        self.stopping = True
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)


async def reloading(shell: Shell, *, grace: float) -> int:
    """Run this command line without --reload, again after each change, until a signal comes.

    A changed worker gets its grace before it is replaced; one that ended with
    an error is started again when something has changed.
    """
    arguments = [each for each in shell.arguments if each.partition("=")[0] != "--reload"]
    root = Path.cwd()
    with _pipe() as lifeline:
        worker = _Worker(lifeline)
        with signals(worker.tell, worker.tell, hangup=True):
            return await _until_told(shell, arguments, worker, root, grace)


async def _until_told(
    shell: Shell, arguments: Sequence[str], worker: _Worker, root: Path, grace: float
) -> int:
    while True:
        before = await trio.to_thread.run_sync(snapshot, root)
        if worker.stopping:
            return 0  # told between two workers
        status, changed = await _run_until_change(arguments, worker, root, before, grace)
        if worker.stopping and status == -signal.SIGTERM:
            return 0  # it had not come to catching signals, so it had nothing to end
        if worker.stopping or (status == 0 and not changed):
            return status
        if not changed:
            shell.say(f"dispatch: the worker ended with status {status}; waiting for a change")
            while not changed and not worker.stopping:
                changed = await _change(root, before)
            if worker.stopping:
                return 1
        shell.say(f"dispatch: {', '.join(changed[:3])} changed; starting anew")


async def _run_until_change(
    arguments: Sequence[str], worker: _Worker, root: Path, before: dict[str, int], grace: float
) -> tuple[int, list[str]]:
    """Run one worker until it ends or the code changes; its status, and what changed."""
    changed: list[str] = []
    # In a group of its own: Ctrl-C on a terminal reaches the whole group, and the worker
    # would count it twice, once from there and once from here.
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "dispatch", *arguments],
        start_new_session=True,
        stdin=None,
        pass_fds=(worker.lifeline,),
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", LIFELINE: str(worker.lifeline)},
    )
    worker.process = process
    if worker.stopping:
        process.terminate()  # told while it was being started
    try:
        async with trio.open_nursery() as nursery:

            async def end_with_it() -> None:
                await process.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(end_with_it)
            while not changed:
                changed = await _change(root, before)
            if not worker.stopping:
                process.terminate()
            with trio.move_on_after(grace + LOOK_EVERY_S):
                await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
    assert process.returncode is not None
    return process.returncode, changed


@contextmanager
def _pipe() -> Generator[int]:
    """The reading end of a pipe whose writing end nobody but this process has."""
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


def end_with_parent(grace: float) -> None:
    """Have a worker that `reloading` started end when its parent is gone: as after a SIGTERM.

    If that takes longer than its grace, the process is left as it is.
    """
    # Taken out of the environment: what handlers start has no such end, or another file of that number.
    given = os.environ.pop(LIFELINE, None)
    if given is None:
        return
    lifeline = int(given)
    os.set_inheritable(lifeline, False)

    # A thread, for a handler may block the loop.
    def watch() -> None:
        os.read(lifeline, 1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace + FORCE_S)
        os._exit(1)

    threading.Thread(target=watch, name="dispatch-lifeline", daemon=True).start()


async def _change(root: Path, before: dict[str, int]) -> list[str]:
    """What differs after a moment's wait, if anything."""
    await trio.sleep(LOOK_EVERY_S)
    after = await trio.to_thread.run_sync(snapshot, root)
    changed = (path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    return sorted(path.removeprefix(f"{root}{os.sep}") for path in changed)
