"""How much a stage's input changes while its gradient is on its way."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from torch import Tensor

from partime_async.errors import PartimeWarning
from partime_async.metrics import MovingAverage

_EVERY = 64
"""Frames from one look to the next: a look reads two inputs three times, well under 1% of what 64 frames cost."""

_LIMIT = 0.5
_LOOKS = 8


class SmoothnessMeter:
    """Relative root mean square change of a stage's input over its gradient delay, in every 64th frame.

    0 for a still picture, 1.4 for frames that have nothing to do with each other. Under ``current`` a gradient meets
    the activations of a frame that many frames newer than its own, which is harmless as long as the two are alike.
    Above about 0.5 it is not: a rule of thumb from four real streams.

    Holds at most one input.

    Args:
        delay: Of the stage, in frames; 0: nothing to measure.
        stage: Number of the stage whose user is warned, once, if the change stays above 0.5; None: nobody is.
    """

    def __init__(self, delay: int, *, stage: int | None) -> None:
        self._delay = delay
        self._stage = stage
        self._every = max(_EVERY, delay + 1)
        self._kept: tuple[int, Sequence[Tensor]] | None = None
        self._mean = MovingAverage()
        self._looks = 0

    @property
    def change(self) -> float | None:
        """The change, averaged over the latest looks; None before the first, or without a delay."""
        return self._mean.value if self._looks else None

    def look(self, event: int, inputs: Sequence[Tensor]) -> None:
        """Take note of a frame's input, which nobody writes into; on the stage's device thread."""
        if not self._delay:
            return
        if self._kept is not None and event >= self._kept[0] + self._delay:
            start, before = self._kept
            self._kept = None
            if event == start + self._delay:
                self._measure(before, inputs)
        if event % self._every == 0:
            self._kept = (event, [tensor.detach() for tensor in inputs if tensor.is_floating_point()])

    def begin(self) -> None:
        """Start with frame 0 of another run."""
        self._kept = None

    def _measure(self, before: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        now = [tensor.detach() for tensor in inputs if tensor.is_floating_point()]
        if not now:
            return
        moved = sum(float((new - old).square().sum()) for old, new in zip(before, now, strict=True))
        size = sum(float(new.square().sum() + old.square().sum()) for old, new in zip(before, now, strict=True)) / 2
        change = math.sqrt(moved / size) if size > 0 else 0.0
        if not math.isfinite(change):
            return
        self._mean.update(change)
        self._looks += 1
        if self._stage is not None and self._looks >= _LOOKS and self._mean.value > _LIMIT:
            stage, self._stage = self._stage, None
            warnings.warn(
                f"the input of stage {stage} changes by {self._mean.value:.0%} over the {self._delay} frame(s) that "
                "its gradient is late, and with graph='current' that gradient meets the newer frame. Use graph='stash' "
                "(rules.pipedream()) for this stream, or a smaller lag, or fewer stages.",
                PartimeWarning,
                stacklevel=2,
            )
