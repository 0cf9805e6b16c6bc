"""The codec's quick ways: whatever they are given, they answer as the careful ones do."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum, IntEnum, StrEnum
from math import inf, nan
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dispatch import jsontext
from dispatch.codec import Codec, Limits, Plan
from dispatch.errors import InvalidQueuePayloadError
from dispatch.tasks import TaskType

pytestmark = pytest.mark.usefixtures("each_json")

WHERE = "payload of q/t"
T = TypeVar("T")


class Careful(Codec):
    """Knows no quick way."""

    def _plan(self, cls: Any) -> Plan:
        plan = super()._plan(cls)
        plan = self._plans[cls] = attrs.evolve(plan, quick=plan.back, text=None, pairs=None)
        return plan


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1


class Text(str):
    __slots__ = ()


class Proxy(str):
    """Says that it is something else, as lazy objects do."""

    __slots__ = ()
    __class__ = str  # type: ignore[assignment]


@attrs.frozen
class Flat:
    n: int
    name: str
    total: float
    flag: bool
    words: list[str]
    marks: list[float | None]
    note: str | None
    rate: float | None
    word: Literal["a", 1]
    colour: Colour
    at: datetime
    id: UUID
    raw: bytes


@attrs.define(kw_only=True)
class Options:
    _hidden: int = attrs.field(validator=attrs.validators.instance_of(int))
    words: list[str] = attrs.Factory(list)
    level: float = 0.5


@dataclasses.dataclass
class Nested:
    first: Options
    more: list[Options]
    many: tuple[float, ...]
    by_name: dict[str, list[int]]
    maybe: Options | None = None
    anything: Any = None


FLAT = Flat(
    *(1, "ada", 2.5, True, ["a"], [1.0, None], None, 0.0, "a", Colour.RED),
    *(datetime(2026, 1, 2, tzinfo=UTC), UUID(int=5), b"x"),
)
OPTIONS = Options(hidden=1, words=["a"])
NESTED = Nested(OPTIONS, [OPTIONS], (1.0,), {"a": [1]}, OPTIONS, {"b": [1, 1e5]})
ODD = [
    *(None, True, 0, 1, -1, 2**70, 1.0, -0.0, 1e300, inf, -inf, nan, "", "a", "a:b", '":', "\0", "\ud800", "\u2028"),
    *("\\u0000", Text("a"), Proxy("a"), Colour.BLUE, Level.LOW, b"", b"x", [], ["a"], [1], [1.0, inf], [None], [Text("a")], [["a"]]),
    *((), ("a",), (1.0,), {}, {"a": 1}, {"a": [1]}, {Text("a"): [1]}, {1: [1]}, {"a": [True]}, object()),
    *(OPTIONS, [OPTIONS], FLAT, FLAT.at, FLAT.at.replace(tzinfo=None), FLAT.id, "2026-01-02T00:00:00+00:00"),
]


@attrs.frozen
class Marks:
    marks: list[float]


@attrs.frozen
class Rows:
    rows: list[list[str]]


@attrs.frozen
class Shelf:
    by_name: dict[str, list[int]]
    many: tuple[float, ...]
    flats: list[Flat]
    best: Marks | None


@attrs.frozen
class Rates:
    rates: dict[str, float]
    counts: dict[str, int]


@attrs.frozen
class Hidden:
    _n: int


@attrs.frozen
class Turn:
    last: int = attrs.field(kw_only=True)
    first: int


@attrs.frozen
class Perhaps:
    words: list[str] | None
    scores: dict[str, int] | None


@attrs.frozen
class Keyed:
    by_name: dict[str, list[str]]


@attrs.frozen
class Named:
    name: str


@attrs.frozen
class Either:
    either: int | str | float


class Bound(Enum):
    NONE = inf
    ONE = 1.0


@attrs.frozen
class Bounds:
    bound: Bound
    bounds: list[Bound]


# Whatever holds plain data, of whose classes nobody has looked at.
Listed, Many, ByName, Maybe = (
    attrs.make_class(name, {"held": attrs.field(type=tp)}, frozen=True)
    for name, tp in [
        ("Listed", list[Any]),
        ("Many", tuple[Any, ...]),
        ("ByName", dict[str, Any]),
        ("Maybe", list[Any] | None),
    ]
)
SHELF = Shelf({"a": [1]}, (1.0, 2.0), [FLAT], Marks([1.0]))
LOOSE = [Listed([1]), Many((1,)), ByName({"a": 1}), Maybe([1])]
VALUES = [FLAT, OPTIONS, NESTED, SHELF, Marks([1.0, 2.0]), Rows([["a"]]), Either(1), Bounds(Bound.ONE, [Bound.ONE]), *LOOSE]


def names_of(value: Any) -> list[str]:
    """Of its fields."""
    return [field.name for field in (attrs.fields if attrs.has(type(value)) else dataclasses.fields)(type(value))]


def told(value: Any) -> Any:
    """A value with the classes of all that is in it, which `==` does not tell apart."""
    name = type(value).__name__
    if attrs.has(type(value)) or dataclasses.is_dataclass(value):
        return name, [told(getattr(value, each)) for each in names_of(value)]
    if isinstance(value, dict):
        return name, [(told(key), told(each)) for key, each in value.items()]
    if isinstance(value, list | tuple):
        return name, [told(each) for each in value]
    return name, repr(value)


def outcome(work: Callable[[], Any]) -> Any:
    """What came of it."""
    try:
        return told(work())
    except InvalidQueuePayloadError as exc:
        return str(exc), exc.path


def changed(value: Any, changes: dict[str, Any]) -> Any:
    """A copy with these fields, which no `__init__` has seen."""
    made = object.__new__(type(value))
    for name in names_of(value):
        object.__setattr__(made, name, changes.get(name, getattr(value, name)))
    return made


def pieces(value: Any) -> st.SearchStrategy[Any]:
    """The value with up to two of its fields changed."""
    changes = st.dictionaries(st.sampled_from(names_of(value)), st.sampled_from(ODD), max_size=2)
    return changes.map(lambda found: changed(value, found))


@given(st.sampled_from(VALUES).flatmap(pieces))
@example(attrs.evolve(SHELF, by_name={Text("a"): [1]}))
@example(attrs.evolve(FLAT, name=Proxy("a")))
@example(attrs.evolve(FLAT, words=[Proxy("a")]))
@example(attrs.evolve(SHELF, by_name={Proxy("a"): [1]}))
@example(Bounds(Bound.NONE, [Bound.NONE]))
@example(Listed([Text("a")]))
@example(Many((Text("a"),)))
@example(ByName({"a": Text("a")}))
@example(Maybe([Text("a")]))
def test_what_is_stored_or_refused_is_the_same(value: Any) -> None:
    cls = type(value)
    assert outcome(lambda: Codec().encode(value, cls, WHERE)) == outcome(lambda: Careful().encode(value, cls, WHERE))


PARTICULAR = [
    *(Rates({"a": 1.0}, {"a": 1}), Hidden(1), Turn(1, last=2), Perhaps([], {}), Perhaps(None, None)),
    *(Named("\u00e9\"" * 400), Rows([["a", "b"], [], ["a"] * 20]), Keyed({'a"': ["b"], "\u00e9\\": []})),
    *(Marks([inf]), Marks([nan]), Rates({"a": inf}, {}), Rates({"a": nan}, {})),
]


@pytest.mark.parametrize("value", PARTICULAR, ids=lambda value: str(value)[:30])
def test_what_has_a_way_of_its_own_is_stored_and_read_the_same(value: Any) -> None:
    cls = type(value)
    found = outcome(lambda: Codec().encode(value, cls, WHERE))
    assert found == outcome(lambda: Careful().encode(value, cls, WHERE))
    if found[0] == "tuple":
        data, copy = Codec().encode(value, cls, WHERE)
        assert Codec().decode(data, cls) == copy == value


def test_a_dict_is_not_shared_with_the_publisher() -> None:
    value = Rates({"a": 1.0}, {"a": 1})
    _, copy = Codec().encode(value, Rates, WHERE)
    value.rates["b"] = 2.0
    value.counts["b"] = 2
    assert copy == Rates({"a": 1.0}, {"a": 1})


ROOTS: list[Any] = [str, int, float, bool, type(None), list[str], dict[str, int], tuple[float, ...], str | None, Any]


@pytest.mark.parametrize("root", ROOTS, ids=str)
def test_what_is_no_class_at_the_top_is_stored_or_refused_the_same(root: Any) -> None:
    for value in ODD:
        found = outcome(lambda: Codec().encode(value, root, WHERE))  # noqa: B023 - called at once
        assert found == outcome(lambda: Careful().encode(value, root, WHERE))  # noqa: B023 - as well


@attrs.define(init=False)
class Turned:
    """Takes its fields in an order of its own."""

    low: int
    high: int

    def __init__(self, high: int, low: int) -> None:
        self.__attrs_init__(low, high)  # type: ignore[attr-defined]


@attrs.define(slots=False)
class Page(Generic[T]):
    items: list[T]


@pytest.mark.parametrize(("value", "cls"), [(Turned(2, 1), Turned), (Page([1]), Page[int])])
def test_an_instance_is_made_in_the_same_way(value: Any, cls: Any) -> None:
    data, copy = Codec().encode(value, cls, WHERE)
    codec = Codec()
    for read in (copy, codec.decode(data, cls), codec.decode(data, cls)):
        assert read == value
        assert getattr(read, "__dict__", None) == getattr(value, "__dict__", None)


def test_a_type_that_cannot_be_looked_up_is_refused_as_ever() -> None:
    unhashable: Any = Annotated[int, []]
    codec = Codec()
    for _ in range(2):
        with pytest.raises(InvalidQueuePayloadError):
            codec.decode(b"1", unhashable)


LITERALS = [
    *("1", "-1", "0", "-0", "1.5", "1.0", "1e3", "1e999", "-1e999", "NaN", "Infinity", "true", "null", '""', '"a"'),
    *('"a:b"', '"\\u0000"', '"\\ud800"', '"\\u0041"', '"\\\\u0000"', '"red"', '["a"]', '["a",1]', "[1.0]", "[1e999]"),
    *("[null]", "[[]]", "[]", "{}", '{"a":1}', '{"a":1,"a":2}', "9" * 5_000, "99999999999999999999", "01", "[1,]", "\t"),
    *('{"_hidden":1,"words":[],"level":1.0}', '[{"_hidden":1,"words":[],"level":1e999}]', '{"a":[1]}', '"eA=="'),
]
COLONS = [":", ":", ":", " :", ": ", "\n:"]


@st.composite
def texts(draw: st.DrawFn) -> tuple[type, bytes]:
    """The JSON of a value, with some of it changed by hand."""
    value = draw(st.sampled_from(VALUES))
    tree = jsontext.read(Codec().encode(value, type(value), WHERE)[0])
    pairs = [(name, jsontext.write(each)[0].decode()) for name, each in tree.items()]
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(pairs) - 1))
        literal = draw(st.sampled_from(LITERALS))
        change = draw(st.sampled_from(["replace", "replace", "double", "drop", "add", "name"]))
        if change == "replace":
            pairs[at] = (pairs[at][0], literal)
        elif change == "double":
            pairs.insert(draw(st.integers(0, len(pairs))), (pairs[at][0], literal))
        elif change == "add":
            pairs.append(("other", literal))
        elif change == "name":
            pairs[at] = ("other", literal)
        elif len(pairs) > 1:
            del pairs[at]
    text = ",".join(f'"{name}"{draw(st.sampled_from(COLONS))}{literal}' for name, literal in pairs)
    around = draw(st.sampled_from([("{", "}"), ("{", "}"), (" {", "} "), ("{", "}x"), ("[{", "}]"), ("{", "")]))
    return type(value), f"{around[0]}{text}{around[1]}".encode()


@given(texts(), st.booleans())
@example((Options, b'{"_hidden" :2,"_hidden":1,"words":[],"level":1.0}'), False)
@example((Options, b'{"_hidden":1,"words":[],"level":1e999}'), False)
@example((Options, b'{"_hidden":1,"words":["\\u0000"],"level":1.0}'), False)
@example((Options, b'{"_hidden":1,"words":["a:b"],"level":1.0}'), False)
@example((Options, b'{"_hidden":1}'), False)
@example((Marks, b'{"marks":[1.0,1e999]}'), False)
@example((Shelf, b'{"by_name":{},"many":[],"flats":[],"best":{"marks":[],"other":1}}'), False)
@example((Shelf, b'{"by_name":{},"many":[],"flats":[],"best":{"marks":{"1":1}}}'), False)
@example((Rows, b'{"rows":[{"a":1}]}'), False)
@example((Bounds, b'{"bound":1e999,"bounds":[]}'), False)
@example((Bounds, b'{"bound":1.0,"bounds":[1e999]}'), False)
@example((Marks, b'{"marks":[1.0]}x'), False)
@example((Marks, b' {"marks":[1.0]}'), False)
@example((Options, b'{"_hidden":1,"words":[],"level":1.0,"other":1}'), True)
def test_what_is_read_or_refused_is_the_same(given_text: tuple[type, bytes], lenient: bool) -> None:
    cls, data = given_text
    codec, careful = Codec(), Careful()
    codec.check(cls, WHERE)  # it has met the class before
    found = outcome(lambda: codec.decode(data, cls, lenient=lenient))
    assert found == outcome(lambda: careful.decode(data, cls, lenient=lenient))


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    "limits",
    [Limits(depth=1), Limits(depth=2), Limits(containers=1), Limits(containers=3), Limits(payload_bytes=40)],
    ids=["depth 1", "depth 2", "containers 1", "containers 3", "40 bytes"],
)
def test_limits_are_the_same(limits: Limits, value: Any) -> None:
    data, _ = Codec().encode(value, type(value), WHERE)
    codec, careful = Codec(limits), Careful(limits)
    assert outcome(lambda: codec.encode(value, type(value), WHERE)) == outcome(
        lambda: careful.encode(value, type(value), WHERE)
    )
    assert outcome(lambda: codec.decode(data, type(value))) == outcome(lambda: careful.decode(data, type(value)))


def test_many_lists_of_a_flat_class_are_counted() -> None:
    cls = attrs.make_class("Wide", {f"f{n}": attrs.field(type=list[int]) for n in range(40)}, frozen=True)
    value = cls(*([] for _ in range(40)))
    for limits in (Limits(), Limits(containers=40), Limits(containers=41)):
        assert outcome(lambda: Codec(limits).encode(value, cls, WHERE)) == outcome(  # noqa: B023 - called at once
            lambda: Careful(limits).encode(value, cls, WHERE)  # noqa: B023 - as well
        )


def test_nothing_mutable_is_shared_with_what_was_given() -> None:
    def parts(value: Any) -> list[Any]:
        if isinstance(value, list | tuple):
            inner = [each for part in value for each in parts(part)]
        elif isinstance(value, dict):
            inner = [each for part in value.values() for each in parts(part)]
        elif attrs.has(type(value)) or dataclasses.is_dataclass(value):
            return [value, *(each for name in names_of(value) for each in parts(getattr(value, name)))]
        else:
            return []
        return [value, *inner]

    for value in VALUES:
        _, copy = Codec().encode(value, type(value), WHERE)
        given_parts = {id(part) for part in parts(value) if not isinstance(part, tuple)}
        assert given_parts
        assert given_parts.isdisjoint(id(part) for part in parts(copy) if not isinstance(part, tuple))


def test_an_older_version_is_not_read_as_the_newest() -> None:
    codec = Codec()
    codec.check(Marks, WHERE)
    twice = TaskType("q", "t", Marks, version=2, upcasters={1: lambda old: {"marks": old["marks"] * 2}})
    data = b'{"marks":[1.0]}'
    assert codec.decode(data, Marks, version=1, task_type=twice) == Marks([1.0, 1.0])
    assert codec.decode(data, Marks, version=2, task_type=twice) == Marks([1.0])
    with pytest.raises(InvalidQueuePayloadError, match="version 3"):
        codec.decode(data, Marks, version=3, task_type=twice)


@pytest.mark.parametrize("cls", [Marks, Shelf], ids=lambda cls: cls.__name__)
def test_what_an_upcaster_makes_up_is_looked_at(cls: type) -> None:
    def up(old: dict[str, Any]) -> dict[str, Any]:
        return old | ({"marks": [nan]} if cls is Marks else {"many": [inf]})

    value = next(value for value in VALUES if type(value) is cls)
    data, _ = Codec().encode(value, cls, WHERE)
    second = TaskType("q", "t", cls, version=2, upcasters={1: up})
    with pytest.raises(InvalidQueuePayloadError, match="wanted a finite float"):
        Codec().decode(data, cls, version=1, task_type=second)


@pytest.mark.parametrize("kind", [Codec, Careful])
def test_a_list_is_not_shared_with_an_upcaster(kind: type[Codec]) -> None:
    kept = {"words": ["a"], "scores": None}
    second = TaskType("q", "t", Perhaps, version=2, upcasters={1: lambda _: kept})
    codec = kind()
    for _ in range(2):
        read = codec.decode(b"{}", Perhaps, version=1, task_type=second)
        assert read.words == ["a"]
        read.words.append("b")


@pytest.mark.parametrize("kind", [Codec, Careful])
@pytest.mark.parametrize(
    ("made", "cls"),
    [(OrderedDict(name="a"), Named), ({"by_name": {1: ["a"]}}, Keyed), ({"by_name": OrderedDict(a=["a"])}, Keyed)],
    ids=["an_object", "a_key", "a_dict"],
)
def test_what_is_no_json_of_an_upcaster_is_refused(kind: type[Codec], made: Any, cls: type) -> None:
    second = TaskType("q", "t", cls, version=2, upcasters={1: lambda _: made})
    with pytest.raises(InvalidQueuePayloadError):
        kind().decode(b"{}", cls, version=1, task_type=second)


def test_what_is_ordinary_is_written_and_read_quickly() -> None:
    codec = Codec()
    for value in VALUES:
        codec.check(type(value), WHERE)
    plans = [codec._plans[type(value)] for value in VALUES]
    assert [plan.pairs for plan in plans] == [13, 3, None, None, 1, None, None, None, *[None] * len(LOOSE)]
    # A validator may do anything; and what an Any or a union is given may be of any class.
    written = [plan.text is not None for plan in plans]
    assert written == [True, False, False, True, True, True, False, True, *[False] * len(LOOSE)]
    for value, plan in zip(VALUES, plans, strict=True):
        tree = jsontext.read(codec.encode(value, type(value), WHERE)[0])
        assert told(plan.quick(tree, type(value))) == told(value)
        if plan.text is not None:
            assert told(plan.text(value)[1]) == told(value)
