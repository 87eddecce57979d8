"""Pictures into a video file."""

from __future__ import annotations

import math
import os
import secrets
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from partime_async.errors import ConfigurationError, MissingDependencyError, SinkError
from partime_async.picture import Image
from partime_async.sinks.base import checked_image

try:
    import av
    from av.container import OutputContainer
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter
    from av.video.stream import VideoStream
except ImportError as error:
    raise MissingDependencyError("av", "video") from error

# Fine enough for every time stamp and, as MPEG-4 demands, below 2 ** 16.
TICKS_PER_S = 60_000
PREFERRED_CODECS = ("libx264", "mpeg4")
# Good looks at a speed that leaves the cores to the stages.
CODEC_OPTIONS = {
    "libx264": {"preset": "veryfast", "crf": "20"},
    "mpeg4": {"flags": "+qscale", "global_quality": str(3 * 118)},  # quality 3 of 1 to 31, in libav's unit
    "libvpx": {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "4M"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "30", "b": "0"},
}
AVFMT_VARIABLE_FPS = 0x0400  # of libavformat/avformat.h
SMPTE_170M = 6  # what libav takes untagged colour for, and what it calls BT.601 when it tags it


class VideoWriter:
    """Encode pictures into a video file that appears, whole, when it is closed.

    Until then it grows under a hidden name beside its target; `abort`, and leaving a `with` block by an exception,
    remove it. Without a picture there is no file. All methods block: on the disk and on the encoder, which uses one
    thread.

    Args:
        path: The file to make or replace; its suffix chooses the container.
        frame_rate: Frames per second, also the pace of pictures without a position.
        size: Width and height in pixels; None: those of the first picture. Other pictures are resized. A codec that
            halves the colour resolution needs even sides: odd ones grow by repeating the last row or column.
        codec: The encoder's name; None: H.264 if this build of libav has it and the container takes it, else MPEG-4,
            else the container's own, as in AVI.

    Raises:
        SinkError: The folder, the suffix or the codec cannot be used; the text says why.
        ConfigurationError: A frame rate or size that cannot be; the caller's fault.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        frame_rate: float,
        size: tuple[int, int] | None = None,
        codec: str | None = None,
    ) -> None:
        if not (frame_rate > 0 and math.isfinite(frame_rate)):
            raise ConfigurationError(f"the frame rate is {frame_rate}. Give a positive number of frames per second.")
        if size is not None and min(size) < 1:
            raise ConfigurationError(f"{size!r} is no picture size. Give (width, height) in pixels, both at least 1.")
        self._path = Path(path)
        # 1001 brings 29.97 and its kin back to the exact fraction that they stand for.
        self._rate = Fraction(frame_rate).limit_denominator(1001)
        self._size = size
        self._scaler = VideoReformatter()
        self._frames = 0
        self._first_s: float | None = None
        self._last_tick = -1
        self._is_closed = False
        self._part = self._path.with_name(f".{self._path.stem}.{secrets.token_hex(4)}.part{self._path.suffix}")
        self._container = self._open()
        # A container of a fixed rate, such as AVI, has no time stamps: it fills each tick that has no picture with an
        # empty packet, and pictures must come in the order in which they are shown.
        self._is_fixed = not self._container.format.flags & AVFMT_VARIABLE_FPS
        self._time_base = 1 / self._rate if self._is_fixed else Fraction(1, TICKS_PER_S)
        try:
            self._stream = self._add_stream(codec)
        except SinkError:
            self.abort()
            raise

    @property
    def frames(self) -> int:
        """How many pictures were written."""
        return self._frames

    @property
    def codec(self) -> str:
        """The name of the encoder."""
        return str(self._stream.codec_context.codec.name)

    def write(self, image: Image, position_s: float | None = None) -> None:
        """Encode one picture.

        Args:
            image: uint8, ``(height, width, 3)``, RGB.
            position_s: Where it belongs in seconds, counted from the first one's; None: one frame after the last. One
                that does not come after the last is moved to the next tick.

        Raises:
            FrameError: It is no picture; the caller's fault.
            SinkError: The writer is closed, or the disk or the encoder failed, which removes the file.
        """
        checked_image(image)
        if self._is_closed:
            raise SinkError(f"{self._path} is closed. Write before close().")
        tick = self._tick(position_s)
        try:
            if not self._frames:
                self._start(image)
            frame = self._encodable(image)
            frame.pts, frame.time_base = tick, self._time_base
            self._container.mux(self._stream.encode(frame))
        except (av.FFmpegError, OSError, ValueError) as error:
            self.abort()
            raise SinkError(f"cannot write {self._path}: {error}. Check the disk's free space.") from error
        self._last_tick = tick
        self._frames += 1

    def close(self) -> None:
        """Finish the file and give it its name; further calls do nothing.

        Raises:
            SinkError: The disk or the encoder failed; the file is removed.
        """
        if self._is_closed:
            return
        if not self._frames:
            self.abort()
            return
        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
            self._part.replace(self._path)
        except (av.FFmpegError, OSError, ValueError) as error:
            self.abort()
            raise SinkError(f"cannot finish {self._path}: {error}. Check the disk's free space.") from error
        self._is_closed = True

    def abort(self) -> None:
        """Remove what was written and leave the target as it was; does nothing after `close`."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._container.close()
        except (av.FFmpegError, OSError, ValueError):
            pass  # it goes away anyhow
        finally:
            self._part.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()

    def _open(self) -> OutputContainer:
        if self._path.is_dir():
            raise SinkError(f"{self._path} is a folder. Name a file in it, such as {self._path / 'out.mp4'}.")
        try:
            container = av.open(str(self._part), "w")
        except ValueError as error:
            suffix = self._path.suffix or "no suffix"
            raise SinkError(f"no video format for {self._path} ({suffix}). Use .mp4, .mkv, .webm or .avi.") from error
        try:
            # libav opens the file with the first picture; that it cannot should be known before.
            self._part.touch(exist_ok=False)
        except OSError as error:
            container.close()
            raise SinkError(
                f"cannot write {self._path}: {error.strerror}. Choose a folder that exists and that you may write to."
            ) from error
        return container

    def _add_stream(self, codec: str | None) -> VideoStream:
        """Add the first codec that the build has and the container takes."""
        own = self._container.default_video_codec
        candidates = (own,) if self._is_fixed else (*PREFERRED_CODECS, own)
        causes = []
        for name in (codec,) if codec else candidates:
            try:
                encoder = av.codec.Codec(name, "w")
                options = dict(CODEC_OPTIONS.get(encoder.name, {}))
                if self._is_fixed:
                    options["bf"] = "0"
                if encoder.type == "video":
                    stream = self._container.add_stream(encoder.name, rate=self._rate, options=options)
                    assert isinstance(stream, VideoStream)
                    return stream
                causes.append(f"{name} is not for video")
            except av.codec.codec.UnknownCodecError:
                causes.append("the format takes no video" if name == "none" else f"no encoder is called {name!r}")
            except ValueError as error:  # one that the container does not take
                causes.append(str(error))
        raise SinkError(
            f"no codec for {self._path}: {'; '.join(causes)}. Leave codec out, or choose another one or another suffix."
        )

    def _start(self, image: Image) -> None:
        """Fix the size and colours, which the container's head needs to know."""
        formats = self._stream.codec_context.codec.video_formats
        pixels = formats[0].name if formats else "yuv420p"
        width, height = self._size or (image.shape[1], image.shape[0])
        if "420" in pixels:
            width, height = width + width % 2, height + height % 2
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = pixels
        context = self._stream.codec_context
        context.time_base = self._time_base
        context.thread_count = 1
        if pixels == "yuv420p":
            context.colorspace = context.color_primaries = context.color_trc = SMPTE_170M

    def _encodable(self, image: Image) -> VideoFrame:
        """Bring a picture to the stream's size and pixel format."""
        width, height = self._stream.width, self._stream.height
        grow_x, grow_y = width - image.shape[1], height - image.shape[0]
        if (grow_x, grow_y) in {(0, 1), (1, 0), (1, 1)} and self._size in {None, (image.shape[1], image.shape[0])}:
            image = np.pad(image, ((0, grow_y), (0, grow_x), (0, 0)), mode="edge")
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        return self._scaler.reformat(
            frame, width=width, height=height, format=self._stream.pix_fmt, dst_colorspace=SMPTE_170M, threads=1
        )

    def _tick(self, position_s: float | None) -> int:
        """Return when a picture is shown, in ticks, later than the one before."""
        if position_s is None:
            step = max(1, round(1 / (self._rate * self._time_base)))
            return self._last_tick + step if self._frames else 0
        if not math.isfinite(position_s):
            raise SinkError(f"a picture cannot be shown at {position_s} s. Give a finite position or none.")
        if self._first_s is None:
            # After pictures without a position this one takes the place that would have been next.
            elapsed = float(self._tick(None) * self._time_base)
            self._first_s = position_s - elapsed
        return max(round((position_s - self._first_s) / self._time_base), self._last_tick + 1)
