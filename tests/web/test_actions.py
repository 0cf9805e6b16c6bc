"""Every action: what it does, what it asks first, what it refuses."""

from __future__ import annotations

import html
import json
import logging
import re
import weakref
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import pytest
import trio
import trio.testing

from dispatch import (
    CronEntry,
    CronSpec,
    MemoryStorage,
    OnClash,
    StorageError,
    TaskQueueConfig,
    TaskType,
    Unique,
    open_dispatcher,
)
from dispatch.cron.dispatcher import CronTaskDispatcher
from dispatch.records import NewTask, Transition, TransitionKind
from dispatch.storage.protocol import Change, QueueRecord, Want
from dispatch.storage.query import All, Ids, Queues, Statuses
from dispatch.web import actions, create_app
from dispatch.web.pages import SLICE
from tests.web.visitor import WELCOME, Mail, Visitor, settle, status_of, visit


async def record(storage: Any, task_id: str) -> Any:
    (found,) = (await storage.find(Ids(task_id))).records
    return found


@pytest.mark.parametrize(
    ("action", "task_id", "becomes"),
    [("rerun", "dead", "pending"), ("hold", "waiting", "held"), ("resume", "parked", "pending")],
)
async def test_an_action_on_ticked_tasks_is_done_and_said(action: str, task_id: str, becomes: str) -> None:
    visitor, storage = await visit()
    answer = await visitor.post("tasks", {"action": action, "id": [task_id, "nobody"], "query": "queue=email"})
    assert answer.status == 303
    assert answer.headers["location"] == f"tasks?queue=email&did={action}&n=1"
    assert await status_of(storage, task_id) == becomes
    assert "1 task" in (await visitor.get(answer.headers["location"])).text


@pytest.mark.parametrize(("action", "task_id"), [("cancel", "waiting"), ("delete", "dead")])
async def test_what_destroys_is_asked_first(action: str, task_id: str) -> None:
    visitor, storage = await visit()
    before = await status_of(storage, task_id)
    fields = {"action": action, "id": [task_id, "running"]}
    asked = await visitor.post("tasks", fields)
    assert asked.status == 200
    assert 'name="sure" value="yes"' in asked.text
    assert f'name="id" value="{task_id}"' in asked.text
    assert await status_of(storage, task_id) == before
    done = await visitor.post("tasks", {**fields, "sure": "yes"})
    assert done.status == 303
    assert await status_of(storage, task_id) == {"cancel": "cancelled", "delete": None}[action]
    assert await status_of(storage, "running") == "running"


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("tasks", "no action on tasks is named 'edit'; there are rerun, cancel, hold, resume, delete"),
        ("task", "no action on a task is named 'edit'; there are now, save, rerun, copy"),
        ("queues", "no action on a queue is named 'edit'; there are pause, resume, concurrency, remove"),
        ("cron", "no action on a cron task is named 'edit'; there are add, change, run, pause, resume, delete"),
    ],
)
async def test_an_action_that_does_not_exist_is_told_those_that_do(page: str, said: str) -> None:
    visitor, _ = await visit()
    refused = await visitor.post(f"{page}.json", {"action": "edit", "id": "waiting", "name": "email"})
    assert refused.status == 422
    assert said in refused.data["error"]


async def test_all_that_a_filter_means_is_counted_asked_and_changed() -> None:
    visitor, storage = await visit()
    await storage.enqueue([NewTask(id=f"n{n}", queue="reports", type="x", payload=b"{}") for n in range(120)])
    fields = {"action": "hold", "all": "yes", "query": "queue=reports"}
    asked = await visitor.post("tasks.json", fields)
    assert (asked.data["done"], asked.data["n"]) == (False, 120)
    done = await visitor.post("tasks.json", {**fields, "sure": "yes"})
    assert (done.data["done"], done.data["n"]) == (True, 120)
    assert await status_of(storage, "n7") == "held"
    assert await status_of(storage, "waiting") == "pending"


async def test_all_that_a_search_means_is_found_first_and_then_changed() -> None:
    visitor, storage = await visit()
    await storage.enqueue(
        [NewTask(id=f"n{n}", queue="reports", type="x", payload=b"{}", tags=("old",) if n % 3 else ()) for n in range(90)]
    )
    fields = {"action": "cancel", "all": "yes", "query": "text=tag:old"}
    assert (await visitor.post("tasks.json", fields)).data["n"] == 60
    assert (await visitor.post("tasks.json", {**fields, "sure": "yes"})).data["n"] == 60
    gone = await visitor.post("tasks.json", {**fields, "action": "delete", "sure": "yes"})
    assert (gone.data["n"], gone.data["ids"]) == (60, [])
    assert (await status_of(storage, "n1"), await status_of(storage, "n3")) == (None, "pending")
    bad = {**fields, "query": "text=nope:1"}
    assert (await visitor.post("tasks", bad)).status == 422


async def test_a_search_for_what_to_change_holds_a_slice_of_the_tasks_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    visitor, storage = await visit()
    await storage.enqueue([NewTask(id=f"n{n}", queue="reports", type="x", payload=b"{}") for n in range(2_000)])
    find = storage.find
    read: list[weakref.ref[Any]] = []
    most = 0

    async def spying(*args: Any, **kwargs: Any) -> Any:
        nonlocal most
        page = await find(*args, **kwargs)
        read.extend(map(weakref.ref, page.records))
        most = max(most, sum(each() is not None for each in read))
        return page

    monkeypatch.setattr(storage, "find", spying)
    asked = await visitor.post("tasks.json", {"action": "hold", "all": "yes", "query": "type=x"})
    assert asked.data["n"] == 2_000
    assert most <= 2 * SLICE  # the next one is read before the last one is let go


