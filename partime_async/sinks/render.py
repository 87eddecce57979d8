"""Pictures of what a network says: images as they are, feature maps as heat, vectors as bars."""

from __future__ import annotations

from enum import Enum

import numpy as np
import numpy.typing as npt
import torch

from partime_async.errors import ConfigurationError, FrameError
from partime_async.frame import Value
from partime_async.picture import Image
from partime_async.sinks.base import checked_image
from partime_async.sinks.draw import (
    GLYPH_HEIGHT,
    GLYPH_WIDTH,
    Plane,
    colour_map,
    draw_fitted,
    draw_text,
    fit,
    interpolated,
    resized,
)

BACKGROUND = (18, 17, 26)
TRACK = (40, 38, 54)
INK = (236, 232, 240)
MOST_BARS = 5
# Values this little outside [0, 1] still count as those of a picture: networks overshoot.
PICTURE_RANGE = (-0.1, 1.1)
# Share of a new frame's range in the smoothed one: at 30 frames/s it follows within about half a second.
FOLLOW = 0.08
# A percentile of this many values is as good to the eye as one of all, and much faster.
SAMPLES = 4096


class Layout(Enum):
    """Where a heat map goes."""

    OVERLAY = "overlay"  # over the input in grey
    BESIDE = "beside"  # to the right of the input


class Kind(Enum):
    """What an output is drawn as."""

    PICTURE = "picture"
    HEAT = "heat"
    BARS = "bars"


