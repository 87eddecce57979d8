"""How surprising a picture is, and where: the error of the forecast, measured by what is usual at that place."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Plane: TypeAlias = npt.NDArray[np.float32]

FOLLOW = 0.02
"""Share of a new error in the usual one: it looks back over some 50 pictures."""

MOST_LEARNED = 3.0
"""A pixel teaches at most so many times the usual error: what is unusual does not become usual at once."""

COLD, HOT = 4.0, 60.0
"""Times the usual error at which heat begins, and at which it is full; on a scale of ratios in between."""

ALARM = 30.0
"""Times the usual error that one place in a hundred must reach for an alarm."""

FADE = 0.8
"""Share of the heat that is left with each picture whose error says nothing."""

_RADIUS = 2
_FLOOR = 2e-5
"""An error, a mean square, below which everything is usual: half a step of a camera's 256, and its noise."""


class Surprise:
    """Remembers the usual error of each pixel of one source.

    Attributes:
        peak: Times the usual error that the most surprising hundredth of the latest picture reaches.
    """

    def __init__(self) -> None:
        self.peak = 0.0
        self._usual: Plane | None = None
        self._ratio: Plane | None = None
        self._heat: Plane | None = None

    @property
    def is_alarming(self) -> bool:
        """Whether something unusual is in the picture."""
        return self.peak > ALARM

    @property
    def ratio(self) -> Plane | None:
        """Times the usual error of each place in the latest picture, ``(height, width)``; None: none came."""
        return self._ratio

    def update(self, error: npt.NDArray[np.float32]) -> Plane:
        """Take the error of one forecast in, and return where it is surprising.

        Args:
            error: What came less what was expected, ``(3, height, width)``.

        Returns:
            0 to 1, ``(height, width)``.
        """
        squared = _smoothed(np.square(error).mean(axis=0))
        if self._usual is None or self._usual.shape != squared.shape:
            self._usual = squared + np.float32(_FLOOR)
        # Where nothing ever moves, the usual error is next to none: a share of the picture's mean stands in for it.
        usual = self._usual + np.float32(0.25 * float(self._usual.mean()) + _FLOOR)
        self._ratio = ratio = squared / usual
        self._usual += np.float32(FOLLOW) * (np.minimum(squared, MOST_LEARNED * usual) - self._usual)
        self.peak = float(np.percentile(ratio, 99.0))
        heat = np.log(np.maximum(ratio, COLD) / np.float32(COLD)) / np.float32(np.log(HOT / COLD))
        self._heat = np.asarray(np.minimum(heat, 1.0), np.float32)
        return self._heat

    def fade(self) -> Plane:
        """Return a little less of the latest heat, for a picture whose error says nothing."""
        self._heat = np.zeros((1, 1), np.float32) if self._heat is None else self._heat * np.float32(FADE)
        return self._heat


def _smoothed(plane: Plane) -> Plane:
    """Average over a square around each pixel: one pixel's noise is no surprise."""
    width = 2 * _RADIUS + 1
    for axis in (0, 1):
        edges = [(0, 0), (0, 0)]
        edges[axis] = (_RADIUS + 1, _RADIUS)
        summed = np.cumsum(np.pad(plane, edges, mode="edge"), axis=axis, dtype=np.float32)
        plane = (
            summed.take(range(width, summed.shape[axis]), axis) - summed.take(range(summed.shape[axis] - width), axis)
        ) / np.float32(width)
    return plane
