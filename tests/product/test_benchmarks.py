"""The benchmark of peers measures what it says, ends what it starts, and reports what it found."""

from __future__ import annotations

import ast
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import attrs
import pytest

from benchmarks import memory
from benchmarks.peers import matrix
from benchmarks.peers.aims import aims
from benchmarks.peers.contestants import CONTESTANTS, ROOT, Contestant
from benchmarks.peers.environments import CannotInstallError, cache_folder, environment, interpreter
from benchmarks.peers.fleet import Tally
from benchmarks.peers.found import Found
from benchmarks.peers.page import write_page
from benchmarks.workload import fields
from tests.conclusive import AGAIN, in_time

DRIVERS = ROOT / "benchmarks/peers/drivers"
BY_NAME = {each.name: each for each in CONTESTANTS}


@contextmanager
def no_store() -> Iterator[str]:
    yield ""


def test_everybody_is_given_the_same_six_fields() -> None:
    assert fields(7) == attrs.asdict(memory.order(7))


@pytest.mark.parametrize("contestant", CONTESTANTS, ids=lambda each: each.name)
def test_each_contestant_has_its_driver(contestant: Contestant) -> None:
    module, _, name = contestant.driver.partition(":")
    tree = ast.parse((DRIVERS / f"{module}.py").read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    pinned = [each for each in contestant.requirements if "==" in each]
    assert pinned or str(ROOT) in contestant.requirements[0]


ENCODED_FOUR_TIMES = """
import sys
sys.path.insert(0, "benchmarks")
import guard
from dispatch.codec import Codec
once = Codec.encode
def encode(self, *args, **how):
    for _ in range(3):
        once(self, *args, **how)
    return once(self, *args, **how)
Codec.encode = encode
sys.argv = ["guard.py", "--tasks", "500"]
sys.exit(guard.main())
"""


@pytest.mark.battery
def test_work_that_is_done_over_and_over_is_noticed() -> None:
    found = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-c", ENCODED_FOUR_TIMES], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode == 1, found.stderr
    verdicts = {line[:36].strip(): line.endswith("BEYOND ITS BOUND") for line in found.stdout.splitlines()}
    assert verdicts["memory, one by one: calls"]
    assert verdicts["memory, 100 at a time: calls"]
    assert not verdicts["SQLite, one by one: commits"]


@pytest.mark.parametrize("name", ["trio-channel", "dispatch-memory", "dispatch-loaded"])
def test_a_measurement_runs_in_a_process_of_its_own(name: str) -> None:
    cell = matrix.Cell("throughput at 4", "throughput", 200, 4)
    found = matrix.measure_one(BY_NAME[name], cell, Path(sys.executable), no_store, 60.0)
    assert "error" not in found
    assert found["tasks"] == 200
    assert found["rate"] > 100
    assert "trio" in found["versions"]


@pytest.mark.battery
def test_the_workers_of_a_fleet_are_processes_of_their_own(tmp_path: Path) -> None:
    @contextmanager
    def file() -> Iterator[str]:
        yield str(tmp_path / "store.db")

    cell = matrix.Cell("fleet at 4", "fleet", 200, 4)
    found = matrix.measure_one(BY_NAME["dispatch-sqlite"], cell, Path(sys.executable), file, 60.0)
    assert "error" not in found
    assert found["rate"] > 10
    with closing(sqlite3.connect(tmp_path / "store.db")) as db:
        workers = db.execute("SELECT worker, count(*) FROM dispatch_tasks WHERE status = 'succeeded' GROUP BY 1").fetchall()
    assert len(workers) == 2
    assert sum(count for _, count in workers) >= 200


def test_a_worker_process_ends_with_who_started_it(tmp_path: Path) -> None:
    tally = Tally.made(tmp_path / "tally", 1)
    spec = {"measure": "worker", "store": str(tmp_path / "store.db"), "tally": str(tmp_path / "tally")}
    command = [sys.executable, "-m", "benchmarks.peers.run", "dispatch_queue:Dispatch", json.dumps(spec)]
    starting = f"import subprocess, sys, time; print(subprocess.Popen({command}).pid, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", starting], cwd=ROOT, stdout=subprocess.PIPE) as starter:  # noqa: S603 - our own
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert waited(lambda: tally.reached(0))
        assert alive(pid)
        starter.kill()
    assert waited(lambda: not alive(pid))


