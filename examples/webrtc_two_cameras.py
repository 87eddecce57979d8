"""Let two cameras share one network over WebRTC: each is a peer with a feed of its own, and sees its result as video.

The cameras are peers in this program, over loopback; a browser's would come the same way, its offer by HTTP. Each sends
30 pictures a second, more than the network can do for both, so each feed takes the newest, and they take turns.

Install:  pip install 'partime-async[webrtc]'
Run:      python examples/webrtc_two_cameras.py
Expect:   (... stands for figures of your machine)

    left: ... pictures came, ... results, ... ms old, ...% of the turns
    right: ... pictures came, ... results, ... ms old, ...% of the turns
    every picture accounted for: True
    pictures that came back: ... and ...
"""

import asyncio
import time

import numpy as np
import torch

import partime_async as pa
from partime_async.models import deep_conv
from partime_async.webrtc import Peer, PictureTrack, WebRTCStatistics, webrtc_frames

SECONDS, SIDE = 3.0, 48


async def camera(track: PictureTrack, hue: int) -> None:
    """Film a bright bar that wanders through the picture."""
    for number in range(10**9):
        picture = np.full((240, 320, 3), 40, np.uint8)
        picture[:, 4 * number % 300 :][:, :20, hue] = 220
        track.show(picture, captured_at=time.monotonic())
        await asyncio.sleep(1 / 30)


async def serve(pipeline: pa.Pipeline, peer: Peer, back: PictureTrack) -> tuple[WebRTCStatistics, list[float]]:
    """Run the newest picture of a peer whenever it is its turn, and send what the network makes of it back."""
    ages = []
    async with webrtc_frames(await peer.video, size=(SIDE, SIDE)) as frames:
        async for result in pipeline.stream(frames, overflow="latest"):
            assert isinstance(result.output, torch.Tensor)
            back.show((result.output[0].permute(1, 2, 0) * 255).byte().numpy(), captured_at=result.captured_at)
            ages.append(result.latency_s)
    return frames.statistics(), ages


async def main() -> None:
    """Connect two cameras, let them be served for a while, and count."""
    network, example = deep_conv(layers=20), torch.zeros(1, 3, SIDE, SIDE)
    films, backs = [PictureTrack(), PictureTrack()], [PictureTrack(), PictureTrack()]
    async with pa.Pipeline(network, example, stages=2) as pipeline, asyncio.TaskGroup() as tasks:
        served, filming, callers = [], [], []
        for number, (film, back) in enumerate(zip(films, backs, strict=True)):
            caller, peer = Peer(), Peer()  # the two ends: a browser would be the first
            caller.send_video(film)
            peer.send_video(back)
            await caller.accept(await peer.answer(await caller.offer()))
            filming.append(tasks.create_task(camera(film, 2 * number)))
            served.append(tasks.create_task(serve(pipeline, peer, back)))
            callers.append(caller)
        await asyncio.sleep(SECONDS)
        for task in filming:
            task.cancel()
        seen = [(await caller.video).intake.received for caller in callers]
        await asyncio.gather(
            *(caller.close() for caller in callers)
        )  # the frames of their peers end, and so does serve
        found = [await task for task in served]
    turns = sum(len(ages) for _, ages in found)
    for name, (counts, ages) in zip(("left", "right"), found, strict=True):
        middle = f"{1e3 * sorted(ages)[len(ages) // 2]:.0f} ms old"
        share = f"{len(ages) / turns:.0%} of the turns"
        print(f"{name}: {counts.received} pictures came, {len(ages)} results, {middle}, {share}")
    is_accounted = all(each.received == each.delivered + each.superseded for each, _ in found)
    print(f"every picture accounted for: {is_accounted}")
    print(f"pictures that came back: {seen[0]} and {seen[1]}")


asyncio.run(main())
