"""`Scene`: smooth, endless, and the same every time."""

from __future__ import annotations

import time
from itertools import islice, pairwise

import numpy as np
import pytest
import torch

from partime_async.errors import ConfigurationError, SourceError
from partime_async.sources import Scene


def test_scene_with_one_seed_is_the_same_bit_for_bit() -> None:
    """Two scenes of one seed agree in every bit, whatever the order of asking; another seed differs."""
    first, second, other = Scene(seed=3), Scene(seed=3), Scene(seed=4)
    later = second.image(70)
    assert np.array_equal(first.image(0), second.image(0))
    assert np.array_equal(first.image(70), later)
    assert not np.array_equal(first.image(70), other.image(70))


def test_scene_iterated_gives_its_images_by_number() -> None:
    """Frames come in order, as pictures and as values, at their positions, and a second pass repeats the first."""
    scene = Scene(size=(48, 32), frame_rate=20.0, frames=5)
    for _ in range(2):
        frames = list(scene)
        assert [frame.position_s for frame in frames] == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
        for index, frame in enumerate(frames):
            assert frame.image is not None
            assert np.array_equal(frame.image, scene.image(index))
            assert isinstance(frame.value, torch.Tensor)
            assert frame.value.shape == (1, 3, 32, 48)
            assert torch.equal(frame.value[0], torch.from_numpy(frame.image).permute(2, 0, 1) / 255)
            assert frame.captured_at is None


def test_scene_moves_smoothly_and_never_stands_still() -> None:
    """From frame to frame the picture changes a little, and always."""
    images = [frame.image.astype(float) for frame in islice(Scene(), 90) if frame.image is not None]
    spread = np.mean([image.std() for image in images])
    steps = [np.sqrt(np.mean((after - before) ** 2)) / spread for before, after in pairwise(images)]
    assert min(steps) > 0.02
    assert max(steps) < 0.5


def test_scene_at_another_rate_or_size_shows_the_same_world() -> None:
    """Twice the rate shows the same moment at twice the number; a larger picture shows the same scene."""
    assert np.array_equal(Scene(frame_rate=30.0).image(7), Scene(frame_rate=60.0).image(14))
    small, large = Scene(size=(64, 48)).image(40), Scene(size=(256, 192)).image(40)
    shrunk = large.reshape(48, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - small).mean() < 6


@pytest.mark.parametrize("seed", range(5))
def test_scene_of_any_seed_is_full_of_things_that_hide_each_other(seed: int) -> None:
    """Every seed shows strong colours on most of its frames, over ten minutes of motion."""
    scene = Scene(seed=seed)
    strong = [np.ptp(scene.image(index).astype(int), axis=2).max() > 120 for index in range(0, 18_000, 450)]
    assert np.mean(strong) > 0.9


def test_scene_in_realtime_stamps_frames_with_their_due_time() -> None:
    """In real time frames are captured exactly one period apart, and never come early."""
    captured = []
    for frame in Scene(size=(16, 16), frame_rate=200.0, frames=4, realtime=True):
        assert frame.captured_at is not None
        assert frame.captured_at <= time.monotonic()
        captured.append(frame.captured_at)
    assert [stamp - captured[0] for stamp in captured] == pytest.approx([0.0, 0.005, 0.010, 0.015])


def test_scene_closed_ends_its_passes() -> None:
    """Closing ends an endless pass, and no new one begins."""
    with Scene(size=(16, 16)) as scene:
        one_pass = iter(scene)
        next(one_pass)
    assert list(one_pass) == []
    with pytest.raises(SourceError, match=r"moving scene 0.* is closed"):
        iter(scene)


def test_scene_describes_itself_in_one_line() -> None:
    """The description names seed, size, rate and length."""
    assert Scene().describe() == "moving scene 0: 64x64, 30 frames/s, endless"
    assert Scene(frames=9, seed=2).describe() == "moving scene 2: 64x64, 30 frames/s, 9 frames"
    assert (Scene(frames=9).frame_count, Scene().frame_count, Scene().frame_rate) == (9, None, 30.0)


def test_scene_with_options_that_cannot_be_is_refused() -> None:
    """Sizes, rates and counts that make no sense, and frames that do not exist, are named."""
    with pytest.raises(ConfigurationError, match="7x64"):
        Scene(size=(7, 64))
    with pytest.raises(ConfigurationError, match="frame rate is 0"):
        Scene(frame_rate=0)
    with pytest.raises(ConfigurationError, match="frames is 0"):
        Scene(frames=0)
    with pytest.raises(SourceError, match="no frame 9"):
        Scene(frames=9).image(9)
    with pytest.raises(SourceError, match="no frame -1"):
        Scene().image(-1)
