"""`task push`: raw payloads, one or a file of them."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from dispatch.records import TaskRecord
from dispatch.storage.query import All
from tests.cli.terminal import HOSTILE, Terminal


@pytest.fixture
def ready(terminal: Terminal) -> Terminal:
    terminal.declare("email", "billing")
    return terminal


def records(terminal: Terminal) -> list[TaskRecord]:
    return terminal.does(terminal.storage.find, All()).records


def test_a_pushed_task_is_stored_as_it_was_written(ready: Terminal) -> None:
    ran = ready("task", "push", "email", "welcome", '{"to": "adä", "n": [1, null]}')
    assert (ran.status, ran.err) == (0, "")
    [record] = records(ready)
    assert ran.out == f"{record.id}\n"
    assert (record.queue, record.type) == ("email", "welcome")
    assert json.loads(record.payload) == {"to": "adä", "n": [1, None]}
    assert record.version == 1


def test_every_field_can_be_given(ready: Terminal) -> None:
    options = [
        "--id",
        "mine",
        "--key",
        "k",
        "--delay",
        "1h30m",
        "--priority",
        "high",
        "--timeout",
        "90s",
        "--max-retry",
        "3",
    ]
    more = [
        "--header",
        "a=b=c",
        "--header",
        "d=",
        "--tag",
        "x",
        "--tag",
        "y",
        "--payload-version",
        "2",
    ]
    assert ready("task", "push", "email", "welcome", *options, *more).out == "mine\n"
    [record] = records(ready)
    assert (record.id, record.key, record.priority, record.timeout) == ("mine", "k", 2, 90.0)
    assert (record.max_retry, dict(record.headers)) == (3, {"a": "b=c", "d": ""})
    assert (record.tags, record.version, record.payload) == (("x", "y"), 2, b"{}")
    assert record.available_at - record.created_at == pytest.approx(5_400)
    again = ready("task", "push", "email", "welcome", '{"other": 1}', "--id", "mine")
    assert (again.status, again.out) == (0, "mine\n")
    assert again.err == "a task of this id is stored already and was left as it is\n"


def test_a_moment_can_be_given(ready: Terminal) -> None:
    assert ready("task", "push", "email", "t", "--at", "2100-01-01T00:00:00+01:00").status == 0
    assert records(ready)[0].available_at == 4102441200.0


def test_a_payload_comes_from_standard_input(ready: Terminal) -> None:
    assert ready("task", "push", "email", "welcome", "-", stdin='{"to": "ada"}\n').status == 0
    assert records(ready)[0].payload == b'{"to":"ada"}'


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        ('{"a": 1', "payload: it is not JSON"),
        ("[]", "payload must be a JSON object, got '[]'"),
        ("", "payload: it is empty, wanted JSON"),
        ('{"a": NaN}', "payload: it is not JSON: NaN is no JSON number"),
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
        ('{"a": "\\u0000"}', "NUL"),
        (json.dumps({"a": "x" * 300_000}), "at most 262144 are stored"),
        ('{"a":' * 40 + "1" + "}" * 40, "payload: it is nested deeper"),
    ],
)
def test_a_payload_that_no_handler_could_read_is_refused(
    ready: Terminal, payload: str, why: str
) -> None:
    ran = ready("task", "push", "email", "welcome", payload)
    assert (ran.status, ran.out) == (2, "")
    assert why in ran.err
    assert len(ran.err) < 500
    assert not records(ready)


def test_bytes_that_are_no_text_are_refused(ready: Terminal) -> None:
    ran = ready("task", "push", "email", "welcome", "-", stdin='{"a": "\udc80"}')
    assert (ran.status, ran.err) == (
        2,
        "dispatch: payload: it is not UTF-8: invalid start byte at byte 7\n",
    )
    ran = ready("task", "cancel", "a", "--reason", "\udc80")
    assert (ran.status, ran.err) == (2, "dispatch: an argument is not UTF-8: '\\udc80'\n")
    ran = ready("task", "cancel", "-", stdin="a\n\udc80\n")
    assert (ran.status, ran.err) == (
        2,
        "dispatch: line 2 of standard input is not UTF-8: '\\udc80'\n",
    )
    line = json.dumps(GOOD).replace("ada", "\udc80")
    assert ready("task", "push", "--file", "-", stdin=line).status == 1
    assert not records(ready)


@pytest.mark.parametrize(
    "options",
    [
        ("--delay", "1 hour"),
        ("--delay", "-1s"),
        ("--delay", "9999999d"),
        ("--at", "tomorrow"),
        ("--at", "2100-01-01T00:00:00"),
        ("--delay", "1s", "--at", "2100-01-01T00:00:00Z"),
        ("--header", "novalue"),
        ("--priority", "urgent"),
        ("--max-retry", "-1"),
        ("--max-retry", "x"),
        ("--timeout", "0s"),
        ("--id", "a b"),
        ("--payload-version", "0"),
        ("--key", "x" * 5_000),
        ("--tag", ""),
    ],
)
def test_a_field_that_makes_no_sense_is_refused(ready: Terminal, options: tuple[str, ...]) -> None:
    ran = ready("task", "push", "email", "welcome", *options)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("dispatch: ")
    assert not records(ready)


def test_an_unknown_queue_names_the_nearest_and_an_empty_store_says_so(terminal: Terminal) -> None:
    assert terminal("task", "push", "email", "t").err == (
        "dispatch: no queue 'email'; none is registered in this store\n"
    )
    terminal.declare("email", "billing")
    ran = terminal("task", "push", "emial", "t")
    assert (ran.status, ran.err) == (1, "dispatch: no queue 'emial'; did you mean 'email'?\n")
    assert (
        terminal("task", "push", "zzz", "t").err
        == "dispatch: no queue 'zzz'; there are: billing, email\n"
    )


def test_a_type_nearly_like_one_that_is_stored_is_told_and_published(ready: Terminal) -> None:
    assert ready("task", "push", "email", "welcome").err == ""
    for options in (("--dry-run",), ()):
        ran = ready("task", "push", "email", "welcom", *options)
        assert (ran.status, ran.err) == (0, "no task of type 'welcom' is stored; did you mean 'welcome'?\n")
    assert ready("task", "push", "billing", "welcme").err == ""  # of another queue
    assert ready("task", "push", "email", "invoice").err == ""
    assert [record.type for record in records(ready)] == ["welcome", "welcom", "welcme", "invoice"]


def test_a_dry_run_checks_and_stores_nothing(ready: Terminal) -> None:
    assert (
        ready("task", "push", "email", "t", "--dry-run").out == "would publish 1 task to email/t\n"
    )
    assert ready("task", "push", "email", "bad type", "--dry-run").status == 2
    assert not records(ready)


def lines(*objects: object) -> str:
    return "".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in objects)


GOOD = {"queue": "email", "type": "welcome", "payload": {"to": "ada"}}


def test_a_file_of_lines_is_published_and_can_be_published_again(
    ready: Terminal, tmp_path: Path
) -> None:
    file = tmp_path / "tasks.jsonl"
    named = [GOOD | {"id": f"t{number}"} for number in range(1_100)]
    file.write_text(lines(*named), encoding="utf-8")
    assert (
        ready("task", "push", "--file", str(file), "--dry-run").out == "would publish 1,100 tasks\n"
    )
    assert not records(ready)
    assert ready("task", "push", "--file", str(file)).out == "published 1,100 tasks\n"
    ran = ready("task", "push", "--file", str(file))
    assert (ran.status, ran.out) == (0, "published 0 tasks, 1,100 stored already\n")


def test_a_line_says_everything_that_the_options_say(ready: Terminal) -> None:
    given = GOOD | {
        "id": "a", "key": "k", "delay": 60, "priority": "low", "timeout": 5, "max_retry": 0,
        "headers": {"a": "b"}, "tags": ["x"], "version": 3,
    }  # fmt: skip
    later = GOOD | {"at": "2100-01-01T00:00:00Z", "priority": 3}
    assert (
        ready("task", "push", "--file", "-", stdin=lines(given, "", later)).out
        == "published 2 tasks\n"
    )
    [first, second] = records(ready)
    assert (first.key, first.priority, first.timeout, first.max_retry) == ("k", 0, 5, 0)
    assert (dict(first.headers), first.tags, first.version) == ({"a": "b"}, ("x",), 3)
    assert first.available_at - first.created_at == pytest.approx(60)
    assert (second.available_at, second.priority) == (4102444800.0, 3)


def test_bad_lines_are_told_with_their_numbers_and_skipped(ready: Terminal) -> None:
    bad: list[object] = [
        "{",
        "[]",
        {"queue": "email", "type": "welcome"},
        GOOD | {"payload": []},
        GOOD | {"queue": "emial"},
        GOOD | {"prioritty": 1},
        GOOD | {"priority": "urgent"},
        GOOD | {"delay": "soon"},
        GOOD | {"at": "soon"},
        GOOD | {"type": HOSTILE},
        GOOD | {"queue": 4},
        GOOD | {"tags": "xyz"},
        GOOD | {"version": "one"},
        GOOD | {"headers": [1]},
        GOOD | {"max_retry": True},
    ]
    ran = ready("task", "push", "--file", "-", stdin=lines(GOOD, *bad, GOOD))
    assert ran.status == 1
    assert ran.out == f"published 2 tasks, skipped {len(bad)} bad lines\n"
    told = ran.err.splitlines()
    assert [line.partition(":")[0] for line in told] == [
        f"line {number}" for number in range(2, len(bad) + 2)
    ]
    assert "payload is missing" in told[2]
    assert "did you mean 'email'?" in told[4]
    assert "did you mean 'priority'?" in told[5]
    assert "\x1b" not in ran.err
    assert len(records(ready)) == 2


def test_many_bad_lines_are_counted(ready: Terminal) -> None:
    ran = ready("task", "push", "--file", "-", stdin="{\n" * 1_000)
    assert ran.out == "published 0 tasks, skipped 1,000 bad lines\n"
    assert ran.err.splitlines()[-1] == "and 980 more bad lines"
    assert len(ran.err.splitlines()) == 21


def test_a_file_is_given_alone_and_must_be_there(ready: Terminal, tmp_path: Path) -> None:
    assert ready("task", "push", "email", "--file", "-").status == 2
    assert ready("task", "push", "--file", "-", "--tag", "x").status == 2
    ran = ready("task", "push", "--file", str(tmp_path / "none"))
    assert (ran.status, ran.err) == (
        1,
        f"dispatch: {tmp_path / 'none'}: No such file or directory\n",
    )
    assert (
        ready("task", "push", "email").err
        == "dispatch: push wants QUEUE TYPE [PAYLOAD], or --file\n"
    )


def test_a_full_queue_that_raises_says_so(terminal: Terminal) -> None:
    terminal.declare("email", max_waiting=1, overflow="raise")
    assert terminal("task", "push", "email", "t").status == 0
    ran = terminal("task", "push", "email", "t")
    assert ran.status == 1
    assert ran.err.startswith("dispatch: queue 'email' is full")
    ran = terminal("task", "push", "--file", "-", stdin=lines(GOOD))
    assert (ran.status, ran.out) == (1, "published 0 tasks, skipped 1 bad line\n")


def test_a_pipe_is_a_file_too(ready: Terminal, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"  # as a shell makes for `--file <(jq ...)`
    os.mkfifo(pipe)
    line = json.dumps({"queue": "email", "type": "welcome", "payload": {}})
    writer = threading.Thread(target=pipe.write_text, args=[f"{line}\n{line}\n"])
    writer.start()
    ran = ready("task", "push", "--file", str(pipe))
    writer.join()
    assert (ran.status, ran.out, ran.err) == (0, "published 2 tasks\n", "")
