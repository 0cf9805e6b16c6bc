"""What happened to tasks, recorded, and held to nine invariants that no fault may break.

Record in one process with a `RecordingStorage` (see `recording`) around any
storage; across real processes with the same and a `HistoryFile` per process,
read back together by `read_history`. Then `verify(history)` raises a
`HistoryError` which tells the story of each broken invariant::

    history: list[HistoryEvent] = []
    storage = RecordingStorage(MemoryStorage(), history.append)
    ...                                # run, crash, recover; then let it drain
    await storage.drained()
    verify(history)

Theory of operation. A process may be killed between a step of the storage and
the line about it. So a step that publishes or ends runs is recorded twice,
before it (OFFERED, ENDING) and after (PUBLISHED, ENDED): where the second line
is missing the step is in doubt, and the invariants give it the benefit of the
doubt. Of a claim a missing line only means that less is checked. A run is known
by task and epoch, never by the order of lines, which several processes cannot
agree on; moments are the storage's own wherever it tells them, and otherwise
its clock just before the call, which errs towards silence.

What is asked of the one who records: an id is published once (not again after
a prune), and changes by hand are made by a process that survives them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from enum import StrEnum
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import attrs

from dispatch.lifecycle import SettleAnswer
from dispatch.records import TransitionKind
from dispatch.tasks import TaskStatus

__all__ = [
    "INVARIANTS",
    "HistoryError",
    "HistoryEvent",
    "HistoryFigures",
    "HistoryFile",
    "Record",
    "Step",
    "Violation",
    "figures",
    "read_history",
    "verify",
    "violations",
]


class Step(StrEnum):
    """What a recorded line tells of."""

    OFFERED = "offered"
    """About to be published."""
    PUBLISHED = "published"
    """Stored, due at `due`."""
    CLAIMED = "claimed"
    """A run began at `at`, leased until `lease_until` (None: for ever)."""
    RENEWED = "renewed"
    """The run was held, with a lease at least until `lease_until`."""
    ENDING = "ending"
    """The end of a run, `how`, is about to be settled."""
    ENDED = "ended"
    """The settle was answered by `answer`; APPLIED left `status`, due at `due`."""
    RESCUED = "rescued"
    """The run's lease had run out; that left `status`, due at `due`."""
    ALTERED = "altered"
    """Changed by hand, `how`; or by a publishing that replaced its fields."""
    SEEN = "seen"
    """Found in the storage after a drain, in `status`."""
    DRAINED = "drained"
    """Every stored task has been SEEN, and none was left to run."""


@attrs.frozen(kw_only=True)
class HistoryEvent:
    """One thing that happened, at storage time `at` in UTC seconds."""

    at: float
    step: Step
    task: str = ""
    epoch: int | None = None
    worker: str | None = None
    due: float | None = None
    lease_until: float | None = None
    max_retry: int | None = None
    """As published or patched; of a claim the limit in force."""
    how: str | None = None
    answer: str | None = None
    status: str | None = None
    cron: str | None = None
    slot: float | None = None

    def to_line(self) -> str:
        """One line of JSON, without what is None."""
        return json.dumps({name: value for name, value in attrs.asdict(self).items() if value not in (None, "")})

    @classmethod
    def from_line(cls, line: str) -> HistoryEvent:
        """The event that `to_line` wrote."""
        given: dict[str, Any] = json.loads(line)
        given["step"] = Step(given["step"])
        return cls(**given)

    def __str__(self) -> str:
        facts = [
            f"{name.replace('_', ' ')} {value}"
            for name, value in attrs.asdict(self).items()
            if value is not None and name not in ("at", "step", "task")
        ]
        return f"{self.at:.6f}  {self.step.value:<9}  {', '.join(facts)}".rstrip()


Record = Callable[[HistoryEvent], None]
"""Where a recorder puts its events: `list.append`, or a `HistoryFile`."""


