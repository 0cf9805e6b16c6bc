"""One measurement of one contestant, in a process and an environment of its own.

Theory of operation. A driver says how its peer is opened, how it publishes and
how its workers are started; `measure` does the same with each. Peers live on
threads, on asyncio or on trio; a `Flavour` knows how to sleep, wait and run there,
so that the measuring code below is written once. A peer on threads has async
methods that never wait, which a loop of one step drives.

Every handler is the same: it notes when it began, in a `Meter`. Rates are
counted from the handlers' side, so a peer that acknowledges later gains nothing
but its last batch. The process prints one line of JSON and leaves at once,
without asking the peer to wind down.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import platform
import resource
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

from benchmarks.workload import Fields, fields

__all__ = [
    "MEASURES",
    "Asyncio",
    "Flavour",
    "Measure",
    "Meter",
    "Peer",
    "Spec",
    "Threads",
    "Trio",
    "measured",
    "publish_all",
    "throughput",
]

WARM_UP = 20
GAP_S = 0.005
"""Between two latency samples: long enough for every queue to be idle again."""
DRAINED = 1_000
"""How many tasks are run, of those that wait, to learn what one costs."""
SETTLE_S = 15.0
"""After adding so much: what was set going by that is not idleness."""
IDLE_S = 20.0


@dataclass(frozen=True)
class Spec:
    """What to measure. `store` is a file or a connection string, empty in memory.

    `tally` is given to a process that only works, for one that publishes: its place there is `worker`.
    """

    measure: str
    tasks: int = 0
    concurrency: int = 10
    producers: int = 1
    bulk: bool = True
    store: str = ""
    tally: str = ""
    worker: int = 0


class Flavour(ABC):
    """A way to wait: threads, asyncio or trio."""

    @abstractmethod
    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run it to its end."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Wait so long."""

    @abstractmethod
    def event(self) -> Any:
        """A fresh event that the handlers set."""

    @abstractmethod
    async def wait(self, event: Any) -> None:
        """Wait for it."""

    @abstractmethod
    async def together(self, works: Sequence[Coroutine[Any, Any, Any]]) -> None:
        """Run several at once."""


class Threads(Flavour):
    """For peers whose every call blocks."""

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            work.send(None)
        except StopIteration as stop:
            return stop.value
        raise RuntimeError("a peer on threads must not await anything")

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - there is no loop here

    def event(self) -> threading.Event:
        return threading.Event()

    async def wait(self, event: threading.Event) -> None:
        event.wait()

    async def together(self, works: Sequence[Coroutine[Any, Any, Any]]) -> None:
        with ThreadPoolExecutor(len(works)) as pool:
            for _ in pool.map(self.run, works):
                pass  # what one raised is raised here


class Asyncio(Flavour):
    """For peers on asyncio; their handlers run on the loop."""

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(work)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def event(self) -> asyncio.Event:
        return asyncio.Event()

    async def wait(self, event: asyncio.Event) -> None:
        await event.wait()

    async def together(self, works: Sequence[Coroutine[Any, Any, Any]]) -> None:
        await asyncio.gather(*works)


class Trio(Flavour):
    """For those on trio."""

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        import trio

        async def run() -> Any:
            return await work

        return trio.run(run)

    async def sleep(self, seconds: float) -> None:
        import trio

        await trio.sleep(seconds)

    def event(self) -> Any:
        import trio

        return trio.Event()

    async def wait(self, event: Any) -> None:
        await event.wait()

    async def together(self, works: Sequence[Coroutine[Any, Any, Any]]) -> None:
        import trio

        async def run(work: Coroutine[Any, Any, Any]) -> None:
            await work

        async with trio.open_nursery() as nursery:
            for work in works:
                nursery.start_soon(run, work)


@dataclass
class Meter:
    """What every handler calls first: notes the moment, and says when so many have begun."""

    flavour: Flavour
    starts: list[float] = field(default_factory=list)
    _wanted: int = 0
    _reached: Any = None

    def __call__(self) -> None:
        self.starts.append(perf_counter())
        if self._reached is not None and len(self.starts) >= self._wanted:
            self._reached.set()

    def expect(self, count: int) -> None:
        """`reached` is to wait for this many from the beginning on."""
        self._wanted = count
        self._reached = self.flavour.event()
        if len(self.starts) >= count:
            self._reached.set()

    @property
    def missing(self) -> int:
        """How many of those expected have not begun."""
        return max(self._wanted - len(self.starts), 0)

    async def reached(self) -> None:
        """Wait for as many as were expected."""
        await self.flavour.wait(self._reached)


class Peer(ABC):
    """A contestant. Methods that a measurement does not need are not called."""

    flavour: ClassVar[Flavour]
    packages: ClassVar[tuple[str, ...]]
    """Whose versions are told."""
    bulk: ClassVar[int] = 1
    """How many it publishes at once where bulk is asked for; 1 if it cannot."""
    distributes: ClassVar[bool] = True
    """Its workers can be processes of their own."""

    def __init__(self, spec: Spec, meter: Meter) -> None:
        self.spec = spec
        self.meter = meter
        self.stack = AsyncExitStack()
        """For what must stay open; nothing of it is ever closed."""

    @abstractmethod
    async def open(self) -> None:
        """Make the store ready for publishing; with `spec.tally` it is. No worker runs yet."""

    @abstractmethod
    async def publish(self, orders: Sequence[Fields]) -> None:
        """Publish one, or up to `bulk` of them in the best way there is."""

    @abstractmethod
    async def work(self) -> None:
        """Start `spec.concurrency` workers and return."""

    async def reached(self) -> None:
        """Wait until as many handlers have begun as the meter expects."""
        await self.meter.reached()

    async def idle(self) -> None:
        """Run 100 queues and 10,000 cron entries with nothing to do, and return."""
        raise NotImplementedError(f"{type(self).__name__} has no such thing")


