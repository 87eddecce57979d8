"""What the predicting mode takes for the pictures before, and for a gap."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from partime_async.frame import SourceFrame
from partime_async.iteration import aiter_frames
from partime_async.serve.demo import predicting_recipe
from partime_async.serve.demo.engine import Engine
from partime_async.serve.demo.predict import Following, PredictShow


@pytest.fixture
def show() -> PredictShow:
    """Return a show that was not started: what it gives to the network needs none."""
    return PredictShow(Engine(predicting_recipe(), name="test"), lambda: aiter_frames([]), name="test")


def frame(number: int, captured_at: float | None) -> SourceFrame:
    """Return a frame with a number in it."""
    return SourceFrame(torch.full((1, 3, 2, 2), float(number)), captured_at, None, np.zeros((2, 2, 3), np.uint8))


def told(followed: SourceFrame | None) -> tuple[list[float], list[float], bool]:
    """Return the numbers of what goes in and of the target, and whether it is regular."""
    assert isinstance(followed, Following)
    assert isinstance(followed.value, tuple)
    assert isinstance(followed.target, tuple)
    numbers = [[float(part.mean()) for part in pair] for pair in (followed.value, followed.target)]
    return numbers[0], numbers[1], followed.is_regular


async def test_show_gives_the_two_pictures_before_and_the_newest_as_target(show: PredictShow) -> None:
    """The first two pictures only wait; then the newer one comes first, and the target is the newest."""
    assert show.prepare(frame(0, 0.0)) is None
    assert show.prepare(frame(1, 0.1)) is None
    assert told(show.prepare(frame(2, 0.2))) == ([1.0, 0.0], [2.0, 1.0], True)
    assert told(show.prepare(frame(3, 0.3))) == ([2.0, 1.0], [3.0, 2.0], True)


async def test_show_with_a_picture_missing_says_so_for_as_long_as_it_matters(show: PredictShow) -> None:
    """After a picture that did not come two forecasts are out of step; after them all is regular again."""
    for number in range(10):
        show.prepare(frame(number, number / 30))
    steps = [told(show.prepare(frame(number, number / 30)))[2] for number in (11, 12, 13)]
    assert steps == [False, False, True]


async def test_show_after_a_long_gap_begins_anew(show: PredictShow) -> None:
    """Pictures from before a pause, as of a sleeping laptop, are no base for a forecast."""
    for number in range(5):
        show.prepare(frame(number, number / 30))
    assert show.prepare(frame(5, 60.0)) is None
    assert show.prepare(frame(6, 60.03)) is None
    assert told(show.prepare(frame(7, 60.06)))[:2] == ([6.0, 5.0], [7.0, 6.0])


async def test_show_of_a_source_without_stamps_takes_all_pictures_as_regular(show: PredictShow) -> None:
    """Without times of capture every picture follows the one before."""
    for number in range(2):
        show.prepare(frame(number, None))
    assert told(show.prepare(frame(2, None)))[2]
