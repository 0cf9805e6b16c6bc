"""The query tree as values: what one may be made of, before any storage sees it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from math import inf, nan
from typing import Any

import pytest

from dispatch.errors import InvalidConfigError
from dispatch.storage.query import Time

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
