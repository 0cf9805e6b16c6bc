"""The end: grace, hand back, outside cancellation, crashes, and starting again."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from dispatch import (
    Clock,
    ClosedError,
    Dispatcher,
    MemoryStorage,
    QueueTask,
    ShutdownReport,
    StorageError,
    TaskEvent,
    TaskQueueConfig,
    TaskQueueConsumer,
    TaskQueuePublisher,
    TaskStatus,
    TaskType,
    open_dispatcher,
)
from dispatch.cron.dispatcher import CronTaskDispatcher
from dispatch.records import AttemptOutcome, NewTask
from dispatch.storage.protocol import QueueRecord, RenewAnswer, Want
from dispatch.storage.query import Ids
from dispatch.storage.sqlite import SqliteStorage
from dispatch.testing.faults import FaultyStorage
from dispatch.testing.proxy import StorageProxy

from .work import JOB, Job, Script, nothing, working

if TYPE_CHECKING:
    from trio.testing import MockClock


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def row(storage: MemoryStorage, task: QueueTask[Any, Any]) -> Any:
    return (await storage.find(Ids(task.id))).records[0]


async def test_running_handlers_may_finish_within_the_grace(autojump_clock: object) -> None:
    storage, done = MemoryStorage(), []

    async def handler(task: QueueTask[Job]) -> None:
        await trio.sleep(3)
        done.append(task.payload.n)

    async with working(handler, TaskQueueConfig(concurrency=2), storage=storage, grace=5.0) as dispatcher:
        for n in range(4):
            await dispatcher.publisher.publish(JOB(Job(n)))
        await trio.sleep(1)
    assert sorted(done) == [0, 1]
    assert dispatcher.report.interrupted == ()
    assert (await storage.count(Ids(), by=())) == {}
    assert storage.statistics().waiting == 2  # those not begun are untouched


async def test_at_the_end_of_the_grace_it_is_handed_back_with_its_attempt_and_reported(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    storage = MemoryStorage()
    async with working(Script(60.0), storage=storage, grace=5.0) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(1)
        began = trio.current_time()
    assert trio.current_time() - began == pytest.approx(5.0, abs=0.01)
    assert dispatcher.report.interrupted == (task.id,)
    assert f"shutdown: the grace of 5 s ended with 1 tasks running; handed back: {task.id}" in caplog.messages
    record = await row(storage, task)
    assert (record.status, record.attempt, record.epoch) == (TaskStatus.PENDING, 0, 1)
    handler = Script()
    async with working(handler, storage=storage) as second:
        await second.drain()
    assert [each.attempt for each in handler.seen] == [1]


@pytest.mark.parametrize("how", ["cancelled", "raised"])
async def test_left_by_a_cancellation_or_an_exception_it_ends_at_once(how: str, autojump_clock: object) -> None:
    storage = MemoryStorage()
    began = trio.current_time()
    with trio.CancelScope() as scope:
        try:
            async with working(Script(60.0), storage=storage, grace=50.0) as dispatcher:
                task = await dispatcher.publisher.publish(JOB(Job()))
                await trio.sleep(1)
                if how == "raised":
                    raise ZeroDivisionError
                scope.cancel()
                await trio.sleep_forever()
        except ZeroDivisionError:
            pass
    assert trio.current_time() - began == pytest.approx(1.0, abs=0.01)
    record = await row(storage, task)
    assert (record.status, record.attempt, record.lease_until) == (TaskStatus.PENDING, 0, None)


async def test_a_queue_that_says_fail_does_not_run_an_interrupted_task_again(autojump_clock: object) -> None:
    storage = MemoryStorage()
    config = TaskQueueConfig(max_retry=5, on_interrupt="fail")
    async with working(Script(60.0), config, storage=storage, grace=1.0) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(1)
    record = await row(storage, task)
    assert (record.status, record.failure_reason) == (TaskStatus.FAILED, "interrupted")


async def test_what_ended_after_its_lease_was_not_handed_back(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async def stubborn(task: QueueTask[Job]) -> None:
        for _ in range(9):
            with suppress(trio.Cancelled):
                await trio.sleep(60)
            with trio.CancelScope(shield=True):
                await trio.sleep(1)

    storage = MemoryStorage()
    async with working(stubborn, storage=storage, grace=0.5, lease=1.0) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(0.2)
    assert dispatcher.report == ShutdownReport(too_late=(task.id,))
    assert (await row(storage, task)).failure_reason == "exhausted"
    assert f"did not end before their leases did; that counts as a failed attempt: {task.id}" in caplog.text
    assert "handed back" not in caplog.text


async def test_a_run_lost_before_the_shutdown_is_no_part_of_its_report(autojump_clock: object) -> None:
    ahead_s = 0.0
    clock = Clock(wall=lambda: 1_800_000_000.0 + ahead_s + trio.current_time())
    storage, handler = MemoryStorage(clock), Script(60.0, None)
    async with working(handler, TaskQueueConfig(max_retry=1), storage=storage, lease=3.0, clock=clock) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(0.1)
        ahead_s = 10.0
        assert [each.id for each in (await storage.rescue()).records] == [task.id]  # by another process
        assert (await dispatcher.publisher.wait(task)).attempt == 2
        await trio.sleep(60)
    assert dispatcher.report == ShutdownReport()


async def test_leaving_memory_says_once_what_is_lost(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with working() as dispatcher:
        for n in range(3):
            await dispatcher.publisher.publish(JOB(Job(n), delay=60.0 if n else 0.0))
    assert [m for m in caplog.messages if "in-memory" in m] == [
        "the in-memory storage ends with 3 unfinished tasks: 2 q/later, 1 q/pending. "
        "A durable storage would have kept them"
    ]


async def test_what_is_lost_of_many_queues_is_said_of_the_fullest(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with working() as dispatcher:
        for n in range(25):
            dispatcher.consumer.register_queue(f"q{n:02}")
            for _ in range(1 + (n == 24)):
                await dispatcher.publisher.publish(TaskType(f"q{n:02}", "job", Job)(Job(n)))
    [text] = [m for m in caplog.messages if "in-memory" in m]
    assert text.startswith("the in-memory storage ends with 26 unfinished tasks: 1 q00/pending, 1 q01/pending, ")
    assert text.endswith(", 1 q18/pending, 2 q24/pending, 5 in other queues. A durable storage would have kept them")


async def test_nothing_is_said_when_nothing_is_lost(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(nothing) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
    async with working(storage=MemoryStorage()) as dispatcher:  # its owner keeps it
        await dispatcher.publisher.publish(JOB(Job()))
    assert not [m for m in caplog.messages if "in-memory" in m]


@pytest.mark.parametrize("how", ["left", "cancelled"])
async def test_who_waits_outside_is_told_when_the_dispatcher_has_ended(how: str, autojump_clock: object) -> None:
    told: list[str] = []

    async def told_of(wait: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(ClosedError) as caught:
            await wait()
        told.append(caught.value.detail)

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with working(nothing) as dispatcher:
                task = await dispatcher.publisher.publish(JOB(Job(), delay=60.0))
                waits = (
                    partial(dispatcher.publisher.wait, task.id),
                    partial(dispatcher.publisher.result, task),
                    dispatcher.drain,
                )
                for wait in waits:
                    nursery.start_soon(told_of, wait)
                await trio.sleep(1)
                assert told == []
                if how == "cancelled":
                    scope.cancel()
    for wait in waits:  # who comes later is told at once
        await told_of(wait)
    assert trio.current_time() == 1.0
    of_task = (
        f"wait: task {task.id} is still pending, and the dispatcher of this publisher has ended; "
        "over a storage that others work on, wait with a TaskQueuePublisher of its own"
    )
    of_all = "drain: this dispatcher has ended, and left tasks that can still run"
    assert sorted(told) == sorted([of_task, of_task, of_all] * 2)


async def test_what_ends_within_the_grace_still_reaches_who_waits(autojump_clock: object) -> None:
    ended: list[TaskStatus] = []
    storage = MemoryStorage()
    async with trio.open_nursery() as nursery, working(Script(3.0), storage=storage, grace=5.0) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))

        async def wait() -> None:
            ended.append((await dispatcher.publisher.wait(task)).status)

        nursery.start_soon(wait)
        await trio.sleep(1)
        dispatcher.publisher.close()  # publishing alone
        await trio.sleep(1)
        assert ended == []
    assert ended == [TaskStatus.SUCCEEDED]
    assert (await dispatcher.publisher.wait(task)).status is TaskStatus.SUCCEEDED


async def test_another_publisher_of_the_storage_goes_on_waiting(autojump_clock: object) -> None:
    storage = MemoryStorage()
    ended: list[TaskStatus] = []
    alone = TaskQueuePublisher(storage)
    async with working(storage=storage) as first:
        task = await first.publisher.publish(JOB(Job()))

    async def wait() -> None:
        ended.append((await alone.wait(task)).status)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(1)
        async with working(nothing, storage=storage) as second:
            await second.drain()
    assert ended == [TaskStatus.SUCCEEDED]


async def test_serve_is_for_nursery_start(autojump_clock: object) -> None:
    handler = Script()
    dispatcher = Dispatcher()
    dispatcher.consumer.register_queue("q")
    dispatcher.consumer.register_handler(JOB, handler)
    async with trio.open_nursery() as nursery:
        assert await nursery.start(dispatcher.serve) is dispatcher
        await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
        dispatcher.close()
        dispatcher.close()
    assert len(handler.seen) == 1


async def test_a_publisher_alone_and_a_consumer_alone_share_a_storage(autojump_clock: object) -> None:
    storage, handler = MemoryStorage(), Script()
    consumer = TaskQueueConsumer(storage)
    consumer.register_queue("q")
    consumer.register_handler(JOB, handler)
    publisher = TaskQueuePublisher(storage)
    async with trio.open_nursery() as nursery:
        await nursery.start(consumer.run)
        task = await publisher.publish(JOB(Job(7)))
        assert (await publisher.wait(task)).status is TaskStatus.SUCCEEDED
        consumer.close()


async def test_cron_alone_publishes_for_another_process_to_run(autojump_clock: object) -> None:
    storage, handler = MemoryStorage(), Script()
    async with working(handler, storage=storage), trio.open_nursery() as nursery:
        cron = CronTaskDispatcher(storage)
        await nursery.start(cron.run)
        await cron.add_with_name("@every 10s", "tick", JOB(Job()))
        await trio.sleep(35)
        cron.close()
    assert len(handler.seen) == 3


async def test_opening_again_over_the_same_storage_goes_on(autojump_clock: object) -> None:
    storage, handler = MemoryStorage(), Script()
    async with working(storage=storage) as first:
        for n in range(5):
            await first.publisher.publish(JOB(Job(n), delay=100.0 if n > 2 else 0.0))
        await first.cron.add_with_name("@every 60s", "tick", JOB(Job(9)))
    await trio.sleep(30)
    async with working(handler, storage=storage) as second:
        await trio.sleep(80)
        await second.cron.cancel("tick")
        await second.drain()
    assert sorted(task.payload.n for task in handler.seen) == [0, 1, 2, 3, 4, 9]




async def test_a_crashed_workers_tasks_are_rescued_when_their_leases_end(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """A crash settles nothing: the claim is made by a worker that is never heard of again."""
    storage, handler = MemoryStorage(), Script()
    async with working(storage=storage) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job(), max_retry=1))
    await storage.claim([Want(queue="q", limit=1)], worker="dead", lease=30.0)
    claimed_at = trio.current_time()
    async with working(handler, storage=storage) as other:
        ended = await other.publisher.wait(task)
    assert (ended.status, ended.attempt) == (TaskStatus.SUCCEEDED, 2)
    assert 30 <= handler.times[0] - claimed_at <= 36
    assert any(f"task {task.id} (q/job) rescued from worker dead" in m for m in caplog.messages)


async def test_what_a_dead_worker_held_of_a_queue_is_one_line(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    storage = MemoryStorage()
    async with working(storage=storage) as dispatcher:
        tasks = [await dispatcher.publisher.publish(JOB(Job(n), max_retry=int(n > 0))) for n in range(50)]
        kept = await dispatcher.publisher.publish(JOB(Job()))
    await storage.claim([Want(queue="q", limit=50)], worker="dead", lease=30.0)
    await storage.claim([Want(queue="q", limit=1)], worker="too", lease=30.0)
    events: list[TaskEvent] = []
    async with working(storage=storage, observers=[events.append]):
        await trio.sleep(60)
    lines = [record for record in caplog.records if record.name == "dispatch.upkeep"]
    several, single = (record.getMessage() for record in lines)
    first = ", ".join(task.id for task in tasks[:3])
    assert several == (
        "queue q: 50 tasks rescued from worker dead, which stopped renewing them: "
        f"now 49 pending, 1 failed; among them {first}"
    )
    assert f"task {kept.id} (q/job) rescued from worker too, which stopped renewing attempt 1: now " in single
    told = [(line.__dict__["event"], line.__dict__["worker"], line.__dict__["tasks"]) for line in lines]
    assert told == [("rescued", "dead", 50), ("rescued", "too", 1)]
    assert sum(event.rescued for event in events) == 51


async def test_one_crash_after_another_is_noticed_by_a_worker_that_rests_in_between(autojump_clock: object) -> None:
    storage = MemoryStorage()
    async with working(nothing, storage=storage):
        await storage.declare([QueueRecord(name="elsewhere")])
        for n in range(3):
            await trio.sleep(1_000)
            await storage.enqueue([NewTask(id=f"t{n}", queue="elsewhere", type="job", payload=b"{}")])
            await storage.claim([Want(queue="elsewhere", limit=1)], worker="dead", lease=30.0)
            await trio.sleep(31)
            [record] = (await storage.find(Ids(f"t{n}"))).records
            assert (record.status, record.failure_reason) == (TaskStatus.FAILED, "exhausted")


async def test_a_task_that_kills_its_process_ends_in_the_dead_letters(autojump_clock: object) -> None:
    storage = MemoryStorage()
    async with working(storage=storage) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
    for worker in ("one", "two", "three"):
        await storage.claim([Want(queue="q", limit=1, max_retry=2)], worker=worker, lease=1.0)
        await trio.sleep(2)
        await storage.rescue()
        await trio.sleep(2)
    record = await row(storage, task)
    assert (record.status, record.attempt, record.failure_reason) == (TaskStatus.FAILED, 3, "exhausted")


async def test_a_long_run_is_renewed_and_never_rescued(autojump_clock: object) -> None:
    storage, handler = MemoryStorage(), Script(500.0)
    async with working(handler, storage=storage, lease=3.0) as dispatcher, working(handler, storage=storage):
        task = await dispatcher.publisher.publish(JOB(Job()))
        assert (await dispatcher.publisher.wait(task)).attempt == 1
    assert len(handler.seen) == 1


async def test_a_first_run_after_a_long_rest_is_renewed_before_its_lease_is_over(autojump_clock: object) -> None:
    storage, handler = MemoryStorage(), Script(10.0)
    config = TaskQueueConfig(max_retry=5)
    async with working(handler, config, storage=storage, lease=3.0) as dispatcher, working(handler, config, storage=storage):
        for _ in range(3):
            await trio.sleep(100)
            task = await dispatcher.publisher.publish(JOB(Job()))
            assert (await dispatcher.publisher.wait(task)).attempt == 1
    assert len(handler.seen) == 3


class OneQueueFails(StorageProxy):
    """Cannot renew what is held of the first queue that it is asked about."""

    refused = 0

    async def renew(self, claims: Sequence[tuple[str, int]], *, lease: float | None) -> list[RenewAnswer]:
        if ("bad", 1) in claims:
            self.refused += 1
            raise StorageError("no answer within 4 s")
        return await super().renew(claims, lease=lease)


async def test_a_queue_that_cannot_be_renewed_costs_the_others_no_lease(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    inside = MemoryStorage()
    storage, handler = OneQueueFails(inside), Script(60.0)
    async with open_dispatcher(storage, lease=3.0, observers=()) as dispatcher:
        for queue in ("first", "second"):
            dispatcher.consumer.register_queue(queue)
            dispatcher.consumer.register_handler(TaskType(queue, "job", Job), handler)
        await dispatcher.publisher.publish(TaskType("first", "job", Job)(Job(), id="bad"))
        good = await dispatcher.publisher.publish(TaskType("second", "job", Job)(Job(), id="good"))
        for _ in range(50):  # as another worker sweeps
            await trio.sleep(1)
            await inside.rescue()
        assert storage.refused > 10
        assert (await row(inside, good)).status is TaskStatus.RUNNING
        assert (await dispatcher.publisher.wait(good)).attempt == 1
        assert (await inside.history("bad"))[0].outcome is AttemptOutcome.EXPIRED
    assert "upkeep: the storage failed, trying again" in caplog.text


@pytest.mark.parametrize("blocks_at_once", [False, True])
async def test_a_loop_that_stood_still_takes_no_task_from_its_neighbours(
    blocks_at_once: bool, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Both workers wake up late and in any order, so it is tried often."""
    for _ in range(20):
        storage, runs = MemoryStorage(), []

        async def handler(task: QueueTask[Job]) -> None:
            runs.append(task.attempt)  # noqa: B023 - called in this round
            if blocks_at_once:
                autojump_clock.jump(70.0)
            await trio.sleep(100)

        async with working(handler, storage=storage) as first, working(storage=storage):
            task = await first.publisher.publish(JOB(Job()))
            await trio.sleep(20)
            autojump_clock.jump(70.0)
            assert (await first.publisher.wait(task)).status is TaskStatus.SUCCEEDED
        assert runs == [1]
    assert "no sweep for 30 s, so that every living worker renews first" in caplog.text


