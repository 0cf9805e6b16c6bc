"""An independent oracle: what a crontab fires at, found minute by minute.

Nothing of `dispatch` and nothing of PEP 495 is used: the clock on the wall is read
once for every minute of UTC, and the rule for clock changes is applied to that list
of readings. Entries are built, never parsed: `random_entry` makes the text and the
sets it stands for together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from zoneinfo import ZoneInfo

__all__ = [
    "TRANSITIONS",
    "Entry",
    "any_entry",
    "fires_ever",
    "moments",
    "random_entry",
    "random_window",
]

MINUTE = timedelta(minutes=1)

TRANSITIONS = [
    ("Europe/Berlin", "2024-03-31T01:00", "2024-10-27T01:00"),
    ("America/New_York", "2025-03-09T07:00", "2025-11-02T06:00"),
    ("Australia/Lord_Howe", "2024-04-06T15:00", "2024-10-05T15:30"),
    ("Pacific/Apia", "2011-12-30T10:00", "2012-03-31T14:00"),
    ("Africa/Casablanca", "2024-03-10T02:00", "2024-04-14T02:00"),
    ("America/Sao_Paulo", "2018-02-18T02:00", "2018-11-04T03:00"),
    ("America/Havana", "2024-03-10T05:00", "2024-11-03T05:00"),
    ("Antarctica/Troll", "2024-03-31T01:00", "2024-10-27T01:00"),
    ("Africa/Cairo", "2024-04-25T22:00", "2024-10-31T21:00"),
    ("Atlantic/Azores", "2024-03-31T01:00", "2024-10-27T01:00"),
    ("America/St_Johns", "2010-11-07T02:31", "2011-03-13T03:31"),
    ("Asia/Tehran", "2022-03-21T20:30", "2022-09-21T19:30"),
    ("America/Caracas", "2007-12-09T07:00", "2016-05-01T07:00"),
    ("Asia/Pyongyang", "2015-08-14T15:00", "2018-05-04T15:00"),
    ("Europe/Dublin", "2024-03-31T01:00", "2024-10-27T01:00"),
]
"""Fifteen zones, each with two changes of its clocks, in UTC."""


@dataclass(frozen=True)
class Entry:
    """A five-field text, and what it means."""

    text: str
    minutes: frozenset[int]
    hours: frozenset[int]
    days: Callable[[datetime], bool]
    months: frozenset[int]
    weekdays: Callable[[datetime], bool]
    both_days: bool  # one of the day fields begins with a star, so both have to match
    interval: bool

    def matches(self, wall: datetime) -> bool:
        """Whether a clock that shows `wall` shows a matching time."""
        if wall.minute not in self.minutes or wall.hour not in self.hours:
            return False
        if wall.month not in self.months or wall.second:
            return False
        day, weekday = self.days(wall), self.weekdays(wall)
        return (day and weekday) if self.both_days else (day or weekday)


def moments(
    entry: Entry, zone: str, after: datetime, until: datetime, *, robfig: bool = False
) -> list[datetime]:
    """The moments of `entry` in (after, until], in UTC, ascending."""
    tz = ZoneInfo(zone)
    first = after.astimezone(UTC).replace(second=0, microsecond=0)
    last = until.astimezone(UTC)
    if robfig or entry.interval:
        found: list[datetime] = []
        at = first
        while at <= last:
            if at > after and entry.matches(at.astimezone(tz).replace(tzinfo=None)):
                found.append(at)
            at += MINUTE
        return found
    return sorted(at for at in _times_of_day(entry, tz, first, last) if after < at <= until)


def _times_of_day(entry: Entry, tz: ZoneInfo, first: datetime, last: datetime) -> set[datetime]:
    """Each matching reading's first showing; for readings leapt over, the end of the leap."""
    found: set[datetime] = set()
    # Early enough to have seen the first pass of whatever is repeated.
    at = first - timedelta(hours=30)
    highest = at.astimezone(tz).replace(tzinfo=None) - MINUTE
    while at <= last:
        wall = at.astimezone(tz).replace(tzinfo=None)
        if wall > highest:
            skipped = highest + MINUTE
            if wall - skipped <= timedelta(hours=3):
                while skipped < wall:
                    if entry.matches(skipped):
                        found.add(at)
                    skipped += MINUTE
            if entry.matches(wall):
                found.add(at)
            highest = wall
        at += MINUTE
    return found


def random_window(rng: Random) -> tuple[str, datetime, datetime]:
    """A zone and about a day around one of its clock changes."""
    zone, *changes = rng.choice(TRANSITIONS)
    change = datetime.fromisoformat(rng.choice(changes)).replace(tzinfo=UTC)
    start = change - timedelta(minutes=rng.choice([0, 1, 20, 45, 90, 400, rng.randrange(1, 1500)]))
    start += timedelta(seconds=rng.choice([0, 0, 17, 59]))
    return zone, start, change + timedelta(hours=rng.choice([2, 5, 27]))


