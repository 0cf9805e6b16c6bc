"""The holes of the Go package that have no better place; the rest are tested where they belong.

Elsewhere: shutdown (test_shutdown), unknown queue, full buffer and deadlock (test_publishing and
test_publishing_identity), panic (test_faults), late success and zero retries (test_execution),
dead letters (test_control), cron (test_go_cron), pool (test_go_pool).
"""

from __future__ import annotations

import pytest
import trio

from dispatch import InvalidQueuePayloadError, MemoryStorage, QueueTask, TaskQueueConfig, TaskStatus

from .work import JOB, Job, Script, working


async def test_a_task_that_comes_before_its_handler_waits_for_it(autojump_clock: object) -> None:
    handler = Script()
    async with working() as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job(1)))
        await trio.sleep(100)
        assert (await dispatcher.control.get(task)).status is TaskStatus.PENDING
        dispatcher.consumer.register_handler(JOB, handler)
        await dispatcher.drain()
    assert len(handler.seen) == 1


async def test_delayed_and_retrying_tasks_are_kept_counted_and_cancellable(autojump_clock: object) -> None:
    storage = MemoryStorage()
    async with working(Script(ValueError("x")), TaskQueueConfig(max_retry=1, retry_delay=50.0), storage=storage) as d:
        retrying = await d.publisher.publish(JOB(Job(1)))
        delayed = await d.publisher.publish(JOB(Job(2), delay=50.0))
        await trio.sleep(1)
        assert await d.control.count(by=("status",)) == {("later",): 2}
        assert await d.control.cancel(delayed) == [delayed.id]
    handler = Script()
    async with working(handler, storage=storage) as d:
        await d.drain()
    assert [task.id for task in handler.seen] == [retrying.id]


async def test_a_key_orders_the_tasks_that_share_it(autojump_clock: object) -> None:
    order: list[tuple[str | None, int]] = []

    async def handler(task: QueueTask[Job]) -> None:
        await trio.sleep(5 if task.payload.n == 0 else 1)
        order.append((task.key, task.payload.n))

    async with working(handler, TaskQueueConfig(concurrency=8, keyed=True)) as dispatcher:
        for n in range(4):
            for key in ("a", "b"):
                await dispatcher.publisher.publish(JOB(Job(n), key=key))
        await dispatcher.drain()
    assert [n for key, n in order if key == "a"] == [0, 1, 2, 3] == [n for key, n in order if key == "b"]


async def test_an_empty_payload_is_an_error_and_not_zero_values(autojump_clock: object) -> None:
    async with working() as dispatcher:
        with pytest.raises(InvalidQueuePayloadError):
            await dispatcher.publisher.publish(QueueTask(queue="q", type="job", payload=None, declared=JOB))
