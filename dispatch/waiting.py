"""Why a task waits: decided from what any storage can be asked, with nothing asked here.

No storage notes why a claim passed a task over. But a claim goes by few things, and
most of them are stored. What is not stored are the handlers, tags and free slots of the
workers: of those only traces are seen, the runs, and where these do not explain it the
answer ends in a question, not in a guess.

The causes are in the order in which they must go: first what a person has to change,
then what waits for a moment or for a worker, then what comes by itself as others end.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Final

import attrs

from dispatch.checks import shown
from dispatch.records import TaskRecord, from_seconds
from dispatch.storage.protocol import QueueRecord
from dispatch.tasks import TaskStatus

__all__ = ["Facts", "WaitCause", "WaitReason", "Waiting", "explain", "in_line"]

PATIENCE_S: Final = 5.0
"""Due for no longer than this, a task is not asked after: workers look every few seconds at least."""


class WaitReason(StrEnum):
    """What a task waits for, for programs; in `WaitCause.text` it is said for people."""

    HELD = "held"
    PAUSED = "paused"
    """Its queue is."""
    NOT_DUE = "not_due"
    NO_WORKER = "no_worker"
    """No live worker consumes its queue."""
    KEY = "key"
    """Another task of its key is before it; `behind` is its id, None where that was too much to look for."""
    MAX_RUNNING = "max_running"
    RATE_LIMIT = "rate_limit"
    TURN = "turn"
    """Nothing is in its way: it may start at any moment, or when others of higher place have."""
    NOT_SEEN = "not_seen"
    """Nothing stored is in its way, and yet no run of its type and version was seen since it fell due."""
    RUNNING = "running"
    """It does not wait: it runs."""
    ENDED = "ended"
    """It does not wait any more."""


@attrs.frozen
class WaitCause:
    """One thing that a task waits for; `behind` is the id of the task that must end first, if that is it."""

    reason: WaitReason
    text: str
    behind: str | None = None


@attrs.frozen
class Waiting:
    """Why a task waits: at least one cause, in the order in which they must go.

    Of a task that runs or has ended `waits` is False, and the one cause says so.
    """

    task_id: str
    waits: bool
    causes: tuple[WaitCause, ...]

    @property
    def reason(self) -> WaitReason:
        """What must change first."""
        return self.causes[0].reason

    def __str__(self) -> str:
        return "; then ".join(cause.text for cause in self.causes)


@attrs.frozen(kw_only=True)
class Facts:
    """What was read of a waiting task's surroundings; each number may have been counted up to a bound only."""

    now: float
    queue: QueueRecord
    workers: int = 0
    """Live workers that consume the queue."""
    crowd: int | None = None
    """Where too many tasks wait in the queue to look for single ones: that bound."""
    head: TaskRecord | None = None
    """The task of its key that runs, or is first in line, if that is another one."""
    running: int = 0
    """In the queue."""
    started: int = 0
    """So many starts at least within the seconds of the queue's rate."""
    before: int = 0
    """Due tasks of the queue with a higher priority, or as high a one and due earlier; some may wait for their key."""
    runs: Sequence[TaskRecord] = ()
    """Tasks of the queue that run, have lately ended, or wait to run again."""
    begun: bool = False
    """Whether a run of the queue, of whichever type, has begun since it fell due."""
    taken: bool = False
    """Whether a run of its type, of whichever version, has begun and ended since it fell due."""


def explain(record: TaskRecord, facts: Facts) -> Waiting:
    """The answer, from a task and what was read of its surroundings."""
    if record.status not in (TaskStatus.PENDING, TaskStatus.HELD):
        return Waiting(record.id, False, (_no_wait(record),))
    by_hand = _by_hand(record, facts.queue)
    causes = [*by_hand]
    later = record.available_at > facts.now
    if later:
        causes.append(_not_due(record, facts.now))
    if not facts.workers:
        text = f"a live worker of queue {facts.queue.name!r}, which nobody consumes"
        causes.append(WaitCause(WaitReason.NO_WORKER, text))
    causes += _key(record, facts)
    if not (by_hand or later or not facts.workers):  # else what limits the queue will have changed by then
        limits = _limits(facts)
        causes += limits
        if facts.head is None:  # else it is certain that it cannot be claimed
            causes += _asked_after(record, facts, free=not limits)
    return Waiting(record.id, True, tuple(causes))


def in_line(record: TaskRecord, queue: QueueRecord, now: float) -> bool:
    """Whether a pending task holds its place in its key's line; a retry of a queue that yields steps aside."""
    return not (queue.on_retry == "yield" and record.epoch > 0 and record.available_at > now)


def _no_wait(record: TaskRecord) -> WaitCause:
    if record.status is TaskStatus.RUNNING:
        where = f" on worker {record.worker}" if record.worker else ""
        text = (
            f"it does not wait: attempt {record.attempt} runs{where} since {_moment(record.started_at)}, or waits there "
            "for a slot, where the queue has a prefetch"
        )
        return WaitCause(WaitReason.RUNNING, text)
    return WaitCause(WaitReason.ENDED, f"it does not wait: it {_ENDED[record.status]} at {_moment(record.finished_at)}")


_ENDED: Final = {
    TaskStatus.SUCCEEDED: "succeeded",
    TaskStatus.FAILED: "failed for good",
    TaskStatus.CANCELLED: "was cancelled",
}


def _by_hand(record: TaskRecord, queue: QueueRecord) -> list[WaitCause]:
    # The task first: a queue that goes on does nothing for a task that is held.
    causes: list[WaitCause] = []
    if record.status is TaskStatus.HELD:
        text = "being resumed: it is held; control.resume, `dispatch task resume` and the dashboard let it wait for its turn again"
        causes.append(WaitCause(WaitReason.HELD, text))
    if queue.paused:
        name = queue.name
        text = f"queue {name!r} being resumed: it is paused; control.resume_queue and `dispatch queue resume {name}` end that"
        causes.append(WaitCause(WaitReason.PAUSED, text))
    return causes


