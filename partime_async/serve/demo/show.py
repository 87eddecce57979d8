"""One source of pictures on its way through the network, and back to everybody who watches it.

source ─► prepare ─► feed (newest wins) ─► network ─► draw (on a thread) ─► everybody who watches
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

from partime_async.errors import FrameError
from partime_async.feed import Feed
from partime_async.frame import Result, SourceFrame
from partime_async.iteration import AsyncFrames
from partime_async.overflow import Learn
from partime_async.picture import Image
from partime_async.serve.client import Client
from partime_async.serve.demo.engine import Engine, Generation
from partime_async.serve.demo.readings import FrameMeter
from partime_async.serve.demo.scene import VISIT_S, with_stranger
from partime_async.webrtc.worker import Worker


class Show(ABC):
    """A source, its feed, and its watchers.

    Args:
        engine: Has the network.
        open_source: Opens the source; called once, when `run` begins.
        name: Of its thread.

    Attributes:
        learn: Which of its frames are learned from; see `Pipeline.feed`.
        watchers: Who gets the pictures.
        meter: How many frames came and went, and how old they were.
    """

    learn = Learn.ALWAYS

    def __init__(self, engine: Engine, open_source: Callable[[], AsyncFrames[SourceFrame]], *, name: str) -> None:
        self.watchers: set[Client] = set()
        self.meter = FrameMeter()
        self._engine = engine
        self._open_source = open_source
        self._worker = Worker(f"partime {name}")
        self._feed: Feed | None = None
        self._is_fed = asyncio.Event()
        self._shown_at = float("-inf")
        self._stranger_since: float | None = None

    @abstractmethod
    def prepare(self, frame: SourceFrame) -> SourceFrame | None:
        """Return what the network gets of a frame, and learns from it; None: nothing.

        Runs on the event loop: no computing. What it returns comes back to `draw` and `seen`.
        """

    @abstractmethod
    def draw(self, frame: SourceFrame, result: Result) -> Image:
        """Make a picture of a result; runs on the show's thread, one at a time, in order."""

    @abstractmethod
    def seen(self, frame: SourceFrame, result: Result) -> None:
        """Take note of a result, after its picture was drawn; runs on the event loop."""

    def let_stranger_in(self) -> None:
        """Let something cross the picture that the network has never seen."""
        self._stranger_since = time.monotonic()

    @property
    def has_stranger(self) -> bool:
        """Whether it is in the picture now."""
        since = self._stranger_since
        return since is not None and time.monotonic() - since < VISIT_S

    async def run(self) -> None:
        """Show until the source ends.

        Raises:
            Exception: What broke the source or the pipeline.

        Cancellation: safe.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._read_all(), name="partime demo results")
                await self._take_in()
                reading.cancel()
        finally:
            await self._worker.aclose()

    async def _take_in(self) -> None:
        frames = self._open_source()
        try:
            async for frame in frames:
                self.meter.came()
                await self._is_fed.wait()
                await self._offer(frame)
        finally:
            await frames.aclose()

    async def _offer(self, frame: SourceFrame) -> None:
        since = self._stranger_since
        if since is not None and frame.image is not None:
            if self.has_stranger:
                frame = await self._worker.run(partial(with_stranger, frame, time.monotonic() - since))
            else:
                self._stranger_since = None
        prepared = self.prepare(frame)
        feed = self._feed
        if prepared is None or feed is None:
            return
        # The feed was looked up after the wait above: that of a pipeline that was taken over from is closed.
        feed.put_nowait(prepared.value, prepared.target, captured_at=prepared.captured_at, context=prepared)

    async def _read_all(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            async for generation in self._engine.generations():
                tasks.create_task(self._read(generation), name=f"partime demo feed {generation.number}")

    async def _read(self, generation: Generation) -> None:
        """Read one pipeline's results until another one has taken over, and these have all come."""
        with generation.used() as pipeline:
            async with pipeline.feed(overflow="latest", learn=self.learn) as feed:
                before, self._feed = self._feed, feed
                self._is_fed.set()
                self.meter.follow(feed)
                if before is not None:
                    before.close()
                try:
                    async for result in feed:
                        await self._finish(result)
                finally:
                    self.meter.unfollow(feed)
                    if self._feed is feed:
                        self._feed = None
                        self._is_fed.clear()

    async def _finish(self, result: Result) -> None:
        frame = result.context
        assert isinstance(frame, SourceFrame)
        if result.error is not None or frame.image is None:
            return
        try:
            picture = await self._worker.run(partial(self.draw, frame, result))
        except FrameError:
            return  # a camera that gives pictures of no size, while it starts
        if result.captured_at <= self._shown_at:
            return  # the last of a pipeline that was taken over from, overtaken by its successor's first
        self._shown_at = result.captured_at
        for client in tuple(self.watchers):
            client.show(picture, captured_at=result.captured_at)
            client.delivered(result)
        self.meter.went(time.monotonic() - result.captured_at)
        self.seen(frame, result)
