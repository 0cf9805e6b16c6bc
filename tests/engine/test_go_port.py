"""What the Go package `asynctask` does, done here: queues, errors, publishing."""

from __future__ import annotations

import re
from datetime import timedelta
from functools import partial
from typing import Any, Literal, Never, NewType

import pytest
import trio

from dispatch import (
    Dispatcher,
    QueueConfigConflictError,
    QueueTask,
    TaskHandlerNotFoundError,
    TaskQueueConfig,
    TaskStatus,
    TaskType,
    errors,
    open_dispatcher,
)
from dispatch.handlers import payload_class

from .work import JOB, Answer, Job, Script, nothing, working


def test_the_defaults_are_those_of_go() -> None:
    config = TaskQueueConfig()
    assert (config.concurrency, config.max_retry, config.retry_delay, config.buffer_size) == (1, 0, 1.0, 128)
    assert TaskQueueConfig(2, 3, 4.0, 5) == TaskQueueConfig(concurrency=2, max_retry=3, retry_delay=4.0, buffer_size=5)


def test_registering_the_identical_configuration_is_a_no_op() -> None:
    consumer = Dispatcher().consumer
    consumer.register_queue("email", TaskQueueConfig(concurrency=4))
    consumer.register_queue("email", TaskQueueConfig(concurrency=4))
    assert consumer.queue_names == ("email",)


async def test_a_different_configuration_is_refused_and_the_old_one_stays(autojump_clock: object) -> None:
    running = most = 0

    async def handler(task: QueueTask[Job]) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(1)
        running -= 1

    async with working(handler, TaskQueueConfig(concurrency=2)) as dispatcher:
        with pytest.raises(QueueConfigConflictError) as caught:
            dispatcher.consumer.register_queue("q", TaskQueueConfig(concurrency=5, max_retry=1))
        assert str(caught.value) == (
            "[1005] queue 'q' is registered with another configuration, which stays: "
            "concurrency=5 (registered: 2), max_retry=1 (registered: 0); register it once, or with the same config"
        )
        dispatcher.consumer.register_queue("q")  # says nothing of it
        for n in range(6):
            await dispatcher.publisher.publish(JOB(Job(n)))
        await dispatcher.drain()
    assert most == 2


def test_register_handler_checks_name_then_type_then_handler_then_registration() -> None:
    consumer = Dispatcher().consumer

    async def good(task: QueueTask[Job]) -> None: ...

    with pytest.raises(errors.InvalidQueueNameError, match=r"^\[1006\] queue name must be 1 to 128 characters"):
        consumer.register_handler("", "", None)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidTaskTypeError, match=r"^\[1008\] queue 'email': task type must be 1 to 128"):
        consumer.register_handler("email", "", None)  # type: ignore[arg-type]
    with pytest.raises(
        errors.InvalidTaskHandlerError,
        match=re.escape("[1009] handler of email/welcome: must be a function of (task) or (task, run), got None"),
    ):
        consumer.register_handler("email", "welcome", None)  # type: ignore[arg-type]
    with pytest.raises(errors.QueueNotRegisteredError) as caught:
        consumer.register_handler("email", "welcome", good)
    assert str(caught.value) == (
        "[1007] queue 'email' is not registered here; registered: none. Call register_queue('email') first"
    )
    consumer.register_queue("email")
    consumer.register_handler("email", "welcome", good)


def test_a_second_handler_of_a_type_is_refused() -> None:
    consumer = Dispatcher().consumer
    consumer.register_queue("q")
    consumer.register_handler(JOB, nothing)
    with pytest.raises(errors.InvalidTaskHandlerError) as caught:
        consumer.register_handler(JOB, nothing)
    assert str(caught.value) == (
        "[1009] handler of q/job: nothing is registered already; a task type has one handler"
    )


@pytest.mark.parametrize("handler", [lambda: None, lambda a, b, c: None, "text", 7])
def test_what_cannot_handle_a_task_is_refused(handler: Any) -> None:
    consumer = Dispatcher().consumer
    consumer.register_queue("q")
    with pytest.raises(errors.InvalidTaskHandlerError, match=r"must (be a function of|take) \(task\) or \(task, run\)"):
        consumer.register_handler(JOB, handler)


