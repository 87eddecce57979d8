"""Run a network over frames: one with `process`, many with `stream`.

Install:  pip install partime-async
Run:      python examples/quickstart.py
Expect:   (... stands for figures of your machine)

    one frame: output (1, 10) after ... ms, the network's own numbers: True
    stream: 100 results in order: True
    frames/s: ...
    stage 0 (0 to ...): ... ms a frame
    stage 1 (... to 16): ... ms a frame
"""

import asyncio

import torch
from torch import Tensor, nn

import partime_async as pa

network = nn.Sequential(*[layer for _ in range(8) for layer in (nn.Linear(256, 256), nn.ReLU())], nn.Linear(256, 10))
frames = torch.rand(100, 256)  # as a source they are a hundred frames of shape (1, 256)


async def main() -> None:
    """Cut the network into two stages and send frames through them."""
    async with pa.Pipeline(network, example=frames[:1], stages=2) as pipeline:
        result = await pipeline.process(frames[:1])
        assert isinstance(result.output, Tensor)
        is_same = torch.allclose(result.output, network(frames[:1]))
        shape, latency_ms = tuple(result.output.shape), 1e3 * result.latency_s
        print(f"one frame: output {shape} after {latency_ms:.1f} ms, the network's own numbers: {is_same}")

        order = [result.sequence async for result in pipeline.stream(frames)]
        print(f"stream: {len(order)} results in order: {order == sorted(order)}")

        statistics = pipeline.statistics()
        print(f"frames/s: {statistics.throughput:.0f}")
        for stage in statistics.stages:
            first, last = stage.layers
            print(f"stage {stage.stage} ({first} to {last}): {1e3 * stage.service_s.p50:.2f} ms a frame")


asyncio.run(main())
