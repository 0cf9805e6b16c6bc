"""Claims in PostgreSQL: one statement that finds, locks and starts what may run next.

A claim merges one range of the `ready` index per wanted lane and priority. Each
range is in claim order already, since who waited longer in it has aged more; the
first `reach` of each are merged, and of those the first `limit` that no other
claim holds are locked, in order. So a claim reads rows that can run and no
others, and locks what it takes and nothing else. Should others hold all it
reached, it reaches further.

A worker's turn between two attempts is the same statement: beside the claim it
ends the runs that succeeded. The two never touch the same rows: a claim takes
those that wait, and what `ENDING` ends does not wait afterwards.

Some queues need more than one statement, and say so in the last row of the
answer. One with a limit over all processes is claimed from by one process at a
time, behind a lock on its row. And where tasks let others of their key pass
while they wait for a retry (`on_retry="yield"`), the lines of those that are due
are put in order first.

Statements are sent with `$1`, not psycopg's `%s`: parsing texts of this length
again for each execution would take as long as the round trip.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import attrs

from dispatch.records import Claim, Transition
from dispatch.storage.changes import NO_HEADERS
from dispatch.storage.limits import allowance
from dispatch.storage.postgres_query import CLOCK
from dispatch.storage.postgres_rows import FEW, IN_STATE, Lane, Lanes, Sql, Statement, numbered
from dispatch.storage.postgres_step import Outcome, Step, promote, taken, transaction
from dispatch.storage.protocol import Claimed, Topic, TopicKind, Want
from dispatch.storage.psycopg_trio import TrioConnection
from dispatch.storage.texts import storable

__all__ = ["Ended", "PostgresClaims"]

REACH: Final = 96
"""Candidates that a claim looks at beyond its limit, for those that other claims hold."""
ROUNDS: Final = 8
"""How often a claim that met only tasks held by others looks again, each time further."""
BUSY_S: Final = 0.05
"""After so long a claim looks again at lines that others had locked, and at tasks that others seemed to have taken."""
HELD_S: Final = 1.0
"""And after so long at tasks that others really hold: a user's transaction may, and rings nothing when it lets go."""
QUICK: Final = 63
"""So many claims in turn may pass by what others seem to have taken; the next one tries it."""

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
PLACE: Final = (
    "place AS MATERIALIZED (SELECT q.id, q.paused, q.max_waiting IS NOT NULL AS bounded,"
    "  q.max_running IS NOT NULL OR q.rate_count IS NOT NULL AS limited FROM @.queues q WHERE q.name = %(queue)s),"
    " overdue AS MATERIALIZED (SELECT EXISTS (SELECT 1 FROM @.tasks t WHERE t.queue = (SELECT id FROM place)"
    "  AND t.state = 2 AND t.available_at <= (SELECT now FROM clock)) AS found)"
)
"""`overdue`: a task that let others of its key pass is due, and the lines must be put in order first."""
WHOLE: Final = " AND (SELECT count(*) FROM ended) = cardinality(%(done)s::text[])"
"""Where a run could not be ended, nothing is claimed: that comes after what else must be done."""
TYPES_WANTED: Final = (
    " JOIN unnest(%(types)s::text[], %(versions)s::int8[]) AS w (type, version)"
    " ON l.type = w.type AND l.version <= w.version"
)
LANE: Final = (
    "lane AS MATERIALIZED (SELECT l.id, l.tagged FROM place q JOIN @.lanes l ON l.queue = q.id{types}"
    " WHERE NOT q.paused AND (l.tagged = FALSE OR %(tagged)s) AND (%(within)s OR NOT q.limited)"
    " AND (%(past)s OR NOT (SELECT found FROM overdue)){whole})"
)
"""`past`: although tasks are due whose lines somebody else has locked, perhaps for long."""
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
    f" CROSS JOIN clock c WHERE t.id = ANY (%(ids)s) AND {IN_STATE.format(0)} AND t.available_at <= c.now"
    " AND (%(tags)s::jsonb IS NULL OR t.tags IS NULL OR t.tags <@ %(tags)s::jsonb)"
)
NEXT_DUE: Final = (
    "(SELECT min(t.available_at) FROM lane CROSS JOIN generate_series(0, 3) AS p (priority)"
    " CROSS JOIN clock c CROSS JOIN LATERAL (SELECT t.available_at FROM @.tasks t"
    " WHERE t.lane = lane.id AND t.priority = p.priority AND t.state = 0 AND t.available_at > c.now"
    " ORDER BY t.available_at LIMIT 1) AS t)"
)
NEXT_ASIDE: Final = (
    "(SELECT min(t.available_at) FROM @.tasks t WHERE t.queue = (SELECT id FROM place WHERE NOT paused) AND t.state = 2)"
)
NEXT_NAMED: Final = (
    "(SELECT min(t.available_at) FROM @.tasks t JOIN place q ON q.id = t.queue CROSS JOIN clock c"
    " WHERE t.id = ANY (%(ids)s) AND NOT q.paused AND t.state + 0 <= 2"
    " AND t.available_at > c.now)"
)
SIGHT: Final = (
    "sight AS MATERIALIZED (SELECT pg_current_snapshot() AS seen, pg_snapshot_xmax(pg_current_snapshot())::text::int8"
    " AS top, pg_current_xact_id_if_assigned()::xid AS own)"
)
UNTAKEN: Final = (
    "(t.xmax = 0 OR (SELECT t.xmax = s.own OR CASE WHEN x.past >= 131072 THEN TRUE WHEN x.past >= 0 THEN FALSE"
    " ELSE pg_visible_in_snapshot(greatest(s.top + x.past, 0)::text::xid8, s.seen) END FROM sight s"
    " CROSS JOIN LATERAL (SELECT ((t.xmax::text::int8 - s.top + 2147483648) & 4294967295) - 2147483648 AS past) AS x))"
)
"""Whether nobody has taken the row since the statement began: a row that somebody has changed would be found in its
newest version, locked, and judged by a plan of its own, made anew for each: 0.1 ms a row, half of what a turn takes
where two processes share a queue. `xmax` is who changed or locked it last. Whoever had ended when the statement began
has left it as it is, by rolling back or by locking alone; so has this transaction. It has 32 bits of a number
of 64, hence `past`, its distance to the `top` of what the statement sees.

Some rows that are free it calls taken: one that somebody has only locked since, and let go, and one that several
shared, where `xmax` is the number of that set, and such numbers are counted by themselves. So it may put a row
off, and no more: see `_surely`. One far beyond `top` is of a set, since no statement lasts so many transactions.
"""
CLAIM: Final = (
    f"WITH RECURSIVE {{clock}}, {SIGHT}, {PLACE},{{ending}} {{lane}}, {{sets}}"
    " candidate AS MATERIALIZED (SELECT t.seq, t.available_at, {level} AS level FROM ({ranges}) AS t"
    "  CROSS JOIN clock c ORDER BY 3 DESC, 2, 1 LIMIT %(reach)s),"
    # In the candidates' order: a subquery that locks is gone through for one after the other.
    # Joined and sorted, up to PostgreSQL 16 the rows of all candidates would be read before the first is taken.
    " taken AS MATERIALIZED (SELECT l.seq, n.level FROM candidate n CROSS JOIN LATERAL"
    "  (SELECT t.seq FROM @.tasks t WHERE t.seq = n.seq AND t.available_at = n.available_at"
    f"   AND {IN_STATE.format(0)} AND (%(sure)s::bool OR {UNTAKEN})"
    "   FOR UPDATE SKIP LOCKED) AS l LIMIT %(limit)s),"
    " passed AS MATERIALIZED (SELECT (SELECT count(*) FROM taken)"
    "  < least(%(limit)s, (SELECT count(*) FROM candidate)) AS maybe),"
    " started AS (UPDATE @.tasks t SET state = 3, attempt = attempt + 1, epoch = epoch + 1,"
    "  worker = %(worker)s, started_at = c.now, finished_at = NULL, lease_until = c.now + %(lease)s::float8,"
    "  retry_limit = coalesce(max_retry, %(max_retry)s), retry = %(retry)s,"
    "  on_interrupt = %(on_interrupt)s, progress = NULL"
    "  FROM taken, clock c WHERE t.seq = taken.seq RETURNING taken.level, t.seq, {claimed})"
    " SELECT s.*, NULL::float8, FALSE, FALSE, FALSE, FALSE FROM started s{ended}"
    " UNION ALL SELECT {nulls}, CASE WHEN %(within)s OR (SELECT count(*) FROM started) < greatest(%(limit)s, 1)"
    "  THEN least({next_due}, CASE WHEN (SELECT maybe FROM passed) THEN (SELECT now FROM clock)"
    "   + CASE WHEN %(sure)s::bool THEN {held} ELSE {soon} END END) END,"
    " (SELECT maybe FROM passed), (SELECT found FROM overdue) OR ((SELECT count(*) FROM started) < %(limit)s"
    "  AND (SELECT count(*) FROM candidate) = %(reach)s),"
    " (SELECT bounded FROM place), NOT %(within)s AND (SELECT limited FROM place)"
)
"""The claims, the ended runs at level -1, and a row without level: when the next is due, whether some were passed by
that may be free by now, whether to look again, whether the queue has a bound, and whether nothing was claimed because it has
a limit."""
LIMITS: Final = (
    "SELECT id, max_running, rate_count, rate_s, tokens, tokens_at, @.now_s() FROM @.queues"
    " WHERE name = %s AND (max_running IS NOT NULL OR rate_count IS NOT NULL) FOR NO KEY UPDATE"
)
"""Whoever claims from a limited queue does so alone."""
RUNNING: Final = "SELECT count(*) FROM (SELECT 1 FROM @.tasks WHERE queue = %s AND state = 3 LIMIT %s) AS running"
SPEND: Final = "UPDATE @.queues SET tokens = %s, tokens_at = %s WHERE id = %s"
NULLS: Final = ", ".join(
    f"NULL::{type_}"
    for type_ in (
        *("float8", "int8", "text", "int8", "int4", "bytea", "text", "jsonb", "int2", "jsonb"),
        *("float8", "int8", "int8", "int8", "float8", "float8", "float8", "text", "text"),
    )
)
ENDING: Final = (
    " given AS MATERIALIZED (SELECT t.seq, g.epoch, g.result FROM"
    "  unnest(%(done)s::text[], %(epochs)s::int8[], %(results)s::bytea[]) AS g (id, epoch, result)"
    f"  CROSS JOIN LATERAL (SELECT t.seq FROM @.tasks t WHERE t.id = g.id OFFSET 0) AS t WHERE {FEW} ORDER BY t.seq),"
    " ended AS (UPDATE @.tasks t SET state = 5, lease_until = NULL, finished_at = c.now,"
    "  result = given.result, last_error = NULL, cancel_reason = NULL FROM given, clock c"
    f"  WHERE t.seq = given.seq AND t.epoch = given.epoch AND {IN_STATE.format(3)} AND NOT t.lined"
    "  RETURNING t.id, t.lane, t.available_at)"
)
SUCCEED: Final = f"{CLOCK},{ENDING} SELECT id, lane, available_at FROM ended"
ENDED_ROWS: Final = (
    " UNION ALL SELECT -1, NULL, e.id, NULL, e.lane, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,"
    " NULL, NULL, e.available_at, NULL, NULL, NULL, NULL, FALSE, FALSE, FALSE, FALSE FROM ended e"
)
ASIDE_DUE: Final = (
    "SELECT t.seq, t.queue, t.key, @.now_s() FROM @.tasks t WHERE t.queue = (SELECT id FROM @.queues WHERE name = %s)"
    " AND t.state = 2 AND t.available_at <= (SELECT @.now_s()) ORDER BY t.available_at LIMIT 500"
)


