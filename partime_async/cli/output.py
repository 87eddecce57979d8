"""The processed video: drawn and encoded in the sink's thread, frame by frame."""

from __future__ import annotations

import math

import numpy as np

from partime_async.frame import Value
from partime_async.sinks import Renderer, VideoWriter
from partime_async.sinks.base import Image

_SMALLEST = 320
"""Pictures smaller than this many pixels are enlarged by a whole factor: nobody sees anything in 64x64."""


class ProcessedVideo:
    """A sink of results: draws each over its input and writes the picture.

    Args:
        path: The video file to make.
        frame_rate: Frames per second of results without a position.

    Raises:
        SinkError: The file cannot be made.
        MissingDependencyError: PyAV is not installed.
    """

    def __init__(self, path: str, *, frame_rate: float) -> None:
        self._writer = VideoWriter(path, frame_rate=frame_rate)
        self._renderer: Renderer | None = None
        self._is_finished = False

    @property
    def finished_frames(self) -> int:
        """How many pictures the finished file has; 0 as long as there is none."""
        return self._writer.frames if self._is_finished else 0

    def write(self, output: Value, image: Image | None, position_s: float | None) -> None:
        """Draw one result and encode it.

        Args:
            output: What the network gave.
            image: The picture it was given, uint8, ``(height, width, 3)``; None: there is none.
            position_s: Where it belongs in seconds; None: one frame after the last.
        """
        image = None if image is None else _enlarged(image)
        if self._renderer is None:
            self._renderer = Renderer(size=_canvas(output, image))
        self._writer.write(self._renderer.render(output, image), position_s)

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()
        self._is_finished = True

    def abort(self) -> None:
        """Remove the file."""
        self._writer.abort()


def _enlarged(image: Image) -> Image:
    factor = _factor(image.shape[1], image.shape[0])
    return image if factor == 1 else np.ascontiguousarray(image.repeat(factor, axis=0).repeat(factor, axis=1))


def _factor(width: int, height: int) -> int:
    return max(1, math.ceil(_SMALLEST / max(width, height)))


def _canvas(output: Value, image: Image | None) -> tuple[int, int] | None:
    """Return the size of the video, or None: the renderer knows better, for bars go below the picture."""
    first = next((part for part in output if part.ndim == 4), output[0]) if isinstance(output, tuple) else output
    if first.ndim < 3:
        return None
    if image is not None:
        return image.shape[1], image.shape[0]
    height, width = first.shape[-2:]
    factor = _factor(width, height)
    return factor * width, factor * height
