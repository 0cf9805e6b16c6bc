"""The six pages as plain data; each function is one page, its JSON and what its template draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Final, Generic, TypeVar

import attrs
import trio

from dispatch.control import waiting_for
from dispatch.cron.dispatcher import CronTask
from dispatch.errors import InvalidConfigError, TaskNotFoundError
from dispatch.lifecycle import TABLE, Event
from dispatch.records import AttemptRecord, NewTask, TaskRecord, from_seconds
from dispatch.storage.protocol import QueueRecord, WorkerRecord
from dispatch.storage.query import All, Ids, Order, Queues, Statuses, matches
from dispatch.storage.search import SearchError
from dispatch.tasks import Priority, QueueTask, TaskStatus
from dispatch.web.desk import MOST_QUEUES, SHOWN, Count, Desk, View, priority
from dispatch.web.filters import TaskFilter
from dispatch.web.history import History
from dispatch.web.shown import TEXT_LIMIT, moment

__all__ = [
    "cron",
    "overview",
    "queues",
    "search",
    "snapshot",
    "task",
    "tasks",
    "workers",
]

T = TypeVar("T")

BRIEF: Final = 8
MOST_ENTRIES: Final = 100
MOST_WORKERS: Final = 200
MOST_ATTEMPTS: Final = 50
SEARCH_S: Final = 0.07
"""Looking at tasks one by one is given up so long after the page was begun; it says so, and goes on if asked."""
LEAST_SEARCH_S: Final = 0.02
SLICE: Final = 250
MOMENTS: Final = 8
ERROR_LIMIT: Final = 2_000
LOOK_BACK: Final = 100
"""So many of a queue's newest tasks are looked through for those of one cron task."""


async def overview(desk: Desk) -> View:
    """How things stand: counts, the last hour, what runs, what failed last, what cron does next."""
    known = await desk.queues()
    names = [queue.name for queue in known]
    now = desk.storage.now()
    counts = await desk.counts(names)
    history, source = await desk.history(names)
    running, failed = await desk.newest(names, "running", BRIEF), await desk.newest(names, "failed", BRIEF)
    entries = [entry for entry in await desk.crons() if entry.next is not None and not entry.paused]
    entries.sort(key=lambda entry: (entry.next, entry.name))
    return {
        "counts": _summed(counts.values()),
        "history": _history_view(history, source, now),
        "queues": [_queue_line(desk, queue, counts[queue.name], history, now) for queue in known[:MOST_QUEUES]],
        "queues_in_all": len(known),
        "running": [desk.row(record) for record in running],
        "failed": [desk.row(record) for record in failed],
        "cron": [
            {"name": entry.name, "text": entry.spec.text if entry.spec else "", "next": _iso(entry.next)}
            for entry in entries[:BRIEF]
        ],
        "workers": len(await desk.storage.workers()),
    }


def _summed(counts: Iterable[Mapping[str, Count]]) -> dict[str, View]:
    total: dict[str, Count] = dict.fromkeys(SHOWN, Count())
    for each in counts:
        for status, count in each.items():
            before = total[status]
            total[status] = Count(before.n + count.n, before.more or count.more)
    return {status: count.view() for status, count in total.items()}


def _history_view(history: History, source: str, now: float) -> View:
    return {
        "source": source,
        "total": _timed(history.totals(now)),
        "minutes": [_timed(minute) for minute in history.minutes(now)],
    }


def _timed(minute: Mapping[str, Any]) -> View:
    return {**minute, "at": moment(minute["at"])}


async def queues(desk: Desk) -> View:
    """Every queue: what is in it, how it is set, how its last hour was."""
    known = await desk.queues()
    names = [queue.name for queue in known]
    counts = await desk.counts(names)
    history, source = await desk.history(names)
    workers = await desk.storage.workers()
    now = desk.storage.now()
    lines: list[View] = []
    for queue in known[:MOST_QUEUES]:
        line = _queue_line(desk, queue, counts[queue.name], history, now)
        line["workers"] = sum(queue.name in worker.queues for worker in workers)
        line["oldest_at"] = await _oldest(desk, queue.name, counts[queue.name])
        line["unused"] = not line["workers"] and not any(count.n for count in counts[queue.name].values())
        lines.append(line)
    return {"queues": lines, "queues_in_all": len(known), "source": source}


def _queue_line(
    desk: Desk, queue: QueueRecord, counts: Mapping[str, Count], history: History, now: float
) -> View:
    here = None
    if desk.dispatcher is not None:
        own = desk.dispatcher.consumer.statistics().get(queue.name)
        here = None if own is None else {"running": own.running, "concurrency": own.concurrency}
    settings = attrs.asdict(queue)
    for name in ("name", "paused", "concurrency"):
        del settings[name]
    return {
        "name": queue.name,
        "paused": queue.paused,
        "concurrency": queue.concurrency,
        "settings": settings,
        "counts": {status: counts.get(status, Count()).view() for status in SHOWN},
        "here": here,
        "hour": _timed(history.totals(now, queue.name)),
        "ended": history.ended_per_minute(now, queue.name),
    }


