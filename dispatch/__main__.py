"""`python -m dispatch`, and the console script `dispatch`."""

from __future__ import annotations

import sys

from dispatch.errors import MissingExtraError

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process and exit with its status."""
    try:
        from dispatch.cli.app import main as run
        from dispatch.cli.shell import Shell
    except MissingExtraError as exc:
        sys.exit(f"dispatch: {exc.detail}")
    sys.exit(run(sys.argv[1:], Shell.of_process()))


if __name__ == "__main__":
    main()
