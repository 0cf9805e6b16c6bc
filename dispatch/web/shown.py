"""Stored data as people may see it: bounded, secrets as `***`, nothing invisible. Pure."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final, cast

from dispatch.errors import InvalidQueuePayloadError

__all__ = ["MASK", "SECRET_WORDS", "Redactor", "as_json", "bounded", "moment", "seconds", "visible"]

MASK: Final = "***"
SECRET_WORDS: Final = (
    "password", "passwd", "passphrase", "pwd", "secret", "token", "apikey", "accesskey",
    "privatekey", "authorization", "credential", "cookie", "sessionid", "cvv",
)  # fmt: skip
"""A name that contains one of these, capitals, `-` and `_` aside, is a secret's."""

TEXT_LIMIT: Final = 65_536
"""Characters of one payload, result, header list or text in them that a page shows."""

_USERINFO: Final = re.compile(r"(?<=://)[^/\s@]{1,500}(?=@)")
_BEARER: Final = re.compile(r"(?i)\b(bearer|basic)(\s+)[A-Za-z0-9._~+/=-]{6,}")
_HALF: Final = re.compile(r"(?i)(?:://[^/\s@]{0,500}|\b(?:bearer|basic)\s+[A-Za-z0-9._~+/=-]{0,5})\Z")
"""At the end of what was cut: what may be the beginning of a secret, and lacks what shows it."""
_HALF_LIMIT: Final = 520
_JUNK: Final = re.compile(r"[-_\s]")


class Redactor:
    """Puts `***` where a secret stands: under a telling name, after `name=`, in a URL's user part."""

    def __init__(self, words: Iterable[str] = SECRET_WORDS) -> None:
        self._words = tuple(_JUNK.sub("", word.lower()) for word in words)
        names = "|".join("[-_]?".join(map(re.escape, word)) for word in self._words)
        # A value goes on to the next blank or mark; in quotes to their end, or the line's.
        # What stands before the word stays as it is, so it is not looked for: from
        # every character on, that took seconds for a document of one word. `+` after
        # a bound: none of what is taken can be what must follow.
        self._assigned = (
            re.compile(
                rf"(?i)((?:{names})[\w-]{{0,40}}+[\"']?\s{{0,3}}[=:]\s{{0,3}})"
                r"(\"[^\"\n]*\"?|'[^'\n]*'?|[^\s\"',;&)}\]]+)"
            )
            if names
            else None
        )

    def is_secret(self, name: str) -> bool:
        """Whether what stands under this name is a secret."""
        plain = _JUNK.sub("", name.lower())
        return any(word in plain for word in self._words)

    def text(self, text: str, limit: int = TEXT_LIMIT) -> str:
        """A message, a traceback: what looks like a secret in it is `***`.

        Of a longer one about the first `limit` characters, cut before what may
        be half a secret, and how many more there are.
        """
        if len(text) <= limit:
            return self._masked(text)
        half = _HALF.search(text[:limit], max(limit - _HALF_LIMIT, 0))
        end = limit if half is None else half.start()
        return f"{self._masked(text[:end])}\n… {len(text) - end:,} more characters"

    def _masked(self, text: str) -> str:
        text = _USERINFO.sub(MASK, text)
        text = _BEARER.sub(rf"\1\2{MASK}", text)
        return self._assigned.sub(rf"\1{MASK}", text) if self._assigned is not None else text

    def tree(self, value: object) -> Any:
        """JSON data with `***` in place of its secrets, at any depth."""
        match value:
            case dict():
                items = cast("dict[str, object]", value).items()
                return {
                    key: MASK if self.is_secret(key) and each is not None else self.tree(each)
                    for key, each in items
                }
            case list() | tuple():
                return [self.tree(each) for each in cast("list[object]", value)]
            case str():
                return self.text(value)
            case _:
                return value


def restored(new: object, masked: object, original: object) -> Any:
    """An edited tree with the secrets put back that it shows as `***`.

    `masked` is what the editor was given for `original`; None where it was
    given nothing. A `***` stays what it hides where it is certain what that is:
    under the same name, in a text that is otherwise as it was shown, and in an
    item of a list that is as it was shown, or the only one of a list of the
    same length that was edited. Any other is InvalidQueuePayloadError (1010),
    save in a text that has it in it without hiding anything.
    """
    try:
        return _restored(new, masked, original, "$")
    except RecursionError:
        raise InvalidQueuePayloadError("nested too deeply") from None


