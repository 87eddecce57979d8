"""The processed video: what is drawn for which output, and that all of it is in the file."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from partime_async.cli.output import Levels, ProcessedVideo, is_picture
from partime_async.sources import Scene

SMALL = Scene(size=(64, 48)).image(0)
LARGE = Scene(size=(640, 272)).image(0)


def drawn(path: Path, output: Tensor | tuple[Tensor, ...], image: np.ndarray | None) -> np.ndarray:
    """Return the picture of one result."""
    video = ProcessedVideo(str(path / "out.mp4"), frame_rate=25.0)
    picture = video.draw(output, image)
    video.abort()
    return picture


@pytest.mark.parametrize(
    ("shape", "image", "size"),
    [
        ((1, 3, 12, 16), SMALL, (240, 644)),  # pictures: beside the input, enlarged to 320x240
        ((1, 3, 40, 96), LARGE, (548, 640)),  # below a wide one
        ((1, 32, 12, 16), SMALL, (240, 320)),  # feature maps: over the input
        ((1, 3, 12, 16), None, (240, 320)),  # no input: the output alone, enlarged
    ],
)
def test_draw_of_maps_and_pictures_has_a_size_that_can_be_seen(
    tmp_path: Path, shape: tuple[int, ...], image: np.ndarray | None, size: tuple[int, int]
) -> None:
    """Where the output goes depends on what it is."""
    assert drawn(tmp_path, torch.rand(shape), image).shape == (*size, 3)


@pytest.mark.parametrize("shape", [(1, 10), (1, 10, 1, 1)])
def test_draw_of_a_vector_puts_bars_below_the_input(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """One value a channel for the whole frame is a vector, however it is shaped."""
    picture = drawn(tmp_path, torch.rand(shape), LARGE)
    assert picture.shape[1] == 640
    assert picture.shape[0] > 272
    assert (picture[:272] == LARGE).all()


def test_draw_of_a_tuple_takes_its_picture(tmp_path: Path) -> None:
    """Of several outputs the one that is a picture is shown."""
    picture = drawn(tmp_path, (torch.rand(1, 10), torch.rand(1, 3, 12, 16)), SMALL)
    assert picture.shape == (240, 644, 3)
    assert (picture[:, :320] == SMALL.repeat(5, axis=0).repeat(5, axis=1)).all()


def test_is_picture_of_values_beyond_0_and_1_is_false() -> None:
    """Feature maps are no pictures, and neither are integers."""
    assert is_picture(torch.rand(1, 3, 4, 4))
    assert is_picture(torch.rand(1, 1, 4, 4).to(torch.bfloat16))
    assert not is_picture(torch.rand(1, 3, 4, 4) * 2.0)
    assert not is_picture(torch.rand(1, 2, 4, 4))
    assert not is_picture(torch.zeros(1, 3, 4, 4, dtype=torch.int64))


def test_levels_stretch_dull_pictures_and_leave_others_alone() -> None:
    """An untrained network's grey becomes visible; a picture that uses its range is shown as it is."""
    dull = 0.5 + 0.1 * torch.rand(1, 3, 16, 16)
    stretched = Levels().stretched(dull)
    assert stretched.min() == 0.0
    assert stretched.max() == 1.0
    bright = torch.rand(1, 3, 16, 16)
    assert Levels().stretched(bright) is bright


def test_levels_follow_the_stream_slowly() -> None:
    """A frame that is suddenly brighter comes out brighter."""
    levels = Levels()
    dull = 0.5 + 0.1 * torch.rand(1, 3, 16, 16)
    before = levels.stretched(dull).mean()
    assert levels.stretched(dull + 0.05).mean() > before + 0.2


def test_write_of_every_result_is_in_the_file(tmp_path: Path) -> None:
    """The finished file has the frames at their places; before that there is none."""
    path = tmp_path / "out.mp4"
    video = ProcessedVideo(str(path), frame_rate=25.0)
    for index in range(5):
        video.write(torch.rand(1, 8, 12, 16), SMALL, 10.0 + 0.08 * index)
    assert video.finished_frames == 0
    assert not path.exists()
    video.close()
    assert video.finished_frames == 5
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([0.0, 0.08, 0.16, 0.24, 0.32], abs=1e-3)
