"""The memory storage: the conformance kit, and what is its own."""

# pyright: reportPrivateUsage=false
# One test looks into the indexes, whose growth nothing public shows.

from __future__ import annotations

import re
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import trio

from dispatch.bell import Bell
from dispatch.clock import Clock
from dispatch.errors import InvalidConfigError
from dispatch.records import NewTask, TaskRecord, Transition, TransitionKind
from dispatch.storage import memory as memory_module
from dispatch.storage import memory_registry as registry_module
from dispatch.storage import memory_rows as rows_module
from dispatch.storage import ready as ready_module
from dispatch.storage.memory import MemoryStatistics, MemoryStorage
from dispatch.storage.protocol import (
    Change,
    CronRecord,
    QueueRecord,
    Storage,
    Topic,
    TopicKind,
    Want,
)
from dispatch.storage.query import (
    All,
    Ids,
    Order,
    Priorities,
    PruneSpec,
    Queues,
    Statuses,
    Where,
    matches,
)
from dispatch.testing.conformance import StorageConformance
from dispatch.testing.workbench import Workbench, unique


class Wall:
    """A wall clock that moves when told."""

    def __init__(self) -> None:
        self.seconds = 1_700_000_000.0

    def __call__(self) -> float:
        return self.seconds

    async def advance(self, seconds: float) -> None:
        self.seconds = round(self.seconds + seconds, 6)


class TestMemoryStorage(StorageConformance):
    @asynccontextmanager
    async def open_storage(
        self,
    ) -> AsyncGenerator[tuple[Storage, Callable[[float], Awaitable[None]]]]:
        wall = Wall()
        yield MemoryStorage(Clock(wall=wall)), wall.advance


def memory(**settings: int) -> tuple[MemoryStorage, Wall]:
    wall = Wall()
    return MemoryStorage(Clock(wall=wall), **settings), wall


def task(id_: str, **fields: Any) -> NewTask:
    given: dict[str, Any] = {"queue": "q", "type": "t", "payload": b"{}", **fields}
    return NewTask(id=id_, **given)


# ---- what cannot run costs nothing ------------------------------------------

CROWD = 100_000


