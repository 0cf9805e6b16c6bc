"""One meaning of JSON, whether orjson is installed or not."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any, NamedTuple
from uuid import UUID

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatch import CronPolicy, CronSpec, jsontext
from dispatch.cron.policy import write_definition
from dispatch.records import NewTask


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


class Size(Enum):
    SMALL = "s"


class Text(str):
    __slots__ = ()


class Pair(NamedTuple):
    left: int
    right: int


@attrs.frozen
class Line:
    sku: str


ODD: list[Any] = [
    math.nan, math.inf, -math.inf, -0.0, 1e16, 1e-7, 5e-324, 1.7976931348623157e308, 0.1 + 0.2,
    2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**30, True,
    "", "\0", "\x7f", "\u2028", "\ud800", "\U0001f600", '"\\/\b\f\n\r\t', "\\u0000", Text("text"),
    UUID(int=7), Colour.RED, Level.LOW, Size.SMALL, Pair(1, 2), (), (1,), {1}, b"raw", bytearray(b"raw"),
    datetime(2026, 3, 29, tzinfo=UTC), date(2026, 3, 29), Decimal("1.5"), object(), Line("a"),
    {1: 2}, {None: 1}, {True: 1}, {1.5: 1}, {Text("a"): 1, "b": 2}, {Colour.RED: 1}, {UUID(int=7): 1},
]  # fmt: skip
DEEP: list[Any] = [json.loads("[" * n + "]" * n) for n in (100, 250, 253, 254, 255, 900)]

TEXTS = [
    b"", b" ", b"null", b" null", b"null ", b"nul", b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b"1e-400",
    b"-0", b"-0.0", b"0.0", b"1E5", b"1e5", b"1e+16", b"1e16", b"1e-07", b"1.10", b"01", b"1.", b".5", b"+1",
    b"9223372036854775807", b"9223372036854775808", b"18446744073709551615", b"18446744073709551616", b"9" * 5_000,
    b"0.1234567890123456789", b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\ud83d\\ude00"', b'"\\u0000"', b'"\\u00e9"',
    b'"\x01"', b'"\\/"', b'"\\x"', b'"\xff"', b"\xff", b"\xef\xbb\xbf1", "é".encode("utf-16"), '"é"'.encode(),
    b'{"a":1,"a":2}', b'{"a":1,"a":1}', b'{"a":1,"\\u0061":2}', b'{"a":{"b":1,"b":1}}', b"{1:2}", b"{'a':1}",
    b'{"a":1,}', b"[1,]", b"[1 ,2]", b"[1,2]]", b"[1,2]x", b"/* */1", b"[" * 100_000, b"[" * 300 + b"]" * 300,
    b'{"":' * 2_000 + b"1" + b"}" * 2_000, b"[1,2]\0", b"\0", b"true", b"True",
]  # fmt: skip

PIECES = [b"[", b"]", b"{", b"}", b",", b":", b'"a"', *(each for each in TEXTS if len(each) < 30)]

TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(ODD),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def outcome(function: Callable[[], object]) -> str:
    """What it gives, down to the classes and the sign of a zero; or how it refuses."""
    try:
        return repr(function())
    except Exception as exc:  # noqa: BLE001 - the refusal is the outcome
        return f"{type(exc).__name__}: {exc}"


@contextmanager
def json_by(fast: jsontext.Fast | None) -> Iterator[None]:
    jsontext.fast = fast
    try:
        yield
    finally:
        jsontext.fast = None


def both(orjson: jsontext.Fast, function: Callable[[], object]) -> tuple[str, str]:
    with json_by(orjson):
        by_orjson = outcome(function)
    return outcome(function), by_orjson


def reread(tree: object) -> object:
    data, copy = jsontext.write(tree)
    read = jsontext.read(data)
    assert copy is jsontext.UNREAD or repr(copy) == repr(read)
    return read


@pytest.mark.parametrize("tree", [*ODD, *([each] for each in ODD), *({"a": each} for each in ODD), *DEEP])
def test_an_odd_value_is_written_or_refused_alike(orjson: jsontext.Fast, tree: object) -> None:
    by_json, by_orjson = both(orjson, lambda: reread(tree))
    assert by_json == by_orjson


@pytest.mark.parametrize("data", TEXTS)
def test_an_odd_text_is_read_or_refused_alike(orjson: jsontext.Fast, data: bytes) -> None:
    by_json, by_orjson = both(orjson, lambda: jsontext.read(data))
    assert by_json == by_orjson


@given(TREES)
def test_any_value_is_written_or_refused_alike(orjson: jsontext.Fast, tree: object) -> None:
    by_json, by_orjson = both(orjson, lambda: reread(tree))
    assert by_json == by_orjson


@given(st.binary(max_size=12) | st.lists(st.sampled_from(PIECES), max_size=7).map(b"".join))
def test_any_text_is_read_or_refused_alike(orjson: jsontext.Fast, data: bytes) -> None:
    by_json, by_orjson = both(orjson, lambda: jsontext.read(data))
    assert by_json == by_orjson


def test_a_copy_shares_nothing_with_what_was_written(orjson: jsontext.Fast) -> None:
    for fast in (None, orjson):
        names = ["a"]
        with json_by(fast):
            _, copy = jsontext.write({"names": names})
        names.append("b")
        assert copy == {"names": ["a"]}


def test_orjson_is_asked_and_believed(orjson: jsontext.Fast) -> None:
    # The way an exponent is spelt is the one thing that tells who wrote.
    with json_by(orjson):
        assert jsontext.write({"a": 1e-7})[0] == b'{"a":1e-7}'
    assert jsontext.write({"a": 1e-7})[0] == b'{"a":1e-07}'


@pytest.mark.parametrize("data", [b'{"a":1e-7,"b":"\xc3\xa9"}', b'{"a":1e-07,"b":"\xc3\xa9"}'])
def test_canonical_bytes_do_not_tell_who_wrote(orjson: jsontext.Fast, data: bytes) -> None:
    found = both(orjson, lambda: jsontext.canonical(data))
    assert set(found) == {repr(b'{"a":1e-07,"b":"\xc3\xa9"}')}


@pytest.mark.parametrize("data", [b"", b"\xff", b'{"a":1,"a":1}', b"[" * 100_000, b"9" * 5_000, b'"\\ud800"'])
def test_what_is_not_json_stays_as_it_is(orjson: jsontext.Fast, data: bytes) -> None:
    assert both(orjson, lambda: jsontext.canonical(data)) == (repr(data), repr(data))


def test_an_entry_is_the_same_one_whoever_wrote_its_payload() -> None:
    def definition(payload: bytes) -> str:
        task = NewTask(id="t", queue="q", type="t", payload=payload)
        return write_definition("x", CronSpec("@daily"), CronPolicy(), "", task)

    assert definition(b'{"a":1e-7}') == definition(b'{"a":1e-07}') != definition(b'{"a":1e-6}')


def test_without_orjson_the_standard_library_does_it_all() -> None:
    code = (
        "import sys\nsys.modules['orjson'] = None\n"
        "import dispatch.jsontext as j\n"
        "assert j.fast is None\n"
        "assert j.read(j.write({'a': [1, 2.5]})[0]) == {'a': [1, 2.5]}\n"
    )
    done = subprocess.run(  # noqa: S603 - our own text
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_is_kept_of_a_text_is_no_larger_than_it(orjson: jsontext.Fast) -> None:
    """A storage in memory keeps the bytes of every payload."""
    with json_by(orjson):
        tracemalloc.start()
        try:
            kept = [jsontext.write({"n": n})[0] for n in range(1_000)]
            size, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert size / len(kept) < 150
