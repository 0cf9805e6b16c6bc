"""What is to happen in one simulated play: actions at moments, drawn from a seed.

A plan is data: `simulation.play` carries it out, and what a seed stands for can
be printed, cut down and played again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import attrs

from dispatch.tasks import Priority

__all__ = ["HORIZON_S", "KEYED", "PLAIN", "PROCESSES", "Action", "plan_of", "simpler"]

HORIZON_S: Final = 300.0
"""Actions begin in the first five minutes, and last a minute at most."""
PROCESSES: Final = 3
PLAIN: Final = "plain"
KEYED: Final = "keyed"
"""The two queues; on the second, tasks of one key run one at a time."""

Options = Mapping[str, Any]
"""One task to publish: its `id`, `queue`, `script`, and what else a `QueueTask` has."""


@attrs.frozen
class Action:
    """One thing that happens: when, in seconds from the start, what, to whom, and how.

    `who` is a process, a task or a queue, `how` a number of seconds, the tasks
    of a publish, or the method, number and kind of a fault.
    """

    at: float
    what: str
    who: Any = None
    how: Any = None

    def __str__(self) -> str:
        return f"{self.at:9.3f} s  {_TOLD[self.what](self)}"


_TOLD: Final[dict[str, Callable[[Action], str]]] = {
    "publish": lambda it: f"process {it.who} publishes {'; '.join(map(_task, it.how))}",
    "cancel": lambda it: f"{it.who} is cancelled by hand",
    "hold": lambda it: f"{it.who} is held by hand",
    "resume": lambda it: f"{it.who} is resumed by hand",
    "rerun": lambda it: "two dead letters are run again",
    "pause": lambda it: f"queue {it.who} is paused for {it.how:g} s",
    "crash": lambda it: f"process {it.who} crashes, and comes back after {it.how:g} s",
    "stop": lambda it: f"process {it.who} ends gracefully, and comes back after {it.how:g} s",
    "freeze": lambda it: f"process {it.who} waits {it.how:g} s for each answer of the storage",
    "outage": lambda it: f"process {it.who} cannot reach the storage for {it.how:g} s",
    "fault": lambda it: f"process {it.who}: {_fault(*it.how)}",
    "cron": lambda it: f"process {it.who} adds the cron task {it.how!r}",
    "uncron": lambda it: f"process {it.who} cancels the cron task {it.how!r}",
    "jump": lambda it: f"the wall clock jumps by {it.how:+g} s",
}


def _task(options: Options) -> str:
    rest = [f"{name} {value}" for name, value in options.items() if name not in ("id", "script")]
    return f"{options['id']} ({', '.join(rest)}: {', '.join(options['script'])})"


def _fault(method: str | None, times: int, after: bool) -> str:
    which = "calls of the storage" if method is None else f"calls of {method}"
    return f"the next {times} {which} fail {'after' if after else 'before'} taking effect"


# ---- drawing ------------------------------------------------------------------------

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
    "freeze": 5,
    "fault": 14,
    "outage": 3,
    "cron": 3,
    "uncron": 2,
}
"""How often each action comes, compared with the others."""
JUMPY: Final = 0.2
"""The share of plans in which the wall clock jumps: in those, moments prove less."""
JUMPS: Final = (-600.0, -30.0, -3.0, 5.0, 60.0, 3_600.0)
"""Back in all at most so far that the rest of the play is worth waiting for."""
STEPS: Final = ("fail", "fail", "snooze", "sleep 1", "sleep 25", "hang")
ENDINGS: Final = ("ok", "ok", "ok", "fail", "permanent", "cancel", "spawn")
"""What a task does: some steps, one per attempt, then an ending, again and again."""


def plan_of(seed: int, length: int = 40) -> list[Action]:
    """The `length` actions that a seed stands for, in order of time."""
    dice = random.Random(f"plan {seed}")  # noqa: S311 - dice, no secret
    weights = dict(WEIGHTS)
    if dice.random() < JUMPY:
        weights["jump"] = 4
    published = 0
    plan: list[Action] = []
    for at in sorted(round(dice.uniform(0, HORIZON_S), 3) for _ in range(length)):
        [what] = dice.choices(tuple(weights), tuple(weights.values()))
        who: Any = dice.randrange(PROCESSES)
        how: Any = None
        if what in ("publish", "batch"):
            many = 1 if what == "publish" else dice.randint(2, 8)
            how = [_options(dice, published + number) for number in range(many)]
            what, published = "publish", published + many
        elif what in ("cancel", "hold", "resume"):
            who = f"task-{dice.randrange(max(published, 1))}"
        elif what == "pause":
            who, how = dice.choice((PLAIN, KEYED)), round(dice.uniform(1, 60), 3)
        elif what in ("crash", "stop", "freeze", "outage"):
            how = round(dice.uniform(0, 60), 3)
        elif what == "fault":
            method = dice.choice(("enqueue", "turn", "turn", "turn", "renew", "rescue", None))
            how = (method, dice.randint(1, 3), dice.random() < 0.5)
        elif what in ("cron", "uncron"):
            how = dice.choice(("often", "seldom"))
        elif what == "jump":
            how = dice.choice(JUMPS)
        plan.append(Action(at, what, who, how))
    return plan


def _options(dice: random.Random, number: int) -> Options:
    queue = dice.choice((PLAIN, PLAIN, KEYED))
    steps = [dice.choice(STEPS) for _ in range(dice.choice((0, 0, 1, 1, 2, 3)))]
    options: dict[str, Any] = {
        "id": f"task-{number}",
        "queue": queue,
        "script": (*steps, dice.choice(ENDINGS)),
    }
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


# ---- cutting down -------------------------------------------------------------------


def simpler(action: Action) -> Iterator[Action]:
    """The same action with one task, one option or one step of a script less."""
    if action.what != "publish":
        return
    tasks: list[Options] = action.how
    for at, options in enumerate(tasks):
        before, after = tasks[:at], tasks[at + 1 :]
        if before or after:
            yield attrs.evolve(action, how=[*before, *after])
        for name in [name for name in options if name not in ("id", "queue", "script")]:
            rest = {key: value for key, value in options.items() if key != name}
            yield attrs.evolve(action, how=[*before, rest, *after])
        script = options["script"]
        for step in range(len(script) - 1):
            cut = {**options, "script": (*script[:step], *script[step + 1 :])}
            yield attrs.evolve(action, how=[*before, cut, *after])
