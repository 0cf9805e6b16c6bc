"""A store of the business beside the dispatcher's own: its task log, and its claims.

Two interfaces that services often have already, each implemented by themselves on
their own tables:

- `TaskStorage`: what became of which task, for the people of the business.
- `TaskClaimStore`: who may work on what right now, asked by older systems, too.

The dispatcher needs neither, for its storage does both jobs. They are plugged in
where they belong: the log entry in the transaction that publishes the task, the
rest by two middlewares around each attempt. An attempt may run again after a
crash, so what they write is keyed by task and attempt, and repeating it is harmless.
"""

from __future__ import annotations

import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import trio
from attrs import frozen

from dispatch import QueueTask, Run, Snooze, TaskQueueConfig, TaskType, open_dispatcher
from dispatch.handlers import Next
from dispatch.storage.query import Statuses

# -- what the business has: two interfaces, and its own class that implements them ----


class TaskStorage(Protocol):
    """The business's record of its tasks."""

    def save_task_log(self, connection: sqlite3.Connection, task_id: str, about: str) -> None: ...
    def update_task_status(self, task_id: str, status: str, attempt: int) -> None: ...
    def save_task_result(self, task_id: str, result: str) -> None: ...
    def log_execution(
        self, task_id: str, attempt: int, status: str, error: str | None, elapsed_s: float
    ) -> None: ...


class TaskClaimStore(Protocol):
    """Who may work on what, for a limited time."""

    def claim_task(self, name: str, worker: str, ttl_s: float) -> bool: ...
    def extend_task_claim(self, name: str, worker: str, ttl_s: float) -> bool: ...
    def release_task_claim(self, name: str, worker: str) -> bool: ...


TABLES = """
CREATE TABLE orders (id INTEGER PRIMARY KEY, state TEXT NOT NULL);
CREATE TABLE task_log (task TEXT PRIMARY KEY, about TEXT, status TEXT, attempt INTEGER, result TEXT);
CREATE TABLE executions (task TEXT, attempt INTEGER, status TEXT, error TEXT, elapsed_s REAL,
                         PRIMARY KEY (task, attempt));
CREATE TABLE claims (name TEXT PRIMARY KEY, worker TEXT, until REAL);
"""


class Books:
    """The business's own class: both interfaces, in its own tables."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with closing(self.connect()) as connection:
            connection.executescript(TABLES)

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, isolation_level=None, timeout=10.0)

    def _run(self, sql: str, *values: object) -> int:
        with closing(self.connect()) as connection:
            return connection.execute(sql, values).rowcount

    def save_task_log(self, connection: sqlite3.Connection, task_id: str, about: str) -> None:
        connection.execute("INSERT INTO task_log VALUES (?, ?, 'queued', 0, NULL)", (task_id, about))

    def update_task_status(self, task_id: str, status: str, attempt: int) -> None:
        self._run(
            "UPDATE task_log SET status = ?, attempt = ? WHERE task = ?", status, attempt, task_id
        )

    def save_task_result(self, task_id: str, result: str) -> None:
        self._run("UPDATE task_log SET result = ? WHERE task = ?", result, task_id)

    def log_execution(
        self, task_id: str, attempt: int, status: str, error: str | None, elapsed_s: float
    ) -> None:
        sql = "INSERT OR REPLACE INTO executions VALUES (?, ?, ?, ?, ?)"
        self._run(sql, task_id, attempt, status, error, elapsed_s)

    def claim_task(self, name: str, worker: str, ttl_s: float) -> bool:
        now = time.time()
        return bool(
            self._run(
                "INSERT INTO claims VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE"
                " SET worker = excluded.worker, until = excluded.until WHERE until < ?",
                *(name, worker, now + ttl_s, now),
            )
        )

    def extend_task_claim(self, name: str, worker: str, ttl_s: float) -> bool:
        sql = "UPDATE claims SET until = ? WHERE name = ? AND worker = ?"
        return bool(self._run(sql, time.time() + ttl_s, name, worker))

    def release_task_claim(self, name: str, worker: str) -> bool:
        return bool(self._run("DELETE FROM claims WHERE name = ? AND worker = ?", name, worker))


# -- how they are plugged in: a middleware each ------------------------------------------


class Bookkeeping:
    """Keeps the business's task log: around each attempt of any handler."""

    def __init__(self, store: TaskStorage) -> None:
        self.store = store

    async def __call__(self, task: QueueTask[Any, Any], run: Run, call_next: Next) -> Any:
        write = trio.to_thread.run_sync  # these are blocking calls
        await write(self.store.update_task_status, task.id, "running", run.attempt)
        began = trio.current_time()
        try:
            result = await call_next(task, run)
        except Snooze:
            await write(self.store.update_task_status, task.id, "waiting", run.attempt)
            raise
        except Exception as exc:
            status = "failed" if run.is_last_attempt else "retrying"
            took = trio.current_time() - began
            await write(self.store.log_execution, task.id, run.attempt, status, repr(exc), took)
            await write(self.store.update_task_status, task.id, status, run.attempt)
            raise
        took = trio.current_time() - began
        await write(self.store.log_execution, task.id, run.attempt, "succeeded", None, took)
        await write(self.store.save_task_result, task.id, repr(result))
        await write(self.store.update_task_status, task.id, "succeeded", run.attempt)
        return result


