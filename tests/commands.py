"""The command line in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]

Command = Callable[..., "subprocess.Popen[str]"]


@contextmanager
def commands(folder: Path, *, columns: int = 300) -> Iterator[Command]:
    """Give a function that starts ``partime-async`` with its arguments in this folder; in the end all are killed."""
    with ExitStack() as started:

        def start(*arguments: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-m", "partime_async", *arguments],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": str(columns)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.enter_context(process)
            started.callback(process.kill)
            return process

        yield start
