"""Residual networks as one flat `nn.Sequential`, to be cut anywhere, also inside a residual block.

Between the two ends of a block its layers pass the tuple ``(main, shortcut)``:

    x ── fork ── (x, x) ── downsample ── (x, s) ── conv, bn, relu … ── (y, s) ── add ── y + s ── relu

They compute what the usual definition does, with the stride of a bottleneck at its 3x3 convolution as torchvision has
it; `flat_state_dict` turns the state of a usual one into theirs.

Source: He et al., arXiv 1512.03385; as a Sequential over tuples: torchgpipe, and PARTIME, arXiv 2210.09147.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from partime_async.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Fork(nn.Module):
    """Begins a residual block: gives its input twice."""

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the value for the main branch and for the shortcut."""
        return value, value


class OnMain(nn.Module):
    """Runs a layer on the main value and passes the shortcut by."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, values: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the layer of the main value, and the shortcut."""
        main, shortcut = values
        return self.layer(main), shortcut


class OnShortcut(nn.Module):
    """Runs a layer on the shortcut and passes the main value by."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, values: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the main value, and the layer of the shortcut."""
        main, shortcut = values
        return main, self.layer(shortcut)


class Add(nn.Module):
    """Ends a residual block: adds the shortcut."""

    def forward(self, values: tuple[Tensor, Tensor]) -> Tensor:
        """Return the sum of both values."""
        main, shortcut = values
        return main + shortcut


def resnet18(*, classes: int = 1000) -> nn.Sequential:
    """Build a ResNet-18 for frames ``(batch, 3, height, width)``, with outputs ``(batch, classes)``."""
    return _resnet((2, 2, 2, 2), classes, expansion=1)


def resnet34(*, classes: int = 1000) -> nn.Sequential:
    """Build a ResNet-34 for frames ``(batch, 3, height, width)``, with outputs ``(batch, classes)``."""
    return _resnet((3, 4, 6, 3), classes, expansion=1)


def resnet50(*, classes: int = 1000) -> nn.Sequential:
    """Build a ResNet-50 for frames ``(batch, 3, height, width)``, with outputs ``(batch, classes)``."""
    return _resnet((3, 4, 6, 3), classes, expansion=4)


def resnet101(*, classes: int = 1000) -> nn.Sequential:
    """Build a ResNet-101 for frames ``(batch, 3, height, width)``, with outputs ``(batch, classes)``."""
    return _resnet((3, 4, 23, 3), classes, expansion=4)


def resnet152(*, classes: int = 1000) -> nn.Sequential:
    """Build a ResNet-152 for frames ``(batch, 3, height, width)``, with outputs ``(batch, classes)``."""
    return _resnet((3, 8, 36, 3), classes, expansion=4)


def _resnet(depths: tuple[int, ...], classes: int, expansion: int) -> nn.Sequential:
    if classes < 1:
        raise ConfigurationError(f"no network has {classes} classes. Give at least 1.")
    model = nn.Sequential()
    model.add_module("conv1", _convolution(3, 64, kernel=7, stride=2))
    model.add_module("bn1", nn.BatchNorm2d(64))
    model.add_module("relu", nn.ReLU())
    model.add_module("maxpool", nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
    channels = 64
    for group, blocks in enumerate(depths):
        width = 64 * 2**group
        for block in range(blocks):
            stride = 2 if group and block == 0 else 1
            for name, layer in _block(channels, width, width * expansion, stride):
                model.add_module(f"layer{group + 1}_{block}_{name}", layer)
            channels = width * expansion
    model.add_module("avgpool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("fc", nn.Linear(channels, classes))
    return model


def flat_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn the state_dict of a usual ResNet into that of the flat one of the same depth.

    Args:
        state: With keys as torchvision has them, ``layer1.0.conv1.weight``.

    Returns:
        The same tensors, under ``layer1_0_conv1.layer.weight``.
    """
    renamed = {}
    for key, tensor in state.items():
        name = key
        if key.startswith("layer"):
            group, block, layer, rest = key.split(".", 3)
            name = f"{group}_{block}_{layer}.layer.{rest}"
        renamed[name] = tensor
    return renamed


def _block(channels: int, width: int, out_channels: int, stride: int) -> Iterator[tuple[str, nn.Module]]:
    yield "fork", Fork()
    if stride != 1 or channels != out_channels:
        projection = _convolution(channels, out_channels, kernel=1, stride=stride)
        yield "downsample", OnShortcut(nn.Sequential(projection, nn.BatchNorm2d(out_channels)))
    if width == out_channels:
        convolutions = [_convolution(channels, width, kernel=3, stride=stride), _convolution(width, width, kernel=3)]
    else:
        convolutions = [
            _convolution(channels, width, kernel=1),
            _convolution(width, width, kernel=3, stride=stride),
            _convolution(width, out_channels, kernel=1),
        ]
    for number, convolution in enumerate(convolutions, 1):
        yield f"conv{number}", OnMain(convolution)
        yield f"bn{number}", OnMain(nn.BatchNorm2d(convolution.out_channels))
        if number < len(convolutions):
            yield f"relu{number}", OnMain(nn.ReLU())
    yield "add", Add()
    yield "relu", nn.ReLU()


def _convolution(in_channels: int, out_channels: int, *, kernel: int, stride: int = 1) -> nn.Conv2d:
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution
