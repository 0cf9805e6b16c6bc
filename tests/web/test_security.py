"""Who may come in, who may change what, and what cannot be smuggled onto a page."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote

import pytest
import trio
from starlette.requests import Request  # noqa: TC002 - as a user's module has it
from starlette.responses import Response

from dispatch import MemoryStorage, open_dispatcher
from dispatch.errors import InvalidQueuePayloadError
from dispatch.records import NewTask, TransitionKind
from dispatch.storage.protocol import CronRecord, QueueRecord, WorkerRecord
from dispatch.web import create_app
from dispatch.web.guard import forged, from_elsewhere, wrong_host
from dispatch.web.shown import Redactor, restored, visible
from tests.conclusive import AGAIN, in_time
from tests.web.visitor import Visitor, furnished, settle, status_of, visit

HOLD = {"action": "hold", "id": "waiting"}


@pytest.mark.parametrize("address", ["10.0.0.7", "203.0.113.9", "::ffff:10.0.0.7", "fe80::1", "unix:", None])
async def test_without_authorize_other_machines_are_refused(address: str | None) -> None:
    storage = await furnished()
    visitor = Visitor(create_app(storage), address=address)
    assert (await visitor.get("tasks")).status == 403
    assert (await visitor.get("app.js")).status == 403
    assert (await visitor.post("tasks", HOLD)).status == 403
    assert await status_of(storage, "waiting") == "pending"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
async def test_this_machine_is_let_in(address: str) -> None:
    visitor = Visitor(create_app(MemoryStorage()), address=address)
    assert (await visitor.get("tasks")).status == 200


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded", "x-real-ip", "via"])
async def test_what_a_proxy_passed_on_is_not_from_this_machine(header: str) -> None:
    visitor, _ = await visit()
    assert (await visitor.get("tasks", (header, "127.0.0.1"))).status == 403


@pytest.mark.parametrize(
    "hosts",
    [("evil.example",), ("localhost.evil.example",), ("127.0.0.1.nip.io",), (), ("localhost", "localhost"),
     ("local host",), ("",), ("localhost:99999999",), ("user@localhost",), ("localhost/..",)],
)  # fmt: skip
async def test_a_host_that_is_not_this_one_is_refused(hosts: tuple[str, ...]) -> None:
    visitor = Visitor(create_app(MemoryStorage()), headers=[("host", host) for host in hosts])
    assert (await visitor.get("tasks")).status == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"])
async def test_the_names_of_this_machine_are_answered(host: str) -> None:
    visitor = Visitor(create_app(MemoryStorage()), headers=[("host", host)])
    assert (await visitor.get("tasks")).status == 200


async def test_hosts_are_a_list_of_ones_own() -> None:
    async def anybody(request: Request, right: str) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    app = create_app(MemoryStorage(), authorize=anybody, hosts=["Jobs.example.org"])
    far = "203.0.113.9"
    assert (await Visitor(app, address=far, headers=[("host", "jobs.example.org")]).get("")).status == 200
    assert (await Visitor(app, address=far, headers=[("host", "other.example.org")]).get("")).status == 403


async def test_reading_and_acting_are_different_rights() -> None:
    storage = await furnished()
    app = create_app(storage, authorize=lambda request, right: right == "read")
    visitor = Visitor(app, address="203.0.113.9", headers=[("host", "jobs.example.org")])
    for page in ("", "queues", "tasks", "task?id=dead", "cron", "workers"):
        answer = await visitor.get(page)
        assert answer.status == 200
        assert 'method="post"' not in answer.text
        assert 'name="id"' not in answer.text
    for page, fields in {
        "tasks": HOLD,
        "tasks.json": HOLD,
        "task": {"action": "now", "id": "again"},
        "queues": {"action": "pause", "name": "email"},
        "cron": {"action": "preview", "spec": "* * * * *"},
        "workers": {"action": "prune", "days": "0", "sure": "yes"},
    }.items():
        assert (await visitor.post(page, fields)).status == 403
    assert await status_of(storage, "waiting") == "pending"
    assert not any(queue.paused for queue in await storage.queues())


async def test_nobody_reads_without_the_right_to_and_authorize_may_answer_itself() -> None:
    def login(request: Request, right: str) -> bool | Response:
        if request.headers.get("authorization") == "Basic c2VzYW0=":
            return True
        return Response(status_code=401, headers={"www-authenticate": "Basic"})

    visitor = Visitor(create_app(MemoryStorage(), authorize=login))
    refused = await visitor.get("tasks.json")
    assert (refused.status, refused.headers["www-authenticate"]) == (401, "Basic")
    assert "content-security-policy" in refused.headers
    assert (await visitor.get("tasks", ("authorization", "Basic c2VzYW0="))).status == 200
    closed = Visitor(create_app(MemoryStorage(), authorize=lambda request, right: False))
    assert (await closed.get("tasks")).status == 403
    assert (await closed.post("tasks", HOLD)).status == 403


@pytest.mark.parametrize(
    "headers",
    [
        [("sec-fetch-site", "cross-site")],
        [("sec-fetch-site", "same-site")],
        [("sec-fetch-site", "cross-site"), ("origin", "http://localhost")],
        [("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")],
        [("origin", "https://evil.example")],
        [("origin", "null")],
        [("origin", "http://localhost:9999")],
        [("origin", "http://localhost@evil.example")],
        [("origin", "http://[")],
        [("origin", "")],
    ],
)
async def test_a_forged_request_is_refused(headers: list[tuple[str, str]]) -> None:
    visitor, storage = await visit()
    assert (await visitor.post("tasks", HOLD, *headers)).status == 403
    assert await status_of(storage, "waiting") == "pending"


@pytest.mark.parametrize(
    "headers",
    [
        [("sec-fetch-site", "same-origin"), ("origin", "null")],
        [("sec-fetch-site", "none")],
        [("origin", "http://localhost")],
        [("origin", "https://localhost:443")],
        [],
    ],
)
async def test_our_own_forms_pass(headers: list[tuple[str, str]]) -> None:
    visitor, storage = await visit()
    assert (await visitor.post("tasks", HOLD, *headers)).status == 303
    assert await status_of(storage, "waiting") == "held"


async def test_looking_never_changes_anything() -> None:
    visitor, storage = await visit()
    for query in ("action=hold&id=waiting", "action=delete&id=dead&sure=yes"):
        await visitor.get(f"tasks?{query}")
    assert await status_of(storage, "waiting") == "pending"
    assert await status_of(storage, "dead") == "failed"


def test_the_decisions_say_why() -> None:
    assert wrong_host(["localhost:1"], {"localhost"}) is None
    assert "exactly one" in (wrong_host([], None) or "")
    assert "authorize" in (from_elsewhere("10.0.0.1", []) or "")
    assert "another site" in (forged(["cross-site"], [], ["x"]) or "")


HOSTILE = [
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "' onmouseover='alert(1)",
    "</textarea><script>alert(1)</script>", "</title><svg onload=alert(1)>", "javascript:alert(1)",
    "{{ 7*7 }}", "{% raw %}", "${alert(1)}", "&lt;b&gt;", "<!--", "]]>", "\u202egnp.exe", "\x1b[31mred",
    "a\r\nSet-Cookie: x=1", "\u2028", "%3Cscript%3E", "../../etc/passwd", "\ud800", "💥" * 40,
]  # fmt: skip


class Elements(HTMLParser):
    """The tags and attributes of a page, as a browser would find them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action")]


