"""Conformance: the end of a run, rescue, history."""



from __future__ import annotations

import pytest
import trio

from dispatch.lifecycle import LONGEST_DELAY_S, SettleAnswer
from dispatch.records import AttemptOutcome, Claim, Transition, TransitionKind
from dispatch.storage.protocol import Want
from dispatch.storage.query import Ids, PruneSpec
from dispatch.tasks import FailureReason, TaskStatus
from dispatch.testing.workbench import LEASE_S, Workbench, unique

__all__ = ["HistoryCases", "RescueCases", "SettleCases", "TurnCases"]

K = TransitionKind
APPLIED, REPEATED = SettleAnswer.APPLIED, SettleAnswer.REPEATED
LOST, GONE = SettleAnswer.LOST, SettleAnswer.GONE


class SettleCases:
    """FIN."""

    async def test_a_result_is_stored_and_null_is_not_nothing(self, bench: Workbench) -> None:
        for id_, result in (("value", b"42"), ("null", b"null"), ("nothing", None)):
            claim = await bench.started(id_)
            await bench.advance(1.0)
            settled = await bench.settle(claim, result=result)
            assert (settled.answer, settled.status) == (APPLIED, TaskStatus.SUCCEEDED)
            row = await bench.row(id_)
            assert (row.status, row.result) == (TaskStatus.SUCCEEDED, result)
            assert (row.finished_at, row.lease_until) == (bench.now(), None)

    async def test_a_retry_keeps_the_error_and_waits(self, bench: Workbench) -> None:
        claim = await bench.started(max_retry=1)
        settled = await bench.fail(claim, 5.0, traceback="Traceback: line 1")
        row = await bench.row("a")
        assert (settled.answer, settled.status) == (APPLIED, TaskStatus.PENDING)
        assert settled.available_at == row.available_at == pytest.approx(bench.now() + 5.0, abs=1e-5)
        assert (row.result, row.last_error, row.finished_at) == (None, "ValueError: no", None)
        [attempt] = await bench.storage.history("a")
        assert (attempt.attempt, attempt.epoch) == (1, claim.epoch)
        assert attempt.outcome is AttemptOutcome.RETRIED
        assert attempt.error == "ValueError: no\nTraceback: line 1"
        await bench.advance(4.9)
        assert await bench.taken() == []
        await bench.advance(0.2)
        assert await bench.taken() == ["a"]

    async def test_the_last_failure_makes_a_dead_letter(self, bench: Workbench) -> None:
        await bench.publish("a", max_retry=2)
        for attempt in (1, 2, 3):
            [claim] = await bench.claim()
            assert claim.attempt == attempt
            await bench.fail(claim)
        row = await bench.row("a")
        assert (row.status, row.failure_reason) == (TaskStatus.FAILED, FailureReason.EXHAUSTED)
        assert (row.attempt, row.last_error) == (3, "ValueError: no")
        assert row.finished_at == bench.now()

    async def test_the_answer_says_how_the_task_stands(self, bench: Workbench) -> None:
        failed = await bench.fail(await bench.started("failed", max_retry=0))
        assert (failed.status, failed.failure_reason) == (TaskStatus.FAILED, FailureReason.EXHAUSTED)
        cancelled = await bench.settle(await bench.started("cancelled"), K.CANCELLED)
        assert (cancelled.status, cancelled.failure_reason) == (TaskStatus.CANCELLED, None)

    async def test_a_permanent_failure_is_not_retried(self, bench: Workbench) -> None:
        claim = await bench.started(max_retry=9)
        await bench.fail(claim, None, reason=FailureReason.PERMANENT)
        row = await bench.row("a")
        assert (row.status, row.failure_reason) == (TaskStatus.FAILED, FailureReason.PERMANENT)

    async def test_practically_unlimited_retries_never_end(self, bench: Workbench) -> None:
        await bench.publish("a", max_retry=10**9)
        for _ in range(50):
            [claim] = await bench.claim()
            await bench.fail(claim)
        assert (await bench.row("a")).status is TaskStatus.PENDING

    async def test_a_limit_lowered_while_running_counts(self, bench: Workbench) -> None:
        claim = await bench.started(max_retry=9)
        assert await bench.alter("a", "patch", max_retry=0) == ["a"]
        await bench.fail(claim)
        assert await bench.status("a") == "failed"

    async def test_a_snooze_gives_the_attempt_back(self, bench: Workbench) -> None:
        await bench.publish("a", max_retry=5)
        for before in (0, 1):
            [claim] = await bench.claim()
            assert claim.attempt == before + 1
            await bench.settle(claim, K.SNOOZED, retry_in=2.0)
            row = await bench.row("a")
            assert (row.status, row.attempt) == (TaskStatus.PENDING, before)
            assert row.available_at == pytest.approx(bench.now() + 2.0, abs=1e-5)
            await bench.advance(2.0)
            [again] = await bench.claim()
            await bench.fail(again)

    async def test_ends_of_whole_and_broken_seconds_go_together(self, bench: Workbench) -> None:
        await bench.publish("a", "b", "c", max_retry=1)
        claims = {claim.id: claim for claim in await bench.claim(3)}
        spawned = tuple(
            bench.task(f"s{at}", timeout=timeout, delay=delay)
            for at, (timeout, delay) in enumerate([(5, 0.5), (2.5, 1), (None, 0)])
        )
        results = await bench.storage.settle(
            [
                Transition("a", claims["a"].epoch, K.FAILED, error="no", retry_in=5),
                Transition("b", claims["b"].epoch, K.SNOOZED, retry_in=0.5),
                Transition("c", claims["c"].epoch, K.DONE, spawn=spawned),
            ]
        )
        assert [result.answer for result in results] == [APPLIED] * 3
        waits = [(await bench.row(id_)).available_at - bench.now() for id_ in ("a", "b", "s0", "s1")]
        assert waits == pytest.approx([5.0, 0.5, 0.5, 1.0], abs=1e-6)
        assert [(await bench.row(new.id)).timeout for new in spawned] == [5.0, 2.5, None]

    async def test_handing_back_changes_nothing_but_the_fence(self, bench: Workbench) -> None:
        before = (await bench.publish("a"))[0].available_at
        [claim] = await bench.claim(worker="one")
        assert (await bench.settle(claim, K.HANDED_BACK)).status is TaskStatus.PENDING
        row = await bench.row("a")
        assert (row.attempt, row.available_at, row.last_error) == (0, before, None)
        [again] = await bench.claim(worker="two")
        assert (again.attempt, again.epoch > claim.epoch) == (1, True)

    async def test_an_interrupted_run_fails_where_that_was_asked_for(
        self, bench: Workbench
    ) -> None:
        claim = await bench.started(on_interrupt="fail")
        await bench.settle(claim, K.HANDED_BACK)
        row = await bench.row("a")
        assert (row.status, row.failure_reason) == (TaskStatus.FAILED, FailureReason.INTERRUPTED)

    async def test_a_claim_that_was_never_begun_is_not_interrupted(self, bench: Workbench) -> None:
        claim = await bench.started(on_interrupt="fail")
        answer = await bench.settle(claim, kind=K.HANDED_BACK, begun=False)
        assert answer.status is TaskStatus.PENDING
        assert (await bench.row("a")).attempt == 0

    async def test_lost_and_gone(self, bench: Workbench) -> None:
        claim = await bench.started("a")
        assert (await bench.settle(("a", claim.epoch + 1), K.HANDED_BACK)).answer is LOST
        assert (await bench.settle(("unknown", 1), K.HANDED_BACK)).answer is GONE
        assert await bench.holds(claim)

    async def test_a_repeat_changes_nothing(self, bench: Workbench) -> None:
        claim = await bench.started()
        await bench.settle(claim, result=b"1")
        before = await bench.row("a")
        for repeated in (await bench.settle(claim, result=b"2"), await bench.fail(claim)):
            assert (repeated.answer, repeated.status) == (REPEATED, TaskStatus.SUCCEEDED)
        assert await bench.row("a") == before
        twice = [Transition("b", 1, K.DONE), Transition("b", 1, K.FAILED, error="no")]
        await bench.started("b")
        answers = [result.answer for result in await bench.storage.settle(twice)]
        assert answers == [APPLIED, REPEATED]
        assert await bench.status("b") == "succeeded"

    @pytest.mark.parametrize("first", [K.FAILED, K.SNOOZED, K.HANDED_BACK])
    async def test_of_two_ends_of_a_run_in_one_batch_the_first_counts(
        self, bench: Workbench, first: TransitionKind
    ) -> None:
        claim = await bench.started(max_retry=5)
        child = bench.task("child")
        batch = [
            Transition("a", claim.epoch, first, retry_in=7.0, error="first"),
            Transition("a", claim.epoch, K.DONE, result=b"1", spawn=(child,)),
            Transition("a", claim.epoch, first, retry_in=9.0, error="third"),
        ]
        results = await bench.storage.settle(batch)
        assert [result.answer for result in results] == [APPLIED, REPEATED, REPEATED]
        assert {result.status for result in results} == {TaskStatus.PENDING}
        row = await bench.row("a")
        assert (row.status, row.result, row.last_error) == (TaskStatus.PENDING, None, "first")
        assert (row.attempt, len(await bench.storage.history("a"))) == (first is K.FAILED, 1)
        assert await bench.ids() == ["a"]

    async def test_a_bad_item_does_not_spoil_a_batch(self, bench: Workbench) -> None:
        stale = await bench.started("stale", max_retry=1)
        await bench.rescue_all()
        first, second = await bench.started("first"), await bench.started("second")
        batch = [
            Transition(stale.id, stale.epoch, K.DONE),
            Transition(first.id, first.epoch, K.DONE, result=b"1"),
            Transition("unknown", 1, K.DONE),
            Transition(second.id, second.epoch, K.CANCELLED, error="enough"),
        ]
        results = await bench.storage.settle(batch)
        assert [result.answer for result in results] == [LOST, APPLIED, GONE, APPLIED]
        assert [result.id for result in results] == ["stale", "first", "unknown", "second"]
        assert await bench.status("first") == "succeeded"
        assert await bench.status("second") == "cancelled"

    async def test_a_repeated_retry_is_told_from_one_too_late(self, bench: Workbench) -> None:
        first = await bench.started(max_retry=5)
        await bench.fail(first)
        assert (await bench.fail(first)).answer is REPEATED
        [second] = await bench.claim()
        assert (await bench.fail(first)).answer is LOST
        assert await bench.holds(second)

    async def test_a_stale_run_cannot_settle(self, bench: Workbench) -> None:
        stale = await bench.started(max_retry=5, worker="same")
        await bench.rescue_all()
        assert (await bench.settle(stale, result=b"stale")).answer is LOST
        assert await bench.status("a") == "pending"
        await bench.advance(1.0)
        [fresh] = await bench.claim(worker="same")
        before = await bench.row("a")
        assert (await bench.settle(stale, result=b"stale")).answer is LOST
        assert await bench.row("a") == before
        assert (await bench.settle(fresh, result=b"fresh")).answer is APPLIED
        assert (await bench.row("a")).result == b"fresh"

    async def test_spawned_tasks_are_stored_exactly_if_applied(self, bench: Workbench) -> None:
        claim = await bench.started()
        await bench.settle(claim, spawn=(bench.task("child"), bench.task("later", delay=9.0)))
        assert await bench.ids() == ["a", "child", "later"]
        await bench.settle(claim, spawn=(bench.task("never"),))
        stale = await bench.started("b", max_retry=1)
        await bench.rescue_all()
        await bench.settle(stale, spawn=(bench.task("neither"),))
        assert await bench.ids(Ids("never", "neither")) == []

    async def test_the_answer_says_what_became_of_each_spawned_task(self, bench: Workbench) -> None:
        only = unique("k", "reject")
        spawn = (
            bench.task("child", delay=9.0),
            bench.task("child"),
            bench.task("one", unique=only),
            bench.task("two", unique=only),
            bench.task("lost", queue="nowhere"),
        )
        for kind in (K.DONE, K.FAILED):
            claim = await bench.started(kind.value)
            answer = await bench.settle(claim, kind=kind, spawn=spawn)
            assert answer.answer is APPLIED
            assert [(each.id, each.answer.value) for each in answer.spawned] == [
                ("child", "created" if kind is K.DONE else "existing"),
                ("child", "existing"),
                ("one", "created" if kind is K.DONE else "existing"),
                ("two", "rejected"),
                ("lost", "unknown_queue"),
            ]
            made = answer.spawned[0]
            if kind is K.DONE:
                assert made.available_at == made.created_at + 9.0
            again = await bench.settle(claim, kind=kind, spawn=spawn)
            assert (again.answer.value, [*again.spawned]) == ("repeated", [])

    async def test_the_answer_is_about_the_run_whatever_its_spawned_tasks_replace(
        self, bench: Workbench
    ) -> None:
        claim = await bench.started(unique=unique("k", statuses=frozenset(TaskStatus)))
        due = (await bench.row("a")).available_at
        again = unique(
            "k",
            "replace",
            statuses=frozenset({TaskStatus.SUCCEEDED}),
            replace=frozenset({"available_at"}),
            replace_in=frozenset({TaskStatus.SUCCEEDED}),
        )
        answer = await bench.settle(claim, spawn=(bench.task("b", unique=again, delay=50.0),))
        assert [each.answer.value for each in answer.spawned] == ["replaced"]
        assert answer.available_at == due
        assert (await bench.row("a")).available_at == due + 50.0

    async def test_spawned_tasks_are_never_refused_by_a_bound(self, bench: Workbench) -> None:
        await bench.declare(max_waiting=1)
        claim = await bench.started()
        await bench.settle(claim, spawn=(bench.task("b"), bench.task("c")))
        assert await bench.ids() == ["a", "b", "c"]

    async def test_a_huge_delay_is_clamped(self, bench: Workbench) -> None:
        for id_, kind in (("a", K.FAILED), ("b", K.SNOOZED)):
            claim = await bench.started(id_, max_retry=1)
            await bench.settle(claim, kind, retry_in=1e300)
            due = (await bench.row(id_)).available_at
            assert due == pytest.approx(bench.now() + LONGEST_DELAY_S, abs=1e-5)

    async def test_a_cancelled_run_keeps_its_reason(self, bench: Workbench) -> None:
        claim = await bench.started()
        await bench.settle(claim, K.CANCELLED, error="not needed any more")
        row = await bench.row("a")
        assert (row.status, row.cancel_reason) == (TaskStatus.CANCELLED, "not needed any more")

    async def test_a_request_to_stop_turns_a_retry_into_cancelled(self, bench: Workbench) -> None:
        for kind in (K.FAILED, K.SNOOZED, K.HANDED_BACK):
            claim = await bench.started(kind.value, max_retry=9)
            await bench.alter(kind.value, "cancel", reason="enough")
            await bench.settle(claim, kind, retry_in=0.0)
            row = await bench.row(kind.value)
            assert (row.status, row.cancel_reason) == (TaskStatus.CANCELLED, "enough")
        claim = await bench.started("done")
        await bench.alter("done", "cancel")
        await bench.settle(claim, K.DONE)
        assert await bench.status("done") == "succeeded"

    async def test_a_success_leaves_no_error_of_a_run_before_and_no_request_to_stop(self, bench: Workbench) -> None:
        await bench.fail(await bench.started(max_retry=9))
        [claim] = await bench.claim()
        await bench.alter("a", "cancel", reason="enough")
        row = await bench.row("a")
        assert (row.last_error, row.cancel_reason) == ("ValueError: no", "enough")
        await bench.settle(claim)
        row = await bench.row("a")
        assert (row.status, row.last_error, row.cancel_reason) == (TaskStatus.SUCCEEDED, None, None)

    async def test_progress_is_kept_while_the_claim_holds(self, bench: Workbench) -> None:
        claim = await bench.started()
        fence = (claim.id, claim.epoch)
        assert await bench.storage.progress(fence, b"50")
        assert (await bench.row("a")).progress == b"50"
        await bench.settle(claim)
        assert not await bench.storage.progress(fence, b"60")
        assert not await bench.storage.progress(("unknown", 1), b"60")
        assert (await bench.row("a")).progress == b"50"

    async def test_each_run_begins_without_the_progress_of_the_one_before(self, bench: Workbench) -> None:
        await bench.publish("a", "b", max_retry=9)
        for ids in ({"a"}, {"a", "b"}, {"a", "b"}):
            claims = await bench.claim(2, ids=frozenset(ids))
            for claim in claims:
                assert (await bench.row(claim.id)).progress is None
                assert await bench.storage.progress((claim.id, claim.epoch), b"50")
                await bench.fail(claim)
                assert (await bench.row(claim.id)).progress == b"50"
            assert {claim.id for claim in claims} == ids


