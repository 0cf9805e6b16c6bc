"""A Ctrl-C in the middle of our own bookkeeping, wherever that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conclusive import noticed

from .conftest import Tell
from .launch import figures_of

PLACES = [
    ("storage/sqlite_writer.py", ""),
    ("dispatch/actors.py", ""),
    ("dispatch/execution.py", "drive"),
]


def ends_by_it(figures: dict[str, Any]) -> None:
    # Struck at its very end, a life may be over before it could be told.
    assert set(figures["ends"]) <= {"KeyboardInterrupt", "finished"}, "it did not simply end"
    assert figures["orphans"] == 0, "what was claimed waits for its lease"


@pytest.mark.battery
@pytest.mark.parametrize(("module", "function"), PLACES)
def test_a_ctrl_c_ends_the_program_and_gives_back_what_was_claimed(
    module: str, function: str, tmp_path: Path, tell: Tell
) -> None:
    figures = figures_of("interrupts", tmp_path, 300, at=module, only=function)
    tell(figures)
    ends_by_it(figures)
    assert figures["ends"]["KeyboardInterrupt"] > figures["lives"] / 2


@pytest.mark.battery
def test_the_interrupting_notices_that_nothing_is_protected(tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("interrupts", tmp_path, 300, protected="no", at="dispatch/actors.py")
    tell(figures)
    with noticed("claimed waits|not simply end"):
        ends_by_it(figures)
