"""A pipeline while it runs: its tasks, feeds and frames, from the first stage's start to the last thread's end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TypeVar

from partime_async.accounting import Accounts
from partime_async.admission import Admission
from partime_async.assembly import Assembly
from partime_async.channel import Channel
from partime_async.clock import Clock
from partime_async.devices import Work, ready
from partime_async.errors import (
    ConfigurationError,
    DeadlineExceeded,
    PipelineNotRunning,
    StageError,
    WorkAborted,
)
from partime_async.feed import Feed
from partime_async.flight import AnyMark, Frame, Mark
from partime_async.forecast import Outlook, delay_s, has_time_to_learn, window
from partime_async.frame import FrameSpec, Result, StageTiming, Value
from partime_async.lag import LagMonitor
from partime_async.lesson import Lesson
from partime_async.offload import to_the_end
from partime_async.overflow import FeedOptions
from partime_async.stage import LEAST_DEPTH, MOST_DEPTH, Inbox, Stage
from partime_async.statistics import PipelineStatistics
from partime_async.teaching import Teaching

T = TypeVar("T")


class OnError(StrEnum):
    """What a stage's exception does beyond failing its frame."""

    FAIL_FRAME = "fail_frame"
    """Nothing: the frame's result carries the error, the stream goes on."""
    STOP = "stop"
    """The pipeline stops; every caller gets the error."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What `Pipeline` was told; see there."""

    capacity: int
    depth: int | None
    on_error: OnError
    close_timeout_s: float

    @classmethod
    def checked(cls, capacity: int, depth: int | None, on_error: str, close_timeout_s: float) -> RunOptions:
        """Return the options, or say which of them cannot be.

        Raises:
            ConfigurationError: One of them is out of range.
        """
        for label, number in (("capacity", capacity), ("depth", 1 if depth is None else depth)):
            if not isinstance(number, int) or number < 1:
                raise ConfigurationError(f"{label} is {number!r}; it is a number of frames. Pass 1 or more.")
        if on_error not in tuple(OnError):
            raise ConfigurationError(f"on_error is {on_error!r}. Use 'fail_frame' or 'stop'.")
        if not isinstance(close_timeout_s, (int, float)) or not close_timeout_s > 0:
            raise ConfigurationError(f"close_timeout_s is {close_timeout_s!r}. Pass more than 0 seconds.")
        return cls(capacity, depth, OnError(on_error), close_timeout_s)