async def test_a_search_passes_by_what_the_action_cannot_change(monkeypatch: pytest.MonkeyPatch) -> None:
    visitor, storage = await visit()
    await storage.enqueue([NewTask(id=f"n{n}", queue="reports", type="x", payload=b"{}") for n in range(20)])
    await storage.alter(Ids(*(f"n{n}" for n in range(4, 20))), Change(action="cancel"))
    monkeypatch.setattr("dispatch.web.actions.BOUND", 10)
    asked = await visitor.post("tasks.json", {"action": "hold", "all": "yes", "query": "type=x"})
    assert (asked.data["n"], asked.data["more"]) == (4, False)


STATUS = "status: one of pending, later, retrying, running, held, succeeded, failed, cancelled"
FIELDS = "there are queue, type, status, text, order, limit, after"
NO_QUERY = "a filter is a query string, such as status=failed"
ONE_QUERY = "all: wanted is one query, such as status=failed, an empty one for every task"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (["status=faild"], f"{STATUS}, got 'faild'"),
        (["sttatus=failed"], f"no filter is named 'sttatus'; {FIELDS}"),
        (["queue=reports&tags="], f"no filter is named 'tags'; {FIELDS}"),
        (["queue=reports&queue=email"], "queue: a filter has it once, got 'reports' and 'email'"),
        (["order=sideways"], "order: one of newest, oldest, got 'sideways'"),
        (["failed"], f"{NO_QUERY}; got 'failed'"),
        (["queue=%FF"], f"{NO_QUERY}; got 'queue=%FF'"),
        (["queue=" + "q" * 129], "queue: at most 128 characters, got 129"),
        (["text=" + "%E6%B3%A8" * 991 + "+-tag:keep"], "text: at most 1,000 characters, got 1,001"),
        (["text=" + "a" * 20_000], "a filter has at most 16,000 characters as a query string, got 20,005"),
        (["status=failed", "queue=email"], f"{ONE_QUERY}; got 2"),
        ([], f"{ONE_QUERY}; got 0"),
    ],
)
@pytest.mark.parametrize("sure", [{}, {"sure": "yes"}])
async def test_all_that_a_misread_filter_means_is_nothing(query: list[str], said: str, sure: dict[str, str]) -> None:
    visitor, storage = await visit()
    answer = await visitor.post("tasks.json", {"action": "cancel", "all": "yes", "query": query, **sure})
    assert (answer.status, answer.data) == (422, {"error": f"[1012] {said}", "code": 1012})
    assert await status_of(storage, "waiting") == "pending"


NAMES = "1 to 128 characters of A-Z a-z 0-9 _ . : -"
ALONE = f"a word alone is an id, and an id has {NAMES}"
WORDS = (
    "there are attempt, created, cron, error, finished, id, key, priority, queue, started, tag, type, header.NAME and "
    "payload.PATH"
)
NEEDS = "what is turned round needs a name, such as -tag:x"
MISSING = 'its value is missing; it follows the colon at once, an empty one as ""'
UNCLOSED = 'its quote is not closed; one that is meant is written \\"'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("-finished_at:1d", f"no filter is named 'finished_at'; {WORDS}; an id with a colon in it is written id:finished_at:1d"),
        ("-Tag:x", f"no filter is named 'Tag'; {WORDS}; an id with a colon in it is written id:Tag:x"),
        ("-header2.x:1", f"no filter is named 'header2.x'; {WORDS}; an id with a colon in it is written id:header2.x:1"),
        ("--tag:x", f"no filter is named '-tag'; {WORDS}; an id with a colon in it is written id:-tag:x"),
        ('-"tag:a b"', f"no filter is named 'tag'; {WORDS}"),
        ("-status:failed", f"no filter is named 'status'; {WORDS}; an id with a colon in it is written id:status:failed"),
        ("-created=1h", f"{ALONE}, got 'created=1h'"),
        ('-payload["a"]:1', f"no filter is named 'payload[\"a\"]'; {WORDS}"),
        ("-old", f"-old: {NEEDS}; an id that is not meant is written -id:old"),
        ("- tag:x", f"-: {NEEDS}"),
        ("-tag:", f"tag: {MISSING}"),
        ("-key: ada", f"key: {MISSING}"),
        ("-payload.user.id:", f"payload.user.id: {MISSING}"),
        ('-tag:""', "tag: no tag is empty; say which one, such as tag:x"),
        ('-tag:"old', f'-tag:"old: {UNCLOSED}'),
        ("-cron:*", f"cron: a cron task's name has {NAMES}, got '*'"),
        ("-id:a/b", f"id: an id has {NAMES}, got 'a/b'"),
    ],
)
@pytest.mark.parametrize("sure", [{}, {"sure": "yes"}])
async def test_a_word_that_is_not_understood_and_turned_round_is_not_every_task(
    text: str, said: str, sure: dict[str, str]
) -> None:
    visitor, storage = await visit()
    fields = {"action": "delete", "all": "yes", "query": urlencode({"text": text}), **sure}
    answer = await visitor.post("tasks.json", fields)
    assert (answer.status, answer.data) == (422, {"error": f"[1012] {said}", "code": 1012})
    assert await status_of(storage, "dead") == "failed"


async def test_an_id_with_a_colon_or_turned_round_is_written_with_its_name() -> None:
    visitor, storage = await visit()
    await storage.enqueue([NewTask(id="shop:7", queue="reports", type="x", payload=b"{}")])
    fields = {"action": "hold", "all": "yes"}
    for text, n in (("id:shop:7", 1), ("-id:shop:7 -id:waiting", 2), ("waiting", 1)):
        assert (await visitor.post("tasks.json", {**fields, "query": urlencode({"text": text})})).data["n"] == n


async def test_a_long_filter_is_acted_on_to_its_last_word() -> None:
    visitor, storage = await visit()
    name = "\u6ce8" * 900
    payload = json.dumps({"a": name}).encode()
    for task_id, tag in (("kept", "keep"), ("gone", "old")):
        await storage.enqueue([NewTask(id=task_id, queue="reports", type="x", payload=payload, tags=(tag,))])
    query = urlencode({"text": f"payload.a:{name} -tag:keep"})
    assert len(query) > 8_000
    fields = {"action": "hold", "all": "yes", "query": query}
    assert (await visitor.post("tasks.json", fields)).data["n"] == 1
    assert (await visitor.post("tasks.json", {**fields, "sure": "yes"})).data["ids"] == ["gone"]


