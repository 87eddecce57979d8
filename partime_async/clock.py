"""Where "now" comes from: the machine's monotonic clock, or an event loop's own (possibly virtual) time."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """A source of time in seconds that never goes back; only differences mean anything."""

    def now(self) -> float:
        """Return the current time in seconds."""
        ...


class MonotonicClock:
    """`time.monotonic`: what a live pipeline runs on, and the scale of every `captured_at`."""

    now = staticmethod(time.monotonic)


class LoopClock:
    """The running loop's own time, for simulated devices on a virtual-time loop.

    Not the default: uvloop's `time()` has a resolution of one millisecond.
    """

    def __init__(self) -> None:
        self.now = asyncio.get_running_loop().time
