"""Values of JSON to bytes and back, with one meaning, at orjson's speed where it is installed.

What a text means, and which has no meaning, the standard library's `json` decides.
orjson is asked first and believed only where it shows that it agrees: what it
has written must read back equal to what was given, what it has read it must write
as the very bytes that came. So nothing gets through of what the two do
differently: NaN (null to orjson), integers beyond 64 bits (floats), a key that is
twice in one object (the last one), enums and UUIDs (their values), deep nesting.
Whatever is not shown is done, or refused, by the standard library.

The bytes may differ in how a float is spelt (`1e-7`, `1e-07`), never in what it is.
"""

from __future__ import annotations

import json
import json.encoder
from collections import Counter
from collections.abc import Callable, Iterable
from math import isfinite
from typing import Any, Final, NamedTuple, cast

from dispatch.refusals import Refused

__all__ = ["UNREAD", "canonical", "quote", "read", "read_object", "text", "write"]

UNREAD: Final = object()
"""What `write` gives in place of a copy: reading the bytes will tell."""


class Fast(NamedTuple):
    """orjson, as it is asked here: subclasses, dataclasses and datetimes are refused."""

    loads: Callable[[bytes], Any]
    dumps: Callable[[Any, None, int], bytes]
    options: int


try:
    import orjson
except ModuleNotFoundError:  # the extra `orjson`; nothing but speed is lost
    fast: Fast | None = None
else:
    fast = Fast(
        orjson.loads,
        orjson.dumps,
        orjson.OPT_PASSTHROUGH_SUBCLASS
        | orjson.OPT_PASSTHROUGH_DATACLASS
        | orjson.OPT_PASSTHROUGH_DATETIME,
    )


def write(tree: Any) -> tuple[bytes, Any]:
    """The compact UTF-8 JSON of `tree`, and what reading it gives, or UNREAD.

    The copy shares nothing mutable with `tree`. Raises what `json` does for what
    is not JSON: TypeError, ValueError (UnicodeEncodeError for a lone surrogate
    among them), RecursionError.
    """
    if fast is not None:
        try:
            data = fast.dumps(tree, None, fast.options)
            copy = fast.loads(data)
            if copy == tree:
                # A copy, since orjson leaves 4 kB allocated for whatever is smaller, and memory keeps it.
                return bytes(memoryview(data)), copy
        except (TypeError, ValueError, RecursionError):  # what is wrong the other one says
            pass
    return "".join(_chunks(tree, 0)).encode(), _plain_copy(tree)


def text(tree: Any) -> str:
    """The JSON of what is known to mean the same to both: texts, finite floats, ints, booleans, None, and lists and dicts of these.

    Raises what `write` raises, but for a lone surrogate, which may stay in it.
    """
    if fast is not None:
        try:
            return str(memoryview(fast.dumps(tree, None, fast.options)), "utf-8")
        except (TypeError, ValueError, RecursionError):
            pass
    return "".join(_chunks(tree, 0))


def read(data: bytes) -> Any:
    """The value whose JSON is `data`.

    Raises UnicodeDecodeError, JSONDecodeError, RecursionError, ValueError for an
    integer of too many digits, and Refused for what is no JSON of ours.
    """
    if fast is not None:
        try:
            read = fast.loads(data)
            if fast.dumps(read, None, 0) == data:
                return read
        except (TypeError, ValueError, RecursionError):
            pass
    if isinstance(cast("object", data), str):  # put there by hand: SQLite keeps what it is given
        raise Refused("$", "it is stored as text, wanted are bytes; in SQL: CAST('{}' AS BLOB)")
    text = str(data, "utf-8")
    tree: Any = None
    try:
        tree, end = _decoder.raw_decode(text)
    except json.JSONDecodeError:
        end = -1
    if end != len(text):  # white space around it, or not JSON: this tells
        tree = _decoder.decode(text)
    return tree


def read_object(data: bytes, pairs: int) -> Any:
    """`read` for one object of so many pairs, with scalars and lists of scalars; UNREAD of much else.

    Without functions of ours for each object and each float: a float may be infinite here.
    By the standard library, which takes no longer for it than orjson and its proof.
    Each pair has a colon, as may a text. So where there are as many as there are different
    keys, no key is there twice.
    """
    if data.count(b":") != pairs:
        return UNREAD
    text = str(data, "utf-8")
    tree, end = _plain_decoder.raw_decode(text)
    return tree if end == len(text) and tree.__class__ is dict and len(tree) == pairs else UNREAD


def canonical(data: bytes) -> bytes:
    """The bytes that the standard library writes for what `data` says; not JSON, they stay."""
    try:
        return "".join(_chunks(read(data), 0)).encode()
    except (ValueError, RecursionError, Refused):
        return data


_SCALARS: Final = frozenset({str, int, float, bool, type(None)})


def _plain_copy(tree: Any) -> Any:
    """A copy of an object of scalars and lists of scalars; UNREAD of anything else.

    JSON gives exactly these back: the writer has refused what is not finite,
    encoding to UTF-8 has refused lone surrogates.
    """
    if tree.__class__ is not dict:
        return UNREAD
    copy: dict[str, Any] = {}
    for key, value in tree.items():
        if key.__class__ is not str:
            return UNREAD
        if value.__class__ in _SCALARS:
            copy[key] = value
        elif value.__class__ is list:
            if not _SCALARS.issuperset([each.__class__ for each in value]):
                return UNREAD
            copy[key] = value.copy()
        else:
            return UNREAD
    return copy


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise Refused(
            "$",
            f"it is not JSON as we write it: the key {twice[:60]!r} is there twice in one object",
            "it is not JSON as we write it: a key is there twice in one object",
        )
    return found


def _float(text: str) -> float:
    found = float(text)
    if not isfinite(found):
        raise Refused(
            "$",
            f"it has the number {text[:60]}, which is too large for a float",
            "it has a number that is too large for a float",
        )
    return found


def _constant(text: str) -> float:
    raise Refused("$", f"it is not JSON: {text} is no JSON number")


def _writer() -> Callable[[Any, int], Iterable[str]]:
    """`JSONEncoder.iterencode`, which builds its C encoder anew for each call, without doing so."""
    encoder = json.JSONEncoder(
        ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False
    )
    make: Callable[..., Callable[[Any, int], tuple[str, ...]]] | None = getattr(
        json.encoder, "c_make_encoder", None
    )
    quote: object = getattr(json.encoder, "encode_basestring", None)
    if make is None or quote is None:  # an interpreter without the C part
        return lambda tree, _: encoder.iterencode(tree)
    return make(None, encoder.default, quote, None, ":", ",", False, False, False)


quote: Final[Callable[[str], str]] = json.encoder.encode_basestring
"""A text as JSON, as `write` writes it without orjson."""
_chunks: Final = _writer()
_decoder: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_float, parse_constant=_constant
)
_plain_decoder: Final = json.JSONDecoder(parse_constant=_constant)
