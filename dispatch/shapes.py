"""Which Python types can be stored as JSON, and how each one goes there and back.

Theory of operation. `ShapeBuilder` walks a class's annotations once and gives a
`Shape`: a pair of functions, `out` from a value to a JSON tree and `back` from
a JSON tree to a value. cattrs writes the functions of attrs classes and
dataclasses; everything else, the strictness above all, is here, because cattrs
by default makes 1 of "1", of True and of 1.9.

Two rules keep the hot path short and the errors exact:

- `out` never raises for a value of the wrong type. Where JSON would change such
  a value silently (a tuple in place of a list, a subclass whose extra fields
  would be dropped) it puts an `Unstorable` into the tree, which no JSON encoder
  accepts; where JSON would not (a str in place of an int) it lets the value
  through, for `back` to refuse. So `out` pays no type check that `back` makes.
- `back` is strict and stops at the first misfit in a list, set or dict, so that
  a hostile list of 80,000 wrong elements costs one exception and not 80,000.
"""

from __future__ import annotations

import binascii
import dataclasses
import types
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from enum import Enum, Flag
from itertools import islice
from math import isfinite
from operator import length_hint
from typing import (
    Annotated,
    Any,
    Final,
    Generic,
    Literal,
    NewType,
    Protocol,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)
from uuid import UUID

import attrs
import typing_extensions
from cattrs import Converter, override
from cattrs.disambiguators import create_default_dis_func
from cattrs.fns import identity
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

__all__ = ["Inside", "Misfit", "Shape", "ShapeBuilder", "Unstorable", "UnsupportedType", "type_name"]

