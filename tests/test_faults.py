"""Faults in every place: layers, sources, marks; the first error reaches the caller, whole, and the rest goes on."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import partime_async as pa
from tests.bench import steps
from tests.nets import (
    TIMEOUT_S,
    Gate,
    Gated,
    assert_all_ended,
    assert_same_bits,
    called,
    command,
    commanded,
    dense,
    frames_like,
)

STAGES = 3
GOOD = command(1.0)


class Broken(Exception):
    """What a layer raises here."""


def _pipeline(
    make_error: Callable[[], BaseException] = lambda: Broken("as told"), *, on_error: str = "fail_frame"
) -> pa.Pipeline:
    return pa.Pipeline(commanded(STAGES, make_error), GOOD, balance=[1] * STAGES, capture=False, on_error=on_error)


async def _all(results: AsyncIterator[pa.Result]) -> list[pa.Result]:
    async with asyncio.timeout(TIMEOUT_S):
        return [result async for result in results]


# -- a stage raises ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", range(STAGES))
async def test_stage_that_raises_fails_its_frame_alone(stage: int) -> None:
    """Under fail_frame, one result carries the error, in its place; all others are the module's own."""
    frames: list[Tensor] = [GOOD * number for number in range(10)]
    frames[4] = command(100.0 + stage)
    good = [frame for number, frame in enumerate(frames) if number != 4]
    async with _pipeline() as pipeline:
        results = await _all(pipeline.stream(frames))
        assert [result.sequence for result in results] == list(range(10))
        assert_same_bits([result.output for result in results if result.error is None], called(commanded(3), good))
        assert pipeline.statistics().frames.failed == 1
        assert [each.failed for each in pipeline.statistics().stages] == [int(k == stage) for k in range(STAGES)]
        assert_all_ended(pipeline.statistics().frames)
    error = results[4].error
    assert error is not None
    assert (error.stage, error.layers, error.index) == (stage, (str(stage), str(stage)), results[4].index)
    assert f"stage {stage}" in str(error)
    assert "frame 4: Broken: as told" in str(error)
    with pytest.raises(pa.StageError):
        _ = results[4].output


async def test_error_of_a_stage_has_the_traceback_of_the_layer() -> None:
    """The cause of a StageError is the layer's own exception, with a traceback that ends in the layer's code."""
    async with _pipeline() as pipeline:
        with pytest.raises(pa.StageError) as caught:
            await pipeline.process(command(101.0))
    cause = caught.value.__cause__
    assert isinstance(cause, Broken)
    last = traceback.extract_tb(cause.__traceback__)[-1]
    assert (last.name, last.filename.endswith("nets.py")) == ("forward", True)
    assert "raise self.make_error()" in "".join(traceback.format_exception(caught.value))


async def test_process_of_a_frame_that_fails_raises_to_its_caller_alone() -> None:
    """Of several callers at once, the one whose frame failed gets the error, the others their results."""
    async with _pipeline() as pipeline:
        calls = [pipeline.process(command(number)) for number in (1.0, 100.0, 2.0, 102.0, 3.0)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(outcome, pa.StageError) for outcome in outcomes] == [False, True, False, True, False]
    assert [outcome.stage for outcome in outcomes if isinstance(outcome, pa.StageError)] == [0, 2]


async def test_every_frame_may_fail() -> None:
    """A stream of nothing but failures comes to its end, each counted once."""
    async with _pipeline() as pipeline:
        results = await _all(pipeline.stream([command(100.0 + number % 3) for number in range(50)]))
        assert [result.error.stage for result in results if result.error] == [number % 3 for number in range(50)]
        assert pipeline.statistics().frames.failed == 50
        assert_all_ended(pipeline.statistics().frames)


