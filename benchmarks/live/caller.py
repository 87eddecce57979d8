"""A caller in a process of its own: sends stamped pictures at a steady rate, and times those that come back.

Run by path, ``python caller.py SECONDS``: it writes its offer as a line of JSON, reads the answer as another, and
writes what it measured as a third when the time is up; with 0 seconds it goes on until it is ended. It is plain aiortc
and knows nothing of the library: its own jitter buffer holds each picture back until a packet with another timestamp
comes, which is the next picture's, 33 ms later, unless who serves it sends one at once.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import aioice.ice
import numpy as np
import numpy.typing as npt
from aiortc import (
    MediaStreamError,
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCSessionDescription,
)
from av import VideoFrame

sys.path.insert(0, str(Path(__file__).parent))
import stamp  # type: ignore[import-not-found]  # next to this file; the package would import torch

RATE_HZ = 30.0
PING_HZ = 10.0
_CLOCK_RATE = 90_000
_BACKGROUNDS = 30


class Camera(MediaStreamTrack):
    """Stamped pictures of a moving scene, each made at its time."""

    kind = "video"

    def __init__(self) -> None:
        super().__init__()
        self.made_at: list[float] = []
        self._scenes = [_scene(index) for index in range(_BACKGROUNDS)]
        self._due = 0.0

    async def recv(self) -> VideoFrame:
        """Return the next picture when its time has come."""
        now = time.monotonic()
        self._due = max(self._due + 1.0 / RATE_HZ, now) if self._due else now
        await asyncio.sleep(self._due - now)
        number = len(self.made_at)
        picture = self._scenes[number % _BACKGROUNDS].copy()
        stamp.write(picture[: stamp.HEIGHT], number)
        frame = VideoFrame.from_ndarray(picture, format="yuv420p")
        made_at = time.monotonic()
        frame.pts = round((made_at - self.made_at[0]) * _CLOCK_RATE) if self.made_at else 0
        frame.time_base = Fraction(1, _CLOCK_RATE)
        self.made_at.append(made_at)
        return frame


def _scene(index: int) -> npt.NDArray[np.uint8]:
    """Draw a bright ball over a gradient, at one of its places; planes of yuv420p below each other."""
    rows, columns = np.mgrid[0 : stamp.HEIGHT, 0 : stamp.WIDTH]
    angle = 2 * np.pi * index / _BACKGROUNDS
    ball = np.hypot(columns - 160 - 100 * np.cos(angle), rows - 150 - 60 * np.sin(angle)) < 24
    luma = np.where(ball, 220, 60 + columns // 4 + rows // 8).astype(np.uint8)
    colours = np.full((stamp.HEIGHT // 2, stamp.WIDTH), 128, np.uint8)
    colours[: stamp.HEIGHT // 4] = 110
    return np.concatenate([luma, colours])


class Call:
    """The connection, and what was seen of it."""

    def __init__(self) -> None:
        self.camera = Camera()
        self.returned: list[tuple[int, float]] = []
        self.unreadable = 0
        self.round_trips_s: list[float] = []
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.connection.addTrack(self.camera)
        self.connection.on("track", self._on_track)
        self._echo = self.connection.createDataChannel("echo")
        self._echo.on("message", self._on_echo)
        self._tasks: set[asyncio.Task[None]] = set()

    async def offer(self) -> str:
        """Return the offer as JSON."""
        await self.connection.setLocalDescription()
        local = self.connection.localDescription
        return json.dumps({"sdp": local.sdp, "type": local.type})

    async def measure(self, answer: str, seconds: float) -> str:
        """Take the answer, call for so long, and return what was measured as JSON."""
        await self.connection.setRemoteDescription(RTCSessionDescription(**json.loads(answer)))
        self._start(self._ping(self._echo))
        await asyncio.sleep(seconds or 1e9)
        return json.dumps(
            {
                "made_at": self.camera.made_at,
                "returned": self.returned,
                "unreadable": self.unreadable,
                "round_trips_s": self.round_trips_s,
            }
        )

    def _on_track(self, track: MediaStreamTrack) -> None:
        self._start(self._watch(track))

    async def _watch(self, track: MediaStreamTrack) -> None:
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            came_at = time.monotonic()
            assert isinstance(frame, VideoFrame)
            number = stamp.read(frame.to_ndarray()[: stamp.HEIGHT])
            if number is None:
                self.unreadable += 1
            else:
                self.returned.append((number, came_at))

    async def _ping(self, channel: RTCDataChannel) -> None:
        while True:
            await asyncio.sleep(1.0 / PING_HZ)
            if channel.readyState == "open":
                channel.send(repr(time.monotonic()))

    def _on_echo(self, message: str) -> None:
        self.round_trips_s.append(time.monotonic() - float(message))

    def _start(self, work: object) -> None:
        assert asyncio.iscoroutine(work)
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)


async def main(seconds: float) -> None:
    """Call whoever reads standard output and answers on standard input."""
    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]
    call = Call()
    print(await call.offer(), flush=True)
    answer = await asyncio.to_thread(sys.stdin.readline)
    try:
        print(await call.measure(answer, seconds), flush=True)
    finally:
        await call.connection.close()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(float(sys.argv[1])))