Out = Callable[[Any], Any]
Back = Callable[[Any, Any], Any]

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
    have: with them the members of a union are told apart.
    """

    name: str
    out: Out
    back: Back
    kinds: frozenset[type]
    classes: tuple[type, ...]
    key_out: Out | None = None
    key_back: Callable[[str], Any] | None = None


@attrs.define(eq=False)
class ClassFacts:
    """What the codec must know of an attrs class or dataclass beside its shape."""

    shape: Shape
    uses: set[Any]
    secret: frozenset[str]
    derived: tuple[str, ...]
    """Fields that are not stored, since `__init__` does not take them."""
    faithful: bool
    """Whether an instance is known to hold just what its `__init__` is given."""


def type_name(tp: Any) -> str:
    """A type as its user writes it."""
    if tp is None or tp is types.NoneType:
        return "None"
    if isinstance(tp, type) and not get_args(tp):
        return tp.__qualname__.rpartition("<locals>.")[2]
    return str(tp).replace("typing.", "").replace("NoneType", "None")


def _refuse(wanted: str, hint: str = "") -> Back:
    def back(_value: Any, _: Any) -> Any:
        raise Misfit(wanted, hint)

    return back


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


def _bool_back(value: Any, _: Any) -> bool:
    if value.__class__ is bool:
        return cast("bool", value)
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


def _float_back(value: Any, _: Any) -> float:
    if value.__class__ is float or isinstance(value, float):
        if isfinite(value):
            return cast("float", value)
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
        return Unstorable(value, "datetime", "fold=1 without a time zone would be lost: make it aware")
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
        return Unstorable(value, "time", "only a fixed offset from UTC survives: use datetime.timezone")
    return value.isoformat()


def _timedelta_out(value: Any) -> Any:
    if not isinstance(value, timedelta):
        return Unstorable(value, "timedelta")
    seconds = value.total_seconds()
    if timedelta(seconds=seconds) != value:  # from about 270 years on
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
        return Unstorable(value, "bytes", "pass bytes(value)" if isinstance(value, bytearray | memoryview) else "")
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
                return Unstorable(value, PLAIN, f"its key {_brief(key)} would come back as a str")
        return {key: _plain_out(item) for key, item in value.items()}
    if isinstance(value, str | int | float):
        return value
    hint = "it would come back as a list" if isinstance(value, tuple) else "declare a class for it"
    return Unstorable(value, PLAIN, hint)


def _any_back(value: Any, _: Any) -> Any:
    return value


def _brief(key: object) -> str:
    text = repr(key) if isinstance(key, str | int | float | bool | None | UUID | Enum) else type_name(type(key))
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
    return Shape(type_name(tp), out, back, frozenset(kinds), (tp,), **keys)


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
        _scalar(datetime, _datetime_out, _text_back(datetime.fromisoformat, "datetime, as ISO 8601 text"), str),
        _scalar(date, _date_out, _text_back(date.fromisoformat, "date, as ISO 8601 text"), str),
        _scalar(time, _time_out, _text_back(time.fromisoformat, "time, as ISO 8601 text"), str),
        _scalar(timedelta, _timedelta_out, _timedelta_back, float, int),
        _scalar(UUID, _uuid_out, _text_back(UUID, "UUID, as text"), str, key_out=_uuid_out, key_back=_uuid_key),
        _scalar(Decimal, _decimal_out, _text_back(Decimal, "Decimal, as text"), str),
        _scalar(
            bytes, _bytes_out, _text_back(lambda text: b64decode(text, validate=True), "bytes, as base64 text"), str
        ),
    )
}
ANY: Final = Shape("Any", _plain_out, _any_back, frozenset({*SCALARS, list, dict}), (object,))


# --- enums and literals -----------------------------------------------------


def _enum(tp: type[Enum], path: str) -> Shape:
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
        return Shape(name, flag_out, flag_back, frozenset({int}), (tp,))
    for member in tp:
        if member.value.__class__ not in SCALARS and not isinstance(member.value, str | int):
            raise UnsupportedType(
                path, f"the value of {name}.{member.name} is not a str, int, float, bool or None", "give it one"
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
    )


def _raw(value: Any) -> Any:
    """The value as JSON gives it back: a str or int subclass loses its class."""
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


def _literal(tp: Any) -> Shape:
    allowed = get_args(tp)
    pairs = [(_raw(value.value if isinstance(value, Enum) else value), value) for value in allowed]
    members = {(raw.__class__, raw): value for raw, value in pairs}
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
    )


# --- containers -------------------------------------------------------------


def _list(name: str, item: Shape) -> Shape:
    inner_out, inner_back = item.out, item.back
    exact = item.classes[0] if item.classes[0] in EXACT and item is SIMPLE.get(item.classes[0]) else None

    def out(value: Any) -> Any:
        if value.__class__ is not list:
            return Unstorable(value, name, "pass list(value)" if isinstance(value, tuple | set | frozenset) else "")
        return value if inner_out is identity else [inner_out(each) for each in value]

    def back(value: Any, _: Any) -> Any:
        if value.__class__ is not list:
            raise Misfit(name)
        if exact is not None:
            # JSON's own list is fresh and shared with nobody: checking it is enough.
            for each in value:
                if each.__class__ is not exact:
                    break
            else:
                return value
        return _each(value, inner_back)

    return Shape(name, out, back, frozenset({list}), (list,))


def _each(value: list[Any], back: Back) -> list[Any]:
    rest = iter(value)
    try:
        return [back(each, None) for each in rest]
    except Exception as exc:  # the iterator says how far it came: no second pass
        raise Inside(len(value) - length_hint(rest) - 1, exc) from None


def _tuple(name: str, items: tuple[Shape, ...], *, repeated: bool) -> Shape:
    def out(value: Any) -> Any:
        if value.__class__ is not tuple:
            return Unstorable(value, name, "pass tuple(value)" if isinstance(value, list) else "")
        if repeated:
            one = items[0].out
            return [one(each) for each in value]
        if len(value) != len(items):
            return Unstorable(value, name, f"it has {len(value)} elements")
        return [shape.out(each) for shape, each in zip(items, value, strict=True)]

    def back(value: Any, _: Any) -> Any:
        if value.__class__ is not list:
            raise Misfit(name)
        if repeated:
            return tuple(_each(value, items[0].back))
        if len(value) != len(items):
            raise Misfit(name, f"it has {len(value)} elements")
        found: list[Any] = []
        try:
            for shape, each in zip(items, value, strict=True):
                found.append(shape.back(each, None))
        except Exception as exc:
            raise Inside(len(found), exc) from None
        return tuple(found)

    return Shape(name, out, back, frozenset({list}), (tuple,))


def _set(name: str, cls: type[set[Any]] | type[frozenset[Any]], item: Shape) -> Shape:
    def out(value: Any) -> Any:
        if value.__class__ is not cls:
            return Unstorable(value, name)
        found = [item.out(each) for each in value]
        try:
            return sorted(found)  # a set has no order; its bytes must have one
        except TypeError:
            return sorted(found, key=repr)

    def back(value: Any, _: Any) -> Any:
        if value.__class__ is not list:
            raise Misfit(name)
        try:
            found = cls(_each(value, item.back))
        except TypeError:
            raise Misfit(name, "an element is not hashable") from None
        if len(found) != len(value):
            raise Misfit(name, "an element is there twice")
        return found

    return Shape(name, out, back, frozenset({list}), (cls,))


def _dict(name: str, key: Shape, item: Shape) -> Shape:
    key_out, key_back = cast("Out", key.key_out), cast("Callable[[str], Any]", key.key_back)
    plain = key.name == "str"
    inner_out, inner_back = item.out, item.back

    def out(value: Any) -> Any:
        if value.__class__ is not dict:
            return Unstorable(value, name, "pass dict(value)" if isinstance(value, Mapping) else "")
        for each in value:
            if key_out(each).__class__ is Unstorable:
                return Unstorable(value, name, f"its key {_brief(each)} is not of {key.name}")
        if plain:
            return {k: inner_out(v) for k, v in value.items()}
        return {key_out(k): inner_out(v) for k, v in value.items()}

    def back(value: Any, _: Any) -> Any:
        if value.__class__ is not dict:
            raise Misfit(name)
        rest = iter(value.items())
        try:
            found = {k: inner_back(v, None) for k, v in rest}
        except Exception as exc:
            at = len(value) - length_hint(rest) - 1
            raise Inside(next(islice(value, at, None)), exc) from None
        if plain:
            return found
        typed: dict[Any, Any] = {}
        for text, each in found.items():
            try:
                typed[key_back(text)] = each
            except (ValueError, Misfit):
                raise Misfit(name, f"its key {_brief(text)} is not of {key.name}") from None
        return typed

    return Shape(name, out, back, frozenset({dict}), (dict,))


# --- the walk ---------------------------------------------------------------

_HINTS: Final[Mapping[str, str]] = {
    "Sequence": "use list[...] or tuple[..., ...]",
    "MutableSequence": "use list[...]",
    "Iterable": "use list[...] or tuple[..., ...]",
    "Iterator": "use list[...]",
    "Collection": "use list[...] or tuple[..., ...]",
    "deque": "use list[...]",
    "Mapping": "use dict[str, ...]",
    "MutableMapping": "use dict[str, ...]",
    "defaultdict": "use dict[str, ...]",
    "OrderedDict": "use dict[str, ...]",
    "Counter": "use dict[str, int]",
    "Set": "use frozenset[...]",
    "MutableSet": "use set[...]",
    "complex": "use two floats",
    "bytearray": "use bytes",
    "memoryview": "use bytes",
    "Path": "use str",
    "PurePath": "use str",
    "ZoneInfo": "use str, the zone's key",
    "Callable": "use str, a name that your handler looks up",
    "type": "use str, a name that your handler looks up",
}


class ShapeBuilder:
    """Walks one declared class; `known` are the classes walked before, by the same converter.

    A class that contains itself is met again while it is open: it then gets a
    shape that looks its functions up when called. Nothing is added to `known`
    before the whole walk has succeeded.
    """

    def __init__(self, converter: Converter, known: dict[Any, ClassFacts]) -> None:
        self._converter = converter
        self._known = known
        self._found: dict[Any, ClassFacts] = {}
        self._open: set[Any] = set()
        self._uses: list[set[Any]] = [set()]

    def build(self, tp: Any) -> tuple[Shape, list[ClassFacts]]:
        """The shape of `tp` and the facts of every class reachable from it.

        Raises UnsupportedType.
        """
        shape = self.shape(tp, type_name(tp), {})
        self._known.update(self._found)
        seen: dict[Any, ClassFacts] = {}
        waiting = list(self._uses[0])
        while waiting:
            each = waiting.pop()
            if each not in seen:
                seen[each] = self._known[each]
                waiting += seen[each].uses
        return shape, list(seen.values())

    def shape(self, tp: Any, path: str, variables: Mapping[Any, Any]) -> Shape:
        """The shape of one annotation."""
        tp = _bare(tp, variables, path)
        try:
            if tp in SIMPLE:
                return SIMPLE[tp]
        except TypeError:  # an unhashable Literal or Annotated
            pass
        if tp is Any or tp is object:
            return ANY
        origin = get_origin(tp) or tp
        args = get_args(tp)
        if origin is Literal:
            return _literal(tp)
        if origin is Union or origin is types.UnionType:
            return self._union(tp, args, path, variables)
        if not isinstance(origin, type):
            raise UnsupportedType(path, f"{type_name(tp)} cannot be stored", INSTEAD)
        if origin in (list, set, frozenset):
            item = self.shape(args[0] if args else Any, f"{path}[]", variables)
            name = type_name(tp)
            return _list(name, item) if origin is list else _set(name, origin, item)
        if origin is tuple:
            return self._tuple(tp, args, path, variables)
        if origin is dict:
            return self._dict(tp, args, path, variables)
        if issubclass(origin, Enum):
            return _enum(origin, path)
        if attrs.has(origin) or dataclasses.is_dataclass(origin):
            return self._class(tp, origin, path)
        raise UnsupportedType(path, f"{type_name(tp)} cannot be stored", _instead(origin))

    def _tuple(self, tp: Any, args: tuple[Any, ...], path: str, variables: Mapping[Any, Any]) -> Shape:
        name = type_name(tp)
        if not args and tp is tuple:
            args = (Any, ...)
        if len(args) == 2 and args[1] is ...:
            return _tuple(name, (self.shape(args[0], f"{path}[]", variables),), repeated=True)
        items = tuple(self.shape(arg, f"{path}[{index}]", variables) for index, arg in enumerate(args))
        return _tuple(name, items, repeated=False)

    def _dict(self, tp: Any, args: tuple[Any, ...], path: str, variables: Mapping[Any, Any]) -> Shape:
        key_type, item_type = args or (str, Any)
        key = self.shape(key_type, f"{path} (its keys)", variables)
        if key.key_out is None:
            raise UnsupportedType(
                f"{path} (its keys)", f"{key.name} cannot be a key in JSON", "use str, int, UUID, or an Enum of those"
            )
        return _dict(type_name(tp), key, self.shape(item_type, f"{path}[]", variables))

    def _union(self, tp: Any, args: tuple[Any, ...], path: str, variables: Mapping[Any, Any]) -> Shape:
        """Members are told apart by the kind of their JSON, classes by cattrs from their fields."""
        bare = [_bare(arg, variables, path) for arg in args]
        name = " | ".join(type_name(arg) for arg in bare)
        nested = [arg for arg in bare if _is_class(arg)]
        members = [self.shape(arg, path, variables) for arg in bare if not _is_class(arg)]
        if any(member is ANY for member in members):
            return ANY
        if nested:
            members.append(self._classes(nested, path, variables))
        if len(members) == 2 and SIMPLE[types.NoneType] in members:
            return _optional(name, next(each for each in members if each is not SIMPLE[types.NoneType]))
        by_kind: dict[type, Back] = {}
        by_class: dict[type, Out] = {}
        takes_int = any(int in member.kinds and float not in member.kinds for member in members)
        for member in members:
            for kind in member.kinds:
                if kind is int and takes_int and float in member.kinds:
                    continue
                if kind in by_kind:
                    raise UnsupportedType(
                        path,
                        f"the members of {name} cannot be told apart: two are stored as a JSON {_JSON[kind]}",
                        "use one of them, or a class for each with a field that tells them apart",
                    )
                by_kind[kind] = member.back
            by_class.update(dict.fromkeys(member.classes, member.out))
        return _told_apart(name, by_kind, by_class)

    def _classes(self, nested: list[Any], path: str, variables: Mapping[Any, Any]) -> Shape:
        shapes = [self.shape(each, path, variables) for each in nested]
        if len(shapes) == 1:
            return shapes[0]
        name = " | ".join(shape.name for shape in shapes)
        try:
            choose = cast("Callable[[Any], Any]", create_default_dis_func(self._converter, *nested, overrides={}))
        except Exception as exc:
            raise UnsupportedType(
                path,
                f"the members of {name} cannot be told apart ({exc})",
                "give each a field that the others lack, or a Literal field of one name and different values",
            ) from None
        by_class = {shape.classes[0]: shape.out for shape in shapes}
        backs = dict(zip(nested, (shape.back for shape in shapes), strict=True))

        def back(value: Any, _: Any) -> Any:
            if value.__class__ is not dict:
                raise Misfit(name)
            try:
                chosen = backs[choose(value)]
            except Exception:
                raise Misfit(name, "its fields fit none of them") from None
            return chosen(value, None)

        return attrs.evolve(_told_apart(name, {dict: back}, by_class), classes=tuple(by_class))

    def _class(self, tp: Any, cls: type, path: str) -> Shape:
        self._uses[-1].add(tp)
        facts = self._known.get(tp) or self._found.get(tp)
        if facts is not None:
            return facts.shape
        name = type_name(tp)
        if tp in self._open:

            def facts_now() -> Shape:
                return (self._found.get(tp) or self._known[tp]).shape

            return Shape(
                name,
                lambda value: facts_now().out(value),
                lambda value, _: facts_now().back(value, _),
                frozenset({dict}),
                (cls,),
            )
        self._open.add(tp)
        self._uses.append(set())
        try:
            stored, secret, derived = self._fields(tp, cls, path)
            shape = self._generated(tp, cls, name, stored, path)
        finally:
            self._open.discard(tp)
            uses = self._uses.pop()
        self._found[tp] = ClassFacts(shape, uses, secret, derived, _is_faithful(cls) and not derived)
        return shape

    def _fields(self, tp: Any, cls: type, path: str) -> tuple[dict[str, Shape], frozenset[str], tuple[str, ...]]:
        variables = _variables(tp)
        try:
            hints = get_type_hints(cls, include_extras=True)
        except Exception as exc:
            raise UnsupportedType(
                path,
                f"its annotations cannot be read ({type(exc).__name__}: {exc})",
                "define or import what they name at module level",
            ) from None
        stored: dict[str, Shape] = {}
        secret: set[str] = set()
        derived: list[str] = []
        for name, declared, init, metadata in _declared(cls, path):
            if metadata.get("secret"):
                secret.add(name)
            if not init:
                derived.append(name)
                continue
            annotation = hints.get(name, declared)
            if annotation is None and declared is None and name not in hints:
                raise UnsupportedType(f"{path}.{name}", "it has no type annotation", "add one")
            stored[name] = self.shape(annotation, f"{path}.{name}", variables)
        return stored, frozenset(secret), tuple(derived)

    def _generated(self, tp: Any, cls: type, name: str, stored: Mapping[str, Shape], path: str) -> Shape:
        """cattrs writes the functions; each field's hooks are handed to it."""
        hooks = {
            field: override(unstruct_hook=shape.out, struct_hook=shape.back) for field, shape in stored.items()
        }
        try:
            write = cast("Out", make_dict_unstructure_fn(tp, self._converter, **cast("Any", hooks)))
            read = cast("Back", make_dict_structure_fn(tp, self._converter, **cast("Any", hooks)))
        except Exception as exc:
            raise UnsupportedType(path, f"{name} cannot be stored ({exc})", INSTEAD) from None

        def out(value: Any) -> Any:
            if value.__class__ is cls:
                return write(value)
            if isinstance(value, cls):
                return Unstorable(value, name, f"a subclass is not stored as {name}, its own fields would be lost")
            return Unstorable(value, name)

        def back(value: Any, _: Any) -> Any:
            if value.__class__ is dict:
                return read(value, _)
            raise Misfit(f"{name}, as an object")

        return Shape(name, out, back, frozenset({dict}), (cls,))


