"""The fields of a cron text: each read strictly into sets of numbers.

Nothing of a user's text ever reaches croniter: its parser takes `1-1` for "every
value", wraps reversed ranges, and needs seconds to refuse a megabyte. What is not
in this grammar is an `InvalidCronSpecError` that names the field, what stands
there, what could stand there, and the fix where the mistake is a usual one.

    field  := item ("," item)* | "?"                    "?" in the two day fields
    item   := ("*" | n ["-" n] | "H" ["(" n "-" n ")"]) ["/" step]
            | day:     "L" | "L-" n | "LW" | n "W"
            | weekday: n "L" | n "#" (1 to 5)
    n      := digits, or a name in the month and weekday fields, in any case
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Final, Literal, NoReturn

import attrs

from dispatch.errors import InvalidCronSpecError

__all__ = [
    "FieldName",
    "FieldReader",
    "Fields",
    "LastDay",
    "NearestWorkday",
    "NthWeekday",
    "Part",
    "Special",
    "refuse",
    "shown",
]

MONTHS: Final = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN",
                 "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")  # fmt: skip
WEEKDAYS: Final = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")

FieldName = Literal["second", "minute", "hour", "day", "month", "weekday", "year"]


@attrs.frozen
class LastDay:
    """`L`, or `L-3`: the day `back` days before the last of the month."""

    back: int


@attrs.frozen
class NearestWorkday:
    """`15W`, or `LW` (`day` None): the day from Monday to Friday nearest to it in its month.

    A month that lacks the day (`31W` in April) has none, as with a plain `31`.
    """

    day: int | None


@attrs.frozen
class NthWeekday:
    """`FRI#2`, or `FRIL` (`nth` None): the nth, or the last, such weekday of the month."""

    weekday: int
    nth: int | None


Special = LastDay | NearestWorkday | NthWeekday


@attrs.frozen
class Part:
    """One field: its numbers, ascending, and the days that no number can name.

    `starred` is whether it begins with `*` or is `?`. Weekdays are 0 (Sunday) to 6.
    """

    text: str
    values: tuple[int, ...]
    starred: bool
    specials: tuple[Special, ...] = ()


@attrs.frozen(kw_only=True)
class Fields:
    """The fields of one text. `second` and `year` are None where they are not written."""

    second: Part | None
    minute: Part
    hour: Part
    day: Part
    month: Part
    weekday: Part
    year: Part | None

    @property
    def either_day(self) -> bool:
        """Whether the day *or* the weekday has to match (else both): neither is starred."""
        return not (self.day.starred or self.weekday.starred)

    @property
    def is_interval(self) -> bool:
        """Whether the minute or the hour field begins with `*`."""
        return self.minute.starred or self.hour.starred


@attrs.frozen
class _Range:
    low: int
    high: int
    names: tuple[str, ...] = ()
    first: int = 0  # the number of the first name


_RANGES: Final[dict[FieldName, _Range]] = {
    "second": _Range(0, 59),
    "minute": _Range(0, 59),
    "hour": _Range(0, 23),
    "day": _Range(1, 31),
    "month": _Range(1, 12, MONTHS, 1),
    # A written 7 is Sunday again; `*`, `n/step` and `H` end on Saturday, as in robfig.
    "weekday": _Range(0, 6, WEEKDAYS, 0),
    "year": _Range(1970, 2099),
}

_ITEM: Final = re.compile(
    r"(?P<star>\*)(?:/(?P<star_step>[0-9]+))?"
    r"|(?P<hash>H)(?:\((?P<from>[0-9]+)-(?P<to>[0-9]+)\))?(?:/(?P<hash_step>[0-9]+))?"
    r"|(?P<low>[0-9A-Z]+)(?:-(?P<high>[0-9A-Z]+))?(?:/(?P<step>[0-9]+))?"
)


@attrs.frozen
class FieldReader:
    """Reads one field; it knows the whole text only to show it in a refusal."""

    text: str
    field: FieldName
    name: str | None

    def part(self, piece: str) -> Part:
        """The field `piece`, read. Raises InvalidCronSpecError."""
        if piece == "?":
            if self.field not in ("day", "weekday"):
                self._refuse("'?' is for the day and weekday fields, write * here")
            return Part(piece, self._numbers("*"), starred=True)
        values: set[int] = set()
        specials: dict[Special, None] = {}  # a set in the order of writing
        for item in piece.upper().split(","):
            special = self._special(item)
            if special is None:
                values.update(self._numbers(item))
            else:
                specials[special] = None
        return Part(piece, tuple(sorted(values)), piece.startswith("*"), tuple(specials))

    def _special(self, item: str) -> Special | None:
        if self.field == "day":
            if item == "L":
                return LastDay(0)
            if item == "LW":
                return NearestWorkday(None)
            if found := re.fullmatch(r"L-([0-9]+)", item):
                return LastDay(self._between(found[1], 1, 30))
            if found := re.fullmatch(r"([0-9]+)W", item):
                return NearestWorkday(self._between(found[1], 1, 31))
        if self.field == "weekday":
            if found := re.fullmatch(r"([0-9A-Z]+)#([0-9]+)", item):
                return NthWeekday(self._value(found[1]) % 7, self._between(found[2], 1, 5))
            if found := re.fullmatch(r"([0-9A-Z]+)L", item):
                return NthWeekday(self._value(found[1]) % 7, None)
            if item == "L":
                self._refuse("'L' needs its weekday here: FRIL is the last Friday, SAT a Saturday")
        return None

    def _numbers(self, item: str) -> tuple[int, ...]:
        bounds = _RANGES[self.field]
        found = _ITEM.fullmatch(item)
        if found is None:
            self._refuse_item(item)
        if found["star"]:
            return tuple(range(bounds.low, bounds.high + 1, self._step(found["star_step"])))
        if found["hash"]:
            return self._hashed(item, found["from"], found["to"], found["hash_step"])
        low = self._value(found["low"])
        high = low
        if found["high"]:
            high = self._value(found["high"])
            if high < low:
                self._refuse_reversed(found["low"], found["high"], low, high)
        elif found["step"]:
            high = max(low, bounds.high)
        return self._folded(range(low, high + 1, self._step(found["step"])))

    def _hashed(
        self, item: str, low: str | None, high: str | None, step: str | None
    ) -> tuple[int, ...]:
        """Numbers that depend on the cron task's name and this field only.

            first = low + blake2b(name + NUL + field) mod min(step, high - low + 1)

        and from there on in steps. Without a step it is one number of the range. A
        day without a range is drawn from 1 to 28, which every month has.
        """
        if self.field == "year":
            self._refuse("'H' is not for years")
        if self.name is None:
            self._refuse("'H' is drawn from the cron task's name, so the cron task needs a name")
        bounds = _RANGES[self.field]
        first, last = bounds.low, 28 if self.field == "day" else bounds.high
        if low is not None and high is not None:
            first, last = self._value(low), self._value(high)
            if last < first:
                self._refuse(f"the range of {shown(item)} is reversed")
        width = last - first + 1
        stride = self._step(step) if step else width
        seed = f"{self.name}\0{self.field}".encode("utf-8", "surrogatepass")
        digest = int.from_bytes(blake2b(seed, digest_size=8).digest(), "big")
        return self._folded(range(first + digest % min(stride, width), last + 1, stride))

    def _folded(self, numbers: range) -> tuple[int, ...]:
        """The numbers, with the 7 of a weekday as 0."""
        return (
            tuple(number % 7 for number in numbers) if self.field == "weekday" else tuple(numbers)
        )

    def _value(self, word: str) -> int:
        bounds = _RANGES[self.field]
        if word.isdigit():
            return self._between(word, bounds.low, 7 if self.field == "weekday" else bounds.high)
        if word not in bounds.names:
            self._refuse_word(word)
        return bounds.first + bounds.names.index(word)

    def _between(self, digits: str, low: int, high: int) -> int:
        number = int(digits)
        if not low <= number <= high:
            self._refuse(f"{shown(digits, 20)} is out of range, wanted is {low} to {high}")
        return number

    def _step(self, digits: str | None) -> int:
        if digits is None:
            return 1
        step = int(digits)
        if step == 0:
            self._refuse("a step of 0 never moves on, wanted is 1 or more")
        return step

    def _refuse_reversed(self, low_word: str, high_word: str, low: int, high: int) -> NoReturn:
        bounds = _RANGES[self.field]
        names = bounds.names

        def stretch(first: int, last: int) -> str:
            ends = [names[n - bounds.first] if low_word in names else str(n) for n in (first, last)]
            return ends[0] if first == last else "-".join(ends)

        split = stretch(bounds.low, high)
        if low <= bounds.high:  # a Sunday written 7 begins the week as well
            split = f"{stretch(low, bounds.high)},{split}"
        self._refuse(f"the range {low_word}-{high_word} is reversed, write {split}")

    def _refuse_word(self, word: str) -> NoReturn:
        bounds = _RANGES[self.field]
        if word[:3] in bounds.names:
            self._refuse(f"{shown(word)} is no name here, write {word[:3]}")
        if self.field != "day" and re.fullmatch(r"LW?|[0-9]+W", word):
            self._refuse(f"{shown(word)} is for the day field")
        if word == "R":
            self._refuse("'R' (random) is not offered, 'H' spreads by the task's name")
        if word == "H":
            self._refuse("'H' takes a range in brackets, as in H(0-29)")
        self._refuse(f"{shown(word)} is {self._no_value()}")

    def _refuse_item(self, item: str) -> NoReturn:
        if not item:
            self._refuse("a list has an empty item, look for a comma too many")
        if item[0] in "+-":
            self._refuse(f"{shown(item)}: signs are not allowed")
        if re.fullmatch(r"[0-9]+\.[0-9]*", item):
            self._refuse(f"{shown(item)}: decimals are not allowed")
        if re.match(r"\*[0-9]", item):
            self._refuse(f"{shown(item)}: a step is written */{shown(item[1:])[1:-1]}")
        if item[0] == "?":
            self._refuse("'?' stands alone, without lists and steps")
        if re.match(r"R(\(|/)", item):
            self._refuse_word("R")
        self._refuse(f"{shown(item)} is {self._no_value()}")

    def _no_value(self) -> str:
        bounds = _RANGES[self.field]
        names = f" or {bounds.names[0]}-{bounds.names[-1]}" if bounds.names else ""
        return (
            f"not understood, wanted are numbers {bounds.low}-{bounds.high}{names}, "
            "lists a,b, ranges a-b, steps */n"
        )

    def _refuse(self, reason: str) -> NoReturn:
        refuse(self.text, self.field, reason)


def refuse(text: str, field: str | None, reason: str) -> NoReturn:
    """Raise the error for `text`: every refusal has this one form."""
    where = "" if field is None else f"{field}: "
    raise InvalidCronSpecError(f"cron text {shown(text)}: {where}{reason}", field, reason)


def shown(text: str, limit: int = 60) -> str:
    """The text as a literal, cut to about `limit` characters, safe for one line of a log."""
    return f"{text!a}" if len(text) <= limit else f"{text[:limit]!a}… ({len(text)} characters)"
