"""What the conformance suite needs to know of each device."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from partime_async.clock import MonotonicClock
from partime_async.devices import (
    CpuDevice,
    CudaDevice,
    Device,
    DeviceEvent,
    DeviceStream,
    Notifier,
    SimulatedDevice,
    ready,
)
from partime_async.frame import Value
from tests.devices.gpu_double import GpuDouble

TIMEOUT_S = 20.0


@dataclass
class Rig:
    """A device under test and the streams opened on it.

    Attributes:
        device: The device.
        is_simulated: Whether work is done on the event loop, so that it must not block.
        double: The double behind the device, if it stands on one.
    """

    device: Device
    is_simulated: bool = False
    double: GpuDouble | None = None
    streams: list[DeviceStream] = field(default_factory=list)
    releases: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.notifier: Notifier[DeviceEvent] = Notifier(asyncio.get_running_loop())

    def open(self, name: str = "stage", device: Device | None = None) -> DeviceStream:
        """Open a stream that is closed at the end of the test."""
        assert name.startswith("stage")
        device = device or self.device
        stream = device.open_stream(name, notifier=self.notifier, clock=MonotonicClock(), threads=1)
        self.streams.append(stream)
        return stream

    async def occupy(self, stream: DeviceStream) -> Callable[[], None]:
        """Let a stream begin work that goes on until the returned function is called (simulated: for its time)."""
        if self.is_simulated:
            stream.enqueue(lambda value: value, ready(()))
            await asyncio.sleep(0)
            return lambda: None
        is_running, may_end = threading.Event(), threading.Event()

        def work(value: Value) -> Value:
            is_running.set()
            may_end.wait(TIMEOUT_S)
            return value

        stream.enqueue(work, ready(()))
        self.releases.append(may_end.set)
        await asyncio.to_thread(is_running.wait, TIMEOUT_S)
        return may_end.set

    def open_slow(self, name: str = "stage") -> DeviceStream:
        """Open a stream that, once occupied, is so for longer than the loop is ever away."""
        return self.open(name, SimulatedDevice(0.1) if self.is_simulated else None)

    def open_stuck(self) -> DeviceStream:
        """Open a stream whose work, once occupied, takes longer than any test."""
        return self.open("stage stuck", SimulatedDevice(1000.0) if self.is_simulated else None)

    def is_equal(self, found: Tensor, expected: Tensor) -> bool:
        """Compare with what eager execution gives on the CPU: the very bits where the device computes on it."""
        if isinstance(self.device, CudaDevice) and self.double is None:
            return torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
        return torch.equal(found, expected)


def threads_of_streams() -> list[str]:
    """Return the names of all threads that streams opened by rigs have, and their launchers'."""
    return [each.name for each in threading.enumerate() if each.name.startswith(("stage", "cuda:"))]


async def completed(event: DeviceEvent) -> DeviceEvent:
    """Wait for an event without blocking the loop."""
    await asyncio.to_thread(event.wait)
    return event


async def value_of(event: DeviceEvent) -> Value:
    """Wait for an event and return its value."""
    await completed(event)
    if event.error is not None:
        raise event.error
    assert event.value is not None
    return event.value


async def tensor_of(event: DeviceEvent) -> Tensor:
    """Wait for an event whose value is one tensor."""
    value = await value_of(event)
    assert isinstance(value, Tensor)
    return value


def add_one(value: Value) -> Value:
    """Stand for a stage."""
    assert isinstance(value, Tensor)
    return value + 1


def refuse(value: Value) -> Value:
    """Stand for a stage that does not like its input."""
    raise LookupError("no such thing")


async def announced(stream: DeviceStream, count: int, source: DeviceEvent | None = None) -> list[DeviceEvent]:
    """Enqueue work and return its events in the order of their announcement."""
    seen: list[DeviceEvent] = []
    is_done = asyncio.Event()

    def on_complete(event: DeviceEvent) -> None:
        assert threading.current_thread() is loop_thread
        seen.append(event)
        if len(seen) == count:
            is_done.set()

    loop_thread = threading.current_thread()
    for number in range(count):
        stream.enqueue(add_one, source or ready(torch.tensor(float(number))), on_complete, to_host=True)
    async with asyncio.timeout(TIMEOUT_S):
        await is_done.wait()
    return seen


@asynccontextmanager
async def rig_for(kind: str) -> AsyncIterator[Rig]:
    """Set a device up and check, at the end, that nothing is left of it."""
    # A build for CUDA would take cuDNN's kernels for tensors of the double, whose values are on the host.
    with torch.backends.cudnn.flags(enabled=False) if kind == "double" else nullcontext():
        async with _rig_for(kind) as rig:
            yield rig


@asynccontextmanager
async def _rig_for(kind: str) -> AsyncIterator[Rig]:
    double = GpuDouble(eagerness=0.5) if kind == "double" else None
    if kind == "cpu":
        rig = Rig(CpuDevice())
    elif kind == "simulated":
        rig = Rig(SimulatedDevice(0.005), is_simulated=True)
    elif double is not None:
        rig = Rig(CudaDevice(runtime=double), double=double)
    else:
        rig = Rig(CudaDevice())
    yield rig
    for release in rig.releases:
        release()
    for stream in rig.streams:
        if not (rig.is_simulated and stream.name == "stage stuck"):
            await stream.aclose(TIMEOUT_S)
    assert threads_of_streams() == []
    if double is not None:
        assert double.races == []
        assert double.open_streams == 0
