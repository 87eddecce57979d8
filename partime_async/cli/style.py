"""How the command line looks and speaks: colours, numbers, errors."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text

from partime_async.errors import PartimeError

LABEL = "dim"
GOOD = "green"
WARN = "yellow"
BAD = "bold red"
ACCENT = "cyan"


def duration(seconds: float) -> str:
    """Write seconds for people, in three digits: 0.41 ms, 71.3 ms, 1.42 s."""
    value, unit = (seconds, "s") if seconds >= 0.9995 else (1e3 * seconds, "ms")
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f} {unit}"


def rate(per_s: float) -> str:
    """Write frames per second for people."""
    return f"{per_s:.1f} frames/s" if per_s < 999.95 else f"{per_s:,.0f} frames/s"


def counted(number: int, noun: str) -> str:
    """Write a number with its noun: 1 frame, 2 frames."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size_words(size_bytes: int) -> str:
    """Write a number of bytes for people."""
    value, unit = float(size_bytes), "B"
    for larger in ("kB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def causes(dropped: Mapping[str, int]) -> str:
    """Write how many frames were dropped for which cause, the most first."""
    return ", ".join(f"{cause} {count}" for cause, count in sorted(dropped.items(), key=lambda item: -item[1]) if count)


def tell_error(error: BaseException, *, with_traceback: bool) -> None:
    """Write one red line to stderr, or the whole traceback."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if with_traceback:
        sys.stderr.write("".join(traceback.format_exception(error)))
    text = Text("error: ", style=BAD)
    text.append(in_one_line(error), style="red")
    if not isinstance(error, PartimeError) and not with_traceback:
        text.append(" (--traceback shows where)", style="red")
    console.print(text)


def in_one_line(error: BaseException | None) -> str:
    """Say what an error is; nothing, if there is none."""
    if error is None:
        return ""
    words = " ".join(str(error).split())
    return words if isinstance(error, PartimeError) else f"{type(error).__name__}: {words}"


@contextmanager
def errors_told(*, with_traceback: bool) -> Iterator[None]:
    """Turn an exception into a red line and exit code 2: the command cannot be carried out."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        tell_error(error, with_traceback=with_traceback)
        raise typer.Exit(2) from None
