"""Conformance: find and count, changes by hand, prune."""



from __future__ import annotations

from typing import Any

import pytest
import trio
from hypothesis import given, settings

from dispatch.errors import InvalidConfigError
from dispatch.lifecycle import SettleAnswer
from dispatch.records import TransitionKind, from_seconds
from dispatch.storage.oldest import oldest_due
from dispatch.storage.query import (
    All,
    AnyOf,
    Attempt,
    Header,
    Ids,
    Keys,
    LastError,
    Not,
    Order,
    Payload,
    Priorities,
    PruneSpec,
    Queues,
    Statuses,
    Tags,
    Time,
    Types,
    Where,
    dead_letters,
    matches,
)
from dispatch.tasks import TaskStatus
from dispatch.testing.trees import trees
from dispatch.testing.workbench import Workbench

__all__ = ["AlterCases", "FindCases", "PruneCases"]

Y = frozenset({"y"})
TREES = 100
"""Query trees made up by Hypothesis."""
FAILED, CANCELLED = TransitionKind.FAILED, TransitionKind.CANCELLED


async def zoo(bench: Workbench) -> float:
    """Store a task of every kind; returns the time at the start."""
    start = bench.now()
    await bench.publish("plain")
    await bench.publish("later", delay=100.0, queue="r")
    await bench.publish("typed", type="u", priority=3, key="k", queue="r")
    await bench.publish("tagged", tags=("x", "y"), headers={"h": "1", "": "empty"})
    await bench.publish("tagged-y", tags=("y",), headers={"h": "2"}, key="%_'\"")
    await bench.publish("paid", payload=b'{"n":1,"l":[{"q":"s"},null,true],"t":"1"}')
    await bench.publish("held", priority=0)
    await bench.alter("held", "hold")
    await bench.started("running", max_retry=5)
    await bench.fail(await bench.started("retrying", max_retry=5), 50.0)
    await bench.advance(10.0)
    await bench.ended("succeeded")
    await bench.settle(await bench.started("failed", queue="r"), FAILED, error="OSError: 7 % full, no 'room'")
    await bench.ended("cancelled", how=CANCELLED)
    return start


