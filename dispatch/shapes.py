"""Which classes can be stored, and how each one goes to JSON data and back.

`ShapeBuilder` walks a class's annotations once and gives a `Shape`: a pair of
functions, `out` from a value to a JSON tree and `back` from a JSON tree to a
value. cattrs writes the functions of attrs classes and dataclasses and tells
the members of their unions apart; the rest, the strictness above all, is ours.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
from datetime import datetime
from enum import Enum
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    ForwardRef,
    Generic,
    Literal,
    NewType,
    Protocol,
    Self,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import attrs
import typing_extensions
from cattrs import Converter, override
from cattrs.disambiguators import create_default_dis_func
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

from dispatch.checks import is_alias
from dispatch.containers import (
    dict_shape,
    list_shape,
    optional_shape,
    set_shape,
    tuple_shape,
    union_shape,
)
from dispatch.quick import Argument, quick_class, text_of_class
from dispatch.scalars import (
    ANY,
    INSTEAD,
    SIMPLE,
    Back,
    Misfit,
    Out,
    Shape,
    Unstorable,
    UnsupportedType,
    enum_shape,
    literal_shape,
    literal_values,
    type_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["ClassFacts", "ShapeBuilder", "lost"]

NONE: Final = SIMPLE[types.NoneType]
_JSON: Final[Mapping[type, str]] = {
    str: "string",
    int: "number",
    float: "number",
    bool: "boolean",
    types.NoneType: "null",
    list: "array",
    dict: "object",
}


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


_TAKEN: Final = frozenset({"attrs", "cl", "converter", "typevar_map"})
"""Parameters of cattrs' own, among which it takes what is said of each field."""
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
    "tzinfo": "use str, the zone's key",
    "_IPAddressBase": "use str",
    "Fraction": "use str",
    "Pattern": "use str",
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
        self._aliases: list[Any] = []
        """Those being walked, up to the class around: one within a class is met again as that class is."""

    def build(self, tp: Any) -> tuple[Shape, list[ClassFacts]]:
        """The shape of `tp` and the facts of every class reachable from it.

        Raises UnsupportedType.
        """
        try:
            shape = self.shape(tp, type_name(tp), {})
        except RecursionError:
            problem = "it contains ever new types without end"
            raise UnsupportedType(type_name(tp), problem, INSTEAD) from None
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
        if not is_alias(tp):
            return self._shape(tp, path, variables)
        if tp in self._aliases:
            raise UnsupportedType(
                path, f"{type_name(tp)} contains itself", "use Any for plain JSON data, or a class that contains itself"
            )
        self._aliases.append(tp)
        try:
            return self._shape(tp, path, variables)
        finally:
            self._aliases.pop()

    def _shape(self, tp: Any, path: str, variables: Mapping[Any, Any]) -> Shape:
        tp = _bare(tp, variables, path)
        try:
            if tp in SIMPLE:
                return SIMPLE[tp]
        except TypeError:  # an unhashable Literal or Annotated
            pass
        if tp is Any or tp is object:
            return ANY
        origin: Any = get_origin(tp) or tp
        args = get_args(tp)
        if origin is Literal:
            return literal_shape(tp, path)
        if origin is Union or origin is types.UnionType:
            return self._union(tp, args, path, variables)
        if tp is Self:
            raise UnsupportedType(path, "Self cannot be stored", "write the name of the class")
        if isinstance(tp, ForwardRef):  # left by get_type_hints inside what it is reading already
            problem = f"{tp.__forward_arg__} contains itself"
            raise UnsupportedType(path, problem, "use Any for plain JSON data, or a class that contains itself")
        if not inspect.isclass(origin):
            raise UnsupportedType(path, f"{type_name(tp)} cannot be stored", INSTEAD)
        if origin in (list, set, frozenset):
            item = self.shape(args[0] if args else Any, f"{path}[]", variables)
            name = type_name(tp)
            if origin is list:
                return list_shape(name, item)
            return set_shape(name, set if origin is set else frozenset, item)
        if origin is tuple:
            return self._tuple(tp, args, path, variables)
        if origin is dict:
            return self._dict(tp, args, path, variables)
        if issubclass(origin, Enum):
            return enum_shape(origin, path)
        if attrs.has(origin) or dataclasses.is_dataclass(origin):
            return self._class(tp, origin, path)
        raise UnsupportedType(path, f"{type_name(tp)} cannot be stored", _instead(origin))

    def _tuple(
        self, tp: Any, args: tuple[Any, ...], path: str, variables: Mapping[Any, Any]
    ) -> Shape:
        name = type_name(tp)
        if not args and tp is tuple:
            args = (Any, ...)
        if len(args) == 2 and args[1] is ...:
            return tuple_shape(name, (self.shape(args[0], f"{path}[]", variables),), repeated=True)
        items = tuple(
            self.shape(arg, f"{path}[{index}]", variables) for index, arg in enumerate(args)
        )
        return tuple_shape(name, items, repeated=False)

    def _dict(
        self, tp: Any, args: tuple[Any, ...], path: str, variables: Mapping[Any, Any]
    ) -> Shape:
        key_type, item_type = args or (str, Any)
        key = self.shape(key_type, f"{path} (its keys)", variables)
        if key.key_out is None:
            raise UnsupportedType(
                f"{path} (its keys)",
                f"{key.name} cannot be a key in JSON",
                "use str, int, UUID, or an Enum of those",
            )
        return dict_shape(type_name(tp), key, self.shape(item_type, f"{path}[]", variables))

    def _union(
        self, tp: Any, args: tuple[Any, ...], path: str, variables: Mapping[Any, Any]
    ) -> Shape:
        """Members are told apart by the kind of their JSON, classes by cattrs from their fields."""
        bare = [_bare(arg, variables, path) for arg in args]
        name = " | ".join(type_name(arg) for arg in bare)
        nested = [arg for arg in bare if _is_class(arg)]
        members = [self.shape(arg, path, variables) for arg in bare if not _is_class(arg)]
        if any(member is ANY for member in members):
            return ANY
        if nested:
            members.append(self._classes(nested, path, variables))
        if len(members) == 2 and NONE in members:
            other = next(each for each in members if each is not NONE)
            # What has None among its own values may be optional, too. An Enum with a
            # member of the value None may not: both would be stored as null.
            if types.NoneType not in other.kinds or types.NoneType in other.classes:
                return optional_shape(name, other)
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
                        f"the members of {name} cannot be told apart: "
                        f"two are stored as a JSON {_JSON[kind]}",
                        "use one of them, or a class for each with a field that tells them apart",
                    )
                by_kind[kind] = member.back
            by_class.update(dict.fromkeys(member.classes, member.out))
        return union_shape(name, by_kind, by_class)

    def _classes(self, nested: list[Any], path: str, variables: Mapping[Any, Any]) -> Shape:
        shapes = [self.shape(each, path, variables) for each in nested]
        if len(shapes) == 1:
            return shapes[0]
        name = " | ".join(shape.name for shape in shapes)
        by_class = {shape.classes[0]: shape.out for shape in shapes}
        if len(by_class) < len(shapes):  # a value does not say which it is, and would be written as the last
            raise UnsupportedType(
                path,
                f"the members of {name} cannot be told apart: two are of one class",
                "use a class of its own for each",
            )
        try:
            choose = self._chooser(nested, path)
        except Exception as exc:  # noqa: BLE001 - cattrs says so in several ways
            raise UnsupportedType(
                path,
                f"the members of {name} cannot be told apart ({exc})",
                "give each a field that the others lack, or a Literal field of one name "
                "and different values",
            ) from None
        backs = dict(zip(nested, (shape.back for shape in shapes), strict=True))

        def back(value: Any, _: Any) -> Any:
            if value.__class__ is not dict:
                raise Misfit(name)
            try:
                chosen = backs[choose(value)]
            except Exception:  # noqa: BLE001 - any error of a guess from hostile data
                raise Misfit(name, "its fields fit none of them") from None
            return chosen(value, None)

        return attrs.evolve(union_shape(name, {dict: back}, by_class), classes=tuple(by_class))

    def _chooser(self, nested: list[Any], path: str) -> Callable[[Any], Any]:
        """Tell classes apart: by a Literal field of them all, else by the fields they need.

        cattrs looks for Literals, too, but not in a dataclass's annotations that are
        texts, not through Annotated, and by the members of an Enum, not their values.
        """
        tags = [_tags(each, path) for each in nested]
        groups: dict[tuple[type, Any], list[Any]] = {}
        field = ""
        for name in tags[0]:
            if not all(name in each for each in tags):
                continue
            found: dict[tuple[type, Any], list[Any]] = {}
            for each, own in zip(nested, tags, strict=True):
                for tag in own[name]:
                    found.setdefault(tag, []).append(each)
            if not groups or max(map(len, found.values())) < max(map(len, groups.values())):
                field, groups = name, found
        if not groups or max(map(len, groups.values())) == len(nested):
            return cast(
                "Callable[[Any], Any]",
                create_default_dis_func(
                    self._converter, *nested, use_literals=False, overrides={}
                ),
            )
        further = {
            tag: None if len(group) == 1 else self._chooser(group, path)
            for tag, group in groups.items()
        }

        def choose(value: Any) -> Any:
            tag = value[field].__class__, value[field]
            chosen = further[tag]
            return groups[tag][0] if chosen is None else chosen(value)

        return choose

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
        around, self._aliases = self._aliases, []
        try:
            stored, secret, derived = self._fields(tp, cls, path)
            faithful = _is_faithful(cls) and not derived
            shape = self._generated(tp, cls, name, stored, path, faithful=faithful)
        finally:
            self._open.discard(tp)
            self._aliases = around
            uses = self._uses.pop()
        self._found[tp] = ClassFacts(shape, uses, secret, derived, faithful)
        return shape

    def _fields(
        self, tp: Any, cls: type, path: str
    ) -> tuple[dict[str, Shape], frozenset[str], tuple[str, ...]]:
        scopes = _scopes(tp)
        try:
            hints = _hints(cls)
        except Exception as exc:  # noqa: BLE001 - annotations are the user's code
            raise UnsupportedType(
                path,
                f"its annotations cannot be read ({type(exc).__name__}: {exc})",
                "define or import what they name at module level, outside of TYPE_CHECKING",
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
            if name in _TAKEN:
                raise UnsupportedType(
                    f"{path}.{name}", "cattrs takes no field of this name", "name it otherwise"
                )
            annotation = hints.get(name, declared)
            if annotation is None and declared is None and name not in hints:
                raise UnsupportedType(f"{path}.{name}", "it has no type annotation", "add one")
            stored[name] = self.shape(annotation, f"{path}.{name}", _scope(scopes, cls, name))
        return stored, frozenset(secret), tuple(derived)

    def _generated(
        self, tp: Any, cls: type, name: str, stored: Mapping[str, Shape], path: str, *, faithful: bool
    ) -> Shape:
        """cattrs writes the functions that know what to say; each field's hooks are handed to it."""
        hooks: dict[str, Any] = {
            field: override(unstruct_hook=shape.out, struct_hook=shape.back)
            for field, shape in stored.items()
        }
        try:
            write = cast("Out", make_dict_unstructure_fn(tp, self._converter, **cast("Any", hooks)))
            read = cast("Back", make_dict_structure_fn(tp, self._converter, **cast("Any", hooks)))
            arguments = _arguments(cls, stored, by_name=not faithful)
            quick = quick_class(cls, arguments)
            text = text_of_class(cls, arguments) if faithful else None
        except Exception as exc:  # noqa: BLE001 - cattrs says so in several ways
            raise UnsupportedType(path, f"{name} cannot be stored ({exc})", INSTEAD) from None

        def out(value: Any) -> Any:
            if value.__class__ is cls:
                return write(value)
            if isinstance(value, cls):
                return Unstorable(
                    value, name, f"a subclass is not stored as {name}, its own fields would be lost"
                )
            return Unstorable(value, name)

        def back(value: Any, _: Any) -> Any:
            if value.__class__ is dict:
                return read(value, _)
            raise Misfit(f"{name}, as an object")

        flat = all(shape.is_scalar or shape.of_scalars for shape in stored.values())
        return Shape(
            name,
            out,
            back,
            frozenset({dict}),
            (cls,),
            quick=quick,
            text=text,
            depth=max((shape.depth for shape in stored.values()), default=0) + 1,
            pairs=len(stored) if flat else None,
        )


def _is_class(tp: Any) -> bool:
    origin = get_origin(tp) or tp
    return isinstance(origin, type) and (attrs.has(origin) or dataclasses.is_dataclass(origin))


def _bare(tp: Any, variables: Mapping[Any, Any], path: str) -> Any:
    """Without Annotated, Final, NewType and aliases, and with type variables filled in."""
    met: list[Any] = []
    while True:
        if is_alias(tp) or is_alias(get_origin(tp)):
            if tp in met:
                raise UnsupportedType(path, f"{type_name(tp)} stands for itself", "write out what it stands for")
            met.append(tp)
        if tp is None:
            return types.NoneType
        if isinstance(tp, TypeVar | typing_extensions.TypeVar):
            if tp not in variables:
                owner = path.rpartition(".")[0]
                how = f"name its type where {owner} is declared, as in Page[int]"
                if owner.isidentifier():  # the payload's own class, of which nobody can say more
                    how = f"write {owner}[int] where it is a field of another class"
                raise UnsupportedType(path, f"its type variable {tp} is open", how)
            tp = variables[tp]
        elif get_origin(tp) is Annotated or get_origin(tp) is Final:
            tp = get_args(tp)[0]
        elif isinstance(tp, NewType):
            tp = tp.__supertype__
        elif is_alias(tp):
            tp = tp.__value__
        elif is_alias(alias := get_origin(tp)):
            tp = _filled(alias.__value__, _given(tp, alias.__type_params__, path))
        else:
            break
    parameters = getattr(tp, "__parameters__", ())
    if parameters and get_args(tp):
        filled = tuple(_bare(each, variables, path) for each in parameters)
        return tp[filled]
    return tp


def _given(tp: Any, variables: tuple[Any, ...], path: str) -> dict[Any, Any]:
    """What an alias's variables stand for in `tp`; those that nothing was given for, by their defaults."""
    given = get_args(tp)
    defaults = [getattr(each, "__default__", typing_extensions.NoDefault) for each in variables[len(given) :]]
    plain = all(isinstance(each, TypeVar | typing_extensions.TypeVar) for each in variables)
    if not plain or len(given) > len(variables) or typing_extensions.NoDefault in defaults:
        wanted = f"({', '.join(map(str, variables))})"
        raise UnsupportedType(
            path, f"{type_name(tp)} does not give each variable of {wanted} one type", "write out what it stands for"
        )
    return dict(zip(variables, (*given, *defaults), strict=True))


def _scopes(tp: Any) -> dict[Any, dict[Any, Any]]:
    """What the type variables stand for in `tp`, and in each class that it derives from.

    One variable stands for something else in each of them, as T in `class C(A[int],
    B[str])`. Those that stay open are left out.
    """
    found: dict[Any, dict[Any, Any]] = {}

    def walk(each: Any, outer: Mapping[Any, Any]) -> None:
        origin = get_origin(each) or each
        own: dict[Any, Any] = {}
        for variable, given in zip(
            getattr(origin, "__parameters__", ()), get_args(each), strict=False
        ):
            filled = _filled(given, outer)
            if not isinstance(filled, TypeVar) and not (
                get_args(filled) and getattr(filled, "__parameters__", ())
            ):
                own[variable] = filled
        found.setdefault(origin, own)
        bases: tuple[Any, ...] = origin.__dict__.get("__orig_bases__", origin.__bases__)
        for base in bases:
            if base is not object and get_origin(base) not in (Generic, Protocol):
                walk(base, own)

    walk(tp, {})
    return found


def _filled(tp: Any, variables: Mapping[Any, Any]) -> Any:
    if isinstance(tp, TypeVar):
        return variables.get(tp, tp)
    parameters = getattr(tp, "__parameters__", ())
    if parameters and get_args(tp):
        return tp[tuple(variables.get(each, each) for each in parameters)]
    return tp


def _scope(scopes: Mapping[Any, dict[Any, Any]], cls: type, name: str) -> Mapping[Any, Any]:
    """That of the class which says the field's type."""
    owner = next((each for each in cls.__mro__ if name in inspect.get_annotations(each)), cls)
    return scopes.get(owner, {})


def _tags(tp: Any, path: str) -> dict[str, frozenset[tuple[type, Any]]]:
    """The Literal fields of a class, and as what their values are stored."""
    cls: type = get_origin(tp) or tp
    scopes = _scopes(tp)
    hints = _hints(cls)
    found: dict[str, frozenset[tuple[type, Any]]] = {}
    for name, declared, init, _ in _declared(cls, path):
        if init:
            bare = _bare(hints.get(name, declared), _scope(scopes, cls, name), path)
            if get_origin(bare) is Literal:
                found[name] = frozenset(literal_values(bare))
    return found


def _hints(cls: type) -> dict[str, Any]:
    """The types of its fields by name. What their texts name may be known to `attrs.resolve_types` alone."""
    if getattr(cls, "__attrs_types_resolved__", None) is cls:
        return {each.name: each.type for each in attrs.fields(cls)}
    return get_type_hints(cls, include_extras=True)


def _declared(cls: type, path: str) -> list[tuple[str, Any, bool, Mapping[Any, Any]]]:
    if attrs.has(cls):
        if dataclasses.is_dataclass(cls):  # be it without fields: cattrs would look at those
            raise UnsupportedType(
                path,
                f"{cls.__qualname__} is half an attrs class and half a dataclass, neither of which knows the other's fields",
                "declare it and its bases with one of the two",
            )
        return [(each.name, each.type, each.init, each.metadata) for each in attrs.fields(cls)]
    for name, field in cast("dict[str, Any]", getattr(cls, "__dataclass_fields__", {})).items():
        if "INITVAR" in repr(field._field_type):
            raise UnsupportedType(
                f"{path}.{name}", "an InitVar is not kept by its instance", "make it a field"
            )
    return [
        (each.name, each.type, each.init, each.metadata)
        for each in dataclasses.fields(cast("Any", cls))
    ]


def _arguments(cls: type, stored: Mapping[str, Shape], *, by_name: bool) -> list[Argument]:
    """How `__init__` takes what is stored: by name, or where it must be given by place, which is quicker."""
    fields = attrs.fields(cls) if attrs.has(cls) else dataclasses.fields(cast("Any", cls))
    found: list[Argument] = []
    for field in fields:
        if field.name in stored:
            none = attrs.NOTHING if attrs.has(cls) else dataclasses.MISSING
            optional = field.default is not none or getattr(field, "default_factory", none) is not none
            name: str = getattr(field, "alias", None) or field.name
            found.append(Argument(field.name, name, by_name or field.kw_only is True or optional, stored[field.name]))
    return found


def lost(value: Any, copy: Any) -> str | None:
    """A field outside `__init__` in which `copy` differs from `value`, of which it was decoded.

    `==` of the whole values would ask too much: a class may have none, and an aware
    datetime in a repeated hour equals nothing of another zone.
    """
    cls = value.__class__
    if isinstance(value, set | frozenset):  # in any order, so that they cannot be paired
        members = cast("frozenset[Any]", value)
        differs = any(_is_class(each.__class__) for each in members) and members != copy
        return "of a member" if differs else None
    if isinstance(value, list | tuple):
        pairs = zip(cast("list[Any]", value), cast("list[Any]", copy), strict=True)
        return next((name for one, two in pairs if (name := lost(one, two)) is not None), None)
    if cls is dict:
        return lost(list(value.values()), list(copy.values()))
    if not _is_class(cls):
        return None
    for field in attrs.fields(cls) if attrs.has(cls) else dataclasses.fields(value):
        one, two = getattr(value, field.name, None), getattr(copy, field.name, None)
        if field.init:
            name = lost(one, two)
            if name is not None:
                return name
        elif getattr(field, "eq", getattr(field, "compare", True)) and not _same(one, two):
            return field.name
    return None


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, datetime) and isinstance(two, datetime):
        return one.isoformat() == two.isoformat()
    return bool(one == two)


