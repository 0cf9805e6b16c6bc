"""A storage whose steps take time: asked a while before they take effect, answered a while after."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise
from random import Random
from typing import Any, TypeVar

import pytest
import trio

from dispatch import (
    Clock,
    CronEntry,
    CronTaskNotFoundError,
    Dispatcher,
    EventKind,
    MemoryStorage,
    Storage,
    TaskEvent,
    TaskQueueConfig,
    TaskStatus,
    TaskType,
    open_dispatcher,
)
from dispatch.records import NewTask
from dispatch.storage.query import All, Crons
from dispatch.testing.proxy import StorageProxy

from .work import JOB, Job, Script, nothing, working

T = TypeVar("T")


class SlowStorage(StorageProxy):
    """Each step takes effect `before_s` after it was asked for, and is answered `after_s` later.

    What has taken effect is answered, as the hook promises, whether somebody cancels it or not.
    """

    def __init__(self, inner: Storage, *methods: str) -> None:
        super().__init__(inner)
        self.methods = methods
        """Only these take time, if any are named."""
        self.before_s = 0.0
        self.after_s = 0.0

    async def around(self, method: str, call: Callable[[], Awaitable[T]]) -> T:
        slow = not self.methods or method in self.methods
        before_s, after_s = self.times_s()
        await trio.sleep(before_s * slow)
        answer = await call()
        with trio.CancelScope(shield=True):
            await trio.sleep(after_s * slow)
        return answer

    def times_s(self) -> tuple[float, float]:
        """How long a step waits that is asked for now, and then its answer."""
        return self.before_s, self.after_s


class Unsteady(SlowStorage):
    """Some steps take next to nothing, and some as good as a second; answers overtake each other."""

    def __init__(self, seed: int) -> None:
        super().__init__(MemoryStorage(keep_finished=10_000))
        self.random = Random(seed)

    def times_s(self) -> tuple[float, float]:
        return 0.5 * self.random.random() ** 2, 0.5 * self.random.random() ** 2


async def test_many_queues_of_a_slow_storage_are_renewed_in_time(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """One after the other, ten queues would take as long as the lease."""
    storage, handler = SlowStorage(MemoryStorage()), Script(100.0)
    async with open_dispatcher(storage, lease=5.0, observers=()) as dispatcher:
        for n in range(10):
            dispatcher.consumer.register_queue(f"q{n}", TaskQueueConfig(max_retry=5))
            dispatcher.consumer.register_handler(TaskType(f"q{n}", "job", Job), handler)
            await dispatcher.publisher.publish(TaskType(f"q{n}", "job", Job)(Job()))
        await trio.sleep(1)
        storage.before_s = storage.after_s = 0.25
        await trio.sleep(110)
        storage.before_s = storage.after_s = 0.0
        await dispatcher.drain()
    assert len(handler.seen) == 10
    assert "rescued" not in caplog.text
    assert "trying again" not in caplog.text


async def test_many_queues_that_no_round_comes_to_the_end_of_keep_their_leases(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Twelve renewals of 4 s, four at a time, take longer than a round may."""
    caplog.set_level(logging.INFO, "dispatch.upkeep")
    inner, handler = MemoryStorage(), Script(200.0)
    storage = SlowStorage(inner, "renew")
    async with open_dispatcher(storage, lease=30.0, observers=()) as dispatcher, working(nothing, storage=inner):
        for n in range(12):
            dispatcher.consumer.register_queue(f"q{n}", TaskQueueConfig(max_retry=5))
            dispatcher.consumer.register_handler(TaskType(f"q{n}", "job", Job), handler)
            await dispatcher.publisher.publish(TaskType(f"q{n}", "job", Job)(Job()))
        await trio.sleep(1)
        storage.before_s = 4.0
        for n in range(6):  # the other process sweeps, as soon as a lease is over
            await trio.sleep(30)
            await inner.enqueue([NewTask(id=f"sweeps-{n}", queue="q", type="job", payload=b'{"n":0}')])
        # A round comes to its end, too: what follows the renewals is not put off for ever.
        await dispatcher.control.set_concurrency("q0", 7)
        await trio.sleep(30)
        assert "runs 7 at once" in caplog.text
        storage.before_s = 0.0
        await dispatcher.drain()
    assert len(handler.seen) == 12
    assert "rescued" not in caplog.text


