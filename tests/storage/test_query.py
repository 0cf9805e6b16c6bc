"""The query tree as values: what one may be made of, before any storage sees it."""

# pyright: reportArgumentType=false
# What a type checker refuses is what is handed in here.

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from math import inf, nan
from typing import Any

import pytest

from dispatch.errors import InvalidConfigError
from dispatch.storage.query import (
    All,
    AnyOf,
    Attempt,
    Header,
    Ids,
    Keys,
    Not,
    Payload,
    Priorities,
    PruneSpec,
    Queues,
    Statuses,
    Time,
    Where,
)

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


def test_a_bound_of_time_is_an_aware_datetime_or_seconds() -> None:
    seconds = Time("created_at", since=NOON.timestamp(), until=NOON.timestamp() + 0.5)
    assert Time("created_at", since=NOON, until=NOON + timedelta(seconds=0.5)) == seconds
    assert Time("created_at", NOON.astimezone(timezone(timedelta(hours=-9)))) == Time("created_at", NOON)
    assert (Time("created_at", since=7).since, Time("created_at", until=inf).until) == (7.0, inf)
    assert type(Time("created_at", since=7).since) is float


@pytest.mark.parametrize(
    ("bound", "shown"),
    [
        ("2026-06-01", "'2026-06-01'"),
        (NOON.date(), "datetime.date(2026, 6, 1)"),
        (timedelta(days=7), "datetime.timedelta(days=7)"),
        (True, "True"),
        (nan, "nan"),
        (10**400, f"1{'0' * 59}... (401 characters)"),
        ([], "[]"),
    ],
)
def test_a_bound_that_no_storage_would_compare_alike_is_refused(bound: Any, shown: str) -> None:
    for name in ("since", "until"):
        with pytest.raises(InvalidConfigError) as caught:
            Time("finished_at", **{name: bound})
        assert caught.value.detail == f"Time: wanted a datetime with a time zone or UTC seconds, got {shown}"


def test_a_naive_datetime_is_refused_as_a_bound() -> None:
    with pytest.raises(InvalidConfigError) as caught:
        Time("finished_at", until=NOON.replace(tzinfo=None))
    assert caught.value.detail == (
        "Time: a datetime must have a time zone, got 2026-06-01T12:00:00; for a moment in UTC add tzinfo=UTC"
    )


def refusal(make: Callable[[], object]) -> str:
    with pytest.raises(InvalidConfigError) as caught:
        make()
    return caught.value.detail


def test_only_names_that_there_are_reach_a_statement() -> None:
    given: Any = "1=1 OR id"
    assert refusal(lambda: Time(given, until=0)) == (
        "Time: field must be 'created_at' or 'available_at' or 'started_at' or 'finished_at', got '1=1 OR id'"
    )
    given = "queues"
    assert refusal(lambda: PruneSpec(keep=1, per=given)) == (
        "PruneSpec: per must be 'total' or 'queue' or 'type', got 'queues'"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Queues(["a"]), "Queues: wanted strings, as in Queues('a', 'b'); got ['a']"),
        (lambda: Ids(7), "Ids: wanted strings, as in Ids('a', 'b'); got 7"),
        (lambda: Keys(None), "Keys: wanted strings, as in Keys('a', 'b'); got None"),
        (
            lambda: Statuses({}),
            "Statuses: expected some of cancelled, due, failed, held, later, pending, retrying, running, succeeded; got {}",
        ),
        (lambda: All("a"), "not a query: 'a'; build one from dispatch.storage.query"),
        (lambda: Not([]), "not a query: []; build one from dispatch.storage.query"),
        (lambda: AnyOf(Queues("a"), "b"), "not a query: 'b'; build one from dispatch.storage.query"),
        (lambda: Header("h", 1), "Header: wanted a name and a value or None, both str; got 'h' and 1"),
        (lambda: Payload("n", 1), "Payload: path must be a tuple, as in ('lines', 2, 'qty'); got 'n'"),
        (lambda: Payload(("n",), []), "Payload: value must be a str, a number, a bool or None; got []"),
        (lambda: Priorities("1"), "Priorities: least must be a whole number, got '1'"),
        (lambda: Attempt(0, 1.5), "Attempt: most must be a whole number, got 1.5"),
        (lambda: PruneSpec(age_s="7d"), "PruneSpec: age_s must be a number of seconds, got '7d'"),
        (lambda: PruneSpec(age_s=-1.0), "PruneSpec: age_s must be at least 0 seconds, got -1.0"),
        (lambda: PruneSpec(keep=1.5), "PruneSpec: keep must be a whole number, got 1.5"),
        (lambda: PruneSpec(keep=2**31), "PruneSpec: keep must be at most 2147483647, got 2147483648"),
        (lambda: PruneSpec(keep=1, limit=0), "PruneSpec: limit must be at least 1, got 0"),
        (lambda: PruneSpec(keep=1, dead_letters="no"), "PruneSpec: dead_letters must be True or False, got 'no'"),
        (
            lambda: PruneSpec(keep=1, where="email"),
            "PruneSpec: where: not a query: 'email'; build one from dispatch.storage.query",
        ),
    ],
)
def test_a_value_that_means_nothing_is_refused_when_it_is_made(make: Any, message: str) -> None:
    assert refusal(make) == message


def test_a_chain_is_one_level_however_long() -> None:
    chained: Where = Ids("0")
    for number in range(1, 300):
        chained |= Ids(str(number))
    assert chained == AnyOf(*(Ids(str(number)) for number in range(300)))
    a, b, c = Ids("a"), Ids("b"), Ids("c")
    assert (a & b & c, a & b | c, a | b & c) == (All(a, b, c), AnyOf(All(a, b), c), AnyOf(a, All(b, c)))


def test_a_tree_beyond_what_databases_take_is_refused() -> None:
    many = [Ids("a")] * 4_001
    assert refusal(lambda: AnyOf(*many)) == (
        "a query has at most 4000 conditions, got 4001; one condition takes many names: Ids('a', 'b', ...)"
    )
    assert AnyOf(*many[1:])

    def nested() -> None:
        tree: Where = Ids("a")
        for _ in range(1_500):
            tree = ~tree

    assert refusal(nested) == "a query is nested at most 20 levels deep; flatten it with All and AnyOf"
