"""The query tree in SQL, and the reads that answer it.

`condition` translates a tree to an expression that is never NULL, so that `Not`
means what it says. It is tested against `dispatch.storage.query.matches`.

A page goes by `seq`. Where the tree names statuses or queues, each pair of queue
and status is one range of the `status` index, already in order of storing; the
pages of all ranges are merged. So the newest dead letters of a queue are found
among a million finished tasks without passing them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, Final, Literal

from dispatch import lifecycle
from dispatch.checks import MAX_COUNT
from dispatch.errors import InvalidConfigError
from dispatch.records import AttemptRecord, TaskRecord
from dispatch.storage.protocol import Page
from dispatch.storage.query import (
    All,
    AnyOf,
    Attempt,
    Crons,
    Header,
    Ids,
    Keys,
    LastError,
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
    check_groups,
    place_of,
)
from dispatch.storage.sqlite_rows import COLUMNS, attempt_of, record_of, success_of
from dispatch.storage.texts import storable
from dispatch.tasks import TaskStatus

__all__ = ["condition", "count", "find", "history", "records", "sequences"]

Sql = tuple[str, list[Any]]
"""An expression and its parameters."""

SHOWN: Final = "CASE WHEN status = 'pending' AND available_at > ? THEN 'later' ELSE status END"
MOST_JOINED: Final = 20
"""A chain of operators is as deep as it is long, and SQLite takes a depth of 1,000: in groups, it is not."""
MOST_LISTED: Final = 8
"""Times the conditions that a tree may have: within the 32,766 parameters that SQLite takes."""
MOST_RANGES: Final = 400
"""Beyond so many pairs of queue and status a plain scan is as good."""


def condition(where: Where, now: float) -> Sql:
    """The tree as one SQL expression over `dispatch_tasks`, 0 or 1 and never NULL."""
    match where:
        case All(parts):
            return _joined(parts, now, " AND ", "1")
        case AnyOf(parts):
            return _joined(parts, now, " OR ", "0")
        case Not(part):
            sql, values = condition(part, now)
            return f"NOT ({sql})", values
        case Ids():
            return _among("id", where.values)
        case Queues():
            return _among("queue", where.values)
        case Types():
            return _among("type", where.values)
        case Keys():
            sql, values = _among("key", where.values)
            return f"(key IS NOT NULL AND {sql})", values
        case Crons():
            sql, values = _among("cron", where.values)
            return f"(cron IS NOT NULL AND {sql})", values
        case Statuses():
            return _statuses(where.values, now)
        case Tags():
            return _tags(where)
        case Header(name, value):
            if not storable(name) or not (value is None or storable(value)):
                return "0", []
            sql = "EXISTS (SELECT 1 FROM json_each(coalesce(headers, '{}')) AS h WHERE h.key = ?"
            return (f"{sql})", [name]) if value is None else (f"{sql} AND h.value = ?)", [name, value])
        case LastError(contains):
            return ("(last_error IS NOT NULL AND instr(last_error, ?))", [contains]) if storable(contains) else ("0", [])
        case Payload(path, value):
            try:
                wanted = json.dumps(value)
            except ValueError:  # an integer of more digits than any payload may have
                return "0", []
            return "dispatch_payload_has(payload, ?, ?)", [json.dumps(path), wanted]
        case Priorities(least, most):
            return "(priority BETWEEN ? AND ?)", [least, most]
        case Attempt(least, most):
            if most is None:
                return "(attempt >= ?)", [least]
            return "(attempt BETWEEN ? AND ?)", [least, most]
        case Time(field, since, until):
            terms, values = [f"{field} IS NOT NULL"], list[Any]()
            for bound, operator in ((since, ">="), (until, "<")):
                if bound is not None:
                    terms.append(f"{field} {operator} ?")
                    values.append(bound)
            return f"({' AND '.join(terms)})", values
        case _:
            raise InvalidConfigError(f"not a query: {where!r}; build one from dispatch.storage.query")


def _joined(parts: Sequence[Where], now: float, word: str, empty: str) -> Sql:
    if len(parts) == 1:
        return condition(parts[0], now)
    terms: list[str] = []
    values: list[Any] = []
    for part in parts:
        sql, given = condition(part, now)
        terms.append(sql)
        values += given
    while len(terms) > MOST_JOINED:
        terms = [f"({word.join(several)})" for several in _chunks(terms)]
    return (f"({word.join(terms)})" if terms else empty), values


def _chunks(terms: list[str]) -> Iterator[list[str]]:
    for at in range(0, len(terms), MOST_JOINED):
        yield terms[at : at + MOST_JOINED]


def _among(column: str, values: frozenset[str]) -> Sql:
    wanted = sorted(filter(storable, values))  # of a text with a NUL json_each gives the beginning
    if len(wanted) > MOST_LISTED:
        return f"({column} IN (SELECT value FROM json_each(?)))", [json.dumps(wanted)]
    return f"({column} IN ({', '.join('?' * len(wanted))}))", wanted


def _statuses(values: frozenset[str], now: float) -> Sql:
    terms: list[str] = []
    given: list[Any] = []
    plain = sorted(values - {"due", "later", "retrying"})
    if plain:
        terms.append(f"status IN ({', '.join('?' * len(plain))})")
        given += plain
    if "due" in values:
        terms.append("(status = 'pending' AND available_at <= ?)")
        given.append(now)
    if "later" in values:
        terms.append("(status = 'pending' AND available_at > ?)")
        given.append(now)
    if "retrying" in values:
        terms.append("(status = 'pending' AND attempt > 0)")
    return (f"({' OR '.join(terms)})" if terms else "0"), given


def _tags(where: Tags) -> Sql:
    carried = "EXISTS (SELECT 1 FROM json_each(coalesce(tags, '[]')) AS t WHERE t.value"
    terms: list[str] = []
    values: list[Any] = []
    if not all(map(storable, where.all_of)):
        return "0", []
    if len(where.all_of) > MOST_LISTED:
        terms.append(f"NOT EXISTS (SELECT 1 FROM json_each(?) AS w WHERE NOT {carried} = w.value))")
        values.append(json.dumps(sorted(where.all_of)))
    else:
        terms += [f"{carried} = ?)" for _ in where.all_of]
        values += sorted(where.all_of)
    if where.any_of is not None:
        terms.append(f"{carried} IN (SELECT value FROM json_each(?)))")
        values.append(json.dumps(sorted(filter(storable, where.any_of))))
    return (f"({' AND '.join(terms)})" if terms else "1"), values


# ---- reads --------------------------------------------------------------------


def records(db: sqlite3.Connection, sql: str, values: Sequence[Any] = ()) -> list[TaskRecord]:
    """The tasks that the rest of a SELECT names."""
    return [record_of(row) for row in db.execute(f"SELECT {COLUMNS} FROM dispatch_tasks {sql}", values)]


def sequences(
    db: sqlite3.Connection,
    where: Where,
    now: float,
    *,
    order: Order = Order.OLDEST,
    limit: int,
    after: int | None = None,
) -> list[int]:
    """The `seq` of at most `limit` matching tasks beyond `after`, in order."""
    sql, values = condition(where, now)
    if after is not None:
        sql += f" AND seq {'>' if order is Order.OLDEST else '<'} ?"
        values = [*values, after]
    direction = "ASC" if order is Order.OLDEST else "DESC"
    tail = f"{sql} ORDER BY seq {direction} LIMIT ?"
    ranges = _ranges(db, where)
    if ranges is None:
        found = db.execute(f"SELECT seq FROM dispatch_tasks WHERE {tail}", [*values, limit])
        return [seq for (seq,) in found]
    merged: list[int] = []
    statement = (
        "SELECT seq FROM dispatch_tasks INDEXED BY dispatch_status "
        f"WHERE queue = ? AND status = ? AND {tail}"
    )
    for queue, status in ranges:
        merged += [seq for (seq,) in db.execute(statement, [queue, status, *values, limit])]
    merged.sort(reverse=order is Order.NEWEST)
    return merged[:limit]


def _ranges(db: sqlite3.Connection, where: Where) -> list[tuple[str, str]] | None:
    """The pairs of queue and status in which every match lies; None if that is no help."""
    queues: frozenset[str] | None = None
    statuses: frozenset[str] | None = None
    for part in _conjuncts(where):
        if isinstance(part, Ids):
            return None
        if isinstance(part, Queues):
            named = frozenset(filter(storable, part.values))
            queues = named if queues is None else queues & named
        elif isinstance(part, Statuses):
            shown = frozenset(
                "pending" if value in ("due", "later", "retrying") else value for value in part.values
            )
            statuses = shown if statuses is None else statuses & shown
    if queues is None and statuses is None:
        return None
    if queues is None:
        queues = frozenset(name for (name,) in db.execute("SELECT name FROM dispatch_queues"))
    if statuses is None:
        statuses = frozenset(status.value for status in TaskStatus)
    pairs = list(product(sorted(queues), sorted(statuses)))
    return pairs if len(pairs) <= MOST_RANGES else None


def _conjuncts(where: Where) -> Iterator[Where]:
    """What must all hold, out of however many `All` in each other."""
    if isinstance(where, All):
        for part in where.parts:
            yield from _conjuncts(part)
    else:
        yield where


def find(
    db: sqlite3.Connection, where: Where, now: float, *, order: Order, limit: int, after: str | None
) -> Page:
    """A page; see `TaskStore.find`."""
    if limit <= 0:
        return Page([], after)
    limit = min(limit, MAX_COUNT)
    found = sequences(
        db, where, now, order=order, limit=limit + 1, after=None if after is None else place_of(after)
    )
    direction = "ASC" if order is Order.OLDEST else "DESC"
    page = records(
        db,
        f"WHERE seq IN (SELECT value FROM json_each(?)) ORDER BY seq {direction}",
        (json.dumps(found[:limit]),),
    )
    return Page(page, str(page[-1].seq) if len(found) > limit and page else None)


def count(
    db: sqlite3.Connection,
    where: Where,
    now: float,
    *,
    by: Sequence[Literal["queue", "type", "status"]],
    bound: int | None,
) -> dict[tuple[str, ...], int]:
    """Grouped counts; see `TaskStore.count`."""
    by = check_groups(by)
    sql, values = condition(where, now)
    names = [SHOWN if name == "status" else name for name in by]
    shown: list[Any] = [now] * by.count("status")
    selected = ", ".join(f"{name} AS g{at}" for at, name in enumerate(names)) or "1"
    source = f"SELECT {selected} FROM dispatch_tasks WHERE {sql}"
    given = [*shown, *values]
    if bound is not None:
        if bound <= 0:
            return {}
        source += " LIMIT ?"
        given.append(min(bound, MAX_COUNT))
    groups = ", ".join(f"g{at}" for at in range(len(names)))
    if not names:
        ((total,),) = db.execute(f"SELECT count(*) FROM ({source})", given)
        return {(): total} if total else {}
    rows = db.execute(f"SELECT {groups}, count(*) FROM ({source}) GROUP BY {groups}", given)
    return {tuple(row[:-1]): row[-1] for row in rows}


def history(db: sqlite3.Connection, task_id: str) -> list[AttemptRecord]:
    """Every run of a task, oldest first; see `TaskStore.history`."""
    found = records(db, "WHERE id = ?", (task_id,)) if storable(task_id) else []
    if not found:
        return []
    past = db.execute(
        "SELECT epoch, attempt, worker, started_at, finished_at, outcome, error"
        " FROM dispatch_attempts WHERE task = ? ORDER BY epoch",
        (found[0].seq,),
    )
    runs = [attempt_of(task_id, row) for row in past]
    runs += _in_the_row(found[0])
    return runs


def _in_the_row(record: TaskRecord) -> Iterator[AttemptRecord]:
    """The run that the task's own row tells of, if it does: a running one, or a success."""
    for run in (success_of(record), lifecycle.current_run(record)):
        if run is not None:
            yield run
