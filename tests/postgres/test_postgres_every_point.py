"""The reference scenario, cancelled at any step and failed at any call, on a real server.

In real time, which sockets need: the k-th step is not the same one each time,
which is as good. A life mostly waits, so several are lived side by side.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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


def one_life(
    server: PostgresServer, template: str, live: Callable[[Storage, float], Awaitable[T]], point: float
) -> T:
    """Live once over a storage of its own, with something wrong at one point; says which."""
    dsn = server.fresh_database(template)

    async def main() -> T:
        with trio.fail_after(60):
            async with PostgresStorage(dsn) as storage:
                return await live(storage, point)

    try:
        return trio.run(main)
    except BaseException as exc:
        exc.add_note(f"point {point}")
        raise
    finally:
        server.drop_database(dsn)


def many_lives(
    server: PostgresServer,
    template: str,
    live: Callable[[Storage, float], Awaitable[T]],
    points: Iterable[float],
) -> None:
    with ThreadPoolExecutor(4) as lives:
        list(lives.map(lambda point: one_life(server, template, live, point), points))


@pytest.mark.parametrize("step", EVERY_TENTH_THEN_ALL)
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_cancellation_at_any_step_loses_nothing(
    victim: str, step: int, server: PostgresServer, template: str
) -> None:
    async def cancelled_at(storage: Storage, k: float) -> int:
        world = World(victim, storage, PACE)
        steps = await world.act(k)
        await world.check()
        return steps

    last = one_life(server, template, cancelled_at, NEVER)
    many_lives(server, template, cancelled_at, range(1, last + 1, step))


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
                        await self.again(partial(dispatcher.publisher.publish, JOB(Job(n), id=f"t{n}")))
                        self.published.append(f"t{n}")
                    await self.again(dispatcher.drain)
                    dispatcher.close()
                break
            except* StorageError:
                assert not self.published, "a storage that fails takes no running dispatcher down"
        calls, self.view.n = self.view.calls.total(), NEVER  # a life with fewer calls than the longest
        return calls

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
        calls = await world.live()
        await world.check()
        return calls

    last = one_life(server, template, failed_at, NEVER)
    assert last > 15
    many_lives(server, template, failed_at, range(1, last + 1, step))
