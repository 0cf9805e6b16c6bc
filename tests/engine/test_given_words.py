"""Sentences of the documentation that a user's odd but ordinary code puts to the test."""

from __future__ import annotations

import copy
import functools
import logging
import pickle
import re
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any

import pytest
import trio
from attrs import frozen

from dispatch import (
    ClosedError,
    Codec,
    CronEntry,
    DispatchError,
    DuplicateTaskError,
    InvalidTaskHandlerError,
    InvalidTaskTypeError,
    Limits,
    MemoryStorage,
    QueueFullError,
    QueueTask,
    RetryPolicy,
    Run,
    TaskCancelledError,
    TaskFailedError,
    TaskQueueConfig,
    TaskQueuePublisher,
    TaskStatus,
    TaskType,
    open_dispatcher,
)
from dispatch.errors import InvalidQueuePayloadError
from dispatch.handlers import payload_class
from dispatch.storage.query import PruneSpec, Queues
from dispatch.tasks import Priority

from .work import JOB, Job, Script, nothing, working


@frozen
class Long:
    text: str


LONG = TaskType("q", "long", Job, Long)

# ---- the pool ---------------------------------------------------------------------


async def test_a_pool_task_that_is_cancelled_leaves_no_cancelled_behind(autojump_clock: object) -> None:
    errors: list[BaseException | None] = []

    async def with_a_nursery() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)

    async def fails_when_cancelled() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise OSError("in the end")

    async with trio.open_nursery() as outer, open_dispatcher(grace=0.1) as dispatcher:
        tasks = [dispatcher.pool.run(each) for each in (with_a_nursery, fails_when_cancelled, trio.sleep_forever)]

        async def ask(number: int) -> None:
            try:
                await tasks[number].result()
            except Exception as exc:  # noqa: BLE001 - which one is the question
                errors.append(exc)

        for number in range(len(tasks)):
            outer.start_soon(ask, number)
        await trio.sleep(0.05)
    assert len(errors) == 3, "an asker was cancelled for good"
    assert sum(isinstance(error, ClosedError) for error in errors) == 2
    [group] = [error for error in errors if isinstance(error, BaseExceptionGroup)]
    assert [type(each) for each in group.exceptions] == [OSError]


# ---- draining and streams ---------------------------------------------------------


async def test_a_drain_sees_a_queue_that_is_registered_while_it_waits(autojump_clock: object) -> None:
    late = TaskType("late", "job", Job)

    async def first(_: QueueTask[Job]) -> None:
        await trio.sleep(1.0)
        dispatcher.consumer.register_queue("late")
        dispatcher.consumer.register_handler(late, second)
        await dispatcher.publisher.publish(late(Job()))

    async def second(_: QueueTask[Job]) -> None:
        await trio.sleep(1.0)

    async with working(first) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job()))
        with trio.fail_after(60.0):
            await dispatcher.drain()
        assert await dispatcher.control.count() == {(): 2}


async def test_a_stream_ends_with_its_block(autojump_clock: object) -> None:
    seen: list[str] = []

    async def read(events: Any) -> None:
        seen.extend([event.kind.value async for event in events])

    with trio.fail_after(5.0):
        async with trio.open_nursery() as outer, working(nothing) as dispatcher:
            async with dispatcher.subscribe() as events:
                outer.start_soon(read, events)
                await dispatcher.publisher.wait(await dispatcher.publisher.publish(JOB(Job())))
            await dispatcher.publisher.publish(JOB(Job()))
    assert seen.count("published") == 1


# ---- decorated functions ----------------------------------------------------------


