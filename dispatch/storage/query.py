"""The query tree: which tasks a `find`, `count`, `alter` or `prune` means.

Pure values. Trees are built from predicates with `&`, `|` and `~`, or with
`All`, `AnyOf` and `Not`; a storage translates them, and `matches` is their
meaning, in Python, that every translation is tested against. What a translation
could not carry out, or would carry out otherwise than another, is refused with
InvalidConfigError when the value is made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from enum import StrEnum
from math import inf
from typing import Any, Final, Literal

import attrs

from dispatch.checks import (
    check_choice,
    check_count,
    check_duration,
    check_flag,
    check_names,
    shown,
)
from dispatch.errors import InvalidConfigError
from dispatch.records import TaskRecord, to_seconds
from dispatch.tasks import TaskStatus

__all__ = [
    "ENDED",
    "All",
    "AnyOf",
    "Attempt",
    "Crons",
    "Header",
    "Ids",
    "Keys",
    "LastError",
    "Not",
    "Order",
    "Payload",
    "Priorities",
    "PruneSpec",
    "Queues",
    "Statuses",
    "Tags",
    "Time",
    "Types",
    "Where",
    "check_groups",
    "dead_letters",
    "matches",
    "only_open",
    "payload_has",
    "place_of",
]

ENDED: Final = frozenset(status for status in TaskStatus if status.is_terminal)


MOST_CONDITIONS: Final = 4_000
"""In one tree: databases bound the parameters of a statement, SQLite at 32,766."""
MOST_LEVELS: Final = 20
"""Of `All`, `AnyOf` and `Not` in each other: databases bound an expression's depth, too."""
GROUPS: Final = ("queue", "type", "status")


_Extent = tuple[int, int]


class Where:
    """A condition on stored tasks, or a tree of up to 4,000 of them, nested 20 deep."""

    __slots__ = ()

    def __and__(self, other: Where) -> Where:
        # A chain is one level, however long.
        return All(*(self.parts if isinstance(self, All) else (self,)), other)

    def __or__(self, other: Where) -> Where:
        return AnyOf(*(self.parts if isinstance(self, AnyOf) else (self,)), other)

    def __invert__(self) -> Where:
        return Not(self)


@attrs.frozen(init=False)
class All(Where):
    """Every part holds; `All()` is every task."""

    parts: tuple[Where, ...]
    _extent: _Extent = attrs.field(eq=False, repr=False)

    def __init__(self, *parts: Where) -> None:
        self.__attrs_init__(parts, _extent(parts))  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


@attrs.frozen(init=False)
class AnyOf(Where):
    """At least one part holds; `AnyOf()` is no task."""

    parts: tuple[Where, ...]
    _extent: _Extent = attrs.field(eq=False, repr=False)

    def __init__(self, *parts: Where) -> None:
        self.__attrs_init__(parts, _extent(parts))  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


@attrs.frozen(init=False)
class Not(Where):
    """The part does not hold."""

    part: Where
    _extent: _Extent = attrs.field(eq=False, repr=False)

    def __init__(self, part: Where) -> None:
        self.__attrs_init__(part, _extent((part,)))  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


def _extent(parts: tuple[Where, ...]) -> _Extent:
    """The number of conditions and of levels of a tree with these parts, if it may have them."""
    conditions = levels = 0
    for part in parts:
        if isinstance(part, All | AnyOf | Not):
            within, deep = part._extent  # pyright: ignore[reportPrivateUsage]
        elif isinstance(part, Where):
            within, deep = 1, 0
        else:
            raise InvalidConfigError(f"not a query: {shown(part)}; build one from dispatch.storage.query")
        conditions += within
        levels = max(levels, deep)
    if conditions > MOST_CONDITIONS:
        raise InvalidConfigError(
            f"a query has at most {MOST_CONDITIONS} conditions, got {conditions}; "
            "one condition takes many names: Ids('a', 'b', ...)"
        )
    if levels >= MOST_LEVELS:
        raise InvalidConfigError(f"a query is nested at most {MOST_LEVELS} levels deep; flatten it with All and AnyOf")
    return conditions, levels + 1


class _Names(Where):
    """A field is one of the values given; none given matches nothing."""

    __slots__ = ("values",)
    values: frozenset[str]

    def __init__(self, *values: str) -> None:
        for value in values:
            if not isinstance(value, str):
                name = type(self).__name__
                raise InvalidConfigError(f"{name}: wanted strings, as in {name}('a', 'b'); got {shown(value)}")
        self.values = frozenset(values)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.values == other.values  # pyright: ignore

    def __hash__(self) -> int:
        return hash((type(self), self.values))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, sorted(self.values)))})"


class Ids(_Names):
    """The task's id is one of these."""

    __slots__ = ()


class Queues(_Names):
    """The task's queue is one of these."""

    __slots__ = ()


