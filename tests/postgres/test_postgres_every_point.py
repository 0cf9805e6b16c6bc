"""The reference scenario, cancelled at any step and failed at any call, on a real server.

In real time, which sockets need: the k-th step is not the same one each time,
which is as good.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest
import trio

from dispatch import Dispatcher, StorageError
from dispatch.storage.postgres import PostgresStorage
from dispatch.storage.postgres_schema import migrate
from dispatch.storage.protocol import Storage
from dispatch.testing.faults import FaultyStorage
from dispatch.testing.postgres import PostgresServer
from tests.engine.test_cancel_everywhere import EVERY_TENTH_THEN_ALL, NEVER, TASKS, VICTIMS, World
from tests.engine.work import JOB, Job

T = TypeVar("T")
PACE = 0.1


@pytest.fixture(scope="module")
def template(server: PostgresServer) -> Iterator[str]:
    """The name of a database that has our tables, to make others of."""
    dsn = server.fresh_database()
    migrate(dsn)
    [(name,)] = server.execute("SELECT datname FROM pg_database ORDER BY oid DESC LIMIT 1")
    yield name
    server.drop_database(dsn)


def one_life(server: PostgresServer, template: str, live: Callable[[Storage], Awaitable[T]]) -> T:
    """Live once over a storage of its own."""
    dsn = server.fresh_database(template)

    async def main() -> T:
        with trio.fail_after(60):
            async with PostgresStorage(dsn) as storage:
                return await live(storage)

    try:
        return trio.run(main)
    finally:
        server.drop_database(dsn)


@pytest.mark.parametrize("step", EVERY_TENTH_THEN_ALL)
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_cancellation_at_any_step_loses_nothing(
    victim: str, step: int, server: PostgresServer, template: str
) -> None:
    async def cancelled_at(storage: Storage, k: float) -> int:
        world = World(victim, storage, PACE)
        steps = await world.act(k)
        try:
            await world.check()
        except BaseException as exc:
            exc.add_note(f"victim={victim} k={k}")
            raise
        return steps

    last = one_life(server, template, lambda storage: cancelled_at(storage, NEVER))
    for k in range(1, last + 1, step):
        one_life(server, template, lambda storage, k=k: cancelled_at(storage, k))  # type: ignore[misc]


class FailingOnce(FaultyStorage):
    """Fails at its n-th call."""

    def __init__(self, inner: Storage, n: float, *, after: bool) -> None:
        super().__init__(inner)
        self.n, self.after = n, after

    async def around(self, method: str, call: Callable[[], Awaitable[T]]) -> T:
        if self.calls.total() + 1 == self.n:
            self.fail(after=self.after)
        return await super().around(method, call)


class DoubtfulWorld(World):
    """The same scenario, in which the storage fails and nobody is cancelled."""

    def __init__(self, storage: Storage, n: float, *, after: bool) -> None:
        super().__init__("nobody", storage, PACE)
        self.view = FailingOnce(self.storage, n, after=after)

    def dispatcher(self) -> Dispatcher:
        return self.dispatcher_over(self.view)

    async def live(self) -> int:
        """Start, again if that failed; publish, again if that failed; drain. How many calls there were."""
        for _ in range(2):
            dispatcher = self.dispatcher()
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(dispatcher.serve)
                    for n in range(TASKS):
                        await self.again(lambda n=n: dispatcher.publisher.publish(JOB(Job(n), id=f"t{n}")))  # type: ignore[misc]
                        self.published.append(f"t{n}")
                    await self.again(dispatcher.drain)
                    dispatcher.close()
                break
            except* StorageError:
                assert not self.published, "a storage that fails takes no running dispatcher down"
        return self.view.calls.total()

    async def again(self, act: Callable[[], Awaitable[object]]) -> None:
        try:
            await act()
        except StorageError:
            await act()


@pytest.mark.parametrize("step", EVERY_TENTH_THEN_ALL)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_storage_that_fails_at_any_call_loses_nothing(
    after: bool, step: int, server: PostgresServer, template: str
) -> None:
    async def failed_at(storage: Storage, n: float) -> int:
        world = DoubtfulWorld(storage, n, after=after)
        try:
            calls = await world.live()
            await world.check()
        except BaseException as exc:
            exc.add_note(f"after={after} n={n}")
            raise
        return calls

    last = one_life(server, template, lambda storage: failed_at(storage, NEVER))
    assert last > 15
    for n in range(1, last + 1, step):
        one_life(server, template, lambda storage, n=n: failed_at(storage, n))  # type: ignore[misc]
