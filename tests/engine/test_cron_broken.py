"""What is wrong with one entry, one tick or the storage stays there, and is said."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from dispatch import (
    Clock,
    ClosedError,
    CronEntry,
    CronNameConflictError,
    CronSpec,
    CronTaskNotFoundError,
    Dispatcher,
    InvalidConfigError,
    MemoryStorage,
    OnClash,
    QueueNotRegisteredError,
    QueueTask,
    StorageError,
    TaskEvent,
    TaskQueueConfig,
    TaskStatus,
    TaskType,
    Unique,
    open_dispatcher,
)
from dispatch.cron.dispatcher import CronTaskDispatcher
from dispatch.storage.protocol import (
    AdvanceAnswer,
    CronRecord,
    EnqueueAnswer,
    QueueRecord,
    RemoveAnswer,
)
from dispatch.storage.query import All, Crons, PruneSpec
from dispatch.storage.sqlite import SqliteStorage
from dispatch.testing.faults import FaultyStorage

from .work import JOB, Job, Script, nothing, working

FAIL_AFTER_S = 1_000_000.0
START = datetime(2026, 3, 2, 12, 0, 30, tzinfo=UTC)


class Stage(MemoryStorage):
    """A storage that is away when told to, counts its calls, and lets a test act in between."""

    def __init__(self) -> None:
        super().__init__(Clock(START), keep_finished=100_000)
        self.away = False
        self.calls: list[str] = []
        self.before_advance: Callable[[], Awaitable[object]] | None = None
        self.lost_answers = 0
        self.lost_commits = 0

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.away:
            raise StorageError("the disk is gone")

    async def crons(self, name: str | None = None) -> list[CronRecord]:
        self._called("crons")
        return await super().crons(name)

    async def advance_cron(self, name: str, **step: Any) -> AdvanceAnswer:
        self._called("advance_cron")
        if self.before_advance is not None:
            act, self.before_advance = self.before_advance, None
            await act()
        if self.lost_commits:
            self.lost_commits -= 1
            return AdvanceAnswer.ADVANCED
        answer = await super().advance_cron(name, **step)
        if self.lost_answers:
            self.lost_answers -= 1
            raise StorageError("the answer is lost")
        return answer

    async def slots(self, name: str) -> list[float]:
        records = (await self.find(Crons(name), limit=1_000)).records
        return [record.slot for record in records if record.slot is not None]


@pytest.fixture
def stage() -> Stage:
    return Stage()


class Ticks:
    def __init__(self) -> None:
        self.count = 0

    async def __call__(self) -> None:
        self.count += 1


# ---- one entry ------------------------------------------------------------------


@pytest.mark.parametrize(
    "definition",
    ["", "no json", "[]", "{}", '{"text": 3}', "[" * 100_000, '{"text": "61 * * * *", "zone": "UTC"}'],
)
async def test_a_row_that_cannot_be_read_is_named_once_and_stops_no_other(
    autojump_clock: object, stage: Stage, definition: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(nothing, storage=stage) as dispatcher:
        await dispatcher.cron.add_with_name("* * * * *", "good", JOB(Job()))
        [good] = await stage.crons("good")
        await stage.put_cron(attrs.evolve(good, name="bad", definition=definition))
        await dispatcher.cron.add_with_name("* * * * *", "another", JOB(Job()))
        await trio.sleep(300)
        assert [task.name for task in await dispatcher.cron.tasks()] == ["another", "good"]
        assert len(await stage.slots("good")) == len(await stage.slots("another")) == 5
        assert caplog.text.count("cron task bad cannot be read and is left alone: ") == 1
        with pytest.raises(CronTaskNotFoundError):
            await dispatcher.cron.get_task("bad")
        assert await dispatcher.cron.cancel("bad")


async def test_an_entry_that_cannot_be_decided_stops_no_other_and_is_tried_again(
    autojump_clock: object, stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from dispatch.cron.policy import Slots

    real, broken = Slots.decide, True

    def decide(self: Slots, spec: Any, policy: Any, now: float, **how: Any) -> Any:
        if broken and policy.jitter == 7.0:
            raise ZeroDivisionError("a bug of ours")
        return real(self, spec, policy, now, **how)

    monkeypatch.setattr(Slots, "decide", decide)
    good, bad = Ticks(), Ticks()
    async with working(nothing, storage=stage) as dispatcher:
        add = dispatcher.cron.add_with_name
        for name, function, jitter in (("good", good, 0.0), ("bad", bad, 7.0)):
            await add("* * * * *", name, function, jitter=jitter)
            await add("* * * * *", f"stored {name}".replace(" ", "-"), JOB(Job()), jitter=jitter)
        await trio.sleep(300)
        assert good.count == len(await stage.slots("stored-good")) == 5
        assert bad.count == len(await stage.slots("stored-bad")) == 0
        for name in ("bad", "stored-bad"):
            task = await dispatcher.cron.get_task(name)
            assert task.err_count >= 5
            assert task.last_error == "ZeroDivisionError: a bug of ours"
        # With a back-off that doubles from 5 s to a minute.
        assert 5 <= caplog.text.count("cron task stored-bad could not be fired, trying again in") <= 9
        broken = False
        await trio.sleep(130)
        assert bad.count >= 2
        assert len(await stage.slots("stored-bad")) >= 2


async def test_an_observer_that_fails_stops_no_tick(autojump_clock: object, stage: Stage) -> None:
    def observer(event: TaskEvent) -> None:
        raise ZeroDivisionError(event.kind)

    async with working(nothing, storage=stage, observers=[observer]) as dispatcher:
        await dispatcher.cron.add_with_name("* * * * *", "a", JOB(Job()))
        await trio.sleep(120)
    assert len(await stage.slots("a")) == 2


# ---- one tick -------------------------------------------------------------------


async def test_ticks_of_an_unknown_queue_wait_until_a_process_registers_it(
    autojump_clock: object, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(storage=stage) as dispatcher:
        await dispatcher.cron.add_with_name("0 * * * *", "hourly", JOB(Job()))
        [record] = await stage.crons()
    other = Stage()  # a storage that never heard of the queue
    await other.put_cron(record)
    async with open_dispatcher(other) as dispatcher:
        await trio.sleep(2 * 3_600)
        task = await dispatcher.cron.get_task("hourly")
        assert task.total == 0
        assert task.err_count > 50
        assert "its ticks wait" in (task.last_error or "")
        assert "trying again in 60 s: QueueNotRegisteredError: [1007] queue 'q'" in caplog.text
        with pytest.raises(QueueNotRegisteredError):
            await dispatcher.cron.trigger("hourly")
        with pytest.raises(QueueNotRegisteredError):
            await dispatcher.cron.backfill("hourly", START - timedelta(hours=5), START)
        assert await other.count(All()) == {}
        async with working(nothing, storage=other) as consumer:
            await consumer.publisher.publish(JOB(Job()))
            await trio.sleep(60)
            assert len(await other.slots("hourly")) == 1  # the latest of those that waited


async def test_ticks_of_a_removed_queue_wait_until_it_is_registered_again(
    autojump_clock: object, stage: Stage
) -> None:
    async with working(storage=stage, queues=()) as dispatcher:
        cron, control = dispatcher.cron, dispatcher.control
        await cron.add_with_name("* * * * *", "old", JOB(Job()))
        await trio.sleep(75)
        assert len(await stage.slots("old")) == 1  # from now on the queue is known
        await cron.cancel("old")
        await control.cancel(All())
        await control.prune(PruneSpec(keep=0))
        # Added when the queue was there still, and the first to tick when it is not.
        await cron.add_with_name("* * * * *", "new", JOB(Job()))
        assert await stage.remove_queue("q") is RemoveAnswer.REMOVED
        await trio.sleep(120)
        task = await cron.get_task("new")
        assert task.last_error == (
            "QueueNotRegisteredError: [1007] queue 'q' is not registered by any process yet; its ticks wait"
        )
        assert await stage.count(All()) == {}
        await stage.declare([QueueRecord(name="q")])
        await trio.sleep(120)
        assert len(await stage.slots("new")) >= 2
        # One that has ticked already is refused once, and then waits as well.
        await control.cancel(All())
        await control.prune(PruneSpec(keep=0))
        assert await stage.remove_queue("q") is RemoveAnswer.REMOVED
        total = (await cron.get_task("new")).total
        await trio.sleep(300)
        task = await cron.get_task("new")
        assert task.total == total
        assert "its ticks wait" in str(task.last_error)


async def test_a_tick_whose_task_is_refused_is_counted_and_said(
    autojump_clock: object, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dispatch.cron")
    published: list[str | None] = []
    async with working(storage=stage, observers=[lambda event: published.append(event.cron)]) as dispatcher:
        unique = Unique(on_clash=OnClash.REJECT)
        await dispatcher.cron.add_with_name("* * * * *", "one", JOB(Job(), unique=unique))
        await dispatcher.cron.add_with_name("* * * * *", "all", JOB(Job(1)))
        slot = (START + timedelta(seconds=90)).timestamp()
        [ready] = await dispatcher.cron.backfill("all", START + timedelta(seconds=60), START + timedelta(seconds=90))
        await trio.sleep(200)
        one, several = await dispatcher.cron.get_task("one"), await dispatcher.cron.get_task("all")
        assert (one.total, one.err_count) == (1, 0)  # uniqueness was asked for: no error
        assert caplog.text.count("cron task one: a unique task stands in the way of a tick's") == 2
        assert (several.total, several.err_count) == (2, 1)
        assert several.last_error == "a tick's task was not stored: it is stored already, or its queue is not known"
        assert "WARNING  dispatch.cron" in caplog.text
        assert ready in {record.id for record in (await stage.find(Crons("all"))).records}
        assert slot in await stage.slots("all")
        assert len(set(await stage.slots("all"))) == len(await stage.slots("all")) == 3
    assert published.count("one") == 1


async def test_a_replaced_entry_is_not_fired_by_its_old_definition(autojump_clock: object, stage: Stage) -> None:
    handler = Script()
    async with working(handler, storage=stage) as dispatcher:
        await dispatcher.cron.add_with_name("* * * * *", "a", JOB(Job(1)))

        async def replace() -> None:
            """Another process replaces it, between this one's looking and its step."""
            other = CronTaskDispatcher(stage, publisher=dispatcher.publisher)
            await other.add_with_name("* * * * *", "a", JOB(Job(2)), replace=True)
            [now] = await stage.crons("a")
            # Even where both stand at the same tick.
            await stage.put_cron(attrs.evolve(now, last_slot=before.last_slot), replace=True)

        [before] = await stage.crons("a")
        stage.before_advance = replace
        await trio.sleep(90)
        await dispatcher.drain()
    assert [task.payload.n for task in handler.seen] == [2, 2] or [task.payload.n for task in handler.seen] == [2]


