"""Seed 2, `alun-task`: its `TaskStorage`, method by method, what else it offers, and its holes."""

from __future__ import annotations

import pytest
import trio

from dispatch import (
    PermanentError,
    Priority,
    QueueTask,
    RetryPolicy,
    Storage,
    TaskQueueConfig,
    TaskStatus,
    TaskType,
)
from dispatch.records import AttemptOutcome
from dispatch.storage.protocol import EnqueueAnswer
from dispatch.storage.query import Header, Statuses, Tags
from dispatch.testing.faults import FaultyStorage
from dispatch.testing.workbench import Workbench

from .rows import Rows
from .work import JOB, Job, Script, working

ROWS = Rows(
    {
        "save_task_log, save_task_queue": "one enqueue, before the task can run",
        "update_task_status": "claim, settle, alter(cancel)",
        "get_retry_count, update_retry": "find(id).attempt, settle(failed, retry_in)",
        "save_task_result": "inside settle",
        "log_execution": "one attempt record per run, history",
        "scan_retryable_tasks": "due retries are claimed; as a listing find(retrying)",
        "priorities": "low, normal, high, critical",
        "per-type config": "timeout, retries and strategy per queue, and per task",
        "retry strategies": "fixed, linear, exponential with a cap",
        "dead-letter topic": "dead letters per queue, listed by the query tree",
        "batch submit": "publish_many: an answer per item",
        "metrics": "count by status: total, pending, running, completed, failed, cancelled, retried",
        "is_terminal": "TaskStatus.is_terminal",
        "timeouts cancel": "the handler's scope is cancelled",
        "references": "tags and headers, found by the query tree",
        "hole: off by one": "the retries end, and the dead letters are reached",
        "hole: retry delay only logged": "a retry waits as long as it should",
        "hole: an hour": "an old message is not dropped",
        "hole: no handler": "is not lost",
        "hole: one at a time": "concurrency is the queue's",
        "hole: panic": "a failing handler does not end its worker",
        "hole: stop": "hands the running handler's task back",
        "hole: storage errors": "do not reset the retries",
    }
)


@ROWS.show("save_task_log, save_task_queue")
async def test_a_task_is_stored_by_one_step_before_it_can_run(
    bench: Workbench, autojump_clock: object
) -> None:
    [result] = await bench.publish("a", payload=b"1")
    assert result.answer is EnqueueAnswer.CREATED
    assert (await bench.row("a")).payload == b"1"
    assert await bench.taken() == ["a"]


@ROWS.show("update_task_status", "get_retry_count, update_retry", "save_task_result", "log_execution")
async def test_a_status_moves_with_its_count_its_result_and_its_log(
    bench: Workbench, autojump_clock: object
) -> None:
    claim = await bench.started("a", max_retry=3, worker="w1")
    assert (await bench.row("a")).status is TaskStatus.RUNNING
    await bench.advance(2.0)
    await bench.fail(claim, 5.0)
    row = await bench.row("a")
    assert (row.status, row.attempt) == (TaskStatus.PENDING, 1)
    assert row.available_at == pytest.approx(bench.now() + 5.0, abs=1e-5)
    await bench.advance(5.0)
    [again] = await bench.claim(worker="w2")
    await bench.settle(again, result=b"42")
    row = await bench.row("a")
    assert (row.status, row.attempt, row.result) == (TaskStatus.SUCCEEDED, 2, b"42")
    runs = await bench.storage.history("a")
    assert [(run.outcome, run.worker, run.error) for run in runs] == [
        (AttemptOutcome.RETRIED, "w1", "ValueError: no"),
        (AttemptOutcome.SUCCEEDED, "w2", None),
    ]
    assert runs[0].finished_at == pytest.approx(runs[0].started_at + 2.0, abs=1e-5)
    await bench.publish("b")
    assert await bench.alter("b", "cancel") == ["b"]
    assert (await bench.row("b")).status is TaskStatus.CANCELLED


