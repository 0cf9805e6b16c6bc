"""Seed 5, `sayiir`: its `TaskClaimStore`, method by method, what else it offers, and its holes."""

from __future__ import annotations

import pytest
import trio

from dispatch import QueueTask, Storage, TaskQueueConfig, TaskStatus
from dispatch.bell import Bell
from dispatch.lifecycle import SettleAnswer
from dispatch.records import TransitionKind
from dispatch.storage.protocol import Topic, TopicKind
from dispatch.storage.query import Statuses
from dispatch.testing.workbench import Workbench

from .rows import Rows
from .work import JOB, Job, Script, working

ROWS = Rows(
    {
        "claim_task": "a claim of a named task, with a lease",
        "claim_task: claimed already": "none, also for the same worker",
        "claim_task: no TTL": "never expires",
        "release_task_claim": "settle(snoozed in 0): not the owner is LOST, unknown is GONE",
        "extend_task_claim": "renew",
        "find_available_tasks": "claim directly; as a look find(due)",
        "priority ageing": "a level per ageing interval",
        "worker tags": "a task's tags within the worker's",
        "signals": "cancel and pause; cancel wins",
        "heartbeats": "leases renewed, workers seen",
        "wake-ups with hints": "bells by topic",
        "single-process and pooled workers": "the same handlers, in one process or many",
        "hole: limit before filter": "what cannot run does not eat the limit",
        "hole: completion in two steps": "one step, under a fence",
        "hole: pausing wedges": "a paused queue and a held task go on when resumed",
        "hole: events can be lost": "a bell rung before the wait is heard",
        "hole: timeouts on a heartbeat": "are noticed when they are over",
        "hole: fenced by worker name": "by claim",
        "hole: the client's clock": "the storage's clock alone decides",
    }
)


@ROWS.show("claim_task", "claim_task: claimed already", "hole: fenced by worker name")
async def test_a_named_task_is_claimed_once(bench: Workbench, autojump_clock: object) -> None:
    await bench.publish("a", "b", max_retry=3)
    [claim] = await bench.claim(ids=frozenset({"a"}), worker="w", lease=10.0)
    assert (claim.id, (await bench.row("a")).lease_until) == ("a", claim.started_at + 10.0)
    for worker in ("w", "other"):
        assert await bench.taken(ids=frozenset({"a"}), worker=worker) == []
    await bench.advance(11.0)
    await bench.storage.rescue()
    await bench.advance(1.0)
    [again] = await bench.claim(ids=frozenset({"a"}), worker="w")
    assert again.epoch > claim.epoch
    # The same worker, but not the same claim.
    assert (await bench.settle(claim)).answer is SettleAnswer.LOST


@ROWS.show("claim_task: no TTL")
async def test_a_claim_without_a_lease_never_expires(
    bench: Workbench, autojump_clock: object
) -> None:
    claim = await bench.started("a", lease=None)
    await bench.advance(1e7)
    assert (await bench.storage.rescue()).records == []
    assert await bench.holds(claim)


@ROWS.show("release_task_claim")
async def test_a_claim_is_released_by_its_owner_alone(
    bench: Workbench, autojump_clock: object
) -> None:
    claim = await bench.started("a", worker="owner")
    stranger = await bench.settle(("a", claim.epoch + 1), TransitionKind.SNOOZED, retry_in=0.0)
    unknown = await bench.settle(("unknown", 1), TransitionKind.SNOOZED, retry_in=0.0)
    assert (stranger.answer, unknown.answer) == (SettleAnswer.LOST, SettleAnswer.GONE)
    released = await bench.settle(claim, TransitionKind.SNOOZED, retry_in=0.0)
    assert released.answer is SettleAnswer.APPLIED
    [again] = await bench.claim(worker="another")
    assert (again.id, again.attempt) == ("a", 1)


@ROWS.show("extend_task_claim", "heartbeats")
async def test_a_claim_is_extended_while_it_is_held(bench: Workbench, autojump_clock: object) -> None:
    claim = await bench.started("a", lease=10.0)
    for _ in range(5):
        await bench.advance(5.0)
        [answer] = await bench.storage.renew([(claim.id, claim.epoch)], lease=10.0)
        assert answer.held
    await bench.settle(claim)
    [answer] = await bench.storage.renew([(claim.id, claim.epoch)], lease=10.0)
    assert not answer.held


@ROWS.show("find_available_tasks", "hole: limit before filter")
async def test_available_tasks_are_seen_and_claimed_past_those_that_cannot_run(
    bench: Workbench, autojump_clock: object
) -> None:
    await bench.publish(*(f"gpu{n}" for n in range(30)), tags=("gpu",), priority=3)
    await bench.publish(*(f"later{n}" for n in range(30)), delay=100.0, priority=3)
    await bench.publish("a", "b")
    assert len(await bench.ids(Statuses("due"))) == 32
    assert await bench.taken(2, tags=frozenset()) == ["a", "b"]


