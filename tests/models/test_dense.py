"""Multi-layer perceptrons."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from partime_async.errors import ConfigurationError
from partime_async.models import mlp


def test_mlp_has_the_layers_asked_for() -> None:
    """Linear layers of the sizes given, with a ReLU between every two."""
    model = mlp(layers=3, width=8, in_features=5, out_features=2)
    shapes = [(layer.in_features, layer.out_features) for layer in model if isinstance(layer, nn.Linear)]
    assert shapes == [(5, 8), (8, 8), (8, 2)]
    assert [name for name, _ in model.named_children()] == ["linear1", "relu1", "linear2", "relu2", "linear3"]
    assert model(torch.rand(4, 5)).shape == (4, 2)


def test_mlp_by_default_is_as_wide_at_both_ends() -> None:
    """Input and output have the width of the hidden layers."""
    assert mlp(layers=1, width=6)(torch.rand(1, 6)).shape == (1, 6)


def test_mlp_keeps_signal_and_gradient_through_sixteen_layers() -> None:
    """The first layer gets a gradient, and the output has a size like the input's."""
    torch.manual_seed(0)
    model = mlp(width=64)
    output = model(torch.randn(8, 64))
    assert 0.1 < output.std() < 10
    torch.autograd.backward(output.sum())
    gradient = model.get_parameter("linear1.weight").grad
    assert gradient is not None
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("options", [{"layers": 0}, {"width": 0}, {"in_features": 0}, {"out_features": -1}])
def test_mlp_of_impossible_size_raises(options: dict[str, int]) -> None:
    """Sizes below one are refused with the numbers."""
    with pytest.raises(ConfigurationError, match="Give numbers from 1"):
        mlp(**options)
