"""`CronSpec`: a cron text, a zone and a rule for clock changes, as moments.

Theory of operation. `fields` reads the text into numbers, `walls` finds the local
times that match them, `zones` knows at which instants the clock shows those. This
module applies the rule for clock changes, which (in the words of vixie cron) is:

    An entry whose minute or hour field begins with `*` is an *interval*: it fires
    whenever the local clock shows a matching time, so not inside a skipped hour and
    twice in a repeated one. Any other entry is a *time of day*: it fires once for
    every matching local time. If that time is skipped, it fires at the first moment
    after the gap (several such times, and a regular fire at that moment, count as
    one). If it occurs twice, it fires at the first. A gap longer than three hours
    is a correction of the calendar and is not made up.

`dst="robfig"` treats every entry as an interval. No clock is read here and nothing
waits: every question is about a moment that the caller names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from typing import Final, Literal, cast
from zoneinfo import ZoneInfo

import attrs

from dispatch.cron.days import DayTable
from dispatch.cron.describe import described_days, described_dst, described_every, described_times
from dispatch.cron.fields import Fields, refuse, shown
from dispatch.cron.text import Every, divided, parse, stripped
from dispatch.cron.walls import Walls
from dispatch.cron.zones import EARLIEST, LATEST, SECOND, Seam, UnknownZoneError, Zone
from dispatch.errors import InvalidConfigError, InvalidCronSpecError

__all__ = ["MAX_PREVIEW", "CronSpec", "DstRule", "jitter_s"]

DstRule = Literal["vixie", "robfig"]

MAX_PREVIEW: Final = 10_000
"""Most moments that one `preview` gives."""

_MAX_GAP: Final = timedelta(hours=3)
_TICK: Final = timedelta(microseconds=1)


def _key_of(given: str | ZoneInfo) -> str:
    """The key of a zone; what has none goes on as it is, to be refused together with the text."""
    return cast("str", (given.key or given) if isinstance(given, ZoneInfo) else given)


@attrs.frozen(repr=False)
class CronSpec:
    """The moments of a cron text, after or before a given one.

        CronSpec("30 2 * * MON-FRI", "Europe/Berlin").next(datetime.now(UTC))

    `text` is 5 fields, 6 (seconds first), 7 (and the year last), `@daily` and the
    like, or `@every 90m`; `CRON_TZ=Area/City ` before it wins over `zone`, which is a
    key such as "Europe/Berlin" or a `ZoneInfo` that has one, and kept as the key. `dst` is
    the rule for clock changes: "vixie" makes up for skipped times of day and fires
    repeated ones once, "robfig" skips and repeats. `name` is what `H` is drawn
    from. Moments lie from `start` to `end`, both included.

    `@every` counts elapsed time: `anchor + k * period` for k = 1, 2, … Without an
    `anchor` it counts from `start`, and without either from the moment that it is
    asked about; `with_anchor` gives the spec that a restart does not shift, and
    `counted_from` one that fires before that moment, too. For other texts an anchor
    means nothing and is dropped.

    Equal and hashable by these values; `anchor`, `start` and `end` are kept in UTC.
    Raises InvalidCronSpecError for a text or zone that is wrong or never fires, and
    InvalidConfigError for the other arguments. Once made, it raises for no aware
    moment: outside the years 1 to 9999 there simply is none.
    """

    text: str
    zone: str = attrs.field(default="UTC", converter=_key_of)
    dst: DstRule = "vixie"
    name: str | None = attrs.field(default=None, kw_only=True)
    anchor: datetime | None = attrs.field(default=None, kw_only=True)
    start: datetime | None = attrs.field(default=None, kw_only=True)
    end: datetime | None = attrs.field(default=None, kw_only=True)
    _plan: _Plan | Every = attrs.field(init=False, eq=False)
    _zone: Zone = attrs.field(init=False, eq=False)
    _phase_only: bool = attrs.field(init=False, default=False)
    """Whether the anchor is nobody's beginning: k may be 0 and less."""

    def __attrs_post_init__(self) -> None:
        # Frozen, yet written once here: the zone comes out of the text, and moments
        # are brought to UTC so that equality never depends on a fold.
        write = object.__setattr__
        if self.dst not in ("vixie", "robfig"):
            raise InvalidConfigError(f"dst must be 'vixie' or 'robfig', got {self.dst!r}")
        write(self, "text", stripped(self.text))
        key, body = divided(self.text)
        zone = _zone_of(self.text, self.zone if key is None else key)
        write(self, "zone", zone.key)
        write(self, "_zone", zone)
        write(self, "_plan", _plan_of(body, self.name if "H" in body.upper() else None))
        for field in ("anchor", "start", "end"):
            moment: datetime | None = getattr(self, field)
            if moment is not None:
                write(self, field, _instant(moment, field).replace(tzinfo=UTC))
        # What means nothing here must not make a difference.
        if not isinstance(self._plan, Every):
            write(self, "anchor", None)
        if "H" not in body.upper():
            write(self, "name", None)
        self._refuse_never()

    def next(self, after: datetime) -> datetime | None:
        """The first moment strictly after `after`, in this zone; None if there is none.

        `after` is aware, of any zone. Raises InvalidConfigError if it is naive.
        """
        return self._moment(self._next(_instant(after, "after")))

    def previous(self, before: datetime) -> datetime | None:
        """The last moment strictly before `before`, in this zone; None if there is none.

        Raises InvalidConfigError if `before` is naive.
        """
        return self._moment(self._previous(_instant(before, "before")))

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        """The last moment in `(after, until]`, found from its end: the one missed slot to run."""
        start, end = _instant(after, "after"), _instant(until, "until")
        if end <= start:
            return None
        found = self._counted_from(start)._previous(end + _TICK)
        return None if found is None or found <= start else self._moment(found)

    def between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """The moments in `(after, until]`, ascending, each worked out when it is asked for."""
        end = _instant(until, "until")
        return self._iterate(_instant(after, "after"), end)

    def iterate(self, after: datetime) -> Iterator[datetime]:
        """The moments after `after`, ascending; for most texts thousands of years of them."""
        return self._iterate(_instant(after, "after"), LATEST)

    def preview(self, n: int, *, after: datetime) -> list[datetime]:
        """The first `n` (0 to 10,000) moments after `after`; fewer if there are no more."""
        if type(n) is not int or not 0 <= n <= MAX_PREVIEW:
            raise InvalidConfigError(f"preview: n must be 0 to {MAX_PREVIEW}, got {n!r}")
        return list(islice(self.iterate(after), n))

    def period_s(self, after: datetime) -> float | None:
        """The seconds between the next two moments after `after`; None if there are not two."""
        first = self._next(_instant(after, "after"))
        second = None if first is None else self._next(first)
        return None if first is None or second is None else (second - first).total_seconds()

    def jitter_s(self, name: str, slot: datetime, limit_s: float) -> float:
        """`jitter_s`, with the limit cut to the time from `slot` to the next moment.

        So `slot + delay` is always before the next moment.
        """
        this = _instant(slot, "slot")
        following = self._next(this)
        if following is not None:
            limit_s = min(limit_s, (following - this).total_seconds())
        return jitter_s(name, slot, limit_s)

    def with_anchor(self, moment: datetime) -> CronSpec:
        """The same spec counted from `moment`; for texts other than `@every`, this very one."""
        if not isinstance(self._plan, Every):
            return self
        return attrs.evolve(self, anchor=moment)

    def counted_from(self, moment: datetime) -> CronSpec:
        """For an `@every` with neither anchor nor `start` the one counted from `moment`; else this very one.

        Nobody asked that it begin there: it fires at `moment + k * period` for every
        whole k, so that a clock which was ahead at that moment silences nothing.
        """
        return self._counted_from(_instant(moment, "moment"))

    @property
    def is_interval(self) -> bool:
        """Whether it fires in both passes of a repeated hour and never makes up a skipped one.

        True if the minute or hour field begins with `*`, and for `@every`. It says
        nothing about `dst="robfig"`, which treats every entry so.
        """
        return isinstance(self._plan, Every) or self._plan.fields.is_interval

    @property
    def every_s(self) -> float | None:
        """The period of an `@every` text in seconds; None for any other."""
        return self._plan.period_us / 1_000_000 if isinstance(self._plan, Every) else None

    def describe(self) -> str:
        """The meaning in plain English, in under a thousand characters for any text."""
        if isinstance(self._plan, Every):
            origin = self.anchor or self.start
            since = "" if origin is None else f", counted from {_stamp(origin)}"
            return f"{described_every(self._plan)}{since}.{self._described_bounds()}"
        fields = self._plan.fields
        text = f"{described_times(fields)}, {described_days(fields)}, in {self.zone}."
        text += self._described_bounds()
        if self._zone.tz is not UTC:
            text += f" {described_dst(recurring=self._recurs)}"
        return text

    def __repr__(self) -> str:
        optional = ("name", "anchor", "start", "end")
        given = [(field, value) for field in optional if (value := getattr(self, field))]
        rest = "".join(
            f", {field}={str(value) if isinstance(value, datetime) else value!r}"
            for field, value in given
        )
        rule = "" if self.dst == "vixie" else f", dst={self.dst!r}"
        return f"CronSpec({self.text!r}, {self.zone!r}{rule}{rest})"

    def __reduce__(self) -> tuple[object, ...]:
        # The plan holds a lock and a search in progress: a copy is made from the values.
        return _rebuilt, (
            self.text,
            self.zone,
            self.dst,
            self.name,
            self.anchor,
            self.start,
            self.end,
            self._phase_only,
        )

    @property
    def _recurs(self) -> bool:
        """Whether it fires whenever the clock shows a matching time, and only then."""
        return self.dst == "robfig" or self.is_interval

    def _moment(self, instant: datetime | None) -> datetime | None:
        return None if instant is None else self._zone.moment(instant)

    def _iterate(self, after: datetime, until: datetime) -> Iterator[datetime]:
        found = self._next(after)
        while found is not None and found <= until:
            yield self._zone.moment(found)
            found = self._next(found)

    def _counted_from(self, instant: datetime) -> CronSpec:
        """This spec, or for an `@every` that counts from nothing one that counts from there."""
        if not isinstance(self._plan, Every) or self.anchor or self.start:
            return self
        counted = attrs.evolve(self, anchor=instant.replace(tzinfo=UTC))
        object.__setattr__(counted, "_phase_only", True)
        return counted

    def _next(self, after: datetime) -> datetime | None:
        """`next` on instants, within the bounds of the spec and of the calendar."""
        if self.start is not None:
            after = max(after, _naive(self.start) - _TICK)
        if isinstance(self._plan, Every):
            found = self._every_next(after, self._plan.period_us * _TICK)
        else:
            found = self._matching_next(after, self._plan.walls)
        last = LATEST if self.end is None else _naive(self.end)
        return None if found is None or found > last else found

    def _previous(self, before: datetime) -> datetime | None:
        """`previous` on instants, within the bounds of the spec and of the calendar."""
        if self.end is not None:
            before = min(before, _naive(self.end) + _TICK)
        if isinstance(self._plan, Every):
            found = self._every_previous(before, self._plan.period_us * _TICK)
        else:
            found = self._matching_previous(before, self._plan.walls)
        first = EARLIEST if self.start is None else _naive(self.start)
        return None if found is None or found < first else found

    def _every_next(self, after: datetime, period: timedelta) -> datetime | None:
        origin = self.anchor or self.start
        begun = after if origin is None else _naive(origin)
        count = (after - begun) // period + 1
        if not self._phase_only:
            count = max(1, count)
        try:
            return begun + count * period
        except OverflowError:
            return None

    def _every_previous(self, before: datetime, period: timedelta) -> datetime | None:
        origin = self.anchor or self.start
        if origin is None:
            return before - period if before - EARLIEST > period else None
        count = -((_naive(origin) - before) // period) - 1
        if count < 1 and not self._phase_only:
            return None
        try:
            return _naive(origin) + count * period
        except OverflowError:
            return None

    def _matching_next(self, after: datetime, walls: Walls) -> datetime | None:
        wall = self._zone.wall(after)
        found = self._search_next(wall, after, walls)
        if not self._recurs or wall.fold:
            return found
        seam = self._zone.resolve(wall)
        if not isinstance(seam, Seam) or (found is not None and found < seam.at):
            return found
        # In the first pass of an overlap, with nothing left in it: the second pass
        # shows walls again that lie behind the present one.
        again = self._search_next(seam.starts - SECOND, after, walls)
        return again if found is None or (again is not None and again < found) else found

    def _search_next(self, cursor: datetime, after: datetime, walls: Walls) -> datetime | None:
        """The first instant after `after` of the matching walls behind `cursor`."""
        while (wall := walls.after(cursor)) is not None:
            cursor = wall
            shown_at = self._zone.resolve(wall)
            if not isinstance(shown_at, Seam):
                if shown_at > after:
                    return shown_at
            elif shown_at.is_gap:
                if self._makes_up(shown_at) and shown_at.at > after:
                    return shown_at.at
                cursor = shown_at.ends - SECOND  # its other walls fare the same
            else:
                if wall - shown_at.before > after:
                    return wall - shown_at.before
                if not self._recurs:
                    cursor = shown_at.ends - SECOND  # their first pass is over as well
                elif wall - shown_at.after > after:
                    return wall - shown_at.after
        return None

    def _matching_previous(self, before: datetime, walls: Walls) -> datetime | None:
        wall = self._zone.wall(before)
        seam = self._zone.resolve(wall) if wall.fold else None
        if not isinstance(seam, Seam):
            return self._search_previous(wall, before, walls)
        # In the second pass of an overlap: the first pass showed walls that lie
        # ahead of the present one.
        earlier = self._search_previous(seam.ends, before, walls)
        if not self._recurs:
            return earlier
        found = self._search_previous(wall, before, walls)
        return earlier if found is None or (earlier is not None and earlier > found) else found

    def _search_previous(self, cursor: datetime, before: datetime, walls: Walls) -> datetime | None:
        """The last instant before `before` of the matching walls ahead of `cursor`."""
        while (wall := walls.before(cursor)) is not None:
            cursor = wall
            shown_at = self._zone.resolve(wall)
            if not isinstance(shown_at, Seam):
                if shown_at < before:
                    return shown_at
            elif shown_at.is_gap:
                if self._makes_up(shown_at) and shown_at.at < before:
                    return shown_at.at
                cursor = shown_at.starts
            else:
                if self._recurs and wall - shown_at.after < before:
                    return wall - shown_at.after
                if wall - shown_at.before < before:
                    return wall - shown_at.before
        return None

    def _makes_up(self, gap: Seam) -> bool:
        return not self._recurs and gap.after - gap.before <= _MAX_GAP

    def _refuse_never(self) -> None:
        if self.start is not None and self.end is not None and self.end < self.start:
            refuse(
                self.text,
                "end",
                f"it never fires: its end, {_stamp(self.end)}, lies before its start, "
                f"{_stamp(self.start)}",
            )
        if isinstance(self._plan, Every):
            return
        # Without years and bounds the calendar has the last word, and has been asked.
        bounded = self.start is not None or self.end is not None
        if (bounded or self._plan.fields.year is not None) and self._next(EARLIEST) is None:
            within = self._described_bounds().strip().rstrip(".").lower() if bounded else ""
            refuse(self.text, None, f"it never fires{f' {within}' if within else ''}")

    def _described_bounds(self) -> str:
        pieces = [
            f"{word} {_stamp(moment)}"
            for word, moment in (("from", self.start), ("until", self.end))
            if moment is not None
        ]
        text = " ".join(pieces)
        return f" {text[0].upper()}{text[1:]}." if text else ""


def jitter_s(name: str, slot: datetime, limit_s: float) -> float:
    """A delay in seconds, `0 <= delay < limit_s`, the same each time for a name and a slot.

        delay = limit_s * (the first 53 bits of blake2b(name + NUL + slot)) / 2**53

    rounded down to microseconds; `slot` counts as its UTC instant. 0 for a limit of
    0. Raises InvalidConfigError if `slot` is naive or the limit negative or infinite.
    """
    if not 0 <= limit_s < math.inf:
        raise InvalidConfigError(f"jitter must be 0 or more seconds, finite, got {limit_s!r}")
    stamp = _instant(slot, "slot").isoformat(timespec="microseconds")
    seed = f"{name}\0{stamp}".encode("utf-8", "surrogatepass")
    drawn = int.from_bytes(blake2b(seed, digest_size=8).digest(), "big") >> 11
    # Down to microseconds, the grain of a datetime: rounding up could reach the limit.
    return math.floor(limit_s * (drawn / 2**53) * 1_000_000) / 1_000_000


@attrs.frozen
class _Plan:
    """What depends on the text alone, and is shared by all specs of that text."""

    fields: Fields
    walls: Walls


# A function of its arguments: ten thousand entries of a thousand distinct texts
# build a thousand croniter objects, which cost 0.1 to 0.3 ms and some kilobytes each.
@lru_cache(maxsize=2048)
def _plan_of(body: str, name: str | None) -> _Plan | Every:
    fields = parse(body, name)
    if isinstance(fields, Every):
        return fields
    days = DayTable(fields)
    if days.is_empty():
        refuse(body, "day", "it never fires: none of its months has such a day")
    return _Plan(fields, Walls.of(fields, days))


def _zone_of(text: str, key: str) -> Zone:
    try:
        return Zone.named(key)
    except UnknownZoneError as error:
        reason = f"{shown(str(key))}: {error}"
        raise InvalidCronSpecError(
            f"cron text {shown(text)}: zone: {reason}", "zone", reason
        ) from error


def _rebuilt(
    text: str,
    zone: str,
    dst: DstRule,
    name: str | None,
    anchor: datetime | None,
    start: datetime | None,
    end: datetime | None,
    phase_only: bool,
) -> CronSpec:
    if phase_only:
        assert anchor is not None
        return CronSpec(text, zone, dst, name=name, end=end).counted_from(anchor)
    return CronSpec(text, zone, dst, name=name, anchor=anchor, start=start, end=end)


def _instant(moment: datetime, what: str) -> datetime:
    """An aware datetime as naive UTC; at the ends of the calendar the nearest there is."""
    given = cast("object", moment)
    if not isinstance(given, datetime):
        raise InvalidConfigError(f"{what} must be an aware datetime, got {shown(str(given))}")
    offset = moment.utcoffset()
    if offset is None:
        raise InvalidConfigError(
            f"{what} must be an aware datetime, got {moment.isoformat()} without a zone"
        )
    try:
        instant = moment.replace(tzinfo=None, fold=0) - offset
    except OverflowError:
        return EARLIEST if offset > timedelta(0) else LATEST
    return max(EARLIEST, min(instant, LATEST))


def _naive(moment: datetime) -> datetime:
    """A moment that is kept in UTC, as an instant."""
    return moment.replace(tzinfo=None)


def _stamp(moment: datetime) -> str:
    return moment.isoformat(sep=" ", timespec="auto")
