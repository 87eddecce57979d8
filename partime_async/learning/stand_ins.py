"""The weights of a stage in several versions, and tensors that stand in for a module's own during one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from partime_async.learning.slots import put, slots


class Leaves:
    """Tensors that stand in for the trainable parameters, as leaves of the graphs of some passes.

    Args:
        values: One for each trainable parameter; the leaves have their memory.

    Attributes:
        tensors: The leaves.
        users: How many passes still want them as they are.
    """

    __slots__ = ("tensors", "users")

    def __init__(self, values: Sequence[Tensor]) -> None:
        # `data`, not `detach`: in-place steps of the parameters, in other memory by then, must not count as theirs.
        self.tensors = [value.data.requires_grad_() for value in values]
        self.users = 0


class StandIns:
    """Lets other tensors be the parameters and buffers of a module for a while.

    A graph that waits for its gradient must not find that its tensors were written into meanwhile: by an optimiser's
    step, or by a layer that keeps statistics. So such a forward pass runs on a copy of the buffers, and on leaves that
    have the parameters' memory; and before the parameters change, they move to other memory, if a graph wants theirs:

        event               1     2     3     4
        forward, leaves in  a     b     c     a  ...    the parameters' memory: always the newest
        step, into          b     c     a     b  ...    where no graph is: a gradient's memory, or a used set's

    Args:
        module: Whose tensors; every place that holds one of them is known from here on.
    """

    def __init__(self, module: nn.Module) -> None:
        self.trainable = [tensor for tensor in module.parameters() if tensor.requires_grad]
        self._parameters = list(module.parameters())
        self._is_all = len(self.trainable) == len(self._parameters)
        self._weight_slots = slots(module, self.trainable)
        self._buffers = list(module.buffers())
        self._buffer_slots = slots(module, self._buffers)
        self._leaves: Leaves | None = None
        self._retired: list[Tensor] = []

    def leaves(self) -> Leaves:
        """Return leaves with the values of the trainable parameters; they are the caller's until `give_back`."""
        if self._leaves is None:
            self._leaves = Leaves(self.trainable)
        self._leaves.users += 1
        return self._leaves

    def give_back(self, leaves: Leaves) -> None:
        """Take note that one pass wants them no more: others may be written into them."""
        leaves.users -= 1
        if not leaves.users and leaves is not self._leaves:
            self._retire([leaf.data for leaf in leaves.tensors])

    def let_go(self) -> None:
        """Take note that no pass up to now wants its leaves any more, and that the parameters may have other values."""
        self._leaves = None

    def move_to(self, values: Sequence[Tensor]) -> None:
        """Let the parameters be these tensors, which nobody else writes into."""
        if self._leaves is None or not self._leaves.users:
            self._retire([parameter.data for parameter in self.trainable])
        self._leaves = None
        for parameter, value in zip(self.trainable, values, strict=True):
            parameter.data = value

    def move_away(self) -> None:
        """Let the parameters be written into: if a pass wants their memory as it is, they move to a copy."""
        if self._leaves is not None and self._leaves.users:
            values = [parameter.data for parameter in self.trainable]
            # Memory that was in use before: fresh one comes in pages that the system clears one by one, which costs
            # several times the copy.
            copies = self._retired or [torch.empty_like(value) for value in values]
            self._retired = []
            torch._foreach_copy_(copies, values)
            self.move_to(copies)

    def _retire(self, values: list[Tensor]) -> None:
        """Keep memory that nobody wants, until there is more of it: for a copy, or for the gradients to come."""
        self._retired = values

    def parameters(self, leaves: Leaves | None) -> Sequence[Tensor]:
        """Return the tensors that stand for all parameters of the module, those that are not trained included."""
        if leaves is None:
            return self._parameters
        if self._is_all:
            return leaves.tensors
        trained = iter(leaves.tensors)
        return [next(trained) if each.requires_grad else each for each in self._parameters]

    def buffers(self) -> list[Tensor]:
        """Return the module's buffers as they are now; a layer may have put a new tensor in its buffer's place."""
        found = [places[0][0][places[0][1]] for places in self._buffer_slots]
        return [own if now is None else now for own, now in zip(self._buffers, found, strict=True)]

    @contextmanager
    def in_place(self, leaves: Leaves | None = None, *, keeps_changes: bool) -> Iterator[None]:
        """Run with copies of the buffers, and with these leaves as the parameters.

        Args:
            leaves: What `leaves` returned; None: the parameters themselves.
            keeps_changes: Whether the buffers take what was written into the copies.
        """
        copies = [buffer.clone() for buffer in self._buffers]
        if leaves is not None:
            put(self._weight_slots, leaves.tensors)
        put(self._buffer_slots, copies)
        try:
            yield
        finally:
            if keeps_changes:
                self._take_changes()
            put(self._weight_slots, self.trainable)
            put(self._buffer_slots, self._buffers)

    def _take_changes(self) -> None:
        with torch.no_grad():
            for buffer, places in zip(self._buffers, self._buffer_slots, strict=True):
                # Not the copy: a layer may have put a new tensor in its buffer's place.
                holder, name = places[0]
                if (found := holder[name]) is not None:
                    buffer.copy_(found)
