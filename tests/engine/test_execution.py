"""One attempt: retries, signals, timeouts, contexts, results, order."""

from __future__ import annotations

import json
import os
import random
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import timedelta
from itertools import pairwise
from math import inf, nan
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field, frozen

from dispatch import (
    Cancel,
    ClaimLostError,
    EventKind,
    FailureReason,
    InvalidConfigError,
    InvalidQueuePayloadError,
    MemoryStorage,
    PermanentError,
    Priority,
    Progress,
    QueueTask,
    RetryAfter,
    RetryPolicy,
    Run,
    Snooze,
    StorageError,
    TaskQueueConfig,
    TaskQueueConsumer,
    TaskStatus,
    TaskType,
    Unique,
)
from dispatch.storage.protocol import Change
from dispatch.storage.query import Ids
from dispatch.testing.harness import perform

from .work import ASK, CONFIG, JOB, Answer, Job, Script, nothing, working


class Rude(Exception):
    """Cannot even say what it is about."""

    def __str__(self) -> str:
        raise ValueError("no")


async def ended(handler: Any, config: TaskQueueConfig, **options: Any) -> QueueTask[Any, Any]:
    """Run one task to its end."""
    async with working(handler, config) as dispatcher:
        return await dispatcher.publisher.wait(await dispatcher.publisher.publish(JOB(Job(), **options)))


@pytest.mark.parametrize(("policy", "waits"), [
    (RetryPolicy.fixed(3.0), [3, 3, 3, 3]),
    (RetryPolicy.linear(2.0), [2, 4, 6, 8]),
    (RetryPolicy.linear(2.0, max_delay=5.0), [2, 4, 5, 5]),
    (RetryPolicy.exponential(1.0, jitter=0.0), [1, 2, 4, 8]),
    (RetryPolicy.exponential(1.0, jitter=0.0, factor=10.0, max_delay=50.0), [1, 10, 50, 50]),
])
async def test_the_wait_before_a_retry_follows_the_policy(
    policy: RetryPolicy, waits: list[float], autojump_clock: object
) -> None:
    handler = Script(ValueError("no"))
    await ended(handler, TaskQueueConfig(max_retry=4, retry=policy))
    assert handler.gaps == pytest.approx(waits, abs=0.01)


async def test_jitter_spreads_the_wait_within_its_bounds(autojump_clock: object) -> None:
    random.seed(1)
    handler = Script(ValueError("no"))
    await ended(handler, TaskQueueConfig(max_retry=30, retry=RetryPolicy.fixed(10.0, jitter=0.5)))
    assert all(4.99 <= gap <= 15.01 for gap in handler.gaps)
    assert len(set(handler.gaps)) > 20


async def test_decide_looks_at_the_exception_and_the_attempt(autojump_clock: object) -> None:
    asked: list[tuple[str, int]] = []

    def decide(error: BaseException, attempt: int) -> Any:
        asked.append((str(error), attempt))
        return {"a": 7.0, "b": None, "c": False}[str(error)]

    handler = Script(ValueError("a"), ValueError("b"), ValueError("c"))
    task = await ended(handler, TaskQueueConfig(max_retry=9, retry=RetryPolicy.fixed(2.0, decide=decide)))
    assert asked == [("a", 1), ("b", 2), ("c", 3)]
    assert handler.gaps == pytest.approx([7, 2], abs=0.01)
    assert (task.status, task.failure_reason) == (TaskStatus.FAILED, FailureReason.PERMANENT)


@pytest.mark.parametrize("decided", [-1.0, float("nan"), float("inf"), "text", RuntimeError])
async def test_a_policy_that_fails_costs_nothing_but_its_verdict(decided: Any, autojump_clock: object) -> None:
    def decide(error: BaseException, attempt: int) -> Any:
        if decided is RuntimeError:
            raise RuntimeError("policy")
        return decided

    handler = Script(ValueError("no"), None)
    task = await ended(handler, TaskQueueConfig(max_retry=3, retry=RetryPolicy.fixed(2.0, decide=decide)))
    assert task.status is TaskStatus.SUCCEEDED
    assert handler.gaps == pytest.approx([2.0], abs=0.01)


@pytest.mark.parametrize(("error", "runs", "status", "reason"), [
    (PermanentError("no"), 1, "failed", "permanent"),
    (KeyError("k"), 1, "failed", "permanent"),
    (ValueError("v"), 3, "failed", "exhausted"),
    (ExceptionGroup("g", [ValueError("v"), ExceptionGroup("h", [PermanentError("p")])]), 1, "failed", "permanent"),
    (ExceptionGroup("g", [Snooze(1), Cancel("because")]), 1, "cancelled", None),
    (ExceptionGroup("g", [ValueError("v"), Cancel("because")]), 1, "cancelled", None),
    (ExceptionGroup("g", [Cancel("c"), PermanentError("p")]), 1, "failed", "permanent"),
    (ExceptionGroup("g", [Snooze(1), ValueError("v")]), 3, "failed", "exhausted"),
])
async def test_the_most_restrictive_verdict_of_a_group_wins(
    error: Exception, runs: int, status: str, reason: str | None, autojump_clock: object
) -> None:
    handler = Script(error)
    policy = RetryPolicy.fixed(1.0, permanent=(KeyError,))
    task = await ended(handler, TaskQueueConfig(max_retry=2, retry=policy))
    assert (len(handler.seen), task.status, task.failure_reason) == (runs, status, reason)


