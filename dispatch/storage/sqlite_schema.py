"""The SQLite file: how it is made and opened, its tables, and what each index is for.

Tables, all prefixed so that they can live beside a user's own in one file:

- `dispatch_tasks`: one row per task, payload and result included. `seq` is the
  order of storing. `place` says whether a claim may see it (see `Place`), `lane`
  who may take it (see `dispatch_lanes`).
  Its checks are against rows changed by other hands: one that cannot be read
  would stop every worker that meets it.
- `dispatch_attempts`: ended runs, written when a run ends in anything but a
  success; a success stands in the task's row until that is rerun.
- `dispatch_lanes`: the kinds of tasks of a queue that workers tell apart: type,
  payload version, tagged or not. A claim looks at the wanted lanes only.
- `dispatch_queues`, `dispatch_workers`, `dispatch_crons`: the records.
- `dispatch_bells`: a counter per topic, raised in the transaction that touches
  the topic: by it other processes learn what to look at.
- `dispatch_schema`: the version, and the highest `seq` that was ever deleted. It is
  not given again, as SQLite would do once the newest rows are gone: a page that goes
  on behind it would miss the new task. (AUTOINCREMENT would write a row per insert.)

Indexes of the tasks: `ready` is what claims merge, one range per lane and
priority in claim order; rows that cannot run are not in it, or behind the end
of the range. `keys` finds what runs, waits and steps aside per key. `status`
serves pages and counts, `ended` pruning, `unique` what may be in the way of a new task. Leases have none: running rows are few,
and a renewal must stay cheap.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Final, Literal

from dispatch.errors import InvalidConfigError, StorageError
from dispatch.storage.query import payload_has

__all__ = ["SCHEMA_VERSION", "Place", "Synchronous", "connect", "create_or_migrate", "remedy"]

SCHEMA_VERSION: Final = 3
"""Raised with every change of the tables; each step up has its entry in `STEPS`."""
OLDEST_SQLITE: Final = (3, 35, 0)
BUSY_TIMEOUT_S: Final = 5.0
"""How long a transaction waits for another process's before it is a StorageError."""
SCARCE: Final = 1 << 20
"""With fewer bytes than this left, an error of writing is put down to the disk."""

Synchronous = Literal["full", "normal"]


class Place(IntEnum):
    """Where a task stands for claims."""

    NONE = 0
    """Held or ended."""
    READY = 1
    """Pending, and of its key the first: may run once it is due."""
    BEHIND = 2
    """Pending behind another task of its key."""
    ASIDE = 3
    """Waits for its retry, and lets the others of its key pass."""
    RUNNING = 4


