"""The command as a person starts it: real processes, a real file, signals, pipes and a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from urllib.request import urlopen

import attrs
import pytest

from tests.conclusive import in_time

ROOT = Path(__file__).parents[2]
LIMIT_S = 60.0

JOBS = """
    import time
    from pathlib import Path
    from attrs import frozen
    import trio
    from dispatch import Dispatcher, QueueTask, TaskType

    @frozen
    class Job:
        s: float = 0.0

    async def polite(task: QueueTask[Job]) -> None:
        print("began", flush=True)
        while Path("hold").exists():
            await trio.sleep(0.02)
        print("ended", flush=True)

    async def blocking(task: QueueTask[Job]) -> None:
        print("began", flush=True)
        time.sleep(task.payload.s)

    async def swallowing(task: QueueTask[Job]) -> None:
        print("began", flush=True)
        while True:
            try:
                await trio.sleep(0.1)
            except trio.Cancelled:
                time.sleep(0.01)

    async def failing(task: QueueTask[Job]) -> None:
        raise ValueError("no")

    def setup(dispatcher: Dispatcher) -> None:
        dispatcher.consumer.register_queue("jobs")
        for handler in (polite, blocking, swallowing, failing):
            dispatcher.consumer.register_handler(TaskType("jobs", handler.__name__, Job), handler)
