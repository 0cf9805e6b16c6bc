"""The lower bounds of pyproject.toml are those that are tested."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]


def bounds(lines: Iterable[str], operator: str) -> dict[str, Version]:
    """What each requirement says with `operator`, by name."""
    found: dict[str, Version] = {}
    for line in lines:
        requirement = Requirement(line)
        [version] = [Version(each.version) for each in requirement.specifier if each.operator == operator]
        assert found.setdefault(requirement.name, version) == version, f"two bounds: {line}"
    return found


def test_the_oldest_versions_allowed_are_those_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    allowed = bounds([*project["dependencies"], *(line for lines in extras for line in lines)], ">=")
    text = (ROOT / "tests" / "oldest.txt").read_text()
    tested = bounds([line for line in text.splitlines() if not line.startswith("#")], "==")
    assert tested == allowed
