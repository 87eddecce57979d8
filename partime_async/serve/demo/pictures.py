"""What the returned videos show; everything here runs on a show's thread."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from partime_async.picture import Image
from partime_async.serve.demo.memory import THUMBNAIL
from partime_async.sinks.draw import colour_map, interpolated, resized

Plane: TypeAlias = npt.NDArray[np.float32]

PANEL = (256, 192)
"""Width and height of each of the three pictures of the forecast."""

OUTLINED = 0.5
"""Share of the strongest evidence from which on a place is inside the outline."""

# The page has the same ones, in the same order: style.css, --class-0 and on.
CLASS_COLOURS = np.array(
    [
        [255, 138, 61],
        [56, 160, 255],
        [61, 205, 140],
        [240, 96, 150],
        [176, 132, 255],
        [250, 204, 40],
        [40, 200, 210],
        [230, 90, 70],
        [150, 180, 60],
    ],
    np.float32,
)


def evidence_over(image: Image, evidence: Plane | None, label: int, share: float, size: tuple[int, int]) -> Image:
    """Outline what speaks most for a class, in the class's colour, and dim what does not.

    Args:
        image: What the camera saw.
        evidence: How much each place speaks for it, any unit, ``(rows, columns)``; None: nothing is outlined.
        label: The class.
        share: How sure the network is, 0 to 1.
        size: Width and height of the result.
    """
    picture = resized(image, size)
    if evidence is None:
        return picture
    peak = float(evidence.max())
    if not np.isfinite(peak) or peak <= 0.0:
        return picture
    glow = interpolated(np.clip(evidence / np.float32(peak), 0.0, 1.0), size)
    certainty = np.float32(max(0.0, 2.0 * share - 1.0))
    planes = picture * (np.float32(1.0) - np.float32(0.25) * certainty * (np.float32(1.0) - glow))[..., None]
    outline = _outline(glow > OUTLINED)
    planes[outline] += (CLASS_COLOURS[label] - planes[outline]) * certainty
    return np.asarray(planes, np.uint8)


def _outline(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the pixels on both sides of the edge of a mask."""
    edge = np.zeros_like(mask)
    across, down = mask[:, 1:] != mask[:, :-1], mask[1:] != mask[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def thumbnail(image: Image) -> Image:
    """Return a tiny copy of a picture."""
    return resized(image, THUMBNAIL)


def forecast_panels(image: Image, forecast: Plane, heat: Plane) -> Image:
    """Put three pictures side by side: what came, what was expected, and how surprising the difference is.

    Args:
        image: What came.
        forecast: What was expected, float32 in about [0, 1], ``(3, height, width)``.
        heat: 0 to 1, ``(height, width)``.

    Returns:
        uint8, three times as wide as a panel.
    """
    width, height = PANEL
    canvas = np.empty((height, 3 * width, 3), np.uint8)
    picture = resized(image, PANEL)
    canvas[:, :width] = picture
    expected = np.clip(forecast, 0.0, 1.0) * np.float32(255.0)
    canvas[:, width : 2 * width] = interpolated(np.ascontiguousarray(expected.transpose(1, 2, 0)), PANEL)
    canvas[:, 2 * width :] = _glowing(picture, interpolated(heat, PANEL))
    return canvas


def _glowing(picture: Image, heat: Plane) -> Image:
    """Lay heat over a dimmed grey picture, which keeps the place of things."""
    grey = picture[..., 1].astype(np.float32) * np.float32(0.35)
    share = np.sqrt(np.clip(heat, 0.0, 1.0))[..., None]
    colour = colour_map()[(heat * np.float32(255.0)).astype(np.uint8)].astype(np.float32)
    return np.asarray(grey[..., None] * (1.0 - share) + colour * share, np.uint8)