class FindCases:
    """FND."""

    async def test_each_predicate_means_what_matches_says(self, bench: Workbench) -> None:
        start = await zoo(bench)
        rows = (await bench.storage.find(All(), limit=1_000)).records
        leaves: list[tuple[Where, set[str]]] = [
            (Ids("plain"), {"plain"}),
            (Ids("plain", "held", "unknown"), {"plain", "held"}),
            (Ids(), set()),
            (Queues("r"), {"later", "typed", "failed"}),
            (Queues("q", "r"), {row.id for row in rows}),
            (Queues(), set()),
            (Types("u"), {"typed"}),
            (Keys("k"), {"typed"}),
            (Keys("%_'\""), {"tagged-y"}),
            (Keys("%"), set()),
            (Statuses("held"), {"held"}),
            (Statuses("running", "failed"), {"running", "failed"}),
            (Statuses("retrying"), {"retrying"}),
            (Statuses("later"), {"later", "retrying"}),
            (Statuses("due"), {"plain", "typed", "tagged", "tagged-y", "paid"}),
            (Statuses(), set()),
            (dead_letters(), {"failed"}),
            (dead_letters("q"), set()),
            (Tags(all_of=frozenset({"x", "y"})), {"tagged"}),
            (Tags(all_of=frozenset({"y"})), {"tagged", "tagged-y"}),
            (Tags(any_of=frozenset({"x", "z"})), {"tagged"}),
            (Tags(), {row.id for row in rows}),
            (Tags(any_of=frozenset()), set()),
            (Header("h"), {"tagged", "tagged-y"}),
            (Header("h", "2"), {"tagged-y"}),
            (Header("", "empty"), {"tagged"}),
            (LastError(), {"retrying", "failed"}),
            (LastError("Error: "), {"retrying", "failed"}),
            (LastError("ValueError: no"), {"retrying"}),
            (LastError("valueerror"), set()),
            (LastError("7 % full, no 'room'"), {"failed"}),
            (LastError("ValueError%no"), set()),
            (LastError("\0"), set()),
            (Payload(("n",), 1), {"paid"}),
            (Payload(("n",), True), set()),
            (Payload(("n",), "1"), set()),
            (Payload(("t",), "1"), {"paid"}),
            (Payload(("l", 0, "q"), "s"), {"paid"}),
            (Payload(("l", 1), None), {"paid"}),
            (Payload(("l", 2), True), {"paid"}),
            (Payload(("l", 2), 1), set()),
            (Payload(("l", "0", "q"), "s"), set()),
            (Payload(("missing",), None), set()),
            (Priorities(3, 3), {"typed"}),
            (Priorities(0, 0), {"held"}),
            (Attempt(1), {"running", "retrying", "succeeded", "failed", "cancelled"}),
            (Attempt(0, 0) & Queues("r"), {"later", "typed"}),
            (Time("finished_at", since=start), {"succeeded", "failed", "cancelled"}),
            (Time("finished_at", until=start + 10.0), set()),
            (Time("started_at", until=start + 10.0), {"running", "retrying"}),
            (Time("available_at", since=start + 100.0), {"later"}),
            (Time("available_at", since=start + 50.0, until=start + 100.0), {"retrying"}),
            (Time("created_at", since=start + 10.0), {"succeeded", "failed", "cancelled"}),
            (Time("finished_at", until=from_seconds(start + 10.0)), set()),
            (Time("available_at", since=from_seconds(start + 100.0)), {"later"}),
        ]
        every = {row.id for row in rows}
        for leaf, expected in leaves:
            for where in (leaf, leaf & leaf, All(leaf), AnyOf(leaf), Not(Not(leaf))):
                assert set(await bench.ids(where)) == expected, where
            assert set(await bench.ids(~leaf)) == every - expected, leaf
            assert {r.id for r in rows if matches(leaf, r, bench.now())} == expected, leaf

    async def test_a_tree_as_large_as_trees_may_be_is_answered(self, bench: Workbench) -> None:
        await zoo(bench)
        tags = frozenset("xy")
        names = [f"n{number}" for number in range(12)]
        tree: Where = AnyOf(*(Queues(*names, "r") for _ in range(3_900)))
        for _ in range(6):
            tree = AnyOf(Not(Not(tree)), Statuses(), Tags(all_of=tags | set(names)))
        assert await bench.ids(tree) == ["later", "typed", "failed"]
        assert await bench.ids(All(*(Statuses("pending", "held", "failed", "due") for _ in range(4_000)))) == [
            "plain", "later", "typed", "tagged", "tagged-y", "paid", "held", "retrying", "failed"
        ]  # fmt: skip
        assert await bench.ids(Tags(all_of=tags | {"z"})) == []
        assert await bench.ids(~Tags(all_of=frozenset(names)) & Queues("r")) == ["later", "typed", "failed"]

    @pytest.mark.parametrize("by", ["queue", ("queues",), ("(SELECT 1)",), (1,), 1, None])
    async def test_a_count_is_grouped_by_the_three_names_alone(self, bench: Workbench, by: Any) -> None:
        await bench.publish("a")
        with pytest.raises(InvalidConfigError, match="count: by must be a tuple of 'queue', 'type' and 'status'"):
            await bench.storage.count(All(), by=by)

    @pytest.mark.parametrize("after", ["", "-1", " 1", "1_0", "x", "9" * 40, 7])
    async def test_a_page_begins_after_a_cursor_alone(self, bench: Workbench, after: Any) -> None:
        await bench.publish("a")
        with pytest.raises(InvalidConfigError, match="find: after must be the cursor of a page"):
            await bench.storage.find(All(), after=after)

    async def test_nested_trees_do_not_leak_out_of_their_scope(self, bench: Workbench) -> None:
        await zoo(bench)
        rows = (await bench.storage.find(All(), limit=1_000)).records
        q, held, high = Queues("q"), Statuses("held"), Priorities(2)
        tagged = Tags(all_of=Y)
        for where in (
            q & (held | tagged),
            (q & held) | tagged,
            (held | tagged) & ~q,
            ~(q & held) & (high | ~tagged),
            All(AnyOf(q, high), Not(AnyOf(held, All(tagged, q)))),
            AnyOf(All(), q) & AnyOf(held, AnyOf()),
        ):
            expected = [row.id for row in rows if matches(where, row, bench.now())]
            assert await bench.ids(where) == expected, where

    async def test_any_tree_finds_and_counts_what_matches_says(self, bench: Workbench) -> None:
        start = await zoo(bench)
        now, rows = bench.now(), (await bench.storage.find(All(), limit=1_000)).records
        ids = ("plain", "held", "running", "failed", "unknown")

        @settings(deadline=None, max_examples=TREES)
        @given(trees(start, ids))
        def agree(where: Where) -> None:
            meant = [row.id for row in rows if matches(where, row, now)]
            assert trio.from_thread.run(bench.ids, where) == meant
            counts = trio.from_thread.run(bench.storage.count, where)
            assert sum(counts.values()) == len(meant)

        # In a thread, for Hypothesis calls a plain function; it calls back for each tree.
        await trio.to_thread.run_sync(agree)

    async def test_a_payload_that_cannot_be_read_has_nothing_at_any_path(
        self, bench: Workbench
    ) -> None:
        poison = [b"", b"\xff", b"{", b'{"n":1', b"[" * 100_000, b"NaN", b'"\\ud800"', b"1e400", b'[1]']
        for number, payload in enumerate(poison):
            await bench.publish(f"p{number}", payload=payload)
        await bench.publish("good", payload=b'{"n":1}')
        assert await bench.ids(Payload(("n",), 1)) == ["good"]
        assert await bench.ids(~Payload(("n",), 1)) == [f"p{n}" for n in range(len(poison))]
        assert await bench.ids(Payload((0,), 1)) == [f"p{len(poison) - 1}"]

    async def test_everything_and_nothing(self, bench: Workbench) -> None:
        await bench.publish("a", "b")
        assert await bench.ids(All()) == ["a", "b"]
        assert await bench.ids(AnyOf()) == []
        assert await bench.ids(~All()) == []
        assert await bench.ids(~AnyOf()) == ["a", "b"]

    async def test_many_ids(self, bench: Workbench) -> None:
        ids = [f"t{number:04}" for number in range(1_200)]
        await bench.publish(*ids)
        page = await bench.storage.find(Ids(*ids, *(f"no{n}" for n in range(1_200))), limit=5_000)
        assert [record.id for record in page.records] == ids

    async def test_no_row_has_what_no_row_can_have(self, bench: Workbench) -> None:
        await bench.publish("a", tags=("x",), key="x", headers={"x": "x"}, payload=b'{"n":1}')
        for end in ("\0y", "\ud800"):
            many = [f"{begin}{end}{n}" for n in range(9) for begin in ("a", "x", "q", "t")]
            for some in (many, many[:2]):
                for where in (Ids(*some), Keys(*some), Queues(*some), Types(*some), Tags(any_of=frozenset(some))):
                    assert await bench.ids(where) == []
                    assert await bench.ids(~where) == ["a"]
                    assert await bench.alter(where, "cancel") == []
                assert await bench.ids(Tags(all_of=frozenset({"x", *some}))) == []
            assert await bench.ids(Header("x", f"x{end}")) == await bench.ids(Header(f"x{end}")) == []
            assert await bench.storage.history(f"a{end}") == []
        assert await bench.ids(Payload(("n",), 10**5_000)) == []
        assert await bench.status("a") == "pending"

    async def test_an_enormous_limit_is_no_limit(self, bench: Workbench) -> None:
        await bench.publish("a", "b")
        for limit in (2**31, 2**63 - 1, 2**64):
            page = await bench.storage.find(All(), limit=limit)
            assert ([record.id for record in page.records], page.cursor) == (["a", "b"], None)
            assert await bench.storage.count(All(), bound=limit) == {(): 2}

    @pytest.mark.parametrize("order", list(Order))
    async def test_pages_have_no_gap_and_no_repeat_while_tasks_are_added(
        self, bench: Workbench, order: Order
    ) -> None:
        ids = [f"t{number:02}" for number in range(25)]
        await bench.publish(*ids)
        seen: list[str] = []
        cursor: str | None = None
        pages = 0
        while True:
            page = await bench.storage.find(Types("t"), order=order, limit=7, after=cursor)
            seen += [record.id for record in page.records]
            cursor = page.cursor
            pages += 1
            assert len(seen) == len(set(seen))
            if cursor is None:
                break
            await bench.publish(f"new{pages}")
            await bench.alter(seen[-1], "cancel")
        old = [id_ for id_ in seen if not id_.startswith("new")]
        assert old == (ids if order is Order.OLDEST else ids[::-1])

    @pytest.mark.parametrize("left", [0, 1])
    async def test_a_page_misses_nothing_where_all_behind_it_was_pruned(
        self, bench: Workbench, left: int
    ) -> None:
        await bench.publish(*"abcd")
        page = await bench.storage.find(All(), limit=2 + left)
        for id_ in "abcd"[left:]:
            await bench.alter(id_, "cancel")
        assert await bench.storage.prune(PruneSpec(keep=0)) == 4 - left
        await bench.publish("e", "f")
        await bench.publish("g")
        rest = await bench.storage.find(All(), after=page.cursor)
        assert [record.id for record in rest.records] == ["e", "f", "g"]

    async def test_the_last_page_says_so(self, bench: Workbench) -> None:
        await bench.publish("a", "b")
        assert (await bench.storage.find(All(), limit=2)).cursor is None
        assert (await bench.storage.find(All(), limit=1)).cursor is not None

    async def test_counts_by_queue_type_and_status(self, bench: Workbench) -> None:
        await zoo(bench)
        count = bench.storage.count
        assert await count(All()) == {(): 12}
        assert await count(AnyOf()) in ({}, {(): 0})
        assert await count(All(), by=["queue"]) == {("q",): 9, ("r",): 3}
        assert await count(Queues("r"), by=["status", "type"]) == {
            ("later", "t"): 1,
            ("pending", "u"): 1,
            ("failed", "t"): 1,
        }
        assert await count(Queues("r"), by=["type", "status"]) == {
            ("t", "later"): 1,
            ("u", "pending"): 1,
            ("t", "failed"): 1,
        }
        by_status = await count(All(), by=["status"])
        assert by_status == {
            ("pending",): 5,
            ("later",): 2,
            ("held",): 1,
            ("running",): 1,
            ("succeeded",): 1,
            ("failed",): 1,
            ("cancelled",): 1,
        }

    async def test_a_bounded_count_stops(self, bench: Workbench) -> None:
        await bench.publish(*(f"t{number}" for number in range(20)))
        assert (await bench.storage.count(All(), bound=5))[()] >= 5
        assert (await bench.storage.count(All(), bound=50))[()] == 20

    async def test_the_longest_due_is_found_wherever_it_was_stored(self, bench: Workbench) -> None:
        start = bench.now()
        assert await oldest_due(bench.storage, "q") is None
        delays = {"last": 30.0, "third": 20.0, "first": 10.0, "second": 15.0, "later": 500.0}
        for name, delay in delays.items():
            await bench.publish(name, delay=delay)
        await bench.publish("elsewhere", queue="r")
        assert await oldest_due(bench.storage, "q") is None
        await bench.advance(100.0)
        for name in ("first", "second", "third", "last"):
            assert await oldest_due(bench.storage, "q") == pytest.approx(start + delays[name], abs=2.0)
            await bench.alter(name, "hold")
        assert await oldest_due(bench.storage, "q") is None