def elements(text: str) -> Elements:
    found = Elements()
    found.feed(text)
    return found


def sent(text: str) -> str:
    """As a browser would send it: without lone surrogates."""
    return text.encode("utf-8", "replace").decode()


async def haunted(text: str) -> tuple[Any, list[str]]:
    """A storage in which everything that can be named or written is `text`; and its pages."""
    storage = MemoryStorage()
    name = text
    await storage.declare([QueueRecord(name="email"), QueueRecord(name=name)])
    payload = json.dumps({"a": text, text: [text]}).encode()
    new = NewTask(
        id=f"id-{name}", queue="email", type=name, payload=payload, headers={name: text}, tags=(text,), key=text, cron=text
    )
    await storage.enqueue([new])
    await storage.enqueue([NewTask(id=f"q-{name}", queue=name, type=name, payload=text.encode("utf-8", "replace"))])
    await settle(storage, new.id, TransitionKind.FAILED, error=f"E: {text}", traceback=f"{text}\n{text}")
    await storage.beat(WorkerRecord(id=text, host=text, pid=1, started_at=0, seen_at=0, queues=(text,), running=(text,)))
    definition = None
    probe = MemoryStorage()
    await probe.declare([QueueRecord(name="email")])
    await Visitor(create_app(probe)).post(
        "cron", {"action": "add", "name": "n", "spec": "* * * * *", "queue": "email", "type": "t", "description": sent(text)}
    )
    for entry in await probe.crons():
        definition = entry.definition
    assert definition is not None
    await storage.put_cron(CronRecord(name=name, definition=definition, template=new, paused_reason=text))
    quoted = quote(name, errors="replace")
    return storage, [
        "", "queues", "tasks", "cron", "workers", f"task?id=id-{quoted}", f"task?id=q-{quoted}", f"cron?name={quoted}",
        f"tasks?text={quoted}&queue={quoted}&type={quoted}", f"tasks?did={quoted}&n={quoted}",
    ]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
