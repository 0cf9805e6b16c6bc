"""Ended tasks deleted on a schedule."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import attrs
import pytest
import trio
import trio.testing

from dispatch import ClosedError, Dispatcher, QueueTask, TaskType, open_dispatcher
from dispatch.checks import shown
from dispatch.errors import InvalidConfigError, StorageError
from dispatch.storage.memory import MemoryStorage
from dispatch.storage.query import PruneSpec, Statuses


@attrs.frozen
class Note:
    text: str


NOTE = TaskType("q", "note", Note)


async def handler(task: QueueTask[Note]) -> None:
    if task.payload.text == "bad":
        raise ValueError("bad")


async def ended_after(seconds: float, storage: MemoryStorage, prune: Sequence[PruneSpec]) -> int:
    async with open_dispatcher(storage, prune=prune, prune_every=60.0) as dispatcher:
        dispatcher.consumer.register_queue("q")
        dispatcher.consumer.register_handler(NOTE, handler)
        for text in ("good", "bad", "good"):
            await dispatcher.publisher.publish(NOTE(Note(text)))
        await dispatcher.drain()
        await trio.sleep(seconds)
        return sum((await storage.count(Statuses("succeeded", "failed"))).values())


async def test_old_successes_go_and_dead_letters_stay(autojump_clock: trio.testing.MockClock) -> None:
    storage = MemoryStorage()
    assert await ended_after(59.0, storage, [PruneSpec(age_s=30.0)]) == 3
    assert await ended_after(65.0, MemoryStorage(), [PruneSpec(age_s=30.0)]) == 1


async def test_every_spec_is_carried_out_to_its_end(autojump_clock: trio.testing.MockClock) -> None:
    specs = [PruneSpec(keep=0, limit=1), PruneSpec(keep=0, dead_letters=True, limit=1)]
    assert await ended_after(61.0, MemoryStorage(), specs) == 0


class Failing(MemoryStorage):
    failures = 2

    async def prune(self, spec: PruneSpec, *, dry_run: bool = False) -> int:
        if self.failures:
            self.failures -= 1
            raise StorageError("away")
        return await super().prune(spec, dry_run=dry_run)


async def test_a_storage_that_fails_is_tried_again_at_the_next_turn(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "dispatch.pruning"):
        assert await ended_after(125.0, Failing(), [PruneSpec(keep=1)]) == 2
    assert caplog.text.count("failed, trying again in 60 s: [1021] away") == 2


async def test_a_spec_that_fails_keeps_no_other_from_being_carried_out(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    failing = PruneSpec(keep=0, where=Statuses("failed"), dead_letters=True)

    class FailingForOne(MemoryStorage):
        async def prune(self, spec: PruneSpec, *, dry_run: bool = False) -> int:
            if spec == failing:
                raise StorageError("too many")
            return await super().prune(spec, dry_run=dry_run)

    assert await ended_after(61.0, FailingForOne(), [failing, PruneSpec(keep=0)]) == 1
    warnings = [message for message in caplog.messages if "pruning" in message]
    assert set(warnings) == {f"pruning by {shown(failing, 200)} failed, trying again in 60 s: [1021] too many"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prune": ["all"]}, "expected PruneSpec values, got 'all'"),
        ({"prune_every": 0}, "prune_every must be within 1 second and 30 days, got 0"),
    ],
)
async def test_a_wrong_schedule_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidConfigError, match=said):
        async with open_dispatcher(**options):
            pass


async def test_pruning_may_be_asked_for_before_it_runs(autojump_clock: object) -> None:
    storage = MemoryStorage()
    dispatcher = Dispatcher(storage)
    dispatcher.consumer.prune_on_schedule(PruneSpec(age_s=30.0), every=60.0)
    with pytest.raises(InvalidConfigError, match=r"prune_every must be within 1 second and 30 days, got 0\.1"):
        dispatcher.consumer.prune_on_schedule(PruneSpec(age_s=30.0), every=0.1)
    dispatcher.consumer.register_queue("q")
    dispatcher.consumer.register_handler(NOTE, handler)
    async with trio.open_nursery() as nursery:
        await nursery.start(dispatcher.serve)
        await dispatcher.publisher.publish(NOTE(Note("good")))
        await trio.sleep(59)
        assert storage.statistics().tasks == 1
        await trio.sleep(2)
        assert storage.statistics().tasks == 0
        with pytest.raises(ClosedError, match=r"it runs already; control\.prune prunes now"):
            dispatcher.consumer.prune_on_schedule(PruneSpec(age_s=1.0))
        dispatcher.close()
