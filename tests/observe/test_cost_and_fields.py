"""What telemetry costs those who leave it out, and what log pipelines pick up."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import structlog

from dispatch import EventKind, QueueTask, Run, TaskEvent, TaskQueueConfig
from dispatch.events import Observers
from dispatch.observe.logging import LogObserver
from tests.engine.work import JOB, Job, Script, nothing, working


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own text
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_package_imports_no_telemetry() -> None:
    done = run_python(
        "import sys, dispatch, dispatch.dispatcher\n"
        "found = [n for n in sys.modules if n.split('.')[0] in ('opentelemetry', 'prometheus_client')]\n"
        "assert not found, found\n"
        "assert 'dispatch.observe.survey' not in sys.modules\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "package", "message"),
    [
        (
            "otel",
            "opentelemetry",
            "OpenTelemetry needs its API package: pip install 'trio-dispatch[otel]'",
        ),
        (
            "prometheus",
            "prometheus_client",
            "Prometheus metrics need prometheus-client: pip install 'trio-dispatch[prometheus]'",
        ),
    ],
)
def test_a_missing_extra_is_named(module: str, package: str, message: str) -> None:
    done = run_python(
        f"import sys\nsys.modules[{package!r}] = None\n"
        "from dispatch import MissingExtraError\n"
        "try:\n"
        f"    import dispatch.observe.{module}\n"
        "except MissingExtraError as exc:\n"
        f"    assert {message!r} in str(exc), exc\n"
        "else:\n    raise SystemExit('it was imported')\n"
    )
    assert done.returncode == 0, done.stderr


async def test_without_observers_no_event_is_built_and_no_middleware_runs(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[object] = []
    monkeypatch.setattr(Observers, "emit", lambda self, event: built.append(event))
    monkeypatch.setattr(Observers, "publishing", lambda self, *what: built.append(what))
    handler = Script(None)
    async with working(handler, observers=()) as dispatcher:
        assert dispatcher.consumer._middleware == ()  # type: ignore[attr-defined]
        await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.publisher.publish_many([JOB(Job())])
        await dispatcher.drain()
    assert len(handler.seen) == 2
    assert built == []


class Everything:
    """An observer with every hook, each of which fails."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def __call__(self, event: TaskEvent) -> None:
        self.called.append(event.kind.value)
        raise RuntimeError("event")

    def interested_in(self, kind: EventKind) -> bool:
        return True

    @contextmanager
    def publishing(self, tasks: Sequence[QueueTask[Any, Any]], operation: str) -> Iterator[Any]:
        self.called.append(operation)
        raise RuntimeError("publishing")
        yield tasks

    async def middleware(self, task: QueueTask[Any, Any], run: Run, call_next: Any) -> Any:
        self.called.append("middleware")
        return await call_next(task, run)

    def cron_fired(self, name: str, lag_s: float) -> None:
        self.called.append("cron_fired")
        raise RuntimeError("cron")


async def test_an_observer_whose_every_hook_fails_harms_no_task(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    observer = Everything()

    async def handler(task: QueueTask[Job], run: Run) -> None:
        if task.payload.n == 0:
            await run.publish(JOB(Job(1)))

    async with working(handler, observers=[observer]) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
    assert observer.called == [
        "send", "published", "started", "middleware", "create", "published", "succeeded",
        "started", "middleware", "succeeded",
    ]
    assert sum(each.levelno == logging.ERROR for each in caplog.records) == 8


async def test_the_observers_middleware_is_outside_the_users(autojump_clock: object) -> None:
    order: list[str] = []

    class Outer:
        def __call__(self, event: TaskEvent) -> None: ...

        async def middleware(self, task: QueueTask[Any, Any], run: Run, call_next: Any) -> Any:
            order.append("observer")
            return await call_next(task, run)

    async def inner(task: QueueTask[Any, Any], run: Run, call_next: Any) -> Any:
        order.append("user")
        return await call_next(task, run)

    async with working(nothing, observers=[Outer()], middleware=[inner]) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
    assert order == ["observer", "user"]


async def test_structlog_picks_up_the_fields_of_a_line(autojump_clock: object) -> None:
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    keep = Keep()
    keep.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder()],
            processor=structlog.processors.JSONRenderer(),
        )
    )
    logger = logging.Logger("service")
    logger.addHandler(keep)
    async with working(
        Script(ValueError("x")), TaskQueueConfig(max_retry=0), observers=[LogObserver(logger)]
    ) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
    last = json.loads(lines[-1])
    assert last["level"] == "error"
    assert (last["task_id"], last["queue"], last["task_type"], last["attempt"]) == (task.id, "q", "job", 1)
    assert last["failure_reason"] == "exhausted"
    assert last["run_s"] >= 0
    started = json.loads(lines[1])
    assert started["wait_s"] >= 0
