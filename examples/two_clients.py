"""Let clients share one pipeline: each has a feed of its own, and they are served in turn, however much each wants.

Install:  pip install partime-async
Run:      python examples/two_clients.py
Expect:   (... stands for figures of your machine)

    greedy: ... frames, ...% of the pipeline, in order: True
    patient: ... frames, ...% of the pipeline, in order: True
    together: ... offered = ... delivered
"""

import asyncio
import time
from collections.abc import AsyncIterator

import torch

import partime_async as pa
from partime_async.models import deep_conv

SECONDS = 1.5


async def frames(value: float, end: float) -> AsyncIterator[torch.Tensor]:
    """Yield frames for as long as the clock allows; `stream` takes them when the feed has room."""
    while time.monotonic() < end:
        yield torch.full((1, 3, 16, 16), value)


async def client(pipeline: pa.Pipeline, value: float, capacity: int, end: float) -> list[int]:
    """Send frames, read results, and return their numbers."""
    source = frames(value, end)
    return [result.sequence async for result in pipeline.stream(source, overflow="block", capacity=capacity)]


async def main() -> None:
    """Run two clients: one keeps sixteen frames waiting, the other a single one."""
    async with pa.Pipeline(deep_conv(layers=12), example=torch.rand(1, 3, 16, 16), stages=2) as pipeline:
        end = time.monotonic() + SECONDS
        async with asyncio.TaskGroup() as tasks:
            greedy = tasks.create_task(client(pipeline, 0.0, 16, end))
            patient = tasks.create_task(client(pipeline, 1.0, 1, end))
        total = pipeline.statistics().frames
    for name, task in (("greedy", greedy), ("patient", patient)):
        numbers = task.result()
        share = len(numbers) / total.delivered
        print(f"{name}: {len(numbers)} frames, {share:.0%} of the pipeline, in order: {numbers == sorted(numbers)}")
    print(f"together: {total.offered} offered = {total.delivered} delivered")


asyncio.run(main())
