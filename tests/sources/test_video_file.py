"""`VideoFile`, on recorded and on found videos."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from partime_async.errors import ConfigurationError, SourceError
from partime_async.sources import SourceFrame, VideoFile
from tests.sources.clips import Image, installed_clip, number_of, numbered, record, record_sound


def picture(frame: SourceFrame) -> Image:
    """Return the picture that a frame must have."""
    assert frame.image is not None
    return frame.image


def numbers(video: VideoFile) -> list[int]:
    """Return the numbers that the frames of one pass show."""
    return [number_of(picture(frame)) for frame in video]


def tensor(frame: SourceFrame) -> torch.Tensor:
    """Return the one tensor of a frame."""
    assert isinstance(frame.value, torch.Tensor)
    return frame.value


@pytest.mark.parametrize(
    ("name", "size", "rate", "count"),
    [("bikes.mp4", (640, 272), 25.0, 250), ("carphone_pristine.mp4", (176, 144), 30000 / 1001, 120)],
)
def test_video_file_of_a_real_clip_gives_every_frame(name: str, size: tuple[int, int], rate: float, count: int) -> None:
    """A clip from the world gives all its frames, of its size, at its own positions."""
    with VideoFile(installed_clip(name)) as video:
        assert video.frame_rate == pytest.approx(rate)
        assert video.frame_count == count
        frames = [(frame.position_s, tensor(frame).shape, tensor(frame).mean().item()) for frame in video]
    assert len(frames) == count
    assert {shape for _, shape, _ in frames} == {(1, 3, size[1], size[0])}
    assert [position for position, _, _ in frames] == pytest.approx([index / rate for index in range(count)], abs=1e-4)
    assert all(0.05 < mean < 0.95 for _, _, mean in frames)


def test_video_file_without_a_size_gives_its_pictures_as_values(tmp_path: Path) -> None:
    """Without a size the value is the picture over 255, float32, contiguous, and has memory of its own."""
    frame = next(iter(VideoFile(record(tmp_path / "a.mp4"))))
    value = tensor(frame)
    assert value.dtype == torch.float32
    assert value.is_contiguous()
    expected = torch.from_numpy(picture(frame).astype(np.float32) / np.float32(255)).permute(2, 0, 1)[None]
    assert torch.equal(value, expected)
    assert frame.captured_at is None


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "mpeg4"), ("a.avi", "mpeg4"), ("a.webm", "libvpx"), ("a.ts", "libx264")],
)
def test_video_file_of_any_container_gives_its_frames_in_order(tmp_path: Path, name: str, codec: str) -> None:
    """Whatever the container and codec, each frame comes once, in the order of display."""
    assert numbers(VideoFile(record(tmp_path / name, codec=codec))) == list(range(12))


def test_video_file_read_twice_gives_the_same_frames(tmp_path: Path) -> None:
    """Two passes, also at the same time, do not disturb each other."""
    video = VideoFile(record(tmp_path / "a.mp4"))
    pairs = list(zip(video, video, strict=True))
    assert len(pairs) == 12
    assert all(np.array_equal(picture(first), picture(second)) for first, second in pairs)


def test_video_file_with_a_size_resizes_the_value_only(tmp_path: Path) -> None:
    """The value has the size asked for and the look of the picture, which stays as it was."""
    frame = next(iter(VideoFile(record(tmp_path / "a.mp4", first=255), size=(32, 16))))
    assert tensor(frame).shape == (1, 3, 16, 32)
    assert picture(frame).shape == (48, 64, 3)
    blocks = picture(frame).reshape(16, 3, 32, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1) / 255
    assert np.abs(tensor(frame)[0].numpy() - blocks).mean() < 0.02


def test_video_file_not_keeping_images_gives_values_only(tmp_path: Path) -> None:
    """Without pictures the values are the same."""
    path = record(tmp_path / "a.mp4")
    kept = next(iter(VideoFile(path, size=(32, 24))))
    bare = next(iter(VideoFile(path, size=(32, 24), keep_image=False)))
    assert bare.image is None
    assert torch.equal(tensor(bare), tensor(kept))


@pytest.mark.parametrize(
    ("turn", "quarters", "is_mirrored"),
    [((90.0, False), 1, False), ((-90.0, False), 3, False), ((180.0, False), 2, False), ((0.0, True), 0, True)],
)
def test_video_file_with_an_orientation_comes_upright(
    tmp_path: Path, turn: tuple[float, bool], quarters: int, is_mirrored: bool
) -> None:
    """A display matrix turns and mirrors the pictures, exactly as it says."""
    plain = picture(next(iter(VideoFile(record(tmp_path / "plain.mp4", first=5)))))
    turned = next(iter(VideoFile(record(tmp_path / "turned.mp4", first=5, turn=turn))))
    expected = np.rot90(plain[:, ::-1] if is_mirrored else plain, quarters)
    assert np.array_equal(picture(turned), expected)
    assert tensor(turned).shape[2:] == expected.shape[:2]


def test_video_file_turned_and_resized_has_the_size_asked_for(tmp_path: Path) -> None:
    """A size means the picture as displayed, not as stored."""
    video = VideoFile(record(tmp_path / "a.mp4", turn=(90.0, False)), size=(20, 30))
    assert tensor(next(iter(video))).shape == (1, 3, 30, 20)


@pytest.mark.parametrize("pixels", ["yuv420p", "yuvj420p", "yuv444p", "yuv420p10le"])
def test_video_file_of_any_pixel_format_gives_true_colours(tmp_path: Path, pixels: str) -> None:
    """Limited and full range, every chroma layout and more bits come out as the colours that went in."""
    codec = "mjpeg" if pixels == "yuvj420p" else "libx264"
    frame = next(iter(VideoFile(record(tmp_path / "a.mkv", codec=codec, pixels=pixels, frames=2))))
    for x in (16, 48):
        assert np.abs(picture(frame)[36, x].astype(int) - numbered(0, (64, 48))[36, x]).max() < 16


def test_video_file_of_odd_size_gives_that_size(tmp_path: Path) -> None:
    """Sides need not be even."""
    path = record(tmp_path / "a.mkv", codec="ffv1", pixels="bgr0", size=(67, 45))
    frame = next(iter(VideoFile(path)))
    assert picture(frame).shape == (45, 67, 3)


def test_video_file_of_variable_rate_gives_its_own_time_stamps(tmp_path: Path) -> None:
    """Positions are the file's time stamps, not multiples of a rate."""
    stamps_ms = [0, 40, 50, 300, 340, 2000]
    video = VideoFile(record(tmp_path / "a.mkv", frames=6, stamps_ms=stamps_ms))
    assert [frame.position_s for frame in video] == pytest.approx([stamp / 1000 for stamp in stamps_ms])


