"""Group commit: steps of many trio tasks gather while one transaction is written.

Theory of operation. There is no writer task to start, stop or lose. Whoever comes
while nothing is being written leads: takes everything that waits, has a thread
carry it out in one transaction, and tells the others their answers. Who comes
meanwhile waits; when the transaction is over the first of them leads the next
one. So there is exactly one transaction and one thread hop at a time, batches
are as large as the disk is slow, and nobody ever waits for a timer.

A step that waits can be cancelled and has then done nothing. Once a leader has
taken it, it will be done, and cancellation is noticed afterwards.

If one step of a batch fails, the transaction is rolled back and its steps are
redone one by one under savepoints, so that the failure stays its own.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

import trio

from dispatch.errors import ClosedError, StorageError

if TYPE_CHECKING:
    from outcome import Outcome

__all__ = ["Batch", "Step", "Writer", "no_thread"]

T = TypeVar("T")

MOST_STEPS: Final = 1_000
"""Steps in one transaction."""


class Batch(Protocol):
    """What a writer writes to: where transactions begin, end and are undone."""

    def begin(self) -> None:
        """Begin a transaction that holds the write lock."""
        ...

    def commit(self) -> None:
        """Make it last."""
        ...

    def rollback(self) -> None:
        """Undo it; harmless if there is none."""
        ...

    def savepoint(self, word: str) -> None:
        """SAVEPOINT, RELEASE or ROLLBACK TO."""
        ...


class Step:
    """One caller's part of a transaction, and what came of it."""

    __slots__ = ("action", "answer", "error", "over", "task")

    def __init__(self, action: Callable[[], Any]) -> None:
        self.action: Callable[[], Any] = action
        self.answer: Any = None
        self.error: BaseException | None = None
        self.over: bool = False
        self.task: trio.lowlevel.Task | None = None


class Writer:
    """Carries steps out, in order, as many at once as have gathered.

    `committed` is called on the trio thread after each transaction, before
    anybody is told. `inline` carries out on the trio thread, for simulations
    under virtual time.
    """

    def __init__(self, batch: Batch, committed: Callable[[], None], *, inline: bool = False) -> None:
        self._batch = batch
        self._committed = committed
        self._inline = inline
        self._waiting: deque[Step] = deque()
        self._writing = False
        self._closed = False
        self._idle: trio.Event | None = None

    # A Ctrl-C amid this bookkeeping would leave others waiting for ever: it comes later, elsewhere.
    @trio.lowlevel.enable_ki_protection
    async def run(self, action: Callable[[], T]) -> T:
        """Carry `action` out in a transaction, in a thread; a checkpoint that can cancel only before.

        Raises what the action raised, or what the transaction failed with; StorageError
        with nothing done if no thread could be started for it.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closed:
            raise ClosedError("this storage is closed")
        step = Step(action)
        self._waiting.append(step)
        if self._writing:
            await self._wait(step)
        if not step.over:
            self._writing = True
            await self._lead()
        if step.error is not None:
            raise step.error
        return cast("T", step.answer)

    @trio.lowlevel.enable_ki_protection
    async def close(self) -> None:
        """Take no more steps; wait for those taken. Harmless to repeat."""
        self._closed = True
        if self._writing:
            self._idle = trio.Event()
            await self._idle.wait()

    async def _wait(self, step: Step) -> None:
        """Wait for the answer, or for one's turn to lead."""
        step.task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            if step not in self._waiting:  # taken: it will be done
                return trio.lowlevel.Abort.FAILED
            self._waiting.remove(step)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def _lead(self) -> None:
        """Carry out everything that waits, one's own step among it; then hand the lead on."""
        steps = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_STEPS))]
        try:
            if self._inline:
                self._transact(steps)
            else:
                await _in_thread(partial(self._transact, steps))
        except BaseException as exc:
            # Nobody may be left waiting, whatever happened to this one.
            for step in steps:
                if not step.over:
                    step.error, step.over = exc, True
            raise
        finally:
            self._tell(steps)

    def _tell(self, steps: list[Step]) -> None:
        self._committed()
        for step in steps:
            if step.task is not None:
                trio.lowlevel.reschedule(step.task)
                step.task = None
        self._writing = False
        if self._waiting:
            self._writing = True
            leader = self._waiting[0]
            assert leader.task is not None
            trio.lowlevel.reschedule(leader.task)
            leader.task = None
        elif self._idle is not None:
            self._idle.set()

    # ---- in the thread ---------------------------------------------------

    def _transact(self, steps: list[Step]) -> None:
        """One transaction of all steps; every step is over afterwards, one way or the other."""
        batch = self._batch
        try:
            batch.begin()
            try:
                for step in steps:
                    step.answer = step.action()
            except Exception as exc:  # noqa: BLE001 - handed to its caller
                batch.rollback()
                if len(steps) == 1:
                    steps[0].error = exc
                    return
                batch.begin()
                for step in steps:
                    self._alone(step)
            batch.commit()
        except Exception as exc:  # noqa: BLE001 - handed to the callers
            with suppress(sqlite3.Error):
                batch.rollback()
            for step in steps:
                step.error = step.error or exc
        finally:
            for step in steps:
                step.over = True

    def _alone(self, step: Step) -> None:
        """Redo one step, so that its failure undoes nothing else."""
        self._batch.savepoint("SAVEPOINT")
        try:
            step.answer = step.action()
        except Exception as exc:  # noqa: BLE001 - handed to the caller
            step.error = exc
            try:
                self._batch.savepoint("ROLLBACK TO")
            except sqlite3.Error:  # SQLite has undone the whole transaction: a full disk, say
                raise exc from None
        self._batch.savepoint("RELEASE")


def no_thread(exc: RuntimeError) -> StorageError:
    """What to raise where the system starts no thread for now, before anything was done."""
    return StorageError(f"no thread could be started: {exc}")


async def _in_thread(work: Callable[[], None]) -> None:
    """Have one of trio's threads do `work`, and wait for it: not to be cancelled, and no checkpoint.

    `trio.to_thread.run_sync` takes some 40 us more, a third of it all: it names the thread
    twice, copies the context, and goes once round the scheduler for its limiter. To be called
    protected from Ctrl-C, which between the two steps below would leave the thread unwaited for.
    """
    task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()

    def deliver(outcome: Outcome[None]) -> None:
        with suppress(trio.RunFinishedError):  # nobody is left to be told
            token.run_sync_soon(trio.lowlevel.reschedule, task, outcome)

    try:
        trio.lowlevel.start_thread_soon(work, deliver)
    except RuntimeError as exc:
        raise no_thread(exc) from exc
    await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
