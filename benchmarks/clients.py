"""Many clients of one server: whether they get their fair shares, and what is left of those who came and went."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from aiohttp import web
from torch import nn

import partime_async as pa
from benchmarks.guests import GREEDY, RATES, WIDTH
from benchmarks.machine import resident_bytes
from benchmarks.record import BenchmarkError, Measurement, Report
from benchmarks.rounds import Pace, interleave, say
from benchmarks.settings import Benchmark, Outcome, Settings
from benchmarks.summary import Spread, figure, percentile, ratio, short, table
from benchmarks.workers import Contestant, Worker
from partime_async.serve import ClientLimits, ModelService, Server, make_app
from partime_async.serve.app import ROSTER

FAIR, SOAK = "eight clients", "clients that come and go"
WELL, STALLED = "all well", "one stalled"
SERVICE_S = 0.005
SOAK_VARIABLE = "PARTIME_SOAK_S"
"""Seconds of the soak, if not 60."""

_PACE = Pace(generations=1, rounds=5, extra=5, seconds=6.0)
_QUICK = Pace(generations=1, rounds=1, extra=0, seconds=0.5)
_SAMPLE_S = 1.0
_SETTLE_S = 15.0
_LOOSE = ClientLimits(joins_per_minute=1e6, clients=64)
_STRICT = ClientLimits(
    joins_per_minute=1e6, clients=24, silence_s=1.0, connect_s=1.0, slow_s=1.0, leave_s=0.5, results_waiting=8
)


@dataclass(frozen=True, slots=True)
class FairSpec:
    """Eight programs at a server whose network takes 5 ms a frame, in simulation: nothing but turns counts.

    Attributes:
        plan: What the guests are told: ``fair`` or ``stalled``.
    """

    plan: str

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Contestant]:
        """Listen."""
        example = torch.zeros(1, WIDTH)
        pipeline = pa.Pipeline(
            nn.Sequential(nn.Identity()), example, stages=1, devices=[f"simulated:{1e3 * SERVICE_S:g}ms"]
        )
        app = make_app({"main": ModelService(pipeline, example)}, limits=_LOOSE, page=None)
        async with Server(app, port=0) as server:
            yield _Eight(server.url, self.plan, pipeline)


class _Eight:
    def __init__(self, url: str, plan: str, pipeline: pa.Pipeline) -> None:
        self.facts: Mapping[str, str] = {}
        self._url, self._plan, self._pipeline = url, plan, pipeline

    async def run(self, seconds: float) -> Measurement:
        seen = json.loads(await _guests(self._url, self._plan, seconds))
        counts, ages = seen["counts"], seen["ages_ms"]
        rates = [count / seconds for count in counts]
        measured = rates if self._plan == "fair" else rates[:-1]
        # The stalled one's frames take their turns as well: what the others may share is what is left.
        spare = sum(rates) + (0.0 if self._plan == "fair" else _greedy_share(rates))
        wanted = fair_shares([*RATES, *[1e9] * GREEDY], spare)
        return Measurement(
            {
                "frames_per_s": sum(rates),
                "jain": jain([got / due for got, due in zip(measured, wanted, strict=False)]),
                "p50_ms": percentile(ages, 0.5),
                "p99_ms": percentile(ages, 0.99),
                "loop_lag_p99_ms": 1e3 * self._pipeline.statistics().loop.lag_s.p99,
            },
            {"frames_per_s": rates},
        )


def _greedy_share(rates: Sequence[float]) -> float:
    """Return what a greedy client got: the stalled one, which is greedy as well, takes as many turns."""
    others = rates[len(RATES) : -1]
    return sum(others) / len(others)


def fair_shares(demands: Sequence[float], capacity: float) -> list[float]:
    """Return the max-min fair shares: nobody gets more than asked for, and what is spare goes to those who ask on."""
    shares = [0.0] * len(demands)
    open_places = sorted(range(len(demands)), key=demands.__getitem__)
    while open_places:
        place = open_places[0]
        share = min(demands[place], capacity / len(open_places))
        shares[place] = share
        capacity -= share
        open_places.pop(0)
    return shares


def jain(shares: Sequence[float]) -> float:
    """Return Jain's index of fairness: 1 if all got the same multiple of what was due to them.

    Source: Jain, Chiu, Hawe: A Quantitative Measure of Fairness, DEC-TR-301 (1984).
    """
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0


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
        await _guests(self._url, "soak", min(seconds, 5.0))
        await self._settled()
        before = _leftovers()
        resident: list[float] = []
        sampling = asyncio.create_task(_sample(resident))
        began = time.monotonic()
        seen = json.loads(await _guests(self._url, "soak", seconds))
        lasted_s = time.monotonic() - began
        sampling.cancel()
        await asyncio.wait({sampling})
        settle_s = await self._settled()
        after = _leftovers()
        frames = self._counted()
        return Measurement(
            {
                "seconds": lasted_s,
                "visits": float(sum(seen["visits"].values())),
                "settle_s": settle_s,
                **frames,
                **{f"{name}_before": count for name, count in before.items()},
                **{f"{name}_after": count for name, count in after.items()},
                "bytes_per_minute": _slope(resident) * 60.0 / _SAMPLE_S,
                "loop_lag_p99_ms": 1e3 * self._pipeline.statistics().loop.lag_s.p99,
            },
            {"resident_bytes": resident},
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


async def _guests(url: str, plan: str, seconds: float) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.guests", url, plan, str(seconds)),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    try:
        out, _ = await process.communicate()
    except BaseException:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise BenchmarkError(f"the clients' process ended with {process.returncode}; see above.")
    return out.splitlines()[-1]


def _leftovers() -> dict[str, float]:
    return {
        "descriptors": float(len(list(Path("/proc/self/fd").iterdir()))),
        "tasks": float(len(asyncio.all_tasks())),
        "threads": float(threading.active_count()),
        "resident_bytes": float(resident_bytes()),
    }


async def _sample(resident: list[float]) -> None:
    while True:
        resident.append(float(resident_bytes()))
        await asyncio.sleep(_SAMPLE_S)


def _slope(values: Sequence[float]) -> float:
    """Fit a line to the latter half, and return its slope for each sample."""
    y = values[len(values) // 2 :]
    if len(y) < 2:
        return 0.0
    mean_x, mean_y = (len(y) - 1) / 2, sum(y) / len(y)
    spread = sum((x - mean_x) ** 2 for x in range(len(y)))
    return sum((x - mean_x) * (value - mean_y) for x, value in enumerate(y)) / spread


def run_fair(settings: Settings) -> Outcome:
    """Let the eight compete, with and without one that stalls, in turns."""
    pace = _QUICK if settings.is_quick else _PACE
    say("clients")
    with Worker() as worker:
        worker.open(WELL, FairSpec("fair"))
        worker.open(STALLED, FairSpec("stalled"))
        rounds = interleave(dict.fromkeys((WELL, STALLED), worker), pace, group=FAIR)
    return Outcome(pace.settings(), rounds)


def run_soak(settings: Settings) -> Outcome:
    """Let clients come and go, once."""
    seconds = 1.0 if settings.is_quick else float(os.environ.get(SOAK_VARIABLE, "60"))
    pace = Pace(generations=1, rounds=1, extra=0, seconds=seconds, most_foreign_share=100.0)
    say(f"soak: {seconds:g} s")
    with Worker() as worker:
        worker.open(SOAK, SoakSpec())
        rounds = interleave({SOAK: worker}, pace, group=SOAK)
    return Outcome({"soak_s": seconds}, rounds)


def fair_tables(report: Report) -> str:
    """Return the table: fairness, and what the stalled client costs the others."""
    rounds = report.of(FAIR)
    rows = []
    for name in (WELL, STALLED):
        beside = "" if name == WELL else Spread.over(rounds, ratio(STALLED, WELL, "p99_ms")).cell(at_most=1.1)
        rows.append(
            [
                name,
                Spread.over(rounds, figure(name, "jain")).cell(at_least=0.95),
                *(Spread.over(rounds, figure(name, key)).cell() for key in ("frames_per_s", "p50_ms", "p99_ms")),
                beside,
            ]
        )
    heads = ["eight programs, 5 ms a frame", "Jain's index", "frames/s", "p50, ms", "p99, ms", "p99 ÷ all well"]
    return table(heads, rows)


def soak_tables(report: Report) -> str:
    """Return the table: what came, and what was left."""
    figures = report.of(SOAK)[0].samples[SOAK].measurement.figures

    def both(name: str, unit: float = 1.0) -> str:
        return f"{figures[f'{name}_before'] / unit:,.0f} → {figures[f'{name}_after'] / unit:,.0f}"

    return table(
        ["clients that come, go, crash and send rubbish", "figure"],
        [
            ["seconds", f"{figures['seconds']:,.0f}"],
            ["visits", f"{figures['visits']:,.0f}"],
            ["frames offered", f"{figures['offered']:,.0f}"],
            [
                "delivered + failed + dropped",
                " + ".join(f"{figures[n]:,.0f}" for n in ("delivered", "failed", "dropped")),
            ],
            ["everybody gone after, s", short(figures["settle_s"])],
            ["descriptors, before → after", both("descriptors")],
            ["tasks, before → after", both("tasks")],
            ["threads, before → after", both("threads")],
            ["resident MB, before → after", both("resident_bytes", 1e6)],
            ["slope of the latter half, kB a minute", short(figures["bytes_per_minute"] / 1e3)],
            ["loop lag p99, ms", short(figures["loop_lag_p99_ms"])],
        ],
    )


BENCHMARKS = {
    "clients": Benchmark("fair turns of eight clients, one of them stalled", run_fair, fair_tables),
    "soak": Benchmark("clients that come, go, crash and send rubbish", run_soak, soak_tables),
}
"""For `python -m benchmarks`."""
