"""The step of plain SGD without the optimiser: the same bits, or not taken; and where the versions are kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import partime_async as pa
from partime_async.learning import StageLearner
from partime_async.learning.plain_step import are_alike, are_apart, is_simple, norm, plain_rate, step_over
from partime_async.learning.stand_ins import StandIns
from partime_async.learning.stepper import Stepper
from tests.learning.school import SGD, mse


def _parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((7, 33), (33,), (2, 3, 5, 5))]


def _gradients(seed: int) -> list[Tensor]:
    return [parameter.detach() for parameter in _parameters(seed)]


def test_plain_step_writes_the_bits_of_the_optimiser_over_the_gradients() -> None:
    """The new weights are those of `torch.optim.SGD`, also with an odd rate and with signed zeros."""
    weights, expected = _parameters(), _parameters()
    optimizer = torch.optim.SGD(expected, lr=0.1 / 3)
    for seed in range(1, 5):
        gradients = _gradients(seed)
        gradients[0][0, :4] = torch.tensor([0.0, -0.0, 1e-42, -3e38])
        for parameter, gradient in zip(expected, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        step_over(weights, gradients, 0.1 / 3)
        for number, (weight, found) in enumerate(zip(weights, gradients, strict=True)):
            weight.data = found
            assert torch.equal(found.view(torch.int32), expected[number].detach().view(torch.int32))


def test_norm_has_the_bits_of_torch() -> None:
    """The norm is what `clip_grad_norm_` would report."""
    gradients = _gradients(1)
    assert norm(gradients) == float(nn.utils.get_total_norm(gradients))
    gradients[1][3] = math.nan
    assert math.isnan(norm(gradients))


def _hooked(parameters: list[nn.Parameter]) -> Optimizer:
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


def _wrapped(parameters: list[nn.Parameter]) -> Optimizer:
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    vars(optimizer)["step"] = lambda: None
    return optimizer


def _of_two_rates(parameters: list[nn.Parameter]) -> Optimizer:
    optimizer = torch.optim.SGD(parameters[:1], lr=0.2)
    optimizer.add_param_group({"params": parameters[1:], "lr": 0.1})
    return optimizer


class Own(torch.optim.SGD):
    """An optimiser of a user's own."""


NOT_PLAIN: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "adam": partial(torch.optim.Adam, lr=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.5),
    "weight decay": partial(torch.optim.SGD, lr=0.1, weight_decay=0.5),
    "maximize": partial(torch.optim.SGD, lr=0.1, maximize=True),
    "rate in a tensor": lambda parameters: torch.optim.SGD(parameters, lr=torch.tensor(0.1), foreach=False),
    "a hook": _hooked,
    "a step of its own": _wrapped,
    "two rates": _of_two_rates,
    "a subclass": Own,
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_plain_rate_of_any_other_optimiser_is_none(name: str) -> None:
    """What does more than subtract the gradients, or may, steps itself."""
    assert plain_rate(NOT_PLAIN[name](_parameters())) is None


def test_plain_rate_follows_the_groups() -> None:
    """The rate is the one of now, also under a scheduler, which only counts the steps."""
    optimizer = torch.optim.SGD(_parameters(), lr=0.1)
    assert plain_rate(optimizer) == 0.1
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.param_groups[0]["lr"] = 0.05
    assert plain_rate(optimizer) == 0.05


def test_gradients_are_written_over_only_where_nobody_shares_them() -> None:
    """Sparse ones, other layouts and shared memory are told apart."""
    one, other = _gradients(1)[0], _gradients(2)[0]
    assert is_simple([one, other])
    assert not is_simple([one, other.to_sparse()])
    assert not is_simple([one, other.double()])
    assert are_alike([one], [other])
    assert not are_alike([one.t()], [other.t().contiguous()])
    assert are_apart([one, other])
    assert not are_apart([one, one.view(-1)])


