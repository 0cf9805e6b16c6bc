"""`module:callable`: found, checked and called; its mistakes told in its author's terms."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

from dispatch.cli.shell import CommandError
from dispatch.dispatcher import Dispatcher
from dispatch.nearest import known, nearest

__all__ = ["load", "prepared"]

_PACKAGE: Final = f"{Path(__file__).parents[1]}{os.sep}"

_GUARD: Final = '; put what a script does below `if __name__ == "__main__":`'

Setup = Callable[[Dispatcher], object]


def load(target: str) -> Setup:
    """The callable that `target`, such as `app.jobs:setup`, names.

    The working directory comes first on the import path, as for a script.
    Raises CommandError; what the module itself raises is shown with the
    traceback of its own code.
    """
    name, colon, path = target.partition(":")
    if not (colon and name and path) or name.startswith("."):
        raise CommandError(f"run wants MODULE:CALLABLE, such as app.jobs:setup; got {target!r}", 2)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module = _imported(name)
    found: Any = module
    for step in path.split("."):
        try:
            found = getattr(found, step)
        except AttributeError:
            names = [each for each in dir(found) if callable(getattr(found, each, None))]
            public = [each for each in names if not each.startswith("_")]
            raise CommandError(
                f"{name} has no {path!r}{nearest(step, public) or '; it must be a function there'}"
            ) from None
    if not callable(found):
        raise CommandError(f"{target} is no function but {type(found).__name__}")
    _check_arity(target, found)
    return cast("Setup", found)


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        missing = exc.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise CommandError(f"there is no module {missing!r}{_beside(missing)}") from None
        raise _failed(f"importing {name} failed", exc) from None
    except SystemExit as exc:
        raise CommandError(
            f"importing {name} ended with SystemExit({exc.code!r}){_GUARD}"
        ) from None
    except Exception as exc:  # noqa: BLE001 - a module may raise anything
        is_script = isinstance(exc, RuntimeError) and "run() from inside a run()" in str(exc)
        raise _failed(f"importing {name} failed{_GUARD if is_script else ''}", exc) from None


def _beside(name: str) -> str:
    """The nearest module in its package, or else in the working directory."""
    package, dot, last = name.rpartition(".")
    # Its package was imported before, or that one would be missing.
    folders: list[str] = list(getattr(sys.modules.get(package), "__path__", ())) if dot else [os.curdir]
    names = {each.stem for folder in folders for each in Path(folder).glob("*.py")}
    names |= {each.parent.name for folder in folders for each in Path(folder).glob("*/__init__.py")}
    return known(last, sorted(names - {"__init__", "__main__"}), f"{package}{dot}") if names else ""


def _check_arity(target: str, found: Callable[..., object]) -> None:
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return  # written in C: calling it will tell
    try:
        signature.bind(None)
    except TypeError:
        raise CommandError(f"{target}{signature} must take one argument, the Dispatcher") from None


@asynccontextmanager
async def prepared(target: str, setup: Setup, dispatcher: Dispatcher) -> AsyncGenerator[None]:
    """Call `setup` with the dispatcher, and keep what it opens open while the block runs.

    A function registers and returns; an async one is awaited; one that gives an
    async context manager is entered, and left when the work has ended. What it
    raises, entering or leaving, is a CommandError with its own traceback.
    """
    entered: AbstractAsyncContextManager[object] | None = None
    try:
        given: Any = setup(dispatcher)
        if inspect.isawaitable(given):
            given = await given
        if hasattr(given, "__aenter__"):
            entered = cast("AbstractAsyncContextManager[object]", given)
            await entered.__aenter__()
    except Exception as exc:  # noqa: BLE001 - a user's function may raise anything
        raise _failed(f"{target} failed", exc) from None
    if given is not None and entered is None:
        raise CommandError(
            f"{target} must register on the dispatcher it is given and return nothing, "
            f"or an async context manager; it returned {type(given).__name__}"
        )
    try:
        yield
    finally:
        if entered is not None:
            try:
                await entered.__aexit__(None, None, None)
            except Exception as exc:  # noqa: BLE001 - a user's function may raise anything
                raise _failed(f"{target} failed at its end", exc) from None


def _failed(what: str, error: Exception) -> CommandError:
    """The error of a user's code, its traceback beginning there."""
    last = error.__traceback__
    while last is not None and _is_ours(last.tb_frame.f_code.co_filename):
        last = last.tb_next
    text = "".join(traceback.format_exception(type(error), error, last, limit=-20))
    return CommandError(what, detail=text)


def _is_ours(filename: str) -> bool:
    return filename == importlib.__file__ or filename.startswith((_PACKAGE, "<frozen importlib"))
