"""What the programs share: their arguments, task types, forked workers, and the witness in the file.

A program is one process without threads that forks its workers: what is imported
before the fork is there at once, so that a worker killed after 0.1 s has worked
for most of it. Each worker runs a trio loop of its own.

The witness is a trigger in the database: it notes every change of a status in
the transaction that makes it, whatever the code believes, whoever is killed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import trio
from attrs import define, field, frozen

from dispatch import TaskType, upkeep
from dispatch.storage.protocol import Storage
from dispatch.storage.sqlite import SqliteStorage
from faults.programs.plants import PLANTS

upkeep.SWEEP_S = 0.3  # leases are short here: so is the time until somebody looks


@frozen
class Job:
    n: int


JOB = TaskType("q", "job", Job)

Where = Path | str
"""A SQLite file, or the URL of a PostgreSQL database."""


def arguments(**options: Any) -> argparse.Namespace:
    """FOLDER, `--store`, `--plant` and `--seed`, and an option of the type of its default for each name.

    `where` is the store: a SQLite file in the folder, or the PostgreSQL database given.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--store")
    parser.add_argument("--plant")
    parser.add_argument("--seed", type=int, default=1)
    for name, default in options.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    given = parser.parse_args()
    given.where = given.store or given.folder / "jobs.db"
    if given.store:
        from faults.programs import on_postgres  # before any fork  # noqa: F401
    if given.plant is not None:
        if given.store:
            from faults.programs import postgres_plants

            postgres_plants.PLANTS[given.plant]()
        else:
            PLANTS[given.plant]()
    return given


def opened(where: Where) -> Storage:
    """A storage, to be entered."""
    if isinstance(where, Path):
        return SqliteStorage(where)
    from faults.programs import on_postgres

    return on_postgres.opened(where)


def tell(**figures: Any) -> None:
    """Print the figures, as the last line."""
    print(json.dumps(figures), flush=True)


# ---- workers -----------------------------------------------------------------


@define(eq=False)
class Crew:
    """Forked processes, by name; none outlives the block."""

    log: Path
    """Where they write what they have to say."""
    pids: dict[str, int] = field(factory=dict)

    def start(self, name: str, main: Callable[[], Awaitable[Any]]) -> int:
        """Fork a process that runs `main` under trio; its exit status is 0 if that returns."""
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            self._become(main)
        self.pids[name] = pid
        return pid

    def _become(self, main: Callable[[], Awaitable[Any]]) -> NoReturn:
        status = 1
        try:
            out = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(out, 2)
            trio.run(main)
            status = 0
        except BaseException:  # noqa: BLE001 - a forked process must not return into its parent's code
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def send(self, name: str, number: int) -> None:
        """Send a signal to one of ours."""
        os.kill(self.pids[name], number)

    def kill(self, name: str) -> None:
        """Kill one of ours, and collect it."""
        pid = self.pids.pop(name)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def ended(self, name: str, within_s: float = 0.0) -> int | None:
        """The exit status of a process that ends by itself; None if it has not in that time."""
        deadline = time.monotonic() + within_s
        while True:
            pid, status = os.waitpid(self.pids[name], os.WNOHANG)
            if pid:
                del self.pids[name]
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.01)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error: object) -> None:
        for name in list(self.pids):
            self.kill(name)
        if error[0] is not None and self.log.exists():
            print(self.log.read_text()[-4_000:], file=sys.stderr)

    def said(self) -> str:
        """Everything they wrote."""
        return self.log.read_text() if self.log.exists() else ""


def note(path: Path, text: str) -> None:
    """Append a line that a kill of this process cannot take back."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, f"{text}\n".encode())
    finally:
        os.close(descriptor)


def notes(path: Path) -> list[str]:
    """The lines noted; one cut short by a kill is left out."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


def until(condition: Callable[[], object], within_s: float, what: str) -> None:
    """Wait until it holds; a bounded, ordinary wait."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within_s:g} s: {what}")
        time.sleep(0.005)


# ---- the witness ---------------------------------------------------------------

WITNESS = """
CREATE TABLE witness (number INTEGER PRIMARY KEY, id TEXT, epoch INTEGER, worker TEXT,
    was TEXT, became TEXT, at REAL);
CREATE TRIGGER witness AFTER UPDATE OF status ON dispatch_tasks BEGIN
    INSERT INTO witness (id, epoch, worker, was, became, at) VALUES (new.id, new.epoch, new.worker,
        old.status || ' ' || old.epoch, new.status, (julianday('now') - 2440587.5) * 86400.0);
END;
"""
TERMINAL = "('succeeded', 'failed', 'cancelled')"


def asked(where: Where, sql: str, *values: object) -> list[Any]:
    """The rows that a query answers, by a connection of its own."""
    if isinstance(where, Path):
        with closing(sqlite3.connect(where, timeout=30.0)) as db:
            return db.execute(sql, values).fetchall()
    from faults.programs import on_postgres

    return on_postgres.asked(where, sql, *values)


def call_witness(where: Where) -> None:
    """Have every change of a status noted from now on; the tables are there already."""
    if isinstance(where, Path):
        with closing(sqlite3.connect(where, timeout=30.0)) as db:
            db.executescript(WITNESS)
    else:
        from faults.programs import on_postgres

        on_postgres.call_witness(where)


def damage(where: Where) -> str:
    """What is wrong with the stored tables and indexes; `ok` if nothing is."""
    if isinstance(where, Path):
        return str(asked(where, "PRAGMA integrity_check")[0][0])
    from faults.programs import on_postgres

    return on_postgres.damage(where)


def witnessed(where: Where, acknowledged: Iterable[str]) -> dict[str, Any]:
    """The figures that the database itself knows; `acknowledged` were published for sure."""
    ended = dict(asked(where, f"SELECT id, status FROM dispatch_tasks WHERE status IN {TERMINAL}"))  # noqa: S608
    tasks = set(acknowledged)
    claims = "SELECT count(*) AS runs FROM witness WHERE became = 'running' AND was LIKE 'pending %' GROUP BY id"
    twice = f"SELECT id FROM witness WHERE became IN {TERMINAL} GROUP BY id HAVING count(*) > 1"  # noqa: S608
    return {
        "tasks": len(tasks),
        "lost": len(tasks - set(ended)),
        "succeeded": sum(status == "succeeded" for status in ended.values()),
        "settled_twice": len(asked(where, twice)),
        "redelivered": sum(runs - 1 for (runs,) in asked(where, claims)),
        "integrity": damage(where),
    }
