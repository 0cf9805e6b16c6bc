"""A virtual environment per set of requirements, kept in a cache outside the repository."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["CannotInstallError", "cache_folder", "environment"]

REPOSITORY = Path(__file__).parents[2]
INSTALL_S = 900.0
VARIABLE = "DISPATCH_BENCHMARK_CACHE"


class CannotInstallError(Exception):
    """A contestant cannot take part on this machine; the message says why."""


def cache_folder(given: str | None) -> Path:
    """`given`, or what the variable names, or `~/.cache/dispatch-benchmarks`; never in the repository."""
    named = given or os.environ.get(VARIABLE) or "~/.cache/dispatch-benchmarks"
    folder = Path(named).expanduser().absolute()
    if folder == REPOSITORY or REPOSITORY in folder.parents:
        raise SystemExit(f"the cache must lie outside the repository, got {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def environment(cache: Path, requirements: Sequence[str], needs: tuple[int, int]) -> Path:
    """The Python of an environment with these requirements; made if it is missing.

    Raises CannotInstallError.
    """
    python = interpreter(needs)
    identity = [python, *requirements]
    if any(os.sep in each for each in requirements):  # this repository: its own requirements may change
        identity.append((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    key = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:12]
    name = Path(requirements[0].partition("=")[0].partition("[")[0]).name
    home = cache / f"{name}-{key}"
    found = home / "bin" / "python"
    if (home / "complete").exists():
        return found
    shutil.rmtree(home, ignore_errors=True)
    run([python, "-m", "venv", str(home)])
    given = [part for each in requirements for part in (("-e", each) if os.sep in each else (each,))]
    run([str(found), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *given])
    (home / "complete").touch()
    return found


def interpreter(needs: tuple[int, int]) -> str:
    """This Python, or where it is too old, a newer one: on the PATH, or installed beside this one."""
    if sys.version_info[:2] >= needs:
        return sys.executable
    for minor in range(needs[1], needs[1] + 6):
        named = shutil.which(f"python3.{minor}")
        # Version managers keep their Pythons side by side.
        beside = sorted(Path(sys.base_prefix).parent.glob(f"*3.{minor}*/bin/python3.{minor}"))
        for found in [*([named] if named else []), *map(str, beside)]:
            # One on the PATH may be a shim without what it stands for.
            if subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:  # noqa: S603
                return found
    raise CannotInstallError(
        f"needs Python {needs[0]}.{needs[1]} or newer; this is {sys.version_info[0]}.{sys.version_info[1]}, "
        "and there is no newer one on the PATH or beside it"
    )


def run(command: Sequence[str]) -> None:
    """Run to its end. Raises CannotInstallError with the last line that says why."""
    try:
        done = subprocess.run(  # noqa: S603 - our own command lines
            command, capture_output=True, text=True, timeout=INSTALL_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise CannotInstallError(f"not installed within {INSTALL_S:g} s") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise CannotInstallError((lines or done.stderr.splitlines() or ["it failed silently"])[-1])
