"""Answer a browser's camera from a FastAPI route, with the library's parts and no server of its own.

One pipeline lives as long as the application; every camera is a live feed of it, and sees the results as a video. The
route does what a browser needs: it takes an offer (SDP) and gives an answer. Here a Python peer plays the browser.

Install:  pip install 'partime-async[webrtc]' fastapi uvicorn httpx
Run:      python examples/embed_fastapi.py
Expect:   (... stands for figures of your machine)

    the camera sends brightness 200 and sees ..., after ... ms
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx
import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from torch import nn

import partime_async as pa
from partime_async.webrtc import Description, Peer, PictureTrack, webrtc_frames

SIZE = (48, 64)
example = torch.zeros(1, 3, *SIZE)
pipeline = pa.Pipeline(nn.Sequential(nn.Identity(), nn.Threshold(0.5, 0.0)), example, stages=1)
cameras: set[asyncio.Task[None]] = set()


class Sdp(BaseModel):
    sdp: str
    type: str


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Hold the pipeline and the cameras for as long as the application runs."""
    async with pipeline:
        yield
        for camera in cameras:
            camera.cancel()
        await asyncio.gather(*cameras, return_exceptions=True)


app = FastAPI(lifespan=lifespan)


@app.post("/offer")
async def offer(said: Sdp) -> Sdp:
    """Answer a camera's offer; it is served from then on."""
    peer, picture = Peer(), PictureTrack()
    peer.send_video(picture)
    try:
        answer = await peer.answer(Description(said.sdp, said.type))
    except pa.SourceError as error:
        await peer.close()
        raise HTTPException(400, str(error)) from error
    camera = asyncio.create_task(serve(peer, picture))
    cameras.add(camera)
    camera.add_done_callback(cameras.discard)
    return Sdp(sdp=answer.sdp, type=answer.type)


async def serve(peer: Peer, picture: PictureTrack) -> None:
    """Run the newest frames of one camera through the pipeline, until it leaves."""
    with suppress(pa.SinkError):  # it has left between a frame and its result
        async with peer:
            async for video in peer.video:
                async for result in pipeline.stream(webrtc_frames(video, size=SIZE), overflow="latest"):
                    assert isinstance(result.output, torch.Tensor)
                    pixels = (255.0 * result.output[0].permute(1, 2, 0)).to(torch.uint8)
                    picture.show(pixels.numpy(), captured_at=result.captured_at)


async def be_a_browser(url: str) -> None:
    """Send a grey picture until it comes back."""
    async with Peer() as peer, httpx.AsyncClient() as http:
        camera = PictureTrack()
        peer.send_video(camera)
        made = await peer.offer()
        answer = (await http.post(f"{url}/offer", json={"sdp": made.sdp, "type": made.type})).json()
        await peer.accept(Description(answer["sdp"], answer["type"]))
        await peer.connected()
        began = time.monotonic()
        camera.show(np.full((*SIZE, 3), 200, np.uint8))
        async for frame in webrtc_frames(await peer.video):
            assert frame.image is not None
            seen, after_ms = frame.image.mean(), 1e3 * (time.monotonic() - began)
            print(f"the camera sends brightness 200 and sees {seen:.0f}, after {after_ms:.0f} ms")
            break


async def main() -> None:
    """Serve with uvicorn, and be a browser."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    await be_a_browser(f"http://127.0.0.1:{port}")
    server.should_exit = True
    await serving


asyncio.run(main())
