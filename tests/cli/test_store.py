"""`check`, `stats`, `top`, `prune`, `migrate`, and which store a command is given."""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import attrs
import pytest
import trio
from rich.console import ConsoleDimensions

from dispatch import Storage, StorageError
from dispatch.cli.app import main
from dispatch.cli.output import console
from dispatch.cli.shell import Shell, masked
from dispatch.cli.state import store_state
from dispatch.cli.top import Board, sparkline
from dispatch.storage.protocol import WorkerRecord
from tests.cli.terminal import HOSTILE, Stream, Terminal

# -- which store --------------------------------------------------------------


def plainly(*arguments: str) -> tuple[int, str, str]:
    """Run with stores opened as a process opens them."""
    out, err = Stream(), Stream()
    status = main(arguments, Shell(stdin=Stream(), stdout=out, stderr=err))
    return status, out.getvalue(), err.getvalue()


@pytest.mark.usefixtures("terminal")
def test_without_a_store_it_is_said_how_to_give_one() -> None:
    assert plainly("task", "ls") == (
        2, "", "dispatch: no store; give --store sqlite:///jobs.db or set DISPATCH_STORE\n",
    )  # fmt: skip


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(
    "store",
    ["mysql://x", "jobs.db", "sqlite://jobs.db", "sqlite:j.db", "sqlite", "sqlite:///jobs#1.db", "sqlite:///j\0", ""],
)
def test_a_store_that_is_none_is_refused(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["task", "ls"], ["migrate"]):
        status, out, err = plainly(*command, "--store", store)
        assert (status, out) == (2, "")
        assert err.startswith("dispatch: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("terminal")
def test_a_missing_file_is_found_missing_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for store in ("SQLITE:///jobs%231.db", "sqlite:///jobs%231.db?synchronous=normal"):
        status, out, err = plainly("stats", "--store", store)
        assert (status, out, err.partition(";")[0]) == (1, "", "dispatch: there is no file 'jobs#1.db'")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("terminal")
def test_an_empty_store_in_memory_is_refused_where_it_makes_no_sense() -> None:
    status, _, err = plainly("task", "ls", "--store", "memory:")
    assert status == 2
    assert err.startswith("dispatch: a store in memory is seen by its own process only")


@pytest.mark.usefixtures("terminal")
def test_a_missing_file_is_not_made_by_reading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert plainly("queue", "ls", "--store", "sqlite:///jobs.db") == (
        1, "", "dispatch: there is no file 'jobs.db'; `dispatch migrate` makes a new one\n",
    )  # fmt: skip
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("DISPATCH_STORE", "sqlite:///jobs.db")
    assert plainly("migrate") == (0, "sqlite:///jobs.db is up to date\n", "")
    assert plainly("migrate")[0] == 0
    assert plainly("queue", "ls") == (0, "", "")
    assert plainly("queue", "ls", "--store", "sqlite:///job.db") == (
        1, "", "dispatch: there is no file 'job.db'; did you mean 'jobs.db'?\n",
    )  # fmt: skip


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("command", [("task", "ls"), ("check",), ("run", "jobs:setup"), ("migrate",)])
def test_a_file_that_nobody_can_look_at_is_told_in_a_sentence(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "jobs.py").write_text("def setup(dispatcher): ...", encoding="utf-8")
    (tmp_path / "loop").symlink_to("loop")
    for name, why in (("n" * 300 + ".db", "File name too long"), ("loop/jobs.db", "symbolic links")):
        status, out, err = plainly(*command, "--store", f"sqlite:///{name}")
        assert status == 1
        assert why in out + err
        assert len((out + err).splitlines()) == 1


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ada:s3cr3t@db/jobs", "postgresql://ada:***@db/jobs"),
        ("postgresql://ada:p@ss:w@db/jobs", "postgresql://ada:***@db/jobs"),
        ("postgresql://ada@db/jobs", "postgresql://ada@db/jobs"),
        (
            "postgresql://db/jobs?password=a@b&schema=x",
            "postgresql://db/jobs?password=***&schema=x",
        ),
        ("sqlite:///a@b:c@d.db", "sqlite:///a@b:c@d.db"),
    ],
)
def test_a_password_is_never_printed(url: str, shown: str) -> None:
    assert masked(url) == shown


