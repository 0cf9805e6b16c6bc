"""Publishing to PostgreSQL: gathered, so that one statement and one flush serve many callers.

While one statement is under way, further callers wait, and go together in the next;
there is no lingering when there is only one. Plain tasks depend on no stored one and
go by one statement. Others are decided in a transaction, which may have to wait for a
user's that holds the same unique key; so they have a loop of their own. Should either
wait too long, what it holds is stored one by one, and who needs what is held elsewhere
is told so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeVar

import attrs
import trio

from dispatch.bell import Bell
from dispatch.errors import DispatchError, StorageError
from dispatch.records import NewTask
from dispatch.storage.postgres_step import Outcome
from dispatch.storage.postgres_tasks import PostgresTasks
from dispatch.storage.protocol import EnqueueResult
from dispatch.storage.psycopg_trio import TrioConnection, psycopg

__all__ = ["LateError", "PostgresPublishing"]

T = TypeVar("T")

BATCH: Final = 1_000
"""Tasks that one statement stores at most."""
HELD: Final = (
    "nothing was stored. If the server is well, a transaction that is still open holds what this "
    "one needs: it published the same unique key or task id, or uses the same key of a keyed queue"
)
IN_DOUBT: Final = (
    "whether it was stored is in doubt, for the server has not answered since; publish it again with the same id, "
    "which is harmless, or look for it"
)
IMPATIENT: Final = b"SET LOCAL lock_timeout = '50ms'"
BRIEFLY_S: Final = 1.0
"""For one such attempt: if not even that is answered, it is no lock, and no time to waste on the rest."""
TIMEOUTS: Final = (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled)
"""How a server says that it has waited long enough: nothing was done, and it is there."""


class LateError(StorageError):
    """A step of the flow did not end in time: the server is silent, or somebody holds a lock."""

    in_doubt: bool = False
    """Whether not even its cancellation was answered: it may have taken effect."""


class Steps(Protocol):
    """Makes one step of the flow; raises StorageError."""

    async def __call__(
        self,
        action: Callable[[TrioConnection[Any], Outcome], Awaitable[T]],
        *,
        atomic: bool = True,
        deadline_s: float | None = None,
    ) -> T: ...


@attrs.define(eq=False)
class _Job:
    """One `enqueue` on its way to the next statement."""

    tasks: Sequence[NewTask]
    bounded: bool
    caller: trio.lowlevel.Task
    taken: bool = False
    """From here on its caller waits for the answer, cancelled or not."""
    results: list[EnqueueResult | None] = attrs.field(
        default=attrs.Factory(lambda job: [None] * len(job.tasks), takes_self=True)
    )
    """One for each task, None as long as it is not decided."""
    error: DispatchError | None = None
    answered: bool = False

    def answer(self, error: DispatchError | None = None) -> None:
        """Wake the caller: with `error`, or the results, which are all there."""
        self.error = error
        self.answered = True
        trio.lowlevel.reschedule(self.caller)


class _Jobs:
    """Those on their way to statements of one kind."""

    def __init__(self) -> None:
        self.waiting: list[_Job] = []
        self._bell = Bell()

    def put(self, job: _Job) -> None:
        """Add one."""
        self.waiting.append(job)
        self._bell.ring()

    async def take(self) -> list[_Job]:
        """The next batch, once there is one: all bounded or none, since one statement is."""
        while not self.waiting:
            await self._bell.wait()
        taken: list[_Job] = []
        size = 0
        while self.waiting and self.waiting[0].bounded == (taken or self.waiting)[0].bounded:
            size += len(self.waiting[0].tasks)
            if taken and size > BATCH:
                break
            job = self.waiting.pop(0)
            job.taken = True
            taken.append(job)
        return taken

    def clear(self) -> list[_Job]:
        """Those that wait, and now no longer."""
        jobs, self.waiting = self.waiting, []
        return jobs


class PostgresPublishing:
    """What callers of `enqueue` bring, on its way into the database. Its two loops run elsewhere."""

    def __init__(self, tasks: PostgresTasks, step: Steps, where: str) -> None:
        self._tasks = tasks
        self._step = step
        self._where = where
        self._plain, self._others = _Jobs(), _Jobs()

    @trio.lowlevel.enable_ki_protection  # else a job might be answered whose caller does not wait for it
    async def enqueue(self, tasks: Sequence[NewTask], bounded: bool) -> list[EnqueueResult]:
        """Store tasks; cancelled before they are under way, none of them."""
        bounded = bounded and not self._tasks.have_room(tasks, trio.current_time())
        job = _Job(tasks, bounded, trio.lowlevel.current_task())
        jobs = self._plain if self._tasks.are_plain(tasks, bounded=bounded) else self._others
        jobs.put(job)

        def abort(_: object) -> trio.lowlevel.Abort:
            if job.taken:
                return trio.lowlevel.Abort.FAILED
            jobs.waiting.remove(job)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        if job.error is not None:
            raise job.error
        return [result for result in job.results if result is not None]

    async def run_plain(self) -> None:
        """Store plain tasks, a batch at a time, by one statement.

        What it leaves, since the queue has changed, goes with the others. Until cancelled.
        """
        while True:
            jobs = await self._plain.take()
            with self._answered(jobs):
                await self._attempt(jobs, self._store_plain)
            for job in jobs:
                if not job.answered:
                    self._others.put(job)

    async def run_others(self) -> None:
        """Store others, a batch in a transaction, which may have to wait for a user's. Until cancelled."""
        while True:
            jobs = await self._others.take()
            with self._answered(jobs):
                await self._attempt(jobs, self._store_others)

    @contextmanager
    def _answered(self, jobs: Sequence[_Job]) -> Generator[None]:
        """Whatever ends the block, the callers learn of it."""
        try:
            yield
        except BaseException:
            for job in jobs:
                if not job.answered:
                    job.answer(StorageError(f"{self._where}: closed while it was storing"))
            raise

    async def _attempt(
        self, jobs: Sequence[_Job], store: Callable[[Sequence[_Job]], Awaitable[None]]
    ) -> None:
        """Store jobs together, or one by one where one of them is the trouble."""
        try:
            await store(jobs)
        except Exception as exc:  # noqa: BLE001 - each caller is told; the next ones go on
            held = isinstance(exc.__cause__, TIMEOUTS)  # of the server's own, if they are set so short
            away = isinstance(exc, StorageError) and isinstance(
                exc.__cause__, psycopg.OperationalError | None
            )
            error = _as_storage_error(exc, self._where)
            if held or isinstance(exc, LateError):
                in_doubt = isinstance(exc, LateError) and exc.in_doubt
                error = StorageError(f"{error.detail}; {IN_DOUBT if in_doubt else HELD}")
                if len(jobs) > 1:
                    await self._attempt_briefly(jobs, error)
                    return
            elif len(jobs) > 1 and not away:
                # It is about what one of them brought: that must stay its own trouble.
                for job in jobs:
                    await self._attempt([job], store)
                return
            for job in jobs:
                job.answer(error)

    async def _attempt_briefly(self, jobs: Sequence[_Job], late: DispatchError) -> None:
        """Store, one by one, those that need not wait for what somebody else holds."""
        silent = False
        for job in jobs:
            error = late
            if not silent:
                try:
                    await self._store_others([job], patient=False)
                    continue
                except Exception as exc:  # noqa: BLE001 - as above
                    silent = isinstance(exc, LateError)
                    if not isinstance(exc.__cause__, TIMEOUTS):
                        error = _as_storage_error(exc, self._where)
            job.answer(error)

    async def _store_plain(self, jobs: Sequence[_Job]) -> None:
        tasks = [new for job in jobs for new in job.tasks]
        stored = iter(
            await self._step(
                lambda connection, outcome: self._tasks.enqueue_plain(
                    connection, tasks, outcome, bounded=jobs[0].bounded
                ),
                atomic=False,
            )
        )
        for job in jobs:
            job.results = [next(stored) for _ in job.tasks]
            if None not in job.results:
                job.answer()

    async def _store_others(self, jobs: Sequence[_Job], *, patient: bool = True) -> None:
        left = [
            new
            for job in jobs
            for new, result in zip(job.tasks, job.results, strict=True)
            if result is None
        ]

        async def store(
            connection: TrioConnection[Any], outcome: Outcome
        ) -> list[EnqueueResult]:
            if not patient:
                await connection.execute(IMPATIENT)
            return await self._tasks.enqueue(
                connection, left, outcome, bounded=jobs[0].bounded, at=trio.current_time()
            )

        decided = iter(await self._step(store, deadline_s=None if patient else BRIEFLY_S))
        for job in jobs:
            job.results = [next(decided) if result is None else result for result in job.results]
            job.answer()

    def fail(self, why: str) -> None:
        """Wake who waits for a statement that will not be made."""
        for job in (*self._plain.clear(), *self._others.clear()):
            job.answer(StorageError(f"{self._where}: {why}; nothing was stored"))


def _as_storage_error(exc: Exception, where: str) -> DispatchError:
    if isinstance(exc, DispatchError):
        return exc
    error = StorageError(f"{where}: cannot be stored: {exc}")
    error.__cause__ = exc
    return error
