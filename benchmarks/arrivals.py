"""Contestants for the latency benchmark: live sources, and how long their frames take."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

import partime_async as pa
from benchmarks import metronome
from benchmarks.nets import Net
from benchmarks.record import Measurement
from benchmarks.summary import percentile
from benchmarks.tally import Tally
from benchmarks.workers import Contestant

_WARM_UP_S = 0.3


@dataclass(frozen=True, slots=True)
class ArrivalSpec:
    """Frames that arrive as datagrams from another process, at a rate that the stages can keep up with.

    Attributes:
        net: Runs in two stages.
        rate_hz: Frames/s.
        load: Runs in two stages of a second pipeline, in the same loop, as fast as it can; None: nothing does.
        device: Where both run.
    """

    net: Net
    rate_hz: float
    load: Net | None
    device: str = "cpu"

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Contestant]:
        """Choose where to cut, once: each turn then enters fresh pipelines, with statistics of their own."""
        main = await asyncio.to_thread(_two_stages, self.net, self.device)
        load = None if self.load is None else await asyncio.to_thread(_two_stages, self.load, self.device)
        yield _Arrivals(self, main, load)


def _two_stages(net: Net, device: str) -> pa.Pipeline:
    module, frame = net.module(), net.frames()[0]
    balance = pa.plan(module, frame, stages=2, devices=[device]).balance
    return pa.Pipeline(module, frame, balance=balance, devices=[device])


class _Arrivals:
    def __init__(self, spec: ArrivalSpec, main: pa.Pipeline, load: pa.Pipeline | None) -> None:
        self.facts: Mapping[str, str] = {}
        self._spec, self._main, self._load = spec, main, load

    async def run(self, seconds: float) -> Measurement:
        frames = self._spec.net.frames()
        async with AsyncExitStack() as stack:
            if self._spec.load is not None and self._load is not None:
                await stack.enter_async_context(_saturated(self._load, self._spec.load.frames()))
            pipeline = await stack.enter_async_context(self._main)
            feed = await stack.enter_async_context(pipeline.feed(overflow="latest"))
            await stack.enter_async_context(_datagrams(feed, frames, self._spec.rate_hz))
            arrived = await _collect(feed, seconds)
            lag = pipeline.statistics().loop.lag_s
        return Measurement({**_parts(arrived), "lag_p50_ms": 1e3 * lag.p50, "lag_p99_ms": 1e3 * lag.p99})


@asynccontextmanager
async def _saturated(pipeline: pa.Pipeline, frames: Sequence[Tensor]) -> AsyncIterator[None]:
    async def source() -> AsyncIterator[Tensor]:
        for frame in itertools.cycle(frames):
            yield frame

    async def drive() -> None:
        async for _result in pipeline.stream(source()):
            pass

    async with pipeline:
        task = asyncio.create_task(drive())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])


class _Receiver(asyncio.DatagramProtocol):
    def __init__(self, feed: pa.Feed, frames: Sequence[Tensor]) -> None:
        self._feed, self._frames = feed, itertools.cycle(frames)

    def datagram_received(self, data: bytes, addr: object) -> None:
        (sent_at,) = metronome.STAMP.unpack(data)
        self._feed.put_nowait(next(self._frames), captured_at=sent_at)


@asynccontextmanager
async def _datagrams(feed: pa.Feed, frames: Sequence[Tensor], rate_hz: float) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Receiver(feed, frames), local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    sender = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(metronome.__file__)), str(port), str(rate_hz)
    )
    try:
        yield
    finally:
        sender.kill()
        await sender.wait()
        transport.close()


async def _collect(feed: pa.Feed, seconds: float) -> list[tuple[pa.Result, float]]:
    """Return the results of this many seconds, each with the time at which it was read."""
    arrived: list[tuple[pa.Result, float]] = []
    first = last = 0.0
    async for result in feed:
        now = time.monotonic()
        first = first or now
        if now - first >= _WARM_UP_S:
            arrived.append((result, now))
            last = last or now
            if now - last >= seconds:
                break
    return arrived


def _parts(arrived: Sequence[tuple[pa.Result, float]]) -> dict[str, float]:
    """Split each frame's way, from its capture to its reader, into stages and what lies between them."""
    parts: dict[str, list[float]] = {"start": [], "hops": [], "delivery": [], "overhead": [], "latency": []}
    stages: list[float] = []
    for result, read_at in arrived:
        timings = result.timings
        stages.append(sum(each.finished_at - each.started_at for each in timings))
        parts["start"].append(timings[0].started_at - result.captured_at)
        parts["hops"].append(sum(b.started_at - a.finished_at for a, b in itertools.pairwise(timings)))
        parts["delivery"].append(read_at - timings[-1].finished_at)
        parts["latency"].append(read_at - result.captured_at)
        parts["overhead"].append(parts["latency"][-1] - stages[-1])
    figures = {"frames": float(len(arrived)), "stages_p50_ms": 1e3 * median(stages) if stages else 0.0}
    for name, values in parts.items():
        figures[f"{name}_p50_ms"] = 1e3 * percentile(values, 0.5)
        figures[f"{name}_p99_ms"] = 1e3 * percentile(values, 0.99)
    return figures


