"""By hand: cancel, hold, pause, resize, look, wait, and dead letters."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from dispatch import (
    InvalidConfigError,
    InvalidQueueTaskError,
    MemoryStorage,
    Priority,
    QueueInUseError,
    QueueNotRegisteredError,
    QueueTask,
    TaskCancelledError,
    TaskFailedError,
    TaskNotFoundError,
    TaskQueueConfig,
    TaskStatus,
    TaskType,
    Unique,
    open_dispatcher,
)
from dispatch.bell import Bell
from dispatch.storage.protocol import (
    Page,
    QueueRecord,
    RemoveAnswer,
    Topic,
    TopicKind,
    WorkerRecord,
)
from dispatch.storage.query import Ids, PruneSpec, Queues, dead_letters
from dispatch.tasks import LATEST

from .work import ASK, JOB, Answer, Job, Script, nothing, working


async def test_a_waiting_task_is_cancelled(autojump_clock: object) -> None:
    handler = Script()
    async with working(handler) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job(), delay=10.0))
        assert await dispatcher.control.cancel(task, dry_run=True) == [task.id]
        assert await dispatcher.control.cancel(task, reason="not wanted") == [task.id]
        assert await dispatcher.control.cancel(task) == []
        with pytest.raises(TaskCancelledError) as caught:
            await dispatcher.publisher.result(task)
        assert str(caught.value) == f"[1019] task {task.id} (q/job) was cancelled: not wanted"
        await trio.sleep(20)
    assert handler.seen == []


@pytest.mark.parametrize("reason", [5, None, ValueError("x"), b"bytes"])
async def test_the_reason_of_a_cancel_by_hand_is_a_text(reason: Any, autojump_clock: object) -> None:
    async with working(Script(5.0)) as dispatcher:
        running, waiting = [await dispatcher.publisher.publish(JOB(Job(n))) for n in range(2)]
        await trio.sleep(1)
        for task in (running, waiting):
            with pytest.raises(InvalidConfigError) as caught:
                await dispatcher.control.cancel(task, reason=reason)
            assert caught.value.detail == f"cancel: reason must be a str, got {reason!r}"
        await dispatcher.drain()
        assert await dispatcher.control.count(by=("status",)) == {("succeeded",): 2}


async def test_a_running_task_is_cancelled_within_a_second(autojump_clock: object) -> None:
    async with working(Script(60.0), TaskQueueConfig(max_retry=5)) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(5)
        began = trio.current_time()
        await dispatcher.control.cancel(task, reason="enough")
        ended = await dispatcher.publisher.wait(task)
    assert (ended.status, ended.last_error) == (TaskStatus.CANCELLED, "enough")
    assert trio.current_time() - began <= 1


async def test_a_handler_that_swallows_its_cancel_is_cancelled_all_the_same(autojump_clock: object) -> None:
    async def stubborn(task: object) -> None:
        try:
            await trio.sleep(60)
        except trio.Cancelled:
            pass

    async with working(stubborn) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(1)
        await dispatcher.control.cancel(task)
        assert (await dispatcher.publisher.wait(task)).status is TaskStatus.CANCELLED


async def test_held_tasks_wait_until_they_are_resumed(autojump_clock: object) -> None:
    handler = Script()
    async with working(handler) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job(), delay=1.0))
        assert await dispatcher.control.hold(task) == [task.id]
        await dispatcher.drain()  # does not wait for it
        await trio.sleep(100)
        assert handler.seen == []
        assert await dispatcher.control.resume(task) == [task.id]
        await dispatcher.drain()
    assert len(handler.seen) == 1


async def test_a_drain_does_not_wait_for_what_this_worker_may_not_take(autojump_clock: object) -> None:
    newer = TaskType("q", "job", Job, version=2, upcasters={1: lambda old: old})
    handler = Script()
    async with working(handler, tags=["cpu"]) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(1), tags=("gpu",)))
        await dispatcher.publisher.publish(newer(Job(2)))
        with trio.fail_after(60):
            await dispatcher.drain()
        assert handler.seen == []
        # More than a page of them hides none that can be taken.
        await dispatcher.publisher.publish_many([JOB(Job(3), tags=("gpu",), delay=1) for _ in range(150)])
        await dispatcher.publisher.publish(JOB(Job(4), tags=("cpu",), delay=5))
        with trio.fail_after(60):
            await dispatcher.drain()
        assert [task.payload.n for task in handler.seen] == [4]


async def test_a_drain_looks_again_at_what_came_while_it_looked(autojump_clock: object) -> None:
    """Behind a page of tasks for others, one for us is stored when that page was read."""

    class Late(MemoryStorage):
        looks = 0

        async def find(self, *args: Any, **how: Any) -> Page:
            page = await super().find(*args, **how)
            self.looks += 1
            if self.looks == 1:
                await dispatcher.publisher.publish(JOB(Job(2), tags=("cpu",), delay=3))
            return page

    handler = Script()
    async with working(handler, storage=Late(), tags=["cpu"]) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(1), tags=("gpu",)))
        await dispatcher.drain()
        assert [task.payload.n for task in handler.seen] == [2]


class _LateBell(Bell):
    """Rings another one, a second later."""

    def __init__(self, bell: Bell, nursery: trio.Nursery) -> None:
        super().__init__()
        self.bell, self.nursery = bell, nursery

    def ring(self) -> None:
        async def later() -> None:
            await trio.sleep(1)
            self.bell.ring()

        self.nursery.start_soon(later)


async def test_a_drain_sees_a_task_that_fails_while_it_looks(autojump_clock: object) -> None:
    """As a database shows it: what has changed is there to be read before anybody has rung."""

    class Database(MemoryStorage):
        async def find(self, *args: Any, **how: Any) -> Page:
            page = await super().find(*args, **how)
            await trio.sleep(0.1)
            return page

        def watch(self, bell: Bell, *topics: Topic) -> AbstractContextManager[None]:
            of_drain = any(topic.kind is TopicKind.DONE for topic in topics)
            return super().watch(_LateBell(bell, nursery) if of_drain else bell, *topics)

    async def handler(task: QueueTask[Job]) -> None:
        if task.attempt == 1:
            await trio.sleep(5.05)
            raise ValueError("once")

    async with trio.open_nursery() as nursery:
        config = TaskQueueConfig(max_retry=1, retry_delay=60.0)
        async with working(handler, config, storage=Database()) as dispatcher:
            task = await dispatcher.publisher.publish(JOB(Job()))
            await trio.sleep(5)
            await dispatcher.drain()
            assert (await dispatcher.control.get(task)).status is TaskStatus.SUCCEEDED
        nursery.cancel_scope.cancel()


class SlowToCount(MemoryStorage):
    """Each count takes a tenth of a second."""

    counts = 0

    async def count(self, *args: Any, **how: Any) -> dict[tuple[str, ...], int]:
        self.counts += 1
        await trio.sleep(0.1)
        return await super().count(*args, **how)


async def test_a_drain_does_not_look_after_every_end(autojump_clock: object) -> None:
    storage = SlowToCount()
    async with working(Script(0.05), storage=storage) as dispatcher:
        await dispatcher.publisher.publish_many([JOB(Job(n)) for n in range(100)])
        began = trio.current_time()
        await dispatcher.drain()
        took = trio.current_time() - began
    assert 4.9 < took < 6.0, "it ends soon after the last one"
    assert storage.counts <= 12, "half a second apart"


async def test_a_drain_that_rests_looks_as_soon_as_the_dispatcher_has_ended(autojump_clock: object) -> None:
    storage = SlowToCount()
    ended: list[float] = []
    async with trio.open_nursery() as nursery:
        async with working(Script(0.3), storage=storage) as dispatcher:
            await dispatcher.publisher.publish(JOB(Job()))

            async def drain() -> None:
                await dispatcher.drain()
                ended.append(trio.current_time())

            nursery.start_soon(drain)
            await trio.sleep(0.25)  # it has looked for 0.2 s, and rests for half a second
        left = trio.current_time()
    assert left == pytest.approx(0.3)
    assert ended == pytest.approx([left + 0.1]), "one look more"


async def test_holding_the_last_task_ends_a_drain_under_way(autojump_clock: object) -> None:
    async with working(nothing) as dispatcher, trio.open_nursery() as nursery:
        task = await dispatcher.publisher.publish(JOB(Job(), delay=1_000.0))
        began = trio.current_time()
        nursery.start_soon(dispatcher.drain)
        await trio.sleep(1)
        await dispatcher.control.hold(task)
    assert trio.current_time() - began < 900


async def test_a_paused_queue_starts_nothing_and_goes_on_when_resumed(autojump_clock: object) -> None:
    handler = Script(5.0)
    async with working(handler) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(0)))
        await trio.sleep(1)
        await dispatcher.control.pause_queue("q")
        await dispatcher.publisher.publish(JOB(Job(1)))
        await trio.sleep(100)
        assert len(handler.seen) == 1
        await dispatcher.drain()  # a paused queue is not waited for
        await dispatcher.control.resume_queue("q")
        await dispatcher.drain()
    assert len(handler.seen) == 2


async def test_an_unknown_queue_cannot_be_paused(autojump_clock: object) -> None:
    async with working() as dispatcher:
        await dispatcher.control.resume_queue("q")
        with pytest.raises(QueueNotRegisteredError) as caught:
            await dispatcher.control.pause_queue("r")
        assert str(caught.value) == "[1007] queue 'r' is not registered; registered: q"


async def test_an_unused_queue_is_removed_and_publishing_into_it_is_refused(autojump_clock: object) -> None:
    storage = MemoryStorage()
    async with working(nothing, storage=storage) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
    async with open_dispatcher(storage, queues=()) as dispatcher:
        control = dispatcher.control
        await control.pause_queue("q")
        assert await control.prune(PruneSpec(keep=0)) == 1
        await control.remove_queue("q", dry_run=True)
        assert [record.name for record in await control.queues()] == ["q"]
        await control.remove_queue("q")
        assert await control.queues() == []
        with pytest.raises(QueueNotRegisteredError) as caught:
            await dispatcher.publisher.publish(JOB(Job()))
        assert caught.value.code == 1007
        with pytest.raises(QueueNotRegisteredError) as caught:
            await control.remove_queue("q")
        assert caught.value.detail == "queue 'q' is not registered; registered: none"
    async with working(nothing, storage=storage) as dispatcher:  # it is there again, and not paused
        await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
        assert await dispatcher.control.count(by=("status",)) == {("succeeded",): 1}


async def test_a_queue_stays_while_anything_uses_it_and_all_of_that_is_told(autojump_clock: object) -> None:
    storage = MemoryStorage()
    async with (
        working(Script(500.0), storage=storage) as worker,
        open_dispatcher(storage, queues=()) as dispatcher,
    ):
        control, publisher = dispatcher.control, dispatcher.publisher
        running = await publisher.publish(JOB(Job()))
        await trio.sleep(1)
        later = await publisher.publish(JOB(Job(), delay=600.0))
        held = await publisher.publish(JOB(Job(), delay=600.0))
        await control.hold(held)
        await dispatcher.cron.add_with_name("@daily", "nightly", JOB(Job()))
        before = await control.queues()
        for dry_run in (False, True):
            with pytest.raises(QueueInUseError) as caught:
                await control.remove_queue("q", dry_run=dry_run)
            [me] = [each for each in await control.workers() if each.queues]
            assert str(caught.value) == (
                f"[1023] queue 'q' is in use, and stays: stop what consumes it: worker {me.id}; "
                "cancel what publishes into it: cron task nightly; "
                "cancel the tasks of it that are open, and delete all: 1 held, 1 later, 1 running"
            )
            assert caught.value.tasks == {"held": 1, "later": 1, "running": 1}
            assert (caught.value.workers, caught.value.crons) == ([me.id], ["nightly"])
        assert await control.queues() == before
        for task in (running, later, held):
            await control.cancel(task)
        await dispatcher.cron.cancel("nightly")
        await worker.drain()
        with pytest.raises(QueueInUseError, match="3 cancelled"):
            await control.remove_queue("q")
        await control.prune(PruneSpec(keep=0))
        with pytest.raises(QueueInUseError) as caught:
            await control.remove_queue("q")
        assert (caught.value.tasks, caught.value.workers) == ({}, [me.id])
    async with open_dispatcher(storage, queues=()) as dispatcher:
        await dispatcher.control.remove_queue("q")


async def test_of_many_in_the_way_a_few_are_named(autojump_clock: object) -> None:
    storage = MemoryStorage()
    async with working(storage=storage, queues=()) as dispatcher:
        await dispatcher.control.queues()
        for number in range(7):
            worker = WorkerRecord(id=f"w{number}", host="h", pid=1, started_at=0.0, seen_at=0.0, queues=("q",))
            await storage.beat(worker)
        with pytest.raises(QueueInUseError) as caught:
            await dispatcher.control.remove_queue("q")
        assert caught.value.detail == (
            "queue 'q' is in use, and stays: stop what consumes it: workers w0, w1, w2, w3, w4 and 2 more"
        )


async def test_a_task_stored_at_the_moment_of_a_removal_stays_with_its_queue(autojump_clock: object) -> None:
    class Crossed(MemoryStorage):
        async def remove_queue(self, name: str) -> RemoveAnswer:
            task = await dispatcher.publisher.publish(JOB(Job()))
            answer = await super().remove_queue(name)
            if over:
                await dispatcher.control.cancel(task)
                await dispatcher.control.prune(PruneSpec(keep=0))
            return answer

    async with working(storage=Crossed(), queues=()) as dispatcher:
        over = False
        with pytest.raises(QueueInUseError, match=r"and delete all: 1 pending$"):
            await dispatcher.control.remove_queue("q")
        await dispatcher.control.cancel(Queues("q"))
        await dispatcher.control.prune(PruneSpec(keep=0))
        over = True
        with pytest.raises(QueueInUseError, match=r"a task of it was stored at this moment; try again$"):
            await dispatcher.control.remove_queue("q")
        assert [record.name for record in await dispatcher.control.queues()] == ["q"]


async def test_of_two_removals_at_once_one_is_told_that_there_is_no_such_queue(autojump_clock: object) -> None:
    class Crossed(MemoryStorage):
        async def remove_queue(self, name: str) -> RemoveAnswer:
            await super().remove_queue(name)
            return await super().remove_queue(name)

    async with working(storage=Crossed(), queues=()) as dispatcher:
        with pytest.raises(QueueNotRegisteredError, match="queue 'q' is not registered"):
            await dispatcher.control.remove_queue("q")


async def test_a_removal_that_was_cancelled_before_removes_nothing(autojump_clock: object) -> None:
    async with working(queues=()) as dispatcher:
        await dispatcher.control.queues()
        with trio.CancelScope() as scope:
            scope.cancel()
            await dispatcher.control.remove_queue("q")
        assert scope.cancelled_caught
        assert [record.name for record in await dispatcher.control.queues()] == ["q"]


async def test_concurrency_is_changed_while_running(autojump_clock: object) -> None:
    now = 0
    seen: list[tuple[float, int]] = []

    async def handler(task: object) -> None:
        nonlocal now
        now += 1
        seen.append((trio.current_time(), now))
        await trio.sleep(10)
        now -= 1

    async with working(handler, TaskQueueConfig(concurrency=2)) as dispatcher:
        began = trio.current_time()
        for n in range(40):
            await dispatcher.publisher.publish(JOB(Job(n)))
        await trio.sleep(1)
        assert now == 2
        await dispatcher.control.set_concurrency("q", 6)
        await trio.sleep(1)
        assert now == 6
        await dispatcher.control.set_concurrency("q", 1)
        await trio.sleep(20)
        assert now == 1
        await dispatcher.control.set_concurrency("q", None)
        await trio.sleep(1)
        assert now == 2
        await dispatcher.drain()
    assert began <= seen[0][0]


@pytest.mark.parametrize("asked", [0, -1, 1.5, "8", True, 2**31, [2]])
async def test_a_concurrency_that_is_none_is_refused(asked: Any, autojump_clock: object) -> None:
    async with working(nothing) as dispatcher:
        with pytest.raises(InvalidConfigError) as caught:
            await dispatcher.control.set_concurrency("q", asked)
        assert caught.value.detail == (
            f"queue 'q': concurrency must be a whole number within 1 and 2147483647, got {asked!r}; to stop it, pause it"
        )
        assert [record.concurrency for record in await dispatcher.control.queues()] == [None]


@pytest.mark.parametrize("stored", [1.5, 0, -3, "8", True])
async def test_nonsense_in_the_store_is_named_once_and_leaves_the_registered_concurrency(
    stored: Any, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    storage = MemoryStorage()
    async with working(Script(1.0), TaskQueueConfig(concurrency=2), storage=storage) as dispatcher:
        await dispatcher.control.set_concurrency("q", 4)
        await trio.sleep(1)
        await storage.alter_queue("q", concurrency=stored)
        for n in range(4):
            await dispatcher.publisher.publish(JOB(Job(n)))
        await dispatcher.drain()
        await dispatcher.control.pause_queue("q")
        await trio.sleep(60)
        assert dispatcher.statistics().queues["q"].concurrency == 2
    said = [line.getMessage() for line in caplog.records if "concurrency" in line.getMessage()]
    assert said == [f"queue q: the storage asks for a concurrency of {stored!r}; it stays at the registered 2"]


async def test_waiting_is_woken_by_the_bell_and_does_not_poll(autojump_clock: object) -> None:
    class Counting(MemoryStorage):
        finds = 0

        async def find(self, *args: Any, **options: Any) -> Any:
            self.finds += 1
            return await super().find(*args, **options)

    storage = Counting()
    async with working(Script(500.0), storage=storage) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.publisher.wait(task)
    assert storage.finds <= 2


async def test_an_edited_payload_swallows_neither_the_old_ones_publishing_nor_its_own(autojump_clock: object) -> None:
    def unique(n: int) -> QueueTask[Job]:
        return JOB(Job(n), unique=Unique(by_payload=True))

    async with working() as dispatcher:
        first = await dispatcher.publisher.publish(unique(10))
        await dispatcher.control.edit(first, priority=Priority.HIGH)
        assert (await dispatcher.publisher.publish(unique(10))).id == first.id
        await dispatcher.control.edit(first, payload=Job(20))
        old = await dispatcher.publisher.publish(unique(10))
        assert (old.payload, old.id == first.id) == (Job(10), False)
        assert (await dispatcher.publisher.publish(unique(10))).id == old.id


async def test_whoever_waits_hears_how_it_ended_however_many_end_meanwhile(autojump_clock: object) -> None:
    async def doubled(task: QueueTask[Job, Answer]) -> Answer:
        return Answer(2 * task.payload.n)

    storage, answers = MemoryStorage(keep_finished=1_000), dict[int, Answer]()
    config = TaskQueueConfig(concurrency=128, buffer_size=3_000)
    async with working(doubled, config, storage=storage, task_type=ASK) as dispatcher:

        async def ask(n: int) -> None:
            answers[n] = await dispatcher.publisher.result(await dispatcher.publisher.publish(ASK(Job(n))))

        async with trio.open_nursery() as nursery:
            for n in range(3_000):
                nursery.start_soon(ask, n)
    assert answers == {n: Answer(2 * n) for n in range(3_000)}
    assert storage.statistics().finished == 1_000


async def test_a_cancelled_wait_leaves_the_task_alone(autojump_clock: object) -> None:
    async with working(Script(10.0)) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        with trio.move_on_after(1) as scope:
            await dispatcher.publisher.wait(task)
        assert scope.cancelled_caught
        assert (await dispatcher.publisher.wait(task.id)).status is TaskStatus.SUCCEEDED


async def test_waiting_for_an_unknown_task_is_an_error() -> None:
    async with working() as dispatcher:
        with pytest.raises(TaskNotFoundError) as caught:
            await dispatcher.publisher.wait("nobody")
        assert str(caught.value) == (
            "[1002] no task has the id 'nobody'; it may have been pruned, or be beyond what memory keeps, "
            "MemoryStorage(keep_finished=...)"
        )


async def test_tasks_are_listed_counted_and_their_history_shown(autojump_clock: object) -> None:
    handler = Script(ValueError("x"), None)
    async with working(handler, TaskQueueConfig(max_retry=1)) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
        await dispatcher.publisher.publish(JOB(Job(1), delay=99.0))
        page = await dispatcher.control.find(Queues("q"), limit=1)
        assert [each.id for each in page.tasks] == [task.id]
        rest = await dispatcher.control.find(Queues("q"), after=page.cursor)
        assert [each.payload for each in rest.tasks] == [Job(1)]
        assert await dispatcher.control.count(by=("queue", "status")) == {("q", "succeeded"): 1, ("q", "later"): 1}
        history = await dispatcher.control.history(task)
        assert [(each.attempt, each.outcome.value) for each in history] == [(1, "retried"), (2, "succeeded")]
        assert history[0].error is not None
        assert history[0].error.startswith("ValueError: x\nTraceback")
        await dispatcher.control.cancel(Queues("q"))


async def test_a_retrying_task_is_shown_as_such(autojump_clock: object) -> None:
    async with working(Script(ValueError("x"), None), TaskQueueConfig(max_retry=1, retry_delay=9.0)) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(1)
        shown = await dispatcher.control.get(task)
        assert (shown.status, shown.attempt, shown.last_error) == (TaskStatus.RETRYING, 1, "ValueError: x")
        await dispatcher.drain()


async def test_an_edit_says_whether_it_changed_anything(autojump_clock: object) -> None:
    async with working(nothing) as dispatcher:
        control = dispatcher.control
        later = await dispatcher.publisher.publish(JOB(Job(1), delay=60.0))
        assert await control.edit(later, payload=Job(2), tags=("x",)) is True
        assert await control.edit(later, payload=Job(2), tags=("x",)) is False
        await dispatcher.drain()
        assert await control.edit(later, payload=Job(3)) is False
        assert (await control.get(later)).payload == Job(2)
        with pytest.raises(TaskNotFoundError, match="no task has the id 'none'"):
            await control.edit("none", payload=Job(3))


async def test_an_edited_payload_is_of_the_version_that_is_declared_here(autojump_clock: object) -> None:
    storage = MemoryStorage()
    newer: TaskType[Job, None] = TaskType("q", "job", Job, version=2, upcasters={1: lambda old: {"n": 100 * old["n"]}})
    async with working(storage=storage) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job(1)))
    handler = Script()
    async with working(handler, storage=storage, task_type=newer) as dispatcher:
        assert await dispatcher.control.edit(task.id, payload=Job(7)) is True
        await dispatcher.publisher.wait(task)
    assert [each.payload for each in handler.seen] == [Job(7)]
    async with working(storage=storage) as dispatcher:
        task = await dispatcher.publisher.publish(newer(Job(1), delay=60.0))
    async with working(storage=storage) as unknowing:
        assert await unknowing.control.edit(task.id, payload={"n": 8}) is True
    assert [record.version for record in (await storage.find(Ids(task.id))).records] == [2]



async def test_dead_letters_are_listed_edited_and_rerun(autojump_clock: object) -> None:
    handler = Script(*[ValueError("x")] * 3, None)
    async with working(handler) as dispatcher:
        control = dispatcher.control
        tasks = [await dispatcher.publisher.publish(JOB(Job(n))) for n in range(3)]
        await dispatcher.drain()
        with pytest.raises(TaskFailedError) as caught:
            await dispatcher.publisher.result(tasks[0])
        assert str(caught.value) == (
            f"[1018] task {tasks[0].id} (q/job) failed after 1 attempts (exhausted): ValueError: x"
        )
        assert [each.id for each in (await control.dead_letters("q")).tasks] == [each.id for each in tasks]
        assert await control.edit(tasks[0], payload=Job(77)) is True
        assert await control.rerun(tasks[0]) == [tasks[0].id]
        assert (await dispatcher.publisher.wait(tasks[0])).status is TaskStatus.SUCCEEDED
        assert handler.seen[-1].payload == Job(77)
        assert handler.seen[-1].attempt == 2
        ids = [each.id for each in tasks[1:]]
        assert await control.rerun(dead_letters("q"), dry_run=True) == ids
        assert len((await control.dead_letters()).tasks) == 2
        assert await control.rerun(dead_letters("q")) == ids
        await dispatcher.drain()
        assert (await control.dead_letters()).tasks == ()


async def test_a_moment_beyond_the_calendar_is_not_edited_in(autojump_clock: object) -> None:
    async with working() as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job(), available_at=LATEST))
        assert (await dispatcher.control.get(task)).available_at == LATEST
        with pytest.raises(InvalidQueueTaskError, match="available_at must be within"):
            await dispatcher.control.edit(task, available_at=datetime.max.replace(tzinfo=UTC))
        assert [each.available_at for each in (await dispatcher.control.find()).tasks] == [LATEST]


async def test_a_worker_says_what_was_changed_by_hand(autojump_clock: object, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="dispatch.upkeep")
    async with working(nothing, TaskQueueConfig(concurrency=2)) as dispatcher:
        for change in (
            partial(dispatcher.control.pause_queue, "q"),
            partial(dispatcher.control.pause_queue, "q"),
            partial(dispatcher.control.set_concurrency, "q", 5),
            partial(dispatcher.control.resume_queue, "q"),
            partial(dispatcher.control.set_concurrency, "q", None),
        ):
            await change()
            await trio.sleep(1)
    assert [each for each in caplog.messages if each.startswith("queue q: ")] == [
        "queue q: is paused, by hand",
        "queue q: runs 5 at once instead of 2, by hand",
        "queue q: goes on, by hand",
        "queue q: runs 2 at once instead of 5, by hand",
    ]


async def test_who_asks_in_a_loop_lets_others_run(autojump_clock: object) -> None:
    async with working(config=TaskQueueConfig(buffer_size=10)) as dispatcher:
        control, cron = dispatcher.control, dispatcher.cron
        task = await dispatcher.publisher.publish(JOB(Job(), delay=60.0))
        await cron.add_with_name("@daily", "stored", JOB(Job()))
        await dispatcher.storage.declare([QueueRecord(name="r")])
        for ask in (
            partial(control.get, task),
            partial(control.why, task),
            control.find,
            control.count,
            partial(control.history, task),
            control.queues,
            control.workers,
            partial(control.edit, task, priority=Priority.HIGH),
            partial(control.hold, task),
            partial(control.resume, task),
            partial(control.rerun, task),
            partial(control.prune, PruneSpec(age_s=1.0)),
            partial(control.pause_queue, "q"),
            partial(control.resume_queue, "q"),
            partial(control.set_concurrency, "q", 3),
            partial(control.remove_queue, "r"),
            partial(control.cancel, task),
            partial(cron.get_task, "stored"),
            partial(cron.preview, "stored"),
            partial(cron.pause, "stored"),
            partial(cron.resume, "stored"),
            partial(cron.trigger, "stored"),
            partial(cron.backfill, "stored", datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)),
            partial(cron.cancel, "stored"),
            partial(cron.cancel, "stored"),
        ):
            with trio.testing.assert_checkpoints():
                await ask()
