"""The networks that are measured: those of the library, with fixed weights, in evaluation mode, one frame at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from partime_async.models import build

_FRAMES = 8


@dataclass(frozen=True, slots=True)
class Net:
    """A network and the frames it gets.

    Attributes:
        name: For tables.
        model: Name in `partime_async.models`.
        shape: Of a frame, batch dimension included.
        options: What the model is built with.
    """

    name: str
    model: str
    shape: tuple[int, ...]
    options: Mapping[str, object] = field(default_factory=dict)

    def module(self) -> nn.Sequential:
        """Build the network; the same weights each time."""
        torch.manual_seed(0)
        module = build(self.model, **self.options).eval()
        assert isinstance(module, nn.Sequential)
        return module

    def frames(self) -> Sequence[Tensor]:
        """Return a few different frames, values 0 to 1, to be taken in turns; the same each time."""
        generator = torch.Generator().manual_seed(1)
        return [torch.rand(self.shape, generator=generator) for _ in range(_FRAMES)]


CONV_16 = Net("conv 5x5x32 x30, 16 px", "conv-a", (1, 3, 16, 16))
CONV_32 = Net("conv 5x5x32 x30, 32 px", "conv-a", (1, 3, 32, 32))
CONV_64 = Net("conv 5x5x32 x30, 64 px", "conv-a", (1, 3, 64, 64))
MLP_256 = Net("MLP 16x256", "mlp", (1, 256), {"width": 256})
MLP_1024 = Net("MLP 16x1024", "mlp", (1, 1024), {"width": 1024})
RESNET_50 = Net("ResNet-50, 64 px", "resnet50", (1, 3, 64, 64))

# Small enough to be seen to run on a machine that is busy with other things.
TINY = Net("conv 5x5x8 x4, 16 px", "conv-a", (1, 3, 16, 16), {"layers": 4, "channels": 8})

ALL = (CONV_16, CONV_32, CONV_64, MLP_256, MLP_1024, RESNET_50)
