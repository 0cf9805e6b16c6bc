"""A storage whose n-th call goes wrong as a plan says, and a connection whose n-th statement does."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from typing import Any, TypeVar

import trio

from dispatch import StorageError
from dispatch.storage.protocol import Storage
from dispatch.storage.sqlite import SqliteStorage
from dispatch.testing.proxy import StorageProxy

__all__ = ["FailingConnection", "FailingStorage", "Fault"]

T = TypeVar("T")


class Fault(StrEnum):
    BEFORE = "before"
    """It fails, and nothing was done."""
    AFTER = "after"
    """It was done, and the answer is lost."""
    HANG = "hang"
    """It never answers, and nothing was done."""
    ROLLED_BACK = "rolled back"
    """As BEFORE; of a statement, the transaction is undone as well."""


class FailingStorage(StorageProxy):
    """Fails at the calls that `plan` names, by their number from 1; and always while `away`."""

    def __init__(self, inner: Storage, plan: Mapping[int, Fault] | None = None) -> None:
        super().__init__(inner)
        self.plan = dict(plan or {})
        self.away = False
        self.calls: list[str] = []

    async def around(self, method: str, call: Callable[[], Awaitable[T]]) -> T:
        self.calls.append(method)
        fault = Fault.BEFORE if self.away else self.plan.get(len(self.calls))
        if fault is Fault.HANG:
            await trio.sleep_forever()
        if fault in (Fault.BEFORE, Fault.ROLLED_BACK):
            await trio.lowlevel.checkpoint()
            raise StorageError(f"call {len(self.calls)}, {method}, fails")
        answer = await call()
        if fault is Fault.AFTER:
            raise StorageError(f"the answer to call {len(self.calls)}, {method}, is lost")
        return answer


class FailingConnection:
    """The writing connection of a SQLite storage; its n-th statement fails as the disk makes it fail.

    BEFORE: not done, the transaction still open. AFTER: done, a COMMIT included.
    ROLLED_BACK: SQLite has undone the transaction by itself, as it does when
    the disk is full.
    """

    def __init__(self, storage: SqliteStorage, n: int, fault: Fault) -> None:
        self.n, self.fault = n, fault
        self.count = 0
        self.commits: list[int] = []
        ledger: Any = storage._ledger
        self._db: sqlite3.Connection = ledger.db
        ledger.db = ledger.tasks.db = ledger.registry._db = self

    @property
    def in_transaction(self) -> bool:
        return self._db.in_transaction

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        return self._step(lambda: self._db.execute(sql, *values), sql)

    def executemany(self, sql: str, *values: Any) -> sqlite3.Cursor:
        return self._step(lambda: self._db.executemany(sql, *values), sql)

    def close(self) -> None:
        self._db.close()

    def _step(self, step: Callable[[], sqlite3.Cursor], sql: str) -> sqlite3.Cursor:
        self.count += 1
        if sql == "COMMIT":
            self.commits.append(self.count)
        if self.count != self.n:
            return step()
        if self.fault is Fault.AFTER:
            step()
        elif self.fault is Fault.ROLLED_BACK and self._db.in_transaction:
            self._db.execute("ROLLBACK")
        raise sqlite3.OperationalError("disk I/O error")
