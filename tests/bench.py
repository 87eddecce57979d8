"""A feed before an admission of its own: the test stands in for the stages."""

from __future__ import annotations

import asyncio

import torch

import partime_async as pa
from partime_async.admission import Admission
from partime_async.clock import LoopClock
from partime_async.flight import Frame
from partime_async.frame import FrameSpec, Result
from partime_async.overflow import FeedOptions
from tests.nets import assert_accounted

FRAME = torch.ones(1, 2)


class Bench:
    """A feed before an admission of its own, whose frames the test takes and finishes."""

    def __init__(
        self, overflow: str = "block", *, capacity: int = 2, max_age_s: float | None = None, unread_limit: int = 3
    ) -> None:
        self.admission = Admission(lambda: None)
        self.left: list[pa.Feed] = []
        self.feed = pa.Feed(
            FeedOptions.checked(overflow, max_age_s, capacity, unread_limit),
            spec=FrameSpec(FRAME),
            clock=LoopClock(),
            admission=self.admission,
            close_timeout_s=10.0,
            on_enter=lambda _: None,
            on_exit=self.left.append,
        )

    @property
    def frames(self) -> pa.FrameCounts:
        """Where the frames are."""
        counts = self.feed.statistics().frames
        assert_accounted(counts)
        return counts

    def take(self) -> Frame | None:
        """Admit the next frame, if there is one."""
        frame = self.admission._next()
        assert frame is None or isinstance(frame, Frame)
        return frame

    def finish(self, frame: Frame | None, error: pa.StageError | None = None) -> None:
        """Give a frame its result."""
        assert frame is not None
        self.admission.finished(frame)
        frame.owner.finish(frame, result_of(frame, error))

    def work(self) -> int:
        """Take and finish all frames that may be taken; return how many."""
        count = 0
        while (frame := self.take()) is not None:
            self.finish(frame)
            count += 1
        return count


def result_of(frame: Frame, error: pa.StageError | None = None) -> Result:
    """Make the result of a frame."""
    return Result(
        index=frame.index,
        sequence=frame.sequence,
        captured_at=frame.captured_at,
        latency_s=0.0,
        timings=(),
        weight_versions=(),
        loss=None,
        error=error,
        context=frame.context,
        value=None if error is not None else FRAME,
    )


def stage_error() -> pa.StageError:
    """Make what a stage raises."""
    return pa.StageError(1, ("a", "b"), 7, ValueError("of the layer"))


async def steps(count: int = 5) -> None:
    """Let the other tasks take this many steps."""
    for _ in range(count):
        await asyncio.sleep(0)
