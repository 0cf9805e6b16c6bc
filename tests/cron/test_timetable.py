"""The heap of moments against a dictionary of them."""

from __future__ import annotations

from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from dispatch.cron.timetable import Timetable

moments = st.integers(0, 20).map(float)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abcde"), moments | st.none()),
        st.tuples(st.just("take"), moments, st.integers(1, 3)),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(steps)
def test_each_item_is_due_at_the_moment_it_was_last_given(taken: list[tuple[str, object, object]]) -> None:
    table: Timetable[str] = Timetable()
    model: dict[str, float] = {}
    for step in taken:
        match step:
            case ("put", str(item), moment):
                assert moment is None or isinstance(moment, float)
                table.put(item, moment)
                model.pop(item, None)
                if moment is not None:
                    model[item] = moment
            case ("take", float(now), int(most)):
                found = table.take(now, most)
                due = sorted(model[item] for item in model if model[item] <= now)
                assert [model.pop(item) for item in found] == due[:most]
            case _:
                raise AssertionError(step)
        assert len(table) == len(model)
        assert table.first() == min(model.values(), default=inf)


def test_moments_that_are_taken_back_do_not_pile_up() -> None:
    table: Timetable[str] = Timetable()
    for number in range(10_000):
        table.put("one", float(number))
        table.put("other", 5.0)
    assert len(table._heap) < 200  # pyright: ignore[reportPrivateUsage]
    assert table.take(10_000.0, 10) == ["other", "one"]
    assert repr(table) == "<Timetable 0 items, the first at inf>"


def test_of_one_moment_the_first_put_comes_first() -> None:
    table: Timetable[str] = Timetable()
    for item in "cab":
        table.put(item, 1.0)
    assert table.take(1.0, 2) == ["c", "a"]
    assert table.take(1.0, 2) == ["b"]