class HistoryFile:
    """Writes each event as a line that a kill of this process cannot take back.

    Several processes may append to one file. Use it as a context manager.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __call__(self, event: HistoryEvent) -> None:
        # One write per line, unbuffered: what the kernel has outlives the process.
        os.write(self._descriptor, f"{event.to_line()}\n".encode())

    def __enter__(self) -> HistoryFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


def read_history(*paths: str | os.PathLike[str]) -> list[HistoryEvent]:
    """The events of several files in the order of their moments; a last line cut short is left out."""
    found: list[HistoryEvent] = []
    for path in paths:
        whole, _, _ = Path(path).read_text(encoding="utf-8").rpartition("\n")
        found += (HistoryEvent.from_line(line) for line in whole.split("\n") if line)
    return sorted(found, key=lambda event: (event.at, event.epoch or 0))


# ---- checking ----------------------------------------------------------------

TOO_LATE: Final = frozenset({SettleAnswer.LOST.value, SettleAnswer.GONE.value})
GIVEN_BACK: Final = frozenset({TransitionKind.SNOOZED.value, TransitionKind.HANDED_BACK.value})
TERMINAL: Final = frozenset(status.value for status in TaskStatus if status.is_terminal)
ONLY_PLACED: Final = frozenset({"patch", "rerun", "replaced", "resume"})
"""Changes after which a task may fall due earlier than what was said of it before."""


@attrs.frozen
class Violation:
    """One broken invariant: which, of which task (or cron tick), what is wrong, and the story."""

    invariant: str
    task: str
    wrong: str
    story: tuple[HistoryEvent, ...] = attrs.field(repr=False)

    def __str__(self) -> str:
        lines = [f"{self.task}: {self.wrong}", f"  broken: {self.invariant}"]
        return "\n".join([*lines, *(f"    {event}" for event in self.story)])


class HistoryError(AssertionError):
    """A history that cannot be; `violations` says why."""

    def __init__(self, found: Sequence[Violation]) -> None:
        self.violations: Final = tuple(found)
        shown = "\n".join(map(str, found[:STORIES]))
        rest = f"\n... and {len(found) - STORIES} more" if len(found) > STORIES else ""
        super().__init__(f"{len(found)} broken invariants in this history\n{shown}{rest}")


STORIES: Final = 5
"""Stories told by one error."""


class _Run:
    """One run: what is known of the claim, and of every end it was given or may have been given."""

    def __init__(self, claimed: HistoryEvent) -> None:
        self.epoch = claimed.epoch or 0
        self.at = claimed.at
        self.lease_until = inf if claimed.lease_until is None else claimed.lease_until
        self.ended_at = inf
        """The earliest moment at which it may have ended."""
        self.given_back = False
        """Whether its attempt may have been given back."""


class _Story:
    """The events of one task, sorted by what they tell."""

    def __init__(self, task: str, events: Sequence[HistoryEvent]) -> None:
        self.task = task
        self.events = events
        self.offered = self.of(Step.OFFERED, Step.PUBLISHED)
        self.published = self.of(Step.PUBLISHED)
        self.claims = self.of(Step.CLAIMED)
        self.ends = [
            event
            for event in self.of(Step.ENDED, Step.RESCUED)
            if event.answer in (None, SettleAnswer.APPLIED)
        ]
        self.altered = self.of(Step.ALTERED)
        self.seen = self.of(Step.SEEN)
        self.runs = {event.epoch: _Run(event) for event in self.claims}
        for event in self.of(Step.RENEWED):
            run = self.runs.get(event.epoch)
            if run is not None and event.lease_until is not None:
                run.lease_until = max(run.lease_until, event.lease_until)
        for epoch, run in self.runs.items():
            self._end(epoch, run)

    def of(self, *steps: Step) -> list[HistoryEvent]:
        return [event for event in self.events if event.step in steps]

    def _end(self, epoch: int | None, run: _Run) -> None:
        """Note what a run's settles did, or may have done where no answer was recorded."""
        asked = [event for event in self.of(Step.ENDING) if event.epoch == epoch]
        answered = [event for event in self.of(Step.ENDED) if event.epoch == epoch]
        done = [event for event in answered if event.answer not in TOO_LATE]
        if len(asked) > len(answered):
            done += asked
        if done:
            run.ended_at = min(event.at for event in (*asked, *done))
            run.given_back = any(event.how in GIVEN_BACK for event in done)


