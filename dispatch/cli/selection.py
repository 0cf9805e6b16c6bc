"""Which tasks a command means: by id, by ids from standard input, or by filters."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from itertools import chain, islice
from typing import Annotated, Any, Final, Literal

import attrs
from cyclopts import Parameter

from dispatch.cli.shell import CommandError, Opened, Shell, check_utf8
from dispatch.nearest import nearest
from dispatch.records import TaskRecord
from dispatch.storage.query import (
    All,
    Crons,
    Ids,
    Keys,
    Not,
    Order,
    Queues,
    Statuses,
    Tags,
    Types,
    Where,
)
from dispatch.storage.search import SearchError, searched

__all__ = [
    "BATCH",
    "Filters",
    "IdsArgument",
    "Status",
    "batches",
    "records_of",
    "refuse_options",
    "task_ids",
    "unknown_task",
]

BATCH: Final = 500
"""Tasks changed in one step of a bulk command."""
_LOOKED_AT: Final = 500
"""Newest tasks among which a mistyped id is looked for."""
_ID_CHARACTERS: Final = 128

Status = Literal[
    "pending", "due", "later", "retrying", "running", "held", "succeeded", "failed", "cancelled"
]


IdsArgument = Annotated[
    str,
    Parameter(
        allow_leading_hyphen=True,
        negative=(),
        help="Task ids; - reads them from standard input, the first word of each line, "
        "also those that begin with a hyphen.",
    ),
]


def _many(text: str, *, allow_leading_hyphen: bool = False) -> Any:
    return Parameter(negative=(), show_default=False, help=text, allow_leading_hyphen=allow_leading_hyphen)


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Filters:
    """Conditions that all hold; of values given for one option, any."""

    queue: Annotated[tuple[str, ...], _many("Only of this queue; may be repeated.")] = ()
    type: Annotated[tuple[str, ...], _many("Only of this task type; may be repeated.")] = ()
    status: Annotated[tuple[Status, ...], _many("Only in this status; may be repeated.")] = ()
    key: Annotated[tuple[str, ...], _many("Only of this key; may be repeated.")] = ()
    tag: Annotated[tuple[str, ...], _many("Only with this tag; with every one if repeated.")] = ()
    cron: Annotated[tuple[str, ...], _many("Only from this cron task; may be repeated.")] = ()
    match: Annotated[
        str,
        _many("Only what all these words mean, such as 'error:Timeout finished:1h -tag:vip'.", allow_leading_hyphen=True),
    ] = ""

    @property
    def given(self) -> bool:
        """Whether there is any condition at all."""
        return self != Filters()

    def check(self) -> None:
        """Raise CommandError for words that cannot be read."""
        try:
            searched(self.match, 0.0)
        except SearchError as exc:
            raise CommandError(f"--match: {exc.detail}", 2) from exc

    async def check_names(self, shell: Shell, opened: Opened) -> None:
        """Raise CommandError for a queue that is not there; say of a type that is nowhere stored which is near."""
        # What is turned round is looked at, too: not of a queue that nobody has is every task.
        words = [each.part if isinstance(each, Not) else each for each in searched(self.match, 0.0).parts]
        named = chain.from_iterable(each.values for each in words if isinstance(each, Queues))
        await opened.queue_names(*self.queue, *named)
        typed = chain.from_iterable(each.values for each in words if isinstance(each, Types))
        for sentence in await opened.mistyped((*self.type, *typed)):
            shell.say(sentence)

    def where(self, now: float, *also: Where) -> Where:
        """The conditions as a query at this moment, with more that must hold as well."""
        parts: list[Where] = [*searched(self.match, now).parts]
        if self.queue:
            parts.append(Queues(*self.queue))
        if self.type:
            parts.append(Types(*self.type))
        if self.status:
            parts.append(Statuses(*self.status))
        if self.key:
            parts.append(Keys(*self.key))
        if self.tag:
            parts.append(Tags(all_of=self.tag))
        if self.cron:
            parts.append(Crons(*self.cron))
        return All(*parts, *also)


NO_FILTERS: Final = Filters()


def refuse_options(ids: Sequence[str]) -> None:
    """Raise CommandError if what stands for an id looks like an option that the command does not have.

    Ids may be `-`, so the parser lets whatever begins so through. An id that
    does is named on standard input.
    """
    for each in ids:
        if each.startswith("-") and each != "-":
            raise CommandError(f"unknown option {each!r}. Try --help", 2)


def task_ids(shell: Shell, ids: Sequence[str]) -> list[str]:
    """The ids given, `-` replaced by those on standard input; each once, in order."""
    refuse_options(ids)
    found: dict[str, None] = {}
    for each in ids:
        if each != "-":
            found[each] = None
            continue
        for number, text in enumerate(shell.stdin, 1):
            words = text.split(None, 1)
            if not words:
                continue
            check_utf8(words[0], f"line {number} of standard input")
            if len(words[0]) > _ID_CHARACTERS:
                raise CommandError(
                    f"standard input, line {number}: {words[0][:40]!r}... is no task id", 2
                )
            found[words[0]] = None
    return list(found)


def batches(ids: Iterable[str]) -> Generator[list[str]]:
    """The ids, `BATCH` at a time."""
    rest = iter(ids)
    while batch := list(islice(rest, BATCH)):
        yield batch


async def records_of(opened: Opened, ids: Sequence[str]) -> dict[str, TaskRecord]:
    """The stored tasks among at most `BATCH` ids."""
    page = await opened.storage.find(Ids(*ids), limit=max(len(ids), 1))
    return {record.id: record for record in page.records}


async def unknown_task(opened: Opened, task_id: str) -> str:
    """A sentence about an id that is not stored, with the nearest one that is."""
    page = await opened.storage.find(All(), order=Order.NEWEST, limit=_LOOKED_AT)
    hint = nearest(task_id, [record.id for record in page.records])
    return f"no task {task_id!r}{hint or '; it may have been pruned'}"
