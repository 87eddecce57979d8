"""The processed video: drawn and encoded in the sink's thread, frame by frame."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from partime_async.frame import Value
from partime_async.picture import Image
from partime_async.sinks import Renderer, VideoWriter

_SMALLEST = 320
"""Pictures smaller than this many pixels are enlarged by a whole factor: nobody sees anything in 64x64."""

_FULL_RANGE = 0.5
"""Pictures that use less of [0, 1] than this are stretched to all of it, as those of an untrained network need."""

_FOLLOW = 0.08
"""Share of a new frame in the smoothed levels, so that they do not flicker."""

_GAP = 4


class ProcessedVideo:
    """A sink of results: draws each, and writes the picture.

    Maps of features go over the input, vectors become bars below it, and pictures stand beside it (below a wide one).

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
        self._levels = Levels()
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
        self._writer.write(self.draw(output, image), position_s)

    def draw(self, output: Value, image: Image | None) -> Image:
        """Draw one result; the arguments are those of `write`."""
        shown = _shown(output)
        image = None if image is None else _enlarged(image)
        if self._renderer is None:
            self._renderer = Renderer(size=_canvas(shown, image))
        if not is_picture(shown):
            return self._renderer.render(shown, image)
        picture = self._renderer.render(self._levels.stretched(shown))
        return picture if image is None else _side_by_side(image, picture)

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()
        self._is_finished = True

    def abort(self) -> None:
        """Remove the file."""
        self._writer.abort()


class Levels:
    """Stretches dull pictures to the whole range, each channel by levels that follow the stream slowly.

    In numpy: torch would start a pool of threads here, which takes the cores from the stages.
    """

    def __init__(self) -> None:
        self._low_high: npt.NDArray[np.float32] | None = None

    def stretched(self, picture: Tensor) -> Tensor:
        """Return a picture ``(1, channels, height, width)`` in [0, 1], stretched if it uses little of that."""
        planes = _array(picture).reshape(picture.shape[1], -1)
        new = np.percentile(planes, (1.0, 99.0), axis=1).astype(np.float32)
        self._low_high = (
            new if self._low_high is None else self._low_high + np.float32(_FOLLOW) * (new - self._low_high)
        )
        low, high = self._low_high
        if high.max() - low.min() >= _FULL_RANGE:
            return picture
        span = np.maximum(high - low, np.float32(1e-6))
        stretched = np.clip((planes - low[:, None]) / span[:, None], 0.0, 1.0)
        return torch.from_numpy(stretched.reshape(picture.shape))


def is_picture(output: Tensor) -> bool:
    """Tell whether an output is a picture: one or three channels of values in [0, 1]."""
    if output.ndim != 4 or output.shape[0] != 1 or output.shape[1] not in (1, 3) or not output.is_floating_point():
        return False
    values = _array(output)
    return bool(values.size and values.min() >= 0.0 and values.max() <= 1.0)


def _array(tensor: Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = tensor.detach().float().numpy()
    return array


def _shown(output: Value) -> Tensor:
    """Choose the tensor to draw; one value for each channel of the whole frame is a vector."""
    tensor = output
    if isinstance(tensor, tuple):
        tensor = next((part for part in tensor if part.ndim == 4), tensor[0])
    return tensor.flatten(1) if tensor.ndim == 4 and tensor.shape[2:] == (1, 1) else tensor


def _enlarged(image: Image) -> Image:
    factor = _factor(image.shape[1], image.shape[0])
    return image if factor == 1 else np.ascontiguousarray(image.repeat(factor, axis=0).repeat(factor, axis=1))


def _factor(width: int, height: int) -> int:
    return max(1, math.ceil(_SMALLEST / max(width, height)))


def _canvas(output: Tensor, image: Image | None) -> tuple[int, int] | None:
    """Return the size to draw in, or None: the renderer knows better, for bars go below the picture."""
    if output.ndim < 3:
        return None
    if image is not None:
        return image.shape[1], image.shape[0]
    height, width = output.shape[-2:]
    factor = _factor(width, height)
    return factor * width, factor * height


def _side_by_side(image: Image, picture: Image) -> Image:
    """Put two pictures of one size beside each other, or below each other if they are wide."""
    height, width = image.shape[:2]
    axis = 0 if width > 1.5 * height else 1
    gap = np.zeros((_GAP, width, 3) if axis == 0 else (height, _GAP, 3), np.uint8)
    return np.concatenate([image, gap, picture], axis=axis)
