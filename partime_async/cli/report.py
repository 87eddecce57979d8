"""Who is told how a run goes: a person at a terminal, a log, or a machine. All of them write from a sink's thread."""

from __future__ import annotations

import json
import sys
from typing import Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from partime_async.cli.progress import Header, Progress, line, live_view, plan_values, statistics_values, title
from partime_async.cli.style import LABEL
from partime_async.cli.summary import Summary, summary_values, summary_view


class Reporter(Protocol):
    """A sink of what happens; see `partime_async.sinks.Sink`.

    Attributes:
        interval_s: Seconds between two `Progress`es that suit it.
    """

    interval_s: float

    def write(self, event: str | Header | Progress) -> None:
        """Tell what is being done, what runs, or how far it is. Blocks."""

    def close(self) -> None:
        """Leave the terminal as it was."""

    def abort(self) -> None:
        """Do the same."""

    def finish(self, summary: Summary) -> None:
        """Tell how it went, after `close`."""


class LiveReporter:
    """Draws over the same lines of a terminal."""

    interval_s = 0.2

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._header: Header | None = None

    def write(self, event: str | Header | Progress) -> None:
        """Draw anew."""
        if not self._live.is_started:
            self._live.start()
        if isinstance(event, Header):
            self._header = event
        elif isinstance(event, str):
            self._live.update(Text(f"{event} ...", style=LABEL), refresh=True)
        elif self._header is not None:
            self._live.update(live_view(self._header, event), refresh=True)

    def close(self) -> None:
        """Take the drawing away."""
        self._live.stop()

    abort = close

    def finish(self, summary: Summary) -> None:
        """Print the summary where the drawing was."""
        self._console.print(summary_view(summary))


class LineReporter:
    """Writes a line now and then, for logs and pipes."""

    interval_s = 1.0

    def __init__(self, stream: TextIO, console: Console) -> None:
        self._stream = stream
        self._console = console
        self._header: Header | None = None

    def write(self, event: str | Header | Progress) -> None:
        """Write a line."""
        if isinstance(event, Header):
            self._header = event
            self._line(title(event).plain)
        elif isinstance(event, Progress) and self._header is not None:
            self._line(line(self._header, event))

    def close(self) -> None:
        """Do nothing: every line is out."""

    abort = close

    def finish(self, summary: Summary) -> None:
        """Print the summary."""
        self._console.print(summary_view(summary))

    def _line(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()


class JsonReporter:
    """Writes one JSON object a line: ``start``, ``progress`` once a second, ``summary``."""

    interval_s = 1.0

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, event: str | Header | Progress) -> None:
        """Write an object."""
        if isinstance(event, Header):
            self._object(
                "start",
                source=event.source,
                model=event.model,
                total=event.total,
                overflow=event.overflow,
                plan=plan_values(event.plan),
            )
        elif isinstance(event, Progress):
            recent = {"throughput": event.throughput, "busy_shares": event.busy_shares}
            self._object("progress", **statistics_values(event.statistics), recent=recent)

    def close(self) -> None:
        """Do nothing: every line is out."""

    abort = close

    def finish(self, summary: Summary) -> None:
        """Write the last object."""
        self._object("summary", **summary_values(summary))

    def _object(self, kind: str, **values: object) -> None:
        self._stream.write(json.dumps({"type": kind, **values}, allow_nan=False) + "\n")
        self._stream.flush()


def reporter(*, is_json: bool) -> Reporter:
    """Return the reporter that suits what stdout is."""
    if is_json:
        return JsonReporter(sys.stdout)
    console = Console(highlight=False)
    return LiveReporter(console) if console.is_terminal else LineReporter(sys.stdout, console)
