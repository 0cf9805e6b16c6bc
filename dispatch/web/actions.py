"""What a page may change: one function per form, from its fields to what was done.

Each answers `Done`, which the next page shows as a sentence, or `Ask`: what
destroys, and what reaches further than the eye, is first said and confirmed, on
a page of its own that needs no script. What cannot be done is a DispatchError,
whose message goes to whoever asked.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from math import inf, isfinite, nan
from typing import Any, Final, Literal, TypedDict, cast
from urllib.parse import parse_qsl, urlencode

import attrs

from dispatch.checks import MAX_DELAY_S
from dispatch.cron.dispatcher import CronTask, CronTaskDispatcher
from dispatch.cron.spec import CronSpec
from dispatch.errors import (
    CronTaskNotFoundError,
    DispatchError,
    InvalidConfigError,
    InvalidQueuePayloadError,
    InvalidQueueTaskError,
    StorageError,
)
from dispatch.failures import describe, printable
from dispatch.lifecycle import TABLE, Event
from dispatch.publisher import TaskQueuePublisher
from dispatch.records import NewTask, TaskRecord, from_seconds
from dispatch.storage.protocol import Change
from dispatch.storage.query import All, Ids, PruneSpec, Queues, Statuses, Time, Where
from dispatch.storage.search import SearchError
from dispatch.tasks import Priority, QueueTask, TaskStatus, TaskType
from dispatch.web import pages
from dispatch.web.desk import BOUND, Desk, priority
from dispatch.web.filters import QUERY_LIMIT, TaskFilter, whole
from dispatch.web.shown import TEXT_LIMIT, as_json, restored, visible

__all__ = ["ACTIONS", "Ask", "Done", "Fields", "preview", "tags_text"]

log: Final = logging.getLogger("dispatch.web")

Fields = Mapping[str, Sequence[str]]
"""A form's fields; each may be given more than once."""

MOST_IDS: Final = 1_000
BATCH: Final = 1_000
PRUNE_MOST: Final = 10_000
SEARCH_S: Final = 5.0
"""All that a filter means is searched for at most this long; then more may be left."""
SPEC_LIMIT: Final = 500
TAGS_LIMIT: Final = 100_000
_TAG: Final = re.compile(r'("(?:[^"\\]|\\.)*")|([^\s,]+)')
_PLAIN_TAG: Final = re.compile(r'[^\s,"]+')


@attrs.frozen(kw_only=True)
class Done:
    """It was done: to how many, and which page, with which query, shows what became of it."""

    what: str
    n: int = 1
    more: bool = False
    page: str
    query: str = ""
    ids: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Ask:
    """It is not done yet: what would be, to how many, and the word on the button."""

    sentence: str
    button: str
    n: int
    more: bool = False
    page: str
    query: str = ""
    until: float | None = None
    """When it was counted: what came later was not asked about."""


TASK_ACTIONS: Final = ("now", "save", "rerun", "copy")
QUEUE_ACTIONS: Final = ("pause", "resume", "concurrency", "remove")
CRON_ACTIONS: Final = ("add", "change", "run", "pause", "resume", "delete")


def _no_action(on: str, action: str, names: Iterable[str]) -> InvalidConfigError:
    return InvalidConfigError(f"no action on {on} is named {action[:40]!r}; there are {', '.join(names)}")


def _one(fields: Fields, name: str, limit: int = 500) -> str:
    """A field's first value, bounded; "" if it is missing."""
    given = fields.get(name)
    return given[0][:limit] if given else ""


def _sure(fields: Fields) -> bool:
    return _one(fields, "sure") == "yes"


# -- lists of tasks -----------------------------------------------------------

_VERBS: Final[Mapping[str, str]] = {
    "rerun": "Run again",
    "cancel": "Cancel",
    "hold": "Hold",
    "resume": "Resume",
    "delete": "Delete",
}


