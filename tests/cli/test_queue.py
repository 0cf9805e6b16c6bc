"""`dispatch queue`."""

from __future__ import annotations

import random
import time
from typing import cast

import pytest

from dispatch.records import NewTask
from dispatch.storage.protocol import Change, WorkerRecord
from dispatch.storage.query import Ids
from tests.cli.terminal import Terminal


@pytest.fixture
def queues(terminal: Terminal) -> Terminal:
    """email: one each of due, held, running and failed, two succeeded; billing: one due; idle."""
    terminal.store("due", "held", "busy", "bad", "good1", "good2")
    terminal.store("later", delay=60.0)
    terminal.store("bill", queue="billing")
    terminal.declare("idle")
    terminal.run("good1", "good2")
    terminal.run("bad", fail="ValueError: no")
    terminal.claim("busy")
    terminal.does(terminal.storage.alter, Ids("held"), Change(action="hold"))
    return terminal


def record(terminal: Terminal, name: str) -> dict[str, object]:
    [found] = [
        each for each in terminal("queue", "ls", "--json").json["queues"] if each["name"] == name
    ]
    return found


def test_queues_are_listed_with_what_waits_runs_and_failed(queues: Terminal) -> None:
    worker = WorkerRecord(id="w1", host="h", pid=1, started_at=0.0, seen_at=0.0, queues=("email",))
    queues.does(queues.storage.beat, worker)
    email = record(queues, "email")
    assert email.keys() == {"name", "paused", "concurrency", "tasks", "oldest_due_s", "workers"}
    assert email["tasks"] == {"due": 1, "later": 1, "running": 1, "held": 1, "failed": 1}
    assert (email["paused"], email["concurrency"], email["workers"]) == (False, None, 1)
    assert [row[:8] for row in queues("queue", "ls").rows] == [
        ["billing", "ok", "", "1", "0", "0", "0", "0"],
        ["email", "ok", "", "1", "1", "1", "1", "1"],
        ["idle", "ok", "", "0", "0", "0", "0", "0"],
    ]
    assert "oldest" in queues("queue", "ls", tty=True).out


@pytest.mark.parametrize("stored", ["in order", "backwards", "at random", "one early"])
def test_the_oldest_is_what_has_been_due_for_longest_whenever_it_was_stored(
    terminal: Terminal, stored: str
) -> None:
    due = [1_000.0 + number for number in range(1, 2_500)]
    if stored == "backwards":
        due.reverse()
    elif stored == "at random":
        random.Random(3).shuffle(due)
    else:
        due[1_200] = 500.5 if stored == "one early" else due[1_200]
    terminal.declare("email")
    new = [
        NewTask(id=f"t{number}", queue="email", type="welcome", payload=b"{}", available_at=moment)
        for number, moment in enumerate(due)
    ]
    terminal.does(terminal.storage.enqueue, new)
    terminal.store("later", delay=60.0)
    oldest_s = record(terminal, "email")["oldest_due_s"]
    assert time.time() - cast("float", oldest_s) == pytest.approx(min(due), abs=0.9)


def test_queues_are_paused_and_resumed(queues: Terminal) -> None:
    ran = queues("queue", "pause", "email", "idle")
    assert (ran.status, ran.out) == (0, "queue email is paused\nqueue idle is paused\n")
    assert record(queues, "email")["paused"] is True
    assert queues("queue", "resume", "email").out == "queue email goes on\n"
    assert record(queues, "email")["paused"] is False


@pytest.mark.parametrize(
    "command",
    [("pause", "emial"), ("resume", "emial"), ("limit", "emial", "2"), ("purge", "emial"), ("rm", "emial")],
)
def test_an_unknown_queue_names_the_nearest_and_nothing_is_done(
    queues: Terminal, command: tuple[str, ...]
) -> None:
    ran = queues("queue", *command)
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == "dispatch: no queue 'emial'; did you mean 'email'?\n"


def test_one_unknown_queue_among_several_changes_none(queues: Terminal) -> None:
    assert queues("queue", "pause", "email", "emial").status == 1
    assert record(queues, "email")["paused"] is False
    assert queues("queue", "pause").err == "dispatch: which queue? Give its name\n"


def test_a_limit_is_set_and_taken_back(queues: Terminal) -> None:
    assert (
        queues("queue", "limit", "email", "3").out == "queue email runs at most 3 in each process\n"
    )
    assert record(queues, "email")["concurrency"] == 3
    assert (
        queues("queue", "limit", "email", "none").out
        == "queue email runs as many as its code says\n"
    )
    assert record(queues, "email")["concurrency"] is None


