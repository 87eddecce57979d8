"""Test, then train: what the last stage asks of every prediction before anything is learned from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from partime_async.errors import ConfigurationError
from partime_async.frame import Value
from partime_async.learning.learner import Learner
from partime_async.learning.passes import detached
from partime_async.learning.statistics import LossMeter, LossStatistics

_LEAST = 20
_WEIGHT = 0.02


class Examiner:
    """The loss and the metrics, with their means; used on the last stage's device thread, read from any.

    Args:
        learner: The options.

    Attributes:
        on_loss: Told of every loss: the frame it is of, its target, and the number.
    """

    on_loss: Callable[[int, Value | None, float], None] | None = None

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._watch = None if learner.explosion_factor is None else ExplosionWatch(learner.explosion_factor)
        self.begin()

    def begin(self) -> None:
        """Start with frame 0 of another run."""
        self._losses = LossMeter()
        self._metrics = {name: LossMeter() for name in self._learner.metrics}

    def statistics(self) -> tuple[LossStatistics, Mapping[str, LossStatistics]]:
        """Return the loss, and each metric, so far."""
        metrics = {name: meter.statistics() for name, meter in self._metrics.items()}
        return self._losses.statistics(), MappingProxyType(metrics)

    def loss(self, outputs: Value, target: Value | None) -> Tensor | None:
        """Return the loss of an output; None without a target, if one is needed.

        Raises:
            ConfigurationError: The loss function is not one.
        """
        learner = self._learner
        if target is None and not learner.unsupervised:
            return None
        loss = learner.loss(outputs) if learner.unsupervised else learner.loss(outputs, target)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            kind = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ConfigurationError(f"the loss gave {kind}. Let it return one number, as a tensor.")
        return loss

    def note(self, frame: int, loss: Tensor | None, outputs: Value, target: Value | None) -> float | None:
        """Take a frame's loss into the means, and its metrics; return the loss as a number.

        Args:
            frame: Its number.
            loss: What `loss` returned.
            outputs: What was predicted, and handed out.
            target: What it should have been.
        """
        if loss is None:
            return None
        # On a GPU this waits for the device: the result carries the number, and whether it is finite decides the step.
        number = float(loss.detach())
        self._losses.record(number)
        if target is not None:
            for name, metric in self._learner.metrics.items():
                self._metrics[name].record(float(metric(detached(outputs), target)))
        if self.on_loss is not None:
            self.on_loss(frame, target, number)
        return number

    def fault(self, frame: int, loss: Tensor) -> str | None:
        """Say what makes a loss unfit to learn from; None: nothing does.

        Raises:
            ConfigurationError: It depends on nothing that is trained.
        """
        if not loss.requires_grad:
            raise ConfigurationError(
                f"the loss of frame {frame} depends on nothing that can be trained. Compute it from the output, with "
                "operations that have a gradient, of a module with trainable weights."
            )
        number = float(loss.detach())
        if not math.isfinite(number):
            return f"the loss of frame {frame} is {number}"
        if self._watch is not None and self._watch.exceeds(number):
            factor = self._learner.explosion_factor
            return f"the loss of frame {frame} is {number:g}, more than {factor:g} times its recent mean"
        return None


class ExplosionWatch:
    """Tells a loss that is many times what losses were lately.

    Args:
        factor: How many times the mean of the latest 50 or so is too much.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._count = 0
        self._mean = 0.0

    def exceeds(self, loss: float) -> bool:
        """Take a finite loss in, and say whether it is too large; the first 20 never are."""
        is_ready = self._count >= _LEAST and self._mean > 0
        limit = self._factor * self._mean if is_ready else math.inf
        # No more than the limit: the mean follows a stream that has really changed, and no single loss lifts it far.
        taken = min(loss, limit)
        self._count += 1
        self._mean += (taken - self._mean) * max(_WEIGHT, 1.0 / self._count)
        return loss > limit
