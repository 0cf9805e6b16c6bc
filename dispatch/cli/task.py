"""`dispatch task`: look at tasks, wait for them, and change them."""

from __future__ import annotations

import json
from typing import Annotated, Final, cast

import attrs
from cyclopts import App, Parameter

from dispatch.bell import Bell
from dispatch.cli import values
from dispatch.cli.output import ago, document, duration, iso, safe, shortened, table
from dispatch.cli.selection import (
    NO_FILTERS,
    Filters,
    IdsArgument,
    batches,
    records_of,
    task_ids,
    unknown_task,
)
from dispatch.cli.shell import CommandError, JsonOption, Shell, ShellArgument, StoreOption
from dispatch.cli.task_change import cancel, hold, resume, retry, rm
from dispatch.cli.task_edit import edit
from dispatch.cli.task_push import push
from dispatch.cli.tasks_json import run_object, shown_status, task_line, task_object
from dispatch.codec import Codec
from dispatch.control import waiting_for
from dispatch.records import AttemptRecord, TaskRecord
from dispatch.storage.protocol import Topic, TopicKind
from dispatch.storage.query import Order
from dispatch.tasks import TaskStatus

__all__ = ["app"]

app: Final = App(name="task", help="List, inspect, publish, edit, retry, hold, cancel and delete tasks.")
app.command(edit)
app.command(retry)
app.command(hold)
app.command(resume)
app.command(cancel)
app.command(rm)
app.command(push)

LOOK_EVERY_S = 1.0
"""How often `watch` looks for what the storage does not ring for: a start, a retry, progress."""


@app.command
async def ls(
    *,
    filters: Filters = NO_FILTERS,
    limit: Annotated[values.Whole, Parameter(name=("--limit", "-n"))] = 20,
    after: str | None = None,
    oldest: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    ids: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    json: JsonOption = False,
    store: StoreOption = None,
    shell: ShellArgument,
) -> None:
    """List tasks, the newest first.

    Parameters
    ----------
    limit
        At most so many, up to 10000.
    after
        Go on after this cursor of an earlier listing.
    oldest
        The oldest first.
    ids
        Print ids only.
    """
    if not 1 <= limit <= 10_000:
        raise CommandError(f"--limit must be within 1 and 10000, got {limit}", 2)
    filters.check()
    async with shell.open(store) as opened:
        await filters.check_names(shell, opened)
        page = await opened.storage.find(
            filters.where(opened.storage.now()),
            order=Order.OLDEST if oldest else Order.NEWEST,
            limit=limit,
            after=after,
        )
        now = opened.storage.now()
    if json:
        document(
            shell.stdout,
            {"tasks": [task_line(each) for each in page.records], "cursor": page.cursor},
        )
    elif ids:
        for record in page.records:
            shell.print(record.id)
    elif shell.stdout.isatty():
        columns = (
            "id",
            "queue",
            "type",
            "status",
            "attempt",
            "published",
            "next or end",
            "last error",
        )
        table(shell.stdout, columns, [_row(record, now) for record in page.records])
    else:
        table(shell.stdout, (), [_plain_row(record) for record in page.records])
    if page.cursor is not None and shell.stdout.isatty():
        shell.say(f"there are more: --after {page.cursor}")


def _row(record: TaskRecord, now: float) -> tuple[object, ...]:
    waits = record.status in (TaskStatus.PENDING, TaskStatus.HELD)
    moment = record.available_at if waits else record.finished_at or record.started_at
    return (
        record.id,
        record.queue,
        record.type,
        shown_status(record),
        record.attempt,
        ago(record.created_at, now),
        ago(moment, now),
        shortened(_reason(record), 60),
    )


def _plain_row(record: TaskRecord) -> tuple[object, ...]:
    return (
        record.id,
        record.queue,
        record.type,
        shown_status(record),
        record.attempt,
        iso(record.created_at),
        iso(record.available_at),
        _reason(record),
    )


def _reason(record: TaskRecord) -> str:
    if record.status is TaskStatus.CANCELLED:
        return record.cancel_reason or ""
    return record.last_error or ""


