"""Tells a receiver of aiortc's where a picture ends, so that it hands the picture out at once.

Where aiortc receives, a picture is whole when a packet with another timestamp comes: the first one of the next picture,
a frame period late. So each picture is followed by an empty packet that bears the timestamp of the next one already.
That timestamp has to be guessed, and the next picture then keeps to the guess: a picture of its own, however empty,
would be a picture that cannot be decoded. The guess is the usual time after the last picture's own; it is off by as
much as pictures come unevenly, and what it is off does not add up.

Other receivers look at the marker bit, and need none of this. It hangs on private names of aiortc's, so it is
done for the versions it was tested with; in others pictures come as late as ever.
"""

from __future__ import annotations

from partime_async.errors import MissingDependencyError
from partime_async.metrics import MovingAverage
from partime_async.webrtc.reception import is_tested

try:
    from aiortc import RTCRtpCodecParameters, RTCRtpSender
    from aiortc.rtcrtpsender import RTCEncodedFrame
except ImportError as error:
    raise MissingDependencyError("aiortc", "webrtc") from error

CLOCK_RATE = 90_000
"""Of video's timestamps, in Hz."""

_TIMESTAMP = "_RTCRtpSender__rtp_timestamp"
_METHOD = "_next_encoded_frame"
# Before there is a second picture: that of 30 pictures a second.
_FIRST_PERIOD = CLOCK_RATE / 30
# How many times the usual time between two pictures counts at most: a pause is no slow camera.
_LONGEST = 2.0


def end_pictures(sender: RTCRtpSender) -> None:
    """Have the sender of a video follow each picture by an empty packet; call it before it sends, and once."""
    if is_tested() and hasattr(sender, _METHOD) and hasattr(sender, _TIMESTAMP):
        setattr(sender, _METHOD, _Endings(sender).next)


def forget_endings(sender: RTCRtpSender) -> None:
    """Undo it: the sender knows what knows the sender."""
    vars(sender).pop(_METHOD, None)


class Rhythm:
    """Guesses when the next picture comes, in ticks of a clock; nothing it says comes before what it said last."""

    def __init__(self) -> None:
        self._period = MovingAverage(most=_LONGEST)
        self._own: int | None = None
        self._announced: int | None = None

    def of(self, timestamp: int) -> tuple[int, int]:
        """Return the timestamp to send a picture with, as announced with the last one, and that of the next picture.

        Args:
            timestamp: The picture's own.
        """
        if self._own is not None:
            self._period.update(max(1.0, float(timestamp - self._own)))
        self._own = timestamp
        said = timestamp if self._announced is None else self._announced
        self._announced = max(said + 1, round(timestamp + (self._period.value or _FIRST_PERIOD)))
        return said, self._announced


class _Endings:
    """Stands before a sender's encoder, and puts an empty picture after each of its own."""

    def __init__(self, sender: RTCRtpSender) -> None:
        self._sender = sender
        self._encoded = sender._next_encoded_frame
        self._rhythm = Rhythm()
        self._ending: RTCEncodedFrame | None = None
        self._sent_timestamp: int | None = None

    async def next(self, codec: RTCRtpCodecParameters) -> RTCEncodedFrame | None:
        """Return the next picture, or what ends the last one.

        Cancellation: safe.
        """
        if self._ending is not None:
            ending, self._ending = self._ending, None
            self._sent_timestamp = getattr(self._sender, _TIMESTAMP)
            return ending
        if self._sent_timestamp is not None:
            # The sender's reports say which time the latest timestamp belongs to; that is the latest picture's.
            setattr(self._sender, _TIMESTAMP, self._sent_timestamp)
            self._sent_timestamp = None
        frame = await self._encoded(codec)
        if frame is not None:
            frame.timestamp, announced = self._rhythm.of(frame.timestamp)
            self._ending = RTCEncodedFrame([b""], announced, None)  # type: ignore[arg-type]  # no sound
        return frame