async def test_an_answer_that_is_lost_makes_no_tick_twice(
    autojump_clock: object, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(nothing, storage=stage) as dispatcher:
        await dispatcher.cron.add_with_name("* * * * *", "a", JOB(Job()))
        stage.lost_answers = 1
        await trio.sleep(180)
        assert "cron: the storage failed, trying again in 1 s: [1021] the answer is lost" in caplog.text
        assert (await dispatcher.cron.get_task("a")).total == 3
    slots = await stage.slots("a")
    assert len(slots) == len(set(slots)) == 3


async def test_ticks_whose_commits_the_database_has_lost_stop_no_later_one(
    autojump_clock: object, stage: Stage
) -> None:
    async with working(nothing, storage=stage) as dispatcher:
        await dispatcher.cron.add_with_name("* * * * *", "a", JOB(Job()))
        stage.lost_commits = 1  # as after the crash of a server that flushes later
        await trio.sleep(300)
        assert (await dispatcher.cron.get_task("a")).total >= 4
    slots = await stage.slots("a")
    assert len(slots) == len(set(slots)) >= 4


async def test_a_backfill_may_be_repeated(autojump_clock: object, stage: Stage) -> None:
    async with working(nothing, storage=stage) as dispatcher:
        await dispatcher.cron.add_with_name("*/10 * * * *", "a", JOB(Job()))
        since, until = START - timedelta(hours=1), START + timedelta(minutes=30)
        await trio.sleep(700)  # one tick has fired by now
        ids = await dispatcher.cron.backfill("a", since, until)
        assert len(ids) == len(set(ids)) == 8
        assert await dispatcher.cron.backfill("a", since, until) == []
        await trio.sleep(3_600)
        slots = await stage.slots("a")
        assert len(slots) == len(set(slots)) == 6 + 3 + 4
        with pytest.raises(InvalidConfigError, match=r"more than 5 ticks between .*; raise limit"):
            await dispatcher.cron.backfill("a", since, until, limit=5)
        await dispatcher.cron.add_with_name("@daily", "f", nothing_at_all)
        with pytest.raises(InvalidConfigError, match="'f' is a function; only stored entries"):
            await dispatcher.cron.backfill("f", since, until)


async def nothing_at_all() -> None:
    await trio.lowlevel.checkpoint()


async def test_another_process_makes_up_nothing_when_one_is_resumed(autojump_clock: object, stage: Stage) -> None:
    async with working(nothing, storage=stage) as one, open_dispatcher(stage):
        await one.cron.add_with_name("* * * * *", "a", JOB(Job()))
        await one.cron.pause("a")
        await trio.sleep(3_600)
        await one.cron.resume("a")
        await one.cron.resume("a")  # harmless
        await trio.sleep(20)
        assert await stage.slots("a") == []
        await trio.sleep(60)
    assert len(await stage.slots("a")) == 1


async def test_two_kinds_of_one_name_in_two_processes_both_fire(autojump_clock: object, stage: Stage) -> None:
    ticks = Ticks()
    async with working(nothing, storage=stage) as here, open_dispatcher(stage) as there:
        await here.cron.add_with_name("* * * * *", "a", ticks)
        with pytest.raises(CronNameConflictError, match="'a' is a function; cancel it first"):
            await here.cron.add_with_name("* * * * *", "a", JOB(Job()), replace=True)
        await there.publisher.declare()
        await there.cron.add_with_name("* * * * *", "a", JOB(Job()))  # cannot know of the function
        await trio.sleep(120)
        assert ticks.count == len(await stage.slots("a")) == 2
        assert (await here.cron.get_task("a")).func is ticks


# ---- the storage ----------------------------------------------------------------


async def test_a_storage_that_is_away_is_waited_for_and_functions_go_on(
    autojump_clock: object, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    failures: list[tuple[str, object]] = []

    class Observer:
        def __call__(self, event: TaskEvent) -> None:
            pass

        def storage_failed(self, operation: str, error: StorageError) -> None:
            failures.append((operation, error))

    ticks = Ticks()
    async with working(nothing, storage=stage, observers=[Observer()]) as dispatcher:
        for n in range(100):
            await dispatcher.cron.add_with_name("* * * * * *", f"c{n}", JOB(Job()))
        await dispatcher.cron.add_with_name("* * * * * *", "function", ticks)
        await trio.sleep(5)
        stage.calls.clear()
        stage.away = True
        ticks.count = 0
        await trio.sleep(30)
        assert ticks.count == 30
        # Once a round for all of them, with a back-off that doubles up to 5 s.
        assert 6 <= caplog.text.count("cron: the storage failed, trying again in") <= 10
        assert 6 <= sum(operation == "cron" for operation, _ in failures) <= 10
        assert len(stage.calls) < 1_000
        stage.away = False
        await trio.sleep(6)
        published = [len(await stage.slots(f"c{n}")) for n in range(100)]
        assert min(published) >= 5 + 1  # the latest of those missed, and some of the new ones
        assert (await dispatcher.cron.get_task("c7")).err_count == 0
    for n in range(100):
        slots = await stage.slots(f"c{n}")
        assert len(slots) == len(set(slots))


async def test_a_storage_that_is_away_at_the_start_is_told_to_who_opens(stage: Stage) -> None:
    stage.away = True
    with pytest.raises(StorageError, match="the disk is gone"):
        async with working(storage=stage):
            raise AssertionError("the block began")


async def test_an_outage_hides_no_change_of_the_entries(autojump_clock: object, stage: Stage) -> None:
    async with working(nothing, storage=stage) as one, open_dispatcher(stage):
        await one.cron.add_with_name("* * * * *", "a", JOB(Job()))
        stage.away = True
        await MemoryStorage.put_cron(stage, attrs.evolve((await MemoryStorage.crons(stage))[0], name="b"))
        await trio.sleep(20)
        stage.away = False
        await trio.sleep(60)
        assert [task.name for task in await one.cron.tasks()] == ["a", "b"]
    assert len(await stage.slots("b")) == len(await stage.slots("a")) == 1


async def test_an_answer_that_took_a_minute_hides_no_entry_for_long(autojump_clock: object, stage: Stage) -> None:
    slow = FaultyStorage(stage)
    async with working(nothing, storage=stage) as one, open_dispatcher(slow):
        await one.cron.add_with_name("@daily", "first", JOB(Job()))
        slow.delay_s = 60.0
        await trio.sleep(1)  # the other one begins to read it
        slow.delay_s = 0.0
        await trio.sleep(60)
        await one.cron.add_with_name("@every 7s", "second", JOB(Job()))
        await trio.sleep(11)
        one.cron.close()
        fired = len(await stage.slots("second"))
        await trio.sleep(21)
        assert len(await stage.slots("second")) == fired + 3


# ---- cancelled ------------------------------------------------------------------


@pytest.mark.parametrize("checkpoints", range(8))
async def test_a_cancelled_add_has_added_all_or_nothing(
    autojump_clock: object, stage: Stage, checkpoints: int
) -> None:
    async with working(nothing, storage=stage) as dispatcher:
        with trio.CancelScope() as scope:

            async def cancel() -> None:
                for _ in range(checkpoints):
                    await trio.lowlevel.checkpoint()
                scope.cancel()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel)
                await dispatcher.cron.add_with_name("* * * * *", "a", JOB(Job()))
        await trio.sleep(65)
        there = len(await stage.crons("a"))
        assert len(await stage.slots("a")) == there
        await dispatcher.cron.add_with_name("* * * * *", "a", JOB(Job()))
        await trio.sleep(60)
        assert len(await stage.slots("a")) == there + 1


async def until_published(dispatcher: Dispatcher, count: int) -> list[QueueTask[Any, Any]]:
    """Wait for so many tasks."""
    while True:
        page = await dispatcher.control.find()
        if len(page.tasks) >= count:
            return list(page.tasks)
        await trio.sleep(1)


@pytest.mark.parametrize("overlap", ["queue_one", "cancel_running"])
async def test_a_tick_that_waits_for_the_previous_task_waits_once(
    autojump_clock: object, stage: Stage, overlap: Any
) -> None:
    handler = Script(200.0)
    async with working(handler, storage=stage) as dispatcher:
        await dispatcher.cron.add_with_name("* * * * *", "a", JOB(Job()), overlap=overlap)
        await until_published(dispatcher, 1)
        for _ in range(20):  # changes of others make the loop read all of them
            await dispatcher.cron.add_with_name("@yearly", "other", JOB(Job()))
            await dispatcher.cron.cancel("other")
            await trio.sleep(5)
        await trio.sleep(400)
        tasks = [task for task in (await dispatcher.control.find()).tasks if task.cron == "a"]
        statuses = [task.status.value for task in tasks]
        if overlap == "queue_one":
            assert statuses[:2] == ["succeeded", "succeeded"]
            assert len(tasks) <= 4
        else:
            assert statuses[:-1] == ["cancelled"] * (len(tasks) - 1)
            assert 7 <= len(tasks) <= 9
        await dispatcher.cron.cancel("a", running=True)
    assert len(set(await stage.slots("a"))) == len(tasks)


@pytest.mark.parametrize("overlap", ["skip", "queue_one", "cancel_running"])
async def test_a_process_that_comes_second_to_a_tick_leaves_its_task_alone(
    autojump_clock: object, stage: Stage, overlap: Any
) -> None:
    handler = Script(10.0)
    async with AsyncExitStack() as stack:
        services = [await stack.enter_async_context(working(handler, storage=stage)) for _ in range(3)]
        await services[0].cron.add_with_name("* * * * *", "a", JOB(Job()), overlap=overlap)
        await trio.sleep(629)  # a second before the eleventh
        found = (await services[0].control.find()).tasks
        assert [task.status.value for task in found] == ["succeeded"] * 10


async def test_a_tick_cancels_every_task_of_those_before_it(autojump_clock: object, stage: Stage) -> None:
    handler = Script(1_000.0)
    async with AsyncExitStack() as stack:
        services = [await stack.enter_async_context(working(handler, storage=stage)) for _ in range(3)]
        await services[0].cron.add_with_name("* * * * *", "a", JOB(Job()), overlap="cancel_running")
        triggered = [await services[0].cron.trigger("a") for _ in range(5)]
        await trio.sleep(100)
        found = (await services[0].control.find()).tasks
        assert [task.status.value for task in found] == ["cancelled"] * 6 + ["running"]
        assert {task.last_error for task in found[:6]} == {"its cron task's next tick came"}
        assert {task.id for task in triggered if task is not None} < {task.id for task in found}
        await services[0].cron.cancel("a", running=True)


class Busy:
    """Takes 10 s, as a handler and as a function, and counts how many go on at once."""

    def __init__(self) -> None:
        self.ended = self.now = self.most = 0

    async def __call__(self, task: object = None) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await trio.sleep(10)
            self.ended += 1
        finally:
            self.now -= 1


@pytest.mark.parametrize("overlap", ["skip", "queue_one", "cancel_running"])
@pytest.mark.parametrize("kind", ["stored", "function"])
@pytest.mark.parametrize("others", [0, 2])
async def test_ticks_made_up_at_once_do_not_overlap_unless_allowed(
    autojump_clock: object, overlap: Any, kind: str, others: int
) -> None:
    busy, ahead_s = Busy(), 0.0
    storage = MemoryStorage(Clock(wall=lambda: START.timestamp() + trio.current_time() + ahead_s))
    async with AsyncExitStack() as stack:
        config = TaskQueueConfig(concurrency=20)
        services = [
            await stack.enter_async_context(working(busy, config, storage=storage)) for _ in range(1 + others)
        ]
        what = busy if kind == "function" else JOB(Job())
        await services[0].cron.add_with_name("* * * * *", "a", what, misfire="all", overlap=overlap)
        await trio.sleep(1)
        ahead_s = 600.0
        await trio.sleep(60)
    # The clock jumped from 12:00:31 to 12:10:31, and the tick of 12:11 found nothing going on.
    assert busy.most == 1
    assert busy.ended == (3 if overlap == "queue_one" else 2)
    if kind == "stored":
        slots = [record.slot for record in (await storage.find(Crons("a"))).records]
        minutes = {"skip": [1, 11], "queue_one": [1, 10, 11], "cancel_running": [10, 11]}
        assert sorted(datetime.fromtimestamp(slot or 0, UTC).minute for slot in slots) == minutes[overlap]


@pytest.mark.parametrize(
    "column", ["template = ''", "template = '{}'", "last_slot = 'soon'", "created_at = 'then'", "total = 'many'"]
)
async def test_a_row_of_which_any_part_is_broken_stops_no_other(
    column: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with SqliteStorage(tmp_path / "jobs.db") as storage:
        async with open_dispatcher(storage) as dispatcher:
            dispatcher.consumer.register_queue("q")
            for name in ("bad", "good"):
                await dispatcher.cron.add_with_name("* * * * * *", name, JOB(Job()))
        with closing(sqlite3.connect(tmp_path / "jobs.db")) as db, db:
            db.execute(f"UPDATE dispatch_crons SET {column} WHERE name = 'bad'")  # noqa: S608 - from above
        async with open_dispatcher(storage) as dispatcher:
            dispatcher.consumer.register_queue("q")
            assert [each.name for each in await dispatcher.cron.tasks()] == ["good"]
            total = (await dispatcher.cron.get_task("good")).total
            with trio.fail_after(10):
                while (await dispatcher.cron.get_task("good")).total == total:  # noqa: ASYNC110 - a wall clock is waited for
                    await trio.sleep(0.1)
            assert await dispatcher.cron.cancel("bad")
    said = [each.getMessage() for each in caplog.records if "cannot be read" in each.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("cron task bad cannot be read and is left alone: ValueError: its row is broken: ")


async def test_pausing_elsewhere_takes_no_run_away(autojump_clock: object, stage: Stage) -> None:
    other = CronTaskDispatcher(stage)

    async def long(task: QueueTask[Job]) -> None:
        await trio.sleep(500)

    async with working(long, storage=stage) as dispatcher:
        await dispatcher.cron.add_with_name("* * * * *", "long", JOB(Job()), overlap="cancel_running")
        await trio.sleep(89.5)
        await dispatcher.cron.add_with_name("0 0 1 1 *", "any", JOB(Job()))  # entries are not read for a while
        await trio.sleep(0.2)
        await other.pause("long")
        await trio.sleep(900)
        [record] = (await stage.find(Crons("long"))).records
        assert record.status is TaskStatus.SUCCEEDED


async def test_a_tick_that_waited_when_its_entry_was_paused_is_not_late_for_ever(
    autojump_clock: object, stage: Stage
) -> None:
    async with working(storage=stage) as dispatcher:
        await dispatcher.cron.add_with_name("* * * * *", "one", JOB(Job()), overlap="queue_one")
        await trio.sleep(119)
        entry = dispatcher.cron._stored.entries["one"]
        assert entry.late
        await dispatcher.cron.pause("one")
        await dispatcher.cron.resume("one")
        assert not entry.late


async def test_an_entry_that_is_cancelled_while_it_cannot_be_fired_is_gone(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    class Slow(Stage):
        async def queues(self) -> list[QueueRecord]:
            await trio.sleep(0.05)
            return await super().queues()

    stage = Slow()
    nowhere = TaskType("unknown", "job", Job)
    async with open_dispatcher(stage, cron=[CronEntry("* * * * *", "lost", nowhere(Job()))]) as dispatcher:
        await trio.sleep(30 - (stage.now() - START.timestamp()) + 0.02)
        assert await dispatcher.cron.cancel("lost")
        caplog.clear()
        await trio.sleep(600)
        assert repr(dispatcher.cron) == "<CronTaskDispatcher functions=0 stored=0 due=0>"
    assert len([each for each in caplog.records if "could not be fired" in each.getMessage()]) <= 1


# ---- one name -------------------------------------------------------------------


async def test_a_function_and_a_declared_task_of_one_name_are_refused_at_the_start() -> None:
    dispatcher = Dispatcher(cron=[CronEntry("* * * * *", "x", JOB(Job()))])
    dispatcher.consumer.register_queue("q")
    await dispatcher.cron.add_with_name("* * * * *", "x", Ticks())
    with pytest.raises(CronNameConflictError) as caught:
        await dispatcher.serve()
    assert caught.value.detail == "cron task 'x' is a function; cancel it first"


class Slow(Stage):
    """What is found of one entry is known five seconds later."""

    async def crons(self, name: str | None = None) -> list[CronRecord]:
        found = await super().crons(name)
        if name is not None:
            await trio.sleep(5)
        return found


async def test_of_two_kinds_that_are_added_at_once_one_is_refused(autojump_clock: object) -> None:
    refused: list[str] = []
    async with open_dispatcher(Slow()) as dispatcher:
        dispatcher.consumer.register_queue("q")

        async def add(what: Any) -> None:
            try:
                await dispatcher.cron.add_with_name("0 0 1 1 *", "x", what)
            except CronNameConflictError as exc:
                refused.append(exc.detail)

        async with trio.open_nursery() as nursery:
            for what in (Ticks(), JOB(Job())):
                nursery.start_soon(add, what)
        assert len(await dispatcher.cron.tasks()) == len(refused) == 1


async def test_a_function_is_not_added_by_one_who_is_closed_meanwhile(autojump_clock: object) -> None:
    async with open_dispatcher(Slow()) as dispatcher, trio.open_nursery() as nursery:

        async def add() -> None:
            with pytest.raises(ClosedError):
                await dispatcher.cron.add_with_name("@every 1s", "x", Ticks())

        nursery.start_soon(add)
        await trio.sleep(1)
        dispatcher.close()


async def test_closing_while_it_starts_is_no_error(autojump_clock: object) -> None:
    dispatcher = CronTaskDispatcher(Slow(), declared=[CronEntry("@every 1s", "x", Ticks())])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dispatcher.run)
        await trio.sleep(1)
        dispatcher.close()


async def test_an_add_that_is_cancelled_leaves_nothing_behind(autojump_clock: object, stage: Stage) -> None:
    dispatcher = CronTaskDispatcher(stage)
    for _ in range(10):
        with trio.CancelScope() as scope:
            scope.cancel()
            await dispatcher.add("@daily", Ticks())
    assert not dispatcher._adding


# ---- what is given --------------------------------------------------------------


async def test_what_is_no_name_means_no_entry(autojump_clock: object, stage: Stage) -> None:
    async with working(storage=stage) as dispatcher:
        await dispatcher.cron.add_with_name("0 0 1 1 *", "first", JOB(Job()))
        cron: Any = dispatcher.cron
        for act in (cron.get_task, cron.trigger, cron.pause, cron.resume, cron.cancel, cron.preview):
            with pytest.raises(InvalidConfigError) as caught:
                await act(None)
            assert caught.value.detail == "a cron task is named by a str, got None"
        assert await stage.slots("first") == []
        assert len(await dispatcher.cron.tasks()) == 1


@pytest.mark.parametrize("reason", [None, "", 3, "\ud800", "a\0b"])
async def test_a_pause_needs_a_reason_that_can_be_stored(
    reason: Any, autojump_clock: object, stage: Stage
) -> None:
    async with working(storage=stage) as dispatcher:
        await dispatcher.cron.add_with_name("0 0 1 1 *", "x", JOB(Job()))
        with pytest.raises(InvalidConfigError) as caught:
            await dispatcher.cron.pause("x", reason)
        assert caught.value.detail == f"pause: the reason must be a str that can be stored, got {reason!r}"


@pytest.mark.parametrize("limit", [-1, "3", 1.5, True])
async def test_a_backfill_has_a_limit_that_is_a_number(limit: Any, autojump_clock: object, stage: Stage) -> None:
    async with working(storage=stage) as dispatcher:
        await dispatcher.cron.add_with_name("@hourly", "x", JOB(Job()))
        with pytest.raises(InvalidConfigError):
            await dispatcher.cron.backfill("x", START - timedelta(days=90), START, limit=limit)
        assert await stage.slots("x") == []


@pytest.mark.parametrize("until", [START.replace(tzinfo=None), "2026-03-01", None])
async def test_a_backfill_is_between_moments(until: Any, autojump_clock: object, stage: Stage) -> None:
    async with working(storage=stage) as dispatcher:
        await dispatcher.cron.add_with_name("@hourly", "x", JOB(Job()))
        with pytest.raises(InvalidConfigError, match="backfill: until must be an aware datetime, got "):
            await dispatcher.cron.backfill("x", START - timedelta(days=1), until)
        assert await stage.slots("x") == []


async def test_an_every_with_a_start_counts_from_there(autojump_clock: object, stage: Stage) -> None:
    start = datetime(2026, 3, 3, tzinfo=UTC)
    expected = CronSpec("@every 6h", start=start).preview(2, after=START)
    assert [moment.hour for moment in expected] == [6, 12]
    async with working(storage=stage) as dispatcher:
        await dispatcher.cron.add_with_name("@every 6h", "function", Ticks(), start=start)
        await dispatcher.cron.add_with_name("@every 6h", "stored", JOB(Job()), start=start)
        for name in ("function", "stored"):
            assert await dispatcher.cron.preview(name, 2) == expected
            assert (await dispatcher.cron.get_task(name)).next == expected[0]


async def test_a_text_and_its_spec_are_the_same_cron_task(autojump_clock: object, stage: Stage) -> None:
    async with working(storage=stage) as dispatcher:
        await dispatcher.cron.add_with_name("0 * * * *", "x", JOB(Job()))
        await dispatcher.cron.add_with_name(CronSpec("0 * * * *"), "x", JOB(Job()))
        assert len(await dispatcher.cron.tasks()) == 1


@pytest.mark.parametrize("bound", ["start", "end", "anchor"])
def test_a_bound_that_is_no_moment_is_refused(bound: str) -> None:
    given: dict[str, Any] = {bound: "2026-01-01"}
    with pytest.raises(InvalidConfigError) as caught:
        CronSpec("* * * * *", **given)
    assert caught.value.detail == f"{bound} must be an aware datetime, got '2026-01-01'"


def test_a_description_is_a_text() -> None:
    description: Any = object()
    with pytest.raises(InvalidConfigError, match="description must be a str"):
        CronEntry("@daily", "x", JOB(Job()), description=description)


def test_enqueue_answers_that_are_no_refusal_are_known() -> None:
    # What `trigger` takes for success: a new member has to be thought about there.
    assert set(EnqueueAnswer) == {
        "created", "existing", "replaced", "rejected", "full", "unknown_queue", "claim_lost"
    }  # fmt: skip
