"""Promise 7: whatever way a pipeline is left, in time and with nothing behind; and where it may live."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator

import pytest
import torch
import uvloop
from torch import Tensor, nn

import partime_async as pa
from partime_async.clock import Clock
from partime_async.devices import CpuDevice, DeviceEvent, DeviceStream, Notifier
from tests.bench import steps
from tests.nets import (
    TIMEOUT_S,
    Gate,
    Gated,
    Shared,
    assert_all_ended,
    assert_same_bits,
    called,
    dense,
    frames_like,
    streamed,
)

FRAME = torch.ones(1, 6)

_SOON_S = 0.5 * TIMEOUT_S
"""Well after every deadline here, well before what is stuck would go on by itself."""


def _gated(gate: Gate, **options: object) -> pa.Pipeline:
    net = nn.Sequential(nn.Linear(6, 6), Gated(gate), nn.Linear(6, 6))
    return pa.Pipeline(net, FRAME, balance=[1, 1, 1], capture=False, **options)  # type: ignore[arg-type]


# -- leaving ----------------------------------------------------------------------------------------------------------


async def test_leaving_normally_finishes_every_frame() -> None:
    """At the end of the block every frame that was put has gone through all stages."""
    gate = Gate()
    async with _gated(gate) as pipeline:
        feed = pipeline.feed(capacity=9)
        await feed.__aenter__()
        gate.close()
        for _ in range(9):
            await feed.put(FRAME)
        await gate.reached()
        waiting = asyncio.ensure_future(pipeline.process(FRAME))
        await steps()
        gate.open()
    assert (await waiting).output.shape == (1, 6)  # type: ignore[union-attr]
    assert feed.statistics().frames.dropped == {"unread": 9}
    assert_all_ended(feed.statistics().frames)


async def test_leaving_normally_lets_a_reader_read_to_the_end() -> None:
    """A task that reads a feed while the block is left gets every result and then the normal end."""

    async def read(feed: pa.Feed) -> list[int]:
        return [result.sequence async for result in feed]

    async with pa.Pipeline(dense(), FRAME, balance=[3, 4]) as pipeline:
        feed = pipeline.feed(capacity=9)
        await feed.__aenter__()
        reading = asyncio.ensure_future(read(feed))
        await steps()
        for _ in range(5):
            await feed.put(FRAME)
    assert await reading == [0, 1, 2, 3, 4]


async def test_leaving_by_an_error_drops_what_has_not_started() -> None:
    """An exception in the block ends the pipeline: what runs comes to its end, the rest is counted as aborted."""
    gate = Gate()
    feed: pa.Feed | None = None

    async def use() -> None:
        nonlocal feed
        async with _gated(gate) as pipeline:
            feed = pipeline.feed(capacity=9)
            await feed.__aenter__()
            gate.close()
            for _ in range(9):
                await feed.put(FRAME)
            await gate.reached()
            asyncio.get_running_loop().call_later(0.05, gate.open)
            raise KeyError("of the block")

    with pytest.raises(KeyError, match="of the block"):
        await use()
    assert feed is not None
    counts = feed.statistics().frames
    assert_all_ended(counts)
    assert counts.dropped["aborted"] >= 8


async def test_leaving_by_an_error_tells_those_who_wait_for_results() -> None:
    """Callers of process in other tasks learn that the pipeline was left; none waits for ever."""
    gate = Gate()
    waiting: list[asyncio.Task[pa.Result]] = []

    async def use() -> None:
        async with _gated(gate) as pipeline:
            gate.close()
            waiting.extend(asyncio.ensure_future(pipeline.process(FRAME)) for _ in range(12))
            await gate.reached()
            asyncio.get_running_loop().call_later(0.05, gate.open)
            raise KeyError

    with pytest.raises(KeyError):
        await use()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert len(errors) >= 11
    assert all(isinstance(error, pa.PipelineNotRunning) for error in errors)


async def test_leaving_by_a_cancellation_stays_a_cancellation() -> None:
    """A block that is cancelled aborts the pipeline, and the task ends as cancelled."""
    gate = Gate()

    async def use() -> None:
        async with _gated(gate) as pipeline:
            gate.close()
            await pipeline.process(FRAME)

    using = asyncio.ensure_future(use())
    await gate.reached()
    using.cancel()
    await steps()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await using
    assert using.cancelled()


@pytest.mark.leaves_stuck_threads
@pytest.mark.parametrize("how", ["normally", "by an error", "by cancellation"])
async def test_leaving_with_a_stuck_stage_ends_within_the_deadline(how: str) -> None:
    """A stage that cannot be interrupted costs the deadline, no more; the first error stays the first."""
    gate, loop = Gate(), asyncio.get_running_loop()
    feed: pa.Feed | None = None
    began = 0.0

    async def use() -> None:
        nonlocal feed, began
        async with _gated(gate, close_timeout_s=0.3) as pipeline:
            feed = pipeline.feed(capacity=5)
            await feed.__aenter__()
            gate.close()
            for _ in range(5):
                await feed.put(FRAME)
            await gate.reached()
            began = loop.time()
            if how == "by an error":
                raise KeyError("of the block")
            if how == "by cancellation":
                raise asyncio.CancelledError

    expected = {"normally": pa.DeadlineExceeded, "by an error": KeyError, "by cancellation": asyncio.CancelledError}
    with pytest.raises(expected[how]) as caught:
        await use()
    assert loop.time() - began < _SOON_S
    assert feed is not None
    assert_all_ended(feed.statistics().frames)
    if how == "normally":
        assert "within 0.3 s" in str(caught.value)
    else:
        assert any("within 0.3 s" in note for note in caught.value.__notes__)
    stuck = {thread.name for thread in threading.enumerate() if thread.name.startswith("partime")}
    assert stuck <= {"partime stage 1", "partime stage 2"}, "only the stuck stage, and the one it keeps waiting"
    gate.open()
    await asyncio.to_thread(_join, stuck)
    assert_all_ended(feed.statistics().frames)


def _join(names: set[str]) -> None:
    for thread in threading.enumerate():
        if thread.name in names:
            thread.join(TIMEOUT_S)


@pytest.mark.leaves_stuck_threads
async def test_feed_left_with_a_stuck_stage_ends_within_the_deadline() -> None:
    """Leaving a feed's own block takes no longer than leaving the pipeline may."""
    gate = Gate()

    async def use() -> None:
        async with _gated(gate, close_timeout_s=0.3) as pipeline:
            try:
                async with pipeline.feed() as feed:
                    gate.close()
                    await feed.put(FRAME)
                    await gate.reached()
            finally:
                gate.open()

    with pytest.raises(pa.DeadlineExceeded, match="1 frame"):
        await use()