class AlterCases:
    """ALT."""

    async def test_a_patch_writes_its_fields_and_no_others(self, bench: Workbench) -> None:
        names = ("payload", "version", "headers", "tags", "priority", "timeout", "max_retry")
        values: dict[str, Any] = {
            "payload": b"new",
            "version": 2,
            "headers": {"n": "1"},
            "tags": ("n",),
            "priority": 3,
            "timeout": 9.0,
            "max_retry": 9,
            "available_at": bench.now() + 9.0,
        }
        await bench.publish("a", timeout=1.0, max_retry=1)
        for name in (*names, "available_at"):
            before = await bench.row("a")
            assert await bench.alter("a", "patch", **{name: values[name]}) == ["a"]
            after = await bench.row("a")
            for other in (*names, "available_at", "status", "attempt", "epoch", "key"):
                expected = values[name] if other == name else getattr(before, other)
                assert getattr(after, other) == expected, (name, other)
        assert await bench.alter("a", "patch", timeout=None, max_retry=None) == ["a"]
        after = await bench.row("a")
        assert (after.timeout, after.max_retry) == (None, None)

    async def test_whole_seconds_are_patched_in_among_broken_ones(self, bench: Workbench) -> None:
        moment = int(bench.now()) + 9
        await bench.publish("a", timeout=2.5)
        await bench.publish("b", timeout=5.0, available_at=moment + 0.0)
        # Of b each patch changes one field, and the other stays as it was stored.
        assert await bench.alter(Ids("a", "b"), "patch", timeout=5, priority=2) == ["a", "b"]
        assert await bench.alter(Ids("a", "b"), "patch", available_at=moment, priority=3) == ["a", "b"]
        rows = [await bench.row(id_) for id_ in ("a", "b")]
        assert [(row.timeout, row.available_at) for row in rows] == [(5.0, moment)] * 2

    async def test_unknown_and_ended_tasks_are_not_patched(self, bench: Workbench) -> None:
        await bench.ended("a")
        assert await bench.alter("unknown", "patch", priority=3) == []
        assert await bench.alter("a", "patch", priority=3) == []

    async def test_a_running_task_takes_a_patch_but_no_due_time(self, bench: Workbench) -> None:
        await bench.started("a")
        assert await bench.alter("a", "patch", available_at=bench.now() + 9.0) == []
        assert await bench.alter("a", "patch", payload=b"new") == ["a"]
        assert (await bench.row("a")).payload == b"new"

    async def test_a_patched_due_time_priority_or_tag_counts_at_once(
        self, bench: Workbench
    ) -> None:
        await bench.publish("a", "b")
        await bench.alter("a", "patch", available_at=bench.now() + 9.0)
        await bench.publish("c", delay=50.0)
        await bench.alter("c", "patch", available_at=bench.now(), priority=3)
        await bench.alter("b", "patch", tags=("gpu",))
        assert await bench.taken(9, tags=frozenset()) == ["c"]
        await bench.advance(9.0)
        assert await bench.taken(9) == ["b", "a"]

    @pytest.mark.parametrize("how", ["done", "exhausted", "permanent", "cancelled"])
    async def test_a_rerun_runs_once_more(self, bench: Workbench, how: str) -> None:
        claim = await bench.started("a", max_retry=0)
        kind = {"done": TransitionKind.DONE, "cancelled": CANCELLED}.get(how, FAILED)
        wait = 0.0 if how == "exhausted" else None
        await bench.settle(claim, kind, result=b"1", error="E: e", retry_in=wait)
        await bench.advance(5.0)
        assert await bench.alter("a", "rerun") == ["a"]
        row = await bench.row("a")
        assert (row.status, row.available_at) == (TaskStatus.PENDING, bench.now())
        assert (row.finished_at, row.failure_reason, row.result) == (None, None, None)
        assert row.cancel_reason is None
        assert len(await bench.storage.history("a")) == 1
        [again] = await bench.claim()
        assert (again.attempt, again.epoch > claim.epoch) == (2, True)
        await bench.fail(again)
        assert len(await bench.storage.history("a")) == 2

    async def test_a_rerun_begins_without_progress(self, bench: Workbench) -> None:
        claim = await bench.started()
        await bench.storage.progress((claim.id, claim.epoch), b"50")
        await bench.settle(claim)
        await bench.alter("a", "rerun")
        assert (await bench.row("a")).progress is None

    @pytest.mark.parametrize("own", [None, 2])
    async def test_a_rerun_of_one_that_never_ran_leaves_it_all_its_retries(
        self, bench: Workbench, own: int | None
    ) -> None:
        await bench.publish("a", max_retry=own)
        await bench.alter("a", "cancel")
        await bench.alter("a", "rerun")
        runs = 0
        while claims := await bench.claim(max_retry=4):
            runs += 1
            await bench.fail(claims[0], retry_in=0.0)
        assert runs == (5 if own is None else own + 2)

    async def test_a_dead_letter_is_edited_and_then_rerun(self, bench: Workbench) -> None:
        await bench.ended("a", how=FAILED, payload=b"wrong", max_retry=0)
        before = await bench.row("a")
        edit: dict[str, Any] = {"payload": b"right", "version": 2, "timeout": 9.0, "max_retry": 3}
        assert await bench.alter("a", "patch", available_at=bench.now() + 99.0, **edit) == ["a"]
        row = await bench.row("a")
        assert {name: getattr(row, name) for name in edit} == edit
        assert (row.status, row.available_at) == (TaskStatus.FAILED, before.available_at)
        assert (row.finished_at, row.failure_reason) == (before.finished_at, before.failure_reason)
        assert await bench.taken(9) == []
        await bench.alter("a", "rerun")
        [claim] = await bench.claim()
        assert (claim.payload, claim.version, claim.timeout) == (b"right", 2, 9.0)

    async def test_what_has_not_ended_is_not_rerun(self, bench: Workbench) -> None:
        await bench.started("running")
        await bench.publish("pending", "held")
        await bench.alter("held", "hold")
        assert await bench.alter(All(), "rerun") == []

    async def test_cancel_in_each_status(self, bench: Workbench) -> None:
        await bench.ended("ended")
        await bench.started("running")
        await bench.publish("pending", "held")
        await bench.alter("held", "hold")
        expected = ["running", "pending", "held"]
        assert await bench.alter(All(), "cancel", reason="enough") == expected
        for id_ in expected:
            row = await bench.row(id_)
            assert row.status.value == ("running" if id_ == "running" else "cancelled")
            assert row.cancel_reason == "enough"
        assert (await bench.row("ended")).cancel_reason is None
        assert await bench.alter(All(), "cancel", reason="again") == []
        assert (await bench.row("running")).cancel_reason == "enough"

    async def test_hold_and_resume(self, bench: Workbench) -> None:
        await bench.publish("a", "b")
        await bench.started("running")
        assert await bench.alter(All(), "hold") == ["a", "b"]
        assert await bench.alter(All(), "hold") == []
        assert await bench.taken(9) == []
        assert await bench.alter("a", "resume") == ["a"]
        assert await bench.alter("a", "resume") == []
        assert await bench.taken(9) == ["a"]
        assert await bench.alter("b", "cancel") == ["b"]
        assert await bench.alter("b", "resume") == []
        assert await bench.status("b") == "cancelled"

    @pytest.mark.parametrize(
        ("action", "statuses"),
        [
            ("patch", {"pending", "held", "running", "failed"}),
            ("rerun", {"succeeded", "failed", "cancelled"}),
            ("cancel", {"pending", "held", "running"}),
            ("hold", {"pending"}),
            ("resume", {"held"}),
        ],
    )
    async def test_an_action_changes_what_matches_in_the_statuses_it_is_for(
        self, bench: Workbench, action: str, statuses: set[str]
    ) -> None:
        await zoo(bench)
        fields = {"priority": 2} if action == "patch" else {}
        for where in (
            Statuses("later") & Types("t"),
            Statuses("succeeded", "held") & ~Tags(any_of=frozenset({"x"})),
            Payload(("n",), 1) | Statuses("running", "failed"),
            AnyOf(Types("u"), Statuses("due"), Ids("held", "failed")),
            Ids("tagged", "tagged-y", "cancelled"),
            ~Queues("r"),
            All(),
        ):
            rows = (await bench.storage.find(where, limit=1_000)).records
            can = [row for row in rows if row.status.value in statuses]
            dry = await bench.alter(where, action, dry_run=True, **fields)
            assert await bench.alter(where, action, **fields) == dry
            assert set(dry) <= {row.id for row in can}, where
            # The rest was changed already, by one of the trees before.
            left = [row for row in can if row.id not in dry]
            assert all(row.cancel_reason if action == "cancel" else row.priority == 2 for row in left)

    async def test_of_hold_resume_and_cancel_at_once_cancel_wins(self, bench: Workbench) -> None:
        for number in range(10):
            id_ = f"t{number}"
            await bench.publish(id_)
            async with trio.open_nursery() as nursery:
                for action in ("hold", "cancel", "resume"):
                    nursery.start_soon(bench.alter, id_, action)
            assert await bench.status(id_) == "cancelled"

    async def test_a_bulk_rerun_of_dead_letters_with_a_limit(self, bench: Workbench) -> None:
        ids = [f"t{number}" for number in range(7)]
        await bench.ended(*ids, how=FAILED)
        await bench.ended("other", how=FAILED, queue="r")
        assert await bench.alter(dead_letters("q"), "rerun", limit=3, dry_run=True) == ids[:3]
        assert await bench.ids(dead_letters("q")) == ids
        assert await bench.alter(dead_letters("q"), "rerun", limit=3) == ids[:3]
        assert await bench.alter(dead_letters("q"), "rerun") == ids[3:]
        assert await bench.ids(dead_letters()) == ["other"]

    async def test_a_limit_bounds_the_changed_and_not_the_matching(self, bench: Workbench) -> None:
        await bench.ended("e1", "e2")
        await bench.publish("a", "b", "c")
        assert await bench.alter(All(), "hold", limit=2, dry_run=True) == ["a", "b"]
        assert await bench.alter(All(), "hold", limit=2) == ["a", "b"]
        assert await bench.alter(All(), "hold", limit=2) == ["c"]

    async def test_a_change_of_very_many_leaves_none_out(self, bench: Workbench) -> None:
        ids = [f"t{number:04}" for number in range(1_200)]
        await bench.publish(*ids)
        assert await bench.alter(All(), "patch", priority=2, limit=700) == ids[:700]
        assert await bench.alter(All(), "patch", priority=2) == ids[700:]
        assert await bench.alter(All(), "cancel", dry_run=True) == ids
        assert await bench.alter(All(), "cancel") == ids
        assert await bench.storage.count(Statuses("cancelled")) == {(): 1_200}

    @pytest.mark.parametrize("action", ["patch", "rerun", "cancel", "hold", "resume"])
    async def test_a_dry_run_answers_the_same_and_changes_nothing(
        self, bench: Workbench, action: str
    ) -> None:
        await zoo(bench)
        fields = {"priority": 2} if action == "patch" else {}
        before = (await bench.storage.find(All(), limit=1_000)).records
        dry = await bench.alter(All(), action, dry_run=True, **fields)
        assert (await bench.storage.find(All(), limit=1_000)).records == before
        assert await bench.alter(All(), action, **fields) == dry != []


