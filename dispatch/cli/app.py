"""The whole command: the tree of commands, and what becomes of a mistake."""

from __future__ import annotations

import errno
import inspect
import os
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Final, Literal, TextIO, cast

import attrs
import trio
from cyclopts import App, CycloptsError

from dispatch.cli import copy, cron, health, migrate, prune, queue, run, stats, task, top, web
from dispatch.cli.output import console
from dispatch.cli.shell import CommandError, Shell, ShellArgument, check_utf8
from dispatch.errors import (
    DispatchError,
    InvalidConfigError,
    InvalidCronSpecError,
    InvalidQueueNameError,
    InvalidQueuePayloadError,
    InvalidQueueTaskError,
    InvalidTaskTypeError,
)

__all__ = ["build", "main"]

_HELP: Final = """Background work for trio services: run it, look at it, change it.

The store is given with --store or in DISPATCH_STORE: sqlite:///jobs.db, or
postgresql://user@host/name. Exit status: 0 done, 1 it could not be done,
2 the command line was wrong.
"""

WRONG_INPUT: Final = (
    InvalidConfigError,
    InvalidCronSpecError,
    InvalidQueueNameError,
    InvalidQueuePayloadError,
    InvalidQueueTaskError,
    InvalidTaskTypeError,
)
"""Errors about what was typed; any other says that it could not be done."""


def build() -> App:
    """The tree of commands, made afresh."""
    app = App(
        name="dispatch",
        help=_HELP,
        help_format="plaintext",
        version=lambda: version("trio-dispatch"),
    )
    app.command(run.run)
    for noun in (task.app, queue.app, cron.app):
        app.command(noun)
    for command in (
        stats.stats,
        top.top,
        health.check,
        prune.prune,
        migrate.migrate,
        copy.copy,
        web.web,
        completion,
    ):
        app.command(command)
    _say_version_at_the_top_only(app)
    return app


def _say_version_at_the_top_only(app: App) -> None:
    """Below the top, `--version` would tell cyclopts' own."""
    for name in app:
        if not name.startswith("-"):
            app[name].version_flags = ()
            _say_version_at_the_top_only(app[name])


def completion(shell_name: Literal["bash", "zsh", "fish"], /, *, shell: ShellArgument) -> None:
    """Print a completion script: source it, or save it where your shell looks.

    Parameters
    ----------
    shell_name
        For bash: `source <(dispatch completion bash)`.
    """
    shell.stdout.write(build().generate_completion(prog_name="dispatch", shell=shell_name))


def main(arguments: Sequence[str], shell: Shell, app: App | None = None) -> int:
    """Run one command line and give its exit status: 0 done, 1 not done, 2 a wrong command line.

    `app` is what `build` made, for those who run many.
    """
    shell = attrs.evolve(shell, arguments=tuple(arguments))
    try:
        return _status(shell, app if app is not None else build())
    finally:
        # What could not be said would be written once more when Python ends, and fail it with 120.
        try:
            shell.stderr.flush()
        except OSError:
            _silence(shell.stderr)


def _status(shell: Shell, app: App) -> int:
    try:
        for each in shell.arguments:
            check_utf8(each, "an argument")
        return _run(shell, app)
    except CycloptsError as exc:
        shell.say(f"dispatch: {_told(exc)}")
        return 2
    except CommandError as exc:
        for text in exc.detail.splitlines():
            shell.say(text)
        shell.say(f"dispatch: {exc.message}")
        return exc.status
    except DispatchError as exc:
        shell.say(f"dispatch: {exc.detail}")
        return 2 if isinstance(exc, WRONG_INPUT) else 1
    except KeyboardInterrupt:
        shell.say("dispatch: interrupted")
        return 1
    except BrokenPipeError:
        _silence(shell.stdout)  # whoever read the output has left, as `head` does
        return 1
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            raise
        _silence(shell.stdout)
        shell.say(f"dispatch: {exc.strerror}: not all could be written; what was asked may be done")
        return 1


def _silence(stream: TextIO) -> None:
    """Let what is left of the output go nowhere: Python would complain again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(shell: Shell, app: App) -> int:
    command, bound, injected = app.parse_args(
        shell.arguments,
        console=console(shell.stdout),
        exit_on_error=False,
        print_error=False,
    )
    call = cast("Any", command)
    given = {"shell": shell} if "shell" in injected else {}
    if not inspect.iscoroutinefunction(command):
        status = call(*bound.args, **bound.kwargs, **given)
    else:

        async def as_trio_task() -> object:
            return await call(*bound.args, **bound.kwargs, **given)

        try:
            status = trio.run(as_trio_task)
        except BaseExceptionGroup as group:
            raise _only(cast("BaseExceptionGroup[Any]", group)) from None
    return status if isinstance(status, int) else 0


def _only(error: BaseException) -> BaseException:
    """The one exception inside groups of one, which nurseries make of every error."""
    while isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[Any]", error)
        if len(group.exceptions) != 1:
            return group
        error = group.exceptions[0]
    return error


def _told(error: CycloptsError) -> str:
    """Cyclopts' sentence in our manner; a list of commands only where no nearest one is named."""
    text = str(error).strip()
    if "Did you mean" in text:
        text = text.partition(" Available commands:")[0]
    if "Unused Tokens" in text and "'*'" in text:
        return f"{text[:1].lower()}{text[1:].rstrip('.')}; a cron text is one argument, in quotes. Try --help"
    return f"{text[:1].lower()}{text[1:]}{'' if text.endswith(('.', '?')) else '.'} Try --help"
