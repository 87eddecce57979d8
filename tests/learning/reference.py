"""The update rules once more, from their definitions: one thread, plain loops, everything kept for ever.

Stage h of N handles frames t = 0, 1, 2, ... as events: forward of frame t with its weights of then, then at most one
backward pass and one step. G_h(t) is what its backward pass at event t gives for its input. With L frames per hop, a
label delay D and d_h = L (N - 1 - h) + D, the backward pass at event t is of the loss of frame s = t - d_h:

    current    through the forward pass of frame t
    stash      through that of frame s, as it was done with the weights of then
    replay     through one of frame s that is done again, with the weights of now

starting at the last stage from the loss, and at any other from G_{h+1}(t - L). There is none if s < 0, without a
target, if the frame failed, if the stage is frozen, or if there is a boundary between s and t: a place where learning
was frozen or thawed, or weights were replaced.

Every forward pass runs on a copy of the stage, so nothing that happens later can change its graph; buffers are copied
back. A stage draws from a generator of its own: the first from a copy of the default one, stage h from one seeded with
the h-th number (from 0) that such a copy draws below 2**62. All frames are of one feed: what layers remember goes on.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import partime_async as pa

Value = Tensor | tuple[Tensor, ...]
Weights = dict[str, Tensor]
Trace = tuple[int, int, int, int, int, int]
"""Stage, event, frame of the graph, frame of the loss, weight version in the graph, weight version after the step."""


@dataclass(frozen=True)
class Lesson:
    """What is learned, and how; the plain counterpart of `partime_async.Learner`."""

    graph: str
    lag: int
    optimizer: Callable[[Sequence[nn.Parameter]], Optimizer]
    loss: Callable[..., Tensor]
    unsupervised: bool = False
    scheduler: Callable[[Optimizer], LRScheduler] | None = None
    clip_norm: float | None = None
    hook: Callable[[int, Sequence[nn.Parameter]], None] | None = None
    label_delay: int = 0


@dataclass
class History:
    """What happened: by frame, and by stage."""

    outputs: list[Value | None] = field(default_factory=list)
    losses: list[float | None] = field(default_factory=list)
    versions: list[tuple[int, ...]] = field(default_factory=list)
    weights: list[Weights] = field(default_factory=list)
    trace: list[Trace] = field(default_factory=list)
    discarded: list[int] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)


@dataclass
class _Forward:
    """One forward pass of one stage, on a copy of it."""

    net: nn.Module
    inputs: tuple[Tensor, ...]
    output: Value
    version: int


@dataclass(frozen=True)
class Before:
    """What a forward pass finds: the stage's random state, and what its layers remember."""

    random: Tensor
    states: tuple[Value | None, ...]


class _Stage:
    def __init__(self, number: int, net: nn.Sequential, lesson: Lesson) -> None:
        self.number = number
        self.net = net
        self.version = 0
        self.parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
        self.optimizer = lesson.optimizer(self.parameters) if self.parameters else None
        self.scheduler = lesson.scheduler(self.optimizer) if self.optimizer and lesson.scheduler else None
        self.before = Before(_random_state(number), tuple(None for _ in _remembering(net)))
        self.inputs: dict[int, Value] = {}
        self.befores: dict[int, Before] = {}
        self.passes: dict[int, _Forward] = {}
        self.emitted: dict[int, tuple[Tensor | None, ...]] = {}
        self.used: set[int] = set()
        self.skipped = 0

    def forward(self, value: Value, before: Before) -> tuple[_Forward, Before]:
        """Run a copy of the stage as it is now; return the pass, and what is behind it."""
        net = copy.deepcopy(self.net)
        for layer, state in zip(_remembering(net), before.states, strict=True):
            layer.state = state
        inputs = tuple(
            tensor.detach().clone().requires_grad_(self.number > 0 and tensor.is_floating_point())
            for tensor in _tensors(value)
        )
        outside = torch.random.get_rng_state()
        torch.random.set_rng_state(before.random)
        try:
            given = tuple(tensor * 1 for tensor in inputs)  # a layer may write into them
            output = net(given[0] if isinstance(value, Tensor) else given)
            random = torch.random.get_rng_state()
        finally:
            torch.random.set_rng_state(outside)
        states = tuple(None if layer.state is None else _detached(layer.state) for layer in _remembering(net))
        return _Forward(net, inputs, output, self.version), Before(random, states)


def simulate(
    net: nn.Sequential,
    balance: Sequence[int],
    frames: Sequence[Value],
    targets: Sequence[Value | None],
    lesson: Lesson,
    *,
    frozen: Collection[int] = (),
    replaced: Mapping[int, Weights] | None = None,
) -> History:
    """Teach a copy of the net.

    Args:
        net: Its children are the layers.
        balance: Layers per stage.
        frames: In the order of admission.
        targets: One for each frame.
        lesson: What to learn.
        frozen: The frames during whose events nothing is learned.
        replaced: New weights, by the frame before which they come.
    """
    replaced = replaced or {}
    net = copy.deepcopy(net)
    stages = _cut(net, balance, lesson)
    borders = [t for t in range(len(frames)) if t in replaced or (t in frozen) != (t > 0 and t - 1 in frozen)]
    history = History()
    for t, frame in enumerate(frames):
        if t in replaced:
            net.load_state_dict(replaced[t])
            for stage in stages:
                stage.version += 1
        reached = _forward(stages, t, frame)
        last = stages[-1].passes.get(t)
        loss = None if last is None or lesson.label_delay else _loss(lesson, last.output, targets[t])
        history.outputs.append(None if last is None else _detached(last.output))
        history.losses.append(None if loss is None else float(loss.detach()))
        history.versions.append(tuple(stage.version for stage in stages[:reached]))
        if t not in frozen:
            for stage in reversed(stages):
                history.trace += _learn(stages, stage, t, targets, lesson, borders)
        history.weights.append({name: tensor.clone() for name, tensor in net.state_dict().items()})
    history.skipped = [stage.skipped for stage in stages]
    history.discarded = [
        len(stages[h + 1].emitted.keys() - stages[h].used) if h + 1 < len(stages) else 0 for h in range(len(stages))
    ]
    return history


