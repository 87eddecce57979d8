"""What one stage does to learn: forward with a graph to come back to, backward with a late gradient, one step.

All of it runs on the stage's device thread, in the order of the frames; see `rule` for the definitions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from partime_async.errors import ConfigurationError, NonFiniteError
from partime_async.frame import Value
from partime_async.learning.learner import Learner, NonFinite, Update
from partime_async.learning.rule import Graph
from partime_async.stateful import stateful_layers, states_of

NONE: tuple[Tensor, ...] = ()
"""The gradient that does not exist: before the start, without a target, while learning is frozen."""


@dataclass(slots=True)
class _Pass:
    """A forward pass to come back to.

    Attributes:
        inputs: What the stage got, as leaves of the graph where there is one.
        like: The same, as it came.
        outputs: What it gave, with the graph; without one under `replay`, where the pass is done again.
        weights: The leaves that stood in for the stage's parameters, by name; None: the parameters themselves.
        version: Weight version in it.
        loss: The loss, at the last stage and if it is known already.
        random_state: The CPU's random state before it, under `replay`.
        states: What the layers that remember remembered before it, under `replay`.
    """

    inputs: tuple[Tensor, ...]
    like: Value
    outputs: Value
    weights: dict[str, Tensor] | None
    version: int
    loss: Tensor | None
    random_state: Tensor | None
    states: tuple[Value | None, ...]


class StageLearner:
    """One stage's share of the learning.

    Args:
        learner: The options.
        module: The stage's layers, on their device; its weights are changed in place.
        stage: Its number, from 0.
        stages: How many there are.

    Attributes:
        version: How many optimiser steps the stage has taken.
        skipped: How many losses or gradients were not finite and taught nothing.
        discarded: How many gradients arrived and found nothing to go back through.
        gradient_norm: 2-norm of the latest gradient, before clipping.
    """

    def __init__(self, learner: Learner, module: nn.Module, stage: int, stages: int) -> None:
        self.version = 0
        self.skipped = 0
        self.discarded = 0
        self.gradient_norm = 0.0
        self.is_frozen = False
        self._learner = learner
        self._module = module
        self._stage = stage
        self._is_first = stage == 0
        self._is_last = stage == stages - 1
        self._graph = learner.rule.graph
        self._delay = learner.rule.delay(stage, stages) + learner.label_delay
        self._parameters = [(name, tensor) for name, tensor in module.named_parameters() if tensor.requires_grad]
        self._slots = [(_owner(module, name), name.rpartition(".")[2]) for name, _ in self._parameters]
        tensors = [tensor for _, tensor in self._parameters]
        self._optimizer = learner.optimizer(tensors) if tensors else None
        self._scheduler = (
            learner.scheduler(self._optimizer)
            if learner.scheduler is not None and self._optimizer is not None
            else None
        )
        self._passes: dict[int, _Pass] = {}
        self._kept_weights: dict[str, Tensor] | None = None
        self._stateful = stateful_layers(module)
        self._answers: dict[int, Value] = {}
        self._target: Value | None = None
        self._target_event = -1

    # -- forward --------------------------------------------------------------------------------------------------

    def forward(self, event: int, value: Value, target: Value | None = None) -> tuple[Value, float | None]:
        """Run frame `event` through the stage.

        Args:
            event: The frame's admission number.
            value: The stage's input; another stage's output is detached already.
            target: At the last stage: of the frame that this event's loss is of.

        Returns:
            The stage's output, detached; and the loss of this very frame, at the last stage and without a label delay.
        """
        self._target, self._target_event = target, event
        if self.is_frozen:
            with torch.no_grad():
                frozen: Value = self._module(value)
                loss = self._own_loss(frozen, target)
            return frozen, None if loss is None else float(loss)
        is_redone = self._graph is Graph.REPLAY and self._delay > 0
        random_state = torch.random.get_rng_state() if is_redone else None
        states = tuple(layer.state for layer in self._stateful)
        inputs = tuple(self._leaf(tensor) for tensor in _tensors(value))
        weights = self._weights_to_keep() if self._graph is Graph.STASH and self._delay else None
        with torch.set_grad_enabled(not is_redone):
            outputs = self._run(inputs, weights, like=value)
            loss = self._own_loss(outputs, target)
        self._passes[event] = _Pass(inputs, value, outputs, weights, self.version, loss, random_state, states)
        if self._is_last and self._graph is Graph.CURRENT and self._delay:
            answers = _detached(outputs)
            for tensor in _tensors(answers):
                tensor.requires_grad_(tensor.is_floating_point())
            self._answers[event] = answers
        return _detached(outputs), None if loss is None else float(loss.detach())

    def _own_loss(self, outputs: Value, target: Value | None) -> Tensor | None:
        if not self._is_last or self._learner.label_delay:
            return None
        return self._loss(outputs, target)

    def _loss(self, outputs: Value, target: Value | None) -> Tensor | None:
        if target is None and not self._learner.unsupervised:
            return None
        loss = self._learner.loss(outputs) if self._learner.unsupervised else self._learner.loss(outputs, target)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            kind = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ConfigurationError(f"the loss gave {kind}. Let it return one number, as a tensor.")
        return loss

    def _run(self, inputs: tuple[Tensor, ...], weights: Mapping[str, Tensor] | None, *, like: Value) -> Value:
        value = inputs[0] if isinstance(like, Tensor) else inputs
        if weights is None:
            output: Value = self._module(value)
            return output
        with self._standing_in(weights):
            replaced: Value = self._module(value)
        return replaced

    @contextmanager
    def _standing_in(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Let these leaves be the parameters: a step in place would break the graphs that wait for their gradient."""
        try:
            for (name, _), (owner, key) in zip(self._parameters, self._slots, strict=True):
                owner._parameters[key] = weights[name]  # type: ignore[assignment]
            yield
        finally:
            for (_, parameter), (owner, key) in zip(self._parameters, self._slots, strict=True):
                owner._parameters[key] = parameter

    def _weights_to_keep(self) -> dict[str, Tensor]:
        # One copy per version, shared by all frames that used it: none is made while nothing is learned.
        if self._kept_weights is None:
            self._kept_weights = {name: tensor.detach().clone().requires_grad_() for name, tensor in self._parameters}
        return self._kept_weights

    def _leaf(self, tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_(not self._is_first and tensor.is_floating_point())

    # -- backward -------------------------------------------------------------------------------------------------

    def backward(self, event: int, gradient: tuple[Tensor, ...] = NONE) -> tuple[Tensor, ...]:
        """Learn at event `event`: at most one backward pass and one optimiser step.

        Args:
            event: The frame whose forward pass came just before.
            gradient: What the next stage emitted at event - lag, for each output of this stage; `NONE` if there is
                none, and always at the last stage.

        Returns:
            The gradient for each input of this stage, a tensor without elements where there is none; or `NONE`.

        Raises:
            NonFiniteError: The policy is ``stop``, and a loss or gradient is not finite.
        """
        graph_frame = event if self._graph is Graph.CURRENT else event - self._delay
        passed, older = self._passes.pop(graph_frame, None), self._answers.pop(event - self._delay, None)
        if passed is None or self.is_frozen:
            self.discarded += bool(gradient)
            return NONE
        if not self._is_last and not gradient:
            return NONE
        heads, seeds = self._heads(event, passed, older, gradient)
        if not heads:
            return NONE
        leaves = list(passed.weights.values()) if passed.weights is not None else [t for _, t in self._parameters]
        sources = [tensor for tensor in passed.inputs if tensor.requires_grad]
        found = torch.autograd.grad(heads, [*leaves, *sources], seeds, allow_unused=True)
        if not self._step(found[: len(leaves)], event, graph_frame, passed.version):
            return NONE
        emitted = iter(found[len(leaves) :])
        absent = torch.empty(0)
        gradients = (next(emitted) if tensor.requires_grad else None for tensor in passed.inputs)
        return tuple(absent if tensor is None else tensor for tensor in gradients)

    def _heads(
        self, event: int, passed: _Pass, older: Value | None, gradient: tuple[Tensor, ...]
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Return the tensors to go back from, and the gradient of the loss for each; none of them: nothing to learn."""
        outputs = self._again(passed) if self._graph is Graph.REPLAY and self._delay else passed.outputs
        if not self._is_last:
            pairs = [
                (output, seed)
                for output, seed in zip(_tensors(outputs), gradient, strict=True)
                if output.requires_grad and seed.shape == output.shape
            ]
            return [output for output, _ in pairs], [seed for _, seed in pairs]
        is_older = self._graph is Graph.CURRENT and self._delay > 0
        answers = older if is_older else outputs
        if answers is None:
            return [], []
        loss = passed.loss if passed.loss is not None else self._loss(answers, self._target_of(event))
        if loss is None:
            return [], []
        if not math.isfinite(float(loss.detach())):
            self._not_finite(f"the loss of frame {event - self._delay} is {float(loss.detach())}")
            return [], []
        if not is_older:
            return [loss], [None]
        seeds = torch.autograd.grad(loss, _tensors(answers), allow_unused=True)
        pairs = [(output, seed) for output, seed in zip(_tensors(outputs), seeds, strict=True) if seed is not None]
        return [output for output, _ in pairs], [seed for _, seed in pairs]

    def _target_of(self, event: int) -> Value | None:
        return self._target if self._target_event == event else None

    def _again(self, passed: _Pass) -> Value:
        """Do a forward pass once more, with the weights of now, and leave statistics and random state as they are."""
        buffers = [(buffer, buffer.clone()) for buffer in self._module.buffers()]
        random_state = torch.random.get_rng_state()
        if passed.random_state is not None:
            torch.random.set_rng_state(passed.random_state)  # dropout draws the same mask
        try:
            with torch.enable_grad(), states_of(self._stateful, passed.states):
                return self._run(passed.inputs, None, like=passed.like)
        finally:
            torch.random.set_rng_state(random_state)
            for buffer, value in buffers:
                buffer.copy_(value)

    def _step(self, gradients: Sequence[Tensor | None], event: int, graph_frame: int, graph_version: int) -> bool:
        """Apply the gradients of the parameters; say whether they were fit to be applied, and passed on."""
        for (_, parameter), gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        present = [gradient for gradient in gradients if gradient is not None]
        if self._optimizer is None or not present:
            return True
        parameters = [parameter for _, parameter in self._parameters]
        learner = self._learner
        if learner.gradient_hook is not None:
            learner.gradient_hook(self._stage, parameters)
            present = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(present)
        self.gradient_norm = float(norm)
        if not math.isfinite(self.gradient_norm):
            self._not_finite(f"the gradient of stage {self._stage} at frame {event} has the norm {self.gradient_norm}")
            return False
        if learner.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, learner.clip_norm, norm)
        self._optimizer.step()
        if self._scheduler is not None:
            self._scheduler.step()
        self._kept_weights = None
        self.version += 1
        if learner.on_update is not None:
            loss_frame = event - self._delay
            learner.on_update(
                Update(self._stage, event, graph_frame, loss_frame, graph_version, self.version, self.gradient_norm)
            )
        return True

    def _not_finite(self, what: str) -> None:
        self.skipped += 1
        if self._learner.non_finite == NonFinite.STOP:
            raise NonFiniteError(f"{what}. Lower the learning rate, clip gradients, or use non_finite='skip'.")

    # -- between frames -------------------------------------------------------------------------------------------

    def freeze(self, is_frozen: bool) -> None:
        """Stop, or go on, learning from the next frame on; what is kept of earlier frames is let go."""
        self.is_frozen = is_frozen
        self._passes.clear()
        self._answers.clear()

    def weights_replaced(self) -> None:
        """Take note that the parameters have other values now."""
        self._kept_weights = None


def _owner(module: nn.Module, name: str) -> nn.Module:
    return module.get_submodule(name.rpartition(".")[0])


def _tensors(value: Value) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else value


def _detached(value: Value) -> Value:
    return value.detach() if isinstance(value, Tensor) else tuple(tensor.detach() for tensor in value)
