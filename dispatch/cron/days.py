"""Which days of a month match: numbers, weekdays, `L`, `W` and `#`, AND or OR.

Everything about a month that matters here is its length and the weekday it begins
on: 28 kinds of months. A month of one kind is worked out once per text, as a bit
mask (bit 1 is the 1st), so that asking for the next matching day costs a shift.
croniter leaves its `#` and `W` in force on both sides of an OR and refuses them in
lists; with the days counted here they may stand anywhere.
"""

from __future__ import annotations

from calendar import isleap
from collections.abc import Iterator
from datetime import MAXYEAR, date
from typing import Final

import attrs

from dispatch.cron.fields import Fields, LastDay, NearestWorkday, NthWeekday, Part, Special

__all__ = ["DayTable"]

_LENGTHS: Final = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_SUNDAY, _SATURDAY = 0, 6

# 28 years with no skipped leap day between them hold a leap and a common year
# beginning on each weekday, hence every month there can be.
_EVERY_KIND_OF_YEAR: Final = range(2000, 2028)


@attrs.define(eq=False)
class DayTable:
    """The matching days of every month, for one set of fields."""

    _fields: Fields
    _masks: dict[tuple[int, int], int] = attrs.field(factory=dict[tuple[int, int], int], init=False)

    def on_or_after(self, day: date) -> date | None:
        """The first matching day from `day` on; None when the calendar or the years end."""
        rest = self._mask(day.year, day.month) >> day.day
        if rest:
            return day.replace(day=day.day + _lowest(rest))
        for year in self._years(day.year, MAXYEAR):
            for month in self._fields.month.values:
                if (year, month) > (day.year, day.month) and (mask := self._mask(year, month)):
                    return date(year, month, _lowest(mask))
        return None

    def on_or_before(self, day: date) -> date | None:
        """The last matching day up to `day`; None when the calendar or the years end."""
        rest = self._mask(day.year, day.month) & ((2 << day.day) - 1)
        if rest:
            return day.replace(day=rest.bit_length() - 1)
        for year in self._years(day.year, 1):
            for month in reversed(self._fields.month.values):
                if (year, month) < (day.year, day.month) and (mask := self._mask(year, month)):
                    return date(year, month, mask.bit_length() - 1)
        return None

    def is_empty(self) -> bool:
        """Whether no day ever matches, as with `31 2`."""
        years = _EVERY_KIND_OF_YEAR if self._fields.year is None else self._fields.year.values
        return not any(
            self._mask(year, month) for year in years for month in self._fields.month.values
        )

    def _years(self, start: int, end: int) -> Iterator[int]:
        """The years from `start` to `end`, up or down, that the year field allows."""
        step = 1 if start <= end else -1
        every = range(start, end + step, step)
        if self._fields.year is None:
            return iter(every)
        allowed = self._fields.year.values
        return iter([year for year in allowed[::step] if year in every])

    def _mask(self, year: int, month: int) -> int:
        fields = self._fields
        if month not in fields.month.values:
            return 0
        if fields.year is not None and year not in fields.year.values:
            return 0
        first = date(year, month, 1).isoweekday() % 7
        length = 29 if month == 2 and isleap(year) else _LENGTHS[month - 1]
        known = self._masks.get((first, length))
        if known is None:
            known = self._masks[first, length] = self._month(first, length)
        return known

    def _month(self, first: int, length: int) -> int:
        fields = self._fields
        by_day = _special_days(fields.day, first, length)
        by_day.update(day for day in fields.day.values if day <= length)
        by_weekday = _special_days(fields.weekday, first, length)
        by_weekday.update(
            day for day in range(1, length + 1) if (first + day - 1) % 7 in fields.weekday.values
        )
        days = by_day | by_weekday if fields.either_day else by_day & by_weekday
        return sum(1 << day for day in days)


def _lowest(mask: int) -> int:
    """The position of the lowest bit set."""
    return (mask & -mask).bit_length() - 1


def _special_days(part: Part, first: int, length: int) -> set[int]:
    found = (_special_day(special, first, length) for special in part.specials)
    return {day for day in found if day is not None}


def _special_day(special: Special, first: int, length: int) -> int | None:
    """The day that `special` names in a month of `length` days begun on weekday `first`."""
    match special:
        case LastDay(back=back):
            day = length - back
        case NthWeekday(weekday=weekday, nth=nth):
            day = 1 + (weekday - first) % 7
            day += 7 * ((length - day) // 7 if nth is None else nth - 1)
        case NearestWorkday(day=named):
            day = length if named is None else named
            if day <= length:
                day = _nearest_workday(day, first, length)
    return day if 1 <= day <= length else None


def _nearest_workday(day: int, first: int, length: int) -> int:
    """Friday for a Saturday, Monday for a Sunday, unless that lies in another month."""
    weekday = (first + day - 1) % 7
    if weekday == _SATURDAY:
        return day - 1 if day > 1 else day + 2
    if weekday == _SUNDAY:
        return day + 1 if day < length else day - 2
    return day
