"""Seed 3, `runner_q`: its `QueueStorage`, method by method, what else it offers, and its holes."""

from __future__ import annotations

import pytest
import trio

from dispatch import (
    DuplicateTaskError,
    EventKind,
    FailureReason,
    OnClash,
    QueueTask,
    RetryPolicy,
    Run,
    Storage,
    TaskEvent,
    TaskQueueConfig,
    TaskStatus,
    TaskType,
    Unique,
)
from dispatch.bell import Bell
from dispatch.lifecycle import SettleAnswer
from dispatch.records import TransitionKind
from dispatch.storage.protocol import EnqueueAnswer, Topic, TopicKind
from dispatch.storage.query import All, PruneSpec, Queues, Statuses
from dispatch.tasks import Priority
from dispatch.testing.workbench import OPEN, Workbench, unique

from .rows import Rows
from .work import ASK, JOB, Answer, Job, Script, working

EVERY = frozenset(TaskStatus) - {TaskStatus.RETRYING}

ROWS = Rows(
    {
        "enqueue, check_idempotency": "enqueue with Unique, in one step",
        "AllowReuse": "no Unique",
        "ReturnExisting": "every status, KEEP",
        "AllowReuseOnFailure": "every status but failed, KEEP",
        "NoReuse": "every status, REJECT",
        "dequeue": "watch and claim, with a type filter; by several types at once",
        "ack_success": "settle(done)",
        "ack_failure": "settle(failed): the answer says whether it is now dead",
        "process_scheduled, schedules_natively": "not needed: due tasks are claimed directly",
        "requeue_expired": "rescue(n)",
        "extend_lease": "renew",
        "store_result, get_result": "inside settle; an awaiter is woken by the bell",
        "stats, list by state": "count, find",
        "events, live stream": "history, the event stream",
        "priorities, delay": "four levels, and a delay",
        "back-off": "delay times two to the n, with a cap",
        "dead-letter callback": "an observer of failed events",
        "spawning": "run.publish, stored exactly if the attempt succeeds",
        "metadata": "headers",
        "type-filtered workers": "a worker takes the types it has handlers for",
        "metrics sink": "observers",
        "graceful shutdown": "running handlers get their grace",
        "per-claim tokens": "the fence (id, epoch)",
        "batch dequeue": "a claim of many",
        "retention": "prune",
        "worker registry": "workers",
        "cancel": "alter(cancel), also of a running task from elsewhere",
        "hole: short leases": "a run is renewed, whatever its timeout against the lease",
        "hole: worker names repeat": "a stale end under the same name is refused",
        "hole: result after the ack": "result and end are one step",
        "hole: the reaper counts nothing": "a poison pill ends among the dead letters",
        "hole: unknown handler": "left alone for a process that has one",
        "hole: aborted handlers": "are handed back, not counted",
    }
)


@ROWS.show(
    "enqueue, check_idempotency", "AllowReuse", "ReturnExisting", "AllowReuseOnFailure", "NoReuse"
)
@pytest.mark.parametrize(
    ("statuses", "on_clash", "while_running", "after_success", "after_failure"),
    [
        pytest.param(None, "keep", "created", "created", "created", id="AllowReuse"),
        pytest.param(EVERY, "keep", "existing", "existing", "existing", id="ReturnExisting"),
        pytest.param(
            EVERY - {"failed"}, "keep", "existing", "existing", "created", id="AllowReuseOnFailure"
        ),
        pytest.param(EVERY, "reject", "rejected", "rejected", "rejected", id="NoReuse"),
    ],
)
async def test_the_four_behaviours_of_a_key(
    bench: Workbench,
    autojump_clock: object,
    statuses: frozenset[TaskStatus] | None,
    on_clash: str,
    while_running: str,
    after_success: str,
    after_failure: str,
) -> None:
    for end, wanted in ((None, while_running), ("done", after_success), ("failed", after_failure)):
        key = f"{end}"
        named = statuses if statuses is not None else OPEN
        identity = None if statuses is None else unique(key, on_clash, statuses=named)
        claim = await bench.started(f"old-{key}", unique=identity)
        if end is not None:
            await bench.settle(claim, TransitionKind(end))
        [result] = await bench.publish(f"new-{key}", unique=identity)
        assert result.answer == wanted
        assert result.record is None or result.record.id == f"old-{key}"


