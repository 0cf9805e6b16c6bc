"""The exposition as a scraper reads it, and the dashboard and alerts built on its names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import dispatch
from dispatch import (
    EventKind,
    MemoryStorage,
    PermanentError,
    Snooze,
    TaskEvent,
    TaskQueueConfig,
    TaskType,
)
from dispatch.observe.prometheus import CONTENT_TYPE, OPERATIONS, PrometheusObserver
from dispatch.observe.survey import QueueSurvey
from dispatch.storage.protocol import QueueRecord, Want
from tests.engine.work import JOB, Job, Script, nothing, working

from .conftest import Away

DOCS = Path(__file__).parents[2] / "docs/telemetry"


def samples(body: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Each sample of an exposition, read by the real parser: name and labels to value."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def value(body: bytes, name: str, **labels: str) -> float | None:
    return samples(body).get((name, tuple(sorted(labels.items()))))


async def test_every_transition_is_counted_by_queue_type_and_outcome(autojump_clock: object) -> None:
    metrics = PrometheusObserver()
    handler = Script(2.0, ValueError("x"), Snooze(1.0), PermanentError("y"))
    async with working(handler, TaskQueueConfig(max_retry=3), observers=[metrics]) as dispatcher:
        for _ in range(2):
            await dispatcher.publisher.publish(JOB(Job()))
            await dispatcher.drain()
        body = await metrics.exposition(dispatcher)
    address = {"queue": "q", "type": "job"}
    assert value(body, "dispatch_tasks_published_total", **address) == 2
    for outcome in ("succeeded", "retrying", "snoozed", "failed"):
        assert value(body, "dispatch_tasks_total", **address, outcome=outcome) == 1
    assert value(body, "dispatch_task_run_seconds_count", **address) == 4
    assert value(body, "dispatch_task_run_seconds_sum", **address) == pytest.approx(2.0)
    assert value(body, "dispatch_task_wait_seconds_count", **address) == 4


async def test_the_first_dead_letter_of_a_process_is_an_increase(autojump_clock: object) -> None:
    """Prometheus takes a series that begins at 1 for one that did not increase."""
    metrics = PrometheusObserver()
    failed = {"queue": "q", "type": "job", "outcome": "failed"}
    async with working(Script(PermanentError("x")), observers=[metrics]) as dispatcher:
        before = await metrics.exposition(dispatcher)
        await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
        after = await metrics.exposition(dispatcher)
    assert value(before, "dispatch_tasks_total", **failed) == 0
    assert value(after, "dispatch_tasks_total", **failed) == 1


@pytest.mark.parametrize("kind", [EventKind.PUBLISHED, EventKind.STARTED, EventKind.RETRYING])
def test_whatever_is_told_of_a_type_its_dead_letters_begin_at_0(kind: EventKind) -> None:
    """Of one that has no handler here, nothing else is known."""
    metrics = PrometheusObserver()
    metrics(TaskEvent(kind=kind, at=0.0, task_id="1", queue="q", task_type="elsewhere"))
    body = generate_latest(metrics.registry)
    assert value(body, "dispatch_tasks_total", queue="q", type="elsewhere", outcome="failed") == 0


def test_the_errors_of_the_storage_begin_at_0_whatever_is_being_done() -> None:
    package = Path(dispatch.__file__).parent
    told = {
        operation
        for path in package.rglob("*.py")
        for operation in re.findall(r'storage_failed"?(?:\(|, )"(\w+)", exc', path.read_text(encoding="utf-8"))
    }
    assert told == set(OPERATIONS)
    body = generate_latest(PrometheusObserver().registry)
    assert {value(body, "dispatch_storage_errors_total", operation=each) for each in told} == {0}


async def test_the_gauges_show_the_storage_and_this_process(autojump_clock: object) -> None:
    metrics = PrometheusObserver()
    async with working(Script(100.0), TaskQueueConfig(concurrency=2), observers=[metrics]) as dispatcher:
        await dispatcher.publisher.publish_many([JOB(Job(n)) for n in range(5)])
        await dispatcher.publisher.publish(JOB(Job(), delay=1_000.0))
        held = await dispatcher.publisher.publish(JOB(Job(), delay=1_000.0))
        await dispatcher.control.hold(held)
        await trio.sleep(7)
        body = await metrics.exposition(dispatcher)
        await dispatcher.control.cancel(held)
        with trio.move_on_after(5):
            await dispatcher.drain()
        assert {key[1][-1][1] for key in samples(body) if key[0] == "dispatch_queue_tasks"} == {
            "pending", "later", "running", "held", "failed",
        }
        for status, count in {"pending": 3, "later": 1, "running": 2, "held": 1, "failed": 0}.items():
            assert value(body, "dispatch_queue_tasks", queue="q", status=status) == count
    assert value(body, "dispatch_queue_oldest_task_age_seconds", queue="q") == pytest.approx(7.0, abs=0.1)
    assert value(body, "dispatch_queue_concurrency", queue="q") == 2
    assert value(body, "dispatch_tasks_running", queue="q") == 2


async def test_the_age_is_that_of_the_longest_due_and_not_of_the_first_stored(autojump_clock: object) -> None:
    """A delayed task that was stored first, and falls due last, hides nothing."""
    metrics = PrometheusObserver()
    ages: list[float | None] = []
    async with working(observers=[metrics]) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(), delay=100.0))
        await dispatcher.publisher.publish(JOB(Job()))
        for _ in range(3):
            await trio.sleep(60)
            body = await metrics.exposition(dispatcher)
            ages.append(value(body, "dispatch_queue_oldest_task_age_seconds", queue="q"))
    assert ages == [pytest.approx(each, abs=0.1) for each in (60, 120, 180)]


async def test_a_task_that_died_with_its_worker_is_counted_as_failed(autojump_clock: object) -> None:
    metrics, storage = PrometheusObserver(), MemoryStorage()
    async with working(storage=storage, observers=[metrics]) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job()))
        await storage.claim([Want(queue="q", limit=1, max_retry=0)], worker="dead", lease=2.0)
        await trio.sleep(10)
        body = await metrics.exposition(dispatcher)
    outcomes = {dict(labels)["outcome"]: n for (name, labels), n in samples(body).items() if name == "dispatch_tasks_total"}
    assert outcomes == {"failed": 1}


async def test_a_pause_is_a_gauge(autojump_clock: object) -> None:
    metrics = PrometheusObserver()
    async with working(observers=[metrics]) as dispatcher:
        dispatcher.consumer.register_queue("other")
        await dispatcher.control.pause_queue("q")
        paused = await metrics.exposition(dispatcher)
        await dispatcher.control.resume_queue("q")
        resumed = await metrics.exposition(dispatcher)
    assert value(paused, "dispatch_queue_paused", queue="q") == 1
    assert value(paused, "dispatch_queue_paused", queue="other") == 0
    assert value(resumed, "dispatch_queue_paused", queue="q") == 0


async def test_a_removed_queue_is_in_no_gauge_any_more(autojump_clock: object) -> None:
    metrics = PrometheusObserver()
    async with working(observers=[metrics]) as dispatcher:
        await dispatcher.storage.declare([QueueRecord(name="old")])
        await dispatcher.control.pause_queue("old")
        before = await metrics.exposition(dispatcher)
        await dispatcher.control.remove_queue("old")
        after = await metrics.exposition(dispatcher)
    assert value(before, "dispatch_queue_paused", queue="old") == 1  # of which an alert tells
    assert b'queue="old"' not in after
    assert value(after, "dispatch_queue_paused", queue="q") == 0


async def test_counting_stops_at_its_bound(autojump_clock: object) -> None:
    metrics = PrometheusObserver()
    async with working(observers=[metrics]) as dispatcher:
        await dispatcher.publisher.publish_many([JOB(Job(n), delay=9.0) for n in range(100)])
        await metrics.look(dispatcher, bound=10)
        body = await metrics.exposition(dispatcher)
        assert value(body, "dispatch_queue_tasks", queue="q", status="later") == 100
        await metrics.look(dispatcher, bound=10)
        shown = metrics.registry.get_sample_value("dispatch_queue_tasks", {"queue": "q", "status": "later"})
    assert shown is not None
    assert 10 <= shown < 100


async def test_of_a_queue_that_others_consume_nothing_is_expected_here(autojump_clock: object) -> None:
    metrics = PrometheusObserver()
    async with working(nothing, queues=["q"], observers=[metrics]) as dispatcher:
        dispatcher.consumer.register_queue("other")
        dispatcher.consumer.register_handler(TaskType("other", "job", Job), nothing)
        assert dispatcher.consumer.addresses == (("q", "job"),)
        body = await metrics.exposition(dispatcher)
    assert value(body, "dispatch_tasks_total", queue="q", type="job", outcome="failed") == 0
    assert value(body, "dispatch_tasks_total", queue="other", type="job", outcome="failed") is None


async def test_the_gauges_follow_at_an_interval_until_cancelled(autojump_clock: object) -> None:
    metrics = PrometheusObserver()

    def later() -> float | None:
        return metrics.registry.get_sample_value("dispatch_queue_tasks", {"queue": "q", "status": "later"})

    async with working(observers=[metrics]) as dispatcher, trio.open_nursery() as nursery:
        await nursery.start(metrics.run, dispatcher)
        assert later() == 0
        await dispatcher.publisher.publish(JOB(Job(), delay=1_000.0))
        await trio.sleep(14)
        assert later() == 0
        await trio.sleep(2)
        assert later() == 1
        nursery.cancel_scope.cancel()


async def test_a_storage_that_is_away_costs_the_gauges_only(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    metrics, storage = PrometheusObserver(), Away()
    async with working(nothing, storage=storage, observers=[metrics]) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
        storage.away = True
        body = await metrics.exposition(dispatcher)
        async with trio.open_nursery() as nursery:
            await nursery.start(metrics.run, dispatcher)
            nursery.cancel_scope.cancel()
        storage.away = False
    assert value(body, "dispatch_tasks_total", queue="q", type="job", outcome="succeeded") == 1
    assert value(body, "dispatch_storage_errors_total", operation="survey") == 1
    assert "the queues could not be surveyed: [1021] away" in caplog.messages


@pytest.mark.parametrize("hangs", [False, True])
async def test_while_the_storage_is_away_the_gauges_show_nothing(
    hangs: bool, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """An age that stands still would be taken for one that does not grow."""

    def gauges(body: bytes) -> set[str]:
        return {name for name, _ in samples(body) if name.startswith(("dispatch_queue_", "dispatch_tasks_running"))}

    metrics, storage = PrometheusObserver(), Away()
    storage.hangs = hangs
    async with working(nothing, storage=storage, observers=[metrics]) as dispatcher:
        before = await metrics.exposition(dispatcher)
        storage.away = True
        began = trio.current_time()
        while_away = await metrics.exposition(dispatcher)
        took_s = trio.current_time() - began
        async with trio.open_nursery() as nursery:
            await nursery.start(metrics.run, dispatcher)
            nursery.cancel_scope.cancel()
        storage.away = False
        after = await metrics.exposition(dispatcher)
    assert gauges(before) == gauges(after)
    assert len(gauges(after)) == 5
    assert gauges(while_away) == set()
    assert took_s == pytest.approx(8.0 if hangs else 0.0, abs=0.1), "less than a scrape is waited for"
    assert value(while_away, "dispatch_storage_errors_total", operation="survey") == 1
    assert value(after, "dispatch_storage_errors_total", operation="survey") == 2, "run counts, too"
    said = "no answer within 8 s" if hangs else "away"
    assert f"the queues could not be surveyed: [1021] {said}" in caplog.messages


async def test_cron_lag_is_measured_for_functions_and_for_tasks(autojump_clock: object) -> None:
    async def tick() -> None:
        await trio.lowlevel.checkpoint()

    metrics = PrometheusObserver()
    async with working(nothing, observers=[metrics]) as dispatcher:
        await dispatcher.cron.add_with_name("@every 1m", "function", tick)
        await dispatcher.cron.add_with_name("@every 1m", "stored", JOB(Job()))
        await trio.sleep(130)
        await dispatcher.drain()
        await dispatcher.cron.trigger("stored")
        await dispatcher.drain()
        body = await metrics.exposition(dispatcher)
    assert value(body, "dispatch_cron_lag_seconds_count") == 4
    assert value(body, "dispatch_cron_lag_seconds_bucket", le="0.01") == 4
    assert value(body, "dispatch_tasks_published_total", queue="q", type="job") == 3


def test_a_hostile_name_stays_one_label() -> None:
    """Names are checked where they are declared; but another process may write to the storage."""
    hostile = 'x"} 1\n{evil="\\'
    metrics = PrometheusObserver()
    metrics(TaskEvent(kind=EventKind.PUBLISHED, at=0.0, task_id="1", queue=hostile, task_type=hostile))
    metrics.show([QueueSurvey(queue=hostile, tasks={"later": 3}, oldest_age_s=0.0, concurrency=None, running=None)])
    body = generate_latest(metrics.registry)
    assert value(body, "dispatch_tasks_published_total", queue=hostile, type=hostile) == 1
    assert value(body, "dispatch_queue_tasks", queue=hostile, status="later") == 3
    assert not any(name == "evil" for _, labels in samples(body) for name, _ in labels)


async def test_a_registry_of_the_services_own_is_used(autojump_clock: object) -> None:
    registry = CollectorRegistry()
    PrometheusObserver(registry)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        PrometheusObserver(registry)
    assert registry.get_sample_value("dispatch_cron_lag_seconds_count") == 0
    assert CONTENT_TYPE.startswith("text/plain")


def exported() -> dict[str, set[str]]:
    """Every sample name that can be exported, and its labels."""
    observer = PrometheusObserver()
    names: dict[str, set[str]] = {}
    for metric in observer.registry._collector_to_names:  # type: ignore[attr-defined]
        described: Any = metric
        labels = set(described._labelnames)
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
        for suffix in suffixes[described._type]:
            names[described._name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    return names


NAME = re.compile(r"\bdispatch_\w+")
SELECTOR = re.compile(r"(dispatch_\w+)(?:\{([^}]*)\})?")


def check(expression: str) -> set[str]:
    """Every metric of an expression is exported, with the labels it is asked for."""
    known = exported()
    used: set[str] = set()
    for name, selector in SELECTOR.findall(expression):
        assert name in known, f"{name} is not exported; there are {sorted(known)}"
        assert set(re.findall(r"(\w+)\s*=", selector)) <= known[name]
        used.add(name)
    for labels in re.findall(r"\bby \(([^)]*)\)", expression):
        for label in labels.split(","):
            assert any(label.strip() in known[name] for name in used)
    return used


def test_the_grafana_dashboard_asks_for_what_is_exported() -> None:
    board = json.loads((DOCS / "grafana.json").read_text(encoding="utf-8"))
    used: set[str] = set()
    for panel in board["panels"]:
        assert panel["targets"]
        for target in panel["targets"]:
            found = check(target["expr"])
            assert found, f"{panel['title']} shows none of our metrics"
            used |= found
    used |= check(board["templating"]["list"][1]["query"].replace("label_values", ""))
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in exported()}
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in used} == families
    cells = [
        (x, y)
        for panel in board["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_the_alert_rules_ask_for_what_is_exported() -> None:
    [group] = yaml.safe_load((DOCS / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    assert [rule["alert"] for rule in group["rules"]] == [
        "DispatchQueueFallsBehind", "DispatchTasksAreDying", "DispatchDeadLetters", "DispatchQueueStaysPaused", "DispatchStorageFails",
        "DispatchIsSilent",
    ]
    for rule in group["rules"]:
        assert check(rule["expr"])
        for label in re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])):
            assert re.search(rf"by \([^)]*\b{label}\b", rule["expr"])
        for name in NAME.findall(json.dumps(rule["annotations"])):
            assert name in exported()


async def test_what_is_absent_when_nobody_is_there_is_told_by_whoever_is(autojump_clock: object) -> None:
    """Also by a process that has done nothing yet, and by one whose storage is away: other rules are for that."""
    [group] = yaml.safe_load((DOCS / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    [looked_for] = [match[1] for rule in group["rules"] if (match := re.fullmatch(r"absent\((\w+)\)", rule["expr"]))]

    metrics, storage = PrometheusObserver(), Away()
    async with working(nothing, storage=storage, observers=[metrics]) as dispatcher:
        storage.away = True
        body = await metrics.exposition(dispatcher)
    assert looked_for in {name for name, _ in samples(body)}
    assert "dispatch_queue_paused" not in {name for name, _ in samples(body)}
