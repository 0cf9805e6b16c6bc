"""The one table of states drives everything, and nothing else changes a task's state."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import dispatch
from dispatch import lifecycle
from dispatch.errors import InternalError
from dispatch.lifecycle import TABLE, Event
from dispatch.records import TaskRecord, Transition, TransitionKind
from dispatch.retry import RetryPolicy
from dispatch.tasks import TaskStatus

STORED = [status for status in TaskStatus if status is not TaskStatus.RETRYING]


def a_record(status: TaskStatus) -> TaskRecord:
    return TaskRecord(id="t", queue="q", type="job", payload=b"{}", status=status, attempt=1, epoch=4, limit=0)


@pytest.mark.parametrize("status", STORED)
@pytest.mark.parametrize("event", list(Event))
def test_each_event_from_each_status_is_allowed_by_the_table_or_an_internal_error(
    event: Event, status: TaskStatus
) -> None:
    record, change = a_record(status), TABLE[event]
    if status in change.source:
        lifecycle._move(record, event)
        assert record.status is change.target
        assert (record.attempt, record.epoch) == (1 + change.attempt, 4 + change.epoch)
        return
    with pytest.raises(InternalError) as caught:
        lifecycle._move(record, event)
    assert str(caught.value) == f"[1001] task t: event {event.value!r} cannot happen to a {status.value} task"
    assert record == a_record(status)


@pytest.mark.parametrize("status", [status for status in STORED if status is not TaskStatus.RUNNING])
@pytest.mark.parametrize("kind", list(TransitionKind))
def test_only_a_running_task_can_be_settled(kind: TransitionKind, status: TaskStatus) -> None:
    record = a_record(status)
    with pytest.raises(InternalError):
        lifecycle.settle(record, Transition("t", 4, kind), 1.0)
    assert record == a_record(status)


@pytest.mark.parametrize("status", STORED)
def test_what_is_done_by_hand_answers_false_where_the_table_has_no_row(status: TaskStatus) -> None:
    for act, event in (
        (lifecycle.hold, Event.HOLD),
        (lifecycle.resume, Event.RESUME),
        (lambda record: lifecycle.rerun(record, 9.0), Event.RERUN),
    ):
        record = a_record(status)
        allowed = status in TABLE[event].source
        assert act(record) is allowed
        assert record.status is (TABLE[event].target if allowed else status)
        assert allowed or record == a_record(status)


def test_the_wait_after_a_rescue_is_never_random() -> None:
    record = a_record(TaskStatus.RUNNING)
    record.limit, record.retry = 5, RetryPolicy.fixed(60.0, jitter=0.5).to_text()
    lifecycle.rescue(record, 1_000.0)
    assert (record.status, record.available_at) == (TaskStatus.PENDING, 1_060.0)


def test_the_diagram_shows_every_row() -> None:
    lines = lifecycle.diagram().splitlines()
    assert lines[:2] == ["stateDiagram-v2", "    [*] --> pending: publish"]
    rows = sum(len(change.source) for change in TABLE.values())
    terminal = [status for status in TaskStatus if status.is_terminal]
    assert len(lines) == 2 + rows + len(terminal)
    assert "    pending --> running: claim" in lines
    assert "    running --> failed: expire, fail" in lines


def test_every_status_can_be_reached_and_only_the_ended_ones_are_left_by_a_rerun() -> None:
    assert {change.target for change in TABLE.values()} == set(STORED)
    left = {status for change in TABLE.values() for status in change.source if status.is_terminal}
    assert left == set(TABLE[Event.RERUN].source)


STATE = {"status", "epoch", "attempt"}
ALLOWED = {("pool.py", "task", "status")}
"""The pool's own tasks have a status, which no storage ever sees."""
INDEPENDENT = {"testing/model.py"}
"""The model that storages are compared with must not be the code it judges."""


def test_only_the_lifecycle_module_assigns_a_records_state() -> None:
    root = Path(dispatch.__file__).parent
    found: set[tuple[str, str, str]] = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for target in targets:
                for each in ast.walk(target) if isinstance(target, ast.AST) else ():
                    if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store) and each.attr in STATE:
                        found.add((str(path.relative_to(root)), ast.unparse(each.value), each.attr))
    found = {each for each in found if each[1] != "self" and each[0] not in INDEPENDENT}
    assert {each for each in found if each[0] != "lifecycle.py"} == ALLOWED
    assert {each[2] for each in found if each[0] == "lifecycle.py"} == STATE
