"""Go's `CronTaskDispatcher`, and its holes closed."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import attrs
import pytest
import trio

from dispatch import (
    ClosedError,
    CronNameConflictError,
    CronTask,
    CronTaskNotFoundError,
    InvalidConfigError,
    InvalidCronSpecError,
    InvalidTaskHandlerError,
    MemoryStorage,
    Unique,
    open_dispatcher,
)
from dispatch.checks import shown
from dispatch.cron.dispatcher import CronTaskDispatcher
from dispatch.errors import UsageError
from dispatch.storage.query import All

from .work import JOB, Job, Script, nothing, working


class Ticks:
    def __init__(self, takes_s: float = 0.0) -> None:
        self.times: list[float] = []
        self.takes_s = takes_s

    async def __call__(self) -> None:
        self.times.append(trio.current_time())
        await trio.sleep(self.takes_s)


async def test_add_runs_a_function_on_its_schedule_under_a_uuid(autojump_clock: object) -> None:
    ticks = Ticks()
    async with open_dispatcher() as dispatcher:
        entry = await dispatcher.cron.add("@every 10s", ticks)
        assert re.fullmatch(r"[0-9a-f-]{36}", entry.name)
        await trio.sleep(35)
        assert (entry.total, entry.err_count) == (3, 0)
    assert [round(b - a) for a, b in zip(ticks.times, ticks.times[1:], strict=False)] == [10, 10]


async def test_add_with_name_and_six_fields_fires_every_second(autojump_clock: object) -> None:
    ticks = Ticks()
    async with open_dispatcher() as dispatcher:
        await dispatcher.cron.add_with_name("* * * * * *", "each-second", ticks)
        await trio.sleep(5.5)
        assert len(ticks.times) in (5, 6)
        assert (await dispatcher.cron.get_task("each-second")).func is ticks


async def test_add_task_takes_a_cron_task_made_by_hand(autojump_clock: object) -> None:
    ticks = Ticks()
    async with open_dispatcher() as dispatcher:
        made = CronTask("tidy", ticks, "tidies up")
        entry = await dispatcher.cron.add_task("@every 5s", made)
        assert entry is made
        assert (entry.name, entry.description) == ("tidy", "tidies up")
        with pytest.raises(InvalidConfigError, match=r"was added already; make another CronTask$"):
            await dispatcher.cron.add_task("@every 5s", made)
        await trio.sleep(12)
        assert entry.total == 2


async def test_of_a_stored_task_the_answer_is_live_and_says_what_it_publishes(autojump_clock: object) -> None:
    template = JOB(Job(4), key="k", tags=("t",), headers={"h": "1"}, delay=1.0, max_retry=2, unique=Unique(key="u"))
    async with working(Script()) as dispatcher:
        made = CronTask("stored", task=template)
        live = await dispatcher.cron.add_task("@every 10s", made)
        await trio.sleep(25)
        assert (live.total, made.total) == (2, 0)
        assert live is await dispatcher.cron.get_task("stored")
        assert [live] == await dispatcher.cron.tasks()
        assert live.task == attrs.evolve(template, unique=None)
        assert live.task.declared is JOB
        with pytest.raises(InvalidConfigError, match=r"^\[1012\] cron: <CronTask 'stored' .*> was added already"):
            await dispatcher.cron.add_task("@every 10s", live)


async def test_the_task_of_an_entry_is_read_by_the_type_that_is_known_by_then(autojump_clock: object) -> None:
    storage = MemoryStorage()
    async with working(nothing, storage=storage) as dispatcher:
        await dispatcher.cron.add_with_name("@daily", "stored", JOB(Job(4)))
    async with working(storage=storage) as dispatcher:
        entry = await dispatcher.cron.get_task("stored")
        assert entry.task is not None
        assert entry.task.payload == {"n": 4}
        dispatcher.consumer.register_handler(JOB, nothing)
        assert await dispatcher.cron.get_task("stored") is entry
        assert entry.task.payload == Job(4)


@pytest.mark.parametrize(
    ("task", "why"),
    [
        (nothing, f"cron: add_task takes a CronTask, got {shown(nothing)}; add and add_with_name take a function or a task itself"),
        (CronTask("a", Ticks(), task=JOB(Job())), "cron task 'a': has both a function and a task to publish; make a CronTask of each"),
        (CronTask("a"), "cron task 'a': needs a function of no arguments or a QueueTask, got None"),
        (CronTask("a", task=5), "cron task 'a': needs a function of no arguments or a QueueTask, got 5"),
        (CronTask("a", Ticks(), 5), "cron task 'a': description must be a str, got 5"),
        (CronTask(""), "a cron task without a name: needs a function of no arguments or a QueueTask, got None"),
    ],
    ids=["a_function", "both", "neither", "no_task", "no_description", "no_name"],
)
async def test_add_task_takes_a_cron_task_with_one_thing_to_do(task: Any, why: str) -> None:
    async with open_dispatcher() as dispatcher:
        with pytest.raises(UsageError) as caught:
            await dispatcher.cron.add_task("@daily", task)
        assert caught.value.detail == why
        assert await dispatcher.cron.tasks() == []


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (5, "needs a function of no arguments or a QueueTask, got 5"),
        (JOB(Job(), id="x"), "its task has the id 'x', but each tick publishes one with an id of its own; leave the id out"),
    ],
    ids=["no_function", "id"],
)
async def test_add_refuses_without_the_name_that_it_would_have_made(what: Any, why: str) -> None:
    async with open_dispatcher() as dispatcher:
        with pytest.raises(UsageError) as caught:
            await dispatcher.cron.add("@daily", what)
        assert caught.value.detail == f"a cron task without a name: {why}"
        assert await dispatcher.cron.tasks() == []


async def test_a_queue_task_is_published_at_each_tick(autojump_clock: object) -> None:
    handler = Script()
    async with working(handler) as dispatcher:
        await dispatcher.cron.add_with_name("@every 10s", "stored", JOB(Job(4)))
        await trio.sleep(25)
        entry = await dispatcher.cron.get_task("stored")
        assert entry.total == 2
        await dispatcher.drain()
    assert [(task.payload, task.cron) for task in handler.seen] == [(Job(4), "stored")] * 2


async def test_the_function_of_a_live_task_may_be_replaced(autojump_clock: object) -> None:
    old, new = Ticks(), Ticks()
    async with open_dispatcher() as dispatcher:
        entry = await dispatcher.cron.add("@every 10s", old)
        await trio.sleep(15)
        entry.func = new
        await trio.sleep(10)
    assert (len(old.times), len(new.times)) == (1, 1)


async def test_a_cancelled_cron_task_is_gone_and_fires_no_more(autojump_clock: object) -> None:
    ticks = Ticks()
    async with open_dispatcher() as dispatcher:
        await dispatcher.cron.add_with_name("@every 10s", "tick", ticks)
        await trio.sleep(15)
        assert await dispatcher.cron.cancel("tick") is True
        assert await dispatcher.cron.cancel("tick") is False
        with pytest.raises(CronTaskNotFoundError) as caught:
            await dispatcher.cron.get_task("tick")
        assert str(caught.value) == "[1017] no cron task is named 'tick'; there are: none"
        assert await dispatcher.cron.tasks() == []
        await trio.sleep(100)
    assert len(ticks.times) == 1


async def test_cancel_leaves_a_run_alone_unless_told(autojump_clock: object) -> None:
    ended: list[str] = []

    async def slow() -> None:
        await trio.sleep(30)
        ended.append("slow")

    async with open_dispatcher() as dispatcher:
        for name, running in (("a", False), ("b", True)):
            await dispatcher.cron.add_with_name("@every 10s", name, slow)
            await trio.sleep(11)
            await dispatcher.cron.cancel(name, running=running)
        await trio.sleep(60)
    assert ended == ["slow"]


async def test_the_same_entry_again_is_a_no_op_and_a_different_one_an_error(autojump_clock: object) -> None:
    ticks = Ticks()
    async with working() as dispatcher:
        first = await dispatcher.cron.add_with_name("@every 10s", "a", ticks)
        assert await dispatcher.cron.add_with_name("@every 10s", "a", ticks) is first
        for spec, what in (("@every 20s", ticks), ("@every 10s", Ticks())):
            with pytest.raises(CronNameConflictError) as caught:
                await dispatcher.cron.add_with_name(spec, "a", what)
            assert str(caught.value) == (
                "[1015] a different cron task is named 'a'; pass replace=True to replace it, or cancel it first"
            )
        for replace in (False, True):  # not advised either: a task is no function
            with pytest.raises(CronNameConflictError) as caught:
                await dispatcher.cron.add_with_name("@every 10s", "a", JOB(Job()), replace=replace)
            assert str(caught.value) == "[1015] cron task 'a' is a function; cancel it first"
        await dispatcher.cron.add_with_name("@every 20s", "a", ticks, replace=True)
        await trio.sleep(25)
        assert len(ticks.times) == 1


async def test_counters_are_right_under_overlap(autojump_clock: object, caplog: pytest.LogCaptureFixture) -> None:
    runs = 0

    async def slow_and_bad() -> None:
        nonlocal runs
        runs += 1
        mine = runs
        await trio.sleep(25)
        if mine % 2:
            raise ValueError("odd")

    async with open_dispatcher(grace=60.0) as dispatcher:
        entry = await dispatcher.cron.add_with_name("@every 10s", "x", slow_and_bad)
        await trio.sleep(46)
        assert (entry.total, entry.running) == (4, 2)
    assert (entry.total, entry.err_count, entry.running) == (4, 2, 0)
    assert entry.last_error == "ValueError: odd"
    assert "cron task x failed: ValueError: odd" in caplog.text


async def test_closing_waits_for_running_functions(autojump_clock: object) -> None:
    ended: list[float] = []

    async def slow() -> None:
        await trio.sleep(5)
        ended.append(trio.current_time())

    async with open_dispatcher() as dispatcher:
        await dispatcher.cron.add("@every 10s", slow)
        await trio.sleep(11)
    assert len(ended) == 1


async def test_a_zone_may_be_given_as_a_zoneinfo() -> None:
    async with open_dispatcher() as dispatcher:
        dispatcher.consumer.register_queue("q")
        for what in (Ticks(), JOB(Job())):
            name = type(what).__name__
            await dispatcher.cron.add_with_name("30 2 * * *", name, what, zone=ZoneInfo("Europe/Berlin"))
            task = await dispatcher.cron.get_task(name)
            assert task.spec is not None
            assert task.spec.zone == "Europe/Berlin"


async def test_adding_after_the_end_is_refused(autojump_clock: object) -> None:
    async with open_dispatcher() as dispatcher:
        pass
    with pytest.raises(ClosedError) as caught:
        await dispatcher.cron.add_with_name("@every 10s", "beat", Ticks())
    assert str(caught.value) == (
        "[1013] cron task 'beat' was not added: this cron dispatcher is closed; add it to one that is not"
    )


@pytest.mark.parametrize("flag", ["no", 0, None])
async def test_a_word_for_no_replaces_nothing_and_cancels_no_run(autojump_clock: object, flag: Any) -> None:
    ended: list[bool] = []

    async def slow() -> None:
        await trio.sleep(5)
        ended.append(True)

    async with open_dispatcher() as dispatcher:
        kept = await dispatcher.cron.add_with_name("@every 10s", "slow", slow)
        await trio.sleep(11)
        with pytest.raises(InvalidConfigError, match="cron task 'slow': replace must be True or False, got"):
            await dispatcher.cron.add_with_name("@hourly", "slow", slow, replace=flag)
        with pytest.raises(InvalidConfigError, match="cancel: running must be True or False, got"):
            await dispatcher.cron.cancel("slow", running=flag)
        assert await dispatcher.cron.get_task("slow") is kept
        await trio.sleep(5)
    assert ended == [True]


@pytest.mark.parametrize("text", ["0 0 30 2 *", "TZ=UTC", "CRON_TZ=", "61 * * * *", "", "@every 0s"])
async def test_what_can_never_fire_is_refused_at_once(text: str) -> None:
    async with open_dispatcher() as dispatcher:
        with pytest.raises(InvalidCronSpecError):
            await dispatcher.cron.add(text, Ticks())
        assert await dispatcher.cron.tasks() == []


@pytest.mark.parametrize("what", [None, 3, lambda needed: needed])
async def test_what_cannot_be_called_is_refused(what: object) -> None:
    async with open_dispatcher() as dispatcher:
        with pytest.raises(InvalidTaskHandlerError):
            await dispatcher.cron.add("@every 10s", what)  # type: ignore[arg-type]


async def test_a_keyboard_interrupt_in_a_cron_function_reaches_the_application(autojump_clock: object) -> None:
    async def bad() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the block is what is tested
        async with open_dispatcher() as dispatcher:
            await dispatcher.cron.add("@every 10s", bad)
            await trio.sleep_forever()


async def test_pausing_keeps_it_and_resuming_goes_on_from_now(autojump_clock: object) -> None:
    ticks, handler = Ticks(), Script()
    async with working(handler) as dispatcher:
        await dispatcher.cron.add_with_name("@every 10s", "f", ticks)
        await dispatcher.cron.add_with_name("@every 10s", "s", JOB(Job()))
        for name in ("f", "s"):
            await dispatcher.cron.pause(name, "maintenance")
            assert (await dispatcher.cron.get_task(name)).paused_reason == "maintenance"
        await trio.sleep(95)
        for name in ("f", "s"):
            await dispatcher.cron.resume(name)
        await trio.sleep(10)
        assert (len(ticks.times), len(handler.seen)) == (1, 1)


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("stored", [False, True])
async def test_a_tick_that_waits_for_a_run_is_dropped_by_a_pause(
    autojump_clock: object, resumed: bool, stored: bool
) -> None:
    ticks, handler = Ticks(15.0), Script(15.0)
    async with working(handler) as dispatcher:
        what = JOB(Job()) if stored else ticks
        await dispatcher.cron.add_with_name("@every 10s", "a", what, overlap="queue_one")
        await trio.sleep(21)  # a run goes on from 10 to 25 s, and the tick of 20 s waits
        await dispatcher.cron.pause("a")
        if resumed:
            await dispatcher.cron.resume("a")
        await trio.sleep(8)
        assert len(handler.seen if stored else ticks.times) == 1
        await trio.sleep(2)
        assert len(handler.seen if stored else ticks.times) == 1 + resumed
        await dispatcher.cron.cancel("a", running=True)


async def test_resuming_what_is_not_paused_drops_no_waiting_tick(autojump_clock: object) -> None:
    ticks = Ticks(15.0)
    async with open_dispatcher() as dispatcher:
        await dispatcher.cron.add_with_name("@every 10s", "a", ticks, overlap="queue_one")
        await trio.sleep(21)
        await dispatcher.cron.resume("a")
        await trio.sleep(5)
        assert len(ticks.times) == 2
        await dispatcher.cron.cancel("a", running=True)


async def test_a_function_put_in_place_of_another_keeps_its_pause(autojump_clock: object) -> None:
    ticks = Ticks()
    async with open_dispatcher() as dispatcher:
        await dispatcher.cron.add_with_name("@every 10s", "a", ticks)
        await dispatcher.cron.pause("a", "maintenance")
        for text in ("@every 10s", "@every 7s"):
            entry = await dispatcher.cron.add_with_name(text, "a", Ticks(), replace=True, description=text)
            await trio.sleep(95)
            assert (entry.paused_reason, entry.total, entry.next) == ("maintenance", 0, None)
        await dispatcher.cron.resume("a")
        await trio.sleep(8)
        assert entry.total == 1


async def test_a_function_put_in_place_of_another_knows_its_runs(autojump_clock: object) -> None:
    first, second = Ticks(35.0), Ticks(1.0)
    async with open_dispatcher() as dispatcher:
        before = await dispatcher.cron.add_with_name("@every 10s", "a", first, overlap="skip")
        await trio.sleep(11)
        entry = await dispatcher.cron.add_with_name("@every 10s", "a", second, overlap="skip", replace=True)
        assert (entry.running, entry.total, before.running) == (1, 1, 0)
        await trio.sleep(33)
        assert (len(second.times), entry.running) == (0, 1)  # the run of 10 s goes on until 45 s
        await trio.sleep(10)
        assert (len(second.times), entry.running, entry.total) == (1, 0, 2)


@pytest.mark.parametrize("overlap", ["skip", "cancel_running"])
async def test_a_function_put_in_place_of_another_cancels_its_runs(autojump_clock: object, overlap: Any) -> None:
    first, second = Ticks(1_000.0), Ticks()
    async with open_dispatcher() as dispatcher:
        await dispatcher.cron.add_with_name("@every 10s", "a", first)
        await trio.sleep(21)
        entry = await dispatcher.cron.add_with_name("@every 10s", "a", second, overlap=overlap, replace=True)
        assert entry.running == 2
        if overlap == "cancel_running":
            await trio.sleep(10)
            assert (entry.running, len(second.times)) == (0, 1)
        else:
            await dispatcher.cron.cancel("a", running=True)
            await trio.sleep(1)
            assert (entry.running, len(second.times)) == (0, 0)


async def test_functions_replaced_more_often_than_their_period_still_run(autojump_clock: object) -> None:
    ticks = Ticks()
    async with open_dispatcher() as dispatcher:
        for number in range(9):
            words = f"change {number}"
            await dispatcher.cron.add_with_name("@every 10s", "a", ticks, description=words, replace=True)
            await trio.sleep(6)
    assert [round(moment - ticks.times[0]) for moment in ticks.times] == [0, 10, 20, 30, 40]


async def test_nothing_is_triggered_once_nobody_would_run_it(autojump_clock: object) -> None:
    async with working(nothing) as dispatcher:
        await dispatcher.cron.add_with_name("@hourly", "s", JOB(Job()))
    since = datetime.fromtimestamp(dispatcher.storage.now(), UTC)
    for act in (
        partial(dispatcher.cron.trigger, "s"),
        partial(dispatcher.cron.backfill, "s", since, since + timedelta(hours=2)),
    ):
        with pytest.raises(ClosedError, match="was not stored: the publisher is closed, its dispatcher's block"):
            await act()
    assert await dispatcher.storage.count(All()) == {}


async def test_trigger_runs_it_now(autojump_clock: object) -> None:
    ticks, handler = Ticks(), Script()
    async with working(handler) as dispatcher:
        await dispatcher.cron.add_with_name("@daily", "f", ticks)
        await dispatcher.cron.add_with_name("@daily", "s", JOB(Job()))
        assert await dispatcher.cron.trigger("f") is None
        published = await dispatcher.cron.trigger("s")
        assert published is not None
        assert (await dispatcher.publisher.wait(published)).cron == "s"
        assert len(ticks.times) == 1


async def test_a_cancelled_cron_loop_cancels_its_functions(autojump_clock: object) -> None:
    from dispatch import MemoryStorage

    cancelled: list[bool] = []

    async def slow() -> None:
        try:
            await trio.sleep(60)
        except trio.Cancelled:
            cancelled.append(True)
            raise

    async with trio.open_nursery() as nursery:
        cron = CronTaskDispatcher(MemoryStorage())
        await nursery.start(cron.run)
        await cron.add("@every 10s", slow)
        await trio.sleep(15)
        nursery.cancel_scope.cancel()
    assert cancelled == [True]
