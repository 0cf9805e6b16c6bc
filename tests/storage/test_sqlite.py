"""The SQLite storage where the conformance kit does not look: files, processes, commits, cost."""

# ruff: noqa: ASYNC240 - small local files, looked at by tests that wait for nothing meanwhile

from __future__ import annotations

import gc
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from attrs import frozen

from dispatch import (
    Dispatcher,
    InvalidConfigError,
    InvalidQueueTaskError,
    QueueNotRegisteredError,
    QueueTask,
    StorageError,
    TaskQueueConfig,
    TaskStatus,
    TaskType,
    open_dispatcher,
)
from dispatch.bell import Bell
from dispatch.errors import ClosedError
from dispatch.records import NewTask, TransitionKind
from dispatch.storage import (
    sqlite,
    sqlite_places,
    sqlite_query,
    sqlite_repair,
    sqlite_schema,
    sqlite_tasks,
)
from dispatch.storage.opening import open_storage
from dispatch.storage.protocol import (
    Change,
    CronRecord,
    EnqueueAnswer,
    PruneSpec,
    QueueRecord,
    Topic,
    TopicKind,
    Want,
)
from dispatch.storage.query import All, AnyOf, Ids, Queues, Statuses, Types
from dispatch.storage.sqlite import SqliteStorage
from dispatch.testing.workbench import Workbench, unique
from tests.conclusive import AGAIN, in_time

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20.0
SALVAGE = "sqlite3 jobs.db .dump | sed 's/^ROLLBACK.*/COMMIT;/' | sqlite3 new.db"


@frozen
class Job:
    n: int = 0


JOB = TaskType("q", "job", Job)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@asynccontextmanager
async def stored(path: Path, **options: Any) -> AsyncIterator[SqliteStorage]:
    """An open storage in which queue `q` is declared."""
    with trio.fail_after(PATIENCE_S):
        async with SqliteStorage(path, **options) as storage:
            await storage.declare([QueueRecord(name="q")])
            yield storage


def new(id_: str, **fields: Any) -> NewTask:
    return NewTask(**{"id": id_, "queue": "q", "type": "job", "payload": b'{"n":0}', **fields})


def ids(path: Path) -> list[str]:
    """What another process would see."""
    with closing(sqlite3.connect(path)) as db:
        return [id_ for (id_,) in db.execute("SELECT id FROM dispatch_tasks ORDER BY id")]


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Hold the write lock, as another process does, until the block ends."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=PATIENCE_S)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield db
        if db.in_transaction:
            db.execute("ROLLBACK")


async def handler(task: QueueTask[Job]) -> None:
    await trio.lowlevel.checkpoint()


# ---- opening --------------------------------------------------------------------


async def refusal(path: Path) -> str:
    with pytest.raises(StorageError) as caught:
        async with SqliteStorage(path):
            raise AssertionError("it opened")
    return caught.value.detail


async def test_the_files_are_made_for_their_owner_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        async with stored(path):
            modes = {
                each.name: stat.S_IMODE(each.stat().st_mode)
                for each in path.parent.iterdir()
            }
    finally:
        os.umask(before)
    assert modes == {"jobs.db": 0o600, "jobs.db-wal": 0o600, "jobs.db-shm": 0o600}


async def test_a_file_that_is_there_keeps_its_mode_and_its_tables(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript("CREATE TABLE mine (n); INSERT INTO mine VALUES (7);")
    path.chmod(0o640)
    async with stored(path) as storage:
        await storage.enqueue([new("a")])
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT n FROM mine").fetchall() == [(7,)]


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none" / "jobs.db"
    assert await refusal(path) == f"{path}: the folder {path.parent} does not exist; make it first"


async def test_a_folder_is_no_database(tmp_path: Path) -> None:
    assert await refusal(tmp_path) == (
        f"{tmp_path}: cannot be opened as a SQLite database: unable to open database file; "
        f"it is a folder: name a file in it, such as {tmp_path}/jobs.db"
    )


async def test_a_file_of_something_else_is_left_alone(path: Path) -> None:
    path.write_bytes(b"something else " * 100)
    assert await refusal(path) == (
        f"{path}: cannot be opened as a SQLite database: file is not a database; "
        "name another file, or put a backup of the one that was here in its place"
    )
    assert path.read_bytes() == b"something else " * 100


async def test_room_that_another_process_has_filled_is_no_room(path: Path) -> None:
    queue = QueueRecord(name="q", max_waiting=6_400)
    async with stored(path) as one, stored(path) as other:
        for storage in (one, other):
            await storage.declare([queue])
        assert [each.answer for each in await other.enqueue([new("first")], bounded=True)] == [EnqueueAnswer.CREATED]
        for start in range(0, 6_399, 1_000):
            await one.enqueue([new(f"t{start + n}") for n in range(min(1_000, 6_399 - start))], bounded=True)
        assert [each.answer for each in await other.enqueue([new("more")], bounded=True)] == [EnqueueAnswer.FULL]


async def test_cron_entries_read_by_name_are_not_kept(path: Path) -> None:
    async with stored(path) as storage:
        for number in range(20):
            entry = CronRecord(name=f"reminder {number}", definition="d", template=new(""))
            await storage.put_cron(entry)
            assert await storage.crons(entry.name)
            await storage.remove_cron(entry.name)
        gc.collect()
        kept = [each for each in gc.get_objects() if isinstance(each, CronRecord) and each.name.startswith("reminder")]
        assert [each.name for each in kept] == ["reminder 19"]  # `entry` itself


async def test_a_backup_of_an_open_file_has_all_and_runs_again_what_ran(path: Path) -> None:
    async with stored(path) as storage:
        await storage.enqueue([new(f"task-{number}") for number in range(20)])
        want = Want(queue="q", limit=1, max_retry=1)
        [running] = (await storage.claim([want], worker="w", lease=0.05)).claims
        with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(path.parent / "copy.db")) as copy:
            db.backup(copy)
        await storage.enqueue([new("later")])
    for each in path.parent.glob("jobs.db*"):
        each.unlink()
    (path.parent / "copy.db").rename(path)
    await trio.sleep(0.06)
    async with stored(path) as storage:
        [rescued] = (await storage.rescue()).records
        assert (rescued.id, rescued.status) == (running.id, TaskStatus.PENDING)  # after its delay
        claimed = await storage.claim([Want(queue="q", limit=50)], worker="w", lease=30.0)
        assert {claim.id for claim in claimed.claims} == {f"task-{number}" for number in range(1, 20)}


