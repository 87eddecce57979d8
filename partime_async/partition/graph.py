"""A module as a graph: read off a Sequential or traced, and compiled back between any two layers.

A graph's *steps* are its calls in program order. Parameters, buffers and constants are no steps: each slice fetches
those that its own calls use.
"""

from __future__ import annotations

import copy
import itertools
import linecache
import operator
import threading
import traceback
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import fx, nn

from partime_async.errors import PartitionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.fx.node import Argument

    from partime_async.frame import Value

_TRACING = threading.Lock()  # fx patches nn.Module itself while it traces: one trace at a time
_SOURCES = itertools.count()
_OWN_CODE = (str(Path(torch.__file__).parent), __file__)


@dataclass(frozen=True, slots=True)
class Program:
    """A graph cut into layers; it holds no weights and serves every copy of its module.

    Attributes:
        layers: The steps of each layer.
        names: A unique name for each layer.
        crossing: For each layer, the graph values that live across the cut before it; for layer 0 the inputs.
        shared: The graph values that share memory with a parameter or buffer.
        output: What the graph returns, in terms of its nodes.
        is_packed: Whether the value at cut 0 is a tuple with one tensor for each input.
    """

    layers: tuple[tuple[fx.Node, ...], ...]
    names: tuple[str, ...]
    crossing: tuple[tuple[fx.Node, ...], ...]
    shared: frozenset[fx.Node]
    output: Argument
    is_packed: bool

    def targets(self, layer: int) -> tuple[str, ...]:
        """Return the paths of the modules and tensors that a layer uses, each once."""
        nodes = [step for step in self.layers[layer] if step.op == "call_module"]
        nodes += [arg for step in self.layers[layer] for arg in step.all_input_nodes if arg.op == "get_attr"]
        if layer == len(self.layers) - 1:
            nodes += [node for node in nodes_in(self.output) if node.op == "get_attr"]
        return tuple(dict.fromkeys(str(node.target) for node in nodes))


def inputs_of(graph: fx.Graph) -> tuple[fx.Node, ...]:
    """Return the inputs of a graph."""
    return tuple(node for node in graph.nodes if node.op == "placeholder")


def steps_of(graph: fx.Graph) -> tuple[fx.Node, ...]:
    """Return the calls of a graph in program order."""
    return tuple(node for node in graph.nodes if node.op.startswith("call_"))


def output_of(graph: fx.Graph) -> Argument:
    """Return what a graph returns, in terms of its nodes."""
    return cast("Argument", next(node for node in graph.nodes if node.op == "output").args[0])


def nodes_in(argument: Argument) -> tuple[fx.Node, ...]:
    """Return the nodes of an argument, however it nests them."""
    nodes: list[fx.Node] = []

    def noted(node: fx.Node) -> fx.Node:
        nodes.append(node)
        return node

    fx.node.map_arg(argument, noted)
    return tuple(nodes)


def has_own_call(module: nn.Module) -> bool:
    """Tell whether a call of the module does more than its class's `forward`: hooks, or a forward set on the object."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return "forward" in vars(module) or any(getattr(module, name) for name in hooks)


def is_plain_sequential(module: nn.Module | None) -> bool:
    """Tell whether calling the module is calling its children one after the other, and nothing else."""
    return (
        isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward and not has_own_call(module)
    )


def sequential_graph(module: nn.Module) -> fx.Graph:
    """Write a plain Sequential as a graph with one step for each child, nested Sequentials flattened."""
    graph = fx.Graph()
    value = graph.placeholder("value")
    for path in _children(module, ""):
        value = graph.call_module(path, (value,))
    graph.output(value)
    return graph


def _children(module: nn.Module, prefix: str) -> Iterator[str]:
    # Not named_children(): that leaves out a module that stands in the chain a second time.
    for name, child in module._modules.items():
        if child is not None and is_plain_sequential(child):
            yield from _children(child, f"{prefix}{name}.")
        else:
            yield prefix + name


class _ModeChanged(RuntimeError):
    """Raised when a forward enters no_grad, inference_mode or autocast, which a graph would forget."""


def _modes() -> tuple[bool, ...]:
    autocast = tuple(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast)


class _Tracer(fx.Tracer):
    """Records the calls of a module's forward.

    Attributes:
        culprit: After a failure, the innermost module whose forward could not be followed; None for the root.
    """

    def __init__(self, inputs: int, whole: set[type[nn.Module]]) -> None:
        super().__init__()
        # A buffer read in forward stays a buffer: an expression of it would be computed now and frozen as a constant.
        self.proxy_buffer_attributes = True
        self.culprit: nn.Module | None = None
        self._inputs = inputs
        self._whole = whole
        self._modes: tuple[bool, ...] = ()
        self._thread = threading.get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in self._whole or has_own_call(m) or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(
        self, root_fn: Callable[..., object], is_module: bool, concrete_args: object = None
    ) -> tuple[Callable[..., object], list[object]]:
        self._modes = _modes()
        # One placeholder for each tensor of the example and no other: defaults and *args are then filled in by the
        # call itself. fx would make a placeholder of a default too, and follow the branch for "it was given".
        inputs = [self.create_proxy("placeholder", f"input_{index}", (), {}) for index in range(self._inputs)]
        return root_fn, [self.root, *inputs]

    def create_node(self, *args: object, **kwargs: object) -> fx.Node:
        if _modes() != self._modes:
            raise _ModeChanged("no_grad, inference_mode or autocast is entered inside forward, and a graph forgets it")
        return super().create_node(*args, **kwargs)  # type: ignore[arg-type]

    def getattr(self, attr: str, attr_val: object, parameter_proxy_cache: dict[str, fx.Proxy]) -> object:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(
        self, m: nn.Module, forward: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        # While tracing, every module call of the process comes by here: those of running stages must go on as usual.
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.culprit is None and not self.is_leaf_module(m, ""):
                self.culprit = m
            raise


def trace(module: nn.Module, inputs: int) -> fx.Graph:
    """Trace a module's forward into a graph.

    A submodule whose forward cannot be followed (control flow that depends on data, state kept in attributes, hooks,
    `no_grad` or `autocast` inside) becomes one step as a whole. Constants that forward makes become buffers of
    `module` that its `state_dict` leaves out.

    Args:
        module: A module that belongs to the caller of this function; it is run on placeholders, as a copy.
        inputs: How many positional arguments forward takes.

    Raises:
        PartitionError: The module's own forward cannot be followed; the module's author can change that.

    Source: `torch.fx`, symbolic tracing.
    """
    whole: set[type[nn.Module]] = set()
    while True:
        scratch = copy.deepcopy(module)
        before = {child: attributes_of(child) for child in scratch.modules()}
        tracer = _Tracer(inputs, whole)
        try:
            with _TRACING, torch.enable_grad():
                graph = tracer.trace(scratch)
        except Exception as error:
            if tracer.culprit is None:
                raise _untraceable(module, _told(error)) from error
            whole.add(type(tracer.culprit))
            continue
        stateful = {child: name for child in before for name in changed(before[child], attributes_of(child))}
        whole_before = frozenset(whole)
        whole.update(type(child) for child in stateful if child is not scratch)
        if scratch in stateful or (stateful and whole == whole_before):
            name = next(iter(stateful.values()))
            raise _untraceable(module, f"forward keeps state in the attribute {name!r}, which a graph forgets")
        if not stateful:
            _adopt_constants(graph, scratch, module)
            return graph


def attributes_of(module: nn.Module) -> dict[str, tuple[object, ...]]:
    """Return the attributes of a module, not of its submodules, for `changed`."""
    attributes: dict[str, tuple[object, ...]] = {}
    for name, value in vars(module).items():
        is_sequence = isinstance(value, list | tuple | set)
        inside = value.values() if isinstance(value, dict) else value if is_sequence else ()
        attributes[name] = (value, *inside)
    return attributes


def changed(before: dict[str, tuple[object, ...]], after: dict[str, tuple[object, ...]]) -> list[str]:
    """Return the names of attributes that are another object than before, or hold others; a trace's constants aside."""
    names = [name for name in before.keys() | after.keys() if not name.startswith("_tensor_constant")]
    return [name for name in names if list(map(id, before.get(name, ()))) != list(map(id, after.get(name, ())))]


