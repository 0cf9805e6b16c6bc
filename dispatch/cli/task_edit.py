"""`dispatch task edit`: change fields of one stored task, and run a dead letter with them again."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from cyclopts import Parameter

from dispatch.checks import check_duration
from dispatch.cli import values
from dispatch.cli.selection import records_of, refuse_options, unknown_task
from dispatch.cli.shell import CommandError, Opened, Shell, ShellArgument, StoreOption
from dispatch.codec import Codec
from dispatch.records import TaskRecord, from_seconds
from dispatch.storage.protocol import Change
from dispatch.storage.query import All, Ids, Statuses
from dispatch.tasks import TaskStatus

__all__ = ["edit"]

_PAYLOAD_CHARACTERS: Final = 2 * 1024 * 1024
"""A longer one is none: payloads have a limit far below."""
_NONE: Final = "none"
_WAITS: Final = frozenset({TaskStatus.PENDING, TaskStatus.HELD})
_OVER: Final = frozenset({TaskStatus.SUCCEEDED, TaskStatus.CANCELLED})


async def edit(
    task_id: str,
    /,
    *,
    payload: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    priority: str | None = None,
    timeout: str | None = None,  # noqa: ASYNC109 - a field of the task, not of this call
    max_retry: str | None = None,
    tag: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    no_tags: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    header: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    no_headers: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    delay: str | None = None,
    rerun: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    store: StoreOption = None,
    shell: ShellArgument,
) -> int:
    """Change fields of a task that waits, runs or failed; what is not given stays as it is.

    A running attempt goes on with what it has, and the next one sees the change.

    Parameters
    ----------
    task_id
        The task's id.
    payload
        A JSON object in place of the whole payload; - reads it from standard input.
    priority
        low, normal, high or critical.
    timeout
        How long one attempt may take, such as 90s; none is the queue's own.
    max_retry
        Retries after the first run; none is the queue's own.
    tag
        In place of all tags; may be repeated.
    no_tags
        Take all tags away.
    header
        NAME=VALUE, in place of all headers; may be repeated.
    no_headers
        Take all headers away.
    delay
        Run what waits no sooner than after 90s, 15m, 2h30m from now; 0 is at once.
    rerun
        Then run it again: a dead letter only.
    """
    refuse_options([task_id])
    edits: dict[str, Any] = {}
    if payload is not None:
        text = shell.stdin.read(_PAYLOAD_CHARACTERS) if payload == "-" else payload
        edits["payload"] = values.payload(text, Codec())
    if priority is not None:
        edits["priority"] = values.priority(priority)
    if timeout is not None:
        edits["timeout"] = None if timeout == _NONE else values.seconds(timeout, "--timeout")
    if max_retry is not None:
        edits["max_retry"] = None if max_retry == _NONE else _count(max_retry)
    for one, none, given in (("--tag", "--no-tags", tag and no_tags), ("--header", "--no-headers", header and no_headers)):
        if given:
            raise CommandError(f"give either {one} or {none}, not both", 2)
    if tag or no_tags:
        edits["tags"] = tag
    if header or no_headers:
        edits["headers"] = values.pairs(header, "--header")
    wait_s = None if delay is None else values.seconds(delay, "--delay")
    check_duration("--delay", wait_s or 0.0)
    if not edits and wait_s is None:
        again = "; `dispatch task retry` runs it again as it is" if rerun else ", such as --priority high"
        raise CommandError(f"nothing to change; give what to{again}", 2)
    if rerun and wait_s is not None:
        raise CommandError("give either --rerun, which runs it at once, or --delay, not both", 2)
    async with shell.open(store) as opened:
        await _check(opened, task_id, waits=wait_s is not None, rerun=rerun)
        if wait_s is not None:
            edits["available_at"] = from_seconds(opened.storage.now() + wait_s)
        edited = await opened.control.edit(task_id, **edits)
        shell.print("edited 1 task" if edited else "edited 0 tasks")
        if rerun:
            return await _rerun(shell, opened, task_id)
        if not edited:
            await _check(opened, task_id, waits=wait_s is not None, rerun=False)  # it may have ended since
            shell.say(f"task {task_id} was so already")
    return 0


async def _check(opened: Opened, task_id: str, *, waits: bool, rerun: bool) -> None:
    """Raise CommandError, before anything is changed, where a part of it could not be."""
    record = (await records_of(opened, [task_id])).get(task_id)
    if record is None:
        raise CommandError(await unknown_task(opened, task_id))
    why = _why_not(record, waits=waits, rerun=rerun)
    if why is not None:
        raise CommandError(f"task {task_id} is {record.status.value}; {why}")


def _why_not(record: TaskRecord, *, waits: bool, rerun: bool) -> str | None:
    if record.status in _OVER:
        return "what has succeeded or was cancelled is not edited"
    if rerun and record.status is not TaskStatus.FAILED:
        return "--rerun is for a dead letter; leave it out"
    if waits and record.status not in _WAITS:
        return "only a waiting task has a --delay; leave it out"
    return None


async def _rerun(shell: Shell, opened: Opened, task_id: str) -> int:
    # Not what somebody else ran again meanwhile and has succeeded: that would run once more, unedited.
    dead = All(Ids(task_id), Statuses(TaskStatus.FAILED))
    if await opened.storage.alter(dead, Change(action="rerun")):
        shell.print("retried 1 task")
        return 0
    shell.say(f"task {task_id} is no dead letter any more, and was not retried")
    return 1


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,40}", text):
        raise CommandError(f"--max-retry wants a whole number or {_NONE}, got {text[:40]!r}", 2)
    return int(text)
