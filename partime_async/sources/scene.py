"""A moving scene made of nothing but numbers: the source that every machine has."""

from __future__ import annotations

import threading
from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from partime_async.errors import ConfigurationError, SourceError
from partime_async.frame import SourceFrame
from partime_async.picture import Image, to_value
from partime_async.sources.base import BlockingSource, checked_count, checked_size
from partime_async.sources.timeline import Schedule

Plane: TypeAlias = npt.NDArray[np.float32]

TAU = 2.0 * np.pi
SHAPES = ("disc", "box", "ring", "star", "box", "disc")
TEXTURES = ("stripes", "dots", "plain", "checks", "stripes", "checks")
# One palette for all seeds, chosen to stay apart from the blue-violet background and from each other.
COLOURS = np.array(
    [
        [0.98, 0.72, 0.20],
        [0.95, 0.36, 0.34],
        [0.30, 0.78, 0.68],
        [0.99, 0.93, 0.80],
        [0.62, 0.84, 0.36],
        [0.96, 0.55, 0.72],
    ],
    np.float32,
)
INKS = np.array(
    [
        [0.85, 0.38, 0.12],
        [0.99, 0.86, 0.78],
        [0.12, 0.42, 0.48],
        [0.80, 0.25, 0.30],
        [0.16, 0.48, 0.30],
        [0.48, 0.18, 0.46],
    ],
    np.float32,
)


@dataclass(frozen=True, slots=True)
class _Body:
    """One moving thing. Lengths are in picture heights, times in seconds, angles in radians."""

    shape: str
    texture: str
    colour: Plane
    ink: Plane
    radius: float
    # The path is a sum of two slow swings per axis: smooth, never leaving the picture for long, hardly ever repeating.
    swing: npt.NDArray[np.float64]  # (axis, term, (amplitude, rate, phase))
    angle: float
    spin: float


class Scene(BlockingSource):
    """A smooth, endless scene: textured bodies drift, turn and pass before each other over a slowly changing sky.

    The same seed gives the same frames bit for bit, in any order, on any run on one machine. The motion is in seconds:
    a higher `frame_rate` makes smaller steps, not a faster world.

    Args:
        size: Width and height in pixels, at least 8 each.
        frame_rate: Frames per second of the scene's own time.
        frames: How many frames one pass gives; None: it never ends.
        seed: Chooses paths, sizes and the order of the bodies.
        realtime: Whether a pass gives each frame when it is due, as a camera would, or as fast as it is asked.

    Raises:
        ConfigurationError: A size, rate or count that cannot be; the caller's fault.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int] = (64, 64),
        frame_rate: float = 30.0,
        frames: int | None = None,
        seed: int = 0,
        realtime: bool = False,
    ) -> None:
        super().__init__()
        checked_size(size)
        if min(size) < 8:
            raise ConfigurationError(
                f"a scene of {size[0]}x{size[1]} shows nothing. Make both sides at least 8 pixels."
            )
        if not frame_rate > 0:
            raise ConfigurationError(f"the frame rate is {frame_rate}. Give a positive number of frames per second.")
        self._size = size
        self._frame_rate = float(frame_rate)
        self._count = checked_count("frames", frames)
        self._seed = seed
        self._is_realtime = realtime
        width, height = size
        # Pixel centres in picture heights, so that a scene looks the same in every resolution.
        self._x = ((np.arange(width) + 0.5) / height).astype(np.float32)[None, :]
        self._y = ((np.arange(height) + 0.5) / height).astype(np.float32)[:, None]
        self._bodies = _bodies(np.random.default_rng(seed), width / height)

    @property
    def frame_rate(self) -> float | None:
        """Frames per second of the scene's own time."""
        return self._frame_rate

    @property
    def frame_count(self) -> int | None:
        """How many frames one pass gives; None: it never ends."""
        return self._count

    def describe(self) -> str:
        """Say in one line what the source is."""
        length = "endless" if self._count is None else f"{self._count} frames"
        return f"moving scene {self._seed}: {self._size[0]}x{self._size[1]}, {self._frame_rate:g} frames/s, {length}"

    def image(self, index: int) -> Image:
        """Paint one frame.

        Args:
            index: Number of the frame, from 0.

        Returns:
            uint8, ``(height, width, 3)``, RGB, newly made.

        Raises:
            SourceError: The scene has no such frame; the caller's fault.
        """
        if index < 0 or (self._count is not None and index >= self._count):
            raise SourceError(f"{self.describe()} has no frame {index}. Ask for one from 0 on.")
        time_s = index / self._frame_rate
        canvas = _sky(self._x, self._y, time_s)
        for body in self._bodies:
            _paint(canvas, body, self._x, self._y, time_s)
        _saturate(canvas)
        canvas *= np.float32(255.0)
        canvas += np.float32(0.5)
        return np.ascontiguousarray(canvas.astype(np.uint8).transpose(1, 2, 0))

    def _frames(self, stop: threading.Event) -> Generator[SourceFrame, None, None]:
        schedule = Schedule(stop) if self._is_realtime else None
        index = 0
        while self._count is None or index < self._count:
            position_s = index / self._frame_rate
            image = self.image(index)
            captured_at = schedule.wait(position_s) if schedule else None
            if stop.is_set():
                return
            yield SourceFrame(to_value(image), captured_at, position_s, image)
            index += 1


