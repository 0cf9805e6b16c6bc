"""Payload and result values to bytes and back, proven on the way.

What is stored is compact UTF-8 JSON. `encode` hands out no bytes that it has not
itself read back: it decodes them, turns the copy into JSON data once more and
compares that with what it wrote. Comparing JSON data and not the two values makes
the proof independent of the user's `__eq__`, which may leave fields out. Where the
classes leave nothing to prove, each field is read once, and written and copied (`quick`).

Reading trusts nothing: first the size, then JSON, then the declared class, whose
name never comes from the data. Whatever goes wrong there is one error,
InvalidQueuePayloadError, with a path and a bounded message. Fields whose attrs
metadata says `{"secret": True}` show as `***` in every message, and what a class
with such a field itself says, in a validator for instance, is withheld.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import attrs
from cattrs import Converter
from cattrs.fns import identity

from dispatch import jsontext
from dispatch.admission import Admission, Limits
from dispatch.checks import check_kind
from dispatch.errors import InvalidTaskTypeError, UsageError
from dispatch.jsontext import UNREAD
from dispatch.quick import reader, writer
from dispatch.records import UniqueKey
from dispatch.refusals import (
    TOO_DEEP,
    Refused,
    bad_json,
    difference,
    explain,
    masked,
    payload_error,
    said,
    unread,
)
from dispatch.scalars import Back, Out, Text, UnsupportedType, type_name
from dispatch.shapes import ClassFacts, ShapeBuilder, lost

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatch.tasks import QueueTask, TaskType

__all__ = ["Codec", "Limits", "Undecodable"]

T = TypeVar("T")

PLAIN_TEXT: Final = 1_000
"""How much of what cannot be decoded is shown, in bytes."""
ADVICE: Final = "; give it a value of its declared type, or change the declaration"


@attrs.frozen
class Undecodable:
    """Stored bytes that are not JSON, for display: the beginning of their text, and why."""

    text: str
    reason: str


@attrs.frozen(eq=False)
class Plan:
    """What the codec does with one declared class, computed once.

    `secret` and `derived` are the names of secret fields and of those that
    `__init__` does not take, in the class and in every class it reaches;
    `faithful` is said of a class when each of them keeps what it is given. `quick`
    and `back` read the same: `back` says what is wrong, `quick` only that something is.
    `text` writes what is ordinary, and no value too deep; with `pairs`, see
    `Shape.pairs`, none has too many lists either.
    """

    out: Out
    quick: Back
    back: Back
    text: Text | None
    pairs: int | None
    secret: frozenset[str]
    derived: tuple[str, ...]
    faithful: bool

    def read(self, tree: Any, cls: Any) -> Any:
        """The value of `tree`: quickly, or if that fails again, to learn where it does."""
        try:
            return self.quick(tree, cls)
        except Exception:  # noqa: BLE001 - whatever it is, the other one says it better
            return self.back(tree, cls)


class Codec:
    """Turns values of declared classes into bytes and back, within `limits`.

    Holds no state but what it has learned of the classes and addresses it met.
    """

    __slots__ = (
        "_converter",
        "_known",
        "_lenient",
        "_plans",
        "check_task",
        "limits",
    )

    check_task: Callable[[QueueTask[Any, Any]], None]
    """Raise unless the task, its payload aside, may be published; see `Admission.check`."""

    def __init__(self, limits: Limits | None = None) -> None:
        check_kind("Codec: limits", limits, Limits)
        self.limits: Limits = limits if limits is not None else Limits()
        self.check_task = Admission(self.limits).check
        self._converter = Converter(forbid_extra_keys=True, detailed_validation=True)
        self._plans: dict[Any, Plan] = {}
        self._known: dict[Any, ClassFacts] = {}
        self._lenient: tuple[Converter, dict[Any, Plan], dict[Any, ClassFacts]] | None = None
        """The same three for those who take what has fields more, once one was asked for."""

    def __repr__(self) -> str:
        usual = Limits()
        own = [
            f"{field.name}={getattr(self.limits, field.name)} "
            for field in attrs.fields(Limits)
            if getattr(self.limits, field.name) != getattr(usual, field.name)
        ]
        return f"<Codec {''.join(own)}classes={len(self._plans)}>"

    def check(self, cls: type, where: str, error: type[UsageError] = InvalidTaskTypeError) -> None:
        """Raise `error` unless values of `cls` can be stored; the message names the field."""
        try:
            self._plan(cls)
        except UnsupportedType as exc:
            raise error(f"{where}: {exc}") from None

    def encode(
        self, value: object, cls: type[T], where: str, *, limit: int | None = None
    ) -> tuple[bytes, T]:
        """The bytes to store, and the value as decoding them gives it.

        The copy shares nothing mutable with `value`. `limit` is in bytes, by
        default that of payloads. A datetime keeps its offset from UTC, not the
        name of its zone; a field with `init=False` is computed again.

        Raises InvalidQueuePayloadError, and InvalidTaskTypeError for a class
        that `check` would refuse. `where` opens their messages.
        """
        try:
            plan = self._plans.get(cls) or self._plan(cls)
        except UnsupportedType as exc:
            raise InvalidTaskTypeError(f"{where}: {exc}") from None
        most = self.limits.payload_bytes if limit is None else limit
        if plan.text is not None:
            try:
                text, copy = plan.text(value)
                data = text.encode()
                if len(data) <= most and b"\\u" not in data and (plan.pairs or _count(data) <= self.limits.containers):
                    return data, copy
            except Exception:  # noqa: BLE001, S110 - whatever it is, the careful way says it better
                pass
        return self._encode_carefully(value, cls, plan, where, most)

    def _encode_carefully(
        self, value: object, cls: type[T], plan: Plan, where: str, most: int
    ) -> tuple[bytes, T]:
        tree: Any = _NOTHING
        read: Any = UNREAD
        try:
            tree = plan.out(value)
            data, read = jsontext.write(tree)
            if len(data) > most:
                raise _too_large(len(data), most)
            if read is UNREAD:
                read = jsontext.read(data)
            self._check_tree(read, data, plan.secret)
            copy: T = plan.read(read, cls)
            if plan.faithful:
                # Every shape's `back` undoes its `out`, and here each class's own
                # generated __init__ only assigns: nothing is left to go wrong.
                return data, copy
            again = plan.out(copy)
            if again == tree:
                name = lost(value, copy) if plan.derived else None
                if name is None:
                    return data, copy
                raise Refused(
                    "$",
                    f"what was set in a field that __init__ does not take ({name}) would be lost",
                )
            raise Refused(*difference(tree, again, plan.secret))
        except Exception as exc:  # noqa: BLE001 - all of it becomes one error
            path, problem = self._why_not_stored(plan, tree, read, exc)
        # Raised out here so that no chained exception keeps or shows the payload.
        raise payload_error(where, path, problem)

    def decode(
        self,
        data: bytes,
        cls: type[T],
        *,
        version: int = 1,
        task_type: TaskType[Any, Any] | None = None,
        limit: int | None = None,
        lenient: bool = False,
    ) -> T:
        """The value that `data` stands for; `lenient`, without the fields in it that classes do not know.

        Data stored under an older `version` than that of `task_type` passes its
        upcasters first; without any it is read as it is. `limit` is in bytes,
        by default that of payloads.

        Raises InvalidQueuePayloadError and nothing else. Data beyond `limit` is
        refused unread.
        """
        most = self.limits.payload_bytes if limit is None else limit
        if task_type is None or version == task_type.version:
            try:
                known = self._plans[cls]
                if known.pairs and len(data) <= most and b"\\u" not in data:
                    found = jsontext.read_object(data, known.pairs)
                    if found is not UNREAD:
                        quick: T = known.quick(found, cls)
                        return quick
            except Exception:  # noqa: BLE001, S110 - whatever it is, the careful way says it better
                pass
        return self._decode_carefully(data, cls, version, task_type, most, lenient=lenient)

    def _decode_carefully(
        self,
        data: bytes,
        cls: type[T],
        version: int,
        task_type: TaskType[Any, Any] | None,
        most: int,
        *,
        lenient: bool,
    ) -> T:
        plan = _NO_PLAN
        read: Any = UNREAD
        try:
            if len(data) > most:
                raise _too_large(len(data), most)
            plan = self._lenient_plan(cls) if lenient else self._plans.get(cls) or self._plan(cls)
            found = jsontext.read(data)
            if self._is_suspicious(data):
                self._check_tree(found, data, plan.secret)
            read = found
            if task_type is not None and version != task_type.version:
                read = _upcast(read, version, task_type, hidden=bool(plan.secret))
            value: T = plan.read(read, cls)
            return value
        except Exception as exc:  # noqa: BLE001 - all of it becomes one error
            path, problem = self._why_not_read(plan, read, exc, "")
        of = (
            type_name(cls) if task_type is None else f"task type {task_type.queue}/{task_type.type}"
        )
        raise payload_error(f"stored data of {of}", path, problem)

    def decode_plain(self, data: bytes, cls: type | None = None) -> object:
        """The JSON data in `data`, for display; Undecodable where it is none. Never raises.

        With its declared class given, what is stored in secret fields is `***`.
        """
        secret: frozenset[str] = frozenset()
        plan = _NO_PLAN
        try:
            if cls is not None:
                plan = self._plans.get(cls) or self._plan(cls)
                secret = plan.secret
            limit = max(self.limits.payload_bytes, self.limits.result_bytes)
            if len(data) > limit:
                raise _too_large(len(data), limit)
            tree = jsontext.read(data)
            self._check_tree(tree, data, secret)
            return masked(tree, secret) if secret else tree
        except Exception as exc:  # noqa: BLE001 - a display never fails
            _, reason = self._why_not_read(plan, UNREAD, exc, "")
        if secret:
            return Undecodable("***", reason)
        return Undecodable(bytes(data[:PLAIN_TEXT]).decode("utf-8", "backslashreplace"), reason)

    def unique_key(self, task: QueueTask, payload: bytes) -> UniqueKey | None:
        """The identity that `task.unique` gives the task, hashed; None without one.

        The parts are hashed as one JSON list: joined by any separator,
        ("a-b", "c") and ("a", "b-c") would be one identity.
        """
        unique = task.unique
        if unique is None:
            return None
        parts: list[object] = [unique.scope]
        if unique.scope != "storage":
            parts.append(task.queue)
        if unique.scope == "type":
            parts.append(task.type)
        parts.append(unique.key)
        if unique.by_payload:
            parts.append(json.loads(payload))
        # Sorted keys: two equal dicts may have been filled in a different order.
        text = json.dumps(parts, separators=(",", ":"), sort_keys=True)
        return UniqueKey(
            key=blake2b(text.encode(), digest_size=20).hexdigest(),
            statuses=unique.statuses,
            within=None if unique.within is None else float(unique.within),
            on_clash=unique.on_clash,
            replace=unique.replace,
            replace_in=unique.replace_in,
            by_payload=unique.by_payload,
        )

    def _plan(self, cls: Any) -> Plan:
        """Raises UnsupportedType."""
        found = self._plans.get(cls)
        if found is None:
            found = self._plans[cls] = _made(ShapeBuilder(self._converter, self._known), cls, self.limits)
        return found

    def _lenient_plan(self, cls: Any) -> Plan:
        if self._lenient is None:
            self._lenient = Converter(forbid_extra_keys=False, detailed_validation=True), {}, {}
        converter, plans, known = self._lenient
        found = plans.get(cls)
        if found is None:
            found = plans[cls] = _made(ShapeBuilder(converter, known), cls, self.limits)
        return found

    def _is_suspicious(self, data: bytes) -> bool:
        """Whether these may be the bytes of what `_check_tree` refuses."""
        return _count(data) > self.limits.depth or b"\\u" in data

    def _check_tree(self, tree: Any, data: bytes, secret: frozenset[str]) -> None:
        """Raise Refused if `tree`, which `data` stands for, is too deep or has bad text."""
        if _count(data) > self.limits.depth:
            _check_shape(tree, self.limits)
        if b"\\u" in data and _has_bad_text(tree):  # there is no other way to one
            found = bad_json(tree, "$", self.limits.depth, secret)
            if found is not None:
                raise Refused(*found)

    def _why_not_stored(self, plan: Plan, tree: Any, read: Any, exc: Exception) -> tuple[str, str]:
        """Path and problem of a failed publish."""
        if read is not UNREAD or isinstance(exc, Refused | json.JSONDecodeError):
            return self._why_not_read(plan, read, exc, ADVICE)
        hidden = bool(plan.secret)
        if tree is _NOTHING:
            if isinstance(exc, RecursionError):
                return "$", f"{TOO_DEEP.format(self.limits.depth)}, or contains itself"
            return "$", f"it cannot be read: {said(exc, hidden=hidden)}"
        # The tree is not JSON. Where the class can say what it wanted, that is
        # the better message; what remains is what no JSON can hold.
        try:
            plan.back(tree, None)
        except RecursionError:
            pass
        except Exception as found:  # noqa: BLE001 - all of it becomes one error
            return explain(found, tree, plan.secret, ADVICE)
        bad = bad_json(tree, "$", self.limits.depth, plan.secret)
        return bad or ("$", f"it cannot be written as JSON: {said(exc, hidden=hidden)}")

    def _why_not_read(self, plan: Plan, read: Any, exc: Exception, advice: str) -> tuple[str, str]:
        if isinstance(exc, Refused):
            return exc.path, exc.withheld if plan.secret else exc.problem
        if read is not UNREAD:
            return explain(exc, read, plan.secret, advice)
        if isinstance(exc, RecursionError):
            return "$", TOO_DEEP.format(self.limits.depth)
        if isinstance(exc, UnsupportedType):
            return "$", f"its class cannot be stored: {exc}"
        if (problem := unread(exc)) is not None:
            return "$", problem
        if isinstance(exc, ValueError):  # from the parser: the interpreter's bound on digits
            return "$", "it is not JSON: an integer has too many digits"
        return "$", f"it cannot be read: {said(exc, hidden=bool(plan.secret))}"


def _made(builder: ShapeBuilder, cls: Any, limits: Limits) -> Plan:
    """Raises UnsupportedType."""
    shape, facts = builder.build(cls)
    secret = frozenset[str]().union(*(each.secret for each in facts))
    derived = tuple(name for each in facts for name in each.derived)
    faithful = all(each.faithful for each in facts)
    quick = reader(shape)
    text = writer(shape) if shape.depth <= limits.depth else None
    pairs = shape.pairs if shape.pairs and limits.depth > 1 and limits.containers > shape.pairs else None
    return Plan(shape.out, quick, shape.back, text, pairs, secret, derived, faithful)


def _as_it_is(value: Any, _: Any) -> Any:
    return value


_NOTHING: Final = object()
_NO_PLAN: Final = Plan(identity, _as_it_is, _as_it_is, None, None, frozenset(), (), True)


def _count(data: bytes) -> int:
    """How many lists and objects there are at most: texts have brackets, too."""
    return data.count(b"[") + data.count(b"{")


def _too_large(size: int, limit: int) -> Refused:
    return Refused(
        "$",
        f"it is {size} bytes as JSON, at most {limit} are stored; store where the data is instead",
    )


def _has_bad_text(tree: Any) -> bool:
    """Whether there may be a NUL or a lone surrogate, told at the encoder's speed."""
    try:
        data, _ = jsontext.write(tree)
    except UnicodeEncodeError:
        return True
    return b"\\u0000" in data


