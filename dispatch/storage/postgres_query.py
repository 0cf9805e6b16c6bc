"""The query tree in PostgreSQL's SQL, and the reads that answer it.

`condition` translates a tree to an expression that is never NULL, so that `Not`
means what it says. `Payload` alone is not translated: only Python's own reading
of the bytes means what `matches` means. Its place is taken by TRUE where that
lets more rows in, under `Not` by FALSE, and `matches` has the last word on them.

Most rows have ended well, and most questions are about the others, or about one
queue. So a tree is first asked which queues it names and which states it can be
true in. Unless the answer is "any", each is an *arm*: a query of its own under a
partial index, with the parts of the tree that its queue and state decide left
out, which stops after as many rows as are wanted.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Final, Literal

import attrs

from dispatch.checks import MAX_COUNT
from dispatch.errors import InvalidConfigError
from dispatch.records import AttemptRecord, TaskRecord
from dispatch.storage.changes import group_value
from dispatch.storage.postgres_rows import (
    COLUMNS,
    LANE_AT,
    PENDING,
    Lanes,
    Sql,
    attempt_of,
    runs_of,
    stored_of,
)
from dispatch.storage.postgres_schema import State
from dispatch.storage.protocol import Page
from dispatch.storage.psycopg_trio import TrioConnection
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
    matches,
    place_of,
)
from dispatch.storage.texts import storable

__all__ = [
    "CLOCK",
    "Condition",
    "condition",
    "count",
    "find",
    "history",
    "looks_into_payload",
    "matching",
    "sequences",
]

CLOCK: Final = "WITH clock AS MATERIALIZED (SELECT @.now_s() AS now)"
NOW: Final = "(SELECT now FROM clock)"
TRUE: Final = "TRUE"
FALSE: Final = "FALSE"
STATES_OF: Final[dict[str, frozenset[State]]] = {
    "pending": frozenset(PENDING),
    "running": frozenset({State.RUNNING}),
    "held": frozenset({State.HELD}),
    "succeeded": frozenset({State.SUCCEEDED}),
    "failed": frozenset({State.FAILED}),
    "cancelled": frozenset({State.CANCELLED}),
}
ALIASES: Final = {
    "due": f"t.available_at <= {NOW}",
    "later": f"t.available_at > {NOW}",
    "retrying": "t.attempt > 0",
}
"""What a pending task must be besides."""
MASS: Final = frozenset({State.SUCCEEDED, State.CANCELLED})
"""The states that most rows are in, and that have no index of their own."""
CHUNK: Final = 500
"""Rows fetched at a time where Python decides."""
MOST_ARMS: Final = 64
"""Beyond that, planning them would cost more than they save."""


@attrs.frozen
class Condition:
    """An expression over `tasks t` beside `CLOCK`, and its parameters."""

    sql: str
    values: tuple[Any, ...] = ()

    def joined(self, *others: Condition, word: str, empty: str) -> Condition:
        """This and others under one operator, of which `empty` is the neutral constant."""
        absorbing = FALSE if empty == TRUE else TRUE
        parts = [part for part in (self, *others) if part.sql != empty]
        if any(part.sql == absorbing for part in parts):
            return Condition(absorbing)
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return Condition(empty)
        text = f" {word} ".join(part.sql for part in parts)
        return Condition(f"({text})", tuple(value for part in parts for value in part.values))


def condition(where: Where, state: State | None = None, *, loose: bool = True) -> Condition:
    """The tree as an expression that is TRUE or FALSE; with `state`, for rows of that state alone.

    Where it contains `Payload`, it is true for too many rows if `loose`, else for too few.
    """
    match where:
        case All(parts):
            terms = [condition(part, state, loose=loose) for part in parts]
            return Condition(TRUE).joined(*terms, word="AND", empty=TRUE)
        case AnyOf(parts):
            terms = [condition(part, state, loose=loose) for part in parts]
            return Condition(FALSE).joined(*terms, word="OR", empty=FALSE)
        case Not(part):
            inner = condition(part, state, loose=not loose)
            if inner.sql in (TRUE, FALSE):
                return Condition(FALSE if inner.sql == TRUE else TRUE)
            return Condition(f"NOT {inner.sql}", inner.values)
        case Payload():
            return Condition(TRUE if loose else FALSE)
        case Statuses():
            return _statuses(where.values, state)
        case _:
            return _leaf(where)


def _leaf(where: Where) -> Condition:
    match where:
        case Ids():
            return _among("t.id = ANY (%s)", where.values)
        case Queues() if len(where.values) == 1 and all(map(storable, where.values)):
            # No array, so that an index that begins with it is in the order of what follows.
            (name,) = where.values
            return Condition("t.queue = coalesce((SELECT id FROM @.queues WHERE name = %s), -1)", (name,))
        case Queues():
            return _among(
                "t.queue = ANY (ARRAY(SELECT id FROM @.queues WHERE name = ANY (%s)))", where.values
            )
        case Types():
            return _among(
                "t.lane = ANY (ARRAY(SELECT id FROM @.lanes WHERE type = ANY (%s)))", where.values
            )
        case Keys():
            return _among("(t.key IS NOT NULL AND t.key = ANY (%s))", where.values)
        case Crons():
            return _among("(t.cron IS NOT NULL AND t.cron = ANY (%s))", where.values)
        case Tags():
            return _tags(where)
        case Header(name, value):
            if not storable(name) or not (value is None or storable(value)):
                return Condition(FALSE)
            if value is None:
                return Condition("(t.headers IS NOT NULL AND t.headers ? %s)", (name,))
            return Condition(
                "(t.headers IS NOT NULL AND coalesce(t.headers ->> %s = %s, FALSE))", (name, value)
            )
        case LastError(contains):
            if not storable(contains):
                return Condition(FALSE)
            return Condition("(t.last_error IS NOT NULL AND strpos(t.last_error, %s) > 0)", (contains,))
        case Priorities(least, most):
            return Condition("(t.priority >= %s AND t.priority <= %s)", (least, most))
        case Attempt(least, most):
            if most is None:
                return Condition("(t.attempt >= %s)", (least,))
            return Condition("(t.attempt >= %s AND t.attempt <= %s)", (least, most))
        case Time():
            return _time(where)
        case _:
            raise InvalidConfigError(
                f"not a query: {where!r}; build one from dispatch.storage.query"
            )


def _among(sql: str, values: frozenset[str]) -> Condition:
    wanted = sorted(filter(storable, values))
    return Condition(sql, (wanted,)) if wanted else Condition(FALSE)


def _statuses(values: frozenset[str], state: State | None) -> Condition:
    plain = frozenset[State]().union(*(STATES_OF[value] for value in values if value in STATES_OF))
    aliases = [Condition(ALIASES[value]) for value in sorted(values) if value in ALIASES]
    shown = Condition(FALSE).joined(*aliases, word="OR", empty=FALSE)
    if state is not None:
        if state in plain:
            return Condition(TRUE)
        return shown if state in PENDING else Condition(FALSE)
    pending = Condition("t.state <= 2").joined(shown, word="AND", empty=TRUE)
    among = (
        Condition("t.state = ANY (%s)", (sorted(map(int, plain)),)) if plain else Condition(FALSE)
    )
    return among.joined(pending, word="OR", empty=FALSE)


def _tags(where: Tags) -> Condition:
    terms: list[Condition] = []
    if where.all_of:
        if not all(map(storable, where.all_of)):
            return Condition(FALSE)
        wanted = json.dumps(sorted(where.all_of), ensure_ascii=False)
        terms.append(Condition("(t.tags IS NOT NULL AND t.tags @> %s::jsonb)", (wanted,)))
    if where.any_of is not None:
        terms.append(_among("(t.tags IS NOT NULL AND t.tags ?| %s::text[])", where.any_of))
    return Condition(TRUE).joined(*terms, word="AND", empty=TRUE)


def _time(where: Time) -> Condition:
    column = f"t.{where.field}"
    terms = [f"{column} IS NOT NULL"]
    values: list[float] = []
    for bound, operator in ((where.since, ">="), (where.until, "<")):
        if bound is not None:
            terms.append(f"{column} {operator} %s")
            values.append(bound)
    return Condition(f"({' AND '.join(terms)})", tuple(values))


def looks_into_payload(where: Where) -> bool:
    """Whether `condition` of this tree is not its whole meaning."""
    match where:
        case All(parts) | AnyOf(parts):
            return any(map(looks_into_payload, parts))
        case Not(part):
            return looks_into_payload(part)
        case _:
            return isinstance(where, Payload)


@attrs.frozen
class Arm:
    """A condition, the one queue or state that it is true in, if it is one, and an index's order.

    A state is a range of one and comes first in the order, where `tasks_of_queue`
    is meant: told of a constant, the planner takes whatever is in order of `seq`,
    and walks through the table for what is rare, or elsewhere, in it.
    """

    met: Condition
    queue: str | None = None
    state: State | None = None
    order: tuple[str, ...] = ("t.seq",)


def arms(where: Where) -> list[Arm]:
    """Conditions that exclude each other, whose rows together are those of the tree."""
    possible = [state for state in State if condition(where, state).sql != FALSE]
    by_queue: dict[str, Where] = {}
    named = next((part for part in _parts(where) if isinstance(part, Queues)), None)
    if named is not None and len(named.values) * len(possible) <= MOST_ARMS:
        others = [part for part in _parts(where) if part is not named]
        by_queue = {name: All(Queues(name), *others) for name in sorted(named.values)}
    if not by_queue and MASS & set(possible):
        whole = condition(where)
        if len(possible) == len(State):
            return [Arm(whole)]
        among = Condition(f"t.state IN ({', '.join(str(int(state)) for state in possible)})")
        return [Arm(among.joined(whole, word="AND", empty=TRUE), state=possible[0] if len(possible) == 1 else None)]
    found: list[Arm] = []
    for queue, tree in by_queue.items() or [(None, where)]:
        for state in possible:
            indexed = queue is not None and state is not State.RUNNING
            here = f"t.state >= {int(state)} AND t.state <= {int(state)}" if indexed else f"t.state = {int(state)}"
            if state is State.BEHIND and not indexed:
                here += " AND t.lined"  # which is the same, and tells of another index
            met = Condition(here).joined(condition(tree, state), word="AND", empty=TRUE)
            if met.sql != FALSE:
                found.append(Arm(met, queue, state, ("t.state", "t.seq") if indexed else ("t.seq",)))
    return found


def _only_ended(where: Where) -> bool:
    """Whether the tree can be true of tasks that have ended alone, which `tasks_ended` is of."""
    return all(state >= State.SUCCEEDED for state in State if condition(where, state).sql != FALSE)


def _parts(where: Where) -> tuple[Where, ...]:
    """What must all hold."""
    if isinstance(where, All):
        return tuple(each for part in where.parts for each in _parts(part))
    return (where,)


async def find(
    connection: TrioConnection[Any],
    sql: Sql,
    lanes: Lanes,
    where: Where,
    *,
    order: Order,
    limit: int,
    after: str | None,
) -> Page:
    """A page; see `TaskStore.find`."""
    if limit <= 0:
        return Page([], after)
    limit = min(limit, MAX_COUNT)
    place = None if after is None else place_of(after)
    records: list[TaskRecord] = []
    chunk = limit + 1 if not looks_into_payload(where) else max(limit + 1, CHUNK)
    async with aclosing(matching(connection, sql, lanes, where, order, place, chunk)) as found:
        async for record, _ in found:
            records.append(record)
            if len(records) > limit:
                break
    more = len(records) > limit
    del records[limit:]
    return Page(records, str(records[-1].seq) if more else None)


async def matching(
    connection: TrioConnection[Any],
    sql: Sql,
    lanes: Lanes,
    where: Where,
    order: Order,
    after: int | None,
    chunk: int,
    *,
    every: bool = False,
) -> AsyncGenerator[tuple[TaskRecord, float]]:
    """The records that match, by order of storing, and when they were read; `chunk` at a time.

    Ends after one chunk if not `every` is wanted and SQL alone decides.
    """
    exact = not looks_into_payload(where)
    while True:
        statement, values = _page(where, order, after, chunk)
        cursor = await connection.execute(sql(statement), values, binary=True)
        rows = await cursor.fetchall()
        await lanes.meet(connection, {row[1 + LANE_AT] for row in rows})
        for row in rows:
            if not lanes.met(row[1 + LANE_AT]):
                continue  # pruned since it was read, and its queue removed
            record = stored_of(row[1:], lanes).record
            after = record.seq
            if exact or matches(where, record, row[0]):
                yield record, row[0]
        if len(rows) < chunk or (exact and not every):
            return


async def sequences(
    connection: TrioConnection[Any], sql: Sql, where: Where, after: int | None, limit: int
) -> list[int]:
    """The first so many tasks beyond `after` that may match, oldest first, by `seq`."""
    found, values = _found(where, Order.OLDEST, after, limit)
    cursor = await connection.execute(sql(f"{CLOCK} {found}"), values)
    return [row[0] for row in await cursor.fetchall()]


def _page(where: Where, order: Order, after: int | None, limit: int) -> tuple[str, list[Any]]:
    direction = "ASC" if order is Order.OLDEST else "DESC"
    found, values = _found(where, order, after, limit)
    statement = (
        f"{CLOCK} SELECT {NOW}, {COLUMNS} FROM ({found}) AS page JOIN @.tasks t ON t.seq = page.seq"
        f" ORDER BY t.seq {direction}"
    )
    return statement, values


def _found(where: Where, order: Order, after: int | None, limit: int) -> tuple[str, list[Any]]:
    direction = "ASC" if order is Order.OLDEST else "DESC"
    beyond = Condition(TRUE)
    if after is not None:
        beyond = Condition(f"t.seq {'>' if order is Order.OLDEST else '<'} %s", (after,))
    each: list[str] = []
    values: list[Any] = []
    for arm in arms(where):
        narrowed = arm.met.joined(beyond, word="AND", empty=TRUE)
        each.append(
            f"(SELECT t.seq FROM @.tasks t WHERE {narrowed.sql}"
            f" ORDER BY {', '.join(f'{name} {direction}' for name in arm.order)} LIMIT %s)"
        )
        values += [*narrowed.values, limit]
    found = " UNION ALL ".join(each) or "SELECT NULL::int8 AS seq WHERE FALSE"
    return f"SELECT seq FROM ({found}) AS each ORDER BY seq {direction} LIMIT %s", [*values, limit]


async def count(
    connection: TrioConnection[Any],
    sql: Sql,
    lanes: Lanes,
    where: Where,
    *,
    by: Sequence[Literal["queue", "type", "status"]],
    bound: int | None,
) -> dict[tuple[str, ...], int]:
    """Grouped counts; see `TaskStore.count`."""
    by = check_groups(by)
    if bound is not None:
        bound = min(bound, MAX_COUNT)
        if bound <= 0:
            return {}
    if looks_into_payload(where):
        return await _count_looking(connection, sql, lanes, where, by, bound)
    # Among all queues, what has ended since a moment: in order of `seq` it would be looked for in the whole table.
    by_end = _only_ended(where) and any(isinstance(part, Time) and part.field == "finished_at" for part in _parts(where))
    each: list[str] = []
    values: list[Any] = []
    for arm in arms(where):
        # What is known of all its rows is not read from them: often an index alone can answer.
        known = arm.queue is not None and "type" not in by
        selected = ["NULL::int4" if known or not by else "t.lane", "%s::text" if known else "NULL"]
        selected.append("t.state" if arm.state is None else f"{int(arm.state)}")
        waits = "status" in by and arm.state in (None, *PENDING)
        selected.append(f"t.available_at > {NOW}" if waits else "FALSE")
        order = ("t.queue",) if arm.state is State.RUNNING else arm.order  # any will do: as their index has them
        if arm.queue is None and by_end:
            order = ("t.finished_at", "t.seq")
        limit = "" if bound is None else f" ORDER BY {', '.join(order)} LIMIT %s"
        columns = ", ".join(map(" AS ".join, zip(selected, ("lane", "queue", "state", "later"), strict=True)))
        each.append(f"(SELECT {columns} FROM @.tasks t WHERE {arm.met.sql}{limit})")
        values += [*((arm.queue,) if known else ()), *arm.met.values, *(() if bound is None else (bound,))]
    if not each:
        return {}
    found = " UNION ALL ".join(each)
    if bound is not None:
        found = f"SELECT * FROM ({found}) AS several LIMIT %s"
        values.append(bound)
    cursor = await connection.execute(
        sql(f"{CLOCK} SELECT lane, queue, state, later, count(*) FROM ({found}) AS each GROUP BY 1, 2, 3, 4"),
        values,
    )
    rows = await cursor.fetchall()
    await lanes.meet(connection, {row[0] for row in rows if row[0] is not None})
    counts: dict[tuple[str, ...], int] = {}
    for lane_id, queue, state, later, number in rows:
        shown = {"queue": queue, "status": _shown(state, later)}
        if lane_id is not None:
            if not lanes.met(lane_id):
                continue  # pruned since they were counted, and their queue removed
            lane = lanes.of(lane_id)
            shown |= {"queue": lane.queue, "type": lane.type}
        group = tuple(shown[name] for name in by)
        counts[group] = counts.get(group, 0) + number
    return counts


def _shown(state: int, later: bool) -> str:
    if state in PENDING:
        return "later" if later else "pending"
    return State(state).name.lower()


async def _count_looking(
    connection: TrioConnection[Any],
    sql: Sql,
    lanes: Lanes,
    where: Where,
    by: Sequence[Literal["queue", "type", "status"]],
    bound: int | None,
) -> dict[tuple[str, ...], int]:
    counts: dict[tuple[str, ...], int] = {}
    async with aclosing(
        matching(connection, sql, lanes, where, Order.NEWEST, None, CHUNK)
    ) as found:
        async for record, now in found:
            group = tuple(group_value(record, name, now) for name in by)
            counts[group] = counts.get(group, 0) + 1
            if sum(counts.values()) == bound:
                break
    return counts


async def history(
    connection: TrioConnection[Any], sql: Sql, lanes: Lanes, task_id: str
) -> list[AttemptRecord]:
    """Every run of a task, oldest first; see `TaskStore.history`."""
    page = await find(connection, sql, lanes, Ids(task_id), order=Order.OLDEST, limit=1, after=None)
    if not page.records:
        return []
    [record] = page.records
    cursor = await connection.execute(
        sql(
            "SELECT epoch, attempt, worker, started_at, finished_at, outcome, error"
            " FROM @.attempts WHERE task = %s AND epoch < %s ORDER BY epoch"
        ),
        # A later run may have ended between the two reads: the row tells of the last one seen.
        (record.seq, record.epoch + 1),
    )
    known = [attempt_of(task_id, row) for row in await cursor.fetchall()]
    here = [run for run in runs_of(record) if all(run.epoch != other.epoch for other in known)]
    return [*known, *here]