def _adopt_constants(graph: fx.Graph, scratch: nn.Module, module: nn.Module) -> None:
    for node in graph.nodes:
        if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):
            constant = getattr(scratch, str(node.target))
            if constant.requires_grad:
                raise _untraceable(module, "forward computes with weights in a way that a graph takes for a constant")
            module.register_buffer(str(node.target), constant, persistent=False)


def _told(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    places = [frame for frame in frames if not frame.filename.startswith(_OWN_CODE)]
    place = f" ({places[-1].filename}:{places[-1].lineno}: {places[-1].line})" if places else ""
    kind = "" if isinstance(error, _ModeChanged) else f"{type(error).__name__}: "
    return f"{kind}{error}{place}"


def _untraceable(module: nn.Module, why: str) -> PartitionError:
    return PartitionError(
        f"{type(module).__name__} cannot be followed layer by layer: {why.rstrip('.')}. Write it as an nn.Sequential "
        "of its parts, or move that code into a submodule of its own, which then stays in one piece."
    )


def compile_layers(program: Program, start: int, stop: int) -> Callable[[nn.Module, Value], Value]:
    """Compile consecutive layers to a function of a module, whose weights it uses, and the value at cut `start`."""
    graph = fx.Graph()
    value = graph.placeholder("value")
    crossing = program.crossing[start]
    copies: dict[fx.Node, fx.Node] = {}
    if len(crossing) == 1 and not (start == 0 and program.is_packed):
        copies[crossing[0]] = value
    else:
        for index, node in enumerate(crossing):
            copies[node] = graph.call_function(operator.getitem, (value, index))

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:  # a parameter, buffer or constant: fetched where it is first used
            copies[node] = graph.node_copy(node)
        return copies[node]

    for layer in program.layers[start:stop]:
        for node in layer:
            copies[node] = graph.node_copy(node, copied)

    def leaving(node: fx.Node) -> fx.Node:
        # The stage may change its state for the next frame while this frame's value is still on its way.
        is_shared = node in program.shared or node.op == "get_attr"
        return graph.call_function(_unshared, (copied(node),)) if is_shared else copied(node)

    if stop == len(program.layers):
        graph.output(fx.node.map_arg(program.output, leaving))
    else:
        nodes = tuple(map(leaving, program.crossing[stop]))
        graph.output(nodes[0] if len(nodes) == 1 else nodes)
    return _executable(graph, f"<layers {start} to {stop - 1}, no. {next(_SOURCES)}>")


def _unshared(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(map(_unshared, value)) if type(value) is tuple else value
    return value.clone() if isinstance(value, torch.Tensor) else value


def _executable(graph: fx.Graph, filename: str) -> Callable[[nn.Module, Value], Value]:
    # Not fx.GraphModule: its call wrapper prints to stderr and drops the traceback when a layer raises.
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(compile(code.src, filename, "exec"), names)
    function = cast("Callable[[nn.Module, Value], Value]", names["forward"])
    linecache.cache[filename] = (len(code.src), None, code.src.splitlines(keepends=True), filename)
    weakref.finalize(function, linecache.cache.pop, filename, None)
    return function