def _restored(new: Any, masked: Any, original: Any, at: str) -> Any:
    if isinstance(new, dict):
        fields = cast("dict[str, Any]", new)
        shown, known = cast("tuple[dict[str, Any], ...]", (masked, original) if isinstance(masked, dict) else ({}, {}))
        return {
            key: _restored(each, shown.get(key), known.get(key), f"{at}.{key[:40]}")
            for key, each in fields.items()
        }
    if isinstance(new, list):
        before, kept = cast("tuple[list[Any], ...]", (masked, original) if isinstance(masked, list) else ([], []))
        return _restored_items(cast("list[Any]", new), before, kept, at)
    if not isinstance(new, str) or MASK not in new:
        return new
    if new == masked:
        return original
    if isinstance(original, str) and original == masked and MASK in original:
        return new
    raise _unclear(at)


def _restored_items(new: list[Any], masked: list[Any], originals: list[Any], at: str) -> list[Any]:
    """A list's items have no names: one that was moved is known by being as it was shown."""
    # As texts, in which 1, 1.0 and true are different.
    texts, shown = list(map(_plain_text, new)), list(map(_plain_text, masked))
    in_place = [len(new) == len(masked) and text == shown[n] for n, text in enumerate(texts)]
    edited = [n for n, text in enumerate(texts) if MASK in text and not in_place[n]]
    places: dict[str, list[int]] = {}
    for n, text in enumerate(shown):
        places.setdefault(text, []).append(n)
    found: list[Any] = []
    for n, text in enumerate(texts):
        if MASK not in text:
            found.append(new[n])
        elif in_place[n]:
            found.append(originals[n])
        elif text in places:
            if len({_plain_text(originals[place]) for place in places[text]}) > 1:
                raise _unclear(f"{at}[{n}]")
            found.append(originals[places[text][0]])
        elif edited == [n] and len(new) == len(masked):
            found.append(_restored(new[n], masked[n], originals[n], f"{at}[{n}]"))
        else:
            raise _unclear(f"{at}[{n}]")
    return found


def _plain_text(tree: object) -> str:
    return json.dumps(tree, sort_keys=True)


def _unclear(at: str) -> InvalidQueuePayloadError:
    return InvalidQueuePayloadError(
        f"{at}: {MASK} stands for a hidden value only where it was shown, and it is not certain for which one here; "
        "write the value itself"
    )


def visible(text: str) -> str:
    """The text with every control, bidirectional override and lone surrogate as `\\uXXXX`.

    In JSON text that is the same string: an editor's round trip loses nothing.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(each if each in "\n\t" or _is_plain(each) else _escaped(each) for each in text)


def _is_plain(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def _escaped(character: str) -> str:
    code = ord(character)
    if code > 0xFFFF:
        code -= 0x10000
        return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
    return f"\\u{code:04x}"


def as_json(value: object) -> str:
    """Indented JSON text."""
    return json.dumps(value, ensure_ascii=False, indent=2, default=str)


def bounded(text: str, limit: int = TEXT_LIMIT) -> str:
    """The text, cut with a note of how much is missing."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}\n… {len(text) - limit:,} more characters"


def moment(at: float | None) -> str | None:
    """UTC seconds as ISO 8601 to the millisecond, such as `2026-01-31T09:00:00.000Z`."""
    if at is None:
        return None
    try:
        found = datetime.fromtimestamp(at, UTC)
    except (OverflowError, ValueError, OSError):
        return None
    return found.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def seconds(value: float | None) -> str:
    """A duration in the unit that reads best: `340 µs`, `12 ms`, `3.4 s`, `2 min 5 s`, `3 d 4 h`."""
    if value is None:
        return "\u2013"
    value = max(value, 0.0)
    if value == 0:
        return "0"
    if value < 0.001:
        return f"{value * 1e6:.0f} µs"
    if value < 1:
        return f"{value * 1e3:.3g} ms"
    if value < 60:
        return f"{value:.3g} s"
    whole = round(value)
    for size, unit, smaller, name in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            first, rest = divmod(whole, size)
            return f"{first} {unit}" + (f" {rest // smaller} {name}" if rest // smaller else "")
    return f"{whole} s"