async def change_tasks(desk: Desk, fields: Fields) -> Done | Ask:
    """Rerun, cancel, hold, resume or delete the chosen tasks, or all that a filter means.

    A filter that is not understood to its last condition is a SearchError.
    """
    action = _one(fields, "action")
    if action not in _VERBS:
        raise _no_action("tasks", action, _VERBS)
    everything = _one(fields, "all") == "yes"
    wanted = _filter(fields) if everything else TaskFilter.parse(_query(_one(fields, "query", QUERY_LIMIT)))
    back = attrs.evolve(wanted, after="").query()
    ids = tuple(dict.fromkeys(each[:200] for each in fields.get("id", ())))
    if not everything and not ids:
        raise InvalidConfigError("no task was chosen; tick some first")
    if not everything and len(ids) > MOST_IDS:
        raise InvalidConfigError(
            f"at most {MOST_IDS:,} tasks are chosen by id in one request, got {len(ids):,}; nothing was changed: "
            "send several requests, or all=yes with a query that means them"
        )
    page = "task" if _one(fields, "from") == "task" and len(ids) == 1 else "tasks"
    query = urlencode({"id": ids[0]}) if page == "task" else back
    meant: list[Where] = [Ids(*ids)]
    more = False
    if everything:
        meant, more = await _meant(desk, wanted, action)
    until = _until(desk, fields)
    before: Where = All()
    if everything:
        # What was run again and has ended again since was created long ago: its end tells it apart.
        before = Time("finished_at" if action in ("delete", "rerun") else "created_at", until=until)
    if (everything or action in ("cancel", "delete")) and not _sure(fields):
        n = len(await _each(desk, action, meant, before, dry_run=True))
        more = more or n >= BOUND
        return Ask(
            sentence=f"{_VERBS[action]} {_many(n, more, 'task')}?{_WARNINGS.get(action, '')}",
            button=_VERBS[action],
            n=n,
            more=more,
            page=page,
            query=query,
            until=until if everything else None,
        )
    if everything and action == "rerun":
        # By name, each once: a clock's error may be longer than a task takes to end again.
        named = await _each(desk, action, meant, before, dry_run=True)
        meant, more = _batches(named), more or len(named) >= BOUND
    changed = await _each(desk, action, meant, before)
    n = len(changed)
    if action == "delete":
        page, query = "tasks", back
    more = more or n >= BOUND
    return Done(what=action, n=n, more=more, page=page, query=query, ids=tuple(filter(None, changed[:MOST_IDS])))


_WARNINGS: Final = {
    "delete": " They and their history are gone for good; tasks that have not ended stay.",
    "cancel": " Running ones are asked to stop.",
}


def _until(desk: Desk, fields: Fields) -> float:
    """When what is meant was counted: as the question said, given back by who is sure; else now.

    Never later: that would be no bound.
    """
    now = desk.storage.now() + 0.001
    given = _number(fields, "until", most=inf) if _sure(fields) else None
    return now if given is None else min(given, now)


def _filter(fields: Fields) -> TaskFilter:
    """What `all` is said of. A form without `query` may be a slip: only an empty one means every task."""
    given = fields.get("query", ())
    if len(given) != 1:
        raise SearchError(
            f"all: wanted is one query, such as status=failed, an empty one for every task; got {len(given)}"
        )
    return TaskFilter.exactly(given[0])


def _query(text: str) -> dict[str, str]:
    """A query string to go back to: what cannot be read of it is left out."""
    try:
        return dict(parse_qsl(text, max_num_fields=20))
    except ValueError:
        return {}


def _change(action: str) -> Change:
    named = cast("Literal['rerun', 'cancel', 'hold', 'resume']", action)
    return Change(action=named, reason="cancelled on the dashboard")


_FROM: Final[Mapping[str, frozenset[TaskStatus]]] = {
    "rerun": TABLE[Event.RERUN].source,
    "cancel": TABLE[Event.CANCEL].source | TABLE[Event.ASK_CANCEL].source,
    "hold": TABLE[Event.HOLD].source,
    "resume": TABLE[Event.RESUME].source,
    "delete": frozenset(status for status in TaskStatus if status.is_terminal),
}


