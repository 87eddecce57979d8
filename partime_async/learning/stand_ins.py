"""Tensors that stand in for a module's own during one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn


class Leaves:
    """Tensors that stand in for the trainable parameters, as leaves of the graphs of some passes.

    Attributes:
        tensors: One for each trainable parameter.
        users: How many passes still want them as they are.
    """

    __slots__ = ("tensors", "users")

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors
        self.users = 0


_Place: TypeAlias = tuple[dict[str, Tensor | None], str]
"""The dictionary of a module's parameters or buffers, and the name in it."""


class StandIns:
    """Lets other tensors be the parameters and buffers of a module for a while.

    A graph that waits for its gradient must not find that its tensors were written into meanwhile: by an optimiser's
    step, or by a layer that keeps statistics. So such a forward pass runs on copies.

    Args:
        module: Whose tensors; every place that holds one of them is known from here on.
    """

    def __init__(self, module: nn.Module) -> None:
        self.trainable = [tensor for tensor in module.parameters() if tensor.requires_grad]
        self._values: list[Tensor] = [*self.trainable]
        self._weight_slots = _slots(module, self.trainable)
        self._buffers = list(module.buffers())
        self._buffer_slots = _slots(module, self._buffers)
        self._leaves: Leaves | None = None
        self._spare: list[Leaves] = []

    def leaves(self) -> Leaves:
        """Return leaves with the values of the trainable parameters; the same ones until `weights_changed`.

        They are the caller's until `give_back`.
        """
        if self._leaves is None:
            # One copy per version, shared by all frames that use it: none is made while nothing is learned.
            self._leaves = self._copied()
        self._leaves.users += 1
        return self._leaves

    def give_back(self, leaves: Leaves) -> None:
        """Take note that one pass wants them no more: others may be written into them."""
        leaves.users -= 1
        if not leaves.users and leaves is not self._leaves:
            self._spare.append(leaves)

    def weights_changed(self) -> None:
        """Take note that the parameters have other values now."""
        if self._leaves is not None and not self._leaves.users:
            self._spare.append(self._leaves)
        self._leaves = None

    def _copied(self) -> Leaves:
        # Memory that was in use before: fresh one comes in pages that the system clears one by one, which costs several
        # times the copy.
        if self._spare:
            found = self._spare.pop()
            with torch.no_grad():
                torch._foreach_copy_(found.tensors, self._values)
            return found
        return Leaves([tensor.detach().clone().requires_grad_() for tensor in self.trainable])

    @contextmanager
    def in_place(self, weights: list[Tensor] | None = None, *, keeps_changes: bool) -> Iterator[None]:
        """Run with copies of the buffers, and with these leaves as the parameters.

        Args:
            weights: The tensors of what `leaves` returned; None: the parameters themselves.
            keeps_changes: Whether the buffers take what was written into the copies.
        """
        copies = [buffer.clone() for buffer in self._buffers]
        if weights is not None:
            _put(self._weight_slots, weights)
        _put(self._buffer_slots, copies)
        try:
            yield
        finally:
            if keeps_changes:
                self._take_changes()
            _put(self._weight_slots, self.trainable)
            _put(self._buffer_slots, self._buffers)

    def _take_changes(self) -> None:
        with torch.no_grad():
            for buffer, places in zip(self._buffers, self._buffer_slots, strict=True):
                # Not the copy: a layer may have put a new tensor in its buffer's place.
                holder, name = places[0]
                if (found := holder[name]) is not None:
                    buffer.copy_(found)


def _slots(module: nn.Module, tensors: Sequence[Tensor]) -> list[list[_Place]]:
    """Return, for each tensor, all places that hold it: tied ones have several."""
    places: dict[int, list[_Place]] = {id(tensor): [] for tensor in tensors}
    for part in module.modules():
        for holder in (part._parameters, part._buffers):
            for name, tensor in holder.items():
                if tensor is not None and id(tensor) in places:
                    places[id(tensor)].append((holder, name))  # type: ignore[arg-type]  # parameters are tensors
    return [places[id(tensor)] for tensor in tensors]


def _put(slots: Sequence[Sequence[_Place]], tensors: Sequence[Tensor]) -> None:
    for places, tensor in zip(slots, tensors, strict=True):
        for holder, name in places:
            holder[name] = tensor
