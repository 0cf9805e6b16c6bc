"""`task edit`."""

from __future__ import annotations

from typing import Any

import pytest

from dispatch.cli import task_edit
from dispatch.storage.protocol import Change
from dispatch.storage.query import Ids
from tests.cli.terminal import HOSTILE, Terminal


@pytest.fixture
def tasks(terminal: Terminal) -> Terminal:
    """One of each kind; what waits has fields of its own."""
    terminal.store("dead", "good", "busy", "waiting", tags=("old",), headers={"a": "b"}, timeout=5.0, max_retry=3)
    terminal.run("dead", fail="ValueError: no")
    terminal.run("good")
    terminal.claim("busy")
    return terminal


def record(terminal: Terminal, task_id: str) -> Any:
    [found] = terminal.does(terminal.storage.find, Ids(task_id), limit=1).records
    return found


def test_what_is_given_is_changed_and_the_rest_stays(tasks: Terminal) -> None:
    before = record(tasks, "waiting")
    ran = tasks("task", "edit", "waiting", "--payload", '{"to":"ada"}', "--priority", "high")
    assert (ran.status, ran.out, ran.err) == (0, "edited 1 task\n", "")
    after = record(tasks, "waiting")
    assert (after.payload, after.priority) == (b'{"to":"ada"}', 2)
    assert (after.tags, dict(after.headers), after.timeout, after.max_retry) == (("old",), {"a": "b"}, 5.0, 3)
    assert (after.available_at, after.version) == (before.available_at, before.version)


def test_every_field_that_can_be_edited_is(tasks: Terminal) -> None:
    ran = tasks(
        "task", "edit", "waiting", "--timeout", "1m", "--max-retry", "7",
        "--tag", "x", "--tag", "y", "--header", "k=v=w", "--delay", "1h",
    )  # fmt: skip
    assert (ran.status, ran.out) == (0, "edited 1 task\n")
    after = record(tasks, "waiting")
    assert (after.timeout, after.max_retry, after.tags, dict(after.headers)) == (60.0, 7, ("x", "y"), {"k": "v=w"})
    in_s = after.available_at - tasks.storage.now()
    assert 3_500 < in_s <= 3_600


def test_fields_are_given_back_and_taken_away(tasks: Terminal) -> None:
    ran = tasks("task", "edit", "waiting", "--timeout", "none", "--max-retry", "none", "--no-tags", "--no-headers")
    assert (ran.status, ran.out) == (0, "edited 1 task\n")
    after = record(tasks, "waiting")
    assert (after.timeout, after.max_retry, after.tags, dict(after.headers)) == (None, None, (), {})


def test_a_payload_comes_from_standard_input(tasks: Terminal) -> None:
    assert tasks("task", "edit", "waiting", "--payload", "-", stdin='{"to":"bob"}').status == 0
    assert record(tasks, "waiting").payload == b'{"to":"bob"}'


def test_the_same_again_changes_nothing(tasks: Terminal) -> None:
    assert tasks("task", "edit", "waiting", "--tag", "x").status == 0
    ran = tasks("task", "edit", "waiting", "--tag", "x")
    assert (ran.status, ran.out, ran.err) == (0, "edited 0 tasks\n", "task waiting was so already\n")


def test_a_dead_letter_is_edited_and_run_again(tasks: Terminal) -> None:
    assert tasks("task", "edit", "dead", "--payload", '{"to":"ada"}').status == 0
    assert tasks.statuses()["dead"] == "failed"
    ran = tasks("task", "edit", "dead", "--priority", "2", "--rerun")
    assert (ran.status, ran.out, ran.err) == (0, "edited 1 task\nretried 1 task\n", "")
    assert tasks.statuses()["dead"] == "pending"
    assert (record(tasks, "dead").payload, record(tasks, "dead").priority) == (b'{"to":"ada"}', 2)


def test_a_dead_letter_that_needs_no_edit_any_more_is_run_again(tasks: Terminal) -> None:
    ran = tasks("task", "edit", "dead", "--tag", "old", "--rerun")
    assert (ran.status, ran.out) == (0, "edited 0 tasks\nretried 1 task\n")


