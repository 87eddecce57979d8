"""What every device promises of order, values, errors and times, run on every device that is here."""

from __future__ import annotations

import asyncio
import copy
import random
import traceback
from functools import partial

import torch
from torch import Tensor, nn

from partime_async.clock import MonotonicClock
from partime_async.devices import Device, DeviceEvent, DeviceStream, ready
from partime_async.frame import Value
from tests.devices.rigs import Rig, add_one, announced, completed, refuse, tensor_of, value_of


async def test_device_each_satisfies_the_protocols(rig: Rig) -> None:
    """A device and its streams have the attributes and methods of the protocols."""
    assert isinstance(rig.device, Device)
    assert isinstance(rig.open(), DeviceStream)
    assert rig.device.lanes >= 1


async def test_ready_event_is_complete_with_its_value(rig: Rig) -> None:
    """An event made of a value from the host is complete at once."""
    value = torch.ones(2)
    event = ready(value)
    event.wait()
    assert event.is_complete
    assert event.value is value
    assert event.error is None


async def test_stream_many_jobs_announced_on_the_loop_in_order(rig: Rig) -> None:
    """Announcements come on the loop's thread, in the order of the work."""
    events = await announced(rig.open(), 50)
    assert [float(await tensor_of(event)) for event in events] == [number + 1.0 for number in range(50)]


async def test_stream_many_jobs_run_one_after_the_other(rig: Rig) -> None:
    """Work of one stream runs strictly in the order it was enqueued."""
    order: list[int] = []
    running: list[int] = []
    stream = rig.open()

    def work(number: int, value: Value) -> Value:
        running.append(number)
        assert running == [number]
        order.append(number)
        running.clear()
        return value

    jobs = [stream.enqueue(partial(work, number), ready(())) for number in range(30)]
    for job in jobs:
        await value_of(job)
    assert order == list(range(30))


async def test_source_on_another_stream_is_waited_for(rig: Rig) -> None:
    """A stream works on a value only when the stream before has made it, though both were enqueued at once."""
    first, second = rig.open_slow("stage first"), rig.open("stage second")
    release = await rig.occupy(first)
    made = first.enqueue(add_one, ready(torch.tensor(1.0)))
    used = second.enqueue(add_one, made, to_host=True)
    assert not used.is_complete
    release()
    assert float(await tensor_of(used)) == 3.0
    assert made.is_complete


async def test_values_of_a_chain_equal_eager_execution(rig: Rig) -> None:
    """Two stages with a batch normalisation in training mode give what the modules give when called."""
    torch.manual_seed(1)
    modules = [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 5), nn.Tanh()),
    ]
    reference = copy.deepcopy(modules)
    streams = [rig.open("stage first"), rig.open("stage second")]
    example: Value = torch.randn(2, 3, 8, 8)
    works = []
    for module, stream in zip(modules, streams, strict=True):
        work, example = await asyncio.to_thread(stream.prepare, module, example, capture=False)
        works.append(work)
    frames = [torch.randn(2, 3, 8, 8) for _ in range(12)]
    results = []
    for frame in frames:
        hidden = streams[0].enqueue(works[0], ready(frame))
        results.append(streams[1].enqueue(works[1], hidden, to_host=True))
    with torch.no_grad():
        for frame, result in zip(frames, results, strict=True):
            assert rig.is_equal(await tensor_of(result), reference[1](reference[0](frame)))


async def test_value_tuple_passes_whole(rig: Rig) -> None:
    """Several tensors travel as one value, also through the host."""

    def swap(value: Value) -> Value:
        return value[1] * 2, value[0]

    stream = rig.open()
    value = (torch.arange(3.0), torch.ones(2, 2))
    made = stream.enqueue(swap, ready(value))
    left, right = await value_of(rig.open("stage other").enqueue(swap, made, to_host=True))
    assert torch.equal(left, torch.arange(3.0) * 2)
    assert torch.equal(right, torch.ones(2, 2) * 2)


async def test_result_to_host_is_ordinary_memory(rig: Rig) -> None:
    """A result that was asked for on the host is a CPU tensor that shares nothing with the next result."""
    stream = rig.open()
    work, _ = await asyncio.to_thread(stream.prepare, nn.Flatten(), torch.ones(1, 2, 2), capture=False)
    jobs = [stream.enqueue(work, ready(torch.full((1, 2, 2), float(each))), to_host=True) for each in range(9)]
    results = [await tensor_of(job) for job in jobs]
    assert all(type(result) is Tensor and result.device.type == "cpu" for result in results)
    assert [float(result.sum()) for result in results] == [4.0 * each for each in range(9)]


