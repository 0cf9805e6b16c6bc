"""A server for the session, and databases in it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from dispatch.errors import MissingExtraError
from dispatch.testing.postgres import PostgresServer, postgres_server
from tests.postgres.stage import Stage


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    """The server of this session; without one, tests are skipped here and fail in CI."""
    try:
        opened = postgres_server()
        server = opened.__enter__()
    except MissingExtraError as exc:
        if os.environ.get("CI"):
            raise
        pytest.skip(exc.detail)
    try:
        yield server
    finally:
        opened.__exit__(None, None, None)


@pytest.fixture(scope="session")
def dsn(server: PostgresServer) -> str:
    """A database for all tests that clear up after themselves."""
    return server.fresh_database()


@pytest.fixture
def database(server: PostgresServer) -> Iterator[str]:
    """A database of the test's own, empty; costs about 50 ms."""
    dsn = server.fresh_database()
    yield dsn
    server.drop_database(dsn)


@pytest.fixture(scope="module")
def stage(server: PostgresServer) -> Iterator[Stage]:
    """A stage that the tests of a module share."""
    opened = Stage(server.fresh_database())
    yield opened
    opened.close()


@pytest.fixture
def stage_alone(server: PostgresServer) -> Iterator[Stage]:
    """A stage of the test's own: where statistics or what others left would be seen."""
    opened = Stage(server.fresh_database())
    yield opened
    opened.close()
