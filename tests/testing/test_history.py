"""The history checker: a right history passes, and each invariant fails on a broken one."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from dispatch import Dispatcher, QueueTask, TaskQueueConfig, TaskType
from dispatch.bell import Bell
from dispatch.clock import Clock
from dispatch.lifecycle import SettleAnswer
from dispatch.records import Claim, NewTask, TaskRecord, Transition, TransitionKind
from dispatch.storage import memory as memory_module
from dispatch.storage.memory import MemoryStorage
from dispatch.storage.protocol import (
    Change,
    CronRecord,
    QueueRecord,
    Storage,
    Topic,
    TopicKind,
    Want,
    WorkerRecord,
)
from dispatch.storage.query import All, Ids, PruneSpec
from dispatch.testing.faults import FaultyStorage
from dispatch.testing.history import (
    INVARIANTS,
    ONE_TICK,
    HistoryError,
    HistoryEvent,
    HistoryFile,
    Step,
    figures,
    read_history,
    verify,
    violations,
)
from dispatch.testing.recording import RecordingStorage

LEASE_S = 10.0


class Teller:
    """Tells a history, second by second."""

    def __init__(self) -> None:
        self.at = 0.0
        self.events: list[HistoryEvent] = []

    def tell(self, step: Step, task: str = "a", **facts: Any) -> None:
        self.events.append(HistoryEvent(at=self.at, step=step, task=task, **facts))
        self.at += 1.0

    def publish(self, task: str = "a", due: float | None = None, **facts: Any) -> None:
        self.tell(Step.OFFERED, task)
        self.tell(Step.PUBLISHED, task, due=self.at if due is None else due, **facts)

    def claim(self, epoch: int, task: str = "a", **facts: Any) -> None:
        given = {"due": 0.0, "max_retry": 2, "lease_until": self.at + LEASE_S, **facts}
        self.tell(Step.CLAIMED, task, epoch=epoch, worker="w", **given)

    def end(self, epoch: int, status: str = "succeeded", how: str = "done", **facts: Any) -> None:
        task = facts.pop("task", "a")
        self.tell(Step.ENDING, task, epoch=epoch, how=how)
        given = {"answer": "applied", "status": status, **facts}
        self.tell(Step.ENDED, task, epoch=epoch, how=how, **given)

    def drained(self, **statuses: str) -> None:
        for task, status in statuses.items():
            self.tell(Step.SEEN, task, epoch=9, status=status)
        self.tell(Step.DRAINED, "")

    @property
    def broken(self) -> list[str]:
        return [violation.invariant for violation in violations(self.events)]


def test_a_right_history_of_every_kind_passes() -> None:
    t = Teller()
    t.publish(max_retry=2)
    t.claim(1)
    t.tell(Step.RENEWED, epoch=1, lease_until=t.at + LEASE_S)
    t.end(1, "pending", "failed", due=20.0)
    t.at = 20.0
    t.claim(2, due=20.0)
    t.at = 40.0
    t.tell(Step.RESCUED, epoch=2, status="pending", due=41.0)
    t.end(2, how="done", answer="lost", status=None)  # the zombie came back
    t.claim(4, due=41.0)
    t.end(4, "pending", "snoozed", due=60.0)
    t.at = 60.0
    t.claim(5, due=60.0)
    t.end(5, "failed", "failed")
    t.end(5, answer="repeated", status=None)
    t.tell(Step.ALTERED, how="rerun")
    t.claim(6)
    t.end(6)
    t.publish("held")
    t.publish("forgotten")
    t.claim(1, "forgotten")
    t.end(1, task="forgotten")
    t.publish("stopped")
    t.tell(Step.ALTERED, "stopped", how="cancel")
    for slot in (1.0, 2.0):
        t.tell(Step.OFFERED, f"tick{slot}", cron="c", slot=slot)
        t.tell(Step.PUBLISHED, f"tick{slot}", cron="c", slot=slot)
    t.drained(a="succeeded", held="held", **{"tick1.0": "succeeded", "tick2.0": "cancelled"})
    verify(t.events)
    found = figures(t.events)
    assert (found.published, found.runs, found.redelivered) == (6, 6, 3)
    assert (found.rescued, found.refused, found.failed) == (1, 2, 0)


# ---- one broken history per invariant -----------------------------------------


def never_ended(t: Teller) -> None:
    t.publish()
    t.drained(a="pending")


def vanished(t: Teller) -> None:
    t.publish()
    t.claim(1)
    t.drained()


def settled_twice(t: Teller) -> None:
    t.publish()
    t.claim(1)
    t.end(1)
    t.end(1, "failed", "failed")


def settled_after_its_rescue(t: Teller) -> None:
    t.publish()
    t.claim(1)
    t.at = 30.0
    t.tell(Step.RESCUED, epoch=1, status="pending", due=30.0)
    t.end(1)


def the_same_fence_again(t: Teller) -> None:
    t.publish()
    t.claim(1)
    t.end(1, "pending", "failed", due=0.0)
    t.claim(1)


def a_fence_that_falls(t: Teller) -> None:
    t.publish()
    t.claim(3)
    t.end(3, "pending", "failed", due=0.0)
    t.claim(2)


def claimed_while_leased(t: Teller) -> None:
    t.publish()
    t.claim(1)
    t.claim(2)


def rescued_while_renewed(t: Teller) -> None:
    t.publish()
    t.claim(1)
    t.tell(Step.RENEWED, epoch=1, lease_until=100.0)
    t.at = 50.0
    t.tell(Step.RESCUED, epoch=1, status="pending", due=50.0)
    t.claim(3)


def rescued_without_a_lease(t: Teller) -> None:
    t.publish()
    t.claim(1, lease_until=None)
    t.at = 1e6
    t.tell(Step.RESCUED, epoch=1, status="pending", due=1e6)
    t.claim(3)


def retried_for_ever(t: Teller) -> None:
    t.publish()
    for epoch in (1, 2, 3, 4):
        t.claim(epoch)
        t.end(epoch, "pending", "failed", due=0.0)


def never_retried_is_never(t: Teller) -> None:
    t.publish(max_retry=0)
    t.claim(1, max_retry=0)
    t.end(1, "pending", "failed", due=0.0)
    t.claim(2, max_retry=2)


def early_by_its_own_word(t: Teller) -> None:
    t.publish()
    t.claim(1, due=99.0)


def early_by_the_publishers_word(t: Teller) -> None:
    t.publish(due=99.0)
    t.claim(1)


def early_after_a_retry(t: Teller) -> None:
    t.publish()
    t.claim(1)
    t.end(1, "pending", "failed", due=99.0)
    t.claim(2)


def early_after_a_rescue(t: Teller) -> None:
    t.publish()
    t.claim(1)
    t.at = 30.0
    t.tell(Step.RESCUED, epoch=1, status="pending", due=99.0)
    t.claim(3)


def out_of_nowhere(t: Teller) -> None:
    t.claim(1)


def before_it_was_offered(t: Teller) -> None:
    t.claim(1, due=None)
    t.publish(due=0.0)


def still_running(t: Teller) -> None:
    t.publish()
    t.claim(1)
    t.drained(a="running")


def two_of_a_tick(t: Teller) -> None:
    for task in ("a", "b"):
        t.tell(Step.OFFERED, task, cron="c", slot=60.0)
        t.tell(Step.PUBLISHED, task, cron="c", slot=60.0)


BROKEN: dict[str, list[Callable[[Teller], None]]] = {
    "what was published has ended": [never_ended, vanished],
    "at most one applied end per epoch": [settled_twice, settled_after_its_rescue],
    "fences strictly increase": [the_same_fence_again, a_fence_that_falls],
    "no two valid leases at one instant": [
        claimed_while_leased,
        rescued_while_renewed,
        rescued_without_a_lease,
    ],
    "counted attempts are at most 1 + max_retry + reruns": [
        retried_for_ever,
        never_retried_is_never,
    ],
    "nothing is claimed before it is due": [
        early_by_its_own_word,
        early_by_the_publishers_word,
        early_after_a_retry,
        early_after_a_rescue,
    ],
    "each claim has a publish": [out_of_nowhere, before_it_was_offered],
    "after a drain nothing is running": [still_running],
    ONE_TICK: [two_of_a_tick],
}


def test_every_invariant_has_its_broken_histories() -> None:
    assert [*INVARIANTS, ONE_TICK] == list(BROKEN)
    assert len(BROKEN) == 9


@pytest.mark.parametrize(
    ("invariant", "tell"),
    [(invariant, tell) for invariant, told in BROKEN.items() for tell in told],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_broken_history_breaks_its_invariant_and_no_other(
    invariant: str, tell: Callable[[Teller], None]
) -> None:
    t = Teller()
    tell(t)
    assert t.broken == [invariant]


# ---- what is in doubt is not broken ---------------------------------------------


def test_an_end_without_an_answer_is_given_the_benefit_of_the_doubt() -> None:
    t = Teller()
    t.publish()
    for epoch in range(1, 9):  # killed each time between handing back and writing that down
        t.claim(epoch)
        t.tell(Step.ENDING, epoch=epoch, how="handed_back")
    assert t.broken == []
    t.claim(9)
    t.tell(Step.ENDING, epoch=9, how="handed_back")
    t.tell(Step.ENDED, epoch=9, how="handed_back", answer="lost")
    t.claim(10)
    assert t.broken == ["no two valid leases at one instant"]


def test_a_repeated_settle_says_that_the_one_in_doubt_was_applied() -> None:
    t = Teller()
    t.publish()
    t.claim(1)
    t.tell(Step.ENDING, epoch=1, how="handed_back")
    t.end(1, how="handed_back", answer="repeated", status=None)
    t.claim(2)
    assert t.broken == []


def test_a_change_by_hand_lifts_what_was_said_before() -> None:
    t = Teller()
    t.publish(due=500.0, max_retry=0)
    t.tell(Step.ALTERED, how="patch", due=0.0, max_retry=1)
    t.claim(1)
    t.end(1, "pending", "failed", due=0.0)
    t.claim(2)
    t.end(2, "failed", "failed")
    t.tell(Step.ALTERED, how="rerun")
    t.claim(3)
    assert t.broken == []
    t.end(3, "failed", "failed")
    t.claim(4)
    assert t.broken == ["counted attempts are at most 1 + max_retry + reruns"]


def test_before_a_drain_nothing_need_have_ended() -> None:
    t = Teller()
    t.publish()
    t.tell(Step.SEEN, epoch=1, status="running")
    assert t.broken == []


def test_moments_may_be_off_by_the_clocks_error() -> None:
    t = Teller()
    early_by_its_own_word(t)
    assert violations(t.events, clock_error_s=100.0) == []


def test_the_story_says_what_happened() -> None:
    t = Teller()
    settled_twice(t)
    with pytest.raises(HistoryError) as caught:
        verify(t.events)
    assert str(caught.value) == "\n".join(
        [
            "1 broken invariants in this history",
            "task 'a': the run of epoch 1 was ended 2 times: done, failed",
            "  broken: at most one applied end per epoch",
            "    0.000000  offered",
            "    1.000000  published  due 1.0",
            "    2.000000  claimed    epoch 1, worker w, due 0.0, lease until 12.0, max retry 2",
            "    3.000000  ending     epoch 1, how done",
            "    4.000000  ended      epoch 1, how done, answer applied, status succeeded",
            "    5.000000  ending     epoch 1, how failed",
            "    6.000000  ended      epoch 1, how failed, answer applied, status failed",
        ]
    )
    [violation] = caught.value.violations
    assert violation.story == tuple(t.events)


def test_of_many_stories_the_first_are_told() -> None:
    t = Teller()
    for number in range(50):
        t.claim(1, f"t{number}")
    with pytest.raises(HistoryError, match=r"^50 broken invariants[\s\S]*\.\.\. and 45 more$"):
        verify(t.events)


# ---- files of several processes -----------------------------------------------------


def test_files_are_read_back_in_the_order_of_moments(tmp_path: Path) -> None:
    t = Teller()
    t.publish(max_retry=0)
    t.claim(1, due=None)
    t.end(1)
    t.drained(a="succeeded")
    paths = [tmp_path / "one", tmp_path / "two"]
    with HistoryFile(paths[0]) as one, HistoryFile(paths[1]) as two:
        for number, event in enumerate(t.events):
            (two if number % 2 else one)(event)
    assert read_history(*paths) == t.events
    assert (paths[0].stat().st_mode & 0o777) == 0o600
    with paths[1].open("a") as file:
        file.write('{"at": 99.0, "step": "cla')  # the power went
    assert read_history(*paths) == t.events


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    event = HistoryEvent(at=1.0, step=Step.OFFERED, task='a"\n\u2028')
    for _ in range(2):
        with HistoryFile(tmp_path / "h") as file:
            file(event)
    assert read_history(tmp_path / "h") == [event, event]


# ---- recording -----------------------------------------------------------------------


def test_the_recorder_has_every_method_as_the_hook_declares_it() -> None:
    for name, method in inspect.getmembers(Storage, inspect.isfunction):
        if not name.startswith("_"):
            assert getattr(RecordingStorage, name) is not method, f"{name} stops at the recorder"
            own = inspect.signature(getattr(RecordingStorage, name))
            assert own == inspect.signature(method), name


async def test_every_call_reaches_the_storage_inside_unchanged() -> None:
    inside = MemoryStorage(Clock(wall=lambda: 1_000.0))
    history: list[HistoryEvent] = []
    storage = RecordingStorage(inside, history.append)
    new = NewTask(id="a", queue="q", type="t", payload=b"{}", max_retry=0)
    await storage.declare([QueueRecord(name="q")])
    assert await storage.queues() == await inside.queues()
    assert await storage.alter_queue("q", concurrency=3)
    await storage.enqueue([new])
    bell = Bell()
    with storage.watch(bell, Topic(TopicKind.TASK, "a")):
        [claim] = (await storage.claim([Want(queue="q", limit=1)], worker="w", lease=9.0)).claims
        assert await storage.progress(("a", claim.epoch), b"50")
        assert [answer.held for answer in await storage.renew([("a", 1)], lease=20.0)] == [True]
        await storage.turn([Transition("a", 1, TransitionKind.DONE)], [], worker="w", lease=9.0)
        with trio.fail_after(5):
            await bell.wait()
    assert await storage.count(All(), by=["status"]) == {("succeeded",): 1}
    assert await storage.alter(All(), Change(action="rerun"), dry_run=True) == ["a"]
    assert await storage.history("a") == await inside.history("a")
    assert await storage.prune(PruneSpec(keep=5)) == 0
    worker = WorkerRecord(id="w", host="h", pid=1, started_at=0.0, seen_at=0.0)
    await storage.beat(worker)
    assert [one.id for one in await storage.workers()] == ["w"]
    await storage.forget("w")
    await storage.put_cron(CronRecord(name="c", definition="d", template=new))
    tick = attrs.evolve(new, id="tick", cron="c", slot=60.0)
    await storage.advance_cron("c", expected=None, last_slot=60.0, next_slot=None, tasks=[tick])
    assert await storage.alter_cron("c", paused_reason="because")
    assert await storage.crons("c") == await inside.crons()
    assert await storage.remove_cron("c")
    assert (storage.now(), storage.slice_s, storage.beat_s) == (1_000.0, inside.slice_s, math.inf)
    assert (storage.durable, storage.immediate) == (False, True)
    assert [(event.step, event.task) for event in history] == [
        (Step.OFFERED, "a"),
        (Step.PUBLISHED, "a"),
        (Step.CLAIMED, "a"),
        (Step.RENEWED, "a"),
        (Step.ENDING, "a"),
        (Step.ENDED, "a"),
        (Step.OFFERED, "tick"),
        (Step.PUBLISHED, "tick"),
    ]
    assert history[2].lease_until == 1_009.0
    assert history[5].status == "succeeded"


async def test_a_clock_that_is_only_about_right_accuses_nobody() -> None:
    """The database's moments are exact; those before a call are written as early as they may be."""

    class Remote(MemoryStorage):
        @property
        def clock_error_s(self) -> float:
            return 0.25

    history: list[HistoryEvent] = []
    storage = RecordingStorage(FaultyStorage(Remote(Clock(wall=lambda: 1_000.0))), history.append)
    await storage.declare([QueueRecord(name="q")])
    await storage.enqueue([NewTask(id="a", queue="q", type="t", payload=b"{}")])
    claimed = await storage.claim([Want(queue="q", limit=1)], worker="w", lease=9.0)
    await storage.renew([("a", 1)], lease=9.0)
    await storage.settle([Transition("a", 1, TransitionKind.DONE)])
    assert len(claimed.claims) == 1
    moments = {event.step: event.at for event in history}
    assert (moments[Step.OFFERED], moments[Step.RENEWED], moments[Step.ENDING]) == (999.75,) * 3
    assert moments[Step.CLAIMED] == 1_000.0
    verify(history)


