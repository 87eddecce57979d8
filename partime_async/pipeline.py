"""The pipeline: a network cut into stages, run frame by frame inside an asyncio program."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from partime_async.assembly import Assembly, assemble
from partime_async.clock import Clock, MonotonicClock
from partime_async.devices import Device, DeviceEvent, Notifier
from partime_async.errors import DeadlineExceeded, FeedClosed, PipelineNotRunning, SourceError
from partime_async.feed import Feed
from partime_async.frame import FrameSpec, Result, SourceFrame, Value
from partime_async.iteration import aiter_frames
from partime_async.learning import Learner
from partime_async.partition.plan import Plan
from partime_async.planning import Request
from partime_async.run import Run, RunOptions
from partime_async.statistics import PipelineStatistics


class Pipeline:
    """A network cut into consecutive stages that work on different frames at the same time.

    Use it as ``async with Pipeline(...) as pipeline``. Entering copies the module, plans, opens a stream per stage and
    warms up; leaving normally finishes all frames, leaving by an exception drops what has not started; either leaves no
    task, thread or stream behind. It may be entered again, with the weights it had.

    Guarantees: results equal the module's own, bit for bit on the CPU; results of a feed come in the order of
    admission; every frame offered is counted exactly once (`statistics`); no computation runs on the event loop.

    Args:
        module: `nn.Sequential`, or any feed-forward module that `torch.fx` can trace. Never changed. Its training or
            evaluation mode is kept.
        example: A frame as it will come: a tensor, or a tuple of tensors, with the batch dimension. A Sequential gets a
            tuple as its one input, any other module as its arguments.
        stages: How many stages; None: the planner decides.
        balance: Layers per stage; instead of `stages`.
        devices: One per stage, e.g. ``["cuda:0", "cuda:1"]``; fewer are used in turn. None: every GPU, or the CPU.
        learner: How the network learns from the frames; None: it does not.
        capacity: Frames that may wait in a feed.
        depth: Frames that may be enqueued on a stage's stream, and wait in front of the next one; None: as many as make
            some 2 ms of work, 2 to 16.
        on_error: ``fail_frame`` or ``stop``: what a stage's exception does.
        capture: Record stages as calls that do not need the interpreter, where that gives the same bits.
        close_timeout_s: Seconds that leaving may take.
        clock: Where now comes from; for simulated devices on a virtual-time loop.

    Raises:
        ConfigurationError: Arguments that cannot work. What needs the module to be run is checked on entering.
    """

    def __init__(
        self,
        module: nn.Module,
        example: Value,
        *,
        stages: int | None = None,
        balance: Sequence[int] | None = None,
        devices: Sequence[str | torch.device | Device] | None = None,
        learner: Learner | None = None,
        capacity: int = 2,
        depth: int | None = None,
        on_error: str = "fail_frame",
        capture: bool = True,
        close_timeout_s: float = 10.0,
        clock: Clock | None = None,
    ) -> None:
        self._spec = FrameSpec(example)
        self._request = Request.checked(
            module, example, stages=stages, balance=balance, devices=devices, capture=capture
        )
        self._options = RunOptions.checked(capacity, depth, on_error, close_timeout_s)
        self._learner = learner
        self._clock: Clock = clock or MonotonicClock()
        self._is_entered = False
        self._running: Run | None = None
        self._assembly: Assembly | None = None

    # -- frames ---------------------------------------------------------------------------------------------------

    async def process(
        self, frame: Value, target: Value | None = None, *, captured_at: float | None = None, context: object = None
    ) -> Result:
        """Run one frame and return its result. Any number of callers may wait at the same time.

        Args:
            frame: Shapes and dtypes of the example.
            target: What the network should say, for a learner.
            captured_at: Seconds of `time.monotonic`; now, if None.
            context: Anything; it comes back with the result.

        Raises:
            FrameError: The caller's frame is not what the pipeline takes.
            StageError: A stage raised on this frame.
            PipelineNotRunning: The caller is outside the `async with` block.

        Cancellation: safe; the frame is dropped, ``cancelled``, or its result is.
        """
        return await self._run.direct.process(frame, target, captured_at, context)

    async def stream(
        self,
        source: AsyncIterable[object] | Iterable[object],
        *,
        overflow: str = "block",
        max_age_s: float | None = None,
        capacity: int | None = None,
    ) -> AsyncIterator[Result]:
        """Run every frame of a source and yield the results in order.

        Args:
            source: Yields frames, (frame, target) pairs, or `SourceFrame`s. A blocking iterable is drawn from on a
                thread of its own. It is closed at the end.
            overflow: See `feed`.
            max_age_s: See `feed`.
            capacity: See `feed`.

        Yields:
            The results. `Result.context` is the item of the source.

        Raises:
            StageError: The pipeline stopped on this error.
            Exception: What the source raised, after the results of the frames before.

        Cancellation: safe; frames that have not started are dropped.
        """
        run, items = self._run, aiter_frames(source)
        async with self.feed(overflow=overflow, max_age_s=max_age_s, capacity=capacity) as feed:
            pump = run.start_task(_pump(items, feed, self._spec), name="partime source")
            try:
                async for result in feed:
                    yield result
            finally:
                pump.cancel()
                await asyncio.wait([pump])

    def feed(self, *, overflow: str = "block", max_age_s: float | None = None, capacity: int | None = None) -> Feed:
        """Return a feed: one client's frames in, its results out; ``async with pipeline.feed() as feed``.

        Feeds are served in turn. While a live feed is open, one with ``latest``, ``drop_oldest`` or an age limit, only
        as many frames are in flight as keep the stages busy, so that results stay fresh.

        Args:
            overflow: What happens when the feed is full: ``block``, ``drop_oldest``, ``drop_newest``, ``latest``,
                ``fail``; see `Overflow`.
            max_age_s: Frames older than this many seconds when their turn comes are dropped.
            capacity: Frames that may wait in the feed; the pipeline's by default; ``latest`` holds one.

        Raises:
            ConfigurationError: Options that cannot be.
            PipelineNotRunning: The caller is outside the `async with` block.
        """
        return self._run.new_feed(overflow, max_age_s, self._options.capacity if capacity is None else capacity)

    # -- learning -------------------------------------------------------------------------------------------------

    async def label(self, index: int, target: Value) -> None:
        """Give the target of an earlier frame, at most the learner's `label_delay` frames after its admission.

        Args:
            index: `Result.index` of the frame.
            target: What the network should have said.

        Raises:
            LabelError: It comes too late, or no such frame was admitted; it is counted as refused.
            ConfigurationError: The pipeline does not learn.
        """
        self._run.label(index, target)

    async def freeze(self) -> None:
        """Stop learning between two frames, the same two in every stage; inference goes on.

        While frozen, stages keep nothing to come back to: gradients on their way are let go.

        Raises:
            ConfigurationError: The pipeline does not learn.
        """
        await self._run.set_frozen(True)

    async def thaw(self) -> None:
        """Go on learning between two frames, the same two in every stage.

        Raises:
            ConfigurationError: The pipeline does not learn.
        """
        await self._run.set_frozen(False)

    # -- weights --------------------------------------------------------------------------------------------------

    async def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of all weights and buffers, with the module's own keys, on the CPU.

        The copy belongs to one frame boundary over all stages; the stream goes on meanwhile.

        Raises:
            PipelineNotRunning: The pipeline was never entered.
        """
        assembly = self._built()
        if self._running is None:
            return assembly.snapshot()
        return assembly.merge(await self._running.send([part.snapshot for part in assembly.parts]))

    async def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace all weights and buffers between two frames, the same two in every stage.

        Args:
            state: The module's own keys; all of them.

        Raises:
            ConfigurationError: Keys, shapes or dtypes do not fit; nothing was changed.
            PipelineNotRunning: The pipeline was never entered.
        """
        assembly = self._built()
        actions = assembly.replacements(state)
        if self._running is None:
            for action in actions:
                action()
        else:
            await self._running.send(actions, changes_weights=True)

    # -- what it is and does --------------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """How the network is cut and where its stages run.

        Raises:
            PipelineNotRunning: The pipeline was never entered.
        """
        return self._built().plan

    def statistics(self) -> PipelineStatistics:
        """Return what the pipeline has done since it was entered.

        Raises:
            PipelineNotRunning: The caller is outside the `async with` block.
        """
        return self._run.statistics()

    # -- lifecycle ------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._is_entered:
            raise PipelineNotRunning("the pipeline is running already. Make another Pipeline to run it twice.")
        self._is_entered = True
        try:
            notifier: Notifier[DeviceEvent] = Notifier(asyncio.get_running_loop())
            assembly = self._assembly or await assemble(self._request, self._learner)
            await assembly.open(notifier, self._clock)
        except BaseException:
            self._is_entered = False
            raise
        self._assembly = assembly
        self._running = Run(assembly, self._spec, self._clock, self._options)
        await self._running.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        run = self._run
        try:
            await run.close(is_abort=error is not None)
        except DeadlineExceeded as late:
            first = error or run.error
            if first is None:
                raise
            # The first error is the one to raise, and a cancellation must stay one.
            first.add_note(str(late))
        finally:
            self._running = None
            self._is_entered = False
        if error is None and run.error is not None:
            raise run.error

    @property
    def _run(self) -> Run:
        if self._running is None:
            raise PipelineNotRunning("the pipeline is not running. Use it inside `async with pipeline:`.")
        return self._running

    def _built(self) -> Assembly:
        if self._assembly is None:
            raise PipelineNotRunning("the pipeline was never entered. Use it inside `async with pipeline:`.")
        return self._assembly


async def _pump(items: AsyncFrames[object], feed: Feed, spec: FrameSpec) -> None:
    """Put every item of a source into a feed; close both, the feed with whatever ended the source."""
    error: Exception | None = None
    try:
        async for item in items:
            if isinstance(item, SourceFrame):
                await feed.put(item.value, item.target, captured_at=item.captured_at, context=item)
            else:
                frame, target = spec.unpack(item)
                await feed.put(frame, target, context=item)
    except FeedClosed:
        pass  # the reader has gone: no more is wanted
    except asyncio.CancelledError as raised:
        if is_being_cancelled():
            raise
        error = SourceError("the source was cancelled by its own doing. Let it raise another error, or just end.")
        error.__cause__ = raised
    except Exception as raised:
        error = raised
    finally:
        try:
            await items.aclose()
        except Exception as raised:
            # One client's source is no reason to stop the pipeline: its own reader gets to know.
            error = error or raised
        finally:
            feed.close(error)
