"""Run a ResNet over a video, at the video's own pace, and say what it sees; without a path, over a moving scene.

The weights are random. Those of torchvision fit: `network.load_state_dict(flat_state_dict(theirs.state_dict()))`.

Install:  pip install 'partime-async[video]'
Run:      python examples/video_file.py [clip.mp4]
Expect:   (... stands for what depends on clip and machine)

    ...: ... frames/s...
    0.0 s: class ..., ... ms old
    ...
    ... frames: ... delivered, ... dropped, because the newest counts
"""

import asyncio
import sys

import torch
from torch import Tensor

import partime_async as pa
from partime_async.models import resnet18
from partime_async.sources import open_source

SIZE = (128, 96)
FRAMES = 60


async def main(path: str | None) -> None:
    """Stream the first seconds of the video and print a line twice a second."""
    torch.manual_seed(0)
    network = resnet18().eval()  # inference: normalise by what was learned, not by this one frame
    example = torch.rand(1, 3, SIZE[1], SIZE[0])
    async with pa.Pipeline(network, example, stages=2) as pipeline:
        # Opening reads the file's header: in a thread, so that nothing else waits for the disk.
        source = await asyncio.to_thread(
            lambda: open_source(path or "scene", size=SIZE, max_frames=FRAMES, realtime=True)
        )
        print(source.describe())
        shown_s = -1.0
        async for result in pipeline.stream(source, overflow="latest"):
            frame, output = result.context, result.output
            assert isinstance(frame, pa.SourceFrame)
            assert isinstance(output, Tensor)
            position_s = frame.position_s or 0.0
            if position_s - shown_s >= 0.5:
                shown_s = position_s
                print(f"{position_s:.1f} s: class {int(output.argmax())}, {1e3 * result.latency_s:.0f} ms old")
        source.close()
        count = pipeline.statistics().frames
    print(
        f"{count.offered} frames: {count.delivered} delivered, {count.dropped_total} dropped, because the newest counts"
    )


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
