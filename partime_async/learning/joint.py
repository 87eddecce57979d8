"""A stage's forward pass, and its backward pass with its step, as two calls that run without the interpreter.

Autograd goes back through an eager pass operator by operator, and only when it is through can somebody look at the
gradients: by then the first ones have left the cache. Here both passes are written down once, at build, as the list of
the very operators that autograd runs (`joint_source`). So no graph is built for each frame, each gradient is measured
and turned into the next weight right after it was made, and the interpreter is asked for twice a frame. Such passes are
used only if outputs, gradients, buffers and steps are, bit for bit, those of autograd.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx

from partime_async.devices.capture import equal_bits, perturbed, trial_copy
from partime_async.frame import Value
from partime_async.learning.joint_source import Backward, Forward, Layout, compiled
from partime_async.learning.passes import tensors_of
from partime_async.learning.slots import put, slots

_T = TypeVar("_T")
_TRACING = threading.Lock()
_RATE = 0.0625
"""Of the step that is tried."""


@dataclass(frozen=True, slots=True)
class Back:
    """What a backward pass gave.

    Attributes:
        gradients: Of the trained parameters; if it made the step too: their next values, in memory of their own.
        given: Of the stage's inputs; none, where nobody wants one.
        norm: 2-norm of the gradients, if it made the step too.
    """

    gradients: list[Tensor]
    given: list[Tensor]
    norm: float


class Joint:
    """The two calls.

    Args:
        forward: Takes inputs, parameters and buffers; returns the outputs, and what the way back needs.
        backward: Takes that, the outputs' gradients, the trained parameters, a learning rate, and whether to step.
        layout: What is what.

    Attributes:
        outputs: How many the module has.
    """

    def __init__(self, forward: Forward, backward: Backward, layout: Layout) -> None:
        self._forward = forward
        self._backward = backward
        self._layout = layout
        self.outputs = layout.outputs

    def forward(
        self, inputs: Sequence[Tensor], parameters: Sequence[Tensor], buffers: Sequence[Tensor]
    ) -> tuple[Value, list[Tensor]]:
        """Run the inputs through the module.

        Args:
            inputs: Of the example's shapes and dtypes.
            parameters: In the order of `module.parameters()`; they are not changed.
            buffers: In the order of `module.buffers()`; changed in place, as the module changes its own.

        Returns:
            The outputs, and what `backward` needs: all of it must stay as it is until then.
        """
        outputs, kept = _run(self._forward, list(inputs), list(parameters), list(buffers))
        return (tuple(outputs) if self._layout.gives_tuple else outputs[0]), kept

    def backward(
        self, kept: list[Tensor], seeds: Sequence[Tensor], weights: Sequence[Tensor], rate: float | None
    ) -> Back:
        """Go back.

        Args:
            kept: What `forward` returned.
            seeds: The gradient of the loss for each output.
            weights: The trained parameters as they are now; they are not changed.
            rate: Make the step of plain SGD, with this learning rate; None: only the gradients.
        """
        return Back(*_run(self._backward, kept, list(seeds), list(weights), rate or 0.0, rate is not None))


def join(module: nn.Module, example: Value, *, has_gradient: bool, copies_buffers: bool) -> Joint | None:
    """Return the passes of a module, or None where they could differ from autograd's.

    Args:
        module: On the CPU; one that `recording.record` can record. It ends as it began, and so does PyTorch's random
            state, if the module draws no random numbers.
        example: A value as it will come.
        has_gradient: Whether a gradient of the inputs is wanted.
        copies_buffers: Whether the pass runs on copies of the buffers: what is kept for the way back must not change.
    """
    try:
        expected, own = trial_copy(module), trial_copy(module)
        # PyTorch knows one tracer at a time.
        with _TRACING:
            joint = _Both(trial_copy(module), example, has_gradient=has_gradient, copies_buffers=copies_buffers).joint()
        if joint is None:
            return None
        for value in (example, perturbed(example)):
            if not _is_right(joint, own, expected, value, has_gradient=has_gradient):
                return None
    except Exception:
        # Whatever cannot be written down, or compared, is left to autograd.
        return None
    return joint


class _Both:
    """A module's forward and backward pass as one function of tensors, to be traced."""

    def __init__(self, module: nn.Module, example: Value, *, has_gradient: bool, copies_buffers: bool) -> None:
        self._module = module
        self._has_gradient = has_gradient
        self._copies_buffers = copies_buffers
        self._inputs = [tensor.detach().clone() for tensor in tensors_of(example)]
        self._is_tuple = not isinstance(example, Tensor)
        self._parameters, self._buffers = list(module.parameters()), list(module.buffers())
        self._parameter_slots = slots(module, self._parameters)
        self._buffer_slots = slots(module, self._buffers)
        self._boundary = 0

    def joint(self) -> Joint | None:
        """Trace it, and return its two halves."""
        with torch.no_grad():
            given = [tensor.clone() for tensor in self._inputs]
            found: Value = trial_copy(self._module)(tuple(given) if self._is_tuple else given[0])
        tensors = [
            *self._inputs,
            *(parameter.detach() for parameter in self._parameters),
            *(buffer.clone() for buffer in self._buffers),
            *(torch.ones_like(tensor) for tensor in tensors_of(found)),
        ]
        with torch.enable_grad():
            graph = make_fx(self._run)(*tensors).graph
        layout = Layout(
            inputs=len(self._inputs),
            parameters=len(self._parameters),
            buffers=len(self._buffers),
            trained=[number for number, parameter in enumerate(self._parameters) if parameter.requires_grad],
            outputs=len(tensors_of(found)),
            boundary=self._boundary,
            gives_tuple=not isinstance(found, Tensor),
        )
        calls = compiled(graph, layout, tensors)
        return None if calls is None else Joint(*calls, layout)

    def _run(self, *tensors: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        first = len(self._inputs)
        second = first + len(self._parameters)
        third = second + len(self._buffers)
        given = [tensor.detach().requires_grad_(self._has_gradient) for tensor in tensors[:first]]
        weights = [
            tensor.detach().requires_grad_(own.requires_grad)
            for tensor, own in zip(tensors[first:second], self._parameters, strict=True)
        ]
        outputs = self._passed(given, weights, tensors[second:third])
        mode = get_proxy_mode()
        assert mode is not None
        self._boundary = len(mode.tracer.graph.nodes)
        wanted = [*(weight for weight in weights if weight.requires_grad), *(given if self._has_gradient else ())]
        gradients = torch.autograd.grad(outputs, wanted, tensors[third:])
        return [output.detach() for output in outputs], list(gradients)

    def _passed(
        self, given: Sequence[Tensor], weights: Sequence[Tensor], buffers: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        put(self._parameter_slots, weights)
        put(self._buffer_slots, [buffer.clone() for buffer in buffers] if self._copies_buffers else buffers)
        try:
            outputs: Value = self._module(tuple(given) if self._is_tuple else given[0])
            with torch.no_grad():
                for buffer, places in zip(buffers, self._buffer_slots, strict=True):
                    # A copy, or a new tensor that a layer has put in its buffer's place.
                    holder, name = places[0]
                    if (now := holder[name]) is not None and now is not buffer:
                        buffer.copy_(now.detach())
        finally:
            put(self._parameter_slots, self._parameters)
            put(self._buffer_slots, self._buffers)
        return tensors_of(outputs)


def _is_right(joint: Joint, module: nn.Module, other: nn.Module, value: Value, *, has_gradient: bool) -> bool:
    """Compare with autograd: outputs, gradients, buffers, and the step."""
    inputs = [tensor.detach().clone().requires_grad_(has_gradient) for tensor in tensors_of(value)]
    weights = [parameter for parameter in other.parameters() if parameter.requires_grad]
    wanted = [*weights, *(inputs if has_gradient else ())]
    with torch.enable_grad():
        expected = tensors_of(other(tuple(inputs) if not isinstance(value, Tensor) else inputs[0]))
        seeds = [tensor.detach() * 0.5 + 0.25 for tensor in expected]
        torch.autograd.backward(expected, seeds, inputs=wanted)
    gradients = [tensor.grad for tensor in wanted]
    for tensor in wanted:
        tensor.grad = None
    own = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with torch.no_grad():
        given = [tensor.detach().clone() for tensor in inputs]
        outputs, kept = joint.forward(given, list(module.parameters()), list(module.buffers()))
        plain = joint.backward(kept, seeds, own, None)
        plain_found = [tensor.clone() for tensor in (*plain.gradients, *plain.given)]
        stepped = joint.backward(kept, seeds, own, _RATE)
        steps = [torch.add(weight, gradient, alpha=-_RATE) for weight, gradient in zip(own, gradients, strict=False)]
        pairs = [
            *zip(expected, tensors_of(outputs), strict=True),
            *zip(gradients, plain_found, strict=True),
            *zip(steps, stepped.gradients, strict=True),
            *zip(gradients[len(own) :], stepped.given, strict=True),
            *zip(other.buffers(), module.buffers(), strict=True),
        ]
    return all(left is not None and equal_bits(left.detach(), right) for left, right in pairs)


def _run(function: Callable[..., _T], *args: object) -> _T:
    # The setting is this thread's: nothing is to be fused, or waited for.
    before = torch._C._get_graph_executor_optimize()
    torch._C._set_graph_executor_optimize(False)
    try:
        return function(*args)
    finally:
        torch._C._set_graph_executor_optimize(before)
