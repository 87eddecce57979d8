"""Whether memory grows with the length of the stream, when frames come much faster than results are read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import torch
from torch import nn

import partime_async as pa
from benchmarks.machine import resident_bytes
from benchmarks.record import BenchmarkError, Measurement, Report
from benchmarks.rounds import Pace, interleave, say
from benchmarks.settings import Outcome, Settings
from benchmarks.summary import short, table
from benchmarks.workers import Contestant, Worker

GROUP, LATEST = "memory", "latest"
BURST = 20
"""Frames that arrive at a time, once a millisecond."""

READ_S = 0.01
"""How long the reader takes over each result."""

_FRAMES, _QUICK_FRAMES = 1_000_000, 20_000
_SAMPLES = 100
_WIDTH = 64
# What other programs do changes no figure here: no round is disturbed.
_PACE = Pace(generations=1, rounds=1, extra=0, seconds=0.0, most_foreign_share=100.0)


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """A long stream under ``latest``, with a slow reader.

    Attributes:
        frames: How many are offered.
    """

    frames: int

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Contestant]:
        """Enter the pipeline."""
        net = nn.Sequential(nn.Linear(_WIDTH, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, _WIDTH))
        async with pa.Pipeline(net, torch.zeros(1, _WIDTH), stages=2, devices=["cpu"]) as pipeline:
            yield _Stream(pipeline, self.frames)


class _Stream:
    def __init__(self, pipeline: pa.Pipeline, frames: int) -> None:
        self.facts: Mapping[str, str] = {}
        self._pipeline, self._frames = pipeline, frames

    async def run(self, seconds: float) -> Measurement:
        offered: list[float] = []
        resident: list[float] = []
        async with self._pipeline.feed(overflow="latest") as feed:
            reader = asyncio.create_task(_read_slowly(feed))
            try:
                for count in range(0, self._frames, BURST):
                    if count % (self._frames // _SAMPLES) < BURST:
                        offered.append(float(count))
                        resident.append(float(resident_bytes()))
                    for _ in range(BURST):
                        await feed.put(torch.zeros(1, _WIDTH))
                    await asyncio.sleep(0.001)
            finally:
                reader.cancel()
                await asyncio.wait([reader])
            counts = feed.statistics().frames
        return Measurement(
            _counted(counts) | _growth(offered, resident), {"offered": offered, "resident_bytes": resident}
        )


async def _read_slowly(feed: pa.Feed) -> None:
    async for _result in feed:
        await asyncio.sleep(READ_S)


def _counted(counts: pa.FrameCounts) -> dict[str, float]:
    dropped = sum(counts.dropped.values())
    total = counts.waiting + counts.in_flight + counts.unread + counts.delivered + counts.failed + dropped
    if total != counts.offered:
        raise BenchmarkError(f"of {counts.offered} frames {total} are accounted for. This is a fault of the library.")
    waited = dict(counts.dropped).get("overflow", 0)
    return {
        "offered": float(counts.offered),
        "processed": float(counts.offered - waited - counts.waiting),
        "delivered": float(counts.delivered),
    }


def _growth(offered: Sequence[float], resident: Sequence[float]) -> dict[str, float]:
    """Fit a line to the last four fifths: allocators and caches take their share at first."""
    start = len(offered) // 5
    x, y = offered[start:], resident[start:]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
    return {
        "first_bytes": y[0],
        "last_bytes": y[-1],
        "peak_bytes": max(y),
        "bytes_per_100k_frames": 1e5 * slope,
    }


def run(settings: Settings) -> Outcome:
    """Stream the frames once."""
    frames = _QUICK_FRAMES if settings.is_quick else _FRAMES
    say(f"memory: {frames:,} frames")
    with Worker() as worker:
        worker.open(LATEST, StreamSpec(frames))
        rounds = interleave({LATEST: worker}, _PACE, group=GROUP)
    return Outcome({"frames": frames, "burst": BURST, "read_s": READ_S}, rounds)


def tables(report: Report) -> str:
    """Return the table: resident memory after a fifth of the stream, at its end, and the slope between."""
    figures = report.of(GROUP)[0].samples[LATEST].measurement.figures
    return table(
        [
            *("`latest`, slow reader", "offered", "processed", "read"),
            "resident after a fifth, MB",
            "at the end, MB",
            "slope, kB per 100,000 frames",
        ],
        [
            [
                "two stages, tiny net",
                *(f"{figures[name]:,.0f}" for name in ("offered", "processed", "delivered")),
                *(f"{figures[name] / 1e6:.1f}" for name in ("first_bytes", "last_bytes")),
                short(figures["bytes_per_100k_frames"] / 1e3),
            ]
        ],
    )
