"""The memory storage against a plain sequential model, by random operations.

The model keeps one list and looks through all of it each time. It shares no
code with the storage but the values.
"""

from __future__ import annotations

from collections import Counter
from math import floor
from typing import Any

import attrs
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dispatch.clock import Clock
from dispatch.lifecycle import SettleAnswer
from dispatch.records import NewTask, Transition, TransitionKind, UniqueKey
from dispatch.storage.memory import MemoryStorage
from dispatch.storage.protocol import Change, EnqueueAnswer, QueueRecord, Want
from dispatch.storage.query import All, Ids
from dispatch.tasks import OnClash, TaskStatus

KEEP_FINISHED = 3
BOUND = 4
OPEN = frozenset({TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.HELD})


@attrs.define
class Task:
    id: str
    seq: int
    type: str
    version: int
    tags: frozenset[str]
    key: str | None
    priority: int
    unique: str | None
    due: float
    status: str = "pending"
    attempt: int = 0
    epoch: int = 0
    limit: int = 1
    stop: bool = False
    lease: float | None = None
    end: int = 0
    runs: int = 0


class Model:
    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.keyed = True
        self.on_retry = "hold"
        self.paused = False
        self.seq = 0
        self.ends = 0

    def end(self, task: Task, status: str) -> None:
        self.ends += 1
        task.status, task.end, task.lease = status, self.ends, None
        finished = [one for one in self.tasks if one.status in ("succeeded", "cancelled")]
        if len(finished) > KEEP_FINISHED:
            self.tasks.remove(min(finished, key=lambda one: one.end))

    def waiting(self, now: float) -> int:
        return sum(task.status == "pending" and task.due <= now for task in self.tasks)

    def blocked(self, task: Task, now: float) -> bool:
        if not self.keyed or task.key is None:
            return False
        for other in self.tasks:
            if other is task or other.key != task.key:
                continue
            if other.status == "running":
                return True
            steps_aside = self.on_retry == "yield" and other.epoch > 0 and other.due > now
            if other.status == "pending" and other.seq < task.seq and not steps_aside:
                return True
        return False

    def claim(self, want: Want, now: float) -> list[Task]:
        taken: list[Task] = []
        while not self.paused and len(taken) < want.limit:
            fit = [
                task
                for task in self.tasks
                if task.status == "pending"
                and task.due <= now
                and (want.types is None or want.types.get(task.type, 0) >= task.version)
                and (want.tags is None or task.tags <= want.tags)
                and (want.ids is None or task.id in want.ids)
                and not self.blocked(task, now)
            ]
            if not fit:
                break
            best = min(fit, key=lambda task: (-self.level(task, want, now), task.due, task.seq))
            best.status = "running"
            best.attempt += 1
            best.epoch += 1
            best.runs += 1
            taken.append(best)
        return taken

    def level(self, task: Task, want: Want, now: float) -> int:
        if want.ageing is None:
            return task.priority
        return min(3, task.priority + floor((now - task.due) / want.ageing))


# Weighted by repetition: left to itself the machine hardly ever gets a task to
# run, let alone to its end (the last test here holds it to doing so).
names = st.sampled_from("aaab")
keys = st.sampled_from([None, "k", "k", "l"])
tags = st.sampled_from([(), (), (), ("x",), ("x", "y")])
waits = st.sampled_from([0.0, 0.0, 0.0, 1.0, 5.0])
seldom = st.sampled_from([False] * 5 + [True])
wanted_types = st.sampled_from([None, None, None, {"a": 1}, {"a": 2, "b": 1}])
wanted_tags = st.sampled_from([None] * 5 + [frozenset[str](), frozenset("x"), frozenset("xyz")])

seen: Counter[str] = Counter()
"""What the machine came across, to show that it did."""


class MemoryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.time = 1_000_000.0
        self.model = Model()
        self.storage = MemoryStorage(Clock(wall=lambda: self.time), keep_finished=KEEP_FINISHED)
        self.redeclare(keyed=True, on_retry="hold")

    @initialize(on_retry=st.sampled_from(["hold", "yield"]), data=st.data())
    def populate(self, on_retry: str, data: st.DataObject) -> None:
        self.redeclare(keyed=True, on_retry=on_retry)
        for _ in range(data.draw(st.integers(3, 8))):
            self.publish_one(data)

    @precondition(lambda self: self.model.seq % 5 == 0)
    @rule(keyed=st.booleans(), on_retry=st.sampled_from(["hold", "yield"]))
    def redeclare(self, keyed: bool, on_retry: str) -> None:
        record = QueueRecord(name="q", keyed=keyed, on_retry=on_retry, max_waiting=BOUND)
        trio.run(self.storage.declare, [record])
        self.model.keyed, self.model.on_retry = keyed, on_retry

    @rule(paused=seldom)
    def pause(self, paused: bool) -> None:
        trio.run(lambda: self.storage.alter_queue("q", paused=paused))
        self.model.paused = paused

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0, 60.0]))
    def advance(self, seconds: float) -> None:
        self.time += seconds

    @rule(data=st.data(), number=st.integers(1, 3))
    def publish_some(self, data: st.DataObject, number: int) -> None:
        for _ in range(number):
            self.publish_one(data)

    def publish_one(self, data: st.DataObject) -> None:
        self.publish(
            data.draw(names),
            1 + data.draw(seldom),
            data.draw(keys),
            data.draw(tags),
            data.draw(st.integers(0, 3)),
            data.draw(waits),
            data.draw(st.sampled_from([None, None, None, "u", "v"])),
            data.draw(st.sampled_from(OnClash)),
            bounded=data.draw(seldom),
        )

    def publish(
        self,
        type_: str,
        version: int,
        key: str | None,
        tags: tuple[str, ...],
        priority: int,
        delay: float,
        unique: str | None,
        on_clash: OnClash,
        *,
        bounded: bool,
    ) -> None:
        model = self.model
        model.seq += 1
        id_ = f"t{model.seq}"
        identity = (
            None
            if unique is None
            else UniqueKey(
                key=unique,
                statuses=OPEN,
                within=None,
                on_clash=on_clash,
                replace=frozenset({"priority", "available_at"}),
                replace_in=frozenset({TaskStatus.PENDING}),
            )
        )
        new = NewTask(
            id=id_,
            queue="q",
            type=type_,
            version=version,
            payload=b"",
            key=key,
            tags=tags,
            priority=priority,
            delay=delay,
            unique=identity,
        )
        [result] = trio.run(lambda: self.storage.enqueue([new], bounded=bounded))
        seen[result.answer] += 1
        due = self.time + delay
        clashes = [
            task
            for task in model.tasks
            if unique is not None and task.unique == unique and task.status in OPEN
        ]
        if clashes and on_clash is OnClash.REPLACE:
            for task in clashes:
                if task.status == "pending":
                    task.priority, task.due = priority, due
                    assert result.answer is EnqueueAnswer.REPLACED
                    return
        if clashes and on_clash is not OnClash.SUPERSEDE:
            rejected = on_clash is OnClash.REJECT
            wanted = EnqueueAnswer.REJECTED if rejected else EnqueueAnswer.EXISTING
            assert result.answer is wanted
            return
        going = sum(task.status == "pending" and task.due <= self.time for task in clashes)
        full = model.waiting(self.time) - going >= BOUND
        if bounded and due <= self.time and full:
            assert result.answer is EnqueueAnswer.FULL
            return
        assert result.answer is EnqueueAnswer.CREATED
        for task in clashes:
            if task.status == "running":
                task.stop = True
            else:
                model.end(task, "cancelled")
        model.tasks.append(
            Task(id_, model.seq, type_, version, frozenset(tags), key, priority, unique, due)
        )

    @rule(
        limit=st.sampled_from([0, 1, 2, 5]),
        types=wanted_types,
        tags=wanted_tags,
        ageing=st.sampled_from([None, 1.0, 60.0]),
        lease=st.sampled_from([None, 1.0, 10.0]),
        named=seldom,
        data=st.data(),
    )
    def claim(
        self,
        limit: int,
        types: dict[str, int] | None,
        tags: frozenset[str] | None,
        ageing: float | None,
        lease: float | None,
        named: bool,
        data: st.DataObject,
    ) -> None:
        ids = frozenset(self.some(data, OPEN | {"succeeded"})) if named else None
        want = Want(
            queue="q", limit=limit, types=types, tags=tags, ageing=ageing, ids=ids, max_retry=1
        )
        claimed = trio.run(lambda: self.storage.claim([want], worker="w", lease=lease))
        taken = self.model.claim(want, self.time)
        for task in taken:
            task.lease = None if lease is None else self.time + lease
        found = [(claim.id, claim.epoch, claim.attempt) for claim in claimed.claims]
        seen["claimed"] += len(found)
        assert found == [(task.id, task.epoch, task.attempt) for task in taken]

    def some(self, data: st.DataObject, statuses: Any) -> list[str]:
        ids = [task.id for task in self.model.tasks if task.status in statuses]
        return data.draw(st.lists(st.sampled_from(ids), min_size=1, max_size=3)) if ids else []

    @rule(
        data=st.data(),
        rounds=st.integers(1, 3),
        lease=st.sampled_from([None, 1.0, 10.0]),
        kind=st.sampled_from(TransitionKind),
        wait=st.sampled_from([None, 0.0, 2.0]),
    )
    def work(
        self,
        data: st.DataObject,
        rounds: int,
        lease: float | None,
        kind: TransitionKind,
        wait: float | None,
    ) -> None:
        """Claim without restriction and settle one run, a few times."""
        for _ in range(rounds):
            self.claim(2, None, None, 60.0, lease, named=False, data=data)
            if any(task.status == "running" for task in self.model.tasks):
                self.settle(data, kind, wait, stale=False)

    @rule(data=st.data(), renewed=st.booleans(), limit=st.sampled_from([1, 100]))
    def crash(self, data: st.DataObject, renewed: bool, limit: int) -> None:
        """Claim, perhaps renew, and let the first leases run out."""
        self.claim(2, None, None, None, 1.0, named=False, data=data)
        if renewed:
            self.renew(data.draw(st.sampled_from([0.5, 20.0])))
        self.advance(5.0)
        self.rescue(limit)

    @precondition(lambda self: any(task.status == "running" for task in self.model.tasks))
    @rule(
        data=st.data(),
        kind=st.sampled_from(TransitionKind),
        wait=st.sampled_from([None, 0.0, 2.0]),
        stale=seldom,
    )
    def settle(
        self, data: st.DataObject, kind: TransitionKind, wait: float | None, stale: bool
    ) -> None:
        running = [task for task in self.model.tasks if task.status == "running"]
        task = data.draw(st.sampled_from(running))
        transition = Transition(task.id, task.epoch - stale, kind, retry_in=wait, error="e")
        [result] = trio.run(self.storage.settle, [transition])
        if stale:
            assert result.answer is SettleAnswer.LOST
            return
        assert result.answer is SettleAnswer.APPLIED
        seen[f"settled {result.status}"] += 1
        self.ended(task, kind, wait)

    def ended(self, task: Task, kind: TransitionKind, wait: float | None) -> None:
        task.lease = None
        failed = kind is TransitionKind.FAILED
        if kind is TransitionKind.DONE:
            self.model.end(task, "succeeded")
        elif kind is TransitionKind.CANCELLED or (task.stop and not (failed and wait is None)):
            self.model.end(task, "cancelled")
        elif failed and (wait is None or task.attempt > task.limit):
            self.model.end(task, "failed")
        else:
            task.status = "pending"
            if not failed:
                task.attempt -= 1
            if kind is not TransitionKind.HANDED_BACK:
                task.due = self.time + (wait or 0.0)

    @rule(limit=st.sampled_from([1, 100]))
    def rescue(self, limit: int) -> None:
        rescued = trio.run(self.storage.rescue, limit)
        expired = [
            (task.lease, task.seq, task)
            for task in self.model.tasks
            if task.lease is not None and task.lease < self.time
        ]
        taken = [task for _, _, task in sorted(expired, key=lambda found: found[:2])][:limit]
        assert [record.id for record in rescued.records] == [task.id for task in taken]
        seen["rescued"] += len(taken)
        for task in taken:
            task.epoch += 1
            self.ended(task, TransitionKind.FAILED, 1.0)
        leases = [task.lease for task in self.model.tasks if task.lease is not None]
        assert rescued.next_sweep == min(leases, default=float("inf"))

    @rule(seconds=st.sampled_from([0.5, 20.0]))
    def renew(self, seconds: float) -> None:
        running = [task for task in self.model.tasks if task.status == "running"]
        fences = [(task.id, task.epoch) for task in running]
        answers = trio.run(lambda: self.storage.renew(fences, lease=seconds))
        assert all(answer.held for answer in answers)
        for task in running:
            if task.lease is not None:
                seen["renewed"] += task.lease < self.time + seconds
                task.lease = max(task.lease, self.time + seconds)

    @rule(
        data=st.data(),
        action=st.sampled_from(["cancel", "hold", "resume", "rerun", "patch"]),
        wait=waits,
    )
    def alter(self, data: st.DataObject, action: Any, wait: float) -> None:
        fit = {
            "hold": {"pending"},
            "resume": {"held"},
            "rerun": {"succeeded", "failed", "cancelled"},
            "patch": {"pending", "held"},
        }
        every = frozenset(TaskStatus)
        ids = set(self.some(data, every if data.draw(seldom) else fit.get(action, every)))
        change = Change(action=action)
        if action == "patch":
            change = Change(action="patch", available_at=self.time + wait)
        changed = trio.run(self.storage.alter, Ids(*ids), change)
        seen[action] += len(changed)
        meant = [task for task in self.model.tasks if task.id in ids]
        assert changed == [task.id for task in meant if self.altered(task, action, wait)]

    def altered(self, task: Task, action: str, wait: float) -> bool:
        match action, task.status:
            case "cancel", "running" if not task.stop:
                task.stop = True
            case "cancel", "pending" | "held":
                self.model.end(task, "cancelled")
            case "hold", "pending":
                task.status = "held"
            case "resume", "held":
                task.status = "pending"
            case "rerun", "succeeded" | "failed" | "cancelled":
                task.status, task.due, task.stop = "pending", self.time, False
                # One that never ran has no stored limit yet.
                stored = task.limit if task.runs or task.limit != 1 else 0
                task.limit = max(stored + 1, task.attempt)
            case "patch", "pending" | "held" if task.due != self.time + wait:
                task.due = self.time + wait
            case _:
                return False
        return True

    @invariant()
    def the_same_is_stored(self) -> None:
        page = trio.run(lambda: self.storage.find(All(), limit=10_000))
        found = [
            (row.id, row.status.value, row.attempt, row.epoch, row.available_at, row.lease_until)
            for row in page.records
        ]
        assert found == [
            (task.id, task.status, task.attempt, task.epoch, task.due, task.lease)
            for task in self.model.tasks
        ]
        assert self.storage.statistics().waiting == self.model.waiting(self.time)


def test_the_memory_storage_agrees_with_its_model() -> None:
    seen.clear()
    depth = settings(max_examples=60, stateful_step_count=60, deadline=None)
    run_state_machine_as_test(MemoryMachine, settings=depth)
    # A machine that never gets anywhere agrees with every storage.
    answers = set(EnqueueAnswer) - {EnqueueAnswer.UNKNOWN_QUEUE, EnqueueAnswer.CLAIM_LOST}
    ends = {f"settled {status}" for status in ("pending", "succeeded", "failed", "cancelled")}
    done = {"claimed", "rescued", "renewed", "cancel", "hold", "resume", "rerun", "patch"}
    assert {*answers, *ends, *done} - {what for what in seen if seen[what]} == set()
