"""One feed by itself: its results, and its ends."""

from __future__ import annotations

import asyncio
import traceback

import pytest

import partime_async as pa
from partime_async.frame import Result
from tests.bench import FRAME, Bench, stage_error, steps
from tests.nets import assert_all_ended

# -- results ----------------------------------------------------------------------------------------------------------


async def test_results_nobody_reads_hold_the_admission_of_a_blocking_feed_back() -> None:
    """Under block no result is lost: once the unread ones reach the limit, no frame is taken until one is read."""
    bench = Bench("block", capacity=9, unread_limit=3)
    async with bench.feed as feed:
        for _ in range(6):
            await feed.put(FRAME)
        assert bench.work() == 3
        assert (bench.frames.unread, bench.frames.waiting) == (3, 3)
        assert (await anext(feed)).sequence == 0
        assert bench.work() == 1
        assert (bench.frames.unread, bench.frames.delivered) == (3, 1)
        feed.discard_results()
        bench.work()
    assert_all_ended(bench.frames)


@pytest.mark.parametrize("overflow", ["latest", "drop_oldest"])
async def test_results_nobody_reads_make_room_for_newer_ones_in_a_live_feed(overflow: str) -> None:
    """A live feed keeps its newest results and counts those that nobody read in time."""
    bench = Bench(overflow, capacity=2)
    async with bench.feed as feed:
        for _ in range(5):
            await feed.put(FRAME)
            bench.work()
        kept = bench.feed.options.capacity
        assert (bench.frames.unread, bench.frames.dropped) == (kept, {"unread": 5 - kept})
        assert (await anext(feed)).sequence == 5 - kept


async def test_result_brings_the_context_back() -> None:
    """What was given to put along with the frame comes out with its result, whatever it is."""
    bench = Bench("block", capacity=4)
    context = object()
    async with bench.feed as feed:
        await feed.put(FRAME, context=context)
        await feed.put(FRAME)
        bench.work()
        assert (await anext(feed)).context is context
        assert (await anext(feed)).context is None


async def test_failed_frames_are_read_in_their_place_and_counted_as_failed() -> None:
    """A result with an error comes in order, is counted once, and raises when its output is asked for."""
    bench = Bench("block", capacity=4)
    async with bench.feed as feed:
        for _ in range(3):
            await feed.put(FRAME)
        bench.finish(bench.take())
        bench.finish(bench.take(), stage_error())
        bench.finish(bench.take())
        results = [await anext(feed) for _ in range(3)]
    assert [result.error is None for result in results] == [True, False, True]
    with pytest.raises(pa.StageError, match="of the layer"):
        _ = results[1].output
    assert (bench.frames.delivered, bench.frames.failed) == (2, 1)


async def test_reader_that_waits_gets_the_end_when_the_feed_is_closed() -> None:
    """Iteration ends normally once the feed is closed and every result was read."""
    bench = Bench()
    async with bench.feed as feed:
        reading = asyncio.ensure_future(_all(feed))
        await feed.put(FRAME)
        bench.work()
        await steps()
        feed.close()
        assert [result.sequence for result in await reading] == [0]


async def _all(feed: pa.Feed) -> list[Result]:
    return [result async for result in feed]


async def test_reader_gets_the_results_before_the_error_that_closed_the_feed() -> None:
    """What ended the source is raised after the results of the frames that came before it."""
    bench = Bench("block", capacity=4)
    async with bench.feed as feed:
        await feed.put(FRAME)
        feed.close(OSError("cable pulled"))
        bench.work()
        assert (await anext(feed)).sequence == 0
        with pytest.raises(OSError, match="cable pulled"):
            await anext(feed)


async def test_error_of_a_feed_keeps_its_cause_and_its_traceback() -> None:
    """However many callers an error is raised to, it keeps its cause, and its traceback does not grow."""
    bench = Bench("block", capacity=1, unread_limit=1)
    error = stage_error()
    async with bench.feed as feed:
        await feed.put(FRAME)
        waiting = asyncio.ensure_future(feed.put(FRAME))
        await steps()
        feed.abort(error)
        with pytest.raises(pa.StageError) as caught:
            await waiting
        lengths = set()
        for _ in range(4):
            for call in (feed.put(FRAME), anext(feed)):
                with pytest.raises(pa.StageError) as caught:
                    await call
            lengths.add(len(traceback.extract_tb(caught.value.__traceback__)))
        assert len(lengths) == 1
        assert isinstance(error.__cause__, ValueError)
        assert error.__suppress_context__
        assert error.__context__ is error.__cause__ or error.__context__ is None


async def test_feed_that_has_ended_ends_normally_whatever_happens_later() -> None:
    """Once a closed feed has nothing more to come, an abort of the pipeline is no error of its reader's."""
    bench = Bench()
    async with bench.feed as feed:
        await feed.put(FRAME)
        feed.close()
        bench.work()
        feed.abort(pa.PipelineNotRunning("left"))
        assert [result.sequence for result in await _all(feed)] == [0]


# -- ends -------------------------------------------------------------------------------------------------------------