Told = Iterator[tuple[str, str]]
"""Pairs of a task and what is wrong with it."""


def _every_published_task_ends(story: _Story, drained: bool, slack_s: float) -> Told:
    if not drained or not story.published:
        return
    if story.seen:
        status = story.seen[-1].status
        # A held task waits for a hand, and a running one breaks an invariant of its own.
        if status not in (*TERMINAL, "held", "running"):
            yield story.task, f"it was published, and after the drain it is still {status}"
        return
    by_hand = any(event.how == "cancel" for event in story.altered)
    if not by_hand and not any(event.status in TERMINAL for event in story.ends):
        yield story.task, "it was published, never ended, and is stored no more: it is lost"


def _a_run_ends_at_most_once(story: _Story, drained: bool, slack_s: float) -> Told:
    for epoch in {event.epoch for event in story.ends}:
        ends = [event for event in story.ends if event.epoch == epoch]
        if len(ends) > 1:
            how = ", ".join(event.how or event.step.value for event in ends)
            yield story.task, f"the run of epoch {epoch} was ended {len(ends)} times: {how}"


def _fences_increase(story: _Story, drained: bool, slack_s: float) -> Told:
    for earlier, later in zip(story.claims, story.claims[1:], strict=False):
        if (later.epoch or 0) <= (earlier.epoch or 0):
            yield story.task, f"a claim of epoch {earlier.epoch} was followed by one of {later.epoch}"


def _one_valid_lease(story: _Story, drained: bool, slack_s: float) -> Told:
    runs = sorted(story.runs.values(), key=lambda run: (run.at, run.epoch))
    for number, later in enumerate(runs):
        for earlier in runs[:number]:
            until = min(earlier.lease_until, earlier.ended_at)
            if later.at + slack_s < until:
                yield (
                    story.task,
                    f"the run of epoch {later.epoch} was claimed at {later.at:.6f} while that of "
                    f"epoch {earlier.epoch} held its lease until {until:.6f}",
                )


def _attempts_are_bounded(story: _Story, drained: bool, slack_s: float) -> Told:
    limits = [event.max_retry for event in story.claims if event.max_retry is not None]
    published = [event.max_retry for event in story.published if event.max_retry is not None]
    allowed = (published or limits or [0])[0]
    for event in story.altered:
        if event.how in ("patch", "replaced"):
            # None inherits the queue's again, which only the claims tell.
            allowed = max(allowed, *([event.max_retry] if event.max_retry is not None else limits or [0]))
    reruns = sum(event.how == "rerun" for event in story.altered)
    counted = sum(not run.given_back for run in story.runs.values())
    if counted > 1 + allowed + reruns:
        yield (
            story.task,
            f"{counted} counted attempts, where 1 + {allowed} retries + {reruns} reruns are allowed",
        )


def _never_early(story: _Story, drained: bool, slack_s: float) -> Told:
    placed = any(event.how in ONLY_PLACED for event in story.altered)
    said: dict[int, float] = {}  # due times by the epoch of the run they are for
    if not placed:
        said.update((1, event.due) for event in story.published if event.due is not None)
        for event in story.ends:
            if event.status == "pending" and event.due is not None and event.epoch is not None:
                said[event.epoch + (2 if event.step is Step.RESCUED else 1)] = event.due
    for claim in story.claims:
        due = max(claim.due or 0.0, said.get(claim.epoch or 0, 0.0))
        if claim.at + slack_s < due:
            yield story.task, f"claimed at {claim.at:.6f}, {due - claim.at:.6f} s before it fell due"


def _claims_have_a_publish(story: _Story, drained: bool, slack_s: float) -> Told:
    first = min((event.at for event in story.offered), default=inf)
    for claim in story.claims:
        if claim.at + slack_s < first:
            when = "never" if first == inf else f"only at {first:.6f}"
            yield story.task, f"claimed at {claim.at:.6f}, and published {when}"


def _nothing_runs_after_a_drain(story: _Story, drained: bool, slack_s: float) -> Told:
    if drained and story.seen and story.seen[-1].status == "running":
        yield story.task, f"after the drain it is still running, as epoch {story.seen[-1].epoch}"


