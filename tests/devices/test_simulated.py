"""Simulated devices take their stated time, whatever the loop does; most of this on virtual time."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
import torch
from torch import Tensor

from partime_async.clock import LoopClock
from partime_async.devices import DeviceEvent, DeviceStream, Notifier, SimulatedDevice, ready
from partime_async.errors import ConfigurationError, DeadlineExceeded, WorkAborted
from partime_async.frame import Value

_MS = 1e-3


def plus(value: Value) -> Value:
    """Stand for a stage."""
    assert isinstance(value, Tensor)
    return value + 1


def opened(*devices: SimulatedDevice) -> list[DeviceStream]:
    """Open a stream on each device, on the loop's clock."""
    notifier: Notifier[DeviceEvent] = Notifier(asyncio.get_running_loop())
    return [device.open_stream("stage", notifier=notifier, clock=LoopClock()) for device in devices]


@pytest.mark.parametrize("times", [{"service_s": -0.001}, {"service_s": 1.0, "transfer_s": -1.0}])
def test_device_negative_time_is_refused(times: dict[str, float]) -> None:
    """A time below zero names the option that is wrong."""
    with pytest.raises(ConfigurationError, match="a simulated time is 0 or more seconds"):
        SimulatedDevice(**times)


def test_device_time_that_is_no_number_is_refused() -> None:
    """Not a number is not a time."""
    with pytest.raises(ConfigurationError, match="nan"):
        SimulatedDevice(float("nan"))


def test_device_timed_is_its_service_time() -> None:
    """A planner that measures it gets the stated time, and the work done."""
    done: list[int] = []
    assert SimulatedDevice(0.25).timed(lambda: done.append(1)) == pytest.approx(0.25)
    assert done == [1]


@pytest.mark.looptime
async def test_stream_jobs_enqueued_at_once_end_one_service_time_apart() -> None:
    """The third of three jobs of 5 ms ends after 15 ms, and each announcement comes at the end of its job."""
    (stream,) = opened(SimulatedDevice(5 * _MS))
    loop = asyncio.get_running_loop()
    began = loop.time()
    announced: list[float] = []
    jobs = [
        stream.enqueue(plus, ready(torch.zeros(1)), lambda _: announced.append(loop.time() - began)) for _ in range(3)
    ]
    await stream.aclose(1.0)
    expected = pytest.approx([5 * _MS, 10 * _MS, 15 * _MS], abs=1e-5)
    assert [job.finished_at - began for job in jobs] == expected
    assert announced == expected
    assert stream.busy_s == pytest.approx(15 * _MS)


@pytest.mark.looptime
async def test_stream_late_loop_delays_one_announcement_and_no_other_work() -> None:
    """Times follow from each other: what the loop does in between moves no end."""
    (stream,) = opened(SimulatedDevice(5 * _MS))
    jobs = [stream.enqueue(plus, ready(torch.zeros(1))) for _ in range(2)]
    await asyncio.sleep(0.1)
    late = stream.enqueue(plus, ready(torch.zeros(1)))
    assert jobs[1].finished_at - jobs[0].finished_at == pytest.approx(5 * _MS)
    assert late.started_at - jobs[1].finished_at == pytest.approx(0.09, abs=1e-5)
    await stream.aclose(1.0)


@pytest.mark.looptime
async def test_chain_of_eight_stages_takes_the_sum_of_their_times() -> None:
    """A frame goes through 8 stages of 2 ms in 16 ms; frames at 30 per second do not slow it down."""
    streams = opened(*[SimulatedDevice(2 * _MS)] * 8)
    clock = LoopClock()
    ages = []
    for _ in range(5):
        captured_at = clock.now()
        event = ready(torch.zeros(1))
        for stream in streams:
            event = stream.enqueue(plus, event)
        ages.append(event.finished_at - captured_at)
        assert torch.equal(torch.as_tensor(event.value), torch.full((1,), 8.0))
        await asyncio.sleep(1 / 30)
    assert ages == pytest.approx([16 * _MS] * 5, abs=1e-5)