def _not_due(record: TaskRecord, now: float) -> WaitCause:
    if record.attempt:
        what = f"its retry after attempt {record.attempt}"
    elif record.epoch:
        what = "its next run, having run before"
    else:
        what = "its time"
    text = f"{what}: not due until {_moment(record.available_at)}, in {_span(record.available_at - now)}"
    return WaitCause(WaitReason.NOT_DUE, text)


def _key(record: TaskRecord, facts: Facts) -> list[WaitCause]:
    if not facts.queue.keyed or record.key is None:
        return []
    key, head = shown(record.key), facts.head
    if head is None:
        if facts.crowd is None:
            return []
        text = (
            f"an earlier task of its key {key}, perhaps: over {facts.crowd:,} wait in queue {facts.queue.name!r}, too "
            "many to look through; `dispatch task ls --oldest` with --key, --queue and --status pending names the first"
        )
        return [WaitCause(WaitReason.KEY, text)]
    if head.status is TaskStatus.RUNNING:
        where = f" on worker {head.worker}" if head.worker else ""
        how = f"which runs{where} since {_moment(head.started_at)}"
    elif head.available_at > facts.now:
        retry = f"after attempt {head.attempt}, " if head.attempt else ""
        how = f"which is pending, {retry}not due until {_moment(head.available_at)}, in {_span(head.available_at - facts.now)}"
    else:
        how = f"which is pending itself, due since {_moment(head.available_at)}"
    return [WaitCause(WaitReason.KEY, f"task {head.id}, the head of its key {key}, {how}", head.id)]


def _limits(facts: Facts) -> list[WaitCause]:
    causes: list[WaitCause] = []
    queue = facts.queue
    if queue.max_running is not None and facts.running >= queue.max_running:
        text = f"the end of one that runs: max_running of queue {queue.name!r} is reached, {facts.running} of {queue.max_running}"
        causes.append(WaitCause(WaitReason.MAX_RUNNING, text))
    if queue.rate is not None and facts.started >= queue.rate[0]:
        count, per_s = queue.rate
        text = (
            f"the rate limit of queue {queue.name!r}, {count} per {per_s:g} s, if it is used up: at least {facts.started} were started within "
            f"the last {per_s:g} s; the next one may be within {_span(per_s / count)}"
        )
        causes.append(WaitCause(WaitReason.RATE_LIMIT, text))
    return causes


def _asked_after(record: TaskRecord, facts: Facts, *, free: bool) -> list[WaitCause]:
    """What there is to say of a task that may be claimed, or might be if it were not for the limits."""
    causes: list[WaitCause] = []
    unseen = facts.now - record.available_at > PATIENCE_S and not _is_seen(record, facts)
    # Those that run may have every slot; unless one began since, with nothing of higher place in between.
    others = bool(facts.running and (facts.before or facts.crowd or not facts.begun))
    if free and (others or not unseen):
        causes.append(_turn(record, facts))
    if unseen:
        causes.append(_not_seen(record, facts))
    return causes


def _is_seen(record: TaskRecord, facts: Facts) -> bool:
    """Whether somebody takes tasks like it, as far as runs tell: then this one has only to wait."""
    newest = _newest_version(record, facts)
    if newest is not None and newest < record.version:
        return False  # what ended of the type may be all of versions that its worker knows
    # A handler of a version takes all before it. Ended before this fell due, a run tells of another time;
    # and of a worker that lacks one of its tags, or of whose version nothing is known, nothing at all.
    return (facts.taken and not record.tags and record.version == 1) or any(
        run.type == record.type
        and run.version >= record.version
        and set(record.tags) <= set(run.tags)
        and (run.status is TaskStatus.RUNNING or (run.started_at or 0.0) >= record.available_at)
        for run in facts.runs
    )


def _newest_version(record: TaskRecord, facts: Facts) -> int | None:
    return max((run.version for run in facts.runs if run.type == record.type and run.started_at is not None), default=None)


def _turn(record: TaskRecord, facts: Facts) -> WaitCause:
    text = f"its turn: due since {_moment(record.available_at)}, it may start at any moment"
    if facts.crowd is not None:
        text += f", with over {facts.crowd:,} others that wait in its queue"
    elif facts.before:
        text += f", behind up to {facts.before:,} of higher place"
    workers = f"{facts.workers} live worker{'' if facts.workers == 1 else 's'}"
    return WaitCause(WaitReason.TURN, f"{text}; {facts.running:,} of its queue run, on {workers}")


def _not_seen(record: TaskRecord, facts: Facts) -> WaitCause:
    text = (
        f"nothing in the store says why: is there a handler for {record.queue}/{record.type} version {record.version} "
        "on a live worker?"
    )
    newest = _newest_version(record, facts)
    if newest is not None and newest < record.version:
        text += f" The runs of this type that were seen are of version {newest} at most."
    else:
        such = "of this type with its tags" if record.tags else "of this type"
        text += f" No run {such} was seen since it fell due, at {_moment(record.available_at)}."
    if record.tags:
        text += f" A worker with tags must have all of these: {', '.join(map(shown, record.tags))}."
    return WaitCause(WaitReason.NOT_SEEN, text)


def _moment(seconds: float | None) -> str:
    return "an unknown moment" if seconds is None else from_seconds(seconds).isoformat(timespec="seconds")


def _span(seconds: float) -> str:
    """Of up to ten years in reality; of more in a row that somebody wrote by other means."""
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(min(seconds, 1e9))))
