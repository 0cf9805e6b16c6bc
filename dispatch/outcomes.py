"""What the end of a run became: the storage has the last word, and it is said where that surprises."""

from __future__ import annotations

import logging
from typing import Final

from dispatch.events import EventKind
from dispatch.failures import printable
from dispatch.lifecycle import SettleAnswer
from dispatch.records import Claim, Transition, TransitionKind
from dispatch.storage.protocol import SettleResult
from dispatch.tasks import TaskStatus

__all__ = ["judged"]

log: Final = logging.getLogger("dispatch.actors")

# On 3.11 an Enum takes 0.1 us to give a member, and these are asked for with each run.
SUCCEEDED: Final = TaskStatus.SUCCEEDED
APPLIED: Final = SettleAnswer.APPLIED
TOLD_SUCCEEDED: Final = (EventKind.SUCCEEDED, None)
_KINDS: Final = {
    TransitionKind.DONE: EventKind.SUCCEEDED,
    TransitionKind.CANCELLED: EventKind.CANCELLED,
    TransitionKind.SNOOZED: EventKind.SNOOZED,
    TransitionKind.HANDED_BACK: EventKind.HANDED_BACK,
}


def judged(claim: Claim, transition: Transition, answer: SettleResult) -> tuple[EventKind, str | None]:
    """What observers are told of a settled run, and the error that belongs to it."""
    if answer.status is SUCCEEDED and answer.answer is APPLIED:
        return TOLD_SUCCEEDED
    if answer.answer not in (SettleAnswer.APPLIED, SettleAnswer.REPEATED):
        log.warning(
            "task %s (%s/%s): the outcome of attempt %d was refused (%s); another run decides",
            claim.id,
            claim.queue,
            claim.type,
            claim.attempt,
            answer.answer.value,
        )
        return EventKind.LOST, transition.error
    if answer.status is TaskStatus.SUCCEEDED:
        if transition.error is not None:
            log.warning(
                "task %s (%s/%s): attempt %d failed after it had completed its run in a transaction; "
                "it stays succeeded: %s",
                claim.id,
                claim.queue,
                claim.type,
                claim.attempt,
                printable(transition.error),
                extra={"event": "completed", "task_id": claim.id, "queue": claim.queue},
            )
        return EventKind.SUCCEEDED, None
    if answer.status is TaskStatus.FAILED:
        return EventKind.FAILED, transition.error
    if answer.status is TaskStatus.CANCELLED:
        return EventKind.CANCELLED, transition.error
    return _KINDS.get(transition.kind, EventKind.RETRYING), transition.error