async def test_pipeline_that_was_left_says_so() -> None:
    """Outside its block a pipeline gives no results, feeds or figures, before it was entered and after it was left."""
    pipeline = pa.Pipeline(dense(), FRAME, balance=[3, 4])
    for _ in range(2):
        with pytest.raises(pa.PipelineNotRunning, match="async with"):
            await pipeline.process(FRAME)
        with pytest.raises(pa.PipelineNotRunning):
            await anext(pipeline.stream([FRAME]))
        with pytest.raises(pa.PipelineNotRunning):
            pipeline.feed()
        with pytest.raises(pa.PipelineNotRunning):
            pipeline.statistics()
        async with pipeline:
            pass


async def test_pipeline_that_is_being_left_says_so() -> None:
    """While leaving waits for the last frames, others are told that no more are taken."""
    gate = Gate()
    pipeline = _gated(gate)
    await pipeline.__aenter__()
    gate.close()
    asking = asyncio.ensure_future(pipeline.process(FRAME))
    await gate.reached()
    leaving = asyncio.ensure_future(pipeline.__aexit__(None, None, None))
    await steps()
    with pytest.raises(pa.PipelineNotRunning, match="being left"):
        await pipeline.process(FRAME)
    with pytest.raises(pa.PipelineNotRunning, match="closing"):
        await pipeline.feed().__aenter__()
    assert pipeline.statistics().frames.in_flight == 1
    gate.open()
    await leaving
    assert (await asking).index == 0


