"""What both type checkers must accept, in their strictest mode. Never imported, only read."""

# pyright: strict

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, assert_type
from zoneinfo import ZoneInfo

import trio
from attrs import frozen
from typing_extensions import TypeAliasType

from dispatch import (
    CronEntry,
    CronPolicy,
    CronSpec,
    Dispatcher,
    OnClash,
    Priority,
    QueueTask,
    RetryPolicy,
    Run,
    Task,
    TaskDispatcher,
    TaskQueueConfig,
    TaskQueueControl,
    TaskStatus,
    TaskType,
    Unique,
    open_dispatcher,
)
from dispatch.testing.harness import Harness, Performed, Scripted, perform


@frozen
class Order:
    number: int


@frozen
class Parcel(Order):
    grams: int


@frozen
class Receipt:
    total: float


NOTE = TaskType("orders", "note", Order)
CHARGE = TaskType("orders", "charge", Order, Receipt)


async def note(task: QueueTask[Order]) -> None:
    assert_type(task.payload.number, int)


async def note_with_run(task: QueueTask[Order], run: Run) -> None:
    await run.publish(NOTE(Order(task.payload.number + 1)))


def note_in_a_thread(task: QueueTask[Order]) -> None:
    print(task.payload.number)


async def charge(task: QueueTask[Order]) -> Receipt:
    return Receipt(float(task.payload.number))


async def charge_fully_annotated(task: QueueTask[Order, Receipt], run: Run) -> Receipt:
    return Receipt(float(run.attempt))


def charge_in_a_thread(task: QueueTask[Order]) -> Receipt:
    return Receipt(0.0)


MAYBE = TaskType("orders", "maybe", Order, Receipt | None)


async def charge_if_due(task: QueueTask[Order]) -> Receipt | None:
    return None


Receipts = TypeAliasType("Receipts", list[Receipt])
ALL = TaskType("orders", "all", Order, Receipts)


async def charge_all(task: QueueTask[Order]) -> list[Receipt]:
    return [Receipt(0.0)]


class Session: ...


Q = ParamSpec("Q")
T = TypeVar("T")


def in_a_session(function: Callable[Concatenate[Session, Q], Awaitable[T]]) -> Callable[Q, Awaitable[T]]:
    @functools.wraps(function)
    async def call(*args: Q.args, **kwargs: Q.kwargs) -> T:
        return await function(Session(), *args, **kwargs)

    return call


@in_a_session
async def charge_in_a_session(session: Session, task: QueueTask[Order], run: Run) -> Receipt:
    return Receipt(0.0)


def register(dispatcher: Dispatcher) -> None:
    dispatcher.consumer.register_handler(ALL, charge_all)
    dispatcher.consumer.register_handler(CHARGE, charge_in_a_session)
    dispatcher.consumer.register_queue("orders", TaskQueueConfig(concurrency=2, timeout=5.0))
    dispatcher.consumer.register_handler(NOTE, note)
    dispatcher.consumer.register_handler(NOTE, note_with_run)
    dispatcher.consumer.register_handler(NOTE, note_in_a_thread)
    dispatcher.consumer.register_handler(CHARGE, charge)
    dispatcher.consumer.register_handler(CHARGE, charge_fully_annotated)
    dispatcher.consumer.register_handler(CHARGE, charge_in_a_thread)
    dispatcher.consumer.register_handler("orders", "note", note)


def configure() -> None:
    RetryPolicy.fixed(1.0, jitter=0.5, max_delay=60.0)
    RetryPolicy.linear(1.0, retry_on=[OSError])
    RetryPolicy.exponential(1.0, permanent=(ValueError,), decide=lambda error, attempt: None if attempt < 3 else False)
    Unique(on_clash="reject", statuses=["pending", TaskStatus.HELD])
    Unique(on_clash=OnClash.KEEP, statuses=())
    assert_type(TaskType("orders", "plain", Order, None), TaskType[Order, None])
    open_dispatcher("sqlite:///jobs.db", grace=5.0, observers=(), queues=["orders"])
    Harness(register, grace=5.0, observers=None, cron=[CronEntry("@daily", "tidy", NOTE(Order(1)))])


