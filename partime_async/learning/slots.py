"""The places in a module that hold its parameters and buffers, to put other tensors in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor, nn

Place: TypeAlias = tuple[dict[str, Tensor | None], str]
"""The dictionary of a module's parameters or buffers, and the name in it."""


def slots(module: nn.Module, tensors: Sequence[Tensor]) -> list[list[Place]]:
    """Return, for each tensor, all places that hold it: tied ones have several."""
    places: dict[int, list[Place]] = {id(tensor): [] for tensor in tensors}
    for part in module.modules():
        for holder in (part._parameters, part._buffers):
            for name, tensor in holder.items():
                if tensor is not None and id(tensor) in places:
                    places[id(tensor)].append((holder, name))  # type: ignore[arg-type]  # parameters are tensors
    return [places[id(tensor)] for tensor in tensors]


def put(places: Sequence[Sequence[Place]], tensors: Sequence[Tensor]) -> None:
    """Put a tensor in the places of each."""
    for each, tensor in zip(places, tensors, strict=True):
        for holder, name in each:
            holder[name] = tensor
