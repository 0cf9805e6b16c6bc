"""The dashboard as a person uses it: in a real Chromium, driven by Playwright.

Needs the group `browser` and a Chromium of the system's; `DISPATCH_BROWSER` names
it and makes its absence a failure, as CI does. Otherwise, without either, skipped.
Screenshots go to the folder that `DISPATCH_SCREENSHOTS` names, if it does.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from dispatch import Dispatcher, Run, TaskQueueConfig, open_dispatcher
from dispatch.records import NewTask
from dispatch.storage.protocol import Change
from dispatch.storage.query import Ids, PruneSpec, Statuses
from dispatch.web import create_app
from tests.web.visitor import WELCOME, Mail, furnished

pytestmark = pytest.mark.battery

WANTED = os.environ.get("DISPATCH_BROWSER")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PAGES = ("", "queues", "tasks", "task?id=dead", "cron", "cron?name=nightly", "workers")


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser, or a skipped test."""
    path = WANTED or shutil.which("chromium") or shutil.which("chromium-browser")
    if WANTED is None and path is None:
        pytest.skip("no Chromium here; install one, or name it in DISPATCH_BROWSER")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        if WANTED is not None:
            raise
        pytest.skip("pip install --group browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@asynccontextmanager
async def served(app: Any, root: str = "") -> AsyncIterator[str]:
    """The app on a free port of this machine; with `root`, under that path as a proxy would have it."""
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.loglevel = "ERROR"

    async def below(scope: Any, receive: Any, send: Any) -> None:
        if root and scope["type"] == "http":
            assert scope["path"].startswith(root)
            scope = {**scope, "path": scope["path"].removeprefix(root), "raw_path": b""}
        await app(scope, receive, send)

    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(partial(serve, below, config, shutdown_trigger=stop.wait))
        yield urls[0].replace("127.0.0.1", "localhost") + root + "/"
        stop.set()
        nursery.cancel_scope.deadline = trio.current_time() + 5


async def browse(visit: Callable[[Any], None]) -> None:
    """Run a visit with a browser, in a thread of its own: Playwright's own loop is asyncio's."""

    def run() -> None:
        with chromium() as browser:
            visit(browser)

    with trio.fail_after(150):
        await in_fresh_thread(run)


async def in_fresh_thread(run: Callable[[], None]) -> None:
    """As `trio.to_thread.run_sync`, but the thread is new: Playwright leaves a loop in its own."""
    done = trio.Event()
    failure: list[BaseException] = []
    token = trio.lowlevel.current_trio_token()

    def outer() -> None:
        try:
            run()
        except BaseException as exc:  # noqa: BLE001 - raised on the trio thread below
            failure.append(exc)
        token.run_sync_soon(done.set)

    threading.Thread(target=outer, daemon=True).start()
    await done.wait()
    if failure:
        raise failure[0]


def opened(browser: Any, **options: Any) -> tuple[Any, list[str]]:
    """A page, and the list that its complaints go to."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(10_000)
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return page, complaints


async def place() -> Any:
    storage = await furnished()
    await storage.enqueue([NewTask(id=f"n{n}", queue="reports", type="monthly", payload=b'{"n":1}') for n in range(70)])
    return storage


def shows(page: Any, selector: str, text: str) -> None:
    """Wait until what is found there has the text: a click does not wait for the page it leads to."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_contain_text(text, timeout=10_000)


def counts(page: Any, selector: str, number: int) -> None:
    """Wait until so many are found."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_count(number, timeout=10_000)


def add_cron(page: Any, url: str) -> None:
    page.goto(f"{url}cron")
    page.locator("#editor summary").click()
    page.fill("input[name=name]", "nightly")
    page.fill("input[name=spec]", "0 2 * * *")
    page.fill("input[name=zone]", "Europe/Berlin")
    page.fill("input[name=type]", "welcome")
    page.click("button[value=add]")
    shows(page, "#notice", "Cron task added")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
async def test_every_page_fits_and_is_quiet(scheme: str, width: int) -> None:
    folder = os.environ.get("DISPATCH_SCREENSHOTS")

    def visit(browser: Any) -> None:
        page, complaints = opened(
            browser, viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        add_cron(page, url)
        for name in PAGES:
            answer = page.goto(url + name)
            assert answer.status == 200
            page.wait_for_selector("html.script")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == {
                "light": "rgb(251, 250, 247)", "dark": "rgb(22, 22, 20)",
            }[scheme]  # fmt: skip
            if folder:
                file = re.sub(r"\W+", "-", name or "overview")
                page.screenshot(path=Path(folder) / f"{file}-{scheme}-{width}.png")
        assert complaints == []

    async with served(create_app(await place())) as url:
        await browse(visit)


@pytest.mark.parametrize("script", [True, False])
@pytest.mark.parametrize("root", ["", "/ops/jobs"])
async def test_every_action_works_with_and_without_script_wherever_it_is_mounted(script: bool, root: str) -> None:
    storage = await place()

    def visit(browser: Any) -> None:
        page, complaints = opened(browser, java_script_enabled=script)

        def said(text: str) -> None:
            shows(page, "#notice", text)

        # Ticked tasks: held, resumed, then cancelled after a question.
        page.goto(f"{url}tasks?queue=reports")
        for action, sentence in (("hold", "2 tasks held"), ("resume", "2 tasks resumed")):
            page.check("input[name=id][value=n68]")
            page.check("input[name=id][value=n69]")
            page.click(f".bulk button[value={action}]")
            said(sentence)
        page.check("input[name=id][value=n69]")
        page.click(".bulk button[value=cancel]")
        shows(page, "main", "Cancel 1 task?")
        page.click("main form button.danger")
        said("1 task cancelled")
        # All of a filter, then the next page.
        page.check("input[name=id][value=n68]")
        page.check("input[name=all]")
        page.click(".bulk button[value=hold]")
        shows(page, "main", "Hold 69 tasks?")
        page.click("main form button.danger")
        said("69 tasks held")
        page.click("a[rel=next]")
        counts(page, "input[name=id]", 20)
        # One task: edited and run again, then deleted.
        page.goto(f"{url}task?id=dead")
        page.locator("#editor summary").click()
        page.fill("textarea[name=payload]", '{"to": "bob@example.org", "password": "***"}')
        page.click("#editor button[value=rerun]")
        said("1 task to run again")
        shows(page, "pre.data", "bob@example.org")
        page.goto(f"{url}task?id=done")
        page.click("main .doing button[value=delete]")
        page.click("text=Leave it")
        page.click("main .doing button[value=delete]")
        page.click("main form button.danger")
        said("1 task deleted")
        # A queue.
        page.goto(f"{url}queues")
        page.click("#q-email button[value=pause]")
        said("Queue paused")
        page.fill("#q-email input[name=concurrency]", "7")
        page.click("#q-email button[value=concurrency]")
        said("Concurrency changed")
        assert page.input_value("#q-email input[name=concurrency]") == "7"
        page.click("#q-email button[value=resume]")
        said("Queue resumed")
        # Cron: wrong at first, previewed, added, run, changed, deleted.
        page.goto(f"{url}cron")
        page.locator("#editor summary").click()
        page.fill("input[name=name]", "nightly")
        page.fill("input[name=spec]", "61 2 * * *")
        page.fill("input[name=type]", "welcome")
        page.click("button[value=add]")
        shows(page, ".problem", "61")
        page.fill("input[name=spec]", "0 2 * * *")
        if not script:
            page.click("button[value=preview]")
        page.wait_for_selector("#preview .says")
        counts(page, "#preview li", 8)
        page.click("button[value=add]")
        said("Cron task added")
        page.click("main .doing button[value=run]")
        said("Published just now")
        page.goto(f"{url}cron?name=nightly")
        page.click("main .doing button[value=pause]")
        said("paused")
        page.locator("#editor summary").click()
        page.fill("input[name=spec]", "0 3 * * *")
        page.click("button[value=change]")
        shows(page, ".lead", "At 03:00")
        page.click("main .doing button[value=delete]")
        page.click("main form button.danger")
        said("Cron task deleted")
        # The storage.
        page.goto(f"{url}workers")
        page.fill("input[name=days]", "0")
        page.click("button[value=prune]")
        shows(page, "main", "Delete 1 ended tasks")
        page.click("main form button.danger")
        said("1 task deleted")
        assert [each for each in complaints if "422" not in each] == []

    async with served(create_app(storage), root) as url:
        await browse(visit)
    assert await storage.crons() == []


async def test_it_follows_what_happens_and_lets_be_what_people_hold() -> None:
    storage = await place()
    told = trio.lowlevel.current_trio_token()

    def publish(name: str) -> None:
        new = NewTask(id=name, queue="email", type="fresh", payload=b"{}")
        trio.from_thread.run(storage.enqueue, [new], trio_token=told)

    def visit(browser: Any) -> None:
        page, complaints = opened(browser)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{url}tasks?queue=email")
        page.wait_for_selector("html.script")
        page.evaluate("document.querySelector('#t-dead').mine = 'kept'")
        publish("first")
        page.wait_for_selector("#t-first")
        # It was morphed, not replaced.
        assert page.evaluate("document.querySelector('#t-dead').mine") == "kept"
        # While something is ticked nothing moves, and nothing is asked.
        page.check("input[name=id][value=dead]")
        page.wait_for_selector("#live[data-state=held]")
        publish("second")
        before = len(asked)
        page.wait_for_timeout(4_000)
        assert len(asked) == before
        assert page.locator("#t-second").count() == 0
        page.uncheck("input[name=id][value=dead]")
        page.wait_for_selector("#t-second")
        # While text is selected, the same.
        page.evaluate("getSelection().selectAllChildren(document.querySelector('h1'))")
        page.wait_for_selector("#live[data-state=held]")
        page.evaluate("getSelection().removeAllRanges()")
        # Paused by hand, and remembered.
        page.click("#live")
        publish("third")
        page.wait_for_timeout(3_500)
        assert page.locator("#t-third").count() == 0
        page.click("#live")
        page.wait_for_selector("#t-third")
        # An unchanged page is answered with 304; a hidden one is not asked for.
        with page.expect_response(lambda answer: answer.status == 304):
            pass
        page.evaluate(
            "Object.defineProperty(document, 'hidden', {get: () => true});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )
        before = len(asked)
        page.wait_for_timeout(4_000)
        assert len(asked) == before
        assert complaints == []

    async with served(create_app(storage)) as url:
        await browse(visit)


async def test_an_opened_traceback_and_a_typed_text_outlive_a_refresh() -> None:
    async def fails(task: Any, run: Run) -> None:
        await run.progress(0.5, f"attempt {run.attempt}")
        await trio.sleep(0.05)
        raise ValueError("never works")

    async with open_dispatcher(observers=()) as dispatcher:
        dispatcher.consumer.register_queue("email", TaskQueueConfig(max_retry=1_000, retry_delay=1.0))
        dispatcher.consumer.register_handler(WELCOME, fails)
        task = await dispatcher.publisher.publish(WELCOME(Mail("ada@example.org")))

        def visit(browser: Any) -> None:
            page, complaints = opened(browser)
            page.goto(f"{url}task?id={task.id}")
            page.wait_for_selector("#tb-2", state="attached")
            page.evaluate("document.querySelector('#tb-1').open = true; document.querySelector('#tb-2').open = false")
            page.wait_for_selector("#a-4")
            assert page.evaluate("document.querySelector('#tb-1').open") is True
            assert page.evaluate("document.querySelector('#tb-2').open") is False
            assert complaints == []

        async with served(create_app(dispatcher)) as url:
            await browse(visit)
        await dispatcher.control.cancel(task)


async def test_a_form_that_nobody_touched_follows_what_another_operator_saved() -> None:
    def visit(browser: Any) -> None:
        (mine, complaints), (theirs, others) = opened(browser), opened(browser)
        add_cron(mine, url)
        # A cron entry: they change it, and I, who was looking, then change something else.
        mine.goto(f"{url}cron?name=nightly")
        theirs.goto(f"{url}cron?name=nightly#edit")
        theirs.fill("#editor input[name=spec]", "0 5 * * *")
        theirs.fill("#editor textarea[name=payload]", '{"to": "bob@example.org"}')
        theirs.select_option("#editor select[name=overlap]", "skip")
        theirs.click("#editor button[value=change]")
        mine.wait_for_selector("h1:has-text('0 5 * * *')", timeout=30_000)
        mine.locator("#editor summary").click()
        assert mine.input_value("#editor select[name=overlap]") == "skip"
        mine.fill("#editor textarea[name=description]", "only a remark")
        mine.click("#editor button[value=change]")
        mine.wait_for_selector("#notice")
        shows(mine, "h1", "0 5 * * *")
        shows(mine, "pre.data", "bob@example.org")
        # One task; what I have typed or chosen already stays mine.
        mine.goto(f"{url}task?id=later#edit")
        mine.fill("#editor input[name=tags]", "vip")
        mine.select_option("#editor select[name=priority]", "low")
        mine.locator("#editor summary").click()
        theirs.goto(f"{url}task?id=later#edit")
        theirs.fill("#editor textarea[name=payload]", '{"to": "bob@example.org", "password": "***"}')
        theirs.fill("#editor input[name=tags]", "eu")
        theirs.select_option("#editor select[name=priority]", "critical")
        theirs.click("#editor button[value=save]")
        mine.wait_for_selector("pre.data:has-text('bob@example.org')", timeout=30_000)
        mine.locator("#editor summary").click()
        assert "bob@example.org" in mine.input_value("#editor textarea[name=payload]")
        assert mine.input_value("#editor input[name=tags]") == "vip"
        assert mine.input_value("#editor select[name=priority]") == "low"
        # A queue's concurrency, in a form that is always open.
        mine.goto(f"{url}queues")
        theirs.goto(f"{url}queues")
        theirs.fill("#q-email input[name=concurrency]", "10")
        theirs.click("#q-email button[value=concurrency]")
        mine.wait_for_selector("#q-email input[name=concurrency][value='10']", timeout=30_000)
        mine.click("#q-email button[value=concurrency]")
        mine.wait_for_selector("#notice")
        assert mine.input_value("#q-email input[name=concurrency]") == "10"
        assert complaints == others == []

    async with served(create_app(await place())) as url:
        await browse(visit)


async def test_a_task_deleted_while_it_is_looked_at_is_gone_and_not_asked_for_again() -> None:
    storage = await place()
    told = trio.lowlevel.current_trio_token()

    async def delete() -> None:
        await storage.alter(Ids("waiting"), Change(action="cancel"))
        await storage.prune(PruneSpec(keep=0, where=Ids("waiting")))

    def visit(browser: Any) -> None:
        page, _ = opened(browser)
        asked: list[str] = []
        page.goto(f"{url}task?id=waiting")
        page.wait_for_selector("html.script")
        trio.from_thread.run(delete, trio_token=told)
        page.wait_for_selector("#live[data-state=gone]")
        page.on("request", lambda request: asked.append(request.url))
        page.click("#live")
        page.click("#live")
        page.wait_for_timeout(4_000)
        assert page.inner_text("#live") == "Gone"
        assert asked == []

    async with served(create_app(storage)) as url:
        await browse(visit)


async def test_it_is_used_by_keyboard_and_read_by_screen_readers() -> None:
    def visit(browser: Any) -> None:
        page, complaints = opened(browser)
        page.goto(url)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("g")
        page.keyboard.press("t")
        page.wait_for_url(re.compile("/tasks$"))
        page.wait_for_selector("html.script")
        page.keyboard.press("j")
        page.keyboard.press("j")
        second = page.evaluate("document.activeElement.closest('tr').id")
        assert second == page.evaluate("document.querySelectorAll('.tasks tbody tr')[1].id")
        page.keyboard.press("x")
        assert page.inner_text("#chosen") == "1"
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "filter"
        page.keyboard.press("Escape")
        page.keyboard.press("?")
        assert page.locator("#help").is_visible()
        page.keyboard.press("Escape")
        for name in PAGES[:5]:
            page.goto(url + name)
            found = page.evaluate(UNNAMED)
            assert found == [], name
        assert complaints == []

    async with served(create_app(await place())) as url:
        await browse(visit)


UNNAMED = """() => {
  const named = (each) => each.getAttribute("aria-label") || each.textContent.trim() || each.title
    || [...(each.labels || [])].some((label) => label.textContent.trim());
  const wrong = [...document.querySelectorAll("a, button, input:not([type=hidden]), select, textarea")].filter((each) => !named(each));
  wrong.push(...[...document.querySelectorAll("svg")].filter((each) => !each.closest("[aria-hidden]") && !(each.getAttribute("role") === "img" && each.getAttribute("aria-label"))));
  wrong.push(...[...document.querySelectorAll("th")].filter((each) => !each.scope));
  return wrong.map((each) => each.outerHTML.slice(0, 120));
}"""


async def test_another_sites_page_can_do_nothing_here() -> None:
    storage = await place()

    async def evil(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        body = (
            f'<form id=f method=post action="{target}tasks"><input name=action value=delete>'
            '<input name=id value=dead><input name=sure value=yes></form>'
            f'<iframe src="{target}"></iframe><script>f.submit()</script>'
        ).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": body})

    def visit(browser: Any) -> None:
        page, _ = opened(browser)
        page.goto(other.replace("localhost", "127.0.0.1"))
        page.wait_for_url(re.compile("/tasks$"))
        shows(page, "body", "another site")

    async with served(create_app(storage)) as target, served(evil) as other:
        await browse(visit)
    assert len((await storage.find(Statuses("failed"))).records) == 1


async def test_a_busy_dispatcher_is_followed_on_the_overview() -> None:
    async def send(task: Any) -> None:
        await trio.sleep(0.01)

    async with open_dispatcher(observers=()) as dispatcher:
        dispatcher.consumer.register_queue("email", TaskQueueConfig(concurrency=4, buffer_size=10_000))
        dispatcher.consumer.register_handler(WELCOME, send)

        def visit(browser: Any) -> None:
            page, complaints = opened(browser)
            page.goto(url)
            figure = page.locator(".figures a[href*=succeeded] .figure")
            for _ in range(100):  # not wait_for_function, which the page's own policy forbids
                if int(figure.inner_text()) >= 50:
                    break
                page.wait_for_timeout(300)
            assert int(figure.inner_text()) >= 50
            page.wait_for_selector(".chart rect.succeeded", state="attached")
            assert complaints == []

        async with served(create_app(dispatcher)) as url, trio.open_nursery() as nursery:
            nursery.start_soon(_feed, dispatcher)
            await browse(visit)
            nursery.cancel_scope.cancel()
        await dispatcher.control.cancel(Statuses("pending"))


async def _feed(dispatcher: Dispatcher) -> None:
    while True:
        await dispatcher.publisher.publish(WELCOME(Mail("ada@example.org")))
        await trio.sleep(0.05)
