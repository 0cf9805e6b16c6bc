"""What a count of the waiting is good for."""

from __future__ import annotations

import pytest

from dispatch.storage.limits import Rooms

BOUNDS = {"q": 1_000, "small": 100}


@pytest.fixture
def rooms() -> Rooms:
    """A queue of 1,000 in which 360 wait, and one of 100 in which none does; so it was at ten."""
    rooms = Rooms()
    rooms.found("q", 1_000, 360, 10.0)
    rooms.found("small", 100, 0, 10.0)
    return rooms


def test_a_sixty_fourth_of_the_room_is_taken_and_no_more(rooms: Rooms) -> None:
    assert [rooms.take(BOUNDS, ["q"], 10.5) for _ in range(11)] == [True] * 10 + [False]
    assert rooms.take(BOUNDS, ["small"], 10.5)
    assert not rooms.take(BOUNDS, ["small"], 10.5)


def test_of_much_room_a_hundred_places_are_taken(rooms: Rooms) -> None:
    rooms.found("large", 1_000_000, 0, 10.0)
    assert [rooms.take({"large": 1_000_000}, ["large"], 10.0) for _ in range(101)] == [True] * 100 + [False]


def test_sixty_four_processes_that_count_once_stay_within_the_bound() -> None:
    taken = 0
    for _ in range(64):
        rooms = Rooms()
        rooms.found("q", 1_000, 1, 0.0)
        while rooms.take(BOUNDS, ["q"], 0.0):
            taken += 1
    assert 900 < taken <= 999


def test_a_batch_takes_all_its_places_or_none(rooms: Rooms) -> None:
    assert not rooms.take(BOUNDS, ["q"] * 11, 10.0)
    assert not rooms.take(BOUNDS, ["q", "small", "small"], 10.0)
    assert rooms.take(BOUNDS, ["q"] * 9 + ["small"], 10.0)
    assert rooms.take(BOUNDS, ["q"], 10.0)
    assert not rooms.take(BOUNDS, ["q"], 10.0)


@pytest.mark.parametrize("at", [11.01, 9.99, -5.0])
def test_a_count_is_good_for_a_second_of_a_clock_that_goes_on(rooms: Rooms, at: float) -> None:
    assert rooms.take(BOUNDS, ["q"], 11.0)
    assert not rooms.take(BOUNDS, ["q"], at)


def test_of_another_bound_or_an_unknown_queue_nothing_is_known(rooms: Rooms) -> None:
    assert not rooms.take({"q": 999}, ["q"], 10.0)
    assert not rooms.take({}, ["q"], 10.0)
    assert not rooms.take({"other": 5_000}, ["other"], 10.0)


@pytest.mark.parametrize("waiting", [937, 1_000, 1_200])
def test_where_little_room_is_left_each_publish_counts(rooms: Rooms, waiting: int) -> None:
    rooms.found("q", 1_000, waiting, 10.0)
    assert not rooms.take(BOUNDS, ["q"], 10.0)
