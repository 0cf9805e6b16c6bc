"""What is measured, of whom, in which order; and the process of each measurement.

Theory of operation. A *cell* is one measurement with its settings, such as the
throughput at concurrency 10. Round by round, cell by cell, its contestants come
one right after the other, so that a machine that drifts hits them alike; ratios
are later taken within a round. Each measurement is a process of its own over a
store of its own, bounded by a limit after which it is killed with all it
started; a contestant that hit the limit is not asked for that cell again, nor
for a larger one of the same kind. Results are written after every measurement.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.peers.contestants import CONTESTANTS, ROOT, Contestant, Family
from benchmarks.peers.environments import CannotInstallError, environment
from benchmarks.workload import machine

__all__ = ["Cell", "Options", "Results", "cells", "measure_one", "run_matrix"]

Say = Callable[[str], None]
Store = Callable[[], AbstractContextManager[str]]


@dataclass(frozen=True)
class Options:
    """The sizes, and what is wanted of the matrix."""

    rounds: int = 5
    tasks: int | None = None
    """None: 20,000 in memory, 10,000 on a database."""
    concurrency: tuple[int, ...] = (1, 10, 100)
    samples: int = 300
    waiting: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    kept: int = 50_000
    """Tasks that wait while memory is measured."""
    limit_s: float = 120.0
    families: tuple[Family, ...] = ("memory", "sqlite", "postgres")
    measures: tuple[str, ...] = ("throughput", "fleet", "latency", "publishing", "growth", "memory", "idle")
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One measurement with its settings; `kind` and `size` say which are larger ones of the same."""

    name: str
    measure: str
    tasks: int
    concurrency: int = 10
    producers: int = 1
    bulk: bool = True
    kind: str = ""
    size: int = 0

    def takes(self, contestant: Contestant) -> bool:
        """Whether this contestant is measured in it."""
        if self.measure not in contestant.measures:
            return False
        # Who has no way to publish in bulk is measured once, not twice alike.
        return contestant.bulk or self.bulk == (self.measure != "publishing")


def cells(family: Family, options: Options) -> Iterator[Cell]:
    """The cells of one family."""
    tasks = options.tasks if options.tasks is not None else 20_000 if family == "memory" else 10_000
    for concurrency in options.concurrency:
        yield Cell(f"throughput at {concurrency}", "throughput", tasks, concurrency)
    yield Cell("throughput at 10, published one by one", "throughput", tasks, 10, bulk=False)
    for concurrency in options.concurrency:
        yield Cell(f"fleet at {concurrency}", "fleet", tasks, concurrency)
    yield Cell("latency", "latency", options.samples)
    yield Cell("publishing, one producer", "publishing", tasks, bulk=False)
    yield Cell("publishing, 100 producers", "publishing", tasks, producers=100, bulk=False)
    yield Cell("publishing in bulk", "publishing", tasks)
    for waiting in sorted(options.waiting):
        yield Cell(f"growth at {waiting}", "growth", waiting, kind="growth", size=waiting)
    yield Cell("memory", "memory", options.kept)
    yield Cell("idle", "idle", 0)


@dataclass
class Results:
    """Everything that was found, as it is written to the file."""

    about: dict[str, Any]
    contestants: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Replace the file; a reader never sees half of it."""
        beside = path.with_suffix(".part")
        beside.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        beside.replace(path)


def run_matrix(options: Options, cache: Path, output: Path, say: Say) -> Results:
    """Measure everything asked for, and write the results to `output` as they come."""
    results = Results(about(options))
    with ExitStack() as stack:
        present = prepared(options, cache, results, say)
        stores: dict[Family, Store] = {}
        for family in {each.family for each, _ in present}:
            stores[family] = stack.enter_context(store_of(family, cache, results))
        given_up: dict[str, list[Cell]] = {}
        for number in range(1, options.rounds + 1):
            for family in options.families:
                field_ = [(each, python) for each, python in present if each.family == family]
                for cell in cells(family, options) if field_ else ():
                    if cell.measure not in options.measures:
                        continue
                    for contestant, python in field_:
                        if not cell.takes(contestant) or hopeless(cell, given_up.get(contestant.name, [])):
                            continue
                        found = measure_one(contestant, cell, python, stores[family], options.limit_s)
                        versions = found.pop("versions", None)
                        if versions is None:
                            given_up.setdefault(contestant.name, []).append(cell)
                        else:
                            results.contestants[contestant.name]["versions"] = versions
                        results.runs.append(
                            {"round": number, "cell": cell.name, "contestant": contestant.name, **found}
                        )
                        say(f"round {number}/{options.rounds}  {cell.name:<42}{contestant.title:<33}{told(found)}")
                        results.write(output)
    results.write(output)
    return results


def about(options: Options) -> dict[str, Any]:
    """What a reader must know to judge or repeat it."""
    return {
        "command": shlex.join(["python", "-m", "benchmarks.peers", *spoken(sys.argv[1:])]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "commit": commit(),
        "options": asdict(options),
    }


def spoken(arguments: Sequence[str]) -> list[str]:
    """The arguments without paths, which are nobody else's business."""
    paths = ("--cache", "--output")
    return [
        each
        for before, each in pairwise(("", *arguments))
        if before not in paths and not each.startswith(paths)
    ]


