"""What a list of tasks is narrowed to: from a query string, to a query tree and back. Pure.

The words of the text field are those of `dispatch.storage.search`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

import attrs

from dispatch.storage.query import All, Ids, Order, Queues, Statuses, Types, Where
from dispatch.storage.search import SearchError, searched

__all__ = ["QUERY_LIMIT", "STATUSES", "TaskFilter", "misread", "whole"]

STATUSES: Final = (
    "pending", "later", "retrying", "running", "held", "succeeded", "failed", "cancelled",
)  # fmt: skip
PAGE: Final = 50
MOST_PER_PAGE: Final = 200
TEXT_LIMIT: Final = 1_000
NAME_LIMIT: Final = 128
QUERY_LIMIT: Final = 16_000
"""Characters of a query string; every filter within the bounds above has fewer."""


def whole(text: str, default: int, least: int, most: int) -> int:
    """A whole number within bounds; what is none is the default."""
    try:
        return min(max(int(text[:20]), least), most)
    except ValueError:
        return default


@attrs.frozen(kw_only=True)
class TaskFilter:
    """One list of tasks: what it is narrowed to, its order, page size and place."""

    queue: str = ""
    type: str = ""
    status: str = ""
    text: str = ""
    order: str = "newest"
    limit: int = PAGE
    after: str = ""

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> TaskFilter:
        """From a query string; everything is cut or clamped, nothing is refused here.

        `misread` says what was. That will do for looking only.
        """
        status = given.get("status", "")
        return cls(
            queue=given.get("queue", "")[:NAME_LIMIT],
            type=given.get("type", "")[:NAME_LIMIT],
            status=status if status in STATUSES else "",
            text=given.get("text", "").strip()[:TEXT_LIMIT],
            order="oldest" if given.get("order") == "oldest" else "newest",
            limit=whole(given.get("limit", ""), PAGE, 1, MOST_PER_PAGE),
            after=given.get("after", "")[:NAME_LIMIT],
        )

    @classmethod
    def exactly(cls, query: str) -> TaskFilter:
        """From a whole query string that is to be acted on: what `parse` would cut or drop is refused.

        Without a condition that was not understood a filter means more, not less.
        Raises SearchError; for the words of `text`, `where` does.
        """
        if len(query) > QUERY_LIMIT:
            raise SearchError(f"a filter has at most {QUERY_LIMIT:,} characters as a query string, got {len(query):,}")
        try:
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict") if query else []
        except ValueError:
            raise SearchError(f"a filter is a query string, such as status=failed; got {query[:80]!r}") from None
        given: dict[str, str] = {}
        for name, value in pairs:
            if name in given:
                raise SearchError(f"{name[:40]}: a filter has it once, got {given[name][:40]!r} and {value[:40]!r}")
            given[name] = value
        problem = misread(given)
        if problem is not None:
            raise SearchError(problem)
        return cls.parse(given)

    def query(self, **changes: Any) -> str:
        """The query string of this list, or of one that differs in `changes`."""
        plain = TaskFilter()
        wanted = attrs.asdict(attrs.evolve(self, **changes))
        return urlencode(
            {name: each for name, each in wanted.items() if each != getattr(plain, name)},
            errors="replace",
        )

    @property
    def is_searching(self) -> bool:
        """Whether tasks must be looked at one by one to tell whether they are meant."""
        return bool(self.type or self.text) or self.status in ("later", "retrying")

    @property
    def direction(self) -> Order:
        """The order as the storage knows it."""
        return Order(self.order)

    def place(self, queues: tuple[str, ...]) -> Where:
        """What a storage finds without looking at what is not meant: the queue and the status.

        `queues` are all there are: a status is asked for queue by queue, which
        is how storages keep them in order.
        """
        parts: list[Where] = []
        if self.queue:
            parts.append(Queues(self.queue))
        elif self.status and queues:
            parts.append(Queues(*queues))
        if self.status:
            stored = "pending" if self.status in ("later", "retrying") else self.status
            parts.append(Statuses(stored))
        return All(*parts)

    def where(self, now: float, queues: tuple[str, ...]) -> Where:
        """All that it means at a moment. Raises SearchError for a text that cannot be read."""
        parts: list[Where] = [self.place(queues)]
        if self.status in ("later", "retrying"):
            parts.append(Statuses(self.status))
        if self.type:
            parts.append(Types(self.type))
        return All(*parts, *searched(self.text, now).parts)

    def ids(self, now: float) -> frozenset[str] | None:
        """The ids that it names first, which are looked up at once; None if it names none."""
        for part in searched(self.text, now).parts:
            if isinstance(part, Ids):
                return part.values
        return None


def misread(given: Mapping[str, str]) -> str | None:
    """The first condition of a query string that `TaskFilter.parse` cuts or leaves out; None without any."""
    names = attrs.fields_dict(TaskFilter)
    for name in given:
        if name not in names:
            return f"no filter is named {name[:40]!r}; there are {', '.join(names)}"
    for name, known in (("status", STATUSES), ("order", ("newest", "oldest"))):
        value = given.get(name)
        if value and value not in known:
            return f"{name}: one of {', '.join(known)}, got {value[:40]!r}"
    for name, limit in (("queue", NAME_LIMIT), ("type", NAME_LIMIT), ("text", TEXT_LIMIT)):
        length = len(given.get(name, ""))
        if length > limit:
            return f"{name}: at most {limit:,} characters, got {length:,}"
    return None
