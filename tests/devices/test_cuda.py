"""The logic of CUDA devices, on GPUs that stand for what the machine lacks."""

from __future__ import annotations

import asyncio
import threading
import weakref
from itertools import cycle

import pytest
import torch
from torch import Tensor

from partime_async.devices import CpuDevice, CudaDevice, DeviceEvent, cuda_device_count, cuda_runtime, ready
from partime_async.devices.cuda_event import CudaEvent
from partime_async.devices.cuda_runtime import TorchCudaRuntime
from partime_async.errors import ConfigurationError, DeviceError
from partime_async.frame import Value
from tests.devices.cuda_networks import Difference, Stage, fresh, same, streams_on
from tests.devices.gpu_double import GpuDouble
from tests.devices.rigs import TIMEOUT_S, completed, tensor_of, threads_of_streams, value_of

_NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="the device itself is here")
pytestmark = _NO_CUDA


def plus(value: Value) -> Value:
    """Stand for a stage."""
    assert isinstance(value, Tensor)
    return value + 1


def out_of_range(value: Value) -> Value:
    """Launch what fails on the device, and there only."""
    assert isinstance(value, Tensor)
    return torch.gather(value, 0, (value * 0 + 99).long())


def test_device_count_without_cuda_is_zero() -> None:
    """A machine without CUDA has no devices, which is no error."""
    assert cuda_device_count() == 0


def test_device_without_cuda_says_what_to_do() -> None:
    """Asking for a device where there is none says how many there are, and the remedy."""
    with pytest.raises(DeviceError, match=r"cuda:0 does not exist: PyTorch finds 0 CUDA device\(s\) here\. Use 'cpu'"):
        CudaDevice(0)


@pytest.mark.parametrize("index", [2, -1])
def test_device_index_out_of_range_says_how_many_there_are(index: int) -> None:
    """An index that no device has is refused with the number of devices."""
    with pytest.raises(DeviceError, match=r"PyTorch finds 2 CUDA device\(s\) here\. Choose"):
        CudaDevice(index, runtime=GpuDouble(2))


@pytest.mark.parametrize("option", ["lanes", "slots"])
def test_device_option_below_one_is_refused(option: str) -> None:
    """Neither lanes nor slots can be 0."""
    with pytest.raises(ConfigurationError, match=f"{option} is 0"):
        CudaDevice(0, runtime=GpuDouble(), **{option: 0})


def test_device_timed_includes_what_the_device_does() -> None:
    """The time of a run ends when the device is done, not when the launches are."""
    gpu = GpuDouble()
    on_gpu = gpu.upload(torch.ones(2))
    results = []
    assert CudaDevice(runtime=gpu).timed(lambda: results.append(on_gpu * 2)) > 0
    assert not any(stream.has_work for stream in gpu.machine.streams)


class Handle:
    """A stream as PyTorch's pool hands it out: 32 handles, in turn."""

    handles = cycle(range(100, 132))

    def __init__(self, device: torch.device) -> None:
        self.device_index = device.index
        self.cuda_stream = next(self.handles)


