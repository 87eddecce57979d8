"""Targets that a client sends behind their frames."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable

from partime_async.errors import ConfigurationError, FrameError, LabelError
from partime_async.frame import Value

Label = Callable[[int, Value], Awaitable[None]]
"""`Pipeline.label`."""

FRAMES_KEPT = 1024
"""Frames whose numbers are remembered: a target that comes later than that is too late for any learner."""

TARGETS_WAITING = 64
"""Targets that wait for the results of their frames: of frames that were dropped none ever comes."""


class LateTargets:
    """Finds out which frame of the pipeline a client means, and hands its target on.

    A client numbers its frames itself, and may name one before its result is there.

    Args:
        label: Takes targets by the pipeline's number of the frame; None: nothing learns from them.

    Attributes:
        taken: Targets that were handed on.
        refused: Targets that came too late, or for frames that were never heard of.
    """

    def __init__(self, label: Label | None) -> None:
        self.taken = 0
        self.refused = 0
        self._label = label
        self._indices: OrderedDict[int, int] = OrderedDict()
        self._waiting: OrderedDict[int, Value] = OrderedDict()

    async def take(self, sequence: int, target: Value) -> None:
        """Take the target of a frame that was sent before.

        Raises:
            FrameError: It is of no use: nothing learns from it, or it comes too late; nobody's fault, or the client's.

        Cancellation: safe.
        """
        if self._label is None:
            raise FrameError("nothing here learns from targets. Send frames alone.")
        index = self._indices.pop(sequence, None)
        if index is not None:
            await self._hand_on(self._label, sequence, index, target)
            return
        self._waiting[sequence] = target
        if len(self._waiting) > TARGETS_WAITING:
            self._waiting.popitem(last=False)
            self.refused += 1

    async def result(self, sequence: int, index: int) -> None:
        """Take note of which frame of the pipeline a client's frame has become.

        Raises:
            FrameError: Its target is there, and of no use any more.

        Cancellation: safe.
        """
        if self._label is None:
            return
        target = self._waiting.pop(sequence, None)
        if target is not None:
            await self._hand_on(self._label, sequence, index, target)
            return
        self._indices[sequence] = index
        if len(self._indices) > FRAMES_KEPT:
            self._indices.popitem(last=False)

    async def _hand_on(self, label: Label, sequence: int, index: int, target: Value) -> None:
        try:
            await label(index, target)
        except LabelError as error:
            self.refused += 1
            raise FrameError(
                f"the target of frame {sequence} came too late. Send it at most {error.delay} frame(s) behind its own."
            ) from None
        except ConfigurationError as error:
            self.refused += 1
            raise FrameError("nothing here learns from targets. Send frames alone.") from error
        self.taken += 1
