"""`task retry`, `hold`, `resume`, `cancel` and `rm`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from dispatch import MemoryStorage
from dispatch.cli.shell import Shell
from dispatch.clock import Clock
from dispatch.storage.protocol import Change
from dispatch.storage.query import All, Ids
from tests.cli.terminal import HOSTILE, Terminal


@pytest.fixture
def mixed(terminal: Terminal) -> Terminal:
    """Two dead letters, one success, one waiting, one running; and a dead letter of another queue."""
    terminal.store("bad1", "bad2", "good", "waiting", "busy")
    terminal.store("other", queue="billing")
    terminal.run("bad1", "bad2", fail="ValueError: no")
    terminal.run("other", queue="billing", fail="ValueError: no")
    terminal.run("good")
    terminal.claim("busy")
    return terminal


def test_named_tasks_are_retried(mixed: Terminal) -> None:
    ran = mixed("task", "retry", "bad1", "good")
    assert (ran.status, ran.out, ran.err) == (0, "retried 2 tasks\n", "")
    assert mixed.statuses()["bad1"] == mixed.statuses()["good"] == "pending"


def test_waiting_tasks_are_held_and_resumed(mixed: Terminal) -> None:
    ran = mixed("task", "hold", "waiting", "busy")
    assert (ran.status, ran.out) == (1, "held 1 task\n")
    assert ran.err == "task busy is running; only a waiting task can be held\n"
    assert mixed.statuses()["waiting"] == "held"
    ran = mixed("task", "retry", "waiting")
    assert (ran.status, ran.err) == (1, "task waiting is held; `dispatch task resume` lets it go on\n")
    ran = mixed("task", "resume", "waiting", "bad1")
    assert (ran.status, ran.out) == (1, "resumed 1 task\n")
    assert ran.err == "task bad1 is failed; only a held task can be resumed\n"
    assert mixed.statuses()["waiting"] == "pending"


def test_by_filter_what_waits_is_held_and_what_is_held_resumed(mixed: Terminal) -> None:
    mixed.store("second", queue="billing")
    assert mixed("task", "hold", "--queue", "email", "--dry-run").out == "would hold 1 task\n"
    assert mixed("task", "hold", "--queue", "email").out == "held 1 task\n"
    assert (mixed.statuses()["waiting"], mixed.statuses()["second"]) == ("held", "pending")
    assert mixed("task", "resume", "--queue", "billing").out == "resumed 0 tasks\n"
    assert mixed("task", "resume", "--queue", "email", "--dry-run").out == "would resume 1 task\n"
    assert mixed("task", "resume", "--queue", "email").out == "resumed 1 task\n"
    assert mixed.statuses()["waiting"] == "pending"


def test_what_cannot_be_retried_is_told_and_the_rest_is_done(mixed: Terminal) -> None:
    ran = mixed("task", "retry", "bad1", "busy", "bad3")
    assert (ran.status, ran.out) == (1, "retried 1 task\n")
    assert ran.err.splitlines() == [
        "task busy is running; only ended tasks can be retried",
        "no task 'bad3'; did you mean 'bad2'?",
    ]


def test_ids_come_from_standard_input_the_first_word_of_each_line(mixed: Terminal) -> None:
    listed = mixed("task", "ls", "--status", "failed").out
    ran = mixed("task", "retry", "-", stdin=f"\n{listed}\n")
    assert (ran.status, ran.out) == (0, "retried 3 tasks\n")
    assert mixed("task", "retry", "-", stdin="").out == "retried 0 tasks\n"


def test_by_filter_the_dead_letters_are_retried(mixed: Terminal) -> None:
    assert mixed("task", "retry", "--queue", "email", "--dry-run").out == "would retry 2 tasks\n"
    assert mixed.statuses()["bad1"] == "failed"
    assert mixed("task", "retry", "--queue", "email").out == "retried 2 tasks\n"
    assert mixed.statuses() == {
        "bad1": "pending",
        "bad2": "pending",
        "good": "succeeded",
        "waiting": "pending",
        "busy": "running",
        "other": "failed",
    }
    assert mixed("task", "retry", "--status", "succeeded").out == "retried 1 task\n"


def test_tasks_are_meant_by_the_words_of_a_search(mixed: Terminal) -> None:
    mixed.store("late", "shot", tags=("vip",))
    mixed.run("late", "shot", fail="TimeoutError: no answer within 5 s")
    mixed.claim("waiting")
    search = 'error:"no answer" finished:1h'
    assert mixed("task", "ls", "--match", search, "--ids").out.split() == ["shot", "late"]
    assert mixed("task", "ls", "--match", "error:E", "--queue", "billing", "--ids").out.split() == ["other"]
    assert mixed("task", "retry", "--match", f"{search} -id:shot").out == "retried 1 task\n"
    assert mixed("task", "retry", "--match", "-tag:vip", "--dry-run").out == "would retry 3 tasks\n"
    assert mixed("task", "rm", "--match", "finished:1s", "--dry-run").out == "would delete 5 tasks\n"
    assert mixed.statuses()["late"] == "pending"


@pytest.mark.parametrize("command", ["ls", "retry", "hold", "resume", "cancel", "rm"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("finished:soon", "--match: finished: how long ago at most, such as 90s, 15m, 6h or 2d; got 'soon'"),
        ("status:failed", "--match: no filter is named 'status'; there are attempt, created, cron, error, "),
        ('error:"no', '--match: error:"no: its quote is not closed'),
    ],
)
def test_words_that_cannot_be_read_change_nothing(mixed: Terminal, command: str, words: str, said: str) -> None:
    before = mixed.statuses()
    ran = mixed("task", command, "--match", words)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith(f"dispatch: {said}")
    assert mixed.statuses() == before


def test_a_bulk_change_takes_more_than_one_step(terminal: Terminal) -> None:
    ids = [f"t{number:04}" for number in range(1_201)]
    terminal.store(*ids)
    assert terminal("task", "cancel", "--queue", "email", "--yes").out == "cancelled 1,201 tasks\n"
    assert terminal("task", "retry", "--status", "cancelled").out == "retried 1,201 tasks\n"
    assert terminal("task", "cancel", "-", stdin="\n".join(ids)).out == "cancelled 1,201 tasks\n"
    assert terminal("task", "rm", "--type", "welcome", "--yes").out == "deleted 1,201 tasks\n"
    assert not terminal.statuses()


@pytest.mark.parametrize("command", ["retry", "cancel", "rm"])
def test_which_tasks_are_meant_has_to_be_said_and_once(mixed: Terminal, command: str) -> None:
    before = mixed.statuses()
    ran = mixed("task", command)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("dispatch: which tasks? Give ids, - to read them")
    ran = mixed("task", command, "bad1", "--queue", "email")
    assert (ran.status, ran.err) == (2, "dispatch: give either ids or filters, not both\n")
    assert mixed.statuses() == before


@pytest.mark.parametrize("words", [
    ("retry", "bad1", "--dry-rnu"),
    ("retry", "--queue", "email", "--yes"),
    ("retry", "-x"),
    ("cancel", "waiting", "-f"),
    ("rm", "--status", "failed", "--force"),
    ("watch", "good", "-f"),
])
def test_an_option_that_is_none_is_no_task_id(mixed: Terminal, words: tuple[str, ...]) -> None:
    before = mixed.statuses()
    ran = mixed("task", *words)
    assert (ran.status, ran.err) == (2, f"dispatch: unknown option {words[-1]!r}. Try --help\n")
    assert mixed.statuses() == before


def test_an_id_that_begins_with_a_hyphen_comes_from_standard_input(mixed: Terminal) -> None:
    mixed.store("-x")
    mixed.run("-x", fail="ValueError: no")
    assert mixed("task", "retry", "-", stdin="-x\n").out == "retried 1 task\n"


def test_a_hostile_id_is_told_safely(mixed: Terminal) -> None:
    ran = mixed("task", "retry", HOSTILE, "-", stdin="\x1b[2J\n" + "x" * 200)
    assert ran.status == 2
    assert "is no task id" in ran.err
    ran = mixed("task", "retry", HOSTILE, "-", stdin="\x1b[2J\n")
    assert ran.status == 1
    assert "\x1b" not in ran.err
    assert len(ran.err.splitlines()) == 2


def test_waiting_and_held_tasks_are_cancelled_and_running_ones_asked(mixed: Terminal) -> None:
    ran = mixed("task", "cancel", "waiting", "busy", "--reason", "a mistake")
    assert (ran.status, ran.out) == (0, "cancelled 2 tasks\n")
    assert mixed.statuses()["waiting"] == "cancelled"
    assert mixed("task", "show", "busy", "--json").json["task"]["cancel_reason"] == "a mistake"
    ran = mixed("task", "cancel", "busy", "good")
    assert ran.status == 1
    assert ran.err.splitlines() == [
        "task busy was asked to stop already",
        "task good is succeeded; it has ended",
    ]


def test_without_a_terminal_a_bulk_cancel_is_refused_unless_agreed(mixed: Terminal) -> None:
    ran = mixed("task", "cancel", "--queue", "email")
    assert (ran.status, ran.out) == (2, "")
    assert (
        ran.err
        == "dispatch: this would cancel 2 tasks; there is no terminal to ask on, so give --yes\n"
    )
    assert mixed.statuses()["waiting"] == "pending"
    assert mixed("task", "cancel", "--queue", "email", "--yes").out == "cancelled 2 tasks\n"


@pytest.mark.parametrize("answer", ["\n", "n\n", "", "yess\n"])
def test_on_a_terminal_a_no_changes_nothing(mixed: Terminal, answer: str) -> None:
    ran = mixed("task", "rm", "good", stdin=answer, tty=True)
    assert ran.status == 1
    assert ran.err == "Delete 1 task? [y/N] dispatch: nothing was changed\n"
    assert "good" in mixed.statuses()


def test_on_a_terminal_a_yes_goes_on(mixed: Terminal) -> None:
    ran = mixed("task", "rm", "good", stdin="Y\n", tty=True)
    assert (ran.status, ran.out) == (0, "deleted 1 task\n")
    assert "good" not in mixed.statuses()


def test_ids_from_standard_input_cannot_be_agreed_to_there(mixed: Terminal) -> None:
    ran = mixed("task", "rm", "-", stdin="good\ny\n")
    assert ran.status == 2
    assert "good" in mixed.statuses()


def test_only_ended_tasks_are_deleted(mixed: Terminal) -> None:
    ran = mixed("task", "rm", "bad1", "waiting", "busy", "goop", "--yes")
    assert (ran.status, ran.out) == (1, "deleted 1 task\n")
    assert ran.err.splitlines() == [
        "task waiting is pending; cancel it first",
        "task busy is running; cancel it first",
        "no task 'goop'; did you mean 'good'?",
    ]
    assert mixed("task", "rm", "--queue", "email", "--dry-run").out == "would delete 2 tasks\n"
    assert mixed("task", "rm", "--queue", "email", "--yes").out == "deleted 2 tasks\n"
    assert mixed.statuses() == {"waiting": "pending", "busy": "running", "other": "failed"}


def test_many_reasons_are_cut_short(terminal: Terminal) -> None:
    terminal.declare("email")
    ran = terminal("task", "retry", *(f"unknown-{number}" for number in range(30)))
    assert ran.status == 1
    assert ran.err.splitlines()[-1] == "and 10 more"
    assert not terminal.does(terminal.storage.count, All())


def while_somebody_thinks(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None]) -> None:
    def confirm(self: Shell, what: str, *, yes: bool) -> None:
        time.sleep(0.01)
        thread = threading.Thread(target=happens)  # a trio run of its own
        thread.start()
        thread.join()

    monkeypatch.setattr(Shell, "confirm", confirm)


@pytest.mark.parametrize("command", [("task", "rm", "--queue", "email"), ("prune", "--keep", "0", "--dead-letters")])
def test_no_more_is_deleted_than_was_agreed_to(
    mixed: Terminal, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work_goes_on() -> None:
        mixed.store("late")
        mixed.run("late", fail="ValueError: no")

    while_somebody_thinks(monkeypatch, work_goes_on)
    assert mixed(*command, tty=True).status == 0
    assert (mixed.statuses()["late"], "bad1" in mixed.statuses()) == ("failed", False)


class Wall:
    """A wall clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.moment = 1_800_000_000.0

    def __call__(self) -> float:
        return self.moment


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        (("--older", "2.5s"), "b0 s0 s1"),
        (("--older", "2.5s", "--keep", "2"), "b0 s0 s1 s2"),
        (("--older", "2.5s", "--keep", "5"), "b0 s0 s1"),
        (("--older", "2.5s", "--keep", "1", "--per", "queue"), "b0 s0 s1 s2 s3"),
        (("--keep", "2",), "b0 s0 s1 s2"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("thinks_s", [0.0, 2.0, 60.0])
def test_what_grows_old_while_somebody_thinks_is_not_deleted(
    terminal: Terminal,
    options: tuple[str, ...],
    gone: str,
    thinks_s: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wall = Wall()
    terminal.storage = MemoryStorage(Clock(wall=wall))
    terminal.store("b0", queue="billing")
    terminal.run("b0", queue="billing")
    for number in range(5):
        terminal.store(f"s{number}")
        terminal.run(f"s{number}")
        wall.moment += 1.0
    wall.moment -= 1.0

    def time_passes() -> None:
        wall.moment += thinks_s

    said = f"{len(gone.split())} tasks"
    before = terminal.statuses().keys()
    assert terminal("prune", *options, "--dry-run").out == f"would delete {said}\n"
    while_somebody_thinks(monkeypatch, time_passes)
    assert terminal("prune", *options).out == f"deleted {said}\n"
    assert before - terminal.statuses().keys() == set(gone.split())


def test_what_ends_by_a_clock_that_is_behind_makes_no_more_to_delete(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = Wall()
    terminal.storage = MemoryStorage(Clock(wall=wall))
    terminal.store("a", "b")
    terminal.run("a", "b")

    def another_ends() -> None:
        wall.moment -= 60.0
        terminal.store("late")
        terminal.run("late")

    while_somebody_thinks(monkeypatch, another_ends)
    assert terminal("prune", "--keep", "0").out == "deleted 2 tasks\n"
    assert len(terminal.statuses()) == 1


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("task", "cancel", "--queue", "email"), "cancelled 2 tasks\n"),
        (("queue", "purge", "email"), "deleted 1 waiting task\n"),
    ],
)
def test_no_more_is_cancelled_or_purged_than_was_agreed_to(
    mixed: Terminal, command: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def others_wait_again() -> None:
        mixed.does(mixed.storage.alter, Ids("bad1", "bad2", "good"), Change(action="rerun"))

    while_somebody_thinks(monkeypatch, others_wait_again)
    assert mixed(*command).out == said
