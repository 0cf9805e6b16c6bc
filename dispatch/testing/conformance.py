"""The storage conformance kit: hold your own storage to every case that ours pass.

Subclass `StorageConformance` in a test module and say how to open one::

    class TestMyStorage(StorageConformance):
        @asynccontextmanager
        async def open_storage(self):
            clock = ...                       # one whose time you can move on
            async with open_my_storage(clock=clock) as storage:
                yield storage, clock.advance  # advance: async, takes seconds

Each case gets a storage of its own, empty. pytest-trio runs the cases.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from dispatch.errors import MissingExtraError
from dispatch.storage.protocol import Storage

try:
    import pytest
    import pytest_trio  # type: ignore[import-untyped]
except ImportError as _missing:
    raise MissingExtraError(
        "the conformance kit needs pytest and pytest-trio: pip install 'trio-dispatch[testing]'"
    ) from _missing

for _name in ("claiming", "keys", "limits", "publishing", "reading", "running", "services"):
    # Before they are imported: so that a failed case shows the values it compared.
    pytest.register_assert_rewrite(f"dispatch.testing.cases_{_name}")

from dispatch.testing.cases_claiming import ClaimCases, LeaseCases  # noqa: E402
from dispatch.testing.cases_keys import BoundCases, KeyCases  # noqa: E402
from dispatch.testing.cases_limits import LimitCases  # noqa: E402
from dispatch.testing.cases_publishing import EnqueueCases, UniqueCases  # noqa: E402
from dispatch.testing.cases_reading import AlterCases, FindCases, PruneCases  # noqa: E402
from dispatch.testing.cases_running import HistoryCases, RescueCases, SettleCases  # noqa: E402
from dispatch.testing.cases_services import ControlCases, CronCases, WatchCases  # noqa: E402
from dispatch.testing.workbench import Workbench  # noqa: E402

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
    HistoryCases,
    FindCases,
    AlterCases,
    PruneCases,
    WatchCases,
    ControlCases,
    CronCases,
):
    """Every case; a subclass supplies `open_storage`."""

    def open_storage(
        self,
    ) -> AbstractAsyncContextManager[tuple[Storage, Callable[[float], Awaitable[None]]]]:
        """Open an empty storage, with the function that moves its clock on."""
        raise NotImplementedError(f"{type(self).__name__}: define open_storage")

    @pytest_trio.trio_fixture  # type: ignore[untyped-decorator]
    async def bench(self) -> AsyncGenerator[Workbench]:
        """A workbench with a storage of its own."""
        async with self.open_storage() as (storage, advance):
            yield Workbench(storage, advance)
