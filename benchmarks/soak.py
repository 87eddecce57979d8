"""Clients that come, go, crash and send rubbish: whether the counts add up, memory is flat, and nothing is left."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from aiohttp import web
from torch import nn

import partime_async as pa
from benchmarks.clients import visited
from benchmarks.growth import MemoryUse, Trend, full_collections
from benchmarks.guests import WIDTH
from benchmarks.record import BenchmarkError, Measurement, Report
from benchmarks.rounds import Pace, interleave, say
from benchmarks.settings import Benchmark, Outcome, Settings
from benchmarks.summary import short, table
from benchmarks.workers import Contestant, Worker
from partime_async.serve import ClientLimits, ModelService, Server, make_app
from partime_async.serve.app import ROSTER

GROUP = "clients that come and go"
VARIABLE = "PARTIME_SOAK_S"
"""Seconds of the soak, if not 60."""

FLAT_PERCENT = 1.0
"""Memory is flat if it grows, over the latter half, by less than this share of the process's memory a minute."""

_QUICK_S = 1.0
_SAMPLE_S = 1.0
_SETTLE_S = 15.0
_WARM_UP_S = 5.0
_STRICT = ClientLimits(
    joins_per_minute=1e6, clients=24, silence_s=1.0, connect_s=1.0, slow_s=1.0, leave_s=0.5, results_waiting=8
)