@pytest.mark.parametrize("first", [1, 2])  # with the page that holds the tables' names, and behind it
async def test_a_damaged_file_is_told_what_to_do(path: Path, first: int) -> None:
    async with stored(path) as storage:
        await storage.enqueue([new(f"task-{number}", payload=b"x" * 500) for number in range(500)])
    data = bytearray(path.read_bytes())
    data[first * 4096 :] = b"\x55" * (len(data) - first * 4096)
    path.write_bytes(data)
    with pytest.raises(StorageError) as caught:
        async with SqliteStorage(path) as storage:
            await storage.claim([Want(queue="q", limit=600)], worker="w", lease=30.0)
    assert str(path) in caught.value.detail
    assert caught.value.detail.endswith(
        "malformed; the file is damaged: stop its processes and put a backup in its place, or have what can be read "
        f"written to a new one, {SALVAGE}"
    )


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="needs SQLite's shell")
async def test_what_a_damaged_file_still_holds_is_saved_as_the_message_says(tmp_path: Path) -> None:
    async with stored(tmp_path / "jobs.db") as storage:
        await storage.enqueue([new(f"task-{number}", payload=b"x" * 500) for number in range(500)])
    data = bytearray((tmp_path / "jobs.db").read_bytes())
    data[-8 * 4096 :] = b"\x55" * (8 * 4096)
    (tmp_path / "jobs.db").write_bytes(data)
    await trio.run_process(["sh", "-c", SALVAGE], cwd=tmp_path, capture_stderr=True)
    async with SqliteStorage(tmp_path / "new.db") as storage:
        claimed = (await storage.claim([Want(queue="q", limit=600)], worker="w", lease=30.0)).claims
    assert 250 < len(claimed) < 500
    assert {claim.payload for claim in claimed} == {b"x" * 500}


async def test_a_file_made_by_newer_code_is_left_alone(path: Path) -> None:
    async with stored(path) as storage:
        await storage.enqueue([new("a")])
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE dispatch_schema SET version = 99")
        db.commit()
    assert await refusal(path) == (
        f"{path}: made by a newer trio-dispatch (schema 99; this one knows "
        f"{sqlite_schema.SCHEMA_VERSION}); upgrade the package in this process"
    )
    assert ids(path) == ["a"]


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may write anywhere: be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        (0o444, "cannot be written by this user; make it writable"),
        (
            0o666,
            "cannot be opened as a SQLite database: attempt to write a readonly database; SQLite keeps its log "
            "beside the file, and the folder {} cannot be written by this user: make it writable",
        ),
    ],
    ids=["file", "folder"],
)
async def test_a_file_or_a_folder_that_may_not_be_written_is_refused(mode: int, why: str, path: Path) -> None:
    async with stored(path):
        pass
    path.chmod(mode)
    folders = [path.parent, *path.parent.parents[:3]]
    modes = [folder.stat().st_mode for folder in folders]
    for folder in folders:
        folder.chmod(folder.stat().st_mode | 0o555)
    path.parent.chmod(0o555)
    try:
        with unprivileged():
            said = await refusal(path)
    finally:
        for folder, mode in zip(folders, modes, strict=True):
            folder.chmod(mode)
    assert said == f"{path}: {why.format(path.parent)}"


async def test_a_file_system_without_a_write_ahead_log_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Remote(sqlite3.Connection):
        """What SQLite answers where it has no shared memory."""

        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if sql.startswith("PRAGMA journal_mode"):
                sql = "SELECT 'delete'"
            return super().execute(sql, *values)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Remote))
    assert await refusal(path) == (
        f"{path}: SQLite cannot use a write-ahead log here (journal mode 'delete'); "
        "is it on a network file system?"
    )


async def test_a_cancelled_opening_leaves_a_file_that_opens(path: Path) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        async with SqliteStorage(path):
            raise AssertionError("it opened")
    async with stored(path) as storage:
        await storage.enqueue([new("a")])


@pytest.mark.parametrize(("url", "level"), [("", 2), ("?synchronous=full", 2), ("?synchronous=normal", 1)])
async def test_the_url_says_how_much_is_flushed(url: str, level: int, path: Path) -> None:
    async with open_storage(f"sqlite:///{path}{url}") as storage:
        assert isinstance(storage, SqliteStorage)
        found = storage._ledger.db.execute("PRAGMA synchronous").fetchone()
    assert found == (level,)


@pytest.mark.parametrize(
    "url", ["sqlite:///{}?synchronous=off", "sqlite:///{}?sync=full", "sqlite://host/{}", "sqlite:", "sqlite:///"]
)
async def test_a_url_with_anything_else_is_refused(url: str, path: Path) -> None:
    with pytest.raises(InvalidConfigError, match=r"synchronous=full|sqlite:///jobs\.db"):
        async with open_storage(url.format(path)):
            raise AssertionError("it opened")


@pytest.mark.parametrize("given", ["", ":memory:"])
def test_a_path_must_name_a_file(given: str) -> None:
    with pytest.raises(InvalidConfigError, match="for a storage in memory use MemoryStorage"):
        SqliteStorage(given)


async def test_a_fresh_file_that_another_process_is_just_making_is_waited_for(path: Path) -> None:
    """SQLite refuses the change to a write-ahead log at once then, without its busy timeout."""
    held = trio.Event()

    def hold() -> None:
        with locked(path):  # not a write-ahead log yet
            trio.from_thread.run_sync(held.set)
            time.sleep(0.2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, hold)
        await held.wait()
        async with SqliteStorage(path) as storage:
            await storage.declare([QueueRecord(name="q")])
            await storage.enqueue([new("a")])
    assert ids(path) == ["a"]


async def test_a_fresh_file_that_stays_locked_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_schema, "BUSY_TIMEOUT_S", 0.05)
    with locked(path), pytest.raises(StorageError, match=r"jobs\.db: cannot be opened .*database is locked"):
        async with SqliteStorage(path):
            pass


async def test_it_is_used_while_it_is_open_and_once(path: Path) -> None:
    storage = SqliteStorage(path)
    with pytest.raises(ClosedError, match="use it as: async with"):
        await storage.enqueue([new("a")])
    with pytest.raises(ClosedError, match="use it as: async with"):
        storage.watch(Bell(), Topic(TopicKind.CONTROL))
    async with storage:
        pass
    for use in (storage.enqueue([new("a")]), storage.queues(), storage.rescue()):
        with pytest.raises(ClosedError, match="it is closed"):
            await use
    with pytest.raises(ClosedError, match="was open already; make another"):
        async with storage:
            raise AssertionError("it opened")


# ---- versions of the tables -----------------------------------------------------