_JSON: Final[Mapping[type, str]] = {
    str: "string",
    int: "number",
    float: "number",
    bool: "boolean",
    types.NoneType: "null",
    list: "array",
    dict: "object",
}


def _optional(name: str, member: Shape) -> Shape:
    inner_out, inner_back = member.out, member.back

    def out(value: Any) -> Any:
        return None if value is None else inner_out(value)

    def back(value: Any, _: Any) -> Any:
        return None if value is None else inner_back(value, _)

    kinds = member.kinds | {types.NoneType}
    return Shape(name, identity if inner_out is identity else out, back, kinds, (*member.classes, types.NoneType))


def _told_apart(name: str, by_kind: Mapping[type, Back], by_class: Mapping[type, Out]) -> Shape:
    unknown = _refuse(name)

    def out(value: Any) -> Any:
        found = by_class.get(value.__class__)
        if found is not None:
            return found(value)
        for cls, each in by_class.items():  # a subclass, such as a test's frozen datetime
            if isinstance(value, cls) and value.__class__ is not bool:
                return each(value)
        if float in by_class and value.__class__ is int:
            return by_class[float](value)
        return Unstorable(value, name)

    def back(value: Any, _: Any) -> Any:
        return by_kind.get(value.__class__, unknown)(value, _)

    return Shape(name, out, back, frozenset(by_kind), tuple(by_class))