@pytest.mark.parametrize("limit", ["0", "-1", "1.5", "many", "٣", ""])
def test_a_limit_that_is_none_is_refused(queues: Terminal, limit: str) -> None:
    ran = queues("queue", "limit", "email", "--", limit)
    assert (ran.status, ran.out) == (2, "")
    assert record(queues, "email")["concurrency"] is None


def test_a_purge_deletes_what_waits_and_nothing_else(queues: Terminal) -> None:
    before = queues.statuses()
    assert queues("queue", "purge", "email", "--dry-run").out == "would delete 3 waiting tasks\n"
    assert queues("queue", "purge", "email").status == 2
    assert queues.statuses() == before
    ran = queues("queue", "purge", "email", "--yes")
    assert (ran.status, ran.out) == (0, "deleted 3 waiting tasks\n")
    assert queues.statuses() == {
        name: status for name, status in before.items() if name not in ("due", "later", "held")
    }


def test_a_purge_by_status_takes_that_status_only(queues: Terminal) -> None:
    ran = queues("queue", "purge", "email", "--status", "later", "--status", "failed", "--yes")
    assert ran.out == "deleted 1 waiting task\ndeleted 1 task\n"
    assert set(queues.statuses()) == {"due", "held", "busy", "good1", "good2", "bill"}
    assert (
        queues("queue", "purge", "email", "--status", "succeeded", "--yes").out
        == "deleted 2 tasks\n"
    )
    assert queues("queue", "purge", "email", "--status", "running", "--yes").status == 2


def test_a_number_of_a_thousand_digits_is_no_number(terminal: Terminal) -> None:
    terminal.declare("email")
    ran = terminal("queue", "limit", "email", "9" * 5_000)
    assert ran.status == 2
    assert "limit wants a number from 1" in ran.err


def test_an_unused_queue_is_removed_when_that_was_agreed_to(queues: Terminal) -> None:
    ran = queues("queue", "rm", "idle", "--dry-run")
    assert (ran.status, ran.out) == (0, "would remove queue idle\n")
    ran = queues("queue", "rm", "idle")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == "dispatch: this would remove queue idle; there is no terminal to ask on, so give --yes\n"
    ran = queues("queue", "rm", "idle", stdin="n\n", tty=True)
    assert (ran.status, ran.err) == (1, "Remove queue idle? [y/N] dispatch: nothing was changed\n")
    assert record(queues, "idle")["paused"] is False
    ran = queues("queue", "rm", "idle", stdin="y\n", tty=True)
    assert (ran.status, ran.out) == (0, "queue idle is removed\n")
    ran = queues("queue", "rm", "idle", "--yes")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == "dispatch: no queue 'idle'; there are: billing, email\n"
    queues.declare("idle")
    assert queues("queue", "rm", "idle", "-y").out == "queue idle is removed\n"


@pytest.mark.parametrize("option", ["--dry-run", "--yes", None])
def test_a_queue_in_use_is_refused_before_anybody_is_asked(queues: Terminal, option: str | None) -> None:
    before = queues.statuses()
    ran = queues("queue", "rm", "email", *([] if option is None else [option]))
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == (
        "dispatch: queue 'email' is in use, and stays: cancel the tasks of it that are open, and delete all: "
        "1 failed, 1 held, 1 later, 1 pending, 1 running, 2 succeeded\n"
    )
    assert queues.statuses() == before
    queues("cron", "add", "nightly", "@daily", "idle", "sweep", "{}")
    worker = WorkerRecord(id="w1", host="h", pid=1, started_at=0.0, seen_at=0.0, queues=("idle",))
    queues.does(queues.storage.beat, worker)
    ran = queues("queue", "rm", "idle", *([] if option is None else [option]))
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == (
        "dispatch: queue 'idle' is in use, and stays: stop what consumes it: worker w1; "
        "cancel what publishes into it: cron task nightly\n"
    )


def test_a_queue_is_emptied_and_then_removed(queues: Terminal) -> None:
    assert queues("queue", "purge", "billing", "--yes").status == 0
    assert queues("queue", "rm", "billing", "--yes").out == "queue billing is removed\n"
    assert [row[0] for row in queues("queue", "ls").rows] == ["email", "idle"]
