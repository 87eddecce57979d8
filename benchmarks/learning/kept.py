"""Bytes that are kept alive for a backward pass: the memory of all tensors that can be reached, each piece once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass

from torch import Tensor


def storages(*roots: object) -> dict[int, int]:
    """Return the pieces of memory that tensors in these objects hold, directly or through their graphs.

    Args:
        roots: Tensors, records, and collections of such.

    Returns:
        Bytes by address.
    """
    found: dict[int, int] = {}
    for tensor in _tensors(roots, {}):
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    return found


def _tensors(item: object, seen: dict[int, object]) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
        yield from _saved(item.grad_fn, seen)
    elif isinstance(item, Mapping):
        for part in item.values():
            yield from _tensors(part, seen)
    elif isinstance(item, Sequence) and not isinstance(item, str):
        for part in item:
            yield from _tensors(part, seen)
    elif is_dataclass(item):
        for field in fields(item):
            yield from _tensors(getattr(item, field.name), seen)


def _saved(node: object, seen: dict[int, object]) -> Iterator[Tensor]:
    """Yield what a graph saved for its backward pass; torch shows it as attributes of the nodes."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen[id(node)] = (
            node  # kept: its Python object is made when asked for, and its id is its own only while it lives
        )
        for name in dir(node):
            if name.startswith("_saved_"):
                value = getattr(node, name)
                yield from (part for part in (value if isinstance(value, tuple) else (value,)) if _is_tensor(part))
        waiting.extend(before for before, _ in getattr(node, "next_functions", ()))


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)
