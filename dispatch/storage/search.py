"""Tasks as people look for them: a line of words, to a query tree. Pure.

Words have the form `name:value`, and all must hold; a `-` before one turns it
round, quotes keep blanks together, and a word without a name is an id. What can
be named stands in `WORDS`. What is none of these is refused, not taken for an id:
turned round, an id that no task has is every task.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from dispatch.errors import InvalidConfigError
from dispatch.storage.query import (
    All,
    Attempt,
    Crons,
    Header,
    Ids,
    Keys,
    LastError,
    Not,
    Payload,
    Priorities,
    Queues,
    Tags,
    Time,
    Types,
    Where,
)
from dispatch.tasks import NAME

__all__ = ["WORDS", "SearchError", "searched"]

WORD_LIMIT: Final = 20

_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
_TOKEN: Final = re.compile(rf'(?=\S)(-?)(?:([a-z]+)((?:\.[^\s:."]+)*):)?({_QUOTED}|\S*)')
_POSITION: Final = re.compile(r"\d{1,9}")
_AGE: Final = re.compile(r"(\d{1,6})(s|m|h|d|w)")
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}
_PRIORITIES: Final = {"low": 0, "normal": 1, "high": 2, "critical": 3}


class SearchError(InvalidConfigError):
    """A search that cannot be read; the message is for whoever typed it."""


def searched(text: str, now: float) -> All:
    """What the words of `text` mean at a moment, all of them; without any, every task. Raises SearchError."""
    found: list[Where] = []
    for match in _TOKEN.finditer(text):
        minus, name, path, raw = match.groups()
        if raw.startswith('"') and not re.fullmatch(_QUOTED, raw):
            raise SearchError(f'{match[0][:40]}: its quote is not closed; one that is meant is written \\"')
        value = _unquoted(raw)
        if name is None:
            part = _bare(value, negated=bool(minus))
        else:
            part = _word(name, tuple(path.split(".")[1:]), value, raw, now)
        found.append(Not(part) if minus else part)
        if len(found) > WORD_LIMIT:
            raise SearchError(f"a filter has at most {WORD_LIMIT} words")
    return All(*found)


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value


def _bare(value: str, *, negated: bool) -> Where:
    """A word without a name: an id, if it looks like nothing else."""
    name, colon, _ = value.partition(":")
    if colon:
        id_ = f"; an id with a colon in it is written id:{value}" if NAME.fullmatch(value) else ""
        raise SearchError(f"{_unknown(name)}{id_}")
    if negated and (not value or NAME.fullmatch(value)):
        id_ = f"; an id that is not meant is written -id:{value}" if value else ""
        raise SearchError(f"-{value}: what is turned round needs a name, such as -tag:x{id_}")
    return Ids(_named("a word alone is an id, and an id", value))


def _named(what: str, value: str) -> str:
    """The value, if something may have it as its id or name: what nothing has is a slip."""
    if NAME.fullmatch(value) is None:
        raise SearchError(f"{what} has 1 to 128 characters of A-Z a-z 0-9 _ . : -, got {value[:140]!r}")
    return value


def _unknown(name: str) -> str:
    return f"no filter is named {name[:140]!r}; there are {', '.join(sorted(WORDS))}, header.NAME and payload.PATH"


def _word(name: str, path: tuple[str, ...], value: str, raw: str, now: float) -> Where:
    named = ".".join((name, *path))
    if name in _EXAMPLES:
        if not path:
            raise SearchError(f"{name}: say which one, such as {name}.{_EXAMPLES[name]}")
    elif path or name not in WORDS:
        id_ = f"{named}:{value}"
        hint = f"; an id with a colon in it is written id:{id_}" if raw == value and NAME.fullmatch(id_) else ""
        raise SearchError(f"{_unknown(named)}{hint}")
    if not raw:
        raise SearchError(f'{named}: its value is missing; it follows the colon at once, an empty one as ""')
    if name == "header":
        return Header(".".join(path), None if value == "*" else value)
    if name == "payload":
        return Payload(tuple(int(step) if _POSITION.fullmatch(step) else step for step in path), _scalar(raw, value))
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
        raise SearchError(f"priority: one of {', '.join(_PRIORITIES)}, got {value!r}")
    return Priorities(level, level)


def _attempt(value: str, _: float) -> Where:
    match = re.fullmatch(r"(\d{1,9})(\+?)", value)
    if match is None:
        raise SearchError(f"attempt: a number, or 3+ for three and more; got {value!r}")
    least = int(match[1])
    return Attempt(least, None if match[2] else least)


def _since(field: Any) -> Callable[[str, float], Where]:
    def make(value: str, now: float) -> Where:
        match = _AGE.fullmatch(value)
        if match is None:
            raise SearchError(f"{field[:-3]}: how long ago at most, such as 90s, 15m, 6h or 2d; got {value!r}")
        return Time(field, since=now - int(match[1]) * _UNITS[match[2]])

    return make


def _tag(value: str, _: float) -> Where:
    if not value:
        raise SearchError("tag: no tag is empty; say which one, such as tag:x")
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
    "error": lambda value, _: LastError(value),
    "created": _since("created_at"),
    "started": _since("started_at"),
    "finished": _since("finished_at"),
}