@pytest.fixture
def next_version(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A version of the tables after today's; the steps taken are noted."""
    taken: list[str] = []
    now = sqlite_schema.SCHEMA_VERSION

    def step(db: sqlite3.Connection) -> None:
        taken.append("step")
        db.execute("ALTER TABLE dispatch_tasks ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'")

    monkeypatch.setattr(sqlite_schema, "SCHEMA_VERSION", now + 1)
    monkeypatch.setitem(sqlite_schema.STEPS, now, step)
    return taken


async def test_a_file_of_the_first_version_is_brought_up_to_this_one(path: Path) -> None:
    await made_today(path)
    with closing(sqlite3.connect(path)) as db, db:
        second_version(db)
        db.execute("DROP INDEX dispatch_unique")
        db.execute("CREATE INDEX dispatch_unique ON dispatch_tasks (unique_key) WHERE unique_key IS NOT NULL")
        db.execute("UPDATE dispatch_schema SET version = 1")
    async with stored(path) as storage:
        assert (await storage.enqueue([new("b", unique=unique())]))[0].answer is EnqueueAnswer.CREATED
        assert (await storage.enqueue([new("c", unique=unique())]))[0].answer is EnqueueAnswer.EXISTING
    assert version(path) == sqlite_schema.SCHEMA_VERSION
    with closing(sqlite3.connect(path)) as db:
        assert [row[2] for row in db.execute("PRAGMA index_info(dispatch_unique)")] == [
            "unique_key",
            "status",
            "available_at",
        ]


def second_version(db: sqlite3.Connection) -> None:
    """Take back what the third version added."""
    db.execute("ALTER TABLE dispatch_schema DROP COLUMN deleted")
    db.execute("UPDATE dispatch_schema SET version = 2")


async def test_a_file_of_the_second_version_gives_no_number_again_from_now_on(path: Path) -> None:
    await made_today(path)
    with closing(sqlite3.connect(path)) as db, db:
        second_version(db)
    async with stored(path) as storage:
        assert version(path) == sqlite_schema.SCHEMA_VERSION
        await storage.alter(All(), Change(action="cancel"))
        before = (await storage.find(All())).records[-1].seq
        assert await storage.prune(PruneSpec(keep=0)) == 1
        await storage.enqueue([new("b"), new("c")])
        await storage.enqueue([new("d", unique=unique())])
        assert [record.seq for record in (await storage.find(All())).records] == [before + 1, before + 2, before + 3]


@pytest.mark.parametrize(
    ("column", "why"),
    [
        ("status = 'snoozed'", "ValueError: 'snoozed' is not a valid TaskStatus"),
        ("failure_reason = 'bored'", "ValueError: 'bored' is not a valid FailureReason"),
        ("unique_rule = '{}'", "KeyError: 'key'"),
    ],
)
async def test_a_row_that_cannot_be_read_is_named(column: str, why: str, path: Path) -> None:
    async with stored(path) as storage:
        await storage.enqueue([new("a"), new("b")])
        with closing(sqlite3.connect(path)) as db, db:
            db.execute(f"UPDATE dispatch_tasks SET {column} WHERE id = 'a'")  # noqa: S608 - from above
        with pytest.raises(StorageError) as caught:
            await storage.find(All())
        assert caught.value.detail == (
            f"the row of task a cannot be read ({why}): another program wrote it, or a later version of this one; "
            "upgrade, or mend the row"
        )
        assert len((await storage.find(Ids("b"))).records) == 1


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        (found,) = db.execute("SELECT version FROM dispatch_schema").fetchone()
        return int(found)


async def made_today(path: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite_schema, "SCHEMA_VERSION", max(sqlite_schema.STEPS))
        async with stored(path) as storage:
            await storage.enqueue([new("a")])
    return version(path)


async def test_an_older_file_is_brought_up_to_date_once_and_keeps_its_tasks(
    path: Path, next_version: list[str]
) -> None:
    before = await made_today(path)
    async with stored(path), stored(path) as storage:
        assert len((await storage.find(Ids("a"))).records) == 1
    assert next_version == ["step"]
    assert version(path) == before + 1
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT colour FROM dispatch_tasks").fetchall() == [("red",)]


async def test_a_step_that_fails_changes_nothing(
    path: Path, next_version: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await made_today(path)

    def broken(db: sqlite3.Connection) -> None:
        db.execute("DROP TABLE dispatch_tasks")
        db.execute("no such statement")

    monkeypatch.setitem(sqlite_schema.STEPS, before, broken)
    assert (await refusal(path)).startswith(f"{path}: its tables cannot be read or made: near")
    assert version(path) == before
    assert ids(path) == ["a"]


# ---- who wakes whom -------------------------------------------------------------

PUBLISH = """
import sys, time, trio
from dispatch.records import NewTask
from dispatch.storage.sqlite import SqliteStorage

async def main():
    async with SqliteStorage(sys.argv[1]) as storage:
        await storage.enqueue([NewTask(id="theirs", queue="q", type="job", payload=b"{}")])
        print(time.monotonic(), flush=True)

trio.run(main)
"""


async def test_two_storages_on_one_file_wake_each_other(path: Path) -> None:
    async with stored(path) as one, stored(path) as other:
        for here, there, id_ in ((one, other, "a"), (other, one, "b")):
            bell = Bell()
            with there.watch(bell, Topic(TopicKind.QUEUE, "q")):
                await trio.sleep(0.3)  # by now it looks as seldom as it ever does
                await bell.wait(0)
                await here.enqueue([new(id_)])
                with trio.fail_after(0.5):
                    await bell.wait()


async def test_another_process_wakes_ours(path: Path) -> None:
    bell = Bell()
    async with stored(path) as storage:
        with storage.watch(bell, Topic(TopicKind.QUEUE, "q")):
            await trio.sleep(0.2)  # by now it looks as seldom as it ever does
            await bell.wait(0)
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT)])}
            command = [sys.executable, "-c", PUBLISH, str(path)]
            run = partial(trio.run_process, command, stdout=subprocess.PIPE, env=environment)
            async with trio.open_nursery() as nursery:
                process = await nursery.start(run)
                await bell.wait()
                rung_at = time.monotonic()
                committed_at = float(await process.stdout.receive_some())
            assert rung_at - committed_at < 0.5
            want = Want(queue="q", limit=1)
            assert len((await storage.claim([want], worker="w", lease=9.0)).claims) == 1


async def test_a_bell_of_a_kind_unknown_here_is_passed_over(path: Path) -> None:
    bell = Bell()
    async with stored(path) as storage:
        with storage.watch(bell, Topic(TopicKind.QUEUE, "q")), closing(sqlite3.connect(path)) as other:
            with other:
                other.execute("REPLACE INTO dispatch_bells VALUES ('news', 'q', 1), ('queue', 'q', 99)")
            await bell.wait()


async def test_a_mistake_in_looking_outside_ends_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def mistaken(storage: SqliteStorage) -> object:
        raise LookupError("our mistake")

    monkeypatch.setattr(sqlite, "MISTAKEN_S", 0.01)
    bell = Bell()
    async with stored(path) as storage, stored(path) as other:
        with storage.watch(bell, Topic(TopicKind.QUEUE, "q")):
            with monkeypatch.context() as broken:
                broken.setattr(SqliteStorage, "_look_outside", mistaken)
                await bell.wait()  # who knows what happened meanwhile
            await other.enqueue([new("a")])
            await bell.wait()
    assert "a mistake of its own kept it from seeing what other processes wrote" in caplog.text


async def test_a_watcher_of_a_task_is_told_when_another_storage_ends_it(path: Path) -> None:
    async with stored(path) as one, open_dispatcher(f"sqlite:///{path}", observers=()) as dispatcher:
        dispatcher.consumer.register_queue("q")
        dispatcher.consumer.register_handler(JOB, handler)
        bell = Bell()
        with one.watch(bell, Topic(TopicKind.TASK, "a")):
            await one.enqueue([new("a")])
            with trio.fail_after(PATIENCE_S):
                while (await one.find(Ids("a"))).records[0].status is not TaskStatus.SUCCEEDED:
                    await bell.wait()


async def test_nobody_looks_outside_where_nobody_watches(path: Path) -> None:
    async with stored(path) as storage:
        with storage.watch(Bell(), Topic(TopicKind.CONTROL)):
            await trio.sleep(0.05)
            assert storage._polling
        await trio.sleep(0.3)
        assert not storage._polling
        bell = Bell()
        with storage.watch(bell, Topic(TopicKind.QUEUE, "q")):  # and somebody does again
            async with stored(path) as other:
                await other.enqueue([new("a")])
                with trio.fail_after(PATIENCE_S):
                    await bell.wait()