async def test_a_duplicate_is_answered_or_raised(storage: Storage, autojump_clock: object) -> None:
    async with working(storage) as dispatcher:
        once = Unique(key="k")
        first = await dispatcher.publisher.publish(JOB(Job(1), unique=once))
        same = await dispatcher.publisher.publish(JOB(Job(2), unique=once))
        assert (same.id, same.payload) == (first.id, Job(1))
        never = Unique(key="k", on_clash=OnClash.REJECT)
        with pytest.raises(DuplicateTaskError, match=r"^\[1011\]"):
            await dispatcher.publisher.publish(JOB(Job(3), unique=never))


@ROWS.show("dequeue", "batch dequeue", "process_scheduled, schedules_natively")
async def test_a_claim_waits_by_the_bell_and_takes_the_types_it_wants(
    bench: Workbench, autojump_clock: object
) -> None:
    await bench.declare()
    bell = Bell()
    with bench.storage.watch(bell, Topic(TopicKind.QUEUE, "q")), trio.fail_after(100.0):
        assert await bench.taken(9) == []
        await bench.publish("a1", "a2", type="a")
        await bench.publish("b", type="b")
        await bench.publish("c", type="c", delay=5.0)
        await bell.wait()
    assert await bench.taken(9, types={"a": 1, "c": 1}) == ["a1", "a2"]
    await bench.advance(5.0)
    assert await bench.taken(9, types={"b": 1, "c": 1}) == ["b", "c"]


@ROWS.show("ack_success", "ack_failure", "per-claim tokens", "extend_lease", "requeue_expired")
async def test_a_run_ends_under_its_own_fence(bench: Workbench, autojump_clock: object) -> None:
    claim = await bench.started("a", max_retry=1)
    assert (await bench.fail(claim, 0.0)).status is TaskStatus.PENDING
    [claim] = await bench.claim()
    dead = await bench.fail(claim, 0.0)
    assert (dead.status, dead.failure_reason) == (TaskStatus.FAILED, FailureReason.EXHAUSTED)
    non_retryable = await bench.fail(await bench.started("b", max_retry=9), None)
    assert non_retryable.status is TaskStatus.FAILED
    assert (await bench.settle(await bench.started("c"))).status is TaskStatus.SUCCEEDED
    await bench.started("d", max_retry=1)
    await bench.advance(20.0)
    [answer] = await bench.storage.renew([("d", 1)], lease=30.0)
    assert answer.held
    assert (await bench.storage.rescue()).records == []
    await bench.advance(31.0)
    assert [record.id for record in (await bench.storage.rescue(10)).records] == ["d"]
    assert (await bench.settle(("d", 1))).answer is SettleAnswer.LOST


@ROWS.show("store_result, get_result", "hole: result after the ack")
async def test_a_result_is_stored_with_its_end_and_wakes_who_waits(
    storage: Storage, autojump_clock: object
) -> None:
    async def handler(task: QueueTask[Job, Answer]) -> Answer:
        await trio.sleep(5.0)
        return Answer(task.payload.n * 2)

    async with working(storage, handler, of=ASK) as dispatcher:
        task = await dispatcher.publisher.publish(ASK(Job(21)))
        assert await dispatcher.publisher.result(task) == Answer(42)
        # Ended is ended with its result: there is no moment between the two.
        again = await dispatcher.control.get(task)
        assert (again.status, again.result) == (TaskStatus.SUCCEEDED, Answer(42))


