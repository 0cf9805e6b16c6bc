"""Where a PostgreSQL server is, and with what settings: libpq's connection strings, read and completed.

The lowest file that needs psycopg: its absence names the extra here. What is shown to
people (`redacted`, every error) has no password in it, nor a piece of one.
"""

from __future__ import annotations

import os
from configparser import ConfigParser
from configparser import Error as ConfigError
from contextlib import suppress
from pathlib import Path
from typing import Final

from dispatch.errors import InvalidConfigError, MissingExtraError

try:
    import psycopg
    import psycopg.conninfo
except ImportError as _missing:
    raise MissingExtraError(
        "PostgreSQL needs psycopg: pip install 'trio-dispatch[postgres]'"
    ) from _missing

from psycopg.abc import ConnDict, ConnParam  # noqa: TC002 - after the guard
from psycopg.pq import Conninfo

__all__ = ["CONNECT_S", "check_readable", "completed", "connected", "hosts", "psycopg", "redacted", "with_options"]

DEFAULTS: Final[ConnDict] = {
    # A silent network ends a connect within 10 s, unanswered data within
    # 10 s, and an idle connection within 10 + 3 * 5 s: never the two hours of TCP.
    "connect_timeout": 10,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "client_encoding": "UTF8",
    "fallback_application_name": "trio-dispatch",
}
"""What a connection is opened with, unless the connection string or the environment says else."""

CONNECT_S: Final = 2
"""`connect_timeout` by default where several hosts are named, libpq's least: the first may be gone for good."""

DEFAULT_OPTIONS: Final = "-c statement_timeout=30s"
"""Settings of the session; `options` of the connection string come after them and win.

PgBouncer refuses them unless its `ignore_startup_parameters` has `options`.
"""


def connected(conninfo: str = "", **kwargs: ConnParam) -> psycopg.Connection:
    """psycopg's synchronous connection, with `DEFAULTS`, and no password in its errors.

    Blocks the thread: for programs without trio, and for `TrioConnection`.
    """
    parameters = completed(conninfo, kwargs)
    try:
        return psycopg.Connection.connect(psycopg.conninfo.make_conninfo("", **parameters))
    except psycopg.Error as exc:
        text = _without_secrets(str(exc), parameters)
        failure = exc.with_traceback(None) if text == str(exc) else type(exc)(text)
    raise failure  # out here, so that it has no context to show


def completed(conninfo: str, kwargs: dict[str, ConnParam]) -> ConnDict:
    """What is given, and of the rest what the environment, a service or `DEFAULTS` say."""
    given = _parsed(conninfo, kwargs)
    around = _around(given)
    defaults = {**DEFAULTS, "connect_timeout": CONNECT_S} if hosts({**around, **given}) > 1 else DEFAULTS
    params: ConnDict = {name: around.get(name, value) for name, value in defaults.items()}
    params.update(given)
    params["options"] = f"{DEFAULT_OPTIONS} {given.get('options', around.get('options', ''))}"
    return params


def _around(given: ConnDict) -> ConnDict:
    """The parameters of the environment, and of the service that it or the connection string names."""
    around: ConnDict = {
        each.keyword.decode(): each.val.decode() for each in Conninfo.get_defaults() if each.val
    }
    if given.get("service"):
        around.update(_of_service(str(given["service"]), given.get("servicefile")))
    return around


def _of_service(name: str, file: ConnParam = None) -> dict[str, str]:
    """What libpq's service file says of a service; nothing if there is none: libpq will say so.

    The files and their order: https://www.postgresql.org/docs/current/libpq-pgservice.html
    """
    system = os.environ.get("PGSYSCONFDIR")
    own = file or os.environ.get("PGSERVICEFILE") or Path("~/.pg_service.conf").expanduser()
    for path in (Path(str(own)), *([Path(system) / "pg_service.conf"] if system else [])):
        services = ConfigParser(
            delimiters="=", comment_prefixes="#", interpolation=None, allow_no_value=True, strict=False
        )
        with suppress(OSError, UnicodeDecodeError, ConfigError):
            services.read_string(path.read_text(encoding="utf-8"))
        if services.has_section(name):
            return {key: value for key, value in services.items(name) if value}
    return {}


def hosts(params: ConnDict) -> int:
    """How many hosts are tried, one after the other."""
    return str(params.get("host") or params.get("hostaddr") or "").count(",") + 1


def with_options(conninfo: str, options: str) -> str:
    """The connection string with settings of the session; those that it had win over them.

    It had its own, or none, and then those of the environment (PGOPTIONS). A
    string that cannot be read stays as it is: connecting says what is wrong.
    """
    try:
        given = psycopg.conninfo.conninfo_to_dict(conninfo)
        own = given["options"] if "options" in given else _around(given).get("options", "")
        return psycopg.conninfo.make_conninfo(conninfo, options=f"{options} {own}".strip())
    except psycopg.Error:
        return conninfo


def check_readable(conninfo: str) -> None:
    """Raise InvalidConfigError for a connection string that names nothing."""
    try:
        _parsed(conninfo, {})
    except psycopg.ProgrammingError as exc:
        raise InvalidConfigError(str(exc)) from None


def _parsed(conninfo: str, kwargs: dict[str, ConnParam]) -> ConnDict:
    try:
        params = psycopg.conninfo.conninfo_to_dict(conninfo, **kwargs)
        if not _is_torn(conninfo, str(params.get("port") or "")):
            return params
    except psycopg.Error:
        pass  # libpq's message quotes what it stumbled over, often a piece of the password
    unknown = _unknown_option(conninfo)
    if unknown is not None:
        raise psycopg.ProgrammingError(f"the connection string cannot be read: libpq has no option {unknown!r}")
    raise psycopg.ProgrammingError(
        "the connection string cannot be read: wanted postgresql://user:password@host:port/name, "
        "reserved characters percent-encoded, or host=... user=... pairs"
    )


def _unknown_option(conninfo: str) -> str | None:
    """The first name after a URL's `?` that libpq does not know; not if a password may have been torn there."""
    query = conninfo.partition("?")[2]
    if "://" not in conninfo or "@" in query:
        return None
    known = {each.keyword.decode() for each in Conninfo.get_defaults()}
    names = [part.partition("=")[0] for part in query.split("&") if part]
    return next((name for name in names if name not in known and name != "ssl"), None)


def _is_torn(conninfo: str, port: str) -> bool:
    """Whether a password with a bare `/` or `@` was taken apart: into port and name, into host."""
    scheme, _, rest = conninfo.partition("?")[0].partition("://")
    authority, _, name = rest.partition("/") if scheme.startswith("postgres") else ("", "", "")
    odd = bool(port) and not port.replace(",", "0").isdecimal()
    return odd or "@" in name or authority.count("@") > 1


def _secrets(parameters: ConnDict) -> dict[str, str]:
    """The values that libpq marks as not for display, by name."""
    hidden = {each.keyword.decode() for each in Conninfo.get_defaults() if each.dispchar == b"*"}
    return {name: str(value) for name, value in parameters.items() if name in hidden and value}


def _without_secrets(text: str, parameters: ConnDict) -> str:
    for secret in _secrets(parameters).values():
        text = text.replace(secret, "***")
    return text


def redacted(conninfo: str) -> str:
    """A connection string for people: without its password and other secrets."""
    try:
        params = _parsed(conninfo, {})
    except psycopg.Error:
        return "(unreadable)"
    for name in _secrets(params):
        del params[name]
    return psycopg.conninfo.make_conninfo("", **params) or "(libpq's defaults)"