async def _oldest(desk: Desk, queue: str, counts: Mapping[str, Count]) -> str | None:
    """Since when the longest waiting of the first stored tasks has been due."""
    if not counts.get("pending", Count()).n:
        return None
    known: str | None = desk.remembered(("oldest", queue))
    if known is not None:
        return known
    page = await desk.storage.find(All(Queues(queue), Statuses("pending")), limit=10)
    now = desk.storage.now()
    due = [record.available_at for record in page.records if record.available_at <= now]
    found = moment(min(due)) if due else None
    return None if found is None else desk.remember(("oldest", queue), found, 5.0)


async def tasks(desk: Desk, wanted: TaskFilter, problem: str | None = None) -> View:
    """One page of tasks; a text that cannot be read, or a search that was given up, is said so.

    `problem` is what else was not understood of what was asked for.
    """
    began = trio.current_time()
    known = await desk.queues()
    names = [queue.name for queue in known]
    view: View = {
        "filter": attrs.asdict(wanted),
        "tasks": [],
        "next": None,
        "looked_at": None,
        "problem": problem,
        "queues": names[:MOST_QUEUES],
        "queues_in_all": len(names),
        "counts": {},
    }
    of = [wanted.queue] if wanted.queue else names
    counts = await desk.counts(of)
    view["counts"] = _summed(counts.values())
    try:
        left_s = began + SEARCH_S - trio.current_time()
        found = await search(
            desk, wanted, desk.row, limit=wanted.limit, for_s=max(left_s, LEAST_SEARCH_S)
        )
    except SearchError as exc:
        view["problem"] = str(exc)
    except (InvalidConfigError, ValueError):
        view["problem"] = "That page is not there; go back to the newest tasks."
    else:
        view["tasks"] = found.kept
        view["next"] = found.cursor
        view["looked_at"] = found.looked_at if found.gave_up else None
    return view


@attrs.frozen
class Search(Generic[T]):
    """What was kept of what a filter means; `gave_up`: time ran out before all were looked at."""

    kept: list[T]
    cursor: str | None
    looked_at: int = 0
    gave_up: bool = False


async def search(
    desk: Desk,
    wanted: TaskFilter,
    keep: Callable[[TaskRecord], T | None],
    *,
    limit: int,
    for_s: float,
) -> Search[T]:
    """What `keep` makes of the tasks that a filter means, from its place on; `cursor` goes on.

    At most `limit`, of which None is not one. No task itself is kept: ten thousand
    may have payloads of gigabytes.

    What an index leads to, the storage finds in one go. For the rest, tasks are
    read in slices and looked at here, until the page is full or the time is over:
    a storage asked for a rare one in a million would read them all, and answer
    nobody else meanwhile. Raises SearchError.
    """
    names = tuple(queue.name for queue in await desk.queues())
    now = desk.storage.now()
    where = wanted.where(now, names)
    after = wanted.after or None
    if not wanted.is_searching or wanted.ids(now) is not None:
        page = await desk.storage.find(where, order=wanted.direction, limit=limit, after=after)
        made = [keep(record) for record in page.records]
        return Search([each for each in made if each is not None], page.cursor)
    place = wanted.place(names)
    kept: list[T] = []
    looked_at = 0
    until = trio.current_time() + for_s
    while True:
        page = await desk.storage.find(place, order=wanted.direction, limit=SLICE, after=after)
        for at, record in enumerate(page.records):
            each = keep(record) if matches(where, record, now) else None
            if each is not None:
                kept.append(each)
                if len(kept) == limit:
                    # Only a page's end has a cursor: this record is made one.
                    cut = await desk.storage.find(place, order=wanted.direction, limit=at + 1, after=after)
                    return Search(kept, cut.cursor)
        looked_at += len(page.records)
        after = page.cursor
        if after is None or trio.current_time() >= until:
            return Search(kept, after, looked_at, gave_up=after is not None)
        await trio.lowlevel.checkpoint()


