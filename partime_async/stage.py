"""One stage: the task that takes frames, enqueues their work on the stage's device stream, and hands them on.

    inbox --> [credit?] --> stream.enqueue(work, after frame.event) --> outbox     at once: nobody waits for the device
                  ^                     |
                  +---- on_complete ----+                                          in batches, from the device

A frame leaves for the next stage the moment its work is *enqueued*; the devices settle the order among themselves. A
credit stands for one frame enqueued and not complete, so a stage runs ahead by at most `depth` frames.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from partime_async.channel import Channel, ChannelStatistics
from partime_async.devices import DeviceEvent, DeviceStream, Work, ready
from partime_async.flight import AnyMark, Frame, Mark
from partime_async.forecast import Pace
from partime_async.learning import LearningStatistics
from partime_async.lesson import Lesson
from partime_async.metrics import Distribution, MovingAverage, Quantiles
from partime_async.stateful import StateKeeper

LEAST_DEPTH = 2
MOST_DEPTH = 16
_AHEAD_S = 0.002
"""How much work a stage keeps enqueued if its depth is not given: enough to outlast a trip through the event loop."""


class Inbox(Protocol):
    """Where a stage takes frames and marks from: a channel, or the pipeline's admission."""

    async def get(self) -> Frame | AnyMark:
        """Wait for the next frame or mark."""
        ...


@dataclass(frozen=True, slots=True)
class StageStatistics:
    """What one stage has done.

    Attributes:
        stage: Its number, from 0.
        device: Its device's name.
        layers: Names of its first and last layer.
        frames: Frames it has finished, failed ones included.
        failed: Frames on which it raised.
        enqueued: Frames on its stream now.
        busy_s: Seconds its device spent on its work.
        busy_share: `busy_s` over the seconds since the pipeline started.
        service_s: Distribution of the seconds per frame.
        queue: What waits before it; None for the first stage, which takes from the feeds.
        learning: What it has learned, in this run and those before; None: it does not.
    """

    stage: int
    device: str
    layers: tuple[str, str]
    frames: int
    failed: int
    enqueued: int
    busy_s: float
    busy_share: float
    service_s: Quantiles
    queue: ChannelStatistics | None
    learning: LearningStatistics | None


class Stage:
    """One partition of the network on its own device stream.

    Args:
        number: From 0.
        layers: Names of the first and last layer.
        device: The device's name.
        stream: Where the work is enqueued; owned by the stage.
        work: What it does to each frame.
        depth: How many frames may be enqueued and not complete; None: as many as some 2 ms of work, 2 to 16.
        inbox: Where frames come from.
        outbox: The next stage's inbox; None for the last stage.
        to_host: Whether the output goes to host memory: to the caller, or to a stage that works there.
        on_frame: Called on the event loop when the last stage has finished a frame.
        states: The states of the stage's layers that remember.
        lesson: How the stage learns; None: it does not.
    """

    def __init__(
        self,
        number: int,
        *,
        layers: tuple[str, str],
        device: str,
        stream: DeviceStream,
        work: Work,
        depth: int | None,
        inbox: Inbox,
        outbox: Channel[Frame | AnyMark] | None,
        to_host: bool,
        on_frame: Callable[[Frame], None],
        states: StateKeeper,
        lesson: Lesson | None = None,
    ) -> None:
        self.number = number
        self.layers = layers
        self.device = device
        self.stream = stream
        self._prepared_s = stream.busy_s  # warming up is no work on frames
        self.weight_version = 0
        self._work = work
        self._depth = LEAST_DEPTH if depth is None else depth
        self._is_adaptive = depth is None
        self._inbox = inbox
        self._outbox = outbox
        self._to_host = to_host
        self._on_frame = on_frame
        self._states = states
        self._lesson = lesson
        self._enqueued = 0
        self._frames = 0
        self._failed = 0
        self._service = Distribution()
        self._recent_service = MovingAverage()
        self._credit: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Take, enqueue and hand on, until cancelled."""
        inbox, outbox = self._inbox, self._outbox
        while True:
            if self._enqueued >= self._depth:
                await self._credit_back()
            item = await inbox.get()
            if isinstance(item, Mark):
                if item.changes_weights:
                    self.weight_version += 1
                item.enqueue(self.number, self.stream, self.layers)
            else:
                self._enqueue(item)
            if outbox is not None:
                await outbox.put(item)
            # The output is on its way: the next stage does not wait for what this one learns.
            if self._lesson is not None and isinstance(item, Frame):
                await self._lesson.learn(item)

    def pace(self, now: float | None = None) -> Pace:
        """Return what the stage needs per frame, averaged over the latest ones; 0.0 before the first.

        Args:
            now: Clock time in seconds, to say also what its lessons still take; None: leave that out.
        """
        if self._lesson is None:
            return Pace(self._recent_service.value)
        lesson = self._lesson
        lessons_s = {} if now is None else lesson.remaining_s(now)
        return Pace(
            self._recent_service.value,
            lesson.recent_service.value,
            lessons_s,
            lesson_s=lesson.recent_lesson.value,
            reach=lesson.reach,
        )

    def statistics(self, elapsed_s: float) -> StageStatistics:
        """Return what the stage has done in the `elapsed_s` seconds since the pipeline started."""
        busy_s = self.stream.busy_s - self._prepared_s
        return StageStatistics(
            stage=self.number,
            device=self.device,
            layers=self.layers,
            frames=self._frames,
            failed=self._failed,
            enqueued=self._enqueued,
            busy_s=busy_s,
            busy_share=busy_s / elapsed_s if elapsed_s > 0 else 0.0,
            service_s=self._service.snapshot(),
            queue=self._inbox.statistics() if isinstance(self._inbox, Channel) else None,
            learning=self._lesson.learner.statistics() if self._lesson is not None else None,
        )

    def _enqueue(self, frame: Frame) -> None:
        self._enqueued += 1
        work = self._work
        if self._lesson is not None:
            work = self._lesson.forward(frame)
        else:
            frame.versions.append(self.weight_version)
        if self._states:
            work = self._states.work(work, frame.owner, frame.epoch)
        source = frame.event
        if source is None:
            assert frame.value is not None
            source = ready(frame.value)
            frame.value = None
        is_last = self._outbox is None

        def complete(event: DeviceEvent) -> None:
            event.on_complete = None  # it keeps the frame, which keeps the event: tensors would wait for the collector
            self._complete(event)
            if is_last:
                self._on_frame(frame)

        frame.event = self.stream.enqueue(work, source, complete, to_host=self._to_host)
        frame.events.append(frame.event)

    def _complete(self, event: DeviceEvent) -> None:
        self._enqueued -= 1
        self._frames += 1
        if event.error is None:
            seconds = event.finished_at - event.started_at
            self._service.record(seconds)
            self._recent_service.update(seconds)
            if self._is_adaptive:
                ahead = _AHEAD_S / max(self.pace().period_s, 1e-6)
                depth = min(MOST_DEPTH, max(LEAST_DEPTH, round(ahead)))
                if depth != self._depth:
                    self._depth = depth
                    if isinstance(self._inbox, Channel):
                        self._inbox.resize(depth)
        elif event.origin is self.stream:
            self._failed += 1
        # Woken when half of the credits are back: one wake-up then enqueues several frames.
        if self._credit is not None and 2 * self._enqueued <= self._depth and not self._credit.done():
            self._credit.set_result(None)

    async def _credit_back(self) -> None:
        self._credit = asyncio.get_running_loop().create_future()
        try:
            await self._credit
        finally:
            self._credit = None