class Run:
    """The running half of a `Pipeline`.

    Attributes:
        tasks: Every task of the pipeline is a child of this group, and none of them ever raises into it.
        direct: The feed behind `Pipeline.process`.
        error: What stopped the pipeline, if something did.
    """

    def __init__(self, assembly: Assembly, spec: FrameSpec, clock: Clock, options: RunOptions) -> None:
        self.error: BaseException | None = None
        self.tasks = asyncio.TaskGroup()
        self._assembly = assembly
        self._spec = spec
        self._clock = clock
        self._options = options
        self._teaching = Teaching(assembly, self.stop)
        self._outlook = Outlook(self._teaching.reach)
        self._admission = Admission(self._window, self._delay_s, self._admitted, self._outlook)
        self._feeds: dict[Feed, None] = {}
        self._landing: dict[Feed, None] = {}
        self._live_feeds = 0
        self._ended = Accounts()
        self._started_at = clock.now()
        self._children: list[asyncio.Task[None]] = []
        self._marks: dict[AnyMark, None] = {}
        self._is_closing = False
        self._is_ended = False
        self._stages = self._build_stages()
        self._lag = LagMonitor(lambda: [stage.stream.busy_s for stage in self._stages], now=clock.now)
        self.direct = self.new_feed("block", None, options.capacity)

    async def start(self) -> None:
        """Start a task per stage."""
        await self.tasks.__aenter__()
        await self.direct.__aenter__()
        for stage in self._stages:
            self.start_task(stage.run, name=f"partime stage {stage.number}", is_stage=True)
        self.start_task(self._lag.run, name="partime loop lag")

    def start_task(
        self, work: Callable[[], Coroutine[None, None, None]], *, name: str, is_stage: bool = False
    ) -> asyncio.Task[None]:
        """Start a child task; an exception in it stops the pipeline, and so does the cancellation of a stage's."""

        async def guarded() -> None:
            try:
                await work()  # made here: a task cancelled before it began has nothing left to close
            except Exception as error:
                self.stop(error)

        task = self.tasks.create_task(guarded(), name=name)
        self._children.append(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._children.remove(task)
            if is_stage and not self._is_closing:
                if self.error is None:
                    what = f"{name.removeprefix('partime ')} was cancelled from outside"
                    self.stop(PipelineNotRunning(f"{what}. Leave the tasks of a pipeline to the pipeline."))
                self._give_up()  # what was on its way to this stage would be waited for for ever

        task.add_done_callback(ended)
        return task

    # -- frames ---------------------------------------------------------------------------------------------------

    def new_feed(self, overflow: str, max_age_s: float | None, capacity: int, learn: str = "always") -> Feed:
        """Make a feed that is open between its `__aenter__` and `__aexit__`."""
        # Room for the results of everything that can be in flight, so that a reader who keeps up never slows the
        # stages, and one who does not holds back no other feed.
        stages, options = len(self._stages), self._options
        unread_limit = 2 * stages * (options.depth or MOST_DEPTH) + stages + capacity
        chosen = FeedOptions.checked(overflow, max_age_s, capacity, unread_limit, learn)
        self._teaching.check(chosen.learn)
        return Feed(
            chosen,
            spec=self._spec,
            clock=self._clock,
            admission=self._admission,
            close_timeout_s=options.close_timeout_s,
            on_enter=self._feed_entered,
            on_exit=self._feed_left,
        )

    def _feed_entered(self, feed: Feed) -> None:
        if self._is_closing or self.error is not None:
            raise self.error or PipelineNotRunning("the pipeline is closing. Open feeds before leaving its block.")
        self._feeds[feed] = None
        self._live_feeds += feed.options.is_live

    def _feed_left(self, feed: Feed) -> None:
        if feed in self._feeds:
            del self._feeds[feed]
            self._landing[feed] = None
            self._live_feeds -= feed.options.is_live
            # Frames of an aborted feed may still be in flight: the account moves over when they have landed.
            feed.when_landed(partial(self._feed_landed, feed))

    def _feed_landed(self, feed: Feed) -> None:
        del self._landing[feed]
        self._ended.add(feed.accounts)
        if self._is_closing:
            return  # all states go with the streams
        for part in self._assembly.parts:
            if part.states:
                part.stream.enqueue(_on_no_value(partial(part.states.forget, feed)), ready(()))

    async def process(self, frame: Value, target: Value | None, captured_at: float | None, context: object) -> Result:
        """Run one frame; see `Pipeline.process`."""
        if self._is_closing and self.error is None:
            raise PipelineNotRunning("the pipeline is being left. Await results inside its block.")
        return await self.direct.process(frame, target, captured_at, context)

    def label(self, index: int, target: Value) -> None:
        """Take a late target; see `Pipeline.label`."""
        self._teaching.label(index, target)

    async def set_frozen(self, is_frozen: bool) -> None:
        """Stop, or go on, learning at one frame boundary; see `Pipeline.freeze`."""
        learners = [part.learner for part in self._assembly.parts if part.learner is not None]
        if not learners:
            raise ConfigurationError(
                "the pipeline does not learn: it cannot be frozen or thawed. Pass a Learner to it."
            )
        await self.send([partial(learner.freeze, is_frozen) for learner in learners])

    def _window(self) -> int | None:
        """Return how many frames may be in flight; None: as many as the stages take, as no feed is live."""
        return window([stage.pace() for stage in self._stages]) if self._live_feeds else None

    def _delay_s(self) -> float:
        """Return how long the next frame should still wait outside, where a newer one may take its place."""
        now = self._clock.now()
        return delay_s(now, self._admission.flying, [stage.pace(now) for stage in self._stages])

    def _admitted(self, frame: Frame) -> None:
        now = frame.admitted_at = self._clock.now()
        has_time = True
        if frame.needs_time:
            paces = [stage.pace(now) for stage in self._stages]
            has_time = has_time_to_learn(now, frame, self._admission.flying, paces, self._outlook)
        self._teaching.admit(frame, has_time=has_time)
        self._outlook.admitted(frame)

    def _frame_done(self, frame: Frame) -> None:
        if frame not in self._admission.flying:
            return  # from a stage that came to its end after the deadline: it was given up, and counted
        self._admission.finished(frame)
        event = frame.event
        assert event is not None
        if isinstance(event.error, WorkAborted):
            frame.owner.discard(frame)
            return
        error: StageError | None = None
        if event.error is not None:
            stage = next(stage for stage in self._stages if stage.stream is event.origin)
            error = StageError(stage.number, stage.layers, frame.index, event.error)
        result = Result(
            index=frame.index,
            sequence=frame.sequence,
            captured_at=frame.captured_at,
            latency_s=event.finished_at - frame.captured_at,
            timings=tuple(StageTiming(done.started_at, done.finished_at) for done in frame.events),
            weight_versions=tuple(frame.versions),
            loss=frame.loss,
            error=error,
            context=frame.context,
            value=event.value,
        )
        frame.owner.finish(frame, result)
        if error is not None and self._options.on_error is OnError.STOP:
            self.stop(error)

    # -- marks ----------------------------------------------------------------------------------------------------

    async def send(self, actions: Sequence[Callable[[], T]], *, changes_weights: bool = False) -> list[T]:
        """Have every stage act between the same two frames, and return what the actions returned."""
        return await self.deliver(Mark(actions, changes_weights=changes_weights))

    async def deliver(self, mark: Mark[T]) -> list[T]:
        """Put a mark behind the last admitted frame, and return what its actions returned.

        Cancellation: safe; the mark itself goes on.
        """
        if self.error is None and not self._is_ended:
            self._marks[mark] = None
            mark.when_done(partial(self._marks.pop, mark))
            self._admission.send(mark)
            try:
                return await mark.wait()
            except WorkAborted:
                pass  # the pipeline was, and that is what the caller should hear
        raise self.error or PipelineNotRunning("the pipeline was left before this was done. Await it inside its block.")

    # -- the end --------------------------------------------------------------------------------------------------

    def stop(self, error: BaseException) -> None:
        """Drop what has not started and raise this error to every caller; the first one counts."""
        if self.error is None:
            self.error = error
        self._abort(self.error)

    async def close(self, *, is_abort: bool) -> None:
        """Finish all frames, or drop those that have not started; then end every task, thread and stream.

        Raises:
            DeadlineExceeded: It took longer than `close_timeout_s`; nothing is left but threads that cannot be stopped.

        Cancellation: safe; drops what has not started, comes to its end, and raises.
        """
        self._is_closing = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._options.close_timeout_s
        rest_s = self._options.close_timeout_s
        late: DeadlineExceeded | None = None
        try:
            if not is_abort and self.error is None:
                late = await self._drain(deadline)
                # Even when the drain used all the time: what runs now needs a moment to come to its end.
                rest_s = max(deadline - loop.time(), 0.1 * rest_s)
        finally:
            self._abort(self.error or PipelineNotRunning("the pipeline was left. Await results inside its block."))
            try:
                await to_the_end(self._end(rest_s), name="partime closing")
            except DeadlineExceeded as stuck:
                if late is None:
                    raise
                late.__cause__ = stuck
        if late is not None:
            raise late

    async def _drain(self, deadline: float) -> DeadlineExceeded | None:
        feeds = list(self._feeds)
        for feed in feeds:
            feed.close()
            if not feed.has_reader:
                feed.discard_results()
        try:
            async with asyncio.timeout_at(deadline):
                for feed in feeds:
                    await feed.drain()
                if self._assembly.learner is not None:
                    # Every stage has learned what it can from the last frame when this mark has passed.
                    await self.send([_do_nothing] * len(self._stages))
        except TimeoutError:
            waiting = sum(feed.accounts.waiting + feed.accounts.in_flight for feed in feeds)
            what = f"{waiting} frame(s) were not finished"
            return DeadlineExceeded(what, self._options.close_timeout_s)
        return None

    def _abort(self, error: BaseException) -> None:
        for feed in list(self._feeds):
            feed.abort(error)
        self._admission.abort(error)
        for stage in self._stages:
            stage.stream.abort()

    async def _end(self, timeout_s: float) -> None:
        children = list(self._children)
        for task in children:
            if not task.cancelling():  # else it is closing its source already, and has the time for it
                task.cancel()
        endings = (self._assembly.close(timeout_s), self._end_children(children, timeout_s))
        outcomes = await asyncio.gather(*endings, return_exceptions=True)
        self._is_ended = True
        self._assembly.frames += self._admission.admitted
        self._teaching.end()
        self._give_up()
        for feed in list(self._feeds):
            feed.discard_results()
            self._feed_left(feed)
        await self.tasks.__aexit__(None, None, None)
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    def _give_up(self) -> None:
        """Let go of marks and frames between two stages whose tasks have ended, and of those that never come out."""
        for mark in list(self._marks):
            mark.conclude(WorkAborted("the pipeline was left."))
        for frame in list(self._admission.flying):
            self._admission.finished(frame)
            frame.owner.discard(frame)

    async def _end_children(self, children: Sequence[asyncio.Task[None]], timeout_s: float) -> None:
        _, late = await asyncio.wait(children, timeout=timeout_s)
        for task in late:
            # It was cancelled, and closes its source: no longer.
            task.cancel()
        if late:
            raise DeadlineExceeded(f"{len(late)} source(s) did not close", self._options.close_timeout_s)

    # -- inside ---------------------------------------------------------------------------------------------------

    def statistics(self) -> PipelineStatistics:
        """Return what was seen so far; see `Pipeline.statistics`."""
        total = Accounts()
        total.add(self._ended)
        for feed in (*self._feeds, *self._landing):
            total.add(feed.accounts)
        elapsed_s = self._clock.now() - self._started_at
        return PipelineStatistics(
            elapsed_s=elapsed_s,
            frames=total.counts(),
            throughput=total.delivered / elapsed_s if elapsed_s > 0 else 0.0,
            latency_s=total.latency.snapshot(),
            age_s=total.age.snapshot(),
            window=self._window(),
            feeds=len(self._feeds) - 1,
            stages=tuple(stage.statistics(elapsed_s) for stage in self._stages),
            loop=self._lag.statistics(),
            learning=self._teaching.statistics(),
        )

    def _build_stages(self) -> list[Stage]:
        parts = self._assembly.parts
        links: list[Channel[Frame | AnyMark]] = [Channel(self._options.depth or LEAST_DEPTH) for _ in parts[1:]]
        inboxes: list[Inbox] = [self._admission, *links]
        outboxes: list[Channel[Frame | AnyMark] | None] = [*links, None]
        lessons: list[Lesson | None] = [*self._teaching.lessons] or [None for _ in parts]
        to_host = [*(part.device.torch_device.type == "cpu" for part in parts[1:]), True]
        return [
            Stage(
                part.number,
                layers=part.layers,
                device=part.device.name,
                stream=part.stream,
                work=part.work,
                depth=self._options.depth,
                inbox=inbox,
                outbox=outbox,
                to_host=goes_to_host,
                on_frame=self._frame_done,
                states=part.states,
                lesson=lesson,
            )
            for part, inbox, outbox, goes_to_host, lesson in zip(
                parts, inboxes, outboxes, to_host, lessons, strict=True
            )
        ]


def _on_no_value(action: Callable[[], None]) -> Work:
    def work(_: Value) -> Value:
        action()
        return ()

    return work


def _do_nothing() -> None:
    """Be the action of a mark that is only waited for."""
