"""Keep up with a live sensor: a network that is too slow for 100 frames/s sees the latest frames, and none that is old.

Install:  pip install partime-async
Run:      python examples/live_feed.py
Expect:   (... stands for figures of your machine)

    the sensor gave 200 frames in 2.0 s
    delivered ... + dropped ... {...} = 200
    in flight at most: ...
    age of a result: ... ms in the middle, ... ms at worst; the stages alone take ... ms
"""

import asyncio
import time

import torch

import partime_async as pa
from partime_async.models import deep_conv

PERIOD_S = 0.01
COUNT = 200


async def sensor(feed: pa.Feed) -> None:
    """Deliver a frame every 10 ms, whatever becomes of the ones before, as hardware does."""
    due = time.monotonic()
    for _ in range(COUNT):
        await asyncio.sleep(due - time.monotonic())
        feed.put_nowait(torch.rand(1, 3, 32, 32), captured_at=due)  # never waits: a full feed drops the oldest
        due += PERIOD_S
    feed.close()


async def main() -> None:
    """Read the sensor and the results at the same time."""
    network = deep_conv(layers=48)
    most = 0
    async with pa.Pipeline(network, example=torch.rand(1, 3, 32, 32), stages=2) as pipeline:
        async with pipeline.feed(overflow="latest") as feed, asyncio.TaskGroup() as tasks:
            tasks.create_task(sensor(feed))
            async for _ in feed:
                most = max(most, pipeline.statistics().frames.in_flight)
        seen = feed.statistics()
        alone_s = sum(stage.service_s.p50 for stage in pipeline.statistics().stages)
    frames, age = seen.frames, seen.age_s
    print(f"the sensor gave {frames.offered} frames in {COUNT * PERIOD_S:.1f} s")
    print(f"delivered {frames.delivered} + dropped {frames.dropped_total} {dict(frames.dropped)} = {frames.offered}")
    print(f"in flight at most: {most}")
    print(
        f"age of a result: {1e3 * age.p50:.0f} ms in the middle, {1e3 * age.max:.0f} ms at worst; "
        f"the stages alone take {1e3 * alone_s:.0f} ms"
    )


asyncio.run(main())
