"""Let a small network of your own learn from a browser's camera, and watch what it expects next turn into a picture.

Every browser's camera is a live feed of one pipeline. A frame's target is the frame after it, so nobody has to label
anything; what the network expects goes back as a video. The page is the one of `partime-async serve`.

Install:  pip install 'partime-async[serve]'
Run:      python examples/browser_camera.py [seconds]     (without them until Ctrl-C)
Expect:   (... stands for figures of your machine; the second line comes every 5 s, and last when it ends)

    open http://127.0.0.1:8765/ and start the camera
    ...
    learned: ... frames...

          In the page, grey turns into shapes within about ten seconds, and these get sharper and coloured.
"""

import asyncio
import sys
from contextlib import suppress
from functools import partial

import torch
from torch import nn

import partime_async as pa
from partime_async.serve import VIEWER, Access, ModelService, Server, make_app

HEIGHT, WIDTH = 96, 128


def network() -> nn.Sequential:
    """Return what forecasts a picture from the one before; any module whose output is a picture will do."""
    return nn.Sequential(
        nn.PixelUnshuffle(2),
        *(nn.Conv2d(12, 32, 5, padding=2), nn.ReLU()),
        *(nn.Conv2d(32, 32, 5, padding=2), nn.ReLU()),
        nn.Conv2d(32, 12, 5, padding=2),
        nn.PixelShuffle(2),
        nn.Sigmoid(),
    )


async def main(seconds: float | None) -> None:
    """Serve, and tell how learning goes."""
    example = torch.zeros(1, 3, HEIGHT, WIDTH)
    learner = pa.Learner(nn.functional.mse_loss, partial(torch.optim.Adam, lr=0.002))
    pipeline = pa.Pipeline(network(), example, stages=2, learner=learner)
    service = ModelService(pipeline, example, teach=pa.targets.ahead, summary="The next picture, as it is expected")
    # Only this machine is served. For others: Access(token, hosts=frozenset({"camera.example"})), and https.
    app = make_app({"forecast": service}, access=Access.local(), page=VIEWER)
    async with Server(app, port=8765 if seconds is None else 0) as server:
        print(f"open {server.url} and start the camera", flush=True)
        while seconds is None or seconds > 0.0:
            await asyncio.sleep(5.0 if seconds is None else min(5.0, seconds))
            seconds = None if seconds is None else seconds - 5.0
            learning = pipeline.statistics().learning
            assert learning is not None
            loss = f", loss {learning.loss.recent:.4f}" if learning.loss.count else ""
            print(f"learned: {learning.loss.count} frames{loss}", flush=True)
            # The trained weights, while it runs: await pipeline.save("camera.safetensors")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else None))
