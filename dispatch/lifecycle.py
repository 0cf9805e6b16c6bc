"""The one table of states, and the only code that changes a task's state.

Theory of operation. A task is a row with a status; what can happen to it is an
event; `TABLE` lists every event with the statuses it may find and the status it
leaves. The functions below carry single events out on a `TaskRecord`, each
looking its move up in the table first, so that a move the table does not know
cannot be made. They are synchronous and take the time as an argument: they
decide, the storages write. The memory storage calls them on its rows; the SQL
of a database storage is tested against them.

The fence. A claim raises `epoch` and so does a rescue; a settle must find the
task running under its own epoch. A settle leaves the epoch alone, so that a
repeated settle is told apart (REPEATED) from one that came too late (LOST).
Either way nothing is written.

Attempts. The claim counts the attempt, so that a task which kills its process
still reaches the dead letters. SNOOZE and HAND_BACK give it back.

`diagram()` draws the table as a Mermaid state diagram.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import attrs

from dispatch.errors import InternalError
from dispatch.records import AttemptOutcome, AttemptRecord, TaskRecord, Transition, TransitionKind
from dispatch.retry import RetryPolicy
from dispatch.tasks import FailureReason, TaskStatus

__all__ = [
    "TABLE",
    "Change",
    "Event",
    "SettleAnswer",
    "cancel",
    "claim",
    "current_run",
    "diagram",
    "fence",
    "hold",
    "rerun",
    "rescue",
    "resume",
    "settle",
]

ERROR_LIMIT: Final = 4_096
"""Stored error texts are cut to this many bytes of UTF-8."""
LONGEST_DELAY_S: Final = 10 * 365 * 86_400.0
"""A longer retry or snooze delay is clamped to ten years."""


class Event(StrEnum):
    """Everything that can happen to a stored task."""

    CLAIM = "claim"
    SUCCEED = "succeed"
    RETRY = "retry"
    FAIL = "fail"
    STOP = "stop"
    SNOOZE = "snooze"
    HAND_BACK = "hand back"
    EXPIRE_RETRY = "expire, retry"
    EXPIRE_FAIL = "expire, fail"
    EXPIRE_STOP = "expire, stop"
    ASK_CANCEL = "ask to cancel"
    CANCEL = "cancel"
    HOLD = "hold"
    RESUME = "resume"
    RERUN = "rerun"


S = TaskStatus


@attrs.frozen
class Change:
    """One row of the table: where an event may come from and where it leads.

    `attempt` and `epoch` are what the event adds to those counters; `ends_run`
    says whether a run ends, so that a history record is due.
    """

    source: frozenset[TaskStatus]
    target: TaskStatus
    attempt: int = 0
    epoch: int = 0
    ends_run: bool = False


def _row(*source: TaskStatus, to: TaskStatus, attempt: int = 0, epoch: int = 0, ends_run: bool = False) -> Change:
    return Change(frozenset(source), to, attempt, epoch, ends_run)


TABLE: Final[dict[Event, Change]] = {
    Event.CLAIM: _row(S.PENDING, to=S.RUNNING, attempt=+1, epoch=+1),
    # A settle, under the fence.
    Event.SUCCEED: _row(S.RUNNING, to=S.SUCCEEDED, ends_run=True),
    Event.RETRY: _row(S.RUNNING, to=S.PENDING, ends_run=True),
    Event.FAIL: _row(S.RUNNING, to=S.FAILED, ends_run=True),
    Event.STOP: _row(S.RUNNING, to=S.CANCELLED, ends_run=True),
    Event.SNOOZE: _row(S.RUNNING, to=S.PENDING, attempt=-1, ends_run=True),
    Event.HAND_BACK: _row(S.RUNNING, to=S.PENDING, attempt=-1, ends_run=True),
    # A rescue, after the lease ran out.
    Event.EXPIRE_RETRY: _row(S.RUNNING, to=S.PENDING, epoch=+1, ends_run=True),
    Event.EXPIRE_FAIL: _row(S.RUNNING, to=S.FAILED, epoch=+1, ends_run=True),
    Event.EXPIRE_STOP: _row(S.RUNNING, to=S.CANCELLED, epoch=+1, ends_run=True),
    # By hand.
    Event.ASK_CANCEL: _row(S.RUNNING, to=S.RUNNING),
    Event.CANCEL: _row(S.PENDING, S.HELD, to=S.CANCELLED),
    Event.HOLD: _row(S.PENDING, to=S.HELD),
    Event.RESUME: _row(S.HELD, to=S.PENDING),
    Event.RERUN: _row(S.SUCCEEDED, S.FAILED, S.CANCELLED, to=S.PENDING),
}


def _move(record: TaskRecord, event: Event) -> None:
    """Carry one event out on the row's status and counters, if the table allows it."""
    change = TABLE[event]
    if record.status not in change.source:
        raise InternalError(
            f"task {record.id}: event {event.value!r} cannot happen to a {record.status.value} task"
        )
    record.status = change.target
    if change.attempt:
        record.attempt = max(0, record.attempt + change.attempt)
    record.epoch += change.epoch