async def test_a_loop_that_stands_still_now_and_then_is_put_off_each_time(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Only how often it was late in a row is counted."""
    async with working(Script(1_500.0), lease=30.0) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        for _ in range(6):
            await trio.sleep(200)
            autojump_clock.jump(45.0)
        assert (await dispatcher.publisher.wait(task)).attempt == 1
    assert caplog.text.count("no sweep for 30 s, so that every living worker renews first") == 6


async def test_a_loop_that_is_always_late_still_rescues(autojump_clock: MockClock) -> None:
    storage, handler = MemoryStorage(), Script()
    async with working(handler, storage=storage) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(), max_retry=1, delay=1.0))
        await trio.sleep(0.5)
        autojump_clock.jump(0.5)
        await storage.claim([Want(queue="q", limit=1)], worker="dead", lease=30.0)
        for _ in range(20):
            await trio.sleep(0.001)
            autojump_clock.jump(45.0)
        assert [each.attempt for each in handler.seen] == [2]


async def test_draining_does_not_wait_for_a_run_that_was_lost(autojump_clock: object) -> None:
    """A handler that ignores its end loses its task to another worker, and holds up nobody's drain."""
    storage, release = MemoryStorage(), trio.Event()

    async def stubborn(task: QueueTask[Job]) -> None:
        with trio.CancelScope(shield=True):
            await release.wait()

    config = TaskQueueConfig(max_retry=1, timeout=5.0)
    async with working(stubborn, config, storage=storage) as first:
        task = await first.publisher.publish(JOB(Job()))
        await trio.sleep(1)
        await first.control.set_concurrency("q", 1)
        try:
            async with working(Script(), config, storage=storage) as second:
                assert (await second.publisher.wait(task)).status is TaskStatus.SUCCEEDED
            with trio.move_on_after(500) as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(first.drain)
                    await trio.sleep(10)
                    release.set()
            assert not scope.cancelled_caught
        finally:
            release.set()


async def test_a_broken_storage_reaches_the_caller(autojump_clock: object) -> None:
    class Broken(MemoryStorage):
        async def turn(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("a bug in the storage")

    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="^a bug in the storage$"), flatten_subgroups=True):
        async with working(nothing, storage=Broken()):
            await trio.sleep_forever()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://root:secret@db/x", r"memory:, sqlite:///jobs\.db .* or postgresql://.*; got 'mysql://\*\*\*@db/x'"),
        ("jobs.db", "got 'jobs.db'"),
        ("sqlite://jobs.db", r"a SQLite file is named by sqlite:///jobs\.db"),
        ("sqlite:///", r"a SQLite file is named by"),
        ("sqlite:///jobs.db?synchronous=off", "the only option is synchronous=full or synchronous=normal"),
        ("sqlite:jobs.db", r"a SQLite file is named by sqlite:///jobs\.db .*; got 'sqlite:jobs.db'"),
        ("sqlite:/jobs.db", "a SQLite file is named by"),
        ("sqlite", "a SQLite file is named by"),
        ("sqlite:", "a SQLite file is named by"),
        ("sqlite:///nul\0.db", "a SQLite file is named by"),
        ("sqlite:///nul%00.db", "a SQLite file is named by"),
        ("sqlite:///jobs#1.db", "in the name of a file write %23 for #"),
        ("sqlite:///jobs.db?synchronous=full#1", "in the name of a file write %23 for #"),
        ("sqlite:///jobs?1.db", r"the only option is synchronous=.*; in the name of a file write %3F for \?"),
        ("sqlite:///jobs.db?synchronous=", "the only option is synchronous=full or synchronous=normal"),
        ("memory:foo", "a storage is named by memory:, .*; got 'memory:foo'"),
        ("memory", "got 'memory'"),
        ("host=h password=hunter2", r"got 'host=h password=\*\*\*'"),
        ("postgressql://h/db?user=u&password=hunter2&x=1", r"password=\*\*\*&x=1'"),
        ("sqlite:///:memory:", "for a storage in memory use MemoryStorage"),
    ],
)
async def test_a_wrong_url_is_told_what_is_possible(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^\[1012\] .*{said}"):
        async with open_dispatcher(url):
            pass


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("jobs%231%3f.db?synchronous=normal", "jobs#1?.db"),
        ("a b\nc.db", "a b\nc.db"),
        ("100%25.db?", "100%.db"),
        ("%ff.db", os.fsdecode(b"\xff.db")),
    ],
)
async def test_a_url_names_the_file_that_it_says(written: str, name: str, tmp_path: Path) -> None:
    for scheme in ("sqlite", "SQLite"):
        async with open_dispatcher(f"{scheme}:///{tmp_path}/{written}"):
            pass
    assert files(tmp_path) == [name]


