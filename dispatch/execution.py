"""One attempt: decode, middleware, handler in its own cancel scope, verdict.

Theory of operation. An actor owns a `Slot`, whose cancel scope surrounds one
attempt after another: entering a scope costs about 10 us, so it is replaced only
when it was cancelled. A timeout is that scope's deadline; whoever else stops an
attempt (a cancel, the end of the grace, a lost lease) says why in `slot.stop`.

The scope's reason wins. On return `scope.cancel_called` is read once: if it is
set, the attempt ended by that reason, whatever the handler made of it; a success
that comes late is a timeout. If `Cancelled` arrives while the scope was not
cancelled, it came from outside, and the run is handed back; unless nothing outside
is cancelled either, when it is a failure (`failures.parted`).

`execute` never raises for what a handler does. It returns an `Ended`: the
transition to settle, and what must go on propagating (a `Cancelled`, a
`KeyboardInterrupt`), which the actor raises once the transition is on its way.

Each attempt runs in a fresh copy of a context. Instead of a trio task per
attempt (five times slower) the handler's coroutine is driven through
`Context.run`, step by step, which also tells who blocks the loop.
"""

from __future__ import annotations

import inspect
import logging
import random
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import suppress
from contextvars import Context
from enum import StrEnum
from math import inf
from time import perf_counter
from typing import Any, Final

import attrs
import trio

from dispatch.codec import Codec
from dispatch.errors import InvalidQueuePayloadError, StorageError
from dispatch.failures import LEFT_OPEN, describe, parted, printable, surroundings, traceback_text
from dispatch.handlers import HandlerEntry, Middleware, check_no_result
from dispatch.lifecycle import SettleAnswer
from dispatch.records import Claim, NewTask, Transition, TransitionKind, from_seconds
from dispatch.retry import RetryPolicy, VerdictKind, judge
from dispatch.run import Completing, Later, Prepare, Report, Run
from dispatch.storage.protocol import EnqueueAnswer, EnqueueResult, SettleResult, stored_for
from dispatch.tasks import FailureReason, Priority, QueueTask, TaskStatus, task_of
from dispatch.threads import ThreadRun

__all__ = ["Ended", "Executor", "Slot", "Stop", "tell_refused"]

log: Final = logging.getLogger("dispatch.execution")

PRIORITIES: Final = tuple(Priority)
# On 3.11 an Enum takes 0.1 us to give a member, and these are asked for with each attempt.
DONE: Final = TransitionKind.DONE
RUNNING: Final = TaskStatus.RUNNING
REPORT_S: Final = 1.0
"""So long the end of an attempt waits for what its handler said last of its progress to be written."""
BLOCKING_S: Final = 1.0
"""A handler that holds the trio thread longer than this is named in a warning."""


class Stop(StrEnum):
    """Why a running attempt was cancelled from outside the handler."""

    TIMEOUT = "timeout"
    CANCEL = "cancel"
    GRACE = "grace"
    LOST = "lost"


@attrs.define(eq=False)
class Slot:
    """An actor's place for one attempt at a time."""

    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    around: object = None
    """What was open when the scope was entered."""
    spent: bool = False
    """Whether the scope is of no more use: cancelled, or the last attempt has left one of its own open in there."""
    claim: Claim | None = None
    handler: str = ""
    stop: Stop | None = None
    stop_detail: str = ""
    thread: ThreadRun | None = None
    named_at: float | None = None
    """When this overdue attempt was last named in the log, in trio's time."""

    def cancel(self, why: Stop, detail: str = "") -> None:
        """Cancel the attempt in this slot; the first reason given stays, a timeout that has passed too."""
        if self.claim is not None and self.stop is None and not self.scope.cancel_called:
            self.stop = why
            self.stop_detail = detail
            self.scope.cancel()


@attrs.define
class Ended:
    """How an attempt ended: what to settle (None: nothing, the lease decides), what to raise on."""

    transition: Transition | None
    raising: BaseException | None = None


