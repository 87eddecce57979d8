"""All that sources ask of libav (PyAV): open, demux, decode, and make pictures of what comes out."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from partime_async.errors import MissingDependencyError, SourceError
from partime_async.frame import SourceFrame
from partime_async.picture import Image, to_value

try:
    import av
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter
    from av.video.stream import VideoStream
except ImportError as error:
    raise MissingDependencyError("av", "video") from error

LibavError = av.FFmpegError
"""What libav raises; where there is one, also an instance of the built-in error of the same name."""

# How long to leave a device alone that says it has no frame yet; only AVFoundation does instead of waiting.
DEVICE_PAUSE_S = 0.002


def cause_of(error: Exception) -> str:
    """Say in words why libav failed."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def device_names(input_device: str) -> list[str]:
    """Name the devices that an input device of libav finds; empty where it cannot tell."""
    device = getattr(av, "device", None)  # older versions of PyAV cannot enumerate
    if device is None:
        return []
    try:
        return [info.name for info in device.enumerate_input_devices(input_device)]
    except (LibavError, ValueError):
        return []


@dataclass(frozen=True, slots=True)
class Decoded:
    """A frame as the decoder gives it.

    Attributes:
        frame: The frame.
        stamp_s: The media's own time stamp in seconds; None: it has none.
        arrived_at: When its data had been read, in seconds of `time.monotonic`.
    """

    frame: VideoFrame
    stamp_s: float | None
    arrived_at: float


