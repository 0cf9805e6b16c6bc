"""Publishing: after the end, twice, uniquely, and from inside a handler."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import pytest
import trio

from dispatch import (
    ClosedError,
    Dispatcher,
    DuplicateTaskError,
    MemoryStorage,
    OnClash,
    QueueTask,
    TaskQueueConfig,
    TaskStatus,
    TaskType,
    Unique,
)

from .work import ASK, JOB, Answer, Job, Script, nothing, working


async def test_a_seed_of_the_application_gives_no_two_tasks_one_id(autojump_clock: object) -> None:
    ran: list[int] = []

    async def simulate(task: QueueTask[Job]) -> None:
        random.seed(42)
        if task.payload.n < 100:
            await dispatcher.publisher.publish(JOB(Job(task.payload.n + 100)))
        else:
            ran.append(task.payload.n)

    async with working(simulate, TaskQueueConfig(concurrency=8)) as dispatcher:
        await dispatcher.publisher.publish_many([JOB(Job(n)) for n in range(100)])
        await dispatcher.drain()
    assert sorted(ran) == list(range(100, 200))


def test_a_fork_gives_other_ids() -> None:
    code = (
        "import os\nfrom dispatch.ids import new_id\nread, write = os.pipe()\n"
        "if os.fork() == 0:\n    os.write(write, new_id(1.0).encode())\n    os._exit(0)\n"
        "assert os.read(read, 100).decode() != new_id(1.0)\n"
    )
    done = subprocess.run(  # noqa: S603 - our own text
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


async def test_publishing_after_the_end_is_refused(autojump_clock: object) -> None:
    async with working() as dispatcher:
        pass
    with pytest.raises(ClosedError, match=r"^\[1013\] publish: "):
        await dispatcher.publisher.publish(JOB(Job()))
    with pytest.raises(ClosedError, match=r"^\[1013\] publish"):
        await dispatcher.publisher.publish_many([JOB(Job())])


async def test_a_publisher_that_waits_for_room_is_told_when_it_closes(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        async with working(config=TaskQueueConfig(buffer_size=1)) as dispatcher:
            await dispatcher.publisher.publish(JOB(Job()))
            refused: list[ClosedError] = []

            async def publish() -> None:
                try:
                    await dispatcher.publisher.publish(JOB(Job()))
                except ClosedError as exc:
                    refused.append(exc)

            nursery.start_soon(publish)
            await trio.sleep(1)
        await trio.sleep(1)
        assert [str(each) for each in refused] == [
            "[1013] publish: the publisher was closed while it waited for room; nothing was stored"
        ]


async def test_publishing_one_id_twice_stores_it_once(autojump_clock: object) -> None:
    handler = Script()
    async with working(handler) as dispatcher:
        first = await dispatcher.publisher.publish(JOB(Job(1), id="mine"))
        second = await dispatcher.publisher.publish(JOB(Job(2), id="mine"))
        assert (second.id, second.payload, second.created_at) == ("mine", Job(1), first.created_at)
        await dispatcher.drain()
        ended = await dispatcher.publisher.publish(JOB(Job(3), id="mine"))
        assert (ended.status, ended.attempt) == (TaskStatus.SUCCEEDED, 1)
    assert [task.payload for task in handler.seen] == [Job(1)]


async def test_unique_keeps_rejects_replaces_or_supersedes(autojump_clock: object) -> None:
    async with working(nothing) as dispatcher:
        publish = dispatcher.publisher.publish
        first = await publish(JOB(Job(1), delay=10, unique=Unique(key="k")))
        assert (await publish(JOB(Job(2), unique=Unique(key="k")))).id == first.id
        with pytest.raises(DuplicateTaskError) as caught:
            await publish(JOB(Job(3), unique=Unique(key="k", on_clash=OnClash.REJECT)))
        assert caught.value.existing_id == first.id
        assert str(caught.value) == (
            f"[1011] task q/job: task {first.id} is in its way, and unique says to reject"
        )
        replaced = await publish(JOB(Job(4), unique=Unique(key="k", on_clash=OnClash.REPLACE)))
        assert (replaced.id, replaced.payload) == (first.id, Job(4))
        newer = await publish(JOB(Job(5), unique=Unique(key="k", on_clash=OnClash.SUPERSEDE)))
        assert newer.id != first.id
        gone = await dispatcher.control.get(first)
        assert (gone.status, gone.last_error) == (TaskStatus.CANCELLED, f"superseded by task {newer.id}")
        await dispatcher.drain()
        free = await publish(JOB(Job(6), unique=Unique(key="k")))  # the last one is over
        assert free.id not in (first.id, newer.id)
        await dispatcher.drain()


async def test_two_publishers_of_one_unique_task_store_it_once(autojump_clock: object) -> None:
    handler = Script()
    async with working(handler) as dispatcher, trio.open_nursery() as nursery:
        for n in range(10):
            nursery.start_soon(dispatcher.publisher.publish, JOB(Job(n), delay=1.0, unique=Unique(key="k")))
        await trio.sleep(5)
    assert len(handler.seen) == 1


async def test_a_debounce_moves_the_task_on(autojump_clock: object) -> None:
    handler = Script()
    unique = Unique(key="k", on_clash=OnClash.REPLACE, replace=frozenset({"payload", "available_at"}))
    async with working(handler) as dispatcher:
        began = trio.current_time()
        for n in range(4):
            await dispatcher.publisher.publish(JOB(Job(n), delay=5.0, unique=unique))
            await trio.sleep(2)
        await dispatcher.drain()
    assert [task.payload.n for task in handler.seen] == [3]
    assert handler.times == [pytest.approx(began + 11, abs=0.1)]


async def test_a_handler_publishing_into_its_own_full_queue_does_not_deadlock(autojump_clock: object) -> None:
    """Fault G6: one actor, room for one, two children each to depth ten."""
    done = 0
    dispatcher: Dispatcher

    async def handler(task: QueueTask[Job]) -> None:
        nonlocal done
        if task.payload.n < 10:
            for _ in range(2):
                await dispatcher.publisher.publish(JOB(Job(task.payload.n + 1)))
        done += 1

    async with working(handler, TaskQueueConfig(concurrency=1, buffer_size=1)) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(0)))
        await dispatcher.drain()
    assert done == 2_047


async def test_children_published_with_success_only_pass_a_full_queue_too(autojump_clock: object) -> None:
    done = 0

    async def handler(task: QueueTask[Job], run: Any) -> None:
        nonlocal done
        if task.payload.n < 6:
            for _ in range(2):
                await run.publish(JOB(Job(task.payload.n + 1)))
        done += 1

    async with working(handler, TaskQueueConfig(concurrency=1, buffer_size=1)) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(0)))
        await dispatcher.drain()
    assert done == 127


async def test_a_trio_task_started_by_a_handler_publishes_as_its_handler_does(autojump_clock: object) -> None:
    dispatcher: Dispatcher
    done: list[int] = []

    async def handler(task: QueueTask[Job]) -> None:
        if task.payload.n == 0:
            async with trio.open_nursery() as nursery:
                for n in range(1, 5):
                    nursery.start_soon(dispatcher.publisher.publish, JOB(Job(n)))
        done.append(task.payload.n)

    async with working(handler, TaskQueueConfig(buffer_size=1), storage=MemoryStorage()) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(0)))
        await dispatcher.drain()
    assert sorted(done) == [0, 1, 2, 3, 4]


async def test_an_id_that_another_type_has_taken_is_refused(autojump_clock: object) -> None:
    async with working(nothing) as dispatcher:
        first = await dispatcher.publisher.publish(JOB(Job(1), id="order-7", delay=9))
        with pytest.raises(DuplicateTaskError) as refused:
            await dispatcher.publisher.publish(ASK(Job(2), id="order-7"))
        assert str(refused.value) == (
            "[1011] task q/ask: its id 'order-7' is that of a task of q/job, and ids are unique over all queues; "
            "put the type into it, as in 'ask-order-7'"
        )
        [there, taken] = await dispatcher.publisher.publish_many([JOB(Job(3), id="order-7"), ASK(Job(4), id="order-7")])
        assert there.task is not None
        assert (there.task.payload, there.error) == (first.payload, None)
        assert isinstance(taken.error, DuplicateTaskError)
        assert await dispatcher.control.count() == {(): 1}


PAY = TaskType("q", "pay", Job, Answer)


async def test_a_clash_with_another_type_is_shown_as_what_it_is(autojump_clock: object) -> None:
    async def pay(task: QueueTask[Job]) -> Answer:
        return Answer(task.payload.n)

    async with working(nothing) as dispatcher:
        dispatcher.consumer.register_handler(PAY, pay)
        publisher = dispatcher.publisher
        unique = Unique(key="order 7", scope="queue")
        paid = await publisher.publish(PAY(Job(7), unique=unique))
        kept: QueueTask[Job, Any] = await publisher.publish(JOB(Job(8), unique=unique))
        assert (kept.id, kept.type, kept.declared) == (paid.id, "pay", PAY)
        assert (await publisher.wait(kept)).result == Answer(7)


async def test_a_payload_does_not_replace_that_of_another_type(autojump_clock: object) -> None:
    async with working() as dispatcher:
        publisher = dispatcher.publisher
        unique = Unique(key="order 7", scope="queue", on_clash="replace")
        paid = await publisher.publish(PAY(Job(7), unique=unique))
        with pytest.raises(DuplicateTaskError) as caught:
            await publisher.publish(JOB(Job(8), unique=unique))
        assert caught.value.existing_id == paid.id
        assert caught.value.detail == (
            f"task q/job: task {paid.id} is in its way, and a payload is not written into a task of another type, "
            'q/pay; give unique scope="type", or on_clash="supersede"'
        )
        assert (await dispatcher.control.get(paid)).payload == Job(7)
