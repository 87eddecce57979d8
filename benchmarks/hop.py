"""What the parts of a hop cost: the numbers that say where the time between two stages goes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

import torch

from benchmarks.record import Measurement, Report
from benchmarks.rounds import Pace, interleave, say
from benchmarks.settings import Outcome, Settings
from benchmarks.summary import Spread, figure, table
from benchmarks.workers import Contestant, Worker
from partime_async.channel import Channel
from partime_async.clock import MonotonicClock
from partime_async.devices import CpuDevice, DeviceEvent, DeviceStream, Notifier, ready
from partime_async.frame import Value

GROUP = "hop"
CHANNEL = "`Channel(2)` between two tasks, put and get"
QUEUE = "`asyncio.Queue(2)` between two tasks, put and get"
ALONE = "CPU stream, one piece of work: enqueued to announced"
AHEAD = "CPU stream, 8 pieces enqueued ahead: each"
EXECUTOR = "`run_in_executor`, one call"
_NAMES = (CHANNEL, QUEUE, ALONE, AHEAD, EXECUTOR)

_PACE = Pace(generations=1, rounds=5, extra=5, seconds=0.3)
_QUICK = Pace(generations=1, rounds=2, extra=0, seconds=0.02)
_BATCH = 200


@dataclass(frozen=True, slots=True)
class PartSpec:
    """One of the parts, by name."""

    name: str

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Contestant]:
        """Start the thread that the part needs."""
        notifier: Notifier[DeviceEvent] = Notifier(asyncio.get_running_loop())
        stream = CpuDevice().open_stream("benchmark", notifier=notifier, clock=MonotonicClock())
        executor = ThreadPoolExecutor(1)
        batches: dict[str, Callable[[], Awaitable[None]]] = {
            CHANNEL: _channel,
            QUEUE: _queue,
            ALONE: lambda: _announced(stream, ahead=1),
            AHEAD: lambda: _announced(stream, ahead=8),
            EXECUTOR: lambda: _executed(executor),
        }
        try:
            yield _Part(batches[self.name])
        finally:
            executor.shutdown()
            await stream.aclose(timeout_s=10.0)


class _Part:
    def __init__(self, batch: Callable[[], Awaitable[None]]) -> None:
        self.facts: Mapping[str, str] = {}
        self._batch = batch

    async def run(self, seconds: float) -> Measurement:
        await self._batch()
        batches, began = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds or not batches:
            await self._batch()
            batches += 1
        return Measurement({"us": 1e6 * elapsed / (batches * _BATCH)})


async def _channel() -> None:
    channel: Channel[int] = Channel(2)

    async def put() -> None:
        for number in range(_BATCH):
            await channel.put(number)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(put())
        for _ in range(_BATCH):
            await channel.get()


async def _queue() -> None:
    queue: asyncio.Queue[int] = asyncio.Queue(2)

    async def put() -> None:
        for number in range(_BATCH):
            await queue.put(number)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(put())
        for _ in range(_BATCH):
            await queue.get()


async def _announced(stream: DeviceStream, *, ahead: int) -> None:
    """Enqueue as a stage does: no more than `ahead` at a time, woken when half are back."""
    value = torch.zeros(1)
    outstanding, woken = 0, asyncio.Event()

    def done(_event: DeviceEvent) -> None:
        nonlocal outstanding
        outstanding -= 1
        if 2 * outstanding <= ahead - 1:
            woken.set()

    for _ in range(_BATCH):
        while outstanding >= ahead:
            woken.clear()
            await woken.wait()
        outstanding += 1
        stream.enqueue(_nothing, ready(value), done)
    while outstanding:
        woken.clear()
        await woken.wait()


def _nothing(value: Value) -> Value:
    return value


async def _executed(executor: ThreadPoolExecutor) -> None:
    loop, value = asyncio.get_running_loop(), torch.zeros(1)
    for _ in range(_BATCH):
        await loop.run_in_executor(executor, _nothing, value)


def run(settings: Settings) -> Outcome:
    """Measure all parts in turns."""
    pace = _QUICK if settings.is_quick else _PACE
    say("hop")
    with Worker() as worker:
        for name in _NAMES:
            worker.open(name, PartSpec(name))
        rounds = interleave(dict.fromkeys(_NAMES, worker), pace, group=GROUP)
    return Outcome(pace.settings(), rounds)


def tables(report: Report) -> str:
    """Return the table: microseconds of each part."""
    rounds = report.of(GROUP)
    return table(
        ["part", "us"],
        [[name, Spread.over(rounds, figure(name, "us")).cell()] for name in _NAMES],
    )
