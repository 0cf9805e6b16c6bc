"""Conformance: claims and leases."""



from __future__ import annotations

from math import inf
from typing import Any

import attrs
import pytest
import trio

from dispatch.storage.protocol import Want
from dispatch.tasks import TaskStatus
from dispatch.testing.workbench import LEASE_S, Workbench

__all__ = ["ClaimCases", "LeaseCases"]


class ClaimCases:
    """CLM."""

    async def test_only_the_wanted_queue_types_and_versions(self, bench: Workbench) -> None:
        await bench.publish("a", type="x")
        await bench.publish("b", type="y", version=2)
        await bench.publish("c", type="x", queue="other")
        assert await bench.taken(9, types={}) == []
        assert await bench.taken(9, types={"y": 1, "z": 1}) == []
        assert await bench.taken(9, types={"x": 1}) == ["a"]
        assert await bench.taken(9, types={"y": 3}) == ["b"]
        assert await bench.taken(9, queue="nobody declared this") == []
        assert await bench.taken(9, queue="other") == ["c"]

    async def test_however_many_types_wait_none_of_them_is_forgotten(self, bench: Workbench) -> None:
        names = [f"t{number}" for number in range(100)]
        await bench.declare()
        await bench.storage.enqueue(
            [bench.task(f"{name}.{version}", type=name, version=version) for version in (1, 2) for name in names]
        )
        for some in (names[:60], names[60:], []):
            assert await bench.taken(60, types=dict.fromkeys(names, 1)) == [f"{name}.1" for name in some]
        assert await bench.taken(200, types=dict.fromkeys(names, 2)) == [f"{name}.2" for name in names]

    async def test_priority_first_then_age_then_order_of_storing(self, bench: Workbench) -> None:
        now = bench.now()
        await bench.publish("low", priority=0)
        await bench.publish("young", "younger", priority=1)
        await bench.publish("old", priority=1, available_at=now - 10)
        await bench.publish("top", priority=3)
        await bench.publish("high", priority=2, type="another type")
        assert await bench.taken(9) == ["top", "high", "old", "young", "younger", "low"]

    async def test_waiting_lifts_a_task_level_by_level(self, bench: Workbench) -> None:
        await bench.publish("low", priority=0)
        await bench.advance(60.0)
        await bench.publish("normal", priority=1)
        assert await bench.taken() == ["low"]
        await bench.publish("slow", priority=0)
        await bench.advance(59.0)
        await bench.publish("high", priority=2)
        assert await bench.taken() == ["high"]
        await bench.advance(61.0)
        await bench.publish("higher", priority=2)
        assert await bench.taken(9) == ["normal", "slow", "higher"]

    async def test_who_rose_to_a_level_goes_by_when_it_fell_due(self, bench: Workbench) -> None:
        # Waiting lifts by whole levels: a broken one, 1.5 against 1.7, would turn these round.
        await bench.publish("low", priority=0)
        await bench.advance(48.0)
        await bench.publish("normal", priority=1)
        await bench.advance(42.0)
        assert await bench.taken(9) == ["low", "normal"]

    async def test_nobody_rises_above_the_highest_level(self, bench: Workbench) -> None:
        await bench.publish("low", priority=0)
        await bench.advance(150.0)
        await bench.publish("top", priority=3)
        await bench.advance(70.0)
        assert await bench.taken(9) == ["low", "top"]

    async def test_without_ageing_priority_alone_decides(self, bench: Workbench) -> None:
        await bench.publish("low", priority=0)
        await bench.advance(1e6)
        await bench.publish("normal", priority=1)
        assert await bench.taken(9, ageing=None) == ["normal", "low"]

    @pytest.mark.parametrize("ageing", [5e-324, 1e-300, 1e-9])
    async def test_a_tiny_ageing_interval_makes_it_a_plain_queue(
        self, bench: Workbench, ageing: float
    ) -> None:
        await bench.publish("low", priority=0)
        await bench.advance(1.0)
        await bench.publish("top", priority=3)
        await bench.advance(1.0)
        assert await bench.taken(9, ageing=ageing) == ["low", "top"]

    async def test_the_limit_is_respected(self, bench: Workbench) -> None:
        await bench.publish(*(f"t{number}" for number in range(7)))
        assert await bench.taken(0) == []
        assert await bench.taken(3) == ["t0", "t1", "t2"]
        assert await bench.taken(9) == ["t3", "t4", "t5", "t6"]
        assert await bench.taken(9) == []

    async def test_several_wants_are_answered_in_order(self, bench: Workbench) -> None:
        await bench.publish("a", "b", queue="q")
        await bench.publish("c", "d", queue="r")
        wants = [Want(queue="r", limit=1), Want(queue="q", limit=5)]
        claimed = await bench.storage.claim(wants, worker="w", lease=None)
        assert [claim.id for claim in claimed.claims] == ["c", "a", "b"]

    async def test_each_want_has_a_limit_of_its_own(self, bench: Workbench) -> None:
        await bench.publish("a", "b", "c")
        await bench.publish("d", "e", "f", queue="r")
        wants = [Want(queue=queue, limit=limit) for queue, limit in (("q", 2), ("r", 2), ("q", 1))]
        claimed = await bench.storage.claim(wants, worker="w", lease=None)
        assert [claim.id for claim in claimed.claims] == ["a", "b", "d", "e", "c"]

    async def test_many_claimers_get_each_task_once(self, bench: Workbench) -> None:
        await bench.publish(*(f"t{number}" for number in range(120)))
        found: list[str] = []

        async def claimer(worker: str) -> None:
            while ids := await bench.taken(4, worker=worker):
                found.extend(ids)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(claimer, f"w{number}")
        assert sorted(found) == sorted(f"t{number}" for number in range(120))

    async def test_a_claim_writes_attempt_epoch_worker_start_and_lease(
        self, bench: Workbench
    ) -> None:
        await bench.publish("a", payload=b"p", headers={"h": "v"}, key="k", tags=("x",))
        await bench.advance(2.0)
        want: dict[str, Any] = {"max_retry": 4, "timeout": 7.0, "on_interrupt": "fail"}
        [claim] = await bench.claim(worker="me", lease=10.0, **want)
        row = await bench.row("a")
        assert row.status is TaskStatus.RUNNING
        assert (row.attempt, row.epoch, row.worker) == (1, 1, "me")
        assert (row.started_at, row.lease_until) == (bench.now(), bench.now() + 10.0)
        assert (row.limit, row.on_interrupt) == (4, "fail")
        assert row.retry == Want(queue="q", limit=1).retry
        assert (claim.id, claim.epoch, claim.attempt, claim.limit) == ("a", 1, 1, 4)
        assert (claim.payload, dict(claim.headers), claim.key) == (b"p", {"h": "v"}, "k")
        assert (claim.timeout, claim.tags, claim.started_at) == (7.0, ("x",), bench.now())

    async def test_a_claim_carries_all_of_its_task(self, bench: Workbench) -> None:
        created = bench.now()
        await bench.publish("a", max_retry=2, priority=3, version=2, available_at=created - 5.0)
        [first] = await bench.claim()
        assert (first.available_at, first.last_error) == (created - 5.0, None)
        await bench.fail(first)
        due = (await bench.row("a")).available_at
        await bench.advance(1.0)
        [claim] = await bench.claim()
        assert (claim.max_retry, claim.priority, claim.version) == (2, 3, 2)
        assert (claim.created_at, claim.available_at) == (created, due)
        assert claim.last_error == "ValueError: no"

    async def test_the_tasks_own_settings_beat_the_queues(self, bench: Workbench) -> None:
        await bench.publish("a", max_retry=0, timeout=1.5)
        [claim] = await bench.claim(max_retry=9, timeout=60.0)
        assert (claim.limit, claim.timeout) == (0, 1.5)

    async def test_what_cannot_run_does_not_block_what_can(self, bench: Workbench) -> None:
        await bench.publish(*(f"later{n}" for n in range(50)), priority=3, delay=1_000.0)
        await bench.publish(*(f"held{n}" for n in range(50)), priority=3)
        for number in range(50):
            await bench.alter(f"held{number}", "hold")
        await bench.publish(*(f"alien{n}" for n in range(50)), priority=3, type="alien")
        await bench.publish(*(f"tagged{n}" for n in range(50)), priority=3, tags=("gpu",))
        await bench.publish("a", "b", priority=0)
        assert await bench.taken(2, types={"t": 1}, tags=frozenset()) == ["a", "b"]

    async def test_tags_must_all_be_the_workers(self, bench: Workbench) -> None:
        await bench.publish("plain")
        await bench.publish("gpu", tags=("gpu",))
        await bench.publish("both", tags=("gpu", "eu"))
        assert await bench.taken(9, tags=frozenset({"disk"})) == ["plain"]
        assert await bench.taken(9, tags=frozenset()) == []
        assert await bench.taken(9, tags=frozenset({"eu"})) == []
        assert await bench.taken(9, tags=frozenset({"gpu"})) == ["gpu"]
        await bench.publish("untagged")
        assert await bench.taken(9, tags=frozenset({"gpu", "eu", "disk"})) == ["both", "untagged"]
        await bench.publish("again", tags=("anything",))
        assert await bench.taken(9, tags=None) == ["again"]

    async def test_of_many_different_tags_each_that_fits_is_claimed(self, bench: Workbench) -> None:
        for tags in ("c", "a", "e", "b", "ab", "d", "de", "z"):
            await bench.publish(tags, tags=tuple(tags))
        await bench.publish("plain")
        assert await bench.taken(9, tags=frozenset("abde")) == ["a", "e", "b", "ab", "d", "de", "plain"]
        assert await bench.taken(9, tags=frozenset("cz")) == ["c", "z"]

    async def test_named_tasks_alone(self, bench: Workbench) -> None:
        await bench.publish("a", "b", "c")
        await bench.publish("later", delay=5.0)
        assert await bench.taken(9, ids=frozenset({"c", "a", "unknown", "later"})) == ["a", "c"]
        assert await bench.taken(9, ids=frozenset({"a"})) == []
        assert await bench.taken(9, ids=frozenset()) == []
        await bench.rescue_all()
        await bench.advance(1.0)
        assert await bench.status("a") == "failed"
        await bench.alter("a", "rerun")
        assert await bench.taken(9, ids=frozenset({"a", "b"}), types={}) == []
        assert await bench.taken(9, ids=frozenset({"a", "later"})) == ["later", "a"]
        assert await bench.taken(9) == ["b"]

    async def test_held_running_and_ended_tasks_are_never_claimed(self, bench: Workbench) -> None:
        await bench.ended("done")
        await bench.publish("held", "cancelled")
        await bench.alter("held", "hold")
        await bench.alter("cancelled", "cancel")
        await bench.started("running")
        assert await bench.taken(9) == []

    async def test_not_a_microsecond_early(self, bench: Workbench) -> None:
        due = bench.now() + 10.0
        await bench.publish("a", available_at=due)
        await bench.advance(due - bench.now() - 2e-6)
        assert await bench.taken() == []
        await bench.advance(3e-6)
        assert await bench.taken() == ["a"]

    async def test_a_claim_tells_when_the_next_falls_due(self, bench: Workbench) -> None:
        start = bench.now()
        await bench.publish("c", available_at=start + 30.0)
        await bench.publish("b", available_at=start + 20.0)
        await bench.publish("a")

        async def look() -> tuple[list[str], float | None]:
            claimed = await bench.storage.claim([Want(queue="q", limit=9)], worker="w", lease=None)
            return [claim.id for claim in claimed.claims], claimed.next_due

        assert await look() == (["a"], start + 20.0)
        await bench.alter("b", "cancel")
        assert await look() == ([], start + 30.0)
        await bench.advance(30.0)
        assert await look() == (["c"], None)

    async def test_the_next_may_be_a_retry_a_rescue_or_of_any_want(self, bench: Workbench) -> None:
        q, r = Want(queue="q", limit=9), Want(queue="r", limit=9)

        async def next_due(*wants: Want) -> float | None:
            return (await bench.storage.claim(wants, worker="w", lease=None)).next_due

        claim = await bench.started("a", max_retry=9)
        await bench.fail(claim, 50.0)
        retry = pytest.approx(bench.now() + 50.0, abs=1e-5)
        assert await next_due(q) == retry
        assert await next_due(attrs.evolve(q, ids=frozenset({"a"}))) == retry
        await bench.publish("b", queue="r", delay=40.0)
        other = pytest.approx(bench.now() + 40.0, abs=1e-5)
        assert await next_due(q, r) == other
        assert await next_due(r, q) == other
        await bench.publish("c", queue="r")
        assert await next_due(r, q) == other  # also where something was claimed
        await bench.started("d", queue="s", max_retry=9, retry='["fixed", 7.0, 2.0, 3600.0, 0.0]')
        await bench.rescue_all()
        assert await next_due(Want(queue="s", limit=9)) == pytest.approx(bench.now() + 7.0, abs=1e-5)

    async def test_a_cancelled_claim_was_not_made(self, bench: Workbench) -> None:
        await bench.publish("a")
        returned: list[str] = []
        with trio.CancelScope() as scope:
            scope.cancel()
            returned = await bench.taken()
        assert await bench.status("a") == ("running" if returned else "pending")


