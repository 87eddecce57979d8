"""`Camera`, on libav's own test picture, which needs no device."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import av
import numpy as np
import pytest
import torch

from partime_async.errors import ConfigurationError, SourceError
from partime_async.sources import Camera, SourceFrame
from partime_async.sources.camera import capture_time, device_url, list_cameras
from partime_async.sources.libav import Decoder

PICTURE = "testsrc=size=96x64:rate=50"


def test_camera_stamps_frames_on_arrival() -> None:
    """Each frame carries the time at which it came, and its place on the camera's line of time."""
    before = time.monotonic()
    with Camera(PICTURE, format="lavfi", max_frames=5) as camera:
        frames = list(camera)
    captured = [frame.captured_at for frame in frames if frame.captured_at is not None]
    assert len(captured) == 5
    assert before <= captured[0]
    assert captured == sorted(captured)
    assert captured[-1] <= time.monotonic()
    assert [frame.position_s for frame in frames] == pytest.approx([0.0, 0.02, 0.04, 0.06, 0.08])


def test_camera_without_a_size_gives_what_the_device_gives() -> None:
    """The value is the device's picture over 255, and later frames do not write into it."""
    frames = list(Camera(PICTURE, format="lavfi", max_frames=3))
    for frame in frames:
        assert frame.image is not None
        assert isinstance(frame.value, torch.Tensor)
        assert torch.equal(frame.value[0], torch.from_numpy(frame.image).permute(2, 0, 1) / 255)
    assert frames[0].image is not None
    assert frames[0].image.shape == (64, 96, 3)
    assert np.ptp(frames[0].image) == 255


def test_camera_with_a_size_resizes_to_it() -> None:
    """A device that has not the size asked for is resized."""
    frame = next(iter(Camera(PICTURE, format="lavfi", size=(32, 24), keep_image=False)))
    assert isinstance(frame.value, torch.Tensor)
    assert frame.value.shape == (1, 3, 24, 32)
    assert frame.image is None


def test_camera_that_ends_ends_the_pass() -> None:
    """A device that has no more frames ends the pass; another pass opens it again."""
    camera = Camera(f"{PICTURE}:duration=0.1", format="lavfi")
    assert len(list(camera)) == 5
    assert len(list(camera)) == 5


def test_camera_describes_itself_in_one_line() -> None:
    """The description names device, format, size and rate."""
    camera = Camera(PICTURE, format="lavfi", max_frames=7)
    assert camera.describe() == f"camera {PICTURE} (lavfi): 96x64 wrapped_avframe, 50 frames/s"
    assert (camera.frame_rate, camera.frame_count) == (50.0, 7)
    camera.close()


def test_camera_closed_gives_the_device_back() -> None:
    """Closing before, during and after a pass is fine, and ends it."""
    Camera(PICTURE, format="lavfi").close()
    camera = Camera(PICTURE, format="lavfi")
    one_pass = iter(camera)
    next(one_pass)
    camera.close()
    camera.close()
    assert list(one_pass) == []


def test_camera_that_is_absent_is_an_error_that_lists_the_others() -> None:
    """A missing camera is named, with what is there instead."""
    with pytest.raises(SourceError, match=r"cannot open camera '/dev/video97' \(v4l2\).*cameras found: "):
        Camera("97", format="v4l2")


def test_camera_that_is_no_camera_is_an_error() -> None:
    """A device file of another kind, a filter that does not exist and an unknown system are refused."""
    with pytest.raises(SourceError, match=r"'/dev/null' \(v4l2\): Inappropriate ioctl"):
        Camera("/dev/null", format="v4l2")
    with pytest.raises(SourceError, match=r"'nosuchfilter' \(lavfi\)"):
        Camera("nosuchfilter", format="lavfi")
    with pytest.raises(SourceError, match=r"\(nosuchsystem\).*nosuchsystem"):
        Camera("0", format="nosuchsystem")


def test_camera_with_options_that_cannot_be_is_refused() -> None:
    """Rates, sizes and counts that make no sense are refused before any device is touched."""
    with pytest.raises(ConfigurationError, match="frame rate is 0"):
        Camera(frame_rate=0)
    with pytest.raises(ConfigurationError, match="no picture size"):
        Camera(size=(0, 1))
    with pytest.raises(ConfigurationError, match="max_frames is 0"):
        Camera(max_frames=0)


