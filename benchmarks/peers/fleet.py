"""Worker processes beside the one that publishes: how they are started, and how they tell what has begun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from mmap import mmap
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.peers.drive import Meter, Peer, Spec, publish_all, throughput
from benchmarks.workload import fields

__all__ = ["Tally", "TallyingMeter", "fleet", "work_until_orphaned"]

WORKERS = 2
AT_MOST = 50
"""Rounds of warming up until each of them has got something to do."""
LOOK_S = 0.002
ORPHANED_S = 0.5
"""Between two looks at whether who started this process is still there."""
UNREADY = -1.0


class Tally:
    """How many handlers each process has begun, and when the last one: two numbers each, in a file that all map."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap(file.fileno(), 0)
        self.numbers = memoryview(self._map).cast("d")

    @classmethod
    def made(cls, path: Path, workers: int) -> Tally:
        """A fresh one, in which no worker is ready yet."""
        path.write_bytes(memoryview(bytearray(16 * workers)))
        tally = cls(path)
        for worker in range(workers):
            tally.numbers[2 * worker] = UNREADY
        return tally

    @property
    def each(self) -> list[float]:
        """How many each has begun; negative until it is ready."""
        return self.numbers[::2].tolist()

    def reached(self, count: int) -> bool:
        """Whether all are ready, and have begun so many together."""
        return min(self.each) >= 0 and sum(self.each) >= count

    @property
    def last(self) -> float:
        """When the last of all began, by the clock that processes share."""
        return float(max(self.numbers[1::2].tolist()))

    def note(self, worker: int, begun: int, at: float) -> None:
        """What this worker has begun by now."""
        self.numbers[2 * worker + 1] = at
        self.numbers[2 * worker] = begun


@dataclass
class TallyingMeter(Meter):
    """Of a worker process: others see what it has begun."""

    tally: Tally | None = None
    worker: int = 0

    def __call__(self) -> None:
        super().__call__()
        assert self.tally is not None
        self.tally.note(self.worker, len(self.starts), self.starts[-1])

    def ready(self) -> None:
        """Nothing has begun, and from now on something may."""
        assert self.tally is not None
        if not self.starts:
            self.tally.note(self.worker, 0, 0.0)


async def work_until_orphaned(peer: Peer) -> dict[str, Any]:
    """The life of a worker process: it ends with whoever started it."""
    parent = os.getppid()
    await peer.open()
    await peer.work()
    assert isinstance(peer.meter, TallyingMeter)
    peer.meter.ready()
    while os.getppid() == parent:
        await peer.flavour.sleep(ORPHANED_S)
    return {}


async def fleet(peer: Peer) -> dict[str, Any]:
    """Tasks per second from the first publish, here, to the last handler in one of two other processes."""
    if not peer.distributes:
        return await throughput(peer)
    spec = peer.spec
    orders = [fields(number) for number in range(spec.tasks)]
    await peer.open()
    with tempfile.TemporaryDirectory() as folder:
        tally = Tally.made(Path(folder, "tally"), WORKERS)
        for number in range(WORKERS):
            start(replace(spec, measure="worker", tally=f"{folder}/tally", worker=number))
        await until(peer, partial(tally.reached, 0))
        published = 0
        for _ in range(AT_MOST):  # nobody is timed while compiling or connecting
            some = [fields(number) for number in range(2 * spec.concurrency)]
            await publish_all(peer, some, bulk=spec.bulk)
            published += len(some)
            await until(peer, partial(tally.reached, published))
            if min(tally.each) > 0:
                break
        else:
            raise RuntimeError(f"of {WORKERS} workers only one got anything in {AT_MOST} rounds")
        began = perf_counter()
        await publish_all(peer, orders, bulk=spec.bulk)
        await until(peer, partial(tally.reached, published + spec.tasks))
        return {"rate": spec.tasks / (tally.last - began)}


async def until(peer: Peer, done: Callable[[], bool]) -> None:
    """Wait for what other processes do, who ring no bell."""
    while not done():
        await peer.flavour.sleep(LOOK_S)


def start(spec: Spec) -> None:
    """A worker process of the driver that this one runs."""
    command: Sequence[str] = [sys.executable, "-m", "benchmarks.peers.run", sys.argv[1], json.dumps(asdict(spec))]
    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # noqa: S603 - our own
