"""What the parts are made with: nonsense is refused then, not met by the first task."""

# pyright: reportArgumentType=false
# What a type checker refuses is what is handed in here.

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from inspect import signature
from math import inf, nan
from pathlib import Path
from typing import Any, Protocol, TypeVar
from unittest.mock import AsyncMock, Mock

import pytest
import trio
from attrs import define, frozen

import dispatch
from dispatch import (
    Clock,
    Codec,
    CronEntry,
    CronTaskDispatcher,
    Dispatcher,
    InvalidConfigError,
    InvalidQueueTaskError,
    InvalidTaskHandlerError,
    InvalidTaskTypeError,
    MemoryStorage,
    QueueFullError,
    QueueInUseError,
    QueueTask,
    RateLimit,
    RetryPolicy,
    StorageError,
    TaskDispatcher,
    TaskQueueConfig,
    TaskQueueConsumer,
    TaskQueueControl,
    TaskQueuePublisher,
    TaskType,
    Unique,
    WaitReason,
    open_dispatcher,
)
from dispatch.checks import shown
from dispatch.dispatcher import DispatcherOptions
from dispatch.storage.protocol import QueueRecord, WorkerRecord
from dispatch.storage.query import PruneSpec, Tags, dead_letters
from dispatch.storage.sqlite import SqliteStorage
from dispatch.testing.faults import FaultyStorage

from .work import JOB, Job, Script, nothing, working


def refusal(make: Callable[[], object]) -> str:
    with pytest.raises(InvalidConfigError) as caught:
        make()
    return caught.value.detail


class Decider:
    async def __call__(self, exc: BaseException, attempt: int) -> None: ...


DECIDER = Decider()


@pytest.mark.parametrize("option", ["queues", "tags"])
def test_one_name_in_place_of_several_is_refused(option: str) -> None:
    given: dict[str, Any] = {option: "email"}
    wanted = f"{option} must be a collection of str, got 'email'; write ['email']"
    assert refusal(lambda: Dispatcher(**given)) == wanted
    assert refusal(lambda: TaskQueueConsumer(MemoryStorage(), **given)) == wanted


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tags(all_of="x"), "Tags: all_of must be a collection of str, got 'x'; write ['x']"),
        (lambda: Tags(any_of="x"), "Tags: any_of must be a collection of str, got 'x'; write ['x']"),
        (lambda: Tags(any_of=[1]), "Tags: any_of must be a collection of str, got 1 in it"),
        (
            lambda: Unique(replace="payload"),
            "Unique: replace must be a collection of str, got 'payload'; write ['payload']",
        ),
        (lambda: Dispatcher(queues=5), "queues must be a collection of str, got 5"),
        (lambda: Dispatcher(tags=[b"x"]), "tags must be a collection of str, got b'x' in it"),
    ],
)
def test_what_holds_no_names_is_refused(make: Any, message: str) -> None:
    assert refusal(make) == message


async def wait(*given: object) -> None:
    """Of the right kind for a middleware, of the wrong one for what is called at once."""


class Waiting:
    async def __call__(self, *given: object) -> None:
        """As `wait`."""


