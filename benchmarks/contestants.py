"""Ways to run a network over frames on the CPU: plain, by hand in two threads, and by this library.

The baselines are as fast as they get: they check no frame, and no result leaves the thread that computed it.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

import partime_async as pa
from benchmarks.nets import Net
from benchmarks.record import Measurement
from benchmarks.tally import Tally
from benchmarks.workers import Contestant

_IN_QUEUE = 2


@dataclass(frozen=True, slots=True)
class LoopSpec:
    """The module, called in a loop.

    Attributes:
        net: What to run.
        threads: Intra-op threads.
    """

    net: Net
    threads: int

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Contestant]:
        """Build the network."""
        torch.set_num_threads(self.threads)
        yield _Loop(self.net)


class _Loop:
    def __init__(self, net: Net) -> None:
        self.facts: Mapping[str, str] = {"threads": str(torch.get_num_threads())}
        self._module, self._frames = net.module(), net.frames()

    async def run(self, seconds: float) -> Measurement:
        tally, module = Tally(seconds, warm_up=2), self._module
        with torch.inference_mode():
            for frame in itertools.cycle(self._frames):
                module(frame)
                tally.tick()
                if tally.is_done:
                    return tally.measurement()
        raise AssertionError


@dataclass(frozen=True, slots=True)
class ByHandSpec:
    """The pipeline a user would write: two threads and a ``queue.Queue(2)``.

    Attributes:
        net: What to run.
        balance: Layers of each half.
    """

    net: Net
    balance: tuple[int, int]

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Contestant]:
        """Build the network and cut it."""
        torch.set_num_threads(1)
        yield _ByHand(self.net, self.balance[0])


class _ByHand:
    def __init__(self, net: Net, cut: int) -> None:
        module, self._frames = net.module(), net.frames()
        self._first, self._second = module[:cut], module[cut:]
        self.facts: Mapping[str, str] = {"balance": f"{cut}+{len(module) - cut}"}

    async def run(self, seconds: float) -> Measurement:
        tally = Tally(seconds, warm_up=2 * _IN_QUEUE + 2)
        between: queue.Queue[Tensor | None] = queue.Queue(_IN_QUEUE)

        def first() -> None:
            for frame in itertools.cycle(self._frames):
                between.put(self._first(frame))
                if tally.is_done:
                    between.put(None)
                    return

        def second() -> None:
            while (value := between.get()) is not None:
                self._second(value)
                tally.tick()

        threads = [threading.Thread(target=_stage, args=(body,)) for body in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return tally.measurement()


def _stage(body: Callable[[], None]) -> None:
    torch.set_num_threads(1)  # it and the mode are thread-local
    with torch.inference_mode():
        body()


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """This library, with its default options.

    Attributes:
        net: What to run.
        stages: How many; None: the planner chooses.
        device: Where.
    """

    net: Net
    stages: int | None
    device: str = "cpu"

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Contestant]:
        """Enter the pipeline, and make sure that it computes what the module computes."""
        module, frames = self.net.module(), self.net.frames()
        async with pa.Pipeline(module, frames[0], stages=self.stages, devices=[self.device]) as pipeline:
            result = await pipeline.process(frames[0])
            torch.set_num_threads(max(pipeline.plan.threads))
            with torch.inference_mode():
                expected = module.to(self.device)(frames[0].to(self.device)).cpu()
            # On a GPU, another batch of streams may choose another convolution algorithm.
            tolerance = 0.0 if self.device == "cpu" else 1e-2
            torch.testing.assert_close(result.output, expected, rtol=tolerance, atol=tolerance)
            yield _Pipelined(pipeline, frames)


class _Pipelined:
    def __init__(self, pipeline: pa.Pipeline, frames: Sequence[Tensor]) -> None:
        self._pipeline, self._frames = pipeline, frames
        plan = pipeline.plan
        # More than the stages hold, at the default depth and capacity.
        self._warm_up = 4 * plan.stages
        self.facts: Mapping[str, str] = {
            "stages": str(plan.stages),
            "balance": "+".join(map(str, plan.balance)),
            "threads": str(max(plan.threads)),
        }

    async def run(self, seconds: float) -> Measurement:
        tally = Tally(seconds, warm_up=self._warm_up)

        async def source() -> AsyncIterator[Tensor]:
            for frame in itertools.cycle(self._frames):
                if tally.is_done:
                    return
                yield frame

        async for _result in self._pipeline.stream(source()):
            tally.tick()
        return tally.measurement()
