"""Back to the last good weights: as defined, at one frame boundary, whatever the timing."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import partime_async as pa
from partime_async.learning import StageLearner
from partime_async.learning.learner import GradientHook
from partime_async.learning.recovery import FaultBook, Recovery
from tests.learning.school import ADAM, MOMENTUM, SGD, WIDTH, Delays, blocks, lessons, mse

EXAMPLE = torch.zeros(1, WIDTH)
Factory = Callable[..., torch.optim.Optimizer]
Spoil = Mapping[int, int]
"""By stage: at which of its gradients, from 0, the hook makes it infinite."""


class Reference:
    """The definition, one thing after another: stages, their gradients, and copies, of which none is thrown away."""

    def __init__(
        self, module: nn.Sequential, rule: pa.UpdateRule, optimizer: Factory, every: int, spoil: Spoil
    ) -> None:
        self.stages = [copy.deepcopy(layer) for layer in module]
        self.rule, self.every, self.spoil = rule, every, spoil
        self.optimizers = [optimizer(stage.parameters()) for stage in self.stages]
        self.gradients: list[dict[int, Tensor | None]] = [{} for _ in self.stages]
        self.passes: list[dict[int, tuple[Tensor, dict[str, Tensor], Tensor]]] = [{} for _ in self.stages]
        self.steps = [0 for _ in self.stages]
        self.faults: set[int] = set()
        self.since = self.restored = 0
        self.copies = [(0, self.copied())]

    def copied(self) -> object:
        """Return a copy of everything."""
        states = [(stage.state_dict(), made.state_dict()) for stage, made in self.pairs()]
        return copy.deepcopy(states)

    def pairs(self) -> list[tuple[nn.Module, torch.optim.Optimizer]]:
        """Return stages and optimisers."""
        return list(zip(self.stages, self.optimizers, strict=True))

    def event(self, t: int, frame: Tensor, target: Tensor | None) -> None:
        """Do one frame."""
        value = frame
        for h in range(len(self.stages)):
            value = self.forward(h, t, value)
        for h in reversed(range(len(self.stages))):
            self.gradients[h][t] = self.backward(h, t, target)
        self.boundary(t + 1)

    def forward(self, h: int, t: int, value: Tensor) -> Tensor:
        """Run a stage, with copies of its weights."""
        leaf = value.detach().clone().requires_grad_()
        weights = {name: each.detach().clone().requires_grad_() for name, each in self.stages[h].named_parameters()}
        output: Tensor = torch.func.functional_call(self.stages[h], weights, (leaf,))
        self.passes[h][t] = (leaf, weights, output)
        return output.detach()

    def backward(self, h: int, t: int, target: Tensor | None) -> Tensor | None:
        """Learn at one event of one stage."""
        last = len(self.stages) - 1
        due = t - self.rule.lag * (last - h)
        if due < self.since:
            return None
        if self.rule.graph == "replay" and due != t:
            self.forward(h, due, self.passes[h][due][0])
        leaf, weights, output = self.passes[h][t if self.rule.graph == "current" else due]
        if h == last:
            if target is None:
                return None
            head: Tensor = mse(output, target)
            seed = None
            if not math.isfinite(float(head.detach())):
                self.faults.add(t)
                return None
        else:
            seed = self.gradients[h + 1].get(t - self.rule.lag)
            if seed is None:
                return None
            head = output
        found = torch.autograd.grad(head, [leaf, *weights.values()], seed)
        return found[0] if self.step(h, t, found[1:]) else None

    def step(self, h: int, t: int, found: Sequence[Tensor]) -> bool:
        """Apply gradients, if they are finite."""
        is_spoilt = self.spoil.get(h) == self.steps[h]
        self.steps[h] += 1
        if is_spoilt or not all(bool(gradient.isfinite().all()) for gradient in found):
            self.faults.add(t)
            return False
        for parameter, gradient in zip(self.stages[h].parameters(), found, strict=True):
            parameter.grad = gradient
        self.optimizers[h].step()
        return True

    def boundary(self, b: int) -> None:
        """Put everything back, or copy it."""
        met = b - 2 - self.rule.lag * (len(self.stages) - 1)
        if met in self.faults and met >= self.since:
            good = [s for s, _ in self.copies if s <= met - self.every] or [self.copies[0][0]]
            self.copies = [(s, states) for s, states in self.copies if s <= good[-1]]
            for (stage, optimizer), (weights, memory) in zip(
                self.pairs(),
                copy.deepcopy(self.copies[-1][1]),  # type: ignore[call-overload]
                strict=True,
            ):
                stage.load_state_dict(weights)
                optimizer.load_state_dict(memory)
            self.since = b
            self.restored += 1
        elif b % self.every == 0:
            self.copies.append((b, self.copied()))


def spoiler(spoil: Spoil) -> GradientHook:
    """Return a hook that makes some gradients infinite."""
    seen: dict[int, int] = {}

    def hook(stage: int, parameters: Sequence[nn.Parameter]) -> None:
        number = seen[stage] = seen.get(stage, -1) + 1
        if spoil.get(stage) == number and parameters[0].grad is not None:
            parameters[0].grad[0] = math.inf

    return hook


def restoring(rule: pa.UpdateRule, optimizer: Factory, every: int, spoil: Spoil) -> pa.Learner:
    """Return a learner that goes back."""
    return pa.Learner(
        mse, optimizer, rule=rule, non_finite="restore", snapshot_every=every, gradient_hook=spoiler(spoil)
    )


async def taught(
    module: nn.Sequential, learner: pa.Learner, source: Sequence[object]
) -> tuple[dict[str, Tensor], list[int]]:
    """Return the weights after a stream, and how often each stage went back."""
    count = len(module)
    pipeline = pa.Pipeline(module, EXAMPLE, balance=[1] * count, devices=["cpu"], learner=learner, depth=3)
    async with pipeline:
        async for _ in pipeline.stream(source):
            pass
        await pipeline.state_dict()
        stages = [stage.learning for stage in pipeline.statistics().stages]
    return await pipeline.state_dict(), [stage.restored for stage in stages if stage is not None]


def poisoned(count: int, at: Sequence[int]) -> tuple[list[Tensor], list[Tensor | None]]:
    """Return frames and targets, of which a fifth are missing and some are no numbers."""
    frames, targets = lessons(count)
    given = [None if target is None else torch.as_tensor(target) for target in targets]
    for number in at:
        given[number] = torch.full((1, WIDTH), math.nan)
    return [torch.as_tensor(frame) for frame in frames], given


@pytest.mark.parametrize(
    ("rule", "stages", "optimizer", "every"),
    [
        (pa.rules.exact(), 1, MOMENTUM, 4),
        (pa.rules.exact(), 3, ADAM, 7),
        (pa.rules.pipedream(), 2, MOMENTUM, 1),
        (pa.rules.pipedream(), 4, ADAM, 7),
        (pa.rules.pipedream(), 4, SGD, 4),
        (pa.UpdateRule("stash", 2), 3, SGD, 7),
        (pa.rules.partime(), 3, MOMENTUM, 4),
        (pa.rules.replay(), 3, ADAM, 4),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)
async def test_weights_with_faults_here_and_there_equal_the_definition(
    rule: pa.UpdateRule, stages: int, optimizer: Factory, every: int
) -> None:
    """Faults at the loss and in a gradient, alone, in a row and during the way back: bit for bit what is written."""
    frames, targets = poisoned(60, at=[2, 23, 24, 27, 45])
    spoil = {0: 28, stages - 1: 9}
    module = blocks(stages)
    reference = Reference(module, rule, optimizer, every, spoil)
    for t, (frame, target) in enumerate(zip(frames, targets, strict=True)):
        reference.event(t, frame, target)
    assert reference.restored >= 3
    layers = blocks(stages, Delays(stages))
    layers.load_state_dict(module.state_dict())
    source = [frame if target is None else (frame, target) for frame, target in zip(frames, targets, strict=True)]
    weights, restored = await taught(layers, restoring(rule, optimizer, every, spoil), source)
    assert restored == [reference.restored] * stages
    for h, stage in enumerate(reference.stages):
        for name, tensor in stage.state_dict().items():
            assert torch.equal(weights[f"{h}.{name}"], tensor), (h, name)


async def test_number_that_is_none_never_reaches_weights_nor_optimiser() -> None:
    """Whatever the policy, a gradient that is not finite is not applied."""
    frames, targets = poisoned(12, at=[5, 11])
    source = [frame if target is None else (frame, target) for frame, target in zip(frames, targets, strict=True)]
    weights, _ = await taught(blocks(2), restoring(pa.rules.pipedream(), ADAM, 4, {}), source)
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


async def test_layers_that_remember_start_over_where_weights_are_put_back() -> None:
    """A state that the bad weights led to goes with them."""

    class Sum(pa.Stateful):
        def initial_state(self) -> Tensor:
            return torch.zeros(1, WIDTH)

        def step(self, value: pa.Value, state: pa.Value) -> tuple[pa.Value, pa.Value]:
            after = torch.as_tensor(state) + torch.as_tensor(value)
            return after, after

    module = nn.Sequential(Sum(), nn.Linear(WIDTH, WIDTH))
    nn.init.eye_(module[1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(module[1].bias)  # type: ignore[arg-type]
    learner = restoring(pa.rules.exact(), partial(torch.optim.SGD, lr=0.0), 2, {})
    one = torch.ones(1, WIDTH)
    async with pa.Pipeline(module, EXAMPLE, balance=[1, 1], devices=["cpu"], learner=learner) as pipeline:
        sums = []
        for number in range(6):
            result = await pipeline.process(one, one * math.nan if number == 1 else one)
            sums.append(float(torch.as_tensor(result.output)[0, 0]))
    # The fault is of event 1, and with lag 0 all go back at boundary 3.
    assert sums == [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]


async def test_fault_met_before_the_weights_were_replaced_is_void() -> None:
    """New weights are not thrown away for what the old ones did; from there on they are the ones to go back to."""
    rule = pa.rules.pipedream()
    learner = restoring(rule, SGD, 100, {})
    module, other = blocks(3), blocks(3)
    for parameter in other.parameters():
        parameter.data.fill_(0.5)
    nan = torch.full((1, WIDTH), math.nan)
    async with pa.Pipeline(module, EXAMPLE, balance=[1, 1, 1], devices=["cpu"], learner=learner) as pipeline:
        await pipeline.process(EXAMPLE, nan)
        await pipeline.load_state_dict(other.state_dict())
        for _ in range(6):
            await pipeline.process(EXAMPLE)
        first = pipeline.statistics().stages[0].learning
        assert first is not None
        assert first.restored == 0
        await pipeline.process(EXAMPLE, EXAMPLE + 1.0)
        await pipeline.process(EXAMPLE, nan)
        for _ in range(6):
            await pipeline.process(EXAMPLE)
        found = await pipeline.state_dict()
        second = pipeline.statistics().stages[0].learning
    assert second is not None
    assert second.restored == 1
    assert all(torch.equal(found[name], tensor) for name, tensor in other.state_dict().items())


async def test_pipeline_entered_again_goes_back_to_the_weights_it_had_then() -> None:
    """Each run begins with a copy of its own, and knows nothing of the faults of another."""
    module = blocks(2)
    learner = restoring(pa.rules.pipedream(), SGD, 100, {})
    pipeline = pa.Pipeline(module, EXAMPLE, balance=[1, 1], devices=["cpu"], learner=learner)
    async with pipeline:
        await pipeline.process(EXAMPLE, EXAMPLE + 1.0)
        await pipeline.process(EXAMPLE, EXAMPLE * math.nan)
    between = await pipeline.state_dict()
    async with pipeline:
        for number in range(8):
            await pipeline.process(EXAMPLE + 0.1, EXAMPLE + (math.nan if number == 4 else 1.0))
        await pipeline.state_dict()
        stage = pipeline.statistics().stages[0].learning
        assert stage is not None
        assert stage.restored == 1
        versions = (await pipeline.process(EXAMPLE)).weight_versions
        await pipeline.state_dict()
    assert versions[1] > 5  # going back is a change like any other
    assert any(not torch.equal(between[name], tensor) for name, tensor in module.state_dict().items())


async def test_buffers_go_back_too_also_those_that_a_layer_replaces() -> None:
    """A statistic that was kept with bad frames goes back with the weights."""

    class Counts(nn.Module):
        seen: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, value: Tensor) -> Tensor:
            self.seen = self.seen + 1.0
            result: Tensor = self.linear(value)
            return result

    learner = restoring(pa.rules.exact(), SGD, 2, {})
    async with pa.Pipeline(nn.Sequential(Counts()), EXAMPLE, balance=[1], devices=["cpu"], learner=learner) as pipeline:
        for number in range(8):
            await pipeline.process(EXAMPLE, EXAMPLE * (math.nan if number == 6 else 1.0))
        seen = (await pipeline.state_dict())["0.seen"]
    # The fault is of event 6: at boundary 8 back to the copy of boundary 4.
    assert float(seen) == 4.0


async def test_frame_that_fails_at_the_boundary_does_not_keep_the_weights_from_going_back() -> None:
    """Stages that a failed frame never came to act at the boundary all the same."""

    class Picky(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            if float(value.detach().max()) > 50.0:
                raise ValueError("too large")
            return value

    module = nn.Sequential(Picky(), *blocks(2))
    before = copy.deepcopy(module.state_dict())
    learner = restoring(pa.rules.exact(), SGD, 100, {})
    async with pa.Pipeline(module, EXAMPLE, balance=[2, 1], devices=["cpu"], learner=learner) as pipeline:
        await pipeline.process(EXAMPLE, EXAMPLE + 1.0)
        await pipeline.process(EXAMPLE, EXAMPLE * math.nan)
        with pytest.raises(pa.StageError):
            await pipeline.process(EXAMPLE + 100.0, EXAMPLE)
        after = await pipeline.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_copies_are_few_however_long_the_stream() -> None:
    """No more of them are kept than a fault yet to come can ask for."""
    module = blocks(1)
    learner = pa.Learner(mse, SGD, non_finite="restore", snapshot_every=4)
    for lag, stages, most in ((0, 1, 3), (1, 4, 4), (2, 8, 6)):
        faults = FaultBook(pa.UpdateRule("stash", lag), stages)
        recovery = Recovery(
            StageLearner(learner, module, 0, 1), module, faults, every=4, on_restore=lambda: pytest.fail("no fault")
        )
        recovery.begin()
        recovery.prepare()
        for boundary in range(1, 200):
            recovery.reached(boundary)
            assert len(recovery._copies) <= most
        for event in range(1000):
            faults.note(event)
        assert len(faults._events) <= 2 * faults.reach + 1


@pytest.mark.parametrize("every", [0, -1, 1.5])
def test_snapshot_every_below_one_is_refused(every: int) -> None:
    """There is no copy between two frames of which neither exists."""
    with pytest.raises(pa.ConfigurationError, match="snapshot_every"):
        pa.Learner(mse, SGD, non_finite="restore", snapshot_every=every)