# ---- the real engine, well and with planted bugs -------------------------------------


@attrs.frozen
class Job:
    n: int


JOB = TaskType("q", "job", Job)


async def a_bad_day(history: list[HistoryEvent], seed: int) -> None:
    """Two workers, of which one is killed and one sleeps past its leases, and one that tidies up.

    Lives on a storage whose claims a zombie may settle later.
    """
    chance = random.Random(seed)
    inside = MemoryStorage(keep_finished=10_000)
    storage = RecordingStorage(inside, history.append)

    async def handler(task: QueueTask[Job]) -> None:
        await trio.sleep(chance.choice([0.0, 0.1, 3.0]))
        if chance.random() < 0.3:
            raise ValueError("no")

    zombies: list[tuple[str, int]] = []
    async with trio.open_nursery() as nursery:
        dispatcher = Dispatcher(storage, lease=2.0, observers=())
        dispatcher.consumer.register_queue(
            "q", TaskQueueConfig(concurrency=3, max_retry=3, retry_delay=0.5)
        )
        dispatcher.consumer.register_handler(JOB, handler)
        await nursery.start(dispatcher.serve)
        for n in range(40):
            await dispatcher.publisher.publish(JOB(Job(n), delay=chance.choice([0.0, 5.0])))
            if n % 4 == 0:  # a worker that claims and is never heard of in time
                want = Want(queue="q", limit=1, max_retry=3)
                for claim in (await storage.claim([want], worker="zombie", lease=1.0)).claims:
                    zombies.append((claim.id, claim.epoch))
            await trio.sleep(0.2)
        # While those that were rescued run again.
        for _ in range(20):
            await trio.sleep(0.5)
            await storage.settle([Transition(*zombie, TransitionKind.DONE) for zombie in zombies])
        await dispatcher.drain()
        await storage.drained()
        dispatcher.close()


