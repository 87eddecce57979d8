"""Flat residual networks against the usual definition, written here once more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from partime_async.errors import ConfigurationError
from partime_async.models import flat_state_dict, resnet18, resnet34, resnet50, resnet101, resnet152
from partime_async.partition.layers import chain

if TYPE_CHECKING:
    from collections.abc import Callable

    Build = Callable[..., nn.Sequential]


class Block(nn.Module):
    """A residual block, basic or bottleneck, as in the paper's figure 5."""

    def __init__(self, channels: int, width: int, expansion: int, stride: int) -> None:
        super().__init__()
        out = width * expansion
        # (in, out, kernel, stride) of each convolution of the block
        shapes = [(channels, width, 3, stride), (width, width, 3, 1)]
        if expansion > 1:
            shapes = [(channels, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
        self.depth = len(shapes)
        for number, (before, after, kernel, step) in enumerate(shapes, 1):
            convolution = nn.Conv2d(before, after, kernel, step, padding=kernel // 2, bias=False)
            self.add_module(f"conv{number}", convolution)
            self.add_module(f"bn{number}", nn.BatchNorm2d(after))
        self.downsample: nn.Sequential | None = None
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """Return the rectified sum of the shortcut and the convolutions."""
        out = x
        for number in range(1, self.depth + 1):
            out = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(out))
            if number < self.depth:
                out = F.relu(out)
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class UsualResNet(nn.Module):
    """A ResNet with torchvision's names, block by block."""

    def __init__(self, depths: list[int], expansion: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for group, depth in enumerate(depths):
            blocks = nn.Sequential()
            for block in range(depth):
                width = 64 << group
                blocks.append(Block(channels, width, expansion, 2 if group > 0 and block == 0 else 1))
                channels = width * expansion
            self.add_module(f"layer{group + 1}", blocks)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores of the classes."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, padding=1)
        for group in range(1, 5):
            x = self.get_submodule(f"layer{group}")(x)
        scores: Tensor = self.fc(x.mean((2, 3)))
        return scores


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("build", "depths", "expansion"),
    [(resnet18, [2, 2, 2, 2], 1), (resnet34, [3, 4, 6, 3], 1), (resnet50, [3, 4, 6, 3], 4)],
)
def test_resnet_equals_the_usual_definition(build: Build, depths: list[int], expansion: int, training: bool) -> None:
    """With the same weights the flat net gives the same scores, in both modes."""
    torch.manual_seed(0)
    usual = UsualResNet(depths, expansion, classes=9).train(training)
    for name, buffer in usual.named_buffers():  # statistics that make a wrong order of layers show
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    flat = build(classes=9).train(training)
    flat.load_state_dict(flat_state_dict(usual.state_dict()))
    frames = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(flat(frames), usual(frames))
    assert all(
        torch.allclose(flat.state_dict()[name], tensor) for name, tensor in flat_state_dict(usual.state_dict()).items()
    )


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (resnet18, 11_689_512),
        (resnet34, 21_797_672),
        (resnet50, 25_557_032),
        (resnet101, 44_549_160),
        (resnet152, 60_192_808),
    ],
)
def test_resnet_has_the_known_number_of_parameters(build: Build, parameters: int) -> None:
    """Each depth has the published number of parameters for 1000 classes."""
    with torch.device("meta"):
        model = build()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_resnet_is_flat_and_can_be_cut_everywhere() -> None:
    """No child is a Sequential, and no cut is forbidden: nothing is written in place, all values are flat."""
    model = resnet18(classes=3)
    assert not any(isinstance(child, nn.Sequential) for child in model)
    layers = chain(model, torch.rand(2, 3, 32, 32))
    assert len(layers) == len(model)
    assert layers.forbidden_cuts == frozenset()


def test_resnet_without_classes_raises() -> None:
    """A net for no class is refused with the number."""
    with pytest.raises(ConfigurationError, match=r"no network has 0 classes\. Give at least 1"):
        resnet18(classes=0)