@ROWS.show("scan_retryable_tasks")
async def test_retrying_tasks_are_listed_and_due_ones_are_claimed(
    bench: Workbench, autojump_clock: object
) -> None:
    for id_ in "ab":
        await bench.fail(await bench.started(id_, max_retry=3), 5.0 if id_ == "a" else 50.0)
    await bench.publish("new")
    assert await bench.ids(Statuses("retrying")) == ["a", "b"]
    await bench.advance(5.0)
    assert sorted(await bench.taken(9)) == ["a", "new"]
    assert await bench.ids(Statuses("retrying")) == ["b"]


@ROWS.show("priorities")
async def test_the_four_priorities_go_from_critical_to_low(
    storage: Storage, autojump_clock: object
) -> None:
    async with working(storage) as dispatcher:
        for priority in Priority:
            await dispatcher.publisher.publish(JOB(Job(priority), priority=priority))
        dispatcher.consumer.register_handler(JOB, handler := Script())
        await dispatcher.drain()
    assert handler.numbers == [3, 2, 1, 0]


@ROWS.show("per-type config")
async def test_settings_are_the_queues_and_a_task_may_have_its_own(
    storage: Storage, autojump_clock: object
) -> None:
    slow = TaskType("slow", "job", Job)
    async with working(storage, first := Script(9.0), TaskQueueConfig(timeout=1.0)) as dispatcher:
        config = TaskQueueConfig(timeout=5.0, max_retry=1)
        dispatcher.consumer.register_queue("slow", config)
        dispatcher.consumer.register_handler(slow, second := Script(9.0))
        tasks = [JOB(Job()), JOB(Job(), timeout=20.0), slow(Job())]
        ended = [
            (await dispatcher.publisher.wait(await dispatcher.publisher.publish(task))).status.value
            for task in tasks
        ]
    assert ended == ["failed", "succeeded", "failed"]
    assert (len(first.seen), len(second.seen)) == (2, 2)


@ROWS.show("retry strategies", "hole: retry delay only logged", "hole: off by one", "dead-letter topic")
@pytest.mark.parametrize(
    ("policy", "gaps"),
    [
        (RetryPolicy.fixed(2.0), [2, 2, 2, 2]),
        (RetryPolicy.linear(2.0, max_delay=5.0), [2, 4, 5, 5]),
        (RetryPolicy.exponential(1.0, jitter=0.0, max_delay=5.0), [1, 2, 4, 5]),
    ],
    ids=["fixed", "linear", "exponential"],
)
async def test_retries_wait_as_their_strategy_says_and_end_among_the_dead_letters(
    storage: Storage, autojump_clock: object, policy: RetryPolicy, gaps: list[float]
) -> None:
    handler = Script(ValueError("no"))
    async with working(storage, handler, TaskQueueConfig(max_retry=4, retry=policy)) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.publisher.wait(task)
        [dead] = (await dispatcher.control.dead_letters("q")).tasks
        assert (await dispatcher.control.dead_letters("other")).tasks == ()
    assert handler.gaps == pytest.approx(gaps, abs=0.1)
    assert (dead.id, dead.attempt) == (task.id, 5)


@ROWS.show("batch submit")
async def test_a_bad_item_does_not_spoil_its_batch(storage: Storage, autojump_clock: object) -> None:
    async with working(storage, handler := Script()) as dispatcher:
        wrong = QueueTask(queue="q", type="job", payload={"n": "text"}, declared=JOB)
        elsewhere = QueueTask(queue="unknown", type="job", payload=Job())
        answers = await dispatcher.publisher.publish_many([JOB(Job(1)), wrong, elsewhere, JOB(Job(2))])
        await dispatcher.drain()
    assert [answer.error is None for answer in answers] == [True, False, False, True]
    assert sorted(handler.numbers) == [1, 2]


