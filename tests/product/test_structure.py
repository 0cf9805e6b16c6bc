"""The house: imports point downwards, files are of a size to read, values are pure."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import dispatch

ROOT = Path(__file__).parents[2] / "dispatch"

ROOMS = """
    errors callables bell nearest scalars cron.zones cron.timetable storage.limits
    checks threads failures storage.psycopg_conninfo
    refusals ids cron.fields retry pool storage.psycopg_trio
    jsontext cron.days cron.text tasks
    quick admission cron.walls cron.describe events records
    containers
    shapes
    clock codec cron.spec lifecycle run observe.logging storage.query
    cron.policy handlers storage.protocol storage.search storage.sqlite_schema storage.postgres_schema storage.sqlite_writer
    waiting outcomes alarm execution registry cron.entries storage.ready storage.changes storage.bells storage.texts storage.oldest testing.workbench
    unstored
    actors publisher storage.memory_registry storage.memory_rows storage.sqlite_rows storage.postgres_rows storage.postgres_bell
    control upkeep pruning unhandled cron.functions cron.stored storage.memory storage.sqlite_query storage.postgres_query storage.postgres_step
    consumer cron.dispatcher storage.sqlite_places storage.postgres_claim storage.postgres_registry
    storage.sqlite_tasks storage.postgres_tasks
    storage.postgres_publishing
    storage.sqlite_repair storage.sqlite_registry storage.postgres_joined
    storage.postgres
    storage.sqlite
    storage.opening
    dispatcher
    observe.survey
    observe.otel observe.prometheus
    web.guard web.shown web.history web.charts web.filters
    web.desk
    web.pages
    web.actions
    web.app
    cli.output cli.signals cli.seasons
    cli.shell cli.state cli.tasks_json
    cli.values cli.selection cli.loading cli.migrate cli.reload cli.stats cli.web
    cli.task_fields cli.task_change cli.task_edit cli.health cli.run cli.top
    cli.task_push cli.queue cli.cron cli.prune cli.copy
    cli.task
    cli.app
    __main__
    __init__
"""
"""Each line may import from the lines above it, not from its own and not from below."""

WITHOUT_TRIO = """
    errors callables checks tasks retry lifecycle records codec storage.query storage.search
    scalars quick shapes containers refusals admission jsontext
    cron.spec cron.policy cron.timetable cron.fields cron.days cron.text cron.walls cron.zones cron.describe
"""
"""Values and decisions. They may import only one another, the standard library, and these."""
PURE_PACKAGES = {"attrs", "cattrs", "croniter", "orjson", "typing_extensions"}

MAY_ASK_THE_WALL_CLOCK = {"clock"}
MAY_MEASURE_ITSELF = {
    "execution",  # how long a handler blocked the loop: real time, also in a test
    "observe.otel",  # how long a publish took, on whichever thread it was made
    "storage.postgres",  # how long ago the database's clock was seen, on any thread
    "storage.sqlite_schema",  # how long a file is waited for that somebody holds for himself
}

CODE_LINES = 700


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


FILES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
PACKAGES = {name for name, path in FILES.items() if path.name == "__init__.py" and name != "__init__"}
LEVELS = {name: number for number, line in enumerate(ROOMS.split("\n")) for name in line.split()}


def imported(tree: ast.AST) -> set[str]:
    """Every dotted name imported anywhere, inside functions and under TYPE_CHECKING, too."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            assert node.module is not None
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def inner(tree: ast.AST) -> set[str]:
    """The modules of this package that are imported."""
    found: set[str] = set()
    for name in imported(tree):
        if name.split(".")[0] == "dispatch":
            rest = name.removeprefix("dispatch").removeprefix(".")
            while rest and rest not in FILES:
                rest = rest.rpartition(".")[0]
            found.add(rest or "__init__")
    return found


def outer(tree: ast.AST) -> set[str]:
    return {name.split(".")[0] for name in imported(tree)} - {"dispatch"}