async def test_put_after_close_raises_feed_closed_and_counts_nothing() -> None:
    """A frame offered after close was never taken, and is not in the accounts."""
    bench = Bench()
    async with bench.feed as feed:
        feed.close()
        assert feed.is_closed
        for offer in (feed.put(FRAME), feed.process(FRAME, None, None, None)):
            with pytest.raises(pa.FeedClosed, match="after close"):
                await offer
        with pytest.raises(pa.FeedClosed):
            feed.put_nowait(FRAME)
    assert bench.frames.offered == 0


async def test_put_that_waits_when_the_feed_is_closed_raises_feed_closed() -> None:
    """A caller held back by a full feed is told when it closes; its frame is counted as closed, the others go on."""
    bench = Bench("block", capacity=1)
    async with bench.feed as feed:
        await feed.put(FRAME)
        waiting = asyncio.ensure_future(feed.put(FRAME))
        await steps()
        feed.close()
        with pytest.raises(pa.FeedClosed):
            await waiting
        assert (bench.frames.waiting, bench.frames.dropped) == (1, {"closed": 1})
        assert bench.work() == 1


async def test_put_cancelled_while_it_waits_drops_its_frame_only() -> None:
    """A cancelled put has put nothing: its frame is counted as cancelled and its place goes to the next in line."""
    bench = Bench("block", capacity=1)
    async with bench.feed as feed:
        await feed.put(FRAME)
        first, second = asyncio.ensure_future(feed.put(FRAME)), asyncio.ensure_future(feed.put(FRAME))
        await steps()
        first.cancel()
        await steps()
        assert bench.frames.dropped == {"cancelled": 1}
        bench.finish(bench.take())
        assert await second == 2
        bench.work()


async def test_abort_drops_what_waits_and_tells_who_waits_for_it() -> None:
    """After an abort, frames that waited are counted as aborted and the callers of process learn why."""
    bench = Bench("block", capacity=2)
    async with bench.feed as feed:
        waiting = asyncio.ensure_future(feed.process(FRAME, None, None, None))
        await steps()
        await feed.put(FRAME)
        feed.abort()
        feed.abort()
        with pytest.raises(pa.FrameDropped, match="aborted") as caught:
            await waiting
        assert caught.value.cause is pa.DropCause.ABORTED
        assert bench.frames.dropped == {"aborted": 2}


async def test_abort_lets_frames_in_flight_come_to_their_end() -> None:
    """Frames that were admitted before an abort still give their results."""
    bench = Bench("block", capacity=2)
    async with bench.feed as feed:
        await feed.put(FRAME)
        frame = bench.take()
        feed.abort()
        bench.finish(frame)
        assert [result.sequence for result in await _all(feed)] == [0]


async def test_block_left_by_an_error_aborts_the_feed() -> None:
    """An exception in the block drops the frames that have not started and leaves at once."""
    bench = Bench("block", capacity=2)

    async def leave() -> None:
        async with bench.feed as feed:
            await feed.put(FRAME)
            raise KeyError

    with pytest.raises(KeyError):
        await leave()
    assert bench.frames.dropped == {"aborted": 1}
    assert bench.left == [bench.feed]


async def test_block_left_normally_waits_for_the_frames_that_were_put() -> None:
    """Leaving the block waits until every frame has gone through; results nobody read are counted."""
    bench = Bench("block", capacity=2)

    async def leave() -> None:
        async with bench.feed as feed:
            await feed.put(FRAME)

    leaving = asyncio.ensure_future(leave())
    await steps()
    assert not leaving.done()
    bench.work()
    await leaving
    assert bench.frames.dropped == {"unread": 1}
    assert bench.left == [bench.feed]


async def test_drain_cancelled_for_one_caller_goes_on_for_the_others() -> None:
    """Several tasks may wait for a feed to drain; one that is cancelled takes nobody along."""
    bench = Bench()
    async with bench.feed as feed:
        await feed.put(FRAME)
        first, second = asyncio.ensure_future(feed.drain()), asyncio.ensure_future(feed.drain())
        await steps()
        first.cancel()
        await steps()
        assert first.cancelled()
        assert not second.done()
        bench.work()
        await second


async def test_landing_is_told_once_when_the_last_result_was_read() -> None:
    """The account of a feed is final when nothing waits, is in flight or unread; then, and once, that is told."""
    bench = Bench("block", capacity=2)
    landed: list[int] = []
    async with bench.feed as feed:
        await feed.put(FRAME)
        feed.when_landed(lambda: landed.append(feed.accounts.delivered))
        bench.work()
        assert landed == []
        await anext(feed)
        assert landed == [1]
    assert landed == [1]


@pytest.mark.parametrize("use", ["put", "put_nowait", "read"])
async def test_feed_used_outside_its_block_says_so(use: str) -> None:
    """A feed takes and gives nothing before it was entered."""
    feed = Bench().feed

    async def put_nowait() -> None:
        feed.put_nowait(FRAME)

    async def put() -> None:
        await feed.put(FRAME)

    async def read() -> None:
        await anext(feed)

    with pytest.raises(pa.PipelineNotRunning, match="async with"):
        await {"put": put, "put_nowait": put_nowait, "read": read}[use]()


async def test_feed_entered_twice_is_refused() -> None:
    """One feed object is one stretch of frames: it cannot be entered again, during its block or after."""
    bench = Bench()
    async with bench.feed as feed:
        with pytest.raises(pa.FeedClosed, match="another"):
            await feed.__aenter__()
    with pytest.raises(pa.FeedClosed, match="another"):
        await bench.feed.__aenter__()
