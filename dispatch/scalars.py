"""How a value that is one piece of JSON is stored: numbers, texts, moments, enums, plain data.

Two rules, for these and for what is made of them, keep the hot path short and
the errors exact:

- `out` never raises for a value of the wrong type. Where JSON would change such
  a value silently (a tuple in place of a list, a subclass whose extra fields
  would be dropped) it puts an `Unstorable` into the tree, which no JSON encoder
  accepts; where JSON would not (a str in place of an int) it lets the value
  through, for `back` to refuse. So `out` pays no type check that `back` makes.
- `back` is strict and undoes `out` exactly, or `out` gives an `Unstorable`.
  cattrs by default makes 1 of "1", of True and of 1.9.
"""

from __future__ import annotations

import binascii
import types
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from enum import Enum, Flag
from math import isfinite
from typing import Any, Final, get_args
from uuid import UUID

import attrs
from cattrs.fns import identity

__all__ = [
    "ANY",
    "EXACT",
    "INSTEAD",
    "PLAIN",
    "SIMPLE",
    "Back",
    "Inside",
    "Misfit",
    "Out",
    "Shape",
    "Text",
    "Unstorable",
    "UnsupportedType",
    "brief",
    "enum_shape",
    "literal_shape",
    "literal_values",
    "type_name",
]

Out = Callable[[Any], Any]
Back = Callable[[Any, Any], Any]
Text = Callable[[Any], tuple[str, Any]]

SCALARS: Final = frozenset({str, int, float, bool, types.NoneType})
EXACT: Final = frozenset({str, int, bool, types.NoneType})
"""Scalars whose `back` is a check of the class and nothing more."""
PLAIN: Final = "plain JSON data (str, int, float, bool, None, list, or dict with str keys)"
INSTEAD: Final = (
    "use an attrs class or dataclass, str, int, float, bool, None, Literal, Enum, list, tuple, "
    "set, frozenset, dict, datetime, date, time, timedelta, UUID, Decimal, bytes or Any"
)


class UnsupportedType(Exception):  # noqa: N818 - turned into the caller's error
    """A type that cannot be stored; `path` says where in the declared class."""

    def __init__(self, path: str, problem: str, instead: str) -> None:
        super().__init__(f"{path}: {problem}; {instead}")


class Misfit(Exception):  # noqa: N818 - turned into InvalidQueuePayloadError by the codec
    """JSON data that is not of the wanted type. Holds no data, which may be secret."""

    def __init__(self, wanted: str, hint: str = "") -> None:
        super().__init__(wanted)
        self.wanted = wanted
        self.hint = hint


class Inside(Exception):  # noqa: N818 - one step of a path
    """Something went wrong one step further in: at an index or a key."""

    def __init__(self, step: int | str, inner: Exception) -> None:
        super().__init__(step)
        self.step = step
        self.inner = inner


@attrs.frozen(eq=False)
class Unstorable:
    """Stands in a JSON tree for a value that cannot be stored there."""

    value: object
    wanted: str
    hint: str = ""


@attrs.frozen(eq=False)
class Shape:
    """How one type is stored.

    `kinds` are the Python classes its JSON may have, `classes` those its values
    have: with them the members of a union are told apart. `quick` reads like `back`
    what is ordinary, and raises anything for the rest.
    """

    name: str
    out: Out
    back: Back
    kinds: frozenset[type]
    classes: tuple[type, ...]
    key_out: Out | None = None
    key_back: Callable[[str], Any] | None = None
    quick: Back | None = None
    exact: tuple[type, ...] = ()
    """Those of which a value is taken quickly as it is, a float if it is finite; others are left to `back`."""
    direct: bool = False
    """Of a scalar, whether reading quickly what `out` gives is as good as reading it from JSON.

    So it is where only exact classes are taken.
    """
    text: Text | None = None
    """Of what is not one scalar: its JSON, and what reading that would give; raises anything for what is not ordinary."""
    depth: int = 0
    """How many lists and objects may stand in one another in what `text` gives."""
    of_scalars: bool = False
    """Whether it is a list of what `is_scalar`."""
    pairs: int | None = None
    """Of a class in which there are scalars and lists of scalars alone, how many fields it stores."""

    @property
    def is_scalar(self) -> bool:
        """Whether its JSON is one scalar, of which it takes no infinite float."""
        return self.kinds <= SCALARS and (float not in self.kinds or bool(self.exact))


