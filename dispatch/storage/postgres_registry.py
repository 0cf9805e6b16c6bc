"""Queues, workers and cron entries in PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import trio

from dispatch.records import NewTask
from dispatch.storage.postgres_rows import Lanes, Sql
from dispatch.storage.postgres_schema import LOCK_MS
from dispatch.storage.postgres_step import QUEUES, Again, Outcome, Queue, Step
from dispatch.storage.protocol import (
    AdvanceAnswer,
    CronRecord,
    EnqueueAnswer,
    Keep,
    PutAnswer,
    QueueRecord,
    RemoveAnswer,
    Topic,
    TopicKind,
    WorkerRecord,
)
from dispatch.storage.psycopg_trio import TrioConnection
from dispatch.storage.texts import CronRecords, cron_record, storable, template_to_text

__all__ = ["PostgresRegistry", "queue_record"]

ALIVE_S: Final = 60.0
"""A worker is listed for so long after its last beat."""

DECLARED: Final = "keyed, on_retry, max_waiting, overflow, max_running, rate_count, rate_s"
DECLARE: Final = (
    f"INSERT INTO @.queues AS q (name, {DECLARED}, paused, concurrency)"
    " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
    f" ON CONFLICT (name) DO UPDATE SET ({DECLARED}) ="
    " (EXCLUDED.keyed, EXCLUDED.on_retry, EXCLUDED.max_waiting, EXCLUDED.overflow,"
    "  EXCLUDED.max_running, EXCLUDED.rate_count, EXCLUDED.rate_s)"
    " WHERE (q.keyed, q.on_retry) = (%s, %s) RETURNING xmax = 0"
)
"""Answers whether it is new; nothing if its tasks have been placed otherwise since it was read."""
REPLACE: Final = (
    "UPDATE @.tasks t SET lined = q.keyed AND t.key IS NOT NULL, state = CASE WHEN t.state > 2 THEN t.state"
    " WHEN NOT q.keyed OR t.key IS NULL THEN 0"
    " WHEN q.on_retry = 'yield' AND t.epoch > 0 AND t.available_at > c.now THEN 2 ELSE 1 END"
    " FROM @.queues q, (SELECT @.now_s() AS now) AS c"
    " WHERE q.name = %s AND t.queue = q.id AND t.state <= 4 AND t.key IS NOT NULL"
)
HEADS: Final = (
    "UPDATE @.tasks t SET state = 0 FROM (SELECT DISTINCT ON (w.key) w.seq FROM @.tasks w"
    " JOIN @.queues q ON q.id = w.queue WHERE q.name = %s AND w.lined AND w.state = 1"
    " AND NOT EXISTS (SELECT 1 FROM @.tasks r WHERE r.queue = w.queue AND r.key = w.key AND r.lined"
    "  AND r.state = 3) ORDER BY w.key, w.seq) AS head WHERE t.seq = head.seq"
)
"""Of each line in which nothing runs, the first is READY."""
UNUSED: Final = (
    "SELECT q.id, NOT EXISTS (SELECT 1 FROM @.tasks t WHERE t.queue = q.id AND t.state = 3)"
    " AND NOT EXISTS (SELECT 1 FROM @.tasks t WHERE t.queue = q.id AND t.state <> 3)"
    " FROM @.queues q WHERE q.name = %s"
)
"""Whether no task of it is stored: in two halves, as the indexes of a queue's tasks are."""
BEAT: Final = (
    "INSERT INTO @.workers (id, host, pid, started_at, seen_at, queues, running)"
    " VALUES (%s, %s, %s, %s, @.now_s(), %s, %s) ON CONFLICT (id) DO UPDATE SET (host, pid, started_at,"
    " seen_at, queues, running) = (EXCLUDED.host, EXCLUDED.pid, EXCLUDED.started_at, EXCLUDED.seen_at,"
    " EXCLUDED.queues, EXCLUDED.running)"
)
AT_ONCE: Final = 100
"""Cron entries read between two checkpoints."""
CRON: Final = "name, definition, template, declared, paused_reason, last_slot, next_slot, total, created_at, seen_at"


def queue_record(queue: Queue) -> QueueRecord:
    """A stored queue as the hook shows it."""
    rate = None
    if queue.rate_count is not None and queue.rate_s is not None:
        rate = (queue.rate_count, queue.rate_s)
    return QueueRecord(
        name=queue.name,
        keyed=queue.keyed,
        on_retry=queue.on_retry,
        max_waiting=queue.max_waiting,
        overflow=queue.overflow,
        max_running=queue.max_running,
        rate=rate,
        paused=queue.paused,
        concurrency=queue.concurrency,
    )


