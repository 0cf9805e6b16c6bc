"""What the parts are made with: nonsense is refused then, not met by the first task."""

# pyright: reportArgumentType=false
# What a type checker refuses is what is handed in here.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dispatch import Dispatcher, InvalidConfigError, MemoryStorage, TaskQueueConsumer, Unique
from dispatch.storage.query import Tags

from .work import working


def refusal(make: Callable[[], object]) -> str:
    with pytest.raises(InvalidConfigError) as caught:
        make()
    return caught.value.detail


@pytest.mark.parametrize("option", ["queues", "tags"])
def test_one_name_in_place_of_several_is_refused(option: str) -> None:
    given: dict[str, Any] = {option: "email"}
    wanted = f"{option} must be a collection of str, got 'email'; write ['email']"
    assert refusal(lambda: Dispatcher(**given)) == wanted
    assert refusal(lambda: TaskQueueConsumer(MemoryStorage(), **given)) == wanted


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tags(all_of="x"), "Tags: all_of must be a collection of str, got 'x'; write ['x']"),
        (lambda: Tags(any_of="x"), "Tags: any_of must be a collection of str, got 'x'; write ['x']"),
        (lambda: Tags(any_of=[1]), "Tags: any_of must be a collection of str, got 1 in it"),
        (
            lambda: Unique(replace="payload"),
            "Unique: replace must be a collection of str, got 'payload'; write ['payload']",
        ),
        (lambda: Dispatcher(queues=5), "queues must be a collection of str, got 5"),
        (lambda: Dispatcher(tags=[b"x"]), "tags must be a collection of str, got b'x' in it"),
    ],
)
def test_what_holds_no_names_is_refused(make: Any, message: str) -> None:
    assert refusal(make) == message


def test_any_collection_of_names_is_taken() -> None:
    names = iter(["a", "b"])
    assert Tags(all_of=names) == Tags(all_of={"b", "a"}) == Tags(all_of=("a", "b"))
    assert Unique(replace=["payload", "tags"]).replace == {"payload", "tags"}


async def test_a_queue_to_consume_that_nobody_registered_is_named_at_the_end(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(queues=["q"]):
        pass
    assert not caplog.records
    async with working(queues=["q", "mail", "emial"]):
        assert not caplog.records
    assert [line.getMessage() for line in caplog.records] == [
        "queues: 'emial', 'mail' were never registered here, so nothing of that was consumed; registered: q"
    ]
