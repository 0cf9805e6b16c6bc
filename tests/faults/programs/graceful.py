"""A3: a worker as a service writes it, which is asked to end by a signal while its handlers run.

The first SIGTERM or SIGINT begins the graceful end, a second one cuts it short.
"""

from __future__ import annotations

import signal
from typing import Any

import trio

from dispatch import QueueTask, Run, TaskQueueConfig, open_dispatcher
from faults.programs.scenario import JOB, Job, arguments

SHORT, LONG, STUBBORN = 10, 8, 2
GRACE_S = 2.0


async def handler(task: QueueTask[Job], run: Run) -> None:
    print("started", flush=True)
    if task.payload.n < SHORT:
        await trio.sleep(1.0)
    elif task.payload.n < SHORT + LONG:
        await trio.sleep(60.0)
    else:
        for _ in range(6):
            try:
                await trio.sleep(60.0)
            except trio.Cancelled:  # five times, and then it returns as if all were well
                pass


async def stop_on_signals(stop: trio.Event, scope: trio.CancelScope, *, task_status: Any) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        asked = 0
        async for _ in signals:
            asked += 1
            if asked == 1:
                stop.set()
            else:
                scope.cancel()


async def serve(url: str, *, publish: bool) -> None:
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        await nursery.start(stop_on_signals, stop, scope)
        print("ready", flush=True)
        with scope:
            async with open_dispatcher(url, grace=GRACE_S, lease=30.0, observers=()) as dispatcher:
                dispatcher.consumer.register_queue("q", TaskQueueConfig(concurrency=20, max_retry=3))
                dispatcher.consumer.register_handler(JOB, handler)
                if publish:
                    tasks = [JOB(Job(n), id=f"t{n}") for n in range(SHORT + LONG + STUBBORN)]
                    await dispatcher.publisher.publish_many(tasks)
                await stop.wait()
        nursery.cancel_scope.cancel()


def main() -> None:
    given = arguments(publish=1)
    trio.run(lambda: serve(f"sqlite:///{given.folder}/jobs.db", publish=bool(given.publish)))


if __name__ == "__main__":
    main()
