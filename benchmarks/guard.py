"""Whether a change made the dispatcher do much more work per task: counts, never times.

    python benchmarks/guard.py [--tasks 2000]

Calls are those of Python and C functions on trio's thread, as `sys.setprofile`
sees them; statements and commits are those of SQLite's one writing connection.
They hardly depend on the machine or its load, so that CI can hold them to a
bound: what was counted when the bound was last set, and a quarter on top; 15 % on
calls, which hardly vary. Who makes the dispatcher do less lowers the bound with it.

Prints a line per figure; exits with 1 where one is beyond its bound.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from types import FrameType

import trio
from memory import ORDER, Order, channel_throughput, dispatcher_throughput, order

from dispatch import QueueTask, TaskQueueConfig, jsontext, open_dispatcher
from dispatch.storage.sqlite import SqliteStorage

MARGIN = {"calls": 1.15, "statements": 1.25, "commits": 1.25}
COUNTED = {
    "memory, one by one: calls": 215.5,
    "memory, 100 at a time: calls": 181.5,
    "SQLite, 100 at a time: calls": 154.0,
    "SQLite, 100 at a time: statements": 2.17,
    "SQLite, 100 at a time: commits": 0.022,
    "SQLite, one by one: commits": 1.04,
}
"""Per task, with 2,000 tasks: what each figure was when its bound was last set."""
BULK = 100


def calls(run: Callable[[int], Awaitable[object]], tasks: int) -> float:
    """Calls per task on trio's thread."""
    count = 0

    def see(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        if event in {"call", "c_call"}:
            count += 1

    async def counted() -> None:
        await run(100)  # what is learned once is learned
        sys.setprofile(see)
        try:
            await run(tasks)
        finally:
            sys.setprofile(None)

    trio.run(counted)
    return count / tasks


async def on_sqlite(folder: Path, tasks: int, *, bulk: int, said: Counter[str] | None = None) -> None:
    """Publish the tasks, then run them, 100 at a time; what the writer executes is counted into `said`."""
    left = tasks
    done = trio.Event()

    async def ship(task: QueueTask[Order]) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    with tempfile.TemporaryDirectory(dir=folder) as own:
        async with SqliteStorage(Path(own) / "guard.db", synchronous="normal") as storage:
            if said is not None:
                # An attribute of its own making: no other tells what the one writer does.
                storage._ledger.db.set_trace_callback(lambda text: said.update([text.split(None, 1)[0]]))
            async with open_dispatcher(storage, observers=()) as dispatcher:
                dispatcher.consumer.register_queue("orders", TaskQueueConfig(concurrency=100, buffer_size=tasks))
                await dispatcher.control.pause_queue("orders")
                for start in range(0, tasks, bulk):
                    batch = [ORDER(order(number)) for number in range(start, min(tasks, start + bulk))]
                    if bulk == 1:
                        await dispatcher.publisher.publish(batch[0])
                    else:
                        await dispatcher.publisher.publish_many(batch)
                dispatcher.consumer.register_handler(ORDER, ship)
                await dispatcher.control.resume_queue("orders")
                await done.wait()
                await dispatcher.drain()


def statements(folder: Path, tasks: int, bulk: int) -> Counter[str]:
    said: Counter[str] = Counter()
    trio.run(partial(on_sqlite, folder, tasks, bulk=bulk, said=said))
    return said


def count(tasks: int, folder: Path) -> dict[str, float]:
    many, single = statements(folder, tasks, BULK), statements(folder, tasks // 10, 1)
    return {
        "memory, one by one: calls": calls(dispatcher_throughput, tasks),
        "memory, 100 at a time: calls": calls(partial(dispatcher_throughput, bulk=BULK), tasks),
        "SQLite, 100 at a time: calls": calls(partial(on_sqlite, folder, bulk=BULK), tasks),
        "SQLite, 100 at a time: statements": many.total() / tasks,
        "SQLite, 100 at a time: commits": many["COMMIT"] / tasks,
        "SQLite, one by one: commits": single["COMMIT"] / (tasks // 10),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=2_000)
    tasks = parser.parse_args().tasks
    jsontext.fast = None  # what is counted must not depend on what is installed
    bare = calls(channel_throughput, tasks)
    print(f"{'bare trio channel: calls':<36} {bare:>9.3f} per task")
    beyond = 0
    with tempfile.TemporaryDirectory(prefix="dispatch-guard-") as folder:
        for name, found in count(tasks, Path(folder)).items():
            bound = COUNTED[name] * MARGIN[name.rpartition(": ")[2]]
            verdict = "" if found <= bound else "  BEYOND ITS BOUND"
            beyond += found > bound
            print(f"{name:<36} {found:>9.3f} per task, at most {bound:.3f}{verdict}")
    if beyond:
        print("If the work is worth its price, say so in the commit and raise COUNTED in benchmarks/guard.py.")
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(main())
