"""How lists, tuples, sets, dicts and unions are stored, given how their elements are.

`back` stops at the first misfit, so that a hostile list of 80,000 wrong elements
costs one exception and not 80,000, and finds its index without a second pass:
passes that are repeated at each level would be doubled at each level.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from itertools import islice
from operator import length_hint
from typing import Any, Final, cast

from cattrs.fns import identity

from dispatch.quick import (
    quick_dict,
    quick_list,
    quick_optional,
    quick_tuple,
    text_of_dict,
    text_of_list,
    text_of_optional,
    text_of_tuple,
)
from dispatch.scalars import EXACT, SIMPLE, Back, Inside, Misfit, Out, Shape, Unstorable, brief

__all__ = ["dict_shape", "list_shape", "optional_shape", "set_shape", "tuple_shape", "union_shape"]

MANY: Final = 500


def list_shape(name: str, item: Shape) -> Shape:
    """A list."""
    inner_out, inner_back = item.out, item.back
    exact = (
        item.classes[0]
        if item.classes[0] in EXACT and item is SIMPLE.get(item.classes[0])
        else None
    )

    def out(value: Any) -> Any:
        if value.__class__ is not list:
            return Unstorable(
                value,
                name,
                "pass list(value)" if isinstance(value, tuple | set | frozenset) else "",
            )
        return value if inner_out is identity else [inner_out(each) for each in value]

    def back(value: Any, _: Any) -> Any:
        if value.__class__ is not list:
            raise Misfit(name)
        if exact is not None:
            for each in value:
                if each.__class__ is not exact:
                    break
            else:
                return list(value)  # an upcaster may keep the one it gave
        return _each(value, inner_back)

    return Shape(
        name,
        out,
        back,
        frozenset({list}),
        (list,),
        quick=quick_list(item),
        text=text_of_list(item),
        depth=item.depth + 1,
        of_scalars=item.is_scalar,
    )


def _each(value: list[Any], back: Back) -> list[Any]:
    rest = iter(value)
    try:
        return [back(each, None) for each in rest]
    except Exception as exc:  # noqa: BLE001 - the iterator says how far it came: no second pass
        raise Inside(len(value) - length_hint(rest) - 1, exc) from None


def tuple_shape(name: str, items: tuple[Shape, ...], *, repeated: bool) -> Shape:
    """One shape for each element, or one for all of them."""

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
        except Exception as exc:  # noqa: BLE001 - the codec judges it
            raise Inside(len(found), exc) from None
        return tuple(found)

    if not repeated:
        return Shape(name, out, back, frozenset({list}), (tuple,))
    quick, text = quick_tuple(items[0]), text_of_tuple(items[0])
    return Shape(name, out, back, frozenset({list}), (tuple,), quick=quick, text=text, depth=items[0].depth + 1)


def set_shape(name: str, cls: type[set[Any]] | type[frozenset[Any]], item: Shape) -> Shape:
    """A set as a sorted list, so that equal sets have equal bytes."""

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
            elements = _each(value, item.back)
            _check_hashes(elements, name)
            found = cls(elements)
        except TypeError:
            raise Misfit(name, "an element is not hashable") from None
        if len(found) != len(value):
            raise Misfit(name, "an element is there twice")
        return found

    return Shape(name, out, back, frozenset({list}), (cls,))


def dict_shape(name: str, key: Shape, item: Shape) -> Shape:
    """A dict as an object; keys other than str become text and must be so one to one."""
    key_out, key_back = cast("Out", key.key_out), cast("Callable[[str], Any]", key.key_back)
    plain = key.name == "str"
    inner_out, inner_back = item.out, item.back

    def out(value: Any) -> Any:
        if value.__class__ is not dict:
            return Unstorable(value, name, "pass dict(value)" if isinstance(value, Mapping) else "")
        for each in value:
            if key_out(each).__class__ is Unstorable:
                return Unstorable(value, name, f"its key {brief(each)} is not of {key.name}")
        if plain:
            return {k: inner_out(v) for k, v in value.items()}
        return {key_out(k): inner_out(v) for k, v in value.items()}

    def back(value: Any, _: Any) -> Any:
        if value.__class__ is not dict:
            raise Misfit(name)
        rest = iter(value.items())
        try:
            found = {k: inner_back(v, None) for k, v in rest}
        except Exception as exc:  # noqa: BLE001 - the codec judges it
            at = len(value) - length_hint(rest) - 1
            raise Inside(next(islice(value, at, None)), exc) from None
        if plain:
            for each in found:
                if not isinstance(cast("object", each), str):  # an upcaster's; a publisher's subclass of it is written as one
                    raise Misfit(name, f"its key {brief(each)} is not of {key.name}")
            return found
        keys: list[Any] = []
        for text in found:
            try:
                keys.append(key_back(text))
            except (ValueError, Misfit):
                raise Misfit(name, f"its key {brief(text)} is not of {key.name}") from None
        _check_hashes(keys, name)
        return dict(zip(keys, found.values(), strict=True))

    if not plain:
        return Shape(name, out, back, frozenset({dict}), (dict,))
    quick, text = quick_dict(item), text_of_dict(item)
    return Shape(name, out, back, frozenset({dict}), (dict,), quick=quick, text=text, depth=item.depth + 1)


def _check_hashes(elements: list[Any], name: str) -> None:
    """Refuse elements made to have few hashes, which would take hash tables minutes.

    Only texts have hashes that nobody can foresee: ints, and UUIDs and Decimals
    with them, collide in multiples of 2**61 - 1, and 10,000 such keys block for
    seconds. The hashes themselves do not: equal ints are found at first sight.
    """
    if len(elements) > MANY and len(elements) - len(set(map(hash, elements))) > MANY:
        raise Misfit(name, "too many of its elements have one hash")


def optional_shape(name: str, member: Shape) -> Shape:
    """A value or None."""
    inner_out, inner_back = member.out, member.back

    def out(value: Any) -> Any:
        return None if value is None else inner_out(value)

    def back(value: Any, _: Any) -> Any:
        return None if value is None else inner_back(value, _)

    kinds = member.kinds | {types.NoneType}
    return Shape(
        name,
        identity if inner_out is identity else out,
        back,
        kinds,
        (*member.classes, types.NoneType),
        quick=quick_optional(member),
        exact=(*member.exact, types.NoneType) if member.exact else (),
        text=text_of_optional(member),
        depth=member.depth,
        of_scalars=member.of_scalars,
    )


def union_shape(name: str, by_kind: Mapping[type, Back], by_class: Mapping[type, Out]) -> Shape:
    """One of several, told apart by the class of the value and by the kind of its JSON."""

    def unknown(_value: Any, _: Any) -> Any:
        raise Misfit(name)

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
