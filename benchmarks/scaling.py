"""What stages bring when each has a device of its own, and what they cost the event loop."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import partime_async as pa
from benchmarks.record import Measurement, Report, Round
from benchmarks.rounds import Pace, interleave, say
from benchmarks.settings import Outcome, Settings
from benchmarks.summary import Spread, figure, label, table
from benchmarks.tally import Tally
from benchmarks.workers import Contestant, Worker

SERVICE_S = 0.005
DEVICES, LOOP = "simulated devices", "loop time"
STREAMS = {
    "CPU streams, frames back to back": ("cpu", False),
    "CPU streams, one frame at a time": ("cpu", True),
    "simulated streams, frames back to back": ("simulated:0ms", False),
}

_STAGES = (1, 2, 4, 8, 16)
_EMPTY_STAGES = (1, 2, 4, 8)
_PACE = Pace(generations=1, rounds=5, extra=5, seconds=0.8)
_LOOP_PACE = Pace(generations=1, rounds=5, extra=5, seconds=0.4)
_QUICK = Pace(generations=1, rounds=2, extra=0, seconds=0.05)


@dataclass(frozen=True, slots=True)
class StagesSpec:
    """Stages that compute next to nothing.

    Attributes:
        stages: How many.
        device: Of each stage.
        is_alone: Give the next frame only when the one before has come out.
    """

    stages: int
    device: str
    is_alone: bool = False

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Contestant]:
        """Make the pipeline; it is entered for each turn only, so that the loop belongs to the one whose turn it is."""
        module = nn.Sequential(*(nn.Identity() for _ in range(self.stages)))
        yield _Stages(pa.Pipeline(module, torch.zeros(1, 1), balance=[1] * self.stages, devices=[self.device]), self)


class _Stages:
    def __init__(self, pipeline: pa.Pipeline, spec: StagesSpec) -> None:
        self.facts: Mapping[str, str] = {}
        self._pipeline, self._spec = pipeline, spec
        self._frame = torch.zeros(1, 1)

    async def run(self, seconds: float) -> Measurement:
        async with self._pipeline:
            return await self._measure(seconds)

    async def _measure(self, seconds: float) -> Measurement:
        # A pipeline holds fewer frames than this, at the default depth and capacity.
        tally = Tally(seconds, warm_up=4 * self._spec.stages)
        loop_s, frames = time.thread_time(), 0
        if self._spec.is_alone:
            while not tally.is_done:
                await self._pipeline.process(self._frame)
                frames += 1
                tally.tick()
        else:
            async for _result in self._pipeline.stream(self._source(tally)):
                frames += 1
                tally.tick()
        loop_s = time.thread_time() - loop_s
        steady = tally.measurement().figures
        return Measurement({**steady, "loop_us_per_frame": 1e6 * loop_s / frames})

    async def _source(self, tally: Tally) -> AsyncIterator[Tensor]:
        while not tally.is_done:
            yield self._frame


def run(settings: Settings) -> Outcome:
    """Measure N stages of 5 ms against one device that does the work of all; then N empty stages."""
    quick = settings.is_quick
    stages = (1, 4) if quick else _STAGES
    timed = {_stages(count): StagesSpec(count, f"simulated:{1e3 * SERVICE_S:g}ms") for count in stages}
    timed |= {_sequential(count): StagesSpec(1, f"simulated:{1e3 * SERVICE_S * count:g}ms") for count in stages}
    empty = {
        _empty(kind, count): StagesSpec(count, device, is_alone)
        for (kind, (device, is_alone)), count in itertools.product(STREAMS.items(), _EMPTY_STAGES)
    }
    rounds: list[Round] = []
    for group, specs, pace in (
        (DEVICES, timed, _QUICK if quick else _PACE),
        (LOOP, empty, _QUICK if quick else _LOOP_PACE),
    ):
        say(f"scaling: {group}")
        with Worker() as worker:
            for name, spec in specs.items():
                worker.open(name, spec)
            rounds += interleave(dict.fromkeys(specs, worker), pace, group=group)
    return Outcome(_PACE.settings() | {"service_s": SERVICE_S}, rounds)


def _stages(count: int) -> str:
    return f"{count} stages"


def _sequential(count: int) -> str:
    return f"{count} stages' work on one device"


def _empty(kind: str, count: int) -> str:
    return f"{kind}, {count} stages"


def tables(report: Report) -> str:
    """Return the tables: speed-up, and microseconds of loop time."""
    rounds = report.of(DEVICES)
    counts = [count for count in _STAGES if _stages(count) in rounds[0].samples]
    speed_up = table(
        [f"{label(report, DEVICES)}: stages of {1e3 * SERVICE_S:g} ms", *map(str, counts)],
        [
            ["frames/s", *(Spread.over(rounds, figure(_stages(count), "frames_per_s")).cell() for count in counts)],
            [
                "speed-up (target 0.97 N)",
                *(Spread.over(rounds, _speed_up(count)).cell(at_least=0.97 * count) for count in counts),
            ],
        ],
    )
    rounds = report.of(LOOP)
    cost = table(
        [f"{label(report, LOOP)} in us per frame; empty stages", *map(str, _EMPTY_STAGES), "per further hop"],
        [
            [
                kind,
                *(
                    Spread.over(rounds, figure(_empty(kind, count), "loop_us_per_frame")).cell()
                    for count in _EMPTY_STAGES
                ),
                Spread.over(rounds, _per_hop(kind)).cell(),
            ]
            for kind in STREAMS
        ],
    )
    return f"{speed_up}\n\n{cost}"


def _speed_up(count: int) -> Callable[[Round], float]:
    return lambda each: each.figure(_stages(count), "frames_per_s") / each.figure(_sequential(count), "frames_per_s")


def _per_hop(kind: str) -> Callable[[Round], float]:
    first, last = _EMPTY_STAGES[0], _EMPTY_STAGES[-1]

    def slope(each: Round) -> float:
        more = each.figure(_empty(kind, last), "loop_us_per_frame")
        return (more - each.figure(_empty(kind, first), "loop_us_per_frame")) / (last - first)

    return slope