@pytest.mark.parametrize("stage", range(STAGES))
async def test_stage_that_raises_under_stop_ends_everything_with_its_error(stage: int) -> None:
    """Under stop, whoever waits, puts, reads or asks gets the one error, and leaving raises it once."""
    gate = Gate()
    net = nn.Sequential(*commanded(STAGES, lambda: Broken("as told")), Gated(gate))
    pipeline = pa.Pipeline(net, GOOD, balance=[1, 1, 2], capture=False, on_error="stop")
    await pipeline.__aenter__()
    feed = pipeline.feed(capacity=1)
    await feed.__aenter__()
    reading = asyncio.ensure_future(_all(feed))
    streaming = asyncio.ensure_future(_all(pipeline.stream(_forever())))
    await steps()
    asking = [asyncio.ensure_future(pipeline.process(GOOD)) for _ in range(20)]
    await asyncio.gather(*asking[:5])
    culprit = asyncio.ensure_future(pipeline.process(command(100.0 + stage)))
    outcomes: list[object] = list(await asyncio.gather(culprit, reading, streaming, return_exceptions=True))
    late = [pipeline.process(GOOD), feed.put(GOOD), anext(feed), pipeline.state_dict(), anext(pipeline.stream([GOOD]))]
    outcomes += [(await asyncio.gather(call, return_exceptions=True))[0] for call in late]
    assert all(outcome is outcomes[0] for outcome in outcomes)
    assert isinstance(outcomes[0], pa.StageError)
    assert outcomes[0].stage == stage
    assert isinstance(outcomes[0].__cause__, Broken)
    assert not [outcome for outcome in await asyncio.gather(*asking, return_exceptions=True) if outcome is None]
    with pytest.raises(pa.StageError) as caught:
        await pipeline.__aexit__(None, None, None)
    assert caught.value is outcomes[0]
    assert isinstance(caught.value.__cause__, Broken)
    assert_all_ended(feed.statistics().frames)


async def _forever() -> AsyncIterator[Tensor]:
    while True:
        yield GOOD


async def test_block_that_raises_after_a_stop_keeps_its_own_error() -> None:
    """If the block is left by an error, leaving raises that one and not the pipeline's on top."""

    async def use() -> None:
        async with _pipeline(on_error="stop") as pipeline:
            with pytest.raises(pa.StageError):
                await pipeline.process(command(100.0))
            raise KeyError("of the block")

    with pytest.raises(KeyError, match="of the block"):
        await use()


async def test_pipeline_that_stopped_can_be_entered_again() -> None:
    """What stopped one run is no matter of the next."""
    pipeline = _pipeline(on_error="stop")

    async def use(number: float) -> None:
        async with pipeline:
            await pipeline.process(command(number))

    with pytest.raises(pa.StageError):
        await use(100.0)
    await use(1.0)


@pytest.mark.parametrize(
    "kind", [SystemExit, KeyboardInterrupt, StopIteration, StopAsyncIteration, GeneratorExit, asyncio.CancelledError]
)
@pytest.mark.parametrize("on_error", ["fail_frame", "stop"])
async def test_layer_that_raises_an_odd_exception_fails_its_frame(kind: type[BaseException], on_error: str) -> None:
    """Exceptions that steer Python itself are, in a layer, errors as any others: no thread dies and nobody hangs."""
    pipeline = _pipeline(lambda: kind("odd"), on_error=on_error)
    await pipeline.__aenter__()
    with pytest.raises(pa.StageError) as caught:
        await asyncio.wait_for(pipeline.process(command(101.0)), TIMEOUT_S)
    assert isinstance(caught.value.__cause__, kind)
    if on_error == "fail_frame":
        await asyncio.wait_for(pipeline.process(GOOD), TIMEOUT_S)
        await pipeline.__aexit__(None, None, None)
    else:
        with pytest.raises(pa.StageError):
            await pipeline.__aexit__(None, None, None)


