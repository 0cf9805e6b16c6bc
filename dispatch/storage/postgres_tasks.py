"""Tasks in PostgreSQL: what is done to them, but for claims.

Storing, claiming and a plain success are one statement each, over arrays. What
they cannot decide they leave alone, and a `Step` decides it: keyed and unique
tasks, bounds, failures, stale fences.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from math import inf
from operator import attrgetter, itemgetter
from typing import Any, Final

from dispatch.lifecycle import SettleAnswer, fence
from dispatch.records import NewTask, TaskRecord, Transition, TransitionKind
from dispatch.storage.changes import changeable, would_change
from dispatch.storage.limits import Rooms
from dispatch.storage.postgres_claim import Ended, PostgresClaims
from dispatch.storage.postgres_query import (
    CLOCK,
    Condition,
    condition,
    looks_into_payload,
    matching,
    sequences,
)
from dispatch.storage.postgres_rows import (
    FEW,
    IN_STATE,
    Address,
    Lane,
    Lanes,
    Sql,
    Statement,
    address_of,
    numbered,
)
from dispatch.storage.postgres_schema import State
from dispatch.storage.postgres_step import (
    Given,
    Outcome,
    Queue,
    Step,
    column,
    taken,
    transaction,
)
from dispatch.storage.protocol import (
    Change,
    EnqueueAnswer,
    EnqueueResult,
    QueueRecord,
    RenewAnswer,
    SettleResult,
    Topic,
    TopicKind,
    Want,
)
from dispatch.storage.psycopg_trio import TrioConnection
from dispatch.storage.query import Order, PruneSpec, Where, matches
from dispatch.tasks import TaskStatus

__all__ = ["PostgresTasks", "all_plain", "settled"]

CHUNK: Final = 1_000
"""Rows that a bulk change holds in memory at a time."""
KINDS: Final = 200
# On 3.11 an Enum takes 0.1 us to give a member, and these are asked for with each task.
CREATED: Final = EnqueueAnswer.CREATED
APPLIED: Final = SettleAnswer.APPLIED
SUCCEEDED: Final = TaskStatus.SUCCEEDED
DONE: Final = TransitionKind.DONE
"""Statements that store tasks which are kept, one for each choice of columns and of what is alike in them."""
PLAIN: Final = ("id", "lane", "priority", "payload")
"""The columns that every stored task brings."""
OPTIONAL: Final[tuple[tuple[str, object], ...]] = (
    ("key", None),
    ("headers", {}),
    ("tags", ()),
    ("timeout", None),
    ("max_retry", None),
    ("cron", None),
    ("slot", None),
)
"""Columns that a plain task may bring, and what those hold that do not."""

ENQUEUE: Final = (
    f"{CLOCK} INSERT INTO @.tasks (created_at, available_at, queue, state, {{columns}})"
    " SELECT c.now, coalesce({at}, floor((c.now + {delay}) * 1e6 + 0.5) / 1e6), q.id, 0, {selected}"
    " FROM {given} JOIN @.lanes l ON l.id = {lane} JOIN @.queues q ON q.id = l.queue CROSS JOIN clock c"
    " ORDER BY g.ord ON CONFLICT (id) DO NOTHING RETURNING id, created_at, available_at"
)
ENQUEUE_ALL: Final = (
    f"{CLOCK}, given AS MATERIALIZED (SELECT g.*, q.id AS of, coalesce({{fits}}, FALSE) AS fits"
    "  FROM {given} JOIN @.lanes l ON l.id = {lane} JOIN @.queues q ON q.id = l.queue CROSS JOIN clock c)"
    " INSERT INTO @.tasks (created_at, available_at, queue, state, {columns})"
    " SELECT c.now, coalesce({at}, floor((c.now + {delay}) * 1e6 + 0.5) / 1e6), g.of, 0, {selected}"
    " FROM given g CROSS JOIN clock c WHERE (SELECT bool_and(fits) FROM given)"
    " ORDER BY g.ord ON CONFLICT (id) DO NOTHING RETURNING id, created_at, available_at"
)
"""All of them or none: left behind, one would be stored after those that came after it."""

RUNS_GIVEN: Final = (
    "unnest(%(ids)s::text[], %(epochs)s::int8[]) AS g (id, epoch) CROSS JOIN LATERAL"
    " (SELECT t.seq, t.id, t.epoch, t.cancel_reason FROM @.tasks t WHERE t.id = g.id AND t.epoch = g.epoch"
    f"  AND {IN_STATE.format(3)} {{}}) AS t WHERE {FEW}"
)
HELD: Final = f"SELECT t.id, t.epoch, t.cancel_reason, FALSE FROM {RUNS_GIVEN.format('OFFSET 0')}"
RENEW: Final = (
    f"{CLOCK}, free AS MATERIALIZED (SELECT t.* FROM {RUNS_GIVEN.format('FOR UPDATE SKIP LOCKED')}),"
    " renewed AS (UPDATE @.tasks t SET lease_until = c.now + %(lease)s::float8 FROM free, clock c"
    "  WHERE t.seq = free.seq AND t.lease_until < c.now + %(lease)s::float8)"
    f" SELECT id, epoch, cancel_reason, TRUE FROM free UNION ALL {HELD}"
)
"""What could be renewed (TRUE), and all that was held when the statement began.

