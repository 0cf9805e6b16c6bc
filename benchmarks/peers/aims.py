"""What was to be reached, as ratios within one run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.peers.found import Found

__all__ = ["Aim", "aims"]


@dataclass(frozen=True)
class Aim:
    """One sentence and its bound."""

    what: str
    wanted: float
    at_least: bool = True

    def met(self, value: float) -> bool:
        """Whether this value is within the bound."""
        return value >= self.wanted if self.at_least else value <= self.wanted


def aims(found: Found) -> Iterator[tuple[Aim, float]]:
    """Each aim that these results can judge, with what was found."""
    for aim, value in all_aims(found):
        if value is not None:
            yield aim, value


def all_aims(found: Found) -> Iterator[tuple[Aim, float | None]]:
    at_10, at_100 = "throughput at 10", "throughput at 100"
    for cell in (at_10, at_100):
        for name, how in (("dispatch-memory", ""), ("dispatch-memory-prefetch", " with a prefetch")):
            yield (
                Aim(f"in memory{how}, of the bare channel, {cell}", 0.2),
                found.ratio(cell, name, "trio-channel", "rate"),
            )
    for cell in (at_10, at_100):
        yield (
            Aim(f"in memory with orjson, of the bare channel, {cell}", 0.33),
            found.ratio(cell, "dispatch-orjson", "trio-channel", "rate"),
        )
    for name, row in found.contestants.items():
        if row["family"] == "memory" and row["role"] == "peer" and row["retries"]:
            for cell in (at_10, at_100):
                yield (
                    Aim(f"in memory, times {row['title']}, {cell}", 2),
                    found.ratio(cell, "dispatch-memory", name, "rate"),
                )
    yield (
        Aim("in memory, p50 in times the bare channel's", 2, at_least=False),
        found.ratio("latency", "dispatch-memory", "trio-channel", "p50"),
    )
    yield (
        Aim("in memory, of itself with observers, keys, priorities and timeouts on", 0.75),
        found.ratio(at_10, "dispatch-loaded", "dispatch-memory", "rate"),
    )
    for cell, wanted in ((at_10, 0.35), (at_100, 0.4)):
        for name, how in (("dispatch-sqlite", ""), ("dispatch-sqlite-prefetch", " with a prefetch")):
            yield (
                Aim(f"SQLite{how}, of raw batches of 100, {cell}", wanted),
                found.ratio(cell, name, "raw-sqlite-100", "rate"),
            )
    yield (
        Aim("SQLite, times huey, throughput at 100", 5),
        found.ratio(at_100, "dispatch-sqlite", "huey-sqlite", "rate"),
    )
    yield (
        Aim("SQLite, single publishes by 100 producers, times one commit each", 10),
        found.ratio(
            "publishing, 100 producers",
            "dispatch-sqlite",
            "raw-sqlite-1",
            "rate",
            other_cell="publishing, one producer",
        ),
    )
    in_one, in_two = (at_10, at_100), ("fleet at 10", "fleet at 100")
    for other, of, wanted, cells in (
        ("raw-psycopg-100", "of raw batches of 100", 0.6, (at_10,)),
        ("raw-psycopg-100", "of raw batches of 100", 0.7, (at_100,)),
        ("raw-psycopg-100", "of raw batches of 100", 0.6, in_two),
        ("pgqueuer", "times pgqueuer", 1.3, (*in_one, *in_two)),
        ("oban", "times oban", 4, (*in_one, *in_two)),
        ("procrastinate", "times procrastinate", 10, (*in_one, *in_two)),
    ):
        for cell in cells:
            for name, how in (("dispatch-postgres", ""), ("dispatch-postgres-prefetch", " with a prefetch")):
                yield (
                    Aim(f"PostgreSQL{how}, {of}, {cell}", wanted),
                    found.ratio(cell, name, other, "rate"),
                )
    for name in ("dispatch-memory", "dispatch-sqlite", "dispatch-postgres"):
        if name not in found.contestants:
            continue
        cells = found.cells("growth", found.contestants[name]["family"])
        title = found.contestants[name]["title"]
        if len(cells) > 1:
            most, least = (int(cells[end].rpartition(" ")[2]) for end in (-1, 0))
            yield (
                Aim(f"{title}, cost of a task with {most:,} waiting, in times that with {least:,}", 1.5, at_least=False),
                found.ratio(cells[-1], name, name, "each", other_cell=cells[0]),
            )
        yield Aim(f"{title}, idle, share of one core", 0.01, at_least=False), found.median("idle", name, "cpu")
    yield (
        Aim("in memory, bytes per waiting task", 1_500, at_least=False),
        found.median("memory", "dispatch-memory", "bytes"),
    )