def _cut(net: nn.Sequential, balance: Sequence[int], lesson: Lesson) -> list[_Stage]:
    children = list(net.named_children())
    stages: list[_Stage] = []
    for count in balance:
        part = nn.Sequential()
        for name, child in children[:count]:
            part.add_module(name, child)
        part.training = net.training
        children = children[count:]
        stages.append(_Stage(len(stages), part, lesson))
    return stages


def _random_state(stage: int) -> Tensor:
    copied = torch.Generator()
    copied.set_state(torch.random.get_rng_state())
    if stage == 0:
        return copied.get_state()
    seeds = torch.randint(2**62, (stage + 1,), generator=copied)
    return torch.Generator().manual_seed(int(seeds[stage])).get_state()


def _forward(stages: Sequence[_Stage], t: int, frame: Value) -> int:
    """Run a frame through the stages; return how many it came to. The last of them may have raised."""
    value = frame
    for stage in stages:
        stage.inputs[t] = value
        stage.befores[t] = stage.before
        try:
            passed, stage.before = stage.forward(value, stage.before)
        except ValueError:  # what the tests' own layers raise
            return stage.number + 1
        for own, used in zip(stage.net.buffers(), passed.net.buffers(), strict=True):
            own.copy_(used)
        stage.passes[t] = passed
        value = _detached(passed.output)
    return len(stages)


def _learn(
    stages: Sequence[_Stage],
    stage: _Stage,
    t: int,
    targets: Sequence[Value | None],
    lesson: Lesson,
    borders: Sequence[int],
) -> list[Trace]:
    s = t - lesson.lag * (len(stages) - 1 - stage.number) - lesson.label_delay
    g = t if lesson.graph == "current" else s
    is_last = stage.number == len(stages) - 1
    if s < 0 or g not in stage.passes or s not in stages[-1].passes or any(s < border <= t for border in borders):
        return []
    passed = stage.passes[g]
    if lesson.graph == "replay" and g != t:
        passed, _ = stage.forward(stage.inputs[g], stage.befores[g])
    if is_last:
        heads = _loss_heads(stage, passed, s, g, targets[s], lesson)
    else:
        gradient = stages[stage.number + 1].emitted.get(t - lesson.lag)
        if gradient is None:
            return []
        stage.used.add(t - lesson.lag)
        heads = list(zip(_tensors(passed.output), gradient, strict=True))
    heads = [(output, seed) for output, seed in heads if output.requires_grad and seed is not None]
    if not heads:
        return []
    leaves = [parameter for parameter in passed.net.parameters() if parameter.requires_grad]
    torch.autograd.backward([output for output, _ in heads], [seed for _, seed in heads])
    for parameter, leaf in zip(stage.parameters, leaves, strict=True):
        parameter.grad, leaf.grad = leaf.grad, None
    if not _step(stage, lesson):
        return []
    stage.emitted[t] = tuple(tensor.grad for tensor in passed.inputs)
    if all(parameter.grad is None for parameter in stage.parameters):
        return []
    stage.version += 1
    return [(stage.number, t, g, s, passed.version, stage.version)]


def _loss_heads(
    stage: _Stage, passed: _Forward, s: int, g: int, target: Value | None, lesson: Lesson
) -> list[tuple[Tensor, Tensor | None]]:
    if g == s:
        loss = _loss(lesson, passed.output, target)
        if loss is None:
            return []
        if not math.isfinite(float(loss.detach())):
            stage.skipped += 1
            return []
        return [(loss, torch.ones_like(loss))]
    # `current`, late: the gradient at what the stage said of frame s, applied to what it says of frame t.
    said = tuple(
        tensor.detach().clone().requires_grad_(tensor.is_floating_point())
        for tensor in _tensors(stage.passes[s].output)
    )
    loss = _loss(lesson, said[0] if isinstance(passed.output, Tensor) else said, target)
    if loss is None:
        return []
    if not math.isfinite(float(loss.detach())):
        stage.skipped += 1
        return []
    torch.autograd.backward(loss)
    return [(output, tensor.grad) for output, tensor in zip(_tensors(passed.output), said, strict=True)]


def _loss(lesson: Lesson, output: Value, target: Value | None) -> Tensor | None:
    if lesson.unsupervised:
        return lesson.loss(output)
    return None if target is None else lesson.loss(output, target)


def _step(stage: _Stage, lesson: Lesson) -> bool:
    """Step, if there is a gradient; say whether it is fit to be passed on."""
    if stage.optimizer is None or all(parameter.grad is None for parameter in stage.parameters):
        return True
    if lesson.hook is not None:
        lesson.hook(stage.number, stage.parameters)
    norm = nn.utils.clip_grad_norm_(stage.parameters, lesson.clip_norm or math.inf)
    if not norm.isfinite():
        stage.skipped += 1
        return False
    stage.optimizer.step()
    if stage.scheduler is not None:
        stage.scheduler.step()
    return True


def _remembering(net: nn.Module) -> list[pa.Stateful]:
    return [layer for layer in net.modules() if isinstance(layer, pa.Stateful)]


def _tensors(value: Value) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else value


def _detached(value: Value) -> Value:
    return value.detach().clone() if isinstance(value, Tensor) else tuple(part.detach().clone() for part in value)
