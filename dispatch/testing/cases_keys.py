"""Conformance: keyed queues and bounds."""



from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from dispatch.bell import Bell
from dispatch.records import TransitionKind
from dispatch.storage.protocol import EnqueueAnswer, Topic, TopicKind, Want
from dispatch.storage.query import Ids, Queues
from dispatch.testing.workbench import Workbench, unique

__all__ = ["BoundCases", "KeyCases"]

A = EnqueueAnswer


class KeyCases:
    """One task of a key at a time, in order of publishing."""

    async def test_one_at_a_time_also_in_one_batch(self, bench: Workbench) -> None:
        await bench.declare(keyed=True)
        await bench.publish("a1", key="a")
        await bench.publish("a2", key="a", priority=3)
        await bench.publish("b1", key="b")
        await bench.publish("free1", "free2")
        claims = await bench.claim(9)
        assert [claim.id for claim in claims] == ["a1", "b1", "free1", "free2"]
        assert await bench.taken(9) == []
        await bench.settle(claims[0])
        assert await bench.taken(9) == ["a2"]

    async def test_what_is_stored_while_one_of_its_key_runs_waits_for_it(self, bench: Workbench) -> None:
        await bench.declare(keyed=True)
        first = await bench.started("first", key="k")
        parent = await bench.started("parent")
        await bench.publish("second", key="k")
        assert await bench.taken(9) == []
        await bench.alter("second", "cancel")
        await bench.publish("third", "fourth", key="k")
        assert await bench.taken(9) == []
        await bench.alter(Ids("third", "fourth"), "cancel")
        await bench.settle(parent, spawn=(bench.task("fifth", key="k"),))
        assert await bench.taken(9) == []
        await bench.settle(first)
        assert await bench.taken(9) == ["fifth"]

    async def test_a_queue_that_is_not_keyed_ignores_keys(self, bench: Workbench) -> None:
        await bench.publish("a", "b", key="k")
        assert await bench.taken(9) == ["a", "b"]

    async def test_a_key_holds_nothing_in_another_queue(self, bench: Workbench) -> None:
        for queue in ("q", "r"):
            await bench.declare(queue, keyed=True)
            await bench.publish(f"in {queue}", key="k", queue=queue)
        assert await bench.taken(9, queue="r") == ["in r"]
        assert await bench.taken(9) == ["in q"]

    async def test_a_delayed_head_holds_its_key(self, bench: Workbench) -> None:
        await bench.declare(keyed=True)
        await bench.publish("first", key="k", delay=10.0)
        await bench.publish("second", key="k")
        assert await bench.taken(9) == []
        await bench.advance(10.0)
        assert await bench.taken(9) == ["first"]

    async def test_a_head_of_an_unwanted_type_holds_its_key(self, bench: Workbench) -> None:
        await bench.declare(keyed=True)
        await bench.publish("first", key="k", type="alien")
        await bench.publish("second", key="k")
        assert await bench.taken(9, types={"t": 1}) == []

    async def test_a_retrying_head_holds_its_key(self, bench: Workbench) -> None:
        await bench.declare(keyed=True, on_retry="hold")
        await bench.publish("first", "second", key="k", max_retry=1)
        [claim] = await bench.claim(9)
        await bench.fail(claim, 5.0)
        assert await bench.taken(9) == []
        await bench.advance(5.0)
        assert await bench.taken(9) == ["first"]

    async def test_a_retrying_head_yields_its_key_while_it_waits(self, bench: Workbench) -> None:
        await bench.declare(keyed=True, on_retry="yield")
        await bench.publish("first", "second", "third", key="k", max_retry=1)
        [claim] = await bench.claim(9)
        await bench.fail(claim, 5.0)
        [second] = await bench.claim(9)
        assert second.id == "second"
        await bench.advance(5.0)
        assert await bench.taken(9) == []
        await bench.settle(second)
        assert await bench.taken(9) == ["first"]

    async def test_a_delayed_head_that_never_ran_yields_nothing(self, bench: Workbench) -> None:
        await bench.declare(keyed=True, on_retry="yield")
        await bench.publish("first", key="k", delay=5.0)
        await bench.publish("second", key="k")
        assert await bench.taken(9) == []
        await bench.advance(5.0)
        assert await bench.taken(9) == ["first"]

    async def test_a_yielding_task_can_be_cancelled_or_held(self, bench: Workbench) -> None:
        await bench.declare(keyed=True, on_retry="yield")
        for action in ("cancel", "hold"):
            claim = await bench.started(action, key=action, max_retry=1)
            await bench.fail(claim, 5.0)
            assert await bench.alter(action, action) == [action]
            await bench.advance(5.0)
            assert await bench.taken(9) == []

    async def test_a_held_task_lets_the_next_run(self, bench: Workbench) -> None:
        await bench.declare(keyed=True)
        await bench.publish("first", "second", "third", key="k")
        await bench.alter("first", "hold")
        [second] = await bench.claim(9)
        assert second.id == "second"
        await bench.alter("first", "resume")
        assert await bench.taken(9) == []
        await bench.settle(second)
        assert await bench.taken(9) == ["first"]

    async def test_an_older_task_steps_in_front_of_one_that_was_ready(
        self, bench: Workbench
    ) -> None:
        await bench.declare(keyed=True)
        await bench.publish("first", "second", key="k")
        await bench.publish("done", key="l")
        await bench.settle((await bench.claim(ids=frozenset({"done"})))[0])
        await bench.publish("younger", key="l")
        await bench.alter("first", "hold")  # now "second" is ready, and so is "younger"
        await bench.alter("first", "resume")
        await bench.alter("done", "rerun")
        assert sorted(await bench.taken(9)) == ["done", "first"]
        assert await bench.taken(9) == []

    async def test_cancelling_a_head_promotes_the_next(self, bench: Workbench) -> None:
        await bench.declare(keyed=True)
        await bench.publish("first", "second", "third", key="k")
        await bench.alter("second", "cancel")
        await bench.alter("first", "cancel")
        assert await bench.taken(9) == ["third"]

    async def test_a_dead_letter_frees_its_key_and_a_rerun_goes_first(
        self, bench: Workbench
    ) -> None:
        await bench.declare(keyed=True)
        await bench.publish("first", "second", "third", key="k")
        [claim] = await bench.claim(9)
        await bench.fail(claim, None)
        [second] = await bench.claim(9)
        await bench.alter("first", "rerun")
        await bench.settle(second)
        assert await bench.taken(9) == ["first"]

    async def test_a_rescued_head_still_comes_first(self, bench: Workbench) -> None:
        await bench.declare(keyed=True)
        await bench.publish("first", "second", key="k", max_retry=1)
        assert await bench.taken(9) == ["first"]
        await bench.rescue_all()
        assert await bench.taken(9) == []
        await bench.advance(1.0)
        assert await bench.taken(9) == ["first"]

    async def test_a_handed_back_head_still_comes_first(self, bench: Workbench) -> None:
        await bench.declare(keyed=True, on_retry="yield")
        await bench.publish("first", "second", key="k")
        [claim] = await bench.claim(9)
        await bench.settle(claim, TransitionKind.HANDED_BACK)
        assert await bench.taken(9) == ["first"]

    async def test_declaring_a_queue_keyed_applies_to_what_it_holds(
        self, bench: Workbench
    ) -> None:
        await bench.publish("a", "b", "c", key="k")
        [claim] = await bench.claim(1)
        await bench.declare(keyed=True)
        assert await bench.taken(9) == []
        await bench.settle(claim)
        assert await bench.taken(9) == ["b"]
        await bench.declare(keyed=False)
        assert await bench.taken(9) == ["c"]

    async def test_declaring_one_queue_keyed_or_not_moves_no_task_of_another(self, bench: Workbench) -> None:
        await bench.declare("keyed", keyed=True)
        for queue in ("keyed", "plain", "q"):
            await bench.publish(*(f"{queue}{number}" for number in range(4)), queue=queue, key="k")
        for keyed in (True, False):
            await bench.declare(keyed=keyed)
            first = await bench.claim(9, queue="keyed")
            assert [claim.id for claim in first] == [f"keyed{int(not keyed)}"]
            await bench.settle(first[0])
        assert await bench.taken(9, queue="plain") == [f"plain{number}" for number in range(4)]
        assert await bench.taken(9) == [f"q{number}" for number in range(4)]

    async def test_declaring_that_retries_yield_applies_to_those_that_wait(self, bench: Workbench) -> None:
        await bench.declare(keyed=True)
        await bench.publish("first", "second", "third", key="k", max_retry=1)
        await bench.publish("new", key="l", delay=5.0)
        await bench.publish("behind", key="l")
        [first] = await bench.claim(9)
        await bench.fail(first, 5.0)
        assert await bench.taken(9) == []
        await bench.declare(keyed=True, on_retry="yield")
        [second] = await bench.claim(9)  # "new" never ran, and so holds its key
        await bench.declare(keyed=True, on_retry="hold")
        assert second.id == "second"
        await bench.settle(second)
        assert await bench.taken(9) == []
        await bench.advance(5.0)
        assert sorted(await bench.taken(9)) == ["first", "new"]

    async def test_a_claim_tells_when_a_retry_that_yields_falls_due(self, bench: Workbench) -> None:
        await bench.declare(keyed=True, on_retry="yield")
        for id_, wait in (("b", 9.0), ("a", 5.0)):
            await bench.fail(await bench.started(id_, key=id_, max_retry=1), wait)
        for ids in ([], ["a"], ["b"]):
            claimed = await bench.storage.claim([Want(queue="q", limit=9)], worker="w", lease=None)
            assert [claim.id for claim in claimed.claims] == ids
            due = [(await bench.row(id_)).available_at for id_ in "ab" if await bench.status(id_) == "pending"]
            assert claimed.next_due == min(due, default=None)
            await bench.advance(5.0)


