"""One frame run step by step, to learn what crosses each cut and which cuts two stages must not have between them.

Nothing is guessed from the kinds of the layers: the example is run once through a scratch copy of the module, and
version counters and storages are watched.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, TypeGuard, cast

import torch
from torch import Tensor, fx, nn

from partime_async.errors import PartitionError
from partime_async.partition.graph import attributes_of, changed, inputs_of, nodes_in, output_of, steps_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch.fx.node import Argument

    from partime_async.frame import Value


@dataclass(frozen=True, slots=True)
class Crossing:
    """What lives across one cut of a graph; cut c lies before step c.

    Attributes:
        nodes: The graph values that a later step still needs, in program order; at cut 0 the inputs.
        unfit: Why they cannot travel as one tensor or a flat tuple of tensors; empty if they can.
        writer: The name of a later step that writes in place into one of them; empty if none does.
    """

    nodes: tuple[fx.Node, ...]
    unfit: str
    writer: str


@dataclass(frozen=True, slots=True)
class Probe:
    """What one frame showed.

    Attributes:
        crossings: One for each step, of the cut before it.
        shared: The graph values that share memory with a parameter or buffer.
        stateful: The paths of the modules that changed an attribute of theirs.
        output: What the module returned.
    """

    crossings: tuple[Crossing, ...]
    shared: frozenset[fx.Node]
    stateful: frozenset[str]
    output: object


@contextlib.contextmanager
def undisturbed(devices: Sequence[torch.device], *, skipped: int) -> Iterator[None]:
    """Run without gradients and leave the random state of these devices as it was.

    Args:
        devices: The devices that the work inside may draw random numbers on.
        skipped: How many numbers to draw first. Work that draws gets the same numbers for the same count, and others
            for another: a number frozen at one time shows when compared with one drawn at another.
    """
    kinds = {device.type: [other.index or 0 for other in devices if other.type == device.type] for device in devices}
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind, indices in kinds.items():
            if kind not in ("cpu", "meta"):
                stack.enter_context(torch.random.fork_rng(devices=indices, device_type=kind))
        # Version counters, which show what is written in place, do not exist in inference mode.
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.no_grad())
        for device in devices:
            torch.rand(skipped, device=device)
        yield


def devices_of(module: nn.Module, example: Value) -> tuple[torch.device, ...]:
    """Return the devices that a run of the example touches, the CPU first."""
    held = [*module.parameters(), *module.buffers(), *tensors_in(example)]
    return tuple(dict.fromkeys([torch.device("cpu"), *(tensor.device for tensor in held)]))


def fresh(value: Value) -> Value:
    """Return a copy that shares no memory with `value` and has no history."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return tuple(tensor.detach().clone() for tensor in value)


def tensors_in(value: object) -> Iterator[Tensor]:
    """Yield every tensor of a value, however it is nested in tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))


def bytes_of(value: object) -> int:
    """Return the bytes of all tensors of a value."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(value))


def is_value(value: object) -> TypeGuard[Value]:
    """Tell whether something is a tensor or a flat, plain tuple of at least one tensor."""
    # A named tuple would come out of a transfer as a plain one: refused, rather than changed on the way.
    if type(value) is tuple:
        return bool(value) and all(isinstance(item, Tensor) for item in value)
    return isinstance(value, Tensor)


def told(value: object) -> str:
    """Describe a value by type and shape, for messages."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if type(value) is tuple:
        return f"({', '.join(map(told, value))})"
    for kind in (list, dict):  # fx has subclasses of its own
        if isinstance(value, kind):
            return f"a {kind.__name__}"
    return repr(value) if isinstance(value, int | float | str | None) else f"a {type(value).__name__}"


def storage_of(tensor: Tensor) -> int:
    """Return a number that tensors with common memory share while they live."""
    try:
        address = tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse and other tensors without one storage
        address = 0
    return address or id(tensor)


def layer_name(node: fx.Node) -> str:
    """Name a step: the module's path, or the operation."""
    return str(node.target) if node.op == "call_module" else node.name