class Types(_Names):
    """The task's type is one of these."""

    __slots__ = ()


class Keys(_Names):
    """The task's key is one of these."""

    __slots__ = ()


class Crons(_Names):
    """The task came from one of these cron tasks."""

    __slots__ = ()


class Statuses(_Names):
    """The task's status is one of these.

    Aliases: `retrying` is a pending task with attempts behind it; `later` a
    pending one not due yet, `due` one that is.
    """

    __slots__ = ()

    def __init__(self, *values: str) -> None:
        known = {*(status.value for status in TaskStatus), "later", "due"}
        for value in values:
            if not isinstance(value, str) or value not in known:
                raise InvalidConfigError(f"Statuses: expected some of {', '.join(sorted(known))}; got {shown(value)}")
        super().__init__(*(str(value) for value in values))


def _all_of(given: Iterable[str]) -> frozenset[str]:
    return check_names("Tags: all_of", given)


def _any_of(given: Iterable[str] | None) -> frozenset[str] | None:
    return None if given is None else check_names("Tags: any_of", given)


@attrs.frozen(kw_only=True)
class Tags(Where):
    """The task carries all of `all_of` and at least one of `any_of`.

    An empty `all_of` is true for every task; an empty `any_of` for none, and
    None leaves it out.
    """

    all_of: frozenset[str] = attrs.field(default=frozenset(), converter=_all_of)
    any_of: frozenset[str] | None = attrs.field(default=None, converter=_any_of)


@attrs.frozen
class Header(Where):
    """The task has this header, with this value unless it is None."""

    name: str
    value: str | None = None

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.name, str) or not isinstance(self.value, str | None):
            raise InvalidConfigError(
                f"Header: wanted a name and a value or None, both str; got {shown(self.name)} and {shown(self.value)}"
            )


@attrs.frozen
class LastError(Where):
    """The task's last error contains this text, upper and lower case told apart; the empty text is any error."""

    contains: str = ""

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.contains, str):
            raise InvalidConfigError(f"LastError: wanted a str, as in LastError('TimeoutError'); got {shown(self.contains)}")


@attrs.frozen
class Payload(Where):
    """The value at `path` in the payload's JSON, such as `("lines", 2, "qty")`, equals `value`."""

    path: tuple[str | int, ...]
    value: str | int | float | bool | None

    def __attrs_post_init__(self) -> None:
        if not (isinstance(self.path, tuple) and all(isinstance(step, str | int) for step in self.path)):
            raise InvalidConfigError(f"Payload: path must be a tuple, as in ('lines', 2, 'qty'); got {shown(self.path)}")
        if not isinstance(self.value, str | int | float | None):
            raise InvalidConfigError(f"Payload: value must be a str, a number, a bool or None; got {shown(self.value)}")


@attrs.frozen
class Priorities(Where):
    """The task's own priority lies within, both ends included."""

    least: int = 0
    most: int = 3

    def __attrs_post_init__(self) -> None:
        check_count("Priorities: least", self.least, 0)
        check_count("Priorities: most", self.most, 0)


@attrs.frozen
class Attempt(Where):
    """The task's attempts lie within, both ends included; None is open."""

    least: int = 0
    most: int | None = None

    def __attrs_post_init__(self) -> None:
        check_count("Attempt: least", self.least, 0)
        if self.most is not None:
            check_count("Attempt: most", self.most, 0)


def _bound(given: datetime | float | None) -> float | None:
    # Made a float here: SQLite holds any text to be above every number.
    if given is None:
        return None
    if isinstance(given, datetime):
        if given.utcoffset() is None:
            raise InvalidConfigError(
                f"Time: a datetime must have a time zone, got {given.isoformat()}; for a moment in UTC add tzinfo=UTC"
            )
        return to_seconds(given)
    if not isinstance(given, bool) and isinstance(given, int | float) and abs(given) <= inf:
        with suppress(OverflowError):
            return float(given)
    raise InvalidConfigError(f"Time: wanted a datetime with a time zone or UTC seconds, got {shown(given)}")


@attrs.frozen
class Time(Where):
    """A moment of the task lies in [since, until); an unset moment never does.

    The bounds are aware datetimes or UTC seconds, and are kept as seconds.
    """

    field: Literal["created_at", "available_at", "started_at", "finished_at"]
    since: float | None = attrs.field(default=None, converter=_bound)
    until: float | None = attrs.field(default=None, converter=_bound)

    def __attrs_post_init__(self) -> None:
        # A name of a column in a database's statement.
        check_choice("Time: field", self.field, ("created_at", "available_at", "started_at", "finished_at"))


class Order(StrEnum):
    """By order of storing."""

    OLDEST = "oldest"
    NEWEST = "newest"


