"""The way into the first stage: whose turn it is, what goes first, how many may fly."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
import torch

import partime_async as pa
from partime_async.admission import Admission
from partime_async.flight import AnyMark, Frame, Mark
from tests.bench import FRAME, Bench, result_of, steps


class Source:
    """A feed that has so many frames."""

    def __init__(self, name: str, frames: int) -> None:
        self.name = name
        self.frames = frames
        self.is_queued = False

    def take(self) -> Frame | None:
        """Give a frame whose context says where it came from."""
        if not self.frames:
            return None
        self.frames -= 1
        return Frame(Bench().feed, 0, torch.ones(1), target=None, captured_at=0.0, context=self.name)


def _mark() -> AnyMark:
    return Mark[object]([lambda: None])


async def _names(admission: Admission, count: int) -> list[object]:
    items = [await asyncio.wait_for(admission.get(), 5.0) for _ in range(count)]
    return [item.context if isinstance(item, Frame) else "mark" for item in items]


async def test_feeds_with_frames_take_turns() -> None:
    """Each feed gives one frame per turn, in the order they announced themselves, until it has none."""
    admission = Admission(lambda: None)
    for source in (Source("a", 4), Source("b", 2), Source("c", 3)):
        admission.announce(source)
    assert await _names(admission, 9) == ["a", "b", "c", "a", "b", "c", "a", "c", "a"]


async def test_feed_announced_twice_has_one_turn() -> None:
    """Announcing a feed that is in the queue already gives it no second turn."""
    admission = Admission(lambda: None)
    greedy, modest = Source("greedy", 9), Source("modest", 9)
    for _ in range(3):
        admission.announce(greedy)
    admission.announce(modest)
    assert Counter(await _names(admission, 10)) == {"greedy": 5, "modest": 5}


async def test_frames_are_numbered_in_the_order_of_admission() -> None:
    """Admitted frames have the numbers 0, 1, 2 over all feeds, told once, before they are handed out."""
    told: list[int] = []
    admission = Admission(lambda: None, on_admit=lambda frame: told.append(frame.index))
    admission.announce(Source("a", 2))
    admission.announce(Source("b", 2))
    items = [await admission.get() for _ in range(4)]
    assert [item.index for item in items if isinstance(item, Frame)] == [0, 1, 2, 3] == told
    assert (admission.admitted, len(admission.flying)) == (4, 4)


async def test_marks_go_before_frames_that_are_not_admitted() -> None:
    """A mark lies behind the last admitted frame, so before all that wait."""
    admission = Admission(lambda: None)
    admission.announce(Source("a", 2))
    assert await _names(admission, 1) == ["a"]
    admission.send(_mark())
    admission.send(_mark())
    assert await _names(admission, 3) == ["mark", "mark", "a"]


async def test_window_holds_frames_back_but_no_marks() -> None:
    """No frame is admitted while as many fly as the window allows; marks pass, and a landing lets the next one in."""
    admission = Admission(lambda: 2)
    admission.announce(Source("a", 5))
    first = await admission.get()
    await admission.get()
    waiting = asyncio.ensure_future(admission.get())
    await steps()
    assert not waiting.done()
    admission.send(_mark())
    assert isinstance(await waiting, Mark)
    waiting = asyncio.ensure_future(admission.get())
    await steps()
    assert not waiting.done()
    assert isinstance(first, Frame)
    admission.finished(first)
    assert isinstance(await waiting, Frame)
    assert len(admission.flying) == 2


async def test_frame_of_a_live_feed_is_chosen_when_it_can_start() -> None:
    """While the window is full, the frame that will go next is still the newest: it waits outside."""
    bench = Bench("latest")
    bench.admission._window = lambda: 1
    async with bench.feed as feed:
        await feed.put(FRAME)
        flying = bench.take()
        for _ in range(5):
            await feed.put(FRAME)
        assert bench.take() is None
        bench.finish(flying)
        frame = bench.take()
        assert frame is not None
        assert frame.sequence == 5
        bench.finish(frame)


@pytest.mark.looptime
async def test_frame_with_time_to_spare_waits_outside_for_a_newer_one() -> None:
    """While a frame would only wait inside, it is not chosen; a newer one takes its place, a mark goes past it."""
    bench = Bench("latest")
    delays_s = iter((0.5, 0.3, 0.0))
    bench.admission._window = lambda: 2
    bench.admission._delay = lambda: next(delays_s)
    loop = asyncio.get_running_loop()
    async with bench.feed as feed:
        await feed.put(FRAME)
        began = loop.time()
        waiting = asyncio.ensure_future(bench.admission.get())
        await asyncio.sleep(0.2)
        await feed.put(FRAME)
        bench.admission.send(_mark())
        assert isinstance(await waiting, Mark)
        frame = await bench.admission.get()
        assert isinstance(frame, Frame)
        assert (frame.sequence, round(loop.time() - began, 3)) == (1, 0.5)
        bench.finish(frame)


async def test_get_that_is_cancelled_takes_nothing() -> None:
    """A frame that arrives as its taker is cancelled goes to the next taker."""
    admission = Admission(lambda: None)
    waiting = asyncio.ensure_future(admission.get())
    await steps()
    admission.announce(Source("a", 1))
    waiting.cancel()
    await steps()
    assert waiting.cancelled()
    assert await _names(admission, 1) == ["a"]


async def test_abort_fails_the_marks_that_have_not_started() -> None:
    """Whoever waits for a mark that no stage has seen is told why it will not come."""
    admission = Admission(lambda: None)
    mark = _mark()
    admission.send(mark)
    admission.abort(pa.PipelineNotRunning("left"))
    with pytest.raises(pa.PipelineNotRunning, match="left"):
        await mark.wait()


async def test_feed_without_room_for_results_keeps_nobody_else_waiting() -> None:
    """A feed whose results nobody reads loses its turn to the others, and gets it back when one is read."""
    admission = Admission(lambda: None)
    stalled, other = Bench(capacity=9, unread_limit=2), Bench(capacity=9, unread_limit=9)
    for bench in (stalled, other):
        bench.feed._admission = admission
        await bench.feed.__aenter__()
    for _ in range(5):
        stalled.feed.put_nowait(FRAME)
        other.feed.put_nowait(FRAME)
    owners = []
    while (frame := admission._next()) is not None:
        assert isinstance(frame, Frame)
        owners.append(frame.owner)
        frame.owner.finish(frame, result_of(frame))
    assert Counter(owners) == {stalled.feed: 2, other.feed: 5}
    await anext(stalled.feed)
    frame = admission._next()
    assert isinstance(frame, Frame)
    assert frame.owner is stalled.feed
    frame.owner.finish(frame, result_of(frame))
    for bench in (stalled, other):
        bench.feed.abort()