@pytest.mark.parametrize("count", [0, 5])
async def test_pipeline_whose_stage_task_is_cancelled_from_outside_stops_and_says_so(count: int) -> None:
    """A program that cancels every task it finds does not leave callers waiting for a stage that is gone."""
    pipeline = pa.Pipeline(dense(), FRAME, balance=[3, 4], capture=False)
    await pipeline.__aenter__()
    (task,) = (task for task in asyncio.all_tasks() if task.get_name() == "partime stage 1")
    asking = [asyncio.ensure_future(pipeline.process(FRAME)) for _ in range(50)]
    await steps(count)
    task.cancel()
    outcomes = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), TIMEOUT_S)
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert errors
    assert all("cancelled from outside" in str(error) for error in errors)
    with pytest.raises(pa.PipelineNotRunning, match="stage 1 was cancelled from outside"):
        await pipeline.__aexit__(None, None, None)


async def test_feed_of_a_pipeline_that_was_left_is_closed() -> None:
    """A feed that outlives its pipeline takes no more frames and its results have an end."""
    async with pa.Pipeline(dense(), FRAME, balance=[3, 4]) as pipeline:
        feed = pipeline.feed()
        await feed.__aenter__()
    with pytest.raises(pa.FeedClosed):
        await feed.put(FRAME)
    assert [result async for result in feed] == []
    await feed.__aexit__(None, None, None)


# -- entering ---------------------------------------------------------------------------------------------------------


async def test_entering_again_keeps_the_weights() -> None:
    """A pipeline that was left can be entered again, with the weights it had."""
    pipeline = pa.Pipeline(dense(), FRAME, balance=[3, 4])
    other = dense()
    async with pipeline:
        await pipeline.load_state_dict(other.state_dict())
    for _ in range(2):
        async with pipeline:
            assert_same_bits((await pipeline.process(FRAME)).output, called(other, [FRAME])[0])


async def test_entering_twice_at_once_is_refused() -> None:
    """A pipeline that runs, or is about to, cannot be entered a second time; the first entry is not disturbed."""
    pipeline = pa.Pipeline(dense(), FRAME, balance=[3, 4])
    first = asyncio.ensure_future(pipeline.__aenter__())
    await steps(1)
    with pytest.raises(pa.PipelineNotRunning, match="running already"):
        await pipeline.__aenter__()
    await first
    with pytest.raises(pa.PipelineNotRunning, match="running already"):
        await pipeline.__aenter__()
    await pipeline.process(FRAME)
    await pipeline.__aexit__(None, None, None)


class RaisesLater(nn.Module):
    """Runs twice, then raises: once for the cutting, and once more."""

    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, value: Tensor) -> Tensor:
        """Return the input, or raise."""
        self.calls.count += 1
        if self.calls.count > self.calls.good:
            raise RuntimeError("out of memory, say")
        return value + 0.0


class Calls(Shared):
    """How often a layer was called, over all its copies."""

    def __init__(self, good: int) -> None:
        self.good = good
        self.count = 0


async def test_entering_with_a_module_that_raises_on_the_example_leaves_nothing() -> None:
    """A module that cannot run its example is told when it is cut, and the pipeline can be tried again."""
    pipeline = pa.Pipeline(nn.Sequential(nn.Linear(6, 6), RaisesLater(Calls(0))), FRAME, balance=[1, 1])
    for _ in range(2):
        with pytest.raises(pa.PartitionError, match="out of memory, say"):
            await pipeline.__aenter__()
    with pytest.raises(pa.PipelineNotRunning):
        await pipeline.state_dict()


async def test_entering_with_a_module_that_raises_on_its_device_leaves_nothing() -> None:
    """A stage that fails as it warms up is named, and its threads are gone."""
    net = nn.Sequential(nn.Linear(6, 6), RaisesLater(Calls(1)))
    with pytest.raises(pa.StageError, match="stage 1") as caught:
        await pa.Pipeline(net, FRAME, balance=[1, 1], capture=False).__aenter__()
    assert (caught.value.stage, caught.value.layers, caught.value.index) == (1, ("1", "1"), None)
    assert isinstance(caught.value.__cause__, RuntimeError)


