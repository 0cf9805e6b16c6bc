"""Retry policies: an attempt's number and its error to seconds, or to no more.

Pure: randomness comes in as an argument, and nothing here knows a clock. A
policy's delays can be written to text and read back, because the claim stores
them with the task: a process that rescues it may not know its queue.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any, Literal, TypedDict, Unpack, cast

import attrs

from dispatch.callables import is_async
from dispatch.checks import check_within, shown
from dispatch.errors import (
    LONGEST_S,
    Cancel,
    InvalidConfigError,
    PermanentError,
    RetryAfter,
    Snooze,
    check_wait,
    leaves,
)

__all__ = ["RetryPolicy", "Verdict", "VerdictKind", "judge"]

Growth = Literal["fixed", "linear", "exponential"]
_Classes = type[BaseException] | Iterable[type[BaseException]]
_Decide = Callable[[BaseException, int], float | Literal[False] | None]


def _classes(what: str, given: object) -> tuple[type[BaseException], ...]:
    # A tuple, which isinstance takes and a list is not.
    several = tuple(cast("Iterable[Any]", given)) if isinstance(given, Iterable) else (cast("Any", given),)
    for each in several:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise InvalidConfigError(f"RetryPolicy: {what} must be exception classes, got {shown(cast('Any', each))}")
    return several


def _permanent(given: _Classes) -> tuple[type[BaseException], ...]:
    return _classes("permanent", given)


def _retry_on(given: _Classes | None) -> tuple[type[BaseException], ...] | None:
    return None if given is None else _classes("retry_on", given)


class _Rest(TypedDict, total=False):
    factor: float
    max_delay: float
    permanent: _Classes
    retry_on: _Classes | None
    decide: _Decide | None


class _RestWithJitter(_Rest, total=False):
    jitter: float


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """How long to wait before the next attempt, and which errors get none.

    With `attempt` the number of the attempt that failed (1 for the first)::

        fixed        wait = min(max_delay, delay)
        linear       wait = min(max_delay, delay * attempt)
        exponential  wait = min(max_delay, delay * factor ** (attempt - 1))

    and then, with `jitter` j in [0, 1], wait is drawn evenly from
    [wait * (1 - j), wait * (1 + j)] and capped again: at the cap only ever shorter,
    in half of the draws not at all. The defaults of `RetryPolicy.exponential()` give
    1, 2, 4, 8, ... 3600 s, each up to a tenth shorter or longer.

    `fixed`, `linear` and `exponential` raise the default of `max_delay`, an hour, to
    a longer `delay`; given by hand, and in `RetryPolicy(delay=...)`, it caps that too.

    `permanent` are exception classes that are never retried. `retry_on`, if
    given, are the only ones that are; either may be any collection. `decide`, if given, is asked first: it
    takes the exception and the attempt and returns a wait in seconds, False
    for permanent, or None for what the policy says otherwise. In an exception
    group every leaf is judged and the most restrictive verdict wins.
    """

    growth: Growth = "fixed"
    delay: float = 1.0
    factor: float = 2.0
    max_delay: float = 3_600.0
    jitter: float = 0.0
    permanent: tuple[type[BaseException], ...] = attrs.field(default=(), converter=_permanent)
    retry_on: tuple[type[BaseException], ...] | None = attrs.field(default=None, converter=_retry_on)
    decide: _Decide | None = None

    def __attrs_post_init__(self) -> None:
        if self.growth not in ("fixed", "linear", "exponential"):
            raise InvalidConfigError(
                f"RetryPolicy: growth must be 'fixed', 'linear' or 'exponential', got {self.growth!r}"
            )
        for name, low, high in (
            ("delay", 0.0, LONGEST_S),
            ("factor", 1.0, 1_000.0),
            ("max_delay", 0.0, LONGEST_S),
            ("jitter", 0.0, 1.0),
        ):
            check_within(f"RetryPolicy: {name}", getattr(self, name), low, high, unit="")
        if self.decide is not None and (not callable(self.decide) or is_async(self.decide)):
            raise InvalidConfigError(
                f"RetryPolicy: decide must be a sync function of (exception, attempt), got {shown(self.decide)}"
            )

    @classmethod
    def fixed(cls, delay: float = 1.0, **rest: Unpack[_RestWithJitter]) -> RetryPolicy:
        """The same wait each time."""
        rest.setdefault("max_delay", _cap(delay))
        return cls(growth="fixed", delay=delay, **rest)

    @classmethod
    def linear(cls, delay: float = 1.0, **rest: Unpack[_RestWithJitter]) -> RetryPolicy:
        """One `delay` more each time: 1, 2, 3, ... by default."""
        rest.setdefault("max_delay", _cap(delay))
        return cls(growth="linear", delay=delay, **rest)

    @classmethod
    def exponential(cls, delay: float = 1.0, *, jitter: float = 0.1, **rest: Unpack[_Rest]) -> RetryPolicy:
        """`factor` times more each time: 1, 2, 4, ... 3600 s by default, with a tenth of jitter."""
        rest.setdefault("max_delay", _cap(delay))
        return cls(growth="exponential", delay=delay, jitter=jitter, **rest)

    def wait_s(self, attempt: int, random: Callable[[], float]) -> float:
        """Seconds to wait after attempt number `attempt`; `random` draws from [0, 1)."""
        if self.growth == "fixed":
            wait = self.delay
        elif self.growth == "linear":
            wait = self.delay * attempt
        else:
            try:
                wait = self.delay * self.factor ** (attempt - 1)
            except OverflowError:
                wait = self.max_delay if self.delay else 0.0
        wait = min(wait, self.max_delay)
        if self.jitter:
            wait = min(wait * (1 - self.jitter + 2 * self.jitter * random()), self.max_delay)
        return wait

    def to_text(self) -> str:
        """The delays as text, for the task's row; what judges exceptions stays behind."""
        return json.dumps([self.growth, self.delay, self.factor, self.max_delay, self.jitter])

    @classmethod
    def from_text(cls, text: str) -> RetryPolicy:
        """The delays that `to_text` wrote."""
        growth, delay, factor, max_delay, jitter = json.loads(text)
        return cls(growth=growth, delay=delay, factor=factor, max_delay=max_delay, jitter=jitter)