class BoundCases:
    """A queue's bound counts due, waiting tasks."""

    async def bounded(self, bench: Workbench, *ids: str, **fields: Any) -> list[EnqueueAnswer]:
        """The answers of a bounded enqueue."""
        tasks = [bench.task(id_, **fields) for id_ in ids]
        return [result.answer for result in await bench.storage.enqueue(tasks, bounded=True)]

    async def test_what_is_over_the_bound_is_refused_and_not_stored(
        self, bench: Workbench
    ) -> None:
        await bench.declare(max_waiting=2)
        assert await self.bounded(bench, "a", "b", "c") == [A.CREATED, A.CREATED, A.FULL]
        assert await bench.ids() == ["a", "b"]
        assert await self.bounded(bench, "a") == [A.EXISTING]

    async def test_a_large_bound_is_kept_to_the_task(self, bench: Workbench) -> None:
        await bench.declare(max_waiting=1_000)
        numbers = iter(range(3_000))
        answers: list[EnqueueAnswer] = []
        for size in (1, 300, 1, 1, 900, 40, 1):
            answers += await self.bounded(bench, *(f"t{next(numbers)}" for _ in range(size)))
        assert answers == [A.CREATED] * 1_000 + [A.FULL] * 244
        for _ in range(20):
            await bench.taken(3)
            answers = await self.bounded(bench, *(f"t{next(numbers)}" for _ in range(5)))
            assert answers == [A.CREATED] * 3 + [A.FULL] * 2
        await bench.declare(max_waiting=200)
        assert await self.bounded(bench, "a") == [A.FULL]
        assert len(await bench.taken(1_000)) == 1_000
        answers = await self.bounded(bench, *(f"t{next(numbers)}" for _ in range(250)))
        assert answers == [A.CREATED] * 200 + [A.FULL] * 50

    async def test_what_a_batch_makes_room_for_in_another_queue_is_seen(self, bench: Workbench) -> None:
        await bench.declare("a", max_waiting=1)
        await bench.declare("b", max_waiting=100)
        wide = unique(on_clash="supersede")
        first = bench.task("old", queue="a", unique=wide)
        assert [each.answer for each in await bench.storage.enqueue([first], bounded=True)] == [A.CREATED]
        batch = [bench.task("no", queue="a"), bench.task("new", queue="b", unique=wide), bench.task("yes", queue="a")]
        results = await bench.storage.enqueue(batch, bounded=True)
        assert [each.answer for each in results] == [A.FULL, A.CREATED, A.CREATED]

    async def test_unbounded_publishing_is_never_refused(self, bench: Workbench) -> None:
        await bench.declare(max_waiting=1)
        results = await bench.publish("a", "b", "c")
        assert [result.answer for result in results] == [A.CREATED] * 3
        assert await self.bounded(bench, "d") == [A.FULL]

    async def test_later_held_and_running_tasks_do_not_count(self, bench: Workbench) -> None:
        await bench.declare(max_waiting=1)
        assert await self.bounded(bench, "l1", "l2", delay=10.0) == [A.CREATED] * 2
        await bench.publish("held")
        await bench.alter("held", "hold")
        await bench.started("running")
        assert await self.bounded(bench, "a", "b") == [A.CREATED, A.FULL]

    async def test_a_task_counts_once_it_falls_due(self, bench: Workbench) -> None:
        await bench.declare(max_waiting=1)
        await self.bounded(bench, "later", delay=10.0)
        await bench.advance(10.0)
        assert await self.bounded(bench, "a") == [A.FULL]
        assert await bench.taken() == ["later"]
        assert await self.bounded(bench, "a") == [A.CREATED]

    async def test_tasks_behind_their_key_or_unhandled_count(self, bench: Workbench) -> None:
        await bench.declare(keyed=True, max_waiting=3)
        await bench.publish("k1", "k2", key="k")
        await bench.publish("alien", type="alien")
        assert await self.bounded(bench, "a") == [A.FULL]
        assert await bench.taken(9, types={"t": 1}) == ["k1"]
        assert await self.bounded(bench, "a", "b") == [A.CREATED, A.FULL]

    async def test_superseding_makes_its_own_room(self, bench: Workbench) -> None:
        await bench.declare(max_waiting=1)
        await bench.publish("a", unique=unique())
        assert await self.bounded(bench, "b", unique=unique(on_clash="supersede")) == [A.CREATED]
        assert await bench.ids(Queues("q")) == ["a", "b"]
        full = await self.bounded(bench, "c", unique=unique("other", "supersede"))
        assert full == [A.FULL]

    async def test_what_is_not_due_takes_no_room_in_its_batch_either(self, bench: Workbench) -> None:
        await bench.declare(max_waiting=2)
        delays = {"a": 0.0, "later": 9.0, "b": 0.0, "latest": 99.0, "c": 0.0}
        batch = [bench.task(id_, delay=delay) for id_, delay in delays.items()]
        results = await bench.storage.enqueue(batch, bounded=True)
        assert [result.answer for result in results] == [*[A.CREATED] * 4, A.FULL]

    async def test_a_retry_that_yields_counts_once_it_falls_due(self, bench: Workbench) -> None:
        await bench.declare(keyed=True, on_retry="yield", max_waiting=1)
        await bench.fail(await bench.started("retried", key="k", max_retry=1), 5.0)
        assert await self.bounded(bench, "a", key="k") == [A.CREATED]
        assert await bench.taken() == ["a"]
        await bench.advance(5.0)
        assert await self.bounded(bench, "b", key="l") == [A.FULL]

    async def test_superseding_what_did_not_count_makes_no_room(self, bench: Workbench) -> None:
        await bench.declare(max_waiting=1)
        await bench.started("running", unique=unique("running"))
        await bench.publish("held", unique=unique("held"))
        await bench.alter("held", "hold")
        await bench.publish("later", unique=unique("later"), delay=9.0)
        await bench.publish("elsewhere", unique=unique("elsewhere"), queue="r")
        await bench.publish("due")
        before = await bench.everything()
        for key in ("running", "held", "later", "elsewhere"):
            assert await self.bounded(bench, f"instead of {key}", unique=unique(key, "supersede")) == [A.FULL], key
        assert await bench.everything() == before

    async def test_room_rings_when_there_is_some(self, bench: Workbench) -> None:
        await bench.declare(max_waiting=1)
        bell = Bell()
        with bench.storage.watch(bell, Topic(TopicKind.ROOM, "q")):
            changes: list[Callable[[], Awaitable[object]]] = [
                lambda: bench.taken(9),
                lambda: bench.alter(Queues("q"), "cancel"),
                lambda: bench.alter(Queues("q"), "hold"),
                lambda: bench.alter(Queues("q"), "patch", available_at=bench.now() + 9.0),
                lambda: bench.declare(max_waiting=100),
            ]
            for turn, free in enumerate(changes):
                await bench.publish(f"a{turn}", f"b{turn}")
                assert await self.bounded(bench, "refused") == [A.FULL]
                await free()
                with trio.fail_after(5):
                    await bell.wait()

    async def test_room_rings_by_the_bound_that_was_declared_last(self, bench: Workbench) -> None:
        for bound in (1, 3, 2):
            await bench.declare(max_waiting=bound)
            ids = [f"{bound}.{number}" for number in range(bound + 1)]
            assert await self.bounded(bench, *ids) == [*[A.CREATED] * bound, A.FULL]
            bell = Bell()
            with bench.storage.watch(bell, Topic(TopicKind.ROOM, "q")):
                assert await bench.taken() == ids[:1]
                with trio.fail_after(5):
                    await bell.wait()
            await bench.taken(9)

    async def test_room_rings_where_a_queue_was_just_full(self, bench: Workbench) -> None:
        await bench.declare(max_waiting=1)
        assert await self.bounded(bench, "a", "b") == [A.CREATED, A.FULL]
        bell = Bell()
        with bench.storage.watch(bell, Topic(TopicKind.ROOM, "q")):
            assert await bench.taken() == ["a"]
            with trio.fail_after(5):
                await bell.wait()
