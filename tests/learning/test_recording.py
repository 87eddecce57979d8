"""A recorded forward pass: the eager one's outputs, gradients and buffers, bit for bit, or no recording."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import partime_async as pa
from partime_async.devices.draws import Draws
from partime_async.frame import Value
from partime_async.learning.passes import tensors_of
from partime_async.learning.recording import Recording, record
from partime_async.learning.runner import Runner
from partime_async.learning.stand_ins import StandIns
from tests.learning.school import SGD, Block, Delays, mse, stage_learners
from tests.nets import Swap, TwoEnds, dense

PICTURE = torch.linspace(-1.0, 1.0, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
ROW = torch.linspace(-1.0, 1.0, 10).reshape(2, 5)


def _norms() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))


def _partly_frozen() -> nn.Module:
    net = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    net[0].weight.requires_grad_(False)
    return net


class Tied(nn.Module):
    """Uses one weight twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.second = nn.Linear(5, 5)
        self.second.weight = self.first.weight

    def forward(self, value: Tensor) -> Tensor:
        """Return both layers, one after the other."""
        output: Tensor = self.second(torch.tanh(self.first(value)))
        return output


class Mean(nn.Module):
    """Puts a new tensor in its buffer's place."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, value: Tensor) -> Tensor:
        """Return the input without its running mean."""
        self.mean = 0.9 * self.mean + 0.1 * value.detach().mean(0)
        return value - self.mean


class Branches(nn.Module):
    """Does what the values say."""

    def forward(self, value: Tensor) -> Tensor:
        """Return the input, or twice as much."""
        return value * 2 if value.sum() > 0 else value * 1


class Counts(nn.Module):
    """Keeps a number in a Python attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, value: Tensor) -> Tensor:
        """Return the input, times the calls."""
        self.calls += 1
        return value * self.calls


class WithoutGrad(nn.Module):
    """Switches gradients off, which no trace shows."""

    def forward(self, value: Tensor) -> Tensor:
        """Return the input, and as much again without a gradient."""
        with torch.no_grad():
            other = value * 1.0
        return value + other


def _hooked() -> nn.Module:
    net = nn.Linear(5, 5)
    net.register_forward_hook(lambda module, args, output: output * 2)
    return net


RECORDED: dict[str, tuple[Callable[[], nn.Module], Value]] = {
    "dense": (lambda: dense(width=5), ROW),
    "batch norm": (_norms, PICTURE),
    "partly frozen": (_partly_frozen, ROW),
    "tied": (Tied, ROW),
    "new buffer": (Mean, ROW),
    "two tensors": (Swap, (ROW, ROW + 1)),
}
EAGER: dict[str, tuple[Callable[[], nn.Module], Value]] = {
    "branches on data": (Branches, ROW),
    "counts in Python": (Counts, ROW),
    "switches gradients off": (WithoutGrad, ROW),
    "has a hook": (_hooked, ROW),
    "a function with a backward pass of its own": (lambda: Block(Delays()), ROW),
}


@pytest.mark.parametrize("copies_buffers", [True, False])
@pytest.mark.parametrize("name", RECORDED)
def test_recording_gives_the_bits_of_the_eager_pass_on_other_weights(name: str, copies_buffers: bool) -> None:
    """Outputs, gradients and buffers of a recorded pass are the eager one's, also on weights it was not made with."""
    make, example = RECORDED[name]
    recorded = make().train()
    recording = record(recorded, example, has_gradient=True, copies_buffers=copies_buffers)
    assert recording is not None
    with torch.no_grad():
        for parameter in recorded.parameters():
            parameter.mul_(0.5)
    eager = copy.deepcopy(recorded)
    for scale in (1.0, -0.5, 2.0):
        value = [tensor.clone() * scale for tensor in tensors_of(example)]
        found = _outcome(recorded, value, lambda inputs: _replayed(recording, recorded, inputs))
        expected = _outcome(eager, value, lambda inputs: eager(*_given(inputs, example)))
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert (one is None and other is None) or (
                one is not None and other is not None and torch.equal(one, other)
            )


def _given(inputs: list[Tensor], example: Value) -> tuple[Value]:
    return (inputs[0] if isinstance(example, Tensor) else tuple(inputs),)


def _replayed(recording: Recording, module: nn.Module, inputs: list[Tensor]) -> Value:
    return recording(inputs, list(module.parameters()), list(module.buffers()))


