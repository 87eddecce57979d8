"""Swap the weights while frames stream through: all stages change between the same two frames, and nothing stops.

Install:  pip install partime-async
Run:      python examples/hot_swap.py
Expect:   (... stands for where the swap happened to fall)

    frames 0 to ...: weight versions (0, 0, 0), the old network's numbers: True
    frames ... to 199: weight versions (1, 1, 1), the new network's numbers: True
    lost frames: 0
"""

import asyncio

import torch
from torch import Tensor

import partime_async as pa
from partime_async.models import mlp

old, new = mlp(layers=12, width=128), mlp(layers=12, width=128)
frames = torch.rand(200, 128)


async def main() -> None:
    """Stream with the old weights, and load the new ones on the way."""
    results: list[pa.Result] = []
    async with pa.Pipeline(old, example=frames[:1], stages=3) as pipeline, asyncio.TaskGroup() as tasks:
        async for result in pipeline.stream(frames):
            results.append(result)
            if len(results) == 50:  # the stream goes on while the swap travels through the stages
                tasks.create_task(pipeline.load_state_dict(new.state_dict()))

    for version, (name, network) in enumerate((("old", old), ("new", new))):
        of_version = [result for result in results if result.weight_versions == (version,) * 3]
        is_same = all(
            isinstance(result.output, Tensor)
            and torch.allclose(result.output, network(frames[result.sequence][None]), rtol=1e-4, atol=1e-5)
            for result in of_version
        )
        print(
            f"frames {of_version[0].sequence} to {of_version[-1].sequence}: weight versions "
            f"{of_version[0].weight_versions}, the {name} network's numbers: {is_same}"
        )
        results = [result for result in results if result.weight_versions != (version,) * 3]
    print(f"lost frames: {len(results)}")  # of mixed versions: there are none


asyncio.run(main())
