"""Many clients of one server: whether they get their fair shares."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import partime_async as pa
from benchmarks.guests import GREEDY, RATES, WIDTH
from benchmarks.record import BenchmarkError, Measurement, Report
from benchmarks.rounds import Pace, interleave, say
from benchmarks.settings import Benchmark, Outcome, Settings
from benchmarks.summary import Spread, figure, percentile, ratio, table
from benchmarks.workers import Contestant, Worker
from partime_async.serve import ClientLimits, ModelService, Server, make_app

FAIR = "eight clients"
WELL, STALLED = "all well", "one stalled"
SERVICE_S = 0.005

_PACE = Pace(generations=1, rounds=5, extra=5, seconds=6.0)
_QUICK = Pace(generations=1, rounds=1, extra=0, seconds=0.5)
_LOOSE = ClientLimits(joins_per_minute=1e6, clients=64)


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
        seen = json.loads(await visited(self._url, self._plan, seconds))
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


async def visited(url: str, plan: str, seconds: float) -> bytes:
    """Let `benchmarks.guests` visit a server, and return the line that says what they saw.

    Raises:
        BenchmarkError: Their process failed.

    Cancellation: safe; their process is ended.
    """
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


def run_fair(settings: Settings) -> Outcome:
    """Let the eight compete, with and without one that stalls, in turns."""
    pace = _QUICK if settings.is_quick else _PACE
    say("clients")
    with Worker() as worker:
        worker.open(WELL, FairSpec("fair"))
        worker.open(STALLED, FairSpec("stalled"))
        rounds = interleave(dict.fromkeys((WELL, STALLED), worker), pace, group=FAIR)
    return Outcome(pace.settings(), rounds)


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


BENCHMARKS = {
    "clients": Benchmark("fair turns of eight clients, one of them stalled", run_fair, fair_tables),
}
"""For `python -m benchmarks`."""
