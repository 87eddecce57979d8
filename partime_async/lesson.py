"""The learning half of a stage's task: which gradient its next backward pass waits for, and where its own one goes.

    stage h      F(t) enqueued, output handed on, then B(t) enqueued behind G_{h+1}(t - lag)
    stage h+1    puts the event of its B(t), which brings G_{h+1}(t), into the link to stage h

The links carry one event per frame, in order, so "the gradient of event t - lag" is simply the next one: data flow
alone decides, on the device, and the wait for it is the flow control.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from torch import Tensor

from partime_async.channel import Channel
from partime_async.devices import DeviceEvent, DeviceStream, Work, ready
from partime_async.errors import WorkAborted
from partime_async.flight import Frame
from partime_async.frame import Value
from partime_async.learning import StageLearner
from partime_async.learning.recovery import Recovery
from partime_async.learning.rule import Graph, UpdateRule
from partime_async.learning.skip import SkipLearner
from partime_async.metrics import MovingAverage

GradientLink: TypeAlias = Channel[DeviceEvent]
"""From one stage to the one before: the events that bring its gradients, one per frame."""


def gradient_link(lag: int) -> GradientLink:
    """Return a link that never makes the later stage wait: it is at most at the frame the earlier one has sent."""
    return Channel(lag + 2)


class Lesson:
    """One stage's forward and backward passes, as work for its stream.

    Args:
        learner: Does the work, on the stage's device thread.
        stream: The stage's.
        rule: The update rule.
        reach: How many frames a gradient takes from the last stage to this one.
        incoming: Brings the gradients of the next stage; None at the last stage.
        outgoing: Takes this stage's gradients to the one before; None at the first stage.
        on_error: Called on the event loop, with the frame's number, if a backward pass or a step raised: learning
            cannot go on.
        recovery: The stage's copies of good weights; None: it has none.
        skip: Learns beside the pipeline, from copies that the first stage makes; None: nobody does.
    """

    def __init__(
        self,
        learner: StageLearner,
        *,
        stream: DeviceStream,
        rule: UpdateRule,
        reach: int,
        incoming: GradientLink | None,
        outgoing: GradientLink | None,
        on_error: Callable[[BaseException, int], None],
        recovery: Recovery | None = None,
        skip: SkipLearner | None = None,
    ) -> None:
        self.learner = learner
        self.reach = reach
        self.recent_lesson = MovingAverage()
        self.recent_service = MovingAverage()
        # Which of the latest frames are lessons: this stage learns at the event that the last one's gradient reaches.
        self._are_lessons: deque[bool] = deque(maxlen=reach + 1)
        self._keeps_own = rule.graph is not Graph.CURRENT
        self._pending: dict[int, tuple[DeviceEvent, bool]] = {}
        self._stream = stream
        self._lag = rule.lag
        self._incoming = incoming
        self._outgoing = outgoing
        self._on_error = on_error
        self._recovery = recovery
        self._skip = skip

    def forward(self, frame: Frame) -> Work:
        """Return the forward pass of a frame."""
        self._are_lessons.append(frame.is_lesson)
        # Under `current` a gradient goes back through the pass of the event at which it comes.
        is_kept = frame.may_be_lesson if self._keeps_own else self._is_lesson_now

        def work(value: Value) -> Value:
            if self._recovery is not None:
                self._recovery.prepare()
            if self._skip is not None:
                self._skip.keep(frame.index, value)
            frame.versions.append(self.learner.version)
            output, loss = self.learner.forward(frame.index, value, frame.lesson_target, is_kept=is_kept)
            frame.loss = loss
            return output

        return work

    async def learn(self, frame: Frame) -> None:
        """Enqueue the backward pass of a frame's event, behind its forward pass and the gradient it needs.

        Cancellation: safe; nothing was enqueued.
        """
        source = ready(())  # no gradient
        if self._incoming is not None and frame.index >= self._lag:
            source = await self._incoming.get()

        index = frame.index

        def work(value: Value) -> Value:
            if self._recovery is not None:
                self._recovery.prepare()
            emitted = self.learner.backward(index, (value,) if isinstance(value, Tensor) else value)
            if self._recovery is not None:
                self._recovery.reached(index + 1)
            return emitted

        # The forward pass is what others wait for: the last stage's ends with a result.
        event = self._stream.enqueue(work, source, partial(self._learned, index), is_background=True)
        self._pending[index] = (event, self._is_lesson_now)
        if self._outgoing is not None:
            self._outgoing.put_nowait(event)

    @property
    def _is_lesson_now(self) -> bool:
        """Whether a gradient comes at the event of the latest frame."""
        return len(self._are_lessons) == self._are_lessons.maxlen and self._are_lessons[0]

    def remaining_s(self, now: float) -> dict[int, float]:
        """Return how many seconds each lesson that is enqueued still takes, as lately, by the frame's number.

        Args:
            now: Clock time in seconds.
        """
        usual_s = self.recent_lesson.value
        return {
            index: usual_s if event.started_at <= 0.0 else max(0.0, event.started_at + usual_s - now)
            for index, (event, is_lesson) in self._pending.items()
            if is_lesson
        }

    def end(self) -> None:
        """Discard and count the gradients that are still on their way; when nothing is enqueued any more."""
        while self._incoming is not None and len(self._incoming):
            event = self._incoming.get_nowait()
            self.learner.discard(event.value)
            event.release()

    def _learned(self, index: int, event: DeviceEvent) -> None:
        _, is_lesson = self._pending.pop(index)
        if event.error is None:
            seconds = event.finished_at - event.started_at
            self.recent_service.update(seconds)
            if is_lesson:
                self.recent_lesson.update(seconds)
        elif event.origin is self._stream and not isinstance(event.error, WorkAborted):
            self._on_error(event.error, index)