@dataclass(frozen=True, slots=True)
class CameraSpec:
    """A source of a fixed rate before simulated stages.

    Attributes:
        stages: How many.
        service_s: Seconds that each takes.
        rate_hz: Frames/s of the source.
    """

    stages: int
    service_s: float
    rate_hz: float

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Contestant]:
        """Enter the pipeline."""
        async with pa.Pipeline(
            nn.Sequential(*(nn.Identity() for _ in range(self.stages))),
            torch.zeros(1, 1),
            balance=[1] * self.stages,
            devices=[f"simulated:{1e3 * self.service_s:g}ms"],
        ) as pipeline:
            yield _Camera(pipeline, self.rate_hz)


class _Camera:
    def __init__(self, pipeline: pa.Pipeline, rate_hz: float) -> None:
        self.facts: Mapping[str, str] = {}
        self._pipeline, self._rate_hz = pipeline, rate_hz

    async def run(self, seconds: float) -> Measurement:
        async with self._pipeline.feed(overflow="latest") as feed:
            source = asyncio.create_task(_paced(feed, [torch.zeros(1, 1)], self._rate_hz))
            try:
                return Measurement(_parts(await _collect(feed, seconds)))
            finally:
                source.cancel()
                await asyncio.wait([source])


async def _paced(feed: pa.Feed, frames: Sequence[Tensor], rate_hz: float) -> None:
    began = time.monotonic()
    for number, frame in enumerate(itertools.cycle(frames)):
        await asyncio.sleep(began + number / rate_hz - time.monotonic())
        await feed.put(frame)


@dataclass(frozen=True, slots=True)
class OverloadSpec:
    """A live source that brings more frames than the pipeline can run.

    Attributes:
        net: Runs in two stages.
        excess: Frames/s of the source, in multiples of what the pipeline runs.
        device: Where it runs.
    """

    net: Net
    excess: float
    device: str = "cpu"

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Contestant]:
        """Enter the pipeline."""
        frames = self.net.frames()
        async with pa.Pipeline(self.net.module(), frames[0], stages=2, devices=[self.device]) as pipeline:
            yield _Overload(pipeline, frames, self.excess)


class _Overload:
    def __init__(self, pipeline: pa.Pipeline, frames: Sequence[Tensor], excess: float) -> None:
        self.facts: Mapping[str, str] = {"balance": "+".join(map(str, pipeline.plan.balance))}
        self._pipeline, self._frames, self._excess = pipeline, frames, excess

    async def run(self, seconds: float) -> Measurement:
        full = await self._lossless(0.2 * seconds)
        async with self._pipeline.feed(overflow="latest") as feed:
            source = asyncio.create_task(_paced(feed, self._frames, self._excess * full))
            try:
                arrived = await _collect(feed, 0.8 * seconds)
            finally:
                source.cancel()
                await asyncio.wait([source])
        services = [
            median(timing.finished_at - timing.started_at for timing in stage)
            for stage in zip(*(result.timings for result, _ in arrived), strict=True)
        ]
        figures = _parts(arrived)
        bound = 1e3 * (sum(services) + max(services))
        span = arrived[-1][1] - arrived[0][1]
        return Measurement(
            figures
            | {
                "bound_ms": bound,
                "lossless_frames_per_s": full,
                "live_frames_per_s": (len(arrived) - 1) / span,
                "p50_per_bound": figures["latency_p50_ms"] / bound,
                "p99_per_bound": figures["latency_p99_ms"] / bound,
            }
        )

    async def _lossless(self, seconds: float) -> float:
        """Return the frames/s of a feed that drops nothing: what the pipeline can run."""
        tally = Tally(seconds, warm_up=8)

        async def source() -> AsyncIterator[Tensor]:
            for frame in itertools.cycle(self._frames):
                if tally.is_done:
                    return
                yield frame

        async for _result in self._pipeline.stream(source()):
            tally.tick()
        return tally.measurement().figures["frames_per_s"]