class PostgresRegistry:
    """The methods of the hook that are not about single tasks, each on a lent connection."""

    def __init__(self, sql: Sql, lanes: Lanes) -> None:
        self._sql = sql
        self._lanes = lanes
        self._crons = CronRecords()

    # ---- queues ----------------------------------------------------------

    async def queues(self, connection: TrioConnection[Any]) -> list[QueueRecord]:
        """Every declared queue, by name."""
        cursor = await connection.execute(self._sql(QUEUES))
        return [queue_record(Queue(*row)) for row in await cursor.fetchall()]

    async def declare(
        self, connection: TrioConnection[Any], queues: Sequence[QueueRecord], outcome: Outcome, *, new_only: bool
    ) -> None:
        """See `ControlStore.declare`. In a transaction.

        Only where a queue becomes keyed, or its `on_retry` changes, the tasks
        it holds are placed anew, with every other write kept out meanwhile.
        """
        known = {record.name: record for record in await self.queues(connection)}
        wanted = {given.name: given for given in queues}  # of one that is given twice the last
        if new_only:
            wanted = {given.name: given for given in reversed(queues)}
        changed = [
            given
            for given in wanted.values()
            if _declared(known.get(given.name)) != _declared(given) and not (new_only and given.name in known)
        ]
        if not changed:
            return
        if any(
            given.name in known and _lines(known[given.name]) != _lines(given) for given in changed
        ):
            # Whoever writes waits behind this lock while it waits itself, perhaps for a user's
            # long transaction: not for long, then, and the caller tries again. The mode keeps
            # out even who locks rows only, so that none of those stays locked to us.
            await connection.execute(f"SET LOCAL lock_timeout = {LOCK_MS}".encode())
            await connection.execute(self._sql("LOCK TABLE @.tasks IN EXCLUSIVE MODE"))
            known = {record.name: record for record in await self.queues(connection)}
        for given in sorted(changed, key=lambda record: record.name):
            before = known.get(given.name)
            count, seconds = (None, None) if given.rate is None else given.rate
            cursor = await connection.execute(
                self._sql(DECLARE),
                (
                    given.name,
                    given.keyed,
                    given.on_retry,
                    given.max_waiting,
                    given.overflow,
                    given.max_running,
                    count,
                    seconds,
                    new_only and given.paused,
                    given.concurrency if new_only else None,
                    *_lines(before or given),
                ),
            )
            if await cursor.fetchone() != (before is None,):
                raise Again  # another process declared it just now, perhaps otherwise
            if before is not None:
                outcome.rings.add(Topic(TopicKind.CONTROL, given.name))
                outcome.rings.add(Topic(TopicKind.ROOM, given.name))
                if _lines(before) != _lines(given):
                    await connection.execute(self._sql(REPLACE), (given.name,))
                    await connection.execute(self._sql(HEADS), (given.name,))
            outcome.rings.add(Topic(TopicKind.QUEUE, given.name))

    async def alter_queue(
        self,
        connection: TrioConnection[Any],
        name: str,
        paused: bool | None,
        concurrency: int | Keep | None,
        outcome: Outcome,
    ) -> bool:
        """See `ControlStore.alter_queue`."""
        if not storable(name):
            return False
        keep = isinstance(concurrency, Keep)
        cursor = await connection.execute(
            self._sql(
                "UPDATE @.queues SET paused = coalesce(%s, paused),"
                " concurrency = CASE WHEN %s THEN concurrency ELSE %s END WHERE name = %s"
            ),
            (paused, keep, None if keep else concurrency, name),
        )
        if not cursor.rowcount:
            return False
        outcome.rings |= {Topic(TopicKind.CONTROL, name), Topic(TopicKind.QUEUE, name)}
        return True

    async def remove_queue(
        self, connection: TrioConnection[Any], name: str, outcome: Outcome
    ) -> RemoveAnswer:
        """See `ControlStore.remove_queue`. In a transaction."""
        if not storable(name):
            return RemoveAnswer.UNKNOWN
        # What is refused anyway keeps nobody waiting.
        answer, _ = await self._unused(connection, UNUSED, name)
        if answer is not RemoveAnswer.REMOVED:
            return answer
        # Whatever stores a task holds the table until it is committed, and reads the queues behind
        # that lock: it is over, and seen from here on, or will find the queue gone.
        await connection.execute(f"SET LOCAL lock_timeout = {LOCK_MS}".encode())
        await connection.execute(self._sql("LOCK TABLE @.tasks IN SHARE MODE"))
        # Who claims from a limited queue may hold its row, and wait for the table: not for us, then.
        answer, queue_id = await self._unused(connection, f"{UNUSED} FOR UPDATE OF q NOWAIT", name)
        if answer is RemoveAnswer.REMOVED:
            await connection.execute(self._sql("DELETE FROM @.lanes WHERE queue = %s"), (queue_id,))
            await connection.execute(self._sql("DELETE FROM @.queues WHERE id = %s"), (queue_id,))
            outcome.rings |= {Topic(TopicKind.CONTROL, name), Topic(TopicKind.ROOM, name)}
        return answer

    async def _unused(
        self, connection: TrioConnection[Any], statement: str, name: str
    ) -> tuple[RemoveAnswer, int]:
        """What a removal would come to, and the queue's number."""
        cursor = await connection.execute(self._sql(statement), (name,))
        found = await cursor.fetchone()
        if found is None:
            return RemoveAnswer.UNKNOWN, 0
        return RemoveAnswer.REMOVED if found[1] else RemoveAnswer.STORED, found[0]

    # ---- workers ---------------------------------------------------------

    async def beat(self, connection: TrioConnection[Any], worker: WorkerRecord) -> None:
        """See `ControlStore.beat`. In a transaction: workers long gone are removed with it."""
        await connection.execute(
            self._sql("DELETE FROM @.workers WHERE seen_at < @.now_s() - %s"), (60 * ALIVE_S,)
        )
        await connection.execute(
            self._sql(BEAT),
            (
                worker.id,
                worker.host,
                worker.pid,
                worker.started_at,
                json.dumps(worker.queues),
                json.dumps(worker.running),
            ),
        )

    async def workers(self, connection: TrioConnection[Any]) -> list[WorkerRecord]:
        """The workers seen within the last minute, by id."""
        cursor = await connection.execute(
            self._sql(
                "SELECT id, host, pid, started_at, seen_at, queues, running FROM @.workers"
                " WHERE seen_at >= @.now_s() - %s ORDER BY id"
            ),
            (ALIVE_S,),
        )
        return [
            WorkerRecord(
                id=id_,
                host=host,
                pid=pid,
                started_at=started_at,
                seen_at=seen_at,
                queues=tuple(json.loads(queues)),
                running=tuple(json.loads(running)),
            )
            for id_, host, pid, started_at, seen_at, queues, running in await cursor.fetchall()
        ]

    async def forget(self, connection: TrioConnection[Any], worker: str) -> None:
        """See `ControlStore.forget`."""
        if not storable(worker):
            return
        await connection.execute(self._sql("DELETE FROM @.workers WHERE id = %s"), (worker,))

    # ---- cron entries ----------------------------------------------------

    async def put_cron(
        self, connection: TrioConnection[Any], entry: CronRecord, replace: bool, outcome: Outcome
    ) -> PutAnswer:
        """See `CronStore.put_cron`. In a transaction."""
        template = template_to_text(entry.template)
        cursor = await connection.execute(
            self._sql(
                f"INSERT INTO @.crons ({CRON}) SELECT %s, %s, %s, %s, %s, %s, %s, %s,"
                " coalesce(nullif(%s::float8, 0), c.now), c.now"
                " FROM (SELECT @.now_s() AS now) AS c ON CONFLICT DO NOTHING"
            ),
            (
                entry.name,
                entry.definition,
                template,
                entry.declared,
                entry.paused_reason,
                entry.last_slot,
                entry.next_slot,
                entry.total,
                entry.created_at,
            ),
        )
        if cursor.rowcount:
            outcome.rings.add(Topic(TopicKind.CRON))
            return PutAnswer.CREATED
        cursor = await connection.execute(
            self._sql("SELECT definition, template FROM @.crons WHERE name = %s FOR UPDATE"),
            (entry.name,),
        )
        if await cursor.fetchone() == (entry.definition, template):
            await connection.execute(
                self._sql("UPDATE @.crons SET seen_at = @.now_s() WHERE name = %s"), (entry.name,)
            )
            return PutAnswer.SAME
        if not replace:
            return PutAnswer.CONFLICT
        await connection.execute(
            self._sql(
                "UPDATE @.crons SET definition = %s, template = %s, declared = %s,"
                # Of NULL and a number, greatest() is the number.
                " last_slot = greatest(last_slot, %s), next_slot = %s, seen_at = @.now_s() WHERE name = %s"
            ),
            (
                entry.definition,
                template,
                entry.declared,
                entry.last_slot,
                entry.next_slot,
                entry.name,
            ),
        )
        outcome.rings.add(Topic(TopicKind.CRON))
        return PutAnswer.REPLACED

    async def crons(self, connection: TrioConnection[Any], name: str | None) -> list[CronRecord]:
        """See `CronStore.crons`."""
        if name is not None and not storable(name):
            return []
        if name is not None:
            # Not `%s IS NULL OR name = %s`, whose plan for all looks at every entry to find one.
            cursor = await connection.execute(self._sql(f"SELECT {CRON} FROM @.crons WHERE name = %s"), (name,))
            # Not remembered: who asks by name may never ask for all, which forgets.
            return [cron_record(*row) for row in await cursor.fetchall()]
        cursor = await connection.execute(self._sql(f"SELECT {CRON} FROM @.crons ORDER BY name"))
        records: list[CronRecord] = []
        for row in await cursor.fetchall():
            records.append(self._crons.record(row))
            if len(records) % AT_ONCE == 0:  # ten thousand would hold the loop for a tenth of a second
                await trio.lowlevel.checkpoint()
        self._crons.only(records)
        return records

    async def alter_cron(
        self,
        connection: TrioConnection[Any],
        name: str,
        paused_reason: str | None,
        last_slot: float | None,
        next_slot: float | None,
        outcome: Outcome,
    ) -> bool:
        """See `CronStore.alter_cron`."""
        if not storable(name):
            return False
        moves = "" if last_slot is None else ", last_slot = greatest(last_slot, %s), next_slot = %s"
        cursor = await connection.execute(
            self._sql(f"UPDATE @.crons SET paused_reason = %s{moves} WHERE name = %s"),
            (paused_reason, *(() if last_slot is None else (last_slot, next_slot)), name),
        )
        if not cursor.rowcount:
            return False
        outcome.rings.add(Topic(TopicKind.CRON))
        return True

    async def remove_cron(
        self, connection: TrioConnection[Any], name: str, outcome: Outcome
    ) -> bool:
        """See `CronStore.remove_cron`."""
        if not storable(name):
            return False
        cursor = await connection.execute(self._sql("DELETE FROM @.crons WHERE name = %s"), (name,))
        if not cursor.rowcount:
            return False
        outcome.rings.add(Topic(TopicKind.CRON))
        return True

    async def advance_cron(
        self,
        connection: TrioConnection[Any],
        name: str,
        expected: float | None,
        slots: tuple[float, float | None],
        tasks: Sequence[NewTask],
        definition: str | None,
        outcome: Outcome,
    ) -> AdvanceAnswer:
        """See `CronStore.advance_cron`. In a transaction; `slots` are the last and the next."""
        cursor = await connection.execute(
            self._sql(
                "SELECT definition, paused_reason, last_slot FROM @.crons WHERE name = %s FOR UPDATE"
            ),
            (name,),
        )
        entry = await cursor.fetchone()
        if entry is None:
            return AdvanceAnswer.GONE
        if entry[1] is not None:
            return AdvanceAnswer.PAUSED
        if entry[2] != expected or definition not in (None, entry[0]):
            return AdvanceAnswer.MOVED
        stored = 0
        if tasks:
            step = Step(connection, self._sql, self._lanes)
            await step.begin(news=tasks)
            answers = [step.store(new).answer for new in tasks]
            await step.write()
            outcome.add(step)
            stored = answers.count(EnqueueAnswer.CREATED)
        await connection.execute(
            self._sql(
                "UPDATE @.crons SET last_slot = %s, next_slot = %s, total = total + %s WHERE name = %s"
            ),
            (*slots, stored, name),
        )
        return AdvanceAnswer.ADVANCED if stored == len(tasks) else AdvanceAnswer.REFUSED


def _declared(record: QueueRecord | None) -> tuple[object, ...] | None:
    """What a declaration decides."""
    if record is None:
        return None
    return (
        record.keyed,
        record.on_retry,
        record.max_waiting,
        record.overflow,
        record.max_running,
        record.rate,
    )


def _lines(record: QueueRecord) -> tuple[bool, str]:
    """What a declaration says of keys."""
    return record.keyed, record.on_retry
