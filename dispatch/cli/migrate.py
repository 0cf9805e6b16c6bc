"""`dispatch migrate`: the store's tables, made and brought up to date."""

from __future__ import annotations

from typing import Annotated

import trio
from cyclopts import Parameter

from dispatch.cli.shell import CommandError, ShellArgument, StoreOption, masked
from dispatch.storage.opening import postgres_address

__all__ = ["migrate"]


async def migrate(
    *,
    sql: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    since: Annotated[int, Parameter(show_default=False)] = 0,
    store: StoreOption = None,
    shell: ShellArgument,
) -> None:
    """Create the store's tables, or bring them up to date. Harmless to repeat.

    A SQLite file also does so whenever it is opened; a PostgreSQL database never.

    Parameters
    ----------
    sql
        Print the script for PostgreSQL instead, and touch nothing; needs no store.
    since
        With --sql: from this version of the schema on, 0 for a database that has none.
    """
    url = store or ("postgresql://" if sql else "")
    if since and not sql:
        raise CommandError("--since goes with --sql; without it the database is asked for its version", 2)
    if url.partition(":")[0].lower() not in ("postgresql", "postgres"):
        if sql:
            raise CommandError("--sql is for PostgreSQL; a SQLite file makes its own tables", 2)
        async with shell.open(store, create=True) as opened:
            await opened.storage.queues()
        shell.print(f"{masked(url)} is up to date")
        return
    # Imported here: the driver is an extra of its own.
    from dispatch.storage.postgres_schema import DEFAULT_SCHEMA, migration_sql
    from dispatch.storage.postgres_schema import migrate as migrate_schema

    dsn, options = postgres_address(url)
    schema = options.get("schema", DEFAULT_SCHEMA)
    if sql:
        shell.stdout.write(migration_sql(schema, since=since))
        return
    before, after = await trio.to_thread.run_sync(
        lambda: migrate_schema(dsn, schema=schema), abandon_on_cancel=False
    )
    shell.print(f"{masked(url)}: {_told(schema, before, after)}")


def _told(schema: str, before: int, after: int) -> str:
    if before == after:
        return f"schema {schema} is up to date, at version {after}"
    if before == 0:
        return f"schema {schema} was made, at version {after}"
    return f"schema {schema} was brought from version {before} to {after}"
