"""CPU streams: threads, recordings, and when the loop is told."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from partime_async.clock import MonotonicClock
from partime_async.devices import CpuDevice, DeviceEvent, DeviceStream, Notifier, ready
from partime_async.errors import ConfigurationError
from partime_async.frame import Value
from tests.devices.cuda_networks import streams_on
from tests.devices.rigs import TIMEOUT_S, completed, tensor_of, value_of


def plus(value: Value) -> Value:
    """Stand for a stage."""
    assert isinstance(value, Tensor)
    return value + 1


def count_of_threads(value: Value) -> Value:
    """Return how many threads operators use here."""
    return torch.tensor(torch.get_num_threads())


def open_on(loop: object, threads: int = 1) -> DeviceStream:
    """Open a stream that announces to this loop."""
    notifier: Notifier[DeviceEvent] = Notifier(cast(asyncio.AbstractEventLoop, loop))
    return CpuDevice().open_stream("stage", notifier=notifier, clock=MonotonicClock(), threads=threads)


class CountingLoop:
    """A loop that counts how often it is woken."""

    def __init__(self) -> None:
        self.wake_ups = 0
        self._loop = asyncio.get_running_loop()

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        """Count and pass on."""
        self.wake_ups += 1
        self._loop.call_soon_threadsafe(callback)


async def test_stream_threads_are_its_own() -> None:
    """Each stream computes with its own number of threads, and the caller's number stays."""
    before = torch.get_num_threads()
    streams = [open_on(asyncio.get_running_loop(), threads) for threads in (1, 2, 3)]
    counts = [int(await tensor_of(stream.enqueue(count_of_threads, ready(())))) for stream in streams]
    for stream in streams:
        await stream.aclose(TIMEOUT_S)
    assert counts == [1, 2, 3]
    assert torch.get_num_threads() == before


@pytest.mark.skipif(sys.platform != "linux", reason="niceness belongs to threads on Linux only")
@pytest.mark.parametrize("niceness", [0, 10])
async def test_stream_thread_is_nicer_than_the_loop_by_what_was_asked(niceness: int) -> None:
    """Work runs at the priority of the loop's thread, or at a lower one if asked; the loop's stays."""
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def found(value: Value) -> Value:
        return torch.tensor(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    async with streams_on(CpuDevice(niceness=niceness)) as (stream,):
        assert int(await tensor_of(stream.enqueue(found, ready(())))) == min(own + niceness, 19)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


async def test_prepare_with_capture_gives_a_recording() -> None:
    """A module that can be recorded is, and gives the very values."""
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    frame = torch.randn(3, 4)
    async with streams_on(CpuDevice()) as (stream,):
        work, _ = await asyncio.to_thread(stream.prepare, module, frame, capture=True)
        assert work is not module
        assert isinstance(work, torch.jit.ScriptModule)
        with torch.no_grad():
            expected = module(frame)
        assert torch.equal(await tensor_of(stream.enqueue(work, ready(frame))), expected)


async def test_prepare_with_capture_of_a_branching_module_runs_it_eagerly() -> None:
    """A module that cannot be recorded is its own work."""

    class Branching(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return value if value.sum() > 0 else -value

    module = Branching()
    async with streams_on(CpuDevice()) as (stream,):
        work, _ = await asyncio.to_thread(stream.prepare, module, torch.ones(2), capture=True)
        assert work is module
        assert torch.equal(await tensor_of(stream.enqueue(work, ready(-torch.ones(2)))), torch.ones(2))


async def test_announcements_of_work_that_piles_up_come_in_batches() -> None:
    """A thousand short jobs wake the loop far less often than a thousand times."""
    loop = CountingLoop()
    stream = open_on(loop)
    is_there = threading.Event()
    seen: list[DeviceEvent] = []

    def wait(value: Value) -> Value:
        is_there.wait(TIMEOUT_S)
        return value

    stream.enqueue(wait, ready(()))
    jobs = [stream.enqueue(plus, ready(torch.zeros(1)), seen.append) for _ in range(1000)]
    is_there.set()
    await stream.aclose(TIMEOUT_S)
    assert seen == jobs
    assert loop.wake_ups < 500


def _tell(is_told: asyncio.Event, event: DeviceEvent) -> None:
    is_told.set()


async def test_announcement_of_a_lone_job_is_not_held_back() -> None:
    """When nothing more waits, the loop is told at once."""
    async with streams_on(CpuDevice()) as (stream,):
        for _ in range(20):
            is_told = asyncio.Event()
            stream.enqueue(plus, ready(torch.zeros(1)), partial(_tell, is_told))
            async with asyncio.timeout(TIMEOUT_S):
                await is_told.wait()


async def test_announcement_is_not_held_back_by_a_source_that_takes_long() -> None:
    """What is done is announced before the stream goes to sleep for the next input."""
    is_there = threading.Event()

    def wait(value: Value) -> Value:
        is_there.wait(TIMEOUT_S)
        return value

    async with streams_on(CpuDevice(), CpuDevice()) as (slow, quick):
        late = slow.enqueue(wait, ready(torch.zeros(1)))
        is_told = asyncio.Event()
        quick.enqueue(plus, ready(torch.zeros(1)), lambda _: is_told.set())
        last = quick.enqueue(plus, late)
        async with asyncio.timeout(TIMEOUT_S):
            await is_told.wait()
        assert not last.is_complete
        is_there.set()
        await value_of(last)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, StopIteration])
async def test_work_that_raises_anything_does_not_end_the_thread(kind: type[BaseException]) -> None:
    """Whatever work raises is the event's, and the next work runs."""

    def leave(value: Value) -> Value:
        raise kind

    async with streams_on(CpuDevice()) as (stream,):
        left = await completed(stream.enqueue(leave, ready(())))
        assert isinstance(left.error, kind)
        assert torch.equal(await tensor_of(stream.enqueue(plus, ready(torch.zeros(1)))), torch.ones(1))


async def test_event_many_waiters_are_all_let_go() -> None:
    """Any number of threads can wait for one event, before it happens and after."""
    is_there = threading.Event()

    def wait(value: Value) -> Value:
        is_there.wait(TIMEOUT_S)
        return value

    async with streams_on(CpuDevice()) as (stream,):
        event = stream.enqueue(wait, ready(()))
        waiting = [asyncio.create_task(asyncio.to_thread(event.wait)) for _ in range(5)]
        await asyncio.sleep(0)
        is_there.set()
        await asyncio.gather(*waiting)
        event.wait()
        assert event.is_complete


def test_device_lanes_can_be_stated() -> None:
    """Who knows better than the number of cores can say so."""
    assert CpuDevice(lanes=7).lanes == 7


@pytest.mark.parametrize("options", [{"lanes": 0}, {"lanes": -1}, {"niceness": -1}, {"niceness": 20}])
def test_device_option_out_of_range_is_refused(options: dict[str, int]) -> None:
    """A device with no lanes, or with a niceness that Linux has not got, is an error that states the value."""
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))} is {next(iter(options.values()))}"):
        CpuDevice(**options)