async def lines_of_a_claim(storage: MemoryStorage) -> tuple[list[str], int]:
    """The ids a claim of two takes, and how many lines of Python it ran."""
    lines = 0

    def count(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    want = Want(queue="q", limit=2, types={"t": 1}, tags=frozenset({"x"}))
    before = sys.gettrace()
    sys.settrace(count)
    try:
        claimed = await storage.claim([want], worker="w", lease=30.0)
    finally:
        sys.settrace(before)
    return [claim.id for claim in claimed.claims], lines


@pytest.mark.parametrize(
    "crowd",
    [
        {"delay": 1_000.0},
        {"key": "k"},
        {"type": "alien"},
        {"type": "alien{}"},
        {"version": 2},
        {"tags": ("gpu",)},
        {"tags": ("gpu{}",)},
        {"held": True},
    ],
    ids=lambda crowd: "-".join(map(str, next(iter(crowd.items())))),
)
@pytest.mark.parametrize("size", [10_000, pytest.param(100_000, marks=pytest.mark.battery)])
async def test_a_crowd_that_cannot_run_costs_a_claim_no_work(crowd: dict[str, Any], size: int) -> None:
    storage, _ = memory()
    await storage.declare([QueueRecord(name="q", keyed=True)])
    await storage.enqueue([task("head", key="k"), *(task(f"w{n}") for n in range(6))])
    assert (await lines_of_a_claim(storage))[0] == ["head", "w0"]
    alone = await lines_of_a_claim(storage)
    assert alone[0] == ["w1", "w2"]
    fields = dict(crowd)
    held = fields.pop("held", False)
    tasks: list[NewTask] = []
    for number in range(size):
        if "type" in crowd:
            fields["type"] = crowd["type"].format(number)
        if "tags" in crowd:
            fields["tags"] = (crowd["tags"][0].format(number),)
        tasks.append(task(f"c{number}", priority=3, **fields))
    await storage.enqueue(tasks)
    if held:
        assert len(await storage.alter(Priorities(3), Change(action="hold"))) == size
    crowded = await lines_of_a_claim(storage)
    assert crowded[0] == ["w3", "w4"]
    # A few stale entries may be left, one sweep's worth at most.
    assert crowded[1] <= alone[1] + (400 if held else 20)


# ---- what it keeps -----------------------------------------------------------


async def run_to_the_end(storage: MemoryStorage, kind: TransitionKind, *ids: str) -> None:
    await storage.enqueue([task(id_) for id_ in ids])
    claimed = await storage.claim([Want(queue="q", limit=len(ids))], worker="w", lease=30.0)
    await storage.settle([Transition(claim.id, claim.epoch, kind) for claim in claimed.claims])


async def ids_of(storage: MemoryStorage) -> list[str]:
    return [record.id for record in (await storage.find(All())).records]


async def test_the_newest_finished_tasks_are_kept_and_dead_letters_all() -> None:
    storage, _ = memory(keep_finished=2)
    await storage.declare([QueueRecord(name="q")])
    await run_to_the_end(storage, TransitionKind.FAILED, "f1", "f2", "f3")
    await run_to_the_end(storage, TransitionKind.DONE, "a", "b")
    await run_to_the_end(storage, TransitionKind.CANCELLED, "c")
    assert await ids_of(storage) == ["f1", "f2", "f3", "b", "c"]
    assert await storage.history("a") == []
    assert storage.statistics().finished == 2
    assert storage.statistics().dead_letters == 3


async def test_a_rerun_task_is_not_among_the_finished() -> None:
    storage, _ = memory(keep_finished=1)
    await storage.declare([QueueRecord(name="q")])
    await run_to_the_end(storage, TransitionKind.DONE, "a")
    await storage.alter(All(), Change(action="rerun"))
    await storage.enqueue([task("b")])
    await storage.alter(All(), Change(action="cancel"))
    assert await ids_of(storage) == ["b"]


async def test_an_awaited_task_is_kept_until_nobody_watches_it_any_more() -> None:
    storage, _ = memory(keep_finished=1)
    await storage.declare([QueueRecord(name="q")])
    first, second = Bell(), Bell()
    with storage.watch(first, Topic(TopicKind.TASK, "a"), Topic(TopicKind.TASK, "b")):
        with storage.watch(second, Topic(TopicKind.TASK, "a")):
            await run_to_the_end(storage, TransitionKind.DONE, "a", "b", "c", "d", "e")
            assert second.is_rung
            assert await ids_of(storage) == ["a", "b", "e"]
            assert storage.statistics().finished == 3
            assert await storage.count(Statuses("succeeded")) == {(): 3}
            assert await storage.count(Statuses("pending")) == {}
            assert await storage.alter(Ids("b"), Change(action="rerun")) == ["b"]
        assert await ids_of(storage) == ["a", "b", "e"]
        assert await storage.prune(PruneSpec(keep=1)) == 1
        assert await ids_of(storage) == ["b", "e"]
        await storage.alter(Ids("b"), Change(action="cancel"))
        assert await ids_of(storage) == ["b"]
        await run_to_the_end(storage, TransitionKind.DONE, "f")
        assert await ids_of(storage) == ["b", "f"]
    assert await ids_of(storage) == ["f"]
    assert storage.statistics().finished == 1


async def test_pruning_by_age_sees_past_what_ended_before_the_clock_went_back() -> None:
    storage, wall = memory()
    await storage.declare([QueueRecord(name="q")])
    await run_to_the_end(storage, TransitionKind.DONE, "new")
    await run_to_the_end(storage, TransitionKind.FAILED, "new dead")
    await wall.advance(-3_600.0)
    await run_to_the_end(storage, TransitionKind.DONE, "old 1", "old 2")
    await run_to_the_end(storage, TransitionKind.FAILED, "old dead")
    await wall.advance(3_600.0)
    await run_to_the_end(storage, TransitionKind.DONE, "newest")
    spec = PruneSpec(age_s=60.0, dead_letters=True, limit=2)
    assert await storage.prune(spec, dry_run=True) == 2
    assert [await storage.prune(spec) for _ in range(3)] == [2, 1, 0]
    assert await ids_of(storage) == ["new", "new dead", "newest"]


async def test_the_newest_by_the_clock_are_kept_when_it_went_back() -> None:
    storage, wall = memory()
    await storage.declare([QueueRecord(name="q")])
    await run_to_the_end(storage, TransitionKind.DONE, "new")
    await wall.advance(-3_600.0)
    await run_to_the_end(storage, TransitionKind.DONE, "old")
    assert await storage.prune(PruneSpec(keep=1)) == 1
    assert await ids_of(storage) == ["new"]
    await wall.advance(60.0)
    await run_to_the_end(storage, TransitionKind.DONE, "older than new")
    assert await storage.prune(PruneSpec(keep=1)) == 1
    assert await ids_of(storage) == ["new"]


async def test_nothing_finished_is_kept_if_so_wanted() -> None:
    storage, _ = memory(keep_finished=0)
    await storage.declare([QueueRecord(name="q")])
    await run_to_the_end(storage, TransitionKind.DONE, "a")
    assert await ids_of(storage) == []
    expected = r"^\[1012\] MemoryStorage: keep_finished must be at least 0, got -1$"
    with pytest.raises(InvalidConfigError, match=expected):
        MemoryStorage(keep_finished=-1)


async def test_looking_for_open_tasks_judges_no_ended_one(monkeypatch: pytest.MonkeyPatch) -> None:
    storage, _ = memory()
    await storage.declare([QueueRecord(name="q")])
    await storage.enqueue([NewTask(id=f"t{n}", queue="q", type="x", payload=b"{}") for n in range(300)])
    await storage.alter(Ids("t7"), Change(action="hold"))
    claimed = await storage.claim([Want(queue="q", limit=298, types={"x": 1})], worker="w", lease=None)
    kinds = (TransitionKind.FAILED, TransitionKind.DONE)
    await storage.settle(
        [Transition(each.id, each.epoch, kinds[n % 2]) for n, each in enumerate(claimed.claims[:297])]
    )
    judged: list[str] = []

    def seen(where: Where, record: TaskRecord, now: float) -> bool:
        judged.append(record.id)
        return matches(where, record, now)

    monkeypatch.setattr(memory_module, "matches", seen)
    everything = Statuses("pending", "running", "held")
    waiting = All(Queues("q"), Statuses("pending"))
    assert await storage.count(everything) == {(): 3}
    assert await storage.count(everything | waiting, bound=9) == {(): 3}
    assert [each.id for each in (await storage.find(waiting)).records] == ["t299"]
    assert set(judged) == {"t7", "t298", "t299"}
    # A condition that also means ended ones, or says nothing of the status, looks at all.
    assert await storage.count(waiting | Queues("q")) == {(): 300}
    assert await storage.count(~waiting) == {(): 299}
    await storage.alter(everything, Change(action="cancel"))
    judged.clear()
    assert await storage.count(everything) == {(): 1}, "the running one is asked to stop"
    assert judged == ["t298"]


async def test_asking_who_runs_where_nobody_does_judges_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Workbench(MemoryStorage(), trio.sleep)
    await bench.declare()
    await bench.publish("a", "b")
    running = All(Queues("q"), Statuses("running"))
    await bench.claim()
    assert await bench.storage.count(running) == {(): 1}
    [record] = (await bench.storage.find(running)).records
    await bench.storage.settle([Transition(record.id, record.epoch, TransitionKind.DONE)])

    def judged(*_: object) -> bool:
        raise AssertionError("a task was looked at")

    monkeypatch.setattr(memory_module, "matches", judged)
    assert await bench.storage.count(running, bound=1) == {}


async def test_indexes_do_not_grow_with_what_has_passed() -> None:
    storage, wall = memory(keep_finished=10)
    await storage.declare([QueueRecord(name="q", keyed=True)])
    await storage.enqueue([task("head", key="k", delay=1e6)])
    for number in range(3_000):
        await run_to_the_end(storage, TransitionKind.DONE, f"r{number}")
        delayed = task(f"d{number}", delay=1e5, key=f"k{number}")
        waiting = task(f"w{number}", type=f"t{number}", unique=unique(f"u{number}"))
        await storage.enqueue([delayed, waiting, task(f"k{number}", key="k")])
        await storage.alter(~Ids("head"), Change(action="cancel"))
        await wall.advance(0.01)
    sizes = [
        len(storage._order),
        len(storage._leases),
        len(storage._open_by_unique) + len(storage._ended_by_unique),
    ]
    queue = storage._queues["q"]
    sizes += [len(queue._later), len(queue._lines), len(queue._lines["k"].heap)]
    sizes += [view.entries for view in queue._views.values()]
    sizes += [len(view.groups) for view in queue._views.values()]
    assert max(sizes) <= 1_200
    assert storage._leased == 0


# ---- the rest ----------------------------------------------------------------


async def test_what_waits_in_the_line_of_its_key_is_claimed_after_a_new_declaration() -> None:
    storage, _ = memory()
    await storage.declare([QueueRecord(name="q", keyed=True)])
    await storage.enqueue([task("a1", key="a"), task("a2", key="a"), task("b1", key="b")])
    await storage.declare([QueueRecord(name="q", keyed=True, max_waiting=100)])
    claimed = await storage.claim([Want(queue="q", limit=10)], worker="w", lease=30.0)
    assert [claim.id for claim in claimed.claims] == ["a1", "b1"]
    assert (await storage.claim([Want(queue="q", limit=10)], worker="w", lease=30.0)).claims == []
    [first, _] = claimed.claims
    await storage.settle([Transition(first.id, first.epoch, TransitionKind.DONE)])
    [second] = (await storage.claim([Want(queue="q", limit=10)], worker="w", lease=30.0)).claims
    assert second.id == "a2"


async def test_of_a_task_that_snoozes_for_ever_the_last_runs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "HISTORY_LIMIT", 3)
    storage, _ = memory()
    await storage.declare([QueueRecord(name="q")])
    await storage.enqueue([task("t")])
    for _ in range(6):
        [claim] = (await storage.claim([Want(queue="q", limit=1)], worker="w", lease=30.0)).claims
        await storage.settle([Transition("t", claim.epoch, TransitionKind.SNOOZED, retry_in=0.0)])
    assert [run.epoch for run in await storage.history("t")] == [3, 4, 5, 6]



