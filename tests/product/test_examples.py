"""Every example runs as a script, prints what it shows, ends by itself and warns of nothing."""

from __future__ import annotations

import select
import signal
import socket
import subprocess
from pathlib import Path

import psycopg
import pytest

from dispatch.testing.postgres import postgres_server
from tests.product import scripts

TELLING = {
    "quickstart.py": ["welcome ada@example.org, attempt 1", "bob@example.org, attempt 2", "all done"],
    "retries.py": [
        "ada: attempt 3\n  paid, receipt 1250",
        "dead letter (permanent): PermanentError: card expired",
        "dan: attempt 4, the last\n  dead letter (exhausted): TimeoutError",
        "dead letters: bob, dan",
        "succeeded in attempt 5",
    ],
    "cron_at_run_time.py": [
        "Sun 29 Mar 03:00 CEST",
        "Sun 29 Mar 01:00 UTC  sales, from cron task 'nightly'",
        "[1015] a different cron task is named 'nightly'",
        "Tue 31 Mar 06:00 UTC  stock",
        "nightly cancelled: True",
        "left: heartbeat, 6 runs, 0 errors",
    ],
    "graceful_shutdown_tcp.py": [
        "five lines accepted",
        "got SIGTERM, draining",
        "stored 'line 5'",
        "ended: 0 tasks interrupted",
    ],
    "asgi_hypercorn.py": [
        'POST /orders/1 -> 202 {"task": "order-1"',
        "GET / -> 404",
        "shipped order 2",
        "ended: 0 tasks interrupted",
    ],
    "fleet_postgres.py": [
        "240 orders accepted by the web process",
        "worker-2 killed with",
        "240 orders shipped, 0 lost",
        "of them in a second attempt, begun by worker-2\n",
    ],
    "testing_your_handlers.py": ["5 passed"],
    "own_storage.py": ["written by the first process, attempt 1"],
    "business_store.py": [
        "order 7 shipped in attempt 2",
        "order 8 waits for the old system, attempt 0",
        "task log: ship order 7 succeeded 2 Parcel(number=700)",
        "execution: 1 retrying ConnectionError('the carrier does not answer')",
    ],
}


def test_every_example_is_listed_here() -> None:
    assert {path.name for path in (scripts.ROOT / "examples").glob("*.py")} == set(TELLING)


SLOW = ("fleet_postgres.py", "testing_your_handlers.py")
"""A server, three processes, and a lease that has to run out; a run of pytest of its own."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.battery] if name in SLOW else []) for name in TELLING]
)
def test_an_example_prints_what_it_shows(name: str) -> None:
    printed = scripts.output(name)
    for line in TELLING[name]:
        assert line in printed, printed


def test_the_asgi_example_publishes_a_repeated_request_once() -> None:
    assert scripts.output("asgi_hypercorn.py").count("shipped order 2") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_the_tcp_service_drains_on_a_signal_and_exits_with_0(number: signal.Signals) -> None:
    with subprocess.Popen(  # noqa: S603 - our own file
        scripts.command("graceful_shutdown_tcp.py", "--serve"),
        cwd=Path(scripts.ROOT),
        env=scripts.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], scripts.LIMIT_S)
            assert ready, "it never said which port it listens on"
            port = int(process.stdout.readline().split()[-1])
            with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                client.sendall(b"one\ntwo\nthree\n")
                answered = b""
                while answered.count(b"\n") < 3:
                    answered += client.recv(4096)
                process.send_signal(number)  # while the client is connected and work is waiting
                printed, errors = process.communicate(timeout=scripts.LIMIT_S)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    assert f"got {number.name}, draining" in printed
    # Two run at a time, so in no order.
    assert {line for line in printed.splitlines() if line.startswith("stored")} == {
        "stored 'one'",
        "stored 'two'",
        "stored 'three'",
    }
    assert "ended: 0 tasks interrupted" in printed
    assert errors == ""


@pytest.mark.battery
def test_the_fleet_runs_on_a_database_that_is_given_and_leaves_nothing_in_it() -> None:
    with postgres_server() as server:
        given = server.fresh_database()
        assert "0 lost" in scripts.output("fleet_postgres.py", given)
        with psycopg.connect(given) as connection:
            schemas = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname ~ 'fleet'").fetchall()
    assert schemas == []
