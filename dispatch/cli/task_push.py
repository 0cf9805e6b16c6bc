"""`dispatch task push`: publish raw JSON, one task or a file of them, for handlers elsewhere."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, cast

import attrs
import trio
from cyclopts import Parameter

from dispatch.cli import values
from dispatch.cli.output import plural, progress
from dispatch.cli.selection import BATCH
from dispatch.cli.shell import CommandError, Complaints, Opened, Shell, ShellArgument, StoreOption
from dispatch.cli.task_change import DryRunOption
from dispatch.cli.task_fields import NO_FIELDS, TaskFields
from dispatch.codec import Codec, Limits, Undecodable
from dispatch.errors import DispatchError
from dispatch.nearest import known
from dispatch.publisher import Published
from dispatch.storage.protocol import EnqueueAnswer
from dispatch.storage.query import Queues
from dispatch.tasks import QueueTask, TaskType

__all__ = ["push"]

PATIENCE_S: Final = 1.0
"""After so long it is told that the queue is full and publishing waits for room."""
_LINE_BYTES: Final = 2 * 1024 * 1024
"""A longer line is no task: payloads have a limit far below."""


async def push(
    queue: str | None = None,
    type: str | None = None,  # noqa: A002 - the field's name
    payload: Annotated[str, Parameter(allow_leading_hyphen=True)] = "{}",
    /,
    *,
    id: str = "",  # noqa: A002 - the field's name
    delay: str | None = None,
    at: str | None = None,
    options: TaskFields = NO_FIELDS,
    file: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    dry_run: DryRunOption = False,
    store: StoreOption = None,
    shell: ShellArgument,
) -> int:
    """Publish a task with a raw JSON payload, or the tasks of a JSON-lines file.

    Each line of a file is an object with queue, type, payload and, as here, id,
    key, delay, at, priority, timeout, max_retry, headers, tags and version. A
    bad line is told and skipped. With ids in it, a file can be published again.

    Parameters
    ----------
    queue
        A queue that some worker registered.
    type
        The task type.
    payload
        A JSON object; - reads it from standard input.
    id
        The task's own id; publishing it again is harmless.
    delay
        Run it no sooner than after 90s, 15m, 2h30m.
    at
        Run it no sooner than at this ISO 8601 moment.
    file
        Publish these lines instead; - reads standard input.
    dry_run
        Check everything and publish nothing.
    """
    if file is not None:
        if queue is not None or options != NO_FIELDS or id or delay or at:
            raise CommandError("with --file, each line says everything; give nothing beside it", 2)
        return await _push_file(shell, file, dry_run=dry_run, store=store)
    if queue is None or type is None:
        raise CommandError("push wants QUEUE TYPE [PAYLOAD], or --file", 2)
    codec = Codec()
    text = shell.stdin.read(_LINE_BYTES) if payload == "-" else payload
    fields = options.fields() | _moments(delay, at) | {"id": id}
    task = _task(queue, type, values.payload(text, codec), options.version, fields, codec)
    async with shell.open(store) as opened:
        await opened.queue_names(queue)
        for sentence in await opened.mistyped([type], Queues(queue)):
            shell.say(sentence)
        if dry_run:
            shell.print(f"would publish 1 task to {queue}/{type}")
            return 0
        (published,) = await _publish(shell, opened, [task])
        if published.task is None:
            raise CommandError(_said(published))
        if published.answer is EnqueueAnswer.EXISTING:
            shell.say("a task of this id is stored already and was left as it is")
        shell.print(published.task.id)
    return 0


def _moments(delay: str | None, at: str | None) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if delay is not None:
        fields["delay"] = values.seconds(delay, "--delay")
    if at is not None:
        fields["available_at"] = values.moment(at, "--at")
    return fields


def _task(
    queue: str,
    kind: str,
    payload: dict[str, Any],
    version: int,
    fields: dict[str, Any],
    codec: Codec,
) -> QueueTask[Any, Any]:
    """The task, checked here in full as publishing will check it. Raises what `publish` raises."""
    task = TaskType(queue, kind, dict, version=version)(payload, **fields)
    codec.check_task(task)
    codec.encode(task.payload, dict, f"payload of {queue}/{kind}")
    return task


async def _publish(
    shell: Shell, opened: Opened, tasks: list[QueueTask[Any, Any]]
) -> list[Published]:
    """Publish, and say so if it takes long: a full queue makes publishing wait."""

    async def tell() -> None:
        await trio.sleep(PATIENCE_S)
        shell.say("waiting: the queue may be full, and publishing goes on when there is room")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell)
        answers = await opened.publisher.publish_many(tasks)
        nursery.cancel_scope.cancel()
    return answers


def _said(published: Published) -> str:
    assert published.error is not None
    return published.error.detail


# -- files ------------------------------------------------------------------


@attrs.define
class _Tally:
    """How an import went, line by line."""

    shell: Shell
    bad: Complaints
    new: int = 0
    known: int = 0

    def refuse(self, number: int, why: str) -> None:
        self.bad.add(f"line {number}: {why}")


async def _push_file(shell: Shell, name: str, *, dry_run: bool, store: str | None) -> int:
    """Publish the lines of a file. Interrupted, the steps that were made stay."""
    tally = _Tally(shell, Complaints(shell.say))
    codec = Codec()
    async with shell.open(store) as opened:
        names = await opened.queue_names()
        with (
            _lines(shell, name) as (lines, total),
            progress(shell.stderr, "publish", total) as advance,
        ):
            for chunk in _chunks(lines):
                good: list[tuple[int, QueueTask[Any, Any]]] = []
                for number, text in chunk:
                    try:
                        task = _of_line(text, names, codec)
                    except (CommandError, DispatchError) as exc:
                        tally.refuse(
                            number, exc.message if isinstance(exc, CommandError) else exc.detail
                        )
                    else:
                        good.append((number, task))
                if dry_run:
                    tally.new += len(good)
                elif good:
                    await _publish_chunk(opened, good, tally)
                advance(len(chunk))
    tally.bad.end("bad lines")
    done = "would publish" if dry_run else "published"
    rest = f", {tally.known:,} stored already" if tally.known else ""
    skipped = f", skipped {plural(tally.bad.count, 'bad line')}" if tally.bad.count else ""
    shell.print(f"{done} {plural(tally.new, 'task')}{rest}{skipped}")
    return 1 if tally.bad.count else 0


async def _publish_chunk(
    opened: Opened, good: list[tuple[int, QueueTask[Any, Any]]], tally: _Tally
) -> None:
    answers = await _publish(tally.shell, opened, [task for _, task in good])
    for (number, _), published in zip(good, answers, strict=True):
        if published.task is None:
            tally.refuse(number, _said(published))
        elif published.answer is EnqueueAnswer.EXISTING:
            tally.known += 1
        else:
            tally.new += 1


@contextmanager
def _lines(shell: Shell, name: str) -> Generator[tuple[Iterator[str], int | None]]:
    """The lines of a file with their number, or of standard input without."""
    if name == "-":
        yield iter(shell.stdin), None
        return
    try:
        with Path(name).open(encoding="utf-8", errors="surrogateescape") as file:
            total = None
            if file.seekable():  # a pipe, such as of `<(jq ...)`, is not
                total = sum(1 for _ in file)
                file.seek(0)
            yield iter(file), total
    except OSError as exc:
        raise CommandError(f"{name}: {exc.strerror}") from None


def _chunks(lines: Iterator[str]) -> Generator[list[tuple[int, str]]]:
    """The lines that are not empty, with their numbers, `BATCH` at a time."""
    numbered = ((number, text) for number, text in enumerate(lines, 1) if text.strip())
    while chunk := list(islice(numbered, BATCH)):
        yield chunk


_FIELDS: Final = (
    "queue", "type", "payload", "id", "key", "delay", "at", "priority", "timeout", "max_retry",
    "headers", "tags", "version",
)  # fmt: skip
_READER: Final = Codec(Limits(payload_bytes=_LINE_BYTES))
"""Reads a whole line, whose payload has the ordinary limit and which has fields beside it."""


def _of_line(text: str, names: Sequence[str], codec: Codec) -> QueueTask[Any, Any]:
    """The task that one line means. Raises CommandError and what `publish` raises."""
    found = _READER.decode_plain(text.strip().encode("utf-8", "surrogateescape"))
    if isinstance(found, Undecodable):
        raise CommandError(found.reason)
    if not isinstance(found, dict):
        raise CommandError("a line must be a JSON object")
    given = cast("dict[str, Any]", found)
    for field in given:
        if field not in _FIELDS:
            raise CommandError(f"no field {field[:60]!r}{known(field, _FIELDS)}")
    for field in ("queue", "type", "payload"):
        if field not in given:
            raise CommandError(f"{field} is missing")
    queue, kind, payload = given.pop("queue"), given.pop("type"), given.pop("payload")
    version = given.pop("version", 1)
    if not isinstance(payload, dict):
        raise CommandError("payload must be a JSON object")
    if isinstance(queue, str) and queue not in names:
        raise CommandError(f"no queue {queue[:60]!r}{known(queue, names)}")
    return _task(queue, kind, cast("dict[str, Any]", payload), version, _of_fields(given), codec)


def _of_fields(given: dict[str, Any]) -> dict[str, Any]:
    """A line's other fields as the task's; durations are seconds here."""
    if (at := given.pop("at", None)) is not None:
        given["available_at"] = values.moment(str(at), "at")
    if "priority" in given:
        given["priority"] = values.priority(str(given["priority"]))
    if isinstance(tags := given.get("tags"), list):
        given["tags"] = tuple(cast("list[Any]", tags))
    return given