def test_a_script_for_the_tables_is_printed_where_there_is_one(terminal: Terminal) -> None:
    pytest.importorskip("psycopg")
    ran = terminal("migrate", "--sql", store="postgresql://nobody@nowhere/db?schema=jobs")
    assert (ran.status, ran.err) == (0, "")
    assert "CREATE SCHEMA jobs;" in ran.out
    assert "CREATE SCHEMA dispatch;" in terminal("migrate", "--sql", store="").out
    rest = terminal("migrate", "--sql", "--since", "1", store="postgresql://").out
    assert "CREATE TABLE" not in rest
    assert "CREATE INDEX" in rest
    ran = terminal("migrate", "--since", "1", store="postgresql://")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("dispatch: --since goes with --sql")
    ran = terminal("migrate", "--sql", store="sqlite:///jobs.db")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("dispatch: --sql is for PostgreSQL")


# -- check ----------------------------------------------------------------------


def beat(terminal: Terminal, *queues: str) -> None:
    worker = WorkerRecord(id=HOSTILE, host="h", pid=1, started_at=0.0, seen_at=0.0, queues=queues)
    terminal.does(terminal.storage.beat, worker)


def test_an_idle_store_is_healthy(terminal: Terminal) -> None:
    terminal.declare("email")
    ran = terminal("check")
    assert ran.status == 0
    assert [row[:2] for row in ran.rows] == [["ok", "store"], ["ok", "queue email"]]
    found = terminal("check", "--json").json
    assert found["healthy"] is True
    assert found["checks"][0].keys() == {"name", "ok", "detail"}


def test_due_work_without_a_worker_is_not_healthy(terminal: Terminal) -> None:
    terminal.store("a")
    ran = terminal("check")
    assert ran.status == 1
    assert ran.rows[1] == ["failed", "queue email", "no live worker, 1 due"]
    terminal("queue", "pause", "email")
    assert terminal("check").status == 0
    assert terminal("check", "--queue", "email").status == 1
    terminal("queue", "resume", "email")
    beat(terminal, "email")
    assert terminal("check").status == 0


def test_a_named_queue_needs_a_worker_even_when_idle(terminal: Terminal) -> None:
    terminal.declare("email", "billing")
    beat(terminal, "email")
    assert terminal("check", "--queue", "email").status == 0
    assert terminal("check", "--queue", "billing").status == 1
    ran = terminal("check", "--queue", "biling", "--queue", "email")
    assert (ran.status, ran.err) == (1, "")
    assert ran.rows[1:] == [
        ["failed", "queue biling", "no queue 'biling'; did you mean 'billing'?"],
        ["ok", "queue email", "1 live worker, 0 due"],
    ]
    found = terminal("check", "--queue", "biling", "--json").json
    assert found["healthy"] is False
    assert [each["ok"] for each in found["checks"]] == [True, False]


def test_work_that_waits_too_long_is_not_healthy(terminal: Terminal) -> None:
    terminal.store("a", available_at=1_000.0)
    beat(terminal, "email")
    assert terminal("check").status == 0
    assert terminal("check", "--max-wait", "5m").status == 1
    assert terminal("check", "--max-wait", "soon").status == 2


def test_a_pause_that_was_forgotten_is_found(terminal: Terminal) -> None:
    terminal.store("a", "b", available_at=time.time() - 180)
    beat(terminal, "email")
    terminal("queue", "pause", "email")
    ran = terminal("check")
    assert ran.status == 0
    assert ran.rows[1:] == [["ok", "queue email", "paused, 1 live worker, 2 due, one of them for 3 min"]]
    for asked in ((), ("--queue", "email")):
        ran = terminal("check", *asked, "--max-wait", "10s")
        assert ran.status == 1
        assert ran.rows[2] == [
            "failed",
            "queue email",
            "paused, and a task has been due for 3 min, more than 10 s; resume it, or give --paused-ok",
        ]
        ran = terminal("check", *asked, "--max-wait", "10s", "--paused-ok")
        assert (ran.status, len(ran.rows)) == (0, 2)
        assert terminal("check", *asked, "--max-wait", "5m").status == 0
    terminal("queue", "resume", "email")
    ran = terminal("check", "--max-wait", "10s", "--paused-ok")
    assert ran.status == 1
    assert ran.rows[1:] == [
        ["ok", "queue email", "1 live worker, 2 due"],
        ["failed", "queue email", "a task has been due for 3 min, more than 10 s"],
    ]