def fires_ever(entry: Entry) -> bool:
    """Whether any day of 28 years, which hold every kind of month, matches."""
    noon = datetime(2000, 1, 1, min(entry.hours), min(entry.minutes))  # noqa: DTZ001 - a reading
    return any(entry.matches(noon + timedelta(days=n)) for n in range(28 * 366))


def random_entry(rng: Random) -> Entry:
    """A text of the kinds people write, with the sets it stands for; it fires sometimes."""
    while not fires_ever(entry := any_entry(rng)):
        pass
    return entry


def any_entry(rng: Random) -> Entry:
    """As `random_entry`, but it may never fire, as with `LW` on a Sunday."""
    minute, minutes = _field(rng, 0, 59, stars=3)
    hour, hours = _field(rng, 0, 23, stars=3, favourites=[0, 1, 2, 3, 23])
    day, days = _days(rng)
    month, months = ("*", frozenset(range(1, 13)))
    if rng.random() < 0.15:
        month, months = _field(rng, 1, 12, stars=1)
    weekday, weekdays = _weekdays(rng)
    return Entry(
        text=f"{minute} {hour} {day} {month} {weekday}",
        minutes=minutes,
        hours=hours,
        days=days,
        months=months,
        weekdays=weekdays,
        both_days=day[0] in "*?" or weekday[0] in "*?",
        interval=minute[0] == "*" or hour[0] == "*",
    )


def _field(
    rng: Random, low: int, high: int, *, stars: int, favourites: list[int] | None = None
) -> tuple[str, frozenset[int]]:
    shape = rng.choice(["*"] * stars + ["*/n", "n", "n", "n", "a-b", "a-b/n", "n/n", "list"])
    one = rng.choice(favourites) if favourites and rng.random() < 0.7 else rng.randint(low, high)
    other = rng.randint(one, high)
    step = rng.choice([1, 2, 3, 5, 7, 15, 20, 30, 45])
    if shape == "*":
        return "*", frozenset(range(low, high + 1))
    if shape == "*/n":
        return f"*/{step}", frozenset(range(low, high + 1, step))
    if shape == "a-b":
        return f"{one}-{other}", frozenset(range(one, other + 1))
    if shape == "a-b/n":
        return f"{one}-{other}/{step}", frozenset(range(one, other + 1, step))
    if shape == "n/n":
        return f"{one}/{step}", frozenset(range(one, high + 1, step))
    if shape == "list":
        third = rng.randint(low, high)
        return f"{one},{third}", frozenset({one, third})
    return str(one), frozenset({one})


def _days(rng: Random) -> tuple[str, Callable[[datetime], bool]]:
    if rng.random() < 0.6:
        return rng.choice(["*", "?"]), lambda wall: True
    shape = rng.random()
    if shape < 0.1:
        return "L", lambda wall: (wall + timedelta(days=1)).day == 1
    if shape < 0.2:
        return "L-3", lambda wall: (wall + timedelta(days=4)).day == 1
    if shape < 0.3:
        return "LW", lambda wall: wall.date() == _last_workday(wall).date()
    text, numbers = _field(rng, 1, 31, stars=0)
    return text, lambda wall: wall.day in numbers


def _weekdays(rng: Random) -> tuple[str, Callable[[datetime], bool]]:
    if rng.random() < 0.6:
        return rng.choice(["*", "?"]), lambda wall: True
    shape = rng.random()
    if shape < 0.2:
        nth, weekday = rng.randint(1, 5), rng.randint(0, 7)
        return (
            f"{weekday}#{nth}",
            lambda wall: wall.isoweekday() % 7 == weekday % 7 and (wall.day + 6) // 7 == nth,
        )
    if shape < 0.3:
        weekday = rng.randint(0, 7)
        return (
            f"{weekday}L",
            lambda wall: (
                wall.isoweekday() % 7 == weekday % 7
                and (wall + timedelta(days=7)).month != wall.month
            ),
        )
    if shape < 0.5:
        low, high = sorted((rng.randint(0, 6), rng.randint(0, 6)))
        names = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
        text = f"{names[low]}-{names[high]}"
        return text, lambda wall: low <= wall.isoweekday() % 7 <= high
    text, numbers = _field(rng, 0, 6, stars=0)
    return text, lambda wall: wall.isoweekday() % 7 in numbers


def _last_workday(wall: datetime) -> datetime:
    day = wall.replace(day=28) + timedelta(days=4)
    day -= timedelta(days=day.day)
    while day.isoweekday() > 5:
        day -= timedelta(days=1)
    return day