def _bodies(random: np.random.Generator, aspect: float) -> tuple[_Body, ...]:
    """Choose the bodies, the farthest first."""
    bodies = []
    for place, kind in enumerate(random.permutation(len(SHAPES))):
        nearness = place / (len(SHAPES) - 1)
        # Reaches of the two swings: together a little over the picture's edge.
        reach = np.array([aspect, 1.0])[:, None] * np.array([0.36, 0.16]) * random.uniform(0.85, 1.1, (2, 2))
        rate = np.array([0.034, 0.085]) * random.uniform(0.75, 1.25, (2, 2)) * (0.7 + 0.6 * nearness)
        phase = random.uniform(0.0, TAU, (2, 2))
        bodies.append(
            _Body(
                shape=SHAPES[kind],
                texture=TEXTURES[kind],
                colour=COLOURS[kind],
                ink=INKS[kind],
                radius=0.11 + 0.07 * nearness + float(random.uniform(-0.015, 0.015)),
                swing=np.stack([reach, TAU * rate, phase], axis=-1),
                angle=float(random.uniform(0.0, TAU)),
                spin=float(random.choice([-1.0, 1.0]) * random.uniform(0.12, 0.4)),
            )
        )
    return tuple(bodies)


def _sky(x: Plane, y: Plane, time_s: float) -> Plane:
    """Paint the background: two slow waves of colour and a warm light that wanders, ``(3, height, width)``."""
    aspect = float(x[0, -1])
    across = np.sin(x * np.float32(2.4 / aspect) + np.float32(0.11 * time_s))
    down = np.cos(y * np.float32(2.8) - np.float32(0.07 * time_s))
    light_x = np.float32(aspect * (0.5 + 0.38 * np.sin(0.13 * time_s + 1.0)))
    light_y = np.float32(0.40 + 0.30 * np.cos(0.09 * time_s))
    light = np.float32(0.10) / (np.float32(0.10) + (x - light_x) ** 2 + (y - light_y) ** 2)
    turn = np.sin(0.05 * time_s + np.array([0.0, 0.9, 1.8]))
    canvas = np.empty((3, y.size, x.size), np.float32)
    for channel, (base, swing, glow) in enumerate(((0.15, 0.08, 0.42), (0.16, 0.06, 0.30), (0.36, 0.10, 0.22))):
        strength = np.float32(swing * (1.0 + 0.5 * turn[channel]))
        # The waves depend on one axis each: added while they are still thin.
        np.multiply(light, np.float32(glow), out=canvas[channel])
        canvas[channel] += across * strength + np.float32(base)
        canvas[channel] += down * strength
    return canvas