class Renderer:
    """Draws the outputs of one stream, so that brightness and bars do not flicker from frame to frame.

    How an output is drawn is decided by the first one and kept while its shape stays:

    - ``(1, 3, height, width)`` or ``(1, 1, height, width)`` with values in about [0, 1]: as a picture;
    - any other ``(1, channels, height, width)``: root mean square over the channels, as a heat map;
    - ``(1, classes)``: its largest values as bars under the input, each with its number.

    Of a tuple the first tensor with four dimensions is drawn, else the first; of a batch its first element. Heat and
    bars are scaled by the range of the recent outputs; values that are not finite count as 0.

    Args:
        size: Width and height of the pictures; None: the input's, or without one the output's (twice as wide when a map
            is drawn beside an input, higher by the bars).
        layout: Where a heat map goes if there is an input.

    Raises:
        ConfigurationError: A size that cannot be; the caller's fault.
    """

    def __init__(self, *, size: tuple[int, int] | None = None, layout: Layout = Layout.OVERLAY) -> None:
        if size is not None and min(size) < 1:
            raise ConfigurationError(f"{size!r} is no picture size. Give (width, height) in pixels, both at least 1.")
        self._size = size
        self._layout = layout
        self._shape: tuple[int, ...] | None = None
        self._kind = Kind.HEAT
        self._range: npt.NDArray[np.float64] | None = None

    def render(self, output: Value, image: Image | None = None) -> Image:
        """Draw one output.

        Args:
            output: What the network gave, on any device, of any real dtype.
            image: The input as a picture; None: there is none.

        Returns:
            uint8, ``(height, width, 3)``, newly made.

        Raises:
            FrameError: `image` is no picture, or the output has more than four dimensions; the caller's fault.
        """
        if image is not None:
            checked_image(image)
        values = _shown(output)
        if values.shape != self._shape:
            self._shape, self._kind, self._range = values.shape, _kind(values), None
        if self._kind is Kind.PICTURE:
            return self._framed(_as_picture(values))
        if self._kind is Kind.BARS:
            return self._bars(values, image)
        return self._heat(values, image)

    def _framed(self, picture: Image) -> Image:
        if self._size is None:
            return picture
        canvas = _canvas(self._size)
        draw_fitted(picture, canvas)
        return canvas

    def _heat(self, values: Plane, image: Image | None) -> Image:
        energy = np.sqrt(np.mean(np.square(values), axis=0))
        low, high = self._smoothed(*np.percentile(_sample(energy), (2.0, 99.0)))
        heat = np.clip((energy - np.float32(low)) / np.float32(max(high - low, 1e-12)), 0.0, 1.0)
        if image is None:
            own = energy.shape[1], energy.shape[0]
            return self._framed(_coloured(interpolated(heat, fit(own, self._size or own))))
        own = image.shape[1], image.shape[0]
        if self._layout is Layout.OVERLAY:
            inner = fit(own, self._size or own)
            return self._framed(_overlaid(interpolated(heat, inner), resized(image, inner)))
        width, height = self._size or (2 * own[0], own[1])
        canvas = _canvas((width, height))
        half = width // 2
        draw_fitted(image, canvas[:, :half])
        draw_fitted(_coloured(interpolated(heat, fit(own, (half, height)))), canvas[:, half:])
        return canvas

    def _bars(self, values: Plane, image: Image | None) -> Image:
        vector = values.ravel()
        top = np.argsort(-vector, kind="stable")[:MOST_BARS]
        is_share = bool(vector.min() >= 0.0 and abs(float(vector.sum()) - 1.0) < 1e-3)
        low, high = (0.0, 1.0) if is_share else self._smoothed(min(0.0, float(vector.min())), float(vector.max()))
        width, height = self._size or _size_with_bars(image, len(top))
        scale = _scale(width)
        row = (GLYPH_HEIGHT + 4) * scale
        shown = min(len(top), max(1, height // row))
        canvas = _canvas((width, height))
        above = height - shown * row - 2 * scale
        if image is not None and above > 0:
            draw_fitted(image, canvas[:above])
        strip = canvas[max(0, above) :]
        digits = len(str(len(vector) - 1))
        for place, index in enumerate(top[:shown]):
            share = float(np.clip((vector[index] - low) / max(high - low, 1e-12), 0.0, 1.0))
            _bar(strip, place, f"{index:>{digits}}".strip(), digits, share, scale)
        return canvas

    def _smoothed(self, low: float, high: float) -> tuple[float, float]:
        """Follow the range of the outputs slowly, and return it."""
        new = np.array([low, high], np.float64)
        self._range = new if self._range is None else self._range + FOLLOW * (new - self._range)
        return float(self._range[0]), float(self._range[1])


def render(output: Value, image: Image | None, *, size: tuple[int, int] | None = None) -> Image:
    """Draw one output on its own; for a stream use a `Renderer`, which does not flicker.

    Args:
        output: What the network gave.
        image: The input as a picture, uint8, ``(height, width, 3)``; None: there is none.
        size: Width and height of the result; None: see `Renderer`.

    Returns:
        uint8, ``(height, width, 3)``.

    Raises:
        FrameError: `image` is no picture, or the output has more than four dimensions; the caller's fault.
    """
    return Renderer(size=size).render(output, image)


def _shown(output: Value) -> Plane:
    """Choose what to draw: ``(channels, height, width)`` or a vector, float32 on the CPU, finite."""
    if isinstance(output, tuple):
        output = next((tensor for tensor in output if tensor.ndim == 4), output[0])
    if output.ndim > 4 or 0 in output.shape:
        raise FrameError(f"an output of shape {tuple(output.shape)} cannot be drawn. Give one of 1 to 4 dimensions.")
    first = output.detach()
    first = first[0] if first.ndim > 1 else first.reshape(-1)
    first = first[None] if first.ndim == 2 else first
    values: Plane = first.to("cpu", torch.float32).numpy()
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def _kind(values: Plane) -> Kind:
    if values.ndim == 1:
        return Kind.BARS
    low, high = np.percentile(_sample(values), (1.0, 99.0))
    is_picture = values.shape[0] in (1, 3) and PICTURE_RANGE[0] <= low and high <= PICTURE_RANGE[1]
    return Kind.PICTURE if is_picture else Kind.HEAT


def _sample(values: Plane) -> Plane:
    flat = values.ravel()
    return flat[:: max(1, flat.size // SAMPLES)]


def _as_picture(values: Plane) -> Image:
    picture = np.clip(values.transpose(1, 2, 0), 0.0, 1.0) * np.float32(255.0) + np.float32(0.5)
    return np.ascontiguousarray(np.broadcast_to(picture.astype(np.uint8), (*values.shape[1:], 3)))


def _coloured(heat: Plane) -> Image:
    return np.asarray(colour_map()[(heat * np.float32(255.0)).astype(np.uint8)])


def _overlaid(heat: Plane, base: Image) -> Image:
    """Lay heat over a picture in grey: cold places show the picture, hot ones the colour."""
    # Darkened by a quarter, so that the colours stand out. By hand, as a matrix product could start BLAS threads.
    red, green, blue = base[..., 0], base[..., 1], base[..., 2]
    grey = red * np.float32(0.225) + green * np.float32(0.44) + blue * np.float32(0.085)
    # Bent, so that middling heat does not hide the picture.
    share = (np.float32(0.10) + np.float32(0.75) * heat * np.sqrt(heat))[..., None]
    colour = _coloured(heat).astype(np.float32)
    return np.asarray(grey[..., None] + (colour - grey[..., None]) * share, np.uint8)


def _canvas(size: tuple[int, int]) -> Image:
    return np.full((size[1], size[0], 3), BACKGROUND, np.uint8)


def _size_with_bars(image: Image | None, bars: int) -> tuple[int, int]:
    width, height = (160, 0) if image is None else (image.shape[1], image.shape[0])
    scale = _scale(width)
    return width, height + (bars * (GLYPH_HEIGHT + 4) + 2) * scale


def _scale(width: int) -> int:
    return max(1, width // 160)


def _bar(strip: Image, place: int, label: str, digits: int, share: float, scale: int) -> None:
    """Draw one row of the strip: the number, right-aligned, and its bar."""
    top = (2 + place * (GLYPH_HEIGHT + 4)) * scale
    pad = 3 * scale
    draw_text(
        strip,
        label,
        pad + (digits - len(label)) * GLYPH_WIDTH * scale,
        top + scale,
        scale=scale,
        colour=INK,
    )
    left = 2 * pad + digits * GLYPH_WIDTH * scale
    track = strip[top : top + (GLYPH_HEIGHT + 2) * scale, left : strip.shape[1] - pad]
    track[:] = TRACK
    track[:, : round(share * track.shape[1])] = colour_map()[round(70 + 160 * share)]
