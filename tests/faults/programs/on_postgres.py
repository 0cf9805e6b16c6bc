"""A PostgreSQL database as the programs see it: the same views, the same witness, as in a SQLite file.

Statements are those of the programs, with `?` for a value. Whoever asks has a
connection of its own each time: none is open when a program forks.
"""

from __future__ import annotations

import os
from typing import Any, Final

from dispatch.storage.postgres import PostgresStorage
from dispatch.storage.postgres_schema import migrate
from dispatch.storage.psycopg_trio import psycopg

__all__ = ["asked", "call_witness", "damage", "execute", "opened", "prepare"]

VIEWS: Final = """
CREATE VIEW dispatch_tasks AS SELECT t.seq, t.id, t.epoch, t.attempt, t.worker, q.name AS queue,
    (ARRAY['pending', 'pending', 'pending', 'running', 'held', 'succeeded', 'failed', 'cancelled'])
        [t.state + 1] AS status,
    t.failure_reason, t.last_error, t.cron, t.slot, t.lease_until,
    t.created_at, t.available_at, t.started_at, t.finished_at
    FROM dispatch.tasks t JOIN dispatch.queues q ON q.id = t.queue;
CREATE VIEW dispatch_crons AS SELECT * FROM dispatch.crons;
"""
WITNESS: Final = """
CREATE TABLE witness (number int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id text, epoch int8,
    worker text, was text, became text, at float8);
CREATE FUNCTION witness_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    names text[] := ARRAY['pending', 'pending', 'pending', 'running', 'held', 'succeeded', 'failed', 'cancelled'];
BEGIN
    INSERT INTO witness (id, epoch, worker, was, became, at) VALUES (new.id, new.epoch, new.worker,
        names[old.state + 1] || ' ' || old.epoch, names[new.state + 1],
        extract(epoch FROM clock_timestamp()));
    RETURN NULL;
END $$;
CREATE TRIGGER witness AFTER UPDATE OF state ON dispatch.tasks FOR EACH ROW EXECUTE FUNCTION witness_change();
"""
CHECKS: Final = (
    "SELECT bt_index_check(i.indexrelid, true) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
    " JOIN pg_am a ON a.oid = c.relam"
    " WHERE c.relnamespace = 'dispatch'::regnamespace AND a.amname = 'btree'"
)
"""Each index is in order, and holds every row that it should."""


def opened(url: str) -> PostgresStorage:
    """A storage to be entered, whose connections the server knows by the number of this process."""
    return PostgresStorage(psycopg.conninfo.make_conninfo(url, application_name=f"dispatch {os.getpid()}"))


def asked(url: str, sql: str, *values: object) -> list[Any]:
    """The rows that a query answers."""
    with psycopg.connect(url) as connection:
        return connection.execute(sql.replace("?", "%s").encode(), values or None).fetchall()


def prepare(url: str) -> None:
    """Make the schema in an empty database, and the views."""
    migrate(url)
    execute(url, VIEWS)


def execute(url: str, script: str) -> None:
    """Run statements in one transaction."""
    with psycopg.connect(url) as connection:
        connection.execute(script.encode())


def call_witness(url: str) -> None:
    """Have every change of a status noted from now on."""
    execute(url, WITNESS)


def damage(url: str) -> str:
    """What is wrong with the tables and their indexes; `ok` if nothing is."""
    try:
        with psycopg.connect(url) as connection:
            connection.execute(b"CREATE EXTENSION IF NOT EXISTS amcheck")
            connection.execute(CHECKS.encode())
    except psycopg.errors.DataError as exc:
        return str(exc)
    return "ok"