async def _meant(desk: Desk, wanted: TaskFilter, action: str) -> tuple[list[Where], bool]:
    """What a filter means, as conditions that a storage need not search for; and whether that is all.

    In those statuses only that the action can change: a million others need not be passed.
    """
    if not wanted.is_searching:
        names = tuple(queue.name for queue in await desk.queues())
        narrow = Statuses(*_FROM[action])
        return [All(Queues(*([wanted.queue] if wanted.queue else names)), wanted.place(names), narrow)], False

    def able(record: TaskRecord) -> str | None:
        return record.id if record.status in _FROM[action] else None

    found = await pages.search(desk, attrs.evolve(wanted, after=""), able, limit=BOUND, for_s=SEARCH_S)
    return _batches(found.kept), found.cursor is not None


def _batches(ids: Sequence[str]) -> list[Where]:
    return [Ids(*ids[at : at + BATCH]) for at in range(0, len(ids), BATCH)]


async def _each(
    desk: Desk, action: str, meant: Sequence[Where], before: Where, *, dry_run: bool = False
) -> list[str]:
    """Change what is meant and was `before`, in batches, at most `BOUND` in one request; the ids changed.

    What is deleted has no ids to tell: as many empty ones stand for it. What was changed before
    it failed, or was cancelled, stays so: the log says to how many, and a StorageError, too.
    """
    found: list[str] = []
    try:
        await _change_each(desk, action, meant, before, found, dry_run=dry_run)
    except BaseException as exc:
        if found and not dry_run:
            log.warning("%s: stopped after %d: %s", action, len(found), printable(describe(exc)), extra={"event": "acted"})
            if isinstance(exc, StorageError):
                raise StorageError(f"{exc.detail}; {_many(len(found), False, 'task')} had been changed by then") from exc
        raise
    return found


async def _change_each(
    desk: Desk, action: str, meant: Sequence[Where], before: Where, found: list[str], *, dry_run: bool
) -> None:
    limit = BOUND if dry_run else BATCH
    for where in meant:
        tree = All(where, before)
        while len(found) < BOUND:
            if action == "delete":
                spec = PruneSpec(keep=0, where=tree, dead_letters=True, limit=limit)
                batch = [""] * await desk.storage.prune(spec, dry_run=dry_run)
            else:
                batch = await desk.storage.alter(tree, _change(action), limit=limit, dry_run=dry_run)
            found += batch
            # Those named are one batch: a second would run those again that have ended meanwhile.
            if dry_run or len(batch) < limit or isinstance(where, Ids):
                break


def _many(n: int, more: bool, noun: str) -> str:
    return f"{n:,}{'+' if more else ''} {noun}{'' if n == 1 else 's'}"


# -- one task -----------------------------------------------------------------


async def change_task(desk: Desk, fields: Fields) -> Done | Ask:
    """Run one task now; save edits to it, rerun it with them, or publish a copy with them."""
    action = _one(fields, "action")
    record = await pages.found(desk, _one(fields, "id", 200))
    query = urlencode({"id": record.id})
    if action == "now":
        change = Change(action="patch", available_at=desk.storage.now())
        changed = await desk.storage.alter(Ids(record.id), change)
        return Done(what="now", n=len(changed), page="task", query=query, ids=tuple(changed))
    if action not in TASK_ACTIONS:
        raise _no_action("a task", action, TASK_ACTIONS)
    new = await _edited(desk, record, fields)
    if action == "copy":
        await desk.storage.enqueue([new])
        desk.publisher.tell_published(new, desk.storage.now())
        return Done(what="copy", page="task", query=urlencode({"id": new.id}), ids=(new.id,))
    change = Change(
        action="patch",
        payload=new.payload,
        version=new.version,
        headers=new.headers,
        tags=new.tags,
        priority=new.priority,
        timeout=new.timeout,
        max_retry=new.max_retry,
    )
    changed = await desk.storage.alter(Ids(record.id), change)
    if action == "rerun":
        # Only what took the edits: one that succeeded meanwhile would run once more with the old payload.
        dead = All(Ids(record.id), Statuses("failed"))
        rerun = await desk.storage.alter(dead, _change("rerun"))
        action, changed = ("rerun", rerun) if rerun or not changed else ("save", changed)
    return Done(what=action, n=len(changed), page="task", query=query, ids=tuple(changed))


