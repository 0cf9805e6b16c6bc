"""The example of a user's own storage passes the kit, and fails it with a planted bug."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.product import scripts

EXAMPLE = scripts.ROOT / "examples" / "own_storage.py"
LIMIT_S = 300.0


def held_to_the_kit(path: Path, cases: str = "") -> str:
    """The last line of a run of pytest on this file."""
    command = [sys.executable, "-m", "pytest", str(path), "-q", "-x", "-n", "0", "--tb=no"]
    command += ["-p", "no:cacheprovider", "-c", str(scripts.ROOT / "pyproject.toml")]
    done = subprocess.run(  # noqa: S603 - our own file
        [*command, "-k", cases],
        cwd=scripts.ROOT,
        env=scripts.environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return done.stdout.rstrip().rpartition("\n")[2]


@pytest.mark.battery
def test_a_storage_of_ones_own_passes_the_whole_kit() -> None:
    last = held_to_the_kit(EXAMPLE)
    assert int(last.split(" passed")[0].split()[-1]) > 250, last
    assert "failed" not in last
    assert "error" not in last


BUGS = {
    "no fence": ("answer is not SettleAnswer.APPLIED", "answer is SettleAnswer.GONE", "stale"),
    "a full disk is not told": ("raise StorageError(", "return  # (", "fails_anywhere and settle"),
    "the window is cut short": ("- due) <= unique.within", "- due) < unique.within", "window"),
    "a lease of just now": ("row.lease_until < now", "row.lease_until <= now", "at_its_end"),
    "an idle worker wakes itself": ("if text == self._text", "if False", "finding_nothing"),
    "a rate is written down at each look": ("(started or since > now)", "True", "finding_nothing"),
    "a look swallows a ring": ("version != told", "version != self._version", "looked_meanwhile"),
    "a delay yields its key": (" and other.epoch > 0 and", " and", "yields_nothing"),
    "waiting lifts by broken levels": ("row.priority + int(risen)", "row.priority + risen", "who_rose"),
    "who is answered EXISTING holds the row": ("row.available_at, copy(row))", "row.available_at, row)", "cannot_reach"),
    "a cancellation is raised for what was done": (
        "            return [settled(tables, transition, now) for transition in transitions]",
        "            found = [settled(tables, transition, now) for transition in transitions]\n"
        "        await trio.lowlevel.checkpoint()\n        return found",
        "cancelled_anywhere and settle",
    ),
    "what a run published is stored in a step of its own": (
        "            return [settled(tables, transition, now) for transition in transitions]",
        "            found = [settled(tables, attrs.evolve(one, spawn=()), now) for one in transitions]\n"
        "        with self._step() as (tables, now):\n"
        "            for each, one in zip(found, transitions, strict=True):\n"
        "                if each.answer is SettleAnswer.APPLIED:\n"
        "                    each.spawned = [store(tables, new, now) for new in one.spawn]\n"
        "        return found",
        "fails_anywhere and settle",
    ),
    "a key is overtaken": ("other.seq < row.seq", "other.seq > row.seq", "one_at_a_time"),
}


@pytest.mark.battery
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_fails_the_kit(bug: str, tmp_path: Path) -> None:
    right, wrong, cases = BUGS[bug]
    text = EXAMPLE.read_text(encoding="utf-8")
    assert text.count(right) == 1
    broken = tmp_path / "broken.py"
    broken.write_text(text.replace(right, wrong), encoding="utf-8")
    assert "1 failed" in held_to_the_kit(broken, cases)
