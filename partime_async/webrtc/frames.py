"""Frames of a WebRTC video: ``async for frame in webrtc_frames(track)``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

from partime_async import picture
from partime_async.errors import ConfigurationError, MissingDependencyError, SourceError
from partime_async.frame import SourceFrame, Value
from partime_async.picture import Image
from partime_async.webrtc.intake import Arrival, Intake
from partime_async.webrtc.pictures import PictureReader, checked_size
from partime_async.webrtc.reception import Reception
from partime_async.webrtc.videos import RemoteVideo
from partime_async.webrtc.worker import Worker

try:
    from aiortc import MediaStreamTrack, RTCPeerConnection
    from aiortc.rtcrtpreceiver import RemoteStreamTrack
except ImportError as error:
    raise MissingDependencyError("aiortc", "webrtc") from error


@dataclass(frozen=True, slots=True)
class WebRTCStatistics:
    """What became of a video's pictures: ``received == delivered + superseded + failed + waiting``.

    Attributes:
        received: Pictures that came and were decoded.
        delivered: Frames given to the reader.
        superseded: Pictures let go because a newer one came before the reader did, or nobody reads any more.
        failed: Pictures that could not be converted.
        waiting: Pictures that wait for the reader or are being converted: 0 to 2.
        undecodable: Pictures that the decoder refused; None: unknown.
        skipped: Pictures let go before decoding; see `ReceptionStatistics`. None: unknown.
        key_frames_asked: How often the sender was asked for a picture that builds on no other; None: unknown.
        is_early: Whether pictures are handed out with their own last packet, not with the next picture's first.
        size: Height and width of the last picture delivered, as it came; None: none was.
        resolution_changes: How often that changed.
    """

    received: int
    delivered: int
    superseded: int
    failed: int
    waiting: int
    undecodable: int | None
    skipped: int | None
    key_frames_asked: int | None
    is_early: bool
    size: tuple[int, int] | None
    resolution_changes: int

    @property
    def errors(self) -> int:
        """Pictures that could not be decoded or converted."""
        return self.failed + (self.undecodable or 0)


class WebRTCFrames:
    """A video as frames, the newest first asked for; made by `webrtc_frames`.

    The newest picture waits undecided: it is converted, on a thread of its own, only when the reader asks, and until
    then a newer one takes its place. So a slow reader gets fresh frames, and no memory grows.

    Iterate it with one task; `aclose`, or ``async with``, gives back the thread.
    """

    def __init__(
        self,
        intake: Intake,
        draining: asyncio.Task[None] | None,
        *,
        size: tuple[int, int] | None,
        to_value: Callable[[Image], Value] | None,
        keep_image: bool,
    ) -> None:
        self._intake = intake
        self._draining = draining
        self._is_size_free = size is not None or to_value is not None
        self._reader = PictureReader(size, to_value or picture.to_value, keep_image=keep_image)
        self._worker = Worker("partime webrtc frames")
        self._delivered = self._failed = self._let_go = self._converting = 0
        self._resolution: tuple[int, int] | None = None
        self._changes = 0
        self._is_closed = self._is_waiting = False
        # A peer's video may have had another reader before: what that one saw does not count here.
        self._before = (intake.received - intake.waiting, intake.superseded)
        self._final: tuple[int, int, int] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SourceFrame:
        """Return the newest picture as a frame, waiting for one that was not given before.

        Raises:
            SourceError: The resolution changed, and there is no `size`; or another task reads already.
            Exception: What `to_value`, or the track itself, raised.

        Cancellation: safe; a picture that is being converted is let go, and counted as superseded.
        """
        arrival = None if self._is_closed else await self._take()
        if arrival is None:
            await self.aclose()
            raise StopAsyncIteration
        self._converting += 1
        try:
            self._check_resolution(arrival)
            value, image = await self._worker.run(partial(self._reader.read, arrival.frame))
        except asyncio.CancelledError:
            self._let_go += 1
            raise
        except Exception:
            self._failed += 1
            raise
        finally:
            self._converting -= 1
        self._delivered += 1
        return SourceFrame(value, arrival.captured_at, arrival.position_s, image)

    def statistics(self) -> WebRTCStatistics:
        """Return what became of the pictures so far."""
        received, superseded, waiting = self._final or self._counts()
        reception = None if self._intake.reception is None else self._intake.reception.statistics()
        return WebRTCStatistics(
            received=received,
            delivered=self._delivered,
            superseded=superseded + self._let_go,
            failed=self._failed,
            waiting=waiting + self._converting,
            undecodable=None if reception is None else reception.undecodable,
            skipped=None if reception is None else reception.skipped,
            key_frames_asked=None if reception is None else reception.key_frames_asked,
            is_early=reception is not None and reception.is_early,
            size=self._resolution,
            resolution_changes=self._changes,
        )

    async def ask_key_frame(self) -> None:
        """Ask the sender for a picture that builds on no other; does nothing for a track that comes from no peer.

        Cancellation: safe.
        """
        if self._intake.reception is not None:
            await self._intake.reception.ask_key_frame()

    async def aclose(self) -> None:
        """Give back the thread. A peer's track is drained on until it ends: it would pile up pictures otherwise.

        Further calls do nothing.

        Cancellation: safe; the thread has been told to end.
        """
        self._is_closed = True
        if self._draining is None:
            # The peer's own: another reader may go on with it, and gets the picture that waits.
            if self._final is None:
                received, superseded, waiting = self._counts()
                self._final = (received, superseded + waiting, 0)
            if self._is_waiting:
                self._intake.interrupt()
        else:
            self._intake.end()
            if not isinstance(self._intake.track, RemoteStreamTrack):
                self._draining.cancel()
                await asyncio.wait([self._draining])
        await self._worker.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _take(self) -> Arrival | None:
        is_first, self._is_waiting = not self._is_waiting, True
        try:
            return await self._intake.take()
        finally:
            self._is_waiting = not is_first  # a second task is refused, and the first goes on waiting

    def _counts(self) -> tuple[int, int, int]:
        """Return how many pictures came, were superseded and wait, as far as this reader is concerned."""
        received, superseded = self._before
        return self._intake.received - received, self._intake.superseded - superseded, self._intake.waiting

    def _check_resolution(self, arrival: Arrival) -> None:
        came, before = (arrival.frame.height, arrival.frame.width), self._resolution
        self._resolution = came
        if before in (None, came):
            return
        self._changes += 1
        if not self._is_size_free:
            raise SourceError(
                f"the video changed from {before[1]}x{before[0]} to {came[1]}x{came[0]}, as browsers do to fit the "
                "network. Pass size=(height, width) to have every frame resized."
            )


def webrtc_frames(
    track: MediaStreamTrack,
    *,
    size: tuple[int, int] | None = None,
    to_value: Callable[[Image], Value] | None = None,
    keep_image: bool = True,
    connection: RTCPeerConnection | None = None,
    is_sender_synchronized: bool = False,
) -> WebRTCFrames:
    """Return the frames of a video track; the newest wins, and the track is drained from now on.

    Each frame has `captured_at`, when it was taken on this machine's monotonic clock, strictly increasing: the sender's
    time stamps laid on the quickest arrival, so that jitter does not show; `position_s`, the sender's own time stamp;
    and `image`, the picture as it came.

    Call it on the event loop, as soon as the track is there.

    Args:
        track: A `RemoteVideo` of a `Peer`, or any video track of aiortc's. Drain audio tracks with aiortc's
            `MediaBlackhole`, or decline them as `Peer` does.
        size: Height and width that every value is resized to; None: as the pictures come, which must not change then.
        to_value: Makes the network's input of a picture of that size, uint8 ``(height, width, 3)``, on a worker thread;
            None: float32 in [0, 1], ``(1, 3, height, width)``.
        keep_image: Whether frames carry the picture in its own size.
        connection: The connection of aiortc's that the track comes from, for a track that is no `Peer`'s, given before
            it is connected: pictures then come one frame period earlier, and key frames can be asked for.
        is_sender_synchronized: The sender's wall clock is this machine's, or kept equal (NTP, PTP): take `captured_at`
            from its reports (RTCP), which count the way too, once they come and as long as they are plausible.

    Raises:
        ConfigurationError: A track that is no video, a size that cannot be, or a connection that does not have the
            track; the caller's fault.
    """
    if track.kind != "video":
        raise ConfigurationError(f"the track is {track.kind}. Pass a video track.")
    draining: asyncio.Task[None] | None = None
    if isinstance(track, RemoteVideo):
        intake = track.intake
    else:
        intake = Intake(track, None if connection is None else _reception(connection, track))
    intake.is_sender_synchronized = is_sender_synchronized
    made = partial(WebRTCFrames, intake, size=checked_size(size), to_value=to_value, keep_image=keep_image)
    if not isinstance(track, RemoteVideo):
        draining = asyncio.get_running_loop().create_task(intake.run(), name="partime webrtc drain")
    return made(draining)


def _reception(connection: RTCPeerConnection, track: MediaStreamTrack) -> Reception:
    for receiver in connection.getReceivers():
        if receiver.track is track:
            return Reception(receiver)
    raise ConfigurationError("the connection has no receiver with this track. Pass the one it came from.")
