"""Seed 1, the Go package `asynctask`: the API this one is modelled on, and its holes closed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import trio

from dispatch import (
    ClosedError,
    CronNameConflictError,
    CronSpec,
    CronTask,
    CronTaskNotFoundError,
    InvalidCronSpecError,
    InvalidQueueNameError,
    InvalidQueuePayloadError,
    InvalidTaskHandlerError,
    InvalidTaskTypeError,
    QueueConfigConflictError,
    QueueNotRegisteredError,
    QueueTask,
    Storage,
    Task,
    TaskQueueConfig,
    TaskStatus,
    errors,
)
from dispatch.pool import PoolStatus, TaskDispatcher
from dispatch.storage.query import Ids, dead_letters

from .rows import Rows
from .work import JOB, Job, Script, working

ROWS = Rows(
    {
        "Publish": "publisher.publish: id, created_at, available_at and status are filled in",
        "RegisterQueue": "consumer.register_queue: the same again is a no-op, another is error 1005",
        "RegisterHandler": "consumer.register_handler: checks name, type, handler, registration",
        "TaskQueueConfig": "the same four settings with the same defaults",
        "QueueTask": "an immutable record; durations in seconds, attempt counts runs started",
        "statuses": "pending, running, retrying, succeeded, failed",
        "MarshalPayload, UnmarshalPayload": "the codec, by the declared payload class",
        "MaxRetry": "total runs are 1 + max_retry, retry_delay apart; 0 on a task means never",
        "Timeout": "per attempt, and it truly cancels: a late success does not count",
        "Add, AddWithName, AddTask": "cron.add, add_with_name, add_task",
        "Cancel, GetTask": "cron.cancel, get_task",
        "CronTask.Func": "replaced on a live task, the next run uses it",
        "cron texts": "six fields with seconds first, @hourly to @yearly, @every, CRON_TZ=",
        "Run, RunTask": "pool.run, pool.run_task",
        "errors": "1001 to 1010 by name; caught by class whatever the detail",
        "hole: no shutdown": "leaving the block drains, and what is left is claimable at once",
        "hole: bare timers": "delayed and retrying tasks are stored, counted and cancellable",
        "hole: no handler yet": "the task waits for its handler",
        "hole: unknown queue": "publishing to it is error 1007 and creates nothing",
        "hole: full buffer": "a publish that waits for room is cancellable, and holds nothing",
        "hole: own full queue": "a handler may publish into its own full queue",
        "hole: panic": "any exception is a failed attempt",
        "hole: shared object": "publisher, storage and handler share no mutable object",
        "hole: Key": "orders tasks of one key, one at a time",
        "hole: exhausted tasks vanish": "they are dead letters: listed, edited, rerun",
        "hole: empty payload": "is an error, not zero values",
        "hole: cron names": "a taken name is an error, a cancelled task is gone",
        "hole: cron end": "closing waits for running functions; adding afterwards is an error",
        "hole: cron texts": "an impossible date and a zone without a schedule are refused",
        "hole: pool size": "resizing works both ways, and queued work is done at the end",
    }
)


@ROWS.show("Publish", "QueueTask")
async def test_publish_fills_in_what_is_the_storages(storage: Storage, autojump_clock: object) -> None:
    async with working(storage) as dispatcher:
        stored = await dispatcher.publisher.publish(JOB(Job(3), delay=5.0, headers={"a": "b"}, key="k"))
        assert stored.id
        assert stored.created_at is not None
        assert stored.available_at is not None
        assert (stored.available_at - stored.created_at).total_seconds() == 5.0
        assert (stored.status, stored.attempt, stored.payload) == (TaskStatus.PENDING, 0, Job(3))
        again = await dispatcher.control.get(stored.id)
        assert (again.queue, again.type, again.key, dict(again.headers)) == ("q", "job", "k", {"a": "b"})
        assert (again.created_at, again.available_at) == (stored.created_at, stored.available_at)
        with pytest.raises(AttributeError):
            stored.attempt = 7  # type: ignore[misc]


@ROWS.show("RegisterQueue", "TaskQueueConfig")
async def test_registering_a_queue_again(storage: Storage, autojump_clock: object) -> None:
    assert TaskQueueConfig() == TaskQueueConfig(1, 0, 1.0, 128)
    async with working(storage, config=TaskQueueConfig(concurrency=2)) as dispatcher:
        dispatcher.consumer.register_queue("q", TaskQueueConfig(concurrency=2))
        with pytest.raises(QueueConfigConflictError, match=r"^\[1005\].*concurrency=9 \(registered: 2\)"):
            dispatcher.consumer.register_queue("q", TaskQueueConfig(concurrency=9))
        assert [queue.name for queue in await dispatcher.control.queues()] == ["q"]


@ROWS.show("RegisterHandler")
async def test_registering_a_handler_checks_in_order(storage: Storage, autojump_clock: object) -> None:
    async def good(task: QueueTask[Job]) -> None: ...

    async with working(storage) as dispatcher:
        register: Any = dispatcher.consumer.register_handler
        with pytest.raises(InvalidQueueNameError):
            register("", "", None)
        with pytest.raises(InvalidTaskTypeError):
            register("unknown", "", None)
        with pytest.raises(InvalidTaskHandlerError):
            register("unknown", "t", None)
        with pytest.raises(QueueNotRegisteredError):
            register("unknown", "t", good)
        register("q", "t", good)


@ROWS.show("statuses")
async def test_a_task_passes_through_gos_statuses(storage: Storage, autojump_clock: object) -> None:
    seen: list[str] = []

    async def handler(task: QueueTask[Job]) -> None:
        seen.append((await dispatcher.control.get(task.id)).status.value)
        if task.attempt == 1:
            raise ValueError("no")

    async with working(storage, handler, TaskQueueConfig(max_retry=1, retry_delay=10.0)) as dispatcher:
        seen.append((task := await dispatcher.publisher.publish(JOB(Job()))).status.value)
        await trio.sleep(1.0)
        seen.append((await dispatcher.control.get(task)).status.value)
        seen.append((await dispatcher.publisher.wait(task)).status.value)
    assert seen == ["pending", "running", "retrying", "running", "succeeded"]


@ROWS.show("MarshalPayload, UnmarshalPayload")
async def test_a_payload_comes_back_as_its_class(storage: Storage, autojump_clock: object) -> None:
    handler = Script()
    async with working(storage, handler) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(2**40)))
        await dispatcher.drain()
    assert handler.seen[0].payload == Job(2**40)
    assert type(handler.seen[0].payload) is Job


@ROWS.show("MaxRetry")
@pytest.mark.parametrize(("of_task", "runs"), [(None, 3), (0, 1), (1, 2)])
async def test_total_runs_are_one_plus_max_retry(
    storage: Storage, autojump_clock: object, of_task: int | None, runs: int
) -> None:
    handler = Script(ValueError("no"))
    async with working(storage, handler, TaskQueueConfig(max_retry=2, retry_delay=2.0)) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job(), max_retry=of_task))
        ended = await dispatcher.publisher.wait(task)
    assert [task.attempt for task in handler.seen] == list(range(1, runs + 1))
    assert handler.gaps == pytest.approx([2.0] * (runs - 1), abs=0.1)
    assert (ended.status, ended.last_error) == (TaskStatus.FAILED, "ValueError: no")


@ROWS.show("Timeout")
async def test_a_timeout_is_per_attempt_and_a_late_success_does_not_count(storage: Storage, autojump_clock: object) -> None:
    async def handler(task: QueueTask[Job]) -> None:
        if task.attempt > 1:
            return
        with trio.CancelScope(shield=True):
            await trio.sleep(5.0)  # and then it returns, as if all were well

    async with working(storage, handler, TaskQueueConfig(max_retry=1, timeout=1.0)) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        ended = await dispatcher.publisher.wait(task)
        runs = await dispatcher.control.history(task)
    assert (ended.status, ended.attempt) == (TaskStatus.SUCCEEDED, 2)
    assert [run.outcome.value for run in runs] == ["retried", "succeeded"]


@ROWS.show("Add, AddWithName, AddTask")
async def test_cron_tasks_are_added_in_three_ways(storage: Storage, autojump_clock: object) -> None:
    handler, called = Script(), list[str]()

    async def add() -> None:
        called.append("add")

    async def by_hand() -> None:
        called.append("made")

    async with working(storage, handler) as dispatcher:
        cron = dispatcher.cron
        first = await cron.add("@every 10s", add)
        await cron.add_with_name("@every 10s", "named", JOB(Job(1)))
        made = CronTask("made", by_hand, "made by hand")
        assert await cron.add_task("@every 10s", made) is made
        assert {task.name for task in await cron.tasks()} == {first.name, "named", "made"}
        await trio.sleep(25.0)
        await dispatcher.drain()
    assert sorted(called) == ["add", "add", "made", "made"]
    assert [(task.payload, task.cron) for task in handler.seen] == [(Job(1), "named")] * 2


@ROWS.show("Cancel, GetTask", "hole: cron names")
async def test_a_cancelled_cron_task_is_gone(storage: Storage, autojump_clock: object) -> None:
    async with working(storage) as dispatcher:
        cron = dispatcher.cron
        for name, what in (("function", lambda: None), ("stored", JOB(Job()))):
            await cron.add_with_name("@every 10s", name, what)
            assert (await cron.get_task(name)).name == name
            with pytest.raises(CronNameConflictError):
                await cron.add_with_name("@daily", name, what)
            assert await cron.cancel(name)
            assert not await cron.cancel(name)
            with pytest.raises(CronTaskNotFoundError):
                await cron.get_task(name)
        assert await cron.tasks() == []
        await trio.sleep(30.0)
        assert await dispatcher.control.count() == {}


@ROWS.show("CronTask.Func")
async def test_the_function_of_a_live_cron_task_is_replaced(storage: Storage, autojump_clock: object) -> None:
    called: list[str] = []

    async def old() -> None:
        called.append("old")

    async def new() -> None:
        called.append("new")

    async with working(storage) as dispatcher:
        task = await dispatcher.cron.add_with_name("@every 10s", "c", old)
        await trio.sleep(15.0)
        task.func = new
        await trio.sleep(10.0)
        assert (task.total, task.err_count) == (2, 0)
    assert called == ["old", "new"]


@ROWS.show("cron texts")
@pytest.mark.parametrize(
    ("text", "then"),
    [
        ("30 15 10 * * *", datetime(2026, 3, 1, 10, 15, 30, tzinfo=UTC)),
        ("@hourly", datetime(2026, 3, 1, 1, tzinfo=UTC)),
        ("@daily", datetime(2026, 3, 2, tzinfo=UTC)),
        ("@weekly", datetime(2026, 3, 8, tzinfo=UTC)),
        ("@monthly", datetime(2026, 4, 1, tzinfo=UTC)),
        ("@yearly", datetime(2027, 1, 1, tzinfo=UTC)),
        ("CRON_TZ=Asia/Tokyo 0 0 9 * * *", datetime(2026, 3, 2, tzinfo=UTC)),
    ],
)
def test_gos_cron_texts_mean_the_same(text: str, then: datetime) -> None:
    assert CronSpec(text).next(datetime(2026, 3, 1, tzinfo=UTC)) == then


@ROWS.show("Run, RunTask")
async def test_the_pool_runs_functions(storage: Storage, autojump_clock: object) -> None:
    async def power(base: int, exponent: int) -> int:
        await trio.lowlevel.checkpoint()
        return base**exponent

    async with working(storage) as dispatcher:
        first = dispatcher.pool.run(power, 2, 5)
        second = dispatcher.pool.run_task(Task(trio.sleep, (1.0,), "nap"))
        assert (second.name, second.status) == ("nap", PoolStatus.RUNNING)
        assert await first.result() == 32
        failed = dispatcher.pool.run(power, 0, -1)
        await failed.wait()
        await second.wait()
    assert (first.status, second.status) == (PoolStatus.FINISH, PoolStatus.FINISH)
    assert isinstance(failed.error, ZeroDivisionError)


@ROWS.show("errors")
def test_the_ten_errors_are_caught_by_class_whatever_the_detail() -> None:
    names = (
        "InternalError TaskNotFoundError InvalidQueueTaskError TaskHandlerNotFoundError "
        "QueueConfigConflictError InvalidQueueNameError QueueNotRegisteredError "
        "InvalidTaskTypeError InvalidTaskHandlerError InvalidQueuePayloadError"
    )
    for code, name in enumerate(names.split(), 1001):
        error: type[errors.DispatchError] = getattr(errors, name)
        with pytest.raises(error) as caught:
            raise error(f"some detail of {code}")
        assert caught.value.code == code


@ROWS.show("hole: no shutdown")
async def test_leaving_the_block_drains_and_hands_back(storage: Storage, autojump_clock: object) -> None:
    handler = Script(1.0, 500.0)
    async with working(storage, handler, TaskQueueConfig(concurrency=2), grace=10.0) as dispatcher:
        short = await dispatcher.publisher.publish(JOB(Job(1)))
        long = await dispatcher.publisher.publish(JOB(Job(2)))
        await trio.sleep(0.1)
    async with working(storage, after := Script()) as dispatcher:
        assert (await dispatcher.control.get(short)).status is TaskStatus.SUCCEEDED
        ended = await dispatcher.publisher.wait(long)
    assert (ended.status, ended.attempt, after.numbers) == (TaskStatus.SUCCEEDED, 1, [2])


@ROWS.show("hole: bare timers")
async def test_delayed_and_retrying_tasks_are_kept_counted_and_cancellable(storage: Storage, autojump_clock: object) -> None:
    config = TaskQueueConfig(max_retry=1, retry_delay=50.0)
    async with working(storage, Script(ValueError("x")), config) as dispatcher:
        retrying = await dispatcher.publisher.publish(JOB(Job(1)))
        delayed = await dispatcher.publisher.publish(JOB(Job(2), delay=50.0))
        await trio.sleep(1.0)
        assert await dispatcher.control.count(by=("status",)) == {("later",): 2}
        assert await dispatcher.control.cancel(delayed) == [delayed.id]
    async with working(storage, handler := Script()) as dispatcher:
        await dispatcher.drain()
    assert [task.id for task in handler.seen] == [retrying.id]


@ROWS.show("hole: no handler yet")
async def test_a_task_that_comes_before_its_handler_waits_for_it(storage: Storage, autojump_clock: object) -> None:
    async with working(storage) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job(1)))
        await trio.sleep(100.0)
        assert (await dispatcher.control.get(task)).status is TaskStatus.PENDING
        dispatcher.consumer.register_handler(JOB, handler := Script())
        await dispatcher.drain()
    assert handler.numbers == [1]


@ROWS.show("hole: unknown queue")
async def test_publishing_to_an_unknown_queue_is_an_error_and_creates_nothing(storage: Storage, autojump_clock: object) -> None:
    async with working(storage) as dispatcher:
        with pytest.raises(QueueNotRegisteredError, match=r"^\[1007\]"):
            await dispatcher.publisher.publish(QueueTask(queue="other", type="job", payload=Job()))
        dispatcher.consumer.register_queue("other", TaskQueueConfig(concurrency=7))
        assert await dispatcher.control.count() == {}


@ROWS.show("hole: full buffer")
async def test_a_publish_that_waits_for_room_is_cancellable(storage: Storage, autojump_clock: object) -> None:
    config = TaskQueueConfig(buffer_size=1, max_waiting=1)
    async with working(storage, config=config) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(1)))
        with trio.move_on_after(5.0) as scope:
            await dispatcher.publisher.publish(JOB(Job(2)))
        assert scope.cancelled_caught
        dispatcher.consumer.register_handler(JOB, handler := Script())
        await dispatcher.publisher.publish(JOB(Job(3)))
        await dispatcher.drain()
    assert handler.numbers == [1, 3]


@ROWS.show("hole: own full queue")
async def test_a_handler_publishes_into_its_own_full_queue(storage: Storage, autojump_clock: object) -> None:
    seen: list[int] = []

    async def handler(task: QueueTask[Job]) -> None:
        seen.append(task.payload.n)
        if task.payload.n < 5:
            for _ in range(2):
                await dispatcher.publisher.publish(JOB(Job(task.payload.n + 1)))

    config = TaskQueueConfig(buffer_size=1, max_waiting=1)
    async with working(storage, handler, config) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(0)))
        await dispatcher.drain()
    assert len(seen) == 2**6 - 1


@ROWS.show("hole: panic")
async def test_whatever_a_handler_raises_is_a_failed_attempt(storage: Storage, autojump_clock: object) -> None:
    bad = [RecursionError(), MemoryError(), SystemExit(1), BaseExceptionGroup("g", [SystemExit()])]
    handler = Script(*bad, None)
    async with working(storage, handler, TaskQueueConfig(max_retry=9, retry_delay=0.1)) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        ended = await dispatcher.publisher.wait(task)
    assert (ended.status, ended.attempt) == (TaskStatus.SUCCEEDED, 5)


@ROWS.show("hole: shared object")
async def test_nothing_mutable_is_shared(storage: Storage, autojump_clock: object) -> None:
    headers = {"h": "1"}
    async with working(storage, handler := Script()) as dispatcher:
        task = JOB(Job(1), headers=headers)
        stored = await dispatcher.publisher.publish(task)
        headers["h"] = "2"
        await dispatcher.drain()
    assert (task.id, task.status) == ("", TaskStatus.PENDING)
    assert dict(handler.seen[0].headers) == dict(stored.headers) == {"h": "1"}
    assert handler.seen[0] is not stored


@ROWS.show("hole: Key")
async def test_a_key_orders_the_tasks_that_share_it(storage: Storage, autojump_clock: object) -> None:
    order: list[tuple[str | None, int]] = []

    async def handler(task: QueueTask[Job]) -> None:
        await trio.sleep(5.0 if task.payload.n == 0 else 1.0)
        order.append((task.key, task.payload.n))

    async with working(storage, handler, TaskQueueConfig(concurrency=8, keyed=True)) as dispatcher:
        for n in range(4):
            for key in ("a", "b"):
                await dispatcher.publisher.publish(JOB(Job(n), key=key))
        await dispatcher.drain()
    assert [n for key, n in order if key == "a"] == [0, 1, 2, 3] == [n for key, n in order if key == "b"]


@ROWS.show("hole: exhausted tasks vanish")
async def test_an_exhausted_task_is_listed_edited_and_rerun(storage: Storage, autojump_clock: object) -> None:
    handler = Script(ValueError("no"), None)
    async with working(storage, handler) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job(1)))
        await dispatcher.publisher.wait(task)
        [dead] = (await dispatcher.control.dead_letters("q")).tasks
        assert (dead.id, dead.last_error, dead.failure_reason) == (task.id, "ValueError: no", "exhausted")
        assert await dispatcher.control.edit(task, payload=Job(2))
        assert await dispatcher.control.rerun(dead_letters("q"), dry_run=True) == [task.id]
        assert await dispatcher.control.rerun(dead_letters("q")) == [task.id]
        assert (await dispatcher.publisher.wait(task)).status is TaskStatus.SUCCEEDED
        assert await dispatcher.control.count(Ids(task.id)) == {(): 1}
    assert handler.numbers == [1, 2]


@ROWS.show("hole: empty payload")
async def test_an_empty_payload_is_an_error(storage: Storage, autojump_clock: object) -> None:
    async with working(storage, handler := Script()) as dispatcher:
        nothing: Any = None
        with pytest.raises(InvalidQueuePayloadError):
            await dispatcher.publisher.publish(JOB(nothing))
        await dispatcher.drain()
    assert handler.seen == []


@ROWS.show("hole: cron end")
async def test_closing_waits_for_a_running_cron_function(storage: Storage, autojump_clock: object) -> None:
    done: list[str] = []

    async def slow() -> None:
        await trio.sleep(5.0)
        done.append("slow")

    async with working(storage) as dispatcher:
        await dispatcher.cron.add("@every 10s", slow)
        await trio.sleep(11.0)
    assert done == ["slow"]
    with pytest.raises(ClosedError):
        await dispatcher.cron.add("@every 10s", slow)


@ROWS.show("hole: cron texts")
@pytest.mark.parametrize("text", ["0 0 0 31 2 *", "CRON_TZ=UTC", "TZ=UTC", ""])
async def test_a_text_that_can_never_fire_is_refused(storage: Storage, autojump_clock: object, text: str) -> None:
    async with working(storage) as dispatcher:
        with pytest.raises(InvalidCronSpecError):
            await dispatcher.cron.add(text, lambda: None)


@ROWS.show("hole: pool size")
async def test_the_pool_grows_shrinks_and_finishes_its_queue(autojump_clock: object) -> None:
    pool = TaskDispatcher(1)
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run_pool)
        naps = [pool.run(trio.sleep, 1.0) for _ in range(10)]
        pool.resize(4)
        await trio.sleep(0.1)
        assert pool.statistics().running == 4
        pool.resize(2)
        await trio.sleep(1.0)
        assert pool.statistics().running == 2
        pool.close()
    assert {nap.status for nap in naps} == {PoolStatus.FINISH}


def test_every_row_has_its_test() -> None:
    assert ROWS.untested == []
