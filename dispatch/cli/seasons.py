"""What a cron text does on the days when clocks change, told in plain English."""

from __future__ import annotations

from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final
from zoneinfo import ZoneInfo

import attrs

from dispatch.cron.spec import CronSpec

__all__ = ["ClockChange", "clock_changes", "told"]

AHEAD: Final = timedelta(days=400)
"""How far to look for changes: a bit more than a year holds both of an ordinary zone."""
_DAY: Final = timedelta(days=1)
_FIRST: Final = datetime.min.replace(tzinfo=UTC) + 10 * _DAY
_LAST: Final = datetime.max.replace(tzinfo=UTC) - 10 * _DAY
"""Where a look around in any zone stays within the calendar."""
_SECOND: Final = timedelta(seconds=1)
_NAMED: Final = 4
"""So many moments of one day are written out; more are counted."""
_COUNTED: Final = 10_000


@attrs.frozen(kw_only=True)
class ClockChange:
    """One change of a zone's offset, and what a cron text does on that local day.

    `at` is its first moment under the new offset. `fires` holds the day's first
    `_NAMED` moments, `count` how many there are, `usual` how many a week earlier.
    """

    at: datetime
    before: timedelta
    after: timedelta
    fires: list[datetime]
    count: int
    usual: int


def clock_changes(spec: CronSpec, after: datetime) -> list[ClockChange]:
    """The changes of the spec's zone within `AHEAD`, at most four; none for `@every`."""
    if spec.zone == "UTC" or spec.every_s is not None:
        return []
    zone = ZoneInfo(spec.zone)
    return [_on_that_day(spec, at, before) for at, before in islice(_seams(zone, after), 4)]


def _seams(zone: ZoneInfo, after: datetime) -> Generator[tuple[datetime, timedelta]]:
    """The first moments under a new offset, with the old one; by days, then by bisection."""
    low = max(after.astimezone(UTC).replace(microsecond=0), _FIRST)
    end = low + min(AHEAD, _LAST - low)
    while low < end:
        high = low + _DAY
        before = _offset(zone, low)
        if _offset(zone, high) != before:
            left, right = 0, int(_DAY / _SECOND)
            while right - left > 1:
                middle = (left + right) // 2
                if _offset(zone, low + middle * _SECOND) == before:
                    left = middle
                else:
                    right = middle
            yield (low + right * _SECOND).astimezone(zone), before
        low = high


def _offset(zone: ZoneInfo, moment: datetime) -> timedelta:
    offset = moment.astimezone(zone).utcoffset()
    assert offset is not None
    return offset


def _on_that_day(spec: CronSpec, at: datetime, before: timedelta) -> ClockChange:
    found = _fires(spec, at)
    after = at.utcoffset()
    assert after is not None
    return ClockChange(
        at=at,
        before=before,
        after=after,
        fires=found[:_NAMED],
        count=len(found),
        usual=len(_fires(spec, at - 7 * _DAY)),
    )


def _fires(spec: CronSpec, day: datetime) -> list[datetime]:
    """The moments of the local day on which `day` lies, up to `_COUNTED`."""
    start = day.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    end = (start + _DAY).replace(fold=0)
    instant = timedelta(microseconds=1)
    since, until = start.astimezone(UTC) - instant, end.astimezone(UTC) - instant
    return list(islice(spec.between(since, until), _COUNTED))


def told(change: ClockChange) -> str:
    """`Sun 2026-03-29: clocks go forward by 1 h, from 02:00 to 03:00 CEST. Fires at 03:00 CEST.`"""
    shift = change.after - change.before
    way = "forward" if shift > timedelta() else "back"
    from_wall = (change.at.astimezone(UTC) + change.before).strftime("%H:%M")
    return (
        f"{change.at:%a %Y-%m-%d}: clocks go {way} by {_span(abs(shift))}, from {from_wall} "
        f"to {change.at:%H:%M %Z}. {_fires_told(change)}"
    )


def _fires_told(change: ClockChange) -> str:
    if not change.count:
        return "It does not fire on that day."
    if change.count <= _NAMED:
        moments = [f"{moment:%H:%M:%S %Z}".replace(":00 ", " ", 1) for moment in change.fires]
        return f"It fires at {_listed(moments)}."
    more = "or more " if change.count == _COUNTED else ""
    return (
        f"It fires {change.count} {more}times on that day, {change.usual} times on an ordinary one."
    )


def _span(length: timedelta) -> str:
    minutes = int(length.total_seconds() // 60)
    hours, rest = divmod(minutes, 60)
    return " ".join(
        part for part in (f"{hours} h" if hours else "", f"{rest} min" if rest else "") if part
    )


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
