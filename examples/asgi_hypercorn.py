"""An ASGI app beside the dispatcher, in one process and one `trio.run`.

    python examples/asgi_hypercorn.py           # sends itself requests and shuts down
    python examples/asgi_hypercorn.py --serve   # serves on port 8000 until SIGTERM or Ctrl-C

Needs hypercorn. `POST /orders/<n>` publishes, `GET /orders` counts. Any ASGI
framework that runs on trio takes the place of `app`.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio
from attrs import frozen
from hypercorn.config import Config
from hypercorn.trio import serve

from dispatch import (
    Dispatcher,
    QueueFullError,
    QueueTask,
    TaskQueueConfig,
    TaskType,
    open_dispatcher,
)

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


@frozen
class Order:
    number: int


SHIP = TaskType("orders", "ship", Order)


async def ship(task: QueueTask[Order]) -> None:
    await trio.sleep(0.1)
    print(f"shipped order {task.payload.number}", flush=True)


async def app(dispatcher: Dispatcher, scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})
        return
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    path = scope["path"].strip("/").split("/")
    status: int
    body: object
    if scope["method"] == "POST" and path[0] == "orders" and path[-1].isdecimal():
        try:
            # id: a client that sends its request again gets the same task, not a second one.
            task = await dispatcher.publisher.publish(SHIP(Order(int(path[-1])), id=f"order-{path[-1]}"))
            status, body = 202, {"task": task.id, "status": task.status.value}
        except QueueFullError:
            status, body = 503, {"error": "busy, try again"}
    elif scope["method"] == "GET" and path == ["orders"]:
        counts = await dispatcher.control.count(by=("status",))
        status, body = 200, {name: count for (name,), count in sorted(counts.items())}
    else:
        status, body = 404, {"error": "no such page"}
    data = json.dumps(body).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(data)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


async def stop_on_signals(
    stop: trio.Event, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            print(f"got {signal.Signals(number).name}, draining", flush=True)
            stop.set()
            return


async def main(*, demo: bool) -> None:
    stop = trio.Event()
    config = Config()
    config.bind = ["127.0.0.1:0" if demo else "127.0.0.1:8000"]
    config.loglevel = "WARNING"
    async with trio.open_nursery() as nursery:
        await nursery.start(stop_on_signals, stop)
        # The dispatcher is outside, the server inside: requests end first, then the work.
        async with open_dispatcher(grace=10.0) as dispatcher:
            dispatcher.consumer.register_queue("orders", TaskQueueConfig(concurrency=4, overflow="raise"))
            dispatcher.consumer.register_handler(SHIP, ship)
            async with trio.open_nursery() as servers:
                start = partial(serve, partial(app, dispatcher), config, shutdown_trigger=stop.wait)
                urls = await servers.start(start)
                print(f"serving on {urls[0]}", flush=True)
                if demo:
                    await make_requests(int(urls[0].rpartition(":")[2]))
                    stop.set()
            with trio.move_on_after(10.0):
                await dispatcher.drain()
        print(f"ended: {len(dispatcher.report.interrupted)} tasks interrupted", flush=True)
        nursery.cancel_scope.cancel()


async def make_requests(port: int) -> None:
    for request in ("POST /orders/1", "POST /orders/2", "POST /orders/2", "GET /orders", "GET /"):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(f"{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
            answer = b"".join([chunk async for chunk in stream]).decode()
        head, _, body = answer.partition("\r\n\r\n")
        print(f"{request} -> {head.split()[1]} {body}", flush=True)


if __name__ == "__main__":
    trio.run(lambda: main(demo="--serve" not in sys.argv[1:]))
