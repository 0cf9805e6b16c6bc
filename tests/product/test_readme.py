"""The README does what it says: its code runs, its output is real, its links lead somewhere."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.product import scripts

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

BLOCK = re.compile(r"(?:<!-- (?P<mark>[^>]*) -->\n)?```(?P<language>\w+)\n(?P<body>.*?)```", re.DOTALL)


def blocks(text: str, language: str) -> list[tuple[str, str]]:
    """Each fenced block of a language: the comment right above it, and its text."""
    return [
        (found["mark"] or "", found["body"])
        for found in BLOCK.finditer(text)
        if found["language"] == language
    ]


def links(page: Path) -> list[str]:
    """What a page links to in the repository, as it stands there."""
    return re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))


def python_blocks(page: Path) -> list[Any]:
    found: list[Any] = []
    for number, (mark, body) in enumerate(blocks(page.read_text(encoding="utf-8"), "python"), 1):
        if not mark.startswith("not run: ") and mark not in ("quickstart", "test"):  # see test_testing_page
            found.append(pytest.param(body, id=f"{page.name}-{number}"))
    return found


def quickstart_names() -> dict[str, Any]:
    """The names the quickstart defines, without its last line, which runs it."""
    text = (ROOT / "examples/quickstart.py").read_text(encoding="utf-8")
    definitions, run = text.rstrip("\n").rsplit("\n", 1)
    assert run == "trio.run(main)"
    names: dict[str, Any] = {"__name__": "quickstart"}
    exec(compile(definitions, "examples/quickstart.py", "exec"), names)  # noqa: S102 - our own file
    return names


@pytest.mark.parametrize("body", [block for page in PAGES for block in python_blocks(page)])
def test_a_block_of_code_runs_inside_the_quickstarts_block(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = quickstart_names()
    names["trio"] = trio
    code = compile(body, "block", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)

    async def main() -> None:
        async with names["open_dispatcher"]() as dispatcher:
            dispatcher.consumer.register_queue("email", names["TaskQueueConfig"](max_retry=5))
            dispatcher.consumer.register_handler(names["WELCOME"], names["send_welcome"])
            await dispatcher.publisher.publish(names["WELCOME"](names["Welcome"]("ada@example.org")))
            await dispatcher.drain()
            names["dispatcher"] = dispatcher
            with trio.fail_after(3_600):
                running = eval(code, names)  # noqa: S307 - our own page
                if running is not None:
                    await running
                await dispatcher.drain()

    # Virtual time does not wait for the thread in which a file is written.
    trio.run(main, clock=None if "sqlite:" in body else MockClock(autojump_threshold=0))


def test_the_quickstart_is_the_example_and_prints_what_the_readme_says() -> None:
    [code] = [body for mark, body in blocks(README, "python") if mark == "quickstart"]
    [output] = [body for mark, body in blocks(README, "text") if mark == "quickstart output"]
    example = ROOT / "examples/quickstart.py"
    assert code == example.read_text(encoding="utf-8")
    assert scripts.output("quickstart.py") == output


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_every_link_into_the_repository_leads_to_a_file(page: Path) -> None:
    missing = [target for target in links(page) if not (page.parent / target).exists()]
    assert not missing


def test_every_page_and_what_it_links_to_is_in_the_source_distribution() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    meant = [*PAGES, *((page.parent / target).resolve() for page in PAGES for target in links(page))]
    missing = {path.relative_to(ROOT).parts[0] for path in meant} - {*tool["hatch"]["build"]["targets"]["sdist"]["include"]}
    assert not missing


def test_every_option_not_run_says_why() -> None:
    for page in PAGES:
        for mark, _ in blocks(page.read_text(encoding="utf-8"), "python"):
            assert not mark.startswith("not run") or len(mark) > len("not run: ")