def type_name(tp: Any) -> str:
    """A type as its user writes it."""
    if tp is None or tp is types.NoneType:
        return "None"
    if isinstance(tp, type) and not get_args(tp):
        return tp.__qualname__.rpartition("<locals>.")[2]
    return str(tp).replace("typing.", "").replace("NoneType", "None")


# --- scalars ----------------------------------------------------------------
#
# A value that comes from JSON has exactly one of seven classes. The isinstance
# branches serve the explanation of a failed publish only, which runs `back` on
# the tree before JSON and meets a StrEnum in a str field there.


def _str_back(value: Any, _: Any) -> str:
    if isinstance(value, str):
        return value
    raise Misfit("str")


def _int_back(value: Any, _: Any) -> int:
    if value.__class__ is int or (isinstance(value, int) and value.__class__ is not bool):
        return value
    raise Misfit("int")


def _bool_back(value: Any, _: Any) -> Any:
    if value.__class__ is bool:
        return value
    raise Misfit("bool")


def _none_back(value: Any, _: Any) -> None:
    if value is not None:
        raise Misfit("None")


def _float_out(value: Any) -> Any:
    """An int becomes the float it will come back as, so that equal payloads have equal bytes."""
    if value.__class__ is float or value.__class__ is bool or not isinstance(value, int):
        return value
    try:
        found = float(value)
    except OverflowError:
        return Unstorable(value, "float", "it is too large for one")
    return found if found == value else Unstorable(value, "float", "a float cannot hold it exactly")


def _float_back(value: Any, _: Any) -> Any:
    if value.__class__ is float or isinstance(value, float):
        if isfinite(value):
            return value
        raise Misfit("a finite float", "JSON has no NaN and no infinity")
    if value.__class__ is int:
        try:
            found = float(value)
        except OverflowError:
            found = 0.0
        if found == value:
            return found
        raise Misfit("float", "a float cannot hold it exactly")
    raise Misfit("float")


def _datetime_out(value: Any) -> Any:
    if not isinstance(value, datetime):
        return Unstorable(value, "datetime")
    if value.fold and value.tzinfo is None:
        return Unstorable(
            value, "datetime", "fold=1 without a time zone would be lost: make it aware"
        )
    text = value.isoformat()
    if value.__class__ is not datetime and datetime.fromisoformat(text).isoformat() != text:
        return Unstorable(value, "datetime", "it is finer than microseconds")
    return text


def _date_out(value: Any) -> Any:
    if not isinstance(value, date) or isinstance(value, datetime):
        return Unstorable(value, "date")
    return value.isoformat()


def _time_out(value: Any) -> Any:
    if not isinstance(value, time):
        return Unstorable(value, "time")
    if value.fold or (value.tzinfo is not None and value.utcoffset() is None):
        return Unstorable(
            value, "time", "only a fixed offset from UTC survives: use datetime.timezone"
        )
    return value.isoformat()


def _timedelta_out(value: Any) -> Any:
    if not isinstance(value, timedelta):
        return Unstorable(value, "timedelta")
    seconds = value.total_seconds()
    if abs(value.days) > 999_999_998 or timedelta(seconds=seconds) != value:  # from about 270 years on
        return Unstorable(value, "timedelta", "as a float of seconds it would lose microseconds")
    return seconds


def _timedelta_back(value: Any, _: Any) -> timedelta:
    if value.__class__ is not float and value.__class__ is not int:
        raise Misfit("timedelta, as a number of seconds")
    try:
        return timedelta(seconds=value)
    except (OverflowError, ValueError):
        raise Misfit("timedelta, as a number of seconds", "it is too large for one") from None


def _uuid_out(value: Any) -> Any:
    return str(value) if isinstance(value, UUID) else Unstorable(value, "UUID")


def _decimal_out(value: Any) -> Any:
    return str(value) if isinstance(value, Decimal) else Unstorable(value, "Decimal")