async def test_an_empty_filter_means_every_task() -> None:
    visitor, _ = await visit()
    asked = await visitor.post("tasks.json", {"action": "hold", "all": "yes", "query": ""})
    assert (asked.data["done"], asked.data["n"]) == (False, 3)


async def test_ticked_tasks_are_changed_whatever_the_filter_beside_them() -> None:
    visitor, storage = await visit()
    done = await visitor.post("tasks.json", {"action": "hold", "id": "waiting", "query": "status=faild"})
    assert (done.data["ids"], await status_of(storage, "later")) == (["waiting"], "pending")


async def test_more_ids_than_one_request_may_have_are_refused_and_not_dropped() -> None:
    visitor, storage = await visit()
    ids = ["dead", *(f"t{n}" for n in range(1_000))]
    answer = await visitor.post("tasks.json", {"action": "rerun", "id": ids})
    said = (
        "[1012] at most 1,000 tasks are chosen by id in one request, got 1,001; nothing was changed: "
        "send several requests, or all=yes with a query that means them"
    )
    assert (answer.status, answer.data["error"]) == (422, said)
    assert await status_of(storage, "dead") == "failed"
    assert (await visitor.post("tasks.json", {"action": "rerun", "id": ids[:-1]})).data["ids"] == ["dead"]


async def test_nothing_ticked_and_unknown_actions_are_refused() -> None:
    visitor, _ = await visit()
    for page, fields in {
        "tasks": {"action": "rerun"},
        "queues": {"action": "explode", "name": "email"},
        "cron": {"action": "explode", "name": "x"},
        "task": {"action": "explode", "id": "dead"},
        "workers": {"action": "explode"},
    }.items():
        assert (await visitor.post(page, fields)).status == 422
    assert (await visitor.post("tasks.json", {"action": "drop", "id": "dead"})).data["code"] == 1012
    assert (await visitor.post("overview", {"action": "rerun"})).status == 404


async def test_a_retry_that_waits_can_be_made_due_now() -> None:
    visitor, storage = await visit()
    assert (await visitor.post("task", {"action": "now", "id": "again"})).status == 303
    assert (await record(storage, "again")).available_at <= storage.now()


def edit(**changes: str) -> dict[str, str]:
    shown = {"to": "ada@example.org", "password": "***"}
    return {"id": "dead", "payload": json.dumps(shown), "headers": "{}", **changes}


async def test_a_dead_letter_is_rerun_with_edits_and_hidden_values_stay() -> None:
    visitor, storage = await visit()
    payload = json.dumps({"to": "bob@example.org", "password": "***"})
    answer = await visitor.post(
        "task", edit(action="rerun", payload=payload, tags="a, b", priority="high", max_retry="2", timeout="1.5")
    )
    assert answer.status == 303
    changed = await record(storage, "dead")
    assert json.loads(changed.payload) == {"to": "bob@example.org", "password": "hunter2"}
    assert (changed.status.value, changed.tags, changed.priority, changed.timeout) == ("pending", ("a", "b"), 2, 1.5)


async def test_a_stale_form_runs_nothing_again_that_went_well_meanwhile() -> None:
    visitor, storage = await visit()
    payload = json.dumps({"to": "bob@example.org", "password": "***"})
    await storage.alter(Ids("dead"), Change(action="rerun"))
    # It waits: what was edited is kept, and there is nothing to run again.
    answer = await visitor.post("task.json", edit(action="rerun", payload=payload))
    assert (answer.data["what"], answer.data["n"]) == ("save", 1)
    assert json.loads((await record(storage, "dead")).payload)["to"] == "bob@example.org"
    [claim] = (await storage.claim([Want(queue="email", limit=1, ids=frozenset({"dead"}))], worker="w", lease=9.0)).claims
    await storage.settle([Transition("dead", claim.epoch, TransitionKind.DONE)])
    answer = await visitor.post("task.json", edit(action="rerun", payload=payload))
    assert (answer.data["what"], answer.data["n"]) == ("rerun", 0)
    assert await status_of(storage, "dead") == "succeeded"


def shown(page: str, name: str) -> str:
    """The value of a field of a page's form, as a browser would send it unchanged."""
    found = re.search(rf'<input name="{name}"[^>]*? value="([^"]*)"|<textarea name="{name}"[^>]*>([^<]*)</textarea>', page)
    assert found is not None
    return html.unescape(found[1] if found[1] is not None else found[2])


ODD_TAGS = ("a b", "c,d", 'say "x"', "\u0645\u06cc\u200c\u0634\u0648\u062f", "plain", "\\u200c", "tab\there")


async def test_tags_that_are_saved_as_shown_stay_what_they_are() -> None:
    visitor, storage = await visit()
    await storage.enqueue([NewTask(id="odd", queue="email", type="welcome", payload=b'{"to": "a"}', tags=ODD_TAGS)])
    page = (await visitor.get("task?id=odd")).text
    fields = {**edit(action="save"), "id": "odd", "payload": shown(page, "payload"), "tags": shown(page, "tags")}
    assert (await visitor.post("task", fields)).status == 303
    assert (await record(storage, "odd")).tags == ODD_TAGS
    await visitor.post("task", {**fields, "tags": 'x, "y z" w'})
    assert (await record(storage, "odd")).tags == ("x", "y z", "w")
    assert (await visitor.post("task", {**fields, "tags": r'"\x"'})).status == 422


async def test_no_more_is_deleted_than_was_asked_about() -> None:
    visitor, storage = await visit()
    fields = {"action": "delete", "all": "yes", "query": "status=failed"}
    asked = await visitor.post("tasks.json", fields)
    page = (await visitor.post("tasks", fields)).text
    assert f'name="until" value="{shown_until(page)}"' in page
    await trio.sleep(0.01)
    await storage.enqueue([NewTask(id="new", queue="email", type="welcome", payload=b"{}")])
    [claim] = (await storage.claim([Want(queue="email", limit=1, ids=frozenset({"new"}))], worker="w", lease=9.0)).claims
    await storage.settle([Transition("new", claim.epoch, TransitionKind.FAILED, error="no")])
    done = await visitor.post("tasks.json", {**fields, **asked.data["confirm"]})
    assert done.data["n"] == asked.data["n"]
    assert (await status_of(storage, "dead"), await status_of(storage, "new")) == (None, "failed")


