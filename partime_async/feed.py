"""A feed: one client's ordered frames into the shared pipeline, and their results back out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from partime_async.accounting import Accounts, DropCause, FeedStatistics
from partime_async.admission import Admission
from partime_async.channel import Channel, ChannelClosed, EndOfChannel
from partime_async.clock import Clock
from partime_async.errors import (
    DeadlineExceeded,
    FeedClosed,
    FeedFull,
    FrameDropped,
    FrameError,
    PipelineNotRunning,
)
from partime_async.flight import Frame
from partime_async.frame import FrameSpec, Result, Value, check_target
from partime_async.overflow import LIVE, FeedOptions, Learn, Overflow


class Feed:
    """Frames in by `put`, results out by iteration, in the order of admission: ``async with pipeline.feed() as feed``.

    Leaving the block normally finishes what was put, within the pipeline's `close_timeout_s`; leaving it by an
    exception drops what has not started.

    A frame and its target belong to the pipeline from `put` to the frame's result, and a target that waits for a later
    event, under a `label_delay`, until then: do not write into them in between.
    """

    def __init__(
        self,
        options: FeedOptions,
        *,
        spec: FrameSpec,
        clock: Clock,
        admission: Admission,
        close_timeout_s: float,
        on_enter: Callable[[Feed], None],
        on_exit: Callable[[Feed], None],
    ) -> None:
        self.options = options
        self.accounts = Accounts()
        self.is_queued = False
        self._spec = spec
        self._now = clock.now
        self._admission = admission
        self._close_timeout_s = close_timeout_s
        self._on_enter = on_enter
        self._on_exit = on_exit
        self._inbox: Channel[Frame] = Channel(options.capacity)
        keeps = options.capacity if options.overflow in LIVE else options.unread_limit
        self._outbox: Channel[Result] = Channel(keeps)
        self._is_discarding = False
        self._epoch = 0
        self._is_entered = False
        self._error: BaseException | None = None
        self._traceback: TracebackType | None = None
        self._settled: asyncio.Future[None] | None = None
        self._landed: Callable[[], None] | None = None

    # -- frames in ------------------------------------------------------------------------------------------------

    async def put(
        self,
        frame: Value,
        target: Value | None = None,
        *,
        captured_at: float | None = None,
        context: object = None,
    ) -> int:
        """Offer one frame; wait for room if the policy is ``block``.

        Args:
            frame: Shapes and dtypes of the pipeline's example.
            target: What the network should say, for a learner.
            captured_at: Seconds of `time.monotonic`; now, if None.
            context: Anything; it comes back with the result.

        Returns:
            The frame's number in this feed, from 0: `Result.sequence`.

        Raises:
            FrameError: The caller's frame is not what the pipeline takes; it was counted as dropped, ``invalid``.
            FeedClosed: The caller closed the feed before.
            FeedFull: The policy is ``fail`` and the feed is full; the frame was counted as dropped, ``refused``.
            StageError: The pipeline has stopped on this error.

        Cancellation: safe; a frame that waits for room is dropped, ``cancelled``, one that has its place goes on.
        """
        entry = self._offer(frame, target, captured_at, context)
        if self.options.overflow is Overflow.BLOCK:
            await self._put_waiting(entry)
        else:
            self._put_now(entry)
            # A source that never waits must not keep the loop from everybody else.
            await asyncio.sleep(0)
        return entry.sequence

    def put_nowait(
        self,
        frame: Value,
        target: Value | None = None,
        *,
        captured_at: float | None = None,
        context: object = None,
    ) -> int:
        """Offer one frame without waiting; like `put`, but a full feed under ``block`` raises `FeedFull`."""
        entry = self._offer(frame, target, captured_at, context)
        self._put_now(entry)
        return entry.sequence

    async def process(self, frame: Value, target: Value | None, captured_at: float | None, context: object) -> Result:
        """Offer one frame and wait for its own result; behind `Pipeline.process`."""
        entry = self._offer(frame, target, captured_at, context)
        entry.reply = asyncio.get_running_loop().create_future()
        await self._put_waiting(entry)
        try:
            result = await entry.reply
        except asyncio.CancelledError:
            if self._inbox.remove(entry):
                self.accounts.drop_waiting(DropCause.CANCELLED)
            elif _has_output(entry.reply):
                self.accounts.drop_unread(DropCause.CANCELLED)
            self._settle()
            raise
        if result.error is not None:
            try:
                raise result.error
            finally:
                # The error keeps this frame: a cycle would hold its tensors until the collector comes by.
                del result, entry
        self.accounts.deliver(self._now() - result.captured_at)
        self._settle()
        return result

    # -- results out ----------------------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Result:
        """Wait for the next result; the end comes when the feed is closed and all results were read.

        Raises:
            StageError: The pipeline stopped on this error.

        Cancellation: safe; no result is lost.
        """
        self._check_entered()
        result: Result | None = None
        with suppress(EndOfChannel):
            result = await self._outbox.get()
        if result is None:
            raise StopAsyncIteration if self._error is None else self._closed_error()
        if result.error is None:
            self.accounts.deliver(self._now() - result.captured_at)
        self._admission.announce(self)
        self._settle()
        return result

    # -- the end --------------------------------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """Whether the feed accepts no more frames."""
        return self._inbox.is_closed

    def close(self, error: BaseException | None = None) -> None:
        """Accept no more frames; those put before are still processed. Idempotent.

        Args:
            error: Raised to the reader after the last result: what ended the source. Ignored if nothing can follow.
        """
        has_ended = self._inbox.is_closed and self._is_settled
        if error is not None and self._error is None and not has_ended:
            self._error = error
            self._traceback = error.__traceback__
        self._inbox.close()
        self._settle()

    def when_landed(self, action: Callable[[], None]) -> None:
        """Call `action` once every frame is delivered, failed or dropped: at once, if so now."""
        if self._has_landed:
            action()
        else:
            self._landed = action

    async def drain(self) -> None:
        """Wait until every frame put so far has gone through the pipeline.

        Cancellation: safe.
        """
        while not self._is_settled:
            if self._settled is None:
                self._settled = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._settled)

    async def _drain_in_time(self) -> None:
        try:
            async with asyncio.timeout(self._close_timeout_s):
                await self.drain()
        except TimeoutError:
            missing = self.accounts.waiting + self.accounts.in_flight
            raise DeadlineExceeded(f"{missing} frame(s) of a feed were not finished", self._close_timeout_s) from None

    def abort(self, error: BaseException | None = None) -> None:
        """Accept no more frames and drop those that have not started. Idempotent.

        Args:
            error: Raised to whoever puts, or reads beyond the results that are there.
        """
        self.close(error)
        while (frame := self._inbox.peek()) is not None:
            self._inbox.evict()
            self._drop(frame, DropCause.ABORTED)
        self._settle()

    def reset_state(self) -> None:
        """Let the layers that remember start over with the next frame that is put; see `Stateful`."""
        self._epoch += 1

    @property
    def has_reader(self) -> bool:
        """Whether a task waits for the next result right now."""
        return self._outbox.getters > 0

    def discard_results(self) -> None:
        """Drop the results that are unread, and those still to come: nobody reads them any more."""
        self._is_discarding = True
        while self._outbox.peek() is not None:
            self._drop_result(self._outbox.evict())
        self._admission.announce(self)
        self._settle()

    def statistics(self) -> FeedStatistics:
        """Return what the feed has seen so far."""
        accounts = self.accounts
        return FeedStatistics(accounts.counts(), accounts.latency.snapshot(), accounts.age.snapshot())

    async def __aenter__(self) -> Self:
        if self._is_entered:
            raise FeedClosed("the feed was entered before. Open another one with pipeline.feed().")
        self._on_enter(self)
        self._is_entered = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.discard_results()
        try:
            if error is None:
                self.close()
                await self._drain_in_time()
        finally:
            self.abort()
            self._on_exit(self)

    # -- the pipeline's side --------------------------------------------------------------------------------------

    def take(self) -> Frame | None:
        """Give the frame whose turn it is to the admission, or None; see `admission.Waiting`."""
        inbox, options = self._inbox, self.options
        has_room = (
            options.overflow in LIVE
            or self._is_discarding
            or self.accounts.in_flight + len(self._outbox) < options.unread_limit
        )
        if not has_room:
            return None
        while len(inbox):
            frame = inbox.get_nowait()
            if options.max_age_s is not None and self._now() - frame.captured_at > options.max_age_s:
                self._drop(frame, DropCause.STALE)
                continue
            self.accounts.admit()
            return frame
        self._settle()
        return None

    def finish(self, frame: Frame, result: Result) -> None:
        """Take the result of a frame; see `flight.Owner`."""
        is_failed = result.error is not None
        self.accounts.finish(is_failed=is_failed, latency_s=result.latency_s)
        if frame.reply is not None:
            if not frame.reply.done():
                frame.reply.set_result(result)
            elif not is_failed:
                self.accounts.drop_unread(DropCause.CANCELLED)
        elif self._is_discarding:
            self._drop_result(result)
        else:
            if self._outbox.is_full:
                self._drop_result(self._outbox.evict())
            self._outbox.put_nowait(result)
        self._settle()

    def discard(self, frame: Frame) -> None:
        """Take note that an admitted frame was aborted; see `flight.Owner`."""
        self.accounts.drop_in_flight(DropCause.ABORTED)
        self._fail_reply(frame, DropCause.ABORTED)
        self._settle()

    # -- inside ---------------------------------------------------------------------------------------------------

    def _offer(self, value: Value, target: Value | None, captured_at: float | None, context: object) -> Frame:
        self._check_entered()
        if self._inbox.is_closed:
            raise self._closed_error()
        number = self.accounts.offer()
        try:
            self._spec.check(value)
            if target is not None:
                check_target(target)
            now = self._now()
            captured = now if captured_at is None else _checked_time(captured_at)
        except FrameError:
            self.accounts.drop_waiting(DropCause.INVALID)
            raise
        frame = Frame(self, number, value, target=target, captured_at=captured, context=context)
        frame.epoch = self._epoch
        frame.offered_at = now
        frame.needs_time = self.options.learn is Learn.SPARE
        self._admission.offered(now)
        return frame

    async def _put_waiting(self, entry: Frame) -> None:
        try:
            await self._inbox.put(entry)
        except asyncio.CancelledError:
            self.accounts.drop_waiting(DropCause.CANCELLED)
            self._settle()
            raise
        except ChannelClosed:
            self.accounts.drop_waiting(DropCause.CLOSED if self._error is None else DropCause.ABORTED)
            self._settle()
        else:
            self._admission.announce(self)
            return
        # Not inside the handler: neither a context nor `from None`, which erases its cause, should befall this error.
        raise self._closed_error()

    def _put_now(self, entry: Frame) -> None:
        if self._inbox.is_full:
            if self.options.overflow in LIVE:
                self._drop(self._inbox.evict(), DropCause.OVERFLOW)
            else:
                self.accounts.drop_waiting(DropCause.REFUSED)
                if self.options.overflow is not Overflow.DROP_NEWEST:
                    raise FeedFull(self._inbox.capacity)
                return
        self._inbox.put_nowait(entry)
        self._admission.announce(self)

    def _drop(self, frame: Frame, cause: DropCause) -> None:
        self.accounts.drop_waiting(cause)
        self._fail_reply(frame, cause)

    def _drop_result(self, result: Result) -> None:
        if result.error is None:
            self.accounts.drop_unread(DropCause.UNREAD)

    def _fail_reply(self, frame: Frame, cause: DropCause) -> None:
        if frame.reply is not None and not frame.reply.done():
            frame.reply.set_exception(self._error if self._error is not None else FrameDropped(cause))

    def _closed_error(self) -> BaseException:
        if self._error is None:
            return FeedClosed("the feed is closed. Do not put after close().")
        # As it came: one error is raised to many callers, and each raise would add to its traceback.
        return self._error.with_traceback(self._traceback)

    def _check_entered(self) -> None:
        if not self._is_entered:
            raise PipelineNotRunning("the feed is not open. Use it inside `async with pipeline.feed() as feed`.")

    @property
    def _is_settled(self) -> bool:
        return self.accounts.waiting == 0 and self.accounts.in_flight == 0

    @property
    def _has_landed(self) -> bool:
        return self._is_settled and self.accounts.unread == 0

    def _settle(self) -> None:
        if not self._is_settled:
            return
        if self._inbox.is_closed:
            self._outbox.close()
        if self._settled is not None and not self._settled.done():
            self._settled.set_result(None)
        self._settled = None
        if self._landed is not None and self._has_landed:
            landed, self._landed = self._landed, None
            landed()


def _checked_time(captured_at: float) -> float:
    try:
        seconds = float(captured_at)
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise FrameError(f"captured_at is {captured_at!r}. Pass seconds of time.monotonic(), or None for now.")
    return seconds


def _has_output(reply: asyncio.Future[Result]) -> bool:
    return reply.done() and not reply.cancelled() and reply.exception() is None and reply.result().error is None