def plain(*given: object) -> None:
    """The other way round."""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: TaskQueueConfig(retry=5),
            "TaskQueueConfig: retry must be a RetryPolicy or None, got 5; "
            "how often is said by max_retry, a fixed wait by retry_delay",
        ),
        (lambda: TaskQueueConfig(keyed="no"), "TaskQueueConfig: keyed must be True or False, got 'no'"),
        (lambda: Unique(by_payload="no"), "Unique: by_payload must be True or False, got 'no'"),
        (lambda: RetryPolicy(permanent=["x"]), "RetryPolicy: permanent must be exception classes, got 'x'"),
        (lambda: RetryPolicy(retry_on=int), "RetryPolicy: retry_on must be exception classes, got <class 'int'>"),
        pytest.param(
            lambda: RetryPolicy(decide=wait),
            f"RetryPolicy: decide must be a sync function of (exception, attempt), got {wait!r}",
            id="an async decide",  # an address would be another in each process of the tests
        ),
        pytest.param(
            lambda: RetryPolicy(decide=DECIDER),
            f"RetryPolicy: decide must be a sync function of (exception, attempt), got {DECIDER!r}",
            id="an object that is called like an async decide",
        ),
        (lambda: TaskQueueConfig(timeout=inf), "TaskQueueConfig: timeout must be a finite number of seconds, got inf"),
        (lambda: Dispatcher(codec=3), "codec must be a Codec or None, got 3"),
        (lambda: Dispatcher(clock=3), "clock must be a Clock or None, got 3"),
        (
            lambda: Dispatcher(Path("x.db")),
            "storage must be a Storage or None for an in-memory one, got PosixPath; "
            "a URL such as 'sqlite:///jobs.db' is for open_dispatcher",
        ),
        pytest.param(
            lambda: Dispatcher(cron=CronEntry("@daily", "tidy", wait)),
            "cron must be a collection of CronEntry values, got "
            f"{CronEntry('@daily', 'tidy', wait)!r}; write it in brackets",
            id="one cron entry",
        ),
        (lambda: RetryPolicy(delay="1"), "RetryPolicy: delay must be within 0 and 3.1536e+08, got '1'"),
        (lambda: Dispatcher(lease="1"), "lease must be within 0.05 and 86400 seconds, got '1'"),
        (lambda: Dispatcher(grace=None), "grace must be within 0 and 86400 seconds, got None"),
        (lambda: Dispatcher(grace=nan), "grace must be within 0 and 86400 seconds, got nan"),
        (lambda: TaskDispatcher(grace="1"), "grace must be within 0 and 86400 seconds, got '1'"),
        (lambda: Dispatcher(worker=5), "worker must be a name, or None for one made up, got 5"),
        (lambda: Dispatcher(worker="w\0"), "worker must have no NUL and no lone surrogate, got 'w\\x00'"),
        (lambda: Dispatcher(worker="w\ud800"), "worker must have no NUL and no lone surrogate, got 'w\\ud800'"),
        (lambda: Dispatcher(prune=5), "prune must be a collection of PruneSpec values, got 5"),
        (lambda: Dispatcher(prune_every="1"), "prune_every must be within 1 second and 30 days, got '1'"),
    ],
)
def test_a_setting_that_would_fail_later_is_refused(make: Any, message: str) -> None:
    assert refusal(make) == message


def test_a_dispatcher_is_opened_with_all_that_one_is_made_with() -> None:
    made_with = signature(dispatch.Dispatcher).parameters.keys() - {"storage"}
    assert DispatcherOptions.__optional_keys__ == made_with


def test_one_in_place_of_several_is_refused() -> None:
    assert refusal(lambda: Dispatcher(prune=PruneSpec(keep=1))).endswith("; write it in brackets")
    assert refusal(lambda: Dispatcher(middleware=wait)) == (
        f"middleware must be a collection of async functions, got {shown(wait)}; write [{shown(wait)}]"
    )
    assert refusal(lambda: Dispatcher(observers=plain)) == (
        f"observers must be a collection of functions, got {shown(plain)}"
    )


@pytest.mark.parametrize("given", [plain, "x", None])
def test_a_middleware_that_is_not_async_is_refused(given: Any) -> None:
    assert refusal(lambda: Dispatcher(middleware=[given])) == (
        f"middleware must be async functions of (task, run, call_next), got {shown(given)}"
    )
    assert Dispatcher(middleware=[wait, Waiting(), partial(wait, 1)])


async def of_two(task: object, run: object) -> None: ...


@pytest.mark.parametrize("given", [of_two, partial(of_two, 1)])
def test_a_middleware_takes_what_it_is_called_with(given: Any) -> None:
    assert refusal(lambda: Dispatcher(middleware=[given])) == (
        f"middleware must be async functions of (task, run, call_next), got {shown(given)}"
    )


@pytest.mark.parametrize("given", [lambda: None, lambda event, more: None, [].clear])
def test_an_observer_takes_one_event(given: Any) -> None:
    why = f"an observer is called with one TaskEvent, which {shown(given)} does not take"
    assert refusal(lambda: Dispatcher().observe(given)) == why
    assert refusal(lambda: Dispatcher(observers=[print, [].append, plain, given])) == why


@pytest.mark.parametrize("given", [wait, Waiting()])
def test_an_observer_that_is_async_is_refused(given: Any) -> None:
    wanted = (
        f"an observer is called at once and cannot wait, got the async {shown(given)}; "
        "for async code read the events of subscribe()"
    )
    assert refusal(lambda: Dispatcher().observe(given)) == wanted
    assert refusal(lambda: Dispatcher(observers=[given])) == wanted


def test_what_is_no_function_is_no_observer() -> None:
    given: Any = "x"
    assert refusal(lambda: Dispatcher().observe(given)) == "an observer is a function of one TaskEvent, got 'x'"


