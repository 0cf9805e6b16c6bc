"""Seeded simulation: several dispatchers on one storage, everything that can go wrong, and a judge.

    simulate(seed)            # returns the figures, or raises SimulationError with a short story

Theory of operation. A seed makes a *plan*, a list of actions at moments of
virtual time: tasks are published whose payloads say how each attempt will go,
processes crash, freeze, stop and come back, the storage fails before or after a
step, queues are paused, tasks cancelled, held and rerun, cron entries come and
go. The plan is then played on the real engine, under trio's mock clock, over
one recorded storage that all processes share. In the end the faults stop, what
was paused goes on, every process is back, and everything that can run must end
in time. The recorded history is held to the invariants of
`dispatch.testing.history`, and to two more: that tasks of one key do not
overlap, and that what succeeded has a run whose handler came to its end.

The same plan and seed give the same run, action by action: ids, jitter and
trio's own scheduling are drawn from the seed. A plan that fails is shrunk by
leaving actions out as long as it goes on failing.
"""

from __future__ import annotations

import importlib
import logging
import random
import traceback
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from math import inf
from typing import Any, Final, cast

import attrs
import trio
import trio.testing

from dispatch.clock import Clock
from dispatch.dispatcher import Dispatcher
from dispatch.errors import Cancel, DispatchError, PermanentError, Snooze
from dispatch.retry import RetryPolicy
from dispatch.run import Run
from dispatch.storage.memory import MemoryStorage
from dispatch.storage.protocol import Change, Storage
from dispatch.storage.query import All, Ids, Statuses, dead_letters
from dispatch.tasks import Priority, QueueTask, TaskQueueConfig, TaskType
from dispatch.testing.faults import FaultyStorage
from dispatch.testing.history import (
    HistoryEvent,
    HistoryFigures,
    Step,
    figures,
    verify,
)
from dispatch.testing.recording import RecordingStorage

__all__ = ["Action", "SimulationError", "plan_of", "play", "shrink", "simulate"]

HORIZON_S: Final = 300.0
"""Actions happen in the first five minutes."""
PATIENCE_S: Final = 1_800.0
"""After the last fault, everything must have ended within so much virtual time."""
START: Final = 1_774_656_000.0
"""Virtual time begins the day before clocks go forward in Europe in 2026."""
LEASE_S: Final = 10.0
PROCESSES: Final = 3
SHRINK_RUNS: Final = 200

PLAIN: Final = "plain"
KEYED: Final = "keyed"

OpenStorage = Callable[[Clock], AbstractAsyncContextManager[Storage]]


@attrs.frozen
class Job:
    """What a simulated task does: one word per attempt, the last one again and again."""

    script: tuple[str, ...] = ("ok",)


JOBS: Final = {name: TaskType(name, "job", Job) for name in (PLAIN, KEYED)}


@attrs.frozen
class Action:
    """One thing that happens: when, in seconds from the start, what, and to whom."""

    at: float
    what: str
    who: Any = None
    how: Any = None

    def __str__(self) -> str:
        words = [self.what, *(str(word) for word in (self.who, self.how) if word is not None)]
        return f"{self.at:9.3f} s  {' '.join(words)}"


class SimulationError(AssertionError):
    """A plan whose run broke a promise: the seed, the story, and what is wrong."""

    def __init__(self, seed: int, plan: Sequence[Action], problem: BaseException) -> None:
        self.seed: Final = seed
        self.plan: Final = tuple(plan)
        self.problem: Final = problem
        story = "\n".join(f"  {action}" for action in plan) or "  (nothing happens)"
        super().__init__(f"seed {seed} fails with {len(plan)} actions:\n{story}\n{_told(problem)}")


def _told(problem: BaseException) -> str:
    return "".join(traceback.format_exception_only(problem)).rstrip()


def _bare(problem: BaseException) -> BaseException:
    """The exception in nursery around nursery, where it is alone."""
    while isinstance(problem, BaseExceptionGroup):
        inner: list[BaseException] = list(problem.exceptions)  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
        if len(inner) > 1:
            break
        problem = inner[0]
    return cast("BaseException", problem)


# ---- the plan -----------------------------------------------------------------------

WEIGHTS: Final = {
    "publish": 30,
    "batch": 6,
    "cancel": 5,
    "hold": 3,
    "resume": 3,
    "rerun": 4,
    "pause": 3,
    "crash": 7,
    "stop": 4,
    "freeze": 4,
    "fault": 14,
    "outage": 3,
    "cron": 3,
    "uncron": 2,
}
"""How often each action comes, compared with the others."""
ENDINGS: Final = ("ok", "ok", "ok", "fail", "permanent", "cancel", "spawn")
STEPS: Final = ("fail", "fail", "snooze", "sleep 1", "sleep 25", "hang")