class Decoder:
    """The first or best video stream of a file or device, decoded.

    Packets that the decoder refuses are skipped and counted. Where the data breaks off, the frames still inside the
    decoder come out, and `broken_by` tells why it ended.

    Args:
        url: What libav opens.
        input_device: The input device of libav that `url` belongs to; None: it is a file.
        options: Options of that device.
        threads: Threads of the decoder. More delay live pictures and take cores from the stages.

    Raises:
        LibavError: It cannot be opened; whoever made or named it is at fault.
        ValueError: There is no such device in this build of libav.
        SourceError: It holds no video.

    Attributes:
        corrupt_packets: How many packets were skipped.
        broken_by: Why reading broke off; None: it has not.
    """

    def __init__(
        self, url: str, *, input_device: str | None = None, options: Mapping[str, str] | None = None, threads: int = 1
    ) -> None:
        self.corrupt_packets = 0
        self.broken_by: Exception | None = None
        self._container = av.open(url, "r", format=input_device, options=dict(options or {}))
        # A cover picture in a music file is a video stream for libav, but nothing to play.
        streams = [s for s in self._container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            kinds = ", ".join(sorted({stream.type for stream in self._container.streams})) or "nothing"
            self.close()
            raise SourceError(f"{url} has no video stream; it holds {kinds}. Give a file with a moving picture.")
        self._stream: VideoStream = max(streams, key=lambda stream: stream.width * stream.height)
        self._stream.codec_context.thread_count = threads

    @property
    def frame_rate(self) -> float | None:
        """Frames per second on average, as the container states it."""
        rate = self._stream.average_rate or self._stream.guessed_rate
        return float(rate) if rate else None

    @property
    def duration_s(self) -> float | None:
        """Length in seconds, as the container states it."""
        if self._stream.duration is not None and self._stream.time_base is not None:
            return float(self._stream.duration * self._stream.time_base)
        return None if self._container.duration is None else self._container.duration / av.time_base

    @property
    def frame_count(self) -> int | None:
        """Number of frames as the container states it, or as its length and rate suggest."""
        if self._stream.frames:
            return self._stream.frames
        rate, duration_s = self.frame_rate, self.duration_s
        return None if rate is None or duration_s is None else round(rate * duration_s)

    @property
    def start_s(self) -> float | None:
        """The first time stamp in seconds; None: the format has no time stamps, so nothing to seek by."""
        if self._stream.start_time is None or self._stream.time_base is None:
            return None
        return float(self._stream.start_time * self._stream.time_base)

    def describe(self) -> str:
        """Say in a few words what comes out: size, codec, rate."""
        rate = self.frame_rate
        pace = "" if rate is None else f", {rate:.4g} frames/s"
        return f"{self._stream.width}x{self._stream.height} {self._stream.codec_context.name}{pace}"

    def frames_around(self, stamp_s: float, stop: threading.Event) -> Generator[Decoded, None, None]:
        """Decode from a frame at or before a time stamp on; those before it are the caller's to leave out."""
        first_s = self.start_s
        if first_s is None:
            yield from self.frames(stop)
            return
        # Formats without an index, such as MPEG-TS, land on any packet, and decoding starts at the next key frame.
        for back_s in (0.0, 1.0, 5.0, 25.0, stamp_s):
            self._container.seek(int(max(first_s, stamp_s - back_s) * av.time_base), backward=True)
            frames = self.frames(stop)
            decoded = next(frames, None)
            if decoded is not None and (decoded.stamp_s is None or decoded.stamp_s <= stamp_s):
                break
        if decoded is not None:
            yield decoded
            yield from frames

    def frames(self, stop: threading.Event) -> Generator[Decoded, None, None]:
        """Decode until the end, until the data breaks off, or until `stop` is set."""
        while not stop.is_set():
            try:
                for packet in self._container.demux(self._stream):
                    arrived_at = time.monotonic()
                    for frame in self._decode(packet):
                        yield Decoded(frame, None if frame.pts is None else frame.time, arrived_at)
                    if stop.is_set():
                        return
                return
            except BlockingIOError:
                stop.wait(DEVICE_PAUSE_S)
            except LibavError as error:
                self.broken_by = error
                for frame in self._decode(None):
                    yield Decoded(frame, None if frame.pts is None else frame.time, time.monotonic())
                return

    def _decode(self, packet: Packet[VideoStream] | None) -> list[VideoFrame]:
        try:
            return self._stream.decode(packet)
        except EOFError:  # the decoder was flushed before
            return []
        except LibavError:
            self.corrupt_packets += 1
            return []

    def close(self) -> None:
        """Close the file or device; further calls do nothing."""
        self._container.close()


class PictureMaker:
    """Turns decoded frames into values and pictures, all of one size.

    Args:
        size: Width and height of the values in pixels; None: those of the first frame, as it is displayed. Later
            frames of another size, which files may have, are resized to it.
        keep_image: Whether frames carry the picture in its own size too.
    """

    def __init__(self, size: tuple[int, int] | None, *, keep_image: bool) -> None:
        self._size = size
        self._keep_image = keep_image
        # One scaler for each of the two targets: it keeps its tables from frame to frame.
        self._whole = VideoReformatter()
        self._resized = VideoReformatter()

    def make(self, frame: VideoFrame, *, captured_at: float | None, position_s: float | None) -> SourceFrame:
        """Convert one frame.

        Args:
            frame: A decoded frame in any pixel format.
            captured_at: Seconds of `time.monotonic`, or None.
            position_s: Place on the media's time line in seconds, or None.
        """
        turn = orientation(frame)
        is_transposed = turn is not None and turn[0]
        displayed = (frame.height, frame.width) if is_transposed else (frame.width, frame.height)
        if self._size is None:
            self._size = displayed
        if self._size == displayed:
            small = whole = _upright(self._whole, frame, frame.width, frame.height, turn)
        else:
            width, height = self._size[::-1] if is_transposed else self._size
            small = _upright(self._resized, frame, width, height, turn)
            whole = _upright(self._whole, frame, frame.width, frame.height, turn) if self._keep_image else small
        return SourceFrame(to_value(small), captured_at, position_s, whole if self._keep_image else None)


def _upright(
    scaler: VideoReformatter, frame: VideoFrame, width: int, height: int, turn: tuple[bool, bool, bool] | None
) -> Image:
    """Convert to RGB in one go with the resize, then turn as the file asks."""
    # threads=1: by itself libswscale takes a thread for every core, which are the stages' to use.
    rgb = scaler.reformat(frame, width=width, height=height, format="rgb24", threads=1)
    image: Image = np.asarray(rgb.to_ndarray(), np.uint8)
    if turn is not None:
        is_transposed, flips_x, flips_y = turn
        image = image.transpose(1, 0, 2) if is_transposed else image
        image = image[:: -1 if flips_y else 1, :: -1 if flips_x else 1]
        return np.ascontiguousarray(image)
    # A frame that is RGB already comes back as it is: its memory is the decoder's, which may read it again.
    return image.copy() if rgb is frame else np.ascontiguousarray(image)


def orientation(frame: VideoFrame) -> tuple[bool, bool, bool] | None:
    """Read how a frame wants to be displayed: (transpose, then flip left-right, then flip top-bottom).

    Returns:
        None if it is to be shown as it is. Angles between the quarter turns go to the nearest.

    Source: the display matrix of the ISO base media file format, as libavutil/display.h stores it.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    # A picture point (x, y) is shown at (a x + c y, b x + d y), y pointing down.
    (a, b), (c, d) = np.frombuffer(cast("bytes", data), np.int32).reshape(3, 3)[:2, :2].tolist()
    is_transposed = abs(a) < abs(b)
    flips_x, flips_y = (c < 0, b < 0) if is_transposed else (a < 0, d < 0)
    return (is_transposed, flips_x, flips_y) if is_transposed or flips_x or flips_y else None
