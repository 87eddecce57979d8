"""What every device promises of its ends: abort, close, memory, and what preparing a module leaves."""

from __future__ import annotations

import asyncio
import gc
import traceback
import weakref

import pytest
import torch
from torch import Tensor, nn

from partime_async.devices import DeviceEvent, SimulatedDevice, ready
from partime_async.errors import DeadlineExceeded, WorkAborted
from partime_async.frame import Value
from tests.devices.rigs import TIMEOUT_S, Rig, add_one, announced, completed, tensor_of, threads_of_streams


async def test_abort_fails_only_what_has_not_started(rig: Rig) -> None:
    """What runs runs on; all behind it, and all that comes later, fails with WorkAborted of this stream."""
    stream = rig.open_slow()
    seen: list[DeviceEvent] = []
    release = await rig.occupy(stream)
    waiting = [stream.enqueue(add_one, ready(torch.ones(1)), seen.append) for _ in range(3)]
    stream.abort()
    stream.abort()
    assert seen == [], "abort() is no place for callbacks"
    release()
    late = stream.enqueue(add_one, ready(torch.ones(1)), seen.append)
    await stream.aclose(TIMEOUT_S)
    assert seen == [*waiting, late]
    assert all(isinstance(event.error, WorkAborted) and event.origin is stream for event in seen)


async def test_abort_of_one_stream_reaches_what_waits_for_it(rig: Rig) -> None:
    """Another stream passes the failure on, and its own work is untouched."""
    if rig.is_simulated:
        pytest.skip("a simulated stream has the value of its source as soon as it is enqueued")
    first, second = rig.open("stage first"), rig.open("stage second")
    release = await rig.occupy(first)
    behind = second.enqueue(add_one, first.enqueue(add_one, ready(torch.ones(1))))
    own = second.enqueue(add_one, ready(torch.ones(1)), to_host=True)
    first.abort()
    release()
    await completed(behind)
    assert isinstance(behind.error, WorkAborted)
    assert behind.origin is first
    assert float(await tensor_of(own)) == 2.0


async def test_aclose_runs_what_is_enqueued(rig: Rig) -> None:
    """Closing waits for all work, and announces it before it returns."""
    stream = rig.open()
    seen: list[DeviceEvent] = []
    jobs = [stream.enqueue(add_one, ready(torch.tensor(float(each))), seen.append, to_host=True) for each in range(20)]
    await stream.aclose(TIMEOUT_S)
    assert seen == jobs
    assert all(job.is_complete and job.error is None for job in jobs)


async def test_aclose_leaves_no_thread(rig: Rig) -> None:
    """After closing, the threads of the stream have ended."""
    streams = [rig.open(f"stage {each}") for each in range(3)]
    for stream in streams:
        await announced(stream, 2)
    for stream in streams:
        await stream.aclose(TIMEOUT_S)
    assert threads_of_streams() == []


async def test_aclose_twice_or_at_once_is_one(rig: Rig) -> None:
    """Closing again, and closing while closing, waits for the same end."""
    stream = rig.open_slow()
    release = await rig.occupy(stream)
    closings = [asyncio.create_task(stream.aclose(TIMEOUT_S)) for _ in range(2)]
    await asyncio.sleep(0)
    release()
    await asyncio.gather(*closings)
    await stream.aclose(TIMEOUT_S)


async def test_aclose_cancelled_can_be_called_again(rig: Rig) -> None:
    """A cancelled close has not broken the stream: the next one ends it."""
    stream = rig.open_slow()
    release = await rig.occupy(stream)
    closing = asyncio.create_task(stream.aclose(TIMEOUT_S))
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    release()
    await stream.aclose(TIMEOUT_S)


async def test_aclose_of_stuck_work_raises_deadline_exceeded(rig: Rig) -> None:
    """Work that cannot be interrupted makes closing fail at its deadline, with the stream's name."""
    stream = rig.open_stuck()
    release = await rig.occupy(stream)
    with pytest.raises(DeadlineExceeded, match="stuck") as caught:
        await stream.aclose(0.01)
    assert caught.value.deadline_s == 0.01
    release()
    if not rig.is_simulated:
        await stream.aclose(TIMEOUT_S)


