"""Which ticks are run, against a list of all there are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Literal
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dispatch import CronPolicy, CronSpec, InvalidConfigError
from dispatch.cron.policy import (
    Slots,
    decide,
    one_at_a_time,
    read_definition,
    tick_id,
    write_definition,
)
from dispatch.records import NewTask, UniqueKey, from_seconds, to_seconds
from dispatch.tasks import OnClash, TaskStatus

from .oracle import random_entry, random_window

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC).timestamp()
MINUTELY = CronSpec("* * * * *")
YEARS_5 = 5 * 366 * 86_400.0

seeds = st.integers(0, 2**32)
misfires = st.sampled_from(["latest", "skip", "all"])


def ticks(spec: CronSpec, after: float, until: float) -> list[float]:
    if until <= after:
        return []
    return [to_seconds(moment) for moment in spec.between(from_seconds(after), from_seconds(until))]


@settings(max_examples=150, deadline=None)
@given(seeds, misfires, st.sampled_from([0.0, 1.0, 59.0, 3_600.0, 86_400.0]), st.booleans())
def test_what_is_run_is_what_the_list_of_ticks_says(
    seed: int, misfire: Literal["latest", "skip", "all"], passed_s: float, late: bool
) -> None:
    rng = Random(seed)
    zone, start, _ = random_window(rng)
    spec = CronSpec(random_entry(rng).text, zone)
    last = start.timestamp()
    now = last + passed_s
    policy = CronPolicy(misfire=misfire, misfire_grace=600.0, misfire_window=7_200.0)
    decision = decide(spec, policy, last, now, late=late)
    due = ticks(spec, last, now)

    run = due[-1:]
    if misfire == "all" and not late:
        run = [slot for slot in due if slot > now - 7_200.0][-100:]
    elif misfire == "skip" and not late and due and now - due[-1] > 600.0:
        run = []
    assert list(decision.run) == run
    assert decision.last_slot == (due[-1] if due else last)
    assert bool(decision.missed) == bool(due and run[:1] != due[:1])
    following = spec.next(from_seconds(decision.last_slot))
    assert decision.next_slot == (following and to_seconds(following))
    assert not decision.clock_was_wrong


def test_a_tick_in_time_costs_two_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def counted(name: str) -> None:
        real = getattr(CronSpec, name)

        def method(self: CronSpec, *args: Any) -> Any:
            asked.append(name)
            return real(self, *args)

        monkeypatch.setattr(CronSpec, name, method)

    for name in ("_next", "_previous"):
        counted(name)
    for misfire in ("latest", "skip", "all"):
        asked.clear()
        decision = decide(MINUTELY, CronPolicy(misfire=misfire), NOON, NOON + 60.5)
        assert decision.run == (NOON + 60,)
        assert asked[:2] == ["_next", "_next"]
        assert len(asked) <= (3 if misfire == "all" else 2)


@given(st.lists(st.sampled_from([3.0, 30.0, 60.0, 3_600.0, -2.0, -7_000.0, -YEARS_5, YEARS_5, 86_400.0])))
@example([60.0, 60.0, -2.0, -YEARS_5, YEARS_5])  # back where it was, a little before the last tick
def test_no_tick_is_run_twice_unless_the_clock_is_far_behind_one_decided(jumps: list[float]) -> None:
    slots = Slots(NOON)
    run: list[float] = []
    now = NOON
    for jump in jumps:
        now = max(now + jump, 0.0)
        before = slots.newest
        decision = slots.decide(MINUTELY, CronPolicy(), now)
        slots.move_to(decision.last_slot)
        assert slots.newest >= before
        assert all(slot <= now for slot in decision.run)
        if before <= now + 10_800.0:  # else the clock was wrong, now or then: start from what it shows
            assert not set(decision.run) & set(run)
        run += decision.run


def test_a_moment_in_1970_does_not_repeat_the_ticks_before_it() -> None:
    slots = Slots(NOON)
    run: list[tuple[float, ...]] = []
    for now in (NOON + 61, 10.0, 20.0, NOON + 70, NOON + 121):
        decision = slots.decide(MINUTELY, CronPolicy(), now)
        slots.move_to(decision.last_slot)
        run.append(decision.run)
    assert run == [(NOON + 60,), (), (), (), (NOON + 120,)]


def test_a_tick_far_in_the_future_means_that_the_clock_was_wrong() -> None:
    decision = decide(MINUTELY, CronPolicy(), NOON + YEARS_5, NOON + 1)
    assert decision.clock_was_wrong
    assert (decision.run, decision.last_slot, decision.next_slot) == ((), NOON + 1, NOON + 60)
    every = CronSpec("@every 90s").counted_from(from_seconds(NOON + 36_000))
    decision = decide(every, CronPolicy(), NOON + 36_000, NOON + 1)
    assert (decision.clock_was_wrong, decision.next_slot) == (True, NOON + 90)
    assert decide(every, CronPolicy(), NOON + 1, NOON + 90).run == (NOON + 90,)
    nearer = decide(MINUTELY, CronPolicy(), NOON + 10_800, NOON)  # three hours: waited for
    assert (nearer.clock_was_wrong, nearer.run, nearer.last_slot) == (False, (), NOON + 10_800)


@given(st.floats(0, 4e9).map(lambda moment: round(moment, 6)))
def test_a_ticks_task_has_an_id_of_its_name_and_moment(slot: float) -> None:
    task_id = tick_id("nightly", slot)
    assert (UUID(task_id).version, UUID(task_id).variant) == (8, "specified in RFC 4122")
    assert tick_id("nightly", slot) == task_id
    assert tick_id("nightly", slot + 0.001) != task_id != tick_id("other", slot)
    assert tick_id("nightly", slot + 1) > task_id or slot >= 2**48 / 1_000


def test_ids_of_ticks_are_the_same_in_every_process_and_version() -> None:
    # Pinned: a change here would let two versions publish one tick twice.
    assert tick_id("nightly", NOON) == "019cae6b-6600-880d-80e6-3106128f4c63"


def test_a_look_between_two_ticks_forgets_none_that_was_decided() -> None:
    spec = CronSpec("0 10,11 * * *")
    hour = 3_600.0
    midnight = NOON - NOON % (24 * hour)
    slots = Slots(midnight + 11 * hour)
    slots.move_to(midnight + 7 * hour)  # by a clock that was set back by more than three hours
    assert slots.decide(spec, CronPolicy(), midnight + 8 * hour + 300).run == ()
    assert slots.decide(spec, CronPolicy(misfire="all"), midnight + 12 * hour).run == ()


def template(**fields: Any) -> NewTask:
    return NewTask(id="", queue="q", type="t", payload=b"{}", **fields)


def test_a_definition_comes_back_as_it_was_written() -> None:
    policy = CronPolicy(misfire="all", overlap="queue_one", jitter=3.5, misfire_grace=1.0)
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
    spec = CronSpec("H 3 * * *", "Europe/Berlin", "robfig", name="drawn", start=start, end=end)
    text = write_definition("x", spec, policy, "says so", template())
    assert read_definition(text, NOON) == (spec, policy, "says so")


def test_an_every_counts_from_its_own_anchor_or_else_from_when_it_was_added() -> None:
    own = datetime(2026, 1, 1, tzinfo=UTC)
    anchored = write_definition("x", CronSpec("@every 90m", anchor=own), CronPolicy(), "")
    assert read_definition(anchored, NOON)[0].anchor == own
    added = write_definition("x", CronSpec("@every 90m"), CronPolicy(), "")
    assert read_definition(added, NOON)[0].anchor == from_seconds(NOON)


def test_definitions_differ_if_the_tasks_do() -> None:
    unique = UniqueKey(
        key="k",
        statuses=frozenset({TaskStatus.PENDING, TaskStatus.RUNNING}),
        within=None,
        on_clash=OnClash.KEEP,
        replace=frozenset({"payload", "tags"}),
        replace_in=frozenset(),
    )
    tasks = [
        template(),
        template(headers={"a": "1"}),
        template(tags=("x",)),
        template(priority=2),
        template(unique=unique),
        template(max_retry=0),
        NewTask(id="", queue="q", type="t", payload=b"\xff"),
    ]
    texts = {write_definition("x", MINUTELY, CronPolicy(), "", task) for task in tasks}
    assert len(texts) == len(tasks)
    again = write_definition("x", MINUTELY, CronPolicy(), "", template(headers={"a": "1"}))
    assert again in texts


def test_a_misfire_window_bounds_how_much_is_made_up() -> None:
    policy = CronPolicy(misfire="all", misfire_window=300.0)
    assert len(decide(MINUTELY, policy, NOON - 86_400, NOON).run) == 5
    everything = CronPolicy(misfire="all", misfire_window=86_400.0)
    run = decide(MINUTELY, everything, NOON - 86_400, NOON).run
    assert (len(run), run[-1], run[0]) == (100, NOON, NOON - 99 * 60)


@given(misfires, st.sampled_from(["allow", "skip", "queue_one", "cancel_running"]), st.integers(0, 20_000))
def test_of_several_ticks_at_once_overlap_leaves_one_and_perhaps_the_latest(
    misfire: Literal["latest", "skip", "all"],
    overlap: Literal["allow", "skip", "queue_one", "cancel_running"],
    passed_s: int,
) -> None:
    policy = CronPolicy(misfire=misfire, overlap=overlap, misfire_grace=600.0, misfire_window=7_200.0)
    whole = decide(MINUTELY, policy, NOON, NOON + passed_s)
    decision = one_at_a_time(whole, policy)
    if overlap == "allow" or len(whole.run) < 2:
        assert decision is whole
        return
    latest = whole.run[-1]
    assert decision.run == (latest if overlap == "cancel_running" else whole.run[0],)
    rest = decide(MINUTELY, policy, decision.last_slot, NOON + passed_s)
    assert rest.run == ((latest,) if overlap == "queue_one" else ())
    assert (rest.last_slot, rest.next_slot) == (whole.last_slot, whole.next_slot)
    assert decision.next_slot == (latest if overlap == "queue_one" else whole.next_slot)


def test_the_grace_of_skip_is_one_period_and_at_least_a_minute() -> None:
    hourly = CronSpec("0 * * * *")
    skip = CronPolicy(misfire="skip")
    assert decide(hourly, skip, NOON - 1, NOON + 3_599).run == (NOON,)
    assert decide(CronSpec("* * * * * *"), skip, NOON - 100, NOON + 0.5).run == (NOON,)
    yearly = CronSpec("0 0 0 1 1 * 2026")  # none follows, so the least grace it is
    slot = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    assert decide(yearly, skip, slot - 10, slot + 60).run == (slot,)
    assert decide(yearly, skip, slot - 10, slot + 61).run == ()


@pytest.mark.parametrize("least", [0.0, 4.9])
def test_a_tick_decided_within_five_seconds_is_on_time_whatever_the_policy(least: float) -> None:
    skip = CronPolicy(misfire="skip", misfire_grace=least)
    everything = CronPolicy(misfire="all", misfire_window=least)
    for policy in (skip, everything):
        for late_s in (0.0, 0.000_001, 4.9):
            decision = decide(MINUTELY, policy, NOON - 60, NOON + late_s)
            assert (decision.run, decision.missed) == ((NOON,), 0)
        for late_s in (5.1, 59.0):
            decision = decide(MINUTELY, policy, NOON - 60, NOON + late_s)
            assert (decision.run, decision.missed) == ((), 1)
    # Of an hour away, what is on time runs, and nothing that was missed before it.
    assert decide(MINUTELY, everything, NOON - 3_600, NOON + 1).run == (NOON,)


@pytest.mark.parametrize(
    "options", [{"misfire": "never"}, {"overlap": "maybe"}, {"jitter": -1.0}, {"misfire_grace": float("nan")}]
)
def test_a_policy_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfigError, match=r"^\[1012\] cron: "):
        CronPolicy(**options)


def test_a_day_of_minutes_missed_is_decided_without_counting_them() -> None:
    long_ago = from_seconds(NOON) - timedelta(days=3_650)
    decision = decide(MINUTELY, CronPolicy(), long_ago.timestamp(), NOON + 5)
    assert (decision.run, decision.next_slot, decision.missed) == ((NOON,), NOON + 60, 1)
