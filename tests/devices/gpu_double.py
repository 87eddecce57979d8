"""GPUs for machines that have none: real values, computed late, and every access to memory checked for its order.

It stands for what the machine lacks and for nothing else: `torch` operators on its tensors are launched on the current
stream of a `Machine` and return at once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from partime_async.devices.cuda_runtime import TorchEvent, TorchStream
from tests.devices.gpu_machine import Block, Lease, Machine, MachineEvent, MachineStream

aten = torch.ops.aten


class GpuTensor(Tensor):
    """A tensor on a device of the double, or in page-locked host memory."""

    backing: Tensor
    lease: Lease
    gpu: GpuDouble

    @staticmethod
    def __new__(cls, inner: Tensor, lease: Lease, gpu: GpuDouble, device: torch.device) -> GpuTensor:
        """Make a tensor that has a shape and a device, and no data but `backing`."""
        made: GpuTensor = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=device
        )
        made.backing, made.lease, made.gpu = inner, lease, gpu
        return made

    def __init__(self, *_: object) -> None:
        pass

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        return f"GpuTensor({tuple(self.shape)}, {self.device})"

    def copy_(self, other: Tensor, non_blocking: bool = False) -> Tensor:
        """Copy without a call to autograd's kernel, which asks for a device guard that a CPU build has not got."""
        if self.device.type == "cuda" or other.is_cuda:
            return self.gpu.copy(self, other, non_blocking=non_blocking)
        return super().copy_(other)

    def __deepcopy__(self, memo: dict[int, object]) -> Tensor:
        """Clone on the device; a tensor's own way would copy the device, too."""
        memo[id(self)] = copied = self.detach().clone()
        return copied

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # as its documentation has it
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        gpu = next(each.gpu for each in tree_flatten((args, kwargs))[0] if isinstance(each, GpuTensor))
        return gpu.dispatch(func, args, kwargs or {})


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, gpu: GpuDouble) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._gpu.dispatch(func, args, kwargs or {})


