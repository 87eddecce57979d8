"""What becomes of frames that a full feed is offered, one policy after the other, and of those it cannot take."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress

import pytest
import torch

import partime_async as pa
from tests.bench import FRAME, Bench, steps

# -- overflow policies ------------------------------------------------------------------------------------------------


async def test_put_of_a_full_blocking_feed_waits_for_room() -> None:
    """Under block, put comes back when the pipeline has taken a frame, and nothing is dropped."""
    bench = Bench("block", capacity=2)
    async with bench.feed as feed:
        assert [await feed.put(FRAME), await feed.put(FRAME)] == [0, 1]
        waiting = asyncio.ensure_future(feed.put(FRAME))
        await steps()
        assert not waiting.done()
        assert (bench.frames.offered, bench.frames.waiting) == (3, 3)
        bench.finish(bench.take())
        assert await waiting == 2
        feed.discard_results()
        assert bench.work() == 2
    assert bench.frames.dropped == {"unread": 3}


async def test_put_nowait_of_a_full_blocking_feed_raises_feed_full() -> None:
    """Under block, put_nowait cannot wait: it refuses, says how many wait already, and counts the frame as refused."""
    bench = Bench("block", capacity=2)
    async with bench.feed as feed:
        feed.put_nowait(FRAME)
        feed.put_nowait(FRAME)
        with pytest.raises(pa.FeedFull, match="2 frame") as caught:
            feed.put_nowait(FRAME)
        assert caught.value.capacity == 2
        assert bench.frames.dropped == {"refused": 1}
        bench.work()


async def test_put_of_a_full_drop_oldest_feed_drops_the_frame_that_waited_longest() -> None:
    """Under drop_oldest, the newest frames stay, in order, and the others are counted as overflow."""
    bench = Bench("drop_oldest", capacity=2)
    async with bench.feed as feed:
        for number in range(5):
            assert await feed.put(FRAME, context=number) == number
        assert bench.frames.dropped == {"overflow": 3}
        assert [frame.sequence for frame in (bench.take(), bench.take()) if frame is not None] == [3, 4]
        for frame in list(bench.admission.flying):
            bench.finish(frame)


async def test_put_of_a_full_drop_newest_feed_drops_the_frame_offered() -> None:
    """Under drop_newest, the frames that wait stay, and what does not fit is counted as refused, without an error."""
    bench = Bench("drop_newest", capacity=2)
    async with bench.feed as feed:
        for _ in range(5):
            await feed.put(FRAME)
        assert bench.frames.dropped == {"refused": 3}
        assert [frame.sequence for frame in (bench.take(), bench.take()) if frame is not None] == [0, 1]
        for frame in list(bench.admission.flying):
            bench.finish(frame)


async def test_put_of_a_latest_feed_keeps_the_newest_frame_only() -> None:
    """Under latest, one frame waits, the newest, however large the capacity asked for."""
    bench = Bench("latest", capacity=5)
    async with bench.feed as feed:
        for _ in range(5):
            await feed.put(FRAME)
        assert (bench.frames.waiting, bench.frames.dropped) == (1, {"overflow": 4})
        frame = bench.take()
        assert frame is not None
        assert frame.sequence == 4
        bench.finish(frame)


async def test_put_of_a_full_failing_feed_raises_feed_full() -> None:
    """Under fail, put of a full feed raises and the frame is counted as refused."""
    bench = Bench("fail", capacity=1)
    async with bench.feed as feed:
        await feed.put(FRAME)
        with pytest.raises(pa.FeedFull, match="drops"):
            await feed.put(FRAME)
        assert bench.frames.dropped == {"refused": 1}
        bench.work()


@pytest.mark.parametrize("overflow", ["latest", "drop_oldest", "drop_newest"])
async def test_put_of_a_source_that_never_waits_lets_others_run(overflow: str) -> None:
    """A task that puts without end under a dropping policy does not keep the loop from other tasks."""
    bench = Bench(overflow)
    turns = 0

    async def endless(feed: pa.Feed) -> None:
        nonlocal turns
        while turns < 100:
            await feed.put(FRAME)
            turns += 1

    async with bench.feed as feed:
        putting = asyncio.ensure_future(endless(feed))
        await steps(10)
        assert turns < 20
        await putting
        bench.work()


@pytest.mark.looptime
async def test_frames_older_than_the_limit_are_dropped_when_their_turn_comes() -> None:
    """With max_age_s, what has waited longer is counted as stale and the next one is taken instead."""
    bench = Bench("block", capacity=3, max_age_s=0.5)
    async with bench.feed as feed:
        await feed.put(FRAME)
        now = asyncio.get_running_loop().time()
        await feed.put(FRAME, captured_at=now + 0.2)
        await feed.put(FRAME, captured_at=now + 0.4)
        await asyncio.sleep(0.8)
        frame = bench.take()
        assert frame is not None
        assert frame.sequence == 2
        assert bench.frames.dropped == {"stale": 2}
        bench.finish(frame)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "told"),
    [
        (torch.ones(1, 3), r"\(1, 3\) of float32"),
        (torch.ones(2), r"\(2,\) of float32"),
        (torch.ones(1, 2, dtype=torch.float64), r"\(1, 2\) of float64"),
        ((torch.ones(1, 2),), "a tuple"),
        ([1.0, 2.0], "builtins.list"),
        (None, "NoneType"),
        (torch.ones(1, 2).numpy(), "torch.from_numpy"),
    ],
)
async def test_put_of_what_the_pipeline_does_not_take_raises_frame_error(frame: object, told: str) -> None:
    """A frame of another kind, shape or dtype is refused where it enters, named, and counted as invalid."""
    bench = Bench()
    async with bench.feed as feed:
        with pytest.raises(pa.FrameError, match=told) as caught:
            feed.put_nowait(frame)  # type: ignore[arg-type]
        assert "expected a tensor (1, 2) of float32" in str(caught.value)
        assert bench.frames.dropped == {"invalid": 1}


@pytest.mark.parametrize("captured_at", [math.nan, math.inf, -math.inf, "now", object()])
async def test_put_with_an_impossible_capture_time_raises_frame_error(captured_at: float) -> None:
    """A capture time that is no finite number is refused: it would break the accounts when the frame is done."""
    bench = Bench()
    async with bench.feed as feed:
        with pytest.raises(pa.FrameError, match="captured_at"):
            await feed.put(FRAME, captured_at=captured_at)
        assert bench.frames.dropped == {"invalid": 1}


async def test_reset_of_a_frame_that_was_refused_falls_to_the_next() -> None:
    """A frame that never got its place does not take the wish to start over with it."""
    bench = Bench("drop_newest", capacity=1)
    async with bench.feed as feed:
        await feed.put(FRAME)
        feed.reset_state()
        await feed.put(FRAME)
        first = bench.take()
        await feed.put(FRAME)
        second = bench.take()
        assert first is not None
        assert second is not None
        assert (first.epoch, second.epoch) == (0, 1)
        bench.finish(first)
        bench.finish(second)


async def test_reset_of_a_put_that_was_cancelled_falls_to_the_next() -> None:
    """A put that was cancelled while it waited does not take the wish to start over with it."""
    bench = Bench("block", capacity=1)
    async with bench.feed as feed:
        await feed.put(FRAME)
        feed.reset_state()
        waiting = asyncio.ensure_future(feed.put(FRAME))
        await steps()
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        bench.finish(bench.take())
        await feed.put(FRAME)
        frame = bench.take()
        assert frame is not None
        assert frame.epoch == 1
        bench.finish(frame)
