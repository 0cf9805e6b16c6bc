"""Publishing: bounds, order, answers, and what is refused before anything is stored."""

from __future__ import annotations

import asyncio
import copy
import pickle
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, evolve, field, frozen
from trio.testing import wait_all_tasks_blocked

from dispatch import (
    FailureReason,
    InvalidConfigError,
    InvalidQueuePayloadError,
    InvalidQueueTaskError,
    QueueFullError,
    QueueNotRegisteredError,
    QueueTask,
    RateLimit,
    TaskQueueConfig,
    TaskStatus,
    TaskType,
    Unique,
    open_dispatcher,
    publisher,
)
from dispatch.publisher import TaskQueuePublisher
from dispatch.storage.memory import MemoryStorage
from dispatch.storage.protocol import EnqueueAnswer
from dispatch.storage.query import PruneSpec, Queues

from .work import JOB, Job, Script, nothing, working

SMALL = TaskQueueConfig(buffer_size=2)


def second_version(old: dict[str, Any]) -> dict[str, Any]:
    return {"n": old["number"]}


def pickled(task: QueueTask[Any]) -> QueueTask[Any]:
    return pickle.loads(pickle.dumps(task))  # noqa: S301 - of our own making


VERSIONED = TaskType("q", "versioned", Job, version=2, upcasters={1: second_version})


async def test_publishing_waits_for_room_and_goes_on_when_there_is(autojump_clock: object) -> None:
    handler = Script(10.0)
    async with working(handler, SMALL) as dispatcher:
        began = trio.current_time()
        for n in range(5):  # one runs, two wait, two more find no room
            await dispatcher.publisher.publish(JOB(Job(n)))
            if n == 0:
                await wait_all_tasks_blocked()
        assert trio.current_time() - began == pytest.approx(20, abs=0.1)
        await dispatcher.drain()
    assert [task.payload.n for task in handler.seen] == list(range(5))


@frozen
class Named:
    name: str


@frozen
class Twin:
    n: int
    more: str = ""


async def test_a_payload_that_the_handler_here_could_not_be_given_is_refused(autojump_clock: object) -> None:
    handler = Script()
    async with working(handler, task_type=TaskType("q", "job", Named)) as dispatcher:
        with pytest.raises(InvalidQueuePayloadError) as caught:
            await dispatcher.publisher.publish(JOB(Job(1)))
        assert (caught.value.detail, caught.value.path) == (
            "payload of q/job: published as Job, and the handler registered here takes Named, which it does not fit "
            "at $.name; declare the TaskType once and use it on both sides, or give the changed class a version of its own",
            "$.name",
        )
        assert await dispatcher.control.count() == {}
        newer = TaskType("q", "job", Job, version=2)  # waits for a worker that knows it
        await dispatcher.publisher.publish(newer(Job(1)))
        assert await dispatcher.control.count() == {(): 1}


async def test_an_upcaster_that_fails_where_its_handler_is_fails_the_publishing_and_is_named(
    autojump_clock: object,
) -> None:
    def named(old: dict[str, Any]) -> dict[str, Any]:
        return {"name": old["nmae"]}

    newer = TaskType("q", "job", Named, version=2, upcasters={1: named})
    async with working(Script(), task_type=newer) as dispatcher:
        with pytest.raises(InvalidQueuePayloadError) as caught:
            await dispatcher.publisher.publish(JOB(Job(1)))
    assert (caught.value.detail, caught.value.path) == (
        "payload of q/job: published as Job, and the handler registered here takes Named, which it does not fit at $: "
        "the upcaster from version 1 to 2 raised KeyError: 'nmae'; declare the TaskType once and use it on both sides, "
        "or give the changed class a version of its own",
        "$",
    )


async def test_a_handler_of_a_queue_that_others_work_on_decides_nothing(autojump_clock: object) -> None:
    async with working(Script(), task_type=TaskType("q", "job", Named), queues=["elsewhere"]) as dispatcher:
        assert (await dispatcher.publisher.publish(JOB(Job(1)))).status is TaskStatus.PENDING


