"""Layers that remember, and what they give outside of any pipeline."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import partime_async as pa

WIDTH = 5


class Gru(pa.Stateful):
    """A recurrent cell whose output is its state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(width, width)

    def initial_state(self) -> Tensor:
        """Return zeros."""
        return torch.zeros(1, self.cell.hidden_size)

    def step(self, value: pa.Value, state: pa.Value) -> tuple[pa.Value, pa.Value]:
        """Run the cell."""
        after: Tensor = self.cell(value, state)
        return after, after


class Lstm(pa.Stateful):
    """A recurrent cell with a state of two tensors, the first of them learned."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(width, width)
        self.hidden = nn.Parameter(torch.full((1, width), 0.5))

    def initial_state(self) -> tuple[Tensor, ...]:
        """Return the learned first state, and zeros."""
        return self.hidden, torch.zeros(1, self.cell.hidden_size)

    def step(self, value: pa.Value, state: pa.Value) -> tuple[pa.Value, pa.Value]:
        """Run the cell."""
        after: tuple[Tensor, ...] = self.cell(value, state)
        return after[0], after


class Tally(pa.Stateful):
    """Adds up its frames, and gives the sum; raises at a frame above the limit."""

    def __init__(self, limit: float = float("inf")) -> None:
        super().__init__()
        self.limit = limit

    def initial_state(self) -> Tensor:
        """Return zeros."""
        return torch.zeros(1, WIDTH)

    def step(self, value: pa.Value, state: pa.Value) -> tuple[pa.Value, pa.Value]:
        """Add a frame."""
        assert isinstance(value, Tensor)
        assert isinstance(state, Tensor)
        if float(value.detach().max()) > self.limit:
            raise ValueError(f"more than {self.limit}")
        after = state + value
        return after, after


class Delay(pa.Stateful):
    """Gives the frame before; its state is two frames, as they came."""

    def initial_state(self) -> tuple[Tensor, ...]:
        """Return zeros."""
        return torch.zeros(1, WIDTH), torch.zeros(1, WIDTH)

    def step(self, value: pa.Value, state: pa.Value) -> tuple[pa.Value, pa.Value]:
        """Return the newer of the two."""
        assert isinstance(value, Tensor)
        assert isinstance(state, tuple)
        return state[1], (state[1], value)


def recurrent(seed: int = 0) -> nn.Sequential:
    """Return a network of five layers, two of which remember."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), Gru(WIDTH), nn.Tanh(), Lstm(WIDTH), nn.Linear(WIDTH, WIDTH))


def frames(count: int, seed: int = 7) -> list[Tensor]:
    """Return random frames."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, WIDTH, generator=generator) for _ in range(count)]


def alone(module: nn.Module, values: Sequence[Tensor]) -> list[Tensor]:
    """Return what a copy of the module, from its first state on, gives for these frames."""
    own = copy.deepcopy(module)
    with torch.no_grad():
        return [own(value) for value in values]