@attrs.define(eq=False)
class Executor:
    """Runs the attempts of one queue."""

    codec: Codec
    policy: RetryPolicy
    limiter: trio.CapacityLimiter
    prepare: Prepare
    report: Report
    settle_in: Callable[[object, Transition], SettleResult]
    settle_in_async: Callable[[object, Transition], Awaitable[SettleResult]]
    worker: str
    middleware: Sequence[Middleware] = ()
    base: Context = attrs.field(factory=Context)
    later: Later | None = None
    """Starts a trio task beside the attempts."""
    random: Callable[[], float] = random.random

    async def execute(self, slot: Slot, claim: Claim, entry: HandlerEntry) -> Ended:
        """Make one attempt in `slot`, whose scope is entered; never raises for the handler's sake."""
        try:
            payload: Any = self.codec.decode(
                claim.payload, entry.task_type.payload, version=claim.version, task_type=entry.task_type
            )
        except InvalidQueuePayloadError as exc:
            return Ended(_failed(claim, describe(exc), None, FailureReason.INVALID_PAYLOAD))
        except KeyboardInterrupt:
            raise
        except BaseException as exc:  # noqa: BLE001 - the payload class's own code cannot take it down either
            return Ended(_failed(claim, _exited(exc, "decoding the payload"), None, FailureReason.INVALID_PAYLOAD))
        run: Run | None = None
        value: Any = None
        error: BaseException | None = None
        try:
            task = task_for_handler(claim, payload, entry, self.worker)
            if entry.wants_run or self.middleware:
                run = Run(
                    claim, slot.scope, self.prepare, self.report, lambda: self._completing(claim, entry), self.later
                )
            if claim.timeout is not None:
                slot.scope.deadline = trio.current_time() + claim.timeout
            if run is None and entry.is_async:  # the ordinary case, without a frame in between
                value = await drive(entry.function(task), self.base.copy(), entry.name)
            else:
                value = await self._call(slot, task, run, entry)
        except BaseException as exc:  # noqa: BLE001 - neither a handler nor a row takes the dispatcher down
            error = exc
        # Decided here: what strikes while the last of its progress is written comes too late.
        stopped = slot.scope.cancel_called
        if claim.timeout is not None and not stopped:
            slot.scope.deadline = inf
        if run is not None:
            run.end()
            if run.is_reporting:
                with trio.move_on_after(REPORT_S, shield=True), suppress(StorageError):
                    await run.report()
                slot.spent = slot.scope.cancel_called
        slot.spent = slot.spent or stopped
        if slot.around is not None and surroundings() is not slot.around:
            slot.spent = True
            log.warning(
                LEFT_OPEN,
                entry.name,
                f"attempt {claim.attempt} of task {claim.id}",
                extra={"event": "left_open", "task_id": claim.id, "handler": entry.name},
            )
        if slot.thread is not None and slot.thread.abandoned:
            return Ended(None, error)
        slot.thread = None
        if error is None and not stopped:
            return self._succeeded(claim, value, run, entry)
        return self._judged(slot, claim, error, stopped=stopped)

    async def _call(
        self, slot: Slot, task: QueueTask[Any, Any], run: Run | None, entry: HandlerEntry
    ) -> Any:
        context = self.base.copy()
        if run is None or not self.middleware:
            return await self._innermost(slot, task, run, entry, context)

        async def call_next(task: QueueTask[Any, Any], run: Run) -> Any:
            if entry.is_async:
                return await (entry.function(task, run) if entry.wants_run else entry.function(task))
            return await self._innermost(slot, task, run, entry, context.copy())

        chain = call_next
        for each in reversed(self.middleware):
            chain = _link(each, chain)
        return await drive(chain(task, run), context, entry.name)

    async def _innermost(
        self, slot: Slot, task: QueueTask[Any, Any], run: Run | None, entry: HandlerEntry, context: Context
    ) -> Any:
        arguments = (task, run) if entry.wants_run else (task,)
        if entry.is_async:
            return await drive(entry.function(*arguments), context, entry.name)
        slot.thread = ThreadRun(lambda: entry.function(*arguments), context)
        value = await slot.thread.run(self.limiter)
        if not inspect.isawaitable(value):
            return value
        # A plain function around an async one, as a decorator or a lambda makes: what it
        # returned is the work itself, and the thread has ended.
        slot.thread = None
        return await drive(_awaited(value), context, entry.name)

    def _succeeded(self, claim: Claim, value: Any, run: Run | None, entry: HandlerEntry) -> Ended:
        try:
            return Ended(self._success(claim, value, run.spawned if run is not None else (), entry))
        except InvalidQueuePayloadError as exc:
            # Another attempt would not make its result storable, and the work may be done.
            return Ended(_failed(claim, describe(exc), None, FailureReason.PERMANENT))
        except KeyboardInterrupt:
            raise
        except BaseException as exc:  # noqa: BLE001 - nor can the result class's
            return Ended(_failed(claim, _exited(exc, "encoding the result"), None, FailureReason.PERMANENT))

    def _completing(self, claim: Claim, entry: HandlerEntry) -> Completing:
        def told(done: Transition, answer: SettleResult) -> bool:
            tell_refused(claim, done.spawn, answer)
            return answer.answer is SettleAnswer.APPLIED

        async def settle_in_async(connection: object, done: Transition) -> bool:
            return told(done, await self.settle_in_async(connection, done))

        return Completing(
            success=lambda value, spawn: self._success(claim, value, spawn, entry),
            settle_in=lambda connection, done: told(done, self.settle_in(connection, done)),
            settle_in_async=settle_in_async,
        )

    def _success(
        self, claim: Claim, value: Any, spawn: tuple[NewTask, ...], entry: HandlerEntry
    ) -> Transition:
        """The end of a run whose handler answered `value`. Raises InvalidQueuePayloadError."""
        result: bytes | None = None
        if entry.task_type.result is not None:
            result, _ = self.codec.encode(
                value,
                entry.task_type.result,
                f"result of {claim.queue}/{claim.type}",
                limit=self.codec.limits.result_bytes,
            )
        elif value is not None:
            check_no_result(value, f"result of {claim.queue}/{claim.type}")
        return Transition(claim.id, claim.epoch, DONE, result, spawn)

    def _judged(self, slot: Slot, claim: Claim, error: BaseException | None, *, stopped: bool) -> Ended:
        """The outcome of an attempt that raised or was stopped."""
        raising: BaseException | None = None
        rest: BaseException | None = error
        if error is not None:
            raising, rest = parted(error, slot.around)
        text = describe(rest) if rest is not None else None
        trace = traceback_text(rest) if rest is not None else None
        if stopped:
            return Ended(self._stopped(slot, claim, rest, text, trace), raising)
        if raising is not None:  # cancelled from outside, or interrupted: not this attempt's fault
            return Ended(_handed_back(claim, text, trace), raising)
        assert rest is not None
        try:
            verdict = judge(self.policy, rest, claim.attempt, self.random)
        except KeyboardInterrupt:
            raise
        except BaseException as exc:
            log.exception("retry policy of queue %s failed on %s", claim.queue, text and printable(text))
            text = f"{text}; and the retry policy failed: {describe(exc)}"
            return Ended(_failed(claim, text, trace, None, claim_wait(self.policy, claim, self.random)))
        if verdict.kind is VerdictKind.SNOOZE:
            return Ended(
                Transition(claim.id, claim.epoch, TransitionKind.SNOOZED, retry_in=verdict.wait_s)
            )
        if verdict.kind is VerdictKind.CANCEL:
            return Ended(
                Transition(claim.id, claim.epoch, TransitionKind.CANCELLED, error=verdict.reason)
            )
        if verdict.kind is VerdictKind.PERMANENT:
            return Ended(_failed(claim, text, trace, FailureReason.PERMANENT))
        return Ended(_failed(claim, text, trace, None, verdict.wait_s))

    def _stopped(
        self, slot: Slot, claim: Claim, rest: BaseException | None, text: str | None, trace: str | None
    ) -> Transition:
        """The outcome that the scope's reason dictates; what the handler raised is kept beside it."""
        kept = "" if text is None else f"; it raised {text}"
        if slot.stop is None:  # nobody called cancel(): the deadline passed
            timeout = TimeoutError(f"attempt {claim.attempt} exceeded its timeout of {claim.timeout:g} s")
            try:
                verdict = judge(self.policy, timeout, claim.attempt, self.random)
                wait = None if verdict.kind is VerdictKind.PERMANENT else verdict.wait_s
            except KeyboardInterrupt:
                raise
            except BaseException:
                log.exception("retry policy of queue %s failed on a timeout", claim.queue)
                wait = claim_wait(self.policy, claim, self.random)
            reason = FailureReason.PERMANENT if wait is None else None
            return _failed(claim, f"{describe(timeout)}{kept}", trace, reason, wait)
        if slot.stop is Stop.CANCEL:
            return Transition(
                claim.id, claim.epoch, TransitionKind.CANCELLED, error=f"{slot.stop_detail}{kept}", traceback=trace
            )
        return _handed_back(claim, f"interrupted ({slot.stop.value}){kept}" if kept else None, trace)