def test_video_file_without_time_stamps_counts_at_its_rate(tmp_path: Path) -> None:
    """A bare stream of pictures, which has no time stamps, is placed by its rate, also after a start."""
    path = record(tmp_path / "a.h264")
    video = VideoFile(path)
    assert video.frame_rate == 25
    assert [frame.position_s for frame in video] == pytest.approx([index / 25 for index in range(12)])
    assert numbers(VideoFile(path, start_s=0.2)) == list(range(5, 12))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_video_file_started_later_gives_the_frames_from_there(tmp_path: Path, name: str) -> None:
    """A start between two key frames gives exactly the frames from there on."""
    path = record(tmp_path / name, frames=30, options={"g": "10"})
    video = VideoFile(path, start_s=0.6)
    assert numbers(video) == list(range(15, 30))
    assert next(iter(video)).position_s == pytest.approx(0.6)


def test_video_file_with_max_frames_ends_there(tmp_path: Path) -> None:
    """A pass gives no more than was asked for, and says so before."""
    video = VideoFile(record(tmp_path / "a.mp4"), max_frames=5, start_s=0.08)
    assert video.frame_count == 5
    assert numbers(video) == [2, 3, 4, 5, 6]


def test_video_file_looped_starts_over_while_positions_rise(tmp_path: Path) -> None:
    """A looped file goes round from its start, on one line of time."""
    video = VideoFile(record(tmp_path / "a.mp4", frames=4), loop=True, max_frames=10, start_s=0.04)
    frames = list(video)
    assert [number_of(picture(frame)) for frame in frames] == [1, 2, 3, 1, 2, 3, 1, 2, 3, 1]
    assert [frame.position_s for frame in frames] == pytest.approx([0.04 * (index + 1) for index in range(10)])
    assert VideoFile(tmp_path / "a.mp4", loop=True).frame_count is None


def test_video_file_in_realtime_stamps_frames_with_their_due_time(tmp_path: Path) -> None:
    """In real time a frame never comes early, and its time of capture is when it was due."""
    video = VideoFile(record(tmp_path / "a.mkv", frames=4, stamps_ms=[0, 10, 15, 60]), realtime=True)
    captured = []
    for frame in video:
        assert frame.captured_at is not None
        assert frame.captured_at <= time.monotonic()
        captured.append(frame.captured_at)
    assert [stamp - captured[0] for stamp in captured] == pytest.approx([0.0, 0.010, 0.015, 0.060])


def test_video_file_closed_while_it_waits_ends_at_once(tmp_path: Path) -> None:
    """Closing ends a pass that waits in another thread for a frame that is due in 1000 seconds."""
    video = VideoFile(record(tmp_path / "a.mkv", frames=2, stamps_ms=[0, 1_000_000]), realtime=True)
    came: list[SourceFrame] = []
    has_first = threading.Event()

    def read() -> None:
        for frame in video:
            came.append(frame)
            has_first.set()

    reader = threading.Thread(target=read)
    reader.start()
    has_first.wait()
    video.close()
    reader.join()
    assert len(came) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="open files are listed in /proc only on Linux")
