"""Shared by every test: nothing may leave work behind in trio or in garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture
def collected() -> Iterator[None]:
    """Collect garbage before and after, so that a coroutine never awaited warns inside the test."""
    gc.collect()
    yield
    gc.collect()
