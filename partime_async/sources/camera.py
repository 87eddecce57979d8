"""Cameras, read by libav's input devices."""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

from partime_async.errors import ConfigurationError, SourceError
from partime_async.frame import SourceFrame
from partime_async.sources.base import BlockingSource, checked_count, checked_size
from partime_async.sources.libav import Decoder, LibavError, PictureMaker, cause_of, device_names
from partime_async.sources.timeline import Timeline

DEVICE_FORMATS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}
DEFAULT_RATE = 30.0  # of devices that state none
# A kernel time stamp older than this is on another clock than ours.
OLDEST_STAMP_S = 10.0


class Camera(BlockingSource):
    """The frames of a camera, as ``(1, 3, height, width)`` in [0, 1], each stamped with its time of capture.

    Opening starts the device and blocks; so does `next`, until the device has a frame: what is stuck in a device that
    stopped delivering cannot be interrupted. One pass at a time.

    The time of capture is the kernel's own stamp where the device gives one (V4L2), which also counts the time a frame
    spent in the driver's buffers; otherwise the moment the frame arrived.

    Args:
        device: Number of the camera, or what the system calls it: a path such as ``/dev/video0`` (V4L2), a name
            (DirectShow, AVFoundation).
        size: Width and height in pixels: asked of the device, and resized to if it gives another size.
        frame_rate: Frames per second asked of the device, which takes the nearest it has or refuses.
        format: The libav input device; None: that of this system. ``"lavfi"`` makes `device` a filter graph such as
            ``testsrc``, a camera for machines without one.
        max_frames: How many frames a pass gives at most.
        keep_image: Whether frames carry the unresized picture; without it less is converted.

    Raises:
        SourceError: There is no such camera, it is in use, or it refuses what was asked; the text lists the cameras.
        ConfigurationError: An option that cannot be; the caller's fault.
    """

    def __init__(
        self,
        device: str = "0",
        *,
        size: tuple[int, int] | None = None,
        frame_rate: float | None = None,
        format: str | None = None,  # noqa: A002 - the word of libav and its tools
        max_frames: int | None = None,
        keep_image: bool = True,
    ) -> None:
        super().__init__()
        self._input_device = format or DEVICE_FORMATS.get(sys.platform, "v4l2")
        self._device = device_url(device, self._input_device)
        self._size = checked_size(size)
        if frame_rate is not None and not frame_rate > 0:
            raise ConfigurationError(f"the frame rate is {frame_rate}. Give a positive number of frames per second.")
        self._asked_rate = frame_rate
        self._max_frames = checked_count("max_frames", max_frames)
        self._keep_image = keep_image
        # Opened here so that a missing camera is an error at once; the first pass takes it over.
        self._opened: Decoder | None = self._open()
        self._frame_rate = self._opened.frame_rate
        self._kind = self._opened.describe()

    @property
    def frame_rate(self) -> float | None:
        """Frames per second that the device promised."""
        return self._frame_rate

    @property
    def frame_count(self) -> int | None:
        """How many frames a pass gives; None: it goes on until it is closed."""
        return self._max_frames

    def describe(self) -> str:
        """Say in one line what the source is."""
        return f"camera {self._device} ({self._input_device}): {self._kind}"

    def close(self) -> None:
        """End the pass and give the device back; further calls do nothing."""
        super().close()
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    def _open(self) -> Decoder:
        options = {}
        if self._size is not None:
            options["video_size"] = f"{self._size[0]}x{self._size[1]}"
        if self._asked_rate is not None:
            options["framerate"] = f"{self._asked_rate:g}"
        elif self._input_device == "avfoundation":
            options["framerate"] = "30"  # its own default, 29.97, is one that its cameras refuse
        try:
            return Decoder(self._device, input_device=self._input_device, options=options)
        except (LibavError, ValueError) as error:
            raise SourceError(
                f"cannot open camera {self._device!r} ({self._input_device}): {cause_of(error)}. {self._remedy(error)}"
            ) from error

    def _remedy(self, error: Exception) -> str:
        found = ", ".join(list_cameras(self._input_device)) or "none"
        if isinstance(error, PermissionError):
            return "Let your user read the device (on Linux, add it to the group 'video')."
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            return f"Close the program that uses it, or choose another size or rate; cameras found: {found}."
        return f"Connect it or choose another; cameras found: {found}."

    def _frames(self, stop: threading.Event) -> Generator[SourceFrame, None, None]:
        opened, self._opened = self._opened, None
        pictures = PictureMaker(self._size, keep_image=self._keep_image)
        timeline = None
        delivered = 0
        with closing(opened or self._open()) as decoder:
            for decoded in decoder.frames(stop):
                if timeline is None:
                    timeline = Timeline(1.0 / (self._frame_rate or DEFAULT_RATE), decoded.stamp_s or 0.0)
                captured_at = decoded.arrived_at
                if self._input_device == "v4l2":
                    captured_at = capture_time(decoded.stamp_s, decoded.arrived_at)
                position_s = timeline.place(decoded.stamp_s)
                yield pictures.make(decoded.frame, captured_at=captured_at, position_s=position_s)
                delivered += 1
                if delivered == self._max_frames:
                    return
            if decoder.broken_by is not None:
                raise SourceError(
                    f"camera {self._device} stopped: {cause_of(decoder.broken_by)}. Check its connection."
                ) from decoder.broken_by


def capture_time(stamp_s: float | None, arrived_at: float) -> float:
    """Return the kernel's time stamp if it is on the scale of `time.monotonic`, else the time of arrival.

    V4L2 drivers stamp with the monotonic clock or, some old ones, with the wall clock; only the former lies shortly
    before the arrival.
    """
    if stamp_s is not None and 0.0 <= arrived_at - stamp_s <= OLDEST_STAMP_S:
        return stamp_s
    return arrived_at


def device_url(device: str, input_device: str) -> str:
    """Return what libav calls a camera that the user gave by number or name."""
    if input_device == "v4l2":
        return f"/dev/video{device}" if device.isdecimal() else device
    if input_device == "dshow":
        names = list_cameras(input_device)
        if device.isdecimal() and int(device) < len(names):
            device = names[int(device)]
        return device if "=" in device else f"video={device}"
    return device


def list_cameras(input_device: str) -> list[str]:
    """Name the cameras of this machine, as far as the system tells."""
    if input_device == "v4l2":
        return sorted(str(path) for path in Path("/dev").glob("video*"))
    return device_names(input_device)
