"""Writing and reading JSON in the ordinary case: no word about what is wrong, only that it is not ordinary.

`Shape.out` and `Shape.back` call a function for each field, and say where and why a
value does not fit. Nearly every value fits; for those a writer and a reader are
generated for each class, in which the checks of plain fields are written out. What
they take, `out` and `back` would take as well, and make the same of it. Anything else,
be it only a default that was left out, is Unusual: whoever asked asks the careful ones.

They take exact classes only, as `type` tells them (`__class__` of a lazy object may say
anything), and keep nothing mutable of what they are given. So a writer needs no tree of
JSON data: it writes each field, and makes of it what reading that would give.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Sequence
from math import isfinite
from typing import Any, Final, cast

import attrs

from dispatch import jsontext
from dispatch.jsontext import quote
from dispatch.scalars import Back, Shape, Text

__all__ = [
    "Argument",
    "quick_class",
    "quick_dict",
    "quick_list",
    "quick_optional",
    "quick_tuple",
    "reader",
    "text_of_class",
    "text_of_dict",
    "text_of_list",
    "text_of_optional",
    "text_of_tuple",
    "writer",
]


class Unusual(Exception):  # noqa: N818 - never seen: whoever asked asks the careful ones
    """Not the ordinary case."""


@attrs.frozen
class Argument:
    """A stored field, and how `__init__` takes it."""

    field: str
    name: str
    keyword: bool
    shape: Shape


def quick_class(cls: Any, arguments: Sequence[Argument]) -> Back:
    """The reader of a class's values. Raises anything for what is not ordinary."""
    lines = [f"if type(value) is not dict or len(value) != {len(arguments)}: raise Unusual"]
    names: dict[str, object] = {}
    for at, each in enumerate(arguments):
        lines.append(f"f{at} = value[{each.field!r}]")
        if each.shape.exact:
            lines += _checks(at, each.shape.exact)
        else:
            names[f"read{at}"] = reader(each.shape)
            lines.append(f"f{at} = read{at}(f{at}, None)")
    return cast("Back", _function("quick(value, _)", lines, _made(arguments), cls, names))


def text_of_class(cls: Any, arguments: Sequence[Argument]) -> Text | None:
    """The writer of a class's values, if there is one of each of its fields."""
    lines = ["if type(value) is not cls: raise Unusual"]
    names: dict[str, object] = {"quote": quote, "whole": jsontext.text}
    pairs: list[str] = []
    for at, each in enumerate(arguments):
        lines.append(f"f{at} = value.{each.field}")
        if each.shape.exact:
            lines += _checks(at, each.shape.exact)
            text = _text(at, each.shape.exact)
        else:
            write = writer(each.shape)
            if write is None:
                return None
            names[f"write{at}"] = write
            lines.append(f"t{at}, f{at} = write{at}(f{at})")
            text = f"t{at}"
        pairs.append(f'"{each.field}":{{{text}}}')
    made = f"f'{{{{{','.join(pairs)}}}}}', {_made(arguments)}"
    return cast("Text", _function("text(value)", lines, made, cls, names))


def quick_list(item: Shape) -> Back:
    """The reader of a list; what it gives is a new one."""
    if not item.exact:
        return _each(item, list)
    exact = frozenset(item.exact)
    real = float in exact

    def quick(value: Any, _: Any) -> Any:
        if _is_other(value, list) or not exact.issuperset(map(type, value)):
            raise Unusual
        if real and not all(isfinite(each) for each in value if each is not None):
            raise Unusual
        return value.copy()

    return quick


def text_of_list(item: Shape) -> Text | None:
    """The writer of a list."""
    if not item.exact:
        return _text_of_each(item, list, list)
    exact = frozenset(item.exact)
    real, short = float in exact, exact == _TEXTS

    def text(value: Any) -> tuple[str, Any]:
        if _is_other(value, list):
            raise Unusual
        found: list[Any] = value.copy()
        if not exact.issuperset(map(type, found)):
            raise Unusual
        if short and len(found) <= FEW:
            return f"[{','.join(map(quote, found))}]", found
        if real and not all(isfinite(each) for each in found if each is not None):
            raise Unusual
        return jsontext.text(found), found

    return text


def quick_tuple(item: Shape) -> Back:
    """The reader of a tuple of any length."""
    return _each(item, tuple)


def text_of_tuple(item: Shape) -> Text | None:
    """The writer of a tuple of any length."""
    return _text_of_each(item, tuple, tuple)


def quick_dict(item: Shape) -> Back:
    """The reader of a dict with keys of str; what it gives is a new one."""
    read = reader(item)

    def quick(value: Any, _: Any) -> Any:
        if _is_other(value, dict) or not _TEXTS.issuperset(map(type, value)):
            raise Unusual
        return {key: read(each, None) for key, each in value.items()}

    return quick