@ROWS.show("priority ageing")
async def test_waiting_raises_a_task(bench: Workbench, autojump_clock: object) -> None:
    await bench.publish("low", priority=0)
    await bench.advance(61.0)
    await bench.publish("normal", priority=1)
    assert await bench.taken(2, ageing=60.0) == ["low", "normal"]


@ROWS.show("worker tags", "single-process and pooled workers")
async def test_a_worker_takes_what_its_tags_cover(storage: Storage, autojump_clock: object) -> None:
    plain, gpu = Script(), Script()
    async with (
        working(storage, plain, tags=(), worker="plain") as dispatcher,
        working(storage, gpu, tags=("gpu", "eu"), worker="gpu"),
    ):
        for n, tags in enumerate([("gpu",), ("gpu", "eu"), ("eu",)]):
            await dispatcher.publisher.publish(JOB(Job(n), tags=tags))
        nobody = await dispatcher.publisher.publish(JOB(Job(9), tags=("disk",)))
        await trio.sleep(10.0)
        assert (await dispatcher.control.get(nobody)).status is TaskStatus.PENDING
    assert (plain.numbers, sorted(gpu.numbers)) == ([], [0, 1, 2])


@ROWS.show("signals", "hole: pausing wedges")
async def test_cancel_beats_pause_and_what_is_paused_goes_on(
    storage: Storage, autojump_clock: object
) -> None:
    async with working(storage, config=TaskQueueConfig()) as dispatcher:
        control = dispatcher.control
        first = await dispatcher.publisher.publish(JOB(Job(1)))
        second = await dispatcher.publisher.publish(JOB(Job(2)))
        for task in (first, second):
            assert await control.hold(task) == [task.id]
        assert await control.cancel(first) == [first.id]
        assert await control.resume(first) == []
        dispatcher.consumer.register_handler(JOB, handler := Script())
        await control.pause_queue("q")
        await trio.sleep(100.0)
        assert await control.resume(second) == [second.id]
        await control.resume_queue("q")
        await dispatcher.publisher.wait(second)
        assert (await control.get(first)).status is TaskStatus.CANCELLED
    assert handler.numbers == [2]


async def test_workers_are_seen(storage: Storage, autojump_clock: object) -> None:
    async with working(storage, worker="w1"), working(storage, worker="w2") as dispatcher:
        await trio.sleep(30.0)
        assert [worker.id for worker in await dispatcher.control.workers()] == ["w1", "w2"]


@ROWS.show("wake-ups with hints", "hole: events can be lost")
async def test_a_bell_rings_for_its_topic_and_is_never_missed(
    bench: Workbench, autojump_clock: object
) -> None:
    await bench.declare("q")
    await bench.declare("r")
    claim = await bench.started("a")
    bell, other = Bell(), Bell()
    topic = Topic(TopicKind.TASK, "a")
    with bench.storage.watch(bell, topic), bench.storage.watch(other, Topic(TopicKind.QUEUE, "r")):
        await bench.settle(claim)  # before anybody waits
        with trio.fail_after(10.0):
            await bell.wait()
        await bench.publish("b", queue="r")
        with trio.fail_after(10.0):
            await other.wait()


@ROWS.show("hole: completion in two steps")
async def test_an_end_is_one_step(bench: Workbench, autojump_clock: object) -> None:
    claim = await bench.started("a")
    child = bench.task("child")
    await bench.settle(claim, result=b"1", spawn=(child,))
    [run] = await bench.storage.history("a")
    row = await bench.row("a")
    assert (row.status, row.result, run.outcome.value) == (TaskStatus.SUCCEEDED, b"1", "succeeded")
    assert await bench.status("child") == "pending"


@ROWS.show("hole: timeouts on a heartbeat")
async def test_a_timeout_is_noticed_when_it_is_over(storage: Storage, autojump_clock: object) -> None:
    ended: list[float] = []

    async def handler(task: QueueTask[Job]) -> None:
        began = trio.current_time()
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time() - began)

    async with working(storage, handler, lease=300.0) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(), timeout=0.5))
        await dispatcher.drain()
    assert ended == [pytest.approx(0.5, abs=0.1)]


@ROWS.show("hole: the client's clock")
async def test_due_times_and_leases_go_by_the_storages_clock(
    bench: Workbench, autojump_clock: object
) -> None:
    start = bench.now()
    [result] = await bench.publish("a", delay=10.0)
    assert (result.created_at, result.available_at) == (start, start + 10.0)
    await bench.advance(10.0)
    [claim] = await bench.claim(lease=7.0)
    assert claim.started_at == bench.now()
    assert (await bench.row("a")).lease_until == bench.now() + 7.0


def test_every_row_has_its_test() -> None:
    assert ROWS.untested == []
