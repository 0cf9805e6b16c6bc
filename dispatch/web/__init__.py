"""The dashboard (extra `web`): an ASGI app over a storage or a dispatcher; start at `create_app`."""

from __future__ import annotations

from dispatch.web.app import create_app

__all__ = ["create_app"]