TABLES: Final = """
CREATE TABLE dispatch_lanes (
    lane INTEGER PRIMARY KEY,
    queue TEXT NOT NULL,
    type TEXT NOT NULL,
    version INTEGER NOT NULL,
    tagged INTEGER NOT NULL,
    UNIQUE (queue, type, version, tagged)
);
CREATE TABLE dispatch_tasks (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    queue TEXT NOT NULL,
    type TEXT NOT NULL,
    version INTEGER NOT NULL,
    lane INTEGER NOT NULL,
    place INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    available_at REAL NOT NULL CHECK (typeof(available_at) = 'real'),
    status TEXT NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    epoch INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL,
    started_at REAL,
    finished_at REAL,
    lease_until REAL,
    worker TEXT,
    key TEXT,
    timeout REAL CHECK (typeof(timeout) IN ('real', 'null')),
    max_retry INTEGER,
    retry_limit INTEGER,
    retry TEXT CHECK (json_valid(coalesce(retry, '0'))),
    on_interrupt TEXT NOT NULL DEFAULT 'retry',
    cancel_reason TEXT,
    last_error TEXT,
    failure_reason TEXT,
    headers TEXT CHECK (json_type(coalesce(headers, '{}')) = 'object'),
    tags TEXT CHECK (json_type(coalesce(tags, '[]')) = 'array'),
    unique_key TEXT,
    unique_rule TEXT,
    cron TEXT,
    slot REAL,
    payload BLOB NOT NULL,
    result BLOB,
    progress BLOB
);
CREATE INDEX dispatch_ready ON dispatch_tasks (lane, priority, available_at) WHERE place = 1;
CREATE INDEX dispatch_tagged ON dispatch_tasks (lane, tags, priority, available_at)
    WHERE place = 1 AND tags IS NOT NULL;
CREATE INDEX dispatch_aside ON dispatch_tasks (queue, available_at) WHERE place = 3;
CREATE INDEX dispatch_keys ON dispatch_tasks (queue, key, place) WHERE place > 0 AND key IS NOT NULL;
CREATE INDEX dispatch_status ON dispatch_tasks (queue, status);
CREATE INDEX dispatch_ended ON dispatch_tasks (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX dispatch_unique ON dispatch_tasks (unique_key, status, available_at)
    WHERE unique_key IS NOT NULL;
CREATE TABLE dispatch_attempts (
    task INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    worker TEXT,
    started_at REAL NOT NULL,
    finished_at REAL,
    outcome TEXT NOT NULL,
    error TEXT,
    PRIMARY KEY (task, epoch)
) WITHOUT ROWID;
CREATE TABLE dispatch_queues (
    name TEXT PRIMARY KEY,
    keyed INTEGER NOT NULL,
    on_retry TEXT NOT NULL,
    max_waiting INTEGER,
    overflow TEXT NOT NULL,
    max_running INTEGER,
    rate TEXT,
    paused INTEGER NOT NULL DEFAULT 0,
    concurrency INTEGER,
    tokens REAL,
    tokens_at REAL
) WITHOUT ROWID;
CREATE TABLE dispatch_workers (
    id TEXT PRIMARY KEY,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started_at REAL NOT NULL,
    seen_at REAL NOT NULL,
    queues TEXT NOT NULL,
    running TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE dispatch_crons (
    name TEXT PRIMARY KEY,
    definition TEXT NOT NULL,
    template TEXT NOT NULL,
    declared INTEGER NOT NULL,
    paused_reason TEXT,
    last_slot REAL,
    next_slot REAL,
    total INTEGER NOT NULL,
    created_at REAL NOT NULL,
    seen_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE dispatch_bells (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (kind, name)
) WITHOUT ROWID;
CREATE TABLE dispatch_schema (version INTEGER NOT NULL, deleted INTEGER NOT NULL DEFAULT 0);
INSERT INTO dispatch_schema (version) VALUES (3);
"""


def _index_unique_by_status(connection: sqlite3.Connection) -> None:
    """Of a key the ended tasks are many, and those in the way of a new one few."""
    connection.execute("DROP INDEX dispatch_unique")
    connection.execute(
        "CREATE INDEX dispatch_unique ON dispatch_tasks (unique_key, status, available_at)"
        " WHERE unique_key IS NOT NULL"
    )


