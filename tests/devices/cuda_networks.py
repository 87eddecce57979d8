"""Networks over GPU doubles: stages of every kind, frames of every origin, in a random order of events."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import torch
from torch import Tensor, nn

from partime_async.clock import MonotonicClock
from partime_async.devices import CpuDevice, Device, DeviceEvent, DeviceStream, Notifier, ready
from partime_async.frame import Value
from tests.devices.gpu_double import GpuDouble
from tests.devices.rigs import TIMEOUT_S, completed, tensor_of, threads_of_streams

WIDTH = 64


class Stage(nn.Module):
    """A function as a module."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._run = run

    def forward(self, value: Tensor) -> Tensor:
        """Call the function."""
        return self._run(value)


class Difference(nn.Module):
    """Subtracts the frame before, which it keeps as it came."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor | None = None

    def forward(self, value: Tensor) -> Tensor:
        """Return the change."""
        last, self.last = self.last, value
        return value * 1 if last is None else value - last


def fresh(value: Tensor) -> Tensor:
    """Make something new of the value, with memory that is free again when this returns."""
    return (value * 3 + 1) - value


def in_place(value: Tensor) -> Tensor:
    """Change the value itself."""
    return value.add_(3)


def same(value: Tensor) -> Tensor:
    """Return the value itself."""
    return value


def view(value: Tensor) -> Tensor:
    """Return a view of the value."""
    return value.view(2, -1).t().reshape(-1)


@asynccontextmanager
async def streams_on(*devices: Device) -> AsyncIterator[list[DeviceStream]]:
    """Open one stream per device; close them, and check that no thread is left."""
    notifier: Notifier[DeviceEvent] = Notifier(asyncio.get_running_loop())
    streams = [
        device.open_stream(f"stage {number}", notifier=notifier, clock=MonotonicClock(), threads=1)
        for number, device in enumerate(devices)
    ]
    try:
        yield streams
    finally:
        for stream in streams:
            await stream.aclose(TIMEOUT_S)
    assert threads_of_streams() == []


async def run_network(
    gpu: GpuDouble, devices: Sequence[Device], modules: Sequence[nn.Module], *, frames: int = 24, seed: int = 0
) -> bool:
    """Run frames through stages, as far ahead as chance has it.

    Returns:
        Whether all results are those of calling the modules one after the other.
    """
    choice = random.Random(seed)
    patience = choice.choice([0.1, 0.5, 0.9])
    reference = copy.deepcopy(list(modules))
    results: list[DeviceEvent] = []
    expected: list[Tensor] = []
    async with streams_on(*devices) as streams:
        for number in range(frames):
            frame = torch.full((WIDTH,), float(number)) + torch.arange(float(WIDTH))
            event = ready(_from_somewhere(gpu, devices[0], frame, choice))
            if number == 0:
                await asyncio.to_thread(_prepare, devices, streams, modules)
            for module in reference:
                frame = module(frame.clone())
            expected.append(frame)
            for index, (stream, module) in enumerate(zip(streams, modules, strict=True)):
                is_leaving = index + 1 == len(devices) or isinstance(devices[index + 1], CpuDevice)
                event = stream.enqueue(module, event, to_host=is_leaving)
            results.append(event)
            if choice.random() < patience:
                await completed(choice.choice(results))
        found = [await tensor_of(event) for event in results]
    return all(map(torch.equal, found, expected))


def _prepare(devices: Sequence[Device], streams: Sequence[DeviceStream], modules: Sequence[nn.Module]) -> None:
    example: Value = torch.zeros(WIDTH)
    for device, stream, module in zip(devices, streams, modules, strict=True):
        if isinstance(device, CpuDevice):
            assert isinstance(example, Tensor)
            example = example.cpu()
        _, example = stream.prepare(module, example, capture=False)


def _from_somewhere(gpu: GpuDouble, device: Device, frame: Tensor, choice: random.Random) -> Tensor:
    origin = choice.choice(["pageable", "pinned", "device"])
    if origin == "pageable" or isinstance(device, CpuDevice):
        return frame
    if origin == "pinned":
        return gpu.pin(frame)
    # Still being computed when it is offered, on the stream that is current for the caller.
    return gpu.upload(frame * 2, choice.randrange(gpu.device_count())).div_(2)
