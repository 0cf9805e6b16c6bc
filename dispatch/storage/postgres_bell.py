"""Wake-ups between processes on PostgreSQL: NOTIFY where it is fast, a slow poll behind it.

What a transaction touched is rung here at once, and told to the other processes
after it was committed: one NOTIFY for all topics, the next at least `THIN_S`
later. Not in the transaction itself, because the server lets transactions that
notify commit one after the other only. Should this process die in between,
nobody is told, nor while a listener reconnects: therefore the poll.

That a certain task ended is not told, only that one of its queue did. Who awaits
tasks then looks, once for all of them.

LISTEN does not pass PgBouncer in transaction mode. There, without it, the poll
alone wakes: `listen=False` makes it faster.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import Final, NoReturn

import trio

from dispatch.bell import Bell
from dispatch.errors import StorageError
from dispatch.storage.bells import Bells
from dispatch.storage.protocol import Topic, TopicKind

__all__ = ["BellRope", "payloads"]

THIN_S: Final = 0.01
"""The shortest pause between two notifications of this process."""
LOOK_S: Final = 0.02
"""The shortest pause between two looks for the end of awaited tasks."""
AGAIN_S: Final = 1.0
LONGEST: Final = 7_900
"""Bytes of one notification: the server refuses 8,000."""
TOLD: Final = frozenset(
    {TopicKind.QUEUE, TopicKind.ROOM, TopicKind.DONE, TopicKind.CONTROL, TopicKind.CRON}
)
"""What other processes are told. Leases are not: each process sweeps at its own pace."""


class BellRope:
    """The bells of this process, and what it tells to and hears from the others.

    `tell` sends payloads; `ended` answers which of these tasks are over.
    """

    def __init__(
        self,
        tell: Callable[[Sequence[str]], Awaitable[None]],
        ended: Callable[[Collection[str]], Awaitable[list[str]]],
    ) -> None:
        self.bells: Bells = Bells()
        self._tell = tell
        self._ended = ended
        self._me = uuid.uuid4().hex[:8]
        self._untold: set[Topic] = set()
        self._sender = Bell()
        self._looker = Bell()

    def ring(self, topics: Iterable[Topic], ended: Iterable[str] = ()) -> None:
        """Something was committed here, and these tasks have ended: ring for it, and let the others know soon."""
        if self.bells.names(TopicKind.TASK):
            for task_id in ended:
                self.bells.ring(TopicKind.TASK, task_id)
        told = len(self._untold)
        for topic in topics:
            self.bells.ring(topic.kind, topic.name)
            if topic.kind in TOLD:
                self._untold.add(topic)
        if len(self._untold) > told:
            self._sender.ring()

    def hear(self, payload: str) -> None:
        """Another process notified."""
        sender, *topics = payload.split(" ")
        if sender == self._me:
            return
        for text in topics:
            kind, _, name = text.partition(":")
            if kind in TOLD:  # else it is of a newer version than this
                self.bells.ring(TopicKind(kind), name)
                if kind == TopicKind.DONE:
                    self._looker.ring()

    def ring_all(self) -> None:
        """Anything may have happened: every watcher looks."""
        for kind in TopicKind:
            if kind is not TopicKind.TASK:
                for name in list(self.bells.names(kind)):
                    self.bells.ring(kind, name)
        self._looker.ring()

    async def run_sender(self) -> NoReturn:
        """Tell the others, one notification at a time. Until cancelled."""
        while True:
            await self._sender.wait()
            topics, self._untold = self._untold, set()
            try:
                await self._tell(payloads(self._me, topics))
            except StorageError:
                self._untold |= topics
                self._sender.ring()
                await trio.sleep(AGAIN_S)
            except BaseException:  # cut short by the end: `tell_rest` tells it once more
                self._untold |= topics
                raise
            await trio.sleep(THIN_S)

    async def tell_rest(self) -> None:
        """Tell the others what the sender was ended before it told."""
        topics, self._untold = self._untold, set()
        if topics:
            with suppress(StorageError):
                await self._tell(payloads(self._me, topics))

    async def run_looker(self) -> NoReturn:
        """Ring for awaited tasks that ended elsewhere. Until cancelled."""
        while True:
            await self._looker.wait()
            awaited = [name for name in self.bells.names(TopicKind.TASK) if name]
            if awaited:
                try:
                    for name in await self._ended(awaited):
                        self.bells.ring(TopicKind.TASK, name)
                except StorageError:
                    self._looker.ring()
                    await trio.sleep(AGAIN_S)
            await trio.sleep(LOOK_S)


def payloads(sender: str, topics: Iterable[Topic]) -> list[str]:
    """The topics as texts that fit a notification each; they may be heard more than once."""
    texts: list[str] = []
    for word in sorted(f"{topic.kind.value}:{topic.name}" for topic in topics):
        if texts and len(texts[-1]) + len(word) < LONGEST:
            texts[-1] += f" {word}"
        else:
            texts.append(f"{sender} {word}")
    return texts