def _outcome(module: nn.Module, value: list[Tensor], run: Callable[[list[Tensor]], Value]) -> list[Tensor | None]:
    inputs = [tensor.clone().requires_grad_() for tensor in value]
    outputs = tensors_of(run(inputs))
    torch.autograd.backward([output.sum() for output in outputs])
    gradients = [tensor.grad for tensor in (*module.parameters(), *inputs)]
    for parameter in module.parameters():
        parameter.grad = None
    return [*(output.detach() for output in outputs), *(buffer.clone() for buffer in module.buffers()), *gradients]


@pytest.mark.parametrize("name", EAGER)
def test_recording_of_a_module_that_does_more_than_operators_is_refused(name: str) -> None:
    """What a trace would miss is not recorded."""
    make, example = EAGER[name]
    assert record(make(), example, has_gradient=True, copies_buffers=True) is None


@pytest.mark.parametrize("name", [*RECORDED, *EAGER])
def test_recording_leaves_no_state_behind(name: str) -> None:
    """Weights, buffers, gradients, Python attributes and random state end as they began."""
    make, example = (RECORDED | EAGER)[name]
    module = make().train()
    before, random_state = copy.deepcopy(module.state_dict()), torch.random.get_rng_state()
    record(module, example, has_gradient=False, copies_buffers=True)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert getattr(module, "calls", 0) == 0


def test_recording_keeps_the_graphs_of_earlier_passes_intact_when_it_copies_buffers() -> None:
    """Statistics that later passes change are no part of the graph of an earlier one."""
    module = _norms().eval()  # in which the backward pass reads the statistics
    recording = record(module, PICTURE, has_gradient=False, copies_buffers=True)
    assert recording is not None
    output = _replayed(recording, module, [PICTURE])
    with torch.no_grad():
        for buffer in module.buffers():
            buffer.add_(1)
    torch.autograd.backward([tensor.sum() for tensor in tensors_of(output)])
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_recording_fits_inputs_of_the_shape_and_type_it_was_made_with_alone() -> None:
    """A trace knows one shape and one type."""
    recording = record(nn.Linear(5, 5), ROW, has_gradient=False, copies_buffers=False)
    assert recording is not None
    assert recording.fits([ROW * 2])
    assert not recording.fits([ROW[:1]])
    assert not recording.fits([ROW.double()])
    assert not recording.fits([ROW, ROW])


def test_recording_leaves_the_executor_of_the_thread_as_it_was() -> None:
    """A user's own TorchScript functions, on the same thread, are optimised as before."""
    recording = record(nn.Linear(5, 5), ROW, has_gradient=False, copies_buffers=False)
    assert recording is not None
    assert torch._C._get_graph_executor_optimize()
    with pytest.raises(RuntimeError):
        recording([ROW], [torch.ones(3, 3), torch.ones(5)], [])
    assert torch._C._get_graph_executor_optimize()


def test_runner_whose_layers_draw_does_not_record() -> None:
    """A recording would draw from PyTorch's own generator."""
    module = nn.Linear(5, 5)
    runner = Runner(module, StandIns(module), draws=Draws(module, [""], 0), writes_input=False)
    runner.record(ROW, has_gradient=False, keeps_graphs=True)
    assert not runner.is_recorded


@pytest.mark.parametrize("capture", [True, False])
async def test_pipeline_records_what_learns_unless_told_not_to(capture: bool) -> None:
    """`capture` is one option for inference and for learning, and on by default."""
    learner = pa.Learner(mse, SGD)
    net = dense(layers=4, width=5)
    async with pa.Pipeline(net, ROW, balance=[3, 4], learner=learner, capture=capture) as pipeline:
        assert [stage._runner.is_recorded for stage in stage_learners(pipeline)] == [capture, capture]
        assert (await pipeline.process(ROW, ROW)).loss is not None


async def test_pipeline_of_two_ends_learns_the_same_recorded_and_eager() -> None:
    """A network of two inputs and outputs, with statistics, learns the same weights either way."""
    net, frame = TwoEnds(), (torch.ones(2, 6), torch.linspace(0.0, 1.0, 12).reshape(2, 6))

    def loss(output: Value, target: Tensor) -> Tensor:
        return sum((mse(part, target) for part in tensors_of(output)), torch.zeros(()))

    states = []
    for capture in (True, False):
        learner = pa.Learner(loss, SGD)
        async with pa.Pipeline(net, frame, balance=[6, 5], learner=learner, capture=capture) as pipeline:
            for number in range(6):
                await pipeline.process((frame[0] * number, frame[1]), frame[1])
            states.append(await pipeline.state_dict())
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
    assert any(not torch.equal(tensor, states[0][key]) for key, tensor in net.state_dict().items())