def _give_no_number_again(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE dispatch_schema ADD COLUMN deleted INTEGER NOT NULL DEFAULT 0")


STEPS: Final[dict[int, Callable[[sqlite3.Connection], None]]] = {1: _index_unique_by_status, 2: _give_no_number_again}
"""By the version they start from: what brings a file one version up, inside its transaction."""


def connect(path: Path, *, synchronous: Synchronous, create: bool = True) -> sqlite3.Connection:
    """Open a connection that any thread may use, one at a time; the file is made, 0600, if missing.

    Transactions are begun and ended by hand. Raises StorageError.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise InvalidConfigError(
            f"SQLite {'.'.join(map(str, OLDEST_SQLITE))} or newer is needed; "
            f"this Python was built with {sqlite3.sqlite_version}"
        )
    if create:
        _make_private(path)
    try:
        connection = sqlite3.connect(
            path,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=512,
        )
        try:
            mode = _write_ahead(connection)
            if mode != "wal":
                raise StorageError(
                    f"{path}: SQLite cannot use a write-ahead log here (journal mode {mode!r}); "
                    "is it on a network file system?"
                )
            connection.execute(f"PRAGMA synchronous = {synchronous.upper()}")
            define_functions(connection)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as exc:
        hint = remedy(exc, path)
        if path.is_dir():
            hint = f"; it is a folder: name a file in it, such as {path / 'jobs.db'}"
        elif not _writable(path.parent):
            hint = (
                f"; SQLite keeps its log beside the file, and the folder {path.parent} cannot be written "
                "by this user: make it writable"
            )
        raise StorageError(f"{path}: cannot be opened as a SQLite database: {exc}{hint}") from exc
    return connection


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _write_ahead(connection: sqlite3.Connection) -> str:
    """Turn the write-ahead log on; the journal mode there is then.

    The change needs the file for itself, and SQLite gives it up at once where two
    connections want that of a fresh file: the busy timeout does not count there
    (https://www.sqlite.org/c3ref/busy_handler.html, on deadlocks), so it is waited
    out here.
    """
    until = time.monotonic() + BUSY_TIMEOUT_S  # the pragma itself may wait for the busy timeout each time
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(random.uniform(0.001, 0.02))  # noqa: S311 - who gave up together tries again apart
        else:
            return str(mode)


def remedy(exc: sqlite3.Error, path: Path) -> str:
    """What to do about a file that is not, or no longer, a database, or has no room; nothing for other errors."""
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF  # what the module raises by itself has none
    if code == sqlite3.SQLITE_NOTADB:
        return "; name another file, or put a backup of the one that was here in its place"
    if code == sqlite3.SQLITE_CORRUPT:
        return (
            "; the file is damaged: stop its processes and put a backup in its place, or have what can be read "
            """written to a new one, sqlite3 jobs.db .dump | sed 's/^ROLLBACK.*/COMMIT;/' | sqlite3 new.db"""
        )
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
        with suppress(OSError):
            free = shutil.disk_usage(path.parent).free
            if free < SCARCE:
                return f"; its disk has {free // 1024} kB left: make room"
    return ""


def define_functions(connection: sqlite3.Connection) -> None:
    """What queries need beyond SQL: a look into a payload, with the meaning `matches` gives it."""
    connection.create_function("dispatch_payload_has", 3, _payload_has, deterministic=True)


def _payload_has(payload: bytes, path: str, wanted: str) -> bool:
    return payload_has(payload, tuple(json.loads(path)), json.loads(wanted))


def _make_private(path: Path) -> None:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        # SQLite would open it, leave a -shm file behind that nobody may write, and fail at the first write.
        if os.path.isfile(path) and not _writable(path):
            raise StorageError(f"{path}: cannot be written by this user; make it writable") from None
        return
    except FileNotFoundError:
        raise StorageError(f"{path}: the folder {path.parent} does not exist; make it first") from None
    except OSError as exc:
        raise StorageError(f"{path}: cannot be made: {exc.strerror}") from exc


def create_or_migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the file to this version, in one transaction; two processes at once are safe.

    Raises StorageError if the file is newer than this code.
    """
    try:
        if _version(connection) == SCHEMA_VERSION:
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            found = _version(connection)
            if found > SCHEMA_VERSION:
                raise StorageError(
                    f"{path}: made by a newer trio-dispatch (schema {found}; this one knows "
                    f"{SCHEMA_VERSION}); upgrade the package in this process"
                )
            if found == 0:
                for statement in TABLES.split(";\n"):
                    if statement.strip():
                        connection.execute(statement)
            else:
                for version in range(found, SCHEMA_VERSION):
                    STEPS[version](connection)
                connection.execute("UPDATE dispatch_schema SET version = ?", (SCHEMA_VERSION,))
            connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
    except sqlite3.Error as exc:
        raise StorageError(f"{path}: its tables cannot be read or made: {exc}{remedy(exc, path)}") from exc


def _version(connection: sqlite3.Connection) -> int:
    """The file's schema version; 0 where there are no tables of ours."""
    there = connection.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'dispatch_schema'"
    ).fetchone()
    if there is None:
        return 0
    return int(connection.execute("SELECT version FROM dispatch_schema").fetchone()[0])
