"""Use a network of your own: a residual module, traced and cut wherever it pays, also across its skip connections.

Install:  pip install partime-async
Run:      python examples/own_network.py
Expect:   (... stands for figures of your machine)

    stage  device  threads  layers...
    ...
    predicted: ... frames/s, latency ... ms
    200 frames through stages of [...] layers, all equal to the network's own: True
    keys of the weights: stem.weight ... head.bias
"""

import asyncio

import torch
from torch import Tensor, nn

import partime_async as pa


class Residual(nn.Module):
    """Two layers with a way around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)

    def forward(self, value: Tensor) -> Tensor:
        """Return the value plus what the layers make of it."""
        around: Tensor = self.second(torch.relu(self.first(value)))
        return value + around


class Network(nn.Module):
    """A stem, eight residual blocks and a head: no nn.Sequential, just Python."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 256)
        self.blocks = nn.ModuleList(Residual(256) for _ in range(8))
        self.head = nn.Linear(256, 4)

    def forward(self, value: Tensor) -> Tensor:
        """Return the output of the head."""
        value = self.stem(value)
        for block in self.blocks:
            value = block(value)
        output: Tensor = self.head(value)
        return output


async def main() -> None:
    """Run the network in two stages and compare."""
    network, frames = Network(), torch.rand(200, 64)
    print(await asyncio.to_thread(pa.plan, network, frames[:1], stages=2))  # measures the layers: takes a moment
    async with pa.Pipeline(network, example=frames[:1], stages=2) as pipeline:
        outputs = [result.output async for result in pipeline.stream(frames)]
        balance, keys = pipeline.plan.balance, list(await pipeline.state_dict())
    with torch.no_grad():
        expected = [network(frame[None]) for frame in frames]
    is_same = all(
        isinstance(output, Tensor) and torch.allclose(output, right, rtol=1e-4, atol=1e-5)
        for output, right in zip(outputs, expected, strict=True)
    )
    print(f"{len(outputs)} frames through stages of {list(balance)} layers, all equal to the network's own: {is_same}")
    print(f"keys of the weights: {keys[0]} ... {keys[-1]}")


asyncio.run(main())
