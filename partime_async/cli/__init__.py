"""The command line, `partime-async`; it needs the extra ``cli``."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from partime_async.errors import MissingDependencyError

__all__ = ["main"]


def main() -> None:
    """Run the command that the arguments name, and exit with its code."""
    for package in ("typer", "rich"):
        if find_spec(package) is None:
            sys.stderr.write(f"error: {MissingDependencyError(package, 'cli')}\n")
            raise SystemExit(2)
    # As with `python -m`: a 'module:factory' in the user's folder must be found by the installed script, too.
    if "" not in sys.path:
        sys.path.insert(0, "")
    from partime_async.cli.app import app

    try:
        app(prog_name="partime-async")
    except KeyboardInterrupt:  # before there was a loop to stop, or in a command that has none
        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None
