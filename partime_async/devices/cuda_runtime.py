"""The calls of `torch.cuda` that a CUDA stream needs, and no others; nothing else in the library touches it.

`CudaRuntime` is what `devices.cuda` is written against, so that its logic can be tested where there is no GPU.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from partime_async.errors import DeviceError

TorchStream: TypeAlias = torch.cuda.Stream
TorchEvent: TypeAlias = torch.cuda.Event

_POOL = 32
"""Streams that PyTorch keeps per device and priority; it hands them out in turn, so the 33rd is the first again."""


class CudaRuntime(Protocol):
    """Streams, events and memory of CUDA devices; streams and events are only ever handed back to it."""

    def device_count(self) -> int:
        """Return how many devices this process can use."""
        ...

    def open_stream(self, index: int) -> TorchStream:
        """Return a stream of device `index` that nobody else has.

        Raises:
            DeviceError: All streams of the device are in use.
        """
        ...

    def close_stream(self, stream: TorchStream) -> None:
        """Give a stream back; nothing of its holder's may be pending on it."""
        ...

    def use(self, stream: TorchStream) -> AbstractContextManager[object]:
        """Send what this thread launches on the stream's device to the stream, and make the device current."""
        ...

    def record(self, stream: TorchStream, *, is_timed: bool = False) -> TorchEvent:
        """Return a new event behind everything launched on the stream so far."""
        ...

    def record_caller(self, index: int) -> TorchEvent:
        """Return a new event behind what the calling thread has launched on device `index` so far."""
        ...

    def wait(self, stream: TorchStream, event: TorchEvent) -> None:
        """Let everything launched on the stream from now on run after the event; does not block."""
        ...

    def synchronize(self, event: TorchEvent) -> None:
        """Block this thread, asleep and without the interpreter lock, until the device has passed the event.

        Raises:
            RuntimeError: Something launched earlier failed on the device; from then on every call of the process fails.
        """
        ...

    def elapsed_s(self, start: TorchEvent, end: TorchEvent) -> float:
        """Return the device's seconds between two timed events, both passed."""
        ...

    def settle(self, index: int) -> None:
        """Block until device `index` has done everything this process launched on it; for building, never per frame."""
        ...

    def on_device(self, tensor: Tensor, index: int) -> Tensor:
        """Return new, unwritten memory on device `index` with the tensor's shape, dtype and layout."""
        ...

    def on_pinned_host(self, tensor: Tensor) -> Tensor:
        """Return new, unwritten page-locked host memory with the tensor's shape, dtype and layout; may block."""
        ...

    def is_pinned(self, tensor: Tensor) -> bool:
        """Tell whether a host tensor is page-locked."""
        ...

    def place(self, module: nn.Module, index: int) -> None:
        """Move a module's parameters and buffers to device `index`, in place; blocks."""
        ...

    def same_random_state(self, index: int) -> AbstractContextManager[object]:
        """Restore, on exit, the random state of the host and of device `index`."""
        ...


class TorchCudaRuntime:
    """The real thing: each method one call of `torch.cuda`. See `CudaRuntime`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_use: set[tuple[int, int]] = set()

    def device_count(self) -> int:
        """Return `torch.cuda.device_count()`: 0 on a CPU build or without a driver."""
        return torch.cuda.device_count()

    def open_stream(self, index: int) -> TorchStream:
        """Return a stream of PyTorch's pool whose handle no open stream has."""
        with self._lock:
            for _ in range(_POOL):
                stream = TorchStream(torch.device("cuda", index))  # type: ignore[no-untyped-call]
                handle = (index, stream.cuda_stream)
                if handle not in self._in_use:
                    self._in_use.add(handle)
                    return stream
        raise DeviceError(f"all {_POOL} streams of cuda:{index} are in use. Open fewer stages on this device.")

    def close_stream(self, stream: TorchStream) -> None:
        """Let `open_stream` hand the handle out again."""
        with self._lock:
            self._in_use.discard((stream.device_index, stream.cuda_stream))

    def use(self, stream: TorchStream) -> AbstractContextManager[object]:
        """Enter `torch.cuda.stream`, which is local to the thread."""
        return torch.cuda.stream(stream)

    def record(self, stream: TorchStream, *, is_timed: bool = False) -> TorchEvent:
        """Record an event that sleeps when it is waited for: only `torch.cuda.Event` heeds ``blocking``."""
        event = TorchEvent(enable_timing=is_timed, blocking=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        return event

    def record_caller(self, index: int) -> TorchEvent:
        """Record an event on the calling thread's current stream."""
        return self.record(torch.cuda.current_stream(index))

    def wait(self, stream: TorchStream, event: TorchEvent) -> None:
        """Enqueue the wait on the stream; the two may belong to different devices."""
        stream.wait_event(event)

    def synchronize(self, event: TorchEvent) -> None:
        """Wait for the event itself, not for its stream or device."""
        event.synchronize()

    def elapsed_s(self, start: TorchEvent, end: TorchEvent) -> float:
        """Convert `Event.elapsed_time`, which is in milliseconds with a resolution of about 0.5 us."""
        milliseconds: float = start.elapsed_time(end)
        return milliseconds / 1e3

    def settle(self, index: int) -> None:
        """Synchronise with the whole device."""
        torch.cuda.synchronize(index)

    def on_device(self, tensor: Tensor, index: int) -> Tensor:
        """Allocate from the pool of the current stream."""
        return torch.empty_like(tensor, device=torch.device("cuda", index))

    def on_pinned_host(self, tensor: Tensor) -> Tensor:
        """Allocate page-locked memory."""
        return torch.empty_like(tensor, device=torch.device("cpu"), pin_memory=True)

    def is_pinned(self, tensor: Tensor) -> bool:
        """Ask the driver what it knows about the address."""
        return tensor.is_pinned()

    def place(self, module: nn.Module, index: int) -> None:
        """Call `Module.to`."""
        module.to(torch.device("cuda", index))

    def same_random_state(self, index: int) -> AbstractContextManager[object]:
        """Fork the generators of the host and the device; both are moved by the host, so nothing waits."""
        return torch.random.fork_rng(devices=[index], device_type="cuda")


RUNTIME = TorchCudaRuntime()
"""One per process: stream handles are handed out to the whole of it."""