def test_a_pause_in_which_nothing_waits_is_said_and_well(terminal: Terminal) -> None:
    terminal.declare("email", "idle")
    terminal("queue", "pause", "email")
    ran = terminal("check", "--max-wait", "1s")
    assert ran.status == 0
    assert ran.rows[1] == ["ok", "queue email", "paused, no live worker, 0 due"]
    rows = dict(terminal("stats").rows)
    assert (rows["queues"], rows["paused queues"]) == ("2", "1")


def test_a_store_that_fails_or_hangs_is_not_healthy(terminal: Terminal) -> None:
    @asynccontextmanager
    async def failing(_: str) -> AsyncGenerator[Storage]:
        raise StorageError("cannot reach the server")
        yield terminal.storage

    @asynccontextmanager
    async def hanging(_: str) -> AsyncGenerator[Storage]:
        await trio.sleep_forever()
        yield terminal.storage

    for opener, said in ((failing, "cannot reach the server"), (hanging, "no answer within 10 ms")):
        shell = attrs.evolve(terminal.shell(), opener=opener)
        assert main(["check", "--store", "x", "--within", "0.01s"], shell) == 1
        assert isinstance(shell.stdout, Stream)
        assert shell.stdout.getvalue() == f"failed\tstore\t{said}\n"


@pytest.mark.usefixtures("terminal")
def test_a_file_that_is_missing_is_not_healthy_and_no_store_at_all_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = plainly("check", "--json", "--store", "sqlite:///jobs.db")
    assert (status, err) == (1, "")
    detail = "there is no file 'jobs.db'; `dispatch migrate` makes a new one"
    assert json.loads(out) == {
        "healthy": False,
        "checks": [{"name": "store", "ok": False, "detail": detail}],
    }
    for store in ((), ("--store", "memory:")):
        status, out, err = plainly("check", "--json", *store)
        assert (status, out) == (2, "")
        assert err.startswith(("dispatch: no store; give", "dispatch: a store in memory"))


