"""When a frame was captured, by the receiver's clock."""

from __future__ import annotations

from enum import StrEnum

from partime_async.sockets.wire import Clock


class Timing(StrEnum):
    """How a sender's time becomes the receiver's."""

    ESTIMATE = "estimate"
    """By the smallest difference seen lately: what is left out is the fastest message's time on its way."""
    SYNCHRONISED = "synchronised"
    """Wall clocks are taken at their word, as NTP or PTP makes them; other clocks are estimated."""
    ARRIVAL = "arrival"
    """The moment of arrival counts, whatever the sender says."""


class SenderClock:
    """Translates one sender's time into `time.monotonic` of the receiver.

    Two clocks differ by an unknown offset, and every message shows that offset plus the time it took. The smallest of
    the last half to one minute is the best guess at the offset alone; that it is renewed lets clocks drift. So an age
    is too small by the time that the fastest message took, and never negative.

    Source: the one-way clock filter of RFC 5905 (NTP), section 10, with a minimum over a window in place of eight
    samples.

    Args:
        timing: How.
        wall_offset_s: `time.monotonic` minus `time.time` here.
    """

    WINDOW_S = 30.0
    BACKWARDS_S = 1.0
    """A sender's time that jumps back by more is another clock: the device has started again."""

    __slots__ = ("_began", "_last", "_newer", "_older", "_timing", "_wall_offset_s")

    def __init__(self, timing: Timing, *, wall_offset_s: float) -> None:
        self._timing = timing
        self._wall_offset_s = wall_offset_s
        self._began = 0.0
        self._last: float | None = None
        self._older = self._newer = 0.0

    def captured_at(self, sent_at: float | None, clock: Clock, arrived_at: float) -> float:
        """Return when a message that says `sent_at` and came at `arrived_at` was captured; never after it came."""
        if sent_at is None or self._timing is Timing.ARRIVAL:
            return arrived_at
        if clock is Clock.WALL and self._timing is Timing.SYNCHRONISED:
            return min(sent_at + self._wall_offset_s, arrived_at)
        offset = arrived_at - sent_at
        if self._last is None or sent_at < self._last - self.BACKWARDS_S:
            self._older = self._newer = offset
            self._began = arrived_at
        elif arrived_at - self._began > self.WINDOW_S:
            self._older, self._newer, self._began = self._newer, offset, arrived_at
        else:
            self._newer = min(self._newer, offset)
        self._last = sent_at
        return min(sent_at + min(self._older, self._newer), arrived_at)
