"""What every page reads through: bounded counts, short summaries, a little memory.

Nothing here asks a storage for more than a page's worth. Counts stop at `BOUND`
and say so, and are remembered for a moment, so that ten people who look cost
what one costs; what was too many to count is not counted again for a while.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar

import attrs
import trio

from dispatch.codec import Codec, Undecodable
from dispatch.control import TaskQueueControl
from dispatch.cron.dispatcher import CronTask, CronTaskDispatcher
from dispatch.dispatcher import Dispatcher
from dispatch.publisher import TaskQueuePublisher
from dispatch.records import TaskRecord
from dispatch.run import progress_of
from dispatch.storage.protocol import QueueRecord, Storage
from dispatch.storage.query import All, Order, Queues, Statuses
from dispatch.tasks import Priority, TaskStatus, TaskType
from dispatch.web.history import History
from dispatch.web.shown import Redactor, as_json, bounded, moment

__all__ = ["BOUND", "Count", "Desk", "View"]

View = dict[str, Any]
"""One page as plain data: what its JSON is, and what its template draws."""

T = TypeVar("T")

BOUND: Final = 10_000
"""Counting stops here; a page then shows `10,000+`."""
LEAST_BOUND: Final = 100
FEW_QUEUES: Final = 20
"""So few are counted one by one already where there are a quarter of `BOUND` in all."""
MOST_QUEUES: Final = 200
"""So many are drawn, and told apart where all of them are too many tasks to count at once."""
FRESH_S: Final = 2.0
CAPPED_S: Final = 30.0
MANY_S: Final = 600.0
"""For so long a status that was too many to count in one go is counted queue by queue at once."""
SAMPLE: Final = 150
SAMPLE_S: Final = 20.0
ERROR_LIMIT: Final = 300

STORED: Final = ("pending", "running", "held", "succeeded", "failed", "cancelled")
SHOWN: Final = ("pending", "later", "running", "held", "succeeded", "failed", "cancelled")


@attrs.frozen
class Count:
    """How many, and whether there are more than that."""

    n: int = 0
    more: bool = False

    def view(self) -> View:
        """As plain data."""
        return {"n": self.n, "more": self.more}


class Desk:
    """A storage, the parts that work on it, and what was lately read from it."""

    def __init__(self, over: Storage | Dispatcher, redactor: Redactor) -> None:
        self.redactor = redactor
        if isinstance(over, Dispatcher):
            self.dispatcher: Dispatcher | None = over
            self.storage: Storage = over.storage
            self.publisher: TaskQueuePublisher = over.publisher
            self.control: TaskQueueControl = over.control
            self.cron: CronTaskDispatcher = over.cron
        else:
            self.dispatcher = None
            self.storage = over
            self.publisher = TaskQueuePublisher(over)
            self.control = TaskQueueControl(over, publisher=self.publisher)
            self.cron = CronTaskDispatcher(over, publisher=self.publisher)
        self._codec = Codec()
        self._heard = History()
        if self.dispatcher is not None:
            self.dispatcher.observe(self._heard)
        self._kept: dict[object, tuple[float, object]] = {}

    # -- a little memory --------------------------------------------------------

    def remembered(self, key: object) -> Any:
        """What was put under this key, if it is still fresh; else None."""
        found = self._kept.get(key)
        return None if found is None or found[0] <= trio.current_time() else found[1]

    def remember(self, key: object, value: T, for_s: float) -> T:
        """Keep a value for so many seconds of trio's clock."""
        if len(self._kept) >= 256:
            now = trio.current_time()
            self._kept = {each: kept for each, kept in self._kept.items() if kept[0] > now}
            if len(self._kept) >= 256:
                self._kept.clear()
        self._kept[key] = (trio.current_time() + for_s, value)
        return value

    def forget(self) -> None:
        """Something was changed here: look afresh."""
        self._kept.clear()

    # -- reading ----------------------------------------------------------------

    async def queues(self) -> list[QueueRecord]:
        """Every declared queue, by name."""
        found: list[QueueRecord] | None = self.remembered("queues")
        if found is not None:
            return found
        return self.remember("queues", await self.control.queues(), FRESH_S)

    async def crons(self) -> list[CronTask]:
        """Every cron task, by name."""
        found: list[CronTask] | None = self.remembered("crons")
        if found is not None:
            return found
        return self.remember("crons", await self.cron.tasks(), FRESH_S)

    async def counts(self, queues: Sequence[str]) -> dict[str, dict[str, Count]]:
        """By queue, then by status as shown (`later` apart); queues without tasks included.

        One bounded count per status. Only where it stops at the bound, the first
        `MOST_QUEUES` are counted one by one, with a bound of their share, and the
        others as one, under the name "", which no queue has: the sum is of all.
        """
        found: dict[str, dict[str, Count]] = {queue: {} for queue in queues}
        if not queues:
            return found
        for status in STORED:
            for (queue, shown), count in (await self._status_counts(tuple(queues), status)).items():
                found.setdefault(queue, {})[shown] = count
        return found

    async def _status_counts(
        self, queues: tuple[str, ...], status: str
    ) -> dict[tuple[str, str], Count]:
        key = ("counts", queues, status)
        known: dict[tuple[str, str], Count] | None = self.remembered(key)
        if known is not None:
            return known
        if len(queues) > 1 and self.remembered(("many", *key)) is None:
            at_once = BOUND if len(queues) > FEW_QUEUES else BOUND // 4
            counts = await self._counted(queues, status, at_once)
            if sum(counts.values()) < at_once:
                return self.remember(key, {each: Count(n) for each, n in counts.items()}, FRESH_S)
        apart, others = queues[:MOST_QUEUES], queues[MOST_QUEUES:]
        share = max(BOUND // len(apart), LEAST_BOUND)
        asked: list[tuple[str, tuple[str, ...], int]] = [(queue, (queue,), share) for queue in apart]
        if others:
            asked.append(("", others, BOUND))
        found: dict[tuple[str, str], Count] = {}
        for name, among, bound in asked:
            own = await self._counted(among, status, bound)
            if sum(own.values()) >= bound:
                # How many of them are due cannot be said without counting them all.
                found[name, status] = Count(bound, more=True)
            else:
                found.update({each: Count(n) for each, n in own.items()})
        capped = any(count.more for count in found.values())
        if capped:
            self.remember(("many", *key), True, MANY_S)
        return self.remember(key, found, CAPPED_S if capped else FRESH_S)

    async def _counted(
        self, queues: tuple[str, ...], status: str, bound: int
    ) -> dict[tuple[str, str], int]:
        where = All(Queues(*queues), Statuses(status))
        if status == "pending":
            found = await self.storage.count(where, by=("queue", "status"), bound=bound)
            return {(queue, shown): n for (queue, shown), n in found.items()}
        # Without the status, which is known, an index alone can answer.
        found = await self.storage.count(where, by=("queue",), bound=bound)
        return {(queue, status): n for (queue,), n in found.items()}

    async def history(self, queues: Sequence[str]) -> tuple[History, str]:
        """The last hour, and where it is from: `events` of this process, or a `sample`."""
        heard = self.dispatcher is not None and (self._heard.ended or not self.storage.durable)
        if heard:
            return self._heard, "events"
        found: History | None = self.remembered("sample")
        if found is None:
            records: list[TaskRecord] = []
            for status in ("succeeded", "failed", "cancelled"):
                records += await self.newest(queues, status, SAMPLE)
            found = self.remember("sample", History.of(records), SAMPLE_S)
        return found, "sample"

    async def newest(self, queues: Sequence[str], status: str, limit: int) -> list[TaskRecord]:
        """The newest tasks of a status, the newest first.

        `MOST_QUEUES` at a time: of a few hundred a storage looks into each one's end, of
        more it may look through all that it has.
        """
        found: list[TaskRecord] = []
        for at in range(0, len(queues), MOST_QUEUES):
            where = All(Queues(*queues[at : at + MOST_QUEUES]), Statuses(status))
            page = await self.storage.find(where, order=Order.NEWEST, limit=limit)
            found = sorted([*found, *page.records], key=lambda record: -record.seq)[:limit]
        return found

    # -- summaries --------------------------------------------------------------

    def row(self, record: TaskRecord) -> View:
        """A task as a line of a list: everything but payload, result and headers."""
        return {
            "id": record.id,
            "queue": record.queue,
            "type": record.type,
            "status": self.status(record),
            "key": record.key,
            "tags": list(record.tags),
            "priority": priority(record.priority),
            "attempt": record.attempt,
            "created_at": moment(record.created_at),
            "available_at": moment(record.available_at),
            "started_at": moment(record.started_at),
            "finished_at": moment(record.finished_at),
            "wait_s": waited(record),
            "run_s": ran(record),
            "worker": record.worker,
            "cron": record.cron,
            "error": self.error(record),
            "failure_reason": record.failure_reason.value if record.failure_reason else None,
            "cancel_asked": record.status is TaskStatus.RUNNING and record.cancel_reason is not None,
            "progress": self.progress(record),
        }

    def status(self, record: TaskRecord) -> str:
        """The status as shown: `later` and `retrying` apart from `pending`."""
        if record.status is TaskStatus.PENDING:
            if record.attempt:
                return "retrying"
            return "later" if record.available_at > self.storage.now() else "pending"
        return record.status.value

    def error(self, record: TaskRecord) -> str | None:
        """Why it failed or was cancelled, in one bounded line."""
        text = record.cancel_reason if record.status is TaskStatus.CANCELLED else record.last_error
        if text is None or record.status is TaskStatus.SUCCEEDED:
            return None
        return self.redactor.text(text, 4 * ERROR_LIMIT).partition("\n")[0][:ERROR_LIMIT]

    def progress(self, record: TaskRecord) -> View | None:
        """How far a run says it has come: a fraction or None, and a message."""
        said = progress_of(record.progress)
        if said is None:
            return None
        return {"fraction": said.fraction, "message": self.redactor.text(said.message, 500)}

    def data(self, stored: bytes, declared: type[Any] | None) -> tuple[Any, bool]:
        """Payload or result bytes as masked JSON data; the second says whether they are JSON."""
        tree: Any = self._codec.decode_plain(stored, declared)
        if isinstance(tree, Undecodable):
            return self.redactor.text(tree.text), False
        return self.redactor.tree(tree), True

    def raw(self, stored: bytes) -> Any:
        """Payload bytes as JSON data, secrets included: for putting them back after an edit."""
        return self._codec.decode_plain(stored)

    def check(self, record: TaskRecord, declared: TaskType[Any, Any]) -> None:
        """Raise InvalidQueuePayloadError (1010) unless the payload is one of the declared class."""
        self._codec.decode(record.payload, declared.payload, version=record.version, task_type=declared)

    @staticmethod
    def text_of(tree: Any) -> str:
        """Masked data as the text that a page shows."""
        return bounded(tree if isinstance(tree, str) else as_json(tree))


def priority(level: int) -> str:
    """The level's name."""
    return Priority(level).name.lower() if level in set(Priority) else str(level)


def waited(record: TaskRecord) -> float | None:
    """Seconds from falling due to the newest start."""
    if record.started_at is None or record.status is TaskStatus.PENDING:
        return None
    return round(max(record.started_at - record.available_at, 0.0), 6)


def ran(record: TaskRecord) -> float | None:
    """Seconds from the newest start to the end; None while it goes on."""
    if record.started_at is None or record.finished_at is None:
        return None
    return round(max(record.finished_at - record.started_at, 0.0), 6)