class GpuDouble:
    """Implements `CudaRuntime`.

    Args:
        devices: How many.
        seed: Of the order in which streams run.
        eagerness: See `Machine`.
    """

    def __init__(self, devices: int = 1, *, seed: int = 0, eagerness: float = 0.0) -> None:
        self.machine = Machine(seed=seed, eagerness=eagerness)
        self.pinned = 0
        self._devices = devices
        self._local = threading.local()
        self._draws = 0
        self._open: set[int] = set()
        self._default = [self.machine.new_stream(index) for index in range(devices)]
        self._pinned_pool: list[Block] = []

    @property
    def races(self) -> list[str]:
        """Accesses to memory that nothing orders, and streams that were closed too early."""
        return self.machine.races

    @property
    def open_streams(self) -> int:
        """How many streams are open."""
        return len(self._open)

    def hold(self) -> None:
        """Compute nothing until `release`, or until a launcher waits for something."""
        self.machine.hold()

    def release(self) -> None:
        """Let waiters compute again."""
        self.machine.release()

    def upload(self, tensor: Tensor, index: int = 0) -> Tensor:
        """Copy a tensor to a device as a user would, on the current stream."""
        if isinstance(tensor, GpuTensor) and tensor.device.type == "cuda":
            return tensor
        return self.on_device(tensor, index).copy_(tensor)

    def pin(self, tensor: Tensor) -> Tensor:
        """Copy a tensor to page-locked memory as a user would."""
        return self.on_pinned_host(tensor).copy_(tensor)

    def device_count(self) -> int:
        """Return how many devices there are."""
        return self._devices

    def open_stream(self, index: int) -> TorchStream:
        """Return a new stream."""
        stream = self.machine.new_stream(index)
        self._open.add(stream.actor)
        return cast(TorchStream, stream)

    def close_stream(self, stream: TorchStream) -> None:
        """Check that the stream is idle."""
        ours = _stream(stream)
        if ours.has_work:
            self.races.append("a stream was closed with work on it")
        self._open.remove(ours.actor)

    @contextmanager
    def use(self, stream: TorchStream) -> Iterator[None]:
        """Make the stream current on this thread."""
        current = self._current()
        ours = _stream(stream)
        before = current[ours.index]
        current[ours.index] = ours
        try:
            with _Mode(self):
                yield
        finally:
            current[ours.index] = before

    def record(self, stream: TorchStream, *, is_timed: bool = False) -> TorchEvent:
        """Put an event on the stream."""
        return cast(TorchEvent, self.machine.record(_stream(stream)))

    def record_caller(self, index: int) -> TorchEvent:
        """Put an event on the calling thread's current stream."""
        return cast(TorchEvent, self.machine.record(self._current()[index]))

    def wait(self, stream: TorchStream, event: TorchEvent) -> None:
        """Put a wait on the stream."""
        self.machine.wait(_stream(stream), _event(event))

    def synchronize(self, event: TorchEvent) -> None:
        """Compute until the event is passed."""
        self.machine.synchronize(_event(event))

    def elapsed_s(self, start: TorchEvent, end: TorchEvent) -> float:
        """Return the seconds between two events."""
        first, last = _event(start).passed_at, _event(end).passed_at
        assert first is not None
        assert last is not None, "elapsed_time of an event that has not been passed raises"
        return last - first

    def settle(self, index: int) -> None:
        """Compute all there is."""
        for stream in list(self.machine.streams):
            if stream.index == index:
                self.machine.synchronize(self.machine.record(stream))

    def on_device(self, tensor: Tensor, index: int) -> Tensor:
        """Allocate on the current stream."""
        return self._allocate(torch.empty_like(_inner(tensor), device="meta"), index)

    def on_pinned_host(self, tensor: Tensor) -> Tensor:
        """Allocate page-locked memory."""
        self.pinned += 1
        like = torch.empty_like(_inner(tensor), device="meta")
        lease = Lease(Block("pinned", _bytes_of(like)), self._pinned_pool)
        return self._on_lease(like, lease, torch.device("cpu"))

    def is_pinned(self, tensor: Tensor) -> bool:
        """Tell whether it is one of ours."""
        return isinstance(tensor, GpuTensor) and tensor.device.type == "cpu"

    def place(self, module: nn.Module, index: int) -> None:
        """Replace parameters and buffers."""
        with self.use(cast(TorchStream, self._current()[index])):
            for part in module.modules():
                for name, parameter in part._parameters.items():
                    if parameter is not None:
                        placed = self.upload(parameter.detach(), index)
                        part._parameters[name] = nn.Parameter(placed, parameter.requires_grad)
                for name, buffer in part._buffers.items():
                    if buffer is not None:
                        part._buffers[name] = self.upload(buffer, index)

    @contextmanager
    def same_random_state(self, index: int) -> Iterator[None]:
        """Restore the host's and the device's generator."""
        draws = self._draws
        with torch.random.fork_rng(devices=[]):
            yield
        self._draws = draws

    def dispatch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Launch, or for host memory run, one operator."""
        tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, GpuTensor)]
        device_asked = kwargs.get("device")
        target = None if device_asked is None else torch.device(device_asked)
        is_made_there = target is not None and target.type == "cuda"
        if not tensors and not is_made_there:
            return func(*args, **kwargs)
        if func.is_view or func is aten.detach.default or func is aten._unsafe_view.default:
            lease, device = tensors[0].lease, tensors[0].device
            views = func(*tree_map(_inner, args), **kwargs)
            return tree_map(lambda view: GpuTensor(view, lease, self, device), views)
        indices = {each.device.index for each in tensors if each.device.type == "cuda"}
        if target is not None and is_made_there:
            indices.add(target.index or 0)
        if func is aten.copy_.default and indices:
            return self.copy(args[0], args[1], non_blocking=(*args, *kwargs.values(), False)[2])
        if func is aten._to_copy.default and indices and target is not None and target.type == "cpu":
            landed = torch.empty_like(args[0].backing)
            self.copy(landed, args[0], non_blocking=False)
            return landed
        if not indices:
            return self._run_on_host(func, args, kwargs, tensors)
        assert len(indices) == 1, f"{func} on tensors of several devices"
        return self._launch(func, args, {**kwargs, "device": "cpu"} if target is not None else kwargs, indices.pop())

    def _run_on_host(self, func: Any, args: Any, kwargs: Any, tensors: Iterable[GpuTensor]) -> Any:
        written = _written(func, args)
        self.machine.touch_on_host(str(func), reads=_blocks(tensors, but=written), writes=_blocks(written))
        result = func(*tree_map(_inner, args), **kwargs)
        return args[0] if func._schema.is_mutable else result

    def _launch(self, func: Any, args: Any, kwargs: Any, index: int) -> Any:
        inputs = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, GpuTensor)]
        shapes = func(*tree_map(_meta, args), **{**kwargs, "device": "meta"} if "device" in kwargs else kwargs)
        written = _written(func, args)
        is_in_place = func._schema.is_mutable
        outputs = [] if is_in_place else [self._allocate(each, index) for each in _tensors(shapes)]
        # Only the memory: what is pending on a device keeps no tensor alive.
        backings = [output.backing for output in outputs]
        inner_args, inner_kwargs = tree_map(_inner, args), tree_map(_inner, kwargs)
        seed = None
        if torch.Tag.nondeterministic_seeded in func.tags:
            seed = self._draws = self._draws + 1

        def compute() -> None:
            with torch.random.fork_rng(devices=[], enabled=seed is not None):
                if seed is not None:
                    torch.manual_seed(seed)
                results = func(*inner_args, **inner_kwargs)
            for backing, result in zip(backings, _tensors(results), strict=False):
                backing.copy_(result)

        reads, writes = _blocks(inputs, but=written), _blocks([*written, *outputs])
        self.machine.launch(self._current()[index], str(func), compute, reads=reads, writes=writes)
        if is_in_place:
            return args[0]
        return outputs[0] if isinstance(shapes, Tensor) else type(shapes)(outputs)

    def copy(self, target: Tensor, origin: Tensor, *, non_blocking: bool) -> Tensor:
        """Launch a copy that has a device at one end at least, where PyTorch would."""
        reads, writes = ([end] if isinstance(end, GpuTensor) else [] for end in (origin, target))
        assert not non_blocking or (reads and writes), "a background copy needs page-locked memory on both ends"
        current = self._current()
        there = current[origin.device.index if origin.device.type == "cuda" else target.device.index]
        here = current[target.device.index] if target.device.type == "cuda" else there
        to = _inner(target)
        # Pageable memory is read before the call returns.
        source = _inner(origin) if reads else origin.clone()
        machine = self.machine
        machine.wait(there, machine.record(here))
        machine.launch(there, "copy_", lambda: to.copy_(source), reads=_blocks(reads), writes=_blocks(writes))
        done = machine.record(there)
        machine.wait(here, done)
        if not non_blocking:
            machine.synchronize(done)
        return target

    def _allocate(self, like: Tensor, index: int) -> GpuTensor:
        lease = self.machine.allocate(self._current()[index], _bytes_of(like))
        return self._on_lease(like, lease, torch.device("cuda", index))

    def _on_lease(self, like: Tensor, lease: Lease, device: torch.device) -> GpuTensor:
        flat = lease.block.memory[: _bytes_of(like)].view(like.dtype)
        return GpuTensor(flat.as_strided(like.shape, like.stride()), lease, self, device)

    def _current(self) -> list[MachineStream]:
        if not hasattr(self._local, "streams"):
            self._local.streams = list(self._default)
        return cast(list[MachineStream], self._local.streams)


def _stream(stream: TorchStream) -> MachineStream:
    return cast(MachineStream, cast(object, stream))


def _event(event: TorchEvent) -> MachineEvent:
    return cast(MachineEvent, cast(object, event))


def _blocks(tensors: Iterable[GpuTensor], *, but: Iterable[GpuTensor] = ()) -> list[Block]:
    left_out = {id(each) for each in but}
    return [each.lease.block for each in tensors if id(each) not in left_out]


def _inner(value: Any) -> Any:
    return value.backing if isinstance(value, GpuTensor) else value


def _meta(value: Any) -> Any:
    return _inner(value).to("meta") if isinstance(value, Tensor) else value


def _tensors(value: Any) -> list[Any]:
    return [each for each in tree_flatten(value)[0] if isinstance(each, Tensor)]


def _bytes_of(tensor: Tensor) -> int:
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return reach * tensor.element_size() if tensor.numel() else 0


def _written(func: Any, args: tuple[Any, ...]) -> list[GpuTensor]:
    if func is aten.native_batch_norm.default:
        return [each for each in args[3:5] if isinstance(each, GpuTensor)]  # its schema does not say so
    marked = zip(func._schema.arguments, args, strict=False)
    return [
        value
        for argument, value in marked
        if isinstance(value, GpuTensor) and argument.alias_info is not None and argument.alias_info.is_write
    ]
