"""Everything at once on one database, by several storages: what transactions must keep apart."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest
import trio

from dispatch.records import NewTask, Transition, TransitionKind
from dispatch.storage.protocol import Change, QueueRecord, Storage, Want
from dispatch.storage.query import Keys, Queues, Statuses
from dispatch.testing.history import HistoryEvent, Step, verify
from dispatch.testing.recording import RecordingStorage
from dispatch.testing.workbench import unique
from tests.postgres.stage import Stage

TWO_AT_ONCE = (
    "SELECT key, array_agg(id || ':' || state) FROM @.tasks WHERE lined AND state IN (0, 3)"
    " GROUP BY queue, key HAVING count(*) > 1"
)
NOT_FIRST = (
    "SELECT t.id FROM @.tasks t JOIN @.tasks o ON o.queue = t.queue AND o.key = t.key AND o.lined"
    " AND o.state = 1 AND o.seq < t.seq WHERE t.lined AND t.state = 0"
)
DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
FORGOTTEN = (
    "SELECT key FROM @.tasks t WHERE lined AND state = 1 AND NOT EXISTS (SELECT 1 FROM @.tasks o"
    " WHERE o.queue = t.queue AND o.key = t.key AND o.lined AND o.state IN (0, 3))"
)


class Crowd:
    """Publishers, workers and people, on a queue with keys, retries and uniqueness."""

    def __init__(self, stage: Stage, seed: int, seconds: float, history: list[HistoryEvent]) -> None:
        self.stage = stage
        self.random = Random(seed)
        self.began = trio.current_time()
        self.seconds = seconds
        self.history = history
        self.number = 0

    def going_on(self) -> bool:
        """For `seconds`; on a loaded machine up to ten times as long, until enough has happened."""
        passed = trio.current_time() - self.began
        return passed < self.seconds or (passed < 10 * self.seconds and not self.enough())

    def enough(self) -> bool:
        seen = Counter(event.step for event in self.history)
        return min(seen[step] for step in (Step.PUBLISHED, Step.CLAIMED, Step.ENDED)) > 20 * self.seconds

    async def publish(self, storage: Storage) -> None:
        while self.going_on():
            tasks: list[NewTask] = []
            for _ in range(self.random.randrange(1, 5)):
                self.number += 1
                identity = unique(
                    self.random.choice("uvw"), self.random.choice(["supersede", "replace", "keep"])
                )
                tasks.append(
                    NewTask(
                        id=f"t{self.number}",
                        queue="q",
                        type=self.random.choice("ab"),
                        payload=b"{}",
                        max_retry=3,
                        key=self.random.choice([None, "k", "l", "m"]),
                        delay=self.random.choice([0.0, 0.0, 1.0]),
                        unique=identity if self.random.random() < 0.3 else None,
                    )
                )
            await storage.enqueue(tasks)
            await trio.sleep(0.005)

    async def work(self, storage: Storage, name: str) -> None:
        while self.going_on():
            want = Want(queue="q", limit=3, types={"a": 1, "b": 1}, max_retry=3)
            claimed = await storage.claim([want], worker=name, lease=5.0)
            await trio.sleep(self.random.random() * 0.004)
            ends = [self.end(claim.id, claim.epoch) for claim in claimed.claims]
            fate = self.random.random()
            if fate < 0.5:
                await storage.settle(ends)
            elif fate < 0.9:
                _, claimed = await storage.turn(ends, [want], worker=name, lease=5.0)
                await storage.settle([self.end(claim.id, claim.epoch) for claim in claimed.claims])
            # else this worker has died, and another begins

    def end(self, id_: str, epoch: int) -> Transition:
        kind = self.random.choice([TransitionKind.DONE] * 5 + list(TransitionKind))
        retry_in = self.random.choice([None, 0.0, 1.0]) if kind is TransitionKind.FAILED else 0.5
        return Transition(
            id_, epoch, kind, error=None if kind is TransitionKind.DONE else "e", retry_in=retry_in
        )

    async def meddle(self, storage: Storage) -> None:
        while self.going_on():
            action: Any = self.random.choice(
                ["hold", "resume", "resume", "cancel", "rerun", "patch"]
            )
            where = Queues("q") & (
                Keys(self.random.choice("klm"))
                if self.random.random() < 0.5
                else Statuses("held", "failed")
            )
            change = Change(
                action=action, priority=self.random.randrange(4) if action == "patch" else None
            )
            await storage.alter(where, change, limit=self.random.randrange(1, 6))
            await trio.sleep(0.005)

    async def sweep(self, storage: Storage) -> None:
        while self.going_on():
            await self.stage.advance(0.5)
            await storage.rescue()
            await trio.sleep(0.01)

    async def redeclare(self, storage: Storage) -> None:
        while self.going_on():
            await trio.sleep(0.1)
            on_retry = self.random.choice(["hold", "yield"])
            await storage.declare([QueueRecord(name="q", keyed=True, on_retry=on_retry)])

    async def look(self) -> None:
        while self.going_on():
            assert self.stage.execute(TWO_AT_ONCE) == []
            await trio.sleep(0.003)


async def run_crowd(stage: Stage, seed: int, seconds: float) -> None:
    history: list[HistoryEvent] = []
    async with stage.open() as (one, _), stage.storage() as two, stage.storage() as three:
        storages = [RecordingStorage(storage, history.append) for storage in (one, two, three)]
        await one.declare([QueueRecord(name="q", keyed=True, on_retry="hold")])
        crowd = Crowd(stage, seed, seconds, history)
        async with trio.open_nursery() as nursery:
            for number, storage in enumerate(storages):
                nursery.start_soon(crowd.publish, storage)
                nursery.start_soon(crowd.work, storage, f"w{number}")
                nursery.start_soon(crowd.work, storage, f"v{number}")
            nursery.start_soon(crowd.meddle, storages[0])
            nursery.start_soon(crowd.sweep, storages[1])
            nursery.start_soon(crowd.redeclare, storages[2])
            nursery.start_soon(crowd.look)
        await one.declare([QueueRecord(name="q", keyed=True, on_retry="hold")])
        assert stage.execute(TWO_AT_ONCE) == []
        assert stage.execute(DEADLOCKS) == [(0,)]  # each would have held up all for a second
        assert stage.execute(NOT_FIRST) == []
        assert stage.execute(FORGOTTEN) == []
        await drain(stage, storages[0])
        await storages[0].drained()
    verify(history)
    assert crowd.enough()


async def drain(stage: Stage, storage: Storage) -> None:
    """Let everything that can still run come to its end."""
    await storage.alter(Queues("q"), Change(action="resume"))
    with trio.fail_after(60):
        while await storage.count(Statuses("pending", "running", "held"), bound=1):
            await stage.advance(10.0)
            await storage.rescue()
            claimed = await storage.claim([Want(queue="q", limit=50)], worker="last", lease=5.0)
            await storage.settle(
                [Transition(claim.id, claim.epoch, TransitionKind.DONE) for claim in claimed.claims]
            )


@pytest.mark.battery
async def test_a_crowd_on_keyed_queues_keeps_every_promise(stage_alone: Stage) -> None:
    await run_crowd(stage_alone, seed=1, seconds=1.0)


@pytest.mark.battery
@pytest.mark.parametrize("seed", range(3))
async def test_a_crowd_on_keyed_queues_keeps_every_promise_for_longer(
    stage_alone: Stage, seed: int
) -> None:
    await run_crowd(stage_alone, seed=seed, seconds=12.0)
