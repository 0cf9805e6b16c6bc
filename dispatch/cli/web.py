"""`dispatch web`: the dashboard over a store, served by itself."""

from __future__ import annotations

import logging
import socket
from typing import Annotated, Any, Final, cast

import trio
from cyclopts import Parameter

from dispatch.cli.shell import LOG_FORMAT, CommandError, ShellArgument, StoreOption, masked
from dispatch.cli.signals import signals
from dispatch.errors import MissingExtraError

__all__ = ["web"]

GRACE_S: Final = 3.0
"""How long open requests may take after the first signal."""


async def web(
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(name=("--port", "-p"))] = 8000,
    title: str = "dispatch",
    store: StoreOption = None,
    shell: ShellArgument,
) -> int:
    """Serve the dashboard. It answers this machine only; mount it in an app of yours for others.

    Parameters
    ----------
    host
        The address to listen on.
    port
        The port to listen on; 0 takes a free one.
    title
        Stands in the page's corner.
    """
    if not 0 <= port <= 65_535:
        raise CommandError(f"--port must be within 0 and 65535, got {port}", 2)
    # Imported here: the dashboard is an extra of its own.
    from dispatch.web import create_app

    try:
        from hypercorn.config import Config
        from hypercorn.trio import serve  # pyright: ignore[reportUnknownVariableType] - WSGI's part
    except ImportError as exc:
        raise MissingExtraError(
            "serving the dashboard needs hypercorn: pip install 'trio-dispatch[web]'"
        ) from exc

    # Does nothing where logging is set up already.
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=shell.stderr)
    config = Config()
    config.loglevel = "WARNING"
    config.graceful_timeout = GRACE_S
    stop = trio.Event()
    scope = trio.CancelScope()
    async with shell.open(store) as opened:
        app = create_app(opened.storage, title=title)
        config.bind = [f"fd://{_listening(host, port).detach()}"]
        with signals(stop.set, scope.cancel), scope:
            async with trio.open_nursery() as nursery:

                async def until_stopped(task_status: trio.TaskStatus[list[str]]) -> None:
                    await serve(
                        cast("Any", app),
                        config,
                        shutdown_trigger=stop.wait,
                        task_status=task_status,
                    )

                binds = await nursery.start(until_stopped)
                shell.say(f"dispatch: dashboard of {masked(opened.url)} at {', '.join(binds)}")
    return 1 if scope.cancelled_caught else 0


def _listening(host: str, port: int) -> socket.socket:
    """A socket of ours, so that a taken port is told here and not by the server's own groups."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as exc:
        raise CommandError(f"cannot listen on {host}:{port}: {exc.strerror}") from None