async def test_work_that_raises_fails_its_event_alone(rig: Rig) -> None:
    """The event carries the error and the stream; the next work runs."""
    stream = rig.open()
    failed = stream.enqueue(refuse, ready(torch.ones(1)))
    after = stream.enqueue(add_one, ready(torch.ones(1)), to_host=True)
    await completed(failed)
    assert isinstance(failed.error, LookupError)
    assert failed.origin is stream
    assert failed.value is None
    assert float(await tensor_of(after)) == 2.0


async def test_work_that_raises_keeps_its_traceback(rig: Rig) -> None:
    """The traceback of the error names the function that raised, and not the stream that ran it."""
    event = await completed(rig.open().enqueue(refuse, ready(torch.ones(1))))
    assert event.error is not None
    assert [frame.name for frame in traceback.extract_tb(event.error.__traceback__)] == ["refuse"]


async def test_failed_source_is_passed_on_with_its_origin(rig: Rig) -> None:
    """Work behind a failed source is skipped, and its event carries the first error and where it came from."""
    calls: list[Value] = []

    def note(value: Value) -> Value:
        calls.append(value)
        return value

    first, second, third = rig.open("stage first"), rig.open("stage second"), rig.open("stage third")
    failed = first.enqueue(refuse, ready(torch.ones(1)))
    skipped = second.enqueue(note, failed)
    last = await completed(third.enqueue(add_one, skipped, to_host=True))
    assert last.error is failed.error
    assert last.origin is first
    assert calls == []


async def test_failed_source_after_completion_is_passed_on(rig: Rig) -> None:
    """It makes no difference whether the source failed before the work was enqueued."""
    first, second = rig.open("stage first"), rig.open("stage second")
    failed = await completed(first.enqueue(refuse, ready(torch.ones(1))))
    last = await completed(second.enqueue(add_one, failed))
    assert last.error is failed.error
    assert last.origin is first


async def test_failed_event_is_announced_in_its_turn(rig: Rig) -> None:
    """Failures are announced like results, in order."""
    seen: list[DeviceEvent] = []
    stream = rig.open()
    works = [add_one, refuse, add_one, refuse, add_one]
    jobs = [stream.enqueue(work, ready(torch.ones(1)), seen.append) for work in works]
    await announced(stream, 1)
    assert seen == jobs
    assert [job.error is not None for job in jobs] == [False, True, False, True, False]


async def test_times_are_on_the_clock_and_in_order(rig: Rig) -> None:
    """Every event ends after it began, the ends are in order, and the stream adds up its busy time."""
    now = MonotonicClock.now
    before = now()
    stream = rig.open()
    events = await announced(stream, 10)
    slack_s = 0.002 if rig.is_simulated else 0.0  # uvloop counts in milliseconds: a timer may be early
    assert all(before <= event.started_at <= event.finished_at <= now() + slack_s for event in events)
    ends = [event.finished_at for event in events]
    assert ends == sorted(ends)
    assert 0 < stream.busy_s <= now() - before + slack_s


async def test_streams_several_at_once_give_the_values_of_one(rig: Rig) -> None:
    """Chains that wander over four streams in random order come out as if they had been computed one by one."""
    choice = random.Random(3)
    streams = [rig.open(f"stage {each}") for each in range(4)]
    chains = [ready(torch.tensor(float(each))) for each in range(8)]
    lengths = [0] * len(chains)
    for _ in range(80):
        picked = choice.randrange(len(chains))
        lengths[picked] += 1
        chains[picked] = choice.choice(streams).enqueue(add_one, chains[picked])
    ends = [streams[0].enqueue(add_one, chain, to_host=True) for chain in chains]
    assert [float(await tensor_of(end)) for end in ends] == [each + length + 1.0 for each, length in enumerate(lengths)]


async def test_gradients_are_off_in_work(rig: Rig) -> None:
    """Work runs with gradients off, whichever thread it runs on."""
    stream = rig.open()
    work, _ = await asyncio.to_thread(stream.prepare, nn.Linear(2, 2), torch.ones(1, 2), capture=False)
    assert not (await tensor_of(stream.enqueue(work, ready(torch.ones(1, 2)), to_host=True))).requires_grad
