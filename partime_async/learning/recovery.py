"""Back to the last good weights, at one frame boundary in every stage, when learning has gone astray.

    boundary  0 . . . . . . . S . . . . . . . 2S . . . . . . b . . .     before frame b
    copies    x               x               x    ^         |
                              ^                    t: fault  |
                              +------------- put back -------+           b = t + 2 + lag (N - 1)

Every stage copies its weights, buffers, optimiser and schedule at boundaries 0, S, 2S, ... A fault, a loss or gradient
that is not fit to learn from, is known to the one stage that met it, at event t. Frames and gradients carry the news
no slower than themselves: a gradient takes lag events per stage on its way back, a frame none on its way forward, so at
boundary b, and not at any earlier one, every stage is sure to know. There they all go back to the newest copy that is
at least S frames older than the fault, or to the oldest there is. So the frames alone decide what happens, never the
timing. A fault that was met before a boundary at which weights were put back, or replaced, is void behind it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from partime_async.learning.rule import UpdateRule
from partime_async.learning.stage_learner import StageLearner
from partime_async.learning.stepper import Memory


class FaultBook:
    """The faults of all stages, each by the event at which it was met; used from their device threads.

    Args:
        rule: Which gradient meets which activations.
        stages: How many there are.
    """

    def __init__(self, rule: UpdateRule, stages: int) -> None:
        self.reach = 2 + rule.lag * (stages - 1)
        self._events: set[int] = set()
        self._lock = threading.Lock()

    def note(self, event: int) -> None:
        """Note a fault."""
        with self._lock:
            # The first stage is at most lag (N - 1) frames ahead of the last: nobody asks for what is older.
            self._events = {known for known in self._events if known >= event - 2 * self.reach}
            self._events.add(event)

    def has(self, event: int) -> bool:
        """Whether a stage met a fault at this event."""
        with self._lock:
            return event in self._events

    def clear(self) -> None:
        """Forget all faults: the events of another run have the same numbers."""
        with self._lock:
            self._events.clear()


@dataclass(frozen=True, slots=True)
class _Copy:
    """All that a stage has learned up to one boundary."""

    boundary: int
    tensors: list[Tensor]
    memory: Memory


class Recovery:
    """One stage's copies, and its way back to them; used on the stage's device thread.

    At most 2 + `FaultBook.reach` / `every` copies are kept, rounded up: three, as a rule, of weights and optimiser.

    Args:
        learner: The stage's.
        module: The stage's layers.
        faults: Shared by all stages.
        every: Frames from one copy to the next.
        on_restore: Called when the weights were put back.
    """

    def __init__(
        self, learner: StageLearner, module: nn.Module, faults: FaultBook, *, every: int, on_restore: Callable[[], None]
    ) -> None:
        self._learner = learner
        self._module = module
        self._faults = faults
        self._every = every
        self._on_restore = on_restore
        self._copies: deque[_Copy] = deque()
        self._boundary = 0
        self._since = 0

    def begin(self) -> None:
        """Start with frame 0 of another run, from the weights as they are."""
        self._faults.clear()
        self._copies.clear()
        self._boundary = self._since = 0

    def prepare(self) -> None:
        """Make the first copy, if there is none; before anything of a frame changes what is copied."""
        if not self._copies:
            self._copies.append(self._copied())

    def replaced(self) -> None:
        """Take note that the weights were replaced: there is no way back to the ones before, and no need."""
        self._since = self._boundary
        self._copies.clear()
        self._copies.append(self._copied())

    def reached(self, boundary: int) -> None:
        """Put the weights back, or copy them, if it is time; behind all that frame `boundary` - 1 teaches."""
        self._boundary = boundary
        met_at = boundary - self._faults.reach
        if met_at >= self._since and self._faults.has(met_at):
            self._put_back(met_at)
        elif boundary % self._every == 0:
            self._copies.append(self._copied())
            # A fault yet to be acted on was met one event later at the earliest.
            while len(self._copies) > 1 and self._copies[1].boundary <= met_at + 1 - self._every:
                self._copies.popleft()

    def _put_back(self, met_at: int) -> None:
        while len(self._copies) > 1 and self._copies[-1].boundary > met_at - self._every:
            self._copies.pop()
        good = self._copies[-1]
        with torch.no_grad():
            for tensor, value in zip(self._tensors(), good.tensors, strict=True):
                tensor.copy_(value)
        self._learner.put_back(good.memory)
        self._since = self._boundary
        self._on_restore()

    def _tensors(self) -> list[Tensor]:
        # Not once and for all: a layer may put a new tensor in its buffer's place.
        return [*self._module.parameters(), *self._module.buffers()]

    def _copied(self) -> _Copy:
        tensors = [tensor.detach().clone() for tensor in self._tensors()]
        return _Copy(self._boundary, tensors, self._learner.memory())
