"""The rival: two threads that learn as `pipedream` does, written by hand for two stages and plain SGD alone.

    first    F0  F1  B0  F2  B1  F3  B2  F4 ...     Bt: waits for the gradient of frame t, the second thread's
    second       F0B0  F1B1    F2B2    F3B3 ...

The first stage learns from frame t after the forward pass of frame t + 1, so two sets of weights are wanted at a time.
There are two modules for them, used in turns: when frame t has been gone back through, nobody needs the weights it used
any more, and the next ones are written in their place. Nothing is copied, nothing is allocated, nothing is checked, and
the gradient is on its way to the first thread before the second thread makes its own step.
"""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

import partime_async as pa

Loss = Callable[[Tensor, Tensor], Tensor]
_Tensors: TypeAlias = tuple[Tensor, ...]
_Link: TypeAlias = "queue.SimpleQueue[_Tensors | None]"


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two sets of weights of the first stage."""

    module: nn.Module
    weights: list[nn.Parameter]

    @classmethod
    def of(cls, module: nn.Module) -> _Side:
        return cls(module, list(module.parameters()))


class TwoThreads:
    """A network cut in two that learns from one frame at a time.

    Args:
        module: Its weights are changed.
        cut: Layers of the first half.
        loss: Of the output and the target.
        rate: Learning rate.
    """

    def __init__(self, module: nn.Sequential, cut: int, loss: Loss, rate: float) -> None:
        first, self._second = module[:cut], module[cut:]
        # Statistics are one and the same for both: only the weights have versions.
        twin = copy.deepcopy(first, {id(buffer): buffer for buffer in first.buffers()})
        self._sides = (_Side.of(first), _Side.of(twin))
        self._loss, self._rate = loss, rate

    def learn(self, frames: Iterable[Tensor], target: Tensor, tick: Callable[[], None] = lambda: None) -> None:
        """Learn from these frames, one after the other; afterwards the module's weights are those after the last one.

        Args:
            frames: Drawn from by the first thread.
            target: Of every frame.
            tick: Called by the second thread when it has predicted a frame.
        """
        forward: _Link = queue.SimpleQueue()
        backward: _Link = queue.SimpleQueue()
        first = threading.Thread(target=_on_one_core, args=(lambda: self._run_first(frames, forward, backward),))
        second = threading.Thread(
            target=_on_one_core, args=(lambda: self._run_second(target, forward, backward, tick),)
        )
        for thread in (first, second):
            thread.start()
        for thread in (first, second):
            thread.join()

    def _run_first(self, frames: Iterable[Tensor], forward: _Link, backward: _Link) -> None:
        side, other = self._sides
        kept: _Tensors | None = None
        for frame in frames:
            outputs = _tensors(side.module(frame))
            forward.put(tuple(tensor.detach() for tensor in outputs))
            if kept is not None:
                gradients = backward.get()
                assert gradients is not None
                found = torch.autograd.grad(kept, other.weights, gradients)
                with torch.no_grad():
                    for old, current, gradient in zip(other.weights, side.weights, found, strict=True):
                        torch.add(current, gradient, alpha=-self._rate, out=old)
            kept = outputs
            side, other = other, side
        forward.put(None)
        self._even_out(side)

    def _even_out(self, newest: _Side) -> None:
        """Give both sides the newest weights."""
        with torch.no_grad():
            for side in self._sides:
                for own, new in zip(side.weights, newest.weights, strict=True):
                    own.copy_(new)

    def _run_second(self, target: Tensor, forward: _Link, backward: _Link, tick: Callable[[], None]) -> None:
        weights = list(self._second.parameters())
        while (inputs := forward.get()) is not None:
            leaves = [tensor.requires_grad_() for tensor in inputs]
            output = self._second(leaves[0] if len(leaves) == 1 else tuple(leaves))
            tick()
            found = torch.autograd.grad(self._loss(output, target), [*weights, *leaves])
            backward.put(found[len(weights) :])
            with torch.no_grad():
                for weight, gradient in zip(weights, found, strict=False):
                    weight.add_(gradient, alpha=-self._rate)


def frames_until(is_done: Callable[[], bool], frames: Iterable[Tensor]) -> Iterator[Tensor]:
    """Give frames until it is done."""
    for frame in frames:
        if is_done():
            return
        yield frame


def _on_one_core(body: Callable[[], None]) -> None:
    torch.set_num_threads(1)  # it is thread-local
    body()


def _tensors(value: pa.Value) -> _Tensors:
    return (value,) if isinstance(value, Tensor) else value
