"""What a process tells the others and hears of them, with no server between: failures, repeats, and pace."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
import trio

from dispatch.bell import Bell
from dispatch.errors import StorageError
from dispatch.storage.postgres_bell import LONGEST, BellRope, payloads
from dispatch.storage.protocol import Topic, TopicKind

FAR = Topic(TopicKind.QUEUE, "far")


class Server:
    """Notes what it is told and asked; fails for as long as `down`, and takes `slow_s` for an answer."""

    def __init__(self) -> None:
        self.told: list[tuple[float, list[str]]] = []
        self.asked: list[tuple[float, list[str]]] = []
        self.over: set[str] = set()
        self.down = False
        self.slow_s = 0.0
        self.rope = BellRope(self.tell, self.ended)

    async def tell(self, texts: Sequence[str]) -> None:
        self.told.append((trio.current_time(), [word for text in texts for word in text.split(" ")[1:]]))
        await self.answer()

    async def ended(self, ids: Collection[str]) -> list[str]:
        self.asked.append((trio.current_time(), sorted(ids)))
        await self.answer()
        return [each for each in ids if each in self.over]

    async def answer(self) -> None:
        await trio.sleep(self.slow_s)
        if self.down:
            raise StorageError("away")

    @asynccontextmanager
    async def working(self) -> AsyncIterator[BellRope]:
        """With both loops beside it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.rope.run_sender)
            nursery.start_soon(self.rope.run_looker)
            yield self.rope
            nursery.cancel_scope.cancel()


async def test_what_is_rung_is_told_once_together_and_not_too_often(autojump_clock: object) -> None:
    server = Server()
    async with server.working() as rope:
        rope.ring([FAR, Topic(TopicKind.LEASES, "w"), Topic(TopicKind.TASK, "t")])
        rope.ring([FAR, Topic(TopicKind.DONE, "far")], ["t"])
        await trio.sleep(1)
        assert [words for _, words in server.told] == [["done:far", "queue:far"]], "leases and tasks are our own matter"
        rope.ring([Topic(TopicKind.LEASES, "w")], ["t"])
        await trio.sleep(1)
        assert len(server.told) == 1
        for n in range(100):
            rope.ring([Topic(TopicKind.QUEUE, f"q{n}")])
            await trio.sleep(0.001)
        await trio.sleep(1)
    later = server.told[1:]
    assert sorted(word for _, words in later for word in words) == sorted(f"queue:q{n}" for n in range(100))
    assert all(second - first >= 0.0099 for (first, _), (second, _) in pairwise(later))
    assert 5 <= len(later) <= 12


@pytest.mark.parametrize("since", [[], [Topic(TopicKind.ROOM, "near")]])
async def test_what_could_not_be_told_is_told_again_with_what_came_since(
    since: list[Topic], autojump_clock: object
) -> None:
    server = Server()
    server.down = True
    async with server.working() as rope:
        rope.ring([FAR])
        await trio.sleep(0.5)
        server.down = False
        if since:
            rope.ring(since)
        await trio.sleep(5)
    assert [words for _, words in server.told] == [["queue:far"], ["queue:far", *(["room:near"] if since else [])]]
    assert server.told[1][0] - server.told[0][0] == pytest.approx(1.0, abs=0.05), "a server that is away is not pestered"


@pytest.mark.parametrize("down", [False, True])
async def test_the_rest_is_told_at_the_end(down: bool, autojump_clock: object) -> None:
    server = Server()
    server.slow_s = 1.0
    async with server.working() as rope:
        rope.ring([FAR])
        await trio.sleep(0.5)  # it is cut off in the middle of that
    server.down = down
    rope.ring([Topic(TopicKind.CRON)])
    await server.rope.tell_rest()
    await server.rope.tell_rest()
    assert [words for _, words in server.told] == [["queue:far"], ["cron:", "queue:far"]]


def test_what_was_committed_here_rings_here_at_once() -> None:
    rope = Server().rope
    for kind in TopicKind:
        named, other, every = Bell(), Bell(), Bell()
        with (
            rope.bells.watch(named, Topic(kind, "a")),
            rope.bells.watch(other, Topic(kind, "b")),
            rope.bells.watch(every, Topic(kind)),
        ):
            rope.ring([Topic(kind, "a")])
        assert (named.is_rung, other.is_rung, every.is_rung) == (True, False, True)


