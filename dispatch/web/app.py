"""The dashboard as an ASGI app: requests to pages and actions, and back to HTML or JSON.

The only file that imports Starlette and Jinja. Theory of operation. Every page
lies at the top of wherever the app is mounted, and every link in it is relative,
so it works at any mount path and behind any prefix that a proxy strips, without
being told. A page is data from `pages`, drawn by a template or, under the same
name with `.json`, given out as it is. A form is posted to the page it stands on
and answered by a redirect to where its effect can be seen.
"""

from __future__ import annotations

import inspect
import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import cache
from hashlib import blake2b
from importlib.resources import files
from typing import Any, Final, Literal, cast
from urllib.parse import parse_qsl, quote, urlencode

import trio

from dispatch.dispatcher import Dispatcher
from dispatch.errors import (
    DispatchError,
    InvalidConfigError,
    LookupFailedError,
    MissingExtraError,
    StorageError,
)
from dispatch.failures import printable
from dispatch.storage.protocol import Storage
from dispatch.web import charts, guard, pages
from dispatch.web.actions import ACTIONS, Ask, Done, Fields, preview, tags_text
from dispatch.web.desk import Desk, View
from dispatch.web.filters import STATUSES, TaskFilter, misread, whole
from dispatch.web.shown import SECRET_WORDS, Redactor, as_json, seconds, visible

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send  # noqa: TC002 - in this file, and here
except ImportError as _missing:
    raise MissingExtraError(
        "the dashboard needs Starlette and Jinja: pip install 'trio-dispatch[web]'"
    ) from _missing

__all__ = ["Authorize", "Right", "create_app"]

Right = Literal["read", "act"]
"""To look at pages; to change something."""

Authorize = Callable[[Request, Right], bool | Response | Awaitable[bool | Response]]
"""Whether this request may do that; a Response is sent instead of a refusal, a login for instance."""

Metrics = Callable[[], Awaitable[bytes]]

log: Final = logging.getLogger("dispatch.web")

IDS_SAID: Final = 20
"""Of the tasks that a form changed, so many are named in the log."""
NAMED: Final = ("entry", "queue", "name", "id")
"""The fields that say what a form without tasks is about."""
BODY_LIMIT: Final = 2_000_000
FIELDS_LIMIT: Final = 2_000
QUERY_LIMIT: Final = 8_192
POLL_S: Final[Mapping[str, float]] = {
    "overview": 3.0, "queues": 3.0, "tasks": 3.0, "task": 2.0, "cron": 10.0, "workers": 10.0,
}  # fmt: skip
POLL_SHARE: Final = 50
"""A page that took so long is asked for again after at least so many times that."""
POLL_MOST_S: Final = 300.0

STATIC: Final[Mapping[str, str]] = {
    "app.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "mark.svg": "image/svg+xml",
}

SAID: Final[Mapping[str, str]] = {
    "rerun": "{n} to run again",
    "cancel": "{n} cancelled, or asked to stop",
    "hold": "{n} held",
    "resume": "{n} resumed",
    "delete": "{n} deleted",
    "now": "{n} due now",
    "save": "{n} changed",
    "copy": "Published as a new task: this one",
    "queue-pause": "Queue paused, in every process",
    "queue-resume": "Queue resumed",
    "queue-concurrency": "Concurrency changed, in every process",
    "queue-remove": "Queue removed",
    "cron-add": "Cron task added",
    "cron-change": "Cron task changed",
    "cron-run": "Published just now, beside the plan",
    "cron-start": "Started just now in this process, beside the plan",
    "cron-pause": "Cron task paused",
    "cron-resume": "Cron task resumed, from its next moment on",
    "cron-delete": "Cron task deleted",
    "prune": "{n} deleted",
}
"""What a redirect may make the next page say; nothing else can be put on it from outside."""

NOTICE: Final = frozenset({"did", "n", "more"})
"""The fields of a query string that say so."""


