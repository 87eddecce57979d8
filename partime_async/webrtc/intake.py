"""The newest picture of a track, which is drained always: aiortc's queue of received pictures has no bound."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from partime_async.errors import MissingDependencyError, SourceError
from partime_async.offload import is_being_cancelled
from partime_async.webrtc.reception import Reception
from partime_async.webrtc.stamps import ArrivalClock

try:
    from aiortc import MediaStreamError, MediaStreamTrack
    from av import VideoFrame
except ImportError as error:
    raise MissingDependencyError("aiortc", "webrtc") from error

if TYPE_CHECKING:
    from av.frame import Frame

# A sender's clock that would make a picture older than this, or not yet taken, is another time.
_MOST_PLAUSIBLE_AGE_S = 5.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """A decoded picture, as it came.

    Attributes:
        frame: The picture.
        captured_at: When it was taken, in seconds of `time.monotonic`.
        position_s: The sender's own time stamp, in seconds from the first picture; None: it has none.
    """

    frame: VideoFrame
    captured_at: float
    position_s: float | None


class Intake:
    """Takes every picture of a track the moment it comes, and keeps the newest.

    `run` is the task that drains; whoever makes the intake owns it.

    Args:
        track: Any video track.
        reception: What is known of its receiver, if it comes from a peer.

    Attributes:
        received: Pictures that came.
        superseded: Pictures that a newer one replaced before they were taken.
        is_sender_synchronized: Whether `captured_at` comes from the sender's wall clock.
    """

    def __init__(self, track: MediaStreamTrack, reception: Reception | None = None) -> None:
        self.track = track
        self.reception = reception
        self.received = 0
        self.superseded = 0
        self.is_sender_synchronized = False
        self._clock = ArrivalClock()
        self._newest: Arrival | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_ended = self._is_interrupted = False
        self._error: Exception | None = None

    @property
    def waiting(self) -> int:
        """How many pictures can be taken: 0 or 1."""
        return 0 if self._newest is None else 1

    async def run(self) -> None:
        """Drain the track until it ends.

        Cancellation: safe; the track is left as it is.
        """
        try:
            while True:
                frame = await self.track.recv()
                if isinstance(frame, VideoFrame):
                    self._keep(frame)
                # A track that always has one at once must not keep the loop from everybody else.
                await asyncio.sleep(0)
        except MediaStreamError:
            pass  # its normal end
        except asyncio.CancelledError as raised:
            if is_being_cancelled():
                raise
            self._error = SourceError("the track was cancelled by its own doing. Let it raise another error, or end.")
            self._error.__cause__ = raised
        except Exception as error:
            self._error = error
        finally:
            self._is_ended = True
            self._wake()

    async def take(self) -> Arrival | None:
        """Take the newest picture, waiting for a new one; None: the track has ended, or `interrupt` was called.

        Raises:
            SourceError: Another task waits already; the caller's fault.
            Exception: What the track itself raised.

        Cancellation: safe; the picture stays for the next call.
        """
        if self._waiter is not None:
            raise SourceError("another task waits for this track's next picture. Let one task read each track.")
        self._is_interrupted = False
        while self._newest is None and not self._is_ended and not self._is_interrupted:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._newest is None and self._error is not None:
            error, self._error = self._error, None
            raise error
        newest, self._newest = self._newest, None
        return newest

    def interrupt(self) -> None:
        """Let whoever waits for a picture go without one; the next call waits anew."""
        self._is_interrupted = True
        self._wake()

    def end(self) -> None:
        """Give nothing more: whoever waits learns that the track has ended."""
        self._is_ended = True
        self.superseded += self.waiting
        self._newest = None
        self._wake()

    def _keep(self, frame: VideoFrame) -> None:
        self.received += 1
        if self._is_ended:
            self.superseded += 1
            return
        arrived_at = time.monotonic()
        captured_at = self._clock.place(frame.time, arrived_at, self._age(frame))
        self.superseded += self.waiting
        self._newest = Arrival(frame, captured_at, frame.time)
        self._wake()

    def _age(self, frame: Frame) -> float | None:
        """Return how old a picture is by the sender's clock, if that is to be believed."""
        if not self.is_sender_synchronized or self.reception is None or frame.pts is None:
            return None
        sent_at = self.reception.sent_at(frame.pts)
        age_s = None if sent_at is None else time.time() - sent_at
        return age_s if age_s is not None and 0.0 <= age_s <= _MOST_PLAUSIBLE_AGE_S else None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