class FewConnections(SlowStorage):
    """At most five steps at a time; the others wait in line."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.connections = trio.Semaphore(5)

    async def around(self, method: str, call: Callable[[], Awaitable[T]]) -> T:
        async with self.connections:
            return await super().around(method, call)


async def test_a_step_waits_behind_few_of_many_queues_that_are_renewed(autojump_clock: object) -> None:
    storage, took_s = FewConnections(MemoryStorage()), list[float]()
    async with open_dispatcher(storage, lease=30.0, grace=0.0, observers=()) as dispatcher:
        for n in range(100):
            dispatcher.consumer.register_queue(f"q{n}")
            dispatcher.consumer.register_handler(TaskType(f"q{n}", "job", Job), Script(9_000.0))
            await dispatcher.publisher.publish(TaskType(f"q{n}", "job", Job)(Job()))
        await trio.sleep(1)
        storage.before_s = 0.02
        while trio.current_time() < 25:  # twice each lease is renewed
            began = trio.current_time()
            await dispatcher.control.queues()
            took_s.append(trio.current_time() - began)
            await trio.sleep(0.05)
        storage.before_s = 0.0
    assert max(took_s) < 0.15


async def test_a_task_cancelled_before_its_claim_is_answered_is_stopped_within_a_second(autojump_clock: object) -> None:
    storage, stopped = SlowStorage(MemoryStorage(), "turn"), []

    async def handler(task: object) -> None:
        try:
            await trio.sleep(100)
        finally:
            stopped.append(trio.current_time())

    async with working(handler, storage=storage) as dispatcher:
        await trio.sleep(5)
        storage.after_s = 0.5
        task = await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(0.1)
        assert (await dispatcher.control.get(task)).status is TaskStatus.RUNNING
        asked_at = trio.current_time()
        assert await dispatcher.control.cancel(task) == [task.id]
        assert (await dispatcher.publisher.wait(task)).status is TaskStatus.CANCELLED
    assert stopped[0] - asked_at < 1


async def test_a_look_answered_late_does_not_hide_an_entry_added_meanwhile(autojump_clock: object) -> None:
    storage = SlowStorage(MemoryStorage(), "crons")
    async with working(nothing, storage=storage) as dispatcher, trio.open_nursery() as nursery:
        await trio.sleep(10)
        storage.after_s = 3.0
        nursery.start_soon(asked_for, dispatcher, "minutely")
        await trio.sleep(0.5)
        storage.after_s = 0.1
        entry = await dispatcher.cron.add_with_name("@every 1m", "minutely", JOB(Job()))
        await trio.sleep(600)
        assert entry.total == 10


async def asked_for(dispatcher: Dispatcher, name: str) -> None:
    with suppress(CronTaskNotFoundError):
        await dispatcher.cron.get_task(name)


async def test_a_look_answered_late_does_not_pause_an_entry_resumed_meanwhile(autojump_clock: object) -> None:
    storage = SlowStorage(MemoryStorage(), "crons")
    async with working(nothing, storage=storage) as dispatcher, trio.open_nursery() as nursery:
        entry = await dispatcher.cron.add_with_name("@every 1m", "minutely", JOB(Job()))
        await dispatcher.cron.pause("minutely")
        await trio.sleep(10)
        storage.after_s = 3.0
        nursery.start_soon(asked_for, dispatcher, "minutely")
        await trio.sleep(0.5)
        storage.after_s = 0.1
        await dispatcher.cron.resume("minutely")
        await trio.sleep(600)
        assert entry.total == 10
        assert not entry.paused


async def test_a_tick_that_was_read_before_its_answer_came_is_counted_once(autojump_clock: object) -> None:
    storage = SlowStorage(MemoryStorage(), "advance_cron")
    async with working(nothing, storage=storage) as dispatcher:
        entry = await dispatcher.cron.add_with_name("@every 1m", "minutely", JOB(Job()))
        storage.after_s = 3.0
        await trio.sleep(61)
        await dispatcher.cron.get_task("minutely")
        await trio.sleep(9)
        assert entry.total == 1
        await trio.sleep(600)
        assert entry.total == 11


@pytest.mark.parametrize("method", ["crons", "count", "advance_cron"])
async def test_a_storage_that_never_answers_cron_keeps_no_block_open(
    method: str, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    storage = SlowStorage(MemoryStorage(), method)
    async with working(nothing, storage=storage) as dispatcher:
        await dispatcher.cron.add_with_name("@every 1s", "often", JOB(Job()), overlap="skip")
        await trio.sleep(1)
        storage.before_s = 9_000.0
        await storage.inner.alter_cron("often", paused_reason=None)  # to be read again
        await trio.sleep(3)
        left_at = trio.current_time()
    assert trio.current_time() - left_at <= 6
    assert "cron: the storage gave no answer within 5 s" in caplog.text


async def test_a_tick_whose_previous_task_ends_while_it_is_looked_for_is_not_held_up(autojump_clock: object) -> None:
    storage, handler = SlowStorage(MemoryStorage(), "find"), Script(10.5)
    async with working(handler, storage=storage) as dispatcher:
        entry = await dispatcher.cron.add_with_name("@every 10s", "often", JOB(Job()), overlap="queue_one")
        storage.before_s = 1.0
        await trio.sleep(115)
        assert entry.total == len(handler.seen) == 10
        storage.before_s = 0.0


async def test_a_function_keeps_its_ticks_while_the_storage_is_slow(autojump_clock: object) -> None:
    storage, function_runs = SlowStorage(MemoryStorage()), list[float]()

    async def beat() -> None:
        function_runs.append(trio.current_time())

    async with working(nothing, storage=storage) as dispatcher:
        await dispatcher.cron.add_with_name("@every 1m", "stored", JOB(Job()))
        await dispatcher.cron.add_with_name("@every 1s", "beat", beat)
        await trio.sleep(50.5)
        storage.before_s = 8.0
        await trio.sleep(50)
        storage.before_s = 0.0
        assert len(function_runs) == 100
        assert [round(after - before, 3) for before, after in pairwise(function_runs)] == [1.0] * 99


async def test_a_function_gets_no_more_than_the_grace_while_the_storage_does_not_answer(autojump_clock: object) -> None:
    storage, cancelled_at = SlowStorage(MemoryStorage(), "advance_cron"), list[float]()

    async def rest() -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled_at.append(trio.current_time())

    async with working(nothing, storage=storage, grace=1.0) as dispatcher:
        await dispatcher.cron.add_with_name("@every 1s", "stored", JOB(Job()))
        await dispatcher.cron.add_with_name("@every 1s", "rest", rest, overlap="skip")
        await trio.sleep(1.5)
        storage.before_s = 9_000.0
        await trio.sleep(3)
        await dispatcher.cron.cancel("rest")  # whose run goes on
        left_at = trio.current_time()
    assert [round(at - left_at, 3) for at in cancelled_at] == [1.0]


async def test_a_clock_that_jumps_while_what_is_declared_is_renewed_has_nobody_pause_it(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    ahead_s = 0.0
    clock = Clock(wall=lambda: 1_800_000_000.0 + ahead_s + trio.current_time())
    storage = SlowStorage(MemoryStorage(clock), "put_cron")
    declared = [CronEntry("@every 10s", "often", JOB(Job()))]
    async with (
        working(nothing, storage=storage, clock=clock, cron=declared) as dispatcher,
        open_dispatcher(storage.inner, clock=clock),
    ):
        await dispatcher.cron.add_with_name("@every 1s", "beat", trio.lowlevel.checkpoint)
        await trio.sleep(595)
        storage.after_s = 10.0
        await trio.sleep(8)
        ahead_s = 7_200.0
        await trio.sleep(120)
    assert "the wall clock jumped by +7200.0 s" in caplog.text
    assert "is paused" not in caplog.text


@pytest.mark.parametrize("seed", range(3))
async def test_processes_that_change_one_entry_at_once_agree_in_the_end(seed: int, autojump_clock: object) -> None:
    storage, random = Unsteady(seed), Random(seed)

    async def change(dispatcher: Dispatcher) -> None:
        cron = dispatcher.cron
        for _ in range(60):
            spec = f"@every {random.choice((5, 10, 15))}s"
            act: Callable[[], Awaitable[object]] = random.choice(
                [
                    lambda: cron.add_with_name(spec, "one", JOB(Job()), replace=True),  # noqa: B023 - called in this round
                    lambda: cron.cancel("one"),
                    lambda: cron.pause("one"),
                    lambda: cron.resume("one"),
                    lambda: cron.get_task("one"),
                    cron.tasks,
                ]
            )
            with suppress(CronTaskNotFoundError):
                await act()
            await trio.sleep(2 * random.random())

    async with working(nothing, storage=storage) as first, working(nothing, storage=storage) as second:
        async with trio.open_nursery() as nursery:
            for dispatcher in (first, second, first, second):
                nursery.start_soon(change, dispatcher)
        await first.cron.add_with_name("*/10 * * * * *", "one", JOB(Job(1)), replace=True)
        await first.cron.resume("one")
        await trio.sleep(30)
        [before] = await storage.inner.crons("one")
        await trio.sleep(100)
        [after] = await storage.inner.crons("one")
        assert after.total - before.total == 10
    slots = [record.slot for record in (await storage.inner.find(Crons("one"), limit=10_000)).records]
    assert len(slots) == len(set(slots))


@pytest.mark.parametrize("overlap", ["allow", "skip", "queue_one"])
@pytest.mark.parametrize("misfire", ["latest", "skip", "all"])
async def test_no_tick_is_lost_or_made_twice(overlap: Any, misfire: Any, autojump_clock: object) -> None:
    storage, handler = Unsteady(1), Script(0.2)
    async with working(handler, storage=storage) as first, working(handler, storage=storage):
        await first.cron.add_with_name("*/10 * * * * *", "often", JOB(Job()), overlap=overlap, misfire=misfire)
        began = storage.now()
        await trio.sleep(600)
        ended = storage.now()
    records = (await storage.inner.find(Crons("often"), limit=10_000)).records
    slots = [record.slot for record in records]
    assert len(slots) == len(set(slots))
    first_slot = int(began) // 10 * 10 + 10
    assert set(range(first_slot, int(ended) - 5, 10)) <= set(slots)


@pytest.mark.parametrize("seed", range(3))
async def test_a_publish_given_up_has_stored_nothing_or_is_told_of(seed: int, autojump_clock: object) -> None:
    storage, random, told = Unsteady(seed), Random(seed), set[str]()

    def note(event: TaskEvent) -> None:
        if event.kind is EventKind.PUBLISHED:
            told.add(event.task_id)

    config = TaskQueueConfig(max_waiting=3)
    async with working(Script(0.1), config, storage=storage, observers=[note]) as dispatcher:

        async def publish(n: int) -> None:
            with trio.move_on_after(2 * random.random()):
                await dispatcher.publisher.publish(JOB(Job(n), id=f"task-{n}"))

        async with trio.open_nursery() as nursery:
            for n in range(40):
                nursery.start_soon(publish, n)
        await dispatcher.drain()
        page = await dispatcher.control.find(limit=100)
        assert {task.id for task in page.tasks} == told
        assert 0 < len(told) < 40
        for n in range(40):
            await dispatcher.publisher.publish(JOB(Job(n), id=f"task-{n}"))
        await dispatcher.drain()
        assert await dispatcher.control.count(by=("status",)) == {("succeeded",): 40}


@pytest.mark.parametrize("seed", range(4))
async def test_what_the_end_cuts_short_is_handed_back_whole(seed: int, autojump_clock: object) -> None:
    storage = Unsteady(seed)
    async with working(Script(1.0), TaskQueueConfig(concurrency=3), storage=storage, grace=0.5) as dispatcher:
        for n in range(12):
            await dispatcher.publisher.publish(JOB(Job(n)))
        await trio.sleep(seed / 3)
        left_at = trio.current_time()
    assert trio.current_time() - left_at < 6
    assert (dispatcher.report.unwritten, dispatcher.report.too_late) == ((), ())
    records = (await storage.inner.find(All())).records
    assert {record.status.value for record in records} <= {"succeeded", "pending"}
    assert all(record.attempt == 0 for record in records if record.status is TaskStatus.PENDING)
