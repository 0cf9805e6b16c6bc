"""The page about testing is a test file: its blocks, put together, pass as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.product import scripts
from tests.product.test_readme import ROOT, blocks

PAGE = ROOT / "docs" / "testing.md"
SETTINGS = """[pytest]
trio_mode = true
filterwarnings = error
"""


def test_the_blocks_of_the_page_pass_as_one_test_file(tmp_path: Path) -> None:
    marked = blocks(PAGE.read_text(encoding="utf-8"), "python")
    assert {mark for mark, _ in marked} == {"test"}
    text = "\n\n".join(body for _, body in marked)
    (tmp_path / "test_page.py").write_text(text, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text(SETTINGS, encoding="utf-8")
    done = subprocess.run(  # noqa: S603 - our own page
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(tmp_path)],
        cwd=tmp_path,
        env=scripts.environment(),
        capture_output=True,
        text=True,
        timeout=scripts.LIMIT_S,
        check=False,
    )
    tests = len(re.findall(r"^(?:async )?def test_", text, re.MULTILINE))
    assert tests > 8
    assert f"{tests} passed" in done.stdout, done.stdout + done.stderr
