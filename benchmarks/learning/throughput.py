"""Frames/s of learning, two stages on two cores, one frame at a time, against plain loops and a learner by hand."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

import partime_async as pa
from benchmarks import nets
from benchmarks.learning.by_hand import TwoThreads, frames_until
from benchmarks.nets import Net
from benchmarks.record import BenchmarkError, Measurement, Report, Round
from benchmarks.rounds import Pace, interleave, say
from benchmarks.settings import Outcome, Settings
from benchmarks.summary import Spread, figure, label, ratio, short, table
from benchmarks.tally import Tally
from benchmarks.workers import Contestant, Worker
from partime_async.learning import rules

ONE, TWO, BY_HAND, PIPEDREAM, PARTIME = "loop, 1 thread", "loop, 2 threads", "by hand", "pipedream", "partime"
RATE = "frames_per_s"
RESNET_18 = Net("ResNet-18, 64 px", "resnet18", (1, 3, 64, 64))
NETS = (
    *(nets.CONV_16, nets.CONV_32, nets.CONV_64, nets.MLP_256, nets.MLP_1024),
    *(RESNET_18, nets.RESNET_50),
)

_RULES = {PIPEDREAM: rules.pipedream, PARTIME: rules.partime}
_ALL = (ONE, TWO, BY_HAND, PIPEDREAM, PARTIME)
_PACE = Pace(generations=2, rounds=3, extra=2, seconds=0.8)
_QUICK = Pace(generations=1, rounds=1, extra=0, seconds=0.05)
_LEARNING_RATE = 1e-4
_WARM_UP = 8


def trainee(net: Net) -> tuple[nn.Sequential, Tensor]:
    """Return a network in training mode, and a target for all of its frames."""
    module = net.module()
    with torch.no_grad():
        output = module(net.frames()[0])
    return module.train(), torch.rand(output.shape, generator=torch.Generator().manual_seed(2))


@dataclass(frozen=True, slots=True)
class LoopSpec:
    """The training loop of any textbook.

    Attributes:
        net: What learns.
        threads: Intra-op threads.
    """

    net: Net
    threads: int

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Contestant]:
        """Build the network."""
        torch.set_num_threads(self.threads)
        yield _Loop(self.net)


class _Loop:
    def __init__(self, net: Net) -> None:
        self.facts: Mapping[str, str] = {"threads": str(torch.get_num_threads())}
        (self._module, self._target), self._frames = trainee(net), net.frames()
        self._optimizer = torch.optim.SGD(self._module.parameters(), lr=_LEARNING_RATE)

    async def run(self, seconds: float) -> Measurement:
        tally = Tally(seconds, warm_up=2)
        for frame in frames_until(lambda: tally.is_done, itertools.cycle(self._frames)):
            loss = functional.mse_loss(self._module(frame), self._target)
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch says nothing of its type
            self._optimizer.step()
            tally.tick()
        return tally.measurement()


@dataclass(frozen=True, slots=True)
class ByHandSpec:
    """Two threads that make the same updates as `pipedream`.

    Attributes:
        net: What learns.
        cut: Layers of the first half.
    """

    net: Net
    cut: int

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Contestant]:
        """Build the network and cut it."""
        torch.set_num_threads(1)
        yield _ByHand(self.net, self.cut)


class _ByHand:
    def __init__(self, net: Net, cut: int) -> None:
        module, self._target = trainee(net)
        self.facts: Mapping[str, str] = {"balance": f"{cut}+{len(module) - cut}"}
        self._frames = net.frames()
        self._learner = TwoThreads(module, cut, functional.mse_loss, _LEARNING_RATE)

    async def run(self, seconds: float) -> Measurement:
        tally = Tally(seconds, warm_up=_WARM_UP)
        frames = frames_until(lambda: tally.is_done, itertools.cycle(self._frames))
        self._learner.learn(frames, self._target, tally.tick)
        return tally.measurement()


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """This library, with its default options.

    Attributes:
        net: What learns.
        rule: Name of the update rule.
        balance: Layers of each stage; None: the planner cuts it in two.
    """

    net: Net
    rule: str
    balance: tuple[int, int] | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Contestant]:
        """Enter the pipeline."""
        module, target = trainee(self.net)
        frames = self.net.frames()
        learner = pa.Learner(functional.mse_loss, partial(torch.optim.SGD, lr=_LEARNING_RATE), rule=_RULES[self.rule]())
        stages = 2 if self.balance is None else None
        async with pa.Pipeline(
            module, frames[0], stages=stages, balance=self.balance, devices=["cpu"], learner=learner
        ) as pipeline:
            yield _Pipelined(pipeline, frames, target)


class _Pipelined:
    def __init__(self, pipeline: pa.Pipeline, frames: Sequence[Tensor], target: Tensor) -> None:
        self._pipeline, self._frames, self._target = pipeline, frames, target
        self.facts: Mapping[str, str] = {"balance": "+".join(map(str, pipeline.plan.balance))}

    async def run(self, seconds: float) -> Measurement:
        tally = Tally(seconds, warm_up=_WARM_UP)

        async def source() -> AsyncIterator[tuple[Tensor, Tensor]]:
            for frame in frames_until(lambda: tally.is_done, itertools.cycle(self._frames)):
                yield frame, self._target

        async for result in self._pipeline.stream(source()):
            tally.tick()
            if result.loss is None:
                raise BenchmarkError(f"nothing is learned from frame {result.index}. This is a fault of the library.")
        return tally.measurement()


def run(settings: Settings) -> Outcome:
    """Measure every net."""
    pace = _QUICK if settings.is_quick else _PACE
    facts: dict[str, dict[str, str]] = {}
    rounds: list[Round] = []
    for net in (nets.TINY,) if settings.is_quick else NETS:
        for generation in range(pace.generations):
            say(f"learning-throughput: {net.name}, processes {generation + 1} of {pace.generations}")
            with ExitStack() as stack:
                workers = _start(stack, is_shared=settings.is_quick)
                for name, found in _open(net, workers):
                    facts.setdefault(net.name, {})[f"{name} {generation}"] = found
                rounds += interleave(workers, pace, group=net.name, generation=generation)
    return Outcome({**pace.settings(), "learning_rate": _LEARNING_RATE}, rounds, facts)


def _start(stack: ExitStack, *, is_shared: bool) -> dict[str, Worker]:
    if is_shared:
        return dict.fromkeys(_ALL, stack.enter_context(Worker()))
    workers = {name: stack.enter_context(Worker()) for name in _ALL}
    for worker in workers.values():
        worker.wait_until_ready()  # or their start would disturb the planner
    return workers


def _open(net: Net, workers: Mapping[str, Worker]) -> Iterator[tuple[str, str]]:
    planned = workers[PIPEDREAM].open(PIPEDREAM, PipelineSpec(net, PIPEDREAM))
    yield PIPEDREAM, f"{planned['balance']} layers"
    first, second = map(int, planned["balance"].split("+"))
    # The very cut for all: the comparison is about learning in two stages, not about where to cut.
    workers[PARTIME].open(PARTIME, PipelineSpec(net, PARTIME, (first, second)))
    workers[BY_HAND].open(BY_HAND, ByHandSpec(net, first))
    for name, threads in ((ONE, 1), (TWO, 2)):
        workers[name].open(name, LoopSpec(net, threads))


def tables(report: Report) -> str:
    """Return the table."""
    return table(
        ["frames/s, learning", *_ALL, "pipedream ÷ by hand", "pipedream ÷ better loop", "partime ÷ better loop"],
        [_row(report, net) for net in report.groups],
    )


def _row(report: Report, net: str) -> list[str]:
    rounds = report.of(net)
    least = None if net == nets.MLP_256.name else 1.5
    return [
        label(report, net),
        *(short(Spread.over(rounds, figure(name, RATE)).median) for name in _ALL),
        Spread.over(rounds, ratio(PIPEDREAM, BY_HAND, RATE)).cell(at_least=1.0),
        Spread.over(rounds, partial(_over_loops, name=PIPEDREAM)).cell(at_least=least),
        Spread.over(rounds, partial(_over_loops, name=PARTIME)).cell(),
    ]


def _over_loops(each: Round, *, name: str) -> float:
    return each.figure(name, RATE) / max(each.figure(ONE, RATE), each.figure(TWO, RATE))