def injected(function: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(function)
    async def call(task: QueueTask[Job]) -> None:
        await function(task, "db")

    return call


def passed_on(function: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> None:
        await function(*args, **kwargs)

    return call


async def test_a_wrapper_is_called_by_its_own_signature(autojump_clock: object) -> None:
    given: list[tuple[Any, ...]] = []

    @injected
    async def send(task: QueueTask[Job], db: str) -> None:
        given.append((task.payload.n, db))

    @passed_on
    async def count(task: QueueTask[Job], run: Any) -> None:
        given.append((task.payload.n, type(run).__name__))

    @passed_on
    async def three(task: QueueTask[Job], run: Any, more: Any) -> None: ...

    async with working(send) as dispatcher:
        dispatcher.consumer.register_handler(TaskType("q", "count", Job), count)
        with pytest.raises(InvalidTaskHandlerError, match=r"but takes \(task, run, more\)"):
            dispatcher.consumer.register_handler(TaskType("q", "three", Job), three)
        await dispatcher.publisher.publish_many([JOB(Job(1)), TaskType("q", "count", Job)(Job(2))])
        await dispatcher.drain()
    assert sorted(given) == [(1, "db"), (2, "Run")]


class Session: ...


def in_a_session(function: Callable[..., Awaitable[str]]) -> Callable[..., Awaitable[str]]:
    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> str:
        return await function(Session(), *args, **kwargs)

    return call


def with_a_session(function: Callable[..., Awaitable[str]]) -> Callable[..., Awaitable[str]]:
    @functools.wraps(function)
    async def call(task: QueueTask[Job], *args: Any, **kwargs: Any) -> str:
        return await function(task, Session(), *args, **kwargs)

    return call


@in_a_session
async def session_first(session: Session, task: QueueTask[Job]) -> str:
    return type(session).__name__


@in_a_session
async def session_and_run(session: Session, task: QueueTask[Job], run: Run) -> str:
    return type(run).__name__


@with_a_session
async def session_last(task: QueueTask[Job], session: Session) -> str:
    return type(session).__name__


@with_a_session
async def session_amid(task: QueueTask[Job], session: Session, run: Run) -> str:
    return type(run).__name__


@in_a_session
async def bound_besides(session: Session, name: str, task: QueueTask[Job]) -> str:
    return name


@in_a_session
@in_a_session
async def two_sessions(one: Session, two: Session, task: QueueTask[Job], run: Run) -> str:
    return type(run).__name__


@pytest.mark.parametrize(
    ("handler", "answer"),
    [
        (session_first, "Session"),
        (session_and_run, "Run"),
        (session_last, "Session"),
        (session_amid, "Run"),
        (functools.partial(bound_besides, "bound"), "bound"),
        (two_sessions, "Run"),
    ],
)
async def test_what_a_decorator_gives_by_itself_is_not_asked_of_a_handler(
    handler: Any, answer: str, autojump_clock: object
) -> None:
    async with working() as dispatcher:
        dispatcher.consumer.register_handler(TaskType("q", "typed", Job, str), handler)
        dispatcher.consumer.register_handler("q", "named", handler)
        for name in ("typed", "named"):
            task = await dispatcher.publisher.publish(TaskType("q", name, Job, str)(Job(1)))
            assert await dispatcher.publisher.result(task) == answer


async def test_what_stands_before_the_task_is_refused_where_nobody_gives_it() -> None:
    async def undecorated(session: Session, task: QueueTask[Job], *rest: Any) -> None: ...

    async with working() as dispatcher:
        with pytest.raises(InvalidTaskHandlerError, match="takes Session, but a handler is given the task"):
            dispatcher.consumer.register_handler(JOB, undecorated)


async def test_a_cron_wrapper_is_called_by_its_own_signature(autojump_clock: object) -> None:
    ran: list[str] = []

    async def tidy(db: str) -> None:
        ran.append(db)

    @functools.wraps(tidy)
    async def with_db() -> None:
        await tidy("db")

    async with working(nothing) as dispatcher:
        await dispatcher.cron.add_with_name("@daily", "tidy", with_db)
        await dispatcher.cron.trigger("tidy")
        with pytest.raises(InvalidTaskHandlerError, match=r"needs \(db\).*if its decorator gives them, call it in a func"):
            await dispatcher.cron.add_with_name("@daily", "other", passed_on(tidy))
        with pytest.raises(InvalidTaskHandlerError, match=r"needs \(db\); bind them with functools.partial$"):
            await dispatcher.cron.add_with_name("@daily", "other", tidy)
        await trio.sleep(1.0)
    assert ran == ["db"]


def test_a_partial_has_the_payload_class_of_what_is_left() -> None:
    async def send(db: str, task: QueueTask[Job]) -> None: ...

    assert payload_class("q", "job", functools.partial(send, "db")) == (Job, None)
    with pytest.raises(InvalidTaskHandlerError, match="annotate its first argument"):
        payload_class("q", "job", send)


@pytest.mark.parametrize("payload", [list[Job], Job | None])
def test_a_payload_that_is_no_class_of_its_own_is_refused_with_what_to_make(payload: Any) -> None:
    async def send(task: Any) -> None: ...

    send.__annotations__ = {"task": QueueTask[payload]}
    why = f"payload must be a class of its own, got {payload!r}; make one with a field of that type"
    with pytest.raises(InvalidTaskTypeError, match=re.escape(why)):
        TaskType("q", "job", payload)
    with pytest.raises(InvalidTaskHandlerError, match=re.escape(why)):
        payload_class("q", "job", send)


async def a_keyword(task: object, *, run: object) -> None: ...


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        ((JOB, a_keyword), "handler of q/job: a_keyword must take (task) or (task, run), but takes (task, *, run)"),
        ((nothing, JOB), "got (a function, a TaskType); turn them round"),
        (("q", nothing), "got ('q', a function)"),
        (("job", JOB), "got ('job', a TaskType)"),
        ((JOB,), "got (a TaskType)"),
    ],
)
async def test_a_registration_of_other_things_says_what_it_was_given(arguments: tuple[Any, ...], got: str) -> None:
    if not got.startswith("handler"):
        got = f"register_handler takes (task_type, handler) or (queue, type, handler), {got}"
    async with working() as dispatcher:
        with pytest.raises(InvalidTaskHandlerError) as caught:
            dispatcher.consumer.register_handler(*arguments)
    assert caught.value.detail == got


