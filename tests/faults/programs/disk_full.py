"""D1: the disk is full while handlers run, by a limit on the file's size or on its pages."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import trio

from dispatch import QueueTask, StorageError, TaskQueueConfig, open_dispatcher
from dispatch.storage.sqlite import SqliteStorage
from faults.programs.scenario import JOB, Job, arguments, call_witness, tell, witnessed

RUNNING = 10
MOST = 5_000
"""More publishes than there is ever room for."""


class Disk:
    """Room for a little more, or for anything again."""

    def __init__(self, storage: SqliteStorage, how: str, room: int) -> None:
        self.storage, self.how, self.room = storage, how, room
        self.path: Path = storage._path

    def fill(self) -> None:
        if self.how == "pages":
            (pages,) = self.storage._ledger.db.execute("PRAGMA page_count").fetchone()
            self._pages(pages + self.room)
        else:  # a write beyond it fails: SQLite calls that an I/O error
            size = max(self.path.with_name(f"{self.path.name}{end}").stat().st_size for end in ("", "-wal"))
            self._limit(size + 8_192 * self.room)

    def empty(self) -> None:
        if self.how == "pages":
            self._pages(2**30)
        else:
            self._limit(resource.RLIM_INFINITY)

    def _pages(self, pages: int) -> None:
        self.storage._ledger.db.execute(f"PRAGMA max_page_count = {pages}")

    def _limit(self, size: int) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


async def run(given: Any) -> None:
    path = given.folder / "jobs.db"
    started, release, turns, claims = trio.Event(), trio.Event(), 0, 0
    runs: list[str] = []

    async def handler(task: QueueTask[Job]) -> None:
        runs.append(task.id)
        if len(runs) == RUNNING:
            started.set()
        await release.wait()

    class Counted(SqliteStorage):
        async def turn(self, transitions: Any, *rest: Any, **options: Any) -> Any:
            nonlocal turns, claims
            turns += bool(transitions)
            answers, claimed = await super().turn(transitions, *rest, **options)
            claims += len(claimed.claims)
            return answers, claimed

    async with Counted(path) as storage:
        disk = Disk(storage, given.how, given.room)
        call_witness(path)
        async with open_dispatcher(storage, lease=30.0, observers=()) as dispatcher:
            dispatcher.consumer.register_queue("q", TaskQueueConfig(concurrency=RUNNING))
            dispatcher.consumer.register_handler(JOB, handler)
            acknowledged = [f"r{n}" for n in range(RUNNING)]
            for id_ in acknowledged:
                await dispatcher.publisher.publish(JOB(Job(0), id=id_))
            await started.wait()
            disk.fill()
            refused, message = [], ""
            headers = {f"h{n}": "x" * 500 for n in range(given.headers)}
            for n in range(MOST):
                try:
                    await dispatcher.publisher.publish(JOB(Job(n), id=f"t{n}", headers=headers))
                except StorageError as exc:
                    refused.append(f"t{n}")
                    message = str(exc)
                    if len(refused) == 5:
                        break
                else:
                    acknowledged.append(f"t{n}")
            release.set()
            await trio.sleep(2.0)
            tried, finished, granted = turns, len(runs), claims
            [actors] = dispatcher.consumer._actors.values()
            held = actors.running + len(actors.unwritten)
            # What does not fit for a publish may do for an outcome, which needs less.
            count = "SELECT count(*) FROM dispatch_tasks WHERE status = 'succeeded'"
            (settled,) = storage._searcher.db.execute(count).fetchone()
            disk.empty()
            with trio.fail_after(10.0):
                await dispatcher.drain()
                again = await dispatcher.publisher.publish(JOB(Job(0), id=refused[0]))
                await dispatcher.publisher.wait(again)
        stored = {id_ for (id_,) in storage._searcher.db.execute("SELECT id FROM dispatch_tasks")}
    tell(
        how=given.how,
        refused=len(refused),
        message=message,
        stored_though_refused=len(stored & set(refused[1:])),
        turns_while_full=tried,
        finished_while_full=finished,
        claimed_while_full=granted - RUNNING,
        held_while_full=held,
        settled_while_full=settled,
        ran=len(runs),
        **witnessed(path, [*acknowledged, refused[0]]),
    )


def main() -> None:
    given = arguments(how="limit", room=8, headers=1)
    trio.run(run, given)


if __name__ == "__main__":
    main()
