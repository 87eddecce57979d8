"""Promise 3: neither queues nor memory grow, however long the stream and however slow its reader."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import torch
from torch import nn

import partime_async as pa
from tests.nets import TIMEOUT_S, Gate, Gated, assert_all_ended

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

FRAMES = 20_000
FRAME = torch.ones(1, 1)
DEPTH, CAPACITY = 2, 2


def _pipeline() -> pa.Pipeline:
    net = nn.Sequential(nn.Identity(), nn.Identity())
    return pa.Pipeline(net, FRAME, balance=[1, 1], depth=DEPTH, capacity=CAPACITY, capture=False)


def _most_in_flight(stages: int) -> int:
    # On each stream, in front of each but the first, and one in the hands of each but the last.
    return stages * DEPTH + (stages - 1) * DEPTH + (stages - 1)


class Watch:
    """Looks at a pipeline now and then, and remembers the most of everything."""

    def __init__(self, pipeline: pa.Pipeline) -> None:
        self._pipeline = pipeline
        self.in_flight = 0
        self.waiting = 0
        self.unread = 0

    def look(self) -> None:
        """Look once."""
        run = self._pipeline._run
        self.in_flight = max(self.in_flight, len(run._admission.flying))
        for feed in run._feeds:
            self.waiting = max(self.waiting, feed.accounts.waiting)
            self.unread = max(self.unread, feed.accounts.unread)


async def _grown(rounds: Callable[[int], Awaitable[None]]) -> tuple[int, int]:
    """Return by how many objects a long stream grew the heap, and by how many bytes a shorter one."""
    await rounds(1000)
    gc.collect()
    before = len(gc.get_objects())
    await rounds(FRAMES)
    gc.collect()
    objects = len(gc.get_objects()) - before
    tracemalloc.start()
    try:
        await rounds(500)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        await rounds(1500)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return objects, after - before


async def test_twenty_thousand_frames_pushed_back_by_a_lossless_feed_leave_no_trace() -> None:
    """Under block every frame comes through, no more of them are held than may be, and memory stays."""
    async with _pipeline() as pipeline, pipeline.feed() as feed:
        watch = Watch(pipeline)

        async def put(count: int) -> None:
            for _ in range(count):
                await feed.put(FRAME)

        async def rounds(count: int) -> None:
            putting = asyncio.ensure_future(put(count))
            for number in range(count):
                await anext(feed)
                if number % 16 == 0:
                    watch.look()
            await putting

        objects, grown_bytes = await _grown(rounds)
        stages = pipeline.statistics().stages
        assert stages[1].queue is not None
        assert stages[1].queue.peak <= DEPTH
        assert feed.statistics().frames.delivered == FRAMES + 3000
        assert_all_ended(pipeline.statistics().frames)
    assert watch.in_flight <= _most_in_flight(2)
    assert watch.waiting <= CAPACITY + 1
    assert objects < 200
    assert grown_bytes < 20_000


async def test_twenty_thousand_frames_of_a_live_feed_with_a_slow_reader_leave_no_trace() -> None:
    """Under latest a reader that reads once in a hundred frames finds one result, and memory stays."""
    async with _pipeline() as pipeline, pipeline.feed(overflow="latest") as feed:
        watch = Watch(pipeline)

        async def rounds(count: int) -> None:
            for number in range(count):
                await feed.put(FRAME)
                if number % 16 == 0:
                    watch.look()
                if number % 100 == 99:
                    await asyncio.wait_for(anext(feed), TIMEOUT_S)

        objects, grown_bytes = await _grown(rounds)
        await feed.drain()
        feed.discard_results()
        frames = pipeline.statistics().frames
        assert frames.offered == FRAMES + 3000
        assert_all_ended(frames)
    assert watch.in_flight <= 3
    assert watch.waiting <= 1
    assert watch.unread <= 1
    assert objects < 200
    assert grown_bytes < 20_000


@pytest.mark.parametrize("overflow", list(pa.Overflow))
async def test_reader_that_never_reads_fills_no_memory(overflow: str) -> None:
    """Whatever the policy, what waits, flies and lies unread is bounded while nobody reads."""
    async with _pipeline() as pipeline, pipeline.feed(overflow=overflow) as feed:
        watch = Watch(pipeline)

        async def put() -> None:
            for _ in range(1000):
                try:
                    feed.put_nowait(FRAME)
                except pa.FeedFull:
                    await asyncio.sleep(0)
                await asyncio.sleep(0)
                watch.look()

        await put()
        counts = feed.statistics().frames
        assert counts.offered == 1000
        assert watch.in_flight <= _most_in_flight(2)
        assert watch.waiting <= CAPACITY
        assert watch.unread <= 2 * 2 * DEPTH + 2 + CAPACITY


async def test_frames_in_flight_never_exceed_the_bound_behind_a_stage_that_stands_still() -> None:
    """With the last stage held up, the stages before it fill to their bound and stop taking frames."""
    gate = Gate()
    net = nn.Sequential(nn.Identity(), nn.Identity(), Gated(gate))
    async with pa.Pipeline(net, FRAME, balance=[1, 1, 1], depth=DEPTH, capacity=CAPACITY, capture=False) as pipeline:
        gate.close()
        asking = [asyncio.ensure_future(pipeline.process(FRAME)) for _ in range(100)]
        await gate.reached()
        await asyncio.sleep(0.05)
        in_flight = pipeline.statistics().frames.in_flight
        assert 3 * DEPTH - 2 <= in_flight <= _most_in_flight(3)
        gate.open()
        await asyncio.gather(*asking)


@pytest.mark.parametrize("number", [0.0, 1.0], ids=["good", "failing"])
async def test_frames_are_free_as_soon_as_their_results_are_let_go(number: float) -> None:
    """No frame, good or failing, is in a cycle: its tensors do not wait for the garbage collector to come by."""

    class Fails(nn.Module):
        def forward(self, value: torch.Tensor) -> torch.Tensor:
            held = value + 1.0
            if held[0, 0] > 1.5:
                raise ValueError("as told")
            return held

    net, frame = nn.Sequential(nn.Identity(), Fails()), torch.full((1, 9), number)
    async with pa.Pipeline(net, torch.zeros(1, 9), balance=[1, 1], capture=False) as pipeline:
        with suppress(pa.StageError):
            await pipeline.process(frame)
        gc.collect()
        gc.disable()
        try:
            before = _tensors()
            for _ in range(100):
                with suppress(pa.StageError):
                    await pipeline.process(frame.clone())
            async for result in pipeline.stream(frame.clone() for _ in range(100)):
                with suppress(pa.StageError):
                    _ = result.output
            del result
            assert _tensors() - before < 10
            assert gc.collect() < 100
        finally:
            gc.enable()


def _tensors() -> int:
    return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())