class RescueCases:
    """REP."""

    async def test_an_expired_run_waits_again_and_has_counted(self, bench: Workbench) -> None:
        claim = await bench.started(
            max_retry=3, retry='["fixed", 7.0, 2.0, 3600.0, 0.0]', worker="dead"
        )
        [record] = (await bench.rescue_all()).records
        assert record == await bench.row("a")
        assert (record.status, record.attempt) == (TaskStatus.PENDING, 1)
        assert record.epoch == claim.epoch + 1
        assert record.available_at == pytest.approx(bench.now() + 7.0, abs=1e-5)
        assert record.last_error is not None
        assert record.last_error.startswith("LeaseExpired: worker dead ")
        [attempt] = await bench.storage.history("a")
        assert (attempt.outcome, attempt.worker) == (AttemptOutcome.EXPIRED, "dead")
        assert (await bench.storage.rescue()).records == []
        await bench.advance(6.9)
        assert await bench.taken() == []
        await bench.advance(0.2)
        assert await bench.taken() == ["a"]

    async def test_it_waits_as_the_want_of_its_claim_says(self, bench: Workbench) -> None:
        seven, nine = (f'["fixed", {wait}, 2.0, 3600.0, 0.0]' for wait in (7.0, 9.0))
        claim = await bench.started(max_retry=3, retry=seven)
        await bench.fail(claim)
        assert len(await bench.claim(retry=nine)) == 1
        assert (await bench.row("a")).retry == nine
        [record] = (await bench.rescue_all()).records
        assert record.available_at == pytest.approx(bench.now() + 9.0, abs=1e-5)

    async def test_a_run_asked_to_stop_ends_cancelled(self, bench: Workbench) -> None:
        await bench.started(max_retry=3)
        await bench.alter("a", "cancel", reason="enough")
        [record] = (await bench.rescue_all()).records
        assert (record.status, record.cancel_reason) == (TaskStatus.CANCELLED, "enough")

    async def test_an_exhausted_run_becomes_a_dead_letter(self, bench: Workbench) -> None:
        await bench.started()
        [record] = (await bench.rescue_all()).records
        assert (record.status, record.failure_reason) == (
            TaskStatus.FAILED,
            FailureReason.EXHAUSTED,
        )

    async def test_at_most_once_is_not_run_again(self, bench: Workbench) -> None:
        await bench.started(max_retry=9, on_interrupt="fail")
        [record] = (await bench.rescue_all()).records
        assert (record.status, record.failure_reason) == (
            TaskStatus.FAILED,
            FailureReason.INTERRUPTED,
        )

    async def test_the_oldest_lease_goes_first(self, bench: Workbench) -> None:
        for id_, lease in (("third", 3.0), ("first", 1.0), ("second", 2.0), ("alive", 90.0)):
            await bench.started(id_, lease=lease)
        await bench.advance(10.0)
        found = [[r.id for r in (await bench.storage.rescue(2)).records] for _ in range(3)]
        assert found == [["first", "second"], ["third"], []]
        assert await bench.status("alive") == "running"

    async def test_a_poison_pill_ends_among_the_dead_letters(self, bench: Workbench) -> None:
        await bench.publish("a", max_retry=2)
        for _ in range(3):
            await bench.advance(2.0)
            assert await bench.taken() == ["a"]
            await bench.rescue_all()
        assert await bench.status("a") == "failed"
        assert len(await bench.storage.history("a")) == 3

    async def test_a_rescued_run_is_lost_to_its_worker(self, bench: Workbench) -> None:
        claim = await bench.started(max_retry=1)
        await bench.rescue_all()
        assert not await bench.holds(claim)


    async def test_two_sweeps_at_once_rescue_each_run_once(self, bench: Workbench) -> None:
        ids = [f"t{number}" for number in range(20)]
        for id_ in ids:
            await bench.started(id_, max_retry=5)
        await bench.advance(LEASE_S + 1)
        found: list[str] = []

        async def sweep() -> None:
            while records := (await bench.storage.rescue(3)).records:
                found.extend(record.id for record in records)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(sweep)
        assert sorted(found) == sorted(ids)
        assert {(await bench.row(id_)).epoch for id_ in ids} == {2}


