"""Who is due when: one heap for any number of entries."""

from __future__ import annotations

import heapq
from itertools import count
from math import inf
from typing import Generic, TypeVar

__all__ = ["Timetable"]

T = TypeVar("T")


class Timetable(Generic[T]):
    """At most one moment for each item, and the earliest of them at hand.

    Items are told apart by identity or whatever their hash says, and never
    compared for order: of one moment, the first put comes first.
    """

    __slots__ = ("_heap", "_moments", "_order")

    def __init__(self) -> None:
        # A moment that is taken back stays in the heap, and is passed over when it comes up:
        # searching for it would cost more than all the rest.
        self._heap: list[tuple[float, int, T]] = []
        self._moments: dict[T, tuple[float, int]] = {}
        self._order = count()

    def put(self, item: T, moment: float | None) -> None:
        """Set the moment of an item, in place of the one it has; None takes it out."""
        known = self._moments.pop(item, None)
        if moment is None:
            return
        if known is not None and known[0] == moment:
            self._moments[item] = known
            return
        place = (moment, next(self._order))
        self._moments[item] = place
        heapq.heappush(self._heap, (*place, item))
        if len(self._heap) > 2 * len(self._moments) + 64:
            self._heap = [(*place, item) for item, place in self._moments.items()]
            heapq.heapify(self._heap)

    def first(self) -> float:
        """The earliest moment; infinity if there is none."""
        while self._heap:
            moment, order, item = self._heap[0]
            if self._moments.get(item) == (moment, order):
                return moment
            heapq.heappop(self._heap)
        return inf

    def take(self, now: float, most: int) -> list[T]:
        """Take out the items whose moment is not after `now`, at most so many, earliest first."""
        taken: list[T] = []
        while len(taken) < most and self.first() <= now:
            item = heapq.heappop(self._heap)[2]
            del self._moments[item]
            taken.append(item)
        return taken

    def __len__(self) -> int:
        return len(self._moments)

    def __repr__(self) -> str:
        return f"<Timetable {len(self)} items, the first at {self.first()}>"