def test_what_somebody_else_ran_meanwhile_is_not_run_again(tasks: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    check = task_edit._check  # pyright: ignore[reportPrivateUsage]

    async def checked(opened: Any, task_id: str, **options: Any) -> None:
        await check(opened, task_id, **options)
        await opened.storage.alter(Ids(task_id), Change(action="rerun"))

    monkeypatch.setattr(task_edit, "_check", checked)
    ran = tasks("task", "edit", "dead", "--tag", "x", "--rerun")
    assert (ran.status, ran.out) == (1, "edited 1 task\n")
    assert ran.err == "task dead is no dead letter any more, and was not retried\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("wating", "--tag", "x"), "no task 'wating'; did you mean 'waiting'?"),
        (("good", "--tag", "x"), "task good is succeeded; what has succeeded or was cancelled is not edited"),
        (("good", "--tag", "x", "--rerun"), "task good is succeeded; what has succeeded or was cancelled is not edited"),
        (("busy", "--tag", "x", "--rerun"), "task busy is running; --rerun is for a dead letter; leave it out"),
        (("busy", "--tag", "x", "--delay", "5s"), "task busy is running; only a waiting task has a --delay; leave it out"),
        (("dead", "--delay", "5s"), "task dead is failed; only a waiting task has a --delay; leave it out"),
    ],
)
def test_what_cannot_be_edited_is_told_and_nothing_is_changed(
    tasks: Terminal, arguments: tuple[str, ...], said: str
) -> None:
    ran = tasks("task", "edit", *arguments)
    assert (ran.status, ran.out, ran.err) == (1, "", f"dispatch: {said}\n")
    assert {record(tasks, task_id).tags for task_id in tasks.statuses()} == {("old",)}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing to change; give what to, such as --priority high"),
        (("--rerun",), "nothing to change; give what to; `dispatch task retry` runs it again as it is"),
        (("--rerun", "--delay", "5s"), "give either --rerun, which runs it at once, or --delay, not both"),
        (("--payload", "[1]"), "payload must be a JSON object, got '[1]'"),
        (("--payload", "{"), "payload: "),
        (("--priority", "hihg"), "no priority 'hihg'; did you mean 'high'?"),
        (("--timeout", "soon"), "--timeout wants a duration such as 90s, 15m, 1h30m or 7d, got 'soon'"),
        (("--timeout", "0"), "timeout must be"),
        (("--max-retry", "1.5"), "--max-retry wants a whole number or none, got '1.5'"),
        (("--max-retry", "99999999999"), "max_retry must be"),
        (("--delay", "11000w"), "--delay must be at most"),
        (("--header", "a"), "--header wants NAME=VALUE, got 'a'"),
        (("--tag", ""), "tag"),
        (("--tga", "x"), "--tga"),
        (("--tag", "x", "--no-tags"), "give either --tag or --no-tags, not both"),
        (("--no-headers", "--header", "a=b"), "give either --header or --no-headers, not both"),
    ],
)
def test_a_wrong_edit_is_explained_and_nothing_is_changed(
    tasks: Terminal, arguments: tuple[str, ...], said: str
) -> None:
    before = record(tasks, "waiting")
    ran = tasks("task", "edit", "waiting", *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert said in ran.err
    assert record(tasks, "waiting") == before


def test_a_payload_beyond_the_limit_is_refused(tasks: Terminal) -> None:
    ran = tasks("task", "edit", "waiting", "--payload", "-", stdin=f'{{"to":"{"x" * 300_000}"}}')
    assert (ran.status, ran.out) == (2, "")
    assert "262144" in ran.err


@pytest.mark.parametrize("option", ["--payload", "--priority", "--timeout", "--max-retry", "--delay", "--header"])
def test_hostile_words_are_escaped(tasks: Terminal, option: str) -> None:
    ran = tasks("task", "edit", "waiting", option, HOSTILE)
    assert ran.status == 2
    assert not set("\x1b\x07\u202e\x9b") & set(ran.err)
    assert "forged" not in ran.err.splitlines()
