"""One WebRTC connection, from its offer to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from partime_async.errors import ConfigurationError, MissingDependencyError, SourceError
from partime_async.offload import to_the_end
from partime_async.webrtc.channel import DataChannel
from partime_async.webrtc.closing import CloseReason, shut
from partime_async.webrtc.description import Description, read
from partime_async.webrtc.endings import end_pictures
from partime_async.webrtc.ice import Ice
from partime_async.webrtc.negotiation import apply, attach, decline_audio, describe
from partime_async.webrtc.playout import hasten
from partime_async.webrtc.pulse import Pulse
from partime_async.webrtc.reception import Reception
from partime_async.webrtc.track import PictureTrack
from partime_async.webrtc.videos import RemoteVideo, RemoteVideos

try:
    from aiortc import MediaStreamTrack, RTCDataChannel, RTCPeerConnection
except ImportError as error:
    raise MissingDependencyError("aiortc", "webrtc") from error

# Each costs the loop some work; two are what a page needs.
MAX_CHANNELS = 16


@dataclass(frozen=True, slots=True)
class PeerStatistics:
    """How a connection is.

    Attributes:
        state: ``new``, ``connecting``, ``connected``, ``failed`` or ``closed``.
        reason: Why it ended; None: it has not.
        round_trip_s: How long the way there and back takes, in seconds; None: not known yet.
        videos: How many videos the other side sends.
        channels: How many data channels there are.
    """

    state: str
    reason: CloseReason | None
    round_trip_s: float | None
    videos: int
    channels: int


class Peer:
    """One WebRTC connection: ``async with Peer() as peer: answer = await peer.answer(offer)``.

    The other side, a browser say, makes an offer, which reaches `answer` by HTTP or whatever there is; or this side
    makes one with `offer` and gets the answer to `accept`. Videos to send, and channels to open, are named before.

    Its received videos are drained from the start, read or not; audio is declined. It ends by itself when the other
    side leaves or falls silent, and gives everything back then; `close`, or leaving the block, ends it at once. Several
    may be closed at the same time.

    Make it on the event loop.

    Args:
        ice: Which addresses are used; this machine only, by default.
        silence_s: Within how many seconds a silent death of the other side is noticed.
        connect_timeout_s: How long connecting may take, from the answer on, in seconds.
        close_timeout_s: How long closing may take before what is left is cut off, in seconds.
        ends_pictures: Whether to tell the other side where each picture ends, by an empty packet. A program that
            receives with aiortc gets each picture a frame period sooner then, 33 ms at 30 pictures a second. Browsers,
            and this library, know by themselves. Timestamps are then off by as much as pictures come unevenly.

    Raises:
        ConfigurationError: A time that is not positive; the caller's fault.
    """

    def __init__(
        self,
        *,
        ice: Ice | None = None,
        silence_s: float = 3.0,
        connect_timeout_s: float = 15.0,
        close_timeout_s: float = 1.0,
        ends_pictures: bool = False,
    ) -> None:
        if min(silence_s, connect_timeout_s, close_timeout_s) <= 0:
            raise ConfigurationError(
                f"silence_s={silence_s}, connect_timeout_s={connect_timeout_s}, close_timeout_s={close_timeout_s}. "
                "Pass more than 0 seconds each."
            )
        self._ice = ice or Ice.loopback()
        self._connect_timeout_s = connect_timeout_s
        self._close_timeout_s = close_timeout_s
        self._ends_pictures = ends_pictures
        self._loop = asyncio.get_running_loop()
        self._connection = RTCPeerConnection(self._ice.configuration())
        self._pulse = Pulse(self._connection, silence_s)
        self._videos = RemoteVideos()
        self._intakes: list[RemoteVideo] = []
        self._to_send: list[MediaStreamTrack] = []
        self._channels: dict[str, DataChannel] = {}
        self._channel_news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._step: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._reason: CloseReason | None = None
        self._is_agreed = False
        self._connected = asyncio.Event()
        self._ended = asyncio.Event()
        self._connection.on("track", self._on_track)
        self._connection.on("datachannel", self._on_channel)
        self._connection.on("connectionstatechange", self._on_state)

    # -- connecting -----------------------------------------------------------------------------------------------

    async def answer(self, offer: Description) -> Description:
        """Answer the other side's offer; the connection is made from then on.

        Args:
            offer: As the other side made it. Videos come from its video sections that send, and the videos named with
                `send_video` go to those that receive, in order.

        Raises:
            SourceError: The offer cannot be understood, has no codec in common, or no place for a video that is to be
                sent; the other side's fault.
            SourceError: The connection has ended.

        Cancellation: safe; close the peer.
        """
        session = read(offer, "offer", self._ice)
        self._agree()
        await self._do(apply(self._connection, session))
        decline_audio(self._connection)
        hasten(self._connection, session)
        attach(self._connection, session, self._to_send)
        await self._do(describe(self._connection, self._ice))
        self._watch()
        return self._described()

    async def offer(self) -> Description:
        """Make an offer for the other side to answer: with the videos, and channels, named before.

        Raises:
            ConfigurationError: Nothing is to be sent, received or opened; the caller's fault.
            SourceError: The connection has ended.

        Cancellation: safe; close the peer.
        """
        self._check_open()
        if not self._to_send and not self._connection.getTransceivers() and self._connection.sctp is None:
            raise ConfigurationError("the offer would be empty. Call send_video, receive_video or open_channel before.")
        self._agree()
        for track in self._to_send:
            self._connection.addTransceiver(track, "sendrecv")
        await self._do(describe(self._connection, self._ice))
        return self._described()

    async def accept(self, answer: Description) -> None:
        """Take the other side's answer to our offer; the connection is made from then on.

        Raises:
            SourceError: The answer cannot be understood, or does not fit; the other side's fault.

        Cancellation: safe; close the peer.
        """
        session = read(answer, "answer", self._ice)
        self._check_open()
        await self._do(apply(self._connection, session))
        self._watch()

    async def connected(self) -> None:
        """Wait until the connection stands.

        Raises:
            SourceError: It ended instead; the text has the reason.

        Cancellation: safe.
        """
        await self._connected.wait()
        if self._reason is not None:
            raise SourceError(f"the connection has ended: {self._reason}. {self._remedy()}")

    # -- media and messages ---------------------------------------------------------------------------------------

    @property
    def video(self) -> RemoteVideos:
        """The videos that the other side sends, in the order of its description."""
        return self._videos

    def send_video(self, track: MediaStreamTrack | PictureTrack) -> None:
        """Send a video; call it before `answer` or `offer`. The track is stopped when the connection ends.

        Raises:
            ConfigurationError: It is no video, or it is too late; the caller's fault.
            SourceError: The connection has ended.
        """
        if track.kind != "video":
            raise ConfigurationError(f"the track is {track.kind}. Pass a video track.")
        self._check_open()
        if self._is_agreed:
            raise ConfigurationError("the peers have agreed on their media. Call send_video before answer or offer.")
        self._to_send.append(track)

    def receive_video(self) -> None:
        """Ask for a video without sending one; for the side that makes the offer, before `offer`."""
        self._check_open()
        self._connection.addTransceiver("video", "recvonly")

    def open_channel(self, label: str, *, ordered: bool = True, max_retransmits: int | None = None) -> DataChannel:
        """Open a data channel; the first before `offer`, or into a connection whose offer had one.

        Args:
            label: Its name; the other side finds it by `channel`.
            ordered: Whether messages come in the order they were sent.
            max_retransmits: How often a lost message is sent again; None: until it came. With 0, and not `ordered`, it
                is right for what is out of date in a moment.

        Raises:
            ConfigurationError: There is a channel of this name; the caller's fault.
            SourceError: The connection has ended.
        """
        self._check_open()
        if label in self._channels:
            raise ConfigurationError(f"there is a channel {label!r} already. Choose another label.")
        channel = self._connection.createDataChannel(label, ordered=ordered, maxRetransmits=max_retransmits)
        return self._keep_channel(channel)

    async def channel(self, label: str) -> DataChannel:
        """Wait for the data channel of this name, whichever side opens it.

        Raises:
            SourceError: The connection ended before.

        Cancellation: safe.
        """
        while label not in self._channels:
            if self._reason is not None:
                raise SourceError(f"the connection ended without a channel {label!r}: {self._reason}. {self._remedy()}")
            self._channel_news.clear()
            await self._channel_news.wait()
        return self._channels[label]

    # -- the end --------------------------------------------------------------------------------------------------

    async def closed(self) -> CloseReason:
        """Wait until the connection has ended and everything was given back; return why.

        Cancellation: safe.
        """
        await self._ended.wait()
        assert self._reason is not None
        return self._reason

    async def close(self) -> None:
        """End the connection, and wait until everything was given back; further calls only wait.

        Cancellation: waits for the end, at most `close_timeout_s` and what cutting off takes, then raises.
        """
        self._end(CloseReason.CLOSED)
        await to_the_end(self._ended.wait(), name="partime webrtc close")

    def statistics(self) -> PeerStatistics:
        """Return how the connection is."""
        return PeerStatistics(
            self._connection.connectionState,
            self._reason,
            self._pulse.round_trip_s,
            len(self._intakes),
            len(self._channels),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # -- inside ---------------------------------------------------------------------------------------------------

    async def _do(self, step: Coroutine[None, None, None]) -> None:
        """Take a step of aiortc's to its end, however the caller is cancelled: half of one leaves sockets behind."""
        self._step = self._start(step, "partime webrtc negotiation")
        await asyncio.shield(self._step)

    def _agree(self) -> None:
        self._check_open()
        if self._is_agreed:
            raise ConfigurationError("the peers have agreed already. Make another Peer for another offer.")
        self._is_agreed = True

    def _described(self) -> Description:
        local = self._connection.localDescription
        return Description(local.sdp, local.type)

    def _watch(self) -> None:
        if self._reason is not None:
            return
        if self._ends_pictures:
            for sender in self._connection.getSenders():
                if sender.kind == "video":
                    end_pictures(sender)
        self._start(self._live(), "partime webrtc pulse")

    async def _live(self) -> None:
        """See the connection made, and then the other side's last sign of life."""
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await self._connected.wait()
        except TimeoutError:
            self._end(CloseReason.UNREACHABLE)
            return
        await self._pulse.until_silent()
        self._end(CloseReason.SILENT)

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind != "video" or self._reason is not None:
            return
        (receiver,) = (each for each in self._connection.getReceivers() if each.track is track)
        video = RemoteVideo(track, Reception(receiver), len(self._intakes))
        self._intakes.append(video)
        self._start(video.intake.run(), "partime webrtc drain")
        self._videos.add(video)

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if self._reason is not None or channel.label in self._channels or len(self._channels) >= MAX_CHANNELS:
            channel.close()
            return
        self._keep_channel(channel)

    def _keep_channel(self, channel: RTCDataChannel) -> DataChannel:
        kept = self._channels[channel.label] = DataChannel(channel)
        self._channel_news.set()
        return kept

    def _on_state(self) -> None:
        state = self._connection.connectionState
        if state == "connected":
            self._connected.set()
        elif state == "failed":
            self._end(CloseReason.LOST if self._connected.is_set() else CloseReason.UNREACHABLE)
        elif state == "closed":
            self._end(CloseReason.LEFT)

    def _end(self, reason: CloseReason) -> None:
        """Begin to end, once; the first reason counts."""
        if self._reason is None:
            self._reason = reason
            self._ending = self._loop.create_task(self._give_back(), name="partime webrtc end")

    async def _give_back(self) -> None:
        try:
            self._videos.end()
            self._channel_news.set()
            self._connected.set()
            for video in self._intakes:
                video.intake.end()
            for channel in self._channels.values():
                channel.end()
            if self._step is not None:
                await asyncio.wait([self._step], timeout=self._close_timeout_s)
                self._step = None  # what it raised knows this peer
            receptions = [video.intake.reception for video in self._intakes if video.intake.reception is not None]
            tracks = [each.sender.track for each in self._connection.getTransceivers()]
            await shut(self._connection, receptions, self._close_timeout_s)
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)
            for track in [*tracks, *self._to_send]:
                if isinstance(track, PictureTrack):
                    await track.aclose()
        finally:
            self._ended.set()

    def _start(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _check_open(self) -> None:
        if self._reason is not None:
            raise SourceError(f"the connection has ended: {self._reason}. Make another Peer.")

    def _remedy(self) -> str:
        if self._reason is CloseReason.UNREACHABLE:
            return "Check that both sides use addresses that reach each other; see Ice."
        return "Let the other side connect again."
