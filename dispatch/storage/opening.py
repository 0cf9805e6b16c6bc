"""Storages by their URL: what `open_dispatcher` and the command line are given."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, Literal, TypedDict
from urllib.parse import parse_qsl, unquote

from dispatch.clock import Clock
from dispatch.errors import InvalidConfigError
from dispatch.storage.memory import MemoryStorage
from dispatch.storage.protocol import Storage
from dispatch.storage.sqlite import SqliteStorage

__all__ = ["IN_MEMORY", "PostgresOptions", "open_storage", "postgres_address", "sqlite_address"]

FORMS: Final = (
    "memory:, sqlite:///jobs.db (relative; four slashes for an absolute path) or "
    "postgresql://user@host/database"
)
IN_MEMORY: Final = "memory:"
_SQLITE: Final = "sqlite:///"
SWITCH: Final = {"1": True, "true": True, "on": True, "0": False, "false": False, "off": False}


class PostgresOptions(TypedDict, total=False):
    """What a URL may say of a `PostgresStorage` beside where it is."""

    schema: str
    listen: bool
    prepare: bool
    connections: int


@asynccontextmanager
async def open_storage(url: str, *, clock: Clock | None = None) -> AsyncGenerator[Storage]:
    """Open the storage that `url` names, while the block is open.

    - `memory:`
    - `sqlite:///jobs.db`, relative to the working directory, or
      `sqlite:////var/lib/jobs.db`; `?synchronous=normal` as for `SqliteStorage`.
      In a name, `%23` is `#`, `%3F` is `?` and `%25` is `%`.
    - `postgresql://user:password@host/database`; `?schema=name` for another
      schema than `dispatch`, `listen=0`, `prepare=0` and `connections=2` as for
      `PostgresStorage` (behind PgBouncer the first two), the rest is libpq's.

    Raises InvalidConfigError for anything else, StorageError if it cannot be
    opened. A checkpoint.
    """
    scheme = url.partition(":")[0].lower()
    if url.lower() == IN_MEMORY:
        yield MemoryStorage(clock)
    elif scheme == "sqlite":
        async with _sqlite(url, clock) as storage:
            yield storage
    elif scheme in ("postgresql", "postgres"):
        # Imported here: the driver is an extra, and its absence names it.
        from dispatch.storage.postgres import PostgresStorage
        from dispatch.storage.psycopg_conninfo import check_readable

        dsn, options = postgres_address(url)
        check_readable(dsn)
        async with PostgresStorage(dsn, **options) as postgres:
            yield postgres
    else:
        raise InvalidConfigError(f"a storage is named by {FORMS}; got {_shown(url)!r}")


def postgres_address(url: str) -> tuple[str, PostgresOptions]:
    """The connection string that a postgresql: URL names, and the options of ours in it."""
    # Not by urlsplit, which makes another URL of one without a host, `postgresql://?host=/run`.
    head, _, query = url.partition("?")
    options: PostgresOptions = {}
    rest: list[str] = []
    # Nor by parse_qsl: to libpq a + is a +.
    for option in query.split("&") if query else ():
        name, _, value = option.partition("=")
        match name:
            case "schema":
                options["schema"] = unquote(value)
            case "listen" | "prepare":
                if value.lower() not in SWITCH:
                    raise InvalidConfigError(f"{_shown(url)!r}: {name} is 1 or 0, got {value!r}")
                options[name] = SWITCH[value.lower()]
            case "connections":
                if not (value.isascii() and value.isdecimal()):
                    raise InvalidConfigError(f"{_shown(url)!r}: connections is a whole number from 1, got {value!r}")
                options[name] = int(value)
            case _:
                rest.append(option)
    return f"{head}?{'&'.join(rest)}" if rest else head, options


def sqlite_address(url: str) -> tuple[str, Literal["full", "normal"]]:
    """The file, and how it is synchronized, that a sqlite: URL names.

    Whatever has no clear meaning is refused, for the file that it would name by
    chance is made, and stays empty.
    """
    # Not by urlsplit, which drops what follows a `#`, and line breaks.
    head, _, query = url.partition("?")
    name = head[len(_SQLITE) :]  # sqlite:///a is the relative a, sqlite:////a the absolute /a
    path = unquote(name, errors="surrogateescape")
    if not head.lower().startswith(_SQLITE) or not path or "\0" in path:
        raise InvalidConfigError(
            f"a SQLite file is named by sqlite:///jobs.db (relative) or sqlite:////var/jobs.db; got {url!r}"
        )
    if "#" in url:
        raise InvalidConfigError(f"{url!r}: in the name of a file write %23 for #")
    options = dict(parse_qsl(query, keep_blank_values=True))
    synchronous = options.pop("synchronous", "full")
    if options or synchronous not in ("full", "normal"):
        raise InvalidConfigError(
            f"{url!r}: the only option is synchronous=full or synchronous=normal; in the name of a file write %3F for ?"
        )
    return path, "normal" if synchronous == "normal" else "full"


def _sqlite(url: str, clock: Clock | None) -> SqliteStorage:
    path, synchronous = sqlite_address(url)
    return SqliteStorage(path, synchronous=synchronous, clock=clock)


def _shown(url: str) -> str:
    """The URL without what may be a password."""
    url = re.sub(r"(?i)(?<=password=)[^&\s]+", "***", url)
    head, at, tail = url.rpartition("@")
    return f"{head.partition('://')[0]}://***@{tail}" if at else url
