"""How to test your own handlers: the real engine in memory, on virtual time.

    python -m pytest examples/testing_your_handlers.py

Needs `pip install 'trio-dispatch[testing]'`; in a clone, the README's command for the tests has installed it.

Under trio's `MockClock` the whole dispatcher runs on virtual time: retries over
hours, time limits and cron wait for nothing, and every moment is exact. The
first test uses plain pytest and `trio.run`; with pytest-trio the fixture
`autojump_clock` does the same for an async test.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import pytest
import trio
from attrs import frozen
from trio.testing import MockClock

from dispatch import (
    Clock,
    QueueTask,
    RetryPolicy,
    TaskFailedError,
    TaskQueueConfig,
    TaskStatus,
    TaskType,
    open_dispatcher,
)

HOUR_S = 3_600.0

# -- what is tested: this would be in your package ----------------------------


@frozen
class Invoice:
    number: int


@frozen
class Sent:
    by: str


SEND = TaskType("invoices", "send", Invoice, Sent)
INVOICES = TaskQueueConfig(
    max_retry=4,
    retry=RetryPolicy.exponential(HOUR_S, jitter=0.0, max_delay=12 * HOUR_S),
    timeout=60.0,
)


class Mailer:
    """Fails as often as told, then works."""

    def __init__(self, *, failures: int) -> None:
        self.failures = failures
        self.called_at: list[float] = []

    async def send(self, task: QueueTask[Invoice, Sent]) -> Sent:
        self.called_at.append(trio.current_time())
        if len(self.called_at) <= self.failures:
            raise ConnectionError("mail server down")
        return Sent("mail")


# -- the tests ----------------------------------------------------------------


def test_retries_over_seven_hours() -> None:
    async def main() -> None:
        mailer = Mailer(failures=3)
        async with open_dispatcher() as dispatcher:
            dispatcher.consumer.register_queue("invoices", INVOICES)
            dispatcher.consumer.register_handler(SEND, mailer.send)
            task = await dispatcher.publisher.publish(SEND(Invoice(7)))
            assert await dispatcher.publisher.result(task) == Sent("mail")
        first = mailer.called_at[0]
        assert [round((at - first) / HOUR_S) for at in mailer.called_at] == [0, 1, 3, 7]

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_dead_letter_is_kept_and_says_why() -> None:
    async def main() -> None:
        mailer = Mailer(failures=99)
        async with open_dispatcher() as dispatcher:
            dispatcher.consumer.register_queue("invoices", INVOICES)
            dispatcher.consumer.register_handler(SEND, mailer.send)
            task = await dispatcher.publisher.publish(SEND(Invoice(7)))
            with pytest.raises(TaskFailedError, match=r"after 5 attempts.*mail server down"):
                await dispatcher.publisher.result(task)
            assert (await dispatcher.control.get(task)).status is TaskStatus.FAILED

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_slow_handler_meets_its_timeout() -> None:
    async def hangs(task: QueueTask[Invoice, Sent]) -> Sent:
        await trio.sleep_forever()
        raise AssertionError("not reached")

    async def main() -> None:
        async with open_dispatcher() as dispatcher:
            dispatcher.consumer.register_queue("invoices", INVOICES)
            dispatcher.consumer.register_handler(SEND, hangs)
            began = trio.current_time()
            task = await dispatcher.publisher.publish(SEND(Invoice(7), max_retry=0))
            ended = await dispatcher.publisher.wait(task)
            assert ended.status is TaskStatus.FAILED
            assert trio.current_time() - began == pytest.approx(60.0)

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_cron_over_a_weekend() -> None:
    async def main() -> None:
        clock = Clock(datetime(2026, 3, 6, tzinfo=UTC))
        mailer = Mailer(failures=0)
        async with open_dispatcher(clock=clock) as dispatcher:
            dispatcher.consumer.register_queue("invoices", INVOICES)
            dispatcher.consumer.register_handler(SEND, mailer.send)
            await dispatcher.cron.add_with_name("0 9 * * MON-FRI", "daily", SEND(Invoice(1)))
            await trio.sleep(4 * 24 * HOUR_S)
        assert len(mailer.called_at) == 2  # on Friday and on Monday

    trio.run(main, clock=MockClock(autojump_threshold=0))


# The same with pytest-trio: its fixture is the virtual clock.
async def test_with_pytest_trio(autojump_clock: MockClock) -> None:
    mailer = Mailer(failures=0)
    async with open_dispatcher() as dispatcher:
        dispatcher.consumer.register_queue("invoices", INVOICES)
        dispatcher.consumer.register_handler(SEND, mailer.send)
        await dispatcher.publisher.publish(SEND(Invoice(7), delay=24 * HOUR_S))
        await dispatcher.drain()
    assert len(mailer.called_at) == 1


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q"]))
