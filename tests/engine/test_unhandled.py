"""Tasks of a type that nobody handles are named in the log, once; those that somebody takes are not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from dispatch import (
    Dispatcher,
    MemoryStorage,
    QueueTask,
    RateLimit,
    Run,
    TaskQueueConfig,
    TaskQueueConsumer,
    TaskQueuePublisher,
    TaskStatus,
    TaskType,
    open_dispatcher,
    unhandled,
)
from dispatch.storage.query import Queues, Where
from dispatch.storage.sqlite import SqliteStorage
from dispatch.testing.faults import FaultyStorage

from .work import JOB, Job, nothing, working

TYPO = TaskType("q", "jbo", Job)
NEWER: TaskType[Job, None] = TaskType("q", "job", Job, version=7, upcasters={n: lambda old: old for n in range(1, 7)})
"""Of the same name as `JOB`, which a rollback brought back."""


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says of types without a handler."""
    return [each.getMessage() for each in caplog.records if each.name == "dispatch.unhandled"]


async def endless(task: object) -> None:
    await trio.sleep_forever()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unhandled, "PATIENCE_S", 0.2)
    monkeypatch.setattr(unhandled, "EVERY_S", 0.4)
    monkeypatch.setattr(unhandled, "BUSY_EVERY_S", 0.8)


async def named(caplog: pytest.LogCaptureFixture) -> str:
    """The first that the log says."""
    with trio.fail_after(10):
        while not said(caplog):  # noqa: ASYNC110 - the log has no event
            await trio.sleep(0.05)
    return said(caplog)[0]