def tell_refused(claim: Claim, spawn: Sequence[NewTask], answer: SettleResult) -> None:
    """Warn of what `run.publish` was given and the storage did not take: nobody is left to raise to."""
    for new, stored in zip(spawn, answer.spawned, strict=False):
        if stored.answer is EnqueueAnswer.CREATED or stored_for(stored, new) is not None:
            continue
        log.warning(
            "task %s (%s/%s): what it gave to run.publish as %s (%s/%s) was not stored: %s",
            claim.id,
            claim.queue,
            claim.type,
            new.id,
            new.queue,
            new.type,
            _why_refused(new, stored),
            extra={"event": "spawn_refused", "task_id": claim.id, "refused_id": new.id},
        )


def _why_refused(new: NewTask, stored: EnqueueResult) -> str:
    if stored.answer is EnqueueAnswer.UNKNOWN_QUEUE:
        return "its queue is declared nowhere"
    way = f"task {new.id if stored.record is None else stored.record.id} is in its way"
    if stored.answer is EnqueueAnswer.EXISTING and stored.record is not None:
        return f"{way}, a {stored.record.queue}/{stored.record.type}; ids are unique over all queues"
    return f"{way}, and unique says to reject"


def claim_wait(policy: RetryPolicy, claim: Claim, random: Callable[[], float]) -> float:
    """The policy's own wait, without asking its `decide`."""
    return policy.wait_s(claim.attempt, random)


