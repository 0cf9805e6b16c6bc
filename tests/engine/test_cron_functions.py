"""Runs of cron functions: threads that cannot be cancelled, contexts, and the end of the dispatcher."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any
from uuid import UUID

import pytest
import trio

from dispatch import (
    ClosedError,
    CronEntry,
    CronNameConflictError,
    CronTask,
    CronTaskDispatcher,
    InvalidTaskHandlerError,
    MemoryStorage,
    open_dispatcher,
)

from .work import JOB, Job, working

runs: ContextVar[int] = ContextVar("runs", default=0)


class Threads:
    """A sync function that takes its time whoever asks it to end, and how many of it run at once."""

    def __init__(self, takes_s: float) -> None:
        self.takes_s = takes_s
        self.now = self.most = self.begun = 0
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.begun += 1
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self.takes_s)
        with self._lock:
            self.now -= 1


def test_closing_one_that_was_never_run_needs_no_trio() -> None:
    cron = CronTaskDispatcher(MemoryStorage())
    cron.close()
    cron.close()


@pytest.mark.battery
async def test_cancel_running_waits_for_the_thread_that_it_asked_to_end() -> None:
    work = Threads(1.3)
    async with open_dispatcher() as dispatcher:
        task = await dispatcher.cron.add_with_name("@every 1s", "slow", work, overlap="cancel_running")
        await trio.sleep(4.2)
        assert task.running == work.now == 1
    assert work.most == 1
    assert 3 <= work.begun <= 4


async def test_one_without_a_name_gets_one_of_its_own(autojump_clock: object) -> None:
    async with working() as dispatcher:
        names = [
            (await dispatcher.cron.add_task("@daily", CronTask(func=trio.lowlevel.checkpoint))).name,
            (await dispatcher.cron.add_task("@daily", CronTask(task=JOB(Job())))).name,
            (await dispatcher.cron.add("@daily", JOB(Job()))).name,
        ]
        assert [str(UUID(name)) for name in names] == names
        assert len(set(names)) == 3
        assert {task.name for task in await dispatcher.cron.tasks()} == set(names)


async def test_one_that_was_not_added_may_be_added_under_another_name(autojump_clock: object) -> None:
    async with working() as dispatcher:
        await dispatcher.cron.add_with_name("@daily", "taken", JOB(Job()))
        task = CronTask("taken", task=JOB(Job(2)))
        with pytest.raises(CronNameConflictError):
            await dispatcher.cron.add_task("@hourly", task)
        assert task.spec is None
        task.name = "free"
        assert (await dispatcher.cron.add_task("@hourly", task)).name == "free"



async def test_a_thread_that_is_asked_to_end_is_waited_for_at_the_end() -> None:
    ended = threading.Event()

    def asked() -> None:
        try:
            while True:
                trio.from_thread.check_cancelled()
                time.sleep(0.01)
        finally:
            time.sleep(0.2)
            ended.set()

    async with open_dispatcher(grace=0.1) as dispatcher:
        await dispatcher.cron.add_with_name("0 0 1 1 *", "asked", asked)
        await dispatcher.cron.trigger("asked")
        await trio.sleep(0.1)
    assert ended.is_set()


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_thread_that_does_not_end_is_left_to_itself(cancelled: bool) -> None:
    leave = threading.Event()
    began = trio.current_time()
    with trio.CancelScope() as scope:
        async with open_dispatcher(grace=0.1) as dispatcher:
            await dispatcher.cron.add_with_name("0 0 1 1 *", "deaf", lambda: leave.wait(30))
            await dispatcher.cron.trigger("deaf")
            await trio.sleep(0.1)
            if cancelled:
                scope.cancel()
                await trio.lowlevel.checkpoint()
    assert trio.current_time() - began < 10
    leave.set()


async def test_a_lambda_around_an_async_function_runs_it() -> None:
    ran = trio.Event()

    async def work(n: int) -> None:
        await trio.lowlevel.checkpoint()
        assert n == 3
        ran.set()

    async with open_dispatcher() as dispatcher:
        await dispatcher.cron.add_with_name("0 0 1 1 *", "wrapped", lambda: work(3))
        await dispatcher.cron.trigger("wrapped")
        with trio.fail_after(10):
            await ran.wait()


async def test_a_function_that_was_taken_away_is_a_failed_run(autojump_clock: object) -> None:
    ran = 0

    async def work() -> None:
        nonlocal ran
        ran += 1

    async with open_dispatcher() as dispatcher:
        task = await dispatcher.cron.add_with_name("@every 1m", "work", work)
        task.func = None
        await trio.sleep(61)
        assert (task.total, task.err_count) == (1, 1)
        assert task.last_error is not None
        assert "its func is None" in task.last_error
        task.func = work
        await trio.sleep(60)
        assert (task.total, ran) == (2, 1)


@pytest.mark.parametrize("overlap", ["skip", "queue_one", "cancel_running"])
async def test_every_run_has_a_context_of_its_own(overlap: str, autojump_clock: object) -> None:
    seen: list[int] = []

    async def work() -> None:
        seen.append(runs.get())
        runs.set(runs.get() + 1)
        await trio.sleep(90)

    async with open_dispatcher(grace=0) as dispatcher:
        await dispatcher.cron.add_with_name("@every 1m", "work", work, overlap=overlap)  # type: ignore[arg-type]
        await trio.sleep(600)
        await dispatcher.cron.trigger("work")
        await trio.sleep(1)
    assert len(seen) >= 4
    assert set(seen) == {0}


async def test_a_tick_that_waits_does_not_begin_when_the_dispatcher_is_cancelled(autojump_clock: object) -> None:
    begun: list[float] = []

    async def work() -> None:
        begun.append(trio.current_time())
        await trio.sleep(90)

    with trio.move_on_after(150):
        async with open_dispatcher() as dispatcher:
            task = await dispatcher.cron.add_with_name("@every 1m", "work", work, overlap="queue_one")
            await trio.sleep_forever()
    assert len(begun) == task.total == 1
    assert task.running == 0


async def test_a_generator_is_refused() -> None:
    def yields() -> Iterator[int]:
        yield 1

    async def yields_too() -> AsyncIterator[int]:
        yield 1

    async with open_dispatcher() as dispatcher:
        for function in (yields, yields_too):
            with pytest.raises(InvalidTaskHandlerError) as caught:
                await dispatcher.cron.add_with_name("@daily", "work", function)
            assert caught.value.detail == "cron task 'work': its function is a generator, of which nothing would run"
        assert await dispatcher.cron.tasks() == []


@pytest.mark.parametrize("what", [JOB, partial(JOB, Job(1))], ids=["the type", "a partial of it"])
def test_a_task_type_in_place_of_a_task_is_refused_with_what_to_write(what: Any) -> None:
    with pytest.raises(InvalidTaskHandlerError) as caught:
        CronEntry("* * * * *", "team", what)
    assert caught.value.detail == (
        "cron task 'team': got the task type q/job itself; call it with its payload, "
        "as in WELCOME(Job(...)), for a task to publish"
    )


async def made() -> object:
    return JOB(Job(1))


@pytest.mark.parametrize("function", [made, lambda: JOB(Job(1)), lambda: made()], ids=["async", "sync", "wrapped"])
async def test_a_run_that_returns_a_task_unpublished_has_failed(function: Any) -> None:
    async with open_dispatcher() as dispatcher:
        task = await dispatcher.cron.add_with_name("0 0 1 1 *", "made", function)
        await dispatcher.cron.trigger("made")
    assert (task.total, task.err_count) == (1, 1)
    assert task.last_error == (
        "InvalidTaskHandlerError: [1009] cron task 'made': its function returned a task instead of "
        "publishing it; give the task itself, or publish it"
    )


async def test_a_run_may_return_the_task_that_it_published() -> None:
    async with working() as dispatcher:
        publish = partial(dispatcher.publisher.publish, JOB(Job(1)))
        task = await dispatcher.cron.add_with_name("0 0 1 1 *", "published", publish)
        await dispatcher.cron.trigger("published")
    assert (task.total, task.err_count) == (1, 0)


@pytest.mark.parametrize("act", ["cancel", "pause", "close"])
async def test_a_function_fires_no_more_once_another_of_the_same_moment_has_seen_to_that(
    act: str, autojump_clock: object
) -> None:
    """A thousand are due at once, and the first of them turns against the last."""
    first, last = "0000", "0999"
    ran: list[str] = []

    def function_of(name: str) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            ran.append(name)
            if name == first and ran.count(first) == 1:
                if act == "close":
                    cron.close()
                else:
                    await getattr(cron, act)(last)

        return run

    cron = CronTaskDispatcher(MemoryStorage())
    for number in range(1_000):
        await cron.add_with_name("@every 10s", f"{number:04}", function_of(f"{number:04}"))
    async with trio.open_nursery() as nursery:
        await nursery.start(cron.run)
        await trio.sleep(35)
        cron.close()
    assert last not in ran
    assert ran.count(first) == (1 if act == "close" else 3)
    assert len(ran) <= 100 if act == "close" else len(ran) == 3 * 999


@pytest.mark.parametrize("steps", range(1, 20))
async def test_what_is_triggered_or_added_while_cron_is_cancelled_is_refused_in_plain_words(steps: int) -> None:
    cron = CronTaskDispatcher(MemoryStorage())
    scope = trio.CancelScope()

    async def run(task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await cron.run(task_status)

    async def begin_ever_more() -> None:
        for number in range(20):
            await cron.add_with_name("@daily", f"{steps}-{number}", trio.lowlevel.checkpoint)
            await cron.trigger(f"{steps}-{number}")

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        nursery.start_soon(refused, begin_ever_more)
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        scope.cancel()


async def refused(act: Callable[[], Awaitable[None]]) -> None:
    with pytest.raises(ClosedError):
        await act()
