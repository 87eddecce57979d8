"""The demo's two networks and what they learn by."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from partime_async.errors import FrameError
from partime_async.serve.demo.networks import (
    CLASSES,
    HEIGHT,
    PREDICTING_BALANCE,
    TEACHABLE_BALANCE,
    WIDTH,
    predicting_loss,
    predicting_network,
    scores,
    teachable_network,
    teaching_loss,
)


def test_teachable_network_untaught_has_no_opinion() -> None:
    """Before anything was taught, all classes in use have about the same score."""
    network = teachable_network()
    assert sum(TEACHABLE_BALANCE) == len(network)
    output = network(torch.rand(1, 3, HEIGHT, WIDTH))
    active = torch.tensor([True] * 3 + [False] * (CLASSES - 3))
    shares = torch.softmax(scores(output, active), 1)[0]
    assert shares[:3].min() > 0.25
    assert shares[3:].max() == 0.0


def test_teaching_loss_moves_only_the_classes_in_use() -> None:
    """A class that is not in use gets no gradient: to add one later changes nothing that was learned."""
    output = torch.zeros(1, CLASSES, 9, 12, requires_grad=True)
    active = torch.tensor([True, True] + [False] * (CLASSES - 2))
    teaching_loss(output, (torch.tensor([1]), active)).backward()  # type: ignore[no-untyped-call]
    assert output.grad is not None
    assert output.grad[0, :2].abs().min() > 0
    assert output.grad[0, 2:].abs().max() == 0


def test_teaching_loss_never_asks_to_be_quite_sure() -> None:
    """It is least where a class has most, and every other class in use a little: wrong labels then pull less."""
    active = torch.tensor([True] * 4 + [False] * (CLASSES - 4))
    target = torch.tensor([2]), active
    shares = torch.full((CLASSES,), 0.05)
    shares[2] = 0.85
    best = torch.log(shares)[None, :, None, None].expand(1, CLASSES, 9, 12).clone().requires_grad_()
    loss = teaching_loss(best, target)
    loss.backward()  # type: ignore[no-untyped-call]
    assert best.grad is not None
    assert float(best.grad.abs().max()) < 1e-6
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    worse = torch.randn_like(best).requires_grad_()
    teaching_loss(worse, target).backward()  # type: ignore[no-untyped-call]
    smoothed = worse.detach().clone().requires_grad_()
    entropy = functional.cross_entropy(smoothed.mean((2, 3))[:, :4], target[0], label_smoothing=0.2)
    entropy.backward()  # type: ignore[no-untyped-call]
    assert worse.grad is not None
    assert smoothed.grad is not None
    assert torch.allclose(worse.grad, smoothed.grad, atol=1e-7)


def test_predicting_network_begins_with_the_guess_that_nothing_changes() -> None:
    """Its first loss is the mean squared difference of two pictures, and there is a gradient to learn from."""
    network = predicting_network()
    assert sum(PREDICTING_BALANCE) == len(network)
    before, now = torch.rand(2, 1, 3, HEIGHT, WIDTH)
    output = network((before, torch.rand_like(before)))
    loss = predicting_loss(output, (now, before))
    assert float(loss.detach()) == pytest.approx(float(((now - before) ** 2).mean()))
    loss.backward()  # type: ignore[no-untyped-call]
    assert any(float(weight.grad.abs().max()) > 0 for weight in network.parameters() if weight.grad is not None)


def test_losses_given_the_wrong_number_of_tensors_say_so() -> None:
    """One tensor in the place of a pair, or a pair in the place of one, is refused."""
    one = torch.zeros(1, 3, HEIGHT, WIDTH)
    with pytest.raises(FrameError, match="pair"):
        predicting_loss(one, one)
    with pytest.raises(FrameError, match="one belongs"):
        predicting_loss((one, one), (one, one))