def create_app(
    over: Storage | Dispatcher,
    *,
    authorize: Authorize | None = None,
    hosts: Iterable[str] | None = None,
    title: str = "dispatch",
    secrets: Iterable[str] = SECRET_WORDS,
    metrics: Metrics | None = None,
) -> ASGIApp:
    """A dashboard over a storage, or beside a running dispatcher; an ASGI app for trio.

    Mount it anywhere, or serve it alone with hypercorn's trio worker. Over a
    dispatcher it knows the task types, hears every event, and shows what runs
    here; over a storage it reads what is stored.

    - `authorize(request, right)`, sync or async, says whether a request may
      `"read"` or `"act"`: True, False, or a Starlette Response to send instead.
      Without it only this machine is answered, and may do both.
    - `hosts`: the names, without a port, that it answers to. Without
      `authorize` the default is `localhost`, `127.0.0.1` and `[::1]`, else any.
    - `title` stands in the corner, and tells several dashboards apart.
    - `secrets`: what stands under a name with one of these words in it is `***`.
    - `metrics`: an async function whose bytes `GET metrics` answers with.

    Raises InvalidConfigError (1012).
    """
    if not isinstance(over, Storage | Dispatcher):
        raise InvalidConfigError(
            f"create_app: expected a Storage or a Dispatcher, got {type(over).__name__}"
        )
    if isinstance(hosts, str):
        raise InvalidConfigError(f"create_app: hosts is a list of names, got {hosts!r}")
    names = None if hosts is None else frozenset(host.lower() for host in hosts)
    if names is None and authorize is None:
        names = frozenset(guard.LOOPBACK_NAMES)
    desk = Desk(over, Redactor(secrets))
    return _Dashboard(desk, authorize, names, title[:60], metrics)


class _Refusal(Exception):  # noqa: N818 - an answer, not an error of ours
    """A request is answered with this instead."""

    def __init__(self, response: Response) -> None:
        self.response = response


