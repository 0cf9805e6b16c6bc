"""A cron text in plain English, exact and of bounded length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise, product
from typing import Final

from dispatch.cron.fields import Fields, LastDay, NearestWorkday, NthWeekday, Part, Special
from dispatch.cron.text import Every

__all__ = ["described_days", "described_dst", "described_every", "described_times"]

_MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July",
    "August", "September", "October", "November", "December",
)  # fmt: skip
_WEEKDAYS: Final = (
    "Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday",
)  # fmt: skip
_ORDINALS: Final = ("1st", "2nd", "3rd", "4th", "5th")
_MOST: Final = 8
"""Items of a list that are written out; the rest is counted."""


def described_every(every: Every) -> str:
    """`Every 1 h 30 min of elapsed time`."""
    rest = every.period_us
    pieces: list[str] = []
    for unit, length in (("d", 86_400_000_000), ("h", 3_600_000_000), ("min", 60_000_000)):
        count, rest = divmod(rest, length)
        if count:
            pieces.append(f"{count} {unit}")
    if rest:
        pieces.append(f"{rest / 1_000_000:.6f}".rstrip("0").rstrip(".") + " s")
    return f"Every {' '.join(pieces)} of elapsed time"


def described_times(fields: Fields) -> str:
    """The times of the day: `At 02:30`, `Every 5 minutes of hours 9-17`."""
    seconds = (0,) if fields.second is None else fields.second.values
    minutes, hours = fields.minute.values, fields.hour.values
    if len(hours) * len(minutes) * len(seconds) <= 4:
        with_seconds = seconds != (0,)
        clock = [
            f"{hour:02}:{minute:02}" + (f":{second:02}" if with_seconds else "")
            for hour, minute, second in product(hours, minutes, seconds)
        ]
        return f"At {_joined(clock)}"
    if seconds == (0,):
        pieces = [_within("minute", minutes, 60)]
    else:
        # Seconds "of every 5 minutes" would read as those of all of them, not of each fifth.
        pieces = [_within("second", seconds, 60), _within("minute", minutes, 60, steps=False)]
    pieces.append(_within("hour", hours, 24, steps=False))
    # "Every 5 minutes of every hour" says no more than "every 5 minutes".
    said = [
        this
        for before, this in pairwise(["", *pieces])
        if not (before.startswith("every") and this in ("every minute", "every hour"))
    ]
    text = " of ".join(said)
    if not text.startswith("every"):
        text = f"at {text}"
    return text[0].upper() + text[1:]


def described_days(fields: Fields) -> str:
    """The days: `every day`, `on day 13 of the month or on Friday, in January`."""
    pieces = [_days(fields)]
    if len(fields.month.values) < 12:
        pieces.append(f"in {_names(fields.month.values, lambda month: _MONTHS[month - 1])}")
    if fields.year is not None and len(fields.year.values) < 130:
        word = "the years " if len(fields.year.values) > 1 else ""
        pieces.append(f"in {word}{_numbers(fields.year.values)}")
    return ", ".join(pieces)


def described_dst(*, recurring: bool) -> str:
    """What a change of the clocks does; `recurring` is for intervals and for robfig's rule."""
    if recurring:
        return "Times that the clocks skip are left out, times that they repeat fire twice."
    return (
        "A time that the clocks skip fires when the gap ends (after one of over 3 h not at all), "
        "a time that they repeat fires once, the first time."
    )


def _within(unit: str, values: tuple[int, ...], size: int, *, steps: bool = True) -> str:
    """Seconds, minutes or hours: `every 5 minutes`, unless without `steps`, `minutes 5 and 10`, `hour 3`."""
    if len(values) == size:
        return f"every {unit}"
    step = values[1] - values[0] if len(values) > 1 else 0
    if steps and step and size % step == 0 and values == tuple(range(0, size, step)):
        return f"every {step} {unit}s"
    return f"{unit}{'s' if len(values) > 1 else ''} {_numbers(values)}"


def _days(fields: Fields) -> str:
    every_day = len(fields.day.values) == 31
    every_weekday = len(fields.weekday.values) == 7
    if every_day and every_weekday:
        return "every day"
    if fields.either_day:
        if every_day or every_weekday:
            return "every day"
        return f"on {_month_days(fields.day)} or on {_weekdays(fields.weekday)}"
    if every_weekday:
        return f"on {_month_days(fields.day)}"
    if every_day:
        return f"on {_weekdays(fields.weekday)}"
    return f"on {_month_days(fields.day)} if that is {_weekdays(fields.weekday)}"


def _month_days(part: Part) -> str:
    pieces: list[str] = []
    if part.values:
        many = "s" if len(part.values) > 1 else ""
        pieces.append(f"day{many} {_numbers(part.values)} of the month")
    pieces += [_special(special) for special in part.specials]
    return _joined(pieces, "or")


def _weekdays(part: Part) -> str:
    pieces = [_names(part.values, lambda weekday: _WEEKDAYS[weekday], "or")] if part.values else []
    pieces += [_special(special) for special in part.specials]
    return _joined(pieces, "or")


def _special(special: Special) -> str:
    match special:
        case LastDay(back=0):
            return "the last day of the month"
        case LastDay(back=back):
            return f"the day {back} before the last of the month"
        case NearestWorkday(day=None):
            return "the last of Monday to Friday in the month"
        case NearestWorkday(day=day):
            return f"the day of Monday to Friday nearest to day {day} of the month"
        case NthWeekday(weekday=weekday, nth=nth):
            which = "last" if nth is None else _ORDINALS[nth - 1]
            return f"the {which} {_WEEKDAYS[weekday]} of the month"


def _numbers(values: tuple[int, ...]) -> str:
    """`9-17`, `0-22 in steps of 2`, `1, 5 and 20`."""
    if len(values) > 3:
        step = values[1] - values[0]
        if step > 1 and values == tuple(range(values[0], values[-1] + 1, step)):
            return f"{values[0]}-{values[-1]} in steps of {step}"
    runs = _runs(values, str)
    return _joined([first if first == last else f"{first}-{last}" for first, last in runs])


def _names(values: tuple[int, ...], name: Callable[[int], str], word: str = "and") -> str:
    """`Monday to Friday`, `January, March and May`."""
    runs = _runs(values, name)
    named = [first if first == last else f"{first} to {last}" for first, last in runs]
    return _joined(named, word)


def _runs(values: tuple[int, ...], name: Callable[[int], str]) -> Iterator[tuple[str, str]]:
    """The first and last of each stretch of three or more; shorter ones number by number."""
    start = 0
    for index in range(1, len(values) + 1):
        if index < len(values) and values[index] == values[index - 1] + 1:
            continue
        stretch = values[start:index]
        if len(stretch) > 2:
            yield name(stretch[0]), name(stretch[-1])
        else:
            yield from ((name(value), name(value)) for value in stretch)
        start = index


def _joined(items: list[str], word: str = "and") -> str:
    if len(items) > _MOST:
        items = [*items[: _MOST - 1], f"{len(items) - _MOST + 1} more"]
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {word} {items[-1]}"
