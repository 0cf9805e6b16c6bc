"""Go's pool, `TaskDispatcher`: run, status, error, and what Go's lacks."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import AsyncGenerator, Callable, Generator
from contextvars import ContextVar
from typing import Any

import pytest
import trio

from dispatch import (
    ClosedError,
    InvalidConfigError,
    InvalidTaskHandlerError,
    Task,
    TaskDispatcher,
    errors,
    open_dispatcher,
)
from dispatch.pool import PoolStatus


async def test_run_gives_a_task_that_passes_from_queue_to_running_to_finish(autojump_clock: object) -> None:
    async def work(n: int) -> int:
        await trio.sleep(1)
        return n * 2

    async with open_dispatcher(pool_size=1) as dispatcher:
        first, second = dispatcher.pool.run(work, 1), dispatcher.pool.run(work, 2)
        assert (first.status, second.status) == (PoolStatus.RUNNING, PoolStatus.QUEUE)
        await first.wait()
        assert (first.status, first.value, first.error) == (PoolStatus.FINISH, 2, None)
        assert await second.result() == 4
        assert [status.value for status in PoolStatus] == ["queue", "running", "finish"]


async def test_run_task_takes_a_task_made_by_hand_once(autojump_clock: object) -> None:
    async with open_dispatcher() as dispatcher:
        task = dispatcher.pool.run_task(Task(trio.sleep, (1,), "nap"))
        with pytest.raises(errors.InvalidTaskHandlerError) as caught:
            dispatcher.pool.run_task(task)
        assert str(caught.value) == (
            "[1009] pool: <Task nap running> was given to a pool already; make another Task"
        )
        await task.wait()
        assert repr(task) == "<Task nap finish>"


async def test_an_exception_is_the_tasks_error_and_the_pool_goes_on(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async def bad(error: BaseException) -> None:
        raise error

    async with open_dispatcher() as dispatcher:
        for error in (ValueError("v"), SystemExit(3), GeneratorExit(), ExceptionGroup("g", [OSError("o")])):
            task = dispatcher.pool.run(bad, error)
            await task.wait()
            assert task.error is error
        with pytest.raises(ValueError, match=r"^v$"):
            await dispatcher.pool.run(bad, ValueError("v")).result()
        assert dispatcher.pool.statistics().failed == 5
    assert "pool task" in caplog.text


async def test_a_keyboard_interrupt_is_recorded_and_reaches_the_application(autojump_clock: object) -> None:
    async def bad() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the block is what is tested
        async with open_dispatcher() as dispatcher:
            task = dispatcher.pool.run(bad)
            await trio.sleep_forever()
    assert isinstance(task.error, KeyboardInterrupt)


async def test_resizing_up_starts_waiting_work_and_down_lets_running_work_finish(autojump_clock: object) -> None:
    pool = TaskDispatcher(1)
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run_pool)
        tasks = [pool.run(trio.sleep, 10) for _ in range(8)]
        assert pool.statistics().running == 1
        pool.resize(4)
        assert pool.statistics().running == 4
        pool.resize(2)
        assert pool.statistics().running == 4
        await tasks[0].wait()
        await trio.testing.wait_all_tasks_blocked()
        assert pool.statistics().running == 2
        await pool.drain()
        assert {task.status for task in tasks} == {PoolStatus.FINISH}
        pool.close()


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "2", None])
async def test_a_pool_that_could_run_nothing_is_refused(value: Any) -> None:
    told = re.escape(f"must be a whole number of at least 1, got {value!r}")
    with pytest.raises(InvalidConfigError, match=f"pool: size {told}"):
        TaskDispatcher(value)
    with pytest.raises(InvalidConfigError, match=f"pool: buffer_size {told}"):
        TaskDispatcher(1, buffer_size=value)
    pool = TaskDispatcher(1)
    with pytest.raises(InvalidConfigError, match=f"pool: size {told}"):
        pool.resize(value)


async def test_the_queue_is_bounded_and_what_is_refused_is_not_run(autojump_clock: object) -> None:
    pool = TaskDispatcher(1, buffer_size=2)
    pool.run(trio.sleep, 1)
    pool.run(trio.sleep, 1)
    with pytest.raises(errors.QueueFullError) as caught:
        pool.run(trio.sleep, 1)
    assert str(caught.value) == "[1020] pool: 2 tasks are queued, its buffer_size; sleep was not run"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run_pool)
        await trio.testing.wait_all_tasks_blocked()
        await pool.drain()
        assert pool.statistics().finished == 2
        pool.close()


async def test_closing_finishes_what_is_queued_within_the_grace(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_dispatcher(pool_size=1, grace=5.0) as dispatcher:
        short = dispatcher.pool.run(trio.sleep, 2)
        long = dispatcher.pool.run(trio.sleep, 60)
        never = dispatcher.pool.run(trio.sleep, 1)
    assert short.error is None
    assert str(long.error) == "[1013] pool: it closed while this task ran, which was cancelled"
    assert str(never.error) == "[1013] pool: it closed before this task ran"
    assert "pool: closed with 1 queued tasks that never ran" in caplog.messages
    with pytest.raises(ClosedError, match=r"^\[1013\] pool: it is closed and takes no more work; sleep was not run$"):
        dispatcher.pool.run(trio.sleep, 1)


async def test_an_idle_pool_does_nothing(autojump_clock: object) -> None:
    class Steps(trio.abc.Instrument):
        count = 0

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            self.count += 1

    async with trio.open_nursery() as nursery:
        pool = TaskDispatcher()
        await nursery.start(pool.run_pool)
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        await trio.sleep(3_600)
        trio.lowlevel.remove_instrument(steps)
        pool.close()
    assert steps.count <= 2


async def test_a_cancelled_wait_leaves_the_pool_task_alone(autojump_clock: object) -> None:
    async with open_dispatcher() as dispatcher:
        task = dispatcher.pool.run(trio.sleep, 10)
        with trio.move_on_after(1) as scope:
            await task.wait()
        assert scope.cancelled_caught
        await task.wait()
        assert task.error is None


async def test_a_failure_is_logged_with_its_name(autojump_clock: object, caplog: pytest.LogCaptureFixture) -> None:
    async def explode() -> None:
        raise ValueError("boom")

    async with open_dispatcher() as dispatcher:
        await dispatcher.pool.run_task(Task(explode, name="bomb")).wait()
    records = [each for each in caplog.records if each.name == "dispatch.pool"]
    assert [(each.levelno, each.getMessage()) for each in records] == [
        (logging.WARNING, "pool task bomb failed: ValueError: boom")
    ]


async def test_a_task_runs_in_the_context_of_who_gave_it(autojump_clock: object) -> None:
    tenant: ContextVar[str] = ContextVar("tenant", default="none")
    seen: list[str] = []

    async def work(own: str) -> None:
        seen.append(tenant.get())
        tenant.set(own)
        await trio.sleep(1)

    async with open_dispatcher(pool_size=1) as dispatcher:
        dispatcher.pool.run(work, "a")
        tenant.set("given")
        dispatcher.pool.run(work, "b")
        dispatcher.pool.run(work, "c")
        await dispatcher.pool.drain()
    assert seen == ["none", "given", "given"]


async def test_what_is_no_task_is_refused(autojump_clock: object) -> None:
    nothing: Any = None
    async with open_dispatcher() as dispatcher:
        with pytest.raises(InvalidTaskHandlerError) as caught:
            dispatcher.pool.run_task(nothing)
    assert caught.value.detail == "pool: expected a Task, got None; a function is given to run()"


class Sender:
    """Called like an async function, without being one."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    async def __call__(self, n: int) -> int:
        await trio.lowlevel.checkpoint()
        self.sent.append(n)
        return n