class Unopenable(CpuDevice):
    """Opens one stream, then no more: as a GPU whose memory is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = 0

    def open_stream(
        self, name: str, *, notifier: Notifier[DeviceEvent], clock: Clock, threads: int = 1
    ) -> DeviceStream:
        """Open the first one."""
        self.opened += 1
        if self.opened > 1:
            raise pa.DeviceError("no stream left. Use fewer stages.")
        return super().open_stream(name, notifier=notifier, clock=clock, threads=threads)


async def test_entering_with_a_device_that_opens_no_stream_leaves_nothing() -> None:
    """If the second stage's stream cannot be opened, the first one's thread ends."""
    device = Unopenable()
    with pytest.raises(pa.DeviceError, match="no stream left"):
        await pa.Pipeline(dense(), FRAME, balance=[3, 4], devices=[device]).__aenter__()
    assert device.opened == 2


async def test_entering_that_is_cancelled_leaves_nothing() -> None:
    """A pipeline whose entering is cancelled while it warms up has no threads left, and can be entered again."""
    gate = Gate()
    pipeline = _gated(gate)
    gate.close()
    entering = asyncio.ensure_future(pipeline.__aenter__())
    await gate.reached()
    entering.cancel()
    await steps()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await entering
    async with pipeline:
        await pipeline.process(FRAME)


# -- places -----------------------------------------------------------------------------------------------------------


async def test_pipelines_in_one_loop_do_not_touch_each_other() -> None:
    """Three pipelines of one loop run side by side, each with its own network, accounts and end."""
    nets = [dense(width=6) for _ in range(3)]
    frames = frames_like(FRAME, 20)

    async def run(net: nn.Module) -> None:
        async with pa.Pipeline(net, FRAME, balance=[3, 4], capture=False) as pipeline:
            assert_same_bits(await streamed(pipeline, frames), called(net, frames))
            assert pipeline.statistics().frames.delivered == 20

    async with asyncio.TaskGroup() as group:
        for net in nets:
            group.create_task(run(net))


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_pipeline_in_a_loop_of_another_thread_works(make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """A pipeline runs in a loop that is not the main thread's."""
    net, frames = dense(), frames_like(FRAME, 10)
    found: list[pa.Value] = []

    async def use() -> None:
        async with pa.Pipeline(net, FRAME, balance=[3, 4]) as pipeline:
            found.extend(await streamed(pipeline, frames))

    def run() -> None:
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(use())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(TIMEOUT_S)
    assert_same_bits(found, called(net, frames))


def test_pipeline_entered_in_one_loop_and_then_in_another_works() -> None:
    """A pipeline belongs to the loop it is entered in, each time anew."""
    pipeline = pa.Pipeline(dense(), FRAME, balance=[3, 4])

    async def use() -> None:
        async with pipeline:
            await streamed(pipeline, frames_like(FRAME, 5))

    for make_loop in (asyncio.new_event_loop, uvloop.new_event_loop, asyncio.new_event_loop):
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(use())


async def _as_a_fixture() -> AsyncGenerator[pa.Pipeline, None]:
    async with pa.Pipeline(dense(), FRAME, balance=[3, 4]) as pipeline:
        yield pipeline


@pytest.mark.parametrize("is_failing", [False, True])
async def test_pipeline_entered_and_left_in_different_tasks_works(is_failing: bool) -> None:
    """A generator, as test suites and web frameworks use them, may enter in one task and leave in another."""
    fixture = _as_a_fixture()

    async def enter() -> pa.Pipeline:
        return await anext(fixture)

    async def leave() -> None:
        if is_failing:
            with pytest.raises(KeyError):
                await fixture.athrow(KeyError())
        else:
            with pytest.raises(StopAsyncIteration):
                await anext(fixture)

    pipeline = await asyncio.create_task(enter())
    await asyncio.create_task(streamed_to(pipeline, 5))
    await asyncio.create_task(leave())


async def streamed_to(pipeline: pa.Pipeline, count: int) -> None:
    """Stream some frames."""
    assert len(await streamed(pipeline, frames_like(FRAME, count))) == count


# -- abandoned streams ------------------------------------------------------------------------------------------------


def _endless(pulled: list[int]) -> Iterator[Tensor]:
    try:
        while True:
            pulled.append(1)
            yield FRAME
    finally:
        pulled.append(-1)


@pytest.mark.parametrize("is_kept", [True, False], ids=["kept", "dropped"])
async def test_stream_left_by_a_break_ends_its_source(is_kept: bool) -> None:
    """A stream that nobody reads any more stops drawing from its source, which is closed at the end or before."""
    pulled: list[int] = []
    async with pa.Pipeline(dense(), FRAME, balance=[3, 4], depth=1, capture=False) as pipeline:
        results = pipeline.stream(_endless(pulled))
        async for result in results:
            if result.sequence == 5:
                break
        if not is_kept:
            del results
            gc.collect()
            await _until(lambda: pulled[-1] == -1 and pipeline.statistics().feeds == 0)
        assert len(await streamed(pipeline, [FRAME] * 10)) == 10, "others go on"
        if is_kept:
            assert len(pulled) < 30, "an abandoned stream holds its source back"
    assert pulled[-1] == -1
    if is_kept:
        await results.aclose()  # type: ignore[attr-defined]