def test_runtime_streams_are_distinct_until_the_pool_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No two open streams share a handle; when all are in use that is an error, and a closed one can be had again."""
    monkeypatch.setattr(cuda_runtime, "TorchStream", Handle)
    runtime = TorchCudaRuntime()
    streams = [runtime.open_stream(0) for _ in range(16)]
    for _ in range(3):
        runtime.close_stream(runtime.open_stream(0))
    streams += [runtime.open_stream(0) for _ in range(16)]
    assert len({stream.cuda_stream for stream in streams}) == 32
    with pytest.raises(DeviceError, match="all 32 streams of cuda:0 are in use"):
        runtime.open_stream(0)
    runtime.open_stream(1)
    runtime.close_stream(streams[7])
    assert runtime.open_stream(0).cuda_stream == streams[7].cuda_stream


async def test_stream_hop_on_one_device_moves_nothing() -> None:
    """The next stage on the same device gets the very tensor, and no page-locked memory is taken for it."""
    gpu = GpuDouble()
    device = CudaDevice(runtime=gpu)
    seen: list[Value] = []

    def make(value: Value) -> Value:
        seen.append(plus(value))
        return seen[0]

    def use(value: Value) -> Value:
        seen.append(value)
        return plus(value)

    async with streams_on(device, device) as (first, second):
        event = second.enqueue(use, first.enqueue(make, ready(torch.zeros(3))), to_host=True)
        assert torch.equal(await tensor_of(event), torch.full((3,), 2.0))
        assert seen[0] is seen[1]
    assert gpu.races == []


async def test_stream_prepared_takes_no_pinned_memory_per_frame() -> None:
    """Page-locked memory is taken by `prepare`, and once more by the first result; never after that."""
    gpu = GpuDouble()
    async with streams_on(CudaDevice(slots=3, runtime=gpu)) as (stream,):
        work, _ = await asyncio.to_thread(stream.prepare, Stage(fresh), torch.zeros(4), capture=False)
        assert gpu.pinned == 3
        taken = []
        for number in range(10):
            await tensor_of(stream.enqueue(work, ready(torch.full((4,), float(number))), to_host=True))
            taken.append(gpu.pinned)
    assert taken == [6] * 10


async def test_stream_pinned_frame_is_held_until_it_is_copied() -> None:
    """A page-locked frame goes without staging, so the stream keeps it until the device has read it."""
    gpu = GpuDouble()
    async with streams_on(CudaDevice(runtime=gpu)) as (stream,):
        frame = gpu.pin(torch.arange(4.0))
        reference = weakref.ref(frame)
        gpu.hold()
        event = stream.enqueue(plus, ready(frame), to_host=True)
        del frame
        assert isinstance(event, CudaEvent)
        await asyncio.to_thread(event.wait_until_launched)
        assert reference() is not None
        gpu.release()
        assert torch.equal(await tensor_of(event), torch.arange(4.0) + 1)
        assert reference() is None
    assert gpu.races == []


async def test_stream_frame_of_another_shape_goes_another_way() -> None:
    """What does not fit the slots that `prepare` made is copied all the same, into the device and out of it."""
    gpu = GpuDouble()
    async with streams_on(CudaDevice(runtime=gpu)) as (stream,):
        work, _ = await asyncio.to_thread(stream.prepare, Stage(fresh), torch.zeros(4), capture=False)
        for frame in (torch.ones(2, 3), torch.ones(4, dtype=torch.float64), torch.ones(4)):
            assert torch.equal(await tensor_of(stream.enqueue(work, ready(frame), to_host=True)), frame * 2 + 1)
    assert gpu.races == []


async def test_stream_more_frames_than_slots_come_out_right() -> None:
    """With one slot each way, the launcher waits for it, and nothing is overwritten."""
    gpu = GpuDouble(seed=2)
    async with streams_on(CudaDevice(slots=1, runtime=gpu)) as (stream,):
        work, _ = await asyncio.to_thread(stream.prepare, Stage(fresh), torch.zeros(4), capture=False)
        events = [stream.enqueue(work, ready(torch.full((4,), float(each))), to_host=True) for each in range(12)]
        assert [float((await tensor_of(event))[0]) for event in events] == [2.0 * each + 1 for each in range(12)]
    assert gpu.races == []


async def test_stream_module_that_keeps_its_input_is_found_out() -> None:
    """Only the stage that keeps frames pays for a copy of them."""
    gpu = GpuDouble()
    device = CudaDevice(runtime=gpu)
    async with streams_on(device, device) as (keeping, plain):
        _, example = await asyncio.to_thread(keeping.prepare, Difference(), torch.zeros(4), capture=False)
        await asyncio.to_thread(plain.prepare, Stage(same), example, capture=False)
        assert vars(keeping)["_keeps_input"]
        assert not vars(plain)["_keeps_input"]


async def test_stream_failure_on_the_device_is_passed_on_with_its_origin() -> None:
    """An error that only the device sees fails the work that caused it, and all behind it with the same error."""
    gpu = GpuDouble()
    device = CudaDevice(runtime=gpu)
    async with streams_on(device, device) as (first, second):
        before = await completed(first.enqueue(plus, ready(torch.zeros(2))))
        gpu.hold()
        failed = first.enqueue(out_of_range, ready(torch.zeros(2)))
        behind = second.enqueue(plus, failed, to_host=True)
        assert isinstance(behind, CudaEvent)
        await asyncio.to_thread(behind.wait_until_launched)
        gpu.release()
        await completed(behind)
        after = await completed(second.enqueue(plus, ready(torch.zeros(2))))
    assert before.error is None
    assert isinstance(failed.error, RuntimeError)
    assert failed.origin is first
    assert failed.value is None
    assert behind.error is failed.error
    assert behind.origin is first
    assert "CUDA error" in str(after.error)


async def test_stream_behind_a_host_stage_does_not_hold_the_launcher_up() -> None:
    """While a stage on the host works, the launcher of the device goes on with the frames behind."""
    gpu = GpuDouble(eagerness=0.5)
    device = CudaDevice(runtime=gpu)
    may_end = threading.Event()

    def slow(value: Value) -> Value:
        may_end.wait(TIMEOUT_S)
        return plus(value)

    async with streams_on(device, CpuDevice(), device, device) as (first, host, third, fourth):
        ends: list[DeviceEvent] = []
        starts: list[DeviceEvent] = []
        for number in range(3):
            starts.append(first.enqueue(plus, ready(torch.full((2,), float(number))), to_host=True))
            ends.append(fourth.enqueue(plus, third.enqueue(plus, host.enqueue(slow, starts[-1])), to_host=True))
        for start in starts:
            await value_of(start)
        assert not any(end.is_complete for end in ends)
        may_end.set()
        assert [float((await tensor_of(end))[0]) for end in ends] == [4.0, 5.0, 6.0]
    assert gpu.races == []


async def test_stream_on_two_devices_in_turn_comes_out_right() -> None:
    """Stages that go back and forth between two devices neither wait for each other for ever nor mix frames up."""
    gpu = GpuDouble(2, eagerness=0.2)
    left, right = CudaDevice(0, runtime=gpu), CudaDevice(1, runtime=gpu)
    async with streams_on(left, right, left, right) as streams:
        ends = []
        for number in range(10):
            event = ready(torch.full((2,), float(number)))
            for stream in streams:
                event = stream.enqueue(plus, event, to_host=stream is streams[-1])
            ends.append(event)
        assert [float((await tensor_of(end))[0]) for end in ends] == [each + 4.0 for each in range(10)]
    assert gpu.races == []


async def test_stream_value_from_the_host_end_of_another_stream_is_brought_back() -> None:
    """A stage may read what the stage before sent to the host, though both are on one device."""
    gpu = GpuDouble()
    device = CudaDevice(runtime=gpu)
    async with streams_on(device, device) as (first, second):
        hidden = first.enqueue(plus, ready(torch.zeros(2)), to_host=True)
        assert torch.equal(await tensor_of(second.enqueue(plus, hidden, to_host=True)), torch.full((2,), 2.0))
    assert gpu.races == []


@pytest.mark.parametrize("to_host", [True, False], ids=["sent", "fetched"])
async def test_stream_of_the_cpu_behind_a_device_gets_its_values_in_host_memory(to_host: bool) -> None:
    """A network may end on the CPU, or go through it: what comes from the device is copied when it is done."""
    gpu = GpuDouble()
    async with streams_on(CudaDevice(runtime=gpu), CpuDevice(), CudaDevice(runtime=gpu)) as (first, second, third):
        kinds: list[str] = []

        def seen(value: Value) -> Value:
            assert isinstance(value, Tensor)
            kinds.append(value.device.type)
            return value + 1.0

        hidden = first.enqueue(plus, ready(torch.zeros(2)), to_host=to_host)
        last = third.enqueue(plus, second.enqueue(seen, hidden, to_host=to_host), to_host=True)
        assert torch.equal(await tensor_of(last), torch.full((2,), 3.0))
    assert kinds == ["cpu"]
    assert gpu.races == []


async def test_stream_empty_value_passes() -> None:
    """Work for which no tensor travels runs on the device's stream like any other."""
    gpu = GpuDouble()
    async with streams_on(CudaDevice(runtime=gpu)) as (stream,):
        assert await value_of(stream.enqueue(lambda value: value, ready(()), to_host=True)) == ()