async def test_only_the_named_errors_are_retried(autojump_clock: object) -> None:
    handler = Script(OSError("net"), ValueError("bug"))
    task = await ended(handler, TaskQueueConfig(max_retry=9, retry=RetryPolicy.fixed(1.0, retry_on=(OSError,))))
    assert (len(handler.seen), task.failure_reason) == (2, FailureReason.PERMANENT)


async def test_a_snooze_gives_the_attempt_back(autojump_clock: object) -> None:
    handler = Script(Snooze(5.0), Snooze(7.0), ValueError("x"), None)
    task = await ended(handler, TaskQueueConfig(max_retry=1))
    assert [each.attempt for each in handler.seen] == [1, 1, 1, 2]
    assert handler.gaps == pytest.approx([5, 7, 1], abs=0.01)
    assert (task.status, task.attempt) == (TaskStatus.SUCCEEDED, 2)


async def test_cancel_ends_it_for_good_and_it_is_no_dead_letter(autojump_clock: object) -> None:
    task = await ended(Script(Cancel("no longer wanted")), TaskQueueConfig(max_retry=5))
    assert (task.status, task.attempt, task.last_error, task.failure_reason) == (
        TaskStatus.CANCELLED, 1, "no longer wanted", None,
    )


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        (ValueError("gone"), "ValueError: gone"),
        (404, "404"),
        (None, "None"),
        (FailureReason.PERMANENT, "permanent"),
        ("\0\ud800", "\\x00\\ud800"),
    ],
)
async def test_whatever_the_reason_of_a_cancel_is_it_is_kept_as_text(
    reason: Any, kept: str, autojump_clock: object
) -> None:
    task = await ended(Script(Cancel(reason)), CONFIG)
    assert (task.status, task.last_error) == (TaskStatus.CANCELLED, kept)


class Wordless(Exception):
    def __str__(self) -> str:
        raise SystemExit("no words")


class OwnCancel(Cancel):
    def __init__(self) -> None:
        self.reason = Wordless()  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]


class OwnSnooze(Snooze):
    def __init__(self) -> None:
        """Without a delay."""


def changed(signal: Any, delay: object) -> Any:
    signal.delay = delay
    return signal


