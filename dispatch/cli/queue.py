"""`dispatch queue`: how the queues stand; pause, resize, empty and remove them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from cyclopts import App, Parameter

from dispatch.cli.output import document, duration, plural, progress, table
from dispatch.cli.selection import BATCH
from dispatch.cli.shell import (
    CommandError,
    JsonOption,
    Opened,
    Shell,
    ShellArgument,
    StoreOption,
    YesOption,
)
from dispatch.cli.state import QueueState, queue_object, queue_states
from dispatch.cli.task_change import DryRunOption, prune_all
from dispatch.storage.protocol import Change
from dispatch.storage.query import All, Ids, PruneSpec, Queues, Statuses, Time

__all__ = ["app"]

app: Final = App(name="queue", help="List, pause, resume, resize, empty and remove queues.")

_WAITING: Final = ("pending", "held")
_ENDED: Final = ("succeeded", "failed", "cancelled")


@app.command
async def ls(*, json: JsonOption = False, store: StoreOption = None, shell: ShellArgument) -> None:
    """List the queues with what waits, runs and failed in each."""
    async with shell.open(store) as opened:
        states = await queue_states(opened.storage)
    if json:
        document(shell.stdout, {"queues": [queue_object(each) for each in states]})
        return
    columns = (
        "queue",
        "state",
        "limit",
        "due",
        "later",
        "running",
        "held",
        "failed",
        "oldest",
        "workers",
    )
    table(shell.stdout, columns, [_row(each, people=shell.stdout.isatty()) for each in states])


def _row(state: QueueState, *, people: bool) -> tuple[object, ...]:
    oldest: object = round(state.oldest_s, 3)
    if people:
        oldest = duration(state.oldest_s) if state.due else ""
    return (
        state.name,
        "paused" if state.paused else "ok",
        state.concurrency,
        state.due,
        state.later,
        state.running,
        state.held,
        state.failed,
        oldest,
        state.workers,
    )


Names = Annotated[str, Parameter(help="Queues.")]


@app.command
async def pause(*names: Names, store: StoreOption = None, shell: ShellArgument) -> None:
    """Start nothing more of these queues, in any process; running tasks go on."""
    await _set_paused(shell, store, names, paused=True)


@app.command
async def resume(*names: Names, store: StoreOption = None, shell: ShellArgument) -> None:
    """End a pause."""
    await _set_paused(shell, store, names, paused=False)


async def _set_paused(
    shell: Shell, store: str | None, names: tuple[str, ...], *, paused: bool
) -> None:
    if not names:
        raise CommandError("which queue? Give its name", 2)
    async with shell.open(store) as opened:
        await opened.queue_names(*names)
        for name in names:
            change = opened.control.pause_queue if paused else opened.control.resume_queue
            await change(name)
            shell.print(f"queue {name} {'is paused' if paused else 'goes on'}")


@app.command
async def limit(
    name: str, concurrency: str, /, *, store: StoreOption = None, shell: ShellArgument
) -> None:
    """Run at most so many tasks of a queue at once in each process.

    Parameters
    ----------
    name
        The queue.
    concurrency
        A number from 1, or `none` for what its code says.
    """
    if concurrency != "none" and not (concurrency.isdecimal() and concurrency.isascii() and len(concurrency) <= 40):
        raise CommandError(f"limit wants a number from 1, or none, got {concurrency[:40]!r}", 2)
    wanted = None if concurrency == "none" else int(concurrency)
    async with shell.open(store) as opened:
        await opened.queue_names(name)
        await opened.control.set_concurrency(name, wanted)
    shell.print(
        f"queue {name} runs as many as its code says"
        if wanted is None
        else f"queue {name} runs at most {wanted} in each process"
    )


@app.command
async def purge(
    name: str,
    /,
    *,
    status: Annotated[
        tuple[
            Literal["pending", "later", "retrying", "held", "succeeded", "failed", "cancelled"], ...
        ],
        Parameter(negative=(), show_default=False),
    ] = (),
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    store: StoreOption = None,
    shell: ShellArgument,
) -> None:
    """Delete what waits in a queue: pending, retrying and held tasks. Running ones go on.

    Parameters
    ----------
    name
        The queue.
    status
        Only tasks in this status, ended ones included; may be repeated.
    """
    chosen = set(status)
    waiting = [each for each in (chosen or _WAITING) if each not in _ENDED]
    ended = [each for each in _ENDED if each in chosen]
    async with shell.open(store) as opened:
        await opened.queue_names(name)
        if waiting:
            await _purge_waiting(shell, opened, name, waiting, dry_run=dry_run, yes=yes)
        if ended:
            spec = PruneSpec(
                keep=0, where=All(Queues(name), Statuses(*ended)), dead_letters="failed" in ended
            )
            await prune_all(shell, opened, spec, dry_run=dry_run, yes=yes)


async def _purge_waiting(
    shell: Shell, opened: Opened, name: str, statuses: Sequence[str], *, dry_run: bool, yes: bool
) -> None:
    """Cancel, then delete, in steps. Interrupted between the two, cancelled tasks stay behind."""
    storage = opened.storage
    # What is published while this goes on is not meant; without a bound it might not end.
    before = Time("created_at", until=storage.now() + 0.001)
    where = All(Queues(name), Statuses(*statuses), before)
    total = sum((await storage.count(where)).values())
    if dry_run:
        shell.print(f"would delete {plural(total, 'waiting task')}")
        return
    met = gone = 0
    if total:
        shell.confirm(f"delete {plural(total, 'waiting task')} of queue {name}", yes=yes)
        cancel = Change(action="cancel", reason="purged by hand")
        with progress(shell.stderr, "delete", total) as advance:
            # What ran when they were counted, and waits for its retry now, is met as well.
            while met < total and (
                ids := await storage.alter(where, cancel, limit=min(BATCH, total - met))
            ):
                met += len(ids)
                gone += await storage.prune(PruneSpec(keep=0, where=Ids(*ids), limit=BATCH))
                advance(len(ids))
    shell.print(f"deleted {plural(gone, 'waiting task')}")


@app.command
async def rm(
    name: str,
    /,
    *,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    store: StoreOption = None,
    shell: ShellArgument,
) -> None:
    """Remove a queue that is used no longer: by no stored task, live worker or cron task.

    Parameters
    ----------
    name
        The queue.
    """
    async with shell.open(store) as opened:
        await opened.queue_names(name)
        await opened.control.remove_queue(name, dry_run=True)  # else it would be asked in vain
        if dry_run:
            shell.print(f"would remove queue {name}")
            return
        shell.confirm(f"remove queue {name}", yes=yes)
        await opened.control.remove_queue(name)
    shell.print(f"queue {name} is removed")