def probe(graph: fx.Graph, args: Sequence[object], module: nn.Module) -> Probe:
    """Run a graph step by step and say what crosses each cut.

    Keeps no more than the values that live at the same time, so a deep net on large frames needs no more memory here
    than in an ordinary forward.

    Args:
        graph: The graph.
        args: The inputs, which belong to this function: a layer may write into them.
        module: A scratch copy of the module, which may be changed.

    Raises:
        PartitionError: A step raised.
    """
    steps, output, last_use = steps_of(graph), output_of(graph), _last_uses(graph)
    before = {name: attributes_of(child) for name, child in module.named_modules(remove_duplicate=False)}
    state = {storage_of(tensor) for tensor in itertools.chain(module.parameters(), module.buffers())}
    values: dict[fx.Node, object] = dict(zip(inputs_of(graph), args, strict=True))
    crossings: list[tuple[tuple[fx.Node, ...], str]] = []
    shared: set[fx.Node] = set()
    writers: dict[int, str] = {}
    crossed: dict[int, list[int]] = {}  # by storage that lives now: the cuts it has crossed so far
    for index, step in enumerate(steps):
        live = list(tensors_in(tuple(values.values())))
        crossed = {key: [*crossed.get(key, ()), index] for key in map(storage_of, live)}
        crossings.append((tuple(values), _unfit(values)))
        versions = [_version(tensor) for tensor in live]
        values[step] = _run_step(step, module, values)
        # A view has its base's counter, so a write through any alias shows.
        for tensor, version in zip(live, versions, strict=True):
            if _version(tensor) != version:
                writers |= {cut: layer_name(step) for cut in crossed[storage_of(tensor)] if cut not in writers}
        if any(storage_of(tensor) in state for tensor in tensors_in(values[step])):
            shared.add(step)
        values = {node: value for node, value in values.items() if last_use.get(node, -1) > index}
    facts = (Crossing(nodes, unfit, writers.get(cut, "")) for cut, (nodes, unfit) in enumerate(crossings))
    stateful = frozenset(name for name in before if changed(before[name], attributes_of(module.get_submodule(name))))
    return Probe(tuple(facts), frozenset(shared), stateful, _evaluated(output, module, values))


def _run_step(node: fx.Node, module: nn.Module, values: Mapping[fx.Node, object]) -> object:
    args = cast("tuple[object, ...]", _evaluated(node.args, module, values))
    kwargs = cast("dict[str, object]", _evaluated(node.kwargs, module, values))
    try:
        if node.op == "call_module":
            return attrgetter(str(node.target))(module)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return cast("Callable[..., object]", node.target)(*args, **kwargs)
    except Exception as error:
        raise PartitionError(
            f"layer {layer_name(node)!r} raised on the example, its input being {', '.join(map(told, args))}: "
            f"{type(error).__name__}: {error}. Give an example of the shape and type of a frame, batch dimension "
            "included, that the module itself takes."
        ) from error


def _evaluated(argument: Argument, module: nn.Module, values: Mapping[fx.Node, object]) -> object:
    def found(node: fx.Node) -> Argument:
        value = attrgetter(str(node.target))(module) if node.op == "get_attr" else values[node]
        return cast("Argument", value)

    return fx.node.map_arg(argument, found)


def _last_uses(graph: fx.Graph) -> dict[fx.Node, int]:
    steps = steps_of(graph)
    uses = {arg: index for index, step in enumerate(steps) for arg in step.all_input_nodes}
    return uses | {node: len(steps) for node in nodes_in(output_of(graph))}


def _version(tensor: Tensor) -> int:
    # A layer that enters inference mode itself gives tensors without a counter, which nothing outside may write into.
    return -1 if tensor.is_inference() else tensor._version


def _unfit(values: Mapping[fx.Node, object]) -> str:
    if len(values) == 1:
        (value,) = values.values()
        return (
            "" if is_value(value) else f"what crosses it is {told(value)}, neither a tensor nor a flat tuple of tensors"
        )
    for node, value in values.items():
        if not isinstance(value, Tensor):
            return f"{node.name!r}, which crosses it, is {told(value)} and no tensor"
    return "" if values else "no value crosses it"


def difference(expected: Callable[[], object], found: Callable[[], object], devices: Sequence[torch.device]) -> str:
    """Run both twice in a row, with the same random numbers, and say how the tensors they return differ, if they do.

    Twice, because what was kept of the first frame shows in the second.
    """
    try:
        with undisturbed(devices, skipped=2):
            right = [tensor for _ in range(2) for tensor in tensors_in(expected())]
        with undisturbed(devices, skipped=2):
            got = [tensor for _ in range(2) for tensor in tensors_in(found())]
    except Exception as error:  # either may be the one that cannot run: a check or a branch was left out
        return f"{type(error).__name__}: {error}"
    if [told(tensor) for tensor in got] != [told(tensor) for tensor in right]:
        return f"it gives {told(tuple(got))} in two frames instead of {told(tuple(right))}"
    return "" if all(map(_is_close, got, right)) else "its numbers are others"


def _is_close(found: Tensor, expected: Tensor) -> bool:
    if not expected.is_floating_point() or expected.numel() == 0:
        return torch.equal(found, expected)
    # Not bit for bit: on an accelerator even the same kernel may add in another order the second time.
    tolerance = torch.finfo(expected.dtype).eps ** 0.5 * float(expected.nan_to_num().abs().max())
    return bool(torch.isclose(found, expected, rtol=0.0, atol=tolerance, equal_nan=True).all())
