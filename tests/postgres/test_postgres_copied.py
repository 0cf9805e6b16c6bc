"""A service that has outgrown its file: what waited in SQLite runs on PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import trio
from attrs import frozen

from dispatch import QueueTask, TaskQueueConfig, TaskType, Unique, open_dispatcher
from dispatch.cli.app import main
from dispatch.cli.shell import Shell
from tests.cli.terminal import Stream
from tests.postgres.stage import Stage


@frozen
class Mail:
    to: str


WELCOME = TaskType("email", "welcome", Mail)


def run(*arguments: str) -> tuple[int, str, str]:
    out, err = Stream(), Stream()
    status = main(arguments, Shell(stdin=Stream(), stdout=out, stderr=err))
    return status, out.getvalue(), err.getvalue()


def test_what_waited_in_a_file_runs_on_postgresql(stage: Stage, tmp_path: Path) -> None:
    file = f"sqlite:///{tmp_path}/jobs.db"
    unique = Unique(by_payload=True)

    async def publish() -> None:
        async with open_dispatcher(file, observers=()) as dispatcher:
            dispatcher.consumer.register_queue("email", TaskQueueConfig(keyed=True))
            await dispatcher.control.pause_queue("email")
            await dispatcher.publisher.publish_many(
                [WELCOME(Mail(f"{n}@example.org"), key=str(n % 3), unique=unique) for n in range(30)]
            )
            await dispatcher.cron.add_with_name("@yearly", "newyear", WELCOME(Mail("all@example.org")))

    trio.run(publish)
    database = f"{stage.dsn}&schema=moved"  # one that goes by the real time
    assert run("migrate", "--store", database)[0] == 0
    status, out, err = run("copy", "--store", file, "--to", database)
    assert (status, err) == (0, "")
    assert out.startswith("copied 30 tasks and 1 cron task to postgresql://")
    seen: list[str] = []

    async def work() -> None:
        async def handler(task: QueueTask[Mail]) -> None:
            seen.append(task.payload.to)

        async with open_dispatcher(database, observers=()) as dispatcher:
            dispatcher.consumer.register_queue("email", TaskQueueConfig(keyed=True))
            dispatcher.consumer.register_handler(WELCOME, handler)
            assert [entry.name for entry in await dispatcher.cron.tasks()] == ["newyear"]
            again = await dispatcher.publisher.publish(WELCOME(Mail("3@example.org"), unique=unique))
            await trio.sleep(0.2)
            assert seen == []  # the pause was carried over, too
            await dispatcher.control.resume_queue("email")
            with trio.fail_after(30):
                await dispatcher.drain()
            assert (await dispatcher.publisher.wait(again)).payload == Mail("3@example.org")

    trio.run(work)
    assert sorted(seen) == sorted(f"{n}@example.org" for n in range(30))
    for key in range(3):
        assert [each for each in seen if int(each.split("@")[0]) % 3 == key] == [f"{n}@example.org" for n in range(key, 30, 3)]