def commit() -> str:
    """The commit that was measured, marked if the tree differs from it."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    return "unknown"


def prepared(
    options: Options, cache: Path, results: Results, say: Say
) -> list[tuple[Contestant, Path]]:
    """Those asked for who can be installed, with the Python of each; the others are noted."""
    present: list[tuple[Contestant, Path]] = []
    for contestant in CONTESTANTS:
        if contestant.family not in options.families or (options.only and contestant.name not in options.only):
            continue
        row = results.contestants[contestant.name] = asdict(contestant)
        # Paths of this machine are nobody's business.
        row["requirements"] = [each.replace(f"{ROOT}", "trio-dispatch") for each in contestant.requirements]
        try:
            present.append((contestant, environment(cache, contestant.requirements, contestant.needs)))
        except CannotInstallError as exc:
            row["absent"] = str(exc)
            say(f"{contestant.title} cannot take part: {exc}")
    return present


def hopeless(cell: Cell, failed: Sequence[Cell]) -> bool:
    """Whether this cell, or a smaller one of its kind, has failed before."""
    return any(cell == each or (each.kind and each.kind == cell.kind and each.size <= cell.size) for each in failed)


@contextmanager
def store_of(family: Family, cache: Path, results: Results) -> Generator[Store]:
    """What gives each measurement of a family a store of its own, and takes it away."""
    if family == "postgres":
        # Imported here: who measures without a server needs no psycopg.
        from dispatch.testing.postgres import postgres_server

        settings = ("shared_buffers=256MB", "max_wal_size=4GB", "max_connections=200")
        with postgres_server(fsync=True, settings=settings) as server:
            results.about["postgres"] = {"version": server.version, "settings": ["fsync=on", *settings]}

            @contextmanager
            def database() -> Generator[str]:
                dsn = server.fresh_database()
                server.execute("CHECKPOINT")  # or one would pay for what the last one wrote
                try:
                    yield dsn
                finally:
                    server.drop_database(dsn)

            yield database
        return

    @contextmanager
    def file() -> Generator[str]:
        with tempfile.TemporaryDirectory(dir=cache, prefix="store-", ignore_cleanup_errors=True) as folder:
            yield f"{folder}/store.db" if family == "sqlite" else ""

    yield file


def measure_one(
    contestant: Contestant, cell: Cell, python: Path, store: Store, limit_s: float
) -> dict[str, Any]:
    """One measurement in a process of its own: what it found, or `error`."""
    tasks = cell.tasks
    if cell.measure in ("throughput", "fleet", "publishing"):
        tasks = max(100, int(cell.tasks * contestant.share))
    with store() as place:
        spec = {
            "measure": cell.measure,
            "tasks": tasks,
            "concurrency": cell.concurrency,
            "producers": cell.producers,
            "bulk": cell.bulk,
            "store": place,
        }
        command = [str(python), "-m", "benchmarks.peers.run", contestant.driver, json.dumps(spec)]
        found = child(command, limit_s)
    return {"tasks": tasks, **found}


def child(command: Sequence[str], limit_s: float) -> dict[str, Any]:
    """Run a process that prints one line of JSON; at the limit, end it and all it started."""
    environment_ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    # Files, not pipes: what a peer leaves running would hold a pipe open.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(  # noqa: S603 - our own command line
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment_,
            cwd=tempfile.gettempdir(),
            start_new_session=True,
        )
        late = False
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        err.seek(0)
        printed, complaint = out.read(), err.read()
    for line in reversed(printed.splitlines()):
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                return found
    if late:
        return {"error": f"did not finish in {limit_s:g} s"}
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    return {"error": f"failed: {lines[-1] if lines else f'status {process.returncode}'}"[:300]}


def told(found: dict[str, Any]) -> str:
    """A result in a few words."""
    units: dict[str, Callable[[float], str]] = {
        "rate": lambda value: f"{value:,.0f} tasks/s",
        "p50": lambda value: f"p50 {value * 1e3:.3f} ms",
        "p99": lambda value: f"p99 {value * 1e3:.3f} ms",
        "each": lambda value: f"{value * 1e6:,.1f} us each",
        "bytes": lambda value: f"{value:,.0f} bytes each",
        "cpu": lambda value: f"{value:.2%} of a core",
        "error": str,
    }
    return ", ".join(write(found[key]) for key, write in units.items() if key in found)


def stamp() -> str:
    """A name for a file of results."""
    return time.strftime("%Y%m%d-%H%M%S")