async def test_what_a_function_returns_is_awaited_if_it_can_be() -> None:
    send = Sender()
    async with open_dispatcher() as dispatcher:
        assert await dispatcher.pool.run(send, 1).result() == 1
        assert await dispatcher.pool.run(lambda: send(2)).result() == 2
        assert await dispatcher.pool.run(functools.partial(send, 3)).result() == 3
        assert await dispatcher.pool.run(lambda: 4).result() == 4
    assert send.sent == [1, 2, 3]


def counted() -> Generator[int]:
    yield 1


async def streamed() -> AsyncGenerator[int]:
    yield 1


class Yielding:
    def __call__(self) -> Generator[int]:
        yield 1


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (counted, "counted"),
        (streamed, "streamed"),
        (Yielding(), "Yielding"),
        (Yielding().__call__, "Yielding.__call__"),
        (functools.partial(counted), "counted"),
    ],
)
async def test_a_generator_of_which_nothing_would_run_is_refused(function: Callable[..., Any], name: str) -> None:
    async with open_dispatcher() as dispatcher:
        with pytest.raises(InvalidTaskHandlerError) as caught:
            dispatcher.pool.run(function)
        assert dispatcher.pool.statistics().queued == 0
    assert caught.value.detail == f"pool: {name} is a generator, of which nothing would run"


async def test_a_partial_is_named_after_what_it_calls(caplog: pytest.LogCaptureFixture) -> None:
    async def refuse(what: str) -> None:
        raise ConnectionError(what)

    async with open_dispatcher() as dispatcher:
        task = dispatcher.pool.run(functools.partial(refuse, "busy"))
        await task.wait()
    assert task.name.endswith("refuse")
    assert [each.getMessage() for each in caplog.records] == [f"pool task {task.name} failed: ConnectionError: busy"]


@pytest.mark.parametrize("args", ["ab", None, 5])
def test_arguments_that_are_no_tuple_are_refused_before_they_are_taken_apart(args: Any) -> None:
    with pytest.raises(InvalidTaskHandlerError, match="args of print must be a tuple of what it is called with, got"):
        Task(print, args)


async def test_a_class_is_called_though_its_instances_are_async() -> None:
    class Made:
        def __init__(self, n: int) -> None:
            self.n = n

        async def __call__(self) -> None:
            raise AssertionError("it is made, not called")

    async with trio.open_nursery() as nursery:
        pool = TaskDispatcher()
        await nursery.start(pool.run_pool)
        task = pool.run(Made, 7)
        await task.wait()
        assert (task.error, task.value.n) == (None, 7)
        pool.close()