class Yielding:
    def __call__(self, task: Any) -> Any:
        yield


class YieldingToo:
    async def __call__(self, task: Any) -> Any:
        yield


class Awaitable:
    def __init__(self, task: Any) -> None:
        self.task = task

    def __await__(self) -> Any:
        return trio.sleep(self.task.payload.n).__await__()


@pytest.mark.parametrize(("handler", "why"), [
    (Yielding(), "Yielding is a generator; a handler must not yield"),
    (YieldingToo(), "YieldingToo is a generator; a handler must not yield"),
    (partial(YieldingToo()), "YieldingToo is a generator; a handler must not yield"),
    (Script, "Script is a class, of which only an instance would be made; register one"),
    (partial(Script, 1.0), "Script is a class, of which only an instance would be made; register one"),
])
def test_what_would_never_run_is_refused(handler: Any, why: str) -> None:
    consumer = Dispatcher().consumer
    consumer.register_queue("q")
    with pytest.raises(errors.InvalidTaskHandlerError) as caught:
        consumer.register_handler(JOB, handler)
    assert str(caught.value) == f"[1009] handler of q/job: {why}"


async def test_a_class_whose_instances_are_awaited_handles_a_task() -> None:
    async with working(Awaitable) as dispatcher:
        task = await dispatcher.publisher.wait(await dispatcher.publisher.publish(JOB(Job(0))))
    assert task.status is TaskStatus.SUCCEEDED

@pytest.mark.parametrize("max_retry", [0, 1, 3])
async def test_total_runs_are_one_plus_max_retry(max_retry: int, autojump_clock: object) -> None:
    handler = Script(ValueError("no"))
    async with working(handler, TaskQueueConfig(max_retry=max_retry, retry_delay=2.0)) as dispatcher:
        stored = await dispatcher.publisher.publish(JOB(Job()))
        ended = await dispatcher.publisher.wait(stored)
    assert [task.attempt for task in handler.seen] == list(range(1, max_retry + 2))
    assert handler.gaps == pytest.approx([2.0] * max_retry, abs=0.01)
    assert (ended.status, ended.attempt, ended.last_error) == (TaskStatus.FAILED, max_retry + 1, "ValueError: no")


async def test_a_delay_is_waited_before_the_first_run(autojump_clock: object) -> None:
    handler = Script()
    async with working(handler) as dispatcher:
        began = trio.current_time()
        await dispatcher.publisher.publish(JOB(Job(), delay=7.5))
        await dispatcher.drain()
    assert handler.times == [pytest.approx(began + 7.5, abs=0.01)]


async def test_the_timeout_is_per_attempt(autojump_clock: object) -> None:
    handler = Script(60.0, 60.0, 2.0)
    async with working(handler, TaskQueueConfig(max_retry=2, retry_delay=1.0)) as dispatcher:
        stored = await dispatcher.publisher.publish(JOB(Job(), timeout=3.0))
        ended = await dispatcher.publisher.wait(stored)
    assert handler.gaps == pytest.approx([4.0, 4.0], abs=0.01)
    assert (ended.status, ended.attempt) == (TaskStatus.SUCCEEDED, 3)


async def test_publish_fills_id_moments_and_status(autojump_clock: object) -> None:
    async with working() as dispatcher:
        stored = await dispatcher.publisher.publish(JOB(Job(3), delay=5.0, headers={"a": "b"}))
        assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", stored.id)
        assert stored.created_at is not None
        assert stored.created_at.utcoffset() == timedelta(0)
        assert stored.available_at == stored.created_at + timedelta(seconds=5)
        assert (stored.status, stored.attempt, stored.payload) == (TaskStatus.PENDING, 0, Job(3))
        assert dict(stored.headers) == {"a": "b"}
        # What was published and what is stored differ in nothing that is shown.
        again = await dispatcher.control.get(stored)
        assert (again.id, again.created_at, again.available_at, again.payload) == (
            stored.id, stored.created_at, stored.available_at, stored.payload,
        )
        await dispatcher.control.cancel(stored)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("InternalError", 1001),
        ("TaskNotFoundError", 1002),
        ("InvalidQueueTaskError", 1003),
        ("TaskHandlerNotFoundError", 1004),
        ("QueueConfigConflictError", 1005),
        ("InvalidQueueNameError", 1006),
        ("QueueNotRegisteredError", 1007),
        ("InvalidTaskTypeError", 1008),
        ("InvalidTaskHandlerError", 1009),
        ("InvalidQueuePayloadError", 1010),
    ],
)
def test_the_ten_errors_keep_their_names_and_numbers(name: str, code: int) -> None:
    found: type[errors.DispatchError] = getattr(errors, name)
    raised = found("whatever the detail")
    assert (found.code, raised.detail, str(raised)) == (code, "whatever the detail", f"[{code}] whatever the detail")
    assert isinstance(raised, errors.DispatchError)


