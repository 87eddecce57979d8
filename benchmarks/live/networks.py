"""The networks of the live benchmark: about 70 ms and 21 ms a frame on one core, and one that can be made to stall."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor, nn

from partime_async.models import deep_conv

_TRIALS = 9


class Hiccup:
    """Makes the next frame of a stalling network take longer. It belongs to the process: copies of a module find it."""

    def __init__(self) -> None:
        self._is_due = threading.Event()
        self._seconds = 0.0

    def order(self, seconds: float) -> None:
        """Let the next frame take so much longer."""
        self._seconds = seconds
        self._is_due.set()

    def take(self) -> None:
        """Take as long as was ordered, once."""
        if self._is_due.is_set():
            self._is_due.clear()
            time.sleep(self._seconds)


HICCUP = Hiccup()


@dataclass(frozen=True, slots=True)
class Network:
    """A network of the paper's kind, and the size of its frames.

    Attributes:
        name: For tables.
        layers: Convolutions 5x5 of `channels` filters.
        channels: Filters of each.
        side: Height and width of a frame in pixels.
        can_stall: Whether it has a layer in front that stalls when it is told to.
    """

    name: str
    layers: int
    channels: int
    side: int
    can_stall: bool = False

    def module(self) -> nn.Sequential:
        """Build it, the same weights each time, in evaluation mode."""
        torch.manual_seed(0)
        module = deep_conv(layers=self.layers, channels=self.channels)
        if self.can_stall:
            module = nn.Sequential(_Stall(), *module)
        return module.eval()

    def example(self) -> Tensor:
        """Return a frame."""
        return torch.rand((1, 3, self.side, self.side), generator=torch.Generator().manual_seed(1))

    def one_core_ms(self) -> float:
        """Return how long a frame takes with one intra-op thread."""
        module, frame, threads = self.module(), self.example(), torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return 1e3 * median(_timed(module, frame) for _ in range(_TRIALS))
        finally:
            torch.set_num_threads(threads)


class _Stall(nn.Module):
    def forward(self, frame: Tensor) -> Tensor:
        HICCUP.take()
        return frame


def _timed(module: nn.Module, frame: Tensor) -> float:
    began = time.perf_counter()
    with torch.inference_mode():
        module(frame)
    return time.perf_counter() - began


HEAVY = Network("conv 5x5x32 x30, 66 px", 30, 32, 66)
LIGHT = Network("conv 5x5x32 x30, 38 px", 30, 32, 38)
LIGHT_STALLING = replace(LIGHT, can_stall=True)
TINY = Network("conv 5x5x8 x4, 16 px", 4, 8, 16)
TINY_STALLING = replace(TINY, can_stall=True)
