"""Seeded simulation: several dispatchers on one storage, everything that can go wrong, and a judge.

    simulate(seed)            # returns the figures, or raises SimulationError with a short story

Theory of operation. A seed makes a *plan*, a list of actions at moments of
virtual time: tasks are published whose payloads say how each attempt will go,
processes crash, freeze, stop and come back, the storage fails before or after a
step, queues are paused, tasks cancelled, held and rerun, cron entries come and
go, in some plans the wall clock jumps. The plan is then played on the real
engine, under trio's mock clock, over one recorded storage that all processes
share. In the end the faults stop, what was paused goes on, every process is
back, and everything that can run must end in time. Then every actor of every
process has to show that it is alive: as many tasks as there are actors are
published at once, and must run side by side.

The recorded history is held to the invariants of `dispatch.testing.history`,
and to those that only the simulation can know of: see `_World._judge`. Where
the clock jumped, moments say less, by the size of the jumps.

The same plan and seed give the same run, step by step, in whatever process: ids,
jitter and trio's own scheduling are drawn from the seed. A plan that fails is
shrunk by leaving out actions, tasks and their options, as long as it goes on
failing.
"""

from __future__ import annotations

import importlib
import logging
import random
import traceback
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from math import inf
from typing import Any, Final, cast

import attrs
import trio
import trio.testing

from dispatch.clock import Clock
from dispatch.codec import Codec
from dispatch.dispatcher import Dispatcher
from dispatch.errors import Cancel, DispatchError, PermanentError, Snooze
from dispatch.publisher import TaskQueuePublisher
from dispatch.records import TaskRecord
from dispatch.retry import RetryPolicy
from dispatch.run import Run
from dispatch.storage.memory import MemoryStorage
from dispatch.storage.protocol import Change, Storage
from dispatch.storage.query import All, Ids, Statuses, dead_letters
from dispatch.tasks import QueueTask, TaskQueueConfig, TaskStatus, TaskType
from dispatch.testing.faults import FaultyStorage
from dispatch.testing.history import (
    HistoryEvent,
    HistoryFigures,
    Step,
    figures,
    verify,
)
from dispatch.testing.plans import HORIZON_S, KEYED, PLAIN, PROCESSES, Action, plan_of, simpler
from dispatch.testing.recording import RecordingStorage

__all__ = ["Action", "SimulationError", "plan_of", "play", "shrink", "simulate"]

START: Final = datetime(2026, 3, 28, tzinfo=UTC)
"""Virtual time begins the day before clocks go forward in Europe."""
LEASE_S: Final = 10.0
ACTORS: Final = 3
"""Per queue and process."""
PREFETCH: Final = ACTORS
"""Of the last process; the others claim no more than they can run."""
PATIENCE_S: Final = 1_800.0
"""After the last fault, everything must have ended within so much virtual time."""
STEPS_LIMIT: Final = 200_000
"""Steps of trio tasks in one play, forty times what the longest takes: beyond, something spins."""
CALM_S: Final = 20.0
"""After the last fault: longer than any back-off of cron, and than two ticks of its quick entry."""
SHRINK_RUNS: Final = 300

OpenStorage = Callable[[Clock], AbstractAsyncContextManager[Storage]]


@attrs.frozen
class Job:
    """What a simulated task does: one word per attempt, the last one again and again."""

    script: tuple[str, ...] = ("ok",)


JOBS: Final = {name: TaskType(name, "job", Job) for name in (PLAIN, KEYED)}
CONFIGS: Final = {
    name: TaskQueueConfig(
        concurrency=ACTORS,
        max_retry=2,
        retry=RetryPolicy.exponential(1.0, max_delay=30.0),
        keyed=name == KEYED,
    )
    for name in (PLAIN, KEYED)
}
LEAST_WAIT_S: Final = CONFIGS[PLAIN].policy.wait_s(1, lambda: 0.0) - 1e-3
EVERY_S: Final = 7
CRONS: Final = {"often": f"@every {EVERY_S}s", "seldom": "*/2 * * * *"}


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


@asynccontextmanager
async def _memory(clock: Clock) -> AsyncGenerator[Storage]:
    yield MemoryStorage(clock, keep_finished=1_000_000)


