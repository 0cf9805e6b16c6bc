"""The command line: `dispatch`, or `python -m dispatch`.

One file per noun; each offers an `app` of cyclopts, which `app.build` hangs into
the tree. A command is an async function whose last parameter is the `Shell`: its
streams, its store, and the person in front of it. It prints through
`dispatch.cli.output`, ends with a `CommandError` where it cannot go on, and
returns its exit status, None being 0.
"""

from __future__ import annotations

from dispatch.errors import MissingExtraError

try:
    import cyclopts
    import rich
except ImportError as _missing:
    raise MissingExtraError(
        "the command line needs cyclopts and rich: pip install 'trio-dispatch[cli]'"
    ) from _missing

del cyclopts, rich
