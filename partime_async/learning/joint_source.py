"""The source of a stage's two passes, written from the operators that were seen: see `joint`."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.fx import Graph, Node

Forward: TypeAlias = Callable[..., tuple[list[Tensor], list[Tensor]]]
"""Takes inputs, parameters and buffers; returns the outputs, and what the way back needs."""

Backward: TypeAlias = Callable[..., tuple[list[Tensor], list[Tensor], float]]
"""Takes what the way back needs, the gradients of the outputs, the trained parameters, a learning rate, and whether to
step; returns the gradients of the parameters, or their next values, those of the inputs, and the norm of the former."""

_SAME = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)
_CONSTANTS = (torch.dtype, torch.layout, torch.memory_format)


@dataclass(frozen=True, slots=True)
class Layout:
    """What the graph's placeholders and nodes are.

    Attributes:
        inputs: How many come first.
        parameters: How many follow.
        buffers: How many follow these; the rest are the gradients of the outputs.
        trained: Which of the parameters.
        outputs: How many there are.
        boundary: How many nodes are the forward pass, placeholders included.
        gives_tuple: Whether the outputs are a tuple.
    """

    inputs: int
    parameters: int
    buffers: int
    trained: Sequence[int]
    outputs: int
    boundary: int
    gives_tuple: bool


def compiled(graph: Graph, layout: Layout, example: Sequence[Tensor]) -> tuple[Forward, Backward] | None:
    """Return the forward and the backward pass; None: there is something in the graph that cannot be written down.

    Args:
        graph: Of both passes: takes inputs, parameters, buffers and the outputs' gradients, returns the outputs, and
            the gradients of the trained parameters and of the inputs.
        layout: What is what in it.
        example: What it takes.
    """
    source = _Writer(graph, layout, example).source()
    if source is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.export does not run without the interpreter
        unit = torch.jit.CompilationUnit(source)
    return unit.forward_pass, unit.backward_pass


class _Writer:
    def __init__(self, graph: Graph, layout: Layout, example: Sequence[Tensor]) -> None:
        self._layout = layout
        self._nodes = list(graph.nodes)
        self._position = {node: number for number, node in enumerate(self._nodes)}
        self._placeholders = [node for node in self._nodes if node.op == "placeholder"]
        self._values = _values(self._nodes, example)
        self._is_writable = True

    def source(self) -> str | None:
        kinds = {"placeholder", "call_function", "output"}
        if any(node.op not in kinds for node in self._nodes):
            return None
        text = "\n".join([*self._forward(), "", *self._backward(), ""])
        return text if self._is_writable else None

    def _parts(self) -> tuple[list[Node], list[Node]]:
        """Return the operators of the forward and of the backward pass."""
        calls = [(number, node) for number, node in enumerate(self._nodes) if node.op == "call_function"]
        boundary = self._layout.boundary
        return [node for number, node in calls if number < boundary], [
            node for number, node in calls if number >= boundary
        ]

    def _kept(self) -> list[Node]:
        """Return what is known after the forward pass, and wanted in the backward pass."""
        seeds = set(self._seeds())
        kept: dict[Node, None] = {}
        for node in (*self._parts()[1], self._nodes[-1]):
            if node.op == "output":
                wanted = map(_origin, self._results(1))
            elif node.target in _SAME:
                continue
            else:
                wanted = map(_origin, node.all_input_nodes)
            for each in wanted:
                if self._position[each] < self._layout.boundary and each not in seeds:
                    kept[each] = None
        return list(kept)

    def _results(self, number: int) -> list[Node]:
        """Return what the graph gives: 0: the outputs, 1: the gradients."""
        both = self._nodes[-1].args[0]
        assert isinstance(both, (list, tuple))
        each = both[number]
        assert isinstance(each, (list, tuple))
        return [node for node in each if isinstance(node, Node)]

    def _seeds(self) -> list[Node]:
        layout = self._layout
        return self._placeholders[layout.inputs + layout.parameters + layout.buffers :]

    def _forward(self) -> Iterator[str]:
        layout = self._layout
        yield (
            "def forward_pass(inputs: List[Tensor], parameters: List[Tensor], buffers: List[Tensor])"
            " -> Tuple[List[Tensor], List[Tensor]]:"
        )
        first, second = layout.inputs, layout.inputs + layout.parameters
        yield _unpacked(self._placeholders[:first], "inputs")
        yield _unpacked(self._placeholders[first:second], "parameters")
        yield _unpacked(self._placeholders[second : second + layout.buffers], "buffers")
        for node in self._parts()[0]:
            yield from self._written(node)
        yield f"    return {_list(map(_origin, self._results(0)))}, {_list(self._kept())}"

    def _backward(self) -> Iterator[str]:
        layout = self._layout
        yield (
            "def backward_pass(kept: List[Tensor], seeds: List[Tensor], weights: List[Tensor], rate: float,"
            " steps: bool) -> Tuple[List[Tensor], List[Tensor], float]:"
        )
        yield _unpacked(self._kept(), "kept")
        yield _unpacked(self._seeds(), "seeds")
        wanted = [_origin(node) for node in self._results(1)]
        gradients, given = wanted[: len(layout.trained)], wanted[len(layout.trained) :]
        places: dict[Node, list[int]] = {}
        for number, node in enumerate(gradients):
            places.setdefault(node, []).append(number)
        # First the seeds: one may be a weight's gradient as it is.
        for node in (*self._seeds(), *self._parts()[1]):
            if node.op == "call_function":
                yield from self._written(node)
            for number in places.get(node, ()):
                yield from self._stepped(number, node, wanted)
        yield "    norm = 0.0"
        yield "    if steps:"
        norms = ", ".join(f"norm_{number}" for number in range(len(gradients)))
        yield f"        norm = float(torch.linalg.vector_norm(torch.stack([{norms}])))"
        own = ", ".join(f"gradient_{number}" for number in range(len(gradients)))
        yield f"    return [{own}], {_list(given)}, norm"

    def _stepped(self, number: int, node: Node, wanted: Sequence[Node]) -> Iterator[str]:
        """Write the step of one parameter, while its gradient is in the cache."""
        name = f"gradient_{number}"
        if self._is_apart(number, node, wanted):
            yield f"    {name} = {node.name}"
        else:
            yield f"    {name} = torch.empty_like(weights[{number}])"
            yield f"    {name}.copy_({node.name})"
        # So that it is there either way.
        yield f"    norm_{number} = {name}"
        yield "    if steps:"
        yield f"        norm_{number} = torch.linalg.vector_norm({name})"
        yield f"        torch.add(weights[{number}], {name}, alpha=-rate, out={name})"

    def _is_apart(self, number: int, node: Node, wanted: Sequence[Node]) -> bool:
        """Whether a gradient has memory of its own, laid out as its parameter's, that nobody reads later."""
        layout, value = self._layout, self._values[node]
        assert isinstance(value, Tensor)
        like = self._values[self._placeholders[layout.inputs + layout.trained[number]]]
        assert isinstance(like, Tensor)
        if (
            node.op == "placeholder"
            or value.stride() != like.stride()
            or value.untyped_storage().nbytes() != value.nbytes
        ):
            return False
        if sum(other is node for other in wanted) > 1:
            return False
        here = self._position[node]
        for other, found in self._values.items():
            if other is node or not isinstance(found, Tensor) or _storage(found) != _storage(value):
                continue
            is_read_later = any(self._position[user] > here for user in _users(other))
            if other.op == "placeholder" or self._position[other] < layout.boundary or is_read_later:
                return False
        return all(self._position[user] <= here or user.op == "output" for user in _users(node))

    def _written(self, node: Node) -> Iterator[str]:
        if node.target in _SAME:
            return
        args = [self._value(arg) for arg in node.args]
        if node.target is operator.getitem:
            yield f"    {node.name} = {args[0]}[{args[1]}]"
            return
        if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "aten":
            self._is_writable = False
            return
        named = [f"{name}={self._value(value)}" for name, value in node.kwargs.items()]
        call = f"torch.ops.aten.{node.target.overloadpacket.__name__}({', '.join([*args, *named])})"
        yield f"    {node.name} = {call}"

    def _value(self, value: object) -> str:
        if isinstance(value, Node):
            return _origin(value).name
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(self._value, value))}]" if value else "torch.jit.annotate(List[int], [])"
        if value is None or isinstance(value, (bool, int)):
            return repr(value)
        if isinstance(value, float) and math.isfinite(value):
            return repr(value)
        if isinstance(value, _CONSTANTS):
            return str(value)
        if isinstance(value, torch.device):
            return f"torch.device({str(value)!r})"
        self._is_writable = False
        return "None"