class TurnCases:
    """`turn`: a settle and a claim as one step."""

    async def turn(
        self, bench: Workbench, transitions: list[Transition], *wants: Want
    ) -> tuple[list[SettleAnswer], list[str]]:
        """The answers, and the ids claimed."""
        settled, claimed = await bench.storage.turn(transitions, wants, worker="w", lease=LEASE_S)
        return [result.answer for result in settled], [claim.id for claim in claimed.claims]

    async def test_what_the_settle_frees_the_claim_may_take(self, bench: Workbench) -> None:
        await bench.declare(keyed=True)
        await bench.publish("first", "second", key="k")
        [first] = await bench.claim(9)
        done = Transition(first.id, first.epoch, K.DONE, spawn=(bench.task("child"),))
        found = await self.turn(bench, [done], Want(queue="q", limit=9))
        assert found == ([APPLIED], ["second", "child"])
        row = await bench.row("second")
        assert (row.worker, row.lease_until) == ("w", bench.now() + LEASE_S)

    async def test_each_part_may_be_empty(self, bench: Workbench) -> None:
        await bench.publish("a")
        assert await self.turn(bench, []) == ([], [])
        assert await self.turn(bench, [], Want(queue="q", limit=1)) == ([], ["a"])
        assert await self.turn(bench, [Transition("a", 1, K.DONE)]) == ([APPLIED], [])

    async def test_a_refused_end_does_not_stop_the_claim(self, bench: Workbench) -> None:
        await bench.publish("a")
        late = Transition("unknown", 1, K.DONE)
        assert await self.turn(bench, [late], Want(queue="q", limit=1)) == ([GONE], ["a"])

    async def test_an_immediate_storage_does_not_even_notice_a_cancellation(
        self, bench: Workbench
    ) -> None:
        await bench.publish("a")
        if not bench.storage.immediate:
            return
        with trio.CancelScope() as scope:
            scope.cancel()
            assert (await self.turn(bench, [], Want(queue="q", limit=1)))[1] == ["a"]
        assert not scope.cancelled_caught