@pytest.mark.parametrize(
    ("system", "error", "options", "remedy"),
    [
        ("v4l2", av.error.PermissionError(13, "Permission denied"), {}, "group 'video'"),
        (
            "v4l2",
            av.error.OSError(16, "Device or resource busy"),
            {"size": (64, 48), "frame_rate": 12.5},
            "Close the program",
        ),
        (
            "avfoundation",
            av.error.FileNotFoundError(2, "No such device"),
            {"size": (64, 48)},
            "Connect it or choose another",
        ),
    ],
)
def test_camera_that_refuses_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, system: str, error: av.FFmpegError, options: dict[str, object], remedy: str
) -> None:
    """A camera is asked for the size and rate wanted; what it refuses, and why, decides the advice."""
    asked: dict[str, str] = {}

    def refuse(url: str, *, input_device: str, options: dict[str, str]) -> Decoder:
        asked.update(options, url=url, input_device=input_device)
        raise error

    monkeypatch.setattr("partime_async.sources.camera.Decoder", refuse)
    with pytest.raises(SourceError, match=rf"{error.strerror}\. .*{remedy}"):
        Camera("1", format=system, **options)  # type: ignore[arg-type]
    assert asked.pop("input_device") == system
    assert asked.pop("url") == ("/dev/video1" if system == "v4l2" else "1")
    expected = {"video_size": "64x48"} if "size" in options else {}
    if "frame_rate" in options or system == "avfoundation":
        expected["framerate"] = "12.5" if "frame_rate" in options else "30"
    assert asked == expected


def test_camera_that_stops_delivering_raises_after_its_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """A camera that is unplugged raises an error that names it, after the frames before."""
    _replace_demux(monkeypatch, [None, None, OSError(19, "No such device")])
    camera = iter(Camera(PICTURE, format="lavfi"))
    frames: list[SourceFrame] = []
    with pytest.raises(SourceError, match=r"camera .* stopped: No such device. Check its connection"):
        frames.extend(camera)
    assert len(frames) == 2


def test_camera_without_a_frame_yet_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that says "try again", as AVFoundation does, is tried again and loses nothing."""
    _replace_demux(monkeypatch, [BlockingIOError(11, "try again"), None, BlockingIOError(11, "try again"), None])
    frames = list(itertools.islice(Camera(PICTURE, format="lavfi"), 2))
    assert [frame.position_s for frame in frames] == pytest.approx([0.0, 0.02])


def _replace_demux(monkeypatch: pytest.MonkeyPatch, script: list[OSError | None]) -> None:
    """Make devices fail as real ones do: an error of the script is raised in place of a packet."""
    steps = iter(script)

    class Unsteady:
        def __init__(self, container: av.container.InputContainer) -> None:
            self.container = container

        def demux(self, stream: av.VideoStream) -> Iterator[av.Packet[av.VideoStream]]:
            for step in steps:
                if isinstance(step, BlockingIOError):
                    raise step
                if step is not None:
                    raise av.FFmpegError(step.errno or 0, step.strerror or "")
                yield next(self.container.demux(stream))

        def close(self) -> None:
            self.container.close()

    original = Decoder.frames

    def frames(decoder: Decoder, stop: threading.Event) -> object:
        decoder._container = Unsteady(decoder._container)  # type: ignore[assignment]
        return original(decoder, stop)

    monkeypatch.setattr(Decoder, "frames", frames)


@pytest.mark.parametrize(
    ("stamp_s", "expected"),
    [(99.98, 99.98), (100.0, 100.0), (None, 100.0), (100.5, 100.0), (1.7e9, 100.0), (3.0, 100.0)],
)
def test_capture_time_of_a_stamp_on_another_clock_is_the_arrival(stamp_s: float | None, expected: float) -> None:
    """The kernel's stamp counts only if it lies shortly before the arrival."""
    assert capture_time(stamp_s, 100.0) == expected


@pytest.mark.parametrize(
    ("device", "system", "expected"),
    [
        ("2", "v4l2", "/dev/video2"),
        ("/dev/video3", "v4l2", "/dev/video3"),
        ("1", "avfoundation", "1"),
        ("Front", "dshow", "video=Front"),
        ("video=Front", "dshow", "video=Front"),
    ],
)
def test_device_url_of_a_number_or_name_is_what_libav_calls_it(device: str, system: str, expected: str) -> None:
    """Numbers and names become what the system's input device wants."""
    assert device_url(device, system) == expected


def test_list_cameras_where_there_are_none_is_empty() -> None:
    """A system that is not this one has no cameras, and asking for them is no error."""
    assert list_cameras("dshow") == []
