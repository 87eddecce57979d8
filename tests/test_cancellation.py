"""Cancellation at every await: the accounts stay exact, nothing is left, and the pipeline goes on.

A call is started again and again, and cancelled one step of the event loop later each time, until it comes through.
Simulated stages that take no time make the number of steps small and the same each time; the last tests do it to real
threads, at moments that nobody chose.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress

import pytest
import torch
from torch import Tensor

import partime_async as pa
from partime_async.channel import Channel
from partime_async.clock import LoopClock
from tests.bench import steps
from tests.nets import (
    TIMEOUT_S,
    assert_accounted,
    assert_all_ended,
    assert_same_bits,
    called,
    command,
    commanded,
    dense,
    frames_like,
)

FRAME = command(1.0)
MOST_STEPS = 400
Call = Callable[[], Coroutine[object, object, object]]


def _simulated() -> pa.Pipeline:
    return pa.Pipeline(commanded(2), FRAME, stages=2, devices=["simulated:0ms"] * 2, capacity=1, clock=LoopClock())


def _threaded() -> pa.Pipeline:
    return pa.Pipeline(commanded(2), FRAME, balance=[1, 1], capture=False)


async def _cancelled_after(call: Call, count: int, *, times: int = 1) -> bool:
    """Cancel a call after so many steps, if it is not through by then; say whether it was."""
    task = asyncio.ensure_future(call())
    for _ in range(count):
        if task.done():
            break
        await asyncio.sleep(0)
    has_come_through = task.done()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    async with asyncio.timeout(TIMEOUT_S):
        with suppress(asyncio.CancelledError):
            await task
    assert task.done()
    return has_come_through


async def _cancelled_everywhere(call: Call, check: Callable[[], Awaitable[None]]) -> None:
    """Cancel a call at every one of its steps, and check after each time."""
    for count in range(MOST_STEPS):
        if await _cancelled_after(call, count):
            assert count > 0
            return
        await check()
    pytest.fail(f"the call never came through in {MOST_STEPS} steps")


async def _landed(pipeline: pa.Pipeline) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while (frames := pipeline.statistics().frames).waiting or frames.in_flight:
            assert_accounted(frames)
            await asyncio.sleep(0)


async def _goes_on(pipeline: pa.Pipeline) -> None:
    """Check the accounts, and that a frame comes through as if nothing had been."""
    assert_accounted(pipeline.statistics().frames)
    result = await asyncio.wait_for(pipeline.process(FRAME), TIMEOUT_S)
    assert_same_bits(result.output, called(commanded(2), [FRAME])[0])
    assert_accounted(pipeline.statistics().frames)


@asynccontextmanager
async def _running() -> AsyncIterator[pa.Pipeline]:
    pipeline = _simulated()
    async with pipeline:
        yield pipeline
        await _landed(pipeline)
        assert_all_ended(pipeline.statistics().frames)
        assert pipeline.statistics().feeds == 0


async def test_process_cancelled_anywhere_drops_its_frame_alone() -> None:
    """A caller of process may give up at any moment, also while the pipeline is full; its frame is counted once."""
    async with _running() as pipeline:
        await _cancelled_everywhere(lambda: pipeline.process(FRAME), lambda: _goes_on(pipeline))

        async def crowded() -> None:
            crowd = [asyncio.ensure_future(pipeline.process(FRAME)) for _ in range(30)]
            try:
                await pipeline.process(FRAME)
            finally:
                await asyncio.gather(*crowd)

        await _cancelled_everywhere(crowded, lambda: _goes_on(pipeline))
        frames = pipeline.statistics().frames
        assert set(frames.dropped) == {"cancelled"}


@pytest.mark.parametrize("overflow", list(pa.Overflow))
async def test_put_cancelled_anywhere_leaves_exact_accounts(overflow: str) -> None:
    """A put may be given up at any moment; what had no place yet is counted as cancelled, the rest goes its way."""
    async with _running() as pipeline:

        async def put() -> None:
            async with pipeline.feed(overflow=overflow, capacity=1) as feed:
                for _ in range(6):
                    with suppress(pa.FeedFull):
                        await feed.put(FRAME)
                    if overflow == "block" and feed.statistics().frames.unread:
                        await anext(feed)

        await _cancelled_everywhere(put, lambda: _goes_on(pipeline))


async def test_reading_cancelled_anywhere_loses_no_result() -> None:
    """Each result of a feed is read once, however often its readers give up."""
    async with _running() as pipeline, pipeline.feed(capacity=4) as feed:
        sequences: list[int] = []

        async def read() -> None:
            sequences.append((await anext(feed)).sequence)

        for count in range(40):
            await feed.put(FRAME)
            if not await _cancelled_after(read, count % 8):
                await asyncio.wait_for(read(), TIMEOUT_S)
        feed.close()
        sequences += [result.sequence async for result in feed]
        assert sequences == list(range(40))


@pytest.mark.parametrize("kind", ["list", "asynchronous", "endless"])
async def test_stream_cancelled_anywhere_leaves_nothing_behind(kind: str) -> None:
    """A stream may be given up at any moment: its source is closed and its frames are counted."""
    closed: list[int] = []

    async def frames(count: int) -> AsyncIterator[Tensor]:
        try:
            for _ in range(count):
                await asyncio.sleep(0)
                yield FRAME
        finally:
            closed.append(1)

    async with _running() as pipeline:
        begun: list[int] = []

        async def stream() -> None:
            begun.append(1)
            source = [FRAME] * 3 if kind == "list" else frames(3 if kind == "asynchronous" else 10**9)
            count = 0
            results = pipeline.stream(source)
            try:
                async for _ in results:
                    count += 1
                    if count == 3 and kind == "endless":
                        break
            finally:
                await results.aclose()  # type: ignore[attr-defined]

        await _cancelled_everywhere(stream, lambda: _goes_on(pipeline))
        assert pipeline.statistics().feeds == 0
    assert len(closed) <= len(begun)


async def test_weights_asked_for_and_cancelled_anywhere_stay_whole() -> None:
    """Snapshots and swaps may be given up at any moment; a swap that began reaches every stage, and none half."""
    net, other = dense(2, width=3), dense(2, width=3)
    pipeline = pa.Pipeline(net, FRAME, stages=2, devices=["simulated:0ms"] * 2, clock=LoopClock())
    frames = frames_like(FRAME, 1)
    outputs = [called(module, frames)[0] for module in (net, other)]
    async with pipeline:

        async def is_one_of_both() -> None:
            output = (await pipeline.process(frames[0])).output
            assert any(torch.equal(torch.as_tensor(output), torch.as_tensor(each)) for each in outputs)

        async def swap() -> None:
            await pipeline.state_dict()
            await pipeline.load_state_dict(other.state_dict())
            await pipeline.load_state_dict(net.state_dict())

        await _cancelled_everywhere(swap, is_one_of_both)


async def test_feed_entered_and_left_and_cancelled_anywhere_is_gone() -> None:
    """A whole use of a feed may be given up at any moment, its leaving included."""
    async with _running() as pipeline:

        async def use() -> None:
            async with pipeline.feed(capacity=3) as feed:
                for _ in range(3):
                    await feed.put(FRAME)
                await anext(feed)

        async def check() -> None:
            assert pipeline.statistics().feeds == 0
            await _goes_on(pipeline)

        await _cancelled_everywhere(use, check)


@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize("make", [_simulated, _threaded])
async def test_leaving_cancelled_anywhere_leaves_nothing_behind(make: Callable[[], pa.Pipeline], times: int) -> None:
    """Leaving may be cancelled at any moment, again and again: the end is complete all the same, then it is raised."""
    pipeline = make()
    for count in [*range(1, 12), 20, 50, 200]:
        await pipeline.__aenter__()
        feed = pipeline.feed(capacity=5)
        await feed.__aenter__()
        for _ in range(5):
            feed.put_nowait(FRAME)
        asking = asyncio.ensure_future(pipeline.process(FRAME))
        snapshot = asyncio.ensure_future(pipeline.state_dict())
        await asyncio.sleep(0)
        await _cancelled_after(lambda: pipeline.__aexit__(None, None, None), count, times=times)
        assert_all_ended(feed.statistics().frames)
        with pytest.raises(pa.PipelineNotRunning):
            pipeline.statistics()
        outcomes = await asyncio.wait_for(asyncio.gather(asking, snapshot, return_exceptions=True), TIMEOUT_S)
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert all(isinstance(error, pa.PipelineNotRunning) for error in errors)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left


@pytest.mark.parametrize("make", [_simulated, _threaded])
async def test_entering_cancelled_anywhere_leaves_nothing_behind(make: Callable[[], pa.Pipeline]) -> None:
    """Entering may be cancelled at any moment; the pipeline can then be entered."""
    for count in (0, 1, 2, 3, 4, 5, 6, 8, 10, 20, 50, 100, 200, 500):
        pipeline = make()
        if await _cancelled_after(pipeline.__aenter__, count):
            await pipeline.__aexit__(None, None, None)
        async with pipeline:
            await _goes_on(pipeline)


async def test_calls_to_threads_cancelled_at_any_moment_leave_exact_accounts() -> None:
    """With real threads and at moments that nobody chose, every kind of call may be given up."""
    async with _threaded() as pipeline:

        async def put() -> None:
            async with pipeline.feed(capacity=1) as feed:
                for _ in range(4):
                    await feed.put(FRAME)
                feed.close()
                _ = [result async for result in feed]

        async def stream() -> None:
            _ = [result async for result in pipeline.stream([FRAME] * 4)]

        async def swap() -> None:
            await pipeline.load_state_dict(await pipeline.state_dict())

        calls: list[Call] = [lambda: pipeline.process(FRAME), put, stream, swap]
        for count in [*range(0, 40, 3), 60, 90, 150, 300]:
            for call in calls:
                await _cancelled_after(call, count)
                await _goes_on(pipeline)
        await _landed(pipeline)
        await steps()
        assert_all_ended(pipeline.statistics().frames)
        assert pipeline.statistics().feeds == 0


async def test_put_cancelled_in_the_same_step_as_a_wake_up_is_cancelled_and_the_next_one_goes() -> None:
    """A wake-up that comes between a cancellation and its arrival goes to the next in line."""
    channel: Channel[int] = Channel(1)
    channel.put_nowait(0)
    first, second = asyncio.ensure_future(channel.put(1)), asyncio.ensure_future(channel.put(2))
    await steps()
    first.cancel()
    assert channel.get_nowait() == 0
    await asyncio.wait([first, second], timeout=TIMEOUT_S)
    assert first.cancelled()
    assert second.done()
    assert channel.get_nowait() == 2
