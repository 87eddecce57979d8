"""Two real peers in one process, over loopback, and pictures that carry a number through the codec."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
from av import VideoFrame

from benchmarks.live import stamp
from partime_async.picture import Image
from partime_async.webrtc import DataChannel, Peer, PictureTrack, RemoteVideo

PATIENCE_S = 20.0


def picture(number: int, *, height: int = stamp.HEIGHT, width: int = stamp.WIDTH) -> Image:
    """Return a grey picture that carries a number."""
    luma = np.full((height, width), 90, np.uint8)
    stamp.write(luma, number)
    return np.repeat(luma[:, :, None], 3, axis=2)


def number_of(image: Image | None) -> int | None:
    """Return the number that a picture carries."""
    assert image is not None
    return stamp.read(image.mean(axis=2).astype(np.uint8))


def number_in(frame: VideoFrame) -> int | None:
    """Return the number that a frame of aiortc's carries."""
    return number_of(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8))


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for something that real packets bring about."""
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():  # noqa: ASYNC110 - the other side tells nobody
            await asyncio.sleep(0.002)


@dataclass(frozen=True, slots=True)
class Call:
    """Two peers that are connected.

    Attributes:
        caller: Made the offer; sends `camera`.
        answerer: Made the answer; gets `video`.
        camera: What the caller sends.
        video: The same, where it arrives.
        control: The caller's end of a data channel.
    """

    caller: Peer
    answerer: Peer
    camera: PictureTrack
    video: RemoteVideo
    control: DataChannel

    async def show(self, number: int, *, height: int = stamp.HEIGHT, width: int = stamp.WIDTH) -> None:
        """Send a picture, and wait until it has arrived."""
        before = self.video.intake.received
        self.camera.show(picture(number, height=height, width=width))
        await until(lambda: self.video.intake.received > before)


async def connect(caller: Peer, answerer: Peer) -> None:
    """Let two peers agree, and wait until both are connected."""
    await caller.accept(await answerer.answer(await caller.offer()))
    async with asyncio.timeout(PATIENCE_S):
        await caller.connected()
        await answerer.connected()


@asynccontextmanager
async def calling(*, silence_s: float = 3.0, ends_pictures: bool = False) -> AsyncIterator[Call]:
    """Connect two peers, the caller with a camera and a data channel."""
    caller = Peer(silence_s=silence_s, ends_pictures=ends_pictures)
    async with caller, Peer(silence_s=silence_s) as answerer:
        camera = PictureTrack(frame_rate=1000.0)
        caller.send_video(camera)
        control = caller.open_channel("control")
        await connect(caller, answerer)
        yield Call(caller, answerer, camera, await answerer.video, control)
