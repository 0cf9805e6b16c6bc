"""A whole cron text: its outer form, its zone prefix, its fields or descriptor.

text     := [("CRON_TZ=" | "TZ=") zone blank] (fields | descriptor)
fields   := [second] minute hour day month weekday [year]   year only after a second
descriptor := "@yearly" | "@annually" | "@monthly" | "@weekly" | "@daily"
            | "@midnight" | "@hourly" | "@every" blank duration
duration := (number ("h" | "m" | "s" | "ms"))+              no blanks, at least 1 s
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final, NoReturn

import attrs

from dispatch.cron.fields import FieldName, FieldReader, Fields, refuse, shown
from dispatch.errors import InvalidCronSpecError

__all__ = ["DESCRIPTORS", "MAX_TEXT", "Every", "divided", "parse", "stripped"]

MAX_TEXT: Final = 256
"""Longest cron text, in characters, the zone prefix included."""

DESCRIPTORS: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
"""What each descriptor stands for; it follows the DST rule of what it stands for."""

_MAX_EVERY_S: Final = 100 * 366 * 86_400
_UNIT_US: Final = {"h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000, "ms": 1_000}

_ORDER: Final[dict[int, tuple[FieldName, ...]]] = {
    5: ("minute", "hour", "day", "month", "weekday"),
    6: ("second", "minute", "hour", "day", "month", "weekday"),
    7: ("second", "minute", "hour", "day", "month", "weekday", "year"),
}


@attrs.frozen
class Every:
    """`@every 90m`: `period_us` microseconds of elapsed time between two moments."""

    period_us: int


def stripped(text: str) -> str:
    """The text without outer blanks, once it is short, ASCII and on one line.

    The length is looked at first, so that a megabyte is refused as fast as a word.
    """
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        kind = type(text).__name__
        raise InvalidCronSpecError(f"a cron text is a str, got {kind}", None, f"got {kind}")
    if len(text) > MAX_TEXT:
        refuse(text, None, f"longer than {MAX_TEXT} characters")
    if not text.isascii():
        foreign = next(character for character in text if not character.isascii())
        refuse(text, None, f"only ASCII characters are allowed, got {foreign!a}")
    line = text.strip(" \t\r\n")
    if not line.isprintable() and (found := re.search(r"[^ -~\t]", line)):
        control = found[0]
        refuse(text, None, f"control characters are not allowed, got {control!a}")
    return line


def divided(text: str) -> tuple[str | None, str]:
    """The zone and the rest of `CRON_TZ=zone rest`; the zone is None without such a prefix."""
    found = re.match(r"(?:CRON_TZ|TZ)=([^ \t]*)[ \t]*", text)
    if found is None:
        if re.match(r"(?:CRON_)?TZ=", text, re.IGNORECASE):
            refuse(text, "zone", "the prefix is written CRON_TZ= or TZ=, in capitals")
        return None, text
    if found.end() == len(text):
        refuse(text, None, "nothing follows the zone, wanted are 5 to 7 fields")
    return found[1], text[found.end() :]


def parse(text: str, name: str | None) -> Fields | Every:
    """Read a stripped text without its zone prefix. `name` is what `H` is drawn from.

    Raises InvalidCronSpecError for whatever is not in the grammar above. Whether
    what was read can ever fire is not asked here.
    """
    if text.startswith("@"):
        return _descriptor(text, name)
    pieces = re.split(r"[ \t]+", text)
    order = _ORDER.get(len(pieces))
    if order is None:
        count = len(pieces) if text else 0
        refuse(
            text,
            None,
            f"it has {count} field{'' if count == 1 else 's'}, wanted are 5 (minute hour day "
            "month weekday), 6 (seconds first) or 7 (seconds first, year last)",
        )
    try:
        return _fields(text, order, pieces, name)
    except InvalidCronSpecError as error:
        hint = _order_hint(error, pieces, name)
        if hint is None:
            raise
        raise InvalidCronSpecError(
            f"{error.detail}; {hint}", error.field, f"{error.reason}; {hint}"
        ) from None


def _fields(text: str, order: tuple[FieldName, ...], pieces: list[str], name: str | None) -> Fields:
    parts = {
        field: FieldReader(text, field, name).part(piece)
        for field, piece in zip(order, pieces, strict=True)
    }
    return Fields(
        second=parts.get("second"),
        minute=parts["minute"],
        hour=parts["hour"],
        day=parts["day"],
        month=parts["month"],
        weekday=parts["weekday"],
        year=parts.get("year"),
    )


def _order_hint(error: InvalidCronSpecError, pieces: list[str], name: str | None) -> str | None:
    """What the author of six refused fields probably meant: seconds last, or a year."""
    if len(pieces) != 6:
        return None
    if re.fullmatch(r"(19|20)[0-9]{2}", pieces[-1]):
        return "a year is the seventh field, after a first one for the seconds"
    turned = [pieces[-1], *pieces[:-1]]
    try:
        _fields("", _ORDER[6], turned, name)
    except InvalidCronSpecError:
        return None
    return f"six fields have the seconds first: {shown(' '.join(turned))}?"


def _descriptor(text: str, name: str | None) -> Fields | Every:
    word, rest, *_ = [*text.split(None, 1), ""]
    if word == "@every":
        return _every(text, rest.strip(" \t"))
    if text not in DESCRIPTORS:
        _refuse_descriptor(text, word)
    return _fields(text, _ORDER[5], DESCRIPTORS[text].split(" "), name)


def _refuse_descriptor(text: str, word: str) -> NoReturn:
    if word in DESCRIPTORS:
        refuse(text, None, f"nothing may follow {word}")
    if word.lower() in DESCRIPTORS or word.lower() == "@every":
        refuse(text, None, f"descriptors are in lower case: write {word.lower()}")
    if word == "@reboot":
        refuse(text, None, "@reboot is no time: run it when your program starts")
    known = ", ".join([*DESCRIPTORS, "@every 90m"])
    refuse(text, None, f"this descriptor is unknown, known are {known}")


def _every(text: str, duration: str) -> Every:
    wanted = "wanted is a duration such as 90m, 1h30m or 1500ms (units h, m, s, ms)"
    if re.search(r"[ \t]", duration):
        refuse(text, "every", f"blanks are not allowed inside a duration, {wanted}")
    if duration[:1] in ("+", "-"):
        refuse(text, "every", f"signs are not allowed, {wanted}")
    if not re.fullmatch(r"(?:[0-9]+(?:\.[0-9]+)?(?:h|ms|m|s))+", duration):
        refuse(text, "every", f"{shown(duration)} is no duration, {wanted}")
    total = Fraction(0)
    for number, unit in re.findall(r"([0-9.]+)(h|ms|m|s)", duration):
        total += Fraction(number) * _UNIT_US[unit]
    if total.denominator != 1:
        refuse(text, "every", "it is finer than a microsecond")
    if total < 1_000_000:
        refuse(text, "every", "it is shorter than one second")
    if total > _MAX_EVERY_S * 1_000_000:
        refuse(text, "every", "it is longer than a hundred years")
    return Every(int(total))