async def _edited(desk: Desk, record: TaskRecord, fields: Fields) -> NewTask:
    """The task with a form's fields in place of its own, checked as `publish` checks it; what it leaves out stays."""
    edited: dict[str, Any] = {}
    if "payload" in fields:
        shown = _shown(desk, record)
        payload = restored(_json(_one(fields, "payload", 1_000_000), "payload"), shown, desk.raw(record.payload))
        edited["payload"] = _bytes(payload)
    if "headers" in fields:
        before = dict(record.headers)
        headers = _json(_one(fields, "headers", 100_000) or "{}", "headers")
        edited["headers"] = restored(headers, desk.redactor.tree(before), before)
    for name, read in _EDITS.items():
        if name in fields:
            edited[name] = read(fields)
    return await _prepared(desk, attrs.evolve(record, **edited))


def _shown(desk: Desk, record: TaskRecord) -> Any:
    """A payload as an editor has it before it: masked, and whole."""
    if len(record.payload) > TEXT_LIMIT:
        raise InvalidQueuePayloadError(
            f"this payload has {len(record.payload):,} bytes; with more than {TEXT_LIMIT:,} it cannot be edited here"
        )
    snap = pages.snapshot(desk, record)
    shown, readable = desk.data(record.payload, snap.declared.payload if snap.declared else None)
    if not readable:
        raise InvalidQueuePayloadError("this payload is no JSON text; it cannot be edited here")
    return shown


async def _prepared(desk: Desk, record: TaskRecord) -> NewTask:
    """A row as a new task to store, checked, with its type's class where this process knows it."""
    task, publisher = _task(desk, record)
    return await publisher.prepare(task)


def _task(desk: Desk, record: TaskRecord) -> tuple[QueueTask[Any, Any], TaskQueuePublisher]:
    """A row as a task to publish, and the publisher that knows its type.

    A type this process does not know keeps the payload's version: under another
    one its handlers would read it wrongly. That takes a publisher of its own, so
    that what is made up here never meets the type's true declaration.
    """
    if not isinstance(record.headers, Mapping) or not all(
        isinstance(each, str) for pair in record.headers.items() for each in cast("Any", pair)
    ):
        raise InvalidQueueTaskError('headers: wanted is a JSON object of texts, such as {"trace": "1"}')
    snap = pages.snapshot(desk, record)
    task = snap.again()
    if snap.declared is not None:
        # A snapshot shows what it cannot decode as it is; here that is an error with a path.
        desk.check(record, snap.declared)
        return task, desk.publisher
    if not isinstance(task.payload, dict):
        raise InvalidQueuePayloadError("payload: wanted is a JSON object")
    made_up: TaskType[Any] = TaskType(record.queue, record.type, dict, version=record.version)
    return attrs.evolve(task, declared=made_up), TaskQueuePublisher(desk.storage)


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise InvalidQueuePayloadError(f"{what}: nested too deeply") from None
    except ValueError as exc:
        raise InvalidQueuePayloadError(f"{what}: no JSON text: {exc}") from None


def _bytes(tree: Any) -> bytes:
    try:
        return json.dumps(tree, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, RecursionError) as exc:
        raise InvalidQueuePayloadError(f"payload: cannot be stored: {exc}") from None


def _tags(fields: Fields) -> tuple[str, ...]:
    """Tags between blanks and commas; one that has some in it, or is not plain to see, in quotes as in JSON."""
    found: dict[str, None] = {}
    for quoted, plain in _TAG.findall(_one(fields, "tags", TAGS_LIMIT)):
        try:
            found[json.loads(quoted) if quoted else plain] = None
        except ValueError:
            raise InvalidConfigError(f"tags: no JSON text: {quoted[:60]}") from None
    return tuple(found)


def tags_text(tags: Sequence[str]) -> str:
    """Tags as a form has them before it, and as `_tags` reads them."""
    return " ".join(tag if _PLAIN_TAG.fullmatch(tag) and visible(tag) == tag else _quoted(tag) for tag in tags)


def _quoted(tag: str) -> str:
    return visible(json.dumps(tag, ensure_ascii=False))


