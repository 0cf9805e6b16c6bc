"""Every scenario tells its figures: with the test's properties, and in a line at the end of the run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dispatch.errors import MissingExtraError

Tell = Callable[[dict[str, Any]], None]
Seed = Callable[[int], None]

LINES = pytest.StashKey[list[str]]()


@pytest.fixture
def tell(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Tell:
    """Record a scenario's figures, whatever becomes of the test."""
    lines = request.config.stash.setdefault(LINES, [])

    def telling(figures: dict[str, Any]) -> None:
        for name, value in figures.items():
            record_property(name, value)
        shown = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items())
        lines.append(f"{request.node.name}: {shown}")

    return telling


@pytest.fixture
def seeded() -> Iterator[Seed]:
    """Make trio's scheduling repeatable. Both attributes are private, so look that they are there."""
    import trio._core._run as internals

    assert hasattr(internals, "_ALLOW_DETERMINISTIC_SCHEDULING")
    assert hasattr(internals, "_r")
    before = internals._ALLOW_DETERMINISTIC_SCHEDULING
    internals._ALLOW_DETERMINISTIC_SCHEDULING = True
    yield internals._r.seed
    internals._ALLOW_DETERMINISTIC_SCHEDULING = before


@pytest.fixture(scope="session")
def server() -> Iterator[Any]:
    """A PostgreSQL server for this folder's tests; skipped without one here, never in CI."""
    try:
        from dispatch.testing.postgres import postgres_server

        opened = postgres_server()
        running = opened.__enter__()
    except MissingExtraError as exc:
        if os.environ.get("CI"):
            raise
        pytest.skip(exc.detail)
    yield running
    opened.__exit__(None, None, None)


@pytest.fixture
def store(server: Any) -> Iterator[str]:
    """The URL of a database with the schema and nothing in it, gone afterwards."""
    from .programs.on_postgres import prepare

    url = server.fresh_database()
    prepare(url)
    yield url
    server.drop_database(url)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    lines = config.stash.get(LINES, [])
    if lines:
        terminalreporter.section("figures of the faults")
        for line in lines:
            terminalreporter.write_line(line)
