"""Both passes of a stage as two calls: autograd's outputs, gradients, buffers and steps, bit for bit, or none."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import partime_async as pa
from partime_async.frame import Value
from partime_async.learning import runner
from partime_async.learning.joint import Joint, join
from partime_async.learning.passes import tensors_of
from tests.learning.school import SGD, mse, stage_learners
from tests.nets import TwoEnds, dense

PICTURE = torch.linspace(-1.0, 1.0, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
ROW = torch.linspace(-1.0, 1.0, 10).reshape(2, 5)
RATE = 0.25


class Offset(nn.Module):
    """Adds a weight as it is: the gradients of the weight and of the input are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.linspace(0.0, 1.0, 10).reshape(2, 5))

    def forward(self, value: Tensor) -> Tensor:
        """Return the sum."""
        return value + self.offset


class Turned(nn.Module):
    """Multiplies by a weight that lies in memory column by column."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1.0, 1.0, 25).reshape(5, 5).t())

    def forward(self, value: Tensor) -> Tensor:
        """Return the product."""
        return value @ self.weight


class Tied(nn.Module):
    """Uses one weight twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, value: Tensor) -> Tensor:
        """Return the layer of the layer."""
        output: Tensor = self.layer(torch.tanh(self.layer(value)))
        return output


class Deaf(nn.Module):
    """Has a weight that nothing depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.unused = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, value: Tensor) -> Tensor:
        """Return the layer's output."""
        output: Tensor = self.layer(value)
        return output


class Stage(nn.Module):
    """Takes a tuple, as stages do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = TwoEnds()

    def forward(self, values: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return both outputs."""
        output: tuple[Tensor, Tensor] = self.net(*values)
        return output


def _partly_frozen() -> nn.Module:
    net = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    net[0].weight.requires_grad_(False)
    return net


def _pictures() -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Conv2d(4, 4, 3, stride=2), nn.GroupNorm(2, 4), nn.GELU(), nn.Flatten())


@pytest.fixture(autouse=True)
def _for_small_nets_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "JOINT_FROM_BYTES", 0)


KINDS: dict[str, tuple[Callable[[], nn.Module], Value]] = {
    "dense": (lambda: dense(layers=4, width=5), ROW),
    "pictures": (_pictures, PICTURE),
    "statistics that are used": (lambda: _pictures().eval(), PICTURE),
    "partly frozen": (_partly_frozen, ROW),
    "tied": (Tied, ROW),
    "one gradient for two": (Offset, ROW),
    "two such": (lambda: nn.Sequential(Offset(), Offset()), ROW),
    "turned": (Turned, ROW),
    "two inputs and outputs": (Stage, (torch.ones(2, 6), torch.linspace(0.0, 1.0, 12).reshape(2, 6))),
}


def _joint(module: nn.Module, example: Value, *, copies_buffers: bool = True) -> Joint:
    joint = join(module, example, has_gradient=True, copies_buffers=copies_buffers)
    assert joint is not None
    return joint