@attrs.frozen
class _Frozen:
    n: int


@attrs.define
class _Checked:
    n: int = attrs.field(validator=attrs.validators.instance_of(int))


_MADE_SETTERS: Final = frozenset(
    {"<string>", *(each.__setattr__.__code__.co_filename for each in (_Frozen, _Checked))}
)
"""Where `__setattr__` comes from if not from a user: dataclasses, and attrs."""
_HOOKS: Final = (
    "__attrs_pre_init__",
    "__attrs_post_init__",
    "__post_init__",
    "__getattribute__",
    "__getattr__",
)


def _is_faithful(cls: type) -> bool:
    """Whether nothing of the user's runs between an argument of `__init__` and the attribute.

    Told from where its methods' code was made; in doubt the answer is no, which
    costs the publisher a second look at each value and nothing else.
    """
    if any(getattr(cls, hook, None) is not getattr(object, hook, None) for hook in _HOOKS):
        return False
    if type(cls).__call__ is not type.__call__:
        return False
    setter: Any = getattr(cls, "__setattr__", None)
    made_in = getattr(getattr(setter, "__code__", None), "co_filename", "")
    if setter is not getattr(object, "__setattr__", None) and made_in not in _MADE_SETTERS:
        return False
    code = getattr(vars(cls).get("__init__", cls), "__code__", None)
    made_by = "<attrs generated" if attrs.has(cls) else "<string>"
    if (
        code is None
        or not code.co_filename.startswith(made_by)
        or any("__new__" in vars(base) for base in cls.__mro__[:-1] if base is not Generic)
    ):
        return False
    if attrs.has(cls) and any(each.converter or each.validator for each in attrs.fields(cls)):
        return False
    return all(_is_kept(cls, name) for name, *_ in _declared(cls, ""))


def _is_kept(cls: type, name: str) -> bool:
    """Whether what is assigned to the attribute goes into a slot or the instance's dict, past no code."""
    found: object = inspect.getattr_static(cls, name, None)
    return isinstance(found, types.MemberDescriptorType) or not hasattr(type(found), "__set__")


def _instead(cls: type) -> str:
    if is_typeddict(cls) or (issubclass(cls, tuple) and hasattr(cast("Any", cls), "_fields")):
        return "use an attrs class or a dataclass"
    for base in cls.__mro__:
        if base.__name__ in _HINTS and base is not type(None):
            return _HINTS[base.__name__]
        if base in SIMPLE:
            return f"use {base.__name__}, or a NewType of it"
        if base in (list, tuple, set, frozenset, dict):
            return f"use {base.__name__}[...]"
    if cls.__module__.partition(".")[0] in sys.stdlib_module_names:  # nothing that its user could change
        return INSTEAD
    return "make it an attrs class (@attrs.frozen) or a dataclass"