async def test_it_shows_what_it_holds() -> None:
    storage, _ = memory()
    await storage.declare([QueueRecord(name="q"), QueueRecord(name="r")])
    await storage.enqueue([task("a"), task("b", delay=9.0), task("c", queue="r")])
    await storage.claim([Want(queue="r", limit=1)], worker="w", lease=30.0)
    assert repr(storage) == "<MemoryStorage tasks=3 queues=2>"
    assert storage.statistics() == MemoryStatistics(
        tasks=3,
        waiting=1,
        leases=1,
        finished=0,
        dead_letters=0,
        queues=2,
        workers=0,
        crons=0,
    )
    assert not storage.durable


async def test_virtual_time_is_its_time(autojump_clock: object) -> None:
    storage = MemoryStorage()
    await storage.declare([QueueRecord(name="q")])
    await storage.enqueue([task("a", delay=86_400.0)])
    claimed = await storage.claim([Want(queue="q", limit=1)], worker="w", lease=30.0)
    assert claimed.next_due is not None
    await Bell().wait(claimed.next_due - storage.now())
    claimed = await storage.claim([Want(queue="q", limit=1)], worker="w", lease=30.0)
    assert [claim.id for claim in claimed.claims] == ["a"]


async def test_the_hot_path_lets_nobody_else_run() -> None:
    storage, _ = memory()
    await storage.declare([QueueRecord(name="q")])
    await storage.enqueue([task("a")])
    others_ran = trio.Event()

    async def other() -> None:
        others_ran.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        claimed = await storage.claim([Want(queue="q", limit=1)], worker="w", lease=30.0)
        [claim] = claimed.claims
        await storage.renew([("a", claim.epoch)], lease=30.0)
        await storage.settle([Transition("a", claim.epoch, TransitionKind.DONE)])
        assert not others_ran.is_set()


