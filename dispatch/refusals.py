"""Why a payload was refused, in words: a path, what was got, what was wanted.

Runs only after something has gone wrong. No value of a secret field, and nothing
that a class with a secret field says itself, gets into a text made here.
"""

from __future__ import annotations

import json
import math
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

import attrs
from cattrs.errors import AttributeValidationNote, ClassValidationError, ForbiddenExtraKeysError

from dispatch.errors import InvalidQueuePayloadError, described
from dispatch.scalars import PLAIN, Inside, Misfit, Unstorable, type_name

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = [
    "TOO_DEEP",
    "Refused",
    "bad_json",
    "difference",
    "explain",
    "masked",
    "payload_error",
    "said",
    "unread",
]

MESSAGE_BYTES: Final = 4_000
"""With its code in front a message stays below 4 kB."""
SHOWN: Final = 60
PATH_CHARACTERS: Final = 1_000
FINDINGS: Final = 20
TOO_DEEP: Final = "it is nested deeper than {} levels"

Finding = tuple[str, str]
"""A path and what is wrong there."""


class Refused(Exception):  # noqa: N818 - turned into InvalidQueuePayloadError by the codec
    """The codec's own refusal, with its path and text ready."""

    def __init__(self, path: str, problem: str, withheld: str = "") -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem
        self.withheld: str = withheld or problem
        """The same without anything of the data, which may be secret."""


def payload_error(where: str, path: str, problem: str) -> InvalidQueuePayloadError:
    """The error, its text bounded and free of what UTF-8 and a database cannot hold."""
    path = path if len(path) <= PATH_CHARACTERS else f"{path[:PATH_CHARACTERS]}..."
    raw = f"{where}: {path}: {problem}".replace("\0", "\\x00").encode("utf-8", "backslashreplace")
    if len(raw) > MESSAGE_BYTES:
        raw = raw[: MESSAGE_BYTES - 3] + b"..."
    return InvalidQueuePayloadError(raw.decode("utf-8", "ignore"), path)


def unread(exc: Exception) -> str | None:
    """Why bytes are not JSON, or None if that was not it. Shows none of the bytes."""
    match exc:
        case UnicodeDecodeError():
            return f"it is not UTF-8: {exc.reason} at byte {exc.start}"
        case json.JSONDecodeError():
            if not exc.doc:
                return "it is empty, wanted JSON"
            return f"it is not JSON: {exc.msg} at character {exc.pos}"
        case _:
            return None


def explain(exc: Exception, data: Any, secret: Collection[str], advice: str) -> Finding:
    """Path of the first finding, and all of them in words."""
    findings = _findings(exc, data, "$", secret, hidden=False)
    path, first = findings[0]
    rest = [f"{where}: {problem}" for where, problem in findings[1:]]
    return path, described([first, *rest]) + advice


def _findings(
    exc: Exception, data: Any, path: str, secret: Collection[str], hidden: bool
) -> list[Finding]:
    match exc:
        case Refused():
            return [(exc.path, exc.problem)]
        case Inside(step=step):
            inner: Any = cast("Any", data)[step] if isinstance(data, dict | list) else None
            inside = _step(path, step, hidden=hidden)
            return _findings(exc.inner, inner, inside, secret, hidden or step in secret)
        case ClassValidationError():
            found: list[Finding] = []
            for each in exc.exceptions:
                if len(found) < FINDINGS:
                    found += _class_findings(each, exc.cl, data, path, secret, hidden)
            return found
        case Misfit():
            got = data
            wanted, hint = exc.wanted, exc.hint
            if isinstance(data, Unstorable):
                got, wanted, hint = data.value, data.wanted, data.hint
            text = f"got {_got(got, hidden)}, wanted {wanted}"
            return [(path, f"{text}: {hint}" if hint and not hidden else text)]
        case RecursionError():
            return [(path, "it is nested too deeply")]
        case _:
            return [(path, f"it was refused: {said(exc, hidden=hidden or bool(secret))}")]


def _class_findings(
    exc: Exception, cls: type, data: Any, path: str, secret: Collection[str], hidden: bool
) -> list[Finding]:
    if isinstance(exc, ForbiddenExtraKeysError):
        extra = sorted(exc.extra_fields)
        names = ", ".join([_brief(name) for name in extra[:5]])
        names += f" and {len(extra) - 5} more" if len(extra) > 5 else ""
        advice = "a field that was added needs a new version of the payload, one that was removed an upcaster as well"
        return [(path, f"{type_name(cls)} has no field {names}; {advice}")]
    notes = cast("list[object]", getattr(exc, "__notes__", []))
    for note in notes:
        if isinstance(note, AttributeValidationNote):
            inside = _step(path, note.name)
            fields = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
            if isinstance(exc, KeyError) and note.name not in fields:
                advice = "give the field a default, or the payload a new version and an upcaster"
                return [(inside, f"it is missing, wanted {type_name(note.type)}; {advice}")]
            return _findings(
                exc, fields.get(note.name), inside, secret, hidden or note.name in secret
            )
    # The class itself refused: __init__, a converter, a validator, a post-init.
    if len(exc.args) > 1 and isinstance(exc.args[1], attrs.Attribute):
        path = _step(path, exc.args[1].name)
    return [(path, f"{type_name(cls)} refused it: {said(exc, hidden=hidden or bool(secret))}")]


