"""A storage that is away: waited for while it may come back, never for ever."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio

from dispatch import MemoryStorage, StorageError, TaskQueueConfig, TaskStatus, open_dispatcher

from .work import JOB, Job


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
