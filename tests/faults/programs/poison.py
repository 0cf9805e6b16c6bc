"""F1: rows that no publisher of ours wrote, straight in the table, one beside each good task."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from math import inf
from typing import Any

import trio
from attrs import frozen

from dispatch import QueueTask, TaskQueueConfig, TaskType, open_dispatcher
from dispatch.storage.sqlite import SqliteStorage
from faults.programs.scenario import arguments, asked, call_witness, tell, witnessed


@frozen
class Order:
    n: int
    text: str = ""
    weight: float = 0.0


ORDER = TaskType("q", "order", Order)
POISON: dict[str, Any] = {
    "bad UTF-8": b'{"n": 1, "text": "\xff\xfe"}',
    "cut": b'{"n": 1, "text": "a',
    "brackets": b"[" * 100_000,
    "braces": b'{"n":' * 30_000,
    "digits": b'{"n": ' + b"9" * 5_000 + b"}",
    "NaN": b'{"n": 1, "weight": NaN}',
    "infinite": b'{"n": 1, "weight": 1e400}',
    "twice": b'{"n": 1, "n": 2}',
    "surrogate": b'{"n": 1, "text": "\\ud800"}',
    "NUL": b'{"n": 1, "text": "\\u0000"}',
    "wrong type": b'{"n": "1"}',
    "a flag": b'{"n": true}',
    "a fraction": b'{"n": 1.9}',
    "missing": b'{"text": "a"}',
    "extra": b'{"n": 1, "more": 2}',
    "a list": b"[1]",
    "null": b"null",
    "empty": b"",
    "50 MB": b'{"n": 1, "text": "' + b"x" * 50_000_000 + b'"}',
    "text for bytes": '{"n": 1, "text": "a", "more": 1}',
    "a number for bytes": 17,
}
"""By what is wrong with each."""
OVERS = 3
"""How many of each, but for the very large one."""


class Steps(trio.abc.Instrument):
    """The longest that one step of a trio task kept the loop, in seconds of its thread's own time."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._began = inf  # added in the middle of a step, which counts not

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.longest = max(self.longest, time.thread_time() - self._began)


async def run(given: Any) -> None:
    path = given.folder / "jobs.db"
    done: list[int] = []

    async def handler(task: QueueTask[Order]) -> None:
        await trio.sleep(0.001)
        done.append(task.payload.n)

    steps = Steps()
    async with SqliteStorage(path) as storage:
        call_witness(path)
        async with open_dispatcher(storage, lease=5.0, observers=()) as dispatcher:
            dispatcher.consumer.register_queue("q", TaskQueueConfig(concurrency=4, max_retry=5, retry_delay=0.01))
            kinds = [kind for kind in POISON for _ in range(1 if kind == "50 MB" else OVERS)]
            # Held back until the poison is among them.
            good = [ORDER(Order(n), id=f"good{n}", delay=3_600.0) for n in range(len(kinds))]
            await dispatcher.publisher.publish_many(good)
            with closing(sqlite3.connect(path)) as db:
                rows = db.execute("SELECT * FROM dispatch_tasks ORDER BY seq")
                names = [name for name, *_ in rows.description]
                for row, kind in zip(rows.fetchall(), kinds, strict=True):
                    given_row = dict(zip(names, row, strict=True))
                    number = given_row["id"].removeprefix("good")
                    given_row |= {"seq": None, "id": f"bad{number}", "payload": POISON[kind]}
                    marks = ", ".join("?" * len(names))
                    db.execute(f"INSERT INTO dispatch_tasks VALUES ({marks})", list(given_row.values()))  # noqa: S608
                # Good and bad in turn.
                db.execute("UPDATE dispatch_tasks SET available_at = created_at + substr(id, 4) * 1e-3 WHERE id LIKE 'bad%'")
                db.execute("UPDATE dispatch_tasks SET available_at = created_at + substr(id, 5) * 1e-3 WHERE id LIKE 'good%'")
                db.commit()
            dispatcher.consumer.register_handler(ORDER, handler)
            trio.lowlevel.add_instrument(steps)
            with trio.fail_after(30.0):
                await dispatcher.drain()
            trio.lowlevel.remove_instrument(steps)
    kept = 0
    bad = asked(
        path,
        "SELECT substr(id, 4), status, attempt, failure_reason, length(CAST(last_error AS BLOB)), payload"
        " FROM dispatch_tasks WHERE id LIKE 'bad%'",
    )
    alive: list[str] = []
    longest = 0
    for number, status, attempt, reason, length, payload in bad:
        kind = kinds[int(number)]
        kept += payload == POISON[kind] and type(payload) is type(POISON[kind])
        longest = max(longest, length or 0)
        if (status, reason) != ("failed", "invalid_payload") or attempt > 1 or not length:
            alive.append(f"{kind}: {status} {reason} after {attempt}")
    tell(
        poison=len(kinds),
        alive=sorted(set(alive)),
        bytes_kept=kept,
        longest_reason_bytes=longest,
        loop_blocked_ms=round(steps.longest * 1_000, 1),
        good_done=len(set(done)),
        **witnessed(path, [f"good{n}" for n in range(len(kinds))]),
    )


def main() -> None:
    given = arguments()
    trio.run(run, given)


if __name__ == "__main__":
    main()
