"""The heart of `partime-async run`: frames in, results out, a look at the figures now and then.

    source thread --> pump --> feed --> stages --> read --> video thread
                                 tick --> report thread

Everything that computes, decodes, draws or writes does so in a thread of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from partime_async.cli.intake import Intake
from partime_async.cli.progress import Header, Progress, Recent
from partime_async.errors import FeedClosed, SourceError, StageError
from partime_async.feed import Feed
from partime_async.frame import FrameSpec, SourceFrame, Value
from partime_async.offload import is_being_cancelled
from partime_async.picture import Image
from partime_async.pipeline import Pipeline
from partime_async.sinks import ThreadedSink
from partime_async.statistics import PipelineStatistics

DRAIN_S = 0.4
"""Seconds for the frames in flight to come out once the user has had enough; then they are dropped."""

VideoSink = ThreadedSink[[Value, Image | None, float | None]]
ReportSink = ThreadedSink[[str | Header | Progress]]


class CutShort(Exception):
    """The user ended the stream, and what was in flight did not come out in time."""


@dataclass(slots=True)
class Stream:
    """One source through one running pipeline.

    Attributes:
        pipeline: Entered.
        feed: Not entered yet.
        intake: Where frames come from.
        limit: How many frames to take; None: all.
        statistics: The pipeline's when the last result had been read; None before.
        failure: The error of the first frame that failed.
    """

    pipeline: Pipeline
    feed: Feed
    intake: Intake
    limit: int | None
    statistics: PipelineStatistics | None = None
    failure: StageError | None = None
    _error: Exception | None = None
    _is_writing: bool = False
    _is_cut_short: bool = False

    async def run(
        self,
        video: VideoSink | None,
        report: ReportSink,
        *,
        interval_s: float,
        on_start: Callable[[Callable[[], None]], None],
    ) -> None:
        """Stream until the source ends, something breaks, or it is stopped.

        Args:
            video: Gets every result.
            report: Gets a `Progress` now and then.
            interval_s: Seconds between two of them.
            on_start: Called with what stops the stream: no more frames, and a moment for those in flight.

        Raises:
            StageError: The pipeline stopped on it.
            CutShort: It was stopped, and frames were dropped.
            Exception: What the source, the video or the report raised.

        Cancellation: safe; frames that have not started are dropped.
        """
        async with self.feed as feed:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._guarded(self._read(video)), name="results")
                pump = tasks.create_task(self._pump(), name="source")
                ticks = tasks.create_task(self._guarded(self._tick(report, interval_s)), name="report")

                def stop() -> None:
                    feed.close()
                    pump.cancel()
                    asyncio.get_running_loop().call_later(DRAIN_S, cut_short)

                def cut_short() -> None:
                    self._is_cut_short = True
                    if not self._is_writing:  # what was delivered is also written
                        reading.cancel()

                on_start(stop)
                await asyncio.wait([reading, ticks], return_when=asyncio.FIRST_COMPLETED)
                if reading.cancelled():
                    self._error = self._error or CutShort()
                self.statistics = self.pipeline.statistics()
                for task in (pump, reading, ticks):
                    task.cancel()
            if self._error is not None:
                raise self._error

    async def _guarded(self, work: Awaitable[None]) -> None:
        """Keep an error for `run` to raise as it is: out of a task it would come in an exception group."""
        try:
            await work
        except Exception as error:
            self._error = self._error or error

    async def _pump(self) -> None:
        feed, spec = self.feed, FrameSpec(self.intake.example)
        error: Exception | None = None
        try:
            count = 0
            async for item in self.intake.frames:
                if isinstance(item, SourceFrame):
                    await feed.put(item.value, item.target, captured_at=item.captured_at, context=item)
                else:
                    frame, target = spec.unpack(item)
                    await feed.put(frame, target)
                count += 1
                if count == self.limit:
                    break
        except FeedClosed:
            pass  # stopped
        except asyncio.CancelledError as raised:
            if is_being_cancelled():
                raise
            error = SourceError("the source was cancelled by its own doing. Let it raise another error, or just end.")
            error.__cause__ = raised
        except Exception as raised:
            error = raised  # the reader gets it, behind the results of the frames before
        finally:
            feed.close(error)

    async def _read(self, video: VideoSink | None) -> None:
        async for result in self.feed:
            if result.error is not None:
                self.failure = self.failure or result.error
            elif video is not None:
                frame = result.context if isinstance(result.context, SourceFrame) else SourceFrame(())
                self._is_writing = True
                await video.write(result.output, frame.image, frame.position_s)
                self._is_writing = False
                if self._is_cut_short:
                    raise CutShort

    async def _tick(self, report: ReportSink, interval_s: float) -> None:
        recent = Recent()
        while True:
            await asyncio.sleep(interval_s)
            await report.write(recent.progress(self.pipeline.statistics()))