@pytest.mark.parametrize(
    "make",
    [
        lambda: Snooze(timedelta(seconds=5)),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        lambda: Snooze("x"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        lambda: Snooze(inf),
        lambda: Snooze(True),
        lambda: RetryAfter(nan),
        lambda: RetryAfter(-1),
        lambda: RetryAfter(None),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        lambda: Cancel(Wordless()),
        lambda: changed(Snooze(1), "x"),
        lambda: changed(Snooze(1), nan),
        lambda: changed(RetryAfter(1), inf),
        lambda: changed(RetryAfter(1), timedelta(1)),
        lambda: changed(Snooze(1), 10**400),
        lambda: changed(RetryAfter(1), 1e300),
        OwnCancel,
        OwnSnooze,
    ],
)
async def test_a_signal_that_means_nothing_is_a_failed_attempt(make: Any, autojump_clock: object) -> None:
    async def handler(task: object) -> None:
        seen.append(task)
        if len(seen) == 1:
            raise make()

    seen: list[object] = []
    task = await ended(handler, TaskQueueConfig(max_retry=1, retry_delay=2.0))
    assert (task.status, task.attempt, len(seen)) == (TaskStatus.SUCCEEDED, 2, 2)


@pytest.mark.parametrize(
    ("delay", "got"),
    [
        (timedelta(seconds=5), "datetime.timedelta(seconds=5)"),
        (-1, "-1"),
        (1e300, "1e+300"),
        (10**400, f"1{'0' * 59}... (401 characters)"),
        (10**5_000, "an int"),
    ],
    ids=["timedelta", "negative", "long", "an_int_that_is_no_float", "an_int_that_is_not_shown"],
)
async def test_a_refused_delay_says_what_it_wanted(delay: Any, got: str, autojump_clock: object) -> None:
    async def handler(task: object) -> None:
        raise Snooze(delay)

    wanted = f"delay must be a number of seconds within 0 and 3.1536e+08 (ten years), got {got}"
    assert (await ended(handler, CONFIG)).last_error == f"InvalidConfigError: [1012] Snooze: {wanted}"
    with pytest.raises(InvalidConfigError) as caught:
        RetryAfter(delay)
    assert caught.value.detail == f"RetryAfter: {wanted}"


async def test_retry_after_takes_the_place_of_the_back_off_once(autojump_clock: object) -> None:
    handler = Script(RetryAfter(30.0, "slow down"), ValueError("x"), None)
    await ended(handler, TaskQueueConfig(max_retry=5, retry_delay=2.0))
    assert handler.gaps == pytest.approx([30, 2], abs=0.01)


async def test_retry_after_on_the_last_attempt_is_a_dead_letter(autojump_clock: object) -> None:
    task = await ended(Script(RetryAfter(30.0, "slow down")), TaskQueueConfig())
    assert (task.failure_reason, task.last_error) == (
        FailureReason.EXHAUSTED, "RetryAfter: slow down (in 30 s)",
    )


async def test_a_task_may_ask_for_no_retries_or_for_its_own(autojump_clock: object) -> None:
    for asked, runs in ((0, 1), (2, 3), (None, 6)):
        handler = Script(ValueError("no"))
        await ended(handler, TaskQueueConfig(max_retry=5), max_retry=asked)
        assert len(handler.seen) == runs


async def test_a_timeout_is_a_failed_attempt_and_says_so(autojump_clock: object) -> None:
    task = await ended(Script(60.0), TaskQueueConfig(timeout=2.0))
    assert task.last_error == "TimeoutError: attempt 1 exceeded its timeout of 2 s"
    assert task.started_at is not None
    assert task.finished_at is not None
    assert (task.finished_at - task.started_at).total_seconds() == pytest.approx(2.0, abs=0.01)


async def test_a_late_success_is_a_timeout(autojump_clock: object) -> None:
    """Fault G3: the handler swallows its cancellation five times, then returns."""
    swallowed = 0

    async def stubborn(task: QueueTask[Job]) -> None:
        nonlocal swallowed
        while swallowed < 5:
            try:
                await trio.sleep(60)
            except trio.Cancelled:
                swallowed += 1

    task = await ended(stubborn, TaskQueueConfig(timeout=1.0))
    assert swallowed == 5
    assert (task.status, task.last_error) == (
        TaskStatus.FAILED, "TimeoutError: attempt 1 exceeded its timeout of 1 s",
    )


async def test_what_a_handler_raises_while_it_is_timed_out_is_kept(autojump_clock: object) -> None:
    async def breaks(task: QueueTask[Job]) -> None:
        try:
            await trio.sleep(60)
        finally:
            raise ValueError("on the way out")

    task = await ended(breaks, TaskQueueConfig(timeout=1.0))
    assert task.last_error == (
        "TimeoutError: attempt 1 exceeded its timeout of 1 s; it raised ValueError: on the way out"
    )


async def test_an_error_beside_a_cancelled_is_kept_too(autojump_clock: object) -> None:
    async def child() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("child")

    async def handler(task: QueueTask[Job]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            nursery.start_soon(trio.sleep_forever)

    task = await ended(handler, TaskQueueConfig(timeout=1.0))
    assert task.last_error is not None
    assert task.last_error.startswith("TimeoutError: attempt 1 exceeded its timeout of 1 s; it raised ExceptionGroup")


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        ([OSError("refused")], "OSError: refused"),
        ([OSError("a"), ExceptionGroup("inner", [ValueError(), OSError("b")])], "OSError: a; ValueError; OSError: b"),
        ([OSError(str(n)) for n in range(9)], "OSError: 0; OSError: 1; OSError: 2; OSError: 3; OSError: 4; and 4 more"),
        ([OSError("x" * 2_000)], f"OSError: {'x' * 1_000} ..."),
        ([OSError("x" * 2_000)] * 9, f"OSError: {'x' * 200} ...; " * 5 + "and 4 more"),
        ([Rude(), OSError("a\x1b")], "Rude: <its message cannot be read: ValueError>; OSError: a\\x1b"),
    ],
    ids=["one", "nested", "many", "long", "many_long", "rude"],
)
async def test_what_a_group_holds_is_told(errors: list[Exception], told: str, autojump_clock: object) -> None:
    async def handler(task: QueueTask[Job]) -> None:
        raise ExceptionGroup("nursery", errors)

    count = f"{len(errors)} sub-exception{'s' * (len(errors) > 1)}"
    task = await ended(handler, TaskQueueConfig())
    assert task.last_error == f"ExceptionGroup: nursery ({count}): {told}"


async def test_the_actor_works_on_after_a_timeout(autojump_clock: object) -> None:
    handler = Script(60.0, None)
    async with working(handler, TaskQueueConfig(timeout=1.0)) as dispatcher:
        first, second = [await dispatcher.publisher.publish(JOB(Job(n))) for n in range(2)]
        assert (await dispatcher.publisher.wait(first)).status is TaskStatus.FAILED
        assert (await dispatcher.publisher.wait(second)).status is TaskStatus.SUCCEEDED
        third = await dispatcher.publisher.publish(JOB(Job(3)))
        await trio.sleep(5)  # the deadline of an earlier attempt must not hit a later one
        assert (await dispatcher.publisher.wait(third)).status is TaskStatus.SUCCEEDED


