"""Networks of every kind that can be cut, and of every kind that cannot."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from partime_async.models import resnet18

if TYPE_CHECKING:
    from partime_async.frame import Value

FRAME = torch.ones(1, 4)


class Block(nn.Module):
    """A residual block with a parameter and a buffer of its own beside its layers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.scale = nn.Parameter(torch.full((1,), 0.7))
        self.shift = nn.Buffer(torch.full((1,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the frame plus what the block makes of it."""
        return x + F.relu(self.norm(self.conv(x))) * self.scale + self.shift


class TwoEnds(nn.Module):
    """Two inputs, skip connections over several layers, two outputs, a part that is never run."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.ModuleList(Block(4) for _ in range(2))
        self.join = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(4, 5)
        self.training_only = nn.Linear(4, 2)

    def forward(self, image: Tensor, bias: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return scores and features."""
        early = self.stem(image)
        x = early
        for block in self.blocks:
            x = block(x)
        x = self.join(torch.cat([x, early], dim=1))
        if mask is not None:
            x = x * mask
        batch = x.size(0)
        return self.head(x.mean((2, 3)).view(batch, -1)) + bias, x


class Recurrent(nn.Module):
    """A layer whose result is no flat tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 4, batch_first=True)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores of the last element and the last state."""
        y, (hidden, _) = self.lstm(x)
        result: Tensor = self.out(y[:, -1] + hidden[0])
        return result


class Branching(nn.Module):
    """Takes a branch that depends on the frame."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the frame or its negative."""
        return x if x.sum() > 0 else -x


class Dictionary(nn.Module):
    """Returns a dictionary."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the double under a name."""
        return {"x": x * 2}


class Noisy(nn.Module):
    """Draws numbers outside of submodules."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the frame with noise."""
        return x + torch.rand(4)


class Remembering(nn.Module):
    """Keeps a tensor from frame to frame."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = torch.zeros(4)

    def forward(self, x: Tensor) -> Tensor:
        """Return a running sum."""
        self.memory = self.memory * 0.5 + x
        return self.memory * 2


class Frozen(nn.Module):
    """Computes a part without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the double of the frozen part."""
        with torch.no_grad():
            x = self.backbone(x)
        return x * 2


class Uncopied(nn.Module):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        """Return the frame."""
        return x


class Extra(nn.Module):
    """Has extra state in a module that a trace takes apart."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the hyperbolic tangent."""
        return torch.tanh(x)

    def get_extra_state(self) -> int:
        """Return what the state_dict holds beside tensors."""
        return 1

    def set_extra_state(self, state: int) -> None:
        """Take it back."""


def hooked() -> nn.Module:
    """Build a module with a hook of its own."""
    module = nn.Sequential(nn.Linear(4, 4))
    module.register_forward_hook(lambda *_: None)
    return module


def plain() -> tuple[nn.Module, Value]:
    """Build a Sequential and a frame."""
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(5, 2)), torch.randn(3, 6)


def nested() -> tuple[nn.Module, Value]:
    """Build a Sequential of Sequentials, one of them empty, and a frame."""
    inner = nn.Sequential(nn.Sequential(nn.Linear(5, 5), nn.GELU()), nn.Sequential(), nn.Dropout(0.5))
    return nn.Sequential(nn.Linear(6, 5), inner, nn.Linear(5, 2)), torch.randn(3, 6)


def flat_resnet() -> tuple[nn.Module, Value]:
    """Build a residual net whose layers pass tuples, and a frame."""
    return resnet18(classes=7), torch.randn(2, 3, 32, 32)


def traced() -> tuple[nn.Module, Value]:
    """Build a net with two inputs and two outputs, and a frame."""
    return TwoEnds(), (torch.randn(2, 3, 6, 6), torch.randn(5))


def recurrent() -> tuple[nn.Module, Value]:
    """Build a net with a nested value inside, and a frame."""
    return Recurrent(), torch.randn(2, 3, 6)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Copy the state of a module."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(found: object, expected: object) -> None:
    """Assert equality bit for bit."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def called(module: nn.Module, example: Value) -> object:
    """Call a module as its chain would."""
    is_packed = isinstance(example, tuple) and not isinstance(module, nn.Sequential)
    return module(*example) if is_packed else module(example)