async def failed(storage: Any, task_id: str) -> None:
    await storage.enqueue([NewTask(id=task_id, queue="email", type="welcome", payload=b"{}")])
    await settle(storage, task_id, TransitionKind.FAILED, error="no")


@pytest.mark.parametrize("query", ["status=failed", "status=failed&type=welcome"])
async def test_no_more_is_run_again_than_was_asked_about(query: str) -> None:
    visitor, storage = await visit()
    await storage.enqueue([NewTask(id="new", queue="email", type="welcome", payload=b"{}")])
    fields = {"action": "rerun", "all": "yes", "query": query}
    asked = await visitor.post("tasks.json", fields)
    await trio.sleep(0.01)
    await settle(storage, "new", TransitionKind.FAILED, error="no")
    done = await visitor.post("tasks.json", {**fields, **asked.data["confirm"]})
    assert (asked.data["n"], done.data["ids"]) == (1, ["dead"])
    assert (await status_of(storage, "dead"), await status_of(storage, "new")) == ("pending", "failed")
    without = await visitor.post("tasks.json", {**fields, "sure": "yes"})
    assert without.data["ids"] == ["new"]


@pytest.mark.parametrize("wanted", [{"all": "yes", "query": "status=failed"}, {"id": [f"t{n}" for n in range(25)]}])
async def test_what_ends_again_at_once_is_not_run_a_third_time(
    wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = MemoryStorage()
    await storage.declare([QueueRecord(name="email")])
    for n in range(25):
        await failed(storage, f"t{n}")
    alter = storage.alter

    async def running(*args: Any, **kwargs: Any) -> list[str]:
        changed = await alter(*args, **kwargs)
        if not kwargs.get("dry_run"):
            for task_id in changed:
                await settle(storage, task_id, TransitionKind.FAILED, error="no")
        return changed

    monkeypatch.setattr(storage, "alter", running)
    monkeypatch.setattr("dispatch.web.actions.BATCH", 25 if "id" in wanted else 5)
    visitor = Visitor(create_app(storage))
    done = await visitor.post("tasks.json", {"action": "rerun", "sure": "yes", **wanted})
    assert (done.data["n"], len(set(done.data["ids"]))) == (25, 25)
    assert {(await record(storage, f"t{n}")).attempt for n in range(25)} == {2}


def shown_until(page: str) -> str:
    found = re.search(r'name="until" value="([\d.]+)"', page)
    assert found is not None
    return found[1]


async def test_an_edit_is_saved_without_running() -> None:
    visitor, storage = await visit()
    await visitor.post("task", edit(action="save", headers='{"trace": "1"}'))
    changed = await record(storage, "dead")
    assert (changed.status.value, dict(changed.headers)) == ("failed", {"trace": "1"})


async def test_what_a_form_leaves_out_stays_as_it_is() -> None:
    visitor, storage = await visit()
    kept = {"tags": "vip", "headers": '{"tenant": "a"}', "priority": "high", "timeout": "3", "max_retry": "2"}
    await visitor.post("task", edit(action="save", **kept))
    before = await record(storage, "dead")
    answer = await visitor.post("task.json", {"id": "dead", "action": "save", "timeout": ""})
    assert answer.data["done"] is True
    after = await record(storage, "dead")
    assert (after.tags, dict(after.headers), after.priority) == (("vip",), {"tenant": "a"}, 2)
    assert (after.max_retry, after.payload, after.timeout) == (2, before.payload, None)
    answer = await visitor.post("task.json", {"id": "dead", "action": "rerun"})
    assert (answer.data["what"], answer.data["n"]) == ("rerun", 1)
    again = await record(storage, "dead")
    assert (again.status.value, again.tags, again.payload) == ("pending", ("vip",), before.payload)


async def test_what_was_changed_before_it_failed_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(actions, "BATCH", 2)
    visitor, storage = await visit()
    await storage.enqueue([NewTask(id=f"more{n}", queue="email", type="welcome", payload=b"{}") for n in range(9)])
    alter, calls = storage.alter, 0

    async def failing(*given: Any, **options: Any) -> Any:
        nonlocal calls
        calls += not options.get("dry_run")
        if calls == 3:
            raise StorageError("away")
        return await alter(*given, **options)

    monkeypatch.setattr(storage, "alter", failing)
    fields = {"action": "hold", "all": "yes", "query": "queue=email", "sure": "yes"}
    answer = await visitor.post("tasks.json", fields)
    assert (answer.status, answer.data["error"]) == (503, "[1021] away; 4 tasks had been changed by then")
    assert (await storage.count(Statuses("held")))[()] >= 4
    assert "hold: stopped after 4: StorageError: [1021] away" in caplog.messages


async def test_an_edited_copy_is_a_task_of_its_own() -> None:
    visitor, storage = await visit()
    done = await visitor.post("task.json", {**edit(action="copy"), "id": "done"})
    (new_id,) = done.data["ids"]
    assert json.loads((await record(storage, new_id)).payload)["password"] == "hunter2"  # noqa: S105
    assert await status_of(storage, "done") == "succeeded"


@pytest.mark.parametrize(
    "changes",
    [
        {"payload": "{"},
        {"payload": "[1, 2]"},
        {"payload": '{"to": "***"}'},
        {"payload": '{"to": "https://***@host/b", "password": "***"}'},
        {"payload": "[" * 100_000},
        {"payload": '{"to": NaN}'},
        {"headers": "[]"},
        {"headers": '{"a": 1}'},
        {"timeout": "soon"},
        {"timeout": "nan"},
        {"max_retry": "1.5"},
        {"priority": "utmost"},
    ],
)
async def test_a_bad_edit_is_refused_and_the_text_kept(changes: dict[str, str]) -> None:
    visitor, storage = await visit()
    before = await record(storage, "dead")
    answer = await visitor.post("task", edit(action="save", **changes))
    assert answer.status == 422
    assert 'role="alert"' in answer.text
    assert await record(storage, "dead") == before


async def test_a_payload_that_is_not_shown_whole_is_not_edited() -> None:
    visitor, storage = await visit()
    payload = json.dumps({"lines": ["x" * 70_000]}).encode()
    await storage.enqueue([NewTask(id="long", queue="email", type="w", payload=payload)])
    view = await visitor.data("task.json?id=long")
    assert view["can"]["edit"] is False
    assert view["payload"]["lines"][0].endswith("more characters")
    for action in ("save", "copy"):
        fields = edit(action=action, id="long", payload=json.dumps(view["payload"]))
        assert (await visitor.post("task.json", fields)).data["code"] == 1010
    assert (await record(storage, "long")).payload == payload


async def test_numbers_of_a_form_are_clamped() -> None:
    visitor, storage = await visit()
    await visitor.post("task", edit(action="save", timeout="1e300", max_retry="9" * 30))
    changed = await record(storage, "dead")
    assert changed.timeout == 10 * 365 * 86_400.0
    assert changed.max_retry == 1_000_000


@pytest.mark.parametrize(
    ("page", "fields", "said"),
    [
        ("task", {"id": "dead", "action": "save", "timeout": "0"}, "timeout: a number of seconds from 0.001, got '0'"),
        ("task", {"id": "dead", "action": "save", "timeout": "-1"}, "timeout: a number of seconds from 0.001, got '-1'"),
        ("task", {"id": "dead", "action": "save", "max_retry": "-1"}, "max_retry: a whole number from 0, got '-1'"),
        ("queues", {"name": "email", "action": "concurrency", "concurrency": "0"}, "concurrency: a whole number from 1, or"),
        ("workers", {"action": "prune", "days": "-3", "sure": "yes"}, "days: a number of days from 0, got '-3'"),
        ("workers", {"action": "prune", "days": "abc"}, "days: a number of days from 0, got 'abc'"),
    ],
)
async def test_too_small_a_number_of_a_form_is_refused(page: str, fields: dict[str, str], said: str) -> None:
    visitor, storage = await visit()
    before = await storage.count(All())
    answer = await visitor.post(f"{page}.json", fields)
    assert (answer.status, said in answer.data["error"]) == (422, True), answer.data
    assert await storage.count(All()) == before


async def test_a_known_type_checks_the_edit_and_an_unknown_one_keeps_its_version() -> None:
    visitor, storage = await visit()
    await storage.enqueue([NewTask(id="v3", queue="email", type="other", payload=b'{"a":1}', version=3)])
    assert (await visitor.post("task", edit(action="save", id="v3", payload='{"a":2}'))).status == 303
    changed = await record(storage, "v3")
    assert (changed.payload, changed.version) == (b'{"a":2}', 3)
    async with open_dispatcher() as dispatcher:
        dispatcher.consumer.register_queue("email", TaskQueueConfig())
        task = await dispatcher.publisher.publish(WELCOME(Mail("ada"), delay=60))
        visitor = Visitor(create_app(dispatcher))
        answer = await visitor.post("task", edit(action="save", id=task.id, payload='{"to": 5, "password": "***"}'))
        assert answer.status == 422
        assert "$.to" in answer.text
        good = await visitor.post("task", edit(action="save", id=task.id, payload='{"to": "b", "password": "***"}'))
        assert good.status == 303
        assert (await dispatcher.control.get(task)).payload == Mail("b", "hunter2")
        # An unknown type that was edited here is not taken for declared.
        await dispatcher.storage.enqueue([NewTask(id="n", queue="email", type="new", payload=b'{"a":1}', version=2)])
        assert (await visitor.post("task", edit(action="save", id="n", payload='{"a":5}'))).status == 303
        dispatcher.consumer.register_handler(TaskType("email", "new", Mail), _nothing)
        await dispatcher.control.cancel(Queues("email"))


async def _nothing(task: object) -> None:
    await trio.lowlevel.checkpoint()


async def test_each_change_is_a_line_in_the_log_without_a_payload(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="dispatch.web")
    visitor, _ = await visit()
    await visitor.post("queues", {"action": "pause", "name": "email"})
    await visitor.post("tasks", {"action": "hold", "id": ["waiting"]})
    await visitor.post("queues", {"action": "pause", "name": "nope"})  # refused
    said = [each.getMessage() for each in caplog.records if each.name == "dispatch.web"]
    assert said == ["queue-pause, by 127.0.0.1: 1: email", "hold, by 127.0.0.1: 1: waiting"]


async def test_a_queue_is_paused_resumed_and_resized() -> None:
    visitor, storage = await visit()

    async def queue() -> Any:
        return next(each for each in await storage.queues() if each.name == "email")

    assert (await visitor.post("queues", {"action": "pause", "name": "email"})).status == 303
    assert (await queue()).paused
    assert "paused" in (await visitor.get("queues")).text
    await visitor.post("queues", {"action": "resume", "name": "email"})
    await visitor.post("queues", {"action": "concurrency", "name": "email", "concurrency": "9999999"})
    assert ((await queue()).paused, (await queue()).concurrency) == (False, 10_000)
    await visitor.post("queues", {"action": "concurrency", "name": "email", "concurrency": ""})
    assert (await queue()).concurrency is None
    assert (await visitor.post("queues", {"action": "concurrency", "name": "email", "concurrency": "-1"})).status == 422
    answer = await visitor.post("queues.json", {"action": "concurrency", "name": "email"})
    assert (answer.status, "it is missing" in answer.data["error"]) == (422, True)
    assert (await visitor.post("queues", {"action": "pause", "name": "nope"})).status == 422


async def test_a_queue_that_nothing_uses_is_removed_once_it_was_asked() -> None:
    visitor, storage = await visit()
    await storage.declare([QueueRecord(name="old")])
    remove = {"action": "remove", "name": "old"}
    assert (await visitor.get("queues")).text.count("Remove…") == 2  # of the two that are empty
    refused = await visitor.post("queues.json", {**remove, "name": "email", "sure": "yes"})
    assert (refused.status, refused.data["code"]) == (422, 1023)
    assert "delete all: 1 failed, 1 held," in refused.data["error"]
    page = await visitor.post("queues", remove)
    assert "Remove the queue old," in page.text
    asked = await visitor.post("queues.json", remove)
    assert (asked.data["done"], asked.data["n"], asked.data["confirm"]) == (False, 1, {"sure": "yes"})
    assert "old" in {queue.name for queue in await storage.queues()}
    answer = await visitor.post("queues.json", {**remove, **asked.data["confirm"]})
    assert (answer.data["done"], answer.data["what"]) == (True, "queue-remove")
    assert "old" not in {queue.name for queue in await storage.queues()}
    gone = await visitor.post("queues.json", {**remove, "sure": "yes"})
    assert (gone.status, gone.data["code"]) == (422, 1007)


async def test_a_queue_with_a_worker_has_no_button_to_remove_it() -> None:
    async with open_dispatcher(observers=()) as dispatcher:
        dispatcher.consumer.register_queue("email")
        dispatcher.consumer.register_handler(WELCOME, _nothing)
        visitor = Visitor(create_app(dispatcher))
        await trio.testing.wait_all_tasks_blocked()
        assert "Remove…" not in (await visitor.get("queues")).text
        refused = await visitor.post("queues.json", {"action": "remove", "name": "email", "sure": "yes"})
        assert "stop what consumes it" in refused.data["error"]


CRON = {
    "name": "nightly", "spec": "0 2 * * *", "zone": "Europe/Berlin", "queue": "email", "type": "welcome",
    "payload": '{"to": "team", "password": "geheim2"}', "overlap": "skip", "description": "At night",
}  # fmt: skip


async def test_a_cron_entry_that_is_saved_as_shown_stays_what_it_is() -> None:
    visitor, storage = await visit()
    await storage.declare([QueueRecord(name=f"a{n:03}") for n in range(300)] + [QueueRecord(name="zz")])
    words = "first line\n" + "second line " * 60
    task = TaskType("zz", "t", dict)({"a": 1}, key="k", headers={"h": "1"}, tags=("a b",))
    cron = CronTaskDispatcher(storage)
    await cron.add_with_name("@daily", "far", task, description=words)
    [before] = await storage.crons("far")
    page = (await visitor.get("cron?name=far")).text
    assert "<option selected>zz</option>" in page
    names = ("spec", "zone", "type", "tags", "payload", "jitter", "timeout", "max_retry", "description")
    fields = {name: shown(page, name) for name in names}
    same = {**fields, "action": "change", "name": "far", "queue": "zz"}
    assert (await visitor.post("cron", same)).status == 303
    [after] = await storage.crons("far")
    assert (after.definition, after.template) == (before.definition, before.template)
    browser = {**same, "description": "one\r\ntwo"}  # how browsers send line breaks
    assert (await visitor.post("cron", browser)).status == 303
    assert (await CronTaskDispatcher(storage).get_task("far")).description == "one\ntwo"


async def test_a_cron_task_is_added_previewed_run_paused_changed_and_deleted() -> None:
    visitor, storage = await visit()
    preview = await visitor.post("cron.json", {**CRON, "action": "preview"})
    assert preview.data["says"].startswith("At 02:00")
    assert len(preview.data["moments"]) == 8
    assert await storage.crons() == []

    assert (await visitor.post("cron", {**CRON, "action": "add"})).headers["location"] == (
        "cron?name=nightly&did=cron-add&n=1"
    )
    page = await visitor.get("cron?name=nightly")
    assert "At 02:00" in page.text
    assert "geheim2" not in page.text

    ran = await visitor.post("cron.json", {"action": "run", "name": "nightly"})
    (task_id,) = ran.data["ids"]
    assert (await record(storage, task_id)).cron == "nightly"
    assert task_id in (await visitor.get("cron?name=nightly")).text

    await visitor.post("cron", {"action": "pause", "name": "nightly", "reason": "holiday"})
    assert (await storage.crons("nightly"))[0].paused_reason == "holiday"
    await visitor.post("cron", {"action": "resume", "name": "nightly"})
    assert (await storage.crons("nightly"))[0].paused_reason is None

    changed = {**CRON, "action": "change", "spec": "30 3 * * *", "payload": '{"to": "all", "password": "***"}'}
    assert (await visitor.post("cron", changed)).status == 303
    (entry,) = await storage.crons("nightly")
    assert json.loads(entry.template.payload) == {"to": "all", "password": "geheim2"}
    assert "30 3 * * *" in entry.definition

    elsewhere = {**changed, "type": "goodbye"}
    assert (await visitor.post("cron", elsewhere)).status == 422
    assert await storage.crons("nightly") == [entry]

    asked = await visitor.post("cron", {"action": "delete", "name": "nightly"})
    assert asked.status == 200
    assert len(await storage.crons()) == 1
    await visitor.post("cron", {"action": "delete", "name": "nightly", "sure": "yes"})
    assert await storage.crons() == []


YEARS: Any = {"start": datetime(2020, 1, 1, tzinfo=UTC), "end": datetime(2090, 1, 1, tzinfo=UTC)}
UNIQUE = Unique(key="k", on_clash=OnClash.REJECT)
CAREFUL: Any = {"misfire": "skip", "misfire_grace": 7_200.0, "misfire_window": 10.0, "jitter": 5.0, "overlap": "skip"}


async def as_its_form_has_it(visitor: Visitor, name: str) -> dict[str, str]:
    shown = (await visitor.data(f"cron.json?name={name}"))["entry"]
    template, policy = shown["template"], shown["policy"]
    return {
        "action": "change", "name": name, "spec": shown["text"], "zone": shown["zone"], "dst": shown["dst"],
        "queue": template["queue"], "type": template["type"], "payload": template["payload_text"],
        "tags": " ".join(template["tags"]), "priority": template["priority"], "timeout": "", "max_retry": "",
        "overlap": policy["overlap"], "misfire": policy["misfire"], "jitter": str(policy["jitter"]),
        "description": shown["description"],
    }  # fmt: skip


@pytest.mark.parametrize("text", ["H 9 * * *", "@every 7m"])
async def test_a_changed_cron_task_keeps_what_its_form_does_not_show(
    text: str, autojump_clock: trio.testing.MockClock
) -> None:
    visitor, storage = await visit()
    cron = CronTaskDispatcher(storage)
    task = TaskType("email", "welcome", dict)(
        {"to": "a", "password": "p"}, delay=60.0, key="k", headers={"trace": "1"}, tags=("t",), unique=UNIQUE
    )
    spec = CronSpec(text, "Europe/Berlin", name="another", **YEARS)
    await cron.add_with_name(spec, "careful", task, description="As it was", **CAREFUL)
    (before,) = await storage.crons("careful")
    form = await as_its_form_has_it(visitor, "careful")
    assert (await visitor.post("cron", form)).status == 303
    assert await storage.crons("careful") == [before]

    await trio.sleep(1)
    assert (await visitor.post("cron", {**form, "description": "a note", "jitter": "9"})).status == 303
    (after,) = await storage.crons("careful")
    was = json.loads(before.definition)
    assert json.loads(after.definition) == {**was, "description": "a note", "policy": {**was["policy"], "jitter": 9.0}}
    assert (after.template, after.next_slot) == (before.template, before.next_slot)


async def test_a_field_that_a_change_does_not_give_stays_too() -> None:
    visitor, storage = await visit()
    await visitor.post("cron", {**CRON, "action": "add", "tags": "a b", "priority": "high", "timeout": "9", "jitter": "5"})
    (before,) = await storage.crons("nightly")
    assert (await visitor.post("cron", {"action": "change", "name": "nightly", "zone": "UTC", "jitter": ""})).status == 303
    (after,) = await storage.crons("nightly")
    was = json.loads(before.definition)
    assert json.loads(after.definition) == {**was, "zone": "UTC", "policy": {**was["policy"], "jitter": 0.0}}
    assert after.template == before.template


async def test_what_a_change_could_not_keep_or_may_not_change_is_refused() -> None:
    visitor, storage = await visit()
    cron = CronTaskDispatcher(storage)
    await cron.add_with_name("@daily", "one", TaskType("email", "welcome", dict)({"to": "a"}, unique=UNIQUE))
    before = await storage.crons()
    moved = await visitor.post("cron", {**await as_its_form_has_it(visitor, "one"), "type": "goodbye"})
    assert moved.status == 422
    assert "its tasks are unique within email/welcome" in html.unescape(moved.text)
    assert await storage.crons() == before
    entry = CronEntry("@daily", "coded", TaskType("email", "welcome", dict)({"to": "a"}))
    async with open_dispatcher(storage, cron=[entry]) as dispatcher:
        dispatcher.consumer.register_queue("email", TaskQueueConfig())
        await dispatcher.cron.add_with_name("@daily", "function", sweep)
        visitor = Visitor(create_app(dispatcher))
        form = await as_its_form_has_it(visitor, "coded")
        refused = await visitor.post("cron.json", {**form, "spec": "@hourly"})
        assert (refused.status, refused.data["code"]) == (422, 1015)
        assert "declared in code" in refused.data["error"]
        refused = await visitor.post("cron.json", {"action": "change", "name": "function", "spec": "@hourly"})
        assert (refused.status, refused.data["code"]) == (404, 1017)


async def test_a_cancelled_change_of_a_cron_task_leaves_it_as_it_was() -> None:
    visitor, storage = await visit()
    await visitor.post("cron", {**CRON, "action": "add"})
    before = await storage.crons()
    with trio.CancelScope() as scope:
        scope.cancel()
        await visitor.post("cron", {**CRON, "action": "change", "spec": "@hourly"})
    assert scope.cancelled_caught
    assert await storage.crons() == before


async def sweep() -> None:
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    "wrong",
    [
        {"spec": "nonsense"},
        {"spec": ""},
        {"spec": "* " * 5_000},
        {"spec": "0-59/0 * * * *"},
        {"zone": "Mars/Olympus"},
        {"dst": "sideways"},
        {"queue": "nope"},
        {"type": "b a d"},
        {"name": "b a d"},
        {"payload": "{"},
        {"payload": '{"password": "***"}'},
        {"overlap": "maybe"},
        {"jitter": "inf"},
    ],
)
async def test_a_bad_cron_task_is_refused_and_the_form_kept(wrong: dict[str, str]) -> None:
    visitor, storage = await visit()
    answer = await visitor.post("cron", {**CRON, "action": "add", **wrong})
    assert answer.status == 422
    assert 'role="alert"' in answer.text
    assert "At night" in answer.text
    assert await storage.crons() == []


