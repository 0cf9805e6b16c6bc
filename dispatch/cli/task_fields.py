"""The fields of a task that is made on the command line, as options."""

from __future__ import annotations

from typing import Annotated, Any, Final

import attrs
from cyclopts import Parameter

from dispatch.cli import values

__all__ = ["NO_FIELDS", "TaskFields"]


def _repeated(text: str) -> Any:
    return Parameter(negative=(), show_default=False, help=text)


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class TaskFields:
    """What a task says of itself beside its address, payload and moment."""

    key: Annotated[str | None, Parameter(help="Orders the tasks of one key on a keyed queue.")] = (
        None
    )
    priority: Annotated[str, Parameter(help="low, normal, high or critical.")] = "normal"
    timeout: Annotated[
        str | None, Parameter(help="How long one attempt may take, such as 90s.")
    ] = None
    max_retry: Annotated[values.Whole | None, Parameter(help="Retries after the first run.")] = None
    header: Annotated[tuple[str, ...], _repeated("NAME=VALUE; may be repeated.")] = ()
    tag: Annotated[tuple[str, ...], _repeated("May be repeated.")] = ()
    version: Annotated[
        values.Whole, Parameter(name="--payload-version", help="The version of the payload's class.")
    ] = 1

    def fields(self) -> dict[str, Any]:
        """As fields of `QueueTask`; `version` belongs to the type. Raises CommandError."""
        given: dict[str, Any] = {
            "key": self.key,
            "headers": values.pairs(self.header, "--header"),
            "tags": self.tag,
            "priority": values.priority(self.priority),
            "max_retry": self.max_retry,
        }
        if self.timeout is not None:
            given["timeout"] = values.seconds(self.timeout, "--timeout")
        return given


NO_FIELDS: Final = TaskFields()
