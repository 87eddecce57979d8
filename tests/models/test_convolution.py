"""The deep convolutional networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from partime_async.errors import ConfigurationError
from partime_async.models import deep_conv, frame_conv

if TYPE_CHECKING:
    from collections.abc import Callable


def test_deep_conv_gives_values_for_every_pixel() -> None:
    """The resolution is kept, and the outputs lie between 0 and 1."""
    output = deep_conv(out_channels=2)(torch.rand(1, 3, 16, 24))
    assert output.shape == (1, 2, 16, 24)
    assert 0 <= output.min() < output.max() <= 1


def test_deep_conv_has_the_layers_asked_for() -> None:
    """There are that many hidden convolutions with that many filters, and one for the output."""
    model = deep_conv(layers=4, channels=8, kernel=3, in_channels=1, out_channels=5)
    convolutions = [layer for layer in model if isinstance(layer, nn.Conv2d)]
    assert [layer.in_channels for layer in convolutions] == [1, 8, 8, 8, 8]
    assert [layer.out_channels for layer in convolutions] == [8, 8, 8, 8, 5]
    assert {layer.kernel_size for layer in convolutions} == {(3, 3)}
    assert [name for name, _ in model.named_children()][:3] == ["conv1", "relu1", "conv2"]


def test_deep_conv_by_default_is_that_of_the_paper() -> None:
    """30 hidden layers of 32 filters 5x5."""
    convolutions = [layer for layer in deep_conv() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 31
    assert {layer.kernel_size for layer in convolutions} == {(5, 5)}
    assert {layer.out_channels for layer in convolutions[:-1]} == {32}


def test_frame_conv_pools_on_its_way_and_gives_one_output_for_the_frame() -> None:
    """Pooling follows every so many hidden convolutions but the last, and the frame has one vector."""
    model = frame_conv(layers=6, pool_every=2, channels=4, out_channels=7)
    names = [name for name, _ in model.named_children()]
    assert names[:8] == ["conv1", "relu1", "conv2", "relu2", "pool1", "conv3", "relu3", "conv4"]
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in model) == 2
    assert model(torch.rand(2, 3, 16, 16)).shape == (2, 7, 1, 1)


@pytest.mark.parametrize("build", [deep_conv, frame_conv])
def test_deep_nets_keep_signal_and_gradient_through_thirty_layers(build: Callable[[], nn.Sequential]) -> None:
    """Two frames give clearly different features after thirty layers, and the first layer gets a gradient."""
    torch.manual_seed(0)
    model = build()
    features = model[: list(dict(model.named_children())).index("output")]
    frames = torch.rand(2, 3, 32, 32)
    values = features(frames)
    assert values.std() > 0.05
    assert (values[0] - values[1]).abs().max() > 0.05 * values.abs().max()
    torch.autograd.backward(model(frames).sum())
    gradient = model.get_parameter("conv1.weight").grad
    assert gradient is not None
    assert gradient.abs().max() > 1e-4


@pytest.mark.parametrize("options", [{"layers": 0}, {"channels": 0}, {"kernel": 4}, {"out_channels": 0}])
def test_deep_conv_of_impossible_size_raises(options: dict[str, int]) -> None:
    """Sizes below one and even kernels, which would change the resolution, are refused with the numbers."""
    for build in (deep_conv, frame_conv):
        with pytest.raises(ConfigurationError, match="Give numbers from 1, and an odd kernel"):
            build(**options)
