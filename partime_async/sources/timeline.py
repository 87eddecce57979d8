"""The time of a source: where its frames lie on the media's line of seconds, and when each is due."""

from __future__ import annotations

import threading
import time

# A media time stamp that falls back by more than this starts a new time line (a looped or cut recording).
DISCONTINUITY_S = 1.0


class Timeline:
    """Places frames on one line of seconds that never runs backwards, whatever the media's time stamps do.

    Args:
        period_s: How far apart frames are that carry no time stamp.
        start_s: The time stamp that counts as 0.
    """

    __slots__ = ("_offset_s", "_period_s", "_previous_s", "_rejoins")

    def __init__(self, period_s: float, start_s: float = 0.0) -> None:
        self._period_s = period_s
        self._offset_s = -start_s
        self._previous_s: float | None = None
        self._rejoins = False

    def rejoin(self) -> None:
        """Let the next frame follow the last one by one period, whatever its time stamp: the media starts over."""
        self._rejoins = True

    def place(self, stamp_s: float | None) -> float:
        """Return where the next frame belongs.

        Args:
            stamp_s: The media's time stamp in seconds; None: it has none.
        """
        previous = self._previous_s
        following = 0.0 if previous is None else previous + self._period_s
        if stamp_s is None:
            position = following
        else:
            position = stamp_s + self._offset_s
            if previous is not None:
                if self._rejoins or position < previous - DISCONTINUITY_S:
                    self._offset_s += following - position
                    position = following
                position = max(position, previous)
        self._rejoins = False
        self._previous_s = position
        return position


class Schedule:
    """When each frame of a live source is due: its media time, counted from the moment the first one came.

    The schedule never moves. A consumer that comes late gets the frames it missed at once, as from a camera's buffer,
    each with the time it was due as its time of capture: so its age is true, and what is too old is the feed's to drop.

    Args:
        stop: Ends a wait at once.
    """

    __slots__ = ("_origin", "_stop")

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._origin: float | None = None

    def wait(self, position_s: float) -> float:
        """Wait until a frame is due, or until the pass is stopped.

        Args:
            position_s: Place of the frame on the media's time line, in seconds.

        Returns:
            When it is due, in seconds of `time.monotonic`.
        """
        if self._origin is None:
            self._origin = time.monotonic() - position_s
        due = self._origin + position_s
        # Always asked, also when late: a late pass must be stoppable too.
        self._stop.wait(max(0.0, due - time.monotonic()))
        return due