def text_of_dict(item: Shape) -> Text | None:
    """The writer of a dict with keys of str."""
    write = writer(item)
    if write is None:
        return None
    exact = frozenset(item.exact)

    def text(value: Any) -> tuple[str, Any]:
        if _is_other(value, dict):
            raise Unusual
        given: dict[str, Any] = value.copy()
        if not _TEXTS.issuperset(map(type, given)):
            raise Unusual
        if exact:
            values = given.values()
            if not exact.issuperset(map(type, values)) or not all(isfinite(each) for each in values if type(each) is float):
                raise Unusual
            return jsontext.text(given), given
        found = {key: write(each) for key, each in given.items()}
        text = ",".join([f"{quote(key)}:{each}" for key, (each, _) in found.items()])
        return f"{{{text}}}", {key: copy for key, (_, copy) in found.items()}

    return text


def quick_optional(member: Shape) -> Back:
    """The reader of a value or None."""
    read = reader(member)

    def quick(value: Any, _: Any) -> Any:
        return None if value is None else read(value, None)

    return quick


def text_of_optional(member: Shape) -> Text | None:
    """The writer of a value or None."""
    write = writer(member)
    if write is None:
        return None

    def text(value: Any) -> tuple[str, Any]:
        return ("null", None) if value is None else write(value)

    return text


_TEXTS: Final = frozenset({str})


def _each(item: Shape, make: Callable[[Iterable[Any]], Any]) -> Back:
    read = reader(item)

    def quick(value: Any, _: Any) -> Any:
        if _is_other(value, list):
            raise Unusual
        return make([read(each, None) for each in value])

    return quick


def reader(shape: Shape) -> Back:
    """The quick way to read what is of this shape; where there is none, `back`."""
    if not shape.exact:
        return shape.quick or shape.back
    exact = frozenset(shape.exact)

    def same(value: Any, _: Any) -> Any:
        if type(value) in exact and (type(value) is not float or isfinite(value)):
            return value
        raise Unusual

    return same


def _is_other(value: Any, cls: type) -> bool:
    return type(value) is not cls


def writer(shape: Shape) -> Text | None:
    """The quick way to write what is of this shape, if there is one."""
    if shape.text is not None or not shape.direct:
        return shape.text
    out, back = shape.out, reader(shape)

    def text(value: Any) -> tuple[str, Any]:
        tree = out(value)
        return _SCALARS[type(tree)](tree), back(tree, None)

    return text


def _text_of_each(item: Shape, cls: type, make: Callable[[Iterable[Any]], Any]) -> Text | None:
    write = writer(item)
    if write is None:
        return None

    def text(value: Any) -> tuple[str, Any]:
        if _is_other(value, cls):
            raise Unusual
        found = [write(each) for each in value]
        return f"[{','.join([text for text, _ in found])}]", make([copy for _, copy in found])

    return text


def _finite(value: float) -> str:
    if isfinite(value):
        return float.__repr__(value)
    raise Unusual


_SCALARS: Final[dict[type, Callable[[Any], str]]] = {
    str: quote,
    int: int.__repr__,
    float: _finite,
    bool: lambda value: "true" if value else "false",
    types.NoneType: lambda _: "null",
}
FEW: Final = 8
"""How many elements a list has that Python writes in the time that a writer of JSON takes to begin."""
SHORT: Final = 500
"""How long a text is, in characters, that is not worth asking orjson for, where there is one."""


# ---- the source of functions ---------------------------------------------------


def _checks(at: int, exact: Sequence[type]) -> list[str]:
    """The lines that refuse a field of any other class."""
    value = f"f{at}"
    other = " and ".join(
        f"{value} is not None" if cls is types.NoneType else f"type({value}) is not {cls.__name__}" for cls in exact
    )
    lines = [f"if {other}: raise Unusual"]
    if float in exact:
        lines.append(f"if type({value}) is float and {value} - {value} != 0.0: raise Unusual")
    return lines


def _text(at: int, exact: Sequence[type]) -> str:
    """The JSON of a field of these classes, one and None at most, to stand in an f-string."""
    [cls] = [each for each in exact if each is not types.NoneType] or [types.NoneType]
    text = {
        str: f"(quote if len(f{at}) < {SHORT} else whole)(f{at})",
        bool: f'"true" if f{at} else "false"',
        types.NoneType: '"null"',
    }.get(cls, f"f{at}")
    return text if len(exact) == 1 else f'"null" if f{at} is None else {text}'


def _made(arguments: Sequence[Argument]) -> str:
    """The instance, of the fields f0, f1, ..."""
    given = [f"{each.name}=f{at}" if each.keyword else f"f{at}" for at, each in enumerate(arguments)]
    return f"cls({', '.join(sorted(given, key=lambda text: '=' in text))})"


def _function(head: str, lines: Sequence[str], answer: str, cls: Any, names: dict[str, object]) -> object:
    source = f"def {head}:\n" + "".join(f"    {line}\n" for line in (*lines, f"return {answer}"))
    names |= {"cls": cls, "Unusual": Unusual}
    # S102: of the names of fields and of their arguments, and of nothing that came with a value.
    exec(compile(source, f"<generated for {cls.__name__}>", "exec"), names)  # noqa: S102
    return names[head.partition("(")[0]]