def _priority(fields: Fields) -> int:
    given = _one(fields, "priority") or "normal"
    try:
        return int(Priority[given.upper()])
    except KeyError:
        raise InvalidConfigError(
            f"priority: one of {', '.join(level.name.lower() for level in Priority)}, got {given[:40]!r}"
        ) from None


def _number(
    fields: Fields, name: str, unit: str = "seconds", *, least: float = 0.001, most: float = MAX_DELAY_S
) -> float | None:
    """What is too much is the most; what is too little is refused, for it may mean all, or nothing."""
    given = _one(fields, name, 40).strip()
    if not given:
        return None
    try:
        value = float(given)
    except ValueError:
        value = nan
    if not isfinite(value) or value < least:
        raise InvalidConfigError(f"{name}: a number of {unit} from {least:g}, got {given!r}")
    return min(value, most)


def _whole(fields: Fields, name: str) -> int | None:
    given = _one(fields, name, 40).strip()
    if not given:
        return None
    if not given.isdecimal():
        raise InvalidConfigError(f"{name}: a whole number from 0, got {given!r}")
    return min(int(given), 1_000_000)


_EDITS: Final[Mapping[str, Callable[[Fields], Any]]] = {
    "tags": _tags,
    "priority": _priority,
    "timeout": lambda fields: _number(fields, "timeout"),
    "max_retry": lambda fields: _whole(fields, "max_retry"),
}
"""What a form may change of a task beside its payload and headers."""


# -- queues -------------------------------------------------------------------


async def change_queue(desk: Desk, fields: Fields) -> Done | Ask:
    """Pause, resume or resize a queue, for every process; remove one that nothing uses."""
    action, name = _one(fields, "action"), _one(fields, "name", 128)
    match action:
        case "pause":
            await desk.control.pause_queue(name)
        case "resume":
            await desk.control.resume_queue(name)
        case "concurrency":
            if "concurrency" not in fields:
                raise InvalidConfigError("concurrency: a whole number, or an empty field for the queue's own; it is missing")
            given = _one(fields, "concurrency", 20).strip()
            if given and (not given.isdecimal() or not int(given)):
                raise InvalidConfigError(
                    f"concurrency: a whole number from 1, or nothing for the queue's own; got {given!r}; pause it to stop it"
                )
            await desk.control.set_concurrency(name, whole(given, 1, 1, 10_000) if given else None)
        case "remove":
            sure = _sure(fields)
            await desk.control.remove_queue(name, dry_run=not sure)
            if not sure:
                return Ask(
                    sentence=f"Remove the queue {name}, and what was set on it by hand? "
                    "Publishing into it is refused until a process that registers it starts.",
                    button="Remove",
                    n=1,
                    page="queues",
                )
        case _:
            raise _no_action("a queue", action, QUEUE_ACTIONS)
    return Done(what=f"queue-{action}", page="queues")


# -- cron ---------------------------------------------------------------------


async def change_cron(desk: Desk, fields: Fields) -> Done | Ask:
    """Add or change a stored entry; run, pause, resume or delete any cron task."""
    action, name = _one(fields, "action"), _one(fields, "name", 128)
    query = urlencode({"name": name})
    match action:
        case "add":
            await _add_cron(desk, fields, name)
        case "change":
            await _change_cron(desk, fields, name)
        case "run":
            published = await desk.cron.trigger(name)
            if published is not None:
                return Done(what="cron-run", page="task", query=urlencode({"id": published.id}), ids=(published.id,))
            # A task may be gone again already; a function never was one.
            if (await desk.cron.get_task(name)).func is not None:
                return Done(what="cron-start", page="cron", query=query)
        case "pause":
            await desk.cron.pause(name, _one(fields, "reason", 200) or "paused on the dashboard")
        case "resume":
            await desk.cron.resume(name)
        case "delete":
            if not _sure(fields):
                await desk.cron.get_task(name)
                return Ask(
                    sentence=f"Delete the cron task {name}? Its tasks stay; it publishes no more.",
                    button="Delete",
                    n=1,
                    page="cron",
                    query=query,
                )
            if not await desk.cron.cancel(name):
                raise CronTaskNotFoundError(f"no cron task is named {name!r}; nothing was deleted")
            return Done(what="cron-delete", page="cron")
        case _:
            raise _no_action("a cron task", action, CRON_ACTIONS)
    return Done(what=f"cron-{action}", page="cron", query=query)