A row that somebody has locked, perhaps for long, must not cost the others their leases:
it is held as far as anyone can see, and nobody else takes it while it is locked.
"""
PROGRESS: Final = f"UPDATE @.tasks t SET progress = %s WHERE id = %s AND epoch = %s AND {IN_STATE.format(3)}"
EXPIRED: Final = (
    "SELECT seq, lined, queue, key FROM @.tasks WHERE state = 3 AND lease_until < @.now_s()"
    " AND seq <> ALL (%s::int8[]) ORDER BY lease_until, seq LIMIT %s FOR UPDATE SKIP LOCKED"
)
"""A locked row is for a later sweep: its run may be just ending in its handler's transaction."""


class PostgresTasks:
    """The task methods of the hook, each on a connection that the caller lends.

    In a transaction where they say so; all others are single statements.
    """

    def __init__(self, sql: Sql, lanes: Lanes) -> None:
        self._sql = sql
        self._lanes = lanes
        self.claims: PostgresClaims = PostgresClaims(sql, lanes)
        # As last seen: a mistake costs a statement more, and is noticed by it.
        self._keyed: set[str] = set()
        """Queues in which a success lets the next of its key run, and so must come first."""
        self._bounded: dict[str, int] = {}
        self._rooms = Rooms()
        self._inserts: dict[tuple[tuple[str, ...], tuple[str, ...], bool], Statement] = {}
        """By the names of columns and arrays, and whether there is a bound."""

    def know(self, queues: Iterable[QueueRecord | Queue]) -> None:
        """Remember what was just read of queues."""
        for queue in queues:
            for names, holds in (
                (self._keyed, queue.keyed),
                (self.claims.limited, _is_limited(queue)),
            ):
                if holds:
                    names.add(queue.name)
                else:
                    names.discard(queue.name)
            if queue.max_waiting is None:
                self._bounded.pop(queue.name, None)
            else:
                self._bounded[queue.name] = queue.max_waiting

    def have_room(self, tasks: Sequence[NewTask], at: float) -> bool:
        """Whether these fit by what was counted lately: they have taken their places then.

        Of a queue that is not known here to be bounded the statement itself has to ask.
        """
        return self._rooms.take(self._bounded, [new.queue for new in tasks], at)

    def are_plain(self, tasks: Sequence[NewTask], *, bounded: bool) -> bool:
        """Whether these, as far as is known, depend on no stored task: `enqueue_plain` will do."""
        if len({new.id for new in tasks}) < len(tasks):
            return False  # the second of an id depends on what becomes of the first
        return not any(
            new.unique is not None
            or (new.key is not None and new.queue in self._keyed)
            or (bounded and new.queue in self._bounded)
            for new in tasks
        )

    def _new_step(self, connection: TrioConnection[Any]) -> Step:
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
        """Store these tasks if none depends on a stored one; None for those that were not stored."""
        numbers = await self._numbers(connection, tasks, outcome)
        fit = [new for new, number in zip(tasks, numbers, strict=True) if number is not None]
        stored: dict[str, tuple[float, float]] = {}
        # Said before it is known: if the answer is lost, it may be stored all the same.
        outcome.rings |= {Topic(TopicKind.QUEUE, queue) for queue in {new.queue for new in fit}}
        if fit:
            known = [number for number in numbers if number is not None]
            cursor = await connection.execute_raw(*self._insert(fit, known, bounded=bounded))
            stored = {row[0]: (row[1], row[2]) for row in await cursor.fetchall()}
        results: list[EnqueueResult | None] = []
        for new, number in zip(tasks, numbers, strict=True):
            moments = None if number is None else stored.pop(new.id, None)
            if moments is None:
                results.append(None)
                continue
            results.append(EnqueueResult(CREATED, new.id, *moments))
        return results

    async def _numbers(
        self, connection: TrioConnection[Any], tasks: Sequence[NewTask], outcome: Outcome
    ) -> list[int | None]:
        """Their lanes, made where missing; None for unique tasks, and of undeclared queues."""
        addresses = [address_of(new) if new.unique is None else None for new in tasks]
        found = {each: self._lanes.known(each) for each in addresses if each is not None}
        missing = [each for each, lane in found.items() if lane is None]
        if missing:
            found.update(await self.make_lanes(connection, missing, outcome))
        numbers: list[int | None] = []
        for each in addresses:
            lane = None if each is None else found[each]
            numbers.append(None if lane is None else lane.id)
        return numbers

    async def make_lanes(
        self, connection: TrioConnection[Any], addresses: Iterable[Address], outcome: Outcome
    ) -> dict[Address, Lane]:
        """The lanes of these addresses, made where missing."""
        made = await self._lanes.make(connection, addresses)
        outcome.lanes += made.values()
        return made

    def _insert(
        self, tasks: Sequence[NewTask], numbers: Sequence[int], *, bounded: bool
    ) -> tuple[bytes, list[Any]]:
        names = list(PLAIN)
        names += [
            name
            for name, absent in OPTIONAL
            if list(map(attrgetter(name), tasks)).count(absent) < len(tasks)
        ]
        given = Given(
            {
                **{name: column(name, tasks, numbers) for name in names},
                "at": [new.available_at for new in tasks],
                "delay": [new.delay for new in tasks],
            }
        )
        kind = tuple(names), tuple(given.arrays), bounded
        statement = self._inserts.get(kind)
        if statement is None:
            if len(self._inserts) >= KINDS:
                self._inserts.clear()
            statement = self._inserts[kind] = self._inserting(names, given, bounded=bounded)
        return statement.text, statement.values(given.values)

    def _inserting(self, names: Sequence[str], given: Given, *, bounded: bool) -> Statement:
        """The statement that stores tasks with these columns."""
        fits: list[str] = []
        if "key" in names:
            fits.append(f"(NOT q.keyed OR {given['key']} IS NULL)")
        if bounded:
            fits.append(f"(q.max_waiting IS NULL OR {given['at']} > c.now OR {given['delay']} > 0)")
        statement = (ENQUEUE_ALL if fits else ENQUEUE).format(
            columns=", ".join(names),
            selected=", ".join(given[name] for name in names),
            given=given.table,
            lane=given["lane"],
            at=given["at"],
            delay=given["delay"],
            fits=" AND ".join(fits),
        )
        return numbered(self._sql(statement))

    async def enqueue(
        self,
        connection: TrioConnection[Any],
        tasks: Sequence[NewTask],
        outcome: Outcome,
        *,
        bounded: bool,
        by: tuple[str, int] | None = None,
        at: float = -inf,
    ) -> list[EnqueueResult]:
        """Store tasks of any kind, if the claim `by` which they are published holds. In a transaction.

        `at` is the moment of this, for what `have_room` says later.
        """
        step = self._new_step(connection)
        await step.begin(ids=() if by is None else by[:1], news=tasks, bounded=bounded)
        if by is not None and fence(step.record(by[0]), by[1]) is not SettleAnswer.APPLIED:
            return [EnqueueResult(EnqueueAnswer.CLAIM_LOST, new.id) for new in tasks]
        results = [step.store(new, bounded=bounded) for new in tasks]
        await step.write()
        outcome.add(step)
        self.know(step.queues.values())
        for name, waiting in step.waiting.items():
            self._rooms.found(name, self._bounded[name], waiting, at)
        return results

    # ---- runs ------------------------------------------------------------

    async def succeed(
        self, connection: TrioConnection[Any], transitions: Sequence[Transition], outcome: Outcome
    ) -> Ended:
        """End what plainly succeeded, if that is all there is; not what is in a line.

        By itself, where lines are about: its rows are locked before what `settle` would wait for.
        """
        if not all_plain(transitions):
            return {}
        return await self.claims.succeed(connection, transitions, outcome)

    async def settle(
        self,
        connection: TrioConnection[Any],
        transitions: Sequence[Transition],
        outcome: Outcome,
        *,
        ended: Ended,
    ) -> list[SettleResult]:
        """See `TaskStore.settle`. In a transaction. What is `ended` already is only answered."""
        left = [each for each in transitions if each.id not in ended]
        decided: list[SettleResult] = []
        if left:
            step = self._new_step(connection)
            news = [new for each in left for new in each.spawn]
            await step.begin(ids={each.id for each in left}, news=news)
            decided = [step.settle(each) for each in left]
            await step.write()
            outcome.add(step)
            self.know(step.queues.values())
        return settled(transitions, ended, decided)

    def turns_at_once(self, transitions: Sequence[Transition], wants: Sequence[Want]) -> bool:
        """Whether one statement will do for `turn`: plain successes, and one ordinary queue."""
        return (
            len(wants) == 1
            and all_plain(transitions)
            and wants[0].queue not in self._keyed
            and wants[0].queue not in self.claims.limited
        )

    def keyed(self, wants: Iterable[Want]) -> bool:
        """Whether one of these queues is known to be keyed."""
        return any(want.queue in self._keyed for want in wants)

    async def renew(
        self,
        connection: TrioConnection[Any],
        claims: Sequence[tuple[str, int]],
        lease: float | None,
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
        # Of a free row the later reading counts, which saw who locked it just before.
        rows = sorted(await cursor.fetchall(), key=itemgetter(3))
        held = {(row[0], row[1]): row[2] for row in rows}
        return [RenewAnswer(*claim, claim in held, held.get(claim)) for claim in claims]

    async def rescue(
        self, connection: TrioConnection[Any], limit: int, outcome: Outcome
    ) -> list[TaskRecord]:
        """See `TaskStore.rescue`. Not in a transaction: it makes one if there is anything to do.

        A line that somebody else has locked, in a transaction of a user's for instance, is for
        a later sweep as well: waiting for it would keep all the others from being rescued.
        """
        passed: list[int] = []
        while True:
            # By itself, so that no row stays locked when the step takes its locks in their order.
            cursor = await connection.execute(self._sql(EXPIRED), (passed, max(limit, 0)))
            found = {row[0]: (row[2], row[3]) if row[1] else None for row in await cursor.fetchall()}
            if not found:
                return []
            rescued, busy = await self._rescue(connection, found, outcome)
            if rescued or not busy:
                return rescued
            passed += busy

    async def _rescue(
        self,
        connection: TrioConnection[Any],
        found: Mapping[int, tuple[int, str] | None],
        outcome: Outcome,
    ) -> tuple[list[TaskRecord], list[int]]:
        """Rescue these, given with their lines; answers also with those whose lines are locked."""
        async with transaction(connection):
            locked = await taken(connection, self._sql, {line for line in found.values() if line is not None})
            busy = [seq for seq, line in found.items() if line in locked]
            step = self._new_step(connection)
            await step.begin(seqs=found.keys() - set(busy))
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
        return rescued, busy

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
        where = changeable(where, change)
        changed: list[str] = []
        after: int | None = None
        while limit is None or len(changed) < limit:
            seqs = await sequences(connection, self._sql, where, after, CHUNK)
            if not seqs:
                break
            after = seqs[-1]
            step = self._new_step(connection)
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
        where = changeable(where, change)
        found: list[str] = []
        rows = matching(
            connection, self._sql, self._lanes, where, Order.OLDEST, None, CHUNK, every=True
        )
        async with aclosing(rows):
            async for record, now in rows:
                if limit is not None and len(found) >= limit:
                    break
                if would_change(change, record, now):
                    found.append(record.id)
        return found

    async def prune(
        self, connection: TrioConnection[Any], spec: PruneSpec, *, dry_run: bool
    ) -> int:
        """See `TaskStore.prune`. One statement, except that payloads are looked into beforehand."""
        chosen, values = await self._doomed(connection, spec)
        if dry_run:
            statement = f"{CLOCK} SELECT count(*) FROM ({chosen}) AS doomed"
            cursor = await connection.execute(self._sql(statement), values)
            row = await cursor.fetchone()
            return 0 if row is None else int(row[0])
        statement = (
            f"{CLOCK}, doomed AS MATERIALIZED ({chosen}),"
            # One that was rerun meanwhile is not there any more once its lock is had; one
            # that somebody holds, in a transaction of a user's perhaps, goes another time.
            " locked AS MATERIALIZED (SELECT t.seq FROM @.tasks t JOIN doomed ON doomed.seq = t.seq"
            "  WHERE t.state >= 5 ORDER BY t.seq FOR UPDATE OF t SKIP LOCKED),"
            " gone AS (DELETE FROM @.tasks t USING locked WHERE t.seq = locked.seq),"
            " past AS (DELETE FROM @.attempts a USING locked WHERE a.task = locked.seq)"
            " SELECT count(*) FROM locked"
        )
        cursor = await connection.execute(self._sql(statement), values)
        row = await cursor.fetchone()
        return 0 if row is None else int(row[0])

    async def _doomed(
        self, connection: TrioConnection[Any], spec: PruneSpec
    ) -> tuple[str, list[Any]]:
        """A query for the `seq` of what is to go, oldest end first, beside `CLOCK`."""
        states = [State.SUCCEEDED, State.CANCELLED, *([State.FAILED] if spec.dead_letters else [])]
        considered = Condition(
            f"t.state >= 5 AND t.state IN ({', '.join(str(int(each)) for each in states)})"
        )
        narrowed = condition(spec.where)
        if looks_into_payload(spec.where):
            rows = matching(
                connection,
                self._sql,
                self._lanes,
                spec.where,
                Order.OLDEST,
                None,
                CHUNK,
                every=True,
            )
            seqs = [record.seq async for record, _ in rows if record.status.is_terminal]
            narrowed = Condition("t.seq = ANY (%s)", (seqs,))
        considered = considered.joined(narrowed, word="AND", empty="TRUE")
        arms: list[str] = []
        values: list[Any] = []
        if spec.age_s is not None:
            arms.append(
                f"(SELECT t.finished_at, t.seq FROM @.tasks t WHERE {considered.sql}"
                # The second says it exactly, the first so that the index can be asked.
                " AND t.finished_at < (SELECT now FROM clock) - %s + 1.0"
                " AND (SELECT now FROM clock) - t.finished_at > %s ORDER BY 1, 2 LIMIT %s)"
            )
            values += [*considered.values, spec.age_s, spec.age_s, max(spec.limit, 0)]
        if spec.keep is not None:
            arms.append(_beyond(spec, considered))
            values += [*considered.values, spec.keep, max(spec.limit, 0)]
            if spec.per == "total":
                values[-2:-2] = considered.values
        found = " UNION ".join(arms)
        chosen = f"SELECT t.seq FROM ({found}) AS t ORDER BY t.finished_at, t.seq LIMIT %s"
        return chosen, [*values, max(spec.limit, 0)]


def _beyond(spec: PruneSpec, considered: Condition) -> str:
    """A query for what is older than the newest `keep`."""
    if spec.per == "total":  # two walks along an index, of which the first passes what is kept
        return (
            f"(SELECT t.finished_at, t.seq FROM @.tasks t WHERE {considered.sql}"
            " AND (t.finished_at, t.seq) <= (SELECT t.finished_at, t.seq FROM @.tasks t"
            f"  WHERE {considered.sql} ORDER BY 1 DESC, 2 DESC OFFSET %s LIMIT 1) ORDER BY 1, 2 LIMIT %s)"
        )
    group = (
        "t.queue" if spec.per == "queue" else "(SELECT l.type FROM @.lanes l WHERE l.id = t.lane)"
    )
    return (
        "(SELECT t.finished_at, t.seq FROM (SELECT t.finished_at, t.seq, row_number() OVER"
        f"  (PARTITION BY {group} ORDER BY t.finished_at DESC, t.seq DESC) AS newer"
        f"  FROM @.tasks t WHERE {considered.sql}) AS t WHERE t.newer > %s ORDER BY 1, 2 LIMIT %s)"
    )


def settled(
    transitions: Sequence[Transition], ended: Ended, decided: Iterable[SettleResult] = ()
) -> list[SettleResult]:
    """The answers for all, in their order: some are `ended`, on the others a step has `decided`."""
    others = iter(decided)
    return [
        SettleResult(each.id, each.epoch, APPLIED, SUCCEEDED, ended[each.id])
        if each.id in ended
        else next(others)
        for each in transitions
    ]


def all_plain(transitions: Sequence[Transition]) -> bool:
    """Whether all are successes that lead to nothing else, of different tasks."""
    return all(
        each.kind is DONE and not each.spawn and each.error is None
        for each in transitions
    ) and len({each.id for each in transitions}) == len(transitions)


def _is_limited(queue: QueueRecord | Queue) -> bool:
    rate = queue.rate if isinstance(queue, QueueRecord) else queue.rate_count
    return queue.max_running is not None or rate is not None