def test_no_module_imports_itself_by_a_detour() -> None:
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a cycle: {' -> '.join((*way, name))}"
        if name not in done:
            for below in inner(TREES[name]):
                visit(below, (*way, name))
            done.add(name)

    for name in FILES:
        visit(name, ())


def test_imports_point_downwards() -> None:
    unplaced = set(FILES) - set(LEVELS) - PACKAGES - {n for n in FILES if n.startswith("testing.")}
    assert not unplaced, "give each new module its line in ROOMS"
    assert set(LEVELS) <= set(FILES), "ROOMS names a module that is gone"
    upwards = [
        f"{name} imports {below}"
        for name in LEVELS
        for below in inner(TREES[name])
        if below != name and LEVELS.get(below, -1) >= LEVELS[name]
    ]
    assert not upwards


def test_the_engine_knows_nothing_of_its_testing_kit() -> None:
    wrong = [
        name
        for name in FILES
        if not name.startswith("testing") and any(b.startswith("testing") for b in inner(TREES[name]))
    ]
    assert not wrong


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_longer_than_a_reader_can_hold(name: str) -> None:
    lines = FILES[name].read_text(encoding="utf-8").splitlines()
    code = [line for line in lines if line.strip() and not line.strip().startswith("#")]
    assert len(code) <= CODE_LINES


@pytest.mark.parametrize("name", WITHOUT_TRIO.split())
def test_values_and_decisions_know_no_trio(name: str) -> None:
    foreign = outer(TREES[name]) - set(sys.stdlib_module_names) - PURE_PACKAGES
    assert not foreign
    assert inner(TREES[name]) <= set(WITHOUT_TRIO.split()) | PACKAGES


@pytest.mark.parametrize("name", FILES)
def test_nothing_imports_asyncio_or_pickle(name: str) -> None:
    assert not outer(TREES[name]) & {"asyncio", "anyio", "pickle", "shelve", "marshal"}


def clocks_read(tree: ast.AST) -> set[str]:
    """The clocks of the standard library that a module reads, however they are spelled."""
    wall = {"time.time", "time.time_ns", "time.localtime", "time.gmtime"}
    own = {"time.perf_counter", "time.perf_counter_ns", "time.monotonic", "time.monotonic_ns"}
    found = imported(tree) & (wall | own)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            if text in wall | own:
                found.add(text)
            if node.attr in ("now", "utcnow", "today") and text.split(".")[-2] in ("datetime", "date"):
                found.add(text)
    return {"measures" if name in own else "wall" for name in found}


def test_no_statement_numbers_its_placeholders() -> None:
    # Python 3.12 warns of ?1 with a sequence of values, and 3.14 refuses it.
    numbered = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search(r"[(,=] ?\?\d", node.value)
    }
    assert numbered == set()


@pytest.mark.parametrize("name", FILES)
def test_only_the_clock_reads_the_wall_clock(name: str) -> None:
    found = clocks_read(TREES[name])
    assert "wall" not in found or name in MAY_ASK_THE_WALL_CLOCK
    assert "measures" not in found or name in MAY_MEASURE_ITSELF


@pytest.mark.parametrize("name", dispatch.__all__)
def test_a_public_name_says_what_it_is(name: str) -> None:
    public: Any = getattr(dispatch, name)
    if not (inspect.isclass(public) or inspect.isfunction(public)):
        return  # an alias of types has its sentence beside it
    own = public.__dict__.get("__doc__") if inspect.isclass(public) else public.__doc__
    assert own is not None
    assert own.strip().partition("\n")[0][-1] in ".`;:,)" or "." in own


def test_the_public_names_are_sorted_and_there() -> None:
    assert dispatch.__all__ == sorted(dispatch.__all__, key=lambda name: (name[0].islower(), name))
    assert all(hasattr(dispatch, name) for name in dispatch.__all__)


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "py.typed").is_file()


def test_the_page_of_states_shows_the_table_of_states() -> None:
    from dispatch.lifecycle import diagram

    page = (ROOT.parent / "docs/lifecycle.md").read_text(encoding="utf-8")
    assert f"```mermaid\n{diagram()}\n```" in page
