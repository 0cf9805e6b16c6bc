"""The in-memory dispatcher beside a bare trio memory channel, in one process run.

    python benchmarks/memory.py [--tasks 20000] [--rounds 5] [--profile]

Both sides hand the same payloads to ten workers that do nothing. The channel
hands over the object itself: it is the limit of the runtime, without codec,
retries, timeouts, leases or a record of what happened. The dispatcher does all
of its work: checks and encodes each payload, stores the task, claims, decodes,
runs the handler in its scope and context, and settles. Where orjson is installed
it runs both with it and without.

Rounds alternate, so that a drifting machine hits both alike; the medians of
jobs per second and of their ratio are printed, then publish-to-start latency on
an idle queue, one task at a time, as medians of as many rounds; between the two that
of the channel with nothing of the dispatcher but its codec and the context of an attempt.
"""

from __future__ import annotations

import argparse
import cProfile
import platform
import pstats
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from functools import partial
from importlib.metadata import version
from statistics import median, quantiles
from time import perf_counter
from typing import TypeVar

import trio
from attrs import frozen

from dispatch import QueueTask, TaskQueueConfig, TaskType, jsontext, open_dispatcher
from dispatch.codec import Codec
from dispatch.execution import drive

WORKERS = 10
LATENCY_SAMPLES = 500
BULK = 100


@frozen
class Order:
    """Six fields, as a service would have them."""

    id: int
    customer: str
    total: float
    express: bool
    lines: list[str]
    note: str | None


T = TypeVar("T")
Throughput = Callable[[int], Awaitable[float]]
Latency = Callable[[], Awaitable[list[float]]]
ORDER = TaskType("orders", "ship", Order)


def order(number: int) -> Order:
    return Order(number, "ada@example.org", 12.5, True, ["book", "pen"], None)


async def channel_throughput(tasks: int) -> float:
    """Jobs per second through a bare memory channel."""
    payloads = [order(number) for number in range(tasks)]
    done = 0
    send, receive = trio.open_memory_channel[Order](128)

    async def work() -> None:
        nonlocal done
        async for payload in receive:
            done += payload.id >= 0

    async with trio.open_nursery() as nursery:
        for _ in range(WORKERS):
            nursery.start_soon(work)
        began = perf_counter()
        async with send:
            for payload in payloads:
                await send.send(payload)
    assert done == tasks
    return tasks / (perf_counter() - began)


async def dispatcher_throughput(tasks: int, bulk: int = 1) -> float:
    """Jobs per second through the dispatcher, published one by one or `bulk` at a time."""
    payloads = [order(number) for number in range(tasks)]
    done = 0
    finished = trio.Event()

    async def ship(task: QueueTask[Order]) -> None:
        nonlocal done
        done += 1
        if done == tasks:
            finished.set()

    async with open_dispatcher() as dispatcher:
        dispatcher.consumer.register_queue("orders", TaskQueueConfig(concurrency=WORKERS))
        dispatcher.consumer.register_handler(ORDER, ship)
        began = perf_counter()
        if bulk == 1:
            for payload in payloads:
                await dispatcher.publisher.publish(ORDER(payload))
        else:
            for start in range(0, tasks, bulk):
                batch = [ORDER(payload) for payload in payloads[start : start + bulk]]
                await dispatcher.publisher.publish_many(batch)
        await finished.wait()
        await dispatcher.drain()
        elapsed = perf_counter() - began
    assert done == tasks
    return tasks / elapsed


async def channel_latency() -> list[float]:
    """Seconds from sending to a parked worker to its start."""
    starts: list[float] = []
    send, receive = trio.open_memory_channel[Order](128)

    async def work() -> None:
        async for _ in receive:
            starts.append(perf_counter())

    return await hand_over(send, lambda payload: payload, work, starts)


async def codec_latency() -> list[float]:
    """Seconds from encoding a payload to the start of the handler, by the channel and the codec alone."""
    starts: list[float] = []
    send, receive = trio.open_memory_channel[bytes](128)
    codec, base = Codec(), Context()

    async def ship(payload: Order) -> None:
        starts.append(perf_counter())

    async def work() -> None:
        async for data in receive:
            await drive(ship(codec.decode(data, Order)), base.copy(), "ship")

    return await hand_over(send, lambda payload: codec.encode(payload, Order, "payload")[0], work, starts)


