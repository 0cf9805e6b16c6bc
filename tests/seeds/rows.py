"""A seed's table: what it offers, what that is here, and a check that each row has its test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T", bound=Callable[..., Any])


class Rows:
    """The rows of one seed by name, each with what it is here."""

    def __init__(self, table: Mapping[str, str]) -> None:
        self.table = dict(table)
        self.shown: dict[str, str] = {}

    def show(self, *names: str) -> Callable[[T], T]:
        """Marks a test as the one of these rows."""
        for name in names:
            assert name in self.table, f"no row {name!r}"
            assert name not in self.shown, f"row {name!r} is shown by {self.shown[name]} already"

        def mark(test: T) -> T:
            self.shown |= dict.fromkeys(names, test.__name__)
            return test

        return mark

    @property
    def untested(self) -> list[str]:
        """The rows that no test shows."""
        return [name for name in self.table if name not in self.shown]