async def test_layer_that_gives_another_shape_for_one_frame_fails_the_next_stage() -> None:
    """What a stage gives is not checked: the stage that cannot take it says so."""

    class Odd(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return value[:, :2] if value[0, 0] == 9.0 else value

    net = nn.Sequential(Odd(), nn.Linear(3, 3))
    async with pa.Pipeline(net, GOOD, balance=[1, 1], capture=False) as pipeline:
        with pytest.raises(pa.StageError, match="stage 1") as caught:
            await pipeline.process(command(9.0))
        assert isinstance(caught.value.__cause__, RuntimeError)
        await pipeline.process(GOOD)


# -- a source raises --------------------------------------------------------------------------------------------------


def _blocking(count: int, error: BaseException | None) -> Iterator[Tensor]:
    for _ in range(count):
        yield GOOD
    if error is not None:
        raise error


async def _asynchronous(count: int, error: BaseException | None) -> AsyncIterator[Tensor]:
    for item in _blocking(count, error):
        yield item


@pytest.mark.parametrize("make", [_blocking, _asynchronous])
@pytest.mark.parametrize("count", [0, 1, 7])
async def test_source_that_raises_gives_its_results_and_then_its_error(
    make: Callable[..., AsyncIterator[Tensor] | Iterator[Tensor]], count: int
) -> None:
    """The frames before the error have their results; the error has its traceback; the pipeline goes on."""
    async with _pipeline() as pipeline:
        results: list[pa.Result] = []

        async def read() -> None:
            async for result in pipeline.stream(make(count, Broken("cable pulled"))):
                results.append(result)  # noqa: PERF401 - those before the error count

        with pytest.raises(Broken, match="cable pulled") as caught:
            await read()
        assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "_blocking"
        assert len(results) == count
        assert len(await _all(pipeline.stream([GOOD] * 3))) == 3
        assert_all_ended(pipeline.statistics().frames)


@pytest.mark.parametrize("source", [[], (), _blocking(0, None), _asynchronous(0, None), torch.ones(0, 3)])
async def test_source_that_ends_at_once_is_an_empty_stream(source: object) -> None:
    """A source without frames is no error."""
    async with _pipeline() as pipeline:
        assert await _all(pipeline.stream(source)) == []  # type: ignore[arg-type]


async def test_source_that_never_yields_ends_when_its_reader_is_cancelled() -> None:
    """A stream whose source has nothing to give waits, and ends when the reader is cancelled or times out."""
    closed: list[bool] = []

    async def silent() -> AsyncIterator[Tensor]:
        try:
            await asyncio.Event().wait()
            yield GOOD
        finally:
            closed.append(True)

    async with _pipeline() as pipeline:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(pipeline.stream(silent()))
        assert closed == [True]
        assert pipeline.statistics().feeds == 0
        await pipeline.process(GOOD)


async def test_source_that_never_yields_ends_with_the_pipeline() -> None:
    """Leaving the block does not wait for a source that has nothing to give."""

    async def silent() -> AsyncIterator[Tensor]:
        await asyncio.Event().wait()
        yield GOOD

    async with _pipeline() as pipeline:
        reading = asyncio.ensure_future(_all(pipeline.stream(silent())))
        await steps()
    assert await reading == []


async def test_source_that_raises_as_it_closes_stops_nobody_else() -> None:
    """One client's source that fails to close is told to its reader; the pipeline goes on for the others."""

    def closing_badly() -> Iterator[Tensor]:
        try:
            yield GOOD
            yield GOOD
        finally:
            raise Broken("will not close")

    async with _pipeline() as pipeline:
        with pytest.raises(Broken, match="will not close"):
            await _all(pipeline.stream(closing_badly()))
        results = pipeline.stream(closing_badly())
        await anext(results)
        await results.aclose()  # type: ignore[attr-defined]
        assert len(await _all(pipeline.stream([GOOD] * 3))) == 3


@pytest.mark.parametrize("source", [5, None, "clip.mp4", b"frames", object()])
async def test_source_that_is_none_stops_nobody_else(source: object) -> None:
    """What cannot be iterated over is told to the caller, at once, and the pipeline goes on for the others."""
    async with _pipeline() as pipeline:
        with pytest.raises(pa.ConfigurationError, match="source"):
            await anext(pipeline.stream(source))  # type: ignore[arg-type]
        await pipeline.process(GOOD)


async def test_source_with_a_bad_frame_gives_the_results_before_it_and_says_so() -> None:
    """A frame that the pipeline does not take ends its stream with an error that names what was expected."""
    async with _pipeline() as pipeline:
        results = pipeline.stream([GOOD, GOOD, torch.ones(2, 2), GOOD])
        assert [(await anext(results)).sequence, (await anext(results)).sequence] == [0, 1]
        with pytest.raises(pa.FrameError, match="expected a tensor"):
            await anext(results)
        assert pipeline.statistics().frames.dropped == {"invalid": 1}


async def test_source_that_cancels_itself_is_told_and_does_not_look_like_an_end() -> None:
    """A CancelledError of the source's own, when nobody cancelled anything, is an error and no normal end."""

    async def cancelled() -> AsyncIterator[Tensor]:
        yield GOOD
        raise asyncio.CancelledError

    async with _pipeline() as pipeline:
        results = pipeline.stream(cancelled())
        await anext(results)
        with pytest.raises(pa.SourceError, match="cancelled"):
            await anext(results)


async def test_source_that_is_full_under_fail_ends_with_feed_full() -> None:
    """Under the policy fail a stream of a source that is too fast gives what it could and raises FeedFull."""
    gate = Gate()
    pipeline = pa.Pipeline(nn.Sequential(Gated(gate)), GOOD, balance=[1], depth=1, capture=False)
    async with pipeline:
        gate.close()
        results = pipeline.stream([GOOD] * 50, overflow="fail")
        first = asyncio.ensure_future(anext(results))
        await gate.reached()
        gate.open()
        await first
        with pytest.raises(pa.FeedFull):
            await _all(results)


# -- targets, contexts, marks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [None, torch.ones(1), torch.ones(2, 3).int(), (torch.ones(1), torch.ones(2))])
async def test_target_of_any_shape_passes_a_pipeline_that_does_not_learn(target: pa.Value | None) -> None:
    """Without a learner, what a target looks like is the caller's own affair; there is no loss."""
    async with _pipeline() as pipeline:
        assert (await pipeline.process(GOOD, target)).loss is None
        assert len(await _all(pipeline.stream([(GOOD, target)] * 3))) == 3


@pytest.mark.parametrize("context", [None, 5, "label", object(), {"any": ["thing"]}, torch.ones(3), ValueError("odd")])
async def test_context_of_any_kind_comes_back_as_it_is(context: object) -> None:
    """What the caller gives along comes back, the very object, looked at by nobody; also if the frame fails."""
    async with _pipeline() as pipeline, pipeline.feed() as feed:
        assert (await pipeline.process(GOOD, context=context)).context is context
        await feed.put(command(100.0), context=context)
        assert (await anext(feed)).context is context


async def test_pipeline_of_tuples_tells_frames_from_pairs() -> None:
    """Where a frame is a tuple itself, a pair whose first part is a tuple is a frame with its target."""

    class Sum(nn.Module):
        def forward(self, values: tuple[Tensor, Tensor]) -> Tensor:
            return values[0] + values[1]

    frame = (torch.ones(1), torch.ones(1))
    async with pa.Pipeline(nn.Sequential(Sum()), frame, balance=[1]) as pipeline:
        results = await _all(pipeline.stream([frame, (frame, torch.zeros(1)), pa.SourceFrame(frame)]))
        assert_same_bits([result.output for result in results], [torch.ones(1) * 2] * 3)


async def test_source_frames_bring_their_capture_time_and_come_back_whole() -> None:
    """A SourceFrame keeps its capture time, and is the context of its result."""
    frames = [pa.SourceFrame(GOOD, captured_at=100.0 + number, position_s=0.5) for number in range(3)]
    async with _pipeline() as pipeline:
        results = await _all(pipeline.stream(frames))
    assert [result.context for result in results] == frames
    assert [result.captured_at for result in results] == [100.0, 101.0, 102.0]


async def test_mark_that_fails_names_the_stage_and_the_stream_goes_on() -> None:
    """An action that raises in one stage reaches its caller as that stage's error, and harms no frame."""

    def fail() -> None:
        raise Broken("no room for a snapshot")

    async with _pipeline(on_error="stop") as pipeline:
        with pytest.raises(pa.StageError, match="stage 1") as caught:
            await pipeline._run.send([lambda: None, fail, lambda: None])
        assert caught.value.index is None
        assert isinstance(caught.value.__cause__, Broken)
        assert len(await _all(pipeline.stream(frames_like(GOOD, 3)))) == 3


async def test_mark_on_its_way_when_the_pipeline_is_left_by_an_error_is_told() -> None:
    """Whoever waits for a snapshot that is stuck between two stages learns that the pipeline was left."""
    gate = Gate()
    net = nn.Sequential(dense(1, width=3), Gated(gate), dense(1, width=3))
    asking: list[asyncio.Task[dict[str, Tensor]]] = []

    async def use() -> None:
        async with pa.Pipeline(net, GOOD, balance=[1, 1, 1], depth=1, capture=False) as pipeline:
            feed = pipeline.feed(capacity=8)
            await feed.__aenter__()
            gate.close()
            for _ in range(8):
                await feed.put(GOOD)
            await gate.reached()
            asking.extend(asyncio.ensure_future(pipeline.state_dict()) for _ in range(3))
            await steps(10)
            asyncio.get_running_loop().call_later(0.02, gate.open)
            raise Broken("of the block")

    with pytest.raises(Broken):
        await use()
    outcomes = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), TIMEOUT_S)
    assert all(isinstance(outcome, pa.PipelineNotRunning) for outcome in outcomes)
