"""The way into the first stage: fair turns among the feeds, and no more frames in flight than freshness allows."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from partime_async.flight import AnyMark, Frame
from partime_async.forecast import Outlook


class Waiting(Protocol):
    """A feed, as the admission sees it."""

    is_queued: bool

    def take(self) -> Frame | None:
        """Give the frame whose turn it is, or None if there is none, or no room for its result."""
        ...


class Admission:
    """Chooses the next frame when the first stage can start one: the inbox of the first stage.

    Late binding: a frame is chosen not when it arrives but when it can start, so the newest frame of a live feed waits
    outside, where a newer one may still take its place. Feeds take turns, a frame each. Marks go first: they lie behind
    the last admitted frame.

    Args:
        window: Returns how many frames may be in flight now; None: as many as the stages take.
        delay: Returns how many seconds the next frame should still wait outside.
        on_admit: Called with each frame when it has its number.
        outlook: Is told when frames are offered to the feeds; None: nobody asks.

    Attributes:
        flying: The frames admitted and not through the last stage, in that order.
        admitted: How many frames were ever admitted.
    """

    def __init__(
        self,
        window: Callable[[], int | None],
        delay: Callable[[], float] | None = None,
        on_admit: Callable[[Frame], None] | None = None,
        outlook: Outlook | None = None,
    ) -> None:
        self.flying: dict[Frame, None] = {}
        self.admitted = 0
        self._window = window
        self._delay = delay
        self._on_admit = on_admit
        self._outlook = outlook
        self._marks: deque[AnyMark] = deque()
        self._turns: deque[Waiting] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._delay_s = 0.0

    def offered(self, now: float) -> None:
        """Take note that a feed got a frame, whatever becomes of it."""
        if self._outlook is not None:
            self._outlook.offered(now)

    def announce(self, feed: Waiting) -> None:
        """Take note that a feed has a frame, or has room again."""
        if not feed.is_queued:
            feed.is_queued = True
            self._turns.append(feed)
            self._wake()

    def send(self, mark: AnyMark) -> None:
        """Put a mark behind the last admitted frame."""
        self._marks.append(mark)
        self._wake()

    def finished(self, frame: Frame) -> None:
        """Take note that a frame has left the last stage."""
        self.flying.pop(frame, None)
        self._wake()

    async def get(self) -> Frame | AnyMark:
        """Wait for the next frame or mark.

        Cancellation: safe; nothing is taken.
        """
        loop = asyncio.get_running_loop()
        while (item := self._next()) is None:
            self._waiter = loop.create_future()
            timer = loop.call_later(self._delay_s, self._wake) if self._delay_s else None
            try:
                await self._waiter
            finally:
                self._waiter = None
                if timer is not None:
                    timer.cancel()
        return item

    def abort(self, error: BaseException) -> None:
        """Fail the marks that have not started."""
        while self._marks:
            self._marks.popleft().fail(error)

    def _next(self) -> Frame | AnyMark | None:
        self._delay_s = 0.0
        if self._marks:
            mark = self._marks.popleft()
            mark.boundary = self.admitted
            return mark
        window = self._window()
        if window is not None and len(self.flying) >= window:
            return None
        turns = self._turns
        if window is not None and turns and self._delay is not None:
            self._delay_s = self._delay()
            if self._delay_s > 0.0:
                return None
        while turns:
            feed = turns.popleft()
            frame = feed.take()
            if frame is None:
                # It announces itself again.
                feed.is_queued = False
                continue
            turns.append(feed)
            frame.index = self.admitted
            self.admitted += 1
            if self._on_admit is not None:
                self._on_admit(frame)
            self.flying[frame] = None
            return frame
        return None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
