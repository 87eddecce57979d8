"""Values into and out of a GPU: from the host, from other GPUs, to the host."""

from __future__ import annotations

from collections import deque
from queue import SimpleQueue
from typing import TypeAlias

import torch
from torch import Tensor

from partime_async.devices.cuda_event import CudaEvent
from partime_async.devices.cuda_runtime import CudaRuntime, TorchEvent, TorchStream
from partime_async.frame import Value

_Slot: TypeAlias = tuple[Tensor, ...]
_Layout: TypeAlias = tuple[tuple[torch.Size, torch.dtype, tuple[int, ...]], ...]


class Transfers:
    """The `torch.cuda.Stream`s of one stream, called lanes, and the copies that run on them.

    The methods are the launcher's, except where they say otherwise.

    Args:
        index: The device.
        slots: Page-locked buffers for each direction.
        runtime: What stands for `torch.cuda`.
    """

    def __init__(self, index: int, *, slots: int, runtime: CudaRuntime) -> None:
        self._index = index
        self._slots = slots
        self._runtime = runtime
        self._lanes: dict[tuple[str, int], TorchStream] = {}
        self._staging: _Staging | None = None
        self._layout: _Layout | None = None
        self._results: SimpleQueue[_Slot] | None = None

    def lane(self, role: str, index: int | None = None) -> TorchStream:
        """Return the lane for ``"work"``, ``"in"`` or ``"out"``, here or on another device; opened when first needed.

        Raises:
            DeviceError: The device has no stream left.
        """
        key = (role, self._index if index is None else index)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = self._runtime.open_stream(key[1])
        return lane

    def close(self) -> None:
        """Give the lanes back, once nothing runs on them."""
        while self._lanes:
            self._runtime.close_stream(self._lanes.popitem()[1])

    def expect(self, example: Value, output: Value) -> None:
        """Prepare for values like these; page-locked memory is allocated here if they come from the host."""
        tensors = as_tuple(example)
        if tensors and all(tensor.device.type == "cpu" for tensor in tensors):
            slots = [tuple(map(self._runtime.on_pinned_host, tensors)) for _ in range(self._slots)]
            self._staging = _Staging(slots, self._runtime)
        self._layout = _layout_of(as_tuple(output))
        self._results = None

    def bring(self, job: CudaEvent, value: Value) -> Value:
        """Return the value on this device, for use on the lane "work" behind what made it."""
        runtime, work = self._runtime, self.lane("work")
        source = job.source
        before = (source.ended,) if isinstance(source, CudaEvent) and source.ended is not None else job.before
        for event in before:
            runtime.wait(work, event)
        tensors = as_tuple(value)
        if all(tensor.get_device() == self._index for tensor in tensors):
            return value
        lane = self.lane("in")
        staging = self._staging
        is_staged = staging is not None and staging.fits(tensors) and not all(map(runtime.is_pinned, tensors))
        if staging is not None and is_staged:
            tensors = staging.fill(tensors)
        try:
            job.held = tuple(self._brought(tensor, lane, before) for tensor in tensors)
        finally:
            # Also when the device had no memory left for the second of two: the first is under way.
            job.done = runtime.record(lane)
            if staging is not None and is_staged:
                staging.sent(job.done)
        runtime.wait(work, job.done)
        return job.held[0] if isinstance(value, Tensor) else job.held

    def _brought(self, tensor: Tensor, lane: TorchStream, before: tuple[TorchEvent, ...]) -> Tensor:
        runtime = self._runtime
        if tensor.get_device() == self._index:
            return tensor
        if tensor.device.type == "cpu":
            with runtime.use(lane):
                brought = runtime.on_device(tensor, self._index)
                # From pageable memory it blocks: a frame of another shape than prepared for, or weights.
                return brought.copy_(tensor, non_blocking=runtime.is_pinned(tensor))
        there = self.lane("out", tensor.get_device())
        for event in before:
            runtime.wait(there, event)
        # PyTorch copies on the source's current stream, and ties it to the destination's on both sides.
        with runtime.use(there), runtime.use(lane):
            return runtime.on_device(tensor, self._index).copy_(tensor, non_blocking=True)

    def send(self, job: CudaEvent, output: Value) -> None:
        """Start to copy the output to the host, behind the work."""
        job.output = output
        tensors = as_tuple(output)
        lane = self.lane("out")
        if not tensors or job.ended is None or _layout_of(tensors) != self._layout:
            return  # of another shape than prepared for: `collect` copies it
        if self._results is None:
            # Not before: only the last stage sends to the host, and no stage knows that it is the last.
            self._results = SimpleQueue()
            for _ in range(self._slots):
                self._results.put(tuple(map(self._runtime.on_pinned_host, tensors)))
        job.slot = self._results.get()
        with self._runtime.use(lane):
            self._runtime.wait(lane, job.ended)
            for host, tensor in zip(job.slot, tensors, strict=True):
                host.copy_(tensor, non_blocking=True)
            job.done = self._runtime.record(lane, is_timed=True)

    def collect(self, job: CudaEvent) -> Value:
        """Return the output in ordinary host memory; for the waiter, when the device has passed `job.done`."""
        output = job.output
        assert output is not None
        if job.slot is not None:
            tensors = tuple(tensor.clone() for tensor in job.slot)
        else:
            with self._runtime.use(self.lane("out")):
                tensors = tuple(tensor.cpu() for tensor in as_tuple(output))
        return tensors[0] if isinstance(output, Tensor) else tensors

    def give_back(self, job: CudaEvent) -> None:
        """Let the next job have the slot; for the waiter."""
        if job.slot is not None and self._results is not None:
            self._results.put(job.slot)
            job.slot = None


class _Staging:
    """Page-locked slots through which pageable frames go to the device, in turn.

    A slot is rewritten when the device has passed the event behind its last copy, which the launcher waits for: that
    copy was launched before and needs no launcher to complete.
    """

    def __init__(self, slots: list[_Slot], runtime: CudaRuntime) -> None:
        self._slots: deque[tuple[_Slot, TorchEvent | None]] = deque((slot, None) for slot in slots)
        self._runtime = runtime

    def fits(self, tensors: tuple[Tensor, ...]) -> bool:
        """Tell whether a slot can hold these."""
        slot = self._slots[0][0]
        return len(slot) == len(tensors) and all(
            ours.shape == theirs.shape and ours.dtype == theirs.dtype and theirs.device.type == "cpu"
            for ours, theirs in zip(slot, tensors, strict=True)
        )

    def fill(self, tensors: tuple[Tensor, ...]) -> _Slot:
        """Return a slot that holds these, in the layout of the example; `sent` must follow."""
        slot, copied = self._slots[0]
        if copied is not None:
            self._runtime.synchronize(copied)
        for ours, theirs in zip(slot, tensors, strict=True):
            ours.copy_(theirs)
        return slot

    def sent(self, copied: TorchEvent) -> None:
        """Note the event behind the copies out of the slot that was filled last."""
        slot, _ = self._slots.popleft()
        self._slots.append((slot, copied))


def as_tuple(value: Value) -> tuple[Tensor, ...]:
    """Return the tensors of a value."""
    return (value,) if isinstance(value, Tensor) else value


def _layout_of(tensors: tuple[Tensor, ...]) -> _Layout:
    return tuple((tensor.shape, tensor.dtype, tensor.stride()) for tensor in tensors)
