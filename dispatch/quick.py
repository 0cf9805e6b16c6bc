"""Reading JSON data in the ordinary case: no word about what is wrong, only that it is not ordinary.

`Shape.back` checks a value with one call for each field, and says where and why it
does not fit. Nearly every value fits; for those a function is generated for each
class, in which the checks of plain fields are written out. What it takes, `back`
would take as well, and make the same of it. Anything else, be it only a default
that was left out, is Unusual: whoever asked asks `back`.

It takes exact classes only, as `type` tells them (`__class__` of a lazy object may say
anything), and keeps nothing that the tree holds. So it may also take the place of
writing JSON and reading it again: see `Shape.direct`.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Sequence
from math import isfinite
from typing import Any, Final, cast

import attrs

from dispatch.scalars import Back, Shape

__all__ = ["Argument", "quick_class", "quick_dict", "quick_list", "quick_optional", "quick_tuple", "reader"]


class Unusual(Exception):  # noqa: N818 - never seen: whoever asked asks `back`
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
    lines = [f"if type(tree) is not dict or len(tree) != {len(arguments)}: raise Unusual"]
    names: dict[str, object] = {"cls": cls, "Unusual": Unusual}
    given: list[str] = []
    for at, each in enumerate(arguments):
        shape, value = each.shape, f"f{at}"
        lines.append(f"{value} = tree[{each.field!r}]")
        if shape.exact:
            lines.append(f"if {_is_none_of(value, shape.exact)}: raise Unusual")
            if float in shape.exact:
                lines.append(f"if type({value}) is float and {value} - {value} != 0.0: raise Unusual")
        else:
            names[f"read{at}"] = reader(shape)
            lines.append(f"{value} = read{at}({value}, None)")
        given.append(f"{each.name}={value}" if each.keyword else value)
    given.sort(key=lambda text: "=" in text)
    lines.append(f"return cls({', '.join(given)})")
    source = "def quick(tree, _):\n" + "".join(f"    {line}\n" for line in lines)
    # S102: of the names of fields and of their arguments, and of nothing that came with a value.
    exec(compile(source, f"<generated reader of {cls.__name__}>", "exec"), names)  # noqa: S102
    return cast("Back", names["quick"])


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


def quick_tuple(item: Shape) -> Back:
    """The reader of a tuple of any length."""
    return _each(item, tuple)


def quick_dict(item: Shape) -> Back:
    """The reader of a dict with keys of str; what it gives is a new one."""
    read = reader(item)

    def quick(value: Any, _: Any) -> Any:
        if _is_other(value, dict) or not _TEXTS.issuperset(map(type, value)):
            raise Unusual
        return {key: read(each, None) for key, each in value.items()}

    return quick


def quick_optional(member: Shape) -> Back:
    """The reader of a value or None."""
    read = reader(member)

    def quick(value: Any, _: Any) -> Any:
        return None if value is None else read(value, None)

    return quick


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


def _is_none_of(value: str, exact: Sequence[type]) -> str:
    return " and ".join(
        f"{value} is not None" if cls is types.NoneType else f"type({value}) is not {cls.__name__}"
        for cls in exact
    )