async def test_a_bad_cron_text_is_previewed_as_what_is_wrong_with_it() -> None:
    visitor, _ = await visit()
    answer = await visitor.post("cron", {**CRON, "action": "preview", "spec": "61 * * * *"})
    assert answer.status == 200
    assert 'class="problem"' in answer.text
    assert 'value="61 * * * *"' in answer.text


async def test_h_is_previewed_as_it_will_fire() -> None:
    visitor, _ = await visit()
    form = {**CRON, "spec": "H H * * *"}
    before = (await visitor.post("cron.json", {**form, "action": "preview"})).data["moments"]
    assert len(before) == 8
    await visitor.post("cron", {**form, "action": "add"})
    assert (await visitor.data("cron.json?name=nightly"))["entry"]["moments"] == before
    other = await visitor.post("cron.json", {**form, "name": "weekly", "action": "preview"})
    assert other.data["moments"] != before
    nameless = await visitor.post("cron.json", {**form, "name": "", "action": "preview"})
    assert "needs a name" in nameless.data["problem"]


async def test_a_change_is_previewed_within_the_bounds_that_stay() -> None:
    visitor, storage = await visit()
    cron = CronTaskDispatcher(storage)
    task = TaskType("email", "welcome", dict)({"to": "a"})
    await cron.add_with_name(CronSpec("H H * * *", name="another", **YEARS), "bounded", task)
    form = {**await as_its_form_has_it(visitor, "bounded"), "entry": "bounded", "spec": "H H * * MON"}
    seen = (await visitor.post("cron.json", {**form, "action": "preview"})).data
    await visitor.post("cron", form)
    after = (await visitor.data("cron.json?name=bounded"))["entry"]
    assert (seen["says"], seen["moments"]) == (after["says"], after["moments"])
    assert "2090" in seen["says"]


