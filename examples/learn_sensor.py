"""Forecast a motion sensor while it streams, with a memory of its own, and notice when it is surprised.

The stream is a real recording: acceleration and rotation of a watch at 50 Hz during exercises. A recurrent network
(`pa.Stateful`) in two stages forecasts the six channels 4 steps ahead; every forecast is checked 80 ms later.

Install:  pip install partime-async && pip install --no-deps seglearn==1.2.5   (for its recording)
Run:      python examples/learn_sensor.py [number of samples]
Expect:   a line per thousand samples; the error falls below that of "it stays as it is".
"""

import asyncio
import sys
from functools import partial
from importlib.metadata import files

import numpy as np
import torch
from torch import Tensor, nn

import partime_async as pa

STEPS = 4


class Memory(pa.Stateful):
    """A recurrent layer; every feed of the pipeline has a state of its own."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(inputs, units)

    def initial_state(self) -> Tensor:
        return torch.zeros(1, self.cell.hidden_size)

    def step(self, value: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        state = self.cell(value, state)
        return torch.cat((value, state), 1), state


def samples(count: int) -> Tensor:
    """Return the start of the first recordings, ``(count, 6)``, with mean 0 and deviation 1 per channel."""
    [path] = [path for path in files("seglearn") or [] if path.name == "watch_dataset.npy"]
    recordings = np.load(str(path.locate()), allow_pickle=True).item()["X"]
    values = torch.from_numpy(np.concatenate(recordings)[:count].astype(np.float32))
    return (values - values.mean(0)) / values.std(0)


async def main(count: int) -> None:
    torch.manual_seed(0)
    stream = samples(count)
    network = nn.Sequential(Memory(6, 48), nn.Linear(54, 48), nn.Tanh(), nn.Linear(48, 6))
    learner = pa.Learner(nn.functional.mse_loss, partial(torch.optim.SGD, lr=0.02), clip_norm=1.0)
    errors: list[float] = []
    async with pa.Pipeline(network, stream[:1], balance=[1, 3], learner=learner) as pipeline:
        async for result in pipeline.stream(pa.targets.ahead(stream, STEPS)):
            if result.loss is None:
                continue
            errors.append(result.loss)
            if len(errors) % 1000 == 0:
                at = len(errors)
                guess = nn.functional.mse_loss(stream[at - 1000 : at], stream[at - 1000 + STEPS : at + STEPS])
                print(f"samples to {at:6}: network {sum(errors[-1000:]) / 1000:.3f}, as it is {guess:.3f}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20000))
