"""The command: see the package's first lines."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.peers import __doc__ as about
from benchmarks.peers.contestants import CONTESTANTS, FAMILIES
from benchmarks.peers.environments import cache_folder
from benchmarks.peers.matrix import Options, run_matrix, stamp
from benchmarks.peers.page import write_page

MEASURES = Options.measures


def numbers(text: str) -> tuple[int, ...]:
    """`1,10,100`, underscores allowed."""
    return tuple(int(part) for part in text.split(","))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    names = [each.name for each in CONTESTANTS]
    for name in ("matrix", "peer"):
        command = commands.add_parser(name)
        if name == "peer":
            command.add_argument("name", choices=names)
        command.add_argument("--rounds", type=int, default=Options.rounds)
        command.add_argument("--tasks", type=int, help="20000 in memory and 10000 elsewhere by default")
        command.add_argument("--concurrency", type=numbers, default=Options.concurrency, metavar="N,N")
        command.add_argument("--samples", type=int, default=Options.samples, help="of the latency")
        command.add_argument("--waiting", type=numbers, default=Options.waiting, metavar="N,N")
        command.add_argument("--kept", type=int, default=Options.kept, help="waiting while memory is measured")
        command.add_argument("--limit", type=float, default=Options.limit_s, help="seconds for one measurement")
        command.add_argument("--family", choices=FAMILIES, action="append")
        command.add_argument("--measure", choices=MEASURES, action="append")
        command.add_argument("--only", choices=names, action="append", help="contestants, all by default")
        command.add_argument("--cache", help="for environments, stores and results")
        command.add_argument("--output", type=Path, help="the JSON file; in the cache by default")
    commands.add_parser("list")
    page = commands.add_parser("page")
    page.add_argument(
        "results", type=Path, nargs="*", help="the newest in the cache by default; later ones replace cells of the first"
    )
    page.add_argument("--cache")
    page.add_argument("--into", type=Path, help="the folder to write to, docs by default")
    given = parser.parse_args(arguments)

    if given.command == "list":
        for each in CONTESTANTS:
            print(f"{each.name:<18} {each.family:<9} {each.title:<30} {each.settings}")
        return 0
    cache = cache_folder(given.cache)
    if given.command == "page":
        newest = max(cache.glob("results-*.json"), default=None)
        results = given.results or [newest]
        if results == [None]:
            raise SystemExit(f"no results in {cache}: run the matrix first")
        into = given.into or Path(__file__).parents[2] / "docs"
        print(write_page(results, into))
        return 0
    only = (given.name,) if given.command == "peer" else tuple(given.only or ())
    families = tuple(given.family or FAMILIES)
    if only:
        families = tuple(f for f in families if any(c.name in only and c.family == f for c in CONTESTANTS))
    options = Options(
        rounds=given.rounds,
        tasks=given.tasks,
        concurrency=given.concurrency,
        samples=given.samples,
        waiting=given.waiting,
        kept=given.kept,
        limit_s=given.limit,
        families=families,
        measures=tuple(given.measure or MEASURES),
        only=only,
    )
    output = given.output or cache / f"results-{stamp()}.json"
    run_matrix(options, cache, output, print)
    print(f"written to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
