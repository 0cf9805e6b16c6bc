"""What the two type checkers accept and reject, and how complete the published types are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LIMIT_S = 300.0

pytestmark = pytest.mark.battery


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(  # noqa: S603 - our own command lines
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def mypy(file: Path, cache: Path) -> dict[int, str]:
    """The lines that mypy finds errors on, with what it says."""
    if find_spec("mypy") is None:
        pytest.skip("mypy is in the lint group")
    done = run("mypy", "--strict", "--no-error-summary", "--cache-dir", str(cache), str(file))
    assert done.returncode in (0, 1), done.stdout + done.stderr
    errors = re.findall(r"^[^:\n]*?(\w+\.py):(\d+): error: (.*)$", done.stdout, re.MULTILINE)
    elsewhere = [found for found in errors if found[0] != file.name]
    assert not elsewhere
    assert errors or done.returncode == 0, done.stdout
    return {int(line): text for _, line, text in errors}


def pyright(file: Path, _: Path) -> dict[int, str]:
    """The lines that pyright finds errors on, with what it says."""
    if find_spec("pyright") is None:
        pytest.skip("pyright is in the lint group")
    # The files ask for strict themselves, so that an editor shows the same.
    done = run("pyright", "--pythonpath", sys.executable, "--outputjson", str(file))
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] == 1, done.stdout
    return {
        each["range"]["start"]["line"] + 1: each["message"]
        for each in found["generalDiagnostics"]
        if each["severity"] == "error"
    }


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_what_must_be_accepted_is(checker: object, tmp_path: Path) -> None:
    assert checker(HERE / "accepted.py", tmp_path) == {}  # type: ignore[operator]


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_exactly_the_marked_lines_are_rejected(checker: object, tmp_path: Path) -> None:
    file = HERE / "rejected.py"
    lines = file.read_text(encoding="utf-8").splitlines()
    marked = {number: line for number, line in enumerate(lines, 1) if "# REJECT" in line}
    assert marked
    found = checker(file, tmp_path)  # type: ignore[operator]
    missed = {number: line.strip() for number, line in marked.items() if number not in found}
    unmarked = {number: text for number, text in found.items() if number not in marked}
    assert (missed, unmarked) == ({}, {})


def test_every_public_name_has_a_known_type() -> None:
    if find_spec("pyright") is None:
        pytest.skip("pyright is in the lint group")
    done = run("pyright", "--pythonpath", sys.executable, "--verifytypes", "dispatch", "--ignoreexternal")
    if "No py.typed file found" in done.stdout or "not installed" in done.stdout:
        pytest.skip("--verifytypes looks at an installed package: pip install -e . first")
    assert "Type completeness score: 100%" in done.stdout, done.stdout
