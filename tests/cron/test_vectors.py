"""The verified vectors, forwards, backwards and cut anywhere."""

from __future__ import annotations

from datetime import datetime

import pytest

from dispatch.cron.spec import CronSpec, DstRule
from dispatch.errors import InvalidCronSpecError

from .vectors import EVERY, INVALID, MISFIRE, VECTORS, Every, Misfire, Vector

RULES: list[DstRule] = ["vixie", "robfig"]
by_id = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.id)
by_rule = pytest.mark.parametrize("rule", RULES)


def moments(text: str) -> list[str]:
    """Written moments, in one spelling."""
    return [datetime.fromisoformat(each).isoformat() for each in text.split()]


def expected(vector: Vector, rule: DstRule) -> list[str]:
    return moments(vector.robfig if rule == "robfig" and vector.robfig else vector.expected)


def written(found: list[datetime]) -> list[str]:
    return [each.isoformat() for each in found]


@by_rule
@by_id
def test_a_text_fires_at_exactly_the_verified_moments(vector: Vector, rule: DstRule) -> None:
    spec = CronSpec(vector.text, vector.zone, rule)
    wanted = expected(vector, rule)
    found = spec.preview(len(wanted), after=datetime.fromisoformat(vector.start))
    assert written(found) == wanted
    assert all(str(each.tzinfo) == vector.zone for each in found)


@by_rule
@by_id
def test_walking_back_meets_the_same_moments(vector: Vector, rule: DstRule) -> None:
    spec = CronSpec(vector.text, vector.zone, rule)
    wanted = expected(vector, rule)
    cursor = datetime.fromisoformat(wanted[-1])
    back: list[datetime] = []
    while len(back) < len(wanted) - 1:
        found = spec.previous(cursor)
        assert found is not None
        back.append(found)
        cursor = found
    assert written(back[::-1]) == wanted[:-1]
    assert spec.previous(datetime.fromisoformat(wanted[0])) != datetime.fromisoformat(wanted[0])


@by_rule
@by_id
def test_a_restart_at_any_moment_goes_on_with_the_rest(vector: Vector, rule: DstRule) -> None:
    spec = CronSpec(vector.text, vector.zone, rule)
    wanted = expected(vector, rule)
    for index, moment in enumerate(wanted[:-1]):
        following = spec.next(datetime.fromisoformat(moment))
        assert following is not None
        assert following.isoformat() == wanted[index + 1]


@pytest.mark.parametrize(("text", "why"), INVALID, ids=[why for _, why in INVALID])
def test_a_wrong_text_is_refused_when_it_is_made(text: str, why: str) -> None:
    with pytest.raises(InvalidCronSpecError) as caught:
        CronSpec(text)
    assert caught.value.reason, why


@pytest.mark.parametrize("vector", EVERY, ids=lambda vector: vector.text)
def test_every_counts_elapsed_time_from_its_anchor(vector: Every) -> None:
    spec = CronSpec(vector.text, anchor=datetime.fromisoformat(vector.anchor))
    assert spec.every_s == vector.seconds
    found = spec.preview(3, after=datetime.fromisoformat(vector.after))
    assert written(found) == moments(vector.expected)


@pytest.mark.parametrize("vector", MISFIRE, ids=lambda vector: vector.text)
def test_downtime_leaves_the_verified_moments_behind(vector: Misfire) -> None:
    spec = CronSpec(vector.text, vector.zone)
    last_run, now = datetime.fromisoformat(vector.last_run), datetime.fromisoformat(vector.now)
    missed = written(list(spec.between(last_run, now)))
    assert len(missed) == vector.missed
    assert missed[:3] == moments(vector.first_three)
    latest = spec.latest(last_run, now)
    assert latest is not None
    assert [latest.isoformat()] == moments(vector.latest) == missed[-1:]
