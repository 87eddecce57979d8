"""What one device alone would learn: from every N-th frame, beside the pipeline, for comparison."""

from __future__ import annotations

import asyncio
import math
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from partime_async.devices import DeviceEvent, DeviceStream, ready
from partime_async.devices.draws import Draws
from partime_async.errors import PartimeWarning, WorkAborted
from partime_async.frame import Value
from partime_async.learning.learner import Learner, NonFinite
from partime_async.learning.passes import copied
from partime_async.learning.rules import exact
from partime_async.learning.stage_learner import StageLearner

_AHEAD = 4
"""Frames that may wait for it; the rest it misses: it must never hold the pipeline up."""

_KEPT = 64
"""Frames, beyond the label delay, that may be on their way from the first stage to the last."""

_WEIGHT = 0.02
"""Of the newest pair of losses: the recent means look back over some 50 pairs."""

_PAIRS = 200
_MARGIN = 1.05

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class SkipStatistics:
    """The pipeline's losses and those of one device that learns from every N-th frame, on the same frames.

    Attributes:
        pairs: Frames that both predicted.
        pipeline: Recent mean of the pipeline's losses on them; NaN before the first.
        skip: That of the one device's losses.
        missed: Frames that were its turn when it was behind.
    """

    pairs: int
    pipeline: float
    skip: float
    missed: int


class SkipLearner:
    """A private copy of the network that learns, by an ordinary training loop, from every N-th frame.

    N devices in a pipeline see N times the frames of one; this shows whether learning late from all of them beats
    learning at once from every N-th. It has a thread, an optimiser and random numbers of its own; what it does changes
    no bit of the pipeline. It predicts a frame first and learns from it afterwards, while the pipeline learns, too.
    Which frames it misses depends on timing, and so do its figures.

    Args:
        learner: The pipeline's; its rule, hooks and label delay have no part in this.
        module: The copy, which belongs to this object.
        every: N, the number of stages.
        stream: On the CPU, for this object alone.
        draws: The random numbers of the copy's layers; None: they draw none.

    Attributes:
        on_error: Called on the event loop if it raised.
    """

    on_error: Callable[[BaseException], None]

    def __init__(
        self, learner: Learner, module: nn.Module, every: int, *, stream: DeviceStream, draws: Draws | None
    ) -> None:
        self.stream = stream
        self._every = every
        self._module = module
        self._draws = draws
        self._most_kept = learner.label_delay // every + _KEPT
        self._learner = replace(
            learner,
            rule=exact(),
            label_delay=0,
            gradient_hook=None,
            metrics={},
            non_finite=NonFinite.SKIP,
            compare_to_skip=False,
            on_update=None,
        )
        self._inputs: dict[int, Value] = {}
        self._lock = threading.Lock()
        self._places = threading.Semaphore(_AHEAD)
        self._missed = 0
        self._is_warned = False
        self._restart()

    def statistics(self) -> SkipStatistics:
        """Return what was seen so far; from any thread."""
        return replace(self._statistics, missed=self._missed)

    def keep(self, index: int, value: Value) -> None:
        """Take a copy of a frame, if it is one of the N-th; on the device thread of the first stage."""
        if index % self._every:
            return
        own = copied(value, device=_CPU)
        with self._lock:
            self._inputs[index] = own
            if len(self._inputs) > self._most_kept:  # nobody labels them
                del self._inputs[next(iter(self._inputs))]

    def compare(self, index: int, target: Value | None, loss: float, *, learns: bool) -> None:
        """Take the pipeline's loss on a frame, and do the same frame; on the device thread of the last stage.

        Args:
            index: The frame's admission number.
            target: What the network should have said.
            loss: The pipeline's.
            learns: Whether the pipeline learns from it.
        """
        if index % self._every:
            return
        with self._lock:
            value = self._inputs.pop(index, None)
            for older in [known for known in self._inputs if known < index]:
                del self._inputs[older]  # a frame that failed, or that has no target
        if value is None:
            return
        if not self._places.acquire(blocking=False):
            self._missed += 1
            return
        goal = None if target is None else copied(target, device=_CPU)

        def work(given: Value) -> Value:
            self._do(given, goal, loss, learns=learns)
            return ()

        self.stream.enqueue(work, ready(value), self._done)

    async def restart(self, state: Mapping[str, Tensor]) -> None:
        """Go on from these weights, with a new optimiser; the figures start over.

        Cancellation: safe; it restarts all the same.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def work(_: Value) -> Value:
            self._module.load_state_dict(state)
            self._restart()
            return ()

        def finish(_: DeviceEvent) -> None:
            if not done.done():
                done.set_result(None)

        self.stream.enqueue(work, ready(()), finish)
        await done

    def _restart(self) -> None:
        self._own = StageLearner(self._learner, self._module, 0, 1, draws=self._draws)
        self._statistics = SkipStatistics(0, math.nan, math.nan, 0)
        self._event = 0
        self._worse = 0

    def _do(self, value: Value, target: Value | None, loss: float, *, learns: bool) -> None:
        event, self._event = self._event, self._event + 1
        self._own.freeze(not learns)
        _, own_loss = self._own.forward(event, value, target)
        self._own.backward(event)
        if own_loss is not None and math.isfinite(own_loss) and math.isfinite(loss):
            self._note(loss, own_loss)

    def _note(self, loss: float, own_loss: float) -> None:
        before = self._statistics
        pairs = before.pairs + 1
        weight = max(_WEIGHT, 1.0 / pairs)
        pipeline = loss if pairs == 1 else before.pipeline + weight * (loss - before.pipeline)
        skip = own_loss if pairs == 1 else before.skip + weight * (own_loss - before.skip)
        self._statistics = SkipStatistics(pairs, pipeline, skip, 0)
        self._worse = self._worse + 1 if pipeline > _MARGIN * skip else 0
        if self._worse >= _PAIRS and not self._is_warned:
            self._is_warned = True
            warnings.warn(
                f"over the last {self._worse} frames compared, the pipeline's loss ({pipeline:.4g}) was above that of "
                f"one device that learns from every frame whose number is a multiple of {self._every} ({skip:.4g}). "
                "Use fewer stages, a smaller lag, or another learning rate.",
                PartimeWarning,
                stacklevel=2,
            )

    def _done(self, event: DeviceEvent) -> None:
        self._places.release()
        if event.error is not None and not isinstance(event.error, WorkAborted):
            self.on_error(event.error)