class _Dashboard:
    """The ASGI app itself."""

    def __init__(
        self,
        desk: Desk,
        authorize: Authorize | None,
        hosts: frozenset[str] | None,
        title: str,
        metrics: Metrics | None,
    ) -> None:
        self._desk = desk
        self._authorize = authorize
        self._hosts = hosts
        self._metrics = metrics
        folder = files("dispatch.web") / "static"
        self._static = {name: (folder / name).read_bytes() for name in STATIC}
        self._title = title
        self._templates = _templates()  # now, so that no request waits for their compilation
        self._assets = blake2b(b"".join(self._static.values()), digest_size=6).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not trio.lowlevel.in_trio_run():
            raise InvalidConfigError(
                "the dashboard runs on trio: serve it with hypercorn.trio.serve, "
                "or hypercorn --worker-class trio"
            )
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
            return
        if scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except _Refusal as exc:
            response = exc.response
        except ClientDisconnect:
            return
        for name, value in guard.HEADERS.items():
            response.headers[name] = value
        if request.method == "HEAD":
            response.body = b""
        await response(scope, receive, send)

    # -- who may ----------------------------------------------------------------

    async def _answer(self, request: Request) -> Response:
        headers = request.headers
        refused = guard.wrong_host(headers.getlist("host"), self._hosts)
        if refused is None and self._authorize is None:
            client = request.client
            refused = guard.from_elsewhere(client.host if client is not None else None, headers.keys())
        if refused is not None:
            return _plain(403, refused)
        if len(request.scope.get("query_string", b"")) > QUERY_LIMIT:
            return _plain(414, "the query string is too long")
        await self._demand(request, "read")
        if request.method in ("GET", "HEAD"):
            return await self._get(request)
        if request.method != "POST":
            return _plain(405, "only GET, HEAD and POST mean anything here", allow="GET, HEAD, POST")
        refused = guard.forged(
            headers.getlist("sec-fetch-site"), headers.getlist("origin"), headers.getlist("host")
        )
        if refused is not None:
            return _plain(403, refused)
        await self._demand(request, "act")
        return await self._post(request)

    async def _demand(self, request: Request, right: Right) -> None:
        found = await self._may(request, right)
        if isinstance(found, Response):
            raise _Refusal(found)
        if not found:
            what = {"read": "look at this dashboard", "act": "change anything here"}[right]
            raise _Refusal(_plain(403, f"you may not {what}"))

    async def _may(self, request: Request, right: Right) -> bool | Response:
        if self._authorize is None:
            return True
        found = self._authorize(request, right)
        return await found if inspect.isawaitable(found) else found

    # -- pages --------------------------------------------------------------------

    async def _get(self, request: Request) -> Response:
        name, as_data = _page_name(request.scope)
        if name is None:
            # Links are relative, so the page needs its slash; only its last step is sure.
            last = request.scope["path"].rpartition("/")[2]
            return Response(status_code=307, headers={"location": f"./{quote(last)}/"})
        if name in STATIC and not as_data:
            return self._asset(request, name)
        if name == "metrics" and self._metrics is not None:
            body = await self._metrics()
            return Response(body, headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"})
        if name not in POLL_S:
            return _plain(404, "there is no such page")
        began = trio.current_time()
        try:
            view = await self._view(name, request.query_params)
        except DispatchError as exc:
            return self._failed(exc, as_data=as_data)
        took = trio.current_time() - began
        act = (await self._may(request, "act")) is True
        body = _json(view) if as_data else self._draw(name, view, act=act, notice=_notice(request))
        response = _page(request, body, as_data=as_data)
        wait = _poll(name, view)
        if wait:
            wait = min(max(wait, took * POLL_SHARE), POLL_MOST_S)
        response.headers["poll-after"] = f"{wait:.3g}"
        response.headers["server-timing"] = f"storage;dur={took * 1e3:.1f}"
        return response

    async def _view(self, name: str, query: Mapping[str, str]) -> View:
        desk = self._desk
        match name:
            case "overview":
                return await pages.overview(desk)
            case "queues":
                return await pages.queues(desk)
            case "tasks":
                asked = {field: each for field, each in query.items() if field not in NOTICE}
                return await pages.tasks(desk, TaskFilter.parse(asked), misread(asked))
            case "task":
                return await pages.task(desk, query.get("id", "")[:500])
            case "cron":
                return await pages.cron(
                    desk, name=query.get("name", "")[:128], after=query.get("after", "")[:128]
                )
            case _:
                return await pages.workers(desk)

    def _draw(self, name: str, view: View, *, act: bool, notice: str = "", **more: Any) -> bytes:
        given: dict[str, Any] = {"form": {}, "problem": None, "preview": None, **view, **more}
        text = self._templates.get_template(f"{name}.html").render(
            given,
            title=self._title,
            assets=self._assets,
            page=name,
            act=act,
            notice=notice,
            poll=_poll(name, view),
        )
        return text.encode("utf-8", "backslashreplace")

    def _asset(self, request: Request, name: str) -> Response:
        response = _page(request, self._static[name], as_data=False)
        response.headers["content-type"] = STATIC[name]
        if "v" in request.query_params:
            response.headers["cache-control"] = "private, max-age=31536000, immutable"
        return response

    # -- actions ------------------------------------------------------------------

    async def _post(self, request: Request) -> Response:
        name, as_data = _page_name(request.scope)
        action = ACTIONS.get(name or "")
        if name is None or action is None:
            return _plain(404, "there is no such page")
        fields = await _form(request)
        if name == "cron" and fields.get("action") == ["preview"]:
            found = await preview(self._desk, fields)
            if as_data:
                return _page(request, _json(found), as_data=True)
            view = await self._view("cron", {"name": _first(fields, "entry")})
            return _page(request, self._draw("cron", view, act=True, form=_flat(fields), preview=found), as_data=False)
        try:
            done = await action(self._desk, fields)
        except DispatchError as exc:
            return await self._refused(name, fields, exc, as_data=as_data)
        finally:
            self._desk.forget()
        if isinstance(done, Done):
            _say_done(request, done, fields)
        if as_data:
            return _page(request, _json(_outcome(done)), as_data=True)
        if isinstance(done, Ask):
            kept = [(key, each) for key, given in fields.items() for each in given if key not in ("sure", "until")]
            body = self._draw("confirm", {}, act=True, ask=done, kept=kept, target=name)
            return _page(request, body, as_data=False)
        said = urlencode({"did": done.what, "n": done.n} | ({"more": 1} if done.more else {}))
        query = "&".join(part for part in (done.query, said) if part)
        return Response(status_code=303, headers={"location": f"{done.page}?{query}"})

    async def _refused(
        self, name: str, fields: Fields, exc: DispatchError, *, as_data: bool
    ) -> Response:
        """What was wrong, on the page that holds the form, with what was written in it."""
        edits = _first(fields, "action") in ("add", "change", "save", "rerun", "copy")
        if as_data or name not in ("cron", "task") or not edits or isinstance(exc, StorageError | LookupFailedError):
            return self._failed(exc, as_data=as_data)
        query = {"id": _first(fields, "id"), "name": _first(fields, "name")}
        try:
            view = await self._view(name, query)
        except DispatchError as again:
            return self._failed(again, as_data=False)
        found = self._desk.redactor.text(str(exc))
        body = self._draw(name, view, act=True, form=_flat(fields), problem=found)
        return Response(body, 422, {"content-type": "text/html; charset=utf-8", "cache-control": "no-store"})

    def _failed(self, exc: DispatchError, *, as_data: bool) -> Response:
        status = 404 if isinstance(exc, LookupFailedError) else 503 if isinstance(exc, StorageError) else 422
        said = self._desk.redactor.text(str(exc))
        if as_data:
            body = _json({"error": said, "code": exc.code})
            return Response(body, status, {"content-type": "application/json", "cache-control": "no-store"})
        body = self._draw("problem", {}, act=False, problem=said, status=status)
        return Response(body, status, {"content-type": "text/html; charset=utf-8", "cache-control": "no-store"})

    def __repr__(self) -> str:
        return f"<dashboard over {self._desk.dispatcher or self._desk.storage!r}>"


# -- requests -------------------------------------------------------------------


def _page_name(scope: Scope) -> tuple[str | None, bool]:
    """The page a path names, and whether as JSON; None for the mount path without its slash."""
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    if root and (path == root or path.startswith(f"{root}/")):
        path = path[len(root) :]
        if not path:
            return None, False
    name = path.removeprefix("/")
    as_data = name.endswith(".json")
    return (name.removesuffix(".json") if as_data else name or "overview"), as_data


async def _form(request: Request) -> dict[str, list[str]]:
    """The form's fields. What is no form, or too large, is refused."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise _Refusal(_plain(415, "wanted is a form: application/x-www-form-urlencoded"))
    body = bytearray()
    more = True
    while more:  # not `request.stream()`, whose generator would be left behind by a refusal
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > BODY_LIMIT:
            raise _Refusal(_plain(413, "that form is too large"))
    fields: dict[str, list[str]] = {}
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=FIELDS_LIMIT)
    except ValueError:
        raise _Refusal(_plain(400, "that form cannot be read")) from None
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    return fields


def _first(fields: Fields, name: str) -> str:
    given = fields.get(name)
    return given[0][:500] if given else ""


def _flat(fields: Fields) -> dict[str, str]:
    return {name: given[0] for name, given in fields.items()}


def _notice(request: Request) -> str:
    """The sentence for what the redirect that led here has done."""
    query = request.query_params
    said = SAID.get(query.get("did", ""))
    if said is None:
        return ""
    n = whole(query.get("n", ""), 0, 0, 1_000_000)
    if "{n}" in said and n == 0:
        return "Nothing was changed: it had moved on already."
    many = f"{n:,} task{'' if n == 1 else 's'}"
    more = " More are left: do it again." if query.get("more") == "1" else ""
    return f"{said.format(n=many)}.{more}"


def _poll(name: str, view: Mapping[str, Any]) -> float:
    """Seconds until a page is worth asking for again; 0 for never."""
    if name == "tasks":
        wanted = TaskFilter(**view["filter"])
        return 0.0 if wanted.after or wanted.is_searching else POLL_S[name]
    if name == "task":
        ended = view["status"] in ("succeeded", "failed", "cancelled")
        return 0.0 if ended else POLL_S[name]
    return POLL_S.get(name, 0.0)


# -- answers ----------------------------------------------------------------------


def _page(request: Request, body: bytes, *, as_data: bool) -> Response:
    """A page under an ETag; 304 where the visitor has it already."""
    tag = f'"{blake2b(body, digest_size=12).hexdigest()}"'
    headers = {
        "content-type": "application/json" if as_data else "text/html; charset=utf-8",
        "cache-control": "private, no-cache",
        "etag": tag,
    }
    known = request.headers.get("if-none-match", "")
    if request.method in ("GET", "HEAD") and tag in re.findall(r'"[^"]*"', known):
        del headers["content-type"]
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers)


def _plain(status: int, sentence: str, **headers: str) -> Response:
    return Response(
        f"{sentence}\n",
        status,
        {"content-type": "text/plain; charset=utf-8", "cache-control": "no-store", **headers},
    )


def _json(view: Mapping[str, Any]) -> bytes:
    """JSON in ASCII, without the characters of markup, wherever it may end up."""
    text = json.dumps(view, default=str, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").encode()


def _say_done(request: Request, done: Done, fields: Fields) -> None:
    """A line in the log for each change: with many at the desk, nobody knows else who did what, and when."""
    about = ", ".join(done.ids[:IDS_SAID]) or next(filter(None, (_first(fields, each) for each in NAMED)), "")
    log.info(
        "%s, by %s: %d%s%s",
        done.what,
        "somebody" if request.client is None else request.client.host,
        done.n,
        " and more" if done.more else "",
        f": {printable(about)}" if about else "",
        extra={"event": "acted", "action": done.what, "count": done.n},
    )


def _outcome(done: Done | Ask) -> View:
    if isinstance(done, Ask):
        confirm = {"sure": "yes"} | ({} if done.until is None else {"until": repr(done.until)})
        return {"done": False, "ask": done.sentence, "n": done.n, "more": done.more, "confirm": confirm}
    return {"done": True, "what": done.what, "n": done.n, "more": done.more, "ids": list(done.ids)}


@cache
def _templates() -> Environment:
    """The templates, compiled here, once for every dashboard of a process."""
    made = Environment(
        loader=PackageLoader("dispatch.web"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # What Jinja's own filters and globals are is no rule for further ones.
    filters, names = cast("dict[str, Any]", made.filters), cast("dict[str, Any]", made.globals)
    filters.update(clock=_clock, seconds=seconds, count=_count, thousands=_thousands, short=_short)
    names.update(
        bars=charts.bars,
        ranges=charts.ranges,
        spans=charts.spans,
        sparkline=charts.sparkline,
        query=_query,
        list_query=_list_query,
        as_json=as_json,
        tags_text=tags_text,
        statuses=STATUSES,
    )
    for name in made.list_templates():
        made.get_template(name)
    return made


def _finalize(value: object) -> object:
    """All that a template writes comes by here: what cannot be seen is shown as its escape."""
    if isinstance(value, Markup):
        return value
    return visible(value) if isinstance(value, str) else "" if value is None else value


def _clock(iso: str | None) -> str:
    """`2026-01-31 09:00:00`: what a reader without script sees, in UTC."""
    return "\u2013" if iso is None else f"{iso[:10]} {iso[11:19]}"


def _thousands(n: float) -> str:
    return f"{n:,}"


def _count(count: Mapping[str, Any]) -> str:
    return f"{count['n']:,}{'+' if count['more'] else ''}"


def _short(task_id: str) -> str:
    """The end of a long id, where time-ordered ones differ."""
    return task_id if len(task_id) <= 14 else f"…{task_id[-10:]}"


def _query(**given: object) -> str:
    return urlencode({name: value for name, value in given.items() if value}, errors="replace")


def _list_query(filter_: Mapping[str, Any], **changes: object) -> str:
    return TaskFilter(**filter_).query(**changes)