INVARIANTS: Final[dict[str, Callable[[_Story, bool, float], Told]]] = {
    "what was published has ended": _every_published_task_ends,
    "at most one applied end per epoch": _a_run_ends_at_most_once,
    "fences strictly increase": _fences_increase,
    "no two valid leases at one instant": _one_valid_lease,
    "counted attempts are at most 1 + max_retry + reruns": _attempts_are_bounded,
    "nothing is claimed before it is due": _never_early,
    "each claim has a publish": _claims_have_a_publish,
    "after a drain nothing is running": _nothing_runs_after_a_drain,
}
"""Eight of the nine, each of one task's story."""
ONE_TICK: Final = "at most one task per cron tick"
"""The ninth: of all tasks together."""


def violations(history: Iterable[HistoryEvent], *, clock_error_s: float = 0.0) -> list[Violation]:
    """Every broken invariant of a history, task by task in order of appearance; empty if all hold.

    The first and the eighth are only asked of a history with a DRAINED event.
    `clock_error_s` is how far the recorded moments may be off: the error of a
    database's clock as known to its client, or the size of a jump that a test
    made it take.
    """
    events = list(history)
    drained = any(event.step is Step.DRAINED for event in events)
    by_task: dict[str, list[HistoryEvent]] = {}
    for event in events:
        if event.task:
            by_task.setdefault(event.task, []).append(event)
    found: list[Violation] = []
    for task, told in by_task.items():
        story = _Story(task, told)
        for invariant, check in INVARIANTS.items():
            for who, wrong in check(story, drained, clock_error_s):
                found.append(Violation(invariant, f"task {who!r}", wrong, tuple(told)))
    return [*found, *_ticks(events)]


def _ticks(events: Sequence[HistoryEvent]) -> Generator[Violation]:
    by_tick: dict[tuple[str, float], list[HistoryEvent]] = {}
    for event in events:
        if event.step in (Step.PUBLISHED, Step.SEEN) and event.cron is not None and event.slot is not None:
            by_tick.setdefault((event.cron, event.slot), []).append(event)
    for (cron, slot), told in by_tick.items():
        tasks = sorted({event.task for event in told})
        if len(tasks) > 1:
            who = f"cron task {cron!r}, tick {slot:.6f}"
            yield Violation(ONE_TICK, who, f"{len(tasks)} tasks: {', '.join(tasks)}", tuple(told))


def verify(history: Iterable[HistoryEvent], *, clock_error_s: float = 0.0) -> None:
    """Raise a HistoryError unless all nine invariants hold; see `violations`."""
    found = violations(history, clock_error_s=clock_error_s)
    if found:
        raise HistoryError(found)


@attrs.frozen(kw_only=True)
class HistoryFigures:
    """What a history contains: a run that met no fault proves nothing."""

    published: int
    runs: int
    redelivered: int
    """Runs after another of the same task, attempts given back aside."""
    rescued: int
    refused: int
    """Ends that came too late, or twice, and changed nothing."""
    succeeded: int
    failed: int
    cancelled: int


def figures(history: Iterable[HistoryEvent]) -> HistoryFigures:
    """Count what a history contains."""
    events = list(history)
    by_task: dict[str, list[HistoryEvent]] = {}
    for event in events:
        by_task.setdefault(event.task, []).append(event)
    ends: dict[str, str] = {
        event.task: event.status
        for event in events
        if event.status is not None and event.step in (Step.ENDED, Step.RESCUED, Step.SEEN)
    }
    counted = [
        sum(not run.given_back for run in _Story(task, told).runs.values())
        for task, told in by_task.items()
    ]
    return HistoryFigures(
        published=sum(event.step is Step.PUBLISHED for event in events),
        runs=sum(event.step is Step.CLAIMED for event in events),
        redelivered=sum(max(0, number - 1) for number in counted),
        rescued=sum(event.step is Step.RESCUED for event in events),
        refused=sum(event.step is Step.ENDED and event.answer != "applied" for event in events),
        succeeded=sum(status == "succeeded" for status in ends.values()),
        failed=sum(status == "failed" for status in ends.values()),
        cancelled=sum(status == "cancelled" for status in ends.values()),
    )
