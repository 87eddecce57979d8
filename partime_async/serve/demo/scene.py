"""The demo's own things to look at: the moving scene in several looks, and something that was never seen before."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator

import numpy as np

from partime_async.frame import SourceFrame
from partime_async.picture import Image, to_value
from partime_async.serve.demo.networks import HEIGHT, WIDTH
from partime_async.sinks.draw import resized
from partime_async.sources import Scene
from partime_async.sources.timeline import Schedule

LOOKS = ("Dusk", "Ember", "Meadow")
"""Names of the scene's looks; each has other paths and other colours."""

_SEEDS = (0, 5, 11)
_FRAME_RATE = 30.0

VISIT_S = 5.0
"""Seconds that the stranger takes from one side of the picture to the other."""

_CHECKS = np.array([[250, 250, 250], [12, 12, 14]], np.uint8)


class LiveScene:
    """The moving scene as a camera would give it, endless, in the look chosen last.

    Iterate it on a thread of its own; `look` may be set from any other.

    Args:
        size: Width and height in pixels.

    Attributes:
        look: Index into `LOOKS`.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.look = 0
        self._size = size

    def __iter__(self) -> Iterator[SourceFrame]:
        return _Pass(self._frames(stop := threading.Event()), stop)

    def _frames(self, stop: threading.Event) -> Generator[SourceFrame, None, None]:
        scenes = [Scene(size=self._size, frame_rate=_FRAME_RATE, seed=seed) for seed in _SEEDS]
        schedule = Schedule(stop)
        index = 0
        while not stop.is_set():
            look = self.look
            position_s = index / _FRAME_RATE
            image = _coloured(scenes[look].image(index), look)
            captured_at = schedule.wait(position_s)
            yield seen(image, captured_at, position_s)
            index += 1
            # A machine that was busy or asleep shows what is due now, as a camera does.
            index += max(0, int((time.monotonic() - captured_at) * _FRAME_RATE) - 1)


class _Pass(Iterator[SourceFrame]):
    def __init__(self, frames: Generator[SourceFrame, None, None], stop: threading.Event) -> None:
        self._frames = frames
        self._stop = stop

    def __next__(self) -> SourceFrame:
        return next(self._frames)

    def interrupt(self) -> None:
        """End a wait for the clock at once."""
        self._stop.set()

    def close(self) -> None:
        """End the pass."""
        self._frames.close()


def seen(image: Image, captured_at: float | None, position_s: float | None) -> SourceFrame:
    """Make a frame for the demo's networks of a picture of any size."""
    return SourceFrame(to_value(resized(image, (WIDTH, HEIGHT))), captured_at, position_s, image)


def with_stranger(frame: SourceFrame, since_s: float) -> SourceFrame:
    """Return a frame with something in it that belongs to no scene: a rolling chequered ball.

    Args:
        frame: With a picture, which is not changed.
        since_s: Seconds since the ball came in.
    """
    assert frame.image is not None
    image = frame.image.copy()
    height, width = image.shape[:2]
    x, y, radius = stranger_at(since_s)
    paint_ball(image, (x * width, y * height), radius * height, angle=-7.0 * since_s)
    return seen(image, frame.captured_at, frame.position_s)


def stranger_at(since_s: float) -> tuple[float, float, float]:
    """Return where the ball is: its centre in shares of width and height, and its radius in heights."""
    share = since_s / VISIT_S
    bounce = abs(np.sin(2.5 * np.pi * share))
    return -0.15 + 1.3 * share, float(0.78 - 0.42 * bounce), 0.14


def paint_ball(image: Image, centre: tuple[float, float], radius: float, *, angle: float) -> None:
    """Paint a chequered ball into a picture.

    Args:
        image: Written into.
        centre: In pixels, x and y; may lie outside.
        radius: In pixels.
        angle: How far it has rolled, in radians.
    """
    left, right = (int(np.clip(centre[0] + side * (radius + 1), 0, image.shape[1])) for side in (-1, 1))
    top, bottom = (int(np.clip(centre[1] + side * (radius + 1), 0, image.shape[0])) for side in (-1, 1))
    if left >= right or top >= bottom:
        return
    x = (np.arange(left, right) + 0.5 - centre[0])[None, :] / radius
    y = (np.arange(top, bottom) + 0.5 - centre[1])[:, None] / radius
    u = x * np.cos(angle) + y * np.sin(angle)
    v = y * np.cos(angle) - x * np.sin(angle)
    squares = (np.floor(2.0 * u) + np.floor(2.0 * v)).astype(np.int64) % 2
    cover = np.clip((1.0 - np.hypot(x, y)) * radius + 0.5, 0.0, 1.0)[..., None]
    box = image[top:bottom, left:right]
    box[:] = (box * (1.0 - cover) + _CHECKS[squares] * cover).astype(np.uint8)


def _coloured(image: Image, look: int) -> Image:
    """Give a picture the colours of a look: the same, with the channels turned round."""
    return image if look == 0 else np.ascontiguousarray(np.roll(image, look, axis=2))