def test_what_ended_here_rings_for_it_and_for_all() -> None:
    rope = Server().rope
    mine, others, every = Bell(), Bell(), Bell()
    rope.ring([], ["mine"])
    with rope.bells.watch(mine, Topic(TopicKind.TASK, "mine")), rope.bells.watch(others, Topic(TopicKind.TASK, "other")):
        rope.ring([], ["some", "mine"])
        assert (mine.is_rung, others.is_rung) == (True, False)
    with rope.bells.watch(every, Topic(TopicKind.TASK)):
        rope.ring([], ["some"])
        assert every.is_rung


def test_what_others_tell_is_heard_but_not_ones_own_nor_what_a_newer_version_says() -> None:
    rope = Server().rope
    bells = {kind: Bell() for kind in TopicKind}
    for kind, bell in bells.items():
        with rope.bells.watch(bell, Topic(kind, "a:b")):
            [own] = payloads(rope._me, [Topic(kind, "a:b")])
            rope.hear(own)
            rope.hear("another news:a:b queue:z")
            assert not bell.is_rung
            rope.hear(f"another news:a:b {kind.value}:a:b")
    assert {kind for kind, bell in bells.items() if not bell.is_rung} == {TopicKind.TASK, TopicKind.LEASES}


@pytest.mark.parametrize("news", ["another done:q", None])
async def test_awaited_tasks_are_looked_for_when_some_have_ended_elsewhere(news: str | None, autojump_clock: object) -> None:
    server = Server()
    server.over = {"t1", "t3"}
    first, second, every, queue = Bell(), Bell(), Bell(), Bell()
    async with server.working() as rope:
        rope.hear("another done:q")
        await trio.sleep(1)
        assert server.asked == [], "nobody waits"
        with (
            rope.bells.watch(first, Topic(TopicKind.TASK, "t1")),
            rope.bells.watch(second, Topic(TopicKind.TASK, "t2")),
            rope.bells.watch(every, Topic(TopicKind.TASK)),
            rope.bells.watch(queue, Topic(TopicKind.QUEUE, "q")),
        ):
            rope.hear("another room:q")
            await trio.sleep(1)
            assert server.asked == [], "no task has ended"
            if news is None:
                rope.ring_all()
            else:
                rope.hear(news)
            assert queue.is_rung is (news is None)
            assert not any(bell.is_rung for bell in (first, second, every)), "the storage is asked after them instead"
            await trio.sleep(1)
    assert [ids for _, ids in server.asked] == [["t1", "t2"]]
    assert (first.is_rung, second.is_rung, every.is_rung) == (True, False, True)


async def test_looks_keep_their_pace_and_one_that_failed_is_repeated(autojump_clock: object) -> None:
    server, bell = Server(), Bell()
    async with server.working() as rope:
        with rope.bells.watch(bell, Topic(TopicKind.TASK, "t")):
            for _ in range(200):
                rope.hear("another done:q")
                await trio.sleep(0.001)
            await trio.sleep(1)
            assert 5 <= len(server.asked) <= 12
            assert all(second - first >= 0.0199 for (first, _), (second, _) in pairwise(server.asked))
            server.asked.clear()
            server.down = True
            server.over = {"t"}
            rope.hear("another done:q")
            await trio.sleep(0.5)
            assert not bell.is_rung
            server.down = False
            await trio.sleep(5)
            assert bell.is_rung
    assert len(server.asked) == 2
    assert server.asked[1][0] - server.asked[0][0] == pytest.approx(1.0, abs=0.05)


def test_many_topics_go_in_texts_that_a_notification_takes() -> None:
    topics = {Topic(TopicKind.CONTROL, f"{n:03}{'x' * 125}") for n in range(200)}
    texts = payloads("12345678", topics)
    assert all(len(text.encode()) < 8_000 for text in texts)
    assert len(texts) == 4, "and no more than it needs"
    assert all(text.startswith("12345678 control:") for text in texts)
    words = [word for text in texts for word in text.split(" ")[1:]]
    assert words == sorted(f"control:{topic.name}" for topic in topics)
    assert payloads("12345678", []) == []
    assert max(map(len, texts)) <= LONGEST
