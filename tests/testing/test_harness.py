"""The harness for users' tests: time, crashes, faults, single attempts."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from attrs import frozen

from dispatch import (
    Clock,
    Codec,
    CronEntry,
    Dispatcher,
    InvalidQueuePayloadError,
    Limits,
    QueueTask,
    Run,
    TaskQueueConfig,
    TaskType,
    Unique,
)
from dispatch.errors import InvalidConfigError, StorageError
from dispatch.storage.memory import MemoryStorage
from dispatch.testing.faults import FaultyStorage
from dispatch.testing.harness import Harness, Scripted, perform


@frozen
class Note:
    text: str


@frozen
class Receipt:
    number: int


@frozen
class Long:
    text: str


NOTE = TaskType("q", "note", Note)
ASK = TaskType("q", "ask", Note, Receipt)
CONFIG = TaskQueueConfig(max_retry=2, retry_delay=60.0)
START = datetime(2026, 3, 28, 0, 0, tzinfo=UTC)


def setup_with(handler: Any, config: TaskQueueConfig = CONFIG) -> Any:
    def setup(dispatcher: Dispatcher) -> None:
        dispatcher.consumer.register_queue("q", config)
        dispatcher.consumer.register_handler(NOTE, handler)

    return setup


@pytest.fixture(params=["autojump", "by hand"])
def virtual(request: pytest.FixtureRequest) -> trio.testing.MockClock:
    return trio.testing.MockClock(autojump_threshold=0 if request.param == "autojump" else float("inf"))


def test_retries_take_their_time_and_no_longer(virtual: trio.testing.MockClock) -> None:
    handler: Scripted[Note, None] = Scripted(ConnectionError("busy"), ConnectionError("busy"), None)

    async def main() -> None:
        async with Harness(setup_with(handler), start=START) as harness:
            assert harness.clock.utc() == START
            await harness.publisher.publish(NOTE(Note("a")))
            await harness.run_until_idle()
            assert [task.attempt for task in handler.seen] == [1]
            await harness.advance(59.0)
            assert len(handler.seen) == 1
            await harness.advance(2.0)
            assert len(handler.seen) == 2
            await harness.advance(60.0)
            await harness.assert_published(NOTE, Note("a"), status="succeeded", times=1)
            assert [event.kind for event in harness.events if event.kind == "retrying"] == ["retrying"] * 2

    trio.run(main, clock=virtual)


def test_a_crash_loses_nothing_and_counts_the_attempt(virtual: trio.testing.MockClock) -> None:
    handler: Scripted[Note, None] = Scripted(lambda task: trio.sleep(3_600), None)

    async def main() -> None:
        async with Harness(setup_with(handler)) as harness:
            await harness.publisher.publish(NOTE(Note("a")))
            await harness.run_until_idle()
            before = trio.current_time()
            await harness.crash()
            assert trio.current_time() == before
            [task] = await harness.assert_published(NOTE, status="running")
            with pytest.raises(InvalidConfigError, match="call restart"):
                _ = harness.dispatcher
            await harness.restart()
            await harness.advance(31.0)
            await harness.advance(61.0)
            [task] = await harness.assert_published(NOTE, status="succeeded")
            assert task.attempt == 2
            assert task.last_error is None

    trio.run(main, clock=virtual)


def test_a_graceful_restart_gives_the_attempt_back(virtual: trio.testing.MockClock) -> None:
    handler: Scripted[Note, None] = Scripted(lambda task: trio.sleep(3_600), None)

    async def main() -> None:
        async with Harness(setup_with(handler), grace=5.0) as harness:
            await harness.publisher.publish(NOTE(Note("a")))
            await harness.run_until_idle()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(harness.restart)
                await harness.advance(6.0)
            await harness.run_until_idle()
            [task] = await harness.assert_published(NOTE, status="succeeded")
            assert task.attempt == 1

    trio.run(main, clock=virtual)


@pytest.mark.parametrize("how", ["stop", "restart", "leave"])
def test_a_graceful_end_gives_handlers_the_time_they_need(how: str, virtual: trio.testing.MockClock) -> None:
    handler: Scripted[Note, None] = Scripted(lambda task: trio.sleep(3.0))
    threshold = virtual.autojump_threshold

    async def main() -> None:
        async with Harness(setup_with(handler), grace=5.0) as harness:
            await harness.publisher.publish(NOTE(Note("a")))
            await harness.run_until_idle()
            if how != "leave":
                await getattr(harness, how)()
        assert trio.current_time() == pytest.approx(3.0)
        await harness.assert_published(NOTE, status="succeeded", times=1)
        assert virtual.autojump_threshold == threshold

    trio.run(main, clock=virtual)


def test_an_end_is_no_longer_than_the_grace(virtual: trio.testing.MockClock) -> None:
    handler: Scripted[Note, None] = Scripted(lambda task: trio.sleep_forever())

    async def main() -> None:
        async with Harness(setup_with(handler), grace=5.0) as harness:
            await harness.publisher.publish(NOTE(Note("a")))
            await harness.run_until_idle()
        assert trio.current_time() == pytest.approx(5.0)
        [task] = await harness.assert_published(NOTE, status="pending")
        assert task.attempt == 0

    trio.run(main, clock=virtual)


def test_a_test_that_fails_ends_though_a_handler_shields_its_end(virtual: trio.testing.MockClock) -> None:
    async def handler(task: QueueTask[Note]) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(2.0)

    async def main() -> None:
        async with Harness(setup_with(handler)) as harness:
            await harness.publisher.publish(NOTE(Note("a")))
            await harness.run_until_idle()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trio.run(main, clock=virtual)


async def test_an_outage_is_waited_out(autojump_clock: trio.testing.MockClock) -> None:
    handler: Scripted[Note, None] = Scripted(None)
    async with Harness(setup_with(handler)) as harness:
        task = NOTE(Note("a"), id="a")
        harness.faults.down = True
        with pytest.raises(StorageError, match="is down"):
            await harness.publisher.publish(task)
        assert await harness.published(NOTE) == []
        harness.faults.down = False
        await harness.publisher.publish(task)
        harness.faults.down = True
        await harness.advance(100.0)
        harness.faults.down = False
        await harness.advance(10.0)
        await harness.assert_published(NOTE, status="succeeded", times=1)
        assert len(handler.seen) == 1


async def test_a_settle_in_doubt_is_repeated_and_counts_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    handler: Scripted[Note, None] = Scripted(None)
    async with Harness(setup_with(handler)) as harness:
        harness.faults.fail("enqueue", after=True)
        with pytest.raises(StorageError):
            await harness.publisher.publish(NOTE(Note("a"), id="a"))
        await harness.advance(1.0)
        await harness.publisher.publish(NOTE(Note("a"), id="a"))
        harness.faults.fail("turn", times=2, after=True)
        await harness.publisher.publish(NOTE(Note("b")))
        await harness.advance(200.0)
        await harness.assert_published(NOTE, status="succeeded", times=2)


async def test_a_dead_process_writes_nothing_more(autojump_clock: trio.testing.MockClock) -> None:
    ended: list[str] = []

    async def handler(task: QueueTask[Note]) -> None:
        try:
            await trio.sleep(3_600)
        finally:
            ended.append(task.id)
            with trio.CancelScope(shield=True), pytest.raises(StorageError, match="was killed"):
                await harness.publisher.publish(NOTE(Note("from the dead")))

    async with Harness(setup_with(handler)) as harness:
        await harness.publisher.publish(NOTE(Note("a"), id="a"))
        await harness.run_until_idle()
        await harness.crash()
        await harness.assert_published(NOTE, Note("a"), status="running", times=1)
        await harness.assert_published(NOTE, Note("from the dead"), times=0)
    assert ended == ["a"]


async def test_what_was_not_published_is_told_beside_what_was(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with Harness(setup_with(Scripted(None))) as harness:
        with pytest.raises(AssertionError, match=r"at least one of q/note, found 0; stored of this type: nothing"):
            await harness.assert_published(NOTE)
        await harness.publisher.publish(NOTE(Note("a")))
        with pytest.raises(AssertionError, match=r"(?s)found 0; stored.*Note\(text='a'\)"):
            await harness.assert_published(NOTE, Note("b"))
        with pytest.raises(AssertionError, match="expected 2 of"):
            await harness.assert_published(NOTE, times=2)
        with pytest.raises(InvalidConfigError, match="'done'"):
            await harness.assert_published(NOTE, status="done")


async def test_a_status_may_be_asked_for_by_each_of_its_words(autojump_clock: trio.testing.MockClock) -> None:
    async with Harness(setup_with(Scripted(ConnectionError("busy")))) as harness:
        await harness.publisher.publish(NOTE(Note("first")))
        await harness.run_until_idle()
        await harness.publisher.publish(NOTE(Note("second"), delay=90.0))
        for word, stored in {"later": 2, "pending": 2, "retrying": 1, "due": 0, "running": 0}.items():
            assert len(await harness.assert_published(NOTE, status=word, times=stored)) == stored
        [retried] = await harness.assert_published(NOTE, Note("first"), status="retrying")
        assert retried.status == "retrying"
        with pytest.raises(AssertionError, match=r"^expected 0 of q/note, later, found 2"):
            await harness.assert_published(NOTE, status="later", times=0)
        await harness.stop()
        await harness.advance(60.0)
        await harness.assert_published(NOTE, Note("first"), status="due", times=1)
        await harness.assert_published(NOTE, Note("second"), status="due", times=0)


async def test_a_word_that_is_no_status_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with Harness(setup_with(Scripted(None))) as harness:
        with pytest.raises(InvalidConfigError, match="got 'done'"):
            await harness.assert_published(NOTE, status="done", times=0)


async def test_real_time_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match="autojump_clock"):
        async with Harness(setup_with(Scripted(None))):
            pass


async def test_a_setup_that_fails_is_the_tests_failure(autojump_clock: trio.testing.MockClock) -> None:
    def setup(dispatcher: Dispatcher) -> None:
        raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing"):
        async with Harness(setup):
            pass


async def test_an_option_that_does_not_exist_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'graze'"):
        async with Harness(setup_with(Scripted(None)), graze=3):  # type: ignore[call-arg]
            pass


async def test_observers_may_be_left_to_the_harness(autojump_clock: trio.testing.MockClock) -> None:
    async with Harness(setup_with(Scripted(None)), observers=None) as harness:
        await harness.publisher.publish(NOTE(Note("a")))
        await harness.dispatcher.drain()
    assert [event.kind for event in harness.events] == ["published", "started", "succeeded"]


async def test_a_crashed_harness_can_be_left(autojump_clock: trio.testing.MockClock) -> None:
    async with Harness(setup_with(Scripted(None))) as harness:
        await harness.crash()


@pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan")])
async def test_time_only_goes_on(autojump_clock: trio.testing.MockClock, seconds: float) -> None:
    async with Harness(setup_with(Scripted(None))) as harness:
        with pytest.raises(InvalidConfigError, match="seconds must be at least 0"):
            await harness.advance(seconds)


# ---- one attempt ------------------------------------------------------------------


async def test_one_attempt_returns_what_the_handler_did() -> None:
    async def handler(task: QueueTask[Note, Receipt], run: Run) -> Receipt:
        await run.progress(0.5, "half")
        await run.publish(NOTE(Note("next"), id="next"))
        return Receipt(len(task.payload.text) + task.attempt)

    done = await perform(handler, ASK(Note("abc")), attempt=2)
    assert done.result == Receipt(5)
    assert done.published == [NOTE(Note("next"), id="next")]
    assert done.progress == [{"fraction": 0.5, "message": "half"}]


async def test_one_attempt_shows_its_task_as_the_engine_does(autojump_clock: trio.testing.MockClock) -> None:
    handler: Scripted[Note, None] = Scripted(None)
    task = NOTE(Note("a"), headers={"h": "1"}, tags=("x",), max_retry=1, unique=Unique(key="k"))
    async with Harness(setup_with(handler)) as harness:
        await harness.publisher.publish(task)
        await harness.run_until_idle()
    before = datetime.now(UTC)
    await perform(handler, task)
    by_engine, here = handler.seen
    assert here.worker == "performed"
    own: dict[str, Any] = {"id": by_engine.id, "worker": by_engine.worker}
    for moment in ("created_at", "available_at", "started_at"):
        assert before <= getattr(here, moment) <= datetime.now(UTC)
        own[moment] = getattr(by_engine, moment)
    assert attrs.evolve(here, **own) == by_engine


async def test_one_attempt_keeps_the_moment_for_which_it_was_asked() -> None:
    handler: Scripted[Note, None] = Scripted(None)
    await perform(handler, NOTE(Note("a"), available_at=START))
    assert handler.seen[0].available_at == START


async def test_one_attempt_raises_what_the_handler_raises() -> None:
    async def handler(task: QueueTask[Note]) -> None:
        raise LookupError(task.payload.text)

    with pytest.raises(LookupError, match="abc"):
        await perform(handler, NOTE(Note("abc")))


async def test_one_attempt_of_a_sync_handler() -> None:
    def handler(task: QueueTask[Note, Receipt]) -> Receipt:
        return Receipt(1)

    assert (await perform(handler, ASK(Note("a")))).result == Receipt(1)


async def test_one_attempt_wants_a_task_made_by_its_type() -> None:
    for given in (NOTE, QueueTask(queue="q", type="note", payload=Note("a"))):
        with pytest.raises(InvalidConfigError, match="perform: make the task by calling its TaskType"):
            await perform(Scripted(None), given)  # type: ignore[arg-type]


async def test_one_attempt_refuses_what_publishing_would() -> None:
    with pytest.raises(InvalidQueuePayloadError):
        await perform(Scripted(None), NOTE(Note(7)))  # type: ignore[arg-type]
    with pytest.raises(InvalidQueuePayloadError, match="result"):
        await perform(Scripted(Receipt("one")), ASK(Note("a")))  # type: ignore[arg-type]


async def test_perform_drops_a_result_that_production_would_drop() -> None:
    assert (await perform(Scripted(5), NOTE(Note("a")))).result is None


@pytest.mark.parametrize(
    ("attempt", "why"),
    [
        (0, "must be at least 1, got 0"),
        (-1, "must be at least 1, got -1"),
        ("x", "must be a whole number, got 'x'"),
        (None, "must be a whole number, got None"),
        (True, "must be a whole number, got True"),
    ],
)
async def test_perform_makes_no_attempt_that_there_cannot_be(attempt: Any, why: str) -> None:
    handler = Scripted(None)
    with pytest.raises(InvalidConfigError) as caught:
        await perform(handler, NOTE(Note("a")), attempt=attempt)
    assert caught.value.detail == f"perform: attempt {why}"
    assert handler.seen == []


async def test_one_attempt_keeps_its_time_limit(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(trio.TooSlowError):
        await perform(Scripted(lambda task: trio.sleep(100)), NOTE(Note("a"), timeout=5.0))


async def test_an_attempt_that_takes_no_notice_of_its_timeout_is_late(autojump_clock: object) -> None:
    async def shielded(task: QueueTask[Note]) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(100)

    with pytest.raises(trio.TooSlowError):
        await perform(shielded, NOTE(Note("a"), timeout=5.0))


async def test_a_result_is_checked_by_the_limit_of_results() -> None:
    codec = Codec(Limits(result_bytes=100))
    with pytest.raises(InvalidQueuePayloadError, match="at most 100 are stored"):
        await perform(Scripted(Long("x" * 200)), TaskType("q", "long", Note, Long)(Note("a")), codec=codec)


async def test_a_step_may_be_a_class_of_exceptions() -> None:
    handler: Scripted[Note, None] = Scripted(ConnectionError, None)
    with pytest.raises(ConnectionError):
        await perform(handler, NOTE(Note("a")))
    await perform(handler, NOTE(Note("a")))


async def test_an_error_of_the_block_is_raised_as_it_is(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(LookupError, match="mine"):
        async with Harness(setup_with(Scripted(None))):
            raise LookupError("mine")


async def test_no_fault_at_all_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with Harness(setup_with(Scripted(None))) as harness:
        with pytest.raises(InvalidConfigError, match="fail: times must be at least 1, got 0"):
            harness.faults.fail("enqueue", times=0)


# ---- the fault proxy ----------------------------------------------------------------


async def test_faults_come_in_the_order_they_were_asked_for() -> None:
    storage = FaultyStorage(MemoryStorage())
    storage.fail("queues", times=2)
    storage.fail(error=lambda: StorageError("any"))
    for said in ("asked for", "asked for", "any"):
        with pytest.raises(StorageError, match=said):
            await storage.queues()
    assert await storage.queues() == []
    assert storage.calls["queues"] == 4
    with pytest.raises(InvalidConfigError, match="no method 'queue'"):
        storage.fail("queue")


async def test_a_delay_can_be_cancelled_before_anything_happened(
    autojump_clock: trio.testing.MockClock,
) -> None:
    inner = MemoryStorage()
    storage = FaultyStorage(inner)
    storage.delay_s = 10.0
    with trio.move_on_after(5.0) as scope:
        await storage.declare([])
    assert scope.cancelled_caught
    assert await inner.queues() == []


async def test_a_sync_handler_may_call_back_from_its_thread(autojump_clock: object) -> None:
    def calls_back(task: QueueTask[Note], run: Run) -> None:
        trio.from_thread.check_cancelled()
        trio.from_thread.run(run.publish, task.again())

    done = await perform(calls_back, NOTE(Note("x"), timeout=5.0))
    assert [each.payload for each in done.published] == [Note("x")]


async def test_a_crash_waits_for_what_a_handler_shields(mock_clock: trio.testing.MockClock) -> None:
    cleaned = trio.Event()

    async def careful(task: QueueTask[Note]) -> None:
        try:
            await trio.sleep(3_600)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
                cleaned.set()

    def setup(dispatcher: Dispatcher) -> None:
        dispatcher.consumer.register_queue("q")
        dispatcher.consumer.register_handler(NOTE, careful)

    async with Harness(setup) as harness:
        await harness.publisher.publish(NOTE(Note("x")))
        await harness.run_until_idle()
        await harness.crash()
        assert cleaned.is_set()


@pytest.mark.parametrize("threshold", [0.0, inf])
async def test_time_is_advanced_up_to_and_with_the_last_moment(threshold: float, mock_clock: trio.testing.MockClock) -> None:
    mock_clock.autojump_threshold = threshold
    handler: Scripted[Note, None] = Scripted(ValueError("no"))

    def setup(dispatcher: Dispatcher) -> None:
        dispatcher.consumer.register_queue("q", TaskQueueConfig(max_retry=3, retry_delay=600.0))
        dispatcher.consumer.register_handler(NOTE, handler)

    async with Harness(setup) as harness:
        await harness.publisher.publish(NOTE(Note("x")))
        await harness.run_until_idle()
        await harness.advance(600.0)
        assert len(handler.seen) == 2


async def test_an_exception_of_a_script_does_not_grow_with_every_run() -> None:
    error = ConnectionError("busy")
    handler: Scripted[Note, None] = Scripted(error)
    depths: set[int] = set()
    for _ in range(5):
        with pytest.raises(ConnectionError) as caught:
            await perform(handler, NOTE(Note("x")))
        depths.add(len(caught.traceback))
    assert len(depths) == 1


async def test_sync_handlers_side_by_side_leave_the_clock_as_it_was(autojump_clock: trio.testing.MockClock) -> None:
    def works(task: QueueTask[Note]) -> None:
        time.sleep(0.05 * len(task.payload.text))

    async with trio.open_nursery() as nursery:
        for text in ("a", "abc", "ab"):
            nursery.start_soon(perform, works, NOTE(Note(text), timeout=5.0))
    assert autojump_clock.autojump_threshold == 0.0


async def test_a_sync_handler_may_wait_in_what_it_calls_back(autojump_clock: object) -> None:
    def waits(task: QueueTask[Note]) -> None:
        trio.from_thread.run(trio.sleep, 600.0)

    await perform(waits, NOTE(Note("x")))


async def test_what_is_there_instead_is_told_with_its_whole_error(autojump_clock: trio.testing.MockClock) -> None:
    def setup(dispatcher: Dispatcher) -> None:
        dispatcher.consumer.register_queue("q")
        dispatcher.consumer.register_handler(ASK, Scripted("no receipt"))

    async with Harness(setup) as harness:
        await harness.publisher.publish(ASK(Note("a")))
        await harness.dispatcher.drain()
        with pytest.raises(AssertionError) as caught:
            await harness.assert_published(ASK, status="succeeded")
        [task] = await harness.published(ASK)
    assert "got a str 'no receipt', wanted Receipt" in str(caught.value)
    assert str(caught.value).endswith(f"\n    last_error: {task.last_error}")


async def test_cron_goes_by_the_clock_of_the_storage_that_was_given(autojump_clock: trio.testing.MockClock) -> None:
    noon = START.replace(hour=12)
    nightly = CronEntry("30 2 * * *", "nightly", NOTE(Note("a")), zone="Europe/Berlin")
    async with Harness(setup_with(Scripted(None)), storage=MemoryStorage(Clock(noon)), cron=[nightly]) as harness:
        assert harness.clock.utc() == noon
        await harness.advance(86_400.0)
        [task] = await harness.assert_published(NOTE, status="succeeded", times=1)
        assert task.created_at == datetime(2026, 3, 29, 1, 0, tzinfo=UTC)  # 03:00, when the gap ends
        assert harness.clock.utc() == noon + timedelta(days=1)


async def test_two_clocks_are_refused_unless_they_begin_together(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(InvalidConfigError, match="but the clock of <MemoryStorage tasks=0 queues=0> shows"):
        async with Harness(setup_with(Scripted(None)), storage=MemoryStorage(), start=START):
            pass
    with pytest.raises(InvalidConfigError, match="either start or clock"):
        Harness(setup_with(Scripted(None)), start=START, clock=Clock(START))
    async with Harness(setup_with(Scripted(None)), storage=MemoryStorage(Clock(START)), start=START) as harness:
        assert harness.clock.utc() == START
    async with Harness(setup_with(Scripted(None)), clock=Clock(START)) as harness:
        assert harness.clock.utc() == START
        assert (await harness.publisher.publish(NOTE(Note("a")))).created_at == START


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"setup": None}, "setup must be a function of the dispatcher, got None"),
        ({"storage": "sqlite:///jobs.db"}, "storage must be a Storage or None for an in-memory one, got str"),
        ({"clock": START}, "clock must be a Clock or None"),
        ({"observers": 5}, "observers must be a collection of functions, got 5"),
    ],
)
async def test_what_a_harness_cannot_be_made_of_is_named(
    autojump_clock: trio.testing.MockClock, options: Any, told: str
) -> None:
    with pytest.raises(InvalidConfigError, match=told):
        async with Harness(**{"setup": setup_with(Scripted(None)), **options}):
            pass


async def test_what_a_harness_cannot_be_asked_is_named(autojump_clock: trio.testing.MockClock) -> None:
    asked: Any
    async with Harness(setup_with(Scripted(None))) as harness:
        for asked in (None, "5", float("nan")):
            with pytest.raises(InvalidConfigError, match="advance: seconds must be at least 0 and finite, got"):
                await harness.advance(asked)
        for asked in (None, "note", Note):
            with pytest.raises(InvalidConfigError, match="published: expected a TaskType, got"):
                await harness.assert_published(asked)
        asked = "2"
        with pytest.raises(InvalidConfigError, match="assert_published: times must be a whole number, got '2'"):
            await harness.assert_published(NOTE, times=asked)