def test_video_file_closed_midway_leaves_no_file_open(tmp_path: Path) -> None:
    """Closing gives the file back, though the pass is still held; closing again does nothing."""
    path = record(tmp_path / "a.mp4")

    def is_open() -> bool:
        return path in {link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}

    video = VideoFile(path)
    assert not is_open()
    one_pass = iter(video)
    next(one_pass)
    assert is_open()
    video.close()
    video.close()
    assert not is_open()
    assert list(one_pass) == []
    with pytest.raises(SourceError, match="is closed"):
        iter(video)


def test_video_file_that_is_absent_is_an_error_with_its_path(tmp_path: Path) -> None:
    """A wrong path is named."""
    with pytest.raises(SourceError, match=r"nowhere\.mp4.*No such file.*Check the path"):
        VideoFile(tmp_path / "nowhere.mp4")


def test_video_file_that_is_no_video_is_an_error_with_the_cause(tmp_path: Path) -> None:
    """Folders, texts, empty files and sounds are refused with their path and what is wrong."""
    empty, words = tmp_path / "empty.mp4", tmp_path / "words.mp4"
    empty.touch()
    words.write_text("This is no video. " * 100)
    for path, cause in ((tmp_path, "directory"), (empty, "Invalid data"), (words, "Invalid data")):
        with pytest.raises(SourceError, match=cause) as caught:
            VideoFile(path)
        assert str(path) in str(caught.value)
    with pytest.raises(SourceError, match=r"no video stream; it holds audio"):
        VideoFile(record_sound(tmp_path / "sound.wav"))


@pytest.mark.parametrize(("name", "container"), [("a.mkv", {}), ("a.ts", {}), ("a.mp4", {"movflags": "faststart"})])
def test_video_file_cut_short_gives_what_is_there(tmp_path: Path, name: str, container: dict[str, str]) -> None:
    """A truncated file gives its beginning, frame by frame, and then ends."""
    path = record(tmp_path / name, frames=100, container=container)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    given = numbers(VideoFile(path))
    assert 10 < len(given) < 100
    assert given[:-2] == list(range(len(given) - 2))  # the last ones may be half a picture


def test_video_file_without_its_index_is_an_error(tmp_path: Path) -> None:
    """An MP4 that lost its end, where its index is, cannot be opened."""
    path = record(tmp_path / "a.mp4", frames=50)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(SourceError, match=r"complete video file"):
        VideoFile(path)


def test_video_file_with_damage_skips_and_counts_it(tmp_path: Path) -> None:
    """Packets that cannot be decoded are counted, and the rest still comes."""
    path = record(tmp_path / "a.mp4", frames=100, options={"g": "5"})
    data = bytearray(path.read_bytes())
    middle = len(data) // 3
    data[middle : middle + 600] = bytes(600)
    path.write_bytes(data)
    video = VideoFile(path)
    given = numbers(video)
    assert 50 < len(given) < 100
    assert given[-1] == 99
    assert video.corrupt_packets > 0
    assert video.broken_by is None


def test_video_file_with_nothing_to_decode_is_an_error(tmp_path: Path) -> None:
    """A file whose every packet is damaged ends in an error, also when looped, and does not turn for ever."""
    path = record(tmp_path / "a.mp4", frames=10, codec="mpeg4", container={"movflags": "faststart"})
    data = path.read_bytes()
    start = data.index(b"mdat") + 4
    path.write_bytes(data[:start] + bytes(len(data) - start))
    for loop in (False, True):
        with pytest.raises(SourceError, match=r"no frame of .* can be decoded"):
            list(VideoFile(path, loop=loop))


def test_video_file_that_changes_its_size_keeps_the_first(tmp_path: Path) -> None:
    """A stream joined from two sizes gives all its frames in the size of the first."""
    first, second = record(tmp_path / "a.ts", size=(64, 48)), record(tmp_path / "b.ts", size=(128, 96), first=12)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    frames = list(VideoFile(joined))
    assert {tensor(frame).shape for frame in frames} == {(1, 3, 48, 64)}
    assert number_of(picture(frames[-1])) == 23


def test_video_file_with_options_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """Sizes, counts and starts that make no sense are refused when the file is opened."""
    path = record(tmp_path / "a.mp4")
    with pytest.raises(ConfigurationError, match=r"\(0, 5\) is no picture size"):
        VideoFile(path, size=(0, 5))
    with pytest.raises(ConfigurationError, match="max_frames is 0"):
        VideoFile(path, max_frames=0)
    with pytest.raises(ConfigurationError, match="start_s is -1"):
        VideoFile(path, start_s=-1)
    with pytest.raises(SourceError, match=r"start_s is 7, but .* lasts 0\.480 s"):
        VideoFile(path, start_s=7)


def test_video_file_describes_itself_in_one_line(tmp_path: Path) -> None:
    """The description names path, size, codec, rate and length."""
    video = VideoFile(record(tmp_path / "a.mp4"))
    assert video.describe() == f"{tmp_path / 'a.mp4'}: 64x48 h264, 25 frames/s, 12 frames"