async def test_hostile_text_is_text_on_every_page(text: str) -> None:
    plain_storage, plain_pages = await haunted("plain")
    plain = Visitor(create_app(plain_storage))
    storage, pages = await haunted(text)
    visitor = Visitor(create_app(storage))
    ours = {tag for url in plain_pages for tag in elements((await plain.get(url)).text).tags}
    for url in pages:
        answer = await visitor.get(url)
        assert answer.status in (200, 404), url
        found = elements(answer.text)
        assert found.tags <= ours, url
        assert not {name for name in found.attributes if name.startswith("on")}
        assert not [link for link in found.links if re.match(r"\s*(javascript|data|//|https?:)", link)]
        assert not re.search("[\u202e\u2028\x1b\ud800]", answer.text)


@pytest.mark.parametrize("text", HOSTILE)
async def test_a_hostile_filter_or_cron_text_is_given_back_as_text(text: str) -> None:
    visitor, _ = await visit()
    form = {"action": "add", "name": text, "spec": text, "zone": text, "queue": text, "type": text, "payload": text}
    fields = {name: sent(value) for name, value in form.items()}
    answer = await visitor.post("cron", fields)
    assert answer.status == 422
    tags = elements(answer.text).tags
    assert "img" not in tags
    assert answer.text.count("<script") == 1


def test_secrets_are_found_by_name_and_in_texts() -> None:
    hide = Redactor()
    assert hide.tree({"apiKey": 1, "user": {"Access-Key": "x", "name": "n"}, "list": [{"pwd": None}]}) == {
        "apiKey": "***", "user": {"Access-Key": "***", "name": "n"}, "list": [{"pwd": None}],
    }  # fmt: skip
    assert hide.text("postgres://bob:geheim@db/x password='a b' token=abc, ok") == (
        "postgres://***@db/x password=*** token=***, ok"
    )
    assert hide.text("Authorization: Bearer abcdef123456") == "Authorization: *** ***"
    assert Redactor(["pin"]).tree({"pin": 1, "password": 2}) == {"pin": "***", "password": 2}
    assert Redactor([]).text("password=x") == "password=x"


async def test_a_cron_function_s_error_shows_no_secret_and_is_bounded() -> None:
    storage = MemoryStorage()
    async with open_dispatcher(storage) as dispatcher:
        task = await dispatcher.cron.add_with_name("@yearly", "sweep", trio.lowlevel.checkpoint)
        task.last_error = f"OSError: postgres://app:geheim@db refused, password=geheim {'x' * 9_000}"
        visitor = Visitor(create_app(dispatcher, authorize=lambda request, right: right == "read"))
        view = await visitor.data("cron.json?name=sweep")
        (line,) = view["cron"]
        assert line["last_error"] == view["entry"]["last_error"]
        assert line["last_error"].startswith("OSError: postgres://***@db refused, password=*** x")
        assert len(line["last_error"]) < 2_100
        assert "geheim" not in (await visitor.get("cron")).text + (await visitor.get("cron?name=sweep")).text


def test_what_stands_before_a_telling_word_stays_however_long() -> None:
    hide = Redactor()
    assert hide.text(f"{'my-' * 99}token_of_mine: x, y") == f"{'my-' * 99}token_of_mine: ***, y"
    assert hide.text("password=token=x") == "password=***"
    assert hide.text("password='a b\nc") == "password=***\nc"


@AGAIN
@pytest.mark.parametrize("text", ["a" * 60_000, "password" * 7_500, "s-e-c-r-e-t-" * 5_000, "0f" * 30_000])
def test_a_document_of_one_word_is_searched_as_fast_as_one_of_many(text: str) -> None:
    hide = Redactor()

    def took_s(text: str) -> float:
        began = time.thread_time()
        hide.text(text)
        return time.thread_time() - began

    words, word = (min(took_s(each) for _ in range(3)) for each in ("a " * 30_000, text))
    in_time({"times": word / words}, times=8)


def test_what_a_page_shows_of_a_long_text_is_searched_and_no_more() -> None:
    hide = Redactor()
    (text,) = hide.tree(["a " * 500_000])
    assert text == f"{'a ' * 32_768}\n… 934,464 more characters"
    assert hide.text("abcdef", 6) == "abcdef"
    assert hide.text("abcdefg", 6) == "abcdef\n… 1 more characters"


