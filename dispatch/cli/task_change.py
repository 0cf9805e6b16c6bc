"""`dispatch task retry`, `hold`, `resume`, `cancel` and `rm`: one task, some, or all that filters mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Final

import attrs
from cyclopts import Parameter

from dispatch.cli.output import plural, progress
from dispatch.cli.selection import (
    BATCH,
    NO_FILTERS,
    Filters,
    IdsArgument,
    batches,
    records_of,
    refuse_options,
    task_ids,
    unknown_task,
)
from dispatch.cli.shell import CommandError, Opened, Shell, ShellArgument, StoreOption, YesOption
from dispatch.records import TaskRecord
from dispatch.storage.protocol import Change
from dispatch.storage.query import All, Ids, PruneSpec, Statuses, Time, Where
from dispatch.tasks import TaskStatus

__all__ = ["DryRunOption", "cancel", "hold", "prune_all", "resume", "retry", "rm"]

DryRunOption = Annotated[
    bool, Parameter(negative=(), show_default=False, help="Only say what would be done.")
]

_ENDED: Final = ("succeeded", "failed", "cancelled")
_WORDS: Final = {
    "rerun": ("retry", "retried", "only ended tasks can be retried"),
    "cancel": ("cancel", "cancelled", "it has ended"),
    "hold": ("hold", "held", "only a waiting task can be held"),
    "resume": ("resume", "resumed", "only a held task can be resumed"),
}
"""What is said of an action: to do it, that it was done, why it was not."""
_REASONS_SHOWN: Final = 20
_NOW_S: Final = 0.001
"""Added to the present so that what happened at this very moment lies before it."""


async def retry(
    *ids: IdsArgument,
    filters: Filters = NO_FILTERS,
    dry_run: DryRunOption = False,
    store: StoreOption = None,
    shell: ShellArgument,
) -> int:
    """Run ended tasks once more: those named, or the dead letters that match.

    By filters, tasks of other statuses are meant only with --status.
    """
    chosen = filters if filters.status else attrs.evolve(filters, status=("failed",))

    def meant(now: float) -> Where:
        # One that fails again while this goes on is not run a third time.
        return chosen.where(now, Time("finished_at", until=now))

    return await _change(shell, store, ids, filters, meant, Change(action="rerun"), dry_run=dry_run)


async def hold(
    *ids: IdsArgument,
    filters: Filters = NO_FILTERS,
    dry_run: DryRunOption = False,
    store: StoreOption = None,
    shell: ShellArgument,
) -> int:
    """Park waiting tasks until they are resumed; a running one is left alone."""

    def meant(now: float) -> Where:
        return filters.where(now, Statuses("pending"), Time("created_at", until=now))

    return await _change(shell, store, ids, filters, meant, Change(action="hold"), dry_run=dry_run)


async def resume(
    *ids: IdsArgument,
    filters: Filters = NO_FILTERS,
    dry_run: DryRunOption = False,
    store: StoreOption = None,
    shell: ShellArgument,
) -> int:
    """Let held tasks wait for their turn again."""

    def meant(now: float) -> Where:
        return filters.where(now, Statuses("held"))

    return await _change(shell, store, ids, filters, meant, Change(action="resume"), dry_run=dry_run)


async def cancel(
    *ids: IdsArgument,
    filters: Filters = NO_FILTERS,
    reason: str = "cancelled by hand",
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    store: StoreOption = None,
    shell: ShellArgument,
) -> int:
    """Cancel waiting and held tasks, and ask running ones to stop.

    Parameters
    ----------
    reason
        Kept with the task.
    """

    def meant(now: float) -> Where:
        return filters.where(now, Statuses("pending", "running", "held"), Time("created_at", until=now))

    change = Change(action="cancel", reason=reason)
    return await _change(shell, store, ids, filters, meant, change, dry_run=dry_run, yes=yes)


async def rm(
    *ids: IdsArgument,
    filters: Filters = NO_FILTERS,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    store: StoreOption = None,
    shell: ShellArgument,
) -> int:
    """Delete ended tasks with their history; others have to be cancelled first."""
    named = _named(shell, ids, filters)
    async with shell.open(store) as opened:
        if named is not None:
            return await _remove_ids(shell, opened, named, dry_run=dry_run, yes=yes)
        await filters.check_names(shell, opened)
        spec = PruneSpec(keep=0, where=filters.where(opened.storage.now(), Statuses(*_ENDED)), dead_letters=True)
        await prune_all(shell, opened, spec, dry_run=dry_run, yes=yes)
    return 0


def _named(shell: Shell, ids: Sequence[str], filters: Filters) -> list[str] | None:
    """The ids given, or None where filters were; one of the two it must be."""
    refuse_options(ids)
    filters.check()
    if ids and filters.given:
        raise CommandError("give either ids or filters, not both", 2)
    if not ids and not filters.given:
        raise CommandError(
            "which tasks? Give ids, - to read them from standard input, or a filter such as --queue",
            2,
        )
    return task_ids(shell, ids) if ids else None


async def _change(
    shell: Shell,
    store: str | None,
    ids: Sequence[str],
    filters: Filters,
    meant: Callable[[float], Where],
    change: Change,
    *,
    dry_run: bool,
    yes: bool = True,
) -> int:
    """Change the tasks named, or those that the filters mean at this moment of the store; the exit status."""
    named = _named(shell, ids, filters)
    async with shell.open(store) as opened:
        if named is not None:
            return await _change_ids(shell, opened, named, change, dry_run=dry_run)
        await filters.check_names(shell, opened)
        where = meant(opened.storage.now() + _NOW_S)
        return await _change_matching(shell, opened, where, change, dry_run=dry_run, yes=yes)


async def _change_ids(
    shell: Shell, opened: Opened, ids: list[str], change: Change, *, dry_run: bool
) -> int:
    """Change named tasks; what could not be changed is told, and makes the status 1."""
    refused: list[str] = []
    with progress(shell.stderr, change.action, len(ids)) as advance:
        for batch in batches(ids):
            changed = set(await opened.storage.alter(Ids(*batch), change, dry_run=dry_run))
            refused += [each for each in batch if each not in changed]
            advance(len(batch))
    _tell(shell, change, len(ids) - len(refused), dry_run=dry_run)
    return await _tell_refused(shell, opened, refused, change.action)


async def _change_matching(
    shell: Shell, opened: Opened, where: Where, change: Change, *, dry_run: bool, yes: bool
) -> int:
    """Change all that match, in steps; interrupted, the steps that were made stay."""
    total = sum((await opened.storage.count(where)).values())
    done = 0
    if dry_run:
        done = len(await opened.storage.alter(where, change, dry_run=True))
    elif total:
        shell.confirm(f"{change.action} {plural(total, 'task')}", yes=yes)
        with progress(shell.stderr, change.action, total) as advance:
            # One that was running, and waits again, may be met beside those that were counted.
            while done < total and (
                changed := await opened.storage.alter(where, change, limit=min(BATCH, total - done))
            ):
                done += len(changed)
                advance(len(changed))
    _tell(shell, change, done, dry_run=dry_run)
    return 0


def _tell(shell: Shell, change: Change, count: int, *, dry_run: bool) -> None:
    present, past, _ = _WORDS[change.action]
    shell.print(
        f"would {present} {plural(count, 'task')}" if dry_run else f"{past} {plural(count, 'task')}"
    )


async def _tell_refused(shell: Shell, opened: Opened, refused: list[str], action: str) -> int:
    for batch in batches(refused[:_REASONS_SHOWN]):
        found = await records_of(opened, batch)
        for task_id in batch:
            record = found.get(task_id)
            shell.say(
                await unknown_task(opened, task_id) if record is None else _why_not(record, action)
            )
    if len(refused) > _REASONS_SHOWN:
        shell.say(f"and {len(refused) - _REASONS_SHOWN} more")
    return 1 if refused else 0


def _why_not(record: TaskRecord, action: str) -> str:
    status = record.status
    if action == "cancel" and not status.is_terminal:
        return f"task {record.id} was asked to stop already"
    if action == "rerun" and status is TaskStatus.HELD:
        return f"task {record.id} is held; `dispatch task resume` lets it go on"
    why = _WORDS[action][2] if action in _WORDS else "cancel it first"
    return f"task {record.id} is {status.value}; {why}"


async def _remove_ids(
    shell: Shell, opened: Opened, ids: list[str], *, dry_run: bool, yes: bool
) -> int:
    """Delete named tasks that have ended; the others are told, and make the status 1."""
    refused: list[str] = []
    doomed: list[str] = []
    for batch in batches(ids):
        found = await records_of(opened, batch)
        for task_id in batch:
            record = found.get(task_id)
            ended = record is not None and record.status.is_terminal
            (doomed if ended else refused).append(task_id)
    if dry_run:
        shell.print(f"would delete {plural(len(doomed), 'task')}")
        return await _tell_refused(shell, opened, refused, "rm")
    removed = 0
    if doomed:
        shell.confirm(f"delete {plural(len(doomed), 'task')}", yes=yes)
        with progress(shell.stderr, "delete", len(doomed)) as advance:
            for batch in batches(doomed):
                # Whatever was retried since then is pending, and no prune takes that.
                removed += await opened.storage.prune(
                    PruneSpec(keep=0, where=Ids(*batch), dead_letters=True, limit=BATCH)
                )
                advance(len(batch))
    shell.print(f"deleted {plural(removed, 'task')}")
    return await _tell_refused(shell, opened, refused, "rm")


async def prune_all(
    shell: Shell, opened: Opened, spec: PruneSpec, *, dry_run: bool, yes: bool
) -> None:
    """Delete what `spec` means, in steps; interrupted, the steps that were made stay."""
    now = opened.storage.now()
    # What ends from now on was not counted, and nobody agreed to it.
    before = Time("finished_at", until=now + _NOW_S)
    spec = attrs.evolve(spec, where=All(spec.where, before))
    parts = _lasting(spec, now)
    total = await opened.control.prune(parts[0] if len(parts) == 1 else spec, dry_run=True)
    if dry_run:
        shell.print(f"would delete {plural(total, 'task')}")
        return
    gone = 0
    if total:
        shell.confirm(f"delete {plural(total, 'task')}", yes=yes)
        with progress(shell.stderr, "delete", total) as advance:
            for part in parts:
                # Some may end late with an earlier moment, by another process's clock: so many, and no more.
                while gone < total and (
                    count := await opened.storage.prune(
                        attrs.evolve(part, limit=min(BATCH, total - gone))
                    )
                ):
                    gone += count
                    advance(count)
    shell.print(f"deleted {plural(gone, 'task')}")


def _lasting(spec: PruneSpec, now: float) -> list[PruneSpec]:
    """Specs that together mean what this one means at `now`, however much later they are carried out.

    An age is measured anew at each step, and while somebody thinks about the
    answer more tasks come to it. Two where there is also a number to keep, for
    either suffices; after the old ones are gone it is the same tasks that are
    beyond the newest.
    """
    if spec.age_s is None:
        return [spec]
    old = All(spec.where, Time("finished_at", until=now - spec.age_s))
    aged = attrs.evolve(spec, keep=None, where=old)
    return [aged] if spec.keep is None else [aged, attrs.evolve(spec, age_s=None)]
