"""`dispatch run`: a worker process over functions that register on a dispatcher."""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal

import attrs
import trio
from cyclopts import Parameter

from dispatch.cli import values
from dispatch.cli.loading import load, prepared
from dispatch.cli.output import plural
from dispatch.cli.reload import end_with_parent, reloading
from dispatch.cli.shell import LOG_FORMAT, CommandError, Shell, ShellArgument, StoreOption, masked
from dispatch.cli.signals import signals
from dispatch.dispatcher import Dispatcher
from dispatch.nearest import known

__all__ = ["run"]


def _many() -> Any:
    return Parameter(negative=(), show_default=False)


async def run(
    target: str,
    /,
    *,
    queue: Annotated[tuple[str, ...], _many()] = (),
    tag: Annotated[tuple[str, ...], _many()] = (),
    burst: Annotated[bool, _many()] = False,
    reload: Annotated[bool, _many()] = False,
    grace: str = "10s",
    lease: str = "30s",
    worker: str | None = None,
    log_level: Literal["debug", "info", "warning", "error"] = "info",
    store: StoreOption = None,
    shell: ShellArgument,
) -> int:
    """Work: call MODULE:CALLABLE with a Dispatcher on which it registers, and run that.

    The callable registers queues, handlers and cron tasks. It is a function, an
    async function, or one that gives an async context manager, which stays open
    while the work goes on. The first SIGINT or SIGTERM stops gracefully, the
    second at once.

    Parameters
    ----------
    target
        Such as app.jobs:setup, found from the working directory.
    queue
        Consume this queue only; may be repeated.
    tag
        Take only tasks whose tags are all among these; may be repeated.
    burst
        End when nothing is left that can run, now or later.
    reload
        Start anew whenever a Python file below the working directory changes.
    grace
        How long running handlers may go on after the first signal.
    lease
        How long a claim lasts when its worker is gone.
    worker
        This worker's id; unique by default.
    log_level
        Of the log on standard error, unless the module sets up logging itself.
    """
    grace_s = values.seconds(grace, "--grace")
    if reload:
        return await reloading(shell, grace=grace_s)
    end_with_parent(grace_s)
    setup = load(target)
    # Does nothing where the module has set up logging already.
    logging.basicConfig(level=log_level.upper(), format=LOG_FORMAT, stream=shell.stderr)
    async with shell.open(store, create=True, alone=True) as opened:
        dispatcher = Dispatcher(
            opened.storage,
            worker=worker,
            queues=queue or None,
            tags=tag or None,
            lease=values.seconds(lease, "--lease"),
            grace=grace_s,
        )
        async with prepared(target, setup, dispatcher):
            await _check_queues(target, dispatcher, queue)
            begun = (
                f"dispatch: {dispatcher.consumer.worker} works on "
                f"{', '.join(dispatcher.consumer.queue_names) or 'no queue'} in {masked(store or '')}"
            )
            return await _Service(shell, dispatcher, grace_s).run(begun, burst=burst)


async def _check_queues(target: str, dispatcher: Dispatcher, asked: tuple[str, ...]) -> None:
    """Raise CommandError for a queue asked for that the callable did not register."""
    for name in asked:
        if name not in dispatcher.consumer.queue_names:
            stored = [record.name for record in await dispatcher.control.queues()]
            raise CommandError(f"{target} registers no queue {name!r}{known(name, stored)}")


@attrs.define(eq=False)
class _Service:
    """One serving of a dispatcher, and how it is told to stop."""

    shell: Shell
    dispatcher: Dispatcher
    grace_s: float
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _forced: bool = False

    async def run(self, begun: str, *, burst: bool) -> int:
        """Serve until a signal comes, or with `burst` until nothing is left; the exit status.

        `begun` is said once it works, and signals are caught: who reads it may send one.
        """
        with signals(self._gracefully, self._at_once), self._scope:
            async with trio.open_nursery() as nursery:

                async def serve(task_status: trio.TaskStatus[Dispatcher]) -> None:
                    await self.dispatcher.serve(task_status=task_status)
                    nursery.cancel_scope.cancel()  # a drain that goes on

                await nursery.start(serve)
                self.shell.say(begun)
                if burst:
                    await self.dispatcher.drain()
                    self.dispatcher.close()
        report = self.dispatcher.report
        said = ["dispatch: stopped at once" if self._forced else "dispatch: stopped"]
        if report.interrupted and not self._forced:
            said.append(f"{plural(len(report.interrupted), 'task')} handed back")
        if report.too_late:
            said.append(f"{plural(len(report.too_late), 'task')} ended too late, which counts as a failed attempt")
        if report.unwritten:
            said.append(f"the end of {plural(len(report.unwritten), 'run')} could not be written, and the leases decide")
        self.shell.say("; ".join(said))
        return 1 if self._forced or report.unwritten or report.too_late else 0

    def _gracefully(self) -> None:
        running = self.dispatcher.statistics().running
        # Before anything is said about it, which is the part that may fail.
        self.dispatcher.close()
        if running:
            self.shell.say(
                f"dispatch: stopping; {plural(running, 'running task')} may go on for "
                f"{self.grace_s:g} s. A second signal stops at once"
            )

    def _at_once(self) -> None:
        self._forced = True
        self._scope.cancel()
