"""What every sink for pictures is."""

from __future__ import annotations

from typing import ParamSpec, Protocol

import numpy as np

from partime_async.errors import FrameError
from partime_async.picture import Image

P = ParamSpec("P")


class Sink(Protocol[P]):
    """Where results go. All three methods may block; call them from one thread."""

    def write(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Take one item."""

    def close(self) -> None:
        """Finish what was written and make it final; further calls do nothing."""

    def abort(self) -> None:
        """Throw away what was written; does nothing after `close`."""


def checked_image(image: Image) -> Image:
    """Return a picture if it is one.

    Raises:
        FrameError: Its dtype or shape is wrong; the caller's fault.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise FrameError(
            f"a picture is uint8 of shape (height, width, 3), not {image.dtype} of shape {image.shape}. "
            "Use render() to make one of a network's output."
        )
    return image
