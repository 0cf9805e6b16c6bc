"""`dispatch prune`: delete what has ended, by age or number."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from cyclopts import Parameter

from dispatch.cli import values
from dispatch.cli.shell import CommandError, ShellArgument, StoreOption, YesOption
from dispatch.cli.task_change import DryRunOption, prune_all
from dispatch.storage.query import All, PruneSpec, Queues, Statuses, Types, Where

__all__ = ["prune"]


def _many() -> Any:
    return Parameter(negative=(), show_default=False)


async def prune(
    *,
    older: str | None = None,
    keep: values.Whole | None = None,
    per: Literal["total", "queue", "type"] = "total",
    queue: Annotated[tuple[str, ...], _many()] = (),
    type: Annotated[tuple[str, ...], _many()] = (),  # noqa: A002 - the field's name
    status: Annotated[tuple[Literal["succeeded", "failed", "cancelled"], ...], _many()] = (),
    dead_letters: Annotated[bool, _many()] = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    store: StoreOption = None,
    shell: ShellArgument,
) -> None:
    """Delete ended tasks with their history; never a waiting or running one.

    Failed tasks, the dead letters, stay unless they are asked for.

    Parameters
    ----------
    older
        Those that ended longer ago than this, such as 7d.
    keep
        Those beyond the newest so many.
    per
        Count those to keep in total, per queue or per type.
    queue
        Only of this queue; may be repeated.
    type
        Only of this task type; may be repeated.
    status
        Only in this status; may be repeated. `failed` includes the dead letters.
    dead_letters
        Failed tasks, too.
    """
    if older is None and keep is None:
        raise CommandError("prune wants --older, such as --older 7d, or --keep, or both", 2)
    parts: list[Where] = []
    if queue:
        parts.append(Queues(*queue))
    if type:
        parts.append(Types(*type))
    if status:
        parts.append(Statuses(*status))
    spec = PruneSpec(
        age_s=None if older is None else values.seconds(older, "--older"),
        keep=keep,
        per=per,
        where=All(*parts),
        dead_letters=dead_letters or "failed" in status,
    )
    async with shell.open(store) as opened:
        await opened.queue_names(*queue)
        await prune_all(shell, opened, spec, dry_run=dry_run, yes=yes)
