"""Video files, decoded by libav."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import closing

from partime_async.errors import ConfigurationError, SourceError
from partime_async.frame import SourceFrame
from partime_async.sources.base import BlockingSource, checked_count, checked_size
from partime_async.sources.libav import Decoded, Decoder, LibavError, PictureMaker, cause_of
from partime_async.sources.timeline import Schedule, Timeline

DEFAULT_RATE = 25.0  # of files that state none


class VideoFile(BlockingSource):
    """The frames of a video file, upright, as ``(1, 3, height, width)`` in [0, 1].

    Opening reads the file's header, `next` decodes: both block. Every `iter()` starts from the beginning.

    Time stamps come out as `position_s`, counted from the file's first one, never falling; frames without one follow
    at the file's rate. Packets that cannot be decoded are skipped (`corrupt_packets`). Of a file that breaks off, what
    can be decoded is delivered, then the pass ends (`broken_by`); it is an error only if nothing can. Pixels that are
    not square are delivered as they are stored.

    Args:
        path: The file.
        size: Width and height to resize to, in pixels; None: as displayed.
        realtime: Whether a pass gives each frame when it is due by its time stamp, as a camera would, with the due time
            as its time of capture. The schedule does not wait for a late consumer (see `Schedule`).
        loop: Whether a pass starts over at the end, for ever; positions go on rising.
        start_s: Where to start, in seconds from the first frame.
        max_frames: How many frames a pass gives at most.
        keep_image: Whether frames carry the unresized picture; without it less is converted.
        threads: Threads of the decoder: more than one only pays for large pictures and takes cores from the stages.

    Raises:
        SourceError: There is no such file, it is no video, or `start_s` lies behind its end; the file's fault.
        ConfigurationError: An option that cannot be; the caller's fault.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        size: tuple[int, int] | None = None,
        realtime: bool = False,
        loop: bool = False,
        start_s: float = 0.0,
        max_frames: int | None = None,
        keep_image: bool = True,
        threads: int = 1,
    ) -> None:
        super().__init__()
        self._path = os.fspath(path)
        self._size = checked_size(size)
        self._is_realtime = realtime
        self._is_looping = loop
        self._max_frames = checked_count("max_frames", max_frames)
        self._keep_image = keep_image
        self._threads = threads
        self._corrupt_packets = 0
        self._broken_by: str | None = None
        if not start_s >= 0:
            raise ConfigurationError(f"start_s is {start_s}. Give the seconds from the first frame, 0 or more.")
        self._start_s = start_s
        with closing(self._open()) as decoder:
            self._frame_rate = decoder.frame_rate
            self._kind = decoder.describe()
            self._frame_count = self._count(decoder)

    @property
    def frame_rate(self) -> float | None:
        """Frames per second on average, as the file states it."""
        return self._frame_rate

    @property
    def frame_count(self) -> int | None:
        """How many frames a pass gives, as far as the file tells; None: endless or unknown."""
        return self._frame_count

    @property
    def corrupt_packets(self) -> int:
        """How many packets could not be decoded and were skipped, in all passes so far."""
        return self._corrupt_packets

    @property
    def broken_by(self) -> str | None:
        """Why the file broke off in the latest pass that reached that place; None: it did not."""
        return self._broken_by

    def describe(self) -> str:
        """Say in one line what the source is."""
        count = "" if self._frame_count is None else f", {self._frame_count} frames"
        return f"{self._path}: {self._kind}{count}{', looped' if self._is_looping else ''}"

    def _open(self) -> Decoder:
        try:
            # "file:" keeps libav from reading a name with a colon as a network address.
            return Decoder(f"file:{self._path}", threads=self._threads)
        except LibavError as error:
            is_absent = isinstance(error, FileNotFoundError)
            remedy = "Check the path." if is_absent else "Check that it is a complete video file that you may read."
            raise SourceError(f"cannot read video {self._path}: {cause_of(error)}. {remedy}") from error

    def _count(self, decoder: Decoder) -> int | None:
        if self._is_looping:
            return self._max_frames
        duration_s, count = decoder.duration_s, decoder.frame_count
        if self._start_s > 0 and duration_s is not None:
            if self._start_s >= duration_s:
                raise SourceError(
                    f"start_s is {self._start_s:g}, but {self._path} lasts {duration_s:.3f} s. Start before its end."
                )
            if count is not None:
                count = max(1, round(count * (1.0 - self._start_s / duration_s)))
        if count is None or self._max_frames is None:
            return count or self._max_frames
        return min(count, self._max_frames)

    def _frames(self, stop: threading.Event) -> Generator[SourceFrame, None, None]:
        pictures = PictureMaker(self._size, keep_image=self._keep_image)
        schedule = Schedule(stop) if self._is_realtime else None
        timeline = Timeline(1.0 / (self._frame_rate or DEFAULT_RATE))
        delivered = 0
        while True:
            before = delivered
            for decoded, position_s in self._one_round(timeline, stop):
                captured_at = schedule.wait(position_s) if schedule else None
                if stop.is_set():
                    return
                yield pictures.make(decoded.frame, captured_at=captured_at, position_s=position_s)
                delivered += 1
                if delivered == self._max_frames:
                    return
            if delivered == before and not stop.is_set():
                where = f" from {self._start_s:g} s on" if self._start_s else ""
                raise SourceError(f"no frame of {self._path} can be decoded{where}. Check the file in a video player.")
            if not self._is_looping or stop.is_set():
                return
            timeline.rejoin()

    def _one_round(self, timeline: Timeline, stop: threading.Event) -> Generator[tuple[Decoded, float], None, None]:
        """Decode the file once from `start_s` on, each frame with its position."""
        decoder = self._open()
        try:
            first_s = decoder.start_s
            in_file = Timeline(1.0 / (self._frame_rate or DEFAULT_RATE), first_s or 0.0)
            start = (first_s or 0.0) + self._start_s
            for decoded in decoder.frames_around(start, stop) if self._start_s else decoder.frames(stop):
                in_file_s = in_file.place(decoded.stamp_s)
                # Half a microsecond of slack: time stamps are rounded to libav's ticks.
                if in_file_s >= self._start_s - 5e-7:
                    yield decoded, timeline.place(in_file_s)
        finally:
            self._corrupt_packets += decoder.corrupt_packets
            self._broken_by = None if decoder.broken_by is None else cause_of(decoder.broken_by)
            decoder.close()