class LeaseCases:
    """LSE."""

    async def renew(self, bench: Workbench, fence: tuple[str, int], lease: float | None) -> bool:
        """Renew one claim; whether it is held."""
        [answer] = await bench.storage.renew([fence], lease=lease)
        assert (answer.id, answer.epoch) == fence
        return answer.held

    async def test_a_renewal_extends_and_never_shortens(self, bench: Workbench) -> None:
        claim = await bench.started(lease=30.0)
        fence = (claim.id, claim.epoch)
        start = bench.now()
        await bench.advance(10.0)
        assert await self.renew(bench, fence, 30.0)
        assert (await bench.row("a")).lease_until == pytest.approx(start + 40.0, abs=1e-5)
        assert await self.renew(bench, fence, 5.0)
        assert await self.renew(bench, fence, None)
        assert (await bench.row("a")).lease_until == pytest.approx(start + 40.0, abs=1e-5)
        await bench.advance(29.0)
        assert (await bench.storage.rescue()).records == []

    async def test_stale_finished_and_unknown_claims_are_not_held(self, bench: Workbench) -> None:
        claim = await bench.started("a")
        assert not await self.renew(bench, ("a", claim.epoch + 1), 30.0)
        assert not await self.renew(bench, ("a", claim.epoch - 1), 30.0)
        assert not await self.renew(bench, ("unknown", 1), 30.0)
        await bench.settle(claim)
        assert not await self.renew(bench, ("a", claim.epoch), 30.0)

    async def test_a_claim_without_lease_never_expires(self, bench: Workbench) -> None:
        claim = await bench.started(lease=None)
        assert await self.renew(bench, (claim.id, claim.epoch), 1.0)
        assert (await bench.row("a")).lease_until is None
        await bench.advance(1e7)
        rescued = await bench.storage.rescue()
        assert rescued.records == []
        assert rescued.next_sweep in (None, inf)
        assert await bench.holds(claim)

    @pytest.mark.parametrize("limit_s", [29.0, 30.0, 31.0, 300.0])
    async def test_a_renewed_run_is_never_rescued_whatever_its_timeout(
        self, bench: Workbench, limit_s: float
    ) -> None:
        claim = await bench.started(timeout=limit_s)
        for _ in range(40):
            await bench.advance(LEASE_S / 3)
            assert await self.renew(bench, (claim.id, claim.epoch), LEASE_S)
            assert (await bench.storage.rescue()).records == []

    async def test_at_its_end_a_lease_is_held_and_later_expired(self, bench: Workbench) -> None:
        claim = await bench.started(lease=10.0)
        until = (await bench.row("a")).lease_until
        assert until is not None
        await bench.advance(until - bench.now())
        assert bench.now() == until
        assert (await bench.storage.rescue()).records == []
        assert await bench.holds(claim)
        await bench.advance(0.001)
        assert len((await bench.storage.rescue()).records) == 1
        assert not await bench.holds(claim)

    async def test_a_renewal_reports_a_request_to_stop(self, bench: Workbench) -> None:
        claim = await bench.started()
        await bench.alter("a", "cancel", reason="enough")
        [answer] = await bench.storage.renew([(claim.id, claim.epoch)], lease=LEASE_S)
        assert (answer.held, answer.cancel_reason) == (True, "enough")

    async def test_one_lost_claim_does_not_spoil_the_batch(self, bench: Workbench) -> None:
        first, second = await bench.started("a"), await bench.started("b")
        await bench.settle(first)
        fences = [(first.id, first.epoch), (second.id, second.epoch)]
        held = await bench.storage.renew(fences, lease=LEASE_S)
        assert [answer.held for answer in held] == [False, True]

    async def test_the_next_sweep_is_the_earliest_expiry(self, bench: Workbench) -> None:
        start = bench.now()
        first = await bench.started("a", lease=10.0)
        await bench.started("b", lease=20.0, worker="another")
        assert (await bench.storage.rescue()).next_sweep in (None, start + 10.0)
        await bench.storage.renew([(first.id, first.epoch)], lease=40.0)
        assert (await bench.storage.rescue()).next_sweep in (None, start + 20.0)
        await bench.advance(20.5)
        rescued = await bench.storage.rescue()
        assert [record.id for record in rescued.records] == ["b"]
        assert rescued.next_sweep in (None, start + 40.0)
        await bench.settle(first)
        assert (await bench.storage.rescue()).next_sweep in (None, inf)