@pytest.mark.parametrize("seed", range(3))
async def test_the_engine_on_a_bad_day_breaks_nothing(seed: int, autojump_clock: object) -> None:
    history: list[HistoryEvent] = []
    with trio.fail_after(10_000):
        await a_bad_day(history, seed)
    verify(history)
    found = figures(history)
    assert found.published == 40
    assert found.redelivered > 0
    assert found.rescued > 0
    assert found.refused > 0


def no_fence(record: TaskRecord | None, epoch: int) -> SettleAnswer:
    """A planted bug: whoever holds the task's name may end its run."""
    if record is None or record.status.value != "running":
        return SettleAnswer.LOST
    return SettleAnswer.APPLIED


async def test_without_the_fence_it_breaks(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    history: list[HistoryEvent] = []
    monkeypatch.setattr(memory_module.lifecycle, "fence", no_fence)
    with trio.fail_after(10_000):
        await a_bad_day(history, 0)
    assert "at most one applied end per epoch" in {one.invariant for one in violations(history)}


async def test_a_claim_that_overlooks_the_due_time_breaks(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: MemoryStorage, row: Any, want: Want, now: float, *rest: Any) -> Claim:
        return honest(self, row, want, now - 0.3, *rest)

    honest = MemoryStorage._start  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(MemoryStorage, "_start", start)
    history: list[HistoryEvent] = []
    with trio.fail_after(10_000):
        await a_bad_day(history, 1)
    assert "nothing is claimed before it is due" in {one.invariant for one in violations(history)}


async def test_a_task_that_is_dropped_after_its_publishing_is_missed(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    history: list[HistoryEvent] = []
    storage = RecordingStorage(MemoryStorage(), history.append)
    await storage.declare([QueueRecord(name="q")])
    await storage.enqueue([NewTask(id=id_, queue="q", type="t", payload=b"") for id_ in "ab"])
    await storage.alter(Ids("a"), Change(action="cancel"))
    await storage.inner.alter(Ids("b"), Change(action="cancel"))
    await storage.inner.prune(PruneSpec(keep=0))
    await storage.drained()
    [violation] = violations(history)
    assert (violation.task, violation.invariant) == ("task 'b'", "what was published has ended")