async def test_of_a_run_of_publishing_every_eighth_lets_others_run() -> None:
    storage = MemoryStorage()
    await storage.declare([QueueRecord(name="q")])
    ours, yielded = trio.lowlevel.current_task(), list[int]()

    class Yields(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            if task is ours:
                yielded.append(number)

    trio.lowlevel.add_instrument(yields := Yields())
    for number in range(25):
        await storage.enqueue([task(f"{number}")])
        await storage.breathe()
    trio.lowlevel.remove_instrument(yields)
    assert yielded == [0, 8, 16, 24]


@pytest.mark.parametrize("method", ["enqueue", "claim", "settle", "alter", "prune", "advance_cron"])
async def test_a_cancelled_call_has_done_nothing(method: str) -> None:
    storage, _ = memory()
    await storage.declare([QueueRecord(name="q")])
    await storage.enqueue([task("a"), task("b")])
    await storage.put_cron(CronRecord(name="c", definition="", template=task("")))
    await storage.claim([Want(queue="q", limit=1)], worker="w", lease=None)
    await storage.alter(Ids("b"), Change(action="cancel"))
    before = (await storage.find(All())).records
    arguments: dict[str, Callable[[], Awaitable[object]]] = {
        "enqueue": lambda: storage.enqueue([task("new")]),
        "claim": lambda: storage.claim([Want(queue="q", limit=1)], worker="w", lease=None),
        "settle": lambda: storage.settle([Transition("a", 1, TransitionKind.DONE)]),
        "alter": lambda: storage.alter(All(), Change(action="rerun")),
        "prune": lambda: storage.prune(PruneSpec(keep=0)),
        "advance_cron": lambda: storage.advance_cron(
            "c", expected=None, last_slot=1.0, next_slot=None, tasks=[task("new")]
        ),
    }
    with trio.CancelScope() as scope:
        scope.cancel()
        await arguments[method]()
    assert scope.cancelled_caught
    assert (await storage.find(All())).records == before


def test_only_the_table_of_states_changes_a_state() -> None:
    for module in (memory_module, rows_module, ready_module, registry_module):
        text = Path(module.__file__ or "").read_text()
        assert re.findall(r"\.(status|epoch|attempt)\s*[-+]?=[^=]", text) == []


def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the rows that are matched from now on, as a list that grows."""
    looked: list[str] = []

    def matched(where: Where, record: TaskRecord, now: float) -> bool:
        looked.append(record.id)
        return matches(where, record, now)

    monkeypatch.setattr(memory_module, "matches", matched)
    return looked


async def test_what_runs_is_found_without_matching_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = MemoryStorage()
    await storage.declare([QueueRecord(name="q"), QueueRecord(name="r")])
    for queue in ("q", "r"):
        tasks = [NewTask(id=f"{queue}{n}", queue=queue, type="t", payload=b"{}") for n in range(100)]
        await storage.enqueue(tasks)
        want = Want(queue=queue, limit=2, ids=frozenset({f"{queue}7", f"{queue}99"}))
        await storage.claim([want], worker="w", lease=None)
    looked = looked_at(monkeypatch)
    where = All(Queues("q"), Statuses("running"))
    assert await storage.count(where, bound=10) == {(): 2}
    assert [record.id for record in (await storage.find(where)).records] == ["q7", "q99"]
    assert len(looked) == 4


async def test_a_quiet_queue_is_searched_without_a_look_at_a_crowded_one(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = MemoryStorage()
    await storage.declare([QueueRecord(name="crowd"), QueueRecord(name="quiet")])
    for n in range(100):
        queue = "quiet" if n % 33 == 0 else "crowd"
        await storage.enqueue([NewTask(id=f"{queue}{n}", queue=queue, type="t", payload=b"{}")])
    looked = looked_at(monkeypatch)
    where = All(Queues("quiet"), Statuses("due"))
    assert [record.id for record in (await storage.find(where)).records] == ["quiet0", "quiet33", "quiet66", "quiet99"]
    page = await storage.find(where, order=Order.NEWEST, limit=2)
    assert [record.id for record in page.records] == ["quiet99", "quiet66"]
    page = await storage.find(where, order=Order.NEWEST, limit=2, after=page.cursor)
    assert [record.id for record in page.records] == ["quiet33", "quiet0"]
    assert await storage.count(Queues("quiet")) == {(): 4}
    assert await storage.count(Queues("never")) == {}
    assert len({*looked}) == 4


async def test_a_queue_lets_go_of_what_was_pruned() -> None:
    storage = MemoryStorage(keep_finished=10)
    await storage.declare([QueueRecord(name="q"), QueueRecord(name="r")])
    await storage.enqueue([NewTask(id="stays", queue="r", type="t", payload=b"{}")])
    want = Want(queue="q", limit=500)
    for turn in range(20):
        await storage.enqueue([NewTask(id=f"{turn}-{n}", queue="q", type="t", payload=b"{}") for n in range(500)])
        claims = (await storage.claim([want], worker="w", lease=None)).claims
        await storage.settle([Transition(claim.id, claim.epoch, TransitionKind.DONE) for claim in claims])
        assert len(storage._queues["q"].rows) <= 2_100
    assert await storage.count(Queues("q")) == {(): 10}
    assert await storage.count(All(Queues("q", "r"))) == {(): 11}
    assert [record.id for record in (await storage.find(Queues("r"))).records] == ["stays"]


async def test_without_being_told_memory_keeps_ten_thousand_ended_tasks_and_the_dead_letters() -> None:
    storage = MemoryStorage()
    await storage.declare([QueueRecord(name="q")])
    crowd = [task(f"{n}") for n in range(10_002)]
    await storage.enqueue(crowd)
    claims = (await storage.claim([Want(queue="q", limit=len(crowd))], worker="w", lease=None)).claims
    dead, *done = claims
    await storage.settle([Transition(dead.id, dead.epoch, TransitionKind.FAILED)])
    await storage.settle([Transition(claim.id, claim.epoch, TransitionKind.DONE) for claim in done])
    assert storage.statistics().finished == 10_000
    assert await storage.count(All()) == {(): 10_001}
    assert await storage.count(Ids("0", "1", "2")) == {(): 2}
    assert (await storage.find(Ids("1"))).records == []