@pytest.mark.parametrize("copies_buffers", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_joint_gives_the_bits_of_autograd(kind: str, copies_buffers: bool) -> None:
    """Outputs, gradients, buffers and the plain step, for inputs that it was not made with."""
    make, example = KINDS[kind]
    module = make()
    joint = _joint(module, example, copies_buffers=copies_buffers)
    other = copy.deepcopy(module)
    for factor in (0.5, 2.0):
        inputs = [(tensor * factor).requires_grad_() for tensor in tensors_of(example)]
        expected = tensors_of(other(tuple(inputs) if isinstance(example, tuple) else inputs[0]))
        seeds = [torch.cos(tensor.detach()) for tensor in expected]
        weights = [weight for weight in other.parameters() if weight.requires_grad]
        gradients = torch.autograd.grad(expected, [*weights, *inputs], seeds)

        own = [weight for weight in module.parameters() if weight.requires_grad]
        with torch.no_grad():
            given = [tensor.detach() for tensor in inputs]
            outputs, kept = joint.forward(given, list(module.parameters()), list(module.buffers()))
            assert all(map(torch.equal, tensors_of(outputs), expected))
            found = joint.backward(kept, seeds, own, None)
            assert all(map(torch.equal, [*found.gradients, *found.given], gradients))
            stepped = joint.backward(kept, seeds, own, RATE)
        for weight, gradient, following in zip(own, gradients, stepped.gradients, strict=False):
            assert torch.equal(following, torch.add(weight, gradient, alpha=-RATE).detach())
            assert following.stride() == weight.stride()
        assert all(map(torch.equal, stepped.given, gradients[len(own) :]))
        assert stepped.norm == pytest.approx(
            float(torch.cat([each.flatten() for each in gradients[: len(own)]]).norm())
        )
        assert all(map(torch.equal, module.buffers(), other.buffers()))


def test_joint_gives_next_weights_in_memory_of_their_own() -> None:
    """What is written over a gradient is neither the seed, nor what is passed on, nor another weight."""
    module = nn.Sequential(Offset(), Offset())
    seed = torch.ones(2, 5)
    with torch.no_grad():
        joint = _joint(module, ROW)
        weights = list(module.parameters())
        _, kept = joint.forward([ROW], weights, [])
        back = joint.backward(kept, [seed], weights, RATE)
    places = [tensor.data_ptr() for tensor in (*back.gradients, *back.given[:1], *weights)]
    assert len(set(places)) == len(places)
    assert torch.equal(seed, torch.ones(2, 5))


def test_joint_leaves_module_and_random_state_as_they_were() -> None:
    """Nothing is learned while it is made, and no statistics move."""
    module = _pictures()
    before, drawn = copy.deepcopy(module.state_dict()), torch.random.get_rng_state()
    _joint(module, PICTURE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.equal(torch.random.get_rng_state(), drawn)


def test_joint_is_not_made_if_a_weight_gets_no_gradient() -> None:
    """No gradient is not a gradient of zero: an optimiser leaves such a weight alone."""
    assert join(Deaf(), ROW, has_gradient=True, copies_buffers=True) is None


def test_joint_leaves_the_executor_of_the_thread_as_it_was() -> None:
    """A user's own TorchScript functions, on the same thread, are optimised as before."""
    joint = _joint(nn.Linear(5, 5), ROW)
    with pytest.raises(RuntimeError):
        joint.forward([ROW], [torch.ones(3, 3), torch.ones(5)], [])
    assert torch._C._get_graph_executor_optimize()


@pytest.mark.parametrize("capture", [True, False])
async def test_pipeline_joins_the_passes_of_what_learns_unless_told_not_to(capture: bool) -> None:
    """`capture` is one option for all that is recorded."""
    net = dense(layers=4, width=5)
    async with pa.Pipeline(net, ROW, balance=[3, 4], learner=pa.Learner(mse, SGD), capture=capture) as pipeline:
        assert [stage._runner.is_joint for stage in stage_learners(pipeline)] == [capture, capture]


async def _learned(net: nn.Module, loss: Callable[..., Tensor], *, capture: bool) -> dict[str, Tensor]:
    frame = (torch.ones(2, 6), torch.linspace(0.0, 1.0, 12).reshape(2, 6))
    learner = pa.Learner(loss, SGD)
    async with pa.Pipeline(net, frame, balance=[6, 5], learner=learner, capture=capture) as pipeline:
        assert all(stage._runner.is_joint is capture for stage in stage_learners(pipeline) if stage.has_weights)
        for number in range(6):
            await pipeline.process((frame[0] * number, frame[1]), frame[1])
        return dict(await pipeline.state_dict())


@pytest.mark.parametrize("output", [0, 1])
async def test_pipeline_goes_back_through_a_graph_if_an_output_has_no_gradient(output: int) -> None:
    """A loss that looks at one of two outputs teaches what it teaches without recordings."""

    def loss(outputs: Value, target: Tensor) -> Tensor:
        return mse(tensors_of(outputs)[output], target)

    net = TwoEnds()
    eager, recorded = await _learned(net, loss, capture=False), await _learned(net, loss, capture=True)
    assert all(torch.equal(tensor, eager[name]) for name, tensor in recorded.items())


async def test_pipeline_leaves_small_stages_to_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Joined passes save trips to memory, which weights in the cache do not need."""
    monkeypatch.undo()
    async with pa.Pipeline(dense(layers=4, width=5), ROW, balance=[3, 4], learner=pa.Learner(mse, SGD)) as pipeline:
        assert not any(stage._runner.is_joint for stage in stage_learners(pipeline))