async def test_deleting_a_cron_task_that_is_not_there_says_so() -> None:
    visitor, _ = await visit()
    for sure in ({}, {"sure": "yes"}):
        answer = await visitor.post("cron.json", {"action": "delete", "name": "nobody", **sure})
        assert (answer.status, answer.data["code"]) == (404, 1017)
        assert "no cron task is named 'nobody'" in answer.data["error"]


async def test_a_name_that_is_taken_is_refused() -> None:
    visitor, _ = await visit()
    await visitor.post("cron", {**CRON, "action": "add"})
    other = {**CRON, "action": "add", "spec": "0 4 * * *"}
    assert (await visitor.post("cron", other)).status == 422
    assert (await visitor.post("cron", {**other, "name": "unknown", "action": "change"})).status == 404


async def test_a_function_of_the_process_is_run_and_paused_too() -> None:
    ran = trio.Event()

    async def sweep() -> None:
        await trio.lowlevel.checkpoint()
        ran.set()

    async with open_dispatcher() as dispatcher:
        await dispatcher.cron.add_with_name("0 0 1 1 *", "sweep", sweep)
        visitor = Visitor(create_app(dispatcher))
        answer = await visitor.post("cron", {"action": "run", "name": "sweep"})
        assert answer.headers["location"] == "cron?name=sweep&did=cron-start&n=1"
        assert "Started just now in this process, beside the plan." in (await visitor.get(answer.headers["location"])).text
        with trio.fail_after(5):
            await ran.wait()
        await visitor.post("cron", {"action": "pause", "name": "sweep"})
        assert (await dispatcher.cron.get_task("sweep")).paused
        assert "function" in (await visitor.get("cron")).text
        assert (await visitor.get("cron?name=sweep")).status == 200