def waited(done: Callable[[], bool]) -> bool:
    """Whether it is so within twenty seconds."""
    ends = time.monotonic() + 20.0
    while not done() and time.monotonic() < ends:
        time.sleep(0.02)
    return done()


def test_a_contestant_that_fails_says_why() -> None:
    cell = matrix.Cell("memory", "memory", 1_000)
    found = matrix.measure_one(
        replace(BY_NAME["trio-channel"], driver="trio_channel:Missing"), cell, Path(sys.executable), no_store, 60.0
    )
    assert found["error"].startswith("failed: AttributeError: ")


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text(encoding="ascii").rpartition(")")[2].split()[0] not in "ZX"


START_A_SLEEPER = (
    "import json, subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    "open(sys.argv[1], 'w').write(str(child.pid))\n"
)


@AGAIN
@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ("time.sleep(60)", {"error": "did not finish in 1 s"}),
        ("print(json.dumps({'rate': 5.0}), flush=True)", {"rate": 5.0}),
        ("raise ValueError('no')", {"error": "failed: ValueError: no"}),
    ],
    ids=["at the limit", "done", "failed"],
)
def test_whatever_a_measurement_started_is_ended_with_it(
    tmp_path: Path, ending: str, expected: dict[str, Any]
) -> None:
    note = tmp_path / "pid"
    began = time.monotonic()
    limit_s = 1.0 if "sleep" in ending else 20.0
    assert matrix.child([sys.executable, "-c", START_A_SLEEPER + ending, str(note)], limit_s) == expected
    took_s = time.monotonic() - began
    pid = int(note.read_text())
    for _ in range(100):
        if not alive(pid):
            break
        time.sleep(0.02)
    assert not alive(pid)
    in_time({"took_s": took_s}, took_s=15.0)


@pytest.mark.battery
@pytest.mark.parametrize("where", [[], ["--postgres"]], ids=["SQLite", "PostgreSQL"])
def test_the_pages_are_timed_one_by_one(where: list[str]) -> None:
    command = [sys.executable, "benchmarks/pages.py", "--tasks", "400", "--rounds", "1", *where]
    ran = subprocess.run(  # noqa: S603 - our own file
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    lines = [line.split() for line in ran.stdout.splitlines()[2:]]
    assert {"/", "/queues", "/tasks?queue=rare", "/workers"} <= {line[0] for line in lines}
    assert all(float(first) > 0 and float(again) > 0 for _, first, again in lines)


def test_who_failed_at_a_size_is_not_asked_for_a_larger_one() -> None:
    small, large = (
        matrix.Cell(f"growth at {size}", "growth", size, kind="growth", size=size) for size in (1_000, 10_000)
    )
    other = matrix.Cell("latency", "latency", 10)
    assert matrix.hopeless(large, [small])
    assert matrix.hopeless(small, [small])
    assert not matrix.hopeless(small, [large])
    assert not matrix.hopeless(other, [small])


def test_the_cache_is_never_in_the_repository(tmp_path: Path) -> None:
    assert cache_folder(str(tmp_path / "new")).is_dir()
    for folder in (ROOT, ROOT / "benchmarks" / "cache"):
        with pytest.raises(SystemExit, match="outside the repository"):
            cache_folder(str(folder))


def test_who_cannot_be_installed_is_told_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CannotInstallError, match=r"needs Python 3\.90 or newer"):
        interpreter((3, 90))
    monkeypatch.setattr("benchmarks.peers.environments.run", refuse)
    with pytest.raises(CannotInstallError, match="no such package"):
        environment(tmp_path, ("nowhere==1",), (3, 11))


def refuse(command: list[str]) -> None:
    raise CannotInstallError(f"no such package: {command[-1]}")