async def _add_cron(desk: Desk, fields: Fields, name: str) -> None:
    spec = _spec(fields, name)
    # Nothing was shown yet: `***` stands for nothing.
    payload = restored(_json(_one(fields, "payload", 1_000_000) or "{}", "payload"), None, None)
    task, publisher = _task(desk, _published(fields, payload))
    if publisher is not desk.publisher and any(
        each.name == name and each.func is not None for each in await desk.cron.tasks()
    ):
        raise InvalidConfigError(f"a function is the cron task {name!r}; take another name")
    cron = desk.cron if publisher is desk.publisher else CronTaskDispatcher(desk.storage, publisher=publisher)
    await cron.add_with_name(spec, name, task, description=_description(fields), **_policy(fields))


async def _change_cron(desk: Desk, fields: Fields, name: str) -> None:
    """Evolve a stored entry by the fields given: what a form does not show stays as it is."""
    known = await desk.storage.crons(name)
    entry = await desk.cron.get_task(name) if known else None
    if entry is None or entry.func is not None:
        raise CronTaskNotFoundError(f"no stored cron task is named {name!r}; functions are changed in code")
    assert entry.spec is not None
    template = known[0].template
    shown = _shown(desk, pages.record_of(template))
    fields = {**_as_shown(entry, template, as_json(shown)), **fields}
    spec = _evolved(entry.spec, fields, name)
    payload = _json(_one(fields, "payload", 1_000_000) or "{}", "payload")
    if (_one(fields, "queue", 128), _one(fields, "type", 128)) == (template.queue, template.type):
        payload = restored(payload, shown, desk.raw(template.payload))
        made = _published(fields, payload, headers=template.headers, version=template.version, key=template.key)
    elif template.unique is not None:
        raise InvalidConfigError(
            f"cron task {name!r}: its tasks are unique within {template.queue}/{template.type}; "
            "for another queue or type add another cron task in code"
        )
    else:
        # Another type may not hide what this one does: nothing is put back.
        made = _published(fields, restored(payload, None, None))
    new = attrs.evolve(
        await _prepared(desk, made),
        id="",
        delay=template.delay,
        available_at=template.available_at,
        unique=template.unique,
    )
    policy = attrs.evolve(entry.policy, **_policy(fields))
    await desk.cron.change(name, spec, policy, _description(fields, entry.description), new)


def _as_shown(entry: CronTask, template: NewTask, payload: str) -> Fields:
    """The form of a stored entry as its page shows it."""
    assert entry.spec is not None
    shown: dict[str, object] = {
        "spec": entry.spec.text,
        "zone": entry.spec.zone,
        "dst": entry.spec.dst,
        "description": entry.description,
        "overlap": entry.policy.overlap,
        "misfire": entry.policy.misfire,
        "jitter": entry.policy.jitter,
        "queue": template.queue,
        "type": template.type,
        "payload": payload,
        "tags": tags_text(template.tags),
        "priority": priority(template.priority),
        "timeout": template.timeout,
        "max_retry": template.max_retry,
    }
    return {name: ["" if value is None else str(value)] for name, value in shown.items()}


def _description(fields: Fields, before: str = "") -> str:
    """A form's description; the one before it where that is what the form shows."""
    given = _one(fields, "description", 1_000_000)
    return before if given.replace("\r\n", "\n") == visible(before) else given.replace("\r\n", "\n")


def _published(fields: Fields, payload: Any, **more: Any) -> TaskRecord:
    """The task that a form's cron task publishes, as a row that was never stored."""
    return TaskRecord(
        id="",
        queue=_one(fields, "queue", 128),
        type=_one(fields, "type", 128),
        payload=_bytes(payload),
        tags=_tags(fields),
        priority=_priority(fields),
        timeout=_number(fields, "timeout"),
        max_retry=_whole(fields, "max_retry"),
        **more,
    )