@dataclass(frozen=True, slots=True)
class SoakSpec:
    """A server for whoever comes."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Contestant]:
        """Listen."""
        # A line for each refusal would be most of what the benchmark does.
        logging.getLogger("partime_async.serve").setLevel(logging.ERROR)
        example = torch.zeros(1, WIDTH)
        pipeline = pa.Pipeline(nn.Sequential(nn.Linear(WIDTH, WIDTH)), example, stages=1, devices=["cpu"])
        app = make_app({"main": ModelService(pipeline, example)}, limits=_STRICT, page=None)
        async with Server(app, port=0) as server:
            yield _Soak(server.url, app, pipeline)


class _Soak:
    def __init__(self, url: str, app: web.Application, pipeline: pa.Pipeline) -> None:
        self.facts: Mapping[str, str] = {}
        self._url, self._app, self._pipeline = url, app, pipeline

    async def run(self, seconds: float) -> Measurement:
        # Whatever is made once and kept, such as executors' threads, is made now.
        await visited(self._url, "soak", min(seconds, _WARM_UP_S))
        await self._settled()
        before, collections = _leftovers(), full_collections()
        samples: list[MemoryUse] = []
        sampling = asyncio.create_task(_sample(samples))
        began = time.monotonic()
        try:
            seen = json.loads(await visited(self._url, "soak", seconds))
        finally:
            sampling.cancel()
            await asyncio.wait({sampling})
        lasted_s = time.monotonic() - began
        collections = full_collections() - collections
        settle_s = await self._settled()
        after = _leftovers()
        visits = {f"visits of {sort}": float(count) for sort, count in sorted(seen["visits"].items())}
        return Measurement(
            {
                "seconds": lasted_s,
                "visits": sum(visits.values()),
                **visits,
                "settle_s": settle_s,
                **self._counted(),
                **{f"{name}_before": count for name, count in before.items()},
                **{f"{name}_after": count for name, count in after.items()},
                "full_collections": float(collections),
                **growth(samples, sum(visits.values())),
                "loop_lag_p99_ms": 1e3 * self._pipeline.statistics().loop.lag_s.p99,
            },
            {name: [float(getattr(sample, name)) for sample in samples] for name in MemoryUse.__slots__},
        )

    async def _settled(self) -> float:
        """Wait until nobody is here, and their feeds have gone; return the seconds that this took."""
        began = time.monotonic()
        while self._app[ROSTER].clients or self._pipeline.statistics().feeds > 1:
            if time.monotonic() - began > _SETTLE_S:
                raise BenchmarkError(f"{self._app[ROSTER].clients} are still here. This is a fault of the library.")
            await asyncio.sleep(0.02)
        await asyncio.sleep(1.0)  # connections that are being closed
        return time.monotonic() - began - 1.0

    def _counted(self) -> dict[str, float]:
        counts = self._pipeline.statistics().frames
        total = counts.waiting + counts.in_flight + counts.unread + counts.delivered + counts.failed
        if total + counts.dropped_total != counts.offered or counts.waiting or counts.in_flight or counts.unread:
            raise BenchmarkError(f"the counts do not add up: {counts}. This is a fault of the library.")
        return {
            "offered": float(counts.offered),
            "delivered": float(counts.delivered),
            "failed": float(counts.failed),
            "dropped": float(counts.dropped_total),
        }


def growth(samples: Sequence[MemoryUse], visits: float) -> dict[str, float]:
    """Return how memory grew over the latter half: bytes a minute and a visit, each with its standard error.

    Args:
        samples: Taken all along.
        visits: That came meanwhile.
    """
    per_minute = 60.0 / _SAMPLE_S
    per_visit = len(samples) / visits if visits else 0.0
    figures: dict[str, float] = {}
    for kind in ("resident", "malloc"):
        trend = Trend.of([float(getattr(sample, f"{kind}_bytes")) for sample in samples])
        figures |= {
            f"{kind}_bytes_per_minute": trend.slope * per_minute,
            f"{kind}_bytes_per_minute_error": trend.error * per_minute,
            f"{kind}_bytes_per_visit": trend.slope * per_visit,
            f"{kind}_bytes_per_visit_error": trend.error * per_visit,
        }
    return figures


def _leftovers() -> dict[str, float]:
    # Garbage in cycles is nobody's: what is compared is what would stay for ever.
    gc.collect()
    counts = {
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "objects": len(gc.get_objects()),
        **asdict(MemoryUse.now()),
    }
    return {name: float(count) for name, count in counts.items()}


async def _sample(samples: list[MemoryUse]) -> None:
    while True:
        samples.append(MemoryUse.now())
        await asyncio.sleep(_SAMPLE_S)


def run(settings: Settings) -> Outcome:
    """Let clients come and go, once."""
    seconds = _QUICK_S if settings.is_quick else float(os.environ.get(VARIABLE, "60"))
    pace = Pace(generations=1, rounds=1, extra=0, seconds=seconds, most_foreign_share=100.0)
    say(f"soak: {seconds:g} s")
    with Worker() as worker:
        worker.open(GROUP, SoakSpec())
        rounds = interleave({GROUP: worker}, pace, group=GROUP)
    return Outcome({"soak_s": seconds, "sample_s": _SAMPLE_S}, rounds)


def tables(report: Report) -> str:
    """Return the table: what came, what was left, and whether memory grew."""
    figures = report.of(GROUP)[0].samples[GROUP].measurement.figures
    frames = " + ".join(f"{figures[name]:,.0f}" for name in ("delivered", "failed", "dropped"))
    left = (
        ("descriptors", "descriptors"),
        ("tasks", "tasks"),
        ("threads", "threads"),
        ("Python's objects, after a garbage collection", "objects"),
    )
    return table(
        ["clients that come, go, crash and send rubbish", "figure"],
        [
            ["seconds", f"{figures['seconds']:,.0f}"],
            ["visits", f"{figures['visits']:,.0f}"],
            ["frames offered", f"{figures['offered']:,.0f}"],
            ["delivered + failed + dropped", frames],
            ["everybody gone after, s", short(figures["settle_s"])],
            *([f"{words}, before → after", _both(figures, name)] for words, name in left),
            ["memory given out by malloc, MB, before → after", _both(figures, "malloc_bytes", 1e6, 2)],
            ["resident memory, MB, before → after", _both(figures, "resident_bytes", 1e6, 1)],
            ["resident memory, latter half: MB a minute", _with_error(figures, "resident_bytes_per_minute", 1e6)],
            ["the same, KB a visit", _with_error(figures, "resident_bytes_per_visit", 1e3)],
            [f"the same, at most, % of the process a minute (flat: below {FLAT_PERCENT:g})", _flat(figures)],
            ["loop lag p99, ms", short(figures["loop_lag_p99_ms"])],
        ],
    )


def _both(figures: Mapping[str, float], name: str, unit: float = 1.0, digits: int = 0) -> str:
    before, after = figures[f"{name}_before"] / unit, figures[f"{name}_after"] / unit
    return f"{before:,.{digits}f} → {after:,.{digits}f}"


def _with_error(figures: Mapping[str, float], name: str, unit: float) -> str:
    return f"{figures[name] / unit:+.2f} ± {2.0 * figures[f'{name}_error'] / unit:.2f}"


def _flat(figures: Mapping[str, float]) -> str:
    """Return the upper end of the slope, as a share of the memory; marked, unless it is below what counts as flat."""
    trend = Trend(figures["resident_bytes_per_minute"], figures["resident_bytes_per_minute_error"])
    percent = 100.0 * trend.most / figures["resident_bytes_after"]
    return short(percent) if percent < FLAT_PERCENT else f"**{short(percent)} missed**"


BENCHMARKS = {"soak": Benchmark("clients that come, go, crash and send rubbish", run, tables)}
"""For `python -m benchmarks`."""
