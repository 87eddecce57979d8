"""Several clients of one pipeline, and how old their results are: simulated stages in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import torch

import partime_async as pa
from partime_async.clock import LoopClock
from tests.nets import assert_all_ended, command, commanded

pytestmark = pytest.mark.looptime
FRAME = command(1.0)


def _pipeline(times_s: Sequence[float], *, capacity: int = 2, depth: int | None = None) -> pa.Pipeline:
    return pa.Pipeline(
        commanded(len(times_s)),
        FRAME,
        stages=len(times_s),
        devices=[pa.SimulatedDevice(time_s) for time_s in times_s],
        capacity=capacity,
        depth=depth,
        clock=LoopClock(),
    )


async def _offer(feed: pa.Feed, *, every_s: float = 0.0) -> None:
    """Put frames until the feed is closed, or refuses one."""
    while True:
        try:
            await feed.put(FRAME)
        except (pa.FeedClosed, pa.FeedFull):
            return
        if every_s:
            await asyncio.sleep(every_s)


async def _read(feed: pa.Feed, ages_s: list[float] | None = None) -> int:
    """Read until the end and return how many results there were."""
    now, count = asyncio.get_running_loop().time, 0
    async for result in feed:
        count += 1
        if ages_s is not None:
            ages_s.append(now() - result.captured_at)
    return count


def _jain(shares: Sequence[float]) -> float:
    """Return how equal shares are, 1 for equal ones and 1/n if one has all. Source: Jain's fairness index."""
    return float(sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares)))


@pytest.mark.parametrize("overflow", ["block", "latest", "drop_oldest", "drop_newest"])
async def test_feeds_of_equal_demand_have_equal_shares(overflow: str) -> None:
    """Five clients that want more than there is each get a fifth, whatever their policy."""
    async with _pipeline([0.005, 0.005]) as pipeline, asyncio.TaskGroup() as group:
        feeds = [pipeline.feed(overflow=overflow) for _ in range(5)]
        for feed in feeds:
            await feed.__aenter__()
            group.create_task(_offer(feed, every_s=0.0 if overflow == "block" else 0.001))
        reads = [group.create_task(_read(feed)) for feed in feeds]
        await asyncio.sleep(1.0)
        shares = [feed.statistics().frames.delivered for feed in feeds]
        for feed in feeds:
            feed.close()
        await asyncio.wait(reads)
        for feed in feeds:
            await feed.__aexit__(None, None, None)
        assert sum(shares) > 185, "the pipeline was not kept busy"
        assert _jain(shares) > 0.999
        assert_all_ended(pipeline.statistics().frames)


async def test_feed_with_many_producers_gets_no_more_than_its_share() -> None:
    """Ten tasks that put into one feed leave the client with a single one its half."""
    async with _pipeline([0.005]) as pipeline, pipeline.feed() as greedy, pipeline.feed() as modest:
        async with asyncio.TaskGroup() as group:
            for feed, producers in ((greedy, 10), (modest, 1)):
                for _ in range(producers):
                    group.create_task(_offer(feed))
                group.create_task(_read(feed))
            await asyncio.sleep(1.0)
            shares = [feed.statistics().frames.delivered for feed in (greedy, modest)]
            greedy.close()
            modest.close()
        assert _jain(shares) > 0.999


@pytest.mark.parametrize("overflow", ["block", "latest", "drop_oldest", "drop_newest", "fail"])
async def test_reader_that_stalls_blocks_nobody_else(overflow: str) -> None:
    """While one client reads nothing, the other gets every frame of its own, as if alone."""
    async with _pipeline([0.005, 0.005]) as pipeline:
        async with pipeline.feed(overflow=overflow) as stalled, pipeline.feed() as other:
            async with asyncio.TaskGroup() as group:
                group.create_task(_offer(stalled, every_s=0.001))
                await asyncio.sleep(0.5)
                before = other.statistics().frames.delivered
                group.create_task(_offer(other))
                group.create_task(_read(other))
                await asyncio.sleep(1.0)
                delivered = other.statistics().frames.delivered - before
                other.close()
                stalled.close()
                stalled.discard_results()
            # A live feed goes on throwing its unread results away, and so has its turns; the others stand still.
            assert delivered > (95 if overflow in ("latest", "drop_oldest") else 190)
        assert_all_ended(pipeline.statistics().frames)


@pytest.mark.parametrize("times_s", [(0.005,) * 4, (0.002, 0.008, 0.003), (0.001,) * 8, (0.01, 0.01), (0.02,)])
async def test_age_under_overload_is_the_stage_times(times_s: tuple[float, ...]) -> None:
    """A camera much too fast for the pipeline costs frames, not freshness: they are let in just in time."""
    ages_s: list[float] = []
    async with _pipeline(times_s) as pipeline, pipeline.feed(overflow="latest") as feed, asyncio.TaskGroup() as group:
        group.create_task(_offer(feed, every_s=0.001))
        group.create_task(_read(feed, ages_s))
        await asyncio.sleep(1.0)
        feed.close()
    settled = ages_s[10:-1]  # the last one waits for its turn however old it gets: no newer one comes
    leeway_s, between_frames_s = 0.2 * max(times_s) + 0.002, 0.001
    assert max(settled) <= sum(times_s) + leeway_s + between_frames_s
    assert len(ages_s) * max(times_s) >= 1.0 * 0.9, "the slowest stage was not kept busy"


