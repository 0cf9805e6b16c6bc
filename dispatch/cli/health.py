"""`dispatch check`: is the store well, and do workers keep up."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Annotated, Any, Final

import attrs
import trio
from cyclopts import Parameter

from dispatch.cli import values
from dispatch.cli.output import document, duration, plural, table
from dispatch.cli.shell import CommandError, JsonOption, Opened, Shell, ShellArgument, StoreOption
from dispatch.cli.state import QueueState, queue_states
from dispatch.errors import DispatchError
from dispatch.storage.query import All, Queues, Statuses, Time

__all__ = ["check"]

LEAVE_S: Final = 0.1
"""How long a look may take to end by itself once its time is up."""


@attrs.frozen
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str


async def check(
    *,
    queue: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    max_wait: str | None = None,
    paused_ok: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    within: str = "5s",
    json: JsonOption = False,
    store: StoreOption = None,
    shell: ShellArgument,
) -> int:
    """Check that the store answers and that workers keep up; status 1 if not.

    A queue is well if it is paused, if nothing in it is due, or if a live worker
    consumes it; a named one needs a live worker in any case. A worker counts as
    live for 60 s after its last sign of life: --max-wait sees sooner that nobody
    works, and a pause that was forgotten, too.

    Parameters
    ----------
    queue
        Look at this queue only; may be repeated.
    max_wait
        Nothing due may have waited for longer than this, such as 5m; in paused queues, too.
    paused_ok
        In paused queues, tasks may wait for longer than --max-wait.
    within
        The store must answer within this time.
    """
    longest_s = None if max_wait is None else values.seconds(max_wait, "--max-wait")
    limit_s = values.seconds(within, "--within")
    begun = trio.current_time()
    try:
        found = await _within(limit_s, partial(_look, shell, store, queue, longest_s, paused_ok))
    except DispatchError as exc:
        findings = [Finding("store", False, exc.detail)]
    except CommandError as exc:
        if exc.status == 2:
            raise
        findings = [Finding("store", False, exc.message)]
    else:
        took = trio.current_time() - begun
        findings = (
            [Finding("store", False, f"no answer within {duration(limit_s)}")]
            if found is None
            else [Finding("store", True, f"answers, in {duration(took)}"), *found]
        )
    healthy = all(each.ok for each in findings)
    if json:
        checks: list[dict[str, Any]] = [attrs.asdict(each) for each in findings]
        document(shell.stdout, {"healthy": healthy, "checks": checks})
    else:
        rows = [("ok" if each.ok else "failed", each.name, each.detail) for each in findings]
        table(shell.stdout, ("result", "what", "finding"), rows)
    return 0 if healthy else 1


async def _within(
    limit_s: float, look: Callable[[], Coroutine[Any, Any, list[Finding]]]
) -> list[Finding] | None:
    """What `look` finds, or None if that takes longer than `limit_s`, whatever it waits for.

    It has a trio run of its own in a thread that can be left behind. To be
    cancelled is not enough: opening a SQLite file that somebody holds for himself
    waits for SQLite's own 5 s, in a thread that is always waited for.
    """

    async def bounded() -> list[Finding] | None:
        with trio.move_on_after(limit_s):
            return await look()
        return None

    with trio.move_on_after(limit_s + LEAVE_S):
        return await trio.to_thread.run_sync(trio.run, bounded, abandon_on_cancel=True)
    return None


async def _look(
    shell: Shell, store: str | None, asked: tuple[str, ...], longest_s: float | None, paused_ok: bool
) -> list[Finding]:
    findings: list[Finding] = []
    async with shell.open(store) as opened:
        for name in asked:
            try:
                await opened.queue_names(name)
            except CommandError as exc:
                findings.append(Finding(f"queue {name}", False, exc.message))
        for state in await queue_states(opened.storage):
            if asked and state.name not in asked:
                continue
            findings.append(_served(state, needed=bool(asked)))
            if longest_s is not None and not (state.paused and paused_ok):
                findings.append(await _in_time(opened, state, longest_s))
    return findings


def _served(state: QueueState, *, needed: bool) -> Finding:
    name = f"queue {state.name}"
    workers = plural(state.workers, "live worker") if state.workers else "no live worker"
    if state.paused:
        waits = f", one of them for {duration(state.oldest_s)}" if state.due else ""
        detail = f"paused, {workers}, {state.due:,} due{waits}"
        return Finding(name, bool(state.workers) or not needed, detail)
    if state.workers or state.due or needed:
        return Finding(name, bool(state.workers), f"{workers}, {state.due:,} due")
    return Finding(name, True, "no live worker, nothing due")


async def _in_time(opened: Opened, state: QueueState, longest_s: float) -> Finding:
    """Whether nothing waits for too long: counted, as `oldest_s` may be that of the second longest."""
    now = opened.storage.now()
    late = All(Queues(state.name), Statuses("due"), Time("available_at", until=now - longest_s))
    name = f"queue {state.name}"
    limit = duration(longest_s)
    if not await opened.storage.count(late, bound=1):
        return Finding(name, True, f"nothing has been due for more than {limit}")
    age = duration(max(state.oldest_s, longest_s))
    if state.paused:
        said = f"paused, and a task has been due for {age}, more than {limit}; resume it, or give --paused-ok"
        return Finding(name, False, said)
    return Finding(name, False, f"a task has been due for {age}, more than {limit}")
