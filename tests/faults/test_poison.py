"""Payloads that nobody can read (F1, F2), each also against bugs planted for it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest

from dispatch import DispatchError, QueueTask, TaskQueueConfig, TaskType, open_dispatcher
from dispatch.codec import Codec
from tests.conclusive import in_time, noticed

from .conftest import Tell
from .launch import figures_of
from .programs.plants import PLANTS

# ---- F1: written straight into the table ----------------------------------------


def the_poison_is_dead(figures: dict[str, Any]) -> None:
    assert figures["alive"] == [], "not dead"
    assert figures["bytes_kept"] == figures["poison"]
    assert 0 < figures["longest_reason_bytes"] <= 4_096
    assert figures["good_done"] == figures["tasks"] == figures["poison"]
    assert figures["lost"] == figures["settled_twice"] == figures["redelivered"] == 0
    assert figures["integrity"] == "ok"
    in_time(figures, loop_blocked_ms=50.0)


@pytest.mark.battery
def test_poison_in_the_table_is_dead_at_once_and_blocks_nobody(tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("poison", tmp_path, 60)
    tell(figures)
    the_poison_is_dead(figures)


@pytest.mark.battery
def test_the_poison_notices_a_planted_bug(tmp_path: Path, tell: Tell) -> None:
    figures = figures_of("poison", tmp_path, 60, plant="poison_is_retried")
    tell({name: value for name, value in figures.items() if name != "alive"})
    with noticed("not dead"):
        the_poison_is_dead(figures)


# ---- F2: published --------------------------------------------------------------


@attrs.frozen
class Order:
    n: int
    text: str = ""
    weight: float = 0.0
    lines: list[Any] = attrs.field(factory=list)


ORDER = TaskType("q", "order", Order)


def nested(depth: int) -> list[Any]:
    lines: list[Any] = []
    for _ in range(depth):
        lines = [lines]
    return lines


def broken(kind: type[Order] = Order, **fields: Any) -> Order:
    """An order whose class would not have let itself be made so."""
    order = kind(1)
    for name, value in fields.items():
        object.__setattr__(order, name, value)
    return order


@attrs.frozen
class Larger(Order):
    more: int = 2


def without(name: str) -> Order:
    order = Order(1)
    object.__delattr__(order, name)
    return order


REFUSED: dict[str, Callable[[], QueueTask[Any]]] = {
    "surrogate": lambda: ORDER(Order(1, "\ud800")),
    "NUL": lambda: ORDER(Order(1, "a\x00b")),
    "NUL in a list": lambda: ORDER(Order(1, lines=["\x00"])),
    "NUL in a key": lambda: ORDER(Order(1, lines=[{"\x00": 1}])),
    "NaN": lambda: ORDER(Order(1, weight=float("nan"))),
    "infinite": lambda: ORDER(Order(1, weight=float("inf"))),
    "digits": lambda: ORDER(Order(10**5_000)),
    "deep": lambda: ORDER(Order(1, lines=nested(200))),
    "brackets": lambda: ORDER(Order(1, lines=nested(100_000))),
    "large": lambda: ORDER(Order(1, "x" * 300_000)),
    "50 MB": lambda: ORDER(Order(1, "x" * 50_000_000)),
    "wrong type": lambda: ORDER(broken(n="1")),
    "a flag": lambda: ORDER(broken(n=True)),
    "a fraction": lambda: ORDER(broken(n=1.9)),
    "bytes": lambda: ORDER(broken(text=b"\xff\xfe")),
    "missing": lambda: ORDER(without("n")),
    "extra": lambda: ORDER(Larger(1)),
    "another class": lambda: ORDER({"n": 1}),  # type: ignore[arg-type]
    "nothing": lambda: ORDER(None),  # type: ignore[arg-type]
    "NUL as id": lambda: ORDER(Order(1), id="a\x00"),
    "surrogate as id": lambda: ORDER(Order(1), id="\ud800"),
    "NUL as key": lambda: ORDER(Order(1), key="a\x00"),
    "NUL in a header": lambda: ORDER(Order(1), headers={"a": "\x00"}),
    "surrogate in a header": lambda: ORDER(Order(1), headers={"a": "\ud800"}),
    "NUL in a tag": lambda: ORDER(Order(1), tags=("\x00",)),
    "large header": lambda: ORDER(Order(1), headers={"a": "x" * 2_000}),
}


async def published(path: Path, task: QueueTask[Any]) -> int:
    """How many rows are stored after publishing it in each way; the errors are raised on."""
    async with open_dispatcher(f"sqlite:///{path}", observers=()) as dispatcher:
        dispatcher.consumer.register_queue("q", TaskQueueConfig())
        await dispatcher.publisher.declare()
        errors: list[DispatchError] = []
        try:
            await dispatcher.publisher.publish(task)
        except DispatchError as exc:
            errors.append(exc)
        good, bad = await dispatcher.publisher.publish_many([ORDER(Order(1), id="good"), task])
        assert good.error is None
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                dispatcher.publisher.publish_in(db, task)
            except DispatchError as exc:
                errors.append(exc)
            db.execute("COMMIT")
            assert len(errors) == 2 and bad.error is not None, "stored"  # noqa: PT018
            assert all(len(str(error)) < 5_000 for error in (*errors, bad.error))
            return int(db.execute("SELECT count(*) FROM dispatch_tasks WHERE id <> 'good'").fetchone()[0])


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.battery] if kind == "50 MB" else []) for kind in REFUSED],
)
async def test_what_cannot_be_read_back_is_refused_at_the_caller(kind: str, tmp_path: Path) -> None:
    assert await published(tmp_path / "jobs.db", REFUSED[kind]()) == 0


async def test_the_refusing_notices_a_planted_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Codec, "encode", Codec.encode)  # so that it is put back
    PLANTS["unchecked_payloads"]()
    with pytest.raises(AssertionError, match="stored"):
        await published(tmp_path / "jobs.db", REFUSED["NaN"]())
