"""`VideoWriter`, read back by `VideoFile`."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import partime_async.sinks
from partime_async.errors import ConfigurationError, FrameError, MissingDependencyError, SinkError
from partime_async.sinks import VideoWriter
from partime_async.sources import Scene, VideoFile
from tests.sources.clips import Image, number_of, numbered

SIZE = (64, 48)


def read(path: Path) -> tuple[list[int], list[float]]:
    """Return the numbers and positions of the frames of a video."""
    frames = list(VideoFile(path))
    images = [frame.image for frame in frames if frame.image is not None]
    return [number_of(image) for image in images], [frame.position_s or 0.0 for frame in frames]


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.mov", "libx264"), ("a.avi", "mpeg4")]
)
def test_video_writer_by_its_suffix_writes_what_can_be_read(tmp_path: Path, name: str, codec: str) -> None:
    """Every picture comes back once, in order, at the frame rate."""
    with VideoWriter(tmp_path / name, frame_rate=25) as writer:
        for index in range(20):
            writer.write(numbered(index, SIZE))
        assert (writer.frames, writer.codec) == (20, codec)
    numbers, positions = read(tmp_path / name)
    assert numbers == list(range(20))
    assert positions == pytest.approx([index / 25 for index in range(20)])
    assert VideoFile(tmp_path / name).frame_rate == 25


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "mpeg4"), ("a.avi", "libx264"), ("a.webm", None), ("a.webm", "libvpx"), ("a.gif", None)],
)
def test_video_writer_of_another_codec_writes_what_can_be_read(tmp_path: Path, name: str, codec: str | None) -> None:
    """A codec that was asked for, or that the container prefers, is used."""
    with VideoWriter(tmp_path / name, frame_rate=25, codec=codec) as writer:
        for index in range(10):
            writer.write(numbered(index, SIZE))
        assert codec in {None, writer.codec}
    assert read(tmp_path / name)[0] == list(range(10))


def test_video_writer_of_a_film_rate_keeps_it_exactly(tmp_path: Path) -> None:
    """A rate such as 29.97 is the fraction that it stands for."""
    with VideoWriter(tmp_path / "a.mp4", frame_rate=29.97) as writer:
        for index in range(10):
            writer.write(numbered(index, SIZE))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(30000, 1001)


def test_video_writer_with_positions_keeps_them(tmp_path: Path) -> None:
    """Pictures are shown when their positions say, counted from the first one, those without one a frame later."""
    positions = [7.0, 7.04, 7.05, None, 9.0, None]
    with VideoWriter(tmp_path / "a.mp4", frame_rate=25) as writer:
        for index, position_s in enumerate(positions):
            writer.write(numbered(index, SIZE), position_s)
    numbers, read_back = read(tmp_path / "a.mp4")
    assert numbers == list(range(6))
    assert read_back == pytest.approx([0.0, 0.04, 0.05, 0.09, 2.0, 2.04], abs=1e-4)


def test_video_writer_with_falling_positions_still_rises(tmp_path: Path) -> None:
    """Time stamps in the file strictly increase, whatever the positions do."""
    with VideoWriter(tmp_path / "a.mp4", frame_rate=25) as writer:
        for index, position_s in enumerate([1.0, 1.0, 0.5, 2.0]):
            writer.write(numbered(index, SIZE), position_s)
    numbers, positions = read(tmp_path / "a.mp4")
    assert numbers == [0, 1, 2, 3]
    assert positions == pytest.approx([0.0, 0.0, 0.0, 1.0], abs=1e-3)
    assert positions == sorted(set(positions))


def test_video_writer_starting_without_positions_joins_them(tmp_path: Path) -> None:
    """The first position that comes takes the place that is next."""
    with VideoWriter(tmp_path / "a.mp4", frame_rate=25) as writer:
        for index, position_s in enumerate([None, None, 50.0, 50.1]):
            writer.write(numbered(index, SIZE), position_s)
    assert read(tmp_path / "a.mp4")[1] == pytest.approx([0.0, 0.04, 0.08, 0.18], abs=1e-4)


def test_video_writer_into_a_container_of_fixed_rate_skips_whole_frames(tmp_path: Path) -> None:
    """AVI, which has one rate, shows a picture at the nearest tick of it."""
    with VideoWriter(tmp_path / "a.avi", frame_rate=25) as writer:
        for index, position_s in enumerate([0.0, 0.05, 0.2]):
            writer.write(numbered(index, SIZE), position_s)
    assert read(tmp_path / "a.avi")[1] == pytest.approx([0.0, 0.04, 0.2])


def test_video_writer_of_odd_pictures_repeats_the_last_line(tmp_path: Path) -> None:
    """Odd sides grow by one pixel, of the colour at the edge."""
    image = np.full((45, 63, 3), 40, np.uint8)
    image[-1], image[:, -1] = 200, 200
    with VideoWriter(tmp_path / "a.mp4", frame_rate=25) as writer:
        writer.write(image)
    frame = next(iter(VideoFile(tmp_path / "a.mp4"))).image
    assert frame is not None
    assert frame.shape == (46, 64, 3)
    assert frame[:, -1].mean() == pytest.approx(200, abs=12)
    assert frame[:44, :62].mean() == pytest.approx(40, abs=6)


def test_video_writer_with_a_size_resizes_to_it(tmp_path: Path) -> None:
    """Pictures of any size fit into the size that was asked for, made even."""
    with VideoWriter(tmp_path / "a.mp4", frame_rate=25, size=(79, 40)) as writer:
        writer.write(numbered(3, SIZE))
        writer.write(numbered(4, (128, 80)))
        writer.write(numbered(5, (79, 40)))
    images = [frame.image for frame in VideoFile(tmp_path / "a.mp4") if frame.image is not None]
    assert [image.shape for image in images] == [(40, 80, 3)] * 3
    assert [number_of(image) for image in images] == [3, 4, 5]


def test_video_writer_keeps_the_colours(tmp_path: Path) -> None:
    """What was written looks the same when it is read."""
    scene = Scene(size=(160, 120))
    with VideoWriter(tmp_path / "a.mp4", frame_rate=30) as writer:
        for index in range(5):
            writer.write(scene.image(index))
    for index, frame in enumerate(VideoFile(tmp_path / "a.mp4")):
        assert frame.image is not None
        difference = frame.image.astype(int) - scene.image(index)
        assert np.abs(difference).mean() < 5
        assert np.abs(difference.mean(axis=(0, 1))).max() < 2


def test_video_writer_takes_any_memory_layout(tmp_path: Path) -> None:
    """A picture may be a view: mirrored, transposed, or read-only."""
    image = numbered(9, SIZE)
    view: Image = image[:, ::-1][:, ::-1]
    view.flags.writeable = False
    with VideoWriter(tmp_path / "a.mp4", frame_rate=25) as writer:
        writer.write(view)
        writer.write(np.asfortranarray(image))
    assert read(tmp_path / "a.mp4")[0] == [9, 9]


def test_video_writer_shows_its_file_only_when_it_is_closed(tmp_path: Path) -> None:
    """An older file stays as it was until the new one is whole; nothing else is left."""
    path = tmp_path / "a.mp4"
    path.write_text("older")
    writer = VideoWriter(path, frame_rate=25)
    writer.write(numbered(1, SIZE))
    assert path.read_text() == "older"
    writer.close()
    writer.close()
    assert read(path)[0] == [1]
    assert list(tmp_path.iterdir()) == [path]


def test_video_writer_left_by_an_error_leaves_nothing(tmp_path: Path) -> None:
    """An exception in the block removes what was written and keeps an older file."""
    (tmp_path / "a.mp4").write_text("older")
    writer = VideoWriter(tmp_path / "a.mp4", frame_rate=25)

    def write_and_fail() -> None:
        with writer:
            writer.write(numbered(1, SIZE))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_text() == "older"
    writer.close()
    with pytest.raises(SinkError, match="is closed"):
        writer.write(numbered(1, SIZE))


def test_video_writer_without_a_picture_leaves_no_file(tmp_path: Path) -> None:
    """A video of nothing is not written."""
    with VideoWriter(tmp_path / "a.mp4", frame_rate=25):
        pass
    assert not list(tmp_path.iterdir())


def test_video_writer_to_a_place_that_cannot_be_says_why(tmp_path: Path) -> None:
    """Folders that are missing, or in the place of the file, and unknown suffixes are refused at once."""
    with pytest.raises(SinkError, match=r"nowhere.a\.mp4: No such file or directory. Choose a folder that exists"):
        VideoWriter(tmp_path / "nowhere" / "a.mp4", frame_rate=25)
    with pytest.raises(SinkError, match="is a folder"):
        VideoWriter(tmp_path, frame_rate=25)
    for name, suffix in (("a.pdf", r"\.pdf"), ("a", "no suffix")):
        with pytest.raises(SinkError, match=rf"no video format for .*{suffix}.*Use \.mp4"):
            VideoWriter(tmp_path / name, frame_rate=25)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "codec", "cause"),
    [
        ("a.mp4", "nosuchcodec", "no encoder is called 'nosuchcodec'"),
        ("a.webm", "libx264", "does not support"),
        ("a.mp4", "aac", "not for video"),
        ("a.wav", None, "takes no video"),
    ],
)
def test_video_writer_with_a_codec_that_cannot_be_says_why(
    tmp_path: Path, name: str, codec: str | None, cause: str
) -> None:
    """Codecs that are unknown, not the container's, or not for video are refused at once, leaving nothing."""
    with pytest.raises(SinkError, match=rf"no codec for .*{cause}.*choose another"):
        VideoWriter(tmp_path / name, frame_rate=25, codec=codec)
    assert not list(tmp_path.iterdir())


