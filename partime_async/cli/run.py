"""`partime-async run`: a source through a network cut into stages, on an event loop that only moves frames."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import torch
from torch import nn

from partime_async.cli.intake import Intake, open_intake
from partime_async.cli.interrupt import Interrupt
from partime_async.cli.options import LoopKind, RunOptions
from partime_async.cli.progress import Header
from partime_async.cli.report import Reporter, reporter
from partime_async.cli.stream import CutShort, ReportSink, Stream, VideoSink
from partime_async.cli.style import tell_error
from partime_async.cli.summary import Summary
from partime_async.errors import ConfigurationError, DeadlineExceeded
from partime_async.models import build
from partime_async.offload import in_thread
from partime_async.pipeline import Pipeline
from partime_async.sinks import ThreadedSink

_CLOSE_S = 1.0
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
        with asyncio.Runner(loop_factory=_loop_factory(loop)) as runner, suppress(asyncio.CancelledError):
            runner.run(job.run())
    except ConfigurationError as error:
        job.error = error
    code = _told(job, with_traceback=with_traceback)
    if job.is_stuck:
        # A thread in the middle of native code could crash the interpreter on its way out.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


@dataclass(slots=True)
class Job:
    """One run: its parts are opened in order and closed in the opposite one, whatever happens.

    Attributes:
        header: What runs; None: it has not come to that.
        stream: What streams; None: the same.
        error: What ended it, if it was not the source.
        written: Frames of the finished video.
        is_stuck: Whether a thread is left that did not end in time.
    """

    options: RunOptions
    told: Reporter
    interrupt: Interrupt
    header: Header | None = None
    stream: Stream | None = None
    error: Exception | None = None
    written: int = 0
    is_stuck: bool = False

    async def run(self) -> None:
        """Do it; what went wrong is in the attributes."""
        with self.interrupt:
            try:
                async with ThreadedSink(self.told, capacity=2) as report:
                    with self._first_error():
                        await self._set_up_and_stream(report)
            except Exception as error:
                self._note(error)

    async def _set_up_and_stream(self, report: ReportSink) -> None:
        options = self.options
        await report.write(f"opening {options.source}")
        async with self._intake() as intake:
            await report.write(f"building {options.model}")
            pipeline = Pipeline(
                await in_thread(lambda: _model(options), name="partime model"),
                intake.example,
                stages=options.cut.stages,
                balance=options.cut.balance,
                devices=options.cut.devices,
                on_error=options.on_error,
                close_timeout_s=_CLOSE_S,
            )
