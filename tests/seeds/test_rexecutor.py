"""Seed 4, `rexecutor`: its `Backend`, method by method, what else it offers, and its holes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import trio

from dispatch import (
    Cancel,
    CronSpec,
    QueueTask,
    RetryPolicy,
    Snooze,
    Storage,
    TaskQueueConfig,
    TaskStatus,
    Unique,
    open_dispatcher,
)
from dispatch.bell import Bell
from dispatch.lifecycle import SettleAnswer
from dispatch.records import TransitionKind
from dispatch.storage.protocol import EnqueueAnswer, Topic, TopicKind
from dispatch.storage.query import (
    AnyOf,
    Attempt,
    Header,
    Ids,
    Not,
    Payload,
    PruneSpec,
    Queues,
    Statuses,
    Tags,
    Time,
    Types,
    Where,
)
from dispatch.testing.harness import Harness
from dispatch.testing.workbench import Workbench, unique

from .rows import Rows
from .work import JOB, Job, Script, working

ROWS = Rows(
    {
        "subscribe_ready_jobs": "watch and claim",
        "enqueue: do nothing": "enqueue with Unique: key, scope, within, statuses; KEEP",
        "enqueue: replace fields": "the same with REPLACE: exactly the fields named",
        "mark_job_complete": "settle(done)",
        "mark_job_retryable": "settle(failed, retry_in)",
        "mark_job_discarded": "settle(failed)",
        "mark_job_cancelled": "settle(cancelled)",
        "mark_job_snoozed": "settle(snoozed)",
        "prune_jobs": "prune: by age and by number, only and except, on a schedule",
        "rerun_job": "alter(rerun)",
        "update_job": "alter(patch)",
        "query": "find: Not, All and AnyOf over every field",
        "back-off strategies": "constant, linear and exponential; any other curve by `decide`",
        "jitter": "a part of the wait, up and down",
        "constants per job": "timeout, retries and priority of a task beat its queue's",
        "results": "Done, Cancel, Snooze, Error: return, raise Cancel, raise Snooze, raise",
        "cron with a zone": "CronSpec(text, zone)",
        "assert_enqueued!": "Harness.assert_published",
        "paused in-memory backend": "pause_queue, or no handler registered",
        "hole: no lease": "a crash is rescued",
        "hole: by_key never matches": "so that cron fires once on all nodes: one tick, one task",
        "hole: unfenced marks": "every end carries its fence",
        "hole: snooze of a first attempt": "is snoozed like any other",
        "hole: queries without parentheses": "a scope does not leak",
        "hole: prunes the wrong end": "the newest are kept",
        "hole: lowered max_attempts": "counts at the next failure",
    }
)


@ROWS.show("subscribe_ready_jobs")
async def test_ready_jobs_are_heard_of_and_claimed(bench: Workbench, autojump_clock: object) -> None:
    await bench.declare()
    bell = Bell()
    with bench.storage.watch(bell, Topic(TopicKind.QUEUE, "q")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.publish, "a")
            with trio.fail_after(10.0):
                await bell.wait()
    assert await bench.taken(types={"t": 1}) == ["a"]


@ROWS.show("enqueue: do nothing", "enqueue: replace fields")
@pytest.mark.parametrize("on_clash", ["keep", "replace"])
async def test_uniqueness_by_key_window_and_status(
    bench: Workbench, autojump_clock: object, on_clash: str
) -> None:
    criteria: dict[str, Any] = {
        "statuses": frozenset({TaskStatus.PENDING, TaskStatus.SUCCEEDED}),
        "within": 60.0,
        "replace": frozenset({"priority", "tags"}),
        "replace_in": frozenset({TaskStatus.PENDING}),
    }
    await bench.publish("old", unique=unique("k", **criteria), payload=b"old")
    same = unique("k", on_clash, **criteria)
    [result] = await bench.publish("new", unique=same, payload=b"new", priority=3, tags=("n",))
    row = await bench.row("old")
    if on_clash == "replace":
        assert result.answer is EnqueueAnswer.REPLACED
        assert (row.priority, row.tags, row.payload) == (3, ("n",), b"old")
    else:
        assert result.answer is EnqueueAnswer.EXISTING
        assert (row.priority, row.tags, row.payload) == (1, (), b"old")
    [later] = await bench.publish("later", unique=same, delay=61.0)
    [other] = await bench.publish("other", unique=unique("another", on_clash, **criteria))
    await bench.claim(ids=frozenset({"old"}))
    [running] = await bench.publish("beside", unique=same)
    assert {later.answer, other.answer, running.answer} == {EnqueueAnswer.CREATED}


@ROWS.show(
    "mark_job_complete",
    "mark_job_retryable",
    "mark_job_discarded",
    "mark_job_cancelled",
    "mark_job_snoozed",
    "hole: snooze of a first attempt",
    "hole: unfenced marks",
)
@pytest.mark.parametrize(
    ("kind", "wait", "status", "attempt"),
    [
        (TransitionKind.DONE, None, TaskStatus.SUCCEEDED, 1),
        (TransitionKind.FAILED, 5.0, TaskStatus.PENDING, 1),
        (TransitionKind.FAILED, None, TaskStatus.FAILED, 1),
        (TransitionKind.CANCELLED, None, TaskStatus.CANCELLED, 1),
        (TransitionKind.SNOOZED, 5.0, TaskStatus.PENDING, 0),
    ],
    ids=["complete", "retryable", "discarded", "cancelled", "snoozed"],
)
async def test_each_mark_is_an_end_under_a_fence(
    bench: Workbench,
    autojump_clock: object,
    kind: TransitionKind,
    wait: float | None,
    status: TaskStatus,
    attempt: int,
) -> None:
    claim = await bench.started("a", max_retry=3)
    before = await bench.row("a")
    stale = (claim.id, claim.epoch - 1)
    assert (await bench.settle(stale, kind, retry_in=wait)).answer is SettleAnswer.LOST
    assert await bench.row("a") == before
    assert (await bench.settle(claim, kind, retry_in=wait, error="why")).answer is SettleAnswer.APPLIED
    row = await bench.row("a")
    assert (row.status, row.attempt) == (status, attempt)
    if wait is not None:
        assert row.available_at == pytest.approx(bench.now() + wait, abs=1e-5)
    if kind is TransitionKind.CANCELLED:
        assert row.cancel_reason == "why"


@ROWS.show("prune_jobs", "hole: prunes the wrong end")
async def test_pruning_by_age_and_number_only_and_except(
    bench: Workbench, autojump_clock: object
) -> None:
    prune = bench.storage.prune
    for number in range(5):
        await bench.ended(f"t{number}")
        await bench.advance(10.0)
    await bench.ended("u", type="u")
    assert await prune(PruneSpec(keep=2, where=Types("t"))) == 3
    assert await bench.ids() == ["t3", "t4", "u"]
    assert await prune(PruneSpec(age_s=15.0, where=Not(Types("u")))) == 1
    assert await bench.ids() == ["t4", "u"]


async def test_pruning_runs_on_a_schedule(storage: Storage, autojump_clock: object) -> None:
    with trio.fail_after(100_000.0):
        keep_one = PruneSpec(keep=1)
        async with open_dispatcher(storage, prune=[keep_one], observers=()) as dispatcher:
            dispatcher.consumer.register_queue("q")
            dispatcher.consumer.register_handler(JOB, Script())
            await dispatcher.publisher.publish_many([JOB(Job(n)) for n in range(5)])
            await dispatcher.drain()
            await trio.sleep(2 * 3_600.0)
            assert await dispatcher.control.count() == {(): 1}


@ROWS.show("rerun_job", "update_job", "hole: lowered max_attempts")
async def test_a_job_is_edited_and_rerun(bench: Workbench, autojump_clock: object) -> None:
    claim = await bench.started("a", max_retry=9)
    assert await bench.alter("a", "patch", max_retry=0) == ["a"]
    await bench.fail(claim, 0.0)
    assert await bench.status("a") == "failed"
    assert await bench.alter("a", "patch", payload=b"2", priority=3, tags=("x",)) == ["a"]
    assert await bench.alter("a", "rerun") == ["a"]
    [again] = await bench.claim()
    assert (again.payload, again.priority, again.tags, again.attempt) == (b"2", 3, ("x",), 2)


@ROWS.show("query", "hole: queries without parentheses")
async def test_every_field_can_be_asked_for_and_no_scope_leaks(
    bench: Workbench, autojump_clock: object
) -> None:
    start = bench.now()
    await bench.publish("a", queue="mine", type="x", tags=("t", "u"), headers={"m": "1"})
    await bench.publish("b", queue="mine", type="y", payload=b'{"n":7}', delay=100.0)
    await bench.publish("c", queue="theirs", type="x", tags=("t",), delay=50.0)
    await bench.fail(await bench.started("d", queue="theirs", type="z", max_retry=2), 10.0)
    asked: list[tuple[Where, list[str]]] = [
        (Types("x"), ["a", "c"]),
        (Payload(("n",), 7), ["b"]),
        (Header("m", "1"), ["a"]),
        (Ids("a", "d"), ["a", "d"]),
        (Statuses("retrying"), ["d"]),
        (Attempt(1), ["d"]),
        (Tags(all_of=["t", "u"]), ["a"]),
        (Tags(any_of=["t", "z"]), ["a", "c"]),
        (Time("available_at", until=start + 20.0), ["a", "d"]),
        (Time("available_at", since=start + 60.0), ["b"]),
        (Queues("mine") & (Types("x") | Types("y")), ["a", "b"]),
        (Queues("mine") & Types("x") | Types("z"), ["a", "d"]),
        (Queues("mine") & Not(AnyOf(Types("x"), Types("z"))), ["b"]),
    ]
    for where, ids in asked:
        assert await bench.ids(where) == ids, where


@ROWS.show("back-off strategies", "jitter")
def test_back_off_by_formula_or_by_a_function() -> None:
    def middle() -> float:
        return 0.5

    waits = {
        "constant": RetryPolicy.fixed(3.0),
        "linear": RetryPolicy.linear(3.0),
        "exponential": RetryPolicy.exponential(3.0, jitter=0.0, max_delay=20.0),
    }
    assert {name: [policy.wait_s(n, middle) for n in (1, 2, 3, 4)] for name, policy in waits.items()} == {
        "constant": [3.0, 3.0, 3.0, 3.0],
        "linear": [3.0, 6.0, 9.0, 12.0],
        "exponential": [3.0, 6.0, 12.0, 20.0],
    }
    jittered = RetryPolicy.fixed(10.0, jitter=0.2)
    drawn = [jittered.wait_s(1, lambda part=part: part) for part in (0.0, 0.5, 0.999999)]
    assert drawn == pytest.approx([8.0, 10.0, 12.0], abs=0.001)


async def test_a_polynomial_back_off(storage: Storage, autojump_clock: object) -> None:
    policy = RetryPolicy(decide=lambda error, attempt: float(attempt**2))
    handler = Script(ValueError("no"))
    async with working(storage, handler, TaskQueueConfig(max_retry=3, retry=policy)) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
    assert handler.gaps == pytest.approx([1.0, 4.0, 9.0], abs=0.1)


@ROWS.show("constants per job", "results")
async def test_a_handler_says_done_cancel_snooze_or_error(
    storage: Storage, autojump_clock: object
) -> None:
    said: dict[int, list[Any]] = {
        0: [None],
        1: [Cancel("not needed")],
        2: [Snooze(5.0), Snooze(5.0), None],
        3: [ValueError("no"), ValueError("no")],
    }
    attempts: list[tuple[int, int]] = []

    async def handler(task: QueueTask[Job]) -> None:
        attempts.append((task.payload.n, task.attempt))
        step = said[task.payload.n].pop(0)
        if step is not None:
            raise step

    config = TaskQueueConfig(concurrency=4, max_retry=0, retry_delay=1.0)
    async with working(storage, handler, config) as dispatcher:
        for n in said:
            await dispatcher.publisher.publish(JOB(Job(n), max_retry=1 if n == 3 else None))
        await dispatcher.drain()
        tasks = (await dispatcher.control.find()).tasks
    assert [task.status.value for task in tasks] == ["succeeded", "cancelled", "succeeded", "failed"]
    assert sorted(attempts) == [(0, 1), (1, 1), (2, 1), (2, 1), (2, 1), (3, 1), (3, 2)]


@ROWS.show("cron with a zone")
def test_cron_in_a_zone() -> None:
    berlin = CronSpec("0 9 * * *", zone="Europe/Berlin")
    found = [berlin.next(datetime(2026, month, 1, tzinfo=UTC)) for month in (1, 7)]
    assert found == [datetime(2026, 1, 1, 8, tzinfo=UTC), datetime(2026, 7, 1, 7, tzinfo=UTC)]


@ROWS.show("assert_enqueued!")
async def test_a_users_test_asserts_what_was_published(
    storage: Storage, autojump_clock: object
) -> None:
    def register(dispatcher: Any) -> None:
        dispatcher.consumer.register_queue("q")
        dispatcher.consumer.register_handler(JOB, Script())

    async with Harness(register, storage=storage) as harness:
        await harness.publisher.publish(JOB(Job(7)))
        await harness.run_until_idle()
        await harness.assert_published(JOB, Job(7), status="succeeded")
        with pytest.raises(AssertionError):
            await harness.assert_published(JOB, Job(8))


@ROWS.show("paused in-memory backend")
async def test_a_paused_queue_keeps_its_jobs(storage: Storage, autojump_clock: object) -> None:
    async with working(storage, handler := Script()) as dispatcher:
        await dispatcher.control.pause_queue("q")
        await dispatcher.publisher.publish(JOB(Job(1)))
        await trio.sleep(100.0)
        assert (handler.numbers, await dispatcher.control.count(by=["status"])) == ([], {("pending",): 1})
        await dispatcher.control.resume_queue("q")
        await dispatcher.drain()
    assert handler.numbers == [1]


@ROWS.show("hole: no lease")
async def test_a_crashed_executors_job_runs_again(bench: Workbench, autojump_clock: object) -> None:
    await bench.started("a", max_retry=1)
    [record] = (await bench.rescue_all()).records
    assert (record.id, record.status) == ("a", TaskStatus.PENDING)
    await bench.advance(1.0)
    assert await bench.taken() == ["a"]


@ROWS.show("hole: by_key never matches")
async def test_two_nodes_fire_one_tick_once(storage: Storage, autojump_clock: object) -> None:
    handler = Script()
    async with working(storage, handler) as one, working(storage, handler) as two:
        for node in (one, two):
            await node.cron.add_with_name("@every 10s", "c", JOB(Job(1)))
        await trio.sleep(35.0)
        await one.cron.cancel("c")
        await one.drain()
        again = Unique(by_payload=True)
        first = await one.publisher.publish(JOB(Job(9), unique=again, delay=1.0))
        second = await two.publisher.publish(JOB(Job(9), unique=again, delay=1.0))
        assert first.id == second.id
        await one.drain()
    assert handler.numbers == [1, 1, 1, 9]


def test_every_row_has_its_test() -> None:
    assert ROWS.untested == []