async def test_leaving_while_a_source_closes_gives_it_the_time_it_needs() -> None:
    """A stream that is given up just before the end still sees its source's thread end, if that takes a moment."""
    loop, closing, may_close = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def slow_to_close() -> Iterator[Tensor]:
        try:
            yield FRAME
            yield FRAME
        finally:
            loop.call_soon_threadsafe(closing.set)
            may_close.wait(TIMEOUT_S)

    async with pa.Pipeline(dense(), FRAME, balance=[3, 4], capture=False) as pipeline:
        results = pipeline.stream(slow_to_close())
        await anext(results)
        giving_up = asyncio.ensure_future(results.aclose())  # type: ignore[attr-defined]
        await closing.wait()
        loop.call_later(0.05, may_close.set)
    assert may_close.is_set()
    await giving_up


async def test_stream_closed_by_its_reader_leaves_exact_accounts() -> None:
    """Closing the generator in the middle counts the frames under way as aborted or unread, and none twice."""
    async with pa.Pipeline(dense(), FRAME, balance=[3, 4], capture=False) as pipeline:
        results = pipeline.stream(_endless([]))
        for _ in range(3):
            await anext(results)
        await results.aclose()  # type: ignore[attr-defined]
        await _until(lambda: pipeline.statistics().frames.in_flight == 0)
        frames = pipeline.statistics().frames
        assert_all_ended(frames)
        assert frames.delivered == 3
        assert pipeline.statistics().feeds == 0


async def _until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not is_true():  # noqa: ASYNC110 - what other threads do sets no event here
            await asyncio.sleep(0.001)


# -- accounts while feeds come and go ---------------------------------------------------------------------------------


async def test_accounts_of_a_feed_that_was_left_stay_while_its_frames_are_in_flight() -> None:
    """The pipeline's figures never lose sight of a frame: not while its feed is gone and it is still in a stage."""
    gate = Gate()
    async with _gated(gate) as pipeline:

        async def leave() -> None:
            async with pipeline.feed(capacity=4) as feed:
                gate.close()
                for _ in range(4):
                    await feed.put(FRAME)
                await gate.reached()
                raise KeyError

        with pytest.raises(KeyError):
            await leave()
        frames = pipeline.statistics().frames
        assert (frames.offered, pipeline.statistics().feeds) == (4, 0)
        assert frames.in_flight > 0
        gate.open()
        await _until(lambda: pipeline.statistics().frames.in_flight == 0)
        assert pipeline.statistics().frames.offered == 4
        assert_all_ended(pipeline.statistics().frames)


@pytest.mark.leaves_stuck_threads
@pytest.mark.parametrize("kind", ["thread", "task"])
async def test_leaving_with_a_source_that_does_not_close_ends_within_the_deadline(kind: str) -> None:
    """A source stuck in its next frame, or in its closing, costs the deadline, no more, and is told."""
    stuck, loop = threading.Event(), asyncio.get_running_loop()

    def blocking() -> Iterator[Tensor]:
        yield FRAME
        stuck.wait(TIMEOUT_S)

    async def waiting() -> AsyncIterator[Tensor]:
        yield FRAME
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(1e6)

    async def use() -> None:
        async with pa.Pipeline(dense(), FRAME, balance=[3, 4], close_timeout_s=0.3, capture=False) as pipeline:
            results = pipeline.stream(blocking() if kind == "thread" else waiting())
            await anext(results)
            await steps()
            began.append(loop.time())

    began: list[float] = []
    with pytest.raises(pa.DeadlineExceeded, match="source"):
        await use()
    assert loop.time() - began[0] < _SOON_S
    stuck.set()


async def test_deadline_counts_from_leaving_not_from_entering() -> None:
    """The deadline bounds the end, not the life, of a pipeline."""
    async with pa.Pipeline(dense(), FRAME, balance=[3, 4], close_timeout_s=0.2) as pipeline:
        await asyncio.sleep(0.25)
        await pipeline.process(FRAME)