def plan_of(seed: int, length: int = 40) -> list[Action]:
    """The actions that a seed stands for, in order of time."""
    dice = random.Random(f"plan {seed}")  # noqa: S311 - dice, no secret
    publishes = 0
    plan: list[Action] = []
    for at in sorted(round(dice.uniform(0, HORIZON_S), 3) for _ in range(length)):
        what = dice.choices(
            tuple(WEIGHTS), weights=tuple(WEIGHTS.values())
        )[0]
        who: Any = dice.randrange(PROCESSES)
        how: Any = None
        if what in ("publish", "batch"):
            how = [_options(dice) for _ in range(1 if what == "publish" else dice.randint(2, 8))]
            publishes += len(how)
        elif what in ("cancel", "hold", "resume"):
            who = dice.randrange(publishes) if publishes else 0
        elif what == "pause":
            who, how = dice.choice((PLAIN, KEYED)), round(dice.uniform(1, 60), 3)
        elif what in ("crash", "stop", "freeze", "outage"):
            how = round(dice.uniform(0, 60), 3)
        elif what == "fault":
            method = dice.choice(("enqueue", "turn", "turn", "turn", "renew", "rescue", None))
            how = (method, dice.randint(1, 3), dice.random() < 0.5)
        elif what in ("cron", "uncron"):
            how = dice.choice(("often", "seldom"))
        plan.append(Action(at, what, who, how))
    return plan


def _options(dice: random.Random) -> dict[str, Any]:
    queue = dice.choice((PLAIN, PLAIN, KEYED))
    steps = [dice.choice(STEPS) for _ in range(dice.choice((0, 0, 1, 1, 2, 3)))]
    options: dict[str, Any] = {"queue": queue, "script": (*steps, dice.choice(ENDINGS))}
    if queue == KEYED:
        options["key"] = dice.choice("abc")
    if dice.random() < 0.3:
        options["delay"] = round(dice.uniform(0, 90), 3)
    if dice.random() < 0.3:
        options["max_retry"] = dice.randint(0, 4)
    if dice.random() < 0.2:
        options["timeout"] = round(dice.uniform(0.5, 20), 3)
    if dice.random() < 0.2:
        options["priority"] = dice.choice(list(Priority))
    return options


# ---- the play -----------------------------------------------------------------------


@asynccontextmanager
async def _memory(clock: Clock) -> AsyncGenerator[Storage]:
    yield MemoryStorage(clock, keep_finished=1_000_000)


def play(
    plan: Sequence[Action], seed: int, *, open_storage: OpenStorage = _memory
) -> list[HistoryEvent]:
    """Play a plan to its end and judge it; the recorded history.

    Raises HistoryError for a broken invariant, AssertionError for what else is
    wrong, and whatever the engine raised.
    """
    clock = trio.testing.MockClock(autojump_threshold=0)
    with _drawn_from(seed):
        try:
            return trio.run(_World(plan, open_storage).run, clock=clock)
        except BaseExceptionGroup as group:
            raise _bare(group) from None


def simulate(
    seed: int, *, length: int = 40, open_storage: OpenStorage = _memory
) -> HistoryFigures:
    """Make a seed's plan, play it, judge it; what happened, in figures.

    Raises SimulationError with the shortest failing plan that was found.
    """
    plan = plan_of(seed, length)
    try:
        return figures(play(plan, seed, open_storage=open_storage))
    except Exception as exc:  # noqa: BLE001 - whatever it is, its story is told below
        first = exc
    shortest = shrink(plan, seed, open_storage=open_storage)
    try:
        play(shortest, seed, open_storage=open_storage)
    except Exception as exc:  # noqa: BLE001 - told with its story
        raise SimulationError(seed, shortest, exc) from None
    raise AssertionError(f"seed {seed} failed once and passes now, which must not be: {_told(first)}")


