"""Retries, the dead letters, and what a handler may raise to decide its own outcome."""

from __future__ import annotations

import logging

import trio
from attrs import frozen

from dispatch import (
    PermanentError,
    QueueTask,
    RetryPolicy,
    Run,
    Snooze,
    TaskFailedError,
    TaskQueueConfig,
    TaskType,
    open_dispatcher,
)
from dispatch.storage.query import dead_letters


@frozen
class Charge:
    customer: str
    cents: int


@frozen
class Receipt:
    number: int


CHARGE = TaskType("payments", "charge", Charge, Receipt)


class Bank:
    """A payment service that has a bad day."""

    def __init__(self) -> None:
        self.calls = 0
        self.closed = True

    async def charge(self, task: QueueTask[Charge, Receipt], run: Run) -> Receipt:
        customer = task.payload.customer
        print(f"  {customer}: attempt {task.attempt}{', the last' if run.is_last_attempt else ''}")
        if customer == "ada" and task.attempt < 3:
            raise ConnectionError("connection reset")  # retried, as the queue's policy says
        if customer == "bob":
            raise PermanentError("card expired")  # no retry can help: a dead letter at once
        if customer == "cleo" and self.calls < 3:
            self.calls += 1
            raise Snooze(0.05)  # later, please; this attempt is given back
        if customer == "dan" and self.closed:
            raise TimeoutError("the bank is closed")
        return Receipt(task.payload.cents)


async def main() -> None:
    bank = Bank()
    policy = RetryPolicy.exponential(0.05, jitter=0.1, max_delay=60.0)
    async with open_dispatcher() as dispatcher:
        dispatcher.consumer.register_queue("payments", TaskQueueConfig(max_retry=3, retry=policy))
        dispatcher.consumer.register_handler(CHARGE, bank.charge)
        for customer in ("ada", "bob", "cleo", "dan"):
            print(f"{customer}:")
            task = await dispatcher.publisher.publish(CHARGE(Charge(customer, 1250)))
            try:
                receipt = await dispatcher.publisher.result(task)
            except TaskFailedError as exc:
                print(f"  dead letter ({exc.reason}): {exc.last_error}")
            else:
                print(f"  paid, receipt {receipt.number}")

        # Dead letters are kept: looked at, edited, and run again, singly or in bulk.
        dead = (await dispatcher.control.find(dead_letters("payments"))).tasks
        print("dead letters:", ", ".join(task.payload.customer for task in dead))
        bank.closed = False
        dan = next(task for task in dead if task.payload.customer == "dan")
        print("would rerun:", len(await dispatcher.control.rerun(dead_letters("payments"), dry_run=True)))
        await dispatcher.control.rerun(dan)
        print("rerun:")
        ended = await dispatcher.publisher.wait(dan)
        print(f"  {ended.status.value} in attempt {ended.attempt}")
        for record in await dispatcher.control.history(dan):
            print(f"  attempt {record.attempt}: {record.outcome.value}")


if __name__ == "__main__":
    logging.getLogger("dispatch").setLevel(logging.CRITICAL)  # this page prints instead
    trio.run(main)