@pytest.mark.parametrize(
    "text",
    [
        "see postgres://bob:geheim@db/x for more",
        f"see postgres://bob:{'geheim' * 80}@db/x for more",
        "Proxy-Authorization: Basic Z2VoZWltZ2VoZWlt and more",
        'password="a geheim b geheim", and more',
        "token='geheim of mine', and more",
        "{'pwd': geheimgeheim, 'a': 1}",
    ],
)
def test_a_secret_cut_in_half_is_hidden_too(text: str) -> None:
    hide = Redactor()
    for limit in range(len(text)):
        shown = hide.text(text, limit)
        assert not re.search("geh|Z2V|bob", shown), (limit, shown)


def test_hidden_values_come_back_where_they_were_and_nowhere_else() -> None:
    original = {"a": {"token": "t"}, "l": [{"pwd": "1"}, 2], "flag": True}
    masked = Redactor().tree(original)
    assert restored(masked, masked, original) == original
    assert restored({**masked, "flag": 1}, masked, original)["flag"] == 1
    assert restored({**masked, "a": {"token": "new"}}, masked, original)["a"] == {"token": "new"}
    assert restored({"a": {"token": "***"}}, masked, original) == {"a": {"token": "t"}}


ANN, BOB = {"name": "ann", "password": "ANN"}, {"name": "bob", "password": "BOB"}
ann, bob, eve = ({"name": name, "password": "***"} for name in ("ann", "bob", "eve"))


@pytest.mark.parametrize(
    ("edited", "becomes"),
    [
        ([ann, bob], [ANN, BOB]),
        ([bob, ann], [BOB, ANN]),
        ([bob], [BOB]),
        ([bob, bob], [BOB, BOB]),
        ([{"name": "eve", "password": "EVE"}, ann, bob], [{"name": "eve", "password": "EVE"}, ANN, BOB]),
        ([ann, eve], [ANN, {"name": "eve", "password": "BOB"}]),
        ([{"name": "ann", "password": "new"}, eve], [{"name": "ann", "password": "new"}, {**BOB, "name": "eve"}]),
    ],
)
def test_a_hidden_value_in_a_list_goes_with_its_item(edited: list[Any], becomes: list[Any]) -> None:
    original = [ANN, BOB]
    assert restored(edited, Redactor().tree(original), original) == becomes


TWINS = [{"password": "1"}, {"password": "2"}]


@pytest.mark.parametrize(
    ("original", "edited", "where"),
    [
        ({"a": 1}, {"b": "***"}, "$.b"),
        ({"token": "t"}, {"token": {"of": "***"}}, "$.token.of"),
        ({"token": "t", "note": "***"}, {"other": "***"}, "$.other"),
        ([ANN, BOB], [eve], "$[0]"),
        ([ANN, BOB], [bob, eve], "$[1]"),
        ([ANN, BOB], [{**bob, "x": 1}, {**ann, "x": 1}], "$[0]"),
        ([ANN, BOB], [ann, {"name": "bob", "secret": "***"}], "$[1].secret"),
        (TWINS, [{"password": "***"}], "$[0]"),
        ({"password": TWINS}, {"password": [{"password": "***"}]}, "$.password[0]"),
        ({"url": "https://u:pw@host/a"}, {"url": "https://***@host/b"}, "$.url"),
        ({"url": "https://u:pw@host/a"}, {"link": "https://***@host/a"}, "$.link"),
        (["https://u:pw@host/a"], ["https://***@host/b"], "$[0]"),
    ],
)
def test_a_hidden_value_comes_back_only_where_it_is_certain_which(original: Any, edited: Any, where: str) -> None:
    with pytest.raises(InvalidQueuePayloadError) as caught:
        restored(edited, Redactor().tree(original), original)
    assert str(caught.value) == (
        f"[1010] {where}: *** stands for a hidden value only where it was shown, "
        "and it is not certain for which one here; write the value itself"
    )


def test_stars_that_hide_nothing_may_be_edited() -> None:
    original = {"subject": "*** WARNING ***", "token": "t"}
    edited = {"subject": "*** ALL IS WELL ***", "token": "***"}
    assert restored(edited, Redactor().tree(original), original) == {**edited, "token": "t"}


def test_an_edit_nested_too_deeply_is_refused() -> None:
    deep: Any = "x"
    for _ in range(100_000):  # Python 3.13 writes lists some 10,000 deep
        deep = [deep]
    with pytest.raises(InvalidQueuePayloadError, match="nested too deeply"):
        restored(deep, None, None)


def test_what_cannot_be_seen_is_shown_as_its_escape() -> None:
    assert visible("plain, ümlaut 💥\n") == "plain, ümlaut 💥\n"
    assert visible("\u202e\x00\ud800") == "\\u202e\\u0000\\ud800"