class HistoryCases:
    """HIS."""

    async def test_one_record_per_run_the_running_one_last(self, bench: Workbench) -> None:
        await bench.publish("a", max_retry=9)

        async def run(kind: TransitionKind) -> Claim:
            await bench.advance(1.0)
            [claim] = await bench.claim()
            await bench.advance(0.5)
            await bench.settle(claim, kind, retry_in=0.0, error=None)
            return claim

        await run(K.FAILED)
        await run(K.SNOOZED)
        await run(K.HANDED_BACK)
        await bench.claim()
        await bench.rescue_all()
        await bench.advance(1.0)
        await bench.claim()
        runs = await bench.storage.history("a")
        assert [run.outcome.value for run in runs] == [
            "retried",
            "snoozed",
            "handed_back",
            "expired",
            "running",
        ]
        assert [run.attempt for run in runs] == [1, 2, 2, 2, 3]
        assert len({run.epoch for run in runs}) == 5
        assert runs[-1].finished_at is None
        assert all(run.finished_at >= run.started_at for run in runs if run.finished_at is not None)

    async def test_each_record_says_who_when_and_why(self, bench: Workbench) -> None:
        await bench.publish("a", max_retry=99)
        known: list[tuple[str | None, float, float | None, str | None]] = []
        for number in range(12):
            await bench.advance(1.0)
            [claim] = await bench.claim(worker=f"w{number}")
            start = bench.now()
            await bench.advance(2.0)
            await bench.settle(claim, K.SNOOZED, retry_in=0.0, error=f"E: {number}")
            known.append((f"w{number}", start, bench.now(), f"E: {number}"))
        await bench.advance(1.0)
        await bench.claim(worker="last")
        start = bench.now()
        await bench.advance(1.0)
        runs = await bench.storage.history("a")
        assert [(run.worker, run.started_at, run.finished_at, run.error) for run in runs] == [
            *known,
            ("last", start, None, None),
        ]
        await bench.rescue_all()
        run = (await bench.storage.history("a"))[-1]
        assert (run.worker, run.started_at, run.finished_at) == ("last", start, bench.now())
        assert run.error is not None
        assert run.error.startswith("LeaseExpired: worker last ")

    async def test_the_last_run_is_there_after_the_end(self, bench: Workbench) -> None:
        await bench.ended("a")
        [run] = await bench.storage.history("a")
        assert run.outcome is AttemptOutcome.SUCCEEDED

    async def test_nothing_for_unknown_and_unstarted_tasks(self, bench: Workbench) -> None:
        await bench.publish("a")
        assert await bench.storage.history("a") == []
        assert await bench.storage.history("unknown") == []

    async def test_a_rerun_keeps_the_history_and_a_prune_ends_it(self, bench: Workbench) -> None:
        await bench.ended("a", "b")
        await bench.alter("a", "rerun")
        [claim] = await bench.claim()
        await bench.settle(claim)
        assert len(await bench.storage.history("a")) == 2
        await bench.storage.prune(PruneSpec(keep=0))
        assert await bench.storage.history("a") == []

    async def test_long_errors_are_cut(self, bench: Workbench) -> None:
        claim = await bench.started()
        await bench.settle(claim, K.FAILED, error="E" * 100_000, traceback="T" * 100_000)
        [run] = await bench.storage.history("a")
        assert run.error is not None
        assert len(run.error) <= 4_096
        assert bench.now() <= (await bench.row("a")).created_at + LEASE_S
