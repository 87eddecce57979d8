"""Small drawing on numpy pictures: a colour map, resizing, bars and numbers."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from partime_async.picture import Image

Plane: TypeAlias = npt.NDArray[np.float32]

# Each row of a glyph as three bits, top row first.
GLYPHS = {
    "0": (7, 5, 5, 5, 7),
    "1": (2, 6, 2, 2, 7),
    "2": (7, 1, 7, 4, 7),
    "3": (7, 1, 7, 1, 7),
    "4": (5, 5, 7, 1, 1),
    "5": (7, 4, 7, 1, 7),
    "6": (7, 4, 7, 5, 7),
    "7": (7, 1, 2, 2, 2),
    "8": (7, 5, 7, 5, 7),
    "9": (7, 5, 7, 1, 7),
    ".": (0, 0, 0, 0, 2),
    "-": (0, 0, 7, 0, 0),
    "e": (0, 7, 7, 4, 7),
    "+": (0, 2, 7, 2, 0),
}
GLYPH_HEIGHT = 5
GLYPH_WIDTH = 4  # with the gap to the next one


@lru_cache(maxsize=1)
def colour_map() -> Image:
    """Make a colour map of 256 steps from night violet over red and orange to pale yellow, ``(256, 3)``.

    Its lightness rises evenly: equal steps of the value look equal, also in grey and to most colour-blind people.

    Source: the OKLab colour space of Björn Ottosson, https://bottosson.github.io/posts/oklab/.
    """
    step = np.linspace(0.0, 1.0, 256)
    lightness = 0.14 + 0.82 * step
    hue = np.deg2rad(np.interp(step, [0.0, 0.3, 0.6, 1.0], [283.0, 318.0, 390.0, 462.0]))
    chroma = np.interp(step, [0.0, 0.25, 0.55, 0.8, 1.0], [0.06, 0.16, 0.19, 0.15, 0.09])
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.stack(
        [
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ],
        axis=-1,
    ).clip(0.0, 1.0)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(encoded * 255.0), np.uint8)


def resized(picture: Image, size: tuple[int, int]) -> Image:
    """Resize a picture, averaging when it shrinks and interpolating when it grows.

    Args:
        picture: uint8, ``(height, width, 3)``.
        size: Width and height of the result.
    """
    width, height = size
    if picture.shape[:2] == (height, width):
        return picture
    # Whole pixels are averaged first: interpolation alone would skip pixels and flicker.
    by_y, by_x = max(1, picture.shape[0] // height), max(1, picture.shape[1] // width)
    planes = picture.astype(np.float32)
    if by_y > 1 or by_x > 1:
        rows, columns = picture.shape[0] // by_y, picture.shape[1] // by_x
        planes = planes[: rows * by_y, : columns * by_x].reshape(rows, by_y, columns, by_x, 3).mean(axis=(1, 3))
    return np.asarray(interpolated(planes, size) + np.float32(0.5), np.uint8)


def interpolated(plane: Plane, size: tuple[int, int]) -> Plane:
    """Interpolate linearly between pixel centres; ``(height, width)`` or ``(height, width, channels)``."""
    for axis, length in ((0, size[1]), (1, size[0])):
        if plane.shape[axis] != length:
            first, second, weight = _taps(plane.shape[axis], length)
            share = weight.reshape((-1,) + (1,) * (plane.ndim - 1 - axis))
            start = plane.take(first, axis)
            plane = start + (plane.take(second, axis) - start) * share
    return plane


@lru_cache(maxsize=16)
def _taps(have: int, want: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Plane]:
    place = np.clip((np.arange(want) + 0.5) * (have / want) - 0.5, 0.0, have - 1.0)
    first = np.floor(place).astype(np.intp)
    return first, np.minimum(first + 1, have - 1), (place - first).astype(np.float32)


def fit(picture: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """Return the largest size of a picture that fits into a canvas and keeps its shape, as width and height."""
    scale = min(canvas[0] / picture[0], canvas[1] / picture[1])
    return max(1, round(picture[0] * scale)), max(1, round(picture[1] * scale))


def draw_fitted(picture: Image, canvas: Image) -> None:
    """Draw a picture as large as fits into a canvas, in its middle, without distorting it."""
    height, width = canvas.shape[:2]
    size = fit((picture.shape[1], picture.shape[0]), (width, height))
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    canvas[top : top + size[1], left : left + size[0]] = resized(picture, size)


def draw_text(canvas: Image, words: str, left: int, top: int, *, scale: int, colour: tuple[int, int, int]) -> None:
    """Write digits, clipped at the canvas' edges.

    Args:
        canvas: What to write on.
        words: Made of the characters of `GLYPHS`.
        left: Where the first character starts.
        top: Where its upper edge is.
        scale: Pixels of the canvas for one pixel of a character.
        colour: RGB, 0 to 255.
    """
    mask = np.kron(_dots(words), np.ones((scale, scale), bool))
    box = canvas[top : top + mask.shape[0], left : left + mask.shape[1]]
    box[mask[: box.shape[0], : box.shape[1]]] = colour


@lru_cache(maxsize=256)
def _dots(words: str) -> npt.NDArray[np.bool_]:
    dots = np.zeros((GLYPH_HEIGHT, GLYPH_WIDTH * len(words)), bool)
    for place, character in enumerate(words):
        for row, bits in enumerate(GLYPHS[character]):
            dots[row, GLYPH_WIDTH * place : GLYPH_WIDTH * place + 3] = [bits & 4, bits & 2, bits & 1]
    return dots
