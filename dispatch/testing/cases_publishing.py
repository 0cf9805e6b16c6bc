"""Conformance: enqueue and uniqueness."""



from __future__ import annotations

from typing import Any

import pytest
import trio

from dispatch.records import TransitionKind
from dispatch.storage.protocol import EnqueueAnswer, EnqueueResult
from dispatch.storage.query import All, Header, Keys, PruneSpec, Tags
from dispatch.tasks import TaskStatus
from dispatch.testing.workbench import Workbench, unique

__all__ = ["EnqueueCases", "UniqueCases"]

A = EnqueueAnswer
EVERY = frozenset(TaskStatus) - {TaskStatus.RETRYING}
"""Every status that is stored; retrying is how a pending task is shown."""


def answers(results: list[EnqueueResult]) -> list[EnqueueAnswer]:
    """The answers alone."""
    return [result.answer for result in results]


class EnqueueCases:
    """ENQ."""

    async def test_stored_tasks_are_readable_as_published(self, bench: Workbench) -> None:
        results = await bench.publish(
            "a", "b", payload=b'{"n":1}', key="k", headers={"h": "v"}, tags=("x",), priority=2
        )
        assert answers(results) == [A.CREATED, A.CREATED]
        row = await bench.row("a")
        assert (row.payload, row.key, dict(row.headers)) == (b'{"n":1}', "k", {"h": "v"})
        assert (row.tags, row.priority, row.status) == (("x",), 2, TaskStatus.PENDING)
        assert (row.attempt, row.epoch, row.worker) == (0, 0, None)
        assert row.created_at == results[0].created_at == bench.now()
        assert row.available_at == results[0].available_at == bench.now()

    async def test_an_id_stored_already_is_existing_and_unchanged(self, bench: Workbench) -> None:
        await bench.publish("a", payload=b"1")
        before = await bench.row("a")
        [result] = await bench.publish("a", payload=b"2", priority=3)
        assert result.answer is A.EXISTING
        assert result.record == before == await bench.row("a")

    async def test_texts_and_bytes_of_every_kind_come_back_as_they_were(
        self, bench: Workbench
    ) -> None:
        texts = ["é", "日本", "😀", "'; DROP TABLE tasks; --", '"', "\\", "%_*?[", "\n\t\x01\u2028", " "]
        for number, text in enumerate(texts):
            id_ = f"{number}{text}"
            payload = text.encode() + bytes(range(256))
            claim = await bench.started(
                id_, payload=payload, key=text, headers={text: text}, tags=(text, "x"), worker=text
            )
            assert (claim.payload, claim.key, claim.tags) == (payload, text, (text, "x"))
            assert dict(claim.headers) == {text: text}
            await bench.settle(claim, result=payload, kind=TransitionKind.DONE)
            row = await bench.row(id_)
            assert (row.payload, row.result, row.worker) == (payload, payload, text)
            assert await bench.ids(Keys(text) & Header(text, text) & Tags(all_of=[text])) == [id_]
            failing = await bench.started(f"f{id_}")
            await bench.settle(failing, TransitionKind.FAILED, error=text, traceback=text)
            assert (await bench.row(f"f{id_}")).last_error == text
            [run] = await bench.storage.history(f"f{id_}")
            assert run.error == f"{text}\n{text}"

    async def test_an_empty_batch_is_nothing(self, bench: Workbench) -> None:
        await bench.declare()
        assert await bench.storage.enqueue([]) == []
        assert await bench.storage.settle([]) == []
        assert await bench.storage.renew([], lease=1.0) == []
        assert (await bench.storage.claim([], worker="w", lease=1.0)).claims == []

    async def test_later_items_see_earlier_ones(self, bench: Workbench) -> None:
        await bench.declare()
        results = await bench.storage.enqueue(
            [bench.task("a", unique=unique()), bench.task("b", unique=unique()), bench.task("a")]
        )
        assert answers(results) == [A.CREATED, A.EXISTING, A.EXISTING]
        assert await bench.ids() == ["a"]

    async def test_a_batch_says_of_each_whether_it_was_there_already(self, bench: Workbench) -> None:
        await bench.publish("old", payload=b"old")
        ids = ("new", "old", "new", "last", "new")
        results = await bench.storage.enqueue([bench.task(id_, payload=b"%d" % at) for at, id_ in enumerate(ids)])
        assert answers(results) == [A.CREATED, A.EXISTING, A.EXISTING, A.CREATED, A.EXISTING]
        assert [result.id for result in results] == list(ids)
        new, old = await bench.row("new"), await bench.row("old")
        assert [result.record for result in results] == [None, old, new, None, new]
        assert (new.payload, old.payload) == (b"0", b"old")
        assert await bench.ids() == ["old", "new", "last"]

    async def test_a_rejected_item_does_not_spoil_the_rest(self, bench: Workbench) -> None:
        await bench.publish("a", unique=unique())
        results = await bench.storage.enqueue(
            [
                bench.task("b"),
                bench.task("c", unique=unique(on_clash="reject")),
                bench.task("d", queue="unknown"),
                bench.task("e"),
            ]
        )
        assert answers(results) == [A.CREATED, A.REJECTED, A.UNKNOWN_QUEUE, A.CREATED]
        assert results[1].record is not None
        assert results[1].record.id == "a"
        assert await bench.ids() == ["a", "b", "e"]

    async def test_the_second_of_an_id_sees_what_became_of_the_first(self, bench: Workbench) -> None:
        await bench.declare()
        await bench.declare("keyed", keyed=True)
        batch = [
            bench.task("x", queue="unknown"),
            bench.task("x", payload=b"1"),
            bench.task("y", queue="keyed", key="k", payload=b"2"),
            bench.task("y", payload=b"3"),
        ]
        async with bench.beside() as other:  # which has met neither queue yet
            results = await other.storage.enqueue(batch)
        assert answers(results) == [A.UNKNOWN_QUEUE, A.CREATED, A.CREATED, A.EXISTING]
        assert (await bench.row("x")).payload == b"1"
        assert ((await bench.row("y")).payload, (await bench.row("y")).key) == (b"2", "k")

    async def test_a_batch_is_stored_in_its_order_whatever_is_in_it(self, bench: Workbench) -> None:
        await bench.declare(keyed=True)
        async with bench.beside() as other:
            await other.storage.enqueue([bench.task("a", key="k"), bench.task("b"), bench.task("c", unique=unique())])
        assert await bench.taken(5) == ["a", "b", "c"]

    async def test_a_delay_counts_from_the_storages_now(self, bench: Workbench) -> None:
        [result] = await bench.publish("a", delay=5.0)
        assert result.available_at == pytest.approx(bench.now() + 5.0, abs=1e-6)
        assert await bench.taken() == []
        await bench.advance(5.0)
        assert await bench.taken() == ["a"]

    @pytest.mark.parametrize("keyed", [False, True])
    async def test_whole_and_broken_seconds_go_together(
        self, bench: Workbench, keyed: bool
    ) -> None:
        await bench.declare(keyed=keyed)
        moment = int(bench.now()) + 7
        results = await bench.storage.enqueue(
            [
                bench.task("a", key="a", timeout=5, delay=0.5),
                bench.task("b", key="b", timeout=2.5, delay=5),
                bench.task("c", key="c", available_at=moment),
                bench.task("d", key="d", available_at=moment + 0.5),
            ]
        )
        assert answers(results) == [A.CREATED] * 4
        rows = [await bench.row(id_) for id_ in "abcd"]
        assert [row.timeout for row in rows] == [5.0, 2.5, None, None]
        assert [row.available_at for row in rows] == [result.available_at for result in results]
        waits = [row.available_at - bench.now() for row in rows[:2]]
        assert waits == pytest.approx([0.5, 5.0], abs=1e-6)
        assert [row.available_at for row in rows[2:]] == [moment, moment + 0.5]

    async def test_moments_are_kept_to_the_microsecond(self, bench: Workbench) -> None:
        moment = round(bench.now() + 1.234567, 6)
        await bench.publish("a", available_at=moment)
        assert (await bench.row("a")).available_at == moment
        [delayed] = await bench.publish("b", delay=0.123457)
        assert delayed.available_at == pytest.approx(bench.now() + 0.123457, abs=3e-6)

    async def test_a_past_moment_is_claimable_and_kept(self, bench: Workbench) -> None:
        moment = bench.now() - 100.0
        await bench.publish("a", available_at=moment)
        await bench.publish("b", available_at=bench.now() + 100.0)
        assert await bench.taken(5) == ["a"]
        assert (await bench.row("a")).available_at == moment

    async def test_under_a_stale_claim_nothing_is_stored(self, bench: Workbench) -> None:
        claim = await bench.started("a")
        fence = (claim.id, claim.epoch)
        [held] = await bench.storage.enqueue([bench.task("b")], by=fence)
        assert held.answer is A.CREATED
        await bench.settle(claim)
        lost = await bench.storage.enqueue([bench.task("c"), bench.task("d")], by=fence)
        assert answers(lost) == [A.CLAIM_LOST, A.CLAIM_LOST]
        assert await bench.ids() == ["a", "b"]
        [unknown] = await bench.storage.enqueue([bench.task("c")], by=("no", 1))
        assert unknown.answer is A.CLAIM_LOST

    async def test_a_caller_cannot_reach_a_row_through_what_it_gave_or_got(
        self, bench: Workbench
    ) -> None:
        headers = {"h": "v"}
        await bench.publish("a", headers=headers)
        headers["h"] = "changed"
        row = await bench.row("a")
        row.payload = b"changed"
        row.priority = 3
        [stored] = await bench.publish("a")
        assert stored.record is not None
        stored.record.payload = b"changed"
        again = await bench.row("a")
        assert (dict(again.headers), again.payload, again.priority) == ({"h": "v"}, b"{}", 1)

    async def test_a_cancelled_enqueue_has_stored_all_or_nothing(self, bench: Workbench) -> None:
        await bench.declare()
        with trio.CancelScope() as scope:
            scope.cancel()
            await bench.storage.enqueue([bench.task("a"), bench.task("b")])
        assert await bench.ids() in ([], ["a", "b"])