"""


@attrs.frozen
class Project:
    """A working directory with a store, a module, and commands run in it."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "DISPATCH_STORE": "sqlite:///jobs.db",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-W", "error", "-m", "dispatch", *arguments]

    def __call__(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return self._run(self.command(*arguments), stdin)

    def piped(self, into: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command in a shell's line, its output `into` something."""
        return self._run(["sh", "-c", f"{shlex.join(self.command(*arguments))} {into}"])

    def _run(self, command: list[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603 - our own command
            command,
            cwd=self.folder,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    def start(self, *arguments: str, stderr: int = subprocess.STDOUT) -> subprocess.Popen[str]:
        return subprocess.Popen(  # noqa: S603 - our own command
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    def statuses(self) -> dict[str, int]:
        tasks = json.loads(self("task", "ls", "--json").stdout)["tasks"]
        return {task["status"]: task["attempt"] for task in tasks}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "jobs.py").write_text(dedent(JOBS), encoding="utf-8")
    made = Project(tmp_path)
    assert made("run", "jobs:setup", "--burst").returncode == 0
    return made


def until(process: subprocess.Popen[str], text: str) -> str:
    """What it prints, up to a line with `text`."""
    assert process.stdout is not None
    read: list[str] = []
    for line in process.stdout:
        read.append(line)
        if text in line:
            return "".join(read)
    raise AssertionError(f"ended with {process.wait()} before {text!r}:\n{''.join(read)}")


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    rest, _ = process.communicate(timeout=LIMIT_S)
    return process.returncode, rest


@pytest.fixture
def started(project: Project) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes to be ended, whatever the test met."""
    running: list[subprocess.Popen[str]] = []
    yield running
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_the_module_is_the_command(tmp_path: Path) -> None:
    ran = Project(tmp_path)(
        "cron", "preview", "@hourly", "-n", "1", "--after", "2026-01-01T00:30:00Z"
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines()[1].startswith("Thu 2026-01-01 01:00:00 UTC")


@pytest.mark.battery
def test_tasks_are_published_run_listed_retried_and_deleted(project: Project) -> None:
    assert project("task", "push", "jobs", "polite").returncode == 0
    lines = "\n".join(
        json.dumps({"queue": "jobs", "type": "failing", "payload": {}}) for _ in range(3)
    )
    assert project("task", "push", "--file", "-", stdin=lines).stdout == "published 3 tasks\n"
    assert project("check").returncode == 1
    ran = project("run", "jobs:setup", "--burst")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "began\nended\n"
    assert project("check").returncode == 0
    listed = project("task", "ls", "--status", "failed").stdout
    assert listed.count("\n") == 3
    assert project("task", "retry", "-", stdin=listed).stdout == "retried 3 tasks\n"
    assert project("run", "jobs:setup", "--burst").returncode == 0
    watched = project("task", "watch", "-", stdin=listed)
    assert (watched.returncode, watched.stdout.count("failed  attempt 2  ValueError: no")) == (1, 3)
    assert project("prune", "--keep", "0", "--dead-letters", "--yes").stdout == "deleted 4 tasks\n"
    assert project("task", "ls").stdout == ""


@pytest.mark.battery
def test_a_worker_finishes_what_it_runs_when_it_is_told_to_stop(
    project: Project, started: list[subprocess.Popen[str]]
) -> None:
    (project.folder / "hold").touch()
    project("task", "push", "jobs", "polite")
    worker = project.start("run", "jobs:setup")
    started.append(worker)
    until(worker, "began")
    assert json.loads(project("stats", "--json").stdout)["tasks"]["running"] == 1
    assert "1 live worker" in project("check").stdout
    worker.send_signal(signal.SIGTERM)
    until(worker, "1 running task may go on for 10 s")
    (project.folder / "hold").unlink()
    status, rest = ended(worker)
    assert status == 0
    assert "ended\n" in rest
    assert project.statuses() == {"succeeded": 1}


@pytest.mark.battery
def test_a_worker_whose_log_nobody_reads_any_more_still_finishes_what_it_runs(
    project: Project, started: list[subprocess.Popen[str]]
) -> None:
    (project.folder / "hold").touch()
    project("task", "push", "jobs", "polite")
    # As in `dispatch run ... 2>&1 | tee log`, where Ctrl-C ends tee as well.
    worker = project.start("run", "jobs:setup", stderr=subprocess.PIPE)
    started.append(worker)
    until(worker, "began")
    assert worker.stderr is not None
    worker.stderr.close()
    worker.send_signal(signal.SIGINT)
    time.sleep(0.5)
    (project.folder / "hold").unlink()
    assert until(worker, "ended") == "ended\n"
    assert worker.wait(LIMIT_S) == 0
    assert project.statuses() == {"succeeded": 1}


@pytest.mark.battery
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_worker_works_though_its_log_is_on_a_full_disk(project: Project) -> None:
    project("task", "push", "jobs", "polite")
    ran = project.piped("2> /dev/full", "run", "jobs:setup", "--burst", "--log-level", "debug")
    assert (ran.returncode, ran.stdout) == (0, "began\nended\n")


@pytest.mark.battery
@pytest.mark.parametrize(("kind", "within_s"), [("blocking", 2.0), ("swallowing", 2.0)])
def test_a_handler_that_will_not_stop_does_not_keep_the_process(
    project: Project, started: list[subprocess.Popen[str]], kind: str, within_s: float
) -> None:
    project("task", "push", "jobs", kind, '{"s": 50}')
    worker = project.start("run", "jobs:setup", "--lease", "1s")
    started.append(worker)
    until(worker, "began")
    for _ in range(2):
        worker.send_signal(signal.SIGINT)
        time.sleep(0.3)
    begun = time.monotonic()
    status, said = ended(worker)
    assert status == 1
    ended_s = time.monotonic() - begun
    assert "the process is left as it is; what runs is run again when its lease is over" in said
    assert project.statuses() == {"running": 1}
    in_time({"ended_s": ended_s}, ended_s=within_s + 3.0)


FULL_PIPE = """
import os, trio
from dispatch.cli.signals import signals
os.set_blocking(2, False)
try:
    while True:
        os.write(2, b"x")
except BlockingIOError:
    os.set_blocking(2, True)
async def main():
    with signals(lambda: None, lambda: None), trio.CancelScope(shield=True):
        print("ready", flush=True)
        await trio.sleep(60)
trio.run(main)
"""


@pytest.mark.battery
@pytest.mark.parametrize("signals", [2, 3])
def test_a_log_that_stands_still_does_not_keep_the_process(signals: int) -> None:
    worker = subprocess.Popen(  # noqa: S603 - our own text
        [sys.executable, "-c", FULL_PIPE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with worker:
        try:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
            for _ in range(signals):
                worker.send_signal(signal.SIGINT)
                time.sleep(0.1)
            assert worker.wait(LIMIT_S) == 1
        finally:
            worker.kill()


@pytest.mark.battery
def test_a_third_signal_ends_it_that_very_moment(
    project: Project, started: list[subprocess.Popen[str]]
) -> None:
    project("task", "push", "jobs", "blocking", '{"s": 50}')
    worker = project.start("run", "jobs:setup")
    started.append(worker)
    until(worker, "began")
    begun = time.monotonic()
    for _ in range(3):
        worker.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert ended(worker)[0] == 1
    in_time({"ended_s": time.monotonic() - begun}, ended_s=1.9)


@pytest.mark.battery
@pytest.mark.parametrize("option", ["--reload", "--reload=true"])
def test_a_worker_is_started_anew_when_its_code_changes(
    project: Project, started: list[subprocess.Popen[str]], option: str
) -> None:
    module = project.folder / "jobs.py"
    original = module.read_text(encoding="utf-8")
    worker = project.start("run", "jobs:setup", option)
    started.append(worker)
    until(worker, "works on jobs")
    module.write_text(original.replace('"began"', '"anew"'), encoding="utf-8")
    until(worker, "jobs.py changed; starting anew")
    until(worker, "works on jobs")
    project("task", "push", "jobs", "polite")
    until(worker, "anew")
    module.write_text("def setup(:", encoding="utf-8")
    assert "SyntaxError" in until(worker, "ended with status 1; waiting for a change")
    module.write_text(original, encoding="utf-8")
    until(worker, "works on jobs")
    worker.send_signal(signal.SIGINT)
    status, rest = ended(worker)
    assert status == 0
    assert rest.endswith("dispatch: stopped\n")


@pytest.mark.battery
def test_a_reloaded_worker_finishes_what_it_runs_when_the_terminal_is_closed(project: Project) -> None:
    (project.folder / "hold").touch()
    project("task", "push", "jobs", "polite")
    process, terminal = pty.fork()
    if process == 0:  # pragma: no cover - becomes the command
        os.chdir(project.folder)
        os.execve(sys.executable, project.command("run", "jobs:setup", "--reload"), project.environment)  # noqa: S606
    drawn(terminal, "works on jobs")
    deadline = time.monotonic() + 20
    while "running" not in project.statuses():
        assert time.monotonic() < deadline
    os.close(terminal)  # SIGHUP
    time.sleep(0.5)
    (project.folder / "hold").unlink()
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert "no live worker, 0 due" in project("check", "--queue", "jobs").stdout


@pytest.mark.battery
@pytest.mark.parametrize("kind", ["polite", "blocking"])
def test_a_reloaded_worker_ends_with_its_parent_however_that_was_killed(
    project: Project, started: list[subprocess.Popen[str]], kind: str
) -> None:
    (project.folder / "hold").touch()
    project("task", "push", "jobs", kind, '{"s": 50}')
    worker = project.start("run", "jobs:setup", "--reload", "--grace", "0.1s")
    started.append(worker)
    until(worker, "began")
    begun = time.monotonic()
    worker.kill()
    status, _ = ended(worker)  # when nobody has its output open any more
    assert status == -signal.SIGKILL
    ended_s = time.monotonic() - begun
    assert project.statuses() == ({"pending": 0} if kind == "polite" else {"running": 1})
    in_time({"ended_s": ended_s}, ended_s=5.0)


@pytest.mark.battery
def test_output_into_a_pipe_that_closes_is_no_traceback(project: Project) -> None:
    lines = "\n".join(
        json.dumps({"queue": "jobs", "type": "polite", "payload": {}}) for _ in range(3_000)
    )
    assert project("task", "push", "--file", "-", stdin=lines).returncode == 0
    ran = project.piped("| head -1", "task", "ls", "-n", "3000")
    assert ran.stdout.count("\n") == 1
    assert ran.stderr == ""


@pytest.mark.battery
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_output_onto_a_full_disk_is_no_traceback(project: Project) -> None:
    assert project("task", "push", "jobs", "polite").returncode == 0
    ran = project.piped("> /dev/full", "task", "ls")
    assert ran.returncode == 1
    assert ran.stderr == (
        "dispatch: No space left on device: not all could be written; what was asked may be done\n"
    )


@pytest.mark.battery
def test_top_draws_on_a_terminal_obeys_keys_and_leaves_it_as_it_was(project: Project) -> None:
    project("task", "push", "jobs", "polite")
    process, terminal = pty.fork()
    if process == 0:  # pragma: no cover - becomes the command
        os.chdir(project.folder)
        environment = {**project.environment, "TERM": "xterm", "COLUMNS": "120", "LINES": "30"}
        os.execve(sys.executable, project.command("top", "--every", "0.2s"), environment)  # noqa: S606
    try:
        assert "1 due" in drawn(terminal, "1 due")
        os.write(terminal, b" ")
        drawn(terminal, "paused")
        os.write(terminal, b"q")
        last = drawn(terminal, "\x1b[?1049l")
        assert "\x1b[?25h" in last  # the cursor is back
    finally:
        _, status = os.waitpid(process, 0)
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.battery
@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not here")
def test_it_draws_in_tmux_and_fits_a_window_that_is_made_smaller(project: Project) -> None:
    project("task", "push", "jobs", "polite")
    socket = project.folder / "tmux"
    # The processes that run the tests are given a size, which would count for more than the terminal's.
    sized_by_the_terminal = {
        name: value for name, value in project.environment.items() if name not in ("COLUMNS", "LINES")
    }

    def tmux(*words: str) -> str:
        ran = subprocess.run(  # noqa: S603 - a server of our own, on a socket of our own
            ["tmux", "-S", str(socket), "-f", "/dev/null", *words],  # noqa: S607
            cwd=project.folder,
            env={**sized_by_the_terminal, "TERM": "xterm-256color"},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=True,
        )
        return ran.stdout

    def shows(text: str) -> str:
        deadline = time.monotonic() + 30
        while text not in (screen := tmux("capture-pane", "-p")):
            assert time.monotonic() < deadline, f"no {text!r} in {screen}"
            time.sleep(0.1)
        return screen

    top = shlex.join(project.command("top", "--every", "0.2s"))
    tmux("new-session", "-d", "-x", "110", "-y", "30", f"{top}; echo ended with $?; sleep 60")
    try:
        assert "jobs" in shows("1 due")
        tmux("resize-window", "-x", "96", "-y", "20")
        assert max(map(len, shows("1 due").splitlines())) <= 96
        tmux("send-keys", "q")
        shows("ended with 0")
        listing = shlex.join(project.command("task", "ls"))
        tmux("respawn-window", "-k", f"{listing}; sleep 60")
        assert "pending" in shows("polite")
    finally:
        tmux("kill-server")


def drawn(terminal: int, text: str) -> str:
    """What comes out of the terminal, until `text` has."""
    found = ""
    deadline = time.monotonic() + 20
    while text not in found and text not in re.sub(r"\x1b\[[0-9;]*m", "", found):
        ready, _, _ = select.select([terminal], [], [], max(deadline - time.monotonic(), 0))
        assert ready, f"no {text!r} in {found!r}"
        try:
            found += os.read(terminal, 65_536).decode()
        except OSError:  # it has ended
            break
    return re.sub(r"\x1b\[[0-9;]*m", "", found)


@pytest.mark.battery
def test_the_dashboard_is_served_until_a_signal_comes(
    project: Project, started: list[subprocess.Popen[str]]
) -> None:
    pytest.importorskip("starlette")
    server = project.start("web", "--port", "0")
    started.append(server)
    [url] = re.findall(
        r"http://127\.0\.0\.1:\d+", until(server, "dashboard of sqlite:///jobs.db at ")
    )
    with urlopen(url, timeout=20) as answer:  # noqa: S310 - our own server
        assert answer.status == 200
        assert b"jobs" in answer.read()
    ran = project("web", "--port", url.rpartition(":")[2])
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"dispatch: cannot listen on {url.removeprefix('http://')}: ")
    server.send_signal(signal.SIGTERM)
    assert ended(server)[0] == 0


@pytest.mark.battery
def test_a_postgresql_database_is_migrated_and_then_worked_on(project: Project) -> None:
    pytest.importorskip("psycopg")
    from dispatch.testing.postgres import postgres_server

    with postgres_server() as server:
        there = ("--store", server.fresh_database())
        ran = project("queue", "ls", *there)
        assert (ran.returncode, ran.stdout) == (1, "")
        assert "run `dispatch migrate`" in ran.stderr
        assert "schema dispatch was made, at version" in project("migrate", *there).stdout
        assert "schema dispatch is up to date, at version" in project("migrate", *there).stdout
        assert project("run", "jobs:setup", "--burst", *there).returncode == 0
        assert project("task", "push", "jobs", "polite", *there).returncode == 0
        assert project("run", "jobs:setup", "--burst", *there).stdout == "began\nended\n"
        assert project("check", *there).returncode == 0
        assert project("prune", "--keep", "0", "--yes", *there).stdout == "deleted 1 task\n"


@pytest.mark.battery
def test_the_completion_script_completes(project: Project) -> None:
    script = project("completion", "bash").stdout
    typed = 'COMP_WORDS=(dispatch task "") COMP_CWORD=2; _dispatch; echo "${COMPREPLY[@]}"'
    ran = subprocess.run(  # noqa: S603 - our own script
        ["/bin/bash", "-c", f"{script}\n{typed}"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert set(ran.stdout.split()) >= {"ls", "show", "retry", "cancel", "rm", "push", "watch"}
