"""Starting the programs: bounded, in a process group of their own, gone afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]


@contextmanager
def launched(program: str, folder: Path, **options: object) -> Iterator[subprocess.Popen[str]]:
    """The program at work; whatever it started is killed when the block ends."""
    rest = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join([*filter(None, rest), str(TESTS.parent), str(TESTS)])
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    process = subprocess.Popen(  # noqa: S603 - our own files
        [sys.executable, "-W", "error", "-m", f"faults.programs.{program}", str(folder), *given],
        env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its own group: it and what it forked
        process.communicate()


def figures_of(program: str, folder: Path, limit_s: float, **options: object) -> dict[str, Any]:
    """What the program prints last, which are its figures; it must end by itself within `limit_s`."""
    with launched(program, folder, **options) as process:
        out, err = process.communicate(timeout=limit_s)
    assert process.returncode == 0, f"{out[-4_000:]}\n{err[-4_000:]}"
    lines = out.splitlines()
    print("\n".join(lines[:-1])[-6_000:])  # shown with a failure
    return json.loads(lines[-1])  # type: ignore[no-any-return]