def _link(each: Middleware, chain: Callable[..., Awaitable[Any]]) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def step(task: QueueTask[Any, Any], run: Run) -> Any:
        return await each(task, run, chain)

    return step


def _failed(
    claim: Claim,
    error: str | None,
    trace: str | None,
    reason: FailureReason | None,
    retry_in: float | None = None,
) -> Transition:
    return Transition(
        claim.id,
        claim.epoch,
        TransitionKind.FAILED,
        error=error,
        traceback=trace,
        retry_in=retry_in,
        reason=reason,
    )


def _exited(error: BaseException, during: str) -> str:
    # Its class alone: what the codec lets through has not been cleared of secret fields.
    return f"{type(error).__qualname__} was raised by {during}"


def _handed_back(claim: Claim, error: str | None, trace: str | None) -> Transition:
    return Transition(claim.id, claim.epoch, TransitionKind.HANDED_BACK, error=error, traceback=trace)


def task_for_handler(claim: Claim, payload: Any, entry: HandlerEntry, worker: str) -> QueueTask[Any, Any]:
    """The claim as the task its handler sees."""
    created = from_seconds(claim.created_at)
    at_once = claim.available_at == claim.created_at
    return task_of(
        {
            "queue": claim.queue,
            "type": claim.type,
            "payload": payload,
            "id": claim.id,
            "key": claim.key,
            "headers": claim.headers,
            "delay": 0.0,
            "timeout": claim.timeout,
            "max_retry": claim.max_retry,
            "priority": PRIORITIES[claim.priority],
            "tags": claim.tags,
            "unique": None,
            "attempt": claim.attempt,
            "status": RUNNING,
            "last_error": claim.last_error,
            "failure_reason": None,
            "created_at": created,
            "available_at": created if at_once else from_seconds(claim.available_at),
            "started_at": from_seconds(claim.started_at),
            "finished_at": None,
            "result": None,
            "worker": worker,
            "cron": claim.cron,
            "progress": None,
            "declared": entry.task_type,
        }
    )


@trio.lowlevel.disable_ki_protection
def _interruptible(resume: Callable[[Any], Any], value: Any) -> Any:
    """A step of a handler, where a Ctrl-C strikes: in a frame of `drive` it would abandon the coroutine."""
    return resume(value)


@types.coroutine
def drive(
    coroutine: Coroutine[Any, Any, Any], context: Context, name: str
) -> Generator[Any, Any, Any]:
    """Await `coroutine` with every one of its steps run in `context`.

    Warns, naming `name`, when one step holds the trio thread for over a second.
    """
    if coroutine.__class__ is not types.CoroutineType and not isinstance(coroutine, Coroutine):
        raise TypeError(f"{name} returned {type(coroutine).__name__} in place of a coroutine")
    resume: Callable[[Any], Any] = coroutine.send
    value: Any = None
    while True:
        began = perf_counter()
        try:
            trap = context.run(_interruptible, resume, value)
        except StopIteration as stop:
            return stop.value
        finally:
            blocked_s = perf_counter() - began
            if blocked_s >= BLOCKING_S:
                _warn_of_blocking(blocked_s, name)
        try:
            value = yield trap
            resume = coroutine.send
        except BaseException as exc:  # noqa: BLE001 - thrown into the coroutine, which decides
            value = exc
            resume = coroutine.throw


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def _warn_of_blocking(blocked_s: float, name: str) -> None:
    log.warning(
        "%s held the trio thread for %.1f s; nothing else ran meanwhile, leases included. "
        "Make it a sync handler, or move the work into trio.to_thread.run_sync",
        name,
        blocked_s,
        extra={"event": "blocked", "handler": name, "blocked_s": blocked_s},
    )
