"""What both type checkers must reject: exactly the lines marked so. Never imported, only read."""

# pyright: strict

from __future__ import annotations

from datetime import UTC

from attrs import frozen

from dispatch import (
    CronEntry,
    Dispatcher,
    QueueTask,
    RetryPolicy,
    Task,
    TaskDispatcher,
    TaskQueueConfig,
    TaskQueueControl,
    TaskType,
    Unique,
    open_dispatcher,
)
from dispatch.testing.harness import Harness, perform


@frozen
class Order:
    number: int


@frozen
class Receipt:
    total: float


NOTE = TaskType("orders", "note", Order)
CHARGE = TaskType("orders", "charge", Order, Receipt)
MAYBE: TaskType[Order, Receipt | None] = TaskType("orders", "maybe", Order, Receipt | None)


async def of_receipts(task: QueueTask[Receipt]) -> None:
    print(task.payload.total)


async def answers_text(task: QueueTask[Order]) -> str:
    return str(task.payload.number)


async def answers_nothing(task: QueueTask[Order]) -> None:
    print(task.payload.number)


def takes_three(task: QueueTask[Order], run: object, more: object) -> None:
    print(task, run, more)


async def misuse(dispatcher: Dispatcher) -> None:
    NOTE(Receipt(1.0))  # REJECT: a wrong payload
    NOTE("order 1")  # REJECT: a wrong payload
    NOTE(Order(1), dely=2.0)  # REJECT: an option that does not exist
    NOTE(Order(1), delay="2")  # REJECT: an option of the wrong type
    dispatcher.consumer.register_handler(NOTE, of_receipts)  # REJECT: a handler of another payload
    dispatcher.consumer.register_handler(NOTE, takes_three)  # REJECT: a handler of wrong arity
    dispatcher.consumer.register_handler(CHARGE, answers_text)  # REJECT: a wrong result
    dispatcher.consumer.register_handler(CHARGE, answers_nothing)  # REJECT: no result
    dispatcher.consumer.register_handler(MAYBE, answers_text)  # REJECT: a wrong result, of a declared union
    sure: Receipt = await dispatcher.publisher.result(MAYBE(Order(1)))  # REJECT: a result that may be None
    print(sure)
    task = await dispatcher.publisher.publish(CHARGE(Order(1)))
    receipt = await dispatcher.publisher.result(task)
    print(receipt.sum)  # REJECT: a field that the result does not have
    number: int = await dispatcher.publisher.result(task)  # REJECT: a result used as another type
    print(number, task.payload.nummer)  # REJECT: a field that the payload does not have
    await dispatcher.publisher.publish(Order(1))  # REJECT: a payload without its type
    await dispatcher.cron.add("@daily", NOTE(Order(1)), zon="UTC")  # REJECT: no such option
    await dispatcher.cron.add("@daily", NOTE(Order(1)), zone=UTC)  # REJECT: a zone without a key
    await dispatcher.cron.add("@daily", NOTE(Order(1)), overlap="maybe")  # REJECT: no such policy
    CronEntry("@daily", "tidy", NOTE(Order(1)), misfire="never")  # REJECT: no such policy
    CronEntry("@daily", NOTE(Order(1)))  # REJECT: a declared entry without a name
    TaskQueueConfig(concurency=2)  # REJECT: a setting that does not exist
    RetryPolicy.fixed(1.0, max_dealy=3.0)  # REJECT: a setting that does not exist
    RetryPolicy.exponential(1.0, factor="2")  # REJECT: a setting of the wrong type
    Unique(on_clash="ignore")  # REJECT: a setting's value that does not exist
    open_dispatcher(graec=5.0)  # REJECT: an option that does not exist
    open_dispatcher(grace="5")  # REJECT: an option of the wrong type
    Harness(print, graze=3)  # REJECT: an option that does not exist
    Harness(print, grace="3")  # REJECT: an option of the wrong type
    TaskQueueConfig(overflow="drop")  # REJECT: a setting's value that does not exist
    task.status = "done"  # REJECT: tasks are immutable


async def misuse_perform() -> None:
    await perform(of_receipts, NOTE(Order(1)))  # REJECT: a handler of another payload
    await perform(takes_three, NOTE(Order(1)))  # REJECT: a handler of wrong arity
    await perform(answers_text, CHARGE(Order(1)))  # REJECT: a wrong result
    await perform(answers_nothing, CHARGE(Order(1)))  # REJECT: no result
    await perform(answers_nothing, Order(1))  # REJECT: a payload without its type


def add(x: int, y: int) -> int:
    return x + y


async def send(to: str, times: int) -> str:
    return to * times


async def misuse_the_pool(pool: TaskDispatcher) -> None:
    pool.run(add)  # REJECT: no arguments
    pool.run(add, "a", "b")  # REJECT: arguments of the wrong type
    pool.run(send, "ada", "2")  # REJECT: an argument of the wrong type, of an async function
    text: str = await pool.run(add, 1, 2).result()  # REJECT: a result used as another type
    number: int = await pool.run(send, "ada", 2).result()  # REJECT: what is awaited, used as another type
    print(text, number)
    Task(add, (1,))  # REJECT: an argument too few
    Task(send, (1, 2))  # REJECT: an argument of the wrong type
    pool.run_task(add)  # REJECT: a function in place of a Task
    other: Task[str] = pool.run_task(Task(add, (1, 2)))  # REJECT: a task of another result
    print(other)


async def misuse_edit(control: TaskQueueControl, task: QueueTask[Order]) -> None:
    await control.edit(task, payload=Receipt(1.0))  # REJECT: a payload of another type
    await control.edit(CHARGE(Order(1)), payload="order 2")  # REJECT: a payload of another type
    await control.edit(task, prority=3)  # REJECT: a field that does not exist
    await control.edit("id", priority="high")  # REJECT: a field of the wrong type