async def test_value_read_by_its_consumer_is_released(rig: Rig) -> None:
    """Neither the frame nor the tensor between two stages outlives the work that read it."""
    references: list[weakref.ref[Tensor]] = []

    def make(value: Value) -> Value:
        assert isinstance(value, Tensor)
        made = value * 2
        references.append(weakref.ref(made))
        return made

    first, second = rig.open("stage first"), rig.open("stage second")
    frame = torch.ones(3)
    references.append(weakref.ref(frame))
    source = ready(frame)
    del frame
    gc.collect()
    gc.disable()
    try:
        hidden = first.enqueue(make, source)
        await tensor_of(second.enqueue(add_one, hidden, to_host=True))
        await first.aclose(TIMEOUT_S)
        await second.aclose(TIMEOUT_S)
        assert [reference() for reference in references] == [None, None]
        assert source.value is None
        assert hidden.value is None
    finally:
        gc.enable()


async def test_error_dropped_frees_what_the_work_held(rig: Rig) -> None:
    """A failed job is no cycle: with the error goes every tensor in the frames of its traceback."""
    if rig.is_simulated:
        pytest.skip("the work of a simulated stream is called by the caller of enqueue(), whose frame keeps the event")
    references: list[weakref.ref[Tensor]] = []

    def fail(value: Value) -> Value:
        assert isinstance(value, Tensor)
        made = value * 2
        references.append(weakref.ref(made))
        raise LookupError(str(made.shape))

    stream = rig.open()
    gc.collect()
    gc.disable()
    try:
        event = await completed(stream.enqueue(fail, ready(torch.ones(3))))
        assert references[0]() is not None
        await announced(stream, 1)
        del event
        await stream.aclose(TIMEOUT_S)
        assert references[0]() is None
    finally:
        gc.enable()


class Wandering(nn.Module):
    """A module with every kind of state."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.calls = 0
        self.seen: list[float] = []

    def forward(self, value: Tensor) -> Tensor:
        """Count and note."""
        self.calls += 1
        self.seen.append(0.0)
        result: Tensor = self.body(value)
        return result


@pytest.mark.parametrize("capture", [False, True])
async def test_prepare_leaves_all_state_as_it_was(rig: Rig, capture: bool) -> None:
    """Weights, buffers, Python attributes and the random state end as they began."""
    module = Wandering()
    module(torch.randn(2, 3, 8, 8))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    stream = rig.open()
    example = torch.randn(2, 3, 8, 8)
    random_state = torch.get_rng_state()
    _, output = await asyncio.to_thread(stream.prepare, module, example, capture=capture)
    assert torch.equal(torch.get_rng_state(), random_state)
    after = {name: tensor.cpu() for name, tensor in module.state_dict().items()}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (module.calls, module.seen) == (1, [0.0])
    assert isinstance(output, Tensor)
    assert output.shape == (2, 4, 6, 6)


async def test_prepare_old_weight_norm_works(rig: Rig) -> None:
    """A module that holds a tensor which cannot be deep-copied can still be prepared."""
    with pytest.warns(FutureWarning):
        module = nn.utils.weight_norm(nn.Linear(3, 3))
    frame = torch.randn(1, 3)
    expected = module(frame).detach()
    stream = rig.open()
    work, _ = await asyncio.to_thread(stream.prepare, module, frame, capture=True)
    assert rig.is_equal(await tensor_of(stream.enqueue(work, ready(frame), to_host=True)), expected)


async def test_prepare_module_that_raises_raises_its_error(rig: Rig) -> None:
    """What the module raises in the warm-up reaches the caller, with the place where it happened."""
    stream = rig.open()
    with pytest.raises(RuntimeError, match=r"mat1|reduction dim") as caught:
        await asyncio.to_thread(stream.prepare, nn.Linear(3, 2), torch.ones(1, 4), capture=False)
    assert any("linear.py" in frame.filename for frame in traceback.extract_tb(caught.value.__traceback__))


async def test_stream_many_jobs_leave_nothing_behind(rig: Rig) -> None:
    """The number of live objects does not grow with the number of frames."""
    stream = rig.open("stage fast", SimulatedDevice(0.0) if rig.is_simulated else None)
    await announced(stream, 100)
    growths = []
    for _ in range(3):
        gc.collect()
        before = len(gc.get_objects())
        for _ in range(3):
            await announced(stream, 100)
        gc.collect()
        growths.append(len(gc.get_objects()) - before)
    # A round may run further ahead than those before, and grow pools; what leaks, leaks in every round.
    assert min(growths) < 100