class PruneCases:
    """PRN."""

    async def test_nothing_to_prune(self, bench: Workbench) -> None:
        await bench.publish("a")
        assert await bench.storage.prune(PruneSpec(keep=0)) == 0
        assert await bench.storage.prune(PruneSpec(age_s=0.0)) == 0

    async def test_the_newest_are_kept(self, bench: Workbench) -> None:
        await bench.publish(*(f"t{number:03}" for number in range(100)))
        for number in reversed(range(100)):  # so that the last stored ended first
            id_ = f"t{number:03}"
            [claim] = await bench.claim(ids=frozenset({id_}))
            assert (await bench.settle(claim)).answer is SettleAnswer.APPLIED
            await bench.advance(0.1)
        assert await bench.storage.prune(PruneSpec(keep=10), dry_run=True) == 90
        assert len(await bench.ids()) == 100
        assert await bench.storage.prune(PruneSpec(keep=10)) == 90
        assert await bench.ids() == [f"t{number:03}" for number in range(10)]

    async def test_keep_counts_per_total_queue_or_type(self, bench: Workbench) -> None:
        for number, (queue, type_) in enumerate([("q", "t"), ("q", "u"), ("r", "t"), ("r", "t")]):
            await bench.ended(f"a{number}", f"b{number}", queue=queue, type=type_)
            await bench.advance(1.0)
        dry = {"dry_run": True}
        prune = bench.storage.prune
        assert await prune(PruneSpec(keep=1, per="total"), **dry) == 7
        assert await prune(PruneSpec(keep=1, per="queue"), **dry) == 6
        assert await prune(PruneSpec(keep=2, per="type"), **dry) == 4
        await prune(PruneSpec(keep=1, per="queue"))
        assert await bench.ids() == ["b1", "b3"]

    async def test_only_and_except(self, bench: Workbench) -> None:
        await bench.ended("a")
        await bench.ended("b", type="u")
        await bench.ended("c", queue="r")
        prune = bench.storage.prune
        assert await prune(PruneSpec(keep=0, where=Types("u")), dry_run=True) == 1
        assert await prune(PruneSpec(keep=0, where=~Types("u")), dry_run=True) == 2
        assert await prune(PruneSpec(keep=0, where=~Types()), dry_run=True) == 3
        assert await prune(PruneSpec(keep=0, where=Queues("r"))) == 1
        assert await bench.ids() == ["a", "b"]

    async def test_age_counts_from_the_end(self, bench: Workbench) -> None:
        await bench.publish("a", available_at=bench.now() - 1e6)
        await bench.publish("b")
        await bench.advance(1_000.0)
        for claim in await bench.claim(9):
            await bench.settle(claim)
        assert await bench.storage.prune(PruneSpec(age_s=100.0)) == 0
        await bench.advance(101.0)
        await bench.ended("c")
        assert await bench.storage.prune(PruneSpec(age_s=100.0)) == 2
        assert await bench.ids() == ["c"]

    async def test_age_or_number_either_suffices(self, bench: Workbench) -> None:
        await bench.ended("a")
        await bench.advance(100.0)
        await bench.ended("b", "c", "d")
        assert await bench.storage.prune(PruneSpec(age_s=50.0, keep=2)) == 2
        assert await bench.ids() == ["c", "d"]

    async def test_open_tasks_and_dead_letters_stay(self, bench: Workbench) -> None:
        await zoo(bench)
        await bench.advance(1e6)
        spec = PruneSpec(age_s=0.0, keep=0)
        assert await bench.storage.prune(spec) == 2
        assert await bench.ids(Statuses("succeeded", "cancelled")) == []
        assert await bench.ids(dead_letters()) == ["failed"]
        assert await bench.storage.prune(PruneSpec(age_s=0.0, keep=0, dead_letters=True)) == 1
        assert len(await bench.ids()) == 9

    async def test_a_limit_and_repeats_to_the_end(self, bench: Workbench) -> None:
        await bench.ended(*(f"t{number}" for number in range(7)))
        spec = PruneSpec(keep=1, limit=4)
        assert [await bench.storage.prune(spec) for _ in range(3)] == [4, 2, 0]
        assert await bench.ids() == ["t6"]

    async def test_within_a_limit_those_go_that_ended_first(self, bench: Workbench) -> None:
        await bench.publish(*"abcd")
        for id_ in "dcba":
            [claim] = await bench.claim(ids=frozenset({id_}))
            await bench.settle(claim)
            await bench.advance(1.0)
        assert await bench.storage.prune(PruneSpec(keep=0, limit=2)) == 2
        assert await bench.ids() == ["a", "b"]

    async def test_a_pruned_id_can_be_stored_again(self, bench: Workbench) -> None:
        await bench.ended("a", "b")
        await bench.storage.prune(PruneSpec(keep=0))
        await bench.publish("a")
        assert await bench.ids() == ["a"]
        assert await bench.taken() == ["a"]
        assert await bench.storage.history("a") != []