async def use() -> None:
    async with open_dispatcher() as dispatcher:
        assert_type(dispatcher, Dispatcher)
        noted = await dispatcher.publisher.publish(NOTE(Order(1), delay=2.0, key="a", max_retry=3))
        assert_type(noted, QueueTask[Order, None])
        charged = await dispatcher.publisher.publish(CHARGE(Order(1)))
        assert_type(charged, QueueTask[Order, Receipt])
        receipt = await dispatcher.publisher.result(charged)
        assert_type(receipt, Receipt)
        ended = await dispatcher.publisher.wait(charged)
        if ended.result is not None:
            assert_type(ended.result.total, float)
        assert_type(await dispatcher.publisher.wait("id"), QueueTask[Any, Any])
        assert_type(await dispatcher.control.get("id"), QueueTask[Any, Any])
        assert_type(await dispatcher.control.get(charged), QueueTask[Order, Receipt])
        dispatcher.consumer.register_handler(MAYBE, charge_if_due)
        dispatcher.consumer.register_handler(NOTE, Scripted(None))
        dispatcher.consumer.register_handler(NOTE, Scripted(lambda task: trio.sleep(task.attempt), note, None))
        dispatcher.consumer.register_handler(CHARGE, Scripted(ConnectionError, Receipt(1.0)))
        await dispatcher.cron.add("@daily", NOTE(Order(1)), zone="Europe/Berlin", overlap="skip")
        declared = CronEntry("@daily", "tidy", NOTE(Order(1)), misfire="skip", description="tidies up")
        assert_type(declared.policy, CronPolicy)
        CronEntry("@every 90m", "beat", print)
        await dispatcher.cron.add_with_name("@daily", "here", print, zone=ZoneInfo("Europe/Berlin"))
        assert_type(CronSpec("@daily", ZoneInfo("Europe/Berlin")).zone, str)


async def performed(bank: Scripted[Order, Receipt], either: QueueTask[Any, Any]) -> None:
    assert_type(await perform(note, NOTE(Order(1))), Performed[None])
    assert_type(await perform(note_with_run, NOTE(Order(1)), attempt=2), Performed[None])
    assert_type(await perform(note_in_a_thread, NOTE(Order(1))), Performed[None])
    assert_type((await perform(charge, CHARGE(Order(1)))).result, Receipt)
    assert_type((await perform(charge_fully_annotated, CHARGE(Order(1)))).result, Receipt)
    assert_type((await perform(charge_in_a_thread, CHARGE(Order(1)))).result, Receipt)
    assert_type((await perform(charge_in_a_session, CHARGE(Order(1)))).result, Receipt)
    assert_type((await perform(bank, CHARGE(Order(1)))).result, Receipt)
    assert_type((await perform(lambda task: Receipt(task.payload.number), CHARGE(Order(1)))).result, Receipt)
    await perform(charge_if_due, MAYBE(Order(1)))
    await perform(note, either)


def add(x: int, y: int = 1) -> int:
    return x + y


async def send(to: str, times: int) -> str:
    return to * times


async def pooled(pool: TaskDispatcher) -> None:
    assert_type(pool.run(add, 1, 2), Task[int])
    assert_type(pool.run(add, 1), Task[int])
    assert_type(await pool.run(send, "ada", 2).result(), str)
    assert_type(pool.run(lambda: send("ada", 2)), Task[str])
    assert_type(pool.run(functools.partial(send, "ada"), 2), Task[str])
    assert_type(pool.run(Receipt, 1.0), Task[Receipt])
    assert_type(pool.run(trio.sleep, 1), Task[None])
    pool.run(trio.sleep_forever)
    pool.run(print, "a", 1)
    assert_type(pool.run_task(Task(send, ("ada", 2), "mail")), Task[str])
    assert_type(Task(lambda: 4, name="four").value, int | None)
    several: list[Task[object]] = [pool.run(add, 1, 2), pool.run(send, "ada", 2)]
    plain: list[Task] = [*several]
    print(plain)


async def edited(
    control: TaskQueueControl,
    order: QueueTask[Order],
    either: QueueTask[Order] | QueueTask[Receipt],
    maybe_id: QueueTask[Order] | str,
) -> None:
    await control.edit(order, payload=Order(2), priority=Priority.HIGH)
    await control.edit(order, payload=Parcel(2, 500))
    await control.edit(NOTE(Order(1)), payload=Order(2), timeout=None)
    await control.edit(either, tags=("a",), max_retry=3)
    await control.edit(maybe_id, payload=Order(2))
    await control.edit("id", payload={"number": 2})
    await control.edit(await control.get("id"), payload=Order(2))
    await control.edit(await control.get(order), payload=Order(2))
