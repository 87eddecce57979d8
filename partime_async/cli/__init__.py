"""The command line, `partime-async`; it needs the extra ``cli``."""

from __future__ import annotations

import os
import sys
import threading
from importlib.util import find_spec

from partime_async.errors import MissingDependencyError

__all__ = ["main"]

_OUR_THREADS = ("partime ", "source-", "sink-")


def main() -> None:
    """Run the command that the arguments name, and exit with its code."""
    for package in ("typer", "rich"):
        if find_spec(package) is None:
            sys.stderr.write(f"error: {MissingDependencyError(package, 'cli')}\n")
            raise SystemExit(2)
    # As with `python -m`: a 'module:factory' in the user's folder must be found by the installed script, too.
    if "" not in sys.path:
        sys.path.insert(0, "")
    code: int | str | None = 0
    try:
        from partime_async.cli.app import app

        app(prog_name="partime-async")
    except SystemExit as ended:
        code = ended.code
    except KeyboardInterrupt:  # before there was a loop that could end, or in a command without one
        sys.stderr.write("interrupted\n")
        code = 130
    if any(thread.name.startswith(_OUR_THREADS) for thread in threading.enumerate()):
        # Something is stuck in native code, in a stage or a driver, and would crash the interpreter on its way out.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))
    raise SystemExit(code)
