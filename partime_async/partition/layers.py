"""A module as a chain of layers that can be cut between any two of them."""

from __future__ import annotations

import copy
import itertools
from operator import attrgetter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from partime_async.errors import PartitionError
from partime_async.partition.graph import (
    Program,
    compile_layers,
    has_own_call,
    inputs_of,
    is_plain_sequential,
    output_of,
    sequential_graph,
    steps_of,
    trace,
)
from partime_async.partition.probe import (
    Crossing,
    Probe,
    devices_of,
    difference,
    fresh,
    is_value,
    layer_name,
    probe,
    storage_of,
    told,
    undisturbed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import fx

    from partime_async.frame import Value


def chain(module: nn.Module, example: Value) -> LayerChain:
    """Cut a module into a chain of layers.

    The layers of an `nn.Sequential` are its children, nested Sequentials flattened; any other module is traced, and a
    layer is then one operation, or as many as lie between two places where only tensors live. The module is copied
    once and never touched: not its weights, buffers, modes and hooks, nor the random state. The layers keep its mode;
    what a traced `forward` reads of `self.training` itself, outside its submodules, stays as it is now.

    Args:
        module: A feed-forward module: what it computes depends on the frame and on the state of its layers.
        example: What one frame is, batch dimension included. A Sequential takes a tuple as its single value, any other
            module one tensor of it for each argument of `forward`.

    Raises:
        PartitionError: The module cannot be cut, or does not take the example; the text says where and why.

    Source: torchgpipe, whose Sequentials pass tuples from layer to layer; `torch.fx` for all other modules.
    """
    _check(module, example)
    own = _copied(module)
    devices = devices_of(own, example)
    is_sequential = is_plain_sequential(own)
    args: tuple[Value, ...] = (example,) if is_sequential or isinstance(example, Tensor) else example
    with undisturbed(devices, skipped=0):
        graph = sequential_graph(own) if is_sequential else trace(own, len(args))
    if is_sequential and not steps_of(graph):
        raise PartitionError(f"{type(module).__name__} has no layers. Give it at least one.")
    with undisturbed(devices, skipped=1):
        facts = probe(graph, [fresh(arg) for arg in args], copy.deepcopy(own))
    _check_output(module, facts.output)
    starts = [cut for cut, found in enumerate(facts.crossings) if cut == 0 or is_sequential or not found.unfit]
    program = _program(graph, facts, starts, is_packed=not is_sequential and isinstance(example, tuple))
    reasons = {cut: reason for cut, start in enumerate(starts) if (reason := _objection(facts.crossings[start]))}
    mutates_input = reasons.pop(0, "") != ""
    result = LayerChain(own, program, _tied(own, program, facts.stateful) | reasons, mutates_input=mutates_input)
    if not is_sequential:
        _check_trace(own, result.copy(), args, example)
    return result


class LayerChain:
    """The layers of a module, with one copy of its weights; made by `chain`.

    Attributes:
        names: The name of each layer: the path of its module, or of its operation in a traced one.
        forbidden_cuts: Cuts that two stages must not have between them (cut c lies before layer c); `cut_reason` says
            why. A slice may begin or end there all the same, to be measured alone.
        mutates_input: Whether a layer writes in place into the frame itself, so that each frame must be a copy.
    """

    def __init__(self, module: nn.Module, program: Program, reasons: Mapping[int, str], *, mutates_input: bool) -> None:
        self.names: tuple[str, ...] = program.names
        self.forbidden_cuts: frozenset[int] = frozenset(reasons)
        self.mutates_input = mutates_input
        self._module = module
        self._program = program
        self._reasons = dict(reasons)
        self._paths = _owned_paths(module, program)
        lost = module.state_dict().keys() ^ self.slice(0, len(self)).state_dict().keys()
        if lost:
            raise PartitionError(
                f"{sorted(lost)} of the state_dict of {type(module).__name__} belong to no layer. Keep such state "
                "in a submodule that forward calls."
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def training(self) -> bool:
        """Whether the module was in training mode when it was cut."""
        return self._module.training

    def cut_reason(self, cut: int) -> str:
        """Return why a cut is forbidden, as half a sentence; empty for a cut that is allowed."""
        return self._reasons.get(cut, "")

    def slice(self, start: int, stop: int) -> nn.Module:
        """Return layers `start` to `stop - 1` as one module from the value at cut `start` to that at cut `stop`.

        Its parameters are those of the chain's one copy, and its state_dict has the original module's keys.

        Raises:
            PartitionError: There is no such run of layers; the caller is at fault.
        """
        if not 0 <= start < stop <= len(self):
            raise PartitionError(
                f"layers {start} to {stop} cannot be taken from a chain of {len(self)}. "
                f"Choose 0 <= start < stop <= {len(self)}."
            )
        return _slice(self._module, self._paths[start:stop], compile_layers(self._program, start, stop))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state of all layers under the original module's keys, in its order.

        The tensors are those that the slices work on, as long as no slice was moved to another device.
        """
        return self._module.state_dict()

    def copy(self) -> LayerChain:
        """Return the same chain with weights of its own."""
        return LayerChain(copy.deepcopy(self._module), self._program, self._reasons, mutates_input=self.mutates_input)


class _Container(nn.Module):
    """Stands for a module of the original of which only some parts are held."""


def _slice(module: nn.Module, paths: Sequence[Sequence[str]], run: Callable[[nn.Module, Value], Value]) -> nn.Module:
    # The compiled function is the forward of a class of its own: one call less for each frame than calling it, and
    # tracing and scripting a slice find a module as any other.
    part: nn.Module = type("Layers", (_Container,), {"forward": run})()
    part.training = module.training
    held = dict.fromkeys(itertools.chain.from_iterable(paths))
    for path in held:
        if not any(parent in held for parent in _parents(path)):
            _hold(part, module, path)
    return part


def _hold(holder: nn.Module, module: nn.Module, path: str) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        module = getattr(module, parent)
        if parent not in holder._modules:
            container = _Container()
            container.training = module.training
            _add(holder, parent, container)
        holder = getattr(holder, parent)
    item = getattr(module, name)
    if isinstance(item, nn.Module):
        _add(holder, name, item)
    elif isinstance(item, nn.Parameter):
        holder.register_parameter(name, item)
    else:  # a plain tensor attribute moves to the device with the rest and stays out of the state_dict
        is_persistent = name in module._buffers and name not in module._non_persistent_buffers_set
        holder.register_buffer(name, item, persistent=is_persistent)


def _add(holder: nn.Module, name: str, module: nn.Module) -> None:
    holder.add_module(name, module)
    # Also where plain attributes are: nn.Module finds its children only after that has failed, which costs nearly a
    # microsecond for each layer and frame, a tenth of the time of a small perceptron.
    vars(holder)[name] = module


def _parents(path: str) -> Iterator[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _owned_paths(module: nn.Module, program: Program) -> tuple[tuple[str, ...], ...]:
    """Share out everything that has a place in the module's state_dict among the layers.

    What no layer uses belongs to the last one; a second name of something used belongs where the first does.
    """
    paths = [list(program.targets(layer)) for layer in range(len(program.layers))]
    covered = set(itertools.chain.from_iterable(paths))
    owners: dict[int, int] = {}
    for layer, used in enumerate(paths):
        for path in used:
            item = attrgetter(path)(module)
            owners.setdefault(id(item), layer)
            if isinstance(item, nn.Module):
                owners |= {id(part): layer for _, part in _state(item) if id(part) not in owners}
    others = [name for name, child in module.named_modules(remove_duplicate=False) if name and id(child) in owners]
    for name in [*others, *(name for name, _ in _state(module))]:
        if name not in covered and not any(parent in covered for parent in _parents(name)):
            paths[owners.get(id(attrgetter(name)(module)), -1)].append(name)
            covered.add(name)
    return tuple(map(tuple, paths))


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _tied(module: nn.Module, program: Program, stateful: frozenset[str]) -> dict[int, str]:
    """Return the cuts between layers that share a weight, a buffer or a module with Python state, with the reason."""
    reasons: dict[int, str] = {}
    first: dict[int, int] = {}
    for layer, name in enumerate(program.names):
        for path in program.targets(layer):
            for part, key in _shareable(attrgetter(path)(module), path, stateful):
                owner = first.setdefault(key, layer)
                for cut in range(owner + 1, layer + 1):
                    reasons.setdefault(
                        cut, f"layers {program.names[owner]!r} and {name!r} share {part!r}, which one stage must own"
                    )
    return reasons


def _shareable(item: nn.Module | Tensor, path: str, stateful: frozenset[str]) -> Iterator[tuple[str, int]]:
    if isinstance(item, Tensor):
        yield path, storage_of(item)
        return
    for name, part in _state(item):
        yield f"{path}.{name}", storage_of(part)
    for name, child in item.named_modules(prefix=path, remove_duplicate=False):
        if name in stateful:  # what has no state, an activation for instance, may well stand in several stages
            yield name, id(child)


def _program(graph: fx.Graph, facts: Probe, starts: Sequence[int], *, is_packed: bool) -> Program:
    steps, output = steps_of(graph), output_of(graph)
    if not steps:  # a traced module that returns its input
        return Program(((),), ("identity",), (inputs_of(graph),), facts.shared, output, is_packed=is_packed)
    layers = tuple(steps[start:stop] for start, stop in itertools.pairwise([*starts, len(steps)]))
    names: dict[str, None] = {}
    for layer in layers:
        step = next((step for step in layer if step.op == "call_module"), layer[-1])
        choices = (layer_name(step), step.name, f"{step.name}.{len(names)}")
        names[next(name for name in choices if name not in names)] = None
    crossing = tuple(facts.crossings[start].nodes for start in starts)
    return Program(layers, tuple(names), crossing, facts.shared, output, is_packed=is_packed)


def _objection(crossing: Crossing) -> str:
    if crossing.writer:
        return f"layer {crossing.writer!r} writes in place into what crosses it and belongs to the stage before"
    return crossing.unfit


def _check(module: nn.Module, example: Value) -> None:
    kind = type(module).__name__
    if not isinstance(module, nn.Module):
        raise PartitionError(f"the network is a {kind}. Give an nn.Module.")
    if isinstance(module, torch.jit.ScriptModule):
        raise PartitionError(f"{kind} is TorchScript, which cannot be taken apart. Give the module it was made from.")
    if type(module).forward is nn.Module.forward and "forward" not in vars(module):
        raise PartitionError(f"{kind} has no forward. Give an nn.Sequential, or a module that defines forward.")
    if has_own_call(module):
        raise PartitionError(
            f"{kind} has hooks, or a forward set on the object itself, which no stage would run. Put them on its "
            "layers, or give nn.Sequential(module)."
        )
    if any(nn.parameter.is_lazy(tensor) for tensor in itertools.chain(module.parameters(), module.buffers())):
        raise PartitionError(f"{kind} has lazy parameters without a shape. Run it once on a frame before.")
    if not is_value(example):
        raise PartitionError(f"the example is {told(example)}. Give a tensor or a flat tuple of tensors.")


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise PartitionError(
            f"{type(module).__name__} cannot be copied: {type(error).__name__}: {error}. Keep locks, files and results "
            "of earlier frames out of the attributes of its modules."
        ) from error


def _check_trace(module: nn.Module, traced: LayerChain, args: tuple[Value, ...], example: Value) -> None:
    scratch, whole = copy.deepcopy(module), traced.slice(0, len(traced))
    found = difference(lambda: scratch(*map(fresh, args)), lambda: whole(fresh(example)), devices_of(module, example))
    if found:
        raise PartitionError(
            f"{type(module).__name__} computes something else when followed layer by layer: {found.rstrip('.')}. "
            "Write it as an nn.Sequential of its parts: a trace forgets numbers drawn, branches taken and state kept "
            "outside of submodules."
        )


def _check_output(module: nn.Module, output: object) -> None:
    if not is_value(output):
        raise PartitionError(
            f"{type(module).__name__} returns {told(output)}. Let it return a tensor or a flat tuple of tensors."
        )