async def task(desk: Desk, task_id: str) -> View:
    """One task, whole. Raises TaskNotFoundError (1002)."""
    record = await found(desk, task_id)
    attempts = await desk.storage.history(record.id)
    snap = snapshot(desk, record)
    payload, readable = desk.data(record.payload, snap.declared.payload if snap.declared else None)
    view = desk.row(record)
    view |= {
        "error": None if view["error"] is None else _whole_error(desk, record),
        "payload": payload,
        "payload_text": desk.text_of(payload),
        "payload_bytes": len(record.payload),
        "version": record.version,
        "known_type": snap.declared is not None,
        "headers": desk.redactor.tree(dict(record.headers)),
        "timeout": record.timeout,
        "max_retry": record.max_retry,
        "limit": record.limit,
        "retry": record.retry,
        "on_interrupt": record.on_interrupt,
        "lease_until": moment(record.lease_until),
        "slot": moment(record.slot),
        "result": None,
        "result_text": None,
        "attempts": [_attempt_view(desk, each) for each in attempts[-MOST_ATTEMPTS:]],
        "attempts_in_all": len(attempts),
        "span": _span(record, attempts, desk.storage.now()),
        "can": _can(record, readable=readable),
        "waiting_for": await _waiting_for(desk, record),
    }
    if record.result is not None:
        result, _ = desk.data(record.result, snap.declared.result if snap.declared else None)
        view |= {"result": result, "result_text": desk.text_of(result)}
    return view


async def _waiting_for(desk: Desk, record: TaskRecord) -> list[View]:
    causes = await waiting_for(desk.control, record)
    return [attrs.asdict(cause) | {"text": desk.redactor.text(cause.text)} for cause in causes]


async def found(desk: Desk, task_id: str) -> TaskRecord:
    """The task of this id. Raises TaskNotFoundError (1002)."""
    page = await desk.storage.find(Ids(task_id), limit=1) if task_id else None
    if page is None or not page.records:
        raise TaskNotFoundError("no task has this id; it may have been pruned")
    return page.records[0]


def _whole_error(desk: Desk, record: TaskRecord) -> str:
    text = record.cancel_reason if record.status is TaskStatus.CANCELLED else record.last_error
    return desk.redactor.text(text or "")


def _span(record: TaskRecord, attempts: Sequence[AttemptRecord], now: float) -> tuple[float, float]:
    """From the first look to the last one at it, in UTC seconds: what its timeline shows."""
    shown = attempts[-MOST_ATTEMPTS:]
    since = record.created_at if len(shown) == len(attempts) else shown[0].started_at
    if record.status is TaskStatus.RUNNING:
        return since, now
    return since, max([since, *(each.finished_at or since for each in shown)])


def _attempt_view(desk: Desk, attempt: AttemptRecord) -> View:
    error, _, traceback = desk.redactor.text(attempt.error or "").partition("\n")
    ended = attempt.finished_at
    return {
        "epoch": attempt.epoch,
        "attempt": attempt.attempt,
        "worker": attempt.worker,
        "started_at": moment(attempt.started_at),
        "finished_at": moment(ended),
        "started": attempt.started_at,
        "ended": ended,
        "run_s": None if ended is None else round(max(ended - attempt.started_at, 0.0), 6),
        "outcome": attempt.outcome.value,
        "error": error or None,
        "traceback": traceback or None,
    }


def _can(record: TaskRecord, *, readable: bool) -> dict[str, bool]:
    """What may be done to the task as it stands, by the table of states."""
    status = record.status
    dead = status is TaskStatus.FAILED
    return {
        "rerun": status in TABLE[Event.RERUN].source,
        "cancel": status in TABLE[Event.CANCEL].source
        or (status is TaskStatus.RUNNING and record.cancel_reason is None),
        "hold": status in TABLE[Event.HOLD].source,
        "resume": status in TABLE[Event.RESUME].source,
        "now": status is TaskStatus.PENDING,
        "delete": status.is_terminal,
        "edit": readable and len(record.payload) <= TEXT_LIMIT and (dead or not status.is_terminal),
        "copy": readable and len(record.payload) <= TEXT_LIMIT,
    }


def snapshot(desk: Desk, record: TaskRecord) -> QueueTask[Any, Any]:
    """The task as its user sees it, with its declared type where this process knows it.

    A priority that this version has no name for is shown from the record, not from here.
    """
    if record.priority not in set(Priority):
        record = attrs.evolve(record, priority=int(Priority.NORMAL))
    return desk.publisher.snapshot(record)


async def cron(desk: Desk, *, name: str = "", after: str = "") -> View:
    """The cron tasks, a page of them; with a name, that one with its next moments and tasks."""
    entries = await desk.crons()
    following = [entry for entry in entries if entry.name > after] if after else entries
    shown = following[:MOST_ENTRIES]
    more = len(following) > len(shown)
    queues = [queue.name for queue in await desk.queues()]
    view: View = {
        "cron": [_cron_line(desk, entry) for entry in shown],
        "in_all": len(entries),
        "next": shown[-1].name if more and shown else None,
        "entry": None,
        "queues": queues[:MOST_QUEUES],
        "queues_in_all": len(queues),
    }
    chosen = next((entry for entry in entries if entry.name == name), None)
    if chosen is not None:
        view["entry"] = await _cron_entry(desk, chosen)
    return view


