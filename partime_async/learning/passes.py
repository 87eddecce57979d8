"""A forward pass that a late gradient comes back to, and what is done with the values in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from partime_async.frame import Value
from partime_async.learning.stand_ins import Leaves

NONE: tuple[Tensor, ...] = ()
"""The gradient that does not exist: before the start, without a target, while learning is frozen."""


@dataclass(frozen=True, slots=True)
class Before:
    """What a forward pass found.

    Attributes:
        draws: Where the stage's random numbers were; None: it draws none.
        states: What the layers that remember remembered.
    """

    draws: Mapping[torch.device, Tensor] | None = None
    states: tuple[Value | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Kept:
    """What a pass leaves for the way back if there is no graph; see `joint`.

    Attributes:
        tensors: What the backward pass reads.
        buffers: The module's buffers as the pass found them, where it may have to be done again with a graph.
    """

    tensors: list[Tensor]
    buffers: Sequence[Tensor]


@dataclass(slots=True)
class Pass:
    """A forward pass to come back to.

    Attributes:
        inputs: What the stage got, as leaves of the graph where there is one.
        is_tuple: Whether it got them as a tuple.
        outputs: What it gave, with the graph or as leaves; None under `replay`, where the pass is done again.
        leaves: What stood in for the stage's parameters; None: the parameters themselves.
        version: Weight version in it.
        loss: The loss, at the last stage and if it is known already.
        before: What it found, under `replay`.
        kept: What is there instead of a graph; None: a graph.
    """

    inputs: tuple[Tensor, ...]
    is_tuple: bool
    outputs: Value | None
    leaves: Leaves | None
    version: int
    loss: Tensor | None
    before: Before
    kept: Kept | None = None

    def let_go(self) -> None:
        """Let go of the graph."""
        self.outputs = self.loss = self.kept = None


def paired(outputs: Value, seeds: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor | None]]:
    """Return the outputs that have a gradient to go back with, and these gradients."""
    pairs = [
        (output, seed)
        for output, seed in zip(tensors_of(outputs), seeds, strict=True)
        if output.requires_grad and seed is not None
    ]
    return [output for output, _ in pairs], [seed for _, seed in pairs]


def ends(outputs: Value, heads: Sequence[Tensor], seeds: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return the gradient for each output of a pass without a graph.

    Args:
        outputs: Leaves, that the heads depend on, or are.
        heads: Where the way back begins: outputs, or the loss.
        seeds: The gradient for each head; None: it is the loss.
    """
    leaves = list(tensors_of(outputs))
    if list(seeds) == [None]:
        return list(torch.autograd.grad(list(heads), leaves, allow_unused=True))
    known = {id(head): seed for head, seed in zip(heads, seeds, strict=True)}
    return [known.get(id(leaf)) for leaf in leaves]


def tensors_of(value: Value) -> tuple[Tensor, ...]:
    """Return the tensors of a value."""
    return (value,) if isinstance(value, Tensor) else value


def _like(value: Value, tensors: Sequence[Tensor]) -> Value:
    return tensors[0] if isinstance(value, Tensor) else tuple(tensors)


def detached(value: Value) -> Value:
    """Return the value without its graph, in the same memory."""
    return _like(value, [tensor.detach() for tensor in tensors_of(value)])


def copied(value: Value, *, device: torch.device | None = None) -> Value:
    """Return the value without its graph, in memory of its own."""
    return _like(value, [tensor.detach().to(device or tensor.device, copy=True) for tensor in tensors_of(value)])


def requiring_grad(value: Value) -> Value:
    """Return the value as leaves of a new graph."""
    return _like(value, [tensor.detach().requires_grad_(is_differentiable(tensor)) for tensor in tensors_of(value)])


def is_differentiable(tensor: Tensor) -> bool:
    """Whether a tensor of this type can have a gradient."""
    return tensor.is_floating_point() or tensor.is_complex()


def emitted(inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the gradient of each input, without elements if it has none, apart from the parameters' gradients."""
    found = [tensor.grad for tensor in inputs]
    if all(gradient is None for gradient in found):
        return tuple(tensor.new_empty(0) for tensor in inputs)
    # One may be a view of the other, and the stage before reads it while this one steps, and writes there.
    taken = {_storage(parameter.grad) for parameter in parameters if parameter.grad is not None}
    return tuple(
        tensor.new_empty(0) if gradient is None else gradient.clone() if _storage(gradient) in taken else gradient
        for tensor, gradient in zip(inputs, found, strict=True)
    )


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0
