"""More claims than free slots: what waits here is short of nothing but a slot."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import attrs
import pytest
import trio

from dispatch import (
    Dispatcher,
    InvalidConfigError,
    MemoryStorage,
    Priority,
    QueueTask,
    RateLimit,
    StorageError,
    TaskCancelledError,
    TaskEvent,
    TaskQueueConfig,
    TaskStatus,
    open_dispatcher,
)
from dispatch.clock import Clock
from dispatch.execution import Stop
from dispatch.records import Transition
from dispatch.storage.protocol import Claimed, SettleResult, Storage
from dispatch.storage.query import Ids, Queues
from dispatch.testing.faults import FaultyStorage
from dispatch.testing.harness import Harness
from dispatch.testing.proxy import StorageProxy

from .work import JOB, Job, Script, working

T = TypeVar("T")


def prefetching(concurrency: int, prefetch: int, **options: Any) -> TaskQueueConfig:
    return TaskQueueConfig(concurrency, **{"max_retry": 1, "prefetch": prefetch, "retry_delay": 0.0, **options})


async def publish(dispatcher: Dispatcher, count: int, **fields: Any) -> list[QueueTask[Job]]:
    published = await dispatcher.publisher.publish_many([JOB(Job(n), **fields) for n in range(count)])
    assert all(each.task is not None for each in published)
    return [each.task for each in published if each.task is not None]


async def by_status(dispatcher: Dispatcher) -> dict[str, int]:
    return {name: number for (name,), number in (await dispatcher.control.count(by=("status",))).items()}


# ---- claiming ------------------------------------------------------------------------


async def test_so_many_more_than_can_run_are_claimed_and_no_more_run(autojump_clock: object) -> None:
    running: set[str] = set()
    most = 0

    async def handler(task: QueueTask[Job]) -> None:
        nonlocal most
        running.add(task.id)
        most = max(most, len(running))
        await trio.sleep(1)
        running.remove(task.id)

    async with working(handler, prefetching(2, 3)) as dispatcher:
        await publish(dispatcher, 11)
        await trio.sleep(0.5)
        assert await by_status(dispatcher) == {"running": 5, "pending": 6}
        seen = dispatcher.statistics().queues["q"]
        assert (seen.running, seen.prefetched, seen.concurrency) == (2, 3, 2)
        assert "<Queue 'q' running=2/2 prefetched=3>" in repr(dispatcher.consumer._actors["q"])
        began = trio.current_time()
        await dispatcher.drain()
        assert await by_status(dispatcher) == {"succeeded": 11}
        assert trio.current_time() - began == pytest.approx(5.5, abs=0.01), "two at a time, without a gap"
    assert most == 2


async def test_without_a_prefetch_no_more_is_claimed_than_can_run(autojump_clock: object) -> None:
    async with working(Script(1.0), TaskQueueConfig(2)) as dispatcher:
        await publish(dispatcher, 5)
        await trio.sleep(0.5)
        assert await by_status(dispatcher) == {"running": 2, "pending": 3}
        assert "prefetched" not in repr(dispatcher.consumer._actors["q"])


async def test_fewer_than_may_run_begin_at_once(autojump_clock: object) -> None:
    handler = Script(1.0)
    async with working(handler, prefetching(3, 5)) as dispatcher:
        await trio.sleep(1)
        began = trio.current_time()
        await publish(dispatcher, 3)
        await dispatcher.drain()
    assert [round(at - began, 3) for at in handler.times] == [0.0] * 3


@pytest.mark.parametrize(("concurrency", "prefetch", "turns"), [(1, 0, 200), (1, 49, 13), (10, 90, 5)])
async def test_short_tasks_share_steps_of_the_storage(
    concurrency: int, prefetch: int, turns: int, autojump_clock: object
) -> None:
    storage = FaultyStorage(MemoryStorage())

    async def handler(task: QueueTask[Job]) -> None:
        pass

    async with open_dispatcher(storage) as dispatcher:
        dispatcher.consumer.register_queue("q", prefetching(concurrency, prefetch, buffer_size=1_000))
        dispatcher.consumer.register_handler(JOB, handler)
        await publish(dispatcher, 200)
        await dispatcher.drain()
        found = storage.calls["turn"]
    assert turns / 2 <= found <= turns + 2


async def test_they_run_in_the_order_of_the_claims(autojump_clock: object) -> None:
    handler = Script(0.1)
    async with working(handler, prefetching(1, 4)) as dispatcher:
        await publish(dispatcher, 3)
        await publish(dispatcher, 2, priority=Priority.HIGH)
        await publish(dispatcher, 5, priority=Priority.LOW)
        await trio.sleep(0.05)
        await publish(dispatcher, 1, priority=Priority.CRITICAL)
        await dispatcher.drain()
    seen = [(task.priority.name, task.payload.n) for task in handler.seen]
    late = seen.index(("CRITICAL", 0))
    assert 1 <= late <= 5, "it is passed by no more than were claimed"
    assert [each for each in seen if each[0] == "LOW"] == [("LOW", n) for n in range(5)]


async def test_tasks_of_one_key_stay_one_at_a_time_and_in_order(autojump_clock: object) -> None:
    running: set[str | None] = set()
    seen: dict[str | None, list[int]] = {}

    async def handler(task: QueueTask[Job]) -> None:
        assert task.key not in running
        running.add(task.key)
        await trio.sleep(0.1)
        running.remove(task.key)
        seen.setdefault(task.key, []).append(task.payload.n)

    async with working(handler, prefetching(3, 6, keyed=True)) as dispatcher:
        await dispatcher.publisher.publish_many([JOB(Job(n), key=f"k{n % 7}") for n in range(70)])
        await dispatcher.drain()
        assert await by_status(dispatcher) == {"succeeded": 70}
    assert seen == {f"k{key}": list(range(key, 70, 7)) for key in range(7)}


async def test_threads_stay_as_many_as_the_concurrency() -> None:
    running = most = 0

    def handler(task: QueueTask[Job]) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        trio.from_thread.run(trio.sleep, 0.005)
        running -= 1

    async with working(handler, prefetching(2, 20)) as dispatcher:
        await publish(dispatcher, 30)
        with trio.fail_after(30):
            await dispatcher.drain()
        assert await by_status(dispatcher) == {"succeeded": 30}
    assert most == 2


@pytest.mark.parametrize(("concurrency", "run_s"), [(1, 0.1), (3, 0.1), (1, 1.0), (3, 1.0)])
async def test_attempts_go_on_while_the_storage_is_asked(
    concurrency: int, run_s: float, autojump_clock: object
) -> None:
    storage, handler = FaultyStorage(MemoryStorage()), Script(run_s)
    async with open_dispatcher(storage) as dispatcher:
        dispatcher.consumer.register_queue("q", prefetching(concurrency, 30, buffer_size=1_000))
        dispatcher.consumer.register_handler(JOB, handler)
        await publish(dispatcher, 90)
        storage.delay_s = 0.5
        await dispatcher.drain()
    assert max(handler.gaps[3:]) < run_s + 0.1, "no slot is free for as long as a step takes"
    assert handler.times[-1] - handler.times[0] < 90 * run_s / concurrency + 0.2


class Elsewhere(StorageProxy):
    """Its turns take a while, as those of a server do."""

    turning = False

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.settled: list[int] = []

    async def turn(
        self, transitions: Sequence[Transition], *args: Any, **options: Any
    ) -> tuple[list[SettleResult], Claimed]:
        self.settled.append(len(transitions))
        return await super().turn(transitions, *args, **options)

    async def around(self, method: str, call: Callable[[], Awaitable[T]]) -> T:
        if method != "turn":
            return await call()
        self.turning = True
        await trio.sleep(0.5)
        self.turning = False
        return await call()


@pytest.mark.parametrize(("concurrency", "prefetch"), [(1, 9), (10, 10), (1, 63), (10, 90), (100, 100)])
@pytest.mark.parametrize("remote", [True, False])
async def test_half_is_run_while_a_server_turns_the_other_half_over(
    remote: bool, concurrency: int, prefetch: int, autojump_clock: object
) -> None:
    storage = Elsewhere(MemoryStorage())
    storage.remote = remote
    meanwhile = 0

    async def handler(task: QueueTask[Job]) -> None:
        nonlocal meanwhile
        meanwhile += storage.turning

    async with open_dispatcher(storage) as dispatcher:
        dispatcher.consumer.register_queue("q", prefetching(concurrency, prefetch, buffer_size=1_000))
        dispatcher.consumer.register_handler(JOB, handler)
        await publish(dispatcher, 500)
        await dispatcher.drain()
        assert await by_status(dispatcher) == {"succeeded": 500}
    half = (concurrency + prefetch) / 2
    if not remote:
        assert meanwhile <= 100, "in a thread of this process a turn takes the time from handlers"
    elif half < 32:
        assert meanwhile <= 250, "small turns cost more than they bring"
    else:
        assert meanwhile >= 200
        assert sum(half <= size <= half + concurrency for size in storage.settled) >= 500 / half - 4, "each turn has a half"


# ---- what is known of them -----------------------------------------------------------


async def test_an_outcome_is_written_while_others_wait_here(autojump_clock: object) -> None:
    async with working(Script(1.0), prefetching(1, 8)) as dispatcher:
        tasks = await publish(dispatcher, 9)
        for number, task in enumerate(tasks, 1):
            await dispatcher.publisher.result(task)
            assert trio.current_time() == pytest.approx(float(number), abs=0.01)


async def test_an_attempt_starts_when_its_handler_does(autojump_clock: object) -> None:
    events: list[TaskEvent] = []
    handler = Script(2.0)
    config = prefetching(1, 3, timeout=3.0)
    async with working(handler, config, observers=[events.append]) as dispatcher:
        await publish(dispatcher, 4)
        await dispatcher.drain()
        assert await by_status(dispatcher) == {"succeeded": 4}, "a timeout is the attempt's own"
    started = [event for event in events if event.kind.value == "started"]
    assert [round(event.wait_s or 0.0) for event in started] == [0, 2, 4, 6]
    begun = [task.started_at - handler.seen[0].started_at for task in handler.seen]
    assert [round(each / timedelta(seconds=1)) for each in begun] == [0, 2, 4, 6]


# ---- control ---------------------------------------------------------------------------


async def test_a_pause_hands_them_back_untouched(autojump_clock: object) -> None:
    handler = Script(1.0)
    async with working(handler, prefetching(1, 5)) as dispatcher:
        await publish(dispatcher, 6)
        await trio.sleep(0.5)
        await dispatcher.control.pause_queue("q")
        await trio.sleep(3.0)
        assert [task.payload.n for task in handler.seen] == [0]
        assert await by_status(dispatcher) == {"succeeded": 1, "pending": 5}
        waiting = (await dispatcher.control.find()).tasks
        assert {task.attempt for task in waiting if task.status is TaskStatus.PENDING} == {0}
        await dispatcher.control.resume_queue("q")
        await dispatcher.drain()
    assert [task.payload.n for task in handler.seen] == list(range(6))
    assert {task.attempt for task in handler.seen} == {1}


async def test_what_is_claimed_while_the_pause_comes_is_handed_back(autojump_clock: object) -> None:
    storage, handler = FaultyStorage(MemoryStorage()), Script(1.0)
    async with open_dispatcher(storage) as dispatcher:
        dispatcher.consumer.register_queue("q", prefetching(2, 5))
        dispatcher.consumer.register_handler(JOB, handler)
        await trio.sleep(1)
        storage.delay_s = 0.5
        await publish(dispatcher, 6)
        await trio.sleep(0.2)
        [queue] = await storage.inner.queues()
        dispatcher.consumer._actors["q"].control(attrs.evolve(queue, paused=True))
        await trio.sleep(3)
        assert handler.seen == []
        assert await by_status(dispatcher) == {"pending": 6}
        dispatcher.consumer._actors["q"].control(queue)
        await dispatcher.drain()
    assert [(task.payload.n, task.attempt) for task in handler.seen] == [(n, 1) for n in range(6)]


async def test_one_that_waits_here_is_cancelled_and_never_runs(autojump_clock: object) -> None:
    handler = Script(2.0)
    async with working(handler, prefetching(1, 3)) as dispatcher:
        tasks = await publish(dispatcher, 4)
        await trio.sleep(0.5)
        assert await dispatcher.control.cancel(tasks[2], reason="not wanted") == [tasks[2].id]
        with pytest.raises(TaskCancelledError, match="not wanted"), trio.fail_after(1):
            await dispatcher.publisher.result(tasks[2])
        await dispatcher.drain()
        assert await by_status(dispatcher) == {"succeeded": 3, "cancelled": 1}
    assert [task.payload.n for task in handler.seen] == [0, 1, 3]


async def test_an_order_about_another_attempt_does_not_touch_one_that_waits_here(autojump_clock: object) -> None:
    handler = Script(2.0)
    async with working(handler, prefetching(1, 2)) as dispatcher:
        tasks = await publish(dispatcher, 3)
        await trio.sleep(0.5)
        actors = dispatcher.consumer._actors["q"]
        epochs = dict(actors.held())
        for stop in (Stop.CANCEL, Stop.LOST):
            actors.stop_run(tasks[1].id, epochs[tasks[1].id] - 1, stop, "an earlier one")
        assert dict(actors.held()) == epochs
        await dispatcher.drain()
    assert [task.payload.n for task in handler.seen] == [0, 1, 2]


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1)])
async def test_another_concurrency_holds_for_what_waits_here(before: int, after: int, autojump_clock: object) -> None:
    running: set[str] = set()
    counts: list[tuple[float, int]] = []

    async def handler(task: QueueTask[Job]) -> None:
        running.add(task.id)
        counts.append((trio.current_time(), len(running)))
        await trio.sleep(1)
        running.remove(task.id)

    async with working(handler, prefetching(before, 12)) as dispatcher:
        await publish(dispatcher, before + 12)
        await trio.sleep(0.5)
        assert await by_status(dispatcher) == {"running": before + 12}
        await dispatcher.control.set_concurrency("q", after)
        await dispatcher.drain()
        assert await by_status(dispatcher) == {"succeeded": before + 12}
    assert max(number for _, number in counts) == max(before, after)
    assert {number for at, number in counts if at > 2.5} <= set(range(1, after + 1))
    assert trio.current_time() < (5.0 if after > before else 14.0)


# ---- ends --------------------------------------------------------------------------------


async def test_a_shutdown_hands_them_back_untouched(autojump_clock: object) -> None:
    storage, handler = MemoryStorage(), Script(1.0)
    async with working(handler, prefetching(1, 5), storage=storage) as dispatcher:
        tasks = await publish(dispatcher, 6)
        await trio.sleep(0.5)
    assert len(handler.seen) == 1
    rows = (await storage.find(Ids(*[task.id for task in tasks]))).records
    assert [(row.status, row.attempt) for row in rows] == [
        (TaskStatus.SUCCEEDED, 1),
        *[(TaskStatus.PENDING, 0)] * 5,
    ]


@pytest.mark.parametrize(("run_s", "delay_s"), [(60.0, 0.0), (0.3, 0.5), (0.3, 0.1)])
async def test_cancelled_from_outside_they_are_handed_back_too(
    run_s: float, delay_s: float, autojump_clock: object
) -> None:
    inner = MemoryStorage(keep_finished=100)
    storage, handler = FaultyStorage(inner), Script(run_s)
    with trio.move_on_after(1.0):
        async with open_dispatcher(storage) as dispatcher:
            dispatcher.consumer.register_queue("q", prefetching(2, 15))
            dispatcher.consumer.register_handler(JOB, handler)
            await publish(dispatcher, 14)
            storage.delay_s = delay_s  # so that a step is under way when it ends
            await trio.sleep_forever()
    assert max(handler.times) <= 1.0, "nothing is begun after the cancellation"
    rows = (await inner.find(Queues("q"))).records
    over = [row for row in rows if row.status is TaskStatus.SUCCEEDED]
    assert len(over) < len(handler.seen) < 10
    assert [(row.status, row.attempt) for row in rows if row not in over] == [
        (TaskStatus.PENDING, 0)
    ] * (14 - len(over))


async def test_a_process_that_dies_costs_each_of_them_an_attempt(autojump_clock: object) -> None:
    runs: list[tuple[int, int]] = []

    async def handler(task: QueueTask[Job]) -> None:
        runs.append((task.payload.n, task.attempt))
        await trio.sleep(1)

    def register(dispatcher: Dispatcher) -> None:
        dispatcher.consumer.register_queue("q", prefetching(1, 3))
        dispatcher.consumer.register_handler(JOB, handler)

    async with Harness(register) as harness:
        for n in range(6):
            await harness.publisher.publish(JOB(Job(n)))
        await harness.advance(0.5)
        await harness.crash()
        await harness.restart()
        await harness.advance(120)
        for n in range(6):
            await harness.assert_published(JOB, Job(n), status="succeeded")
    assert runs[0] == (0, 1)
    assert sorted(runs[1:]) == [(0, 2), (1, 2), (2, 2), (3, 2), (4, 1), (5, 1)]


async def test_their_leases_are_renewed_while_they_wait(autojump_clock: object) -> None:
    handler = Script(40.0)
    async with working(handler, prefetching(1, 3), lease=10.0) as dispatcher:
        await publish(dispatcher, 4)
        await dispatcher.drain()
        assert dispatcher.statistics().queues["q"].handed_back == 0
    assert [(task.payload.n, task.attempt) for task in handler.seen] == [(n, 1) for n in range(4)]


class NoRenewal(FaultyStorage):
    """Renews nothing while told so, as if this process stood still."""

    still = False

    async def renew(self, *args: Any, **options: Any) -> Any:
        if self.still:
            raise StorageError("a fault was asked for")
        return await super().renew(*args, **options)


@pytest.mark.parametrize("rescued", [False, True])
async def test_what_may_be_anothers_by_now_is_not_begun(rescued: bool, autojump_clock: object) -> None:
    storage, handler = NoRenewal(MemoryStorage()), Script(25.0, 1.0)
    async with open_dispatcher(storage, lease=10.0) as dispatcher:
        dispatcher.consumer.register_queue("q", prefetching(1, 3))
        dispatcher.consumer.register_handler(JOB, handler)
        await publish(dispatcher, 4)
        await trio.sleep(1)
        storage.still = True
        if rescued:
            await trio.sleep(23)
            assert len((await storage.rescue()).records) == 4, "as another process would do"
        await dispatcher.drain()
        assert await by_status(dispatcher) == {"succeeded": 4}
    runs = [(task.payload.n, task.attempt) for task in handler.seen]
    again = [(0, 2)] if rescued else []
    assert runs[0] == (0, 1)
    assert sorted(runs[1:]) == [*again, *[(n, 2 if rescued else 1) for n in (1, 2, 3)]]


async def test_one_that_comes_again_replaces_what_waited_here(autojump_clock: object) -> None:
    ahead_s = 0.0
    storage = MemoryStorage(Clock(wall=lambda: 1e9 + trio.current_time() + ahead_s))
    handler = Script(20.0, 1.0)
    async with working(handler, prefetching(1, 3), storage=storage, lease=10.0) as dispatcher:
        await publish(dispatcher, 2)
        await trio.sleep(9)
        ahead_s = 60.0
        assert len((await storage.rescue()).records) == 2, "as another process would do"
        await dispatcher.drain()
        assert await by_status(dispatcher) == {"succeeded": 2}
    assert sorted((task.payload.n, task.attempt) for task in handler.seen) == [(0, 1), (0, 2), (1, 2)]


async def test_an_outage_loses_none_and_runs_none_twice(autojump_clock: object) -> None:
    storage, handler = FaultyStorage(MemoryStorage()), Script(0.01)
    async with open_dispatcher(storage) as dispatcher:
        dispatcher.consumer.register_queue("q", prefetching(2, 10))
        dispatcher.consumer.register_handler(JOB, handler)
        await publish(dispatcher, 60)
        await trio.sleep(0.055)
        storage.down = True
        await trio.sleep(7)
        held = dispatcher.statistics().queues["q"]
        assert (held.running, held.prefetched, held.unsettled) == (0, 0, 12), "what was here has run meanwhile"
        storage.mend()
        await dispatcher.drain()
        assert await by_status(dispatcher) == {"succeeded": 60}
    assert sorted(task.payload.n for task in handler.seen) == list(range(60))


# ---- settings ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefetch": -1}, "TaskQueueConfig: prefetch must be at least 0, got -1"),
        ({"prefetch": 2.5}, "TaskQueueConfig: prefetch must be a whole number, got 2.5"),
        (
            {"prefetch": 5, "max_retry": 0},
            "TaskQueueConfig: prefetch=5 needs a max_retry of at least 1, got 0: a process that is killed costs "
            "each task that it had prefetched an attempt, and they would be dead letters without having run",
        ),
        (
            {"prefetch": 5, "on_interrupt": "fail"},
            'TaskQueueConfig: prefetch=5 does not go with on_interrupt="fail": a process that is killed costs '
            "each task that it had prefetched an attempt, and they would fail without having run",
        ),
        (
            {"prefetch": 5, "max_running": 3},
            "TaskQueueConfig: prefetch=5 does not go with max_running=3: a task counts for it when it is claimed, "
            "and a prefetched one does not run yet; leave out either",
        ),
        (
            {"prefetch": 5, "rate_limit": RateLimit(10, 1.0)},
            "TaskQueueConfig: prefetch=5 does not go with rate_limit=RateLimit(count=10, per=1.0): a task counts "
            "for it when it is claimed, and a prefetched one does not run yet; leave out either",
        ),
    ],
)
def test_what_cannot_hold_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        TaskQueueConfig(**{"max_retry": 1, **options})
    assert caught.value.detail == message


def test_no_prefetch_goes_with_everything() -> None:
    config = TaskQueueConfig(prefetch=0, on_interrupt="fail", max_running=3, rate_limit=RateLimit(10, 1.0))
    assert config == TaskQueueConfig(on_interrupt="fail", max_running=3, rate_limit=RateLimit(10, 1.0))
