"""What learning has done so far: per stage, and for the whole network."""

from __future__ import annotations

import math
from dataclasses import dataclass

_RECENT = 0.05
"""Weight of the newest loss in the recent one: it looks back over some 20 frames."""


@dataclass(frozen=True, slots=True)
class LearningStatistics:
    """What one stage has learned, since the pipeline was first entered.

    Attributes:
        version: How often its weights have changed: once at every optimiser step, and whenever they are replaced.
        updates: Optimiser steps taken.
        skipped: Losses and gradients that were not finite, and taught nothing.
        discarded: Gradients that came to the stage and found nothing to go back through: after learning was frozen or
            the weights were replaced, for a frame that failed, or on their way when the pipeline was left.
        gradient_norm: 2-norm of the stage's latest gradient, before clipping; 0.0 before the first.
        kept: Forward passes kept to come back to; at most the delay of the update rule plus 1.
        is_frozen: Whether the stage learns nothing now.
        restored: How often the last good weights were put back.
        input_change: Relative root mean square change of the stage's input over the frames that its gradient is late,
            averaged over samples; above about 0.5, `graph` ``current`` does harm. None: nothing was measured yet, or
            its gradient is not late.
    """

    version: int
    updates: int
    skipped: int
    discarded: int
    gradient_norm: float
    kept: int
    is_frozen: bool
    restored: int
    input_change: float | None


@dataclass(frozen=True, slots=True)
class LossStatistics:
    """A progressive measure, the loss or a metric: every frame is predicted first and learned from afterwards.

    Attributes:
        count: Numbers that were finite.
        mean: Over all of them; NaN before the first.
        recent: Exponential average over the latest 20 or so; NaN before the first.
    """

    count: int
    mean: float
    recent: float


class LossMeter:
    """Takes in the losses as they come, in constant memory."""

    __slots__ = ("_count", "_recent", "_sum")

    def __init__(self) -> None:
        self._count = 0
        self._sum = 0.0
        self._recent = 0.0

    def record(self, loss: float) -> None:
        """Take one loss in; one that is not finite is left out."""
        if not math.isfinite(loss):
            return
        self._count += 1
        self._sum += loss
        self._recent = loss if self._count == 1 else self._recent + _RECENT * (loss - self._recent)

    def statistics(self) -> LossStatistics:
        """Return what came in so far."""
        count = self._count
        return (
            LossStatistics(count, self._sum / count, self._recent) if count else LossStatistics(0, math.nan, math.nan)
        )