class UniqueCases:
    """UNQ. Hashing an identity to a key is the codec's, and tested there."""

    async def existing(self, bench: Workbench, status: str, **fields: Any) -> None:
        """Store task `old` in this status, under the key `u`."""
        fields = {"unique": unique(), "payload": b"old", **fields}
        if status in ("pending", "held"):
            await bench.publish("old", **fields)
            if status == "held":
                await bench.alter("old", "hold")
            return
        claim = await bench.started("old", **fields)
        kinds = {
            "succeeded": TransitionKind.DONE,
            "failed": TransitionKind.FAILED,
            "cancelled": TransitionKind.CANCELLED,
            "retrying": TransitionKind.FAILED,
        }
        if status in kinds:
            wait = 60.0 if status == "retrying" else None
            await bench.settle(claim, kinds[status], retry_in=wait)

    OPEN = ("pending", "held", "running", "retrying")
    ENDED = ("succeeded", "failed", "cancelled")

    @pytest.mark.parametrize("status", OPEN)
    async def test_keep_leaves_an_open_match(self, bench: Workbench, status: str) -> None:
        await self.existing(bench, status, max_retry=1)
        before = await bench.row("old")
        [result] = await bench.publish("new", unique=unique(), payload=b"new")
        assert result.answer is A.EXISTING
        assert result.record == before == await bench.row("old")
        assert await bench.ids() == ["old"]

    @pytest.mark.parametrize("status", OPEN)
    async def test_reject_refuses_beside_an_open_match(
        self, bench: Workbench, status: str
    ) -> None:
        await self.existing(bench, status, max_retry=1)
        [result] = await bench.publish("new", unique=unique(on_clash="reject"))
        assert result.answer is A.REJECTED
        assert result.record is not None
        assert result.record.id == "old"
        assert await bench.ids() == ["old"]

    @pytest.mark.parametrize("status", OPEN)
    async def test_replace_writes_where_it_may(self, bench: Workbench, status: str) -> None:
        await self.existing(bench, status, max_retry=1)
        [result] = await bench.publish("new", unique=unique(on_clash="replace"), payload=b"new")
        written = status != "running"
        assert result.answer is (A.REPLACED if written else A.EXISTING)
        assert result.record == await bench.row("old")
        assert (await bench.row("old")).payload == (b"new" if written else b"old")
        assert await bench.ids() == ["old"]

    @pytest.mark.parametrize("other", [{"type": "other"}, {"queue": "other"}], ids=["type", "queue"])
    async def test_replace_writes_no_payload_into_a_task_of_another_type(
        self, bench: Workbench, other: dict[str, str]
    ) -> None:
        await self.existing(bench, "pending")
        before = await bench.row("old")
        [result] = await bench.publish("new", unique=unique(on_clash="replace"), payload=b"new", **other)
        assert (result.answer, result.record) == (A.REJECTED, before)
        raised = unique(on_clash="replace", replace=frozenset({"priority"}))
        [result] = await bench.publish("newer", unique=raised, payload=b"newer", priority=3, **other)
        assert result.answer is A.REPLACED
        row = await bench.row("old")
        assert (row.payload, row.type, row.queue, row.priority) == (b"old", before.type, before.queue, 3)
        assert await bench.ids() == ["old"]

    async def test_replace_finds_the_match_of_its_own_type_behind_another(self, bench: Workbench) -> None:
        await bench.publish("other", type="other", unique=unique(), payload=b"other")
        beside = unique(statuses=frozenset({TaskStatus.SUCCEEDED}))
        assert answers(await bench.publish("own", unique=beside, payload=b"own")) == [A.CREATED]
        [result] = await bench.publish("new", unique=unique(on_clash="replace"), payload=b"new")
        assert result.answer is A.REPLACED
        assert ((await bench.row("own")).payload, (await bench.row("other")).payload) == (b"new", b"other")

    @pytest.mark.parametrize("status", OPEN)
    async def test_supersede_ends_the_match_and_stores(
        self, bench: Workbench, status: str
    ) -> None:
        await self.existing(bench, status, max_retry=1)
        [result] = await bench.publish("new", unique=unique(on_clash="supersede"))
        assert result.answer is A.CREATED
        old = await bench.row("old")
        if status == "running":
            assert (old.status, old.cancel_reason is not None) == (TaskStatus.RUNNING, True)
        else:
            assert old.status is TaskStatus.CANCELLED
        assert await bench.taken(5) == ["new"]

    @pytest.mark.parametrize("spawned", [False, True])
    async def test_superseded_in_its_own_batch_a_task_has_ended_like_any_other(
        self, bench: Workbench, spawned: bool
    ) -> None:
        claim = await bench.started("first")
        batch = [bench.task(f"t{at}", unique=unique(on_clash="supersede")) for at in range(8)]
        if spawned:
            await bench.settle(claim, spawn=tuple(batch))
        else:
            assert answers(await bench.storage.enqueue(batch)) == [A.CREATED] * 8
            await bench.settle(claim)
        for at in range(7):
            row = await bench.row(f"t{at}")
            assert (row.status, row.finished_at) == (TaskStatus.CANCELLED, bench.now())
            assert row.cancel_reason == f"superseded by task t{at + 1}"
        assert await bench.status("t7") == "pending"
        await bench.advance(5.0)
        assert await bench.storage.prune(PruneSpec(age_s=1.0)) == 8
        assert await bench.ids() == ["t7"]

    @pytest.mark.parametrize("on_clash", ["keep", "reject", "replace", "supersede"])
    @pytest.mark.parametrize("status", ENDED)
    async def test_an_ended_task_does_not_clash_by_default(
        self, bench: Workbench, status: str, on_clash: str
    ) -> None:
        await self.existing(bench, status)
        before = await bench.row("old")
        assert answers(await bench.publish("new", unique=unique(on_clash=on_clash))) == [A.CREATED]
        assert await bench.row("old") == before

    @pytest.mark.parametrize("status", ENDED)
    async def test_an_ended_task_clashes_if_its_status_is_named(
        self, bench: Workbench, status: str
    ) -> None:
        await self.existing(bench, status)
        named = unique(statuses=frozenset({TaskStatus(status)}))
        assert answers(await bench.publish("new", unique=named)) == [A.EXISTING]

    @pytest.mark.parametrize("status", [*OPEN, *ENDED])
    @pytest.mark.parametrize(
        ("statuses", "on_clash", "answer"),
        [
            pytest.param(None, "keep", A.CREATED, id="reuse"),
            pytest.param(EVERY, "keep", A.EXISTING, id="existing"),
            pytest.param(EVERY - {TaskStatus.FAILED}, "keep", A.EXISTING, id="reuse-on-failure"),
            pytest.param(EVERY, "reject", A.REJECTED, id="no-reuse"),
        ],
    )
    async def test_each_way_to_reuse_a_key_meets_each_status(
        self,
        bench: Workbench,
        statuses: frozenset[TaskStatus] | None,
        on_clash: str,
        answer: EnqueueAnswer,
        status: str,
    ) -> None:
        await self.existing(bench, status, max_retry=1)
        before = await bench.row("old")
        identity = None if statuses is None else unique(on_clash=on_clash, statuses=statuses)
        if statuses == EVERY - {TaskStatus.FAILED} and status == "failed":
            answer = A.CREATED
        [result] = await bench.publish("new", unique=identity)
        assert result.answer is answer
        assert await bench.row("old") == before
        assert await bench.ids() == (["old", "new"] if answer is A.CREATED else ["old"])
        assert (result.record is None) == (answer is A.CREATED)

    async def test_a_rerun_task_clashes_again(self, bench: Workbench) -> None:
        await self.existing(bench, "succeeded")
        await bench.alter("old", "rerun")
        assert answers(await bench.publish("new", unique=unique())) == [A.EXISTING]

    async def test_keys_differ_from_each_other_and_from_none(self, bench: Workbench) -> None:
        results = [
            *await bench.publish("a", unique=unique("a-b/c")),
            *await bench.publish("b", unique=unique("a/b-c")),
            *await bench.publish("c", "d"),
        ]
        assert answers(results) == [A.CREATED] * 4

    async def test_a_key_counts_in_every_queue(self, bench: Workbench) -> None:
        await bench.publish("a", unique=unique())
        [result] = await bench.publish("b", queue="r", unique=unique())
        assert result.answer is A.EXISTING
        assert result.record == await bench.row("a")

    async def test_of_several_that_clash_the_oldest_is_met_and_all_are_superseded(
        self, bench: Workbench
    ) -> None:
        alone = unique(statuses=frozenset({TaskStatus.FAILED}))
        await bench.publish("a", "b", "c", unique=alone)
        [kept] = await bench.publish("new", unique=unique())
        assert kept.record == await bench.row("a")
        await bench.alter("a", "hold")
        pending = unique(on_clash="replace", replace_in=frozenset({TaskStatus.PENDING}))
        [replaced] = await bench.publish("new", payload=b"new", unique=pending)
        assert replaced.record == await bench.row("b")
        assert [(await bench.row(id_)).payload for id_ in "abc"] == [b"{}", b"new", b"{}"]
        await bench.publish("new", unique=unique(on_clash="supersede"))
        assert [await bench.status(id_) for id_ in "abc"] == ["cancelled"] * 3

    async def test_the_oldest_is_met_also_where_it_has_ended_or_was_rerun(self, bench: Workbench) -> None:
        alone = unique(statuses=frozenset({TaskStatus.FAILED}))
        await bench.settle(await bench.started("a", unique=alone))
        await bench.publish("b", unique=alone)
        [kept] = await bench.publish("new", unique=unique(statuses=EVERY))
        assert kept.record == await bench.row("a")
        await bench.alter("a", "rerun")
        [kept] = await bench.publish("new", unique=unique())
        assert kept.record == await bench.row("a")

    async def test_statuses_that_do_not_match_let_a_new_one_in(self, bench: Workbench) -> None:
        await self.existing(bench, "running")
        waiting = unique(statuses=frozenset({TaskStatus.PENDING}))
        assert answers(await bench.publish("new", unique=waiting)) == [A.CREATED]
        assert answers(await bench.publish("newer", unique=waiting)) == [A.EXISTING]

    async def test_replace_writes_exactly_the_named_fields(self, bench: Workbench) -> None:
        names = ("payload", "available_at", "priority", "headers", "tags", "timeout", "max_retry")
        new: dict[str, Any] = {
            "payload": b"new",
            "available_at": bench.now() + 9.0,
            "priority": 3,
            "headers": {"n": "1"},
            "tags": ("n",),
            "timeout": 9.0,
            "max_retry": 9,
        }
        for name in names:
            await bench.publish(f"old-{name}", unique=unique(name))
            before = await bench.row(f"old-{name}")
            clash = unique(name, "replace", replace=frozenset({name}))
            assert answers(await bench.publish(f"new-{name}", unique=clash, **new)) == [A.REPLACED]
            after = await bench.row(f"old-{name}")
            changed = {field for field in names if getattr(after, field) != getattr(before, field)}
            assert changed == {name}
            assert getattr(after, name) == new[name]

    async def test_a_replaced_payload_brings_its_version(self, bench: Workbench) -> None:
        await bench.publish("a", unique=unique())
        await bench.publish("b", version=2, payload=b"2", unique=unique(on_clash="replace"))
        row = await bench.row("a")
        assert (row.payload, row.version) == (b"2", 2)

    async def test_replacing_takes_whole_seconds_among_broken_ones(self, bench: Workbench) -> None:
        due = int(bench.now()) + 60
        fields = frozenset({"timeout", "available_at"})
        clashes = [unique(key, "replace", replace=fields) for key in ("u", "v")]
        await bench.publish("a", unique=clashes[0])
        await bench.publish("b", unique=clashes[1])
        results = await bench.storage.enqueue(
            [
                bench.task("c", timeout=5, available_at=due, unique=clashes[0]),
                bench.task("d", timeout=2.5, available_at=due + 0.5, unique=clashes[1]),
            ]
        )
        assert answers(results) == [A.REPLACED] * 2
        rows = [await bench.row(id_) for id_ in ("a", "b")]
        assert [(row.timeout, row.available_at) for row in rows] == [(5.0, due), (2.5, due + 0.5)]

    async def test_replacing_the_due_time_debounces(self, bench: Workbench) -> None:
        later = unique(on_clash="replace", replace=frozenset({"payload", "available_at"}))
        await bench.publish("a", unique=later, delay=2.0)
        await bench.advance(1.0)
        await bench.publish("b", unique=later, delay=2.0)
        await bench.advance(1.0)
        assert await bench.taken() == []
        await bench.advance(1.0)
        assert await bench.taken() == ["a"]

    async def test_the_window_is_inclusive_and_relative_to_the_new_task(
        self, bench: Workbench
    ) -> None:
        await bench.publish("old", unique=unique(), delay=100.0)
        for within, delay, clashes in [
            (0.0, 100.0, True),
            (0.0, 101.0, False),
            (10.0, 110.0, True),
            (10.0, 90.0, True),
            (10.0, 111.0, False),
            (10.0, 89.0, False),
        ]:
            window = unique(on_clash="reject", within=within)
            [result] = await bench.publish("new", unique=window, delay=delay)
            assert result.answer is (A.REJECTED if clashes else A.CREATED), (within, delay)
            await bench.alter("new", "cancel")
            await bench.storage.prune(PruneSpec(keep=0))

    @pytest.mark.parametrize("on_clash", ["keep", "reject", "replace", "supersede"])
    async def test_without_statuses_nothing_clashes(self, bench: Workbench, on_clash: str) -> None:
        never = unique(on_clash=on_clash, statuses=frozenset[TaskStatus]())
        claim = await bench.started("first", unique=never)
        assert answers(await bench.publish("a", unique=never)) == [A.CREATED]
        assert answers(await bench.storage.enqueue([bench.task("b"), bench.task("c", unique=never)])) == [A.CREATED] * 2
        answer = await bench.settle(claim, spawn=(bench.task("d", unique=never),))
        assert (answer.answer.value, answers([*answer.spawned])) == ("applied", [A.CREATED])
        assert await bench.taken(5) == ["a", "b", "c", "d"]

    @pytest.mark.parametrize("by_payload", [False, True])
    @pytest.mark.parametrize("status", ["pending", "held", "running", "failed"])
    async def test_another_payload_takes_the_uniqueness_with_it_that_is_of_the_payload(
        self, bench: Workbench, status: str, by_payload: bool
    ) -> None:
        every = unique(statuses=EVERY, by_payload=by_payload)
        await self.existing(bench, status, unique=every)
        assert (await bench.row("old")).unique == every
        assert await bench.alter("old", "patch", priority=3) == ["old"]
        assert answers(await bench.publish("new", unique=every)) == [A.EXISTING]
        assert await bench.alter("old", "patch", payload=b"edited") == ["old"]
        assert (await bench.row("old")).unique == (None if by_payload else every)
        assert answers(await bench.publish("new", unique=every)) == [A.CREATED if by_payload else A.EXISTING]
        assert answers(await bench.publish("newer", unique=every)) == [A.EXISTING]
        if status == "failed":
            assert await bench.alter("old", "rerun") == ["old"]
        await bench.alter(All(), "cancel")
        assert await bench.storage.prune(PruneSpec(keep=0)) == 1 + by_payload - (status == "running")

    async def test_of_many_at_once_one_is_created(self, bench: Workbench) -> None:
        await bench.declare()
        found: list[EnqueueAnswer] = []

        async def publish(number: int) -> None:
            found.extend(answers(await bench.publish(f"t{number}", unique=unique())))

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(publish, number)
        assert sorted(found) == [A.CREATED] + [A.EXISTING] * 99

    async def test_a_key_is_free_again_after_a_prune(self, bench: Workbench) -> None:
        await self.existing(bench, "succeeded")
        every = unique(statuses=frozenset(TaskStatus))
        assert answers(await bench.publish("new", unique=every)) == [A.EXISTING]
        assert await bench.storage.prune(PruneSpec(keep=0, where=All())) == 1
        assert answers(await bench.publish("new", unique=every)) == [A.CREATED]