async def test_age_of_frames_that_come_slowly_is_the_stage_times() -> None:
    """Thirty frames a second through eight stages of 2 ms come out after 16 ms: no waiting for the next frame."""
    ages_s: list[float] = []
    async with _pipeline([0.002] * 8) as pipeline, pipeline.feed(overflow="latest") as feed:
        async with asyncio.TaskGroup() as group:
            group.create_task(_offer(feed, every_s=1 / 30))
            group.create_task(_read(feed, ages_s))
            await asyncio.sleep(3.0)
            feed.close()
        assert feed.statistics().frames.dropped == {}
    assert max(ages_s) == pytest.approx(0.016, abs=1e-4)


async def test_stages_speed_frames_up_by_their_number() -> None:
    """Eight stages of 5 ms give eight times the frames of one stage of 40 ms."""
    loop = asyncio.get_running_loop()
    async with _pipeline([0.005] * 8) as pipeline:
        began = loop.time()
        count = sum([1 async for _ in pipeline.stream([FRAME] * 400)])
        assert count == 400
        assert loop.time() - began == pytest.approx((400 + 7) * 0.005, rel=0.01)


async def test_live_feed_keeps_its_newest_frame_for_the_moment_it_can_start() -> None:
    """A slow stage always starts with the frame that is the newest then, not with the one that waited longest."""
    async with _pipeline([0.05]) as pipeline, pipeline.feed(overflow="latest") as feed:
        starts: list[tuple[float, float]] = []

        async def read() -> None:
            starts.extend([(result.timings[0].started_at, result.captured_at) async for result in feed])

        async with asyncio.TaskGroup() as group:
            group.create_task(_offer(feed, every_s=0.001))
            group.create_task(read())
            await asyncio.sleep(1.0)
            feed.close()
    # One frame waits on the stage's stream, so that the stage need not wait for the event loop: one service time.
    assert all(start - captured <= 0.05 + 0.001 + 1e-6 for start, captured in starts)


async def test_window_is_open_without_a_live_feed_and_follows_the_stage_times_with_one() -> None:
    """Lossless feeds may run deep; with a live feed, no more frames fly than keep the slowest stage busy."""
    async with _pipeline([0.002, 0.008, 0.003]) as pipeline:
        assert pipeline.statistics().window is None
        async with pipeline.feed(max_age_s=10.0) as feed:
            assert pipeline.statistics().window == 4  # nothing is known yet: one for each stage, and one
            async with asyncio.TaskGroup() as group:
                group.create_task(_offer(feed))
                group.create_task(_read(feed))
                await asyncio.sleep(0.5)
                assert pipeline.statistics().window == 2  # 13 ms of stages, 8 ms for the slowest
                assert pipeline.statistics().frames.in_flight <= 2
                feed.close()
        assert pipeline.statistics().window is None
        assert pipeline.statistics().feeds == 0


async def test_window_narrows_a_lossless_feed_as_long_as_a_live_one_is_open() -> None:
    """A lossless client beside a live one shares its window, and has the depth to itself again when that one leaves."""
    async with (
        _pipeline([0.005] * 2, depth=4) as pipeline,
        pipeline.feed(capacity=20) as deep,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(_offer(deep))
        group.create_task(_read(deep))
        async with pipeline.feed(overflow="latest"):
            await asyncio.sleep(0.5)
            assert pipeline.statistics().frames.in_flight <= 3
        await asyncio.sleep(0.5)
        assert pipeline.statistics().frames.in_flight > 3
        deep.close()


async def test_frames_that_are_too_old_are_dropped_before_they_cost_anything() -> None:
    """With max_age_s, a frame that waited too long is counted as stale and never touches a stage."""
    async with _pipeline([0.05]) as pipeline, pipeline.feed(capacity=20, max_age_s=0.12) as feed:
        for _ in range(20):
            await feed.put(FRAME)
        feed.close()
        count = await _read(feed)
        assert count == 3
        assert feed.statistics().frames.dropped == {"stale": 17}
        assert pipeline.statistics().stages[0].frames == 3


async def test_process_beside_busy_feeds_has_its_turn() -> None:
    """A single question to a pipeline that is kept busy waits for its turn, not for a gap."""
    loop = asyncio.get_running_loop()
    async with (
        _pipeline([0.005]) as pipeline,
        pipeline.feed() as first,
        pipeline.feed(overflow="latest") as second,
        asyncio.TaskGroup() as group,
    ):
        for feed in (first, second):
            group.create_task(_offer(feed, every_s=0.001))
            group.create_task(_read(feed))
        await asyncio.sleep(0.2)
        began = loop.time()
        result = await pipeline.process(FRAME)
        assert loop.time() - began < 0.005 * 6
        assert torch.equal(torch.as_tensor(result.output), torch.tensor([[1.0, 1.0, 1.0]]))
        first.close()
        second.close()