async def test_a_second_handler_that_swallows_for_ever_is_named_every_5_s(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    release = trio.Event()

    async def stubborn(task: QueueTask[Job]) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except trio.Cancelled:
                with trio.CancelScope(shield=True):
                    await release.wait()

    async with working(stubborn, TaskQueueConfig(timeout=1.0)) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(41)
        release.set()
        named = [m for m in caplog.messages if "was cancelled (timeout) and still runs task" in m]
        assert len(named) == 7  # noticed at second 5, and named every 5 s from then on
        assert "stubborn" in named[0]
        assert task.id in named[0]
        assert "its lease is no longer renewed" in named[0]


VAR: ContextVar[str] = ContextVar("VAR", default="clean")


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_each_attempt_runs_in_a_fresh_context(concurrency: int, autojump_clock: object) -> None:
    seen: list[str] = []
    VAR.set("outer")

    async def handler(task: QueueTask[Job]) -> None:
        seen.append(VAR.get())
        VAR.set(f"left by {task.payload.n}")
        await trio.sleep(1)
        seen.append(VAR.get().removesuffix(str(task.payload.n)))

    async with working(handler, TaskQueueConfig(concurrency=concurrency)) as dispatcher:
        for n in range(6):
            await dispatcher.publisher.publish(JOB(Job(n)))
        await dispatcher.drain()
    assert sorted(seen) == ["left by "] * 6 + ["outer"] * 6


async def test_a_handler_may_take_the_run_beside_the_task(autojump_clock: object) -> None:
    seen: list[Any] = []

    async def handler(task: QueueTask[Job], run: Run) -> None:
        seen.append((run.attempt, run.is_last_attempt, run.deadline - trio.current_time()))
        raise ValueError("again")

    await ended(handler, TaskQueueConfig(max_retry=1, timeout=9.0))
    assert seen == [(1, False, pytest.approx(9.0)), (2, True, pytest.approx(9.0))]


async def test_run_publish_is_stored_with_the_success_and_only_then(autojump_clock: object) -> None:
    """Fault G7: a handler publishes and then fails."""
    child = TaskType("q", "child", Job)
    outcomes = [ValueError("x"), Snooze(1.0), RetryAfter(1.0), 60.0, None]
    children: list[int] = []

    async def handler(task: QueueTask[Job], run: Run) -> None:
        step = outcomes[run_no()]
        await run.publish(child(Job(len(children))))
        assert not list(children)
        if isinstance(step, Exception):
            raise step
        await trio.sleep(step or 0)

    count = iter(range(99))

    def run_no() -> int:
        return next(count)

    async def handle_child(task: QueueTask[Job]) -> None:
        children.append(task.payload.n)

    async with working(handler, TaskQueueConfig(max_retry=9, timeout=5.0)) as dispatcher:
        dispatcher.consumer.register_handler(child, handle_child)
        await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
    assert children == [0]


async def test_the_publisher_stores_at_once_whatever_becomes_of_the_attempt(autojump_clock: object) -> None:
    child = TaskType("q", "child", Job)
    children = Script()

    async def handler(task: QueueTask[Job]) -> None:
        await dispatcher.publisher.publish(child(Job(1)))
        raise PermanentError("failed, but published")

    async with working(handler) as dispatcher:
        dispatcher.consumer.register_handler(child, children)
        await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
    assert len(children.seen) == 1


class Told(MemoryStorage):
    """It keeps when which progress was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[tuple[float, float]] = []
        self.fails = False
        self.slowness_s = 0.0

    async def progress(self, claim: tuple[str, int], data: bytes) -> bool:
        await trio.sleep(0.01 + self.slowness_s)
        if self.fails:
            raise StorageError("away")
        self.written.append((round(trio.current_time() - 0.01, 2), json.loads(data)["fraction"]))
        return await super().progress(claim, data)


async def test_progress_is_kept_and_throttled(autojump_clock: object) -> None:
    async def handler(task: QueueTask[Job], run: Run) -> None:
        for n in range(100):
            await run.progress(n / 100, f"step {n}")
            await trio.sleep(0.05)

    storage = Told()
    async with working(handler, storage=storage) as dispatcher:
        began = trio.current_time()
        task = await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(2.6)
        assert (await dispatcher.control.get(task)).progress in [Progress(n / 100, f"step {n}") for n in (38, 39, 40)]
        ended = await dispatcher.publisher.wait(task)
    assert ended.progress == Progress(0.99, "step 99")  # what it said last, though little time was left
    moments = [at for at, _ in storage.written]
    assert moments[0] == began
    assert len(moments) == 6
    assert all(0.99 <= after - before <= 1.1 for before, after in pairwise(moments))


async def test_what_a_handler_says_last_of_its_progress_is_written_within_a_second(autojump_clock: object) -> None:
    async def handler(task: QueueTask[Job], run: Run) -> None:
        await run.progress(0.1, "phase 1")
        await trio.sleep(0.1)
        await run.progress(message="phase 2")
        await run.progress(0.5, "phase 3")
        await trio.sleep(60)

    storage = Told()
    async with working(handler, storage=storage) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(0.9)
        assert (await dispatcher.control.get(task)).progress == Progress(0.1, "phase 1")
        await trio.sleep(0.2)
        assert (await dispatcher.control.get(task)).progress == Progress(0.5, "phase 3")
        await dispatcher.drain()
    assert len(storage.written) == 2


async def test_a_handler_may_hold_the_loop_after_it_has_told_its_progress(autojump_clock: trio.testing.MockClock) -> None:
    """The second may be over before anybody could begin to wait for it."""

    async def handler(task: QueueTask[Job], run: Run) -> None:
        await run.progress(0.1)
        await run.progress(0.5)
        autojump_clock.jump(3.0)  # as who computes without an await
        await trio.sleep(60)

    async with working(handler) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(4)
        assert (await dispatcher.control.get(task)).progress == Progress(0.5)
        ended = await dispatcher.publisher.wait(task)
    assert (ended.status, ended.progress) == (TaskStatus.SUCCEEDED, Progress(0.5))


async def test_progress_that_cannot_be_written_costs_the_attempt_nothing(autojump_clock: object) -> None:
    async def handler(task: QueueTask[Job], run: Run) -> None:
        await run.progress(0.1)
        storage.fails = True
        await run.progress(0.5)
        await trio.sleep(5)

    storage = Told()
    async with working(handler, storage=storage) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        ended = await dispatcher.publisher.wait(task)
    assert (ended.status, ended.progress) == (TaskStatus.SUCCEEDED, Progress(0.1))


@pytest.mark.parametrize("strikes", ["timeout", "grace", "cancel"])
async def test_what_strikes_while_the_last_progress_is_written_comes_too_late(strikes: str, autojump_clock: object) -> None:
    async def handler(task: QueueTask[Job], run: Run) -> None:
        runs.append(run.attempt)
        await run.progress(0.1)
        storage.slowness_s = 0.8
        await run.progress(0.9)
        await trio.sleep(0.5)

    storage, runs = Told(), list[int]()
    config = TaskQueueConfig(max_retry=1, timeout=0.9 if strikes == "timeout" else None)
    async with working(handler, config, storage=storage, grace=0.3) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(0.7)
        if strikes == "cancel":
            await dispatcher.control.cancel(task)
        if strikes != "grace":
            await dispatcher.publisher.wait(task)
    [record] = (await storage.find(Ids(task.id))).records
    assert (record.status, runs) == (TaskStatus.SUCCEEDED, [1])
    assert dispatcher.report.interrupted == ()
    assert record.progress is not None
    assert b"0.9" in record.progress


@pytest.mark.parametrize("once", ["cancelled", "failed"])
async def test_a_progress_whose_writing_came_to_nothing_is_written_at_the_end(once: str, autojump_clock: object) -> None:
    async def handler(task: QueueTask[Job], run: Run) -> None:
        await run.progress(0.1)
        if once == "failed":
            storage.fails = True
            await run.progress(0.9)
            await trio.sleep(1.5)
            storage.fails = False
        else:
            storage.slowness_s = 5.0
            await trio.sleep(1.5)
            with trio.move_on_after(0.5):
                await run.progress(0.9)
            storage.slowness_s = 0.0

    storage = Told()
    async with working(handler, storage=storage) as dispatcher:
        ended = await dispatcher.publisher.wait(await dispatcher.publisher.publish(JOB(Job())))
    assert (ended.status, ended.progress) == (TaskStatus.SUCCEEDED, Progress(0.9))


@pytest.mark.parametrize("kept", [b"[1]", b"0.5", b"null", b"\xff", b"{"])
async def test_progress_that_another_program_wrote_there_is_shown_as_none(kept: bytes, autojump_clock: object) -> None:
    storage = MemoryStorage()
    async with working(Script(60.0), storage=storage) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await trio.sleep(1)
        assert await storage.progress((task.id, 1), kept)
        assert (await dispatcher.control.get(task)).progress is None


async def test_progress_after_the_end_is_refused(autojump_clock: object) -> None:
    refused: list[ClaimLostError] = []

    async def later(run: Run) -> None:
        await trio.sleep(0.2)
        try:
            await run.progress(0.5)
        except ClaimLostError as exc:
            refused.append(exc)

    async def handler(task: QueueTask[Job], run: Run) -> None:
        await run.progress(0.1)
        nursery.start_soon(later, run)

    async with trio.open_nursery() as nursery, working(handler) as dispatcher:
        task = await dispatcher.publisher.wait(await dispatcher.publisher.publish(JOB(Job())))
        await trio.sleep(1)
    assert "attempt 1 has ended" in str(refused[0])
    assert task.progress == Progress(0.1)


async def test_a_result_is_typed(autojump_clock: object) -> None:
    async def answer(task: QueueTask[Job, Answer]) -> Answer:
        return Answer(task.payload.n * 2)

    async with working(answer, task_type=ASK) as dispatcher:
        task = await dispatcher.publisher.publish(ASK(Job(21)))
        assert await dispatcher.publisher.result(task) == Answer(42)
        assert await dispatcher.publisher.result(task.id) == Answer(42)


@frozen
class Priced:
    n: int
    currency: str


@pytest.mark.parametrize(("before", "why"), [
    (ASK, "$.currency: it is missing, wanted str; give the field a default, or the payload a new version and an upcaster"),
    (TaskType("q", "ask", Job), "$: got None, wanted Priced, as an object"),
])
async def test_a_result_that_no_longer_fits_its_class_is_no_typed_answer(
    before: TaskType[Job, Any], why: str, autojump_clock: object
) -> None:
    after = TaskType("q", "ask", Job, Priced)
    async with working(Script(Answer(7)), task_type=before) as dispatcher:
        await dispatcher.publisher.wait(await dispatcher.publisher.publish(before(Job(1), id="old")))
        later = await dispatcher.publisher.publish(after(Job(1), id="old"))
        with pytest.raises(InvalidQueuePayloadError) as caught:
            await dispatcher.publisher.result(later)
        shown = (await dispatcher.publisher.wait(later)).result
    assert str(caught.value) == (
        f"[1010] the result of task old (q/ask): stored data of Priced: {why}; a result has no version, "
        "so a new field of its class needs a default"
    )
    assert shown == ({"n": 7} if before is ASK else None)


@frozen
class Richer:
    n: int
    unit: str = "EUR"
    part: Answer | None = None


async def test_a_result_may_have_fields_more_than_its_reader_knows(autojump_clock: object) -> None:
    newer = TaskType("q", "ask", Job, list[Richer])
    older = TaskType("q", "ask", Job, list[Answer])
    async with working(Script([Richer(1), Richer(2, "CHF", Answer(3))]), task_type=newer) as dispatcher:
        await dispatcher.publisher.wait(await dispatcher.publisher.publish(newer(Job(1), id="a")))
        assert await dispatcher.publisher.result(older(Job(1), id="a")) == [Answer(1), Answer(2)]
        assert (await dispatcher.publisher.wait(older(Job(1), id="a"))).result == [Answer(1), Answer(2)]
        wrong = TaskType("q", "ask", Job, list[Priced])
        with pytest.raises(InvalidQueuePayloadError, match=r"\$\[0\].currency: it is missing"):
            await dispatcher.publisher.result(wrong(Job(1), id="a"))


async def test_a_result_of_another_class_is_a_permanent_failure(autojump_clock: object) -> None:
    handler = Script("not an answer")
    async with working(handler, TaskQueueConfig(max_retry=5), task_type=ASK) as dispatcher:
        task = await dispatcher.publisher.wait(await dispatcher.publisher.publish(ASK(Job(1))))
    assert (len(handler.seen), task.status, task.failure_reason) == (1, TaskStatus.FAILED, FailureReason.PERMANENT)


async def yielding(task: object) -> AsyncIterator[None]:
    yield


def answering(make: Callable[[Any], object]) -> Callable[[Any], Awaitable[object]]:
    """An async handler that returns what `make` gives."""

    async def handler(task: Any) -> object:
        return make(task)

    return handler


@pytest.mark.parametrize(("handler", "why"), [
    (answering(lambda task: Snooze(60)), "got Snooze as a value; raise it"),
    (lambda task: RetryAfter(60), "got RetryAfter as a value; raise it"),
    (answering(lambda task: Cancel()), "got Cancel as a value; raise it"),
    (answering(lambda task: ValueError("a secret")), "got ValueError as a value; raise it"),
    (lambda task: yielding(task), "got async_generator, which was never run; a handler must not yield"),
    (lambda task: (each for each in [task]), "got generator, which was never run; a handler must not yield"),
    (
        asynccontextmanager(yielding),
        "got _AsyncGeneratorContextManager, which was never run; a handler must not yield",
    ),
    (answering(nothing), "got coroutine, which was never run; await it"),
])
async def test_what_was_returned_and_never_run_is_a_permanent_failure(handler: Any, why: str) -> None:
    task = await ended(handler, TaskQueueConfig(max_retry=5))
    assert (task.status, task.attempt, task.failure_reason) == (TaskStatus.FAILED, 1, FailureReason.PERMANENT)
    assert task.last_error == f"InvalidQueuePayloadError: [1010] result of q/job: $: {why}"
    with pytest.raises(InvalidQueuePayloadError) as caught:
        await perform(handler, JOB(Job()))
    assert str(caught.value) == f"[1010] result of task q/job: $: {why}"


def leave(value: int) -> int:
    if value == 13:
        raise SystemExit("a secret")
    return value


@define
class Leaving:
    n: int = field(converter=leave)


LEAVING = TaskType("q", "leaving", Job, Leaving)
LEFT = TaskType("q", "left", Leaving)


async def test_a_result_that_exits_while_it_is_encoded_is_a_failed_attempt(autojump_clock: object) -> None:
    async def handler(task: QueueTask[Job, Leaving]) -> Leaving:
        result = Leaving(12)
        object.__setattr__(result, "n", task.payload.n)  # past the converter, which then meets it in the encoder
        return result

    async with working(handler, task_type=LEAVING) as dispatcher:
        bad, good = [await dispatcher.publisher.publish(LEAVING(Job(n))) for n in (13, 14)]
        task = await dispatcher.publisher.wait(bad)
        assert await dispatcher.publisher.result(good) == Leaving(14)
    assert (task.status, task.failure_reason, task.last_error) == (
        TaskStatus.FAILED, FailureReason.PERMANENT, "SystemExit was raised by encoding the result",
    )


async def test_a_payload_that_exits_while_it_is_decoded_is_a_dead_letter(autojump_clock: object) -> None:
    storage = MemoryStorage()
    async with working(nothing, storage=storage, task_type=LEFT) as dispatcher:
        await dispatcher.control.pause_queue("q")
        bad, good = [await dispatcher.publisher.publish(LEFT(Leaving(n))) for n in (12, 14)]
        await storage.alter(Ids(bad.id), Change(action="patch", payload=b'{"n":13}'))
        await dispatcher.control.resume_queue("q")
        await dispatcher.drain()
        assert (await dispatcher.publisher.wait(good)).status is TaskStatus.SUCCEEDED
        [task] = (await storage.find(Ids(bad.id))).records
    assert (task.status, task.failure_reason, task.last_error) == (
        TaskStatus.FAILED, FailureReason.INVALID_PAYLOAD, "SystemExit was raised by decoding the payload",
    )


async def test_a_policy_that_exits_costs_nothing_but_its_verdict(autojump_clock: object) -> None:
    def decide(error: BaseException, attempt: int) -> Any:
        raise SystemExit("policy")

    task = await ended(Script(ValueError("x"), None), TaskQueueConfig(max_retry=1, retry=RetryPolicy(decide=decide)))
    assert (task.status, task.attempt) == (TaskStatus.SUCCEEDED, 2)
    policy = RetryPolicy(decide=decide)
    task = await ended(Script(60.0, None), TaskQueueConfig(max_retry=1, timeout=1.0, retry=policy))
    assert (task.status, task.attempt) == (TaskStatus.SUCCEEDED, 2)


async def test_priority_decides_and_ageing_lets_nobody_starve(autojump_clock: object) -> None:
    handler = Script(10.0)
    async with working(handler, TaskQueueConfig(ageing=15.0)) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job(0)))
        await trio.sleep(1)
        order = [(1, Priority.LOW), (2, Priority.NORMAL), (3, Priority.CRITICAL), (4, Priority.HIGH)]
        for n, priority in order:
            await dispatcher.publisher.publish(JOB(Job(n), priority=priority))
        await trio.sleep(25)
        await dispatcher.publisher.publish(JOB(Job(5), priority=Priority.NORMAL))
        await dispatcher.drain()
    assert [task.payload.n for task in handler.seen] == [0, 3, 4, 2, 1, 5]


async def test_middleware_surrounds_every_attempt(autojump_clock: object) -> None:
    trail: list[str] = []

    async def outer(task: Any, run: Any, call_next: Any) -> Any:
        trail.append("outer in")
        try:
            return await call_next(task, run)
        finally:
            trail.append("outer out")

    async def inner(task: Any, run: Any, call_next: Any) -> Any:
        trail.append("inner")
        return await call_next(task, run)

    async with working(nothing, middleware=(outer, inner)) as dispatcher:
        await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.drain()
    assert trail == ["outer in", "inner", "outer out"]


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_middleware_sets_what_the_handler_sees_and_speaks_for_it(kind: str) -> None:
    seen: list[str] = []

    def in_a_thread(task: QueueTask[Job]) -> Answer:
        seen.append(VAR.get())
        return Answer(task.payload.n)

    async def in_the_run(task: QueueTask[Job]) -> Answer:
        return in_a_thread(task)

    async def around(task: Any, run: Any, call_next: Any) -> Any:
        VAR.set(task.headers["tenant"])
        match task.payload.n:
            case 2:
                return Answer(20)
            case 3:
                raise PermanentError("no such tenant")
            case 4:
                await trio.sleep_forever()
        return await call_next(task, run)

    async with working(in_a_thread if kind == "sync" else in_the_run, task_type=ASK, middleware=[around]) as dispatcher:
        tasks = [ASK(Job(n), headers={"tenant": f"acme {n}"}, timeout=0.05 if n == 4 else 60.0) for n in range(1, 5)]
        ends = [await dispatcher.publisher.wait(await dispatcher.publisher.publish(task)) for task in tasks]
    assert [end.result for end in ends] == [Answer(1), Answer(20), None, None]
    assert [end.failure_reason for end in ends] == [None, None, "permanent", "exhausted"]
    assert seen == ["acme 1"]


async def test_what_a_sync_handler_returns_is_awaited_if_it_can_be() -> None:
    seen: list[tuple[int, str]] = []

    async def send(task: QueueTask[Job], client: str) -> Answer:
        await trio.lowlevel.checkpoint()
        seen.append((task.payload.n, client))
        if task.attempt == 1:
            raise ConnectionError("busy")
        return Answer(task.payload.n)

    def handler(task: QueueTask[Job]) -> Any:
        return send(task, "smtp")

    config = TaskQueueConfig(max_retry=1, retry_delay=0.01)
    async with working(handler, config, task_type=ASK) as dispatcher:
        assert await dispatcher.publisher.result(await dispatcher.publisher.publish(ASK(Job(7)))) == Answer(7)
    assert seen == [(7, "smtp"), (7, "smtp")]
    assert (await perform(handler, ASK(Job(8)), attempt=2)).result == Answer(8)


async def test_an_awaited_answer_of_a_sync_handler_is_cut_by_its_timeout_and_its_cancel() -> None:
    began = trio.Event()

    def handler(task: QueueTask[Job]) -> Any:
        async def work() -> None:
            began.set()
            await trio.sleep_forever()

        return work()

    async with working(handler) as dispatcher:
        late = await dispatcher.publisher.publish(JOB(Job(), timeout=0.05))
        assert (await dispatcher.publisher.wait(late)).last_error == (
            "TimeoutError: attempt 1 exceeded its timeout of 0.05 s"
        )
        began = trio.Event()
        task = await dispatcher.publisher.publish(JOB(Job()))
        await began.wait()
        await dispatcher.control.cancel(task, reason="enough")
        ended_ = await dispatcher.publisher.wait(task)
    assert (ended_.status, ended_.last_error) == (TaskStatus.CANCELLED, "enough")


async def test_run_publish_refuses_once_its_handler_has_returned(autojump_clock: object) -> None:
    kept: list[Run] = []

    async def handler(task: QueueTask[Job], run: Run) -> None:
        kept.append(run)

    async with working(handler) as dispatcher:
        task = await dispatcher.publisher.wait(await dispatcher.publisher.publish(JOB(Job())))
        with pytest.raises(ClaimLostError) as refused:
            await kept[0].publish(JOB(Job(2)))
        assert str(refused.value) == (
            f"[1022] task {task.id}: attempt 1 has ended, so run.publish has nothing to be stored with; "
            "call it before the handler returns, or use the publisher"
        )
        assert await dispatcher.control.count() == {(): 1}


async def test_what_run_publish_could_not_store_is_told(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    only = Unique(key="only", on_clash="reject")
    ids: list[str] = []

    async def handler(task: QueueTask[Job], run: Run) -> None:
        if task.payload.n == 0:
            for n in (1, 2):
                ids.append(await run.publish(JOB(Job(n), unique=only, delay=50)))

    told: list[str] = []
    async with working(handler) as dispatcher:
        dispatcher.observe(lambda event: told.append(event.task_id) if event.kind is EventKind.PUBLISHED else None)
        task = await dispatcher.publisher.wait(await dispatcher.publisher.publish(JOB(Job())))
        await dispatcher.drain()
        assert await dispatcher.control.count() == {(): 2}
    [line] = [each.getMessage() for each in caplog.records if each.name == "dispatch.execution"]
    assert line == (
        f"task {task.id} (q/job): what it gave to run.publish as {ids[1]} (q/job) was not stored: "
        f"task {ids[0]} is in its way, and unique says to reject"
    )
    assert told == [task.id, ids[0]]


async def test_the_traceback_in_the_history_begins_with_the_handler(autojump_clock: object) -> None:
    async def failing(task: object) -> None:
        raise ValueError("x")

    async with working(failing) as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        await dispatcher.publisher.wait(task)
        [attempt] = await dispatcher.control.history(task)
    assert attempt.error is not None
    frames = [line for line in attempt.error.splitlines() if line.lstrip().startswith("File ")]
    assert len(frames) == 1
    assert frames[0].startswith(f'  File "{__file__}", line ')
    assert frames[0].endswith(", in failing")


def test_a_worker_is_named_after_its_host_and_process() -> None:
    host, pid, digits = TaskQueueConsumer(MemoryStorage()).worker.split(":")
    assert host == re.sub(r"[^\w.-]", "", socket.gethostname())[:64]
    assert pid == str(os.getpid())
    assert re.fullmatch("[0-9a-f]{8}", digits)


async def test_a_handler_sees_which_worker_runs_its_task(autojump_clock: object) -> None:
    handler = Script(ValueError("x"), None)
    storage = MemoryStorage()
    async with working(handler, TaskQueueConfig(max_retry=1), storage=storage, worker="w1") as dispatcher:
        task = await dispatcher.publisher.publish(JOB(Job()))
        assert task.worker is None
        await trio.sleep(0.5)
    async with working(handler, TaskQueueConfig(max_retry=1), storage=storage, worker="w2") as dispatcher:
        ended = await dispatcher.publisher.wait(task)
    assert [each.worker for each in handler.seen] == ["w1", "w2"]
    assert ended.worker == "w2"


@pytest.mark.parametrize("attempt", [1, 2, 103, 104, 1_024, 1_025, 10_000])
def test_no_delay_stays_no_delay_however_often_it_was_tried(attempt: int) -> None:
    for factor in (2.0, 1_000.0):
        assert RetryPolicy.exponential(0.0, factor=factor).wait_s(attempt, lambda: 0.5) == 0.0
