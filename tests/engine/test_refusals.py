"""What is refused at once, and leaves nothing behind: the wrong thread, two at once, things of another kind."""

# mypy: disable-error-code="arg-type"
# pyright: reportArgumentType=false
# What a type checker refuses is what is handed in here.

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from dispatch import (
    ClosedError,
    CronTaskDispatcher,
    Dispatcher,
    InvalidConfigError,
    InvalidQueueNameError,
    InvalidQueueTaskError,
    MemoryStorage,
    QueueTask,
    Run,
    Task,
    TaskDispatcher,
    TaskQueueConsumer,
    TaskQueueControl,
    TaskQueuePublisher,
    TaskStatus,
    TaskType,
    open_dispatcher,
)
from dispatch.storage.query import All, PruneSpec

from .work import JOB, Job, nothing, working

# ---- another thread ---------------------------------------------------------------

LATE = TaskType("late", "job", Job)
SYNC_CALLS: list[tuple[Callable[[Dispatcher], Any], Callable[[Dispatcher], object], str]] = [
    (lambda d: d, lambda d: d.close(), "dispatcher.close"),
    (lambda d: d.consumer, lambda d: d.consumer.close(), "consumer.close"),
    (lambda d: d.consumer, lambda d: d.consumer.register_queue("late"), "consumer.register_queue, name, config"),
    (
        lambda d: d.consumer,
        lambda d: d.consumer.register_handler(LATE, nothing),
        "consumer.register_handler, task_type, handler",
    ),
    (lambda d: d.cron, lambda d: d.cron.close(), "cron.close"),
    (lambda d: d.pool, lambda d: d.pool.close(), "pool.close"),
    (lambda d: d.pool, lambda d: d.pool.run(trio.sleep, 0), "pool.run, function"),
    (lambda d: d.pool, lambda d: d.pool.run_task(Task(trio.sleep, (0,))), "pool.run_task, task"),
    (lambda d: d.pool, lambda d: d.pool.resize(3), "pool.resize, size"),
]


@pytest.mark.parametrize(("part", "call", "way"), SYNC_CALLS, ids=[each[2] for each in SYNC_CALLS])
async def test_a_sync_call_in_another_thread_is_told_the_way_in_and_changes_nothing(
    part: Callable[[Dispatcher], Any], call: Callable[[Dispatcher], object], way: str
) -> None:
    done: list[int] = []

    async def count() -> None:
        done.append(1)

    with trio.fail_after(10):
        async with working(nothing) as dispatcher:
            await trio.testing.wait_all_tasks_blocked()
            known = repr(part(dispatcher))
            with pytest.raises(InvalidConfigError) as caught:
                await trio.to_thread.run_sync(call, dispatcher)
            assert caught.value.detail == (
                f"{known}: called from outside the trio run that it is open in; "
                f"from another thread use trio.from_thread.run_sync({way})"
            )
            assert repr(part(dispatcher)) == known
            # What was refused there is done here, and what it would have broken works.
            dispatcher.consumer.register_queue("late")
            dispatcher.consumer.register_handler(LATE, nothing)
            ended = await dispatcher.publisher.wait(await dispatcher.publisher.publish(LATE(Job())))
            assert ended.status is TaskStatus.SUCCEEDED
            await dispatcher.pool.run(count).wait()
            await dispatcher.pool.drain()
            assert dispatcher.pool.statistics().finished == len(done) == 1


@pytest.mark.parametrize("asked", ["wait", "result", "drain", "subscribe"])
async def test_who_waits_in_a_trio_run_of_their_own_is_refused_and_breaks_nothing(asked: str) -> None:
    async def elsewhere() -> None:
        with trio.move_on_after(1):
            match asked:
                case "wait":
                    await task.wait()
                case "result":
                    await task.result()
                case "drain":
                    await dispatcher.pool.drain()
                case _:
                    async with dispatcher.subscribe():
                        pass

    def thread() -> None:
        with pytest.raises(InvalidConfigError, match=r"from another thread use trio\.from_thread\.run"):
            trio.run(elsewhere)

    with trio.fail_after(10):
        async with working(nothing) as dispatcher:
            task = dispatcher.pool.run(trio.sleep, 0.2)
            await trio.to_thread.run_sync(thread)
            await task.wait()
            published = await dispatcher.publisher.publish(JOB(Job()))
            assert (await dispatcher.publisher.wait(published)).status is TaskStatus.SUCCEEDED


async def test_a_pool_task_that_is_waited_for_in_another_trio_run_is_not_taken() -> None:
    task, waits, over = Task(trio.sleep, (0,)), threading.Event(), threading.Event()

    async def elsewhere() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task.wait)
            await trio.testing.wait_all_tasks_blocked()
            waits.set()
            await trio.to_thread.run_sync(over.wait)
            nursery.cancel_scope.cancel()

    async with working(nothing) as dispatcher:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, trio.run, elsewhere)
            await trio.to_thread.run_sync(waits.wait)
            with pytest.raises(InvalidConfigError, match="is waited for in another trio run, which could not be woken"):
                dispatcher.pool.run_task(task)
            assert dispatcher.pool.statistics().queued == 0
            over.set()
        with trio.fail_after(10):
            await dispatcher.pool.run_task(task).wait()


