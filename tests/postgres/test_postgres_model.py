"""PostgreSQL against a plain sequential model, by random operations, in two processes' stead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from dispatch.lifecycle import SettleAnswer
from dispatch.records import Transition, TransitionKind
from dispatch.storage.protocol import Storage, Want
from dispatch.testing.machine import Opened, StorageMachine, check_against_model
from dispatch.testing.postgres import PostgresServer
from tests.postgres.stage import Stage


class PostgresMachine(StorageMachine):
    stage: ClassVar[Stage]
    to_meet = frozenset({"plain successes"})

    def open_storage(self) -> Opened:
        return self.stage.open()

    def reopen(self, storage: Storage) -> AbstractAsyncContextManager[Storage]:
        return self.stage.storage()

    @precondition(lambda self: self.model.running())
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        """Two plain successes and the next claim in one turn: the statements of the ordinary flow."""
        running = self.model.running()[:2]
        ends = [
            Transition(each.id, each.epoch, TransitionKind.DONE, result=b"2") for each in running
        ]
        want = Want(queue="q", limit=1, max_retry=1)
        settled, claimed = self.run.call(
            lambda: self.storage.turn(ends, [want], worker="w", lease=10.0)
        )
        assert [each.answer for each in settled] == [SettleAnswer.APPLIED] * len(ends)
        for task in running:
            task.result = b"2"
            self.model.settle(task, TransitionKind.DONE, None, self.time)
        taken = self.model.claim(want, self.time, "w", 10.0)
        assert [claim.id for claim in claimed.claims] == [task.id for task in taken]
        self.past += [(task.id, task.epoch) for task in taken]
        self.seen["plain successes"] += len(ends)


@pytest.fixture(autouse=True)
def on_stage(server: PostgresServer) -> Iterator[None]:
    PostgresMachine.stage = Stage(server.fresh_database())
    yield
    PostgresMachine.stage.close()


def test_postgres_agrees_with_the_model() -> None:
    check_against_model(PostgresMachine, examples=3, steps=25, require_all=False)


@pytest.mark.battery
def test_postgres_agrees_with_the_model_whatever_happens() -> None:
    check_against_model(PostgresMachine, examples=120)
