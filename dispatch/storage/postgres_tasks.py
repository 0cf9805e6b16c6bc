"""Tasks in PostgreSQL: the three statements that every task passes, and what else is done to tasks.

Storing, claiming and a plain success are one statement each, over arrays. What
they cannot decide they leave alone, and a `Step` decides it: keyed and unique
tasks, bounds, failures, stale fences.

A claim merges one range of the `ready` index per wanted lane and priority. Each
range is in claim order already, since who waited longer in it has aged more; the
first `reach` of each are merged, and of those the first `limit` that no other
claim holds are locked, in order. So a claim reads rows that can run and no
others, and locks what it takes and nothing else. Should all it reached be held
by others, it reaches further.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

import attrs

from dispatch.lifecycle import SettleAnswer
from dispatch.records import Claim, NewTask, TaskRecord, Transition, TransitionKind
from dispatch.storage.changes import NO_HEADERS, would_change
from dispatch.storage.postgres_query import (
    CLOCK,
    condition,
    looks_into_payload,
    matching,
    sequences,
)
from dispatch.storage.postgres_rows import Lane, Lanes, Sql
from dispatch.storage.postgres_schema import State
from dispatch.storage.postgres_step import INSERTED, Step, column, insert_sql, promote
from dispatch.storage.protocol import (
    Change,
    Claimed,
    EnqueueAnswer,
    EnqueueResult,
    RenewAnswer,
    SettleResult,
    Topic,
    TopicKind,
    Want,
)
from dispatch.storage.psycopg_trio import TrioConnection
from dispatch.storage.query import Order, PruneSpec, Where, matches
from dispatch.tasks import TaskStatus

__all__ = ["Outcome", "PostgresTasks"]

CHUNK: Final = 1_000
"""Rows that a bulk change holds in memory at a time."""
REACH: Final = 32
"""Candidates that a claim looks at beyond its limit, for those that other claims hold."""
PLAIN: Final = ("id", "lane", "priority", "payload")
"""The columns that every stored task brings."""

ENQUEUE: Final = (
    f"{CLOCK} INSERT INTO @.tasks (created_at, available_at, queue, state, {{columns}})"
    " SELECT c.now, coalesce(g.at, floor((c.now + g.delay) * 1e6 + 0.5) / 1e6), q.id, 0, {selected}"
    " FROM {given} JOIN @.lanes l ON l.id = g.lane JOIN @.queues q ON q.id = l.queue CROSS JOIN clock c"
    " WHERE {fits} ORDER BY g.ord ON CONFLICT (id) DO NOTHING RETURNING id, created_at, available_at"
)

CLAIMED: Final = (
    "t.id, t.epoch, t.lane, t.payload, t.key, t.headers, t.priority, t.tags, t.timeout, t.max_retry,"
    " t.attempt, t.retry_limit, t.created_at, t.available_at, t.started_at, t.last_error, t.cron"
)
LEVEL: Final = (
    "CASE WHEN %(ageing)s::float8 IS NULL OR t.available_at >= c.now THEN t.priority"
    # Decided before dividing: a tiny interval would overflow.
    " WHEN c.now - t.available_at >= %(ageing)s::float8 * (3 - t.priority) THEN 3"
    " ELSE t.priority + floor((c.now - t.available_at) / %(ageing)s::float8) END"
)
OVERDUE: Final = (
    "EXISTS (SELECT 1 FROM @.queues q JOIN @.tasks t ON t.queue = q.id AND t.state = 2"
    " WHERE q.name = %(queue)s AND t.available_at <= (SELECT now FROM clock))"
)
"""A task that let others of its key pass is due: the lines must be put in order first."""
TYPES_WANTED: Final = (
    " JOIN unnest(%(types)s::text[], %(versions)s::int8[]) AS w (type, version)"
    " ON l.type = w.type AND l.version <= w.version"
)
LANE: Final = (
    "lane AS MATERIALIZED (SELECT l.id, l.tagged FROM @.queues q JOIN @.lanes l ON l.queue = q.id{types}"
    f" WHERE q.name = %(queue)s AND NOT q.paused AND (l.tagged = FALSE OR %(tagged)s) AND NOT {OVERDUE})"
)
PLAIN_RANGES: Final = (
    "SELECT t.seq, t.priority, t.available_at FROM lane CROSS JOIN generate_series(0, 3) AS p (priority)"
    " CROSS JOIN clock c CROSS JOIN LATERAL (SELECT t.seq, t.priority, t.available_at FROM @.tasks t"
    " WHERE t.lane = lane.id AND t.priority = p.priority AND t.state = 0 AND t.available_at <= c.now"
    " ORDER BY t.available_at, t.seq LIMIT %(reach)s) AS t"
)
TAGGED_RANGES: Final = (
    f"{PLAIN_RANGES} WHERE NOT lane.tagged"
    " UNION ALL SELECT t.seq, t.priority, t.available_at FROM sets"
    " CROSS JOIN generate_series(0, 3) AS p (priority) CROSS JOIN clock c"
    " CROSS JOIN LATERAL (SELECT t.seq, t.priority, t.available_at FROM @.tasks t"
    " WHERE t.lane = sets.lane AND md5(t.tags::text) = sets.hash AND t.priority = p.priority"
    " AND t.state = 0 AND t.tags IS NOT NULL AND t.available_at <= c.now"
    " ORDER BY t.available_at, t.seq LIMIT %(reach)s) AS t WHERE sets.tags <@ %(tags)s::jsonb"
)
SETS: Final = (
    # A walk from one set of tags to the next, not over the rows of each.
    "sets AS (SELECT lane.id AS lane, s.hash, s.tags FROM lane CROSS JOIN LATERAL"
    " (SELECT md5(t.tags::text) AS hash, t.tags FROM @.tasks t WHERE t.lane = lane.id AND t.state = 0"
    "  AND t.tags IS NOT NULL ORDER BY md5(t.tags::text) LIMIT 1) AS s WHERE lane.tagged"
    " UNION ALL SELECT sets.lane, s.hash, s.tags FROM sets CROSS JOIN LATERAL"
    " (SELECT md5(t.tags::text) AS hash, t.tags FROM @.tasks t WHERE t.lane = sets.lane AND t.state = 0"
    "  AND t.tags IS NOT NULL AND md5(t.tags::text) > sets.hash ORDER BY md5(t.tags::text) LIMIT 1) AS s),"
)
NAMED_RANGE: Final = (
    "SELECT t.seq, t.priority, t.available_at FROM @.tasks t JOIN lane ON lane.id = t.lane"
    " CROSS JOIN clock c WHERE t.id = ANY (%(ids)s) AND t.state = 0 AND t.available_at <= c.now"
    " AND (%(tags)s::jsonb IS NULL OR t.tags IS NULL OR t.tags <@ %(tags)s::jsonb)"
)
NEXT_DUE: Final = (
    "(SELECT min(t.available_at) FROM lane CROSS JOIN generate_series(0, 3) AS p (priority)"
    " CROSS JOIN clock c CROSS JOIN LATERAL (SELECT t.available_at FROM @.tasks t"
    " WHERE t.lane = lane.id AND t.priority = p.priority AND t.state = 0 AND t.available_at > c.now"
    " ORDER BY t.available_at LIMIT 1) AS t)"
)
NEXT_ASIDE: Final = (
    "(SELECT min(t.available_at) FROM @.queues q JOIN @.tasks t ON t.queue = q.id AND t.state = 2"
    " WHERE q.name = %(queue)s AND NOT q.paused)"
)
NEXT_NAMED: Final = (
    "(SELECT min(t.available_at) FROM @.tasks t JOIN @.queues q ON q.id = t.queue CROSS JOIN clock c"
    " WHERE t.id = ANY (%(ids)s) AND q.name = %(queue)s AND NOT q.paused AND t.state <= 2"
    " AND t.available_at > c.now)"
)
CLAIM: Final = (
    "WITH RECURSIVE {clock}, {lane}, {sets}"
    " candidate AS MATERIALIZED (SELECT t.seq, t.available_at, {level} AS level FROM ({ranges}) AS t"
    "  CROSS JOIN clock c ORDER BY 3 DESC, 2, 1 LIMIT %(reach)s),"
    " taken AS MATERIALIZED (SELECT t.seq, n.level FROM candidate n JOIN @.tasks t ON t.seq = n.seq"
    "  WHERE t.state = 0 AND t.available_at = n.available_at"
    "  ORDER BY n.level DESC, n.available_at, n.seq LIMIT %(limit)s FOR UPDATE OF t SKIP LOCKED),"
    " started AS (UPDATE @.tasks t SET state = 3, attempt = attempt + 1, epoch = epoch + 1,"
    "  worker = %(worker)s, started_at = c.now, finished_at = NULL, lease_until = c.now + %(lease)s::float8,"
    "  retry_limit = coalesce(max_retry, %(max_retry)s), retry = %(retry)s,"
    "  on_interrupt = %(on_interrupt)s, progress = NULL"
    "  FROM taken, clock c WHERE t.seq = taken.seq RETURNING taken.level, t.seq, {claimed})"
    " SELECT s.*, NULL::float8 AS next_due, FALSE AS again FROM started s"
    " UNION ALL SELECT {nulls}, CASE WHEN (SELECT count(*) FROM started) < %(limit)s"
    "  THEN {next_due} END, {overdue} OR ((SELECT count(*) FROM started) < %(limit)s"
    "  AND (SELECT count(*) FROM candidate) = %(reach)s)"
)
NULLS: Final = ", ".join(
    f"NULL::{type_}"
    for type_ in (
        *("float8", "int8", "text", "int8", "int4", "bytea", "text", "jsonb", "int2", "jsonb"),
        *("float8", "int8", "int8", "int8", "float8", "float8", "float8", "text", "text"),
    )
)
SUCCEED: Final = (
    f"{CLOCK}, held AS MATERIALIZED (SELECT t.seq, g.result FROM"
    " unnest(%s::text[], %s::int8[], %s::bytea[]) AS g (id, epoch, result)"
    " JOIN @.tasks t ON t.id = g.id AND t.epoch = g.epoch AND t.state = 3 AND NOT t.lined"
    " ORDER BY t.seq FOR UPDATE OF t)"
    " UPDATE @.tasks t SET state = 5, lease_until = NULL, finished_at = c.now, result = held.result,"
    " last_error = NULL, cancel_reason = NULL FROM held, clock c WHERE t.seq = held.seq"
    " RETURNING t.id, t.lane, t.available_at"
)
RENEW: Final = (
    f"{CLOCK}, held AS MATERIALIZED (SELECT t.seq, t.id, t.epoch, t.cancel_reason FROM"
    " unnest(%(ids)s::text[], %(epochs)s::int8[]) AS g (id, epoch)"
    " JOIN @.tasks t ON t.id = g.id AND t.epoch = g.epoch AND t.state = 3"
    " ORDER BY t.seq FOR UPDATE OF t),"
    " renewed AS (UPDATE @.tasks t SET lease_until = c.now + %(lease)s::float8 FROM held, clock c"
    "  WHERE t.seq = held.seq AND t.lease_until < c.now + %(lease)s::float8)"
    " SELECT id, epoch, cancel_reason FROM held"
)
HELD: Final = (
    "SELECT t.id, t.epoch, t.cancel_reason FROM unnest(%(ids)s::text[], %(epochs)s::int8[])"
    " AS g (id, epoch) JOIN @.tasks t ON t.id = g.id AND t.epoch = g.epoch AND t.state = 3"
)
FENCE: Final = "SELECT 1 FROM @.tasks WHERE id = %s AND epoch = %s AND state = 3 FOR UPDATE"
PROGRESS: Final = "UPDATE @.tasks SET progress = %s WHERE id = %s AND epoch = %s AND state = 3"
EXPIRED: Final = (
    "SELECT seq FROM @.tasks WHERE state = 3 AND lease_until < @.now_s()"
    " ORDER BY lease_until, seq LIMIT %s"
)
ASIDE_DUE: Final = (
    "SELECT t.seq FROM @.queues q JOIN @.tasks t ON t.queue = q.id AND t.state = 2"
    " WHERE q.name = %s AND t.available_at <= @.now_s() ORDER BY t.available_at LIMIT 500"
)


@attrs.define
class Outcome:
    """What a transaction leads to once it is committed: bells to ring, lanes to remember."""

    rings: set[Topic] = attrs.field(factory=set[Topic])
    lanes: list[Lane] = attrs.field(factory=list[Lane])
    leases: list[tuple[str, float]] = attrs.field(factory=list[tuple[str, float]])
    """Workers that took a lease, and until when."""

    def add(self, step: Step) -> None:
        """Note what a step led to."""
        self.rings |= step.rings
        self.lanes += step.made


class PostgresTasks:
    """The task methods of the hook, each on a connection that the caller lends.

    In a transaction where they say so; all others are single statements.
    """

    def __init__(self, sql: Sql, lanes: Lanes) -> None:
        self._sql = sql
        self._lanes = lanes

    def step(self, connection: TrioConnection[Any]) -> Step:
        """A step in the connection's open transaction."""
        return Step(connection, self._sql, self._lanes)

    # ---- publishing ------------------------------------------------------

    async def enqueue_plain(
        self,
        connection: TrioConnection[Any],
        tasks: Sequence[NewTask],
        outcome: Outcome,
        *,
        bounded: bool,
    ) -> list[EnqueueResult | None]:
        """Store those tasks that depend on no stored one; None for those that may."""
        numbers = await self._numbers(connection, tasks)
        fit = [new for new, number in zip(tasks, numbers, strict=True) if number is not None]
        stored: dict[str, tuple[float, float]] = {}
        if fit:
            known = [number for number in numbers if number is not None]
            cursor = await connection.execute(*self._insert(fit, known, bounded=bounded), binary=True)
            stored = {row[0]: (row[1], row[2]) for row in await cursor.fetchall()}
        results: list[EnqueueResult | None] = []
        for new in tasks:
            moments = stored.pop(new.id, None)
            if moments is None:
                results.append(None)
                continue
            outcome.rings.add(Topic(TopicKind.QUEUE, new.queue))
            results.append(EnqueueResult(EnqueueAnswer.CREATED, new.id, *moments))
        return results

    async def _numbers(
        self, connection: TrioConnection[Any], tasks: Sequence[NewTask]
    ) -> list[int | None]:
        """Their lanes, made where missing; None for unique tasks, and of undeclared queues."""
        addresses = [
            (new.queue, new.type, new.version, bool(new.tags)) if new.unique is None else None
            for new in tasks
        ]
        missing = {each for each in addresses if each is not None and self._lanes.known(each) is None}
        if missing:
            self._lanes.note((await self._lanes.make(connection, missing)).values())
        found = [None if each is None else self._lanes.known(each) for each in addresses]
        return [None if lane is None else lane.id for lane in found]

    def _insert(
        self, tasks: Sequence[NewTask], numbers: Sequence[int], *, bounded: bool
    ) -> tuple[bytes, list[Any]]:
        names = list(PLAIN)
        names += [
            name
            for name in INSERTED[len(PLAIN) :]
            if any(getattr(new, name, None) not in (None, (), {}) for new in tasks)
        ]
        columns = {
            name: [column(name, new, number) for new, number in zip(tasks, numbers, strict=True)]
            for name in names
        }
        selected = (f"g.{name}::jsonb" if name in ("headers", "tags") else f"g.{name}" for name in names)
        fits = "(NOT q.keyed OR g.key IS NULL)" if "key" in names else "TRUE"
        if bounded:
            fits += " AND (q.max_waiting IS NULL OR g.at > c.now OR g.delay > 0)"
        statement = ENQUEUE.format(
            columns=", ".join(names),
            selected=", ".join(selected),
            given=insert_sql([*names, "at", "delay"], ""),
            fits=fits,
        )
        columns["at"] = [new.available_at for new in tasks]
        columns["delay"] = [new.delay for new in tasks]
        return self._sql(statement), list(columns.values())

    async def enqueue(
        self,
        connection: TrioConnection[Any],
        tasks: Sequence[NewTask],
        outcome: Outcome,
        *,
        bounded: bool,
    ) -> list[EnqueueResult]:
        """Store tasks of any kind. In a transaction."""
        step = self.step(connection)
        await step.begin(news=tasks, bounded=bounded)
        results = [step.store(new, bounded=bounded) for new in tasks]
        await step.write()
        outcome.add(step)
        return results

    async def holds(self, connection: TrioConnection[Any], fence: tuple[str, int]) -> bool:
        """Whether the claim holds, and goes on to until the end of the transaction."""
        cursor = await connection.execute(self._sql(FENCE), fence)
        return await cursor.fetchone() is not None

    # ---- runs ------------------------------------------------------------

    async def claim(
        self,
        connection: TrioConnection[Any],
        wants: Sequence[Want],
        outcome: Outcome,
        *,
        worker: str,
        lease: float | None,
    ) -> Claimed:
        """See `TaskStore.claim`. One statement per want; several wants in a transaction."""
        claimed = Claimed([])
        for want in wants:
            taken, due = await self._claim(connection, want, worker, lease)
            claimed.claims += taken
            if due is not None and (claimed.next_due is None or due < claimed.next_due):
                claimed.next_due = due
            if taken:
                outcome.rings.add(Topic(TopicKind.ROOM, want.queue))
                if lease is not None:
                    outcome.leases.append((worker, taken[0].started_at + lease))
        return claimed

    async def _claim(
        self, connection: TrioConnection[Any], want: Want, worker: str, lease: float | None
    ) -> tuple[list[Claim], float | None]:
        limit = max(want.limit, 0)
        reach = limit + REACH
        claims: list[Claim] = []
        while True:
            statement, values = self._claiming(want, worker, lease, limit - len(claims), reach)
            cursor = await connection.execute(statement, values, binary=True)
            rows = await cursor.fetchall()
            *_, next_due, again = rows.pop()
            await self._lanes.meet(connection, {row[4] for row in rows})
            rows.sort(key=_claim_order)
            claims += [_claim_of(row, self._lanes.of(row[4]), want) for row in rows]
            if not again:
                return claims, next_due
            async with connection.transaction():
                await self._mature(connection, want.queue)
            reach *= 4

    def _claiming(
        self, want: Want, worker: str, lease: float | None, limit: int, reach: int
    ) -> tuple[bytes, dict[str, Any]]:
        tags = want.tags
        values: dict[str, Any] = {
            "queue": want.queue,
            "limit": limit,
            "reach": reach,
            "ageing": want.ageing,
            "worker": worker,
            "lease": lease,
            "max_retry": want.max_retry,
            "retry": want.retry,
            "on_interrupt": want.on_interrupt,
            "tagged": tags is None or bool(tags),
        }
        types, sets, ranges, next_due = "", "", PLAIN_RANGES, f"least({NEXT_DUE}, {NEXT_ASIDE})"
        if want.types is not None:
            types = TYPES_WANTED
            values["types"] = list(want.types)
            values["versions"] = list(want.types.values())
        if want.ids is not None:
            ranges, next_due = NAMED_RANGE, NEXT_NAMED
            values["ids"] = sorted(want.ids)
            values["tags"] = None if tags is None else _json(tags)
        elif tags:
            sets, ranges = SETS, TAGGED_RANGES
            values["tags"] = _json(tags)
        return self._sql(
            CLAIM.format(
                clock=CLOCK.removeprefix("WITH "),
                lane=LANE.format(types=types),
                sets=sets,
                level=LEVEL,
                ranges=ranges,
                claimed=CLAIMED,
                nulls=NULLS,
                next_due=next_due,
                overdue=OVERDUE,
            )
        ), values

    async def _mature(self, connection: TrioConnection[Any], queue: str) -> None:
        """Let those that stepped aside in their lines, and are due, step forward."""
        cursor = await connection.execute(self._sql(ASIDE_DUE), (queue,))
        seqs = [row[0] for row in await cursor.fetchall()]
        if seqs:
            step = self.step(connection)
            await step.begin(seqs=seqs)
            lines = [stored.line for stored in step.rows() if stored.line is not None]
            await promote(connection, self._sql, set(lines), step.now)

    async def succeed(
        self, connection: TrioConnection[Any], transitions: Sequence[Transition], outcome: Outcome
    ) -> list[SettleResult | None]:
        """Settle plain successes; None for a lined task's, and where the fence does not hold."""
        cursor = await connection.execute(
            self._sql(SUCCEED),
            (
                [each.id for each in transitions],
                [each.epoch for each in transitions],
                [each.result for each in transitions],
            ),
            binary=True,
        )
        rows = await cursor.fetchall()
        await self._lanes.meet(connection, {row[1] for row in rows})
        ended = {row[0]: row[2] for row in rows}
        for id_, lane, _ in rows:
            outcome.rings.add(Topic(TopicKind.TASK, id_))
            outcome.rings.add(Topic(TopicKind.DONE, self._lanes.of(lane).queue))
        return [
            SettleResult(
                each.id, each.epoch, SettleAnswer.APPLIED, TaskStatus.SUCCEEDED, ended[each.id]
            )
            if each.id in ended
            else None
            for each in transitions
        ]

    async def settle(
        self, connection: TrioConnection[Any], transitions: Sequence[Transition], outcome: Outcome
    ) -> list[SettleResult]:
        """See `TaskStore.settle`. In a transaction."""
        results: list[SettleResult | None] = [None] * len(transitions)
        if all(map(_is_plain, transitions)) and len({each.id for each in transitions}) == len(transitions):
            results = await self.succeed(connection, transitions, outcome)
        left = [each for each, result in zip(transitions, results, strict=True) if result is None]
        if left:
            step = self.step(connection)
            news = [new for each in left for new in each.spawn]
            await step.begin(ids={each.id for each in left}, news=news)
            decided = iter([step.settle(each) for each in left])
            await step.write()
            outcome.add(step)
            results = [next(decided) if result is None else result for result in results]
        return [result for result in results if result is not None]

    async def renew(
        self, connection: TrioConnection[Any], claims: Sequence[tuple[str, int]], lease: float | None
    ) -> list[RenewAnswer]:
        """See `TaskStore.renew`."""
        values = {
            "ids": [id_ for id_, _ in claims],
            "epochs": [epoch for _, epoch in claims],
            "lease": lease,
        }
        if lease is None:
            del values["lease"]
        cursor = await connection.execute(self._sql(HELD if lease is None else RENEW), values)
        held = {(row[0], row[1]): row[2] for row in await cursor.fetchall()}
        return [RenewAnswer(*claim, claim in held, held.get(claim)) for claim in claims]

    async def rescue(
        self, connection: TrioConnection[Any], limit: int, outcome: Outcome
    ) -> list[TaskRecord]:
        """See `TaskStore.rescue`. In a transaction."""
        cursor = await connection.execute(self._sql(EXPIRED), (max(limit, 0),))
        seqs = [row[0] for row in await cursor.fetchall()]
        if not seqs:
            return []
        step = self.step(connection)
        await step.begin(seqs=seqs)
        expired = [
            (until, stored.record.seq, stored)
            for stored in step.rows()
            if stored.record.status is TaskStatus.RUNNING
            and (until := stored.record.lease_until) is not None
            and until < step.now
        ]
        expired.sort(key=lambda found: found[:2])
        rescued = [step.rescue(stored) for _, _, stored in expired]
        await step.write()
        outcome.add(step)
        return rescued

    async def progress(
        self, connection: TrioConnection[Any], claim: tuple[str, int], data: bytes
    ) -> bool:
        """See `TaskStore.progress`."""
        cursor = await connection.execute(self._sql(PROGRESS), (data, *claim))
        return cursor.rowcount == 1

    # ---- by hand ---------------------------------------------------------

    async def alter(
        self,
        connection: TrioConnection[Any],
        where: Where,
        change: Change,
        limit: int | None,
        outcome: Outcome,
    ) -> list[str]:
        """See `TaskStore.alter`. In a transaction; a chunk of rows at a time."""
        changed: list[str] = []
        after: int | None = None
        while limit is None or len(changed) < limit:
            seqs = await sequences(connection, self._sql, where, after, CHUNK)
            if not seqs:
                break
            after = seqs[-1]
            step = self.step(connection)
            await step.begin(seqs=seqs)
            for stored in step.rows():
                if limit is not None and len(changed) >= limit:
                    break
                if matches(where, stored.record, step.now) and step.alter(stored, change):
                    changed.append(stored.record.id)
            await step.write()
            outcome.add(step)
            if len(seqs) < CHUNK:
                break
        return changed

    async def would_alter(
        self, connection: TrioConnection[Any], where: Where, change: Change, limit: int | None
    ) -> list[str]:
        """What `alter` would answer. Reads only."""
        found: list[str] = []
        async for record, now in matching(
            connection, self._sql, self._lanes, where, Order.OLDEST, None, CHUNK, every=True
        ):
            if limit is not None and len(found) >= limit:
                break
            if would_change(change, record, now):
                found.append(record.id)
        return found

    async def prune(
        self, connection: TrioConnection[Any], spec: PruneSpec, *, dry_run: bool
    ) -> int:
        """See `TaskStore.prune`. One statement, except that payloads are looked into beforehand."""
        states = [State.SUCCEEDED, State.CANCELLED, *([State.FAILED] if spec.dead_letters else [])]
        considered = condition(spec.where)
        terms = [f"t.state IN ({', '.join(str(int(state)) for state in states)})"]
        given: list[Any] = []
        if looks_into_payload(spec.where):
            seqs = [
                record.seq
                async for record, _ in matching(
                    connection, self._sql, self._lanes, spec.where, Order.OLDEST, None, CHUNK, every=True
                )
                if record.status.is_terminal
            ]
            terms.append("t.seq = ANY (%s)")
            given.append(seqs)
        else:
            terms.append(considered.sql)
            given += considered.values
        doomed: list[str] = []
        if spec.age_s is not None:
            doomed.append("(SELECT now FROM clock) - t.finished_at > %s")
        ranked = "0 AS newer"
        if spec.keep is not None:
            doomed.append("t.newer > %s")
            partition = {"total": "", "queue": "PARTITION BY t.queue ", "type": "PARTITION BY l.type "}
            ranked = (
                f"row_number() OVER ({partition[spec.per]}ORDER BY t.finished_at DESC, t.seq DESC) AS newer"
            )
        limits = [each for each in (spec.age_s, spec.keep) if each is not None]
        chosen = (
            f"SELECT t.seq FROM (SELECT t.seq, t.finished_at, {ranked} FROM @.tasks t"
            f" JOIN @.lanes l ON l.id = t.lane WHERE t.state >= 5 AND {' AND '.join(terms)}) AS t"
            f" WHERE {' OR '.join(doomed)} ORDER BY t.finished_at, t.seq LIMIT %s"
        )
        given += [*limits, max(spec.limit, 0)]
        if dry_run:
            statement = f"{CLOCK} SELECT count(*) FROM ({chosen}) AS doomed"
            cursor = await connection.execute(self._sql(statement), given)
            row = await cursor.fetchone()
            return 0 if row is None else int(row[0])
        statement = (
            f"{CLOCK}, doomed AS MATERIALIZED ({chosen}),"
            # One that was rerun meanwhile is not there any more once its lock is had.
            " locked AS MATERIALIZED (SELECT t.seq FROM @.tasks t JOIN doomed ON doomed.seq = t.seq"
            "  WHERE t.state >= 5 ORDER BY t.seq FOR UPDATE OF t),"
            " gone AS (DELETE FROM @.tasks t USING locked WHERE t.seq = locked.seq),"
            " past AS (DELETE FROM @.attempts a USING locked WHERE a.task = locked.seq)"
            " SELECT count(*) FROM locked"
        )
        cursor = await connection.execute(self._sql(statement), given)
        row = await cursor.fetchone()
        return 0 if row is None else int(row[0])


def _is_plain(transition: Transition) -> bool:
    """Whether it is a success that leads to nothing else."""
    return (
        transition.kind is TransitionKind.DONE
        and not transition.spawn
        and transition.error is None
    )


def _json(tags: Iterable[str]) -> str:
    return json.dumps(sorted(tags), ensure_ascii=False)


def _claim_order(row: tuple[Any, ...]) -> tuple[float, float, int]:
    return -row[0], row[15], row[1]


def _claim_of(row: tuple[Any, ...], lane: Lane, want: Want) -> Claim:
    (_, _, id_, epoch, _, payload, key, headers, priority, tags, timeout, max_retry) = row[:12]
    (attempt, limit, created_at, available_at, started_at, last_error, cron, _, _) = row[12:]
    return Claim(
        id_,
        epoch,
        lane.queue,
        lane.type,
        lane.version,
        payload,
        key,
        NO_HEADERS if headers is None else headers,
        priority,
        () if tags is None else tuple(tags),
        want.timeout if timeout is None else timeout,
        max_retry,
        attempt,
        limit,
        created_at,
        available_at,
        started_at,
        last_error,
        cron,
    )
