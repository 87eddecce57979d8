"""What the command line makes of the source that the user named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from partime_async import ConfigurationError, OnError, Overflow, SourceError, SourceFrame
from partime_async.cli.intake import Shrunk, chosen_size, open_intake
from partime_async.cli.options import CutOptions, RunOptions, Size, SizeRule
from partime_async.sources import Scene
from tests.sources.clips import record


def options(source: str, model: str = "conv-a", size: Size = SizeRule.AUTO, *, is_realtime: bool = False) -> RunOptions:
    """Return what `run` is told about its source, and defaults for the rest."""
    return RunOptions(
        source=source,
        model=model,
        cut=CutOptions(None, None, None),
        size=size,
        is_realtime=is_realtime,
        overflow=Overflow.BLOCK,
        max_age_s=None,
        frames=None,
        output=None,
        seed=3,
        on_error=OnError.FAIL_FRAME,
    )


@pytest.fixture
def clip(tmp_path: Path) -> str:
    """Record a short clip of 640x272."""
    return str(record(tmp_path / "clip.mp4", frames=3, size=(640, 272)))


@pytest.mark.parametrize(
    ("rule", "own", "model", "size"),
    [
        (SizeRule.AUTO, (640, 272), "conv-a", (96, 40)),
        (SizeRule.AUTO, (48, 32), "conv-a", (48, 32)),
        (SizeRule.AUTO, (640, 272), "users:own", (640, 272)),
        (SizeRule.AUTO, (4000, 10), "conv-a", (1280, 8)),
        (SizeRule.SOURCE, (640, 272), "conv-a", (640, 272)),
        ((32, 24), (640, 272), "conv-a", (32, 24)),
    ],
)
def test_chosen_size_follows_the_rule(rule: Size, own: tuple[int, int], model: str, size: tuple[int, int]) -> None:
    """``auto`` keeps the picture's shape with about the pixels that the model suits, and never enlarges."""
    assert chosen_size(rule, own, model) == size


async def test_open_intake_of_a_clip_resizes_the_frames_and_keeps_the_pictures(clip: str) -> None:
    """The network gets small frames, the video of the results its full size."""
    intake = await open_intake(options(clip))
    frames = [frame async for frame in intake.frames]
    assert isinstance(intake.example, Tensor)
    assert intake.example.shape == (1, 3, 40, 96)
    assert intake.description.endswith("3 frames -> 96x40")
    first = frames[0]
    assert len(frames) == 3
    assert isinstance(first, SourceFrame)
    assert first.image is not None
    assert first.image.shape == (272, 640, 3)
    assert isinstance(first.value, Tensor)
    assert torch.equal(first.value, intake.example)
    intake.source.close()


async def test_open_intake_of_the_scene_passes_seed_and_pace_on() -> None:
    """The scene is that of the seed, and in real time its frames carry the time at which they were due."""
    intake = await open_intake(options("scene", size=(16, 8), is_realtime=True))
    first = await anext(intake.frames)
    await intake.frames.aclose()
    assert isinstance(first, SourceFrame)
    assert first.captured_at is not None
    assert first.image is not None
    assert (first.image == Scene(size=(16, 8), seed=3).image(0)).all()


@pytest.mark.usefixtures("importable")
async def test_open_intake_of_an_iterator_loses_no_frame() -> None:
    """The frame that was looked at first is also the first to come."""
    intake = await open_intake(options("users_own:sensor", model="users_own:small"))
    frames = [frame async for frame in intake.frames]
    await intake.frames.aclose()
    values = [frame[0] for frame in frames if isinstance(frame, tuple)]
    assert [float(value[0, 0]) for value in values] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert isinstance(intake.example, Tensor)
    assert torch.equal(intake.example, torch.zeros(1, 4))


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("users_own:nothing", SourceError, "gave no frame"),
        ("users_own:words", ConfigurationError, "gave a str, which is no frame"),
        ("no_such_file.mp4", SourceError, "No such file"),
    ],
)
async def test_open_intake_without_a_frame_says_so(source: str, error: type[Exception], words: str) -> None:
    """A source that is empty, or gives something else, is an error before anything is planned."""
    with pytest.raises(error, match=words):
        await open_intake(options(source, model="users_own:small"))


async def test_open_intake_of_pictures_for_a_network_of_vectors_is_refused() -> None:
    """What the model takes and what the source gives are both told."""
    with pytest.raises(ConfigurationError, match=r"mlp takes frames such as \(1, 256\).*\(1, 3, 64, 64\)"):
        await open_intake(options("scene", model="mlp"))


def test_shrunk_frames_keep_their_picture_and_end_with_their_pass() -> None:
    """A device is asked for its own size, and what the network gets is made of that."""
    with Scene(size=(64, 48), frames=2, realtime=True) as scene:
        frames = iter(Shrunk(scene, (16, 8)))
        first = next(frames)
        assert isinstance(first.value, Tensor)
        assert first.value.shape == (1, 3, 8, 16)
        assert first.image is not None
        assert first.image.shape == (48, 64, 3)
        assert first.captured_at is not None
        frames.interrupt()
        assert next(frames, None) is None
        frames.close()
