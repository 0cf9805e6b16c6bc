"""Running the examples as a reader would, with warnings as errors and this tree's package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT_S = 120.0


def environment() -> dict[str, str]:
    """This process's environment, with the tree first on the import path."""
    rest = os.environ.get("PYTHONPATH")
    path = str(ROOT) if not rest else f"{ROOT}{os.pathsep}{rest}"
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def command(name: str, *arguments: str) -> list[str]:
    """The command line of one example."""
    return [sys.executable, "-W", "error", str(ROOT / "examples" / name), *arguments]


def output(name: str, *arguments: str) -> str:
    """What an example prints; it must end by itself, with status 0."""
    done = subprocess.run(  # noqa: S603 - our own files
        command(name, *arguments),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
