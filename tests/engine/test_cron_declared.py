"""Entries declared in code, beside those added at run time."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import attrs
import pytest
import trio

from dispatch import (
    Clock,
    ClosedError,
    CronEntry,
    CronNameConflictError,
    CronPolicy,
    CronSpec,
    CronTask,
    CronTaskNotFoundError,
    Dispatcher,
    DispatchError,
    InvalidConfigError,
    InvalidCronSpecError,
    InvalidTaskHandlerError,
    MemoryStorage,
    QueueTask,
    StorageError,
    Unique,
    open_dispatcher,
)
from dispatch.cron.stored import ABANDONED
from dispatch.testing.proxy import StorageProxy

from .work import JOB, Job, Script, nothing, working

T = TypeVar("T")

FAIL_AFTER_S = 1_000_000.0
START = datetime(2026, 3, 2, 12, 0, 30, tzinfo=UTC)
HOUR_S = 3_600.0


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage(Clock(START), keep_finished=100_000)


def entry(text: str = "0 * * * *", name: str = "hourly", n: int = 0, **options: Any) -> CronEntry:
    return CronEntry(text, name, JOB(Job(n)), **options)


async def test_declared_entries_are_there_when_the_block_begins_and_fire(autojump_clock: object) -> None:
    handler, ticks = Script(), Script()

    async def tick() -> None:
        await ticks(None)

    declared = [
        entry("0 * * * *", "stored", 7, zone="Europe/Berlin", misfire="skip", description="says so"),
        CronEntry("*/30 * * * *", "function", tick),
    ]
    async with working(handler, cron=declared, clock=Clock(START)) as dispatcher:
        function, stored = await dispatcher.cron.tasks()
        assert (function.name, function.declared, function.func) == ("function", False, tick)
        assert (stored.name, stored.declared, stored.description) == ("stored", True, "says so")
        assert stored.policy == CronPolicy(misfire="skip")
        await dispatcher.cron.add_with_name("0 * * * *", "late", JOB(Job(8)))
        await trio.sleep(HOUR_S)
    assert sorted((task.payload.n, task.cron) for task in handler.seen) == [(7, "stored"), (8, "late")]
    assert len(ticks.seen) == 2


async def test_the_queue_of_a_declared_entry_may_be_registered_later(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Script()
    async with open_dispatcher(cron=[entry("* * * * *", "early")], clock=Clock(START)) as dispatcher:
        await trio.sleep(64)  # the entry tries again at 65
        task = await dispatcher.cron.get_task("early")
        assert (task.total, task.err_count > 0) == (0, True)
        assert task.last_error == (
            "QueueNotRegisteredError: [1007] queue 'q' is not registered by any process yet; its ticks wait"
        )
        assert "cron task early could not be fired, trying again in 5 s" in caplog.text
        dispatcher.consumer.register_queue("q")
        dispatcher.consumer.register_handler(JOB, handler)
        await trio.sleep(61)
        assert (await dispatcher.cron.get_task("early")).total == 2
        await dispatcher.drain()
    assert len(handler.seen) == 2


async def test_declaring_the_same_again_keeps_its_place_and_makes_up_what_was_missed(
    autojump_clock: object, storage: MemoryStorage
) -> None:
    handler = Script()
    for _ in range(2):
        async with working(handler, storage=storage, cron=[entry()]) as dispatcher:
            await trio.sleep(HOUR_S)
            await dispatcher.drain()
        await trio.sleep(5 * HOUR_S)
    [record] = await storage.crons()
    assert (record.total, record.declared) == (3, True)
    slots = [datetime.fromtimestamp(slot, UTC).hour for slot in await slots_of(storage)]
    assert slots == [13, 18, 19]  # the latest of those missed from 14 to 18, and no other


async def slots_of(storage: MemoryStorage) -> list[float]:
    from dispatch.storage.query import All

    records = (await storage.find(All(), limit=1_000)).records
    return [record.slot for record in records if record.slot is not None]


async def test_a_new_definition_replaces_the_stored_one_and_an_old_process_leaves_it(
    autojump_clock: object, storage: MemoryStorage
) -> None:
    handler = Script()
    async with working(handler, storage=storage, cron=[entry("0 * * * *", n=1)]) as old:
        await trio.sleep(HOUR_S)
        async with working(handler, storage=storage, cron=[entry("30 * * * *", n=2)]) as new:
            await trio.sleep(5 * HOUR_S)  # long enough for the old one to have renewed its own
            for dispatcher in (old, new):
                task = await dispatcher.cron.get_task("hourly")
                assert (task.spec, task.total) == (CronSpec("30 * * * *", name="hourly"), 6)
            await new.drain()
    assert [task.payload.n for task in handler.seen] == [1, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("change", ["spec", "zone", "policy", "payload", "description"])
async def test_whatever_is_changed_makes_a_new_definition(
    autojump_clock: object, storage: MemoryStorage, change: str
) -> None:
    other: dict[str, CronEntry] = {
        "spec": entry("5 * * * *"),
        "zone": entry(zone="Asia/Kolkata"),
        "policy": entry(overlap="skip"),
        "payload": entry(n=1),
        "description": entry(description="new"),
    }
    async with working(storage=storage, cron=[entry()]):
        [before] = await storage.crons()
    async with working(storage=storage, cron=[other[change]]):
        [after] = await storage.crons()
    assert before.definition != after.definition
    assert (after.created_at, after.declared) == (before.created_at, True)


@pytest.mark.parametrize("replace", [False, True])
async def test_a_declared_entry_is_not_changed_at_run_time(autojump_clock: object, replace: bool) -> None:
    async with working(cron=[entry()]) as dispatcher:
        same = await dispatcher.cron.add_with_name("0 * * * *", "hourly", JOB(Job(0)), replace=replace)
        assert same is await dispatcher.cron.get_task("hourly")
        with pytest.raises(CronNameConflictError) as caught:
            await dispatcher.cron.add_with_name("1 * * * *", "hourly", JOB(Job(0)), replace=replace)
        assert str(caught.value) == (
            "[1015] a different cron task named 'hourly' is declared in code, "
            "for open_dispatcher(cron=[...]); change it there"
        )
        with pytest.raises(CronNameConflictError, match="'hourly' is a stored entry that publishes a task"):
            await dispatcher.cron.add_with_name("1 * * * *", "hourly", print, replace=replace)


async def test_a_declared_entry_does_not_take_the_name_of_one_added_at_run_time(
    autojump_clock: object, storage: MemoryStorage
) -> None:
    async with working(storage=storage) as dispatcher:
        await dispatcher.cron.add_with_name("0 * * * *", "hourly", JOB(Job(0)))
    with pytest.raises(CronNameConflictError) as caught:
        async with working(storage=storage, cron=[entry("5 * * * *")]):
            raise AssertionError("the block began")
    assert str(caught.value) == (
        "[1015] cron task 'hourly' is declared in code, and a different one was added at run time; "
        "cancel that one first, or declare this one under another name"
    )
    async with working(storage=storage, cron=[entry()]):  # the same is a no-op: it stays what it was
        [record] = await storage.crons()
        assert not record.declared
    async with working(storage=storage):
        await trio.sleep(2 * HOUR_S)
        assert (await storage.crons())[0].paused_reason is None


async def test_a_declared_function_does_not_take_the_name_of_a_stored_entry(
    autojump_clock: object, storage: MemoryStorage
) -> None:
    async with working(storage=storage) as dispatcher:
        await dispatcher.cron.add_with_name("0 * * * *", "taken", JOB(Job(0)))
    with pytest.raises(CronNameConflictError, match="'taken' is a stored entry that publishes a task"):
        async with working(storage=storage, cron=[CronEntry("0 * * * *", "taken", print)]):
            raise AssertionError("the block began")


async def test_one_that_nobody_has_declared_for_an_hour_is_paused_and_declaring_resumes_it(
    autojump_clock: object, storage: MemoryStorage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with working(storage=storage, cron=[entry()]):
        await trio.sleep(60)
    async with working(storage=storage) as dispatcher:
        await trio.sleep(HOUR_S - 61)
        assert not (await dispatcher.cron.get_task("hourly")).paused
        await trio.sleep(2)
        task = await dispatcher.cron.get_task("hourly")
        assert (task.paused_reason, task.total) == (ABANDONED, 1)  # until then others fire it
        assert "cron task hourly is paused: no running process has declared it for an hour" in caplog.text
        await trio.sleep(5 * HOUR_S)
        async with working(storage=storage, cron=[entry()]) as again:
            assert not (await again.cron.get_task("hourly")).paused
            assert "cron task hourly is declared again, and resumed" in caplog.text
            await trio.sleep(HOUR_S)
            assert (await again.cron.get_task("hourly")).total == 2  # nothing is made up


class Unsaid(StorageProxy):
    """One to which nothing can be declared for a while."""

    away = False

    async def around(self, method: str, call: Callable[[], Awaitable[T]]) -> T:
        if method == "put_cron" and self.away:
            raise StorageError("away")
        return await call()


async def test_two_processes_do_not_pause_and_resume_in_turn_what_cannot_be_renewed(
    autojump_clock: object, storage: MemoryStorage, caplog: pytest.LogCaptureFixture
) -> None:
    unsaid = Unsaid(storage)
    async with working(storage=unsaid, cron=[entry()]), working(storage=storage):
        await trio.sleep(60)
        unsaid.away = True
        await trio.sleep(3 * HOUR_S)
        assert caplog.text.count("is paused: no running process has declared it for an hour") == 1
        assert "is declared again" not in caplog.text
        unsaid.away = False
        await trio.sleep(2 * HOUR_S)
        assert caplog.text.count("is declared again, and resumed") == 1
        [record] = await storage.crons()
        assert record.paused_reason is None


async def test_a_living_process_keeps_what_it_declares_from_being_paused(
    autojump_clock: object, storage: MemoryStorage
) -> None:
    async with working(storage=storage, cron=[entry()]), working(storage=storage):
        await trio.sleep(24 * HOUR_S)
        [record] = await storage.crons()
        assert record.paused_reason is None
        assert storage.now() - record.seen_at <= 600.0


async def test_a_cancelled_one_comes_back_when_a_process_starts_and_not_before(
    autojump_clock: object, storage: MemoryStorage
) -> None:
    async with working(storage=storage, cron=[entry()]) as dispatcher:
        assert await dispatcher.cron.cancel("hourly")
        await trio.sleep(3 * HOUR_S)
        assert await dispatcher.cron.tasks() == []
    async with working(storage=storage, cron=[entry()]) as dispatcher:
        assert [task.name for task in await dispatcher.cron.tasks()] == ["hourly"]


async def test_one_paused_by_hand_stays_paused_whoever_declares_it(
    autojump_clock: object, storage: MemoryStorage
) -> None:
    async with working(storage=storage, cron=[entry()]) as dispatcher:
        await dispatcher.cron.pause("hourly", "holidays")
    for declared in (entry(), entry("30 * * * *")):
        async with working(storage=storage, cron=[declared]) as dispatcher:
            await trio.sleep(2 * HOUR_S)
            assert (await dispatcher.cron.get_task("hourly")).paused_reason == "holidays"
    assert await slots_of(storage) == []


async def test_a_jump_of_the_clock_does_not_make_living_processes_look_gone(autojump_clock: object) -> None:
    ahead_s = 0.0

    def wall() -> float:
        return START.timestamp() + trio.current_time() + ahead_s

    storage = MemoryStorage(Clock(wall=wall))
    async with working(storage=storage, cron=[entry("0 0 * * *")]), working(storage=storage):
        await trio.sleep(30)
        ahead_s = 8 * HOUR_S
        await trio.sleep(300)
        [record] = await storage.crons()
        assert record.paused_reason is None
        assert storage.now() - record.seen_at <= 300


async def test_what_is_declared_is_checked_at_once() -> None:
    with pytest.raises(InvalidCronSpecError, match="never fires"):
        entry("0 0 31 2 *")
    with pytest.raises(InvalidConfigError, match="cron task name must be 1 to 128 characters"):
        entry(name="no such name")
    with pytest.raises(InvalidConfigError, match="unknown option overlapping; there are"):
        entry(overlapping="skip")
    with pytest.raises(InvalidConfigError, match="zone belongs to the CronSpec given"):
        CronEntry(CronSpec("@daily"), "daily", JOB(Job()), zone="UTC")
    with pytest.raises(InvalidTaskHandlerError, match="needs a function of no arguments or a QueueTask"):
        CronEntry("@daily", "daily", 3)  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match="a CronEntry is immutable"):
        entry().name = "other"
    for second in (entry("5 * * * *"), entry()):
        with pytest.raises(CronNameConflictError, match=r"^\[1015\] two entries named 'hourly' are declared$"):
            async with open_dispatcher(cron=[entry(), second]):
                pass
    with pytest.raises(InvalidConfigError, match="declared are CronEntry values, such as"):
        async with open_dispatcher(cron=["@daily"]):
            pass
    shown = repr(entry("@daily"))
    assert shown.startswith("CronEntry('@daily', 'hourly', ")


async def test_a_start_that_is_cancelled_has_declared_each_entry_or_not(
    autojump_clock: object, storage: MemoryStorage
) -> None:
    declared = [entry(name=f"c{n}") for n in range(200)]
    with trio.CancelScope() as scope:
        scope.cancel()
        async with working(storage=storage, cron=declared):
            raise AssertionError("the block began")
    async with working(storage=storage, cron=declared) as dispatcher:
        assert len(await dispatcher.cron.tasks()) == 200


@pytest.mark.parametrize("what", [JOB(Job()), print])
async def test_one_that_is_over_is_kept_if_declared_and_refused_at_run_time(
    autojump_clock: object, storage: MemoryStorage, what: Any
) -> None:
    over = START - timedelta(days=1)
    async with working(storage=storage, cron=[CronEntry("@hourly", "declared", what, end=over)]) as dispatcher:
        assert (await dispatcher.cron.get_task("declared")).next is None
        for text, field, options in (
            ("@hourly", " end:", {"end": over}),
            ("@hourly", " end:", {"end": START + timedelta(minutes=10)}),
            ("@every 90m", " end:", {"end": START + timedelta(minutes=10)}),
            ("0 0 0 1 1 * 2026", "", {}),
        ):
            with pytest.raises(InvalidCronSpecError) as caught:
                await dispatcher.cron.add_with_name(text, "late", what, replace=True, **options)
            assert str(caught.value) == (
                f"[1014] cron text {text!r}:{field} it never fires any more: "
                "no moment of it lies after 2026-03-02 12:00:30+00:00"
            )
        assert [task.name for task in await dispatcher.cron.tasks()] == ["declared"]


@pytest.mark.parametrize("what", [JOB(Job()), print])
async def test_adding_the_same_again_is_a_no_op_when_it_is_over(
    autojump_clock: object, storage: MemoryStorage, what: Any
) -> None:
    soon: dict[str, Any] = {"end": START + timedelta(hours=1)}
    async with working(storage=storage) as dispatcher:
        added = await dispatcher.cron.add_with_name("@hourly", "soon", what, **soon)
        await trio.sleep(2 * HOUR_S)
        assert await dispatcher.cron.add_with_name("@hourly", "soon", what, **soon) is added
        assert added.next is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"id": "fixed"}, "its task has the id 'fixed', but each tick publishes one with an id of its own; leave the id out"),
        (
            {"available_at": START},
            "its task has available_at=2026-03-02T12:00:30+00:00, but each tick has its own moment; "
            "leave it out, or give a delay after the tick",
        ),
    ],
)
async def test_what_cannot_hold_for_every_tick_is_refused_of_a_task(
    storage: MemoryStorage, options: dict[str, Any], said: str
) -> None:
    task = JOB(Job(), **options)
    async with working(storage=storage) as dispatcher:
        for add in (
            lambda: dispatcher.cron.add_with_name("@hourly", "a", task),
            lambda: dispatcher.cron.add_task("@hourly", CronTask("a", task=task)),
        ):
            with pytest.raises(InvalidConfigError) as caught:
                await add()
            assert str(caught.value) == f"[1012] cron task 'a': {said}"
        with pytest.raises(InvalidConfigError, match="'a': its task has "):
            CronEntry("@hourly", "a", task)
        assert await storage.crons() == []


# ---- its place, when another definition takes over ------------------------------


def hours_and_minutes(slots: list[float]) -> list[str]:
    return [f"{datetime.fromtimestamp(slot, UTC):%H:%M}" for slot in slots]


@pytest.mark.parametrize("changed", [{"description": "new words"}, {"n": 7}, {"overlap": "skip"}])
async def test_a_tick_that_comes_during_a_deploy_is_published_by_the_new_definition(
    autojump_clock: object, storage: MemoryStorage, changed: dict[str, Any]
) -> None:
    handler = Script()
    async with working(handler, storage=storage, cron=[entry("0 13 * * *")]):
        await trio.sleep(55 * 60)
    await trio.sleep(10 * 60)
    async with working(handler, storage=storage, cron=[entry("0 13 * * *", **changed)]) as dispatcher:
        await trio.sleep(60)
        task = await dispatcher.cron.get_task("hourly")
        assert (task.total, task.next) == (1, datetime(2026, 3, 3, 13, tzinfo=UTC))
        await dispatcher.drain()
    assert [task.payload.n for task in handler.seen] == [changed.get("n", 0)]
    assert hours_and_minutes(await slots_of(storage)) == ["13:00"]


@pytest.mark.parametrize(
    "changed",
    [
        {"text": "0 13 1-31 * *"},
        {"zone": "Africa/Abidjan"},
        {"dst": "robfig"},
        {"start": START.replace(year=2020)},
        {"end": START.replace(year=2030)},
    ],
)
async def test_with_another_plan_a_tick_that_comes_during_a_deploy_is_dropped(
    autojump_clock: object, storage: MemoryStorage, changed: dict[str, Any]
) -> None:
    async with working(storage=storage, cron=[entry("0 13 * * *")]):
        await trio.sleep(55 * 60)
    await trio.sleep(10 * 60)
    other: dict[str, Any] = {"text": "0 13 * * *", "misfire": "all", **changed}
    async with working(nothing, storage=storage, cron=[entry(**other)]) as dispatcher:
        await trio.sleep(60)
        task = await dispatcher.cron.get_task("hourly")
        assert (task.total, task.next) == (0, datetime(2026, 3, 3, 13, tzinfo=UTC))
    assert await slots_of(storage) == []


async def test_deploys_more_frequent_than_its_period_do_not_starve_an_every(
    autojump_clock: object, storage: MemoryStorage
) -> None:
    for number in range(6):
        words = entry("@every 90m", description=f"deploy {number}")
        async with working(nothing, storage=storage, cron=[words]) as dispatcher:
            task = await dispatcher.cron.get_task("hourly")
            assert await dispatcher.cron.preview("hourly", 1) == [task.next]
            await trio.sleep(HOUR_S + 60)
    assert hours_and_minutes(await slots_of(storage)) == ["13:30", "15:00", "16:30", "18:00"]


async def test_an_every_of_another_period_counts_from_when_its_name_was_added(
    autojump_clock: object, storage: MemoryStorage
) -> None:
    for number, minutes in enumerate((90, 50, 90, 50), 1):
        async with working(nothing, storage=storage, cron=[entry(f"@every {minutes}m")]) as dispatcher:
            task = await dispatcher.cron.get_task("hourly")
            assert await dispatcher.cron.preview("hourly", 1) == [task.next]
            await trio.sleep(number * HOUR_S + 60 - (storage.now() - START.timestamp()))
    assert hours_and_minutes(await slots_of(storage)) == ["13:40", "15:00", "15:20"]


async def test_replacing_at_run_time_shifts_no_every(autojump_clock: object, storage: MemoryStorage) -> None:
    async with working(nothing, storage=storage) as dispatcher:
        for number in range(6):
            task = await dispatcher.cron.add_with_name("@every 90m", "e", JOB(Job(number)), replace=True)
            assert await dispatcher.cron.preview("e", 1) == [task.next]
            await trio.sleep(HOUR_S + 60)
    assert hours_and_minutes(await slots_of(storage)) == ["13:30", "15:00", "16:30", "18:00"]


async def test_a_changed_entry_keeps_what_was_not_edited(autojump_clock: object, storage: MemoryStorage) -> None:
    unique = Unique(key="report", on_clash="replace")
    async with working(nothing, storage=storage, cron=[entry("@daily")]) as dispatcher:
        task = await dispatcher.cron.add_with_name("@every 90m", "e", JOB(Job(7), unique=unique, delay=5), jitter=9.0)
        await trio.sleep(2 * HOUR_S)
        [before] = await storage.crons("e")
        assert task.spec is not None
        changed = await dispatcher.cron.change("e", task.spec, task.policy, "new words", before.template)
        [after] = await storage.crons("e")
        assert (changed.description, changed.policy, changed.total) == ("new words", task.policy, 1)
        assert attrs.evolve(after, definition=before.definition, seen_at=before.seen_at) == before
        # A new period counts from where the old one did.
        hourly = await dispatcher.cron.change("e", CronSpec("@every 60m"), CronPolicy(), "", before.template)
        assert hourly.next is not None
        assert hourly.next - START == timedelta(hours=3)
        for name, error in (("nobody", CronTaskNotFoundError), ("hourly", CronNameConflictError)):
            with pytest.raises(error):
                await dispatcher.cron.change(name, task.spec, task.policy, "mine", before.template)


async def test_a_row_that_cannot_be_read_is_replaced_by_the_next_deploy(
    autojump_clock: object, storage: MemoryStorage
) -> None:
    async with working(storage=storage, cron=[entry()]):
        [record] = await storage.crons()
    await storage.put_cron(attrs.evolve(record, definition="[" * 100_000), replace=True)
    async with working(nothing, storage=storage, cron=[entry()]) as dispatcher:
        await trio.sleep(HOUR_S)
        assert (await dispatcher.cron.get_task("hourly")).total == 1


async def test_entries_may_be_declared_before_it_runs(autojump_clock: object, storage: MemoryStorage) -> None:
    for n in (1, 2):  # the second version of the code: its payload is another
        dispatcher = Dispatcher(storage, cron=[entry(name="first")])
        dispatcher.cron.declare(entry(name="second", n=n), entry(name="third"))
        with pytest.raises(CronNameConflictError, match="'second' are declared"):
            dispatcher.cron.declare(entry(name="second"))
        dispatcher.consumer.register_queue("q")
        async with trio.open_nursery() as nursery:
            await nursery.start(dispatcher.serve)
            found = {task.name: (task.declared, task.total) for task in await dispatcher.cron.tasks()}
            assert found == dict.fromkeys(("first", "second", "third"), (True, 0))
            [record] = await storage.crons("second")
            assert record.template.payload == b'{"n":%d}' % n
            with pytest.raises(ClosedError, match=r"it runs already; add_with_name adds to one that runs, and open_dispatcher\(cron="):
                dispatcher.cron.declare(entry(name="late"))
            dispatcher.close()


async def test_entries_may_come_from_a_generator(autojump_clock: object) -> None:
    async with open_dispatcher(cron=(each for each in [entry()])) as dispatcher:  # type: ignore[arg-type]
        assert [task.name for task in await dispatcher.cron.tasks()] == ["hourly"]


@pytest.mark.parametrize(
    ("task", "code"),
    [
        (JOB(5), 1010),  # type: ignore[arg-type]
        (JOB(Job(), attempt=3), 1003),  # type: ignore[call-arg]
        (QueueTask(queue="", type="job", payload=1), 1006),
        (QueueTask(queue="q", type="", payload=1), 1008),
    ],
)
async def test_the_task_of_an_entry_is_checked_when_the_dispatcher_is_opened(
    autojump_clock: object, task: QueueTask[Any], code: int
) -> None:
    bad = CronEntry("@daily", "bad", task)
    with pytest.raises(DispatchError) as caught:
        async with open_dispatcher(cron=[bad]):
            pass
    assert caught.value.code == code


# ---- added anew by each start, without a name --------------------------------------------------


@pytest.mark.parametrize("way", ["add", "add_task"])
async def test_what_each_start_adds_without_a_name_is_told_of(
    way: str, storage: MemoryStorage, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async def start(n: int = 0, text: str = "H * * * *", **options: Any) -> list[str]:
        async with open_dispatcher(storage) as dispatcher:
            dispatcher.consumer.register_queue("q")
            added: list[CronTask] = []
            for _ in range(2):  # twice at one start may well be meant
                if way == "add":
                    added.append(await dispatcher.cron.add(text, JOB(Job(n)), **options))
                else:
                    added.append(await dispatcher.cron.add_task(text, CronTask("", task=JOB(Job(n)), **options)))
            await trio.sleep(1)
            return [each.name for each in added]

    def said() -> list[str]:
        return [each.getMessage() for each in caplog.records if getattr(each, "event", "") == "added_again"]

    await start()
    await start()
    assert said() == [], "what is in memory is gone with the process"
    await first_gone(storage)
    storage.durable = True
    first = await start()
    assert said() == []
    await start(n=1)
    await start(text="H 3 * * *")
    assert said() == [], "these are others"
    again = await start()
    [line] = said()
    assert line.startswith(f"cron task {again[0]} (H * * * *) is the same as ")
    assert any(name in line for name in first)
    assert "needs a name" in line


async def test_a_named_or_paused_twin_is_not_told_of(
    storage: MemoryStorage, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    storage.durable = True
    async with open_dispatcher(storage) as dispatcher:
        dispatcher.consumer.register_queue("q")
        await dispatcher.cron.add_with_name("0 * * * *", "hourly", JOB(Job()))
        stopped = await dispatcher.cron.add("0 * * * *", JOB(Job()))
        await dispatcher.cron.pause(stopped.name)
        await dispatcher.cron.add("0 * * * *", nothing_at_all)
        await trio.sleep(1)
    async with open_dispatcher(storage) as dispatcher:
        dispatcher.consumer.register_queue("q")
        await dispatcher.cron.add_with_name("0 * * * *", "hourly", JOB(Job()))
        await dispatcher.cron.add("0 * * * *", JOB(Job()))
        await dispatcher.cron.add("0 * * * *", nothing_at_all)
    assert "is the same as" not in caplog.text


async def test_no_entry_is_told_to_be_its_own_twin_when_the_clock_is_set_back(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    back_s = 0.0
    storage = MemoryStorage(Clock(wall=lambda: START.timestamp() + trio.current_time() - back_s))
    storage.durable = True
    async with open_dispatcher(storage) as dispatcher:
        dispatcher.consumer.register_queue("q")
        back_s = 60.0
        await dispatcher.cron.add("0 * * * *", JOB(Job()))
    assert "is the same as" not in caplog.text


async def nothing_at_all() -> None:
    pass


async def first_gone(storage: MemoryStorage) -> None:
    async with open_dispatcher(storage) as dispatcher:
        for each in await dispatcher.cron.tasks():
            await dispatcher.cron.cancel(each.name)
