"""What a network learns from, and how: loss, optimiser, update rule, and what becomes of numbers not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from partime_async.errors import ConfigurationError
from partime_async.learning.rule import UpdateRule
from partime_async.learning.rules import pipedream

Loss = Callable[..., Tensor]
"""``loss(output, target)`` or, for an unsupervised learner, ``loss(output)``; gives one number."""

GradientHook = Callable[[int, Sequence[nn.Parameter]], None]
"""Called with the stage's number and its parameters, their ``.grad`` filled, before clipping; may change them."""


class OptimizerFactory(Protocol):
    """Makes a stage's optimiser, e.g. ``functools.partial(torch.optim.SGD, lr=0.01)``."""

    def __call__(self, params: Iterable[nn.Parameter], /) -> Optimizer:
        """Return an optimiser of these parameters."""
        ...


class NonFinite(StrEnum):
    """What a loss or gradient that is not finite does; it never reaches the weights."""

    SKIP = "skip"
    """The frame teaches nothing, and is counted."""
    STOP = "stop"
    """The pipeline stops with `NonFiniteError`."""


@dataclass(frozen=True, slots=True)
class Update:
    """One optimiser step of one stage, as the trace records it.

    Attributes:
        stage: From 0.
        event: The frame whose forward pass came just before.
        graph_frame: The frame whose forward pass the gradient went back through.
        loss_frame: The frame whose loss the gradient is of.
        graph_version: Weight version in that forward pass.
        weight_version: Weight version after the step.
        gradient_norm: 2-norm of the stage's gradient, before clipping.
    """

    stage: int
    event: int
    graph_frame: int
    loss_frame: int
    graph_version: int
    weight_version: int
    gradient_norm: float


@dataclass(frozen=True, slots=True)
class Learner:
    """How the network learns from the stream while it runs.

    Every stage has an optimiser of its own, made by the same factory, and steps at most once per frame.

    Args:
        loss: ``loss(output, target)``, called for frames that come with a target; a frame without one teaches nothing.
            With `unsupervised`, ``loss(output)``, called for every frame.
        optimizer: Makes an optimiser from parameters, e.g. ``functools.partial(torch.optim.SGD, lr=0.01)``.
        rule: Which gradient meets which activations; `rules.pipedream` by default.
        scheduler: Makes a learning-rate scheduler from an optimiser; stepped after each of the optimiser's steps.
        clip_norm: Largest 2-norm of a stage's gradient; a longer one is scaled down to it.
        gradient_hook: Sees, and may change, a stage's gradients before they are clipped and applied.
        label_delay: Frames that a target may come later than its frame, by `Pipeline.label`.
        unsupervised: Whether the loss takes no target.
        non_finite: ``skip`` or ``stop``: what a loss or gradient that is not finite does.
        on_update: Told of every optimiser step, on the stage's device thread; for traces.

    Raises:
        ConfigurationError: An option out of range.
    """

    loss: Loss
    optimizer: OptimizerFactory
    rule: UpdateRule = field(default_factory=pipedream)
    scheduler: Callable[[Optimizer], LRScheduler] | None = field(default=None, kw_only=True)
    clip_norm: float | None = field(default=None, kw_only=True)
    gradient_hook: GradientHook | None = field(default=None, kw_only=True)
    label_delay: int = field(default=0, kw_only=True)
    unsupervised: bool = field(default=False, kw_only=True)
    non_finite: str = field(default=NonFinite.SKIP, kw_only=True)
    on_update: Callable[[Update], None] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.non_finite not in tuple(NonFinite):
            raise ConfigurationError(f"non_finite is {self.non_finite!r}. Use 'skip' or 'stop'.")
        if self.label_delay < 0:
            raise ConfigurationError(f"label_delay is {self.label_delay}. Pass 0 or more frames.")
        if self.label_delay and self.unsupervised:
            raise ConfigurationError(
                f"label_delay is {self.label_delay} and the learner is unsupervised: there are no labels. Drop one."
            )
        if self.clip_norm is not None and not (self.clip_norm > 0 and math.isfinite(self.clip_norm)):
            raise ConfigurationError(f"clip_norm is {self.clip_norm}. Pass a norm above 0, or None.")