Ended = dict[str, float]
"""The runs that were ended, by task: since when the task was due."""


class PostgresClaims:
    """The claims of one storage, each on a connection that the caller lends."""

    def __init__(self, sql: Sql, lanes: Lanes) -> None:
        self._sql = sql
        self._lanes = lanes
        self._statements: dict[tuple[bool, ...], Statement] = {}
        self._succeeding = numbered(sql(SUCCEED))
        self._quick: dict[str, int] = {}
        """How many claims of a queue in turn have trusted `UNTAKEN`."""
        self.limited: set[str] = set()
        """Queues known to have a limit over all processes: where a run's end makes room."""

    async def claim(
        self,
        connection: TrioConnection[Any],
        wants: Sequence[Want],
        outcome: Outcome,
        *,
        worker: str,
        lease: float | None,
    ) -> Claimed:
        """See `TaskStore.claim`. Several wants: in a transaction."""
        claimed = Claimed([])
        for want in wants:
            if want.queue in self.limited:
                taken, due = await self._claim_within(connection, want, worker, lease, outcome)
            else:
                taken, due = await self._claim(connection, want, worker, lease, outcome)
            claimed.claims += taken
            if due is not None and (claimed.next_due is None or due < claimed.next_due):
                claimed.next_due = due
        return claimed

    async def turn(
        self,
        connection: TrioConnection[Any],
        transitions: Sequence[Transition],
        want: Want,
        outcome: Outcome,
        *,
        worker: str,
        lease: float | None,
    ) -> tuple[Ended, Claimed]:
        """End runs that succeeded and, if that ended all of them, claim; in one statement."""
        ended: Ended = {}
        try:
            taken, due = await self._claim(
                connection, want, worker, lease, outcome, ending=_ends(transitions), ended=ended
            )
        except BaseException:  # they may be ended all the same, and only the answer lost
            outcome.rings.add(Topic(TopicKind.DONE, want.queue))
            outcome.ended += [each.id for each in transitions]
            raise
        return ended, Claimed(taken, due)

    async def succeed(
        self, connection: TrioConnection[Any], transitions: Sequence[Transition], outcome: Outcome
    ) -> Ended:
        """End runs that succeeded; not those of tasks in a line, nor where the fence does not hold."""
        rows = await self._run(connection, self._succeeding, _ends(transitions))
        await self._lanes.meet(connection, {row[1] for row in rows})
        return self._ended(rows, outcome)

    def _ended(self, rows: Collection[tuple[str, int, float]], outcome: Outcome) -> Ended:
        # Pruned since, and its queue removed, it has no lane, and nobody to be told.
        queues = {self._lanes.of(lane).queue for lane in {lane for _, lane, _ in rows} if self._lanes.met(lane)}
        outcome.ended += [id_ for id_, _, _ in rows]
        outcome.rings.update(Topic(TopicKind.DONE, queue) for queue in queues)
        outcome.rings.update(Topic(TopicKind.QUEUE, queue) for queue in queues & self.limited)
        return {id_: available_at for id_, _, available_at in rows}

    async def _run(
        self, connection: TrioConnection[Any], statement: Statement, values: Mapping[str, Any]
    ) -> list[tuple[Any, ...]]:
        cursor = await connection.execute_raw(statement.text, statement.values(values))
        return await cursor.fetchall()

    async def _claim(
        self,
        connection: TrioConnection[Any],
        want: Want,
        worker: str,
        lease: float | None,
        outcome: Outcome,
        *,
        within: bool = False,
        ending: Mapping[str, Any] | None = None,
        ended: Ended | None = None,
    ) -> tuple[list[Claim], float | None]:
        """Claim for one want; `within` says that the limits of its queue are seen to.

        What of `ending` was ended is added to `ended`.
        """
        limit = max(want.limit, 0)
        reach = limit + REACH
        claims: list[Claim] = []
        next_due: float | None = None
        busy: float | None = None
        for _ in range(ROUNDS):
            values = _values(want, worker, lease)
            sure = self._surely(want.queue)
            values |= {"limit": limit, "reach": reach, "within": within, "past": busy is not None, "sure": sure}
            statement = self._claiming(want, ending=ending is not None)
            values.update(ending or {})
            rows = await self._run(connection, statement, values)
            await self._lanes.meet(connection, {row[4] for row in rows if row[0] is not None})
            [(*_, next_due, passed, again, bounded, limited)] = (row for row in rows if row[0] is None)
            if passed and not sure:
                self._quick[want.queue] = QUICK
            if ending is not None and ended is not None:
                over = [(row[2], row[4], row[15]) for row in rows if row[0] == -1]
                ended |= self._ended(over, outcome)
                if len(ended) < len(ending["done"]):
                    return [], None  # nothing was claimed: see WHOLE
                ending = None
            if limited:
                self.limited.add(want.queue)
                return await self._claim_within(connection, want, worker, lease, outcome)
            started = [row for row in rows if row[0] is not None and row[0] >= 0]
            started.sort(key=_claim_order)
            claims = [_claim_of(row, self._lanes.of(row[4]), want) for row in started]
            if claims and bounded:
                outcome.rings.add(Topic(TopicKind.ROOM, want.queue))
            if claims and again:
                next_due = claims[0].started_at  # not now: what went wrong would lose those in hand
            if claims or busy is not None or not again:
                break
            busy = await self._mature(connection, want.queue)
            reach *= 4
        if busy is not None:
            next_due = busy
        if claims and lease is not None:
            outcome.leases.append((worker, claims[0].started_at + lease))
        return claims, next_due

    def _surely(self, queue: str) -> bool:
        """Whether this claim is to try even rows that `UNTAKEN` would put off.

        It is the next one if some were put off with slots free, and every 64th in any
        case: where others always fill the slots, what is put off must not wait for ever.
        """
        quick = self._quick.get(queue, 0)
        self._quick[queue] = 0 if quick >= QUICK else quick + 1
        return quick >= QUICK

    async def _claim_within(
        self,
        connection: TrioConnection[Any],
        want: Want,
        worker: str,
        lease: float | None,
        outcome: Outcome,
    ) -> tuple[list[Claim], float | None]:
        """Claim from a queue with a limit over all processes."""
        async with transaction(connection):
            # As in a `Step`: before any row, as `declare` has it.
            await connection.execute(self._sql("LOCK TABLE @.tasks IN ROW EXCLUSIVE MODE"))
            cursor = await connection.execute(self._sql(LIMITS), (want.queue,))
            row = await cursor.fetchone()
            if row is None:
                self.limited.discard(want.queue)
                return await self._claim(connection, want, worker, lease, outcome)
            queue, max_running, count, seconds, tokens, since, now = row
            limit, more_at, left = want.limit, None, tokens
            if max_running is not None:
                cursor = await connection.execute(self._sql(RUNNING), (queue, max_running))
                running = await cursor.fetchone()
                assert running is not None
                limit = min(limit, max_running - running[0])
            if count is not None:
                allowed = allowance((count, seconds), tokens, since, now)
                left = allowed.tokens
                if allowed.claims < limit:
                    limit, more_at = allowed.claims, allowed.more_at
            limit = max(limit, 0)
            claims, due = await self._claim(
                connection, attrs.evolve(want, limit=limit), worker, lease, outcome, within=True
            )
            if count is not None:
                if claims:
                    # Spent when they started: had the bucket filled up from before, a stretch that
                    # begins with a slow claim would see more than twice the count.
                    now = claims[0].started_at
                    left = allowance((count, seconds), tokens, since, now).tokens - len(claims)
                await connection.execute(self._sql(SPEND), (left, now, queue))
            if more_at is not None and len(claims) == limit and (due is None or more_at < due):
                due = more_at
            return claims, due

    def _claiming(self, want: Want, *, ending: bool) -> Statement:
        """The statement for a want of this kind."""
        kind = (want.types is None, want.ids is None, bool(want.tags), ending)
        statement = self._statements.get(kind)
        if statement is None:
            sets, ranges, next_due = "", PLAIN_RANGES, f"least({NEXT_DUE}, {NEXT_ASIDE})"
            if want.ids is not None:
                ranges, next_due = NAMED_RANGE, NEXT_NAMED
            elif want.tags:
                sets, ranges = SETS, TAGGED_RANGES
            text = CLAIM.format(
                clock=CLOCK.removeprefix("WITH "),
                ending=f"{ENDING}," if ending else "",
                ended=ENDED_ROWS if ending else "",
                lane=LANE.format(
                    types="" if want.types is None else TYPES_WANTED,
                    whole=WHOLE if ending else "",
                ),
                sets=sets,
                level=LEVEL,
                ranges=ranges,
                claimed=CLAIMED,
                nulls=NULLS,
                next_due=next_due,
                soon=BUSY_S,
                held=HELD_S,
            )
            statement = self._statements[kind] = numbered(self._sql(text))
        return statement

    async def _mature(self, connection: TrioConnection[Any], queue: str) -> float | None:
        """Let those that stepped aside in their lines, and are due, step forward.

        No line is waited for: a user's open transaction may hold one, and amid one of
        our own others may wait for us. If one is locked, the answer is when to try again.
        """
        async with transaction(connection):
            cursor = await connection.execute(self._sql(ASIDE_DUE), (queue,))
            rows = await cursor.fetchall()
            if not rows:
                return None
            busy = await taken(connection, self._sql, {(row[1], row[2]) for row in rows})
            step = Step(connection, self._sql, self._lanes)
            await step.begin(seqs=[row[0] for row in rows if (row[1], row[2]) not in busy])
            lines = {stored.line for stored in step.rows() if stored.line is not None}
            await promote(connection, self._sql, lines, step.now)
            return rows[0][3] + BUSY_S if busy else None


