"""What the demo paints: outlines, panels, the scene's looks, and the stranger."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from torch import Tensor

from partime_async.iteration import aiter_frames
from partime_async.serve.demo.networks import HEIGHT, WIDTH
from partime_async.serve.demo.pictures import CLASS_COLOURS, PANEL, evidence_over, forecast_panels
from partime_async.serve.demo.scene import LOOKS, VISIT_S, LiveScene, seen, stranger_at, with_stranger

GREY = np.full((240, 320, 3), 100, np.uint8)


def test_evidence_is_outlined_in_the_colour_of_its_class() -> None:
    """Around the strongest evidence runs a line in the class's colour; what is inside keeps its brightness."""
    evidence = np.zeros((9, 12), np.float32)
    evidence[3:6, 4:8] = 1.0
    picture = evidence_over(GREY, evidence, 1, 1.0, (320, 240))
    assert np.any(np.all(picture == CLASS_COLOURS[1].astype(np.uint8), axis=2))
    assert picture[120, 160, 0] == 100
    assert picture[5, 5, 0] < 80


@pytest.mark.parametrize("evidence", [None, np.full((9, 12), -1.0, np.float32), np.full((9, 12), np.nan, np.float32)])
def test_evidence_that_speaks_for_nothing_leaves_the_picture_alone(evidence: np.ndarray | None) -> None:
    """Without evidence, or with one that is not finite, the picture is what came."""
    assert np.array_equal(evidence_over(GREY, evidence, 0, 1.0, (320, 240)), GREY)


def test_panels_of_a_forecast_stand_side_by_side() -> None:
    """The picture, the forecast and the heat are one picture of three panels; a forecast out of range is cut off."""
    forecast = np.full((3, HEIGHT, WIDTH), 1.7, np.float32)
    heat = np.zeros((HEIGHT, WIDTH), np.float32)
    heat[:, WIDTH // 2 :] = 1.0
    panels = forecast_panels(GREY, forecast, heat)
    width, height = PANEL
    assert panels.shape == (height, 3 * width, 3)
    assert int(panels[50, 50, 0]) == 100
    assert int(panels[50, width + 50, 0]) == 255
    assert int(panels[50, 2 * width + 10, 0]) < 60
    assert int(panels[50, 3 * width - 10, 0]) > 200


async def test_scene_comes_at_its_own_pace_and_changes_its_look() -> None:
    """Frames are for the network and for people, are stamped when they are due, and show the look that was chosen."""
    scene = LiveScene((64, 48))
    frames = aiter_frames(scene)
    first = await anext(frames)
    scene.look = 1
    others = [await anext(frames) for _ in range(6)]
    await frames.aclose()
    assert isinstance(first.value, Tensor)
    assert first.value.shape == (1, 3, HEIGHT, WIDTH)
    assert first.image is not None
    assert others[-1].image is not None
    assert np.abs(first.image.mean((0, 1)) - others[-1].image.mean((0, 1))).max() > 20
    stamps = [frame.captured_at for frame in (first, *others) if frame.captured_at is not None]
    assert len(stamps) == 7
    assert all(after > before for before, after in itertools.pairwise(stamps))
    assert stamps[-1] <= time.monotonic()
    assert len(LOOKS) == 3


def test_stranger_crosses_the_picture_and_leaves_the_original_alone() -> None:
    """It comes from the left, goes to the right, is seen by the network, and is painted into a copy."""
    frame = seen(GREY.copy(), 1.0, 2.0)
    middle = with_stranger(frame, VISIT_S / 2)
    assert frame.image is not None
    assert middle.image is not None
    assert np.array_equal(frame.image, GREY)
    x, y, _ = stranger_at(VISIT_S / 2)
    assert 0.4 < x < 0.6
    near = middle.image[int(y * 240) - 10 : int(y * 240) + 10, int(x * 320) - 10 : int(x * 320) + 10]
    assert near.std() > 50
    assert isinstance(middle.value, Tensor)
    assert isinstance(frame.value, Tensor)
    assert float((middle.value - frame.value).abs().max()) > 0.2
    assert np.array_equal(np.asarray(with_stranger(frame, 0.0).image), GREY)
    assert np.array_equal(np.asarray(with_stranger(frame, VISIT_S).image), GREY)