class SlowToAnswer(StorageProxy):
    """Its claims take effect 2 s before they are answered."""

    def __init__(self, inner: MemoryStorage) -> None:
        super().__init__(inner)
        self.claimed = trio.Event()

    async def around(self, method: str, call: Callable[[], Awaitable[Any]]) -> Any:
        answer = await call()
        if method == "turn" and answer[1].claims:
            self.claimed.set()
            await trio.sleep(2.0)
        return answer


async def test_what_was_claimed_in_the_last_moment_was_not_interrupted(autojump_clock: object) -> None:
    storage = MemoryStorage()
    view = SlowToAnswer(storage)
    async with open_dispatcher(view, grace=30.0) as dispatcher:
        dispatcher.consumer.register_queue("q", TaskQueueConfig(on_interrupt="fail"))
        dispatcher.consumer.register_handler(JOB, nothing)
        task = await dispatcher.publisher.publish(JOB(Job()))
        await view.claimed.wait()
    record = await row(storage, task)
    assert (record.status, record.attempt, record.failure_reason) == (TaskStatus.PENDING, 0, None)


async def test_a_timeout_that_has_passed_counts_though_the_end_comes_while_it_cleans_up(
    autojump_clock: object,
) -> None:
    async def slow_to_end(_: QueueTask[Job]) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(5.0)

    storage = MemoryStorage()
    async with working(slow_to_end, TaskQueueConfig(timeout=1.0), storage=storage, grace=0.5) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(2.0)
    record = await row(storage, task)
    assert (record.status, record.attempt) == (TaskStatus.FAILED, 1)
    assert "TimeoutError" in record.last_error


