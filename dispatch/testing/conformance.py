"""The storage conformance kit: hold your own storage to every case that ours pass.

Subclass `StorageConformance` in a test module and say how to open one::

    class TestMyStorage(StorageConformance):
        @asynccontextmanager
        async def open_storage(self):
            clock = ...                       # one whose time you can move on
            async with open_my_storage(clock=clock) as storage:
                yield storage, clock.advance  # advance: async, takes seconds

Each case gets a storage of its own, empty. pytest-trio runs the cases.

`open_storage` is all that is needed. Three more hooks, each optional, open more
cases: `reopen` those of durability and of several processes, `break_at` those of
a storage that fails in the middle, `disconnect` those of a lost connection.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager

from dispatch.errors import MissingExtraError
from dispatch.storage.protocol import Storage

try:
    import hypothesis  # noqa: F401 # pyright: ignore[reportUnusedImport] - cases search with it
    import pytest
    import pytest_trio  # type: ignore[import-untyped]
except ImportError as _missing:
    raise MissingExtraError(
        "the conformance kit needs pytest, pytest-trio and hypothesis: "
        "pip install 'trio-dispatch[testing]'"
    ) from _missing

for _name in ("claiming", "faults", "keys", "limits", "publishing", "reading", "running", "services"):
    # Before they are imported: so that a failed case shows the values it compared.
    pytest.register_assert_rewrite(f"dispatch.testing.cases_{_name}")

from dispatch.testing.cases_claiming import ClaimCases, LeaseCases  # noqa: E402
from dispatch.testing.cases_faults import (  # noqa: E402
    ConnectionCases,
    DurabilityCases,
    InterruptionCases,
)
from dispatch.testing.cases_keys import BoundCases, KeyCases  # noqa: E402
from dispatch.testing.cases_limits import LimitCases  # noqa: E402
from dispatch.testing.cases_publishing import EnqueueCases, UniqueCases  # noqa: E402
from dispatch.testing.cases_reading import AlterCases, FindCases, PruneCases  # noqa: E402
from dispatch.testing.cases_running import (  # noqa: E402
    HistoryCases,
    RescueCases,
    SettleCases,
    TurnCases,
)
from dispatch.testing.cases_services import ControlCases, CronCases, WatchCases  # noqa: E402
from dispatch.testing.workbench import Hooks, Workbench  # noqa: E402

__all__ = ["StorageConformance", "Workbench"]


@pytest.mark.trio
class StorageConformance(
    EnqueueCases,
    UniqueCases,
    ClaimCases,
    KeyCases,
    BoundCases,
    LimitCases,
    LeaseCases,
    SettleCases,
    RescueCases,
    TurnCases,
    HistoryCases,
    FindCases,
    AlterCases,
    PruneCases,
    WatchCases,
    ControlCases,
    CronCases,
    InterruptionCases,
    DurabilityCases,
    ConnectionCases,
):
    """Every case; a subclass supplies `open_storage`, and more hooks if it can."""

    def open_storage(
        self,
    ) -> AbstractAsyncContextManager[tuple[Storage, Callable[[float], Awaitable[None]]]]:
        """Open an empty storage, with the function that moves its clock on."""
        raise NotImplementedError(f"{type(self).__name__}: define open_storage")

    def reopen(self, storage: Storage) -> AbstractAsyncContextManager[Storage]:
        """Open what `storage` wrote once more, as another process would, with the same clock.

        `storage` stays open meanwhile.
        """
        pytest.skip("define reopen if another process can open what one wrote")

    def break_at(self, storage: Storage, step: int) -> AbstractContextManager[None]:
        """Let `storage` fail at the `step`-th thing (from 0) it does inside a call, as a full disk would.

        A thing is what you can break: a statement, a write, a round trip. One
        failure per context, once the call gets that far; the call must then
        raise a StorageError.
        """
        pytest.skip("define break_at if you can make the storage fail in the middle of a call")

    async def disconnect(self, storage: Storage) -> None:
        """Cut the storage's connections, as a restarted server or a dropped link would."""
        pytest.skip("define disconnect if the storage has connections to lose")

    @pytest_trio.trio_fixture  # type: ignore[untyped-decorator]
    async def bench(self) -> AsyncGenerator[Workbench]:
        """A workbench with a storage of its own."""
        async with self.open_storage() as (storage, advance):
            hooks = Hooks(self.reopen, self.break_at, self.disconnect)
            yield Workbench(storage, advance, hooks)
