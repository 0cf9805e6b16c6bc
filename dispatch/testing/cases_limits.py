"""Conformance: limits of a queue over all workers."""

from __future__ import annotations

import trio

from dispatch.bell import Bell
from dispatch.storage.protocol import Topic, TopicKind, Want
from dispatch.testing.workbench import LEASE_S, Workbench

__all__ = ["LimitCases"]

DEADLINE_S = 5.0


class LimitCases:
    """`max_running` and `rate`, whoever claims."""

    async def test_no_more_run_than_allowed_over_all_workers(self, bench: Workbench) -> None:
        await bench.declare(max_running=2)
        await bench.publish(*"abcd")
        first = await bench.claim(3, worker="one")
        assert [claim.id for claim in first] == ["a", "b"]
        assert await bench.taken(3, worker="two") == []
        bell = Bell()
        with bench.storage.watch(bell, Topic(TopicKind.QUEUE, "q")):
            await bench.settle(first[0])
            with trio.fail_after(DEADLINE_S):
                await bell.wait()
        assert await bench.taken(3, worker="two") == ["c"]

    async def test_a_limit_that_is_reached_hides_nothing_that_falls_due(self, bench: Workbench) -> None:
        await bench.declare(max_running=1)
        await bench.publish("a")
        await bench.publish("b", delay=9.0)
        due = bench.now() + 9.0
        for count in (1, 0):
            claimed = await bench.storage.claim([Want(queue="q", limit=5)], worker="w", lease=LEASE_S)
            assert len(claimed.claims) == count
            assert claimed.next_due is not None
            assert claimed.next_due <= due

    async def test_a_retry_a_snooze_and_a_rescue_free_their_place(self, bench: Workbench) -> None:
        await bench.declare(max_running=1)
        await bench.publish("a", "b", max_retry=5)
        (claim,) = await bench.claim()
        await bench.fail(claim, retry_in=5.0)
        (claim,) = await bench.claim()
        assert claim.id == "b"
        await bench.advance(LEASE_S + 1)
        await bench.storage.rescue()
        assert await bench.taken(2) == ["a"]

    async def test_other_queues_are_not_held_up(self, bench: Workbench) -> None:
        await bench.declare(max_running=1)
        await bench.publish("a", "b")
        await bench.publish("c", "d", queue="other")
        assert await bench.taken(2) == ["a"]
        assert await bench.taken(2, queue="other") == ["c", "d"]

    async def test_a_rate_allows_a_burst_and_then_its_pace(self, bench: Workbench) -> None:
        await bench.declare(rate=(2, 10.0))
        await bench.publish(*"abcdef")
        assert await bench.taken(5) == ["a", "b"]
        assert await bench.taken(5) == []
        await bench.advance(5.0)
        assert await bench.taken(5) == ["c"]
        await bench.advance(100.0)
        assert await bench.taken(5) == ["d", "e"]

    async def test_an_idle_time_allows_one_burst(self, bench: Workbench) -> None:
        await bench.declare(rate=(2, 10.0))
        assert await bench.taken(5) == []  # an idle worker that looks
        await bench.advance(100.0)
        await bench.publish(*"abcdef")
        assert await bench.taken(5) == ["a", "b"]
        await bench.advance(0.001)
        assert await bench.taken(5) == []
        await bench.advance(5.0)
        assert await bench.taken(5) == ["c"]

    async def test_looks_that_find_nothing_use_nothing_up(self, bench: Workbench) -> None:
        await bench.declare(rate=(2, 10.0))
        for _ in range(10):
            assert await bench.taken(5) == []
        await bench.publish("a", "b")
        assert await bench.taken(5) == ["a", "b"]

    async def test_a_clock_that_is_set_back_stops_no_rate(self, bench: Workbench) -> None:
        await bench.declare(rate=(2, 10.0))
        await bench.publish(*"abcd")
        assert await bench.taken(5) == ["a", "b"]
        await bench.advance(-3_600.0)
        await bench.publish("now")
        assert await bench.taken(5) == []
        await bench.advance(5.0)
        assert len(await bench.taken(5)) == 1

    async def test_a_new_declaration_allows_no_new_burst(self, bench: Workbench) -> None:
        await bench.declare(rate=(2, 10.0), overflow="wait")
        await bench.publish(*"abcdef")
        assert await bench.taken(5) == ["a", "b"]
        await bench.declare(rate=(2, 10.0), overflow="raise")
        assert await bench.taken(5) == []
        await bench.declare(rate=(4, 10.0), overflow="raise")
        assert await bench.taken(5) == []
        await bench.advance(2.5)
        assert await bench.taken(5) == ["c"]

    async def test_a_rate_says_when_it_allows_more(self, bench: Workbench) -> None:
        await bench.declare(rate=(1, 10.0))
        await bench.publish("a", "b")
        start = bench.now()
        want = [Want(queue="q", limit=5)]
        claimed = await bench.storage.claim(want, worker="w", lease=LEASE_S)
        assert claimed.next_due is not None
        assert abs(claimed.next_due - (start + 10.0)) < 0.01
        await bench.advance(10.0)
        assert await bench.taken(5) == ["b"]

    async def test_an_idle_queue_with_a_rate_asks_for_no_look(self, bench: Workbench) -> None:
        await bench.declare(rate=(1, 10.0))
        want = [Want(queue="q", limit=5)]
        assert (await bench.storage.claim(want, worker="w", lease=LEASE_S)).next_due is None

    async def test_limits_can_be_declared_anew(self, bench: Workbench) -> None:
        await bench.declare(max_running=1)
        await bench.publish(*"abc")
        assert await bench.taken(3) == ["a"]
        await bench.declare(max_running=3)
        assert await bench.taken(3) == ["b", "c"]

    async def test_a_limit_can_be_declared_where_none_was_and_taken_away(self, bench: Workbench) -> None:
        await bench.publish(*"abcdefg")
        assert await bench.taken() == ["a"]
        await bench.declare(max_running=2)
        assert await bench.taken(9) == ["b"]
        await bench.declare()
        assert await bench.taken(2) == ["c", "d"]
        await bench.declare(rate=(1, 10.0))
        assert await bench.taken(9) == ["e"]
        await bench.declare()
        assert await bench.taken(9) == ["f", "g"]

    async def test_tasks_claimed_by_name_are_limited_too(self, bench: Workbench) -> None:
        await bench.declare(max_running=1)
        await bench.declare("paced", rate=(1, 10.0))
        for queue in ("q", "paced"):
            ids = [f"{queue}{number}" for number in range(3)]
            await bench.publish(*ids, queue=queue)
            assert await bench.taken(9, queue=queue, ids=frozenset(ids[1:])) == [ids[1]]
            assert await bench.taken(9, queue=queue, ids=frozenset({ids[0]})) == []
            assert await bench.taken(9, queue=queue) == []