@ROWS.show("metrics", "is_terminal")
async def test_every_task_is_counted_by_its_status(bench: Workbench, autojump_clock: object) -> None:
    await bench.ended("done")
    await bench.fail(await bench.started("failed"), None)
    await bench.fail(await bench.started("retried", max_retry=2), 50.0)
    await bench.started("running")
    await bench.publish("pending", "cancelled")
    await bench.alter("cancelled", "cancel")
    assert await bench.storage.count(Statuses(*TaskStatus)) == {(): 6}
    assert await bench.storage.count(Statuses(*TaskStatus), by=["status"]) == {
        ("succeeded",): 1,
        ("failed",): 1,
        ("later",): 1,
        ("running",): 1,
        ("pending",): 1,
        ("cancelled",): 1,
    }
    assert await bench.storage.count(Statuses("retrying")) == {(): 1}
    assert {status for status in TaskStatus if status.is_terminal} == {"succeeded", "failed", "cancelled"}


@ROWS.show("timeouts cancel")
async def test_a_timeout_cancels_the_handler(storage: Storage, autojump_clock: object) -> None:
    ended: list[float] = []

    async def handler(task: QueueTask[Job]) -> None:
        began = trio.current_time()
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time() - began)

    async with working(storage, handler, TaskQueueConfig(timeout=3.0)) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
    assert ended == [pytest.approx(3.0, abs=0.1)]


@ROWS.show("references")
async def test_users_and_resources_are_tags_and_headers(
    storage: Storage, autojump_clock: object
) -> None:
    async with working(storage) as dispatcher:
        wanted = await dispatcher.publisher.publish(
            JOB(Job(1), tags=("user:7", "invoice:9"), headers={"resource": "invoice"})
        )
        await dispatcher.publisher.publish(JOB(Job(2), tags=("user:8",)))
        for where in (Tags(all_of=["user:7"]), Header("resource", "invoice")):
            assert [task.id for task in (await dispatcher.control.find(where)).tasks] == [wanted.id]


@ROWS.show("hole: an hour", "hole: no handler")
async def test_a_message_of_last_week_waits_for_its_handler(
    storage: Storage, autojump_clock: object
) -> None:
    async with working(storage) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(1)))
    await trio.sleep(7 * 86_400.0)
    async with working(storage, handler := Script()) as dispatcher:
        await dispatcher.drain()
    assert handler.numbers == [1]


@ROWS.show("hole: one at a time", "hole: panic")
async def test_handlers_run_beside_each_other_and_beside_failing_ones(
    storage: Storage, autojump_clock: object
) -> None:
    async def handler(task: QueueTask[Job]) -> None:
        if task.payload.n % 2:
            raise PermanentError("no")
        await trio.sleep(10.0)

    async with working(storage, handler, TaskQueueConfig(concurrency=10)) as dispatcher:
        began = trio.current_time()
        await dispatcher.publisher.publish_many([JOB(Job(n)) for n in range(20)])
        await dispatcher.drain()
        assert trio.current_time() - began < 15.0
        assert await dispatcher.control.count(by=["status"]) == {("succeeded",): 10, ("failed",): 10}


@ROWS.show("hole: stop")
async def test_stopping_hands_a_running_task_back(storage: Storage, autojump_clock: object) -> None:
    async with working(storage, Script(500.0), grace=1.0) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job(1)))
        await trio.sleep(0.1)
    [row] = (await storage.find(Statuses("pending"))).records
    assert (row.id, row.attempt) == (task.id, 0)
    assert dispatcher.report.interrupted == (task.id,)


@ROWS.show("hole: storage errors")
async def test_storage_errors_do_not_reset_the_retries(
    storage: Storage, autojump_clock: object
) -> None:
    handler = Script(ValueError("no"))
    faulty = FaultyStorage(storage)
    async with working(faulty, handler, TaskQueueConfig(max_retry=2, retry_delay=1.0)) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        for _ in range(3):
            faulty.fail("turn", times=3)
            await trio.sleep(1.5)
        ended = await dispatcher.publisher.wait(task)
    assert (ended.status, ended.attempt) == (TaskStatus.FAILED, 3)
    assert [task.attempt for task in handler.seen] == [1, 2, 3]
    assert faulty.calls["turn"] > 9


def test_every_row_has_its_test() -> None:
    assert ROWS.untested == []