# ---- in the user's own transaction ----------------------------------------------


@asynccontextmanager
async def publishing(path: Path) -> AsyncIterator[tuple[Any, sqlite3.Connection, list[str]]]:
    """A dispatcher at work, a connection of the user's own, and who was run."""
    ran: list[str] = []

    async def note(task: QueueTask[Job]) -> None:
        ran.append(task.id)

    with trio.fail_after(PATIENCE_S):
        async with open_dispatcher(f"sqlite:///{path}", observers=()) as dispatcher:
            dispatcher.consumer.register_queue("q", TaskQueueConfig())
            dispatcher.consumer.register_handler(JOB, note)
            await dispatcher.publisher.declare()
            with closing(sqlite3.connect(path, isolation_level=None)) as db:
                db.execute("CREATE TABLE orders (n)")
                yield dispatcher, db, ran


@AGAIN
async def test_a_task_published_in_a_transaction_exists_and_wakes_workers_once_it_commits(path: Path) -> None:
    async with publishing(path) as (dispatcher, db, ran):
        db.execute("BEGIN")
        db.execute("INSERT INTO orders VALUES (1)")
        task = dispatcher.publisher.publish_in(db, JOB(Job(1)))
        assert task.id
        assert ids(path) == ran == []
        db.execute("COMMIT")
        began = trio.current_time()
        ended = await dispatcher.publisher.wait(task)
        waited_s = trio.current_time() - began
        assert ended.status is TaskStatus.SUCCEEDED
        assert ran == [task.id]
    in_time({"waited_s": waited_s}, waited_s=1.0)


async def test_many_tasks_are_published_in_a_transaction_or_none(path: Path) -> None:
    async with publishing(path) as (dispatcher, db, ran):
        for end in ("ROLLBACK", "COMMIT"):
            db.execute("BEGIN")
            answers = dispatcher.publisher.publish_many_in(db, [JOB(Job(n), id=f"many-{n}") for n in range(1_200)])
            assert {each.answer for each in answers} == {EnqueueAnswer.CREATED}
            assert ids(path) == ran == []
            db.execute(end)
        with pytest.raises(InvalidQueueTaskError, match="publish_many_in takes several tasks, got QueueTask; publish_in takes one"):
            dispatcher.publisher.publish_many_in(db, JOB(Job(1)))  # type: ignore[arg-type]
        await dispatcher.drain()
    assert sorted(ran) == sorted(f"many-{n}" for n in range(1_200))


async def test_a_task_published_in_a_transaction_is_gone_if_that_is_rolled_back(path: Path) -> None:
    async with publishing(path) as (dispatcher, db, ran):
        db.execute("BEGIN")
        dispatcher.publisher.publish_in(db, JOB(Job(1), id="a"))
        db.execute("ROLLBACK")
        await dispatcher.publisher.wait(await dispatcher.publisher.publish(JOB(Job(2), id="b")))
        assert (ids(path), ran) == (["b"], ["b"])


async def test_publishing_an_id_again_in_a_transaction_answers_with_the_stored_task(path: Path) -> None:
    async with publishing(path) as (dispatcher, db, _):
        await dispatcher.publisher.wait(await dispatcher.publisher.publish(JOB(Job(1), id="a")))
        db.execute("BEGIN IMMEDIATE")
        assert dispatcher.publisher.publish_in(db, JOB(Job(2), id="a")).status is TaskStatus.SUCCEEDED
        db.execute("COMMIT")


async def test_a_row_factory_and_its_transaction_control_stay_the_users(path: Path) -> None:
    async with publishing(path) as (dispatcher, db, _):
        db.row_factory = sqlite3.Row
        db.isolation_level = "DEFERRED"
        with db:
            db.execute("INSERT INTO orders VALUES (1)")  # begins a transaction, the old way
            first = dispatcher.publisher.publish_in(db, JOB(Job(1)))
            second = dispatcher.publisher.publish_in(db, JOB(Job(2), headers={"a": "b"}, tags=("t",)))
        assert db.row_factory is sqlite3.Row
        for task in (first, second):
            assert (await dispatcher.publisher.wait(task)).status is TaskStatus.SUCCEEDED


async def test_a_transaction_that_cannot_take_the_task_says_why(path: Path, tmp_path: Path) -> None:
    async with publishing(path) as (dispatcher, db, _):
        publish = dispatcher.publisher.publish_in
        with pytest.raises(InvalidConfigError, match="no transaction is open on the connection; begin one first"):
            publish(db, JOB(Job(1)))
        for wrong in (None, path, db.cursor()):
            with pytest.raises(InvalidConfigError, match=r"expected a sqlite3\.Connection, got"):
                publish(wrong, JOB(Job(1)))
        gone = sqlite3.connect(path)
        gone.close()
        with pytest.raises(InvalidConfigError, match="the connection cannot be used here: Cannot operate on a closed"):
            publish(gone, JOB(Job(1)))
        with closing(sqlite3.connect(path, isolation_level=None)) as of_this_thread:
            of_this_thread.execute("BEGIN")
            with pytest.raises(InvalidConfigError, match="SQLite objects created in a thread can only be used in that"):
                await trio.to_thread.run_sync(publish, of_this_thread, JOB(Job(1)))
        for other in (tmp_path / "other.db", ":memory:"):
            with closing(sqlite3.connect(other, isolation_level=None)) as elsewhere:
                elsewhere.execute("BEGIN IMMEDIATE")
                with pytest.raises(InvalidConfigError, match="the transaction must be on the same file"):
                    publish(elsewhere, JOB(Job(1)))
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(QueueNotRegisteredError):
            publish(db, TaskType("unknown", "job", Job)(Job(1)))
        assert db.in_transaction, "a refusal ended the user's transaction"
        db.execute("COMMIT")
        assert ids(path) == []


async def test_a_deferred_transaction_waits_for_another_writer_unless_it_has_read(path: Path) -> None:
    async with publishing(path) as (dispatcher, db, _):
        publish = dispatcher.publisher.publish_in
        with closing(sqlite3.connect(path, isolation_level=None)) as other:

            async def write() -> None:
                other.execute("BEGIN IMMEDIATE")
                other.execute("INSERT INTO orders VALUES (1)")
                await trio.sleep(0.2)
                other.execute("COMMIT")

            def publish_meanwhile() -> str:
                with closing(sqlite3.connect(path, isolation_level=None)) as db:
                    db.execute("BEGIN")
                    task = publish(db, JOB(Job(1)))
                    db.execute("COMMIT")
                return task.id

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                await trio.testing.wait_all_tasks_blocked(0.0)
                await dispatcher.publisher.wait(await trio.to_thread.run_sync(publish_meanwhile))
            db.execute("BEGIN")
            db.execute("SELECT count(*) FROM orders").fetchall()
            other.execute("INSERT INTO orders VALUES (2)")
            with pytest.raises(StorageError, match="it with BEGIN IMMEDIATE"):
                publish(db, JOB(Job(1)))
            db.execute("ROLLBACK")


