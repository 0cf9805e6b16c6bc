"""A PostgreSQL storage whose time stands still but for `advance`, empty, on a database of the session."""

# pyright: reportPrivateUsage=false
# What breaks a call in the middle is put around the storage's connections.

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

import trio

from dispatch.storage.postgres import PostgresStorage
from dispatch.storage.postgres_schema import migrate
from dispatch.storage.psycopg_trio import TrioConnection, TrioPool, psycopg

START = 1_700_000_000.25
CLOCK = """
CREATE TABLE @.test_clock AS SELECT 0::float8 AS now;
CREATE OR REPLACE FUNCTION @.now_s() RETURNS float8 LANGUAGE sql VOLATILE AS
$$ SELECT now FROM @.test_clock $$;
"""
TABLES = ("tasks", "attempts", "lanes", "queues", "workers", "crons")


def prepare(dsn: str, schema: str = "dispatch") -> None:
    """Make the schema, with a clock that is a row of a table."""
    migrate(dsn, schema=schema)
    with psycopg.connect(dsn) as connection:
        connection.execute(CLOCK.replace("@", schema).encode())


class Hoard(TrioPool):
    """A pool that leaves its connections to the next storage: a server plans each statement once."""

    def __init__(self, pool: TrioPool, name: str, hoard: list[TrioConnection]) -> None:
        super().__init__(
            pool._conninfo,
            pool._size,
            prepare_threshold=pool._prepare_threshold,
            isolation_level=pool._isolation_level,
            binary_lists=pool._binary_lists,
            context=pool._context,
        )
        self.where = pool.where
        self.name = name
        self.hoard = hoard
        self.named: set[TrioConnection] = set()
        self.kind: type[TrioConnection] = TrioConnection

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[TrioConnection]:
        async with super().connection() as lent:
            if lent not in self.named:
                self.named.add(lent)
                await lent.execute("SELECT set_config('application_name', %s, false)", (self.name,))
            lent.__class__ = self.kind
            try:
                yield lent
            finally:
                lent.__class__ = TrioConnection

    async def _take(self) -> TrioConnection:
        if not self._rest and self.hoard:
            self._rest.append(self.hoard.pop())
        return await super()._take()

    async def aclose(self) -> None:
        self.hoard += self._rest
        self._rest.clear()
        await super().aclose()


class Stage:
    """One database, cleared for every storage that is opened on it."""

    def __init__(self, dsn: str, schema: str = "dispatch") -> None:
        self.dsn = dsn
        self.schema = schema
        self.now = START
        self.opened = 0
        self.flow: list[TrioConnection] = []
        self.reads: list[TrioConnection] = []
        self.names: WeakKeyDictionary[PostgresStorage, str] = WeakKeyDictionary()
        prepare(dsn, schema)
        self.admin = psycopg.connect(dsn, autocommit=True)

    def close(self) -> None:
        """Leave the database as it is."""
        for connection in (*self.flow, *self.reads):
            connection.pgconn.finish()
        self.admin.close()

    def execute(self, statement: str, values: Any = None) -> list[tuple[Any, ...]]:
        """Run one statement; `@.` stands for the schema."""
        cursor = self.admin.execute(statement.replace("@.", f"{self.schema}.").encode(), values)
        return cursor.fetchall() if cursor.description is not None else []

    def clear(self) -> None:
        """Empty every table, and turn the clock back."""
        for name in TABLES:
            self.execute(f"DELETE FROM @.{name}")  # noqa: S608 - names of our own
        self.set(START)

    def set(self, now: float) -> None:
        """Turn the database's clock, and that of the storages beside it."""
        self.now = now
        self.execute("UPDATE @.test_clock SET now = %s", (now,))

    async def advance(self, seconds: float) -> None:
        """Let so much time pass."""
        self.set(round(self.now + seconds, 6))

    def storage(self, **settings: Any) -> PostgresStorage:
        """Another storage on this database, to be entered; the server knows it by a name of its own."""
        self.opened += 1
        name = f"storage {self.opened}"
        dsn = psycopg.conninfo.make_conninfo(self.dsn, application_name=name)
        storage = PostgresStorage(dsn, schema=self.schema, ticks=lambda: self.now, **settings)
        self.names[storage] = name
        storage._flow = Hoard(storage._flow, name, self.flow)
        storage._reads = Hoard(storage._reads, name, self.reads)
        return storage

    def disconnect(self, storage: PostgresStorage) -> None:
        """Have the server cut all connections of one storage, and wait until it has."""
        self.admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = %s",
            (self.names[storage],),
        )

    @contextmanager
    def break_at(self, storage: PostgresStorage, step: int) -> Generator[None]:
        """Cut the connection before the `step`-th exchange of the calls on this storage."""
        exchanges = count()

        class Breaking(TrioConnection[Any]):
            async def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
                # What goes on beside the calls is not meant.
                name = trio.lowlevel.current_task().name
                if "BellRope" not in name and "_run_poll" not in name and next(exchanges) == step:
                    await self.close()
                    raise psycopg.OperationalError("the connection was cut")
                return await super().wait(gen, *args, **kwargs)

        pools = (storage._flow, storage._reads)
        for pool in pools:
            assert isinstance(pool, Hoard)
            pool.kind = Breaking
        try:
            yield
        finally:
            for pool in pools:
                pool.kind = TrioConnection

    @asynccontextmanager
    async def open(
        self, **settings: Any
    ) -> AsyncGenerator[tuple[PostgresStorage, Callable[[float], Awaitable[None]]]]:
        """An empty storage, and its time."""
        self.clear()
        async with self.storage(**settings) as storage:
            yield storage, self.advance