Measure = Callable[[Peer], Awaitable[dict[str, Any]]]


async def publish_all(peer: Peer, orders: Sequence[Fields], *, bulk: bool) -> None:
    step = peer.bulk if bulk else 1
    for start in range(0, len(orders), step):
        await peer.publish(orders[start : start + step])


async def throughput(peer: Peer) -> dict[str, Any]:
    """Tasks per second from the first publish to the last handler, workers running."""
    spec = peer.spec
    orders = [fields(number) for number in range(spec.tasks)]
    await peer.open()
    await peer.work()
    await warm_up(peer)
    peer.meter.starts.clear()
    peer.meter.expect(spec.tasks)
    began = perf_counter()
    await publish_all(peer, orders, bulk=spec.bulk)
    await peer.reached()
    return {"rate": spec.tasks / (max(peer.meter.starts) - began)}


async def warm_up(peer: Peer) -> None:
    """Pass a few tasks through, so that nobody is timed while compiling or connecting."""
    peer.meter.expect(WARM_UP)
    await publish_all(peer, [fields(number) for number in range(WARM_UP)], bulk=peer.spec.bulk)
    await peer.reached()


async def latency(peer: Peer) -> dict[str, Any]:
    """Seconds from calling publish to the handler, one task at a time."""
    await peer.open()
    await peer.work()
    samples: list[float] = []
    for number in range(WARM_UP + peer.spec.tasks):
        order = fields(number)
        await peer.flavour.sleep(GAP_S)
        peer.meter.expect(number + 1)
        sent = perf_counter()
        await peer.publish([order])
        await peer.reached()
        samples.append(peer.meter.starts[number] - sent)
    ranked = sorted(samples[WARM_UP:])
    return {"p50": ranked[len(ranked) // 2], "p99": ranked[int(len(ranked) * 0.99)]}


async def publishing(peer: Peer) -> dict[str, Any]:
    """Tasks per second stored, by one producer or by many, with nobody working."""
    spec = peer.spec
    orders = [fields(number) for number in range(spec.tasks)]
    await peer.open()
    await publish_all(peer, [fields(number) for number in range(WARM_UP)], bulk=spec.bulk)
    share = -(-spec.tasks // spec.producers)
    works = [
        publish_all(peer, orders[start : start + share], bulk=spec.bulk)
        for start in range(0, spec.tasks, share)
    ]  # coroutines: each begins when it is awaited
    began = perf_counter()
    await peer.flavour.together(works)
    return {"rate": spec.tasks / (perf_counter() - began)}


async def growth(peer: Peer) -> dict[str, Any]:
    """Seconds to take and finish one task while so many wait, and from starting the workers to the first."""
    waiting = peer.spec.tasks
    await peer.open()
    for start in range(0, waiting, 10_000):
        orders = [fields(number) for number in range(start, min(start + 10_000, waiting))]
        await publish_all(peer, orders, bulk=True)
    drained = min(DRAINED, waiting)
    peer.meter.expect(drained)
    began = perf_counter()
    await peer.work()
    await peer.reached()
    starts = sorted(peer.meter.starts)[:drained]
    return {"each": (starts[-1] - starts[0]) / (drained - 1), "first": starts[0] - began}


async def memory(peer: Peer) -> dict[str, Any]:
    """Bytes of resident memory per waiting task."""
    await peer.open()
    await publish_all(peer, [fields(number) for number in range(1_000)], bulk=True)
    gc.collect()
    before = resident()
    for start in range(0, peer.spec.tasks, 1_000):
        orders = [fields(number) for number in range(start, start + 1_000)]
        await publish_all(peer, orders, bulk=True)
    gc.collect()
    return {"bytes": (resident() - before) / peer.spec.tasks}


def resident() -> int:
    """Resident bytes of this process."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize()


async def idle(peer: Peer) -> dict[str, Any]:
    """The share of one core that is used with nothing to do."""
    await peer.open()
    await peer.idle()
    await peer.flavour.sleep(SETTLE_S)
    before, began = time.process_time(), perf_counter()
    await peer.flavour.sleep(IDLE_S)
    return {"cpu": (time.process_time() - before) / (perf_counter() - began)}


MEASURES: dict[str, Measure] = {
    "throughput": throughput,
    "latency": latency,
    "publishing": publishing,
    "growth": growth,
    "memory": memory,
    "idle": idle,
}


def measured(peer_class: type[Peer], measure: Measure, spec: Spec, meter: Meter) -> None:
    """Measure, print what was found as one line of JSON, and leave the process."""
    flavour = peer_class.flavour

    async def run() -> None:
        found = await measure(peer_class(spec, meter))
        found["versions"] = {name: version(name) for name in peer_class.packages}
        found["versions"]["Python"] = platform.python_version()
        print(json.dumps(found), flush=True)
        os._exit(0)  # before anything is asked to wind down

    flavour.run(run())
