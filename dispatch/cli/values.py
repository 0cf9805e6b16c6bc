"""How people write durations, moments and choices on a command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from cyclopts import Parameter, Token

from dispatch.cli.shell import CommandError
from dispatch.codec import Codec, Undecodable
from dispatch.nearest import known
from dispatch.records import to_seconds
from dispatch.tasks import Priority

__all__ = ["Whole", "moment", "pairs", "payload", "priority", "seconds"]

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}
_PIECE: Final = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_DURATION: Final = re.compile(rf"(?:{_PIECE.pattern})+|\d+(?:\.\d+)?")


def _whole(_type: object, tokens: Sequence[Token]) -> int:
    """A number without a fraction, which cyclopts would round: 1.5 of anything is a mistake."""
    text = tokens[0].value
    if not re.fullmatch(r"[+-]?[0-9]{1,40}", text):
        raise ValueError(f"wanted a whole number, got {text[:40]!r}")
    return int(text)


Whole = Annotated[int, Parameter(converter=_whole)]
"""An option's whole number, in digits."""


def seconds(text: str, option: str) -> float:
    """`90`, `90s`, `1h30m`, `7d` as seconds."""
    if not _DURATION.fullmatch(text, 0, 40):
        raise CommandError(
            f"{option} wants a duration such as 90s, 15m, 1h30m or 7d, got {text[:40]!r}", 2
        )
    if text[-1] not in _UNITS:
        return float(text)
    return sum(float(number) * _UNITS[unit] for number, unit in _PIECE.findall(text))


def moment(text: str, option: str) -> datetime:
    """An ISO 8601 text with a zone as an aware datetime."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        example = "2026-03-29T02:30:00+02:00 or 2026-03-29T00:30:00Z"
        raise CommandError(
            f"{option} wants a moment with its zone, such as {example}, got {text[:60]!r}", 2
        )
    # To UTC and back: a moment out of the calendar's range is found here, not in the store.
    try:
        return datetime.fromtimestamp(to_seconds(found), UTC)
    except (OverflowError, ValueError, OSError):
        raise CommandError(f"{option}: {text[:60]!r} is out of range", 2) from None


def pairs(texts: tuple[str, ...], option: str) -> dict[str, str]:
    """`("a=1", "b=2")` as a mapping."""
    for text in texts:
        if "=" not in text:
            raise CommandError(f"{option} wants NAME=VALUE, got {text[:60]!r}", 2)
    found: dict[str, str] = {}
    for name, _, value in (text.partition("=") for text in texts):
        if name in found:
            raise CommandError(f"{option} {name[:60]}: given twice, as {found[name][:60]!r} and {value[:60]!r}", 2)
        found[name] = value
    return found


def priority(text: str) -> Priority:
    """A priority by name or number."""
    names = {each.name.lower(): each for each in Priority}
    names |= {str(each.value): each for each in Priority}
    found = names.get(text.lower())
    if found is None:
        raise CommandError(f"no priority {text[:40]!r}{known(text.lower(), [*names][:4])}", 2)
    return found


def payload(text: str, codec: Codec) -> dict[str, Any]:
    """A payload's JSON object, read by the rules that every stored payload passes."""
    found = codec.decode_plain(text.encode("utf-8", "surrogateescape"))
    if isinstance(found, Undecodable):
        raise CommandError(f"payload: {found.reason}", 2)
    if not isinstance(found, dict):
        raise CommandError(f"payload must be a JSON object, got {text[:60]!r}", 2)
    return found  # pyright: ignore[reportUnknownVariableType] - JSON's keys are str