async def test_a_sync_handler_goes_the_way_that_it_was_told() -> None:
    done: list[str] = []

    async def mail() -> None:
        done.append("mail")

    def handler(_: QueueTask[Job]) -> None:
        trio.from_thread.run_sync(dispatcher.pool.run, mail)
        trio.from_thread.run_sync(dispatcher.consumer.register_queue, "late")
        trio.from_thread.run_sync(dispatcher.close)

    with trio.fail_after(10):
        async with working(handler) as dispatcher:
            task = await dispatcher.publisher.publish(JOB(Job()))
            assert (await dispatcher.publisher.wait(task)).status is TaskStatus.SUCCEEDED
    assert done == ["mail"]


async def test_a_publisher_that_somebody_waits_at_is_closed_in_their_thread() -> None:
    async with working() as dispatcher:
        publisher = dispatcher.publisher
        task = await publisher.publish(JOB(Job()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publisher.wait, task)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(InvalidConfigError) as caught:
                await trio.to_thread.run_sync(publisher.close)
            assert caught.value.detail == (
                f"{publisher!r}: called from outside the trio run that it is open in; "
                "from another thread use trio.from_thread.run_sync(publisher.close)"
            )
            nursery.cancel_scope.cancel()
        await publisher.publish(JOB(Job()))
        await trio.to_thread.run_sync(publisher.close)  # now it wakes nobody


async def test_what_has_ended_is_closed_again_anywhere() -> None:
    async with open_dispatcher() as dispatcher:
        pass
    for part in (dispatcher, dispatcher.consumer, dispatcher.cron, dispatcher.pool, dispatcher.publisher):
        await trio.to_thread.run_sync(part.close)


# ---- two at once ------------------------------------------------------------------


def parts() -> list[tuple[Any, Callable[..., Any], str, str]]:
    """Each with how it is run, and what a second and a later run are told."""
    storage = MemoryStorage()
    consumer, cron, pool = TaskQueueConsumer(storage), CronTaskDispatcher(storage), TaskDispatcher(2)
    consumer.register_queue("q")
    closed = "run: this consumer is closed; make another one"
    return [
        (consumer, consumer.run, "this consumer runs already", closed),
        (cron, cron.run, "this cron dispatcher runs already", "this cron dispatcher is closed; make another one"),
        (pool, pool.run_pool, "pool: it runs already", "pool: it has ended; make another TaskDispatcher"),
    ]


@pytest.mark.parametrize("which", [0, 1, 2], ids=["consumer", "cron", "pool"])
async def test_of_two_runs_at_once_the_first_goes_on_and_the_second_is_refused(
    autojump_clock: object, which: int
) -> None:
    part, run, already, over = parts()[which]
    refused: list[str] = []
    ended: list[int] = []

    async def one(number: int) -> None:
        try:
            await run()
            ended.append(number)
        except ClosedError as exc:
            refused.append(exc.detail)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, 1)
            nursery.start_soon(one, 2)
            await trio.sleep(1)
            assert (refused, ended) == ([already], [])
            part.close()
        assert len(ended) == 1
        await one(3)
    assert refused == [already, over]


async def test_the_first_of_two_consumers_still_works(autojump_clock: object) -> None:
    storage = MemoryStorage()
    consumer = TaskQueueConsumer(storage)
    consumer.register_queue("q")
    consumer.register_handler(JOB, nothing)
    publisher = TaskQueuePublisher(storage)

    async def one() -> None:
        with suppress(ClosedError):
            await consumer.run()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            nursery.start_soon(one)
            await trio.sleep(1)
            task = await publisher.publish(JOB(Job()))
            assert (await publisher.wait(task)).status is TaskStatus.SUCCEEDED
            consumer.close()


# ---- what control and run are given -----------------------------------------------

BY_ID: list[tuple[str, Callable[[Dispatcher, Any], Awaitable[object]]]] = [
    ("get", lambda d, task: d.control.get(task)),
    ("history", lambda d, task: d.control.history(task)),
    ("edit", lambda d, task: d.control.edit(task)),
    ("wait", lambda d, task: d.publisher.wait(task)),
    ("cancel", lambda d, task: d.control.cancel(task)),
    ("hold", lambda d, task: d.control.hold(task)),
    ("resume", lambda d, task: d.control.resume(task)),
    ("rerun", lambda d, task: d.control.rerun(task)),
]


