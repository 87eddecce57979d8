"""What a network learns from, and how: loss, optimiser, update rule, and what becomes of numbers not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from partime_async.errors import ConfigurationError
from partime_async.frame import Value
from partime_async.learning.rule import UpdateRule
from partime_async.learning.rules import pipedream

Loss = Callable[..., Tensor]
"""``loss(output, target)`` or, for an unsupervised learner, ``loss(output)``; gives one number."""

Metric = Callable[[Value, Value], float | Tensor]
"""``metric(output, target)``; gives one number. It must not write into what it is given."""

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
    """The pipeline stops, and every caller gets `NonFiniteError`."""
    RESTORE = "restore"
    """The frame teaches nothing, is counted, and all stages go back to the last good weights; see `Recovery`."""


@dataclass(frozen=True, slots=True)
class Update:
    """One optimiser step of one stage, as the trace records it.

    Attributes:
        stage: From 0.
        event: The frame whose forward pass came just before.
        graph_frame: The frame whose forward pass the gradient went back through.
        loss_frame: The frame whose loss the gradient is of.
        graph_version: Weight version in that forward pass; in the one done again, under `replay`.
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

    Every stage has an optimiser of its own, made by the same factory, and steps at most once per frame. What is called
    here runs on a stage's device thread; if it raises, a `StageError` tells which stage and frame: the loss of a frame
    that comes with its target fails that frame, and anything else stops the pipeline, for learning cannot go on.

    Args:
        loss: ``loss(output, target)``, called for frames that come with a target; a frame without one teaches nothing.
            With `unsupervised`, ``loss(output)``, called for every frame. It must not write into what it is given.
        optimizer: Makes an optimiser from parameters, e.g. ``functools.partial(torch.optim.SGD, lr=0.01)``. It gets the
            trainable parameters of one stage, to train all or some of them, and must be able to step without a closure.
        rule: Which gradient meets which activations; `rules.pipedream` by default.
        scheduler: Makes a learning-rate scheduler from an optimiser; stepped after each of the optimiser's steps,
            without a metric.
        clip_norm: Largest 2-norm of a stage's gradient; a longer one is scaled down to it.
        gradient_hook: Sees, and may change, a stage's gradients before they are clipped and applied.
        label_delay: How many frames later each frame is learned from, so that its target may come by `Pipeline.label`
            until then; it has to cover the frames in flight, too. Under ``stash`` so many more passes are kept.
        unsupervised: Whether the loss takes no target.
        non_finite: ``skip``, ``stop`` or ``restore``: what a loss or gradient that is not finite does. With
            ``restore``, weights, buffers, optimiser and schedule of every stage are copied each `snapshot_every`
            frames. At one frame boundary in all stages, ``2 + lag * (stages - 1)`` frames behind the one that was not
            finite, they go back to the newest copy at least `snapshot_every` frames older than it, or to the weights
            that learning began with; layers that remember start over. The frames alone decide this, never the timing.
        snapshot_every: Frames from one copy to the next, with ``restore``; about three copies are kept.
        explosion_factor: A loss of more than this many times its recent mean counts as not finite; None: none does.
        metrics: By name, ``metric(output, target)``: measured, like the loss, on every prediction before anything is
            learned from it, for frames with a target; in ``statistics().learning.metrics``.
        compare_to_skip: Have one device beside the pipeline learn from every N-th frame, N being the number of stages,
            and warn if it does better; in ``statistics().learning.skip``. Costs up to one more core.
        on_update: Told of every optimiser step, on the stage's device thread; for traces.

    Raises:
        ConfigurationError: An option out of range.
    """

    loss: Loss
    optimizer: OptimizerFactory
    rule: UpdateRule = field(default_factory=pipedream, kw_only=True)
    scheduler: Callable[[Optimizer], LRScheduler] | None = field(default=None, kw_only=True)
    clip_norm: float | None = field(default=None, kw_only=True)
    gradient_hook: GradientHook | None = field(default=None, kw_only=True)
    label_delay: int = field(default=0, kw_only=True)
    unsupervised: bool = field(default=False, kw_only=True)
    non_finite: str = field(default=NonFinite.SKIP, kw_only=True)
    snapshot_every: int = field(default=256, kw_only=True)
    explosion_factor: float | None = field(default=None, kw_only=True)
    metrics: Mapping[str, Metric] = field(default_factory=dict, kw_only=True)
    compare_to_skip: bool = field(default=False, kw_only=True)
    on_update: Callable[[Update], None] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for label, made in (("loss", self.loss), ("optimizer", self.optimizer)):
            if not callable(made):
                raise ConfigurationError(
                    f"{label} is {type(made).__name__}, which cannot be called. Pass a function, such as "
                    "torch.nn.functional.mse_loss or functools.partial(torch.optim.SGD, lr=0.01)."
                )
        if not isinstance(self.rule, UpdateRule):
            raise ConfigurationError(f"rule is {self.rule!r}. Pass an UpdateRule, such as partime_async.rules.exact().")
        if self.non_finite not in tuple(NonFinite):
            raise ConfigurationError(f"non_finite is {self.non_finite!r}. Use 'skip', 'stop' or 'restore'.")
        if not isinstance(self.snapshot_every, int) or self.snapshot_every < 1:
            raise ConfigurationError(f"snapshot_every is {self.snapshot_every!r}. Pass 1 or more frames.")
        if self.explosion_factor is not None and not (1 < self.explosion_factor < math.inf):
            raise ConfigurationError(f"explosion_factor is {self.explosion_factor}. Pass more than 1, or None.")
        for name, metric in self.metrics.items():
            if not callable(metric):
                raise ConfigurationError(
                    f"the metric {name!r} is {type(metric).__name__}, which cannot be called. Pass a function of "
                    "output and target."
                )
        if not isinstance(self.label_delay, int) or self.label_delay < 0:
            raise ConfigurationError(f"label_delay is {self.label_delay!r}. Pass 0 or more frames.")
        if self.label_delay and self.unsupervised:
            raise ConfigurationError(
                f"label_delay is {self.label_delay} and the learner is unsupervised: there are no labels. Drop one."
            )
        if self.clip_norm is not None and not (self.clip_norm > 0 and math.isfinite(self.clip_norm)):
            raise ConfigurationError(f"clip_norm is {self.clip_norm}. Pass a norm above 0, or None.")
