"""One stage's optimiser: hook, norm, clipping, step and schedule, in this order."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from partime_async.errors import ConfigurationError
from partime_async.learning.learner import Learner
from partime_async.learning.plain_step import are_alike, are_apart, is_simple, plain_rate, prepare, step_over
from partime_async.learning.plain_step import norm as gradient_norm
from partime_async.learning.stand_ins import StandIns


@dataclass(frozen=True, slots=True)
class Memory:
    """What an optimiser and its schedule remember: their state dictionaries; None: there is no such thing."""

    optimizer: dict[str, object] | None
    scheduler: dict[str, object] | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plain step that was made while going back: it only waits to be taken.

    Attributes:
        values: The next values of the parameters, in memory of their own.
        norm: 2-norm of the gradient.
    """

    values: list[Tensor]
    norm: float


class Stepper:
    """Applies the gradients of a stage.

    Args:
        learner: The options.
        stage: Number of the stage, from 0.
        stand_ins: Have the parameters that it trains; without any, nothing is ever applied.

    Attributes:
        gradient_norm: 2-norm of the latest gradient, before clipping.
        prepared: What `step` takes instead of the parameters' `.grad`; None: nothing was prepared.

    Raises:
        ConfigurationError: An optimiser that needs a closure, or of other parameters than the stage's; or a scheduler
            that needs a metric.
    """

    def __init__(self, learner: Learner, stage: int, stand_ins: StandIns) -> None:
        self.gradient_norm = 0.0
        self.prepared: Prepared | None = None
        self._learner = learner
        self._hook = learner.gradient_hook
        self._clip_norm = learner.clip_norm
        self._stage = stage
        self._stand_ins = stand_ins
        self._parameters = stand_ins.trainable
        self._has_stepped = False
        self._latest: list[Tensor | None] = []
        self._optimizer, self._scheduler = self._made(self._parameters)
        if self._optimizer is not None and plain_rate(self._optimizer) is not None:
            prepare()

    def step(self) -> float | None:
        """Apply the parameters' `.grad`.

        Returns:
            Its 2-norm, before clipping: if it is not finite, nothing was applied. None: there was no gradient.
        """
        if self.prepared is not None:
            self.gradient_norm = self.prepared.norm
            if math.isfinite(self.gradient_norm):
                self._stand_ins.move_to(self.prepared.values)
                self._step_schedule()
            return self.gradient_norm
        if self._optimizer is None or not self._gradients():
            return None
        if self._hook is not None:
            self._stand_ins.move_away()  # it may write into the parameters
            self._hook(self._stage, self._parameters)
        gradients = self._gradients()
        if not gradients:
            return None
        rate = self._plain_rate(gradients)
        self.gradient_norm = self._stepped(gradients) if rate is None else self._stepped_over(gradients, rate)
        if math.isfinite(self.gradient_norm):
            self._step_schedule()
        return self.gradient_norm

    def _step_schedule(self) -> None:
        if self._scheduler is not None:
            self._scheduler.step()

    def _stepped(self, gradients: list[Tensor]) -> float:
        assert self._optimizer is not None
        total = _total_norm([_values(gradient) for gradient in gradients])
        # On a GPU this waits for the device: whether the gradient is finite decides the step.
        norm = float(total)
        if math.isfinite(norm):
            if self._clip_norm is not None:
                nn.utils.clip_grads_with_norm_(self._parameters, self._clip_norm, total)
            self._stand_ins.move_away()
            self._optimizer.step()
            self._has_stepped = True
        return norm

    def _stepped_over(self, gradients: list[Tensor], rate: float) -> float:
        norm = gradient_norm(gradients)
        if math.isfinite(norm):
            step_over(self._parameters, gradients, rate)
            self._stand_ins.move_to(gradients)
        return norm

    @property
    def rate(self) -> float | None:
        """The learning rate, if that is all there is to the next step, which may be done without the optimiser then."""
        if self._optimizer is None or self._hook is not None or self._clip_norm is not None:
            return None
        if self._scheduler is not None and not self._has_stepped:
            return None  # it looks whether the optimiser was called before it
        if sum(len(group["params"]) for group in self._optimizer.param_groups) < len(self._parameters):
            return None  # whoever made it left some of the weights as they are
        return plain_rate(self._optimizer)

    def _plain_rate(self, gradients: Sequence[Tensor]) -> float | None:
        """Return the learning rate if the step may be done over these gradients."""
        rate = self.rate
        if rate is None or len(gradients) < len(self._parameters) or not is_simple(gradients):
            return None
        return rate if are_alike(gradients, self._parameters) and are_apart(gradients) else None

    def memory(self) -> Memory:
        """Return a copy of what the optimiser and the schedule remember."""
        optimizer, scheduler = self._optimizer, self._scheduler
        return Memory(
            None if optimizer is None else copy.deepcopy(optimizer.state_dict()),
            None if scheduler is None else copy.deepcopy(scheduler.state_dict()),
        )

    def restore(self, memory: Memory) -> None:
        """Remember this, as `memory` returned it, instead."""
        _recall(self._optimizer, self._scheduler, memory)

    def rehearse(self, memory: Memory) -> None:
        """Raise what `restore` would raise, and change nothing."""
        stand_ins = [nn.Parameter(torch.zeros_like(parameter)) for parameter in self._parameters]
        _recall(*self._made(stand_ins), memory)

    @property
    def kinds(self) -> tuple[str | None, str | None]:
        """The names of the optimiser's and the schedule's classes; None: there is no such thing."""
        return _kind(self._optimizer), _kind(self._scheduler)

    def clear(self) -> None:
        """Let go of the gradients."""
        # They go when the next ones are there. Both at once would empty the heap, which then goes back to the system:
        # clearing its pages again costs more than the whole step.
        self.prepared = None
        self._latest = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None

    def _made(self, parameters: Sequence[nn.Parameter]) -> tuple[Optimizer | None, LRScheduler | None]:
        if not parameters:
            return None, None
        optimizer = self._learner.optimizer(parameters)
        _check_steps_alone(optimizer, "optimizer")
        _check_is_of(optimizer, parameters)
        _step_at_once(optimizer)
        if self._learner.scheduler is None:
            return optimizer, None
        scheduler = self._learner.scheduler(optimizer)
        _check_steps_alone(scheduler, "scheduler")
        return optimizer, scheduler

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self._parameters if parameter.grad is not None]


