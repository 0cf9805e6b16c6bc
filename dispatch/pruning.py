"""Deleting ended tasks on a schedule, in small steps beside the work."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Final, cast

import attrs
import trio

from dispatch.checks import shown
from dispatch.errors import InvalidConfigError, StorageError
from dispatch.storage.protocol import Storage
from dispatch.storage.query import PruneSpec

__all__ = ["Pruning"]

log: Final = logging.getLogger("dispatch.pruning")

PAUSE_S: Final = 0.05
"""Between two steps, so that pruning a large backlog leaves the storage to others."""


def _specs(given: Iterable[PruneSpec]) -> tuple[PruneSpec, ...]:
    if isinstance(given, Iterable):
        return tuple(given)
    hint = "; write it in brackets" if isinstance(given, PruneSpec) else ""
    raise InvalidConfigError(f"prune must be a collection of PruneSpec values, got {shown(given)}{hint}")


@attrs.define(eq=False)
class Pruning:
    """Carries `specs` out at the start and then every `every_s` seconds.

    Several processes may do so at once: what one has deleted, another does not
    find. A spec for which the storage fails is tried again at the next turn.
    """

    storage: Storage
    specs: Sequence[PruneSpec] = attrs.field(converter=_specs)
    every_s: float

    def __attrs_post_init__(self) -> None:
        for spec in self.specs:
            if not isinstance(spec, PruneSpec):
                raise InvalidConfigError(f"prune: expected PruneSpec values, got {shown(spec)}")
        every_s = cast("object", self.every_s)
        if isinstance(every_s, bool) or not isinstance(every_s, int | float) or not 1 <= every_s <= 30 * 86_400:
            raise InvalidConfigError(
                f"prune_every must be within 1 second and 30 days, got {self.every_s!r}"
            )

    async def run(self) -> None:
        """Prune until cancelled; a cancellation falls between two steps, each of which is whole."""
        while True:
            gone = 0
            for spec in self.specs:
                try:
                    while some := await self.storage.prune(spec):
                        gone += some
                        if some < spec.limit:
                            break
                        await trio.sleep(PAUSE_S)
                except StorageError as exc:
                    log.warning("pruning by %s failed, trying again in %g s: %s", shown(spec, 200), self.every_s, exc)
            if gone:
                log.info("pruned %d ended tasks", gone, extra={"event": "pruned", "count": gone})
            await trio.sleep(self.every_s)
