"""A command line run in process, with streams of its own and a store in memory."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from dispatch import MemoryStorage, Storage
from dispatch.cli.app import build, main
from dispatch.cli.shell import Opener, Shell
from dispatch.records import NewTask, Transition, TransitionKind
from dispatch.storage.protocol import QueueRecord, Want
from dispatch.storage.query import All

APP = build()
HOSTILE = "\x1b[31m\x07red\t[bold]b[/bold]\u202egnp.\x9b2J\r\nforged"
"""Escapes, a bell, a tab, markup, a bidirectional override, an 8-bit escape, and a new line."""


class Stream(io.StringIO):
    def __init__(self, text: str = "", *, terminal: bool = False) -> None:
        super().__init__(text)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@attrs.frozen
class Ran:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def rows(self) -> list[list[str]]:
        return [line.split("\t") for line in self.out.splitlines()]


def opener_of(storage: Storage) -> Opener:
    @asynccontextmanager
    async def opener(_url: str) -> AsyncGenerator[Storage]:
        yield storage

    return opener


@attrs.define
class Terminal:
    """`terminal("task", "ls")` runs a command over `storage`."""

    storage: MemoryStorage = attrs.field(factory=lambda: MemoryStorage(keep_finished=5_000))

    def shell(self, stdin: str = "", *, tty: bool = False) -> Shell:
        return Shell(
            stdin=Stream(stdin, terminal=tty),
            stdout=Stream(terminal=tty),
            stderr=Stream(terminal=tty),
            opener=opener_of(self.storage),
        )

    def __call__(
        self, *arguments: str, stdin: str = "", tty: bool = False, store: str = "memory:"
    ) -> Ran:
        shell = self.shell(stdin, tty=tty)
        status = main([*arguments, *(["--store", store] if store else [])], shell, APP)
        assert isinstance(shell.stdout, Stream)
        assert isinstance(shell.stderr, Stream)
        return Ran(status, shell.stdout.getvalue(), shell.stderr.getvalue())

    def does(self, function: Callable[..., Awaitable[Any]], *arguments: Any, **named: Any) -> Any:
        """Run an async function on the store, in a trio run of its own."""

        async def run() -> Any:
            return await function(*arguments, **named)

        return trio.run(run)

    def declare(self, *names: str, **settings: Any) -> None:
        self.does(self.storage.declare, [QueueRecord(name=name, **settings) for name in names])

    def store(self, *ids: str, queue: str = "email", kind: str = "welcome", **fields: Any) -> None:
        self.declare(queue)
        fields = {"payload": b"{}", **fields}
        new = [NewTask(id=each, queue=queue, type=kind, **fields) for each in ids]
        results = self.does(self.storage.enqueue, new)
        assert all(result.answer == "created" for result in results)

    def run(self, *ids: str, queue: str = "email", fail: str | None = None) -> None:
        """Have these waiting tasks run, and succeed, or fail for good with this message."""
        for claim in self.claim(*ids, queue=queue):
            end = (
                Transition(claim.id, claim.epoch, TransitionKind.DONE)
                if fail is None
                else Transition(claim.id, claim.epoch, TransitionKind.FAILED, error=fail)
            )
            self.does(self.storage.settle, [end])

    def claim(self, *ids: str, queue: str = "email") -> list[Any]:
        want = Want(queue=queue, limit=len(ids), ids=frozenset(ids))
        claimed = self.does(self.storage.claim, [want], worker="w1", lease=30.0)
        assert sorted(claim.id for claim in claimed.claims) == sorted(ids)
        return claimed.claims

    def statuses(self) -> dict[str, str]:
        page = self.does(self.storage.find, All(), limit=10_000)
        return {record.id: record.status.value for record in page.records}
