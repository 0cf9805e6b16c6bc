"""Several processes make one schema at one instant, again and again."""

from __future__ import annotations

import time
from typing import Any

import trio

from dispatch.storage.postgres_schema import SCHEMA_VERSION, migrate
from faults.programs.scenario import Crew, arguments, asked, note, notes, opened, tell

PROCESSES = 6


class World:
    def __init__(self, given: Any) -> None:
        self.where: str = given.where
        self.answers = given.folder / "answers"
        self.schema = ""
        self.at = 0.0

    async def make(self) -> None:
        time.sleep(max(0.0, self.at - time.time()))  # noqa: ASYNC251 - all of them at once
        try:
            found, left = migrate(self.where, schema=self.schema)
        except Exception as exc:  # noqa: BLE001 - the finding of this program
            note(self.answers, f"{self.schema} failed {type(exc).__name__}")
        else:
            note(self.answers, f"{self.schema} {found} {left}")

    async def use(self) -> None:
        """The schema is whole: a storage opens on it."""
        async with opened(f"{self.where}"):
            pass


def main() -> None:
    given = arguments(rounds=8)
    world = World(given)
    with Crew(given.folder / "log") as crew:
        for number in range(given.rounds):
            world.schema = f"made_{number}"
            world.at = time.time() + 0.15
            names = [f"process{n}" for n in range(PROCESSES)]
            for name in names:
                crew.start(name, world.make)
            for name in names:
                assert crew.ended(name, 20.0) == 0, crew.said()
    answers = [line.split(maxsplit=1)[1] for line in notes(world.answers)]
    versions = [
        asked(given.where, f"SELECT version FROM made_{number}.migrations ORDER BY 1")  # noqa: S608
        for number in range(given.rounds)
    ]
    trio.run(world.use)
    tell(
        rounds=given.rounds,
        failed=sum(answer.startswith("failed") for answer in answers),
        made=answers.count(f"0 {SCHEMA_VERSION}"),
        found_made=answers.count(f"{SCHEMA_VERSION} {SCHEMA_VERSION}"),
        whole=sum(each == [(n,) for n in range(1, SCHEMA_VERSION + 1)] for each in versions),
    )


if __name__ == "__main__":
    main()