def _check_shape(tree: Any, limits: Limits) -> None:
    level: list[Any] = [tree]
    count = 1
    for _ in range(limits.depth):
        inner: list[Any] = []
        for each in level:
            if each.__class__ is list:
                inner += each
            elif each.__class__ is dict:
                inner += each.values()
        level = [each for each in inner if each.__class__ is list or each.__class__ is dict]
        if not level:
            return
        count += len(level)
        if count > limits.containers:
            raise Refused(
                "$",
                f"it has more than {limits.containers} lists and objects; "
                "split it, or store where the data is instead",
            )
    raise Refused("$", TOO_DEEP.format(limits.depth))


def _upcast(tree: Any, version: int, task_type: TaskType[Any, Any], *, hidden: bool) -> Any:
    if version > task_type.version:
        raise Refused(
            "$",
            f"it was stored as version {version}, known are those up to {task_type.version}",
        )
    found = tree
    for old in range(version, task_type.version) if task_type.upcasters else ():
        step = f"the upcaster from version {old} to {old + 1}"
        if not isinstance(found, dict):
            raise Refused("$", f"{step} needs an object, got {type_name(type(found))}")
        upcaster: Callable[[Any], Any] = task_type.upcasters[old]
        try:
            found = upcaster(cast("Any", found))
        except Exception as exc:  # noqa: BLE001 - a user's function, on data of anybody
            raise Refused("$", f"{step} raised {said(exc, hidden=hidden)}") from None
        if not isinstance(found, dict):
            raise Refused("$", f"{step} must return a dict, got {type_name(type(found))}")
    return cast("Any", found)