async def test_a_handler_of_a_worker_that_takes_no_such_tags_decides_nothing(autojump_clock: object) -> None:
    async with working(Script(), task_type=TaskType("q", "job", Named), tags=["cpu"]) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(1), tags=("gpu",)))
        with pytest.raises(InvalidQueuePayloadError):
            await dispatcher.publisher.publish(JOB(Job(1), tags=("cpu",)))


async def test_a_payload_that_fits_the_class_of_the_handler_here_is_taken(autojump_clock: object) -> None:
    handler = Script()
    async with working(handler, task_type=TaskType("q", "job", Twin)) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(1)))
        await dispatcher.drain()
    assert [task.payload for task in handler.seen] == [Twin(1)]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says of publishing."""
    return [each.getMessage() for each in caplog.records if each.name == "dispatch.publisher"]


async def test_a_publish_that_waits_for_a_paused_queue_is_named_once(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(nothing, SMALL) as dispatcher, trio.open_nursery() as nursery:
        await dispatcher.control.pause_queue("q")
        nursery.start_soon(dispatcher.publisher.publish_many, [JOB(Job(n)) for n in range(5)])
        await trio.sleep(4.9)
        assert said(caplog) == []
        await trio.sleep(3_600)
        assert said(caplog) == ["queue q: full, a publish has waited 5 s for room: the queue is paused; resume it"]
        await dispatcher.control.resume_queue("q")
    assert len(said(caplog)) == 1


async def test_a_publish_that_nobody_makes_room_for_is_named(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(config=SMALL) as dispatcher:
        with trio.move_on_after(60):
            await dispatcher.publisher.publish_many([JOB(Job(n)) for n in range(3)])
    assert said(caplog) == [
        "queue q: full, a publish has waited 5 s for room: nothing of it is running; "
        "is there a dispatcher that serves it, with handlers for its tasks?"
    ]


async def test_a_publish_that_waits_for_workers_at_work_is_not_named(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(Script(10.0), SMALL) as dispatcher:
        await dispatcher.publisher.publish_many([JOB(Job(n)) for n in range(5)])
        await dispatcher.drain()
    assert said(caplog) == []


async def test_a_publish_that_waits_for_a_rate_is_not_named(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    limited = TaskQueueConfig(buffer_size=2, rate_limit=RateLimit(1, 8.0))
    async with working(nothing, limited) as dispatcher:
        for n in range(6):
            await dispatcher.publisher.publish(JOB(Job(n)))
        await dispatcher.drain()
    assert said(caplog) == []


async def test_publishing_raises_where_the_queue_says_so(autojump_clock: object) -> None:
    async with working(config=TaskQueueConfig(buffer_size=2, overflow="raise")) as dispatcher:
        for n in range(2):
            await dispatcher.publisher.publish(JOB(Job(n)))
        with pytest.raises(QueueFullError) as caught:
            await dispatcher.publisher.publish(JOB(Job(2)))
        assert str(caught.value) == (
            "[1020] queue 'q' is full, its buffer_size is 2; raise that, add workers, "
            'or let publishing wait with overflow="wait"'
        )
        await dispatcher.publisher.publish(JOB(Job(3), delay=60))  # not due: takes no room
        assert await dispatcher.control.count() == {(): 3}


async def test_of_two_full_queues_only_the_one_that_says_so_is_waited_for(autojump_clock: object) -> None:
    full: TaskType[Job, None] = TaskType("full", "job", Job)
    async with working(Script(10.0), TaskQueueConfig(concurrency=1, buffer_size=1)) as dispatcher:
        dispatcher.consumer.register_queue("full", TaskQueueConfig(buffer_size=1, overflow="raise"))
        await dispatcher.publisher.publish_many([JOB(Job()), full(Job())])
        await wait_all_tasks_blocked()
        await dispatcher.publisher.publish(JOB(Job()))
        with trio.fail_after(60):
            waited, refused = await dispatcher.publisher.publish_many([JOB(Job()), full(Job())])
        assert waited.error is None
        assert isinstance(refused.error, QueueFullError)
        assert await dispatcher.control.count(Queues("full")) == {(): 1}
        await dispatcher.control.cancel(Queues("full"))



async def test_waiting_publishers_are_served_in_order_of_arrival(autojump_clock: object) -> None:
    handler = Script(1.0)
    async with working(handler, TaskQueueConfig(buffer_size=1)) as dispatcher, trio.open_nursery() as nursery:
        for n in range(20):
            nursery.start_soon(dispatcher.publisher.publish, JOB(Job(n)))
            await wait_all_tasks_blocked()
        await trio.sleep(60)
        await dispatcher.drain()
    assert [task.payload.n for task in handler.seen] == list(range(20))


async def test_what_publishing_answers_says_when_the_task_is_due(autojump_clock: object) -> None:
    async with working() as dispatcher:
        now = await dispatcher.publisher.publish(JOB(Job()))
        later = await dispatcher.publisher.publish(JOB(Job(), delay=60.0))
        moment = datetime(2100, 1, 1, tzinfo=UTC)
        then = await dispatcher.publisher.publish(JOB(Job(), available_at=moment))
        assert now.created_at is not None
        assert later.created_at is not None
        assert now.available_at == now.created_at
        assert later.available_at == later.created_at + timedelta(seconds=60)
        assert then.available_at == moment
        for task in (now, later, then):
            stored = await dispatcher.control.get(task)
            assert (stored.created_at, stored.available_at) == (task.created_at, task.available_at)


async def test_whole_seconds_are_stored_as_floats(autojump_clock: object) -> None:
    async with working() as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(), timeout=5, delay=60))
        await dispatcher.publisher.publish(JOB(Job(), timeout=2.5, delay=0.5))
        stored = (await dispatcher.control.find()).tasks
        assert [repr(task.timeout) for task in stored] == ["5.0", "2.5"]


async def test_a_cancelled_waiting_publish_leaves_nothing(autojump_clock: object) -> None:
    handler = Script(5.0)
    async with working(handler, TaskQueueConfig(buffer_size=1)) as dispatcher:
        for n in range(2):
            await dispatcher.publisher.publish(JOB(Job(n)))
            await wait_all_tasks_blocked()
        with trio.move_on_after(1) as scope:
            await dispatcher.publisher.publish(JOB(Job(99), id="gone"))
        assert scope.cancelled_caught
        await dispatcher.publisher.publish(JOB(Job(3)))  # nobody is in its way
        await dispatcher.drain()
        assert (await dispatcher.control.find()).tasks[0].id != "gone"
    assert [task.payload.n for task in handler.seen] == [0, 1, 3]


async def test_the_ones_behind_a_cancelled_waiter_still_get_their_turn(autojump_clock: object) -> None:
    handler = Script(5.0)
    async with working(handler, TaskQueueConfig(buffer_size=1)) as dispatcher, trio.open_nursery() as nursery:
        scopes = [trio.CancelScope() for _ in range(6)]

        async def publish(n: int) -> None:
            with scopes[n]:
                await dispatcher.publisher.publish(JOB(Job(n)))

        for n in range(6):
            nursery.start_soon(publish, n)
            await wait_all_tasks_blocked()
        scopes[2].cancel()
        scopes[4].cancel()
        await trio.sleep(60)
        await dispatcher.drain()
    assert [task.payload.n for task in handler.seen] == [0, 1, 3, 5]


async def test_publish_many_answers_each_item_and_a_bad_one_spoils_nothing(autojump_clock: object) -> None:
    async with working(nothing) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(0), id="known"))
        answers = await dispatcher.publisher.publish_many([
            JOB(Job(1)),
            JOB("text"),  # type: ignore[arg-type]
            JOB(Job(2), id="known"),
            QueueTask(queue="nowhere", type="job", payload=Job()),
            JOB(Job(3), delay=-1),
            JOB(Job(4)),
        ])
        assert [each.answer for each in answers] == [
            EnqueueAnswer.CREATED, None, EnqueueAnswer.EXISTING, EnqueueAnswer.UNKNOWN_QUEUE, None,
            EnqueueAnswer.CREATED,
        ] or answers[3].answer is None
        assert [getattr(each.error, "code", None) for each in answers] == [None, 1010, None, 1007, 1003, None]
        assert [each.task is not None for each in answers] == [True, False, True, False, False, True]
        assert await dispatcher.publisher.publish_many([]) == []
        await dispatcher.drain()


async def test_a_batch_waits_for_room_in_one_queue_and_not_in_another(autojump_clock: object) -> None:
    elsewhere = TaskType("elsewhere", "job", Job)
    async with working(config=TaskQueueConfig(buffer_size=1)) as dispatcher:
        dispatcher.consumer.register_queue("elsewhere")
        publisher = dispatcher.publisher
        await publisher.publish(JOB(Job()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publisher.publish, JOB(Job()))
            await trio.sleep(1)
            for queues in ([JOB, elsewhere], [elsewhere, JOB]):
                with trio.move_on_after(100):
                    await publisher.publish_many([each(Job(n)) for n in range(3) for each in queues])
            nursery.cancel_scope.cancel()
        assert await dispatcher.control.count(by=("queue",)) == {("q",): 1, ("elsewhere",): 6}


@pytest.mark.parametrize("what", [None, 5, ["id"]])
async def test_only_a_task_or_its_id_is_waited_for(what: Any, autojump_clock: object) -> None:
    async with working() as dispatcher:
        for wait in (dispatcher.publisher.wait, dispatcher.publisher.result):
            with pytest.raises(InvalidQueueTaskError) as caught:
                await wait(what)
            assert caught.value.detail == f"wait: expected a task or its id, got {what!r}"


async def test_others_run_while_a_large_batch_is_prepared_and_the_list_may_change() -> None:
    tasks = [JOB(Job(n)) for n in range(900)]
    steps = 0

    async def other(answered: trio.Event) -> None:
        nonlocal steps
        while not answered.is_set():
            await trio.lowlevel.checkpoint()
            steps += 1
            tasks.clear()

    async with working(nothing) as dispatcher, trio.open_nursery() as nursery:
        answered = trio.Event()
        nursery.start_soon(other, answered)
        answers = await dispatcher.publisher.publish_many(tasks)
        answered.set()
        assert [each.task and each.task.payload for each in answers] == [Job(n) for n in range(900)]
    assert steps >= 5


async def test_a_large_batch_that_is_cancelled_while_it_is_prepared_stores_nothing() -> None:
    async with working() as dispatcher, trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:

            async def cancel() -> None:
                await trio.lowlevel.checkpoint()
                scope.cancel()

            nursery.start_soon(cancel)
            await dispatcher.publisher.publish_many([JOB(Job(n)) for n in range(900)])
        assert scope.cancelled_caught
        assert await dispatcher.control.count() == {}


async def test_publish_many_fills_the_room_there_is(autojump_clock: object) -> None:
    async with working(config=TaskQueueConfig(buffer_size=3, overflow="raise")) as dispatcher:
        answers = await dispatcher.publisher.publish_many([JOB(Job(n)) for n in range(5)])
        assert [each.error and each.error.code for each in answers] == [None, None, None, 1020, 1020]


async def test_publish_many_waits_for_room_and_keeps_the_order(autojump_clock: object) -> None:
    handler = Script(1.0)
    async with working(handler, SMALL) as dispatcher:
        answers = await dispatcher.publisher.publish_many([JOB(Job(n)) for n in range(12)])
        assert all(each.error is None for each in answers)
        await dispatcher.drain()
    assert sorted(task.payload.n for task in handler.seen) == list(range(12))


async def test_an_unknown_queue_is_refused_and_not_created(autojump_clock: object) -> None:
    async with working() as dispatcher:
        with pytest.raises(QueueNotRegisteredError) as caught:
            await dispatcher.publisher.publish(QueueTask(queue="nowhere", type="job", payload=Job()))
        assert str(caught.value) == (
            "[1007] queue 'nowhere' is not registered; registered here: q. "
            "Call consumer.register_queue('nowhere') first"
        )
        assert [record.name for record in await dispatcher.control.queues()] == ["q"]
        dispatcher.consumer.register_queue("nowhere", TaskQueueConfig(concurrency=7))


NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("owned", [
    {"attempt": 1}, {"status": TaskStatus.SUCCEEDED}, {"last_error": "x"},
    {"failure_reason": FailureReason.EXHAUSTED}, {"created_at": NOW}, {"started_at": NOW},
    {"finished_at": NOW}, {"result": 3}, {"worker": "w"}, {"cron": "c"},
])
async def test_what_the_storage_owns_cannot_be_published(owned: dict[str, Any], autojump_clock: object) -> None:
    async with working() as dispatcher:
        with pytest.raises(InvalidQueueTaskError, match=rf"^\[1003\] .*{next(iter(owned))}"):
            await dispatcher.publisher.publish(evolve(JOB(Job()), **owned))
        assert await dispatcher.control.count() in ({}, {(): 0})


async def test_of_task_types_made_up_without_end_the_latest_are_remembered(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "MET_TYPES", 3)
    async with working(nothing) as dispatcher:
        handled = await dispatcher.publisher.publish(JOB(Job(7)))
        made_up = [await dispatcher.publisher.publish(TaskType("q", f"t{n}", Job)(Job(n))) for n in range(5)]
        shown = [(await dispatcher.control.get(each.id)).payload for each in (handled, *made_up)]
    assert shown == [Job(7), {"n": 0}, {"n": 1}, {"n": 2}, Job(3), Job(4)]


async def test_a_stored_task_is_published_again_by_a_copy(autojump_clock: object) -> None:
    handler = Script()
    async with working(handler) as dispatcher:
        stored = await dispatcher.publisher.publish(JOB(Job(5)))
        ended = await dispatcher.publisher.wait(stored)
        with pytest.raises(InvalidQueueTaskError):
            await dispatcher.publisher.publish(ended)
        second = await dispatcher.publisher.publish(ended.again())
        assert second.id != stored.id
        await dispatcher.drain()
    assert [task.payload for task in handler.seen] == [Job(5), Job(5)]


def test_a_copy_to_publish_is_due_at_once_and_keeps_the_other_options() -> None:
    options: dict[str, Any] = {"key": "k", "headers": {"h": "1"}, "tags": ("x",), "max_retry": 3, "timeout": 5.0}
    later = JOB(Job(5), available_at=datetime(2030, 1, 1, tzinfo=UTC), **options)
    assert later.again() == JOB(Job(5), delay=60.0, **options).again() == JOB(Job(5), **options)
    assert evolve(later.again(), delay=60.0) == JOB(Job(5), delay=60.0, **options)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
@pytest.mark.parametrize("headers", [{}, {"h": "1"}])
def test_a_task_can_be_copied_pickled_and_kept_in_a_set(copied: Any, headers: dict[str, str]) -> None:
    task = VERSIONED(Job(5), headers=headers, tags=("x",), unique=Unique(key="k"))
    other = copied(task)
    assert other == task
    assert other.declared == VERSIONED
    assert {task, other} == {task}
    assert len({task, evolve(task, id="other")}) == 2
    with pytest.raises(TypeError):
        other.headers["h"] = "2"


def test_a_deep_copy_of_a_task_shares_no_payload_and_hashes_though_that_cannot() -> None:
    order = Order(lines=[Line(1)])
    task = TaskType("q", "order", Order)(order)
    other = copy.deepcopy(task)
    order.lines.append(Line(2))
    assert (len(task.payload.lines), len(other.payload.lines)) == (2, 1)
    assert hash(task) == hash(other)
    with pytest.raises(TypeError, match="unhashable"):
        hash(order)


@frozen
class Line:
    qty: int


@define
class Order:
    name: str = ""
    lines: list[Line] = field(factory=list)


ORDER = TaskType("q", "order", Order)


@pytest.mark.parametrize(("payload", "path"), [
    (Order("a", [Line(1), Line("two")]), "$.lines[1].qty"),  # type: ignore[arg-type]
    (Order(3), "$.name"),  # type: ignore[arg-type]
    (Job(1), "$"),
    (None, "$"),
])
async def test_a_payload_of_another_class_is_refused_with_the_path(
    payload: Any, path: str, autojump_clock: object
) -> None:
    async with working() as dispatcher:
        with pytest.raises(InvalidQueuePayloadError, match=r"^\[1010\] ") as caught:
            await dispatcher.publisher.publish(ORDER(payload))
        assert caught.value.path == path


async def test_a_later_change_by_the_publisher_does_not_reach_the_handler(autojump_clock: object) -> None:
    seen: list[tuple[Order, dict[str, str]]] = []

    async def handler(task: QueueTask[Order]) -> None:
        task.payload.lines.clear()  # nor does the handler's reach the publisher, or the next attempt
        seen.append((task.payload, dict(task.headers)))

    async with working(handler, task_type=ORDER) as dispatcher:
        order, headers = Order("a", [Line(1)]), {"h": "1"}
        stored = await dispatcher.publisher.publish(ORDER(order, headers=headers))
        order.name, headers["h"] = "changed", "2"
        await dispatcher.drain()
    assert seen == [(Order("a", []), {"h": "1"})]
    assert stored.payload == Order("a", [Line(1)])
    assert order.lines == [Line(1)]


def in_asyncio(function: Callable[..., Any], *args: Any) -> Any:
    return asyncio.run(function(*args))


def without_a_loop(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args).send(None)


@pytest.mark.parametrize("how", [trio.run, in_asyncio, without_a_loop])
@pytest.mark.parametrize("storage", ["memory", "sqlite"])
async def test_another_thread_is_told_the_way_in_before_it_stores_anything(
    storage: str, how: Callable[..., Any], tmp_path: Path
) -> None:
    url = "memory:" if storage == "memory" else f"sqlite:///{tmp_path / 'jobs.db'}"
    async with open_dispatcher(url) as dispatcher:
        dispatcher.consumer.register_queue("q")
        dispatcher.consumer.register_handler(JOB, nothing)
        publisher, control = dispatcher.publisher, dispatcher.control
        await publisher.result(await publisher.publish(JOB(Job(1))))  # so that an actor is at rest
        why = "called from outside the trio run that it is open in; from another thread use trio.from_thread.run("
        for call in (
            partial(publisher.publish, JOB(Job(2))),
            partial(publisher.publish_many, [JOB(Job(2))]),
            partial(control.pause_queue, "q"),
            control.count,
            dispatcher.drain,
        ):
            with pytest.raises(InvalidConfigError, match=re.escape(why)):
                await trio.to_thread.run_sync(how, call, abandon_on_cancel=True)
        assert await control.count(by=("status",)) == {("succeeded",): 1}
        token = trio.lowlevel.current_trio_token()
        way_in = partial(trio.from_thread.run, publisher.publish, JOB(Job(3)), trio_token=token)
        await publisher.result(await trio.to_thread.run_sync(way_in))
        await publisher.result(await publisher.publish(JOB(Job(4))))


def test_a_storage_in_memory_that_nobody_works_on_is_for_one_run_after_another() -> None:
    async def work() -> None:
        async with working(nothing, storage=storage) as dispatcher:
            await dispatcher.drain()

    async def in_a_thread() -> None:
        await trio.to_thread.run_sync(trio.run, publisher.publish, JOB(Job()))

    storage = MemoryStorage()
    publisher = TaskQueuePublisher(storage)
    trio.run(work)
    trio.run(publisher.publish, JOB(Job()))
    trio.run(in_a_thread)
    trio.run(work)
    assert storage.statistics().finished == 2


async def test_publishing_into_a_queue_that_was_removed_since_says_so(autojump_clock: object) -> None:
    async with working(queues=()) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.control.cancel(task)
        await dispatcher.control.prune(PruneSpec(keep=0))
        await dispatcher.control.remove_queue("q")
        with pytest.raises(QueueNotRegisteredError) as caught:
            await dispatcher.publisher.publish(JOB(Job()))
        assert str(caught.value) == (
            "[1007] queue 'q' was removed since it was registered here; "
            "start this program anew to register it again, or publish elsewhere"
        )