async def test_launcher_is_shared_and_ends_with_the_last_stream() -> None:
    """One thread launches for all streams of a device; it is there as long as a stream is."""
    device = CudaDevice(runtime=GpuDouble())
    async with streams_on(device, device) as (first, second):
        assert threads_of_streams().count("cuda:0 launcher") == 1
        await first.aclose(TIMEOUT_S)
        assert threads_of_streams().count("cuda:0 launcher") == 1
        assert torch.equal(await tensor_of(second.enqueue(plus, ready(torch.zeros(1)), to_host=True)), torch.ones(1))
        await second.aclose(TIMEOUT_S)
        assert "cuda:0 launcher" not in threads_of_streams()
    async with streams_on(device) as (again,):
        assert torch.equal(await tensor_of(again.enqueue(plus, ready(torch.zeros(1)), to_host=True)), torch.ones(1))


_HELD_S = 0.3
"""Far more than an addition takes, on a busy machine too."""


async def test_events_of_the_device_time_the_work_on_it() -> None:
    """Busy time is what passed between the device's own events, not what the host waited."""
    gpu = GpuDouble()
    async with streams_on(CudaDevice(runtime=gpu)) as (stream,):
        gpu.hold()
        event = stream.enqueue(plus, ready(torch.zeros(2)))
        assert isinstance(event, CudaEvent)
        await asyncio.to_thread(event.wait_until_launched)
        await asyncio.to_thread(threading.Event().wait, _HELD_S)
        gpu.release()
        await completed(event)
        assert 0 < event.finished_at - event.started_at < _HELD_S
        assert stream.busy_s < _HELD_S