def _bytes_out(value: Any) -> Any:
    if value.__class__ is not bytes:
        return Unstorable(
            value, "bytes", "pass bytes(value)" if isinstance(value, bytearray | memoryview) else ""
        )
    return b64encode(value).decode()


def _text_back(parse: Callable[[str], Any], wanted: str) -> Back:
    def back(value: Any, _: Any) -> Any:
        if isinstance(value, str):
            try:
                return parse(value)
            except (ValueError, InvalidOperation, OverflowError, binascii.Error):
                pass
        raise Misfit(wanted)

    return back


def _plain_out(value: Any) -> Any:
    cls = value.__class__
    if cls in SCALARS:
        return value
    if cls is list:
        return [_plain_out(item) for item in value]
    if cls is dict:
        for key in value:
            if not isinstance(key, str):
                return Unstorable(value, PLAIN, f"its key {brief(key)} would come back as a str")
        return {key: _plain_out(item) for key, item in value.items()}
    if isinstance(value, str | int | float):
        return value
    hint = "it would come back as a list" if issubclass(cls, tuple) else "declare a class for it"
    return Unstorable(value, PLAIN, hint)


def _any_back(value: Any, _: Any) -> Any:
    return value


def brief(key: object) -> str:
    """A key in a message."""
    text = (
        repr(key)
        if isinstance(key, str | int | float | bool | None | UUID | Enum)
        else type_name(type(key))
    )
    return text if len(text) <= 40 else f"{text[:40]}..."


def _int_key(text: str) -> int:
    found = int(text)
    if str(found) != text:  # "01" and "1" would be one key
        raise ValueError
    return found


def _uuid_key(text: str) -> UUID:
    found = UUID(text)
    if str(found) != text:
        raise ValueError
    return found


def _scalar(tp: type, out: Out, back: Back, *kinds: type, **keys: Any) -> Shape:
    exact = (tp,) if tp in SCALARS else ()
    return Shape(type_name(tp), out, back, frozenset(kinds), (tp,), exact=exact, direct=True, **keys)


def _str_key_out(key: Any) -> Any:
    return key if isinstance(key, str) else Unstorable(key, "str")


def _int_key_out(key: Any) -> Any:
    return str(key) if key.__class__ is int else Unstorable(key, "int")


SIMPLE: Final[Mapping[Any, Shape]] = {
    shape.classes[0]: shape
    for shape in (
        _scalar(str, identity, _str_back, str, key_out=_str_key_out, key_back=identity),
        _scalar(int, identity, _int_back, int, key_out=_int_key_out, key_back=_int_key),
        _scalar(float, _float_out, _float_back, float, int),
        _scalar(bool, identity, _bool_back, bool),
        _scalar(types.NoneType, identity, _none_back, types.NoneType),
        _scalar(
            datetime,
            _datetime_out,
            _text_back(datetime.fromisoformat, "datetime, as ISO 8601 text"),
            str,
        ),
        _scalar(date, _date_out, _text_back(date.fromisoformat, "date, as ISO 8601 text"), str),
        _scalar(time, _time_out, _text_back(time.fromisoformat, "time, as ISO 8601 text"), str),
        _scalar(timedelta, _timedelta_out, _timedelta_back, float, int),
        _scalar(
            UUID,
            _uuid_out,
            _text_back(UUID, "UUID, as text"),
            str,
            key_out=_uuid_out,
            key_back=_uuid_key,
        ),
        _scalar(Decimal, _decimal_out, _text_back(Decimal, "Decimal, as text"), str),
        _scalar(
            bytes,
            _bytes_out,
            _text_back(lambda text: b64decode(text, validate=True), "bytes, as base64 text"),
            str,
        ),
    )
}
ANY: Final = Shape(
    "Any",
    _plain_out,
    _any_back,
    frozenset[type]({str, int, float, bool, types.NoneType, list, dict}),
    (object,),
)


# --- enums and literals -----------------------------------------------------