def test_stage_whose_gradients_share_memory_learns_all_the_same() -> None:
    """A weight's gradient that is a view of the input's: the stage before gets what it was, not the new weights."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(4))

        def forward(self, value: Tensor) -> Tensor:
            """Return the input, shifted."""
            return value + self.shift.view(1, 4)

    for graph, lag in (("stash", 1), ("stash", 0)):
        module = Shifted()
        stage = StageLearner(pa.Learner(mse, SGD, rule=pa.UpdateRule(graph, lag)), module, 1, 3)
        seed = torch.arange(1.0, 5.0).reshape(1, 4)
        emitted: tuple[Tensor, ...] = ()
        for event in range(lag + 1):
            stage.forward(event, torch.ones(1, 4))
            emitted = stage.backward(event, (seed.clone(),) if event >= lag else ())
        assert torch.equal(emitted[0], seed)
        assert torch.allclose(module.shift.detach(), -0.05 * seed.flatten())


def test_plain_stage_whose_gradient_is_not_finite_keeps_its_weights() -> None:
    """A gradient that is not finite reaches no weight."""
    module = nn.Linear(4, 4)
    before = module.weight.detach().clone()
    stage = StageLearner(pa.Learner(mse, SGD), module, 0, 2)
    stage.forward(0, torch.ones(1, 4))
    stage.backward(0)
    stage.forward(1, torch.ones(1, 4))
    assert stage.backward(1, (torch.full((1, 4), math.inf),)) == ()
    assert torch.equal(module.weight, before)
    assert stage.statistics().skipped == 1


def _stepper(learner: pa.Learner, module: nn.Module) -> tuple[Stepper, StandIns]:
    stand_ins = StandIns(module)
    return Stepper(learner, 0, stand_ins), stand_ins


@pytest.mark.parametrize("optimizer", [SGD, partial(torch.optim.Adam, lr=0.1)], ids=["plain", "copied"])
def test_step_leaves_the_leaves_of_a_kept_graph_as_they_are(optimizer: Callable[..., Optimizer]) -> None:
    """Neither plain SGD, which moves on, nor any other optimiser writes into weights that a graph waits with."""
    module = nn.Linear(4, 4)
    stepper, stand_ins = _stepper(pa.Learner(mse, optimizer), module)
    leaves = stand_ins.leaves()
    before = [leaf.detach().clone() for leaf in leaves.tensors]
    for _ in range(3):
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        assert stepper.step() is not None
        stepper.clear()
    assert all(torch.equal(leaf, value) for leaf, value in zip(leaves.tensors, before, strict=True))
    assert all(not torch.equal(new, old) for new, old in zip(module.parameters(), before, strict=True))
    stand_ins.give_back(leaves)


def test_copies_of_the_weights_are_made_in_memory_that_was_used_before() -> None:
    """Under lag 1 and Adam, the weights go to and fro between two places."""
    module = nn.Linear(4, 4)
    stepper, stand_ins = _stepper(pa.Learner(mse, partial(torch.optim.Adam, lr=0.1)), module)
    kept, places = stand_ins.leaves(), []
    for _ in range(6):
        newest = stand_ins.leaves()
        stand_ins.give_back(kept)
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        stepper.step()
        kept = newest
        places.append(module.weight.data_ptr())
    assert len(set(places)) == 2


def test_scheduler_steps_behind_every_plain_step_without_a_warning() -> None:
    """The first step is the optimiser's own, for the scheduler looks whether there was one."""
    module = nn.Linear(4, 4)
    halving = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    stepper, _ = _stepper(pa.Learner(mse, SGD, scheduler=halving), module)
    before = module.weight.detach().clone()
    for _ in range(3):
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        stepper.step()
        stepper.clear()
    assert torch.allclose(before - module.weight.detach(), torch.tensor(0.05 * 1.75))


@pytest.mark.parametrize("option", ["hook", "clip"])
def test_hook_and_clipping_come_before_the_step(option: str) -> None:
    """With either, the optimiser steps itself, behind it."""

    def zero(stage: int, parameters: object) -> None:
        for parameter in module.parameters():
            assert parameter.grad is not None
            parameter.grad.zero_()

    module = nn.Linear(4, 4)
    before = module.weight.detach().clone()
    learner = pa.Learner(mse, SGD, gradient_hook=zero) if option == "hook" else pa.Learner(mse, SGD, clip_norm=1e-9)
    stepper, _ = _stepper(learner, module)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    stepper.step()
    assert torch.allclose(module.weight.detach(), before, atol=1e-8)
