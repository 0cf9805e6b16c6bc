"""A TCP service with background work: each line it receives becomes a task.

    python examples/graceful_shutdown_tcp.py           # sends itself five lines and SIGTERM
    python examples/graceful_shutdown_tcp.py --serve   # serves until SIGTERM or Ctrl-C

The library installs no signal handler: this file does. On SIGTERM the listener
closes first, open connections finish, then the dispatcher stops claiming, lets
running handlers finish within its grace, and the process exits with status 0.
"""

from __future__ import annotations

import os
import signal
import sys

import trio
from attrs import frozen

from dispatch import Dispatcher, QueueTask, TaskQueueConfig, TaskType, open_dispatcher


@frozen
class Line:
    text: str


LINE = TaskType("lines", "store", Line)


async def store(task: QueueTask[Line]) -> None:
    await trio.sleep(0.2)  # a database, say
    print(f"stored {task.payload.text!r}", flush=True)


async def stop_on_signals(
    stop: trio.Event, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Set `stop` at the first SIGTERM or SIGINT."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            print(f"got {signal.Signals(number).name}, draining", flush=True)
            stop.set()
            return


async def serve(dispatcher: Dispatcher, stop: trio.Event, *, demo: bool) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        rest = b""
        try:
            async for chunk in stream:
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    await dispatcher.publisher.publish(LINE(Line(line.decode("utf-8", "replace"))))
                    await stream.send_all(b"accepted\n")  # only now: the dispatcher has it
        except trio.BrokenResourceError:
            print("a client went away", flush=True)

    async with trio.open_nursery() as connections:

        async def accept(listeners: list[trio.SocketListener]) -> None:
            await trio.serve_listeners(answer, listeners, handler_nursery=connections)

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as accepting:
            accepting.start_soon(accept, listeners)
            port = listeners[0].socket.getsockname()[1]
            print(f"listening on port {port}", flush=True)
            if demo:
                await send_five_lines(port)
                os.kill(os.getpid(), signal.SIGTERM)
            await stop.wait()
            accepting.cancel_scope.cancel()
        # No new connections. Open ones get a moment to finish their request.
        connections.cancel_scope.deadline = trio.current_time() + 1.0


async def send_five_lines(port: int) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        for number in range(1, 6):
            await stream.send_all(f"line {number}\n".encode())
            await stream.receive_some()
    print("five lines accepted", flush=True)


async def main(*, demo: bool) -> None:
    stop = trio.Event()
    # The dispatcher is outside, the server inside: requests end first, then the work.
    async with trio.open_nursery() as nursery:
        await nursery.start(stop_on_signals, stop)
        async with open_dispatcher(grace=10.0) as dispatcher:
            dispatcher.consumer.register_queue("lines", TaskQueueConfig(concurrency=2))
            dispatcher.consumer.register_handler(LINE, store)
            await serve(dispatcher, stop, demo=demo)
            # In memory, what has not run by now would be lost: wait for it, within reason.
            with trio.move_on_after(10.0):
                await dispatcher.drain()
        report = dispatcher.report
        print(f"ended: {len(report.interrupted)} tasks interrupted", flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(lambda: main(demo="--serve" not in sys.argv[1:]))
