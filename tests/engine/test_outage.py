"""A storage that is away: waited for while it may come back, never for ever."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio

from dispatch import (
    MemoryStorage,
    ShutdownReport,
    StorageError,
    TaskQueueConfig,
    TaskQueueControl,
    TaskStatus,
    actors,
    open_dispatcher,
)

from .work import JOB, Job, Script, nothing, working


class Flaky(MemoryStorage):
    """Fails every turn while `away`; with `hangs`, it never answers instead."""

    immediate = False
    away = False
    hangs = False
    asked = 0

    async def turn(self, *arguments: Any, **options: Any) -> Any:
        if self.away:
            self.asked += 1
            if self.hangs:
                await trio.sleep_forever()
            raise StorageError("the disk is gone")
        return await super().turn(*arguments, **options)


async def test_an_outage_is_waited_out_and_no_outcome_is_lost(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dispatch.actors")
    storage = Flaky()
    runs = 0

    async def handler(task: object) -> None:
        nonlocal runs
        runs += 1
        storage.away = True

    async with open_dispatcher(storage) as dispatcher:
        dispatcher.consumer.register_queue("q", TaskQueueConfig(concurrency=2))
        dispatcher.consumer.register_handler(JOB, handler)
        task = await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(20)
        assert 5 <= storage.asked <= 12  # with a back-off that doubles up to 5 s
        storage.away = False
        ended = await dispatcher.publisher.wait(task)
        await trio.sleep(1)
    assert ended.status is TaskStatus.SUCCEEDED
    assert runs == 1
    warned = [record for record in caplog.records if "the storage failed" in record.message]
    assert [record.levelno for record in warned if record.levelno >= logging.INFO] == [logging.WARNING]
    assert "works again after" in caplog.text


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_storage_that_stays_away_does_not_keep_the_block_open(
    hangs: bool, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Flaky()
    storage.hangs = hangs

    async def handler(task: object) -> None:
        storage.away = True

    async with open_dispatcher(storage, grace=2.0) as dispatcher:
        dispatcher.consumer.register_queue("q")
        dispatcher.consumer.register_handler(JOB, handler)
        task = await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(1)
        left_at = trio.current_time()
    assert trio.current_time() - left_at <= 2 + 5 + 5 + 6
    assert "1 outcomes could not be written; their leases decide" in caplog.text
    assert task.id in caplog.text
    assert dispatcher.report == ShutdownReport(unwritten=(task.id,))


async def test_what_could_not_be_handed_back_is_not_said_to_be(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Flaky()

    async def handler(task: object) -> None:
        await trio.sleep(60)

    async with open_dispatcher(storage, grace=2.0) as dispatcher:
        dispatcher.consumer.register_queue("q")
        dispatcher.consumer.register_handler(JOB, handler)
        task = await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(1)
        storage.away = True
    assert dispatcher.report == ShutdownReport(unwritten=(task.id,))
    assert "handed back" not in caplog.text


async def test_a_storage_that_tells_no_controls_ends_no_lease(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    class Mute(MemoryStorage):
        away = False

        async def queues(self) -> Any:
            if self.away:
                await trio.sleep_forever()
            return await super().queues()

    storage = Mute()

    async def handler(task: object) -> None:
        storage.away = True
        await trio.sleep(60)

    async with open_dispatcher(storage, lease=6.0) as dispatcher:
        dispatcher.consumer.register_queue("q")
        dispatcher.consumer.register_handler(JOB, handler)
        task = await dispatcher.publisher.publish(JOB(Job()))
        for _ in range(59):
            await trio.sleep(1)
            assert (await storage.rescue()).records == []  # somebody else sweeps
        assert (await dispatcher.publisher.wait(task)).status is TaskStatus.SUCCEEDED
    assert "upkeep: the storage failed, trying again: [1021] no answer within 2 s" in caplog.text


async def test_an_outage_of_an_hour_does_not_fill_the_log(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "dispatch.upkeep")

    class Full(MemoryStorage):
        away = False

        async def beat(self, *arguments: Any) -> None:
            if self.away:
                raise StorageError("the disk is full")
            await super().beat(*arguments)

    storage = Full()
    async with open_dispatcher(storage) as dispatcher:
        dispatcher.consumer.register_queue("q")
        dispatcher.consumer.register_handler(JOB, Script())
        storage.away = True
        await trio.sleep(3_600)
        storage.away = False
        await trio.sleep(60)
    told = [record for record in caplog.records if "upkeep: the storage failed, trying again" in record.message]
    assert len(told) > 3_000
    warned = [each for each in told if each.levelno == logging.WARNING]
    assert warned[0] is told[0]
    assert warned[-1].created > told[0].created  # who looks at the last page of the log is told as well
    assert 10 <= len(warned) <= 12
    assert f"upkeep: the storage works again after {len(told)} failures" in caplog.text


class Picky(MemoryStorage):
    """Refuses every step that holds the outcome of a poisoned task, as a constraint would."""

    immediate = False
    cured = False

    async def turn(self, transitions: Any, *arguments: Any, **options: Any) -> Any:
        if not self.cured and any(each.id.startswith("poison") for each in transitions):
            raise StorageError("value too long")
        return await super().turn(transitions, *arguments, **options)


async def test_an_outcome_that_is_refused_holds_up_nobody_else(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    storage, handler = Picky(), Script()
    config = TaskQueueConfig(concurrency=4)
    async with working(handler, config, storage=storage, lease=6.0) as dispatcher:
        poisoned = [
            await dispatcher.publisher.publish(JOB(Job(), id=f"poison-{n}")) for n in range(2)
        ]
        others = [await dispatcher.publisher.publish(JOB(Job(n))) for n in range(20)]
        with trio.fail_after(5):
            for task in others:
                assert (await dispatcher.publisher.wait(task)).status is TaskStatus.SUCCEEDED
        await trio.sleep(30)  # renewed meanwhile
        assert (await storage.rescue()).records == []
        for task in poisoned:
            assert (await dispatcher.control.get(task)).status is TaskStatus.RUNNING
        named = [message for message in caplog.messages if "refuses the outcome of attempt 1" in message]
        assert sorted(message.split()[1] for message in named) == ["poison-0", "poison-1"]
        storage.cured = True
        for task in poisoned:
            assert (await dispatcher.publisher.wait(task)).status is TaskStatus.SUCCEEDED
    assert len(handler.seen) == 22


class Counting(MemoryStorage):
    """Fails so many turns that bring outcomes, and notes how many outcomes each of them brought."""

    immediate = False

    def __init__(self, failing: int) -> None:
        super().__init__()
        self.failing = failing
        self.brought: list[int] = []

    async def turn(self, transitions: Any, *arguments: Any, **options: Any) -> Any:
        if transitions:
            self.brought.append(len(transitions))
            if len(self.brought) <= self.failing:
                raise StorageError("the disk is gone")
        return await super().turn(transitions, *arguments, **options)


@pytest.mark.parametrize(("failing", "brought"), [(2, [5] * 3), (3, [5] * 3 + [1] * 5)])
async def test_only_what_has_failed_three_times_is_settled_one_by_one(
    failing: int, brought: list[int], autojump_clock: object
) -> None:
    storage = Counting(failing)
    async with working(Script(1.0), TaskQueueConfig(concurrency=5), storage=storage) as dispatcher:
        await dispatcher.publisher.publish_many([JOB(Job(n)) for n in range(5)])
        began = trio.current_time()
        await dispatcher.drain()
        assert trio.current_time() - began < 1.0 + 0.1 + 0.2 + 0.4 + 0.1, "each wait is twice the one before"
    assert storage.brought == brought


async def test_an_outcome_that_stays_refused_keeps_no_block_open(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Picky()
    async with working(Script(1.0), TaskQueueConfig(concurrency=2), storage=storage, grace=2.0) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(), id="poison"))
        good = await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(0.5)
        left_at = trio.current_time()
    assert trio.current_time() - left_at <= 2 + 5 + 5 + 6
    assert "1 outcomes could not be written; their leases decide: poison" in caplog.text
    assert (await TaskQueueControl(storage).get(good)).status is TaskStatus.SUCCEEDED


async def test_a_queue_left_by_a_cancellation_writes_what_is_not_refused(autojump_clock: object) -> None:
    storage = Picky()
    with trio.move_on_after(1.2):
        async with working(Script(1.0), TaskQueueConfig(concurrency=2), storage=storage) as dispatcher:
            await dispatcher.publisher.publish(JOB(Job(), id="poison"))
            good = await dispatcher.publisher.publish(JOB(Job()))
            await trio.sleep_forever()
    assert (await TaskQueueControl(storage).get(good)).status is TaskStatus.SUCCEEDED


async def test_where_every_outcome_is_refused_claiming_ends_and_goes_on_later(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "ALONE", 3)
    storage, handler = Picky(), Script()
    async with working(handler, storage=storage) as dispatcher:
        for n in range(20):
            await dispatcher.publisher.publish(JOB(Job(), id=f"poison-{n}"))
        await trio.sleep(300)
        assert 3 <= len(handler.seen) <= 6
        storage.cured = True
        await dispatcher.drain()
    assert len(handler.seen) == 20


async def test_a_storage_that_rings_at_every_look_lets_the_program_run() -> None:
    class Restless(MemoryStorage):
        looks = 0

        async def turn(self, *args: Any, **options: Any) -> Any:
            found = await super().turn(*args, **options)
            self.looks += 1
            if self.looks < 100_000:  # else who is never let run could not even end this test
                self._bells.ring_all()
            return found

    storage = Restless()
    async with working(nothing, storage=storage) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        assert (await dispatcher.publisher.wait(task)).status is TaskStatus.SUCCEEDED
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        assert storage.looks < 1_000
        storage.looks = 100_000
