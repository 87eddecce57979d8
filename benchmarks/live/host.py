"""A program that serves callers until Ctrl-C: what is timed is its end.

``python -m benchmarks.live.host``: reads an offer as a line of JSON, writes the answer, and so on.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack, suppress

import uvloop

from partime_async.webrtc import Description, Peer, PictureTrack, RemoteVideo, webrtc_frames


async def main() -> None:
    """Serve: every caller's pictures go back to it."""
    # Read on a thread: the loop has to be free. On Ctrl-C the thread is let go, as it waits for ever.
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=2**20)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        async with asyncio.TaskGroup() as clients:
            while line := await reader.readline():
                offer = json.loads(line)
                clients.create_task(serve(Description(offer["sdp"], offer["type"])))
    finally:
        transport.close()


async def serve(offer: Description) -> None:
    """Answer a caller and send its pictures back until it leaves."""
    back = PictureTrack()
    async with AsyncExitStack() as stack:
        peer = await stack.enter_async_context(Peer())
        peer.send_video(back)
        answer = await peer.answer(offer)
        print(json.dumps({"sdp": answer.sdp, "type": answer.type}), flush=True)
        await _echo(await peer.video, back)
        await peer.closed()


async def _echo(video: RemoteVideo, back: PictureTrack) -> None:
    async with webrtc_frames(video, size=(64, 64)) as frames:
        async for frame in frames:
            assert frame.image is not None
            back.show(frame.image, captured_at=frame.captured_at)


if __name__ == "__main__":
    # Ctrl-C cancels `main`, which closes every peer on its way out.
    with suppress(KeyboardInterrupt):
        uvloop.run(main())
