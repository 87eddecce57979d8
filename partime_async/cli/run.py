"""`partime-async run`: a source through a network cut into stages, on an event loop that only moves frames."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from partime_async.checkpoint import check_place
from partime_async.cli.intake import Intake, open_intake, shown
from partime_async.cli.interrupt import Interrupt
from partime_async.cli.options import LoopKind, RunOptions
from partime_async.cli.output import ProcessedVideo
from partime_async.cli.progress import Header
from partime_async.cli.report import Reporter, reporter
from partime_async.cli.stream import CutShort, ReportSink, Stream, VideoSink
from partime_async.cli.style import in_one_line, tell_error
from partime_async.cli.summary import Summary
from partime_async.errors import ConfigurationError, DeadlineExceeded
from partime_async.models import build
from partime_async.offload import in_thread
from partime_async.overflow import Learn
from partime_async.pipeline import Pipeline
from partime_async.sinks import ThreadedSink

_CLOSE_S = 0.7
"""Seconds for a stage to end the frame it is at, when the rest was dropped; likewise for a source."""

_DEFAULT_RATE = 30.0
"""Of videos made from sources that state no rate."""


def run(options: RunOptions, *, loop: LoopKind | None, is_json: bool, with_traceback: bool) -> int:
    """Run the job, tell how it goes, and return the exit code.

    0: all went well. 1: it ran, and an error ended it or no frame came through. 2: it could not start. 130 (143):
    Ctrl-C (SIGTERM) ended it, with a summary if it ran: it was not carried out to its end, and a script must see that.

    Args:
        options: What to do.
        loop: Which event loop; None: uvloop where there is one.
        is_json: Whether a machine reads.
        with_traceback: Whether errors come with their tracebacks.
    """
    told = reporter(is_json=is_json)
    interrupt = Interrupt()
    job = Job(options, told, interrupt)
    try:
        with asyncio.Runner(loop_factory=loop_factory(loop)) as runner, suppress(asyncio.CancelledError):
            runner.run(job.run())
    except ConfigurationError as error:
        job.error = error
    return _told(job, with_traceback=with_traceback)


@dataclass(slots=True)
class Job:
    """One run: its parts are opened in order and closed in the opposite one, whatever happens.

    Attributes:
        header: What runs; None: it has not come to that.
        stream: What streams; None: the same.
        error: What ended it, if it was not the source.
        written: Frames of the finished video.
        saved: Where the weights are kept; None: they are not.
    """

    options: RunOptions
    told: Reporter
    interrupt: Interrupt
    header: Header | None = None
    stream: Stream | None = None
    error: Exception | None = None
    written: int = 0
    saved: str | None = None

    async def run(self) -> None:
        """Do it; what went wrong is in the attributes."""
        with self.interrupt:
            try:
                async with ThreadedSink(self.told, capacity=2) as report:
                    await self._set_up_and_stream(report)
            except Exception as error:
                self._note(error)

    async def _set_up_and_stream(self, report: ReportSink) -> None:
        options = self.options
        await report.write(f"opening {shown(options.source)}")
        async with self._intake() as intake:
            await report.write(f"building {options.model}")
            pipeline = Pipeline(
                await in_thread(lambda: _model(options), name="partime model"),
                intake.example,
                stages=options.cut.stages,
                balance=options.cut.balance,
                devices=options.cut.devices,
                learner=None if options.learning is None else options.learning.learner,
                on_error=options.on_error,
                close_timeout_s=_CLOSE_S,
            )
            if options.save is not None:  # not only in the end, when all that was learned would be lost
                await in_thread(partial(check_place, Path(options.save)), name="partime save")
            try:
                async with self._video(intake) as video:
                    await report.write("planning and warming up")
                    async with pipeline:
                        if options.weights is not None:
                            await pipeline.load(options.weights, weights_only=True)
                        self.header = self._header(pipeline, intake)
                        await report.write(self.header)
                        await self._stream(pipeline, intake, video, report)
            except Exception as error:
                self._note(error)  # what was learned until then is worth keeping
            await self._save(pipeline)

    async def _save(self, pipeline: Pipeline) -> None:
        path = self.options.save
        # A stage that does not stop still writes into its weights.
        if path is not None and self.stream is not None and not isinstance(self.error, DeadlineExceeded):
            await pipeline.save(path)
            self.saved = path

    async def _stream(self, pipeline: Pipeline, intake: Intake, video: VideoSink | None, report: ReportSink) -> None:
        options = self.options
        learn = Learn.ALWAYS if options.learning is None else options.learning.learn
        feed = pipeline.feed(overflow=options.overflow, max_age_s=options.max_age_s, learn=learn)
        self.stream = Stream(pipeline, feed, intake, options.frames)
        try:
            await self.stream.run(video, report, interval_s=self.told.interval_s, on_start=self.interrupt.when)
        except Exception as error:
            self._note(error)
            raise

    def _note(self, error: Exception) -> None:
        """Keep the first error: those of closing what is open come from it, or matter less."""
        is_impatience = isinstance(error, DeadlineExceeded) and self.interrupt.signal is not None
        if self.error is None and not is_impatience and not isinstance(error, CutShort):
            self.error = error

    def _header(self, pipeline: Pipeline, intake: Intake) -> Header:
        limit = self.options.frames
        counts = [count for count in (intake.source.frame_count, limit) if count is not None]
        return Header(
            source=intake.description + ("" if limit is None else f", the first {limit}"),
            model=self.options.model,
            plan=pipeline.plan,
            total=min(counts, default=None),
            overflow=self.options.overflow,
        )

    @asynccontextmanager
    async def _intake(self) -> AsyncIterator[Intake]:
        intake = await open_intake(self.options)
        if self.options.learning is not None:
            intake = replace(intake, frames=self.options.learning.taught(intake.frames, intake.example))
        try:
            yield intake
        finally:
            with suppress(TimeoutError):  # a device that stopped delivering; its thread is a daemon
                async with asyncio.timeout(_CLOSE_S):
                    await intake.frames.aclose()
            await in_thread(intake.source.close, name="partime source closing")

    @asynccontextmanager
    async def _video(self, intake: Intake) -> AsyncIterator[VideoSink | None]:
        path = self.options.output
        if path is None:
            yield None
            return
        video = await in_thread(lambda: _processed_video(path, intake), name="partime video")
        failure: Exception | None = None
        async with ThreadedSink(video) as sink:
            try:
                yield sink
            except Exception as error:
                failure = error  # what was processed until then is worth keeping
        self.written = video.finished_frames
        if failure is not None:
            raise failure


def _processed_video(path: str, intake: Intake) -> ProcessedVideo:
    return ProcessedVideo(path, frame_rate=intake.source.frame_rate or _DEFAULT_RATE)


def _model(options: RunOptions) -> nn.Module:
    torch.manual_seed(options.seed)
    return build(options.model).eval()


def loop_factory(loop: LoopKind | None) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the event loop that was asked for; uvloop's, where there is one and nobody asked.

    Raises:
        ConfigurationError: uvloop was asked for and is not installed.
    """
    if loop is not LoopKind.ASYNCIO:
        try:
            import uvloop
        except ImportError:
            if loop is LoopKind.UVLOOP:
                raise ConfigurationError("uvloop is not installed. Install it, or use --loop asyncio.") from None
        else:
            return uvloop.new_event_loop
    return asyncio.new_event_loop


def _told(job: Job, *, with_traceback: bool) -> int:
    """Tell how it went, and return the exit code."""
    error, stream, interrupt = job.error, job.stream, job.interrupt
    statistics = None if stream is None else stream.statistics
    if isinstance(error, BrokenPipeError):
        return _reader_gone()
    if job.header is not None and stream is not None and statistics is not None:
        frames = stream.feed.statistics().frames
        summary = Summary(
            header=job.header,
            statistics=statistics,
            frames=frames,
            output=job.options.output,
            written=job.written,
            saved=job.saved,
            is_interrupted=interrupt.signal is not None,
            error=in_one_line(error),
            failure=in_one_line(stream.failure),
        )
        try:
            job.told.finish(summary)
        except BrokenPipeError:
            return _reader_gone()
        code = 1 if error is not None or (frames.failed and not frames.delivered) else interrupt.exit_code
    else:
        code = interrupt.exit_code or 2
        if interrupt.signal is not None:
            sys.stderr.write("interrupted before the first frame\n")
    if error is not None:
        tell_error(error, with_traceback=with_traceback)
    return code


def _reader_gone() -> int:
    """Keep Python from complaining at its end that nobody reads stdout any more, as after `| head`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