def claim(
    record: TaskRecord,
    now: float,
    *,
    worker: str,
    lease_s: float | None,
    max_retry: int,
    retry: str,
    on_interrupt: str,
) -> None:
    """CLAIM a pending task for `worker`; what a rescue must know of its queue goes to the row."""
    _move(record, Event.CLAIM)
    record.worker = worker
    record.started_at = now
    record.finished_at = None
    record.lease_until = None if lease_s is None else now + lease_s
    record.limit = max_retry if record.max_retry is None else record.max_retry
    record.retry = retry
    record.on_interrupt = on_interrupt
    record.progress = None


class SettleAnswer(StrEnum):
    """What became of one end of a run, or of one claim."""

    APPLIED = "applied"
    REPEATED = "repeated"
    """This run had ended already; the first outcome stays."""
    LOST = "lost"
    """The task has moved on to another run."""
    GONE = "gone"
    """No such task."""


def fence(record: TaskRecord | None, epoch: int) -> SettleAnswer:
    """Whether a run under `epoch` still holds its task: APPLIED means it does."""
    if record is None:
        return SettleAnswer.GONE
    if record.epoch != epoch:
        return SettleAnswer.LOST
    if record.status is not S.RUNNING:
        return SettleAnswer.REPEATED
    return SettleAnswer.APPLIED


def settle(record: TaskRecord, transition: Transition, now: float) -> AttemptRecord:
    """Write the end of a run to its row; the caller has passed the fence.

    A failure becomes a retry if one is left under the stored limit and nobody
    asked for a cancel; a success that came despite such a request stays one.
    Returns the attempt's record.
    """
    kind = transition.kind
    ran_as = record.attempt
    if kind is TransitionKind.DONE:
        event, outcome = Event.SUCCEED, AttemptOutcome.SUCCEEDED
    elif kind is TransitionKind.CANCELLED or (
        record.cancel_reason is not None
        and not (kind is TransitionKind.FAILED and transition.retry_in is None)
    ):
        event, outcome = Event.STOP, AttemptOutcome.CANCELLED
    elif kind is TransitionKind.SNOOZED:
        event, outcome = Event.SNOOZE, AttemptOutcome.SNOOZED
    elif kind is TransitionKind.HANDED_BACK:
        if record.on_interrupt == "fail" and transition.begun:
            event, outcome = Event.FAIL, AttemptOutcome.FAILED
        else:
            event, outcome = Event.HAND_BACK, AttemptOutcome.HANDED_BACK
    elif transition.retry_in is not None and record.attempt <= _limit(record):
        event, outcome = Event.RETRY, AttemptOutcome.RETRIED
    else:
        event, outcome = Event.FAIL, AttemptOutcome.FAILED

    _move(record, event)
    _end_run(record, now)
    error = _cut(transition.error)
    if event is Event.SUCCEED:
        record.result = transition.result
        record.last_error = None
        record.cancel_reason = None
    elif event is Event.STOP:
        record.cancel_reason = error or record.cancel_reason
    elif event in (Event.RETRY, Event.SNOOZE):
        record.available_at = now + min(max(transition.retry_in or 0.0, 0.0), LONGEST_DELAY_S)
    if event is Event.FAIL:
        record.failure_reason = _failure_reason(transition)
    if event is not Event.SUCCEED and kind is not TransitionKind.CANCELLED and error is not None:
        record.last_error = error
    return AttemptRecord(
        record.id,
        record.epoch,
        ran_as,
        record.worker,
        record.started_at if record.started_at is not None else now,
        now,
        outcome,
        _cut(f"{transition.error}\n{transition.traceback}" if transition.traceback else transition.error),
    )


def _failure_reason(transition: Transition) -> FailureReason:
    if transition.reason is not None:
        return transition.reason
    if transition.kind is TransitionKind.HANDED_BACK:
        return FailureReason.INTERRUPTED
    return FailureReason.EXHAUSTED


def _limit(record: TaskRecord) -> int:
    """The retries in force: what a Patch wrote since the claim counts, else the claim's."""
    if record.max_retry is not None:
        return record.max_retry
    return record.limit if record.limit is not None else 0


