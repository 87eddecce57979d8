"""FastRTC as a peer, in its own environment: serves one caller, and tells how its event loop fares.

``out/fastrtc/bin/python fastrtc_host.py ORDER``, ORDER being JSON with a network and `skip_frames`: serves
``POST /webrtc/offer`` as FastRTC's documentation has it, writes its port as a line of JSON, and then, once a second,
what it measured of itself.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aioice.ice
import fastrtc.webrtc_connection_mixin as connections  # type: ignore[import-not-found]  # in its own environment
import numpy as np
import numpy.typing as npt
import torch
import uvicorn
from av import VideoFrame
from fastapi import FastAPI
from fastrtc import Stream, VideoStreamHandler

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.live.networks import Network

Picture = npt.NDArray[np.uint8]

_CALLER = "caller"
_INTERVAL_S = 0.02
_TELL_EVERY_S = 0.5


def handler(network: Network) -> Callable[[Picture], Picture]:
    """Return what FastRTC calls with every picture: it runs the network and gives the picture back."""
    module = network.module()

    def process(picture: Picture) -> Picture:
        frame = VideoFrame.from_ndarray(picture, format="bgr24")
        image = frame.reformat(width=network.side, height=network.side, format="rgb24").to_ndarray()
        value = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div(255)[None]
        with torch.inference_mode():
            module(value)
        return picture

    return process


def answered_plainly(kind: str, data: object) -> str:
    """Return a message of FastRTC's; of its echo, which it wraps into words, what the caller sent."""
    if kind == "log" and isinstance(data, str):
        return data.removeprefix("Server received: ")
    return json.dumps({"type": kind, "data": data})


async def watch(stream: Stream) -> None:
    """Have the caller's pictures processed from when it is there, and tell how late this loop's timers are."""
    told_at, lags = time.monotonic(), []
    while True:
        due = time.monotonic() + _INTERVAL_S
        await asyncio.sleep(_INTERVAL_S)
        now = time.monotonic()
        lags.append(max(0.0, now - due))
        # Without inputs FastRTC hands pictures on unprocessed; the picture takes the place of the first of them.
        if _CALLER in stream.connections:
            stream.set_input(_CALLER, None)
        if now - told_at >= _TELL_EVERY_S:
            print(json.dumps({"lags_s": lags}), flush=True)
            told_at, lags = now, []


def main(order: str) -> None:
    """Serve until the process is ended."""
    said = json.loads(order)
    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]
    connections.create_message = answered_plainly
    process = handler(Network(**said["network"]))
    stream = Stream(
        VideoStreamHandler(process, skip_frames=said["skip_frames"]),
        modality="video",
        mode="send-receive",
        server_rtc_configuration={"iceServers": []},
        verbose=False,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(watch(stream))
        yield
        watching.cancel()

    app = FastAPI(lifespan=lifespan)
    stream.mount(app)
    listening = socket.create_server(("127.0.0.1", 0))
    print(json.dumps({"port": listening.getsockname()[1]}), flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listening])


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main(sys.argv[1])