# ---- playing, and cutting down ------------------------------------------------------


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
    """Leave out actions, halves first, then tasks and options, as long as the rest still fails."""
    runs = 0

    def fails(tried: list[Action]) -> bool:
        nonlocal runs
        runs += 1
        try:
            play(tried, seed, open_storage=open_storage)
        except Exception:  # noqa: BLE001 - still fails, however
            return True
        return False

    kept = list(plan)
    size = max(len(kept) // 2, 1)
    while runs < SHRINK_RUNS:
        at, shorter = 0, False
        while at < len(kept) and runs < SHRINK_RUNS:
            tried = kept[:at] + kept[at + size :]
            if fails(tried):
                kept, shorter = tried, True
            else:
                at += size
        if size == 1 and not shorter:
            break
        size = max(size // 2, 1)
    at = 0
    while at < len(kept):
        for action in simpler(kept[at]):
            tried = [*kept[:at], action, *kept[at + 1 :]]
            if runs < SHRINK_RUNS and fails(tried):
                kept = tried
                break
        else:
            at += 1
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


# ---- one play -----------------------------------------------------------------------


class _StepLimit(trio.abc.Instrument):
    """Cancels a scope after so many steps: virtual time does not pass for what spins."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self._scope = scope
        self._left = STEPS_LIMIT

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()


@attrs.define(eq=False)
class _Process:
    """One simulated process, which may be away."""

    number: int
    view: FaultyStorage | None = None
    dispatcher: Dispatcher | None = None
    scope: trio.CancelScope | None = None
    over: trio.Event = attrs.field(factory=trio.Event)
    running: set[str] = attrs.field(factory=set[str])
    """The tasks that its handlers are at."""


class _World:
    """One play: the storage, the processes, and what was seen."""

    def __init__(self, plan: Sequence[Action], open_storage: OpenStorage) -> None:
        self._plan = plan
        self._open_storage = open_storage
        self._jumps: list[float] = [action.how for action in plan if action.what == "jump"]
        self._ahead_s = 0.0
        """By how much the wall clock is ahead of where it began, jumps alone."""
        self._history: list[HistoryEvent] = []
        self._codec = Codec()
        self._keys: dict[str, str] = {}
        self._snoozed: Counter[str] = Counter()
        self._children: dict[str, str] = {}
        """By the ids of spawned tasks: the task whose run spawned it."""
        self._finished: set[str] = set()
        """The tasks with a run whose handler came to its end."""
        self._wrong: list[str] = []
        self._processes = [_Process(number) for number in range(PROCESSES)]

    async def run(self) -> list[HistoryEvent]:
        if self._jumps:
            # Looked at every five seconds, which costs: only where it may jump.
            began = START.timestamp()
            clock = Clock(wall=lambda: began + trio.current_time() + self._ahead_s)
        else:
            clock = Clock(START)
        with trio.CancelScope() as scope:
            trio.lowlevel.add_instrument(_StepLimit(scope))
            async with self._open_storage(clock) as storage:
                self._truth = RecordingStorage(storage, self._history.append)
                self._clock = clock
                with trio.fail_after(10 * PATIENCE_S):
                    await self._happen()
                await self._truth.drained()
                self._judge([record async for record in _every(storage)])
        if scope.cancelled_caught:
            raise AssertionError(f"something spins: {STEPS_LIMIT} steps, and no end")
        return self._history

    async def _happen(self) -> None:
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
            await self._show_life()
            nursery.cancel_scope.cancel()

    # ---- processes ---------------------------------------------------------

    async def _live(
        self, process: _Process, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """One life of a process: from its start to its crash or end."""

        async def handler(task: QueueTask[Job], run: Run) -> None:
            if task.id in process.running:
                self._wrong.append(f"process {process.number} runs {task.id} twice at one time")
            process.running.add(task.id)
            try:
                await self._work(task, run)
            finally:
                process.running.discard(task.id)

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
                    codec=self._codec,
                )
                prefetch = PREFETCH if process.number == PROCESSES - 1 else 0
                for name, config in CONFIGS.items():
                    dispatcher.consumer.register_queue(name, attrs.evolve(config, prefetch=prefetch))
                    dispatcher.consumer.register_handler(JOBS[name], handler)
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
            case "snooze" if self._snoozed[task.id] < 3:
                self._snoozed[task.id] += 1
                raise Snooze(7.0)
            case "spawn":
                await trio.sleep(4.0)  # long enough for something to go wrong before the end
                child = f"child-{len(self._children)}"
                self._children[child] = task.id
                await run.publish(JOBS[PLAIN](Job(), id=child))
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
        match what:
            case "cancel" | "hold" | "resume":
                await self._truth.alter(Ids(action.who), Change(action=what))
            case "rerun":
                await self._truth.alter(dead_letters(), Change(action="rerun"), limit=2)
            case "pause":
                await self._truth.alter_queue(action.who, paused=True)
                await trio.sleep(how)
                await self._truth.alter_queue(action.who, paused=False)
            case "jump":
                self._ahead_s += how
            case _:
                await self._in_process(what, self._processes[int(action.who)], how)

    async def _in_process(self, what: str, process: _Process, how: Any) -> None:
        view, dispatcher, scope = process.view, process.dispatcher, process.scope
        if view is None or dispatcher is None or scope is None:
            return
        match what:
            case "publish":
                await self._publish(dispatcher.publisher, how)
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
                task = JOBS[PLAIN](Job())
                await dispatcher.cron.add_with_name(CRONS[how], how, task, replace=True)
            case "uncron":
                await dispatcher.cron.cancel(how)
            case _:
                raise AssertionError(f"no action {what!r}")

    async def _publish(self, publisher: TaskQueuePublisher, many: Sequence[dict[str, Any]]) -> None:
        tasks: list[QueueTask[Job]] = []
        for options in many:
            rest = {name: value for name, value in options.items() if name not in ("queue", "script")}
            self._keys[rest["id"]] = rest.get("key", "")
            tasks.append(JOBS[options["queue"]](Job(options["script"]), **rest))
        # Once more after a failure, as a careful caller does: the id makes it harmless.
        for _ in range(2):
            try:
                if len(tasks) == 1:
                    await publisher.publish(tasks[0])
                else:
                    await publisher.publish_many(tasks)
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
        """Everything works again: no faults, nothing paused or held, every process there, no cron."""
        for process in self._processes:
            if process.view is not None:
                process.view.mend()
            elif process.over.is_set():
                await self._start(process)
        for record in await self._truth.queues():
            await self._truth.alter_queue(record.name, paused=False)
        await self._truth.alter(Statuses("held"), Change(action="resume"))
        await trio.sleep(CALM_S)
        away = [process.number for process in self._processes if process.view is None]
        if away:
            raise AssertionError(f"processes that did not come back: {away}")
        if not self._jumps:
            await self._cron_goes_on()
        for entry in await self._truth.crons():
            await self._truth.remove_cron(entry.name)

    async def _cron_goes_on(self) -> None:
        """Let each process be the only one for a while; the quick cron entry must go on firing."""
        views = [process.view for process in self._processes if process.view is not None]
        for alone in views:
            if not [entry for entry in await self._truth.crons("often") if entry.next_slot is not None]:
                return
            for view in views:
                view.down = view is not alone
            await trio.sleep(CALM_S)
            [entry] = await self._truth.crons("often")
            since_s = self._clock.now() - (entry.last_slot or entry.created_at)
            if since_s > 2 * EVERY_S:
                self._wrong.append(f"cron has not fired for {since_s:.1f} s, and nothing was wrong")
            for view in views:
                view.mend()
        await trio.sleep(CALM_S)

    async def _drain(self) -> None:
        # What falls due, or expires, by a clock that went back does so later.
        back_s = -sum(jump for jump in self._jumps if jump < 0)
        with trio.move_on_after(PATIENCE_S + back_s) as scope:
            # An outside look, as a person would take: bells are among what is tested.
            while await self._truth.count(Statuses("pending", "running"), bound=1):  # noqa: ASYNC110
                await trio.sleep(5.0)
        if scope.cancelled_caught:
            left = (await self._truth.find(Statuses("pending", "running"), limit=5)).records
            what = ", ".join(f"{record.id} {record.status}" for record in left)
            raise AssertionError(f"{PATIENCE_S / 60:g} minutes after the last fault still not ended: {what}")

    async def _show_life(self) -> None:
        """Give every actor of every process a task of its own, all at once; none may have to wait.

        What the last process may prefetch comes on top, and waits for one of its actors.
        """
        probes: list[dict[str, Any]] = [
            {"id": f"probe-{name}-{number}", "queue": name, "script": ("sleep 2",), "key": f"{name} {number}"}
            for name in CONFIGS
            for number in range(ACTORS * PROCESSES + PREFETCH)
        ]
        await self._publish(TaskQueuePublisher(self._truth), probes)
        for waiting in (PREFETCH * len(CONFIGS), 0):
            await trio.sleep(3.0)
            page = await self._truth.find(All(Ids(*(each["id"] for each in probes)), ~Statuses("succeeded")))
            if len(page.records) > waiting:
                what = ", ".join(f"{record.id} {record.status}" for record in page.records)
                raise AssertionError(
                    f"not every actor is alive; of {len(probes)} tasks, of which {waiting} were to wait: {what}"
                )

    # ---- the judge ---------------------------------------------------------

    def _judge(self, stored: Sequence[TaskRecord]) -> None:
        """Raise unless the invariants hold, and with them:

        - what succeeded has a run whose handler came to its end;
        - what a run spawned is there just when that run was the success;
        - no process runs a task twice at one time, clock or no clock;
        - a task that is held, or cancelled, is not claimed until somebody says so;
        - tasks of one key do not overlap;
        - a retry waits for at least the shortest of its delays;
        - cron fires, once nothing is wrong any more.
        """
        error_s = sum(map(abs, self._jumps), 0.0)
        verify(self._history, clock_error_s=error_s)
        succeeded = {record.id for record in stored if record.status is TaskStatus.SUCCEEDED}
        wrong = [*self._wrong]
        wrong += [
            f"{id_} succeeded, but no run of its handler came to its end"
            for id_ in sorted(succeeded - self._finished)
        ]
        wrong += self._births(succeeded, {record.id for record in stored})
        wrong += _claimed_by_no_leave(self._history, error_s)
        wrong += _overlaps(self._history, self._keys, error_s)
        wrong += _too_soon(self._history, error_s)
        if wrong:
            raise AssertionError("\n".join(wrong))

    def _births(self, succeeded: set[str], stored: set[str]) -> Generator[str]:
        born = Counter(parent for child, parent in self._children.items() if child in stored)
        for parent in dict.fromkeys(self._children.values()):
            wanted = 1 if parent in succeeded else 0
            if born[parent] != wanted:
                yield f"{parent} has {born[parent]} spawned tasks, and should have {wanted}"


def _claimed_by_no_leave(history: Sequence[HistoryEvent], error_s: float) -> Generator[str]:
    """Tasks claimed while they were held, or after they were cancelled, by hand."""
    parked: dict[str, list[tuple[str, float, float]]] = {}
    for event in history:
        spans = parked.setdefault(event.task, [])
        if event.step is not Step.ALTERED or event.how is None:
            continue
        if spans and spans[-1][2] == inf:
            how, since, _ = spans[-1]
            if (how, event.how) in {("hold", "resume"), ("hold", "cancel"), ("cancel", "rerun")}:
                spans[-1] = (how, since, event.at)
        if event.how in ("hold", "cancel"):
            spans.append((event.how, event.at, inf))
    for event in history:
        if event.step is Step.CLAIMED:
            for how, since, until in parked[event.task]:
                # One instant may see both, in either order.
                if since + error_s < event.at < until - error_s:
                    yield f"{event.task} was claimed at {event.at:.6f}, after the {how} at {since:.6f}"


def _overlaps(
    history: Sequence[HistoryEvent], keys: dict[str, str], error_s: float
) -> Generator[str]:
    """Tasks of one key that held valid leases at one instant."""
    held: dict[str, tuple[str, int | None, float]] = {}
    for event in history:
        key = keys.get(event.task)
        if not key:
            continue
        if event.step is Step.CLAIMED:
            other = held.get(key)
            if other is not None and other[0] != event.task and event.at + error_s < other[2]:
                yield f"key {key!r}: {event.task} was claimed while {other[0]} held its lease"
            held[key] = (event.task, event.epoch, event.lease_until or inf)
        elif key in held and held[key][:2] == (event.task, event.epoch):
            if event.step in (Step.ENDED, Step.RESCUED):
                del held[key]
            elif event.step is Step.RENEWED:
                held[key] = (event.task, event.epoch, event.lease_until or inf)


def _too_soon(history: Sequence[HistoryEvent], error_s: float) -> Generator[str]:
    """Retries that fall due sooner than the first of their policy's waits, jitter taken off."""
    for event in history:
        failed = event.step is Step.ENDED and event.how == "failed" and event.status == "pending"
        if failed and event.due is not None and event.due - event.at < LEAST_WAIT_S - error_s:
            yield f"{event.task} failed at {event.at:.6f}, and its retry was due at {event.due:.6f}"


async def _every(storage: Storage) -> AsyncGenerator[TaskRecord]:
    after: str | None = None
    while True:
        page = await storage.find(All(), limit=1_000, after=after)
        for record in page.records:
            yield record
        after = page.cursor
        if after is None:
            return
