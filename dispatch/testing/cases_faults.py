"""Conformance: calls cut short, several processes on one storage, lost connections."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import attrs
import pytest
import trio

from dispatch.bell import Bell
from dispatch.errors import StorageError
from dispatch.lifecycle import SettleAnswer
from dispatch.records import Transition, TransitionKind
from dispatch.storage.protocol import (
    AdvanceAnswer,
    Change,
    CronRecord,
    EnqueueAnswer,
    QueueRecord,
    RemoveAnswer,
    Topic,
    TopicKind,
    Want,
    WorkerRecord,
)
from dispatch.storage.query import All, Ids, PruneSpec, Queues, Statuses
from dispatch.testing.workbench import LEASE_S, Workbench, cancelled_at, unique

__all__ = ["ConnectionCases", "DurabilityCases", "InterruptionCases"]

DEADLINE_S: Final = 5.0
MOST_STEPS: Final = 2_000


@attrs.frozen
class Deed:
    """A call that changes something: what it needs, the call, and whether all of it is there."""

    prepare: Callable[[Workbench, str], Awaitable[Any]]
    act: Callable[[Workbench, str], Awaitable[Any]]
    done: Callable[[Workbench, str], Awaitable[bool]]


async def nothing(bench: Workbench, name: str) -> None:
    """Needs nothing but the queue."""
    await bench.declare()


async def started(bench: Workbench, name: str) -> None:
    """A running task, which may be retried."""
    await bench.started(name, max_retry=5, lease=1.0)


async def ended(bench: Workbench, name: str) -> None:
    """An ended task with a history, and a cron entry."""
    await bench.ended(name)


async def two_pending(bench: Workbench, name: str) -> None:
    """Two tasks of one key."""
    await bench.declare(keyed=True)
    await bench.publish(name, f"{name}+", key=name)


async def a_cron_entry(bench: Workbench, name: str) -> None:
    """A cron entry of this name, never ticked."""
    await bench.declare()
    entry = CronRecord(name=name, definition="d", template=bench.task(""), next_slot=100.0)
    await bench.storage.put_cron(entry)


async def enqueue(bench: Workbench, name: str) -> None:
    """Two tasks, one of them unique."""
    new = [bench.task(name, unique=unique(name)), bench.task(f"{name}+")]
    await bench.storage.enqueue(new)


async def enqueued(bench: Workbench, name: str) -> bool:
    """Both are stored; the key belongs to the first, and to nobody without it."""
    return await bench.ids(Ids(name, f"{name}+")) == [name, f"{name}+"]


async def claim(bench: Workbench, name: str) -> None:
    """Claim one by its id."""
    await bench.claim(ids=frozenset({name}), worker="me")


async def claimed(bench: Workbench, name: str) -> bool:
    """It runs, under its first epoch, with a lease."""
    row = await bench.row(name)
    return (row.status, row.epoch, row.worker, row.lease_until) == (
        "running",
        1,
        "me",
        bench.now() + LEASE_S,
    )


def ending(bench: Workbench, name: str) -> Transition:
    """A success with a result and a task spawned."""
    child = bench.task(f"{name}+", unique=unique(name))
    return Transition(name, 1, TransitionKind.DONE, result=b"1", spawn=(child,))


async def settle(bench: Workbench, name: str) -> None:
    """Succeed, with a result and a task spawned."""
    await bench.storage.settle([ending(bench, name)])


async def settled(bench: Workbench, name: str) -> bool:
    """Status, result, history and spawned task are all there."""
    row = await bench.row(name)
    [run] = await bench.storage.history(name)
    spawned = await bench.ids(Ids(f"{name}+"))
    return (row.status, row.result, run.outcome, len(spawned)) == ("succeeded", b"1", "succeeded", 1)


async def retry(bench: Workbench, name: str) -> None:
    """Fail, to be retried."""
    await bench.fail((name, 1), 5.0)


async def retried(bench: Workbench, name: str) -> bool:
    """It waits, with its error and its history."""
    row = await bench.row(name)
    [run] = await bench.storage.history(name)
    return (row.status, row.last_error, run.outcome) == ("pending", "ValueError: no", "retried")


async def turn(bench: Workbench, name: str) -> None:
    """Settle a success."""
    await bench.storage.turn([ending(bench, name)], [], worker="me", lease=LEASE_S)


async def rescue(bench: Workbench, name: str) -> None:
    """Sweep, when its lease is over."""
    await bench.advance(2.0)
    await bench.storage.rescue()


async def rescued(bench: Workbench, name: str) -> bool:
    """It waits, under another epoch."""
    row = await bench.row(name)
    [run] = await bench.storage.history(name)
    return (row.status, row.epoch, run.outcome) == ("pending", 2, "expired")


async def cancel(bench: Workbench, name: str) -> None:
    """Cancel two tasks."""
    await bench.storage.alter(Ids(name, f"{name}+"), Change(action="cancel"))


async def cancelled(bench: Workbench, name: str) -> bool:
    """Both are cancelled."""
    return len(await bench.ids(Ids(name, f"{name}+") & Statuses("cancelled"))) == 2


async def prune(bench: Workbench, name: str) -> None:
    """Delete what has ended."""
    await bench.storage.prune(PruneSpec(keep=0))


async def pruned(bench: Workbench, name: str) -> bool:
    """It is gone with its history."""
    return await bench.status(name) == "gone" and await bench.storage.history(name) == []


async def tick(bench: Workbench, name: str) -> None:
    """Decide the first tick."""
    await bench.storage.advance_cron(
        name, expected=None, last_slot=100.0, next_slot=200.0, tasks=[bench.task(name, cron=name)]
    )


async def ticked(bench: Workbench, name: str) -> bool:
    """The entry has moved on and its task is stored."""
    [entry] = await bench.storage.crons(name)
    return (entry.last_slot, entry.total, await bench.status(name)) == (100.0, 1, "pending")


async def an_unused_queue(bench: Workbench, name: str) -> None:
    """A queue of this name whose tasks have been pruned, changed by hand."""
    await bench.declare(name)
    await bench.ended(f"{name}-task", queue=name)
    await bench.storage.prune(PruneSpec(keep=0))
    await bench.storage.alter_queue(name, paused=True)


async def remove_queue(bench: Workbench, name: str) -> None:
    """Remove the queue."""
    await bench.storage.remove_queue(name)


async def queue_removed(bench: Workbench, name: str) -> bool:
    """It is not listed, and nothing is stored in it."""
    listed = name in {queue.name for queue in await bench.storage.queues()}
    [one] = await bench.storage.enqueue([bench.task(f"{name}-late", queue=name)])
    return not listed and one.answer is EnqueueAnswer.UNKNOWN_QUEUE


DEEDS: Final = {
    "enqueue": Deed(nothing, enqueue, enqueued),
    "claim": Deed(two_pending, claim, claimed),
    "settle": Deed(started, settle, settled),
    "settle-retry": Deed(started, retry, retried),
    "turn": Deed(started, turn, settled),
    "rescue": Deed(started, rescue, rescued),
    "alter": Deed(two_pending, cancel, cancelled),
    "prune": Deed(ended, prune, pruned),
    "advance-cron": Deed(a_cron_entry, tick, ticked),
    "remove-queue": Deed(an_unused_queue, remove_queue, queue_removed),
}


class InterruptionCases:
    """A call that is cut short has done all of it or nothing (UNQ 13, CLM 14, FIN 15)."""

    @pytest.mark.parametrize("deed", DEEDS.values(), ids=DEEDS)
    async def test_a_call_cancelled_anywhere_did_all_or_nothing(
        self, bench: Workbench, deed: Deed
    ) -> None:
        for step in range(MOST_STEPS):
            name = f"t{step}"
            await deed.prepare(bench, name)
            before = await bench.everything()
            scope = await cancelled_at(step, partial(deed.act, bench, name))
            if scope.cancelled_caught:
                assert await bench.everything() == before, f"cancelled at step {step}: done, and not told"
            else:  # what returned was done, also if a cancellation came too late for it
                assert await deed.done(bench, name), f"cancelled at step {step}: not done"
            if not scope.cancel_called:
                return

    @pytest.mark.parametrize("deed", DEEDS.values(), ids=DEEDS)
    async def test_a_call_that_was_cancelled_before_does_nothing(
        self, bench: Workbench, deed: Deed
    ) -> None:
        await deed.prepare(bench, "t")
        before = await bench.everything()
        scope = await cancelled_at(0, partial(deed.act, bench, "t"))
        if not (deed.act is turn and bench.storage.immediate):
            assert scope.cancelled_caught
            assert await bench.everything() == before

    async def test_looks_and_records_notice_a_cancellation_too(self, bench: Workbench) -> None:
        storage = bench.storage
        worker = WorkerRecord(id="w", host="h", pid=1, started_at=1.0, seen_at=0.0, queues=("q",))
        for call in (
            lambda: storage.find(All()),
            lambda: storage.count(All()),
            lambda: storage.history("a"),
            lambda: storage.declare([QueueRecord(name="q")]),
            lambda: storage.queues(),
            lambda: storage.beat(worker),
            lambda: storage.workers(),
            lambda: storage.put_cron(CronRecord(name="c", definition="d", template=bench.task(""))),
            lambda: storage.crons(),
        ):
            assert (await cancelled_at(0, call)).cancelled_caught
        assert [await storage.queues(), await storage.workers(), await storage.crons()] == [[], [], []]

    @pytest.mark.parametrize("deed", DEEDS.values(), ids=DEEDS)
    async def test_a_call_that_fails_anywhere_did_all_or_nothing(
        self, bench: Workbench, deed: Deed
    ) -> None:
        failures = 0
        for step in range(MOST_STEPS):
            name = f"t{step}"
            await deed.prepare(bench, name)
            before = await bench.everything()
            failed = False
            with bench.hooks.break_at(bench.storage, step):
                try:
                    await deed.act(bench, name)
                except StorageError:
                    failed = True
            if not (failed and await bench.everything() == before):
                assert await deed.done(bench, name), f"failed at step {step}: done by half"
            if not failed:
                break
            failures += 1
            # And whoever repeats it, gets it done.
            await deed.act(bench, name)
            assert await deed.done(bench, name), f"repeated after a failure at step {step}"
        assert failures, "break_at made nothing fail"

    @pytest.mark.parametrize("how", ["cancelled", "broken"])
    async def test_no_key_is_left_behind_by_a_task_that_was_not_stored(
        self, bench: Workbench, how: str
    ) -> None:
        await bench.declare()
        for step in range(MOST_STEPS):
            new = [bench.task(f"a{step}", unique=unique(f"u{step}"))]
            if how == "cancelled":
                scope = await cancelled_at(step, partial(bench.storage.enqueue, new))
                over = not scope.cancel_called
            else:
                over = True
                with bench.hooks.break_at(bench.storage, step):
                    try:
                        await bench.storage.enqueue(new)
                    except StorageError:
                        over = False
            stored = await bench.status(f"a{step}") == "pending"
            [again] = await bench.publish(f"b{step}", unique=unique(f"u{step}"))
            assert again.answer is (EnqueueAnswer.EXISTING if stored else EnqueueAnswer.CREATED)
            if over:
                assert stored
                return


class DurabilityCases:
    """DUR, and what several processes share. Needs `reopen`."""

    async def test_another_process_finds_everything_as_it_was_answered(
        self, bench: Workbench
    ) -> None:
        await bench.declare(keyed=True, max_waiting=9, max_running=5, rate=(10, 1.0))
        await bench.storage.alter_queue("q", paused=False, concurrency=3)
        await bench.publish("waiting", "held", key="k", headers={"h": "1"}, tags=("x",))
        await bench.alter("held", "hold")
        await bench.ended("done", payload=b"\x00\xff")
        await bench.fail(await bench.started("retrying", max_retry=3), 5.0, traceback="T")
        running = await bench.started("running")
        await bench.storage.progress((running.id, running.epoch), b"50")
        await a_cron_entry(bench, "c")
        await tick(bench, "c")
        async with bench.beside() as other:
            assert await other.everything() == await bench.everything()
            await other.publish("more")
        async with bench.beside() as again:
            assert await again.everything() == await bench.everything()
            assert await again.status("more") == "pending"

    async def test_a_run_of_a_process_that_is_gone_is_rescued_by_another(
        self, bench: Workbench
    ) -> None:
        gone = await bench.started("a", max_retry=3)
        async with bench.beside() as other:
            [record] = (await other.rescue_all()).records
            assert (record.id, record.status.value, record.attempt) == ("a", "pending", 1)
            await other.advance(1.0)
            [fresh] = await other.claim(worker="other")
            assert (await bench.settle(gone, result=b"stale")).answer is SettleAnswer.LOST
            assert not await bench.holds(gone)
            assert (await other.settle(fresh, result=b"fresh")).answer is SettleAnswer.APPLIED
        assert (await bench.row("a")).result == b"fresh"
        runs = await bench.storage.history("a")
        assert [(run.epoch, run.outcome.value) for run in runs] == [(1, "expired"), (3, "succeeded")]

    async def test_two_processes_end_one_run_once(self, bench: Workbench) -> None:
        async with bench.beside() as other:
            for number in range(10):
                claim = await bench.started(f"t{number}")
                answers: list[SettleAnswer] = []

                async def end(
                    where: Workbench, claim: Any = claim, answers: list[Any] = answers
                ) -> None:
                    child = where.task(f"{claim.id}-{id(where)}")
                    answers.append((await where.settle(claim, spawn=(child,))).answer)

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(end, bench)
                    nursery.start_soon(end, other)
                assert sorted(answers) == [SettleAnswer.APPLIED, SettleAnswer.REPEATED]
            assert len(await bench.ids()) == 20

    async def test_of_many_in_two_processes_one_is_created(self, bench: Workbench) -> None:
        await bench.declare()
        found: list[EnqueueAnswer] = []

        async def publish(where: Workbench, number: int) -> None:
            found.extend([one.answer for one in await where.publish(f"t{number}", unique=unique())])

        async with bench.beside() as other, trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(publish, (bench, other)[number % 2], number)
        assert sorted(found) == [EnqueueAnswer.CREATED] + [EnqueueAnswer.EXISTING] * 19

    async def test_claimers_in_two_processes_get_each_task_once_and_each_key_in_order(
        self, bench: Workbench
    ) -> None:
        await bench.declare(keyed=True)
        for number in range(40):
            await bench.publish(f"t{number:02}", key=f"k{number % 4}")
        order: list[str] = []

        async def worker(where: Workbench) -> None:
            while len(order) < 40:
                for claim in await where.claim(2):
                    order.append(claim.id)
                    assert (await where.settle(claim)).answer is SettleAnswer.APPLIED
                await trio.sleep(0.001)  # where it got none, others hold the keys

        with trio.fail_after(60):
            async with bench.beside() as other, trio.open_nursery() as nursery:
                for where in (bench, other, bench, other):
                    nursery.start_soon(worker, where)
        assert len(await bench.ids(Statuses("succeeded"))) == len(order) == 40
        for key in range(4):
            of_key = [id_ for id_ in order if int(id_[1:]) % 4 == key]
            assert of_key == sorted(of_key)

    async def test_a_tick_is_decided_once_by_all_and_not_again_after_a_restart(
        self, bench: Workbench
    ) -> None:
        await a_cron_entry(bench, "c")
        answers: list[AdvanceAnswer] = []

        async def process(where: Workbench, number: int) -> None:
            answers.append(
                await where.storage.advance_cron(
                    "c",
                    expected=None,
                    last_slot=100.0,
                    next_slot=200.0,
                    tasks=[where.task(f"t{number}", cron="c", slot=100.0)],
                )
            )

        async with bench.beside() as other, trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(process, (bench, other)[number % 2], number)
        async with bench.beside() as restarted:
            await process(restarted, 99)
        assert sorted(answers) == [AdvanceAnswer.ADVANCED] + [AdvanceAnswer.MOVED] * 6
        assert len(await bench.ids()) == 1

    async def test_a_queue_that_one_process_removed_is_gone_for_the_other(self, bench: Workbench) -> None:
        await bench.declare(max_waiting=1_000)
        await bench.declare("p")
        async with bench.beside() as other:
            await other.publish("a", "b", key="k", tags=("x",))
            await bench.alter(Queues("q"), "cancel")
            assert await bench.storage.remove_queue("q") is RemoveAnswer.STORED
            assert await bench.storage.prune(PruneSpec(keep=0)) == 2
            assert await bench.storage.remove_queue("q") is RemoveAnswer.REMOVED
            for bounded in (False, True):
                [one] = await other.storage.enqueue([other.task("c", tags=("x",))], bounded=bounded)
                assert one.answer is EnqueueAnswer.UNKNOWN_QUEUE
            assert await other.storage.remove_queue("q") is RemoveAnswer.UNKNOWN
            assert [queue.name for queue in await other.storage.queues()] == ["p"]
            await bench.declare(keyed=True)
            for number in range(2):  # by what it knows of the first, and by what it has learned then
                await other.publish(f"d{number}", tags=("x",))
                await other.publish(f"e{number}", tags=("x",), unique=unique(f"u{number}"))
                assert await bench.taken(9) == [f"d{number}", f"e{number}"]
            await other.publish("f", "g", key="k")
            assert await other.taken(9) == ["f"]
            assert await other.storage.count(All(), by=("queue",)) == {("q",): 6}

    async def test_of_processes_that_publish_declare_and_remove_at_once_none_stores_a_task_in_no_queue(
        self, bench: Workbench
    ) -> None:
        removed = stored = 0
        async with bench.beside() as other:
            for number in range(30):
                await bench.declare()
                answers: list[EnqueueAnswer] = []

                async def publish(
                    name: str, answers: list[EnqueueAnswer] = answers, **fields: Any
                ) -> None:
                    [one] = await other.storage.enqueue([other.task(name, **fields)])
                    answers.append(one.answer)

                async def remove() -> None:
                    nonlocal removed
                    removed += await bench.storage.remove_queue("q") is RemoveAnswer.REMOVED

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(remove)
                    nursery.start_soon(partial(publish, f"a{number}"))
                    nursery.start_soon(partial(publish, f"b{number}", unique=unique()))
                    if number % 2:
                        nursery.start_soon(other.declare)
                # What is stored has its queue, and can run.
                await other.declare()
                created = answers.count(EnqueueAnswer.CREATED)
                assert answers.count(EnqueueAnswer.UNKNOWN_QUEUE) == 2 - created
                assert await bench.storage.count(All(), by=("queue",)) == ({("q",): created} if created else {})
                stored += created
                for claim in await bench.claim(9):
                    await bench.settle(claim)
                assert await bench.storage.prune(PruneSpec(keep=0)) == created
        assert (removed, stored) != (0, 0)

    async def test_what_happens_in_one_process_wakes_the_other(self, bench: Workbench) -> None:
        await bench.publish("a", "b", "c", "d", max_retry=9)
        run, ended, stopped = await bench.claim(3)
        ended_, stopped_ = Topic(TopicKind.TASK, "b"), Topic(TopicKind.CONTROL, "q")
        entry = CronRecord(name="c", definition="d", template=bench.task(""))
        async with bench.beside() as other:
            for topic, change in (
                (Topic(TopicKind.QUEUE, "q"), lambda: bench.publish("new")),
                (Topic(TopicKind.QUEUE, "q"), lambda: bench.fail(run, 0.0)),
                (ended_, lambda: bench.settle(ended)),
                (Topic(TopicKind.DONE, "q"), lambda: bench.alter("d", "hold")),
                (Topic(TopicKind.TASK, "d"), lambda: bench.alter("d", "cancel")),
                (stopped_, lambda: bench.alter(stopped.id, "cancel")),
                (stopped_, lambda: bench.storage.alter_queue("q", paused=True)),
                (Topic(TopicKind.QUEUE, "q"), lambda: bench.storage.alter_queue("q", paused=False)),
                (Topic(TopicKind.CRON), lambda: bench.storage.put_cron(entry)),
            ):
                bell = Bell()
                with other.storage.watch(bell, topic):
                    await change()
                    with trio.move_on_after(DEADLINE_S) as scope:
                        await bell.wait()
                    assert not scope.cancelled_caught, f"{topic}: not woken within {DEADLINE_S:g} s"

    async def test_what_another_process_did_wakes_here_whoever_has_looked_meanwhile(
        self, bench: Workbench
    ) -> None:
        # What was read for one caller is not told yet to those who wait for a bell.
        await bench.declare()
        queue = Topic(TopicKind.QUEUE, "q")
        async with bench.beside() as other:
            for number in range(5):
                bell = Bell()
                with bench.storage.watch(bell, queue):
                    await trio.sleep(0.02 * number)  # not always at the same moment of a look
                    while bell.is_rung:  # for what was before
                        await bell.wait()
                        await trio.sleep(0.2)
                    await other.publish(f"t{number}")
                    await bench.storage.count(All())
                    await bench.storage.renew([("unknown", 1)], lease=1.0)
                    with trio.move_on_after(DEADLINE_S) as scope:
                        await bell.wait()
                    assert not scope.cancelled_caught, f"not woken within {DEADLINE_S:g} s"


class ConnectionCases:
    """WCH 8. Needs `disconnect`, and `reopen` for somebody else to make a change."""

    async def test_bells_ring_again_after_a_lost_connection(self, bench: Workbench) -> None:
        await bench.declare()
        async with bench.beside() as other:
            bell = Bell()
            with bench.storage.watch(bell, Topic(TopicKind.QUEUE, "q")):
                await bench.hooks.disconnect(bench.storage)
                await other.publish("a")
                with trio.fail_after(DEADLINE_S):
                    await bell.wait()
                    assert await self.soon(bench) == ["a"]

    async def test_a_lost_connection_costs_at_most_the_call_it_met(self, bench: Workbench) -> None:
        claim = await bench.started("a")
        await bench.hooks.disconnect(bench.storage)
        ending = Transition(claim.id, claim.epoch, TransitionKind.DONE, result=b"1")
        with trio.fail_after(DEADLINE_S):
            while True:
                with suppress(StorageError):
                    [result] = await bench.storage.settle([ending])
                    break
                await trio.sleep(0.05)
        # In doubt and repeated, or done at once.
        assert result.answer in (SettleAnswer.APPLIED, SettleAnswer.REPEATED)
        assert (await bench.row("a")).result == b"1"

    async def soon(self, bench: Workbench) -> list[str]:
        """Claim, as soon as the storage is there again."""
        while True:
            with suppress(StorageError):
                claimed = await bench.storage.claim([Want(queue="q", limit=9)], worker="w", lease=None)
                return [claim.id for claim in claimed.claims]
            await trio.sleep(0.05)