def _paint(canvas: Plane, body: _Body, x: Plane, y: Plane, time_s: float) -> None:
    """Paint one body and its shadow over the canvas, touching only the box around it."""
    reach, rate, phase = body.swing[..., 0], body.swing[..., 1], body.swing[..., 2]
    height = y.size
    aspect = x.size / height
    centre = np.array([aspect, 1.0]) / 2 + (reach * np.sin(rate * time_s + phase)).sum(axis=1)
    fall = 0.22 * body.radius  # how far the shadow lies to the lower right
    soft = 0.35 * body.radius
    outer = 1.12 * body.radius + soft
    left, right = _span(float(centre[0]), outer, fall, x.size, height)
    top, bottom = _span(float(centre[1]), outer, fall, height, height)
    if left >= right or top >= bottom:
        return
    box = canvas[:, top:bottom, left:right]
    dx = x[:, left:right] - np.float32(centre[0])
    dy = y[top:bottom] - np.float32(centre[1])
    box *= _shadow(dx - np.float32(fall), dy - np.float32(fall), body.radius, soft)
    angle = body.angle + body.spin * time_s
    cosine, sine = np.float32(np.cos(angle) / body.radius), np.float32(np.sin(angle) / body.radius)
    u = dx * cosine + dy * sine
    v = dy * cosine - dx * sine
    # One pixel wide edge: coverage falls from 1 to 0 over the pixel in which the distance changes its sign.
    cover = _saturate(np.float32(0.5) - _distance(body.shape, u, v) * np.float32(body.radius * height))
    pattern = _pattern(body.texture, u, v, np.float32(body.radius * height))
    # A soft light from the upper left gives the flat shapes a body.
    shade = np.float32(0.96) - (dx + dy) * np.float32(0.17 / body.radius)
    paint = pattern * (body.ink - body.colour)[:, None, None]
    paint += body.colour[:, None, None]
    paint = paint * shade
    paint -= box
    paint *= cover
    box += paint


def _span(centre: float, outer: float, fall: float, pixels: int, height: int) -> tuple[int, int]:
    start = int(np.floor((centre - outer) * height))
    return max(start, 0), min(int(np.ceil((centre + outer + fall) * height)), pixels)


def _shadow(dx: Plane, dy: Plane, radius: float, soft: float) -> Plane:
    """Return how much light is left around a round shadow with a soft rim."""
    distance = np.sqrt(dx * dx + dy * dy)
    depth = _saturate((np.float32(radius + soft) - distance) * np.float32(1.0 / (2.0 * soft)))
    depth *= depth
    return np.float32(1.0) - np.float32(0.42) * depth


def _distance(shape: str, u: Plane, v: Plane) -> Plane:
    """Return the signed distance from a shape's edge in its own radii, negative inside."""
    if shape == "box":
        rounding = np.float32(0.22)
        inner = np.float32(0.80) - rounding
        over = np.maximum(np.abs(u) - inner, 0.0) ** 2 + np.maximum(np.abs(v) - inner, 0.0) ** 2
        return np.asarray(np.sqrt(over) - rounding, np.float32)
    radius = np.sqrt(u * u + v * v)
    if shape == "ring":
        return np.abs(radius - np.float32(0.72)) - np.float32(0.28)
    if shape == "star":
        # Five soft points: the radius of the edge swings with the angle.
        edge = np.float32(0.80) + np.float32(0.20) * np.cos(np.float32(5.0) * np.arctan2(v, u))
        return np.asarray((radius - edge) * np.float32(0.75), np.float32)
    return radius - np.float32(1.0)


def _saturate(plane: Plane) -> Plane:
    """Bring a plane into [0, 1], in place. `np.clip` costs several times as much on the small boxes here."""
    np.maximum(plane, np.float32(0.0), out=plane)
    np.minimum(plane, np.float32(1.0), out=plane)
    return plane


def _pattern(texture: str, u: Plane, v: Plane, pixels: np.float32) -> Plane:
    """Return how much of the second colour shows, 0 to 1, with edges one pixel wide."""
    if texture == "plain":
        return np.zeros((1, 1), np.float32)
    if texture == "stripes":
        wave, frequency = np.sin(u * np.float32(9.0)), 9.0
    elif texture == "checks":
        wave, frequency = np.sin(u * np.float32(7.0)) * np.sin(v * np.float32(7.0)), 7.0
    else:
        wave, frequency = np.cos(u * np.float32(10.0)) * np.cos(v * np.float32(10.0)) - np.float32(0.35), 10.0
    return _saturate(wave * (pixels / np.float32(frequency)) + np.float32(0.5))