@attrs.frozen(kw_only=True)
class PruneSpec:
    """Which ended tasks to delete: those older than `age_s` since their end, or beyond the newest `keep`.

    With both, either suffices. `keep` counts per `per`. `where` narrows which
    are considered at all; failed tasks, the dead letters, are only considered
    with `dead_letters=True`. At most `limit` go in one call, oldest end first.
    """

    age_s: float | None = None
    keep: int | None = None
    per: Literal["total", "queue", "type"] = "total"
    where: Where = All()
    dead_letters: bool = False
    limit: int = 1_000

    def __attrs_post_init__(self) -> None:
        if self.age_s is None and self.keep is None:
            raise InvalidConfigError("PruneSpec: give age_s, keep or both; got neither")
        if self.age_s is not None:
            check_duration("PruneSpec: age_s", self.age_s)
        if self.keep is not None:
            check_count("PruneSpec: keep", self.keep, 0)
        check_choice("PruneSpec: per", self.per, ("total", "queue", "type"))
        if not isinstance(self.where, Where):
            raise InvalidConfigError(
                f"PruneSpec: where: not a query: {shown(self.where)}; build one from dispatch.storage.query"
            )
        check_flag("PruneSpec: dead_letters", self.dead_letters)
        check_count("PruneSpec: limit", self.limit, 1)


def check_groups(by: Sequence[Literal["queue", "type", "status"]]) -> tuple[Literal["queue", "type", "status"], ...]:
    """The fields that `count` is to group by. Raises InvalidConfigError for any other."""
    wanted = "count: by must be a tuple of 'queue', 'type' and 'status'"
    if isinstance(by, str) or not isinstance(by, Iterable):
        raise InvalidConfigError(f"{wanted}, got {shown(by)}")
    names = tuple(by)
    for name in names:
        if name not in GROUPS:
            raise InvalidConfigError(f"{wanted}, got {shown(name)} in it")
    return names


def place_of(cursor: str) -> int:
    """The `seq` that a page's cursor names. Raises InvalidConfigError for what is no cursor."""
    if isinstance(cursor, str) and re.fullmatch("[0-9]{1,18}", cursor):  # more would not fit a database's integer
        return int(cursor)
    raise InvalidConfigError(f"find: after must be the cursor of a page, got {shown(cursor)}")


def dead_letters(queue: str | None = None) -> Where:
    """The dead letters, of one queue or of all."""
    failed = Statuses("failed")
    return failed if queue is None else All(Queues(queue), failed)


def matches(where: Where, record: TaskRecord, now: float) -> bool:
    """Whether the task is meant by the tree, at the storage time `now`."""
    match where:
        case All(parts):
            return all(matches(part, record, now) for part in parts)
        case AnyOf(parts):
            return any(matches(part, record, now) for part in parts)
        case Not(part):
            return not matches(part, record, now)
        case Ids():
            return record.id in where.values
        case Queues():
            return record.queue in where.values
        case Types():
            return record.type in where.values
        case Keys():
            return record.key in where.values
        case Crons():
            return record.cron in where.values
        case Statuses():
            return not where.values.isdisjoint(_shown(record, now))
        case Tags():
            tags = frozenset(record.tags)
            return where.all_of <= tags and (where.any_of is None or bool(where.any_of & tags))
        case Header(name, value):
            return name in record.headers and (value is None or record.headers[name] == value)
        case LastError(contains):
            return record.last_error is not None and contains in record.last_error
        case Payload(path, value):
            return payload_has(record.payload, path, value)
        case Priorities(least, most):
            return least <= record.priority <= most
        case Attempt(least, most):
            return least <= record.attempt and (most is None or record.attempt <= most)
        case Time(field, since, until):
            moment: float | None = getattr(record, field)
            if moment is None:
                return False
            return (since is None or moment >= since) and (until is None or moment < until)
        case _:
            raise InvalidConfigError(f"not a query: {where!r}; build one from dispatch.storage.query")


def only_open(where: Where) -> bool:
    """Whether the tree says by its statuses that no task that has ended is meant."""
    match where:
        case All(parts):
            return any(map(only_open, parts))
        case AnyOf(parts):
            return all(map(only_open, parts))
        case Statuses():
            return where.values.isdisjoint(ENDED)
        case _:
            return False


def _shown(record: TaskRecord, now: float) -> set[str]:
    """The status and its aliases."""
    shown = {record.status.value}
    if record.status is TaskStatus.PENDING:
        shown.add("due" if record.available_at <= now else "later")
        if record.attempt:
            shown.add("retrying")
    return shown


def payload_has(payload: bytes, path: tuple[str | int, ...], wanted: object) -> bool:
    """The meaning of `Payload`: the value at `path` equals `wanted`, and is of its type."""
    try:
        value: Any = json.loads(payload)
        for step in path:
            if isinstance(step, str) != isinstance(value, Mapping):
                return False
            value = value[step]
    except (ValueError, LookupError, TypeError, RecursionError):
        return False
    return type(value) is type(wanted) and value == wanted