async def test_a_storage_that_fails_at_the_start_is_told_as_it_is(autojump_clock: object) -> None:
    view = FaultyStorage(MemoryStorage())
    view.down = True
    with pytest.raises(StorageError, match="is down"):
        async with open_dispatcher(view):
            pass


async def test_a_storage_that_was_not_opened_is_told_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ClosedError, match="use it as: async with SqliteStorage"):
        async with open_dispatcher(SqliteStorage(tmp_path / "jobs.db")):
            pass


@pytest.mark.parametrize("how", ["cancelled", "raised"])
async def test_who_swallows_a_cancellation_from_outside_is_named(
    how: str, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async def stubborn(task: QueueTask[Job]) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(60)

    began = trio.current_time()
    with trio.CancelScope() as outside:
        try:
            async with working(stubborn, grace=1.0) as dispatcher:
                task = await dispatcher.publisher.publish(JOB(Job()))
                await trio.sleep(1)
                if how == "cancelled":
                    outside.cancel()
                    await trio.sleep_forever()
                raise LookupError("ours")
        except* LookupError:
            pass
    assert trio.current_time() - began == pytest.approx(60.0, abs=0.01)
    named = [each for each in caplog.messages if f"was cancelled (shutdown) and still runs task {task.id}" in each]
    assert len(named) == 11  # every 5 s of 59
    assert "stubborn" in named[0]


@pytest.mark.parametrize("error", [LookupError("ours"), KeyboardInterrupt(), SystemExit(3)])
async def test_what_ends_the_block_comes_out_as_it_is(error: BaseException, autojump_clock: object) -> None:
    async def end() -> None:
        async with working(Script(60.0)) as dispatcher:
            await dispatcher.publisher.publish(JOB(Job()))
            await trio.sleep(1)
            raise error

    with pytest.raises(type(error)) as caught:
        await end()
    assert caught.value is error


@pytest.mark.parametrize("moment", ["handler", "ending"])
async def test_a_ctrl_c_comes_out_as_it_is_wherever_it_strikes(moment: str) -> None:
    program = f"""
import os, signal, threading, trio
from dispatch import TaskQueueConfig, open_dispatcher
from tests.engine.work import JOB, Job

async def handler(task):
    if {moment!r} == "handler":
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
    await trio.sleep(30)

async def main():
    async with open_dispatcher(grace=30) as dispatcher:
        dispatcher.consumer.register_queue("q")
        dispatcher.consumer.register_handler(JOB, handler)
        await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(0.2)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

signal.signal(signal.SIGINT, signal.default_int_handler)  # under nohup it is ignored
try:
    trio.run(main)
except KeyboardInterrupt as exc:
    print("bare", *exc.args)
"""
    ran = await trio.run_process([sys.executable, "-c", program], capture_stdout=True, capture_stderr=True, check=False)
    assert ran.stdout == b"bare\n", ran.stderr.decode()


async def test_a_log_that_fails_at_the_end_does_not_hold_the_process(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(record: logging.LogRecord) -> bool:  # as a Ctrl-C does that strikes in this moment
        if record.getMessage().startswith("shutdown: "):
            raise LookupError("a mistake of the filter's")
        return True

    logging.getLogger("dispatch.consumer").addFilter(fail)
    try:
        with pytest.RaisesGroup(LookupError, flatten_subgroups=True, allow_unwrapped=True), trio.CancelScope() as outside:
            async with working(Script(60.0)) as dispatcher:
                await dispatcher.publisher.publish(JOB(Job()))
                await trio.sleep(1)
                outside.cancel()
    finally:
        logging.getLogger("dispatch.consumer").removeFilter(fail)


async def test_cancelled_amid_its_grace_it_does_not_say_that_this_has_ended(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    with trio.CancelScope() as outside:
        async with working(Script(60.0), grace=50.0) as dispatcher:
            await dispatcher.publisher.publish(JOB(Job()))
            await trio.sleep(1)
            dispatcher.close()
            await trio.sleep(1)
            outside.cancel()
    [told] = [each for each in caplog.messages if each.startswith("shutdown: ")]
    assert told.startswith("shutdown: this was cancelled with 1 tasks running; handed back: ")


async def test_a_publisher_closed_amid_many_says_how_many_are_stored(autojump_clock: object) -> None:
    errors: list[str] = []

    async def publish(n: int) -> None:
        try:
            await dispatcher.publisher.publish_many([JOB(Job(each)) for each in range(n)])
        except ClosedError as exc:
            errors.append(exc.detail.rpartition("; ")[2])

    async with open_dispatcher() as dispatcher, trio.open_nursery() as nursery:
        dispatcher.consumer.register_queue("q", TaskQueueConfig(max_waiting=5))
        nursery.start_soon(publish, 10)
        await trio.sleep(1.0)
        nursery.start_soon(publish, 2)
        await trio.sleep(1.0)
        dispatcher.publisher.close()
    assert sorted(errors) == ["5 of 10 tasks are stored", "nothing was stored"]


@pytest.mark.parametrize("how", ["cancelled", "left by an exception"])
async def test_who_was_interrupted_is_said_however_it_ends(
    how: str, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    dispatcher: Any = None
    with trio.CancelScope() as outside:
        try:
            async with working(Script(60.0), TaskQueueConfig(concurrency=2)) as dispatcher:
                tasks = [await dispatcher.publisher.publish(JOB(Job(n))) for n in range(3)]
                await trio.sleep(1)
                if how == "cancelled":
                    outside.cancel()
                    await trio.sleep_forever()
                raise LookupError("ours")
        except* LookupError:
            pass
    running = {task.id for task in tasks[:2]}
    assert set(dispatcher.report.interrupted) == running
    assert dispatcher.report.abandoned == ()
    [told] = [each.getMessage() for each in caplog.records if each.getMessage().startswith("shutdown: ")]
    assert told.startswith("shutdown: this was cancelled with 2 tasks running; handed back: ")
