"""What one stage does to learn: forward with a graph to come back to, backward with a late gradient, one step.

All of it runs on the stage's device thread, in the order of the frames; see `rule` for the definitions.

A kept graph must find everything as it was, whatever happens meanwhile. So it is given tensors that nobody else writes
into: leaves that stand in for the weights (see `stand_ins`), copies of the buffers, a copy of the caller's frame and of
its target, and the last stage hands out a copy of its output.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from partime_async.devices.draws import Draws
from partime_async.errors import NonFiniteError
from partime_async.frame import Value
from partime_async.learning.examiner import Examiner
from partime_async.learning.learner import Learner, NonFinite, Update
from partime_async.learning.passes import (
    NONE,
    Before,
    Kept,
    Pass,
    copied,
    detached,
    emitted,
    ends,
    is_differentiable,
    paired,
    requiring_grad,
    tensors_of,
)
from partime_async.learning.rule import Graph
from partime_async.learning.runner import Runner
from partime_async.learning.smoothness import SmoothnessMeter
from partime_async.learning.stand_ins import StandIns
from partime_async.learning.statistics import LearningStatistics
from partime_async.learning.stepper import Memory, Prepared, Stepper

_FUSED = (nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)
"""Layers that PyTorch may run in another way, with other roundings, where no gradient is wanted."""


class StageLearner:
    """One stage's share of the learning.

    Args:
        learner: The options.
        module: The stage's layers, on their device; its weights are changed in place.
        stage: Its number, from 0.
        stages: How many there are.
        draws: The random numbers of its layers; None: they draw none.
        writes_input: Whether a layer writes into the stage's input.
        example: Of what the stage gets, to record its forward pass with; None: it is not recorded. See `recording`.
        on_fault: Told of every event at which a loss or gradient was not fit to learn from.

    Attributes:
        examiner: Asks for the loss, at the last stage.
        version: How often the weights have changed: at each optimiser step, and whenever they were replaced.
        is_frozen: Whether it learns nothing now.

    Raises:
        ConfigurationError: An optimiser or a scheduler that cannot step by itself.
    """

    def __init__(
        self,
        learner: Learner,
        module: nn.Module,
        stage: int,
        stages: int,
        *,
        draws: Draws | None = None,
        writes_input: bool = False,
        example: Value | None = None,
        on_fault: Callable[[int], None] | None = None,
    ) -> None:
        self.examiner = Examiner(learner)
        self.version = 0
        self.is_frozen = False
        self._learner = learner
        self._stage = stage
        self._is_first = stage == 0
        self._is_last = stage == stages - 1
        self._graph = learner.rule.graph
        self._delay = learner.rule.delay(stage, stages) + learner.label_delay
        self._is_redone = self._graph is Graph.REPLAY and self._delay > 0
        self._keeps_versions = self._graph is Graph.STASH and self._delay > 0
        self._on_fault = on_fault
        is_mixed = self._graph is Graph.CURRENT
        self._smoothness = SmoothnessMeter(self._delay, stage=stage if is_mixed else None)
        held = next(itertools.chain(module.parameters(), module.buffers()), None)
        self._device = None if held is None else held.device
        self._needs_graph = any(isinstance(layer, _FUSED) for layer in module.modules())
        self._stand_ins = StandIns(module)
        self._stepper = Stepper(learner, stage, self._stand_ins)
        self._runner = Runner(module, self._stand_ins, draws=draws, writes_input=writes_input)
        if example is not None:
            self._runner.record(example, has_gradient=not self._is_first, keeps_graphs=self._keeps_versions)
        self._updates = 0
        self._skipped = 0
        self._restored = 0
        self._discarded = 0
        self._passes: dict[int, Pass] = {}
        self._answers: dict[int, Value] = {}
        self._target: Value | None = None
        self._event = -1
        self._since = 0

    @property
    def has_weights(self) -> bool:
        """Whether the stage has anything to train."""
        return bool(self._stand_ins.trainable)

    def statistics(self) -> LearningStatistics:
        """Return what the stage has learned so far; from any thread."""
        return LearningStatistics(
            version=self.version,
            updates=self._updates,
            skipped=self._skipped,
            discarded=self._discarded,
            gradient_norm=self._stepper.gradient_norm,
            kept=len(self._passes),
            is_frozen=self.is_frozen,
            restored=self._restored,
            input_change=self._smoothness.change,
        )

    # -- forward --------------------------------------------------------------------------------------------------

    def forward(
        self, event: int, value: Value, target: Value | None = None, *, is_kept: bool = True
    ) -> tuple[Value, float | None]:
        """Run frame `event` through the stage.

        Args:
            event: The frame's admission number.
            value: The stage's input; another stage's output is detached already.
            target: At the last stage: of the frame that this event's loss is of.
            is_kept: Whether anybody will come back to this pass; if not, it runs without a graph.

        Returns:
            The stage's output, detached; and the loss of this very frame, at the last stage and without a label delay.

        Raises:
            ConfigurationError: The loss function is not one.
        """
        self._event = event
        self._target = None if target is None else copied(target, device=self._device or tensors_of(value)[0].device)
        inputs = tuple(map(self._leaf, tensors_of(value)))
        is_tuple = not isinstance(value, Tensor)
        self._smoothness.look(event, inputs)
        if self.is_frozen or not (is_kept or self._needs_graph):
            with torch.no_grad(), self._runner.own_draws():
                outputs = self._runner.run(inputs, is_tuple=is_tuple)
                self._keep_answer(event, outputs)
                return outputs, self._noted(self._own_loss(outputs), outputs)
        before = self._runner.before() if self._is_redone else Before()
        leaves = self._stand_ins.leaves() if self._keeps_versions else None
        with torch.set_grad_enabled(not self._is_redone), self._runner.own_draws():
            if self._is_redone:
                outputs, kept = self._runner.run(inputs, is_tuple=is_tuple), None
            else:
                outputs, kept = self._runner.run_to_learn(inputs, is_tuple=is_tuple, leaves=leaves)
            loss = self._own_loss(outputs)
        number = self._noted(loss, outputs)
        way_back = None if self._is_redone else outputs
        self._passes[event] = Pass(inputs, is_tuple, way_back, leaves, self.version, loss, before, kept)
        given = copied(outputs) if self._is_last else detached(outputs)
        self._keep_answer(event, outputs)
        return given, number

    def _keep_answer(self, event: int, outputs: Value) -> None:
        if self._is_last and self._delay and self._graph is not Graph.STASH and not self.is_frozen:
            self._answers[event] = copied(outputs)

    def _leaf(self, tensor: Tensor) -> Tensor:
        # The frame is the caller's again when its result is there. And memory of a GPU must not be kept beyond the
        # work on it by a stream that did not allocate it.
        own = tensor.detach().clone() if self._is_first or not tensor.is_cpu else tensor.detach()
        return own.requires_grad_(not self._is_first and is_differentiable(tensor) and not self.is_frozen)

    # -- loss -----------------------------------------------------------------------------------------------------

    def _own_loss(self, outputs: Value) -> Tensor | None:
        """Return the loss of this very frame; None if it is not known yet, or nobody's."""
        if not self._is_last or self._learner.label_delay:
            return None
        return self.examiner.loss(outputs, self._target)

    def _noted(self, loss: Tensor | None, outputs: Value) -> float | None:
        return self.examiner.note(self._event - self._delay, loss, outputs, self._target) if self._is_last else None

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
            ConfigurationError: The loss does not depend on what the network gave.
        """
        self._event = event
        loss_frame = event - self._delay
        passed = self._passes.pop(event if self._graph is Graph.CURRENT else loss_frame, None)
        answers = self._answers.pop(loss_frame, None)
        if passed is None or loss_frame < self._since:
            self.discard(gradient)
            return NONE
        with torch.enable_grad():
            heads, seeds = self._loss_heads(passed, answers) if self._is_last else self._heads(passed, gradient)
        try:
            given = self._gone_back(passed, heads, seeds)
        finally:
            # With the outputs goes the graph, and nobody wants its leaves any more.
            heads.clear()
            passed.let_go()
            if passed.leaves is not None:
                self._stand_ins.give_back(passed.leaves)
        try:
            return NONE if given is None or not self._stepped(passed) else given
        finally:
            self._stepper.clear()

    def _heads(self, passed: Pass, gradient: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor | None]]:
        """Return the outputs to go back from, and the gradient of the loss for each; none: nothing is learned."""
        if not gradient:
            return [], []
        outputs = self._again(passed) if passed.outputs is None else passed.outputs
        return paired(outputs, [seed if seed.numel() or not seed.dim() else None for seed in gradient])

    def _loss_heads(self, passed: Pass, answers: Value | None) -> tuple[list[Tensor], list[Tensor | None]]:
        """Return the same at the last stage, where it begins: the loss, or under `current` and late what it gives."""
        if not self._learner.label_delay:
            return ([], []) if passed.loss is None or not self._is_fit(passed.loss) else ([passed.loss], [None])
        if self._target is None or (answers is None and self._graph is Graph.CURRENT):
            return [], []
        outputs = self._again(passed) if passed.outputs is None else passed.outputs
        if answers is not None:
            answers = requiring_grad(answers)
        predicted = outputs if answers is None else answers
        early = self.examiner.loss(predicted, self._target)
        self._noted(early, predicted)
        loss = early if self._graph is not Graph.REPLAY else self.examiner.loss(outputs, self._target)
        if loss is None or not self._is_fit(loss):
            return [], []
        if self._graph is not Graph.CURRENT or answers is None:
            return [loss], [None]
        leaves = [tensor for tensor in tensors_of(answers) if tensor.requires_grad]
        found = iter(torch.autograd.grad(loss, leaves, allow_unused=True))
        return paired(outputs, [next(found) if tensor.requires_grad else None for tensor in tensors_of(answers)])

    def _is_fit(self, loss: Tensor) -> bool:
        fault = self.examiner.fault(self._event - self._delay, loss)
        if fault is not None:
            self._not_finite(fault)
        return fault is None

    def _again(self, passed: Pass) -> Value:
        """Do a forward pass once more, with the weights of now."""
        outputs = self._runner.again(passed)
        passed.version = self.version
        return outputs

    def _gone_back(self, passed: Pass, heads: list[Tensor], seeds: list[Tensor | None]) -> tuple[Tensor, ...] | None:
        """Go back from the heads, fill the parameters' `.grad`, and return the gradient for each input."""
        parameters = self._stand_ins.trainable
        weights: Sequence[Tensor] = parameters if passed.leaves is None else passed.leaves.tensors
        leaves = [*weights, *(tensor for tensor in passed.inputs if tensor.requires_grad)]
        if not heads or not leaves:
            return None
        if passed.kept is not None:
            assert passed.outputs is not None
            found = ends(passed.outputs, heads, seeds)
            known = [seed for seed in found if seed is not None]
            if len(known) == len(found):
                return self._gone_back_at_once(passed, passed.kept, known)
            heads, seeds = paired(self._runner.with_graph(passed), found)
            if not heads:
                return emitted(passed.inputs, parameters)  # the loss looks at no output
        # Not autograd.grad: it may give one tensor as the gradient of two leaves, and both are written into later.
        with torch.autograd.set_multithreading_enabled(False):
            torch.autograd.backward(heads, seeds, inputs=leaves)
        if passed.leaves is not None:
            for parameter, leaf in zip(parameters, passed.leaves.tensors, strict=True):
                parameter.grad, leaf.grad = leaf.grad, None
        return emitted(passed.inputs, parameters)

    def _gone_back_at_once(self, passed: Pass, kept: Kept, seeds: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Go back in one call, which makes the step, too, if it is a plain one."""
        parameters, rate = self._stand_ins.trainable, self._stepper.rate
        back = self._runner.back(kept, seeds, parameters, rate)
        if rate is not None:
            self._stepper.prepared = Prepared(back.gradients, back.norm)
        else:
            for parameter, gradient in zip(parameters, back.gradients, strict=True):
                parameter.grad = gradient
        return tuple(back.given) or tuple(tensor.new_empty(0) for tensor in passed.inputs)

    def _stepped(self, passed: Pass) -> bool:
        """Apply the gradients; say whether they were fit to be applied, and to be passed on."""
        event, loss_frame = self._event, self._event - self._delay
        norm = self._stepper.step()
        if norm is None:
            return True
        if not math.isfinite(norm):
            self._not_finite(f"the gradient of stage {self._stage} at frame {event} has the norm {norm}")
            return False
        self.version += 1
        self._updates += 1
        if self._learner.on_update is not None:
            graph_frame = event if self._graph is Graph.CURRENT else loss_frame
            self._learner.on_update(
                Update(self._stage, event, graph_frame, loss_frame, passed.version, self.version, norm)
            )
        return True

    def _not_finite(self, what: str) -> None:
        self._skipped += 1
        if self._on_fault is not None:
            self._on_fault(self._event)
        if self._learner.non_finite == NonFinite.STOP:
            raise NonFiniteError(f"{what}. Lower the learning rate, clip gradients, or use non_finite='skip'.")

    def discard(self, gradient: Value | None) -> None:
        """Count a gradient that nothing is learned from."""
        self._discarded += gradient is not None and len(gradient) > 0

    # -- between frames -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start with frame 0 of another run; weights, optimiser, counts and whether it is frozen stay."""
        self.examiner.begin()
        self._smoothness.begin()
        self._event = -1
        self._let_go()

    def freeze(self, is_frozen: bool) -> None:
        """Stop, or go on, learning from the next frame on; without effect if it is so already."""
        if is_frozen != self.is_frozen:
            self.is_frozen = is_frozen
            self._let_go()

    def weights_replaced(self) -> None:
        """Take note that the parameters have other values now: gradients of the old ones are let go."""
        self.version += 1
        self._let_go()

    def memory(self) -> Memory:
        """Return a copy of what the optimiser and the schedule remember."""
        return self._stepper.memory()

    def rehearse(self, memory: Memory) -> None:
        """Raise what `resume` would raise, and change nothing; from any thread."""
        self._stepper.rehearse(memory)

    @property
    def kinds(self) -> tuple[str | None, str | None]:
        """The names of the optimiser's and the schedule's classes; None: there is no such thing."""
        return self._stepper.kinds

    def put_back(self, memory: Memory) -> None:
        """Take note that the parameters have the values of an earlier time, which this is the memory of."""
        self._stepper.restore(memory)
        self.weights_replaced()
        self._restored += 1

    def resume(self, memory: Memory, *, version: int, updates: int) -> None:
        """Take note that the parameters were learned elsewhere, in so many steps: go on as if it had been here."""
        self._stepper.restore(memory)
        self.weights_replaced()
        self.version, self._updates = version, updates

    def _let_go(self) -> None:
        """Have no frame up to now teach any more."""
        self._passes.clear()
        self._answers.clear()
        self._target = None
        self._since = self._event + 1
        self._stand_ins.let_go()