@pytest.mark.parametrize(("what", "call"), BY_ID, ids=[each[0] for each in BY_ID])
async def test_a_task_that_was_never_published_is_named_and_not_quietly_passed_over(
    what: str, call: Callable[[Dispatcher, Any], Awaitable[object]]
) -> None:
    async with working() as dispatcher:
        for never in (JOB(Job()), ""):
            with pytest.raises(InvalidQueueTaskError) as caught:
                await call(dispatcher, never)
            assert caught.value.detail == f"{what}: this task was never published; give what publish() returned"


@pytest.mark.parametrize(("what", "call"), BY_ID[:4], ids=[each[0] for each in BY_ID[:4]])
@pytest.mark.parametrize("given", [None, 5, ["x"]])
async def test_a_task_is_given_itself_or_by_its_id(
    what: str, call: Callable[[Dispatcher, Any], Awaitable[object]], given: Any
) -> None:
    async with working() as dispatcher:
        with pytest.raises(InvalidQueueTaskError) as caught:
            await call(dispatcher, given)
        assert caught.value.detail == f"{what}: expected a task or its id, got {given!r}"


NUMBERS: list[tuple[Callable[[TaskQueueControl], Awaitable[object]], str]] = [
    (lambda c: c.cancel(All(), limit="2"), "cancel: limit must be a whole number, got '2'"),
    (lambda c: c.hold(All(), limit=1.5), "hold: limit must be a whole number, got 1.5"),
    (lambda c: c.rerun(All(), limit=-1), "rerun: limit must be at least 0, got -1"),
    (lambda c: c.resume(All(), limit=True), "resume: limit must be a whole number, got True"),
    (lambda c: c.cancel(All(), dry_run="no"), "cancel: dry_run must be True or False, got 'no'"),
    (lambda c: c.hold(All(), dry_run=None), "hold: dry_run must be True or False, got None"),
    (lambda c: c.remove_queue("q", dry_run="no"), "remove_queue: dry_run must be True or False, got 'no'"),
    (lambda c: c.prune(PruneSpec(age_s=0.0), dry_run="no"), "prune: dry_run must be True or False, got 'no'"),
    (lambda c: c.count(bound=1.5), "count: bound must be a whole number, got 1.5"),
    (lambda c: c.count(bound="x"), "count: bound must be a whole number, got 'x'"),
    (lambda c: c.count(bound=0), "count: bound must be at least 1, got 0"),
]


@pytest.mark.parametrize(("call", "why"), NUMBERS, ids=[each[1] for each in NUMBERS])
async def test_a_bound_or_a_flag_of_another_kind_is_refused_alike_over_every_storage(
    call: Callable[[TaskQueueControl], Awaitable[object]], why: str, tmp_path: Path
) -> None:
    for url in ("memory:", f"sqlite:///{tmp_path / 'jobs.db'}"):
        async with open_dispatcher(url) as dispatcher:
            dispatcher.consumer.register_queue("q")
            task = await dispatcher.publisher.publish(JOB(Job()))
            with pytest.raises(InvalidConfigError) as caught:
                await call(dispatcher.control)
            assert caught.value.detail == why
            assert await dispatcher.control.cancel(All(), limit=0) == []
            assert (await dispatcher.control.get(task)).status is TaskStatus.PENDING


@pytest.mark.parametrize("name", [5, None, ["x"]])
async def test_a_queue_is_named_by_a_str(name: Any, tmp_path: Path) -> None:
    for url in ("memory:", f"sqlite:///{tmp_path / 'jobs.db'}"):
        async with open_dispatcher(url) as dispatcher:
            control = dispatcher.control
            for call in (
                control.pause_queue,
                control.resume_queue,
                control.remove_queue,
                partial(control.set_concurrency, concurrency=1),
            ):
                with pytest.raises(InvalidQueueNameError) as caught:
                    await call(name)
                assert caught.value.detail == f"queue name must be a str, got {name!r}"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (("x",), "fraction must be within 0 and 1, got 'x'"),
        ((True,), "fraction must be within 0 and 1, got True"),
        ((1.5,), "fraction must be within 0 and 1, got 1.5"),
        ((0.5, 5), "message must be a str, got 5"),
        ((None, None), "message must be a str, got None"),
    ],
)
async def test_progress_is_a_fraction_and_words(given: tuple[Any, ...], why: str) -> None:
    async def handler(_: QueueTask[Job], run: Run) -> None:
        await run.progress(*given)

    async with working(handler) as dispatcher:
        ended = await dispatcher.publisher.wait(await dispatcher.publisher.publish(JOB(Job())))
    assert ended.last_error == f"InvalidConfigError: [1012] progress: {why}"


def test_a_task_that_no_publish_would_take_shows_itself_all_the_same() -> None:
    assert repr(JOB(Job(1), id=5)) == "<QueueTask q/job 5 pending>"  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    task: Any = QueueTask(queue=1, type=None, payload=3, status=7, key=4, last_error=6)  # type: ignore[arg-type] # pyright: ignore
    assert repr(task) == "<QueueTask 1/None unpublished 7 key=4 last_error=6>"
