"""`Run`: what a handler of `(task, run)` may ask and do beside its task."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from math import inf
from typing import Any, Final, cast

import attrs
import trio

from dispatch.checks import check_within, shown
from dispatch.errors import ClaimLostError, InvalidConfigError, StorageError
from dispatch.records import Claim, NewTask, Transition
from dispatch.tasks import Progress, QueueTask

__all__ = ["Run", "progress_of"]

PROGRESS_EVERY_S: Final = 1.0
log: Final = logging.getLogger("dispatch.run")

Prepare = Callable[[QueueTask[Any, Any]], Awaitable[NewTask]]
Report = Callable[[tuple[str, int], bytes], Awaitable[bool]]
Later = Callable[[Callable[[], Awaitable[None]]], None]
"""Starts a trio task beside the attempt, or not, where all is coming to its end."""


@attrs.frozen
class Completing:
    """How a run is ended inside its handler's own transaction."""

    success: Callable[[Any, tuple[NewTask, ...]], Transition]
    """Of a result, and of what `publish` was given. Raises InvalidQueuePayloadError."""
    settle_in: Callable[[object, Transition], bool]
    """Write the end in the transaction; whether the run was still ours."""
    settle_in_async: Callable[[object, Transition], Awaitable[bool]]


def progress_of(data: bytes | None) -> Progress | None:
    """What `Run.progress` has kept; None for nothing, and for what another program wrote there."""
    if data is None:
        return None
    try:
        kept: Any = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(kept, dict):
        return None
    said = cast("dict[str, Any]", kept)
    fraction, message = said.get("fraction"), said.get("message")
    if not (isinstance(fraction, int | float) and 0 <= fraction <= 1):
        fraction = None
    return Progress(None if fraction is None else float(fraction), message if isinstance(message, str) else "")