@app.command
async def show(
    task_id: str,
    /,
    *,
    json: JsonOption = False,
    store: StoreOption = None,
    shell: ShellArgument,
) -> None:
    """Show one task: its fields, why it waits if it does, payload, result and every run with its error.

    Parameters
    ----------
    task_id
        The task's id.
    """
    async with shell.open(store) as opened:
        record = (await records_of(opened, [task_id])).get(task_id)
        if record is None:
            raise CommandError(await unknown_task(opened, task_id))
        history = await opened.storage.history(task_id)
        now = opened.storage.now()
        waiting = await waiting_for(opened.control, record)
    whole = task_object(record, Codec())
    if json:
        causes = [attrs.asdict(cause) for cause in waiting]
        runs = [run_object(run) for run in history]
        document(shell.stdout, {"task": whole, "waiting_for": causes, "history": runs})
        return
    _print_fields(shell, whole)
    for cause in waiting:
        shell.print(f"waiting for: {cause.text}")
    _print_history(shell, history, now)


def _print_fields(shell: Shell, whole: dict[str, object]) -> None:
    given = {name: value for name, value in whole.items() if value not in (None, [], {})}
    width = max(len(name) for name in given)
    for name, value in given.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if shell.stdout.isatty():
            shell.print(f"{name:<{width}}  {text}")
        else:
            shell.stdout.write(f"{name}\t{safe(text)}\n")


def _print_history(shell: Shell, history: list[AttemptRecord], now: float) -> None:
    for run in history:
        took = (run.finished_at if run.finished_at is not None else now) - run.started_at
        on = f" on {run.worker}" if run.worker else ""
        shell.print(
            f"attempt {run.attempt}: {run.outcome.value} after {duration(max(took, 0.0))}, "
            f"from {iso(run.started_at)}{on}"
        )
        for text in (run.error or "").splitlines():
            shell.print(f"    {text}")


@app.command
async def watch(
    *ids: IdsArgument,
    json: JsonOption = False,
    store: StoreOption = None,
    shell: ShellArgument,
) -> int:
    """Wait until tasks have ended, and tell of each change; status 1 unless all succeeded.

    With --json, one line of JSON per change.
    """
    if not ids:
        raise CommandError("which task? Give its id, or - to read ids from standard input", 2)
    waiting = task_ids(shell, ids)
    bad = 0
    async with shell.open(store) as opened:
        bell = Bell()
        with opened.storage.watch(bell, *(Topic(TopicKind.TASK, each) for each in waiting)):
            told: dict[str, str] = {}
            while True:
                for batch in batches(list(waiting)):
                    found = await records_of(opened, batch)
                    for task_id in batch:
                        record = found.get(task_id)
                        if record is None:
                            shell.say(await unknown_task(opened, task_id))
                        else:
                            _tell_change(shell, record, told, as_json=json)
                        if record is None or record.status.is_terminal:
                            bad += record is None or record.status is not TaskStatus.SUCCEEDED
                            waiting.remove(task_id)
                if not waiting:
                    return 1 if bad else 0
                await bell.wait(LOOK_EVERY_S)


def _tell_change(shell: Shell, record: TaskRecord, told: dict[str, str], *, as_json: bool) -> None:
    """Print the task as it stands, if that is not what was printed last."""
    whole = task_object(record, Codec())
    progress = whole["progress"]
    if as_json:
        text = json.dumps(task_line(record) | {"progress": progress})
    else:
        pieces = [record.id, shown_status(record), f"attempt {record.attempt}"]
        if isinstance(progress, dict) and record.status is TaskStatus.RUNNING:
            pieces.append(_progress_text(cast("dict[str, object]", progress)))
        if reason := _reason(record):
            pieces.append(shortened(reason, 200))
        text = "  ".join(piece for piece in pieces if piece)
    if told.get(record.id) != text:
        told[record.id] = text
        shell.print(text)


def _progress_text(progress: dict[str, object]) -> str:
    fraction, message = progress.get("fraction"), progress.get("message")
    percent = f"{fraction:.0%}" if isinstance(fraction, int | float) else ""
    return f"{percent} {message or ''}".strip()
