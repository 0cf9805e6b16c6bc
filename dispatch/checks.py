"""What a setting may be: else InvalidConfigError says what was got and what was wanted.

For constructors and registrations, so that nothing on the way of a task looks twice.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Collection, Iterable
from math import isfinite
from typing import Any, Final, TypeAlias, cast

import typing_extensions

from dispatch.errors import LONGEST_S, InvalidConfigError, shown

__all__ = ["MAX_COUNT", "MAX_DELAY_S", "Alias", "check_choice", "check_count", "check_duration", "check_flag", "check_kind", "check_names", "check_within", "is_alias", "shown"]

MAX_DELAY_S: Final = LONGEST_S
MAX_COUNT: Final = 2**31 - 1
"""Beyond it lies nothing that is counted here, and a sum of some of them still fits into 64 bits."""


def check_duration(
    what: str, value: object, *, least: float = 0.0, above: bool = False, most: float = MAX_DELAY_S
) -> None:
    """Refuse anything that is not a finite number of seconds in [least, most]."""
    bound = f"above {least:g}" if above else f"at least {least:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidConfigError(f"{what} must be a number of seconds, got {shown(value)}")
    if isinstance(value, float) and not isfinite(value):
        raise InvalidConfigError(f"{what} must be a finite number of seconds, got {shown(value)}")
    if value < least or (above and value == least):
        raise InvalidConfigError(f"{what} must be {bound} seconds, got {shown(value)}")
    if value > most:
        ten_years = " (ten years)" if most == MAX_DELAY_S else ""
        raise InvalidConfigError(
            f"{what} must be at most {most:g} seconds{ten_years}, got {shown(value)}; "
            "durations are seconds, not milliseconds"
        )


def check_within(what: str, value: object, least: float, most: float, unit: str = " seconds") -> None:
    """Refuse anything that is not a number in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise InvalidConfigError(f"{what} must be within {least:g} and {most:g}{unit}, got {shown(value)}")


def check_count(what: str, value: object, least: int) -> None:
    """Refuse anything that is not a whole number from `least` to `MAX_COUNT`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidConfigError(f"{what} must be a whole number, got {shown(value)}")
    if value < least:
        raise InvalidConfigError(f"{what} must be at least {least}, got {shown(value)}")
    if value > MAX_COUNT:
        raise InvalidConfigError(f"{what} must be at most {MAX_COUNT}, got {shown(value)}")


def check_choice(what: str, value: object, allowed: Collection[str]) -> None:
    """Refuse anything that is not one of the words allowed."""
    if not (isinstance(value, str) and value in allowed):
        names = " or ".join(repr(str(name)) for name in allowed)
        raise InvalidConfigError(f"{what} must be {names}, got {shown(value)}")


def check_flag(what: str, value: object) -> None:
    """Refuse anything but True and False: "no" counts as true."""
    if not isinstance(value, bool):
        raise InvalidConfigError(f"{what} must be True or False, got {shown(value)}")


def check_kind(what: str, value: object, kind: type) -> None:
    """Refuse anything that is neither None nor an instance of this class."""
    if value is not None and not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise InvalidConfigError(f"{what} must be {article} {kind.__name__} or None, got {shown(value)}")


def check_names(what: str, value: object) -> frozenset[str]:
    """The strings of a collection. A string is refused, which would be split into letters."""
    if isinstance(value, str):
        raise InvalidConfigError(f"{what} must be a collection of str, got {shown(value)}; write [{shown(value)}]")
    if not isinstance(value, Iterable):
        raise InvalidConfigError(f"{what} must be a collection of str, got {shown(value)}")
    names = tuple(cast("Iterable[object]", value))
    for name in names:
        if not isinstance(name, str):
            raise InvalidConfigError(f"{what} must be a collection of str, got {shown(name)} in it")
    return frozenset(cast("tuple[str, ...]", names))


ALIASES: Final[tuple[Any, ...]] = (
    typing_extensions.TypeAliasType,
    getattr(typing, "TypeAliasType", typing_extensions.TypeAliasType),
)
"""From Python 3.12 on that of typing-extensions may be a class of its own."""

if sys.version_info >= (3, 12):
    Alias: TypeAlias = typing.TypeAliasType | typing_extensions.TypeAliasType
else:
    Alias: TypeAlias = typing_extensions.TypeAliasType


def is_alias(tp: object) -> bool:
    """Whether it was made by `type Names = list[str]`, or by typing-extensions before Python 3.12."""
    return isinstance(tp, ALIASES)