def _end_run(record: TaskRecord, now: float) -> None:
    record.lease_until = None
    if record.status.is_terminal:
        record.finished_at = now


def rescue(record: TaskRecord, now: float) -> AttemptRecord:
    """End a run whose lease ran out: a counted failure, decided from the row alone."""
    ran_under, ran_as = record.epoch, record.attempt
    error = (
        f"LeaseExpired: worker {record.worker} stopped renewing attempt {record.attempt}; "
        "its process may have died"
    )
    if record.cancel_reason is not None:
        event = Event.EXPIRE_STOP
    elif record.on_interrupt == "fail" or record.attempt > _limit(record):
        event = Event.EXPIRE_FAIL
    else:
        event = Event.EXPIRE_RETRY
    _move(record, event)
    _end_run(record, now)
    record.last_error = error
    if event is Event.EXPIRE_FAIL:
        interrupted = record.on_interrupt == "fail"
        record.failure_reason = FailureReason.INTERRUPTED if interrupted else FailureReason.EXHAUSTED
    elif event is Event.EXPIRE_RETRY:
        policy = RetryPolicy.from_text(record.retry) if record.retry else RetryPolicy.fixed()
        # No jitter: nothing random may enter here, or two storages would differ.
        record.available_at = now + policy.wait_s(ran_as, lambda: 0.5)
    return AttemptRecord(
        record.id,
        ran_under,
        ran_as,
        record.worker,
        record.started_at if record.started_at is not None else now,
        now,
        AttemptOutcome.EXPIRED,
        error,
    )


def current_run(record: TaskRecord) -> AttemptRecord | None:
    """The running attempt as a history record; None if the task is not running."""
    if record.status is not S.RUNNING:
        return None
    return AttemptRecord(
        record.id,
        record.epoch,
        record.attempt,
        record.worker,
        record.started_at if record.started_at is not None else record.created_at,
        None,
        AttemptOutcome.RUNNING,
    )


def cancel(record: TaskRecord, now: float, reason: str) -> bool:
    """CANCEL a waiting or held task, or ask a running one to stop; False if nothing changed."""
    if record.status is S.RUNNING:
        if record.cancel_reason is not None:
            return False
        _move(record, Event.ASK_CANCEL)
        record.cancel_reason = _cut(reason)
        return True
    if record.status not in TABLE[Event.CANCEL].source:
        return False
    _move(record, Event.CANCEL)
    record.cancel_reason = _cut(reason)
    record.finished_at = now
    return True


def hold(record: TaskRecord) -> bool:
    """HOLD a waiting task; False, and nothing changed, for any other."""
    if record.status not in TABLE[Event.HOLD].source:
        return False
    _move(record, Event.HOLD)
    return True


def resume(record: TaskRecord) -> bool:
    """RESUME a held task; False, and nothing changed, for any other."""
    if record.status not in TABLE[Event.RESUME].source:
        return False
    _move(record, Event.RESUME)
    return True


def rerun(record: TaskRecord, now: float) -> bool:
    """RERUN an ended task: pending now, one more run allowed, its end wiped, its history kept.

    One that never ran, and has no limit of its own, takes its queue's when it is claimed.
    """
    if record.status not in TABLE[Event.RERUN].source:
        return False
    _move(record, Event.RERUN)
    if record.max_retry is not None or record.limit is not None:
        # `attempt` goes on counting, so the limit must leave room for one more run.
        record.max_retry = max(_limit(record) + 1, record.attempt)
    record.available_at = now
    record.finished_at = None
    record.failure_reason = None
    record.cancel_reason = None
    record.result = None
    record.progress = None
    return True


def _cut(text: str | None) -> str | None:
    """Bound a text to ERROR_LIMIT bytes of valid UTF-8 without NUL, which PostgreSQL refuses."""
    if text is None:
        return None
    data = text[:ERROR_LIMIT].replace("\x00", "\\x00").encode("utf-8", "backslashreplace")
    if len(data) <= ERROR_LIMIT and len(text) <= ERROR_LIMIT:
        return data.decode()
    return data[: ERROR_LIMIT - 4].decode("utf-8", "ignore") + " ..."


def diagram() -> str:
    """The table as a Mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2", "    [*] --> pending: publish"]
    for event, change in TABLE.items():
        lines += [
            f"    {source} --> {change.target}: {event}"
            for source in sorted(change.source)
        ]
    lines += [f"    {status} --> [*]: prune" for status in TaskStatus if status.is_terminal]
    return "\n".join(lines)
