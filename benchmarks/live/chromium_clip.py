"""What Chromium's camera plays: a moving scene with a number stamped into each picture."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from benchmarks.live import stamp

RATE_HZ = 30
"""Chromium plays such a file at this rate, whatever is in it."""

_BACKGROUNDS = 30


def write_clip(path: Path, *, seconds: float) -> None:
    """Write the clip; the camera plays it over and over, so it has to be longer than any delay to be measured.

    Args:
        path: Ends in ``.mjpeg``.
        seconds: How long it is.
    """
    scenes = [_scene(index) for index in range(_BACKGROUNDS)]
    with av.open(str(path), "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=Fraction(RATE_HZ))
        stream.width, stream.height = stamp.WIDTH, stamp.HEIGHT
        stream.pix_fmt = "yuvj420p"
        stream.options = {"qscale": "3"}
        for number in range(round(seconds * RATE_HZ)):
            picture = scenes[number % _BACKGROUNDS].copy()
            stamp.write(picture[: stamp.HEIGHT], number)
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p").reformat(format="yuvj420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _scene(index: int) -> npt.NDArray[np.uint8]:
    """Draw a bright ball over a gradient, at one of its places; planes of yuv420p below each other."""
    rows, columns = np.mgrid[0 : stamp.HEIGHT, 0 : stamp.WIDTH]
    angle = 2 * np.pi * index / _BACKGROUNDS
    ball = np.hypot(columns - 160 - 100 * np.cos(angle), rows - 150 - 60 * np.sin(angle)) < 24
    luma = np.where(ball, 220, 60 + columns // 4 + rows // 8).astype(np.uint8)
    return np.concatenate([luma, np.full((stamp.HEIGHT // 2, stamp.WIDTH), 128, np.uint8)])