@pytest.mark.looptime
async def test_transfer_overlaps_with_the_work_on_the_frame_before() -> None:
    """A transfer adds to the latency of a frame, and not to the time between frames."""
    streams = opened(SimulatedDevice(5 * _MS), SimulatedDevice(5 * _MS, transfer_s=3 * _MS))
    began = LoopClock().now()
    ends = []
    for _ in range(4):
        event = streams[1].enqueue(plus, streams[0].enqueue(plus, ready(torch.zeros(1))))
        ends.append(event.finished_at - began)
    assert ends == pytest.approx([13 * _MS, 18 * _MS, 23 * _MS, 28 * _MS], abs=1e-5)
    for stream in streams:
        await stream.aclose(1.0)


@pytest.mark.looptime
@pytest.mark.parametrize("seed", range(8))
async def test_times_of_any_pipeline_follow_the_recurrence(seed: int) -> None:
    """Work begins when its input has arrived and the work before has ended, for any times and any arrivals."""
    choice = random.Random(seed)
    devices = [
        SimulatedDevice(choice.choice([0.0, 1.0, 4.0]) * _MS, transfer_s=choice.choice([0.0, 0.0, 2.0]) * _MS)
        for _ in range(4)
    ]
    streams = opened(*devices)
    free_at = [0.0] * len(devices)
    clock = LoopClock()
    for _ in range(20):
        event = ready(torch.zeros(1))
        made_at = 0.0
        for number, (stream, device) in enumerate(zip(streams, devices, strict=True)):
            began = max(max(clock.now(), made_at) + device.transfer_s, free_at[number])
            made_at = free_at[number] = began + device.service_s
            event = stream.enqueue(plus, event)
            assert (event.started_at, event.finished_at) == pytest.approx((began, made_at), abs=1e-5)
        await asyncio.sleep(choice.choice([0.0, 1.0, 7.0]) * _MS)
    for stream in streams:
        await stream.aclose(10.0)


@pytest.mark.looptime
async def test_abort_lets_what_has_started_end_in_its_time() -> None:
    """Of three jobs of 5 ms, aborted after 7 ms, the first is done, the second ends at 10 ms, the third fails then."""
    (stream,) = opened(SimulatedDevice(5 * _MS))
    loop = asyncio.get_running_loop()
    began = loop.time()
    announced: list[tuple[float, bool]] = []

    def note(event: DeviceEvent) -> None:
        announced.append((loop.time() - began, isinstance(event.error, WorkAborted)))

    for _ in range(3):
        stream.enqueue(plus, ready(torch.zeros(1)), note)
    await asyncio.sleep(7 * _MS)
    stream.abort()
    await stream.aclose(1.0)
    assert [failed for _, failed in announced] == [False, False, True]
    assert [at for at, _ in announced] == pytest.approx([5 * _MS, 10 * _MS, 10 * _MS], abs=1e-5)
    assert stream.busy_s == pytest.approx(10 * _MS)


@pytest.mark.looptime
async def test_aclose_deadline_is_virtual_too() -> None:
    """A close that would take an hour gives up at its deadline, in no time."""
    (stream,) = opened(SimulatedDevice(3600.0))
    stream.enqueue(plus, ready(torch.zeros(1)))
    outside = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await stream.aclose(60.0)
    assert time.monotonic() - outside < 30


@pytest.mark.looptime
async def test_announcement_that_raises_stops_no_other() -> None:
    """An error in a callback goes to the loop's handler, also for jobs that abort completes."""
    (stream,) = opened(SimulatedDevice(5 * _MS))
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["exception"]))
    seen: list[DeviceEvent] = []

    def refuse(event: DeviceEvent) -> None:
        raise LookupError("no")

    jobs = [stream.enqueue(plus, ready(torch.zeros(1)), refuse if each == 1 else seen.append) for each in range(4)]
    await asyncio.sleep(2 * _MS)
    stream.abort()
    await stream.aclose(1.0)
    assert seen == [jobs[0], jobs[2], jobs[3]]
    assert len(complaints) == 1