def _cap(delay: object) -> float:
    """The cap where none is given: an hour, and never less than the first wait."""
    return max(delay, 3_600.0) if isinstance(delay, int | float) else 3_600.0


class VerdictKind(IntEnum):
    """What an error means for its task, the most restrictive last."""

    SNOOZE = 0
    RETRY = 1
    CANCEL = 2
    PERMANENT = 3


@attrs.frozen
class Verdict:
    """What follows from an error: `wait_s` seconds until the next run, where there is one."""

    kind: VerdictKind
    wait_s: float = 0.0
    reason: str = ""


def judge(policy: RetryPolicy, error: BaseException, attempt: int, random: Callable[[], float]) -> Verdict:
    """What `error`, raised by attempt number `attempt`, means under `policy`.

    Of a group's leaves the most restrictive wins: permanent before cancel
    before retry before snooze; of several retries the longest wait.
    """
    found = [_judge_leaf(policy, leaf, attempt, random) for leaf in leaves(error)]
    return max(found, key=lambda verdict: (verdict.kind, verdict.wait_s))


def _judge_leaf(
    policy: RetryPolicy, error: BaseException, attempt: int, random: Callable[[], float]
) -> Verdict:
    # A class derived from a signal, and who changes one, may have put anything into it. What
    # cannot be a wait or a reason fails here, inside the attempt, and not on its way to a row.
    if isinstance(error, Snooze):
        return Verdict(VerdictKind.SNOOZE, check_wait("Snooze", error.delay))
    if isinstance(error, Cancel):
        return Verdict(VerdictKind.CANCEL, reason=str(error.reason))
    if isinstance(error, PermanentError):
        return Verdict(VerdictKind.PERMANENT)
    if isinstance(error, RetryAfter):
        return Verdict(VerdictKind.RETRY, check_wait("RetryAfter", error.delay))
    if policy.decide is not None:
        decided = policy.decide(error, attempt)
        if decided is False:
            return Verdict(VerdictKind.PERMANENT)
        if decided is not None:
            if decided is True or not 0 <= decided <= LONGEST_S:
                raise InvalidConfigError(
                    f"RetryPolicy: decide must return seconds of at least 0, False or None, got {decided!r}"
                )
            return Verdict(VerdictKind.RETRY, float(decided))
    if isinstance(error, policy.permanent):
        return Verdict(VerdictKind.PERMANENT)
    if policy.retry_on is not None and not isinstance(error, policy.retry_on):
        return Verdict(VerdictKind.PERMANENT)
    return Verdict(VerdictKind.RETRY, policy.wait_s(attempt, random))
