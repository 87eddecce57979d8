"""When a picture was taken, on this machine's clock, from the time stamps of another one's."""

from __future__ import annotations

_HALF_WINDOW_S = 5.0
# A picture that is earlier than all others by more than this belongs to a new time line: the sender started over.
_JUMP_S = 1.0
_TICK_S = 1e-6


class ArrivalClock:
    """Places a sender's time stamps on `time.monotonic`, so that jitter of the way does not show.

    Stamps tell the distance between pictures exactly; when a picture arrives tells where they lie. The picture with the
    quickest way in the last seconds counts: all others waited somewhere. What comes out is the time of capture plus
    the shortest time that encoding, way and decoding take, which no clock of this machine can tell apart.

    The window forgets, so that clocks that drift, by up to 100 us in a second, are followed.
    """

    __slots__ = ("_began", "_last_position", "_last_stamp", "_least", "_least_before")

    def __init__(self) -> None:
        self._began = float("-inf")
        self._least = self._least_before = float("inf")
        self._last_stamp = float("-inf")
        self._last_position = float("inf")

    def place(self, position_s: float | None, arrived_at: float, age_s: float | None = None) -> float:
        """Return when a picture was taken, in seconds of `time.monotonic`; each later than the one before.

        Args:
            position_s: The sender's time stamp in seconds; None: it has none.
            arrived_at: When it was there, in seconds of `time.monotonic`.
            age_s: How old it was by then, where the sender's clock tells; None: it does not.
        """
        taken_at = arrived_at if position_s is None else position_s + self._offset(position_s, arrived_at)
        if age_s is not None:
            taken_at = arrived_at - age_s
        self._last_stamp = max(min(taken_at, arrived_at), self._last_stamp + _TICK_S)
        return self._last_stamp

    def _offset(self, position_s: float, arrived_at: float) -> float:
        offset = arrived_at - position_s
        # Late is no jump, however late: what was held up keeps its age. Back, or far ahead, is another time line.
        is_new = position_s < self._last_position or offset < self._least - _JUMP_S
        self._last_position = position_s
        if is_new:
            self._began = arrived_at
            self._least = self._least_before = offset
        elif arrived_at - self._began > _HALF_WINDOW_S:
            self._began = arrived_at
            self._least_before, self._least = self._least, offset
        else:
            self._least = min(self._least, offset)
        return min(self._least, self._least_before)
