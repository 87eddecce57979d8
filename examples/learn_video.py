"""Predict the next frame of a video while it plays, and learn from every miss.

A small convolutional network in two stages learns, frame by frame, to change each picture into the one after it. The
error it makes is compared with that of the best guess without a network: "the next frame looks like this one".

Install:  pip install 'partime-async[video]'
Run:      python examples/learn_video.py [clip.mp4] [number of frames]
Expect:   a line per hundred frames; without a clip, over the built-in scene, the network's error falls to two thirds of
          the guess's. A real clip with cuts is harder: there it comes level, and gets ahead between cuts.
"""

import asyncio
import sys
from functools import partial

import torch
from torch import Tensor, nn

import partime_async as pa
from partime_async.sources import Scene, VideoFile


class Motion(pa.Stateful):
    """The picture, and how it differs from the one before; every feed of the pipeline has a memory of its own."""

    def initial_state(self) -> Tensor:
        return torch.zeros(0)

    def step(self, value: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return torch.cat((value, value - state if len(state) else torch.zeros_like(value)), 1), value


class Change(nn.Module):
    """The picture plus what the layers make of its motion: a network that starts from the guess."""

    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        self.motion = Motion()
        self.look = nn.Sequential(nn.Conv2d(6, channels, 5, padding=2), nn.ReLU())
        self.think = nn.Sequential(nn.Conv2d(channels, channels, 5, padding=2), nn.ReLU())
        self.say = nn.Conv2d(channels, 3, 5, padding=2)

    def forward(self, picture: Tensor) -> Tensor:
        change: Tensor = self.say(self.think(self.look(self.motion(picture))))
        return picture + change


async def main(path: str | None, count: int) -> None:
    size = (48, 48)
    clip = VideoFile(path, size=size, loop=True, max_frames=count) if path else Scene(size=size, frames=count)
    torch.manual_seed(0)
    network = Change()
    with torch.no_grad():
        network.say.weight.mul_(0.1)  # next to nothing changes, until it has learned what does
    learner = pa.Learner(nn.functional.mse_loss, partial(torch.optim.Adam, lr=3e-4), clip_norm=0.02)
    errors: list[float] = []
    guesses: list[float] = []
    async with pa.Pipeline(network, torch.zeros(1, 3, *size), stages=2, learner=learner) as pipeline:
        async for result in pipeline.stream(pa.targets.ahead(clip)):
            frame = result.context
            if result.loss is None or not isinstance(frame, pa.SourceFrame):
                continue  # the last frame has no target
            assert isinstance(frame.value, Tensor)
            assert isinstance(frame.target, Tensor)
            errors.append(result.loss)
            guesses.append(float(nn.functional.mse_loss(frame.value, frame.target)))
            if len(errors) % 100 == 0:
                ours, plain = sum(errors[-100:]) / 100, sum(guesses[-100:]) / 100
                print(f"frames to {len(errors):4}: network {ours:.5f}, guess {plain:.5f}, ratio {ours / plain:.2f}")


if __name__ == "__main__":
    number = next((int(word) for word in sys.argv[1:] if word.isdigit()), 600)
    asyncio.run(main(next((word for word in sys.argv[1:] if not word.isdigit()), None), number))
