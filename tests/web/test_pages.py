"""Every page, as HTML and as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
import trio

from dispatch import CronSpec, MemoryStorage, TaskQueueConfig, open_dispatcher
from dispatch.errors import InvalidConfigError, StorageError
from dispatch.records import NewTask, Transition, TransitionKind
from dispatch.storage.protocol import Change, QueueRecord, Want
from dispatch.storage.query import (
    All,
    Attempt,
    Header,
    Ids,
    LastError,
    Not,
    Payload,
    Queues,
    Statuses,
    Tags,
    Time,
)
from dispatch.storage.search import SearchError, searched
from dispatch.web import create_app
from dispatch.web.filters import TaskFilter, misread
from dispatch.web.guard import HEADERS
from tests.web.visitor import WELCOME, Mail, Visitor, furnished, visit

PAGES = ("", "queues", "tasks", "task?id=dead", "cron", "workers")


def as_json(page: str) -> str:
    name, _, query = page.partition("?")
    return f"{name or 'overview'}.json" + (f"?{query}" if query else "")


@pytest.mark.parametrize("page", PAGES)
async def test_every_page_is_there_as_html_and_as_json(page: str) -> None:
    visitor, _ = await visit()
    answer = await visitor.get(page)
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.text.startswith("<!doctype html>")
    assert answer.text.count("<h1") == 1
    assert isinstance(await visitor.data(as_json(page)), dict)


@pytest.mark.parametrize("page", PAGES)
async def test_every_page_is_there_for_an_empty_storage(page: str) -> None:
    visitor = Visitor(create_app(MemoryStorage()))
    wanted = 404 if page.startswith("task?") else 200
    assert (await visitor.get(page)).status == wanted
    assert (await visitor.get(as_json(page))).status == wanted


@pytest.mark.parametrize("page", PAGES)
async def test_a_page_needs_nothing_from_elsewhere_and_nothing_inline(page: str) -> None:
    visitor, _ = await visit()
    text = (await visitor.get(page)).text
    links = re.findall(r'(?:src|href|action)="([^"]*)"', text)
    assert links
    assert not [link for link in links if link.startswith(("/", "//", "http:", "https:", "javascript:"))]
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)|<iframe|<object", text)


@pytest.mark.parametrize("page", [*PAGES, "tasks.json", "app.js", "nothing"])
async def test_every_answer_carries_the_headers_that_keep_a_browser_strict(page: str) -> None:
    visitor, _ = await visit()
    headers = (await visitor.get(page)).headers
    assert HEADERS.items() <= headers.items()
    assert "script-src 'self'" in headers["content-security-policy"]
    assert "default-src 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize("page", [*PAGES, "tasks.json", "app.css"])
async def test_what_a_visitor_has_already_is_not_sent_again(page: str) -> None:
    visitor, _ = await visit()
    first = await visitor.get(page)
    again = await visitor.get(page, ("if-none-match", first.headers["etag"]))
    assert (again.status, again.body) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]


async def test_a_changed_page_is_sent_anew(autojump_clock: trio.testing.MockClock) -> None:
    visitor, storage = await visit()
    tag = (await visitor.get("tasks")).headers["etag"]
    await storage.enqueue([NewTask(id="fresh", queue="email", type="welcome", payload=b"{}")])
    await trio.sleep(5.0)
    answer = await visitor.get("tasks", ("if-none-match", tag))
    assert answer.status == 200
    assert "fresh" in answer.text


async def test_a_head_request_has_the_headers_and_no_body() -> None:
    visitor, _ = await visit()
    answer = await visitor.get("queues", method="HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert "etag" in answer.headers


async def test_the_overview_counts_by_state_and_names_what_failed() -> None:
    visitor, _ = await visit()
    view = await visitor.data("overview.json")
    assert {name: count["n"] for name, count in view["counts"].items()} == {
        "pending": 1, "later": 2, "running": 1, "held": 1, "succeeded": 1, "failed": 1, "cancelled": 0,
    }  # fmt: skip
    assert [task["id"] for task in view["failed"]] == ["dead"]
    assert [task["id"] for task in view["running"]] == ["running"]
    assert view["running"][0]["progress"] == {"fraction": 0.25, "message": "row 3"}
    assert len(view["history"]["minutes"]) == 60
    assert sum(minute["succeeded"] for minute in view["history"]["minutes"]) == 1


async def test_counts_stop_at_a_bound_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = MemoryStorage()
    await storage.declare([QueueRecord(name=name) for name in ("a", "b")])
    await storage.enqueue(
        [NewTask(id=f"{n}", queue="a", type="x", payload=b"{}") for n in range(300)]
        + [NewTask(id="one", queue="b", type="x", payload=b"{}")]
    )
    bounds: list[int | None] = []
    count = storage.count

    async def spying(*args: object, **kwargs: object) -> object:
        bounds.append(kwargs.get("bound"))  # type: ignore[arg-type]
        return await count(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(storage, "count", spying)
    monkeypatch.setattr("dispatch.web.desk.BOUND", 250)
    monkeypatch.setattr("dispatch.web.desk.LEAST_BOUND", 100)
    visitor = Visitor(create_app(storage))
    for page in PAGES:
        await visitor.get(page)
    queues = {line["name"]: line["counts"]["pending"] for line in (await visitor.data("queues.json"))["queues"]}
    assert queues == {"a": {"n": 125, "more": True}, "b": {"n": 1, "more": False}}
    assert "125+" in (await visitor.get("queues")).text
    assert bounds
    assert None not in bounds


async def test_many_who_look_cost_the_storage_what_one_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = await furnished()
    asked = 0
    count = storage.count

    async def spying(*args: object, **kwargs: object) -> object:
        nonlocal asked
        asked += 1
        return await count(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(storage, "count", spying)
    visitor = Visitor(create_app(storage))
    for _ in range(20):
        await visitor.get("queues")
    assert asked <= 6


async def crowded(failed: int, *, waiting: Mapping[str, int]) -> MemoryStorage:
    """A storage with 450 queues, of which the last has dead letters."""
    storage = MemoryStorage()
    await storage.declare([QueueRecord(name=f"q{n}") for n in range(100, 550)])
    new = [NewTask(id=f"f{n}", queue="q549", type="x", payload=b"{}") for n in range(failed)]
    await storage.enqueue(new)
    claims = (await storage.claim([Want(queue="q549", limit=failed)], worker="w", lease=9.0)).claims
    await storage.settle([Transition(each.id, each.epoch, TransitionKind.FAILED, error="no") for each in claims])
    for queue, number in waiting.items():
        await storage.enqueue(
            [NewTask(id=f"{queue}-{n}", queue=queue, type="x", payload=b"{}") for n in range(number)]
        )
    return storage


async def test_what_happens_in_queues_that_are_not_drawn_is_counted_and_listed_too() -> None:
    storage = await crowded(9, waiting={"q100": 1, "q320": 1, "q500": 2})
    await storage.claim([Want(queue=queue, limit=1) for queue in ("q500", "q100", "q320")], worker="w", lease=9.0)
    visitor = Visitor(create_app(storage))
    view = await visitor.data("overview.json")
    assert {status: count["n"] for status, count in view["counts"].items() if count["n"]} == {
        "pending": 1, "running": 3, "failed": 9,
    }  # fmt: skip
    assert [task["id"] for task in view["failed"]] == [f"f{n}" for n in range(8, 0, -1)]
    assert [task["id"] for task in view["running"]] == ["q500-0", "q320-0", "q100-0"]
    assert view["history"]["total"]["failed"] == 9
    assert (len(view["queues"]), view["queues_in_all"]) == (200, 450)
    assert (await visitor.data("tasks.json"))["counts"] == view["counts"]
    overview = (await visitor.get("")).text
    assert "All quiet" not in overview
    assert "failed for good" in overview
    for page, said in (
        ("", "The first 200 of 450."),
        ("queues", "The first 200 of 450."),
        ("tasks", "the first 200 of 450; others by queue:NAME</option>"),
        ("cron", "the first 200 of 450</option>"),
    ):
        assert said in (await visitor.get(page)).text


@pytest.mark.parametrize(("last", "total"), [(30, {"n": 40, "more": True}), (60, {"n": 60, "more": True})])
async def test_queues_that_are_not_drawn_are_counted_as_one_where_they_have_too_many(
    last: int, total: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = await crowded(0, waiting={"q100": 40, "q549": last})
    asked: list[object] = []
    count = storage.count

    async def spying(*args: Any, **kwargs: Any) -> Any:
        asked.append(args[0])
        return await count(*args, **kwargs)

    monkeypatch.setattr(storage, "count", spying)
    monkeypatch.setattr("dispatch.web.desk.BOUND", 50)
    monkeypatch.setattr("dispatch.web.desk.LEAST_BOUND", 10)
    visitor = Visitor(create_app(storage))
    view = await visitor.data("overview.json")
    assert view["queues"][0]["counts"]["pending"] == {"n": 10, "more": True}
    assert view["counts"]["pending"] == total
    # Each status once; what waits, of which there is more, by the 200 and the others.
    assert len(asked) == 6 + 200 + 1


async def test_a_list_goes_on_page_by_page_and_tells_each_task_once() -> None:
    visitor, storage = await visit()
    await storage.enqueue(
        [NewTask(id=f"n{n}", queue="reports", type="x", payload=b"{}") for n in range(25)]
    )
    seen: list[str] = []
    url = "tasks.json?queue=reports&limit=10"
    after = ""
    for _ in range(3):
        page = await visitor.data(f"{url}&after={after}")
        seen += [task["id"] for task in page["tasks"]]
        after = page["next"]
    assert after is None
    assert seen == [f"n{n}" for n in reversed(range(25))]
    first = (await visitor.get("tasks?queue=reports&limit=10")).text
    assert 'rel="next"' in first


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("status=failed", {"dead"}),
        ("status=pending", {"waiting", "later", "again"}),
        ("status=later", {"later", "again"}),
        ("status=retrying", {"again"}),
        ("status=nonsense&queue=email&limit=100", {"waiting", "later", "parked", "done", "dead", "again", "running"}),
        ("queue=reports", set()),
        ("type=welcome&status=held", {"parked"}),
        ("text=key:ada", {"waiting"}),
        ("text=dead", {"dead"}),
        ("text=tag:eu+-id:waiting", set()),
        ("text=attempt:1%2B+-id:done", {"dead", "again", "running"}),
        ("text=payload.to:ada@example.org+tag:eu", {"waiting"}),
    ],
)
async def test_filters_narrow_the_list(query: str, ids: set[str]) -> None:
    visitor, _ = await visit()
    assert {task["id"] for task in (await visitor.data(f"tasks.json?{query}"))["tasks"]} == ids


def test_the_words_of_a_filter_become_a_query() -> None:
    def where(text: str) -> object:
        (place, *words) = TaskFilter.parse({"text": text}).where(1_000.0, ()).parts  # type: ignore[attr-defined]
        assert place == All()
        return All(*words)

    assert where("abc") == All(Ids("abc"))
    assert where('-tag:"two words"') == All(Not(Tags(all_of=["two words"])))
    assert where("payload.lines.2.qty:7") == All(Payload(("lines", 2, "qty"), 7))
    assert where('payload.n:"7"') == All(Payload(("n",), "7"))
    assert where("header.traceparent:*") == All(Header("traceparent"))
    assert where("attempt:3") == All(Attempt(3, 3))
    assert where('error:"timed out" -error:""') == All(LastError("timed out"), Not(LastError()))
    assert where("created:10m") == All(Time("created_at", since=400.0))
    failed = TaskFilter.parse({"status": "failed"}).where(0.0, ("a", "b"))
    assert failed == All(All(Queues("a", "b"), Statuses("failed")))
    later = TaskFilter.parse({"status": "later", "queue": "a"})
    assert later.where(0.0, ()) == All(All(Queues("a"), Statuses("pending")), Statuses("later"))
    assert TaskFilter.parse({"text": "abc -id:x"}).ids(0.0) == {"abc"}
    assert TaskFilter.parse({"text": "-id:x"}).ids(0.0) is None


def test_a_step_of_more_digits_than_python_makes_a_number_of_is_a_name() -> None:
    digits = "9" * 5_000
    assert searched(f"payload.{digits}:7", 0.0) == All(Payload((digits,), 7))


@pytest.mark.parametrize("text", ["nope:1", "payload:1", "attempt:many", "created:soon", "priority:9", "id.x:1"])
async def test_a_filter_that_cannot_be_read_says_what_there_is(text: str) -> None:
    with pytest.raises(SearchError):
        TaskFilter.parse({"text": text}).where(0.0, ())
    visitor, _ = await visit()
    answer = await visitor.get(f"tasks?text={text}")
    assert answer.status == 200
    assert 'role="alert"' in answer.text


@pytest.mark.parametrize("query", ["status=faild", "sttatus=failed", "order=sideways", "queue=" + "q" * 129])
async def test_a_list_says_what_of_its_filter_was_not_understood(query: str) -> None:
    visitor, _ = await visit()
    name, _, value = query.partition("=")
    assert (await visitor.data(f"tasks.json?{query}"))["problem"] == misread({name: value})
    page = (await visitor.get(f"tasks?{query}")).text
    assert 'role="alert"' in page
    assert "all that this filter means" not in page
    good = (await visitor.get("tasks?status=failed&did=hold&n=1&more=1")).text
    assert 'role="alert"' not in good
    assert "all that this filter means" in good


@pytest.mark.parametrize(
    "query",
    [
        "limit=999999999", "limit=-5", "limit=1e9", "limit=%F0%9F%98%80", "after=zzz", "order=sideways",
        "limit=" + "9" * 5_000, "text=" + "tag:x+" * 500, "queue=" + "q" * 3_000, "status=%00", "text=%22",
    ],
)  # fmt: skip
async def test_numbers_and_texts_of_a_query_are_clamped(query: str) -> None:
    visitor, _ = await visit()
    answer = await visitor.get(f"tasks.json?{query}")
    assert answer.status == 200
    assert 1 <= answer.data["filter"]["limit"] <= 200
    assert len(answer.data["filter"]["text"]) <= 1_000


async def test_an_overlong_query_string_is_refused() -> None:
    visitor, _ = await visit()
    assert (await visitor.get("tasks?text=" + "x" * 10_000)).status == 414


async def test_a_task_shows_its_attempts_payload_and_progress() -> None:
    visitor, _ = await visit()
    view = await visitor.data("task.json?id=dead")
    (attempt,) = view["attempts"]
    assert (attempt["outcome"], attempt["attempt"], attempt["worker"]) == ("failed", 1, "w-1")
    assert attempt["traceback"].startswith("Traceback (most recent call last):")
    assert view["payload"]["to"] == "ada@example.org"
    text = (await visitor.get("task?id=dead")).text
    assert "Traceback (most recent call last):" in text
    assert 'class="timeline"' in text
    assert re.search(r"Version</dt><dd[^>]*>1</dd>", text)
    assert "25 percent done" in (await visitor.get("task?id=running")).text


async def test_what_may_be_done_follows_the_table_of_states() -> None:
    visitor, _ = await visit()
    can = {
        name: {verb for verb, may in (await visitor.data(f"task.json?id={name}"))["can"].items() if may}
        for name in ("waiting", "parked", "running", "done", "dead")
    }
    assert can == {
        "waiting": {"cancel", "hold", "now", "edit", "copy"},
        "parked": {"cancel", "resume", "edit", "copy"},
        "running": {"cancel", "edit", "copy"},
        "done": {"rerun", "delete", "copy"},
        "dead": {"rerun", "delete", "edit", "copy"},
    }


async def test_secrets_are_shown_nowhere() -> None:
    visitor, _ = await visit()
    for page in (*PAGES, "task?id=waiting", "tasks?text=key:ada"):
        for url in (page, as_json(page)):
            text = (await visitor.get(url)).text
            assert not re.search("hunter2|geheim|abcdef123456", text), url
    view = await visitor.data("task.json?id=waiting")
    assert view["payload"] == {"to": "ada@example.org", "password": "***"}
    assert view["headers"] == {"authorization": "***"}


async def test_a_field_that_its_class_calls_secret_is_hidden_whatever_its_name() -> None:
    async with open_dispatcher() as dispatcher:
        dispatcher.consumer.register_queue("email", TaskQueueConfig())
        task = await dispatcher.publisher.publish(WELCOME(Mail("ada@example.org", "hunter2")))
        visitor = Visitor(create_app(dispatcher, secrets=()))
        assert "hunter2" not in (await visitor.get(f"task?id={task.id}")).text
        await dispatcher.control.cancel(task)


async def test_a_payload_that_is_no_json_is_shown_as_text_and_not_edited() -> None:
    visitor, storage = await visit()
    await storage.enqueue([NewTask(id="odd", queue="email", type="welcome", payload=b"\xff<u>\x00")])
    view = await visitor.data("task.json?id=odd")
    assert view["can"]["edit"] is view["can"]["copy"] is False
    assert "<u>" not in (await visitor.get("task?id=odd")).text


async def test_a_priority_of_another_version_is_shown_and_not_saved_as_another() -> None:
    visitor, storage = await visit()
    await storage.alter(Ids("dead"), Change(action="patch", priority=5))
    assert (await visitor.data("tasks.json?text=dead"))["tasks"][0]["priority"] == "5"
    assert (await visitor.data("task.json?id=dead"))["priority"] == "5"
    page = (await visitor.get("task?id=dead")).text
    assert "<dd>5</dd>" in page
    assert re.findall(r"<option selected>([^<]*)</option>", page) == ["5"]
    fields = {"action": "save", "id": "dead", "payload": '{"to": "b"}', "headers": "{}"}
    refused = await visitor.post("task.json", {**fields, "priority": "5"})
    assert refused.data["error"] == "[1012] priority: one of low, normal, high, critical, got '5'"
    await visitor.post("task.json", {**fields, "priority": "critical"})
    assert (await visitor.data("task.json?id=dead"))["priority"] == "critical"


async def test_an_unknown_task_and_an_unknown_page_are_not_found() -> None:
    visitor, _ = await visit()
    for url in ("task?id=nobody", "task", "task.json?id=nobody", "nothing", "task/x", "../etc/passwd"):
        assert (await visitor.get(url)).status == 404


async def test_a_storage_that_is_away_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    visitor, storage = await visit()

    async def failing(*args: object, **kwargs: object) -> object:
        await trio.lowlevel.checkpoint()
        raise StorageError("the disk of postgres://bob:geheim@db is full")

    monkeypatch.setattr(storage, "find", failing)
    for url in ("task?id=dead", "task.json?id=dead"):
        answer = await visitor.get(url)
        assert answer.status == 503
        assert "is full" in answer.text
        assert "geheim" not in answer.text


async def test_a_long_search_is_given_up_and_goes_on_where_it_was(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    storage = MemoryStorage()
    await storage.declare([QueueRecord(name="q")])
    await storage.enqueue(
        [NewTask(id=f"t{n}", queue="q", type="x", payload=b"{}", tags=("rare",) if n == 3 else ()) for n in range(1_500)]
    )
    visitor = Visitor(create_app(storage))
    await visitor.get("queues")
    find = storage.find

    async def slow(*args: object, **kwargs: object) -> object:
        await trio.sleep(0.025)
        return await find(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(storage, "find", slow)
    view = await visitor.data("tasks.json?text=tag:rare")
    assert (view["tasks"], view["looked_at"]) == ([], 750)
    assert "Search on" in (await visitor.get("tasks?text=tag:rare")).text
    view = await visitor.data(f"tasks.json?text=tag:rare&after={view['next']}")
    assert ([task["id"] for task in view["tasks"]], view["next"]) == (["t3"], None)


async def test_a_search_page_ends_where_the_next_begins() -> None:
    storage = MemoryStorage()
    await storage.declare([QueueRecord(name="q")])
    await storage.enqueue(
        [NewTask(id=f"t{n}", queue="q", type="even" if n % 2 == 0 else "odd", payload=b"{}") for n in range(1_300)]
    )
    visitor = Visitor(create_app(storage))
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = await visitor.data(f"tasks.json?type=even&limit=200&order=oldest&after={after}")
        seen += [task["id"] for task in page["tasks"]]
        after = page["next"]
    assert seen == [f"t{n}" for n in range(0, 1_300, 2)]


async def test_a_page_says_when_to_ask_again() -> None:
    visitor, _ = await visit()

    async def after(url: str) -> float:
        return float((await visitor.get(url)).headers["poll-after"])

    assert await after("") >= 3
    assert await after("task?id=running") >= 2
    for still in ("task?id=done", "tasks?text=tag:eu", "tasks?status=retrying", "tasks?after=5"):
        assert await after(still) == 0


async def test_cancelling_a_request_cancels_what_it_asked(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    visitor, storage = await visit()
    cancelled = trio.Event()

    async def slow(*args: object, **kwargs: object) -> object:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    monkeypatch.setattr(storage, "find", slow)
    with trio.move_on_after(1.0) as scope:
        await visitor.get("task?id=dead")
    assert scope.cancelled_caught
    assert cancelled.is_set()


async def test_beside_a_dispatcher_the_last_hour_is_what_was_heard() -> None:
    async def send(task: object) -> None:
        await trio.lowlevel.checkpoint()
        if task.payload.to == "nobody":  # type: ignore[attr-defined]
            raise ValueError("no such address")

    async with open_dispatcher(observers=()) as dispatcher:
        dispatcher.consumer.register_queue("email", TaskQueueConfig(concurrency=3))
        dispatcher.consumer.register_handler(WELCOME, send)
        visitor = Visitor(create_app(dispatcher))
        for to in ("ada", "bob", "nobody"):
            await dispatcher.publisher.publish(WELCOME(Mail(to)))
        with trio.fail_after(10):
            await dispatcher.drain()
        view = await visitor.data("overview.json")
        assert view["history"]["source"] == "events"
        assert (view["history"]["total"]["succeeded"], view["history"]["total"]["failed"]) == (2, 1)
        assert view["history"]["total"]["run_p95"] is not None
        (queue,) = (await visitor.data("queues.json"))["queues"]
        assert queue["here"] == {"running": 0, "concurrency": 3}
        assert sum(queue["ended"]) == 3
        (worker,) = (await visitor.data("workers.json"))["workers"]
        assert worker["here"] is True
        assert "known_type" in await visitor.data(f"task.json?id={view['failed'][0]['id']}")


async def test_a_cron_task_shows_its_meaning_and_next_moments_in_its_zone() -> None:
    async with open_dispatcher() as dispatcher:
        dispatcher.consumer.register_queue("email", TaskQueueConfig())
        await dispatcher.cron.add_with_name(
            "0 9 * * MON-FRI", "standup", WELCOME(Mail("team")), zone="Europe/Berlin"
        )
        visitor = Visitor(create_app(dispatcher))
        view = (await visitor.data("cron.json?name=standup"))["entry"]
        assert view["says"] == CronSpec("0 9 * * MON-FRI", "Europe/Berlin").describe()
        assert all(" 09:00:00" in moment["local"] for moment in view["moments"])
        assert {moment["offset"] for moment in view["moments"]} <= {"+0100", "+0200"}
        assert len(view["moments"]) == 8
        assert "Europe/Berlin" in (await visitor.get("cron?name=standup")).text


async def test_metrics_are_answered_where_they_are_given() -> None:
    async def metrics() -> bytes:
        await trio.lowlevel.checkpoint()
        return b"up 1\n"

    storage = await furnished()
    answer = await Visitor(create_app(storage, metrics=metrics)).get("metrics")
    assert (answer.status, answer.body) == (200, b"up 1\n")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert (await Visitor(create_app(storage)).get("metrics")).status == 404


async def test_it_works_at_a_mount_path_and_sends_there_who_forgot_the_slash() -> None:
    storage = await furnished()
    visitor = Visitor(create_app(storage), root="/ops/jobs")
    for page in PAGES:
        assert (await visitor.get(page)).status == 200
    scope_path = Visitor(create_app(storage), root="")
    scope_path.root = "/ops/jobs"
    answer = await _bare(scope_path)
    assert (answer.status, answer.headers["location"]) == (307, "./jobs/")


async def _bare(visitor: Visitor):  # type: ignore[no-untyped-def]
    """The mount path itself, without its slash."""
    app = visitor.app

    async def at_the_mount(scope, receive, send):  # type: ignore[no-untyped-def]
        await app({**scope, "path": scope["root_path"]}, receive, send)

    return await Visitor(at_the_mount, root=visitor.root).get("")


async def test_lifespan_and_websockets_are_answered() -> None:
    app = create_app(MemoryStorage())
    sent: list[str] = []

    async def receive() -> dict[str, str]:
        await trio.lowlevel.checkpoint()
        return {"type": "lifespan.startup"}

    async def send(message: dict[str, str]) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(message["type"])

    await app({"type": "lifespan"}, receive, send)  # type: ignore[arg-type]
    await app({"type": "websocket"}, receive, send)  # type: ignore[arg-type]
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close"]


def test_outside_trio_it_says_what_to_serve_it_with() -> None:
    app = create_app(MemoryStorage())
    call = app({"type": "http"}, None, None)  # type: ignore[arg-type]
    with pytest.raises(InvalidConfigError, match="hypercorn"):
        call.send(None)  # type: ignore[attr-defined]


def test_what_is_no_storage_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match="expected a Storage or a Dispatcher, got str"):
        create_app("sqlite:///jobs.db")  # type: ignore[arg-type]
    with pytest.raises(InvalidConfigError, match="a list of names"):
        create_app(MemoryStorage(), hosts="localhost")


async def test_json_holds_no_markup_wherever_it_may_end_up() -> None:
    visitor, storage = await visit()
    await storage.enqueue([NewTask(id="x", queue="email", type="w", payload=json.dumps("<i>&").encode())])
    text = (await visitor.get("task.json?id=x")).text
    assert "<" not in text
    assert json.loads(text)["payload"] == "<i>&"


async def test_a_task_that_waits_says_for_what() -> None:
    visitor, storage = await visit()
    await storage.declare([QueueRecord(name="line", keyed=True)])
    for name in ("head", "next"):
        await storage.enqueue([NewTask(id=name, queue="line", type="t", payload=b"{}", key="<b>password=x</b>")])
    causes = (await visitor.data("task.json?id=next"))["waiting_for"]
    assert [(cause["reason"], cause["behind"]) for cause in causes] == [("no_worker", None), ("key", "head")]
    page = (await visitor.get("task?id=next")).text
    assert "Waiting for a live worker of queue &#39;line&#39;, which nobody consumes" in page
    assert 'href="task?id=head">See it</a>' in page
    assert "<b>password" not in page
    assert "held; control.resume" in (await visitor.get("task?id=parked")).text
    for ended in ("done", "dead"):
        assert (await visitor.data(f"task.json?id={ended}"))["waiting_for"] == []
        assert "Waiting for" not in (await visitor.get(f"task?id={ended}")).text
