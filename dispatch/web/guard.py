"""Who may come in: decisions on a request's address and headers, with the reason for a refusal.

Pure. Each function answers None for "let it pass", or the sentence to refuse with.

Closed by default. Without anybody to ask who the visitor is, only this machine
may come in, and only under a name of this machine: a page elsewhere can point
its own name at 127.0.0.1 (DNS rebinding), but cannot make the browser say
`localhost` in the `Host` header. A request that some proxy passed on is not from
this machine, whatever address it comes from.

A forged request is told by what browsers say and scripts cannot: `Sec-Fetch-Site`
first; where a browser leaves it out, as Chromium does on plain-http names of a
local network, `Origin`, which every browser sends with a POST. A request with
neither is no browser's, carries nobody's cookies by itself, and passes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

__all__ = ["HEADERS", "LOOPBACK_NAMES", "forged", "from_elsewhere", "wrong_host"]

LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")

HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not "no-referrer": browsers would send `Origin: null` with our own forms.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
"""On every answer, refusals and errors included."""

_HOST: Final = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9_.-]{1,253})(?::([0-9]{1,5}))?", re.ASCII)
_PASSED_ON: Final = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}


def wrong_host(hosts: Collection[str], allowed: Collection[str] | None) -> str | None:
    """Whether the `Host` headers name this place; `allowed` are names without a port, None any."""
    if len(hosts) != 1:
        return "a request needs exactly one Host header"
    (host,) = hosts
    found = _HOST.fullmatch(host.lower())
    if found is None:
        return "the Host header is no host name"
    if allowed is not None and found[1] not in allowed:
        return (
            "this dashboard does not answer to that host name; "
            "pass hosts=[...] to create_app to allow it"
        )
    return None


def from_elsewhere(address: str | None, headers: Collection[str]) -> str | None:
    """Whether a request comes from another machine; `headers` are the names it carries."""
    try:
        here = address is not None and _is_loopback(address)
    except ValueError:
        here = False
    if here and not any(name in headers for name in _PASSED_ON):
        return None
    return (
        "this dashboard answers its own machine only; "
        "pass authorize=... to create_app to let others in"
    )


def _is_loopback(address: str) -> bool:
    parsed = ip_address(address)
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback


def forged(sites: Collection[str], origins: Collection[str], hosts: Collection[str]) -> str | None:
    """Whether a request that changes something was made by another site's page."""
    refusal = "this request was made by another site"
    if sites:
        return None if set(sites) <= {"same-origin", "none"} else refusal
    if not origins:
        return None
    if len(origins) != 1 or len(hosts) != 1:
        return refusal
    (origin,), (host,) = origins, hosts
    try:
        scheme, place = urlsplit(origin)[:2]
    except ValueError:
        return refusal
    port = _DEFAULT_PORTS.get(scheme)
    if port is None or not place:
        return refusal
    # The scheme is not compared: behind a proxy that ends TLS we cannot know ours.
    same = place.lower().removesuffix(f":{port}") == host.lower().removesuffix(f":{port}")
    return None if same else refusal
