"""Frames/s of stages that share one GPU, one frame at a time, against plain loops on it."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import nets
from benchmarks.contestants import PipelineSpec
from benchmarks.nets import Net
from benchmarks.record import Measurement, Report, Round
from benchmarks.rounds import Pace, interleave, say
from benchmarks.settings import Outcome, Settings
from benchmarks.summary import Spread, figure, label, ratio, short, table
from benchmarks.tally import Tally
from benchmarks.throughput import RATE
from benchmarks.workers import Contestant, Spec, Worker

LOOP, AHEAD = "loop", "loop, running ahead"
STAGES = {f"{count} stage{'s' * (count > 1)}": count for count in (1, 2, 4)}

_IN_FLIGHT = 4
_PACE = Pace(generations=2, rounds=3, extra=2, seconds=0.5)
_QUICK = Pace(generations=1, rounds=2, extra=0, seconds=0.05)
_NETS = (
    nets.CONV_32,
    nets.CONV_64,
    Net("conv 5x5x32 x30, 256 px", "conv-a", (1, 3, 256, 256)),
    nets.MLP_256,
    nets.MLP_1024,
    nets.RESNET_50,
    Net("ResNet-50, 224 px", "resnet50", (1, 3, 224, 224)),
)


@dataclass(frozen=True, slots=True)
class CudaLoopSpec:
    """The module on the GPU, called in a loop: host frames in, host results out.

    Attributes:
        net: What to run.
        device: Where.
        in_flight: Frames given to the GPU before the result of the first is waited for.
    """

    net: Net
    device: str
    in_flight: int

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Contestant]:
        """Build the network."""
        yield _CudaLoop(self)


class _CudaLoop:
    def __init__(self, spec: CudaLoopSpec) -> None:
        self.facts: Mapping[str, str] = {"gpu": torch.cuda.get_device_name(spec.device)}
        self._device, self._in_flight = torch.device(spec.device), spec.in_flight
        self._module, self._frames = spec.net.module().to(self._device), spec.net.frames()

    async def run(self, seconds: float) -> Measurement:
        tally = Tally(seconds, warm_up=10)
        with torch.inference_mode(), torch.cuda.device(self._device):
            result = self._module(self._frames[0].to(self._device))
            # The copies overlap only from and to pinned memory, allocated once.
            frames = [frame.pin_memory() for frame in self._frames]
            slots = [torch.empty(result.shape, pin_memory=True) for _ in range(self._in_flight)]
            pending: deque[torch.cuda.Event] = deque()
            for frame, slot in zip(itertools.cycle(frames), itertools.cycle(slots), strict=False):
                pending.append(self._launch(frame, slot))
                if len(pending) == self._in_flight:
                    pending.popleft().synchronize()
                    tally.tick()
                    if tally.is_done:
                        break
        return tally.measurement()

    def _launch(self, frame: Tensor, slot: Tensor) -> torch.cuda.Event:
        slot.copy_(self._module(frame.to(self._device, non_blocking=True)), non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event


def run(settings: Settings) -> Outcome:
    """Measure every net: both loops, then 1, 2 and 4 stages on the one GPU."""
    pace = _QUICK if settings.is_quick else _PACE
    facts: dict[str, dict[str, str]] = {}
    rounds: list[Round] = []
    for net, generation in itertools.product((nets.TINY,) if settings.is_quick else _NETS, range(pace.generations)):
        say(f"throughput on {settings.device}: {net.name}, processes {generation + 1} of {pace.generations}")
        specs: dict[str, Spec] = {
            LOOP: CudaLoopSpec(net, settings.device, 1),
            AHEAD: CudaLoopSpec(net, settings.device, _IN_FLIGHT),
        }
        specs |= {name: PipelineSpec(net, count, settings.device) for name, count in STAGES.items()}
        with ExitStack() as stack:
            workers = {name: stack.enter_context(Worker()) for name in specs}
            for worker in workers.values():
                worker.wait_until_ready()
            for name, worker in workers.items():
                found = worker.open(name, specs[name])
                facts.setdefault(net.name, {})[f"{name} {generation}"] = ", ".join(found.values())
            rounds += interleave(workers, pace, group=net.name, generation=generation)
    return Outcome(pace.settings(), rounds, facts)


def tables(report: Report) -> str:
    """Return the table: frames/s, and the best of the stages against both loops."""
    names = (LOOP, AHEAD, *STAGES)
    rows = []
    for net in report.groups:
        rounds = report.of(net)
        rates = [Spread.over(rounds, figure(name, RATE)) for name in names]
        ratios = [
            Spread.over(rounds, ratio(name, other, RATE)) for name, other in (("2 stages", LOOP), ("2 stages", AHEAD))
        ]
        rows.append([label(report, net), *(short(rate.median) for rate in rates), *(each.cell() for each in ratios)])
    gpu = next((fact for facts in report.facts.values() for fact in facts.values()), "GPU")
    return table([f"frames/s, {gpu}", *names, "2 stages ÷ loop", "2 stages ÷ running ahead"], rows)
