"""`dispatch run`: what it loads, what it serves, and how it stops."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import attrs
import pytest
import trio

from dispatch.cli import reload
from dispatch.cli.app import main
from dispatch.cli.reload import reloading
from dispatch.cli.signals import signals
from dispatch.storage.query import All
from tests.cli.terminal import Stream, Terminal

JOBS = """
    import os, signal
    from contextlib import asynccontextmanager
    from attrs import frozen
    import trio
    from dispatch import Dispatcher, QueueTask, TaskQueueConfig, TaskType

    @frozen
    class Welcome:
        to: str = "ada"

    WELCOME = TaskType("email", "welcome", Welcome)
    BILL = TaskType("billing", "welcome", Welcome)
    seen = []

    async def send(task: QueueTask[Welcome]) -> None:
        seen.append((task.queue, task.payload.to))

    def setup(dispatcher: Dispatcher) -> None:
        dispatcher.consumer.register_queue("email")
        dispatcher.consumer.register_queue("billing")
        dispatcher.consumer.register_handler(WELCOME, send)
        dispatcher.consumer.register_handler(BILL, send)

    async def later(dispatcher):
        await trio.lowlevel.checkpoint()
        setup(dispatcher)
        await dispatcher.publisher.publish(WELCOME(Welcome("from setup")))

    @asynccontextmanager
    async def around(dispatcher):
        setup(dispatcher)
        seen.append("open")
        yield
        seen.append("closed")

    class Service:
        def setup(self, dispatcher):
            setup(dispatcher)
    service = Service()

    async def interrupt(task: QueueTask[Welcome]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await trio.sleep(0.05)
        seen.append("finished")

    async def interrupt_twice(task: QueueTask[Welcome]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await trio.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)
        await trio.sleep_forever()

    async def interrupt_and_stay(task: QueueTask[Welcome]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await trio.sleep_forever()

    def interrupted_for_long(dispatcher):
        dispatcher.consumer.register_queue("email")
        dispatcher.consumer.register_handler(WELCOME, interrupt_and_stay)

    def interrupted(dispatcher):
        dispatcher.consumer.register_queue("email")
        dispatcher.consumer.register_handler(WELCOME, interrupt)

    def interrupted_twice(dispatcher):
        dispatcher.consumer.register_queue("email")
        dispatcher.consumer.register_handler(WELCOME, interrupt_twice)

    def none(): ...
    def two(dispatcher, other): ...
    number = 3
    def returns(dispatcher): return dispatcher
    def raises(dispatcher):
        return helper()
    def helper():
        raise LookupError("no \\x1b[31mdatabase")
    @asynccontextmanager
    async def ends_badly(dispatcher):
        setup(dispatcher)
        yield
        raise LookupError("cannot close")
"""


@pytest.fixture
def project(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Terminal]:
    """A working directory with a module `jobs_here`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    write(tmp_path, "jobs_here", JOBS)
    terminal.declare("email", "billing", max_waiting=128)
    yield terminal
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def write(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(dedent(text), encoding="utf-8")


def seen() -> list[object]:
    return sys.modules["jobs_here"].seen


def test_a_burst_runs_what_is_there_and_ends(project: Terminal) -> None:
    project.store("a", payload=b'{"to":"bob"}')
    project.store("b", queue="billing", payload=b'{"to":"cleo"}')
    ran = project("run", "jobs_here:setup", "--burst")
    assert (ran.status, ran.out) == (0, "")
    assert sorted(map(str, seen())) == ["('billing', 'cleo')", "('email', 'bob')"]
    assert set(project.statuses().values()) == {"succeeded"}
    first, last = ran.err.splitlines()[0], ran.err.splitlines()[-1]
    assert first.endswith("works on email, billing in memory:")
    assert last == "dispatch: stopped"


def test_only_the_queues_asked_for_are_consumed(project: Terminal) -> None:
    project.store("a")
    project.store("b", queue="billing")
    ran = project("run", "jobs_here:setup", "--burst", "--queue", "billing", "--worker", "w9")
    assert ran.err.startswith("dispatch: w9 works on billing in memory:\n")
    assert project.statuses() == {"a": "pending", "b": "succeeded"}
    ran = project("run", "jobs_here:setup", "--burst", "--queue", "biling")
    assert ran.status == 1
    assert (
        ran.err
        == "dispatch: jobs_here:setup registers no queue 'biling'; did you mean 'billing'?\n"
    )


def test_only_tasks_of_the_tags_asked_for_are_taken(project: Terminal) -> None:
    project.store("a", tags=("gpu",))
    project.store("b", tags=("big",), queue="billing")
    options = ("--tag", "gpu", "--queue", "email")
    assert project("run", "jobs_here:setup", "--burst", *options).status == 0
    assert project.statuses() == {"a": "succeeded", "b": "pending"}


def test_an_async_function_is_awaited_and_a_method_is_found(project: Terminal) -> None:
    assert project("run", "jobs_here:later", "--burst").status == 0
    assert seen() == [("email", "from setup")]
    assert project("run", "jobs_here:service.setup", "--burst").status == 0


def test_a_context_manager_is_open_while_the_work_goes_on(project: Terminal) -> None:
    project.store("a", payload=b"{}")
    assert project("run", "jobs_here:around", "--burst").status == 0
    assert seen() == ["open", ("email", "ada"), "closed"]


def test_the_first_signal_lets_running_handlers_finish(project: Terminal) -> None:
    project.store("a", payload=b"{}")
    ran = project("run", "jobs_here:interrupted")
    assert ran.status == 0
    assert seen() == ["finished"]
    assert project.statuses() == {"a": "succeeded"}
    assert "1 running task may go on for 10 s. A second signal stops at once\n" in ran.err


class Unheard(Stream):
    """Standard error whose reader has left."""

    def write(self, _text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_what_cannot_be_said_any_more_does_not_end_the_work(project: Terminal) -> None:
    project.store("a", payload=b"{}")
    shell = attrs.evolve(project.shell(), stderr=Unheard())
    assert main(["run", "jobs_here:interrupted", "--store", "memory:"], shell) == 0
    assert seen() == ["finished"]
    assert project.statuses() == {"a": "succeeded"}


def test_a_wrong_command_line_that_nobody_hears_of_keeps_its_status(project: Terminal) -> None:
    shell = attrs.evolve(project.shell(), stderr=Unheard())
    assert main(["run", "jobs_here:setup", "--burts"], shell) == 2
    assert main(["run", "jobs_here:raises", "--store", "memory:"], shell) == 1


def test_a_handler_that_needs_longer_than_the_grace_is_handed_back(project: Terminal) -> None:
    project.store("a", payload=b"{}")
    ran = project("run", "jobs_here:interrupted_for_long", "--grace", "0.01s")
    assert ran.status == 0
    assert ran.err.endswith("dispatch: stopped; 1 task handed back\n")
    assert project.statuses() == {"a": "pending"}


def test_the_second_signal_stops_at_once_and_hands_back(project: Terminal) -> None:
    project.store("a", payload=b"{}")
    ran = project("run", "jobs_here:interrupted_twice")
    assert ran.status == 1
    assert ran.err.endswith("dispatch: stopped at once\n")
    assert project.statuses() == {"a": "pending"}
    [record] = project.does(project.storage.find, All()).records
    assert record.attempt == 0


@pytest.mark.parametrize(
    ("target", "status", "said"),
    [
        ("jobs_here", 2, "run wants MODULE:CALLABLE, such as app.jobs:setup; got 'jobs_here'"),
        (":setup", 2, "run wants MODULE:CALLABLE"),
        ("jobs_here:", 2, "run wants MODULE:CALLABLE"),
        (".jobs_here:setup", 2, "run wants MODULE:CALLABLE"),
        ("jbos_here:setup", 1, "there is no module 'jbos_here'; did you mean 'jobs_here'?"),
        ("package.jobs:setup", 1, "there is no module 'package'; there are: jobs_here"),
        ("jobs_here:setpu", 1, "jobs_here has no 'setpu'; did you mean 'setup'?"),
        ("jobs_here:zzz", 1, "jobs_here has no 'zzz'; it must be a function there"),
        ("jobs_here:number", 1, "jobs_here:number is no function but int"),
        ("jobs_here:none", 1, "jobs_here:none() must take one argument, the Dispatcher"),
        (
            "jobs_here:two",
            1,
            "jobs_here:two(dispatcher, other) must take one argument, the Dispatcher",
        ),
        ("jobs_here:returns", 1, "it returned Dispatcher"),
    ],
)
def test_a_target_that_is_none_is_explained(
    project: Terminal, target: str, status: int, said: str
) -> None:
    ran = project("run", target, "--burst")
    assert (ran.status, ran.out) == (status, "")
    assert said in ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("shop.servic", "there is no module 'shop.servic'; did you mean 'shop.service'?"),
        ("shop.back.ofice", "there is no module 'shop.back.ofice'; did you mean 'shop.back.office'?"),
        ("shop.zzz", "there is no module 'shop.zzz'; there are: shop.back, shop.service"),
        ("shpo.service", "there is no module 'shpo'; did you mean 'shop'?"),
        ("jobs_here.setup", "there is no module 'jobs_here.setup'"),
    ],
)
def test_a_module_of_a_package_is_suggested_with_its_package(
    project: Terminal, tmp_path: Path, target: str, said: str
) -> None:
    back = tmp_path / "shop" / "back"
    back.mkdir(parents=True)
    for folder, name in ((back.parent, "__init__"), (back.parent, "service"), (back, "__init__"), (back, "office")):
        write(folder, name, "")
    ran = project("run", f"{target}:setup", "--burst")
    assert (ran.status, ran.err) == (1, f"dispatch: {said}\n")


@pytest.mark.parametrize(
    ("text", "told", "last"),
    [
        ("import nosuchthing", "import nosuchthing", "dispatch: importing broken_here failed"),
        ("def f(:", "SyntaxError", "dispatch: importing broken_here failed"),
        ("x = 1 / 0", "x = 1 / 0", "dispatch: importing broken_here failed"),
        ("import trio\nasync def main(): ...\ntrio.run(main)", "trio.run(main)", '`if __name__ == "__main__":`'),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_a_module_that_fails_is_shown_with_its_own_traceback(
    project: Terminal, tmp_path: Path, text: str, told: str, last: str
) -> None:
    write(tmp_path, "broken_here", text)
    ran = project("run", "broken_here:setup")
    assert ran.status == 1
    assert told in ran.err
    assert ran.err.splitlines()[-1].endswith(last)
    assert "dispatch/cli" not in ran.err
    assert "importlib" not in ran.err


def test_a_module_that_exits_is_told_how_not_to(project: Terminal, tmp_path: Path) -> None:
    write(tmp_path, "broken_here", "raise SystemExit(0)")
    ran = project("run", "broken_here:setup")
    assert ran.status == 1
    assert ran.err.startswith("dispatch: importing broken_here ended with SystemExit(0); put what")


def test_a_function_that_fails_is_shown_with_its_own_traceback(project: Terminal) -> None:
    ran = project("run", "jobs_here:raises")
    assert ran.status == 1
    lines = ran.err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].strip().startswith("File ")
    assert "jobs_here.py" in lines[1]
    assert "raise LookupError" in ran.err
    assert lines[-1] == "dispatch: jobs_here:raises failed"
    assert "\x1b" not in ran.err


def test_what_fails_at_the_end_is_told_as_well(project: Terminal) -> None:
    ran = project("run", "jobs_here:ends_badly", "--burst")
    assert ran.status == 1
    assert "LookupError: cannot close" in ran.err
    assert ran.err.endswith("dispatch: jobs_here:ends_badly failed at its end\n")


@pytest.mark.parametrize(
    "option", [("--grace", "soon"), ("--lease", "0s"), ("--log-level", "loud")]
)
def test_a_setting_that_makes_no_sense_is_refused(
    project: Terminal, option: tuple[str, str]
) -> None:
    ran = project("run", "jobs_here:setup", "--burst", *option)
    assert (ran.status, ran.out) == (2, "")


# -- reloading --------------------------------------------------------------------


def reloading_ends(project: Terminal) -> int:
    """The status of a worker that reloads, if a signal ends it."""

    async def run() -> int:
        shell = attrs.evolve(project.shell(), arguments=("run", "jobs_here:setup", "--reload"))
        with trio.fail_after(20):
            return await reloading(shell, grace=1.0)

    return trio.run(run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_a_reloading_worker_is_started_is_not_lost(
    project: Terminal, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def signalled(_root: Path) -> dict[str, int]:
        os.kill(os.getpid(), number)
        time.sleep(0.05)
        return {}

    async def not_started(*_: object, **__: object) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(reload, "snapshot", signalled)
    monkeypatch.setattr(trio.lowlevel, "open_process", not_started)
    assert reloading_ends(project) == 0


def test_a_signal_while_a_reloading_worker_is_started_is_passed_on(
    project: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = trio.lowlevel.open_process

    async def signalled(_command: object, **options: Any) -> trio.Process:
        os.kill(os.getpid(), signal.SIGINT)
        await trio.sleep(0.05)
        return await opened([sys.executable, "-c", "import time; time.sleep(60)"], **options)

    monkeypatch.setattr(trio.lowlevel, "open_process", signalled)
    assert reloading_ends(project) == 0


def test_a_terminal_that_hangs_up_asks_once_for_the_end() -> None:
    asked: list[str] = []

    async def run() -> None:
        with signals(lambda: asked.append("gracefully"), lambda: asked.append("at once"), hangup=True):
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGHUP)
                await trio.sleep(0.01)

    trio.run(run)
    assert asked == ["gracefully"]


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    async def run() -> None:
        with signals(pytest.fail, pytest.fail, hangup=True):  # as under nohup
            os.kill(os.getpid(), signal.SIGHUP)
            await trio.sleep(0.01)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        trio.run(run)
    finally:
        signal.signal(signal.SIGHUP, before)