async def hand_over(
    send: trio.MemorySendChannel[T],
    made: Callable[[Order], T],
    work: Callable[[], Awaitable[None]],
    starts: list[float],
) -> list[float]:
    """Send one payload at a time to parked workers; the seconds from before it is made to each of `starts`."""
    sent: list[float] = []
    async with trio.open_nursery() as nursery:
        for _ in range(WORKERS):
            nursery.start_soon(work)
        for number in range(LATENCY_SAMPLES):
            payload = order(number)
            await trio.sleep(0.001)
            sent.append(perf_counter())
            await send.send(made(payload))
        await trio.sleep(0.01)
        await send.aclose()
    return [start - at for start, at in zip(starts, sent, strict=True)]


async def dispatcher_latency() -> list[float]:
    """Seconds from calling publish to the start of the handler, on an idle queue."""
    starts: list[float] = []

    async def ship(task: QueueTask[Order]) -> None:
        starts.append(perf_counter())

    sent: list[float] = []
    async with open_dispatcher() as dispatcher:
        dispatcher.consumer.register_queue("orders", TaskQueueConfig(concurrency=WORKERS))
        dispatcher.consumer.register_handler(ORDER, ship)
        for number in range(LATENCY_SAMPLES):
            task = ORDER(order(number))
            await trio.sleep(0.001)
            sent.append(perf_counter())
            await dispatcher.publisher.publish(task)
        await dispatcher.drain()
    return [start - at for start, at in zip(starts, sent, strict=True)]


@contextmanager
def json_by(fast: jsontext.Fast | None) -> Iterator[None]:
    """JSON by orjson, or by the standard library."""
    before, jsontext.fast = jsontext.fast, fast
    try:
        yield
    finally:
        jsontext.fast = before


def percentiles(runs: list[float]) -> tuple[float, float]:
    """p50 and p99."""
    cuts = quantiles(runs, n=100)
    return cuts[49], cuts[98]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="profile the dispatcher instead")
    options = parser.parse_args()

    if options.profile:
        profile = cProfile.Profile()
        profile.runcall(trio.run, dispatcher_throughput, options.tasks)
        pstats.Stats(profile).sort_stats("tottime").print_stats(35)
        return

    print(
        f"Python {platform.python_version()}, trio {version('trio')}, attrs {version('attrs')}, "
        f"cattrs {version('cattrs')}, {platform.machine()}; {options.tasks} tasks, {WORKERS} workers, "
        f"median of {options.rounds} rounds"
    )
    in_bulk = partial(dispatcher_throughput, bulk=BULK)
    sides: dict[str, tuple[Throughput, jsontext.Fast | None]] = {
        "channel": (channel_throughput, None),
        "one by one": (dispatcher_throughput, None),
        "in bulk": (in_bulk, None),
    }
    if jsontext.fast is not None:
        sides["one by one, orjson"] = dispatcher_throughput, jsontext.fast
        sides["in bulk, orjson"] = in_bulk, jsontext.fast
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, (run, fast) in sides.items():
            with json_by(fast):
                rates[name].append(trio.run(run, options.tasks))
    for name, found in rates.items():
        ratio = median(ours / bare for ours, bare in zip(found, rates["channel"], strict=True))
        print(f"{name:<20} {median(found):>10,.0f} jobs/s {ratio:>8.3f} of the bare channel")
    idle: dict[str, tuple[Latency, jsontext.Fast | None]] = {
        "channel": (channel_latency, None),
        "codec alone": (codec_latency, None),
        "dispatcher": (dispatcher_latency, None),
    }
    if jsontext.fast is not None:
        idle["codec alone, orjson"] = codec_latency, jsontext.fast
        idle["dispatcher, orjson"] = dispatcher_latency, jsontext.fast
    waits: dict[str, list[tuple[float, float]]] = {name: [] for name in idle}
    for _ in range(options.rounds):
        for name, (look, fast) in idle.items():
            with json_by(fast):
                waits[name].append(percentiles(trio.run(look)))
    for name, measured in waits.items():
        p50, p99 = (median(each) for each in zip(*measured, strict=True))
        ratio = median(ours[0] / bare[0] for ours, bare in zip(measured, waits["channel"], strict=True))
        print(
            f"{name:<20} publish to start, idle: p50 {p50 * 1e3:.3f} ms, p99 {p99 * 1e3:.3f} ms; "
            f"p50 {ratio:.2f} times the channel's"
        )


if __name__ == "__main__":
    sys.exit(main())