@ROWS.show("stats, list by state", "events, live stream", "metadata")
async def test_what_happens_is_counted_listed_and_streamed(
    storage: Storage, autojump_clock: object
) -> None:
    seen: list[str] = []
    async with working(storage, Script(ValueError("no"), None)) as dispatcher:
        async with dispatcher.subscribe() as events:
            await dispatcher.publisher.publish(JOB(Job(1), headers={"trace": "t"}))
            await dispatcher.publisher.publish(JOB(Job(2), delay=99.0))
            async for event in events:
                seen.append(event.kind.value)
                if event.kind is EventKind.FAILED:
                    break
        control = dispatcher.control
        assert await control.count(by=["queue", "status"]) == {("q", "failed"): 1, ("q", "later"): 1}
        [dead] = (await control.find(Queues("q") & Statuses("failed"))).tasks
        assert dict(dead.headers) == {"trace": "t"}
        [run] = await control.history(dead)
        assert str(run.error).startswith("ValueError: no\n")
    assert sorted(seen) == ["failed", "published", "published", "started"]


@ROWS.show("priorities, delay", "back-off")
async def test_delay_priority_and_back_off(storage: Storage, autojump_clock: object) -> None:
    policy = RetryPolicy.exponential(1.0, factor=2.0, max_delay=6.0, jitter=0.0)
    handler = Script(*[ValueError("no")] * 4, None)
    async with working(storage, handler, TaskQueueConfig(max_retry=9, retry=policy)) as dispatcher:
        began = trio.current_time()
        await dispatcher.publisher.publish(JOB(Job(), delay=10.0, priority=Priority.CRITICAL))
        await dispatcher.drain()
    assert handler.times[0] == pytest.approx(began + 10.0, abs=0.1)
    assert handler.gaps == pytest.approx([1.0, 2.0, 4.0, 6.0], abs=0.1)


@ROWS.show("dead-letter callback", "metrics sink")
async def test_observers_hear_of_dead_letters_and_of_everything_else(
    storage: Storage, autojump_clock: object
) -> None:
    dead: list[TaskEvent] = []
    durations: list[float] = []

    def observe(event: TaskEvent) -> None:
        if event.kind is EventKind.FAILED:
            dead.append(event)
        if event.run_s is not None:
            durations.append(event.run_s)

    async def handler(task: QueueTask[Job]) -> None:
        await trio.sleep(3.0)
        raise ValueError("no")

    async with working(storage, handler, observers=(observe,)) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
    [event] = dead
    assert (event.task_id, event.error, event.failure_reason) == (task.id, "ValueError: no", "exhausted")
    assert durations == [pytest.approx(3.0, abs=0.1)]


@ROWS.show("spawning")
async def test_spawned_tasks_exist_exactly_if_their_attempt_succeeds(
    storage: Storage, autojump_clock: object
) -> None:
    async def handler(task: QueueTask[Job], run: Run) -> None:
        if task.payload.n == 0:
            await run.publish(JOB(Job(run.attempt)))
            if run.attempt == 1:
                raise ValueError("no")

    async with working(storage, handler, TaskQueueConfig(max_retry=1)) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(0)))
        await dispatcher.drain()
        tasks = (await dispatcher.control.find()).tasks
    assert [task.payload for task in tasks] == [Job(0), Job(2)]


@ROWS.show("type-filtered workers", "hole: unknown handler")
async def test_a_worker_takes_the_types_it_has_handlers_for(
    storage: Storage, autojump_clock: object
) -> None:
    other = TaskType("q", "other", Job)
    async with working(storage, first := Script()) as one:
        await one.publisher.publish(JOB(Job(1)))
        theirs = await one.publisher.publish(other(Job(2)))
        await one.drain()
        assert (await one.control.get(theirs)).status is TaskStatus.PENDING
        async with working(storage, second := Script(), of=other) as two:
            await two.drain()
    assert (first.numbers, second.numbers) == ([1], [2])