def enum_shape(tp: type[Enum], path: str) -> Shape:
    """By value, looked up in a table: neither `_missing_` nor `True == 1` gets a say."""
    name = type_name(tp)
    if issubclass(tp, Flag):

        def flag_back(value: Any, _: Any) -> Any:
            if value.__class__ is int:
                try:
                    return tp(value)
                except ValueError:
                    pass
            raise Misfit(name)

        flag_out = _member_out(tp, name)
        return Shape(name, flag_out, flag_back, frozenset({int}), (tp,), direct=True)
    for member in tp:
        if member.value.__class__ not in SCALARS and not isinstance(member.value, str | int):
            raise UnsupportedType(
                path,
                f"the value of {name}.{member.name} is not a str, int, float, bool or None",
                "give it one",
            )
    raw = {member: _raw(member.value) for member in tp}
    members = {(value.__class__, value): member for member, value in raw.items()}
    wanted = f"{name} ({' or '.join([repr(value) for value in raw.values()][:10])})"
    texts = all(value.__class__ is str for value in raw.values()) and len(raw) > 0
    numbers = all(value.__class__ is int for value in raw.values()) and len(raw) > 0
    back = _member_back(members, wanted)
    key_out: Out | None = None
    key_back: Callable[[str], Any] | None = None
    if texts or numbers:

        def as_key(key: Any) -> Any:
            return str(raw[key]) if key.__class__ is tp else Unstorable(key, name)

        def from_key(text: str) -> Any:
            return back(text if texts else _int_key(text), None)

        key_out, key_back = as_key, from_key
    return Shape(
        name,
        _member_out(tp, name),
        back,
        frozenset(value.__class__ for value in raw.values()),
        (tp,),
        key_out,
        key_back,
        direct=True,
    )


def _raw(value: Any) -> Any:
    """The value as JSON gives it back: a str or int subclass loses its class."""
    if isinstance(value, Enum):  # whose own str() may be its name
        return _raw(value.value)
    for cls in (bool, str, int):
        if isinstance(value, cls):
            return cls(value)
    return value


def _member_out(tp: type[Enum], name: str) -> Out:
    def out(value: Any) -> Any:
        return value.value if value.__class__ is tp else Unstorable(value, name)

    return out


def _member_back(members: Mapping[tuple[type, Any], Any], wanted: str) -> Back:
    def back(value: Any, _: Any) -> Any:
        try:
            return members[value.__class__, value]
        except (KeyError, TypeError):
            raise Misfit(wanted) from None

    return back


def literal_values(tp: Any) -> dict[tuple[type, Any], Any]:
    """The values of a Literal by the class and value that are stored for each."""
    return {(raw.__class__, raw): value for raw, value in _literal_pairs(tp)}


def _literal_pairs(tp: Any) -> list[tuple[Any, Any]]:
    return [
        (_raw(value.value if isinstance(value, Enum) else value), value) for value in get_args(tp)
    ]


def literal_shape(tp: Any, path: str) -> Shape:
    """By value and class, for 1 is not True."""
    allowed = get_args(tp)
    pairs = _literal_pairs(tp)
    for raw, value in pairs:
        if raw.__class__ not in SCALARS:
            raise UnsupportedType(
                path, f"{value!r} of {type_name(tp)} is not a str, int, float, bool or None", "give it one"
            )
    members = literal_values(tp)
    if len(members) < len({(value.__class__, value) for value in allowed}):
        raise UnsupportedType(
            path, f"two values of {type_name(tp)} are stored as the same JSON", "leave one out"
        )
    raws = {(value.__class__, value): raw for raw, value in pairs}
    wanted = " or ".join(repr(value) for value in allowed[:10])
    back = _member_back(members, wanted)

    def out(value: Any) -> Any:
        try:
            return raws[value.__class__, value]
        except (KeyError, TypeError):
            # A StrEnum member equal to an allowed text is let through, as in a str field.
            if isinstance(value, str) and (str, str(value)) in raws:
                return str(value)
            return Unstorable(value, wanted)

    texts = all(raw.__class__ is str and value.__class__ is str for raw, value in pairs)
    return Shape(
        wanted,
        out,
        back,
        frozenset(raw.__class__ for raw, _ in pairs),
        tuple({value.__class__: None for _, value in pairs}),
        out if texts else None,
        (lambda text: back(text, None)) if texts else None,
        direct=True,
    )
