"""A video to send: pictures in by `show`, the newest wins."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

from partime_async.errors import ConfigurationError, MissingDependencyError, SinkError
from partime_async.metrics import Distribution, Quantiles
from partime_async.picture import Image
from partime_async.webrtc.pictures import PictureWriter, checked_image
from partime_async.webrtc.worker import Worker

try:
    from aiortc import MediaStreamError, MediaStreamTrack
    from av import VideoFrame
except ImportError as error:
    raise MissingDependencyError("aiortc", "webrtc") from error

CLOCK_RATE = 90_000
_TIME_BASE = Fraction(1, CLOCK_RATE)
# A picture is shown again after this long without a new one: who comes late sees it, and the way stays warm.
_REPEAT_S = 1.0
# Clocks differ: a source of the same nominal rate must not be held back, and lose a picture, for a thousandth more.
_LEEWAY = 1.1


@dataclass(frozen=True, slots=True)
class PictureStatistics:
    """What became of the pictures shown: ``shown == sent + superseded + waiting``.

    Attributes:
        shown: Pictures that were given to `show`.
        sent: Pictures handed to the encoder.
        superseded: Pictures replaced by a newer one before their turn, or left over at the end.
        waiting: Pictures that wait for their turn, or are being converted: 0 to 2.
        repeated: How often a picture was sent again because no new one came.
        age_s: Seconds from capture to the encoder, of pictures shown with `captured_at`.
    """

    shown: int
    sent: int
    superseded: int
    waiting: int
    repeated: int
    age_s: Quantiles


@dataclass(frozen=True, slots=True)
class _Shown:
    image: Image
    captured_at: float | None
    is_repeated: bool = False


class PictureTrack(MediaStreamTrack):
    """A video track of aiortc's that sends the pictures it is shown; for one peer.

    The encoder asks for a picture when it is done with the one before, at most `frame_rate` times a second, and gets
    the newest: pictures never queue up. They are converted on a thread of the track's own.

    Args:
        frame_rate: Pictures sent in a second at most, on average, with a tenth of leeway.

    Raises:
        ConfigurationError: `frame_rate` is not positive; the caller's fault.
    """

    kind = "video"

    def __init__(self, *, frame_rate: float = 30.0) -> None:
        if not frame_rate > 0:
            raise ConfigurationError(f"the frame rate is {frame_rate}. Give a positive number of frames per second.")
        super().__init__()
        self._period_s = 1.0 / (frame_rate * _LEEWAY)
        self._writer = PictureWriter()
        self._worker = Worker("partime webrtc picture")
        self._newest: _Shown | None = None
        self._last: _Shown | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._shown = self._sent = self._superseded = self._repeated = self._converting = 0
        self._ages = Distribution()
        self._began = self._due = 0.0
        self._pts = -1

    def show(self, image: Image, *, captured_at: float | None = None) -> bool:
        """Send this picture next; it replaces one that still waits. Call it on the event loop; it never blocks.

        A peer may leave at any moment, so a picture that comes too late is no error.

        Args:
            image: uint8 ``(height, width, 3)``, RGB; it belongs to the track from now on: do not write into it. Its
                size may differ from the one before.
            captured_at: When what it shows was captured, in seconds of `time.monotonic`, for the statistics.

        Returns:
            Whether it was taken; False: the track has ended, as the peer is gone or `stop` was called.

        Raises:
            FrameError: It is no such picture; the caller's fault.
        """
        checked_image(image)
        if self.readyState != "live":
            return False
        self._shown += 1
        self._superseded += self._newest is not None
        self._newest = _Shown(image, captured_at)
        self._wake()
        return True

    async def recv(self) -> VideoFrame:
        """Return the next picture for the encoder; aiortc calls this.

        Raises:
            MediaStreamError: The track has ended.

        Cancellation: safe; a picture that is being converted is let go.
        """
        shown = await self._next()
        self._converting += not shown.is_repeated
        try:
            frame = await self._worker.run(partial(self._writer.write, shown.image))
        except BaseException as error:
            self._superseded += not shown.is_repeated
            if self.readyState != "live" and not isinstance(error, asyncio.CancelledError):
                raise MediaStreamError from error
            raise
        finally:
            self._converting -= not shown.is_repeated
        now = time.monotonic()
        if shown.is_repeated:
            self._repeated += 1
        else:
            self._sent += 1
            if shown.captured_at is not None:
                self._ages.record(now - shown.captured_at)
        # When it is sent, not when it was captured: a browser that sees stamps jitter against arrivals buffers longer.
        self._began = self._began or now
        self._pts = max(round((now - self._began) * CLOCK_RATE), self._pts + 1)
        frame.pts = self._pts
        frame.time_base = _TIME_BASE
        return frame

    def stop(self) -> None:
        """End the track; does not wait, and may be called again."""
        super().stop()
        self._superseded += self._newest is not None
        self._newest = self._last = None
        self._worker.close()
        self._wake()

    async def aclose(self) -> None:
        """End the track, and wait until its thread is gone.

        Cancellation: safe; the thread has been told to end.
        """
        self.stop()
        await self._worker.aclose()

    def statistics(self) -> PictureStatistics:
        """Return what became of the pictures so far."""
        waiting = (self._newest is not None) + self._converting
        return PictureStatistics(
            self._shown, self._sent, self._superseded, waiting, self._repeated, self._ages.snapshot()
        )

    async def _next(self) -> _Shown:
        """Wait until a picture is due; the last one again, if none comes for a while."""
        while self.readyState == "live":
            now = time.monotonic()
            # May come a period early, as long as the average is kept: a jitter of the source costs no waiting.
            wait_s = self._due - self._period_s - now
            if self._newest is not None and wait_s <= 0:
                self._last, self._newest = self._newest, None
                self._due = max(self._due, now) + self._period_s
                return self._last
            if self._newest is None and self._last is not None:
                wait_s = self._due + _REPEAT_S - now
                if wait_s <= 0:
                    self._due = now
                    return replace(self._last, captured_at=None, is_repeated=True)
            await self._news(None if self._newest is None and self._last is None else wait_s)
        raise MediaStreamError

    async def _news(self, timeout_s: float | None) -> None:
        """Wait for a new picture or the end, so long at most."""
        if self._waiter is not None:
            raise SinkError("another peer sends this track already. Make one for each peer, and show it every picture.")
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = None if timeout_s is None else loop.call_later(timeout_s, self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