@ROWS.show("graceful shutdown", "hole: aborted handlers", "worker registry")
async def test_a_shutdown_gives_its_grace_and_hands_back_the_rest(
    storage: Storage, autojump_clock: object
) -> None:
    config = TaskQueueConfig(concurrency=2, max_retry=0)
    async with working(storage, Script(3.0, 500.0), config, grace=5.0, worker="w1") as dispatcher:
        short = await dispatcher.publisher.publish(JOB(Job(1)))
        long = await dispatcher.publisher.publish(JOB(Job(2)))
        await trio.sleep(0.5)
        [worker] = await dispatcher.control.workers()
        assert (worker.id, worker.queues) == ("w1", ("q",))
    rows = {row.id: row for row in (await storage.find(All())).records}
    assert rows[short.id].status is TaskStatus.SUCCEEDED
    assert (rows[long.id].status, rows[long.id].attempt) == (TaskStatus.PENDING, 0)
    assert await storage.workers() == []


@ROWS.show("retention")
async def test_what_has_ended_is_pruned(bench: Workbench, autojump_clock: object) -> None:
    await bench.ended("old")
    await bench.advance(1_000.0)
    await bench.ended("new")
    assert await bench.storage.prune(PruneSpec(age_s=500.0)) == 1
    assert await bench.ids() == ["new"]
    assert await bench.storage.history("old") == []


@ROWS.show("cancel")
async def test_a_running_task_is_cancelled_from_elsewhere(
    storage: Storage, autojump_clock: object
) -> None:
    async with working(storage, Script(500.0), worker="runs-it") as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(0.5)
        async with working(storage, worker="elsewhere") as other:
            asked = trio.current_time()
            assert await other.control.cancel(task, reason="enough") == [task.id]
            ended = await other.publisher.wait(task)
        assert trio.current_time() - asked < 2.0
    assert ended.status is TaskStatus.CANCELLED


@ROWS.show("hole: short leases")
@pytest.mark.parametrize("limit_s", [29.0, 30.0, 31.0, 300.0])
async def test_a_long_run_is_renewed_and_runs_once(
    storage: Storage, autojump_clock: object, limit_s: float
) -> None:
    handler = Script(limit_s - 1.0)
    config = TaskQueueConfig(timeout=limit_s, max_retry=3)
    async with (
        working(storage, handler, config, lease=30.0) as dispatcher,
        working(storage, handler, config, lease=30.0),
    ):
        task = await dispatcher.publisher.publish(JOB(Job()))
        ended = await dispatcher.publisher.wait(task)
    assert (ended.status, ended.attempt, len(handler.seen)) == (TaskStatus.SUCCEEDED, 1, 1)


@ROWS.show("hole: worker names repeat")
async def test_a_stale_end_under_the_same_name_is_refused(
    bench: Workbench, autojump_clock: object
) -> None:
    stale = await bench.started("a", max_retry=5, worker="worker-0")
    await bench.rescue_all()
    await bench.advance(1.0)
    [fresh] = await bench.claim(worker="worker-0")
    assert (await bench.settle(stale, result=b"stale")).answer is SettleAnswer.LOST
    assert await bench.holds(fresh)
    [refused] = await bench.storage.enqueue([bench.task("child")], by=(stale.id, stale.epoch))
    assert refused.answer is EnqueueAnswer.CLAIM_LOST


@ROWS.show("hole: the reaper counts nothing")
async def test_a_task_that_kills_its_process_ends_among_the_dead_letters(
    bench: Workbench, autojump_clock: object
) -> None:
    await bench.publish("pill", max_retry=2)
    for attempt in (1, 2, 3):
        await bench.advance(2.0)
        [claim] = await bench.claim()
        assert claim.attempt == attempt
        await bench.rescue_all()
    row = await bench.row("pill")
    assert (row.status, row.failure_reason) == (TaskStatus.FAILED, FailureReason.EXHAUSTED)
    assert await bench.taken(9) == []


def test_every_row_has_its_test() -> None:
    assert ROWS.untested == []
