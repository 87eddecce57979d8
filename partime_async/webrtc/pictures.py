"""Between pictures as codecs have them (YUV) and as networks and people want them (RGB). Runs on worker threads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from partime_async.errors import ConfigurationError, FrameError, MissingDependencyError
from partime_async.frame import Value
from partime_async.picture import Image

try:
    from av import VideoFrame
    from av.video.reformatter import VideoReformatter
except ImportError as error:
    raise MissingDependencyError("av", "webrtc") from error


def checked_size(size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return a size (height, width) if it can be one.

    Raises:
        ConfigurationError: It is not a pair of positive numbers; the caller's fault.
    """
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ConfigurationError(f"{size!r} is no picture size. Give (height, width) in pixels, both at least 1.")
    return size


def checked_image(image: Image) -> Image:
    """Return a picture if it is one.

    Raises:
        FrameError: Its dtype or shape is wrong; the caller's fault.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 2:
        raise FrameError(
            f"a picture is uint8 of shape (height, width, 3), at least 2 by 2, not {image.dtype} of shape "
            f"{image.shape}. Convert it before show()."
        )
    return image


class PictureReader:
    """Turns decoded frames into values and pictures.

    Args:
        size: Height and width of the values in pixels; None: as they come.
        to_value: Makes the value of a picture of that size.
        keep_image: Whether the picture comes along in its own size.
    """

    def __init__(
        self, size: tuple[int, int] | None, to_value: Callable[[Image], Value], *, keep_image: bool = True
    ) -> None:
        self._size = size
        self._to_value = to_value
        self._keep_image = keep_image
        # One scaler for each of the two targets: it keeps its tables from frame to frame.
        self._whole = VideoReformatter()
        self._resized = VideoReformatter()

    def read(self, frame: VideoFrame) -> tuple[Value, Image | None]:
        """Convert one frame.

        Returns:
            The value, and the picture in its own size if it is kept.
        """
        own = (frame.height, frame.width)
        if self._size is None or self._size == own:
            small = whole = _rgb(self._whole, frame, own)
        else:
            # Straight from the decoder's picture: a detour over the whole RGB picture would be slower and coarser.
            small = _rgb(self._resized, frame, self._size)
            whole = _rgb(self._whole, frame, own) if self._keep_image else small
        return self._to_value(small), (whole if self._keep_image else None)


class PictureWriter:
    """Turns pictures into what video encoders take."""

    def __init__(self) -> None:
        self._scaler = VideoReformatter()

    def write(self, image: Image) -> VideoFrame:
        """Convert one picture; an odd last row or column is left out, as codecs halve both for the colours."""
        height, width = (side - side % 2 for side in image.shape[:2])
        rgb = VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), format="rgb24")
        # threads=1: by itself libswscale takes a thread for every core, which are the stages' to use.
        return self._scaler.reformat(rgb, format="yuv420p", threads=1)


def _rgb(scaler: VideoReformatter, frame: VideoFrame, size: tuple[int, int]) -> Image:
    height, width = size
    rgb = scaler.reformat(frame, width=width, height=height, format="rgb24", threads=1)
    image: Image = np.ascontiguousarray(np.asarray(rgb.to_ndarray(), np.uint8))
    # A frame that is RGB already comes back as it is: its memory is the sender's, who may write into it again.
    return image.copy() if rgb is frame else image
