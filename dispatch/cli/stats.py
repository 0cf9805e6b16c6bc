"""`dispatch stats`: one look at a whole store."""

from __future__ import annotations

from typing import Any

from dispatch.cli.output import document, iso, table
from dispatch.cli.shell import JsonOption, Shell, ShellArgument, StoreOption
from dispatch.cli.state import StoreState, queue_object, store_state, worker_object

__all__ = ["print_state", "stats"]

TOTALS = ("due", "later", "running", "held", "failed")


async def stats(
    *, json: JsonOption = False, store: StoreOption = None, shell: ShellArgument
) -> None:
    """Show counts of tasks over all queues, what ended within the last minute, and the workers."""
    async with shell.open(store) as opened:
        state = await store_state(opened.storage)
    if json:
        document(shell.stdout, _object(state))
    else:
        print_state(shell, state)


def _object(state: StoreState) -> dict[str, Any]:
    return {
        "now": iso(state.now),
        "tasks": {name: state.total(name) for name in TOTALS},
        "last_minute": {
            "succeeded": state.total("succeeded_lately"),
            "failed": state.total("failed_lately"),
        },
        "queues": [queue_object(each) for each in state.queues],
        "workers": [worker_object(each) for each in state.workers],
        "crons": state.crons,
    }


def print_state(shell: Shell, state: StoreState) -> None:
    """The totals, one per line: a table on a terminal, tab-separated anywhere else."""
    rows: list[tuple[str, int]] = [(name, state.total(name)) for name in TOTALS]
    rows += [
        ("succeeded in the last minute", state.total("succeeded_lately")),
        ("failed in the last minute", state.total("failed_lately")),
        ("queues", len(state.queues)),
        ("paused queues", sum(each.paused for each in state.queues)),
        ("live workers", len(state.workers)),
        ("cron tasks", state.crons),
    ]
    table(shell.stdout, ("", "count"), rows)
