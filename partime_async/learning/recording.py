"""A stage's forward pass as one call that runs without the interpreter, and that leaves a graph to come back to.

Two threads of eager operators fight for the interpreter lock, once per operator. A recorded pass takes it once. It is a
trace whose weights and buffers are inputs, so every version of them can be passed in; and it is run operator by
operator, with nothing fused or reordered, so autograd records the very operators of the eager pass. It is used only if
outputs, gradients and buffers are, bit for bit, those of the eager pass. What Python code does beside the operators is
not in it: a module that branches on data, keeps state in Python attributes, has hooks, or functions of its own for the
backward pass, runs eagerly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from partime_async.devices.capture import equal_bits, keeps_python_state, perturbed, traced, trial_copy, unchanged
from partime_async.frame import Value
from partime_async.learning.passes import is_differentiable, tensors_of
from partime_async.learning.slots import put, slots

_Observed: TypeAlias = "list[Tensor | bool | None]"

_HOOKS = (
    *("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"),
    *("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs"),
)


class Recording:
    """A recorded forward pass of a module; its tensors are passed in.

    Args:
        run: The trace; takes inputs, parameters and buffers, one after the other.
        example: What the inputs are like.
    """

    def __init__(self, run: Callable[..., Value], example: Value) -> None:
        self._run = run
        self._kinds = [(tensor.shape, tensor.dtype) for tensor in tensors_of(example)]

    def fits(self, inputs: Sequence[Tensor]) -> bool:
        """Whether these inputs are like the example: a trace knows one shape."""
        return [(tensor.shape, tensor.dtype) for tensor in inputs] == self._kinds

    def __call__(self, inputs: Sequence[Tensor], parameters: Sequence[Tensor], buffers: Sequence[Tensor]) -> Value:
        """Run the inputs through the module, with a graph if gradients are on.

        Args:
            inputs: Of the example's shapes and dtypes.
            parameters: In the order of `module.parameters()`; they are not changed.
            buffers: In the order of `module.buffers()`; changed in place, as the module changes its own.
        """
        # The setting is this thread's. Otherwise the executor would fuse, and record operators of its own.
        before = torch._C._get_graph_executor_optimize()
        torch._C._set_graph_executor_optimize(False)
        try:
            return self._run(*inputs, *parameters, *buffers)
        finally:
            torch._C._set_graph_executor_optimize(before)


def record(module: nn.Module, example: Value, *, has_gradient: bool, copies_buffers: bool) -> Recording | None:
    """Return the module's forward pass as a recording, or None where it could differ from the eager one.

    The module, and PyTorch's random state, end as they began.

    Args:
        module: On the CPU.
        example: A value as it will come.
        has_gradient: Whether a gradient of the inputs is wanted.
        copies_buffers: Whether the pass runs on copies of the buffers: a graph that is kept wants them unchanged.
    """
    tensors = [*tensors_of(example), *module.parameters(), *module.buffers()]
    if not all(tensor.is_cpu for tensor in tensors) or _has_hooks(module):
        return None
    random_state = torch.random.get_rng_state()
    try:
        eager, other = trial_copy(module), trial_copy(module)
        with unchanged(other):
            recording = _recorded(other, example, has_gradient=has_gradient, copies_buffers=copies_buffers)
        if recording is None:
            return None
        is_tuple = not isinstance(example, Tensor)

        def recorded(inputs: list[Tensor]) -> Value:
            return recording(inputs, list(other.parameters()), list(other.buffers()))

        def run(inputs: list[Tensor]) -> Value:
            output: Value = eager(tuple(inputs) if is_tuple else inputs[0])
            return output

        for value in (example, perturbed(example)):
            for has_graph in (True, False):
                found = _observed(other, recorded, value, has_graph=has_graph, has_gradient=has_gradient)
                expected = _observed(eager, run, value, has_graph=has_graph, has_gradient=has_gradient)
                if not _is_same(found, expected):
                    return None
        return None if keeps_python_state(module, eager) else recording
    except Exception:
        # Whatever cannot be copied, compared or gone back through runs eagerly; if it cannot at all, that will be said.
        return None
    finally:
        torch.random.set_rng_state(random_state)


def _has_hooks(module: nn.Module) -> bool:
    return any(getattr(part, name, None) for part in module.modules() for name in _HOOKS)


def _recorded(module: nn.Module, example: Value, *, has_gradient: bool, copies_buffers: bool) -> Recording | None:
    parameters, buffers = list(module.parameters()), list(module.buffers())
    parameter_slots, buffer_slots = slots(module, parameters), slots(module, buffers)
    is_tuple = not isinstance(example, Tensor)
    given = _leaves(example, has_gradient=has_gradient)
    first, second = len(given), len(given) + len(parameters)

    def run(*tensors: Tensor) -> Value:
        own = [tensor.clone() for tensor in tensors[second:]] if copies_buffers else list(tensors[second:])
        put(parameter_slots, tensors[first:second])
        put(buffer_slots, own)
        try:
            output: Value = module(tensors[:first] if is_tuple else tensors[0])
            for tensor, places in zip(tensors[second:], buffer_slots, strict=True):
                # A layer may have put a new tensor in its buffer's place.
                holder, name = places[0]
                if (found := holder[name]) is not None and found is not tensor:
                    tensor.copy_(found.detach())
            return output
        finally:
            put(parameter_slots, parameters)
            put(buffer_slots, buffers)

    with torch.enable_grad():
        trace = traced(run, (*given, *parameters, *buffers))
    return None if trace is None or _calls_python(trace) else Recording(trace, example)


def _calls_python(trace: Callable[..., Value]) -> bool:
    """Whether there is a function with a backward pass of its own in it: a call of Python each."""
    graph: torch._C.Graph = trace.graph  # type: ignore[attr-defined]  # every trace has one
    return bool(graph.findAllNodes("prim::PythonOp"))  # type: ignore[attr-defined]  # torch's stubs lack it


def _leaves(value: Value, *, has_gradient: bool) -> list[Tensor]:
    return [
        tensor.detach().clone().requires_grad_(has_gradient and is_differentiable(tensor))
        for tensor in tensors_of(value)
    ]


def _observed(
    module: nn.Module, run: Callable[[list[Tensor]], Value], value: Value, *, has_graph: bool, has_gradient: bool
) -> _Observed:
    """Run a value, and back again, and return all that comes of it."""
    inputs = _leaves(value, has_gradient=has_graph and has_gradient)
    wanted = [tensor for tensor in (*module.parameters(), *inputs) if tensor.requires_grad]
    with torch.set_grad_enabled(has_graph):
        outputs = tensors_of(run(inputs))
    heads = [output for output in outputs if output.requires_grad]
    if heads and wanted:
        torch.autograd.backward(heads, [head.detach() * 0.5 + 0.25 for head in heads], inputs=wanted)
    gradients = [tensor.grad for tensor in wanted]
    for tensor in wanted:
        tensor.grad = None
    flags = [output.requires_grad for output in outputs]
    values = [tensor.detach().clone() for tensor in (*outputs, *inputs, *module.buffers())]
    return [*flags, *values, *gradients]


def _is_same(left: _Observed, right: _Observed) -> bool:
    return len(left) == len(right) and all(
        equal_bits(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one is other
        for one, other in zip(left, right, strict=True)
    )