def test_video_writer_with_options_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """Rates and sizes that make no sense are named."""
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match="frame rate is"):
            VideoWriter(tmp_path / "a.mp4", frame_rate=rate)
    with pytest.raises(ConfigurationError, match="no picture size"):
        VideoWriter(tmp_path / "a.mp4", frame_rate=25, size=(0, 2))


@pytest.mark.parametrize("image", [np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_video_writer_of_what_is_no_picture_refuses_it_and_goes_on(tmp_path: Path, image: Image) -> None:
    """A wrong dtype or shape is refused with what it is; the file is not harmed."""
    with VideoWriter(tmp_path / "a.mp4", frame_rate=25) as writer:
        writer.write(numbered(1, SIZE))
        with pytest.raises(FrameError, match="a picture is uint8 of shape"):
            writer.write(image)
        with pytest.raises(SinkError, match="cannot be shown at nan s"):
            writer.write(numbered(1, SIZE), float("nan"))
        writer.write(numbered(2, SIZE))
    assert read(tmp_path / "a.mp4")[0] == [1, 2]


def test_video_writer_whose_disk_fails_removes_the_file(tmp_path: Path) -> None:
    """A target that cannot take its name at the end is an error that leaves nothing."""
    writer = VideoWriter(tmp_path / "a.mp4", frame_rate=25)
    writer.write(numbered(1, SIZE))
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(SinkError, match="cannot finish"):
        writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_video_writer_on_a_full_disk_is_an_error(tmp_path: Path) -> None:
    """A full disk ends the writing with an error that says so."""
    writer = VideoWriter(tmp_path / "a.mkv", frame_rate=25)
    writer._part.unlink()
    writer._part.symlink_to("/dev/full")

    def write_much() -> None:
        with writer:
            for index in range(200):
                writer.write(np.random.default_rng(index).integers(0, 255, (96, 128, 3), np.uint8))

    with pytest.raises(SinkError, match=r"a\.mkv.*[Nn]o space left"):
        write_much()
    assert not list(tmp_path.iterdir())


def test_sinks_without_pyav_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the writer needs PyAV, and says how to get it; a mistyped name stays an error."""
    monkeypatch.delitem(sys.modules, "partime_async.sinks.video", raising=False)
    monkeypatch.setitem(sys.modules, "av", None)
    assert partime_async.sinks.Renderer().render(torch.ones(1, 3)).any()
    with pytest.raises(MissingDependencyError, match=r"partime-async\[video\]"):
        _ = partime_async.sinks.VideoWriter
    with pytest.raises(AttributeError, match="no attribute 'VideoWriters'"):
        partime_async.sinks.VideoWriters  # noqa: B018
