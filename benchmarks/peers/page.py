"""The page of documentation: medians, ratios within a round, and plots, from a file of results."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from benchmarks.peers.aims import aims
from benchmarks.peers.found import Found
from benchmarks.peers.plots import Line, bars, lines

__all__ = ["write_page"]

TITLES = {"memory": "In memory", "sqlite": "On SQLite", "postgres": "On PostgreSQL"}
EXPLAINED = {
    "throughput": "Tasks per second, from the first publish to the last handler, workers running meanwhile.",
    "fleet": "Tasks per second, from the first publish in one process to the last handler in one of two others, each "
    "with as many at once. The raw loop publishes and works alone, as above.",
    "latency": "From calling publish to the handler, on an idle queue, one task at a time.",
    "publishing": "Tasks stored per second, nobody working.",
    "growth": "The time to take and finish one task while so many wait, over the first 1,000 of them.",
    "memory": "Resident memory per waiting task.",
    "idle": "CPU of an idle dispatcher with 100 queues and 10,000 cron entries.",
}


def write_page(results: Sequence[Path], into: Path) -> Path:
    """Write `benchmarks.md` and its plots below `into`; answers the page.

    Of several files the later ones stand for what they measured again.
    """
    found = read(results)
    plots = into / "benchmarks"
    plots.mkdir(parents=True, exist_ok=True)
    parts = [introduction(found), aimed(found)]
    for family in TITLES:
        if found.field(family):
            parts.append(chapter(found, family, plots))
    parts.append(who(found))
    page = into / "benchmarks.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page


def read(results: Sequence[Path]) -> Found:
    """The results of these files as one. Raises SystemExit where they are of different machines."""
    first, *rest = [Found(**json.loads(each.read_text(encoding="utf-8"))) for each in results]
    first.about["measured"] = _measured(first)
    for other in rest:
        for what in ("machine", "python"):
            if other.about[what] != first.about[what]:
                raise SystemExit(f"the results are not of one {what}: {first.about[what]}, {other.about[what]}")
        again = {(run["cell"], run["contestant"]) for run in other.runs}
        first.runs[:] = [run for run in first.runs if (run["cell"], run["contestant"]) not in again] + other.runs
        for name, row in other.contestants.items():
            # A run of a few contestants says of the rest only that they were left out.
            first.contestants[name] = first.contestants.get(name, {}) | row
        first.about["command"] += f"` and `{other.about['command']}"
        first.about["measured"] += f"; {_measured(other)}"
    return first


def _measured(found: Found) -> str:
    rounds = max(run["round"] for run in found.runs)
    return f"on {found.about['date']}, at commit {found.about['commit']}, {rounds} round{'s' * (rounds != 1)}"


def introduction(found: Found) -> str:
    about = found.about
    server = about.get("postgres")
    lines_ = [
        f"- machine: {about['machine']}",
        f"- Python {about['python']}, SQLite {about['sqlite']}"
        + (f", PostgreSQL {server['version'] // 10_000}.{server['version'] % 10_000} ({', '.join(server['settings'])})" if server else ""),
        f"- measured {about['measured']}",
        f"- command: `{about['command']}`; this page: `python -m benchmarks.peers page`",
    ]
    return "\n".join(
        [
            "# Benchmarks",
            "",
            "<!-- Written by `python -m benchmarks.peers page`; do not edit. -->",
            "",
            "No-op tasks with a payload of six fields. Each contestant has its best settings and an environment "
            "of its own, each measurement a process and a store of its own. The rounds interleave the contestants. "
            "Figures are medians over the rounds, ratios medians of the ratios within a round: absolute figures are "
            "this machine's, the ratios travel better.",
            "",
            *lines_,
        ]
    )


def aimed(found: Found) -> str:
    """What was to be reached, and what was."""
    rows = [
        [aim.what, f"{'at least' if aim.at_least else 'at most'} {aim.wanted:g}", f"{value:.3g}", "yes" if aim.met(value) else "no"]
        for aim, value in aims(found)
    ]
    return "## What was to be reached\n\n" + table(["", "aim", "found", "reached"], rows)


def chapter(found: Found, family: str, plots: Path) -> str:
    """One family: a section per measure."""
    parts = [f"## {TITLES[family]}"]
    writers: dict[str, Callable[[], list[str]]] = {
        "throughput": lambda: throughput(found, family, plots),
        "fleet": lambda: throughput(found, family, plots, "fleet"),
        "latency": lambda: latency(found, family),
        "publishing": lambda: publishing(found, family),
        "growth": lambda: growth(found, family, plots),
        "memory": lambda: single(found, family, "memory", "bytes", "bytes", "{:,.0f}"),
        "idle": lambda: single(found, family, "idle", "cpu", "of one core", "{:.2%}"),
    }
    for measure, write in writers.items():
        if found.cells(measure, family):
            parts += [f"### {measure.capitalize()}", EXPLAINED[measure], *write()]
    return "\n\n".join(parts)


def ours_and_limit(found: Found, family: str) -> tuple[str | None, str | None]:
    """The names of ours and of the limit, where they took part."""
    field = found.field(family)
    ours = next((name for name in field if found.contestants[name]["role"] == "ours"), None)
    limit = next((name for name in field if found.contestants[name]["role"] == "limit"), None)
    return ours, limit


def throughput(found: Found, family: str, plots: Path, measure: str = "throughput") -> list[str]:
    ours, limit = ours_and_limit(found, family)
    parts: list[str] = []
    for cell in found.cells(measure, family):
        rows: list[list[str]] = []
        for name in ranked(found, family, cell, "rate", highest=True):
            rows.append(
                [
                    title(found, name),
                    figure(found.median(cell, name, "rate"), "{:,.0f}"),
                    figure(None if limit is None else found.ratio(cell, name, limit, "rate"), "{:.3f}"),
                    figure(None if ours is None else found.ratio(cell, ours, name, "rate"), "{:.2f} x"),
                ]
            )
        heads = ["", "tasks/s", f"of {title(found, limit)}" if limit else "of the limit", "dispatch is"]
        parts += [f"**{cell.capitalize()}**", table(heads, rows), *failures(found, family, cell)]
        drawn = [
            (title(found, name), found.contestants[name]["role"], rate)
            for name in found.field(family)
            if (rate := found.median(cell, name, "rate")) is not None
        ]
        if cell == "throughput at 10" and drawn:
            name = f"{family}-throughput.svg"
            (plots / name).write_text(bars(f"{TITLES[family]}: {cell}", drawn, unit="tasks/s"), encoding="utf-8")
            parts.append(f"![{TITLES[family]}: {cell}](benchmarks/{name})")
    return parts


def latency(found: Found, family: str) -> list[str]:
    _, limit = ours_and_limit(found, family)
    rows = [
        [
            title(found, name),
            figure(found.median("latency", name, "p50"), "{:.3f}", 1e3),
            figure(found.median("latency", name, "p99"), "{:.3f}", 1e3),
            figure(None if limit is None else found.ratio("latency", name, limit, "p50"), "{:.2f} x"),
        ]
        for name in ranked(found, family, "latency", "p50", highest=False)
    ]
    heads = ["", "p50, ms", "p99, ms", f"p50 is {title(found, limit)}'s" if limit else "p50 is the limit's"]
    return [table(heads, rows), *failures(found, family, "latency")]


def publishing(found: Found, family: str) -> list[str]:
    names = found.cells("publishing", family)
    rows = [
        [title(found, name), *(figure(found.median(cell, name, "rate"), "{:,.0f}") for cell in names)]
        for name in found.field(family)
        if any(found.median(cell, name, "rate") is not None for cell in names)
    ]
    heads = ["", *(cell.removeprefix("publishing").strip(", ") for cell in names)]
    notes = [note for cell in names for note in failures(found, family, cell)]
    return [table(heads, rows), *notes]


def growth(found: Found, family: str, plots: Path) -> list[str]:
    names = found.cells("growth", family)
    sizes = {cell: int(cell.rpartition(" ")[2]) for cell in names}
    rows: list[list[str]] = []
    series: list[Line] = []
    for name in found.field(family):
        each = {cell: found.median(cell, name, "each") for cell in names}
        measured = [(cell, value) for cell, value in each.items() if value]
        if not measured:
            continue
        points = [(float(sizes[cell]), value * 1e6) for cell, value in measured]
        series.append((title(found, name), found.contestants[name]["role"], points))
        few, many = (found.of(measured[end][0], name, "each") for end in (0, -1))
        both = few.keys() & many.keys()
        ratio = median(many[number] / few[number] for number in both) if both else 0.0
        rows.append(
            [
                title(found, name),
                *(figure(each[cell], "{:,.1f}", 1e6) for cell in names),
                f"{ratio:.2f} x" if ratio and len(measured) > 1 else "",
            ]
        )
    heads = ["", *(f"{sizes[cell]:,} waiting, us" for cell in names), "last to first"]
    parts = [table(heads, rows), *(note for cell in names for note in failures(found, family, cell))]
    if len(names) > 1 and series:
        name = f"{family}-growth.svg"
        text = lines(f"{TITLES[family]}: time per task", series, across="tasks waiting", up="microseconds")
        (plots / name).write_text(text, encoding="utf-8")
        parts.append(f"![{TITLES[family]}: time per task while many wait](benchmarks/{name})")
    return parts


def single(found: Found, family: str, cell: str, key: str, unit: str, form: str) -> list[str]:
    rows = [
        [title(found, name), figure(found.median(cell, name, key), form)]
        for name in ranked(found, family, cell, key, highest=False)
    ]
    return [table(["", unit], rows), *failures(found, family, cell)]


def who(found: Found) -> str:
    """Versions and settings, and who could not take part."""
    rows = [
        [
            row["title"],
            ", ".join(
                f"{package} {version}"
                for package, version in row.get("versions", {}).items()
                if (package, version) != ("Python", found.about["python"])
            ),
            row["settings"] + ("" if row["share"] == 1 else f"; {row['share']:g} of the tasks"),
            row.get("absent", "" if "versions" in row else "gave no figure"),
        ]
        for row in found.contestants.values()
    ]
    return "## Who took part, and how\n\n" + table(["", "versions", "settings", "absent because"], rows, align="---")


def ranked(found: Found, family: str, cell: str, key: str, *, highest: bool) -> list[str]:
    figures = {name: value for name in found.field(family) if (value := found.median(cell, name, key)) is not None}
    return sorted(figures, key=figures.__getitem__, reverse=highest)


def failures(found: Found, family: str, cell: str) -> list[str]:
    """A line on those that gave no figure in this cell."""
    notes = [
        f"{title(found, name)} {error}"
        for name in found.field(family)
        if (error := found.error(cell, name)) is not None
    ]
    return [f"At {cell}: {'; '.join(notes)}."] if notes else []


def title(found: Found, name: str | None) -> str:
    return "" if name is None else str(found.contestants[name]["title"])


def figure(value: float | None, form: str, factor: float = 1.0) -> str:
    return "" if value is None else form.format(value * factor)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, align: str = "---:") -> str:
    rule = ["---"] + [align] * (len(heads) - 1)
    return "\n".join("| " + " | ".join(cell or " " for cell in row) + " |" for row in [heads, rule, *rows])