class _Policies(TypedDict, total=False):
    """The policies that a form has; what they may be is checked where they are used."""

    overlap: Literal["allow", "skip", "queue_one", "cancel_running"]
    misfire: Literal["latest", "skip", "all"]
    jitter: float


def _policy(fields: Fields) -> _Policies:
    options: dict[str, Any] = {name: given for name in ("overlap", "misfire") if (given := _one(fields, name, 40))}
    options["jitter"] = min(_number(fields, "jitter", least=0.0) or 0.0, 366 * 86_400.0)
    return cast("_Policies", options)


def _spec(fields: Fields, name: str | None) -> CronSpec:
    text = _one(fields, "spec", SPEC_LIMIT + 1).strip()
    if len(text) > SPEC_LIMIT:
        raise InvalidConfigError(f"a cron text has at most {SPEC_LIMIT} characters here")
    if not text:
        raise InvalidConfigError("write a cron text, such as 0 9 * * MON-FRI or @every 5m")
    dst = cast("Literal['vixie', 'robfig']", _one(fields, "dst", 20) or "vixie")
    return CronSpec(text, _one(fields, "zone", 64).strip() or "UTC", dst, name=name)


def _evolved(spec: CronSpec, fields: Fields, name: str) -> CronSpec:
    """A stored entry's spec with a form's text, zone and rule: bounds, anchor and what `H` is drawn from stay."""
    given = _spec(fields, spec.name or name)
    return attrs.evolve(spec, text=given.text, zone=given.zone, dst=given.dst, name=given.name)


async def preview(desk: Desk, fields: Fields) -> dict[str, Any]:
    """What a cron text means under the name given, and its next moments; or what is wrong with it.

    With `entry`, what it would mean for that one.
    """
    name, entry = _one(fields, "name", 128), _one(fields, "entry", 128)
    try:
        known = next((each.spec for each in await desk.crons() if each.name == entry), None)
        spec = _spec(fields, name or None) if known is None else _evolved(known, fields, entry)
        now = from_seconds(desk.storage.now())
        # One that counts from its adding would count from now.
        anchored = spec if spec.anchor is not None else spec.with_anchor(now)
        found = anchored.preview(pages.MOMENTS, after=now)
        return {"says": spec.describe(), "moments": pages.moments(found), "problem": None}
    except DispatchError as exc:
        return {"says": None, "moments": [], "problem": str(exc)}


# -- storage ------------------------------------------------------------------


async def prune(desk: Desk, fields: Fields) -> Done | Ask:
    """Delete ended tasks by age; at most 10,000 in one request."""
    if _one(fields, "action") != "prune":
        raise InvalidConfigError("no such action on the storage")
    days = _number(fields, "days", "days", least=0.0)
    if days is None:
        raise InvalidConfigError("days: how old the ended tasks to delete are at least")
    age_s = min(days, 36_500.0) * 86_400.0
    until = _until(desk, fields)
    spec = PruneSpec(
        age_s=age_s,
        where=Time("finished_at", until=until - age_s),  # what has come of age since was not asked about
        dead_letters=_one(fields, "dead_letters") == "yes",
        limit=PRUNE_MOST,
    )
    n = await desk.storage.prune(spec, dry_run=not _sure(fields))
    more = n >= PRUNE_MOST
    if _sure(fields):
        return Done(what="prune", n=n, more=more, page="workers")
    kinds = "ended tasks, dead letters included," if spec.dead_letters else "ended tasks, dead letters aside,"
    return Ask(
        sentence=f"Delete {n:,}{'+' if more else ''} {kinds} older than {days:g} days? They are gone for good.",
        button="Delete",
        n=n,
        more=more,
        page="workers",
        until=until,
    )


Action = Callable[[Desk, Fields], Awaitable[Done | Ask]]

ACTIONS: Final[Mapping[str, Action]] = {
    "tasks": change_tasks,
    "task": change_task,
    "queues": change_queue,
    "cron": change_cron,
    "workers": prune,
}
"""By the page whose form it is."""