def _values(nodes: Sequence[Node], example: Sequence[Tensor]) -> Mapping[Node, object]:
    """Return what every node gives; all of it at a time, so that no two have the same memory by chance."""
    values: dict[Node, object] = {}
    given = iter(tensor.clone(memory_format=torch.preserve_format) for tensor in example)

    def value_of(argument: object) -> object:
        if isinstance(argument, Node):
            return values[argument]
        return type(argument)(map(value_of, argument)) if isinstance(argument, (list, tuple)) else argument

    with torch.no_grad():
        for node in nodes:
            if node.op == "placeholder":
                values[node] = next(given)
            elif callable(node.target):
                args = map(value_of, node.args)
                values[node] = node.target(*args, **{name: value_of(value) for name, value in node.kwargs.items()})
    return values


def _origin(node: Node) -> Node:
    while node.target in _SAME:
        node = node.all_input_nodes[0]
    return node


def _users(node: Node) -> Iterator[Node]:
    """Yield who reads a node, also under another name."""
    for user in node.users:
        if user.target in _SAME:
            yield from _users(user)
        else:
            yield user


def _unpacked(nodes: Sequence[Node], name: str) -> str:
    return f"    {', '.join(node.name for node in nodes)}, = {name}" if nodes else "    pass"


def _list(nodes: Iterable[Node]) -> str:
    names = ", ".join(node.name for node in nodes)
    return f"[{names}]" if names else "torch.jit.annotate(List[Tensor], [])"


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
