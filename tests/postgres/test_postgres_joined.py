"""A handler that ends its run inside its own transaction, and publishing on an asynchronous connection."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
import trio
from attrs import frozen
from psycopg.rows import dict_row

from dispatch import (
    ClaimLostError,
    EventKind,
    InvalidConfigError,
    InvalidQueuePayloadError,
    MemoryStorage,
    QueueTask,
    Run,
    TaskEvent,
    TaskQueueConfig,
    TaskStatus,
    TaskType,
    open_dispatcher,
)
from dispatch.storage.protocol import Change, EnqueueAnswer
from dispatch.storage.psycopg_trio import TrioConnection
from dispatch.storage.query import All, Ids

from .stage import Stage

PATIENCE_S = 20.0


@frozen
class Job:
    n: int = 0


JOB = TaskType("q", "job", Job, result=int)
CHILD = TaskType("q", "child", Job)
CONFIG = TaskQueueConfig(max_retry=2, retry_delay=0.0)


@pytest.fixture(scope="module")
def stage(stage: Stage) -> Stage:
    stage.execute("CREATE TABLE effects (task text, attempt int)")
    return stage


@pytest.fixture(autouse=True)
def _cleared(stage: Stage) -> None:
    stage.clear()
    stage.execute("DELETE FROM effects")


def effect(connection: psycopg.Connection[Any], task: QueueTask[Job]) -> None:
    connection.execute("INSERT INTO effects VALUES (%s, %s)", (task.id, task.attempt))


async def test_an_effect_the_outcome_and_what_was_published_commit_together(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    children: list[str] = []

    def work(task: QueueTask[Job], run: Run) -> int:
        trio.from_thread.run(run.publish, CHILD(Job(1), id=f"child{task.attempt}"))
        with psycopg.connect(stage.dsn) as connection:
            effect(connection, task)
            run.complete_in(connection, 7)
            if task.attempt == 1:
                raise ValueError("rolls it all back")
        # Committed: nothing that happens from here on makes it run again.
        raise ValueError("too late to fail")

    async def child(task: QueueTask[Job]) -> None:
        children.append(task.id)

    kinds: list[EventKind] = []

    def seen(event: TaskEvent) -> None:
        if event.task_id == "a":
            kinds.append(event.kind)

    async with stage.storage() as storage, open_dispatcher(storage, observers=[seen]) as dispatcher:
        dispatcher.consumer.register_queue("q", CONFIG)
        task = await dispatcher.publisher.publish(JOB(Job(1), id="a"))
        dispatcher.consumer.register_handler(JOB, work)  # else it may start before its publisher is answered
        dispatcher.consumer.register_handler(CHILD, child)
        with trio.fail_after(PATIENCE_S):
            ended = await dispatcher.publisher.wait(task)
            await dispatcher.drain()
    assert (ended.status, ended.result, ended.attempt) == (TaskStatus.SUCCEEDED, 7, 2)
    assert stage.execute("SELECT task, attempt FROM effects") == [("a", 2)]
    assert children == ["child2"]
    started = EventKind.STARTED
    assert kinds == [EventKind.PUBLISHED, started, EventKind.RETRYING, started, EventKind.SUCCEEDED]
    assert dispatcher.consumer.statistics()["q"].succeeded == 2
    [said] = [record.getMessage() for record in caplog.records if "completed its run" in record.getMessage()]
    assert said.endswith("it stays succeeded: ValueError: too late to fail")


async def test_an_asynchronous_handler_ends_its_run_on_our_connection(stage: Stage) -> None:
    async def work(task: QueueTask[Job], run: Run) -> int:
        async with await TrioConnection.connect(stage.dsn, autocommit=True, row_factory=dict_row) as ours, ours.transaction():
            await ours.execute(b"INSERT INTO effects VALUES (%s, %s)", (task.id, task.attempt))
            await run.complete_in_async(ours, 5)
        return 5

    async with stage.storage() as storage, open_dispatcher(storage, observers=()) as dispatcher:
        dispatcher.consumer.register_queue("q", CONFIG)
        dispatcher.consumer.register_handler(JOB, work)
        async with await TrioConnection.connect(stage.dsn, autocommit=True, row_factory=dict_row) as connection:
            await dispatcher.publisher.declare()
            async with connection.transaction():
                task = await dispatcher.publisher.publish_in_async(connection, JOB(Job(1), id="a"))
                assert stage.execute("SELECT count(*) FROM @.tasks") == [(0,)]
            with pytest.raises(InvalidConfigError, match="no transaction is open"):
                await dispatcher.publisher.publish_in_async(connection, JOB(Job(1), id="b"))
        with trio.fail_after(PATIENCE_S):
            ended = await dispatcher.publisher.wait(task)
    # Counted though the run had ended by then.
    assert dispatcher.consumer.statistics()["q"].succeeded == 1
    assert (ended.status, ended.result, ended.attempt) == (TaskStatus.SUCCEEDED, 5, 1)
    assert stage.execute("SELECT task, attempt FROM effects") == [("a", 1)]


async def test_many_tasks_are_published_in_a_transaction_or_none(stage: Stage) -> None:
    batch = [CHILD(Job(n), id=f"c{n}") for n in range(1_500)]
    bad: QueueTask[Any, Any] = CHILD("no job")  # type: ignore[arg-type]
    async with stage.storage() as storage, open_dispatcher(storage, observers=()) as dispatcher:
        dispatcher.consumer.register_queue("q", CONFIG)
        await dispatcher.publisher.declare()
        publisher = dispatcher.publisher
        with psycopg.connect(stage.dsn) as connection:
            answers = publisher.publish_many_in(connection, [*batch[:3], bad])
            assert [each.task.id if each.task else each.error.code for each in answers if each.task or each.error] == [
                "c0", "c1", "c2", 1010,
            ]
            connection.rollback()
        assert stage.execute("SELECT count(*) FROM @.tasks") == [(0,)]
        with psycopg.connect(stage.dsn) as connection:
            answers = publisher.publish_many_in(connection, batch)
            assert publisher.publish_many_in(connection, []) == []
        assert {each.answer for each in answers} == {EnqueueAnswer.CREATED}
        assert stage.execute("SELECT count(*) FROM @.tasks") == [(1_500,)]
        async with await TrioConnection.connect(stage.dsn, autocommit=True) as ours, ours.transaction():
            again, new, strange = await publisher.publish_many_in_async(
                ours, [batch[7], CHILD(Job(1)), TaskType("none", "child", Job)(Job(1))]
            )
        assert (again.answer, new.answer, strange.answer) == (
            EnqueueAnswer.EXISTING, EnqueueAnswer.CREATED, EnqueueAnswer.UNKNOWN_QUEUE,
        )
        assert strange.error is not None
        assert stage.execute("SELECT count(*) FROM @.tasks") == [(1_501,)]


async def test_a_run_that_is_no_longer_ours_is_told_so_and_leaves_nothing(stage: Stage) -> None:
    told: list[str] = []
    heard = trio.Event()

    def work(task: QueueTask[Job], run: Run) -> int:
        if task.attempt == 1:
            # Somebody takes it away: as a sweep does, once a lease has run out.
            stage.execute("UPDATE @.tasks SET epoch = epoch + 1 WHERE id = 'a'")
            with psycopg.connect(stage.dsn) as connection:
                effect(connection, task)
                try:
                    run.complete_in(connection, 1)
                except ClaimLostError as exc:
                    told.append(exc.detail)
                    connection.rollback()
            trio.from_thread.run_sync(heard.set)
        return 2

    async with stage.storage() as storage, open_dispatcher(storage, observers=()) as dispatcher:
        dispatcher.consumer.register_queue("q", CONFIG)
        dispatcher.consumer.register_handler(JOB, work)
        task = await dispatcher.publisher.publish(JOB(Job(1), id="a"))
        with trio.fail_after(PATIENCE_S):
            await heard.wait()
        assert told == ["task a: attempt 1 is no longer ours; roll back"]
        assert stage.execute("SELECT count(*) FROM effects") == [(0,)]
        await storage.alter(Ids(task.id), Change(action="cancel", reason="enough"))


async def test_a_result_that_cannot_be_stored_is_told_before_anything_is_written(stage: Stage) -> None:
    told: list[str] = []

    def work(task: QueueTask[Job], run: Run) -> int:
        with psycopg.connect(stage.dsn) as connection:
            try:
                run.complete_in(connection, "seven")
            except InvalidQueuePayloadError as exc:
                told.append(exc.detail)
        return 7

    async with stage.storage() as storage, open_dispatcher(storage, observers=()) as dispatcher:
        dispatcher.consumer.register_queue("q", CONFIG)
        dispatcher.consumer.register_handler(JOB, work)
        task = await dispatcher.publisher.publish(JOB(Job(1)))
        with trio.fail_after(PATIENCE_S):
            assert (await dispatcher.publisher.wait(task)).result == 7
    assert len(told) == 1
    assert "result of q/job" in told[0]


async def test_other_storages_say_that_they_cannot() -> None:
    told: list[str] = []

    async def work(task: QueueTask[Job], run: Run) -> int:
        for attempt in (lambda: run.complete_in(object(), 1), lambda: run.complete_in_async(object(), 1)):
            try:
                found = attempt()
                if found is not None:
                    await found
            except InvalidConfigError as exc:
                told.append(exc.detail)
        return 1

    async with open_dispatcher(MemoryStorage(), observers=()) as dispatcher:
        dispatcher.consumer.register_queue("q", CONFIG)
        dispatcher.consumer.register_handler(JOB, work)
        task = await dispatcher.publisher.publish(JOB(Job(1)))
        assert (await dispatcher.publisher.wait(task)).result == 1
        with pytest.raises(InvalidConfigError, match="no asynchronous connections"):
            await dispatcher.publisher.publish_in_async(object(), JOB(Job(2)))
        assert sum((await dispatcher.control.count(All())).values()) == 1
    assert len(told) == 2
    assert all("cannot end a run inside a transaction of yours" in text for text in told)
