"""Which ticks to run: what a cron task's policies make of the time that has passed. Pure."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Final, Literal, TypedDict

import attrs

from dispatch.cron.spec import CronSpec, jitter_s
from dispatch.errors import InvalidConfigError
from dispatch.records import from_seconds, to_seconds

__all__ = ["CronOptions", "CronPolicy", "Decision", "decide", "read_definition", "write_definition"]

FUTURE_S: Final = 3 * 3_600.0
"""A last slot further ahead than this means that the clock was wrong for a moment."""
ALL_LIMIT: Final = 100
ALL_WINDOW_S: Final = 86_400.0
LEAST_GRACE_S: Final = 60.0


class CronOptions(TypedDict, total=False):
    """What adding a cron task takes beside its text: zone and DST rule, bounds, policies."""

    zone: str
    dst: Literal["vixie", "robfig"]
    start: datetime | None
    end: datetime | None
    description: str
    misfire: Literal["latest", "skip", "all"]
    misfire_grace: float | None
    misfire_window: float
    overlap: Literal["allow", "skip", "queue_one", "cancel_running"]
    jitter: float


@attrs.frozen(kw_only=True)
class CronPolicy:
    """What happens when the plan and the world part.

    - `misfire`, for ticks missed while nothing ran or the clock stood:
      `"latest"` runs once, for the latest; `"skip"` runs none of those later
      than `misfire_grace` seconds (None: one period, at least 60 s); `"all"`
      runs each within `misfire_window` seconds, at most the 100 latest.
    - `overlap`, when the previous run still goes on: `"allow"` runs beside it,
      `"skip"` drops the tick, `"queue_one"` runs once when it has ended,
      `"cancel_running"` cancels it and runs when it has ended.
    - `jitter`: a run starts up to this many seconds after its tick, evenly
      spread by name and tick, the same every time it is computed.
    """

    misfire: Literal["latest", "skip", "all"] = "latest"
    misfire_grace: float | None = None
    misfire_window: float = ALL_WINDOW_S
    overlap: Literal["allow", "skip", "queue_one", "cancel_running"] = "allow"
    jitter: float = 0.0

    def __attrs_post_init__(self) -> None:
        if self.misfire not in ("latest", "skip", "all"):
            raise InvalidConfigError(f"cron: misfire must be 'latest', 'skip' or 'all', got {self.misfire!r}")
        if self.overlap not in ("allow", "skip", "queue_one", "cancel_running"):
            raise InvalidConfigError(
                "cron: overlap must be 'allow', 'skip', 'queue_one' or 'cancel_running', "
                f"got {self.overlap!r}"
            )
        for name in ("misfire_grace", "misfire_window", "jitter"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 <= value <= 366 * 86_400):
                raise InvalidConfigError(f"cron: {name} must be within 0 and 366 days, in seconds; got {value!r}")


@attrs.frozen
class Decision:
    """The ticks to run now, oldest first, and where the entry stands then."""

    run: tuple[float, ...]
    last_slot: float
    next_slot: float | None
    missed: int = 0
    """How many ticks at least were passed over."""
    clock_was_wrong: bool = False


def decide(
    spec: CronSpec, policy: CronPolicy, last_slot: float, now: float, *, late: bool = False
) -> Decision:
    """What to run of the ticks in (last_slot, now], in UTC seconds.

    `late` says that the ticks waited for a previous run to end: then none of
    them was missed, and the latest runs.
    """
    if last_slot - now > FUTURE_S:
        return Decision((), now, _next(spec, now), clock_was_wrong=True)
    newest_at = spec.latest(from_seconds(last_slot), from_seconds(now)) if now > last_slot else None
    if newest_at is None:
        return Decision((), last_slot, _next(spec, last_slot))
    newest = to_seconds(newest_at)
    upcoming = _next(spec, newest)
    if policy.misfire == "all" and not late:
        since = max(last_slot, now - policy.misfire_window)
        slots: list[float] = []
        cursor = newest_at
        while len(slots) < ALL_LIMIT and to_seconds(cursor) > since:
            slots.append(to_seconds(cursor))
            earlier = spec.previous(cursor)
            if earlier is None:
                break
            cursor = earlier
        return Decision(tuple(reversed(slots)), newest, upcoming)
    if policy.misfire == "skip" and not late and now - newest > _grace_s(policy, newest, upcoming):
        return Decision((), newest, upcoming, missed=1)
    before = spec.previous(newest_at)
    missed = 1 if before is not None and to_seconds(before) > last_slot else 0
    return Decision((newest,), newest, upcoming, missed=missed)


def _grace_s(policy: CronPolicy, newest: float, upcoming: float | None) -> float:
    if policy.misfire_grace is not None:
        return policy.misfire_grace
    return max(LEAST_GRACE_S, upcoming - newest if upcoming is not None else LEAST_GRACE_S)


def _next(spec: CronSpec, after: float) -> float | None:
    moment = spec.next(from_seconds(after))
    return None if moment is None else to_seconds(moment)


def delay_s(policy: CronPolicy, name: str, slot: float, next_slot: float | None) -> float:
    """The jitter of one tick: within the limit, and never past the next tick."""
    limit = policy.jitter
    if next_slot is not None:
        limit = min(limit, next_slot - slot)
    return jitter_s(name, from_seconds(slot), limit) if limit > 0 else 0.0


def write_definition(spec: CronSpec, policy: CronPolicy, description: str) -> str:
    """A stored entry's text: equal for equal entries, whenever and wherever they were added."""
    return json.dumps(
        {
            "text": spec.text,
            "zone": spec.zone,
            "dst": spec.dst,
            "start": _iso(spec.start),
            "end": _iso(spec.end),
            "description": description,
            **attrs.asdict(policy),
        },
        sort_keys=True,
    )


def read_definition(name: str, text: str, anchor: float) -> tuple[CronSpec, CronPolicy, str]:
    """The spec, policies and description that `write_definition` wrote."""
    found: dict[str, Any] = json.loads(text)
    spec = CronSpec(
        found.pop("text"),
        found.pop("zone"),
        found.pop("dst"),
        name=name,
        anchor=from_seconds(anchor),
        start=_moment(found.pop("start")),
        end=_moment(found.pop("end")),
    )
    description = found.pop("description")
    return spec, CronPolicy(**found), description


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else from_seconds(to_seconds(moment)).isoformat()


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