@pytest.mark.usefixtures("terminal")
def test_a_file_that_somebody_holds_for_himself_is_not_waited_for(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/jobs.db"
    assert plainly("migrate", "--store", store)[0] == 0
    with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as holder:
        holder.execute("PRAGMA locking_mode = EXCLUSIVE")
        holder.execute("BEGIN EXCLUSIVE")
        begun = time.monotonic()
        status, out, _ = plainly("check", "--within", "0.1s", "--store", store)
        took_s = time.monotonic() - begun
    assert (status, out) == (1, "failed\tstore\tno answer within 100 ms\n")
    assert took_s < 4.0  # SQLite's own patience ends after 5 s


# -- stats and top ----------------------------------------------------------------


def test_stats_tell_of_the_whole_store(terminal: Terminal) -> None:
    terminal.store("a", "b", "c", "d")
    terminal.run("a")
    terminal.run("b", fail="ValueError: no")
    terminal.claim("c")
    beat(terminal, "email")
    found = terminal("stats", "--json").json
    assert found.keys() == {"now", "tasks", "last_minute", "queues", "workers", "crons"}
    assert found["tasks"] == {"due": 1, "later": 0, "running": 1, "held": 0, "failed": 1}
    assert found["last_minute"] == {"succeeded": 1, "failed": 1}
    assert found["workers"][0].keys() == {
        "id",
        "host",
        "pid",
        "started_at",
        "seen_at",
        "queues",
        "running",
    }
    assert dict(terminal("stats").rows)["running"] == "1"
    assert terminal("top").out == terminal("stats").out
    assert terminal("top", "--every", "0.01s").status == 2


def test_the_live_board_shows_queues_runs_and_workers_and_fits_the_screen(
    terminal: Terminal,
) -> None:
    terminal.store("a", "b", kind="welcome")
    terminal.declare(*(f"queue-{number:03}" for number in range(60)))
    terminal.claim("a")
    beat(terminal, "email")
    board = Board("postgresql://u:secret@h/d", 1.0)
    board.take(terminal.does(store_state, terminal.storage))
    for width, height in [(80, 10), (60, 24), (50, 24), (110, 24), (200, 60)]:
        out = Stream()
        screen = console(out)
        screen.size = ConsoleDimensions(width, height)
        screen.print(board.draw(screen))
        text = out.getvalue()
        table = text[text.index("queue ") :].splitlines()
        assert [line.split()[0] for line in table[2:5]] == ["email", "queue-000", "queue-001"], "a row is one line"
        assert "1 worker, 1 running, 1 due, 0 dead letters\n" in text
        assert len(text.splitlines()) <= max(height, 18)
        assert "email" in text
        assert "secret" not in text
        assert not set(text) & set("\x1b\x07\u202e")
    assert "email/welcome" in text


def test_a_worker_of_more_runs_than_are_listed_is_counted_by_its_own_record(
    terminal: Terminal,
) -> None:
    ids = [f"t{number}" for number in range(250)]
    terminal.store(*ids)
    terminal.claim(*ids)
    worker = WorkerRecord(
        id="w1", host="h", pid=1, started_at=0.0, seen_at=0.0, queues=("email",), running=tuple(ids)
    )
    terminal.does(terminal.storage.beat, worker)
    board = Board("memory:", 1.0)
    board.take(terminal.does(store_state, terminal.storage))
    out = Stream()
    screen = console(out)
    screen.size = ConsoleDimensions(200, 24)
    screen.print(board.draw(screen))
    assert len(out.getvalue().splitlines()) <= 24
    assert "1 worker, 250 running" in out.getvalue()
    assert out.getvalue().rstrip().splitlines()[-1].split()[:2] == ["w1", "250"]


def test_a_sparkline_is_full_at_its_highest() -> None:
    assert sparkline([]) == sparkline([0, 0]) == ""
    assert sparkline([0, 1, 4, 8]) == " ▁▄█"
    assert sparkline([0, 1, 1_000_000]) == " ▁█"


# -- prune --------------------------------------------------------------------------


@pytest.fixture
def ended(terminal: Terminal) -> Terminal:
    terminal.store("s1", "s2", "s3", "f1", "open")
    terminal.store("b1", queue="billing")
    terminal.run("s1", "s2", "s3")
    terminal.run("f1", fail="ValueError: no")
    terminal.run("b1", queue="billing")
    return terminal


def test_pruning_by_number_keeps_the_newest_and_the_dead_letters(ended: Terminal) -> None:
    assert ended("prune", "--keep", "1", "--dry-run").out == "would delete 3 tasks\n"
    assert ended("prune", "--keep", "1").status == 2
    assert len(ended.statuses()) == 6
    ran = ended("prune", "--keep", "1", "--yes")
    assert (ran.status, ran.out) == (0, "deleted 3 tasks\n")
    assert set(ended.statuses()) == {"f1", "open", "b1"}
    assert ended("prune", "--keep", "0", "--dead-letters", "--yes").out == "deleted 2 tasks\n"
    assert set(ended.statuses()) == {"open"}


def test_pruning_can_be_narrowed(ended: Terminal) -> None:
    assert (
        ended("prune", "--keep", "0", "--queue", "billing", "--dry-run").out
        == "would delete 1 task\n"
    )
    assert (
        ended("prune", "--keep", "1", "--per", "queue", "--dry-run").out == "would delete 2 tasks\n"
    )
    assert (
        ended("prune", "--keep", "0", "--status", "failed", "--dry-run").out
        == "would delete 1 task\n"
    )
    assert ended("prune", "--older", "1h", "--dry-run").out == "would delete 0 tasks\n"
    assert ended("prune", "--older", "0s", "--yes", "--type", "welcome").out == "deleted 4 tasks\n"


@pytest.mark.parametrize(
    "arguments",
    [(), ("--older", "soon"), ("--keep", "-1"), ("--keep", "x"), ("--keep", "1.5"), ("--keep", "1", "--per", "day")],
)
def test_what_to_prune_has_to_be_said(ended: Terminal, arguments: tuple[str, ...]) -> None:
    ran = ended("prune", *arguments, "--yes")
    assert (ran.status, ran.out) == (2, "")
    assert len(ended.statuses()) == 6