def _is_class(tp: Any) -> bool:
    origin = get_origin(tp) or tp
    return isinstance(origin, type) and (attrs.has(origin) or dataclasses.is_dataclass(origin))


def _bare(tp: Any, variables: Mapping[Any, Any], path: str) -> Any:
    """Without Annotated, Final, NewType and aliases, and with type variables filled in."""
    while True:
        if tp is None:
            return types.NoneType
        if isinstance(tp, TypeVar | typing_extensions.TypeVar):
            if tp not in variables:
                raise UnsupportedType(path, f"its type variable {tp} is open", f"name its type, such as {path}[int]")
            tp = variables[tp]
        elif get_origin(tp) is Annotated or get_origin(tp) is Final:
            tp = get_args(tp)[0]
        elif isinstance(tp, NewType):
            tp = tp.__supertype__
        elif isinstance(tp, typing_extensions.TypeAliasType):
            tp = tp.__value__
        else:
            break
    parameters = getattr(tp, "__parameters__", ())
    if parameters and get_args(tp):
        filled = tuple(_bare(each, variables, path) for each in parameters)
        return tp[filled]
    return tp


def _variables(tp: Any) -> dict[Any, Any]:
    """What each type variable stands for in `tp` and in the generic classes it derives from."""
    origin = get_origin(tp) or tp
    found: dict[Any, Any] = dict(zip(getattr(origin, "__parameters__", ()), get_args(tp), strict=False))
    for base in getattr(origin, "__orig_bases__", ()):
        if get_origin(base) in (None, Generic, Protocol):
            continue
        for variable, given in _variables(base).items():
            found.setdefault(variable, found.get(given, given) if isinstance(given, TypeVar) else given)
    return found


