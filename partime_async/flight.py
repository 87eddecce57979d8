"""What travels between the stages: admitted frames, and the marks that lie between two of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeAlias, TypeVar

from partime_async.devices import DeviceEvent, DeviceStream, ready
from partime_async.errors import StageError, WorkAborted
from partime_async.frame import Result, Value

T = TypeVar("T", covariant=True)


class Owner(Protocol):
    """Where a frame came from, and where its result goes."""

    def __hash__(self) -> int:
        """Tell owners apart: what the layers remember is kept by owner."""
        ...

    def finish(self, frame: Frame, result: Result) -> None:
        """Take the result of a frame that the last stage has finished."""
        ...

    def discard(self, frame: Frame) -> None:
        """Take note that an admitted frame was aborted and has no result."""
        ...


class Frame:
    """One frame from its offer to its result, with all that is known about it.

    Attributes:
        offered_at: Clock time in seconds at which its feed got it.
        admitted_at: Clock time in seconds at which it was let into the first stage.
        value: The network's input, until the first stage has taken it.
        event: The completion of the latest work enqueued for it.
        events: The completions of all its work, stage by stage.
        versions: The weight version of each stage when its work was enqueued.
        target: What came along with the frame.
        lesson_target: What the last stage learns from at this frame's event: the target of the frame that was admitted
            `label_delay` frames before.
        needs_time: Whether it is learned from only if there is time to spare.
        is_lesson: Whether there is something to learn from at this frame's event.
        may_be_lesson: Whether this frame itself is learned from, at its event or at a later one, as far as is known.
        loss: The loss of this frame, set by the last stage of a learning pipeline.
        epoch: How often the feed's state was reset before this frame: it meets no state of an earlier epoch.
        reply: Where the one caller of `process` waits for the result; None for frames of a feed.
    """

    __slots__ = (
        "admitted_at",
        "captured_at",
        "context",
        "epoch",
        "event",
        "events",
        "index",
        "is_lesson",
        "lesson_target",
        "loss",
        "may_be_lesson",
        "needs_time",
        "offered_at",
        "owner",
        "reply",
        "sequence",
        "target",
        "value",
        "versions",
    )

    def __init__(
        self,
        owner: Owner,
        sequence: int,
        value: Value,
        *,
        target: Value | None,
        captured_at: float,
        context: object,
    ) -> None:
        self.owner = owner
        self.sequence = sequence
        self.value: Value | None = value
        self.target = target
        self.captured_at = captured_at
        self.context = context
        self.index = -1
        self.offered_at = captured_at
        self.admitted_at = 0.0
        self.needs_time = False
        self.is_lesson = False
        self.may_be_lesson = False
        self.lesson_target: Value | None = None
        self.loss: float | None = None
        self.event: DeviceEvent | None = None
        self.events: list[DeviceEvent] = []
        self.versions: list[int] = []
        self.epoch = 0
        self.reply: asyncio.Future[Result] | None = None


class Mark(Generic[T]):
    """Something every stage does between the same two frames.

    It travels behind the last admitted frame, and each stage enqueues its action behind that frame's work. So what the
    actions see, or change, belongs to one frame boundary over all stages, and the stream need not stop.

    If the pipeline is aborted while a mark that changes weights is between two stages, the stages that it did not reach
    act all the same, in the end: weights of two versions in one network are nobody's wish.

    Args:
        actions: One for each stage, called on the stage's device thread.
        changes_weights: Whether the weights have another version behind it.

    Attributes:
        boundary: How many frames were admitted before it; set by the admission.
    """

    def __init__(self, actions: Sequence[Callable[[], T]], *, changes_weights: bool = False) -> None:
        self.changes_weights = changes_weights
        self.boundary = 0
        self._actions = actions
        self._results: dict[int, T] = {}
        self._missing = len(actions)
        self._aborted: WorkAborted | None = None
        self._done: asyncio.Future[list[T]] = asyncio.get_running_loop().create_future()

    def enqueue(self, stage: int, stream: DeviceStream, layers: tuple[str, str]) -> None:
        """Enqueue the action of a stage on its stream; `layers` names the stage if the action raises."""
        action = self._actions[stage]

        def work(_: Value) -> Value:
            self._results[stage] = action()
            return ()

        def arrived(event: DeviceEvent) -> None:
            self._missing -= 1
            if isinstance(event.error, WorkAborted):
                self._aborted = event.error
            elif event.error is not None:
                self.fail(StageError(stage, layers, None, event.error))
            if not self._missing:
                self.conclude(self._aborted or WorkAborted("the mark was lost."))

        stream.enqueue(work, ready(()), arrived)

    def when_done(self, action: Callable[[], None]) -> None:
        """Call `action`, soon, once the mark has been everywhere or has failed."""
        self._done.add_done_callback(lambda _: action())

    def conclude(self, error: BaseException) -> None:
        """Come to an end, as no stage will act any more: with the results, or with this error if some are missing."""
        if self._done.done():
            return
        if self.changes_weights and self._results:
            # On the event loop, for once: it happens only if an abort came between two stages of a weight swap.
            for stage, action in enumerate(self._actions):
                if stage not in self._results:
                    self._results[stage] = action()
        if len(self._results) == len(self._actions):
            self._done.set_result([result for _, result in sorted(self._results.items())])
        else:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Tell who waits that the mark will not arrive."""
        if not self._done.done():
            self._done.set_exception(error)
            self._done.exception()  # looked at: it is no fault if nobody waits

    async def wait(self) -> list[T]:
        """Return what the actions returned, stage by stage.

        Cancellation: safe; the mark itself goes on.
        """
        return await asyncio.shield(self._done)


AnyMark: TypeAlias = Mark[object]
