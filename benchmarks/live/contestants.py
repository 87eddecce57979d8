"""Who serves the caller: this library, and the usual ways with aiortc."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from aiortc import MediaStreamTrack, RTCDataChannel, RTCPeerConnection, RTCSessionDescription
from aiortc.contrib.media import MediaRelay
from av import VideoFrame
from torch import nn

import partime_async as pa
from benchmarks.live.call import calling, figures, merged, recovery_s
from benchmarks.live.fastrtc_peer import FASTRTC, FASTRTC_SKIPPING, FastRtc
from benchmarks.live.networks import HICCUP, Network
from benchmarks.live.probe import Probe
from benchmarks.record import BenchmarkError, Measurement
from benchmarks.workers import Contestant
from partime_async.webrtc import Description, Ice, Peer, PictureTrack, WebRTCStatistics, webrtc_frames

OURS, IN_RECV, EXECUTOR, RELAY = "this library", "in recv()", "executor in recv()", "MediaRelay + executor"
OURS_UNENDED = "this library, ends_pictures=False"
NICENESS = 10
_LEARNING_RATE = 1e-4


@dataclass(frozen=True, slots=True)
class LiveSpec:
    """One way to run a network over a caller's video and send the pictures back.

    Attributes:
        way: `OURS`, `OURS_UNENDED`, or one of the usual ones.
        network: What runs.
        is_learning: Whether it learns to repeat its input, when there is time to spare; ours alone can.
        stall_s: How long it stalls once, a third into the time; 0: not at all.
        warm_up_s: How long the caller calls before it counts.
    """

    way: str
    network: Network
    is_learning: bool = False
    stall_s: float = 0.0
    warm_up_s: float = 3.0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Contestant]:
        """Build the network, and choose once where to cut it."""
        if self.way in (FASTRTC, FASTRTC_SKIPPING):
            skips = self.way == FASTRTC_SKIPPING
            yield _Live(self, FastRtc(self.network, skips_frames=skips, warm_up_s=self.warm_up_s))
        else:
            if self.way not in (OURS, OURS_UNENDED):
                yield _Live(self, _Usual(self))
                return
            pipeline = await asyncio.to_thread(_pipeline, self)
            yield _Live(self, _Ours(pipeline, ends_pictures=self.way == OURS))


def _pipeline(spec: LiveSpec) -> pa.Pipeline:
    module, frame = spec.network.module(), spec.network.example()
    learner = None
    if spec.is_learning:
        # A lag of two hides what lessons here and there would have the stages wait for.
        rule = pa.UpdateRule("stash", lag=2)
        learner = pa.Learner(nn.functional.mse_loss, partial(torch.optim.SGD, lr=_LEARNING_RATE), rule=rule)
        module.train()
    # Recorded as one call, a stage would not ask its first layer whether to stall.
    device = pa.CpuDevice(niceness=NICENESS)
    options = {"devices": [device], "capture": not spec.stall_s}
    balance = pa.plan(module, frame, stages=2, devices=[device]).balance
    return pa.Pipeline(module, frame, balance=balance, learner=learner, **options)  # type: ignore[arg-type]


class _Live:
    def __init__(self, spec: LiveSpec, server: _Ours | _Usual | FastRtc) -> None:
        self.facts: Mapping[str, str] = {}
        self._spec, self._server = spec, server

    async def run(self, seconds: float) -> Measurement:
        spec = self._spec
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._server)
            total = spec.warm_up_s + seconds
            caller = await stack.enter_async_context(calling(total, self._server.answer))
            await asyncio.sleep(spec.warm_up_s)
            begin = time.monotonic()
            before = self._server.steps()
            async with Probe() as probe:
                if spec.stall_s:
                    await asyncio.sleep(seconds / 3)
                    HICCUP.order(spec.stall_s)
                    stall_at = time.monotonic()
                record = await caller.record()
            end = begin + seconds
            measured = figures(record, begin, end)
            found = merged(measured.figures, probe.figures(), self._server.figures())
            found["steps_per_s"] = (self._server.steps() - before) / seconds
            if spec.stall_s:
                found["recovery_s"] = recovery_s(record, begin, stall_at, spec.stall_s)
        return Measurement(found, {**measured.series, **probe.series()})


class _Ours:
    """A peer whose newest frame enters the pipeline when the first stage can start it."""

    def __init__(self, pipeline: pa.Pipeline, *, ends_pictures: bool) -> None:
        self._pipeline = pipeline
        self._ends_pictures = ends_pictures
        self._stack = AsyncExitStack()
        self._unaccounted = 0

    async def __aenter__(self) -> _Ours:
        self._stack = AsyncExitStack()
        await self._stack.enter_async_context(self._pipeline)
        self._peer = await self._stack.enter_async_context(Peer(ends_pictures=self._ends_pictures))
        self._back = PictureTrack()
        self._tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        return self

    async def answer(self, offer: Description) -> Description:
        self._peer.send_video(self._back)
        answer = await self._peer.answer(offer)
        self._work = [self._tasks.create_task(self._serve()), self._tasks.create_task(self._echo())]
        return answer

    async def __aexit__(self, *error: object) -> None:
        for task in self._work:
            task.cancel()
        await self._stack.aclose()

    def steps(self) -> int:
        learning = self._pipeline.statistics().stages[-1].learning
        return 0 if learning is None else learning.updates

    def figures(self) -> dict[str, float]:
        counts, taken, shown = self._pipeline.statistics().frames, self._frames.statistics(), self._back.statistics()
        lost = counts.offered - counts.waiting - counts.in_flight - counts.unread - counts.delivered - counts.failed
        missing = (
            lost - counts.dropped_total,
            _missing(taken),
            shown.shown - shown.sent - shown.superseded - shown.waiting,
        )
        return {
            "unaccounted": float(sum(map(abs, missing))),
            "received": float(taken.received),
            "superseded": float(taken.superseded),
            "dropped": float(counts.dropped_total),
            "is_early": float(taken.is_early),
            "failed": float(counts.failed + taken.errors),
        }

    async def _serve(self) -> None:
        side = self._pipeline.plan  # entered
        assert side is not None
        video = await self._peer.video
        size = _side(self._pipeline)
        async with webrtc_frames(video, size=(size, size)) as frames:
            self._frames = frames
            learn = "spare" if self._pipeline.statistics().learning is not None else "always"
            async for result in self._pipeline.stream(self._taught(frames), overflow="latest", learn=learn):
                frame = result.context
                assert isinstance(frame, pa.SourceFrame)
                assert frame.image is not None
                self._back.show(frame.image, captured_at=frame.captured_at)

    async def _taught(self, frames: AsyncIterator[pa.SourceFrame]) -> AsyncIterator[pa.SourceFrame]:
        is_learning = self._pipeline.statistics().learning is not None
        async for frame in frames:
            yield replace(frame, target=frame.value) if is_learning else frame

    async def _echo(self) -> None:
        channel = await self._peer.channel("echo")
        async for message in channel:
            channel.send(message)


def _side(pipeline: pa.Pipeline) -> int:
    example = pipeline._spec.example
    assert isinstance(example, torch.Tensor)
    return example.shape[-1]


def _missing(taken: WebRTCStatistics) -> int:
    return taken.received - taken.delivered - taken.superseded - taken.failed - taken.waiting


class _Usual:
    """aiortc as its examples use it: a track that runs the network when it is asked for a picture."""

    def __init__(self, spec: LiveSpec) -> None:
        self._module = spec.network.module()
        self._spec = spec

    async def __aenter__(self) -> _Usual:
        self._connection = RTCPeerConnection(Ice.loopback().configuration())
        self._executor = ThreadPoolExecutor(1)
        self._relay = MediaRelay()
        self._connection.on("track", self._on_track)
        self._connection.on("datachannel", self._on_channel)
        return self

    async def answer(self, offer: Description) -> Description:
        connection = self._connection
        await connection.setRemoteDescription(RTCSessionDescription(offer.sdp, offer.type))
        for transceiver in connection.getTransceivers():
            Ice.loopback().choose_addresses(transceiver.receiver.transport.transport.iceGatherer)
        await connection.setLocalDescription()
        local = connection.localDescription
        return Description(local.sdp, local.type)

    async def __aexit__(self, *error: object) -> None:
        await self._connection.close()
        self._executor.shutdown(wait=True)

    def steps(self) -> int:
        return 0

    def figures(self) -> dict[str, float]:
        return {}

    def _on_track(self, track: MediaStreamTrack) -> None:
        if self._spec.way == RELAY:
            track = self._relay.subscribe(track, buffered=False)
        executor = None if self._spec.way == IN_RECV else self._executor
        self._connection.addTrack(_Processed(track, self._infer, executor))

    def _on_channel(self, channel: RTCDataChannel) -> None:
        channel.on("message", channel.send)

    def _infer(self, frame: VideoFrame) -> None:
        side = self._spec.network.side
        image = frame.reformat(width=side, height=side, format="rgb24").to_ndarray()
        value = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div(255)[None]
        with torch.inference_mode():
            self._module(value)


class _Processed(MediaStreamTrack):
    kind = "video"

    def __init__(
        self, source: MediaStreamTrack, infer: Callable[[VideoFrame], None], executor: ThreadPoolExecutor | None
    ) -> None:
        super().__init__()
        self._source, self._infer, self._executor = source, infer, executor

    async def recv(self) -> VideoFrame:
        frame = await self._source.recv()
        if not isinstance(frame, VideoFrame):
            raise BenchmarkError(f"the source gave a {type(frame)}.")
        if self._executor is None:
            self._infer(frame)
        else:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._infer, frame)
        return frame
