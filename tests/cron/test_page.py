"""What docs/cron.md shows of the command line is what the command line prints."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/cron.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n\$ (.*)\n((?:.*\n)*?)```", PAGE)


def test_the_page_shows_a_preview() -> None:
    assert [command.split()[:3] for command, _ in BLOCKS] == [["dispatch", "cron", "preview"]]


@pytest.mark.parametrize(("command", "printed"), BLOCKS)
def test_a_command_prints_what_the_page_says(command: str, printed: str) -> None:
    pytest.importorskip("cyclopts", reason="the command line is the extra `cli`")
    program, *arguments = shlex.split(command)
    done = subprocess.run(  # noqa: S603 - our own page
        [sys.executable, "-W", "error", "-m", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    wanted = [re.escape(line).replace(r"\.\.\.", ".*") for line in printed.splitlines()]
    found = done.stdout.splitlines()
    assert len(found) == len(wanted), done.stdout
    for pattern, line in zip(wanted, found, strict=True):
        assert re.fullmatch(pattern, line), line