def _ends(transitions: Sequence[Transition]) -> dict[str, Any]:
    results = [each.result for each in transitions]
    return {
        "done": [each.id for each in transitions],
        "epochs": [each.epoch for each in transitions],
        "results": results if any(results) else None,  # unnest fills up what is missing with NULL
    }


def _values(want: Want, worker: str, lease: float | None) -> dict[str, Any]:
    values: dict[str, Any] = {
        "queue": want.queue,
        "ageing": want.ageing,
        "worker": worker,
        "lease": lease,
        "max_retry": want.max_retry,
        "retry": want.retry,
        "on_interrupt": want.on_interrupt,
        "tagged": want.tags is None or bool(want.tags),
        "within": False,
        "past": False,
        "sure": False,
    }
    if want.types is not None:
        values["types"] = list(want.types)
        values["versions"] = list(want.types.values())
    if want.ids is not None:
        values["ids"] = sorted(filter(storable, want.ids))
    if want.tags or want.ids is not None:
        values["tags"] = None if want.tags is None else _json(want.tags)
    return values


def _json(tags: Iterable[str]) -> str:
    return json.dumps(sorted(tags), ensure_ascii=False)


def _claim_order(row: tuple[Any, ...]) -> tuple[float, float, int]:
    return -row[0], row[15], row[1]


def _claim_of(row: tuple[Any, ...], lane: Lane, want: Want) -> Claim:
    (_, _, id_, epoch, _, payload, key, headers, priority, tags, timeout, max_retry) = row[:12]
    (attempt, limit, created_at, available_at, started_at, last_error, cron) = row[12:19]
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