async def test_pruning_is_counted_asked_and_done() -> None:
    visitor, storage = await visit()
    fields = {"action": "prune", "days": "0", "dead_letters": "yes"}
    asked = await visitor.post("workers.json", fields)
    assert (asked.data["done"], asked.data["n"]) == (False, 2)
    assert await status_of(storage, "dead") == "failed"
    await visitor.post("workers", {**fields, "sure": "yes"})
    assert await status_of(storage, "dead") is None
    assert await status_of(storage, "waiting") == "pending"
    assert (await visitor.post("workers", {"action": "prune", "days": ""})).status == 422


@pytest.mark.parametrize("days", ["0", "0.0000005"])
async def test_no_more_is_pruned_than_was_asked_about(days: str) -> None:
    visitor, storage = await visit()
    await trio.sleep(0.05)
    fields = {"action": "prune", "days": days, "dead_letters": "yes"}
    asked = await visitor.post("workers.json", fields)
    page = (await visitor.post("workers", fields)).text
    await trio.sleep(0.01)
    await failed(storage, "new")
    await trio.sleep(0.05)
    assert f'name="until" value="{shown_until(page)}"' in page
    done = await visitor.post("workers.json", {**fields, **asked.data["confirm"]})
    assert (asked.data["n"], done.data["n"]) == (2, 2)
    assert await status_of(storage, "new") == "failed"


