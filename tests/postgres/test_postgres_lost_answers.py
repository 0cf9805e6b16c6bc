"""An answer of the server that is lost: what was asked has happened, and nobody waits for the next poll."""

from __future__ import annotations

import psycopg
import pytest
import trio

from dispatch import (
    QueueTask,
    StorageError,
    TaskQueueConfig,
    TaskQueuePublisher,
    TaskStatus,
    Unique,
    open_dispatcher,
)
from dispatch.storage import postgres
from dispatch.storage.postgres import PostgresStorage
from dispatch.storage.postgres_schema import migrate
from tests.engine.work import ASK, Answer, Job

from .proxy import proxy

SOON_S = 10.0
"""Far from the 30 s of the poll."""


async def answers(task: QueueTask[Job, Answer]) -> Answer:
    await trio.lowlevel.checkpoint()
    return Answer(task.payload.n)


def statuses(dsn: str) -> list[tuple[str, int]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute("SELECT id, state FROM dispatch.tasks ORDER BY id").fetchall()


@pytest.mark.battery
async def test_a_publish_whose_answer_is_lost_is_in_doubt_and_runs_soon(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(database)
    async with (
        proxy(database) as between,
        PostgresStorage(between.dsn) as storage,
        PostgresStorage(database) as direct,
        open_dispatcher(direct, observers=()) as dispatcher,
    ):
        dispatcher.consumer.register_queue("q")
        dispatcher.consumer.register_handler(ASK, answers)
        await dispatcher.publisher.declare()
        publisher = TaskQueuePublisher(storage)
        await publisher.publish(ASK(Job(1), id="first"))
        await trio.sleep(0.2)  # others were told of it: all is at rest
        monkeypatch.setattr(postgres, "DEADLINE_S", 1.0)
        between.mute()
        with pytest.raises(StorageError) as caught:
            await publisher.publish(ASK(Job(2), id="second"))
        between.unmute()
        assert "no answer within 1 s; whether it was stored is in doubt" in caught.value.detail
        with trio.fail_after(SOON_S):
            assert await dispatcher.publisher.result(await dispatcher.control.get("second")) == Answer(2)


async def test_a_publish_whose_commit_is_not_answered_wakes_all_the_same(database: str) -> None:
    migrate(database)
    async with (
        proxy(database) as between,
        PostgresStorage(between.dsn) as storage,
        open_dispatcher(storage, observers=()) as dispatcher,
    ):
        dispatcher.consumer.register_queue("q")
        dispatcher.consumer.register_handler(ASK, answers)
        await dispatcher.publisher.publish(ASK(Job(1), unique=Unique(), id="first"))
        await dispatcher.drain()
        between.cut_at(b"COMMIT\0")
        with pytest.raises(StorageError):
            await dispatcher.publisher.publish(ASK(Job(2), unique=Unique(), id="second"))
        assert [id_ for id_, _ in statuses(database)] == ["first", "second"]
        with trio.fail_after(SOON_S):
            assert await dispatcher.publisher.result(await dispatcher.control.get("second")) == Answer(2)


@pytest.mark.parametrize("keyed", [False, True], ids=["by one statement", "in a transaction"])
async def test_who_awaits_a_result_is_woken_though_its_end_was_not_answered(database: str, keyed: bool) -> None:
    migrate(database)
    async with (
        proxy(database) as between,
        PostgresStorage(between.dsn) as storage,
        open_dispatcher(storage, observers=()) as dispatcher,
    ):

        async def handler(task: QueueTask[Job, Answer]) -> Answer:
            await trio.sleep(0.2)  # its end is awaited by now, and the next that is said of it is how it ended
            between.cut_at(task.id.encode())
            return Answer(task.payload.n)

        dispatcher.consumer.register_queue("q", TaskQueueConfig(keyed=keyed, max_retry=3))
        dispatcher.consumer.register_handler(ASK, handler)
        task = await dispatcher.publisher.publish(ASK(Job(1), key="k" if keyed else None))
        with trio.fail_after(SOON_S):
            assert await dispatcher.publisher.result(task) == Answer(1)
            await dispatcher.drain()
        found = await dispatcher.control.get(task)
        assert (found.status, found.attempt) == (TaskStatus.SUCCEEDED, 1)
