"""Who is to be rung for what: the bells of one storage in one process."""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import contextmanager

from dispatch.bell import Bell
from dispatch.storage.protocol import Topic, TopicKind

__all__ = ["Bells"]


class Bells:
    """Subscriptions by topic. Used on the trio thread only."""

    def __init__(self) -> None:
        self._watched: dict[TopicKind, dict[str, list[Bell]]] = {kind: {} for kind in TopicKind}

    @contextmanager
    def watch(self, bell: Bell, *topics: Topic) -> Generator[None]:
        """Ring `bell` for these topics while the context is open."""
        for topic in topics:
            self._watched[topic.kind].setdefault(topic.name, []).append(bell)
        try:
            yield
        finally:
            for topic in topics:
                named = self._watched[topic.kind]
                named[topic.name].remove(bell)
                if not named[topic.name]:
                    del named[topic.name]

    def ring(self, kind: TopicKind, name: str = "") -> None:
        """Ring who watches this name, and who watches the kind without one."""
        named = self._watched[kind]
        if not named:
            return
        for bell in named.get(name, ()):
            bell.ring()
        if name:
            for bell in named.get("", ()):
                bell.ring()

    def ring_all(self) -> None:
        """Ring every bell: what happened meanwhile is unknown."""
        for named in self._watched.values():
            for bells in named.values():
                for bell in bells:
                    bell.ring()

    def names(self, kind: TopicKind) -> Collection[str]:
        """The names watched of a kind; an empty one stands for all."""
        return self._watched[kind].keys()

    def __bool__(self) -> bool:
        return any(self._watched.values())
