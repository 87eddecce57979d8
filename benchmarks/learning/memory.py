"""What a rule keeps until the gradients are there: counted stage by stage, and seen as memory of the process.

Counted right behind a stage's forward pass, when it keeps the most. The definitions ask, of stage h with a delay of d_h
frames, for

    exact      1 graph
    current    1 graph
    stash      d_h + 1 graphs, and d_h versions of the weights beside the newest
    replay     d_h + 1 inputs, the newest frame's among them; 1 graph where d_h is 0
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

import partime_async as pa
from benchmarks import nets
from benchmarks.learning import charts
from benchmarks.learning.kept import storages
from benchmarks.machine import resident_bytes
from benchmarks.nets import Net
from benchmarks.record import Measurement, Report, Round, Sample
from benchmarks.rounds import Pace, interleave, say
from benchmarks.settings import Outcome, Settings
from benchmarks.summary import short, table
from benchmarks.workers import Contestant, Worker
from partime_async.learning import StageLearner, rules
from partime_async.partition.balance import balance as balanced

RULES = {
    "exact": rules.exact(),
    "pipedream": rules.pipedream(),
    "stash, lag 2": pa.UpdateRule("stash", 2),
    "replay": rules.replay(),
    "current, lag 1": pa.UpdateRule("current", 1),
    "partime": rules.partime(),
}
STAGES = (2, 4, 8)
RESIDENT = "resident"

_NETS = (nets.CONV_64, nets.MLP_256)
_RESIDENT_STAGES = 4
_FRAMES, _QUICK_FRAMES = 60, 10
_RATE = 1e-4
# What other programs do changes no figure here: no round is disturbed.
_PACE = Pace(generations=1, rounds=1, extra=0, seconds=0.0, most_foreign_share=100.0)


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes that one stage keeps.

    Attributes:
        activations: In graphs and inputs.
        weights: In versions of the weights beside the newest.
    """

    activations: int
    weights: int


class _Classroom:
    """The stages of a network, run one after the other in one thread."""

    def __init__(self, net: Net, stages: int, rule: pa.UpdateRule) -> None:
        module = net.module().train()
        self._frame = net.frames()[0]
        self._target = torch.rand(module(self._frame).shape)
        self._lag = rule.lag
        learner = pa.Learner(functional.mse_loss, partial(torch.optim.SGD, lr=_RATE), rule=rule)
        self.parts = cut(module, stages)
        self.learners = [StageLearner(learner, part, number, stages) for number, part in enumerate(self.parts)]
        self._gradients: list[list[tuple[Tensor, ...]]] = [[] for _ in self.parts]

    def teach(self, frames: int) -> None:
        """Let all stages learn from a few frames, and run one more forward through all of them."""
        for event in range(frames):
            self._forward(event)
            for stage in reversed(range(len(self.parts))):
                found = self._gradients[stage + 1] if stage + 1 < len(self.parts) else []
                needed = event - self._lag
                gradient = found[needed] if found and needed >= 0 else ()
                self._gradients[stage].append(self.learners[stage].backward(event, gradient))
        self._forward(frames)

    def _forward(self, event: int) -> None:
        value: pa.Value = self._frame
        for learner in self.learners:
            value, _ = learner.forward(event, value, self._target if learner is self.learners[-1] else None)

    def kept(self) -> list[Kept]:
        """Return what each stage keeps now."""
        return [_kept(learner, part) for learner, part in zip(self.learners, self.parts, strict=True)]


def _kept(learner: StageLearner, part: nn.Module) -> Kept:
    passes = list(learner._passes.values())
    own = storages(list(part.parameters()), list(part.buffers()))
    weights = storages([passed.leaves.tensors for passed in passes if passed.leaves is not None])
    everything = storages(passes, learner._answers)
    activations = sum(size for place, size in everything.items() if place not in own and place not in weights)
    return Kept(activations, sum(size for place, size in weights.items() if place not in own))


def cut(module: nn.Sequential, stages: int) -> list[nn.Sequential]:
    """Cut a network into stages of about as many trained layers each."""
    costs = [[float(any(True for _ in layer.parameters())) for layer in module]] * stages
    sizes = balanced(costs, [[0.0] * len(module)] * stages)
    ends = [sum(sizes[: stage + 1]) for stage in range(stages)]
    layers = list(module)
    return [nn.Sequential(*layers[end - size : end]) for end, size in zip(ends, sizes, strict=True)]


def predicted(exact: Sequence[Kept], parts: Sequence[nn.Module], inputs: Sequence[int], rule: pa.UpdateRule) -> int:
    """Return the bytes that the definition asks for, over all stages.

    Args:
        exact: What each stage keeps under `exact`: one graph.
        parts: The stages.
        inputs: Bytes of each stage's input.
        rule: Whose definition.
    """
    total = 0
    for stage, (graph, part, size) in enumerate(zip(exact, parts, inputs, strict=True)):
        delay = rule.delay(stage, len(parts))
        weights = sum(tensor.nbytes for tensor in part.parameters())
        match rule.graph:
            case pa.Graph.STASH:
                total += (delay + 1) * graph.activations + delay * weights
            case pa.Graph.REPLAY:
                total += (delay + 1) * size if delay else graph.activations
            case pa.Graph.CURRENT:
                total += graph.activations
    return total


def counted(net: Net, stages: int) -> dict[str, Measurement]:
    """Return what every rule keeps in a network, in all and stage by stage, beside what it should."""
    exact = _Classroom(net, stages, RULES["exact"])
    exact.teach(1)
    graphs, value, inputs = exact.kept(), net.frames()[0], []
    with torch.no_grad():
        for part in exact.parts:
            inputs.append(value.nbytes)
            value = part(value)
    found = {}
    for name, rule in RULES.items():
        room = _Classroom(net, stages, rule)
        room.teach(2 * rule.lag * stages + 1)
        kept = room.kept()
        found[name] = Measurement(
            {
                "activation_bytes": float(sum(stage.activations for stage in kept)),
                "weight_bytes": float(sum(stage.weights for stage in kept)),
                "predicted_bytes": float(predicted(graphs, room.parts, inputs, rule)),
            },
            {"stage_bytes": [float(stage.activations + stage.weights) for stage in kept]},
        )
    return found


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """A pipeline that learns, in a process of its own.

    Attributes:
        net: What learns.
        rule: Name of the update rule.
        frames: How many it learns from.
    """

    net: Net
    rule: str
    frames: int

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Contestant]:
        """Build the network; the rest is what is measured."""
        torch.set_num_threads(1)
        yield _Resident(self)


class _Resident:
    def __init__(self, spec: PipelineSpec) -> None:
        self.facts: Mapping[str, str] = {}
        self._spec = spec

    async def run(self, seconds: float) -> Measurement:
        spec = self._spec
        await _resident(nets.TINY, RULES[spec.rule], _QUICK_FRAMES)  # what is imported and allocated only once
        before = resident_bytes()
        resident = await _resident(spec.net, RULES[spec.rule], spec.frames)
        return Measurement({"resident_bytes": max(resident) - before}, {"resident_bytes": resident})


async def _resident(net: Net, rule: pa.UpdateRule, frames: int) -> list[float]:
    """Let a network learn from a few frames, and return the memory of the process at each."""
    module, frame = net.module().train(), net.frames()[0]
    learner = pa.Learner(functional.mse_loss, partial(torch.optim.SGD, lr=_RATE), rule=rule)
    with torch.no_grad():
        target = torch.rand(module(frame).shape)
    balance = [len(part) for part in cut(module, _RESIDENT_STAGES)]
    async with pa.Pipeline(module, frame, balance=balance, devices=["cpu"], learner=learner) as pipeline:
        return [float(resident_bytes()) async for _result in pipeline.stream([(frame, target)] * frames)]


def run(settings: Settings) -> Outcome:
    """Count for every net and number of stages, then look at processes."""
    quick = settings.is_quick
    rounds: list[Round] = []
    torch.set_num_threads(1)
    for net in (nets.TINY,) if quick else _NETS:
        for stages in STAGES[: 1 if quick else None]:
            say(f"learning-memory: {net.name}, {stages} stages")
            samples = {rule: Sample(found, 0.0, None) for rule, found in counted(net, stages).items()}
            rounds.append(Round(net.name, _condition(stages), 0, 0, os.getloadavg()[0], False, samples))
    net, frames = (nets.TINY, _QUICK_FRAMES) if quick else (nets.CONV_64, _FRAMES)
    with ExitStack() as stack:
        # Memory that one rule gave back would serve the next: a process for each, unless it is only to be seen to run.
        shared = stack.enter_context(Worker()) if quick else None
        workers = {rule: shared or stack.enter_context(Worker()) for rule in RULES}
        for rule, worker in workers.items():
            worker.open(rule, PipelineSpec(net, rule, frames))
        rounds += interleave(workers, _PACE, group=net.name, condition=RESIDENT)
    return Outcome({"frames": frames, "resident_stages": _RESIDENT_STAGES}, rounds)


def _condition(stages: int) -> str:
    return f"{stages} stages"


def tables(report: Report) -> str:
    """Return the tables, and draw the chart."""
    places = [(each.group, each.condition) for each in report.rounds if each.condition != RESIDENT]
    kept = table(
        ["kept, MB (by the definition)", *RULES],
        [
            [f"{net}, {stages}", *(_kept_cell(report.of(net, stages)[0], rule) for rule in RULES)]
            for net, stages in places
        ],
    )
    resident = next(each for each in report.rounds if each.condition == RESIDENT)
    processes = table(
        ["memory of a process, MB above its start", *RULES],
        [
            [
                f"{resident.group}, {report.settings['resident_stages']} stages",
                *(short(resident.figure(rule, "resident_bytes") / 1e6) for rule in RULES),
            ]
        ],
    )
    return f"{kept}\n\n{processes}\n\n{_chart(report, places[0][0])}"


def _kept_cell(each: Round, rule: str) -> str:
    kept = each.figure(rule, "activation_bytes") + each.figure(rule, "weight_bytes")
    return f"{short(kept / 1e6)} ({short(each.figure(rule, 'predicted_bytes') / 1e6)})"


def _chart(report: Report, net: str) -> str:
    rounds = [each for each in report.rounds if each.group == net and each.condition != RESIDENT]
    return charts.bars(
        report,
        "memory.png",
        f"Kept until the gradients are there: {net}. Lines: by the definition",
        groups=[each.condition for each in rounds],
        heights={
            rule: [(each.figure(rule, "activation_bytes") + each.figure(rule, "weight_bytes")) / 1e6 for each in rounds]
            for rule in RULES
        },
        lines={rule: [each.figure(rule, "predicted_bytes") / 1e6 for each in rounds] for rule in RULES},
        unit="MB",
    )
