"""How a stage's layers run for learning: recorded or not, on which weights, with which states and random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from partime_async.devices.draws import Draws
from partime_async.frame import Value
from partime_async.learning.joint import Back, Joint, join
from partime_async.learning.passes import Before, Kept, Pass, requiring_grad
from partime_async.learning.plain_step import is_simple
from partime_async.learning.recording import Recording, record
from partime_async.learning.stand_ins import Leaves, StandIns
from partime_async.stateful import stateful_layers, states_of

JOINT_FROM_BYTES = 4 * 2**20
"""Weights of a stage from which on its backward pass is recorded, too. What that saves is trips to memory; weights that
stay in the cache learn no faster by it, and small stages that hand over often rather slower."""


class Runner:
    """Runs a stage's layers; used on the stage's device thread.

    Args:
        module: The stage's layers, on their device.
        stand_ins: The module's tensors.
        draws: The random numbers of its layers; None: they draw none.
        writes_input: Whether a layer writes into the stage's input.
    """

    def __init__(self, module: nn.Module, stand_ins: StandIns, *, draws: Draws | None, writes_input: bool) -> None:
        self._module = module
        self._stand_ins = stand_ins
        self._draws = draws
        self._writes_input = writes_input
        self._stateful = stateful_layers(module)
        self._recording: Recording | None = None
        self._joint: Joint | None = None

    @property
    def is_recorded(self) -> bool:
        """Whether the layers run as one recorded call."""
        return self._recording is not None

    @property
    def is_joint(self) -> bool:
        """Whether their backward pass does, too."""
        return self._joint is not None

    def record(self, example: Value, *, has_gradient: bool, keeps_graphs: bool) -> None:
        """Run the layers as one recorded call from now on, where that gives the same bits.

        Args:
            example: A value as it will come.
            has_gradient: Whether a gradient of the inputs is wanted.
            keeps_graphs: Whether `run` gets leaves.
        """
        if self._draws is None and not self._stateful:
            self._recording = record(self._module, example, has_gradient=has_gradient, copies_buffers=keeps_graphs)
        trainable = self._stand_ins.trainable
        is_large = sum(weight.nbytes for weight in trainable) >= JOINT_FROM_BYTES
        if self._recording is not None and is_large and trainable and is_simple(trainable):
            self._joint = join(self._module, example, has_gradient=has_gradient, copies_buffers=keeps_graphs)

    def own_draws(self) -> AbstractContextManager[None]:
        """Let the layers draw from the stage's generators."""
        return nullcontext() if self._draws is None else self._draws.own()

    def before(self) -> Before:
        """Return what a forward pass will find, for `again`."""
        draws = None if self._draws is None else self._draws.state()
        return Before(draws, tuple(layer.state for layer in self._stateful))

    def run(self, inputs: Sequence[Tensor], *, is_tuple: bool, leaves: Leaves | None = None) -> Value:
        """Run inputs through the layers.

        Args:
            inputs: Of the stage.
            is_tuple: Whether the layers get them as a tuple.
            leaves: What stands in for the parameters, in a graph that is kept; None: the parameters themselves.
        """
        given = self._given(inputs)
        if self._recording is not None and self._recording.fits(given):
            return self._recording(given, self._stand_ins.parameters(leaves), self._stand_ins.buffers())
        undisturbed = nullcontext() if leaves is None else self._stand_ins.in_place(leaves, keeps_changes=True)
        with undisturbed:
            return self._eager(given, is_tuple=is_tuple)

    def run_to_learn(
        self, inputs: Sequence[Tensor], *, is_tuple: bool, leaves: Leaves | None = None
    ) -> tuple[Value, Kept | None]:
        """Run inputs through the layers, and keep what the way back needs.

        Args:
            inputs: Of the stage.
            is_tuple: Whether the layers get them as a tuple.
            leaves: As for `run`.

        Returns:
            The outputs, with a graph; or as leaves without one, and what is kept instead.
        """
        given = self._given(inputs)
        if self._joint is None or self._recording is None or not self._recording.fits(given):
            return self.run(inputs, is_tuple=is_tuple, leaves=leaves), None
        return self._joined(self._joint, given, self._stand_ins.parameters(leaves), self._stand_ins.buffers())

    def back(self, kept: Kept, seeds: Sequence[Tensor], weights: Sequence[Tensor], rate: float | None) -> Back:
        """Go back through a pass without a graph; see `Joint.backward`."""
        assert self._joint is not None
        with torch.no_grad():
            return self._joint.backward(kept.tensors, seeds, weights, rate)

    def with_graph(self, passed: Pass) -> Value:
        """Do a pass without a graph once more, as it was, but with a graph; statistics stay."""
        assert self._recording is not None
        assert passed.kept is not None
        with torch.enable_grad():
            return self._recording(
                self._given(passed.inputs), self._stand_ins.parameters(passed.leaves), passed.kept.buffers
            )

    def again(self, passed: Pass) -> Value:
        """Do a forward pass once more, with the weights of now; statistics, states and random numbers stay."""
        given = self._given(passed.inputs)
        if self._recording is not None and self._recording.fits(given):
            copies = [buffer.clone() for buffer in self._stand_ins.buffers()]
            parameters = self._stand_ins.parameters(None)
            if self._joint is None:
                return self._recording(given, parameters, copies)
            passed.outputs, passed.kept = self._joined(self._joint, given, parameters, copies)
            return passed.outputs
        before = passed.before
        same_draws = nullcontext() if self._draws is None else self._draws.again(before.draws or {})
        with same_draws, states_of(self._stateful, before.states), self._stand_ins.in_place(keeps_changes=False):
            return self._eager(given, is_tuple=passed.is_tuple)

    def _joined(
        self, joint: Joint, given: Sequence[Tensor], parameters: Sequence[Tensor], buffers: Sequence[Tensor]
    ) -> tuple[Value, Kept]:
        # Of several outputs, one may turn out to have no gradient: then it takes a graph, of this very pass.
        found = [buffer.clone() for buffer in buffers] if joint.outputs > 1 else ()
        with torch.no_grad():
            outputs, tensors = joint.forward(given, parameters, buffers)
        return requiring_grad(outputs), Kept(tensors, found)

    def _given(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(tensor.clone() for tensor in inputs) if self._writes_input else tuple(inputs)

    def _eager(self, given: tuple[Tensor, ...], *, is_tuple: bool) -> Value:
        output: Value = self._module(given if is_tuple else given[0])
        return output
