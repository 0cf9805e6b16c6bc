"""`task ls`, `show` and `watch`."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock  # noqa: TC002 - pytest-trio reads the annotation

from dispatch.cli.app import main
from dispatch.cli.task import watch
from dispatch.records import NewTask, Transition, TransitionKind
from dispatch.storage.opening import open_storage
from dispatch.storage.protocol import QueueRecord, Want
from dispatch.storage.query import All
from dispatch.storage.sqlite import SqliteStorage
from tests.cli.terminal import HOSTILE, Ran, Stream, Terminal

LINE = {
    "id", "queue", "type", "status", "attempt", "max_retry", "priority", "key", "tags", "cron",
    "created_at", "available_at", "started_at", "finished_at", "worker", "last_error",
    "failure_reason",
}  # fmt: skip
WHOLE = LINE | {"version", "headers", "timeout", "cancel_reason", "payload", "result", "progress"}
RUN = {"attempt", "epoch", "outcome", "worker", "started_at", "finished_at", "run_s", "error"}


def test_a_listing_in_a_pipe_is_one_tab_separated_line_per_task_newest_first(
    terminal: Terminal,
) -> None:
    terminal.store("a", "b")
    ran = terminal("task", "ls")
    assert ran.status == 0
    assert [row[:5] for row in ran.rows] == [
        ["b", "email", "welcome", "pending", "0"],
        ["a", "email", "welcome", "pending", "0"],
    ]
    assert [row[0] for row in terminal("task", "ls", "--oldest").rows] == ["a", "b"]


def test_a_priority_of_another_version_is_shown_by_its_number(terminal: Terminal, tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"

    async def store() -> None:
        async with SqliteStorage(path) as storage:
            await storage.declare([QueueRecord(name="email")])
            new = [NewTask(id=each, queue="email", type="welcome", payload=b"{}") for each in ("a", "b")]
            await storage.enqueue(new)

    trio.run(store)
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE dispatch_tasks SET priority = 5 WHERE id = 'b'")

    def ran(*arguments: str) -> Ran:
        shell = attrs.evolve(terminal.shell(), opener=open_storage)
        status = main([*arguments, "--store", f"sqlite:///{path}"], shell)
        assert isinstance(shell.stdout, Stream)
        return Ran(status, shell.stdout.getvalue(), "")

    tasks = ran("task", "ls", "--json").json["tasks"]
    assert [(each["id"], each["priority"]) for each in tasks] == [("b", 5), ("a", "normal")]
    assert ran("task", "show", "b", "--json").json["task"]["priority"] == 5
    assert ["priority", "5"] in ran("task", "show", "b").rows


def test_a_listing_on_a_terminal_is_a_table_with_a_head(terminal: Terminal) -> None:
    terminal.store("a")
    ran = terminal("task", "ls", tty=True)
    assert "last error" in ran.out
    assert "──" in ran.out
    assert "\t" not in ran.out


def test_an_id_stays_in_one_piece_on_an_ordinary_terminal(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    id_ = "01a202d5-469f-77f0-a980-3c2e6f2f5c11"
    terminal.store(id_)
    ran = terminal("task", "ls", tty=True)
    assert id_ in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80


def test_a_listing_as_json_has_the_documented_fields_and_a_cursor(terminal: Terminal) -> None:
    terminal.store("a", "b", "c", tags=("x", "y"), key="k")
    first = terminal("task", "ls", "--json", "--limit", "2").json
    assert first.keys() == {"tasks", "cursor"}
    assert first["tasks"][0].keys() == LINE
    assert first["tasks"][0]["tags"] == ["x", "y"]
    second = terminal("task", "ls", "--json", "--limit", "2", "--after", first["cursor"]).json
    assert [task["id"] for task in first["tasks"] + second["tasks"]] == ["c", "b", "a"]
    assert second["cursor"] is None


def test_filters_are_joined_and_ids_can_be_printed_alone(terminal: Terminal) -> None:
    terminal.store("a", "b", "c")
    terminal.store("d", queue="billing", kind="invoice", tags=("x",), key="k", cron="nightly")
    terminal.run("a", fail="ValueError: no")
    assert terminal("task", "ls", "--ids", "--status", "failed").out == "a\n"
    assert (
        terminal("task", "ls", "--ids", "--status", "failed", "--status", "due").out
        == "d\nc\nb\na\n"
    )
    assert terminal("task", "ls", "--ids", "--queue", "billing", "--status", "failed").out == ""
    for option in (("--type", "invoice"), ("--key", "k"), ("--tag", "x"), ("--cron", "nightly")):
        assert terminal("task", "ls", "--ids", *option).out == "d\n"


@pytest.mark.parametrize("options", [("--queue", "emial"), ("--match", "queue:emial"), ("--match", "-queue:emial")])
@pytest.mark.parametrize("command", [("ls",), ("rm", "--yes"), ("cancel", "--yes"), ("hold",)])
def test_a_mistyped_queue_names_the_nearest(
    terminal: Terminal, command: tuple[str, ...], options: tuple[str, ...]
) -> None:
    terminal.declare("email", "billing")
    terminal("task", "push", "email", "welcome")
    ran = terminal("task", *command, *options)
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == "dispatch: no queue 'emial'; did you mean 'email'?\n"
    assert len(terminal("task", "ls", "--status", "due", "--ids").out.split()) == 1


@pytest.mark.parametrize("options", [("--type", "welcom"), ("--match", "type:welcom"), ("--match", "-type:welcom")])
def test_a_type_that_nothing_has_names_the_nearest(terminal: Terminal, options: tuple[str, ...]) -> None:
    terminal.declare("email")
    assert terminal("task", "ls", *options).err == ""  # nothing is near
    terminal("task", "push", "email", "welcome")
    ran = terminal("task", "ls", "--ids", *options)
    assert (ran.status, ran.err) == (0, "no task of type 'welcom' is stored; did you mean 'welcome'?\n")
    assert len(ran.out.split()) == options[-1].startswith("-")


@pytest.mark.parametrize("limit", ["0", "10001", "-1"])
def test_a_limit_out_of_range_is_refused(terminal: Terminal, limit: str) -> None:
    ran = terminal("task", "ls", f"--limit={limit}")
    assert ran.status == 2
    assert ran.err == f"dispatch: --limit must be within 1 and 10000, got {limit}\n"


@pytest.mark.parametrize("tty", [False, True])
@pytest.mark.parametrize("command", [("task", "ls"), ("task", "show", "a")])
def test_hostile_text_neither_steers_a_terminal_nor_forges_a_line(
    terminal: Terminal, command: tuple[str, ...], tty: bool
) -> None:
    terminal.store(
        "a", payload=json.dumps({"to": HOSTILE}).encode(), headers={"h": HOSTILE}, key=HOSTILE
    )
    before = terminal(*command, tty=tty).out.count("\n")
    terminal.run("a", fail=HOSTILE)
    out = terminal(*command, tty=tty).out
    assert not set(out) & set("\x1b\x07\u202e\x9b\r")
    assert "[bold]b[/bold]" in "".join(out.split())
    if not tty and command == ("task", "ls"):
        assert out.count("\n") == before
    assert not any(line.startswith("forged") for line in out.splitlines())
    assert "\x9b" not in terminal("task", "show", "a", "--json").out


def test_a_task_is_shown_whole_with_its_runs(terminal: Terminal) -> None:
    terminal.store("a", payload=b'{"to": "ada"}', headers={"trace": "1"})
    terminal.run("a", fail="ValueError: no such address")
    shown = terminal("task", "show", "a", "--json").json
    assert shown.keys() == {"task", "waiting_for", "history"}
    assert shown["waiting_for"] == []
    assert shown["task"].keys() == WHOLE
    assert shown["task"]["payload"] == {"to": "ada"}
    assert shown["task"]["failure_reason"] == "exhausted"
    [run] = shown["history"]
    assert run.keys() == RUN
    assert (run["outcome"], run["error"]) == ("failed", "ValueError: no such address")
    plain = terminal("task", "show", "a").out
    assert 'payload\t{"to": "ada"}\n' in plain
    assert "attempt 1: failed after " in plain


def test_a_task_that_waits_says_for_what(terminal: Terminal) -> None:
    terminal.store("first", queue="email")
    terminal.does(terminal.storage.declare, [QueueRecord(name="email", keyed=True)])
    terminal.does(
        terminal.storage.enqueue,
        [NewTask(id=each, queue="email", type="welcome", payload=b"{}", key="ann\n") for each in ("head", "next")],
    )
    terminal.does(terminal.storage.alter_queue, "email", paused=True)
    paused = "queue 'email' being resumed: it is paused; control.resume_queue and `dispatch queue resume email` end that"
    texts = terminal("task", "show", "next").out.splitlines()
    said = [text.removeprefix("waiting for: ") for text in texts if text.startswith("waiting for: ")]
    assert said[:2] == [paused, "a live worker of queue 'email', which nobody consumes"]
    assert said[2].startswith("task head, the head of its key 'ann\\n', which is pending itself, due since ")
    found = terminal("task", "show", "next", "--json").json["waiting_for"]
    assert [(cause["reason"], cause["behind"]) for cause in found] == [
        ("paused", None),
        ("no_worker", None),
        ("key", "head"),
    ]
    assert [cause["text"] for cause in found] == said
    assert texts[-1].startswith("waiting for: ")  # it has no runs

    terminal.does(terminal.storage.alter_queue, "email", paused=False)
    terminal.claim("first")
    assert "waiting for" not in terminal("task", "show", "first").out
    assert terminal("task", "show", "first", "--json").json["waiting_for"] == []


def test_a_payload_that_is_no_json_is_shown_with_the_reason(terminal: Terminal) -> None:
    terminal.store("a", payload=b"\xff{")
    found = terminal("task", "show", "a", "--json").json["task"]["payload"]["undecodable"]
    assert found.keys() == {"text", "reason"}


def test_an_unknown_task_names_the_nearest(terminal: Terminal) -> None:
    terminal.store("order-1001", "order-2002")
    ran = terminal("task", "show", "order-1002")
    assert ran.status == 1
    assert ran.err == "dispatch: no task 'order-1002'; did you mean 'order-2002'?\n"
    assert (
        terminal("task", "show", "zzz").err == "dispatch: no task 'zzz'; it may have been pruned\n"
    )


def test_watching_ended_tasks_ends_at_once_with_their_outcome(terminal: Terminal) -> None:
    terminal.store("a", "b")
    terminal.run("a")
    terminal.run("b", fail="ValueError: no")
    assert terminal("task", "watch", "a").status == 0
    ran = terminal("task", "watch", "a", "b", "--json")
    assert ran.status == 1
    assert [json.loads(line)["status"] for line in ran.out.splitlines()] == ["succeeded", "failed"]
    ran = terminal("task", "watch", "-", "gone", stdin="a\tsome\n\n")
    assert (ran.status, ran.err) == (1, "no task 'gone'; it may have been pruned\n")
    assert terminal("task", "watch").status == 2


async def test_watching_tells_each_change_until_the_end(
    terminal: Terminal, autojump_clock: MockClock
) -> None:
    storage = terminal.storage
    await storage.declare([QueueRecord(name="email")])
    await storage.enqueue(
        [NewTask(id="a", queue="email", type="welcome", payload=b"{}", delay=5.0)]
    )
    shell = terminal.shell()
    status: list[int] = []

    async def look() -> None:
        status.append(await watch("a", store="memory:", shell=shell))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await trio.sleep(10)
        claimed = await storage.claim([Want(queue="email", limit=1)], worker="w", lease=30.0)
        [claim] = claimed.claims
        await storage.progress((claim.id, claim.epoch), b'{"fraction": 0.5, "message": "half"}')
        await trio.sleep(10)
        await storage.settle([Transition(claim.id, claim.epoch, TransitionKind.DONE)])
    assert status == [0]
    assert isinstance(shell.stdout, Stream)
    assert shell.stdout.getvalue().splitlines() == [
        "a  pending  attempt 0",
        "a  running  attempt 1  50% half",
        "a  succeeded  attempt 1",
    ]


async def test_a_cancelled_watch_leaves_the_task_alone(
    terminal: Terminal, autojump_clock: MockClock
) -> None:
    await terminal.storage.declare([QueueRecord(name="email")])
    await terminal.storage.enqueue([NewTask(id="a", queue="email", type="t", payload=b"{}")])
    with trio.move_on_after(3) as scope:
        await watch("a", store="memory:", shell=terminal.shell())
    assert scope.cancelled_caught
    [record] = (await terminal.storage.find(All())).records
    assert record.status.value == "pending"
