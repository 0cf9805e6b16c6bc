"""Somebody who visits the dashboard: an ASGI client in process, and a place full of tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode, urlsplit

import attrs
import trio
from attrs import frozen

from dispatch import MemoryStorage, TaskType
from dispatch.records import NewTask, Transition, TransitionKind
from dispatch.storage.protocol import Change, QueueRecord, Storage, Want
from dispatch.storage.query import Ids
from dispatch.web import create_app


@frozen
class Mail:
    to: str
    password: str = attrs.field(default="hunter2", metadata={"secret": True})


WELCOME = TaskType("email", "welcome", Mail)

HERE = (("host", "localhost"),)


@frozen
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def data(self) -> Any:
        return json.loads(self.body)


class Visitor:
    """Asks a dashboard for pages, from this machine unless told otherwise."""

    def __init__(
        self,
        app: Any,
        *,
        address: str | None = "127.0.0.1",
        headers: Sequence[tuple[str, str]] = HERE,
        root: str = "",
    ) -> None:
        self.app = app
        self.address = address
        self.headers = tuple(headers)
        self.root = root

    async def get(self, url: str, *headers: tuple[str, str], method: str = "GET") -> Answer:
        return await self.request(method, url, b"", headers)

    async def data(self, url: str) -> Any:
        answer = await self.get(url)
        assert answer.status == 200, answer.text
        assert answer.headers["content-type"] == "application/json"
        return answer.data

    async def post(
        self, url: str, fields: Mapping[str, str | Sequence[str]], *headers: tuple[str, str]
    ) -> Answer:
        body = urlencode(fields, doseq=True).encode()
        kind = ("content-type", "application/x-www-form-urlencoded")
        return await self.request("POST", url, body, (kind, *headers))

    async def request(
        self, method: str, url: str, body: bytes, headers: Sequence[tuple[str, str]]
    ) -> Answer:
        split = urlsplit(url)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": f"{self.root}/{split.path.removeprefix('/')}",
            "root_path": self.root,
            "query_string": split.query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in (*self.headers, *headers)],
            "client": None if self.address is None else (self.address, 50_000),
            "server": ("localhost", 80),
        }
        sent: list[dict[str, Any]] = []
        given = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            await trio.lowlevel.checkpoint()
            return given.pop(0) if given else {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            await trio.lowlevel.checkpoint()
            sent.append(message)

        with trio.fail_after(30.0):
            await self.app(scope, receive, send)
        start = sent[0]
        return Answer(
            start["status"],
            {name.decode().lower(): value.decode() for name, value in start["headers"]},
            b"".join(message.get("body", b"") for message in sent[1:]),
        )


async def settle(storage: Storage, task_id: str, kind: TransitionKind, **fields: Any) -> None:
    """Run one pending task to this end."""
    (claim,) = (
        await storage.claim([Want(queue="email", limit=1, ids=frozenset({task_id}))], worker="w-1", lease=30.0)
    ).claims
    await storage.settle([Transition(task_id, claim.epoch, kind, **fields)])


async def furnished(storage: Storage | None = None) -> Storage:
    """A storage with two queues, and in `email` one task of every kind, named for it."""
    storage = storage if storage is not None else MemoryStorage()
    await storage.declare([QueueRecord(name="email"), QueueRecord(name="reports", keyed=True)])
    payload = b'{"to":"ada@example.org","password":"hunter2"}'

    async def store(name: str, **fields: Any) -> None:
        new = NewTask(id=name, queue="email", type="welcome", payload=payload, **fields)
        await storage.enqueue([new])

    await store("waiting", tags=("eu",), key="ada", headers={"authorization": "Bearer abcdef123456"})
    await store("later", delay=3_600.0)
    await store("parked")
    await storage.alter(Ids("parked"), Change(action="hold"))
    await store("done")
    await settle(storage, "done", TransitionKind.DONE, result=b'{"number":"R-1"}')
    await store("dead")
    await settle(
        storage,
        "dead",
        TransitionKind.FAILED,
        error="ConnectionError: smtp://bob:geheim@mail refused, password=geheim",
        traceback="Traceback (most recent call last):\n  File x, line 1\nConnectionError",
    )
    await store("again", max_retry=3)
    await settle(storage, "again", TransitionKind.FAILED, error="OSError: no", retry_in=600.0)
    await store("running")
    claimed = await storage.claim(
        [Want(queue="email", limit=1, ids=frozenset({"running"}))], worker="w-1", lease=3_600.0
    )
    await storage.progress(("running", claimed.claims[0].epoch), b'{"fraction": 0.25, "message": "row 3"}')
    return storage


async def visit(**options: Any) -> tuple[Visitor, Storage]:
    """A visitor from this machine to a furnished dashboard."""
    storage = await furnished()
    return Visitor(create_app(storage, **options)), storage


async def status_of(storage: Storage, task_id: str) -> str | None:
    page = await storage.find(Ids(task_id))
    return page.records[0].status.value if page.records else None
