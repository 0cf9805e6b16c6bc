"""Opening a storage by its URL."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from dispatch.errors import InvalidConfigError
from dispatch.storage.memory import MemoryStorage
from dispatch.storage.protocol import Storage

__all__ = ["open_storage"]


@asynccontextmanager
async def open_storage(url: str) -> AsyncGenerator[Storage]:
    """The storage of a URL while the block runs. Raises InvalidConfigError and StorageError."""
    scheme = url.partition(":")[0]
    if scheme == "memory":
        yield MemoryStorage()
    else:
        raise InvalidConfigError(f"no storage is known by {scheme!r}; wanted is memory:")