class Run:
    """One attempt, seen from inside it."""

    __slots__ = (
        "_claim",
        "_completing",
        "_ended",
        "_later",
        "_prepare",
        "_report",
        "_reported_at",
        "_reporting",
        "_scope",
        "_spawned",
        "_unreported",
        "log",
    )

    def __init__(
        self,
        claim: Claim,
        scope: trio.CancelScope,
        prepare: Prepare,
        report: Report,
        completing: Callable[[], Completing] | None = None,
        later: Later | None = None,
    ) -> None:
        self._claim = claim
        self._completing = completing
        self._ended = False
        self._scope = scope
        self._prepare = prepare
        self._report = report
        self._spawned: list[NewTask] = []
        self._later = later
        self._reporting: trio.Lock | None = None
        self._reported_at: float | None = None
        self._unreported: bytes | None = None
        self.log: logging.LoggerAdapter[logging.Logger] = _RunLog(log, claim)
        """A logger whose lines carry task_id, queue, task_type and attempt in `extra`."""

    @property
    def attempt(self) -> int:
        """The attempt's number, 1 for the first."""
        return self._claim.attempt

    @property
    def is_last_attempt(self) -> bool:
        """Whether a failure now sends the task to the dead letters."""
        return self._claim.attempt > self._claim.limit

    @property
    def deadline(self) -> float:
        """When this attempt times out, by `trio.current_time()`; infinity if it never does."""
        return self._scope.deadline

    async def publish(self, task: QueueTask[Any, Any]) -> str:
        """Publish `task` if and only if this attempt succeeds; its id.

        With `unique`, a match keeps its own id, and this one is nobody's. What is found
        to be in its way only then, a match to `"reject"` or a task of another type with its
        id, keeps it from being stored: nobody is left to raise to, and a warning says so.
        It is checked now, and stored in the same step as the success, so a
        retry never publishes twice. To publish at once, whatever becomes of
        this attempt, use the publisher. Never waits for room.
        Raises what `TaskQueuePublisher.publish` raises for a bad task, and
        ClaimLostError once the handler has returned: nothing would store it.
        A checkpoint; from a sync handler, `trio.from_thread.run(run.publish, task)`.
        """
        prepared = await self._prepare(task)
        if self._ended:
            raise ClaimLostError(
                f"task {self._claim.id}: attempt {self._claim.attempt} has ended, so run.publish has nothing to be "
                "stored with; call it before the handler returns, or use the publisher"
            )
        self._spawned.append(prepared)
        return prepared.id

    async def progress(self, fraction: float | None = None, message: str = "") -> None:
        """Keep how far this attempt has come, for people who watch: `QueueTask.progress`, until the next attempt.

        `fraction` is within 0 and 1, of `message` the first 500 characters are kept.
        Written at once, and then once a second at most: of what is said in between
        the last, when the second is over or the attempt ends.
        Raises InvalidConfigError for others, and ClaimLostError if the run is no
        longer ours. A checkpoint.
        """
        if fraction is not None:
            check_within("progress: fraction", fraction, 0, 1, unit="")
        told = cast("object", message)
        if not isinstance(told, str):
            raise InvalidConfigError(f"progress: message must be a str, got {shown(told)}")
        await trio.lowlevel.checkpoint()
        if self._ended:
            raise ClaimLostError(f"task {self._claim.id}: attempt {self._claim.attempt} has ended")
        waits = self._unreported is not None
        self._unreported = json.dumps({"fraction": fraction, "message": message[:500]}).encode()
        if fraction == 1 or self._pause_s() <= 0:
            if not await self.report():
                raise ClaimLostError(f"task {self._claim.id}: attempt {self._claim.attempt} is no longer ours")
        elif not waits and self._later is not None:
            self._later(self._report_later)

    def _pause_s(self) -> float:
        return -inf if self._reported_at is None else self._reported_at + PROGRESS_EVERY_S - trio.current_time()

    async def _report_later(self) -> None:
        await trio.sleep(max(self._pause_s(), 0.0))  # it may be over by now
        if not self._ended:
            with suppress(StorageError):  # the next one may be kept
                await self.report()

    async def report(self) -> bool:
        """See that what `progress` was last told is written; False if the run is no longer ours.

        For who makes the attempt. Raises StorageError (1021).
        """
        if not self.is_reporting:
            return True
        if self._reporting is None:
            self._reporting = trio.Lock()
        async with self._reporting:  # else the earlier could be written after the later
            data = self._unreported  # written by another meanwhile
            self._unreported = None
            if data is None:
                return True
            self._reported_at = trio.current_time()
            try:
                return await self._report((self._claim.id, self._claim.epoch), data)
            except BaseException:
                if self._unreported is None:  # else there is a later one by now
                    self._unreported = data
                raise

    def complete_in(self, connection: object, result: Any = None) -> None:
        """End this run as a success inside your own transaction on the storage's database.

        What the handler wrote and the end of its run commit together or not at
        all, with what `publish` was given so far: the effect is there once,
        even if the process dies right after the commit. `connection` is that of
        `TaskQueuePublisher.publish_in`; PostgreSQL only. Commit and return the
        same `result`, both at once: the task's row is locked until the commit,
        and after it the success stands. What the handler raises then, a timeout or
        a cancellation too, is logged and changes nothing. Until the commit the
        lease is not renewed, and nobody else can take the task; rolled back after
        the lease is over, it may be taken by another worker.

        Raises ClaimLostError, upon which to roll back, if the run is no longer
        ours; InvalidQueuePayloadError for a result that cannot be stored;
        InvalidConfigError as `publish_in`. Synchronous, and may wait for the
        server: meant for sync handlers.
        """
        completing = self._must_be_completing()
        self._completed(completing.settle_in(connection, completing.success(result, self.spawned)))

    async def complete_in_async(self, connection: object, result: Any = None) -> None:
        """`complete_in` on a `TrioConnection` with a transaction open. A checkpoint."""
        completing = self._must_be_completing()
        done = completing.success(result, self.spawned)
        self._completed(await completing.settle_in_async(connection, done))

    def _must_be_completing(self) -> Completing:
        if self._completing is None:
            raise InvalidConfigError("complete_in: this run is not of a dispatcher; it has no storage to be ended in")
        return self._completing()

    def _completed(self, ours: bool) -> None:
        if not ours:
            raise ClaimLostError(
                f"task {self._claim.id}: attempt {self._claim.attempt} is no longer ours; roll back"
            )

    def end(self) -> None:
        """The handler has returned: `publish` refuses from now on. For who makes the attempt."""
        self._ended = True

    @property
    def is_reporting(self) -> bool:
        """Whether `progress` was told something that is not written yet."""
        return self._unreported is not None or (self._reporting is not None and self._reporting.locked())

    @property
    def spawned(self) -> tuple[NewTask, ...]:
        """What `publish` was given so far."""
        return tuple(self._spawned)

    def __repr__(self) -> str:
        return f"<Run {self._claim.queue}/{self._claim.type} {self._claim.id} attempt={self._claim.attempt}>"


class _RunLog(logging.LoggerAdapter[logging.Logger]):
    """Adds the run's fields to each line, and keeps those the caller gives."""

    def __init__(self, logger: logging.Logger, claim: Claim) -> None:
        super().__init__(
            logger,
            {
                "task_id": claim.id,
                "queue": claim.queue,
                "task_type": claim.type,
                "attempt": claim.attempt,
            },
        )

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs
