"""What a command stands on: its streams, its store, and the person in front of it."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Final, Literal, TextIO

import attrs
from cyclopts import Parameter

from dispatch.cli.output import line, safe
from dispatch.control import TaskQueueControl
from dispatch.cron.dispatcher import CronTaskDispatcher
from dispatch.nearest import nearest
from dispatch.publisher import TaskQueuePublisher
from dispatch.storage.opening import open_storage, sqlite_address
from dispatch.storage.protocol import Storage
from dispatch.storage.query import All, Types, Where

__all__ = [
    "LOG_FORMAT",
    "CommandError",
    "Complaints",
    "JsonOption",
    "Opened",
    "Opener",
    "Shell",
    "ShellArgument",
    "StoreOption",
    "YesOption",
    "check_utf8",
    "masked",
]

LOG_FORMAT: Final = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

Opener = Callable[[str], AbstractAsyncContextManager[Storage]]

StoreOption = Annotated[
    str | None,
    Parameter(
        name="--store",
        env_var="DISPATCH_STORE",
        help="Where the tasks are: sqlite:///jobs.db or postgresql://user@host/name.",
    ),
]
JsonOption = Annotated[
    bool, Parameter(name="--json", negative=(), show_default=False, help="Print one JSON document.")
]
YesOption = Annotated[
    bool,
    Parameter(
        name=("--yes", "-y"), negative=(), show_default=False, help="Do not ask before destroying."
    ),
]

_SUFFIXES: Final = {".db", ".sqlite", ".sqlite3", ".db3"}


class CommandError(Exception):
    """Ends a command: the message is printed, `detail` above it, and `status` is its exit status.

    1: it could not be done. 2: the command line was wrong, and nothing was tried.
    """

    def __init__(self, message: str, status: Literal[1, 2] = 1, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.detail = detail


ANY: Final = All()
_COMPLAINTS_TOLD: Final = 20
_LOOKED_AT: Final = 1_000
"""Tasks among which a mistyped type is looked for."""


@attrs.frozen(kw_only=True)
class Opened:
    """An open store, with the parts that act on it."""

    url: str
    storage: Storage
    publisher: TaskQueuePublisher
    control: TaskQueueControl

    def cron(self) -> CronTaskDispatcher:
        """A cron dispatcher that is not run: it adds and changes stored entries."""
        return CronTaskDispatcher(self.storage, publisher=self.publisher)

    async def queue_names(self, *asked: str) -> list[str]:
        """Every declared queue. Raises CommandError for one asked for that is not among them."""
        names = [record.name for record in await self.storage.queues()]
        for name in asked:
            if name not in names:
                raise CommandError(f"no queue {name!r}{_among(name, names)}")
        return names

    async def mistyped(self, types: Sequence[str], where: Where = ANY) -> list[str]:
        """A sentence for each type that no stored task has, where one of nearly its name is stored."""
        found: list[str] = []
        for each in types:
            if not await self.storage.count(All(where, Types(each)), bound=1):
                stored = await self.storage.count(where, by=("type",), bound=_LOOKED_AT)
                if hint := nearest(each, [name for (name,) in stored]):
                    found.append(f"no task of type {each!r} is stored{hint}")
        return found


@attrs.define
class Complaints:
    """What could not be done with one of many: counted, and the first told one by one."""

    say: Callable[[str], None]
    count: int = 0

    def add(self, text: str) -> None:
        """One more."""
        self.count += 1
        if self.count <= _COMPLAINTS_TOLD:
            self.say(text)

    def end(self, noun: str) -> None:
        """Say how many were not told: `and 5 more bad lines`."""
        if self.count > _COMPLAINTS_TOLD:
            self.say(f"and {self.count - _COMPLAINTS_TOLD} more {noun}")


def check_utf8(text: str, what: str) -> None:
    """Refuse what no store can hold: bytes of a command line or a stream that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise CommandError(f"{what} is not UTF-8: {text[:60]!r}", 2) from None


def _among(name: str, names: Sequence[str]) -> str:
    if not names:
        return "; none is registered in this store"
    return nearest(name, names) or f"; there are: {', '.join(names[:20])}"


