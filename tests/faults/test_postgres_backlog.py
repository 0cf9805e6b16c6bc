"""A large backlog on PostgreSQL, half of which cannot run (E2), also against a bug planted for it.

Work is the pages that the server touches for a claim, which no other load disturbs.
"""

from __future__ import annotations

import json
import time
from typing import Any

import attrs
import pytest

from dispatch.storage import postgres_claim
from dispatch.storage.postgres import FLOW_OPTIONS
from dispatch.storage.postgres_claim import REACH, PostgresClaims, _values
from dispatch.storage.postgres_rows import Lanes, Sql
from dispatch.storage.protocol import Want
from dispatch.storage.psycopg_trio import psycopg
from tests.conclusive import in_time, noticed

from .conftest import Tell
from .programs.on_postgres import prepare
from .programs.postgres_plants import PLANTS

SMALL = 1_000
CLAIMS = 200
ROUNDS = 3
WANT = Want(queue="q", limit=1, types={"job": 1}, max_retry=5)
REGISTERED = """
INSERT INTO dispatch.queues (name, keyed, on_retry, overflow) VALUES ('q', true, 'hold', 'wait');
INSERT INTO dispatch.lanes (queue, type, version, tagged)
    SELECT id, type, 1, false FROM dispatch.queues, unnest(ARRAY['job', 'unhandled']) AS type;
"""
STORED = """
INSERT INTO dispatch.tasks (created_at, available_at, queue, lane, priority, state, lined, id, key, payload)
    SELECT c.now, c.now + CASE kind WHEN 2 THEN 36000 ELSE 0 END, l.queue, l.id, 1,
        CASE kind WHEN 1 THEN 1 WHEN 3 THEN 4 ELSE 0 END, kind = 1, 't' || g,
        CASE kind WHEN 1 THEN 'one' END, '{"n":0}'
    FROM (SELECT dispatch.now_s() AS now) AS c, generate_series(1, %s) AS g,
        LATERAL (SELECT CASE WHEN g %% 2 = 0 AND %s THEN g / 2 %% 4 + 1 ELSE 0 END AS kind) AS k
        JOIN dispatch.lanes l ON l.type = CASE k.kind WHEN 4 THEN 'unhandled' ELSE 'job' END
    ORDER BY g
"""
"""Every other one, where that is wanted, cannot run: behind its key, later, held, of another type."""


@attrs.define(eq=False)
class Measured:
    """One database, and what each claim from it cost."""

    connection: psycopg.Connection[Any]
    seconds: list[float] = attrs.field(factory=list[float])
    pages: list[int] = attrs.field(factory=list[int])
    claims: PostgresClaims = attrs.field(factory=lambda: PostgresClaims(Sql("dispatch"), Lanes(Sql("dispatch"))))

    def execute(self, prefix: bytes) -> list[Any]:
        statement = self.claims._claiming(WANT, ending=False)
        values = _values(WANT, "w", 30.0) | {"limit": 1, "reach": 1 + REACH}
        cursor = psycopg.RawCursor(self.connection)
        cursor.execute(prefix + statement.text, [values[name] for name in statement.names])
        return cursor.fetchall()

    def claim(self) -> None:
        began = time.perf_counter()
        rows = self.execute(b"")
        self.seconds.append(time.perf_counter() - began)
        assert sum(row[0] is not None for row in rows) == 1

    def count(self) -> None:
        [(plan,)] = self.execute(b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) ")
        found = plan if isinstance(plan, list) else json.loads(plan)
        top = found[0]["Plan"]
        self.pages.append(top["Shared Hit Blocks"] + top["Shared Read Blocks"])


def p99(values: list[Any]) -> Any:
    return sorted(values)[int(len(values) * 0.99)]


def opened(url: str, tasks: int, *, stuck: bool) -> Measured:
    prepare(url)
    connection = psycopg.connect(url, autocommit=True, options=FLOW_OPTIONS)
    connection.execute(REGISTERED.encode())
    connection.execute(STORED.encode(), (tasks * (2 if stuck else 1), stuck))
    return Measured(connection)


def compared(server: Any, tasks: int) -> dict[str, Any]:
    """Claims in turn from a database with few waiting and from one with many; nothing is analysed."""
    small = opened(server.fresh_database(), SMALL, stuck=False)
    large = opened(server.fresh_database(), tasks, stuck=True)
    rounds: list[tuple[float, float]] = []
    for number in range(ROUNDS + 1):
        small.seconds, large.seconds = [], []
        for _ in range(CLAIMS if number else CLAIMS // 4):
            for each in (small, large):
                if number:
                    each.claim()
                else:
                    each.count()
        if number:
            rounds.append((p99(small.seconds), p99(large.seconds)))
    best = min(rounds, key=lambda pair: pair[1] / pair[0])
    [(waiting,)] = large.connection.execute("SELECT count(*) FROM dispatch.tasks WHERE state < 3").fetchall()
    for each in (small, large):
        each.connection.close()
    return {
        "waiting": waiting,
        "p99_pages_small": p99(small.pages),
        "p99_pages_large": p99(large.pages),
        "p99_us_small": round(best[0] * 1e6),
        "p99_us_large": round(best[1] * 1e6),
        "time_ratio": round(best[1] / best[0], 2),
    }


def a_claim_stays_cheap(figures: dict[str, Any]) -> None:
    assert figures["p99_pages_large"] <= 2 * figures["p99_pages_small"], "works through the backlog"
    in_time(figures, "takes longer", time_ratio=2.0)


@pytest.mark.parametrize(
    "tasks",
    [
        pytest.param(100_000, id="battery", marks=pytest.mark.battery),
        pytest.param(1_000_000, id="soak", marks=pytest.mark.soak),
    ],
)
def test_a_claim_on_postgres_costs_the_same_with_a_large_backlog(tasks: int, server: Any, tell: Tell) -> None:
    figures = compared(server, tasks)
    tell(figures)
    a_claim_stays_cheap(figures)
    assert figures["waiting"] > tasks


@pytest.mark.battery
def test_the_backlog_on_postgres_notices_a_planted_bug(
    server: Any, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_claim, "PLAIN_RANGES", postgres_claim.PLAIN_RANGES)  # to be put back
    PLANTS["whole_scan"]()
    figures = compared(server, 10_000)
    tell(figures)
    with noticed("works through the backlog"):
        a_claim_stays_cheap(figures)
