"""Which ticks to run: what a cron task's policies make of the time that has passed. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, Literal, TypedDict, cast
from zoneinfo import ZoneInfo

import attrs

from dispatch.cron.spec import CronSpec, jitter_s
from dispatch.errors import InvalidConfigError
from dispatch.jsontext import canonical
from dispatch.records import NewTask, from_seconds, to_seconds

__all__ = [
    "CronOptions",
    "CronPolicy",
    "Decision",
    "Slots",
    "decide",
    "delay_s",
    "one_at_a_time",
    "read_definition",
    "shared",
    "tick_id",
    "write_definition",
]

FUTURE_S: Final = 3 * 3_600.0
"""A last slot further ahead than this means that the clock was wrong for a moment."""
WALKED_S: Final = 60.0
"""A tick decided so soon after its moment was waited for, and not jumped to."""
ALL_LIMIT: Final = 100
ALL_WINDOW_S: Final = 86_400.0
LEAST_GRACE_S: Final = 60.0
ON_TIME_S: Final = 5.0
"""A tick decided so soon is on time, whatever the policy: the loop looks at the clock every 5 s,
and never in the very moment of a tick."""


class CronOptions(TypedDict, total=False):
    """What adding a cron task takes beside its text: zone and DST rule, bounds, policies."""

    zone: str | ZoneInfo
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
      runs each within `misfire_window` seconds, at most the 100 latest. Of
      both, less than 5 s counts as 5 s: no tick is decided in its very moment.
    - `overlap`, when the previous run still goes on: `"allow"` runs beside it,
      `"skip"` drops the tick, `"queue_one"` runs once when it has ended,
      `"cancel_running"` cancels it and runs when it has ended. Ticks that
      misfire "all" makes up overlap each other, too: "skip" runs the first of
      them, "queue_one" the first and then the latest, "cancel_running" the latest.
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


@lru_cache(maxsize=1024)
def shared(policy: CronPolicy) -> CronPolicy:
    """The same object for equal policies: ten thousand entries have a few between them."""
    return policy


@attrs.frozen
class Decision:
    """The ticks to run now, oldest first, and where the entry stands then."""

    run: tuple[float, ...]
    last_slot: float
    next_slot: float | None
    missed: int = 0
    """How many ticks at least are passed over."""
    clock_was_wrong: bool = False


def decide(
    spec: CronSpec, policy: CronPolicy, last_slot: float, now: float, *, late: bool = False
) -> Decision:
    """What to run of the ticks in (last_slot, now], in UTC seconds.

    `late` says that the ticks waited for a previous run to end: then none of
    them was missed, and the latest runs.
    """
    if last_slot - now > FUTURE_S:  # a clock was wrong for a moment
        return Decision((), now, _next(spec, now), clock_was_wrong=True)
    first = _next(spec, last_slot)
    if first is None or first > now:
        return Decision((), last_slot, first)
    # On time, as it nearly always is, two searches are all there is to do: ten
    # thousand entries may be due at once.
    newest, upcoming = first, _next(spec, first)
    if upcoming is not None and upcoming <= now:
        found = spec.latest(from_seconds(first), from_seconds(now))
        assert found is not None
        newest, upcoming = to_seconds(found), _next(spec, to_seconds(found))
    run: tuple[float, ...] = (newest,)
    if not late:
        if policy.misfire == "all":
            run = _within(spec, first, newest, now - max(policy.misfire_window, ON_TIME_S))
        elif policy.misfire == "skip" and now - newest > _grace_s(policy, newest, upcoming):
            run = ()
    missed = 0 if run and run[0] == first else 1
    return Decision(run, newest, upcoming, missed=missed)


def one_at_a_time(decision: Decision, policy: CronPolicy) -> Decision:
    """What `overlap` makes of several ticks that are to run now, while no run goes on.

    A function that takes them one by one begins the first and meets its run at
    each of the others: `"skip"` drops those, `"queue_one"` runs once when it
    has ended, `"cancel_running"` ends it at once in favour of the latest. So
    with "queue_one" the latest stays undecided, and waits like any tick that
    comes during a run; with "cancel_running" it is the only one begun.
    """
    if policy.overlap == "allow" or len(decision.run) < 2:
        return decision
    first, before_latest, latest = decision.run[0], *decision.run[-2:]
    match policy.overlap:
        case "skip":
            return attrs.evolve(decision, run=(first,))
        case "queue_one":
            return attrs.evolve(decision, run=(first,), last_slot=before_latest, next_slot=latest)
        case "cancel_running":
            return attrs.evolve(decision, run=(latest,))


class Slots:
    """Where an entry stands: the last tick decided, and the newest one ever.

    They differ once a clock was wrong. Set back to 1970 for a moment, it makes
    decided ticks lie ahead; the entry starts from there, and without `newest`
    would decide them again when the clock is right. Set ahead, it makes ticks seem
    decided that are still to come: who walks on there tick by tick decides them.
    """

    __slots__ = ("last", "newest")

    def __init__(self, last: float) -> None:
        self.last: float = last
        self.newest: float = last

    def decide(self, spec: CronSpec, policy: CronPolicy, now: float, *, late: bool = False) -> Decision:
        """`decide` from here."""
        since = self.newest
        if since - now > FUTURE_S:
            since = self.last
        elif self.last < since:
            due = _next(spec, self.last)
            if due is not None and due < since and now - due <= WALKED_S:  # no jump has led here
                since = self.last
        return decide(spec, policy, since, now, late=late)

    def move_to(self, last: float) -> None:
        """This tick is the last one decided now."""
        self.last = last
        self.newest = max(self.newest, last)

    def skip_to(self, now: float) -> None:
        """No tick up to `now` is to be decided any more."""
        self.move_to(max(self.last, now))

    def in_the_future(self, now: float) -> bool:
        """Whether a wrong clock must have decided the last tick."""
        return self.last - now > FUTURE_S

    def __repr__(self) -> str:
        return f"Slots(last={self.last}, newest={self.newest})"


def _within(spec: CronSpec, first: float, newest: float, since: float) -> tuple[float, ...]:
    """The ticks from `first` to `newest` that come after `since`, at most the 100 latest."""
    slots: list[float] = []
    cursor: float | None = newest
    while cursor is not None and cursor >= first and cursor > since and len(slots) < ALL_LIMIT:
        slots.append(cursor)
        earlier = spec.previous(from_seconds(cursor))
        cursor = None if earlier is None else to_seconds(earlier)
    return tuple(reversed(slots))


def _grace_s(policy: CronPolicy, newest: float, upcoming: float | None) -> float:
    if policy.misfire_grace is not None:
        return max(policy.misfire_grace, ON_TIME_S)
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


def tick_id(name: str, slot: float) -> str:
    """The id of one tick's task: the same whoever publishes it, and whenever.

    So a tick that is published a second time (after a clock was wrong, or by a
    backfill) is stored already. A UUID of version 8 (RFC 9562): the slot's 48 bits
    of milliseconds, then 74 bits of a hash, so that ids go with the time of their ticks.
    """
    seed = f"{name}\0{slot:.6f}".encode()
    noise = int.from_bytes(blake2b(seed, digest_size=10).digest(), "big") >> 6
    moment = int(slot * 1_000) & 0xFFFF_FFFF_FFFF
    return (
        f"{moment >> 16:08x}-{moment & 0xFFFF:04x}-{0x8000 | noise >> 62:04x}"
        f"-{0x8000 | noise >> 48 & 0x3FFF:04x}-{noise & 0xFFFF_FFFF_FFFF:012x}"
    )


def write_definition(
    name: str, spec: CronSpec, policy: CronPolicy, description: str, template: NewTask | None = None
) -> str:
    """An entry's text: equal for equal entries of that name, whenever and wherever they were added.

    Of the task to publish only a hash is in it, by which a replaced entry is told apart.
    """
    return json.dumps(
        {
            "text": spec.text,
            "zone": spec.zone,
            "dst": spec.dst,
            "name": name if spec.name is None else spec.name,
            "anchor": _iso(spec.anchor),
            "start": _iso(spec.start),
            "end": _iso(spec.end),
            "description": description,
            "policy": attrs.asdict(policy),
            "task": None if template is None else _fingerprint(template),
        },
        sort_keys=True,
    )


def read_definition(text: str, anchor: float) -> tuple[CronSpec, CronPolicy, str]:
    """The spec, policies and description of a written entry.

    An `@every` that was given neither an anchor of its own nor a start counts from `anchor`.
    """
    found: dict[str, Any] = json.loads(text)
    if "unreadable" in found:  # as a storage tells it of a row
        raise ValueError(found["unreadable"])
    spec = CronSpec(
        found["text"],
        found["zone"],
        found["dst"],
        name=found["name"],
        anchor=_moment(found["anchor"]),
        start=_moment(found["start"]),
        end=_moment(found["end"]),
    )
    return spec.counted_from(from_seconds(anchor)), shared(CronPolicy(**found["policy"])), found["description"]


def _fingerprint(template: NewTask) -> str:
    # Whether orjson is installed must not make one entry two.
    template = attrs.evolve(template, payload=canonical(template.payload))
    text = json.dumps(attrs.asdict(template), sort_keys=True, default=_plain)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _plain(value: object) -> object:
    match value:
        case bytes():
            return value.hex()
        case frozenset():
            return sorted(cast("frozenset[str]", value))
        case Mapping():
            return dict(cast("Mapping[str, str]", value))
        case _:  # a new field of templates: say how it is hashed
            raise TypeError(f"a template holds {type(value).__name__}")


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else from_seconds(to_seconds(moment)).isoformat()


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