def bad_json(
    tree: Any, path: str, depth: int, secret: Collection[str], *, hidden: bool = False
) -> Finding | None:
    """The first thing in a tree that JSON, UTF-8 or a storage cannot hold, or that is too deep."""
    match tree:
        case str():
            problem = _bad_text(tree)
            return None if problem is None else (path, f"got {_got(tree, hidden)}, {problem}")
        case None | bool():
            return None
        case int():
            try:
                int.__repr__(tree)
            except ValueError:
                return path, f"got {_got(tree, hidden)}, which has too many digits to be read back"
            return None
        case float():
            if math.isfinite(tree):
                return None
            return (
                path,
                f"got {_got(tree, hidden)}, wanted a finite float: JSON has no NaN and no infinity",
            )
        case Unstorable():
            text = f"got {_got(tree.value, hidden)}, wanted {tree.wanted}"
            return path, f"{text}: {tree.hint}" if tree.hint and not hidden else text
        case list() | dict():
            if depth == 0:
                return path, "it is nested too deeply here, or contains itself"
            items = cast(
                "Any", tree.items() if isinstance(tree, dict) else enumerate(cast("Any", tree))
            )
            for key, value in items:
                if _is_fine(value) and (key.__class__ is int or _is_fine(key)):
                    continue  # nearly all of what a large payload is made of
                if isinstance(key, str) and (problem := _bad_text(key)):
                    return path, f"its key {'***' if hidden else _brief(key)} is a str {problem}"
                found = bad_json(
                    value,
                    _step(path, key, hidden=hidden),
                    depth - 1,
                    secret,
                    hidden=hidden or key in secret,
                )
                if found is not None:
                    return found
            return None
        case _:
            return path, f"got {_got(tree, hidden)}, wanted {PLAIN}"


def _is_fine(value: Any) -> bool:
    if value.__class__ is str:
        return value.isascii() and "\0" not in value
    return value is None or (value.__class__ is int and -(2**63) <= value < 2**63)


def _bad_text(text: str) -> str | None:
    if "\0" in text:
        return "with a NUL character, which no storage can hold"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "with a lone surrogate, which is not Unicode text"
    return None


def difference(
    before: Any, after: Any, secret: Collection[str], path: str = "$", *, hidden: bool = False
) -> Finding:
    """Where two trees differ: what was written and what became of it."""
    inner: list[tuple[Any, Any, Any]] = []
    if isinstance(before, dict) and isinstance(after, dict):
        mine, other = cast("dict[str, Any]", before), cast("dict[str, Any]", after)
        if mine.keys() == other.keys():
            inner = [(key, mine[key], other[key]) for key in mine]
    elif isinstance(before, list) and isinstance(after, list):
        first, second = cast("list[object]", before), cast("list[object]", after)
        if len(first) == len(second):
            inner = list(zip(range(len(first)), first, second, strict=True))
    for step, one, two in inner:
        if one != two:
            deeper = hidden or step in secret
            return difference(one, two, secret, _step(path, step, hidden=hidden), hidden=deeper)
    return path, (
        f"got {_got(cast('object', before), hidden)}, "
        f"which would come back as {_got(cast('object', after), hidden)}; "
        "a converter, validator or post-init of its class changes what is already converted"
    )


def masked(tree: Any, secret: Collection[str]) -> Any:
    """The tree with `***` in place of what is stored in secret fields."""
    match tree:
        case dict():
            items = cast("dict[str, Any]", tree).items()
            return {key: "***" if key in secret else masked(each, secret) for key, each in items}
        case list():
            return [masked(each, secret) for each in cast("list[object]", tree)]
        case _:
            return tree


def said(exc: Exception, *, hidden: bool) -> str:
    """An exception's class and message, which may be long, broken or not for every reader."""
    name = type(exc).__name__
    if hidden:
        return f"{name} (its message is withheld: the class has secret fields)"
    try:
        text = exc.args[0] if len(exc.args) > 1 and isinstance(exc.args[0], str) else str(exc)
    except Exception:  # noqa: BLE001 - a user's __str__
        return f"{name} (its message cannot be shown)"
    return f"{name}: {text[:500]}" if text else name


def _got(value: object, hidden: bool) -> str:
    """Class and value; only scalars are shown, since the repr of a class may show its secrets."""
    if value is None:
        return "None"
    name = type_name(type(value))
    article = "an" if name[:1] in "aeiouAEIO" else "a"
    if hidden:
        return f"{article} {name} ***"
    if isinstance(value, list | tuple | set | frozenset | dict):
        size = len(cast("Any", value))
        return f"{article} {name} of {size}"
    if isinstance(value, str | bytes):
        return f"{article} {name} {_brief(value)}"
    if isinstance(
        value, bool | int | float | Decimal | UUID | Enum | datetime | date | time | timedelta
    ):
        return f"{article} {name} {_brief(value)}"
    return f"{article} {name}"


def _brief(value: object) -> str:
    """A repr of bounded length, made in bounded time."""
    if isinstance(value, str | bytes) and len(value) > SHOWN:
        units = "characters" if isinstance(value, str) else "bytes"
        return f"{value[:SHOWN]!r}... ({len(value)} {units})"
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a user's __repr__, or too many digits
        return f"of {value.bit_length()} bits" if isinstance(value, int) else "(it cannot be shown)"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def _step(path: str, step: object, *, hidden: bool = False) -> str:
    if len(path) > PATH_CHARACTERS:  # payload_error cuts it; do not build it for nothing
        return path
    if isinstance(step, str):
        if hidden:  # a key of a dict in a secret field is part of what it holds
            return f"{path}[***]"
        return (
            f"{path}.{step}"
            if step.isidentifier() and len(step) <= SHOWN
            else f"{path}[{_brief(step)}]"
        )
    return f"{path}[{step}]"