async def test_a_type_without_handler_is_named_once(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(nothing) as dispatcher:
        task = await dispatcher.publisher.publish(TYPO(Job(1)))
        with trio.move_on_after(4.9):
            await dispatcher.publisher.result(task)
        assert said(caplog) == []
        await trio.sleep(0.2)
        assert said(caplog) == [
            f"queue q: the task type 'jbo' has no handler here, and nobody else has taken it: task {task.id} has been due "
            "for 5 s; handled here: 'job'. Register its handler with consumer.register_handler, correct the type where "
            "it is published, or look after the worker that is to take it"
        ]
        await dispatcher.publisher.publish_many([TYPO(Job(n)) for n in range(3)])
        await trio.sleep(3_600)
        assert len(said(caplog)) == 1
        await dispatcher.control.cancel(task)


async def test_a_version_that_the_handler_here_does_not_know_is_named_once(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(nothing) as dispatcher:
        task = await dispatcher.publisher.publish(NEWER(Job(1)))
        await trio.sleep(6)
        assert said(caplog) == [
            "queue q: tasks of the type 'job' wait that are of version 7; the handler here knows up to 1, and nobody else "
            f"has taken them: task {task.id} has been due for 5 s. Run a release that declares version 7, or look after the "
            "worker that is to take them"
        ]
        await dispatcher.publisher.publish(NEWER(Job(2)))
        await dispatcher.publisher.wait(await dispatcher.publisher.publish(JOB(Job(3))))
        await trio.sleep(600)
        assert len(said(caplog)) == 1
        await dispatcher.control.cancel(Queues("q"))


async def test_a_version_that_nobody_takes_is_named_though_earlier_ones_are_run(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(nothing) as dispatcher:
        newer = await dispatcher.publisher.publish(NEWER(Job(1)))
        for n in range(60):
            await dispatcher.publisher.publish(JOB(Job(n)))
            await trio.sleep(1)
        assert len(said(caplog)) == 1
        assert "tasks of the type 'job' wait that are of version 7" in said(caplog)[0]
        await dispatcher.control.cancel(newer)


async def test_a_handler_of_the_newer_version_is_registered_in_time(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with working() as dispatcher:
        await dispatcher.publisher.publish_many([NEWER(Job(1)), JOB(Job(2))])
        assert len(dispatcher._registry.unhandled) == 2
        dispatcher.consumer.register_handler(NEWER, nothing)
        assert dispatcher._registry.unhandled == {}
        await trio.sleep(600)
    assert said(caplog) == []


async def test_a_queue_whose_handlers_were_all_forgotten_is_named(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with working() as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(1)))
        await trio.sleep(6)
    [text] = said(caplog)
    assert "'job'" in text
    assert "handled here: none." in text


async def test_a_handler_that_is_registered_in_time_is_not_missed(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(nothing) as dispatcher:
        task = await dispatcher.publisher.publish(TYPO(Job(1)))
        await trio.sleep(3)
        dispatcher.consumer.register_handler(TYPO, nothing)
        await dispatcher.publisher.wait(task)
        await trio.sleep(3_600)
    assert said(caplog) == []


async def test_a_delayed_task_is_named_when_it_has_been_due(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(nothing) as dispatcher:
        await dispatcher.publisher.publish(TYPO(Job(1), delay=1_000))
        await trio.sleep(1_004)
        assert said(caplog) == []
        await trio.sleep(2)
        assert len(said(caplog)) == 1


async def test_each_type_has_been_due_for_5_s_when_it_is_named(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(nothing) as dispatcher:
        await dispatcher.publisher.publish(TYPO(Job(1)))
        await trio.sleep(3)
        await dispatcher.publisher.publish(TaskType("q", "bjo", Job)(Job(1)))
        await trio.sleep(2.5)
        assert len(said(caplog)) == 1
        assert "'jbo' has no handler here" in said(caplog)[0]
        await trio.sleep(60)
        assert len(said(caplog)) == 2
        assert "'bjo' has no handler here" in said(caplog)[1]
        await dispatcher.control.cancel(Queues("q"))


async def test_a_paused_queue_is_asked_once_it_goes_on(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(nothing) as dispatcher:
        await dispatcher.control.pause_queue("q")
        await dispatcher.publisher.publish(TYPO(Job(1)))
        await trio.sleep(600)
        assert said(caplog) == []
        await dispatcher.control.resume_queue("q")
        await trio.sleep(70)
        assert len(said(caplog)) == 1


async def test_what_is_cancelled_is_nobodys_concern_and_the_next_one_is(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(nothing) as dispatcher:
        for _ in range(2):
            task = await dispatcher.publisher.publish(TYPO(Job(1)))
            await trio.sleep(3)
            await dispatcher.control.cancel(task)
            await trio.sleep(60)
        assert said(caplog) == []
        await dispatcher.publisher.publish(TYPO(Job(1)))
        await trio.sleep(6)
        assert len(said(caplog)) == 1


async def test_a_storage_that_fails_is_asked_again(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    storage = FaultyStorage(MemoryStorage())
    async with open_dispatcher(storage) as dispatcher:
        dispatcher.consumer.register_queue("q")
        await dispatcher.publisher.publish(TYPO(Job(1)))
        storage.fail("find")
        await trio.sleep(10)
        assert said(caplog) == []
        await trio.sleep(61)
        assert len(said(caplog)) == 1


async def test_names_without_end_are_not_all_remembered(autojump_clock: object) -> None:
    async with working(nothing) as dispatcher:
        for n in range(1_200):
            await dispatcher.publisher.publish(TaskType("q", f"t{n}", Job)(Job(n), delay=900))
        assert len(dispatcher._registry.unhandled) == 1_000


async def by_cron(dispatcher: Dispatcher) -> None:
    await dispatcher.cron.add_with_name("* * * * *", "x", TYPO(Job()))


async def from_a_long_handler(dispatcher: Dispatcher) -> None:
    async def handler(task: QueueTask[Job], run: Run) -> None:
        await run.publish(TYPO(Job()))
        await trio.sleep(10)

    dispatcher.consumer.register_handler(JOB, handler)
    await dispatcher.publisher.publish(JOB(Job()))


async def behind_delayed_ones(dispatcher: Dispatcher) -> None:
    for _ in range(3):
        await dispatcher.publisher.publish(TYPO(Job(), delay=3_000))
    await dispatcher.publisher.publish_many([TYPO(Job())])


@pytest.mark.parametrize("way", [by_cron, from_a_long_handler, behind_delayed_ones])
async def test_it_is_named_however_it_was_published(
    way: Callable[[Dispatcher], Awaitable[None]], autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with working() as dispatcher:
        await way(dispatcher)
        await trio.sleep(80)
    assert len(said(caplog)) == 1


# ---- over a store that others use ---------------------------------------------


async def test_what_another_process_published_is_named_by_an_idle_worker(
    tmp_path: Path, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "jobs.db"
    async with SqliteStorage(file) as other, open_dispatcher(f"sqlite:///{file}") as dispatcher:
        dispatcher.consumer.register_queue("q")
        dispatcher.consumer.register_handler(JOB, nothing)
        await dispatcher.control.queues()
        await TaskQueuePublisher(other).publish(TYPO(Job(1)))
        await named(caplog)
        await trio.sleep(1)
    [text] = said(caplog)
    assert "and nobody else has taken it: tasks of it have been due for over 0.4 s; handled here: 'job'" in text


class Shared(MemoryStorage):
    """As if other processes used it, too, in virtual time."""

    durable = True


@pytest.mark.parametrize(("busy", "within_s"), [(False, 135.0), (True, 400.0)])
async def test_what_another_process_published_is_named_sooner_by_an_idle_worker(
    busy: bool, within_s: float, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Shared()
    async with working(endless, storage=storage, grace=0) as dispatcher:
        if busy:
            await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(1)
        await TaskQueuePublisher(storage).publish(TYPO(Job(1)))
        await trio.sleep(59)
        assert said(caplog) == []
        await trio.sleep(within_s - 60)
        assert len(said(caplog)) == 1
        assert "tasks of it have been due for over 60 s" in said(caplog)[0]
        await trio.sleep(1_000)
        assert len(said(caplog)) == 1


@pytest.mark.battery
async def test_nothing_is_said_where_another_worker_takes_it_or_nothing_is_handled_here(
    tmp_path: Path, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "jobs.db"
    async with (
        SqliteStorage(file) as other,
        open_dispatcher(f"sqlite:///{file}") as dispatcher,
        trio.open_nursery() as nursery,
    ):
        dispatcher.consumer.register_queue("q")
        await dispatcher.publisher.publish(TYPO(Job(1)))
        await trio.sleep(1.5)
        assert said(caplog) == []  # here tasks are only published

        consumer = TaskQueueConsumer(other)
        consumer.register_queue("q")
        consumer.register_handler(TYPO, nothing)
        await nursery.start(consumer.run)
        dispatcher.consumer.register_handler(JOB, nothing)
        for _ in range(10):
            await dispatcher.publisher.publish(TYPO(Job(1)))
            await trio.sleep(0.1)
        consumer.close()
    assert said(caplog) == []


@pytest.mark.battery
async def test_a_backlog_of_another_worker_is_no_mistake(
    tmp_path: Path, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    async def slow(task: QueueTask[Job]) -> None:
        await trio.sleep(0.5)

    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    async with open_dispatcher(url) as one, open_dispatcher(url) as other:
        for each in (one, other):
            each.consumer.register_queue("q", TaskQueueConfig(concurrency=1))
        one.consumer.register_handler(JOB, nothing)
        other.consumer.register_handler(TYPO, slow)
        for n in range(5):
            await one.publisher.publish(TYPO(Job(n)))
        await other.drain()
    assert said(caplog) == []


async def test_the_only_worker_that_takes_it_may_be_at_something_else(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async def slow(task: QueueTask[Job]) -> None:
        await trio.sleep(40)

    storage = MemoryStorage()
    async with open_dispatcher(storage) as one, open_dispatcher(storage) as other:
        for each in (one, other):
            each.consumer.register_queue("q", TaskQueueConfig(concurrency=1))
        one.consumer.register_handler(JOB, nothing)
        long = TaskType("q", "long", Job)
        other.consumer.register_handler(long, slow)
        other.consumer.register_handler(TYPO, nothing)
        await other.publisher.publish(long(Job()))
        await trio.sleep(1)
        await one.publisher.publish(TYPO(Job()))
        await other.drain()
        assert said(caplog) == []
        await one.publisher.publish(long(Job()))
        await one.publisher.publish(TaskType("q", "tpyo", Job)(Job()))
        await trio.sleep(130)
        assert len(said(caplog)) == 1


@pytest.mark.parametrize("between_s", [0, 150], ids=["at once", "long after the last start"])
async def test_a_type_that_a_rate_holds_back_is_not_named(
    between_s: float, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    storage = MemoryStorage()
    limited = TaskQueueConfig(rate_limit=RateLimit(1, 600.0))
    async with open_dispatcher(storage) as one, open_dispatcher(storage) as other:
        for each, type_ in ((one, JOB), (other, TYPO)):
            each.consumer.register_queue("q", limited)
            each.consumer.register_handler(type_, nothing)
        await one.publisher.publish(TYPO(Job(0)))
        await trio.sleep(between_s)
        task = await one.publisher.publish(TYPO(Job(1)))
        await trio.sleep(590 - between_s)
        assert (await one.control.get(task)).status is TaskStatus.PENDING
        await one.publisher.wait(task)
    assert said(caplog) == []


async def test_a_queue_that_runs_as_much_as_it_may_is_asked_when_it_has_room(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(endless, TaskQueueConfig(max_running=1)) as dispatcher:
        running = await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(1)
        await dispatcher.publisher.publish(TYPO(Job()))
        await trio.sleep(600)
        assert said(caplog) == []
        await dispatcher.control.cancel(running)
        await trio.sleep(70)
        assert len(said(caplog)) == 1


async def test_a_version_that_another_process_left_is_named_by_an_idle_worker(
    tmp_path: Path, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "jobs.db"
    async with SqliteStorage(file) as other, open_dispatcher(f"sqlite:///{file}") as dispatcher:
        dispatcher.consumer.register_queue("q")
        dispatcher.consumer.register_handler(JOB, nothing)
        await dispatcher.control.queues()
        await TaskQueuePublisher(other).publish(NEWER(Job(1)))
        text = await named(caplog)
        await trio.sleep(1)
    assert len(said(caplog)) == 1
    assert "are of version 7; the handler here knows up to 1, and nobody else has taken them: tasks of it have been" in text


@pytest.mark.battery
async def test_a_version_that_another_worker_takes_is_no_mistake(
    tmp_path: Path, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    async def slow(task: QueueTask[Job]) -> None:
        await trio.sleep(0.5)

    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    async with open_dispatcher(url) as old, open_dispatcher(url) as new:
        for each, type_ in ((old, JOB), (new, NEWER)):
            each.consumer.register_queue("q", TaskQueueConfig(concurrency=1))
            each.consumer.register_handler(type_, slow if each is new else nothing)
        for n in range(5):
            await new.publisher.publish(NEWER(Job(n)))
        await new.drain()
    assert said(caplog) == []


@pytest.mark.battery
@pytest.mark.parametrize("type_", [TYPO, NEWER])
async def test_a_queue_that_is_always_busy_is_looked_at_all_the_same(
    type_: TaskType[Job, None], tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(unhandled, "FIRST", 4)
    monkeypatch.setattr(unhandled, "AT_ONCE", 2)
    file = tmp_path / "jobs.db"
    async with SqliteStorage(file) as other, open_dispatcher(f"sqlite:///{file}", grace=0) as dispatcher:
        dispatcher.consumer.register_queue("q", TaskQueueConfig(concurrency=1))
        ask = TaskType("q", "ask", Job)
        dispatcher.consumer.register_handler(ask, endless)
        dispatcher.consumer.register_handler(JOB, nothing)
        await dispatcher.publisher.publish(ask(Job()))
        publisher = TaskQueuePublisher(other)
        for n in range(7):  # the first look meets these alone
            await publisher.publish(JOB(Job(n), delay=600))
        await publisher.publish(type_(Job()))
        text = await named(caplog)
    assert f"{type_.type!r}" in text
    assert "tasks of it have been due for over 0.4 s" in text


@pytest.mark.battery
async def test_of_a_busy_queue_no_more_than_the_first_tasks_are_read(
    tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(unhandled, "FIRST", 4)
    monkeypatch.setattr(unhandled, "AT_ONCE", 2)
    looks: list[str | None] = []

    class Watched(SqliteStorage):
        async def find(self, where: Where, **options: Any) -> Any:
            looks.append(options.get("after"))
            assert options["limit"] == 2
            return await super().find(where, **options)

    async with Watched(tmp_path / "jobs.db") as storage, open_dispatcher(storage, grace=0) as dispatcher:
        dispatcher.consumer.register_queue("q", TaskQueueConfig(concurrency=1))
        dispatcher.consumer.register_handler(JOB, endless)
        for n in range(12):
            await dispatcher.publisher.publish(JOB(Job(n)))
        with trio.fail_after(10):
            while len(looks) < 4:  # noqa: ASYNC110 - the storage has no event
                await trio.sleep(0.05)
    assert said(caplog) == []
    # A backlog of what is handled here is not walked through: each look begins with the oldest.
    assert [after is None for after in looks[:4]] == [True, False, True, False]


async def test_a_process_that_only_publishes_reads_nothing_back(
    tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SqliteStorage(tmp_path / "jobs.db") as storage, open_dispatcher(storage) as dispatcher:
        dispatcher.consumer.register_queue("q")
        monkeypatch.setattr(storage, "find", None)
        for n in range(10):
            await dispatcher.publisher.publish(TYPO(Job(n)))
            await trio.sleep(0.1)
    assert all(len(ids) <= 5 for ids in dispatcher._registry.unhandled.values())