def test_every_error_has_a_code_of_its_own() -> None:
    found = [
        each for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, errors.DispatchError) and "code" in vars(each)
    ]
    own = [each.code for each in found if each is not errors.DispatchError]
    assert sorted(own) == list(range(1001, 1001 + len(own)))
    assert issubclass(TaskHandlerNotFoundError, errors.LookupFailedError)


async def test_the_payload_class_is_read_from_the_annotation_in_the_form_of_go(autojump_clock: object) -> None:
    seen: list[Job] = []

    async def handler(task: QueueTask[Job]) -> None:
        seen.append(task.payload)

    async with open_dispatcher() as dispatcher:
        dispatcher.consumer.register_queue("email")
        dispatcher.consumer.register_handler("email", "welcome", handler)
        await dispatcher.publisher.publish(QueueTask(queue="email", type="welcome", payload=Job(9)))
        await dispatcher.publisher.publish(TaskType("email", "welcome", Job)(Job(10)))
        await dispatcher.drain()
    assert seen == [Job(9), Job(10)]


@pytest.mark.parametrize(
    ("declared", "value"),
    [(Answer | None, Answer(1)), (Answer | None, None), (list[Answer], [Answer(1), Answer(2)]), (Any, {"n": 1})],
)
async def test_the_result_type_is_read_from_what_the_handler_returns(
    declared: Any, value: object, autojump_clock: object
) -> None:
    async def handler(task: QueueTask[Job]):  # type: ignore[no-untyped-def]
        return value

    handler.__annotations__["return"] = declared
    async with open_dispatcher() as dispatcher:
        dispatcher.consumer.register_queue("email")
        dispatcher.consumer.register_handler("email", "welcome", handler)
        task = await dispatcher.publisher.publish(QueueTask(queue="email", type="welcome", payload=Job()))
        assert await dispatcher.publisher.result(task) == value


def test_a_handler_that_never_returns_has_no_result() -> None:
    async def handler(task: QueueTask[Job]) -> Never:
        raise ValueError

    assert payload_class("email", "welcome", handler) == (Job, None)


def test_a_returned_type_that_cannot_be_stored_is_refused_like_a_declared_one() -> None:
    consumer = Dispatcher().consumer
    consumer.register_queue("email")

    async def handler(task: QueueTask[Job]) -> list[complex]:
        return []

    with pytest.raises(errors.InvalidTaskTypeError, match=r"^\[1008\] task type email/welcome: result.*complex"):
        consumer.register_handler("email", "welcome", handler)


@pytest.mark.parametrize("result", [Answer, Answer | None, list[Answer], Literal["a"], NewType("Id", str), Any])
def test_a_task_type_takes_any_type_as_its_result_and_names_it(result: Any) -> None:
    named = result.__name__ if isinstance(result, type) else str(result)
    assert repr(TaskType("email", "welcome", Job, result)) == f"<TaskType email/welcome Job -> {named}>"


@pytest.mark.parametrize("result", ["Answer", Answer(1), 5, ()])
def test_a_task_type_refuses_a_result_that_is_no_type(result: Any) -> None:
    with pytest.raises(errors.InvalidTaskTypeError) as caught:
        TaskType("email", "welcome", Job, result)
    assert str(caught.value) == (
        "[1008] task type email/welcome: result must be a class, a type such as list[Receipt], or None, "
        f"got {result!r}"
    )