def _recall(optimizer: Optimizer | None, scheduler: LRScheduler | None, memory: Memory) -> None:
    # Copies: both would keep, and write into, what they are given.
    if optimizer is not None and memory.optimizer is not None:
        optimizer.load_state_dict(copy.deepcopy(memory.optimizer))
    if scheduler is not None and memory.scheduler is not None:
        scheduler.load_state_dict(copy.deepcopy(memory.scheduler))


def _kind(made: Optimizer | LRScheduler | None) -> str | None:
    return None if made is None else f"{type(made).__module__}.{type(made).__qualname__}"


def _total_norm(gradients: list[Tensor]) -> Tensor:
    """Do what `nn.utils.get_total_norm` does for tensors of one kind, without sorting them by kind first."""
    first = gradients[0]
    if any(each.dtype != first.dtype or each.device != first.device for each in gradients):
        return nn.utils.get_total_norm(gradients)
    norms: tuple[Tensor, ...] = torch._foreach_norm(gradients)
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total


def _step_at_once(optimizer: Optimizer) -> None:
    """Let plain SGD step over all tensors in one call, where nobody chose: the same operations in the same order.

    Each call from Python gives the interpreter away and has to get it back, from the other stages' threads.
    """
    if type(optimizer) is torch.optim.SGD:
        for group in optimizer.param_groups:
            if group["foreach"] is None and not group["fused"] and not group["differentiable"]:
                group["foreach"] = all(parameter.layout is torch.strided for parameter in group["params"])


def _values(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _check_steps_alone(made: Optimizer | LRScheduler, label: str) -> None:
    kind = Optimizer if label == "optimizer" else LRScheduler
    if not isinstance(made, kind):
        raise ConfigurationError(
            f"the learner's {label} made a {type(made).__name__}. Let it make one of torch.optim, such as "
            "functools.partial(torch.optim.SGD, lr=0.01)."
        )
    needed = [
        name
        for name, parameter in inspect.signature(made.step).parameters.items()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    ]
    if needed:
        raise ConfigurationError(
            f"{type(made).__name__} cannot be used here: its step needs {', '.join(needed)}, and a stage has only its "
            f"gradient. Use another {label}, whose step needs nothing."
        )


def _check_is_of(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    own = {id(parameter) for parameter in parameters}
    foreign = sum(id(each) not in own for group in optimizer.param_groups for each in group["params"])
    if foreign:
        raise ConfigurationError(
            f"the learner's optimizer made one with {foreign} tensor(s) that are no weights of the stage: the pipeline "
            "trains a copy of the module. Let it take the parameters that it is called with, such as "
            "functools.partial(torch.optim.SGD, lr=0.01)."
        )
