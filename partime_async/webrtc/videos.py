"""The videos that a peer sends."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Generator

from partime_async.errors import MissingDependencyError, SourceError
from partime_async.webrtc.intake import Intake
from partime_async.webrtc.reception import Reception

try:
    from aiortc import MediaStreamError, MediaStreamTrack
    from av import VideoFrame
except ImportError as error:
    raise MissingDependencyError("aiortc", "webrtc") from error


class RemoteVideo(MediaStreamTrack):
    """A video that comes from a peer, drained whether it is read or not.

    `recv` gives the newest picture, so everything of aiortc's that takes a track takes this one; `webrtc_frames` makes
    a source of frames of it. One task reads each.

    Attributes:
        intake: Where its newest picture is.
        number: Which of the peer's videos it is, from 0.
    """

    kind = "video"

    def __init__(self, track: MediaStreamTrack, reception: Reception, number: int) -> None:
        super().__init__()
        self._id = track.id
        self.intake = Intake(track, reception)
        self.number = number

    async def recv(self) -> VideoFrame:
        """Return the newest picture, waiting for one that was not returned before.

        Raises:
            MediaStreamError: The video has ended.

        Cancellation: safe; the picture stays for the next call.
        """
        arrival = None if self.readyState != "live" else await self.intake.take()
        if arrival is None:
            self.stop()
            raise MediaStreamError
        return arrival.frame


class RemoteVideos:
    """The other side's videos: ``await peer.video`` for the next one, ``async for video in peer.video`` for all."""

    def __init__(self) -> None:
        self._unread: deque[RemoteVideo] = deque()
        self._news = asyncio.Event()
        self._is_ended = False

    def __aiter__(self) -> AsyncIterator[RemoteVideo]:
        return self

    async def __anext__(self) -> RemoteVideo:
        """Return the next video; the end comes with the connection's.

        Cancellation: safe; no video is lost.
        """
        while not self._unread:
            if self._is_ended:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._unread.popleft()

    def __await__(self) -> Generator[None, None, RemoteVideo]:
        return self._next().__await__()

    async def _next(self) -> RemoteVideo:
        try:
            return await anext(self)
        except StopAsyncIteration:
            raise SourceError(
                "the connection ended before there was a video. Look at closed() for the reason."
            ) from None

    def add(self, video: RemoteVideo) -> None:
        """Take note of another one."""
        self._unread.append(video)
        self._news.set()

    def end(self) -> None:
        """Take note that there will be no more."""
        self._is_ended = True
        self._news.set()