def shrink(
    plan: Sequence[Action], seed: int, *, open_storage: OpenStorage = _memory
) -> list[Action]:
    """Leave out actions, halves first, as long as the rest still fails."""
    kept = list(plan)
    size = max(len(kept) // 2, 1)
    runs = 0
    while runs < SHRINK_RUNS:
        at, shorter = 0, False
        while at < len(kept) and runs < SHRINK_RUNS:
            tried = kept[:at] + kept[at + size :]
            runs += 1
            try:
                play(tried, seed, open_storage=open_storage)
            except Exception:  # noqa: BLE001 - still fails, however
                kept, shorter = tried, True
            else:
                at += size
        if size == 1 and not shorter:
            break
        size = max(size // 2, 1)
    return kept


@contextmanager
def _drawn_from(seed: int) -> Generator[None]:
    """Draw ids, jitter and trio's scheduling from the seed, and log nothing, while the block is open."""
    # Trio offers no public way to schedule repeatably; its own Hypothesis support uses these two.
    scheduler: Any = importlib.import_module("trio._core._run")
    state, scheduling = random.getstate(), scheduler._ALLOW_DETERMINISTIC_SCHEDULING
    drawn: random.Random = scheduler._r
    drawn_state = drawn.getstate()
    random.seed(seed)
    drawn.seed(seed)
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    logger = logging.getLogger("dispatch")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)  # a thousand asked-for failures are no news
    try:
        yield
    finally:
        logger.setLevel(level)
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = scheduling
        drawn.setstate(drawn_state)
        random.setstate(state)


@attrs.define(eq=False)
class _Process:
    """One simulated process, which may be away."""

    number: int
    view: FaultyStorage | None = None
    dispatcher: Dispatcher | None = None
    scope: trio.CancelScope | None = None
    over: trio.Event = attrs.field(factory=trio.Event)


class _World:
    """One play: the storage, the processes, and what was seen."""

    def __init__(self, plan: Sequence[Action], open_storage: OpenStorage) -> None:
        self._plan = plan
        self._open_storage = open_storage
        self._history: list[HistoryEvent] = []
        self._ids: list[str] = []
        self._keys: dict[str, str] = {}
        self._finished: set[str] = set()
        """The ids of the tasks with a run whose handler came to its end."""
        self._processes = [_Process(number) for number in range(PROCESSES)]

    async def run(self) -> list[HistoryEvent]:
        clock = Clock(wall=lambda: START + trio.current_time())
        async with self._open_storage(clock) as storage:
            self._truth = RecordingStorage(storage, self._history.append)
            self._clock = clock
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for process in self._processes:
                    await nursery.start(self._live, process)
                begun = trio.current_time()
                for action in self._plan:
                    await trio.sleep_until(begun + action.at)
                    nursery.start_soon(self._act, action)
                await trio.sleep_until(begun + HORIZON_S + 61.0)
                await self._recover()
                await self._drain()
                nursery.cancel_scope.cancel()
            await self._truth.drained()
            self._judge({record.id: record.status async for record in _every(storage)})
        return self._history

    # ---- processes ---------------------------------------------------------

    async def _live(
        self, process: _Process, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """One life of a process: from its start to its crash or end."""
        view = FaultyStorage(self._truth)
        over = process.over = trio.Event()
        try:
            with trio.CancelScope() as scope:
                dispatcher = Dispatcher(
                    view,
                    worker=f"process-{process.number}",
                    lease=LEASE_S,
                    grace=5.0,
                    observers=(),
                    clock=self._clock,
                )
                for name, keyed in ((PLAIN, False), (KEYED, True)):
                    config = TaskQueueConfig(
                        concurrency=3,
                        max_retry=2,
                        retry=RetryPolicy.exponential(1.0, max_delay=30.0),
                        keyed=keyed,
                    )
                    dispatcher.consumer.register_queue(name, config)
                    dispatcher.consumer.register_handler(JOBS[name], self._work)
                async with trio.open_nursery() as nursery:
                    await nursery.start(dispatcher.serve)
                    process.view, process.dispatcher, process.scope = view, dispatcher, scope
                    task_status.started()
        finally:
            process.view = process.dispatcher = process.scope = None
            over.set()

    async def _work(self, task: QueueTask[Job], run: Run) -> None:
        script = task.payload.script
        word, _, number = script[min(task.attempt - 1, len(script) - 1)].partition(" ")
        await trio.lowlevel.checkpoint()
        match word:
            case "sleep":
                await trio.sleep(float(number))
            case "hang" if task.attempt < 3:
                await trio.sleep(3 * LEASE_S)
                raise ConnectionError("hung")
            case "fail":
                raise ConnectionError("failed")
            case "permanent":
                raise PermanentError("no use")
            case "cancel":
                raise Cancel("not needed")
            case "snooze" if task.last_error is None and task.started_at is not None:
                if trio.current_time() < HORIZON_S:
                    raise Snooze(7.0)
            case "spawn":
                child = JOBS[PLAIN](Job())
                await run.publish(child)
            case _:
                pass
        self._finished.add(task.id)

    # ---- actions -----------------------------------------------------------

    async def _act(self, action: Action) -> None:
        # A process that is away, or whose storage fails, says so: then nothing was promised.
        with suppress(DispatchError):
            await self._carry_out(action)

    async def _carry_out(self, action: Action) -> None:
        what, how = action.what, action.how
        if what in ("cancel", "hold", "resume"):
            if action.who < len(self._ids):
                await self._truth.alter(Ids(self._ids[int(action.who)]), Change(action=what))
            return
        if what == "rerun":
            await self._truth.alter(dead_letters(), Change(action="rerun"), limit=2)
            return
        if what == "pause":
            await self._truth.alter_queue(action.who, paused=True)
            await trio.sleep(how)
            await self._truth.alter_queue(action.who, paused=False)
            return
        process = self._processes[int(action.who)]
        view, dispatcher, scope = process.view, process.dispatcher, process.scope
        if view is None or dispatcher is None or scope is None:
            return
        match what:
            case "publish" | "batch":
                await self._publish(dispatcher, how)
            case "crash":
                view.kill()
                scope.cancel()
                await self._come_back(process, how)
            case "stop":
                dispatcher.close()
                await self._come_back(process, how)
            case "freeze":
                view.delay_s = how
                await trio.sleep(how)
                view.delay_s = 0.0
            case "outage":
                view.down = True
                await trio.sleep(how)
                view.down = False
            case "fault":
                method, times, after = how
                view.fail(method, times=times, after=after)
            case "cron":
                spec = "@every 7s" if how == "often" else "*/2 * * * *"
                await dispatcher.cron.add_with_name(spec, how, JOBS[PLAIN](Job()), replace=True)
            case "uncron":
                await dispatcher.cron.cancel(how)
            case _:
                pass

    async def _publish(self, dispatcher: Dispatcher, many: Sequence[dict[str, Any]]) -> None:
        tasks: list[QueueTask[Job]] = []
        for options in many:
            rest = {name: value for name, value in options.items() if name not in ("queue", "script")}
            id_ = f"task-{len(self._ids)}"
            self._ids.append(id_)
            self._keys[id_] = rest.get("key", "")
            tasks.append(JOBS[options["queue"]](Job(options["script"]), id=id_, **rest))
        # Once more after a failure, as a careful caller does: the id makes it harmless.
        for _ in range(2):
            try:
                if len(tasks) == 1:
                    await dispatcher.publisher.publish(tasks[0])
                else:
                    await dispatcher.publisher.publish_many(tasks)
            except DispatchError:
                await trio.sleep(1.0)
            else:
                return

    async def _come_back(self, process: _Process, away_s: float) -> None:
        await process.over.wait()
        await trio.sleep(away_s)
        if process.dispatcher is None and process.over.is_set():
            await self._start(process)

    async def _start(self, process: _Process) -> None:
        process.over = trio.Event()
        await self._nursery.start(self._live, process)

    # ---- the end -----------------------------------------------------------

    async def _recover(self) -> None:
        """Everything works again: no faults, nothing paused or held, every process there."""
        for process in self._processes:
            if process.view is not None:
                process.view.mend()
            elif process.over.is_set():
                await self._start(process)
        for record in await self._truth.queues():
            await self._truth.alter_queue(record.name, paused=False)
        await self._truth.alter(Statuses("held"), Change(action="resume"))
        for entry in await self._truth.crons():
            await self._truth.remove_cron(entry.name)

    async def _drain(self) -> None:
        with trio.move_on_after(PATIENCE_S) as scope:
            # An outside look, as a person would take: bells are among what is tested.
            while await self._truth.count(Statuses("pending", "running"), bound=1):  # noqa: ASYNC110
                await trio.sleep(5.0)
        if scope.cancelled_caught:
            left = (await self._truth.find(Statuses("pending", "running"), limit=5)).records
            what = ", ".join(f"{record.id} {record.status}" for record in left)
            raise AssertionError(f"{PATIENCE_S / 60:g} minutes after the last fault still not ended: {what}")

    def _judge(self, statuses: dict[str, str]) -> None:
        verify(self._history)
        unearned = sorted(
            id_ for id_, status in statuses.items() if status == "succeeded" and id_ not in self._finished
        )
        if unearned:
            raise AssertionError(f"succeeded, but no run of its handler came to its end: {unearned}")
        problem = _overlap(self._history, self._keys)
        if problem:
            raise AssertionError(problem)


def _overlap(history: Sequence[HistoryEvent], keys: dict[str, str]) -> str | None:
    """Whether two tasks of one key held valid leases at one instant."""
    held: dict[str, tuple[str, int | None, float]] = {}
    for event in history:
        key = keys.get(event.task)
        if not key:
            continue
        if event.step is Step.CLAIMED:
            other = held.get(key)
            if other is not None and other[0] != event.task and event.at < other[2]:
                return f"key {key!r}: {event.task} was claimed while {other[0]} held its lease"
            held[key] = (event.task, event.epoch, event.lease_until or inf)
        elif key in held and held[key][:2] == (event.task, event.epoch):
            if event.step in (Step.ENDED, Step.RESCUED):
                del held[key]
            elif event.step is Step.RENEWED:
                held[key] = (event.task, event.epoch, event.lease_until or inf)
    return None


async def _every(storage: Storage) -> AsyncGenerator[Any]:
    after: str | None = None
    while True:
        page = await storage.find(All(), limit=1_000, after=after)
        for record in page.records:
            yield record
        after = page.cursor
        if after is None:
            return