def _cron_line(desk: Desk, entry: CronTask) -> View:
    spec = entry.spec
    assert spec is not None
    return {
        "name": entry.name,
        "kind": "function" if entry.func is not None else "stored",
        "text": spec.text,
        "zone": spec.zone,
        "dst": spec.dst,
        "says": spec.describe(),
        "description": entry.description,
        "policy": attrs.asdict(entry.policy),
        "paused": entry.paused_reason,
        # The storage counts from when it was added, which is no run of it.
        "last": _iso(entry.last) if entry.total else None,
        "next": None if entry.paused else _iso(entry.next),
        "total": entry.total,
        "errors": entry.err_count,
        "last_error": None if entry.last_error is None else desk.redactor.text(entry.last_error, ERROR_LIMIT),
        "running": entry.running,
    }


async def _cron_entry(desk: Desk, entry: CronTask) -> View:
    view = _cron_line(desk, entry)
    assert entry.spec is not None
    view["moments"] = moments(entry.spec.preview(MOMENTS, after=from_seconds(desk.storage.now())))
    view["template"] = None
    view["tasks"] = []
    if entry.func is None:
        for record in await desk.storage.crons(entry.name):
            view["template"] = _template_view(desk, record.template)
        queue = view["template"]["queue"] if view["template"] else ""
        # Among the newest of its queue: a search for its own might read a million others.
        page = await desk.storage.find(Queues(queue), order=Order.NEWEST, limit=LOOK_BACK)
        own = [record for record in page.records if record.cron == entry.name]
        view["tasks"] = [desk.row(record) for record in own[:BRIEF]]
    return view


def _template_view(desk: Desk, template: NewTask) -> View:
    record = record_of(template)
    declared = snapshot(desk, record).declared
    payload, readable = desk.data(template.payload, declared.payload if declared else None)
    return {
        "queue": template.queue,
        "type": template.type,
        "payload": payload,
        "payload_text": desk.text_of(payload),
        "readable": readable and len(template.payload) <= TEXT_LIMIT,
        "headers": desk.redactor.tree(dict(template.headers)),
        "key": template.key,
        "tags": list(template.tags),
        "priority": priority(template.priority),
        "timeout": template.timeout,
        "max_retry": template.max_retry,
    }


def record_of(template: NewTask) -> TaskRecord:
    """What a cron entry publishes, as a row that was never stored."""
    return TaskRecord(
        id="",
        queue=template.queue,
        type=template.type,
        payload=template.payload,
        version=template.version,
        key=template.key,
        headers=template.headers,
        timeout=template.timeout,
        max_retry=template.max_retry,
        priority=template.priority,
        tags=template.tags,
    )


def moments(given: Sequence[datetime]) -> list[View]:
    """Moments of a cron text: as its zone's clock shows them, and in UTC."""
    return [
        {"local": each.strftime("%a %Y-%m-%d %H:%M:%S"), "offset": each.strftime("%z"), "at": _iso(each)}
        for each in given
    ]


async def workers(desk: Desk) -> View:
    """Who works on this storage, and what the storage is."""
    now = desk.storage.now()
    known = await desk.storage.workers()
    here = None
    if desk.dispatcher is not None:
        own = desk.dispatcher.statistics()
        here = {"worker": own.worker, "running": own.running, "pool": attrs.asdict(own.pool)}
    return {
        "workers": [_worker_line(worker, here) for worker in known[:MOST_WORKERS]],
        "workers_in_all": len(known),
        "here": here,
        "storage": {
            "name": type(desk.storage).__name__,
            "shown": desk.redactor.text(repr(desk.storage))[:500],
            "durable": desk.storage.durable,
            # To the minute: a page that is not otherwise changed keeps its ETag.
            "clock": moment(now // 60 * 60),
            "queues": len(await desk.queues()),
        },
        "beat_s": desk.storage.beat_s if isfinite(desk.storage.beat_s) else None,
    }


def _worker_line(worker: WorkerRecord, here: View | None) -> View:
    ours = here is not None and here["worker"] == worker.id
    return {
        "id": worker.id,
        "host": worker.host,
        "pid": worker.pid,
        "started_at": moment(worker.started_at),
        # Of this process we know without its record, which may be written once only.
        "here": ours,
        "seen_at": None if ours else moment(worker.seen_at),
        "queues": list(worker.queues[:50]),
        "running": list(worker.running[:50]),
        "running_in_all": here["running"] if here is not None and ours else len(worker.running),
    }


def _iso(at: datetime | None) -> str | None:
    return None if at is None else moment(at.astimezone(UTC).timestamp())