# ---- observers --------------------------------------------------------------------


class Broken:
    """An observer of which one part fails."""

    def __init__(self, part: str) -> None:
        self.part = part

    def __call__(self, event: object) -> None: ...

    def interested_in(self, kind: object) -> bool:
        if self.part == "interest":
            raise ValueError(self.part)
        return False

    @contextmanager
    def publishing(self, tasks: Sequence[QueueTask[Any, Any]], operation: str) -> Generator[Any]:
        if self.part == "begin":
            raise ValueError(self.part)
        try:
            yield {"fewer": tasks[1:], "nothing": None}.get(self.part, tasks)
        finally:
            if self.part == "end":
                raise ValueError(self.part)


@pytest.mark.parametrize("part", ["interest", "begin", "fewer", "nothing", "end"])
async def test_what_an_observer_raises_goes_no_further(
    autojump_clock: object, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(nothing, TaskQueueConfig(buffer_size=2, overflow="raise"), observers=[Broken(part)]) as dispatcher:
        task = await dispatcher.publisher.wait(await dispatcher.publisher.publish(JOB(Job(1))))
        assert task.status is TaskStatus.SUCCEEDED
        assert len(await dispatcher.publisher.publish_many([JOB(Job(2)), JOB(Job(3))])) == 2
        await dispatcher.drain()
        # What publishing itself raises stays what it was.
        with pytest.raises(InvalidQueuePayloadError):
            await dispatcher.publisher.publish(JOB("no job"))  # type: ignore[arg-type]
    assert {record.levelno for record in caplog.records if record.name == "dispatch.events"} == {logging.ERROR}


# ---- limits, bounds, words --------------------------------------------------------


async def test_a_result_has_a_limit_of_its_own(autojump_clock: object) -> None:
    async def answer(_: QueueTask[Job]) -> Long:
        return Long("x" * 2_000)

    codec = Codec(Limits(payload_bytes=1_000, result_bytes=100_000))
    async with working(answer, task_type=LONG, codec=codec) as dispatcher:
        task = await dispatcher.publisher.publish(LONG(Job()))
        assert await dispatcher.publisher.result(task) == Long("x" * 2_000)


async def test_publishing_from_a_cron_function_waits_for_no_room(autojump_clock: object) -> None:
    async def tick() -> None:
        await dispatcher.publisher.publish(JOB(Job(2)))

    async with open_dispatcher(grace=3.0) as dispatcher:
        dispatcher.consumer.register_queue("q", TaskQueueConfig(buffer_size=1))
        await dispatcher.publisher.publish(JOB(Job(1)))
        await dispatcher.cron.add_with_name("@daily", "tick", tick)
        await dispatcher.cron.trigger("tick")
        began = trio.current_time()
        await trio.sleep(0.1)
        assert await dispatcher.control.count() == {(): 2}
    assert trio.current_time() - began < 1.0


@pytest.mark.parametrize("option", ["buffer_size", "max_waiting"])
async def test_a_full_queue_names_the_bound_in_force(autojump_clock: object, option: str) -> None:
    config = TaskQueueConfig(overflow="raise", **{option: 1})
    async with open_dispatcher() as dispatcher:
        dispatcher.consumer.register_queue("q", config)
        await dispatcher.publisher.publish(JOB(Job()))
        with pytest.raises(QueueFullError, match=f"its {option} is 1; raise that, add workers"):
            await dispatcher.publisher.publish(JOB(Job()))


async def test_memory_by_its_url_says_what_is_lost(autojump_clock: object, caplog: pytest.LogCaptureFixture) -> None:
    async with open_dispatcher("memory:") as dispatcher:
        dispatcher.consumer.register_queue("q")
        await dispatcher.publisher.publish(JOB(Job()))
    assert [record.levelno for record in caplog.records if record.name == "dispatch.dispatcher"] == [logging.WARNING]


async def test_a_dead_letter_that_nobody_can_read_takes_other_fields(autojump_clock: object) -> None:
    storage = MemoryStorage()
    async with working(nothing, storage=storage) as dispatcher:
        await dispatcher.publisher.declare()
        elsewhere = TaskQueuePublisher(storage)  # knows nothing of the handler
        task = await elsewhere.publish(TaskType("q", "job", dict)({"unknown": 1}))
        ended = await dispatcher.publisher.wait(task)
        assert ended.failure_reason == "invalid_payload"
        assert await dispatcher.control.edit(task.id, priority=Priority.HIGH, max_retry=3)
        found = await dispatcher.control.get(task.id)
        assert (found.priority, found.max_retry, found.payload) == (Priority.HIGH, 3, {"unknown": 1})


async def test_a_dry_run_of_pruning_counts_all(autojump_clock: object) -> None:
    async with working(nothing) as dispatcher:
        await dispatcher.publisher.publish_many([JOB(Job(n)) for n in range(5)])
        await dispatcher.drain()
        assert await dispatcher.control.prune(PruneSpec(keep=0, limit=2), dry_run=True) == 5
        assert await dispatcher.control.prune(PruneSpec(keep=0, limit=2)) == 5


def test_a_fixed_wait_has_the_cap_of_the_others() -> None:
    assert RetryPolicy(delay=7_200.0).wait_s(1, lambda: 0.5) == 3_600.0
    assert RetryPolicy.fixed(7_200.0).wait_s(1, lambda: 0.5) == 7_200.0


def test_a_delay_beyond_the_default_cap_raises_it_and_one_given_by_hand_stays() -> None:
    for make in (RetryPolicy.fixed, RetryPolicy.linear, RetryPolicy.exponential):
        waits = [make(7_200.0, jitter=0.0).wait_s(attempt, lambda: 0.5) for attempt in (1, 2)]
        assert waits == [7_200.0, 7_200.0]
        assert make(7_200.0, jitter=0.0, max_delay=60.0).wait_s(1, lambda: 0.5) == 60.0
        assert make().max_delay == 3_600.0


def test_at_the_cap_jitter_only_shortens() -> None:
    waits = [RetryPolicy.exponential().wait_s(15, lambda draw=draw: draw) for draw in (0.0, 0.25, 0.5, 0.99)]
    assert waits == pytest.approx([3_240.0, 3_420.0, 3_600.0, 3_600.0])


@pytest.mark.parametrize(
    "error",
    [
        DuplicateTaskError("d", "x"),
        TaskFailedError("d", "i", "r", "l"),
        TaskCancelledError("d", "i", "r"),
        InvalidQueuePayloadError("d", "$.a"),
        ClosedError("d"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel_between_processes(error: DispatchError) -> None:
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 - our own
        assert (type(again), again.args, vars(again), str(again)) == (type(error), error.args, vars(error), str(error))


def test_a_cron_entry_can_be_copied() -> None:
    entry = CronEntry("@daily", "a", JOB(Job(1)), description="words")
    again = copy.copy(entry)
    assert (again.spec, again.name, again.what, again.policy, again.description) == (
        entry.spec, entry.name, entry.what, entry.policy, entry.description,
    )  # fmt: skip
    with pytest.raises(AttributeError, match="immutable"):
        again.name = "b"


class Level(str, Enum):  # noqa: UP042 - its own str() says "Level.VIP"
    VIP = "vip"


async def test_a_member_of_a_str_enum_is_its_text_in_memory_as_in_a_database(autojump_clock: object) -> None:
    handler = Script()
    async with working(handler) as dispatcher:
        task = JOB(Job(), id=Level.VIP, key=Level.VIP, tags=(Level.VIP,), headers={Level.VIP: Level.VIP})
        await dispatcher.publisher.publish(task)
        dispatcher.consumer.register_queue(Level.VIP)
        await dispatcher.publisher.publish(TaskType(Level.VIP, Level.VIP, Job)(Job()))
        await dispatcher.drain()
        [other] = (await dispatcher.control.find(Queues("vip"))).tasks
    [seen] = handler.seen
    told = f"{seen.id} {seen.key} {seen.tags[0]} {dict(seen.headers)} {other.queue} {other.type}"
    assert told == "vip vip vip {'vip': 'vip'} vip vip"