class Claiming:
    """Works on a thing only under the business's own claim; else the attempt is given back."""

    def __init__(self, store: TaskClaimStore, worker: str, *, ttl_s: float = 5.0) -> None:
        self.store = store
        self.worker = worker
        self.ttl_s = ttl_s

    async def __call__(self, task: QueueTask[Any, Any], run: Run, call_next: Next) -> Any:
        name = f"order {task.payload.order}"
        call = trio.to_thread.run_sync
        if not await call(self.store.claim_task, name, self.worker, self.ttl_s):
            raise Snooze(0.2)  # somebody else works on it; not an attempt
        failure: Exception | None = None
        result: Any = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._extend, name)
                try:
                    result = await call_next(task, run)
                except Exception as exc:  # noqa: BLE001 - raised below, bare: a group would hide its class
                    failure = exc
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5.0):
                await call(self.store.release_task_claim, name, self.worker)
        if failure is not None:
            raise failure
        return result

    async def _extend(self, name: str) -> None:
        while True:
            await trio.sleep(self.ttl_s / 3)
            if not await trio.to_thread.run_sync(
                self.store.extend_task_claim, name, self.worker, self.ttl_s
            ):
                raise RuntimeError(f"the claim on {name} was lost")


# -- the service ------------------------------------------------------------------------------


@frozen
class Ship:
    order: int


@frozen
class Parcel:
    number: int


SHIP = TaskType("shipping", "ship", Ship, Parcel)


async def ship(task: QueueTask[Ship, Parcel]) -> Parcel:
    if task.payload.order == 7 and task.attempt == 1:
        raise ConnectionError("the carrier does not answer")
    print(f"order {task.payload.order} shipped in attempt {task.attempt}")
    return Parcel(task.payload.order * 100)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shop.db"
        books = Books(path)
        async with open_dispatcher(
            f"sqlite:///{path}",
            middleware=(Bookkeeping(books), Claiming(books, worker="shop-1")),
        ) as dispatcher:
            config = TaskQueueConfig(max_retry=2, retry_delay=0.1)
            dispatcher.consumer.register_queue("shipping", config)
            await dispatcher.control.queues()  # the storage knows the queue now

            # The order, its log entry and its task: all of them, or none.
            def order(connection: sqlite3.Connection, number: int) -> None:
                connection.execute("INSERT INTO orders VALUES (?, 'paid')", (number,))
                task = dispatcher.publisher.publish_in(connection, SHIP(Ship(number)))
                books.save_task_log(connection, task.id, f"ship order {number}")

            with closing(books.connect()) as connection:
                for number in (7, 8, 9):
                    connection.execute("BEGIN IMMEDIATE")
                    order(connection, number)
                    connection.execute("ROLLBACK" if number == 9 else "COMMIT")

            books.claim_task("order 8", "the old system", ttl_s=60.0)
            dispatcher.consumer.register_handler(SHIP, ship)
            await trio.sleep(1.0)
            [waiting] = (await dispatcher.control.find(Statuses("pending"))).tasks
            print(f"order {waiting.payload.order} waits for the old system, attempt {waiting.attempt}")
            books.release_task_claim("order 8", "the old system")
            await dispatcher.drain()
        with closing(books.connect()) as connection:
            for row in connection.execute("SELECT about, status, attempt, result FROM task_log"):
                print("task log:", *row)
            for row in connection.execute("SELECT attempt, status, error FROM executions"):
                print("execution:", *row)


if __name__ == "__main__":
    trio.run(main)