async def test_an_action_is_seen_at_once_by_whoever_did_it() -> None:
    visitor, _ = await visit()
    assert (await visitor.data("overview.json"))["counts"]["held"]["n"] == 1
    await visitor.post("tasks", {"action": "hold", "id": "waiting"})
    assert (await visitor.data("overview.json"))["counts"]["held"]["n"] == 2


async def test_what_a_redirect_says_is_one_of_our_sentences() -> None:
    visitor, _ = await visit()
    good = (await visitor.get("tasks?did=delete&n=3&more=1")).text
    assert "3 tasks deleted." in good
    for query in ("did=<b>pwned</b>", "did=nope&n=1", "n=5"):
        assert 'id="notice"' not in (await visitor.get(f"tasks?{query}")).text
    assert "1,000,000 tasks" in (await visitor.get("tasks?did=delete&n=99999999999999")).text


async def test_a_cancelled_action_did_all_or_nothing() -> None:
    visitor, storage = await visit()
    with trio.CancelScope() as scope:
        scope.cancel()
        await visitor.post("tasks", {"action": "hold", "id": "waiting"})
    assert scope.cancelled_caught
    assert await status_of(storage, "waiting") == "pending"


async def test_a_form_too_large_or_of_another_kind_is_refused() -> None:
    visitor = Visitor(create_app(MemoryStorage()))
    form = ("content-type", "application/x-www-form-urlencoded")
    assert (await visitor.request("POST", "tasks", b"a" * 3_000_000, [form])).status == 413
    assert (await visitor.request("POST", "tasks", b"a=1&" * 5_000, [form])).status == 400
    assert (await visitor.request("POST", "tasks", b"\xff\xfe", [form])).status == 400
    assert (await visitor.request("POST", "tasks", b"{}", [("content-type", "application/json")])).status == 415
    assert (await visitor.request("POST", "tasks", b"a=1", [("content-type", "text/plain")])).status == 415
    assert (await visitor.request("DELETE", "tasks", b"", [])).status == 405
