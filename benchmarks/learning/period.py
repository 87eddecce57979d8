"""How often a frame is learned from when every stage has a device of its own and every hop takes its time.

The unit is a stage's share of a frame, forward and backward. With k hops, transfers of c and a gradient lag of L frames
a hop, a frame's way through all stages and its gradient's way back, (k + 1) + 2 k c in all, spans k L + 1 frames of the
first stage. So the period is max(1, ((k + 1) + 2 k c) / (k L + 1)).
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

import partime_async as pa
from benchmarks.learning.by_hand import frames_until
from benchmarks.record import BenchmarkError, Measurement, Report
from benchmarks.rounds import Pace, interleave, say
from benchmarks.settings import Outcome, Settings
from benchmarks.summary import Spread, figure, label, short, table
from benchmarks.tally import Tally
from benchmarks.workers import Contestant, Worker

GROUP, PERIOD = "simulated devices", "period"
STAGES = (4, 8)
MOST = {0: None, 1: 1.25, 2: 1.10}
"""By lag: the longest period that is wanted."""

TRANSFER_SHARE = 0.1
_PASS_S = 0.005  # forward; backward and step take as long
_PACE = Pace(generations=1, rounds=5, extra=3, seconds=1.5)
_QUICK = Pace(generations=1, rounds=1, extra=0, seconds=0.05)
_WIDTH = 4


def predicted(stages: int, lag: int, transfer_share: float) -> float:
    """Return the period by the formula, in units of a stage's forward and backward time."""
    hops = stages - 1
    return max(1.0, (stages + 2 * hops * transfer_share) / (hops * lag + 1))


@dataclass(frozen=True, slots=True)
class StagesSpec:
    """Stages that take a stated time to learn next to nothing.

    Attributes:
        stages: How many.
        lag: Of the update rule.
        pass_s: Seconds of a stage's forward pass, and of its backward pass.
    """

    stages: int
    lag: int
    pass_s: float = _PASS_S

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Contestant]:
        """Enter the pipeline."""
        device = pa.SimulatedDevice(self.pass_s, transfer_s=2 * self.pass_s * TRANSFER_SHARE)
        learner = pa.Learner(
            functional.mse_loss, partial(torch.optim.SGD, lr=0.01), rule=pa.UpdateRule("stash", self.lag)
        )
        module = nn.Sequential(*(nn.Linear(_WIDTH, _WIDTH) for _ in range(self.stages)))
        pipeline = pa.Pipeline(
            module, torch.zeros(1, _WIDTH), balance=[1] * self.stages, devices=[device], learner=learner
        )
        async with pipeline:
            yield _Stages(pipeline, self)


class _Stages:
    def __init__(self, pipeline: pa.Pipeline, spec: StagesSpec) -> None:
        self.facts: Mapping[str, str] = {}
        self._pipeline, self._spec = pipeline, spec

    async def run(self, seconds: float) -> Measurement:
        # The gradient of a frame is back at the first stage after as many frames as this, and the links are full.
        warm_up = (self._spec.lag + 4) * self._spec.stages if self._spec.lag else 2
        tally = Tally(seconds, warm_up=warm_up)

        async def source() -> AsyncIterator[tuple[Tensor, Tensor]]:
            for frame in frames_until(lambda: tally.is_done, itertools.repeat(torch.ones(1, _WIDTH))):
                yield frame, frame

        async for result in self._pipeline.stream(source()):
            tally.tick()
            delay = self._spec.lag * (self._spec.stages - 1)
            if result.sequence > delay and not result.weight_versions[0]:
                raise BenchmarkError("the first stage has learned nothing. This is a fault of the library.")
        figures = tally.measurement().figures
        return Measurement({**figures, PERIOD: 1.0 / (figures["frames_per_s"] * 2 * self._spec.pass_s)})


def run(settings: Settings) -> Outcome:
    """Measure every number of stages with every lag."""
    specs = {_name(stages, lag): StagesSpec(stages, lag) for stages in STAGES for lag in MOST}
    if settings.is_quick:
        specs = {name: StagesSpec(spec.stages, spec.lag, pass_s=0.002) for name, spec in specs.items()}
    say("learning-period")
    with Worker() as worker:
        for name, spec in specs.items():
            worker.open(name, spec)
        rounds = interleave(dict.fromkeys(specs, worker), _QUICK if settings.is_quick else _PACE, group=GROUP)
    return Outcome({**_PACE.settings(), "pass_s": _PASS_S, "transfer_share": TRANSFER_SHARE}, rounds)


def _name(stages: int, lag: int) -> str:
    return f"{stages} stages, lag {lag}"


def tables(report: Report) -> str:
    """Return the table."""
    rounds = report.of(GROUP)
    share = float(report.settings["transfer_share"])
    return table(
        [
            f"{label(report, GROUP)}: period, in forward + backward times of a stage",
            *(head for stages in STAGES for head in (f"{stages} stages", "by the formula")),
        ],
        [
            [
                f"lag {lag}" + (" (exact)" if lag == 0 else f" (target {most:.2f})"),
                *(
                    cell
                    for stages in STAGES
                    for cell in (
                        Spread.over(rounds, figure(_name(stages, lag), PERIOD)).cell(at_most=most),
                        short(predicted(stages, lag, share)),
                    )
                ),
            ]
            for lag, most in MOST.items()
        ],
    )
