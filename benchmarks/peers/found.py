"""A file of results, to be asked."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

__all__ = ["Found"]


@dataclass(frozen=True)
class Found:
    """What was measured, of whom, under which circumstances."""

    about: dict[str, Any]
    contestants: dict[str, dict[str, Any]]
    runs: list[dict[str, Any]]

    def of(self, cell: str, contestant: str, key: str) -> dict[int, float]:
        """One figure by round."""
        return {
            run["round"]: run[key]
            for run in self.runs
            if run["cell"] == cell and run["contestant"] == contestant and key in run
        }

    def median(self, cell: str, contestant: str, key: str) -> float | None:
        """Its median, None where nothing was found."""
        values = self.of(cell, contestant, key).values()
        return median(values) if values else None

    def ratio(
        self, cell: str, one: str, other: str, key: str, *, other_cell: str | None = None
    ) -> float | None:
        """The median of the ratios within each round that has both."""
        ours, theirs = self.of(cell, one, key), self.of(other_cell or cell, other, key)
        ratios = [ours[number] / theirs[number] for number in ours.keys() & theirs.keys()]
        return median(ratios) if ratios else None

    def error(self, cell: str, contestant: str) -> str | None:
        """Why there is no figure."""
        for run in self.runs:
            if run["cell"] == cell and run["contestant"] == contestant and "error" in run:
                return str(run["error"])
        return None

    def cells(self, measure: str, family: str) -> list[str]:
        """The names of the cells of one measure, in their order."""
        names = {name for name, row in self.contestants.items() if row["family"] == family}
        found: dict[str, None] = {}
        for run in self.runs:
            if run["contestant"] in names and run["cell"].startswith(measure):
                found[run["cell"]] = None
        return list(found)

    def field(self, family: str) -> list[str]:
        """A family's contestants that took part."""
        return [
            name
            for name, row in self.contestants.items()
            if row["family"] == family and "absent" not in row
        ]