def test_an_observer_that_offers_what_is_no_middleware_is_refused_at_once() -> None:
    given = Mock()  # has whatever it is asked for
    why = (
        f"the middleware of the observer {shown(given)} must be an async function of (task, run, call_next), "
        f"got {shown(given.middleware)}; leave it out, or set it to None"
    )
    assert refusal(lambda: Dispatcher(observers=[given])) == why
    assert refusal(lambda: Dispatcher().observe(given)) == why
    Dispatcher(observers=[Mock(middleware=None), Mock(middleware=AsyncMock())])


def test_any_collection_of_exceptions_is_taken() -> None:
    given: Any = [ValueError, OSError]
    assert RetryPolicy(permanent=given).permanent == (ValueError, OSError)
    assert RetryPolicy(retry_on=iter(given)).retry_on == (ValueError, OSError)
    assert RetryPolicy(permanent=ValueError) == RetryPolicy(permanent=(ValueError,))


async def test_permanent_errors_in_a_list_are_permanent(autojump_clock: object) -> None:
    policy = RetryPolicy(permanent=[ValueError])
    async with working(Script(ValueError("x")), TaskQueueConfig(max_retry=3, retry=policy)) as dispatcher:
        task = await dispatcher.publisher.wait(await dispatcher.publisher.publish(JOB(Job())))
    assert (task.attempt, task.failure_reason) == (1, "permanent")


async def test_a_decision_of_true_is_no_second(autojump_clock: object, caplog: pytest.LogCaptureFixture) -> None:
    handler = Script(ValueError("x"), None)
    policy = RetryPolicy(delay=7.0, decide=lambda error, attempt: True)
    async with working(handler, TaskQueueConfig(max_retry=3, retry=policy)) as dispatcher:
        await dispatcher.publisher.wait(await dispatcher.publisher.publish(JOB(Job())))
    assert handler.gaps == pytest.approx([7], abs=0.01)
    assert "decide must return seconds of at least 0, False or None, got True" in caplog.text


async def test_many_are_published_from_any_iterable(autojump_clock: object) -> None:
    seen: list[object] = []
    async with working(nothing, observers=[seen.append]) as dispatcher:
        answers = await dispatcher.publisher.publish_many(JOB(Job(n)) for n in range(3))
        assert [answer.task is not None for answer in answers] == [True] * 3
        assert await dispatcher.publisher.publish_many(iter(())) == []
        one: Any = JOB(Job())
        with pytest.raises(InvalidQueueTaskError) as caught:
            await dispatcher.publisher.publish_many(one)
    assert caught.value.detail == "publish_many takes several tasks, got QueueTask; publish takes one"


def test_any_collection_of_names_is_taken() -> None:
    names = iter(["a", "b"])
    assert Tags(all_of=names) == Tags(all_of={"b", "a"}) == Tags(all_of=("a", "b"))
    assert Unique(replace=["payload", "tags"]).replace == {"payload", "tags"}


