"""The wall times that match a set of fields, by croniter: no zones here.

croniter gets sorted lists of numbers and naive datetimes, nothing else, and has its
one Python seam in this file. It searches the dates too wherever a date is a matter
of numbers that all have to match. The rest is answered by our own `DayTable`, with
croniter left to find the time of the day: `L`, `W` and `#`, years (of which croniter
would allow 2100 in `1970-2099`), and day OR weekday (two searches in croniter, one
of which may look through fifty years for a 31 February).
"""

from __future__ import annotations

import threading
from datetime import datetime, time
from typing import Final, Protocol, cast

import attrs
from croniter import croniter

from dispatch.cron.days import DayTable
from dispatch.cron.fields import Fields, Part
from dispatch.cron.zones import FIRST_WALL, LAST_WALL, SECOND

__all__ = ["Walls"]

_RECENT: Final = 8
"""Answers that are kept for each text, forwards and backwards."""


class _Searcher(Protocol):
    """The two methods of a croniter object that are used."""

    def get_next(self, ret_type: type[datetime], start_time: datetime) -> datetime: ...
    def get_prev(self, ret_type: type[datetime], start_time: datetime) -> datetime: ...


class _MakeSearcher(Protocol):
    def __call__(self, expr_format: str, start_time: float, *, day_or: bool) -> _Searcher: ...


@attrs.define(eq=False)
class _Answers:
    """The latest answers in one direction, each with what was asked."""

    pairs: list[tuple[datetime, datetime]] = attrs.field(factory=list[tuple[datetime, datetime]], init=False)
    oldest: int = attrs.field(default=0, init=False)

    def keep(self, asked: datetime, found: datetime) -> datetime:
        """Keep an answer in place of the oldest, and give it back."""
        if len(self.pairs) < _RECENT:
            self.pairs.append((asked, found))
        else:
            self.pairs[self.oldest] = (asked, found)
            self.oldest = (self.oldest + 1) % _RECENT
        return found


@attrs.define(eq=False)
class Walls:
    """The matching wall times after and before a given one. Safe to share between threads."""

    searcher: _Searcher
    days: DayTable | None  # None: croniter sees to the dates as well
    first: time
    last: time
    # A croniter object keeps the time it looks from in itself, even where it is an argument.
    lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    # Many cron tasks of one text ask at the same tick, in a few zones, and a search costs
    # 0.1 ms. An answer holds for every question between the one asked and itself.
    recent: tuple[_Answers, _Answers] = attrs.field(factory=lambda: (_Answers(), _Answers()), init=False)

    @classmethod
    def of(cls, fields: Fields, days: DayTable) -> Walls:
        """The walls of `fields`, whose matching days are `days`."""
        clock = [_numbers(fields.minute, 60), _numbers(fields.hour, 24)]
        seconds: tuple[int, ...] = (0,)
        tail: list[str] = []
        if fields.second is not None:
            seconds = fields.second.values
            tail = [_numbers(fields.second, 60)]  # croniter has its seconds last
        own = fields.either_day or fields.year or fields.day.specials or fields.weekday.specials
        dates = ["*", "*", "*"]
        if not own:
            dates = [
                _numbers(fields.day, 31),
                _numbers(fields.month, 12),
                _numbers(fields.weekday, 7),
            ]
        make = cast("_MakeSearcher", croniter)
        return cls(
            searcher=make(" ".join([*clock, *dates, *tail]), 0.0, day_or=False),
            days=days if own else None,
            first=time(fields.hour.values[0], fields.minute.values[0], seconds[0]),
            last=time(fields.hour.values[-1], fields.minute.values[-1], seconds[-1]),
        )

    def after(self, wall: datetime) -> datetime | None:
        """The first matching wall time after `wall`; None beyond `LAST_WALL`."""
        # Whole seconds: croniter reckons in floats, which lose microseconds far from 1970.
        whole = _whole(wall)
        with self.lock:
            for asked, answer in self.recent[0].pairs:
                if asked <= whole < answer:
                    return answer
            found = self._after(whole)
            return found if found is None else self.recent[0].keep(whole, found)

    def before(self, wall: datetime) -> datetime | None:
        """The last matching wall time before `wall`; None below `FIRST_WALL`."""
        whole = _whole(wall)
        if wall.microsecond:
            whole += SECOND
        with self.lock:
            for asked, answer in self.recent[1].pairs:
                if asked >= whole > answer:
                    return answer
            found = self._before(whole)
            return found if found is None else self.recent[1].keep(whole, found)

    def _after(self, whole: datetime) -> datetime | None:
        try:
            found = self.searcher.get_next(datetime, whole)
        except (ValueError, OverflowError):
            return None  # croniter stepped beyond year 9999
        if self.days is not None:
            # Every day has the same times, so one search is enough: if its day does
            # not match, the next that does begins with the first time of all.
            day = self.days.on_or_after(found.date())
            if day is None:
                return None
            if day != found.date():
                found = datetime.combine(day, self.first)
        return found if found <= LAST_WALL else None

    def _before(self, whole: datetime) -> datetime | None:
        try:
            found = self.searcher.get_prev(datetime, whole)
        except (ValueError, OverflowError):
            return None  # croniter stepped below year 1
        if self.days is not None:
            day = self.days.on_or_before(found.date())
            if day is None:
                return None
            if day != found.date():
                found = datetime.combine(day, self.last)
        return found if found >= FIRST_WALL else None


def _whole(wall: datetime) -> datetime:
    return wall.replace(microsecond=0, fold=0) if wall.microsecond or wall.fold else wall


def _numbers(part: Part, all_of_them: int) -> str:
    return "*" if len(part.values) == all_of_them else ",".join(map(str, part.values))
