"""The tree of commands: help, mistakes, exit statuses, completion, and the page about it all."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from dispatch import Storage, StorageError
from dispatch.__main__ import main as process_main
from dispatch.cli.app import main
from dispatch.cli.shell import Opener
from tests.cli.terminal import APP, Ran, Stream, Terminal

PAGE = (Path(__file__).parents[2] / "docs/cli.md").read_text(encoding="utf-8")


def commands(app: Any = APP, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Every command with the first sentence of its help, or of its noun's."""
    for name in app:
        if not name.startswith("-"):
            here = (*path, name)
            if app[name].default_command is not None:
                yield " ".join(here), app[name].help.splitlines()[0]
            yield from commands(app[name], here)


COMMANDS = dict(commands())


def test_the_page_has_a_line_for_every_command_and_it_is_that_of_its_help() -> None:
    table = dict(
        re.findall(r"^\| `dispatch ([a-z ]+?)(?: [A-Z\[].*?)?` \| (.+?) \|$", PAGE, re.MULTILINE)
    )
    assert table == COMMANDS


def test_the_page_names_every_field_of_every_json_document(terminal: Terminal) -> None:
    terminal.store("a")
    terminal.run("a", fail="ValueError: no")
    terminal.store("b")
    assert terminal("cron", "add", "n", "0 3 * * *", "email", "t").status == 0
    documents = [
        terminal("task", "ls", "--json").json,
        terminal("task", "show", "a", "--json").json,
        terminal("queue", "ls", "--json").json,
        terminal("cron", "ls", "--json").json,
        terminal("cron", "preview", "0 3 * * *", "--zone", "Europe/Berlin", "--json").json,
        terminal("stats", "--json").json,
        terminal("check", "--json").json,
    ]
    named = set(re.findall(r"`([a-z_]+)`", PAGE))
    assert not {field for each in documents for field in fields(each)} - named


def fields(tree: object) -> Iterator[str]:
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield name
            if name not in ("policy", "payload", "headers", "result"):
                yield from fields(value)
    elif isinstance(tree, list):
        for each in tree:
            yield from fields(each)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(terminal: Terminal, command: str) -> None:
    ran = terminal(*command.split(), "--help", store="")
    assert (ran.status, ran.err) == (0, "")
    assert f"Usage: dispatch {command}" in ran.out
    assert " ".join(COMMANDS[command].split()[:4]) in ran.out


def test_without_a_command_the_help_is_printed(terminal: Terminal) -> None:
    assert "Usage: dispatch COMMAND" in terminal(store="").out
    assert "Usage: dispatch task COMMAND" in terminal("task", store="").out
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", terminal("--version", store="").out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tsk",), 'unknown command "tsk". Did you mean "task"? Try --help'),
        (("task", "shwo"), 'unknown command "shwo". Did you mean "show"? Try --help'),
        (("task", "ls", "--quee", "x"), "unknown option: --quee. Did you mean --queue? Try --help"),
        (("task", "ls", "--status", "faild"), 'invalid value "faild" for --status.'),
        (("task", "ls", "--limit", "many"), "wanted a whole number, got 'many'"),
        (("task", "show"), "requires an argument"),
        (("task", "ls", "--version"), "unknown option: --version"),
        (("queue", "limit", "a", "1", "2"), "unused tokens: ['2']"),
        (("task", "ls", "--status"), "requires an argument"),
        (("completion", "tcsh"), 'invalid value "tcsh"'),
        (("web", "--port", "70000"), "--port must be within 0 and 65535, got 70000"),
        (("\x1b[2J",), r"\x1b[2J"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    terminal: Terminal, arguments: tuple[str, ...], said: str
) -> None:
    ran = terminal(*arguments, store="")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("dispatch: ")
    assert said.lower() in ran.err.lower()
    assert ran.err.count("\n") == 1
    assert "\x1b" not in ran.err


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_a_completion_script_knows_the_commands(terminal: Terminal, name: str) -> None:
    ran = terminal("completion", name, store="")
    assert ran.status == 0
    assert "dispatch" in ran.out
    assert "preview" in ran.out


def failing(opening: BaseException, *, inside: bool = False) -> Opener:
    @asynccontextmanager
    async def opener(_: str) -> AsyncGenerator[Storage]:
        if not inside:
            raise opening
        async with trio.open_nursery():
            raise opening
        yield  # type: ignore[misc]

    return opener


def run_over(terminal: Terminal, opener: Opener) -> Ran:
    shell = attrs.evolve(terminal.shell(), opener=opener)
    status = main(["queue", "ls", "--store", "x"], shell, APP)
    assert isinstance(shell.stdout, Stream)
    assert isinstance(shell.stderr, Stream)
    return Ran(status, shell.stdout.getvalue(), shell.stderr.getvalue())


@pytest.mark.parametrize("inside", [False, True])
def test_a_store_that_fails_is_one_line_and_status_1(terminal: Terminal, inside: bool) -> None:
    ran = run_over(terminal, failing(StorageError("the disk\nis full"), inside=inside))
    assert (ran.status, ran.out, ran.err) == (1, "", "dispatch: the disk\\nis full\n")


def test_an_interrupt_is_one_line_and_status_1(terminal: Terminal) -> None:
    ran = run_over(terminal, failing(KeyboardInterrupt()))
    assert (ran.status, ran.err) == (1, "dispatch: interrupted\n")


def test_a_mistake_of_our_own_is_not_hidden(terminal: Terminal) -> None:
    with pytest.raises(ZeroDivisionError):
        run_over(terminal, failing(ZeroDivisionError()))


def test_a_reader_that_leaves_early_is_no_error(terminal: Terminal) -> None:
    terminal.store(*(f"t{number}" for number in range(2_000)))
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", encoding="utf-8") as stdout:
        shell = attrs.evolve(terminal.shell(), stdout=stdout)
        assert main(["task", "ls", "-n", "2000", "--store", "x"], shell, APP) == 1
        stdout.flush()
    assert isinstance(shell.stderr, Stream)
    assert shell.stderr.getvalue() == ""


def test_colours_are_for_terminals_that_want_them(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.declare("email")
    terminal("queue", "pause", "email")
    monkeypatch.setenv("TERM", "xterm-256color")
    yellow = re.compile(r"\x1b\[33mpaused")
    assert yellow.search(terminal("queue", "ls", tty=True).out)
    assert "\x1b" not in terminal("queue", "ls").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert not yellow.search(terminal("queue", "ls", tty=True).out)


def test_long_work_shows_a_bar_on_a_terminal_and_leaves_nothing_of_it(terminal: Terminal) -> None:
    terminal.store("a", "b")
    ran = terminal("task", "cancel", "--queue", "email", "--yes", tty=True)
    assert ran.out == "cancelled 2 tasks\n"
    assert terminal("task", "rm", "a", "b", "--yes", tty=True).out == "deleted 2 tasks\n"


@pytest.mark.parametrize("missing", ["cyclopts", "rich"])
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name in [each for each in sys.modules if each.startswith("dispatch.cli")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)  # type: ignore[arg-type]
    with pytest.raises(SystemExit) as caught:
        process_main()
    assert caught.value.code == (
        "dispatch: the command line needs cyclopts and rich: pip install 'trio-dispatch[cli]'"
    )
