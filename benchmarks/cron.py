"""`CronSpec` beside croniter on aware datetimes: a thousand next moments, text by text.

    python benchmarks/cron.py [--moments 1000] [--rounds 7] [--profile]

Both sides start at the same aware moment and give aware datetimes of the same
zone. croniter is used as its documentation shows, with `get_next(datetime)`; what
it answers is not always what the contract of this package says (see docs/cron.md),
so only the time it needs is compared. On this side `chained` calls `next` with the
moment before, as the cron loop does, and `preview` asks for all at once.

Rounds alternate between the sides, so that a drifting machine hits all alike. The
clock is that of the process, so that other processes cost little. Printed are the
medians in microseconds per moment, the ratio of each text, and the ratio of the sums.
"""

from __future__ import annotations

import argparse
import cProfile
import platform
import pstats
import sys
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from statistics import median
from time import process_time
from zoneinfo import ZoneInfo

from croniter import croniter

from dispatch import CronSpec

START = datetime(2026, 1, 1, 12, 0, 7)  # noqa: DTZ001 - each zone's own
ENTRIES = [
    ("* * * * *", "UTC"),
    ("* * * * *", "Europe/Berlin"),
    ("*/5 * * * *", "America/New_York"),
    ("*/15 9-17 * * MON-FRI", "Europe/Berlin"),
    ("30 2 * * *", "America/New_York"),
    ("0 9 * * MON-FRI", "Asia/Tokyo"),
    ("5,35 */2 * * *", "Australia/Lord_Howe"),
    ("0 0 1 * *", "Europe/Berlin"),
    ("0 12 13 * FRI", "UTC"),
    ("0 0 L * *", "Europe/Berlin"),
    ("15 10 * * FRI#2", "America/New_York"),
    ("*/10 * * * * *", "Europe/Berlin"),
]
"""What people write: intervals, times of day, weekdays, months, `L`, `#`, seconds."""

Side = Callable[[str, str, int], list[datetime]]


def peer(text: str, zone: str, count: int) -> list[datetime]:
    """The moments by croniter alone."""
    found = croniter(text, START.replace(tzinfo=ZoneInfo(zone)), second_at_beginning=True)
    return [found.get_next(datetime) for _ in range(count)]


def chained(text: str, zone: str, count: int) -> list[datetime]:
    """The moments one by one."""
    spec, moment = CronSpec(text, zone), START.replace(tzinfo=ZoneInfo(zone))
    found: list[datetime] = []
    for _ in range(count):
        following = spec.next(moment)
        assert following is not None
        found.append(following)
        moment = following
    return found


def preview(text: str, zone: str, count: int) -> list[datetime]:
    """The moments at once."""
    return CronSpec(text, zone).preview(count, after=START.replace(tzinfo=ZoneInfo(zone)))


SIDES: dict[str, Side] = {"croniter": peer, "chained": chained, "preview": preview}


def timed(side: Side, text: str, zone: str, count: int) -> float:
    """Microseconds of the processor for each moment."""
    began = process_time()
    found = side(text, zone, count)
    elapsed = process_time() - began
    assert len(found) == count
    return elapsed / count * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--moments", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="profile `chained` instead")
    options = parser.parse_args()

    if options.profile:
        profile = cProfile.Profile()
        for text, zone in ENTRIES:
            profile.runcall(chained, text, zone, options.moments)
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        return

    print(
        f"Python {platform.python_version()}, croniter {version('croniter')}, {platform.machine()}; "
        f"{options.moments} moments, median of {options.rounds} rounds, µs for each moment"
    )
    print(f"{'text':<24}{'zone':<22}" + "".join(f"{name:>10}" for name in SIDES) + f"{'ratio':>8}")
    sums = dict.fromkeys(SIDES, 0.0)
    for text, zone in ENTRIES:
        runs: dict[str, list[float]] = {name: [] for name in SIDES}
        for _ in range(options.rounds):
            for name, side in SIDES.items():
                runs[name].append(timed(side, text, zone, options.moments))
        medians = {name: median(found) for name, found in runs.items()}
        ratio = median(
            max(ours) / theirs
            for theirs, *ours in zip(runs["croniter"], runs["chained"], runs["preview"], strict=True)
        )
        figures = "".join(f"{each:>10.1f}" for each in medians.values())
        print(f"{text:<24}{zone:<22}{figures}{ratio:>8.2f}")
        for name, each in medians.items():
            sums[name] += each
    for name in ("chained", "preview"):
        print(f"all texts, {name}: {sums[name] / sums['croniter']:.2f} times croniter; the aim is at most 1.5")


if __name__ == "__main__":
    sys.exit(main())
