"""Since when the longest due task of a queue has been due, in a bounded read."""

from __future__ import annotations

from typing import Final

from dispatch.storage.protocol import Storage
from dispatch.storage.query import All, Order, Queues, Statuses, Time

__all__ = ["oldest_due"]

MOST_READ: Final = 1_000
"""Tasks read for one answer, payloads included."""
MOST_AT_ONCE: Final = 100


async def oldest_due(storage: Storage, queue: str) -> float | None:
    """When the longest due task fell due, in the storage's seconds; None if nothing is due. A checkpoint.

    Not the task stored first: one that was delayed or retried, and fell due just
    now, is stored before others that have been due for an hour.

    Each page holds what was due before the best so far, from where the last page
    ended: behind that nothing was. Where tasks fall due in the order of storing
    that is two looks and one pass over what waits. Otherwise pages are taken from
    both ends in turn, and grow: at random a dozen are enough for a million tasks,
    and what was stored backwards is found at the other end. After 1,000 tasks (a
    million, due the earlier the nearer they were stored to the middle) the best
    so far stands: a task that is really due, and there may be one that has been
    for longer. Raises StorageError (1021).
    """
    oldest: float | None = None
    after: dict[Order, str | None] = {Order.OLDEST: None, Order.NEWEST: None}
    end, size, left = Order.OLDEST, 1, MOST_READ
    while left > 0:
        await storage.rest()  # in memory each page may go through all that is open
        where = All(Queues(queue), Statuses("due"), Time("available_at", until=oldest))
        page = await storage.find(where, order=end, limit=min(size, left), after=after[end])
        for record in page.records:
            oldest = record.available_at if oldest is None else min(oldest, record.available_at)
        if page.cursor is None:
            break
        after[end] = page.cursor
        left -= len(page.records)
        if size > 1:  # not after the first look, which mostly has found it
            end = Order.NEWEST if end is Order.OLDEST else Order.OLDEST
        size = min(2 * size, MOST_AT_ONCE)
    return oldest
