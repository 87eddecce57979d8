"""The pipeline: a network cut into stages, run frame by frame inside an asyncio program."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import torch
from torch import Tensor, nn

from partime_async.assembly import Assembly, assemble
from partime_async.checkpoint import Snapshot
from partime_async.clock import Clock, MonotonicClock
from partime_async.devices import Device, DeviceEvent, Notifier
from partime_async.errors import DeadlineExceeded, PipelineNotRunning
from partime_async.feed import Feed
from partime_async.frame import FrameSpec, Result, Value
from partime_async.iteration import aiter_frames
from partime_async.learning import Learner
from partime_async.partition.plan import Plan
from partime_async.planning import Request
from partime_async.pump import pump
from partime_async.run import Run, RunOptions
from partime_async.statistics import PipelineStatistics
from partime_async.weights import Weights

T = TypeVar("T")


class Pipeline:
    """A network cut into consecutive stages that work on different frames at the same time.

    Use it as ``async with Pipeline(...) as pipeline``. Entering copies the module, plans, opens a stream per stage and
    warms up; leaving normally finishes all frames, leaving by an exception drops what has not started; either leaves no
    task, thread or stream behind. It may be entered again, with the weights it had.

    Guarantees: results equal the module's own, bit for bit on the CPU; results of a feed come in the order of
    admission; every frame offered is counted exactly once (`statistics`); no computation runs on the event loop.

    Random numbers that layers draw, such as dropout in training mode, come from a generator of each stage's own, which
    starts from the state of PyTorch's default one on entering and leaves that alone: one state gives one run, whatever
    the timing and whoever else draws. One stage draws what the module itself would; several draw other numbers.

    Args:
        module: `nn.Sequential`, or any feed-forward module that `torch.fx` can trace. Never changed. Its training or
            evaluation mode is kept.
        example: A frame as it will come: a tensor, or a tuple of tensors, with the batch dimension. A Sequential gets a
            tuple as its one input, any other module as its arguments.
        stages: How many stages; None: the planner decides. Where to cut is measured, and may differ from run to run; so
            may, with it, what is learned by a rule whose gradients are late. `plan.balance` says what it was.
        balance: Layers per stage; instead of `stages`. With it, the same frames give the same weights, bit for bit.
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
        return await self._run.process(frame, target, captured_at, context)

    def reset_state(self) -> None:
        """Let the layers that remember start over with the next frame given to `process`; feeds have their own.

        Raises:
            PipelineNotRunning: The caller is outside the `async with` block.
        """
        self._run.direct.reset_state()

    async def stream(
        self,
        source: AsyncIterable[object] | Iterable[object],
        *,
        overflow: str = "block",
        max_age_s: float | None = None,
        capacity: int | None = None,
        learn: str = "always",
    ) -> AsyncIterator[Result]:
        """Run every frame of a source and yield the results in order.

        Args:
            source: Yields frames, (frame, target) pairs, or `SourceFrame`s. A blocking iterable is drawn from on a
                thread of its own. It is closed at the end.
            overflow: See `feed`.
            max_age_s: See `feed`.
            capacity: See `feed`.
            learn: See `feed`.

        Yields:
            The results. `Result.context` is the item of the source.

        Raises:
            StageError: The pipeline stopped on this error.
            Exception: What the source raised, after the results of the frames before.

        Cancellation: safe; frames that have not started are dropped.
        """
        run, items = self._run, aiter_frames(source)
        async with self.feed(overflow=overflow, max_age_s=max_age_s, capacity=capacity, learn=learn) as feed:
            pumping = run.start_task(partial(pump, items, feed, self._spec), name="partime source")
            try:
                async for result in feed:
                    yield result
            finally:
                pumping.cancel()
                await asyncio.wait([pumping])

    def feed(
        self,
        *,
        overflow: str = "block",
        max_age_s: float | None = None,
        capacity: int | None = None,
        learn: str = "always",
    ) -> Feed:
        """Return a feed: one client's frames in, its results out; ``async with pipeline.feed() as feed``.

        Feeds are served in turn. While a live feed is open, one with ``latest``, ``drop_oldest`` or an age limit, only
        as many frames are in flight as keep the stages busy, so that results stay fresh.

        Args:
            overflow: What happens when the feed is full: ``block``, ``drop_oldest``, ``drop_newest``, ``latest``,
                ``fail``; see `Overflow`.
            max_age_s: Frames older than this many seconds when their turn comes are dropped.
            capacity: Frames that may wait in the feed; the pipeline's by default; ``latest`` holds one.
            learn: Which frames with a target are learned from: ``always``, all of them; ``spare``, those that
                hardly any other frame waits for, so that learning costs none; see `Learn`.

        Raises:
            ConfigurationError: Options that cannot be.
            PipelineNotRunning: The caller is outside the `async with` block.
        """
        holds = self._options.capacity if capacity is None else capacity
        return self._run.new_feed(overflow, max_age_s, holds, learn)

    # -- learning -------------------------------------------------------------------------------------------------

    async def label(self, index: int, target: Value) -> None:
        """Give the target of an earlier frame, before the frame `label_delay` places behind it is admitted.

        Frames are admitted ahead of the results, as many as are in flight: the delay has to cover those, and how long a
        target takes to come. They are fewest while a live feed is open, as ``latest``; see `feed`.

        Args:
            index: `Result.index` of the frame.
            target: What the network should have said. It belongs to the pipeline until its frame was learned from: do
                not write into it.

        Raises:
            LabelError: It comes too late, or no such frame was admitted; it is counted as refused.
            FrameError: The target is neither a tensor nor a tuple of tensors.
            ConfigurationError: The pipeline does not learn, or its learner is unsupervised.
        """
        self._run.label(index, target)

    async def freeze(self) -> None:
        """Stop learning between two frames, the same two in every stage; inference goes on.

        While frozen, stages keep nothing to come back to: gradients on their way are let go, and so are frames that
        wait for a late label, whose loss is not measured then.

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
        return await self._weights.state_dict()

    async def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace all weights and buffers between two frames, the same two in every stage.

        A learner's optimisers go on with what they know; gradients on their way belong to the old weights and are let
        go.

        Args:
            state: The module's own keys; all of them.

        Raises:
            ConfigurationError: Keys, shapes or dtypes do not fit; nothing was changed.
            PipelineNotRunning: The pipeline was never entered.
        """
        await self._weights.load_state_dict(state)

    async def evaluate(self, function: Callable[[nn.Module], T], *, threads: int = 1) -> T:
        """Return what `function` returns for a private copy of the original module, while the stream goes on.

        The copy is on the CPU, in evaluation mode, with all weights and buffers of one frame boundary. The function may
        do with it what it likes; it runs without gradients on a thread of its own, which has the lowest priority where
        threads have one. For accuracy on held-out data, which tells more than the loss on the stream::

            def accuracy(module: nn.Module) -> float:
                return float((module(images).argmax(1) == labels).float().mean())

            print(await pipeline.evaluate(accuracy))

        Args:
            function: Takes the module and returns anything.
            threads: Intra-op threads that it may use: more than 1 takes cores from the stages.

        Raises:
            Exception: What the function raised.
            ConfigurationError: A coroutine function, or no thread.
            PipelineNotRunning: The pipeline was never entered.

        Cancellation: waits for the function to end, then raises. Leaving the pipeline does not end it.
        """
        return await self._weights.evaluate(function, threads=threads)

    async def snapshot(self) -> Snapshot:
        """Return a copy of all that `save` would write, in memory and on the CPU; the stream goes on meanwhile.

        Raises:
            PipelineNotRunning: The pipeline was never entered.
        """
        return await self._weights.snapshot()

    async def resume(self, snapshot: Snapshot, *, weights_only: bool = False) -> None:
        """Go on from a snapshot of this pipeline, or of another one of the same network, as `load` does from a file.

        Args:
            snapshot: Of `snapshot`. It is copied, and stays as it is.
            weights_only: Take the weights, and leave the optimisers as they are.

        Raises:
            CheckpointError: It is of another network, cut or optimiser; nothing was changed.
            PipelineNotRunning: The pipeline was never entered.

        Cancellation: safe; all stages take it, or none.
        """
        await self._weights.resume(snapshot, weights_only=weights_only)

    async def save(self, path: str | PathLike[str]) -> None:
        """Write the weights, and all that learning remembers, to a safetensors file; the stream goes on meanwhile.

        Everything in it belongs to one frame boundary over all stages: weights and buffers under the module's own keys,
        and for each stage its optimiser, schedule and weight version. A pipeline that loads it learns on, bit for bit,
        as this one would if it were left and entered again at that boundary: gradients on their way, what layers
        remember of a feed, and random numbers are not in it. The file is there whole, or as it was before.

        Raises:
            CheckpointError: The file, or something that an optimiser remembers, cannot be written.
            MissingDependencyError: safetensors is not installed.
            PipelineNotRunning: The pipeline was never entered.

        Cancellation: safe; the file is there whole, or as it was before.
        """
        await self._weights.save(Path(path))

    async def load(self, path: str | PathLike[str], *, weights_only: bool = False) -> None:
        """Go on from a file that `save` wrote, between two frames, the same two in every stage.

        All is checked before anything changes. The optimisers take the saved learning rates, too. A pipeline without a
        learner takes the weights alone. So can any pipeline of a file of another program: by safetensors, or what
        ``torch.save(module.state_dict(), path)`` wrote, of which nothing is executed.

        Args:
            path: The file.
            weights_only: Take the weights, and leave the optimisers as they are; for a learner, of another program's
                file.

        Raises:
            CheckpointError: It is damaged, or of another network, cut or optimiser; nothing was changed.
            FileNotFoundError: There is no such file.
            MissingDependencyError: safetensors is not installed.
            PipelineNotRunning: The pipeline was never entered.

        Cancellation: safe; all stages take it, or none.
        """
        await self._weights.load(Path(path), weights_only=weights_only)

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

    @property
    def _weights(self) -> Weights:
        assembly = self._built()
        if self._is_entered and self._running is None:
            # Its layers are being tried out, and put back afterwards as they were.
            raise PipelineNotRunning("the pipeline is being entered. Use its weights before, or inside the block.")
        return Weights(assembly, self._running)