def _declared(cls: type, path: str) -> list[tuple[str, Any, bool, Mapping[Any, Any]]]:
    if attrs.has(cls):
        return [(each.name, each.type, each.init, each.metadata) for each in attrs.fields(cls)]
    for name, field in cast("dict[str, Any]", getattr(cls, "__dataclass_fields__", {})).items():
        if "INITVAR" in repr(field._field_type):
            raise UnsupportedType(f"{path}.{name}", "an InitVar is not kept by its instance", "make it a field")
    return [(each.name, each.type, each.init, each.metadata) for each in dataclasses.fields(cast("Any", cls))]


_HOOKS: Final = ("__attrs_pre_init__", "__attrs_post_init__", "__post_init__", "__getattribute__", "__getattr__")


def _is_faithful(cls: type) -> bool:
    """Whether nothing of the user's runs between an argument of `__init__` and the attribute.

    Told from where its methods' code was made; in doubt the answer is no, which
    costs the publisher a second look at each value and nothing else.
    """
    if any(getattr(cls, hook, None) is not getattr(object, hook, None) for hook in _HOOKS):
        return False
    code = getattr(cls.__init__, "__code__", None)
    made_by = "<attrs generated" if attrs.has(cls) else "<string>"
    if code is None or not code.co_filename.startswith(made_by) or cls.__new__ is not object.__new__:
        return False
    if attrs.has(cls):
        return all(each.converter is None and each.validator is None for each in attrs.fields(cls))
    # A slot's descriptor or nothing but the default stands where a property could.
    return not any(isinstance(vars(base).get(each.name), property) for base in cls.__mro__ for each in dataclasses.fields(cast("Any", cls)))


def _instead(cls: type) -> str:
    if is_typeddict(cls) or (issubclass(cls, tuple) and hasattr(cls, "_fields")):
        return "use an attrs class or a dataclass"
    for base in cls.__mro__:
        if base.__name__ in _HINTS and base is not type(None):
            return _HINTS[base.__name__]
    if cls.__module__ == "builtins" or cls.__module__.startswith("collections"):
        return INSTEAD
    return "make it an attrs class (@attrs.frozen) or a dataclass"