async def test_a_queue_to_consume_that_nobody_registered_is_named_at_the_end(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(queues=["q"]):
        pass
    assert not caplog.records
    async with working(queues=["q", "mail", "emial"]):
        assert not caplog.records
    assert [line.getMessage() for line in caplog.records] == [
        "queues: 'emial', 'mail' were never registered here, so nothing of that was consumed; registered: q"
    ]


@pytest.mark.parametrize("given", [dead_letters("q"), "id", 5])
async def test_a_prune_by_hand_takes_a_spec(given: Any, autojump_clock: object) -> None:
    async with working() as dispatcher:
        with pytest.raises(InvalidConfigError) as caught:
            await dispatcher.control.prune(given)
        assert caught.value.detail == (
            "prune takes a PruneSpec, such as PruneSpec(age_s=86_400, where=Queues('email')); "
            f"got {shown(given)}"
        )


@pytest.mark.parametrize("annotation", ["QueueTask[models.Gone]", "QueueTask[", "1/0"])
def test_a_handlers_annotation_that_cannot_be_read_is_the_handlers_fault(annotation: str) -> None:
    async def handler(task: Any) -> None:
        pass

    handler.__annotations__["task"] = annotation
    handler.__globals__["models"] = dispatch
    dispatcher = Dispatcher()
    dispatcher.consumer.register_queue("q")
    with pytest.raises(InvalidTaskHandlerError, match=r"its annotations cannot be read.*outside of TYPE_CHECKING"):
        dispatcher.consumer.register_handler("q", "t", handler)


@frozen
class Other(Job):
    more: int = 0


class Countable(Protocol):
    n: int


X = TypeVar("X")


@define
class WithFields:
    task: Job
    more: int = 0

    async def __call__(self, task: QueueTask[Other]) -> None: ...


class Object:
    async def __call__(self, task: QueueTask[Other]) -> None: ...

    async def method(self, task: Other) -> None: ...

    async def unbound(self, task: QueueTask[Job]) -> None: ...


async def of_another(task: QueueTask[Other]) -> None: ...


async def of_the_payload(payload: Job) -> None: ...


async def with_number(task: QueueTask[Job], number: int) -> None: ...


def with_more(more: int, task: QueueTask[Other]) -> None: ...


@pytest.mark.parametrize(
    ("handler", "takes"),
    [
        (of_another, "of_another takes QueueTask[Other], but the payload of the task type is Job; use one class"),
        (with_more, "QueueTask[Other]"),
        (Object(), "takes QueueTask[Other], but"),
        (of_the_payload, "of_the_payload takes Job, but a handler is given the task: annotate it as QueueTask[Job], and"),
        (Object().method, "Object.method takes Other, but a handler is given the task"),
        (Object.unbound, "the second argument of Object.unbound is a dispatch.tasks.QueueTask["),
        (with_number, "the second argument of with_number is a <class 'int'>, but a handler is given (task, run)"),
    ],
)
def test_a_handler_annotated_for_another_payload_is_refused(handler: Any, takes: str) -> None:
    dispatcher = Dispatcher()
    dispatcher.consumer.register_queue("q")
    given = partial(handler, 1) if handler is with_more else handler
    with pytest.raises(InvalidTaskHandlerError) as caught:
        dispatcher.consumer.register_handler(JOB, given)
    assert takes in str(caught.value)


@pytest.mark.parametrize(
    "annotation", [QueueTask, QueueTask[Any], QueueTask[Job], QueueTask[object], QueueTask[Countable], QueueTask[X],
                   Any, object, X, "QueueTask[Unknown]", QueueTask[Job] | None]
)
def test_a_handler_annotated_for_more_than_its_payload_is_taken(annotation: Any) -> None:
    async def handler(task: Any) -> None: ...

    handler.__annotations__["task"] = annotation
    dispatcher = Dispatcher()
    dispatcher.consumer.register_queue("q")
    dispatcher.consumer.register_handler(TaskType("q", "t", Other), handler)


def test_the_fields_of_a_callable_object_are_no_arguments() -> None:
    dispatcher = Dispatcher()
    dispatcher.consumer.register_queue("q")
    dispatcher.consumer.register_handler(TaskType("q", "t", Other), WithFields(Job()))
    dispatcher.consumer.register_handler("q", "u", WithFields(Job()))
    assert dispatcher._registry.types["q", "u"].payload is Other


def test_around_a_decorator_nothing_is_asked() -> None:
    @wraps(of_the_payload)
    async def handler(payload: Any) -> None:
        await of_the_payload(payload.payload)

    dispatcher = Dispatcher()
    dispatcher.consumer.register_queue("q")
    dispatcher.consumer.register_handler(JOB, handler)


async def test_a_queue_that_another_process_declared_otherwise_is_changed_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with SqliteStorage(tmp_path / "jobs.db") as storage:
        configs = [
            TaskQueueConfig(max_running=1, keyed=True),
            TaskQueueConfig(max_running=1, keyed=True, concurrency=7),  # its own affair
            TaskQueueConfig(max_running=3, rate_limit=RateLimit(5, 60.0)),
        ]
        for config in configs:
            async with open_dispatcher(storage) as dispatcher:
                dispatcher.consumer.register_queue("q", config)
                await dispatcher.control.queues()
    assert [each for each in caplog.messages if "changed for all" in each] == [
        "queue q: changed for all processes, as it is registered here: keyed from True to False, "
        "max_running from 1 to 3, rate from None to (5, 60.0)"
    ]


async def test_a_queue_registered_without_a_config_keeps_what_others_have_said_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    limited = TaskQueueConfig(max_running=1, keyed=True, max_waiting=2, overflow="raise")
    async with (
        SqliteStorage(tmp_path / "jobs.db") as storage,
        open_dispatcher(storage) as worker,
        open_dispatcher(storage) as front,
    ):
        worker.consumer.register_queue("q", limited)
        before = await worker.control.queues()
        front.consumer.register_queue("q")
        front.consumer.register_queue("fresh", None)
        assert [each for each in await front.control.queues() if each.name == "q"] == before
        await front.publisher.publish_many([JOB(Job(n)) for n in range(2)])
        with trio.fail_after(5), pytest.raises(QueueFullError):
            await front.publisher.publish(JOB(Job(3)))
        assert [each for each in caplog.messages if "without a config" in each] == [
            "queue q: registered here without a config, so what is stored of it holds: keyed=True, "
            "max_waiting=2, overflow='raise', max_running=1"
        ]
        assert not any("changed for all" in each for each in caplog.messages)
        # Said in so many words, it is meant for all.
        front.consumer.register_queue("q", TaskQueueConfig())
        [_, after] = await front.control.queues()
        assert (after.keyed, after.max_running) == (False, None)
    assert any("changed for all processes" in each for each in caplog.messages)


async def test_a_queue_without_a_handler_is_declared_for_others(autojump_clock: object) -> None:
    storage = FaultyStorage(MemoryStorage())
    async with open_dispatcher(storage) as dispatcher:
        await trio.sleep(1)
        storage.fail("declare", times=3)
        dispatcher.consumer.register_queue("q")
        await trio.sleep(0.2)
        assert await storage.queues() == []
        await trio.sleep(5)
        assert [queue.name for queue in await storage.queues()] == ["q"]


class Unwilling(MemoryStorage):
    """A declaration takes it 4 s, and is refused."""

    async def declare(self, queues: Sequence[QueueRecord], *, new_only: bool = False) -> None:
        await trio.sleep(4)
        raise StorageError("locked")


async def test_who_waits_for_a_declaration_shares_its_answer(autojump_clock: object) -> None:
    async with open_dispatcher(Unwilling()) as dispatcher:
        dispatcher.consumer.register_queue("q")
        began, failed_after = trio.current_time(), list[float]()

        async def publish(n: int) -> None:
            with pytest.raises(StorageError, match="locked"):
                await dispatcher.publisher.publish(JOB(Job(n)))
            failed_after.append(trio.current_time() - began)

        async with trio.open_nursery() as nursery:
            for n in range(10):
                nursery.start_soon(publish, n)
    assert max(failed_after) <= 8.5  # behind the queue's own attempt, at most


class SlowBeat(MemoryStorage):
    async def beat(self, worker: WorkerRecord) -> None:
        await trio.sleep(0.05)
        await super().beat(worker)


@pytest.mark.parametrize("config", [{"concurrency": 2}, 5, TaskQueueConfig], ids=["dict", "int", "class"])
async def test_a_queue_is_registered_with_a_config_or_without(config: Any) -> None:
    async with open_dispatcher() as dispatcher:
        with pytest.raises(InvalidConfigError, match="queue 'q': config must be a TaskQueueConfig, got"):
            dispatcher.consumer.register_queue("q", config)
        assert await dispatcher.control.queues() == []
        dispatcher.consumer.register_queue("q", None)


async def test_a_queue_that_is_added_while_the_worker_is_written_is_listed_at_once(autojump_clock: object) -> None:
    async with open_dispatcher(SlowBeat()) as dispatcher:
        for name in ("a", "b", "c"):
            dispatcher.consumer.register_queue(name)
            dispatcher.consumer.register_handler(TaskType(name, "job", Job), nothing)
            await trio.sleep(0.02)
        await trio.sleep(1)
        assert [worker.queues for worker in await dispatcher.control.workers()] == [("a", "b", "c")]
        with pytest.raises(QueueInUseError):
            await dispatcher.control.remove_queue("b")


async def test_who_has_no_handler_of_a_queue_is_no_worker_of_it(autojump_clock: object) -> None:
    async with open_dispatcher() as dispatcher:
        dispatcher.consumer.register_queue("q")
        task = await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(1)
        assert [worker.queues for worker in await dispatcher.control.workers()] == [()]
        assert (await dispatcher.control.why(task)).reason is WaitReason.NO_WORKER
        dispatcher.consumer.register_handler(TaskType("q", "other", Job), nothing)
        await trio.sleep(1)
        assert [worker.queues for worker in await dispatcher.control.workers()] == [("q",)]


def upcast(old: dict[str, Any]) -> dict[str, Any]:
    return old


async def upcast_later(old: dict[str, Any]) -> dict[str, Any]:
    return old


@pytest.mark.parametrize(
    ("version", "upcasters", "why"),
    [
        (1, {1: upcast}, "there is an upcaster from version 1, but version is 1; raise it to 2"),
        (2, {1: upcast, 2: upcast}, "there is an upcaster from version 2, but version is 2; raise it to 3"),
        (2, {1: 5}, "the upcaster from version 1 must be a sync function of a dict, got 5"),
        (
            2,
            {1: upcast_later},
            f"the upcaster from version 1 must be a sync function of a dict, got {shown(upcast_later)}",
        ),
        (2, 5, "upcasters must be a mapping such as {1: v1_to_v2}, of versions to functions, got 5"),
        (1, [], "upcasters must be a mapping such as {1: v1_to_v2}, of versions to functions, got []"),
        (2, {0: upcast}, "upcasters are from versions 1, 2, ..., got one from 0"),
        (2, {True: upcast}, "upcasters are from versions 1, 2, ..., got one from True"),
        (2, {1: upcast, "1": upcast}, "upcasters are from versions 1, 2, ..., got one from '1'"),
        (3, {2: upcast}, "version 3 needs an upcaster from each older version, missing 1"),
    ],
    ids=["forgotten", "one_too_many", "no_function", "async", "no_mapping", "a_list", "zero", "true", "text", "missing"],
)
def test_upcasters_that_would_never_run_are_refused_with_their_task_type(
    version: int, upcasters: Any, why: str
) -> None:
    with pytest.raises(InvalidTaskTypeError) as caught:
        TaskType("q", "job", Job, version=version, upcasters=upcasters)
    assert caught.value.detail == f"task type q/job: {why}"


def test_a_task_type_takes_upcasters_of_each_older_version_or_none() -> None:
    assert TaskType("q", "job", Job, version=3, upcasters={1: upcast, 2: partial(upcast)}).version == 3
    assert TaskType("q", "job", Job, version=3, upcasters={}) == TaskType("q", "job", Job, version=3)


NO_STORAGE = (
    "storage must be a Storage, got str; a URL such as 'sqlite:///jobs.db' is opened by "
    "dispatch.storage.opening.open_storage"
)


@pytest.mark.parametrize("part", [TaskQueuePublisher, TaskQueueConsumer, TaskQueueControl, CronTaskDispatcher])
def test_a_part_alone_takes_a_storage_and_says_what_opens_one(part: Callable[[Any], object]) -> None:
    assert refusal(lambda: part("sqlite:///jobs.db")) == NO_STORAGE
    assert refusal(lambda: part(None)) == NO_STORAGE.replace("got str", "got NoneType")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TaskQueuePublisher(MemoryStorage(), codec=5), "codec must be a Codec or None, got 5"),
        (lambda: TaskQueuePublisher(MemoryStorage(), observers=[]), "observers must be an Observers or None, got []"),
        (lambda: TaskQueueConsumer(MemoryStorage(), codec=5), "codec must be a Codec or None, got 5"),
        (
            lambda: TaskQueueConsumer(MemoryStorage(), publisher=5),
            "publisher must be a TaskQueuePublisher or None, got 5",
        ),
        (
            lambda: TaskQueueControl(MemoryStorage(), publisher=5),
            "publisher must be a TaskQueuePublisher or None, got 5",
        ),
        (lambda: CronTaskDispatcher(MemoryStorage(), clock=5), "clock must be a Clock or None, got 5"),
        (lambda: CronTaskDispatcher(MemoryStorage(), grace=-5), "grace must be within 0 and 86400 seconds, got -5"),
        (lambda: Codec(5), "Codec: limits must be a Limits or None, got 5"),
        (lambda: Clock("x"), "Clock: start must be an aware datetime, got 'x'"),
        (
            lambda: Clock(wall=5),
            "Clock: wall must be a function of no arguments, such as time.time, got 5",
        ),
        (lambda: MemoryStorage("x"), "MemoryStorage: clock must be a Clock or None, got 'x'"),
        (lambda: MemoryStorage(keep_finished=1.5), "MemoryStorage: keep_finished must be a whole number, got 1.5"),
        (lambda: SqliteStorage(None), "SqliteStorage: path must be a str or a path, got None"),
        (lambda: SqliteStorage("jobs.db", clock=5), "SqliteStorage: clock must be a Clock or None, got 5"),
        (lambda: SqliteStorage("jobs.db", inline="no"), "SqliteStorage: inline must be True or False, got 'no'"),
    ],
)
def test_what_a_part_alone_is_made_of_is_checked_when_it_is_made(make: Callable[[], object], message: str) -> None:
    assert refusal(make) == message