def results(tmp_path: Path) -> Path:
    """Two rounds of three contestants, one of whom fails at a size, and one who is absent."""
    options = matrix.Options(rounds=2, waiting=(1_000, 10_000))
    made = matrix.Results(matrix.about(options))
    for name in ("trio-channel", "dispatch-memory", "huey-memory", "triotp"):
        each = BY_NAME[name]
        made.contestants[name] = {
            "title": each.title, "family": each.family, "role": each.role, "retries": each.retries,
            "settings": each.settings, "share": each.share, "versions": {"x": "1"},
        }
    made.contestants["triotp"] |= {"absent": "needs another Python"}

    def add(number: int, cell: str, contestant: str, **found: Any) -> None:
        made.runs.append({"round": number, "cell": cell, "contestant": contestant, "tasks": 1, **found})

    for number, (bare, ours) in enumerate([(100_000.0, 20_000.0), (50_000.0, 20_000.0)], 1):
        add(number, "throughput at 10", "trio-channel", rate=bare)
        add(number, "throughput at 10", "dispatch-memory", rate=ours)
        add(number, "throughput at 10", "huey-memory", rate=5_000.0)
        add(number, "latency", "trio-channel", p50=0.0001, p99=0.0002)
        add(number, "latency", "dispatch-memory", p50=0.0003, p99=0.0004)
        for size in (1_000, 10_000):
            add(number, f"growth at {size}", "dispatch-memory", each=1e-5, first=0.0)
        add(number, "growth at 1000", "huey-memory", each=2e-5, first=0.0)
        add(number, "memory", "dispatch-memory", bytes=812.4)
        add(number, "idle", "dispatch-memory", cpu=0.0004)
    add(1, "growth at 10000", "huey-memory", error="did not finish in 120 s")
    path = tmp_path / "results.json"
    made.write(path)
    return path


def test_ratios_are_taken_within_a_round(tmp_path: Path) -> None:
    found = Found(**json.loads(results(tmp_path).read_text()))
    assert found.ratio("throughput at 10", "dispatch-memory", "trio-channel", "rate") == pytest.approx(0.3)
    assert found.median("throughput at 10", "trio-channel", "rate") == 75_000
    assert found.ratio("throughput at 10", "dispatch-memory", "chancy", "rate") is None
    judged = {aim.what: (value, aim.met(value)) for aim, value in aims(found)}
    assert judged["in memory, of the bare channel, throughput at 10"] == (pytest.approx(0.3), True)
    assert judged["in memory, p50 in times the bare channel's"] == (pytest.approx(3.0), False)
    assert judged["in memory, times huey, in memory, throughput at 10"] == (4.0, True)
    assert not any("SQLite" in what for what in judged)


def test_the_page_tells_figures_failures_and_absences(tmp_path: Path) -> None:
    page = write_page([results(tmp_path)], tmp_path / "docs")
    text = page.read_text(encoding="utf-8")
    assert "| dispatch, in memory | 20,000 | 0.300 | 1.00 x |" in text
    assert "At growth at 10000: huey, in memory did not finish in 120 s." in text
    assert "needs another Python" in text
    assert str(ROOT) not in text
    plots = sorted(each.name for each in (tmp_path / "docs/benchmarks").iterdir())
    assert plots == ["memory-growth.svg", "memory-throughput.svg"]
    for name in plots:
        assert f"(benchmarks/{name})" in text
        drawn = ElementTree.parse(tmp_path / "docs/benchmarks" / name)  # noqa: S314 - written a moment ago
        said = [each.text for each in drawn.iter("{http://www.w3.org/2000/svg}text")]
        assert "dispatch, in memory" in said


def test_what_was_measured_again_replaces_what_failed(tmp_path: Path) -> None:
    first = results(tmp_path)
    later = json.loads(first.read_text(encoding="utf-8"))
    later["runs"] = [{"round": 1, "cell": "growth at 10000", "contestant": "huey-memory", "tasks": 1, "each": 3e-5, "first": 0.0}]
    later["about"]["command"] = "the command again"
    for row in later["contestants"].values():
        row.pop("versions", None)
    again = tmp_path / "again.json"
    again.write_text(json.dumps(later), encoding="utf-8")
    text = write_page([first, again], tmp_path / "docs").read_text(encoding="utf-8")
    assert "did not finish" not in text
    assert "| huey, in memory | 20.0 | 30.0 | 1.50 x |" in text
    assert "` and `the command again`" in text
    assert "| bare trio channel | x 1 | a memory channel of 128, worker tasks |   |" in text, "it was left out, not absent"
    later["about"]["machine"] = "another"
    again.write_text(json.dumps(later), encoding="utf-8")
    with pytest.raises(SystemExit, match="not of one machine"):
        write_page([first, again], tmp_path / "docs")


def test_a_command_is_told_without_paths() -> None:
    given = ["matrix", "--cache", "/home/ada", "--rounds", "3", "--output=/home/ada/x.json"]
    assert matrix.spoken(given) == ["matrix", "--rounds", "3"]