@attrs.frozen(kw_only=True)
class Shell:
    """The surroundings of one command.

    `opener` opens a store by its URL; tests inject their own. `arguments` is
    the command line as given.
    """

    stdin: TextIO
    stdout: TextIO
    stderr: TextIO
    opener: Opener = open_storage
    arguments: tuple[str, ...] = ()

    @classmethod
    def of_process(cls) -> Shell:
        """The streams and arguments of this process."""
        # What cannot be decoded is refused where it is used, and what a stream cannot encode is
        # escaped: neither is worth a traceback. A stream that was closed, `<&-`, is None.
        for stream, errors in (
            (sys.stdin, "surrogateescape"),
            (sys.stdout, "backslashreplace"),
            (sys.stderr, "backslashreplace"),
        ):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors=errors)
        return cls(
            stdin=sys.stdin or io.StringIO(),
            stdout=sys.stdout or io.StringIO(),
            stderr=sys.stderr or io.StringIO(),
            arguments=tuple(sys.argv[1:]),
        )

    @asynccontextmanager
    async def open(
        self, url: str | None, *, create: bool = False, alone: bool = False
    ) -> AsyncGenerator[Opened]:
        """The store while the block runs.

        `create`: a SQLite file may be missing and is made. `alone`: a store in
        memory, which no other process sees, makes sense here.
        Raises CommandError, and StorageError where the store cannot be opened.
        """
        if not url:
            raise CommandError("no store; give --store sqlite:///jobs.db or set DISPATCH_STORE", 2)
        if self.opener is open_storage:
            _check_url(url, create=create, alone=alone)
        async with self.opener(url) as storage:
            publisher = TaskQueuePublisher(storage)
            control = TaskQueueControl(storage, publisher=publisher)
            yield Opened(url=url, storage=storage, publisher=publisher, control=control)

    def is_made(self, url: str) -> bool:
        """Whether there is a store to open: a SQLite file may still have to be made. Raises CommandError."""
        sqlite = url.partition(":")[0].lower() == "sqlite"
        return not sqlite or _is_there(Path(sqlite_address(url)[0]))

    def say(self, message: str) -> None:
        """Tell the person something that is not the command's result.

        Nobody may be listening any more, a reader gone with its terminal or a disk
        full: that is no reason to end the work which is told of.
        """
        with suppress(OSError):
            line(self.stderr, message)

    def print(self, text: str) -> None:
        """One line of the command's result."""
        line(self.stdout, text)

    def confirm(self, what: str, *, yes: bool) -> None:
        """Return if the person agrees to `what`, such as "delete 3 tasks".

        Asks on a terminal; anywhere else only `yes` counts. Raises CommandError.
        """
        if yes:
            return
        if not (self.stdin.isatty() and self.stderr.isatty()):
            raise CommandError(
                f"this would {what}; there is no terminal to ask on, so give --yes", 2
            )
        self.stderr.write(f"{safe(what[:1].upper() + what[1:])}? [y/N] ")
        self.stderr.flush()
        # Blocks the loop on purpose: nothing else may happen before the answer.
        if self.stdin.readline().strip().lower() not in ("y", "yes"):
            raise CommandError("nothing was changed")


ShellArgument = Annotated[Shell, Parameter(parse=False)]
"""How a command asks for its shell; `app.main` hands it over."""


def masked(url: str) -> str:
    """The URL without its password."""
    return re.sub(r"(?<=password=)[^&]*", "***", re.sub(r"(//[^/@:]*):[^/]*@", r"\1:***@", url))


def _check_url(url: str, *, create: bool, alone: bool) -> None:
    """Refuse what would open an empty store by mistake."""
    scheme = url.partition(":")[0].lower()
    if scheme == "memory" and not alone:
        raise CommandError(
            "a store in memory is seen by its own process only, and this is a new one; "
            "give the store that the workers use, such as sqlite:///jobs.db",
            2,
        )
    if scheme == "sqlite" and not create:
        path = Path(sqlite_address(url)[0])
        if not _is_there(path):
            beside = [each.name for each in path.parent.glob("*") if each.suffix in _SUFFIXES]
            hint = nearest(path.name, beside) or "; `dispatch migrate` makes a new one"
            raise CommandError(f"there is no file {str(path)!r}{hint}")


def _is_there(path: Path) -> bool:
    """Whether there is such a file. Raises CommandError where nobody can say."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as exc:
        raise CommandError(f"cannot look at the file {str(path)!r}: {exc.strerror}") from None
    return True