async def test_a_link_to_the_file_is_the_file(path: Path, tmp_path: Path) -> None:
    async with publishing(path) as (dispatcher, _, __):
        link = tmp_path / "link.db"
        link.symlink_to(path)
        with closing(sqlite3.connect(link, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            task = dispatcher.publisher.publish_in(db, JOB(Job(1)))
            db.execute("COMMIT")
        assert (await dispatcher.publisher.wait(task)).status is TaskStatus.SUCCEEDED


# ---- group commit ---------------------------------------------------------------


@contextmanager
def counted(storage: SqliteStorage) -> Iterator[list[int]]:
    """Notes each transaction that is committed."""
    commits: list[int] = []
    real = storage._ledger.commit

    def commit() -> None:
        real()
        commits.append(1)

    storage._ledger.commit = commit  # type: ignore[method-assign]
    yield commits
    storage._ledger.commit = real  # type: ignore[method-assign]


async def gathered(storage: SqliteStorage, count: int) -> None:
    """Wait until one transaction is under way and so many steps wait for the next."""
    while not (storage._writer._writing and len(storage._writer._waiting) == count):  # noqa: ASYNC110 - it tells nobody
        await trio.sleep(0.001)


async def test_a_hundred_publishes_at_once_share_two_transactions(path: Path) -> None:
    async with stored(path) as storage:
        with counted(storage) as commits:
            async with trio.open_nursery() as nursery:
                for n in range(100):
                    nursery.start_soon(storage.enqueue, [new(f"t{n:02}")])
        assert len(commits) == 2
        assert len(ids(path)) == 100


async def test_a_step_that_fails_undoes_itself_and_nothing_else(path: Path) -> None:
    def half(ledger: Any) -> None:
        ledger.tasks.enqueue([new("half")], ledger.now, bounded=False, by=None)
        raise ValueError("half done")

    async with stored(path) as storage:
        raised: list[str] = []

        async def bad() -> None:
            with pytest.raises(ValueError, match="half done"):
                await storage._write(half)
            raised.append("bad")

        with locked(path) as lock, counted(storage) as commits:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(storage.enqueue, [new("a")])
                await gathered(storage, 0)
                for step in (partial(storage.enqueue, [new("b")]), bad, partial(storage.enqueue, [new("c")])):
                    nursery.start_soon(step)
                await gathered(storage, 3)
                lock.execute("ROLLBACK")
        assert ids(path) == ["a", "b", "c"]
        assert (raised, len(commits)) == (["bad"], 2)
        await bad()  # alone, too
        assert ids(path) == ["a", "b", "c"]


async def test_a_step_cancelled_while_it_waits_has_done_nothing_and_one_under_way_all(path: Path) -> None:
    async with stored(path) as storage:
        with locked(path) as lock:
            async with trio.open_nursery() as nursery:
                scopes: list[trio.CancelScope] = []

                async def step(name: str) -> None:
                    with trio.CancelScope() as scope:
                        scopes.append(scope)
                        await storage.enqueue([new(name)])

                nursery.start_soon(step, "taken")
                await gathered(storage, 0)
                for name in ("waits", "stays"):
                    nursery.start_soon(step, name)
                    await gathered(storage, len(scopes))
                scopes[0].cancel()
                scopes[1].cancel()
                await trio.testing.wait_all_tasks_blocked()
                assert len(storage._writer._waiting) == 1
                lock.execute("ROLLBACK")
        assert [scope.cancelled_caught for scope in scopes] == [False, True, False]
        assert ids(path) == ["stays", "taken"]


@pytest.fixture
def searching(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Counting takes until this event is set, for as long as a test has patience."""
    counted, release = sqlite_query.count, threading.Event()

    def count(*arguments: Any, **options: Any) -> Any:
        release.wait(PATIENCE_S)
        return counted(*arguments, **options)

    monkeypatch.setattr(sqlite_query, "count", count)
    yield release
    release.set()


async def test_what_the_engine_looks_at_waits_for_no_search(path: Path, searching: threading.Event) -> None:
    async with stored(path) as storage, trio.open_nursery() as nursery:
        nursery.start_soon(storage.count, All())
        await storage.enqueue([new("a")])
        await storage.claim([Want(queue="q", limit=1)], worker="dead", lease=0.01)
        await trio.sleep(0.02)
        with trio.fail_after(5):
            assert [record.name for record in await storage.queues()] == ["q"]
            assert await storage.workers() == []
            assert await storage.crons() == []
            assert [record.id for record in (await storage.rescue()).records] == ["a"]
        searching.set()


@pytest.mark.battery
async def test_a_search_ends_no_lease_of_its_process(path: Path, searching: threading.Event) -> None:
    release = trio.Event()

    async def handler(task: QueueTask[Job]) -> None:
        await release.wait()

    async with (
        stored(path) as ours,
        SqliteStorage(path) as theirs,
        open_dispatcher(ours, lease=2.0) as dispatcher,
        trio.open_nursery() as nursery,
    ):
        dispatcher.consumer.register_queue("q")
        dispatcher.consumer.register_handler(JOB, handler)
        task = await dispatcher.publisher.publish(JOB(Job(1)))
        nursery.start_soon(ours.count, All())
        try:
            for _ in range(35):
                await trio.sleep(0.1)
                assert (await theirs.rescue()).records == []
        finally:
            searching.set()
            release.set()
        assert (await dispatcher.publisher.wait(task)).status is TaskStatus.SUCCEEDED


async def test_closing_waits_for_every_write_that_was_begun(path: Path) -> None:
    async with trio.open_nursery() as nursery:
        with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as lock:
            async with stored(path) as storage:
                lock.execute("BEGIN IMMEDIATE")
                for n in range(3):
                    nursery.start_soon(storage.enqueue, [new(f"t{n}")])
                    await gathered(storage, n)

                async def unlock() -> None:
                    while not storage._writer._closed:  # noqa: ASYNC110 - it tells nobody
                        await trio.sleep(0.001)
                    with pytest.raises(ClosedError, match="this storage is closed"):
                        await storage.enqueue([new("late")])
                    lock.execute("ROLLBACK")

                nursery.start_soon(unlock)
            with pytest.raises(ClosedError, match="it is closed"):
                await storage.enqueue([new("later")])
    assert ids(path) == ["t0", "t1", "t2"]


# ---- trouble --------------------------------------------------------------------


def test_a_file_that_is_held_for_itself_alone_is_waited_for_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_schema, "BUSY_TIMEOUT_S", 0.2)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE orders (n)")
        other.execute("BEGIN EXCLUSIVE")  # on a file without a log yet
        attempts = Counted(path)
        with closing(attempts.db), pytest.raises(sqlite3.OperationalError, match="locked"):
            sqlite_schema._write_ahead(attempts)  # type: ignore[arg-type]
        assert attempts.made <= 3  # each waits for the lock itself


class Counted:
    """A connection that waits 0.2 s for a lock at each attempt, and counts them."""

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path, timeout=0.2, isolation_level=None)
        self.made = 0

    def execute(self, statement: str) -> sqlite3.Cursor:
        self.made += 1
        time.sleep(0.2)  # where SQLite does not, as for a change of the journal's mode
        return self.db.execute(statement)


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced", "without its log"])
async def test_a_file_that_others_cannot_see_any_more_is_not_written_to(path: Path, how: str) -> None:
    async with stored(path) as storage:
        await storage.enqueue([new("a")])
        elsewhere = path.with_name("elsewhere.db")
        if how == "without its log":  # as another process does it that thinks it is the last
            os.unlink(f"{path}-wal")
        elif how == "deleted":
            path.unlink()
        else:
            path.rename(elsewhere)
        if how == "replaced":
            shutil.copy(elsewhere, path)
        with pytest.raises(StorageError, match="was deleted, moved or replaced while it is open here"):
            await storage.enqueue([new("b")])
        if how == "moved":
            elsewhere.rename(path)
            await storage.enqueue([new("c")])
    if how == "moved":
        assert ids(path) == ["a", "c"]


async def test_a_sweep_that_waited_for_the_lock_lets_the_living_go_first(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "LONG_WAIT_S", 0.1)
    async with stored(path) as storage, stored(path) as living:
        await storage.enqueue([new("a")])
        [claim] = (await living.claim([Want(queue="q", limit=1)], worker="w", lease=0.05)).claims
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await trio.sleep(0.1)
            async with trio.open_nursery() as nursery:

                async def sweep() -> None:
                    assert (await storage.rescue()).records == []

                nursery.start_soon(sweep)
                await trio.sleep(0.2)
                other.execute("COMMIT")
            [answer] = await living.renew([(claim.id, claim.epoch)], lease=0.05)
            assert answer.held
        await trio.sleep(0.1)
        assert [record.id for record in (await storage.rescue()).records] == ["a"]


async def test_a_relative_path_stays_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with SqliteStorage("jobs.db") as storage:
        await storage.declare([QueueRecord(name="q")])
        (tmp_path / "sub").mkdir()
        monkeypatch.chdir(tmp_path / "sub")
        with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            storage.enqueue_in(db, [new("a")])
            db.execute("COMMIT")
        await storage.enqueue([new("b")])
    assert ids(tmp_path / "jobs.db") == ["a", "b"]


async def test_a_full_disk_refuses_what_does_not_fit_and_works_again_with_room(path: Path) -> None:
    async with stored(path) as storage:
        await storage.enqueue([new("a")])
        db = storage._ledger.db
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")
        large = new("large", payload=b"x" * 100_000)
        with pytest.raises(StorageError) as caught:
            await storage.enqueue([new("b"), large])
        assert caught.value.detail == f"{path}: database or disk is full"
        assert not db.in_transaction
        outcomes: list[str] = []
        told: set[str] = set()

        async def one(task: NewTask) -> None:
            try:
                await storage.enqueue([task])
            except StorageError as exc:
                told.add(exc.detail)
                outcomes.append(task.id)

        async with trio.open_nursery() as nursery:  # in one batch with others, who are refused or stored
            for n in range(5):
                nursery.start_soon(one, new(f"t{n}"))
            nursery.start_soon(one, large)
        assert "large" in outcomes
        assert told == {f"{path}: database or disk is full"}
        assert ids(path) == sorted({"a", *(f"t{n}" for n in range(5))} - set(outcomes))
        db.execute(f"PRAGMA max_page_count = {2**30}")
        await storage.enqueue([large])
        assert "large" in ids(path)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_an_error_of_a_disk_with_little_room_says_how_little(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stored(path) as storage:
        db = storage._ledger.db
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")
        monkeypatch.setattr(sqlite_schema, "SCARCE", shutil.disk_usage(path.parent).total)  # this one's room will do
        with pytest.raises(StorageError, match=r"jobs\.db: database or disk is full; its disk has \d+ kB left: make room$"):
            await storage.enqueue([new("large", payload=b"x" * 100_000)])
        db.execute("DROP TABLE dispatch_tasks")
        with pytest.raises(StorageError, match=r"no such table: dispatch_tasks$"):
            await storage.enqueue([new("a")])


HINT = (
    "database is locked; somebody held the write lock for 5 s. A transaction of your own on this file, "
    "open in this process, must end before you await a write of the dispatcher"
)


async def test_a_lock_held_too_long_is_an_error_that_says_what_may_be_wrong(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_schema, "BUSY_TIMEOUT_S", 0.1)
    async with stored(path) as storage:
        with locked(path):
            with pytest.raises(StorageError) as caught:
                await storage.enqueue([new("a")])
            assert caught.value.detail == f"{path}: {HINT}"
            assert (await storage.find(All())).records == []  # looking needs no lock
        await storage.enqueue([new("a")])


def test_a_lock_is_waited_for_as_long_as_the_message_says() -> None:
    assert sqlite_schema.BUSY_TIMEOUT_S == 5.0


async def test_a_worker_waits_a_held_lock_out_and_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_schema, "BUSY_TIMEOUT_S", 0.05)
    ran: list[str] = []
    started, release = trio.Event(), trio.Event()

    async def slow(task: QueueTask[Job]) -> None:
        ran.append(task.id)
        started.set()
        await release.wait()

    with trio.fail_after(PATIENCE_S):
        async with open_dispatcher(f"sqlite:///{path}") as dispatcher:
            dispatcher.consumer.register_queue("q", TaskQueueConfig())
            dispatcher.consumer.register_handler(JOB, slow)
            task = await dispatcher.publisher.publish(JOB(Job(1)))
            await started.wait()
            with locked(path):
                release.set()
                await trio.sleep(0.5)
                with pytest.raises(StorageError, match="database is locked"):
                    await dispatcher.publisher.publish(JOB(Job(2)))
            ended = await dispatcher.publisher.wait(task)
    assert (ended.status, ran) == (TaskStatus.SUCCEEDED, [task.id])


class NoThreads:
    """While `left` is above 0, the system starts no thread, as at a limit of processes or memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        self._start = trio.lowlevel.start_thread_soon
        for name in ("trio.lowlevel.start_thread_soon", "trio._threads.start_thread_soon"):
            monkeypatch.setattr(name, self)

    def __call__(self, *arguments: Any) -> None:
        if self.left:
            self.left -= 1
            raise RuntimeError("can't start new thread")
        self._start(*arguments)


async def test_where_no_thread_could_be_started_nothing_was_done(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = NoThreads(monkeypatch)
    refused: list[str] = []

    async def publish(id_: str) -> None:
        with pytest.raises(StorageError) as caught:
            await storage.enqueue([new(id_)])
        refused.append(caught.value.detail)

    async with stored(path) as storage:
        threads.left = 1
        with pytest.raises(StorageError, match=r"no thread could be started: can't start new thread$"):
            await storage.find(All())
        threads.left = 2
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, "a")
            nursery.start_soon(publish, "b")
        assert refused == ["no thread could be started: can't start new thread"] * 2
        await storage.enqueue([new("c")])
        assert [record.id for record in (await storage.find(All())).records] == ["c"]
        threads.left = 1
    assert threads.left == 0
    assert not Path(f"{path}-wal").exists(), "it was closed all the same"
    assert ids(path) == ["c"]


async def test_a_worker_waits_out_a_moment_without_a_free_thread(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = NoThreads(monkeypatch)
    ran: list[int] = []
    all_ran = trio.Event()

    async def note(task: QueueTask[Job]) -> None:
        await trio.lowlevel.checkpoint()
        ran.append(task.payload.n)
        if len(ran) == 3:
            threads.left = 3
        if len(ran) == 9:
            all_ran.set()

    with trio.fail_after(PATIENCE_S):
        async with open_dispatcher(f"sqlite:///{path}", observers=()) as dispatcher:
            dispatcher.consumer.register_queue("q", TaskQueueConfig(concurrency=1))
            dispatcher.consumer.register_handler(JOB, note)
            await dispatcher.publisher.publish_many([JOB(Job(n)) for n in range(9)])
            await all_ran.wait()
            await dispatcher.drain()
            assert await dispatcher.control.count(by=("status",)) == {("succeeded",): 9}
    assert (sorted(ran), threads.left) == (list(range(9)), 0)


async def test_who_waits_when_its_dispatcher_ends_is_told_though_the_file_is_closed(path: Path) -> None:
    told: list[ClosedError] = []

    async def wait(dispatcher: Dispatcher, task: QueueTask[Job]) -> None:
        with pytest.raises(ClosedError) as caught:
            await dispatcher.publisher.wait(task)
        told.append(caught.value)

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery, open_dispatcher(f"sqlite:///{path}", observers=()) as dispatcher:
            dispatcher.consumer.register_queue("q", TaskQueueConfig())
            task = await dispatcher.publisher.publish(JOB(Job(1), delay=60.0))
            nursery.start_soon(wait, dispatcher, task)
            await trio.testing.wait_all_tasks_blocked()
        await wait(dispatcher, task)
    assert len(told) == 2


# ---- cost -----------------------------------------------------------------------

MANY = 20_000
"""Enough to tell a cost that grows from one that does not; the battery of backlogs takes more."""
ROW = (
    "INSERT INTO dispatch_tasks (id, queue, type, version, lane, place, priority, available_at, status,"
    " created_at, key, tags, payload) WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT {count})"
    " SELECT '{kind}' || n, 'q', '{type}', 1, {lane}, {place}, n % 4, {due}, '{status}', 1.0, {key}, {tags}, '{{}}'"
    " FROM n"
)


class Bench:
    """Statements on a file's tables, and what they cost in steps of SQLite's own machine."""

    def __init__(self, path: Path) -> None:
        self.db = sqlite_schema.connect(path, synchronous="normal")
        sqlite_schema.create_or_migrate(self.db, path)
        self.tasks = sqlite_tasks.SqliteTasks(self.db)
        self.now = 1_000_000.0
        self.db.execute("BEGIN IMMEDIATE")
        self.tasks.begin()
        self.registry = sqlite.SqliteRegistry(self.tasks)
        self.registry.declare([QueueRecord(name="q", keyed=True)], self.now)
        self.lanes = {
            (type_, tagged): self.tasks.lane("q", type_, 1, tagged)
            for type_, tagged in (("job", False), ("unhandled", False), ("job", True))
        }

    def fill(self, kind: str, count: int, type_: str = "job", *, tags: str = "NULL", **fields: object) -> None:
        given = {"place": 1, "due": 1.0, "status": "pending", "key": "NULL", **fields}
        lane = self.lanes[type_, tags != "NULL"]
        self.db.execute(ROW.format(kind=kind, count=count, type=type_, lane=lane, tags=tags, **given))

    def steps(self, action: Callable[[], Any]) -> int:
        """Within three."""
        count = 0

        def step() -> int:
            nonlocal count
            count += 1
            return 0

        self.db.set_progress_handler(step, 3)
        action()
        self.db.set_progress_handler(None, 0)
        return count * 3

    def claim(self, **want: Any) -> int:
        """The steps of claiming one task of a type that is handled here."""
        wanted = Want(**{"queue": "q", "limit": 1, "types": {"job": 1}, **want})
        claimed: list[Any] = []
        steps = self.steps(
            lambda: claimed.append(self.tasks.claim([wanted], worker="w", lease=9.0, now=self.now))
        )
        assert len(claimed[0].claims) == 1
        return steps


@pytest.fixture
def bench(path: Path) -> Iterator[Bench]:
    made = Bench(path)
    made.fill("runnable", 50, due=5.0)
    made.fill("tagged", 50, due=5.0, tags="""'["ours"]'""")
    yield made
    made.db.execute("ROLLBACK")
    made.db.close()


STUCK: dict[str, dict[str, Any]] = {
    "not due": {"due": "2000000.0 + n"},
    "held": {"place": 0, "status": "held"},
    "of an unhandled type": {"type_": "unhandled"},
    "behind another of its key": {"place": 2, "key": "'one'"},
    "ended": {"place": 0, "status": "succeeded"},
}


@pytest.mark.parametrize("kind", STUCK)
def test_many_tasks_that_cannot_run_cost_a_claim_nothing(kind: str, bench: Bench) -> None:
    alone = bench.claim()
    bench.fill("stuck", MANY, **STUCK[kind])
    assert bench.claim() <= 1.5 * alone
    assert bench.claim(tags=frozenset({"ours"})) <= 2 * alone + 300


def test_many_ended_tasks_of_a_unique_key_cost_a_publish_nothing(bench: Bench) -> None:
    def publish(id_: str, **fields: Any) -> int:
        results: list[Any] = []
        task = NewTask(id=id_, queue="q", type="job", payload=b"{}", unique=unique(**fields))
        steps = bench.steps(lambda: results.append(bench.tasks.store(task, bench.now)))
        assert results[0].answer is EnqueueAnswer.CREATED
        return steps

    every = frozenset(TaskStatus)
    alone, throttled = publish("first"), publish("second", key="rare", statuses=every, within=60.0)
    for key in ("u", "rare"):
        bench.fill(key, MANY, place=0, status="succeeded")
        bench.db.execute("UPDATE dispatch_tasks SET unique_key = ? WHERE unique_key IS NULL AND id GLOB ?", (key, f"{key}[0-9]*"))
    bench.db.execute("UPDATE dispatch_tasks SET status = 'succeeded' WHERE id = 'first'")
    assert publish("third") <= 1.5 * alone
    bench.now += 3_600
    assert publish("fourth", key="rare", statuses=every, within=60.0) <= 1.5 * throttled


@pytest.mark.parametrize("kind", [kind for kind in STUCK if "key" not in STUCK[kind]])  # a line is as long as it is
def test_many_tasks_that_are_not_due_cost_a_bounded_publish_nothing(kind: str, bench: Bench) -> None:
    bench.registry.declare([QueueRecord(name="q", keyed=True, max_waiting=1_000)], bench.now)

    def publish(id_: str) -> int:
        task = NewTask(id=id_, queue="q", type="job", payload=b"{}")
        return bench.steps(lambda: bench.tasks.store(task, bench.now, bounded=True))

    alone = publish("first")
    stuck = dict(STUCK[kind])
    stuck.setdefault("due", "2000000.0 + n")
    bench.fill("stuck", MANY, **stuck)
    assert publish("second") <= 2 * alone + 300


def test_many_tasks_that_can_run_cost_a_claim_nothing(bench: Bench) -> None:
    alone = bench.claim()
    bench.fill("more", MANY, due="6.0 + n * 1e-3")
    assert bench.claim() <= 1.5 * alone


def test_many_tasks_of_tags_that_no_worker_here_has_cost_a_claim_little(bench: Bench) -> None:
    alone = bench.claim(tags=frozenset({"ours"}))
    bench.fill("theirs", MANY, tags="""'["theirs' || (n % 10) || '"]'""")
    assert bench.claim(tags=frozenset({"ours"})) <= 5 * alone


def test_settling_and_letting_the_next_of_a_key_forward_costs_the_same_with_many_behind(bench: Bench) -> None:
    def one_life(id_: str, key: str) -> int:
        bench.tasks.enqueue([new(id_, key=key), new(f"{id_}2", key=key)], 1.0, bounded=False, by=None)
        want = Want(queue="q", limit=1, ids=frozenset({id_}))
        bench.tasks.claim([want], worker="w", lease=9.0, now=bench.now)
        done = sqlite_tasks.Transition(id_, 1, sqlite_tasks.TransitionKind.DONE)
        return bench.steps(lambda: bench.tasks.settle([done], bench.now))

    alone = one_life("a", "a")
    bench.fill("stuck", MANY, place=2, key="'one'")
    bench.fill("ended", MANY, place=0, key="'a'", status="succeeded")
    assert one_life("b", "one") <= 1.5 * alone
    assert one_life("c", "a") <= 1.5 * alone


def plan(db: sqlite3.Connection, condition: str, values: list[Any]) -> str:
    sql = f"EXPLAIN QUERY PLAN SELECT 1 FROM dispatch_tasks WHERE {condition} LIMIT 1"  # noqa: S608 - made here
    return "\n".join(row[3] for row in db.execute(sql, values))


DRAINED = AnyOf(
    All(Queues("q"), Types("job"), Statuses("pending")), All(Queues("q"), Statuses("running"))
)


@pytest.mark.parametrize(
    ("where", "bound"),
    [(DRAINED, 1), (All(Queues("q"), Statuses("pending")), 50), (All(Queues("q"), Statuses("due")), 50)],
)
def test_a_bounded_count_goes_by_an_index_past_what_has_ended(where: Any, bound: int, bench: Bench) -> None:
    sql, values = sqlite_query.condition(where, bench.now)
    found = plan(bench.db, sql, values)
    assert "USING INDEX dispatch_status (queue=? AND status=?)" in found or (
        "USING COVERING INDEX dispatch_status (queue=? AND status=?)" in found
    )
    assert "SCAN" not in found

    def count() -> None:
        assert sqlite_query.count(bench.db, where, bench.now, by=(), bound=bound) == {(): bound}

    before = bench.steps(count)
    bench.fill("ended", MANY, place=0, status="succeeded")
    assert bench.steps(count) <= before + 10


@pytest.mark.parametrize("where", [Queues("q"), Types("job"), All()])
@pytest.mark.parametrize("action", ["hold", "resume", "cancel", "patch"])
def test_a_change_by_hand_goes_past_what_has_ended(where: Any, action: Any, bench: Bench) -> None:
    bench.db.execute("UPDATE dispatch_tasks SET status = 'held', place = 0 WHERE id LIKE 'tagged%'")

    def alter() -> None:
        # A dry run, so that the second time there is as much to do as the first.
        change = Change(action=action, priority=3)
        assert sqlite_repair.alter(bench.tasks, where, change, bench.now, limit=None, dry_run=True)

    before = bench.steps(alter)
    bench.fill("ended", MANY, place=0, status="succeeded")
    assert bench.steps(alter) <= before + 50


@pytest.mark.parametrize("statuses", [("failed",), ("pending", "running"), ("held",)])
def test_a_page_of_a_status_goes_past_what_has_ended(statuses: tuple[str, ...], bench: Bench) -> None:
    where = All(Queues("q"), Statuses(*statuses))
    order = sqlite_query.Order.NEWEST

    def page() -> None:
        sqlite_query.find(bench.db, where, bench.now, order=order, limit=10, after=None)

    before = bench.steps(page)
    bench.fill("ended", MANY, place=0, status="succeeded")
    assert bench.steps(page) <= before + 50


STRUCK = """
import signal, sys, trio
from dispatch.records import NewTask
from dispatch.storage.protocol import QueueRecord
from dispatch.storage.sqlite import SqliteStorage

start, armed = trio.lowlevel.start_thread_soon, []

def struck(*args, **options):
    start(*args, **options)
    if armed:
        armed.clear()
        signal.raise_signal(signal.SIGINT)

trio.lowlevel.start_thread_soon = struck

async def main():
    async with SqliteStorage(sys.argv[1]) as storage:
        await storage.declare([QueueRecord(name="q")])
        armed.append(True)
        await storage.enqueue([NewTask(id="one", queue="q", type="job", payload=b"{}")])
        await trio.sleep(10)

try:
    trio.run(main)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_ctrl_c_never_leaves_a_transaction_at_work(path: Path) -> None:
    command = [sys.executable, "-c", STRUCK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)  # noqa: S603 - our own text
    assert (done.stdout, done.stderr) == ("interrupted\n", "")
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT id FROM dispatch_tasks").fetchall() == [("one",)]


async def test_cron_entries_that_are_as_they_were_are_the_same_objects(path: Path) -> None:
    async with stored(path) as storage, stored(path) as other:
        for name in ("changed", "left"):
            await storage.put_cron(CronRecord(name=name, definition="d", template=new("")))
        before = await storage.crons()
        await other.alter_cron("changed", paused_reason="holidays")
        after = await storage.crons()
        assert [one is now for one, now in zip(before, after, strict=True)] == [False, True]
        assert after[0].paused_reason == "holidays"


async def test_what_waits_in_a_bounded_queue_is_counted_once_a_batch_and_not_by_every_publish(path: Path) -> None:
    counted = 0

    def see(statement: str) -> None:
        nonlocal counted
        counted += statement.startswith("SELECT count(*) FROM (SELECT 1 FROM dispatch_lanes")

    async def answers(first: int, count: int) -> Counter[EnqueueAnswer]:
        tasks = [new(f"t{number}") for number in range(first, first + count)]
        return Counter(result.answer for result in await storage.enqueue(tasks, bounded=True))

    async with SqliteStorage(path, inline=True) as storage:
        storage._ledger.db.set_trace_callback(see)
        await storage.declare([QueueRecord(name="q", max_waiting=2_000)])
        assert await answers(0, 1_000) == {EnqueueAnswer.CREATED: 1_000}
        assert counted == 1
        for number in range(1_000, 1_100):
            assert await answers(number, 1) == {EnqueueAnswer.CREATED: 1}
        assert counted <= 1 + 100 // (900 // 64)
        counted = 0
        assert await answers(1_100, 1_000) == {EnqueueAnswer.CREATED: 900, EnqueueAnswer.FULL: 100}
        assert await answers(2_100, 1_000) == {EnqueueAnswer.FULL: 1_000}
        assert counted == 2


async def test_of_a_task_that_snoozes_for_ever_the_last_runs_are_kept(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_places, "HISTORY_LIMIT", 3)
    async with SqliteStorage(path, inline=True) as storage:
        bench = Workbench(storage, trio.sleep)
        await bench.publish("other", "t")
        await bench.fail((await bench.claim())[0], None)
        for _ in range(6):
            [claim] = await bench.claim()
            await bench.settle(claim, TransitionKind.SNOOZED, retry_in=0.0)
        assert [run.epoch for run in await storage.history("t")] == [4, 5, 6]
        assert [run.epoch for run in await storage.history("other")] == [1]
