"""The two networks of the demo: small enough to learn from every picture of a camera on an ordinary processor."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from partime_async.errors import FrameError
from partime_async.frame import Value

HEIGHT, WIDTH = 72, 96
"""What the networks see, in pixels."""

CLASSES = 9
"""Slots for classes: one for each of the keys 1 to 9."""

_INACTIVE = -1e4
"""A score that no class in use has: exp of it is 0, and no gradient flows through it."""


_DOUBT = 0.2
"""The share of what is taught that goes to all classes in use alike."""


class Centre(nn.Module):
    """Brings pictures in [0, 1] to about zero mean and unit variance, without statistics to learn."""

    def forward(self, picture: Tensor) -> Tensor:
        """Shift and scale ``(batch, 3, height, width)``."""
        return (picture - 0.45) * 4.0


def teachable_network() -> nn.Sequential:
    """Build the classifier: ``(1, 3, 72, 96)`` to a map of evidence for each class, ``(1, 9, 9, 12)``.

    The score of a class is the mean of its map (`scores`), so the map shows where the score comes from. Group
    normalisation and not batch normalisation: frames come one at a time.

    Source: class activation maps, arXiv 1512.04150; group normalisation, arXiv 1803.08494.
    """
    network = nn.Sequential(
        Centre(),
        _convolution(3, 24, 5, stride=2),
        nn.GroupNorm(4, 24),
        nn.ReLU(),
        _convolution(24, 48, 3, stride=2),
        nn.GroupNorm(4, 48),
        nn.ReLU(),
        _convolution(48, 64, 3, stride=2),
        nn.GroupNorm(4, 64),
        nn.ReLU(),
        _convolution(64, 64, 3),
        nn.ReLU(),
        nn.Conv2d(64, CLASSES, 1),
    )
    # Scores start at about 0: until it was taught something, the network has no opinion.
    nn.init.normal_(network[-1].weight, std=0.01)  # type: ignore[arg-type]
    nn.init.zeros_(network[-1].bias)  # type: ignore[arg-type]
    return network


TEACHABLE_BALANCE = [4, 9]
"""Layers of each stage: these two take about as long as each other, learning included."""


def scores(output: Tensor, active: Tensor) -> Tensor:
    """Return a score for each class, ``(batch, 9)``; classes that are not in use cannot win.

    Args:
        output: Of the teachable network, ``(batch, 9, height, width)``.
        active: Which classes are in use, bool ``(9,)``.
    """
    return output.mean((2, 3)).masked_fill(~active, _INACTIVE)


def teaching_loss(output: Value, target: Value) -> Tensor:
    """Return how far the shares of the classes in use are from smoothed labels: the divergence, 0 at best.

    A button goes down a little early and up a little late, so that some pictures are of another class than is said.
    What is never quite sure of a class is not thrown about by them.

    Args:
        output: Of the teachable network.
        target: The class, int64 ``(1,)``, and which classes are in use, bool ``(9,)``.

    Source: label smoothing, arXiv 1512.00567; against wrong labels, arXiv 2003.02819.
    """
    label, active = _pair(target)
    shares = functional.log_softmax(scores(_tensor(output), active), 1)
    wanted = active * (_DOUBT / active.sum()) + (1.0 - _DOUBT) * functional.one_hot(label, CLASSES)
    return functional.kl_div(shares, wanted, reduction="sum")


class Join(nn.Module):
    """Puts two pictures on top of each other: the newer one, and how it differs from the older one."""

    def forward(self, pictures: tuple[Tensor, Tensor]) -> Tensor:
        """Join two of ``(batch, 3, height, width)``, the newer first, to ``(batch, 6, height, width)``."""
        newer, older = pictures
        return torch.cat((newer, newer - older), 1)


def predicting_network() -> nn.Sequential:
    """Build the forecaster: two pictures, each ``(1, 3, 72, 96)``, the newer first, to how the next one will differ.

    It works at half the resolution with four times the channels, which sees as much for a quarter of the work. It
    starts from the guess that nothing changes: its last layer begins at zero.

    Source: sub-pixel convolution, arXiv 1609.05158.
    """
    network = nn.Sequential(
        Join(),
        nn.PixelUnshuffle(2),
        _convolution(24, 48, 3),
        nn.ReLU(),
        _convolution(48, 48, 3),
        nn.ReLU(),
        nn.Conv2d(48, 12, 3, padding=1),
        nn.PixelShuffle(2),
    )
    nn.init.zeros_(network[6].weight)  # type: ignore[arg-type]
    nn.init.zeros_(network[6].bias)  # type: ignore[arg-type]
    return network


PREDICTING_BALANCE = [4, 4]


def predicting_loss(output: Value, target: Value) -> Tensor:
    """Return the mean squared error of a forecast.

    Args:
        output: How the picture will differ from the one before.
        target: The picture, and the one before, each ``(1, 3, height, width)``.
    """
    picture, before = _pair(target)
    return functional.mse_loss(before + _tensor(output), picture)


def _tensor(value: Value) -> Tensor:
    if not isinstance(value, Tensor):
        raise FrameError(f"{len(value)} tensors came where one belongs. Pass what the demo's networks take.")
    return value


def _pair(value: Value) -> tuple[Tensor, Tensor]:
    if isinstance(value, Tensor) or len(value) != 2:
        raise FrameError("one tensor came where a pair belongs. Pass what the demo's networks take.")
    return value[0], value[1]


def _convolution(inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> nn.Conv2d:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return convolution
