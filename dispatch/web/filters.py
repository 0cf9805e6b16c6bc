"""What a list of tasks is narrowed to: from a query string, to a query tree and back. Pure.

The text field takes words of the form `name:value`, all of which must hold; a
`-` before one turns it round, quotes keep blanks together, and a word without a
name is an id. What can be named stands in `WORDS`. What is none of these is
refused, not taken for an id: turned round, an id that no task has is every task.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

import attrs

from dispatch.errors import InvalidConfigError
from dispatch.storage.query import (
    All,
    Attempt,
    Crons,
    Header,
    Ids,
    Keys,
    Not,
    Order,
    Payload,
    Priorities,
    Queues,
    Statuses,
    Tags,
    Time,
    Types,
    Where,
)
from dispatch.tasks import NAME

__all__ = ["QUERY_LIMIT", "STATUSES", "WORDS", "FilterError", "TaskFilter", "misread", "whole"]

STATUSES: Final = (
    "pending", "later", "retrying", "running", "held", "succeeded", "failed", "cancelled",
)  # fmt: skip
PAGE: Final = 50
MOST_PER_PAGE: Final = 200
TEXT_LIMIT: Final = 1_000
NAME_LIMIT: Final = 128
WORD_LIMIT: Final = 20
QUERY_LIMIT: Final = 16_000
"""Characters of a query string; every filter within the bounds above has fewer."""

_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
_TOKEN: Final = re.compile(rf'(?=\S)(-?)(?:([a-z]+)((?:\.[^\s:."]+)*):)?({_QUOTED}|\S*)')
_AGE: Final = re.compile(r"(\d{1,6})(s|m|h|d|w)")
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}
_PRIORITIES: Final = {"low": 0, "normal": 1, "high": 2, "critical": 3}


class FilterError(InvalidConfigError):
    """A filter that cannot be read; the message is for whoever typed it."""


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
        Raises FilterError; for the words of `text`, `where` does.
        """
        if len(query) > QUERY_LIMIT:
            raise FilterError(f"a filter has at most {QUERY_LIMIT:,} characters as a query string, got {len(query):,}")
        try:
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict") if query else []
        except ValueError:
            raise FilterError(f"a filter is a query string, such as status=failed; got {query[:80]!r}") from None
        given: dict[str, str] = {}
        for name, value in pairs:
            if name in given:
                raise FilterError(f"{name[:40]}: a filter has it once, got {given[name][:40]!r} and {value[:40]!r}")
            given[name] = value
        problem = misread(given)
        if problem is not None:
            raise FilterError(problem)
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
        """All that it means at a moment. Raises FilterError for a text that cannot be read."""
        parts: list[Where] = [self.place(queues)]
        if self.status in ("later", "retrying"):
            parts.append(Statuses(self.status))
        if self.type:
            parts.append(Types(self.type))
        parts += _words(self.text, now)
        return All(*parts)

    def ids(self, now: float) -> frozenset[str] | None:
        """The ids that it names first, which are looked up at once; None if it names none."""
        for part in _words(self.text, now):
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


def _words(text: str, now: float) -> list[Where]:
    found: list[Where] = []
    for match in _TOKEN.finditer(text):
        minus, name, path, raw = match.groups()
        if raw.startswith('"') and not re.fullmatch(_QUOTED, raw):
            raise FilterError(f'{match[0][:40]}: its quote is not closed; one that is meant is written \\"')
        value = _unquoted(raw)
        if name is None:
            part = _bare(value, negated=bool(minus))
        else:
            part = _word(name, tuple(path.split(".")[1:]), value, raw, now)
        found.append(Not(part) if minus else part)
        if len(found) > WORD_LIMIT:
            raise FilterError(f"a filter has at most {WORD_LIMIT} words")
    return found


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value


def _bare(value: str, *, negated: bool) -> Where:
    """A word without a name: an id, if it looks like nothing else."""
    name, colon, _ = value.partition(":")
    if colon:
        id_ = f"; an id with a colon in it is written id:{value}" if NAME.fullmatch(value) else ""
        raise FilterError(f"{_unknown(name)}{id_}")
    if negated and (not value or NAME.fullmatch(value)):
        id_ = f"; an id that is not meant is written -id:{value}" if value else ""
        raise FilterError(f"-{value}: what is turned round needs a name, such as -tag:x{id_}")
    return Ids(_named("a word alone is an id, and an id", value))


def _named(what: str, value: str) -> str:
    """The value, if something may have it as its id or name: what nothing has is a slip."""
    if NAME.fullmatch(value) is None:
        raise FilterError(f"{what} has 1 to 128 characters of A-Z a-z 0-9 _ . : -, got {value[:140]!r}")
    return value


def _unknown(name: str) -> str:
    return f"no filter is named {name[:140]!r}; there are {', '.join(sorted(WORDS))}, header.NAME and payload.PATH"


def _word(name: str, path: tuple[str, ...], value: str, raw: str, now: float) -> Where:
    named = ".".join((name, *path))
    if name in _EXAMPLES:
        if not path:
            raise FilterError(f"{name}: say which one, such as {name}.{_EXAMPLES[name]}")
    elif path or name not in WORDS:
        raise FilterError(_unknown(named))
    if not raw:
        raise FilterError(f'{named}: its value is missing; it follows the colon at once, an empty one as ""')
    if name == "header":
        return Header(".".join(path), None if value == "*" else value)
    if name == "payload":
        return Payload(tuple(int(step) if step.isdecimal() else step for step in path), _scalar(raw, value))
    return WORDS[name](value, now)


_EXAMPLES: Final = {"header": "traceparent:*", "payload": "user.id:7"}


def _scalar(raw: str, value: str) -> str | int | float | bool | None:
    """`7` is a number, `"7"` and everything that is no JSON scalar a text."""
    if raw.startswith('"'):
        return value
    try:
        found: Any = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return found if found is None or isinstance(found, bool | int | float) else value


def _priority(value: str, _: float) -> Where:
    level = _PRIORITIES.get(value)
    if level is None:
        raise FilterError(f"priority: one of {', '.join(_PRIORITIES)}, got {value!r}")
    return Priorities(level, level)


def _attempt(value: str, _: float) -> Where:
    match = re.fullmatch(r"(\d{1,9})(\+?)", value)
    if match is None:
        raise FilterError(f"attempt: a number, or 3+ for three and more; got {value!r}")
    least = int(match[1])
    return Attempt(least, None if match[2] else least)


def _since(field: Any) -> Callable[[str, float], Where]:
    def make(value: str, now: float) -> Where:
        match = _AGE.fullmatch(value)
        if match is None:
            raise FilterError(f"{field[:-3]}: how long ago at most, such as 90s, 15m, 6h or 2d; got {value!r}")
        return Time(field, since=now - int(match[1]) * _UNITS[match[2]])

    return make


def _tag(value: str, _: float) -> Where:
    if not value:
        raise FilterError("tag: no tag is empty; say which one, such as tag:x")
    return Tags(all_of=[value])


WORDS: Final[Mapping[str, Callable[[str, float], Where]]] = {
    "id": lambda value, _: Ids(_named("id: an id", value)),
    "key": lambda value, _: Keys(value),
    "tag": _tag,
    "cron": lambda value, _: Crons(_named("cron: a cron task's name", value)),
    "queue": lambda value, _: Queues(_named("queue: a queue's name", value)),
    "type": lambda value, _: Types(_named("type: a task type's name", value)),
    "priority": _priority,
    "attempt": _attempt,
    "created": _since("created_at"),
    "started": _since("started_at"),
    "finished": _since("finished_at"),
}
