"""`dispatch cron`: cron entries that publish tasks, added, previewed and changed."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import attrs
from cyclopts import App, Parameter

from dispatch.cli import values
from dispatch.cli.output import ago, document, iso, table
from dispatch.cli.seasons import ClockChange, clock_changes, told
from dispatch.cli.shell import (
    CommandError,
    JsonOption,
    Opened,
    ShellArgument,
    StoreOption,
    YesOption,
)
from dispatch.cli.task_fields import NO_FIELDS, TaskFields
from dispatch.clock import Clock
from dispatch.codec import Codec
from dispatch.cron.policy import CronPolicy, read_definition
from dispatch.cron.spec import CronSpec
from dispatch.errors import CronNameConflictError, DispatchError
from dispatch.nearest import known
from dispatch.storage.protocol import CronRecord
from dispatch.tasks import TaskType

__all__ = ["app"]

app: Final = App(name="cron", help="List, preview, add, trigger, pause and remove cron tasks.")

Dst = Annotated[
    Literal["vixie", "robfig"],
    Parameter(help="When clocks change: make up and fire once, or skip and repeat."),
]
Zone = Annotated[str, Parameter(help="The zone whose wall clock counts, such as Europe/Berlin.")]
Names = Annotated[str, Parameter(help="Cron tasks.")]


# -- looking ------------------------------------------------------------------


@app.command
async def ls(*, json: JsonOption = False, store: StoreOption = None, shell: ShellArgument) -> None:
    """List the stored cron tasks. Functions that fire inside a process are not stored."""
    async with shell.open(store) as opened:
        records = await opened.storage.crons()
        now = opened.storage.now()
    if json:
        document(shell.stdout, {"crons": [_object(each) for each in records]})
        return
    columns = ("name", "text", "zone", "publishes", "state", "next", "last", "published")
    people = shell.stdout.isatty()
    table(shell.stdout, columns, [_row(each, now, people=people) for each in records])


def _read(record: CronRecord) -> tuple[CronSpec, CronPolicy, str] | None:
    """What the entry says, or None where this version cannot read it."""
    try:
        return read_definition(record.definition, record.created_at)
    except (DispatchError, ValueError, TypeError, KeyError):
        return None


def _last(record: CronRecord) -> float | None:
    """The newest tick it has dealt with; what is stored before the first is when it was added."""
    return record.last_slot if record.total else None


def _row(record: CronRecord, now: float, *, people: bool) -> tuple[object, ...]:
    read = _read(record)
    state = "ok" if record.paused_reason is None else f"paused: {record.paused_reason}"
    following = None if record.paused_reason is not None else record.next_slot
    return (
        record.name,
        "unreadable" if read is None else read[0].text,
        "" if read is None else read[0].zone,
        f"{record.template.queue}/{record.template.type}",
        state,
        ago(following, now) if people else iso(following),
        ago(_last(record), now) if people else iso(_last(record)),
        record.total,
    )


def _object(record: CronRecord) -> dict[str, Any]:
    read = _read(record)
    spec, policy, description = read if read is not None else (None, None, "")
    return {
        "name": record.name,
        "text": None if spec is None else spec.text,
        "zone": None if spec is None else spec.zone,
        "dst": None if spec is None else spec.dst,
        "meaning": None if spec is None else spec.describe(),
        "description": description,
        "policy": None if policy is None else attrs.asdict(policy),
        "queue": record.template.queue,
        "type": record.template.type,
        "declared": record.declared,
        "paused_reason": record.paused_reason,
        "last": iso(_last(record)),
        "next": iso(record.next_slot),
        "total": record.total,
        "created_at": iso(record.created_at),
    }


@app.command
async def preview(
    text: str | None = None,
    /,
    *,
    name: str | None = None,
    zone: Zone = "UTC",
    dst: Dst = "vixie",
    count: Annotated[values.Whole, Parameter(name=("--count", "-n"))] = 5,
    after: str | None = None,
    json: JsonOption = False,
    store: StoreOption = None,
    shell: ShellArgument,
) -> None:
    """Say in plain English what a cron text means, when it fires next, and what clock changes do.

    Needs no store, unless --name is given without a text.

    Parameters
    ----------
    text
        A cron text, such as "30 2 * * *" or "@daily"; or give --name.
    name
        Preview this stored cron task; with a text, the name that its H is drawn from.
    count
        So many moments, up to 10000.
    after
        From this ISO 8601 moment on instead of from now.
    """
    if text is None and name is None:
        raise CommandError('preview wants a cron text, such as "30 2 * * *", or --name', 2)
    start = None if after is None else values.moment(after, "--after")
    if text is not None:
        spec = CronSpec(text, zone, dst, name=name)
        now = Clock().utc()
    else:
        assert name is not None
        async with shell.open(store) as opened:
            await _names(opened, name)
            entry = await opened.cron().get_task(name)
            now = Clock().utc()
        assert entry.spec is not None
        spec = entry.spec
    start = start if start is not None else now
    moments = spec.preview(count, after=start)
    changes = clock_changes(spec, start)
    if json:
        document(
            shell.stdout,
            {
                "text": spec.text,
                "zone": spec.zone,
                "dst": spec.dst,
                "meaning": spec.describe(),
                "moments": [moment.isoformat() for moment in moments],
                "clock_changes": [_change_object(each) for each in changes],
            },
        )
        return
    shell.print(spec.describe())
    for moment in moments:
        shell.print(f"{moment:%a %Y-%m-%d %H:%M:%S %Z}  {ago(moment.timestamp(), now.timestamp())}")
    if spec.next(start) is None:
        shell.print("It does not fire any more.")
    if changes:
        shell.print("When clocks change:")
    for change in changes:
        shell.print(told(change))


def _change_object(change: ClockChange) -> dict[str, Any]:
    return {
        "at": change.at.isoformat(),
        "shift_s": (change.after - change.before).total_seconds(),
        "fires": [moment.isoformat() for moment in change.fires],
        "count": change.count,
        "count_on_an_ordinary_day": change.usual,
        "meaning": told(change),
    }


# -- changing -----------------------------------------------------------------


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Policies:
    """What happens when the plan and the world part; see `CronPolicy`."""

    misfire: Annotated[
        Literal["latest", "skip", "all"],
        Parameter(help="Ticks missed while nothing ran: run the latest, none or all."),
    ] = "latest"
    overlap: Annotated[
        Literal["allow", "skip", "queue_one", "cancel_running"],
        Parameter(help="The task of the tick before has not ended yet."),
    ] = "allow"
    jitter: Annotated[str, Parameter(help="Spread starts over so long, such as 30s.")] = "0"
    start: Annotated[str | None, Parameter(help="Not before this ISO 8601 moment.")] = None
    end: Annotated[str | None, Parameter(help="Not after this ISO 8601 moment.")] = None


DEFAULT_POLICIES: Final = Policies()


@app.command
async def add(
    name: str,
    text: str,
    queue: str,
    type: str,  # noqa: A002 - the field's name
    payload: Annotated[str, Parameter(allow_leading_hyphen=True)] = "{}",
    /,
    *,
    zone: Zone = "UTC",
    dst: Dst = "vixie",
    policies: Policies = DEFAULT_POLICIES,
    description: str = "",
    options: TaskFields = NO_FIELDS,
    replace: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    store: StoreOption = None,
    shell: ShellArgument,
) -> None:
    """Add a cron task that publishes a task with a raw JSON payload at each tick.

    Adding the same again changes nothing.

    Parameters
    ----------
    name
        Unique in the store.
    text
        A cron text, such as "30 2 * * MON-FRI".
    queue
        A queue that some worker registered.
    type
        The task type.
    payload
        A JSON object; - reads it from standard input.
    description
        For people who list it.
    replace
        Replace a different cron task of this name.
    """
    codec = Codec()
    body = values.payload(shell.stdin.read() if payload == "-" else payload, codec)
    task = TaskType(queue, type, dict, version=options.version)(body, **options.fields())
    start = None if policies.start is None else values.moment(policies.start, "--start")
    end = None if policies.end is None else values.moment(policies.end, "--end")
    spec = CronSpec(text, zone, dst, name=name, start=start, end=end)
    async with shell.open(store) as opened:
        await opened.queue_names(queue)
        try:
            entry = await opened.cron().add_with_name(
                spec,
                name,
                task,
                replace=replace,
                description=description,
                misfire=policies.misfire,
                overlap=policies.overlap,
                jitter=values.seconds(policies.jitter, "--jitter"),
            )
        except CronNameConflictError:
            there = await opened.storage.crons(name)
            if there and there[0].declared:
                raise CommandError(
                    f"a different cron task named {name!r} is declared in code: change it there; "
                    f"`dispatch cron pause {name}` stops it"
                ) from None
            raise CommandError(
                f"a different cron task is named {name!r}; give --replace to replace it"
            ) from None
    assert entry.spec is not None
    shell.print(f"{name}: {entry.spec.describe()}")
    if entry.next is not None:
        shell.print(f"next: {entry.next.isoformat()}")


@app.command
async def run(*names: Names, store: StoreOption = None, shell: ShellArgument) -> None:
    """Publish the tasks of cron tasks now, beside their plan; prints the ids."""
    async with shell.open(store) as opened:
        await _names(opened, *_some(names))
        cron = opened.cron()
        for name in names:
            task = await cron.trigger(name)
            if task is None:
                raise CommandError(f"cron task {name!r}: its task was not stored")
            shell.print(task.id)


@app.command
async def pause(
    *names: Names,
    reason: str = "paused by hand",
    store: StoreOption = None,
    shell: ShellArgument,
) -> None:
    """Fire cron tasks no more until they are resumed.

    Parameters
    ----------
    reason
        For people who list it.
    """
    async with shell.open(store) as opened:
        await _names(opened, *_some(names))
        for name in names:
            await opened.cron().pause(name, reason)
            shell.print(f"cron task {name} is paused")


@app.command
async def resume(*names: Names, store: StoreOption = None, shell: ShellArgument) -> None:
    """Fire cron tasks again from their next tick on; missed ones are not made up."""
    async with shell.open(store) as opened:
        await _names(opened, *_some(names))
        for name in names:
            await opened.cron().resume(name)
            shell.print(f"cron task {name} goes on")


@app.command
async def rm(
    *names: Names,
    running: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    yes: YesOption = False,
    store: StoreOption = None,
    shell: ShellArgument,
) -> None:
    """Remove cron tasks; what they have published stays.

    Parameters
    ----------
    running
        Also cancel the tasks they published that have not ended.
    """
    async with shell.open(store) as opened:
        await _names(opened, *_some(names))
        shell.confirm(f"remove cron task {', '.join(names)}", yes=yes)
        for name in names:
            await opened.cron().cancel(name, running=running)
            shell.print(f"cron task {name} is removed")


def _some(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise CommandError("which cron task? Give its name", 2)
    return names


async def _names(opened: Opened, *asked: str) -> None:
    """Raise CommandError for a name that no stored cron task has."""
    names = [record.name for record in await opened.storage.crons()]
    for name in asked:
        if name not in names:
            raise CommandError(f"no cron task {name!r}{known(name, names)}")
